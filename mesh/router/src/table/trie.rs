//! A radix trie over bytes: which of many texts does this one begin with.
//!
//! Copies share their nodes. A change makes anew the nodes on the way to its text, and no others.

use std::sync::Arc;

/// Finds the texts that another begins with, at a cost that follows that other's length.
#[derive(Clone, Debug)]
pub(super) struct Trie<V> {
    /// Its edge is empty.
    root: Arc<Node<V>>,
}

#[derive(Clone, Debug)]
struct Node<V> {
    /// What stands between the parent and this node.
    edge: Box<[u8]>,
    /// By their edges' first bytes, sorted.
    children: Vec<(u8, Arc<Self>)>,
    value: Option<V>,
}

impl<V> Node<V> {
    fn new(edge: &[u8]) -> Self {
        Self { edge: edge.into(), children: Vec::new(), value: None }
    }

    fn child(&self, byte: u8) -> Result<usize, usize> {
        self.children.binary_search_by_key(&byte, |(first, _)| *first)
    }
}

impl<V> Default for Trie<V> {
    fn default() -> Self {
        Self { root: Arc::new(Node::new(&[])) }
    }
}

impl<V: Clone> Trie<V> {
    pub(super) fn is_empty(&self) -> bool {
        self.root.value.is_none() && self.root.children.is_empty()
    }

    /// Changes the value at a text, which may come or go so.
    pub(super) fn change(&mut self, text: &[u8], act: impl FnOnce(&mut Option<V>)) {
        Arc::make_mut(&mut self.root).change(text, act);
    }

    /// Calls `found` with the length and the value of each text that `text` begins with, shortest first.
    pub(super) fn prefixes(&self, text: &[u8], mut found: impl FnMut(usize, &V)) {
        let (mut node, mut length) = (&*self.root, 0);
        loop {
            if let Some(value) = &node.value {
                found(length, value);
            }
            let Some(child) = text.get(length).and_then(|byte| node.child(*byte).ok()) else { return };
            node = &node.children[child].1;
            if !text[length..].starts_with(&node.edge) {
                return;
            }
            length += node.edge.len();
        }
    }

    /// All values. The depth of what is called is a text's length at most, and those of labels are short.
    pub(super) fn each(&self, mut act: impl FnMut(&V)) {
        let mut left = vec![&*self.root];
        while let Some(node) = left.pop() {
            node.value.iter().for_each(&mut act);
            left.extend(node.children.iter().map(|(_, child)| &**child));
        }
    }
}

impl<V: Clone> Node<V> {
    fn change(&mut self, text: &[u8], act: impl FnOnce(&mut Option<V>)) {
        let Some(&first) = text.first() else { return act(&mut self.value) };
        let place = match self.child(first) {
            Ok(place) => {
                let child = Arc::make_mut(&mut self.children[place].1);
                let common = common(&child.edge, text);
                if common < child.edge.len() {
                    child.split(common);
                }
                child.change(&text[common..], act);
                place
            }
            Err(place) => {
                let mut leaf = Self::new(text);
                act(&mut leaf.value);
                self.children.insert(place, (first, Arc::new(leaf)));
                place
            }
        };
        self.prune(place);
    }

    /// Parts a node after `length` bytes of its edge: what it was becomes a child.
    fn split(&mut self, length: usize) {
        let upper = Self::new(&self.edge[..length]);
        let mut lower = std::mem::replace(self, upper);
        lower.edge = lower.edge[length..].into();
        self.children.push((lower.edge[0], Arc::new(lower)));
    }

    /// Takes away a child that leads nowhere, and joins one that only leads on with what it leads to.
    fn prune(&mut self, place: usize) {
        let child = &self.children[place].1;
        if child.value.is_some() || child.children.len() > 1 {
            return;
        }
        let Some((_, only)) = child.children.first() else {
            self.children.remove(place);
            return;
        };
        let mut joined = Self::clone(only);
        joined.edge = [&child.edge[..], &only.edge[..]].concat().into();
        self.children[place].1 = Arc::new(joined);
    }
}

fn common(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn finds_what_comparing_with_each_finds(changes in vec(("[ab.]{0,6}", any::<bool>()), 0..32), wanted in "[abc.]{0,8}") {
            let (mut trie, mut all) = (Trie::default(), BTreeMap::new());
            let mut copies = Vec::new();
            for (number, (text, stays)) in changes.iter().enumerate() {
                copies.push((trie.clone(), all.clone()));
                trie.change(text.as_bytes(), |value| *value = stays.then_some(number));
                if *stays { all.insert(text.clone(), number) } else { all.remove(text) };
            }
            copies.push((trie, all));
            for (trie, all) in copies {
                prop_assert_eq!(trie.is_empty(), all.is_empty());
                let mut found = Vec::new();
                trie.prefixes(wanted.as_bytes(), |length, value| found.push((length, *value)));
                let expected: Vec<_> = all.iter().filter(|(text, _)| wanted.starts_with(text.as_str())).map(|(t, n)| (t.len(), *n)).collect();
                prop_assert_eq!(found, expected);
                let mut values = Vec::new();
                trie.each(|value| values.push(*value));
                values.sort_unstable();
                let mut expected: Vec<_> = all.values().copied().collect();
                expected.sort_unstable();
                prop_assert_eq!(values, expected);
            }
        }
    }
}
