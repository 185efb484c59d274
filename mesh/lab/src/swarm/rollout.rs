//! Rolling updates, and what happens when they go wrong.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use swarmesh_model::{ServiceId, TaskId};

use super::{
    Swarm, UpdateState,
    state::{Phase, Place, UpdateProgress},
};
use crate::stack::{FailureAction, UpdateOrder};

impl UpdateProgress {
    const fn is_active(&self) -> bool {
        matches!(self.state, UpdateState::Updating | UpdateState::RollingBack)
    }

    /// When it has something to do though nothing happens.
    pub(super) fn timers(&self) -> impl Iterator<Item = Duration> {
        let watched = self.last_started.filter(|_| self.is_active()).map(|at| at + self.config.monitor);
        let rests = self.in_flight.iter().filter_map(|(_, phase)| match phase {
            Phase::Resting(until) => Some(*until),
            _ => None,
        });
        rests.chain(watched)
    }
}

/// The tasks of one place that have not ended.
#[derive(Default)]
struct Here {
    /// Of the current version, and wanted.
    new: Vec<TaskId>,
    new_is_up: bool,
    /// Of another version, and wanted still.
    old: Vec<TaskId>,
    old_is_up: bool,
    /// Of another version, on their way out of a node that can say so.
    leaving: usize,
    ended: bool,
}

impl Swarm {
    pub(super) fn roll_out(&mut self, id: &ServiceId, now: Duration) {
        let mut places = self.survey(id);
        let Some(mut update) = self.services.get_mut(id).and_then(|s| s.update.take()) else { return };
        let active = update.is_active();
        let mut in_flight = Vec::new();
        for (place, phase) in std::mem::take(&mut update.in_flight) {
            let here = places.entry(place.clone()).or_default();
            match phase {
                Phase::Stopping if here.old.is_empty() && here.leaving == 0 => {
                    if here.new.is_empty() && !here.ended {
                        self.new_task(id, &place, 0);
                    }
                    in_flight.push((place, Phase::Starting));
                }
                Phase::Stopping => in_flight.push((place, phase)),
                Phase::Starting if here.new_is_up => {
                    for task in std::mem::take(&mut here.old) {
                        self.shut_down(&task);
                    }
                    update.last_started = Some(now);
                    if !update.config.delay.is_zero() {
                        in_flight.push((place, Phase::Resting(now + update.config.delay)));
                    }
                }
                Phase::Starting if here.new.is_empty() && here.old.is_empty() && !here.ended => {}
                Phase::Starting => in_flight.push((place, phase)),
                Phase::Resting(until) if until <= now => {}
                Phase::Resting(_) => in_flight.push((place, phase)),
            }
        }
        update.in_flight = in_flight;
        let busy: BTreeSet<Place> =
            update.in_flight.iter().filter(|(_, p)| !matches!(p, Phase::Resting(_))).map(|(p, _)| p.clone()).collect();
        let mut left: Vec<(bool, Place)> = Vec::new();
        for (place, here) in &places {
            if here.old.is_empty() || busy.contains(place) {
                continue;
            }
            if here.new_is_up {
                // An update that was given up half-way had started the new one already.
                here.old.iter().for_each(|task| self.shut_down(task));
            } else {
                left.push((here.old_is_up, place.clone()));
            }
        }
        if active {
            let free = match update.config.parallelism {
                0 => usize::MAX,
                most => usize::try_from(most).unwrap_or(usize::MAX).saturating_sub(update.in_flight.len()),
            };
            // What does not run anyway goes first.
            left.sort();
            let next: Vec<Place> = left.drain(..free.min(left.len())).map(|(_, place)| place).collect();
            for place in next {
                let Some(here) = places.get(&place) else { continue };
                let phase = match update.config.order {
                    UpdateOrder::StopFirst => {
                        here.old.iter().for_each(|task| self.shut_down(task));
                        Phase::Stopping
                    }
                    UpdateOrder::StartFirst => {
                        if here.new.is_empty() {
                            self.new_task(id, &place, 0);
                        }
                        Phase::Starting
                    }
                };
                update.in_flight.push((place, phase));
            }
            let watching = update.last_started.is_some_and(|at| at + update.config.monitor > now);
            if left.is_empty() && update.in_flight.is_empty() && !watching {
                update.state = UpdateState::Completed;
            }
        }
        if let Some(service) = self.services.get_mut(id) {
            service.update = Some(update);
        }
    }

    fn survey(&self, id: &ServiceId) -> BTreeMap<Place, Here> {
        let mut places: BTreeMap<Place, Here> = BTreeMap::new();
        let Some(service) = self.services.get(id) else { return places };
        for (_, task) in &service.tasks {
            let Some(record) = self.tasks.get(task) else { continue };
            let Some(place) = record.place() else { continue };
            let here = places.entry(place.clone()).or_default();
            let is_new = record.version() == Some(service.version);
            if record.has_ended() {
                here.ended = true;
            } else if record.is_live() && is_new {
                here.new_is_up |= record.is_up();
                here.new.push(task.clone());
            } else if record.is_live() {
                here.old_is_up |= record.is_up();
                here.old.push(task.clone());
            } else if !is_new && record.node.as_ref().and_then(|n| self.nodes.get(n)).is_some_and(|n| n.up) {
                here.leaving += 1;
            }
        }
        places
    }

    /// Places that an update has emptied and will fill again.
    pub(super) fn busy_places(&self, id: &ServiceId) -> BTreeSet<Place> {
        let update = self.services.get(id).and_then(|s| s.update.as_ref());
        let in_flight = update.map(|u| u.in_flight.as_slice()).unwrap_or_default();
        in_flight.iter().filter(|(_, phase)| *phase == Phase::Stopping).map(|(place, _)| place.clone()).collect()
    }

    /// A new task that fails during its update decides the update. True when the service was rolled back.
    pub(super) fn count_failure(&mut self, id: &ServiceId, task: &TaskId, now: Duration) -> bool {
        let (Some(record), Some(service)) = (self.tasks.get(task), self.services.get(id)) else { return false };
        let Some(update) = service.update.as_ref().filter(|u| u.is_active()) else { return false };
        let early = record.running_since.is_none_or(|since| now.saturating_sub(since) <= update.config.monitor);
        if record.version() != Some(service.version) || !early {
            return false;
        }
        match update.config.failure_action {
            FailureAction::Continue => return false,
            FailureAction::Rollback if update.state == UpdateState::Updating && service.previous.is_some() => {
                let mut next = self.clone();
                if next.roll_back(id).is_ok() {
                    *self = next;
                    return true;
                }
            }
            // A rollback that fails is not rolled back.
            FailureAction::Rollback | FailureAction::Pause => {}
        }
        if let Some(update) = self.services.get_mut(id).and_then(|s| s.update.as_mut()) {
            update.state = UpdateState::Paused;
            update.in_flight.clear();
        }
        self.touch();
        false
    }
}
