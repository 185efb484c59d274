//! What is true of each name, version by version.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hickory_proto::rr::RecordType;
use swarmesh_model::{Delta, Snapshot};

use crate::world::{asker, network, node, service, task};

/// Of each, its own name, `tasks.` before it and its tasks' names are known: more than 10,000 names.
const SERVICES: usize = 4000;
/// Those that change, and are asked for, most of the time.
const HOT: usize = 150;
const MOST_TASKS: usize = 4;

/// What an answer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// Nothing, where there is none of the type.
    Known(BTreeSet<String>),
    /// NXDOMAIN by the server upstream.
    Unknown,
    Other(String),
}

#[derive(Clone, Debug)]
pub(crate) struct Question {
    pub(crate) name: String,
    pub(crate) kind: RecordType,
    about: About,
}

#[derive(Clone, Debug)]
enum About {
    /// By name, or with `tasks.` before it, which for services without a VIP is the same.
    Addresses(usize),
    /// The name of one of its addresses.
    Address(usize, String),
    /// A type that it has nothing of.
    Nothing(usize),
    /// A name of a network that this asker is not always in.
    Membership(usize),
}

/// A service: `None` while it is not there, else the addresses that its name leads to.
type State = Option<BTreeSet<String>>;

pub(crate) struct Truth {
    services: Vec<Mutex<History<State>>>,
    members: Vec<Mutex<History<bool>>>,
    writer: Mutex<Writer>,
}

/// States from their versions on, the newest last.
struct History<S>(Vec<(u64, S)>);

impl<S: Clone> History<S> {
    fn now(&self) -> &S {
        // It begins with one.
        &self.0[self.0.len() - 1].1
    }

    fn between(&self, from: u64, to: u64) -> Vec<S> {
        let before = self.0.iter().rposition(|(version, _)| *version <= from).unwrap_or(0);
        self.0[before..].iter().filter(|(version, _)| *version <= to).map(|(_, state)| state.clone()).collect()
    }
}

struct Writer {
    seed: u64,
    last_address: u32,
    /// Of each service, its tasks' ids and addresses.
    tasks: Vec<BTreeMap<String, IpAddr>>,
}

impl Writer {
    /// Never the same twice, so that no old answer looks like a new one.
    fn address(&mut self) -> IpAddr {
        self.last_address += 1;
        IpAddr::from((0x0a80_0000 + self.last_address).to_be_bytes())
    }
}

pub(crate) fn random(seed: &mut u64, below: usize) -> usize {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    (*seed >> 20) as usize % below
}

fn pick(seed: &mut u64) -> usize {
    if random(seed, 5) > 0 { random(seed, HOT) } else { random(seed, SERVICES) }
}

const fn has_vip(number: usize) -> bool {
    number.is_multiple_of(2)
}

fn name(number: usize) -> String {
    format!("s{number}")
}

