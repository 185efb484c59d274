//! What a probe may see. Which of these it was is decided on types; words come last.

use std::{collections::BTreeMap, fmt, net::IpAddr, time::Duration};

/// How one attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// A task's word: which one it is, and whom it saw.
    Answered {
        task: String,
        caller: IpAddr,
    },
    /// Somebody who is no task.
    Other,
    Refused,
    Reset,
    Unreachable,
    /// Connected, and then nothing.
    Mute,
    /// Nothing at all.
    Silent,
}

impl Reach {
    pub(super) const fn answered(&self) -> bool {
        matches!(self, Self::Answered { .. })
    }

    pub(super) fn task(&self) -> Option<&str> {
        match self {
            Self::Answered { task, .. } => Some(task),
            _ => None,
        }
    }

    const fn word(&self) -> &'static str {
        match self {
            Self::Answered { .. } => "answered",
            Self::Other => "answered by a program that is no task",
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Unreachable => "unreachable",
            Self::Mute => "connected, never answered",
            Self::Silent => "no answer",
        }
    }
}

/// Whom a task takes for its caller.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Caller {
    /// As it is.
    Itself,
    /// The node by which it came, by its address on the LAN.
    Node,
    /// The node's ingress sandbox.
    IngressSandbox,
    /// The sandbox in which Docker balances a network.
    NetworkSandbox,
    Unknown(IpAddr),
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Itself => f.write_str("its own address"),
            Self::Node => f.write_str("its node's address"),
            Self::IngressSandbox => f.write_str("the ingress sandbox"),
            Self::NetworkSandbox => f.write_str("the network's balancing sandbox"),
            Self::Unknown(address) => write!(f, "{address}"),
        }
    }
}

/// What a probe saw.
#[derive(Clone, Debug)]
pub(super) enum Saw {
    Reach(Reach),
    /// Several attempts.
    Spread(Vec<Reach>),
    Callers(Vec<Caller>),
    /// New connections at a steady rate, and how long it took from the first to the last failure.
    Load {
        attempted: usize,
        failed: BTreeMap<&'static str, usize>,
        over: Duration,
    },
    After(Duration),
    NotWithin(Duration),
    /// The last time of something, counted from a cause, and when the cause was over.
    Last {
        last: Option<Duration>,
        end: Duration,
    },
    NoFailure,
    /// Of an ICMP echo.
    Echo,
    /// Where a name leads.
    Name {
        vip: bool,
        tasks: usize,
        others: usize,
    },
    NoName,
    Same,
    Changed,
    /// The engine or its client said no.
    Rejected,
    Accepted,
    /// The probe itself came to nothing.
    NotObserved(String),
}

impl Saw {
    pub(super) fn load(samples: &[super::sampler::Sample]) -> Self {
        let mut failed = BTreeMap::new();
        let mut times = Vec::new();
        for sample in samples.iter().filter(|s| !s.reach.answered()) {
            *failed.entry(sample.reach.word()).or_insert(0) += 1;
            times.push(sample.at);
        }
        let over = times.iter().max().zip(times.iter().min()).map_or(Duration::ZERO, |(last, first)| *last - *first);
        Self::Load { attempted: samples.len(), failed, over }
    }
}

impl fmt::Display for Saw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reach(reach) => f.write_str(reach.word()),
            Self::Spread(reaches) => spread(f, reaches),
            Self::Callers(callers) => {
                let mut all = callers.clone();
                all.sort();
                all.dedup();
                f.write_str(&all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or "))
            }
            Self::Load { attempted, failed, .. } if failed.is_empty() => write!(f, "0 of {attempted} failed"),
            Self::Load { attempted, failed, over } => {
                let kinds: Vec<String> = failed.iter().map(|(word, count)| format!("{count} {word}")).collect();
                let sum: usize = failed.values().sum();
                write!(f, "**{sum}** of {attempted} failed over {:.1} s ({})", over.as_secs_f32(), kinds.join(", "))
            }
            Self::After(time) => write!(f, "after {:.1} s", time.as_secs_f32()),
            Self::NotWithin(time) => write!(f, "not within {:.0} s", time.as_secs_f32()),
            Self::Last { last: None, end } => write!(f, "none in {:.1} s", end.as_secs_f32()),
            Self::Last { last: Some(last), end } => write!(f, "until {:.1} s of {:.1} s", last.as_secs_f32(), end.as_secs_f32()),
            Self::Name { vip, tasks, others } => {
                let mut words = Vec::new();
                if *vip {
                    words.push("the VIP".to_owned());
                }
                if *tasks > 0 {
                    words.push(format!("{tasks} of its tasks"));
                }
                if *others > 0 {
                    words.push(format!("{others} of no task"));
                }
                f.write_str(&words.join(" and "))
            }
            Self::NoFailure => f.write_str("none failed"),
            Self::Echo => f.write_str("answered"),
            Self::NoName => f.write_str("no such name"),
            Self::Same => f.write_str("the same"),
            Self::Changed => f.write_str("another"),
            Self::Rejected => f.write_str("rejected"),
            Self::Accepted => f.write_str("accepted"),
            Self::NotObserved(why) => write!(f, "not observed: {why}"),
        }
    }
}

fn spread(f: &mut fmt::Formatter<'_>, reaches: &[Reach]) -> fmt::Result {
    let mut tasks: BTreeMap<&str, usize> = BTreeMap::new();
    let mut others: BTreeMap<&str, usize> = BTreeMap::new();
    for reach in reaches {
        match reach.task() {
            Some(task) => *tasks.entry(task).or_default() += 1,
            None => *others.entry(reach.word()).or_default() += 1,
        }
    }
    let mut words = Vec::new();
    if !tasks.is_empty() {
        let shares: Vec<String> = tasks.values().map(ToString::to_string).collect();
        words.push(format!("{} tasks answered, {}", tasks.len(), shares.join("+")));
    }
    words.extend(others.iter().map(|(word, count)| format!("{count} of {} {word}", reaches.len())));
    f.write_str(&words.join("; "))
}

/// One line of the table.
#[derive(Clone, Debug)]
pub(super) struct Fact {
    pub(super) row: &'static str,
    pub(super) what: String,
    pub(super) saw: Saw,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by(task: &str) -> Reach {
        Reach::Answered { task: task.to_owned(), caller: [192, 0, 2, 101].into() }
    }

    #[test]
    fn a_spread_says_shares_and_failures() {
        let saw = Saw::Spread(vec![by("a"), by("b"), by("a"), Reach::Silent]);
        assert_eq!(saw.to_string(), "2 tasks answered, 2+1; 1 of 4 no answer");
        assert_eq!(Saw::Spread(vec![Reach::Refused]).to_string(), "1 of 1 refused");
    }

    #[test]
    fn equal_callers_are_said_once() {
        let saw = Saw::Callers(vec![Caller::IngressSandbox, Caller::Itself, Caller::Itself]);
        assert_eq!(saw.to_string(), "its own address or the ingress sandbox");
    }
}
