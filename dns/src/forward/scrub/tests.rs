use std::net::Ipv4Addr;

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query as HickoryQuery},
    rr::{Name, RData, Record as HickoryRecord, RecordType, rdata},
    serialize::binary::BinEncodable,
};

use super::*;

fn message() -> Message {
    let mut message = Message::new(7, MessageType::Response, OpCode::Query);
    message.add_query(HickoryQuery::query(Name::from_ascii("a.example.").unwrap(), RecordType::A));
    message
}

fn record(owner: &str, data: RData) -> HickoryRecord {
    HickoryRecord::from_rdata(Name::from_ascii(owner).unwrap(), 60, data)
}

fn address(owner: &str, host: u8) -> HickoryRecord {
    record(owner, RData::A(rdata::A(Ipv4Addr::new(192, 0, 2, host))))
}

fn alias(owner: &str, target: &str) -> HickoryRecord {
    record(owner, RData::CNAME(rdata::CNAME(Name::from_ascii(target).unwrap())))
}

fn soa(owner: &str) -> HickoryRecord {
    let name = |text: &str| Name::from_ascii(text).unwrap();
    record(owner, RData::SOA(rdata::SOA::new(name("ns.poison.example."), name("admin.poison.example."), 1, 1, 1, 1, 30)))
}

fn scrubbed(message: &Message) -> Message {
    let bytes = message.to_bytes().unwrap();
    let end = skip_name(&bytes, HEADER).unwrap() + 4;
    Message::from_vec(&scrub(bytes, end).unwrap()).unwrap()
}

fn owners(message: &Message) -> Vec<String> {
    message.answers.iter().map(|r| format!("{} {}", r.name, r.data)).collect()
}

#[test]
fn aliases_are_followed_in_any_order_and_whole_answers_stay_as_they_are() {
    let mut answer = message();
    let links = [address("c.example.", 1), alias("B.example.", "c.example."), alias("A.example.", "b.EXAMPLE."), address("c.example.", 2)];
    links.into_iter().for_each(|r| _ = answer.add_answer(r));
    answer.add_authority(soa("example."));
    let before = answer.to_bytes().unwrap();
    let end = skip_name(&before, HEADER).unwrap() + 4;
    assert_eq!(scrub(before.clone(), end).unwrap(), before);
}

#[test]
fn n13_answers_for_other_names_are_left_out_and_what_stays_is_whole() {
    let mut answer = message();
    // The one that goes is what the others' names point to.
    for record in [
        address("mail.poison.example.", 66),
        alias("a.example.", "b.poison.example."),
        address("b.poison.example.", 1),
        address("poison.example.", 66),
        alias("other.example.", "a.example."),
        address("example.", 66),
        address("xa.example.", 66),
        address("b.a.example.", 66),
    ] {
        answer.add_answer(record);
    }
    answer.add_authority(soa("poison.example."));
    let scrubbed = scrubbed(&answer);
    assert_eq!(owners(&scrubbed), ["a.example. b.poison.example.", "b.poison.example. 192.0.2.1"]);
    assert_eq!(scrubbed.authorities, answer.authorities);
    let mut nothing_else = message();
    nothing_else.add_answer(address("poison.example.", 66));
    assert!(super::tests::scrubbed(&nothing_else).answers.is_empty());
}

#[test]
fn n13_of_additional_records_opt_alone_stays() {
    let mut answer = message();
    answer.add_answer(address("a.example.", 1));
    answer.add_additional(address("www.bank.example.", 66));
    let mut edns = Edns::new();
    edns.set_max_payload(1232).set_dnssec_ok(true);
    answer.set_edns(edns);
    let scrubbed = scrubbed(&answer);
    assert_eq!((scrubbed.answers.len(), scrubbed.additionals.len()), (1, 0));
    assert_eq!(scrubbed.edns, answer.edns);
}

#[test]
fn a_name_above_may_lead_elsewhere_as_a_whole() {
    let mut answer = message();
    let above = hickory_proto::rr::rdata::NULL::with(Name::from_ascii("example.org.").unwrap().to_bytes().unwrap());
    let dname = |owner: &str| record(owner, RData::Unknown { code: RecordType::Unknown(DNAME), rdata: above.clone() });
    for record in
        [dname("example."), dname("a.example.org."), dname("le."), alias("a.example.", "a.example.org."), address("a.example.org.", 1)]
    {
        answer.add_answer(record);
    }
    let scrubbed = scrubbed(&answer);
    assert_eq!(
        scrubbed.answers.iter().map(|r| r.name.to_string()).collect::<Vec<_>>(),
        ["example.", "a.example.org.", "a.example.", "a.example.org."]
    );
}

#[test]
fn a_chain_without_an_end_ends() {
    let mut answer = message();
    answer.add_answer(alias("a.example.", "0.example."));
    for link in (0..400).rev() {
        answer.add_answer(alias(&format!("{link}.example."), &format!("{}.example.", link + 1)));
    }
    assert!(scrubbed(&answer).answers.len() <= MOST_NAMES);
    let mut circle = message();
    circle.add_answer(alias("a.example.", "b.example."));
    circle.add_answer(alias("b.example.", "a.example."));
    assert_eq!(scrubbed(&circle).answers.len(), 2);
}

proptest::proptest! {
    #[test]
    fn no_message_is_too_odd(tail in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300), counts in proptest::array::uniform3(0u8..4)) {
        let mut bytes = message().to_bytes().unwrap();
        let end = bytes.len();
        (bytes[7], bytes[9], bytes[11]) = (counts[0], counts[1], counts[2]);
        bytes.extend(tail);
        if let Some(scrubbed) = scrub(bytes, end) {
            let again = scrub(scrubbed.clone(), end);
            proptest::prop_assert_eq!(again, Some(scrubbed));
        }
    }
}
