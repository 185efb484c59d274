//! Programs that the agent runs, and running programs in general.

use std::{
    io::{self, Write},
    process::{Command, Stdio},
};

use super::Finding;

/// A program's own words.
pub(super) struct Said {
    pub(super) success: bool,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// Runs a program to its end; `input` is short enough to fit a pipe.
pub(super) fn run(program: &str, arguments: &[&str], input: &str) -> io::Result<Said> {
    let mut child = Command::new(program).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not want to read says why on stderr.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    Ok(Said { success: output.status.success(), stdout: text(&output.stdout), stderr: text(&output.stderr) })
}

pub(super) fn programs() -> Vec<Finding> {
    let nft = match run("nft", &["--version"], "") {
        Ok(said) if said.success => Finding::ok("nft", said.stdout),
        Ok(said) => Finding::critical("nft", format!("nft --version fails: {}", said.stderr), "reinstall the package nftables"),
        Err(error) => Finding::critical("nft", format!("cannot run nft: {error}"), "install the package nftables"),
    };
    let iptables = match run("iptables", &["--version"], "") {
        Ok(said) if said.success => Finding::ok("iptables", said.stdout),
        Ok(said) => Finding::warning("iptables", format!("iptables --version fails: {}", said.stderr), "reinstall the package iptables"),
        Err(error) => Finding::warning(
            "iptables",
            format!("cannot run iptables: {error}"),
            "install the package iptables: Docker sets FORWARD to DROP, and the way past it is a rule in its chain DOCKER-USER",
        ),
    };
    vec![nft, iptables]
}
