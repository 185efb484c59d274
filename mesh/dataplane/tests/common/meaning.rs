//! What a namespace's tables and virtual servers mean, read without the data plane's own code.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use swarmesh_kernel::{
    ElementData, Family, VirtualId,
    fake::{FakeRule, FakeView},
};
use swarmesh_plan::{Policy, Scheduler};

use super::set;

pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// How a frontend picks, and from what, sorted.
pub type Picked = (String, Vec<Vec<u8>>);

pub(super) fn picked(policy: &Policy, targets: impl Iterator<Item = IpAddr>) -> Picked {
    let mut targets: Vec<Vec<u8>> = targets.map(octets).collect();
    targets.sort();
    if targets.is_empty() {
        return ("refuse".to_owned(), targets);
    }
    let scheduler = match policy.scheduler {
        Scheduler::Random => "random",
        Scheduler::SourceHash => "sh",
        _ => "rr",
    };
    let affinity = policy.affinity.map(|t| format!(" sticky{}", t.as_secs())).unwrap_or_default();
    (format!("{scheduler}{affinity}"), targets)
}

/// A virtual server that a frontend leads to.
#[derive(Clone, Debug, PartialEq)]
pub struct Virtual {
    pub scheduler: String,
    pub affinity: Option<Duration>,
    /// Real servers with a weight.
    pub serving: BTreeSet<IpAddr>,
}

