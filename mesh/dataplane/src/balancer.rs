//! Frontends, classes and slots: how one address family of one namespace is balanced.
//!
//! A new connection is looked up three times, whatever the table holds:
//!
//! 1. `front`: VIP (or protocol and published port) to a *class*, a number;
//! 2. `classes`: class to the chain that knows how to pick: scheduler, affinity, number of slots;
//! 3. `slot`: frontend and slot number to the backend's address.
//!
//! Chains exist per class, not per service. A class also has a *lane*: nftables counts round-robin turns per rule, so
//! services that share a rule take turns together, and two that a client calls alternately would each show it one backend
//! only. Up to [`LANES`] services with the same number of slots have a counter of their own.
//!
//! The class is looked up as data and not as a verdict, because the kernel walks every element of a verdict map to check
//! for loops whenever one changes (nf_tables_api.c, nft_chain_validate); `classes` stays small.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use serde::Serialize;
use swarmesh_kernel::{DynsetOp, Element, ElementData, Expr, MetaKey, NatFamily, NatKind, NftOp, NumgenKind, PayloadBase, Reg};
use swarmesh_model::Protocol;
use swarmesh_plan::{Policy, PortKey, Scheduler};

use crate::{
    layout::{BalancerSets, REFUSE_CHAIN, REFUSE_CLASS, SETS4, SETS6, TABLE},
    slots::rearrange,
};

/// Services with one number of slots that have a round-robin counter each; more of them share.
const LANES: u16 = 16;
/// Unused chains that are kept for the next service of their kind.
const SPARE_CLASSES: usize = 64;

/// A chain that says it has more slots, with nothing in them, was not ours.
const MOST_PASSING: u32 = 65_536;

/// Numbers are not used again while an agent runs; a larger one that is found was not ours.
const LAST_CLASS: u32 = u32::MAX / 2;

/// Stands in a slot that holds nothing: a packet that draws it goes on behind the balancer.
pub(crate) const PASS: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// What a packet is looked up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Front {
    Vip(IpAddr),
    Port(PortKey),
}

impl Front {
    /// As an element's key.
    pub(crate) fn key(self) -> Vec<u8> {
        match self {
            Self::Vip(address) => octets(address),
            Self::Port(port) => port_key(port).to_vec(),
        }
    }

    pub(crate) fn from_key(key: &[u8]) -> Option<Self> {
        // An address has 4 or 16 bytes, a port 8.
        if key.len() == 8 { port_of(key).map(Self::Port) } else { address_of(key).map(Self::Vip) }
    }
}

/// What a frontend should do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontState {
    pub scheduler: Scheduler,
    pub affinity: Option<Duration>,
    /// Where new connections go; empty refuses them.
    pub targets: Vec<IpAddr>,
}

