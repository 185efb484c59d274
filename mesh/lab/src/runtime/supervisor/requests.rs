//! What the commands ask for.

use std::{
    env, fs,
    sync::mpsc::{Receiver, Sender},
    time::Instant,
};

use swarmesh_model::Role;

use super::{Event, Supervisor, node::Agent, node::NodeRun};
use crate::{
    runtime::{
        RuntimeError,
        control::Call,
        error::Doing,
        layout::{self, NodeLayout, Overlays, address_v6, node_address},
        names::LabName,
        protocol::{Reply, Request, Setup},
    },
    stack,
    swarm::{Changes, IngressSpec, NodeSpec, Swarm, SwarmConfig},
};

/// The ingress network's, where it has one.
const INGRESS_V6: &str = "fd00:5741:1::/64";

/// The first request says what the lab is like. `None`: it is taken down before it came up.
pub(super) fn first(lab: &LabName, events: &Sender<Event>, incoming: &Receiver<Event>) -> Result<Option<Supervisor>, RuntimeError> {
    for event in incoming {
        match event {
            Event::Call(Call { request: Request::Setup(setup), replies }) => {
                let mut supervisor = Supervisor::new(lab, setup, events.clone())?;
                let progress = |text: String| drop(replies.send(Reply::Progress(text)));
                return match supervisor.set_up(progress) {
                    Ok(text) => {
                        // The asker may have gone; the lab is up all the same.
                        let _ = replies.send(Reply::Done(text));
                        Ok(Some(supervisor))
                    }
                    Err(error) => {
                        let _ = replies.send(Reply::Failed(error.to_string()));
                        Err(error)
                    }
                };
            }
            Event::Call(Call { request: Request::Down, .. }) | Event::Terminated => return Ok(None),
            Event::Call(call) => drop(call.replies.send(Reply::Failed("the lab is not up yet".to_owned()))),
            _ => {}
        }
    }
    Ok(None)
}

impl Supervisor {
    fn new(lab: &LabName, setup: Setup, events: Sender<Event>) -> Result<Self, RuntimeError> {
        let defaults = SwarmConfig::default();
        let ingress = setup.ingress.clone().map(|name| IngressSpec {
            name,
            // A constant; were it wrong, the network would lack it.
            subnet_v6: setup.ingress_v6.then(|| INGRESS_V6.parse().ok()).flatten(),
            ..IngressSpec::default()
        });
        let nodes = (1..=setup.nodes).map(|number| NodeSpec {
            hostname: format!("node{number}"),
            address: node_address(number).into(),
            address_v6: Some(address_v6(node_address(number))),
            role: if number <= setup.managers { Role::Manager } else { Role::Worker },
            labels: Default::default(),
            engine: setup.layout.release().map(str::to_owned),
        });
        let swarm = Swarm::new(SwarmConfig {
            nodes: nodes.collect(),
            ingress,
            restart_delay: setup.restart_delay.unwrap_or(defaults.restart_delay),
            convergence_delay: setup.convergence_delay.unwrap_or(defaults.convergence_delay),
            ..defaults
        })?;
        let ids: Vec<_> = swarm.nodes().into_iter().map(|(id, _, _)| id).collect();
        let nodes = ids.into_iter().zip(1..).map(|(id, number)| NodeRun {
            id,
            layout: NodeLayout::new(lab, &setup, number),
            powered: false,
            lost: Vec::new(),
            plane: None,
            agent: Agent::Off,
        });
        Ok(Self {
            lab: lab.clone(),
            program: env::current_exe().doing(|| "finding this program".to_owned())?,
            nodes: nodes.collect(),
            setup,
            swarm,
            overlays: Overlays::default(),
            tasks: Default::default(),
            errors: Default::default(),
            started: Instant::now(),
            timers: Default::default(),
            timer_count: 0,
            events,
            written: None,
            state_changed: false,
        })
    }

    fn set_up(&mut self, progress: impl Fn(String)) -> Result<String, RuntimeError> {
        for dir in ["logs", "files"] {
            let dir = self.lab.file(dir);
            fs::create_dir_all(&dir).doing(|| format!("making {}", dir.display()))?;
        }
        layout::create_lan(&self.lab, self.setup.clients)?;
        progress(format!("LAN 192.0.2.0/24 with {} clients", self.setup.clients));
        for index in 0..self.nodes.len() {
            self.power_on(index)?;
            let number = u8::try_from(index + 1).unwrap_or(u8::MAX);
            progress(format!("{} at {}", self.nodes[index].layout.hostname(), node_address(number)));
        }
        self.write_snapshot()?;
        for index in 0..self.nodes.len() {
            self.start_agent(index)?;
        }
        Ok(format!("{} nodes are up", self.nodes.len()))
    }

