//! `lab logs`.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::PathBuf,
    thread,
    time::Duration,
};

use super::{last_status, require_root, target};
use crate::runtime::{LabName, RuntimeError, error::Doing, supervisor};

const PAUSE: Duration = Duration::from_millis(200);

/// Prints what a task has written, or a node's agent, or (for the lab's own name) the supervisor.
pub fn logs(lab: &LabName, name: &str, follow: bool) -> Result<(), RuntimeError> {
    require_root()?;
    let path = find(lab, name)?;
    let mut file = File::open(&path).map_err(|e| RuntimeError::File { path: path.clone(), message: e.to_string() })?;
    let mut buffer = [0; 16 * 1024];
    loop {
        let length = file.read(&mut buffer).doing(|| format!("reading {}", path.display()))?;
        if length == 0 {
            if !follow {
                return Ok(());
            }
            thread::sleep(PAUSE);
        }
        match io::stdout().write_all(&buffer[..length]).and_then(|()| io::stdout().flush()) {
            // `lab logs … | head`
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            result => result.doing(|| "printing".to_owned())?,
        }
    }
}

fn find(lab: &LabName, name: &str) -> Result<PathBuf, RuntimeError> {
    if name == "supervisor" {
        return Ok(lab.supervisor_log());
    }
    let status = last_status(lab)?;
    if let Some(node) = status.nodes.iter().find(|n| n.machine.name == name) {
        return Ok(supervisor::agent_log(lab, &node.machine.name));
    }
    let gone = supervisor::task_log(lab, name);
    if gone.exists() {
        return Ok(gone);
    }
    target::task(&status, name).map(|task| supervisor::task_log(lab, &task.name))
}
