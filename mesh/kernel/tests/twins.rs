//! What the fake kernel was taught, asked of the real one too: one table, run against both.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "helpers of tests may stop at the first surprise, as tests do")]

mod common;

use std::{collections::BTreeMap, path::Path};

use common::Scratch;
use swarmesh_kernel::{
    DynsetOp, ElementData, Expr, Family, Kernel, KernelError, LinuxKernel, Namespace, NftEvent, NftMonitor, NftOp, Reg, SetName, Verdict,
    fake::FakeKernel,
};

const TABLE: &str = "mesh";
const SKELETON: &str = "
table inet mesh {
    map front { type ipv4_addr : mark; }
    map classes { type mark : verdict; elements = { 0x00000000 : goto refuse }; }
    set plain { type inet_proto . inet_service; }
    set port { type inet_service; }
    set small { type mark; size 2; }
    map memory { type ipv4_addr : ipv4_addr; size 8; flags dynamic,timeout; }
    chain refuse { }
    chain pick { }
    chain base { type filter hook output priority 0; policy accept; }
    chain caller { }
}
";

const fn set(set: &'static str) -> SetName {
    SetName { family: Family::Inet, table: TABLE, set }
}

const FRONT: SetName = set("front");
const CLASSES: SetName = set("classes");
const PLAIN: SetName = set("plain");
const SMALL: SetName = set("small");
const ALL: [SetName; 5] = [FRONT, CLASSES, PLAIN, SMALL, set("port")];

fn add(set: SetName, key: &[u8], value: Option<&[u8]>) -> NftOp {
    NftOp::AddElement { set, key: key.to_vec(), data: value.map(|value| ElementData::Value(value.to_vec())) }
}

fn add_goto(set: SetName, key: &[u8], chain: &str) -> NftOp {
    NftOp::AddElement { set, key: key.to_vec(), data: Some(ElementData::Goto(chain.to_owned())) }
}

fn delete(set: SetName, key: &[u8]) -> NftOp {
    NftOp::DeleteElement { set, key: key.to_vec() }
}

fn add_chain(chain: &str) -> NftOp {
    NftOp::AddChain { family: Family::Inet, table: TABLE, chain: chain.to_owned() }
}

fn delete_chain(chain: &str) -> NftOp {
    NftOp::DeleteChain { family: Family::Inet, table: TABLE, chain: chain.to_owned() }
}

fn rule(chain: &str, expression: Expr) -> NftOp {
    // Loads what the expression may read: the kernel refuses a register that nothing was loaded into.
    let expressions = vec![Expr::Immediate { dreg: Reg(0), data: vec![1; 16] }, expression];
    NftOp::AddRule { family: Family::Inet, table: TABLE, chain: chain.to_owned(), comment: String::new(), expressions }
}

fn goto(chain: &str) -> Expr {
    Expr::Verdict(Verdict::Goto(chain.to_owned()))
}

fn flush(set: SetName) -> NftOp {
    NftOp::FlushSet { set }
}

/// Outcome of a step, by type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    Exists,
    NotFound,
    Busy,
    Full,
    NotSupported,
    /// EINVAL.
    Invalid,
    Script,
}

fn outcome(result: Result<(), KernelError>) -> Outcome {
    match result {
        Ok(()) => Outcome::Done,
        Err(KernelError::Exists { .. }) => Outcome::Exists,
        Err(KernelError::NotFound { .. }) => Outcome::NotFound,
        Err(KernelError::Busy { .. }) => Outcome::Busy,
        Err(KernelError::Full { .. }) => Outcome::Full,
        Err(KernelError::NotSupported { .. }) => Outcome::NotSupported,
        Err(KernelError::Tool { .. }) => Outcome::Script,
        Err(KernelError::Io { source, .. }) if source.raw_os_error() == Some(nix::libc::EINVAL) => Outcome::Invalid,
        Err(other) => panic!("an outcome that the table does not know: {other:?}"),
    }
}

