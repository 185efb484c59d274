//! `cargo xtask vm`: Debian's kernels in QEMU, with the real-kernel tests inside, and the emulator with agents.
//!
//! Nothing is installed for it but QEMU. Kernels come from their packages and are unpacked below `target/vm`; so are the few
//! tools that only the guest needs. The guest has no disk and no network: an initramfs with this machine's own programs, and
//! two serial ports, one for the kernel's console and one for what `init.sh` says.

mod boot;
mod counted;
mod cpio;
mod debs;
mod docker;
mod guest;
mod image;
mod report;
mod suites;

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use nix::fcntl::{Flock, FlockArg};

use self::suites::Plane;
use crate::{
    packages,
    run::{build, root, say},
};

pub(crate) use counted::run as run_counted;
pub(crate) use docker::{Engines, boot as boot_engines};

/// Of the guest's memory.
const MEBIBYTES: u32 = 2048;
/// Emulation is some ten times slower than the machine, and the machine may be busy.
const TEST_SECONDS: u64 = 300;
const LAB_SECONDS: u64 = 1800;
const BOOT_SECONDS: u64 = 2400;
/// With `--all`.
const LONG_BOOT_SECONDS: u64 = 5 * 3600;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Series {
    #[value(name = "6.1")]
    V6_1,
    #[value(name = "6.12")]
    V6_12,
}

impl Series {
    const fn number(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }
}

#[derive(Args)]
pub(crate) struct VmArgs {
    /// One of Debian's kernels; all that apt offers if none is named
    #[arg(long = "kernel", value_enum)]
    series: Vec<Series>,
    /// All labs, with every plane; it takes hours
    #[arg(long)]
    all: bool,
    /// One of the labs' planes; all that this version has if none is named
    #[arg(long = "plane", value_enum)]
    planes: Vec<Plane>,
    /// Boot and try the tools, without the tests
    #[arg(long)]
    smoke: bool,
    /// Run this in the guest's shell instead of the tests, and show what it prints
    #[arg(long, value_name = "SCRIPT", conflicts_with_all = ["smoke", "filter"])]
    run: Option<String>,
    /// Passed on to nextest, which chooses the tests; --no-capture shows what all of them print
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    filter: Vec<String>,
}

impl VmArgs {
    /// All kernels, and the labs that do not take long.
    pub(crate) fn tier(filter: &[String]) -> Self {
        Self { series: Vec::new(), all: false, planes: Vec::new(), smoke: false, run: None, filter: filter.to_vec() }
    }
}

pub(crate) fn run(args: &VmArgs) -> Result<()> {
    debs::supported()?;
    packages::ensure(&guest::HOST_PACKAGES)?;
    let show_all = args.filter.iter().any(|word| word == "--no-capture");
    let filter: Vec<String> = args.filter.iter().filter(|word| *word != "--no-capture").cloned().collect();
    let planes: &[Plane] = if args.planes.is_empty() { &Plane::ALL } else { &args.planes };
    let choice = suites::Choice { all: args.all, planes, filter: &filter };
    let tests = if args.smoke || args.run.is_some() { Vec::new() } else { suites::listed(&choice)? };
    let program = build(false)?;
    let place = directory();
    let debs = debs::Debs::new(place.join("packages"))?;
    let _alone = alone(&place)?;

    let boot_seconds = if args.all { LONG_BOOT_SECONDS } else { BOOT_SECONDS };
    let wanted: &[Series] = if args.series.is_empty() { Series::value_variants() } else { &args.series };
    let mut guests = Vec::new();
    for series in wanted {
        let Some(package) = debs::newest_kernel(series.number())? else {
            if !args.series.is_empty() {
                bail!("apt offers no Linux {} on this machine", series.number());
            }
            say(&format!("Linux {} is left out: apt does not offer it on this machine", series.number()));
            continue;
        };
        let kernel = guest::KernelFiles::find(&debs.unpacked(&package)?)?;
        let work = place.join(series.number());
        fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
        let image = work.join("initramfs");
        let limits = guest::Limits { test_seconds: TEST_SECONDS, lab_seconds: LAB_SECONDS, boot_seconds };
        guest::write_image(&image, &debs, &kernel, &guest::Work { program: &program, tests: &tests, script: args.run.as_deref() }, limits)?;
        guests.push((kernel, image, work, report::Report::new(series.number(), tests.clone(), show_all)));
    }
    if guests.is_empty() {
        bail!("apt offers none of the kernels of the vm tier on this machine");
    }
    let patience = boot::Patience {
        mebibytes: MEBIBYTES,
        silence: Duration::from_secs(TEST_SECONDS + 60),
        whole: Duration::from_secs(boot_seconds + 60),
    };
    // All at once: half of a lab's time is waiting.
    let outcomes: Vec<Result<Option<PathBuf>>> = thread::scope(|scope| {
        let boot = |(kernel, image, work, mut report): (guest::KernelFiles, PathBuf, PathBuf, report::Report)| {
            say(&format!("booting {}", kernel.release));
            boot::run(&kernel, &image, &work, &patience, &mut report)?;
            let (good, line) = report.conclude();
            say(&line);
            Ok((!good).then_some(work))
        };
        let threads: Vec<_> = guests.into_iter().map(|guest| scope.spawn(move || boot(guest))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    let bad: Vec<String> =
        outcomes.into_iter().filter_map(Result::transpose).map(|work| Ok(format!("{}/*.log", work?.display()))).collect::<Result<_>>()?;
    if !bad.is_empty() {
        bail!("the vm tier has not passed: see {}", bad.join(", "));
    }
    Ok(())
}

/// Two at a time would write each other's images, and be twice as slow.
fn alone(place: &Path) -> Result<Flock<fs::File>> {
    let file = fs::File::create(place.join("lock")).with_context(|| format!("cannot write to {}", place.display()))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno).context("cannot lock target/vm")
}

/// Where everything of the guests is.
pub(crate) fn directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from).join("vm")
}
