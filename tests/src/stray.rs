//! Segments that belong to a connection and fit nowhere in it, as late retransmissions do.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Result, bail};
use socket2::{Domain, Protocol, Socket, Type};

/// Sends a segment with ACK and a sequence number far outside of any window from `source` to `target`. Call it in the
/// namespace that has `source`.
pub fn inject(source: SocketAddr, target: SocketAddr, sequence: u32) -> Result<()> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (source.ip(), target.ip()) else { bail!("IPv4 only") };
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::new(from.into(), 0).into())?;
    let mut segment = Vec::with_capacity(20);
    segment.extend(source.port().to_be_bytes());
    segment.extend(target.port().to_be_bytes());
    segment.extend(sequence.to_be_bytes());
    segment.extend(sequence.wrapping_add(77).to_be_bytes());
    // Data offset of five words, ACK, a window, no checksum yet, no urgent data.
    segment.extend([0x50, 0x10, 0x10, 0x00, 0, 0, 0, 0]);
    let sum = checksum(from, to, &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    socket.send_to(&segment, &SocketAddr::new(to.into(), 0).into())?;
    Ok(())
}

/// RFC 9293, section 3.1: over the pseudo header and the segment.
fn checksum(from: Ipv4Addr, to: Ipv4Addr, segment: &[u8]) -> u16 {
    let length = u16::try_from(segment.len()).unwrap_or(u16::MAX);
    let pseudo = [&from.octets()[..], &to.octets(), &[0, 6], &length.to_be_bytes()].concat();
    let words = pseudo.chunks(2).chain(segment.chunks(2)).map(|w| u32::from(u16::from_be_bytes([w[0], w.get(1).copied().unwrap_or(0)])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}
