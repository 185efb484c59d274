//! The agent: its parts, put together and taken apart again.

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use swarmesh_dataplane::{NetfilterPlane, Overlays, PlaneConfig};
use swarmesh_proxy::ProxyError;
use swarmesh_source::{SourceError, SourceSpec};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use crate::{
    NameSettings, Names, NamesError, Router, Store,
    admin::{self, BindError, Listener},
    choice::{self, ChoiceError},
    config::{Config, PlaneChoice, RouterConfig},
    engine::{Engine, EngineError, Resolver, Settings},
    flow_proxy,
    notify::notify,
    privilege::{self, Unprivileged},
};

const SOURCE_PATIENCE: Duration = Duration::from_secs(2);
const AUDIT_EVERY: Duration = Duration::from_secs(60);
/// Updates that the engine has not taken yet; the source waits beyond these.
const QUEUE: usize = 256;

/// Why the agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(transparent)]
    Plane(#[from] ChoiceError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("the source has ended, so the agent would see no change any more")]
    SourceEnded,
    #[error(transparent)]
    Unprivileged(#[from] Unprivileged),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("cannot listen on {address} for Docker Flow Proxy's API: {error}; choose another flow-proxy.api in the configuration file")]
    FlowProxy { address: SocketAddr, error: std::io::Error },
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Names(#[from] NamesError),
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    #[error("cannot start: {0}")]
    Runtime(#[from] std::io::Error),
}

/// Runs the agent in the foreground until SIGTERM or SIGINT. What is in the kernel stays there.
pub fn run(config: &Config) -> Result<(), AgentError> {
    check(config)?;
    privilege::raise_descriptors();
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(serve(config))
}

/// What is wrong from the start, before anything is touched.
fn check(config: &Config) -> Result<(), AgentError> {
    if config.plane == PlaneChoice::Ebpf {
        return Err(ChoiceError::Absent(config.plane).into());
    }
    if let SourceSpec::Upstream | SourceSpec::Auto { .. } = config.source {
        return Err(SourceError::NotAvailable { source_spec: config.source.to_string() }.into());
    }
    Ok(privilege::check()?)
}

async fn serve(config: &Config) -> Result<(), AgentError> {
    let stop = stop_signal()?;
    let listener = Listener::bind(&config.admin).await?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), source = %config.source, admin = %listener.address(), "agent starts");
    let (updates, received) = mpsc::channel(QUEUE);
    let flow_proxy = match config.router.flow_proxy_api {
        Some(address) => Some(flow_proxy::bind(address).await.map_err(|error| AgentError::FlowProxy { address, error })?),
        None => None,
    };
    let (mut engine, proxy) = start_engine(config, received)?;
    let admin = tokio::spawn(admin::serve(listener, engine.handle().clone()));
    let flow_proxy = flow_proxy.map(|listener| {
        tracing::info!(address = %listener.address(), "Docker Flow Proxy's API is answered");
        let certificates = flow_proxy::Certificates::new(Store::new(&config.state_dir), proxy);
        tokio::spawn(flow_proxy::serve(listener, engine.handle().clone(), certificates))
    });
    let mut source = tokio::spawn(swarmesh_source::run(config.source.clone(), updates));

    tokio::pin!(stop);
    let mut outcome = None;
    tokio::select! {
        () = engine.ready() => notify("READY=1"),
        () = &mut stop => outcome = Some(Ok(())),
        ended = &mut source => outcome = Some(source_outcome(ended)),
    }
    let outcome = match outcome {
        Some(outcome) => outcome,
        None => tokio::select! {
            () = &mut stop => Ok(()),
            ended = &mut source => source_outcome(ended),
            () = lost(&engine) => Err(EngineError::Stopped.into()),
        },
    };

    notify("STOPPING=1");
    tracing::info!("agent stops; what it put into the kernel stays");
    source.abort();
    engine.stop().await;
    admin.abort();
    if let Some(flow_proxy) = flow_proxy {
        flow_proxy.abort();
    }
    // Lets the listener be dropped, and with it its socket's file.
    let _ = admin.await;
    outcome
}

/// With what the proxy's workers share, if it listens anywhere.
fn start_engine(
    config: &Config,
    updates: mpsc::Receiver<swarmesh_source::Update>,
) -> Result<(Engine, Option<Arc<swarmesh_proxy::Shared>>), AgentError> {
    let chosen = choice::choose(config.plane)?;
    tracing::info!(plane = chosen.balancing.name(), "this plane balances");
    let settings = Settings {
        source: config.source.to_string(),
        node: config.node.clone(),
        hostname: hostname(),
        takeover: config.takeover,
        router: config.router.clone(),
        store: Store::new(&config.state_dir),
        patience: SOURCE_PATIENCE,
        audit_every: AUDIT_EVERY,
        other_planes: chosen.others,
    };
    let plane = PlaneConfig { balancing: chosen.balancing, netns_dir: config.netns_dir.clone(), node_address: None };
    let resolver = config.dns.is_on.then(|| start_names(config)).transpose()?;
    let router = (!config.router.listeners.is_empty()).then(|| start_router(config)).transpose()?;
    let make_plane = move || NetfilterPlane::new(Arc::new(swarmesh_kernel::LinuxKernel), plane);
    let overlays = Overlays::new(Arc::new(swarmesh_kernel::LinuxKernel), config.netns_dir.clone())
        .inspect_err(|error| tracing::warn!(%error, "that a node is lost is heard of from the managers only"))
        .ok();
    let proxy = router.as_ref().map(|router| Arc::clone(router.shared()));
    Ok((Engine::start(settings, updates, make_plane, overlays, resolver, router)?, proxy))
}

fn start_router(config: &Config) -> Result<Router, AgentError> {
    let RouterConfig { listeners, proxy, .. } = &config.router;
    let mut proxy = swarmesh_proxy::Config { http: listeners.http.clone(), https: listeners.https.clone(), ..(**proxy).clone() };
    if proxy.name.is_empty() {
        proxy.name = hostname();
    }
    let router = Router::start(proxy, config.netns_dir.clone())?;
    tracing::info!(addresses = ?router.addresses(), "routes are served");
    Ok(router)
}

fn hostname() -> String {
    nix::unistd::gethostname().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

fn start_names(config: &Config) -> Result<Resolver, AgentError> {
    let answers = swarmesh_dns::Settings { ttl: config.dns.ttl, compat: config.dns.compat };
    let settings = NameSettings { answers, netns_dir: config.netns_dir.clone() };
    let names = Names::start(Arc::new(swarmesh_kernel::LinuxKernel), settings)?;
    Ok(Resolver { names, host_servers: swarmesh_dns::forward::resolv_conf::watch(&config.dns.resolv_conf) })
}

fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn source_outcome(ended: Result<Result<(), SourceError>, tokio::task::JoinError>) -> Result<(), AgentError> {
    match ended {
        Ok(Err(error)) => Err(error.into()),
        Ok(Ok(())) | Err(_) => Err(AgentError::SourceEnded),
    }
}

/// Resolves when the engine's thread is gone, or one that answers names, which is a bug of ours; the service manager's restart
/// mends it. With the process, what leads questions to us ends too.
async fn lost(engine: &Engine) {
    let mut every = tokio::time::interval(Duration::from_secs(1));
    let names_ended = || engine.handle().shared.read(|view| view.dns.as_ref().is_some_and(|dns| dns.has_ended()));
    while !engine.is_finished() && !names_ended() {
        every.tick().await;
    }
}
