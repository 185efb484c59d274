//! The PROXY protocol, versions 1 and 2: who connected to whoever connected here. Whom that is believed from is the caller's
//! business; who is believed has to say it, and rightly, since what is not a header would be taken for a client's words.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use swarmesh_router::model::ProxyProtocol;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::{Instant, timeout_at},
};

const BEGINNING_V1: &[u8] = b"PROXY ";
/// With its line end.
const LONGEST_V1: usize = 107;
const SIGNATURE_V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const HEADER_V2: usize = 16;
const CRC32C: u8 = 3;
/// Its type and its length.
const EXTRA_HEADER: usize = 3;

/// The two ends of the connection that a header speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// `None`: the connection itself is meant, as health checks do, or what is not TCP.
    pub addresses: Option<Addresses>,
    /// What came behind it: for whoever reads next.
    pub rest: Vec<u8>,
}

/// What is wrong with a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHeader {
    #[error("it is none")]
    Absent,
    #[error("its line is longer than may be")]
    TooLong,
    #[error("its line is malformed")]
    Line,
    #[error("it has version and command {0:#04x}, which nobody knows")]
    Command(u8),
    #[error("it has address family and protocol {0:#04x}, which nobody knows")]
    Family(u8),
    #[error("its addresses are cut")]
    Addresses,
    #[error("what follows its addresses is malformed")]
    Extras,
    #[error("its checksum is not that of its bytes")]
    Checksum,
}

#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    #[error("the PROXY header cannot be used: {0}")]
    Bad(#[from] BadHeader),
    #[error("the connection was closed after {after} bytes of its PROXY header")]
    Ended { after: usize },
    #[error("the PROXY header did not come in time")]
    Late,
    #[error("the PROXY header cannot be read: {0}")]
    Read(#[from] io::Error),
}

/// Reads a header of either version, which must be there, until `deadline`.
pub async fn read_header<S: AsyncRead + Unpin>(stream: &mut S, deadline: Instant) -> Result<Header, HeaderError> {
    timeout_at(deadline, read(stream)).await.unwrap_or(Err(HeaderError::Late))
}

async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Header, HeaderError> {
    let mut bytes = Vec::with_capacity(512);
    loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(HeaderError::Ended { after: bytes.len() });
        }
        if let Some((addresses, length)) = parse(&bytes)? {
            bytes.drain(..length);
            return Ok(Header { addresses, rest: bytes });
        }
    }
}

/// What these bytes begin with, and how many of them it is; `None` if more are needed.
pub fn parse(bytes: &[u8]) -> Result<Option<(Option<Addresses>, usize)>, BadHeader> {
    if begins(bytes, SIGNATURE_V2) {
        v2(bytes)
    } else if begins(bytes, BEGINNING_V1) {
        v1(bytes)
    } else {
        Err(BadHeader::Absent)
    }
}

/// As far as they are there.
fn begins(bytes: &[u8], beginning: &[u8]) -> bool {
    bytes.iter().zip(beginning).all(|(a, b)| a == b)
}

fn v1(bytes: &[u8]) -> Result<Option<(Option<Addresses>, usize)>, BadHeader> {
    let most = bytes.get(..LONGEST_V1).unwrap_or(bytes);
    let Some(end) = most.iter().position(|byte| *byte == b'\n') else {
        return if bytes.len() < LONGEST_V1 { Ok(None) } else { Err(BadHeader::TooLong) };
    };
    let line = most.get(BEGINNING_V1.len()..end).and_then(|line| line.strip_suffix(b"\r")).ok_or(BadHeader::Line)?;
    let line = str::from_utf8(line).map_err(|_| BadHeader::Line)?;
    // Whatever an unknown protocol's addresses are.
    let addresses = if line == "UNKNOWN" || line.starts_with("UNKNOWN ") { None } else { Some(line_v1(line).ok_or(BadHeader::Line)?) };
    Ok(Some((addresses, end + 1)))
}

