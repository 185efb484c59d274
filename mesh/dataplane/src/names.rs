//! The way of a task's queries to sockets of ours, ahead of Docker's own resolver and without touching it.
//!
//! Docker translates 127.0.0.11:53 to a socket of the engine's, in nat chains. Our two chains come before connection
//! tracking: they exchange the port of each packet for that of our sockets, and back, without keeping a state. A packet that is not
//! tracked is not translated, so Docker's rules find nothing to do.
//!
//! The table belongs to a socket of this process. When the process ends, however it ends, the kernel removes it, and the very
//! next packet goes to Docker's resolver, also one of a client that keeps its own socket.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    path::Path,
};

use swarmesh_kernel::{Checksum, CmpOp, Expr, Family, Kernel, KernelError, MetaKey, Namespace, NftOp, PayloadBase, Reg, Verdict};
use swarmesh_model::Protocol;

use crate::PlaneError;

/// Where containers ask, by their `/etc/resolv.conf`.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
const PORT: u16 = 53;
const TABLE: &str = "swarmesh_names";
const QUESTIONS: &str = "questions";
const ANSWERS: &str = "answers";
/// Packets with this mark are not ours to answer: the agent's own questions to Docker's resolver, which alone knows plain containers
/// of other nodes.
pub const TO_ENGINE: u32 = 0x5300;
/// Before the raw table (-300), where others may have their own reasons not to track.
const PRIORITY: i32 = -310;

/// The redirect of one namespace. It ends with this value.
pub struct Redirect {
    namespace: Box<dyn Namespace>,
}

impl std::fmt::Debug for Redirect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redirect").finish_non_exhaustive()
    }
}

/// Sockets that belong to a task's namespace, and are served from wherever.
#[derive(Debug)]
pub struct ResolverSockets {
    pub udp: UdpSocket,
    pub tcp: TcpListener,
}

impl Redirect {
    /// Opens both sockets, on ports of their own: 53 stays the container's, which may be a name server itself.
    pub fn open(kernel: &dyn Kernel, path: &Path) -> Result<(Self, ResolverSockets), PlaneError> {
        let mut namespace = kernel.open(path)?;
        let any_port = SocketAddr::from((RESOLVER, 0));
        let (udp, tcp) = (namespace.bind_udp(any_port)?, namespace.listen_tcp(any_port)?);
        let port = |address: std::io::Result<SocketAddr>| match address {
            Ok(address) => Ok(address.port()),
            Err(error) => Err(KernelError::from_io("read a socket's own address", error)),
        };
        let ports = [(Protocol::Udp, port(udp.local_addr())?), (Protocol::Tcp, port(tcp.local_addr())?)];
        let mut ops = vec![NftOp::AddOwnedTable { family: Family::Ip, table: TABLE }];
        for chain in [ANSWERS, QUESTIONS] {
            ops.push(NftOp::AddOutputChain { family: Family::Ip, table: TABLE, chain: chain.to_owned(), priority: PRIORITY });
            if chain == QUESTIONS {
                ops.push(pass_engine());
            }
            ops.extend(ports.map(|(protocol, port)| exchange(chain, protocol, port)));
        }
        namespace.commit(&ops).map_err(|error| match error {
            // Only another agent has a table that is not ours to change.
            KernelError::NotPermitted { .. } if has_table(&mut *namespace) => PlaneError::ResolverTaken,
            KernelError::NotSupported { .. } => PlaneError::NoOwnedTables,
            error => error.into(),
        })?;
        Ok((Self { namespace }, ResolverSockets { udp, tcp }))
    }

    /// Sends new questions to Docker's resolver again. Answers to earlier ones still find their way.
    pub fn take_no_more(&mut self) -> Result<(), PlaneError> {
        Ok(self.namespace.commit(&[NftOp::DeleteChain { family: Family::Ip, table: TABLE, chain: QUESTIONS.to_owned() }])?)
    }
}

/// `meta mark 0x5300 return`.
fn pass_engine() -> NftOp {
    let expressions = vec![
        Expr::Meta { key: MetaKey::Mark, dreg: Reg(0) },
        Expr::Cmp { sreg: Reg(0), op: CmpOp::Eq, data: TO_ENGINE.to_ne_bytes().to_vec() },
        Expr::Verdict(Verdict::Return),
    ];
    NftOp::AddRule {
        family: Family::Ip,
        table: TABLE,
        chain: QUESTIONS.to_owned(),
        comment: "swarmesh: to Docker's resolver".to_owned(),
        expressions,
    }
}

fn has_table(namespace: &mut dyn Namespace) -> bool {
    matches!(namespace.chains(Family::Ip, TABLE), Ok(Some(_)))
}

/// `ip daddr 127.0.0.11 udp dport 53 udp dport set PORT notrack`, or the same of sources the other way round.
fn exchange(chain: &'static str, protocol: Protocol, port: u16) -> NftOp {
    let is_question = chain == QUESTIONS;
    // IPv4 header: source at 12, destination at 16. UDP and TCP headers: source at 0, destination at 2.
    let (address_at, port_at) = if is_question { (16, 2) } else { (12, 0) };
    let (from, to) = if is_question { (PORT, port) } else { (port, PORT) };
    let checksum = if protocol == Protocol::Udp { 6 } else { 16 };
    let expressions = vec![
        Expr::Payload { base: PayloadBase::Network, offset: address_at, len: 4, dreg: Reg(0) },
        Expr::Cmp { sreg: Reg(0), op: CmpOp::Eq, data: RESOLVER.octets().to_vec() },
        Expr::Meta { key: MetaKey::L4Proto, dreg: Reg(0) },
        Expr::Cmp { sreg: Reg(0), op: CmpOp::Eq, data: vec![protocol.number()] },
        Expr::Payload { base: PayloadBase::Transport, offset: port_at, len: 2, dreg: Reg(0) },
        Expr::Cmp { sreg: Reg(0), op: CmpOp::Eq, data: from.to_be_bytes().to_vec() },
        Expr::Immediate { dreg: Reg(0), data: to.to_be_bytes().to_vec() },
        Expr::PayloadWrite {
            base: PayloadBase::Transport,
            offset: port_at,
            len: 2,
            sreg: Reg(0),
            checksum: Checksum::Inet { offset: checksum },
        },
        Expr::Notrack,
    ];
    NftOp::AddRule {
        family: Family::Ip,
        table: TABLE,
        chain: chain.to_owned(),
        comment: format!("swarmesh: {protocol} {chain}"),
        expressions,
    }
}
