//! How upstream servers have behaved: who is worth waiting for, and for how long.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
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

/// What is remembered of each server. Written by the forwarder's thread; whoever explains its choices reads along.
#[derive(Debug, Default)]
pub struct Health(Mutex<HashMap<Upstream, State>>);

#[derive(Debug, Default)]
struct State {
    sick: Option<Sick>,
    conduct: Conduct,
}

#[derive(Debug)]
struct Sick {
    until: Instant,
    pause: Duration,
}

/// How a server has behaved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conduct {
    pub answers: u64,
    pub failures: u64,
    /// Smoothed round trip time (RFC 6298, section 2).
    pub time: Option<Duration>,
    pub last_answer: Option<Instant>,
    pub last_failure: Option<Instant>,
    /// It did not answer, and is asked last until then; after that, it is asked and not waited for until it answers.
    pub rests_until: Option<Instant>,
    /// When its answer was last the one that a client got, and why this server's.
    pub chosen: Option<(Instant, Choice)>,
}

/// Why one of several servers' answers is the one that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// It is the first in order.
    First,
    /// Those before it had had their time, and it was asked along.
    Faster,
    /// Those before it were asked, and had nothing to say.
    OthersFailed,
    /// Those before it did not answer lately.
    OthersRest,
}

impl Health {
    /// The order to ask in: as configured, those that are sick last.
    pub fn order(&self, upstreams: &[Upstream], now: Instant) -> Vec<Upstream> {
        let states = self.lock();
        // True also while it is not known whether it has recovered: it is then asked, and nobody waits for it.
        let is_sick = |u: &Upstream| states.get(u).and_then(|s| s.sick.as_ref()).is_some_and(|sick| now < sick.until);
        let (sick, well): (Vec<_>, Vec<_>) = upstreams.iter().cloned().partition(is_sick);
        well.into_iter().chain(sick).collect()
    }

    /// How long to wait for this one before the next is asked too.
    pub fn patience(&self, upstream: &Upstream) -> Duration {
        if upstream.is_engine() {
            return ENGINE;
        }
        match self.lock().get(upstream) {
            // Its time of proof has come; whoever is next is asked along.
            Some(State { sick: Some(_), .. }) => Duration::ZERO,
            Some(State { conduct: Conduct { time: Some(time), .. }, .. }) => (*time * 3).clamp(LEAST, MOST),
            _ => UNKNOWN,
        }
    }

    pub fn conduct(&self, upstream: &Upstream) -> Conduct {
        let states = self.lock();
        let Some(state) = states.get(upstream) else { return Conduct::default() };
        Conduct { rests_until: state.sick.as_ref().map(|sick| sick.until), ..state.conduct.clone() }
    }

    pub(super) fn answered(&self, upstream: &Upstream, took: Duration, now: Instant) {
        self.change(upstream, |state| {
            state.sick = None;
            let conduct = &mut state.conduct;
            conduct.time = Some(conduct.time.map_or(took, |time| (time * 7 + took) / 8));
            conduct.answers += 1;
            conduct.last_answer = Some(now);
        });
    }

    pub(super) fn chosen(&self, upstream: &Upstream, why: Choice, now: Instant) {
        self.change(upstream, |state| state.conduct.chosen = Some((now, why)));
    }

    /// It had its time, and others answered, or nobody did.
    pub(super) fn failed(&self, upstream: &Upstream, now: Instant) {
        self.change(upstream, |state| {
            state.conduct.failures += 1;
            state.conduct.last_failure = Some(now);
            // Where the engine is slow, it asks others; what it knows itself it says at once, and nobody else knows it.
            // And of others, several questions that were on their way fail once.
            if upstream.is_engine() || state.sick.as_ref().is_some_and(|sick| now < sick.until) {
                return;
            }
            let pause = state.sick.as_ref().map_or(FIRST_PAUSE, |sick| (sick.pause * 2).min(LAST_PAUSE));
            state.sick = Some(Sick { until: now + pause, pause });
        });
    }

    fn change(&self, upstream: &Upstream, change: impl FnOnce(&mut State)) {
        let mut states = self.lock();
        if states.len() >= MOST_SERVERS && !states.contains_key(upstream) {
            states.clear();
        }
        change(states.entry(upstream.clone()).or_default());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Upstream, State>> {
        // Nobody panics while holding it, and a memory of servers is a help and no more.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        let health = Health::default();
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
        health.answered(&first, Duration::from_millis(30), later);
        assert_eq!(health.order(&all, later), all);
        assert_eq!(health.patience(&first), Duration::from_millis(90));
        let conduct = health.conduct(&first);
        assert_eq!((conduct.answers, conduct.failures, conduct.rests_until), (1, 3, None));
        assert_eq!((conduct.last_answer, conduct.last_failure), (Some(later), Some(later)));
    }
}
