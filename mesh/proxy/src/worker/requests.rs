//! HTTP on an open connection: its requests, and the time between them.
//!
//! A connection that waits for a request has a socket, TLS's state, and nothing else. hyper's state and buffers, some 33 kB, are made
//! when a request begins, and given back when no other has come for a second, or sooner if many connections have them.

use std::{
    future::{Future, poll_fn},
    mem::MaybeUninit,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::Request;
use http_body::Body as _;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    time::timeout,
};

use super::{
    Worker,
    activity::{Activity, Overdue, UnderWay, Unread, Watch, Watched},
};
use crate::{
    http::{answer, body::AnswerBody, request::Client},
    rewound::Rewound,
    upstream::LocalExecutor,
};

/// Which versions of HTTP a connection may speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Versions {
    /// What its first bytes say.
    Any,
    Http1,
    Http2,
}

/// What begins HTTP/2 and no request of another version (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What is read of a connection that has waited.
const HEAD: usize = 4096;
/// How long the last word to a client may take that does not read.
const LAST_WORD: Duration = Duration::from_secs(5);

/// A client's stream, whose activity is watched.
type Stream<S> = Rewound<Watched<S>>;

/// Serves requests until either side has enough.
pub(super) async fn serve<S>(worker: Rc<Worker>, stream: S, client: Client, mut versions: Versions)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let activity = Arc::new(Activity::new());
    let client = Rc::new(client);
    let mut drain = worker.drain.clone();
    let mut ending = pin!(async move {
        // A proxy that is gone is no less a reason to end.
        let _ = drain.wait_for(|drain| *drain).await;
    });
    let mut watch = Watch::new(Arc::clone(&activity), worker.config.times.request, worker.config.times.keep_alive, worker.awake.clone());
    let mut stream = Rewound::new(Watched::new(stream, activity));
    loop {
        let Some(first) = begins(&mut stream, versions == Versions::Any, &mut watch, ending.as_mut()).await else {
            // Whether it hears that or not.
            let _ = timeout(LAST_WORD, stream.shutdown()).await;
            return;
        };
        if versions == Versions::Any {
            versions = if first.starts_with(PREFACE) { Versions::Http2 } else { Versions::Http1 };
        }
        stream.put_back(first);
        // Boxed, for what it needs is given back when it is over.
        let rests = if versions == Versions::Http2 {
            Box::pin(serve_http2(&worker, stream, &client, &mut watch, ending.as_mut())).await;
            None
        } else {
            Box::pin(serve_http1(&worker, stream, &client, &mut watch, ending.as_mut())).await
        };
        match rests {
            Some(waiting) => stream = waiting,
            None => return,
        }
    }
}

/// Waits until a request begins, and returns what was read of it: as much as it takes to tell HTTP/2 if it `tells`. `None` if none
/// comes.
async fn begins<S: AsyncRead + Unpin>(
    stream: &mut Stream<S>,
    tells: bool,
    watch: &mut Watch,
    mut ending: Pin<&mut impl Future<Output = ()>>,
) -> Option<Bytes> {
    let mut first = BytesMut::new();
    watch.never_rests();
    poll_fn(|cx| {
        loop {
            // A head at once, as a rule. The room is the poll's: who waits has none.
            let mut room = [MaybeUninit::uninit(); HEAD];
            let mut room = ReadBuf::uninit(&mut room);
            match Pin::new(&mut *stream).poll_read(cx, &mut room) {
                Poll::Ready(Ok(())) if room.filled().is_empty() => return Poll::Ready(None),
                Poll::Ready(Ok(())) => first.extend_from_slice(room.filled()),
                Poll::Ready(Err(_)) => return Poll::Ready(None),
                Poll::Pending => break,
            }
            let is_open = tells && first.len() < PREFACE.len() && PREFACE.starts_with(&first);
            if !is_open {
                return Poll::Ready(Some(first.split().freeze()));
            }
        }
        if ending.as_mut().poll(cx).is_ready() || watch.poll_overdue(cx).is_ready() {
            return Poll::Ready(None);
        }
        Poll::Pending
    })
    .await
}

