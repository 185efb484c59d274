//! From our types to the kernel's messages.

use std::{io::Cursor, net::IpAddr, time::Duration};

use neli::{
    Size, ToBytes,
    consts::genl::NlAttrType,
    genl::{AttrTypeBuilder, Genlmsghdr, GenlmsghdrBuilder, Nlattr, NlattrBuilder},
    types::{Buffer, GenlBuffer},
};
use nix::libc;

use super::{
    Forwarding, IpvsOp, RealId, RealServer, Tunnel, TunnelChecksum, VirtualId, VirtualServer,
    codes::{
        Command, DestAttribute, FAMILY_VERSION, FLAG_ONE_PACKET, FLAG_PERSISTENT, FLAG_SCHEDULER_1, FLAG_SCHEDULER_2, FLAG_SCHEDULER_3,
        FLAGS, FORWARD_DIRECT, FORWARD_MASQUERADE, FORWARD_TUNNEL, NAME_MAX, ServiceAttribute, TUNNEL_CHECKSUM, TUNNEL_GRE, TUNNEL_GUE,
        TUNNEL_IPIP, TUNNEL_REMOTE_CHECKSUM, TopAttribute,
    },
};

/// What comes behind the netlink header.
pub(super) type Request = Genlmsghdr<Command, TopAttribute>;
/// Why something cannot be asked for: in words, for [`KernelError::Protocol`](crate::KernelError::Protocol).
type Encoded<T> = Result<T, String>;

pub(super) fn bytes(message: &impl ToBytes) -> Encoded<Vec<u8>> {
    let mut buffer = Cursor::new(Vec::new());
    message.to_bytes(&mut buffer).map_err(|error| error.to_string())?;
    Ok(buffer.into_inner())
}

pub(super) fn attribute<T, P>(kind: T, payload: P) -> Encoded<Nlattr<T, Buffer>>
where
    T: NlAttrType + Size,
    P: Size + ToBytes,
{
    let kind = AttrTypeBuilder::default().nla_type(kind).build().map_err(|error| error.to_string())?;
    NlattrBuilder::default().nla_type(kind).nla_payload(payload).build().map_err(|error| error.to_string())
}

pub(super) fn nested<T, U>(kind: T, inner: Vec<Nlattr<U, Buffer>>) -> Encoded<Nlattr<T, Buffer>>
where
    T: NlAttrType + Size,
    U: NlAttrType,
{
    let outer = attribute(kind, Buffer::new())?;
    inner.iter().try_fold(outer, |outer, attribute| outer.nest(attribute)).map_err(|error| error.to_string())
}

pub(super) fn request(command: Command, attributes: Vec<Nlattr<TopAttribute, Buffer>>) -> Encoded<Request> {
    let attributes = attributes.into_iter().collect::<GenlBuffer<_, _>>();
    GenlmsghdrBuilder::default().cmd(command).version(FAMILY_VERSION).attrs(attributes).build().map_err(|error| error.to_string())
}

pub(super) fn op(op: &IpvsOp) -> Encoded<Request> {
    let service = |id: &VirtualId| nested(TopAttribute::Service, identity(id)?);
    let whole = |server: &VirtualServer| nested(TopAttribute::Service, virtual_server(server)?);
    let dest = |real: &RealServer| nested(TopAttribute::Dest, real_server(real)?);
    match op {
        IpvsOp::AddVirtual(server) => request(Command::NewService, vec![whole(server)?]),
        IpvsOp::SetVirtual(server) => request(Command::SetService, vec![whole(server)?]),
        IpvsOp::DeleteVirtual(id) => request(Command::DelService, vec![service(id)?]),
        IpvsOp::AddReal { of, real } => request(Command::NewDest, vec![service(of)?, dest(real)?]),
        IpvsOp::SetReal { of, real } => request(Command::SetDest, vec![service(of)?, dest(real)?]),
        IpvsOp::DeleteReal { of, real } => request(Command::DelDest, vec![service(of)?, nested(TopAttribute::Dest, real_identity(real)?)?]),
        IpvsOp::Zero(Some(id)) => request(Command::Zero, vec![service(id)?]),
        IpvsOp::Zero(None) => request(Command::Zero, Vec::new()),
        IpvsOp::Flush => request(Command::Flush, Vec::new()),
        IpvsOp::SetTimeouts(timeouts) => {
            let timeout = |kind, duration| attribute(kind, seconds(duration)?);
            let timeouts = vec![
                timeout(TopAttribute::TimeoutTcp, timeouts.tcp)?,
                timeout(TopAttribute::TimeoutTcpFin, timeouts.tcp_fin)?,
                timeout(TopAttribute::TimeoutUdp, timeouts.udp)?,
            ];
            request(Command::SetConfig, timeouts)
        }
    }
}

/// The virtual server whose real servers are asked for.
pub(super) fn list_real(of: &VirtualId) -> Encoded<Request> {
    request(Command::GetDest, vec![nested(TopAttribute::Service, identity(of)?)?])
}

/// The kernel takes zero for "as it was", which nobody means who says it. It counts in ticks, up to 1000 a second, and lets
/// persistence timeouts overflow.
const LONGEST: u32 = i32::MAX as u32 / 1000;

fn seconds(duration: Duration) -> Encoded<u32> {
    match u32::try_from(duration.as_secs()) {
        Ok(seconds @ 1..=LONGEST) if duration.subsec_nanos() == 0 => Ok(seconds),
        _ => Err(format!("{duration:?} is no number of whole seconds from 1 to {LONGEST}")),
    }
}

