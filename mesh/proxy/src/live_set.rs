//! Who of a route's endpoints gets a request: by turn, by load, by hash, or because the client has been there before.

use std::{
    collections::HashMap,
    fmt::Write as _,
    hash::{BuildHasher as _, BuildHasherDefault, Hasher, RandomState},
    net::IpAddr,
    ops::Deref,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use arc_swap::ArcSwap;
use aws_lc_rs::digest;
use http::{HeaderMap, HeaderValue};
use smallvec::SmallVec;
use swarmesh_router::model::{Balance, Stickiness, Upstream};

use crate::{cookie, endpoint::Endpoint};

/// The endpoints of a route that forwards, and what must outlive their coming and going: turns and affinities.
///
/// All workers share it. A choice neither allocates nor waits, except that learned cookies are behind short locks.
#[derive(Debug)]
pub struct LiveSet {
    endpoints: ArcSwap<Endpoints>,
    stickiness: Option<Stickiness>,
    balance: Balance,
    /// Apart from what is only read.
    turns: Box<Turns>,
    learned: Option<Box<Learned>>,
}

/// An endpoint, and how many turns it has among the others. Without any it gets nothing.
#[derive(Clone, Debug)]
pub struct WeightedEndpoint {
    pub endpoint: Arc<Endpoint>,
    pub weight: u16,
}

/// Who asks, as far as a choice may depend on it.
#[derive(Clone, Copy, Debug)]
pub struct Asking<'a> {
    pub client: IpAddr,
    pub headers: &'a HeaderMap,
    /// The request came in TLS, so that a cookie may stay in it.
    pub tls: bool,
    pub tls_session: Option<&'a [u8]>,
}

#[derive(Debug)]
pub struct Choice {
    pub endpoint: Arc<Endpoint>,
    /// A `Set-Cookie` to append to the answer, which no shared cache may then keep.
    pub set_cookie: Option<HeaderValue>,
}

/// A set's endpoints at one time.
#[derive(Debug)]
pub struct Endpoints {
    /// Those that have turns. Most have one, which is found without another step into memory.
    slots: SmallVec<[Slot; 1]>,
    given: Vec<WeightedEndpoint>,
    cycle: Cycle,
    /// All weights are the same.
    even: bool,
    /// Slots by their endpoints' ids.
    by_id: Vec<(u64, u32)>,
    /// Slots by what stands for them in cookies. The same task at two ports is twice in it.
    by_token: Vec<(u64, u32)>,
}

#[derive(Debug)]
struct Slot {
    endpoint: Arc<Endpoint>,
    /// Divided by what all weights have in common.
    weight: u64,
    /// Where its part of the cycle ends.
    end: u64,
    /// The same on all nodes, whatever the address.
    seed: u64,
    token: u64,
    cookies: Option<Box<Cookies>>,
}

/// Made once, since headers are cheap to clone only after that.
#[derive(Debug)]
struct Cookies {
    plain: HeaderValue,
    tls: HeaderValue,
}

/// As many turns as all weights together, in an order that spreads each one's turns.
///
/// The turns are points on a ring. Each one owns as many as its weight, next to each other, and a step of about the golden
/// section goes around: it comes to every point once before it comes back, and two near turns are never near on the ring.
#[derive(Clone, Copy, Debug)]
struct Cycle {
    length: u64,
    step: u64,
}

/// Alone in its cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Turns {
    next: AtomicU64,
    /// Of requests whose turn came to an endpoint that could not take them.
    detours: AtomicU64,
}

impl LiveSet {
    pub fn new(balance: Balance, stickiness: Option<Stickiness>, endpoints: Vec<WeightedEndpoint>) -> Self {
        let learned = matches!(stickiness, Some(Stickiness::LearnCookie(_))).then(|| Box::new(Learned::new(LEARNED)));
        let endpoints = ArcSwap::from_pointee(Endpoints::new(endpoints, stickiness.as_ref()));
        Self { endpoints, stickiness, balance, turns: Box::default(), learned }
    }

    /// Reads of what a choice needs.
    pub(crate) fn fetch(&self) -> u64 {
        self.endpoints.load().slots.first().map_or(0, |slot| slot.weight)
    }

    pub fn balance(&self) -> Balance {
        self.balance
    }

