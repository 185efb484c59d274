//! Workers: one thread and one single-threaded runtime each, with listeners and connections to backends of its own.

pub(crate) mod activity;
mod checks;
mod connection;
mod listen;
mod requests;

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    rc::Rc,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::ServerConfig;
use tokio::{
    net::TcpListener,
    runtime::LocalOptions,
    sync::watch,
    time::{sleep, timeout},
};

use self::{activity::Awake, listen::Count};
use crate::{
    access_log::{self, LogCounts, LogTarget, WorkerLog},
    auth::{AuthError, Gate, UserFault, Verifier},
    config::Config,
    endpoint::Dialer,
    metrics::ProxyCounts,
    routing::Routing,
    tls::{Certificates, ClientAuthorities, ConfigError, Directories, UpstreamTls, server_config},
    upstream::{Upstreams, sweep},
};

/// What all workers and the rest of the agent see.
#[derive(Debug)]
pub struct Shared {
    pub(crate) routing: ArcSwap<Routing>,
    pub counts: ProxyCounts,
    pub(crate) verifier: Verifier,
    /// The node's own users, if it is to have a list.
    pub(crate) node_gate: Option<Arc<Gate>>,
    pub certificates: Arc<Certificates>,
    /// Another one when the CAs of clients change.
    pub(crate) tls: ArcSwap<ServerConfig>,
    pub backend_tls: Arc<UpstreamTls>,
    /// Clients can prove who they are.
    pub knows_client_authorities: bool,
    /// What is wrong with the CAs of clients; those of before count still.
    pub client_authorities_problem: ArcSwapOption<String>,
    /// What became of the access log's lines; `None` if there is no such log.
    pub access_log: Option<Arc<LogCounts>>,
}

impl Shared {
    /// The routes that are served now.
    pub fn routing(&self) -> Arc<Routing> {
        self.routing.load_full()
    }

    /// Serves these routes from now on. Reads the files of certificates that are new.
    pub fn set_routing(&self, mut routing: Routing) {
        // First: nobody is to be sent to TLS that is not there yet.
        self.certificates.update(Arc::clone(&routing.table));
        // Last: to read files takes time, in which requests still go where the routing before says.
        let left = routing.take_left();
        self.routing.store(Arc::new(routing));
        let now = Instant::now();
        left.iter().for_each(|endpoint| endpoint.retire(now));
    }

    /// Looks whether clients are believed by others now.
    fn refresh_clients(&self, clients: &mut ClientAuthorities) {
        match clients.refresh() {
            Ok(false) => self.client_authorities_problem.store(None),
            Ok(true) => match server_config(Arc::clone(&self.certificates), Some(clients)) {
                Ok(config) => {
                    self.tls.store(config);
                    self.client_authorities_problem.store(None);
                    tracing::info!("the CAs of clients were read again");
                }
                Err(error) => self.keep_clients(&error),
            },
            Err(error) => self.keep_clients(&error),
        }
    }

    /// Looks whether other users get in now.
    fn refresh_users(&self) {
        let routing = self.routing.load();
        routing.gates_with_files().chain(&self.node_gate).for_each(|gate| gate.refresh());
    }

    /// The node's own list, if it has one: who of it does not get in, and why.
    pub fn node_user_faults(&self) -> Vec<UserFault> {
        self.node_gate.as_ref().map(|gate| gate.faults()).unwrap_or_default()
    }

    /// Told once, however often it is found.
    fn keep_clients(&self, error: &ConfigError) {
        let problem = error.to_string();
        let is_known = self.client_authorities_problem.load().as_ref().is_some_and(|known| **known == problem);
        if !is_known {
            tracing::warn!(%error, "the CAs of clients stay as they were");
            self.client_authorities_problem.store(Some(Arc::new(problem)));
        }
    }
}

/// Why the proxy does not start.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error("cannot listen on {address}: {error}; {}", remedy(.error))]
    Listen { address: SocketAddr, error: io::Error },
    #[error("cannot write the access log {path}: {error}; see that its directory is there and that the agent may write there", path = .path.display())]
    AccessLog { path: PathBuf, error: io::Error },
    #[error("cannot start a worker: {0}")]
    Start(#[source] io::Error),
    #[error(transparent)]
    Tls(#[from] ConfigError),
    #[error(transparent)]
    Auth(#[from] AuthError),
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "stop what listens there, or choose another address",
        io::ErrorKind::PermissionDenied => "a port below 1024 takes CAP_NET_BIND_SERVICE",
        io::ErrorKind::AddrNotAvailable => "the node has no such address (yet); 0.0.0.0 is all of them",
        _ => "choose another address",
    }
}

/// One worker's own.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) config: Arc<Config>,
    pub(crate) upstreams: Rc<Upstreams>,
    /// Turns true when the proxy is to end.
    pub(crate) drain: watch::Receiver<bool>,
    /// Of clients, with the tunnels that became of them.
    pub(crate) connections: Count,
    pub(crate) awake: Awake,
    pub(crate) log: Option<Rc<WorkerLog>>,
}

