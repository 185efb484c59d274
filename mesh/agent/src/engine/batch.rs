//! Updates that arrived together, merged into one step.

use swarmesh_model::{Delta, Node, NodeId, Snapshot};
use swarmesh_source::{SourceState, Update};

/// More are not merged into one step, so that the first of them does not wait for ever.
pub(super) const LARGEST: usize = 1024;

/// What a row of updates comes to. Deltas name whole objects, so a later one simply covers an earlier one.
#[derive(Debug, Default)]
pub(super) struct Batch {
    full: Option<Snapshot>,
    delta: Option<Delta>,
    pub(super) state: Option<SourceState>,
}

impl Batch {
    pub(super) fn push(&mut self, update: Update) {
        match update {
            Update::State(state) => self.state = Some(state),
            Update::Full(snapshot) => {
                self.full = Some(snapshot);
                self.delta = None;
            }
            Update::Delta(delta) => match (&mut self.full, &mut self.delta) {
                (Some(full), _) => full.apply(&delta),
                (None, Some(merged)) => {
                    merged.version = delta.version;
                    merged.networks.extend(delta.networks);
                    merged.services.extend(delta.services);
                    merged.tasks.extend(delta.tasks);
                    merged.nodes.extend(delta.nodes);
                }
                (None, none) => *none = Some(delta),
            },
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.full.is_some()
    }

    /// The nodes of a full snapshot; none for deltas.
    pub(super) fn nodes(&self) -> Vec<&Node> {
        self.full.iter().flat_map(|s| s.nodes.values()).map(AsRef::as_ref).collect()
    }

    /// The one delta that leads from `current` to what the source says now.
    pub(super) fn into_delta(self, current: &Snapshot) -> Option<Delta> {
        match self.full {
            Some(full) => Some(Delta::between(current, &full)),
            None => self.delta,
        }
    }
}

/// Which of the nodes this is, by what was given, what the source said, what was remembered, and the host's name.
pub(super) struct Clues<'a> {
    pub(super) given: Option<&'a str>,
    pub(super) source: Option<&'a NodeId>,
    pub(super) remembered: Option<&'a NodeId>,
    pub(super) hostname: &'a str,
}

impl Clues<'_> {
    /// The node, or why it cannot be told. The source's own word needs no entry in the list; everything else does.
    pub(super) fn resolve<'n>(&self, nodes: impl Iterator<Item = &'n Node> + Clone) -> Result<NodeId, String> {
        if let Some(given) = self.given {
            if let Some(node) = nodes.clone().find(|n| n.id.as_str() == given) {
                return Ok(node.id.clone());
            }
            return by_hostname(given, nodes)
                .map_err(|found| format!("--node {given} is {} in the snapshot; give the id of one of its nodes", count(found)));
        }
        if let Some(id) = self.source {
            return Ok(id.clone());
        }
        if let Some(id) = self.remembered.filter(|id| nodes.clone().any(|n| n.id == **id)) {
            return Ok(id.clone());
        }
        by_hostname(self.hostname, nodes).map_err(|found| {
            format!("this host's name, {}, is {} in the snapshot; say which node this is with --node", self.hostname, count(found))
        })
    }
}

fn by_hostname<'n>(name: &str, nodes: impl Iterator<Item = &'n Node>) -> Result<NodeId, usize> {
    let found: Vec<&Node> = nodes.filter(|n| n.hostname == name).collect();
    match found.as_slice() {
        [node] => Ok(node.id.clone()),
        others => Err(others.len()),
    }
}

fn count(found: usize) -> String {
    match found {
        0 => "no node's name or id".to_owned(),
        n => format!("the name of {n} nodes"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn node(id: &str, hostname: &str) -> Node {
        serde_json::from_value(serde_json::json!({"id": id, "hostname": hostname})).unwrap()
    }

    fn delta(version: u64, id: &str, node: Option<Node>) -> Delta {
        Delta { version, nodes: [(id.into(), node.map(Arc::new))].into(), ..Delta::default() }
    }

    #[test]
    fn a_row_of_updates_comes_to_where_each_by_itself_would_lead() {
        let mut start = Snapshot { version: 1, ..Snapshot::default() };
        start.insert_node(node("a", "one"));
        let updates = [delta(2, "b", Some(node("b", "two"))), delta(3, "a", None), delta(4, "b", Some(node("b", "three")))];

        let mut expected = start.clone();
        let mut batch = Batch::default();
        for update in updates {
            expected.apply(&update);
            batch.push(Update::Delta(update));
        }
        let mut merged = start.clone();
        merged.apply(&batch.into_delta(&start).unwrap());
        assert_eq!(merged, expected);

        let mut batch = Batch::default();
        batch.push(Update::Delta(delta(9, "x", Some(node("x", "lost")))));
        batch.push(Update::Full(start.clone()));
        batch.push(Update::Delta(delta(10, "c", Some(node("c", "new")))));
        assert!(batch.is_full());
        let mut merged = Snapshot::default();
        merged.apply(&batch.into_delta(&Snapshot::default()).unwrap());
        assert_eq!(merged.nodes.keys().map(NodeId::as_str).collect::<Vec<_>>(), ["a", "c"]);
        assert_eq!(merged.version, 10);
    }

    #[test]
    fn the_node_is_found_by_the_best_clue() {
        let nodes = [node("a", "one"), node("b", "two"), node("c", "twin"), node("d", "twin")];
        let resolve = |given, source: Option<&str>, remembered: Option<&str>, hostname| {
            let (source, remembered) = (source.map(NodeId::from), remembered.map(NodeId::from));
            Clues { given, source: source.as_ref(), remembered: remembered.as_ref(), hostname }.resolve(nodes.iter())
        };
        let is = |id: &str| Ok(NodeId::from(id));
        assert_eq!(resolve(Some("b"), Some("a"), None, "one"), is("b"));
        assert_eq!(resolve(Some("two"), Some("a"), None, "one"), is("b"));
        assert_eq!(resolve(None, Some("b"), Some("a"), "one"), is("b"));
        assert_eq!(resolve(None, None, Some("b"), "one"), is("b"));
        assert_eq!(resolve(None, None, Some("gone"), "one"), is("a"));
        assert!(resolve(None, None, None, "twin").unwrap_err().contains("the name of 2 nodes"));
        assert!(resolve(Some("nobody"), None, None, "one").unwrap_err().contains("--node nobody"));
    }
}
