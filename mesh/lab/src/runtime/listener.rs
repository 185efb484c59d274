//! What Docker up to 29.7 holds every published port with, on the node's own addresses.

use std::net::{Ipv6Addr, TcpListener, UdpSocket};

use swarmesh_model::Protocol;

use super::rules::Published;

/// Takes the port, and what the node's rules do not lead elsewhere, such as IPv6 (moby 53091).
#[derive(Debug)]
#[expect(dead_code, reason = "they are held, and that is all Docker does with them")]
pub(super) enum Listener {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Listener {
    /// `None` where Docker has none, or something else on the node has the port, of which Docker only complains.
    pub(super) fn open((protocol, port): Published) -> Option<Self> {
        let any = (Ipv6Addr::UNSPECIFIED, port);
        match protocol {
            Protocol::Tcp => TcpListener::bind(any).ok().map(Self::Tcp),
            Protocol::Udp => UdpSocket::bind(any).ok().map(Self::Udp),
            Protocol::Sctp => None,
        }
    }
}
