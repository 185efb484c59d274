//! `cargo xtask fuzz`: what comes in by the wire and from the kernel, against what libFuzzer makes up (fuzz/).

use std::process::Command;

use anyhow::{Context, Result};

use crate::{
    packages,
    run::{cargo, root, run, say},
};

/// Each with the longest input that is of use: the server cuts queries at 2048 bytes, and no client takes more than 4096 by UDP. A
/// virtual server with all that there is to say of it has some 400 bytes. A hello with a post-quantum key has 1800. What a backend's
/// answer means is decided in a few lines.
const TARGETS: [(&str, u32); 6] = [
    ("client_query", 2048),
    ("upstream_answer", 5000),
    ("ipvs_answer", 4096),
    ("client_hello", 4096),
    ("proxy_header", 512),
    ("backend_answer", 512),
];

const DENIED: [&str; 3] = ["--", "--deny", "warnings"];

/// How long each target runs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Length {
    Seconds(u32),
    /// The corpus and as many inputs beyond it, the same ones each time: a test says nothing new of the same code.
    Runs(u32),
}

/// As part of `cargo xtask test`.
pub(crate) const SHORT: Length = Length::Runs(30_000);

/// Runs each target. What is found is in `fuzz/artifacts/`, and is an error.
pub(crate) fn fuzz(length: Length) -> Result<()> {
    // libFuzzer itself is C++.
    packages::ensure(&["g++"])?;
    if !cargo().args(["fuzz", "--version"]).output().is_ok_and(|o| o.status.success()) {
        run(cargo().args(["install", "--locked", "cargo-fuzz"]))?;
    }
    for (target, longest) in TARGETS {
        // New inputs go into a directory of their own: the corpus that is kept changes when somebody means it to.
        let found = root().join("fuzz/target/found").join(target);
        let (limit, what) = match length {
            Length::Seconds(seconds) => (vec![format!("-max_total_time={seconds}")], format!("for {seconds} s")),
            Length::Runs(runs) => {
                // What earlier runs left there would change what comes.
                if found.exists() {
                    std::fs::remove_dir_all(&found).with_context(|| format!("cannot empty {}", found.display()))?;
                }
                (vec![format!("-runs={runs}"), "-seed=1".to_owned()], format!("with {runs} inputs"))
            }
        };
        std::fs::create_dir_all(&found).with_context(|| format!("cannot create {}", found.display()))?;
        say(&format!("fuzzing {target} {what}"));
        let mut command = cargo_fuzz();
        command.args(["run", target]).arg(found).arg(format!("fuzz/corpus/{target}")).arg("--");
        command.args(limit).args([&format!("-max_len={longest}"), "-timeout=10", "-verbosity=0", "-print_final_stats=1"]);
        run(&mut command)?;
    }
    Ok(())
}

/// Formatting and lints of fuzz/, which is no member of the workspace, but has most of its dependencies, built already.
pub(crate) fn lint() -> Result<()> {
    run(cargo().args(["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"]))?;
    let of_workspace = ["--target-dir", "target"];
    run(cargo().args(["clippy", "--manifest-path", "fuzz/Cargo.toml", "--all-targets", "--locked"]).args(of_workspace).args(DENIED))
}

fn cargo_fuzz() -> Command {
    let mut command = cargo();
    // Sanitizers are behind -Z, which only nightly compilers take. The project is built by one stable compiler, and this switch
    // lets that one take them, for this build alone; nothing that is shipped is built with it.
    command.arg("fuzz").env("RUSTC_BOOTSTRAP", "1");
    command
}
