//! B8: HTTP. CPU per request of each proxy, one worker each, at a rate that none of them finds hard, and how long answers take.
//!
//! Requests come at random times (Poisson) over connections that are kept alive; a request that finds no connection free waits, and
//! its time counts from when it was due. The proxy has one core; load and backend, one thread each, have the other.

mod backend;
mod load;
mod proxy;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use self::{
    load::{Load, Outcome},
    proxy::{Kind, Proxy},
};
use super::stats::{Random, median, percentile, ratio};
use crate::run::say;

/// Per second.
const RATE: f64 = 6000.0;
const CONNECTIONS: usize = 64;
const BLOCK: Duration = Duration::from_secs(3);
/// Of the answer.
const BODY: usize = 1024;

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

pub(crate) fn run(blocks: usize) -> Result<()> {
    ensure!(std::thread::available_parallelism().map_or(1, usize::from) >= 2, "one core for the proxy and one for the load are needed");
    let program = proxy::build()?;
    let directory = tempfile::tempdir()?;
    // From here on, and whatever is started from here.
    let mut second = CpuSet::new();
    second.set(1)?;
    sched_setaffinity(Pid::from_raw(0), &second)?;
    let backend = backend::start(BODY).context("the backend does not start")?;
    let proxies = Kind::ALL.into_iter().map(|kind| Proxy::start(kind, backend, &program, directory.path())).collect::<Result<Vec<_>>>()?;
    for headers in [Headers::Bare, Headers::Browser] {
        side_by_side(blocks, &proxies, headers)?;
    }
    Ok(())
}

/// What one proxy did, block by block.
#[derive(Default)]
struct Figures {
    cpu: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
}

fn side_by_side(blocks: usize, proxies: &[Proxy], headers: Headers) -> Result<()> {
    let mut figures: Vec<Figures> = proxies.iter().map(|_| Figures::default()).collect();
    let mut random = Random(13);
    for block in 0..=blocks {
        let mut order: Vec<usize> = (0..proxies.len()).collect();
        random.shuffle(&mut order);
        for index in order {
            let proxy = &proxies[index];
            let load =
                Load { to: proxy.address, headers: headers.text(), hosts: proxy.hosts, rate: RATE, connections: CONNECTIONS, time: BLOCK };
            let before = proxy.cpu()?;
            let Outcome { mut times, failed } = load.run((block * 31 + index) as u64 + 1).with_context(|| proxy.kind.name())?;
            let cpu = proxy.cpu()? - before;
            ensure!(failed == 0, "{}: {failed} of {} requests failed", proxy.kind.name(), times.len());
            if block > 0 {
                figures[index].cpu.push(cpu / times.len() as f64 * 1e6);
                figures[index].p50.push(percentile(&mut times, 0.5) * 1e6);
                figures[index].p99.push(percentile(&mut times, 0.99) * 1e6);
            }
        }
    }
    say(&format!(
        "\nHTTP/1.1 kept alive, {BODY} bytes, {}, {RATE} requests/s (Poisson) on {CONNECTIONS} connections, {blocks} interleaved blocks of {} s\n\
         | proxy | CPU per request, µs | ours against it [95 % CI] | p50, µs | p99, µs | ours p99 against it [95 % CI] |\n|---|---|---|---|---|---|",
        headers.name(),
        BLOCK.as_secs(),
    ));
    for (proxy, own) in proxies.iter().zip(&figures) {
        say(&format!(
            "| {} | {:.2} | {} | {:.0} | {:.0} | {} |",
            proxy.kind.name(),
            median(&own.cpu),
            ratio(&figures[0].cpu, &own.cpu),
            median(&own.p50),
            median(&own.p99),
            ratio(&figures[0].p99, &own.p99),
        ));
    }
    Ok(())
}
