//! Whether a client's connection is idle, sends a request's head, or waits for an answer, and since when.
//!
//! One look at it every few seconds takes the place of a timer for each request.

use std::{
    cell::Cell,
    future::Future as _,
    io,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// How long a connection is idle until it rests: longer than a page takes to ask for the next thing.
const REST: Duration = Duration::from_secs(1);
/// So many of a worker's connections may take all of that time. What the idle ones hold would otherwise grow with the connections that
/// come in a second, and an allocator keeps what it once had.
const FEW: u64 = 64;
/// And so many looks are as quick as that; those that follow are a second apart.
const QUICK_LOOKS: u32 = 3;
/// Between two looks.
const SHORTEST: Duration = Duration::from_millis(10);

/// How many of a worker's connections have what serves requests.
#[derive(Clone, Debug, Default)]
pub(crate) struct Awake(Rc<Cell<u64>>);

/// One of them, as long as it lives.
#[derive(Debug)]
struct AwakeOne(Rc<Cell<u64>>);

impl Awake {
    fn one_more(&self) -> AwakeOne {
        self.0.set(self.0.get() + 1);
        AwakeOne(Rc::clone(&self.0))
    }
}

impl AwakeOne {
    /// How long it is idle until it rests: the less, the more of them there are.
    fn rest(&self) -> Duration {
        let crowd = self.0.get().max(FEW);
        Duration::from_micros(u64::try_from(REST.as_micros()).unwrap_or(u64::MAX).saturating_mul(FEW * FEW) / crowd.saturating_mul(crowd))
    }
}

impl Drop for AwakeOne {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

#[derive(Debug)]
pub(crate) struct Activity {
    opened: Instant,
    /// Requests that have no whole answer yet.
    busy: AtomicU32,
    /// Milliseconds after `opened`, when the connection became idle.
    idle_since: AtomicU64,
    /// Milliseconds after `opened`, when the first byte of a head came; 0 if none has.
    head_since: AtomicU64,
    /// Heads do not come one by one, and what is read may be anything.
    is_http2: AtomicBool,
    /// Bodies of requests that were not read to their end.
    unread: AtomicU32,
    /// Something was written, and is not known to be with the kernel.
    unflushed: AtomicBool,
}

/// Why a connection is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Overdue {
    /// Nothing was asked for a while, and what serves requests can be given back.
    Rest,
    /// Nothing was asked for too long.
    Idle,
    /// A head does not end.
    Head,
}

/// A request's body, of which something is still to come on the connection.
#[derive(Debug)]
pub(crate) struct Unread(Option<Arc<Activity>>);

impl Unread {
    /// Of a request without a body, or with one that comes otherwise.
    pub(crate) const fn nothing() -> Self {
        Self(None)
    }

    /// To be called when it was read to its end. If it never is, the bytes that follow are not known to begin a request.
    pub(crate) fn is_over(&mut self) {
        if let Some(activity) = self.0.take() {
            activity.unread.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A request that is under way.
#[derive(Debug)]
pub(crate) struct UnderWay(Arc<Activity>);

impl Activity {
    pub(crate) fn new() -> Self {
        Self {
            opened: Instant::now(),
            busy: AtomicU32::new(0),
            idle_since: AtomicU64::new(0),
            head_since: AtomicU64::new(0),
            is_http2: AtomicBool::new(false),
            unread: AtomicU32::new(0),
            unflushed: AtomicBool::new(false),
        }
    }

    /// At least 1.
    fn now(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }

    pub(crate) fn set_http2(&self) {
        self.is_http2.store(true, Ordering::Relaxed);
        self.head_since.store(0, Ordering::Relaxed);
    }

    pub(crate) fn expects_body(self: &Arc<Self>) -> Unread {
        self.unread.fetch_add(1, Ordering::Relaxed);
        Unread(Some(Arc::clone(self)))
    }

    pub(crate) fn begin(self: &Arc<Self>) -> UnderWay {
        self.busy.fetch_add(1, Ordering::Relaxed);
        self.head_since.store(0, Ordering::Relaxed);
        UnderWay(Arc::clone(self))
    }

    fn has_read(&self) {
        if !self.is_http2.load(Ordering::Relaxed) && self.busy.load(Ordering::Relaxed) == 0 && self.head_since.load(Ordering::Relaxed) == 0
        {
            self.head_since.store(self.now(), Ordering::Relaxed);
        }
    }

    /// What is overdue now, or when to look again. `rest` is how long a connection is idle until it rests, if it can.
    fn look(&self, head: Duration, idle: Duration, rest: Option<Duration>) -> Result<Duration, Overdue> {
        let now = Duration::from_millis(self.now());
        let since = |at: &AtomicU64| now.saturating_sub(Duration::from_millis(at.load(Ordering::Relaxed)));
        if self.busy.load(Ordering::Relaxed) > 0 {
            return Ok(rest.map_or(head, |rest| rest.min(head)));
        }
        if self.head_since.load(Ordering::Relaxed) != 0 {
            return head.checked_sub(since(&self.head_since)).filter(|left| !left.is_zero()).ok_or(Overdue::Head);
        }
        let since = since(&self.idle_since);
        let left = idle.checked_sub(since).filter(|left| !left.is_zero()).ok_or(Overdue::Idle)?.min(head);
        match rest {
            Some(rest) if self.unread.load(Ordering::Relaxed) == 0 => match rest.checked_sub(since).filter(|left| !left.is_zero()) {
                Some(until_rest) => Ok(left.min(until_rest)),
                None if self.unflushed.load(Ordering::Relaxed) => Ok(left.min(rest)),
                None => Err(Overdue::Rest),
            },
            _ => Ok(left),
        }
    }
}

/// Looks at a connection's activity when something may be overdue.
#[derive(Debug)]
pub(crate) struct Watch {
    activity: Arc<Activity>,
    head: Duration,
    idle: Duration,
    awake: Awake,
    /// If it can rest.
    own: Option<AwakeOne>,
    /// Since it awoke.
    looks: u32,
    timer: Pin<Box<Sleep>>,
}

impl Watch {
    pub(crate) fn new(activity: Arc<Activity>, head: Duration, idle: Duration, awake: Awake) -> Self {
        // What is overdue already is told when it rings.
        let pause = activity.look(head, idle, None).unwrap_or_default();
        Self { activity, head, idle, awake, own: None, looks: 0, timer: Box::pin(sleep(pause)) }
    }

    pub(crate) const fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }

    /// From now on, the connection rests when it has been idle for a moment.
    pub(crate) fn rests(&mut self) {
        self.own = Some(self.awake.one_more());
        self.looks = 0;
        let rest = self.rest().unwrap_or(REST);
        self.timer.as_mut().reset(tokio::time::Instant::now() + rest);
    }

    /// How long it is idle until it rests, if it can. Who is found busy again and again is no newcomer: a crowd of long requests
    /// must not be looked at all the time.
    fn rest(&self) -> Option<Duration> {
        let own = self.own.as_ref()?;
        Some(if self.looks < QUICK_LOOKS { own.rest().max(SHORTEST) } else { REST })
    }

    /// It rests already, or cannot.
    pub(crate) fn never_rests(&mut self) {
        self.own = None;
    }

    /// Ready when something is overdue. To be polled at first, and when it rings: the task is woken then.
    pub(crate) fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<Overdue> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            match self.activity.look(self.head, self.idle, self.rest()) {
                Ok(pause) => {
                    self.looks = self.looks.saturating_add(1);
                    self.timer.as_mut().reset(tokio::time::Instant::now() + pause.max(SHORTEST));
                }
                Err(overdue) => return Poll::Ready(overdue),
            }
        }
    }

    /// Costs less than a poll.
    pub(crate) fn rings(&self) -> bool {
        self.timer.is_elapsed()
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.idle_since.store(self.0.now(), Ordering::Relaxed);
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream that tells of what it reads.
#[derive(Debug)]
pub(crate) struct Watched<S> {
    stream: S,
    activity: Arc<Activity>,
}

impl<S> Watched<S> {
    pub(crate) const fn new(stream: S, activity: Arc<Activity>) -> Self {
        Self { stream, activity }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.activity.has_read();
        }
        outcome
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.activity.unflushed.store(true, Ordering::Relaxed);
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(cx);
        if matches!(outcome, Poll::Ready(Ok(()))) {
            self.activity.unflushed.store(false, Ordering::Relaxed);
        }
        outcome
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.activity.unflushed.store(true, Ordering::Relaxed);
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_overdue_is_told() {
        let activity = Arc::new(Activity::new());
        let (head, idle) = (Duration::from_secs(10), Duration::from_secs(60));
        assert!(activity.look(head, idle, None).unwrap() <= head);
        assert_eq!(activity.look(head, Duration::ZERO, None), Err(Overdue::Idle));
        activity.has_read();
        assert!(activity.look(head, Duration::ZERO, None).is_ok(), "a head is coming");
        assert_eq!(activity.look(Duration::ZERO, idle, None), Err(Overdue::Head));
        let busy = activity.begin();
        assert!(activity.look(Duration::ZERO, Duration::ZERO, None).is_ok());
        drop(busy);
        assert_eq!(activity.look(head, Duration::ZERO, None), Err(Overdue::Idle));
    }

    #[test]
    fn the_more_are_awake_the_sooner_they_rest() {
        let awake = Awake::default();
        let few: Vec<_> = (0..FEW).map(|_| awake.one_more()).collect();
        assert!(few.iter().all(|one| one.rest() == REST));
        let more: Vec<_> = (0..FEW).map(|_| awake.one_more()).collect();
        assert_eq!(few[0].rest(), REST / 4);
        let crowd: Vec<_> = (0..100_000).map(|_| awake.one_more()).collect();
        assert!(few[0].rest() < Duration::from_millis(1));
        drop((more, crowd));
        assert_eq!(few[0].rest(), REST);
        drop(few);
        assert_eq!(awake.0.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_of_long_requests_is_looked_at_once_a_second() {
        let awake = Awake::default();
        let crowd: Vec<_> = (0..10_000).map(|_| awake.one_more()).collect();
        let activity = Arc::new(Activity::new());
        let mut watch = Watch::new(Arc::clone(&activity), Duration::from_secs(10), Duration::from_secs(60), awake);
        let _busy = activity.begin();
        watch.rests();
        let _never = tokio::time::timeout(Duration::from_secs(10), std::future::poll_fn(|cx| watch.poll_overdue(cx))).await;
        assert!(watch.looks <= QUICK_LOOKS + 10, "{}", watch.looks);
        drop(crowd);
    }

    #[test]
    fn a_connection_rests_when_nothing_is_left_of_its_requests() {
        let activity = Arc::new(Activity::new());
        let (head, idle, rest) = (Duration::from_secs(10), Duration::from_secs(60), Duration::from_secs(1));
        let look = |rest| activity.look(head, idle, Some(rest));
        assert!(look(rest).unwrap() <= rest);
        assert_eq!(look(Duration::ZERO), Err(Overdue::Rest));
        activity.has_read();
        assert!(look(Duration::ZERO).is_ok(), "a head is coming");
        let busy = activity.begin();
        assert!(look(Duration::ZERO).is_ok(), "a request is under way");
        drop(busy);
        assert_eq!(look(Duration::ZERO), Err(Overdue::Rest));
        activity.unflushed.store(true, Ordering::Relaxed);
        assert!(look(Duration::ZERO).is_ok(), "the client does not read");
        activity.unflushed.store(false, Ordering::Relaxed);
        let mut read = activity.expects_body();
        assert!(look(Duration::ZERO).is_ok(), "a body is coming");
        read.is_over();
        drop(read);
        assert_eq!(look(Duration::ZERO), Err(Overdue::Rest));
        drop(activity.expects_body());
        assert!(look(Duration::ZERO).is_ok(), "what follows may be the rest of a body");
    }
}
