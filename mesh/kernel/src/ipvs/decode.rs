//! From the kernel's messages to our types. What a newer kernel adds is passed over; what must be there and is not is an error.

use std::{
    io::Cursor,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU32,
    time::Duration,
};

use neli::{
    FromBytesWithInput,
    consts::genl::{Cmd, NlAttrType},
    genl::{GenlAttrHandle, Genlmsghdr},
};
use nix::libc;

use super::{
    Counters, Forwarding, IpvsInfo, IpvsTimeouts, Persistence, Rates, RealId, RealServer, RealState, SchedulerFlags, Tunnel,
    TunnelChecksum, VirtualId, VirtualScheduler, VirtualServer, VirtualState,
    codes::{
        Command, DestAttribute, FLAG_ONE_PACKET, FLAG_PERSISTENT, FLAG_SCHEDULER_1, FLAG_SCHEDULER_2, FLAG_SCHEDULER_3, FORWARD_BYPASS,
        FORWARD_DIRECT, FORWARD_LOCAL, FORWARD_MASK, FORWARD_MASQUERADE, FORWARD_TUNNEL, InfoAttribute, ServiceAttribute, StatsAttribute,
        TUNNEL_CHECKSUM, TUNNEL_GRE, TUNNEL_GUE, TUNNEL_IPIP, TUNNEL_REMOTE_CHECKSUM, TopAttribute,
    },
};

/// What is wrong with a message, in words.
type Decoded<T> = Result<T, String>;

/// A message's command and attributes.
pub(super) fn message<C, T>(payload: &[u8]) -> Decoded<Genlmsghdr<C, T>>
where
    C: Cmd + neli::TypeSize + neli::FromBytes,
    T: NlAttrType,
{
    Genlmsghdr::from_bytes_with_input(&mut Cursor::new(payload), payload.len()).map_err(|error| error.to_string())
}

fn raw<'a, T: NlAttrType>(attributes: &'a GenlAttrHandle<'_, T>, kind: T) -> Option<&'a [u8]> {
    attributes.get_attribute(kind).map(|attribute| attribute.nla_payload().as_ref())
}

fn needed<const N: usize, T: NlAttrType>(attributes: &GenlAttrHandle<'_, T>, kind: T, what: &str) -> Decoded<[u8; N]> {
    raw(attributes, kind).and_then(|value| value.try_into().ok()).ok_or_else(|| format!("no {what}, or not of {N} bytes"))
}

/// 4 or 8 bytes: counters have grown.
fn number<T: NlAttrType>(attributes: &GenlAttrHandle<'_, T>, kind: T) -> Option<u64> {
    let value = raw(attributes, kind)?;
    let short = <[u8; 4]>::try_from(value).map(|bytes| u64::from(u32::from_ne_bytes(bytes)));
    short.or_else(|_| <[u8; 8]>::try_from(value).map(u64::from_ne_bytes)).ok()
}

fn number32<T: NlAttrType>(attributes: &GenlAttrHandle<'_, T>, kind: T, what: &str) -> Decoded<u32> {
    needed(attributes, kind, what).map(u32::from_ne_bytes)
}

fn name<T: NlAttrType>(attributes: &GenlAttrHandle<'_, T>, kind: T) -> Option<String> {
    raw(attributes, kind).map(crate::netlink::text)
}

fn is_v6(family: u16) -> Decoded<bool> {
    match i32::from(family) {
        libc::AF_INET => Ok(false),
        libc::AF_INET6 => Ok(true),
        other => Err(format!("address family {other}")),
    }
}

fn address(bytes: [u8; 16], v6: bool) -> IpAddr {
    if v6 { IpAddr::V6(Ipv6Addr::from(bytes)) } else { IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])) }
}

