//! TLS and HTTP/2 through the whole proxy: opened with the right certificate, passed on unopened, spoken to backends.
#![expect(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

mod common;

use std::{
    net::SocketAddr,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use common::{Reply, Seen, Stage, ok};
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use http_body::{Body, Frame};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
};
use swarmesh_proxy::Config;
use swarmesh_router::model::{
    Action, BackendProtocol, BackendTls, CertificateRef, Filter, ForwardHeaders, ForwardedProto, Listener, Match,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

/// A certificate that proves itself, and its key.
struct Site(CertifiedKey<rcgen::KeyPair>);

impl Site {
    fn new(names: &[&str]) -> Self {
        Self(generate_simple_self_signed(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.cert.pem() + &self.0.signing_key.serialize_pem()
    }

    fn der(&self) -> CertificateDer<'static> {
        self.0.cert.der().clone()
    }

    fn server(&self) -> Arc<ServerConfig> {
        let key = PrivateKeyDer::try_from(self.0.signing_key.serialize_der()).unwrap();
        let builder =
            ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider())).with_safe_default_protocol_versions().unwrap();
        Arc::new(builder.with_no_client_auth().with_single_cert(vec![self.der()], key).unwrap())
    }
}

fn client(trusted: &[&Site], alpn: &[&str]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    for site in trusted {
        roots.add(site.der()).unwrap();
    }
    let builder =
        ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider())).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    // Every handshake is a whole one, with a certificate.
    config.resumption = rustls::client::Resumption::disabled();
    TlsConnector::from(Arc::new(config))
}

async fn open(to: SocketAddr, name: &str, connector: &TlsConnector) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(to).await?;
    connector.connect(ServerName::try_from(name.to_owned()).unwrap(), stream).await
}

async fn get(stream: TlsStream<TcpStream>, host: &str) -> Response<String> {
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let request = |uri: String| Request::get(uri).header("x-from", "test");
    let answer = if is_http2 {
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request(format!("https://{host}/x")).body(Text::default()).unwrap()).await.unwrap()
    } else {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request("/x".into()).header("host", host).body(Text::default()).unwrap()).await.unwrap()
    };
    let (head, body) = answer.into_parts();
    Response::from_parts(head, read(body).await.0)
}

