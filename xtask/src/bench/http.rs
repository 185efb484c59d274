//! The proxy beside HAProxy, nginx, Caddy, pingora and a plain copy of bytes, one worker each, on one machine.
//!
//! Requests come at random times (Poisson) over connections that are kept alive; a request that finds no connection free waits, and
//! its time counts from when it was due. The proxy has one core; load and backend, one thread each, have the other.
//!
//! - [`keep_alive`]: CPU per request at a rate that none of them finds hard.
//! - [`handshakes`]: CPU per new TLS connection.
//! - [`idle`]: memory per idle connection.
//! - [`counted`]: instructions of the proxy per request and per connection.
//! - [`tail`]: the slowest answers, at a rate that HAProxy carries well.

mod backend;
mod config;
mod connects;
mod contest;
pub(super) mod counted;
pub(super) mod idle;
mod link;
mod load;
pub(super) mod proxy;
mod site;
pub(super) mod tail;

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use rustls::HandshakeKind;

use self::{
    connects::Connects,
    contest::Contest,
    load::{Load, Outcome},
    proxy::{Kind, Programs, Proxy, Scheme},
};
use super::stats::{median, percentile, ratio};
use crate::run::say;

/// Per second.
const RATE: f64 = 6000.0;
/// Over TLS: Caddy has more than a core's work with as many as above.
const RATE_TLS: f64 = 4000.0;
const CONNECTIONS: usize = 64;
const BLOCK: Duration = Duration::from_secs(3);
/// Of the answer.
const BODY: usize = 1024;
/// New connections that are under way at a time.
const AT_ONCE: usize = 16;

/// What a client sends besides the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Headers {
    Bare,
    Browser,
}

impl Headers {
    const fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Browser => "a browser's headers",
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::Bare => "",
            Self::Browser => {
                "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n\
                 Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n\
                 Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nReferer: http://h0.example/index.html\r\n\
                 Cookie: session=0123456789abcdef0123456789abcdef; theme=dark; consent=yes\r\nUpgrade-Insecure-Requests: 1\r\n\
                 Sec-Fetch-Dest: document\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Site: same-origin\r\nPriority: u=0, i\r\n"
            }
        }
    }
}

/// What all proxies have in common.
struct Stage {
    programs: Programs,
    backend: SocketAddr,
    /// Has the certificate, and what the proxies write.
    directory: tempfile::TempDir,
    /// Where this process was before.
    cores: CpuSet,
}

impl Stage {
    /// As long as there is one, this process and whatever it starts is on the second core.
    fn set() -> Result<Self> {
        ensure!(std::thread::available_parallelism().map_or(1, usize::from) >= 2, "one core for the proxy and one for the load are needed");
        let programs = proxy::build()?;
        let directory = tempfile::tempdir()?;
        site::write(directory.path())?;
        let cores = sched_getaffinity(Pid::from_raw(0))?;
        let mut second = CpuSet::new();
        second.set(1)?;
        sched_setaffinity(Pid::from_raw(0), &second)?;
        let backend = backend::start(BODY).context("the backend does not start")?;
        Ok(Self { programs, backend, directory, cores })
    }

    fn start(&self, kind: Kind, scheme: Scheme) -> Result<Proxy> {
        Proxy::start(kind, scheme, self.backend, &self.programs, self.directory.path(), None)
    }

    fn start_counted(&self, kind: Kind, scheme: Scheme, file: &Path) -> Result<Proxy> {
        Proxy::start(kind, scheme, self.backend, &self.programs, self.directory.path(), Some(file))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // They were its own a moment ago.
        let _ = sched_setaffinity(Pid::from_raw(0), &self.cores);
    }
}

/// What one proxy did in one block, in seconds.
struct Sample {
    /// Per request.
    cpu: f64,
    p50: f64,
    p99: f64,
}