impl FrontState {
    pub fn new(policy: &Policy, targets: Vec<IpAddr>) -> Self {
        Self { scheduler: policy.scheduler, affinity: policy.affinity, targets }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Pick {
    Incremental,
    Random,
    SourceHash,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Class {
    pick: Pick,
    /// Seconds; 0 is none.
    affinity: u32,
    slots: u32,
    lane: u16,
}

impl Class {
    /// `pick_rr_3_0`, `pick_rr_3_0_sticky600`: told by name, so that a restarted agent knows what it finds.
    fn chain(self, v6: bool) -> String {
        let pick = match self.pick {
            Pick::Incremental => "rr",
            Pick::Random => "random",
            Pick::SourceHash => "sh",
        };
        let family = if v6 { 6 } else { 4 };
        let sticky = if self.affinity > 0 { format!("_sticky{}", self.affinity) } else { String::new() };
        format!("pick{family}_{pick}_{}_{}{sticky}", self.slots, self.lane)
    }

    fn from_chain(chain: &str, v6: bool) -> Option<Self> {
        let rest = chain.strip_prefix(if v6 { "pick6_" } else { "pick4_" })?;
        let mut parts = rest.split('_');
        let pick = match parts.next()? {
            "rr" => Pick::Incremental,
            "random" => Pick::Random,
            "sh" => Pick::SourceHash,
            _ => return None,
        };
        let class = Self {
            pick,
            slots: parts.next()?.parse().ok()?,
            lane: parts.next()?.parse().ok()?,
            affinity: parts.next().map_or(Some(0), |s| s.strip_prefix("sticky")?.parse().ok())?,
        };
        (class.slots > 0).then_some(class)
    }
}

#[derive(Clone, Debug, Default)]
struct Mirrored {
    class: u32,
    sticky: bool,
    slots: Vec<IpAddr>,
}

/// The mirror of one family's balancer sets in one namespace, and the operations that change them.
#[derive(Debug)]
pub struct Balancer {
    v6: bool,
    ports: bool,
    /// Slots may be empty.
    passes: bool,
    sets: BalancerSets,
    fronts: HashMap<Front, Mirrored>,
    classes: BTreeMap<Class, u32>,
    /// Frontends per class number.
    users: HashMap<u32, usize>,
    next_class: u32,
}

impl Balancer {
    /// For a table whose frontends are VIPs of one family.
    pub fn vips(v6: bool) -> Self {
        Self::new(v6, false)
    }

    /// For a table whose frontends are published ports with backends of one family.
    pub fn ports(v6: bool) -> Self {
        Self::new(v6, true)
    }

    /// As [`Self::ports`], for a share of the backends: what draws [`PASS`] goes on to the rules behind.
    pub(crate) fn some_of_ports() -> Self {
        Self { passes: true, ..Self::new(false, true) }
    }

    /// As [`Self::vips`], for a share of the backends.
    pub(crate) fn some_of_vips(v6: bool) -> Self {
        Self { passes: true, ..Self::new(v6, false) }
    }

    fn new(v6: bool, ports: bool) -> Self {
        let sets = if v6 { SETS6 } else { SETS4 };
        Self {
            v6,
            ports,
            passes: false,
            sets,
            fronts: HashMap::new(),
            classes: BTreeMap::new(),
            users: HashMap::new(),
            next_class: REFUSE_CLASS + 1,
        }
    }

    pub fn len(&self) -> usize {
        self.fronts.len()
    }

    pub fn is_empty(&self) -> bool {
        self.fronts.is_empty()
    }

    pub fn fronts(&self) -> impl Iterator<Item = Front> {
        self.fronts.keys().copied()
    }

    /// Where new connections to `front` go, as last committed; `None` when it is not there at all.
    pub fn targets(&self, front: Front) -> Option<&[IpAddr]> {
        self.fronts.get(&front).map(|m| m.slots.as_slice())
    }

    pub(crate) fn dispatch_chain(&self) -> &'static str {
        self.sets.dispatch
    }

    fn dispatch_rule(&self) -> NftOp {
        let mut expressions = self.load_key(0);
        // The class is the value's second word, over something that nft can name.
        expressions.push(Expr::Meta { key: MetaKey::Mark, dreg: Reg(9) });
        expressions.push(Expr::Lookup { set: self.sets.front.set, sreg: Reg(0), dreg: Some(Reg(8)) });
        expressions.push(Expr::LookupVerdict { set: self.sets.classes.set, sreg: Reg(9) });
        NftOp::AddRule {
            family: self.sets.front.family,
            table: TABLE,
            chain: self.sets.dispatch.to_owned(),
            comment: "frontend to class, class to the chain that picks".to_owned(),
            expressions,
        }
    }

    /// Makes `front` do as `wanted` says; `None` takes it away. Appends to `ops` what the kernel must do, nothing when
    /// it does so already, and takes it for done: if the commit fails, the mirror must be read again.
    pub fn set(&mut self, front: Front, wanted: Option<&FrontState>, ops: &mut Vec<NftOp>) {
        let Some(wanted) = wanted else {
            self.remove(front, ops);
            return;
        };
        let old = self.fronts.remove(&front);
        let is_new = old.is_none();
        let old = old.unwrap_or_default();
        let slots = rearrange(&old.slots, &wanted.targets);
        let sticky = wanted.affinity.is_some() && !slots.is_empty();

        if sticky == old.sticky {
            self.write_slots(front, sticky, &old.slots, &slots, ops);
        } else {
            self.write_slots(front, old.sticky, &old.slots, &[], ops);
            self.write_slots(front, sticky, &[], &slots, ops);
        }
        self.write_live(front, if old.sticky { &old.slots } else { &[] }, if sticky { &slots } else { &[] }, ops);
        let class = self.class_for(wanted, slots.len(), (!is_new).then_some(old.class), ops);
        if is_new || class != old.class {
            let key = front.key();
            if !is_new {
                ops.push(NftOp::DeleteElement { set: self.sets.front, key: key.clone() });
                self.release(old.class);
            }
            let data = [class.to_ne_bytes(), class.to_ne_bytes()].concat();
            ops.push(NftOp::AddElement { set: self.sets.front, key, data: Some(ElementData::Value(data)) });
            *self.users.entry(class).or_default() += 1;
        }
        self.fronts.insert(front, Mirrored { class, sticky, slots });
    }

    fn remove(&mut self, front: Front, ops: &mut Vec<NftOp>) {
        let Some(old) = self.fronts.remove(&front) else { return };
        ops.push(NftOp::DeleteElement { set: self.sets.front, key: front.key() });
        self.write_slots(front, old.sticky, &old.slots, &[], ops);
        self.write_live(front, if old.sticky { &old.slots } else { &[] }, &[], ops);
        self.release(old.class);
    }

    fn release(&mut self, class: u32) {
        if let Some(users) = self.users.get_mut(&class) {
            *users = users.saturating_sub(1);
        }
    }

    fn write_slots(&self, front: Front, sticky: bool, old: &[IpAddr], new: &[IpAddr], ops: &mut Vec<NftOp>) {
        let set = if sticky { self.sets.sticky } else { self.sets.slot };
        for index in 0..old.len().max(new.len()) {
            let held = |slots: &[IpAddr]| slots.get(index).copied().filter(|a| !(self.passes && *a == PASS));
            let (before, after) = (held(old), held(new));
            if before == after {
                continue;
            }
            if before.is_some() {
                ops.push(NftOp::DeleteElement { set, key: self.slot_key(front, index) });
            }
            if let Some(address) = after {
                let mut data = if sticky { vec![0; 4] } else { Vec::new() };
                data.extend(octets(address));
                ops.push(NftOp::AddElement { set, key: self.slot_key(front, index), data: Some(ElementData::Value(data)) });
            }
        }
    }

    fn write_live(&self, front: Front, old: &[IpAddr], new: &[IpAddr], ops: &mut Vec<NftOp>) {
        // An address may stand in several slots, and is live once.
        let (before, after): (BTreeSet<_>, BTreeSet<_>) = (old.iter().collect(), new.iter().collect());
        for gone in before.difference(&after) {
            ops.push(NftOp::DeleteElement { set: self.sets.live, key: self.live_key(front, **gone) });
        }
        for come in after.difference(&before) {
            ops.push(NftOp::AddElement { set: self.sets.live, key: self.live_key(front, **come), data: None });
        }
    }

    /// The class of a frontend: its present one if that still fits, else the lane with the fewest users, made on demand.
    fn class_for(&mut self, wanted: &FrontState, slots: usize, present: Option<u32>, ops: &mut Vec<NftOp>) -> u32 {
        if slots == 0 {
            return REFUSE_CLASS;
        }
        let pick = match wanted.scheduler {
            Scheduler::Random => Pick::Random,
            Scheduler::SourceHash => Pick::SourceHash,
            // What this plane cannot do is said in `status`, and round robin stands in for it.
            Scheduler::RoundRobin
            | Scheduler::WeightedRoundRobin
            | Scheduler::LeastConnections
            | Scheduler::WeightedLeastConnections
            | Scheduler::Maglev => Pick::Incremental,
        };
        let affinity = wanted.affinity.map_or(0, |t| u32::try_from(t.as_secs()).unwrap_or(u32::MAX));
        let first = Class { pick, affinity, slots: u32::try_from(slots).unwrap_or(u32::MAX), lane: 0 };
        // Only round robin has a counter that is worth having alone.
        let lanes = if pick == Pick::Incremental && slots > 1 { LANES } else { 1 };
        let last = Class { lane: lanes - 1, ..first };
        if let Some(present) = present
            && self.classes.range(first..=last).any(|(_, number)| *number == present)
        {
            return present;
        }
        let idle = |number: &u32| self.users.get(number).copied().unwrap_or(0);
        let in_use = self.classes.range(first..=last).map(|(class, number)| (idle(number), *number, class.lane));
        let best = in_use.min();
        let free_lane = (0..lanes).find(|lane| !self.classes.contains_key(&Class { lane: *lane, ..first }));
        match (best, free_lane) {
            (Some((users, number, _)), free) if users == 0 || free.is_none() => number,
            (_, Some(lane)) => self.add_class(Class { lane, ..first }, ops),
            // Unreachable: with no free lane there is a used one.
            (_, None) => REFUSE_CLASS,
        }
    }

    fn add_class(&mut self, class: Class, ops: &mut Vec<NftOp>) -> u32 {
        let number = self.next_class;
        self.next_class += 1;
        let chain = class.chain(self.v6);
        ops.push(NftOp::AddChain { family: self.sets.front.family, table: TABLE, chain: chain.clone() });
        self.add_rules(class, ops);
        let key = number.to_ne_bytes().to_vec();
        ops.push(NftOp::AddElement { set: self.sets.classes, key, data: Some(ElementData::Goto(chain)) });
        self.classes.insert(class, number);
        number
    }

    fn add_rules(&self, class: Class, ops: &mut Vec<NftOp>) {
        for (comment, expressions) in self.pick_rules(class) {
            let (chain, comment) = (class.chain(self.v6), comment.to_owned());
            ops.push(NftOp::AddRule { family: self.sets.front.family, table: TABLE, chain, comment, expressions });
        }
    }

    /// Removes chains that nobody has used for a while. Not on the update path: a count that goes 3, 2, 3 would make and
    /// unmake them each time.
    pub fn tidy(&mut self, ops: &mut Vec<NftOp>) {
        let unused: Vec<(Class, u32)> =
            self.classes.iter().filter(|(_, n)| self.users.get(n).copied().unwrap_or(0) == 0).map(|(c, n)| (*c, *n)).collect();
        if unused.len() <= SPARE_CLASSES {
            return;
        }
        for (class, number) in unused {
            ops.push(NftOp::DeleteElement { set: self.sets.classes, key: number.to_ne_bytes().to_vec() });
            ops.push(NftOp::DeleteChain { family: self.sets.front.family, table: TABLE, chain: class.chain(self.v6) });
            self.classes.remove(&class);
            self.users.remove(&number);
        }
    }

    fn pick_rules(&self, class: Class) -> Vec<(&'static str, Vec<Expr>)> {
        let (key, words) = (self.key_words(), self.address_words());
        let slot = Reg(key);
        let mut pick = self.load_key(0);
        match class.pick {
            Pick::Incremental => pick.push(Expr::Numgen { dreg: slot, modulus: class.slots, offset: 0, kind: NumgenKind::Incremental }),
            Pick::Random => pick.push(Expr::Numgen { dreg: slot, modulus: class.slots, offset: 0, kind: NumgenKind::Random }),
            Pick::SourceHash => {
                let client = Reg(12);
                pick.push(self.load_client(client));
                pick.push(Expr::Jhash { sreg: client, dreg: slot, len: words * 4, modulus: class.slots, seed: 0x5357_4d48, offset: 0 });
            }
        }
        if class.affinity == 0 {
            let backend = Reg(8);
            pick.push(Expr::Lookup { set: self.sets.slot.set, sreg: Reg(0), dreg: Some(backend) });
            pick.push(self.dnat(backend));
            return vec![("pick a slot", pick)];
        }

        let timeout = Some(Duration::from_secs(class.affinity.into()));
        let affinity = self.sets.affinity.set;
        // The value's backend lands where the client's address was: behind the key, which makes a key of `live`. Its first
        // word spoils the key's last, so the key is loaded again.
        let (remembered, value) = (Reg(key), Reg(key - 1));
        let again = Reg(16 - key - words);
        let mut stay = self.load_key(0);
        stay.push(self.load_client(Reg(key)));
        stay.push(Expr::Lookup { set: affinity, sreg: Reg(0), dreg: Some(value) });
        stay.extend(self.load_key(0));
        stay.push(Expr::Lookup { set: self.sets.live.set, sreg: Reg(0), dreg: None });
        stay.extend(self.load_key(again.0));
        stay.push(self.load_client(Reg(again.0 + key)));
        stay.push(Expr::Meta { key: MetaKey::Mark, dreg: value });
        stay.push(Expr::Dynset { op: DynsetOp::Update, set: affinity, key: again, data: Some(value), timeout });
        stay.push(self.dnat(remembered));

        let mut forget = self.load_key(0);
        forget.push(self.load_client(Reg(key)));
        // The kernel wants a data register for any operation on a map, even one that has no use for it (nft_dynset_init):
        // as long as the map's value.
        forget.push(Expr::Meta { key: MetaKey::Mark, dreg: Reg(8) });
        forget.push(self.load_client(Reg(9)));
        forget.push(Expr::Dynset { op: DynsetOp::Delete, set: affinity, key: Reg(0), data: Some(Reg(8)), timeout: None });

        let (value, backend) = (Reg(8), Reg(9));
        pick.push(self.load_client(backend));
        pick.push(Expr::Lookup { set: self.sets.sticky.set, sreg: Reg(0), dreg: Some(value) });
        let mut remember = pick.clone();
        remember.push(Expr::Meta { key: MetaKey::Mark, dreg: value });
        remember.extend(self.load_key(0));
        remember.push(self.load_client(Reg(key)));
        remember.push(Expr::Dynset { op: DynsetOp::Add, set: affinity, key: Reg(0), data: Some(value), timeout });
        remember.push(self.dnat(backend));
        // A client that there is no room to remember is balanced all the same: the map's limit must not refuse it.
        pick.push(self.dnat(backend));
        vec![
            ("stay with the remembered backend while it lives", stay),
            ("forget it otherwise", forget),
            ("pick a slot and remember it", remember),
            ("pick a slot when there is no room to remember", pick),
        ]
    }

    fn dnat(&self, address: Reg) -> Expr {
        let family = if self.v6 { NatFamily::V6 } else { NatFamily::V4 };
        Expr::Nat { kind: NatKind::Dnat, family, address: Some(address), port: None }
    }

    /// Loads the frontend's key into the registers from `at` on.
    fn load_key(&self, at: u32) -> Vec<Expr> {
        match (self.ports, self.v6) {
            (true, _) => vec![
                Expr::Meta { key: MetaKey::L4Proto, dreg: Reg(at) },
                Expr::Payload { base: PayloadBase::Transport, offset: 2, len: 2, dreg: Reg(at + 1) },
            ],
            (false, false) => vec![Expr::Payload { base: PayloadBase::Network, offset: 16, len: 4, dreg: Reg(at) }],
            (false, true) => vec![Expr::Payload { base: PayloadBase::Network, offset: 24, len: 16, dreg: Reg(at) }],
        }
    }

    fn load_client(&self, dreg: Reg) -> Expr {
        let (offset, len) = if self.v6 { (8, 16) } else { (12, 4) };
        Expr::Payload { base: PayloadBase::Network, offset, len, dreg }
    }

    /// 32-bit words of an address.
    const fn address_words(&self) -> u32 {
        if self.v6 { 4 } else { 1 }
    }

    /// 32-bit words of a frontend's key.
    const fn key_words(&self) -> u32 {
        if self.ports { 2 } else { self.address_words() }
    }

    fn slot_key(&self, front: Front, index: usize) -> Vec<u8> {
        let mut key = front.key();
        key.extend(u32::try_from(index).unwrap_or(u32::MAX).to_ne_bytes());
        key
    }

    fn live_key(&self, front: Front, backend: IpAddr) -> Vec<u8> {
        let mut key = front.key();
        key.extend(octets(backend));
        key
    }

    fn front_of(&self, key: &[u8]) -> Option<Front> {
        if self.ports { port_of(key).map(Front::Port) } else { address_of(key).map(Front::Vip) }
    }

    /// Takes over what a table holds. Returns operations that remove what makes no sense and add the rules that are missing.
    pub(crate) fn adopt(&mut self, held: &Held) -> Vec<NftOp> {
        let mut ops = Vec::new();
        *self = Self { passes: self.passes, ..Self::new(self.v6, self.ports) };
        if held.empty_chains.contains(self.sets.dispatch) {
            ops.push(self.dispatch_rule());
        }
        let slots_of_class = self.adopt_classes(held, &mut ops);
        let mut found: HashMap<(Front, bool), BTreeMap<u32, IpAddr>> = HashMap::new();
        let all = held.slot.iter().map(|e| (e, false)).chain(held.sticky.iter().map(|e| (e, true)));
        for (element, sticky) in all {
            let split = element.key.len().saturating_sub(4);
            let index = element.key.get(split..).and_then(|b| <[u8; 4]>::try_from(b).ok()).map(u32::from_ne_bytes);
            let front = element.key.get(..split).and_then(|k| self.front_of(k));
            if let (Some(index), Some(front), Some(ElementData::Value(data))) = (index, front, &element.data)
                && let Some(address) = data.get(if sticky { 4 } else { 0 }..).and_then(address_of)
            {
                found.entry((front, sticky)).or_default().insert(index, address);
            } else {
                let set = if sticky { self.sets.sticky } else { self.sets.slot };
                ops.push(NftOp::DeleteElement { set, key: element.key.clone() });
            }
        }
        let live: HashSet<&[u8]> = held.live.iter().map(|e| e.key.as_slice()).collect();
        let mut believed: HashSet<Vec<u8>> = HashSet::new();
        for element in &held.front {
            let front = self.front_of(&element.key);
            let class = match &element.data {
                Some(ElementData::Value(data)) => data.get(4..).and_then(|b| <[u8; 4]>::try_from(b).ok()).map(u32::from_ne_bytes),
                _ => None,
            };
            let (Some(front), Some(class)) = (front, class) else {
                ops.push(NftOp::DeleteElement { set: self.sets.front, key: element.key.clone() });
                continue;
            };
            let shape = slots_of_class.get(&class);
            let sticky = shape.is_some_and(|c| c.affinity > 0);
            let mut slots = found.remove(&(front, sticky)).unwrap_or_default();
            if let Some(class) = shape.filter(|c| self.passes && !sticky && c.slots <= MOST_PASSING) {
                (0..class.slots).for_each(|index| _ = slots.entry(index).or_insert(PASS));
            }
            let addresses: Vec<IpAddr> = slots.values().copied().collect();
            let keys: Vec<Vec<u8>> = if sticky { addresses.iter().map(|a| self.live_key(front, *a)).collect() } else { Vec::new() };
            let whole = addresses.len() == shape.map_or(0, |c| c.slots as usize)
                && slots.keys().copied().eq(0..u32::try_from(slots.len()).unwrap_or(u32::MAX))
                && (class == REFUSE_CLASS || shape.is_some())
                && keys.iter().all(|k| live.contains(k.as_slice()));
            if whole {
                believed.extend(keys);
                *self.users.entry(class).or_default() += 1;
                self.fronts.insert(front, Mirrored { class, sticky, slots: addresses });
            } else {
                ops.push(NftOp::DeleteElement { set: self.sets.front, key: element.key.clone() });
                found.insert((front, sticky), slots);
            }
        }
        for ((front, sticky), slots) in found {
            let set = if sticky { self.sets.sticky } else { self.sets.slot };
            for (index, _) in slots.iter().filter(|(_, address)| !(self.passes && **address == PASS)) {
                ops.push(NftOp::DeleteElement { set, key: self.slot_key(front, *index as usize) });
            }
        }
        for element in held.live.iter().filter(|e| !believed.contains(&e.key)) {
            ops.push(NftOp::DeleteElement { set: self.sets.live, key: element.key.clone() });
        }
        ops
    }

    /// The classes as held, by number; those that make no sense go, and so do chains that no class leads to.
    fn adopt_classes(&mut self, held: &Held, ops: &mut Vec<NftOp>) -> HashMap<u32, Class> {
        let mut by_number = HashMap::new();
        let mut led_to = HashSet::new();
        let mut refuses = false;
        for element in &held.classes {
            let number = <[u8; 4]>::try_from(element.key.as_slice()).map(u32::from_ne_bytes).unwrap_or(u32::MAX);
            let Some(ElementData::Goto(chain)) = &element.data else { continue };
            if number == REFUSE_CLASS && chain == REFUSE_CHAIN {
                refuses = true;
                continue;
            }
            match Class::from_chain(chain, self.v6).filter(|class| number <= LAST_CLASS && !self.classes.contains_key(class)) {
                Some(class) if number != REFUSE_CLASS => {
                    if held.empty_chains.contains(chain) {
                        self.add_rules(class, ops);
                    }
                    self.next_class = self.next_class.max(number + 1);
                    self.classes.insert(class, number);
                    by_number.insert(number, class);
                    led_to.insert(chain.as_str());
                }
                _ => ops.push(NftOp::DeleteElement { set: self.sets.classes, key: element.key.clone() }),
            }
        }
        if !refuses {
            let data = Some(ElementData::Goto(REFUSE_CHAIN.to_owned()));
            ops.push(NftOp::AddElement { set: self.sets.classes, key: REFUSE_CLASS.to_ne_bytes().to_vec(), data });
        }
        for chain in held.chains.iter().filter(|c| Class::from_chain(c, self.v6).is_some() && !led_to.contains(c.as_str())) {
            ops.push(NftOp::DeleteChain { family: self.sets.front.family, table: TABLE, chain: chain.clone() });
        }
        by_number
    }

    pub(crate) fn sets(&self) -> &BalancerSets {
        &self.sets
    }
}

/// What a table holds, as read from the kernel.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pub(crate) front: Vec<Element>,
    pub(crate) classes: Vec<Element>,
    pub(crate) slot: Vec<Element>,
    pub(crate) sticky: Vec<Element>,
    pub(crate) live: Vec<Element>,
    /// All chains of the table.
    pub(crate) chains: Vec<String>,
    /// Of the chains that this balancer has, those without rules.
    pub(crate) empty_chains: HashSet<String>,
}

pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// `inet_proto . inet_service`: each part padded to a register.
pub(crate) fn port_key((protocol, port): PortKey) -> [u8; 8] {
    let [high, low] = port.to_be_bytes();
    [protocol.number(), 0, 0, 0, high, low, 0, 0]
}

fn port_of(key: &[u8]) -> Option<PortKey> {
    match key {
        [protocol, 0, 0, 0, high, low, 0, 0] => Some((Protocol::from_number(*protocol)?, u16::from_be_bytes([*high, *low]))),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
