//! A client's connection, from its first byte on.

use std::{cell::RefCell, net::SocketAddr, rc::Rc};

use bytes::BytesMut;
use socket2::SockRef;
use tokio::{net::TcpStream, time::Instant};

use super::{
    Kind, Worker,
    requests::{self, Versions},
};
use crate::{
    hello::{HelloLimits, read_hello},
    http::request::{Client, ClientTls},
    metrics::add,
    passing::pass,
    proxy_protocol::read_header,
    rewound::Rewound,
    tls::{self, TlsStream},
};

/// A connection that requests come by.
enum Opened {
    Plain(Rewound<TcpStream>, Client),
    Tls(Box<TlsStream<TcpStream>>, Client, Versions),
}

pub(super) async fn serve(worker: Rc<Worker>, kind: Kind, stream: TcpStream, peer: SocketAddr) {
    // Boxed, for nobody needs it while requests are waited for.
    match Box::pin(open(&worker, kind, stream, peer)).await {
        Some(Opened::Plain(stream, client)) => requests::serve(worker, stream, client, Versions::Any).await,
        Some(Opened::Tls(stream, client, versions)) => requests::serve(worker, stream, client, versions).await,
        None => {}
    }
}

/// Returns nothing if it is refused, or what it carries was passed on as it is.
async fn open(worker: &Rc<Worker>, kind: Kind, stream: TcpStream, peer: SocketAddr) -> Option<Opened> {
    // Answers are written whole; waiting for more would only delay them.
    let _ = stream.set_nodelay(true);
    // A client that is gone without a word is noticed, in tunnels too.
    let _ = SockRef::from(&stream).set_keepalive(true);
    let local = stream.local_addr().ok()?;
    let is_trusted = worker.config.trusts(peer.ip().to_canonical());
    let mut client = Client::new(canonical(peer), canonical(local), is_trusted);
    let mut stream = Rewound::new(stream);
    if is_trusted && worker.config.accept_proxy_protocol {
        let deadline = Instant::now() + worker.config.times.handshake;
        match read_header(&mut stream, deadline).await {
            Ok(header) => {
                if let Some(addresses) = header.addresses {
                    client.address = canonical(addresses.source);
                    client.local = canonical(addresses.destination);
                }
                stream.put_back(header.rest);
            }
            Err(error) => {
                tracing::debug!(%peer, %error, "a connection is refused");
                return None;
            }
        }
    }
    let routing = worker.shared.routing.load();
    let lane = routing.table.position_tcp(client.local.port()).and_then(|position| routing.lane(position)).cloned();
    drop(routing);
    match (lane, kind) {
        (Some(lane), _) => {
            pass(worker, &lane, &client, stream, None).await;
            None
        }
        (None, Kind::Plain) => Some(Opened::Plain(stream, client)),
        (None, Kind::Tls) => open_or_pass(worker, stream, client).await,
    }
}

/// TLS: what it asks for decides whether it is opened here.
async fn open_or_pass(worker: &Rc<Worker>, mut stream: Rewound<TcpStream>, mut client: Client) -> Option<Opened> {
    let deadline = Instant::now() + worker.config.times.handshake;
    let hello = match read_hello(&mut stream, HelloLimits::default(), deadline).await {
        Ok(hello) => hello,
        Err(error) => {
            add(&worker.shared.counts.failed_handshakes, 1);
            tracing::debug!(client = %client.address, %error, "a TLS connection is refused");
            if let Some(alert) = error.alert() {
                tls::refuse(&mut stream, alert, deadline).await;
            }
            return None;
        }
    };
    let routing = worker.shared.routing();
    let lane = routing.table.position_tls(hello.sni.as_deref(), client.local.port()).and_then(|position| routing.lane(position)).cloned();
    if let Some(lane) = lane {
        add(&worker.shared.counts.passed_tls, 1);
        drop(routing);
        pass(worker, &lane, &client, stream, Some(hello)).await;
        return None;
    }
    let (behind, stream) = stream.into_parts();
    let mut first = BytesMut::from(&hello.bytes[..]);
    first.extend_from_slice(&behind);
    let config = worker.shared.tls.load_full();
    match tls::accept(config, &worker.shared.certificates, stream, first, hello.sni.as_deref(), deadline).await {
        Ok(stream) => {
            add(&worker.shared.counts.handshakes, 1);
            let session = stream.session();
            let versions = if tls::is_http2(session) { Versions::Http2 } else { Versions::Http1 };
            let version = tls::version_name(session);
            let (is_verified, opened_by) = (tls::has_client_certificate(session), RefCell::new(Some(routing)));
            client.tls = Some(ClientTls { sni: hello.sni, is_verified, version, opened_by });
            Some(Opened::Tls(Box::new(stream), client, versions))
        }
        Err(error) => {
            add(&worker.shared.counts.failed_handshakes, 1);
            tracing::debug!(client = %client.address, %error, "a TLS connection is refused");
            None
        }
    }
}

/// IPv4 as IPv4.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