enum Step {
    Ops(Vec<NftOp>),
    Script(&'static str),
}

/// A rule: its name, what is done in order, and how each step ends.
type Row = (&'static str, Vec<(Step, Outcome)>);

fn row(name: &'static str, steps: Vec<(Vec<NftOp>, Outcome)>) -> Row {
    (name, steps.into_iter().map(|(ops, outcome)| (Step::Ops(ops), outcome)).collect())
}

const K1: &[u8] = &[10, 0, 0, 1];
const K2: &[u8] = &[10, 0, 0, 2];
const V1: &[u8] = &[1, 0, 0, 0];
const V2: &[u8] = &[2, 0, 0, 0];
const WEB: &[u8] = &[6, 0, 0, 0, 0, 80, 0, 0];

fn elements() -> Vec<Row> {
    use Outcome::{Done, Exists, Full, Invalid, NotFound, NotSupported};
    vec![
        row("the same element again is fine", vec![(vec![add(FRONT, K1, Some(V1))], Done), (vec![add(FRONT, K1, Some(V1))], Done)]),
        row("the same element of a set again is fine", vec![(vec![add(PLAIN, WEB, None), add(PLAIN, WEB, None)], Done)]),
        row("other data for a key is refused", vec![(vec![add(FRONT, K1, Some(V1))], Done), (vec![add(FRONT, K1, Some(V2))], Exists)]),
        row("other data in the same batch is refused", vec![(vec![add(FRONT, K1, Some(V1)), add(FRONT, K1, Some(V2))], Exists)]),
        row(
            "deleted and added in one batch, data is replaced",
            vec![(vec![add(FRONT, K1, Some(V1))], Done), (vec![delete(FRONT, K1), add(FRONT, K1, Some(V2))], Done)],
        ),
        row(
            "replaced twice in one batch",
            vec![
                (vec![add(FRONT, K1, Some(V1))], Done),
                (vec![delete(FRONT, K1), add(FRONT, K1, Some(V2)), delete(FRONT, K1), add(FRONT, K1, Some(V1))], Done),
            ],
        ),
        row("added and deleted in one batch", vec![(vec![add(FRONT, K1, Some(V1)), delete(FRONT, K1)], Done)]),
        row("deleting what is absent is refused", vec![(vec![delete(FRONT, K1)], NotFound)]),
        row(
            "deleting twice in a batch is refused",
            vec![(vec![add(FRONT, K1, Some(V1))], Done), (vec![delete(FRONT, K1), delete(FRONT, K1)], NotFound)],
        ),
        row(
            "a refused batch changes nothing",
            vec![(vec![add(FRONT, K1, Some(V1))], Done), (vec![delete(FRONT, K1), add(FRONT, K2, Some(V1)), delete(PLAIN, WEB)], NotFound)],
        ),
        row("no such set", vec![(vec![add(set("absent"), K1, None)], NotFound), (vec![delete(set("absent"), K1)], NotFound)]),
        row("flushing no such set is refused", vec![(vec![flush(set("absent"))], NotFound)]),
        row("flushing empties", vec![(vec![add(FRONT, K1, Some(V1)), add(FRONT, K2, Some(V1))], Done), (vec![flush(FRONT)], Done)]),
        row("flushing nothing is fine", vec![(vec![flush(FRONT)], Done)]),
        row(
            "flushed and filled in one batch",
            vec![(vec![add(FRONT, K1, Some(V1))], Done), (vec![flush(FRONT), add(FRONT, K1, Some(V2))], Done)],
        ),
        row("a map wants data", vec![(vec![add(FRONT, K1, None)], Invalid)]),
        row("a set wants none", vec![(vec![add(PLAIN, WEB, Some(V1))], Invalid)]),
        row(
            "a key of another length is refused",
            vec![(vec![add(FRONT, &[1, 2], Some(V1))], Invalid), (vec![add(PLAIN, &WEB[..6], None)], Invalid)],
        ),
        row("deleting a key of another length is refused", vec![(vec![delete(FRONT, &[1, 2])], Invalid)]),
        row(
            "alone, a port has two bytes",
            vec![(vec![add(set("port"), &[0, 80], None)], Done), (vec![add(set("port"), &[0, 80, 0, 0], None)], Invalid)],
        ),
        row("data of another length is refused", vec![(vec![add(FRONT, K1, Some(&[1, 2]))], Invalid)]),
        row(
            "data of another kind is refused",
            vec![(vec![add_goto(FRONT, K1, "pick")], Invalid), (vec![add(CLASSES, V1, Some(V1))], Invalid)],
        ),
        row(
            "a verdict leads to a chain",
            vec![(vec![add_goto(CLASSES, V1, "pick")], Done), (vec![add_goto(CLASSES, V1, "refuse")], Exists)],
        ),
        row(
            "the same verdict again is fine",
            vec![(vec![add_goto(CLASSES, V1, "pick")], Done), (vec![add_goto(CLASSES, V1, "pick")], Done)],
        ),
        row("a verdict to no chain is refused", vec![(vec![add_goto(CLASSES, V1, "absent")], NotFound)]),
        row("a verdict to a base chain is refused", vec![(vec![add_goto(CLASSES, V1, "base")], NotSupported)]),
        row("a full set refuses more", vec![(vec![add(SMALL, K1, None), add(SMALL, K2, None)], Done), (vec![add(SMALL, V1, None)], Full)]),
        row(
            "in a full set, what is there may be added again",
            vec![(vec![add(SMALL, K1, None), add(SMALL, K2, None)], Done), (vec![add(SMALL, K2, None)], Done)],
        ),
    ]
}

fn chains_and_rules() -> Vec<Row> {
    use Outcome::{Busy, Done, Invalid, NotFound, NotSupported};
    let lookup = |set, dreg| Expr::Lookup { set, sreg: Reg(0), dreg };
    let delete_dynamic = |set, data| Expr::Dynset { op: DynsetOp::Delete, set, key: Reg(0), data, timeout: None };
    vec![
        row("a chain again is fine", vec![(vec![add_chain("new"), add_chain("new")], Done), (vec![add_chain("new")], Done)]),
        row("a base chain again without its hook is fine", vec![(vec![add_chain("base")], Done)]),
        row(
            "a chain with rules is deleted with them",
            vec![(vec![rule("caller", Expr::Counter)], Done), (vec![delete_chain("caller")], Done)],
        ),
        row("deleting no such chain is refused", vec![(vec![delete_chain("absent")], NotFound)]),
        row("a chain that an element leads to stays", vec![(vec![delete_chain("refuse")], Busy)]),
        row("with the element, it goes", vec![(vec![delete(CLASSES, &[0; 4]), delete_chain("refuse")], Done)]),
        row("with the elements flushed, it goes", vec![(vec![flush(CLASSES), delete_chain("refuse")], Done)]),
        row("a chain that a rule leads to stays", vec![(vec![rule("caller", goto("pick"))], Done), (vec![delete_chain("pick")], Busy)]),
        row(
            "with the rule's chain, it goes",
            vec![(vec![rule("caller", goto("pick"))], Done), (vec![delete_chain("caller"), delete_chain("pick")], Done)],
        ),
        row("chain, rule, element and all in one batch", {
            let ops = vec![add_chain("new"), rule("new", Expr::Counter), add_goto(CLASSES, V1, "new"), rule("caller", goto("new"))];
            vec![(ops, Done)]
        }),
        row("a rule for a chain that comes later is refused", vec![(vec![rule("new", Expr::Counter), add_chain("new")], NotFound)]),
        row("a rule that leads to no chain is refused", vec![(vec![rule("caller", goto("absent"))], NotFound)]),
        row("a rule that leads to a base chain is refused", vec![(vec![rule("caller", goto("base"))], NotSupported)]),
        row("a rule for no set is refused", vec![(vec![rule("caller", lookup("absent", None))], NotFound)]),
        row("a set's element is no value", vec![(vec![rule("caller", lookup("small", Some(Reg(1))))], Invalid)]),
        row("a map has values", vec![(vec![rule("caller", lookup("front", Some(Reg(1))))], Done)]),
        row("a verdict is no value", vec![(vec![rule("caller", lookup("classes", Some(Reg(1))))], Invalid)]),
        row("a verdict map has verdicts", vec![(vec![rule("caller", Expr::LookupVerdict { set: "classes", sreg: Reg(0) })], Done)]),
        row("a value is no verdict", vec![(vec![rule("caller", Expr::LookupVerdict { set: "front", sreg: Reg(0) })], Invalid)]),
        row("a dynamic map wants data even to delete", vec![(vec![rule("caller", delete_dynamic("memory", None))], Invalid)]),
        row("with data it deletes", vec![(vec![rule("caller", delete_dynamic("memory", Some(Reg(0))))], Done)]),
        row("a dynamic rule for no set is refused", vec![(vec![rule("caller", delete_dynamic("absent", None))], NotFound)]),
        row("data for a set is refused", vec![(vec![rule("caller", delete_dynamic("small", Some(Reg(0))))], NotSupported)]),
        row("no such table", {
            let family = Family::Inet;
            let gone = NftOp::DeleteTable { family, table: "absent" };
            vec![(vec![gone], NotFound), (vec![NftOp::AddChain { family, table: "absent", chain: "new".to_owned() }], NotFound)]
        }),
        row("a table of another family is another table", vec![(vec![NftOp::DeleteTable { family: Family::Ip, table: TABLE }], NotFound)]),
        row("a table goes with everything", {
            let gone = NftOp::DeleteTable { family: Family::Inet, table: TABLE };
            vec![(vec![rule("caller", goto("pick")), add(FRONT, K1, Some(V1))], Done), (vec![gone.clone()], Done), (vec![gone], NotFound)]
        }),
    ]
}

/// What older kernels refuse, and nothing above the seam asks for: a map is a set, too, since Linux 6.5 (`nft_lookup_init`).
fn since_6_5() -> Vec<Row> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().unwrap_or(0));
    if (numbers.next(), numbers.next()) < (Some(6), Some(5)) {
        println!("Linux {}: a map in a set's place is not tried", release.trim());
        return Vec::new();
    }
    let lookup = Expr::Lookup { set: "front", sreg: Reg(0), dreg: None };
    vec![row("a map is a set, too", vec![(vec![rule("caller", lookup)], Outcome::Done)])]
}

