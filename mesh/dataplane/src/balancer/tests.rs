use std::collections::BTreeSet;

use proptest::{collection::vec, prelude::*};

use super::*;

fn vip(number: u16) -> Front {
    let [high, low] = number.to_be_bytes();
    Front::Vip(IpAddr::from([10, 1, high, low]))
}

fn wanted(scheduler: Scheduler, affinity: Option<u64>, targets: &[u8]) -> FrontState {
    let targets = targets.iter().map(|n| IpAddr::from([10, 0, 0, *n])).collect();
    FrontState { scheduler, affinity: affinity.map(Duration::from_secs), targets }
}

fn rr(targets: &[u8]) -> FrontState {
    wanted(Scheduler::RoundRobin, None, targets)
}

/// What the kernel holds after operations, in the order that a table commits them.
#[derive(Clone, Debug, Default)]
struct Kernel {
    elements: BTreeMap<(&'static str, Vec<u8>), Option<ElementData>>,
    chains: BTreeMap<String, usize>,
}

impl Kernel {
    fn new() -> Self {
        let mut kernel = Self::default();
        let refuse = Some(ElementData::Goto("refuse".to_owned()));
        kernel.elements.insert(("classes4", vec![0; 4]), refuse.clone());
        kernel.elements.insert(("classes6", vec![0; 4]), refuse);
        kernel.chains.insert("dispatch4".to_owned(), 1);
        kernel.chains.insert("refuse".to_owned(), 2);
        kernel
    }

    fn commit(&mut self, mut ops: Vec<NftOp>) {
        ops.sort_by_key(|op| !matches!(op, NftOp::DeleteElement { .. }));
        for op in ops {
            match op {
                NftOp::AddElement { set, key, data } => {
                    let held = self.elements.insert((set.set, key), data.clone());
                    assert!(held.is_none_or(|h| h == data), "{} exists with another value", set.set);
                }
                NftOp::DeleteElement { set, key } => assert!(self.elements.remove(&(set.set, key)).is_some(), "{}", set.set),
                NftOp::AddChain { chain, .. } => {
                    self.chains.entry(chain).or_default();
                }
                NftOp::DeleteChain { chain, .. } => {
                    assert!(!self.elements.values().any(|d| *d == Some(ElementData::Goto(chain.clone()))), "{chain} is busy");
                    assert!(self.chains.remove(&chain).is_some(), "{chain}");
                }
                NftOp::AddRule { chain, .. } => *self.chains.get_mut(&chain).unwrap() += 1,
                NftOp::FlushSet { .. } | NftOp::DeleteTable { .. } | NftOp::AddOwnedTable { .. } | NftOp::AddOutputChain { .. } => {
                    panic!("not a balancer's")
                }
            }
        }
    }

    fn held(&self) -> Held {
        let read = |name: &str| {
            let of = self.elements.iter().filter(|((set, _), _)| *set == name);
            of.map(|((_, key), data)| Element { key: key.clone(), data: data.clone(), timeout: None }).collect()
        };
        Held {
            front: read("front4"),
            classes: read("classes4"),
            slot: read("slot4"),
            sticky: read("sticky4"),
            live: read("live4"),
            chains: self.chains.keys().cloned().collect(),
            empty_chains: self.chains.iter().filter(|(_, rules)| **rules == 0).map(|(c, _)| c.clone()).collect(),
        }
    }

    fn count(&self, set: &str) -> usize {
        self.elements.keys().filter(|(name, _)| *name == set).count()
    }

