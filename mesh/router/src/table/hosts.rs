//! From a host to the routes that may take it.

use std::{
    cmp::Ordering,
    hash::{BuildHasher, Hasher, RandomState},
    sync::Arc,
};

use hashbrown::HashTable;

use super::trie::Trie;
use crate::model::{HostMatch, Match, PathKind, PathMatch};

/// A DNS name is at most this long.
const LONGEST: usize = 255;

/// From here on, a list of routes is searched by path.
const MANY: usize = 12;

/// A host as it is compared: lower case, without port and final dot. No allocation.
#[derive(Clone, Copy)]
pub(super) struct Host {
    bytes: [u8; LONGEST],
    length: usize,
}

impl Host {
    /// One that is too long is nobody's, like the empty one.
    pub(super) fn new(text: &str) -> Self {
        let text = without_port(text);
        let text = text.strip_suffix('.').unwrap_or(text).as_bytes();
        let mut host = Self { bytes: [0; LONGEST], length: 0 };
        if let Some(place) = host.bytes.get_mut(..text.len()) {
            place.copy_from_slice(text);
            place.make_ascii_lowercase();
            host.length = text.len();
        }
        host
    }

    /// `None` for the empty host, and for what is not UTF-8, which is in no label.
    pub(super) fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(self.as_bytes()).ok().filter(|host| !host.is_empty())
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    fn reversed(&self) -> Self {
        let mut host = *self;
        host.bytes[..self.length].reverse();
        host
    }
}

/// `host:8080` and `[::1]:8080` without the port.
pub(crate) fn without_port(text: &str) -> &str {
    // From the end: hardly any host ends in digits, and few requests name a port.
    let digits = text.bytes().rev().take_while(u8::is_ascii_digit).count();
    match text[..text.len() - digits].strip_suffix(':') {
        Some(host) if !host.contains(':') || host.ends_with(']') => host,
        _ => text,
    }
}

/// Hosts that a table knows. Keys come from labels, questions from clients; the seed keeps the former from being made to collide.
#[derive(Clone, Debug)]
struct HostHash(u64);

impl Default for HostHash {
    fn default() -> Self {
        Self(RandomState::new().build_hasher().finish())
    }
}

impl BuildHasher for HostHash {
    type Hasher = HostHasher;

    fn build_hasher(&self) -> HostHasher {
        HostHasher(self.0)
    }
}

struct HostHasher(u64);

impl HostHasher {
    fn mix(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product as u64) ^ ((product >> 64) as u64);
    }
}

impl Hasher for HostHasher {
    fn write(&mut self, bytes: &[u8]) {
        let mut words = bytes.chunks_exact(8);
        for word in words.by_ref() {
            self.mix(u64::from_le_bytes(word.try_into().unwrap_or_default()));
        }
        let mut last = [0; 8];
        last[..words.remainder().len()].copy_from_slice(words.remainder());
        self.mix(u64::from_le_bytes(last) ^ ((bytes.len() as u64) << 56));
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A route in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// [`Route::packed_rank`](crate::Route::packed_rank): the smaller comes first.
    pub(super) rank: u64,
    pub(super) slot: u32,
    /// It asks for nothing but its host: then it need not be looked into.
    pub(super) by_host_alone: bool,
}

/// Orders what [`Entry::rank`] leaves undecided.
pub(super) trait Order {
    fn compare(&self, a: u32, b: u32) -> Ordering;

    fn is_before(&self, a: Entry, b: Entry) -> bool {
        a.rank < b.rank || a.rank == b.rank && self.compare(a.slot, b.slot).is_lt()
    }
}

/// Routes in order. Copies share them.
#[derive(Clone, Debug)]
pub(super) enum List {
    /// Most hosts have one, and it is found without another step into memory.
    One(Entry),
    Few(Arc<[Entry]>),
    Many(Arc<Many>),
}

/// Those whose paths all begin with known text by that text, and the others.
#[derive(Clone, Debug, Default)]
pub(super) struct Many {
    by_path: Trie<Arc<[Entry]>>,
    others: Arc<[Entry]>,
    length: usize,
}

impl List {
    /// Of entries in order; `None` of none.
    fn of(entries: Vec<Entry>) -> Option<Self> {
        match entries[..] {
            [] => None,
            [only] => Some(Self::One(only)),
            _ => Some(Self::Few(entries.into())),
        }
    }

