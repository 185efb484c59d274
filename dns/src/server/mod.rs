//! The server: one thread for datagrams, which waits for nobody, and one for everything that takes its time.

mod tcp;
mod udp;

use std::{
    io,
    net::{SocketAddrV4, TcpListener, UdpSocket},
    os::fd::AsFd,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags},
    eventfd::{EfdFlags, EventFd},
};
use tokio::{sync::mpsc as queue, task::LocalSet};

use crate::{
    Asker, Settings,
    forward::{Forwarder, Limits, Route, Sockets, fit},
    stats::{Ending, Stats},
    wire::{Code, Query, refusal},
};

/// The number by which the wake-up is told from sockets, which count from 1.
const WAKE: u64 = 0;
/// Queries on their way from one thread to the other. The forwarder's own bounds are tighter; this one is for a burst.
const QUEUE: usize = 4096;
/// How long a server that stops waits for what it has asked upstream: a client's first timeout is five seconds at least.
const LAST_ANSWERS: Duration = Duration::from_millis(4500);

/// One container's way to us: its sockets, and what it may see.
#[derive(Debug)]
pub(crate) struct Session {
    id: u64,
    udp: UdpSocket,
    asker: ArcSwap<Asker>,
    route: ArcSwap<Route>,
    tcp: tcp::Places,
}

#[derive(Debug)]
enum Command {
    Add(Arc<Session>),
    Remove(u64),
    Stop,
}

#[derive(Debug)]
enum SlowCommand {
    Listen(Arc<Session>, TcpListener),
    Close(u64),
    Stop,
}

/// A datagram that somebody else must answer.
#[derive(Debug)]
struct Job {
    session: Arc<Session>,
    query: Box<[u8]>,
    client: SocketAddrV4,
    received: Instant,
}

/// A running server. It stops when this is dropped; [`Server::stop`] does it gently.
#[derive(Debug)]
pub struct Server {
    epoll: Arc<Epoll>,
    wake: Arc<EventFd>,
    fast: mpsc::Sender<Command>,
    slow: queue::UnboundedSender<SlowCommand>,
    threads: Vec<JoinHandle<()>>,
    sessions: std::collections::HashMap<u64, Arc<Session>>,
    last: u64,
    shared: Arc<Shared>,
}

/// What both threads and the metrics share.
#[derive(Debug, Default)]
pub struct Shared {
    pub stats: Arc<Stats>,
    pub forwarding: Arc<crate::forward::Counters>,
    /// How those who are asked upstream have behaved.
    pub upstreams: Arc<crate::forward::Health>,
    /// Every so many queries one is logged; 0 is never.
    pub log_every: AtomicU64,
    logged: AtomicU64,
    ended: AtomicBool,
}

/// Tells that a thread has ended, also by a panic.
struct Ends(Arc<Shared>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.ended.store(true, Relaxed);
    }
}

impl Shared {
    /// True once a thread is gone: questions are then taken and not answered, and whoever leads them here must stop that.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Relaxed)
    }

    fn log(&self, session: &Session, query: &[u8], ending: Ending) {
        let every = self.log_every.load(Relaxed);
        if every == 0 || !self.logged.fetch_add(1, Relaxed).is_multiple_of(every) {
            return;
        }
        let asker = session.asker.load();
        let (name, kind) = Query::parse(query).map_or((String::new(), 0), |q| (q.name().unwrap_or_default().to_owned(), q.kind));
        tracing::info!(target: "swarmesh::names", asker = %asker.name, %name, kind, ending = ending.name(), "query");
    }
}

