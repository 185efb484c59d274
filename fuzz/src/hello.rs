//! A TLS client's first bytes: what is understood does not depend on how they came, and is what rustls understands.

use rustls::server::Acceptor;
use swarmesh_proxy::hello::{BadHello, Hello, HelloLimits, parse};

const HEADER: usize = 5;

pub fn check(input: &[u8]) {
    let limits = HelloLimits::default();
    let whole = parse(input, limits);
    if let Ok(Some(hello)) = &whole {
        assert_eq!(hello.bytes, input);
        name_is_plain(hello);
    }
    // Of what came first, either nothing is said yet or the same. At most a few hundred beginnings, the short ones all.
    let step = 1 + input.len() / 256;
    let beginnings = (0..input.len().min(64)).chain((64..input.len()).step_by(step));
    let first = beginnings.map(|length| parse(&input[..length], limits)).find(|said| *said != Ok(None));
    if let Some(first) = first {
        assert_eq!(said(&first), said(&whole), "a beginning says something else");
    }
    if let Ok(Some(hello)) = &whole {
        other_records(input, hello);
    }
    as_rustls_says(input, &whole);
}

fn said(result: &Result<Option<Hello>, BadHello>) -> Result<Option<Hello>, BadHello> {
    result.clone().map(|hello| hello.map(|hello| Hello { bytes: Vec::new(), ..hello }))
}

fn name_is_plain(hello: &Hello) {
    let Some(name) = &hello.sni else { return };
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    assert!(!name.is_empty() && name.len() <= 253 && name.bytes().all(plain), "{name:?}");
    assert!(name.split('.').all(|label| (1..=63).contains(&label.len())), "{name:?}");
    assert!(name.parse::<std::net::IpAddr>().is_err(), "{name:?}");
}

/// The same message, cut otherwise.
fn other_records(input: &[u8], hello: &Hello) {
    let message = message(input);
    let size = message.len().div_ceil(7).max(1);
    let cut: Vec<u8> =
        message.chunks(size).flat_map(|piece| [&[22, 3, 3][..], &(piece.len() as u16).to_be_bytes(), piece].concat()).collect();
    let again = parse(&cut, HelloLimits::default());
    assert_eq!(said(&again), Ok(Some(Hello { bytes: Vec::new(), ..hello.clone() })), "in other records");
}

/// Without the records' headers; read without the crate's own code.
fn message(mut input: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    loop {
        let length = usize::from(u16::from_be_bytes([input[3], input[4]]));
        message.extend_from_slice(&input[HEADER..HEADER + length]);
        input = &input[HEADER + length..];
        if message.len() >= 4 && message.len() == 4 + u32::from_be_bytes([0, message[1], message[2], message[3]]) as usize {
            return message;
        }
    }
}

fn as_rustls_says(input: &[u8], ours: &Result<Option<Hello>, BadHello>) {
    let mut acceptor = Acceptor::default();
    let mut rest = input;
    let accepted = loop {
        match acceptor.accept() {
            Ok(Some(accepted)) => break accepted,
            Ok(None) if rest.is_empty() => return,
            Ok(None) => {}
            Err(_) => return,
        }
        if acceptor.read_tls(&mut rest).is_err() {
            return;
        }
    };
    let theirs = accepted.client_hello();
    match ours {
        Ok(Some(hello)) => {
            // Which leaves a final dot.
            assert_eq!(hello.sni.as_deref(), theirs.server_name().map(|name| name.strip_suffix('.').unwrap_or(name)));
            let protocols: Vec<&[u8]> = theirs.alpn().into_iter().flatten().collect();
            assert_eq!(hello.alpn, protocols);
        }
        Ok(None) => panic!("rustls has a whole hello"),
        // rustls goes on without a name that is none, ours does not; and it is laxer with what it does not look at.
        Err(BadHello::Name | BadHello::TooBig | BadHello::Malformed(_)) => {}
        Err(BadHello::NotTls) => panic!("rustls takes it for TLS"),
    }
}
