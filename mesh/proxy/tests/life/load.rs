//! Requests at random times, the tasks that answer them, and what happens meanwhile.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{ClientConfig, RootCertStore, client::Resumption, crypto::aws_lc_rs, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::{AbortHandle, JoinSet, LocalSet, spawn_local},
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;

use super::world::{CERTIFICATE, HOT, Order, TASKS, host_name};

type Anyhow<T> = Result<T, Box<dyn std::error::Error>>;

/// Of an answer.
const BODY: usize = 1024;
/// An answer that takes longer has failed. Long, since what waits here in a busy machine is the one that asks, too.
const PATIENCE: Duration = Duration::from_secs(20);

/// How much is asked for, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) http: SocketAddr,
    pub(crate) https: SocketAddr,
    pub(crate) hosts: u32,
    /// Requests per second, on average. Half of them are for the hot hosts, half of these and of the others come in TLS.
    pub(crate) rate: f64,
}

/// What became of a block's requests.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Seconds from when a request was due until its answer was there.
    pub(crate) times: Vec<f64>,
    pub(crate) failed: Vec<String>,
    /// Forms of routes, and certificates, that were seen.
    pub(crate) forms: BTreeSet<String>,
    pub(crate) certificates: BTreeSet<Vec<u8>>,
    /// New TLS connections.
    pub(crate) handshakes: usize,
}

/// Carries orders out, here or elsewhere.
pub(crate) trait Subject {
    fn obey(&mut self, order: Order) -> io::Result<()>;
}

/// Two certificates that take turns, and who believes both.
pub(crate) struct Certificates {
    directory: PathBuf,
    sites: [CertifiedKey<rcgen::KeyPair>; 2],
    turn: Cell<usize>,
    connector: TlsConnector,
}

impl Certificates {
    pub(crate) fn new(directory: &Path) -> Anyhow<Self> {
        let site = || generate_simple_self_signed(vec!["*.life.example".to_owned()]);
        let sites = [site()?, site()?];
        let mut roots = RootCertStore::empty();
        for site in &sites {
            roots.add(site.cert.der().clone())?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider())).with_safe_default_protocol_versions()?;
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        // Every handshake is a whole one, with a certificate.
        config.resumption = Resumption::disabled();
        let all = Self { directory: directory.to_owned(), sites, turn: Cell::new(0), connector: TlsConnector::from(Arc::new(config)) };
        all.swap()?;
        Ok(all)
    }

    /// As who renews them does: whole, under another name first.
    pub(crate) fn swap(&self) -> io::Result<()> {
        let turn = self.turn.get();
        self.turn.set(turn + 1);
        let site = &self.sites[turn % 2];
        let new = self.directory.join(".new");
        fs::write(&new, site.cert.pem() + &site.signing_key.serialize_pem())?;
        fs::rename(new, self.directory.join(CERTIFICATE))
    }
}

/// The tasks, each with an address of its own.
pub(crate) struct Backends {
    pub(crate) addresses: Vec<SocketAddr>,
    listening: RefCell<Vec<Option<AbortHandle>>>,
}

impl Backends {
    /// On addresses of loopback that begin so. Runs on the local set that it is called on.
    pub(crate) async fn start(prefix: [u8; 3]) -> io::Result<Self> {
        let [a, b, c] = prefix;
        let ip = |task: usize| std::net::Ipv4Addr::new(a, b, c, 10 + task as u8);
        let port = TcpListener::bind((ip(0), 0)).await?.local_addr()?.port();
        let addresses = (0..TASKS).map(|task| SocketAddr::from((ip(task), port))).collect();
        let all = Self { addresses, listening: RefCell::new((0..TASKS).map(|_| None).collect()) };
        for task in 0..TASKS {
            all.begin(task)?;
        }
        Ok(all)
    }

    fn begin(&self, task: usize) -> io::Result<()> {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(self.addresses[task])?;
        let listener = socket.listen(1024)?;
        let handle = spawn_local(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn_local(answer_all(stream));
                while connections.try_join_next().is_some() {}
            }
        });
        self.listening.borrow_mut()[task] = Some(handle.abort_handle());
        Ok(())
    }

    /// Its listener goes, and all of its connections with it.
    fn end(&self, task: usize) {
        if let Some(handle) = self.listening.borrow_mut()[task].take() {
            handle.abort();
        }
    }
}

