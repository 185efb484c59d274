//! Against rustls's own client, over streams that cut what is sent anywhere.

use std::{future::poll_fn, time::Duration};

use rustls::{
    AlertDescription, ClientConfig, RootCertStore, SupportedProtocolVersion,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client};

use super::*;
use crate::tls::{provider, testing::Authority};

/// Both sides' configurations; the client has a certificate of its own, and sends what it says in small records.
struct Sides {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Sides {
    fn new(version: &'static SupportedProtocolVersion, largest_record: Option<usize>) -> Self {
        let authority = Authority::new();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.certificate.as_bytes()).unwrap()).unwrap();
        let own = |name: &str| {
            let site = authority.site(&[name]);
            let chain = vec![CertificateDer::from_pem_slice(site.certificate.as_bytes()).unwrap()];
            (chain, PrivateKeyDer::from_pem_slice(site.key.as_bytes()).unwrap())
        };
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots.clone()), provider()).build().unwrap();
        let (chain, key) = own("a.example");
        let server = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[version]).unwrap();
        let server = server.with_client_cert_verifier(verifier).with_single_cert(chain, key).unwrap();
        let (chain, key) = own("client.example");
        let client = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[version]).unwrap();
        let mut client = client.with_root_certificates(roots).with_client_auth_cert(chain, key).unwrap();
        client.max_fragment_size = largest_record;
        Self { server: Arc::new(server), client: Arc::new(client) }
    }

    /// After the handshake. `room`: what the stream between them holds.
    async fn connect(&self, room: usize) -> (TlsStream<DuplexStream>, client::TlsStream<DuplexStream>) {
        let (near, far) = duplex(room);
        let client = async {
            let mut client = TlsConnector::from(Arc::clone(&self.client)).connect("a.example".try_into().unwrap(), far).await.unwrap();
            // Its last word may be its own still.
            client.flush().await.unwrap();
            client
        };
        let both = async { tokio::join!(TlsStream::accept(Arc::clone(&self.server), near, BytesMut::new()), client) };
        let (server, client) = timeout(Duration::from_secs(20), both).await.unwrap();
        (server.unwrap(), client)
    }
}

impl<S> TlsStream<S> {
    fn held(&self) -> [usize; 3] {
        [self.incoming.capacity(), self.content.capacity(), self.outgoing.capacity()]
    }
}

fn some(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 + at / 251) as u8).collect()
}

