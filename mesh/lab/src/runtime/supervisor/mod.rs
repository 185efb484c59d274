//! The process behind a lab: it keeps the swarm's state, carries out what the swarm decides, and answers the commands.
//!
//! One thread does all of it. Others only wait for something (a process's end, a health check, a request) and tell it.

mod node;
mod requests;
mod status;
mod task;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    path::{Path, PathBuf},
    process,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::Signal,
};
use swarmesh_model::{PublishMode, Snapshot, TaskId, TaskState};

use self::{node::NodeRun, task::TaskRun};
pub(crate) use self::{node::agent_log, status::word, task::task_log};
use super::{
    RuntimeError,
    control::{self, Call},
    error::Doing,
    layout::Overlays,
    names::LabName,
    protocol::Setup,
    rules::Published,
    sweep,
};
use crate::swarm::{Action, Observed, Swarm};

/// Something happened.
#[derive(Debug)]
enum Event {
    Call(Call),
    TaskEnded(TaskId),
    Health(TaskId, Observed),
    /// By the node's place in the list, and the process's id.
    AgentEnded(usize, u32),
    Terminated,
}

/// Something is due.
#[derive(Debug)]
enum Timer {
    StopTask {
        task: TaskId,
        signal: Signal,
        grace: Duration,
    },
    KillTask(TaskId),
    /// The managers notice that a node is gone.
    NodeLost(usize),
}

struct Supervisor {
    lab: LabName,
    /// This program, for agents and built-in servers.
    program: PathBuf,
    setup: Setup,
    swarm: Swarm,
    overlays: Overlays,
    nodes: Vec<NodeRun>,
    tasks: BTreeMap<TaskId, TaskRun>,
    /// Why tasks failed, for as long as the swarm remembers them.
    errors: BTreeMap<TaskId, String>,
    started: Instant,
    timers: BTreeMap<(Instant, u64), Timer>,
    timer_count: u64,
    events: Sender<Event>,
    /// Version of the snapshot on disk.
    written: Option<u64>,
    /// The state file is behind, even if the snapshot is not.
    state_changed: bool,
}

/// Runs until the lab is taken down.
pub(crate) fn run(lab: &LabName) -> Result<(), RuntimeError> {
    // Fails for a process that leads a session already, which is what it is for.
    let _ = nix::unistd::setsid();
    let _lock = lock(lab)?;
    let (events, incoming) = channel();
    let deliver = events.clone();
    // A send fails only when the main thread has ended, and the process with it.
    control::serve(lab, move |call| drop(deliver.send(Event::Call(call))))?;
    terminate_on_signal(events.clone())?;
    let Some(mut supervisor) = requests::first(lab, &events, &incoming)? else { return Ok(()) };
    let result = supervisor.work(&incoming);
    supervisor.kill_everything();
    // After an error everything stays to be looked at, until `lab down`.
    result.and_then(|()| sweep::remove(lab))
}

/// Nobody else may run this lab while the returned lock lives.
fn lock(lab: &LabName) -> Result<Flock<fs::File>, RuntimeError> {
    let path = lab.lock();
    let file = fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .read(true)
        .open(&path)
        .doing(|| format!("opening {}", path.display()))?;
    let mut lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| RuntimeError::Running(lab.to_string()))?;
    lock.set_len(0).and_then(|()| writeln!(lock, "{}", process::id())).doing(|| format!("writing {}", path.display()))?;
    Ok(lock)
}

fn terminate_on_signal(events: Sender<Event>) -> Result<(), RuntimeError> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().doing(|| "setting up signal handling".to_owned())?;
    let mut terminate = {
        let _guard = runtime.enter();
        signal(SignalKind::terminate()).doing(|| "setting up signal handling".to_owned())?
    };
    let wait = move || {
        runtime.block_on(terminate.recv());
        let _ = events.send(Event::Terminated);
    };
    thread::Builder::new().name("signals".to_owned()).spawn(wait).doing(|| "starting a thread".to_owned())?;
    Ok(())
}

impl Supervisor {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn work(&mut self, incoming: &Receiver<Event>) -> Result<(), RuntimeError> {
        loop {
            self.reconcile()?;
            let mut batch: Vec<Event> = match self.wait(incoming) {
                Some(event) => vec![event],
                None => Vec::new(),
            };
            batch.extend(incoming.try_iter());
            if self.handle(batch) {
                return Ok(());
            }
            self.fire_timers();
        }
    }

