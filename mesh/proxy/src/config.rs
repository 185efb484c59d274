//! What the node's operator says about the proxy, and what holds where nothing is said.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use ipnet::IpNet;
use swarmesh_router::model::{CertificateRef, Timeouts};

use crate::{access_log::AccessLog, auth::NodeUsers};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where HTTP without TLS is taken.
    pub http: Vec<SocketAddr>,
    /// Where TLS is taken: opened here or passed on.
    pub https: Vec<SocketAddr>,
    /// Threads; 0 is one per core.
    pub workers: usize,
    /// Who may say, by `Forwarded`, `X-Forwarded-*` and the PROXY protocol, for whom it asks.
    pub trusted: Vec<IpNet>,
    /// Trusted clients begin with a PROXY header.
    pub accept_proxy_protocol: bool,
    /// This node's name, for headers that tell it.
    pub name: String,
    /// Docker secrets, as files named like them.
    pub secrets_dir: PathBuf,
    /// Certificates in files.
    pub certificates_dir: PathBuf,
    /// The node's own users, for routes that ask for them. Where there is no such list, these routes ask nobody who he is; where
    /// there is one that cannot be read, nobody gets in.
    pub users: Option<NodeUsers>,
    /// A host that a label names may be this node itself: its loopback and link-local addresses.
    pub local_hosts: bool,
    /// For names that have no certificate, and clients that say no name. Without one, those are refused.
    pub default_certificate: Option<CertificateRef>,
    /// A bundle of CAs whose clients are known: routes can ask for them.
    pub client_authorities: Option<PathBuf>,
    /// A bundle of CAs that backends are believed by, where a route says that they must prove who they are.
    pub backend_authorities: PathBuf,
    /// What is told of each request; nothing without it.
    pub access_log: Option<AccessLog>,
    /// Where a route says nothing.
    pub times: Times,
    pub sizes: Sizes,
}

/// How long each phase may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// The TLS handshake, from the first byte.
    pub handshake: Duration,
    /// A request's whole head, from its first byte.
    pub request: Duration,
    /// Between requests of one connection.
    pub keep_alive: Duration,
    /// Between two reads of a request's body.
    pub client: Duration,
    pub connect: Duration,
    /// Until the answer's head, and between two reads of its body.
    pub server: Duration,
    /// Nothing either way in a tunnel.
    pub tunnel: Duration,
    /// Waiting for a backend that has room.
    pub queue: Duration,
    /// An idle connection to a backend is closed after this long: before backends, which wait longer, close it themselves.
    pub upstream_idle: Duration,
}

/// How much a client may send or keep open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Bytes of a request's head.
    pub head: usize,
    pub headers: usize,
    /// Of one HTTP/2 connection.
    pub streams: u32,
    /// Idle connections to one backend, of one worker.
    pub idle: usize,
    /// Connections from clients, of one worker.
    pub connections: usize,
}

impl Default for Times {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            handshake: seconds(10),
            request: seconds(10),
            keep_alive: seconds(60),
            client: seconds(60),
            connect: seconds(5),
            server: seconds(60),
            tunnel: seconds(3600),
            queue: seconds(5),
            upstream_idle: seconds(4),
        }
    }
}

impl Default for Sizes {
    fn default() -> Self {
        // As many headers as hyper has room for without asking for memory; HAProxy takes one more.
        Self { head: 64 * 1024, headers: 100, streams: 128, idle: 256, connections: 65_536 }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            http: Vec::new(),
            https: Vec::new(),
            workers: 0,
            trusted: Vec::new(),
            accept_proxy_protocol: false,
            name: String::new(),
            secrets_dir: PathBuf::from("/run/secrets"),
            certificates_dir: PathBuf::from("/etc/swarmesh/certificates"),
            users: None,
            local_hosts: false,
            default_certificate: None,
            client_authorities: None,
            backend_authorities: PathBuf::from("/etc/ssl/certs/ca-certificates.crt"),
            access_log: None,
            times: Times::default(),
            sizes: Sizes::default(),
        }
    }
}

impl Times {
    /// These, except where a route says otherwise.
    pub(crate) fn of(&self, route: &Timeouts) -> Self {
        Self {
            connect: route.connect.unwrap_or(self.connect),
            client: route.client.unwrap_or(self.client),
            server: route.server.unwrap_or(self.server),
            tunnel: route.tunnel.unwrap_or(self.tunnel),
            request: route.request.unwrap_or(self.request),
            keep_alive: route.keep_alive.unwrap_or(self.keep_alive),
            queue: route.queue.unwrap_or(self.queue),
            ..*self
        }
    }
}

impl Config {
    pub(crate) fn trusts(&self, client: std::net::IpAddr) -> bool {
        self.trusted.iter().any(|net| net.contains(&client))
    }
}
