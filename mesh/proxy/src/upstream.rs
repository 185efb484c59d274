//! Connections to backends: opened where their network is, used again, closed when their backend goes.
//!
//! Each worker has its own, so nothing here is locked.

pub(crate) mod http1;

use std::{
    cell::RefCell,
    collections::HashMap,
    fmt,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{Request, Response, Uri, Version, header};
use hyper::{
    body::Incoming,
    client::conn::{http1 as hyper_http1, http2},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use swarmesh_router::model::{BackendProtocol, BackendTls, Upstream};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::client::TlsStream;

use self::http1::{AnswerError, Connection};
use crate::{
    config::{Config, Sizes},
    endpoint::{Dialer, Endpoint},
    http::body::RequestBody,
    tls::{self, UpstreamTls, UpstreamTlsError},
};

/// A connection that is silent for so long is asked whether its other end is there, and ends if nothing answers: where a foothold
/// went, or a node without its FIN, a tunnel would be waited on for its whole idle time.
const SILENT: Duration = Duration::from_secs(10);
const PROBE: Duration = Duration::from_secs(5);
const PROBES: u32 = 2;

/// Why there is no connection to a backend.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("this node has no namespace in the backend's network")]
    NoFoothold,
    #[error("no socket can be opened: {0}")]
    Socket(#[source] io::Error),
    #[error("not connected: {0}")]
    Connect(#[source] io::Error),
    #[error("not connected within {0:?}")]
    TimedOut(Duration),
    #[error("the name is not resolved: {0}")]
    Name(#[source] io::Error),
    #[error("the backend does not speak HTTP: {0}")]
    Handshake(#[source] hyper::Error),
    #[error(transparent)]
    Tls(#[from] UpstreamTlsError),
}

/// One worker's connections to all backends.
pub(crate) struct Upstreams {
    dialer: Arc<dyn Dialer>,
    tls: Arc<UpstreamTls>,
    sizes: Sizes,
    idle_time: Duration,
    local_hosts: bool,
    http1: RefCell<HashMap<u64, Vec<Idle>>>,
    /// One connection carries all requests.
    http2: RefCell<HashMap<u64, Shared>>,
}

impl fmt::Debug for Upstreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstreams").finish_non_exhaustive()
    }
}

struct Shared {
    endpoint: Arc<Endpoint>,
    sender: http2::SendRequest<RequestBody>,
    footing: u32,
}

struct Idle {
    lease: Lease,
    since: Instant,
}

/// A connection that is one request's for now.
pub(crate) struct Lease {
    endpoint: Arc<Endpoint>,
    /// Where it was opened.
    footing: u32,
    sender: Sender,
    /// It has carried a request before: the backend may be about to close it.
    pub(crate) is_reused: bool,
    /// Nobody else may have it.
    is_private: bool,
}

enum Sender {
    /// For requests without a body.
    Own(Box<Connection>),
    Http1(hyper_http1::SendRequest<RequestBody>),
    Http2(http2::SendRequest<RequestBody>),
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("endpoint", &self.endpoint.id).field("is_reused", &self.is_reused).finish_non_exhaustive()
    }
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error(transparent)]
    Own(#[from] AnswerError),
    #[error(transparent)]
    Hyper(#[from] hyper::Error),
}

/// A request that has no answer.
#[derive(Debug)]
pub(crate) struct Unanswered {
    pub(crate) error: SendError,
    /// No byte of it was sent.
    pub(crate) is_unsent: bool,
}

/// An answer's head, and its body if that is hyper's: else it comes by the connection.
pub(crate) type Answer = Response<Option<Incoming>>;

/// How a connection is to be.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    /// The request's host, where the backend speaks TLS.
    pub(crate) host: &'a str,
    pub(crate) connect_time: Duration,
    /// Never an idle one: what waits idle may have been closed.
    pub(crate) fresh: bool,
    /// What the backend is told before the first byte; such a connection is this client's alone.
    pub(crate) preface: Option<Vec<u8>>,
    pub(crate) private: bool,
    /// What is sent is more than a head: a body, or another protocol.
    pub(crate) streams: bool,
    /// It carries one request and is closed after the answer with a reset: a FIN from this side would keep its port in TIME_WAIT
    /// for a minute, and there are some 28,000 of them to one address.
    pub(crate) once: bool,
}

impl Upstreams {
    pub(crate) fn new(dialer: Arc<dyn Dialer>, tls: Arc<UpstreamTls>, config: &Config) -> Self {
        Self {
            dialer,
            tls,
            sizes: config.sizes,
            idle_time: config.times.upstream_idle,
            local_hosts: config.local_hosts,
            http1: RefCell::default(),
            http2: RefCell::default(),
        }
    }

    pub(crate) async fn connection(&self, endpoint: &Arc<Endpoint>, wanted: &Wanted<'_>) -> Result<Lease, ConnectError> {
        let is_private = wanted.private || wanted.once || wanted.preface.is_some();
        if !wanted.fresh
            && !is_private
            && let Some(lease) = self.idle(endpoint, wanted.streams).await
        {
            return Ok(lease);
        }
        // What is seldom needed must not make every request's future larger: those are moved.
        Box::pin(self.open(endpoint, wanted, is_private)).await
    }

    async fn open(&self, endpoint: &Arc<Endpoint>, wanted: &Wanted<'_>, is_private: bool) -> Result<Lease, ConnectError> {
        // Before the connection: one that is opened while this changes counts as opened before.
        let footing = endpoint.footing();
        let stream = self.connect(endpoint, wanted).await?;
        let sender = match &endpoint.tls {
            None if endpoint.protocol == BackendProtocol::H2c => {
                Sender::Http2(self.handshake2(endpoint, footing, stream, is_private).await?)
            }
            None if wanted.streams => Sender::Http1(self.handshake1(stream).await?),
            None => Sender::Own(Box::new(Connection::new(stream, self.most_head()))),
            Some(how) => {
                let stream = self.secure(endpoint, how, stream, wanted).await?;
                if tls::is_http2(stream.get_ref().1) {
                    Sender::Http2(self.handshake2(endpoint, footing, stream, is_private).await?)
                } else {
                    Sender::Http1(self.handshake1(stream).await?)
                }
            }
        };
        Ok(Lease { endpoint: Arc::clone(endpoint), footing, sender, is_reused: false, is_private })
    }

    async fn idle(&self, endpoint: &Arc<Endpoint>, streams: bool) -> Option<Lease> {
        if endpoint.protocol != BackendProtocol::Http1 {
            let held = self.http2.borrow().get(&endpoint.id).filter(|shared| shared.is_usable()).map(|shared| shared.sender.clone());
            if let Some(mut sender) = held
                && sender.ready().await.is_ok()
            {
                let (endpoint, footing) = (Arc::clone(endpoint), endpoint.footing());
                return Some(Lease { endpoint, footing, sender: Sender::Http2(sender), is_reused: true, is_private: false });
            }
        }
        loop {
            let mut idle = take(self.http1.borrow_mut().get_mut(&endpoint.id)?, streams)?;
            if idle.since.elapsed() >= self.idle_time || !idle.lease.leads_there() || !idle.lease.is_ready().await {
                continue;
            }
            let Lease { endpoint, footing, sender, is_reused, is_private } = idle.lease;
            let sender = match sender {
                Sender::Own(connection) if streams => match Box::pin(self.handshake1(connection.into_stream())).await {
                    Ok(sender) => Sender::Http1(sender),
                    Err(_) => continue,
                },
                sender => sender,
            };
            return Some(Lease { endpoint, footing, sender, is_reused, is_private });
        }
    }

    /// For the next request, if it is still open.
    pub(crate) fn give_back(&self, mut lease: Lease) {
        lease.is_reused = true;
        let closed = match &lease.sender {
            Sender::Own(connection) => !connection.is_idle(),
            Sender::Http1(sender) => sender.is_closed(),
            Sender::Http2(_) => true,
        };
        if closed || lease.is_private || !lease.leads_there() {
            return;
        }
        let mut all = self.http1.borrow_mut();
        let idle = all.entry(lease.endpoint.id).or_default();
        if idle.len() < self.sizes.idle {
            idle.push(Idle { lease, since: Instant::now() });
        }
    }

    /// Closes what has been idle for too long, and what leads to backends that are gone.
    pub(crate) fn sweep(&self, now: Instant) {
        self.http1.borrow_mut().retain(|_, idle| {
            idle.retain(|i| {
                // Nobody else looks whether the backend has closed a connection of our own.
                let is_closed = matches!(&i.lease.sender, Sender::Own(connection) if !connection.is_idle());
                !is_closed && i.lease.leads_there() && now.saturating_duration_since(i.since) < self.idle_time
            });
            !idle.is_empty()
        });
        self.http2.borrow_mut().retain(|_, shared| !shared.endpoint.is_gone() && shared.is_usable());
    }

    /// A connected TCP stream, without anything said on it.
    pub(crate) async fn connect(&self, endpoint: &Endpoint, wanted: &Wanted<'_>) -> Result<TcpStream, ConnectError> {
        let connecting = async {
            let mut failed = None;
            for to in addresses(&endpoint.upstream, self.local_hosts).await? {
                match self.connect_to(endpoint, to).await {
                    Ok(stream) => return Ok(stream),
                    Err(error) => failed = Some(error),
                }
            }
            Err(failed.unwrap_or_else(|| ConnectError::Name(io::ErrorKind::NotFound.into())))
        };
        let mut stream = timeout(wanted.connect_time, connecting).await.map_err(|_| ConnectError::TimedOut(wanted.connect_time))??;
        let socket = SockRef::from(&stream);
        if wanted.once {
            socket.set_linger(Some(Duration::ZERO)).map_err(ConnectError::Socket)?;
        } else {
            // One request has times of its own.
            let probes = TcpKeepalive::new().with_time(SILENT).with_interval(PROBE).with_retries(PROBES);
            socket.set_tcp_keepalive(&probes).map_err(ConnectError::Socket)?;
        }
        if let Some(preface) = &wanted.preface {
            tokio::io::AsyncWriteExt::write_all(&mut stream, preface).await.map_err(ConnectError::Connect)?;
        }
        Ok(stream)
    }

    async fn connect_to(&self, endpoint: &Endpoint, to: SocketAddr) -> Result<TcpStream, ConnectError> {
        let sandbox = match &endpoint.foothold {
            Some(foothold) => Some(foothold.sandbox(Instant::now()).ok_or(ConnectError::NoFoothold)?),
            None => None,
        };
        let socket = self.dialer.socket(sandbox.as_deref(), to).map_err(|error| match &endpoint.foothold {
            Some(foothold) if foothold.has_left() => ConnectError::NoFoothold,
            _ => ConnectError::Socket(error),
        })?;
        socket.set_tcp_nodelay(true).map_err(ConnectError::Socket)?;
        TcpSocket::from_std_stream(socket.into()).connect(to).await.map_err(ConnectError::Connect)
    }

    async fn secure(
        &self,
        endpoint: &Endpoint,
        how: &BackendTls,
        stream: TcpStream,
        wanted: &Wanted<'_>,
    ) -> Result<TlsStream<TcpStream>, ConnectError> {
        let address = stream.peer_addr().map_err(ConnectError::Connect)?.ip();
        let name = tls::server_name(how, Some(wanted.host), address)?;
        let config = self.tls.config(how, endpoint.protocol)?;
        let deadline = tokio::time::Instant::now() + wanted.connect_time;
        Ok(tls::connect(config, name, stream, deadline).await?)
    }

    fn most_head(&self) -> usize {
        self.sizes.head.max(8192)
    }

    async fn handshake1<S>(&self, stream: S) -> Result<hyper_http1::SendRequest<RequestBody>, ConnectError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = hyper_http1::Builder::new();
        builder.max_buf_size(self.most_head());
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(ConnectError::Handshake)?;
        tokio::task::spawn_local(async move {
            // How it ended, its requests know.
            let _ = connection.with_upgrades().await;
        });
        Ok(sender)
    }

    async fn handshake2<S>(
        &self,
        endpoint: &Arc<Endpoint>,
        footing: u32,
        stream: S,
        is_private: bool,
    ) -> Result<http2::SendRequest<RequestBody>, ConnectError>
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let mut builder = http2::Builder::new(LocalExecutor);
        builder.timer(TokioTimer::new()).keep_alive_interval(Duration::from_secs(20)).keep_alive_timeout(Duration::from_secs(10));
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(ConnectError::Handshake)?;
        tokio::task::spawn_local(async move {
            // As above.
            let _ = connection.await;
        });
        if !is_private {
            let shared = Shared { endpoint: Arc::clone(endpoint), sender: sender.clone(), footing };
            self.http2.borrow_mut().insert(endpoint.id, shared);
        }
        Ok(sender)
    }
}

/// The last one in is the one that is least likely to be closed; among those that suit a request, if there are any.
fn take(idle: &mut Vec<Idle>, streams: bool) -> Option<Idle> {
    let suits = |idle: &Idle| matches!(idle.lease.sender, Sender::Own(_)) != streams;
    match idle.iter().rposition(suits) {
        Some(place) => Some(idle.remove(place)),
        None => idle.pop(),
    }
}

async fn addresses(of: &Upstream, local_hosts: bool) -> Result<Vec<SocketAddr>, ConnectError> {
    Ok(match of {
        Upstream::Task { address, port, .. } | Upstream::Vip { address, port, .. } | Upstream::Published { address, port, .. } => {
            vec![SocketAddr::new(*address, *port)]
        }
        Upstream::Host { name, port } => {
            let found = tokio::net::lookup_host((name.as_str(), *port)).await.map_err(ConnectError::Name)?;
            found.filter(|address| local_hosts || leads_elsewhere(address.ip())).collect()
        }
    })
}

/// Whether a label may lead there by a name: not to what only this node is meant to reach, as its admin API is, and a cloud's
/// metadata.
fn leads_elsewhere(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => !(address.is_loopback() || address.is_unspecified() || address.is_link_local() || address.is_broadcast()),
        IpAddr::V6(address) => !(address.is_loopback() || address.is_unspecified() || address.is_unicast_link_local()),
    }
}