/// Says to each request which host it was for.
async fn answer_all(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut read = Vec::with_capacity(4096);
    loop {
        let end = loop {
            if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
                break end;
            }
            if stream.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
        };
        let host = header(&read[..end], "x-host").unwrap_or_default();
        let body = format!("{host:<BODY$}");
        read.drain(..end + 4);
        stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY}\r\n\r\n{body}").as_bytes()).await?;
    }
}

fn header(head: &[u8], name: &str) -> Option<String> {
    let head = String::from_utf8_lossy(head);
    let mut found = head.lines().filter_map(|line| line.split_once(':')).filter(|(n, _)| n.eq_ignore_ascii_case(name));
    found.next().map(|(_, value)| value.trim().to_owned())
}

/// What happens while requests come: ten changes of routes a second, a task that goes and comes back, another certificate.
pub(crate) async fn life(
    subject: &mut dyn Subject,
    backends: &Backends,
    certificates: &Certificates,
    load: &Load,
    time: Duration,
) -> io::Result<()> {
    const STEP: Duration = Duration::from_millis(100);
    let begun = Instant::now();
    let mut random = Random(7);
    for step in 0u32.. {
        if begun.elapsed() >= time {
            break;
        }
        let second = (step / 10) as usize;
        let host = random.below(if step % 4 == 0 { HOT } else { load.hosts });
        subject.obey(match step % 5 {
            4 => Order::Stranger(load.hosts + random.below(100), step % 10 == 4),
            _ => Order::Route(host, step + 1),
        })?;
        // One that is told before it goes, and one that goes first: one after the other.
        let (task, is_told_first) = (second % (TASKS / 2), second.is_multiple_of(2));
        match (step % 10, is_told_first) {
            (0, _) => certificates.swap()?,
            (1, true) | (3, false) => subject.obey(Order::Task(task, false))?,
            (2, false) | (3, true) => backends.end(task),
            (6, _) => backends.begin(task)?,
            (7, _) => subject.obey(Order::Task(task, true))?,
            _ => {}
        }
        sleep((STEP * (step + 1)).saturating_sub(begun.elapsed())).await;
    }
    // As it was.
    for task in 0..TASKS / 2 {
        if backends.listening.borrow()[task].is_none() {
            backends.begin(task)?;
        }
        subject.obey(Order::Task(task, true))?;
    }
    Ok(())
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

struct Connection {
    stream: Box<dyn Stream>,
    read: Vec<u8>,
}

/// Connections that are kept alive, plain ones for everybody and TLS by the hot host whose name was in the hello.
struct Clients {
    load: Load,
    begun: Instant,
    connector: TlsConnector,
    plain: RefCell<Vec<Connection>>,
    tls: RefCell<Vec<(u32, Connection)>>,
    outcome: RefCell<Outcome>,
}

impl Load {
    /// Asks for so long, and waits for what is still under way. To be called on a local set.
    pub(crate) async fn run(&self, certificates: &Certificates, time: Duration, seed: u64) -> Outcome {
        let clients = Rc::new(Clients {
            load: *self,
            begun: Instant::now(),
            connector: certificates.connector.clone(),
            plain: RefCell::default(),
            tls: RefCell::default(),
            outcome: RefCell::default(),
        });
        let (sender, mut dues) = mpsc::unbounded_channel();
        let rate = self.rate;
        // A thread of its own: the runtime's timers have whole milliseconds.
        let pace = thread::spawn(move || {
            let mut random = Random(seed | 1);
            let (begun, mut due) = (Instant::now(), Duration::ZERO);
            while due < time {
                thread::sleep(due.saturating_sub(begun.elapsed()));
                if sender.send((begun + due, random.next())).is_err() {
                    return;
                }
                let uniform = (random.next() >> 40) as f64 + 1.0;
                due += Duration::from_secs_f64(-(uniform / f64::from(1 << 24)).ln() / rate);
            }
        });
        let mut under_way = JoinSet::new();
        while let Some((due, chance)) = dues.recv().await {
            let clients = Rc::clone(&clients);
            under_way.spawn_local(async move { clients.ask(due, chance).await });
            while under_way.try_join_next().is_some() {}
        }
        while under_way.join_next().await.is_some() {}
        // It has ended: its sender is gone.
        let _ = pace.join();
        clients.outcome.take()
    }
}

impl Clients {
    async fn ask(&self, due: Instant, chance: u64) {
        let mut random = Random(chance | 1);
        let is_hot = random.below(2) == 0;
        let host = random.below(if is_hot { HOT } else { self.load.hosts });
        let is_tls = random.below(2) == 0;
        // New connections, each a handshake: one of twenty requests to hot hosts and of a hundred to others in TLS. The rest of
        // the others' come without: a connection is for one name.
        let is_new = random.below(if is_hot { 20 } else { 100 }) == 0;
        let is_tls = is_tls && (is_hot || is_new);
        let path = ["/", "/a/x", "/b/c", "/b"][random.below(4) as usize];
        let answered = timeout(PATIENCE, self.exchange(host, path, is_tls, is_new)).await;
        let took = due.elapsed().as_secs_f64();
        let mut outcome = self.outcome.borrow_mut();
        outcome.times.push(took);
        let error = match answered {
            Ok(Ok(form)) => {
                outcome.forms.insert(form);
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        let (scheme, at) = (if is_tls { "https" } else { "http" }, due.saturating_duration_since(self.begun));
        outcome.failed.push(format!("{scheme}://{}{path} at {:.3} s: {error}", host_name(host), at.as_secs_f64()));
    }

    async fn exchange(&self, host: u32, path: &str, is_tls: bool, is_new: bool) -> io::Result<String> {
        let kept = match (is_new, is_tls) {
            (true, _) => None,
            (false, false) => self.plain.borrow_mut().pop(),
            (false, true) => {
                let mut all = self.tls.borrow_mut();
                let place = all.iter().rposition(|(of, _)| *of == host);
                place.map(|place| all.swap_remove(place).1)
            }
        };
        let mut connection = match kept {
            Some(connection) => connection,
            None => self.connect(host, is_tls).await?,
        };
        let form = connection.exchange(host, path).await?;
        match is_tls {
            _ if is_new => {}
            true => self.tls.borrow_mut().push((host, connection)),
            false => self.plain.borrow_mut().push(connection),
        }
        Ok(form)
    }

    async fn connect(&self, host: u32, is_tls: bool) -> io::Result<Connection> {
        let stream = TcpStream::connect(if is_tls { self.load.https } else { self.load.http }).await?;
        stream.set_nodelay(true)?;
        let stream: Box<dyn Stream> = if is_tls {
            let name = ServerName::try_from(host_name(host)).map_err(io::Error::other)?;
            let stream = self.connector.connect(name, stream).await?;
            let mut outcome = self.outcome.borrow_mut();
            outcome.handshakes += 1;
            let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).map(|leaf| leaf.to_vec());
            outcome.certificates.extend(shown);
            Box::new(stream)
        } else {
            Box::new(stream)
        };
        Ok(Connection { stream, read: Vec::with_capacity(4096) })
    }
}

impl Connection {
    /// One request; the answer must be whole, 200, and from the host's own tasks.
    async fn exchange(&mut self, host: u32, path: &str) -> io::Result<String> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", host_name(host));
        self.stream.write_all(request.as_bytes()).await?;
        self.stream.flush().await?;
        let end = loop {
            if let Some(end) = self.read.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            self.more().await?;
        };
        while self.read.len() < end + BODY {
            self.more().await?;
        }
        let (head, body) = self.read.split_at(end);
        let is_right = head.starts_with(b"HTTP/1.1 200 ") && String::from_utf8_lossy(body).trim_end() == host.to_string();
        if !is_right || body.len() != BODY {
            return Err(io::Error::other(format!("not the answer: {}", String::from_utf8_lossy(&self.read))));
        }
        let form = header(head, "x-form").unwrap_or_default();
        self.read.clear();
        Ok(form)
    }

    async fn more(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.read).await? {
            0 => Err(io::Error::other(format!("the end after {:?}", String::from_utf8_lossy(&self.read)))),
            _ => Ok(()),
        }
    }
}

/// Runs on this thread, with everything that it starts.
pub(crate) fn run<T>(what: impl Future<Output = T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(LocalSet::new().block_on(&runtime, what))
}

/// xorshift64*: repeatable, and good enough for hosts.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u32) -> u32 {
        ((self.next() >> 33) % u64::from(bound.max(1))) as u32
    }
}