#[tokio::test]
async fn what_is_said_arrives_whole_however_it_is_cut() {
    for (version, room, largest_record, length) in [&TLS12, &TLS13]
        .into_iter()
        .flat_map(|version| [(version, 1, Some(64), 3000), (version, 1000, Some(1000), 70_000), (version, 1 << 17, None, 300_000)])
    {
        let (mut server, mut client) = Sides::new(version, largest_record).connect(room).await;
        assert_eq!(server.session().peer_certificates().unwrap().len(), 1);
        if room > 1 << 16 {
            assert_eq!(server.held(), [0; 3], "after the handshake");
        }
        let said = some(length);
        let echo = async {
            let mut heard = Vec::new();
            let mut piece = vec![0; 5000];
            loop {
                let length = server.read(&mut piece).await.unwrap();
                if length == 0 {
                    break;
                }
                heard.extend_from_slice(&piece[..length]);
                server.write_all(&piece[..length]).await.unwrap();
                server.flush().await.unwrap();
            }
            // The client says no more, but it still hears.
            server.write_all(b"and that was all").await.unwrap();
            server.shutdown().await.unwrap();
            assert_eq!(server.read(&mut piece).await.unwrap(), 0);
            assert_eq!(server.held(), [0; 3]);
            assert_eq!(server.write(b"more").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
            heard
        };
        let (mut reading, mut writing) = tokio::io::split(&mut client);
        let say = async {
            writing.write_all(&said).await.unwrap();
            writing.shutdown().await.unwrap();
        };
        let hear = async {
            let mut heard = Vec::new();
            reading.read_to_end(&mut heard).await.unwrap();
            heard
        };
        let all = async { tokio::join!(echo, say, hear) };
        let (heard, (), back) = timeout(Duration::from_secs(60), all).await.unwrap();
        assert!(heard == said, "{version:?} {room}");
        assert!(back == [&said[..], b"and that was all"].concat(), "{version:?} {room}");
    }
}

#[tokio::test]
async fn slices_are_one_text() {
    for lengths in [&[4, 4][..], &[0, 10, 0, 20_000, 5, 70_000, 0], &[CONTENT, 1], &[CONTENT - 1, CONTENT + 1, 3], &[1; 40], &[200_000]] {
        let (mut server, mut client) = Sides::new(&TLS13, None).connect(1 << 20).await;
        let said: Vec<Vec<u8>> = lengths.iter().map(|length| some(*length)).collect();
        let whole = said.concat();
        let mut done = 0;
        while done < whole.len() {
            let mut skip = done;
            let slices: Vec<IoSlice> = said
                .iter()
                .map(|slice| {
                    let from = skip.min(slice.len());
                    skip -= from;
                    IoSlice::new(&slice[from..])
                })
                .collect();
            let taken = poll_fn(|cx| Pin::new(&mut server).poll_write_vectored(cx, &slices)).await.unwrap();
            assert_eq!(taken, (whole.len() - done).min(WRITTEN_RECORDS * CONTENT));
            done += taken;
        }
        let mut heard = vec![0; whole.len()];
        client.read_exact(&mut heard).await.unwrap();
        assert!(heard == whole, "{lengths:?}");
    }
    // A head and its body go in one record.
    let (mut server, mut client) = Sides::new(&TLS13, None).connect(1 << 20).await;
    let slices = [IoSlice::new(b"head"), IoSlice::new(b"body")];
    assert_eq!(poll_fn(|cx| Pin::new(&mut server).poll_write_vectored(cx, &slices)).await.unwrap(), 8);
    let raw = &mut client.get_mut().0;
    let mut header = [0; 5];
    // The tickets come before.
    let mut lengths = Vec::new();
    while let Ok(Ok(_)) = timeout(Duration::from_millis(50), raw.read_exact(&mut header)).await {
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        raw.read_exact(&mut vec![0; length]).await.unwrap();
        lengths.push(length);
    }
    assert_eq!(lengths.last(), Some(&(8 + 1 + 16)), "{lengths:?}");
    assert!(lengths.iter().filter(|length| **length < 100).count() == 1, "{lengths:?}");
}

#[tokio::test]
async fn who_goes_without_a_word_may_not_have_said_all() {
    let (mut server, mut client) = Sides::new(&TLS13, None).connect(1 << 16).await;
    client.write_all(b"a beginning").await.unwrap();
    let (io, _) = client.into_inner();
    drop(io);
    let mut heard = Vec::new();
    assert_eq!(server.read_to_end(&mut heard).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(heard, b"a beginning");
    // And who goes within a record, the same.
    let (mut server, mut client) = Sides::new(&TLS13, None).connect(1 << 16).await;
    client.get_mut().0.write_all(&[23, 3, 3, 0, 100, 1, 2, 3]).await.unwrap();
    drop(client);
    assert_eq!(server.read_u8().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

/// RFC 8446, 4.6.3: the answer is new keys of the server's own, which come before what it says next.
#[tokio::test]
async fn keys_are_changed_on_the_way() {
    for room in [1, 1 << 16] {
        let (mut server, mut client) = Sides::new(&TLS13, None).connect(room).await;
        for round in 0..20 {
            client.get_mut().1.refresh_traffic_keys().unwrap();
            let said = some(round * 100 + 1);
            let there = async {
                client.write_all(&said).await.unwrap();
                client.flush().await.unwrap();
                let mut heard = vec![0; said.len()];
                client.read_exact(&mut heard).await.unwrap();
                assert_eq!(heard, said);
            };
            let back = async {
                let mut heard = vec![0; said.len()];
                server.read_exact(&mut heard).await.unwrap();
                server.write_all(&heard).await.unwrap();
                server.flush().await.unwrap();
            };
            timeout(Duration::from_secs(20), async { tokio::join!(there, back) }).await.unwrap();
        }
    }
}

/// A record that is there in part hinders nobody from writing.
#[tokio::test]
async fn it_writes_while_a_record_is_not_whole() {
    let (mut server, mut client) = Sides::new(&TLS13, None).connect(1 << 16).await;
    let mut records = Vec::new();
    client.get_mut().1.refresh_traffic_keys().unwrap();
    std::io::Write::write_all(&mut client.get_mut().1.writer(), b"said").unwrap();
    while client.get_mut().1.wants_write() {
        client.get_mut().1.write_tls(&mut records).unwrap();
    }
    for (at, byte) in records.iter().enumerate() {
        client.get_mut().0.write_all(&[*byte]).await.unwrap();
        let mut none = [0; 10];
        let heard = timeout(Duration::from_millis(1), server.read(&mut none)).await;
        assert_eq!(heard.is_ok(), at == records.len() - 1, "{at}");
        server.write_all(&[at as u8]).await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), at as u8);
    }
}

/// What has come is read before something is written, and is not lost.
#[tokio::test]
async fn what_has_come_waits_for_its_reader() {
    let (mut server, mut client) = Sides::new(&TLS13, Some(100)).connect(1 << 16).await;
    let said = some(10_000);
    client.write_all(&said).await.unwrap();
    client.shutdown().await.unwrap();
    let mut heard = vec![0; 10];
    server.read_exact(&mut heard).await.unwrap();
    for at in 0..5 {
        server.write_all(b"?").await.unwrap();
        let mut more = [0; 10];
        server.read_exact(&mut more[..at]).await.unwrap();
        heard.extend_from_slice(&more[..at]);
    }
    server.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, said);
    server.shutdown().await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "?????");
}

