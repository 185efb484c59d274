//! The programs that a lab is built with: `ip`, `bridge` and the nftables variant of `iptables`.

use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use super::{RuntimeError, error::Doing, names::netns_path, netns};

/// Commands for one `ip -batch`, in one namespace.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    text: String,
}

impl Batch {
    pub(crate) fn add(&mut self, command: impl AsRef<str>) {
        self.text.push_str(command.as_ref());
        self.text.push('\n');
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// All commands in order; the first that fails ends it.
    pub(crate) fn run(&self, netns: &str) -> Result<(), RuntimeError> {
        if self.is_empty() {
            return Ok(());
        }
        self.execute(Command::new("ip").args(["-n", netns, "-batch", "-"]), netns)
    }

    /// As many as can be done, for taking down what may be gone in part.
    pub(crate) fn run_all(&self, netns: &str) {
        if !self.is_empty() {
            // What fails here is gone already.
            let _ = self.execute(Command::new("ip").args(["-n", netns, "-force", "-batch", "-"]), netns);
        }
    }

    /// The same for `bridge`.
    pub(crate) fn run_bridge(&self, netns: &str) -> Result<(), RuntimeError> {
        if self.is_empty() {
            return Ok(());
        }
        self.execute(Command::new("bridge").args(["-n", netns, "-batch", "-"]), netns)
    }

    fn execute(&self, command: &mut Command, netns: &str) -> Result<(), RuntimeError> {
        run(command, &self.text).map_err(|error| match error {
            RuntimeError::Tool { program, message } => {
                let line = message.rsplit_once("-:").and_then(|(_, n)| n.trim().parse::<usize>().ok());
                let text = line.and_then(|n| self.text.lines().nth(n.saturating_sub(1))).unwrap_or_default();
                RuntimeError::Tool { program: format!("{program} in {netns}: {text}"), message }
            }
            other => other,
        })
    }
}

/// Replaces the tables that `rules` names, in the namespace `netns`.
pub(crate) fn iptables_restore(netns: &str, v6: bool, rules: &str) -> Result<(), RuntimeError> {
    netns::within(&netns_path(netns), || run(Command::new(nft_variant(if v6 { "ip6tables" } else { "iptables" })).arg("--noflush"), rules))
}

/// Which `iptables-restore` edits nftables here: Debian has both variants under names of their own.
fn nft_variant(tool: &str) -> String {
    let name = format!("{tool}-nft-restore");
    if program_in_path(&name, None).is_some() { name } else { format!("{tool}-restore") }
}

/// Runs a program that reads `input` and says on stderr what is wrong.
fn run(command: &mut Command, input: &str) -> Result<(), RuntimeError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .doing(|| format!("starting {program} (is it installed?)"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends before it has read everything says why on stderr.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().doing(|| format!("waiting for {program}"))?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).split_whitespace().collect::<Vec<_>>().join(" ");
    Err(RuntimeError::Tool { program, message })
}

/// Where a program is on this host, as a shell would find it.
pub(crate) fn program_in_path(program: &str, path: Option<&str>) -> Option<std::path::PathBuf> {
    let executable = |path: &Path| path.is_file() && nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok();
    if program.contains('/') {
        return Some(Path::new(program).to_owned()).filter(|p| executable(p));
    }
    let from_environment = std::env::var("PATH").ok();
    let path = path.or(from_environment.as_deref()).unwrap_or(DEFAULT_PATH);
    path.split(':').filter(|d| !d.is_empty()).map(|d| Path::new(d).join(program)).find(|p| executable(p))
}

/// As in a container.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
