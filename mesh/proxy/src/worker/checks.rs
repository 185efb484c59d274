//! Connecting in the background, for routes that ask for it: who cannot be reached gets nothing until it can.
//!
//! As HAProxy's `check` without further words: every two seconds, out after three failures in a row, back after two successes.

use std::{collections::HashMap, rc::Rc, sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};

use super::Worker;
use crate::{endpoint::Endpoint, upstream::Wanted};

const EVERY: Duration = Duration::from_secs(2);
const FALL: u8 = 3;
const RISE: u8 = 2;

/// How a backend's last checks came out.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    is_down: bool,
    /// Checks in a row that say otherwise.
    against: u8,
}

impl Row {
    /// Whether it is reachable now.
    fn note(&mut self, connected: bool) -> bool {
        if connected == self.is_down {
            self.against += 1;
            if self.against >= if self.is_down { RISE } else { FALL } {
                *self = Self { is_down: !self.is_down, against: 0 };
            }
        } else {
            self.against = 0;
        }
        !self.is_down
    }
}

/// Run by one worker, for all.
pub(super) async fn check(worker: Rc<Worker>) {
    let mut rows: HashMap<u64, Row> = HashMap::new();
    let mut every = interval(EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let routing = worker.shared.routing.load_full();
        let checked = routing.checked().filter_map(|lane| lane.live.as_ref());
        let endpoints: HashMap<u64, Arc<Endpoint>> = checked
            .flat_map(|live| live.endpoints().iter().map(|e| (e.endpoint.id, Arc::clone(&e.endpoint))).collect::<Vec<_>>())
            .collect();
        drop(routing);
        rows.retain(|id, _| endpoints.contains_key(id));
        let mut tries = Vec::new();
        for endpoint in endpoints.into_values() {
            let worker = Rc::clone(&worker);
            tries.push(tokio::task::spawn_local(async move {
                let wanted =
                    Wanted { host: "", connect_time: EVERY, fresh: true, preface: None, private: true, once: false, streams: true };
                let connected = worker.upstreams.connect(&endpoint, &wanted).await.is_ok();
                (endpoint, connected)
            }));
        }
        for tried in tries {
            // One that panicked says nothing.
            let Ok((endpoint, connected)) = tried.await else { continue };
            let is_reachable = rows.entry(endpoint.id).or_default().note(connected);
            if endpoint.health.checked(is_reachable) {
                tracing::info!(backend = ?endpoint.upstream, is_reachable, "a backend's check came out otherwise");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_failures_put_out_and_two_successes_bring_back() {
        let mut row = Row::default();
        let seen: Vec<bool> = [true, false, false, true, false, false, false, true, false, true, true].map(|c| row.note(c)).into();
        assert_eq!(seen, [true, true, true, true, true, true, false, false, false, false, true]);
    }
}
