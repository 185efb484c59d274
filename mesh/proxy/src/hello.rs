//! What a TLS client says first, read before it is known who answers: so a connection can still be opened here or passed on
//! as it is. Only what that needs is understood, and whatever is not as RFC 8446 (4.1.2) and RFC 6066 (3) say is refused.

use std::io;

use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::{Instant, timeout_at},
};

/// A record of a handshake; and the message in it that comes first.
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const RECORD_HEADER: usize = 5;
const MESSAGE_HEADER: usize = 4;
const LARGEST_RECORD: usize = 1 << 14;
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
const HOST_NAME: u8 = 0;
/// RFC 8446, 6.
const ALERT: u8 = 21;
const FATAL: u8 = 2;

/// What a client said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// The name that is asked for: in lower case, without a final dot.
    pub sni: Option<String>,
    /// The protocols that the client can speak, the best first.
    pub alpn: Vec<Vec<u8>>,
    /// The session's id, which may be empty.
    pub session: Vec<u8>,
    /// All that was read, and perhaps more than the hello: for whoever reads next.
    pub bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HelloLimits {
    /// Bytes of the hello itself.
    pub message: usize,
    /// Records that it may be cut into.
    pub records: usize,
}

impl Default for HelloLimits {
    fn default() -> Self {
        Self { message: 1 << 14, records: 64 }
    }
}

/// What is wrong with a hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHello {
    #[error("it is not TLS")]
    NotTls,
    #[error("it is too large, or in too many pieces")]
    TooBig,
    #[error("its {0} is malformed")]
    Malformed(Part),
    #[error("the name that it asks for is no host name")]
    Name,
}

/// Where a hello is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Record,
    Message,
    Session,
    CipherSuites,
    Compression,
    Extensions,
    ServerName,
    Protocols,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Record => "record",
            Self::Message => "length or kind",
            Self::Session => "session id",
            Self::CipherSuites => "list of cipher suites",
            Self::Compression => "list of compressions",
            Self::Extensions => "list of extensions",
            Self::ServerName => "server name",
            Self::Protocols => "list of protocols",
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    #[error("the client's hello cannot be used: {0}")]
    Bad(#[from] BadHello),
    #[error("the client closed the connection after {after} bytes of its hello")]
    Ended { after: usize },
    #[error("the client did not finish its hello in time")]
    Late,
    #[error("the client's hello cannot be read: {0}")]
    Read(#[from] io::Error),
}

/// Why a connection is refused, as the client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Alert {
    HandshakeFailure = 40,
    DecodeError = 50,
    InternalError = 80,
    UnrecognizedName = 112,
}

impl Alert {
    /// The record that says so, before anything is encrypted.
    pub fn record(self) -> [u8; 7] {
        [ALERT, 3, 3, 0, 2, FATAL, self as u8]
    }
}

impl HelloError {
    /// What to tell the client; nothing if it does not speak TLS or has gone.
    pub fn alert(&self) -> Option<Alert> {
        match self {
            Self::Bad(BadHello::NotTls) | Self::Ended { .. } | Self::Late | Self::Read(_) => None,
            Self::Bad(BadHello::TooBig | BadHello::Malformed(_)) => Some(Alert::DecodeError),
            Self::Bad(BadHello::Name) => Some(Alert::UnrecognizedName),
        }
    }
}

/// Reads a whole hello, however it is cut, until `deadline`.
pub async fn read_hello<S: AsyncRead + Unpin>(stream: &mut S, limits: HelloLimits, deadline: Instant) -> Result<Hello, HelloError> {
    timeout_at(deadline, read(stream, limits)).await.unwrap_or(Err(HelloError::Late))
}

async fn read<S: AsyncRead + Unpin>(stream: &mut S, limits: HelloLimits) -> Result<Hello, HelloError> {
    let mut reader = Reader::new(limits);
    let mut bytes = Vec::with_capacity(2048);
    loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(HelloError::Ended { after: bytes.len() });
        }
        if let Some(hello) = reader.advance(&bytes)? {
            return Ok(Hello { bytes, ..hello });
        }
    }
}

/// The same for bytes that are there already; `None` if more are needed.
pub fn parse(bytes: &[u8], limits: HelloLimits) -> Result<Option<Hello>, BadHello> {
    let hello = Reader::new(limits).advance(bytes)?;
    Ok(hello.map(|hello| Hello { bytes: bytes.to_vec(), ..hello }))
}

/// Puts records together until the hello is whole. What it says of some bytes does not depend on how they came.
#[derive(Debug)]
struct Reader {
    limits: HelloLimits,
    records: usize,
    /// Where the next record begins.
    next: usize,
    message: Vec<u8>,
}

impl Reader {
    fn new(limits: HelloLimits) -> Self {
        Self { limits, records: 0, next: 0, message: Vec::new() }
    }