    fn insert(list: &mut Option<Self>, entry: Entry, matching: &dyn Fn(u32) -> Option<Match>, order: &impl Order) {
        let mut few = match list {
            None => Vec::new(),
            Some(Self::One(only)) => vec![*only],
            Some(Self::Few(few)) => few.to_vec(),
            Some(Self::Many(many)) => {
                let Some(matching) = matching(entry.slot) else { return };
                return Arc::make_mut(many).insert(entry, &matching, order);
            }
        };
        insert(&mut few, entry, order);
        *list = if few.len() < MANY {
            Self::of(few)
        } else {
            let mut many = Many::default();
            for entry in few {
                if let Some(matching) = matching(entry.slot) {
                    many.insert(entry, &matching, order);
                }
            }
            Some(Self::Many(Arc::new(many)))
        };
    }

    fn remove(list: &mut Option<Self>, slot: u32, matching: &Match, order: &impl Order) {
        let left = |list: &[Entry]| list.iter().copied().filter(|e| e.slot != slot).collect::<Vec<_>>();
        let few = match list {
            None => return,
            Some(Self::One(only)) => left(&[*only]),
            Some(Self::Few(few)) => left(few),
            Some(Self::Many(many)) => {
                let many = Arc::make_mut(many);
                many.remove(slot, matching);
                // Far enough below that a route which comes and goes does not turn it over each time.
                if many.length > MANY / 2 {
                    return;
                }
                many.all(order)
            }
        };
        *list = Self::of(few);
    }

    /// The first route before `best` that passes the test.
    fn first(&self, path: &str, best: &mut Option<Entry>, order: &impl Order, test: &mut impl FnMut(Entry) -> bool) {
        let mut search = |list: &[Entry]| {
            for &entry in list {
                if best.is_some_and(|best| !order.is_before(entry, best)) {
                    return;
                }
                if test(entry) {
                    *best = Some(entry);
                    return;
                }
            }
        };
        match self {
            Self::One(entry) => {
                if best.is_none_or(|best| order.is_before(*entry, best)) && test(*entry) {
                    *best = Some(*entry);
                }
            }
            Self::Few(list) => search(list),
            Self::Many(many) => {
                many.by_path.prefixes(path.as_bytes(), |_, list| search(list));
                search(&many.others);
            }
        }
    }
}

impl Many {
    fn insert(&mut self, entry: Entry, matching: &Match, order: &impl Order) {
        self.length += 1;
        let with = |list: &[Entry]| {
            let mut list = list.to_vec();
            insert(&mut list, entry, order);
            Arc::from(list)
        };
        match starts_of(matching) {
            Some(starts) => {
                for start in starts {
                    self.by_path.change(start.as_bytes(), |list| *list = Some(with(list.as_deref().unwrap_or_default())));
                }
            }
            None => self.others = with(&self.others),
        }
    }

    fn remove(&mut self, slot: u32, matching: &Match) {
        self.length -= 1;
        let without = |list: &[Entry]| list.iter().copied().filter(|e| e.slot != slot).collect::<Arc<[Entry]>>();
        match starts_of(matching) {
            Some(starts) => {
                for start in starts {
                    self.by_path.change(start.as_bytes(), |list| {
                        *list = list.as_deref().map(without).filter(|left| !left.is_empty());
                    });
                }
            }
            None => self.others = without(&self.others),
        }
    }

