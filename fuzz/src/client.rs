//! A client's datagram.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{RData, RecordType},
};
use swarmesh_dns::{
    Answer, Asker, Compat, Outcome, Random, Settings,
    forward::{Forwarder, Origin, Route, Sockets, fit, fuzz},
    respond,
    wire::{Code, Query, UDP_LIMIT, Unusable, refusal},
};

use crate::{names, raw};

/// As the server's: a longer datagram was cut by the kernel, and is answered like an empty one.
const LONGEST_QUERY: usize = 2048;
const HEADER: usize = 12;
/// What nothing writes by chance, for bytes that are not to be touched.
const UNTOUCHED: u8 = 0xa5;
/// Octets of an OPT record without options.
const OPT_LEN: usize = 11;

pub fn check(datagram: &[u8]) {
    thread_local!(static ASKER: Asker = names::asker());
    if datagram.len() > LONGEST_QUERY {
        return;
    }
    ASKER.with(|asker| {
        for compat in [Compat::Swarmesh, Compat::Docker] {
            check_as(datagram, asker, Settings { compat, ..Settings::default() });
        }
    });
}

fn check_as(datagram: &[u8], asker: &Asker, settings: Settings) {
    let limit = limit_of(datagram);
    let (by_udp, udp) = ask(datagram, asker, settings, UDP_LIMIT);
    let (by_tcp, tcp) = ask(datagram, asker, settings, usize::from(u16::MAX));
    match (by_udp, by_tcp) {
        (Outcome::Ignored, Outcome::Ignored) => assert!(datagram.len() < HEADER || datagram[2] & 0x80 != 0, "a query is not answered"),
        (Outcome::Forward, Outcome::Forward) => forwarded(datagram, settings),
        (Outcome::Answered(len, answer), Outcome::Answered(whole, same)) => {
            assert_eq!(answer, same);
            assert!(len <= limit, "{len} bytes for a client that takes {limit}");
            assert!(udp[limit.min(UDP_LIMIT)..].iter().all(|b| *b == UNTOUCHED), "written beyond the limit");
            let (udp, tcp) = (&udp[..len], &tcp[..whole]);
            echoes(datagram, udp);
            echoes(datagram, tcp);
            assert_eq!(tcp[2] & 2, 0, "cut, and there is no other way to come");
            if Query::parse(datagram).is_ok() {
                said(datagram, udp, tcp, answer, settings);
            } else {
                assert!(matches!(answer, Answer::Error(_)) && len == HEADER && udp == tcp);
            }
        }
        (udp, tcp) => panic!("{udp:?} by UDP, {tcp:?} by TCP"),
    }
    if let Err(Unusable::Code(code)) = Query::parse(datagram) {
        refused_for_a_reason(datagram, code);
    }
    let mut room = [UNTOUCHED; UDP_LIMIT];
    let len = refusal(datagram, Code::Refused, &mut room);
    if datagram.len() >= HEADER {
        echoes(datagram, &room[..len]);
    }
}

fn ask(datagram: &[u8], asker: &Asker, settings: Settings, room: usize) -> (Outcome, Vec<u8>) {
    let mut out = vec![UNTOUCHED; room];
    let outcome = respond(datagram, asker, settings, room == UDP_LIMIT, &mut Random::new(3), &mut out);
    (outcome, out)
}

/// What a client says that it takes (RFC 6891, section 6.2.3).
fn limit_of(datagram: &[u8]) -> usize {
    let Some(query) = raw::read(datagram) else { return UDP_LIMIT };
    let offered = query.records.iter().find(|r| r.section == 2 && r.kind == raw::OPT).map_or(0, |opt| usize::from(opt.class));
    offered.clamp(512, UDP_LIMIT)
}