    /// Frontend to how it picks and from what; fails on anything that leads nowhere or that nothing leads to.
    fn meaning(&self) -> BTreeMap<Vec<u8>, (String, BTreeSet<Vec<u8>>)> {
        let mut used = BTreeSet::new();
        let mut meaning = BTreeMap::new();
        let bytes = |set, key: Vec<u8>| match self.elements.get(&(set, key)) {
            Some(Some(ElementData::Value(bytes))) => bytes.clone(),
            other => panic!("{set}: {other:?}"),
        };
        for ((_, key), _) in self.elements.iter().filter(|((set, _), _)| *set == "front4") {
            let class = bytes("front4", key.clone())[4..].to_vec();
            let Some(Some(ElementData::Goto(chain))) = self.elements.get(&("classes4", class)) else { panic!("no class") };
            let Some(class) = Class::from_chain(chain, false) else {
                assert_eq!(chain, "refuse");
                meaning.insert(key.clone(), ("refuse".to_owned(), BTreeSet::new()));
                continue;
            };
            let set = if class.affinity > 0 { "sticky4" } else { "slot4" };
            let targets: BTreeSet<Vec<u8>> = (0..class.slots)
                .map(|n| {
                    let slot = [key.clone(), n.to_ne_bytes().to_vec()].concat();
                    used.insert((set, slot.clone()));
                    let target = bytes(set, slot);
                    let target = if class.affinity > 0 { target[4..].to_vec() } else { target };
                    if class.affinity > 0 {
                        let live = [key.clone(), target.clone()].concat();
                        assert!(self.elements.contains_key(&("live4", live.clone())));
                        used.insert(("live4", live));
                    }
                    target
                })
                .collect();
            assert_eq!(targets.len(), class.slots as usize, "one backend in two slots");
            meaning.insert(key.clone(), (format!("{:?} {}", class.pick, class.affinity), targets));
        }
        for (set, key) in self.elements.keys().filter(|(set, _)| ["slot4", "sticky4", "live4"].contains(set)) {
            assert!(used.contains(&(*set, key.clone())), "{set} {key:?} is left over");
        }
        for (chain, rules) in self.chains.iter().filter(|(c, _)| c.starts_with("pick")) {
            assert_eq!(*rules, if chain.contains("sticky") { 4 } else { 1 }, "{chain}");
        }
        meaning
    }
}

fn set(balancer: &mut Balancer, kernel: &mut Kernel, front: Front, state: Option<&FrontState>) -> usize {
    let mut ops = Vec::new();
    balancer.set(front, state, &mut ops);
    let count = ops.len();
    kernel.commit(ops);
    count
}

/// The lane of the chain that a frontend leads to.
fn lane(balancer: &Balancer, front: Front) -> u16 {
    let number = balancer.fronts[&front].class;
    balancer.classes.iter().find(|(_, n)| **n == number).unwrap().0.lane
}

#[test]
fn a_class_is_told_by_its_chain() {
    for pick in [Pick::Incremental, Pick::Random, Pick::SourceHash] {
        for (affinity, slots, lane) in [(0, 1, 0), (60, 3, 15), (u32::MAX, u32::MAX, u16::MAX)] {
            for v6 in [false, true] {
                let class = Class { pick, affinity, slots, lane };
                assert_eq!(Class::from_chain(&class.chain(v6), v6), Some(class));
                assert_eq!(Class::from_chain(&class.chain(v6), !v6), None);
                // The kernel's limit for a chain's name (NFT_NAME_MAXLEN) is far away, and so is that of nft's words.
                assert!(class.chain(v6).len() < 64);
            }
        }
    }
    for other in [
        "refuse",
        "pick4_",
        "pick4_rr",
        "pick4_rr_3",
        "pick4_rr_0_0",
        "pick4_lc_3_0",
        "pick4_rr_3_0_60",
        "pick4_rr_x_0",
        "pick4_rr_3_70000",
    ] {
        assert_eq!(Class::from_chain(other, false), None, "{other}");
    }
}

#[test]
fn sixteen_services_take_turns_each_for_itself() {
    let (mut balancer, mut kernel) = (Balancer::vips(false), Kernel::new());
    for number in 0..16 {
        set(&mut balancer, &mut kernel, vip(number), Some(&rr(&[1, 2, 3])));
    }
    let lanes: BTreeSet<u16> = (0..16).map(|n| lane(&balancer, vip(n))).collect();
    assert_eq!(lanes, (0..16).collect());
    // The seventeenth shares, and makes no chain; two more share with others.
    let chains = kernel.chains.len();
    for number in 16..19 {
        set(&mut balancer, &mut kernel, vip(number), Some(&rr(&[1, 2, 3])));
    }
    assert_eq!(kernel.chains.len(), chains);
    assert_eq!((16..19).map(|n| lane(&balancer, vip(n))).collect::<BTreeSet<_>>().len(), 3);
    // One that leaves makes room for the next.
    set(&mut balancer, &mut kernel, vip(7), None);
    let free = lanes.iter().find(|l| (0..19).filter(|n| *n != 7).all(|n| lane(&balancer, vip(n)) != **l)).copied();
    set(&mut balancer, &mut kernel, vip(20), Some(&rr(&[4, 5, 6])));
    if let Some(free) = free {
        assert_eq!(lane(&balancer, vip(20)), free);
    }
    assert_eq!(kernel.chains.len(), chains);
    kernel.meaning();
}

#[test]
fn only_round_robin_over_more_than_one_has_lanes() {
    let (mut balancer, mut kernel) = (Balancer::vips(false), Kernel::new());
    for number in 0..4 {
        set(&mut balancer, &mut kernel, vip(number), Some(&rr(&[1])));
        set(&mut balancer, &mut kernel, vip(10 + number), Some(&wanted(Scheduler::Random, None, &[1, 2])));
        set(&mut balancer, &mut kernel, vip(20 + number), Some(&wanted(Scheduler::SourceHash, None, &[1, 2])));
        set(&mut balancer, &mut kernel, vip(30 + number), Some(&rr(&[])));
    }
    assert_eq!(balancer.classes.len(), 3);
    assert!(balancer.classes.keys().all(|c| c.lane == 0));
}

#[test]
fn lanes_survive_a_restart() {
    let (mut balancer, mut kernel) = (Balancer::vips(false), Kernel::new());
    for number in 0..20 {
        set(&mut balancer, &mut kernel, vip(number), Some(&rr(&[1, 2, 3])));
    }
    let before: Vec<u16> = (0..20).map(|n| lane(&balancer, vip(n))).collect();
    let mut again = Balancer::vips(false);
    assert_eq!(again.adopt(&kernel.held()), []);
    for number in 0..20 {
        assert_eq!(set(&mut again, &mut kernel, vip(number), Some(&rr(&[3, 2, 1]))), 0);
    }
    assert_eq!((0..20).map(|n| lane(&again, vip(n))).collect::<Vec<_>>(), before);
}

#[test]
fn unused_chains_are_kept_up_to_a_number() {
    let (mut balancer, mut kernel) = (Balancer::vips(false), Kernel::new());
    let many: Vec<u8> = (1..=200).collect();
    set(&mut balancer, &mut kernel, vip(500), Some(&rr(&many[..150])));
    for count in 1..=SPARE_CLASSES {
        set(&mut balancer, &mut kernel, vip(1), Some(&rr(&many[..count])));
    }
    set(&mut balancer, &mut kernel, vip(1), None);
    let mut ops = Vec::new();
    balancer.tidy(&mut ops);
    assert_eq!(ops, [], "{SPARE_CLASSES} unused ones are no reason");

    set(&mut balancer, &mut kernel, vip(1), Some(&rr(&many[..SPARE_CLASSES + 1])));
    set(&mut balancer, &mut kernel, vip(1), None);
    balancer.tidy(&mut ops);
    assert!(!ops.is_empty());
    kernel.commit(ops);
    assert_eq!(balancer.classes.len(), 1, "the one in use stays");
    assert_eq!(kernel.chains.keys().filter(|c| c.starts_with("pick")).collect::<Vec<_>>(), ["pick4_rr_150_0"]);
    assert_eq!(set(&mut balancer, &mut kernel, vip(500), Some(&rr(&many[..150]))), 0);
    // What went may come again.
    set(&mut balancer, &mut kernel, vip(1), Some(&rr(&[1, 2, 3])));
    assert_eq!(kernel.meaning().len(), 2);
}

#[test]
fn affinity_moves_slots_between_the_two_sets() {
    let (mut balancer, mut kernel) = (Balancer::vips(false), Kernel::new());
    let counts = |kernel: &Kernel| ["slot4", "sticky4", "live4"].map(|set| kernel.count(set));
    set(&mut balancer, &mut kernel, vip(1), Some(&rr(&[1, 2, 3])));
    assert_eq!(counts(&kernel), [3, 0, 0]);
    set(&mut balancer, &mut kernel, vip(1), Some(&wanted(Scheduler::RoundRobin, Some(60), &[1, 2, 3])));
    assert_eq!(counts(&kernel), [0, 3, 3]);
    // Another time is another chain, and the same slots.
    let ops = set(&mut balancer, &mut kernel, vip(1), Some(&wanted(Scheduler::RoundRobin, Some(90), &[1, 2, 3])));
    assert_eq!((counts(&kernel), ops), ([0, 3, 3], 2 + 6));
    // A toggle and a change of backends at once.
    set(&mut balancer, &mut kernel, vip(1), Some(&rr(&[2, 4])));
    assert_eq!(counts(&kernel), [2, 0, 0]);
    set(&mut balancer, &mut kernel, vip(1), Some(&wanted(Scheduler::Random, Some(60), &[4, 5, 6])));
    assert_eq!(counts(&kernel), [0, 3, 3]);
    // Nobody left: nothing to be sticky to.
    set(&mut balancer, &mut kernel, vip(1), Some(&wanted(Scheduler::Random, Some(60), &[])));
    assert_eq!(counts(&kernel), [0, 0, 0]);
    set(&mut balancer, &mut kernel, vip(1), Some(&wanted(Scheduler::Random, Some(60), &[7])));
    assert_eq!(counts(&kernel), [0, 1, 1]);
    set(&mut balancer, &mut kernel, vip(1), None);
    assert_eq!(counts(&kernel), [0, 0, 0]);
    assert_eq!(kernel.meaning(), BTreeMap::new());
}

fn state() -> impl Strategy<Value = FrontState> {
    let scheduler = prop_oneof![
        Just(Scheduler::RoundRobin),
        Just(Scheduler::RoundRobin),
        Just(Scheduler::Random),
        Just(Scheduler::SourceHash),
        Just(Scheduler::Maglev)
    ];
    let affinity = prop_oneof![Just(None), Just(None), Just(Some(60)), Just(Some(90))];
    let targets = prop::collection::btree_set(1u8..12, 0..6);
    (scheduler, affinity, targets).prop_map(|(s, a, t)| wanted(s, a, &t.into_iter().collect::<Vec<_>>()))
}

fn change() -> impl Strategy<Value = (u16, Option<FrontState>)> {
    (0u16..6, prop::option::weighted(0.85, state()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    /// However it came about, the table means what was asked for last; asking again is no work, and neither is a restart.
    #[test]
    fn the_way_does_not_matter(changes in vec(change(), 1..40)) {
        let (mut balancer, mut kernel) = (Balancer::vips(false), Kernel::new());
        let mut last = BTreeMap::new();
        for (number, state) in changes {
            set(&mut balancer, &mut kernel, vip(number), state.as_ref());
            last.insert(number, state);
        }
        let (mut fresh, mut direct) = (Balancer::vips(false), Kernel::new());
        for (number, state) in &last {
            set(&mut fresh, &mut direct, vip(*number), state.as_ref());
            prop_assert_eq!(set(&mut balancer, &mut kernel, vip(*number), state.as_ref()), 0);
        }
        prop_assert_eq!(kernel.meaning(), direct.meaning());
        let mut again = Balancer::vips(false);
        prop_assert_eq!(again.adopt(&kernel.held()), []);
        for (number, state) in &last {
            prop_assert_eq!(set(&mut again, &mut kernel, vip(*number), state.as_ref()), 0);
        }
    }

    /// One endpoint more, less or replaced: at most two slots, the live elements, and another class, which may be new.
    #[test]
    fn one_endpoint_is_a_few_operations(targets in prop::collection::btree_set(1u8..200, 1..150), new in 201u8..250, which in any::<prop::sample::Index>(), how in 0..3, sticky: bool) {
        let (mut balancer, mut kernel) = (Balancer::vips(false), Kernel::new());
        let affinity = sticky.then_some(60);
        let mut targets: Vec<u8> = targets.into_iter().collect();
        set(&mut balancer, &mut kernel, vip(1), Some(&wanted(Scheduler::RoundRobin, affinity, &targets)));
        if how != 0 {
            targets.remove(which.index(targets.len()));
        }
        if how != 1 {
            targets.push(new);
        }
        let ops = set(&mut balancer, &mut kernel, vip(1), Some(&wanted(Scheduler::RoundRobin, affinity, &targets)));
        let (live, rules) = if sticky { (2, 4) } else { (0, 1) };
        prop_assert!(ops <= 4 + live + 2 + 2 + rules, "{} operations", ops);
        if how == 2 {
            prop_assert_eq!(ops, 2 + live, "one for one changes no class");
        }
    }

    /// Whatever a stranger did to the table, what is read back is mended to just what is wanted.
    #[test]
    fn a_damaged_table_is_mended(
        fronts in vec(state(), 1..6),
        deleted in vec(any::<prop::sample::Index>(), 0..6),
        added in vec((0usize..5, vec(0u8..12, 4), 0u32..5, vec(0u8..12, 4)), 0..6),
    ) {
        let (mut balancer, mut kernel) = (Balancer::vips(false), Kernel::new());
        for (number, state) in fronts.iter().enumerate() {
            set(&mut balancer, &mut kernel, vip(number as u16), Some(state));
        }
        let whole = kernel.meaning();
        for index in deleted {
            let keys: Vec<_> = kernel.elements.keys().cloned().collect();
            if !keys.is_empty() {
                kernel.elements.remove(index.get(&keys));
            }
        }
        for (kind, key, number, data) in added {
            // Of a frontend that is there, or of none.
            let key = if key[0] < 8 { vec![10, 1, 0, key[1]] } else { key };
            let number = number.to_ne_bytes().to_vec();
            let (set, key, data) = match kind {
                0 => ("front4", key, Some(ElementData::Value([number.clone(), number].concat()))),
                1 => ("slot4", [key, number].concat(), Some(ElementData::Value(data))),
                2 => ("sticky4", [key, number].concat(), Some(ElementData::Value([vec![0; 4], data].concat()))),
                3 => ("live4", [key, data].concat(), None),
                _ => ("classes4", number, kernel.chains.keys().last().map(|c| ElementData::Goto(c.clone()))),
            };
            kernel.elements.entry((set, key)).or_insert(data);
        }
        let mut again = Balancer::vips(false);
        let mut ops = again.adopt(&kernel.held());
        for (number, state) in fronts.iter().enumerate() {
            again.set(vip(number as u16), Some(state), &mut ops);
        }
        let strays: Vec<Front> = again.fronts().filter(|f| !(0..fronts.len()).any(|n| vip(n as u16) == *f)).collect();
        for front in strays {
            again.set(front, None, &mut ops);
        }
        kernel.commit(ops);
        prop_assert_eq!(kernel.meaning(), whole);
        prop_assert_eq!(Balancer::vips(false).adopt(&kernel.held()), []);
    }
}
