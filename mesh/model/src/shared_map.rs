//! A sorted map whose copies share what they have in common.
//!
//! A swarm's objects are held by the planner, by the names and by whoever looks at the agent, and these hold nearly the same
//! all the time. A copy costs a reference, a change of a copy the few nodes on its way.

use std::{
    borrow::Borrow,
    collections::BTreeMap,
    fmt,
    ops::{Bound, Index},
};

use immutable_chunkmap::map::Map;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Entries of a node: what a change copies. Each node costs some sixty bytes beside its entries.
const NODE: usize = 64;

/// As [`BTreeMap`], with O(1) `clone`.
#[derive(Clone, PartialEq, Eq)]
pub struct SharedMap<K: Ord + Clone, V: Clone>(Map<K, V, NODE>);

impl<K: Ord + Clone, V: Clone> SharedMap<K, V> {
    pub fn new() -> Self {
        Self(Map::new())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.len() == 0
    }

    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.0.get(key)
    }

    pub fn get_key_value<Q: Ord + ?Sized>(&self, key: &Q) -> Option<(&K, &V)>
    where
        K: Borrow<Q>,
    {
        self.0.get_full(key)
    }

    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.0.get(key).is_some()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.0.into_iter()
    }

    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// What comes behind a key, or all.
    pub fn after<'s>(&'s self, key: Option<&'s K>) -> impl Iterator<Item = (&'s K, &'s V)> {
        self.0.range::<K, _>((key.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded))
    }

    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        self.0.get_mut_cow(key)
    }

    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.0.insert_cow(key, value)
    }

    pub fn remove(&mut self, key: &K) -> Option<V> {
        self.0.remove_cow(key)
    }

    /// Brings in new values, and takes out keys that come with none. An empty map is built at once, which fills its nodes.
    pub fn merge(&mut self, changes: &BTreeMap<K, Option<V>>) {
        if self.is_empty() {
            *self = changes.iter().filter_map(|(key, value)| Some((key.clone(), value.clone()?))).collect();
            return;
        }
        for (key, change) in changes {
            match change {
                Some(value) => self.insert(key.clone(), value.clone()),
                None => self.remove(key),
            };
        }
    }

    /// What turns `self` into `new`: changed and new values, and keys that are gone.
    pub fn changes_to(&self, new: &Self) -> BTreeMap<K, Option<V>>
    where
        V: PartialEq,
    {
        let changed = new.iter().filter(|(key, value)| self.get(*key) != Some(value)).map(|(k, v)| (k.clone(), Some(v.clone())));
        let gone = self.keys().filter(|key| !new.contains_key(*key)).map(|key| (key.clone(), None));
        changed.chain(gone).collect()
    }
}

impl<K: Ord + Clone, V: Clone> Default for SharedMap<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Ord + Clone + fmt::Debug, V: Clone + fmt::Debug> fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<Q: Ord + ?Sized, K: Ord + Clone + Borrow<Q>, V: Clone> Index<&Q> for SharedMap<K, V> {
    type Output = V;

    #[expect(clippy::expect_used, reason = "as the standard's maps do: for keys that are known to be there")]
    fn index(&self, key: &Q) -> &V {
        self.get(key).expect("no such key")
    }
}

impl<'a, K: Ord + Clone, V: Clone> IntoIterator for &'a SharedMap<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = <&'a Map<K, V, NODE> as IntoIterator>::IntoIter;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for SharedMap<K, V> {
    fn from_iter<T: IntoIterator<Item = (K, V)>>(entries: T) -> Self {
        Self(entries.into_iter().collect())
    }
}

impl<K: Ord + Clone, V: Clone> Extend<(K, V)> for SharedMap<K, V> {
    fn extend<T: IntoIterator<Item = (K, V)>>(&mut self, entries: T) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }
}

impl<K: Ord + Clone + Serialize, V: Clone + Serialize> Serialize for SharedMap<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de, K: Ord + Clone + Deserialize<'de>, V: Clone + Deserialize<'de>> Deserialize<'de> for SharedMap<K, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(BTreeMap::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_copy_stays_as_it_was() {
        let mut map: SharedMap<u32, u32> = (0..1000).map(|n| (n, n)).collect();
        let copy = map.clone();
        assert_eq!(map.insert(7, 0), Some(7));
        assert_eq!(map.remove(&8), Some(8));
        assert_eq!((copy.get(&7), copy.get(&8), copy.len()), (Some(&7), Some(&8), 1000));
        assert_eq!((map.get(&7), map.get(&8), map.len()), (Some(&0), None, 999));
        assert_ne!(map, copy);
    }

    proptest! {
        #[test]
        fn does_what_a_tree_does(steps in proptest::collection::vec((0u16..300, proptest::option::of(0u8..4)), 0..600)) {
            let (mut map, mut model) = (SharedMap::new(), BTreeMap::new());
            let mut halfway = None;
            for (step, (key, value)) in steps.iter().enumerate() {
                if step == steps.len() / 2 {
                    halfway = Some((map.clone(), model.clone()));
                }
                match value {
                    Some(value) => prop_assert_eq!(map.insert(*key, *value), model.insert(*key, *value)),
                    None => prop_assert_eq!(map.remove(key), model.remove(key)),
                }
            }
            prop_assert!(map.iter().eq(&model));
            prop_assert_eq!(map.len(), model.len());
            if let Some((mut old, old_model)) = halfway {
                prop_assert!(old.iter().eq(&old_model));
                let changes = old.changes_to(&map);
                old.merge(&changes);
                prop_assert_eq!(&old, &map);
            }
        }
    }
}
