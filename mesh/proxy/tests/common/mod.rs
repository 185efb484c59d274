//! A proxy on loopback with backends that say what they got, and a client that sends bytes as they are.
#![allow(dead_code, reason = "each test uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends at what it does not expect")]

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use swarmesh_model::{NetworkId, TaskId};
use swarmesh_proxy::{
    Config, Proxy,
    endpoint::{Dialer, OwnNamespace},
    routing::Switchboard,
};
use swarmesh_router::{
    Route,
    model::{
        Action, BackendMode, BackendSet, Dialect, Listener, Match, Member, Origin, Owner, OwnerKind, Policy, Precedence, Share, Tasks,
    },
};

/// Services and the loopback addresses of their tasks, and the network that all of them are in, if it is one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Services(pub(crate) HashMap<String, Vec<IpAddr>>, Option<NetworkId>);

impl Tasks for Services {
    /// As if the first task were all of the service.
    fn vip(&self, owner: &str, _: Option<&NetworkId>) -> Option<IpAddr> {
        self.0.get(owner)?.first().copied()
    }

    fn usable(&self, owner: &str, _: Option<&NetworkId>) -> Vec<(TaskId, IpAddr)> {
        let tasks = self.0.get(owner).into_iter().flatten();
        tasks.enumerate().map(|(n, a)| (TaskId::from(format!("{owner}.{n}")), *a)).collect()
    }

    fn published(&self, _: &str) -> Option<IpAddr> {
        None
    }

    fn network(&self, _: &str, _: Option<&NetworkId>) -> Option<NetworkId> {
        self.1.clone()
    }
}

/// Finds all networks where the process is, whatever they are to be reached from.
#[derive(Debug)]
struct Everywhere;

impl Dialer for Everywhere {
    fn socket(&self, _: Option<&std::path::Path>, to: SocketAddr) -> std::io::Result<socket2::Socket> {
        OwnNamespace.socket(None, to)
    }
}

/// How a backend behaves.
pub(crate) type Behaviour = fn(&Seen) -> Reply;

/// A request as a backend read it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// The backend's own name.
    pub(crate) by: String,
    pub(crate) line: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Of requests on this connection, this is the how-manieth.
    pub(crate) number: usize,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    pub(crate) fn headers(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str()).collect()
    }
}

#[derive(Debug)]
pub(crate) enum Reply {
    /// These bytes, then the next request.
    Bytes(Vec<u8>),
    /// These bytes, then the end.
    Last(Vec<u8>),
    /// These bytes, then everything that comes is sent back.
    Echo(Vec<u8>),
    /// The end, without a byte.
    Close,
    /// Nothing, for this long, then the end.
    Silence(Duration),
}

/// An answer with a length.
pub(crate) fn ok(body: &str) -> Reply {
    with_status("200 OK", body)
}

pub(crate) fn with_status(status: &str, body: &str) -> Reply {
    Reply::Bytes(format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes())
}

/// A backend of one thread per connection. It reads HTTP/1.1 as strictly as is possible in few lines.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Mutex<Vec<Seen>>>,
    pub(crate) connections: Arc<AtomicUsize>,
    ends: Arc<AtomicBool>,
}

impl Backend {
    pub(crate) fn start(name: &str, address: SocketAddr, behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, connections, ends) = (Arc::<Mutex<Vec<Seen>>>::default(), Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (all, count, end, name) = (Arc::clone(&seen), Arc::clone(&connections), Arc::clone(&ends), name.to_owned());
        thread::spawn(move || {
            for stream in listener.incoming() {
                if end.load(Ordering::Relaxed) {
                    return;
                }
                count.fetch_add(1, Ordering::Relaxed);
                let (all, name) = (Arc::clone(&all), name.clone());
                let Ok(stream) = stream else { continue };
                thread::spawn(move || serve(stream, &name, &all, behaviour));
            }
        });
        Self { address, seen, connections, ends }
    }

    pub(crate) fn taken(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        // Its listener waits for one more.
        drop(TcpStream::connect(self.address));
    }
}

fn serve(mut stream: TcpStream, name: &str, all: &Mutex<Vec<Seen>>, behaviour: Behaviour) {
    let mut buffer = Vec::new();
    for number in 1.. {
        let Some(mut seen) = read_request(&mut stream, &mut buffer) else { return };
        seen.by = name.to_owned();
        seen.number = number;
        all.lock().unwrap().push(seen.clone());
        match behaviour(&seen) {
            Reply::Bytes(bytes) => {
                if stream.write_all(&bytes).is_err() {
                    return;
                }
            }
            Reply::Last(bytes) => {
                // The client may be gone.
                let _ = stream.write_all(&bytes);
                return;
            }
            Reply::Echo(bytes) => {
                stream.write_all(&bytes).unwrap();
                let mut chunk = [0; 4096];
                loop {
                    match stream.read(&mut chunk) {
                        Ok(0) | Err(_) => return,
                        Ok(n) => stream.write_all(&chunk[..n]).unwrap(),
                    }
                }
            }
            Reply::Close => return,
            Reply::Silence(time) => {
                thread::sleep(time);
                return;
            }
        }
    }
}

fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Seen> {
    let end = loop {
        if let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            break end;
        }
        if !fill(stream, buffer) {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    buffer.drain(..end + 4);
    let mut lines = head.split("\r\n");
    let line = lines.next()?.to_owned();
    let headers: Vec<(String, String)> =
        lines.filter_map(|l| l.split_once(':')).map(|(n, v)| (n.to_owned(), v.trim().to_owned())).collect();
    let mut seen = Seen { line, headers, ..Seen::default() };
    if seen.header("transfer-encoding").is_some() {
        loop {
            let length = usize::from_str_radix(read_line(stream, buffer)?.split(';').next()?, 16).ok()?;
            let chunk = read_exactly(stream, buffer, length)?;
            read_line(stream, buffer)?;
            if length == 0 {
                break;
            }
            seen.body.extend(chunk);
        }
    } else if let Some(length) = seen.header("content-length") {
        let length = length.parse().ok()?;
        seen.body = read_exactly(stream, buffer, length)?;
    }
    Some(seen)
}

fn fill(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> bool {
    let mut chunk = [0; 4096];
    match stream.read(&mut chunk) {
        Ok(0) | Err(_) => false,
        Ok(n) => {
            buffer.extend(&chunk[..n]);
            true
        }
    }
}

fn read_line(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(end) = buffer.windows(2).position(|w| w == b"\r\n") {
            let line = String::from_utf8_lossy(&buffer[..end]).into_owned();
            buffer.drain(..end + 2);
            return Some(line);
        }
        if !fill(stream, buffer) {
            return None;
        }
    }
}

fn read_exactly(stream: &mut TcpStream, buffer: &mut Vec<u8>, length: usize) -> Option<Vec<u8>> {
    while buffer.len() < length {
        if !fill(stream, buffer) {
            return None;
        }
    }
    Some(buffer.drain(..length).collect())
}

/// Backends of one port on loopback addresses of their own, and a proxy before them.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) proxy: Option<Proxy>,
    pub(crate) switchboard: Switchboard,
    pub(crate) services: Services,
    pub(crate) backends: HashMap<String, Vec<Backend>>,
    pub(crate) routes: Vec<Arc<Route>>,
    pub(crate) port: u16,
}

/// A port that is free on this loopback address, most likely still when it is wanted.
fn free_port(address: IpAddr) -> u16 {
    TcpListener::bind((address, 0)).unwrap().local_addr().unwrap().port()
}

/// Tests run beside each other: each has loopback addresses of its own.
fn addresses() -> impl Iterator<Item = IpAddr> {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    let process = std::process::id();
    std::iter::repeat_with(move || {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        IpAddr::V4(Ipv4Addr::new(127, 1 + (process % 200) as u8, (next / 250) as u8, 2 + (next % 250) as u8))
    })
}

impl Stage {
    pub(crate) fn new(config: Config) -> Self {
        let here = addresses().next().unwrap();
        Self::start(here, Config { http: vec![SocketAddr::new(here, 0)], workers: 1, ..config })
    }

    /// Takes TLS.
    pub(crate) fn secure(config: Config) -> Self {
        let here = addresses().next().unwrap();
        Self::start(here, Config { https: vec![SocketAddr::new(here, 0)], workers: 1, ..config })
    }

    fn start(here: IpAddr, config: Config) -> Self {
        let switchboard = Switchboard::new(&config);
        let proxy = Proxy::start(config, Arc::new(Everywhere)).unwrap();
        Self {
            proxy: Some(proxy),
            switchboard,
            services: Services::default(),
            backends: HashMap::new(),
            routes: Vec::new(),
            port: free_port(here),
        }
    }

    pub(crate) fn service(mut self, name: &str, tasks: usize, behaviour: Behaviour) -> Self {
        for (number, address) in (0..tasks).zip(addresses()) {
            let backend = Backend::start(&format!("{name}.{number}"), SocketAddr::new(address, self.port), behaviour);
            self.services.0.entry(name.to_owned()).or_default().push(address);
            self.backends.entry(name.to_owned()).or_default().push(backend);
        }
        self
    }

    /// From now on, services are in a network that is reached from this namespace.
    pub(crate) fn stand_in(&mut self, sandbox: &str) {
        let network = NetworkId::from("network");
        self.switchboard.set_foothold(&network, Some(sandbox.into()));
        self.services.1 = Some(network);
    }

    /// Where the next backend can listen.
    pub(crate) fn next_address(&self) -> SocketAddr {
        SocketAddr::new(addresses().next().unwrap(), self.port)
    }

