//! An upstream's answer: whether it is believed, how long it is kept, and what becomes of it on its way to a client.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use swarmesh_dns::{
    forward::{fit, fuzz},
    wire::{Code, Query},
};

use crate::raw;

const HEADER: usize = 12;
/// As the cache's: it must forget before it holds more.
const MOST_KEPT: (usize, usize) = (4096, 8 << 20);
const ENGINE_TTL: u32 = 5;

/// How the question was asked.
struct How {
    edns: bool,
    /// To an old server, for the second time.
    without_edns: bool,
    dnssec_ok: bool,
    checking_disabled: bool,
    recursion_desired: bool,
    authentic_data: bool,
    /// In another case than the answer's.
    capitals: bool,
    limit: usize,
}

pub fn check(input: &[u8]) {
    let [how, age, answer @ ..] = input else { return };
    let bit = |n: u8| how >> n & 1 == 1;
    let how = How {
        edns: bit(0),
        without_edns: bit(1),
        dnssec_ok: bit(2),
        checking_disabled: bit(3),
        recursion_desired: bit(4),
        authentic_data: age >> 7 == 1,
        capitals: bit(5),
        limit: [512, 1232, 4096, 700][usize::from(how >> 6)],
    };
    let age = Duration::from_secs(u64::from(*age));
    let asked = client(answer, &how);
    let Ok(query) = Query::parse(&asked) else { panic!("not a query: {asked:02x?}") };
    let id = raw::word(answer, 0).unwrap_or(7);
    let sent = fuzz::question(&query, id, !how.without_edns);
    let believed = fuzz::Believed::read(answer.to_vec(), &sent);
    // It goes to clients in any case.
    let short = fit(answer, how.limit);
    assert!(short.len() <= how.limit || answer.len() < HEADER);
    let Some(believed) = believed else {
        doubted_for_a_reason(answer, &sent);
        return;
    };
    answers_only_this(answer, &sent);
    let Some(read) = raw::read(believed.bytes()) else { panic!("believed, and not whole: {answer:02x?}") };
    let Some(whole) = raw::read(answer) else { panic!("believed of what is not whole: {answer:02x?}") };
    left_out_what_was_not_asked(believed.bytes(), &read, answer, &whole);
    kept_as_long_as_true(&believed, &read);
    handed_out(&believed, &read, &query, age);
    cut(&believed.to(&query, age), how.limit);
    let mut shortened = believed.clone();
    shortened.shorten(ENGINE_TTL);
    let given = shortened.to(&query, Duration::ZERO);
    let ttls = raw::read(&given).into_iter().flat_map(|read| read.records);
    assert!(ttls.filter(|record| record.kind != raw::OPT).all(|record| record.ttl <= ENGINE_TTL));
    assert!(shortened.lifetime().is_none_or(|lifetime| lifetime <= Duration::from_secs(5)));
    remembered(&believed, &query);
}

/// The client's query that this answers: its question if there is one, so that chance need not find two that are equal.
fn client(answer: &[u8], how: &How) -> Vec<u8> {
    let header = [
        0xab,
        0xcd,
        u8::from(how.recursion_desired),
        u8::from(how.checking_disabled) << 4 | u8::from(how.authentic_data) << 5,
        0,
        1,
        0,
        0,
        0,
        0,
        0,
        0,
    ];
    let mut query = header.to_vec();
    query.extend(answer.get(HEADER..).unwrap_or_default());
    let question = Query::parse(&query).map(|query| query.question().to_vec());
    let question = question.unwrap_or_else(|_| b"\x07example\x03com\x00\x00\x01\x00\x01".to_vec());
    let (name, tail) = question.split_at(question.len() - 4);
    query.truncate(HEADER);
    query.extend(if how.capitals { name.to_ascii_uppercase() } else { name.to_vec() });
    query.extend(tail);
    if how.edns {
        query[11] = 1;
        query.extend([0, 0, 41, 16, 0, 0, 0, if how.dnssec_ok { 0x80 } else { 0 }, 0, 0, 0]);
    }
    query
}

