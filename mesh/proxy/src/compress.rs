//! Answers, made smaller on their way.
//!
//! What is compressed is what HAProxy compresses, since labels written for it say how: answers with status 200 to 203, of the media
//! types that are listed, that are not compressed yet, have at most one valid `ETag`, and whose sender does not forbid it; for
//! clients of HTTP/1.1 and later that say they can read it. There is no least length, as there is none in HAProxy by default. The
//! level is the fastest one, as there.

use std::{
    io::{self, Write},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{BufMut as _, Bytes, BytesMut, buf::Writer};
use flate2::{
    Compression as Level,
    write::{DeflateEncoder, GzEncoder, ZlibEncoder},
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version,
    header::{ACCEPT_ENCODING, ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ETAG, VARY},
    response,
};
use http_body::{Body, Frame, SizeHint};
use swarmesh_router::model::{Compression, CompressionAlgorithm};

/// A form that a body can be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    Gzip,
    /// `deflate` with zlib's wrapping, as the standard has it.
    Zlib,
    /// `deflate` without, as some browsers have it.
    RawDeflate,
}

/// What a client can read, so far as it is to get it. Taken from the request, and kept for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish(Option<Encoding>);

/// An answer's body, compressed or as it came.
#[derive(Debug)]
pub enum Encoded<B> {
    Plain(B),
    Compressed(Box<Compressed<B>>),
}

/// A body, compressed frame by frame. When there is nothing more to read for now, what was read is sent in full, so that events
/// arrive when they happen.
#[derive(Debug)]
pub struct Compressed<B> {
    body: B,
    encoder: Encoder,
    state: State,
}

#[derive(Debug)]
enum State {
    /// With or without something in the encoder that has not been flushed.
    Reading {
        held: bool,
    },
    /// All was read, and these come after the rest of the output.
    Trailers(HeaderMap),
    Done,
}

/// Why a compressed body breaks off.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError<E> {
    #[error(transparent)]
    Body(E),
    #[error("the answer could not be compressed: {0}")]
    Encoder(#[source] io::Error),
}

type Output = Writer<BytesMut>;

#[derive(Debug)]
enum Encoder {
    Gzip(GzEncoder<Output>),
    Zlib(ZlibEncoder<Output>),
    RawDeflate(DeflateEncoder<Output>),
}

/// Output is passed on when there is this much of it.
const ENOUGH: usize = 16 * 1024;
/// Others have their turn after this much input, even if there is no output yet.
const LONG: usize = 256 * 1024;

/// Digests of the bytes as they were.
const DIGESTS: [HeaderName; 4] = [
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
];

/// The best of a route's algorithms that a request accepts: what the client likes best, then what the list names first.
/// `Identity` in the list changes nothing.
pub fn wish(compression: &Compression, method: &Method, version: Version, headers: &HeaderMap) -> Wish {
    // HTTP/1.0 cannot have a body without a length, except at the end of its connection.
    if *method == Method::HEAD || *method == Method::CONNECT || version < Version::HTTP_11 {
        return Wish(None);
    }
    // Only what is said: who says nothing about it is not asked to like it.
    let mut best = weight(headers, &["identity"], false).unwrap_or(0);
    let mut wish = None;
    for algorithm in &compression.algorithms {
        let (encoding, names): (_, &[_]) = match algorithm {
            CompressionAlgorithm::Identity => continue,
            CompressionAlgorithm::Gzip => (Encoding::Gzip, &["gzip", "x-gzip"]),
            CompressionAlgorithm::Deflate => (Encoding::Zlib, &["deflate"]),
            CompressionAlgorithm::RawDeflate => (Encoding::RawDeflate, &["deflate"]),
        };
        let weight = weight(headers, names, true).unwrap_or(0);
        if weight > best || weight == best && weight > 0 && wish.is_none() {
            (best, wish) = (weight, Some(encoding));
        }
    }
    Wish(wish)
}

/// Compresses an answer, if it is one to compress and the client wished it.
pub fn encode<B: Body<Data = Bytes>>(compression: &Compression, wish: Wish, answer: Response<B>) -> Response<Encoded<B>> {
    let (mut head, body) = answer.into_parts();
    let encoding = if body.is_end_stream() { None } else { prepare(compression, wish, &mut head) };
    let body = match encoding {
        Some(encoding) => Encoded::Compressed(Box::new(Compressed::new(encoding, body))),
        None => Encoded::Plain(body),
    };
    Response::from_parts(head, body)
}

