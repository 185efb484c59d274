//! Debian packages that the tiers need on this machine.

use std::process::Command;

use anyhow::{Result, bail};

use crate::run::{run, say};

/// Installs what is missing of the named packages; does nothing, and needs no privilege, when nothing is.
pub(crate) fn ensure(packages: &[&str]) -> Result<()> {
    let missing: Vec<&str> = packages.iter().copied().filter(|p| !installed(p)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let wanted = missing.join(" ");
    if !nix::unistd::geteuid().is_root() {
        bail!("missing packages: run `apt-get install --no-install-recommends {wanted}` as root");
    }
    say(&format!("installing {wanted}"));
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    let install = |command: &mut Command| {
        // Services of these packages are not for this machine: the labs start their own engines.
        command.args(["install", "--yes", "--no-install-recommends", "-o", "Dpkg::Options::=--force-confold"]).env("RUNLEVEL", "1");
        run(command.args(&missing))
    };
    // The lists of packages may be there already; fetching them takes longer than most installations.
    install(&mut apt()).or_else(|_| {
        run(apt().arg("update"))?;
        install(&mut apt())
    })
}

fn installed(package: &str) -> bool {
    let query = Command::new("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", package]).output();
    query.is_ok_and(|output| output.status.success() && output.stdout == b"installed")
}
