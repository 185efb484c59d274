//! A client's TLS connection that has no buffers while nobody speaks.
//!
//! rustls's buffered connections keep what they read the handshake into, 4 kB, for as long as they live. Here records lie in the
//! thread's memory while they are worked on, and only what is left of them belongs to the connection: a record that is not whole
//! yet, content that nobody has read, records that the client does not take.

use std::{
    cell::Cell,
    fmt,
    future::poll_fn,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use rustls::{
    CommonState, ProtocolVersion, ServerConfig,
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus, WriteTraffic},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The most that a record carries (RFC 8446, 5.1), and the most that it is on its way (RFC 5246, 6.2.3).
const CONTENT: usize = 1 << 14;
const RECORD: usize = 5 + CONTENT + 2048;
/// What one write makes of what it is given; each record gets some 22 to 40 bytes longer, and alerts and new keys go before it.
const WRITTEN_RECORDS: usize = 4;
const SEALED: usize = WRITTEN_RECORDS * (CONTENT + 64) + 512;
/// No message of a handshake is larger than 64 KiB to rustls, so this much is never waited for.
const LARGEST_INCOMING: usize = 4 * (1 << 16);

/// The thread's memory for records. What is in it is good for one poll.
struct Room {
    sealed: Vec<u8>,
    content: Vec<u8>,
}

thread_local! {
    static ROOM: Cell<Option<Box<Room>>> = const { Cell::new(None) };
}

/// A stream within a stream would find none, and make its own.
fn with_room<T>(work: impl FnOnce(&mut Room) -> T) -> T {
    let mut room = ROOM.take().unwrap_or_else(|| Box::new(Room { sealed: vec![0; SEALED], content: vec![0; CONTENT] }));
    let outcome = work(&mut room);
    ROOM.set(Some(room));
    outcome
}

/// TLS's server side over `S`, as RFC 8446 and RFC 5246 say. A connection that ends without `close_notify` is an error
/// ([`io::ErrorKind::UnexpectedEof`]), for what was read of it may not be all.
pub struct TlsStream<S> {
    io: S,
    session: UnbufferedServerConnection,
    /// Records of which rustls has not had all. It remembers places in it: nothing but what it lets go may be taken out.
    incoming: BytesMut,
    /// `incoming` has no whole record.
    is_starved: bool,
    /// Content of records that was not read yet.
    content: BytesMut,
    /// Records that the client has not taken yet.
    outgoing: BytesMut,
    /// The client has said that nothing follows.
    is_over: bool,
    has_said_goodbye: bool,
    /// Why the session cannot go on.
    fault: Option<rustls::Error>,
}

/// What came of a step of rustls's.
enum Step {
    /// There was content.
    Content,
    /// It has something to send, or had something to put in order.
    Went,
    /// The client says no more.
    Over,
    /// It needs more bytes to go on.
    Starves,
}

/// How long [`Parts::digest`] goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    /// What was asked for is there.
    Content,
    /// All records have been read that are whole.
    Starved,
}

/// What is worked on, beside the bytes that have come.
struct Parts<'a> {
    session: &'a mut UnbufferedServerConnection,
    content: &'a mut BytesMut,
    outgoing: &'a mut BytesMut,
    is_over: &'a mut bool,
}