    pub fn stickiness(&self) -> Option<&Stickiness> {
        self.stickiness.as_ref()
    }

    /// Others from now on. Choices under way still see those from before.
    pub fn update(&self, endpoints: Vec<WeightedEndpoint>) {
        self.endpoints.store(Arc::new(Endpoints::new(endpoints, self.stickiness.as_ref())));
    }

    pub fn endpoints(&self) -> Arc<Endpoints> {
        self.endpoints.load_full()
    }

    /// Who gets this request; `None` if all that have turns were tried. Those that are out get it only if all others are, too.
    pub fn choose(&self, asking: &Asking<'_>, tried: &[u64], now: Instant) -> Option<Choice> {
        let mut endpoints = self.endpoints.load();
        // Drawn once: two draws for each request would pass over every other turn.
        let mut turn = None;
        loop {
            let mut pick = |may: &dyn Fn(&Slot) -> bool| {
                let may = |slot: &Slot| !tried.contains(&slot.endpoint.id) && may(slot);
                self.affinity(&endpoints, asking, &may).or_else(|| self.balanced(&endpoints, asking.client, &mut turn, &may))
            };
            // A task that is gone may have left its address to somebody else's.
            let is_there = |slot: &Slot| !slot.endpoint.is_gone();
            let is_well = |slot: &Slot| is_there(slot) && !slot.endpoint.health.is_out(now);
            if let Some(slot) = pick(&is_well).or_else(|| pick(&is_there)) {
                return Some(Choice { endpoint: Arc::clone(&slot.endpoint), set_cookie: self.set_cookie(slot, asking) });
            }
            // They may all have gone since they were read, and others are here.
            let newer = self.endpoints.load();
            if !Arc::ptr_eq(&newer, &endpoints) {
                endpoints = newer;
                continue;
            }
            // Or the route itself has gone since it was found, and its endpoints with it: this request is the last that they get.
            let slot = pick(&|slot| slot.endpoint.has_just_gone(now))?;
            return Some(Choice { endpoint: Arc::clone(&slot.endpoint), set_cookie: self.set_cookie(slot, asking) });
        }
    }

    /// Remembers who set the cookie that clients are to come back with.
    pub fn answered(&self, by: &Endpoint, headers: &HeaderMap) {
        if let (Some(Stickiness::LearnCookie(name)), Some(learned)) = (&self.stickiness, &self.learned) {
            for value in cookie::set(headers, name) {
                learned.learn(value, by.id);
            }
        }
    }

    fn balanced<'e>(
        &self,
        endpoints: &'e Endpoints,
        client: IpAddr,
        turn: &mut Option<u64>,
        may: &impl Fn(&Slot) -> bool,
    ) -> Option<&'e Slot> {
        if let [only] = &endpoints.slots[..] {
            return Some(only).filter(|slot| may(slot));
        }
        let mut turn = || *turn.get_or_insert_with(|| self.turns.next.fetch_add(1, Ordering::Relaxed));
        match self.balance {
            Balance::RoundRobin => endpoints.by_turn(turn(), &self.turns.detours, may),
            Balance::Random => endpoints.at_random(mix(turn()), may),
            Balance::LeastConnections => endpoints.least_busy(turn, may),
            Balance::IpHash => endpoints.by_hash(client_key(client, 3), may),
            Balance::SourceHash => endpoints.by_hash(client_key(client, 4), may),
        }
    }

    fn affinity<'e>(&self, endpoints: &'e Endpoints, asking: &Asking<'_>, may: &impl Fn(&Slot) -> bool) -> Option<&'e Slot> {
        match self.stickiness.as_ref()? {
            Stickiness::InsertCookie(name) => cookie::shown(asking.headers, name)
                .filter_map(parse_token)
                .find_map(|token| endpoints.found(&endpoints.by_token, token).find(|slot| may(slot))),
            Stickiness::HashCookie(name) => endpoints.by_hash(key(cookie::shown(asking.headers, name).next()?), may),
            Stickiness::LearnCookie(name) => cookie::shown(asking.headers, name)
                .filter_map(|value| self.learned.as_ref()?.who(value))
                .find_map(|id| endpoints.found(&endpoints.by_id, id).find(|slot| may(slot))),
            Stickiness::TlsSession => endpoints.by_hash(key(asking.tls_session.filter(|id| !id.is_empty())?), may),
        }
    }

    fn set_cookie(&self, slot: &Slot, asking: &Asking<'_>) -> Option<HeaderValue> {
        let Some(Stickiness::InsertCookie(name)) = &self.stickiness else { return None };
        let cookies = slot.cookies.as_ref()?;
        let has_it = cookie::shown(asking.headers, name).any(|value| parse_token(value) == Some(slot.token));
        (!has_it).then(|| if asking.tls { cookies.tls.clone() } else { cookies.plain.clone() })
    }
}

