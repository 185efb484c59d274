//! Brings what is there closer to what is wanted.

use std::{collections::BTreeSet, time::Duration};

use swarmesh_model::{Availability, ServiceId, TaskId, TaskState};

use super::{
    Action, Swarm,
    placement::constraints_allow,
    state::{Place, Restart, Stop, UpdateProgress},
};
use crate::stack::{Mode, RestartCondition};

/// Rounds until nothing changes any more are few; this only keeps a mistake from becoming a hang.
const MOST_ROUNDS: usize = 64;

impl Swarm {
    /// Decides what to do at the time `now`, counted from any fixed moment, and returns what the runtime has to do.
    pub fn reconcile(&mut self, now: Duration) -> Vec<Action> {
        self.note_running(now);
        let mut settled = false;
        for _ in 0..MOST_ROUNDS {
            let before = self.version;
            self.round(now);
            if self.version == before {
                settled = true;
                break;
            }
        }
        self.release_endpoints();
        self.drop_old_specs();
        let actions = self.actions();
        self.wakeup = if settled { self.next_timer(now) } else { Some(now) };
        actions
    }

    fn note_running(&mut self, now: Duration) {
        for task in self.tasks.values_mut().filter(|t| t.state == TaskState::Running) {
            task.running_since.get_or_insert(now);
        }
    }

    fn round(&mut self, now: Duration) {
        let mut services: Vec<(u64, ServiceId)> = self.services.iter().map(|(id, record)| (record.order, id.clone())).collect();
        services.sort_unstable();
        for (_, id) in services {
            if self.services.get(&id).is_some_and(|s| s.removed) {
                for task in self.tasks_of(&id) {
                    self.shut_down(&task);
                }
                if self.tasks_of(&id).is_empty() {
                    self.forget_service(&id);
                }
            } else {
                self.replace_ended(&id, now);
                self.roll_out(&id, now);
                self.trim_and_fill(&id);
            }
        }
        self.forget_networks();
        self.place_tasks();
    }

    /// Tasks that ended by themselves are replaced after the restart delay, if the policy says so.
    fn replace_ended(&mut self, id: &ServiceId, now: Duration) {
        for task in self.tasks_of(id) {
            let Some(record) = self.tasks.get(&task) else { continue };
            if !record.has_ended() {
                continue;
            }
            let Some(place) = record.place().cloned() else { continue };
            let (state, attempts, restart) = (record.state, record.attempts, record.restart);
            if restart == Restart::Undecided && self.count_failure(id, &task, now) {
                // Rolled back: nothing here is as it was.
                return;
            }
            let other = self.tasks_of(id).into_iter().any(|t| self.tasks.get(&t).is_some_and(|t| t.is_live() && t.place() == Some(&place)));
            let Some(service) = self.services.get(id) else { continue };
            let starting = service.update.as_ref().is_some_and(|u| u.in_flight.iter().any(|(p, _)| *p == place));
            if other && !starting {
                // The task that it should have replaced is still there.
                self.drop_task(&task);
                continue;
            }
            let policy = service.spec.restart;
            let decided = match restart {
                Restart::Undecided => {
                    let wanted = match policy.condition {
                        RestartCondition::None => false,
                        RestartCondition::OnFailure => state == TaskState::Failed,
                        RestartCondition::Any => true,
                    };
                    let more = policy.max_attempts.is_none_or(|most| most == 0 || attempts < most);
                    if wanted && more { Restart::At(now + policy.delay.unwrap_or(self.config.restart_delay)) } else { Restart::Never }
                }
                decided => decided,
            };
            if let Restart::At(when) = decided
                && when <= now
            {
                self.drop_task(&task);
                self.new_task(id, &place, attempts + 1);
            } else if let Some(record) = self.tasks.get_mut(&task) {
                record.restart = decided;
            }
        }
    }

