//! A guest with Docker's engine in it, as Debian has it on this machine.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{Series, alone, boot as machine, debs, directory, guest, image::Image, report};
use crate::{
    packages,
    run::{build, output, say},
};

/// Three engines and some thirty containers, and all programs in memory.
const MEBIBYTES: u32 = 4096;
/// An engine that starts says nothing for a while.
const SILENCE: Duration = Duration::from_secs(600);

/// Before the guest's own last word, which is how long it believes to have been up.
const CLOCK: &str = "@clock ";

const ENGINE: [&str; 7] = ["dockerd", "docker", "docker-init", "docker-proxy", "containerd", "containerd-shim-runc-v2", "runc"];
/// What the labs of real engines call besides what every guest has; `ldd` is a script for bash.
const TOOLS: [&str; 6] = ["iptables-save", "ip6tables-save", "bash", "ldd", "sysctl", "setpriv"];
/// What an engine asks its kernel for, at the latest when it is too late to say that it is missing.
const MODULES: &str =
    "overlay br_netfilter vxlan ip_vs ip_vs_rr xt_ipvs xt_mark xt_nat xt_MASQUERADE xt_REDIRECT xt_addrtype xt_conntrack nft_compat";

/// What runs among engines in a guest.
pub(crate) struct Engines<'a> {
    pub(crate) series: Series,
    /// For the guest's shell. `$XTASK` is this program, and `$SWARMESH_BIN` the agent.
    pub(crate) script: &'a str,
    pub(crate) patience: Duration,
}

/// What came of it.
pub(crate) struct Guest {
    /// By the script, whole lines.
    pub(crate) said: Vec<String>,
    good: bool,
    logs: PathBuf,
}

impl Guest {
    /// An error unless the script succeeded and the kernel had nothing to complain of.
    pub(crate) fn ended_well(&self) -> Result<()> {
        if !self.good {
            bail!("the guest has not ended well: see {}/*.log", self.logs.display());
        }
        Ok(())
    }
}

/// Boots and runs the script. How that ended is for the caller to ask.
pub(crate) fn boot(engines: &Engines<'_>) -> Result<Guest> {
    debs::supported()?;
    packages::ensure(&guest::HOST_PACKAGES)?;
    packages::ensure(&["docker.io"])?;
    // A debug build's agents would take the engines' time.
    let program = std::env::var_os("SWARMESH_BIN").map_or_else(|| build(true), |path| Ok(path.into()))?;
    let programs = [("xtask", std::env::current_exe()?), ("swarmesh", program)];
    let place = directory();
    let debs = debs::Debs::new(place.join("packages"))?;
    let _alone = alone(&place)?;
    let Some(package) = debs::newest_kernel(engines.series.number())? else {
        bail!("apt offers no Linux {} on this machine", engines.series.number());
    };
    let kernel = guest::KernelFiles::find(&debs.unpacked(&package)?)?;
    let work = place.join(format!("{}-docker", engines.series.number()));
    fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    let path = work.join("initramfs");
    let seconds = engines.patience.as_secs();
    let limits = guest::Limits { test_seconds: seconds, lab_seconds: seconds, boot_seconds: seconds + 60 };
    let mut image = guest::base(&path, &debs, &kernel, limits)?;
    ENGINE.iter().chain(&TOOLS).try_for_each(|program| image.program(program))?;
    for (name, program) in &programs {
        add_small(&mut image, &work, name, program)?;
    }
    image.text("tests/list", "");
    image.text("tests/script", script(engines.script));
    image.text("etc/os-release", "NAME=guest\nPRETTY_NAME=guest\n");
    image.write(&path)?;

    say(&format!("booting {}", kernel.release));
    let mut report = report::Report::new(&kernel.release, Vec::new(), true);
    let patience = machine::Patience { mebibytes: MEBIBYTES, silence: SILENCE, whole: engines.patience + Duration::from_secs(120) };
    let started = Instant::now();
    machine::run(&kernel, &path, &work, &patience, &mut report)?;
    let (good, line) = report.conclude();
    say(&line);
    let said = fs::read_to_string(work.join("results.log")).context("cannot read what the guest said")?;
    let mut said: Vec<String> = said.lines().filter_map(|line| line.trim_end().strip_prefix("| ")).map(str::to_owned).collect();
    let uptime = said.last().and_then(|line| line.strip_prefix(CLOCK)?.parse::<f64>().ok());
    said.pop_if(|_| uptime.is_some());
    let good = good && uptime.is_none_or(|uptime| told_the_time(uptime, started.elapsed().as_secs_f64()));
    Ok(Guest { said, good, logs: work })
}

/// A guest on a machine that gives it too little time may measure its clock wrong, and everything else by it.
fn told_the_time(guest: f64, host: f64) -> bool {
    // Before the kernel's first tick, and after the last word.
    let good = (host - guest).abs() < 0.05 * host + 20.0;
    if !good {
        say(&format!("{guest:.0} s in the guest were {host:.0} s here: its times say nothing"));
    }
    good
}

/// A copy without what only debuggers read.
fn add_small(image: &mut Image, work: &Path, name: &str, program: &Path) -> Result<()> {
    let small: PathBuf = work.join(name);
    output(Command::new("strip").arg("--strip-debug").arg("-o").arg(&small).arg(program))?;
    image.file(&Path::new("tests").join(name), &small);
    image.libraries(&small)
}

/// What it prints is seen while it runs, not when it has ended.
fn script(text: &str) -> String {
    format!(
        "export XTASK=/tests/xtask SWARMESH_BIN=/tests/swarmesh
# Less of the little time for collecting garbage; there is memory enough.
export GOGC=400
# The root is the kernel's own, which cannot be exchanged by pivot_root.
export DOCKER_RAMDISK=1
# By its place: busybox, whose shell this may be, has a modprobe of its own, which knows no compressed modules.
/usr/sbin/modprobe -a {MODULES} || exit 1
# On a node, Docker's ingress sandbox forwards since the machine's first namespace does: new ones take it from there, and no engine lives
# there here.
echo 1 >/proc/sys/net/ipv4/ip_forward
{{ ( {text}
) 2>&1; echo $? >/tmp/code; echo \"{CLOCK}$(cut -d' ' -f1 /proc/uptime)\"; }} | while IFS= read -r line; do printf '| %s\\n' \"$line\"; done >/dev/ttyS1
exit $(cat /tmp/code)
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_runs_three_times_too_fast_is_noticed() {
        assert!(told_the_time(600.0, 612.0));
        assert!(!told_the_time(531.0, 200.0));
    }
}
