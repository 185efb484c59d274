//! One port for all protocols: the first bytes tell HTTP, TLS and lines from each other.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};

use tokio_rustls::TlsAcceptor;

use super::{Running, Server, echo, http};

/// A caller that stops in the middle of a method's name gets the echo after this time.
const PATIENCE: Duration = Duration::from_secs(1);
/// The first byte of TLS.
const HANDSHAKE: u8 = 0x16;
const METHODS: [&[u8]; 9] = [b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH ", b"TRACE ", b"CONNECT "];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Http,
    /// A hello, to be opened where there is a certificate.
    Tls,
    Lines,
    Undecided,
}

fn protocol(start: &[u8]) -> Protocol {
    if METHODS.iter().any(|method| start.starts_with(method)) {
        Protocol::Http
    } else if METHODS.iter().any(|method| method.starts_with(start)) {
        Protocol::Undecided
    } else if start.first() == Some(&HANDSHAKE) {
        Protocol::Tls
    } else {
        Protocol::Lines
    }
}

/// What a connection carries: bytes as they come, or what TLS had inside.
pub(super) trait Carrier: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Carrier for S {}

pub(super) async fn serve(stream: TcpStream, remote: SocketAddr, local: SocketAddr, server: Arc<Server>, mut running: Running) {
    let Some((protocol, stream)) = look(stream, &mut running).await else { return };
    match (&server.tls, protocol) {
        (Some(config), Protocol::Tls) => {
            let opened = tokio::select! {
                opened = TlsAcceptor::from(Arc::clone(config)).accept(stream) => opened,
                () = running.stopped() => return,
            };
            // A handshake that fails is the caller's.
            let Ok(stream) = opened else { return };
            let Some((protocol, stream)) = look(stream, &mut running).await else { return };
            talk(protocol, stream, remote, local, server, running).await;
        }
        _ => talk(protocol, stream, remote, local, server, running).await,
    }
}

/// Reads until the protocol is clear; `None` when there is nobody left to serve.
async fn look<S: Carrier>(mut stream: S, running: &mut Running) -> Option<(Protocol, Rewound<S>)> {
    let mut start = Vec::with_capacity(1024);
    let decided = loop {
        let read = async {
            if start.is_empty() {
                stream.read_buf(&mut start).await
            } else {
                timeout(PATIENCE, stream.read_buf(&mut start)).await.unwrap_or(Ok(0))
            }
        };
        let read = tokio::select! {
            read = read => read,
            () = running.stopped() => return None,
        };
        match read {
            Err(_) => return None,
            // End of input, or a pause: what came so far is all there is to judge by.
            Ok(0) => break Protocol::Lines,
            Ok(_) => match protocol(&start) {
                Protocol::Undecided => {}
                decided => break decided,
            },
        }
    };
    Some((decided, Rewound { start, taken: 0, stream }))
}

async fn talk<S: Carrier>(
    protocol: Protocol,
    stream: Rewound<S>,
    remote: SocketAddr,
    local: SocketAddr,
    server: Arc<Server>,
    mut running: Running,
) {
    match protocol {
        Protocol::Http => http::serve(stream, remote, local, server, running).await,
        Protocol::Lines | Protocol::Tls | Protocol::Undecided => tokio::select! {
            _ = echo::lines(stream, remote, local, &server) => {}
            () = running.stopped() => {}
        },
    }
}

/// A connection whose first bytes have been looked at already.
#[derive(Debug)]
pub(super) struct Rewound<S> {
    start: Vec<u8>,
    taken: usize,
    stream: S,
}

impl<S: Carrier> AsyncRead for Rewound<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let left = &self.start[self.taken..];
        if left.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let count = left.len().min(buffer.remaining());
        buffer.put_slice(&left[..count]);
        self.taken += count;
        Poll::Ready(Ok(()))
    }
}

impl<S: Carrier> AsyncWrite for Rewound<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_and_a_space_make_a_request() {
        assert_eq!(protocol(b"GET / HTTP/1.1\r\n"), Protocol::Http);
        assert_eq!(protocol(b"PO"), Protocol::Undecided);
        assert_eq!(protocol(b"POTATO\n"), Protocol::Lines);
        assert_eq!(protocol(b"GET\n"), Protocol::Lines);
        assert_eq!(protocol(b"hello\n"), Protocol::Lines);
        assert_eq!(protocol(b"\x16\x03\x01"), Protocol::Tls);
    }
}
