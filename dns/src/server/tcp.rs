//! Queries over TCP (RFC 7766): several on one connection, answered as they are done, within limits that no client can stretch.

use std::{
    cell::Cell,
    io,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Mutex,
    time::{sleep, timeout},
};

use super::{Session, Slow};
use crate::{
    Outcome, Random, respond,
    stats::Ending,
    wire::{HEADER, Query},
};

/// Connections of one container, and of all. Beyond them a new one is closed at once, so that the client hears about it.
const MOST_OF_ONE: usize = 128;
const MOST_OF_ALL: usize = 2048;
/// As Docker's resolver has them: for the first query, and between queries.
const FIRST: Duration = Duration::from_secs(2);
const IDLE: Duration = Duration::from_secs(8);
/// From a query's first byte to its last, and for an answer to be taken.
const TRANSFER: Duration = Duration::from_secs(2);
const MOST_QUERIES: usize = 1024;
/// Forwards of one connection at a time; reading waits beyond them.
const PIPELINE: usize = 16;
/// No query is longer, whatever its length field says: a name, its type, and some EDNS options.
const LONGEST_QUERY: usize = 4096;
const LONGEST_ANSWER: usize = 65_535;

/// How many connections a container has.
#[derive(Debug, Default)]
pub(super) struct Places(AtomicUsize);

thread_local! {
    /// All of them live on one thread.
    static OPEN: Cell<usize> = const { Cell::new(0) };
    /// One answer is written at a time, and taken away at once.
    static ROOM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

struct Place(Arc<Session>);

impl Place {
    fn take(session: &Arc<Session>) -> Option<Self> {
        if session.tcp.0.load(Relaxed) >= MOST_OF_ONE || OPEN.get() >= MOST_OF_ALL {
            return None;
        }
        session.tcp.0.fetch_add(1, Relaxed);
        OPEN.set(OPEN.get() + 1);
        Some(Self(Arc::clone(session)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.tcp.0.fetch_sub(1, Relaxed);
        OPEN.set(OPEN.get().saturating_sub(1));
    }
}

pub(super) async fn listen(slow: Rc<Slow>, session: Arc<Session>, listener: std::net::TcpListener) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(asker = %session.asker.load().name, %error, "queries over TCP are not answered");
            return;
        }
    };
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // A connection that ended before it was taken is no reason to stop; without descriptors, waiting may help.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(_) => {
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let stats = &slow.shared.stats;
        stats.tcp_connections.fetch_add(1, Relaxed);
        let Some(place) = Place::take(&session) else {
            stats.tcp_closed.fetch_add(1, Relaxed);
            continue;
        };
        let slow = Rc::clone(&slow);
        tokio::task::spawn_local(async move {
            let (reader, writer) = stream.into_split();
            Connection { slow, session: Arc::clone(&place.0), writer: Mutex::new(Some(writer)), pending: Cell::new(0) }
                .serve(reader, place)
                .await;
        });
    }
}

struct Connection {
    slow: Rc<Slow>,
    session: Arc<Session>,
    /// `None` once the client did not take an answer in time.
    writer: Mutex<Option<OwnedWriteHalf>>,
    pending: Cell<usize>,
}

impl Connection {
    async fn serve(self, mut reader: OwnedReadHalf, _place: Place) {
        let this = Rc::new(self);
        let mut random = Random::new(this.session.id ^ 0x9e37_79b9_7f4a_7c15);
        for count in 0..MOST_QUERIES {
            let patience = if count == 0 { FIRST } else { IDLE };
            let Some(query) = this.read(&mut reader, patience).await else { break };
            while this.pending.get() >= PIPELINE {
                sleep(Duration::from_millis(1)).await;
            }
            if !this.answer(query, &mut random).await {
                break;
            }
        }
        // Answers that are still on their way have the client's other half to go to.
        while this.pending.get() > 0 {
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// The next query; `None` at the end of the connection, or where it is of no use any more.
    async fn read(&self, reader: &mut OwnedReadHalf, patience: Duration) -> Option<Vec<u8>> {
        let mut length = [0; 2];
        match timeout(patience, reader.read_exact(&mut length[..1])).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return None,
            Err(_) => return self.give_up(),
        }
        let rest = async {
            reader.read_exact(&mut length[1..]).await?;
            let length = usize::from(u16::from_be_bytes(length));
            if !(HEADER..=LONGEST_QUERY).contains(&length) {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let mut query = vec![0; length];
            reader.read_exact(&mut query).await?;
            Ok::<_, io::Error>(query)
        };
        match timeout(TRANSFER, rest).await {
            Ok(Ok(query)) => Some(query),
            Ok(Err(_)) | Err(_) => self.give_up(),
        }
    }

    fn give_up<T>(&self) -> Option<T> {
        self.slow.shared.stats.tcp_closed.fetch_add(1, Relaxed);
        None
    }

    /// False when there is no use in going on.
    async fn answer(self: &Rc<Self>, query: Vec<u8>, random: &mut Random) -> bool {
        let started = Instant::now();
        let shared = &self.slow.shared;
        shared.stats.tcp_queries.fetch_add(1, Relaxed);
        let asker = self.session.asker.load_full();
        let mut room = ROOM.take();
        room.resize(2 + LONGEST_ANSWER, 0);
        let outcome = respond(&query, &asker, self.slow.settings, false, random, &mut room[2..]);
        let ending = match outcome {
            Outcome::Answered(_, answer) => answer.into(),
            Outcome::Forward => Ending::Forwarded,
            Outcome::Ignored => Ending::Ignored,
        };
        shared.stats.count(ending);
        shared.log(&self.session, &query, ending);
        let answer = match outcome {
            Outcome::Answered(len, _) => {
                room[..2].copy_from_slice(&(len as u16).to_be_bytes());
                Some(room[..2 + len].to_vec())
            }
            Outcome::Forward | Outcome::Ignored => None,
        };
        ROOM.set(room);
        match (outcome, answer) {
            (_, Some(answer)) => {
                let sent = self.write(&answer).await;
                shared.stats.local.observe(started.elapsed(), 1);
                sent
            }
            (Outcome::Forward, None) => {
                self.pending.set(self.pending.get() + 1);
                let this = Rc::clone(self);
                tokio::task::spawn_local(async move {
                    this.forward(&query).await;
                    this.slow.shared.stats.forwarded.observe(started.elapsed(), 1);
                    this.pending.set(this.pending.get() - 1);
                });
                true
            }
            // A response among queries: whoever sends that is no client.
            (_, None) => false,
        }
    }

    async fn forward(&self, query: &[u8]) {
        let Ok(query) = Query::parse(query) else { return };
        let route = self.session.route.load_full();
        let resolved = self.slow.forwarder.resolve(&query, &route).await;
        let Ok(len) = u16::try_from(resolved.len()) else { return };
        let mut framed = len.to_be_bytes().to_vec();
        framed.extend_from_slice(&resolved);
        self.write(&framed).await;
    }

    async fn write(&self, framed: &[u8]) -> bool {
        let mut writer = self.writer.lock().await;
        let Some(open) = writer.as_mut() else { return false };
        if matches!(timeout(TRANSFER, open.write_all(framed)).await, Ok(Ok(()))) {
            return true;
        }
        // Half an answer was perhaps written: nothing that follows it could be understood.
        *writer = None;
        self.give_up::<()>();
        false
    }
}
