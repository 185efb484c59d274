//! Handshakes over loopback.

use std::{
    fs,
    net::SocketAddr,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use rustls::{
    AlertDescription, ClientConfig, ClientConnection, HandshakeKind, RootCertStore, SupportedProtocolVersion,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use swarmesh_router::{
    Table,
    model::{CertificateRef, ProxyProtocol},
};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_rustls::TlsConnector;

use super::{
    testing::{Authority, Site, route},
    *,
};
use crate::{
    files::Unreadable,
    hello::{HelloLimits, read_hello},
    proxy_protocol,
    rewound::Rewound,
    tunnel::{End, tunnel},
};

const PATIENCE: Duration = Duration::from_secs(20);

/// What the server knows of a connection: its name, whether HTTP/2 was chosen, whether there was a client certificate.
type Seen = Result<(Option<String>, bool, bool), AcceptError>;

struct Node {
    root: tempfile::TempDir,
    authority: Authority,
    certificates: Arc<Certificates>,
}

struct Server {
    address: SocketAddr,
    seen: mpsc::UnboundedReceiver<Seen>,
}

impl Node {
    /// With a certificate for `a.example` that the authority signed.
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        let directories = Directories { secrets: root.path().to_owned(), certificates: root.path().to_owned() };
        fs::write(root.path().join("a.pem"), authority.site(&["a.example"]).combined()).unwrap();
        let certificates = Arc::new(Certificates::new(directories, None));
        let a = CertificateRef::Secrets { certificate: "a.pem".into(), key: None };
        certificates.update(Arc::new(Table::new([route("a.example", Some(a))]).0));
        Self { root, authority, certificates }
    }

    fn config(&self, clients: Option<&Authority>) -> Arc<ServerConfig> {
        let clients = clients.map(|authority| {
            let path = self.root.path().join("clients.pem");
            fs::write(&path, &authority.certificate).unwrap();
            ClientAuthorities::read(&path).unwrap()
        });
        server_config(Arc::clone(&self.certificates), clients.as_ref()).unwrap()
    }

    /// Reads the hello first, as the proxy does, and says `hello` to whoever came through.
    async fn serve(&self, config: Arc<ServerConfig>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, seen) = mpsc::unbounded_channel();
        let certificates = Arc::clone(&self.certificates);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (config, certificates, tell) = (Arc::clone(&config), Arc::clone(&certificates), tell.clone());
                tokio::spawn(async move {
                    let deadline = Instant::now() + PATIENCE;
                    let hello = read_hello(&mut stream, HelloLimits::default(), deadline).await.unwrap();
                    let first = BytesMut::from(&hello.bytes[..]);
                    match accept(config, &certificates, stream, first, hello.sni.as_deref(), deadline).await {
                        Ok(mut stream) => {
                            let connection = stream.session();
                            let seen = (hello.sni.clone(), is_http2(connection), has_client_certificate(connection));
                            tell.send(Ok(seen)).ok();
                            stream.write_all(b"hello").await.ok();
                            stream.shutdown().await.ok();
                            // Until the client has read it.
                            stream.read_u8().await.ok();
                        }
                        Err(error) => drop(tell.send(Err(error))),
                    }
                });
            }
        });
        Server { address, seen }
    }

    fn client(&self, versions: &[&'static SupportedProtocolVersion], alpn: &[&[u8]], site: Option<&Site>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.certificate.as_bytes()).unwrap()).unwrap();
        let builder =
            ClientConfig::builder_with_provider(provider()).with_protocol_versions(versions).unwrap().with_root_certificates(roots);
        let mut config = match site {
            Some(site) => {
                let chain = vec![CertificateDer::from_pem_slice(site.certificate.as_bytes()).unwrap()];
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(site.key.as_bytes()).unwrap()).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Arc::new(config)
    }
}

/// What a client got, and the connection as it was then.
async fn visit(to: SocketAddr, config: &Arc<ClientConfig>, name: &str) -> io::Result<(String, ClientConnection)> {
    let stream = TcpStream::connect(to).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut stream = TlsConnector::from(Arc::clone(config)).connect(name, stream).await?;
    let mut said = String::new();
    stream.read_to_string(&mut said).await?;
    Ok((said, stream.into_inner().1))
}

fn alert(error: &io::Error) -> Option<AlertDescription> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}