/// A whole body and its trailers.
async fn read(mut body: hyper::body::Incoming) -> (String, Option<HeaderMap>) {
    let (mut text, mut trailers) = (Vec::new(), None);
    while let Some(frame) = std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await {
        match frame.unwrap().into_data() {
            Ok(data) => text.extend(data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    (String::from_utf8(text).unwrap(), trailers)
}

/// A body of some frames, perhaps with trailers.
#[derive(Default)]
struct Text(Vec<Frame<Bytes>>);

impl Text {
    fn new(parts: &[&'static str], trailers: Option<HeaderMap>) -> Self {
        let data = parts.iter().map(|part| Frame::data(Bytes::from_static(part.as_bytes())));
        let mut frames: Vec<_> = trailers.map(Frame::trailers).into_iter().chain(data.rev()).collect();
        frames.shrink_to_fit();
        Self(frames)
    }
}

impl Body for Text {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Ready(self.0.pop().map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }
}

fn who(seen: &Seen) -> Reply {
    ok(&format!("{} {} {}", seen.by, seen.header("host").unwrap_or_default(), seen.header("x-forwarded-proto").unwrap_or_default()))
}

fn certificate(name: &str) -> CertificateRef {
    CertificateRef::Files { certificate: name.to_owned(), key: None }
}

fn config(directory: &tempfile::TempDir) -> Config {
    Config { certificates_dir: directory.path().to_owned(), ..Config::default() }
}

#[tokio::test]
async fn tls_ends_with_the_certificate_of_the_name() {
    let directory = tempfile::tempdir().unwrap();
    let (one, two) = (Site::new(&["one.example"]), Site::new(&["*.two.example"]));
    std::fs::write(directory.path().join("one.pem"), one.pem()).unwrap();
    std::fs::write(directory.path().join("two.pem"), two.pem()).unwrap();
    let forward = Filter::Forward(ForwardHeaders { proto: Some(ForwardedProto::Set), ..ForwardHeaders::default() });
    let stage = Stage::secure(config(&directory)).service("web", 1, who);
    let (first, second) = (forward.clone(), forward);
    let stage = stage.route(Match::host("one.example"), "web", |route| {
        route.certificate = Some(certificate("one.pem"));
        route.filters.push(first);
    });
    let wildcard = Match { hosts: vec![swarmesh_router::model::HostMatch::Suffix(".two.example".into())], ..Match::default() };
    let stage = stage.route(wildcard, "web", |route| {
        route.certificate = Some(certificate("two.pem"));
        route.filters.push(second);
    });
    for (host, alpn, version) in [
        ("one.example", &["h2", "http/1.1"][..], Version::HTTP_2),
        ("one.example", &["http/1.1"], Version::HTTP_11),
        ("a.two.example", &["h2"], Version::HTTP_2),
    ] {
        let stream = open(stage.address(), host, &client(&[&one, &two], alpn)).await.unwrap();
        let answer = get(stream, host).await;
        assert_eq!((answer.status().as_u16(), answer.version()), (200, version), "{host}");
        assert_eq!(*answer.body(), format!("web.0 {host} https"));
    }
    // A name that nobody has is refused, and so is one without a name.
    assert!(open(stage.address(), "three.example", &client(&[&one, &two], &[])).await.is_err());
    tokio::task::spawn_blocking(move || drop(stage)).await.unwrap();
}

/// What serves requests is given back meanwhile, and TLS's state stays.
#[tokio::test]
async fn a_client_that_rests_keeps_its_tls() {
    let directory = tempfile::tempdir().unwrap();
    let site = Site::new(&["one.example"]);
    std::fs::write(directory.path().join("one.pem"), site.pem()).unwrap();
    let stage = Stage::secure(config(&directory))
        .service("web", 1, who)
        .route(Match::host("one.example"), "web", |route| route.certificate = Some(certificate("one.pem")));
    let stream = open(stage.address(), "one.example", &client(&[&site], &["http/1.1"])).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for length in [0, 1, 100_000] {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let body = Text(vec![Frame::data(Bytes::from(vec![b'x'; length]))]);
        let request = Request::post("/x").header("host", "one.example").body(body).unwrap();
        let answer = sender.send_request(request).await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(read(answer.into_body()).await.0, "web.0 one.example ");
    }
    tokio::task::spawn_blocking(move || drop(stage)).await.unwrap();
}

#[tokio::test]
async fn a_certificate_is_swapped_while_handshakes_run() {
    let directory = tempfile::tempdir().unwrap();
    let sites: Vec<Site> = (0..2).map(|_| Site::new(&["one.example"])).collect();
    let path = directory.path().join("one.pem");
    let write = move |site: &Site| {
        let beside = path.with_extension("new");
        std::fs::write(&beside, site.pem()).unwrap();
        std::fs::rename(&beside, &path).unwrap();
    };
    write(&sites[0]);
    let stage = Stage::secure(config(&directory))
        .service("web", 1, who)
        .route(Match::host("one.example"), "web", |route| route.certificate = Some(certificate("one.pem")));
    let connector = client(&[&sites[0], &sites[1]], &["http/1.1"]);
    let certificates = Arc::clone(&stage.proxy.as_ref().unwrap().shared().certificates);
    let (end, ended) = mpsc::channel::<()>();
    let pems: Vec<Site> = sites;
    let swapping = thread::spawn(move || {
        let mut swaps = 0;
        while ended.recv_timeout(Duration::from_millis(5)).is_err() {
            swaps += 1;
            write(&pems[swaps % 2]);
            certificates.refresh();
        }
        swaps
    });
    let begun = Instant::now();
    let mut handshakes = 0;
    while begun.elapsed() < Duration::from_secs(2) {
        let stream = open(stage.address(), "one.example", &connector).await.unwrap();
        assert_eq!(get(stream, "one.example").await.status(), 200);
        handshakes += 1;
    }
    end.send(()).unwrap();
    let swaps = swapping.join().unwrap();
    assert!(handshakes > 50 && swaps > 50, "{handshakes} handshakes, {swaps} swaps");
}

/// A backend that speaks TLS itself, one connection at a time, and says what it was asked for.
async fn tls_backend(address: SocketAddr, site: &Site) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let (acceptor, local) = (TlsAcceptor::from(site.server()), listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let name = stream.get_ref().1.server_name().unwrap_or("none").to_owned();
                let service = hyper::service::service_fn(move |_: Request<hyper::body::Incoming>| {
                    let name = name.clone();
                    async move { Ok::<_, std::convert::Infallible>(Response::new(format!("sni {name}"))) }
                });
                // How it ended does not matter.
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    local
}

#[tokio::test]
async fn tls_passes_through_by_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let site = Site::new(&["own.example"]);
    let stage = Stage::secure(config(&directory));
    let backend = tls_backend(stage.next_address(), &site).await;
    let stage = stage.at("web", backend).route(Match::host("own.example"), "web", |route| route.listener = Listener::Tls);
    for _ in 0..3 {
        let stream = open(stage.address(), "own.example", &client(&[&site], &[])).await.unwrap();
        assert_eq!(get(stream, "own.example").await.body(), "sni own.example");
    }
    assert!(open(stage.address(), "other.example", &client(&[&site], &[])).await.is_err());
    tokio::task::spawn_blocking(move || drop(stage)).await.unwrap();
}

/// A client that opened TLS while it ended here is served once; then it is told to open another, which is passed through.
#[tokio::test]
async fn a_name_that_is_passed_through_from_now_on_loses_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let site = Site::new(&["own.example"]);
    std::fs::write(directory.path().join("own.pem"), site.pem()).unwrap();
    let stage = Stage::secure(config(&directory)).service("web", 1, who);
    let backend = tls_backend(stage.next_address(), &site).await;
    let mut stage = stage.at("other", backend).route(Match::host("own.example"), "web", |route| {
        route.certificate = Some(certificate("own.pem"));
    });
    let connector = client(&[&site], &[]);
    let (mut silent, mut known) =
        (open(stage.address(), "own.example", &connector).await.unwrap(), open(stage.address(), "own.example", &connector).await.unwrap());
    assert_eq!(ask(&mut known).await, "200 web.0 own.example ");
    stage.routes.clear();
    let stage = stage.route(Match::host("own.example"), "other", |route| route.listener = Listener::Tls);
    assert_eq!(ask(&mut silent).await, "200 web.0 own.example ");
    for stream in [&mut known, &mut silent] {
        assert!(ask(stream).await.starts_with("421"));
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "it is closed");
    }
    let stream = open(stage.address(), "own.example", &connector).await.unwrap();
    assert_eq!(get(stream, "own.example").await.body(), "sni own.example");
    // A name that is nobody's any more is no other connection's.
    let mut stage = stage;
    stage.routes.clear();
    let stage = stage.route(Match::host("own.example"), "web", |route| route.certificate = Some(certificate("own.pem")));
    let mut known = open(stage.address(), "own.example", &connector).await.unwrap();
    assert_eq!(ask(&mut known).await, "200 web.0 own.example ");
    let mut stage = stage;
    stage.routes.clear();
    stage.apply();
    assert!(ask(&mut known).await.starts_with("503"));
    tokio::task::spawn_blocking(move || drop(stage)).await.unwrap();
}

/// One request on a connection that stays; its status and body.
async fn ask(stream: &mut TlsStream<TcpStream>) -> String {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: own.example\r\n\r\n").await.unwrap();
    let (mut read, mut room) = (Vec::new(), [0; 4096]);
    loop {
        let count = stream.read(&mut room).await.unwrap();
        read.extend_from_slice(&room[..count]);
        let text = String::from_utf8_lossy(&read);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            assert!(count > 0, "no answer");
            continue;
        };
        let length = head.to_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        if length.is_none_or(|length: usize| body.len() >= length) {
            return format!("{} {body}", &head[9..12]);
        }
    }
}

