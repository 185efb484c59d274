//! A guest that runs one program of ours on a machine whose clock counts instructions.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, bail};

use super::{Series, alone, boot, debs, directory, guest, report::Report};
use crate::{
    packages,
    run::{output, say},
};

/// 100,000 real servers, and all programs in memory.
const MEBIBYTES: u32 = 3072;
/// Of the machine outside. The program says something at the end of each part.
const SILENCE: Duration = Duration::from_secs(1800);
const WHOLE: Duration = Duration::from_secs(7200);
/// Inside, where time leaps.
const SECONDS: u64 = 10_000_000;

/// Boots the newest kernel of the series, and runs `program` with `words`. What it prints is shown as it comes.
pub(crate) fn run(series: Series, program: &Path, words: &[String]) -> Result<()> {
    debs::supported()?;
    packages::ensure(&guest::HOST_PACKAGES)?;
    let place = directory();
    let debs = debs::Debs::new(place.join("packages"))?;
    let _alone = alone(&place)?;
    let Some(package) = debs::newest_kernel(series.number())? else {
        bail!("apt offers no Linux {} on this machine", series.number());
    };
    let kernel = guest::KernelFiles::find(&debs.unpacked(&package)?)?;
    let work = place.join(format!("{}-counted", series.number()));
    fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    let path = work.join("initramfs");
    let small = work.join("program");
    output(Command::new("strip").arg("--strip-debug").arg("-o").arg(&small).arg(program))?;
    let mut image =
        guest::base(&path, &debs, &kernel, guest::Limits { test_seconds: SECONDS, lab_seconds: SECONDS, boot_seconds: SECONDS })?;
    image.file(Path::new("tests/program"), &small);
    image.libraries(&small)?;
    image.text("tests/list", "");
    image.text("tests/script", script(words));
    image.write(&path)?;

    say(&format!("booting {}, instructions counted", kernel.release));
    let mut report = Report::new(&kernel.release, Vec::new(), true);
    let patience = boot::Patience { mebibytes: MEBIBYTES, silence: SILENCE, whole: WHOLE };
    boot::run_counted(&kernel, &path, &work, &patience, &mut report)?;
    let (good, line) = report.conclude();
    say(&line);
    if !good {
        bail!("the guest has not ended well: see {}/*.log", work.display());
    }
    Ok(())
}

/// What it prints is seen while it runs, not when it has ended.
fn script(words: &[String]) -> String {
    format!(
        "{{ /tests/program {} 2>&1; echo $? >/tmp/code; }} | while IFS= read -r line; do printf '| %s\\n' \"$line\"; done >/dev/ttyS1\n\
         exit $(cat /tmp/code)\n",
        words.join(" ")
    )
}
