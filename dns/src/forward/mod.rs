//! What is not ours is asked upstream: in the order that was configured, but without waiting for servers that are known not to
//! answer.

mod cache;
mod exchange;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod health;
mod message;
pub mod resolv_conf;
mod scrub;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fmt, io,
    net::{SocketAddr, TcpStream, UdpSocket},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use tokio::sync::watch;

use self::{
    cache::{Cache, Key},
    message::Answer,
};
use crate::wire::{Code, HEADER, Query, Response};

pub use health::{Choice, Conduct, Health};
pub use message::fit;

/// From which network a server is asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// The agent's own.
    Host,
    /// A container's, by its sandbox's name.
    Sandbox(Arc<str>),
    /// That container's own resolver, the engine's, past our way to ourselves.
    Engine(Arc<str>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Upstream {
    pub server: SocketAddr,
    pub origin: Origin,
}

impl Upstream {
    pub fn is_engine(&self) -> bool {
        matches!(self.origin, Origin::Engine(_))
    }
}

/// Whom an asker's questions go to.
#[derive(Clone, Debug)]
pub struct Route {
    /// Whose questions, for the bound that keeps one asker from taking all.
    pub asker: u64,
    /// In order of preference.
    pub upstreams: Arc<[Upstream]>,
    /// Names that may be a container's which the engine knows and we do not, as plain containers of other nodes.
    pub inner: Option<Inner>,
}

/// Who is asked for names that look like the swarm's own.
#[derive(Clone, Debug)]
pub struct Inner {
    /// The engine's resolver.
    pub engine: Arc<[Upstream]>,
    /// It, and those that everything else is asked of.
    pub both: Arc<[Upstream]>,
    /// What may follow a name, in lower case.
    pub networks: Arc<[Box<str>]>,
    /// Names without a dot are asked of the engine only: whoever set `ndots` has a search list for them.
    pub keeps_single_labels: bool,
}

impl Route {
    /// Whom to ask for a name in lower case, and whether nobody's answer means that there is nothing. `None` is a name that
    /// cannot be a container's.
    pub fn choose(&self, name: Option<&str>) -> (&Arc<[Upstream]>, bool) {
        let (Some(inner), Some(name)) = (&self.inner, name) else { return (&self.upstreams, false) };
        if name.is_empty() {
            return (&self.upstreams, false);
        }
        if !name.contains('.') {
            return if inner.keeps_single_labels { (&inner.engine, true) } else { (&inner.both, false) };
        }
        let ends_in = |suffix: &str| name.strip_suffix(suffix).is_some_and(|rest| rest.ends_with('.'));
        let is_inner = inner.networks.iter().any(|n| ends_in(n)) || ends_in("in-addr.arpa") || ends_in("ip6.arpa");
        (if is_inner { &inner.both } else { &self.upstreams }, false)
    }
}

/// Opens sockets where they are to be opened: non-blocking, connected, and from a port that nobody can guess.
pub trait Sockets: Send + Sync {
    fn udp(&self, origin: &Origin, server: SocketAddr) -> io::Result<UdpSocket>;
    /// The connection may still be in the making.
    fn tcp(&self, origin: &Origin, server: SocketAddr) -> io::Result<TcpStream>;
}

/// How many questions may be on their way.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub of_one: usize,
    pub of_all: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { of_one: 512, of_all: 4096 }
    }
}

/// What became of questions that were asked upstream.
#[derive(Debug, Default)]
pub struct Counters {
    pub asked: AtomicU64,
    pub cached: AtomicU64,
    pub shared: AtomicU64,
    pub timeouts: AtomicU64,
    pub raced: AtomicU64,
    pub by_tcp: AtomicU64,
    pub failed: AtomicU64,
    pub refused: AtomicU64,
}

impl Counters {
    /// With the names that metrics have for them.
    pub fn named(&self) -> [(&'static str, u64); 8] {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        [
            ("asked", read(&self.asked)),
            ("cached", read(&self.cached)),
            ("shared", read(&self.shared)),
            ("timeouts", read(&self.timeouts)),
            ("raced", read(&self.raced)),
            ("by_tcp", read(&self.by_tcp)),
            ("failed", read(&self.failed)),
            ("refused", read(&self.refused)),
        ]
    }
}

/// Asks upstream servers. Lives on one thread.
pub struct Forwarder {
    sockets: Arc<dyn Sockets>,
    limits: Limits,
    counters: Arc<Counters>,
    cache: RefCell<Cache>,
    health: Arc<Health>,
    /// Questions that are asked right now, and who waits for the same.
    asking: RefCell<HashMap<Key, watch::Receiver<Option<Asked>>>>,
    in_flight: Cell<usize>,
    by_asker: RefCell<HashMap<u64, usize>>,
}

