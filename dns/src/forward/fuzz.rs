//! The forwarder's way from an upstream's bytes to a client's, without a network: for `fuzz/`, and for nobody else.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Origin, Upstream,
    cache::{Cache, Key},
    message::{self, Answer},
};
use crate::wire::{Code, Query};

/// What is sent upstream for a client's query.
pub fn question(query: &Query<'_>, id: u16, edns: bool) -> Vec<u8> {
    message::question(query, id, edns)
}

/// An answer that was believed.
#[derive(Clone, Debug)]
pub struct Believed(Answer);

impl Believed {
    pub fn read(bytes: Vec<u8>, sent: &[u8]) -> Option<Self> {
        Answer::read(bytes, sent).map(Self)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    pub fn code(&self) -> Option<Code> {
        self.0.code()
    }

    pub fn lifetime(&self) -> Option<Duration> {
        self.0.lifetime
    }

    pub fn is_positive(&self) -> bool {
        self.0.is_positive()
    }

    pub fn shorten(&mut self, most: u32) {
        self.0.shorten(most);
    }

    pub fn to(&self, query: &Query<'_>, age: Duration) -> Vec<u8> {
        self.0.to(query, age)
    }
}

/// Answers that are kept, all of one upstream.
#[derive(Debug)]
pub struct Kept {
    cache: Cache,
    upstreams: Arc<[Upstream]>,
}

impl Default for Kept {
    fn default() -> Self {
        let server = SocketAddr::from(([127, 0, 0, 1], 53));
        Self { cache: Cache::new(), upstreams: Arc::new([Upstream { server, origin: Origin::Host }]) }
    }
}

impl Kept {
    pub fn put(&mut self, query: &Query<'_>, answer: &Believed, now: Instant) {
        self.cache.put(Key::new(query, &self.upstreams), answer.0.clone(), now);
    }

    pub fn get(&mut self, query: &Query<'_>, now: Instant) -> Option<Vec<u8>> {
        self.cache.get(&Key::new(query, &self.upstreams), now).map(|(answer, age)| answer.to(query, age))
    }

    /// How many there are, what the cache believes that they weigh, and what they do weigh.
    pub fn weight(&self) -> (usize, usize, usize) {
        self.cache.weight()
    }
}
