//! What an answer says of names that nobody asked for is left out.
//!
//! Nothing of it was ever looked up or kept under those names. But clients exist that take every address in the answer for the
//! one they asked for (musl's resolver compares no names), and a server that was led astray would speak to them through us.

use super::message::skip_name;
use crate::wire::{HEADER, kind};

const NS: u16 = 2;
const CNAME: u16 = 5;
const MINFO: u16 = 14;
const DNAME: u16 = 39;
const RRSIG: u16 = 46;
/// Resolvers give up sooner than after so many aliases of aliases.
const MOST_NAMES: usize = 17;
const LONGEST_NAME: usize = 255;

/// One record of a message: its owner's name at `start`, its data from `data` to `end`.
struct Record {
    start: usize,
    kind: u16,
    data: usize,
    end: usize,
}

/// The message with its question, of its answers those that belong to it, its authorities, and of the rest the OPT record.
/// `end` is where the question ends. `None` if it is no whole message.
pub(super) fn scrub(mut bytes: Vec<u8>, end: usize) -> Option<Vec<u8>> {
    let count = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let (answers, at) = records(&bytes, end, count(6))?;
    let (authorities, authorities_end) = records(&bytes, at, count(8))?;
    let (additional, _) = records(&bytes, authorities_end, count(10))?;
    let opt = additional.iter().find(|r| r.kind == kind::OPT && bytes[r.start] == 0).map(|r| bytes[r.start..r.end].to_vec());
    let known = chain(&bytes, &answers)?;
    let own: Vec<bool> = answers.iter().map(|record| is_own(&bytes, record, &known)).collect::<Option<_>>()?;
    if own.iter().all(|own| *own) {
        bytes.truncate(authorities_end);
    } else {
        let mut rest = bytes[..end].to_vec();
        let kept = answers.iter().zip(&own).filter(|(_, own)| **own).map(|(record, _)| record);
        let kept_count = u16::try_from(kept.clone().count()).ok()?;
        for record in kept.chain(&authorities) {
            copy(&bytes, record, &mut rest)?;
        }
        rest[6..8].copy_from_slice(&kept_count.to_be_bytes());
        bytes = rest;
    }
    bytes[10..HEADER].copy_from_slice(&u16::from(opt.is_some()).to_be_bytes());
    bytes.extend(opt.unwrap_or_default());
    // Names that were written out may make it longer than any transport carries.
    u16::try_from(bytes.len()).is_ok().then_some(bytes)
}

fn records(bytes: &[u8], mut at: usize, count: u16) -> Option<(Vec<Record>, usize)> {
    let mut records = Vec::new();
    for _ in 0..count {
        let data = skip_name(bytes, at)? + 10;
        let fixed = bytes.get(data - 10..data)?;
        let end = data + usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
        bytes.get(data..end)?;
        records.push(Record { start: at, kind: u16::from_be_bytes([fixed[0], fixed[1]]), data, end });
        at = end;
    }
    Some((records, at))
}

/// The asked name and what it is an alias of, link by link and in whatever order the links are.
fn chain(bytes: &[u8], answers: &[Record]) -> Option<Vec<Vec<u8>>> {
    let mut known = vec![name(bytes, HEADER)?];
    let mut aliases = Vec::new();
    for record in answers.iter().filter(|r| r.kind == CNAME) {
        aliases.push((name(bytes, record.start)?, name(bytes, record.data)?));
    }
    while known.len() < MOST_NAMES
        && let Some((_, target)) = aliases.iter().find(|(owner, target)| holds(&known, owner) && !holds(&known, target))
    {
        known.push(target.clone());
    }
    Some(known)
}

/// A length is no letter in either case, so names can be compared as they are on the wire.
fn holds(known: &[Vec<u8>], name: &[u8]) -> bool {
    known.iter().any(|k| k.eq_ignore_ascii_case(name))
}

/// A DNAME stands at a name above the asked one (RFC 6672), and so does its signature.
fn is_own(bytes: &[u8], record: &Record, known: &[Vec<u8>]) -> Option<bool> {
    let owner = name(bytes, record.start)?;
    let is_above = || known.iter().any(|name| above(name).any(|parent| parent.eq_ignore_ascii_case(&owner)));
    Some(holds(known, &owner) || matches!(record.kind, DNAME | RRSIG) && is_above())
}

/// The names above a name, the root at last.
fn above(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    fn next<'n>(name: &&'n [u8]) -> Option<&'n [u8]> {
        name.get(1 + usize::from(*name.first()?)..).filter(|rest| !rest.is_empty())
    }
    std::iter::successors(Some(name), next).skip(1)
}

/// The name at `at` without pointers, as it is on the wire.
fn name(bytes: &[u8], mut at: usize) -> Option<Vec<u8>> {
    // Pointers lead back only, so this ends.
    skip_name(bytes, at)?;
    let mut name = Vec::new();
    loop {
        let len = usize::from(*bytes.get(at)?);
        match len {
            0 => {
                name.push(0);
                return (name.len() <= LONGEST_NAME).then_some(name);
            }
            1..=63 => {
                name.extend_from_slice(bytes.get(at..=at + len)?);
                at += 1 + len;
            }
            _ => at = (len & 0x3f) << 8 | usize::from(*bytes.get(at + 1)?),
        }
    }
}

/// Writes a record whose names point nowhere but to the question: what they pointed to may be gone.
fn copy(bytes: &[u8], record: &Record, out: &mut Vec<u8>) -> Option<()> {
    let owner = name(bytes, record.start)?;
    if owner.eq_ignore_ascii_case(&name(bytes, HEADER)?) {
        out.extend([0xc0, HEADER as u8]);
    } else {
        out.extend(owner);
    }
    out.extend_from_slice(&bytes[record.data - 10..record.data]);
    let start = out.len();
    // Types whose data may be compressed (RFC 3597, section 4): bytes before their names, and how many names.
    let (before, names) = match record.kind {
        NS..=CNAME | 7..=9 | kind::PTR | DNAME => (0, 1),
        kind::SOA | MINFO => (0, 2),
        kind::MX | 18 | 21 => (2, 1),
        kind::SRV => (6, 1),
        _ => (0, 0),
    };
    let mut at = record.data;
    out.extend_from_slice(bytes.get(at..at + before)?);
    at += before;
    for _ in 0..names {
        out.extend(name(bytes, at)?);
        at = skip_name(bytes, at)?;
    }
    out.extend_from_slice(bytes.get(at..record.end)?);
    let len = u16::try_from(out.len() - start).ok()?;
    out[start - 2..start].copy_from_slice(&len.to_be_bytes());
    Some(())
}

#[cfg(test)]
mod tests;
