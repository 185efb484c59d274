//! How the plane notices what others do: changes of its tables, namespaces that come or are exchanged, and a look at everything.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, BorrowedFd},
    time::Instant,
};

use nix::sys::epoll::{EpollEvent, EpollFlags};
use swarmesh_kernel::NftMonitor;
use swarmesh_model::TaskId;

use super::{
    FIRST_RETRY, NetfilterPlane, Place,
    ingress::IngressTable,
    node::NodeTable,
    table::{Harm, Table},
    task::TaskTable,
};
use crate::directory::{self, DIRECTORY};

impl NetfilterPlane {
    pub(super) fn watch(&mut self, place: &Place) {
        if self.watched.values().any(|p| p == place) {
            return;
        }
        let number = self.next_watch;
        let (Some(watch), Some(monitor)) = (&self.watch, monitor_of(&self.node, &self.ingress, &self.tasks, place)) else { return };
        match watch.add(monitor.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, number)) {
            Ok(()) => {
                self.watched.insert(number, place.clone());
                self.next_watch += 1;
            }
            Err(error) => tracing::warn!(place = %self.name(place), %error, "foreign changes are noticed by the audit only"),
        }
    }

    /// Readable when somebody changed nftables in one of the places.
    pub fn events(&self) -> Option<BorrowedFd<'_>> {
        self.watch.as_ref().map(|w| w.0.as_fd())
    }

    /// Looks at what changed and undoes what others did to our tables.
    pub fn check_events(&mut self, now: Instant) {
        let Some(watch) = &self.watch else { return };
        let mut ready = [EpollEvent::empty(); 64];
        let Ok(count) = watch.wait(&mut ready, 0u8) else { return };
        let ready = &ready[..count];
        let places: Vec<Place> = ready.iter().filter_map(|e| self.watched.get(&e.data()).cloned()).collect();
        if ready.iter().any(|e| e.data() == DIRECTORY) {
            self.hurry(now);
        }
        for place in places {
            let harm = self.harm(&place);
            if harm == Harm::None {
                continue;
            }
            let mended = self.work();
            self.attempt(&place, now, |plane, place| match (place, harm) {
                (Place::Node, Harm::Docker) => {
                    let facts = plane.ingress.as_ref().map(|i| i.facts().clone()).unwrap_or_default();
                    plane.node.as_mut().map_or(Ok(()), |node| node.ensure_forwarding(&facts))
                }
                _ => plane.sync(place),
            });
            if self.work() != mended {
                self.healed += 1;
                if let Some(record) = self.records.get_mut(&place) {
                    record.healed += 1;
                }
                tracing::warn!(place = %self.name(&place), "another program changed our rules; they are back");
            }
        }
        self.tell(now);
    }

    /// Something appeared in the directory of namespaces: whoever waits for one tries again soon, and often at first. Docker
    /// makes the file before it mounts the namespace on it, and of the mount nobody tells.
    fn hurry(&mut self, now: Instant) {
        directory::read(self.directory.as_ref());
        self.leave_replaced(now);
        for pending in self.records.values_mut().filter_map(|r| r.pending.as_mut()) {
            pending.retry = now;
            pending.pause = FIRST_RETRY;
        }
    }

    /// Lets go of namespaces that are no longer behind their paths, and takes those that are.
    pub(super) fn leave_replaced(&mut self, now: Instant) {
        let tasks = self.tasks.iter().filter(|(_, t)| !t.table.is_current(&*self.kernel)).map(|(id, _)| Place::Task(id.clone()));
        let ingress = self.ingress.iter().filter(|t| !t.table.is_current(&*self.kernel)).map(|_| Place::Ingress);
        let replaced: Vec<Place> = ingress.chain(tasks).collect();
        for place in replaced {
            self.drop_table(&place);
            self.attempt(&place, now, Self::sync);
            if place == Place::Ingress {
                // The new one may have other addresses.
                self.drop_table(&Place::Node);
                self.attempt(&Place::Node, now, Self::sync);
            }
        }
    }

    fn harm(&mut self, place: &Place) -> Harm {
        self.table(place).map_or(Harm::None, Table::harm)
    }
}

fn monitor_of<'a>(
    node: &'a Option<NodeTable>,
    ingress: &'a Option<IngressTable>,
    tasks: &'a BTreeMap<TaskId, TaskTable>,
    place: &Place,
) -> Option<&'a NftMonitor> {
    match place {
        Place::Ingress => Some(&ingress.as_ref()?.table.monitor),
        Place::Node => Some(&node.as_ref()?.table.monitor),
        Place::Task(id) => Some(&tasks.get(id)?.table.monitor),
    }
}
