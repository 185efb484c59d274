//! B10: memory of the proxy's process per connection that has had one request and does nothing now.
//!
//! What the kernel keeps for a socket is the same for all and not counted.

use std::{collections::BTreeMap, sync::Arc, thread, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use rustls::ClientConfig;

use super::{
    Stage,
    link::Link,
    load::request,
    proxy::{Kind, Scheme},
    site,
};
use crate::{
    bench::stats::{Random, median, ratio},
    run::say,
};

/// Connections at the two points that are compared with none, and with each other.
const POINTS: [usize; 2] = [2_000, 10_000];
/// What was used for handshakes and answers is given back by then, if it is.
const SETTLE: Duration = Duration::from_secs(2);

#[derive(Default)]
struct Figures {
    /// Bytes per connection up to the first point, and from there to the second.
    first: Vec<f64>,
    then: Vec<f64>,
    /// The whole process, without connections.
    base: Vec<f64>,
}

pub(crate) fn run(rounds: usize) -> Result<()> {
    use Kind::{Caddy, Haproxy, Nginx, Ours, Pingora};
    const KINDS: [Kind; 5] = [Ours, Haproxy, Nginx, Caddy, Pingora];
    allow_files(POINTS[1] as u64 + 200)?;
    let stage = Stage::set()?;
    for scheme in [Scheme::Https, Scheme::Http] {
        let tls = (scheme == Scheme::Https).then(|| site::client(true)).transpose()?;
        let mut figures: BTreeMap<Kind, Figures> = BTreeMap::new();
        let mut failed: BTreeMap<Kind, String> = BTreeMap::new();
        let mut random = Random(17);
        for _ in 0..rounds {
            let mut order: Vec<usize> = (0..KINDS.len()).collect();
            random.shuffle(&mut order);
            for kind in order.into_iter().map(|index| KINDS[index]).filter(|kind| !failed.contains_key(kind)).collect::<Vec<_>>() {
                match measure(&stage, kind, scheme, tls.as_ref()) {
                    Ok([base, first, then]) => {
                        let figures = figures.entry(kind).or_default();
                        figures.base.push(base);
                        figures.first.push(first);
                        figures.then.push(then);
                    }
                    Err(error) if !kind.is_needed() => {
                        failed.insert(kind, format!("{error:#}"));
                        figures.remove(&kind);
                    }
                    Err(error) => return Err(error).with_context(|| kind.name()),
                }
            }
        }
        say(&format!(
            "\nmemory of idle connections, {}, one request each before, {rounds} rounds, a new process for each\n\
             | proxy | without connections, KiB | bytes per connection, 0 to {} | ours against it [95 % CI] | {} to {} | ours against it [95 % CI] |\n\
             |---|---|---|---|---|---|",
            if tls.is_some() { "TLS 1.3" } else { "plain" },
            POINTS[0],
            POINTS[0],
            POINTS[1],
        ));
        let Some(ours) = figures.get(&Ours) else { bail!("no round was measured") };
        for (kind, own) in &figures {
            say(&format!(
                "| {} | {:.0} | {:.0} | {} | {:.0} | {} |",
                kind.name(),
                median(&own.base) / 1024.0,
                median(&own.first),
                ratio(&ours.first, &own.first),
                median(&own.then),
                ratio(&ours.then, &own.then),
            ));
        }
        for (kind, why) in failed {
            say(&format!("{}: no figures: {why}", kind.name()));
        }
    }
    Ok(())
}

/// Bytes without connections, and per connection up to either point.
fn measure(stage: &Stage, kind: Kind, scheme: Scheme, tls: Option<&Arc<ClientConfig>>) -> Result<[f64; 3]> {
    let proxy = stage.start(kind, scheme)?;
    let (request, mut chunk) = (request(0, ""), vec![0; 64 * 1024]);
    // What is made once, at the first need.
    for _ in 0..50 {
        let mut link = Link::open(proxy.address, tls)?;
        link.ask(&request, &mut chunk)?;
        link.close();
    }
    let settled = || {
        thread::sleep(SETTLE);
        proxy.memory().map(|bytes| bytes as f64)
    };
    let base = settled()?;
    let mut links = Vec::new();
    let mut at = [0.0; 2];
    for (point, at) in POINTS.into_iter().zip(&mut at) {
        while links.len() < point {
            let mut link = Link::open(proxy.address, tls)?;
            link.ask(&request, &mut chunk)?;
            links.push(link);
        }
        *at = settled()?;
    }
    let open = links.iter_mut().filter_map(|link| link.is_open(&mut chunk).then_some(())).count();
    ensure!(open == POINTS[1], "{} of {} connections did not stay open", POINTS[1] - open, POINTS[1]);
    for link in links {
        link.close();
    }
    Ok([base, (at[0] - base) / POINTS[0] as f64, (at[1] - at[0]) / (POINTS[1] - POINTS[0]) as f64])
}

/// For this process and those that it starts.
fn allow_files(count: u64) -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    ensure!(hard >= count, "at most {hard} open files are allowed here, and {count} are needed: raise the limit (ulimit -Hn)");
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(())
}