    fn all(&self, order: &impl Order) -> Vec<Entry> {
        let mut all = self.others.to_vec();
        self.by_path.each(|list| list.iter().for_each(|entry| insert(&mut all, *entry, order)));
        all
    }
}

/// Into a list in order, once.
fn insert(list: &mut Vec<Entry>, entry: Entry, order: &impl Order) {
    let place = list.partition_point(|other| order.is_before(*other, entry));
    if list.get(place).is_none_or(|other| other.slot != entry.slot) {
        list.insert(place, entry);
    }
}

/// What all that matches begins with, by path, each once; `None` if that cannot be said of each path, or there are none.
fn starts_of(matching: &Match) -> Option<Vec<&str>> {
    let mut starts = matching.paths.iter().map(start_of).collect::<Option<Vec<_>>>().filter(|starts| !starts.is_empty())?;
    starts.sort_unstable();
    starts.dedup();
    Some(starts)
}

/// What every path that matches begins with; `None` if that cannot be said.
fn start_of(path: &PathMatch) -> Option<&str> {
    match &path.kind {
        PathKind::Exact(text) | PathKind::Prefix(text) if !path.ignore_case => Some(text),
        PathKind::Segments(text) if !path.ignore_case => Some(text.strip_suffix('/').unwrap_or(text)),
        _ => None,
    }
}

/// Hosts that are hashed, in so many parts: a change copies one of them. More parts make a change of a small table dearer.
const SHARDS: usize = 256;

type Shard = HashTable<(Name, List)>;

/// A host in a shard. Most are short, and stand where they are found: with their list they fill a cache line.
#[derive(Clone, Debug)]
enum Name {
    Short { length: u8, bytes: [u8; SHORT] },
    Long(Arc<[u8]>),
}

const SHORT: usize = 38;

impl Name {
    fn new(text: &[u8]) -> Self {
        let mut bytes = [0; SHORT];
        match (bytes.get_mut(..text.len()), u8::try_from(text.len())) {
            (Some(place), Ok(length)) => {
                place.copy_from_slice(text);
                Self::Short { length, bytes }
            }
            _ => Self::Long(text.into()),
        }
    }

    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Short { length, bytes } => &bytes[..usize::from(*length)],
            Self::Long(bytes) => bytes,
        }
    }
}

/// Routes by what they say about the host. Copies share what is not changed.
#[derive(Clone, Debug)]
pub(super) struct HostIndex {
    hash: HostHash,
    exact: Arc<[Arc<Shard>; SHARDS]>,
    /// Backwards. The list for hosts that end so and are longer, and the list for all that end so.
    suffix: Trie<[Option<List>; 2]>,
    prefix: Trie<List>,
    labels: Trie<List>,
    any: Option<List>,
    /// How many entries in the tries have ranks that begin with each five bits.
    inexact: [u32; 32],
    /// The first of them that are not none: nothing in the tries comes before it.
    first_inexact: u64,
}

impl Default for HostIndex {
    fn default() -> Self {
        let empty = Arc::new(Shard::new());
        Self {
            hash: HostHash::default(),
            exact: Arc::new(std::array::from_fn(|_| Arc::clone(&empty))),
            suffix: Trie::default(),
            prefix: Trie::default(),
            labels: Trie::default(),
            any: None,
            inexact: [0; 32],
            first_inexact: u64::MAX,
        }
    }
}

/// The beginning of a rank that [`HostIndex::inexact`] counts by.
const BEGINNING: u32 = u64::BITS - 5;

impl HostIndex {
    fn hash_of(&self, name: &[u8]) -> u64 {
        let mut hasher = self.hash.build_hasher();
        hasher.write(name);
        hasher.finish()
    }

    /// Not the bits that a part finds its own by.
    fn shard_of(hash: u64) -> usize {
        (hash >> 40) as usize % SHARDS
    }

    /// A route comes. `matching` is asked for it and others of its lists.
    pub(super) fn insert(&mut self, entry: Entry, hosts: &[HostMatch], matching: &dyn Fn(u32) -> Option<Match>, order: &impl Order) {
        self.change(entry.rank, hosts, 1, |list| List::insert(list, entry, matching, order));
    }

    /// A route goes, with what it came with.
    pub(super) fn remove(&mut self, entry: Entry, matching: &Match, order: &impl Order) {
        self.change(entry.rank, &matching.hosts, u32::MAX, |list| List::remove(list, entry.slot, matching, order));
    }

    fn change(&mut self, rank: u64, hosts: &[HostMatch], by: u32, mut act: impl FnMut(&mut Option<List>)) {
        if hosts.is_empty() {
            act(&mut self.any);
        }
        for (place, host) in hosts.iter().enumerate() {
            if hosts[..place].contains(host) {
                continue;
            }
            let reversed = |text: &str| text.bytes().rev().collect::<Vec<u8>>();
            let mut at_end = |text: &str, which: usize| {
                self.suffix.change(&reversed(text), |lists| {
                    let mut both = lists.take().unwrap_or_default();
                    act(&mut both[which]);
                    *lists = both.iter().any(Option::is_some).then_some(both);
                });
            };
            match host {
                HostMatch::Exact(text) => {
                    self.change_exact(text, &mut act);
                    continue;
                }
                HostMatch::Suffix(text) => at_end(text, 0),
                HostMatch::SuffixOrWhole(text) => at_end(text, 1),
                HostMatch::Prefix(text) => self.prefix.change(text.as_bytes(), &mut act),
                HostMatch::Labels(text) => self.labels.change(text.as_bytes(), &mut act),
            }
            let count = &mut self.inexact[(rank >> BEGINNING) as usize];
            *count = count.wrapping_add(by);
            let first = self.inexact.iter().position(|count| *count > 0);
            self.first_inexact = first.map_or(u64::MAX, |first| (first as u64) << BEGINNING);
        }
    }