fn name(name: &str) -> Encoded<&str> {
    if name.is_empty() || name.len() > NAME_MAX || name.contains('\0') {
        return Err(format!("{name:?} is no name of 1 to {NAME_MAX} bytes"));
    }
    Ok(name)
}

const fn family(v6: bool) -> u16 {
    (if v6 { libc::AF_INET6 } else { libc::AF_INET }) as u16
}

/// `union nf_inet_addr`: an IPv4 address is followed by zeros.
fn address(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
        IpAddr::V6(address) => address.octets(),
    }
}

fn identity(id: &VirtualId) -> Encoded<Vec<Nlattr<ServiceAttribute, Buffer>>> {
    let mut attributes = vec![attribute(ServiceAttribute::Family, family(id.is_v6()))?];
    match *id {
        VirtualId::Mark { mark, .. } => attributes.push(attribute(ServiceAttribute::Fwmark, mark.get())?),
        VirtualId::Address { protocol, address: of, port } => {
            attributes.push(attribute(ServiceAttribute::Protocol, u16::from(protocol))?);
            attributes.push(attribute(ServiceAttribute::Address, address(of))?);
            attributes.push(attribute(ServiceAttribute::Port, port.to_be_bytes())?);
        }
    }
    Ok(attributes)
}

pub(super) fn virtual_server(server: &VirtualServer) -> Encoded<Vec<Nlattr<ServiceAttribute, Buffer>>> {
    let mut attributes = identity(&server.id)?;
    attributes.push(attribute(ServiceAttribute::SchedulerName, name(server.scheduler.name())?)?);
    if let Some(engine) = &server.engine {
        attributes.push(attribute(ServiceAttribute::EngineName, name(engine)?)?);
    }
    let bits = [
        (server.persistence.is_some(), FLAG_PERSISTENT),
        (server.one_packet, FLAG_ONE_PACKET),
        (server.flags.fallback, FLAG_SCHEDULER_1),
        (server.flags.ports, FLAG_SCHEDULER_2),
        (server.flags.third, FLAG_SCHEDULER_3),
    ];
    let flags: u32 = bits.iter().filter(|(set, _)| *set).map(|(_, bit)| bit).sum();
    // `struct ip_vs_flags`: the bits, and which of them are meant.
    let (low, mask) = (flags.to_ne_bytes(), FLAGS.to_ne_bytes());
    attributes.push(attribute(ServiceAttribute::Flags, [low, mask].concat())?);
    let whole = if server.id.is_v6() { 128 } else { 32 };
    let (timeout, prefix) = match &server.persistence {
        Some(persistence) => (seconds(persistence.timeout)?, persistence.prefix),
        None => (0, whole),
    };
    if prefix == 0 || prefix > whole {
        return Err(format!("{prefix} is no prefix length from 1 to {whole}"));
    }
    attributes.push(attribute(ServiceAttribute::Timeout, timeout)?);
    // Of IPv4 a mask in network order, of IPv6 the length as a number.
    let netmask = if server.id.is_v6() { u32::from(prefix).to_ne_bytes() } else { (u32::MAX << (whole - prefix)).to_be_bytes() };
    attributes.push(attribute(ServiceAttribute::Netmask, netmask)?);
    Ok(attributes)
}

fn real_identity(id: &RealId) -> Encoded<Vec<Nlattr<DestAttribute, Buffer>>> {
    Ok(vec![
        attribute(DestAttribute::Family, family(id.address.is_ipv6()))?,
        attribute(DestAttribute::Address, address(id.address))?,
        attribute(DestAttribute::Port, id.port.to_be_bytes())?,
    ])
}

pub(super) fn real_server(real: &RealServer) -> Encoded<Vec<Nlattr<DestAttribute, Buffer>>> {
    let mut attributes = real_identity(&real.id)?;
    let method = match real.forwarding {
        Forwarding::Masquerade => FORWARD_MASQUERADE,
        Forwarding::DirectRoute => FORWARD_DIRECT,
        Forwarding::Tunnel(_) => FORWARD_TUNNEL,
        Forwarding::Kernel(_) => return Err("this way of forwarding is the kernel's own".to_owned()),
    };
    let numbers = [
        (DestAttribute::ForwardingMethod, method),
        (DestAttribute::Weight, real.weight),
        (DestAttribute::UpperThreshold, real.upper_threshold),
        (DestAttribute::LowerThreshold, real.lower_threshold),
    ];
    for (kind, value) in numbers {
        attributes.push(attribute(kind, value)?);
    }
    if let Forwarding::Tunnel(tunnel) = real.forwarding {
        let (kind, port, checksum) = match tunnel {
            Tunnel::Ipip => (TUNNEL_IPIP, 0, TunnelChecksum::None),
            Tunnel::Gue { port, checksum } => (TUNNEL_GUE, port, checksum),
            Tunnel::Gre { checksum } => (TUNNEL_GRE, 0, checksum),
            Tunnel::Other(_) => return Err("a tunnel of a kind that this program does not know".to_owned()),
        };
        let checksum = match checksum {
            TunnelChecksum::None => 0,
            TunnelChecksum::Full => TUNNEL_CHECKSUM,
            TunnelChecksum::Remote => TUNNEL_REMOTE_CHECKSUM,
        };
        attributes.push(attribute(DestAttribute::TunnelType, kind)?);
        attributes.push(attribute(DestAttribute::TunnelPort, port.to_be_bytes())?);
        attributes.push(attribute(DestAttribute::TunnelFlags, checksum)?);
    }
    Ok(attributes)
}
