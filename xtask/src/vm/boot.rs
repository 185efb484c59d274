//! One run of QEMU: started, watched, ended.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{guest::KernelFiles, report::Report};

/// Seconds on an idle machine; this is for a very busy one.
const UP: Duration = Duration::from_secs(180);
/// From a verdict to the end of the machine.
const POWER_OFF: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(100);
const TAIL_LINES: usize = 40;

/// Emulated in software: no KVM, so it runs wherever this does. Two processors, since one hides races.
const MACHINE: [&str; 12] =
    ["-machine", "pc", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-display", "none", "-nodefaults", "-no-reboot"];
/// One processor whose clock is the number of instructions that it has executed, in nanoseconds. While it has nothing to do, time
/// leaps to the next timer.
const COUNTED: [&str; 14] = [
    "-machine",
    "pc",
    "-accel",
    "tcg,thread=single",
    "-icount",
    "shift=0,sleep=off",
    "-cpu",
    "max",
    "-smp",
    "1",
    "-display",
    "none",
    "-nodefaults",
    "-no-reboot",
];
/// Whatever the kernel finds wrong with itself ends the machine, with its words on the console. A processor that gets no
/// time from a busy host looks stuck to the guest; a minute must be enough. So does its clock, and the ones that it
/// would take instead are ten times as slow to read.
const COMMAND_LINE: &str = "console=ttyS0 loglevel=5 rdinit=/init panic=-1 oops=panic softlockup_panic=1 watchdog_thresh=30 \
     rcupdate.rcu_cpu_stall_timeout=60 mitigations=off tsc=reliable";

/// The guest counts the host's own ticks, and measures them against timers that come late on a busy host: its clock has run three
/// times too fast. So it is told. A machine that is virtual itself knows them; others show a frequency of the moment.
fn clock(processors: &str) -> Option<String> {
    let value = |name: &str| processors.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(": "));
    let is_virtual = value("flags")?.split(' ').any(|flag| flag == "hypervisor");
    let megahertz: f64 = value("cpu MHz").filter(|_| is_virtual)?.parse().ok()?;
    Some(format!("tsc=reliable tsc_early_khz={:.0}", megahertz * 1000.0))
}

/// What the kernel writes on its console only when something is wrong with it.
const ALARMS: [&str; 10] = [
    "Kernel panic",
    "BUG:",
    "Oops",
    "WARNING:",
    "soft lockup",
    "hard LOCKUP",
    "detected stall",
    "blocked for more than",
    "general protection fault",
    "Out of memory",
];

/// Where QEMU writes, and from where on it was not read yet.
struct Tail {
    path: PathBuf,
    position: u64,
    rest: Vec<u8>,
}

impl Tail {
    fn new(path: PathBuf) -> Result<Self> {
        File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { path, position: 0, rest: Vec::new() })
    }

    /// The lines that have become complete.
    fn lines(&mut self) -> Result<Vec<String>> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.position))?;
        self.position += file.read_to_end(&mut self.rest)? as u64;
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else { return Ok(Vec::new()) };
        let rest = self.rest.split_off(end + 1);
        let complete = std::mem::replace(&mut self.rest, rest);
        Ok(String::from_utf8_lossy(&complete).lines().map(|line| line.trim_end().to_owned()).collect())
    }

    /// The end of what there is, for a message.
    fn end(&self) -> String {
        let bytes = fs::read(&self.path).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

/// Ends with this value, and with this process.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Machine {
    fn start(machine: &[&str], kernel: &Path, image: &Path, ports: [&Path; 2], mebibytes: u32) -> Result<Self> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "qemu-system-x86_64", "-no-user-config"]).args(machine);
        command.args(["-m", &mebibytes.to_string()]);
        command.arg("-kernel").arg(kernel).arg("-initrd").arg(image).arg("-append");
        let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        // A clock that counts instructions has no frequency of the host's.
        let clock = clock(&processors).filter(|_| machine == MACHINE).unwrap_or_default();
        command.arg([COMMAND_LINE, &clock].join(" "));
        for port in ports {
            command.arg("-serial").arg(format!("file:{}", port.display()));
        }
        command.stdin(Stdio::null());
        Ok(Self(command.spawn().context("cannot start qemu-system-x86_64")?))
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.0.try_wait()?)
    }
}

