//! New TLS connections with one request each, so many at a time, one after the other.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use rustls::{ClientConfig, HandshakeKind};

use super::{link::Link, load::request};

pub(super) struct Connects {
    pub(super) to: SocketAddr,
    pub(super) tls: Arc<ClientConfig>,
    /// What every handshake must be.
    pub(super) kind: HandshakeKind,
    pub(super) at_once: usize,
    pub(super) time: Duration,
}

/// A block that does not end is a proxy that lost a connection.
const PATIENCE: Duration = Duration::from_secs(5);

impl Connects {
    /// Each of these leaves a ticket behind, if the client keeps any: all are open before the first is told its own.
    pub(super) fn prepare(&self) -> Result<()> {
        let (request, mut chunk) = (request(0, ""), vec![0; 64 * 1024]);
        let links = (0..self.at_once * 2).map(|_| Link::open(self.to, Some(&self.tls))).collect::<Result<Vec<_>>>()?;
        for mut link in links {
            link.ask(&request, &mut chunk)?;
            link.close();
        }
        Ok(())
    }

    /// How many connections were made, used and closed.
    pub(super) fn run(&self) -> Result<usize> {
        let (request, mut chunk) = (request(0, ""), vec![0; 64 * 1024]);
        let epoll = Epoll::new(EpollCreateFlags::empty())?;
        let begin = |id: usize| {
            let mut link = Link::begin(self.to, Some(&self.tls))?;
            // Goes out as soon as it can.
            link.send(&request)?;
            epoll.add(&link.stream, EpollEvent::new(EpollFlags::EPOLLIN, id as u64))?;
            anyhow::Ok(link)
        };
        let mut links = (0..self.at_once).map(|id| begin(id).map(Some)).collect::<Result<Vec<_>>>()?;
        let (mut open, mut made) = (links.len(), 0);
        let end = Instant::now() + self.time;
        let mut events = vec![EpollEvent::empty(); 128];
        while open > 0 {
            let count = match epoll.wait(&mut events, EpollTimeout::from(100_u8)) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let now = Instant::now();
            ensure!(now < end + PATIENCE, "{open} connections had no answer in time");
            for event in &events[..count] {
                let id = event.data() as usize;
                let Some(link) = &mut links[id] else { continue };
                if !link.read(&mut chunk)? {
                    continue;
                }
                ensure!(link.handshake() == Some(self.kind), "a handshake was {:?} and not {:?}", link.handshake(), self.kind);
                made += 1;
                if let Some(link) = links[id].take() {
                    link.close();
                }
                if now < end {
                    links[id] = Some(begin(id)?);
                } else {
                    open -= 1;
                }
            }
        }
        Ok(made)
    }
}
