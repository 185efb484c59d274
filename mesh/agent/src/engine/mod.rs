//! The engine: updates in, kernel state out, on a thread and runtime of its own.

mod batch;
mod worker;

use std::{
    collections::BTreeMap,
    fmt, io,
    net::IpAddr,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use swarmesh_dataplane::Overlays;
use swarmesh_plan::Takeover;
use swarmesh_source::Update;
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    Names, Plane, Router, Store, StoreError,
    config::{PlaneChoice, RouterConfig},
    view::Shared,
};

/// What the engine must know from the start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The source as on the command line: whose snapshot the stored one must be.
    pub source: String,
    pub node: Option<String>,
    pub hostname: String,
    pub takeover: Takeover,
    pub router: RouterConfig,
    pub store: Store,
    /// How long the source may take before the stored snapshot is used.
    pub patience: Duration,
    pub audit_every: Duration,
    /// Planes that do not run, and why, for `status`.
    pub other_planes: Vec<(PlaneChoice, String)>,
}

/// Names, and what they need to hear of the host.
#[derive(Debug)]
pub struct Resolver {
    pub names: Names,
    /// The servers in the host's `resolv.conf`. A receiver that has seen nothing yet.
    pub host_servers: watch::Receiver<Arc<[IpAddr]>>,
}

#[derive(Debug)]
pub(crate) enum Command {
    Drain(bool, oneshot::Sender<()>),
    Added(AddedChange, oneshot::Sender<Result<bool, StoreError>>),
    Stop,
}

/// What Docker Flow Proxy's API asks for.
pub(crate) enum AddedChange {
    /// A service, with what is said of it.
    Put(String, BTreeMap<String, String>),
    Remove(String),
}

/// What is said may be a password.
impl fmt::Debug for AddedChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put(name, _) => write!(f, "put {name:?}"),
            Self::Remove(name) => write!(f, "remove {name:?}"),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot start the engine's thread: {0}")]
    Start(#[from] io::Error),
    #[error("the engine has stopped; see the log")]
    Stopped,
}

/// A running engine.
#[derive(Debug)]
pub struct Engine {
    handle: EngineHandle,
    /// Resolves when the first snapshot is applied, or it is clear that there will be none for now.
    ready: Option<oneshot::Receiver<()>>,
    thread: JoinHandle<()>,
}

/// What the admin API needs of it.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    pub shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
}

impl EngineHandle {
    /// Returns when it is in force.
    pub async fn drain(&self, drain: bool) -> Result<(), EngineError> {
        let (done, is_done) = oneshot::channel();
        self.commands.send(Command::Drain(drain, done)).await.map_err(|_| EngineError::Stopped)?;
        is_done.await.map_err(|_| EngineError::Stopped)
    }

    /// Returns when it is stored and in force, and says whether it changed anything.
    pub(crate) async fn change_added(&self, change: AddedChange) -> Result<bool, EngineError> {
        let (done, is_done) = oneshot::channel();
        self.commands.send(Command::Added(change, done)).await.map_err(|_| EngineError::Stopped)?;
        Ok(is_done.await.map_err(|_| EngineError::Stopped)??)
    }
}

impl Engine {
    /// `make_plane` runs on the engine's thread: a plane's sockets need not travel between threads.
    pub fn start<P: Plane + 'static>(
        settings: Settings,
        updates: mpsc::Receiver<Update>,
        make_plane: impl FnOnce() -> P + Send + 'static,
        overlays: Option<Overlays>,
        resolver: Option<Resolver>,
        router: Option<Router>,
    ) -> Result<Self, EngineError> {
        let shared = Arc::new(Shared::default());
        let (commands, received) = mpsc::channel(8);
        let (is_ready, ready) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = EngineHandle { shared: Arc::clone(&shared), commands };
        let thread = thread::Builder::new().name("engine".to_owned()).spawn(move || {
            let worker = worker::Worker::new(settings, make_plane(), overlays, resolver, router, shared, is_ready);
            runtime.block_on(worker.run(updates, received));
        })?;
        Ok(Self { handle, ready: Some(ready), thread })
    }

    pub fn handle(&self) -> &EngineHandle {
        &self.handle
    }

    /// The first call waits until the engine has done what it can do at start.
    pub async fn ready(&mut self) {
        if let Some(ready) = self.ready.take() {
            // An engine that is gone will not become readier.
            let _ = ready.await;
        }
    }

    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Stores the last snapshot and ends. What is in the kernel stays there.
    pub async fn stop(self) {
        self.handle.shared.change(|view| view.stopping = true);
        // An engine that has stopped already has no ear, and needs none.
        let _ = self.handle.commands.send(Command::Stop).await;
        if tokio::task::spawn_blocking(|| self.thread.join()).await.is_ok_and(|joined| joined.is_err()) {
            tracing::error!("the engine ended by a panic");
        }
    }
}
