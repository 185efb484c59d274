//! Where snapshots come from: the Docker API of a manager, or a snapshot file.
//!
//! A source says what it sees as [`Update`]s: the first one that carries objects is [`Update::Full`], all later ones are
//! [`Update::Delta`]s with the changed objects only. A source that loses sight of the swarm says so in its
//! [`SourceState`] and keeps quiet otherwise: nothing is ever taken away because nobody could look.
#![forbid(unsafe_code)]

mod docker;
mod error;
mod file;
mod publish;
mod spec;

use serde::Serialize;
use swarmesh_model::{Delta, NodeId, Problem, Snapshot};
use tokio::sync::mpsc::Sender;

pub use error::{SourceError, SpecError};
pub use spec::SourceSpec;

/// What a source has to say, in the order in which it happened.
#[derive(Clone, Debug)]
pub enum Update {
    /// Everything the source knows. Sent once, before any delta.
    Full(Snapshot),
    /// What changed since the last `Full` or `Delta`; never empty.
    Delta(Delta),
    /// The source's own condition; sent when it changes.
    State(SourceState),
}

/// How a source is, for `status` and `/readyz`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SourceState {
    /// As given on the command line: `docker:unix:///var/run/docker.sock`.
    pub source: String,
    pub connected: bool,
    /// What is wrong and what to do about it; empty when nothing is.
    pub detail: String,
    /// This node's own id, where the source knows it.
    pub node: Option<NodeId>,
    /// Objects that could not be understood. Each keeps its last good form, or is left out when it never had one.
    pub problems: Vec<Problem>,
}

/// Runs the source until nobody receives its updates any more.
///
/// Losing the source is not an error: it says so in a [`SourceState`] and tries again. Errors are what trying again cannot help.
pub async fn run(spec: SourceSpec, updates: Sender<Update>) -> Result<(), SourceError> {
    let name = spec.to_string();
    match spec {
        SourceSpec::Docker { url } => docker::run(name, &url, updates).await,
        SourceSpec::SnapshotFile { path } => file::run(name, &path, updates).await,
        SourceSpec::Upstream | SourceSpec::Auto { .. } => Err(SourceError::NotAvailable { source_spec: name }),
    }
}
