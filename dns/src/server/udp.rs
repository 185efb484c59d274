//! Datagrams: one thread takes them from all sockets, and answers what needs nobody else at once.

use std::{
    collections::HashMap,
    io::{IoSlice, IoSliceMut},
    net::SocketAddrV4,
    os::fd::{AsRawFd, RawFd},
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollEvent, EpollTimeout},
        socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg},
    },
};

use super::{Command, Job, Session, Shared, WAKE, refuse};
use crate::{Outcome, Random, Settings, respond, stats::Ending, wire::UDP_LIMIT};

/// Datagrams per call. More would help only a client that never waits for an answer.
const BATCH: usize = 32;
/// A longer query is cut by the kernel, and then refused as malformed.
const LONGEST_QUERY: usize = 2048;
const EVENTS: usize = 64;

pub(super) struct Loop {
    epoll: Arc<Epoll>,
    wake: Arc<nix::sys::eventfd::EventFd>,
    commands: std::sync::mpsc::Receiver<Command>,
    sessions: HashMap<u64, Arc<Session>>,
    forward: tokio::sync::mpsc::Sender<Job>,
    settings: Settings,
    shared: Arc<Shared>,
    random: Random,
}

/// Made once, by the thread that uses them: a query allocates nothing.
struct Buffers {
    queries: Box<[u8]>,
    answers: Box<[u8]>,
    incoming: MultiHeaders<SockaddrIn>,
    outgoing: MultiHeaders<SockaddrIn>,
}

impl Loop {
    pub(super) fn new(
        epoll: Arc<Epoll>,
        wake: Arc<nix::sys::eventfd::EventFd>,
        commands: std::sync::mpsc::Receiver<Command>,
        forward: tokio::sync::mpsc::Sender<Job>,
        settings: Settings,
        shared: Arc<Shared>,
    ) -> Self {
        let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64);
        Self { epoll, wake, commands, sessions: HashMap::new(), forward, settings, shared, random: Random::new(seed) }
    }

    pub(super) fn run(mut self) {
        let mut buffers = Buffers {
            queries: vec![0; BATCH * LONGEST_QUERY].into(),
            answers: vec![0; BATCH * UDP_LIMIT].into(),
            incoming: MultiHeaders::preallocate(BATCH, None),
            outgoing: MultiHeaders::preallocate(BATCH, None),
        };
        let mut events = [EpollEvent::empty(); EVENTS];
        loop {
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(error) => {
                    tracing::error!(%error, "cannot wait for queries any more; names are not answered");
                    return;
                }
            };
            for event in &events[..count] {
                if event.data() == WAKE {
                    if !self.obey() {
                        // What has come is answered still.
                        let sessions: Vec<Arc<Session>> = self.sessions.values().cloned().collect();
                        for session in sessions {
                            while self.serve(&session, &mut buffers) > 0 {}
                        }
                        return;
                    }
                } else if let Some(session) = self.sessions.get(&event.data()).cloned() {
                    self.serve(&session, &mut buffers);
                }
            }
        }
    }

    /// False when it is over.
    fn obey(&mut self) -> bool {
        // Only its count is of interest, and that not even.
        let _ = self.wake.read();
        loop {
            match self.commands.try_recv() {
                Ok(Command::Add(session)) => {
                    self.sessions.insert(session.id, session);
                }
                Ok(Command::Remove(id)) => {
                    self.sessions.remove(&id);
                }
                Ok(Command::Stop) | Err(std::sync::mpsc::TryRecvError::Disconnected) => return false,
                Err(std::sync::mpsc::TryRecvError::Empty) => return true,
            }
        }
    }

    /// Takes what one socket has, a batch at most: the others wait too, and epoll tells of the rest again.
    /// Returns how many that was.
    fn serve(&mut self, session: &Arc<Session>, buffers: &mut Buffers) -> usize {
        let fd = session.udp.as_raw_fd();
        let Buffers { queries, answers, incoming, outgoing } = buffers;
        let mut lengths = [0usize; BATCH];
        let mut from = [None; BATCH];
        let received = {
            let mut room = queries.chunks_exact_mut(LONGEST_QUERY);
            let mut slices: [[IoSliceMut<'_>; 1]; BATCH] = std::array::from_fn(|_| [IoSliceMut::new(room.next().unwrap_or_default())]);
            match recvmmsg(fd, incoming, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None) {
                Ok(messages) => {
                    let mut count = 0;
                    for message in messages {
                        // What was cut is no query; length 0 is ignored further down.
                        lengths[count] = if message.flags.contains(MsgFlags::MSG_TRUNC) { 0 } else { message.bytes };
                        from[count] = message.address;
                        count += 1;
                    }
                    count
                }
                // A client that has gone: its ICMP error is the socket's now, and the next call clears it.
                Err(_) => 0,
            }
        };
        if received == 0 {
            return 0;
        }
        let started = Instant::now();
        let asker = session.asker.load();
        let mut to = [None; BATCH];
        let mut sizes = [0usize; BATCH];
        let mut ready = 0;
        for index in 0..received {
            let query = &queries[index * LONGEST_QUERY..][..lengths[index]];
            let Some(client) = from[index] else { continue };
            let out = &mut answers[ready * UDP_LIMIT..][..UDP_LIMIT];
            let ending = match respond(query, &asker, self.settings, true, &mut self.random, out) {
                Outcome::Answered(len, answer) => {
                    to[ready] = Some(client);
                    sizes[ready] = len;
                    ready += 1;
                    answer.into()
                }
                Outcome::Ignored => Ending::Ignored,
                Outcome::Forward => {
                    let client = SocketAddrV4::from(client);
                    let job = Job { session: Arc::clone(session), query: query.into(), client, received: started };
                    // A full queue means that upstream is in trouble, and local names must not wait for it.
                    if self.forward.try_send(job).is_ok() {
                        Ending::Forwarded
                    } else {
                        to[ready] = from[index];
                        sizes[ready] = refuse(query, &mut answers[ready * UDP_LIMIT..][..UDP_LIMIT]);
                        ready += 1;
                        Ending::Refused
                    }
                }
            };
            self.shared.stats.count(ending);
            self.shared.log(session, query, ending);
        }
        send(fd, outgoing, answers, &sizes[..ready], &to[..ready]);
        self.shared.stats.local.observe(started.elapsed(), ready as u64);
        received
    }
}

/// A client that does not take its answer loses it, as with any datagram.
fn send(fd: RawFd, headers: &mut MultiHeaders<SockaddrIn>, answers: &[u8], sizes: &[usize], to: &[Option<SockaddrIn>]) {
    let mut done = 0;
    while done < sizes.len() {
        let count = sizes.len() - done;
        let slices: [[IoSlice<'_>; 1]; BATCH] = std::array::from_fn(|index| {
            let answer = sizes.get(done + index).map_or(&[][..], |size| &answers[(done + index) * UDP_LIMIT..][..*size]);
            [IoSlice::new(answer)]
        });
        match sendmmsg(fd, headers, slices[..count].iter(), &to[done..], [], MsgFlags::MSG_DONTWAIT) {
            Ok(sent) => done += sent.count().max(1),
            Err(Errno::EINTR) => {}
            // The first one was refused; the rest may go.
            Err(_) => done += 1,
        }
    }
}
