//! Names in the agent: zones kept by the plan, and in each of this node's containers a way to the server that answers from them.

mod book;
mod sockets;

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;
use swarmesh_dataplane::{PlaneError, RESOLVER, Redirect};
use swarmesh_dns::{
    Server, Settings, Shared,
    forward::{Inner, Limits, Origin, Route, Upstream},
};
use swarmesh_kernel::{Kernel, NetnsId};
use swarmesh_model::TaskId;
use swarmesh_plan::{AskerPlan, NameDelta, NamePlan};

pub(crate) use self::book::Book;
use self::sockets::NetnsSockets;

const DNS_PORT: u16 = 53;
const FIRST_RETRY: Duration = Duration::from_millis(10);
/// A namespace that is being made is there within this time; until then, no pause grows.
const EARLY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(5);

/// What the names need to know from the start.
#[derive(Clone, Debug)]
pub struct NameSettings {
    pub answers: Settings,
    pub netns_dir: PathBuf,
}

/// Names could not be set up at all.
#[derive(Debug, thiserror::Error)]
#[error("cannot start to answer names: {0}; `--dns off` leaves them to Docker")]
pub struct NamesError(#[from] io::Error);

/// One container's resolver, for `status`.
#[derive(Clone, Debug, Serialize)]
pub struct ResolverStatus {
    pub task: String,
    pub path: PathBuf,
    /// Why Docker's resolver answers instead; empty when ours does.
    pub error: String,
    pub since_seconds: u64,
}

/// See the module's own words. Lives on the engine's thread.
pub struct Names {
    kernel: Arc<dyn Kernel>,
    settings: NameSettings,
    book: Book,
    server: Server,
    places: BTreeMap<TaskId, Place>,
    /// Of the host, by its own file.
    host_servers: Arc<[IpAddr]>,
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names").field("settings", &self.settings).finish_non_exhaustive()
    }
}

struct Place {
    asker: Arc<AskerPlan>,
    state: State,
    since: Instant,
}

enum State {
    Open { session: u64, redirect: Redirect, namespace: Option<NetnsId> },
    Pending { error: Option<PlaneError>, retry: Instant, pause: Duration },
}

impl Names {
    pub fn start(kernel: Arc<dyn Kernel>, settings: NameSettings) -> Result<Self, NamesError> {
        let sockets = Arc::new(NetnsSockets::new(settings.netns_dir.clone()));
        let server = Server::start(settings.answers, Limits::default(), sockets)?;
        Ok(Self { kernel, settings, book: Book::default(), server, places: BTreeMap::new(), host_servers: [].into() })
    }

    /// Counters and the query log's switch.
    pub fn shared(&self) -> &Arc<Shared> {
        self.server.shared()
    }

    /// Brings zones and askers from the last plan to the next, `plan`, by the difference between the two.
    pub fn apply(&mut self, delta: &NameDelta, plan: &NamePlan, now: Instant) {
        let networks_changed = self.book.apply(delta, plan);
        for (task, asker) in &delta.askers {
            match asker {
                None => self.close(task),
                Some(asker) => self.set(task, asker, now),
            }
        }
        if networks_changed {
            self.reroute();
        }
    }

    /// The host's servers, asked for whoever has none of its own.
    pub fn set_host_servers(&mut self, servers: Arc<[IpAddr]>) {
        if self.host_servers != servers {
            self.host_servers = servers;
            self.reroute();
        }
    }

    /// Tells the server anew what each asker may see and who is asked for it.
    fn reroute(&self) {
        for place in self.places.values() {
            if let State::Open { session, .. } = place.state {
                self.server.change(session, self.book.asker(session, &place.asker), self.route(session, &place.asker));
            }
        }
    }

    fn set(&mut self, task: &TaskId, asker: &Arc<AskerPlan>, now: Instant) {
        if let Some(place) = self.places.get_mut(task)
            && place.asker.sandbox == asker.sandbox
        {
            place.asker = Arc::clone(asker);
            if let State::Open { session, .. } = place.state {
                self.server.change(session, self.book.asker(session, asker), self.route(session, asker));
            }
            return;
        }
        self.close(task);
        let state = State::Pending { error: None, retry: now, pause: FIRST_RETRY };
        self.places.insert(task.clone(), Place { asker: Arc::clone(asker), state, since: now });
        self.attempt(task, now);
    }

    fn close(&mut self, task: &TaskId) {
        // The redirect goes first, so that the last question has somebody to answer it.
        if let Some(Place { state: State::Open { session, redirect, .. }, .. }) = self.places.remove(task) {
            drop(redirect);
            self.server.close(session);
        }
    }

    fn attempt(&mut self, task: &TaskId, now: Instant) {
        let Some(place) = self.places.get(task) else { return };
        let asker = Arc::clone(&place.asker);
        let opened = self.open(&asker);
        let Some(place) = self.places.get_mut(task) else { return };
        let since = place.since;
        match opened {
            Ok(state) => {
                place.state = state;
                place.since = now;
            }
            Err(error) => {
                let early = now.saturating_duration_since(since) < EARLY;
                let pause = match &place.state {
                    State::Pending { pause, .. } if !early => (*pause * 2).min(LAST_RETRY),
                    _ => FIRST_RETRY,
                };
                if pause >= LAST_RETRY && !matches!(place.state, State::Pending { pause, .. } if pause >= LAST_RETRY) {
                    tracing::warn!(task = %asker.name, %error, "names are left to Docker's resolver, will be tried again");
                }
                place.state = State::Pending { error: Some(error), retry: now + pause, pause };
            }
        }
    }

