//! Links, addresses, routes, rules and neighbours: a small synchronous rtnetlink socket.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{Emitable, Parseable};
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType, RouteVia},
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::libc;
use serde::Serialize;

use crate::{
    KernelError, Netns,
    neighbours::{self, NEIGHBOUR_HEADER_LEN},
    netlink::{CREATE, EXCLUSIVE, Message, NetlinkSocket, REPLACE, attribute, attributes, text, u32_ne},
};

/// RT_TABLE_MAIN.
const MAIN_TABLE: u32 = libc::RT_TABLE_MAIN as u32;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Link {
    /// Number in its namespace.
    pub index: u32,
    /// Name in its namespace.
    pub name: String,
    /// Ethernet address; `None` for interfaces that have none.
    pub mac: Option<[u8; 6]>,
    /// Bytes of a packet without its link header.
    pub mtu: u32,
    /// Administratively up; says nothing of the carrier.
    pub up: bool,
    /// Driver kind such as `veth` or `vxlan`; `None` for hardware and loopback.
    pub kind: Option<String>,
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Address {
    /// The interface.
    pub index: u32,
    /// The address itself, not the network's, with its prefix length.
    pub net: IpNet,
}

/// Where packets go that no other route takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DefaultRoute {
    /// Outgoing interface.
    pub index: u32,
    /// Next hop; `None` if the destination is on the link.
    pub gateway: Option<IpAddr>,
}

/// A socket for reading and changing the routing of the namespace it was opened in, from whatever thread.
#[derive(Debug)]
pub struct RouteSocket {
    netlink: NetlinkSocket,
}

impl RouteSocket {
    /// Opens a socket in `ns`.
    pub fn open(ns: &Netns) -> Result<Self, KernelError> {
        Ok(Self { netlink: NetlinkSocket::open(ns, NETLINK_ROUTE, "route")? })
    }

    /// All interfaces.
    pub fn links(&mut self) -> Result<Vec<Link>, KernelError> {
        let action = "list the interfaces";
        self.netlink.dump(
            action,
            libc::RTM_GETLINK,
            |out| out.raw(&[0; LINK_HEADER_LEN]),
            |message, found| {
                found.push(link(message).ok_or_else(|| KernelError::protocol(action, "an interface without index or name"))?);
                Ok(())
            },
        )
    }

    /// All addresses, of both families.
    pub fn addresses(&mut self) -> Result<Vec<Address>, KernelError> {
        let request = bytes(&AddressMessage::default());
        self.netlink.dump(
            "list the addresses",
            libc::RTM_GETADDR,
            |out| out.raw(&request),
            |message, found| {
                found.extend(parsed::<AddressMessage>(message).and_then(|message| address(&message)));
                Ok(())
            },
        )
    }

    /// The default route of the main table, the one with the smallest metric if there are several.
    pub fn default_route(&mut self, v6: bool) -> Result<Option<DefaultRoute>, KernelError> {
        let routes = self.default_routes(v6, MAIN_TABLE)?;
        let usable = routes.iter().filter_map(|route| Some((metric(route), target(route)?)));
        Ok(usable.min_by_key(|(metric, _)| *metric).map(|(_, target)| target))
    }

    /// Makes packets with `mark` under `mask` use `table`. True if the rule was not there; there is never a second one.
    pub fn ensure_rule_fwmark(&mut self, v6: bool, mark: u32, mask: u32, table: u32, priority: u32) -> Result<bool, KernelError> {
        if self.has_rule(v6, mark, mask, table, priority)? {
            return Ok(false);
        }
        let action = format!("add the {} rule {priority}: fwmark {mark:#x}/{mask:#x} lookup {table}", family_name(v6));
        let body = bytes(&rule(v6, mark, mask, table, priority));
        self.change(&action, libc::RTM_NEWRULE, CREATE | EXCLUSIVE, &body)?;
        Ok(true)
    }

    /// Takes that rule away. False if it was not there.
    pub fn remove_rule_fwmark(&mut self, v6: bool, mark: u32, mask: u32, table: u32, priority: u32) -> Result<bool, KernelError> {
        let action = format!("delete the {} rule {priority}: fwmark {mark:#x}/{mask:#x} lookup {table}", family_name(v6));
        let body = bytes(&rule(v6, mark, mask, table, priority));
        absent_is_fine(self.change(&action, libc::RTM_DELRULE, 0, &body))
    }

    /// Makes the default route of `table` lead to `via`, which is taken to be on the link of `index` whatever addresses
    /// that interface has. True if it was not so; a different default route of that table is replaced.
    pub fn ensure_default_route(&mut self, v6: bool, table: u32, index: u32, via: IpAddr) -> Result<bool, KernelError> {
        let action = format!("set the {} default route of table {table} to {via} on interface {index}", family_name(v6));
        if via.is_ipv6() != v6 {
            return Err(KernelError::protocol(action, "the next hop is of the other family"));
        }
        let wanted = DefaultRoute { index, gateway: Some(via) };
        if self.default_routes(v6, table)?.iter().any(|route| target(route) == Some(wanted)) {
            return Ok(false);
        }
        let mut message = default_route(v6, table);
        message.header.flags = RouteFlags::Onlink;
        message.attributes.push(RouteAttribute::Oif(index));
        message.attributes.push(RouteAttribute::Gateway(RouteAddress::from(via)));
        self.change(&action, libc::RTM_NEWROUTE, CREATE | REPLACE, &bytes(&message))?;
        Ok(true)
    }

