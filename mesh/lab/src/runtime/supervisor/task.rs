//! Tasks: from the swarm's decision to a process, and back.

use std::path::PathBuf;

use nix::sys::signal::Signal;
use swarmesh_model::TaskId;

use super::{Event, Supervisor, node::NodeRun};
use crate::{
    runtime::{
        RuntimeError, container_files,
        health::{self, HealthCheck},
        names::LabName,
        netns,
        process::{self, Place, Running},
        program::{self, Program},
        sandbox::Sandbox,
    },
    swarm::{Observed, TaskSpec},
};

/// What Docker reports for a container that could not be started.
const CANNOT_START: i32 = 127;

/// A task with a process.
#[derive(Debug)]
pub(super) struct TaskRun {
    pub(super) spec: TaskSpec,
    /// The node's place in the list.
    pub(super) node: usize,
    pub(super) sandbox: Sandbox,
    pub(super) program: Program,
    pub(super) process: Running,
    health: Option<HealthCheck>,
}

impl TaskRun {
    pub(super) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }
}

impl Supervisor {
    /// Makes all sandboxes, tells the agents, then starts all processes.
    pub(super) fn start_tasks(&mut self, tasks: &[TaskId]) -> Result<(), RuntimeError> {
        let mut wanted: Vec<Vec<_>> = self.nodes.iter().map(|_| Vec::new()).collect();
        for task in tasks {
            let Some(spec) = self.swarm.task_spec(task) else { continue };
            let Some(index) = self.nodes.iter().position(|n| n.id == spec.node) else { continue };
            if !self.nodes[index].powered {
                // The managers do not know yet that nobody is there.
                self.nodes[index].lost.push(task.clone());
                continue;
            }
            let overlays: Vec<_> = spec.networks.iter().map(|n| self.overlays.describe(&n.network, n.mtu, &n.addresses)).collect();
            wanted[index].push((spec, overlays));
        }
        let made = on_each_node(&mut self.nodes, wanted, |node, (spec, overlays)| {
            let sandbox = node.layout.create_sandbox(&spec, &overlays);
            (spec, sandbox)
        });
        let mut ready = Vec::new();
        for (node, (spec, sandbox)) in made {
            match sandbox {
                Ok(sandbox) => {
                    self.swarm.observe(&spec.id, Observed::Starting);
                    ready.push((node, spec, sandbox));
                }
                Err(error) => self.cannot_start(&spec, &error),
            }
        }
        self.write_snapshot()?;
        for (node, spec, sandbox) in ready {
            if let Err(error) = self.start_process(node, &spec, &sandbox) {
                self.cannot_start(&spec, &error);
                if let Err(error) = self.nodes[node].layout.remove_sandbox(&sandbox) {
                    tracing::warn!("{}: {error}", spec.name);
                }
            }
        }
        Ok(())
    }

    fn cannot_start(&mut self, spec: &TaskSpec, error: &RuntimeError) {
        tracing::error!("{}: {error}", spec.name);
        self.errors.insert(spec.id.clone(), error.to_string());
        self.swarm.observe(&spec.id, Observed::Exited(CANNOT_START));
    }

    fn start_process(&mut self, node: usize, spec: &TaskSpec, sandbox: &Sandbox) -> Result<(), RuntimeError> {
        let program = program::choose(spec, &self.own_program());
        let mut command = process::detached(&program.path, &task_log(&self.lab, &spec.name))?;
        command.args(&program.args).env_clear().envs(program::environment(spec));
        let place = Place { netns: sandbox.path(), container: Some(container_files::write(&self.lab, spec)?) };
        let child = process::spawn(&place, &mut command)?;
        let (ended, id) = (self.events.clone(), spec.id.clone());
        let process = Running::watch(child, move || drop(ended.send(Event::TaskEnded(id))))?;
        tracing::info!(task = spec.name, pid = process.pid(), program = %program.path.display(), "started");
        let (seen, id) = (self.events.clone(), spec.id.clone());
        let health = health::start(spec, program.built_in, place, move |what| drop(seen.send(Event::Health(id.clone(), what))))?;
        if health.is_none() {
            self.swarm.observe(&spec.id, Observed::Running);
        }
        let run = TaskRun { spec: spec.clone(), node, sandbox: sandbox.clone(), program, process, health };
        self.tasks.insert(spec.id.clone(), run);
        self.state_changed = true;
        Ok(())
    }

