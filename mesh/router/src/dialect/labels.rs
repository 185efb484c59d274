//! The small grammars that labels are made of.

use std::time::Duration;

use crate::{
    model::{RedirectCode, RedirectTarget},
    problem::Reason,
};

/// As all the older systems parsed them (Go's `strconv.ParseBool`), and in any case.
pub(super) fn boolean(text: &str) -> Result<bool, Reason> {
    match text.trim().to_ascii_lowercase().as_str() {
        "1" | "t" | "true" => Ok(true),
        "0" | "f" | "false" => Ok(false),
        _ => Err(Reason::NotABool),
    }
}

pub(super) fn port(text: &str) -> Result<u16, Reason> {
    text.trim().parse().ok().filter(|port| *port != 0).ok_or(Reason::NotAPort)
}

pub(super) fn number(text: &str, least: u64, most: u64) -> Result<u64, Reason> {
    text.trim().parse().ok().filter(|n| (least..=most).contains(n)).ok_or(Reason::NotANumber { least, most })
}

/// A day is more than anybody waits for one request.
const LONGEST: u64 = 24 * 3600;

pub(super) fn seconds(text: &str) -> Result<Duration, Reason> {
    number(text, 1, LONGEST).map(Duration::from_secs)
}

/// The parts of a list, without the empty ones.
pub(super) fn list<'t>(text: &'t str, separator: &str) -> impl Iterator<Item = &'t str> {
    text.split(separator).map(str::trim).filter(|part| !part.is_empty())
}

/// A host as it is compared: lower case, without final dot.
pub(super) fn host(text: &str) -> Result<String, Reason> {
    let text = text.trim();
    if crate::table::without_port(text) != text {
        return Err(Reason::HostWithPort);
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        !label.is_empty() && label.len() <= 63 && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    if name.is_empty() || name.len() > 253 || !name.split('.').all(label) {
        return Err(Reason::NotAHost);
    }
    Ok(name.to_ascii_lowercase())
}

/// Part of a host: what a host may begin or end with.
pub(super) fn host_part(text: &str) -> Result<String, Reason> {
    let text = text.trim();
    if text.contains(':') {
        return Err(Reason::HostWithPort);
    }
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if text.is_empty() || text.len() > 253 || !text.bytes().all(fits) || text.contains("..") {
        return Err(Reason::NotAHost);
    }
    Ok(text.to_ascii_lowercase())
}

pub(super) fn path(text: &str) -> Result<String, Reason> {
    let text = text.trim();
    if text.starts_with('/') && text.len() <= 2048 && text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'?' | b'#')) {
        Ok(text.to_owned())
    } else {
        Err(Reason::NotAPath)
    }
}

pub(super) fn method(text: &str) -> Result<String, Reason> {
    let text = text.trim();
    if crate::model::is_token(text) && text.bytes().all(|b| b.is_ascii_uppercase() || b == b'-') {
        Ok(text.to_owned())
    } else {
        Err(Reason::NotAMethod)
    }
}

/// A header's name, in lower case. Those that say where a message ends are the proxy's own.
pub(super) fn header_name(text: &str) -> Result<String, Reason> {
    let name = text.trim().to_ascii_lowercase();
    if !crate::model::is_token(&name) {
        return Err(Reason::NotAHeader);
    }
    Ok(name)
}

/// Headers of one connection, or that say where a message ends: changing them would change what the next request is.
pub(super) fn is_framing(name: &str) -> bool {
    matches!(
        name,
        "connection" | "content-length" | "host" | "keep-alive" | "proxy-connection" | "te" | "trailer" | "transfer-encoding" | "upgrade"
    )
}

/// Nothing in a value may end the header.
pub(super) fn is_header_value(text: &str) -> bool {
    text.bytes().all(|b| b == b'\t' || (b >= b' ' && b != 0x7f))
}

pub(super) fn cookie_name(text: &str) -> Result<String, Reason> {
    let text = text.trim();
    if crate::model::is_token(text) && text.len() <= 256 { Ok(text.to_owned()) } else { Err(Reason::NotACookie) }
}

pub(super) fn redirect_code(text: &str) -> Result<RedirectCode, Reason> {
    text.trim().parse().ok().and_then(RedirectCode::new).ok_or(Reason::NotARedirectCode)
}

/// `scheme://host[:port][/path]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) scheme: String,
    pub(super) host: String,
    pub(super) port: Option<u16>,
    /// Empty, or with its slash.
    pub(super) rest: String,
}

