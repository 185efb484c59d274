//! A file with users, which is read again when it changes.

use std::{
    fmt,
    fs::File,
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use swarmesh_router::model::User;
use tokio::sync::MutexGuard;

use super::Users;

/// How long a file is taken to be as it was.
const FRESH: Duration = Duration::from_secs(2);

/// Twice what Docker takes for a secret.
const LARGEST: u64 = 1_000_000;

/// Where a gate's other users are, and those that it names itself.
pub(super) struct Secret {
    /// `None` if the name is none of a file in the directory.
    path: Option<PathBuf>,
    name: String,
    hashed: bool,
    listed: Vec<User>,
    began: Instant,
    /// Milliseconds after it began.
    looked: AtomicU64,
    turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

/// How the file was when it was last read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Unread,
    Missing(io::ErrorKind),
    Read {
        device: u64,
        inode: u64,
        size: u64,
        changed: (i64, i64),
    },
}

impl Secret {
    pub(super) fn new(directory: &Path, name: &str, hashed: bool, listed: &[User]) -> Self {
        let mut components = Path::new(name).components();
        let is_name = matches!((components.next(), components.next()), (Some(Component::Normal(file)), None) if file == name);
        Self {
            path: is_name.then(|| directory.join(name)),
            name: name.to_owned(),
            hashed,
            listed: listed.to_vec(),
            began: Instant::now(),
            looked: AtomicU64::new(0),
            turn: tokio::sync::Mutex::new(()),
            state: Mutex::default(),
        }
    }

    /// Waits for whoever is looking already. What it returns is held while looking.
    pub(super) async fn is_stale(&self) -> Option<MutexGuard<'_, ()>> {
        let is_stale = || self.millis().saturating_sub(self.looked.load(Ordering::Acquire)) >= FRESH.as_millis() as u64;
        if !is_stale() {
            return None;
        }
        let turn = self.turn.lock().await;
        is_stale().then_some(turn)
    }

    /// Everybody who may pass, if the file changed since the last time.
    ///
    /// If a name is listed alone, the list says who may pass, and the file only has passwords. Else the file's users may pass, too.
    pub(super) fn load(&self) -> Option<Users> {
        let looked = self.millis();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let read = self.read(*state);
        self.looked.store(looked, Ordering::Release);
        let (now, text) = match read {
            Ok(None) => return None,
            Ok(Some(read)) => read,
            Err(error) => (State::Missing(error.kind()), None),
        };
        if now == *state {
            return None;
        }
        *state = now;
        let (file, unread) = text.map_or_else(Default::default, |text| Users::parse(&text, self.hashed));
        if unread > 0 {
            tracing::warn!(secret = self.name, unread, "has entries that are no `name:password`, or no hash that can be checked");
        }
        if let State::Missing(kind) = now {
            tracing::warn!(secret = self.name, error = %kind, "cannot be read, so its users do not get in; put the file where the node's secrets are");
        }
        let mut users = Users::of(&self.listed, &file);
        if self.listed.iter().all(|user| user.password.is_some()) {
            for (name, proof) in &file.all {
                users.add(name, proof.clone());
            }
        }
        Some(users)
    }

    /// `None` if it is as it was.
    fn read(&self, before: State) -> io::Result<Option<(State, Option<String>)>> {
        let path = self.path.as_deref().ok_or(io::ErrorKind::InvalidFilename)?;
        let file = File::open(path)?;
        // Of what is open, so that what is read is what this is about.
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let state = State::Read { device: meta.dev(), inode: meta.ino(), size: meta.size(), changed: (meta.ctime(), meta.ctime_nsec()) };
        if state == before {
            return Ok(None);
        }
        if meta.size() > LARGEST {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut text = String::new();
        file.take(LARGEST).read_to_string(&mut text)?;
        Ok(Some((state, Some(text))))
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    #[cfg(test)]
    pub(super) fn make_stale(&mut self) {
        self.began = self.began.checked_sub(FRESH).unwrap();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "secret {}", self.name)
    }
}
