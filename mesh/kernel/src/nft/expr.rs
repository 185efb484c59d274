//! Rule expressions and their netlink form. One file per expression in the kernel: `net/netfilter/nft_<name>.c`.

use std::time::Duration;

use serde::Serialize;

use super::codes::{
    NF_ACCEPT, NF_DROP, NFT_GOTO, NFT_JUMP, NFT_REG_VERDICT, NFT_REG32_00, NFT_RETURN, NFTA_DATA_VALUE, NFTA_DATA_VERDICT, NFTA_EXPR_DATA,
    NFTA_EXPR_NAME, NFTA_VERDICT_CHAIN, NFTA_VERDICT_CODE,
};
use crate::netlink::{MessageBuffer, milliseconds};

/// The nth of the sixteen 32-bit registers; longer values fill the following ones too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Reg(pub u32);

impl Reg {
    const fn number(self) -> u32 {
        NFT_REG32_00 + self.0
    }
}

/// Where a payload offset counts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum PayloadBase {
    /// The link layer header, such as Ethernet's.
    Link,
    /// The IP header.
    Network,
    /// The transport header, behind any IP options and extension headers.
    Transport,
}

/// Which checksums follow a payload write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Checksum {
    /// None, as for link layer headers.
    None,
    /// The internet checksum at this offset from the same base.
    Inet {
        /// Bytes from the base.
        offset: u32,
    },
    /// That one and the transport checksum, which covers IPv4 addresses through its pseudo header.
    InetAndPseudoHeader {
        /// Bytes from the base.
        offset: u32,
    },
    /// The transport checksum only, as for IPv6 addresses.
    PseudoHeader,
}

/// What `meta` reads. Numbers are in host byte order unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum MetaKey {
    /// Packet length in bytes, u32.
    Length,
    /// Ethertype, u16 big-endian.
    Protocol,
    /// Packet mark, u32.
    Mark,
    /// Index of the input interface, u32.
    Iif,
    /// Index of the output interface, u32.
    Oif,
    /// Name of the input interface, 16 bytes padded with zeros.
    IifName,
    /// Name of the output interface, 16 bytes padded with zeros.
    OifName,
    /// Hardware type of the input interface, u16.
    IifType,
    /// Netfilter family, u8: 2 for IPv4, 10 for IPv6.
    NfProto,
    /// Transport protocol, u8.
    L4Proto,
    /// Unicast, broadcast and so on, u8.
    PacketType,
    /// Processor, u32.
    Cpu,
    /// Random number, u32.
    Random,
}

/// Side of a tracked connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum CtDirection {
    /// As the first packet had it.
    Original,
    /// As answers have it.
    Reply,
}

/// What `ct` reads. Numbers are in host byte order unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum CtKey {
    /// Bit mask of states, u32: 1 invalid, 2 established, 4 related, 8 new, 64 untracked.
    State,
    /// Direction of this packet, u8: 0 original, 1 reply.
    Direction,
    /// IPS_* bits, u32: 16 is source NAT, 32 destination NAT.
    Status,
    /// Connection mark, u32.
    Mark,
    /// Transport protocol, u8.
    Protocol(CtDirection),
    /// IPv4 source address, 4 bytes.
    SourceV4(CtDirection),
    /// IPv4 destination address, 4 bytes.
    DestinationV4(CtDirection),
    /// IPv6 source address, 16 bytes.
    SourceV6(CtDirection),
    /// IPv6 destination address, 16 bytes.
    DestinationV6(CtDirection),
    /// Source port, u16 big-endian.
    SourcePort(CtDirection),
    /// Destination port, u16 big-endian.
    DestinationPort(CtDirection),
}

/// How `cmp` compares, byte by byte from the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[expect(missing_docs, reason = "the comparison operators, by their usual names")]
pub enum CmpOp {
    Eq,
    Neq,
    Lt,
    Lte,
    Gt,
    Gte,
}

/// How `numgen` counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum NumgenKind {
    /// One counter per rule, shared by all processors.
    Incremental,
    /// Random.
    Random,
}

/// What `dynset` does to a set from the packet path. It never fails the packet: without room it ends the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum DynsetOp {
    /// Adds if absent, and keeps what is there.
    Add,
    /// Adds if absent, else starts the timeout again. Does not change the data of an element that is there.
    Update,
    /// Deletes (Linux 5.4 and later).
    Delete,
}

/// Which end `nat` rewrites.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum NatKind {
    /// Source.
    Snat,
    /// Destination.
    Dnat,
}