/// How a listener's connections begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    Tls,
}

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    drain: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
    /// Of the access log. It ends after the workers.
    writer: Option<JoinHandle<()>>,
    addresses: Vec<SocketAddr>,
}

impl Proxy {
    /// Listens and serves. Without routes, everything is answered 503.
    pub fn start(config: Config, dialer: Arc<dyn Dialer>) -> Result<Self, ProxyError> {
        let workers = match config.workers {
            0 => thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        };
        let directories = Directories { secrets: config.secrets_dir.clone(), certificates: config.certificates_dir.clone() };
        let certificates = Arc::new(Certificates::new(directories, config.default_certificate.clone()));
        let clients = config.client_authorities.as_deref().map(ClientAuthorities::read).transpose()?;
        let tls = server_config(Arc::clone(&certificates), clients.as_ref())?;
        let log_counts = config.access_log.as_ref().map(|_| Arc::<LogCounts>::default());
        let shared = Arc::new(Shared {
            routing: ArcSwap::default(),
            counts: ProxyCounts::default(),
            // Hashing takes a whole core for a while; the workers need theirs.
            verifier: Verifier::new(workers.div_ceil(2))?,
            node_gate: config.users.clone().map(|list| Gate::node(NODE_REALM, list)),
            certificates,
            tls: ArcSwap::new(tls),
            backend_tls: Arc::new(UpstreamTls::new(config.backend_authorities.clone())?),
            knows_client_authorities: config.client_authorities.is_some(),
            client_authorities_problem: ArcSwapOption::empty(),
            access_log: log_counts.clone(),
        });
        let config = Arc::new(config);
        let (drain, drains) = watch::channel(false);
        let mut listeners: Vec<Vec<(Kind, std::net::TcpListener)>> = (0..workers).map(|_| Vec::new()).collect();
        let mut addresses = Vec::new();
        let wanted = config.http.iter().map(|a| (Kind::Plain, *a)).chain(config.https.iter().map(|a| (Kind::Tls, *a)));
        for (kind, address) in wanted {
            // Port 0 is chosen once for all workers.
            let mut address = address;
            for own in &mut listeners {
                let listener = listen::open(address).map_err(|error| ProxyError::Listen { address, error })?;
                address = listener.local_addr().map_err(|error| ProxyError::Listen { address, error })?;
                own.push((kind, listener));
            }
            addresses.push(address);
        }
        let log = match (&config.access_log, log_counts) {
            (Some(how), Some(counts)) => Some(access_log::start(how, &config.name, counts).map_err(|error| {
                let path = if let LogTarget::File(path) = &how.to { path.clone() } else { PathBuf::from("stdout") };
                ProxyError::AccessLog { path, error }
            })?),
            _ => None,
        };
        let (lines, writer) = log.unzip();
        let mut threads = Vec::new();
        for (number, listeners) in listeners.into_iter().enumerate() {
            let (shared, config, dialer, drain) = (Arc::clone(&shared), Arc::clone(&config), Arc::clone(&dialer), drains.clone());
            let lines = lines.clone();
            let (started, starts) = mpsc::sync_channel(1);
            let work = move || {
                // All that a worker does stays on its thread, its runtime too.
                let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
                    Ok(runtime) => runtime,
                    Err(error) => {
                        // Who starts it waits for this.
                        let _ = started.send(Err(error));
                        return;
                    }
                };
                let _ = started.send(Ok(()));
                let log = lines.map(|lines| Rc::new(WorkerLog::new(lines)));
                let upstreams = Rc::new(Upstreams::new(dialer, Arc::clone(&shared.backend_tls), &config));
                let connections = Count::new(config.sizes.connections);
                let worker = Rc::new(Worker { shared, config, upstreams, drain, connections, awake: Awake::default(), log });
                runtime.block_on(worker.run(number, listeners));
            };
            threads.push(thread::Builder::new().name(format!("proxy-{number}")).spawn(work).map_err(ProxyError::Start)?);
            // A worker that is gone without a word has panicked; `stop` tells.
            starts.recv().unwrap_or(Ok(())).map_err(ProxyError::Start)?;
        }
        let (shared_files, ends) = (Arc::clone(&shared), drains);
        let look = move || watch_files(&shared_files, clients, &ends);
        threads.push(thread::Builder::new().name("proxy-files".to_owned()).spawn(look).map_err(ProxyError::Start)?);
        Ok(Self { shared, drain, threads, writer, addresses })
    }

    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Where it listens: `http`, then `https`, each in the configuration's order.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Takes no new connections, lets requests end, and returns when they have or the workers' patience is over.
    pub fn stop(self) {
        // Workers that have ended already need not hear it.
        let _ = self.drain.send(true);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker of the proxy ended by a panic");
            }
        }
        if let Some(writer) = self.writer {
            // Whoever reads a pipe may have stopped reading.
            let patience = Instant::now() + Duration::from_secs(2);
            while !writer.is_finished() && Instant::now() < patience {
                thread::sleep(Duration::from_millis(5));
            }
            if !writer.is_finished() {
                tracing::warn!("the last lines of the access log are lost: nobody takes them");
            }
        }
    }
}