fn scripts() -> Vec<Row> {
    use Outcome::{Done, Script};
    let again = |name, steps: Vec<(&'static str, Outcome)>| -> Row {
        let mut all = vec![(Step::Ops(vec![add(FRONT, K1, Some(V1)), rule("caller", Expr::Counter)]), Done)];
        all.extend(steps.into_iter().map(|(script, outcome)| (Step::Script(script), outcome)));
        (name, all)
    };
    vec![
        again("a skeleton again keeps elements and rules", vec![(SKELETON, Done)]),
        again(
            "rules add up",
            vec![("table inet mesh {\n chain caller {\n counter\n ip daddr { 10.0.0.1, 10.0.0.2 } counter\n }\n}", Done)],
        ),
        again(
            "a flushed chain starts anew",
            vec![("flush chain inet mesh caller\ntable inet mesh {\n chain caller {\n accept\n }\n}", Done)],
        ),
        again("a deleted table starts anew", vec![("delete table inet mesh\ntable inet mesh {\n chain other { }\n}", Done)]),
        again("deleting no such table is refused", vec![("delete table inet absent", Script)]),
        again("adding a table makes deleting it safe", vec![("add table inet absent\ndelete table inet absent", Done)]),
        again("a chain is deleted", vec![("delete chain inet mesh caller", Done)]),
        again("a chain in use is not deleted", vec![("delete chain inet mesh refuse", Script)]),
        again("a chain that a text rule leads to is not deleted", {
            vec![("table inet mesh {\n chain caller {\n meta nfproto ipv4 goto pick\n }\n}", Done), ("delete chain inet mesh pick", Script)]
        }),
        again("a map that a rule looks into is not deleted", {
            vec![
                ("table inet mesh {\n chain caller {\n meta mark set ip daddr map @front\n }\n}", Done),
                ("delete map inet mesh front", Script),
            ]
        }),
        again("a map that no rule looks into is deleted, with its elements", vec![("delete map inet mesh front", Done)]),
        again("deleting no such map is refused", vec![("delete map inet mesh absent", Script)]),
        again("a set is flushed", vec![("flush map inet mesh front", Done)]),
        again("a refused script changes nothing", vec![("flush map inet mesh front\ndelete chain inet mesh absent", Script)]),
        again("a set of another type is refused", vec![("table inet mesh {\n map front { type ipv6_addr : mark; }\n}", Script)]),
        again("nonsense is refused", vec![("nonsense", Script)]),
    ]
}

