//! Which addresses Docker's overlays lead to no more.
//!
//! A node that loses its network is down for the managers after fifteen seconds or more, which is when an agent hears of it. Docker's
//! gossip holds it for lost after five or six, and takes the ways to its tasks out of every overlay: from then on, nothing that is sent
//! to them leaves this node. So that is watched, and new connections go elsewhere at once.
//!
//! Only what was there and went counts. A way that was never there says nothing: some networks have no such ways.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags},
    inotify::{AddWatchFlags, Inotify},
};
use swarmesh_kernel::{Kernel, KernelError, NeighbourEvent, NeighbourMonitor, NetnsId};
use swarmesh_model::NetworkId;

use crate::directory::{self, DIRECTORY};

/// How long changes are gathered: a node's ways go one by one, and an overlay that is taken down loses them first.
const GATHER: Duration = Duration::from_millis(100);
/// Docker makes a namespace's file before it mounts the namespace on it, and the overlay's interface after that; of neither is
/// anybody told. So it is looked for again, in pauses of these lengths.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// What became of the way to an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// The overlay.
    pub network: NetworkId,
    /// A task's address in it.
    pub address: IpAddr,
    /// False if nothing that this node sends there arrives.
    pub reachable: bool,
}

/// The overlays that this node has something in. Nothing here fails: an overlay that cannot be watched loses nothing, and is tried
/// again.
pub struct Overlays {
    kernel: Arc<dyn Kernel>,
    netns_dir: PathBuf,
    watch: Epoll,
    directory: Option<Inotify>,
    wanted: BTreeSet<NetworkId>,
    watched: BTreeMap<NetworkId, Overlay>,
    next_number: u64,
    /// When to look for overlays that are not there yet, and the pause after that.
    search: Option<(Instant, Duration)>,
    /// Overlays whose ways are to be read back, one a turn.
    unread: BTreeSet<NetworkId>,
    /// What was handed out as unreachable.
    told: BTreeMap<NetworkId, BTreeSet<IpAddr>>,
    changed: BTreeSet<NetworkId>,
    tell_at: Option<Instant>,
}

struct Overlay {
    number: u64,
    path: PathBuf,
    id: NetnsId,
    monitor: NeighbourMonitor,
    /// Where it leads, as far as is known.
    there: BTreeSet<IpAddr>,
    /// Where it has led.
    gone: BTreeSet<IpAddr>,
}

impl Overlay {
    fn note(&mut self, address: IpAddr, is_there: bool) {
        if is_there {
            self.gone.remove(&address);
            self.there.insert(address);
        } else if self.there.remove(&address) {
            self.gone.insert(address);
        }
    }

    /// Makes up for what was missed.
    fn read_back(&mut self) -> Result<(), KernelError> {
        let present = self.monitor.present()?;
        self.gone.extend(self.there.difference(&present));
        self.gone.retain(|address| !present.contains(address));
        self.there = present;
        Ok(())
    }
}

impl fmt::Debug for Overlays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overlays").field("watched", &self.watched.keys()).finish_non_exhaustive()
    }
}

impl Overlays {
    /// `netns_dir`: where Docker keeps its namespaces.
    pub fn new(kernel: Arc<dyn Kernel>, netns_dir: PathBuf) -> nix::Result<Self> {
        let watch = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let directory = directory::watch(&watch, &netns_dir, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE);
        let directory = directory
            .inspect_err(|error| tracing::debug!(directory = %netns_dir.display(), %error, "new overlays are found by the audit only"))
            .ok();
        Ok(Self {
            kernel,
            netns_dir,
            watch,
            directory,
            wanted: BTreeSet::new(),
            watched: BTreeMap::new(),
            next_number: 0,
            search: None,
            unread: BTreeSet::new(),
            told: BTreeMap::new(),
            changed: BTreeSet::new(),
            tell_at: None,
        })
    }

    /// Watches these overlays and no others.
    pub fn want(&mut self, networks: BTreeSet<NetworkId>, now: Instant) {
        if networks == self.wanted {
            return;
        }
        for network in self.watched.keys().filter(|n| !networks.contains(*n)).cloned().collect::<Vec<_>>() {
            self.leave(&network, now);
        }
        self.wanted = networks;
        self.hurry(now);
    }

