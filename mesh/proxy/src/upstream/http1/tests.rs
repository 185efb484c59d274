//! The same bytes are read by hyper's client and by ours: both must understand the same, or neither.

use proptest::prelude::*;
use tokio::{io::AsyncWriteExt as _, net::TcpListener, time::sleep};

use super::{
    understood::{PATIENCE, Said},
    *,
};

impl Said {
    fn get(bytes: &[u8], closes: bool) -> Self {
        Self { method: Method::GET, pieces: vec![bytes.to_vec()], closes }
    }
}

/// Asks both, for all of these at once, as some wait for what does not come.
fn compare(all: Vec<Said>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let asked: Vec<_> =
            all.into_iter().map(|said| tokio::task::spawn_local(async move { (said.ours().await, said.hypers().await, said) })).collect();
        for asked in asked {
            let (ours, hypers, said) = asked.await.unwrap();
            assert_eq!(ours, hypers, "{:?}, and {said:?}", String::from_utf8_lossy(&said.pieces.concat()));
        }
    });
}

const TABLE: [&str; 58] = [
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello and more",
    "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 200 OK\r\n\r\nuntil the end",
    "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.1 200 OK\r\nConnection: close\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "HTTP/1.0 204 No\r\nTransfer-Encoding: chunked\r\n\r\n",
    "HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.1 99 OK\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.1 099 OK\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.1 999 Odd\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
    "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    "HTTP/1.1 304 Not Modified\r\nContent-Length: x\r\n\r\n",
    "HTTP/1.1 204 No Content\r\n\r\nbehind it",
    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nContent-Length: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.1 103 Early Hints\r\nConnection: close\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.1 100 Continue\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
    "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok",
    "HTTP/1.1 200 OK\r\nContent-Length: 2,\r\n\r\nok",
    "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
    "HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok",
    "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nok",
    "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nok",
    "HTTP/1.1 200 OK\r\nContent-Length: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;a=b\r\n world\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nA \t;x\r\n0123456789\r\n000\r\nX-T: 1\r\nX-U: 2\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nbad trailer\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nmore",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nokay\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\nok\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;a\rb\r\nok\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2 2\r\nok\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+2\r\nok\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x2\r\nok\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n;a\r\nok\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000000\r\nok\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\n folded: x\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.1 200 OK\r\nName : x\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.1 200 OK\r\n: x\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
];

#[test]
fn odd_answers_mean_what_they_mean_to_hyper() {
    let mut all = Vec::new();
    for bytes in TABLE {
        for closes in [true, false] {
            for method in [Method::GET, Method::HEAD] {
                all.push(Said { method, ..Said::get(bytes.as_bytes(), closes) });
            }
        }
    }
    compare(all);
}

#[test]
fn what_is_too_much_is_refused_as_by_hyper() {
    let head = |headers: usize, length: usize| {
        let line = |n| format!("x-{n}: {}\r\n", "y".repeat(length));
        format!("HTTP/1.1 200 OK\r\n{}Content-Length: 0\r\n\r\n", (0..headers).map(line).collect::<String>())
    };
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let extensions = |count: usize, length: usize| {
        let line = format!("1;{}\r\nx\r\n", "e".repeat(length));
        format!("{chunked}{}0\r\n\r\n", line.repeat(count))
    };
    let trailers = |count: usize| format!("{chunked}0\r\n{}\r\n", "t: 1\r\n".repeat(count));
    let heads = [head(99, 1), head(100, 1), head(1, 60_000), head(2, 40_000)];
    let framings = [extensions(3, 4000), extensions(5, 4000), trailers(99), trailers(101)];
    compare(heads.iter().chain(&framings).map(|bytes| Said::get(bytes.as_bytes(), true)).collect());
}