/// `None` for a message of another command.
pub(super) fn virtual_state(payload: &[u8]) -> Decoded<Option<VirtualState>> {
    let message = message::<Command, TopAttribute>(payload)?;
    if *message.cmd() != Command::NewService {
        return Ok(None);
    }
    let top = message.attrs().get_attr_handle();
    let attributes = top.get_nested_attributes::<ServiceAttribute>(TopAttribute::Service).map_err(|error| error.to_string())?;
    let v6 = is_v6(u16::from_ne_bytes(needed(&attributes, ServiceAttribute::Family, "family")?))?;
    let mark = number(&attributes, ServiceAttribute::Fwmark).and_then(|mark| NonZeroU32::new(u32::try_from(mark).ok()?));
    let id = match mark {
        Some(mark) => VirtualId::Mark { mark, v6 },
        None => VirtualId::Address {
            protocol: u8::try_from(u16::from_ne_bytes(needed(&attributes, ServiceAttribute::Protocol, "protocol")?))
                .map_err(|error| format!("protocol: {error}"))?,
            address: address(needed(&attributes, ServiceAttribute::Address, "address")?, v6),
            port: u16::from_be_bytes(needed(&attributes, ServiceAttribute::Port, "port")?),
        },
    };
    let scheduler = name(&attributes, ServiceAttribute::SchedulerName).ok_or("no scheduler")?;
    let [a, b, c, d, _, _, _, _] = needed(&attributes, ServiceAttribute::Flags, "flags")?;
    let flags = u32::from_ne_bytes([a, b, c, d]);
    let has = |bit| flags & bit != 0;
    let timeout = number32(&attributes, ServiceAttribute::Timeout, "timeout")?;
    let netmask: [u8; 4] = needed(&attributes, ServiceAttribute::Netmask, "netmask")?;
    // A mask with holes, which ipvsadm lets pass, is taken for its beginning.
    let prefix = if v6 { u32::from_ne_bytes(netmask).min(128) } else { u32::from_be_bytes(netmask).leading_ones() };
    let persistence = has(FLAG_PERSISTENT)
        .then(|| Persistence { timeout: Duration::from_secs(u64::from(timeout)), prefix: u8::try_from(prefix).unwrap_or(128) });
    let server = VirtualServer {
        id,
        scheduler: VirtualScheduler::of_name(&scheduler),
        flags: SchedulerFlags { fallback: has(FLAG_SCHEDULER_1), ports: has(FLAG_SCHEDULER_2), third: has(FLAG_SCHEDULER_3) },
        one_packet: has(FLAG_ONE_PACKET),
        persistence,
        engine: name(&attributes, ServiceAttribute::EngineName),
    };
    let counters = counters(&attributes, ServiceAttribute::Stats64, ServiceAttribute::Stats)?;
    Ok(Some(VirtualState { server, counters }))
}

/// Real servers of a kernel before 3.18 do not say their family; it is the virtual server's then.
pub(super) fn real_state(payload: &[u8], of: &VirtualId) -> Decoded<Option<RealState>> {
    let message = message::<Command, TopAttribute>(payload)?;
    if *message.cmd() != Command::NewDest {
        return Ok(None);
    }
    let top = message.attrs().get_attr_handle();
    let attributes = top.get_nested_attributes::<DestAttribute>(TopAttribute::Dest).map_err(|error| error.to_string())?;
    let v6 = match raw(&attributes, DestAttribute::Family) {
        Some(_) => is_v6(u16::from_ne_bytes(needed(&attributes, DestAttribute::Family, "family")?))?,
        None => of.is_v6(),
    };
    let id = RealId {
        address: address(needed(&attributes, DestAttribute::Address, "address")?, v6),
        port: u16::from_be_bytes(needed(&attributes, DestAttribute::Port, "port")?),
    };
    let number32 = |kind, what| number32(&attributes, kind, what);
    let server = RealServer {
        id,
        weight: number32(DestAttribute::Weight, "weight")?,
        forwarding: forwarding(&attributes)?,
        upper_threshold: number32(DestAttribute::UpperThreshold, "upper threshold")?,
        lower_threshold: number32(DestAttribute::LowerThreshold, "lower threshold")?,
    };
    Ok(Some(RealState {
        server,
        active: number32(DestAttribute::ActiveConnections, "number of active connections")?,
        inactive: number32(DestAttribute::InactiveConnections, "number of inactive connections")?,
        persistent: number32(DestAttribute::PersistentConnections, "number of persistent connections")?,
        counters: counters(&attributes, DestAttribute::Stats64, DestAttribute::Stats)?,
    }))
}