/// What a library takes for an answer to this question is believed.
fn doubted_for_a_reason(answer: &[u8], sent: &[u8]) {
    let (Some(_), Some(read)) = (raw::hickory(answer), raw::read(answer)) else { return };
    let is_odd = read.is_odd() || read.has_odd_data(answer);
    let is_ours = answer[..2] == sent[..2] && answer[2] & 0x80 != 0 && answer[2] & 0x78 == 0;
    let is_asked = answer[read.question].eq_ignore_ascii_case(raw::read(sent).map_or(&[][..], |asked| &sent[asked.question]));
    // More steps than any server's compression takes.
    let is_long = read.records.iter().any(|record| record.owner.len() > 128);
    assert!(!is_ours || !is_asked || is_odd || is_long, "a good answer is not believed: {answer:02x?}");
}

/// The same bytes answer no other question.
fn answers_only_this(answer: &[u8], sent: &[u8]) {
    assert_eq!(answer[2] & 0xf8, 0x80, "no response to a query");
    let Some(asked) = raw::read(sent) else { panic!("not a question: {sent:02x?}") };
    for at in (0..2).chain(asked.question) {
        // Bit 5 is a letter's case, which may differ.
        let mut other = sent.to_vec();
        other[at] ^= 0x01;
        assert!(fuzz::Believed::read(answer.to_vec(), &other).is_none(), "believed for another question, byte {at}");
    }
}

/// Of the answers those that belong to the question, all authorities, of the rest one OPT record; and nothing that was not there.
fn left_out_what_was_not_asked(kept: &[u8], few: &raw::Raw, given: &[u8], all: &raw::Raw) {
    assert_eq!((&kept[..6], &kept[8..10]), (&given[..6], &given[8..10]));
    assert_eq!(kept[few.question.clone()], given[all.question.clone()]);
    assert_eq!(few.end, kept.len(), "what is behind the last record is nobody's");
    for section in 0..3 {
        let in_section = |raw: &raw::Raw| raw.records.iter().filter(|r| r.section == section).count();
        let mut left = all.records.iter().filter(|r| r.section == section);
        for record in few.records.iter().filter(|r| r.section == section) {
            let same = |r: &&raw::Record| {
                (r.kind, r.class, r.ttl) == (record.kind, record.class, record.ttl) && r.owner.eq_ignore_ascii_case(&record.owner)
            };
            assert!(left.any(|r| same(&r)), "a record of nobody's: {kept:02x?} of {given:02x?}");
            assert!(section < 2 || record.kind == raw::OPT && record.owner == [0]);
        }
        match section {
            0 => assert!(in_section(few) <= in_section(all)),
            1 => assert_eq!(in_section(few), in_section(all)),
            _ => assert!(in_section(few) <= 1),
        }
    }
}

fn kept_as_long_as_true(believed: &fuzz::Believed, read: &raw::Raw) {
    let bytes = believed.bytes();
    // RFC 2181, section 8.
    let true_ttl = |ttl: u32| if ttl >> 31 == 1 { 0 } else { ttl };
    let positive = read.records.iter().filter(|r| r.section == 0 && r.kind != raw::OPT).map(|r| true_ttl(r.ttl)).min();
    let soas = read.records.iter().filter(|r| r.section == 1 && r.kind == 6);
    let minimum = |data: &[u8]| data.last_chunk::<4>().map_or(0, |last| u32::from_be_bytes(*last));
    let negative = soas.map(|soa| true_ttl(soa.ttl).min(minimum(&bytes[soa.data.clone()]))).min();
    let is_cut = bytes[2] & 2 != 0;
    let most = match (believed.code(), positive) {
        _ if is_cut => 0,
        (Some(Code::NoError), Some(least)) => least.min(3600),
        // RFC 2308.
        (Some(Code::NoError | Code::NxDomain), _) => negative.unwrap_or(0).min(300),
        _ => 0,
    };
    let lifetime = believed.lifetime().map_or(0, |lifetime| lifetime.as_secs());
    assert_eq!(lifetime, u64::from(most));
    assert!(believed.lifetime().is_none_or(|lifetime| !lifetime.is_zero()));
}

