//! How long, how much and how often. What a dialect does not say is the node's own default.

use std::time::Duration;

use serde::Serialize;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Policy {
    pub timeouts: Timeouts,
    pub limits: Limits,
    pub retries: Retries,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ejection: Option<Ejection>,
    /// What the backend is told about the client before the first byte.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Connections to the backend are not used again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub close_upstream: bool,
    /// TCP keep-alive towards the client.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub client_keepalive: bool,
    /// Tasks that cannot be connected to get nothing until they can: tried in the background.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub check_connect: bool,
}

/// `None` is the node's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Timeouts {
    pub connect: Option<Duration>,
    /// Between two reads from the client.
    pub client: Option<Duration>,
    /// Between two reads from, or writes to, the backend.
    pub server: Option<Duration>,
    /// Nothing either way, once the connection has become a tunnel.
    pub tunnel: Option<Duration>,
    /// All of the request's head.
    pub request: Option<Duration>,
    /// Between requests of one connection.
    pub keep_alive: Option<Duration>,
    /// Waiting for a backend that has room.
    pub queue: Option<Duration>,
}

/// `None` is the node's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Limits {
    /// Of a request's body, in bytes.
    pub body: Option<u64>,
    /// At once, to each backend.
    pub connections: Option<u32>,
}

/// Trying another backend. Only requests that can be sent twice are sent twice; one that reached nobody was not sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Retries {
    /// Beyond the first; 0 is never, and `None` one for each other backend.
    pub attempts: Option<u8>,
    pub on: Vec<RetryOn>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RetryOn {
    ConnectFailure,
    Timeout,
    /// The answer is not HTTP.
    InvalidAnswer,
    Status(u16),
}

/// A backend that failed this often gets nothing for this long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Ejection {
    pub failures: u16,
    pub time: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyProtocol {
    V1,
    V2,
}
