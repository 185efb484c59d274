//! Requests that two readers could read in two ways: refused, or passed on with one meaning.
//!
//! A row sends bytes to the proxy and says what may come of them. Behind the proxy is a reader of HTTP/1.1 in a hand's breadth
//! that knows nothing of the request but what it was sent.

#![expect(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

mod common;

use std::time::Duration;

use common::{Reply, Seen, Stage, ok};
use swarmesh_proxy::{Config, config::Times};
use swarmesh_router::model::Match;

/// What may become of a row's bytes.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    /// Answered with this status, by the proxy; no backend hears of it.
    Refused(u16),
    /// One request arrives, with this line and body, and as many answers come as that.
    Arrives(&'static str, &'static str),
}
use Outcome::{Arrives, Refused};

const ROWS: &[(&str, &str, Outcome)] = &[
    ("plain", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", Arrives("GET / HTTP/1.1", "")),
    // RFC 9112, 6.3: the length is ignored or the message refused; the next one begins after the last chunk.
    (
        "CL.TE",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX",
        Arrives("POST / HTTP/1.1", ""),
    ),
    (
        "TE.CL",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        Arrives("POST / HTTP/1.1", "abc"),
    ),
    (
        "TE.TE, the last is not chunked",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        Refused(400),
    ),
    ("a coding that nobody knows", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", Refused(400)),
    ("a space before the colon", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", Refused(400)),
    ("a folded header", "GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n", Refused(400)),
    ("a bare CR in a header", "GET / HTTP/1.1\r\nHost: a\r\nX: b\rY: c\r\n\r\n", Refused(400)),
    ("a zero in a header", "GET / HTTP/1.1\r\nHost: a\r\nX: b\0c\r\n\r\n", Refused(400)),
    ("a zero in the target", "GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400)),
    ("a tab in the line", "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400)),
    ("two lengths that differ", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", Refused(400)),
    ("two lengths in one that differ", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 2\r\n\r\nab", Refused(400)),
    ("an empty length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\n", Refused(400)),
    ("a list of lengths that ends early", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1,\r\n\r\na", Refused(400)),
    ("a signed length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\na", Refused(400)),
    ("a length in hexadecimal", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\na", Refused(400)),
    ("a length beyond all numbers", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n", Refused(400)),
    (
        "the same length twice",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab",
        Arrives("POST / HTTP/1.1", "ab"),
    ),
    ("HTTP/1.0 with an encoding", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Refused(400)),
    ("HTTP/0.9", "GET /\r\n\r\n", Refused(400)),
    ("HTTP/1.2", "GET / HTTP/1.2\r\nHost: a\r\n\r\n", Refused(400)),
    ("HTTP/2 by name", "GET / HTTP/2.0\r\nHost: a\r\n\r\n", Refused(400)),
    ("no host", "GET / HTTP/1.1\r\n\r\n", Refused(400)),
    ("two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", Refused(400)),
    ("a host with a user", "GET / HTTP/1.1\r\nHost: x@a\r\n\r\n", Refused(400)),
    ("a host with a path", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", Refused(400)),
    ("a host with a space", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n", Refused(400)),
    ("another host in the target", "GET http://a/x HTTP/1.1\r\nHost: b\r\n\r\n", Arrives("GET /x HTTP/1.1", "")),
    ("CONNECT", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", Refused(405)),
    ("out of the root", "GET /../etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400)),
    ("out of a directory", "GET /x/%2e%2e/y HTTP/1.1\r\nHost: a\r\n\r\n", Arrives("GET /y HTTP/1.1", "")),
    (
        "a chunk's extension",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=\"y\"\r\nabc\r\n0\r\n\r\n",
        Arrives("POST / HTTP/1.1", "abc"),
    ),
    ("a fragment", "GET /#x HTTP/1.1\r\nHost: a\r\n\r\n", Arrives("GET / HTTP/1.1", "")),
    ("a method that is none", "G(T / HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400)),
    ("a name that is none", "GET / HTTP/1.1\r\nHost: a\r\nX(Y: b\r\n\r\n", Refused(400)),
    ("an empty name", "GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", Refused(400)),
    ("binary", "\x16\x03\x01\x02\0\x01\0", Refused(400)),
];

fn whole(seen: &Seen) -> Reply {
    ok(&format!("{}|{}", seen.line, String::from_utf8_lossy(&seen.body)))
}

#[test]
fn what_is_accepted_arrives_with_one_meaning() {
    let stage = Stage::new(Config::default()).service("web", 1, whole).route(Match { ..Match::default() }, "web", |_| {});
    let mut wrong = Vec::new();
    for (name, bytes, outcome) in ROWS {
        let mut client = stage.connect();
        client.send(bytes);
        let answer = client.answer();
        // Who is refused has been hung up on, perhaps.
        let _ = client.stream.shutdown(std::net::Shutdown::Write);
        let rest = client.answer();
        let seen = stage.seen("web");
        let is_right = match outcome {
            Refused(status) => answer.as_ref().is_some_and(|a| a.status == *status) && seen.is_empty() && rest.is_none(),
            Arrives(line, body) => {
                answer.as_ref().is_some_and(|a| a.status == 200 && a.body == format!("{line}|{body}"))
                    && seen.len() == 1
                    && seen[0].headers("content-length").len() + seen[0].headers("transfer-encoding").len() <= 1
            }
        };
        if !is_right {
            wrong.push(format!("{name}: {answer:?}, then {rest:?}; the backend saw {seen:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), ROWS.len(), wrong.join("\n"));
}

/// A body whose framing breaks in the middle ends the request: the backend must not take what it has for the whole.
#[test]
fn a_broken_body_is_not_completed() {
    let stage = Stage::new(Config::default()).service("web", 1, whole).route(Match::host("a"), "web", |_| {});
    for body in ["3\r\nabcX", "3\nabc\n0\n\n", "zz\r\nabc\r\n", "-1\r\n", "ffffffffffffffff1\r\n", "3\r\nabc\r\n0\r\nX Y: z\r\n\r\n"] {
        let mut client = stage.connect();
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}"));
        client.stream.shutdown(std::net::Shutdown::Write).unwrap();
        let answer = client.answer();
        assert!(answer.as_ref().is_none_or(|a| a.status >= 400), "{body:?}: {answer:?}");
        std::thread::sleep(Duration::from_millis(50));
        assert!(stage.seen("web").is_empty(), "{body:?} was taken for whole");
    }
    assert_eq!(stage.get("a", "/").status, 200);
}

#[test]
fn a_head_has_a_size_and_a_time() {
    let times = Times { request: Duration::from_millis(300), keep_alive: Duration::from_millis(600), ..Times::default() };
    let config = Config { times, ..Config::default() };
    let stage = Stage::new(config).service("web", 1, whole).route(Match::host("a"), "web", |_| {});
    let large = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    let mut client = stage.connect();
    // It may be refused while it is still being sent.
    let _ = std::io::Write::write_all(&mut client.stream, large.as_bytes());
    assert!(client.answer().is_none_or(|a| a.status == 431), "a megabyte of header");
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(1000));
    let mut client = stage.connect();
    client.send(many);
    assert_eq!(client.answer().map(|a| a.status), Some(431));

    // Slowloris: a head that never ends is cut, and so is a connection that asks for nothing.
    let mut client = stage.connect();
    let begun = std::time::Instant::now();
    client.send("GET / HTTP/1.1\r\n");
    let mut cut = false;
    while begun.elapsed() < Duration::from_secs(5) && !cut {
        std::thread::sleep(Duration::from_millis(50));
        cut = std::io::Write::write_all(&mut client.stream, b"X: y\r\n").is_err();
    }
    assert!(cut, "a slow head goes on after {:?}", begun.elapsed());
    let mut idle = stage.connect();
    idle.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(idle.answer().unwrap().status, 200);
    assert!(idle.is_closed(), "an idle connection stays");
    assert!(stage.seen("web").len() == 1);
}

#[test]
fn a_body_that_stalls_is_given_up() {
    let stalling = |route: &mut swarmesh_router::Route| route.policy.timeouts.client = Some(Duration::from_millis(200));
    let stage = Stage::new(Config::default()).service("web", 1, whole).route(Match::host("a"), "web", stalling);
    let mut client = stage.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc");
    let answer = client.answer();
    assert!(answer.as_ref().is_none_or(|a| a.status >= 400), "{answer:?}");
    assert!(stage.seen("web").is_empty());
}

#[test]
fn answers_that_are_none_are_502() {
    let stage =
        |behaviour: common::Behaviour| Stage::new(Config::default()).service("web", 1, behaviour).route(Match::host("a"), "web", |_| {});
    for behaviour in [
        (|_: &Seen| Reply::Last(b"nonsense\r\n\r\n".to_vec())) as common::Behaviour,
        |_| Reply::Last(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab".to_vec()),
        |_| Reply::Last(b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n".to_vec()),
        |_| Reply::Close,
    ] {
        let stage = stage(behaviour);
        assert_eq!(stage.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").status, 502);
    }
    // One that breaks off must not look whole.
    let stage = stage(|_| Reply::Last(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n".to_vec()));
    let mut client = stage.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.answer(), None);
}

/// Frames of HTTP/2 by hand (RFC 9113, 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// `GET / http a`, by the static table.
fn request_block() -> Vec<u8> {
    vec![0x82, 0x84, 0x86, 0x41, 1, b'a']
}

/// Sends until the proxy has had enough, and says how many bytes that took.
fn flood(stage: &Stage, mut next: impl FnMut(u32) -> Vec<u8>) -> Option<usize> {
    let mut client = stage.connect();
    client.send(PREFACE);
    client.send(frame(SETTINGS, 0, 0, &[]));
    // What it answers is read, or it would wait for that.
    let mut reader = client.stream.try_clone().unwrap();
    let reading = std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    let mut sent = 0;
    let mut ended = None;
    for number in 0..200_000 {
        let bytes = next(number);
        sent += bytes.len();
        if std::io::Write::write_all(&mut client.stream, &bytes).is_err() {
            ended = Some(sent);
            break;
        }
    }
    let _ = client.stream.shutdown(std::net::Shutdown::Both);
    let _ = reading.join();
    ended
}

/// CVE-2023-44487 and CVE-2024-27316: a connection that only costs is ended, and others are served meanwhile.
#[test]
fn floods_of_http2_end_their_connection_and_no_other() {
    let stage = Stage::new(Config::default()).service("web", 1, whole).route(Match::host("a"), "web", |_| {});
    let resets = |number: u32| {
        let stream = number * 2 + 1;
        let mut bytes = frame(HEADERS, END_STREAM | END_HEADERS, stream, &request_block());
        bytes.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
        bytes
    };
    let continuations = |number: u32| match number {
        0 => frame(HEADERS, END_STREAM, 1, &request_block()),
        // A literal header that is not indexed, without end.
        _ => frame(CONTINUATION, 0, 1, &[&[0, 1, b'x', 100][..], &[b'y'; 100]].concat().repeat(100)),
    };
    std::thread::scope(|scope| {
        let floods = scope.spawn(|| (flood(&stage, resets), flood(&stage, continuations)));
        while !floods.is_finished() {
            assert_eq!(stage.get("a", "/").status, 200);
        }
        let (resets, continuations) = floods.join().unwrap();
        assert!(resets.is_some(), "resets without end");
        assert!(continuations.is_some_and(|bytes| bytes < 8 << 20), "continuations without end: {continuations:?}");
    });
    assert!(stage.seen("web").iter().filter(|seen| seen.header("host") == Some("a")).count() > 0);
}

/// A tunnel that speaks HTTP would carry requests past every route and filter ("h2c smuggling").
#[test]
fn an_upgrade_to_http_is_not_passed_on() {
    let willing = |seen: &Seen| match seen.header("upgrade") {
        Some(_) => Reply::Echo(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n".to_vec()),
        None => ok("plain"),
    };
    let stage = Stage::new(Config::default()).service("web", 1, willing).route(Match::host("a"), "web", |_| {});
    for protocol in ["h2c", "H2C", "websocket, h2c", "HTTP/2.0", "TLS/1.0, HTTP/1.1"] {
        let answer = stage.ask(format!(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: {protocol}\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
        ));
        assert_eq!((answer.status, answer.body.as_str()), (200, "plain"), "{protocol}");
    }
    assert!(stage.seen("web").iter().all(|seen| seen.header("http2-settings").is_none()));
}
