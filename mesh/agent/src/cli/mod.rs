//! The command line: which command, and which exit code.

mod client;
mod doctor;
mod explain;
mod lists;
mod out;
mod plan;
mod status;
mod uninstall;

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, Parser};
use swarmesh_dns::Compat;
use swarmesh_kernel::KernelError;
use swarmesh_lab::{
    command::{self as lab, LabCommand},
    whoami::{self, WhoamiArgs},
};
use swarmesh_plan::Takeover;
use swarmesh_proxy::ProxyError;
use swarmesh_source::{SourceError, SourceSpec};

use self::client::{Client, ClientError};
use crate::{
    app::{self, AgentError},
    choice::ChoiceError,
    config::{self, AdminAddress, Config, ConfigError, Layer, Listen, Output, PlaneChoice},
    privilege::Unprivileged,
    store::StoreError,
};

#[derive(Debug, Parser)]
#[command(name = "swarmesh", version, about = "Service networking for Docker Swarm: published ports, virtual IPs, names and routes")]
enum Program {
    /// Run the node agent in the foreground
    Agent(AgentArgs),
    /// Show what runs, from which source and version, what is degraded and why
    Status(Common),
    /// List the services, as applied on this node
    Services(Common),
    /// List every virtual IP and published port with the tasks behind it
    Endpoints(Common),
    /// List every route by label, in the order in which they are asked, and where it leads
    Routes(Common),
    /// List every name that containers of this node can ask for
    Names(NamesArgs),
    /// Show what is or would be applied
    Plan(plan::PlanArgs),
    /// Tell where a packet, a name or a request goes and why
    Explain(explain::ExplainArgs),
    /// Check kernel, tools, Docker and conflicts; each finding with its remedy
    Doctor(doctor::DoctorArgs),
    /// Refuse new connections to published ports here, so that external load balancers look elsewhere
    Drain(Common),
    /// End a drain
    Resume(Common),
    /// Remove everything of ours from kernel and namespaces; Docker's own state stays
    Uninstall(uninstall::UninstallArgs),
    /// Emulate a swarm of several nodes on this machine, without Docker
    #[command(subcommand)]
    Lab(LabCommand),
    /// Serve HTTP, TCP echo and UDP echo that tell who answers and who asks
    Whoami(WhoamiArgs),
}

/// What most commands take.
#[derive(Clone, Debug, Default, Args)]
struct Common {
    /// Configuration file [default: /etc/swarmesh/swarmesh.toml, if there is one]
    #[arg(long, env = "SWARMESH_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The agent's admin API: ADDRESS:PORT or the path of a unix socket [default: 127.0.0.1:9790]
    #[arg(long, env = "SWARMESH_ADMIN", value_name = "ADDRESS")]
    admin: Option<AdminAddress>,
    /// table or json [default: table]
    #[arg(long, env = "SWARMESH_OUTPUT", value_name = "FORM")]
    output: Option<Output>,
}

impl Common {
    fn settle(self) -> Result<Config, ConfigError> {
        let file = Layer::from_file(self.config.as_deref())?;
        Layer { admin: self.admin, output: self.output, ..Layer::default() }.over(file).settle()
    }
}

#[derive(Clone, Debug, Args)]
struct NamesArgs {
    #[command(flatten)]
    common: Common,
    /// Those of all networks, also where no container of this node is
    #[arg(long)]
    all: bool,
    /// List nothing; have the agent log one of N queries from now on, none with 0
    #[arg(long, value_name = "N")]
    log_every: Option<u64>,
}

