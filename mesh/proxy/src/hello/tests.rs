use std::{sync::Arc, time::Duration};

use proptest::{collection::vec, prelude::*};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tokio::io::AsyncWriteExt;

use super::*;

const LIMITS: HelloLimits = HelloLimits { message: 1 << 14, records: 64 };

/// What rustls says for this name: a post-quantum hello, which is longer than a packet.
fn real(name: &str, alpn: &[&str]) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let mut connection = ClientConnection::new(Arc::new(config), name.to_owned().try_into().unwrap()).unwrap();
    let mut out = Vec::new();
    connection.write_tls(&mut out).unwrap();
    out
}

/// The same message in records of these lengths, and what is left over in one.
fn in_records(hello: &[u8], lengths: &[usize]) -> Vec<u8> {
    let mut message = &hello[RECORD_HEADER..];
    let mut out = Vec::new();
    for length in lengths.iter().copied().chain([usize::MAX]) {
        let (now, later) = message.split_at(length.min(message.len()));
        if !now.is_empty() {
            out.extend(record(now));
        }
        message = later;
    }
    out
}

fn record(payload: &[u8]) -> Vec<u8> {
    [&[HANDSHAKE, 3, 1][..], &(payload.len() as u16).to_be_bytes(), payload].concat()
}

fn long(payload: &[u8]) -> Vec<u8> {
    [&(payload.len() as u16).to_be_bytes()[..], payload].concat()
}

fn short(payload: &[u8]) -> Vec<u8> {
    [&[payload.len() as u8], payload].concat()
}

/// A message of these parts, each with its length.
fn message(session: &[u8], suites: &[u8], compression: &[u8], extensions: Option<&[u8]>) -> Vec<u8> {
    let mut body = [&[3, 3][..], &[7; 32], &short(session), &long(suites), &short(compression)].concat();
    if let Some(extensions) = extensions {
        body.extend(long(extensions));
    }
    [&[CLIENT_HELLO, 0][..], &(body.len() as u16).to_be_bytes(), &body].concat()
}

fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &long(data)].concat()
}

fn names(list: &[(u8, &[u8])]) -> Vec<u8> {
    let list: Vec<u8> = list.iter().flat_map(|(kind, name)| [&[*kind][..], &long(name)].concat()).collect();
    extension(SERVER_NAME, &long(&list))
}

fn with(extensions: &[u8]) -> Vec<u8> {
    record(&message(&[9; 32], &[0x13, 1], &[0], Some(extensions)))
}

fn said(bytes: &[u8]) -> Result<Option<Hello>, BadHello> {
    parse(bytes, LIMITS)
}

#[test]
fn a_real_hello_is_understood() {
    let bytes = real("Shop.Example.COM", &["h2", "http/1.1"]);
    assert!(bytes.len() > 1400, "with a post-quantum key: {}", bytes.len());
    let hello = said(&bytes).unwrap().unwrap();
    assert_eq!(hello.sni.as_deref(), Some("shop.example.com"));
    assert_eq!(hello.alpn, [b"h2".to_vec(), b"http/1.1".to_vec()]);
    assert_eq!(hello.session.len(), 32);
    assert_eq!(hello.bytes, bytes);

    let hello = said(&real("192.0.2.1", &[])).unwrap().unwrap();
    assert_eq!((hello.sni, hello.alpn), (None, vec![]), "an address is not asked for by name");
}

#[test]
fn what_is_said_without_extensions_is_said() {
    let hello = said(&record(&message(&[], &[0, 47], &[0], None))).unwrap().unwrap();
    assert_eq!((hello.sni, hello.alpn, hello.session), (None, vec![], vec![]));
    let hello = said(&with(&[])).unwrap().unwrap();
    assert_eq!((hello.sni, hello.session), (None, vec![9; 32]));
}

#[test]
fn names_are_as_in_labels_or_refused() {
    for (name, expected) in [
        (&b"a.example"[..], Ok(Some("a.example"))),
        (b"A.Example.", Ok(Some("a.example"))),
        (b"with_underscore.example", Ok(Some("with_underscore.example"))),
        (b"localhost", Ok(Some("localhost"))),
        (b"xn--bcher-kva.example", Ok(Some("xn--bcher-kva.example"))),
        (b"a.example..", Err(BadHello::Name)),
        (b".", Err(BadHello::Name)),
        (b"", Err(BadHello::Name)),
        (b"a..example", Err(BadHello::Name)),
        (b"*.example", Err(BadHello::Name)),
        (b"a example", Err(BadHello::Name)),
        (b"a.example\0", Err(BadHello::Name)),
        (b"a.example:443", Err(BadHello::Name)),
        (b"b\xc3\xbccher.example", Err(BadHello::Name)),
        (b"\xff", Err(BadHello::Name)),
        (b"192.0.2.1", Err(BadHello::Name)),
        (b"2001:db8::1", Err(BadHello::Name)),
        (&[b'a'; 64], Err(BadHello::Name)),
        (&[b"a".repeat(60), b"b".repeat(60), b"c".repeat(60), b"d".repeat(60), b"e".repeat(20)].join(&b'.'), Err(BadHello::Name)),
    ] {
        let hello = said(&with(&names(&[(HOST_NAME, name)])));
        let sni = hello.map(|hello| hello.unwrap().sni);
        assert_eq!(sni.as_ref().map(|name| name.as_deref()), expected.as_ref().map(|n| *n), "{}", name.escape_ascii());
    }
}