fn texts<'a>(addresses: impl IntoIterator<Item = &'a IpAddr>) -> BTreeSet<String> {
    addresses.into_iter().map(ToString::to_string).collect()
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Truth {
    /// And the snapshot that it begins with.
    pub(crate) fn new(askers: usize) -> (Self, Snapshot) {
        let mut snapshot = Snapshot { version: 1, ..Snapshot::default() };
        snapshot.insert_node(node());
        snapshot.insert_network(network("front", false));
        snapshot.insert_network(network("back", false));
        snapshot.insert_service(service("rear", "back", Some(IpAddr::from([10, 2, 0, 1]))));
        snapshot.insert_task(task("rear.1", Some("rear"), "back", IpAddr::from([10, 2, 0, 2])));
        for number in 0..askers {
            snapshot.insert_task(asker(number, &["front"]));
        }
        let mut writer = Writer { seed: 4711, last_address: 0, tasks: vec![BTreeMap::new(); SERVICES] };
        let mut services = Vec::new();
        for number in 0..SERVICES {
            let delta = writer.make(number, 1);
            let state = delta.1;
            delta.0.services.into_values().flatten().for_each(|s| snapshot.insert_service((*s).clone()));
            delta.0.tasks.into_values().flatten().for_each(|t| snapshot.insert_task((*t).clone()));
            services.push(Mutex::new(History(vec![(1, state)])));
        }
        let members = (0..askers).map(|_| Mutex::new(History(vec![(1, false)]))).collect();
        (Self { services, members, writer: Mutex::new(writer) }, snapshot)
    }

    /// The next change. It counts as possible from now on.
    pub(crate) fn next(&self, version: u64) -> Delta {
        let mut writer = locked(&self.writer);
        if random(&mut writer.seed, 100) == 0 {
            let number = random(&mut writer.seed, self.members.len());
            let mut history = locked(&self.members[number]);
            let is_member = !history.now();
            history.0.push((version, is_member));
            let networks = if is_member { &["front", "back"][..] } else { &["front"] };
            let task = asker(number, networks);
            return Delta { version, tasks: [(task.id.clone(), Some(Arc::new(task)))].into(), ..Delta::default() };
        }
        let number = pick(&mut writer.seed);
        let mut history = locked(&self.services[number]);
        let (delta, state) = writer.change(number, version, history.now());
        history.0.push((version, state));
        delta
    }

    pub(crate) fn question(&self, asker: usize, seed: &mut u64) -> Question {
        let number = pick(seed);
        match random(seed, 8) {
            0 => Question { name: "rear".to_owned(), kind: RecordType::A, about: About::Membership(asker) },
            1 => Question { name: name(number), kind: RecordType::AAAA, about: About::Nothing(number) },
            2 if has_vip(number) => self.reverse(number, seed),
            3 if !has_vip(number) => {
                Question { name: format!("tasks.{}", name(number)), kind: RecordType::A, about: About::Addresses(number) }
            }
            _ => Question { name: name(number), kind: RecordType::A, about: About::Addresses(number) },
        }
    }

    /// One of the addresses that it has or had lately.
    fn reverse(&self, number: usize, seed: &mut u64) -> Question {
        let history = locked(&self.services[number]);
        let lately: Vec<&String> = history.0.iter().rev().take(3).filter_map(|(_, state)| state.as_ref()).flatten().collect();
        let Some(address) = lately.get(random(seed, lately.len().max(1))).map(|a| (*a).clone()) else {
            return Question { name: name(number), kind: RecordType::A, about: About::Addresses(number) };
        };
        let octets: Vec<&str> = address.split('.').rev().collect();
        Question { name: format!("{}.in-addr.arpa", octets.join(".")), kind: RecordType::PTR, about: About::Address(number, address) }
    }

    /// One question about everything that there is.
    pub(crate) fn everything(&self, asker: usize) -> impl Iterator<Item = Question> {
        let services = (0..SERVICES).map(|number| Question { name: name(number), kind: RecordType::A, about: About::Addresses(number) });
        services.chain([Question { name: "rear".to_owned(), kind: RecordType::A, about: About::Membership(asker) }])
    }

    /// All that was true in some version from `from` to `to`, each once.
    pub(crate) fn between(&self, question: &Question, from: u64, to: u64) -> Vec<Said> {
        let of = |number: usize, said: &dyn Fn(BTreeSet<String>) -> Said| -> Vec<Said> {
            let states = locked(&self.services[number]).between(from, to);
            states.into_iter().map(|state| state.map_or(Said::Unknown, said)).collect()
        };
        let mut all = match &question.about {
            About::Addresses(number) => of(*number, &Said::Known),
            About::Nothing(number) => of(*number, &|_| Said::Known(BTreeSet::new())),
            About::Address(number, address) => of(*number, &|addresses| {
                if addresses.contains(address) { Said::Known([format!("{}.front.", name(*number))].into()) } else { Said::Unknown }
            }),
            About::Membership(asker) => {
                let states = locked(&self.members[*asker]).between(from, to);
                let said = |member| if member { Said::Known(["10.2.0.1".to_owned()].into()) } else { Said::Unknown };
                states.into_iter().map(said).collect()
            }
        };
        let mut once: Vec<Said> = Vec::new();
        all.retain(|said| {
            !once.contains(said) && {
                once.push(said.clone());
                true
            }
        });
        all
    }
}

impl Writer {
    /// A service that is not there, with what belongs to it.
    fn make(&mut self, number: usize, version: u64) -> (Delta, State) {
        let mut delta = Delta { version, ..Delta::default() };
        let vip = has_vip(number).then(|| self.address());
        delta.services.insert(name(number).as_str().into(), Some(Arc::new(service(&name(number), "front", vip))));
        let count = if has_vip(number) { 1 } else { random(&mut self.seed, MOST_TASKS + 1) };
        for _ in 0..count {
            self.add_task(number, &mut delta);
        }
        let state = vip.map_or_else(|| texts(self.tasks[number].values()), |vip| texts([&vip]));
        (delta, Some(state))
    }

    fn add_task(&mut self, number: usize, delta: &mut Delta) {
        let address = self.address();
        let id = format!("{}.{}", name(number), self.last_address);
        let new = task(&id, Some(&name(number)), "front", address);
        delta.tasks.insert(id.as_str().into(), Some(Arc::new(new)));
        self.tasks[number].insert(id, address);
    }

    fn drop_task(&mut self, number: usize, delta: &mut Delta) {
        if let Some((id, _)) = self.tasks[number].pop_first() {
            delta.tasks.insert(id.as_str().into(), None);
        }
    }

    fn change(&mut self, number: usize, version: u64, now: &State) -> (Delta, State) {
        let Some(addresses) = now else { return self.make(number, version) };
        let mut delta = Delta { version, ..Delta::default() };
        if random(&mut self.seed, 10) == 0 {
            delta.services.insert(name(number).as_str().into(), None);
            while !self.tasks[number].is_empty() {
                self.drop_task(number, &mut delta);
            }
            return (delta, None);
        }
        if has_vip(number) {
            let vip = self.address();
            delta.services.insert(name(number).as_str().into(), Some(Arc::new(service(&name(number), "front", Some(vip)))));
            return (delta, Some(texts([&vip])));
        }
        match random(&mut self.seed, 3) {
            0 if addresses.len() < MOST_TASKS => self.add_task(number, &mut delta),
            1 if !addresses.is_empty() => self.drop_task(number, &mut delta),
            _ => {
                self.drop_task(number, &mut delta);
                self.add_task(number, &mut delta);
            }
        }
        let state = texts(self.tasks[number].values());
        (delta, Some(state))
    }
}
