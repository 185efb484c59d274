//! Where an overlay of Docker's leads: the permanent neighbours of its VXLAN interface.
//!
//! Docker's overlay driver has one network namespace per overlay and node. In it, it makes each task of another node a permanent
//! neighbour when gossip tells of it, and takes that away when the task has gone or gossip holds its node for lost (`peerAdd` and
//! `peerDelete` in moby's `daemon/libnetwork/drivers/overlay`). Without the neighbour, nothing reaches the task from this node.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Mutex, PoisonError},
};

use netlink_sys::protocols::NETLINK_ROUTE;
use nix::{errno::Errno, libc};

use crate::{
    KernelError, Netns, RouteSocket,
    fed::{FedEvents, Feed},
    netlink::{Message, NetlinkSocket, attribute, messages, u32_ne},
};

/// `struct ndmsg`.
pub(crate) const NEIGHBOUR_HEADER_LEN: usize = 12;

/// A change of where an overlay leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeighbourEvent {
    /// It leads to this address from now on.
    There(IpAddr),
    /// It leads there no more.
    Gone(IpAddr),
    /// The interface itself went: whoever made the overlay takes it down.
    Ended,
    /// The kernel dropped notifications because they were not read in time: anything may have happened.
    Lost,
}

/// A listener for [`NeighbourEvent`]s of one overlay's namespace. Readable as a file descriptor when there is something to read.
///
/// It keeps the namespace alive: let go of it when it has ended, or when another is behind its path.
#[derive(Debug)]
pub struct NeighbourMonitor {
    source: Source,
}

#[derive(Debug)]
enum Source {
    Netlink {
        events: NetlinkSocket,
        ns: Netns,
        /// Numbers of the interfaces that are the overlay's.
        interfaces: Vec<u32>,
    },
    Fed(FedEvents<NeighbourEvent>, Arc<Mutex<BTreeSet<IpAddr>>>),
}

impl NeighbourMonitor {
    /// Starts to listen in `ns`. [`KernelError::NotFound`] if it has no VXLAN interface (yet).
    pub fn open(ns: &Netns) -> Result<Self, KernelError> {
        let action = || format!("listen to the neighbours in {}", ns.path().display());
        let events = NetlinkSocket::open(ns, NETLINK_ROUTE, "neighbour monitor")?;
        let socket = events.socket();
        // Before the interfaces are read: one that goes meanwhile is told of.
        socket
            .set_non_blocking(true)
            .and_then(|()| socket.add_membership(libc::RTNLGRP_NEIGH))
            .and_then(|()| socket.add_membership(libc::RTNLGRP_LINK))
            .map_err(|source| KernelError::from_errno(action(), source.raw_os_error().unwrap_or_default()))?;
        let links = RouteSocket::open(ns)?.links()?;
        let interfaces: Vec<u32> = links.iter().filter(|link| link.kind.as_deref() == Some("vxlan")).map(|link| link.index).collect();
        if interfaces.is_empty() {
            return Err(KernelError::NotFound { action: action() });
        }
        Ok(Self { source: Source::Netlink { events, ns: ns.clone(), interfaces } })
    }

    /// A monitor whose events come from the returned feed, and whose neighbours are those of the set.
    pub(crate) fn fed(present: Arc<Mutex<BTreeSet<IpAddr>>>) -> Result<(Self, Feed<NeighbourEvent>), KernelError> {
        let (events, feed) = FedEvents::new()?;
        Ok((Self { source: Source::Fed(events, present) }, feed))
    }

    /// Everything that happened since the last call; does not wait.
    pub fn read_events(&mut self) -> Result<Vec<NeighbourEvent>, KernelError> {
        match &mut self.source {
            Source::Netlink { events, interfaces, .. } => read_netlink(events, interfaces),
            Source::Fed(fed, _) => Ok(fed.read()),
        }
    }

    /// Where the overlay leads now.
    pub fn present(&mut self) -> Result<BTreeSet<IpAddr>, KernelError> {
        match &mut self.source {
            // Seldom: a socket of its own for that has buffers, and there is one of these for each overlay.
            Source::Netlink { ns, interfaces, .. } => Ok(RouteSocket::open(ns)?.permanent_neighbours(interfaces)?.into_iter().collect()),
            Source::Fed(_, present) => Ok(present.lock().unwrap_or_else(PoisonError::into_inner).clone()),
        }
    }
}

impl AsFd for NeighbourMonitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.source {
            Source::Netlink { events, .. } => events.as_fd(),
            Source::Fed(fed, _) => fed.as_fd(),
        }
    }
}