impl Deref for Endpoints {
    type Target = [WeightedEndpoint];

    fn deref(&self) -> &Self::Target {
        &self.given
    }
}

impl Endpoints {
    fn new(given: Vec<WeightedEndpoint>, stickiness: Option<&Stickiness>) -> Self {
        let weights = || given.iter().map(|e| u64::from(e.weight)).filter(|w| *w > 0);
        let common = weights().fold(0, gcd).max(1);
        let even = weights().all(|w| w == common);
        let mut end = 0;
        let slots: SmallVec<[Slot; 1]> = given
            .iter()
            .filter(|e| e.weight > 0)
            .map(|e| {
                let weight = u64::from(e.weight) / common;
                end += weight;
                let (token, seed) = identity(&e.endpoint.upstream);
                let cookies = match stickiness {
                    Some(Stickiness::InsertCookie(name)) => Cookies::new(name, token),
                    _ => None,
                };
                Slot { endpoint: Arc::clone(&e.endpoint), weight, end, seed, token, cookies }
            })
            .collect();
        let index = |of: fn(&Slot) -> u64| {
            let mut index: Vec<(u64, u32)> = slots.iter().zip(0..).map(|(slot, i)| (of(slot), i)).collect();
            index.sort_unstable();
            index
        };
        let (by_id, by_token) = (index(|s| s.endpoint.id), index(|s| s.token));
        Self { given, cycle: Cycle::new(end), even, by_id, by_token, slots }
    }

    fn found(&self, index: &[(u64, u32)], what: u64) -> impl Iterator<Item = &Slot> {
        let from = index.partition_point(|(it, _)| *it < what);
        let found = index.get(from..).unwrap_or_default().iter().take_while(move |(it, _)| *it == what);
        found.filter_map(|(_, slot)| self.slots.get(*slot as usize))
    }

    /// The one that owns a point of the cycle.
    fn at(&self, point: u64) -> Option<&Slot> {
        let slot = if self.even { usize::try_from(point).ok()? } else { self.slots.partition_point(|slot| slot.end <= point) };
        self.slots.get(slot)
    }

    /// The one that owns a point of what those who may have together.
    fn at_among(&self, mut point: u64, may: impl Fn(&Slot) -> bool) -> Option<&Slot> {
        self.slots.iter().filter(|slot| may(slot)).find(|slot| {
            let is_here = point < slot.weight;
            point = point.wrapping_sub(slot.weight);
            is_here
        })
    }

    fn among(&self, may: impl Fn(&Slot) -> bool) -> u64 {
        self.slots.iter().filter(|slot| may(slot)).map(|slot| slot.weight).sum()
    }

    /// Exact shares over a cycle. The turns of those who cannot take them are dealt out in turns of their own, so that the shares
    /// of the others stay exact among themselves.
    fn by_turn(&self, turn: u64, detours: &AtomicU64, may: &impl Fn(&Slot) -> bool) -> Option<&Slot> {
        if let Some(slot) = self.at(self.cycle.point(turn)).filter(|slot| may(slot)) {
            return Some(slot);
        }
        match self.among(may) {
            0 => None,
            length => self.at_among(Cycle::quick(length).point(detours.fetch_add(1, Ordering::Relaxed)), may),
        }
    }

    fn at_random(&self, random: u64, may: &impl Fn(&Slot) -> bool) -> Option<&Slot> {
        self.at(scale(random, self.cycle.length))
            .filter(|slot| may(slot))
            .or_else(|| self.at_among(scale(mix(random), self.among(may)), may))
    }