/// What a browser shows who asks: as Docker Flow Proxy said it, so that browsers know the password that they have kept.
const NODE_REALM: &str = "defaultRealm";

/// Reads certificates and lists of users again when their files change.
fn watch_files(shared: &Shared, mut clients: Option<ClientAuthorities>, ends: &watch::Receiver<bool>) {
    const EVERY: Duration = Duration::from_secs(1);
    const STEP: Duration = Duration::from_millis(100);
    let mut due = Instant::now() + EVERY;
    // Waking ten times a second costs nothing that could be measured, and the end need not wait.
    while !*ends.borrow() && ends.has_changed().is_ok() {
        thread::sleep(STEP);
        if Instant::now() >= due {
            if shared.certificates.refresh() {
                tracing::info!("certificates were read again");
            }
            if let Some(clients) = &mut clients {
                shared.refresh_clients(clients);
            }
            shared.refresh_users();
            match shared.backend_tls.refresh() {
                Ok(false) => {}
                Ok(true) => tracing::info!("the CAs of backends were read again"),
                Err(error) => tracing::warn!(%error, "the CAs of backends stay as they were"),
            }
            due = Instant::now() + EVERY;
        }
    }
}

/// How long requests that are under way may take when the proxy ends.
const LAST_PATIENCE: Duration = Duration::from_secs(10);

impl Worker {
    async fn run(self: Rc<Self>, number: usize, listeners: Vec<(Kind, std::net::TcpListener)>) {
        tokio::task::spawn_local(sweep(Rc::clone(&self.upstreams)));
        if let Some(log) = &self.log {
            tokio::task::spawn_local(Rc::clone(log).hands_over());
        }
        if number == 0 {
            tokio::task::spawn_local(checks::check(Rc::clone(&self)));
        }
        let mut accepting = Vec::new();
        for (kind, listener) in listeners {
            match TcpListener::from_std(listener) {
                Ok(listener) => {
                    accepting.push(tokio::task::spawn_local(listen::accept(Rc::clone(&self), kind, listener)));
                }
                Err(error) => tracing::error!(%error, "a worker cannot use its listener"),
            }
        }
        let mut drain = self.drain.clone();
        // An error is a proxy that is gone, which is no less a reason to end.
        let _ = drain.wait_for(|drain| *drain).await;
        for accepting in accepting {
            accepting.abort();
        }
        if timeout(LAST_PATIENCE, self.connections.none_left()).await.is_err() {
            tracing::warn!(left = self.connections.open(), "connections are cut at the end");
        }
    }

    /// Returns when the proxy ends and what still runs has had its time.
    pub(crate) async fn patience_is_over(&self) {
        let mut drain = self.drain.clone();
        // As above.
        let _ = drain.wait_for(|drain| *drain).await;
        sleep(LAST_PATIENCE - Duration::from_secs(1)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{endpoint::OwnNamespace, tls::testing::Authority};

    #[test]
    fn a_bundle_for_clients_that_goes_is_told_until_it_is_back() {
        let directory = tempfile::tempdir().unwrap();
        let (bundle, authority) = (directory.path().join("clients.pem"), Authority::new());
        fs::write(&bundle, &authority.certificate).unwrap();
        let config = Config { workers: 1, client_authorities: Some(bundle.clone()), ..Config::default() };
        let proxy = Proxy::start(config, Arc::new(OwnNamespace)).unwrap();
        let problem = || proxy.shared().client_authorities_problem.load().as_ref().map(|problem| problem.to_string());
        let until = |is_there: bool| {
            let patience = Instant::now() + Duration::from_secs(10);
            while problem().is_some() != is_there {
                assert!(Instant::now() < patience, "{:?}", problem());
                thread::sleep(Duration::from_millis(20));
            }
        };
        assert_eq!(problem(), None);
        fs::remove_file(&bundle).unwrap();
        until(true);
        assert!(problem().unwrap().ends_with("clients.pem: is not there"), "{:?}", problem());
        fs::write(&bundle, &authority.certificate).unwrap();
        until(false);
        proxy.stop();
    }
}
