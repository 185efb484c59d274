//! What a route's filters do to a request on its way.

use std::{
    cell::{OnceCell, RefCell},
    fmt::Write as _,
    net::SocketAddr,
    sync::Arc,
};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
    header::{self, Entry},
    uri::PathAndQuery,
};
use swarmesh_router::model::{
    BAD_REQUEST, Filter, ForwardHeaders, ForwardedProto, HeaderChange, HeaderChangeKind, REFUSED, Redirect, RedirectTarget, Rewrite,
    Template, Variable, When,
};

use super::head::Head;
use crate::{auth::Refusal, routing::Routing};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What is known of who asks.
#[derive(Debug)]
pub(crate) struct Client {
    /// Who asks: as the PROXY header says, else as connected.
    pub(crate) address: SocketAddr,
    /// Where it connected to.
    pub(crate) local: SocketAddr,
    pub(crate) tls: Option<ClientTls>,
    /// What it says of those it asks for is believed.
    pub(crate) is_trusted: bool,
    /// For headers: written once, since all its requests say the same.
    written: OnceCell<Written>,
}

#[derive(Debug)]
struct Written {
    /// Who asks, without a port.
    address: HeaderValue,
    /// Of `local`.
    port: HeaderValue,
}

impl Client {
    pub(crate) const fn new(address: SocketAddr, local: SocketAddr, is_trusted: bool) -> Self {
        Self { address, local, tls: None, is_trusted, written: OnceCell::new() }
    }

    /// Who asks, without a port.
    pub(crate) fn address_text(&self) -> HeaderValue {
        self.written().address.clone()
    }

    /// To be asked for when its addresses are settled.
    fn written(&self) -> &Written {
        self.written.get_or_init(|| {
            // An address has no byte that a header may not have.
            let address = HeaderValue::try_from(self.address.ip().to_string()).unwrap_or(HeaderValue::from_static("unknown"));
            Written { address, port: self.local.port().into() }
        })
    }
}

#[derive(Debug, Default)]
pub(crate) struct ClientTls {
    pub(crate) sni: Option<String>,
    /// It showed a certificate that the node's CA signed.
    pub(crate) is_verified: bool,
    /// `TLSv1.3`
    pub(crate) version: &'static str,
    /// What said that the TLS ends here, until the first request has come: the name may be passed through meanwhile.
    pub(crate) opened_by: RefCell<Option<Arc<Routing>>>,
}

/// A request that a filter answers itself.
#[derive(Debug)]
pub(crate) enum Stop {
    Status(u16),
    To(StatusCode, String),
    Auth(Refusal),
}

impl Stop {
    /// For the access log.
    pub(crate) const fn reason(&self) -> &'static str {
        match self {
            Self::Status(_) => "refused",
            Self::To(..) => "redirect",
            Self::Auth(Refusal::Challenge(_)) => "unauthorized",
            Self::Auth(Refusal::Busy) => "too-many-logins",
        }
    }

    pub(crate) fn redirect(redirect: &Redirect, head: &Head) -> Self {
        let code = StatusCode::from_u16(redirect.code.code()).unwrap_or(StatusCode::FOUND);
        Self::To(code, redirect.location(head.host.as_str(), head.target.as_str()))
    }
}

/// A request while filters are at it.
#[derive(Debug)]
pub(crate) struct Outgoing<'r> {
    pub(crate) method: &'r mut Method,
    pub(crate) head: &'r mut Head,
    pub(crate) headers: &'r mut HeaderMap,
    pub(crate) client: &'r Client,
    pub(crate) request_id: &'r mut String,
    pub(crate) proxy_name: &'r str,
}

