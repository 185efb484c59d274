//! The `swarmesh` program.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    swarmesh_agent::cli::main()
}
