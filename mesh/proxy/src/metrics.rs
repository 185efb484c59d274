//! What is counted of each route and of the proxy as a whole.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use swarmesh_router::model::{Dialect, Listener, Origin, Owner, OwnerKind};

/// Upper bounds of the latency classes, in seconds; above the last one is one more class.
pub const LATENCY_BOUNDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Counts of one route. They stay through changes of the route.
///
/// What nearly every request counts is in the first two cache lines.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct RouteCounts {
    begun: AtomicU64,
    ended: AtomicU64,
    /// Answers by the first digit of their status; 0 are those that the client did not wait for.
    statuses: [AtomicU64; 6],
    latency_micros: AtomicU64,
    /// Bytes of bodies and tunnels.
    received: AtomicU64,
    sent: AtomicU64,
    /// Requests by the time until the answer's last byte, see [`LATENCY_BOUNDS`].
    latencies: [AtomicU64; LATENCY_BOUNDS.len() + 1],
    retries: AtomicU64,
    connect_failures: AtomicU64,
}

impl RouteCounts {
    /// Reads of what nearly every request counts.
    pub(crate) fn fetch(&self) -> u64 {
        read(&self.begun) | read(&self.latency_micros)
    }

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

/// Whose requests are counted together for those who read metrics: what a stranger can ask for is no part of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group {
    pub kind: OwnerKind,
    /// The owner's.
    pub name: String,
    pub dialect: Dialect,
    pub listener: Listener,
}

impl Group {
    pub(crate) fn of(origin: &Origin, listener: Listener) -> Self {
        let Owner { kind, name, .. } = &origin.owner;
        Self { kind: *kind, name: name.clone(), dialect: origin.dialect, listener }
    }
}

/// What a group's routes have counted, those included that are gone: a sum that fell when a route goes would be read as a restart.
#[derive(Debug, Default)]
pub struct GroupCounts(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    gone: Totals,
    routes: Vec<Arc<RouteCounts>>,
}

/// Counts at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub answers: [u64; 6],
    pub latencies: [u64; LATENCY_BOUNDS.len() + 1],
    pub latency_sum: Duration,
    pub received: u64,
    pub sent: u64,
    pub requests: u64,
    pub in_flight: u64,
    pub retries: u64,
    pub connect_failures: u64,
}

impl Totals {
    fn add(&mut self, counts: &RouteCounts) {
        let pairs = |to: &mut [u64], from: &[u64]| to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        pairs(&mut self.answers, &std::array::from_fn::<_, 6, _>(|class| counts.answers(class)));
        pairs(&mut self.latencies, &counts.latencies());
        self.latency_sum += counts.latency_sum();
        self.received += counts.received();
        self.sent += counts.sent();
        self.requests += counts.requests();
        self.in_flight += counts.in_flight();
        self.retries += counts.retries();
        self.connect_failures += counts.connect_failures();
    }
}

impl GroupCounts {
    pub(crate) fn join(&self, counts: &Arc<RouteCounts>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !kept.routes.iter().any(|known| Arc::ptr_eq(known, counts)) {
            // Here, too, so that routes which come and go leave nothing behind where nobody reads.
            kept.settle();
            kept.routes.push(Arc::clone(counts));
        }
    }

    pub fn totals(&self) -> Totals {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.settle();
        let mut totals = kept.gone;
        kept.routes.iter().for_each(|counts| totals.add(counts));
        totals
    }
}

impl Kept {
    /// Counts that nobody else holds will not change any more.
    fn settle(&mut self) {
        let Self { gone, routes } = self;
        routes.retain(|counts| {
            let in_use = Arc::strong_count(counts) > 1;
            if !in_use {
                gone.add(counts);
            }
            in_use
        });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_that_goes_takes_nothing_from_its_groups_sums() {
        let group = GroupCounts::default();
        let (first, second) = (Arc::new(RouteCounts::default()), Arc::new(RouteCounts::default()));
        for counts in [&first, &second, &first] {
            group.join(counts);
        }
        first.begin();
        first.end(204, Duration::from_millis(3), 1, 2);
        second.begin();
        let before = group.totals();
        assert_eq!((before.requests, before.in_flight, before.answers[2], before.sent), (2, 1, 1, 2));
        drop(first);
        assert_eq!(group.totals(), before);
        second.end(500, Duration::from_secs(60), 0, 7);
        drop(second);
        let after = group.totals();
        assert_eq!((after.requests, after.in_flight, after.answers[5], after.sent), (2, 0, 1, 9));
        assert_eq!((after.latencies[2], after.latencies[12], after.latency_sum), (1, 1, Duration::from_millis(60_003)));
        assert_eq!(group.0.lock().unwrap().routes.len(), 0, "what is gone is kept as sums");
    }
}
