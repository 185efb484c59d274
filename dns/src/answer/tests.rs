//! The rows of the behaviour table that need no server.

use std::{collections::HashSet, sync::Arc};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query as HickoryQuery, ResponseCode},
    rr::{DNSClass, Name, RData, RecordType},
    serialize::binary::BinEncodable,
};

use super::*;
use crate::{Change, Host, Membership, Record, ServicePort, ZoneCell};

fn zone(changes: &[Change]) -> Arc<ZoneCell> {
    let zone = ZoneCell::default();
    zone.apply(changes);
    Arc::new(zone)
}

fn names(owner: u64, names: &[&str], addresses: &[&str]) -> Change {
    let record = Arc::new(Record::of(addresses.iter().map(|a| a.parse::<IpAddr>().unwrap())));
    Change {
        owner,
        names: names.iter().map(|n| ((*n).into(), Arc::clone(&record))).collect(),
        addresses: addresses.iter().map(|a| (a.parse().unwrap(), names[0].into())).collect(),
        ..Change::default()
    }
}

fn membership(title: &str, zone: Arc<ZoneCell>) -> Membership {
    Membership { network: title.to_lowercase().into(), title: title.into(), zone, links: Vec::new() }
}

fn asker(networks: Vec<Membership>) -> Asker {
    Asker { networks, ..Asker::default() }
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(HickoryQuery::query(Name::from_ascii(name).unwrap(), kind));
    message
}

#[derive(Debug, PartialEq)]
enum Said {
    Message(Box<Message>),
    Forward,
    Ignored,
}

impl Said {
    fn message(self) -> Message {
        match self {
            Self::Message(message) => *message,
            other => panic!("{other:?}"),
        }
    }
}

fn ask_as(asker: &Asker, message: &Message, settings: Settings, is_udp: bool) -> Said {
    let mut out = vec![0; if is_udp { wire::UDP_LIMIT } else { 65535 }];
    match respond(&message.to_bytes().unwrap(), asker, settings, is_udp, &mut Random::new(3), &mut out) {
        Outcome::Answered(len, _) => Said::Message(Box::new(Message::from_vec(&out[..len]).unwrap())),
        Outcome::Forward => Said::Forward,
        Outcome::Ignored => Said::Ignored,
    }
}

fn ask(asker: &Asker, name: &str, kind: RecordType) -> Said {
    ask_as(asker, &query(name, kind), Settings::default(), true)
}

fn ask_docker(asker: &Asker, name: &str, kind: RecordType) -> Said {
    ask_as(asker, &query(name, kind), Settings { compat: Compat::Docker, ..Settings::default() }, true)
}

fn addresses(message: &Message) -> HashSet<String> {
    message.answers.iter().map(|r| r.data.to_string()).collect()
}

fn set(addresses: &[&str]) -> HashSet<String> {
    addresses.iter().map(|a| (*a).to_owned()).collect()
}

fn is_no_data(message: &Message) -> bool {
    message.metadata.response_code == ResponseCode::NoError
        && message.answers.is_empty()
        && message.authorities.iter().any(|r| matches!(r.data, RData::SOA(_)))
}

#[test]
fn e1_a_name_in_any_case_and_with_its_last_dot() {
    let asker = asker(vec![membership("net", zone(&[names(1, &["name1"], &["192.168.0.1"])]))]);
    let answer = ask(&asker, "NaMe1.", RecordType::A).message();
    assert_eq!(addresses(&answer), set(&["192.168.0.1"]));
    assert_eq!(answer.answers[0].name.to_string(), "NaMe1.", "0x20: the case comes back");
    assert_eq!(answer.answers[0].ttl, 5);
    assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
    let docker = ask_docker(&asker, "name1.", RecordType::A).message();
    assert!(!docker.metadata.authoritative);
    assert_eq!(docker.answers[0].ttl, 600);
}

