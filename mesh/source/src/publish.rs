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

    /// The version of what was sent last.
    pub(crate) fn version(&self) -> u64 {
        self.snapshot.as_ref().map_or(0, |s| s.version)
    }

    pub(crate) async fn objects(&mut self, new: Snapshot) -> Result<(), ReceiverGone> {
        let update = match &self.snapshot {
            None => Update::Full(new.clone()),
            Some(old) => {
                let delta = Delta::between(old, &new);
                if delta.is_empty() {
                    return Ok(());
                }
                Update::Delta(delta)
            }
        };
        self.updates.send(update).await.map_err(|_| ReceiverGone)?;
        self.snapshot = Some(new);
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