/// Keys and data, sorted.
type Held = Vec<(Vec<u8>, Option<ElementData>)>;

/// Everything that one can see of the tables from outside.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    chains: Option<Vec<String>>,
    with_rules: Vec<String>,
    elements: BTreeMap<SetName, Option<Held>>,
    monitored: Vec<String>,
}

fn seen(namespace: &mut dyn Namespace, monitor: &mut NftMonitor) -> Seen {
    let chains = namespace.chains(Family::Inet, TABLE).unwrap().map(|mut chains| {
        chains.sort();
        chains
    });
    let with_rules = chains.iter().flatten().filter(|chain| namespace.has_rules(Family::Inet, TABLE, chain).unwrap()).cloned().collect();
    let elements = ALL.into_iter().map(|set| {
        let held = match namespace.elements(set) {
            Ok(elements) => Some(elements.into_iter().map(|element| (element.key, element.data)).collect::<Held>()),
            Err(KernelError::NotFound { .. }) => None,
            Err(other) => panic!("{other:?}"),
        };
        (
            set,
            held.map(|mut held| {
                held.sort_by(|a, b| a.0.cmp(&b.0));
                held
            }),
        )
    });
    let elements = elements.collect();
    let own = namespace.port_id().unwrap();
    // In which order the parts of a table go is the kernel's own business.
    let mut monitored: Vec<String> = monitor.read_events().unwrap().iter().filter_map(|event| told(event, own)).collect();
    monitored.sort();
    monitored.dedup();
    Seen { chains, with_rules, elements, monitored }
}