    /// A task of somebody else's.
    pub(crate) fn at(mut self, name: &str, backend: SocketAddr) -> Self {
        self.services.0.entry(name.to_owned()).or_default().push(backend.ip());
        self
    }

    /// A task that nobody listens for.
    pub(crate) fn dead_task(mut self, name: &str) -> Self {
        self.services.0.entry(name.to_owned()).or_default().insert(0, addresses().next().unwrap());
        self
    }

    pub(crate) fn route(mut self, matching: Match, service: &str, change: impl FnOnce(&mut Route)) -> Self {
        let mut route = self.make_route(matching, service);
        change(&mut route);
        self.routes.push(Arc::new(route));
        self.apply();
        self
    }

    pub(crate) fn make_route(&self, matching: Match, service: &str) -> Route {
        let owner = Owner { id: format!("id-{}", self.routes.len()), name: service.to_owned(), kind: OwnerKind::Service };
        Route {
            origin: Origin { owner, dialect: Dialect::Swarmesh, label: "test".to_owned(), part: self.routes.len() as u16 },
            listener: Listener::Any,
            matching,
            precedence: Precedence::Specific { priority: 0 },
            share: Share::Alone,
            filters: Vec::new(),
            action: Action::Forward(BackendSet::of(Member::service(service, None, self.port, BackendMode::Task))),
            certificate: None,
            policy: Policy::default(),
        }
    }

    /// Puts routes and services into force.
    pub(crate) fn apply(&mut self) {
        let (routing, problems) = self.switchboard.route(self.routes.iter().cloned(), &self.services);
        assert!(problems.is_empty(), "{problems:?}");
        let owners = self.services.0.keys().map(String::as_str).collect();
        self.switchboard.refresh(&owners, &self.services);
        self.proxy.as_ref().unwrap().shared().set_routing(routing);
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.proxy.as_ref().unwrap().addresses()[0]
    }

    pub(crate) fn connect(&self) -> Client {
        Client::connect(self.address())
    }

    /// A GET on a connection of its own.
    pub(crate) fn get(&self, host: &str, path: &str) -> Answer {
        self.ask(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"))
    }

    pub(crate) fn ask(&self, request: impl AsRef<[u8]>) -> Answer {
        let mut client = self.connect();
        client.send(request);
        client.answer().expect("no answer")
    }

    pub(crate) fn seen(&self, service: &str) -> Vec<Seen> {
        self.backends[service].iter().flat_map(Backend::taken).collect()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(proxy) = self.proxy.take() {
            proxy.stop();
        }
    }
}

/// A connection to the proxy.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }
}

impl Client {
    pub(crate) fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { stream, buffer: Vec::new() }
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// The next answer; `None` if the connection ends without one.
    pub(crate) fn answer(&mut self) -> Option<Answer> {
        self.answer_to("GET")
    }

    pub(crate) fn answer_to(&mut self, method: &str) -> Option<Answer> {
        let line_and_headers = loop {
            if let Some(end) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
                self.buffer.drain(..end + 4);
                // An interim answer announces another.
                if head.starts_with("HTTP/1.1 100") {
                    continue;
                }
                break head;
            }
            if !fill(&mut self.stream, &mut self.buffer) {
                return None;
            }
        };
        let mut lines = line_and_headers.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers = lines.filter_map(|l| l.split_once(':')).map(|(n, v)| (n.to_owned(), v.trim().to_owned())).collect();
        let mut answer = Answer { status, headers, body: String::new() };
        let body = if method == "HEAD" || status == 204 || status == 304 || status == 101 {
            Vec::new()
        } else if answer.header("transfer-encoding").is_some() {
            let mut body = Vec::new();
            loop {
                let length = usize::from_str_radix(&read_line(&mut self.stream, &mut self.buffer)?, 16).ok()?;
                let chunk = read_exactly(&mut self.stream, &mut self.buffer, length)?;
                read_line(&mut self.stream, &mut self.buffer)?;
                if length == 0 {
                    break body;
                }
                body.extend(chunk);
            }
        } else if let Some(length) = answer.header("content-length") {
            read_exactly(&mut self.stream, &mut self.buffer, length.parse().ok()?)?
        } else {
            while fill(&mut self.stream, &mut self.buffer) {}
            std::mem::take(&mut self.buffer)
        };
        answer.body = String::from_utf8_lossy(&body).into_owned();
        Some(answer)
    }

    /// Bytes of a tunnel.
    pub(crate) fn read_exactly(&mut self, length: usize) -> Option<Vec<u8>> {
        read_exactly(&mut self.stream, &mut self.buffer, length)
    }

    /// Whether the other side has closed, waited for up to the read timeout.
    pub(crate) fn is_closed(&mut self) -> bool {
        let mut byte = [0];
        matches!(self.stream.read(&mut byte), Ok(0)) || self.stream.take_error().unwrap().is_some()
    }
}
