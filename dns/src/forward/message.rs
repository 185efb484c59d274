//! Upstream answers as bytes: believed only when whole, kept as they came, and handed out with another ID and older.

use std::time::Duration;

use super::scrub::scrub;
use crate::wire::{Code, HEADER, LONGEST_LABEL, LONGEST_NAME, Query, kind};

const QR: u8 = 0x80;
const OPCODE: u8 = 0x78;
const TC: u8 = 0x02;
const AD: u8 = 0x20;
const CD: u8 = 0x10;
/// What our own OPT record offers upstream: no fragments on any usual path (DNS flag day 2020).
const OFFERED: u16 = 1232;
const LONGEST_POSITIVE: u32 = 3600;
const LONGEST_NEGATIVE: u32 = 300;
/// More labels and pointers than any name has.
const MOST_STEPS: usize = 130;

/// The query that is sent upstream: the client's question in the client's case, our own ID, and nothing else of the client's
/// but its wishes about recursion and DNSSEC, of which AD is one. What its OPT record carries, such as a cookie, is between it and us.
pub(super) fn question(query: &Query<'_>, id: u16, edns: bool) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    let flags = u8::from(query.recursion_desired());
    let lower = if query.checking_disabled() { CD } else { 0 } | if query.authentic_data() { AD } else { 0 };
    let edns = query.edns.filter(|_| edns);
    bytes.extend([flags, lower, 0, 1, 0, 0, 0, 0, 0, u8::from(edns.is_some())]);
    bytes.extend_from_slice(query.question());
    if let Some(edns) = edns {
        bytes.extend([0, 0, kind::OPT as u8]);
        bytes.extend(OFFERED.to_be_bytes());
        bytes.extend([0, 0, if edns.dnssec_ok { 0x80 } else { 0 }, 0, 0, 0]);
    }
    bytes
}

/// An upstream's answer that can be believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) bytes: Vec<u8>,
    /// Where TTLs are that count down: every record's but OPT's.
    ttls: Vec<u32>,
    /// How long it may be kept; `None` for what is not to be kept at all.
    pub(super) lifetime: Option<Duration>,
}

impl Answer {
    /// `None` if it is not an answer to what was sent, or not a whole message.
    pub(super) fn read(bytes: Vec<u8>, sent: &[u8]) -> Option<Self> {
        let header = bytes.get(..HEADER)?;
        if header[..2] != sent[..2] || header[2] & (QR | OPCODE) != QR || header[4..6] != [0, 1] {
            return None;
        }
        let end = skip_name(sent, HEADER)? + 4;
        let asked = sent.get(HEADER..end)?;
        // Some servers change the case of the name that they repeat.
        if !bytes.get(HEADER..end)?.eq_ignore_ascii_case(asked) {
            return None;
        }
        // Names that are put together of what was no name are refused before they are followed.
        Contents::of(&bytes, end)?;
        let mut bytes = scrub(bytes, end)?;
        let Contents { ttls, positive, negative, end } = Contents::of(&bytes, end)?;
        // What follows the last record is no part of the message: neither kept nor handed on.
        bytes.truncate(end);
        let mut answer = Self { bytes, ttls, lifetime: None };
        let seconds = match (answer.code(), positive) {
            _ if answer.is_truncated() => 0,
            (Some(Code::NoError), Some(least)) => least.min(LONGEST_POSITIVE),
            // RFC 2308: for as long as the SOA record says, and not at all without one.
            (Some(Code::NoError | Code::NxDomain), _) => negative.unwrap_or(0).min(LONGEST_NEGATIVE),
            _ => 0,
        };
        answer.lifetime = (seconds > 0).then(|| Duration::from_secs(u64::from(seconds)));
        Some(answer)
    }

