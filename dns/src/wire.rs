//! DNS messages as bytes (RFC 1035, section 4): what a query asks, and answers written without allocating.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Bytes of the fixed header.
pub const HEADER: usize = 12;
/// What every client takes over UDP without saying so (RFC 1035, section 2.3.4).
pub const PLAIN_LIMIT: usize = 512;
/// No datagram of ours is larger, whatever a client offers. Loopback carries it without fragments.
pub const UDP_LIMIT: usize = 4096;
/// What our own OPT record offers.
const OFFERED: u16 = 4096;
/// Octets of a name, length bytes and root included (RFC 1035, section 2.3.4).
pub(crate) const LONGEST_NAME: usize = 255;
pub(crate) const LONGEST_LABEL: usize = 63;

/// Record types that names of ours have something to say about (RFC 1035, 3596, 2782, 6891, 8482).
pub mod kind {
    pub const A: u16 = 1;
    pub const SOA: u16 = 6;
    pub const PTR: u16 = 12;
    pub const MX: u16 = 15;
    pub const AAAA: u16 = 28;
    pub const SRV: u16 = 33;
    pub const OPT: u16 = 41;
    pub const ANY: u16 = 255;
}

/// The only class that anybody uses.
pub const CLASS_IN: u16 = 1;
const CLASS_ANY: u16 = 255;

/// Response codes, as in the header's last four bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    NoError,
    FormErr,
    ServFail,
    NxDomain,
    NotImp,
    Refused,
}

impl Code {
    pub const fn number(self) -> u8 {
        match self {
            Self::NoError => 0,
            Self::FormErr => 1,
            Self::ServFail => 2,
            Self::NxDomain => 3,
            Self::NotImp => 4,
            Self::Refused => 5,
        }
    }
}

const QR: u8 = 0x80;
const OPCODE: u8 = 0x78;
const AA: u8 = 0x04;
const TC: u8 = 0x02;
const RD: u8 = 0x01;
const RA: u8 = 0x80;
const AD: u8 = 0x20;
const CD: u8 = 0x10;
/// The question's name, which begins right behind the header.
const QUESTION: [u8; 2] = [0xc0, HEADER as u8];

/// What the client said about EDNS (RFC 6891).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    pub size: u16,
    pub version: u8,
    /// "DNSSEC OK" (RFC 3225), to be copied.
    pub dnssec_ok: bool,
}

/// A query that can be answered.
#[derive(Debug)]
pub struct Query<'q> {
    bytes: &'q [u8],
    /// Where the question ends.
    end: usize,
    /// The name without its last dot, in lower case.
    name: NameText,
    /// Some label cannot be written as text without escapes, so no name of ours is meant.
    exotic: bool,
    pub kind: u16,
    pub class: u16,
    pub edns: Option<Edns>,
}

/// Why there is nothing to look up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// Too short for a header, or a response: answering could start a loop between two servers.
    Silent,
    /// To be answered with this code, and the question if it could be read.
    Code(Code),
}

/// A name of at most 253 characters, on the stack.
#[derive(Clone)]
pub struct NameText {
    bytes: [u8; LONGEST_NAME],
    len: u8,
}

impl NameText {
    const fn new() -> Self {
        Self { bytes: [0; LONGEST_NAME], len: 0 }
    }

    /// Only ever filled with ASCII.
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }
}

impl std::fmt::Debug for NameText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_str().fmt(f)
    }
}