    /// Asked to stop what is not there: it never started, or its node lost it.
    pub(super) fn never_ran(&mut self, task: &TaskId) {
        let on_dead_node = self.swarm.task_spec(task).is_some_and(|spec| {
            self.nodes.iter_mut().filter(|n| n.id == spec.node && !n.powered).any(|node| {
                node.lost.push(task.clone());
                true
            })
        });
        if !on_dead_node {
            self.swarm.observe(task, Observed::Exited(CANNOT_START));
        }
    }

    /// Takes down what processes leave when they end, then tells the swarm.
    pub(super) fn tasks_ended(&mut self, ended: Vec<TaskId>) {
        let mut wanted: Vec<Vec<_>> = self.nodes.iter().map(|_| Vec::new()).collect();
        for task in ended {
            let Some(run) = self.tasks.remove(&task) else { continue };
            self.state_changed = true;
            drop(run.health);
            let code = run.process.reap();
            tracing::info!(task = run.spec.name, code, "ended");
            if code != 0 {
                self.errors.insert(task.clone(), exit_text(code));
            }
            if self.nodes[run.node].powered {
                wanted[run.node].push((task, code, run.sandbox));
            } else {
                self.nodes[run.node].lost.push(task);
            }
        }
        let removed = on_each_node(&mut self.nodes, wanted, |node, (task, code, sandbox)| {
            // As with a container's first process, everything in it ends.
            let namespace = netns::identity(&sandbox.path()).into_iter().collect();
            let killed = process::kill_inside(&namespace, super::node::KILL_PATIENCE);
            (task, code, killed.and(node.layout.remove_sandbox(&sandbox)))
        });
        for (_, (task, code, result)) in removed {
            if let Err(error) = result {
                tracing::warn!("{task}: {error}");
            }
            self.swarm.observe(&task, Observed::Exited(code));
        }
    }

    /// This program, even after its file has been replaced.
    pub(super) fn own_program(&self) -> PathBuf {
        if self.program.exists() { self.program.clone() } else { PathBuf::from("/proc/self/exe") }
    }
}

fn exit_text(code: i32) -> String {
    match code.checked_sub(128).and_then(|n| Signal::try_from(n).ok()) {
        Some(signal) => format!("ended by {signal}"),
        None => format!("ended with exit code {code}"),
    }
}

/// Does one kind of work on all nodes at a time, in order on each of them.
fn on_each_node<W: Send, R: Send>(nodes: &mut [NodeRun], work: Vec<Vec<W>>, each: impl Fn(&mut NodeRun, W) -> R + Sync) -> Vec<(usize, R)> {
    if work.iter().map(Vec::len).sum::<usize>() < 2 {
        let mut done = Vec::new();
        for (index, (node, list)) in nodes.iter_mut().zip(work).enumerate() {
            done.extend(list.into_iter().map(|item| (index, each(node, item))));
        }
        return done;
    }
    std::thread::scope(|scope| {
        let each = &each;
        let handles: Vec<_> = nodes
            .iter_mut()
            .zip(work)
            .map(|(node, list)| scope.spawn(move || list.into_iter().map(|item| each(node, item)).collect::<Vec<R>>()))
            .collect();
        let results = handles.into_iter().enumerate().filter_map(|(index, handle)| Some((index, handle.join().ok()?)));
        results.flat_map(|(index, list)| list.into_iter().map(move |result| (index, result))).collect()
    })
}

pub(crate) fn task_log(lab: &LabName, task: &str) -> PathBuf {
    lab.file("logs").join(format!("{task}.log"))
}
