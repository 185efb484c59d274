//! Connecting in the background, for routes that ask for it: who cannot be reached gets nothing until it can.
//!
//! As HAProxy's `check` without further words: every two seconds, out after three failures in a row, back after two successes.

use std::{cell::RefCell, collections::HashMap, rc::Rc, sync::Arc, time::Duration};

use tokio::time::sleep;

use super::Worker;
use crate::{endpoint::Endpoint, upstream::Wanted};

const EVERY: Duration = Duration::from_secs(2);
/// Over before the next one's turn.
const PATIENCE: Duration = Duration::from_millis(1900);
/// Not all at once: thousands of connections in one moment would hold up what the worker has to do.
const PORTIONS: usize = 20;
const FALL: u8 = 3;
const RISE: u8 = 2;

/// How a backend's last checks came out.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    is_under_way: bool,
    is_down: bool,
    /// Checks in a row that say otherwise.
    against: u8,
}

impl Row {
    /// Whether it may be checked: the last check is over.
    fn begin(&mut self) -> bool {
        !std::mem::replace(&mut self.is_under_way, true)
    }

    /// Whether it is reachable now.
    fn note(&mut self, connected: bool) -> bool {
        self.is_under_way = false;
        if connected == self.is_down {
            self.against += 1;
            if self.against >= if self.is_down { RISE } else { FALL } {
                *self = Self { is_under_way: false, is_down: !self.is_down, against: 0 };
            }
        } else {
            self.against = 0;
        }
        !self.is_down
    }
}

/// Run by one worker, for all.
pub(super) async fn check(worker: Rc<Worker>) {
    let rows: Rc<RefCell<HashMap<u64, Row>>> = Rc::default();
    // The last that had its turn.
    let mut last = None;
    loop {
        let checked = worker.shared.routing.load().checked();
        let portion: Vec<(u64, Arc<Endpoint>)> =
            checked.after(last.as_ref()).take(checked.len().div_ceil(PORTIONS)).map(|(id, endpoint)| (*id, Arc::clone(endpoint))).collect();
        last = portion.last().map(|(id, _)| *id);
        let mut pause = EVERY;
        if !checked.is_empty() {
            pause = EVERY.mul_f64(portion.len() as f64 / checked.len() as f64);
        }
        if portion.is_empty() {
            // All have had their turn. Those that are gone are forgotten.
            rows.borrow_mut().retain(|id, _| checked.contains_key(id));
        }
        drop(checked);
        for (id, endpoint) in portion {
            if rows.borrow_mut().entry(id).or_default().begin() {
                tokio::task::spawn_local(check_one(Rc::clone(&worker), endpoint, Rc::clone(&rows)));
            }
        }
        sleep(pause).await;
    }
}

async fn check_one(worker: Rc<Worker>, endpoint: Arc<Endpoint>, rows: Rc<RefCell<HashMap<u64, Row>>>) {
    let wanted = Wanted { host: "", connect_time: PATIENCE, fresh: true, preface: None, private: true, once: false, streams: true };
    let connected = worker.upstreams.connect(&endpoint, &wanted).await.is_ok();
    // One that is checked no longer is well until somebody finds otherwise.
    if !worker.shared.routing.load().checked().contains_key(&endpoint.id) {
        rows.borrow_mut().remove(&endpoint.id);
        return;
    }
    let is_reachable = rows.borrow_mut().entry(endpoint.id).or_default().note(connected);
    if endpoint.health.checked(is_reachable) {
        tracing::info!(backend = ?endpoint.upstream, is_reachable, "a backend's check came out otherwise");
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
