//! The built-in server, as a process: what it answers, how it starts late, fails and stops.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, in its helpers too")]

use std::{
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tokio_rustls::rustls;

struct Whoami {
    child: Child,
    port: u16,
}

impl Whoami {
    /// Started with one port for TCP and UDP, and waited for unless it is not going to listen.
    fn start(args: &[&str], listens: bool) -> Self {
        let port = TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port();
        let child = Command::new(env!("CARGO_BIN_EXE_swarmesh-lab"))
            .args(["whoami", "--tcp", &port.to_string(), "--udp", &port.to_string()])
            .args(args)
            .env("WHOAMI_SERVICE", "web")
            .env("WHOAMI_TASK", "web.1.abc")
            .env("WHOAMI_NODE", "node1")
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let whoami = Self { child, port };
        let deadline = Instant::now() + Duration::from_secs(5);
        while listens && TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "whoami did not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        whoami
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream
    }

    fn get(&self, path: &str) -> String {
        let mut stream = self.connect();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: web\r\nconnection: close\r\nx-test: yes\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    fn terminate(&self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    }
}

impl Drop for Whoami {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn http_tells_who_answers_and_who_asks() {
    let whoami = Whoami::start(&[], true);
    let text = whoami.get("/path?q=1");
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    for line in ["service: web\n", "task: web.1.abc\n", "node: node1\n", "remote: 127.0.0.1:", "GET /path?q=1 HTTP/1.1\n", "x-test: yes\n"]
    {
        assert!(text.contains(line), "{line:?} is missing in {text}");
    }
    assert!(text.contains(&format!("local: 127.0.0.1:{}\n", whoami.port)), "{text}");
    assert!(whoami.get("/health").starts_with("HTTP/1.1 200 "));
    let json = whoami.get("/json");
    let json: serde_json::Value = serde_json::from_str(json.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(json["task"], "web.1.abc");
    assert_eq!(json["headers"][1][0], "connection");
    assert!(whoami.get("/bytes?n=100000").ends_with(&"x".repeat(100_000)));
    assert!(whoami.get("/stream?ms=5&n=3").contains("1\n"));
}

#[test]
fn connections_are_kept_alive() {
    let whoami = Whoami::start(&[], true);
    let mut stream = BufReader::new(whoami.connect());
    for _ in 0..3 {
        stream.get_mut().write_all(b"GET /health HTTP/1.1\r\nhost: web\r\n\r\n").unwrap();
        let mut line = String::new();
        while !line.ends_with("healthy\n") {
            assert!(stream.read_line(&mut line).unwrap() > 0, "closed after {line:?}");
        }
    }
}

#[test]
fn lines_are_echoed_after_one_greeting() {
    let whoami = Whoami::start(&[], true);
    let mut stream = BufReader::new(whoami.connect());
    let mut line = String::new();
    stream.get_mut().write_all(b"hello\n").unwrap();
    stream.read_line(&mut line).unwrap();
    let local = stream.get_ref().local_addr().unwrap();
    assert_eq!(line, format!("web.1.abc node1 {local} 127.0.0.1:{}\n", whoami.port));
    for expected in ["hello\n", "GET\n"] {
        if expected == "GET\n" {
            stream.get_mut().write_all(b"GET\n").unwrap();
        }
        line.clear();
        stream.read_line(&mut line).unwrap();
        assert_eq!(line, expected);
    }
}

#[test]
fn a_websocket_greets_and_echoes_and_ends_with_the_server() {
    let whoami = Whoami::start(&[], true);
    let mut stream = BufReader::new(whoami.connect());
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    write!(stream.get_mut(), "GET /total HTTP/1.1\r\nhost: web\r\n{upgrade}\r\n").unwrap();
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(stream.read_line(&mut head).unwrap() > 0, "closed after {head:?}");
    }
    assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
    let mut frame = |expected: &[u8]| {
        let mut head = [0; 2];
        stream.read_exact(&mut head).unwrap();
        let mut content = vec![0; usize::from(head[1])];
        stream.read_exact(&mut content).unwrap();
        assert!(content.starts_with(expected), "{content:?}");
        (head[0], stream.get_ref().try_clone().unwrap())
    };
    let (_, mut sink) = frame(b"web.1.abc node1 ");
    // "Hello" as the RFC masks it: as text, and as a ping.
    let masked = [0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    for (sent, comes) in [(0x81, 0x81), (0x89, 0x8a)] {
        sink.write_all(&[&[sent], &masked[..]].concat()).unwrap();
        assert_eq!(frame(b"Hello").0, comes);
    }
    whoami.terminate();
    assert_eq!(frame(&1001u16.to_be_bytes()).0, 0x88);
}

#[test]
fn one_port_opens_tls_and_takes_what_comes_without() {
    let made = rcgen::generate_simple_self_signed(vec!["web.example".to_owned()]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let pem = directory.path().join("web.pem");
    std::fs::write(&pem, made.cert.pem() + &made.signing_key.serialize_pem()).unwrap();
    let whoami = Whoami::start(&["--tls", &pem.to_string_lossy()], true);
    assert!(whoami.get("/").starts_with("HTTP/1.1 200 "));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let client = rustls::ClientConnection::new(std::sync::Arc::new(config), "web.example".try_into().unwrap()).unwrap();
    let mut stream = rustls::StreamOwned::new(client, whoami.connect());
    stream.write_all(b"GET /x HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    // Its end is without a farewell, which is not what is asked here.
    let _ = stream.read_to_string(&mut text);
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("GET /x HTTP/1.1\n"), "{text}");
}

#[test]
fn a_login_gives_a_cookie() {
    let whoami = Whoami::start(&[], true);
    let cookie = |path: &str| {
        let text = whoami.get(path);
        text.lines().find_map(|l| l.strip_prefix("set-cookie: ")).map(str::to_owned).unwrap()
    };
    let (first, second) = (cookie("/login?cookie=JSESSIONID"), cookie("/login"));
    assert!(first.starts_with("JSESSIONID=") && second.starts_with("SESSION="), "{first} {second}");
    assert_ne!(cookie("/login"), second);
}

#[test]
fn datagrams_are_answered_over_both_families() {
    let whoami = Whoami::start(&[], true);
    for address in ["127.0.0.1", "::1"] {
        let socket = UdpSocket::bind((address, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.connect((address, whoami.port)).unwrap();
        socket.send(b"ping").unwrap();
        let mut buffer = [0; 200];
        let length = socket.recv(&mut buffer).unwrap();
        let local = socket.local_addr().unwrap();
        let server = socket.peer_addr().unwrap();
        assert_eq!(String::from_utf8_lossy(&buffer[..length]), format!("web.1.abc node1 {local} {server} ping"));
    }
}

#[test]
fn it_listens_late_when_asked_to() {
    let start = Instant::now();
    let whoami = Whoami::start(&["--ready-after", "0.7"], true);
    assert!(start.elapsed() >= Duration::from_millis(700));
    assert!(whoami.get("/health").starts_with("HTTP/1.1 200 "));
}

#[test]
fn failures_look_like_what_they_are_called() {
    let whoami = Whoami::start(&["--fail", "error500"], true);
    assert!(whoami.get("/").starts_with("HTTP/1.1 500 "));
    assert!(whoami.get("/health").starts_with("HTTP/1.1 503 "));

    let whoami = Whoami::start(&["--fail", "unhealthy-after=0"], true);
    assert!(whoami.get("/health").starts_with("HTTP/1.1 503 "));
    assert!(whoami.get("/").starts_with("HTTP/1.1 200 "));

    let whoami = Whoami::start(&["--fail", "reset"], true);
    let mut stream = whoami.connect();
    let error = stream.read(&mut [0; 10]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);

    let whoami = Whoami::start(&["--fail", "hang"], true);
    let mut stream = whoami.connect();
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").unwrap();
    assert_eq!(stream.read(&mut [0; 10]).unwrap_err().kind(), ErrorKind::WouldBlock);

    let whoami = Whoami::start(&["--fail", "slow=300"], true);
    let start = Instant::now();
    whoami.get("/");
    assert!(start.elapsed() >= Duration::from_millis(300));

    let mut whoami = Whoami::start(&["--fail", "crash-after=0.2"], false);
    assert_eq!(whoami.child.wait().unwrap().code(), Some(1));

    let whoami = Whoami::start(&["--fail", "refuse"], false);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(TcpStream::connect(("127.0.0.1", whoami.port)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn termination_waits_for_requests_under_way() {
    let mut whoami = Whoami::start(&[], true);
    let mut stream = whoami.connect();
    stream.write_all(b"GET /slow?ms=500 HTTP/1.1\r\nhost: web\r\n\r\n").unwrap();
    std::thread::sleep(Duration::from_millis(100));
    whoami.terminate();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    assert_eq!(whoami.child.wait().unwrap().code(), Some(0));
}

#[test]
fn termination_can_linger() {
    let mut whoami = Whoami::start(&["--linger", "0.6"], true);
    let start = Instant::now();
    whoami.terminate();
    std::thread::sleep(Duration::from_millis(200));
    assert!(whoami.get("/").starts_with("HTTP/1.1 200 "));
    assert_eq!(whoami.child.wait().unwrap().code(), Some(0));
    assert!(start.elapsed() >= Duration::from_millis(600));
}
