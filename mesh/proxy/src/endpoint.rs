//! Where connections to backends go, and what all workers know of each such place.

use std::{
    fmt, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use socket2::Socket;
use swarmesh_router::model::{BackendProtocol, BackendTls, Ejection, Upstream};

/// How long what was left is still there for those who were on their way.
const LAST: Duration = Duration::from_secs(1);

/// A task, VIP, published port or host that requests are sent to. Two routes to the same place share one.
#[derive(Debug)]
pub struct Endpoint {
    /// Never given again while the process lives.
    pub id: u64,
    pub upstream: Upstream,
    /// Its address, or name, and port, as logs have it.
    pub address: Box<str>,
    pub protocol: BackendProtocol,
    pub tls: Option<BackendTls>,
    /// Where sockets to it are opened; `None` for the node's own namespace.
    pub foothold: Option<Arc<Foothold>>,
    pub health: Health,
    /// Requests and tunnels that it is busy with.
    load: AtomicU32,
    /// Since when it takes nothing new, as [`millis`] says it; 0 if it does. Its connections are closed once they are idle.
    gone_since: AtomicU64,
}

/// A namespace on this node from which a network is reached. It changes when the task whose namespace it is goes.
///
/// Docker takes the task's addresses away before it ends, and tells nobody at the other end of its connections. So what was
/// opened there is not used again once it has changed.
#[derive(Debug, Default)]
pub struct Foothold {
    standing: ArcSwapOption<Standing>,
    /// How often it changed.
    changes: AtomicU32,
}

#[derive(Debug)]
struct Standing {
    sandbox: Arc<Path>,
    /// Since when no route leads there, or nobody stands there.
    left: Option<Instant>,
}

impl Foothold {
    /// Changes it, if this is another one.
    pub fn set(&self, sandbox: Option<PathBuf>, now: Instant) {
        let before = self.standing.load();
        let standing = match (before.as_deref(), sandbox) {
            (None, None) | (Some(Standing { left: Some(_), .. }), None) => return,
            (Some(Standing { sandbox, left: None }), Some(wanted)) if **sandbox == *wanted => return,
            (_, Some(sandbox)) => Standing { sandbox: sandbox.into(), left: None },
            (Some(Standing { sandbox, .. }), None) => Standing { sandbox: Arc::clone(sandbox), left: Some(now) },
        };
        self.standing.store(Some(Arc::new(standing)));
        // Whoever sees the new number sees the new namespace.
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// Where sockets are opened. What was left a moment ago is still there for requests that found their way before.
    pub fn sandbox(&self, now: Instant) -> Option<Arc<Path>> {
        let standing = self.standing.load();
        let is_there = |standing: &&Standing| standing.left.is_none_or(|since| now.saturating_duration_since(since) < LAST);
        standing.as_deref().filter(is_there).map(|standing| Arc::clone(&standing.sandbox))
    }

    /// It may be there for a moment, and no longer.
    pub fn has_left(&self) -> bool {
        self.standing.load().as_deref().is_none_or(|standing| standing.left.is_some())
    }
}

/// Opens sockets in namespaces. What it returns is not connected and does not block.
pub trait Dialer: fmt::Debug + Send + Sync {
    /// `sandbox` is a namespace's file, or `None` for the process's own.
    fn socket(&self, sandbox: Option<&Path>, to: SocketAddr) -> io::Result<Socket>;
}

/// Opens sockets where the process is, for backends that need no other place.
#[derive(Clone, Copy, Debug)]
pub struct OwnNamespace;

impl Dialer for OwnNamespace {
    fn socket(&self, sandbox: Option<&Path>, to: SocketAddr) -> io::Result<Socket> {
        if sandbox.is_some() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let socket = Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }
}

/// How a backend has done lately, among all routes and workers.
#[derive(Debug, Default)]
pub struct Health {
    /// Failures without a success between them.
    failures: AtomicU32,
    /// As [`millis`] says it; 0 if it is not out.
    out_until: AtomicU64,
    /// It could not be connected to when that was last tried in the background.
    unreachable: AtomicBool,
}

/// Counts one request as long as it lives.
#[derive(Debug)]
pub struct Busy(Arc<Endpoint>);

impl Endpoint {
    pub fn new(id: u64, upstream: Upstream, protocol: BackendProtocol, tls: Option<BackendTls>, foothold: Option<Arc<Foothold>>) -> Self {
        let address = match &upstream {
            Upstream::Task { address, port, .. } | Upstream::Vip { address, port, .. } | Upstream::Published { address, port, .. } => {
                SocketAddr::new(*address, *port).to_string()
            }
            Upstream::Host { name, port } => format!("{name}:{port}"),
        };
        let (health, load, gone_since) = (Health::default(), AtomicU32::new(0), AtomicU64::new(0));
        Self { id, upstream, address: address.into(), protocol, tls, foothold, health, load, gone_since }
    }

    pub fn load(&self) -> u32 {
        self.load.load(Ordering::Relaxed)
    }

    /// Counts a request, unless there are `most` already.
    pub fn begin(self: &Arc<Self>, most: Option<u32>) -> Option<Busy> {
        let before = self.load.fetch_add(1, Ordering::Relaxed);
        let busy = Busy(Arc::clone(self));
        most.is_none_or(|most| before < most).then_some(busy)
    }

    /// Stands for the namespace that connections are opened in now: what was opened under another number is on its way out.
    pub fn footing(&self) -> u32 {
        self.foothold.as_ref().map_or(0, |foothold| foothold.changes.load(Ordering::Acquire))
    }

    pub fn is_gone(&self) -> bool {
        self.gone_since.load(Ordering::Relaxed) != 0
    }

    /// Not longer gone than a request may need from its route to its backend, which is too short for its address to be another's.
    pub fn has_just_gone(&self, now: Instant) -> bool {
        let since = self.gone_since.load(Ordering::Relaxed);
        since != 0 && u128::from(millis(now).saturating_sub(since)) < LAST.as_millis()
    }

    /// Once, when no route leads there any more.
    pub fn retire(&self, now: Instant) {
        self.gone_since.store(millis(now), Ordering::Relaxed);
    }
}

impl Busy {
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.0
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.load.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Health {
    pub fn succeeded(&self) {
        // Nearly always so already: a store would take the cache line from the other workers.
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// Says whether this failure puts it out.
    pub fn failed(&self, ejection: Option<Ejection>, now: Instant) -> bool {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let Some(ejection) = ejection.filter(|e| failures >= u32::from(e.failures)) else { return false };
        self.failures.store(0, Ordering::Relaxed);
        self.out_until.store(millis(now + ejection.time), Ordering::Relaxed);
        true
    }

    /// Says whether this is news.
    pub fn checked(&self, is_reachable: bool) -> bool {
        self.unreachable.swap(!is_reachable, Ordering::Relaxed) == is_reachable
    }

    pub fn is_out(&self, now: Instant) -> bool {
        if self.unreachable.load(Ordering::Relaxed) {
            return true;
        }
        let until = self.out_until.load(Ordering::Relaxed);
        until != 0 && millis(now) < until
    }
}

/// Since the first call, and never 0.
fn millis(at: Instant) -> u64 {
    static BEGINNING: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    let since = at.saturating_duration_since(*BEGINNING) + Duration::from_millis(1);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint() -> Arc<Endpoint> {
        let upstream = Upstream::Host { name: "a.example".into(), port: 80 };
        Arc::new(Endpoint::new(1, upstream, BackendProtocol::Http1, None, None))
    }

    #[test]
    fn an_endpoint_takes_as_many_as_it_may() {
        let endpoint = endpoint();
        let first = endpoint.begin(Some(1)).unwrap();
        assert!(endpoint.begin(Some(1)).is_none());
        assert_eq!(endpoint.load(), 1, "the one that was refused does not count");
        drop(first);
        assert_eq!(endpoint.load(), 0);
        assert!(endpoint.begin(Some(1)).is_some());
    }

    #[test]
    fn a_foothold_is_left_a_moment_later() {
        let (foothold, now) = (Foothold::default(), Instant::now());
        let (one, other) = (PathBuf::from("one"), PathBuf::from("other"));
        let stands = |at: u64| foothold.sandbox(now + Duration::from_millis(at)).map(|path| path.to_path_buf());
        let changes = || foothold.changes.load(Ordering::Relaxed);
        assert!(stands(0).is_none() && foothold.has_left());
        foothold.set(None, now);
        foothold.set(Some(one.clone()), now);
        foothold.set(Some(one.clone()), now);
        assert_eq!((stands(5000), changes(), foothold.has_left()), (Some(one.clone()), 1, false));
        foothold.set(None, now);
        foothold.set(None, now + Duration::from_millis(900));
        assert_eq!((stands(999), stands(1001), changes(), foothold.has_left()), (Some(one.clone()), None, 2, true));
        // What was opened before is not used again: the namespace may have been another one meanwhile.
        foothold.set(Some(one.clone()), now);
        assert_eq!((stands(5000), changes()), (Some(one), 3));
        foothold.set(Some(other.clone()), now);
        assert_eq!((stands(5000), changes()), (Some(other), 4));
    }

    #[test]
    fn failures_in_a_row_put_it_out_for_a_while() {
        let health = Health::default();
        let ejection = Some(Ejection { failures: 2, time: Duration::from_secs(10) });
        let now = Instant::now();
        assert!(!health.failed(ejection, now));
        health.succeeded();
        assert!(!health.failed(ejection, now));
        assert!(!health.is_out(now));
        assert!(health.failed(ejection, now));
        assert!(health.is_out(now) && health.is_out(now + Duration::from_secs(9)));
        assert!(!health.is_out(now + Duration::from_secs(11)));
        assert!(!health.failed(None, now));
    }
}