impl Outgoing<'_> {
    /// Applies one filter, except those that need to wait and those of answers.
    pub(crate) fn apply(&mut self, filter: &Filter) -> Result<(), Stop> {
        let is_tls = self.client.tls.is_some();
        match filter {
            Filter::HttpsOnly(code) if !is_tls => {
                return Err(Stop::redirect(&Redirect { code: *code, to: RedirectTarget::Https }, self.head));
            }
            Filter::RefusePlain if !is_tls => return Err(Stop::Status(REFUSED)),
            Filter::AllowMethods(methods) if !methods.iter().any(|m| m == self.method.as_str()) => return Err(Stop::Status(REFUSED)),
            Filter::DenyMethods(methods) if methods.iter().any(|m| m == self.method.as_str()) => return Err(Stop::Status(REFUSED)),
            Filter::ClientCertificate if !self.client.tls.as_ref().is_some_and(|tls| tls.is_verified) => {
                return Err(Stop::Status(REFUSED));
            }
            Filter::Forward(forward) => self.forward(*forward),
            Filter::Request(change) => self.change(change),
            Filter::Rewrite(rewrite) => self.rewrite(rewrite)?,
            Filter::AppendSlash(append) => {
                if let Some(mut location) = append.location(self.head.path()) {
                    if let Some(query) = self.head.target.query() {
                        // Writing to a String does not fail.
                        let _ = write!(location, "?{query}");
                    }
                    return Err(Stop::To(StatusCode::MOVED_PERMANENTLY, location));
                }
            }
            Filter::HttpsOnly(_)
            | Filter::RefusePlain
            | Filter::AllowMethods(_)
            | Filter::DenyMethods(_)
            | Filter::ClientCertificate
            | Filter::BasicAuth(_)
            | Filter::GlobalAuth
            | Filter::Response(_)
            | Filter::Compress(_)
            | Filter::InfoHeaders
            | Filter::StrictTransport { .. } => {}
        }
        Ok(())
    }

    fn rewrite(&mut self, rewrite: &Rewrite) -> Result<(), Stop> {
        let bad = |_| Stop::Status(BAD_REQUEST);
        if let Some(path) = rewrite.path(self.head.path()) {
            let target = match self.head.target.query() {
                Some(query) => format!("{path}?{query}"),
                None => path,
            };
            self.head.target = PathAndQuery::try_from(target).map_err(|_| Stop::Status(BAD_REQUEST))?;
        }
        let line = rewrite.request_line(self.method.as_str(), self.head.target.as_str());
        if let Some((method, target)) = line.map_err(|_| Stop::Status(BAD_REQUEST))? {
            *self.method = Method::from_bytes(method.as_bytes()).map_err(|_| Stop::Status(BAD_REQUEST))?;
            self.head.target = PathAndQuery::try_from(target).map_err(bad)?;
        }
        Ok(())
    }

    fn forward(&mut self, forward: ForwardHeaders) {
        let client = self.client.address.ip();
        let is_tls = self.client.tls.is_some();
        let written = self.client.written();
        if forward.forwarded_for {
            match self.headers.entry(FORWARDED_FOR) {
                Entry::Vacant(none) => {
                    none.insert(written.address.clone());
                }
                Entry::Occupied(_) => append(self.headers, FORWARDED_FOR, written.address.to_str().unwrap_or_default()),
            }
        }
        if forward.real_ip && !(self.client.is_trusted && self.headers.contains_key(REAL_IP)) {
            self.headers.insert(REAL_IP, written.address.clone());
        }
        let name = FORWARDED_PROTO;
        let scheme = if is_tls { "https" } else { "http" };
        match forward.proto {
            None => {}
            Some(ForwardedProto::IfTls) if !is_tls => {
                self.headers.remove(name);
            }
            // What a client says that is not trusted is gone by now.
            Some(ForwardedProto::Pass) if self.headers.contains_key(&name) => {}
            Some(ForwardedProto::Set | ForwardedProto::IfTls | ForwardedProto::Pass) => {
                self.headers.insert(name, HeaderValue::from_static(scheme));
            }
        }
        if forward.port {
            self.headers.insert(FORWARDED_PORT, written.port.clone());
        }
        if forward.request_id
            && let Ok(id) = HeaderValue::from_str(self.request_id())
        {
            self.headers.insert(REQUEST_ID, id);
        }
        // Only where somebody else uses it already (RFC 7239, 7.1): two kinds of headers could disagree.
        if self.headers.contains_key(header::FORWARDED) {
            let host = if client.is_ipv6() { format!("\"[{client}]\"") } else { client.to_string() };
            append(self.headers, header::FORWARDED, &format!("for={host};proto={scheme}"));
        }
    }

    pub(crate) fn request_id(&mut self) -> &str {
        if self.request_id.is_empty() {
            *self.request_id = new_request_id();
        }
        self.request_id
    }

    fn change(&mut self, change: &HeaderChange) {
        if !applies(change, self.client) {
            return;
        }
        let value = match &change.change {
            HeaderChangeKind::Add(template) | HeaderChangeKind::Set(template) => Some(self.render(template)),
            HeaderChangeKind::Delete => None,
        };
        // The backend's virtual host: what the client asked for has been decided by already.
        if change.name == "host" {
            if let Some(host) = value.and_then(|v| v.parse().ok()) {
                self.head.host = host;
            }
            return;
        }
        change_header(self.headers, change, value);
    }

    fn render(&mut self, template: &Template) -> String {
        if let [swarmesh_router::model::Piece::Text(text)] = template.0.as_slice() {
            return text.clone();
        }
        template.render(|variable, out| {
            if *variable == Variable::RequestId {
                let id = self.request_id().to_owned();
                out.push_str(&id);
            } else {
                let about =
                    About { client: self.client, head: self.head, method: self.method, headers: self.headers, proxy_name: self.proxy_name };
                about.write(variable, out);
            }
        })
    }
}