impl<'q> Query<'q> {
    pub fn parse(bytes: &'q [u8]) -> Result<Self, Unusable> {
        let header = bytes.get(..HEADER).ok_or(Unusable::Silent)?;
        if header[2] & QR != 0 {
            return Err(Unusable::Silent);
        }
        if header[2] & OPCODE != 0 {
            return Err(Unusable::Code(Code::NotImp));
        }
        let format = Unusable::Code(Code::FormErr);
        let counts = [4, 6, 8, 10].map(|at| u16::from_be_bytes([header[at], header[at + 1]]));
        // One question (RFC 9619), no answers to it. Neither is sent by any resolver there is.
        if counts[0] != 1 || counts[1] != 0 || counts[2] != 0 {
            return Err(format);
        }
        let mut name = NameText::new();
        let mut exotic = false;
        let mut at = HEADER;
        loop {
            let len = usize::from(*bytes.get(at).ok_or(format)?);
            at += 1;
            if len == 0 {
                break;
            }
            // Longer "lengths" are compression pointers, which have nothing before them to point to.
            if len > LONGEST_LABEL {
                return Err(format);
            }
            let label = bytes.get(at..at + len).ok_or(format)?;
            at += len;
            if at - HEADER >= LONGEST_NAME {
                return Err(format);
            }
            let mut end = usize::from(name.len);
            if end > 0 {
                name.bytes[end] = b'.';
                end += 1;
            }
            for byte in label {
                exotic |= !byte.is_ascii_graphic() || *byte == b'.';
                name.bytes[end] = byte.to_ascii_lowercase() & 0x7f;
                end += 1;
            }
            name.len = end as u8;
        }
        let tail = bytes.get(at..at + 4).ok_or(format)?;
        let end = at + 4;
        let mut query = Self {
            bytes,
            end,
            name,
            exotic,
            kind: u16::from_be_bytes([tail[0], tail[1]]),
            class: u16::from_be_bytes([tail[2], tail[3]]),
            edns: None,
        };
        if counts[3] > 0 {
            query.edns = edns(bytes, end, counts[3]).map_err(|()| format)?;
        }
        Ok(query)
    }

    /// The name as text, if it can be one of ours.
    pub fn name(&self) -> Option<&str> {
        (!self.exotic).then(|| self.name.as_str())
    }

    /// As it came.
    pub fn bytes(&self) -> &'q [u8] {
        self.bytes
    }

    pub fn id(&self) -> u16 {
        u16::from_be_bytes([self.bytes[0], self.bytes[1]])
    }

    pub fn recursion_desired(&self) -> bool {
        self.bytes[2] & RD != 0
    }

    pub fn checking_disabled(&self) -> bool {
        self.bytes[3] & CD != 0
    }

    /// The client wants to hear whether the answer was validated, without the records that prove it (RFC 6840, section 5.7).
    pub fn authentic_data(&self) -> bool {
        self.bytes[3] & AD != 0
    }

    /// Name, type and class as the client wrote them.
    pub fn question(&self) -> &'q [u8] {
        &self.bytes[HEADER..self.end]
    }

    pub fn is_internet(&self) -> bool {
        matches!(self.class, CLASS_IN | CLASS_ANY)
    }

    /// Bytes of the largest datagram that this client takes.
    pub fn udp_limit(&self) -> usize {
        self.edns.map_or(PLAIN_LIMIT, |edns| usize::from(edns.size).clamp(PLAIN_LIMIT, UDP_LIMIT))
    }
}

/// The OPT record among `count` additional ones. Two are an error (RFC 6891, section 6.1.1).
fn edns(bytes: &[u8], mut at: usize, count: u16) -> Result<Option<Edns>, ()> {
    let mut found = None;
    for _ in 0..count {
        let start = at;
        at = skip_name(bytes, at).ok_or(())?;
        let fixed = bytes.get(at..at + 10).ok_or(())?;
        let len = usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
        at += 10;
        bytes.get(at..at + len).ok_or(())?;
        at += len;
        if u16::from_be_bytes([fixed[0], fixed[1]]) != kind::OPT {
            continue;
        }
        if found.is_some() || bytes[start] != 0 {
            return Err(());
        }
        found = Some(Edns { size: u16::from_be_bytes([fixed[2], fixed[3]]), version: fixed[5], dnssec_ok: fixed[6] & 0x80 != 0 });
    }
    Ok(found)
}

/// Where the name that starts at `at` ends; its pointers are not followed.
fn skip_name(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let len = usize::from(*bytes.get(at)?);
        match len {
            0 => return Some(at + 1),
            1..=LONGEST_LABEL => at += 1 + len,
            0xc0.. => return bytes.get(at + 1).map(|_| at + 2),
            _ => return None,
        }
    }
}

/// A question for `name`; `None` if it cannot be one.
pub fn question(name: &str, kind: u16) -> Option<Vec<u8>> {
    let mut out = vec![0; HEADER + LONGEST_NAME + 5];
    out[2] = RD;
    out[5] = 1;
    let mut writer = Writer { out: &mut out, len: HEADER };
    let parts = [name];
    let written =
        writer.name(if name.is_empty() { &[] } else { &parts }) && writer.put(&kind.to_be_bytes()) && writer.put(&CLASS_IN.to_be_bytes());
    let len = writer.len;
    out.truncate(len);
    written.then_some(out)
}

