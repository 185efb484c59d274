//! One question upstream: several servers in turn, or against each other, until one has an answer that counts.

use std::{
    io,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::{TcpStream, UdpSocket},
    sync::mpsc,
    time::{sleep, sleep_until, timeout_at},
};

use super::{Choice, Forwarder, Upstream, message};
use crate::wire::{Code, Query};

/// Clients give up after five seconds; an answer after that is for nobody.
const DEADLINE: Duration = Duration::from_secs(4);
/// A datagram may be lost.
const AGAIN: [Duration; 2] = [Duration::from_millis(1000), Duration::from_millis(2000)];
/// More servers than anybody has configured with a purpose.
const MOST_SERVERS: usize = 8;
/// A server that has said nothing for so long is taken for dead by whoever asks next.
const VERDICT: Duration = Duration::from_millis(900);
/// The engine says 600 seconds of addresses that may be another's in ten.
const ENGINE_TTL: u32 = 5;
/// Servers exist that send more than 512 bytes to clients that did not ask for it (moby 44575).
const LARGEST: usize = 65_535;

pub(super) struct Exchange {
    /// The client's query, kept: it may be gone before the answer comes.
    query: Box<[u8]>,
    upstreams: Arc<[Upstream]>,
}

enum Word {
    /// NOERROR or NXDOMAIN.
    Final(message::Answer),
    /// A code that leaves it to the next server.
    Other,
    /// Nothing usable came in time.
    Silence,
}

impl Exchange {
    pub(super) fn new(query: &Query<'_>, upstreams: Arc<[Upstream]>) -> Self {
        Self { query: query.bytes().into(), upstreams }
    }

    pub(super) async fn run(self, forwarder: &Rc<Forwarder>) -> Option<message::Answer> {
        let mut asked = Vec::new();
        // Tries that may still say something, by their turn.
        let mut open = Vec::new();
        let (turn, answer) = self.race(forwarder, &mut asked, &mut open).await?;
        let still_asked: Vec<&Upstream> = open.iter().filter_map(|turn| asked.get(*turn)).collect();
        if let Some(winner) = asked.get(turn) {
            let before = self.upstreams.iter().take_while(|upstream| *upstream != winner);
            let why = match before.clone().next() {
                None => Choice::First,
                Some(_) if before.clone().any(|upstream| still_asked.contains(&upstream)) => Choice::Faster,
                Some(_) if before.clone().any(|upstream| asked.contains(upstream)) => Choice::OthersFailed,
                Some(_) => Choice::OthersRest,
            };
            forwarder.health.chosen(winner, why, Instant::now());
        }
        Some(answer)
    }

    /// The answer that counts, and by whose turn it came.
    async fn race(&self, forwarder: &Rc<Forwarder>, asked: &mut Vec<Upstream>, open: &mut Vec<usize>) -> Option<(usize, message::Answer)> {
        let start = Instant::now();
        let order = forwarder.health.order(&self.upstreams, start);
        let mut waiting = order.into_iter().take(MOST_SERVERS).peekable();
        let (words, mut heard) = mpsc::unbounded_channel();
        // Servers that came before others and are well: what they say counts more.
        let mut preferred: Vec<usize> = Vec::new();
        // "No" from a later server. A company's own names are known to its own server alone, and that one may be slow.
        let mut held: Option<(usize, message::Answer)> = None;
        let mut next = tokio::time::Instant::from_std(start);
        let deadline = tokio::time::Instant::from_std(start + DEADLINE);
        loop {
            tokio::select! {
                biased;
                Some((of, word)) = heard.recv() => {
                    open.retain(|other| *other != of);
                    let has_earlier = open.iter().any(|other| *other < of && preferred.contains(other));
                    match word {
                        Word::Final(answer) if has_earlier && !answer.is_positive() => held = held.or(Some((of, answer))),
                        // Tries that are still open learn that nobody listens, and end when they know how their server is.
                        Word::Final(answer) => return Some((of, answer)),
                        // Its turn is over, so the next one's begins.
                        Word::Other | Word::Silence => next = tokio::time::Instant::now(),
                    }
                    let is_last = open.is_empty() && waiting.peek().is_none();
                    if is_last || held.is_some() && !open.iter().any(|other| preferred.contains(other)) {
                        return held;
                    }
                }
                () = sleep_until(tokio::time::Instant::from_std(start + VERDICT)), if held.is_some() => return held,
                () = sleep_until(deadline) => return None,
                () = sleep_until(next), if waiting.peek().is_some() => {
                    let Some(upstream) = waiting.next() else { continue };
                    if !open.is_empty() {
                        forwarder.counters.raced.fetch_add(1, Relaxed);
                    }
                    let patience = forwarder.health.patience(&upstream);
                    next = tokio::time::Instant::now() + patience;
                    let turn = asked.len();
                    asked.push(upstream.clone());
                    open.push(turn);
                    // One that has to prove itself is not waited for.
                    if !patience.is_zero() && !upstream.is_engine() {
                        preferred.push(turn);
                    }
                    let (forwarder, words, query) = (Rc::clone(forwarder), words.clone(), self.query.clone());
                    tokio::task::spawn_local(attempt(forwarder, upstream, query, deadline, turn, words));
                }
            }
        }
    }
}

