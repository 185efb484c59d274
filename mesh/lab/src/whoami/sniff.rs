//! One port for two protocols: the first bytes tell HTTP from lines.

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

use super::{Running, Server, echo, http};

/// A caller that stops in the middle of a method's name gets the echo after this time.
const PATIENCE: Duration = Duration::from_secs(1);
const METHODS: [&[u8]; 9] = [b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH ", b"TRACE ", b"CONNECT "];

#[derive(Debug, PartialEq, Eq)]
enum Protocol {
    Http,
    Lines,
    Undecided,
}

fn protocol(start: &[u8]) -> Protocol {
    if METHODS.iter().any(|method| start.starts_with(method)) {
        Protocol::Http
    } else if METHODS.iter().any(|method| method.starts_with(start)) {
        Protocol::Undecided
    } else {
        Protocol::Lines
    }
}

pub(super) async fn serve(mut stream: TcpStream, remote: SocketAddr, local: SocketAddr, server: Arc<Server>, mut running: Running) {
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
            () = running.stopped() => return,
        };
        match read {
            Err(_) => return,
            // End of input, or a pause: what came so far is all there is to judge by.
            Ok(0) => break Protocol::Lines,
            Ok(_) => match protocol(&start) {
                Protocol::Undecided => {}
                decided => break decided,
            },
        }
    };
    let stream = Rewound { start, taken: 0, stream };
    match decided {
        Protocol::Http => http::serve(stream, remote, local, server, running).await,
        Protocol::Lines | Protocol::Undecided => tokio::select! {
            _ = echo::lines(stream, remote, local, &server) => {}
            () = running.stopped() => {}
        },
    }
}

/// A connection whose first bytes have been looked at already.
#[derive(Debug)]
pub(super) struct Rewound {
    start: Vec<u8>,
    taken: usize,
    stream: TcpStream,
}

impl AsyncRead for Rewound {
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

impl AsyncWrite for Rewound {
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
    }
}
