use hickory_proto::{
    op::{Edns as HickoryEdns, Message, MessageType, OpCode, Query as HickoryQuery, ResponseCode},
    rr::{Name, RData, RecordType},
    serialize::binary::BinEncodable,
};

use super::*;

fn query(name: &str, kind: RecordType, edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(HickoryQuery::query(Name::from_ascii(name).unwrap(), kind));
    if let Some(size) = edns {
        let mut opt = HickoryEdns::new();
        opt.set_max_payload(size).set_dnssec_ok(true);
        message.set_edns(opt);
    }
    message.to_bytes().unwrap()
}

#[test]
fn a_query_is_read_as_hickory_wrote_it() {
    let bytes = query("WeB.Example.", RecordType::AAAA, Some(1400));
    let read = Query::parse(&bytes).unwrap();
    assert_eq!(read.name(), Some("web.example"));
    assert_eq!((read.kind, read.class, read.id()), (kind::AAAA, CLASS_IN, 0x1234));
    assert_eq!(read.edns, Some(Edns { size: 1400, version: 0, dnssec_ok: true }));
    assert_eq!(read.udp_limit(), 1400);
    assert!(read.recursion_desired());
}

#[test]
fn an_answer_is_read_by_hickory_as_it_was_meant() {
    let bytes = query("wEb.", RecordType::A, Some(1400));
    let parsed = Query::parse(&bytes).unwrap();
    let mut out = [0; UDP_LIMIT];
    let mut response = Response::new(&parsed, Code::NoError, true, 512, &mut out);
    assert!(response.a(Owner::Question, 5, Ipv4Addr::new(10, 0, 1, 2)));
    assert!(response.srv(5, 80, &["web.1.x", "net"]));
    assert!(response.ptr(5, &["web", "net"]));
    assert!(response.soa(5));
    assert!(response.a(Owner::Named(&["web.1.x", "net"]), 5, Ipv4Addr::new(10, 0, 1, 3)));
    let len = response.finish();
    let message = Message::from_vec(&out[..len]).unwrap();
    assert_eq!(message.metadata.id, 0x1234);
    assert!(message.metadata.authoritative && message.metadata.recursion_available && message.metadata.recursion_desired);
    assert!(!message.metadata.truncation);
    assert_eq!(message.metadata.response_code, ResponseCode::NoError);
    assert_eq!(message.queries[0].name().to_string(), "wEb.");
    assert_eq!(message.answers.len(), 3);
    assert_eq!(message.answers[0].name.to_string(), "wEb.");
    assert_eq!(message.answers[1].data.to_string(), "0 0 80 web.1.x.net.");
    assert_eq!(message.answers[2].data.to_string(), "web.net.");
    assert!(matches!(message.authorities[0].data, RData::SOA(_)));
    assert_eq!(message.additionals[0].name.to_string(), "web.1.x.net.");
    let edns = message.edns.unwrap();
    assert!(edns.flags().dnssec_ok);
}

#[test]
fn ours_is_never_said_to_be_validated() {
    let mut bytes = query("web.", RecordType::A, Some(1400));
    bytes[3] |= AD;
    let parsed = Query::parse(&bytes).unwrap();
    assert!(parsed.authentic_data());
    let mut out = [0; UDP_LIMIT];
    let mut response = Response::new(&parsed, Code::NoError, true, 512, &mut out);
    assert!(response.a(Owner::Question, 5, Ipv4Addr::new(10, 0, 1, 2)));
    let len = response.finish();
    assert!(!Message::from_vec(&out[..len]).unwrap().metadata.authentic_data);
    let len = refusal(&bytes, Code::Refused, &mut out);
    assert!(!Message::from_vec(&out[..len]).unwrap().metadata.authentic_data);
}

#[test]
fn what_does_not_fit_is_cut_and_said() {
    for edns in [None, Some(600)] {
        let bytes = query("tasks.web.", RecordType::A, edns);
        let parsed = Query::parse(&bytes).unwrap();
        let mut out = [0; UDP_LIMIT];
        let limit = parsed.udp_limit();
        let mut response = Response::new(&parsed, Code::NoError, true, limit, &mut out);
        for host in 0..60 {
            response.a(Owner::Question, 5, Ipv4Addr::new(10, 0, 1, host));
        }
        let len = response.finish();
        assert!(len <= limit && len > limit - 16 - OPT_LEN, "{len}");
        let message = Message::from_vec(&out[..len]).unwrap();
        assert!(message.metadata.truncation);
        assert_eq!(message.answers.len(), if edns.is_some() { 35 } else { 30 });
    }
}

#[test]
fn labels_and_names_have_their_limits() {
    let bytes = query("1.1.0.10.in-addr.arpa.", RecordType::PTR, None);
    let parsed = Query::parse(&bytes).unwrap();
    let mut out = [0; UDP_LIMIT];
    for (target, fits) in [
        ("a".repeat(63), true),
        ("a".repeat(64), false),
        (format!("{0}.{0}.{0}.{0}", "a".repeat(62)), true),
        (format!("{0}.{0}.{0}.{0}", "a".repeat(63)), false),
        ("a..b".to_owned(), false),
    ] {
        let mut response = Response::new(&parsed, Code::NoError, true, 2000, &mut out);
        assert_eq!(response.ptr(5, &[&target]), fits, "{target}");
    }
}

#[test]
fn odd_queries_get_the_code_that_the_rfcs_give_them() {
    let good = query("web.", RecordType::A, None);
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    let format = Unusable::Code(Code::FormErr);
    for (what, bytes, expected) in [
        ("a response", with(2, 0x80), Unusable::Silent),
        ("eleven bytes", good[..11].to_vec(), Unusable::Silent),
        ("an update", with(2, 0x28), Unusable::Code(Code::NotImp)),
        ("a notification", with(2, 0x20), Unusable::Code(Code::NotImp)),
        ("no question", with(5, 0), format),
        ("two questions", with(5, 2), format),
        ("an answer in a query", with(7, 1), format),
        ("a pointer for a name", with(12, 0xc0), format),
        ("a label of 64", with(12, 64), format),
        ("an extended label", with(12, 0x41), format),
        ("an additional record that is not there", with(11, 1), format),
        ("no type", good[..good.len() - 3].to_vec(), format),
    ] {
        assert_eq!(Query::parse(&bytes).unwrap_err(), expected, "{what}");
    }
    let mut long = good[..HEADER].to_vec();
    for _ in 0..4 {
        long.push(63);
        long.extend([b'a'; 63]);
    }
    long.extend([0, 0, 1, 0, 1]);
    assert_eq!(Query::parse(&long).unwrap_err(), format, "a name of 257 octets");
}

#[test]
fn a_label_with_a_dot_in_it_is_no_name_of_ours() {
    let mut bytes = query("web.", RecordType::A, None);
    bytes[14] = b'.';
    assert_eq!(Query::parse(&bytes).unwrap().name(), None);
}

proptest::proptest! {
    #[test]
    fn no_bytes_are_too_odd(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..600)) {
        if let Ok(query) = Query::parse(&bytes) {
            let mut out = [0; UDP_LIMIT];
            let mut response = Response::new(&query, Code::NoError, true, query.udp_limit(), &mut out);
            response.a(Owner::Question, 5, Ipv4Addr::LOCALHOST);
            let len = response.finish();
            proptest::prop_assert!(len >= HEADER);
            proptest::prop_assert_eq!(&out[HEADER..HEADER + query.question().len()], query.question());
        }
    }
}