fn line_v1(line: &str) -> Option<Addresses> {
    let mut fields = line.split(' ');
    let family = fields.next()?;
    let (source, destination) = (fields.next()?, fields.next()?);
    let (source_port, destination_port) = (port(fields.next()?)?, port(fields.next()?)?);
    if fields.next().is_some() {
        return None;
    }
    let ip = |text: &str| -> Option<IpAddr> {
        match family {
            "TCP4" => text.parse::<Ipv4Addr>().ok().map(Into::into),
            "TCP6" => text.parse::<Ipv6Addr>().ok().map(Into::into),
            _ => None,
        }
    };
    Some(Addresses { source: SocketAddr::new(ip(source)?, source_port), destination: SocketAddr::new(ip(destination)?, destination_port) })
}

/// Without a sign, and without zeros before it.
fn port(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| plain)
}

fn v2(bytes: &[u8]) -> Result<Option<(Option<Addresses>, usize)>, BadHeader> {
    const LOCAL: u8 = 0x20;
    const PROXY: u8 = 0x21;
    let command = bytes.get(SIGNATURE_V2.len()).copied();
    if let Some(command) = command.filter(|command| ![LOCAL, PROXY].contains(command)) {
        return Err(BadHeader::Command(command));
    }
    let (Some(command), Some(family), Some(length)) = (command, bytes.get(13).copied(), bytes.get(14..HEADER_V2)) else {
        return Ok(None);
    };
    let length = HEADER_V2 + length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    let Some(header) = bytes.get(..length) else { return Ok(None) };
    // A connection of the proxy's own: nothing else in the header counts.
    let addresses = if command == PROXY { block_v2(header, family)? } else { None };
    Ok(Some((addresses, length)))
}

fn block_v2(header: &[u8], family: u8) -> Result<Option<Addresses>, BadHeader> {
    const FAMILY: u8 = 0xf0;
    const PROTOCOL: u8 = 0x0f;
    const STREAM: u8 = 1;
    if family & PROTOCOL > 2 {
        return Err(BadHeader::Family(family));
    }
    let block = header.get(HEADER_V2..).unwrap_or_default();
    let length = match family & FAMILY {
        // Unspecified, and so is what follows.
        0x00 => return Ok(None),
        0x10 => 12,
        0x20 => 36,
        // Two paths of sockets.
        0x30 => 216,
        _ => return Err(BadHeader::Family(family)),
    };
    let (addresses, extras) = block.split_at_checked(length).ok_or(BadHeader::Addresses)?;
    check_extras(header, extras)?;
    if family & PROTOCOL != STREAM {
        return Ok(None);
    }
    Ok(match addresses.len() {
        12 => ends::<4>(addresses),
        36 => ends::<16>(addresses),
        _ => None,
    })
}

/// Two addresses of `N` bytes, and then their ports.
fn ends<const N: usize>(bytes: &[u8]) -> Option<Addresses>
where
    IpAddr: From<[u8; N]>,
{
    let (source, rest) = bytes.split_first_chunk::<N>()?;
    let (destination, rest) = rest.split_first_chunk::<N>()?;
    let (source_port, rest) = rest.split_first_chunk::<2>()?;
    let destination_port = rest.first_chunk::<2>()?;
    Some(Addresses {
        source: SocketAddr::new(IpAddr::from(*source), u16::from_be_bytes(*source_port)),
        destination: SocketAddr::new(IpAddr::from(*destination), u16::from_be_bytes(*destination_port)),
    })
}

/// They must fill what is left, and a checksum among them must be right.
fn check_extras(header: &[u8], extras: &[u8]) -> Result<(), BadHeader> {
    let mut left = extras;
    let mut checked = false;
    while !left.is_empty() {
        let (&[kind, high, low], rest) = left.split_first_chunk::<EXTRA_HEADER>().ok_or(BadHeader::Extras)?;
        let length = usize::from(u16::from_be_bytes([high, low]));
        let (value, rest) = rest.split_at_checked(length).ok_or(BadHeader::Extras)?;
        if kind == CRC32C {
            let sum: [u8; 4] = value.try_into().map_err(|_| BadHeader::Extras)?;
            if checked {
                return Err(BadHeader::Extras);
            }
            checked = true;
            // Over the whole header, with zeros for itself.
            let at = header.len() - rest.len() - sum.len();
            let (before, behind) = (header.get(..at).unwrap_or_default(), header.get(at + sum.len()..).unwrap_or_default());
            if crc32c([before, &[0; 4], behind].into_iter().flatten().copied()) != u32::from_be_bytes(sum) {
                return Err(BadHeader::Checksum);
            }
        }
        left = rest;
    }
    Ok(())
}