    fn wait(&self, incoming: &Receiver<Event>) -> Option<Event> {
        let now = Instant::now();
        let timer = self.timers.keys().next().map(|(when, _)| when.saturating_duration_since(now));
        let swarm = self.swarm.next_wakeup().map(|when| when.saturating_sub(self.now()));
        let longest = timer.into_iter().chain(swarm).min().unwrap_or(Duration::from_secs(3600));
        match incoming.recv_timeout(longest) {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Timeout) => None,
            // We hold a sender ourselves.
            Err(RecvTimeoutError::Disconnected) => Some(Event::Terminated),
        }
    }

    /// True when the lab is to end.
    fn handle(&mut self, batch: Vec<Event>) -> bool {
        let mut ended = Vec::new();
        let mut calls = Vec::new();
        for event in batch {
            match event {
                Event::Call(call) => calls.push(call),
                Event::TaskEnded(task) => ended.push(task),
                Event::Health(task, seen) => {
                    if self.tasks.contains_key(&task) {
                        self.swarm.observe(&task, seen);
                    }
                }
                Event::AgentEnded(node, pid) => self.agent_ended(node, pid),
                Event::Terminated => return true,
            }
        }
        self.tasks_ended(ended);
        let mut ends = false;
        for call in calls {
            ends |= self.answer(call);
        }
        ends
    }

    /// Does what the swarm decides until it wants nothing more for now.
    fn reconcile(&mut self) -> Result<(), RuntimeError> {
        loop {
            let actions = self.swarm.reconcile(self.now());
            self.write_snapshot()?;
            if actions.is_empty() {
                return Ok(());
            }
            let mut start = Vec::new();
            for action in actions {
                match action {
                    Action::StartTask { task, .. } => start.push(task),
                    Action::StopTask { task, converge, signal, grace, .. } => {
                        let signal = super::process::signal(&signal);
                        if self.tasks.contains_key(&task) {
                            self.set_timer(converge, Timer::StopTask { task, signal, grace });
                        } else {
                            self.never_ran(&task);
                        }
                    }
                    Action::KillTask { task, .. } => match self.tasks.get(&task) {
                        Some(run) => run.signal(Signal::SIGKILL),
                        None => self.never_ran(&task),
                    },
                }
            }
            self.start_tasks(&start)?;
        }
    }

    fn set_timer(&mut self, after: Duration, timer: Timer) {
        self.timer_count += 1;
        self.timers.insert((Instant::now() + after, self.timer_count), timer);
    }

    fn fire_timers(&mut self) {
        let now = Instant::now();
        while let Some(entry) = self.timers.first_entry().filter(|e| e.key().0 <= now) {
            match entry.remove() {
                Timer::StopTask { task, signal, grace } => {
                    if let Some(run) = self.tasks.get(&task) {
                        run.signal(signal);
                        self.set_timer(grace, Timer::KillTask(task));
                    }
                }
                Timer::KillTask(task) => {
                    if let Some(run) = self.tasks.get(&task) {
                        run.signal(Signal::SIGKILL);
                    }
                }
                Timer::NodeLost(index) => self.node_lost(index),
            }
        }
    }

    /// Brings files and published ports to the swarm's state, if it has changed.
    fn write_snapshot(&mut self) -> Result<(), RuntimeError> {
        let snapshot = self.swarm.snapshot();
        if self.written == Some(snapshot.version) {
            return if std::mem::take(&mut self.state_changed) { self.write_state() } else { Ok(()) };
        }
        replace_file(&self.lab.snapshot(), &snapshot.to_json())?;
        self.written = Some(snapshot.version);
        self.errors.retain(|task, _| snapshot.tasks.contains_key(task));
        let networks: BTreeSet<_> = snapshot.networks.keys().cloned().collect();
        let ports = published(&snapshot);
        for node in self.nodes.iter_mut().filter(|n| n.powered) {
            // Docker's own rules are scenery: somebody who took them apart with `nft flush` wants the lab to go on.
            if let Err(error) = node.layout.publish_ports(&ports) {
                tracing::warn!(node = node.layout.hostname(), %error, "Docker's rules for published ports are not as Docker would have them");
            }
            node.layout.keep_overlays(&networks)?;
        }
        self.state_changed = false;
        self.write_state()
    }

    /// For whoever has to do without this process.
    fn write_state(&self) -> Result<(), RuntimeError> {
        let status = serde_json::to_string(&self.status()).map_err(|e| RuntimeError::io("writing the state", e))?;
        replace_file(&self.lab.state(), &status)
    }
}

/// A port is published from its service's first running task to the last.
fn published(snapshot: &Snapshot) -> BTreeSet<Published> {
    let running: BTreeSet<_> =
        snapshot.tasks.values().filter(|t| t.state == TaskState::Running).filter_map(|t| t.service.as_ref()).collect();
    let services = snapshot.services.values().filter(|s| running.contains(&s.id));
    let ports = services.flat_map(|s| &s.ports).filter(|p| p.publish_mode == PublishMode::Ingress);
    ports.filter_map(|p| Some((p.protocol, p.published_port?))).collect()
}

/// Readers see the old file or the new one, never a part.
fn replace_file(path: &Path, text: &str) -> Result<(), RuntimeError> {
    let new = path.with_extension("new");
    fs::write(&new, text).and_then(|()| fs::rename(&new, path)).doing(|| format!("writing {}", path.display()))
}
