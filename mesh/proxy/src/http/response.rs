//! Answers: our own, and what a route's filters do to a backend's.

use std::time::Duration;

use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{self, CONTENT_TYPE, LOCATION, SERVER, STRICT_TRANSPORT_SECURITY, WWW_AUTHENTICATE},
};
use swarmesh_router::model::{Filter, HeaderChangeKind, Upstream, Variable};

use crate::auth::Refusal;

use super::{
    body::AnswerBody,
    request::{About, Stop, applies, change_header, is_hop_by_hop, named_in_connection},
};

/// An answer of our own: a line that says what it means.
pub(crate) fn own(status: StatusCode) -> Response<AnswerBody> {
    let mut answer = Response::new(AnswerBody::own(format!("{status}\n")));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer.headers_mut().insert(SERVER, HeaderValue::from_static("swarmesh"));
    answer
}

pub(crate) fn stopped(stop: Stop) -> Response<AnswerBody> {
    match stop {
        Stop::Status(status) => own(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)),
        Stop::To(code, location) => match HeaderValue::try_from(location) {
            Ok(location) => {
                let mut answer = own(code);
                answer.headers_mut().insert(LOCATION, location);
                answer
            }
            // What came of the request is no header.
            Err(_) => own(StatusCode::BAD_REQUEST),
        },
        Stop::Auth(Refusal::Challenge(challenge)) => {
            let mut answer = own(StatusCode::UNAUTHORIZED);
            answer.headers_mut().insert(WWW_AUTHENTICATE, challenge);
            answer
        }
        Stop::Auth(Refusal::Busy) => own(StatusCode::SERVICE_UNAVAILABLE),
    }
}

/// Takes out what is between the backend and us.
pub(crate) fn take_hop_by_hop(headers: &mut HeaderMap) {
    // Where both are, the chunks count (RFC 9112, 6.3), and the length would lie about what goes on to the client.
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    if !headers.keys().any(is_between) {
        return;
    }
    let kept = [header::CONTENT_LENGTH, header::SET_COOKIE];
    for name in named_in_connection(headers).iter().filter(|name| !kept.contains(name)) {
        headers.remove(name);
    }
    while let Some(name) = headers.keys().find(|name| is_between(name)).cloned() {
        headers.remove(name);
    }
}

/// A backend's challenge to a proxy is not for us alone: it goes on.
fn is_between(name: &HeaderName) -> bool {
    is_hop_by_hop(name) && name != header::PROXY_AUTHENTICATE && name != header::TE
}

/// What answers need of their requests.
#[derive(Debug)]
pub(crate) struct Answering<'r> {
    pub(crate) about: About<'r>,
    pub(crate) request_id: &'r str,
    pub(crate) upstream: Option<&'r Upstream>,
    pub(crate) took: Duration,
}

impl Answering<'_> {
    /// Applies one filter of answers; others do nothing.
    pub(crate) fn apply(&self, filter: &Filter, status: StatusCode, headers: &mut HeaderMap) {
        match filter {
            Filter::Response(change) if applies(change, self.about.client) => {
                let value = match &change.change {
                    HeaderChangeKind::Add(template) | HeaderChangeKind::Set(template) => {
                        Some(template.render(|variable, out| match variable {
                            Variable::RequestId => out.push_str(self.request_id),
                            variable => self.about.write(variable, out),
                        }))
                    }
                    HeaderChangeKind::Delete => None,
                };
                change_header(headers, change, value);
            }
            Filter::StrictTransport { seconds, subdomains, preload } if self.about.client.tls.is_some() => {
                let subdomains = if *subdomains { "; includeSubDomains" } else { "" };
                let preload = if *preload { "; preload" } else { "" };
                if let Ok(value) = HeaderValue::try_from(format!("max-age={seconds}{subdomains}{preload}")) {
                    headers.insert(STRICT_TRANSPORT_SECURITY, value);
                }
            }
            Filter::InfoHeaders if has_info(status) => self.inform(headers),
            _ => {}
        }
    }

    fn inform(&self, headers: &mut HeaderMap) {
        let seconds = format!("{:.3}", self.took.as_secs_f64());
        let upstream = match self.upstream {
            Some(
                Upstream::Task { address, port, .. } | Upstream::Vip { address, port, .. } | Upstream::Published { address, port, .. },
            ) => std::net::SocketAddr::new(*address, *port).to_string(),
            Some(Upstream::Host { name, port }) => format!("{name}:{port}"),
            None => String::new(),
        };
        let server = concat!("swarmesh/", env!("CARGO_PKG_VERSION"));
        for (name, value) in [
            ("x-request-id", self.request_id),
            ("x-proxy-id", self.about.proxy_name),
            ("x-server-info", server),
            ("x-upstream-addr", &upstream),
            ("x-upstream-response-time", &seconds),
        ] {
            if let Ok(value) = HeaderValue::from_str(value)
                && !value.is_empty()
            {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
    }
}

/// nginx's `add_header` knows these.
fn has_info(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 201 | 204 | 206 | 301..=304 | 307 | 308)
}
