//! A stream of which something was read, as if it had not been.

use std::{
    fmt,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Reads what was put back, then the stream. Writes go to the stream.
pub struct Rewound<S> {
    again: Bytes,
    stream: S,
}

impl<S> Rewound<S> {
    pub fn new(stream: S) -> Self {
        Self::with(Bytes::new(), stream)
    }

    pub fn with(again: impl Into<Bytes>, stream: S) -> Self {
        Self { again: again.into(), stream }
    }

    /// Gives these bytes before all that is still to be read.
    pub fn put_back(&mut self, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        self.again = match (bytes.is_empty(), self.again.is_empty()) {
            (true, _) => return,
            (false, true) => bytes,
            (false, false) => {
                let mut all = BytesMut::with_capacity(bytes.len() + self.again.len());
                all.extend_from_slice(&bytes);
                all.extend_from_slice(&self.again);
                all.freeze()
            }
        };
    }

    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    /// What is still to be read again, and the stream.
    pub fn into_parts(self) -> (Bytes, S) {
        (self.again, self.stream)
    }
}

impl<S: fmt::Debug> fmt::Debug for Rewound<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What clients say is for nobody's log.
        f.debug_struct("Rewound").field("again", &self.again.len()).field("stream", &self.stream).finish()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.again.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, into);
        }
        let length = self.again.len().min(into.remaining());
        into.put_slice(&self.again[..length]);
        self.again.advance(length);
        if self.again.is_empty() {
            // The hello's memory is not kept for as long as the connection lives.
            self.again = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn what_was_put_back_comes_first_and_whole() {
        let (mut far, near) = tokio::io::duplex(64);
        far.write_all(b"fgh").await.unwrap();
        let mut stream = Rewound::with(&b"de"[..], near);
        stream.put_back(&b"abc"[..]);
        stream.put_back(Bytes::new());
        let mut two = [0; 2];
        stream.read_exact(&mut two).await.unwrap();
        assert_eq!(&two, b"ab");
        stream.write_all(b"up").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut up = String::new();
        far.read_to_string(&mut up).await.unwrap();
        assert_eq!(up, "up");
        drop(far);
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "cdefgh");
    }
}
