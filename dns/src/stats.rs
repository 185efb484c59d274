//! Counters and times, written by the threads that answer and read by whoever asks for metrics.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::{Answer, ErrorKind};

/// Upper bounds of the histogram's buckets, in microseconds.
pub const BUCKETS: [u64; 12] = [5, 10, 20, 50, 100, 200, 500, 1_000, 5_000, 20_000, 100_000, 1_000_000];

/// How a query ended, as `/metrics` calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Records,
    NoData,
    NoName,
    Format,
    NotImplemented,
    Refused,
    Failed,
    Forwarded,
    Ignored,
}

impl Ending {
    pub const ALL: [Self; 9] = [
        Self::Records,
        Self::NoData,
        Self::NoName,
        Self::Format,
        Self::NotImplemented,
        Self::Refused,
        Self::Failed,
        Self::Forwarded,
        Self::Ignored,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Records => "records",
            Self::NoData => "nodata",
            Self::NoName => "nxdomain",
            Self::Format => "formerr",
            Self::NotImplemented => "notimp",
            Self::Refused => "refused",
            Self::Failed => "servfail",
            Self::Forwarded => "forwarded",
            Self::Ignored => "ignored",
        }
    }
}

impl From<Answer> for Ending {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Records => Self::Records,
            Answer::NoData => Self::NoData,
            Answer::NoName => Self::NoName,
            Answer::Error(ErrorKind::Format) => Self::Format,
            Answer::Error(ErrorKind::NotImplemented) => Self::NotImplemented,
            Answer::Error(ErrorKind::Refused) => Self::Refused,
            Answer::Error(ErrorKind::Failed) => Self::Failed,
        }
    }
}

/// Everything that the server counts.
#[derive(Debug, Default)]
pub struct Stats {
    endings: [AtomicU64; Ending::ALL.len()],
    pub tcp_queries: AtomicU64,
    pub tcp_connections: AtomicU64,
    /// TCP connections that were closed because there were too many, or because they were slow.
    pub tcp_closed: AtomicU64,
    /// Answers of local names, from a datagram's arrival at the agent to its answer's departure.
    pub local: Histogram,
    /// The same of forwarded names.
    pub forwarded: Histogram,
}

impl Stats {
    pub fn count(&self, ending: Ending) {
        self.endings[ending as usize].fetch_add(1, Relaxed);
    }

    pub fn of(&self, ending: Ending) -> u64 {
        self.endings[ending as usize].load(Relaxed)
    }
}

/// Cumulative when read, plain when written.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS.len() + 1],
    nanoseconds: AtomicU64,
}

impl Histogram {
    /// `count` queries took this long.
    pub fn observe(&self, time: Duration, count: u64) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let bucket = BUCKETS.partition_point(|bound| *bound < micros);
        self.buckets[bucket].fetch_add(count, Relaxed);
        self.nanoseconds.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).saturating_mul(count), Relaxed);
    }

    /// How many took at most as long as each bound, and how many there were in all.
    pub fn read(&self) -> ([u64; BUCKETS.len() + 1], Duration) {
        let mut sum = 0;
        let counts = std::array::from_fn(|index| {
            sum += self.buckets[index].load(Relaxed);
            sum
        });
        (counts, Duration::from_nanos(self.nanoseconds.load(Relaxed)))
    }
}