#[test]
fn e2_e3_types_that_a_name_does_not_have() {
    let asker = asker(vec![membership("net", zone(&[names(1, &["name1"], &["192.168.0.1"])]))]);
    for kind in [
        RecordType::MX,
        RecordType::AAAA,
        RecordType::TXT,
        RecordType::HTTPS,
        RecordType::SVCB,
        RecordType::NS,
        RecordType::SOA,
        RecordType::CNAME,
        RecordType::CAA,
    ] {
        assert!(is_no_data(&ask(&asker, "name1.", kind).message()), "{kind}");
        let docker = ask_docker(&asker, "name1.", kind);
        match kind {
            RecordType::MX | RecordType::AAAA => {
                let docker = docker.message();
                assert!(docker.answers.is_empty() && docker.authorities.is_empty());
                assert_eq!(docker.metadata.response_code, ResponseCode::NoError);
            }
            _ => assert_eq!(docker, Said::Forward, "{kind}"),
        }
    }
    assert_eq!(ask(&asker, "other.", RecordType::MX), Said::Forward);
    assert_eq!(addresses(&ask(&asker, "name1.", RecordType::ANY).message()), set(&["192.168.0.1"]));
}

#[test]
fn e4_families_come_and_go() {
    for addresses_of in [&["192.168.0.1"][..], &["fd00::1"], &["192.168.0.1", "fd00::1"]] {
        let change = names(1, &["web", "alias"], addresses_of);
        let cell = zone(std::slice::from_ref(&change));
        let asker = asker(vec![membership("net", Arc::clone(&cell))]);
        for name in ["web.", "alias."] {
            let v4 = addresses_of.iter().filter(|a| !a.contains(':')).copied().collect::<Vec<_>>();
            let v6 = addresses_of.iter().filter(|a| a.contains(':')).copied().collect::<Vec<_>>();
            assert_eq!(addresses(&ask(&asker, name, RecordType::A).message()), set(&v4));
            assert_eq!(addresses(&ask(&asker, name, RecordType::AAAA).message()), set(&v6));
        }
        cell.apply(&[Change { owner: 1, gone: vec!["web".into(), "alias".into()], ..Change::default() }]);
        assert_eq!(ask(&asker, "web.", RecordType::A), Said::Forward);
        assert_eq!(ask(&asker, "alias.", RecordType::AAAA), Said::Forward);
    }
}

#[test]
fn e9_a_name_that_dns_cannot_write_fails_instead_of_lying() {
    let long = "a".repeat(64);
    let asker = asker(vec![membership("net", zone(&[names(1, &[&long], &["10.0.0.4"])]))]);
    let answer = ask(&asker, "4.0.0.10.in-addr.arpa.", RecordType::PTR).message();
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}

#[test]
fn e17_reverse_names_are_the_first_name_and_the_network() {
    let asker =
        asker(vec![membership("Net.One", zone(&[names(1, &["foobar", "myctr", "0123456789ab", "baz"], &["10.0.0.4", "fd00::4"])]))]);
    for name in ["4.0.0.10.in-addr.arpa.", "4.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa."] {
        let answer = ask(&asker, name, RecordType::PTR).message();
        assert_eq!(addresses(&answer), set(&["foobar.Net.One."]), "{name}");
        assert!(is_no_data(&ask(&asker, name, RecordType::TXT).message()));
    }
    assert_eq!(ask(&asker, "5.0.0.10.in-addr.arpa.", RecordType::PTR), Said::Forward);
    for name in ["foobar.", "myctr.", "0123456789ab.", "baz.", "baz.net.one.", "BAZ.Net.ONE."] {
        assert_eq!(addresses(&ask(&asker, name, RecordType::A).message()), set(&["10.0.0.4"]), "{name}");
    }
}

