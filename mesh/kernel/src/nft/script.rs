//! Skeletons as text: what a table looks like is best read in nft's own language, and is loaded rarely.

use std::{
    io::{self, Write},
    process::{Command, Stdio},
};

use crate::{KernelError, Netns};

/// Loads `script` with `nft -f -` inside `ns`, in one transaction.
pub fn load_script(ns: &Netns, script: &str) -> Result<(), KernelError> {
    run(ns, &["-f", "-"], "load a table", script)
}

/// Lets `nft -c -f -` and the kernel inside `ns` check `script` without changing anything.
pub fn check_script(ns: &Netns, script: &str) -> Result<(), KernelError> {
    run(ns, &["-c", "-f", "-"], "check a table", script)
}

fn run(ns: &Netns, arguments: &[&str], what: &str, script: &str) -> Result<(), KernelError> {
    let action = || format!("{what} in {}", ns.path().display());
    let mut command = Command::new("nft");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = match ns.spawn(&mut command) {
        Err(KernelError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Err(KernelError::ToolMissing { tool: "nft", package: "nftables" });
        }
        other => other?,
    };
    // nft reads to the end before it writes anything, so this cannot block both. It may end early, which its status tells.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(script.as_bytes()));
    let output = child.wait_with_output().map_err(|source| KernelError::from_io(action(), source))?;
    if !output.status.success() {
        return Err(KernelError::Tool { tool: "nft", action: action(), output: String::from_utf8_lossy(&output.stderr).trim().to_owned() });
    }
    written.map_err(|source| KernelError::from_io(action(), source))
}