#[test]
fn what_is_malformed_is_refused_where_it_is() {
    let a = [0, 0, 1, b'a'];
    let bad = |part| Err(BadHello::Malformed(part));
    for (what, bytes, expected) in [
        ("HTTP", b"GET / HTTP/1.1\r\n\r\n".to_vec(), Err(BadHello::NotTls)),
        ("SSL 2", vec![0x80, 0x2e, 1, 3, 1], Err(BadHello::NotTls)),
        ("SSL 2's version in a record", vec![HANDSHAKE, 2, 0], Err(BadHello::NotTls)),
        ("an alert", vec![21, 3, 1, 0, 2, 2, 40], Err(BadHello::NotTls)),
        ("an empty record", vec![HANDSHAKE, 3, 1, 0, 0], bad(Part::Record)),
        ("a record too long", vec![HANDSHAKE, 3, 1, 0x40, 1], bad(Part::Record)),
        ("another message", record(&[2, 0, 0, 0]), bad(Part::Message)),
        ("no message", record(&[1, 0, 0, 0]), bad(Part::Message)),
        ("something between", [record(&[1, 0, 0, 40, 3]), vec![23, 3, 3, 0, 1, 0]].concat(), bad(Part::Record)),
        ("something behind", record(&[message(&[], &[0, 47], &[0], None), vec![0]].concat()), bad(Part::Message)),
        ("a long session", record(&message(&[1; 33], &[0, 47], &[0], None)), bad(Part::Session)),
        ("no suites", record(&message(&[], &[], &[0], None)), bad(Part::CipherSuites)),
        ("half a suite", record(&message(&[], &[0, 47, 0], &[0], None)), bad(Part::CipherSuites)),
        ("no compression", record(&message(&[], &[0, 47], &[], None)), bad(Part::Compression)),
        ("extensions cut", with(&[0, 0, 0]), bad(Part::Extensions)),
        ("extension cut", with(&[0, 0, 0, 9, 1]), bad(Part::Extensions)),
        ("the same twice", with(&[extension(5, &[]), extension(7, &[]), extension(5, &[])].concat()), bad(Part::Extensions)),
        ("names without a list", with(&extension(SERVER_NAME, &[])), bad(Part::ServerName)),
        ("an empty list of names", with(&extension(SERVER_NAME, &[0, 0])), bad(Part::ServerName)),
        ("more than the list", with(&extension(SERVER_NAME, &[long(&a), vec![0]].concat())), bad(Part::ServerName)),
        ("a name cut", with(&extension(SERVER_NAME, &long(&a[..3]))), bad(Part::ServerName)),
        ("two names", with(&names(&[(0, b"a"), (0, b"b")])), bad(Part::ServerName)),
        ("a name of another kind", with(&names(&[(0, b"a"), (1, b"b")])), bad(Part::ServerName)),
        ("protocols without a list", with(&extension(ALPN, &[])), bad(Part::Protocols)),
        ("no protocols", with(&extension(ALPN, &[0, 0])), bad(Part::Protocols)),
        ("an empty protocol", with(&extension(ALPN, &long(&[2, b'h', b'2', 0]))), bad(Part::Protocols)),
        ("a protocol cut", with(&extension(ALPN, &long(&[3, b'h', b'2']))), bad(Part::Protocols)),
    ] {
        assert_eq!(said(&bytes), expected, "{what}");
    }
}

#[test]
fn limits_hold() {
    // As large as may be, in records of the largest size and less, and then by one byte more.
    let filled = |length: usize| {
        let body = message(&[], &[0, 47], &[0], Some(&extension(99, &vec![0; length])));
        let mut out = Vec::new();
        for piece in body.chunks(LARGEST_RECORD) {
            out.extend(record(piece));
        }
        out
    };
    let fixed = 2 + 32 + 1 + 4 + 2 + 2 + 4;
    assert!(said(&filled(LIMITS.message - fixed)).unwrap().is_some());
    assert_eq!(said(&filled(LIMITS.message - fixed + 1)), Err(BadHello::TooBig));

    let hello = with(&names(&[(HOST_NAME, b"a.example")]));
    assert_eq!(said(&in_records(&hello, &[1; 63])).unwrap().unwrap().sni.as_deref(), Some("a.example"));
    assert_eq!(said(&in_records(&hello, &[1; 64])), Err(BadHello::TooBig));
}

