//! Rules in Docker's DOCKER-USER chain, the place that Docker leaves to others, by the tool that Docker itself uses.

use std::{
    fs, io,
    process::{Command, Output, Stdio},
};

use crate::{KernelError, Netns};

/// The chain that Docker jumps to first from FORWARD, and never changes.
pub const DOCKER_USER: &str = "DOCKER-USER";

/// Seconds to wait for the xtables lock; Docker itself holds it often, but not for long.
const LOCK_WAIT: &str = "5";

const PACKAGE: &str = "iptables";

/// A variant of the command, by the name under which it is installed.
struct Candidate {
    tool: &'static str,
    /// Where the kernel lists the legacy tables that this namespace has. The legacy tools create a table by looking into it,
    /// and its hooks then cost every packet, so they are only asked where it exists.
    legacy_tables: Option<&'static str>,
}

const V4: [Candidate; 3] = [
    Candidate { tool: "iptables", legacy_tables: None },
    Candidate { tool: "iptables-nft", legacy_tables: None },
    Candidate { tool: "iptables-legacy", legacy_tables: Some("/proc/thread-self/net/ip_tables_names") },
];
const V6: [Candidate; 3] = [
    Candidate { tool: "ip6tables", legacy_tables: None },
    Candidate { tool: "ip6tables-nft", legacy_tables: None },
    Candidate { tool: "ip6tables-legacy", legacy_tables: Some("/proc/thread-self/net/ip6_tables_names") },
];

/// The command that sees one family's DOCKER-USER chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Iptables {
    tool: &'static str,
}

impl Iptables {
    /// Finds which of the variants Docker uses in `ns`. `None` if no variant has the chain: there is no Docker, or one that
    /// manages its firewall otherwise.
    pub fn detect(ns: &Netns, v6: bool) -> Result<Option<Self>, KernelError> {
        for candidate in if v6 { V6 } else { V4 } {
            if candidate.has_chain(ns)? {
                return Ok(Some(Self { tool: candidate.tool }));
            }
        }
        Ok(None)
    }

    /// Name of the command in use.
    pub fn tool(&self) -> &'static str {
        self.tool
    }

    /// Puts `rule` at the end of `chain`, before the RETURN that Docker ends it with, so that whatever its owner wrote
    /// there comes first. True if it was missing.
    pub fn ensure_rule(&self, ns: &Netns, chain: &str, rule: &[&str]) -> Result<bool, KernelError> {
        if has_rule(ns, self.tool, chain, rule)? {
            return Ok(false);
        }
        let listed = run(ns, self.tool, "-S", chain, &[])?;
        done(self.tool, &format!("list {chain}"), &listed)?;
        let listed = String::from_utf8_lossy(&listed.stdout);
        let rules: Vec<&str> = listed.lines().filter(|line| line.starts_with("-A ")).collect();
        let ends_with_return = rules.last().is_some_and(|last| *last == format!("-A {chain} -j RETURN"));
        let output = if ends_with_return {
            let position = rules.len().to_string();
            run(ns, self.tool, "-I", chain, &[&[position.as_str()], rule].concat())?
        } else {
            run(ns, self.tool, "-A", chain, rule)?
        };
        done(self.tool, &format!("add a rule to {chain}"), &output).map(|()| true)
    }

    /// Takes `rule` out of `chain`, every copy of it. True if there was one.
    pub fn remove_rule(&self, ns: &Netns, chain: &str, rule: &[&str]) -> Result<bool, KernelError> {
        let mut removed = false;
        while has_rule(ns, self.tool, chain, rule)? {
            done(self.tool, &format!("delete a rule from {chain}"), &run(ns, self.tool, "-D", chain, rule)?)?;
            removed = true;
        }
        Ok(removed)
    }
}

impl Candidate {
    fn has_chain(&self, ns: &Netns) -> Result<bool, KernelError> {
        if let Some(tables) = self.legacy_tables {
            // Not there at all without the kernel's legacy module.
            let names = ns.enter(|| fs::read_to_string(tables))?.unwrap_or_default();
            if !names.lines().any(|name| name == "filter") {
                return Ok(false);
            }
        }
        match run(ns, self.tool, "-S", DOCKER_USER, &[]) {
            Ok(output) => Ok(output.status.success()),
            Err(KernelError::ToolMissing { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn has_rule(ns: &Netns, tool: &'static str, chain: &str, rule: &[&str]) -> Result<bool, KernelError> {
    let output = run(ns, tool, "-C", chain, rule)?;
    match output.status.code() {
        // 1 is "no such rule"; 2 is a rule that makes no sense and 4 a lock that was not had (iptables(8)).
        Some(1) => Ok(false),
        _ => done(tool, &format!("look for a rule in {chain}"), &output).map(|()| true),
    }
}

fn done(tool: &'static str, action: &str, output: &Output) -> Result<(), KernelError> {
    if output.status.success() {
        return Ok(());
    }
    Err(KernelError::Tool { tool, action: action.to_owned(), output: String::from_utf8_lossy(&output.stderr).trim().to_owned() })
}

fn run(ns: &Netns, tool: &'static str, verb: &str, chain: &str, rule: &[&str]) -> Result<Output, KernelError> {
    let mut command = Command::new(tool);
    command.args(["-w", LOCK_WAIT, verb, chain]).args(rule).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    match ns.spawn(&mut command) {
        Ok(child) => child.wait_with_output().map_err(|source| KernelError::from_io(format!("run {tool}"), source)),
        Err(KernelError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Err(KernelError::ToolMissing { tool, package: PACKAGE })
        }
        Err(error) => Err(error),
    }
}