pub(super) fn url(text: &str) -> Result<Url, Reason> {
    let (scheme, rest) = text.trim().split_once("://").ok_or(Reason::NotAUrl)?;
    let scheme = scheme.to_ascii_lowercase();
    if !matches!(scheme.as_str(), "http" | "https") {
        return Err(Reason::NotAUrl);
    }
    let (authority, rest) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let name = crate::table::without_port(authority);
    let port = match authority.get(name.len()..).and_then(|p| p.strip_prefix(':')) {
        Some(text) => Some(port(text)?),
        None => None,
    };
    let host = host(name)?;
    if !rest.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Reason::NotAUrl);
    }
    Ok(Url { scheme, host, port, rest: rest.to_owned() })
}

impl Url {
    fn origin(&self) -> String {
        match self.port {
            Some(port) => format!("{}://{}:{port}", self.scheme, self.host),
            None => format!("{}://{}", self.scheme, self.host),
        }
    }

    /// A URL that names no path keeps the request's; one that does is meant as it is.
    pub(super) fn target(&self) -> RedirectTarget {
        match self.rest.as_str() {
            "" | "/" => RedirectTarget::Before(self.origin()),
            rest => RedirectTarget::Exactly(format!("{}{rest}", self.origin())),
        }
    }

    /// With the request's path and query behind it, whatever it is.
    pub(super) fn before(&self) -> RedirectTarget {
        RedirectTarget::Before(format!("{}{}", self.origin(), self.rest.trim_end_matches('/')))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names() {
        for (text, name) in [("Shop.Example.", "shop.example"), (" a_b-c ", "a_b-c"), ("192.0.2.1", "192.0.2.1")] {
            assert_eq!(host(text).as_deref(), Ok(name));
        }
        for text in ["", ".", "a..b", "a b", "*.a", "a/b", "b\u{fc}cher.example", "http://a", &"a".repeat(64)] {
            assert_eq!(host(text), Err(Reason::NotAHost), "{text:?}");
        }
        assert_eq!(host("a:80"), Err(Reason::HostWithPort));
        assert_eq!(host_part(".example").as_deref(), Ok(".example"));
        assert_eq!(host_part("a:80"), Err(Reason::HostWithPort));
        assert_eq!(host_part("a..b"), Err(Reason::NotAHost));
    }

    #[test]
    fn urls_are_taken_apart() {
        let target = |text: &str| url(text).map(|u| u.target());
        assert_eq!(target("https://A.example"), Ok(RedirectTarget::Before("https://a.example".into())));
        assert_eq!(target("http://a.example:8080/"), Ok(RedirectTarget::Before("http://a.example:8080".into())));
        assert_eq!(target("http://a.example/x?y"), Ok(RedirectTarget::Exactly("http://a.example/x?y".into())));
        assert_eq!(url("http://a.example/x/").map(|u| u.before()), Ok(RedirectTarget::Before("http://a.example/x".into())));
        for text in ["", "a.example", "ftp://a", "http://a.example/\r\nx", "javascript://x"] {
            assert_eq!(url(text), Err(Reason::NotAUrl), "{text:?}");
        }
        assert_eq!(url("http://"), Err(Reason::NotAHost));
        assert_eq!(url("http://a:0"), Err(Reason::NotAPort));
    }

    #[test]
    fn the_rest_is_what_it_says() {
        assert_eq!((boolean("T"), boolean("0"), boolean("yes")), (Ok(true), Ok(false), Err(Reason::NotABool)));
        assert_eq!((port("80"), port("0"), port("65536")), (Ok(80), Err(Reason::NotAPort), Err(Reason::NotAPort)));
        assert_eq!(seconds("0"), Err(Reason::NotANumber { least: 1, most: LONGEST }));
        assert_eq!(list(" a, ,b,", ",").collect::<Vec<_>>(), ["a", "b"]);
        for text in ["x", "", "/a b", "/a?b", "/\u{e4}"] {
            assert_eq!(path(text), Err(Reason::NotAPath), "{text:?}");
        }
        assert_eq!(method("get"), Err(Reason::NotAMethod));
        assert_eq!(cookie_name("a=b"), Err(Reason::NotACookie));
        assert_eq!(header_name("X-Y:"), Err(Reason::NotAHeader));
        assert_eq!(redirect_code("304"), Err(Reason::NotARedirectCode));
        assert!(is_header_value("a\tb") && !is_header_value("a\nb"));
    }
}