fn forwarding(attributes: &GenlAttrHandle<'_, DestAttribute>) -> Decoded<Forwarding> {
    let method = number32(attributes, DestAttribute::ForwardingMethod, "way of forwarding")? & FORWARD_MASK;
    Ok(match method {
        FORWARD_MASQUERADE => Forwarding::Masquerade,
        FORWARD_DIRECT => Forwarding::DirectRoute,
        FORWARD_TUNNEL => Forwarding::Tunnel(tunnel(attributes)?),
        FORWARD_LOCAL | FORWARD_BYPASS => Forwarding::Kernel(method as u8),
        other => return Err(format!("way of forwarding {other}")),
    })
}

/// Before 5.3 there is nothing but IP in IP, and nothing said of it.
fn tunnel(attributes: &GenlAttrHandle<'_, DestAttribute>) -> Decoded<Tunnel> {
    let Some([kind]) = raw(attributes, DestAttribute::TunnelType) else { return Ok(Tunnel::Ipip) };
    let flags = match raw(attributes, DestAttribute::TunnelFlags) {
        Some(_) => u16::from_ne_bytes(needed(attributes, DestAttribute::TunnelFlags, "flags of the tunnel")?),
        None => 0,
    };
    let checksum = match flags {
        flags if flags & TUNNEL_CHECKSUM != 0 => TunnelChecksum::Full,
        flags if flags & TUNNEL_REMOTE_CHECKSUM != 0 => TunnelChecksum::Remote,
        _ => TunnelChecksum::None,
    };
    Ok(match *kind {
        TUNNEL_IPIP => Tunnel::Ipip,
        TUNNEL_GUE => {
            Tunnel::Gue { port: u16::from_be_bytes(needed(attributes, DestAttribute::TunnelPort, "port of the tunnel")?), checksum }
        }
        TUNNEL_GRE => Tunnel::Gre { checksum },
        other => Tunnel::Other(other),
    })
}

fn counters<T: NlAttrType>(attributes: &GenlAttrHandle<'_, T>, wide: T, narrow: T) -> Decoded<Counters> {
    let kind = if attributes.get_attribute(wide).is_some() { wide } else { narrow };
    let stats = attributes.get_nested_attributes::<StatsAttribute>(kind).map_err(|error| format!("counters: {error}"))?;
    let of = |kind| number(&stats, kind).ok_or_else(|| "counters: one is missing".to_owned());
    Ok(Counters {
        connections: of(StatsAttribute::Connections)?,
        packets_in: of(StatsAttribute::PacketsIn)?,
        packets_out: of(StatsAttribute::PacketsOut)?,
        bytes_in: of(StatsAttribute::BytesIn)?,
        bytes_out: of(StatsAttribute::BytesOut)?,
        per_second: Rates {
            connections: of(StatsAttribute::ConnectionRate)?,
            packets_in: of(StatsAttribute::PacketRateIn)?,
            packets_out: of(StatsAttribute::PacketRateOut)?,
            bytes_in: of(StatsAttribute::ByteRateIn)?,
            bytes_out: of(StatsAttribute::ByteRateOut)?,
        },
    })
}

pub(super) fn info(payload: &[u8]) -> Decoded<Option<IpvsInfo>> {
    let message = message::<Command, InfoAttribute>(payload)?;
    if *message.cmd() != Command::SetInfo {
        return Ok(None);
    }
    let attributes = message.attrs().get_attr_handle();
    let [_, major, minor, patch] = number32(&attributes, InfoAttribute::Version, "version")?.to_be_bytes();
    let connection_table = number32(&attributes, InfoAttribute::ConnectionTableSize, "size of the connection table")?;
    Ok(Some(IpvsInfo { version: (major, minor, patch), connection_table }))
}

pub(super) fn timeouts(payload: &[u8]) -> Decoded<Option<IpvsTimeouts>> {
    let message = message::<Command, TopAttribute>(payload)?;
    if *message.cmd() != Command::SetConfig {
        return Ok(None);
    }
    let attributes = message.attrs().get_attr_handle();
    let of = |kind, what| number32(&attributes, kind, what).map(|seconds| Duration::from_secs(u64::from(seconds)));
    Ok(Some(IpvsTimeouts {
        tcp: of(TopAttribute::TimeoutTcp, "timeout of TCP")?,
        tcp_fin: of(TopAttribute::TimeoutTcpFin, "timeout of TCP after a FIN")?,
        udp: of(TopAttribute::TimeoutUdp, "timeout of UDP")?,
    }))
}
