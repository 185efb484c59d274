//! Who is asked about other people's names: in which order, who answered last and why, and how each has behaved.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use swarmesh_dns::forward::{Choice, Conduct, Health, Origin, Upstream};

use super::{Story, View};

/// A server as the agent has come to know it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UpstreamRow {
    pub server: String,
    /// From where it is asked, and who said so.
    pub from: String,
    pub answers: u64,
    /// Questions that it did not answer in time.
    pub failures: u64,
    /// What an answer takes, smoothed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_answer_seconds_ago: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure_seconds_ago: Option<f64>,
    /// For so long it is asked after all others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rests_seconds: Option<f64>,
    /// It failed, and has not answered since: it is asked, and the next one with it.
    #[serde(default)]
    pub on_trial: bool,
}

impl UpstreamRow {
    fn new(upstream: &Upstream, conduct: &Conduct, now: Instant) -> Self {
        let ago = |at: Instant| tenths(now.saturating_duration_since(at));
        let rest = conduct.rests_until.map(|until| until.saturating_duration_since(now));
        Self {
            server: address(upstream),
            from: from(upstream).to_owned(),
            answers: conduct.answers,
            failures: conduct.failures,
            latency_ms: conduct.time.map(|time| tenths(time * 1000)),
            last_answer_seconds_ago: conduct.last_answer.map(ago),
            last_failure_seconds_ago: conduct.last_failure.map(ago),
            rests_seconds: rest.filter(|rest| !rest.is_zero()).map(tenths),
            on_trial: rest.is_some_and(|rest| rest.is_zero()),
        }
    }

    /// For people.
    pub fn words(&self) -> String {
        let mut words = vec![format!("{} from {}", self.server, self.from)];
        if self.answers + self.failures == 0 {
            words.push("not asked yet".to_owned());
        }
        let ago = |seconds: Option<f64>| seconds.map_or_else(String::new, |seconds| format!(", the last one {seconds:.1} s ago"));
        if self.answers > 0 {
            let took = self.latency_ms.map_or_else(String::new, |ms| format!(" in {ms:.1} ms"));
            words.push(format!("{} answered{took}{}", self.answers, ago(self.last_answer_seconds_ago)));
        }
        if self.failures > 0 {
            words.push(format!("{} not answered{}", self.failures, ago(self.last_failure_seconds_ago)));
        }
        if let Some(rests) = self.rests_seconds {
            words.push(format!("rests for {rests:.1} s"));
        }
        if self.on_trial {
            words.push("on trial: the next one is asked along".to_owned());
        }
        words.join("; ")
    }
}

fn tenths(time: Duration) -> f64 {
    (time.as_secs_f64() * 10.0).round() / 10.0
}

fn address(upstream: &Upstream) -> String {
    match upstream.server.port() {
        53 => upstream.server.ip().to_string(),
        _ => upstream.server.to_string(),
    }
}

const fn from(upstream: &Upstream) -> &'static str {
    match upstream.origin {
        Origin::Host => "the host, by its resolv.conf",
        Origin::Sandbox(_) => "the container's own namespace, as its creator said",
        Origin::Engine(_) => "its own namespace: the engine's resolver, which knows plain containers of other nodes",
    }
}

/// In one line each, as configured.
pub(super) fn listed(upstreams: &[Upstream]) -> String {
    let one = |upstream: &Upstream| format!("{} from {}", address(upstream), from(upstream));
    upstreams.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// Tells who would be asked first and who answered last, with what is known of each.
pub(super) fn tell(view: &View, story: &mut Story, upstreams: &[Upstream]) {
    // Nobody was ever asked by a plan from a file.
    let Some(dns) = &view.dns else { return };
    let (health, now) = (&dns.upstreams, Instant::now());
    let conducts: Vec<(&Upstream, Conduct)> = upstreams.iter().map(|upstream| (upstream, health.conduct(upstream))).collect();
    let what = format!("{}; {}", next(health, upstreams, now), last(&conducts, now));
    story.hop("upstream", what).upstreams = conducts.iter().map(|(upstream, conduct)| UpstreamRow::new(upstream, conduct, now)).collect();
}

fn next(health: &Health, upstreams: &[Upstream], now: Instant) -> String {
    let order = health.order(upstreams, now);
    let Some(first) = order.first() else { return "nobody would be asked".to_owned() };
    let why = if upstreams.first() == Some(first) {
        "the first in order"
    } else {
        "the first in order that does not rest: those before it did not answer"
    };
    let along = match (order.get(1), health.patience(first)) {
        (None, _) => String::new(),
        (Some(second), Duration::ZERO) => format!(", and {} at the same time", address(second)),
        (Some(second), patience) => format!(", and {} too if there is no answer within {} ms", address(second), patience.as_millis()),
    };
    format!("now {} would be asked, {why}{along}", address(first))
}

fn last(conducts: &[(&Upstream, Conduct)], now: Instant) -> String {
    let chosen = conducts.iter().filter_map(|(upstream, conduct)| Some((upstream, conduct.chosen?)));
    let Some((upstream, (at, why))) = chosen.max_by_key(|(_, (at, _))| *at) else {
        return "none of them has answered anything yet".to_owned();
    };
    let why = match why {
        Choice::First => "it is the first in order",
        Choice::Faster => "it was asked along with those before it, and was faster",
        Choice::OthersFailed => "those before it were asked and had no answer",
        Choice::OthersRest => "those before it rested, since they had not answered",
    };
    let ago = tenths(now.saturating_duration_since(at));
    format!("the last answer was that of {}, {ago:.1} s ago: {why}", address(upstream))
}

#[cfg(test)]
mod tests;