impl Virtual {
    /// By family and key, what each frontend leads to; `None` is refused. Fails on what leads nowhere, and on virtual servers
    /// that nobody is led to or has been.
    pub fn of(view: &FakeView) -> BTreeMap<(bool, Vec<u8>), Option<Self>> {
        let mut servers: BTreeMap<(bool, u32), _> = BTreeMap::new();
        for (server, reals) in view.ipvs() {
            if let VirtualId::Mark { mark, v6 } = server.id
                && mark.get() >> 24 == 0x4d
            {
                servers.insert((v6, mark.get()), (server, reals));
            }
        }
        let mut fronts = BTreeMap::new();
        for (v6, marks, parked) in [(false, "marks4", "parked4"), (true, "marks6", "parked6")] {
            let read = |name| {
                let value = |data: Option<ElementData>| match data {
                    Some(ElementData::Value(bytes)) => u32::from_ne_bytes(bytes.try_into().unwrap()),
                    other => panic!("not a mark: {other:?}"),
                };
                view.elements(set(name)).into_iter().map(|e| (e.key, value(e.data))).collect::<BTreeMap<_, _>>()
            };
            for (key, mark) in read(marks) {
                let led_to =
                    (mark != 0x4d00_0000).then(|| servers.remove(&(v6, mark)).unwrap_or_else(|| panic!("{mark:#x} leads nowhere")));
                let virtual_server = led_to.map(|(server, reals)| Self {
                    scheduler: server.scheduler.name().to_owned(),
                    affinity: server.persistence.map(|p| p.timeout),
                    serving: reals.iter().filter(|r| r.weight > 0).map(|r| r.id.address).collect(),
                });
                fronts.insert((v6, key), virtual_server);
            }
            for (key, mark) in read(parked) {
                assert_eq!(fronts.get(&(v6, key.clone())), Some(&None), "{key:?} is parked and serves");
                assert!(servers.remove(&(v6, mark)).is_some(), "{mark:#x} is parked nowhere");
            }
        }
        assert!(servers.is_empty(), "nobody is led to {:?}", servers.keys());
        fronts
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Meaning {
    /// By family and key.
    pub fronts: BTreeMap<(bool, Vec<u8>), Picked>,
    pub plain: BTreeMap<&'static str, BTreeMap<Vec<u8>, Option<ElementData>>>,
    /// By chain, of both tables; without the chains that pick, whose numbers depend on the way.
    pub rules: BTreeMap<String, Vec<FakeRule>>,
    pub routing: Vec<String>,
    /// Whatever leads nowhere or that nothing leads to.
    pub strays: BTreeSet<String>,
}

impl Meaning {
    pub fn of(view: &FakeView) -> Self {
        let mut meaning =
            Self { fronts: BTreeMap::new(), plain: BTreeMap::new(), rules: BTreeMap::new(), routing: Vec::new(), strays: BTreeSet::new() };
        meaning.walk(view, false);
        meaning.walk(view, true);
        for name in ["port4", "port6", "near", "direct", "hidden", "published", "bound", "other4", "other6"] {
            let elements: BTreeMap<_, _> = view.elements(set(name)).into_iter().map(|e| (e.key, e.data)).collect();
            if !elements.is_empty() {
                meaning.plain.insert(name, elements);
            }
        }
        for family in [Family::Inet, Family::Netdev] {
            let chains = view.chains(family, "swarmesh").unwrap_or_default();
            // The balancer's chains may outlive it by the plane that stands in for it.
            let is_fixed = |c: &&String| !["pick", "was_off_", "was_on_", "dispatch"].iter().any(|start| c.starts_with(start));
            for chain in chains.iter().filter(is_fixed) {
                meaning.rules.insert(format!("{family} {chain}"), view.rules(family, "swarmesh", chain));
            }
        }
        meaning.routing = view.fwmark_rules().iter().map(|r| format!("{r:?}")).collect();
        for v6 in [false, true] {
            for table in [swarmesh_dataplane::RETURN_TABLE, swarmesh_dataplane::NEAR_TABLE] {
                meaning.routing.extend(view.route(v6, table).map(|r| format!("{r:?}")));
            }
            meaning.routing.extend(view.docker_user(v6).into_iter().flatten().map(|r| r.join(" ")));
        }
        meaning.routing.sort();
        meaning
    }

    fn walk(&mut self, view: &FakeView, v6: bool) {
        let names = if v6 {
            ["front6", "classes6", "slot6", "sticky6", "live6", "pick6_", "dispatch6"]
        } else {
            ["front4", "classes4", "slot4", "sticky4", "live4", "pick4_", "dispatch4"]
        };
        let read = |name| view.elements(set(name)).into_iter().map(|e| (e.key, e.data)).collect::<BTreeMap<_, _>>();
        let value = |data: &Option<ElementData>| match data {
            Some(ElementData::Value(bytes)) => bytes.clone(),
            other => panic!("not a value: {other:?}"),
        };
        let [fronts, classes, mut slots, mut sticky, mut live] =
            [read(names[0]), read(names[1]), read(names[2]), read(names[3]), read(names[4])];
        let (prefix, dispatch) = (names[5], names[6]);

        let chains = view.chains(Family::Inet, "swarmesh").unwrap_or_default();
        let picks: BTreeSet<String> = chains.iter().filter(|c| c.starts_with(prefix)).cloned().collect();
        let mut led_to = BTreeSet::new();
        let mut chain_of = BTreeMap::new();
        for (number, data) in &classes {
            let Some(ElementData::Goto(chain)) = data else { panic!("a class without a chain") };
            chain_of.insert(number.clone(), chain.clone());
            if chain == "refuse" && *number == vec![0; 4] {
                continue;
            }
            if !led_to.insert(chain.clone()) || !picks.contains(chain) {
                self.strays.insert(format!("class {number:?} to {chain}"));
            }
            let rules = view.rules(Family::Inet, "swarmesh", chain).len();
            if rules != if chain.contains("sticky") { 4 } else { 1 } {
                self.strays.insert(format!("{rules} rules in {chain}"));
            }
        }
        if chains.contains(&dispatch.to_owned()) && chain_of.get(&vec![0; 4]).map(String::as_str) != Some("refuse") {
            self.strays.insert(format!("{} does not know to refuse", names[1]));
        }
        self.strays.extend(picks.difference(&led_to).map(|c| format!("chain {c}")));

        for (key, data) in &fronts {
            let class = value(data)[4..].to_vec();
            let Some(chain) = chain_of.get(&class) else {
                self.strays.insert(format!("front {key:?} to class {class:?}"));
                continue;
            };
            if chain == "refuse" {
                self.fronts.insert((v6, key.clone()), ("refuse".to_owned(), Vec::new()));
                continue;
            }
            let parts: Vec<&str> = chain.strip_prefix(prefix).unwrap().split('_').collect();
            let affinity = parts.get(3);
            let mut targets = Vec::new();
            for index in 0..parts[1].parse::<u32>().unwrap() {
                let slot = [key.clone(), index.to_ne_bytes().to_vec()].concat();
                let found = if affinity.is_some() {
                    sticky.remove(&slot).map(|d| value(&d)[4..].to_vec())
                } else {
                    slots.remove(&slot).map(|d| value(&d))
                };
                // The node takes turns with the sandbox, whose slots are empty.
                let found = found.or_else(|| chains.contains(&"entrust".to_owned()).then(|| vec![0; 4]));
                let Some(target) = found else {
                    self.strays.insert(format!("no slot {index} of {key:?}"));
                    continue;
                };
                if affinity.is_some() && live.remove(&[key.clone(), target.clone()].concat()).is_none() {
                    self.strays.insert(format!("{target:?} of {key:?} is not live"));
                }
                targets.push(target);
            }
            targets.sort();
            let how = affinity.map_or_else(|| parts[0].to_owned(), |a| format!("{} {a}", parts[0]));
            self.fronts.insert((v6, key.clone()), (how, targets));
        }
        for (name, left) in [("slot", slots), ("sticky", sticky), ("live", live)] {
            self.strays.extend(left.keys().map(|key| format!("{name}{prefix} {key:?}")));
        }
    }
}
