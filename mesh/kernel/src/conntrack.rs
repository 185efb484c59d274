//! Forgetting tracked connections, so that their next packet is balanced anew.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::libc;
use serde::Serialize;

use crate::{
    KernelError, Netns,
    netlink::{ACK, Answer, MessageBuffer, NetlinkSocket, REQUEST, attribute, messages},
};

const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_NEW: u16 = NFNL_SUBSYS_CTNETLINK << 8;
const IPCTNL_MSG_CT_GET: u16 = IPCTNL_MSG_CT_NEW | 1;
const IPCTNL_MSG_CT_DELETE: u16 = IPCTNL_MSG_CT_NEW | 2;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;

/// Which parts of a tuple the kernel compares, in host byte order: `CTA_FILTER_F_*` in
/// `net/netfilter/nf_internals.h`, which is not part of the user API headers.
const FILTER_SOURCE: u32 = 1 << 0;
const FILTER_DESTINATION: u32 = 1 << 1;
const FILTER_PROTOCOL: u32 = 1 << 3;
const FILTER_SOURCE_PORT: u32 = 1 << 4;
const FILTER_DESTINATION_PORT: u32 = 1 << 5;

const NETFILTER_HEADER_LEN: usize = 4;
/// Single deletions sent in one go; their answers must fit the socket's receive buffer.
const DELETIONS_AT_ONCE: usize = 64;

/// Which tracked connections to forget. All parts given must match; a part that is `None` matches anything.
///
/// *Original* is the tuple of the first packet, before destination NAT; the source of the *reply* tuple is therefore the
/// backend that the connection was sent to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct FlowFilter {
    /// The address family, if neither address tells it; both families if `None`.
    pub v6: Option<bool>,
    /// Transport protocol number.
    pub protocol: Option<u8>,
    /// Where the client sent its packet, as a VIP.
    pub original_destination: Option<IpAddr>,
    /// The port it sent it to.
    pub original_destination_port: Option<u16>,
    /// Who answers.
    pub reply_source: Option<IpAddr>,
    /// The port it answers from.
    pub reply_source_port: Option<u16>,
}

impl FlowFilter {
    /// Refuses a filter that names nothing: it would forget every connection of the node.
    pub(crate) fn check(&self, action: &str) -> Result<(), KernelError> {
        if (Self { v6: None, ..*self }) == Self::default() {
            return Err(KernelError::protocol(action, "the filter names nothing and would forget every connection"));
        }
        Ok(())
    }

    /// True if the kernel's own filter on deletion does what this filter says.
    ///
    /// - For IPv6 addresses the kernel tests `!ipv6_addr_cmp(...)` and so spares just what was to be deleted, and deletes
    ///   everything else (`ctnetlink_filter_match_tuple` in `net/netfilter/nf_conntrack_netlink.c`; seen on 6.18): never to
    ///   be trusted with an IPv6 address.
    /// - Ports are compared for TCP and UDP only; with SCTP every port would match. And only along with a protocol.
    fn suits_kernel(&self) -> bool {
        let v6_address = [self.original_destination, self.reply_source].iter().flatten().any(IpAddr::is_ipv6);
        let ports = self.original_destination_port.is_some() || self.reply_source_port.is_some();
        let port_protocol = matches!(self.protocol.map(i32::from), Some(libc::IPPROTO_TCP | libc::IPPROTO_UDP));
        !v6_address && (!ports || port_protocol)
    }

    /// The families to look at; none if the filter contradicts itself.
    fn families(&self) -> Vec<bool> {
        let told = [self.v6, self.original_destination.map(|a| a.is_ipv6()), self.reply_source.map(|a| a.is_ipv6())];
        [false, true].into_iter().filter(|v6| told.iter().flatten().all(|told| told == v6)).collect()
    }

    fn matches(&self, original: &Tuple, reply: &Tuple) -> bool {
        fn part<T: PartialEq>(wanted: Option<T>, found: Option<T>) -> bool {
            wanted.is_none() || wanted == found
        }
        part(self.protocol, original.protocol)
            && part(self.original_destination, original.destination)
            && part(self.original_destination_port, original.destination_port)
            && part(self.reply_source, reply.source)
            && part(self.reply_source_port, reply.source_port)
    }
}

/// A socket for forgetting connections of the namespace it was opened in, from whatever thread.
#[derive(Debug)]
pub struct ConntrackSocket {
    netlink: NetlinkSocket,
    /// Until the kernel has said that it cannot.
    kernel_filters: bool,
}

