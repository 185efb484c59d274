//! `lab exec`: a command in the namespace of a node, client or task.

use std::process::Command;

use super::{last_status, target};
use crate::runtime::{
    LabName, RuntimeError, container_files,
    error::Doing,
    names::netns_path,
    process::{self, Place},
};

/// Runs the command with this process's terminal, and returns its exit code (128 + n for signal n).
pub fn exec(lab: &LabName, name: &str, command: &[String]) -> Result<i32, RuntimeError> {
    let Some((program, args)) = command.split_first() else {
        return Err(RuntimeError::Refused("no command is given".to_owned()));
    };
    let status = last_status(lab)?;
    let mut command = Command::new(program);
    command.args(args);
    let place = match target::find(lab, &status, name)? {
        target::Target::Machine(netns) => Place { netns, container: None },
        target::Target::Task(task) => {
            let Some(process) = &task.process else {
                return Err(RuntimeError::Refused(format!("{} does not run", task.name)));
            };
            // As in a container: the host's environment stays outside, but for the terminal's kind.
            command.env_clear().envs(std::env::var_os("TERM").map(|term| ("TERM", term))).envs(&process.environment);
            let sandbox = process.netns.rsplit('-').next().unwrap_or_default();
            let container = container_files::container(lab, sandbox, &process.hostname);
            Place { netns: netns_path(&process.netns), container: Some(container) }
        }
    };
    let mut child = process::spawn(&place, &mut command)?;
    let status = child.wait().doing(|| format!("waiting for {program}"))?;
    Ok(process::exit_code(&status))
}