/// What every answer has of its question, and nobody else's.
fn echoes(datagram: &[u8], reply: &[u8]) {
    assert!(reply.len() >= HEADER, "shorter than a header");
    assert_eq!(reply[..2], datagram[..2], "another ID");
    assert_ne!(reply[2] & 0x80, 0, "no response");
    assert_eq!(reply[2] & 0x78, datagram[2] & 0x78, "another opcode");
    assert_eq!(reply[2] & 1, datagram[2] & 1, "RD is copied");
    assert!(raw::hickory(reply).is_some(), "not a message: {reply:02x?}");
    if reply.len() == HEADER {
        assert_eq!(reply[4..], [0; 8], "counts without records");
        return;
    }
    let Some(read) = raw::read(reply) else { panic!("not a message with one question: {reply:02x?}") };
    assert_eq!(read.end, reply.len(), "bytes behind the last record");
    assert_eq!(datagram.get(read.question.clone()), reply.get(read.question), "another question");
    assert_eq!(reply[3] & 0x10, datagram[3] & 0x10, "CD is copied (RFC 4035, section 3.2.2)");
}

/// An answer of ours: what is in it, and that the shorter one is the beginning of the whole.
fn said(datagram: &[u8], udp: &[u8], tcp: &[u8], answer: Answer, settings: Settings) {
    let (Some(short), Some(whole)) = (raw::hickory(udp), raw::hickory(tcp)) else { panic!("{udp:02x?}") };
    if short.metadata.truncation {
        assert!(udp.len() < tcp.len(), "the hint leads to nothing more");
        assert!(whole.answers.starts_with(&short.answers) && whole.authorities.starts_with(&short.authorities));
    } else {
        assert_eq!((&short.answers, &short.authorities), (&whole.answers, &whole.authorities), "cut without a hint");
        // These are a courtesy, and need no hint (RFC 2181, section 9).
        assert!(whole.additionals.starts_with(&short.additionals) || short.additionals.len() < whole.additionals.len());
    }
    assert!(matches!(
        (answer, whole.metadata.response_code, whole.answers.is_empty()),
        (Answer::Records, ResponseCode::NoError, false)
            | (Answer::NoData, ResponseCode::NoError, true)
            | (Answer::NoName, ResponseCode::NXDomain, true)
            | (Answer::Error(_), _, true)
    ));
    if matches!(answer, Answer::NoData | Answer::NoName) && settings.compat == Compat::Swarmesh {
        assert!(whole.authorities.iter().any(|r| r.record_type() == RecordType::SOA), "nothing says how long it is true");
    }
    let asked = whole.queries[0].name();
    for record in &whole.answers {
        assert!(record.name.eq_case(asked), "{} is answered with {}", asked, record.name);
    }
    let Some(query) = raw::read(datagram) else { return };
    let opt = query.records.iter().find(|r| r.section == 2 && r.kind == raw::OPT);
    assert_eq!(opt.is_some(), whole.edns.is_some() && short.edns.is_some(), "EDNS is answered with EDNS (RFC 6891, section 7)");
    if let (Some(opt), Some(edns)) = (opt, &short.edns) {
        assert_eq!(opt.ttl & 0x8000 != 0, edns.flags().dnssec_ok, "DO is copied (RFC 3225)");
        assert_eq!(edns.version(), 0);
        // BADVERS, whose other bits are 0.
        assert_eq!(opt.ttl >> 16 & 0xff > 0, edns.rcode_high() == 1);
        if opt.ttl >> 16 & 0xff > 0 {
            return;
        }
    }
    addresses(&whole, settings);
}

/// Names that are known here have all of their addresses, and only those.
fn addresses(whole: &Message, settings: Settings) {
    let Some((expected, kind)) = known(&whole.queries[0]) else { return };
    let wanted: BTreeSet<IpAddr> = match kind {
        RecordType::A => expected.into_iter().filter(IpAddr::is_ipv4).collect(),
        RecordType::AAAA => expected.into_iter().filter(IpAddr::is_ipv6).collect(),
        RecordType::ANY if settings.compat == Compat::Swarmesh => expected.into_iter().collect(),
        _ => BTreeSet::new(),
    };
    let got = whole.answers.iter().filter_map(|record| match &record.data {
        RData::A(a) => Some(IpAddr::from(a.0)),
        RData::AAAA(a) => Some(a.0.into()),
        _ => None,
    });
    assert_eq!(got.collect::<BTreeSet<_>>(), wanted, "{:?}", whole.queries);
    assert_eq!(whole.answers.len(), wanted.len(), "an address is said twice, or there is something else");
}