    fn change_exact(&mut self, text: &str, act: &mut impl FnMut(&mut Option<List>)) {
        let hash = self.hash_of(text.as_bytes());
        let state = self.hash.clone();
        let shard = Arc::make_mut(&mut Arc::make_mut(&mut self.exact)[Self::shard_of(hash)]);
        let found = shard.find_entry(hash, |(name, _)| name.as_bytes() == text.as_bytes());
        match found {
            Ok(found) => {
                let ((name, list), place) = found.remove();
                let mut list = Some(list);
                act(&mut list);
                if let Some(list) = list {
                    place.insert((name, list));
                }
            }
            Err(_) => {
                let mut list = None;
                act(&mut list);
                if let Some(list) = list {
                    let hash_of = |(name, _): &(Name, List)| {
                        let mut hasher = state.build_hasher();
                        hasher.write(name.as_bytes());
                        hasher.finish()
                    };
                    shard.insert_unique(hash, (Name::new(text.as_bytes()), list), hash_of);
                }
            }
        }
    }

    /// The first route for this host that passes the test. The test is asked about paths and all else.
    pub(super) fn first(&self, host: &Host, path: &str, order: &impl Order, mut test: impl FnMut(Entry) -> bool) -> Option<u32> {
        let mut best = None;
        let name = host.as_bytes();
        if !name.is_empty() {
            let hash = self.hash_of(name);
            if let Some((_, list)) = self.exact[Self::shard_of(hash)].find(hash, |(known, _)| known.as_bytes() == name) {
                list.first(path, &mut best, order, &mut test);
            }
        }
        let inexact = !name.is_empty() && best.is_none_or(|best| self.first_inexact <= best.rank);
        let mut search = |list: &List| list.first(path, &mut best, order, &mut test);
        if inexact {
            if !self.suffix.is_empty() {
                self.suffix.prefixes(host.reversed().as_bytes(), |length, [longer, all]| {
                    for list in longer.iter().filter(|_| length < name.len()).chain(all) {
                        search(list);
                    }
                });
            }
            if !self.prefix.is_empty() {
                self.prefix.prefixes(name, |_, list| search(list));
            }
            if !self.labels.is_empty() {
                let starts = (0..name.len()).filter(|at| *at == 0 || name[at - 1] == b'.');
                for start in starts {
                    let rest = &name[start..];
                    self.labels.prefixes(rest, |length, list| {
                        if matches!(rest.get(length), None | Some(b'.')) {
                            search(list);
                        }
                    });
                }
            }
        }
        if let Some(list) = &self.any {
            search(list);
        }
        best.map(|best| best.slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_they_were() {
        assert_eq!(size_of::<(Name, List)>(), 64);
        for length in [0, 1, SHORT - 1, SHORT, SHORT + 1, LONGEST] {
            let text = vec![b'a'; length];
            assert_eq!(Name::new(&text).as_bytes(), text);
        }
    }

    #[test]
    fn ports_go_and_addresses_stay() {
        for (text, host) in [
            ("a.example", "a.example"),
            ("a.example:8080", "a.example"),
            ("a.example:", "a.example"),
            ("[::1]:80", "[::1]"),
            ("[::1]", "[::1]"),
            ("::1", "::1"),
            ("a:b", "a:b"),
            ("h2", "h2"),
            ("h2:80", "h2"),
            ("a:80:90", "a:80:90"),
            ("80", "80"),
            (":80", ""),
        ] {
            assert_eq!(without_port(text), host, "{text}");
        }
        assert_eq!(Host::new("Shop.Example.:80").as_bytes(), b"shop.example");
        assert_eq!(Host::new(&"a".repeat(256)).as_bytes(), b"");
        assert_eq!(Host::new(&"a".repeat(255)).as_bytes().len(), 255);
    }
}