impl Parts<'_> {
    /// One step. Says how much of `records` rustls needs no longer. `traffic` is called when content may be sent.
    fn step(
        &mut self,
        records: &mut [u8],
        into: &mut ReadBuf<'_>,
        traffic: impl FnOnce(WriteTraffic<'_, ServerConnectionData>),
    ) -> (usize, Result<Step, rustls::Error>) {
        let UnbufferedStatus { mut discard, state } = self.session.process_tls_records(records);
        let step = match state {
            Ok(ConnectionState::ReadTraffic(mut reading)) => loop {
                match reading.next_record() {
                    Some(Ok(record)) => {
                        discard += record.discard;
                        // In their order: what was put aside comes first.
                        let fits = if self.content.is_empty() { record.payload.len().min(into.remaining()) } else { 0 };
                        into.put_slice(&record.payload[..fits]);
                        self.content.extend_from_slice(&record.payload[fits..]);
                    }
                    Some(Err(error)) => break Err(error),
                    None => break Ok(Step::Content),
                }
            },
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                let end = self.outgoing.len();
                loop {
                    match data.encode(&mut self.outgoing[end..]) {
                        Ok(length) => {
                            self.outgoing.truncate(end + length);
                            break Ok(Step::Went);
                        }
                        Err(EncodeError::InsufficientSize(needed)) => self.outgoing.resize(end + needed.required_size, 0),
                        Err(error @ EncodeError::AlreadyEncoded) => break Err(rustls::Error::General(error.to_string())),
                    }
                }
            }
            // It is kept in order here until the client takes it.
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                Ok(Step::Went)
            }
            Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
                *self.is_over = true;
                Ok(Step::Over)
            }
            Ok(ConnectionState::BlockedHandshake) => Ok(Step::Starves),
            Ok(ConnectionState::WriteTraffic(writing)) => {
                traffic(writing);
                Ok(Step::Starves)
            }
            // Early data is allowed to nobody: it can be sent twice (RFC 8446, 8).
            Ok(other) => Err(rustls::Error::General(format!("a connection is in a state that was not asked for: {other:?}"))),
            Err(error) => Err(error),
        };
        (discard, step)
    }

    /// Steps until there is what is asked for. Says how much of `records` is done with, and whether more of it would give more.
    fn digest(&mut self, records: &mut [u8], into: &mut ReadBuf<'_>, until: Until) -> Result<(usize, bool), rustls::Error> {
        let mut done = 0;
        loop {
            let (discard, step) = self.step(&mut records[done..], into, |_| {});
            done += discard;
            match step {
                // Nearly always one record came, and all of it: there is no use in asking on.
                Ok(Step::Content) if done == records.len() && !self.session.wants_write() => return Ok((done, true)),
                Ok(Step::Content) if until == Until::Content && (into.remaining() == 0 || !self.content.is_empty()) => {
                    return Ok((done, false));
                }
                Ok(Step::Content | Step::Went) => {}
                // What comes after that is nobody's (RFC 8446, 6.1).
                Ok(Step::Over) => return Ok((records.len(), true)),
                Ok(Step::Starves) => return Ok((done, true)),
                Err(error) => {
                    self.take_last_words(into);
                    return Err(error);
                }
            }
        }
    }

    /// The alert that tells the client what is wrong. Of what it sent, nothing is read any more: rustls gives what it has to send before
    /// it looks at anything.
    fn take_last_words(&mut self, into: &mut ReadBuf<'_>) {
        while self.session.wants_write() {
            if self.step(&mut [], into, |_| {}).1.is_err() {
                return;
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream<S> {
    /// Does a handshake, of which `first` was read already. A client that is refused is told why.
    pub async fn accept(config: Arc<ServerConfig>, io: S, first: BytesMut) -> Result<Self, io::Error> {
        let session = UnbufferedServerConnection::new(config).map_err(invalid)?;
        let mut stream = Self {
            io,
            session,
            is_starved: first.is_empty(),
            incoming: first,
            content: BytesMut::new(),
            outgoing: BytesMut::new(),
            is_over: false,
            has_said_goodbye: false,
            fault: None,
        };
        poll_fn(|cx| stream.poll_handshake(cx)).await?;
        Ok(stream)
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if let Err(error) = self.digest_rest(&mut ReadBuf::new(&mut []), Until::Starved) {
                // Whether it hears that or not.
                let _ = self.poll_send(cx);
                return Poll::Ready(Err(error));
            }
            let sent = self.poll_send(cx)?;
            // With TLS 1.3, what is left to send by then are tickets.
            let rest_can_wait = self.session.protocol_version() == Some(ProtocolVersion::TLSv1_3);
            if !self.session.is_handshaking() && (sent.is_ready() || rest_can_wait) {
                self.release();
                return Poll::Ready(Ok(()));
            }
            if sent.is_ready() {
                ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            }
            // Its own words may be in the way of what is sent to it.
            ready!(self.poll_more(cx))?;
        }
    }

    /// What both sides agreed on.
    pub fn session(&self) -> &CommonState {
        &self.session
    }

    pub fn get_ref(&self) -> &S {
        &self.io
    }

    fn parts(&mut self) -> Parts<'_> {
        Parts { session: &mut self.session, content: &mut self.content, outgoing: &mut self.outgoing, is_over: &mut self.is_over }
    }

    /// Lets rustls read what is left of what has come.
    fn digest_rest(&mut self, into: &mut ReadBuf<'_>, until: Until) -> io::Result<()> {
        if self.is_starved {
            return Ok(());
        }
        let mut incoming = std::mem::take(&mut self.incoming);
        let (done, is_starved) = self.parts().digest(&mut incoming, into, until).map_err(|error| self.breaks(error))?;
        incoming.advance(done);
        self.is_starved = is_starved;
        self.incoming = incoming;
        Ok(())
    }

    /// Reads what comes next, for which `use_records` is called.
    fn poll_io<T>(&mut self, cx: &mut Context<'_>, use_records: impl FnOnce(&mut Self, &mut [u8]) -> T) -> Poll<io::Result<T>> {
        with_room(|room| {
            let mut records = ReadBuf::new(&mut room.sealed[..RECORD]);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut records))?;
            let records = records.filled_mut();
            if records.is_empty() {
                let why = "the client closed the connection without saying that nothing follows";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, why)));
            }
            Poll::Ready(Ok(use_records(self, records)))
        })
    }

    /// Reads what comes behind a record that is not whole.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.incoming.len() >= LARGEST_INCOMING {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "a message of TLS is too large")));
        }
        self.poll_io(cx, |stream, records| {
            stream.incoming.extend_from_slice(records);
            stream.is_starved = false;
        })
    }

    /// Reads records and understands what is whole of them.
    fn poll_records(&mut self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.incoming.is_empty() {
            let outcome = ready!(self.poll_io(cx, |stream, records| {
                let (done, is_starved) = stream.parts().digest(records, into, Until::Content)?;
                stream.incoming.extend_from_slice(&records[done..]);
                stream.is_starved = is_starved;
                Ok(())
            }))?;
            return Poll::Ready(outcome.map_err(|error| self.breaks(error)));
        }
        if self.is_starved {
            ready!(self.poll_more(cx))?;
        }
        Poll::Ready(self.digest_rest(into, Until::Content))
    }

    /// Nothing can be read or written any more.
    fn breaks(&mut self, error: rustls::Error) -> io::Error {
        self.fault = Some(error.clone());
        invalid(error)
    }

    /// Gives back memory that nothing is in.
    fn release(&mut self) {
        for buffer in [&mut self.incoming, &mut self.content, &mut self.outgoing] {
            if buffer.is_empty() {
                *buffer = BytesMut::new();
            }
        }
    }

    /// Sends what the client has not taken yet.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            let length = ready!(Pin::new(&mut self.io).poll_write(cx, &self.outgoing))?;
            if length == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outgoing.advance(length);
            if self.outgoing.is_empty() {
                self.outgoing = BytesMut::new();
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Calls `traffic` when rustls lets content be sent; it first reads what has come. Says whether it was called.
    fn with_traffic(&mut self, traffic: impl FnOnce(WriteTraffic<'_, ServerConnectionData>)) -> io::Result<bool> {
        if self.fault.is_some() || self.has_said_goodbye {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut incoming = std::mem::take(&mut self.incoming);
        let mut traffic = Some(traffic);
        let outcome = loop {
            let was_over = self.is_over;
            let (discard, step) = self.parts().step(&mut incoming, &mut ReadBuf::new(&mut []), |writing| {
                if let Some(traffic) = traffic.take() {
                    traffic(writing);
                }
            });
            incoming.advance(discard);
            match step {
                Ok(Step::Starves) => break Ok(()),
                // Twice: both sides have said so. Once: what is said to the client may still be sent.
                Ok(Step::Over) if was_over => break Ok(()),
                Ok(Step::Over | Step::Content | Step::Went) => {}
                Err(error) => break Err(error),
            }
        };
        match outcome {
            Ok(()) => {
                if self.is_over {
                    incoming.clear();
                }
                self.is_starved = true;
                self.incoming = incoming;
                self.release();
                Ok(traffic.is_none())
            }
            Err(error) => {
                self.parts().take_last_words(&mut ReadBuf::new(&mut []));
                Err(self.breaks(error))
            }
        }
    }

    /// Makes records of `slices` and sends them. What the client does not take at once is the connection's, and nothing else is
    /// taken until it is gone.
    fn poll_write_slices(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        ready!(self.poll_send(cx))?;
        if slices.iter().all(|slice| slice.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        with_room(|room| {
            let mut sealing = Sealing::default();
            let may_write = self.with_traffic(|writing| sealing.seal(writing, slices, room))?;
            if !may_write || sealing.taken == 0 {
                return Poll::Ready(Err(sealing.fault.map_or_else(|| io::ErrorKind::BrokenPipe.into(), io::Error::other)));
            }
            let mut rest = &room.sealed[..sealing.written];
            // Records that were made before go before.
            while !rest.is_empty() && self.outgoing.is_empty() {
                match Pin::new(&mut self.io).poll_write(cx, rest) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(length)) => rest = &rest[length..],
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => break,
                }
            }
            self.outgoing.extend_from_slice(rest);
            match self.poll_send(cx) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(sealing.taken)),
            }
        })
    }
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if into.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if !this.content.is_empty() {
            let length = this.content.len().min(into.remaining());
            into.put_slice(&this.content[..length]);
            this.content.advance(length);
            this.release();
            return Poll::Ready(Ok(()));
        }
        let before = into.filled().len();
        loop {
            if let Some(fault) = &this.fault {
                return Poll::Ready(Err(invalid(fault.clone())));
            }
            if this.is_over {
                return Poll::Ready(Ok(()));
            }
            let outcome = this.poll_records(cx, into);
            if !this.outgoing.is_empty() {
                // An answer to new keys, an alert, tickets. Who writes hears that it failed.
                let _ = this.poll_send(cx);
            }
            let outcome = ready!(outcome);
            this.release();
            if into.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            outcome?;
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_slices(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_slices(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    /// Says that nothing follows, and closes that side of the stream below.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.has_said_goodbye {
            let mut words = [0; 128];
            let mut length = 0;
            // Whoever broke what TLS says hears that instead.
            let _ = this.with_traffic(|mut writing| length = writing.queue_close_notify(&mut words).unwrap_or_default());
            this.outgoing.extend_from_slice(&words[..length]);
            this.has_said_goodbye = true;
        }
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

impl<S: fmt::Debug> fmt::Debug for TlsStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What is said is for nobody's log.
        f.debug_struct("TlsStream")
            .field("io", &self.io)
            .field("incoming", &self.incoming.len())
            .field("content", &self.content.len())
            .field("outgoing", &self.outgoing.len())
            .field("is_over", &self.is_over)
            .finish_non_exhaustive()
    }
}

