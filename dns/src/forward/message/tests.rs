use std::net::Ipv4Addr;

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query as HickoryQuery, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata},
    serialize::binary::BinEncodable,
};

use super::*;

fn asked(name: &str) -> Vec<u8> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(HickoryQuery::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message.to_bytes().unwrap()
}

fn answer(name: &str, ttls: &[u32]) -> Message {
    let mut message = Message::new(7, MessageType::Response, OpCode::Query);
    message.add_query(HickoryQuery::query(Name::from_ascii(name).unwrap(), RecordType::A));
    for ttl in ttls {
        message.add_answer(Record::from_rdata(Name::from_ascii(name).unwrap(), *ttl, RData::A(rdata::A(Ipv4Addr::new(192, 0, 2, 1)))));
    }
    message
}

fn soa(ttl: u32, minimum: u32) -> Record {
    let soa = rdata::SOA::new(Name::root(), Name::root(), 1, 1, 1, 1, minimum);
    Record::from_rdata(Name::root(), ttl, RData::SOA(soa))
}

fn lifetime(message: &Message) -> Option<u64> {
    Answer::read(message.to_bytes().unwrap(), &asked("a.example.")).unwrap().lifetime.map(|l| l.as_secs())
}

#[test]
fn answers_live_as_long_as_their_shortest_record_and_negative_ones_by_their_soa() {
    assert_eq!(lifetime(&answer("a.example.", &[60, 30])), Some(30));
    assert_eq!(lifetime(&answer("a.example.", &[0, 30])), None);
    assert_eq!(lifetime(&answer("a.example.", &[90_000])), Some(3600));
    assert_eq!(lifetime(&answer("a.example.", &[u32::MAX])), None, "a TTL with its highest bit set is 0 (RFC 2181)");
    assert_eq!(lifetime(&answer("a.example.", &[])), None, "without SOA, nothing says how long");
    for (code, ttl, minimum, expected) in [
        (ResponseCode::NXDomain, 100, 20, Some(20)),
        (ResponseCode::NXDomain, 10, 20, Some(10)),
        (ResponseCode::NoError, 7200, 7200, Some(300)),
        (ResponseCode::ServFail, 100, 20, None),
        (ResponseCode::Refused, 100, 20, None),
    ] {
        let mut message = answer("a.example.", &[]);
        message.metadata.response_code = code;
        message.add_authority(soa(ttl, minimum));
        assert_eq!(lifetime(&message), expected, "{code} {ttl} {minimum}");
    }
    let mut cut = answer("a.example.", &[60]);
    cut.metadata.truncation = true;
    assert_eq!(lifetime(&cut), None);
}

#[test]
fn only_a_whole_answer_to_what_was_asked_is_believed() {
    let sent = asked("a.example.");
    let good = answer("a.example.", &[60]).to_bytes().unwrap();
    assert!(Answer::read(good.clone(), &sent).is_some());
    assert!(Answer::read(answer("A.eXample.", &[60]).to_bytes().unwrap(), &sent).is_some(), "another case");
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    let end = good.len();
    for (what, bytes) in [
        ("another ID", with(1, 8)),
        ("a query", with(2, 0x01)),
        ("an answer to a NOTIFY", with(2, 0xa0)),
        ("two questions", with(5, 2)),
        ("another name", answer("b.example.", &[60]).to_bytes().unwrap()),
        ("another type", with(12 + 11 + 1, 28)),
        ("a record that is not there", with(7, 2)),
        ("an additional record that is not there", with(11, 1)),
        ("cut short", good[..end - 1].to_vec()),
        ("a header alone", good[..12].to_vec()),
        ("nothing", Vec::new()),
        ("data beyond the end", with(end - 5, 200)),
        ("a name that points at itself", with(12 + 11 + 4 + 1, 27)),
        ("a name that points forward", with(12 + 11 + 4 + 1, 40)),
    ] {
        assert!(Answer::read(bytes, &sent).is_none(), "{what}");
    }
}

#[test]
fn names_are_made_of_what_was_a_name_before_and_stays_as_it_is() {
    let sent = asked("a.example.");
    // Two records of type 0x0101 with nothing in them: the second one's owner is what is tried.
    let question = 12;
    let first = sent.len();
    let (first_ttl, second) = (first + 6, first + 14);
    let with_owner = |owner: &[u8], data: &[u8]| {
        let mut bytes = sent.clone();
        bytes[2] |= 0x80;
        bytes[7] = 2;
        for (owner, data) in [(&[0xc0, 12][..], &[1, b'x'][..]), (owner, data)] {
            bytes.extend(owner);
            bytes.extend([1, 1, 0, 1, 0, 0, 1, 44, 0, u8::try_from(data.len()).unwrap()]);
            bytes.extend(data);
        }
        bytes
    };
    let pointer = |to: usize| [0xc0, u8::try_from(to).unwrap()];
    let read = |bytes: Vec<u8>| Answer::read(bytes, &sent);
    let whole = with_owner(&pointer(question), &[]);
    assert_eq!(read(whole.clone()).unwrap().bytes, whole);
    assert!(read(with_owner(&pointer(first), &[])).is_some(), "a pointer to a pointer");
    assert!(read(with_owner(&pointer(question + 2), &[])).is_some(), "the end of a name");
    let long = |labels: usize| [1, b'y'].repeat(labels).into_iter().chain(pointer(question)).collect::<Vec<u8>>();
    // a.example. has eleven octets.
    assert!(read(with_owner(&long(122), &[])).is_some(), "255 octets");
    for (what, owner) in [
        ("the ID", pointer(0).to_vec()),
        ("another byte of the header", pointer(4).to_vec()),
        ("a TTL", pointer(first_ttl).to_vec()),
        ("a name that runs on into itself", pointer(second - 2).to_vec()),
        ("256 octets and more", long(123)),
    ] {
        assert!(read(with_owner(&owner, &[])).is_none(), "{what}");
    }
    let mut more = whole.clone();
    more.extend(b"of nobody");
    assert_eq!(read(more).unwrap().bytes, whole, "what follows the last record is not kept");
}

