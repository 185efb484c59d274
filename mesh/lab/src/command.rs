//! `swarmesh lab …`: the emulator's command line.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this is the command line: results on stdout, errors on stderr")]

use std::{net::IpAddr, path::PathBuf, process::ExitCode, time::Duration};

use swarmesh_model::Availability;

use crate::{
    runtime::{
        self, AgentAction, AgentSetup, LabName, Layout, RuntimeError, Setup,
        client::{self, Outcome, Progress, UpOptions},
    },
    stack::{self, DnsSpec, UpdateOrder},
    swarm::{ContainerSpec, UpdateOptions},
};

/// A swarm of several nodes on this machine, without Docker
#[derive(Debug, clap::Subcommand)]
pub enum LabCommand {
    /// Bring a lab up, with the services of stack files
    Up(Box<UpArgs>),
    /// Show nodes, networks, services and tasks
    Status {
        #[command(flatten)]
        lab: Lab,
        #[arg(long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Wait until all tasks run and all agents are ready
    Wait {
        #[command(flatten)]
        lab: Lab,
        #[arg(long, value_name = "SECS", default_value = "120", value_parser = seconds)]
        timeout: Duration,
    },
    /// Run a command in the namespace of a node, a client or a task
    Exec {
        #[command(flatten)]
        lab: Lab,
        /// node1, client1, web.1, a task's name or id, or node1/ingress_sbox for any other namespace of a node
        target: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
    /// Change the number of a service's replicas
    Scale {
        #[command(flatten)]
        lab: Lab,
        #[arg(value_name = "SERVICE=REPLICAS", required = true, value_parser = scaling)]
        services: Vec<(String, u64)>,
    },
    /// Replace a service's tasks
    Update {
        #[command(flatten)]
        lab: Lab,
        service: String,
        /// Accepted because Docker needs it; here every update replaces the tasks
        #[arg(long)]
        force: bool,
        #[arg(long, value_enum)]
        order: Option<Order>,
        /// Tasks replaced at a time; 0 means all
        #[arg(long)]
        parallelism: Option<u64>,
        /// Between two of them
        #[arg(long, value_name = "SECS", value_parser = seconds)]
        delay: Option<Duration>,
    },
    /// Deploy a stack file into a running lab, again or for the first time
    Deploy {
        #[command(flatten)]
        lab: Lab,
        #[command(flatten)]
        stacks: Stacks,
        /// Remove services that the file no longer has
        #[arg(long)]
        prune: bool,
    },
    /// Remove a service, a plain container or a stack
    Rm {
        #[command(flatten)]
        lab: Lab,
        #[arg(value_name = "SERVICE|CONTAINER|STACK")]
        object: String,
    },
    /// Kill a task's process, or cut a node's power
    Kill {
        #[command(flatten)]
        lab: Lab,
        #[arg(value_name = "TASK|NODE")]
        target: String,
    },
    /// Boot a node that was killed
    Start {
        #[command(flatten)]
        lab: Lab,
        node: String,
    },
    /// Let a node take tasks (active), take no new ones (pause), or give its tasks away (drain)
    Availability {
        #[command(flatten)]
        lab: Lab,
        node: String,
        #[arg(value_enum)]
        availability: AvailabilityArg,
    },
    /// Start a plain container on attachable networks
    Run {
        #[command(flatten)]
        lab: Lab,
        /// The container's name
        container: String,
        #[arg(long, required = true)]
        network: Vec<String>,
        #[arg(long, default_value = "node1")]
        node: String,
        #[arg(long)]
        alias: Vec<String>,
        #[arg(long, value_name = "NAME", value_parser = stack::hostname)]
        hostname: Option<String>,
        /// A name server that its resolver asks instead of the node's
        #[arg(long, value_name = "ADDRESS")]
        dns: Vec<IpAddr>,
        #[arg(long, value_name = "DOMAIN", value_parser = stack::search_domain)]
        dns_search: Vec<String>,
        /// As in a resolv.conf: ndots:2
        #[arg(long, value_name = "OPTION", value_parser = stack::resolver_option)]
        dns_option: Vec<String>,
        /// NAME=VALUE
        #[arg(long, value_parser = variable)]
        env: Vec<(String, String)>,
        /// What it runs; the built-in server by default
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Stop, kill, start or restart a node's agent
    Agent {
        #[command(flatten)]
        lab: Lab,
        node: String,
        #[arg(value_enum)]
        action: AgentAction,
        /// Another --plane for it, from its next start on
        #[arg(long)]
        plane: Option<String>,
    },
    /// Print what a task, a node's agent or the `supervisor` has written
    Logs {
        #[command(flatten)]
        lab: Lab,
        #[arg(value_name = "TASK|NODE|supervisor")]
        target: String,
        /// Go on printing what comes
        #[arg(long)]
        follow: bool,
    },
    /// Remove a lab and everything it has left, whether or not it still runs
    Down {
        #[command(flatten)]
        lab: Lab,
    },
    #[command(hide = true)]
    Supervise {
        #[command(flatten)]
        lab: Lab,
    },
}

#[derive(Clone, Debug, clap::Args)]
pub struct Lab {
    /// Which lab; several can run side by side
    #[arg(long, default_value = "lab", env = "SWARMESH_LAB")]
    name: LabName,
}

#[derive(Debug, clap::Args)]
pub struct Stacks {
    /// A Compose v3 file; may be given again for more stacks
    #[arg(short, long = "file", value_name = "STACK")]
    files: Vec<PathBuf>,
    /// The stack's name, one for each file; otherwise taken from the file's name
    #[arg(long, value_name = "NAME")]
    stack_name: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub struct UpArgs {
    #[command(flatten)]
    lab: Lab,
    #[command(flatten)]
    stacks: Stacks,
    #[arg(long, default_value = "3", value_parser = clap::value_parser!(u8).range(1..=i64::from(runtime::MOST_NODES)))]
    nodes: u8,
    /// The first so many nodes are managers
    #[arg(long, default_value = "1", value_parser = clap::value_parser!(u8).range(1..))]
    managers: u8,
    /// Machines on the nodes' LAN that are no nodes
    #[arg(long, default_value = "2", value_parser = clap::value_parser!(u8).range(0..=i64::from(runtime::MOST_CLIENTS)))]
    clients: u8,
    /// Whose firewall rules the nodes have
    #[arg(long, value_enum, default_value = "docker-29.7")]
    layout: Layout,
    /// Give the ingress network and docker_gwbridge IPv6 addresses too
    #[arg(long)]
    ipv6: bool,
    /// A name server that the nodes have; without any, no name leaves the lab
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<IpAddr>,
    /// Name of the ingress network; `none` for a swarm whose ingress network was removed
    #[arg(long, value_name = "NAME", default_value = "ingress")]
    ingress: String,
    /// Reverse path filter of nodes and sandboxes: 0 off, 1 strict, 2 loose; distributions differ
    #[arg(long, value_name = "MODE", default_value = "0", value_parser = clap::value_parser!(u8).range(0..=2))]
    rp_filter: u8,
    /// Return when all tasks run and all agents are ready
    #[arg(long)]
    wait: bool,
    #[arg(long, value_name = "SECS", default_value = "120", value_parser = seconds)]
    wait_timeout: Duration,
    /// Run no agents: what Docker makes, and nothing else
    #[arg(long)]
    no_agents: bool,
    /// The agents' --plane
    #[arg(long, default_value = "nft")]
    plane: String,
    /// Another argument for each agent
    #[arg(long = "agent-arg", value_name = "ARG", allow_hyphen_values = true)]
    agent_args: Vec<String>,
    /// Another program than this one as agent
    #[arg(long = "agent", value_name = "PATH")]
    agent_program: Option<PathBuf>,
    /// From a node's failure until the managers notice
    #[arg(long, value_name = "SECS", default_value = "5", value_parser = seconds)]
    heartbeat: Duration,
    /// From a task's failure to its replacement, where its service does not say
    #[arg(long, value_name = "SECS", value_parser = seconds)]
    restart_delay: Option<Duration>,
    /// From a task's withdrawal to its stop signal
    #[arg(long, value_name = "SECS", value_parser = seconds)]
    convergence_delay: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Order {
    StopFirst,
    StartFirst,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum AvailabilityArg {
    Active,
    Pause,
    Drain,
}

/// Carries a command out and says what came of it.
pub fn run(command: LabCommand) -> ExitCode {
    match execute(command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(exit_code(&error))
        }
    }
}

/// 1 failed, 64 bad usage or file, 69 not reachable, 77 privilege missing.
fn exit_code(error: &RuntimeError) -> u8 {
    match error {
        RuntimeError::NotRoot => 77,
        RuntimeError::Name(_) | RuntimeError::Stack(_) | RuntimeError::File { .. } => 64,
        RuntimeError::NoLab(_) | RuntimeError::Supervisor { .. } => 69,
        _ => 1,
    }
}

fn execute(command: LabCommand) -> Result<ExitCode, RuntimeError> {
    let mut progress = Progress::default();
    match command {
        LabCommand::Up(args) => up(*args, &mut progress)?,
        LabCommand::Status { lab, output } => {
            let status = client::status(&lab.name)?;
            match output {
                Output::Text => print!("{}", client::render(&status)),
                Output::Json => println!("{}", serde_json::to_string_pretty(&status).unwrap_or_default()),
            }
        }
        LabCommand::Wait { lab, timeout } => client::wait(&lab.name, timeout, &mut progress)?,
        LabCommand::Exec { lab, target, command } => {
            let code = client::exec(&lab.name, &target, &command)?;
            return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
        }
        LabCommand::Scale { lab, services } => say(client::scale(&lab.name, services)?),
        LabCommand::Update { lab, service, force: _, order, parallelism, delay } => {
            let order = order.map(|order| match order {
                Order::StopFirst => UpdateOrder::StopFirst,
                Order::StartFirst => UpdateOrder::StartFirst,
            });
            say(client::update(&lab.name, service, UpdateOptions { order, parallelism, delay })?);
        }
        LabCommand::Deploy { lab, stacks, prune } => {
            for stack in read_stacks(&stacks)? {
                client::deploy(&lab.name, &stack, prune, &mut progress)?;
            }
        }
        LabCommand::Rm { lab, object } => say(client::remove(&lab.name, object)?),
        LabCommand::Kill { lab, target } => say(client::kill(&lab.name, &target)?),
        LabCommand::Start { lab, node } => say(client::start_node(&lab.name, node)?),
        LabCommand::Availability { lab, node, availability } => {
            let availability = match availability {
                AvailabilityArg::Active => Availability::Active,
                AvailabilityArg::Pause => Availability::Pause,
                AvailabilityArg::Drain => Availability::Drain,
            };
            say(client::set_availability(&lab.name, node, availability)?);
        }
        LabCommand::Run { lab, container, network, node, alias, hostname, dns, dns_search, dns_option, env, command } => {
            let spec = ContainerSpec {
                name: container,
                node,
                networks: network,
                aliases: alias,
                hostname,
                dns: DnsSpec { servers: dns, search: dns_search, options: dns_option },
                image: String::new(),
                command,
                environment: env.into_iter().collect(),
            };
            say(client::run_container(&lab.name, spec)?);
        }
        LabCommand::Agent { lab, node, action, plane } => say(client::agent(&lab.name, node, action, plane)?),
        LabCommand::Logs { lab, target, follow } => client::logs(&lab.name, &target, follow)?,
        LabCommand::Down { lab } => {
            let there = client::down(&lab.name)?;
            progress.line(&if there { format!("lab {} is down", lab.name) } else { format!("there is no lab {}", lab.name) });
        }
        LabCommand::Supervise { lab } => runtime::supervise(&lab.name)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn up(args: UpArgs, progress: &mut Progress) -> Result<(), RuntimeError> {
    let stacks = read_stacks(&args.stacks)?;
    let agents = (!args.no_agents).then_some(AgentSetup { program: args.agent_program, plane: args.plane, args: args.agent_args });
    let setup = Setup {
        nodes: args.nodes,
        managers: args.managers,
        clients: args.clients,
        layout: args.layout,
        ingress: Some(args.ingress).filter(|name| name != "none"),
        ingress_v6: args.ipv6,
        dns: args.dns,
        rp_filter: args.rp_filter,
        agents,
        heartbeat: args.heartbeat,
        restart_delay: args.restart_delay,
        convergence_delay: args.convergence_delay,
    };
    client::up(&args.lab.name, &UpOptions { setup, stacks }, progress)?;
    if args.wait { client::wait(&args.lab.name, args.wait_timeout, progress) } else { Ok(()) }
}

fn read_stacks(stacks: &Stacks) -> Result<Vec<client::StackFile>, RuntimeError> {
    let names = stacks.stack_name.iter().map(|name| Some(name.as_str())).chain(std::iter::repeat(None));
    stacks.files.iter().zip(names).map(|(path, name)| client::read_stack(path, name)).collect()
}

fn say(outcome: Outcome) {
    match outcome {
        Outcome::Said(text) => println!("{text}"),
        Outcome::Changed(changes) => {
            changes.services_removed.iter().for_each(|name| println!("removing service {name}"));
            changes.networks_removed.iter().for_each(|name| println!("removing network {name}"));
        }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a number of seconds");
    text.parse::<f64>().ok().and_then(|s| Duration::try_from_secs_f64(s).ok()).ok_or_else(wrong)
}

fn scaling(text: &str) -> Result<(String, u64), String> {
    let parsed = text.split_once('=').and_then(|(name, replicas)| Some((name.to_owned(), replicas.parse().ok()?)));
    parsed.filter(|(name, _)| !name.is_empty()).ok_or_else(|| format!("{text:?} is not SERVICE=REPLICAS, such as web=3"))
}

fn variable(text: &str) -> Result<(String, String), String> {
    let parsed = text.split_once('=').filter(|(name, _)| !name.is_empty());
    parsed.map(|(name, value)| (name.to_owned(), value.to_owned())).ok_or_else(|| format!("{text:?} is not NAME=VALUE"))
}
