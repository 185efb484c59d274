//! Bodies on their way: from the client to a backend, and back, with what has to be known when they end.

use std::{
    cell::Cell,
    error::Error,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::{
    access_log::Entry,
    compress::{Compressed, Encoding},
    endpoint::Busy,
    patience::Patience,
    routing::Lane,
    upstream::{Lease, SendError, Upstreams, http1::Connection},
    worker::activity::Unread,
};

/// Why a body ends before its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the backend broke off: {0}")]
    Backend(#[source] SendError),
    #[error("the client broke off: {0}")]
    Client(#[source] hyper::Error),
    #[error("the backend sent nothing for {0:?}")]
    BackendStalled(Duration),
    #[error("the client sent nothing for {0:?}")]
    ClientStalled(Duration),
    #[error("the request's body is longer than {0} bytes")]
    TooLong(u64),
}

/// How far a request's body has come, for those who wait for what a backend makes of it.
#[derive(Debug, Default)]
pub(crate) struct Upload {
    /// Bytes.
    pub(crate) received: Cell<u64>,
    progress: Cell<Progress>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Progress {
    /// There is no more of it, or none at all.
    #[default]
    Over,
    /// The backend has not asked for more.
    Open,
    /// The client has sent all that was asked of it so far.
    Awaited,
    Broken(Breach),
}

/// What a client did to its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Breach {
    /// It went away, or sent what is no body.
    Off,
    Stalled,
    TooLong,
}

impl Upload {
    /// What the client did, if the body ended before its end.
    pub(crate) fn breach(&self) -> Option<Breach> {
        if let Progress::Broken(breach) = self.progress.get() { Some(breach) } else { None }
    }

    /// Everybody waits for the client.
    pub(crate) fn is_awaited(&self) -> bool {
        self.progress.get() == Progress::Awaited
    }

    fn breaks(&self, breach: Breach) {
        self.progress.set(Progress::Broken(breach));
    }
}

/// What a client sends.
#[derive(Debug)]
pub(crate) struct RequestBody {
    /// `None` if there is none.
    inner: Option<Incoming>,
    left: Option<u64>,
    most: u64,
    upload: Rc<Upload>,
    limit: Duration,
    patience: Patience,
    unread: Unread,
}

impl RequestBody {
    pub(crate) fn new(inner: Incoming, most: Option<u64>, patience: Duration, upload: Rc<Upload>, unread: Unread) -> Self {
        let inner = (!inner.is_end_stream()).then_some(inner);
        if inner.is_some() {
            upload.progress.set(Progress::Open);
        }
        Self { inner, left: most, most: most.unwrap_or(u64::MAX), upload, limit: patience, patience: Patience::default(), unread }
    }

    pub(crate) fn none() -> Self {
        Self {
            inner: None,
            left: None,
            most: 0,
            upload: Rc::default(),
            limit: Duration::MAX,
            patience: Patience::default(),
            unread: Unread::nothing(),
        }
    }

    pub(crate) fn is_none(&self) -> bool {
        self.inner.is_none()
    }

    /// Says so if its announced length is too much.
    pub(crate) fn is_too_long(&self) -> bool {
        self.inner.as_ref().is_some_and(|inner| inner.size_hint().lower() > self.most)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        let frame = match Pin::new(&mut *inner).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                this.upload.progress.set(Progress::Awaited);
                ready!(this.patience.poll_pause(this.limit, cx));
                this.upload.breaks(Breach::Stalled);
                return Poll::Ready(Some(Err(BodyError::ClientStalled(this.limit))));
            }
        };
        this.patience.moves();
        this.upload.progress.set(Progress::Open);
        let Some(frame) = frame else {
            this.upload.progress.set(Progress::Over);
            this.unread.is_over();
            return Poll::Ready(None);
        };
        let frame = frame.map_err(|error| {
            this.upload.breaks(Breach::Off);
            BodyError::Client(error)
        })?;
        if inner.is_end_stream() {
            this.upload.progress.set(Progress::Over);
            this.unread.is_over();
        }
        if let Some(data) = frame.data_ref() {
            let length = data.len() as u64;
            this.upload.received.set(this.upload.received.get() + length);
            if let Some(left) = &mut this.left {
                *left = match left.checked_sub(length) {
                    Some(left) => left,
                    None => {
                        this.upload.breaks(Breach::TooLong);
                        return Poll::Ready(Some(Err(BodyError::TooLong(this.most))));
                    }
                };
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

/// What a client is sent.
#[derive(Debug)]
pub(crate) enum AnswerBody {
    Own(Option<Bytes>, Option<Box<Account>>),
    Backend(Box<BackendBody>),
    Compressed(Box<Compressed<BackendBody>>),
}

/// A backend's answer. When it is over, the connection is free for the next request.
#[derive(Debug)]
pub(crate) struct BackendBody {
    /// hyper's. Without it, the body comes by the connection itself.
    inner: Option<Incoming>,
    /// The connection, until the body is over.
    lease: Option<Lease>,
    upstreams: Rc<Upstreams>,
    limit: Duration,
    patience: Patience,
    account: Account,
}

/// What is counted of one request. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) lane: Option<Arc<Lane>>,
    pub(crate) begun: Instant,
    /// 0 while there is no answer.
    pub(crate) status: u16,
    pub(crate) upload: Rc<Upload>,
    pub(crate) sent: u64,
    pub(crate) busy: Option<Busy>,
    /// If it is logged.
    pub(crate) entry: Option<Box<Entry>>,
}

impl Account {
    pub(crate) fn new(lane: Option<Arc<Lane>>, begun: Instant) -> Self {
        Self { lane, begun, status: 0, upload: Rc::default(), sent: 0, busy: None, entry: None }
    }

    /// The answer ends before its end.
    fn breaks_off(&mut self) {
        if let Some(entry) = &mut self.entry {
            entry.reason = Some("backend-broke-off");
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if let Some(lane) = &self.lane {
            lane.counts.end(self.status, self.begun.elapsed(), self.upload.received.get(), self.sent);
        }
        if let Some(entry) = &self.entry {
            entry.end(self);
        }
    }
}

impl AnswerBody {
    pub(crate) fn own(text: impl Into<Bytes>) -> Self {
        let text = text.into();
        Self::Own((!text.is_empty()).then_some(text), None)
    }

    pub(crate) fn backend(body: BackendBody, encoding: Option<Encoding>) -> Self {
        match encoding {
            Some(encoding) => Self::Compressed(Box::new(Compressed::new(encoding, body))),
            None => Self::Backend(Box::new(body)),
        }
    }

    /// Lets a request's counts end with its answer.
    pub(crate) fn accounted(self, account: Account) -> Self {
        match self {
            Self::Own(text, _) => Self::Own(text, Some(Box::new(account))),
            backend @ (Self::Backend(_) | Self::Compressed(_)) => backend,
        }
    }
}

impl BackendBody {
    pub(crate) fn new(inner: Option<Incoming>, lease: Lease, upstreams: Rc<Upstreams>, limit: Duration, account: Account) -> Self {
        let mut body = Self { inner, lease: Some(lease), upstreams, limit, patience: Patience::default(), account };
        if body.is_end_stream() {
            body.finish();
        }
        body
    }

    fn poll_inner(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, SendError>>> {
        match (&mut self.inner, self.lease.as_mut().and_then(Lease::own)) {
            (Some(inner), _) => Pin::new(inner).poll_frame(cx).map_err(SendError::Hyper),
            (None, Some(own)) => own.poll_body(cx).map_err(SendError::Own),
            (None, None) => Poll::Ready(None),
        }
    }

    fn finish(&mut self) {
        if let Some(lease) = self.lease.take() {
            self.upstreams.give_back(lease);
        }
    }
}

impl Body for BackendBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = match self.poll_inner(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                let limit = self.limit;
                ready!(self.patience.poll_pause(limit, cx));
                self.account.breaks_off();
                return Poll::Ready(Some(Err(BodyError::BackendStalled(limit))));
            }
        };
        self.patience.moves();
        match frame {
            None => {
                self.finish();
                Poll::Ready(None)
            }
            Some(Err(error)) => {
                self.account.breaks_off();
                Poll::Ready(Some(Err(BodyError::Backend(error))))
            }
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.account.sent += data.len() as u64;
                }
                if self.is_end_stream() {
                    self.finish();
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match (&self.inner, &self.lease) {
            (Some(inner), _) => inner.is_end_stream(),
            (None, lease) => lease.as_ref().and_then(Lease::as_own).is_none_or(Connection::is_end),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.inner, &self.lease) {
            (Some(inner), _) => inner.size_hint(),
            (None, lease) => lease.as_ref().and_then(Lease::as_own).map_or_else(|| SizeHint::with_exact(0), Connection::size_hint),
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut *self {
            Self::Own(text, account) => Poll::Ready(text.take().map(|text| {
                if let Some(account) = account {
                    account.sent += text.len() as u64;
                }
                Ok(Frame::data(text))
            })),
            Self::Backend(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Compressed(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(text, _) => text.is_none(),
            Self::Backend(body) => body.is_end_stream(),
            Self::Compressed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(text, _) => SizeHint::with_exact(text.as_ref().map_or(0, |t| t.len() as u64)),
            Self::Backend(body) => body.size_hint(),
            Self::Compressed(body) => body.size_hint(),
        }
    }
}
