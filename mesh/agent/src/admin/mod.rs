//! The admin API: HTTP/1.1 on a TCP address or a unix socket.

pub(crate) mod guard;
mod listen;
pub(crate) mod metrics;
mod routes;

use std::{convert::Infallible, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

pub use guard::Peer;
pub use listen::{BindError, Listener};

use crate::engine::EngineHandle;

/// Connections beyond these wait to be accepted.
const MOST_CONNECTIONS: usize = 64;
/// For a request's head, and for the pause before the next one.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);
/// After this a connection ends, whatever it is doing: nobody may sit on the last one.
const CONNECTION_PATIENCE: Duration = Duration::from_secs(120);
const LARGEST_HEAD: usize = 16 * 1024;

/// Serves until the returned future is dropped.
pub async fn serve(listener: Listener, engine: EngineHandle) {
    let server = routes::Server { engine, bound: listener.address().clone() };
    serve_answers(listener, Arc::new(server), LARGEST_HEAD).await;
}

/// Who answers an API's requests.
pub(crate) trait Answers: Send + Sync + 'static {
    fn answer(&self, request: Request<Incoming>, peer: Peer) -> impl Future<Output = Answer> + Send;
}

pub(crate) type Answer = Response<Full<Bytes>>;

pub(crate) async fn serve_answers(listener: Listener, server: Arc<impl Answers>, largest_head: usize) {
    let permits = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        // The semaphore is never closed; if it were, there would be nothing left to serve.
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let server = Arc::clone(&server);
        match accepted {
            Ok((listen::Stream::Tcp(stream), peer)) => connections.spawn(async move {
                connection(stream, server, peer, largest_head).await;
                drop(permit);
            }),
            Ok((listen::Stream::Unix(stream), peer)) => connections.spawn(async move {
                connection(stream, server, peer, largest_head).await;
                drop(permit);
            }),
            Err(error) => {
                // Out of descriptors, most likely: the pause keeps this from being a busy loop.
                tracing::warn!(%error, "cannot accept a connection to an API");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
    }
}

async fn connection<S>(stream: S, server: Arc<impl Answers>, peer: Peer, largest_head: usize)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request: Request<Incoming>| {
        let server = Arc::clone(&server);
        async move { Ok::<_, Infallible>(server.answer(request, peer).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_PATIENCE).max_buf_size(largest_head).half_close(false);
    match timeout(CONNECTION_PATIENCE, http.serve_connection(TokioIo::new(stream), service)).await {
        Ok(Err(error)) => tracing::debug!(%error, "connection to an API ended"),
        Ok(Ok(())) => {}
        Err(_) => tracing::debug!("connection to an API cut after {} s", CONNECTION_PATIENCE.as_secs()),
    }
}
