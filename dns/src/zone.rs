//! The names of one network: an immutable table, exchanged whole for readers and in parts for the writer.
//!
//! A zone is cut into shards. A change copies the shards that it touches, some forty names of ten thousand, and shares the
//! rest, so a change costs what it changes. Readers load one pointer and take no lock.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, LazyLock},
};

use arc_swap::ArcSwap;
use smallvec::SmallVec;

const SHARDS: usize = 256;

/// Whose names they are, such as a service or a task: a number of its own that its caller knows it by.
pub type OwnerId = u64;

/// What one owner says about one of its names. A name that several owners have is answered from all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Of both families. A task has one, and tasks are what there are most of.
    pub addresses: SmallVec<[IpAddr; 1]>,
    /// What `_port._proto.name` finds; `None` for names without services of their own.
    pub services: Option<Arc<Services>>,
}

/// The ports behind a name, and who listens there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Services {
    pub ports: Box<[ServicePort]>,
    /// `None`: the name itself is the target.
    pub hosts: Option<Box<[Host]>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// In lower case, without underscore; empty for a port without a name.
    pub name: Box<str>,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: &'static str,
    /// What clients inside of the network connect to.
    pub port: u16,
}

/// A name inside of the zone with its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    pub name: Arc<str>,
    pub address: IpAddr,
}

impl Record {
    pub fn of(addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let mut addresses: SmallVec<[IpAddr; 1]> = addresses.into_iter().collect();
        addresses.shrink_to_fit();
        Self { addresses, services: None }
    }

    pub fn v4(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.addresses.iter().filter_map(|address| match address {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        })
    }

    pub fn v6(&self) -> impl Iterator<Item = Ipv6Addr> {
        self.addresses.iter().filter_map(|address| match address {
            IpAddr::V6(v6) => Some(*v6),
            IpAddr::V4(_) => None,
        })
    }
}

/// What the owners of one name say, sorted by owner, so that the order in which changes came does not show. Nearly every
/// name has one owner, and there may be a hundred thousand of them.
#[derive(Clone, Debug)]
enum Owned<T> {
    One((OwnerId, T)),
    Many(Arc<Vec<(OwnerId, T)>>),
}

impl<T: Clone> Owned<T> {
    fn as_slice(&self) -> &[(OwnerId, T)] {
        match self {
            Self::One(only) => std::slice::from_ref(only),
            Self::Many(all) => all,
        }
    }

    fn insert(&mut self, owner: OwnerId, value: T) {
        let mut all = self.as_slice().to_vec();
        match all.binary_search_by_key(&owner, |(id, _)| *id) {
            Ok(at) => all[at].1 = value,
            Err(at) => all.insert(at, (owner, value)),
        }
        *self = Self::of(all);
    }

    /// Says whether anybody's word is left.
    fn remove(&mut self, owner: OwnerId) -> bool {
        let left: Vec<_> = self.as_slice().iter().filter(|(id, _)| *id != owner).cloned().collect();
        if left.is_empty() {
            return false;
        }
        *self = Self::of(left);
        true
    }

    fn of(mut all: Vec<(OwnerId, T)>) -> Self {
        match all.pop() {
            Some(only) if all.is_empty() => Self::One(only),
            last => {
                all.extend(last);
                Self::Many(Arc::new(all))
            }
        }
    }
}

/// Names are kept as clients' are compared: in lower case, without a last dot.
#[derive(Clone, Debug, Default)]
struct Shard {
    names: HashMap<Arc<str>, Owned<Arc<Record>>>,
    addresses: HashMap<IpAddr, Owned<Arc<str>>>,
}

/// One state of a network's names.
#[derive(Clone, Debug)]
pub struct Zone {
    shards: Box<[Arc<Shard>]>,
}

/// Shared by all zones, so that a name's hash is computed once per query.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// A name's place in any zone.
#[derive(Clone, Copy, Debug)]
pub struct NameHash(usize);

impl NameHash {
    pub fn of(name: &str) -> Self {
        Self(HASHER.hash_one(name) as usize % SHARDS)
    }
}

fn shard_of(address: IpAddr) -> usize {
    HASHER.hash_one(address) as usize % SHARDS
}

impl Default for Zone {
    fn default() -> Self {
        let empty = Arc::new(Shard::default());
        Self { shards: vec![empty; SHARDS].into() }
    }
}

impl Zone {
    /// All that is known of `name`, which is in lower case: empty where there is no such name.
    pub fn find(&self, name: &str, hash: NameHash) -> &[(OwnerId, Arc<Record>)] {
        self.shards[hash.0].names.get(name).map_or(&[], Owned::as_slice)
    }

    /// The name that an address has here. Of several owners' names, the first owner's.
    pub fn reverse(&self, address: IpAddr) -> Option<&Arc<str>> {
        self.shards[shard_of(address)].addresses.get(&address)?.as_slice().first().map(|(_, name)| name)
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.names.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.shards.iter().all(|shard| shard.names.is_empty())
    }

    /// Everything, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<Record>)> {
        self.shards
            .iter()
            .flat_map(|shard| &shard.names)
            .flat_map(|(name, records)| records.as_slice().iter().map(move |(_, record)| (&**name, record)))
    }
}