/// Says how an answer's body is to be compressed, and makes its head say so, too. Caches learn that the answer would be another for
/// another client, even if this client gets it as it is.
pub fn prepare(compression: &Compression, Wish(wish): Wish, head: &mut response::Parts) -> Option<Encoding> {
    if !can_be_compressed(compression, head) {
        return None;
    }
    let headers = &mut head.headers;
    if !lists(headers, &VARY, &["*", "accept-encoding"]) {
        headers.append(VARY, HeaderValue::from_static("Accept-Encoding"));
    }
    let encoding = wish?;
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static(encoding.name()));
    headers.remove(CONTENT_LENGTH);
    headers.remove(ACCEPT_RANGES);
    DIGESTS.iter().for_each(|name| {
        headers.remove(name);
    });
    // The same answer, but not the same bytes.
    if let Some(etag) = headers.get_mut(ETAG)
        && etag.as_bytes().starts_with(b"\"")
    {
        let weak = [b"W/", etag.as_bytes()].concat();
        if let Ok(weak) = HeaderValue::from_bytes(&weak) {
            *etag = weak;
        }
    }
    Some(encoding)
}

fn can_be_compressed(compression: &Compression, head: &response::Parts) -> bool {
    let headers = &head.headers;
    let has_body =
        matches!(head.status, StatusCode::OK | StatusCode::CREATED | StatusCode::ACCEPTED | StatusCode::NON_AUTHORITATIVE_INFORMATION)
            && headers.get(CONTENT_LENGTH).is_none_or(|length| length != "0");
    has_body
        && !headers.contains_key(CONTENT_ENCODING)
        && !lists(headers, &CACHE_CONTROL, &["no-transform"])
        && has_sound_etag(headers)
        && is_of(&compression.types, headers.get(CONTENT_TYPE))
}

/// By their beginning, as HAProxy compares them. Without a list everything is of it, except what has several parts, and gRPC, which
/// has encodings of its own.
fn is_of(types: &[String], content: Option<&HeaderValue>) -> bool {
    let Some(content) = content.map(HeaderValue::as_bytes) else { return types.is_empty() };
    let begins = |with: &[u8]| content.get(..with.len()).is_some_and(|beginning| beginning.eq_ignore_ascii_case(with));
    !begins(b"multipart") && !begins(b"application/grpc") && (types.is_empty() || types.iter().any(|this| begins(this.as_bytes())))
}

fn has_sound_etag(headers: &HeaderMap) -> bool {
    let mut etags = headers.get_all(ETAG).iter();
    let Some(etag) = etags.next() else { return true };
    let quoted = etag.as_bytes().strip_prefix(b"W/").unwrap_or(etag.as_bytes());
    etags.next().is_none() && quoted.len() >= 2 && quoted.starts_with(b"\"") && quoted.ends_with(b"\"")
}

/// Whether a header with a list has one of these words.
fn lists(headers: &HeaderMap, name: &HeaderName, words: &[&str]) -> bool {
    elements(headers, name).any(|element| words.iter().any(|word| element.eq_ignore_ascii_case(word.as_bytes())))
}

fn elements<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers.get_all(name).iter().flat_map(|header| header.as_bytes().split(|b| *b == b',')).map(<[u8]>::trim_ascii)
}

/// How much a client likes an encoding, in thousandths; `None` if it does not say. `*` speaks for what is not named.
fn weight(headers: &HeaderMap, names: &[&str], or_any: bool) -> Option<u16> {
    let mut named = None;
    let mut any = None;
    for element in elements(headers, &ACCEPT_ENCODING) {
        let mut parts = element.split(|b| *b == b';').map(<[u8]>::trim_ascii);
        let coding = parts.next().unwrap_or_default();
        let slot = match coding {
            b"*" if or_any => &mut any,
            _ if names.iter().any(|name| coding.eq_ignore_ascii_case(name.as_bytes())) => &mut named,
            _ => continue,
        };
        let weight = match (parts.next(), parts.next()) {
            (None, _) => Some(1000),
            (Some([b'q' | b'Q', b'=', value @ ..]), None) => thousandths(value),
            _ => None,
        };
        // What cannot be read asks for nothing.
        *slot = (*slot).max(Some(weight.unwrap_or(0)));
    }
    named.or(any)
}

