//! Everything that is done with the project besides compiling it: `cargo xtask demo | test | fuzz | lab | vm | bench`.
#![forbid(unsafe_code)]

mod bench;
mod demo;
mod fuzz;
mod lab;
mod meshes;
mod packages;
mod run;
mod tiers;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Demo, tests, labs and benchmarks of Swarmesh")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring up a three-node swarm from examples/ without Docker, show it answering, take it down
    Demo,
    /// Run all test tiers, or one
    Test {
        #[arg(value_enum)]
        tier: Option<tiers::Tier>,
        /// Passed on to nextest: name filters, --no-capture
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        filter: Vec<String>,
    },
    /// Feed the resolver with what nobody would send it (fuzz/)
    Fuzz {
        /// For each target
        #[arg(long, default_value_t = 300)]
        seconds: u32,
    },
    /// Three real dockerd on this machine, one swarm
    Lab {
        #[command(subcommand)]
        command: lab::LabCommand,
    },
    /// Boot Debian's kernels in QEMU and run the real-kernel tests and the emulator inside; CI runs it without options
    Vm(vm::VmArgs),
    /// Docker's own mesh and ours on one kernel, row by row (TESTING.md)
    Meshes(meshes::MeshesArgs),
    /// Measure ours, peers and the limit side by side (PERFORMANCE.md)
    Bench(bench::BenchArgs),
    /// What `bench names` starts as its limit
    #[command(hide = true)]
    BenchEcho { address: std::net::SocketAddr },
    /// What `bench vm` runs inside
    #[command(hide = true)]
    BenchGuest(bench::GuestArgs),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Demo => demo::run(),
        Command::Test { tier, filter } => tiers::run(tier, &filter),
        Command::Fuzz { seconds } => fuzz::fuzz(fuzz::Length::Seconds(seconds)),
        Command::Lab { command } => lab::run(command),
        Command::Vm(args) => vm::run(&args),
        Command::Meshes(args) => meshes::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::BenchEcho { address } => bench::echo(address),
        Command::BenchGuest(args) => bench::guest(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            run::say(&format!("xtask: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