    fn open(&mut self, asker: &AskerPlan) -> Result<State, PlaneError> {
        let path = self.settings.netns_dir.join(&asker.sandbox);
        let (redirect, sockets) = Redirect::open(&*self.kernel, &path)?;
        let namespace = self.kernel.identity(&path).ok();
        // The session's number is known only afterwards, and wanted for its own bounds only.
        let served = self.server.serve(sockets.udp, sockets.tcp, self.book.asker(0, asker), self.route(0, asker));
        let session = served.map_err(|error| swarmesh_kernel::KernelError::from_io("watch the resolver's socket", error))?;
        self.server.change(session, self.book.asker(session, asker), self.route(session, asker));
        Ok(State::Open { session, redirect, namespace })
    }

    fn route(&self, session: u64, asker: &AskerPlan) -> Route {
        route(session, asker, &self.host_servers, self.book.titles(asker))
    }

    /// Tries what is due, and says when to call again.
    pub fn run_due(&mut self, now: Instant) -> Option<Instant> {
        let due: Vec<TaskId> = self.pending().filter(|(_, retry)| *retry <= now).map(|(task, _)| task.clone()).collect();
        for task in due {
            self.attempt(&task, now);
        }
        self.pending().map(|(_, retry)| retry).min()
    }

    fn pending(&self) -> impl Iterator<Item = (&TaskId, Instant)> {
        self.places.iter().filter_map(|(task, place)| match place.state {
            State::Pending { retry, .. } => Some((task, retry)),
            State::Open { .. } => None,
        })
    }

    /// Finds namespaces that were replaced under their path. Nobody but us can touch the tables themselves.
    pub fn audit(&mut self, now: Instant) {
        let replaced = self.places.iter().filter(|(_, place)| match &place.state {
            State::Open { namespace, .. } => self.kernel.identity(&self.settings.netns_dir.join(&place.asker.sandbox)).ok() != *namespace,
            State::Pending { .. } => false,
        });
        let replaced: Vec<(TaskId, Arc<AskerPlan>)> = replaced.map(|(task, place)| (task.clone(), Arc::clone(&place.asker))).collect();
        for (task, asker) in replaced {
            self.close(&task);
            self.set(&task, &asker, now);
        }
    }

    pub fn is_settled(&self) -> bool {
        self.pending().next().is_none()
    }

    pub fn status(&self, now: Instant) -> Vec<ResolverStatus> {
        let status = |(_, place): (&TaskId, &Place)| ResolverStatus {
            task: place.asker.name.clone(),
            path: self.settings.netns_dir.join(&place.asker.sandbox),
            error: match &place.state {
                State::Open { .. } => String::new(),
                State::Pending { error, .. } => error.as_ref().map_or_else(|| "not tried yet".to_owned(), PlaneError::to_string),
            },
            since_seconds: now.saturating_duration_since(place.since).as_secs(),
        };
        self.places.iter().map(status).collect()
    }

    /// Gives new questions back to Docker's resolver, answers those that have come, and ends.
    pub fn stop(mut self) {
        for place in self.places.values_mut() {
            if let State::Open { redirect, .. } = &mut place.state
                && let Err(error) = redirect.take_no_more()
            {
                tracing::debug!(task = %place.asker.name, %error, "cannot hand questions back before the end");
            }
        }
        self.server.stop();
    }
}

/// Docker's rule: the creator's servers, asked from the container's own namespace, replace the host's, which are asked from
/// the host's and only for containers that may get out.
pub(crate) fn route(session: u64, asker: &AskerPlan, host_servers: &[IpAddr], networks: Arc<[Box<str>]>) -> Route {
    let sandbox: Arc<str> = asker.sandbox.as_str().into();
    let upstream = |server: &IpAddr, origin| Upstream { server: SocketAddr::new(*server, DNS_PORT), origin };
    let upstreams: Vec<Upstream> = if !asker.servers.is_empty() {
        // An address in IPv6's clothes is sent to as what it is.
        let servers = asker.servers.iter().filter(|s| s.to_canonical() != RESOLVER);
        servers.map(|s| upstream(s, Origin::Sandbox(Arc::clone(&sandbox)))).collect()
    } else if asker.leads_out {
        host_servers.iter().map(|s| upstream(s, Origin::Host)).collect()
    } else {
        Vec::new()
    };
    let engine = Upstream { server: SocketAddr::from((RESOLVER, DNS_PORT)), origin: Origin::Engine(sandbox) };
    let both = std::iter::once(engine.clone()).chain(upstreams.iter().cloned()).collect();
    let inner = Inner { engine: [engine].into(), both, networks, keeps_single_labels: asker.keeps_single_labels };
    Route { asker: session, upstreams: upstreams.into(), inner: Some(inner) }
}
