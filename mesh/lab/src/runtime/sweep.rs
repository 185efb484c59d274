//! Taking a lab down by what it is called, whoever is still there to help.

use std::{
    collections::BTreeSet,
    fs, io, thread,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    RuntimeError,
    control::Control,
    error::Doing,
    names::{LabName, netns_path},
    netns,
    process::{self, ProcessId},
    protocol::{AgentState, LabStatus, Request},
};

const PATIENCE: Duration = Duration::from_secs(10);

/// True when a supervisor holds the lab's lock.
pub(crate) fn is_running(lab: &LabName) -> bool {
    // Without the file nobody has ever locked it.
    fs::File::open(lab.lock()).is_ok_and(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err())
}

/// True when anything of this name is there.
pub(crate) fn exists(lab: &LabName) -> bool {
    lab.run_dir().exists() || !netns::list(&lab.prefix()).is_empty()
}

/// Ends a lab's supervisor, if it has one, and removes everything that bears the lab's name.
pub(crate) fn take_down(lab: &LabName) -> Result<(), RuntimeError> {
    if is_running(lab) {
        stop_supervisor(lab)?;
    }
    remove(lab)
}

fn stop_supervisor(lab: &LabName) -> Result<(), RuntimeError> {
    // One that does not answer is killed below.
    let asked = Control::connect(lab).and_then(|mut control| {
        control.set_patience(PATIENCE)?;
        control.done(&Request::Down, |_| {})
    });
    let deadline = Instant::now() + if asked.is_ok() { PATIENCE } else { Duration::ZERO };
    while is_running(lab) {
        if Instant::now() > deadline {
            let pid = fs::read_to_string(lab.lock()).ok().and_then(|text| text.trim().parse().ok()).map(Pid::from_raw);
            let Some(pid) = pid.filter(|_| is_running(lab)) else { continue };
            kill(pid, Signal::SIGKILL).doing(|| format!("killing the supervisor {pid}"))?;
            thread::sleep(Duration::from_millis(20));
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Needs no supervisor, and no run directory either.
pub(crate) fn remove(lab: &LabName) -> Result<(), RuntimeError> {
    let names = netns::list(&lab.prefix());
    let namespaces: BTreeSet<_> = names.iter().filter_map(|name| netns::identity(&netns_path(name))).collect();
    process::kill_inside(&namespaces, PATIENCE)?;
    kill_recorded(lab);
    names.iter().try_for_each(|name| netns::remove(name))?;
    match fs::remove_dir_all(lab.run_dir()) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(RuntimeError::io(format!("removing {}", lab.run_dir().display()), e));
        }
        _ => {}
    }
    // The last one out: fails as long as there are other labs.
    let _ = lab.run_dir().parent().map(fs::remove_dir);
    Ok(())
}

/// Processes that have left their namespaces since they were started.
fn kill_recorded(lab: &LabName) {
    let state = fs::read_to_string(lab.state()).ok().and_then(|text| serde_json::from_str::<LabStatus>(&text).ok());
    let Some(state) = state else { return };
    let agents = state.nodes.iter().filter_map(|n| match n.agent {
        Some(AgentState::Running(process)) => Some(process),
        _ => None,
    });
    let tasks = state.tasks.iter().filter_map(|t| Some(t.process.as_ref()?.id));
    agents.chain(tasks).for_each(ProcessId::kill);
}