    /// Takes the default route of `table` away. False if there was none.
    pub fn remove_default_route(&mut self, v6: bool, table: u32) -> Result<bool, KernelError> {
        let action = format!("delete the {} default route of table {table}", family_name(v6));
        let mut message = default_route(v6, table);
        // Nothing named but the destination: whichever it is, it goes.
        message.header.scope = RouteScope::NoWhere;
        message.header.protocol = RouteProtocol::Unspec;
        message.header.kind = RouteType::Unspec;
        absent_is_fine(self.change(&action, libc::RTM_DELROUTE, 0, &bytes(&message)))
    }

    /// Makes `address` on `index` a permanent neighbour with that Ethernet address. True if it was not.
    pub fn ensure_neighbour(&mut self, index: u32, address: IpAddr, mac: [u8; 6]) -> Result<bool, KernelError> {
        let action = format!("set the neighbour {address} on interface {index}");
        let mut message = neighbour(index, address);
        let mut present = false;
        let read = self.netlink.request(
            &format!("read the neighbour {address} on interface {index}"),
            libc::RTM_GETNEIGH,
            0,
            |out| out.raw(&bytes(&message)),
            |answer| {
                present |= parsed::<NeighbourMessage>(answer).is_some_and(|found| {
                    found.header.state == NeighbourState::Permanent
                        && found.attributes.iter().any(|a| matches!(a, NeighbourAttribute::LinkLayerAddress(bytes) if bytes[..] == mac))
                });
                Ok(())
            },
        );
        absent_is_fine(read)?;
        if present {
            return Ok(false);
        }
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        self.change(&action, libc::RTM_NEWNEIGH, CREATE | REPLACE, &bytes(&message))?;
        Ok(true)
    }

    /// Takes a neighbour away. False if it was not there.
    pub fn remove_neighbour(&mut self, index: u32, address: IpAddr) -> Result<bool, KernelError> {
        let action = format!("delete the neighbour {address} on interface {index}");
        absent_is_fine(self.change(&action, libc::RTM_DELNEIGH, 0, &bytes(&neighbour(index, address))))
    }

    /// The permanent neighbours of these interfaces, of both families.
    pub(crate) fn permanent_neighbours(&mut self, interfaces: &[u32]) -> Result<Vec<IpAddr>, KernelError> {
        self.netlink.dump(
            "list the neighbours",
            libc::RTM_GETNEIGH,
            |out| out.raw(&[0; NEIGHBOUR_HEADER_LEN]),
            |message, found| {
                found.extend(neighbours::neighbour(message, interfaces).filter(|(_, permanent)| *permanent).map(|(address, _)| address));
                Ok(())
            },
        )
    }

    fn change(&mut self, action: &str, kind: u16, flags: u16, body: &[u8]) -> Result<(), KernelError> {
        self.netlink.request(action, kind, flags, |out| out.raw(body), |_| Ok(()))
    }

    fn default_routes(&mut self, v6: bool, table: u32) -> Result<Vec<RouteMessage>, KernelError> {
        let mut request = RouteMessage::default();
        request.header.address_family = family(v6);
        let request = bytes(&request);
        let action = format!("list the {} routes", family_name(v6));
        self.netlink.dump(
            &action,
            libc::RTM_GETROUTE,
            |out| out.raw(&request),
            |message, found| {
                found.extend(parsed::<RouteMessage>(message).filter(|route| {
                    route.header.destination_prefix_length == 0 && route.header.kind == RouteType::Unicast && table_of(route) == table
                }));
                Ok(())
            },
        )
    }

    fn has_rule(&mut self, v6: bool, mark: u32, mask: u32, table: u32, priority: u32) -> Result<bool, KernelError> {
        let mut request = RuleMessage::default();
        request.header.family = family(v6);
        let request = bytes(&request);
        let wanted = rule(v6, mark, mask, table, priority);
        let action = format!("list the {} rules", family_name(v6));
        let same: Vec<()> = self.netlink.dump(
            &action,
            libc::RTM_GETRULE,
            |out| out.raw(&request),
            |message, found| {
                found.extend(parsed::<RuleMessage>(message).filter(|rule| is_rule(rule, &wanted)).map(|_| ()));
                Ok(())
            },
        )?;
        Ok(!same.is_empty())
    }
}

const fn family(v6: bool) -> AddressFamily {
    if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet }
}

const fn family_name(v6: bool) -> &'static str {
    if v6 { "IPv6" } else { "IPv4" }
}

fn bytes(message: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}

/// `None` for what the crate cannot read: that is somebody else's, since what we write it can.
fn parsed<T: Parseable<[u8]>>(message: &Message<'_>) -> Option<T> {
    T::parse(message.payload).inspect_err(|error| tracing::debug!(kind = message.kind, %error, "skipping a message")).ok()
}