/// Returns the stream when the client has no request for the moment, and nothing if the connection is over.
async fn serve_http1<S>(
    worker: &Rc<Worker>,
    stream: Stream<S>,
    client: &Rc<Client>,
    watch: &mut Watch,
    ending: Pin<&mut impl Future<Output = ()>>,
) -> Option<Stream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let activity = Arc::clone(watch.activity());
    let service = service_fn(|request: Request<Incoming>| {
        let unread = if request.body().is_end_stream() { Unread::nothing() } else { activity.expects_body() };
        let under_way = activity.begin();
        let answering = answer(Rc::clone(worker), Rc::clone(client), request, unread);
        async move { answering.await.map(|answer| answer.map(|body| Answer { body, _under_way: under_way })) }
    });
    let sizes = worker.config.sizes;
    let mut builder = http1::Builder::new();
    // Heads are timed by what is read, see `Activity`.
    builder.timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(sizes.head.max(8192)).max_headers(sizes.headers);
    let mut connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
    watch.rests();
    let end = lives(worker, &mut connection, watch, ending, |connection| Pin::new(connection).graceful_shutdown()).await;
    match end {
        End::Over => None,
        End::Rests => {
            let parts = connection.into_parts()?;
            let mut stream = parts.io.into_inner();
            stream.put_back(parts.read_buf);
            Some(stream)
        }
    }
}

async fn serve_http2<S>(
    worker: &Rc<Worker>,
    stream: Stream<S>,
    client: &Rc<Client>,
    watch: &mut Watch,
    ending: Pin<&mut impl Future<Output = ()>>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let activity = Arc::clone(watch.activity());
    activity.set_http2();
    // Its requests live in tasks of their own.
    let (shared_worker, shared_client) = (Rc::clone(worker), Rc::clone(client));
    let service = service_fn(move |request: Request<Incoming>| {
        let under_way = activity.begin();
        let answering = answer(Rc::clone(&shared_worker), Rc::clone(&shared_client), request, Unread::nothing());
        async move { answering.await.map(|answer| answer.map(|body| Answer { body, _under_way: under_way })) }
    });
    let sizes = worker.config.sizes;
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(sizes.streams)
        .max_header_list_size(u32::try_from(sizes.head).unwrap_or(u32::MAX))
        // A client that never answers is not there (RFC 9113, 6.7).
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    lives(worker, &mut connection, watch, ending, |connection| connection.as_mut().graceful_shutdown()).await;
}

/// How a connection of hyper's ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Over,
    /// Its client has no request for the moment.
    Rests,
}

/// Of a connection, as far as its end goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    New,
    Open,
    /// It takes no more requests.
    Ending,
}

/// Polls a connection of hyper's until it is over, or rests if it may. `end` lets it take no more requests.
async fn lives<C: Future + Unpin>(
    worker: &Worker,
    connection: &mut C,
    watch: &mut Watch,
    mut ending: Pin<&mut impl Future<Output = ()>>,
    end: impl Fn(&mut C),
) -> End {
    // One that never saw another value than the first.
    let changes = worker.drain.clone();
    let mut state = State::New;
    poll_fn(|cx: &mut Context<'_>| {
        // How it ended, its requests know.
        if Pin::new(&mut *connection).poll(cx).is_ready() {
            return Poll::Ready(End::Over);
        }
        if state == State::Ending {
            return Poll::Pending;
        }
        // Both wake this task, since they were polled once. Most events are the connection's, and asking costs less than polling.
        let is_new = state == State::New;
        state = State::Open;
        if is_new || watch.rings() {
            match watch.poll_overdue(cx) {
                Poll::Ready(Overdue::Head) => return Poll::Ready(End::Over),
                Poll::Ready(Overdue::Rest) => return Poll::Ready(End::Rests),
                Poll::Ready(Overdue::Idle) => state = State::Ending,
                Poll::Pending => {}
            }
        }
        if (is_new || !matches!(changes.has_changed(), Ok(false))) && ending.as_mut().poll(cx).is_ready() {
            state = State::Ending;
        }
        if state == State::Ending {
            end(connection);
            // It may have an end now.
            return Pin::new(&mut *connection).poll(cx).map(|_| End::Over);
        }
        Poll::Pending
    })
    .await
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

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