    /// As many places as wanted: too many lose those that do not run, then the newest.
    fn trim_and_fill(&mut self, id: &ServiceId) {
        let Some(service) = self.services.get(id) else { return };
        let mut present: BTreeSet<Place> = self.busy_places(id);
        let mut up: BTreeSet<Place> = BTreeSet::new();
        for (_, task) in &service.tasks {
            let Some(record) = self.tasks.get(task) else { continue };
            if let Some(place) = record.place().filter(|_| record.is_live() || record.has_ended()) {
                present.insert(place.clone());
                if record.is_live() && record.is_up() {
                    up.insert(place.clone());
                }
            }
        }
        let (add, remove): (Vec<Place>, Vec<Place>) = match service.spec.mode {
            Mode::Replicated { replicas } => {
                let replicas = usize::try_from(replicas).unwrap_or(usize::MAX);
                let mut order: Vec<&Place> = present.iter().collect();
                order.sort_by_key(|place| (up.contains(*place), std::cmp::Reverse(*place)));
                let remove = order.into_iter().take(present.len().saturating_sub(replicas)).cloned().collect();
                let free = (1..).map(Place::Slot).filter(|place| !present.contains(place));
                (free.take(replicas.saturating_sub(present.len())).collect(), remove)
            }
            Mode::Global => {
                let fits = |id: &swarmesh_model::NodeId| {
                    let node = self.nodes.get(id)?;
                    (node.up && node.availability != Availability::Drain && constraints_allow(&service.spec, id, node)).then_some(node)
                };
                let mut nodes: Vec<_> = self.nodes.iter().filter(|(id, n)| n.takes_tasks() && fits(id).is_some()).collect();
                nodes.sort_by_key(|(_, node)| node.order);
                let add = nodes.into_iter().map(|(id, _)| Place::Node(id.clone())).filter(|p| !present.contains(p)).collect();
                let gone = |place: &&Place| !matches!(place, Place::Node(node) if fits(node).is_some());
                (add, present.iter().filter(gone).cloned().collect())
            }
        };
        for place in remove {
            self.vacate(id, &place);
        }
        for place in add {
            self.new_task(id, &place, 0);
        }
    }

    fn vacate(&mut self, id: &ServiceId, place: &Place) {
        for task in self.tasks_of(id) {
            if self.tasks.get(&task).is_some_and(|t| t.place() == Some(place)) {
                self.shut_down(&task);
            }
        }
        if let Some(update) = self.services.get_mut(id).and_then(|s| s.update.as_mut()) {
            update.in_flight.retain(|(p, _)| p != place);
        }
    }

    fn actions(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        let converge = self.config.convergence_delay;
        for id in self.tasks_in_order() {
            let Some(task) = self.tasks.get(&id) else { continue };
            // Nothing can be done on a node that is down.
            let Some(node) = task.node.clone().filter(|n| self.nodes.get(n).is_some_and(|n| n.up)) else { continue };
            let action = if task.started {
                let withdrawn = task.desired == TaskState::Shutdown && task.stop == Stop::No;
                match task.stop {
                    _ if task.has_ended() => continue,
                    Stop::KillWanted => Action::KillTask { task: id.clone(), node },
                    _ if withdrawn || task.stop == Stop::Wanted => {
                        let spec = self.task_spec_of(task);
                        let (grace, signal) =
                            spec.map_or_else(|| (Duration::from_secs(10), "SIGTERM".to_owned()), |s| (s.stop_grace, s.stop_signal.clone()));
                        Action::StopTask { task: id.clone(), node, converge, signal, grace }
                    }
                    _ => continue,
                }
            } else if task.state == TaskState::Assigned && task.is_live() {
                Action::StartTask { task: id.clone(), node }
            } else {
                continue;
            };
            self.mark_told(&id, &action);
            actions.push(action);
        }
        actions
    }

    fn mark_told(&mut self, id: &TaskId, action: &Action) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        match action {
            Action::StartTask { .. } => {
                task.started = true;
                task.state = TaskState::Preparing;
                self.touch();
            }
            Action::StopTask { .. } => task.stop = Stop::Told,
            Action::KillTask { .. } => task.stop = Stop::Killed,
        }
    }

    fn next_timer(&self, now: Duration) -> Option<Duration> {
        let restarts = self.tasks.values().filter_map(|t| match t.restart {
            Restart::At(when) if t.has_ended() => Some(when),
            _ => None,
        });
        let updates = self.services.values().filter(|s| !s.removed).filter_map(|s| s.update.as_ref()).flat_map(UpdateProgress::timers);
        restarts.chain(updates).filter(|when| *when > now).min()
    }
}
