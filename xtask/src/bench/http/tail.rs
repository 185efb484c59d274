//! B9: the slowest answers at 60 % of what HAProxy can carry, without TLS.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use nix::sys::resource::{UsageWho, getrusage};

use super::{
    CONNECTIONS, Stage,
    contest::Contest,
    load::{Load, Outcome},
    proxy::{Kind, Proxy, Scheme},
};
use crate::{
    bench::stats::{median, percentile, ratio},
    run::say,
};

const KINDS: [Kind; 4] = [Kind::Ours, Kind::OursBare, Kind::Haproxy, Kind::Nginx];
/// A rate is carried if p99 is below this, and every request is answered.
const CARRIED: f64 = 0.005;
const PROBE: Duration = Duration::from_secs(3);
/// Of HAProxy's knee.
const SHARE: f64 = 0.6;
/// A p99.9 of fewer is luck.
const SAMPLES: f64 = 100_000.0;

/// In seconds.
struct Block {
    p50: f64,
    p999: f64,
    times: Vec<f64>,
}

pub(crate) fn run(blocks: usize) -> Result<()> {
    let stage = Stage::set()?;
    let knee = {
        let haproxy = stage.start(Kind::Haproxy, Scheme::Http)?;
        knee(&haproxy)?
    };
    let rate = knee * SHARE;
    // So many in all blocks together, and no block so short that it says nothing.
    let time = Duration::from_secs_f64((SAMPLES / rate / blocks.max(1) as f64).max(5.0));
    let mut contest = Contest::new(&stage, &KINDS, Scheme::Http)?;
    let samples = contest.rounds(blocks, |proxy, seed| {
        let Outcome { mut times, failed } = load(proxy, rate, time).run(seed)?;
        ensure!(failed == 0, "{failed} of {} requests failed", times.len() + failed);
        proxy.check_log(times.len())?;
        Ok(Block { p50: percentile(&mut times, 0.5), p999: percentile(&mut times, 0.999), times })
    })?;
    say(&format!(
        "\nHTTP/1.1 kept alive, bare, {rate:.0} requests/s (Poisson; {:.0} % of HAProxy's knee) on {CONNECTIONS} connections, {blocks} interleaved blocks of {:.0} s\n\
         | proxy | p50, µs | p99.9 of a block, µs | ours, all switched on, against it [95 % CI] | ours as the peers against it [95 % CI] | of all answers: p99, µs | p99.9, µs | worst, µs | answers |\n\
         |---|---|---|---|---|---|---|---|---|",
        SHARE * 100.0,
        time.as_secs_f64(),
    ));
    let of = |kind: Kind, field: fn(&Block) -> f64| samples.get(&kind).into_iter().flatten().map(field).collect::<Vec<f64>>();
    let (ours, bare) = (of(Kind::Ours, |b| b.p999), of(Kind::OursBare, |b| b.p999));
    for (kind, blocks) in &samples {
        let p999 = of(*kind, |b| b.p999);
        let mut all: Vec<f64> = blocks.iter().flat_map(|block| block.times.iter().copied()).collect();
        let mut of_all = |fraction| percentile(&mut all, fraction) * 1e6;
        say(&format!(
            "| {} | {:.0} | {:.0} | {} | {} | {:.0} | {:.0} | {:.0} | {} |",
            kind.name(),
            median(&of(*kind, |b| b.p50)) * 1e6,
            median(&p999) * 1e6,
            ratio(&ours, &p999),
            ratio(&bare, &p999),
            of_all(0.99),
            of_all(0.999),
            of_all(1.0),
            blocks.iter().map(|block| block.times.len()).sum::<usize>(),
        ));
    }
    contest.tell();
    Ok(())
}

fn load(proxy: &Proxy, rate: f64, time: Duration) -> Load {
    Load { to: proxy.address, tls: None, headers: "", hosts: proxy.hosts, rate, connections: CONNECTIONS, time }
}

/// The highest rate that this proxy carries, within some 3 %, and what stands in the way of more.
fn knee(proxy: &Proxy) -> Result<f64> {
    let (mut low, mut high) = (0.0, f64::INFINITY);
    let mut rate = 4000.0;
    let mut at_low = (0.0, 0.0, 0.0);
    while high / low > 1.03 {
        let (cpu, own, begun) = (proxy.cpu()?, own_cpu()?, Instant::now());
        let Outcome { mut times, failed } = load(proxy, rate, PROBE).run(rate as u64)?;
        let took = begun.elapsed().as_secs_f64();
        let p99 = percentile(&mut times, 0.99);
        if failed == 0 && p99 < CARRIED {
            low = rate;
            at_low = ((proxy.cpu()? - cpu) / took, (own_cpu()? - own) / took, p99);
            rate = if high.is_finite() { f64::midpoint(low, high) } else { rate * 1.5 };
        } else {
            high = rate;
            rate = if low > 0.0 { f64::midpoint(low, high) } else { rate / 2.0 };
        }
        if high < 100.0 {
            bail!("HAProxy does not carry 100 requests/s with a p99 below {} ms here: the machine is too busy for this", CARRIED * 1e3);
        }
    }
    let (proxy, own, p99) = at_low;
    say(&format!(
        "HAProxy's knee: {low:.0} requests/s (the highest with a p99 below {:.0} ms; it was {:.2} ms). Its core was {:.0} % busy with it then, the other core {:.0} % with load and backend{}",
        CARRIED * 1e3,
        p99 * 1e3,
        proxy * 100.0,
        own * 100.0,
        if own > proxy { ": the knee is the load's" } else { "" },
    ));
    Ok(low)
}

/// Seconds of all threads of this process.
fn own_cpu() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}
