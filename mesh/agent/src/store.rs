//! The state directory: the last good snapshot, and what the agent should remember of itself.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, BufWriter, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use swarmesh_model::{FileError, NodeId, Snapshot};
use swarmesh_plan::Added;

const SNAPSHOT: &str = "snapshot.json";
const MEMORY: &str = "agent.json";
const ADDED: &str = "flow-proxy.json";
/// A directory of certificates with their keys.
const CERTIFICATES: &str = "flow-proxy-certificates";
/// What is not whole yet ends so.
const NEW: &str = ".new";
/// Bytes per write.
const WRITE_LEN: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {action} {}: {error}; check --state-dir", path.display())]
    Io { action: &'static str, path: PathBuf, error: io::Error },
    #[error("{} is damaged: {error}; remove it, it will be written again", path.display())]
    Snapshot { path: PathBuf, error: FileError },
    #[error("{} is damaged: {error}; remove it, it will be written again", path.display())]
    Memory { path: PathBuf, error: serde_json::Error },
}

/// What is true of this agent across restarts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Where the stored snapshot came from. Another source's snapshot may be of another swarm.
    pub source: String,
    /// This node's id, as that source gave it.
    pub node: Option<NodeId>,
    pub draining: bool,
}

/// Files are written beside and renamed, so that a crash leaves the old one or the new one.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
}

impl Store {
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn save_snapshot(&self, snapshot: &Snapshot) -> Result<(), StoreError> {
        self.save(SNAPSHOT, snapshot.json_lines())
    }

    /// `None` when none was ever stored.
    pub fn load_snapshot(&self) -> Result<Option<Snapshot>, StoreError> {
        let Some((path, text)) = self.load(SNAPSHOT)? else { return Ok(None) };
        Snapshot::from_json(&text).map(Some).map_err(|error| StoreError::Snapshot { path, error })
    }

    pub fn save_memory(&self, memory: &Memory) -> Result<(), StoreError> {
        let text = serde_json::to_string(memory).map_err(|error| StoreError::Memory { path: self.directory.join(MEMORY), error })?;
        self.save(MEMORY, [text])
    }

    pub fn load_memory(&self) -> Result<Memory, StoreError> {
        let Some((path, text)) = self.load(MEMORY)? else { return Ok(Memory::default()) };
        serde_json::from_str(&text).map_err(|error| StoreError::Memory { path, error })
    }

    pub fn save_added(&self, added: &Added) -> Result<(), StoreError> {
        let text = serde_json::to_string(added).map_err(|error| StoreError::Memory { path: self.directory.join(ADDED), error })?;
        self.save(ADDED, [text])
    }

    pub fn load_added(&self) -> Result<Added, StoreError> {
        let Some((path, text)) = self.load(ADDED)? else { return Ok(Added::default()) };
        serde_json::from_str(&text).map_err(|error| StoreError::Memory { path, error })
    }

    /// The name is a plain file's, which is the caller's to see to.
    pub fn save_certificate(&self, name: &str, text: &str) -> Result<(), StoreError> {
        let path = self.directory.join(CERTIFICATES);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(|error| StoreError::Io { action: "create", path, error })?;
        self.save(&format!("{CERTIFICATES}/{name}"), [text.to_owned()])
    }