/// RFC 9260, appendix A. A bit at a time: headers are short.
fn crc32c(bytes: impl Iterator<Item = u8>) -> u32 {
    const REFLECTED: u32 = 0x82f6_3b78;
    !bytes.fold(!0u32, |sum, byte| (0..8).fold(sum ^ u32::from(byte), |sum, _| sum >> 1 ^ if sum & 1 == 1 { REFLECTED } else { 0 }))
}

/// What a backend is told of a client. Addresses of two families are both said in the newer one.
pub fn header(version: ProxyProtocol, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let ports = [source.port(), destination.port()];
    let both = (source.ip().to_canonical(), destination.ip().to_canonical());
    match (version, both) {
        (ProxyProtocol::V1, (IpAddr::V4(from), IpAddr::V4(to))) => text("TCP4", from, to, ports),
        (ProxyProtocol::V1, (from, to)) => text("TCP6", as_v6(from), as_v6(to), ports),
        (ProxyProtocol::V2, (IpAddr::V4(from), IpAddr::V4(to))) => binary(0x11, &from.octets(), &to.octets(), ports),
        (ProxyProtocol::V2, (from, to)) => binary(0x21, &as_v6(from).octets(), &as_v6(to).octets(), ports),
    }
}

fn as_v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

fn text(family: &str, from: impl std::fmt::Display, to: impl std::fmt::Display, ports: [u16; 2]) -> Vec<u8> {
    format!("PROXY {family} {from} {to} {} {}\r\n", ports[0], ports[1]).into_bytes()
}

