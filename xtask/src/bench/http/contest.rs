//! Proxies side by side, block by block in random order, and what else the machine did meanwhile.

use std::{collections::BTreeMap, fs, time::Instant};

use anyhow::{Context, Result};

use super::{
    Stage,
    load::Stalled,
    proxy::{Kind, Proxy, Scheme},
};
use crate::{
    bench::stats::{Random, median},
    run::say,
};

/// How often a block is repeated that the machine was away in.
const REPEATS: usize = 5;

/// The share of a core that others may have without a word.
const QUIET: f64 = 0.03;

pub(super) struct Contest {
    proxies: Vec<Proxy>,
    /// Who has no figures, and why.
    failed: BTreeMap<Kind, String>,
    /// Of each block: the share of the proxy's core that others had, and the share that the machine's host kept.
    foreign: Vec<f64>,
    stolen: Vec<f64>,
}

impl Contest {
    /// A peer that does not start is left out with its reason.
    pub(super) fn new(stage: &Stage, kinds: &[Kind], scheme: Scheme) -> Result<Self> {
        let (mut proxies, mut failed) = (Vec::new(), BTreeMap::new());
        for kind in kinds {
            match stage.start(*kind, scheme) {
                Ok(proxy) => proxies.push(proxy),
                Err(error) if !kind.is_needed() => {
                    failed.insert(*kind, format!("{error:#}"));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Self { proxies, failed, foreign: Vec::new(), stolen: Vec::new() })
    }

    /// Each block has each proxy once, in random order; the first block is discarded. A peer that fails has no figures.
    pub(super) fn rounds<T>(&mut self, blocks: usize, mut measure: impl FnMut(&Proxy, u64) -> Result<T>) -> Result<BTreeMap<Kind, Vec<T>>> {
        let mut samples: BTreeMap<Kind, Vec<T>> = BTreeMap::new();
        let mut random = Random(13);
        for block in 0..=blocks {
            let mut order: Vec<usize> = (0..self.proxies.len()).collect();
            random.shuffle(&mut order);
            for index in order {
                let proxy = &self.proxies[index];
                if self.failed.contains_key(&proxy.kind) {
                    continue;
                }
                let (mut cpu, mut core, mut begun) = (proxy.cpu()?, Core::now()?, Instant::now());
                let mut result = measure(proxy, (block * 31 + index) as u64 + 1);
                for _ in 0..REPEATS {
                    let Some(stalled) = result.as_ref().err().and_then(|error| error.downcast_ref::<Stalled>()) else { break };
                    say(&format!("{}, block {block}, once more: {stalled}", proxy.kind.name()));
                    (cpu, core, begun) = (proxy.cpu()?, Core::now()?, Instant::now());
                    result = measure(proxy, (block * 31 + index) as u64 + 1);
                }
                match result {
                    Ok(sample) if block > 0 => samples.entry(proxy.kind).or_default().push(sample),
                    Ok(_) => continue,
                    Err(error) if !proxy.kind.is_needed() => {
                        self.failed.insert(proxy.kind, format!("in block {block}: {error:#}"));
                        samples.remove(&proxy.kind);
                        continue;
                    }
                    Err(error) => return Err(error).with_context(|| proxy.kind.name()),
                }
                let (own, core, time) = (proxy.cpu()? - cpu, Core::now()?.since(core), begun.elapsed().as_secs_f64());
                self.foreign.push(((core.busy - own) / time).max(0.0));
                self.stolen.push(core.stolen / time);
            }
        }
        Ok(samples)
    }

    /// Says who is missing, and how quiet it was. Both are forgotten then.
    pub(super) fn tell(&mut self) {
        for (kind, why) in &self.failed {
            say(&format!("{}: no figures: {why}", kind.name()));
        }
        let (foreign, stolen) = (median(&self.foreign), median(&self.stolen));
        let verdict = if foreign > QUIET || stolen > QUIET { ": not a quiet machine, so this is a first look" } else { "" };
        say(&format!(
            "beside the proxy, others had {:.1} % of its core and the machine's host {:.1} % (medians of the blocks){verdict}",
            foreign * 100.0,
            stolen * 100.0
        ));
        self.foreign.clear();
        self.stolen.clear();
        // Who failed may do better with the next.
        self.failed.retain(|kind, _| self.proxies.iter().all(|proxy| proxy.kind != *kind));
    }
}

/// Seconds that the first core has spent so far. They are counted in ticks of 10 ms.
#[derive(Clone, Copy)]
struct Core {
    busy: f64,
    stolen: f64,
}

impl Core {
    fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat")?;
        let line = text.lines().find_map(|line| line.strip_prefix("cpu0 ")).context("no cpu0 in /proc/stat")?;
        let ticks: Vec<f64> =
            line.split_whitespace().map(|word| word.parse::<f64>().map(|ticks| ticks / 100.0)).collect::<Result<_, _>>()?;
        let [user, nice, system, _, _, irq, softirq, stolen, ..] = ticks.as_slice() else {
            anyhow::bail!("too few figures of cpu0 in /proc/stat")
        };
        Ok(Self { busy: user + nice + system + irq + softirq, stolen: *stolen })
    }

    fn since(self, before: Self) -> Self {
        Self { busy: self.busy - before.busy, stolen: self.stolen - before.stolen }
    }
}