/// The data of the records in the answer section, as text; of types that [`Response`] writes.
pub fn answers(message: &[u8]) -> Vec<String> {
    fn name(message: &[u8], mut at: usize) -> Option<String> {
        let mut labels = Vec::new();
        loop {
            let len = usize::from(*message.get(at)?);
            match len {
                0 => return Some(labels.join(".")),
                1..=LONGEST_LABEL => labels.push(String::from_utf8_lossy(message.get(at + 1..at + 1 + len)?).into_owned()),
                // Ours point to the question only, and that holds no pointer.
                _ => return None,
            }
            at += 1 + len;
        }
    }
    let read = || {
        let count = u16::from_be_bytes([*message.get(6)?, *message.get(7)?]);
        let mut at = skip_name(message, HEADER)? + 4;
        let mut texts = Vec::new();
        for _ in 0..count {
            at = skip_name(message, at)?;
            let fixed = message.get(at..at + 10)?;
            let data = at + 10;
            at = data + usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
            let bytes = message.get(data..at)?;
            texts.push(match u16::from_be_bytes([fixed[0], fixed[1]]) {
                kind::A => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).to_string(),
                kind::AAAA => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_string(),
                kind::SRV => format!("{}:{}", name(message, data + 6)?, u16::from_be_bytes([bytes[4], bytes[5]])),
                _ => name(message, data)?,
            });
        }
        Some(texts)
    };
    read().unwrap_or_default()
}

/// The ID and opcode of something that is no usable query, answered with nothing but a code.
pub fn refusal(query: &[u8], code: Code, out: &mut [u8]) -> usize {
    let (Some(header), Some(room)) = (query.get(..HEADER), out.get_mut(..HEADER)) else { return 0 };
    room.fill(0);
    room[..2].copy_from_slice(&header[..2]);
    room[2] = QR | header[2] & (OPCODE | RD);
    room[3] = RA | code.number();
    HEADER
}

/// Writes one response. What does not fit is left out and said by the TC bit.
#[derive(Debug)]
pub struct Response<'o> {
    out: &'o mut [u8],
    /// Room for the answer without what is kept for the OPT record.
    limit: usize,
    len: usize,
    counts: [u16; 3],
    truncated: bool,
    opt: Option<Edns>,
}

/// Sections, in the order in which they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    Answer = 0,
    Authority = 1,
    Additional = 2,
}

const OPT_LEN: usize = 11;

impl<'o> Response<'o> {
    /// Begins the answer to `query`. At most `limit` bytes of `out` are used.
    ///
    /// With `authoritative`, AA is set: the names of a swarm are nobody else's. An OPT record is added if the query had one.
    pub fn new(query: &Query<'_>, code: Code, authoritative: bool, limit: usize, out: &'o mut [u8]) -> Self {
        let question = query.question();
        let limit = limit.min(out.len());
        let len = HEADER + question.len();
        let mut response = Self {
            limit: limit.saturating_sub(if query.edns.is_some() { OPT_LEN } else { 0 }),
            out,
            len,
            counts: [0; 3],
            truncated: false,
            opt: query.edns,
        };
        if response.out.len() < len {
            response.len = 0;
            return response;
        }
        let out = &mut response.out;
        out[..2].copy_from_slice(&query.bytes[..2]);
        out[2] = QR | if authoritative { AA } else { 0 } | query.bytes[2] & RD;
        out[3] = RA | query.bytes[3] & CD | code.number();
        out[4..HEADER].fill(0);
        out[5] = 1;
        out[HEADER..len].copy_from_slice(question);
        response
    }

    pub fn a(&mut self, owner: Owner<'_>, ttl: u32, address: Ipv4Addr) -> bool {
        let section = owner.section();
        self.record(section, owner, kind::A, ttl, |out| out.put(&address.octets()))
    }

    pub fn aaaa(&mut self, owner: Owner<'_>, ttl: u32, address: Ipv6Addr) -> bool {
        let section = owner.section();
        self.record(section, owner, kind::AAAA, ttl, |out| out.put(&address.octets()))
    }

    /// `target` in labels and dots. False also if it is no name (a label longer than 63, say).
    pub fn ptr(&mut self, ttl: u32, target: &[&str]) -> bool {
        self.record(Section::Answer, Owner::Question, kind::PTR, ttl, |out| out.name(target))
    }

