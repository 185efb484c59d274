//! The `swarmesh.*` labels of a service, read once and never seen again as text.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use ipnet::IpNet;
use serde::Serialize;

const DEFAULT_DRAIN: Duration = Duration::from_secs(30);
/// How long a client stays with its task after its last new connection; kube-proxy's default, which users know.
const DEFAULT_AFFINITY: Duration = Duration::from_secs(10_800);
const LONGEST: u64 = 7 * 24 * 3600;

/// How one service wants its traffic handled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// `None` leaves the choice to `--takeover`.
    pub enable: Option<bool>,
    pub scheduler: Scheduler,
    /// Clients stay with one task for this long after their last new connection.
    pub affinity: Option<Duration>,
    pub source: SourceMode,
    /// Local addresses on which the published ports listen; empty means all.
    pub bind: Vec<IpNet>,
    /// How long a leaving task keeps its established connections.
    pub drain: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            enable: None,
            scheduler: Scheduler::RoundRobin,
            affinity: None,
            source: SourceMode::Keep,
            bind: Vec::new(),
            drain: DEFAULT_DRAIN,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheduler {
    #[default]
    #[serde(rename = "rr")]
    RoundRobin,
    Random,
    /// All tasks of a service weigh the same, so this is round robin by another name; IPVS knows it apart.
    #[serde(rename = "wrr")]
    WeightedRoundRobin,
    #[serde(rename = "lc")]
    LeastConnections,
    #[serde(rename = "wlc")]
    WeightedLeastConnections,
    Maglev,
    /// The client's address alone decides.
    #[serde(rename = "sh")]
    SourceHash,
}

/// What a published port's task sees as the client, and which tasks an entry node uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceMode {
    /// Any task, which sees the client's own address.
    #[default]
    Keep,
    /// Only tasks of the entry node; the client's own address.
    Local,
    /// Any task, which sees the entry node's ingress address.
    Snat,
}

impl Policy {
    /// Reads the labels. A bad one keeps its default and is returned as (label, what is wrong with it).
    pub fn from_labels(labels: &BTreeMap<String, String>) -> (Self, Vec<(String, String)>) {
        let mut policy = Self::default();
        let mut wrong = Vec::new();
        for (label, value) in labels.range("swarmesh.".to_owned()..) {
            let Some(name) = label.strip_prefix("swarmesh.") else { break };
            if let Err(message) = policy.set(name, value.trim()) {
                wrong.push((label.clone(), message));
            }
        }
        (policy, wrong)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "enable" => self.enable = Some(boolean(value)?),
            "scheduler" => self.scheduler = scheduler(value)?,
            "affinity" => self.affinity = affinity(value)?,
            "source" => {
                self.source = match value {
                    "keep" => SourceMode::Keep,
                    "local" => SourceMode::Local,
                    "snat" => SourceMode::Snat,
                    _ => return Err(format!("{value:?} is not one of keep, local, snat; keep is used")),
                }
            }
            "bind" => self.bind = addresses(value)?,
            "drain" => self.drain = seconds(value, 0)?,
            // A route's, read and judged by its dialect.
            _ if name.starts_with("http.") => {}
            _ => return Err("is not a label that Swarmesh knows; it has no effect".to_owned()),
        }
        Ok(())
    }
}

fn boolean(value: &str) -> Result<bool, String> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(format!("{value:?} is neither true nor false")),
    }
}

fn scheduler(value: &str) -> Result<Scheduler, String> {
    Ok(match value {
        "rr" => Scheduler::RoundRobin,
        "random" => Scheduler::Random,
        "wrr" => Scheduler::WeightedRoundRobin,
        "lc" => Scheduler::LeastConnections,
        "wlc" => Scheduler::WeightedLeastConnections,
        "maglev" => Scheduler::Maglev,
        "sh" => Scheduler::SourceHash,
        _ => return Err(format!("{value:?} is not one of rr, random, wrr, lc, wlc, maglev, sh; rr is used")),
    })
}

fn affinity(value: &str) -> Result<Option<Duration>, String> {
    match value.split_once(':') {
        None if value == "none" => Ok(None),
        None if value == "client-ip" => Ok(Some(DEFAULT_AFFINITY)),
        Some(("client-ip", time)) => seconds(time, 1).map(Some),
        _ => Err(format!("{value:?} is not none, client-ip or client-ip:SECONDS; none is used")),
    }
}

fn seconds(value: &str, least: u64) -> Result<Duration, String> {
    match value.parse::<u64>() {
        Ok(n) if (least..=LONGEST).contains(&n) => Ok(Duration::from_secs(n)),
        _ => Err(format!("{value:?} is not a number of seconds from {least} to {LONGEST}")),
    }
}

fn addresses(value: &str) -> Result<Vec<IpNet>, String> {
    let mut nets = Vec::new();
    for part in value.split([',', ' ']).filter(|p| !p.is_empty()) {
        let net = part.parse::<IpNet>().or_else(|_| part.parse::<IpAddr>().map(IpNet::from));
        nets.push(net.map_err(|_| format!("{part:?} is not an address or a CIDR; nothing is published until this is mended"))?.trunc());
    }
    if nets.is_empty() {
        return Err("names no address; nothing is published until this is mended".to_owned());
    }
    nets.sort();
    nets.dedup();
    Ok(nets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> (Policy, Vec<(String, String)>) {
        Policy::from_labels(&pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn every_label_is_read() {
        let (policy, wrong) = read(&[
            ("com.example.other", "x"),
            ("swarmesh.enable", "false"),
            ("swarmesh.scheduler", "sh"),
            ("swarmesh.affinity", "client-ip:60"),
            ("swarmesh.source", "local"),
            ("swarmesh.bind", "127.0.0.1, 192.0.2.0/24,::1"),
            ("swarmesh.drain", "5"),
            ("swarmesh.http.web.host", "example.com"),
        ]);
        assert_eq!(wrong, []);
        assert_eq!(policy.enable, Some(false));
        assert_eq!(policy.scheduler, Scheduler::SourceHash);
        assert_eq!(policy.affinity, Some(Duration::from_secs(60)));
        assert_eq!(policy.source, SourceMode::Local);
        assert_eq!(policy.bind, ["127.0.0.1/32", "192.0.2.0/24", "::1/128"].map(|n| n.parse::<IpNet>().unwrap()));
        assert_eq!(policy.drain, Duration::from_secs(5));
    }

    #[test]
    fn a_bad_label_keeps_its_default_and_is_named() {
        for (label, value) in [
            ("swarmesh.enable", "yes"),
            ("swarmesh.scheduler", "fastest"),
            ("swarmesh.affinity", "cookie"),
            ("swarmesh.affinity", "client-ip:0"),
            ("swarmesh.source", ""),
            ("swarmesh.bind", "eth0"),
            ("swarmesh.bind", " "),
            ("swarmesh.drain", "-1"),
            ("swarmesh.drain", "99999999999999999999"),
            ("swarmesh.shceduler", "rr"),
        ] {
            let (policy, wrong) = read(&[(label, value), ("swarmesh.drain.", "1")]);
            assert_eq!(policy, Policy::default(), "{label}={value}");
            assert_eq!(wrong.len(), 2, "{label}={value}");
            assert!(wrong.iter().any(|(l, _)| l == label));
        }
    }
}