#[tokio::test]
async fn a_client_that_does_not_read_is_waited_for() {
    let (mut server, mut client) = Sides::new(&TLS13, None).connect(1000).await;
    let said = some(1 << 20);
    let mut taken = 0;
    while let Ok(length) = timeout(Duration::from_millis(20), server.write(&said[taken..])).await {
        taken += length.unwrap();
    }
    assert_eq!(taken, WRITTEN_RECORDS * CONTENT, "one write, and no more");
    assert!(server.outgoing.len() <= SEALED);
    let rest = async {
        server.write_all(&said[taken..]).await.unwrap();
        server.shutdown().await.unwrap();
    };
    let mut heard = Vec::new();
    let (_, ()) = tokio::join!(async { client.read_to_end(&mut heard).await.unwrap() }, rest);
    assert!(heard == said);
    assert_eq!(server.held(), [0; 3]);
}

/// Who breaks TLS is told how, and nothing more.
#[tokio::test]
async fn who_breaks_the_rules_is_told_how() {
    let long = [&[23, 3, 3, 0x48, 1][..], &[0; 0x4801]].concat();
    let rows: [(&str, &[u8], AlertDescription); 4] = [
        (
            "a record that nobody sealed",
            &[23, 3, 3, 0, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0],
            AlertDescription::BadRecordMac,
        ),
        ("a record without a kind", &[99, 3, 3, 0, 1, 0], AlertDescription::DecodeError),
        ("a record that is too long", &long, AlertDescription::DecodeError),
        ("HTTP", b"GET / HTTP/1.1\r\n\r\n", AlertDescription::DecodeError),
    ];
    for (what, records, alert) in rows {
        for way in ["by reading", "by writing"] {
            let (mut server, mut client) = Sides::new(&TLS13, None).connect(1 << 16).await;
            client.write_all(b"well").await.unwrap();
            client.get_mut().0.write_all(records).await.unwrap();
            let mut heard = [0; 4];
            let mut first = server.read_exact(&mut heard[..if way == "by reading" { 4 } else { 2 }]).await.map(drop);
            if way == "by writing" {
                first = first.and(server.write_all(b"more").await);
            } else {
                first = first.and(server.read_u8().await.map(drop));
            }
            let error = first.unwrap_err();
            assert!(error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()), "{what} {way}: {error:?}");
            assert_eq!(server.write(b"more").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe, "{what} {way}");
            server.shutdown().await.unwrap();
            drop(server);
            let mut heard = Vec::new();
            let error = client.read_to_end(&mut heard).await.unwrap_err();
            let told = error.downcast::<rustls::Error>().unwrap();
            assert_eq!((told, &heard[..]), (rustls::Error::AlertReceived(alert), &b""[..]), "{what} {way}");
        }
    }
}

