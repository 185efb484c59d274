//! A request's head, before anything is decided by it: what two readers could read in two ways is refused here.

use std::borrow::Cow;

use http::{HeaderMap, Method, Version, header, request::Parts, uri::Authority};

/// Why a request is answered without being routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeadError {
    #[error("more than one Host header")]
    Hosts,
    #[error("no Host header")]
    NoHost,
    #[error("the Host header is no host")]
    BadHost,
    #[error("the Host header is not the :authority")]
    OtherHost,
    #[error("the path leads out of the root")]
    Path,
    #[error("CONNECT is not served")]
    Connect,
    #[error("a header that HTTP/2 does not have")]
    ConnectionHeader,
    #[error("content length and transfer encoding together")]
    TwoLengths,
    #[error("the target is no path")]
    Target,
}

impl HeadError {
    pub(crate) const fn status(self) -> http::StatusCode {
        match self {
            Self::Connect => http::StatusCode::METHOD_NOT_ALLOWED,
            _ => http::StatusCode::BAD_REQUEST,
        }
    }
}

/// What routes are found by.
#[derive(Debug)]
pub(crate) struct Head {
    /// As the client sent it, with its port.
    pub(crate) host: Authority,
    /// With its query, ready to be sent on; `*` for `OPTIONS *`.
    pub(crate) target: http::uri::PathAndQuery,
}

impl Head {
    /// The host without its port, as routes are compared with.
    pub(crate) fn path(&self) -> &str {
        self.target.path()
    }
}

/// Checks a request's head.
///
/// The host is `:authority`, or the target's if it is a whole URI (RFC 9112, 3.2.2), else the Host header; where two are
/// given in HTTP/2, they must agree. Dot segments are resolved before anything is decided by the path, plain and encoded ones
/// alike: a backend would resolve them, after a route for another path had let them in.
pub(crate) fn check(parts: &Parts) -> Result<Head, HeadError> {
    if parts.method == Method::CONNECT {
        return Err(HeadError::Connect);
    }
    let is_http2 = parts.version == Version::HTTP_2;
    if is_http2 && has_connection_headers(&parts.headers) {
        return Err(HeadError::ConnectionHeader);
    }
    if parts.headers.contains_key(header::TRANSFER_ENCODING) && parts.headers.contains_key(header::CONTENT_LENGTH) {
        return Err(HeadError::TwoLengths);
    }
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let header = hosts.next();
    if hosts.next().is_some() {
        return Err(HeadError::Hosts);
    }
    let header = header.map(|value| authority(value.as_bytes())).transpose()?;
    let host = match (parts.uri.authority(), header) {
        (Some(target), Some(header)) if is_http2 && *target != header => return Err(HeadError::OtherHost),
        (Some(target), _) if target.as_str().contains('@') => return Err(HeadError::BadHost),
        (Some(target), _) => target.clone(),
        (None, Some(header)) => header,
        (None, None) if parts.version <= Version::HTTP_10 => Authority::from_static("_"),
        (None, None) => return Err(HeadError::NoHost),
    };
    let target = match parts.uri.path_and_query() {
        None => http::uri::PathAndQuery::from_static("/"),
        Some(target) if target.as_str().starts_with('/') => match without_dot_segments(target.path())? {
            Cow::Borrowed(_) => target.clone(),
            Cow::Owned(path) => {
                let whole = match target.query() {
                    Some(query) => format!("{path}?{query}"),
                    None => path,
                };
                http::uri::PathAndQuery::try_from(whole).map_err(|_| HeadError::Target)?
            }
        },
        Some(target) if target.as_str() == "*" && parts.method == Method::OPTIONS => target.clone(),
        Some(_) => return Err(HeadError::Target),
    };
    Ok(Head { host, target })
}

/// A host and perhaps a port, and nothing else (RFC 9110, 7.2).
fn authority(value: &[u8]) -> Result<Authority, HeadError> {
    let host = Authority::try_from(value).map_err(|_| HeadError::BadHost)?;
    // Nothing before a port is no host.
    let is_bad = host.as_str().bytes().any(|byte| byte == b'@') || matches!(host.as_str().as_bytes().first(), None | Some(b':'));
    if is_bad { Err(HeadError::BadHost) } else { Ok(host) }
}

/// RFC 9113, 8.2.2.
fn has_connection_headers(headers: &HeaderMap) -> bool {
    let forbidden = [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE];
    forbidden.iter().any(|name| headers.contains_key(name))
        || ["keep-alive", "proxy-connection"].iter().any(|name| headers.contains_key(*name))
        || headers.get_all(header::TE).iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"trailers"))
}

/// RFC 3986, 5.2.4, for paths whose dots may be encoded. What leads above the root is refused.
fn without_dot_segments(path: &str) -> Result<Cow<'_, str>, HeadError> {
    // Such a segment begins with a dot, or with what may be one; hardly any path has such a beginning.
    let may_be = |two: &[u8]| matches!(two, [b'/', b'.' | b'%']);
    if !path.as_bytes().windows(2).any(may_be) || !path.split('/').any(|segment| dots(segment).is_some()) {
        return Ok(Cow::Borrowed(path));
    }
    let mut out: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match dots(segment) {
            None => out.push(segment),
            Some(1) => {}
            Some(_) => {
                out.pop().ok_or(HeadError::Path)?;
            }
        }
        // `/a/.` and `/a/b/..` name the directory.
        if is_last && dots(segment).is_some() {
            out.push("");
        }
    }
    Ok(Cow::Owned(format!("/{}", out.join("/"))))
}

