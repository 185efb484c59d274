//! Processes in a lab's namespaces: started, waited for, found and killed.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, waitid},
    },
    unistd::{Pid, sethostname},
};

use serde::{Deserialize, Serialize};

use super::{
    RuntimeError,
    error::Doing,
    netns::{self, Identity},
};

/// Where a process runs.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) netns: PathBuf,
    /// A container's own name, and files that lie over the host's.
    pub(crate) container: Option<Container>,
}

#[derive(Clone, Debug)]
pub(crate) struct Container {
    pub(crate) hostname: String,
    /// What lies over what.
    pub(crate) files: Vec<(PathBuf, PathBuf)>,
}

/// Starts a process there. It shares everything else with the host.
pub(crate) fn spawn(place: &Place, command: &mut Command) -> Result<Child, RuntimeError> {
    let program = command.get_program().to_string_lossy().into_owned();
    netns::within(&place.netns, || {
        place.container.as_ref().map_or(Ok(()), become_container)?;
        command.spawn().doing(|| format!("starting {program}"))
    })
}

/// Moves the calling thread there, for good.
pub(crate) fn enter(place: &Place) -> Result<(), RuntimeError> {
    netns::enter(&place.netns)?;
    place.container.as_ref().map_or(Ok(()), become_container)
}

/// Gives the calling thread, and what it starts, mounts and a host name of their own.
fn become_container(container: &Container) -> Result<(), RuntimeError> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS).doing(|| "making a mount namespace".to_owned())?;
    sethostname(&container.hostname).doing(|| format!("naming the host {}", container.hostname))?;
    // What is mounted here must not show on the host; what is unmounted there must go here too.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>)
        .doing(|| "separating mounts from the host's".to_owned())?;
    for (file, over) in container.files.iter().filter(|(_, over)| over.exists()) {
        mount(Some(file), over, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .doing(|| format!("mounting {} over {}", file.display(), over.display()))?;
    }
    Ok(())
}

/// A command that outlives its terminal and writes to `log`.
pub(crate) fn detached(program: &Path, log: &Path) -> Result<Command, RuntimeError> {
    let file = File::options().create(true).append(true).open(log).doing(|| format!("opening {}", log.display()))?;
    let errors = file.try_clone().doing(|| format!("opening {}", log.display()))?;
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(file).stderr(errors).process_group(0);
    Ok(command)
}

/// A process, told apart from a later one with the same id by the time of its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    pub pid: u32,
    /// In clock ticks since the machine's boot.
    pub started: u64,
}

impl ProcessId {
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The program's name can hold anything; what follows its last parenthesis is field 3.
        let started = stat.rsplit_once(')')?.1.split_whitespace().nth(22 - 3)?.parse().ok()?;
        Some(Self { pid, started })
    }

    /// No error when it has ended.
    pub(crate) fn kill(self) {
        if Self::of(self.pid) == Some(self) {
            let _ = kill(Pid::from_raw(i32::try_from(self.pid).unwrap_or(i32::MAX)), Signal::SIGKILL);
        }
    }
}

/// A child that somebody waits for.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    pid: Pid,
    id: ProcessId,
}

impl Running {
    /// `ended` is called once the process has ended, before its id can be another's.
    pub(crate) fn watch(child: Child, ended: impl FnOnce() + Send + 'static) -> Result<Self, RuntimeError> {
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
        // A child stays at least as a zombie until it is reaped.
        let id = ProcessId::of(child.id()).unwrap_or(ProcessId { pid: child.id(), started: 0 });
        let wait = move || {
            // Left to be reaped by `reap`; only a signal interrupts this.
            while let Err(Errno::EINTR) = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {}
            ended();
        };
        thread::Builder::new().name("wait".to_owned()).spawn(wait).doing(|| "starting a thread".to_owned())?;
        Ok(Self { child, pid, id })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn id(&self) -> ProcessId {
        self.id
    }

    /// No error when it has ended by itself.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = kill(self.pid, signal);
    }

    /// Kills it if it still runs, and returns its exit code.
    pub(crate) fn finish(self) -> i32 {
        self.signal(Signal::SIGKILL);
        self.reap()
    }

    /// Its exit code, once it has ended; 128 + n for signal n.
    pub(crate) fn reap(mut self) -> i32 {
        self.child.wait().map_or(-1, |status| exit_code(&status))
    }
}

pub(crate) fn exit_code(status: &ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(-1)
}

/// Processes whose main thread is in one of these namespaces.
pub(crate) fn inside(namespaces: &BTreeSet<Identity>) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let own = Pid::this();
    entries
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok().map(Pid::from_raw))
        .filter(|pid| *pid != own)
        .filter(|pid| netns::identity(Path::new(&format!("/proc/{pid}/ns/net"))).is_some_and(|id| namespaces.contains(&id)))
        .collect()
}

/// Kills every process in these namespaces, and those that they start meanwhile.
pub(crate) fn kill_inside(namespaces: &BTreeSet<Identity>, patience: Duration) -> Result<(), RuntimeError> {
    let deadline = Instant::now() + patience;
    loop {
        let found = inside(namespaces);
        if found.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            let found: Vec<String> = found.iter().map(ToString::to_string).collect();
            return Err(RuntimeError::Leftover(format!("processes {} do not end", found.join(", "))));
        }
        for pid in found {
            // A zombie has no namespace any more, so this is not about one.
            let _ = kill(pid, Signal::SIGKILL);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Reads `SIGTERM`, `TERM` or `15`.
pub(crate) fn signal(text: &str) -> Signal {
    let by_number = text.parse::<i32>().ok().and_then(|n| Signal::try_from(n).ok());
    let upper = text.to_ascii_uppercase();
    let by_name = || upper.parse().ok().or_else(|| format!("SIG{upper}").parse().ok());
    by_number.or_else(by_name).unwrap_or(Signal::SIGTERM)
}

/// Waits for a process that may take at most this long; kills it then.
pub(crate) fn wait_timeout(child: &mut Child, timeout: Duration) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start_too() {
        let own = ProcessId::of(std::process::id()).unwrap();
        assert_eq!(ProcessId::of(own.pid), Some(own));
        assert!(own.started > 0);
        // Kills nobody: that process has ended long ago.
        ProcessId { started: own.started - 1, ..own }.kill();
    }

    #[test]
    fn signals_are_read_in_all_of_dockers_spellings() {
        assert_eq!(signal("SIGQUIT"), Signal::SIGQUIT);
        assert_eq!(signal("quit"), Signal::SIGQUIT);
        assert_eq!(signal("3"), Signal::SIGQUIT);
        assert_eq!(signal("nonsense"), Signal::SIGTERM);
    }
}