#[test]
fn a_body_larger_than_memory_asked_for_comes_whole() {
    let body = "0123456789abcdef".repeat(20_000);
    for head in [format!("Content-Length: {}\r\n\r\n{body}", body.len()), format!("\r\n{body}")] {
        compare(vec![Said::get(format!("HTTP/1.1 200 OK\r\n{head}").as_bytes(), true)]);
    }
}

#[tokio::test]
async fn a_request_is_sent_as_it_is_and_the_next_one_too() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut connection = Connection::new(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap(), 8192);
    let (mut backend, _) = listener.accept().await.unwrap();
    for (target, line) in [("/a/b?c=d", "/a/b?c=d"), ("http://h/", "/"), ("*", "*")] {
        let request = Request::options(target).header("a", "1").header("a", "2").header("transfer-encoding", "chunked").body(()).unwrap();
        let (asked, seen) = tokio::join!(connection.ask(&request, PATIENCE), async {
            let mut seen = Vec::new();
            while !seen.ends_with(b"\r\n\r\n") {
                assert_ne!(backend.read_buf(&mut seen).await.unwrap(), 0);
            }
            backend.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            String::from_utf8(seen).unwrap()
        });
        assert_eq!(asked.unwrap().unwrap().status(), 200);
        assert_eq!(seen, format!("OPTIONS {line} HTTP/1.1\r\na: 1\r\na: 2\r\n\r\n"));
        assert!(connection.is_idle());
        connection.recycle(request.into_parts().0.headers);
    }
    assert!(connection.ask(&Request::new(()), Duration::from_millis(20)).await.is_none(), "nobody answers");
    assert!(!connection.is_idle(), "an answer may come yet");
}

#[tokio::test]
async fn a_connection_that_was_closed_is_seen() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut connection = Connection::new(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap(), 8192);
    let (backend, _) = listener.accept().await.unwrap();
    assert!(connection.is_idle());
    drop(backend);
    sleep(Duration::from_millis(20)).await;
    assert!(!connection.is_idle());
    assert!(connection.ask(&Request::new(()), PATIENCE).await.unwrap().is_err());
}

/// Answers that are nearly right: lines of a head and of a chunked body, some of them broken.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        4 => Just("Content-Length: 3\r\n"),
        3 => Just("Transfer-Encoding: chunked\r\n"),
        1 => Just("Transfer-Encoding: chunked \t, \r\n"),
        2 => Just("Connection: close\r\n"),
        1 => Just("Connection: keep-alive\n"),
        1 => Just("Content-Length: 3 , 3\r\n"),
        1 => Just("Content-Length: \u{b2}\r\n"),
        1 => Just("A:\r\n"),
        1 => Just("A: \u{7f}\r\n"),
        1 => Just("A: b\r\r\n"),
    ];
    let first = prop_oneof![5 => Just("HTTP/1.1 200 OK\r\n"), 1 => Just("HTTP/1.0 200 \r\n"), 1 => Just("HTTP/1.1 100 Wait\r\n\r\nHTTP/1.1 404 No\r\n")];
    let body = proptest::collection::vec(
        prop_oneof![
            4 => Just("3\r\nabc\r\n"),
            2 => Just("0\r\n"),
            3 => Just("\r\n"),
            1 => Just("3;\n"),
            1 => Just("1 \r\nx\r\n"),
            1 => Just("T: 1\r\n"),
            1 => Just("\r"),
            1 => Just("3"),
        ],
        0..6,
    );
    (first, proptest::collection::vec(line, 0..4), body)
        .prop_map(|(first, lines, body)| format!("{first}{}\r\n{}", lines.concat(), body.concat()).into_bytes())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nearly_right_answers_mean_what_they_mean_to_hyper(bytes in nearly(), cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..3)) {
        let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
        places.extend([0, bytes.len()]);
        places.sort_unstable();
        let pieces = places.windows(2).map(|two| bytes[two[0]..two[1]].to_vec()).filter(|piece| !piece.is_empty()).collect();
        compare(vec![Said { method: Method::GET, pieces, closes: true }]);
    }
}