#[test]
fn e20_e21_networks_in_their_order_and_by_name() {
    let first = membership("net1", zone(&[names(1, &["svc"], &["10.0.1.2"]), names(2, &["tasks.svc"], &["10.0.1.3", "10.0.1.4"])]));
    let second = membership("gw.local", zone(&[names(3, &["svc"], &["172.18.0.2"]), names(4, &["with.dots"], &["172.18.0.3"])]));
    let asker = asker(vec![first, second]);
    for (name, expected) in [
        ("svc.", &["10.0.1.2"][..]),
        ("svc.net1.", &["10.0.1.2"]),
        ("tasks.svc.net1.", &["10.0.1.3", "10.0.1.4"]),
        ("svc.gw.local.", &["172.18.0.2"]),
        ("with.dots.", &["172.18.0.3"]),
        ("with.dots.gw.local.", &["172.18.0.3"]),
    ] {
        assert_eq!(addresses(&ask(&asker, name, RecordType::A).message()), set(expected), "{name}");
    }
    for name in ["svc.net2.", "svc.local.", "with.dots.net1.", "net1.", "svc.net1.example."] {
        assert_eq!(ask(&asker, name, RecordType::A), Said::Forward, "{name}");
    }
}

#[test]
fn e22_all_tasks_in_an_order_that_varies() {
    let asker = asker(vec![membership("net", zone(&[names(1, &["tasks.svc"], &["10.0.0.1", "10.0.0.2", "10.0.0.3"])]))]);
    let bytes = query("tasks.svc.", RecordType::A).to_bytes().unwrap();
    let mut random = Random::new(1);
    let mut firsts = std::collections::BTreeMap::<String, u32>::new();
    for _ in 0..600 {
        let mut out = [0; 512];
        let Outcome::Answered(len, Answer::Records) = respond(&bytes, &asker, Settings::default(), true, &mut random, &mut out) else {
            panic!()
        };
        let answer = Message::from_vec(&out[..len]).unwrap();
        assert_eq!(answer.answers.len(), 3);
        *firsts.entry(answer.answers[0].data.to_string()).or_default() += 1;
    }
    assert!(firsts.len() == 3 && firsts.values().all(|n| (140..260).contains(n)), "{firsts:?}");
}

#[test]
fn e23_sixty_tasks_are_cut_for_plain_udp_and_whole_for_others() {
    let all: Vec<String> = (1..=60).map(|n| format!("10.0.0.{n}")).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let asker = asker(vec![membership("net", zone(&[names(1, &["tasks.svc"], &all)]))]);
    let plain = query("tasks.svc.", RecordType::A);
    let answer = ask_as(&asker, &plain, Settings::default(), true).message();
    assert!(answer.metadata.truncation && answer.answers.len() < 60);
    let answer = ask_as(&asker, &plain, Settings::default(), false).message();
    assert!(!answer.metadata.truncation);
    assert_eq!(addresses(&answer), set(&all));
    let mut extended = plain;
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    extended.set_edns(edns);
    let answer = ask_as(&asker, &extended, Settings::default(), true).message();
    assert_eq!(addresses(&answer), set(&all));
    assert_eq!(answer.edns.unwrap().max_payload(), 4096);
}

#[test]
fn e24_a_service_without_tasks_is_ours_and_empty() {
    let asker = asker(vec![membership("net", zone(&[names(1, &["svc"], &[])]))].into_iter().collect());
    assert!(is_no_data(&ask(&asker, "svc.", RecordType::A).message()));
    assert_eq!(ask_docker(&asker, "svc.", RecordType::A), Said::Forward);
}

#[test]
fn e18_addresses_of_two_owners_are_merged_and_each_is_said_once() {
    let asker = asker(vec![membership(
        "net",
        zone(&[names(1, &["web"], &["10.0.0.1", "10.0.0.2"]), names(2, &["web"], &["10.0.0.2", "10.0.0.3"])]),
    )]);
    let answer = ask(&asker, "web.", RecordType::A).message();
    assert_eq!(answer.answers.len(), 3);
    assert_eq!(addresses(&answer), set(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]));
}

#[test]
fn links_are_this_askers_alone_and_come_first() {
    let cell = zone(&[names(1, &["db"], &["10.0.0.1"]), names(2, &["db2"], &["10.0.0.2"])]);
    let mut linked = membership("net", Arc::clone(&cell));
    linked.links = vec![("db".into(), "db2".into()), ("gone".into(), "nobody".into())];
    let asker = asker(vec![linked]);
    assert_eq!(addresses(&ask(&asker, "db.", RecordType::A).message()), set(&["10.0.0.2"]));
    assert_eq!(addresses(&ask(&asker, "db.net.", RecordType::A).message()), set(&["10.0.0.2"]));
    assert_eq!(ask(&asker, "gone.", RecordType::A), Said::Forward);
}