impl Shared {
    fn is_usable(&self) -> bool {
        !self.sender.is_closed() && self.footing == self.endpoint.footing()
    }
}

impl Lease {
    /// Its backend is there, and so is the namespace that it was opened in.
    fn leads_there(&self) -> bool {
        !self.endpoint.is_gone() && self.footing == self.endpoint.footing()
    }

    async fn is_ready(&mut self) -> bool {
        match &mut self.sender {
            Sender::Own(connection) => connection.is_idle(),
            Sender::Http1(sender) => sender.ready().await.is_ok(),
            Sender::Http2(sender) => sender.ready().await.is_ok(),
        }
    }

    /// The connection, if it is one of our own.
    pub(crate) fn own(&mut self) -> Option<&mut Connection> {
        match &mut self.sender {
            Sender::Own(connection) => Some(connection),
            Sender::Http1(_) | Sender::Http2(_) => None,
        }
    }

    pub(crate) fn as_own(&self) -> Option<&Connection> {
        match &self.sender {
            Sender::Own(connection) => Some(connection),
            Sender::Http1(_) | Sender::Http2(_) => None,
        }
    }

    /// Sends a request and waits for its answer, on a connection of hyper's. `request` is then what is left of it: the same again if
    /// it is to be kept or was not sent.
    pub(crate) async fn send(&mut self, request: &mut Request<RequestBody>, keeps: bool) -> Result<Answer, Unanswered> {
        let again = if keeps { copy(request) } else { Request::new(RequestBody::none()) };
        let mut whole = std::mem::replace(request, again);
        let sent = match &mut self.sender {
            // Not asked for: such a connection is read where it is used.
            Sender::Own(_) => return Err(Unanswered { error: AnswerError::Incomplete.into(), is_unsent: true }),
            Sender::Http1(sender) => {
                *whole.version_mut() = Version::HTTP_11;
                sender.try_send_request(whole).await
            }
            Sender::Http2(sender) => {
                to_http2(&mut whole, &self.endpoint);
                sender.try_send_request(whole).await
            }
        };
        sent.map(|answer| answer.map(Some)).map_err(|mut error| {
            let unsent = error.take_message();
            let is_unsent = unsent.is_some();
            if let Some(unsent) = unsent {
                *request = unsent;
            }
            Unanswered { error: error.into_error().into(), is_unsent }
        })
    }
}