    /// The least load for its weight. Several that have it take turns.
    fn least_busy(&self, turn: impl FnOnce() -> u64, may: &impl Fn(&Slot) -> bool) -> Option<&Slot> {
        // Cross-multiplied: a load is below 2^32 and a weight below 2^16.
        let load = |slot: &Slot| u64::from(slot.endpoint.load());
        let mut least: Option<(&Slot, u64)> = None;
        for slot in self.slots.iter().filter(|slot| may(slot)) {
            let load = load(slot);
            if least.is_none_or(|(other, others)| load * other.weight < others * slot.weight) {
                least = Some((slot, load));
            }
        }
        let (first, least) = least?;
        let is_least = |slot: &Slot| may(slot) && load(slot) * first.weight <= least * slot.weight;
        match self.among(is_least) {
            0 => Some(first),
            length => {
                let point = Cycle::quick(length).point(turn());
                // Loads change meanwhile.
                self.at_among(point, is_least).or(Some(first))
            }
        }
    }

    /// Everyone draws a number from the key, and the highest wins. Who comes takes from all what is his, and who goes leaves his
    /// to all; nothing else moves. All nodes draw the same.
    fn by_hash(&self, key: u64, may: &impl Fn(&Slot) -> bool) -> Option<&Slot> {
        let mut slots = self.slots.iter().filter(|slot| may(slot)).map(|slot| (slot, mix(key ^ slot.seed)));
        let (mut best, mut highest) = slots.next()?;
        if self.even {
            for (slot, drawn) in slots {
                if drawn > highest {
                    (best, highest) = (slot, drawn);
                }
            }
        } else {
            let mut least = waiting(highest, best.weight);
            for (slot, drawn) in slots {
                let this = waiting(drawn, slot.weight);
                if this < least {
                    (best, least) = (slot, this);
                }
            }
        }
        Some(best)
    }
}

impl Cookies {
    fn new(name: &str, token: u64) -> Option<Box<Self>> {
        let plain = format!("{name}={token:016x}; Path=/; HttpOnly; SameSite=Lax");
        let tls = format!("{plain}; Secure");
        match (HeaderValue::try_from(plain), HeaderValue::try_from(tls)) {
            (Ok(plain), Ok(tls)) => Some(Box::new(Self { plain, tls })),
            _ => {
                tracing::warn!(name, "no cookie can have this name, so clients are balanced anew each time");
                None
            }
        }
    }
}

impl Cycle {
    /// With the best step of those near the golden section. The steps that go around badly are those that come close to a point
    /// where they were soon, which is what a large quotient says.
    fn new(length: u64) -> Self {
        let golden = scale(GOLDEN, length);
        let mut best = (1, u64::MAX);
        for away in 0..=16 {
            for step in [golden.saturating_sub(away), golden + away] {
                let (common, worst) = euclid(length, step);
                if (1..=length).contains(&step) && common == 1 && worst < best.1 {
                    best = (step, worst);
                }
            }
            if best.1 <= 5 {
                break;
            }
        }
        Self { length, step: best.0 }
    }

    /// With a step that is found at once.
    fn quick(length: u64) -> Self {
        let golden = scale(GOLDEN, length).max(1);
        Self { length, step: (golden..=length).find(|step| gcd(*step, length) == 1).unwrap_or(1) }
    }

    fn point(self, turn: u64) -> u64 {
        // Lengths are sums of 16-bit weights, so the product fits.
        if self.length == 0 { 0 } else { turn % self.length * self.step % self.length }
    }
}

/// What stands for an upstream in cookies, and in hashes. Both are the same on all nodes and after the address changes. A cookie
/// leads to the same task on whatever port a route asks for.
fn identity(upstream: &Upstream) -> (u64, u64) {
    let (kind, name, port) = match upstream {
        Upstream::Task { task, port, .. } => ("task", task.as_str(), port),
        Upstream::Vip { service, port, .. } => ("service", service.as_str(), port),
        Upstream::Published { container, port, .. } => ("container", container.as_str(), port),
        Upstream::Host { name, port } => ("host", name.as_str(), port),
    };
    let mut text = format!("{kind} {name}");
    let token = digest64(&text);
    // Writing to a String does not fail.
    let _ = write!(text, " {port}");
    (token, digest64(&text))
}