/// The addresses that the name has, if it is one that is known by heart, and asked for in the class that everybody uses.
fn known(query: &hickory_proto::op::Query) -> Option<(Vec<IpAddr>, RecordType)> {
    let name = query.name().to_ascii().to_ascii_lowercase();
    let is_internet = u16::from(query.query_class()) == 1;
    let expected = names::addresses(name.strip_suffix('.').unwrap_or(&name)).filter(|_| is_internet)?;
    Some((expected, query.query_type()))
}

/// A question for somebody else: it is none of ours, and what is asked upstream is the same question.
fn forwarded(datagram: &[u8], settings: Settings) {
    let Ok(query) = Query::parse(datagram) else { panic!("forwarded, and cannot be read") };
    if settings.compat == Compat::Swarmesh
        && let Some(message) = raw::hickory(datagram)
    {
        assert!(known(&message.queries[0]).is_none(), "a name of ours is asked upstream: {:?}", message.queries);
    }
    for edns in [true, false] {
        let sent = fuzz::question(&query, 0x1234, edns);
        let Some(read) = raw::read(&sent) else { panic!("not a question: {sent:02x?}") };
        assert!(raw::hickory(&sent).is_some() && read.end == sent.len());
        assert_eq!(sent[..2], [0x12, 0x34]);
        assert_eq!((sent[2], sent[3]), (datagram[2] & 1, datagram[3] & 0x30), "RD, AD and CD are the client's");
        assert_eq!(&sent[read.question.clone()], query.question());
        // Cookies, padding and the client's subnet stay here.
        assert!(sent.len() <= read.question.end + OPT_LEN);
        assert_eq!(read.records.len(), usize::from(edns && query.edns.is_some()));
        let Ok(again) = Query::parse(&sent) else { panic!("we would not take it ourselves: {sent:02x?}") };
        assert_eq!((again.name(), again.kind, again.class), (query.name(), query.kind, query.class));
    }
    let nothing = unanswered(&query);
    echoes(datagram, &nothing);
    assert_eq!(nothing[3] & 15, Code::ServFail.number());
    assert!(fit(&nothing, query.udp_limit()).len() <= query.udp_limit());
}

/// What is said when there is nobody to ask.
fn unanswered(query: &Query<'_>) -> Vec<u8> {
    #[derive(Debug)]
    struct NoSockets;
    impl Sockets for NoSockets {
        fn udp(&self, _: &Origin, _: std::net::SocketAddr) -> std::io::Result<std::net::UdpSocket> {
            panic!("there is nobody to ask");
        }
        fn tcp(&self, _: &Origin, _: std::net::SocketAddr) -> std::io::Result<std::net::TcpStream> {
            panic!("there is nobody to ask");
        }
    }
    let forwarder = Rc::new(Forwarder::new(Arc::new(NoSockets), Default::default(), Arc::default(), Arc::default()));
    let route = Route { asker: 1, upstreams: Arc::new([]), inner: None };
    let resolving = pin!(forwarder.resolve(query, &route));
    match resolving.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => panic!("waits for nobody"),
    }
}

/// What a library takes for a plain query is answered, and not turned away.
fn refused_for_a_reason(datagram: &[u8], code: Code) {
    if code == Code::NotImp {
        assert_ne!(datagram[2] & 0x78, 0);
        return;
    }
    let (Some(message), Some(read)) = (raw::hickory(datagram), raw::read(datagram)) else { return };
    let is_plain = read.records.iter().all(|record| record.section == 2);
    // A name that points into the header is one for hickory.
    let is_pointed = read.name_len + 4 != read.question.len();
    let odd_opt = read.records.iter().any(|r| r.kind == raw::OPT && r.owner != [0]);
    assert!(!is_plain || is_pointed || odd_opt, "{code:?} for {:?}", message.queries);
}