/// The client has its own question and ID back; nothing but those and the TTLs is changed.
fn handed_out(believed: &fuzz::Believed, read: &raw::Raw, query: &Query<'_>, age: Duration) {
    let (from, to) = (believed.bytes(), believed.to(query, age));
    assert_eq!(to.len(), from.len());
    assert_eq!(to[..2], query.id().to_be_bytes());
    assert_eq!(&to[read.question.clone()], query.question(), "the question as it was asked");
    let mut expected = from.to_vec();
    expected[..2].copy_from_slice(&query.id().to_be_bytes());
    // RFC 6840, section 5.8.
    if !query.authentic_data() && !query.edns.is_some_and(|edns| edns.dnssec_ok) {
        expected[3] &= !0x20;
    }
    expected[read.question.clone()].copy_from_slice(query.question());
    let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
    for record in read.records.iter().filter(|record| record.kind != raw::OPT) {
        let left = record.ttl.saturating_sub(age).to_be_bytes();
        expected[record.ttl_at..record.ttl_at + 4].copy_from_slice(&left);
    }
    assert!(to == expected, "changed on its way:\n{expected:02x?}\n{to:02x?}");
    assert!(raw::read(&to).is_some());
}

/// For a client that takes less, there are fewer records, and the hint to come by TCP.
fn cut(whole: &[u8], limit: usize) {
    let short = fit(whole, limit);
    if whole.len() <= limit {
        assert_eq!(&*short, whole);
        return;
    }
    assert!(short.len() <= limit, "{} bytes for a client that takes {limit}", short.len());
    assert_ne!(short[2] & 2, 0, "cut without a hint");
    assert_eq!((&short[..2], short[2] | 2, short[3]), (&whole[..2], whole[2] | 2, whole[3]));
    let (Some(few), Some(all)) = (raw::read(&short), raw::read(whole)) else { panic!("not a message: {short:02x?}") };
    assert_eq!(few.end, short.len());
    assert_eq!(short[few.question.clone()], whole[all.question.clone()]);
    let had_opt = all.records.iter().any(|r| r.kind == raw::OPT);
    assert_eq!(few.records.iter().filter(|r| r.section == 2 && r.kind == raw::OPT).count(), usize::from(had_opt));
    let answers = few.records.iter().filter(|r| r.section == 0);
    for (kept, same) in answers.zip(&all.records) {
        assert_eq!((&kept.owner, kept.kind, kept.class, kept.ttl), (&same.owner, same.kind, same.class, same.ttl));
        assert_eq!(short[kept.data.clone()], whole[same.data.clone()]);
    }
    assert!(few.records.iter().all(|r| r.section == 0 || r.kind == raw::OPT));
    // Data is not ours to look into: a name in there may borrow from the header, whose counts are others now.
    let borrows = whole[HEADER..].windows(2).any(|pair| pair[0] == 0xc0 && usize::from(pair[1]) < HEADER);
    if raw::hickory(whole).is_some() && !borrows {
        assert!(raw::hickory(&short).is_some(), "a message before, and none after");
    }
}

/// The cache, which lives as long as this process: what it gives is what it was given, and not for longer than it is true.
fn remembered(believed: &fuzz::Believed, query: &Query<'_>) {
    thread_local!(static KEPT: RefCell<(fuzz::Kept, Instant)> = RefCell::new((fuzz::Kept::default(), Instant::now())));
    KEPT.with_borrow_mut(|(kept, start)| {
        let now = *start;
        kept.put(query, believed, now);
        let Some(lifetime) = believed.lifetime() else { return };
        let last = lifetime - Duration::from_secs(1);
        for age in [Duration::ZERO, last / 2, last] {
            assert_eq!(kept.get(query, now + age), Some(believed.to(query, age)));
        }
        let (count, counted, fresh) = kept.weight();
        assert_eq!(counted, fresh, "the count has drifted");
        assert!(count <= MOST_KEPT.0 && counted <= MOST_KEPT.1, "{count} entries of {counted} bytes");
        assert_eq!(kept.get(query, now + lifetime), None, "true no more");
        kept.put(query, believed, now);
    });
}