    /// Readable when something changed.
    pub fn events(&self) -> BorrowedFd<'_> {
        self.watch.0.as_fd()
    }

    /// Takes note of what changed; [`Self::run_due`] tells.
    pub fn check_events(&mut self, now: Instant) {
        let mut ready = [EpollEvent::empty(); 64];
        let Ok(count) = self.watch.wait(&mut ready, 0u8) else { return };
        for event in &ready[..count] {
            if event.data() == DIRECTORY {
                directory::read(self.directory.as_ref());
                self.leave_replaced(now);
                self.hurry(now);
            } else if let Some(network) = self.watched.iter().find(|(_, o)| o.number == event.data()).map(|(network, _)| network.clone()) {
                self.read(&network, now);
            }
        }
    }

    /// Looks for overlays that are not watched yet, and says what has changed, when it is time; and when to call again.
    pub fn run_due(&mut self, now: Instant) -> (Vec<Reach>, Option<Instant>) {
        if let Some((_, pause)) = self.search.take_if(|(at, _)| *at <= now) {
            self.look();
            if self.watched.len() < self.wanted.len() && pause <= LAST_PAUSE {
                self.search = Some((now + pause, pause * 2));
            }
        }
        if let Some(network) = self.unread.pop_first() {
            self.read_back(&network, now);
        }
        let changes = if self.tell_at.take_if(|at| *at <= now).is_some() { self.tell() } else { Vec::new() };
        let more = (!self.unread.is_empty()).then_some(now);
        (changes, self.search.map(|(at, _)| at).into_iter().chain(self.tell_at).chain(more).min())
    }

    /// Begins to read everything back, which [`Self::run_due`] goes on with: what events were missed is made up for.
    pub fn audit(&mut self, now: Instant) {
        self.leave_replaced(now);
        self.look();
        self.unread.extend(self.watched.keys().cloned());
    }

    fn hurry(&mut self, now: Instant) {
        if self.watched.len() < self.wanted.len() {
            self.search = Some((now, FIRST_PAUSE));
        }
    }

    fn look(&mut self) {
        if self.watched.len() == self.wanted.len() {
            return;
        }
        let names = match self.kernel.namespaces(&self.netns_dir) {
            Ok(names) => names,
            Err(error) => {
                tracing::debug!(%error, "overlays are not watched");
                return;
            }
        };
        for network in self.wanted.iter().filter(|n| !self.watched.contains_key(*n)).cloned().collect::<Vec<_>>() {
            let named = names.iter().filter_map(|name| Some((epoch(name, &network)?, name)));
            let Some((_, name)) = named.max() else { continue };
            match self.join(&network, self.netns_dir.join(name)) {
                // One that went before it was listened to is not noticed; that is the managers' to tell, as before.
                Ok(()) => tracing::debug!(%network, name, "an overlay is watched"),
                Err(KernelError::NamespaceGone { .. } | KernelError::NotFound { .. }) => {}
                Err(error) => tracing::debug!(%network, %error, "an overlay is not watched"),
            }
        }
    }

    fn join(&mut self, network: &NetworkId, path: PathBuf) -> Result<(), KernelError> {
        let mut monitor = self.kernel.open_neighbours(&path)?;
        let there = monitor.present()?;
        let id = self.kernel.identity(&path)?;
        let number = self.next_number;
        let action = || format!("watch {}", path.display());
        self.watch
            .add(&monitor, EpollEvent::new(EpollFlags::EPOLLIN, number))
            .map_err(|errno| KernelError::from_errno(action(), errno as i32))?;
        self.next_number += 1;
        self.watched.insert(network.clone(), Overlay { number, path, id, monitor, there, gone: BTreeSet::new() });
        Ok(())
    }

    /// Nothing is known of it any more, so everything counts as reachable.
    fn leave(&mut self, network: &NetworkId, now: Instant) {
        if let Some(overlay) = self.watched.remove(network)
            && let Err(error) = self.watch.delete(&overlay.monitor)
        {
            tracing::debug!(%network, %error, "an overlay's watch was gone already");
        }
        self.note(network, now);
    }

    fn leave_replaced(&mut self, now: Instant) {
        let is_other = |overlay: &Overlay| self.kernel.identity(&overlay.path).map_or(true, |id| id != overlay.id);
        for network in self.watched.iter().filter(|(_, o)| is_other(o)).map(|(n, _)| n.clone()).collect::<Vec<_>>() {
            self.leave(&network, now);
        }
    }

    fn read(&mut self, network: &NetworkId, now: Instant) {
        let Some(overlay) = self.watched.get_mut(network) else { return };
        let events = match overlay.monitor.read_events() {
            Ok(events) => events,
            Err(error) => {
                tracing::debug!(%network, %error, "an overlay is watched no more");
                self.leave(network, now);
                self.hurry(now);
                return;
            }
        };
        let mut missed = false;
        for event in events {
            match event {
                NeighbourEvent::Gone(address) => overlay.note(address, false),
                NeighbourEvent::There(address) => overlay.note(address, true),
                NeighbourEvent::Ended => {
                    self.leave(network, now);
                    self.hurry(now);
                    return;
                }
                NeighbourEvent::Lost => missed = true,
            }
        }
        if missed {
            self.read_back(network, now);
        }
        self.note(network, now);
    }

    fn read_back(&mut self, network: &NetworkId, now: Instant) {
        let Some(overlay) = self.watched.get_mut(network) else { return };
        match overlay.read_back() {
            Ok(()) => self.note(network, now),
            Err(error) => {
                tracing::debug!(%network, %error, "an overlay's ways are not known");
                self.leave(network, now);
                self.hurry(now);
            }
        }
    }

    fn note(&mut self, network: &NetworkId, now: Instant) {
        self.changed.insert(network.clone());
        self.tell_at.get_or_insert(now + GATHER);
    }

    fn tell(&mut self) -> Vec<Reach> {
        let mut changes = Vec::new();
        for network in std::mem::take(&mut self.changed) {
            let gone = self.watched.get(&network).map(|overlay| overlay.gone.clone()).unwrap_or_default();
            let before = self.told.remove(&network).unwrap_or_default();
            let reach = |address: &IpAddr, reachable| Reach { network: network.clone(), address: *address, reachable };
            changes.extend(before.difference(&gone).map(|address| reach(address, true)));
            changes.extend(gone.difference(&before).map(|address| reach(address, false)));
            if !gone.is_empty() {
                self.told.insert(network, gone);
            }
        }
        changes
    }
}

/// The number of a namespace that is this overlay's by its name: `1-` and the first ten characters of its id; `2-` after it was left
/// and joined again. All names have twelve characters (`GenerateKey` in moby's `daemon/libnetwork/osl`).
fn epoch(name: &str, network: &NetworkId) -> Option<u64> {
    let (number, id) = name.split_once('-')?;
    let is_it = name.len() == 12 && network.as_str().starts_with(id);
    if is_it { number.parse().ok() } else { None }
}

#[cfg(test)]
mod tests;