#[test]
fn of_two_soa_records_the_shorter_counts() {
    for ttls in [[20, 100], [100, 20]] {
        let mut message = answer("a.example.", &[]);
        message.metadata.response_code = ResponseCode::NXDomain;
        message.add_authorities(ttls.map(|ttl| soa(ttl, 3600)));
        assert_eq!(lifetime(&message), Some(20));
    }
}

#[test]
fn a_kept_answer_gets_older_and_takes_the_clients_id_and_case() {
    let answer = Answer::read(answer("a.example.", &[60, 30]).to_bytes().unwrap(), &asked("a.example.")).unwrap();
    let mut bytes = asked("A.EXAMPLE.");
    bytes[..2].copy_from_slice(&[9, 9]);
    let query = Query::parse(&bytes).unwrap();
    let told = Message::from_vec(&answer.to(&query, Duration::from_secs(20))).unwrap();
    assert_eq!(told.metadata.id, 0x0909);
    assert_eq!(told.queries[0].name().to_string(), "A.EXAMPLE.");
    assert_eq!(told.answers.iter().map(|r| r.ttl).collect::<Vec<_>>(), [40, 10]);
    let told = Message::from_vec(&answer.to(&query, Duration::from_secs(50))).unwrap();
    assert_eq!(told.answers[1].ttl, 0);
}

#[test]
fn ad_is_for_who_asked_for_it_and_is_never_made_up() {
    let asked_with = |ad: bool, dnssec_ok: Option<bool>| {
        let mut message = Message::from_vec(&asked("a.example.")).unwrap();
        message.metadata.authentic_data = ad;
        if let Some(dnssec_ok) = dnssec_ok {
            let mut edns = hickory_proto::op::Edns::new();
            edns.set_dnssec_ok(dnssec_ok);
            message.set_edns(edns);
        }
        message.to_bytes().unwrap()
    };
    let mut validated = answer("a.example.", &[60]);
    for (ad, dnssec_ok, is_told) in
        [(false, None, false), (false, Some(false), false), (true, None, true), (true, Some(false), true), (false, Some(true), true)]
    {
        let asked = asked_with(ad, dnssec_ok);
        let query = Query::parse(&asked).unwrap();
        let sent = question(&query, 7, true);
        assert_eq!(Message::from_vec(&sent).unwrap().metadata.authentic_data, ad, "the server is asked as we were");
        for says in [true, false] {
            validated.metadata.authentic_data = says;
            let answer = Answer::read(validated.to_bytes().unwrap(), &sent).unwrap();
            let told = Message::from_vec(&answer.to(&query, Duration::ZERO)).unwrap();
            assert_eq!(told.metadata.authentic_data, says && is_told, "{ad} {dnssec_ok:?} {says}");
        }
    }
}

#[test]
fn of_what_is_too_long_as_much_is_kept_as_fits() {
    let long = answer("a.example.", &[60; 100]).to_bytes().unwrap();
    assert!(long.len() > 512);
    assert_eq!(&*fit(&long, 4096), &long[..]);
    let short = fit(&long, 512);
    let message = Message::from_vec(&short).unwrap();
    assert!(message.metadata.truncation && short.len() <= 512);
    assert_eq!((message.queries.len(), message.answers.len()), (1, 30));
    let mut with_opt = answer("a.example.", &[60; 100]);
    with_opt.set_edns(hickory_proto::op::Edns::new());
    let short = fit(&with_opt.to_bytes().unwrap(), 512).into_owned();
    let message = Message::from_vec(&short).unwrap();
    assert!(short.len() <= 512 && message.edns.is_some());
    assert_eq!(message.answers.len(), 29);
}

proptest::proptest! {
    #[test]
    fn no_answer_is_too_odd(tail in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400), counts in proptest::array::uniform3(0u8..4)) {
        let sent = asked("a.example.");
        let mut bytes = sent.clone();
        bytes[2] |= 0x80;
        bytes[7] = counts[0];
        bytes[9] = counts[1];
        bytes[11] = counts[2];
        bytes.extend(tail);
        if let Some(answer) = Answer::read(bytes, &sent) {
            let query = Query::parse(&sent).unwrap();
            let _ = answer.to(&query, Duration::from_secs(3));
        }
        let _ = fit(&sent, 5);
    }
}
