//! A client's connection, from its first byte on.

use std::{
    future::{Future as _, poll_fn},
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use http::{Request, Version};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::Instant,
};

use super::{
    Kind, Worker,
    activity::{Activity, Overdue, UnderWay, Watch, Watched},
};
use crate::{
    hello::{HelloLimits, read_hello},
    http::{
        answer,
        body::AnswerBody,
        request::{Client, ClientTls},
    },
    metrics::add,
    passing::pass,
    proxy_protocol::read_header,
    rewound::Rewound,
    tls,
    upstream::LocalExecutor,
};

/// Which versions of HTTP a connection may speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Versions {
    /// What its first bytes say.
    Any,
    Http1,
    Http2,
}

pub(super) async fn serve(worker: Rc<Worker>, kind: Kind, stream: TcpStream, peer: SocketAddr) {
    // Answers are written whole; waiting for more would only delay them.
    let _ = stream.set_nodelay(true);
    // A client that is gone without a word is noticed, in tunnels too.
    let _ = SockRef::from(&stream).set_keepalive(true);
    let Ok(local) = stream.local_addr() else { return };
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
                return;
            }
        }
    }
    let routing = worker.shared.routing.load();
    let lane = routing.table.position_tcp(client.local.port()).and_then(|position| routing.lane(position)).cloned();
    drop(routing);
    match (lane, kind) {
        (Some(lane), _) => pass(&worker, &lane, &client, stream, None).await,
        (None, Kind::Plain) => http(worker, stream, client, Versions::Any).await,
        (None, Kind::Tls) => open_or_pass(worker, stream, client).await,
    }
}

/// TLS: what it asks for decides whether it is opened here.
async fn open_or_pass(worker: Rc<Worker>, mut stream: Rewound<TcpStream>, mut client: Client) {
    let deadline = Instant::now() + worker.config.times.handshake;
    let hello = match read_hello(&mut stream, HelloLimits::default(), deadline).await {
        Ok(hello) => hello,
        Err(error) => {
            add(&worker.shared.counts.failed_handshakes, 1);
            tracing::debug!(client = %client.address, %error, "a TLS connection is refused");
            if let Some(alert) = error.alert() {
                tls::refuse(&mut stream, alert, deadline).await;
            }
            return;
        }
    };
    let routing = worker.shared.routing.load();
    let lane = routing.table.position_tls(hello.sni.as_deref(), client.local.port()).and_then(|position| routing.lane(position)).cloned();
    drop(routing);
    if let Some(lane) = lane {
        add(&worker.shared.counts.passed_tls, 1);
        pass(&worker, &lane, &client, stream, Some(hello)).await;
        return;
    }
    stream.put_back(hello.bytes);
    let config = worker.shared.tls.load_full();
    match tls::accept(config, &worker.shared.certificates, stream, hello.sni.as_deref(), deadline).await {
        Ok(stream) => {
            add(&worker.shared.counts.handshakes, 1);
            let (_, session) = stream.get_ref();
            let versions = if tls::is_http2(session) { Versions::Http2 } else { Versions::Http1 };
            let version = tls::version_name(session);
            client.tls = Some(ClientTls { sni: hello.sni, is_verified: tls::has_client_certificate(session), version });
            http(worker, stream, client, versions).await;
        }
        Err(error) => {
            add(&worker.shared.counts.failed_handshakes, 1);
            tracing::debug!(client = %client.address, %error, "a TLS connection is refused");
        }
    }
}

/// IPv4 as IPv4.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

async fn http<S>(worker: Rc<Worker>, stream: S, client: Client, versions: Versions)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let activity = Arc::new(Activity::new());
    let (times, sizes) = (worker.config.times, worker.config.sizes);
    let client = Rc::new(client);
    // One that waits, and one that never saw another value than the first.
    let (mut drain, changes) = (worker.drain.clone(), worker.drain.clone());
    let service = {
        let activity = Arc::clone(&activity);
        service_fn(move |request: Request<Incoming>| {
            if request.version() == Version::HTTP_2 {
                activity.set_http2();
            }
            let under_way = activity.begin();
            let answering = answer(Rc::clone(&worker), Rc::clone(&client), request);
            async move { answering.await.map(|answer| answer.map(|body| Answer { body, _under_way: under_way })) }
        })
    };
    let mut builder = auto::Builder::new(LocalExecutor);
    match versions {
        Versions::Any => {}
        Versions::Http1 => builder = builder.http1_only(),
        Versions::Http2 => builder = builder.http2_only(),
    }
    // Heads are timed by what is read, see `Activity`.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(sizes.head.max(8192)).max_headers(sizes.headers);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(sizes.streams)
        .max_header_list_size(u32::try_from(sizes.head).unwrap_or(u32::MAX))
        // A client that never answers is not there (RFC 9113, 6.7).
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(Watched::new(stream, Arc::clone(&activity))), service);
    let mut connection = pin!(connection);
    if versions == Versions::Http2 {
        activity.set_http2();
    }
    let mut watch = Watch::new(activity, times.request, times.keep_alive);
    let mut ending = pin!(drain.wait_for(|drain| *drain));
    let mut state = State::New;
    poll_fn(|cx| {
        // How it ended, its requests know.
        if connection.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if state == State::Ending {
            return Poll::Pending;
        }
        // Both wake this task, since they were polled once. Most events are the connection's, and asking costs less than polling.
        let is_new = state == State::New;
        state = State::Open;
        if is_new || watch.rings() {
            match watch.poll_overdue(cx) {
                Poll::Ready(Overdue::Head) => return Poll::Ready(()),
                Poll::Ready(Overdue::Idle) => state = State::Ending,
                Poll::Pending => {}
            }
        }
        if (is_new || !matches!(changes.has_changed(), Ok(false))) && ending.as_mut().poll(cx).is_ready() {
            state = State::Ending;
        }
        if state == State::Ending {
            connection.as_mut().graceful_shutdown();
            // It may have an end now.
            return connection.as_mut().poll(cx).map(|_| ());
        }
        Poll::Pending
    })
    .await;
}

/// Of a connection, as far as its end goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    New,
    Open,
    /// It takes no more requests.
    Ending,
}

/// An answer, until whose end the connection is not idle.
#[derive(Debug)]
struct Answer {
    body: AnswerBody,
    _under_way: UnderWay,
}

impl http_body::Body for Answer {
    type Data = <AnswerBody as http_body::Body>::Data;
    type Error = <AnswerBody as http_body::Body>::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        std::pin::Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
