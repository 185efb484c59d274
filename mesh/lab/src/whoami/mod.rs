//! The server that a lab's tasks run when the stack gives them nothing else: HTTP, WebSocket and line echo on every TCP port,
//! in TLS where it has a certificate, echo on every UDP port, and a choice of ways to be slow, late or broken.

mod answer;
mod echo;
mod http;
mod listen;
mod sniff;
mod tls;
mod websocket;

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_rustls::rustls::ServerConfig;

/// How long requests that were under way at the end may take to finish.
const FINISH: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, clap::Args)]
pub struct WhoamiArgs {
    /// TCP ports to serve HTTP and line echo on; 80 when no port is given at all
    #[arg(long, value_name = "PORT", env = "WHOAMI_TCP", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    pub tcp: Vec<u16>,
    /// UDP ports to echo on
    #[arg(long, value_name = "PORT", env = "WHOAMI_UDP", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    pub udp: Vec<u16>,
    /// Listen only after this many seconds
    #[arg(long, value_name = "SECS", env = "WHOAMI_READY_AFTER", default_value = "0", value_parser = seconds)]
    pub ready_after: Duration,
    /// none, refuse, hang, reset, error500, crash-after=SECS, unhealthy-after=SECS or slow=MS
    #[arg(long, value_name = "MODE", env = "WHOAMI_FAIL", default_value = "none", value_parser = failure)]
    pub fail: Failure,
    /// Go on serving for this many seconds after SIGTERM
    #[arg(long, value_name = "SECS", env = "WHOAMI_LINGER", default_value = "0", value_parser = seconds)]
    pub linger: Duration,
    /// A PEM file with a certificate and its key: TLS is opened on every TCP port, beside what comes without
    #[arg(long, value_name = "FILE", env = "WHOAMI_TLS")]
    pub tls: Option<PathBuf>,
}

/// What goes wrong, and when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Failure {
    #[default]
    None,
    /// Runs, but no port is open.
    Refuse,
    /// Accepts, then neither reads nor answers.
    Hang,
    /// Accepts, then resets the connection.
    Reset,
    /// Every HTTP answer is a 500, `/health` a 503.
    Error500,
    /// The process fails after this time.
    CrashAfter(Duration),
    /// `/health` says 503 after this time; everything else goes on.
    UnhealthyAfter(Duration),
    /// Every answer comes this much later.
    Slow(Duration),
}

#[derive(Debug, thiserror::Error)]
pub enum WhoamiError {
    #[error("cannot listen on {protocol} port {port}: {error}")]
    Listen { protocol: swarmesh_model::Protocol, port: u16, error: io::Error },
    #[error("cannot use {} for TLS: {error}", file.display())]
    Tls { file: PathBuf, error: io::Error },
    #[error("cannot start: {0}")]
    Runtime(#[from] io::Error),
    #[error("crashed, as --fail crash-after asked for")]
    Crashed,
}

/// Who answers.
#[derive(Clone, Debug)]
struct Identity {
    service: String,
    task: String,
    node: String,
}

impl Identity {
    fn from_environment() -> Self {
        let host = nix::sys::utsname::uname().map_or_else(|_| "unknown".to_owned(), |u| u.nodename().to_string_lossy().into_owned());
        let given = |name| std::env::var(name).ok().filter(|v| !v.is_empty()).unwrap_or_else(|| host.clone());
        Self { service: given("WHOAMI_SERVICE"), task: given("WHOAMI_TASK"), node: given("WHOAMI_NODE") }
    }

    /// The greeting of the echo protocols.
    fn greeting(&self, remote: SocketAddr, local: SocketAddr) -> String {
        format!("{} {} {remote} {local}", self.task, self.node)
    }
}

/// What every connection shares.
#[derive(Debug)]
struct Server {
    identity: Identity,
    fail: Failure,
    tls: Option<Arc<ServerConfig>>,
    since: Instant,
}

impl Server {
    fn is_healthy(&self) -> bool {
        match self.fail {
            Failure::Error500 => false,
            Failure::UnhealthyAfter(after) => self.since.elapsed() < after,
            _ => true,
        }
    }

