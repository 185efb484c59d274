//! Requests at random times, whatever becomes of those before them.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};
use rustls::ClientConfig;

use super::link::Link;
use crate::bench::stats::Random;

pub(super) struct Load {
    pub(super) to: SocketAddr,
    pub(super) tls: Option<Arc<ClientConfig>>,
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

/// The generator itself did not run for this long: what it measured says nothing of the proxy.
#[derive(Debug, thiserror::Error)]
#[error("the load itself did not run for {0:?}")]
pub(super) struct Stalled(Duration);

/// What it may be kept from running, by whatever else the machine does.
const STALL: Duration = Duration::from_millis(250);

const TIMER: u64 = u64::MAX;
/// An answer that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(2);

/// A request for the index of a host.
pub(super) fn request(host: u32, headers: &str) -> Vec<u8> {
    format!("GET /index.html HTTP/1.1\r\nHost: h{host}.example\r\n{headers}\r\n").into_bytes()
}

impl Load {
    pub(super) fn run(&self, seed: u64) -> Result<Outcome> {
        let epoll = Epoll::new(EpollCreateFlags::empty())?;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK)?;
        epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, TIMER))?;
        // With each, when its request was due.
        let mut links: Vec<(Link, Option<Instant>)> = Vec::new();
        for id in 0..self.connections {
            let link = Link::open(self.to, self.tls.as_ref())?;
            epoll.add(&link.stream, EpollEvent::new(EpollFlags::EPOLLIN, id as u64))?;
            links.push((link, None));
        }
        let mut random = Random(seed | 1);
        let requests: Vec<Vec<u8>> =
            (0..self.hosts.min(1000)).map(|_| request(random.below(self.hosts as usize) as u32, self.headers)).collect();
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
        // When it should be awake again.
        let mut awake = begun;
        loop {
            let now = Instant::now();
            let away = now.saturating_duration_since(awake);
            if away > STALL {
                return Err(Stalled(away).into());
            }
            while due <= now && due < end {
                waiting.push_back(due);
                due += pause();
            }
            while let (Some(id), Some(at)) = (free.last().copied(), waiting.front().copied()) {
                free.pop();
                waiting.pop_front();
                links[id].1 = Some(at);
                links[id].0.send(&requests[sent % requests.len()])?;
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
            awake = now + next;
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
                let (link, due) = &mut links[id];
                if link.read(&mut chunk)?
                    && let Some(due) = due.take()
                {
                    outcome.times.push(due.elapsed().as_secs_f64());
                    free.push(id);
                }
            }
        }
        for (link, _) in links {
            link.close();
        }
        Ok(outcome)
    }
}
