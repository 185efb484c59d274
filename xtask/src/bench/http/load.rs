//! Requests at random times, whatever becomes of those before them.

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};

use crate::bench::stats::Random;

pub(super) struct Load {
    pub(super) to: SocketAddr,
    pub(super) headers: &'static str,
    /// `h0.example` and so on, asked for at random.
    pub(super) hosts: u32,
    /// Requests per second, on average.
    pub(super) rate: f64,
    pub(super) connections: usize,
    pub(super) time: Duration,
}

pub(super) struct Outcome {
    /// Seconds from when a request was due until the last byte of its answer.
    pub(super) times: Vec<f64>,
    pub(super) failed: usize,
}

const TIMER: u64 = u64::MAX;
/// An answer that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(2);

struct Connection {
    stream: TcpStream,
    /// When its request was due.
    due: Option<Instant>,
    /// Bytes of the answer that are still to come, once its head is there.
    left: Option<usize>,
    head: Vec<u8>,
}

impl Load {
    pub(super) fn run(&self, seed: u64) -> Result<Outcome> {
        let epoll = Epoll::new(EpollCreateFlags::empty())?;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK)?;
        epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, TIMER))?;
        let mut connections = Vec::new();
        for id in 0..self.connections {
            let stream = TcpStream::connect(self.to)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, id as u64))?;
            connections.push(Connection { stream, due: None, left: None, head: Vec::new() });
        }
        let mut random = Random(seed | 1);
        let requests: Vec<Vec<u8>> = (0..self.hosts.min(1000))
            .map(|_| {
                format!("GET /index.html HTTP/1.1\r\nHost: h{}.example\r\n{}\r\n", random.below(self.hosts as usize), self.headers)
                    .into_bytes()
            })
            .collect();
        let mut pause = || {
            let uniform = (random.below(1 << 24) as f64 + 1.0) / f64::from(1 << 24);
            Duration::from_secs_f64(-uniform.ln() / self.rate)
        };
        let mut free: Vec<usize> = (0..self.connections).rev().collect();
        let mut waiting: VecDeque<Instant> = VecDeque::new();
        let mut outcome = Outcome { times: Vec::with_capacity((self.rate * self.time.as_secs_f64()) as usize), failed: 0 };
        let (mut events, mut chunk) = (vec![EpollEvent::empty(); 128], vec![0; 64 * 1024]);
        let begun = Instant::now();
        let (end, mut due, mut sent) = (begun + self.time, begun, 0usize);
        loop {
            let now = Instant::now();
            while due <= now && due < end {
                waiting.push_back(due);
                due += pause();
            }
            while let (Some(id), Some(at)) = (free.last().copied(), waiting.front().copied()) {
                free.pop();
                waiting.pop_front();
                connections[id].due = Some(at);
                connections[id].stream.write_all(&requests[sent % requests.len()])?;
                sent += 1;
            }
            if due >= end && waiting.is_empty() && free.len() == self.connections {
                break;
            }
            if now > end + PATIENCE {
                outcome.failed += self.connections - free.len() + waiting.len();
                break;
            }
            // At least a microsecond: none would switch it off.
            let next = if due < end { due.saturating_duration_since(now).max(Duration::from_micros(1)) } else { PATIENCE };
            timer.set(Expiration::OneShot(TimeSpec::from(next)), TimerSetTimeFlags::empty())?;
            let count = match epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for event in &events[..count] {
                if event.data() == TIMER {
                    // Read, so that it is not told again; it may have been set anew in between.
                    let _ = nix::unistd::read(&timer, &mut [0; 8]);
                    continue;
                }
                let id = event.data() as usize;
                if let Some(due) = connections[id].read(&mut chunk)? {
                    outcome.times.push(due.elapsed().as_secs_f64());
                    free.push(id);
                }
            }
        }
        Ok(outcome)
    }
}

impl Connection {
    /// When the request was due whose answer is now complete.
    fn read(&mut self, chunk: &mut [u8]) -> Result<Option<Instant>> {
        let read = match self.stream.read(chunk) {
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        ensure!(read > 0, "a connection was closed");
        let mut bytes = &chunk[..read];
        if self.left.is_none() {
            self.head.extend_from_slice(bytes);
            let Some(end) = self.head.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
            let head = String::from_utf8_lossy(&self.head[..end]).to_ascii_lowercase();
            ensure!(head.starts_with("http/1.1 200"), "not a 200: {head}");
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
            ensure!(length.is_some(), "an answer without a length: {head}");
            let beyond = self.head.len() - end - 4;
            bytes = &bytes[bytes.len() - beyond..];
            self.left = length;
            self.head.clear();
        }
        let left = self.left.unwrap_or_default();
        ensure!(bytes.len() <= left, "more than one answer");
        self.left = Some(left - bytes.len());
        if self.left != Some(0) {
            return Ok(None);
        }
        self.left = None;
        Ok(self.due.take())
    }
}
