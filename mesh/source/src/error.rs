//! What goes wrong before or beside the observing itself.

use std::{io, path::PathBuf};

/// Why a source cannot run at all.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("source {source_spec} is not available in this version; use docker:URL on a manager, or snapshot:FILE")]
    NotAvailable { source_spec: String },
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error("cannot watch {} for changes of the snapshot file: {error}; the directory must exist and be readable", directory.display())]
    Watch { directory: PathBuf, error: io::Error },
}

/// Why a `--source` was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error("unknown source {0:?}; use docker:URL, snapshot:FILE, upstream, or auto[:URL]")]
    Unknown(String),
    #[error("source docker needs a URL; the usual one is docker:unix:///var/run/docker.sock")]
    NoUrl,
    #[error("source snapshot needs a file: snapshot:/path/to/snapshot.json")]
    NoFile,
    #[error("Docker URL {url:?}: {problem}; use unix:///path/to/docker.sock or tcp://host:port")]
    Url { url: String, problem: &'static str },
}
