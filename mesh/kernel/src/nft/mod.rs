//! nftables: a netlink codec for what changes all the time, `nft` for the skeletons that change with the version.

mod batch;
mod codes;
mod expr;
mod monitor;
mod parse;
mod script;
mod socket;

use std::{fmt, time::Duration};

use serde::Serialize;

pub use expr::{
    Checksum, CmpOp, CtDirection, CtKey, DynsetOp, Expr, MetaKey, NatFamily, NatKind, NumgenKind, PayloadBase, Reg, RejectKind, Verdict,
};
pub use monitor::{NftEvent, NftMonitor};
pub use script::{check_script, load_script};
pub use socket::NftSocket;

/// The table families that this crate works with. A table of another family is skipped when read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4 and IPv6 together.
    Inet,
    /// Ingress and egress of one device.
    Netdev,
    /// IPv4 only.
    Ip,
    /// IPv6 only.
    Ip6,
}

impl Family {
    /// The keyword in nft's language.
    pub const fn keyword(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Netdev => "netdev",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.keyword())
    }
}

/// A set or map, by its full name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct SetName {
    /// Family of the table.
    pub family: Family,
    /// The table.
    pub table: &'static str,
    /// The set or map in it.
    pub set: &'static str,
}

impl fmt::Display for SetName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {} {}", self.family, self.table, self.set)
    }
}

/// One element as the kernel holds it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Element {
    /// Raw register bytes: of a concatenation, each part is padded with zeros to a multiple of 4 bytes.
    pub key: Vec<u8>,
    /// What a map's element leads to. `None` in a set, and for verdicts other than goto, which this crate never writes.
    pub data: Option<ElementData>,
    /// The element's own timeout as configured, not what is left of it.
    pub timeout: Option<Duration>,
}

/// What a map's element leads to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum ElementData {
    /// Raw register bytes, laid out like a key.
    Value(Vec<u8>),
    /// Verdict: go to this chain of the same table.
    Goto(String),
}

/// One change. A list of them is committed whole or not at all, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum NftOp {
    /// Adds an element. One with the same key and data may be there already; with other data it is
    /// [`KernelError::Exists`](crate::KernelError::Exists), so replace by deleting first in the same commit.
    AddElement {
        /// Where to.
        set: SetName,
        /// Raw register bytes, see [`Element::key`].
        key: Vec<u8>,
        /// `None` for a set.
        data: Option<ElementData>,
    },
    /// Removes an element; [`KernelError::NotFound`](crate::KernelError::NotFound) if it is not there.
    DeleteElement {
        /// Where from.
        set: SetName,
        /// Raw register bytes, see [`Element::key`].
        key: Vec<u8>,
    },
    /// Removes every element.
    FlushSet {
        /// Which set.
        set: SetName,
    },
    /// Adds a table that lives as long as this handle's socket: the kernel removes it with all that is in it when the
    /// socket is closed, also by the process's end, and lets nobody else change it. Linux 5.12 and newer.
    AddOwnedTable {
        /// Family of the table.
        family: Family,
        /// The table.
        table: &'static str,
    },
    /// Adds a chain of type filter at the output hook, which lets pass what none of its rules stops.
    AddOutputChain {
        /// Family of the table.
        family: Family,
        /// The table.
        table: &'static str,
        /// The new chain.
        chain: String,
        /// Lower runs first; connection tracking has -200.
        priority: i32,
    },
    /// Adds a chain without a hook; one of that name may be there already.
    AddChain {
        /// Family of the table.
        family: Family,
        /// The table.
        table: &'static str,
        /// The new chain.
        chain: String,
    },
    /// Removes a chain with its rules; [`KernelError::Busy`](crate::KernelError::Busy) while something leads to it.
    DeleteChain {
        /// Family of the table.
        family: Family,
        /// The table.
        table: &'static str,
        /// The chain.
        chain: String,
    },
    /// Appends a rule.
    AddRule {
        /// Family of the table.
        family: Family,
        /// The table.
        table: &'static str,
        /// The chain.
        chain: String,
        /// Shown by `nft list`; cut to 127 bytes. Empty for none.
        comment: String,
        /// Evaluated in order; the first one that does not match ends the rule.
        expressions: Vec<Expr>,
    },
    /// Removes a table with all that is in it; [`KernelError::NotFound`](crate::KernelError::NotFound) if it is not there.
    DeleteTable {
        /// Family of the table.
        family: Family,
        /// The table.
        table: &'static str,
    },
}

impl NftOp {
    /// Family and name of the table that it is about.
    pub const fn table(&self) -> (Family, &'static str) {
        match self {
            Self::AddElement { set, .. } | Self::DeleteElement { set, .. } | Self::FlushSet { set } => (set.family, set.table),
            Self::AddOwnedTable { family, table }
            | Self::AddOutputChain { family, table, .. }
            | Self::AddChain { family, table, .. }
            | Self::DeleteChain { family, table, .. }
            | Self::AddRule { family, table, .. }
            | Self::DeleteTable { family, table } => (*family, *table),
        }
    }
}

impl fmt::Display for NftOp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddElement { set, key, data: None } => write!(formatter, "add element {} to {set}", Hex(key)),
            Self::AddElement { set, key, data: Some(ElementData::Value(value)) } => {
                write!(formatter, "add element {} : {} to {set}", Hex(key), Hex(value))
            }
            Self::AddElement { set, key, data: Some(ElementData::Goto(chain)) } => {
                write!(formatter, "add element {} : goto {chain} to {set}", Hex(key))
            }
            Self::DeleteElement { set, key } => write!(formatter, "delete element {} of {set}", Hex(key)),
            Self::FlushSet { set } => write!(formatter, "flush {set}"),
            Self::AddOwnedTable { family, table } => write!(formatter, "add table {family} {table}, owned"),
            Self::AddOutputChain { family, table, chain, .. } => write!(formatter, "add output chain {family} {table} {chain}"),
            Self::AddChain { family, table, chain } => write!(formatter, "add chain {family} {table} {chain}"),
            Self::DeleteChain { family, table, chain } => write!(formatter, "delete chain {family} {table} {chain}"),
            Self::AddRule { family, table, chain, comment, .. } => write!(formatter, "add rule \"{comment}\" to {family} {table} {chain}"),
            Self::DeleteTable { family, table } => write!(formatter, "delete table {family} {table}"),
        }
    }
}

/// Bytes as nft prints raw values.
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}