/// `None`: nobody had an answer.
type Asked = Option<Arc<Answer>>;

impl fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forwarder").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}

/// Counts one question in, and out again when it is over.
struct Turn<'f> {
    forwarder: &'f Forwarder,
    asker: u64,
}

impl<'f> Turn<'f> {
    fn take(forwarder: &'f Forwarder, asker: u64) -> Option<Self> {
        let mut by_asker = forwarder.by_asker.borrow_mut();
        let own = by_asker.get(&asker).copied().unwrap_or_default();
        if own >= forwarder.limits.of_one || forwarder.in_flight.get() >= forwarder.limits.of_all {
            return None;
        }
        by_asker.insert(asker, own + 1);
        forwarder.in_flight.set(forwarder.in_flight.get() + 1);
        Some(Self { forwarder, asker })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut by_asker = self.forwarder.by_asker.borrow_mut();
        if let Some(own) = by_asker.get_mut(&self.asker) {
            *own -= 1;
            if *own == 0 {
                by_asker.remove(&self.asker);
            }
        }
        self.forwarder.in_flight.set(self.forwarder.in_flight.get() - 1);
    }
}

impl Forwarder {
    pub fn new(sockets: Arc<dyn Sockets>, limits: Limits, counters: Arc<Counters>, health: Arc<Health>) -> Self {
        Self {
            sockets,
            limits,
            counters,
            cache: RefCell::new(Cache::new()),
            health,
            asking: RefCell::default(),
            in_flight: Cell::new(0),
            by_asker: RefCell::default(),
        }
    }

    /// Questions that wait for an answer.
    pub fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    /// The answer in full, for the client to be cut to what it takes ([`fit`]). There always is one: SERVFAIL when nobody knew,
    /// REFUSED when too many wait already.
    pub async fn resolve(self: &Rc<Self>, query: &Query<'_>, route: &Route) -> Vec<u8> {
        let Some(_turn) = Turn::take(self, route.asker) else {
            self.counters.refused.fetch_add(1, Relaxed);
            return plain(query, Code::Refused);
        };
        let (upstreams, is_nothing_else) = route.choose(query.name());
        if upstreams.is_empty() {
            self.counters.failed.fetch_add(1, Relaxed);
            return plain(query, Code::ServFail);
        }
        let key = Key::new(query, upstreams);
        if let Some((answer, age)) = self.cache.borrow_mut().get(&key, Instant::now()) {
            self.counters.cached.fetch_add(1, Relaxed);
            return answer.to(query, age);
        }
        match self.ask_once(key, query, upstreams).await {
            Some(answer) => answer.to(query, std::time::Duration::ZERO),
            None if is_nothing_else => plain(query, Code::NoError),
            None => {
                self.counters.failed.fetch_add(1, Relaxed);
                plain(query, Code::ServFail)
            }
        }
    }

    /// Asks, or waits for whoever asks the same already.
    async fn ask_once(self: &Rc<Self>, key: Key, query: &Query<'_>, upstreams: &Arc<[Upstream]>) -> Asked {
        let waiting = self.asking.borrow().get(&key).cloned();
        let mut receiver = match waiting {
            Some(receiver) => {
                self.counters.shared.fetch_add(1, Relaxed);
                receiver
            }
            None => {
                let (sender, receiver) = watch::channel(None);
                self.asking.borrow_mut().insert(key.clone(), receiver.clone());
                self.counters.asked.fetch_add(1, Relaxed);
                let (this, upstreams) = (Rc::clone(self), Arc::clone(upstreams));
                let exchange = exchange::Exchange::new(query, upstreams);
                // On its own, so that others have their answer also when this client is gone.
                tokio::task::spawn_local(async move {
                    let answer = exchange.run(&this).await.map(Arc::new);
                    this.asking.borrow_mut().remove(&key);
                    if let Some(answer) = &answer {
                        this.cache.borrow_mut().put(key, Answer::clone(answer), Instant::now());
                    }
                    let _ = sender.send(Some(answer));
                });
                receiver
            }
        };
        let answer = receiver.wait_for(Option::is_some).await;
        answer.ok().and_then(|answer| Option::clone(&answer)).flatten()
    }
}

/// An answer of our own with nothing in it.
fn plain(query: &Query<'_>, code: Code) -> Vec<u8> {
    let mut out = vec![0; HEADER + query.question().len() + 16];
    let limit = out.len();
    let len = Response::new(query, code, false, limit, &mut out).finish();
    out.truncate(len);
    out
}

#[cfg(test)]
mod tests;