/// What variables stand for.
#[derive(Debug)]
pub(crate) struct About<'r> {
    pub(crate) client: &'r Client,
    pub(crate) head: &'r Head,
    pub(crate) method: &'r Method,
    pub(crate) headers: &'r HeaderMap,
    pub(crate) proxy_name: &'r str,
}

impl About<'_> {
    /// All but the request's id.
    pub(crate) fn write(&self, variable: &Variable, out: &mut String) {
        // Writing to a String does not fail.
        let _ = match variable {
            Variable::ClientAddress => write!(out, "{}", self.client.address.ip()),
            Variable::ClientPort => write!(out, "{}", self.client.address.port()),
            Variable::LocalAddress => write!(out, "{}", self.client.local.ip()),
            Variable::LocalPort => write!(out, "{}", self.client.local.port()),
            Variable::Host => out.write_str(self.head.host.as_str()),
            Variable::Path => out.write_str(self.head.path()),
            Variable::Method => out.write_str(self.method.as_str()),
            Variable::Tls => out.write_str(if self.client.tls.is_some() { "1" } else { "0" }),
            Variable::Sni => out.write_str(self.client.tls.as_ref().and_then(|tls| tls.sni.as_deref()).unwrap_or_default()),
            Variable::Header(name) => {
                out.write_str(self.headers.get(name.as_str()).and_then(|value| value.to_str().ok()).unwrap_or_default())
            }
            Variable::ProxyName => out.write_str(self.proxy_name),
            Variable::RequestId => Ok(()),
        };
    }
}

pub(crate) fn applies(change: &HeaderChange, client: &Client) -> bool {
    match change.when {
        None => true,
        Some(When::Tls) => client.tls.is_some(),
        Some(When::Plain) => client.tls.is_none(),
    }
}

