//! HTTP to the engine: GET only, one connection each, nothing that can hang for ever.
//!
//! A client of our own instead of bollard: its models refuse a whole list for one enum value that they do not know
//! (`TaskState` and others have no catch-all), and its raw requests are private to it.

use std::{io, time::Duration};

use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
    header::HOST,
};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};

use super::Endpoint;

/// The newest API version whose answers this code was read against; engines answer in the older of the two.
const NEWEST: ApiVersion = ApiVersion { major: 1, minor: 53 };
/// Docker 20.10.
const OLDEST: ApiVersion = ApiVersion { major: 1, minor: 41 };
/// No list of a swarm is larger than this; an answer that goes on is not an engine's.
const LARGEST_ANSWER: usize = 512 << 20;

/// Why the engine's answer could not be had. Says what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("cannot connect to Docker at {at}: {error}; is the engine running, and may this process use the socket?")]
    Connect { at: String, error: io::Error },
    #[error("Docker at {at} broke off while answering GET {path}: {error}")]
    Broken { at: String, path: String, error: hyper::Error },
    #[error("Docker at {at} did not answer GET {path} within {seconds} s; the engine hangs or is overloaded")]
    Stalled { at: String, path: String, seconds: u64 },
    #[error("this node is a worker: only managers know the swarm's services; use --source snapshot:FILE, or run on a manager")]
    Worker,
    #[error("this engine is not an active node of a swarm ({state}); `docker swarm init`, `join` or `unlock` makes it one")]
    NoSwarm { state: String },
    #[error("the swarm does not answer GET {path} ({status}): {message}")]
    Status { path: String, status: StatusCode, message: String },
    #[error("Docker at {at} speaks API {version} at most; 1.41 (Docker 20.10) or newer is needed")]
    TooOld { at: String, version: String },
    #[error("the answer to GET {path} is not what the Docker API promises: {message}")]
    Garbled { path: String, message: String },
    #[error("Docker at {at} ended the event stream; the engine restarts or stops")]
    EventsEnded { at: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ApiVersion {
    major: u16,
    minor: u16,
}

impl ApiVersion {
    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim().split_once('.')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

/// One engine, with the API version settled.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    endpoint: Endpoint,
    version: ApiVersion,
    patience: Duration,
}

impl Client {
    /// Asks the engine which API versions it speaks. `patience` is how long each wait of a call may last.
    pub(crate) async fn connect(endpoint: Endpoint, patience: Duration) -> Result<Self, ApiError> {
        let mut client = Self { endpoint, version: OLDEST, patience };
        let head = client.send("/_ping".to_owned()).await?;
        // Engines before 1.25 and proxies leave the header out; then the oldest that we can use is asked for.
        if let Some(value) = head.headers().get("api-version").and_then(|v| v.to_str().ok()) {
            let version = ApiVersion::parse(value).ok_or_else(|| ApiError::Garbled {
                path: "/_ping".to_owned(),
                message: format!("Api-Version {value:?} is not a version"),
            })?;
            if version < OLDEST {
                return Err(ApiError::TooOld { at: client.endpoint.to_string(), version: value.to_owned() });
            }
            client.version = version.min(NEWEST);
        }
        Ok(client)
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The whole body of a successful answer.
    pub(crate) async fn get(&self, path: &str) -> Result<Bytes, ApiError> {
        let mut response = self.send(self.versioned(path)).await?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk(path, response.body_mut()).await? {
            body.extend_from_slice(&chunk);
            if body.len() > LARGEST_ANSWER {
                return Err(ApiError::Garbled { path: path.to_owned(), message: format!("more than {LARGEST_ANSWER} bytes") });
            }
        }
        if status.is_success() { Ok(body.into()) } else { Err(refusal(path, status, &body)) }
    }

    /// The body of an answer that has no end, such as `/events`.
    pub(crate) async fn open(&self, path: &str) -> Result<Incoming, ApiError> {
        let mut response = self.send(self.versioned(path)).await?;
        let status = response.status();
        if status.is_success() {
            return Ok(response.into_body());
        }
        let message = self.chunk(path, response.body_mut()).await?.unwrap_or_default();
        Err(refusal(path, status, &message))
    }

    fn versioned(&self, path: &str) -> String {
        format!("/v{}.{}{path}", self.version.major, self.version.minor)
    }

    fn stalled(&self, path: &str) -> ApiError {
        ApiError::Stalled { at: self.endpoint.to_string(), path: path.to_owned(), seconds: self.patience.as_secs() }
    }

    async fn chunk(&self, path: &str, body: &mut Incoming) -> Result<Option<Bytes>, ApiError> {
        loop {
            match timeout(self.patience, body.frame()).await {
                Err(_) => return Err(self.stalled(path)),
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => return Err(self.broken(path, error)),
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    fn broken(&self, path: &str, error: hyper::Error) -> ApiError {
        ApiError::Broken { at: self.endpoint.to_string(), path: path.to_owned(), error }
    }

    async fn send(&self, path: String) -> Result<hyper::Response<Incoming>, ApiError> {
        let connect = |error| ApiError::Connect { at: self.endpoint.to_string(), error };
        let answer = async {
            match &self.endpoint {
                Endpoint::Unix(socket) => self.exchange(UnixStream::connect(socket).await.map_err(connect)?, &path, "docker").await,
                Endpoint::Tcp(authority) => self.exchange(TcpStream::connect(authority).await.map_err(connect)?, &path, authority).await,
            }
        };
        timeout(self.patience, answer).await.unwrap_or_else(|_| Err(self.stalled(&path)))
    }

    async fn exchange<S>(&self, stream: S, path: &str, host: &str) -> Result<hyper::Response<Incoming>, ApiError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let broken = |error| self.broken(path, error);
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let request = Request::get(path)
            .header(HOST, host)
            .body(Empty::<Bytes>::new())
            .map_err(|error| ApiError::Garbled { path: path.to_owned(), message: error.to_string() })?;
        // Ends by itself when the answer has been read or dropped; its errors reach us through the body.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to Docker ended");
            }
        });
        sender.send_request(request).await.map_err(broken)
    }
}

fn refusal(path: &str, status: StatusCode, body: &[u8]) -> ApiError {
    #[derive(Deserialize)]
    struct Message {
        message: String,
    }
    let message = serde_json::from_slice::<Message>(body)
        .map_or_else(|_| String::from_utf8_lossy(&body[..body.len().min(200)]).trim().to_owned(), |m| m.message);
    ApiError::Status { path: path.to_owned(), status, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        let v = |text| ApiVersion::parse(text);
        assert!(v("1.9") < v("1.41"));
        assert_eq!(v("1.41"), Some(OLDEST));
        assert_eq!(v(" 1.44 "), Some(ApiVersion { major: 1, minor: 44 }));
        assert_eq!(v("one"), None);
        assert_eq!(v("1.x"), None);
    }
}