#[tokio::test]
async fn backends_are_spoken_to_in_tls_and_prove_themselves_if_asked() {
    let directory = tempfile::tempdir().unwrap();
    let (site, stranger) = (Site::new(&["own.example"]), Site::new(&["own.example"]));
    let bundle = directory.path().join("cas.pem");
    for (verify, trusted, expected) in [(true, &site, 200), (true, &stranger, 502), (false, &stranger, 200)] {
        std::fs::write(&bundle, trusted.0.cert.pem()).unwrap();
        let stage = Stage::new(Config { backend_authorities: bundle.clone(), ..Config::default() });
        let backend = tls_backend(stage.next_address(), &site).await;
        let stage = stage.at("web", backend).route(Match::host("a.example"), "web", |route| {
            if let Action::Forward(set) = &mut route.action {
                set.members[0].tls = Some(BackendTls { verify, name: Some("own.example".into()) });
            }
        });
        let answer = tokio::task::spawn_blocking(move || stage.get("a.example", "/")).await.unwrap();
        assert_eq!(answer.status, expected, "verify {verify}");
        if expected == 200 {
            assert_eq!(answer.body, "sni own.example");
        }
    }
}

/// What gRPC needs: HTTP/2 on both sides without TLS, `te`, and trailers after the body.
#[tokio::test]
async fn http2_goes_through_with_its_trailers() {
    let stage = Stage::new(Config::default());
    let listener = tokio::net::TcpListener::bind(stage.next_address()).await.unwrap();
    let backend = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async move {
                let te = request.headers().get("te").cloned();
                let (text, trailers) = read(request.into_body()).await;
                assert_eq!((text.as_str(), trailers), ("ping", None));
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                let mut answer = Response::new(Text::new(&["po", "ng"], Some(trailers)));
                answer.headers_mut().insert("x-te", te.unwrap_or(HeaderValue::from_static("none")));
                Ok::<_, std::convert::Infallible>(answer)
            });
            tokio::spawn(hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service));
        }
    });
    let stage = stage.at("rpc", backend).route(Match::host("rpc.example"), "rpc", |route| {
        if let Action::Forward(set) = &mut route.action {
            set.members[0].protocol = BackendProtocol::H2c;
        }
    });
    let stream = TcpStream::connect(stage.address()).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..3 {
        let request = Request::post("http://rpc.example/echo").header("te", "trailers").header("content-type", "application/grpc");
        let answer = sender.send_request(request.body(Text::new(&["pi", "ng"], None)).unwrap()).await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.headers()["x-te"].as_bytes()), (200, &b"trailers"[..]));
        let (text, trailers) = read(answer.into_body()).await;
        assert_eq!(text, "pong");
        assert_eq!(trailers.unwrap()["grpc-status"], "0");
    }
    tokio::task::spawn_blocking(move || drop(stage)).await.unwrap();
}