    /// `None` for codes that say nothing about the name.
    pub(super) fn code(&self) -> Option<Code> {
        match self.bytes[3] & 0x0f {
            0 => Some(Code::NoError),
            1 => Some(Code::FormErr),
            2 => Some(Code::ServFail),
            3 => Some(Code::NxDomain),
            4 => Some(Code::NotImp),
            5 => Some(Code::Refused),
            _ => None,
        }
    }

    /// Lets nothing of it live longer than so many seconds.
    pub(super) fn shorten(&mut self, most: u32) {
        for at in self.ttls.iter().map(|at| *at as usize) {
            if let Some(ttl) = self.bytes.get_mut(at..at + 4).and_then(|room| <&mut [u8; 4]>::try_from(room).ok()) {
                *ttl = u32::from_be_bytes(*ttl).min(most).to_be_bytes();
            }
        }
        self.lifetime = self.lifetime.map(|lifetime| lifetime.min(Duration::from_secs(u64::from(most))));
    }

    /// There is something in it.
    pub(super) fn is_positive(&self) -> bool {
        self.code() == Some(Code::NoError) && self.bytes[6..8] != [0, 0]
    }

    pub(super) fn is_truncated(&self) -> bool {
        self.bytes[2] & TC != 0
    }

    /// The answer for that client, which asked when this was `age` old.
    pub(super) fn to(&self, query: &Query<'_>, age: Duration) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        bytes[..2].copy_from_slice(&query.id().to_be_bytes());
        // We validate nothing: AD is the server's word, and for those who asked for it by AD or DO (RFC 6840, section 5.8).
        if !query.authentic_data() && !query.edns.is_some_and(|edns| edns.dnssec_ok) {
            bytes[3] &= !AD;
        }
        let question = query.question();
        if let Some(room) = bytes.get_mut(HEADER..HEADER + question.len()) {
            room.copy_from_slice(question);
        }
        let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        if age > 0 {
            for at in self.ttls.iter().map(|at| *at as usize) {
                if let Some(ttl) = bytes.get_mut(at..at + 4).and_then(|room| <&mut [u8; 4]>::try_from(room).ok()) {
                    *ttl = u32::from_be_bytes(*ttl).saturating_sub(age).to_be_bytes();
                }
            }
        }
        bytes
    }

    /// Bytes that it costs to keep.
    pub(super) fn weight(&self) -> usize {
        self.bytes.len() + 4 * self.ttls.len() + 256
    }
}

/// What the records of a message say of its lifetime.
struct Contents {
    ttls: Vec<u32>,
    /// The least TTL of its answers, in seconds.
    positive: Option<u32>,
    /// What its SOA record says (RFC 2308, section 5), in seconds.
    negative: Option<u32>,
    /// Where the last record ends.
    end: usize,
}

impl Contents {
    /// `question_end` is where the records begin.
    fn of(bytes: &[u8], question_end: usize) -> Option<Self> {
        let counts = [6, 8, 10].map(|at| u16::from_be_bytes([bytes[at], bytes[at + 1]]));
        let mut this = Self { ttls: Vec::new(), positive: None, negative: None, end: question_end };
        for (section, count) in counts.into_iter().enumerate() {
            for _ in 0..count {
                let at = skip_name_past(bytes, this.end, &this.ttls)?;
                let fixed = bytes.get(at..at + 10)?;
                let (of, ttl) = (u16::from_be_bytes([fixed[0], fixed[1]]), u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]));
                let data = at + 10;
                this.end = data + usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
                let held = bytes.get(data..this.end)?;
                if of == kind::OPT {
                    continue;
                }
                this.ttls.push(u32::try_from(at + 4).ok()?);
                // The highest bit is no part of it (RFC 2181, section 8).
                let ttl = if ttl > i32::MAX as u32 { 0 } else { ttl };
                if section == 0 {
                    this.positive = Some(this.positive.map_or(ttl, |least: u32| least.min(ttl)));
                } else if section == 1 && of == kind::SOA {
                    let minimum = held.last_chunk::<4>().map_or(0, |last| u32::from_be_bytes(*last));
                    this.negative = Some(this.negative.unwrap_or(u32::MAX).min(ttl).min(minimum));
                }
            }
        }
        Some(this)
    }
}