/// The number of dots of a segment that is only one or two of them; `None` for all others.
fn dots(segment: &str) -> Option<usize> {
    // The longest is `%2e%2e`; and what servers that know parameters of segments (`..;x`) would take for dots is one, too.
    let segment = segment.split(';').next().unwrap_or(segment);
    if segment.is_empty() || segment.len() > 6 {
        return None;
    }
    let (mut rest, mut count) = (segment, 0);
    while !rest.is_empty() {
        rest = rest.strip_prefix('.').or_else(|| rest.strip_prefix("%2e")).or_else(|| rest.strip_prefix("%2E"))?;
        count += 1;
    }
    (count <= 2).then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(request: http::request::Builder) -> Result<(String, String), HeadError> {
        let (parts, ()) = request.body(()).unwrap().into_parts();
        check(&parts).map(|head| (head.host.to_string(), head.target.to_string()))
    }

    fn get(uri: &str, hosts: &[&str]) -> Result<(String, String), HeadError> {
        head(hosts.iter().fold(http::Request::get(uri), |r, host| r.header("host", *host)))
    }

    #[test]
    fn one_host_is_found_or_none() {
        let to = |host: &str, target: &str| Ok((host.to_owned(), target.to_owned()));
        assert_eq!(get("/x?y=1", &["a.example:8080"]), to("a.example:8080", "/x?y=1"));
        assert_eq!(get("/", &["a.example", "a.example"]), Err(HeadError::Hosts));
        assert_eq!(get("/", &[]), Err(HeadError::NoHost));
        assert_eq!(get("/", &["user@a.example"]), Err(HeadError::BadHost));
        assert_eq!(get("/", &["a.example/x"]), Err(HeadError::BadHost));
        assert_eq!(get("/", &["a b"]), Err(HeadError::BadHost));
        assert_eq!(get("/", &[""]), Err(HeadError::BadHost));
        assert_eq!(get("/", &[":80"]), Err(HeadError::BadHost));
        assert_eq!(get("/", &["[::1]:80"]), to("[::1]:80", "/"));
        // A whole URI's host counts in HTTP/1.1, whatever the header says.
        assert_eq!(get("http://b.example/x", &["a.example"]), to("b.example", "/x"));
        let two = |header: &str| head(http::Request::get("http://b.example/x").version(Version::HTTP_2).header("host", header));
        assert_eq!(two("a.example"), Err(HeadError::OtherHost));
        assert_eq!(two("b.example"), to("b.example", "/x"));
        assert_eq!(head(http::Request::get("/").version(Version::HTTP_10)), to("_", "/"));
    }

    #[test]
    fn connection_headers_do_not_come_by_http2() {
        for (name, value) in
            [("connection", "x"), ("upgrade", "h2c"), ("te", "gzip"), ("keep-alive", "1"), ("transfer-encoding", "chunked")]
        {
            let request = http::Request::get("http://a.example/").version(Version::HTTP_2).header(name, value);
            assert_eq!(head(request), Err(HeadError::ConnectionHeader), "{name}");
        }
        assert!(head(http::Request::get("http://a.example/").version(Version::HTTP_2).header("te", "trailers")).is_ok());
    }

    #[test]
    fn dot_segments_are_resolved_before_routing() {
        for (path, to) in [
            ("/a/../b", "/b"),
            ("/a/./b", "/a/b"),
            ("/a/b/..", "/a/"),
            ("/a/.", "/a/"),
            ("/a/%2e%2E/b", "/b"),
            ("/a/.%2e/b", "/b"),
            ("/a/..;x=1/b", "/b"),
            ("/a//../b", "/a/b"),
        ] {
            assert_eq!(without_dot_segments(path).as_deref(), Ok(to), "{path}");
        }
        for path in ["/", "/a", "/a/.../b", "/a/..b", "/a/%2e%2e%2e/", "/.well-known/x", "//x"] {
            assert!(matches!(without_dot_segments(path), Ok(Cow::Borrowed(_))), "{path}");
        }
        for path in ["/..", "/a/../../b", "/%2e%2e/etc"] {
            assert_eq!(without_dot_segments(path), Err(HeadError::Path), "{path}");
        }
    }

    #[test]
    fn odd_requests_are_refused() {
        assert_eq!(head(http::Request::connect("a.example:443")), Err(HeadError::Connect));
        let both = http::Request::post("/").header("host", "a").header("content-length", "1").header("transfer-encoding", "chunked");
        assert_eq!(head(both), Err(HeadError::TwoLengths));
        assert_eq!(head(http::Request::options("*").header("host", "a")), Ok(("a".into(), "*".into())));
        assert_eq!(head(http::Request::get("*").header("host", "a")), Err(HeadError::Target));
    }
}
