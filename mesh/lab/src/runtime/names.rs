//! What a lab calls its namespaces and files. Everything that a lab makes is found again by these names alone.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use super::RuntimeError;

/// Where `ip netns` keeps its namespaces; ours are there too, so that `ip -n` knows them.
pub(crate) const NETNS_DIR: &str = "/var/run/netns";
const RUN_DIR: &str = "/run/swarmesh-lab";
const LONGEST: usize = 20;

/// The name of a lab. It has no hyphen, so that no lab's prefix begins another's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabName(String);

impl LabName {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The lab's own directory: socket, snapshot, logs.
    pub fn run_dir(&self) -> PathBuf {
        Path::new(RUN_DIR).join(&self.0)
    }

    /// Begins the name of each of the lab's namespaces.
    pub(crate) fn prefix(&self) -> String {
        format!("swl-{}-", self.0)
    }

    pub(crate) fn netns(&self, what: &str) -> String {
        format!("swl-{}-{what}", self.0)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.run_dir().join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.file("control.sock")
    }

    /// Locked by the supervisor for as long as it lives, whatever ends it.
    pub(crate) fn lock(&self) -> PathBuf {
        self.file("supervisor.lock")
    }

    pub(crate) fn snapshot(&self) -> PathBuf {
        self.file("snapshot.json")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.file("state.json")
    }

    pub(crate) fn supervisor_log(&self) -> PathBuf {
        self.file("supervisor.log")
    }

    pub(crate) fn node_dir(&self, node: &str) -> PathBuf {
        self.run_dir().join(node)
    }

    /// The node's own, which its resolver goes by.
    pub(crate) fn node_resolv_conf(&self, node: &str) -> PathBuf {
        self.node_dir(node).join("resolv.conf")
    }

    /// Where the node's agent finds sandboxes, as below Docker's `/var/run/docker/netns`.
    pub(crate) fn node_netns_dir(&self, node: &str) -> PathBuf {
        self.node_dir(node).join("netns")
    }
}

pub(crate) fn netns_path(netns: &str) -> PathBuf {
    Path::new(NETNS_DIR).join(netns)
}

impl FromStr for LabName {
    type Err = RuntimeError;

    fn from_str(text: &str) -> Result<Self, RuntimeError> {
        let fine = !text.is_empty() && text.len() <= LONGEST && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if fine { Ok(Self(text.to_owned())) } else { Err(RuntimeError::Name(text.to_owned())) }
    }
}

impl TryFrom<String> for LabName {
    type Error = RuntimeError;

    fn try_from(text: String) -> Result<Self, RuntimeError> {
        text.parse()
    }
}

impl From<LabName> for String {
    fn from(name: LabName) -> Self {
        name.0
    }
}

impl fmt::Display for LabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_reach_another_lab_or_leave_the_directory() {
        assert!("lab2".parse::<LabName>().is_ok());
        for bad in ["", "a-b", "../x", "Lab", "a b", "abcdefghijklmnopqrstu"] {
            assert!(bad.parse::<LabName>().is_err(), "{bad:?}");
        }
    }
}