/// B8, and the same over TLS.
pub(super) fn keep_alive(scheme: Scheme, blocks: usize) -> Result<()> {
    use Kind::{Caddy, Copy, Haproxy, HaproxyAll, Nginx, Ours, OursBare, OursLarge, Pingora};
    let stage = Stage::set()?;
    let (kinds, rate): (&[Kind], _) = match scheme {
        Scheme::Http => (&[Ours, OursBare, OursLarge, Haproxy, HaproxyAll, Nginx, Caddy, Pingora, Copy], RATE),
        Scheme::Https => (&[Ours, OursBare, Haproxy, HaproxyAll, Nginx, Caddy, Pingora, Copy], RATE_TLS),
    };
    let mut contest = Contest::new(&stage, kinds, scheme)?;
    let tls = (scheme == Scheme::Https).then(|| site::client(true)).transpose()?;
    for headers in [Headers::Bare, Headers::Browser] {
        let samples = contest.rounds(blocks, |proxy, seed| {
            let load = Load {
                to: proxy.address,
                tls: tls.clone(),
                headers: headers.text(),
                hosts: proxy.hosts,
                rate,
                connections: CONNECTIONS,
                time: BLOCK,
            };
            let before = proxy.cpu()?;
            let Outcome { mut times, failed } = load.run(seed)?;
            ensure!(failed == 0, "{failed} of {} requests failed", times.len() + failed);
            proxy.check_log(times.len())?;
            let cpu = (proxy.cpu()? - before) / times.len() as f64;
            Ok(Sample { cpu, p50: percentile(&mut times, 0.5), p99: percentile(&mut times, 0.99) })
        })?;
        say(&format!(
            "\n{} kept alive, {BODY} bytes, {}, {rate} requests/s (Poisson) on {CONNECTIONS} connections, {blocks} interleaved blocks of {} s\n\
             | proxy | CPU per request, µs | ours, all switched on, against it [95 % CI] | ours as the peers against it [95 % CI] | p50, µs | p99, µs | ours p99 against it [95 % CI] |\n\
             |---|---|---|---|---|---|---|",
            match scheme {
                Scheme::Http => "HTTP/1.1",
                Scheme::Https => "HTTP/1.1 over TLS 1.3 (AES-128-GCM, X25519, ECDSA P-256),",
            },
            headers.name(),
            BLOCK.as_secs(),
        ));
        let of = |kind: Kind, field: fn(&Sample) -> f64| samples.get(&kind).into_iter().flatten().map(field).collect::<Vec<f64>>();
        let (ours, bare, ours_p99) = (of(Ours, |s| s.cpu), of(OursBare, |s| s.cpu), of(Ours, |s| s.p99));
        for kind in kinds.iter().copied().filter(|kind| samples.contains_key(kind)) {
            let (cpu, p50, p99) = (of(kind, |s| s.cpu), of(kind, |s| s.p50), of(kind, |s| s.p99));
            say(&format!(
                "| {} | {:.2} | {} | {} | {:.0} | {:.0} | {} |",
                kind.name(),
                median(&cpu) * 1e6,
                ratio(&ours, &cpu),
                ratio(&bare, &cpu),
                median(&p50) * 1e6,
                median(&p99) * 1e6,
                ratio(&ours_p99, &p99),
            ));
        }
        contest.tell();
    }
    Ok(())
}

/// B10: what a new TLS connection costs.
pub(super) fn handshakes(blocks: usize) -> Result<()> {
    use Kind::{Caddy, Haproxy, Nginx, Ours, Pingora};
    const KINDS: [Kind; 5] = [Ours, Haproxy, Nginx, Caddy, Pingora];
    let stage = Stage::set()?;
    for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
        let mut contest = Contest::new(&stage, &KINDS, Scheme::Https)?;
        // Each has its own tickets.
        let connects = |proxy: &Proxy| {
            let tls = site::client(kind == HandshakeKind::Resumed)?;
            anyhow::Ok(Connects { to: proxy.address, tls, kind, at_once: AT_ONCE, time: BLOCK })
        };
        let samples = contest.rounds(blocks, |proxy, _| {
            let connects = connects(proxy)?;
            connects.prepare()?;
            proxy.check_log(AT_ONCE * 2)?;
            let (before, begun) = (proxy.cpu()?, std::time::Instant::now());
            let made = connects.run()?;
            let busy = (proxy.cpu()? - before) / begun.elapsed().as_secs_f64();
            proxy.check_log(made)?;
            Ok((made as f64 / (proxy.cpu()? - before), busy))
        })?;
        say(&format!(
            "\nnew TLS 1.3 connections ({}, AES-128-GCM, X25519, ECDSA P-256) with one request each, {AT_ONCE} at a time, {blocks} interleaved blocks of {} s\n\
             | proxy | connections per CPU-second | ours, all switched on, against it [95 % CI] | its core was busy, % |\n|---|---|---|---|",
            if kind == HandshakeKind::Full { "full handshakes" } else { "resumed" },
            BLOCK.as_secs(),
        ));
        let of = |kind: Kind, field: fn(&(f64, f64)) -> f64| samples.get(&kind).into_iter().flatten().map(field).collect::<Vec<f64>>();
        let ours = of(Ours, |s| s.0);
        for kind in KINDS.iter().copied().filter(|kind| samples.contains_key(kind)) {
            let rate = of(kind, |s| s.0);
            say(&format!(
                "| {} | {:.0} | {} | {:.0} |",
                kind.name(),
                median(&rate),
                ratio(&ours, &rate),
                median(&of(kind, |s| s.1)) * 100.0
            ));
        }
        contest.tell();
    }
    Ok(())
}
