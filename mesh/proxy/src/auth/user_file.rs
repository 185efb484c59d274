//! A file that lists users beside a route's own.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use super::{UserFault, Users};
use crate::{
    files::{Unreadable, Watched, in_directory},
    tls::Place,
};

/// A secret, or the node's own list.
pub(super) struct UserFile {
    place: Place,
    path: Result<PathBuf, Unreadable>,
    hashed: bool,
    /// As it was when it was read last; `None` before.
    watched: Mutex<Option<Watched>>,
}

/// Where the node's own list is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeUsers {
    /// `name:password` in lines.
    pub path: PathBuf,
    /// The passwords are hashes.
    pub hashed: bool,
}

impl UserFile {
    /// One of Docker's secrets, a file of that name in the directory.
    pub(super) fn secret(directory: &Path, name: &str, hashed: bool) -> Self {
        Self { place: Place::Secret(name.to_owned()), path: in_directory(directory, name), hashed, watched: Mutex::default() }
    }

    /// The node's own.
    pub(super) fn of_node(NodeUsers { path, hashed }: NodeUsers) -> Self {
        Self { place: Place::Configured(path.clone()), path: Ok(path), hashed, watched: Mutex::default() }
    }

    /// It has to be read again, or may have to.
    pub(super) fn is_stale(&self) -> bool {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(Watched::is_stale)
    }

    /// Its users. What of it gets in nowhere is added to the faults.
    pub(super) fn read(&self, faults: &mut Vec<UserFault>) -> Users {
        let text = match &self.path {
            Ok(path) => {
                let (watched, bytes) = Watched::read(path.clone());
                *self.watched.lock().unwrap_or_else(PoisonError::into_inner) = Some(watched);
                bytes
            }
            Err(error) => Err(*error),
        };
        let text = match text {
            Ok(text) => text,
            Err(error) => {
                faults.push(UserFault::File { remedy: self.place.remedy(error), place: self.place.clone(), error });
                return Users::default();
            }
        };
        // What is no UTF-8 is left out and not mended: that would be a password which others know.
        let lines: Vec<_> = text.split(|byte| *byte == b'\n').map(str::from_utf8).collect();
        let odd = lines.iter().filter(|line| line.is_err()).count();
        let lines: Vec<&str> = lines.into_iter().flatten().collect();
        let (users, unread) = Users::parse(&lines.join("\n"), self.hashed);
        let place = || self.place.clone();
        match odd + unread {
            0 if users.all.is_empty() => faults.push(UserFault::Empty { place: place() }),
            0 => {}
            count => faults.push(UserFault::Entries { place: place(), count }),
        }
        users
    }
}

impl fmt::Debug for UserFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.place)
    }
}