/// Records that are made of content.
#[derive(Default)]
struct Sealing {
    /// Of the content.
    taken: usize,
    /// To the room's `sealed`.
    written: usize,
    fault: Option<EncryptError>,
}

impl Sealing {
    fn seal(&mut self, mut writing: WriteTraffic<'_, ServerConnectionData>, slices: &[IoSlice<'_>], room: &mut Room) {
        let mut left = slices.iter().map(|slice| &slice[..]).filter(|slice| !slice.is_empty());
        let mut slice = left.next().unwrap_or_default();
        for _ in 0..WRITTEN_RECORDS {
            let next = if slice.len() < CONTENT { left.next() } else { None };
            let content = match next {
                // One record of what belongs together, as a head and its body.
                Some(next) => {
                    let mut length = slice.len();
                    room.content[..length].copy_from_slice(slice);
                    slice = next;
                    loop {
                        let fits = slice.len().min(CONTENT - length);
                        room.content[length..length + fits].copy_from_slice(&slice[..fits]);
                        length += fits;
                        slice = &slice[fits..];
                        if !slice.is_empty() {
                            break;
                        }
                        match left.next() {
                            Some(next) => slice = next,
                            None => break,
                        }
                    }
                    &room.content[..length]
                }
                None => {
                    let (content, rest) = slice.split_at(slice.len().min(CONTENT));
                    slice = rest;
                    content
                }
            };
            if content.is_empty() {
                return;
            }
            match writing.encrypt(content, &mut room.sealed[self.written..]) {
                Ok(length) => {
                    self.written += length;
                    self.taken += content.len();
                }
                Err(error) => {
                    self.fault = Some(error);
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
