//! What changes cost those who ask: 10,000 hosts, and the slowest answers of blocks in which routes, tasks and the certificate
//! change, against blocks in which nothing does.
//!
//! The proxy is a process of its own on the first core. Load, tasks and what happens are on the second: half of the requests are
//! for 16 hosts whose tasks flap, half of these in TLS, one in twenty on a new connection.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};

use super::stats::{median, ratio};
use crate::run::{output, root, say};

const HOSTS: u32 = 10_000;
/// Per second.
const RATE: u32 = 1000;
/// Of a block, seconds.
const BLOCK: u32 = 4;

/// A line of `life load`.
#[derive(Debug, PartialEq)]
struct Block {
    is_life: bool,
    requests: u64,
    failed: u64,
    /// p50, p99, p99.9, in µs.
    times: [f64; 3],
    handshakes: u64,
    certificates: u64,
    forms: u64,
}

pub(crate) fn run(blocks: usize) -> Result<()> {
    ensure!(std::thread::available_parallelism().map_or(1, usize::from) >= 2, "one core for the proxy and one for the load are needed");
    let program = build()?;
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", "1"]).arg(&program);
    // The first pair is discarded.
    command.args(["load", &HOSTS.to_string(), &RATE.to_string(), &BLOCK.to_string(), &(blocks + 1).to_string()]);
    command.args(["taskset", "--cpu-list", "0"]);
    let text = output(&mut command)?;
    let all = text.lines().map(|line| read(line).with_context(|| format!("not a block: {line}"))).collect::<Result<Vec<Block>>>()?;
    ensure!(all.len() == 2 * (blocks + 1), "{} blocks of {}", all.len(), 2 * (blocks + 1));
    let failed: u64 = all.iter().map(|block| block.failed).sum();
    let requests: u64 = all.iter().map(|block| block.requests).sum();
    let of = |is_life: bool| all.iter().skip(2).filter(move |block| block.is_life == is_life);
    let times = |is_life: bool, which: usize| of(is_life).map(|block| block.times[which]).collect::<Vec<f64>>();
    say(&format!(
        "\n{HOSTS} hosts, {RATE} requests/s (Poisson), {blocks} pairs of blocks of {BLOCK} s: with 10 changes of routes, one task's flap and one other\n\
         certificate a second, and without. {requests} requests, {failed} failed, {} new TLS connections while it changed.\n\
         | | p50, µs | p99, µs | p99.9, µs |\n|---|---|---|---|",
        of(true).map(|block| block.handshakes).sum::<u64>()
    ));
    for (name, is_life) in [("quiet", false), ("changing", true)] {
        let [p50, p99, p999] = [0, 1, 2].map(|which| median(&times(is_life, which)));
        say(&format!("| {name} | {p50:.0} | {p99:.0} | {p999:.0} |"));
    }
    let [p50, p99, p999] = [0, 1, 2].map(|which| ratio(&times(true, which), &times(false, which)).to_string());
    say(&format!("| changing against quiet [95 % CI] | {p50} | {p99} | {p999} |"));
    ensure!(of(true).all(|block| block.certificates > 1 && block.forms > 5), "nothing changed in a block that was to change");
    ensure!(failed == 0, "{failed} of {requests} requests failed");
    Ok(())
}

fn read(line: &str) -> Option<Block> {
    let mut words = line.split(' ');
    let is_life = match words.next()? {
        "life" => true,
        "quiet" => false,
        _ => return None,
    };
    let mut number = || words.next()?.parse::<f64>().ok();
    let (requests, failed) = (number()? as u64, number()? as u64);
    let times = [number()?, number()?, number()?];
    let (handshakes, certificates, forms) = (number()? as u64, number()? as u64, number()? as u64);
    Some(Block { is_life, requests, failed, times, handshakes, certificates, forms })
}

fn build() -> Result<PathBuf> {
    let build = ["build", "--release", "--package", "swarmesh-proxy", "--example", "life"];
    output(Command::new(env!("CARGO")).current_dir(root()).args(build))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), Into::into);
    Ok(target.join("release/examples/life"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_a_line() {
        let block = read("life 4012 1 300 1200 5300 40 2 38").unwrap();
        let times = [300.0, 1200.0, 5300.0];
        assert_eq!(block, Block { is_life: true, requests: 4012, failed: 1, times, handshakes: 40, certificates: 2, forms: 38 });
        assert_eq!(read("life 4012 1"), None);
        assert_eq!(read("other 4012 1 300 1200 5300 40 2 38"), None);
    }
}