#[tokio::test]
async fn a_handshake_that_fails_says_why() {
    let sides = Sides::new(&TLS13, None);
    // One that knows nobody who signed the server's certificate, and one with TLS 1.2 alone.
    for (sides, name) in [
        (&Sides { server: Arc::clone(&sides.server), client: Sides::new(&TLS13, None).client }, "who"),
        (&Sides { server: Arc::clone(&sides.server), client: Sides::new(&TLS12, None).client }, "old"),
    ] {
        let (near, far) = duplex(1 << 16);
        let connect = TlsConnector::from(Arc::clone(&sides.client)).connect("a.example".try_into().unwrap(), far);
        let (server, client) = tokio::join!(TlsStream::accept(Arc::clone(&sides.server), near, BytesMut::new()), connect);
        let server = server.unwrap_err().downcast::<rustls::Error>().unwrap();
        let client = client.unwrap_err().downcast::<rustls::Error>().unwrap();
        match name {
            "who" => assert_eq!(server, rustls::Error::AlertReceived(AlertDescription::UnknownCA)),
            _ => assert_eq!(client, rustls::Error::AlertReceived(AlertDescription::ProtocolVersion), "{server}"),
        }
    }
    // One that goes.
    let (near, far) = duplex(1 << 16);
    drop(far);
    let error = TlsStream::accept(Arc::clone(&sides.server), near, BytesMut::new()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

/// Bytes change, are lost or come twice, during the handshake and after: the connection may end, and that is all.
#[tokio::test(start_paused = true)]
async fn nothing_panics() {
    let mut random = 88_172_645_463_325_252_u64;
    let mut draw = move |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random % below as u64).unwrap()
    };
    let mut failed = 0;
    for version in [&TLS12, &TLS13] {
        let sides = Sides::new(version, Some(200));
        for _ in 0..100 {
            let (near, mut wire) = duplex(1 << 16);
            let (mut other, far) = duplex(1 << 16);
            let client = async {
                let mut client = TlsConnector::from(Arc::clone(&sides.client)).connect("a.example".try_into().unwrap(), far).await?;
                for round in 0..5 {
                    client.write_all(&some(round * 300)).await?;
                    client.flush().await?;
                    client.get_mut().1.refresh_traffic_keys().ok();
                }
                client.shutdown().await?;
                client.read_to_end(&mut Vec::new()).await
            };
            let server = async {
                let mut server = TlsStream::accept(Arc::clone(&sides.server), near, BytesMut::new()).await?;
                let mut piece = [0; 100];
                loop {
                    let length = server.read(&mut piece).await?;
                    server.write_all(&piece[..length]).await?;
                    if length == 0 {
                        return server.shutdown().await;
                    }
                }
            };
            let tamper = async {
                let (mut there, mut back) = (vec![0; 700], vec![0; 700]);
                let mut left = draw(6000);
                loop {
                    tokio::select! {
                        length = other.read(&mut there) => match length {
                            Ok(1..) => {
                                let length = length.unwrap();
                                let mut bytes = there[..length].to_vec();
                                if length > left {
                                    match draw(3) {
                                        0 => bytes[left] ^= 1 << draw(8),
                                        1 => drop(bytes.remove(left)),
                                        _ => bytes.extend_from_within(left..),
                                    }
                                }
                                left = left.wrapping_sub(length);
                                if wire.write_all(&bytes).await.is_err() { return }
                            }
                            _ => return,
                        },
                        length = wire.read(&mut back) => match length {
                            Ok(length @ 1..) => if other.write_all(&back[..length]).await.is_err() { return },
                            _ => return,
                        },
                    }
                }
            };
            // Who waits for what was lost waits in vain.
            let outcome = timeout(Duration::from_millis(100), async {
                tokio::select! {
                    (server, client) = async { tokio::join!(server, client) } => server.and(client.map(drop)),
                    () = async { tamper.await; std::future::pending().await } => unreachable!(),
                }
            });
            failed += usize::from(!matches!(outcome.await, Ok(Ok(()))));
        }
    }
    assert!(failed > 100, "{failed} of 200");
}

/// Each change of keys asks for an answer; a client that takes none makes nobody keep many.
#[tokio::test]
async fn answers_that_nobody_takes_do_not_pile_up() {
    let (mut server, mut client) = Sides::new(&TLS13, None).connect(1 << 12).await;
    // The wire back is full from here on.
    while timeout(Duration::from_millis(20), server.write(&some(4000))).await.is_ok() {}
    let held = server.outgoing.len();
    for _ in 0..5000 {
        client.get_mut().1.refresh_traffic_keys().unwrap();
        client.write_all(b"x").await.unwrap();
        client.flush().await.unwrap();
        assert_eq!(server.read_u8().await.unwrap(), b'x');
    }
    assert!(server.outgoing.len() <= held + 100, "{held} became {}", server.outgoing.len());
    assert_eq!(server.content.capacity() + server.incoming.capacity(), 0);
}