impl ConntrackSocket {
    /// Opens a socket in `ns`.
    pub fn open(ns: &Netns) -> Result<Self, KernelError> {
        Ok(Self { netlink: NetlinkSocket::open(ns, NETLINK_NETFILTER, "conntrack")?, kernel_filters: true })
    }

    /// Deletes every entry of this namespace that matches.
    ///
    /// Linux 6.12 and later filter themselves where they do it right, see [`FlowFilter`]; else the table is read
    /// and the matching entries are deleted one by one, which takes a second per some 300,000 entries of the table.
    pub fn flush(&mut self, filter: &FlowFilter) -> Result<(), KernelError> {
        let action = format!("forget connections {filter:?}");
        filter.check(&action)?;
        for v6 in filter.families() {
            if self.kernel_filters && filter.suits_kernel() {
                match self.flush_in_kernel(&action, filter, v6) {
                    // Before 6.12, the partial tuple is taken for the key of one entry: EINVAL for what it lacks, ENOENT if by
                    // chance it lacks nothing.
                    Err(KernelError::NotSupported { .. } | KernelError::NotFound { .. }) => self.kernel_filters = false,
                    Err(KernelError::Io { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => self.kernel_filters = false,
                    done => {
                        done?;
                        continue;
                    }
                }
            }
            self.flush_one_by_one(&action, filter, v6)?;
        }
        Ok(())
    }

    fn flush_in_kernel(&mut self, action: &str, filter: &FlowFilter, v6: bool) -> Result<(), KernelError> {
        self.netlink.request(
            action,
            IPCTNL_MSG_CT_DELETE,
            0,
            |out| {
                out.netfilter_header(family(v6), 0);
                encode_filter(out, filter);
            },
            |_| Ok(()),
        )
    }

    fn flush_one_by_one(&mut self, action: &str, filter: &FlowFilter, v6: bool) -> Result<(), KernelError> {
        let entries = self.netlink.dump(
            action,
            IPCTNL_MSG_CT_GET,
            |out| out.netfilter_header(family(v6), 0),
            |message, found: &mut Vec<EntryKey>| {
                if message.kind == IPCTNL_MSG_CT_NEW {
                    let body = message.payload.get(NETFILTER_HEADER_LEN..).unwrap_or_default();
                    found.extend(EntryKey::of_matching(body, filter));
                }
                Ok(())
            },
        )?;
        tracing::debug!(entries = entries.len(), "forgetting connections one by one");
        entries.chunks(DELETIONS_AT_ONCE).try_for_each(|chunk| self.delete(action, v6, chunk))
    }

    fn delete(&mut self, action: &str, v6: bool, entries: &[EntryKey]) -> Result<(), KernelError> {
        let first = self.netlink.reserve(entries.len() as u32);
        let last = first + entries.len() as u32 - 1;
        let mut out = MessageBuffer::default();
        for (sequence, entry) in (first..).zip(entries) {
            out.message(IPCTNL_MSG_CT_DELETE, REQUEST | ACK, sequence, |out| {
                out.netfilter_header(family(v6), 0);
                entry.encode(out);
            });
        }
        self.netlink.send(&out.finish(action)?, action)?;
        let mut result = Ok(());
        loop {
            let bytes = self.netlink.receive(true).map_err(|errno| KernelError::from_errno(action, errno as i32))?.unwrap_or_default();
            for message in messages(bytes).filter(|message| (first..=last).contains(&message.sequence)) {
                match Answer::parse(&message).into_result(action) {
                    // Ended by itself meanwhile.
                    Ok(()) | Err(KernelError::NotFound { .. }) => {}
                    error => result = result.and(error),
                }
                if message.sequence == last {
                    return result;
                }
            }
        }
    }
}

const fn family(v6: bool) -> u8 {
    (if v6 { libc::AF_INET6 } else { libc::AF_INET }) as u8
}

fn encode_filter(out: &mut MessageBuffer, filter: &FlowFilter) {
    let mut original = 0;
    if filter.original_destination.is_some() || filter.protocol.is_some() {
        out.nested(CTA_TUPLE_ORIG, |out| {
            if let Some(address) = filter.original_destination {
                original |= FILTER_DESTINATION;
                out.nested(CTA_TUPLE_IP, |out| encode_address(out, address, CTA_IP_V4_DST, CTA_IP_V6_DST));
            }
            original |=
                encode_protocol(out, filter.protocol, CTA_PROTO_DST_PORT, filter.original_destination_port, FILTER_DESTINATION_PORT);
        });
    }
    let mut reply = 0;
    if filter.reply_source.is_some() || filter.reply_source_port.is_some() {
        out.nested(CTA_TUPLE_REPLY, |out| {
            if let Some(address) = filter.reply_source {
                reply |= FILTER_SOURCE;
                out.nested(CTA_TUPLE_IP, |out| encode_address(out, address, CTA_IP_V4_SRC, CTA_IP_V6_SRC));
            }
            reply |= encode_protocol(out, filter.protocol, CTA_PROTO_SRC_PORT, filter.reply_source_port, FILTER_SOURCE_PORT);
        });
    }
    out.nested(CTA_FILTER, |out| {
        out.attribute(CTA_FILTER_ORIG_FLAGS, &original.to_ne_bytes());
        out.attribute(CTA_FILTER_REPLY_FLAGS, &reply.to_ne_bytes());
    });
}

fn encode_address(out: &mut MessageBuffer, address: IpAddr, v4: u16, v6: u16) {
    match address {
        IpAddr::V4(address) => out.attribute(v4, &address.octets()),
        IpAddr::V6(address) => out.attribute(v6, &address.octets()),
    }
}

/// Writes protocol and port, and returns the flags that make the kernel compare them.
fn encode_protocol(out: &mut MessageBuffer, protocol: Option<u8>, kind: u16, port: Option<u16>, port_flag: u32) -> u32 {
    let Some(protocol) = protocol else { return 0 };
    out.nested(CTA_TUPLE_PROTO, |out| {
        out.attribute(CTA_PROTO_NUM, &[protocol]);
        if let Some(port) = port {
            out.attribute(kind, &port.to_be_bytes());
        }
    });
    FILTER_PROTOCOL | if port.is_some() { port_flag } else { 0 }
}

/// One direction of an entry, as far as filters look at it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tuple {
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    protocol: Option<u8>,
    source_port: Option<u16>,
    destination_port: Option<u16>,
}

impl Tuple {
    fn parse(value: &[u8]) -> Self {
        let ip = attribute(value, CTA_TUPLE_IP).unwrap_or_default();
        let transport = attribute(value, CTA_TUPLE_PROTO).unwrap_or_default();
        let address = |v4, v6| {
            let v4 = attribute(ip, v4).and_then(|octets| Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?))));
            v4.or_else(|| attribute(ip, v6).and_then(|octets| Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(octets).ok()?)))))
        };
        let port = |kind| attribute(transport, kind).and_then(|port| Some(u16::from_be_bytes(port.try_into().ok()?)));
        Self {
            source: address(CTA_IP_V4_SRC, CTA_IP_V6_SRC),
            destination: address(CTA_IP_V4_DST, CTA_IP_V6_DST),
            protocol: attribute(transport, CTA_PROTO_NUM).and_then(|number| number.first().copied()),
            source_port: port(CTA_PROTO_SRC_PORT),
            destination_port: port(CTA_PROTO_DST_PORT),
        }
    }
}

/// What names one entry, in the kernel's own bytes.
#[derive(Debug)]
struct EntryKey {
    original: Vec<u8>,
    /// Keeps a successor with the same tuple from being deleted instead.
    id: Option<Vec<u8>>,
    zone: Option<Vec<u8>>,
}

impl EntryKey {
    fn of_matching(body: &[u8], filter: &FlowFilter) -> Option<Self> {
        let original = attribute(body, CTA_TUPLE_ORIG)?;
        let reply = attribute(body, CTA_TUPLE_REPLY)?;
        filter.matches(&Tuple::parse(original), &Tuple::parse(reply)).then(|| Self {
            original: original.to_vec(),
            id: attribute(body, CTA_ID).map(<[u8]>::to_vec),
            zone: attribute(body, CTA_ZONE).map(<[u8]>::to_vec),
        })
    }

    fn encode(&self, out: &mut MessageBuffer) {
        out.nested(CTA_TUPLE_ORIG, |out| out.raw(&self.original));
        if let Some(id) = &self.id {
            out.attribute(CTA_ID, id);
        }
        if let Some(zone) = &self.zone {
            out.attribute(CTA_ZONE, zone);
        }
    }
}

#[cfg(test)]
mod tests;