/// Headers that say where a message ends or what becomes of its connection are not to be changed by labels.
pub(crate) fn change_header(headers: &mut HeaderMap, change: &HeaderChange, value: Option<String>) {
    let Ok(name) = HeaderName::try_from(change.name.as_str()) else { return };
    if is_framing(&name) {
        return;
    }
    let value = value.map(HeaderValue::try_from);
    match (&change.change, value) {
        (HeaderChangeKind::Delete, _) => {
            headers.remove(name);
        }
        (HeaderChangeKind::Add(_), Some(Ok(value))) => {
            headers.append(name, value);
        }
        (HeaderChangeKind::Set(_), Some(Ok(value))) => {
            headers.insert(name, value);
        }
        // A value that came of a request and is none: the header would have lied.
        (HeaderChangeKind::Add(_) | HeaderChangeKind::Set(_), _) => {}
    }
}

fn is_framing(name: &HeaderName) -> bool {
    [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONNECTION, header::UPGRADE, header::TRAILER, header::TE].contains(name)
}

fn append(headers: &mut HeaderMap, name: HeaderName, element: &str) {
    let mut whole = String::new();
    for value in headers.get_all(&name) {
        if let Ok(value) = value.to_str() {
            whole.push_str(value);
            whole.push_str(", ");
        }
    }
    whole.push_str(element);
    if let Ok(value) = HeaderValue::try_from(whole) {
        headers.insert(name, value);
    }
}

/// What a client says of others counts only if it is trusted.
pub(crate) fn forget_claims(headers: &mut HeaderMap, client: &Client) {
    if client.is_trusted {
        return;
    }
    while let Some(name) = headers.keys().find(|name| is_claim(name.as_str())).cloned() {
        headers.remove(name);
    }
}

/// CGI and its heirs make one name of `-` and `_`, so both are looked for.
fn is_claim(name: &str) -> bool {
    let begins = |with: &str| name.len() >= with.len() && name.bytes().zip(with.bytes()).all(|(a, b)| a == b || a == b'_' && b == b'-');
    name == "forwarded" || name.starts_with('x') && (begins("x-forwarded-") || name.len() == 9 && begins("x-real-ip"))
}

/// Takes out what is between the client and us (RFC 9110, 7.6.1). Returns the protocol that an upgrade asks for.
pub(crate) fn take_hop_by_hop(headers: &mut HeaderMap) -> Option<HeaderValue> {
    // Looked for by name once, as most requests have at most one of them.
    if !headers.keys().any(is_hop_by_hop) {
        return None;
    }
    let mut upgrade = None;
    if headers.contains_key(header::CONNECTION) {
        // Nobody may take these away from the next one who reads.
        let kept = [header::HOST, header::CONTENT_LENGTH, header::AUTHORIZATION, header::COOKIE];
        let named = named_in_connection(headers);
        if named.contains(&header::UPGRADE) {
            upgrade = headers.get(header::UPGRADE).filter(|protocol| !is_http(protocol)).cloned();
        }
        for name in named.iter().filter(|name| !kept.contains(name)) {
            headers.remove(name);
        }
    }
    let takes_trailers = headers.get_all(header::TE).iter().any(|v| v.as_bytes().eq_ignore_ascii_case(b"trailers"));
    while let Some(name) = headers.keys().find(|name| is_hop_by_hop(name)).cloned() {
        headers.remove(name);
    }
    // gRPC wants it told.
    if takes_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    upgrade
}

/// Whether an upgrade would lead to HTTP again: then the tunnel would carry requests that no route and no filter sees. Such a request
/// goes on as what it is, which RFC 9110, 7.8, allows.
fn is_http(protocol: &HeaderValue) -> bool {
    let names = protocol.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    ["h2", "http", "tls"].iter().any(|http| names.clone().any(|name| starts_as(name, http.as_bytes())))
}

fn starts_as(name: &[u8], with: &[u8]) -> bool {
    name.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with))
}

/// The names that `Connection` lists.
pub(crate) fn named_in_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).filter_map(|name| HeaderName::try_from(name.trim()).ok()).collect()
}