#[test]
fn a_refusal_is_told_where_somebody_understands_it() {
    assert_eq!(HelloError::Bad(BadHello::Name).alert(), Some(Alert::UnrecognizedName));
    assert_eq!(HelloError::Bad(BadHello::NotTls).alert(), None);
    assert_eq!(Alert::UnrecognizedName.record(), [21, 3, 3, 0, 2, 2, 112]);
}

#[tokio::test]
async fn a_hello_is_read_as_it_trickles_in_and_what_follows_stays() {
    let bytes = real("trickle.example", &[]);
    let (mut client, mut server) = tokio::io::duplex(100_000);
    let sent = [bytes.clone(), b"early".to_vec()].concat();
    let writer = tokio::spawn(async move {
        for piece in sent.chunks(97) {
            client.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        client
    });
    let hello = read_hello(&mut server, LIMITS, Instant::now() + Duration::from_secs(5)).await.unwrap();
    let mut client = writer.await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(hello.sni.as_deref(), Some("trickle.example"));
    let mut again = Vec::new();
    crate::rewound::Rewound::with(hello.bytes, server).read_to_end(&mut again).await.unwrap();
    assert_eq!(again, [bytes, b"early".to_vec()].concat());
}

#[tokio::test(start_paused = true)]
async fn whoever_does_not_finish_is_late_or_gone() {
    let (mut client, mut server) = tokio::io::duplex(100);
    client.write_all(&real("a.example", &[])[..50]).await.unwrap();
    let before = Instant::now();
    let late = read_hello(&mut server, LIMITS, before + Duration::from_secs(3)).await;
    assert!(matches!(late, Err(HelloError::Late)), "{late:?}");
    assert_eq!(before.elapsed(), Duration::from_secs(3));
    client.write_all(&[HANDSHAKE, 3, 1]).await.unwrap();
    drop(client);
    let ended = read_hello(&mut server, LIMITS, Instant::now() + Duration::from_secs(3)).await;
    assert!(matches!(ended, Err(HelloError::Ended { after: 3 })), "{ended:?}");
}

/// Real hellos with some bytes changed, and nonsense behind a record's beginning.
fn odd_bytes() -> impl Strategy<Value = Vec<u8>> {
    let real = real("odd.example", &["h2"]);
    let changed = (vec((0..real.len(), any::<u8>()), 0..6), 0..real.len() + 1).prop_map(move |(changes, length)| {
        let mut bytes = real.clone();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        bytes.truncate(length);
        bytes
    });
    let small = (vec(any::<u8>(), 0..120), any::<bool>())
        .prop_map(|(bytes, framed)| if framed { record(&[&[1, 0, 0, bytes.len() as u8][..], &bytes].concat()) } else { bytes });
    prop_oneof![changed, small, vec(any::<u8>(), 0..200).prop_map(|noise| with(&noise))]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn what_is_read_does_not_depend_on_how_it_came(bytes in odd_bytes(), cuts in vec(1usize..400, 0..20)) {
        let whole = said(&bytes).map(|hello| hello.map(|hello| (hello.sni, hello.alpn, hello.session)));
        let mut reader = Reader::new(LIMITS);
        let mut ends: Vec<usize> = cuts.iter().scan(0, |end, cut| { *end += cut; Some(*end) }).take_while(|end| *end < bytes.len()).collect();
        ends.push(bytes.len());
        let mut in_parts = Ok(None);
        for end in ends {
            in_parts = reader.advance(&bytes[..end]).map(|hello| hello.map(|hello| (hello.sni, hello.alpn, hello.session)));
            if !matches!(in_parts, Ok(None)) {
                break;
            }
        }
        prop_assert_eq!(in_parts, whole);
    }

    #[test]
    fn records_may_cut_it_anywhere(lengths in vec(1usize..300, 0..40)) {
        let hello = real("cut.example", &["h2"]);
        let expected = said(&hello).unwrap().unwrap();
        let cut = said(&in_records(&hello, &lengths)).unwrap().unwrap();
        prop_assert_eq!((cut.sni, cut.alpn, cut.session), (expected.sni, expected.alpn, expected.session));
    }

    #[test]
    fn any_name_that_is_taken_is_one_that_rustls_takes(raw in "[a-zA-Z0-9._*:/ -]{0,40}") {
        if let Ok(Some(hello)) = said(&with(&names(&[(HOST_NAME, raw.as_bytes())]))) {
            let name = hello.sni.unwrap();
            prop_assert_eq!(&name, &raw.strip_suffix('.').unwrap_or(&raw).to_ascii_lowercase());
            prop_assert!(matches!(ServerName::try_from(name), Ok(ServerName::DnsName(_))));
        }
    }
}
