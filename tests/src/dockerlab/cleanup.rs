//! Finding and removing all that a lab consists of, by its name alone: the process that made it may be long dead.

use std::{
    fs,
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const LONGEST_END: Duration = Duration::from_secs(60);

pub(super) fn work_dir(prefix: &str) -> PathBuf {
    PathBuf::from(format!("/tmp/{prefix}-dockerlab"))
}

/// The lab's cgroup in the v2 hierarchy, which is there with v1 beside it as well.
pub(super) fn cgroup(prefix: &str) -> Result<PathBuf> {
    let mounts = mounts()?;
    let (_, mount) = mounts.iter().find(|(kind, _)| kind == "cgroup2").context("no cgroup2 file system is mounted")?;
    Ok(mount.join(prefix))
}

/// Removes everything. Each step goes on after an error; what is left after all of them is the error.
pub(super) fn remove(prefix: &str) -> Result<()> {
    let started = Instant::now();
    if let Ok(cgroup) = cgroup(prefix)
        && cgroup.exists()
    {
        // Ends all processes below at once, those being forked included (Linux 5.14); older kernels take the rounds below.
        let _older = fs::write(cgroup.join("cgroup.kill"), "1");
    }
    loop {
        let processes = processes(prefix);
        if processes.is_empty() || started.elapsed() > LONGEST_END {
            break;
        }
        for pid in processes {
            // It may have ended by itself.
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        sleep(Duration::from_millis(20));
    }
    for netns in namespaces(prefix) {
        let path = Path::new("/run/netns").join(netns);
        let _unmounted = umount2(&path, MntFlags::MNT_DETACH);
        let _removed = fs::remove_file(&path);
    }
    for mount in lab_mounts(prefix) {
        let _unmounted = umount2(&mount, MntFlags::MNT_DETACH);
    }
    // Dead processes leave their cgroups a moment after their end.
    while !cgroups(prefix).is_empty() && started.elapsed() < LONGEST_END {
        cgroups(prefix).iter().for_each(|dir| remove_cgroup(dir));
        sleep(Duration::from_millis(10));
    }
    let work = work_dir(prefix);
    if work.exists() {
        // Unmounted file systems may be busy for as long.
        while let Err(error) = fs::remove_dir_all(&work) {
            if started.elapsed() > LONGEST_END {
                return Err(error).with_context(|| format!("cannot remove {}", work.display()));
            }
            sleep(Duration::from_millis(20));
        }
    }
    let left = residue(prefix);
    if !left.is_empty() {
        bail!("left of lab {prefix}: {}", left.join(", "));
    }
    Ok(())
}

/// What remains of the lab of this name: empty when nothing does.
pub fn residue(prefix: &str) -> Vec<String> {
    let mut left: Vec<String> = namespaces(prefix).into_iter().map(|n| format!("namespace {n}")).collect();
    left.extend(processes(prefix).into_iter().map(|pid| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        format!("process {pid} ({})", String::from_utf8_lossy(&command).replace('\0', " ").trim())
    }));
    left.extend(lab_mounts(prefix).into_iter().map(|m| format!("mount {}", m.display())));
    left.extend(cgroups(prefix).into_iter().map(|c| format!("cgroup {}", c.display())));
    left.extend(Some(work_dir(prefix)).filter(|w| w.exists()).map(|w| format!("directory {}", w.display())));
    left
}

fn namespaces(prefix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir("/run/netns") else { return Vec::new() };
    let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
    names
        .filter(|name| {
            name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('-')).is_some_and(|rest| {
                let number = rest.strip_prefix("client").or_else(|| rest.strip_prefix('n'));
                rest == "lan" || number.is_some_and(|n| n.parse::<u32>().is_ok())
            })
        })
        .collect()
}

/// Processes in the lab's cgroups of any hierarchy, and the ones that have been started for it but did not join one yet.
fn processes(prefix: &str) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let below = format!(":/{prefix}/");
    let places: Vec<String> = [Some(work_dir(prefix)), cgroup(prefix).ok()].iter().flatten().map(|p| format!("{}/", p.display())).collect();
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let pids = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| *pid != own)
        .filter(|pid| {
            let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let started_for = || {
                let text = String::from_utf8_lossy(&command);
                let mut words = text.split('\0');
                let program = words.next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
                matches!(program, "nsenter" | "unshare" | "sh" | "dockerd" | "docker")
                    && words.any(|word| places.iter().any(|place| word.starts_with(place)))
            };
            // A zombie has no command line and holds nothing; whose child it is takes it away.
            !command.is_empty() && (cgroups.contains(&below) || started_for())
        })
        .collect()
}

/// Kinds and places of what is mounted here.
fn mounts() -> Result<Vec<(String, PathBuf)>> {
    let text = fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    Ok(text
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ').skip(1);
            let place = words.next()?;
            Some((words.next()?.to_owned(), PathBuf::from(place)))
        })
        .collect())
}

/// Innermost first.
fn lab_mounts(prefix: &str) -> Vec<PathBuf> {
    let work = work_dir(prefix);
    let mut places: Vec<_> = mounts().unwrap_or_default().into_iter().map(|(_, place)| place).filter(|p| p.starts_with(&work)).collect();
    places.sort_by_key(|p| std::cmp::Reverse(p.components().count()));
    places
}

/// The lab's cgroup in every hierarchy that has one.
fn cgroups(prefix: &str) -> Vec<PathBuf> {
    let mounts = mounts().unwrap_or_default().into_iter();
    let hierarchies = mounts.filter(|(kind, _)| kind == "cgroup" || kind == "cgroup2");
    hierarchies.map(|(_, mount)| mount.join(prefix)).filter(|dir| dir.is_dir()).collect()
}

/// Cgroups are removed from the leaves on; their files go with them.
fn remove_cgroup(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        remove_cgroup(&entry.path());
    }
    // Busy while its last process is being reaped; the caller comes again.
    let _busy = fs::remove_dir(dir);
}