fn read_netlink(netlink: &mut NetlinkSocket, interfaces: &[u32]) -> Result<Vec<NeighbourEvent>, KernelError> {
    let mut found = Vec::new();
    loop {
        match netlink.receive(false) {
            Ok(Some(bytes)) => found.extend(messages(bytes).filter_map(|message| event(&message, interfaces))),
            Ok(None) => return Ok(found),
            Err(Errno::ENOBUFS) => found.push(NeighbourEvent::Lost),
            Err(errno) => return Err(KernelError::from_errno("read changes of neighbours", errno as i32)),
        }
    }
}

fn event(message: &Message<'_>, interfaces: &[u32]) -> Option<NeighbourEvent> {
    match message.kind {
        libc::RTM_DELLINK => {
            let index = u32_ne(message.payload.get(4..8)?)?;
            interfaces.contains(&index).then_some(NeighbourEvent::Ended)
        }
        libc::RTM_DELNEIGH => neighbour(message, interfaces).map(|(address, _)| NeighbourEvent::Gone(address)),
        // One that is to be deleted is told of as failed first.
        libc::RTM_NEWNEIGH => neighbour(message, interfaces).filter(|(_, permanent)| *permanent).map(|(a, _)| NeighbourEvent::There(a)),
        _ => None,
    }
}

/// A neighbour of one of these interfaces by its IP address, and whether it is permanent. The forwarding table's entries come as
/// neighbours of another family.
pub(crate) fn neighbour(message: &Message<'_>, interfaces: &[u32]) -> Option<(IpAddr, bool)> {
    const NDA_DST: u16 = 1;
    const NUD_PERMANENT: u16 = 0x80;
    let (header, body) = message.payload.split_at_checked(NEIGHBOUR_HEADER_LEN)?;
    let index = u32_ne(header.get(4..8)?)?;
    let state = u16::from_ne_bytes([*header.get(8)?, *header.get(9)?]);
    let value = attribute(body, NDA_DST)?;
    let address = match i32::from(*header.first()?) {
        libc::AF_INET => IpAddr::from(<[u8; 4]>::try_from(value).ok()?),
        libc::AF_INET6 => IpAddr::from(<[u8; 16]>::try_from(value).ok()?),
        _ => return None,
    };
    interfaces.contains(&index).then_some((address, state & NUD_PERMANENT != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message as the kernel writes it: family, interface and state, and what else there is.
    fn message<'a>(kind: u16, payload: &'a [u8]) -> Message<'a> {
        Message { kind, flags: 0, sequence: 0, port: 0, payload }
    }

    fn payload(family: i32, index: u32, state: u16, destination: &[u8]) -> Vec<u8> {
        let mut bytes = vec![family as u8, 0, 0, 0];
        bytes.extend_from_slice(&index.to_ne_bytes());
        bytes.extend_from_slice(&state.to_ne_bytes());
        bytes.extend_from_slice(&[0, 1]);
        bytes.extend_from_slice(&(destination.len() as u16 + 4).to_ne_bytes());
        bytes.extend_from_slice(&1u16.to_ne_bytes());
        bytes.extend_from_slice(destination);
        bytes
    }

    #[test]
    fn only_the_overlays_own_neighbours_count() {
        let (there, failed) = (0x80, 0x20);
        let told =
            |kind, family, index, state, destination: &[u8]| event(&message(kind, &payload(family, index, state, destination)), &[7]);
        let (four, six) = (IpAddr::from([10, 0, 1, 3]), "fd00::3".parse::<IpAddr>().unwrap());
        let v6 = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3];
        let (new, deleted) = (libc::RTM_NEWNEIGH, libc::RTM_DELNEIGH);
        assert_eq!(told(new, libc::AF_INET, 7, there, &[10, 0, 1, 3]), Some(NeighbourEvent::There(four)));
        assert_eq!(told(new, libc::AF_INET6, 7, there, &v6), Some(NeighbourEvent::There(six)));
        assert_eq!(told(new, libc::AF_INET, 7, failed, &[10, 0, 1, 3]), None);
        assert_eq!(told(deleted, libc::AF_INET, 7, failed, &[10, 0, 1, 3]), Some(NeighbourEvent::Gone(four)));
        assert_eq!(told(deleted, libc::AF_INET, 8, there, &[10, 0, 1, 3]), None, "another interface's");
        assert_eq!(told(deleted, libc::AF_BRIDGE, 7, there, &[192, 0, 2, 13]), None, "the forwarding table's");
        assert_eq!(told(deleted, libc::AF_INET, 7, there, &[10, 0, 1]), None, "no address");
        assert_eq!(event(&message(deleted, &[2, 0, 0]), &[7]), None, "cut off");
        let mut link = vec![0; 16];
        link[4] = 7;
        assert_eq!(event(&message(libc::RTM_DELLINK, &link), &[7]), Some(NeighbourEvent::Ended));
        assert_eq!(event(&message(libc::RTM_DELLINK, &link), &[9]), None);
    }
}