    /// By name, in order.
    pub fn load_certificates(&self) -> Result<Vec<(String, String)>, StoreError> {
        let directory = self.directory.join(CERTIFICATES);
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |error| StoreError::Io { action: "read", path, error }
        };
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(&directory)(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let Ok(name) = entry.map_err(failed(&directory))?.file_name().into_string() else { continue };
            if Self::may_name_certificate(&name)
                && let Some((_, text)) = self.load(&format!("{CERTIFICATES}/{name}"))?
            {
                found.push((name, text));
            }
        }
        found.sort();
        Ok(found)
    }

    /// Whether a certificate may be kept by this name: it is one plain file, and not one that is being written.
    pub fn may_name_certificate(name: &str) -> bool {
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-._*@+".contains(&b);
        (1..=200).contains(&name.len()) && name.bytes().all(is_plain) && !name.starts_with('.') && !name.ends_with(NEW)
    }

    /// Removes what the agent wrote, and the directory if nothing else is in it. Says whether there was anything.
    pub fn remove(&self) -> Result<bool, StoreError> {
        let mut removed = false;
        let certificates = self.directory.join(CERTIFICATES);
        removed |= gone_is_fine(fs::remove_dir_all(&certificates)).map_err(|error| StoreError::Io {
            action: "remove",
            path: certificates,
            error,
        })?;
        for name in [SNAPSHOT, MEMORY, ADDED] {
            let path = self.directory.join(name);
            removed |= gone_is_fine(fs::remove_file(&path)).map_err(|error| StoreError::Io { action: "remove", path, error })?;
        }
        match fs::remove_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(removed),
            outcome => {
                let path = self.directory.clone();
                gone_is_fine(outcome).map(|dir| removed || dir).map_err(|error| StoreError::Io { action: "remove", path, error })
            }
        }
    }

    /// Writes `pieces` as they come: a large swarm's snapshot as one text would cost as much again as the snapshot.
    fn save(&self, name: &str, pieces: impl IntoIterator<Item = String>) -> Result<(), StoreError> {
        let path = self.directory.join(name);
        let beside = self.directory.join(format!("{name}{NEW}"));
        let failed = |action, path: &Path| {
            let path = path.to_path_buf();
            move |error| StoreError::Io { action, path, error }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory).map_err(failed("create", &self.directory))?;
        let write = || -> io::Result<()> {
            let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
            let mut out = BufWriter::with_capacity(WRITE_LEN, file);
            for piece in pieces {
                out.write_all(piece.as_bytes())?;
            }
            // Without it, a power cut after the rename can leave an empty file under the good one's name.
            out.into_inner()?.sync_all()
        };
        write().map_err(failed("write", &beside))?;
        fs::rename(&beside, &path).map_err(failed("replace", &path))
    }

    fn load(&self, name: &str) -> Result<Option<(PathBuf, String)>, StoreError> {
        let path = self.directory.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some((path, text))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::Io { action: "read", path, error }),
        }
    }
}

fn gone_is_fine(outcome: io::Result<()>) -> io::Result<bool> {
    match outcome {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_was_stored_comes_back_and_is_private() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path().join("state"));
        assert_eq!(store.load_snapshot().unwrap(), None);
        assert_eq!(store.load_memory().unwrap(), Memory::default());

        let snapshot = Snapshot { version: 7, ..Snapshot::default() };
        let memory = Memory { source: "snapshot:x".to_owned(), node: Some("n1".into()), draining: true };
        store.save_snapshot(&snapshot).unwrap();
        store.save_memory(&memory).unwrap();
        assert_eq!(store.load_snapshot().unwrap(), Some(snapshot));
        assert_eq!(store.load_memory().unwrap(), memory);

        let mut added = Added::default();
        added.insert("web".to_owned(), [("port".to_owned(), "80".to_owned())].into());
        assert_eq!(store.load_added().unwrap(), Added::default());
        store.save_added(&added).unwrap();
        assert_eq!(store.load_added().unwrap(), added);
        assert_eq!(store.load_certificates().unwrap(), []);
        store.save_certificate("b.example", "two").unwrap();
        store.save_certificate("a.example", "one").unwrap();
        fs::write(store.directory().join(CERTIFICATES).join("c.new"), "half").unwrap();
        let certificates = [("a.example", "one"), ("b.example", "two")].map(|(name, text)| (name.to_owned(), text.to_owned()));
        assert_eq!(store.load_certificates().unwrap(), certificates);
        for file in [SNAPSHOT, ADDED, "flow-proxy-certificates/a.example"] {
            let mode = fs::metadata(store.directory().join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }

        assert!(store.remove().unwrap());
        assert!(!store.remove().unwrap());
        assert!(!store.directory().exists());
    }

    #[test]
    fn a_certificates_name_is_one_plain_file() {
        for name in ["a.example", "*.a.example", "cert_1"] {
            assert!(Store::may_name_certificate(name), "{name}");
        }
        for name in ["", ".", "..", "../x", "a/b", ".hidden", "x.new", "a b", "a\0", &"a".repeat(201)] {
            assert!(!Store::may_name_certificate(name), "{name}");
        }
    }

    #[test]
    fn a_damaged_file_is_named_and_others_files_are_left() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path());
        fs::write(directory.path().join(SNAPSHOT), "{").unwrap();
        let error = store.load_snapshot().unwrap_err().to_string();
        assert!(error.contains("snapshot.json is damaged"), "{error}");
        fs::write(directory.path().join("mine"), "").unwrap();
        assert!(store.remove().unwrap());
        assert!(directory.path().join("mine").exists());
    }
}