#[derive(Clone, Debug, Args)]
struct AgentArgs {
    #[command(flatten)]
    common: Common,
    /// docker:URL or snapshot:FILE [default: docker:unix:///var/run/docker.sock]
    #[arg(long, env = "SWARMESH_SOURCE", value_name = "SOURCE")]
    source: Option<SourceSpec>,
    /// auto or nft; ebpf and ipvs are not in this version [default: auto]
    #[arg(long, env = "SWARMESH_PLANE", value_name = "PLANE")]
    plane: Option<PlaneChoice>,
    /// Where Docker keeps its namespaces [default: /var/run/docker/netns]
    #[arg(long, env = "SWARMESH_NETNS_DIR", value_name = "DIR")]
    netns_dir: Option<PathBuf>,
    /// Where the last good snapshot and this node's identity are kept [default: /var/lib/swarmesh]
    #[arg(long, env = "SWARMESH_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// on: services that Docker also handles are handled here; labelled: only those labelled swarmesh.enable=true [default: on]
    #[arg(long, env = "SWARMESH_TAKEOVER", value_name = "WHICH", value_parser = config::takeover)]
    takeover: Option<Takeover>,
    /// Which node of the snapshot this is [default: the source's word, else this host's name]
    #[arg(long, env = "SWARMESH_NODE", value_name = "ID|HOSTNAME")]
    node: Option<String>,
    /// on: answer names on 127.0.0.11 in the containers; off: leave that to Docker [default: on]
    #[arg(long, env = "SWARMESH_DNS", value_name = "WHETHER", value_parser = config::dns)]
    dns: Option<bool>,
    /// Seconds that a client may keep an answer about names of the swarm [default: 5]
    #[arg(long, env = "SWARMESH_DNS_TTL", value_name = "SECONDS", value_parser = config::ttl)]
    dns_ttl: Option<u32>,
    /// swarmesh, or docker: keep Docker's habits where ours differ [default: swarmesh]
    #[arg(long, env = "SWARMESH_DNS_COMPAT", value_name = "WHOSE", value_parser = config::compat)]
    dns_compat: Option<Compat>,
    /// The file that names the host's servers, as seen by the agent [default: /etc/resolv.conf]
    #[arg(long, env = "SWARMESH_RESOLV_CONF", value_name = "FILE")]
    resolv_conf: Option<PathBuf>,
    /// Take HTTP requests here: ADDRESS:PORT, repeatable or with commas, or off [default: off]
    #[arg(long, env = "SWARMESH_HTTP", value_name = "ADDRESS:PORT", value_delimiter = ',')]
    http: Vec<Listen>,
    /// Take HTTP requests in TLS here: ADDRESS:PORT, repeatable or with commas, or off [default: off]
    #[arg(long, env = "SWARMESH_HTTPS", value_name = "ADDRESS:PORT", value_delimiter = ',')]
    https: Vec<Listen>,
    /// What to log, in RUST_LOG's syntax [default: info]
    #[arg(long, env = "SWARMESH_LOG", value_name = "FILTER")]
    log: Option<String>,
}

impl AgentArgs {
    fn settle(self) -> Result<Config, ConfigError> {
        let file = Layer::from_file(self.common.config.as_deref())?;
        let flags = Layer {
            source: self.source,
            plane: self.plane,
            admin: self.common.admin,
            netns_dir: self.netns_dir,
            state_dir: self.state_dir,
            takeover: self.takeover,
            node: self.node,
            output: self.common.output,
            log: self.log,
            dns: self.dns,
            dns_ttl: self.dns_ttl,
            dns_compat: self.dns_compat,
            resolv_conf: self.resolv_conf,
            http: config::listeners(&self.http)?,
            https: config::listeners(&self.https)?,
            dialects: None,
            // These are the file's alone.
            proxy: None,
            flow_proxy_api: None,
        };
        flags.over(file).settle()
    }
}

/// The contract with scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Failed = 1,
    Usage = 64,
    Unreachable = 69,
    Missing = 77,
}

