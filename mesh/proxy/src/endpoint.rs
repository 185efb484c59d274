//! Where connections to backends go, and what all workers know of each such place.

use std::{
    fmt, io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use socket2::Socket;
use swarmesh_router::model::{BackendProtocol, BackendTls, Ejection, Upstream};

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
    sandbox: ArcSwapOption<PathBuf>,
    /// How often it changed.
    changes: AtomicU32,
}

impl Foothold {
    /// Changes it, if this is another one.
    pub fn set(&self, sandbox: Option<PathBuf>) {
        if self.sandbox.load().as_deref() != sandbox.as_ref() {
            self.sandbox.store(sandbox.map(Arc::new));
            // Whoever sees the new number sees the new namespace.
            self.changes.fetch_add(1, Ordering::Release);
        }
    }

    pub fn sandbox(&self) -> Option<Arc<PathBuf>> {
        self.sandbox.load_full()
    }
}

/// Opens sockets in namespaces. What it returns is not connected and does not block.
pub trait Dialer: fmt::Debug + Send + Sync {
    /// `sandbox` is a namespace's file, or `None` for the process's own.
    fn socket(&self, sandbox: Option<&std::path::Path>, to: SocketAddr) -> io::Result<Socket>;
}

/// Opens sockets where the process is, for backends that need no other place.
#[derive(Clone, Copy, Debug)]
pub struct OwnNamespace;

impl Dialer for OwnNamespace {
    fn socket(&self, sandbox: Option<&std::path::Path>, to: SocketAddr) -> io::Result<Socket> {
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
        since != 0 && millis(now).saturating_sub(since) < LAST_MILLIS
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

/// See [`Endpoint::has_just_gone`].
const LAST_MILLIS: u64 = 1000;

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
