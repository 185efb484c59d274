//! Who takes our tables apart: notifications of nf_tables.

use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::{
    errno::Errno,
    sys::socket::{setsockopt, sockopt},
};

use super::{
    Family,
    codes::{
        NFNLGRP_NFTABLES, NFT_MSG_DELCHAIN, NFT_MSG_DELRULE, NFT_MSG_DELSET, NFT_MSG_DELSETELEM, NFT_MSG_DELTABLE, NFT_MSG_NEWGEN,
        NFTA_GEN_ID, NFTA_GEN_PROC_NAME, NFTA_GEN_PROC_PID, NFTA_RULE_CHAIN, NFTA_RULE_TABLE, NFTA_SET_ELEM_LIST_SET,
        NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_NAME, NFTA_SET_TABLE, message_type,
    },
    parse,
};
use crate::{
    KernelError, Netns,
    fed::{FedEvents, Feed},
    netlink::{Message, NetlinkSocket, attribute, messages, text, u32_be},
};

/// Only used as far as it is filled. A commit is announced element by element, our own ones too.
const RECEIVE_BUFFER: usize = 64 << 20;

/// A deletion in nftables, or the end of a commit.
///
/// `port` is the netlink port id of the socket that did it: compare with [`NftSocket::port_id`](super::NftSocket::port_id) to tell
/// one's own changes. Additions are not reported: nothing that we put in stops working because of them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the names of the object, and the port that is explained above")]
pub enum NftEvent {
    /// A table went with all that was in it; what was in it is reported too, before it.
    TableDeleted { family: Family, table: String, port: u32 },
    /// A chain went.
    ChainDeleted { family: Family, table: String, chain: String, port: u32 },
    /// A rule went.
    RuleDeleted { family: Family, table: String, chain: String, port: u32 },
    /// A set or map went.
    SetDeleted { family: Family, table: String, set: String, port: u32 },
    /// At least one element went; a row of them is one event.
    ElementsDeleted { family: Family, table: String, set: String, port: u32 },
    /// A commit is complete; the deletions before it belong to it.
    Generation {
        /// The new generation, as [`NftSocket::generation`](super::NftSocket::generation) tells it.
        id: u32,
        /// Process that committed, as far as it is visible from here.
        pid: Option<u32>,
        /// The first 15 bytes of its name.
        name: Option<String>,
        port: u32,
    },
    /// The kernel dropped notifications because they were not read in time: anything may have happened.
    Lost,
}

impl NftEvent {
    /// Netlink port id of the socket that did it; `None` for [`NftEvent::Lost`].
    pub const fn port(&self) -> Option<u32> {
        match self {
            Self::TableDeleted { port, .. }
            | Self::ChainDeleted { port, .. }
            | Self::RuleDeleted { port, .. }
            | Self::SetDeleted { port, .. }
            | Self::ElementsDeleted { port, .. }
            | Self::Generation { port, .. } => Some(*port),
            Self::Lost => None,
        }
    }
}

/// A listener for [`NftEvent`]s of one namespace. Readable as a file descriptor when there is something to read.
#[derive(Debug)]
pub struct NftMonitor {
    source: Source,
}

#[derive(Debug)]
enum Source {
    Netlink(NetlinkSocket),
    Fed(FedEvents<NftEvent>),
}

impl NftMonitor {
    /// Starts to listen in `ns`: every commit that ends after this is seen.
    pub fn open(ns: &Netns) -> Result<Self, KernelError> {
        let netlink = NetlinkSocket::open(ns, NETLINK_NETFILTER, "nftables monitor")?;
        let action = || format!("listen to nftables in {}", ns.path().display());
        setsockopt(netlink.socket(), sockopt::RcvBufForce, &RECEIVE_BUFFER)
            .map_err(|errno| KernelError::from_errno(action(), errno as i32))?;
        netlink
            .socket()
            .set_non_blocking(true)
            .and_then(|()| netlink.socket().add_membership(NFNLGRP_NFTABLES))
            .map_err(|source| KernelError::from_errno(action(), source.raw_os_error().unwrap_or_default()))?;
        Ok(Self { source: Source::Netlink(netlink) })
    }

    /// A monitor whose events come from the returned feed.
    pub(crate) fn fed() -> Result<(Self, Feed<NftEvent>), KernelError> {
        let (events, feed) = FedEvents::new()?;
        Ok((Self { source: Source::Fed(events) }, feed))
    }

    /// Everything that happened since the last call; does not wait.
    pub fn read_events(&mut self) -> Result<Vec<NftEvent>, KernelError> {
        match &mut self.source {
            Source::Netlink(netlink) => read_netlink(netlink),
            Source::Fed(fed) => Ok(fed.read()),
        }
    }
}

impl AsFd for NftMonitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.source {
            Source::Netlink(netlink) => netlink.as_fd(),
            Source::Fed(fed) => fed.as_fd(),
        }
    }
}

fn read_netlink(netlink: &mut NetlinkSocket) -> Result<Vec<NftEvent>, KernelError> {
    let mut events = Vec::new();
    loop {
        let found: Vec<NftEvent> = match netlink.receive(false) {
            Ok(Some(bytes)) => messages(bytes).filter_map(|message| event(&message)).collect(),
            Ok(None) => return Ok(events),
            Err(Errno::ENOBUFS) => vec![NftEvent::Lost],
            Err(errno) => return Err(KernelError::from_errno("read nftables events", errno as i32)),
        };
        for event in found {
            if events.last() != Some(&event) {
                events.push(event);
            }
        }
    }
}

fn event(message: &Message<'_>) -> Option<NftEvent> {
    const TABLE: u16 = message_type(NFT_MSG_DELTABLE);
    const CHAIN: u16 = message_type(NFT_MSG_DELCHAIN);
    const RULE: u16 = message_type(NFT_MSG_DELRULE);
    const SET: u16 = message_type(NFT_MSG_DELSET);
    const ELEMENTS: u16 = message_type(NFT_MSG_DELSETELEM);
    const GENERATION: u16 = message_type(NFT_MSG_NEWGEN);
    let port = message.port;
    let names = |first, second| {
        let (family, body) = parse::netfilter(message)?;
        Some((family, text(attribute(body, first)?), text(attribute(body, second)?)))
    };
    match message.kind {
        TABLE => parse::table(message).map(|(family, table)| NftEvent::TableDeleted { family, table, port }),
        CHAIN => parse::chain(message).map(|(family, table, chain)| NftEvent::ChainDeleted { family, table, chain, port }),
        RULE => names(NFTA_RULE_TABLE, NFTA_RULE_CHAIN).map(|(family, table, chain)| NftEvent::RuleDeleted { family, table, chain, port }),
        SET => names(NFTA_SET_TABLE, NFTA_SET_NAME).map(|(family, table, set)| NftEvent::SetDeleted { family, table, set, port }),
        ELEMENTS => names(NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_ELEM_LIST_SET).map(|(family, table, set)| NftEvent::ElementsDeleted {
            family,
            table,
            set,
            port,
        }),
        GENERATION => {
            let body = message.payload.get(4..)?;
            Some(NftEvent::Generation {
                id: u32_be(attribute(body, NFTA_GEN_ID)?)?,
                pid: attribute(body, NFTA_GEN_PROC_PID).and_then(u32_be),
                name: attribute(body, NFTA_GEN_PROC_NAME).map(text),
                port,
            })
        }
        _ => None,
    }
}