    /// `bytes` are all so far, those of the last call among them.
    fn advance(&mut self, bytes: &[u8]) -> Result<Option<Hello>, BadHello> {
        const RECORD: BadHello = BadHello::Malformed(Part::Record);
        loop {
            let rest = bytes.get(self.next..).unwrap_or_default();
            let odd = if self.records == 0 { BadHello::NotTls } else { RECORD };
            if rest.first().is_some_and(|kind| *kind != HANDSHAKE) || rest.get(1).is_some_and(|major| *major != 3) {
                return Err(odd);
            }
            let Some((&[_, _, _, high, low], payload)) = rest.split_first_chunk::<RECORD_HEADER>() else { return Ok(None) };
            let length = usize::from(u16::from_be_bytes([high, low]));
            if length == 0 || length > LARGEST_RECORD {
                return Err(RECORD);
            }
            if self.records == self.limits.records {
                return Err(BadHello::TooBig);
            }
            let payload = payload.get(..length).unwrap_or(payload);
            let whole = self.message_length(payload, length)?;
            if payload.len() < length {
                return Ok(None);
            }
            self.message.extend_from_slice(payload);
            self.records += 1;
            self.next += RECORD_HEADER + length;
            if whole == Some(self.message.len()) {
                return hello(self.message.get(MESSAGE_HEADER..).unwrap_or_default()).map(Some);
            }
        }
    }

    /// Of the message with its header, as far as that is there, and no more. `declared` is the length of the record that
    /// `payload` is the beginning of: nothing may come with the hello in its record.
    fn message_length(&self, payload: &[u8], declared: usize) -> Result<Option<usize>, BadHello> {
        const MESSAGE: BadHello = BadHello::Malformed(Part::Message);
        let mut header = self.message.iter().chain(payload).copied();
        if header.next().is_some_and(|kind| kind != CLIENT_HELLO) {
            return Err(MESSAGE);
        }
        let (Some(high), Some(middle), Some(low)) = (header.next(), header.next(), header.next()) else { return Ok(None) };
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        if length > self.limits.message {
            return Err(BadHello::TooBig);
        }
        let whole = MESSAGE_HEADER + length;
        if self.message.len() + declared > whole {
            return Err(MESSAGE);
        }
        Ok(Some(whole))
    }
}

/// What is left of something to read. `None` of its methods: it is not there.
struct Left<'a>(&'a [u8]);

impl<'a> Left<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn u16(&mut self) -> Option<u16> {
        let (first, rest) = self.0.split_first_chunk::<2>()?;
        self.0 = rest;
        Some(u16::from_be_bytes(*first))
    }

    /// With its length in one byte before it.
    fn short(&mut self) -> Option<&'a [u8]> {
        let length = self.u8()?;
        self.take(length.into())
    }

    /// With its length in two bytes before it.
    fn long(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(length.into())
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The message without its header.
fn hello(message: &[u8]) -> Result<Hello, BadHello> {
    let malformed = BadHello::Malformed;
    let mut left = Left(message);
    let mut hello = Hello::default();
    // The version, which says nothing any more, and the random.
    left.take(2 + 32).ok_or(malformed(Part::Message))?;
    let session = left.short().filter(|id| id.len() <= 32).ok_or(malformed(Part::Session))?;
    hello.session = session.to_vec();
    left.long().filter(|suites| !suites.is_empty() && suites.len() % 2 == 0).ok_or(malformed(Part::CipherSuites))?;
    left.short().filter(|list| !list.is_empty()).ok_or(malformed(Part::Compression))?;
    if left.is_empty() {
        // TLS 1.2 without extensions.
        return Ok(hello);
    }
    let extensions = left.long().filter(|_| left.is_empty()).ok_or(malformed(Part::Extensions))?;
    let mut left = Left(extensions);
    let mut kinds = Vec::with_capacity(32);
    while !left.is_empty() {
        let (Some(kind), Some(data)) = (left.u16(), left.long()) else { return Err(malformed(Part::Extensions)) };
        match kind {
            SERVER_NAME => hello.sni = server_name(data)?,
            ALPN => hello.alpn = protocols(data).ok_or(malformed(Part::Protocols))?,
            _ => {}
        }
        kinds.push(kind);
    }
    kinds.sort_unstable();
    if kinds.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(malformed(Part::Extensions));
    }
    Ok(hello)
}

/// A list of names of different kinds, of which there is one kind. What another would look like, nobody has said.
fn server_name(data: &[u8]) -> Result<Option<String>, BadHello> {
    const MALFORMED: BadHello = BadHello::Malformed(Part::ServerName);
    let mut left = Left(data);
    let list = left.long().filter(|list| !list.is_empty() && left.is_empty()).ok_or(MALFORMED)?;
    let mut left = Left(list);
    let mut name = None;
    while !left.is_empty() {
        let (Some(HOST_NAME), Some(raw)) = (left.u8(), left.long()) else { return Err(MALFORMED) };
        if name.replace(raw).is_some() {
            return Err(MALFORMED);
        }
    }
    name.map(host_name).transpose()
}

fn host_name(raw: &[u8]) -> Result<String, BadHello> {
    let raw = raw.strip_suffix(b".").unwrap_or(raw);
    match ServerName::try_from(raw) {
        Ok(ServerName::DnsName(name)) if !raw.ends_with(b".") => Ok(name.as_ref().to_ascii_lowercase()),
        _ => Err(BadHello::Name),
    }
}

fn protocols(data: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut left = Left(data);
    let list = left.long().filter(|list| !list.is_empty() && left.is_empty())?;
    let mut left = Left(list);
    let mut protocols = Vec::new();
    while !left.is_empty() {
        protocols.push(left.short().filter(|name| !name.is_empty())?.to_vec());
    }
    Some(protocols)
}

#[cfg(test)]
mod tests;
