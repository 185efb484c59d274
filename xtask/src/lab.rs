//! `cargo xtask lab`: three real dockerd on this machine with an agent on each, there until they are taken down.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use swarmesh_tests::{
    agents::{self, Agents},
    dockerlab::DockerLab,
};

use crate::{
    packages,
    run::{build, say},
};

/// One lab at a time; tests have names of their own.
const NAME: &str = "xlab";
const IMAGE: &str = "whoami:latest";
const PACKAGES: [&str; 8] = ["docker.io", "nftables", "iptables", "iproute2", "conntrack", "curl", "procps", "busybox-static"];

#[derive(Subcommand)]
pub(crate) enum LabCommand {
    /// Bring the lab up: engines, one swarm of managers, an agent on each node, the image `whoami`
    Up {
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
        nodes: u8,
        /// Docker alone
        #[arg(long)]
        no_agents: bool,
        /// This `swarmesh` instead of a fresh build
        #[arg(long, value_name = "FILE")]
        program: Option<PathBuf>,
    },
    /// The Docker client against a node's engine: `lab docker 1 -- service ls`
    Docker {
        /// 1, 2, …
        node: usize,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        words: Vec<String>,
    },
    /// A program of this machine on a node (1, 2, …) or a client (client1, client2): `lab exec client1 -- curl 192.0.2.11:8080`
    Exec {
        place: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        words: Vec<String>,
    },
    /// Take everything down, whatever is left of it
    Down,
}

pub(crate) fn run(command: LabCommand) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the lab makes network namespaces: run it as root");
    }
    match command {
        LabCommand::Up { nodes, no_agents, program } => up(usize::from(nodes), no_agents, program),
        LabCommand::Docker { node, words } => {
            let lab = DockerLab::attach(NAME)?;
            finish(lab.docker_command(index(node, &lab)?).args(&words))
        }
        LabCommand::Exec { place, words } => exec(&place, &words),
        LabCommand::Down => DockerLab::sweep(NAME),
    }
}

fn up(nodes: usize, no_agents: bool, program: Option<PathBuf>) -> Result<()> {
    packages::ensure(&PACKAGES)?;
    let program = program.map_or_else(|| build(false), Ok)?;
    say(&format!("{nodes} engines, one swarm"));
    let lab = DockerLab::up(NAME, nodes, nodes)?;
    let mut agents = Agents::new(&lab, &program)?;
    agents::import_image(&lab, agents.program(), IMAGE)?;
    if !no_agents {
        (0..nodes).try_for_each(|node| agents.start(&lab, node))?;
    }
    let program = agents.program().display().to_string();
    let work = lab.work().display().to_string();
    let words: Vec<String> = agents::whoami(IMAGE, "web", &["--replicas", "3", "--publish", "8080:80"]).into_iter().map(quoted).collect();
    lab.keep();
    let agents = if no_agents { "No agent runs." } else { "An agent runs on each node." };
    say(&format!(
        "
The lab is up: nodes n1 to n{nodes} at 192.0.2.11 and on, clients outside of the swarm at 192.0.2.101 and .102. {agents}

  cargo xtask lab docker 1 -- {}
  cargo xtask lab exec client1 -- curl --silent http://192.0.2.12:8080/
  cargo xtask lab exec 1 -- {program} status
  cargo xtask lab down

Logs: {work}/n1/dockerd.log, {work}/n1/agent.log",
        words.join(" ")
    ));
    Ok(())
}

fn exec(place: &str, words: &[String]) -> Result<()> {
    let lab = DockerLab::attach(NAME)?;
    let (program, rest) = words.split_first().context("no command")?;
    let mut command = match place {
        "client1" | "client2" => {
            let mut command = lab.command_in_client(if place == "client1" { 1 } else { 2 });
            command.arg(program);
            command
        }
        node => {
            let number = node.strip_prefix('n').unwrap_or(node).parse().with_context(|| format!("{place:?} is no node and no client"))?;
            lab.command_in_node(index(number, &lab)?, program)?
        }
    };
    finish(command.args(rest))
}

/// People count from one.
fn index(node: usize, lab: &DockerLab) -> Result<usize> {
    if !(1..=lab.len()).contains(&node) {
        bail!("there is no node {node}: the lab has 1 to {}", lab.len());
    }
    Ok(node - 1)
}

/// With this process's own terminal or pipes.
fn finish(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))?;
    if !status.success() {
        bail!("ended with {status}");
    }
    Ok(())
}

/// As a shell wants it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=:,./".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}
