//! What the agent holds in memory with a large swarm resident.

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use swarmesh_tests::netns::within;

use super::swarm::{Sandbox, snapshot};
use crate::run::{build, say};

struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn run(services: u32, tasks: u32) -> Result<()> {
    for dns in ["off", "on"] {
        measure(services, tasks, dns)?;
    }
    Ok(())
}

fn measure(services: u32, tasks: u32, dns: &str) -> Result<()> {
    let program = build(true)?;
    let sandbox = Sandbox::new("memory")?;
    let state = tempfile::tempdir()?;
    let file = state.path().join("snapshot.json");
    std::fs::write(&file, snapshot(services, tasks).to_json())?;
    let start = Instant::now();
    let mut command = Command::new(program);
    command.arg("agent").arg(format!("--source=snapshot:{}", file.display())).args(["--node", "here", "--admin", "127.0.0.1:9790"]);
    command
        .args(["--dns", dns, "--netns-dir"])
        .arg(sandbox.netns_dir())
        .arg("--state-dir")
        .arg(state.path().join("state"))
        .stderr(Stdio::null());
    let agent = Agent(within(&sandbox.path(), move || command.spawn())?.context("cannot run the agent")?);
    loop {
        let ready = within(&sandbox.path(), || Command::new("curl").args(["-sf", "http://127.0.0.1:9790/readyz"]).output())??;
        if ready.status.success() {
            break;
        }
        if start.elapsed() > Duration::from_secs(60) {
            bail!("the agent is not ready after a minute");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let ready = start.elapsed();
    // The last good snapshot is written a little later, and may cost memory too.
    std::thread::sleep(Duration::from_secs(7));
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.0.id()))?;
    let line =
        |name: &str| status.lines().find(|l| l.starts_with(name)).and_then(|l| l.split_whitespace().nth(1)).unwrap_or("?").to_owned();
    say(&format!(
        "agent with --dns {dns}, {services} services x {tasks} tasks from a snapshot file: ready (file read and parsed, table cold) after {:.2} s, resident {} KiB, at most {} KiB",
        ready.as_secs_f64(),
        line("VmRSS:"),
        line("VmHWM:"),
    ));
    Ok(())
}