/// Which addresses `nat` works on; a packet of the other family does not match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum NatFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// How `reject` says no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum RejectKind {
    /// A TCP reset; the rule must have matched TCP.
    TcpReset,
    /// Port unreachable, in ICMP or ICMPv6 as the packet needs.
    IcmpxPortUnreachable,
}

/// End of a rule, or of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Verdict {
    /// Accept in this base chain.
    Accept,
    /// Drop.
    Drop,
    /// Back to the calling chain.
    Return,
    /// To that chain without coming back.
    Goto(String),
    /// To that chain and back.
    Jump(String),
}

/// One step of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "dreg is written and sreg is read, len counts bytes; the rest is said at the variant or the type")]
pub enum Expr {
    /// Loads packet bytes; the register's tail is zeroed up to a multiple of 4 bytes.
    Payload { base: PayloadBase, offset: u32, len: u32, dreg: Reg },
    /// Writes packet bytes.
    PayloadWrite { base: PayloadBase, offset: u32, len: u32, sreg: Reg, checksum: Checksum },
    /// Loads something known about the packet.
    Meta { key: MetaKey, dreg: Reg },
    /// Sets the packet mark from a u32 in host byte order.
    MetaSetMark { sreg: Reg },
    /// Loads something known about the connection; ends the rule for an untracked packet.
    Ct { key: CtKey, dreg: Reg },
    /// Sets the connection mark from a u32 in host byte order.
    CtSetMark { sreg: Reg },
    /// Loads constant bytes.
    Immediate { dreg: Reg, data: Vec<u8> },
    /// Ends the rule.
    Verdict(Verdict),
    /// Goes on if the comparison holds for as many bytes as `data` has.
    Cmp { sreg: Reg, op: CmpOp, data: Vec<u8> },
    /// `dreg = (sreg & mask) ^ xor`; mask and xor are `len` bytes each.
    Bitwise { sreg: Reg, dreg: Reg, len: u32, mask: Vec<u8>, xor: Vec<u8> },
    /// Loads `offset` plus a number below `modulus`, u32 in host byte order.
    Numgen { dreg: Reg, modulus: u32, offset: u32, kind: NumgenKind },
    /// Loads `offset` plus a hash of `len` bytes below `modulus`, u32 in host byte order.
    Jhash { sreg: Reg, dreg: Reg, len: u32, modulus: u32, seed: u32, offset: u32 },
    /// Goes on if the set has the key; with `dreg`, loads the map's value.
    ///
    /// `nft list` aborts on a rule in which a register that a map's value was loaded into becomes a key, or `data` of
    /// [`Expr::Dynset`]: it takes that register for zero bits long (`netlink_parse_concat_expr` in nftables'
    /// `src/netlink_delinearize.c`). It only looks at the first register of a value, so one whose useful part
    /// starts at the second word, over a register that something else was loaded into before, can be listed.
    Lookup { set: &'static str, sreg: Reg, dreg: Option<Reg> },
    /// If the verdict map has the key, does what it says.
    LookupVerdict { set: &'static str, sreg: Reg },
    /// Changes a set. A map wants `data` even for deleting; any loaded register will do.
    Dynset { op: DynsetOp, set: &'static str, key: Reg, data: Option<Reg>, timeout: Option<Duration> },
    /// Translates to an address, and a port in big-endian.
    Nat { kind: NatKind, family: NatFamily, address: Option<Reg>, port: Option<Reg> },
    /// Source NAT to the address of the outgoing interface.
    Masquerade,
    /// Refuses the packet.
    Reject(RejectKind),
    /// Keeps the packet out of connection tracking, and with that out of address translation. Before priority -200 only.
    Notrack,
    /// Counts packets and bytes.
    Counter,
}

impl Expr {
    /// Name of the kernel's expression.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Payload { .. } | Self::PayloadWrite { .. } => "payload",
            Self::Meta { .. } | Self::MetaSetMark { .. } => "meta",
            Self::Ct { .. } | Self::CtSetMark { .. } => "ct",
            Self::Immediate { .. } | Self::Verdict(_) => "immediate",
            Self::Cmp { .. } => "cmp",
            Self::Bitwise { .. } => "bitwise",
            Self::Numgen { .. } => "numgen",
            Self::Jhash { .. } => "hash",
            Self::Lookup { .. } | Self::LookupVerdict { .. } => "lookup",
            Self::Dynset { .. } => "dynset",
            Self::Nat { .. } => "nat",
            Self::Masquerade => "masq",
            Self::Reject(_) => "reject",
            Self::Notrack => "notrack",
            Self::Counter => "counter",
        }
    }

    /// True if the expression refers to a set or a chain, so that "not found" can mean that one.
    pub(super) const fn refers(&self) -> bool {
        matches!(self, Self::Lookup { .. } | Self::LookupVerdict { .. } | Self::Dynset { .. } | Self::Verdict(_))
    }

    /// Writes the expression's name and its attributes.
    pub(super) fn encode(&self, out: &mut MessageBuffer) {
        out.attribute_str(NFTA_EXPR_NAME, self.name());
        out.nested(NFTA_EXPR_DATA, |out| self.encode_data(out));
    }

    fn encode_data(&self, out: &mut MessageBuffer) {
        match self {
            Self::Payload { base, offset, len, dreg } => {
                out.attribute_u32_be(1, dreg.number());
                payload_place(out, *base, *offset, *len);
            }
            Self::PayloadWrite { base, offset, len, sreg, checksum } => {
                payload_place(out, *base, *offset, *len);
                out.attribute_u32_be(5, sreg.number());
                payload_checksum(out, *checksum);
            }
            Self::Meta { key, dreg } => {
                out.attribute_u32_be(1, dreg.number());
                out.attribute_u32_be(2, meta_number(*key));
            }
            Self::MetaSetMark { sreg } => {
                out.attribute_u32_be(2, meta_number(MetaKey::Mark));
                out.attribute_u32_be(3, sreg.number());
            }
            Self::Ct { key, dreg } => {
                let (number, direction) = ct_number(*key);
                out.attribute_u32_be(1, dreg.number());
                out.attribute_u32_be(2, number);
                if let Some(direction) = direction {
                    out.attribute(3, &[direction as u8]);
                }
            }
            Self::CtSetMark { sreg } => {
                out.attribute_u32_be(2, ct_number(CtKey::Mark).0);
                out.attribute_u32_be(4, sreg.number());
            }
            Self::Immediate { dreg, data } => {
                out.attribute_u32_be(1, dreg.number());
                value(out, 2, data);
            }
            Self::Verdict(verdict) => {
                out.attribute_u32_be(1, NFT_REG_VERDICT);
                out.nested(2, |out| encode_verdict(out, verdict));
            }
            Self::Cmp { sreg, op, data } => {
                out.attribute_u32_be(1, sreg.number());
                out.attribute_u32_be(2, *op as u32);
                value(out, 3, data);
            }
            Self::Bitwise { sreg, dreg, len, mask, xor } => {
                out.attribute_u32_be(1, sreg.number());
                out.attribute_u32_be(2, dreg.number());
                out.attribute_u32_be(3, *len);
                value(out, 4, mask);
                value(out, 5, xor);
            }
            Self::Numgen { dreg, modulus, offset, kind } => {
                out.attribute_u32_be(1, dreg.number());
                out.attribute_u32_be(2, *modulus);
                out.attribute_u32_be(3, *kind as u32);
                out.attribute_u32_be(4, *offset);
            }
            Self::Jhash { sreg, dreg, len, modulus, seed, offset } => {
                const NFT_HASH_JENKINS: u32 = 0;
                for (kind, number) in [(1, sreg.number()), (2, dreg.number()), (3, *len), (4, *modulus), (5, *seed), (6, *offset)] {
                    out.attribute_u32_be(kind, number);
                }
                out.attribute_u32_be(7, NFT_HASH_JENKINS);
            }
            Self::Lookup { set, sreg, dreg } => {
                out.attribute_str(1, set);
                out.attribute_u32_be(2, sreg.number());
                if let Some(dreg) = dreg {
                    out.attribute_u32_be(3, dreg.number());
                }
            }
            Self::LookupVerdict { set, sreg } => {
                out.attribute_str(1, set);
                out.attribute_u32_be(2, sreg.number());
                out.attribute_u32_be(3, NFT_REG_VERDICT);
            }
            Self::Dynset { op, set, key, data, timeout } => {
                out.attribute_str(1, set);
                out.attribute_u32_be(3, *op as u32);
                out.attribute_u32_be(4, key.number());
                if let Some(data) = data {
                    out.attribute_u32_be(5, data.number());
                }
                if let Some(timeout) = timeout {
                    out.attribute(6, &milliseconds(*timeout).to_be_bytes());
                }
            }
            Self::Nat { kind, family, address, port } => {
                out.attribute_u32_be(1, *kind as u32);
                out.attribute_u32_be(2, if *family == NatFamily::V4 { 2 } else { 10 });
                // The kernel takes the maximum to be the minimum where it is not given.
                if let Some(address) = address {
                    out.attribute_u32_be(3, address.number());
                }
                if let Some(port) = port {
                    out.attribute_u32_be(5, port.number());
                }
            }
            Self::Masquerade | Self::Notrack | Self::Counter => {}
            Self::Reject(RejectKind::TcpReset) => out.attribute_u32_be(1, 1),
            Self::Reject(RejectKind::IcmpxPortUnreachable) => {
                const NFT_REJECT_ICMPX_UNREACH: u32 = 2;
                const NFT_REJECT_ICMPX_PORT_UNREACH: u8 = 1;
                out.attribute_u32_be(1, NFT_REJECT_ICMPX_UNREACH);
                out.attribute(2, &[NFT_REJECT_ICMPX_PORT_UNREACH]);
            }
        }
    }
}

/// `struct nft_verdict` as attributes, for an immediate or for a map's element.
pub(super) fn encode_verdict(out: &mut MessageBuffer, verdict: &Verdict) {
    let (code, chain) = match verdict {
        Verdict::Accept => (NF_ACCEPT, None),
        Verdict::Drop => (NF_DROP, None),
        Verdict::Return => (NFT_RETURN, None),
        Verdict::Goto(chain) => (NFT_GOTO, Some(chain)),
        Verdict::Jump(chain) => (NFT_JUMP, Some(chain)),
    };
    out.nested(NFTA_DATA_VERDICT, |out| {
        out.attribute(NFTA_VERDICT_CODE, &code.to_be_bytes());
        if let Some(chain) = chain {
            out.attribute_str(NFTA_VERDICT_CHAIN, chain);
        }
    });
}

fn value(out: &mut MessageBuffer, kind: u16, bytes: &[u8]) {
    out.nested(kind, |out| out.attribute(NFTA_DATA_VALUE, bytes));
}

fn payload_place(out: &mut MessageBuffer, base: PayloadBase, offset: u32, len: u32) {
    out.attribute_u32_be(2, base as u32);
    out.attribute_u32_be(3, offset);
    out.attribute_u32_be(4, len);
}

fn payload_checksum(out: &mut MessageBuffer, checksum: Checksum) {
    const NFT_PAYLOAD_CSUM_INET: u32 = 1;
    const NFT_PAYLOAD_L4CSUM_PSEUDOHDR: u32 = 1;
    let (offset, pseudo_header) = match checksum {
        Checksum::None => (None, false),
        Checksum::Inet { offset } => (Some(offset), false),
        Checksum::InetAndPseudoHeader { offset } => (Some(offset), true),
        Checksum::PseudoHeader => (None, true),
    };
    if let Some(offset) = offset {
        out.attribute_u32_be(6, NFT_PAYLOAD_CSUM_INET);
        out.attribute_u32_be(7, offset);
    }
    if pseudo_header {
        out.attribute_u32_be(8, NFT_PAYLOAD_L4CSUM_PSEUDOHDR);
    }
}

const fn meta_number(key: MetaKey) -> u32 {
    match key {
        MetaKey::Length => 0,
        MetaKey::Protocol => 1,
        MetaKey::Mark => 3,
        MetaKey::Iif => 4,
        MetaKey::Oif => 5,
        MetaKey::IifName => 6,
        MetaKey::OifName => 7,
        MetaKey::IifType => 8,
        MetaKey::NfProto => 15,
        MetaKey::L4Proto => 16,
        MetaKey::PacketType => 19,
        MetaKey::Cpu => 20,
        MetaKey::Random => 24,
    }
}

const fn ct_number(key: CtKey) -> (u32, Option<CtDirection>) {
    match key {
        CtKey::State => (0, None),
        CtKey::Direction => (1, None),
        CtKey::Status => (2, None),
        CtKey::Mark => (3, None),
        CtKey::Protocol(direction) => (10, Some(direction)),
        CtKey::SourcePort(direction) => (11, Some(direction)),
        CtKey::DestinationPort(direction) => (12, Some(direction)),
        CtKey::SourceV4(direction) => (19, Some(direction)),
        CtKey::DestinationV4(direction) => (20, Some(direction)),
        CtKey::SourceV6(direction) => (21, Some(direction)),
        CtKey::DestinationV6(direction) => (22, Some(direction)),
    }
}