    /// RFC 2782, with priority and weight 0.
    pub fn srv(&mut self, ttl: u32, port: u16, target: &[&str]) -> bool {
        self.record(Section::Answer, Owner::Question, kind::SRV, ttl, |out| {
            out.put(&[0; 4]) && out.put(&port.to_be_bytes()) && out.name(target)
        })
    }

    /// What makes an empty answer a statement that lasts `ttl` seconds (RFC 2308, section 5). The asked name is its own zone.
    pub fn soa(&mut self, ttl: u32) -> bool {
        self.record(Section::Authority, Owner::Question, kind::SOA, ttl, |out| {
            let timers = [1, 3600, 600, 86_400, ttl];
            out.put(&QUESTION) && out.put(&[0]) && timers.iter().all(|timer| out.put(&timer.to_be_bytes()))
        })
    }

    fn record(&mut self, section: Section, owner: Owner<'_>, kind: u16, ttl: u32, data: impl FnOnce(&mut Writer<'_>) -> bool) -> bool {
        if self.len == 0 || self.truncated {
            return false;
        }
        let mut writer = Writer { out: &mut self.out[..self.limit.max(self.len)], len: self.len };
        let written = match owner {
            Owner::Question => writer.put(&QUESTION),
            Owner::Named(labels) => writer.name(labels),
        } && writer.put(&kind.to_be_bytes())
            && writer.put(&CLASS_IN.to_be_bytes())
            && writer.put(&ttl.to_be_bytes())
            && writer.put(&[0; 2]);
        let start = writer.len;
        if !written || !data(&mut writer) {
            // Additional records are a courtesy, and left out in silence (RFC 2181, section 9).
            self.truncated |= section != Section::Additional;
            return false;
        }
        let end = writer.len;
        let len = (end - start) as u16;
        self.out[start - 2..start].copy_from_slice(&len.to_be_bytes());
        self.len = end;
        self.counts[section as usize] += 1;
        true
    }

    /// How many bytes were written in all.
    pub fn finish(mut self) -> usize {
        if self.len == 0 {
            return 0;
        }
        if let Some(edns) = self.opt
            && let Some(room) = self.out.get_mut(self.len..self.len + OPT_LEN)
        {
            const BADVERS: u8 = 1;
            let size = OFFERED.to_be_bytes();
            let extended = if edns.version > 0 { BADVERS } else { 0 };
            let flags = if edns.dnssec_ok { 0x80 } else { 0 };
            room.copy_from_slice(&[0, 0, kind::OPT as u8, size[0], size[1], extended, 0, flags, 0, 0, 0]);
            self.len += OPT_LEN;
            self.counts[Section::Additional as usize] += 1;
        }
        for (index, count) in self.counts.iter().enumerate() {
            let at = 6 + 2 * index;
            self.out[at..at + 2].copy_from_slice(&count.to_be_bytes());
        }
        if self.truncated {
            self.out[2] |= TC;
        }
        self.len
    }
}

/// Whose record it is.
#[derive(Clone, Copy, Debug)]
pub enum Owner<'n> {
    /// The asked name's, in the case in which it was asked: clients that vary it as a check (draft-vixie-dnsext-dns0x20) want it back.
    Question,
    /// Another name's, as an additional record.
    Named(&'n [&'n str]),
}

impl Owner<'_> {
    const fn section(&self) -> Section {
        match self {
            Self::Question => Section::Answer,
            Self::Named(_) => Section::Additional,
        }
    }
}

struct Writer<'o> {
    out: &'o mut [u8],
    len: usize,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) -> bool {
        let Some(room) = self.out.get_mut(self.len..self.len + bytes.len()) else { return false };
        room.copy_from_slice(bytes);
        self.len += bytes.len();
        true
    }

    /// A name that is put together from parts, each of one or more labels with dots between them.
    fn name(&mut self, parts: &[&str]) -> bool {
        let start = self.len;
        for label in parts.iter().flat_map(|part| part.split('.')) {
            if label.is_empty() || label.len() > LONGEST_LABEL || !self.put(&[label.len() as u8]) || !self.put(label.as_bytes()) {
                return false;
            }
        }
        self.put(&[0]) && self.len - start <= LONGEST_NAME
    }
}

#[cfg(test)]
mod tests;
