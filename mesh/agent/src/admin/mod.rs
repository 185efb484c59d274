//! The admin API: HTTP/1.1 on a TCP address or a unix socket.

mod guard;
mod listen;
mod metrics;
mod routes;

use std::{convert::Infallible, sync::Arc, time::Duration};

use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
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
    let permits = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let server = Arc::new(routes::Server { engine, bound: listener.address().clone() });
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
                connection(stream, server, peer).await;
                drop(permit);
            }),
            Ok((listen::Stream::Unix(stream), peer)) => connections.spawn(async move {
                connection(stream, server, peer).await;
                drop(permit);
            }),
            Err(error) => {
                // Out of descriptors, most likely: the pause keeps this from being a busy loop.
                tracing::warn!(%error, "cannot accept a connection to the admin API");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
    }
}

async fn connection<S>(stream: S, server: Arc<routes::Server>, peer: Peer)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request: Request<Incoming>| {
        let server = Arc::clone(&server);
        async move { Ok::<_, Infallible>(server.answer(request, peer).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_PATIENCE).max_buf_size(LARGEST_HEAD).half_close(false);
    match timeout(CONNECTION_PATIENCE, http.serve_connection(TokioIo::new(stream), service)).await {
        Ok(Err(error)) => tracing::debug!(%error, "connection to the admin API ended"),
        Ok(Ok(())) => {}
        Err(_) => tracing::debug!("connection to the admin API cut after {} s", CONNECTION_PATIENCE.as_secs()),
    }
}