#[tokio::test]
async fn both_versions_and_both_protocols_are_spoken() {
    let node = Node::new();
    let mut server = node.serve(node.config(None)).await;
    let name = Some("a.example".to_owned());
    for version in [&TLS13, &TLS12] {
        for (alpn, http2) in [(&[HTTP2, HTTP1][..], true), (&[HTTP1, HTTP2][..], true), (&[HTTP1][..], false), (&[][..], false)] {
            let (said, connection) = visit(server.address, &node.client(&[version], alpn, None), "a.example").await.unwrap();
            assert_eq!((said.as_str(), connection.protocol_version()), ("hello", Some(version.version)));
            assert_eq!(server.seen.recv().await.unwrap().unwrap(), (name.clone(), http2, false), "{version:?} {alpn:?}");
        }
        let error = visit(server.address, &node.client(&[version], &[b"acme-tls/1"], None), "a.example").await.unwrap_err();
        assert_eq!(alert(&error), Some(AlertDescription::NoApplicationProtocol));
        assert!(matches!(server.seen.recv().await.unwrap(), Err(AcceptError::Tls(_))));
    }
}

#[tokio::test]
async fn a_name_without_a_certificate_is_not_recognized() {
    let node = Node::new();
    let mut server = node.serve(node.config(None)).await;
    for version in [&TLS13, &TLS12] {
        for (name, sni) in [("b.example", Some("b.example")), ("127.0.0.1", None)] {
            let error = visit(server.address, &node.client(&[version], &[], None), name).await.unwrap_err();
            assert_eq!(alert(&error), Some(AlertDescription::UnrecognisedName), "{name} {error}");
            let seen = server.seen.recv().await.unwrap();
            assert!(matches!(&seen, Err(AcceptError::UnknownName(name)) if name.as_deref() == sni), "{seen:?}");
        }
    }
}

#[tokio::test]
async fn who_comes_back_with_a_ticket_is_let_in_shortly() {
    let node = Node::new();
    let (mut one, mut other) = (node.serve(node.config(None)).await, node.serve(node.config(None)).await);
    for version in [&TLS13, &TLS12] {
        let client = node.client(&[version], &[], None);
        let mut kinds = Vec::new();
        for address in [one.address, one.address, other.address] {
            kinds.push(visit(address, &client, "a.example").await.unwrap().1.handshake_kind());
        }
        let [first, again, elsewhere] = kinds[..] else { panic!("{kinds:?}") };
        assert!(matches!(first, Some(HandshakeKind::Full)), "{first:?}");
        assert_eq!(again, Some(HandshakeKind::Resumed));
        assert!(matches!(elsewhere, Some(HandshakeKind::Full)), "another configuration has other keys: {elsewhere:?}");
    }
    for server in [&mut one, &mut other] {
        while let Ok(seen) = server.seen.try_recv() {
            assert!(seen.is_ok());
        }
    }
}