impl Server {
    /// Starts both threads.
    pub fn start(settings: Settings, limits: Limits, sockets: Arc<dyn Sockets>) -> io::Result<Self> {
        let epoll = Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?);
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        epoll.add(&*wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        let shared = Arc::new(Shared::default());
        let (fast, commands) = mpsc::channel();
        let (slow, slow_commands) = queue::unbounded_channel();
        let (forward, jobs) = queue::channel(QUEUE);
        let datagrams = udp::Loop::new(Arc::clone(&epoll), Arc::clone(&wake), commands, forward, settings, Arc::clone(&shared));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (slow_shared, counters, health) = (Arc::clone(&shared), Arc::clone(&shared.forwarding), Arc::clone(&shared.upstreams));
        let (fast_ends, slow_ends) = (Ends(Arc::clone(&shared)), Ends(Arc::clone(&shared)));
        let threads = vec![
            std::thread::Builder::new().name("names".to_owned()).spawn(move || {
                let _ends = fast_ends;
                datagrams.run();
            })?,
            std::thread::Builder::new().name("names-upstream".to_owned()).spawn(move || {
                let _ends = slow_ends;
                let local = LocalSet::new();
                let forwarder = Rc::new(Forwarder::new(sockets, limits, counters, health));
                let slow = Slow { forwarder, settings, shared: slow_shared };
                local.block_on(&runtime, slow.run(jobs, slow_commands));
            })?,
        ];
        Ok(Self { epoll, wake, fast, slow, threads, sessions: std::collections::HashMap::new(), last: WAKE, shared })
    }

    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Answers on a container's sockets from now on. They must be non-blocking.
    pub fn serve(&mut self, udp: UdpSocket, tcp: TcpListener, asker: Asker, route: Route) -> io::Result<u64> {
        self.last += 1;
        let id = self.last;
        let session = Arc::new(Session {
            id,
            udp,
            asker: ArcSwap::from_pointee(asker),
            route: ArcSwap::from_pointee(route),
            tcp: tcp::Places::default(),
        });
        // Known to the thread before the first event can come.
        let _ = self.fast.send(Command::Add(Arc::clone(&session)));
        self.wake();
        self.epoll.add(session.udp.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, id))?;
        let _ = self.slow.send(SlowCommand::Listen(Arc::clone(&session), tcp));
        self.sessions.insert(id, session);
        Ok(id)
    }

    /// What a container may see has changed. Nothing is closed for it.
    pub fn change(&self, id: u64, asker: Asker, route: Route) {
        if let Some(session) = self.sessions.get(&id) {
            session.asker.store(Arc::new(asker));
            session.route.store(Arc::new(route));
        }
    }

    /// Closes a container's sockets.
    pub fn close(&mut self, id: u64) {
        if let Some(session) = self.sessions.remove(&id) {
            let _ = self.epoll.delete(session.udp.as_fd());
            let _ = self.fast.send(Command::Remove(id));
            let _ = self.slow.send(SlowCommand::Close(id));
            self.wake();
        }
    }

    fn wake(&self) {
        // It is full only if the thread is about to wake anyway.
        let _ = self.wake.write(1);
    }

    /// Answers what has come already, waits for what was asked upstream, and ends.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // Datagrams first: the last of them may still be handed on.
        let _ = self.fast.send(Command::Stop);
        self.wake();
        let mut threads = self.threads.drain(..);
        if threads.next().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that answers names ended by a panic");
        }
        let _ = self.slow.send(SlowCommand::Stop);
        if threads.next().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that forwards names ended by a panic");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// The thread for forwards and for TCP.
struct Slow {
    forwarder: Rc<Forwarder>,
    settings: Settings,
    shared: Arc<Shared>,
}

impl Slow {
    async fn run(self, mut jobs: queue::Receiver<Job>, mut commands: queue::UnboundedReceiver<SlowCommand>) {
        let this = Rc::new(self);
        let mut listeners = std::collections::HashMap::new();
        loop {
            tokio::select! {
                biased;
                command = commands.recv() => match command {
                    Some(SlowCommand::Listen(session, listener)) => {
                        let id = session.id;
                        let task = tokio::task::spawn_local(tcp::listen(Rc::clone(&this), session, listener));
                        listeners.insert(id, task.abort_handle());
                    }
                    Some(SlowCommand::Close(id)) => {
                        if let Some(listener) = listeners.remove(&id) {
                            listener.abort();
                        }
                    }
                    Some(SlowCommand::Stop) | None => break,
                },
                Some(job) = jobs.recv() => {
                    tokio::task::spawn_local(Rc::clone(&this).forward(job));
                }
            }
        }
        let deadline = Instant::now() + LAST_ANSWERS;
        while let Ok(job) = jobs.try_recv() {
            tokio::task::spawn_local(Rc::clone(&this).forward(job));
        }
        // Each task holds one; connections that clients keep open for later hold one too, and end with us.
        while this.forwarder.in_flight() > 0 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn forward(self: Rc<Self>, job: Job) {
        let Ok(query) = Query::parse(&job.query) else { return };
        let route = job.session.route.load_full();
        let resolved = self.forwarder.resolve(&query, &route).await;
        let answer = fit(&resolved, query.udp_limit());
        // A client that has gone, or does not take its answer, loses it, as with any datagram.
        let _ = job.session.udp.send_to(&answer, job.client);
        self.shared.stats.forwarded.observe(job.received.elapsed(), 1);
    }
}

/// An answer to something that nobody will look after.
fn refuse(query: &[u8], out: &mut [u8]) -> usize {
    refusal(query, Code::Refused, out)
}
