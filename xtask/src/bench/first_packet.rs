//! B4: does a new connection cost more when the table is large? Ours, the layout of kube-proxy's nftables mode, its
//! iptables mode, and no translation at all.

use std::{net::SocketAddr, time::Instant};

use anyhow::{Context, Result};
use swarmesh_model::{Delta, Snapshot};
use swarmesh_tests::netns::within;

use super::{
    stats::{Random, median, percentile, ratio},
    swarm::{Ours, Sandbox, ask, backend, snapshot, vip},
};
use crate::run::say;

const SIZES: [u32; 4] = [1, 100, 1_000, 10_000];
const TASKS: u32 = 3;
const SAMPLES: usize = 2_000;

pub(crate) fn run(blocks: usize) -> Result<()> {
    let mut subjects: Vec<Subject> = Vec::new();
    for size in SIZES {
        subjects.push(Subject::ours(size)?);
        subjects.push(Subject::kube_nft(size)?);
        // 10,000 services of chains take iptables-restore minutes, and show nothing that 1,000 do not.
        if size <= 1_000 {
            subjects.push(Subject::kube_iptables(size)?);
        }
    }
    subjects.push(Subject::direct()?);

    let mut random = Random(42);
    for block in 0..=blocks {
        let mut order: Vec<usize> = (0..subjects.len()).collect();
        random.shuffle(&mut order);
        for index in order {
            let mut latencies = subjects[index].measure(&mut random)?;
            if block > 0 {
                subjects[index].p50.push(percentile(&mut latencies, 0.50));
                subjects[index].p99.push(percentile(&mut latencies, 0.99));
            }
        }
    }
    say(&format!("connect + first byte, µs; {blocks} interleaved blocks of {SAMPLES}, median of the blocks"));
    say("| subject | services | p50 | p99 | p99 against 1 service [95 % CI] |\n|---|---|---|---|---|");
    for subject in &subjects {
        let one = subjects.iter().find(|s| s.name == subject.name && s.size == 1).context("no base")?;
        let against = ratio(&subject.p99, &one.p99);
        say(&format!("| {} | {} | {:.1} | {:.1} | {against} |", subject.name, subject.size, median(&subject.p50), median(&subject.p99)));
    }
    Ok(())
}

struct Subject {
    name: &'static str,
    size: u32,
    direct: bool,
    sandbox: Sandbox,
    p50: Vec<f64>,
    p99: Vec<f64>,
}

impl Subject {
    fn new(name: &'static str, size: u32) -> Result<Self> {
        let sandbox = Sandbox::new(&format!("{}{size}", name.replace(' ', "-")))?;
        // Serves until the process ends.
        drop(sandbox.serve()?);
        Ok(Self { name, size, direct: false, sandbox, p50: vec![], p99: vec![] })
    }

    fn ours(size: u32) -> Result<Self> {
        let subject = Self::new("ours", size)?;
        let mut ours = Ours::new(&subject.sandbox);
        ours.apply(&Delta::between(&Snapshot::default(), &snapshot(size, TASKS)))?;
        // The kernel holds the table from here on; the agent is as good as dead.
        Ok(subject)
    }

    fn direct() -> Result<Self> {
        let mut subject = Self::new("direct", 1)?;
        subject.direct = true;
        Ok(subject)
    }

    /// A verdict map from VIP and port to a chain per service, which picks a chain per endpoint.
    fn kube_nft(size: u32) -> Result<Self> {
        let subject = Self::new("kube nft", size)?;
        let mut chains = String::new();
        let mut elements = Vec::new();
        for service in 0..size {
            let first = service * TASKS;
            for number in first..first + TASKS {
                chains.push_str(&format!("chain e{number} {{ meta l4proto tcp dnat ip to {}:80\n}}\n", backend(number)));
            }
            let picks: Vec<String> = (0..TASKS).map(|i| format!("{i} : goto e{}", first + i)).collect();
            chains.push_str(&format!("chain s{service} {{ numgen random mod {TASKS} vmap {{ {} }}\n}}\n", picks.join(", ")));
            elements.push(format!("{} . tcp . 80 : goto s{service}", vip(service)));
        }
        let script = format!(
            "table ip kube {{\n{chains}map services {{ type ipv4_addr . inet_proto . inet_service : verdict; elements = {{ {} }}\n}}\n\
             chain output {{ type nat hook output priority -100\nip daddr . meta l4proto . th dport vmap @services\n}}\n}}\n",
            elements.join(", ")
        );
        subject.sandbox.run("nft", &["-f", "-"], script)?;
        Ok(subject)
    }

    fn kube_iptables(size: u32) -> Result<Self> {
        let subject = Self::new("kube iptables", size)?;
        let (mut declare, mut rules) = (String::new(), String::new());
        for service in 0..size {
            declare.push_str(&format!(":S{service} - [0:0]\n"));
            rules.push_str(&format!("-A SERVICES -d {}/32 -p tcp -m tcp --dport 80 -j S{service}\n", vip(service)));
            for i in 0..TASKS {
                let number = service * TASKS + i;
                declare.push_str(&format!(":E{number} - [0:0]\n"));
                let left = TASKS - i;
                let draw = if left > 1 {
                    format!("-m statistic --mode random --probability {:.8} ", 1.0 / f64::from(left))
                } else {
                    String::new()
                };
                rules.push_str(&format!("-A S{service} {draw}-j E{number}\n"));
                rules.push_str(&format!("-A E{number} -p tcp -m tcp -j DNAT --to-destination {}:80\n", backend(number)));
            }
        }
        let script = format!("*nat\n:OUTPUT ACCEPT [0:0]\n:SERVICES - [0:0]\n{declare}-A OUTPUT -j SERVICES\n{rules}COMMIT\n");
        subject.sandbox.run("iptables-restore", &[], script)?;
        Ok(subject)
    }

    fn measure(&self, random: &mut Random) -> Result<Vec<f64>> {
        let target = |number| if self.direct { backend(number) } else { vip(number) };
        let targets: Vec<SocketAddr> = (0..SAMPLES).map(|_| SocketAddr::new(target(random.below(self.size as usize) as u32), 80)).collect();
        within(&self.sandbox.path(), move || {
            let mut latencies = Vec::with_capacity(targets.len());
            for target in targets {
                let start = Instant::now();
                ask(target)?;
                latencies.push(start.elapsed().as_secs_f64() * 1e6);
            }
            Ok(latencies)
        })?
    }
}
