//! HTTP/1.1 with a backend, for requests without a body: one connection, read and written by the task that asks.
//!
//! hyper's client has a task of its own for each connection, and two channels between that and who asks; both are woken for each
//! request. That pays where both sides talk at once, so requests with bodies, upgrades, TLS and HTTP/2 go through it. Most
//! requests have no body. What an answer means, and which answers are none, is as hyper has it: the tests ask both.

use std::{
    future::{Future as _, poll_fn},
    io::{self, ErrorKind},
    mem::{self, MaybeUninit},
    ops::Range,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::{Frame, SizeHint};
use httparse::Status;
use tokio::{
    io::{AsyncReadExt as _, AsyncWrite as _},
    net::TcpStream,
};

use crate::patience::Patience;

/// Of an answer, and of trailers.
const MOST_HEADERS: usize = 100;
/// Bytes of a chunked body's extensions together, of one line of its framing, and of its trailers.
const MOST_FRAMING: usize = 16 * 1024;
/// Asked for at once. While answers fill it, twice as much.
const LEAST_READ: usize = 8 * 1024;

/// Why a backend's answer is none, or ends before its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AnswerError {
    #[error(transparent)]
    Connection(#[from] io::Error),
    #[error("the connection ended before the answer did")]
    Incomplete,
    #[error("no answer of HTTP/1: {0}")]
    Head(#[from] httparse::Error),
    #[error("a head of more than {0} bytes")]
    TooLong(usize),
    #[error("a header of the answer: {0}")]
    Header(#[source] http::Error),
    #[error("no content length")]
    Length,
    #[error("a transfer encoding in HTTP/1.0")]
    Encoding,
    #[error("no chunk")]
    Chunk,
}

/// How an answer's body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// After so many bytes.
    Length(u64),
    Chunked(Chunked),
    /// With the connection.
    Close,
}

/// What comes next of a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunked {
    Size,
    Data(u64),
    /// The line's end behind data.
    End,
    Trailers,
}

/// A connection to a backend, between requests or in one.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    read: BytesMut,
    /// Bytes that are asked for at once.
    next: usize,
    /// Of an answer's head.
    most: usize,
    request: Vec<u8>,
    written: usize,
    /// Of the answer's body.
    framing: Framing,
    /// Bytes of `read` that hold no end of what is looked for.
    searched: usize,
    /// Bytes of extensions so far.
    extensions: usize,
    /// Nothing said that it ends after this answer.
    stays: bool,
    patience: Patience,
    /// The headers of a request that is over: memory for those of the next answer.
    spare: HeaderMap,
    /// Of a head while it is read: names, and the places of their values.
    lines: Vec<(HeaderName, Range<usize>)>,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream, most: usize) -> Self {
        Self {
            stream,
            read: BytesMut::new(),
            next: LEAST_READ,
            most,
            request: Vec::new(),
            written: 0,
            framing: Framing::Length(0),
            searched: 0,
            extensions: 0,
            stays: true,
            patience: Patience::default(),
            spare: HeaderMap::new(),
            lines: Vec::new(),
        }
    }

    /// Whether another request can be sent: the last answer was read to its end, nothing came that belongs to none, and the backend
    /// has not closed it, as far as is known. Asks the kernel only if there is something new.
    pub(crate) fn is_idle(&self) -> bool {
        self.stays
            && self.is_end()
            && self.read.is_empty()
            && matches!(self.stream.try_read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    /// The stream, for somebody else's use. Only of an idle connection, of which nothing else is left.
    pub(crate) fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// No byte of the last request was sent.
    pub(crate) fn is_unsent(&self) -> bool {
        self.written == 0
    }

    /// Keeps the memory of headers that nobody needs any more.
    pub(crate) fn recycle(&mut self, mut headers: HeaderMap) {
        headers.clear();
        self.spare = headers;
    }

    /// Sends a request, which has no body, and waits so long for its answer's head; `None` if that did not come.
    pub(crate) async fn ask<B>(&mut self, request: &Request<B>, limit: Duration) -> Option<Result<Response<()>, AnswerError>> {
        self.write(request);
        self.patience.moves();
        // Until the answer is whole, there is nothing that could follow it.
        self.framing = Framing::Close;
        poll_fn(|cx| match self.poll_answer(request.method(), cx) {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending => self.patience.poll_pause(limit, cx).map(|()| None),
        })
        .await
    }

    fn write<B>(&mut self, request: &Request<B>) {
        let (to, uri) = (&mut self.request, request.uri());
        to.clear();
        self.written = 0;
        to.extend_from_slice(request.method().as_str().as_bytes());
        to.push(b' ');
        to.extend_from_slice(uri.path().as_bytes());
        if let Some(query) = uri.query() {
            to.push(b'?');
            to.extend_from_slice(query.as_bytes());
        }
        to.extend_from_slice(b" HTTP/1.1\r\n");
        for (name, value) in request.headers() {
            // There is nothing to encode.
            if name == header::TRANSFER_ENCODING {
                continue;
            }
            to.extend_from_slice(name.as_str().as_bytes());
            to.extend_from_slice(b": ");
            to.extend_from_slice(value.as_bytes());
            to.extend_from_slice(b"\r\n");
        }
        to.extend_from_slice(b"\r\n");
        (self.searched, self.extensions, self.next) = (0, 0, LEAST_READ);
    }

    fn poll_answer(&mut self, method: &Method, cx: &mut Context<'_>) -> Poll<Result<Response<()>, AnswerError>> {
        while let Some(rest) = self.request.get(self.written..).filter(|rest| !rest.is_empty()) {
            match Pin::new(&mut self.stream).poll_write(cx, rest) {
                Poll::Pending => break,
                Poll::Ready(Ok(written)) if written > 0 => self.written += written,
                Poll::Ready(outcome) => {
                    if self.is_unsent() {
                        return Poll::Ready(Err(outcome.err().unwrap_or_else(|| ErrorKind::WriteZero.into()).into()));
                    }
                    // Whoever closes before it has read all may have said why.
                    self.stays = false;
                    self.written = self.request.len();
                }
            }
        }
        loop {
            while let Some(head) = self.head(method)? {
                if !head.is_interim() {
                    self.stays &= head.stays && self.written == self.request.len();
                    self.framing = head.framing;
                    return Poll::Ready(Ok(head.into_answer()));
                }
                self.recycle(head.headers);
            }
            if self.read.len() >= self.most {
                return Poll::Ready(Err(AnswerError::TooLong(self.most)));
            }
            if ready!(self.poll_fill(cx))? == 0 {
                return Poll::Ready(Err(AnswerError::Incomplete));
            }
        }
    }

    /// Reads more. 0 is the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        // A short rest of memory is not worth a read; the whole is free again when what was read has been passed on.
        if self.read.capacity() - self.read.len() < self.next / 4 {
            self.read.reserve(self.next);
        }
        let room = self.read.capacity() - self.read.len();
        let count = ready!(pin!(self.stream.read_buf(&mut self.read)).poll(cx))?;
        if count == room && self.next < self.most {
            self.next *= 2;
        }
        Poll::Ready(Ok(count))
    }

    /// A whole head, if it is there, and how the body behind it ends.
    fn head(&mut self, method: &Method) -> Result<Option<Head>, AnswerError> {
        // Bytes that come one by one are not parsed from the beginning with each.
        if self.read.is_empty() || self.searched > 0 && !ends_a_head(self.read.get(self.searched.saturating_sub(2)..).unwrap_or_default()) {
            self.searched = self.read.len();
            return Ok(None);
        }
        let mut lines = [const { MaybeUninit::uninit() }; MOST_HEADERS];
        let mut parsed = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        let Status::Complete(end) = config.parse_response_with_uninit_headers(&mut parsed, &self.read, &mut lines)? else {
            self.searched = self.read.len();
            return Ok(None);
        };
        let status = StatusCode::from_u16(parsed.code.unwrap_or_default()).map_err(|error| AnswerError::Header(error.into()))?;
        let is_old = parsed.version == Some(0);
        // Values are parts of what was read, so that nothing is copied. Here is where.
        let begin = self.read.as_ptr().addr();
        self.lines.clear();
        for line in parsed.headers.iter() {
            let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|error| AnswerError::Header(error.into()))?;
            let from = line.value.as_ptr().addr() - begin;
            self.lines.push((name, from..from + line.value.len()));
        }
        let whole = self.read.split_to(end).freeze();
        self.searched = 0;
        let mut headers = mem::take(&mut self.spare);
        headers.reserve(self.lines.len());
        let mut said = Said::default();
        for (name, place) in self.lines.drain(..) {
            let value = HeaderValue::from_maybe_shared(whole.slice(place)).map_err(|error| AnswerError::Header(error.into()))?;
            said.note(&name, &value);
            headers.append(name, value);
        }
        let framing = said.framing(method, status, is_old)?;
        let stays = said.stays(is_old) && framing != Framing::Close && status != StatusCode::SWITCHING_PROTOCOLS;
        Ok(Some(Head { status, is_old, headers, framing, stays }))
    }

    /// What there is next of the answer's body.
    pub(crate) fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        let frame = ready!(self.poll_frame(cx));
        if matches!(frame, Some(Err(_))) {
            // Nobody knows what follows.
            (self.stays, self.framing) = (false, Framing::Length(0));
        }
        Poll::Ready(frame)
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        loop {
            match self.framing {
                Framing::Length(0) => return Poll::Ready(None),
                Framing::Length(left) => {
                    let data = ready!(self.poll_data(left, cx))?;
                    self.framing = Framing::Length(left - data.len() as u64);
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Framing::Close => {
                    return Poll::Ready(match ready!(self.poll_data(u64::MAX, cx)) {
                        Ok(data) => Some(Ok(Frame::data(data))),
                        Err(AnswerError::Incomplete) => {
                            self.framing = Framing::Length(0);
                            None
                        }
                        Err(error) => Some(Err(error)),
                    });
                }
                Framing::Chunked(Chunked::Size) => {
                    let line = ready!(self.poll_line(cx))?;
                    let size = self.size(&line)?;
                    self.framing = Framing::Chunked(if size == 0 { Chunked::Trailers } else { Chunked::Data(size) });
                }
                Framing::Chunked(Chunked::Data(left)) => {
                    let data = ready!(self.poll_data(left, cx))?;
                    let left = left - data.len() as u64;
                    self.framing = Framing::Chunked(if left == 0 { Chunked::End } else { Chunked::Data(left) });
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Framing::Chunked(Chunked::End) => {
                    if !b"\r\n".starts_with(self.read.get(..2).unwrap_or(&self.read)) {
                        return Poll::Ready(Some(Err(AnswerError::Chunk)));
                    }
                    if self.read.len() >= 2 {
                        self.read.advance(2);
                        self.framing = Framing::Chunked(Chunked::Size);
                    } else {
                        ready!(self.poll_more(cx))?;
                    }
                }
                Framing::Chunked(Chunked::Trailers) => {
                    let trailers = ready!(self.poll_trailers(cx))?;
                    self.framing = Framing::Length(0);
                    return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
                }
            }
        }
    }

    /// At least one byte of these.
    fn poll_data(&mut self, most: u64, cx: &mut Context<'_>) -> Poll<Result<Bytes, AnswerError>> {
        if self.read.is_empty() {
            ready!(self.poll_more(cx))?;
        }
        let count = self.read.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        Poll::Ready(Ok(self.read.split_to(count).freeze()))
    }

    /// Reads more, and there must be more.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), AnswerError>> {
        Poll::Ready(if ready!(self.poll_fill(cx))? == 0 { Err(AnswerError::Incomplete) } else { Ok(()) })
    }

    /// A line of a chunked body's framing, with its end.
    fn poll_line(&mut self, cx: &mut Context<'_>) -> Poll<Result<BytesMut, AnswerError>> {
        loop {
            let rest = self.read.get(self.searched..).unwrap_or_default();
            if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line = self.read.split_to(self.searched + end + 1);
                self.searched = 0;
                return Poll::Ready(Ok(line));
            }
            self.searched = self.read.len();
            if self.searched > MOST_FRAMING {
                return Poll::Ready(Err(AnswerError::Chunk));
            }
            ready!(self.poll_more(cx))?;
        }
    }

    /// The size of a chunk, of the line before it. Extensions mean nothing, but there may not be too much of them.
    fn size(&mut self, line: &[u8]) -> Result<u64, AnswerError> {
        let line = line.strip_suffix(b"\r\n").filter(|line| !line.contains(&b'\r')).ok_or(AnswerError::Chunk)?;
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let (digits, rest) = line.split_at(digits);
        let extensions = rest.trim_ascii_start();
        let is_spaced = rest.iter().take(rest.len() - extensions.len()).all(|byte| matches!(byte, b' ' | b'\t'));
        if !is_spaced || !matches!(extensions.first(), None | Some(b';')) {
            return Err(AnswerError::Chunk);
        }
        self.extensions += extensions.len();
        if self.extensions > MOST_FRAMING {
            return Err(AnswerError::Chunk);
        }
        // No sign: these are digits.
        let digits = std::str::from_utf8(digits).map_err(|_| AnswerError::Chunk)?;
        u64::from_str_radix(digits, 16).map_err(|_| AnswerError::Chunk)
    }

    /// The lines behind the last chunk, up to the empty one; most often there is only that.
    fn poll_trailers(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<HeaderMap>, AnswerError>> {
        loop {
            if self.read.starts_with(b"\r\n") {
                self.read.advance(2);
                return Poll::Ready(Ok(None));
            }
            let from = self.searched.saturating_sub(3);
            let found = self.read.get(from..).unwrap_or_default().windows(4).position(|four| four == b"\r\n\r\n");
            if let Some(found) = found {
                let lines = self.read.split_to(from + found + 4);
                self.searched = 0;
                return Poll::Ready(trailers(&lines).map(Some));
            }
            self.searched = self.read.len();
            if self.searched > MOST_FRAMING {
                return Poll::Ready(Err(AnswerError::Chunk));
            }
            ready!(self.poll_more(cx))?;
        }
    }

    /// Nothing comes any more of the answer's body.
    pub(crate) fn is_end(&self) -> bool {
        self.framing == Framing::Length(0)
    }

    /// Of the answer's body.
    pub(crate) fn size_hint(&self) -> SizeHint {
        match self.framing {
            Framing::Length(left) => SizeHint::with_exact(left),
            Framing::Chunked(_) | Framing::Close => SizeHint::default(),
        }
    }
}

