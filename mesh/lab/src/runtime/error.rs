//! Why a lab could not do what it was asked to.

use std::{io, path::PathBuf};

use crate::{stack::StackError, swarm::SwarmError};

#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("a lab makes network namespaces, bridges and firewall rules: this needs root")]
    NotRoot,
    #[error("{0}: a lab's name is 1 to 20 lowercase letters and digits")]
    Name(String),
    #[error("lab {0} is up already; `lab down` removes it, `--name` makes another one")]
    Running(String),
    #[error("there is no lab {0}; `lab up` makes one")]
    NoLab(String),
    #[error("the supervisor of lab {lab} does not answer: {error}")]
    Supervisor { lab: String, error: io::Error },
    #[error("the supervisor did not start; its log says:\n{0}")]
    Start(String),
    #[error("{what}: {error}")]
    Io { what: String, error: io::Error },
    #[error("{program} failed: {message}")]
    Tool { program: String, message: String },
    #[error("{0}")]
    Stack(#[from] StackError),
    #[error("{0}")]
    Swarm(#[from] SwarmError),
    /// What the supervisor answered.
    #[error("{0}")]
    Refused(String),
    #[error("nothing in the lab is called {name}{hint}")]
    Unknown { name: String, hint: String },
    #[error("{name} can be any of {candidates}")]
    Ambiguous { name: String, candidates: String },
    #[error("not ready after {seconds} s: {pending}")]
    NotReady { seconds: u64, pending: String },
    #[error("left behind: {0}")]
    Leftover(String),
    #[error("{}: {message}", path.display())]
    File { path: PathBuf, message: String },
}

impl RuntimeError {
    pub(crate) fn io(what: impl Into<String>, error: impl Into<io::Error>) -> Self {
        Self::Io { what: what.into(), error: error.into() }
    }
}

/// `fs::read(path).doing(|| format!("reading {path}"))`
pub(crate) trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, RuntimeError>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, RuntimeError> {
        self.map_err(|error| RuntimeError::io(what(), error))
    }
}
