//! What a task runs: its own command where the host has that program, else the built-in server.

use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
};

use swarmesh_model::{Port, Protocol};

use super::tools::{DEFAULT_PATH, program_in_path};
use crate::swarm::TaskSpec;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) built_in: bool,
}

/// `own` is this program.
pub(crate) fn choose(spec: &TaskSpec, own: &Path) -> Program {
    let words: Vec<&String> = spec.entrypoint.iter().flatten().chain(&spec.command).collect();
    match words.as_slice() {
        // As it would be called on a host that has Swarmesh installed.
        [program, command, args @ ..] if *program == "swarmesh" && *command == "whoami" => {
            Program { path: own.to_owned(), args: std::iter::once(*command).chain(args.iter().copied()).cloned().collect(), built_in: true }
        }
        [program, args @ ..] => match program_in_path(program, spec.environment.get("PATH").map(String::as_str)) {
            Some(path) => Program { path, args: args.iter().copied().cloned().collect(), built_in: false },
            None => whoami(spec, own),
        },
        [] => whoami(spec, own),
    }
}

/// Listens where the service's published ports lead, and on port 80. `WHOAMI_TCP` and `WHOAMI_UDP` in the stack say otherwise.
fn whoami(spec: &TaskSpec, own: &Path) -> Program {
    let mut args = vec!["whoami".to_owned()];
    let mut listen = |flag: &str, variable: &str, ports: Vec<u16>| {
        if !spec.environment.contains_key(variable) {
            args.extend(ports.iter().flat_map(|port| [flag.to_owned(), port.to_string()]));
        }
    };
    listen("--tcp", "WHOAMI_TCP", tcp_ports(&spec.ports));
    listen("--udp", "WHOAMI_UDP", targets(&spec.ports, Protocol::Udp));
    Program { path: own.to_owned(), args, built_in: true }
}

fn targets(ports: &[Port], protocol: Protocol) -> Vec<u16> {
    let mut targets: Vec<u16> = Vec::new();
    for port in ports.iter().filter(|p| p.protocol == protocol) {
        if !targets.contains(&port.target_port) {
            targets.push(port.target_port);
        }
    }
    targets
}

fn tcp_ports(ports: &[Port]) -> Vec<u16> {
    let mut targets = targets(ports, Protocol::Tcp);
    if !targets.contains(&80) {
        targets.push(80);
    }
    targets
}

/// Where a task without a health check of its own can be asked.
pub(crate) fn first_tcp_port(spec: &TaskSpec) -> u16 {
    let given = spec.environment.get("WHOAMI_TCP").and_then(|ports| ports.split(',').next()?.trim().parse().ok());
    given.or_else(|| tcp_ports(&spec.ports).first().copied()).unwrap_or(80)
}

/// What a container would see: nothing of the host's environment.
pub(crate) fn environment(spec: &TaskSpec) -> BTreeMap<String, String> {
    let mut environment = BTreeMap::from([
        ("PATH".to_owned(), env::var("PATH").unwrap_or_else(|_| DEFAULT_PATH.to_owned())),
        ("HOME".to_owned(), "/root".to_owned()),
        ("HOSTNAME".to_owned(), spec.hostname.clone()),
        ("WHOAMI_SERVICE".to_owned(), spec.service_name.clone().unwrap_or_else(|| spec.name.clone())),
        ("WHOAMI_TASK".to_owned(), spec.name.clone()),
        ("WHOAMI_NODE".to_owned(), spec.node_hostname.clone()),
    ]);
    environment.extend(spec.environment.clone());
    environment
}