struct Head {
    status: StatusCode,
    /// HTTP/1.0.
    is_old: bool,
    headers: HeaderMap,
    framing: Framing,
    stays: bool,
}

impl Head {
    fn into_answer(self) -> Response<()> {
        let mut answer = Response::new(());
        *answer.status_mut() = self.status;
        *answer.version_mut() = if self.is_old { Version::HTTP_10 } else { Version::HTTP_11 };
        *answer.headers_mut() = self.headers;
        answer
    }

    /// The answer itself follows.
    fn is_interim(&self) -> bool {
        self.status.is_informational() && self.status != StatusCode::SWITCHING_PROTOCOLS
    }
}

/// Which content length an answer has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Length {
    #[default]
    Unsaid,
    Is(u64),
    /// Something that is no length, or several.
    Bad,
}

/// What an answer's headers say of its body and its connection.
#[derive(Debug, Default)]
struct Said {
    length: Length,
    /// Whether the last encoding is `chunked`.
    is_chunked: Option<bool>,
    closes: bool,
    keeps: bool,
}

impl Said {
    fn note(&mut self, name: &HeaderName, value: &HeaderValue) {
        let elements = || value.to_str().into_iter().flat_map(|value| value.split(',').map(str::trim));
        match *name {
            header::CONTENT_LENGTH => {
                if value.to_str().is_err() {
                    self.length = Length::Bad;
                }
                for said in elements().map(digits) {
                    self.length = match (self.length, said) {
                        (Length::Unsaid, Some(length)) => Length::Is(length),
                        (Length::Is(before), Some(length)) if before == length => Length::Is(length),
                        _ => Length::Bad,
                    };
                }
            }
            header::TRANSFER_ENCODING => {
                self.is_chunked = Some(elements().next_back().is_some_and(|last| last.eq_ignore_ascii_case("chunked")));
            }
            header::CONNECTION => {
                self.closes |= elements().any(|option| option.eq_ignore_ascii_case("close"));
                self.keeps |= elements().any(|option| option.eq_ignore_ascii_case("keep-alive"));
            }
            _ => {}
        }
    }

