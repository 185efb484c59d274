//! What is counted of each route and of the proxy as a whole.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Upper bounds of the latency classes, in seconds; above the last one is one more class.
pub const LATENCY_BOUNDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Counts of one route. They stay through changes of the route.
#[derive(Debug, Default)]
pub struct RouteCounts {
    /// Answers by the first digit of their status; 0 are those that the client did not wait for.
    statuses: [AtomicU64; 6],
    /// Requests by the time until the answer's last byte, see [`LATENCY_BOUNDS`].
    latencies: [AtomicU64; LATENCY_BOUNDS.len() + 1],
    latency_micros: AtomicU64,
    /// Bytes of bodies and tunnels.
    received: AtomicU64,
    sent: AtomicU64,
    begun: AtomicU64,
    ended: AtomicU64,
    retries: AtomicU64,
    connect_failures: AtomicU64,
}

impl RouteCounts {
    pub(crate) fn begin(&self) {
        add(&self.begun, 1);
    }

    /// One request is over. `status` is 0 without an answer.
    pub(crate) fn end(&self, status: u16, took: Duration, received: u64, sent: u64) {
        add(&self.ended, 1);
        if let Some(class) = self.statuses.get(usize::from(status / 100)) {
            add(class, 1);
        }
        let seconds = took.as_secs_f64();
        let class = LATENCY_BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(LATENCY_BOUNDS.len());
        if let Some(class) = self.latencies.get(class) {
            add(class, 1);
        }
        add(&self.latency_micros, u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        add(&self.received, received);
        add(&self.sent, sent);
    }

    pub(crate) fn retried(&self) {
        add(&self.retries, 1);
    }

    pub(crate) fn connect_failed(&self) {
        add(&self.connect_failures, 1);
    }

    /// Answers whose status begins with this digit.
    pub fn answers(&self, class: usize) -> u64 {
        self.statuses.get(class).map_or(0, read)
    }

    /// How many fell into each class, not added up.
    pub fn latencies(&self) -> [u64; LATENCY_BOUNDS.len() + 1] {
        std::array::from_fn(|class| read(&self.latencies[class]))
    }

    pub fn latency_sum(&self) -> Duration {
        Duration::from_micros(read(&self.latency_micros))
    }

    pub fn received(&self) -> u64 {
        read(&self.received)
    }

    pub fn sent(&self) -> u64 {
        read(&self.sent)
    }

    pub fn in_flight(&self) -> u64 {
        let ended = read(&self.ended);
        read(&self.begun).saturating_sub(ended)
    }

    pub fn requests(&self) -> u64 {
        read(&self.begun)
    }

    pub fn retries(&self) -> u64 {
        read(&self.retries)
    }

    pub fn connect_failures(&self) -> u64 {
        read(&self.connect_failures)
    }
}

/// What is counted of no route.
#[derive(Debug, Default)]
pub struct ProxyCounts {
    pub connections: AtomicU64,
    /// Requests that no route takes.
    pub unrouted: AtomicU64,
    /// Requests that are no requests.
    pub malformed: AtomicU64,
    pub handshakes: AtomicU64,
    pub failed_handshakes: AtomicU64,
    pub passed_tls: AtomicU64,
}

pub(crate) fn add(to: &AtomicU64, count: u64) {
    to.fetch_add(count, Ordering::Relaxed);
}

pub(crate) fn read(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}