fn told(event: &NftEvent, own: u32) -> Option<String> {
    let who = if event.port() == Some(own) { "own" } else { "strange" };
    match event {
        NftEvent::TableDeleted { table, .. } => Some(format!("{who} table {table}")),
        NftEvent::ChainDeleted { chain, .. } => Some(format!("{who} chain {chain}")),
        NftEvent::SetDeleted { set, .. } => Some(format!("{who} set {set}")),
        NftEvent::ElementsDeleted { set, .. } => Some(format!("{who} elements {set}")),
        NftEvent::RuleDeleted { .. } | NftEvent::Generation { .. } | NftEvent::Lost => None,
    }
}

struct Run {
    outcomes: Vec<Outcome>,
    generations: Vec<bool>,
    seen: Seen,
}

fn run(kernel: &dyn Kernel, path: &Path, steps: &[(Step, Outcome)]) -> Run {
    let mut namespace = kernel.open(path).unwrap();
    namespace.load_script(SKELETON).unwrap();
    let mut monitor = kernel.open_monitor(Some(path)).unwrap();
    let mut generation = namespace.generation().unwrap();
    let mut outcomes = Vec::new();
    let mut generations = Vec::new();
    for (step, _) in steps {
        let done = outcome(match step {
            Step::Ops(ops) => namespace.commit(ops),
            Step::Script(script) => namespace.load_script(script),
        });
        let next = namespace.generation().unwrap();
        // Whether a commit without any effect counts as one is not for anybody to rely on, but a refused one never does.
        generations.push(done == Outcome::Done || next == generation);
        generation = next;
        outcomes.push(done);
    }
    Run { outcomes, generations, seen: seen(&mut *namespace, &mut monitor) }
}