fn with_services() -> Asker {
    let ports = [("http", "tcp", 8080), ("", "tcp", 9000), ("dns", "udp", 53)];
    let ports: Box<[ServicePort]> =
        ports.iter().map(|(name, protocol, port)| ServicePort { name: (*name).into(), protocol, port: *port }).collect();
    let record = |address: &[&str], hosts: &[(&str, &str)]| {
        let hosts = (!hosts.is_empty())
            .then(|| hosts.iter().map(|(name, address)| Host { name: (*name).into(), address: address.parse().unwrap() }).collect());
        let mut record = Record::of(address.iter().map(|a| a.parse::<IpAddr>().unwrap()));
        record.services = Some(Arc::new(Services { ports: ports.clone(), hosts }));
        Arc::new(record)
    };
    let hosts = [("web.1.aaa", "10.0.0.3"), ("web.2.bbb", "10.0.0.4")];
    let change = Change {
        owner: 1,
        names: vec![("web".into(), record(&["10.0.0.2"], &[])), ("tasks.web".into(), record(&["10.0.0.3", "10.0.0.4"], &hosts))],
        ..Change::default()
    };
    asker(vec![membership("net", zone(&[change]))])
}

#[test]
fn services_are_found_by_port_name_number_and_protocol() {
    let asker = with_services();
    for (name, expected) in [
        ("_http._tcp.web.", &["0 0 8080 web.net."][..]),
        ("_HTTP._TCP.Web.", &["0 0 8080 web.net."]),
        ("_http._tcp.web.net.", &["0 0 8080 web.net."]),
        ("_9000._tcp.web.", &["0 0 9000 web.net."]),
        ("_tcp.web.", &["0 0 8080 web.net.", "0 0 9000 web.net."]),
        ("_udp.web.", &["0 0 53 web.net."]),
        ("_http._tcp.tasks.web.", &["0 0 8080 web.1.aaa.net.", "0 0 8080 web.2.bbb.net."]),
        ("_udp.tasks.web.", &["0 0 53 web.1.aaa.net.", "0 0 53 web.2.bbb.net."]),
    ] {
        let answer = ask(&asker, name, RecordType::SRV).message();
        assert_eq!(addresses(&answer), set(expected), "{name}");
        assert!(!answer.additionals.is_empty(), "{name}: with addresses");
        assert!(is_no_data(&ask(&asker, name, RecordType::A).message()), "{name}");
    }
    for name in ["_ftp._tcp.web.", "_http._udp.web.", "_sctp.web."] {
        let answer = ask(&asker, name, RecordType::SRV).message();
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain, "{name}");
    }
    assert_eq!(ask(&asker, "_http._tcp.example.org.", RecordType::SRV), Said::Forward);
    assert_eq!(ask_docker(&asker, "_http._tcp.web.", RecordType::SRV), Said::Forward);
}

#[test]
fn other_classes_and_versions_are_told_so() {
    let asker = with_services();
    let mut chaos = query("version.bind.", RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(ask_as(&asker, &chaos, Settings::default(), true).message().metadata.response_code, ResponseCode::Refused);
    let mut future = query("web.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_version(1).set_max_payload(1232);
    future.set_edns(edns);
    let answer = ask_as(&asker, &future, Settings::default(), true).message();
    // BADVERS, which shares its number with BADSIG.
    assert_eq!(u16::from(answer.metadata.response_code), 16);
    assert!(answer.answers.is_empty());
}

proptest::proptest! {
    #[test]
    fn whatever_is_asked_the_answer_is_a_message_within_its_limit(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
        let asker = with_services();
        let mut out = [0; wire::UDP_LIMIT];
        if let Outcome::Answered(len, _) = respond(&bytes, &asker, Settings::default(), true, &mut Random::new(5), &mut out) {
            proptest::prop_assert!(Message::from_vec(&out[..len]).is_ok());
        }
    }
}