/// Asks one server and notes how it behaved, also when another one was faster.
async fn attempt(
    forwarder: Rc<Forwarder>,
    upstream: Upstream,
    query: Box<[u8]>,
    deadline: tokio::time::Instant,
    turn: usize,
    words: mpsc::UnboundedSender<(usize, Word)>,
) {
    let start = Instant::now();
    let asking = one(&forwarder, &upstream, &query, deadline);
    tokio::pin!(asking);
    let mut word = tokio::select! {
        word = &mut asking => Some(word),
        () = sleep(VERDICT) => None,
    };
    if word.is_none() {
        forwarder.counters.timeouts.fetch_add(1, Relaxed);
        forwarder.health.failed(&upstream, Instant::now());
        if words.is_closed() {
            return;
        }
        word = Some(asking.await);
    } else if matches!(word, Some(Word::Silence)) {
        forwarder.health.failed(&upstream, Instant::now());
    }
    if matches!(word, Some(Word::Final(_) | Word::Other)) {
        forwarder.health.answered(&upstream, start.elapsed(), Instant::now());
    }
    if let Some(Word::Final(answer)) = &mut word
        && upstream.is_engine()
    {
        answer.shorten(ENGINE_TTL);
    }
    // Nobody listens where another one has answered.
    let _ = words.send((turn, word.unwrap_or(Word::Silence)));
}

/// Asks one server, by datagrams and if need be by TCP.
async fn one(forwarder: &Forwarder, upstream: &Upstream, query: &[u8], deadline: tokio::time::Instant) -> Word {
    let Ok(query) = Query::parse(query) else { return Word::Silence };
    for edns in [true, false] {
        let Ok(answer) = datagrams(forwarder, upstream, &query, edns, deadline).await else { return Word::Silence };
        match answer.code() {
            // An old server that does not know EDNS (RFC 6891, section 6.2.2).
            Some(Code::FormErr | Code::NotImp) if edns && query.edns.is_some() => {}
            Some(Code::NoError | Code::NxDomain) if answer.is_truncated() => {
                forwarder.counters.by_tcp.fetch_add(1, Relaxed);
                let whole = timeout_at(deadline, stream(forwarder, upstream, &query, edns)).await;
                return Word::Final(whole.ok().and_then(Result::ok).unwrap_or(answer));
            }
            Some(Code::NoError | Code::NxDomain) => return Word::Final(answer),
            _ => return Word::Other,
        }
    }
    Word::Other
}

async fn datagrams(
    forwarder: &Forwarder,
    upstream: &Upstream,
    query: &Query<'_>,
    edns: bool,
    deadline: tokio::time::Instant,
) -> io::Result<message::Answer> {
    let socket = UdpSocket::from_std(forwarder.sockets.udp(&upstream.origin, upstream.server)?)?;
    let sent = message::question(query, random_id(), edns);
    let start = tokio::time::Instant::now();
    let mut again = AGAIN.iter();
    socket.send(&sent).await?;
    loop {
        let until = again.next().map_or(deadline, |after| (start + *after).min(deadline));
        let mut refusals = 0;
        loop {
            match timeout_at(until, receive(&socket)).await {
                // What does not answer our question is nobody's answer, whoever sent it.
                Ok(Ok(bytes)) => {
                    if let Some(answer) = message::Answer::read(bytes, &sent) {
                        return Ok(answer);
                    }
                }
                // Nobody listens there.
                Ok(Err(error)) => {
                    refusals += 1;
                    if refusals > 1 || error.kind() == io::ErrorKind::ConnectionRefused {
                        return Err(error);
                    }
                }
                Err(_) => break,
            }
        }
        if tokio::time::Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.send(&sent).await?;
    }
}

/// The next datagram. Room for the largest is kept once, not for each question that waits.
async fn receive(socket: &UdpSocket) -> io::Result<Vec<u8>> {
    thread_local! {
        static ROOM: std::cell::RefCell<Vec<u8>> = std::cell::RefCell::new(vec![0; LARGEST]);
    }
    loop {
        let ready = socket.ready(Interest::READABLE | Interest::ERROR).await?;
        if ready.is_error()
            && let Some(error) = socket.take_error()?
        {
            return Err(error);
        }
        let received = ROOM.with_borrow_mut(|room| socket.try_recv(room).map(|len| room[..len].to_vec()));
        match received {
            // Somebody has taken the error already, which stays on record until the next event.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && ready.is_error() => sleep(Duration::from_millis(1)).await,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            received => return received,
        }
    }
}

async fn stream(forwarder: &Forwarder, upstream: &Upstream, query: &Query<'_>, edns: bool) -> io::Result<message::Answer> {
    let mut stream = TcpStream::from_std(forwarder.sockets.tcp(&upstream.origin, upstream.server)?)?;
    stream.writable().await?;
    let sent = message::question(query, random_id(), edns);
    let mut framed = u16::try_from(sent.len()).map_err(io::Error::other)?.to_be_bytes().to_vec();
    framed.extend_from_slice(&sent);
    // A connection that is still being made is not ready to be written to.
    loop {
        match stream.write_all(&framed).await {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => sleep(Duration::from_millis(1)).await,
            done => break done?,
        }
    }
    loop {
        let len = stream.read_u16().await?;
        let mut answer = vec![0; usize::from(len)];
        stream.read_exact(&mut answer).await?;
        if let Some(answer) = message::Answer::read(answer, &sent) {
            return Ok(answer);
        }
    }
}

/// Not to be guessed, as little as the port (RFC 5452).
fn random_id() -> u16 {
    use std::hash::{BuildHasher, RandomState};
    thread_local! {
        static KEYS: RandomState = RandomState::new();
        static COUNT: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
    }
    COUNT.set(COUNT.get().wrapping_add(1));
    KEYS.with(|keys| keys.hash_one(COUNT.get())) as u16
}
