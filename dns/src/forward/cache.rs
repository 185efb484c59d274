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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{HEADER, question};

    /// An answer with `filling` bytes in a TXT record.
    fn answer(asked: &[u8], filling: usize) -> Answer {
        let mut bytes = asked.to_vec();
        (bytes[2], bytes[7]) = (0x80, 1);
        bytes.extend([0xc0, HEADER as u8, 0, 16, 0, 1, 0, 0, 0, 60]);
        bytes.extend((filling as u16).to_be_bytes());
        bytes.resize(bytes.len() + filling, 0);
        Answer::read(bytes, asked).unwrap()
    }

    #[test]
    fn what_is_kept_has_its_bounds_whatever_is_asked_and_answered() {
        let upstreams: std::sync::Arc<[Upstream]> = [].into();
        let now = Instant::now();
        for filling in [10, 30_000] {
            let mut cache = Cache::new();
            for number in 0..10_000 {
                let asked = question(&format!("name{}.example", number % 9_000), 16).unwrap();
                cache.put(Key::new(&Query::parse(&asked).unwrap(), &upstreams), answer(&asked, filling), now);
                assert!(cache.bytes <= MOST_BYTES && cache.entries.len() <= MOST_ENTRIES.get());
            }
            assert_eq!(cache.bytes, cache.entries.iter().map(|(_, entry)| entry.answer.weight()).sum::<usize>());
            assert!(cache.entries.len() > 200, "{}", cache.entries.len());
        }
    }
}