    /// RFC 9112, 6.3.
    fn framing(&self, method: &Method, status: StatusCode, is_old: bool) -> Result<Framing, AnswerError> {
        let has_none = status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        if has_none || method == Method::HEAD {
            return Ok(Framing::Length(0));
        }
        match (self.is_chunked, self.length) {
            (Some(_), _) if is_old => Err(AnswerError::Encoding),
            (Some(true), _) => Ok(Framing::Chunked(Chunked::Size)),
            (None, Length::Is(length)) => Ok(Framing::Length(length)),
            (None, Length::Bad) => Err(AnswerError::Length),
            (Some(false), _) | (None, Length::Unsaid) => Ok(Framing::Close),
        }
    }

    /// RFC 9112, 9.3.
    fn stays(&self, is_old: bool) -> bool {
        !self.closes && (!is_old || self.keeps)
    }
}

/// Without a sign.
fn digits(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// Whether a head may end here: at an empty line.
fn ends_a_head(bytes: &[u8]) -> bool {
    bytes.windows(2).any(|two| two == b"\n\n") || bytes.windows(3).any(|three| three == b"\n\r\n")
}

fn trailers(lines: &[u8]) -> Result<HeaderMap, AnswerError> {
    // No line ends in another way.
    let is_end = |place: usize| place > 0 && lines.get(place - 1..=place) == Some(b"\r\n");
    let count = |of: u8| lines.iter().filter(|byte| **byte == of).count();
    let ends = lines.iter().enumerate().filter(|(place, byte)| **byte == b'\n' && is_end(*place)).count();
    if lines.len() > MOST_FRAMING || count(b'\n') != ends || count(b'\r') != ends {
        return Err(AnswerError::Chunk);
    }
    let mut parsed = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let Status::Complete((_, parsed)) = httparse::parse_headers(lines, &mut parsed)? else { return Err(AnswerError::Chunk) };
    let mut trailers = HeaderMap::with_capacity(parsed.len());
    for line in parsed {
        let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|error| AnswerError::Header(error.into()))?;
        let value = HeaderValue::from_bytes(line.value).map_err(|error| AnswerError::Header(error.into()))?;
        trailers.append(name, value);
    }
    Ok(trailers)
}

#[cfg(test)]
mod tests;
#[cfg(any(test, feature = "fuzz"))]
pub mod understood;