/// What a change does to one owner's names in one zone.
#[derive(Clone, Debug, Default)]
pub struct Change {
    pub owner: OwnerId,
    /// Names that the owner had and may have no more. One that is in `names` too is replaced.
    pub gone: Vec<Arc<str>>,
    pub gone_addresses: Vec<IpAddr>,
    pub names: Vec<(Arc<str>, Arc<Record>)>,
    /// What addresses are called.
    pub addresses: Vec<(IpAddr, Arc<str>)>,
}

/// A network's zone as it is now, shared by everyone who may see it.
#[derive(Debug, Default)]
pub struct ZoneCell(ArcSwap<Zone>);

impl ZoneCell {
    pub fn load(&self) -> arc_swap::Guard<Arc<Zone>> {
        self.0.load()
    }

    /// The state as it is, to be changed and published. For a single writer.
    pub fn draft(&self) -> Zone {
        Zone::clone(&self.0.load())
    }

    pub fn publish(&self, zone: Zone) {
        self.0.store(Arc::new(zone));
    }

    /// Makes one new state of all `changes`. For a single writer.
    pub fn apply(&self, changes: &[Change]) {
        let mut zone = self.draft();
        for change in changes {
            zone.apply(change);
        }
        self.publish(zone);
    }
}

impl Zone {
    /// What is shared with published states is copied, once; they stay as they are.
    pub fn apply(&mut self, change: &Change) {
        let owner = change.owner;
        for name in &change.gone {
            let shard = self.shard(NameHash::of(name).0);
            if shard.names.get_mut(name).is_some_and(|records| !records.remove(owner)) {
                shard.names.remove(name);
            }
        }
        for address in &change.gone_addresses {
            let shard = self.shard(shard_of(*address));
            if shard.addresses.get_mut(address).is_some_and(|names| !names.remove(owner)) {
                shard.addresses.remove(address);
            }
        }
        for (name, record) in &change.names {
            insert(&mut self.shard(NameHash::of(name).0).names, name, owner, record);
        }
        for (address, name) in &change.addresses {
            insert(&mut self.shard(shard_of(*address)).addresses, address, owner, name);
        }
    }

    fn shard(&mut self, index: usize) -> &mut Shard {
        Arc::make_mut(&mut self.shards[index])
    }
}

fn insert<K: Clone + Eq + Hash, T: Clone>(table: &mut HashMap<K, Owned<T>>, key: &K, owner: OwnerId, value: &T) {
    match table.get_mut(key) {
        // The same owner's new word is the usual case.
        Some(Owned::One((id, old))) if *id == owner => old.clone_from(value),
        Some(owned) => owned.insert(owner, value.clone()),
        None => drop(table.insert(key.clone(), Owned::One((owner, value.clone())))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(owner: OwnerId, name: &str, host: u8) -> Change {
        let address = IpAddr::from([10, 0, 0, host]);
        Change {
            owner,
            names: vec![(name.into(), Arc::new(Record::of([address])))],
            addresses: vec![(address, name.into())],
            ..Change::default()
        }
    }

    fn addresses(cell: &ZoneCell, name: &str) -> Vec<Ipv4Addr> {
        cell.load().find(name, NameHash::of(name)).iter().flat_map(|(_, record)| record.v4()).collect()
    }

    #[test]
    fn e18_a_name_of_two_owners_stays_until_both_are_gone() {
        let cell = ZoneCell::default();
        let address: IpAddr = [10, 0, 0, 7].into();
        cell.apply(&[change(2, "web", 7), change(1, "web", 7)]);
        assert_eq!(addresses(&cell, "web").len(), 2);
        let gone = |owner| Change { owner, gone: vec!["web".into()], gone_addresses: vec![address], ..Change::default() };
        cell.apply(&[gone(1)]);
        assert_eq!(addresses(&cell, "web"), [Ipv4Addr::new(10, 0, 0, 7)]);
        assert_eq!(cell.load().reverse(address).map(|n| &**n), Some("web"));
        cell.apply(&[gone(2)]);
        assert!(cell.load().is_empty() && cell.load().reverse(address).is_none());
    }

    #[test]
    fn a_reader_keeps_the_state_that_it_has() {
        let cell = ZoneCell::default();
        cell.apply(&[change(1, "web", 1)]);
        let before = cell.load();
        cell.apply(&[change(1, "web", 2)]);
        assert_eq!(before.find("web", NameHash::of("web"))[0].1.addresses[0], Ipv4Addr::new(10, 0, 0, 1));
        assert_eq!(addresses(&cell, "web"), [Ipv4Addr::new(10, 0, 0, 2)]);
    }

    #[test]
    fn an_entry_is_as_small_as_it_can_be() {
        assert_eq!(size_of::<Owned<Arc<Record>>>(), 16);
        assert_eq!(size_of::<Owned<Arc<str>>>(), 24);
        assert_eq!(size_of::<Record>(), 40);
    }

    #[test]
    fn a_change_copies_only_what_it_touches() {
        let cell = ZoneCell::default();
        let all: Vec<Change> = (0..2000).map(|n| change(n, &format!("name{n}"), 1)).collect();
        cell.apply(&all);
        let before = Zone::clone(&cell.load());
        cell.apply(&[change(7, "name7", 2)]);
        let after = cell.load();
        let copied = before.shards.iter().zip(&after.shards).filter(|(a, b)| !Arc::ptr_eq(a, b)).count();
        assert!(copied <= 2, "{copied}");
    }
}
