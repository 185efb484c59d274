//! Answers that were given before, while they are still true.

use std::{
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use lru::LruCache;

use super::{Upstream, message::Answer};
use crate::wire::Query;

const MOST_ENTRIES: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
const MOST_BYTES: usize = 8 << 20;

/// What makes two queries one: who is asked, for what, and with which wishes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    upstreams: std::sync::Arc<[Upstream]>,
    /// Name, type and class, in lower case.
    question: Box<[u8]>,
    /// EDNS, DO, AD, CD, RD.
    wishes: [bool; 5],
}

impl Key {
    pub(super) fn new(query: &Query<'_>, upstreams: &std::sync::Arc<[Upstream]>) -> Self {
        let question = query.question();
        let (name, tail) = question.split_at(question.len() - 4);
        let mut lower = name.to_ascii_lowercase();
        lower.extend_from_slice(tail);
        let (has_edns, dnssec_ok) = (query.edns.is_some(), query.edns.is_some_and(|e| e.dnssec_ok));
        let wishes = [has_edns, dnssec_ok, query.authentic_data(), query.checking_disabled(), query.recursion_desired()];
        Self { upstreams: std::sync::Arc::clone(upstreams), question: lower.into(), wishes }
    }
}

#[derive(Debug)]
pub(super) struct Cache {
    entries: LruCache<Key, Entry>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    answer: Answer,
    since: Instant,
    lifetime: Duration,
}

impl Cache {
    pub(super) fn new() -> Self {
        Self { entries: LruCache::new(MOST_ENTRIES), bytes: 0 }
    }

    /// The answer and its age.
    pub(super) fn get(&mut self, key: &Key, now: Instant) -> Option<(&Answer, Duration)> {
        let is_over = self.entries.peek(key).is_some_and(|entry| now.saturating_duration_since(entry.since) >= entry.lifetime);
        if is_over {
            self.remove(key);
        }
        let entry = self.entries.get(key)?;
        Some((&entry.answer, now.saturating_duration_since(entry.since)))
    }

    pub(super) fn put(&mut self, key: Key, answer: Answer, now: Instant) {
        let Some(lifetime) = answer.lifetime else { return };
        self.remove(&key);
        self.bytes += answer.weight();
        if let Some((_, old)) = self.entries.push(key, Entry { answer, since: now, lifetime }) {
            self.bytes -= old.answer.weight();
        }
        while self.bytes > MOST_BYTES
            && let Some((_, old)) = self.entries.pop_lru()
        {
            self.bytes -= old.answer.weight();
        }
    }

    /// How many there are, what was counted of them, and what a fresh count says.
    #[cfg(feature = "fuzz")]
    pub(super) fn weight(&self) -> (usize, usize, usize) {
        (self.entries.len(), self.bytes, self.entries.iter().map(|(_, entry)| entry.answer.weight()).sum())
    }

    fn remove(&mut self, key: &Key) {
        if let Some(old) = self.entries.pop(key) {
            self.bytes -= old.answer.weight();
        }
    }
}