fn compare(rows: Vec<Row>) {
    let is_root = nix::unistd::geteuid().is_root();
    for (name, steps) in rows {
        let expected: Vec<Outcome> = steps.iter().map(|(_, outcome)| *outcome).collect();
        let fake = FakeKernel::new();
        fake.add_namespace("/scratch");
        let taught = run(&fake, Path::new("/scratch"), &steps);
        assert_eq!(taught.outcomes, expected, "the fake: {name}");
        assert!(taught.generations.iter().all(|sound| *sound), "the fake: {name}");
        if !is_root {
            continue;
        }
        let scratch = Scratch::new().unwrap();
        let real = run(&LinuxKernel, &scratch.path(), &steps);
        assert_eq!(real.outcomes, expected, "the real kernel: {name}");
        assert!(real.generations.iter().all(|sound| *sound), "the real kernel: {name}");
        assert_eq!(taught.seen, real.seen, "fake (left) and real kernel (right) differ after: {name}");
    }
    if !is_root {
        println!("the real kernel was skipped: needs root to make a network namespace");
    }
}

#[test]
fn elements_agree() {
    compare(elements());
}

#[test]
fn chains_and_rules_agree() {
    compare(chains_and_rules());
    compare(since_6_5());
}

#[test]
fn scripts_agree() {
    compare(scripts());
}

/// An owned table ends with its handle, and nobody else may touch it.
#[test]
fn owned_tables_agree() {
    const OWNED: &str = "owned";
    let make = [
        NftOp::AddOwnedTable { family: Family::Ip, table: OWNED },
        NftOp::AddOutputChain { family: Family::Ip, table: OWNED, chain: "out".to_owned(), priority: -310 },
        NftOp::AddRule {
            family: Family::Ip,
            table: OWNED,
            chain: "out".to_owned(),
            comment: String::new(),
            expressions: vec![Expr::Notrack],
        },
    ];
    let behave = |kernel: &dyn Kernel, path: &Path| {
        let mut owner = kernel.open(path).unwrap();
        let mut other = kernel.open(path).unwrap();
        owner.commit(&make).unwrap();
        owner.commit(&make[..1]).unwrap();
        for op in [
            make[0].clone(),
            NftOp::AddChain { family: Family::Ip, table: OWNED, chain: "more".to_owned() },
            NftOp::DeleteTable { family: Family::Ip, table: OWNED },
        ] {
            let refused = other.commit(std::slice::from_ref(&op));
            assert!(matches!(refused, Err(KernelError::NotPermitted { .. })), "{op}: {refused:?}");
        }
        assert_eq!(other.chains(Family::Ip, OWNED).unwrap(), Some(vec!["out".to_owned()]));
        assert!(other.has_rules(Family::Ip, OWNED, "out").unwrap());
        owner.commit(&[NftOp::DeleteChain { family: Family::Ip, table: OWNED, chain: "out".to_owned() }]).unwrap();
        assert_eq!(other.chains(Family::Ip, OWNED).unwrap(), Some(vec![]));
        drop(owner);
        assert_eq!(other.chains(Family::Ip, OWNED).unwrap(), None);
        other.commit(&make).unwrap();
    };
    let fake = FakeKernel::new();
    fake.add_namespace("/scratch");
    behave(&fake, Path::new("/scratch"));
    let Some(scratch) = Scratch::new() else { return };
    behave(&LinuxKernel, &scratch.path());
    // Not even a flush of everything takes it.
    let mut owner = scratch.namespace();
    owner.commit(&make).unwrap();
    scratch.run("nft flush ruleset");
    assert!(owner.has_rules(Family::Ip, OWNED, "out").unwrap());
}