/// RFC 9110, 12.4.2: from 0 to 1, with three digits at most.
fn thousandths(value: &[u8]) -> Option<u16> {
    let (whole, digits) = match value {
        [whole] => (whole, &[][..]),
        [whole, b'.', digits @ ..] if digits.len() <= 3 => (whole, digits),
        _ => return None,
    };
    let digit = |digit: &u8| digit.is_ascii_digit().then(|| u16::from(digit - b'0'));
    let mut value = digit(whole)?;
    for at in 0..3 {
        value = value * 10 + digits.get(at).map_or(Some(0), digit)?;
    }
    (value <= 1000).then_some(value)
}

impl Encoding {
    /// As in `Content-Encoding`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zlib | Self::RawDeflate => "deflate",
        }
    }
}

impl<B> Compressed<B> {
    pub fn new(encoding: Encoding, body: B) -> Self {
        Self { body, encoder: Encoder::new(encoding), state: State::Reading { held: false } }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Compressed<B> {
    type Data = Bytes;
    type Error = EncodeError<B::Error>;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Self { body, encoder, state } = &mut *self;
        let mut read = 0;
        loop {
            if encoder.output().len() >= ENOUGH || !encoder.output().is_empty() && !matches!(state, State::Reading { held: true }) {
                return Poll::Ready(Some(Ok(Frame::data(encoder.output().split().freeze()))));
            }
            let held = match std::mem::replace(state, State::Done) {
                State::Reading { held } => held,
                State::Trailers(trailers) => return Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                State::Done => return Poll::Ready(None),
            };
            if read >= LONG {
                *state = State::Reading { held };
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let done = match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Pending if held => {
                    *state = State::Reading { held: false };
                    encoder.writer().flush()
                }
                Poll::Pending => {
                    *state = State::Reading { held: false };
                    return Poll::Pending;
                }
                Poll::Ready(Some(Err(error))) => {
                    encoder.output().clear();
                    return Poll::Ready(Some(Err(EncodeError::Body(error))));
                }
                Poll::Ready(None) => encoder.finish(),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        read += data.len();
                        *state = State::Reading { held: held || !data.is_empty() };
                        encoder.writer().write_all(&data)
                    }
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            *state = State::Trailers(trailers);
                            encoder.finish()
                        } else {
                            *state = State::Reading { held };
                            Ok(())
                        }
                    }
                },
            };
            if let Err(error) = done {
                *state = State::Done;
                encoder.output().clear();
                return Poll::Ready(Some(Err(EncodeError::Encoder(error))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.state, State::Done) && self.encoder.is_empty()
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Encoded<B> {
    type Data = Bytes;
    type Error = EncodeError<B::Error>;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut *self {
            Self::Plain(body) => Poll::Ready(ready!(Pin::new(body).poll_frame(cx)).map(|frame| frame.map_err(EncodeError::Body))),
            Self::Compressed(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Plain(body) => body.is_end_stream(),
            Self::Compressed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Plain(body) => body.size_hint(),
            Self::Compressed(_) => SizeHint::default(),
        }
    }
}

impl Encoder {
    fn new(encoding: Encoding) -> Self {
        let output = BytesMut::new().writer();
        match encoding {
            Encoding::Gzip => Self::Gzip(GzEncoder::new(output, Level::fast())),
            Encoding::Zlib => Self::Zlib(ZlibEncoder::new(output, Level::fast())),
            Encoding::RawDeflate => Self::RawDeflate(DeflateEncoder::new(output, Level::fast())),
        }
    }

    fn writer(&mut self) -> &mut dyn Write {
        match self {
            Self::Gzip(encoder) => encoder,
            Self::Zlib(encoder) => encoder,
            Self::RawDeflate(encoder) => encoder,
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Gzip(encoder) => encoder.try_finish(),
            Self::Zlib(encoder) => encoder.try_finish(),
            Self::RawDeflate(encoder) => encoder.try_finish(),
        }
    }

    fn output(&mut self) -> &mut BytesMut {
        match self {
            Self::Gzip(encoder) => encoder.get_mut().get_mut(),
            Self::Zlib(encoder) => encoder.get_mut().get_mut(),
            Self::RawDeflate(encoder) => encoder.get_mut().get_mut(),
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Gzip(encoder) => encoder.get_ref().get_ref().is_empty(),
            Self::Zlib(encoder) => encoder.get_ref().get_ref().is_empty(),
            Self::RawDeflate(encoder) => encoder.get_ref().get_ref().is_empty(),
        }
    }
}

#[cfg(test)]
mod tests;