/// The same again, for a request without a body.
fn copy(request: &Request<RequestBody>) -> Request<RequestBody> {
    let mut again = Request::new(RequestBody::none());
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.headers_mut() = request.headers().clone();
    again
}

/// In HTTP/2 the host is part of the target.
fn to_http2(request: &mut Request<RequestBody>, endpoint: &Endpoint) {
    let scheme = if endpoint.tls.is_some() { "https" } else { "http" };
    let host = request.headers_mut().remove(header::HOST);
    let mut uri = Uri::builder().scheme(scheme);
    if let Some(host) = host {
        uri = uri.authority(host.as_bytes());
    }
    if let Some(path) = request.uri().path_and_query() {
        uri = uri.path_and_query(path.clone());
    }
    if let Ok(uri) = uri.build() {
        *request.uri_mut() = uri;
    }
    *request.version_mut() = Version::HTTP_2;
}

/// Runs what HTTP/2 needs beside a connection on the worker that has the connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalExecutor;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// Closes old connections each second while the worker lives.
pub(crate) async fn sweep(upstreams: Rc<Upstreams>) {
    let mut second = tokio::time::interval(Duration::from_secs(1));
    loop {
        second.tick().await;
        upstreams.sweep(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_does_not_lead_to_what_is_this_nodes_alone() {
        for address in ["127.0.0.1", "127.8.9.1", "0.0.0.0", "169.254.169.254", "::1", "::", "fe80::1", "::ffff:127.0.0.1"] {
            assert!(!leads_elsewhere(address.parse().unwrap()), "{address}");
        }
        for address in ["192.0.2.1", "10.0.0.1", "2001:db8::1"] {
            assert!(leads_elsewhere(address.parse().unwrap()), "{address}");
        }
    }
}
