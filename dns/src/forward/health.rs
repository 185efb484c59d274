//! How upstream servers have behaved: who is worth waiting for, and for how long.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::Upstream;

/// How long a server that is not known yet has the question for itself.
const UNKNOWN: Duration = Duration::from_millis(150);
/// The engine's resolver answers from memory or not at all.
const ENGINE: Duration = Duration::from_millis(50);
const LEAST: Duration = Duration::from_millis(20);
const MOST: Duration = Duration::from_millis(250);
/// A server that did not answer is asked last for so long, twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// Configurations come and go; more servers than this are not remembered.
const MOST_SERVERS: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Health(HashMap<Upstream, State>);

#[derive(Debug, Default)]
struct State {
    /// Smoothed round trip time (RFC 6298, section 2).
    time: Option<Duration>,
    sick: Option<Sick>,
}

#[derive(Debug)]
struct Sick {
    until: Instant,
    pause: Duration,
}

impl Health {
    /// The order to ask in: as configured, those that are sick last.
    pub(super) fn order(&self, upstreams: &[Upstream], now: Instant) -> Vec<Upstream> {
        let (sick, well): (Vec<_>, Vec<_>) = upstreams.iter().cloned().partition(|u| self.is_sick(u, now));
        well.into_iter().chain(sick).collect()
    }

    /// True also while it is not known whether it has recovered: it is then asked, and nobody waits for it.
    fn is_sick(&self, upstream: &Upstream, now: Instant) -> bool {
        self.0.get(upstream).and_then(|s| s.sick.as_ref()).is_some_and(|sick| now < sick.until)
    }

    /// How long to wait for this one before the next is asked too.
    pub(super) fn patience(&self, upstream: &Upstream) -> Duration {
        if upstream.is_engine() {
            return ENGINE;
        }
        match self.0.get(upstream) {
            // Its time of proof has come; whoever is next is asked along.
            Some(State { sick: Some(_), .. }) => Duration::ZERO,
            Some(State { time: Some(time), .. }) => (*time * 3).clamp(LEAST, MOST),
            _ => UNKNOWN,
        }
    }

    pub(super) fn answered(&mut self, upstream: &Upstream, took: Duration) {
        let state = self.state(upstream);
        state.sick = None;
        state.time = Some(state.time.map_or(took, |time| (time * 7 + took) / 8));
    }

    /// It had its time, and others answered, or nobody did.
    pub(super) fn failed(&mut self, upstream: &Upstream, now: Instant) {
        // Where it is slow, it asks others; what it knows itself it says at once, and nobody else knows it.
        if upstream.is_engine() {
            return;
        }
        let state = self.state(upstream);
        // Several questions that were on their way fail once.
        if state.sick.as_ref().is_some_and(|sick| now < sick.until) {
            return;
        }
        let pause = state.sick.as_ref().map_or(FIRST_PAUSE, |sick| (sick.pause * 2).min(LAST_PAUSE));
        state.sick = Some(Sick { until: now + pause, pause });
    }

    fn state(&mut self, upstream: &Upstream) -> &mut State {
        if self.0.len() >= MOST_SERVERS && !self.0.contains_key(upstream) {
            self.0.clear();
        }
        self.0.entry(upstream.clone()).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::Origin;

    #[test]
    fn who_fails_is_asked_last_until_it_may_prove_itself() {
        let server = |host| Upstream { server: ([127, 0, 0, host], 53).into(), origin: Origin::Host };
        let (first, second) = (server(1), server(2));
        let all = [first.clone(), second.clone()];
        let mut health = Health::default();
        let start = Instant::now();
        assert_eq!(health.patience(&first), UNKNOWN);
        health.failed(&first, start);
        health.failed(&first, start);
        assert_eq!(health.order(&all, start), [second.clone(), first.clone()]);
        let later = start + FIRST_PAUSE;
        assert_eq!(health.order(&all, later), all);
        assert_eq!(health.patience(&first), Duration::ZERO);
        health.failed(&first, later);
        assert_eq!(health.order(&all, later + FIRST_PAUSE), [second, first.clone()]);
        health.answered(&first, Duration::from_millis(30));
        assert_eq!(health.order(&all, later), all);
        assert_eq!(health.patience(&first), Duration::from_millis(90));
    }
}
