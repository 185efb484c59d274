//! Doing things inside of a network namespace.

use std::{fs::File, path::Path, process::Command, thread};

use anyhow::{Context, Result, anyhow};

use nix::sched::{CloneFlags, setns};

/// Of a listing of nftables, what outlives an agent and changes by writes alone: neither the way to its resolver, which is a
/// table of the agent's process, nor what clients are remembered by.
pub fn lasting_rules(listing: &str) -> String {
    let mut is_resolvers = false;
    let lasting = listing.lines().filter(|line| {
        if line.starts_with("table ") {
            is_resolvers = line.starts_with("table ip swarmesh_names");
        }
        !is_resolvers && !line.contains("expires")
    });
    lasting.collect::<Vec<_>>().join("\n")
}

/// Everything that nftables holds in one namespace and that lasts, with the handles that tell an old rule from a rewritten one.
pub fn generation(namespace: &Path) -> Result<String> {
    let list = || Command::new("nft").args(["--handle", "--stateless", "list", "ruleset"]).output();
    Ok(lasting_rules(&String::from_utf8_lossy(&within(namespace, list)??.stdout)))
}

/// Runs `work` on a thread of its own that lives in the namespace at `path`, and waits for it.
pub fn within<T: Send + 'static>(path: &Path, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    spawn_within(path, work)?.join().map_err(|_| anyhow!("the thread in {} panicked", path.display()))
}

/// As [`within`], without waiting. The namespace is entered before this returns.
pub fn spawn_within<T: Send + 'static>(path: &Path, work: impl FnOnce() -> T + Send + 'static) -> Result<thread::JoinHandle<T>> {
    let namespace = File::open(path).with_context(|| format!("cannot open the namespace {}", path.display()))?;
    let (entered, outcome) = std::sync::mpsc::channel();
    let handle = thread::spawn(move || {
        let result = setns(&namespace, CloneFlags::CLONE_NEWNET);
        let failed = result.is_err();
        // The other end waits for just this.
        let _ = entered.send(result);
        if failed {
            return None;
        }
        Some(work())
    });
    outcome.recv().context("the thread ended early")?.with_context(|| format!("cannot enter {}", path.display()))?;
    Ok(thread::spawn(move || match handle.join() {
        Ok(Some(value)) => value,
        Ok(None) => unreachable!("entering was checked above"),
        Err(panic) => std::panic::resume_unwind(panic),
    }))
}