pub(crate) fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// HTTP/2 may have parted it (RFC 9113, 8.2.3).
pub(crate) fn join_cookies(headers: &mut HeaderMap) {
    // Looked for only where some header is there more than once.
    if headers.len() == headers.keys_len() {
        return;
    }
    let Entry::Occupied(cookies) = headers.entry(header::COOKIE) else { return };
    if cookies.iter().nth(1).is_none() {
        return;
    }
    let values: Vec<&[u8]> = cookies.iter().map(HeaderValue::as_bytes).collect();
    if let Ok(whole) = HeaderValue::from_bytes(&values.join(&b"; "[..])) {
        headers.insert(header::COOKIE, whole);
    }
}

/// 32 hexadecimal digits that nobody can foresee and that do not come again.
pub(crate) fn new_request_id() -> String {
    use std::hash::{BuildHasher, RandomState};
    thread_local! {
        static SEEDS: (RandomState, RandomState) = (RandomState::new(), RandomState::new());
        static COUNT: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
    }
    let count = COUNT.with(|count| {
        count.set(count.get() + 1);
        count.get()
    });
    SEEDS.with(|(first, second)| format!("{:016x}{:016x}", first.hash_one(count), second.hash_one(count)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(of: &[(&str, &str)]) -> HeaderMap {
        of.iter().map(|(n, v)| (HeaderName::try_from(*n).unwrap(), HeaderValue::from_str(v).unwrap())).collect()
    }

    #[test]
    fn what_is_between_two_goes_no_further() {
        let mut map = headers(&[
            ("connection", "keep-alive, X-Own, upgrade"),
            ("connection", "Cookie, Content-Length"),
            ("x-own", "1"),
            ("cookie", "a=b"),
            ("content-length", "3"),
            ("upgrade", "websocket"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("proxy-authorization", "secret"),
            ("accept", "*/*"),
        ]);
        assert_eq!(take_hop_by_hop(&mut map).unwrap(), "websocket");
        let mut left: Vec<&str> = map.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "content-length", "cookie", "te"]);
        let mut map = headers(&[("upgrade", "h2c")]);
        assert_eq!(take_hop_by_hop(&mut map), None, "not asked for in Connection");
        assert!(map.is_empty());
    }

    #[test]
    fn what_strangers_claim_is_forgotten() {
        let all = [
            ("x-forwarded-for", "1"),
            ("x_forwarded_for", "1"),
            ("x-forwarded_proto", "1"),
            ("x-forwarded-prefix", "1"),
            ("x_real_ip", "1"),
            ("forwarded", "1"),
            ("x-real-ipad", "1"),
            ("x-forward", "1"),
            ("accept", "1"),
        ];
        let client = |is_trusted| Client::new(([192, 0, 2, 1], 1).into(), ([192, 0, 2, 2], 80).into(), is_trusted);
        let mut map = headers(&all);
        forget_claims(&mut map, &client(true));
        assert_eq!(map.len(), all.len());
        forget_claims(&mut map, &client(false));
        let mut left: Vec<&str> = map.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "x-forward", "x-real-ipad"]);
    }

    #[test]
    fn cookies_are_one_header() {
        let mut map = headers(&[("cookie", "a=1"), ("cookie", "b=2")]);
        join_cookies(&mut map);
        assert_eq!(map.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }

    #[test]
    fn request_ids_are_not_given_twice() {
        let ids: std::collections::HashSet<String> = (0..1000).map(|_| new_request_id()).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| id.len() == 32));
    }

    #[test]
    fn labels_do_not_touch_framing() {
        let mut map = headers(&[("content-length", "3")]);
        for (name, change) in [
            ("content-length", HeaderChangeKind::Delete),
            ("transfer-encoding", HeaderChangeKind::Set(Template::text("chunked"))),
            ("x", HeaderChangeKind::Set(Template::text("1"))),
        ] {
            let value = if change == HeaderChangeKind::Delete { None } else { Some("1".to_owned()) };
            change_header(&mut map, &HeaderChange { name: name.into(), change, when: None }, value);
        }
        assert_eq!(map, headers(&[("content-length", "3"), ("x", "1")]));
    }
}