fn digest64(text: &str) -> u64 {
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    digest.as_ref().iter().take(8).fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Exactly what [`Cookies`] writes.
fn parse_token(value: &[u8]) -> Option<u64> {
    (value.len() == 16).then_some(())?;
    value.iter().try_fold(0, |token, byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        Some(token << 4 | u64::from(digit))
    })
}

/// The first bytes of an IPv4 address, or all of an IPv6 address.
fn client_key(client: IpAddr, bytes: usize) -> u64 {
    match client.to_canonical() {
        IpAddr::V4(v4) => key(v4.octets().get(..bytes).unwrap_or_default()),
        IpAddr::V6(v6) => key(&v6.octets()),
    }
}

/// FNV-1a, well stirred. It has to be the same on all nodes and in all releases; a client that looks for collisions chooses among
/// tasks that it could have got anyway.
fn key(bytes: &[u8]) -> u64 {
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)))
}

/// SplitMix64's step: neighbours have nothing in common afterwards.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(GOLDEN);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A 64-bit fraction's part of a length.
fn scale(fraction: u64, length: u64) -> u64 {
    // The upper half of the product is below the length.
    ((u128::from(fraction) * u128::from(length)) >> 64) as u64
}

/// When something that happens `weight` times as often would happen first. Falls as `drawn` rises, whatever the weight.
fn waiting(drawn: u64, weight: u64) -> f64 {
    // In (0, 1], in steps that an f64 has.
    let fraction = ((drawn >> 11) + 1) as f64 / (1_u64 << 53) as f64;
    -fraction.ln() / weight as f64
}

fn gcd(a: u64, b: u64) -> u64 {
    euclid(a, b).0
}

/// The greatest common divisor, and the largest quotient on the way to it.
fn euclid(mut a: u64, mut b: u64) -> (u64, u64) {
    let mut largest = 0;
    while b != 0 {
        largest = largest.max(a / b);
        (a, b) = (b, a % b);
    }
    (a, largest)
}

/// The golden section's lesser relative, 0.618…, as a fraction of 2^64.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// How many cookies' values a route remembers.
const LEARNED: usize = 100_000;
const SHARDS: usize = 16;

/// Which endpoint set which value. The values themselves are not kept, only hashes that nobody can foresee. Who was not asked for
/// in a long time is forgotten when there are too many.
struct Learned {
    hasher: RandomState,
    shards: [Mutex<Generations>; SHARDS],
    /// Of one generation in one shard.
    most: usize,
}

/// The young become the old when there are too many of them, and the old are forgotten. Who is asked for is young.
#[derive(Default)]
struct Generations {
    young: HashMap<u64, u64, BuildHasherDefault<AsIs>>,
    old: HashMap<u64, u64, BuildHasherDefault<AsIs>>,
}

/// For keys that are hashes.
#[derive(Default)]
struct AsIs(u64);

impl Learned {
    fn new(most: usize) -> Self {
        Self { hasher: RandomState::new(), shards: Default::default(), most: (most / SHARDS / 2).max(1) }
    }

    fn learn(&self, value: &[u8], endpoint: u64) {
        self.with(value, |generations, hash| {
            generations.old.remove(&hash);
            generations.add(hash, endpoint, self.most);
        });
    }

    fn who(&self, value: &[u8]) -> Option<u64> {
        self.with(value, |generations, hash| {
            if let Some(endpoint) = generations.young.get(&hash) {
                return Some(*endpoint);
            }
            let endpoint = generations.old.remove(&hash)?;
            generations.add(hash, endpoint, self.most);
            Some(endpoint)
        })
    }

    fn with<T>(&self, value: &[u8], act: impl FnOnce(&mut Generations, u64) -> T) -> T {
        let hash = self.hasher.hash_one(value);
        // The maps go by the other bits.
        let shard = &self.shards[(hash >> 32) as usize % SHARDS];
        act(&mut shard.lock().unwrap_or_else(PoisonError::into_inner), hash)
    }
}

impl Generations {
    fn add(&mut self, hash: u64, endpoint: u64, most: usize) {
        if self.young.len() >= most && !self.young.contains_key(&hash) {
            // The old one's memory serves again.
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
        self.young.insert(hash, endpoint);
    }
}

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, byte| hash.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

impl std::fmt::Debug for Learned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Learned").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
