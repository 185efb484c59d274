//! Docker's directory of namespaces, watched: files that come and go there are noticed at once.

use std::path::Path;

use nix::sys::{
    epoll::{Epoll, EpollEvent, EpollFlags},
    inotify::{AddWatchFlags, InitFlags, Inotify},
};

/// The number by which a watch knows the directory; whatever else it watches counts from 0.
pub(crate) const DIRECTORY: u64 = u64::MAX;

pub(crate) fn watch(by: &Epoll, directory: &Path, what: AddWatchFlags) -> nix::Result<Inotify> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    inotify.add_watch(directory, what)?;
    by.add(&inotify, EpollEvent::new(EpollFlags::EPOLLIN, DIRECTORY))?;
    Ok(inotify)
}

/// What is in the events does not matter, only that they are read.
pub(crate) fn read(inotify: Option<&Inotify>) {
    while inotify.is_some_and(|inotify| inotify.read_events().is_ok()) {}
}
