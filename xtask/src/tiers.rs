//! The test tiers of TESTING.md, each by one word.

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::{
    fuzz, packages,
    run::{build, cargo, run as execute, say},
    vm,
};

// Which test binaries are which tier's. In nextest.toml these would fail every run of a single package.
const UNIT: &str = "not (binary(~real) or binary(runtime) or (package(swarmesh-tests) and kind(test)))";
const NETNS: &str = "binary(~real) or binary(runtime) or (package(swarmesh-tests) and binary(~netns))";
const SWARM: &str = "package(swarmesh-tests) and kind(test) and (binary(~swarm) or binary(~dockerlab))";

/// Another implementation of TLS to ask, and the bundle of CAs that backends are verified by.
const UNIT_PACKAGES: [&str; 2] = ["openssl", "ca-certificates"];

const NETNS_PACKAGES: [&str; 13] = [
    "nftables",
    "iptables",
    "iproute2",
    "conntrack",
    "curl",
    "openssl",
    "procps",
    "iputils-ping",
    "bind9-dnsutils",
    "python3-minimal",
    "busybox-static",
    "musl-tools",
    "gcc",
];

/// The engine, and a browser with what drives it.
const SWARM_PACKAGES: [&str; 3] = ["docker.io", "chromium", "chromium-driver"];

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tier {
    /// Formatting, lints, and every test that needs no privilege
    Unit,
    /// All fuzz targets, shortly
    Fuzz,
    /// The emulator and the real kernel, in namespaces
    Netns,
    /// Three real dockerd
    Swarm,
    /// Debian's kernels in QEMU
    Vm,
}

/// One tier, or all of them in the order of their cost.
pub(crate) fn run(tier: Option<Tier>, filter: &[String]) -> Result<()> {
    let tiers = tier.map_or_else(|| vec![Tier::Unit, Tier::Fuzz, Tier::Netns, Tier::Swarm, Tier::Vm], |t| vec![t]);
    for tier in tiers {
        say(&format!("\n== tier {tier:?} =="));
        match tier {
            Tier::Unit => unit(filter)?,
            Tier::Fuzz => {
                fuzz::lint()?;
                fuzz::fuzz(fuzz::SHORT)?;
            }
            Tier::Netns => {
                packages::ensure(&NETNS_PACKAGES)?;
                nextest("netns", NETNS, filter)?;
            }
            Tier::Swarm => {
                packages::ensure(&[&NETNS_PACKAGES[..], &SWARM_PACKAGES].concat())?;
                nextest("swarm", SWARM, filter)?;
            }
            Tier::Vm => vm::run(&vm::VmArgs::tier(filter))?,
        }
    }
    Ok(())
}

fn unit(filter: &[String]) -> Result<()> {
    packages::ensure(&UNIT_PACKAGES)?;
    execute(cargo().args(["fmt", "--all", "--check"]))?;
    // A workspace of its own. Its lints would build all of pingora: whoever changes it looks at them.
    execute(cargo().args(["fmt", "--manifest-path", "xtask/peers/pingora/Cargo.toml", "--check"]))?;
    execute(cargo().args(["clippy", "--workspace", "--all-targets", "--locked", "--", "--deny", "warnings"]))?;
    nextest("default", UNIT, filter)
}

fn nextest(profile: &str, tests: &str, filter: &[String]) -> Result<()> {
    if profile != "default" && !nix::unistd::geteuid().is_root() {
        bail!("tier {profile} makes network namespaces: run it as root");
    }
    ensure_nextest()?;
    let program = build(false)?;
    let (tests, filter) = narrowed(tests, filter);
    let mut command = cargo();
    command
        .args(["nextest", "run", "--workspace", "--locked", "--profile", profile, "--filterset", &tests])
        .args(filter)
        .env("SWARMESH_BIN", program);
    execute(&mut command)
}

/// A tier's tests and the caller's own `-E`, as one expression: of two, nextest would run whatever either names.
pub(crate) fn narrowed(tests: &str, filter: &[String]) -> (String, Vec<String>) {
    let mut expression = format!("({tests})");
    let mut rest = Vec::new();
    let mut words = filter.iter();
    while let Some(word) = words.next() {
        let own = match word.as_str() {
            "-E" | "--filterset" | "--filter-expr" => words.next().map(String::as_str),
            word => ["--filterset=", "--filter-expr=", "-E"].iter().find_map(|option| word.strip_prefix(option)),
        };
        match own {
            Some(own) => expression.push_str(&format!(" and ({own})")),
            None => rest.push(word.clone()),
        }
    }
    (expression, rest)
}

pub(crate) fn ensure_nextest() -> Result<()> {
    if cargo().args(["nextest", "--version"]).output().is_ok_and(|o| !o.status.success()) {
        execute(cargo().args(["install", "--locked", "cargo-nextest"]))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_of_the_callers_narrows_the_tier() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(narrowed("a or b", &words("e42 --no-capture")), ("(a or b)".to_owned(), words("e42 --no-capture")));
        assert_eq!(narrowed("a or b", &words("-E test(e42) x")), ("(a or b) and (test(e42))".to_owned(), words("x")));
        assert_eq!(narrowed("a", &words("--filterset=test(e42)")), ("(a) and (test(e42))".to_owned(), vec![]));
    }
}
