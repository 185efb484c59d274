//! From a host to the routes that may take it.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hasher, RandomState},
};

use super::trie::Trie;
use crate::model::{HostMatch, Match, PathKind};

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
    match text.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && (!host.contains(':') || host.ends_with(']')) => host,
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

/// Routes, by number; the smaller number comes first.
#[derive(Clone, Debug)]
enum List {
    /// Most hosts have one, and it is found without another step into memory.
    One(u32),
    Few(Box<[u32]>),
    /// Those whose paths all begin with known text by that text, and the others.
    Many {
        by_path: Trie<u32>,
        lists: Vec<Vec<u32>>,
        others: Box<[u32]>,
    },
}

impl List {
    fn new<'m>(routes: Vec<u32>, matching: &impl Fn(u32) -> &'m Match) -> Self {
        if let [only] = routes[..] {
            return Self::One(only);
        }
        if routes.len() < MANY {
            return Self::Few(routes.into());
        }
        let (mut by_path, mut lists, mut others) = (Trie::default(), Vec::<Vec<u32>>::new(), Vec::new());
        for route in routes {
            let matching = matching(route);
            let Some(starts) = matching.paths.iter().map(start_of).collect::<Option<Vec<_>>>().filter(|s| !s.is_empty()) else {
                others.push(route);
                continue;
            };
            for start in starts {
                let list = *by_path.entry(start.as_bytes(), lists.len() as u32) as usize;
                if list == lists.len() {
                    lists.push(Vec::new());
                }
                if lists[list].last() != Some(&route) {
                    lists[list].push(route);
                }
            }
        }
        Self::Many { by_path, lists, others: others.into() }
    }

    /// The first route before `best` that passes the test.
    fn first(&self, path: &str, best: &mut u32, test: &mut impl FnMut(u32) -> bool) {
        let mut search = |list: &[u32]| {
            for &route in list {
                if route >= *best {
                    return;
                }
                if test(route) {
                    *best = route;
                    return;
                }
            }
        };
        match self {
            Self::One(route) => search(&[*route]),
            Self::Few(list) => search(list),
            Self::Many { by_path, lists, others } => {
                by_path.prefixes(path.as_bytes(), |_, list| search(&lists[list as usize]));
                search(others);
            }
        }
    }
}

/// What every path that matches begins with; `None` if that cannot be said.
fn start_of(path: &crate::model::PathMatch) -> Option<&str> {
    match &path.kind {
        PathKind::Exact(text) | PathKind::Prefix(text) if !path.ignore_case => Some(text),
        PathKind::Segments(text) if !path.ignore_case => Some(text.strip_suffix('/').unwrap_or(text)),
        _ => None,
    }
}

/// Routes by what they say about the host.
#[derive(Clone, Debug, Default)]
pub(super) struct HostIndex {
    exact: HashMap<Box<str>, List, HostHash>,
    /// Backwards. The list for hosts that end so and are longer, and the list for all that end so.
    suffix: Trie<[Option<u32>; 2]>,
    prefix: Trie<u32>,
    labels: Trie<u32>,
    any: Option<u32>,
    lists: Vec<List>,
    /// The first route that is for more than one host. Nothing in the tries comes before it.
    first_inexact: u32,
}

impl HostIndex {
    /// `routes` are in order. `matching` is asked for each of them.
    pub(super) fn new<'m>(routes: impl Iterator<Item = u32>, matching: impl Fn(u32) -> &'m Match) -> Self {
        let mut by_host: HashMap<Option<&'m HostMatch>, Vec<u32>> = HashMap::new();
        for route in routes {
            let hosts = &matching(route).hosts;
            if hosts.is_empty() {
                by_host.entry(None).or_default().push(route);
            }
            for host in hosts {
                let list = by_host.entry(Some(host)).or_default();
                if list.last() != Some(&route) {
                    list.push(route);
                }
            }
        }
        let inexact = |host: &Option<&HostMatch>| !matches!(host, None | Some(HostMatch::Exact(_)));
        let first_inexact = by_host.iter().filter(|(host, _)| inexact(host)).filter_map(|(_, routes)| routes.first()).min();
        let mut index = Self { first_inexact: first_inexact.copied().unwrap_or(u32::MAX), ..Self::default() };
        for (host, routes) in by_host {
            let routes = List::new(routes, &matching);
            let list = index.lists.len() as u32;
            if let Some(HostMatch::Exact(text)) = host {
                index.exact.insert(text.as_str().into(), routes);
                continue;
            }
            index.lists.push(routes);
            let reversed = |text: &str| text.bytes().rev().collect::<Vec<u8>>();
            match host {
                None | Some(HostMatch::Exact(_)) => index.any = Some(list),
                Some(HostMatch::Suffix(text)) => index.suffix.entry(&reversed(text), [None; 2])[0] = Some(list),
                Some(HostMatch::SuffixOrWhole(text)) => index.suffix.entry(&reversed(text), [None; 2])[1] = Some(list),
                Some(HostMatch::Prefix(text)) => *index.prefix.entry(text.as_bytes(), list) = list,
                Some(HostMatch::Labels(text)) => *index.labels.entry(text.as_bytes(), list) = list,
            }
        }
        index
    }

    /// The first route for this host that passes the test. The test is asked about paths and all else.
    pub(super) fn first(&self, host: &Host, path: &str, mut test: impl FnMut(u32) -> bool) -> Option<u32> {
        let mut best = u32::MAX;
        let name = host.as_bytes();
        if let Some(list) = host.as_str().and_then(|name| self.exact.get(name)) {
            list.first(path, &mut best, &mut test);
        }
        let inexact = !name.is_empty() && self.first_inexact < best;
        let mut search = |list: u32| self.lists[list as usize].first(path, &mut best, &mut test);
        if inexact {
            if !self.suffix.is_empty() {
                self.suffix.prefixes(host.reversed().as_bytes(), |length, [longer, all]| {
                    for list in longer.filter(|_| length < name.len()).into_iter().chain(all) {
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
        if let Some(list) = self.any {
            search(list);
        }
        (best != u32::MAX).then_some(best)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            (":80", ""),
        ] {
            assert_eq!(without_port(text), host, "{text}");
        }
        assert_eq!(Host::new("Shop.Example.:80").as_bytes(), b"shop.example");
        assert_eq!(Host::new(&"a".repeat(256)).as_bytes(), b"");
        assert_eq!(Host::new(&"a".repeat(255)).as_bytes().len(), 255);
    }
}
