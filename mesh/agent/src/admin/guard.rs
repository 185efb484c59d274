//! Who may ask what. A web page in a browser on this node must not be able to read or to steer the agent.

use std::net::IpAddr;

use hyper::{HeaderMap, header};

use crate::config::AdminAddress;

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Unix,
    Tcp(IpAddr),
}

impl Peer {
    fn is_local(self) -> bool {
        match self {
            Self::Unix => true,
            Self::Tcp(address) => address.to_canonical().is_loopback(),
        }
    }
}

/// Why a request is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Forbidden {
    #[error("the Host header names another host; use localhost, 127.0.0.1, [::1] or the address that --admin gives")]
    Host,
    #[error("only from this node: over loopback or the unix socket")]
    Remote,
    #[error("not from a web page: the request has an Origin header")]
    Origin,
}

/// Keeps names that an attacker's DNS points at loopback from reading what is meant for this node only.
pub(crate) fn may_read(headers: &HeaderMap, peer: Peer, bound: &AdminAddress) -> Result<(), Forbidden> {
    let AdminAddress::Tcp(bound) = bound else { return Ok(()) };
    if !bound.ip().is_loopback() && !peer.is_local() {
        return Ok(());
    }
    // Health checks of the HTTP/1.0 kind have none; every browser sends one.
    let Some(host) = headers.get(header::HOST) else { return Ok(()) };
    let host = host.to_str().map_err(|_| Forbidden::Host)?;
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    let is_numeric = name.parse::<IpAddr>();
    // On an address that others can reach, any numeric one may be this node's; a rebinding attack needs a name.
    let known = name.eq_ignore_ascii_case("localhost")
        || is_numeric.is_ok_and(|ip| ip == bound.ip() || ip.is_loopback() || !bound.ip().is_loopback());
    if known { Ok(()) } else { Err(Forbidden::Host) }
}

pub(crate) fn may_change(headers: &HeaderMap, peer: Peer) -> Result<(), Forbidden> {
    if !peer.is_local() {
        return Err(Forbidden::Remote);
    }
    if headers.contains_key(header::ORIGIN) {
        return Err(Forbidden::Origin);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: header::HeaderName, value: &'static str) -> HeaderMap {
        [(name, header::HeaderValue::from_static(value))].into_iter().collect()
    }

    #[test]
    fn loopback_answers_to_its_own_names_only() {
        let loopback = AdminAddress::default();
        let peer = Peer::Tcp([127, 0, 0, 1].into());
        for host in ["localhost", "localhost:9790", "127.0.0.1:9790", "[::1]:9790", "LOCALHOST:1"] {
            assert_eq!(may_read(&with(header::HOST, host), peer, &loopback), Ok(()), "{host}");
        }
        for host in ["evil.example", "evil.example:9790", "127.0.0.1.evil.example", "", "localhost.evil:9790", "10.0.0.1"] {
            assert_eq!(may_read(&with(header::HOST, host), peer, &loopback), Err(Forbidden::Host), "{host}");
        }
        assert_eq!(may_read(&HeaderMap::new(), peer, &loopback), Ok(()));
        assert_eq!(may_read(&HeaderMap::new(), Peer::Unix, &AdminAddress::Unix("/x".into())), Ok(()));

        let everywhere: AdminAddress = "0.0.0.0:9790".parse().unwrap();
        assert_eq!(may_read(&with(header::HOST, "node1"), Peer::Tcp([192, 0, 2, 1].into()), &everywhere), Ok(()));
        assert_eq!(may_read(&with(header::HOST, "192.0.2.11:9790"), peer, &everywhere), Ok(()));
        assert_eq!(may_read(&with(header::HOST, "evil.example"), peer, &everywhere), Err(Forbidden::Host));
    }

    #[test]
    fn changes_come_from_this_node_and_not_from_web_pages() {
        let mapped = "::ffff:127.0.0.1".parse().unwrap();
        assert_eq!(may_change(&HeaderMap::new(), Peer::Tcp(mapped)), Ok(()));
        assert_eq!(may_change(&HeaderMap::new(), Peer::Tcp([192, 0, 2, 1].into())), Err(Forbidden::Remote));
        assert_eq!(may_change(&with(header::ORIGIN, "null"), Peer::Unix), Err(Forbidden::Origin));
    }
}