#[tokio::test]
async fn client_certificates_are_optional_verified_and_told() {
    let node = Node::new();
    let (clients, strangers) = (Authority::new(), Authority::new());
    let mut server = node.serve(node.config(Some(&clients))).await;
    let known = clients.site(&["somebody"]);
    let stranger = strangers.site(&["somebody"]);
    let expired = clients.site_with(&["somebody"], |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    for version in [&TLS13, &TLS12] {
        for (site, there) in [(None, false), (Some(&known), true)] {
            let client = node.client(&[version], &[], site);
            // The second time by ticket.
            for _ in 0..2 {
                assert_eq!(visit(server.address, &client, "a.example").await.unwrap().0, "hello");
                assert_eq!(server.seen.recv().await.unwrap().unwrap().2, there, "{version:?}");
            }
        }
        for site in [&stranger, &expired] {
            assert!(visit(server.address, &node.client(&[version], &[], Some(site)), "a.example").await.is_err());
            let seen = server.seen.recv().await.unwrap();
            assert!(matches!(seen, Err(AcceptError::Tls(rustls::Error::InvalidCertificate(_)))), "{seen:?}");
        }
    }
}

#[tokio::test]
async fn another_bundle_lets_in_others_and_nobody_comes_back_by_ticket() {
    let node = Node::new();
    let (old, new) = (Authority::new(), Authority::new());
    let path = node.root.path().join("bundle.pem");
    fs::write(&path, &old.certificate).unwrap();
    let mut clients = ClientAuthorities::read(&path).unwrap();
    let before = node.serve(server_config(Arc::clone(&node.certificates), Some(&clients)).unwrap()).await;
    let (of_old, of_new) = (node.client(&[&TLS13], &[], Some(&old.site(&["x"]))), node.client(&[&TLS13], &[], Some(&new.site(&["x"]))));
    assert!(visit(before.address, &of_old, "a.example").await.is_ok() && visit(before.address, &of_new, "a.example").await.is_err());
    fs::write(&path, &old.certificate).unwrap();
    assert!(!clients.refresh().unwrap(), "the same again");
    for reason in [Reason::NoCertificate, Reason::File(Unreadable::Missing)] {
        if reason == Reason::File(Unreadable::Missing) {
            fs::remove_file(&path).unwrap();
        } else {
            fs::write(&path, "no certificate").unwrap();
        }
        for _ in 0..2 {
            let error = clients.refresh().unwrap_err();
            assert!(matches!(&error, ConfigError::Certificate(e) if e.reason == reason), "{error}");
        }
        assert!(matches!(ClientAuthorities::read(&path), Err(ConfigError::Certificate(e)) if e.reason == reason));
    }
    fs::write(&path, &new.certificate).unwrap();
    assert!(clients.refresh().unwrap());
    let after = node.serve(server_config(Arc::clone(&node.certificates), Some(&clients)).unwrap()).await;
    assert!(visit(after.address, &of_old, "a.example").await.is_err() && visit(after.address, &of_new, "a.example").await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn whoever_stops_in_the_handshake_is_late() {
    let node = Node::new();
    let (client, near) = tokio::io::duplex(1 << 16);
    let mut config = ClientConnection::new(node.client(&[&TLS13], &[], None), "a.example".try_into().unwrap()).unwrap();
    let mut hello = Vec::new();
    config.write_tls(&mut hello).unwrap();
    let deadline = Instant::now() + Duration::from_secs(7);
    let result = accept(node.config(None), &node.certificates, near, BytesMut::from(&hello[..]), Some("a.example"), deadline).await;
    assert!(matches!(result, Err(AcceptError::Late)), "{result:?}");
    assert_eq!(Instant::now(), deadline);
    drop(client);
}

/// Certificates change every few milliseconds, and tables, too.
#[test]
fn no_handshake_fails_while_certificates_change() {
    let node = Node::new();
    let stop = AtomicBool::new(false);
    let sites: Vec<Site> = (0..4).map(|_| node.authority.site(&["a.example"])).collect();
    std::thread::scope(|scope| {
        let changer = scope.spawn(|| {
            let mut changes = 0;
            let route = || route("a.example", Some(CertificateRef::Secrets { certificate: "a.pem".into(), key: None }));
            while !stop.load(Ordering::Relaxed) {
                let (new, path) = (node.root.path().join("new"), node.root.path().join("a.pem"));
                let text = sites[changes % sites.len()].combined();
                // Now and then it is written in place, and half of it is read.
                if changes % 5 == 4 {
                    fs::write(&path, &text[..text.len() / 2]).unwrap();
                    node.certificates.refresh();
                }
                fs::write(&new, text).unwrap();
                fs::rename(&new, &path).unwrap();
                assert!(node.certificates.refresh());
                node.certificates.update(Arc::new(Table::new([route()]).0));
                changes += 1;
                std::thread::sleep(Duration::from_millis(2));
            }
            changes
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let shown = runtime.block_on(async {
            let server = node.serve(node.config(None)).await;
            let mut shown = std::collections::HashSet::new();
            let end = Instant::now() + Duration::from_secs(2);
            while Instant::now() < end || shown.len() < 3 {
                // Each a new client: nobody has a ticket.
                let client = node.client(&[&TLS13, &TLS12], &[], None);
                let visits: Vec<_> = (0..4)
                    .map(|_| {
                        let (client, address) = (Arc::clone(&client), server.address);
                        tokio::spawn(async move { visit(address, &client, "a.example").await })
                    })
                    .collect();
                for visit in visits {
                    let (said, connection) = visit.await.unwrap().unwrap();
                    assert_eq!(said, "hello");
                    shown.insert(connection.peer_certificates().unwrap()[0].to_vec());
                }
            }
            shown.len()
        });
        stop.store(true, Ordering::Relaxed);
        let changes = changer.join().unwrap();
        assert!(changes > 1 && shown > 2, "{changes} changes, {shown} shown");
    });
}

/// The hello is read for its name, behind a PROXY header, and the backend opens what the client closed.
#[tokio::test]
async fn a_connection_can_be_passed_on_unopened() {
    let node = Node::new();
    let mut backend = node.serve(node.config(None)).await;
    let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = front.local_addr().unwrap();
    let to = backend.address;
    let source: SocketAddr = "192.0.2.1:1234".parse().unwrap();
    for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
        let client = async {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(&proxy_protocol::header(version, source, address)).await.unwrap();
            let connector = TlsConnector::from(node.client(&[&TLS13], &[], None));
            let mut stream = connector.connect("a.example".try_into().unwrap(), stream).await.unwrap();
            let mut said = String::new();
            stream.read_to_string(&mut said).await.unwrap();
            said
        };
        let proxy = async {
            let deadline = Instant::now() + PATIENCE;
            let mut stream = Rewound::new(front.accept().await.unwrap().0);
            let header = proxy_protocol::read_header(&mut stream, deadline).await.unwrap();
            stream.put_back(header.rest);
            let hello = read_hello(&mut stream, HelloLimits::default(), deadline).await.unwrap();
            stream.put_back(hello.bytes);
            let mut backend = TcpStream::connect(to).await.unwrap();
            let tunnelled = tunnel(&mut stream, &mut backend, Some(PATIENCE), std::future::pending()).await;
            (header.addresses.unwrap().source, hello.sni, tunnelled)
        };
        let (said, (from, name, tunnelled)) = tokio::join!(client, proxy);
        assert_eq!((said.as_str(), from, name.as_deref()), ("hello", source, Some("a.example")));
        assert!(matches!(tunnelled.end, End::Closed) && tunnelled.to_backend > 1400 && tunnelled.to_client > 500, "{tunnelled:?}");
        assert_eq!(backend.seen.recv().await.unwrap().unwrap().0.as_deref(), Some("a.example"));
    }
}

/// Another implementation's view, with its own client.
#[tokio::test]
async fn openssl_agrees() {
    let node = Node::new();
    let clients = Authority::new();
    let server = node.serve(node.config(Some(&clients))).await;
    let authority = node.root.path().join("authority.pem");
    fs::write(&authority, &node.authority.certificate).unwrap();
    let somebody = clients.site(&["somebody"]);
    let client = node.root.path().join("somebody.pem");
    fs::write(&client, somebody.combined()).unwrap();
    let (authority, client) = (authority.to_str().unwrap(), client.to_str().unwrap());
    for (arguments, expected) in [
        (&["-servername", "a.example", "-tls1_3", "-alpn", "h2,http/1.1"][..], &["ALPN protocol: h2", "New, TLSv1.3"][..]),
        (&["-servername", "a.example", "-tls1_2"], &["No ALPN negotiated", "New, TLSv1.2"]),
        (&["-servername", "A.EXAMPLE.", "-tls1_3", "-cert", client], &["Acceptable client certificate CA names", "New, TLSv1.3"]),
        (&["-servername", "b.example"], &["unrecognized name"]),
        (&["-noservername"], &["unrecognized name"]),
        (&["-servername", "a.example", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0"], &["SSL alert number", "Cipher is (NONE)"]),
    ] {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", &server.address.to_string(), "-CAfile", authority, "-verify_return_error"]);
        command.args(arguments).stdin(Stdio::null());
        let output =
            tokio::task::spawn_blocking(move || command.output().expect("openssl, of Debian's package of that name")).await.unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(expected.iter().all(|part| said.contains(part)), "{arguments:?} without {expected:?}:\n{said}");
    }
}

#[test]
fn nothing_is_taken_that_could_be_sent_again() {
    let config = Node::new().config(None);
    assert_eq!((config.max_early_data_size, config.ticketer.enabled()), (0, true));
}
