//! The emulator as a program of its own: `swarmesh-lab lab …` and `swarmesh-lab whoami …`, as `swarmesh` has them.
#![forbid(unsafe_code)]

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
};

use clap::Parser;
use swarmesh_lab::{
    command::{self, LabCommand},
    whoami::{self, WhoamiArgs},
};

#[derive(Debug, Parser)]
#[command(name = "swarmesh-lab", version, about = "A swarm of several nodes on this machine, without Docker")]
enum Program {
    /// The emulator
    #[command(subcommand)]
    Lab(LabCommand),
    /// Serve HTTP, TCP echo and UDP echo that tell who answers and who asks
    Whoami(WhoamiArgs),
}

fn main() -> ExitCode {
    let program = match Program::try_parse() {
        Ok(program) => program,
        Err(error) => {
            // Nothing is left to be done when even the message cannot be written.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(64) } else { ExitCode::SUCCESS };
        }
    };
    tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(io::stderr().is_terminal()).init();
    match program {
        Program::Lab(command) => command::run(command),
        Program::Whoami(args) => match whoami::run(args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tracing::error!("{error}");
                ExitCode::FAILURE
            }
        },
    }
}