fn absent_is_fine(result: Result<(), KernelError>) -> Result<bool, KernelError> {
    match result {
        Ok(()) => Ok(true),
        Err(KernelError::NotFound { .. }) => Ok(false),
        // What ip_fib says of an address family's table that was never used, and neigh_delete of a family without IPv6.
        Err(KernelError::NotSupported { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// `struct ifinfomsg`.
const LINK_HEADER_LEN: usize = 16;

/// Read by hand, unlike the rest: an interface has some seventy attributes, and one of them that a newer kernel writes
/// differently must not hide the interface.
fn link(message: &Message<'_>) -> Option<Link> {
    const IFLA_INFO_KIND: u16 = 1;
    let (header, body) = message.payload.split_at_checked(LINK_HEADER_LEN)?;
    let index = u32_ne(header.get(4..8)?)?;
    let up = u32_ne(header.get(8..12)?)? & libc::IFF_UP as u32 != 0;
    let mut link = Link { index, name: String::new(), mac: None, mtu: 0, up, kind: None };
    for (kind, value) in attributes(body) {
        match kind {
            libc::IFLA_IFNAME => link.name = text(value),
            libc::IFLA_ADDRESS => link.mac = value.try_into().ok(),
            libc::IFLA_MTU => link.mtu = u32_ne(value)?,
            libc::IFLA_LINKINFO => link.kind = attribute(value, IFLA_INFO_KIND).map(text),
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(link)
}

fn address(message: &AddressMessage) -> Option<Address> {
    let mut own = None;
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point interface, IFA_ADDRESS is the other end.
            AddressAttribute::Local(local) => own = Some(*local),
            AddressAttribute::Address(address) => own = own.or(Some(*address)),
            _ => {}
        }
    }
    Some(Address { index: message.header.index, net: IpNet::new(own?, message.header.prefix_len).ok()? })
}

fn table_of(route: &RouteMessage) -> u32 {
    // The header has 8 bits; the attribute is right in any case.
    let long = route.attributes.iter().find_map(|a| if let RouteAttribute::Table(table) = a { Some(*table) } else { None });
    long.unwrap_or(u32::from(route.header.table))
}

fn metric(route: &RouteMessage) -> u32 {
    route.attributes.iter().find_map(|a| if let RouteAttribute::Priority(metric) = a { Some(*metric) } else { None }).unwrap_or(0)
}

/// Interface and next hop; the first ones of a multipath route.
fn target(route: &RouteMessage) -> Option<DefaultRoute> {
    let mut index = None;
    let mut gateway = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(oif) => index = Some(*oif),
            RouteAttribute::MultiPath(hops) => {
                let hop = hops.first()?;
                index = Some(hop.interface_index);
                gateway = hop.attributes.iter().find_map(next_hop);
            }
            other => gateway = next_hop(other).or(gateway),
        }
    }
    Some(DefaultRoute { index: index?, gateway })
}

fn next_hop(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address)) | RouteAttribute::Via(RouteVia::Inet(address)) => Some((*address).into()),
        RouteAttribute::Gateway(RouteAddress::Inet6(address)) | RouteAttribute::Via(RouteVia::Inet6(address)) => Some((*address).into()),
        _ => None,
    }
}

fn rule(v6: bool, mark: u32, mask: u32, table: u32, priority: u32) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(v6);
    message.header.action = RuleAction::ToTable;
    message.header.table = u8::try_from(table).unwrap_or(0);
    message.attributes = vec![
        RuleAttribute::Priority(priority),
        RuleAttribute::FwMark(mark),
        RuleAttribute::FwMask(mask),
        RuleAttribute::Table(table),
        RuleAttribute::Protocol(RouteProtocol::Static),
    ];
    message
}

/// The same selector, target and priority, and no further selector. Who installed it does not matter.
fn is_rule(found: &RuleMessage, wanted: &RuleMessage) -> bool {
    let header = &found.header;
    header.action == RuleAction::ToTable
        && !header.flags.contains(RuleFlags::Invert)
        && (header.dst_len, header.src_len, header.tos) == (0, 0, 0)
        && wanted.attributes[..4].iter().all(|attribute| found.attributes.contains(attribute))
        && !found.attributes.iter().any(|attribute| {
            matches!(
                attribute,
                RuleAttribute::Iifname(_)
                    | RuleAttribute::Oifname(_)
                    | RuleAttribute::UidRange(_)
                    | RuleAttribute::IpProtocol(_)
                    | RuleAttribute::SourcePortRange(_)
                    | RuleAttribute::DestinationPortRange(_)
            )
        })
}

fn default_route(v6: bool, table: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(v6);
    message.header.table = u8::try_from(table).unwrap_or(0);
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![RouteAttribute::Table(table)];
    message
}

fn neighbour(index: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address.is_ipv6());
    message.header.ifindex = index;
    message.attributes = vec![NeighbourAttribute::Destination(NeighbourAddress::from(address))];
    message
}