    /// Waits as long as `--fail slow` says.
    async fn think(&self) {
        if let Failure::Slow(time) = self.fail {
            tokio::time::sleep(time).await;
        }
    }
}

/// Held by every connection: tells it when to end, and by being dropped that it has ended.
#[derive(Clone, Debug)]
struct Running {
    stop: watch::Receiver<bool>,
    _alive: mpsc::Sender<()>,
}

impl Running {
    /// Returns once the server stops.
    async fn stopped(&mut self) {
        // An error means that the sender is gone, which is a stop as well.
        let _ = self.stop.wait_for(|stop| *stop).await;
    }
}

/// Serves until SIGTERM or SIGINT.
pub fn run(args: WhoamiArgs) -> Result<(), WhoamiError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(serve(args))
}

async fn serve(mut args: WhoamiArgs) -> Result<(), WhoamiError> {
    if args.tcp.is_empty() && args.udp.is_empty() {
        args.tcp.push(80);
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let tls = match &args.tls {
        Some(file) => Some(tls::config(file).map_err(|error| WhoamiError::Tls { file: file.clone(), error })?),
        None => None,
    };
    let server = Arc::new(Server { identity: Identity::from_environment(), fail: args.fail, tls, since: Instant::now() });
    let (stop, stopped) = watch::channel(false);
    let (alive, mut ended) = mpsc::channel(1);
    let running = Running { stop: stopped, _alive: alive };

    let crash = async {
        match args.fail {
            Failure::CrashAfter(after) => tokio::time::sleep(after).await,
            _ => std::future::pending().await,
        }
    };
    let work = async {
        tokio::time::sleep(args.ready_after).await;
        if args.fail != Failure::Refuse {
            for port in &args.tcp {
                listen::tcp(*port, &server, &running)?;
            }
            for port in &args.udp {
                listen::udp(*port, &server, &running)?;
            }
        }
        tracing::info!(tcp = ?args.tcp, udp = ?args.udp, "listening");
        std::future::pending::<Result<(), WhoamiError>>().await
    };
    tokio::select! {
        result = work => return result,
        () = crash => return Err(WhoamiError::Crashed),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tokio::time::sleep(args.linger).await;
    // Receivers that are gone already need no telling.
    let _ = stop.send(true);
    drop(running);
    let _ = timeout(FINISH, ended.recv()).await;
    Ok(())
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse::<f64>().ok().and_then(|s| Duration::try_from_secs_f64(s).ok()).ok_or_else(|| format!("{text:?} is not a number of seconds"))
}

fn failure(text: &str) -> Result<Failure, String> {
    let (mode, value) = text.split_once('=').map_or((text, None), |(m, v)| (m, Some(v)));
    let after = |unit: f64| {
        let value = value.ok_or_else(|| format!("{mode} needs a time: {mode}=5"))?;
        seconds(value).map(|d| d.mul_f64(unit))
    };
    let plain = |failure| match value {
        None => Ok(failure),
        Some(_) => Err(format!("{mode} takes no value")),
    };
    match mode {
        "none" => plain(Failure::None),
        "refuse" => plain(Failure::Refuse),
        "hang" => plain(Failure::Hang),
        "reset" => plain(Failure::Reset),
        "error500" => plain(Failure::Error500),
        "crash-after" => after(1.0).map(Failure::CrashAfter),
        "unhealthy-after" => after(1.0).map(Failure::UnhealthyAfter),
        "slow" => after(0.001).map(Failure::Slow),
        _ => Err(format!("{mode:?} is not one of none, refuse, hang, reset, error500, crash-after=SECS, unhealthy-after=SECS, slow=MS")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_read_with_their_times() {
        assert_eq!(failure("none"), Ok(Failure::None));
        assert_eq!(failure("slow=250"), Ok(Failure::Slow(Duration::from_millis(250))));
        assert_eq!(failure("crash-after=1.5"), Ok(Failure::CrashAfter(Duration::from_millis(1500))));
        assert!(failure("hang=3").is_err());
        assert!(failure("crash-after").is_err());
        assert!(failure("crash-after=-1").is_err());
        assert!(failure("explode").is_err());
    }
}
