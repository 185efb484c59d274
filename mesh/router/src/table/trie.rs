//! A radix trie over bytes: which of many texts does this one begin with.

/// Finds the texts that another begins with, at a cost that follows that other's length.
#[derive(Clone, Debug)]
pub(super) struct Trie<V> {
    /// The first is the root, whose edge is empty.
    nodes: Vec<Node<V>>,
}

#[derive(Clone, Debug)]
struct Node<V> {
    /// What stands between the parent and this node.
    edge: Box<[u8]>,
    /// By their edges' first bytes, sorted.
    children: Vec<(u8, u32)>,
    value: Option<V>,
}

impl<V> Node<V> {
    fn leaf(edge: &[u8], value: V) -> Self {
        Self { edge: edge.into(), children: Vec::new(), value: Some(value) }
    }

    fn child(&self, byte: u8) -> Result<u32, usize> {
        self.children.binary_search_by_key(&byte, |(first, _)| *first).map(|at| self.children[at].1)
    }
}

impl<V> Default for Trie<V> {
    fn default() -> Self {
        Self { nodes: vec![Node { edge: Box::default(), children: Vec::new(), value: None }] }
    }
}

impl<V: Copy> Trie<V> {
    pub(super) fn is_empty(&self) -> bool {
        self.nodes.len() == 1 && self.nodes[0].value.is_none()
    }

    /// The value at a text, made if it is not there.
    pub(super) fn entry(&mut self, text: &[u8], new: V) -> &mut V {
        let (mut at, mut rest) = (0, text);
        while let Some(&first) = rest.first() {
            match self.nodes[at].child(first) {
                Ok(child) => {
                    let child = child as usize;
                    let common = common(&self.nodes[child].edge, rest);
                    if common < self.nodes[child].edge.len() {
                        self.split(child, common);
                    }
                    (at, rest) = (child, &rest[common..]);
                }
                Err(place) => {
                    let leaf = self.push(Node::leaf(rest, new));
                    self.nodes[at].children.insert(place, (first, leaf));
                    (at, rest) = (leaf as usize, &[]);
                }
            }
        }
        self.nodes[at].value.get_or_insert(new)
    }

    /// Parts a node after `length` bytes of its edge. It keeps its place; what it was moves to a child.
    fn split(&mut self, node: usize, length: usize) {
        let edge = std::mem::take(&mut self.nodes[node].edge);
        let lower = Node {
            edge: edge[length..].into(),
            children: std::mem::take(&mut self.nodes[node].children),
            value: self.nodes[node].value.take(),
        };
        let lower = self.push(lower);
        self.nodes[node].edge = edge[..length].into();
        self.nodes[node].children.push((edge[length], lower));
    }

    fn push(&mut self, node: Node<V>) -> u32 {
        self.nodes.push(node);
        // Four thousand million nodes do not fit into memory.
        (self.nodes.len() - 1) as u32
    }

    /// Calls `found` with the length and the value of each text that `text` begins with, shortest first.
    pub(super) fn prefixes(&self, text: &[u8], mut found: impl FnMut(usize, V)) {
        let (mut node, mut length) = (&self.nodes[0], 0);
        loop {
            if let Some(value) = node.value {
                found(length, value);
            }
            let Some(child) = text.get(length).and_then(|byte| node.child(*byte).ok()) else { return };
            node = &self.nodes[child as usize];
            if !text[length..].starts_with(&node.edge) {
                return;
            }
            length += node.edge.len();
        }
    }
}

fn common(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn finds_what_comparing_with_each_finds(texts in vec("[ab.]{0,6}", 0..24), wanted in "[abc.]{0,8}") {
            let mut trie = Trie::default();
            for (number, text) in texts.iter().enumerate() {
                let first = texts.iter().position(|t| t == text).unwrap();
                prop_assert_eq!(*trie.entry(text.as_bytes(), number), first);
            }
            prop_assert_eq!(trie.is_empty(), texts.is_empty());
            let mut found = Vec::new();
            trie.prefixes(wanted.as_bytes(), |length, value| found.push((length, value)));
            let mut expected: Vec<_> = texts.iter().enumerate()
                .filter(|(n, t)| wanted.starts_with(t.as_str()) && texts.iter().position(|o| o == *t) == Some(*n))
                .map(|(n, t)| (t.len(), n)).collect();
            expected.sort();
            prop_assert_eq!(found, expected);
        }
    }
}