    /// True when the lab is to end.
    pub(super) fn answer(&mut self, Call { request, replies }: Call) -> bool {
        let ends = matches!(request, Request::Down);
        let reply = self.carry_out(request).unwrap_or_else(|error| Reply::Failed(error.to_string()));
        // The asker may have gone.
        let _ = replies.send(reply);
        ends
    }

    fn carry_out(&mut self, request: Request) -> Result<Reply, RuntimeError> {
        let done = |text: String| Ok(Reply::Done(text));
        match request {
            Request::Setup(_) => Err(RuntimeError::Running(self.lab.to_string())),
            Request::Status => Ok(Reply::Status(Box::new(self.status()))),
            Request::Deploy { file, text, stack, environment, prune } => {
                let stack = stack::load(text.as_bytes(), &file, &stack, &|name| environment.get(name).cloned())?;
                let changes = if prune { self.swarm.deploy_and_prune(&stack) } else { self.swarm.deploy(&stack) };
                Ok(Reply::Changes(changes.map_err(|error| stack.refused(&error))?))
            }
            Request::Scale(services) => {
                // All or none: a name that is wrong must not leave half of it done.
                let services: Vec<_> = services.into_iter().map(|(name, replicas)| Ok((self.service(&name)?, replicas))).collect::<Result<
                    _,
                    RuntimeError,
                >>(
                )?;
                let mut next = self.swarm.clone();
                services.iter().try_for_each(|(name, replicas)| next.scale(name, *replicas))?;
                self.swarm = next;
                let scaled: Vec<String> = services.iter().map(|(name, replicas)| format!("{name} scaled to {replicas}")).collect();
                done(scaled.join("\n"))
            }
            Request::Update { service, options } => {
                let service = self.service(&service)?;
                self.swarm.update(&service, options)?;
                done(format!("updating {service}"))
            }
            Request::Remove(name) => self.remove(&name),
            Request::Kill(name) => self.kill(&name),
            Request::StartNode(name) => {
                let index = self.find_node(&name).ok_or_else(|| unknown("node", &name))?;
                if self.nodes[index].powered {
                    return Err(RuntimeError::Refused(format!("{name} runs already")));
                }
                self.boot(index)?;
                done(format!("{name} is up"))
            }
            Request::Availability { node, availability } => {
                self.swarm.set_availability(&node, availability)?;
                done(format!("{node}: {}", super::status::word(&availability)))
            }
            Request::Run(spec) => {
                let name = spec.name.clone();
                self.swarm.run_container(*spec)?;
                done(name)
            }
            Request::Agent { node, action, plane } => self.agent_action(&node, action, plane).map(Reply::Done),
            Request::Down => done("down".to_owned()),
        }
    }

    /// A service, a container or a whole stack.
    fn remove(&mut self, name: &str) -> Result<Reply, RuntimeError> {
        if let Ok(service) = self.service(name) {
            self.swarm.remove_service(&service)?;
            return Ok(Reply::Changes(Changes { services_removed: vec![service], ..Changes::default() }));
        }
        if self.swarm.remove_container(name).is_ok() {
            return Ok(Reply::Done(format!("removing container {name}")));
        }
        match self.swarm.remove_stack(name) {
            Ok(changes) => Ok(Reply::Changes(changes)),
            Err(_) => Err(unknown("service, container or stack", name)),
        }
    }

    fn kill(&mut self, name: &str) -> Result<Reply, RuntimeError> {
        if let Some(index) = self.find_node(name) {
            if !self.nodes[index].powered {
                return Err(RuntimeError::Refused(format!("{name} is off already")));
            }
            self.power_off(index)?;
            return Ok(Reply::Done(format!("{name} is off")));
        }
        let task = self.swarm.find_task(name).ok_or_else(|| unknown("task or node", name))?;
        let name = self.tasks.get(&task).map_or_else(|| task.to_string(), |run| run.spec.name.clone());
        self.swarm.kill_task(task.as_str())?;
        Ok(Reply::Done(format!("killed {name}")))
    }

    /// A service by its name, with or without its stack's in front.
    fn service(&self, name: &str) -> Result<String, RuntimeError> {
        let services = self.swarm.services();
        if services.iter().any(|s| s.name == name) {
            return Ok(name.to_owned());
        }
        let mut found = services.into_iter().filter(|s| s.name.split_once('_').is_some_and(|(_, own)| own == name)).map(|s| s.name);
        match (found.next(), found.next()) {
            (Some(one), None) => Ok(one),
            (Some(one), Some(two)) => Err(RuntimeError::Ambiguous { name: name.to_owned(), candidates: format!("{one}, {two}") }),
            _ => Err(unknown("service", name)),
        }
    }
}

fn unknown(kind: &str, name: &str) -> RuntimeError {
    RuntimeError::Refused(format!("there is no {kind} {name}"))
}
