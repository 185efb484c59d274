//! Asks a running agent.

use std::{io, time::Duration};

use http_body_util::{BodyExt, Empty, Limited};
use hyper::{
    Method, Request, StatusCode,
    body::Bytes,
    client::conn::http1,
    header::{CONNECTION, HOST},
};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};

use super::Exit;
use crate::config::AdminAddress;

const PATIENCE: Duration = Duration::from_secs(30);
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// A snapshot of the largest swarm there is, and some.
const LARGEST_ANSWER: usize = 1 << 30;

#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error("no agent answers at {address}: {error}; is `swarmesh agent` running, and is --admin the same there?")]
    Unreachable { address: AdminAddress, error: io::Error },
    #[error("the agent at {address} did not answer GET {path} in time; see its log")]
    Slow { address: AdminAddress, path: String },
    #[error("the agent at {address} broke off: {error}; see its log")]
    Broken { address: AdminAddress, error: hyper::Error },
    #[error("the answer of {address} is not what an agent of this version says: {problem}; is something else listening there?")]
    Garbled { address: AdminAddress, problem: String },
    #[error("the agent refuses ({status}): {message}")]
    Refused { status: StatusCode, message: String },
    #[error("cannot ask the agent: {0}")]
    Runtime(io::Error),
}

impl ClientError {
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::Unreachable { .. } | Self::Slow { .. } | Self::Broken { .. } => Exit::Unreachable,
            Self::Refused { status, .. } if *status == StatusCode::BAD_REQUEST => Exit::Usage,
            Self::Garbled { .. } | Self::Refused { .. } | Self::Runtime(_) => Exit::Failed,
        }
    }
}

pub(super) struct Client<'a> {
    address: &'a AdminAddress,
}

impl<'a> Client<'a> {
    pub(super) fn new(address: &'a AdminAddress) -> Self {
        Self { address }
    }

    /// The body of a 200.
    pub(super) fn get(&self, path: &str) -> Result<String, ClientError> {
        self.call(&Method::GET, path)
    }

    pub(super) fn post(&self, path: &str) -> Result<String, ClientError> {
        self.call(&Method::POST, path)
    }

    pub(super) fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let text = self.get(path)?;
        self.parse(&text)
    }

    pub(super) fn parse<T: DeserializeOwned>(&self, text: &str) -> Result<T, ClientError> {
        serde_json::from_str(text).map_err(|error| self.garbled(error))
    }

    /// Whether anybody listens there, whoever it is.
    pub(super) fn is_answered(&self) -> bool {
        !matches!(self.get("/healthz"), Err(ClientError::Unreachable { .. } | ClientError::Runtime(_)))
    }

    fn garbled(&self, problem: impl ToString) -> ClientError {
        ClientError::Garbled { address: self.address.clone(), problem: problem.to_string() }
    }

    fn call(&self, method: &Method, path: &str) -> Result<String, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ClientError::Runtime)?;
        runtime.block_on(async {
            let slow = || ClientError::Slow { address: self.address.clone(), path: path.to_owned() };
            timeout(PATIENCE, self.connect_and_call(method, path)).await.unwrap_or_else(|_| Err(slow()))
        })
    }

    async fn connect_and_call(&self, method: &Method, path: &str) -> Result<String, ClientError> {
        let unreachable = |error| ClientError::Unreachable { address: self.address.clone(), error };
        let late = |_| unreachable(io::ErrorKind::TimedOut.into());
        match self.address {
            AdminAddress::Tcp(address) => {
                let stream = timeout(CONNECT_PATIENCE, TcpStream::connect(address)).await.map_err(late)?.map_err(unreachable)?;
                self.exchange(stream, method, path, &address.to_string()).await
            }
            AdminAddress::Unix(socket) => {
                let stream = timeout(CONNECT_PATIENCE, UnixStream::connect(socket)).await.map_err(late)?.map_err(unreachable)?;
                self.exchange(stream, method, path, "localhost").await
            }
        }
    }

    async fn exchange<S>(&self, stream: S, method: &Method, path: &str, host: &str) -> Result<String, ClientError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let broken = |error| ClientError::Broken { address: self.address.clone(), error };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Its errors reach us through the answer.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, host)
            .header(CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|e| self.garbled(e))?;
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST_ANSWER).collect().await.map_err(|e| self.garbled(e))?.to_bytes();
        let text = String::from_utf8(body.to_vec()).map_err(|e| self.garbled(e))?;
        if status == StatusCode::OK {
            return Ok(text);
        }
        let error = serde_json::from_str::<serde_json::Value>(&text).ok();
        let message = error.as_ref().and_then(|e| e["error"].as_str()).unwrap_or(text.trim()).to_owned();
        Err(ClientError::Refused { status, message })
    }
}
