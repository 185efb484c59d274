//! Numbers of `include/uapi/linux/ip_vs.h`, as neli's types want them.

use neli::{
    consts::genl::{Cmd, NlAttrType},
    neli_enum,
};

pub(super) const FAMILY: &str = "IPVS";
pub(super) const FAMILY_VERSION: u8 = 1;

#[neli_enum(serialized_type = "u8")]
pub(super) enum Command {
    NewService = 1,
    SetService = 2,
    DelService = 3,
    GetService = 4,
    NewDest = 5,
    SetDest = 6,
    DelDest = 7,
    GetDest = 8,
    SetConfig = 12,
    GetConfig = 13,
    SetInfo = 14,
    GetInfo = 15,
    Zero = 16,
    Flush = 17,
}

impl Cmd for Command {}

/// First level of all commands but `SetInfo`.
#[neli_enum(serialized_type = "u16")]
pub(super) enum TopAttribute {
    Service = 1,
    Dest = 2,
    TimeoutTcp = 4,
    TimeoutTcpFin = 5,
    TimeoutUdp = 6,
}

impl NlAttrType for TopAttribute {}

/// First level of `SetInfo`, which is the answer to `GetInfo`.
#[neli_enum(serialized_type = "u16")]
pub(super) enum InfoAttribute {
    Version = 1,
    ConnectionTableSize = 2,
}

impl NlAttrType for InfoAttribute {}

#[neli_enum(serialized_type = "u16")]
pub(super) enum ServiceAttribute {
    Family = 1,
    Protocol = 2,
    Address = 3,
    Port = 4,
    Fwmark = 5,
    SchedulerName = 6,
    Flags = 7,
    Timeout = 8,
    Netmask = 9,
    Stats = 10,
    EngineName = 11,
    Stats64 = 12,
}

impl NlAttrType for ServiceAttribute {}

#[neli_enum(serialized_type = "u16")]
pub(super) enum DestAttribute {
    Address = 1,
    Port = 2,
    ForwardingMethod = 3,
    Weight = 4,
    UpperThreshold = 5,
    LowerThreshold = 6,
    ActiveConnections = 7,
    InactiveConnections = 8,
    PersistentConnections = 9,
    Stats = 10,
    Family = 11,
    Stats64 = 12,
    TunnelType = 13,
    TunnelPort = 14,
    TunnelFlags = 15,
}

impl NlAttrType for DestAttribute {}

#[neli_enum(serialized_type = "u16")]
pub(super) enum StatsAttribute {
    Connections = 1,
    PacketsIn = 2,
    PacketsOut = 3,
    BytesIn = 4,
    BytesOut = 5,
    ConnectionRate = 6,
    PacketRateIn = 7,
    PacketRateOut = 8,
    ByteRateIn = 9,
    ByteRateOut = 10,
}

impl NlAttrType for StatsAttribute {}

pub(super) const FLAG_PERSISTENT: u32 = 0x01;
pub(super) const FLAG_ONE_PACKET: u32 = 0x04;
pub(super) const FLAG_SCHEDULER_1: u32 = 0x08;
pub(super) const FLAG_SCHEDULER_2: u32 = 0x10;
pub(super) const FLAG_SCHEDULER_3: u32 = 0x20;
/// All that user space may set; the kernel keeps the rest for itself.
pub(super) const FLAGS: u32 = FLAG_PERSISTENT | FLAG_ONE_PACKET | FLAG_SCHEDULER_1 | FLAG_SCHEDULER_2 | FLAG_SCHEDULER_3;

pub(super) const FORWARD_MASQUERADE: u32 = 0;
pub(super) const FORWARD_LOCAL: u32 = 1;
pub(super) const FORWARD_TUNNEL: u32 = 2;
pub(super) const FORWARD_DIRECT: u32 = 3;
pub(super) const FORWARD_BYPASS: u32 = 4;
pub(super) const FORWARD_MASK: u32 = 7;

pub(super) const TUNNEL_IPIP: u8 = 0;
pub(super) const TUNNEL_GUE: u8 = 1;
pub(super) const TUNNEL_GRE: u8 = 2;

pub(super) const TUNNEL_CHECKSUM: u16 = 1;
pub(super) const TUNNEL_REMOTE_CHECKSUM: u16 = 2;

/// `IP_VS_SCHEDNAME_MAXLEN` and `IP_VS_PENAME_MAXLEN`, without the terminating zero.
pub(super) const NAME_MAX: usize = 15;