/// How long a guest may take, and how much it gets.
pub(super) struct Patience {
    pub(super) mebibytes: u32,
    /// Without a word on either port.
    pub(super) silence: Duration,
    pub(super) whole: Duration,
}

/// Boots, hands everything that the guest says to `report`, and makes sure that nothing runs on.
pub(super) fn run(kernel: &KernelFiles, image: &Path, logs: &Path, patience: &Patience, report: &mut Report) -> Result<()> {
    run_on(&MACHINE, kernel, image, logs, patience, report)
}

/// The same on a machine whose clock counts instructions.
pub(super) fn run_counted(kernel: &KernelFiles, image: &Path, logs: &Path, patience: &Patience, report: &mut Report) -> Result<()> {
    run_on(&COUNTED, kernel, image, logs, patience, report)
}

fn run_on(machine: &[&str], kernel: &KernelFiles, image: &Path, logs: &Path, patience: &Patience, report: &mut Report) -> Result<()> {
    let mut console = Tail::new(logs.join("console.log"))?;
    let mut results = Tail::new(logs.join("results.log"))?;
    let mut machine = Machine::start(machine, &kernel.image, image, [&console.path, &results.path], patience.mebibytes)?;
    let started = Instant::now();
    let mut heard = started;
    let mut verdict_at = None;
    loop {
        thread::sleep(LOOK);
        // Asked before reading, so that what it said last is read.
        let ended = machine.ended()?;
        let said = console.lines()?;
        let told = results.lines()?;
        if !said.is_empty() || !told.is_empty() {
            heard = Instant::now();
        }
        for line in said {
            if let Some(alarm) = ALARMS.iter().find(|alarm| line.contains(**alarm)) {
                report.alarm(alarm, &line);
            }
        }
        told.iter().for_each(|line| report.line(line));
        if report.verdict().is_some() {
            verdict_at.get_or_insert_with(Instant::now);
        }
        let over = |since: Instant, limit: Duration| since.elapsed() > limit;
        let hangs = match (ended, verdict_at) {
            (Some(_), Some(_)) => return Ok(()),
            (Some(status), None) => Some(format!("QEMU ended without a verdict ({status})")),
            // What it found out counts; that it cannot end is a matter of its own.
            (None, Some(at)) if over(at, POWER_OFF) => return Ok(()),
            (None, Some(_)) => None,
            (None, None) if !report.up() && over(started, UP) => Some(format!("not up after {} s", UP.as_secs())),
            (None, None) if over(heard, patience.silence) => Some(format!("silent for {} s", patience.silence.as_secs())),
            (None, None) if over(started, patience.whole) => Some(format!("not done after {} s", patience.whole.as_secs())),
            (None, None) => None,
        };
        if let Some(why) = hangs {
            report.hangs(&why, &console.end());
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn only_a_virtual_machine_says_its_ticks() {
        let text = "model name\t: x\ncpu MHz\t\t: 2596.140\nflags\t\t: fpu hypervisor tsc\n";
        assert_eq!(clock(text).unwrap(), "tsc=reliable tsc_early_khz=2596140");
        assert_eq!(clock(&text.replace("hypervisor ", "")), None);
    }

    #[test]
    fn lines_are_read_when_they_are_whole() {
        let place = tempfile::tempdir().unwrap();
        let mut tail = Tail::new(place.path().join("log")).unwrap();
        let mut writer = File::options().append(true).open(&tail.path).unwrap();
        writer.write_all(b"one\r\ntw").unwrap();
        assert_eq!(tail.lines().unwrap(), ["one"]);
        assert!(tail.lines().unwrap().is_empty());
        writer.write_all(b"o\nthree\n").unwrap();
        assert_eq!(tail.lines().unwrap(), ["two", "three"]);
        assert_eq!(tail.end(), "one\ntwo\nthree");
    }
}