/// Why a command did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("bad log filter {filter:?}: {error}; see --log")]
    Log { filter: String, error: tracing_subscriber::filter::ParseError },
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Plan(#[from] plan::PlanError),
    #[error(transparent)]
    Unprivileged(#[from] Unprivileged),
    #[error(transparent)]
    Uninstall(#[from] uninstall::UninstallError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Whoami(#[from] whoami::WhoamiError),
    #[error("cannot write the result: {0}")]
    Output(#[from] io::Error),
    #[error("something that the agent cannot do without is missing; see the findings above")]
    Critical,
}

impl CliError {
    fn exit(&self) -> Exit {
        match self {
            Self::Config(_) | Self::Log { .. } => Exit::Usage,
            Self::Agent(AgentError::Plane(ChoiceError::Refused { reason, .. })) => kernel_exit(reason),
            Self::Agent(
                AgentError::Plane(ChoiceError::Absent(_))
                | AgentError::Proxy(ProxyError::Tls(_))
                | AgentError::Source(SourceError::NotAvailable { .. } | SourceError::Spec(_)),
            ) => Exit::Usage,
            Self::Agent(AgentError::Unprivileged(_)) | Self::Unprivileged(_) | Self::Critical => Exit::Missing,
            Self::Uninstall(error) => error.exit(),
            Self::Client(error) => error.exit(),
            Self::Plan(error) => error.exit(),
            Self::Agent(_) | Self::Store(_) | Self::Whoami(_) | Self::Output(_) => Exit::Failed,
        }
    }
}

/// A kernel that cannot, or may not, is not the same as one that failed.
fn kernel_exit(error: &KernelError) -> Exit {
    match error {
        KernelError::NotPermitted { .. } | KernelError::NotSupported { .. } | KernelError::ToolMissing { .. } => Exit::Missing,
        _ => Exit::Failed,
    }
}

/// The program.
pub fn main() -> ExitCode {
    let program = match Program::try_parse() {
        Ok(program) => program,
        Err(error) => {
            // Nothing is left to be done when even the message cannot be written.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(Exit::Usage as u8) } else { ExitCode::SUCCESS };
        }
    };
    match run(program) {
        Ok(code) => code,
        // Whoever reads the output has had enough of it.
        Err(CliError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            out::complain(&error);
            ExitCode::from(error.exit() as u8)
        }
    }
}

fn run(program: Program) -> Result<ExitCode, CliError> {
    match program {
        Program::Agent(args) => {
            let config = args.settle()?;
            start_log(&config.log)?;
            app::run(&config)?;
        }
        Program::Status(args) => status::run(&args.settle()?)?,
        Program::Services(args) => lists::services(&args.settle()?)?,
        Program::Endpoints(args) => lists::endpoints(&args.settle()?)?,
        Program::Routes(args) => lists::routes(&args.settle()?)?,
        Program::Names(NamesArgs { common, log_every: Some(every), .. }) => {
            let config = common.settle()?;
            let answer = Client::new(&config.admin).post(&format!("/v1/names/log?every={every}"))?;
            match config.output {
                Output::Json => out::text(&answer)?,
                Output::Table if every == 0 => out::text("the agent logs no queries\n")?,
                Output::Table => out::text(&format!("the agent logs one of {every} queries\n"))?,
            }
        }
        Program::Names(args) => lists::names(&args.common.settle()?, args.all)?,
        Program::Plan(args) => plan::run(args)?,
        Program::Explain(args) => explain::run(args)?,
        Program::Doctor(args) => doctor::run(args)?,
        Program::Drain(args) => drain(&args.settle()?, "/v1/drain", "drains: published ports refuse new connections here")?,
        Program::Resume(args) => drain(&args.settle()?, "/v1/resume", "is back: published ports take new connections here")?,
        Program::Uninstall(args) => uninstall::run(args)?,
        Program::Lab(command) => return run_lab(command),
        Program::Whoami(args) => {
            start_log("info")?;
            whoami::run(args)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn drain(config: &Config, path: &str, said: &str) -> Result<(), CliError> {
    let answer = Client::new(&config.admin).post(path)?;
    match config.output {
        Output::Json => out::text(&answer)?,
        Output::Table => out::text(&format!("this node {said}\n"))?,
    }
    Ok(())
}

fn run_lab(command: LabCommand) -> Result<ExitCode, CliError> {
    start_log("info")?;
    Ok(lab::run(command))
}

fn start_log(filter: &str) -> Result<(), CliError> {
    let filter = tracing_subscriber::EnvFilter::try_new(filter).map_err(|error| CliError::Log { filter: filter.to_owned(), error })?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(io::stderr().is_terminal()).init();
    Ok(())
}
