//! Messages read a second time, slowly and by other code than the resolver's.

use std::ops::Range;

use hickory_proto::{
    op::Message,
    serialize::binary::{BinDecodable, BinDecoder},
};

pub(crate) const OPT: u16 = 41;

/// A whole message, to its last byte.
pub(crate) struct Raw {
    /// Of the only question.
    pub(crate) question: Range<usize>,
    /// Octets of the question's name without pointers.
    pub(crate) name_len: usize,
    pub(crate) records: Vec<Record>,
    /// Behind the last record.
    pub(crate) end: usize,
    /// What owners' names have read elsewhere, by pointers.
    borrowed: Vec<Range<usize>>,
    runs_on: bool,
}

impl Raw {
    /// Some owner's name is made of bytes that are another thing: the header, a TTL, or what came later than the name.
    pub(crate) fn is_odd(&self) -> bool {
        let overlaps = |range: &Range<usize>| {
            let ttl = |record: &Record| range.start < record.ttl_at + 4 && record.ttl_at < range.end;
            range.start < 12 || self.records.iter().any(ttl)
        };
        self.runs_on || self.borrowed.iter().any(overlaps)
    }
}

impl Raw {
    /// Some record's data, of a type whose names may be compressed, holds a name that is none, or that is made of other things.
    pub(crate) fn has_odd_data(&self, bytes: &[u8]) -> bool {
        self.records.iter().any(|record| {
            let (before, names) = match record.kind {
                2..=5 | 7..=9 | 12 | 39 => (0, 1),
                6 | 14 => (0, 2),
                15 | 18 | 21 => (2, 1),
                33 => (6, 1),
                _ => return false,
            };
            let mut at = record.data.start + before;
            (0..names).any(|_| {
                let mut borrowed = Vec::new();
                let Some((_, end)) = name(bytes, at, &mut borrowed) else { return true };
                let mut stretches = borrowed.clone();
                stretches.push(at..end);
                stretches.sort_by_key(|stretch| stretch.start);
                at = end;
                end > record.data.end
                    || borrowed.iter().any(|range| range.start < 12)
                    || stretches.windows(2).any(|pair| pair[0].end > pair[1].start)
            })
        })
    }
}

pub(crate) struct Record {
    /// 0 to 2: answer, authority, additional.
    pub(crate) section: usize,
    /// In labels with their lengths, without pointers.
    pub(crate) owner: Vec<u8>,
    pub(crate) kind: u16,
    pub(crate) class: u16,
    pub(crate) ttl: u32,
    /// Where its TTL is.
    pub(crate) ttl_at: usize,
    pub(crate) data: Range<usize>,
}

pub(crate) fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// `None` where it is not one header, one question and as many records as the header says.
pub(crate) fn read(bytes: &[u8]) -> Option<Raw> {
    if word(bytes, 4)? != 1 {
        return None;
    }
    let (mut borrowed, mut runs_on) = (Vec::new(), false);
    let (asked, mut at) = name(bytes, 12, &mut borrowed)?;
    let question = 12..at + 4;
    bytes.get(question.clone())?;
    at += 4;
    let mut records = Vec::new();
    for section in 0..3 {
        for _ in 0..word(bytes, 6 + 2 * section)? {
            let known = borrowed.len();
            let (owner, behind) = name(bytes, at, &mut borrowed)?;
            // Each stretch is before the one that led to it, so stretches do not overlap.
            let mut stretches = borrowed[known..].to_vec();
            stretches.push(at..behind);
            stretches.sort_by_key(|stretch| stretch.start);
            runs_on |= stretches.windows(2).any(|pair| pair[0].end > pair[1].start);
            let data = behind + 10..behind + 10 + usize::from(word(bytes, behind + 8)?);
            bytes.get(data.clone())?;
            at = data.end;
            let ttl = u32::from(word(bytes, behind + 4)?) << 16 | u32::from(word(bytes, behind + 6)?);
            records.push(Record {
                section,
                owner,
                kind: word(bytes, behind)?,
                class: word(bytes, behind + 2)?,
                ttl,
                ttl_at: behind + 4,
                data,
            });
        }
    }
    Some(Raw { question, name_len: asked.len(), records, end: at, borrowed, runs_on })
}

/// The name at `at`, and where its place in the message ends.
fn name(bytes: &[u8], mut at: usize, borrowed: &mut Vec<Range<usize>>) -> Option<(Vec<u8>, usize)> {
    let (mut labels, mut behind) = (Vec::new(), None);
    let mut least = at;
    loop {
        let len = *bytes.get(at)?;
        if behind.is_some() {
            borrowed.push(at..at + if len < 64 { 1 + usize::from(len) } else { 2 });
        }
        match len >> 6 {
            0 => {
                labels.extend_from_slice(bytes.get(at..=at + usize::from(len))?);
                at += 1 + usize::from(len);
                if len == 0 {
                    return (labels.len() <= 255).then(|| (labels, behind.unwrap_or(at)));
                }
            }
            3 => {
                behind.get_or_insert(at + 2);
                at = usize::from(word(bytes, at)? & 0x3fff);
                // Only ever back, so that there is an end.
                if at >= least {
                    return None;
                }
                least = at;
            }
            _ => return None,
        }
    }
}

/// The message as a library that everybody uses reads it, to the last byte.
pub(crate) fn hickory(bytes: &[u8]) -> Option<Message> {
    let mut decoder = BinDecoder::new(bytes);
    let message = Message::read(&mut decoder).ok()?;
    decoder.is_empty().then_some(message)
}