fn binary(family: u8, from: &[u8], to: &[u8], ports: [u16; 2]) -> Vec<u8> {
    const PROXY: u8 = 0x21;
    // 36 at most.
    let length = (from.len() + to.len() + 4) as u8;
    [&SIGNATURE_V2[..], &[PROXY, family, 0, length], from, to, &ports[0].to_be_bytes(), &ports[1].to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::{collection::vec, prelude::*};
    use tokio::io::AsyncWriteExt;

    use super::*;

    fn addresses(source: &str, destination: &str) -> Option<Addresses> {
        Some(Addresses { source: source.parse().unwrap(), destination: destination.parse().unwrap() })
    }

    fn v2_bytes(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        [&SIGNATURE_V2[..], &[command, family], &(block.len() as u16).to_be_bytes(), block].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 2, 0xdc, 4, 1, 0xbb];

    fn extra(kind: u8, value: &[u8]) -> Vec<u8> {
        [&[kind][..], &(value.len() as u16).to_be_bytes(), value].concat()
    }

    #[test]
    fn version_1_is_read_as_the_specification_has_it() {
        let longest = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        for (line, expected) in [
            ("PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n", addresses("192.168.0.1:56324", "192.168.0.11:443")),
            ("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", addresses("255.255.255.255:65535", "255.255.255.255:65535")),
            ("PROXY TCP4 192.0.2.1 192.0.2.2 0 1\r\n", addresses("192.0.2.1:0", "192.0.2.2:1")),
            ("PROXY TCP6 2001:db8::1 2001:DB8::2 1 2\r\n", addresses("[2001:db8::1]:1", "[2001:db8::2]:2")),
            ("PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", addresses("[::ffff:192.0.2.1]:1", "[::1]:2")),
            (
                &format!("PROXY TCP6 {longest} {longest} 65535 65535\r\n"),
                addresses(&format!("[{longest}]:65535"), &format!("[{longest}]:65535")),
            ),
            ("PROXY UNKNOWN\r\n", None),
            (&format!("PROXY UNKNOWN {longest} {longest} 65535 65535\r\n"), None),
            ("PROXY UNKNOWN and what not\r\n", None),
        ] {
            assert_eq!(parse(line.as_bytes()), Ok(Some((expected, line.len()))), "{line}");
            assert_eq!(parse(format!("{line}GET / HTTP/1.1\r\n").as_bytes()), Ok(Some((expected, line.len()))));
            for length in 0..line.len() {
                assert_eq!(parse(&line.as_bytes()[..length]), Ok(None), "{length} of {line}");
            }
        }
    }

    #[test]
    fn version_1_is_refused_for_anything_else() {
        for line in [
            "TCP4 192.0.2.1 192.0.2.2 1 2\n",
            "TCP4 192.0.2.1 192.0.2.2 1\r\n",
            "TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
            "TCP4 192.0.2.1 192.0.2.2 1 2 \r\n",
            "TCP4 192.0.2.1  192.0.2.2 1 2\r\n",
            " TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
            "TCP4\t192.0.2.1 192.0.2.2 1 2\r\n",
            "TCP4 192.0.2.01 192.0.2.2 1 2\r\n",
            "TCP4 192.0.2 192.0.2.2 1 2\r\n",
            "TCP4 192.0.2.256 192.0.2.2 1 2\r\n",
            "TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
            "TCP4 192.0.2.1 192.0.2.2 +1 2\r\n",
            "TCP4 192.0.2.1 192.0.2.2 65536 2\r\n",
            "TCP4 192.0.2.1 192.0.2.2 -1 2\r\n",
            "TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
            "TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
            "TCP6 fe80::1%eth0 ::1 1 2\r\n",
            "TCP6 [::1] ::1 1 2\r\n",
            "TCP 192.0.2.1 192.0.2.2 1 2\r\n",
            "UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
            "tcp4 192.0.2.1 192.0.2.2 1 2\r\n",
            "UNKNOWNS\r\n",
            "\r\n",
            "\n",
        ] {
            assert_eq!(parse(format!("PROXY {line}").as_bytes()), Err(BadHeader::Line), "{line:?}");
        }
        assert_eq!(parse(b"PROXY UNKNOWN \xff\r\n"), Err(BadHeader::Line));
        assert_eq!(parse(format!("PROXY UNKNOWN {}\r\n", "a".repeat(92)).as_bytes()), Err(BadHeader::TooLong));
        assert_eq!(parse(format!("PROXY UNKNOWN {}\r\n", "a".repeat(91)).as_bytes()), Ok(Some((None, 107))));
        for absent in ["GET / HTTP/1.1\r\n", "proxy TCP4", "PROXYTCP4", "\r\n\r\n\r\n", "\u{16}\u{3}\u{1}"] {
            assert_eq!(parse(absent.as_bytes()), Err(BadHeader::Absent), "{absent:?}");
        }
    }

    #[test]
    fn version_2_is_read_as_the_specification_has_it() {
        let v6: Vec<u8> = [&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1][..], &[0; 15], &[1, 0, 80, 0x1f, 0x90]].concat();
        let four = addresses("192.0.2.1:56324", "198.51.100.2:443");
        let extras = [extra(1, b"h2"), extra(2, b"a.example"), extra(4, &[0; 9]), extra(0xee, &[])].concat();
        for (what, bytes, expected) in [
            ("TCP over IPv4", v2_bytes(0x21, 0x11, &V4), four),
            ("TCP over IPv6", v2_bytes(0x21, 0x21, &v6), addresses("[2001:db8::1]:80", "[::1]:8080")),
            ("with more behind", v2_bytes(0x21, 0x11, &[&V4[..], &extras].concat()), four),
            ("UDP", v2_bytes(0x21, 0x12, &V4), None),
            ("a path", v2_bytes(0x21, 0x31, &[b'/'; 216]), None),
            ("unspecified", v2_bytes(0x21, 0, &[]), None),
            ("unspecified, with more", v2_bytes(0x21, 0, &[1, 2, 3]), None),
            ("the proxy itself", v2_bytes(0x20, 0, &[]), None),
            ("the proxy itself, saying more", v2_bytes(0x20, 0x11, &V4), None),
            ("the proxy itself, with an odd family", v2_bytes(0x20, 0xff, &[9; 5]), None),
            ("the longest", v2_bytes(0x20, 0, &[0; 65_535]), None),
        ] {
            assert_eq!(parse(&bytes), Ok(Some((expected, bytes.len()))), "{what}");
            assert_eq!(parse(&[&bytes[..], b"more"].concat()), Ok(Some((expected, bytes.len()))), "{what}");
            for length in (0..bytes.len()).step_by(1 + bytes.len() / 300) {
                assert_eq!(parse(&bytes[..length]), Ok(None), "{length} of {what}");
            }
        }
    }

    #[test]
    fn version_2_is_refused_for_anything_else() {
        let with = |extras: &[u8]| v2_bytes(0x21, 0x11, &[&V4[..], extras].concat());
        for (what, bytes, expected) in [
            ("version 1", v2_bytes(0x11, 0x11, &V4), BadHeader::Command(0x11)),
            ("version 3", v2_bytes(0x31, 0x11, &V4), BadHeader::Command(0x31)),
            ("a command", v2_bytes(0x22, 0x11, &V4), BadHeader::Command(0x22)),
            ("a family", v2_bytes(0x21, 0x41, &[0; 300]), BadHeader::Family(0x41)),
            ("a protocol", v2_bytes(0x21, 0x13, &V4), BadHeader::Family(0x13)),
            ("a protocol of nothing", v2_bytes(0x21, 0x03, &[]), BadHeader::Family(0x03)),
            ("addresses cut", v2_bytes(0x21, 0x11, &V4[..11]), BadHeader::Addresses),
            ("IPv6 cut", v2_bytes(0x21, 0x21, &[0; 35]), BadHeader::Addresses),
            ("a path cut", v2_bytes(0x21, 0x31, &[0; 215]), BadHeader::Addresses),
            ("half an extra", with(&[1, 0]), BadHeader::Extras),
            ("an extra cut", with(&[1, 0, 3, 1, 2]), BadHeader::Extras),
            ("a short checksum", with(&extra(CRC32C, &[0; 3])), BadHeader::Extras),
            ("a wrong checksum", with(&extra(CRC32C, &[0; 4])), BadHeader::Checksum),
        ] {
            assert_eq!(parse(&bytes), Err(expected), "{what}");
        }
        assert_eq!(parse(b"\r\n\r\n\0\r\nQUIT\r"), Err(BadHeader::Absent));
    }

    #[test]
    fn a_checksum_is_over_all_with_zeros_for_itself() {
        assert_eq!(crc32c(b"123456789".iter().copied()), 0xe306_9283, "the catalogue's check value");
        let block = |sum: [u8; 4], name: &[u8]| [&V4[..], &extra(4, &[0; 2]), &extra(CRC32C, &sum), &extra(2, name)].concat();
        let sum = crc32c(v2_bytes(0x21, 0x11, &block([0; 4], b"a")).into_iter());
        let whole = v2_bytes(0x21, 0x11, &block(sum.to_be_bytes(), b"a"));
        assert!(parse(&whole).is_ok());
        for at in HEADER_V2..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            // Without its kind it is no checksum any more.
            assert_eq!(parse(&damaged).is_ok(), at == 33, "byte {at}");
        }
        assert_eq!(parse(&v2_bytes(0x21, 0x11, &block(sum.to_be_bytes(), b"b"))), Err(BadHeader::Checksum));
        let twice = [extra(CRC32C, &sum.to_be_bytes()), extra(CRC32C, &sum.to_be_bytes())].concat();
        assert!(parse(&v2_bytes(0x21, 0x11, &[&V4[..], &twice].concat())).is_err());
    }

    #[test]
    fn what_is_written_is_what_the_specification_shows() {
        let (from, to) = ("192.168.0.1:56324".parse().unwrap(), "192.168.0.11:443".parse().unwrap());
        assert_eq!(header(ProxyProtocol::V1, from, to), b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n");
        let expected = v2_bytes(0x21, 0x11, &[192, 168, 0, 1, 192, 168, 0, 11, 0xdc, 4, 1, 0xbb]);
        assert_eq!(header(ProxyProtocol::V2, from, to), expected);
        let mapped = "[::ffff:192.168.0.1]:56324".parse().unwrap();
        assert_eq!(header(ProxyProtocol::V2, mapped, to), expected, "from a socket of both families");
        let six = "[2001:db8::1]:80".parse().unwrap();
        assert_eq!(header(ProxyProtocol::V1, from, six), b"PROXY TCP6 ::ffff:192.168.0.1 2001:db8::1 56324 80\r\n");
        assert_eq!(header(ProxyProtocol::V1, six, six), b"PROXY TCP6 2001:db8::1 2001:db8::1 80 80\r\n");
    }

    #[tokio::test(start_paused = true)]
    async fn a_header_is_read_as_it_trickles_in_and_what_follows_stays() {
        for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
            let (from, to) = ("192.0.2.1:1".parse().unwrap(), "192.0.2.2:2".parse().unwrap());
            let (mut far, mut near) = tokio::io::duplex(1000);
            let sent = [header(version, from, to), b"hello".to_vec()].concat();
            let writer = tokio::spawn(async move {
                for piece in sent.chunks(9) {
                    far.write_all(piece).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                far
            });
            let read = read_header(&mut near, Instant::now() + Duration::from_secs(5)).await.unwrap();
            assert_eq!(read.addresses, Some(Addresses { source: from, destination: to }));
            drop(writer.await.unwrap());
            let mut rest = String::new();
            crate::rewound::Rewound::with(read.rest, near).read_to_string(&mut rest).await.unwrap();
            assert_eq!(rest, "hello");
        }
        let (mut far, mut near) = tokio::io::duplex(1000);
        far.write_all(b"PROXY TCP4").await.unwrap();
        let late = read_header(&mut near, Instant::now() + Duration::from_secs(5)).await;
        assert!(matches!(late, Err(HeaderError::Late)), "{late:?}");
        far.write_all(b"PROXY").await.unwrap();
        drop(far);
        let ended = read_header(&mut near, Instant::now() + Duration::from_secs(5)).await;
        assert!(matches!(ended, Err(HeaderError::Ended { after: 5 })), "{ended:?}");
    }

    fn ends_of_one_family() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
        let v4 = any::<[([u8; 4], u16); 2]>().prop_map(|both| both.map(|(ip, port)| SocketAddr::new(ip.into(), port)));
        let v6 = any::<[([u8; 16], u16); 2]>().prop_map(|both| both.map(|(ip, port)| SocketAddr::new(ip.into(), port)));
        prop_oneof![v4, v6].prop_map(|[from, to]| (from, to))
    }

    proptest! {
        #[test]
        fn what_is_written_is_read((source, destination) in ends_of_one_family(), behind in vec(any::<u8>(), 0..20)) {
            for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
                let header = header(version, source, destination);
                let expected = Some(Addresses { source, destination });
                prop_assert_eq!(parse(&[&header[..], &behind].concat()), Ok(Some((expected, header.len()))));
            }
        }

        #[test]
        fn what_is_read_does_not_depend_on_how_it_came(
            begins in prop_oneof![Just(&SIGNATURE_V2[..]), Just(&b"PROXY TCP4 1"[..]), Just(&b"PROXY UNKNOWN"[..]), Just(&b""[..])],
            command in prop_oneof![Just(&[0x21, 0x11, 0][..]), Just(&[0x20, 0, 0][..]), Just(&b""[..])],
            noise in vec(any::<u8>(), 0..130),
        ) {
            let bytes = [begins, command, &noise].concat();
            let whole = parse(&bytes);
            let first = (0..=bytes.len()).map(|length| parse(&bytes[..length])).find(|parsed| *parsed != Ok(None));
            prop_assert_eq!(first.unwrap_or(Ok(None)), whole);
        }
    }
}
