//! What was sent last, and what is worth sending.

use swarmesh_model::{Delta, Snapshot};
use tokio::sync::mpsc::Sender;

use crate::{SourceState, Update};

/// Nobody receives updates any more; the source ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReceiverGone;

/// Sends differences only, and keeps what it needs to tell them.
#[derive(Debug)]
pub(crate) struct Publisher {
    updates: Sender<Update>,
    snapshot: Option<Snapshot>,
    state: Option<SourceState>,
}

impl Publisher {
    pub(crate) fn new(updates: Sender<Update>) -> Self {
        Self { updates, snapshot: None, state: None }
    }

    /// Resolves when the receiver is gone, for sources that wait long.
    pub(crate) async fn closed(&self) {
        self.updates.closed().await;
    }

    pub(crate) fn has_objects(&self) -> bool {
        self.snapshot.is_some()
    }

    /// What was sent last, by references; empty before anything was.
    pub(crate) fn snapshot(&self) -> Snapshot {
        self.snapshot.clone().unwrap_or_default()
    }

    /// The version of what was sent last.
    pub(crate) fn version(&self) -> u64 {
        self.snapshot.as_ref().map_or(0, |s| s.version)
    }

    pub(crate) async fn objects(&mut self, new: Snapshot) -> Result<(), ReceiverGone> {
        let delta = self.snapshot.as_ref().map(|held| Delta::between(held, &new));
        if delta.as_ref().is_some_and(Delta::is_empty) {
            return Ok(());
        }
        // Nothing counts as sent before there is room for it.
        let room = self.updates.reserve().await.map_err(|_| ReceiverGone)?;
        match (&mut self.snapshot, delta) {
            (Some(held), Some(delta)) => {
                // What did not change stays the very object that was sent before: `new` may have it a second time.
                held.apply(&delta);
                room.send(Update::Delta(delta));
            }
            (held, _) => {
                *held = Some(new.clone());
                room.send(Update::Full(new));
            }
        }
        Ok(())
    }

    pub(crate) async fn state(&mut self, new: SourceState) -> Result<(), ReceiverGone> {
        if self.state.as_ref() == Some(&new) {
            return Ok(());
        }
        self.updates.send(Update::State(new.clone())).await.map_err(|_| ReceiverGone)?;
        self.state = Some(new);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::mpsc;

    use super::*;

    fn snapshot(version: u64, changed: &str) -> Snapshot {
        let text = format!(
            r#"{{"version": {version}, "nodes": [{{"id": "a", "hostname": "same"}}, {{"id": "b", "hostname": "{changed}"}}, {{"id": "c{version}", "hostname": "c"}}]}}"#
        );
        Snapshot::from_json(&text).unwrap()
    }

    #[tokio::test]
    async fn what_did_not_change_is_held_once() {
        let (updates, mut received) = mpsc::channel(8);
        let mut publisher = Publisher::new(updates);
        publisher.objects(snapshot(1, "before")).await.unwrap();
        let Some(Update::Full(mut seen)) = received.recv().await else { panic!("nothing whole came first") };

        publisher.objects(snapshot(2, "after")).await.unwrap();
        let Some(Update::Delta(delta)) = received.recv().await else { panic!("no difference came next") };
        assert_eq!(delta.nodes.len(), 3);
        seen.apply(&delta);
        assert_eq!(seen, snapshot(2, "after"));
        let held = publisher.snapshot.as_ref().unwrap();
        assert_eq!(*held, seen);
        assert!(held.nodes.values().zip(seen.nodes.values()).all(|(a, b)| Arc::ptr_eq(a, b)));

        publisher.objects(snapshot(2, "after")).await.unwrap();
        assert!(received.try_recv().is_err());
    }
}
