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

/// One command per family, by the name under which it is installed.
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

/// The commands that see a DOCKER-USER chain, at most one for each family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Iptables {
    tools: Vec<&'static str>,
}

impl Iptables {
    /// Finds which of the variants Docker uses in `ns`. `None` if no variant has the chain: there is no Docker, or one that
    /// manages its firewall otherwise.
    pub fn detect(ns: &Netns) -> Result<Option<Self>, KernelError> {
        let mut tools = Vec::new();
        for family in [V4, V6] {
            for candidate in family {
                if candidate.has_chain(ns)? {
                    tools.push(candidate.tool);
                    break;
                }
            }
        }
        Ok((!tools.is_empty()).then_some(Self { tools }))
    }

    /// Names of the commands in use.
    pub fn tools(&self) -> &[&'static str] {
        &self.tools
    }

    /// Puts `rule` at the head of `chain`, for each family that has the chain. True if it was missing anywhere.
    ///
    /// `rule` must make sense for both families, as marks and interfaces do.
    pub fn ensure_rule(&self, ns: &Netns, chain: &str, rule: &[&str]) -> Result<bool, KernelError> {
        self.each_tool(|tool| {
            let missing = !has_rule(ns, tool, chain, rule)?;
            if missing {
                done(tool, &format!("add a rule to {chain}"), &run(ns, tool, "-I", chain, rule)?)?;
            }
            Ok(missing)
        })
    }

    /// Takes `rule` out of `chain`, every copy of it. True if there was one.
    pub fn remove_rule(&self, ns: &Netns, chain: &str, rule: &[&str]) -> Result<bool, KernelError> {
        self.each_tool(|tool| {
            let mut removed = false;
            while has_rule(ns, tool, chain, rule)? {
                done(tool, &format!("delete a rule from {chain}"), &run(ns, tool, "-D", chain, rule)?)?;
                removed = true;
            }
            Ok(removed)
        })
    }

    fn each_tool(&self, mut work: impl FnMut(&'static str) -> Result<bool, KernelError>) -> Result<bool, KernelError> {
        self.tools.iter().try_fold(false, |changed, tool| Ok(work(tool)? || changed))
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
    command.args(["-w", LOCK_WAIT, verb, chain]).args(rule).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    match ns.spawn(&mut command) {
        Ok(child) => child.wait_with_output().map_err(|source| KernelError::from_io(format!("run {tool}"), source)),
        Err(KernelError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Err(KernelError::ToolMissing { tool, package: PACKAGE })
        }
        Err(error) => Err(error),
    }
}