/// Where the name at `start` ends.
pub(super) fn skip_name(bytes: &[u8], start: usize) -> Option<usize> {
    skip_name_past(bytes, start, &[])
}

/// The same of a message that is handed out with another ID and with other `ttls`. A pointer leads back to a name, or its end,
/// that was written before: to nothing that is changed, and to nothing that runs on into what came after.
fn skip_name_past(bytes: &[u8], start: usize, ttls: &[u32]) -> Option<usize> {
    let is_changed = |from: usize, to: usize| {
        let next = ttls.partition_point(|ttl| *ttl as usize + 4 <= from);
        from < HEADER || ttls.get(next).is_some_and(|ttl| (*ttl as usize) < to)
    };
    let (mut at, mut end, mut octets) = (start, None, 0);
    // This stretch of labels, and where it must be over.
    let (mut stretch, mut bound) = (start, bytes.len());
    for _ in 0..MOST_STEPS {
        let len = usize::from(*bytes.get(at)?);
        let next = at + if len < 0xc0 { 1 + len } else { 2 };
        if next > bound || is_changed(at, next) {
            return None;
        }
        match len {
            0..=LONGEST_LABEL => {
                octets += 1 + len;
                if octets > LONGEST_NAME {
                    return None;
                }
                if len == 0 {
                    return Some(end.unwrap_or(next));
                }
                at = next;
            }
            0xc0.. => {
                end = end.or(Some(next));
                at = (len & 0x3f) << 8 | usize::from(*bytes.get(at + 1)?);
                if at >= stretch {
                    return None;
                }
                (stretch, bound) = (at, stretch);
            }
            _ => return None,
        }
    }
    None
}

/// The answer for a client that takes `limit` bytes: whole, or as many of its records as fit, with the hint to come by TCP.
/// Clients that do not understand the hint, as musl's before 1.2.4, have something to go on with.
pub fn fit(answer: &[u8], limit: usize) -> std::borrow::Cow<'_, [u8]> {
    if answer.len() <= limit || answer.len() < HEADER {
        return answer.into();
    }
    let Some(end) = skip_name(answer, HEADER).map(|end| end + 4).filter(|end| *end <= answer.len()) else { return answer[..HEADER].into() };
    let record = |at: usize| -> Option<(u16, usize)> {
        let at = skip_name(answer, at)?;
        let fixed = answer.get(at..at + 10)?;
        let end = at + 10 + usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
        answer.get(..end)?;
        Some((u16::from_be_bytes([fixed[0], fixed[1]]), end))
    };
    let counts = [6, 8, 10].map(|at| u16::from_be_bytes([answer[at], answer[at + 1]]));
    let total: usize = counts.iter().copied().map(usize::from).sum();
    let all = std::iter::successors(Some((0, end)), |(_, at)| record(*at)).skip(1).take(total);
    let has_opt = all.clone().any(|(of, _)| of == kind::OPT);
    let room = limit.saturating_sub(if has_opt { OPT_LEN } else { 0 });
    let kept = all.take(usize::from(counts[0])).take_while(|(_, end)| *end <= room);
    let (count, end) = kept.fold((0u16, end), |(count, _), (_, end)| (count + 1, end));
    let mut short = answer[..end].to_vec();
    short[2] |= TC;
    short[6..HEADER].fill(0);
    short[6..8].copy_from_slice(&count.to_be_bytes());
    if has_opt {
        short[11] = 1;
        let size = OFFERED.to_be_bytes();
        short.extend([0, 0, kind::OPT as u8, size[0], size[1], 0, 0, 0, 0, 0, 0]);
    }
    short.into()
}

/// An OPT record without options.
const OPT_LEN: usize = 11;

#[cfg(test)]
mod tests;
