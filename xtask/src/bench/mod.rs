//! Measurements, side by side with peers and the limit (PERFORMANCE.md says how to read them).

mod connections;
mod first_packet;
mod http;
mod http_life;
mod memory;
mod names;
mod programming;
mod routing;
mod stats;
mod swarm;
mod vm;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use self::http::proxy::Scheme;
use crate::{packages, run::say, vm::Series};

#[derive(Args)]
pub(crate) struct BenchArgs {
    /// What to measure; everything when left out
    #[arg(value_enum)]
    what: Vec<What>,
    /// Blocks per measurement, interleaved; the first one is discarded
    #[arg(long, default_value_t = 15)]
    blocks: usize,
    /// Tasks of each service in the large tables
    #[arg(long, default_value_t = 10)]
    tasks: u32,
    /// Services in the large tables
    #[arg(long, default_value_t = 10_000)]
    services: u32,
    /// Of `vm`: cold loads of full size
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Of `vm`: one of Debian's kernels
    #[arg(long, value_enum, default_value = "6.12")]
    kernel: Series,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// B4: latency of a new connection to a random VIP, by table size
    FirstPacket,
    /// B5: cold load and one endpoint flip at full size
    Programming,
    /// New connections per second through a published port
    Connections,
    /// Resident memory of the agent at full size
    Memory,
    /// B7: CPU per query and answer times of the resolver
    Names,
    /// B8: CPU per request and answer times of the proxy, beside others
    Http,
    /// Answer times of the proxy while routes, tasks and certificates change, against its own quiet ones
    HttpLife,
    /// B8 over TLS, and B10: new TLS connections
    /// B8 over TLS
    Https,
    /// B10: CPU per new TLS connection, with full handshakes and resumed
    Handshakes,
    /// B10: memory per idle connection of the proxy and of others
    Idle,
    /// B9: the slowest answers at 60 % of what HAProxy can carry
    Tail,
    /// Instructions of the proxy and of others, per request and per TLS connection
    Counted,
    /// What it costs in the proxy to find a request's route
    Routing,
    /// What IPVS costs, in instructions, on a kernel that has it: in QEMU
    Vm,
}

/// The peers, and what pingora is built with.
const PROXIES: [&str; 5] = ["nginx-light", "caddy", "util-linux", "cmake", "gcc"];

pub(crate) use names::echo;
pub(crate) use vm::{GuestArgs, guest};

pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    let wanted = if args.what.is_empty() { What::value_variants().to_vec() } else { args.what.clone() };
    // A guest has what it needs.
    let is_here = wanted.iter().any(|what| *what != What::Vm);
    if is_here && !nix::unistd::geteuid().is_root() {
        bail!("benchmarks make network namespaces: run them as root");
    }
    if cfg!(debug_assertions) {
        bail!("figures of a debug build say nothing; use: cargo run --release --package xtask -- bench");
    }
    if is_here {
        packages::ensure(&["nftables", "iptables", "iproute2", "haproxy", "curl", "procps"])?;
    }
    for what in wanted {
        say(&format!("\n== {what:?} =="));
        match what {
            What::FirstPacket => first_packet::run(args.blocks)?,
            What::Programming => programming::run(args.services, args.tasks)?,
            What::Connections => connections::run(args.blocks)?,
            What::Memory => memory::run(args.services, args.tasks)?,
            What::Names => {
                packages::ensure(&["dnsmasq-base", "unbound", "knot", "docker.io", "busybox-static"])?;
                names::run(args.blocks, args.services)?;
            }
            What::Http => {
                packages::ensure(&PROXIES)?;
                http::keep_alive(Scheme::Http, args.blocks)?;
            }
            What::Https => {
                packages::ensure(&PROXIES)?;
                http::keep_alive(Scheme::Https, args.blocks)?;
            }
            What::Handshakes => {
                packages::ensure(&PROXIES)?;
                http::handshakes(args.blocks)?;
            }
            What::Idle => {
                packages::ensure(&PROXIES)?;
                // Memory is no matter of luck.
                http::idle::run(args.blocks.min(5))?;
            }
            What::Tail => {
                packages::ensure(&PROXIES)?;
                http::tail::run(args.blocks)?;
            }
            What::Counted => {
                packages::ensure(&PROXIES)?;
                packages::ensure(&["valgrind"])?;
                http::counted::run()?;
            }
            What::Routing => {
                packages::ensure(&["valgrind"])?;
                routing::run(args.blocks)?;
            }
            What::HttpLife => {
                packages::ensure(&["util-linux"])?;
                http_life::run(args.blocks)?;
            }
            What::Vm => {
                let BenchArgs { blocks, rounds, services, tasks, .. } = *args;
                vm::run(args.kernel, &GuestArgs { blocks, rounds, services, tasks })?;
            }
        }
    }
    Ok(())
}
