//! New connections at a steady rate, each with its time and its end.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Result;
use swarmesh_tests::{
    load::field,
    netns::{spawn_within, within},
};

use super::seen::Reach;

/// An emulated machine under load answers late; what is lost is not answered in any time.
const PATIENCE: Duration = Duration::from_secs(6);
/// So many, each in turn: ten a second, and one that hangs does not hold up the others.
const THREADS: u32 = 6;
const PAUSE: Duration = Duration::from_millis(600);

/// One attempt, by the time since the sampler's start at which it began.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) at: Duration,
    pub(super) reach: Reach,
}

pub(super) struct Sampler {
    started: Instant,
    stop: Arc<AtomicBool>,
    samples: Arc<Mutex<Vec<Sample>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Sampler {
    /// From the namespace to each of the targets in turn.
    pub(super) fn start(namespace: &Path, targets: &[SocketAddr]) -> Result<Self> {
        let started = Instant::now();
        let stop = Arc::new(AtomicBool::new(false));
        let samples = Arc::new(Mutex::new(Vec::new()));
        let mut threads = Vec::new();
        for number in 0..THREADS {
            let (stop, samples, targets) = (Arc::clone(&stop), Arc::clone(&samples), targets.to_vec());
            threads.push(spawn_within(namespace, move || {
                thread::sleep(PAUSE * number / THREADS);
                let mut turn = number as usize;
                while !stop.load(Ordering::Relaxed) {
                    let at = started.elapsed();
                    let reach = once(targets[turn % targets.len()]);
                    turn += 1;
                    samples.lock().unwrap_or_else(PoisonError::into_inner).push(Sample { at, reach });
                    thread::sleep((at + PAUSE).saturating_sub(started.elapsed()));
                }
            })?);
        }
        Ok(Self { started, stop, samples, threads })
    }

    pub(super) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// All samples, in the order of their times.
    pub(super) fn stop(self) -> Vec<Sample> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            // What it saw is kept in any case.
            let _ended = thread.join();
        }
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner).clone();
        samples.sort_by_key(|sample| sample.at);
        samples
    }
}

/// One HTTP request.
pub(super) fn tcp(namespace: &Path, target: SocketAddr) -> Result<Reach> {
    within(namespace, move || once(target))
}

/// `count` HTTP requests, one after the other.
pub(super) fn tcp_times(namespace: &Path, target: SocketAddr, count: usize) -> Result<Vec<Reach>> {
    within(namespace, move || (0..count).map(|_| once(target)).collect())
}

fn once(target: SocketAddr) -> Reach {
    let mut stream = match TcpStream::connect_timeout(&target, PATIENCE) {
        Ok(stream) => stream,
        Err(error) => return failed(&error, Reach::Silent),
    };
    let request = format!("GET / HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n");
    let mut answer = String::new();
    let outcome = stream
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| stream.write_all(request.as_bytes()))
        .and_then(|()| stream.read_to_string(&mut answer));
    match outcome {
        Err(error) => failed(&error, Reach::Mute),
        Ok(_) => {
            let caller = field(&answer, "remote").and_then(|text| text.parse::<SocketAddr>().ok());
            match (field(&answer, "task"), caller) {
                (Some(task), Some(caller)) => Reach::Answered { task, caller: plain(caller.ip()) },
                _ => Reach::Other,
            }
        }
    }
}

/// One datagram and its answer.
pub(super) fn udp(namespace: &Path, target: SocketAddr) -> Result<Reach> {
    within(namespace, move || match udp_socket(target) {
        Ok(socket) => exchange(&socket),
        Err(error) => failed(&error, Reach::Silent),
    })
}

pub(super) fn udp_socket(target: SocketAddr) -> std::io::Result<UdpSocket> {
    let any: IpAddr = if target.is_ipv6() { [0u16; 8].into() } else { [0u8; 4].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(target)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    Ok(socket)
}

/// On a socket that stays the same; `whoami` answers with itself, its node, whom it sees and where.
pub(super) fn exchange(socket: &UdpSocket) -> Reach {
    let mut room = [0; 2048];
    match socket.send(b"x").and_then(|_| socket.recv(&mut room)) {
        Err(error) => failed(&error, Reach::Silent),
        Ok(length) => {
            let text = String::from_utf8_lossy(&room[..length]).into_owned();
            let words: Vec<&str> = text.split_whitespace().collect();
            match words.get(2).and_then(|word| word.parse::<SocketAddr>().ok()) {
                Some(caller) => Reach::Answered { task: words[0].to_owned(), caller: plain(caller.ip()) },
                None => Reach::Other,
            }
        }
    }
}

/// A server on both families sees IPv4 in IPv6's clothes.
fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

fn failed(error: &std::io::Error, late: Reach) -> Reach {
    match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::PermissionDenied => Reach::Refused,
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Reach::Reset,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::AddrNotAvailable => Reach::Unreachable,
        ErrorKind::TimedOut | ErrorKind::WouldBlock => late,
        _ => Reach::Other,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_ends_of_an_attempt_are_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut room = [0; 1024];
            let _request = stream.read(&mut room).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\ntask: web.1\nremote: 192.0.2.7:99\n").unwrap();
        });
        assert_eq!(once(target), Reach::Answered { task: "web.1".to_owned(), caller: [192, 0, 2, 7].into() });
        server.join().unwrap();
        assert_eq!(once(target), Reach::Refused);
    }
}
