//! nftables on the kernel that runs this test, each in a namespace of its own.
#![allow(clippy::unwrap_used, reason = "helpers of tests may stop at the first surprise, as tests do")]

mod common;

use std::{
    io::Write,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use common::Scratch;
use swarmesh_kernel::{
    Checksum, CmpOp, CtDirection, CtKey, DynsetOp, Element, ElementData, Expr, Family, Kernel, KernelError, LinuxKernel, MetaKey,
    NatFamily, NatKind, NftEvent, NftMonitor, NftOp, NftSocket, NumgenKind, PayloadBase, Reg, RejectKind, SetName, Verdict, check_script,
    load_script,
};

const TABLE: &str = "mesh";

const fn set(set: &'static str) -> SetName {
    SetName { family: Family::Inet, table: TABLE, set }
}

const FRONT: SetName = set("front");
const CLASSES: SetName = set("classes");
const SLOT: SetName = set("slot");
const AFFINITY: SetName = set("affinity");

const SKELETON: &str = "
table inet mesh {
    map front { type ipv4_addr : mark; }
    map classes { type mark : verdict; }
    map slot { type ipv4_addr . mark : ipv4_addr; }
    map affinity { type ipv4_addr . ipv4_addr : ipv4_addr; size 1024; flags dynamic,timeout; }
    set plain { type inet_proto . inet_service; }
    chain dispatch { }
    chain output { type nat hook output priority -110; policy accept; meta nfproto ipv4 goto dispatch; }
}";

fn ip(address: &str) -> Vec<u8> {
    match address.parse().unwrap() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn add(set: SetName, key: Vec<u8>, data: Option<ElementData>) -> NftOp {
    NftOp::AddElement { set, key, data }
}

fn value(bytes: Vec<u8>) -> Option<ElementData> {
    Some(ElementData::Value(bytes))
}

fn rule(chain: &str, comment: &str, expressions: Vec<Expr>) -> NftOp {
    NftOp::AddRule { family: Family::Inet, table: TABLE, chain: chain.to_owned(), comment: comment.to_owned(), expressions }
}

fn chain(chain: &str) -> NftOp {
    NftOp::AddChain { family: Family::Inet, table: TABLE, chain: chain.to_owned() }
}

const fn daddr(dreg: u32) -> Expr {
    Expr::Payload { base: PayloadBase::Network, offset: 16, len: 4, dreg: Reg(dreg) }
}

const fn saddr(dreg: u32) -> Expr {
    Expr::Payload { base: PayloadBase::Network, offset: 12, len: 4, dreg: Reg(dreg) }
}

const fn dnat(address: u32) -> Expr {
    Expr::Nat { kind: NatKind::Dnat, family: NatFamily::V4, address: Some(Reg(address)), port: None }
}

/// VIP to class to chain in one rule, and that chain picks one of two slots in turn.
fn balanced(pick: Vec<NftOp>) -> Vec<NftOp> {
    let vip = ip("10.99.0.1");
    let class = 1u32.to_ne_bytes().to_vec();
    let slot = |number: u32| [vip.clone(), number.to_ne_bytes().to_vec()].concat();
    let mut ops = vec![chain("pick")];
    ops.extend(pick);
    ops.push(rule(
        "dispatch",
        "VIP to class, class to chain",
        vec![
            daddr(0),
            Expr::Lookup { set: FRONT.set, sreg: Reg(0), dreg: Some(Reg(0)) },
            Expr::LookupVerdict { set: CLASSES.set, sreg: Reg(0) },
        ],
    ));
    ops.push(add(CLASSES, class.clone(), Some(ElementData::Goto("pick".to_owned()))));
    ops.push(add(FRONT, vip.clone(), value(class)));
    ops.push(add(SLOT, slot(0), value(ip("127.0.0.11"))));
    ops.push(add(SLOT, slot(1), value(ip("127.0.0.12"))));
    ops
}

/// Serves its own address on port 8080 of each of these, until the process ends.
fn serve(scratch: &Scratch, addresses: &[&str]) {
    for address in addresses {
        let bound: SocketAddr = format!("{address}:8080").parse().unwrap();
        let listener = scratch.ns.enter(|| TcpListener::bind(bound)).unwrap().unwrap();
        let name = (*address).to_owned();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = stream.unwrap().write_all(name.as_bytes());
            }
        });
    }
}

fn ask(scratch: &Scratch, vip: &str) -> String {
    let address: SocketAddr = format!("{vip}:8080").parse().unwrap();
    let stream = scratch.ns.enter(|| TcpStream::connect_timeout(&address, Duration::from_secs(3))).unwrap().unwrap();
    std::io::read_to_string(stream).unwrap()
}

fn loaded() -> Option<(Scratch, NftSocket)> {
    let scratch = Scratch::new()?;
    load_script(&scratch.ns, SKELETON).unwrap();
    let socket = NftSocket::open(&scratch.ns).unwrap();
    Some((scratch, socket))
}

#[test]
fn connects_to_a_vip_take_turns() {
    let Some((scratch, mut nft)) = loaded() else { return };
    scratch.run("ip addr add 10.99.0.1/32 dev lo");
    serve(&scratch, &["127.0.0.11", "127.0.0.12"]);
    let pick = vec![
        daddr(0),
        Expr::Numgen { dreg: Reg(1), modulus: 2, offset: 0, kind: NumgenKind::Incremental },
        Expr::Lookup { set: SLOT.set, sreg: Reg(0), dreg: Some(Reg(8)) },
        Expr::Counter,
        dnat(8),
    ];
    nft.commit(&balanced(vec![rule("pick", "pick a slot", pick)])).unwrap();
    let answers: Vec<String> = (0..6).map(|_| ask(&scratch, "10.99.0.1")).collect();
    assert!(answers.windows(2).all(|pair| pair[0] != pair[1]), "{answers:?}");
    assert!(scratch.run("nft list chain inet mesh pick").contains("comment \"pick a slot\""));
}

#[test]
fn a_remembered_client_stays() {
    let Some((scratch, mut nft)) = loaded() else { return };
    scratch.run("ip addr add 10.99.0.1/32 dev lo");
    serve(&scratch, &["127.0.0.11", "127.0.0.12"]);
    let stay = vec![daddr(0), saddr(1), Expr::Lookup { set: AFFINITY.set, sreg: Reg(0), dreg: Some(Reg(8)) }, dnat(8)];
    let timeout = Some(Duration::from_secs(600));
    let pick = vec![
        daddr(0),
        Expr::Numgen { dreg: Reg(1), modulus: 2, offset: 0, kind: NumgenKind::Incremental },
        Expr::Lookup { set: SLOT.set, sreg: Reg(0), dreg: Some(Reg(8)) },
        saddr(1),
        Expr::Dynset { op: DynsetOp::Update, set: AFFINITY.set, key: Reg(0), data: Some(Reg(8)), timeout },
        dnat(8),
    ];
    nft.commit(&balanced(vec![rule("pick", "stay", stay), rule("pick", "pick and remember", pick)])).unwrap();
    let answers: Vec<String> = (0..5).map(|_| ask(&scratch, "10.99.0.1")).collect();
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "{answers:?}");
    let remembered = nft.elements(Family::Inet, TABLE, AFFINITY.set).unwrap();
    assert_eq!(remembered.len(), 1, "{remembered:?}");
    assert_eq!(remembered[0].data, value(ip(&answers[0])));
    // The element has its own timeout, which is what a dump shows.
    assert_eq!(remembered[0].timeout, timeout);
}

#[test]
fn a_hundred_thousand_elements_commit_at_once() {
    let Some((_scratch, mut nft)) = loaded() else { return };
    let add_all = |data: u32| -> Vec<NftOp> {
        (0..100_000u32).map(|key| add(FRONT, key.to_be_bytes().to_vec(), value(data.to_ne_bytes().to_vec()))).collect()
    };
    let timed = |what: &str, nft: &mut NftSocket, ops: &[NftOp]| {
        let start = Instant::now();
        nft.commit(ops).unwrap();
        println!("{what}: {:?}", start.elapsed());
    };
    timed("add 100,000 elements", &mut nft, &add_all(1));
    // A deletion and an addition for each, interleaved: nothing can be grouped, and it is the largest batch of all.
    let replace: Vec<NftOp> = add_all(2)
        .into_iter()
        .take(75_000)
        .flat_map(|op| {
            let NftOp::AddElement { set, key, .. } = &op else { unreachable!() };
            [NftOp::DeleteElement { set: *set, key: key.clone() }, op]
        })
        .collect();
    timed("replace 75,000 elements", &mut nft, &replace);
    let (deletions, additions): (Vec<NftOp>, Vec<NftOp>) =
        replace.iter().cloned().partition(|op| matches!(op, NftOp::DeleteElement { .. }));
    timed("replace 75,000 elements, deletions first", &mut nft, &[deletions, additions].concat());
    timed("replace one element", &mut nft, &[replace[0].clone(), add(FRONT, 0u32.to_be_bytes().to_vec(), value(vec![9; 4]))]);

    let start = Instant::now();
    let held = nft.elements(Family::Inet, TABLE, FRONT.set).unwrap();
    println!("read {} elements: {:?}", held.len(), start.elapsed());
    assert_eq!(held.len(), 100_000);
    assert_eq!(held.iter().filter(|element| element.data == value(2u32.to_ne_bytes().to_vec())).count(), 74_999);

    // All refused, and the first one is named although the answers do not fit.
    let again = add_all(3);
    let error = nft.commit(&again).unwrap_err();
    assert!(matches!(&error, KernelError::Exists { action } if action.contains("add element 00000000 ")), "{error}");
    assert_eq!(nft.elements(Family::Inet, TABLE, FRONT.set).unwrap().len(), 100_000);
}

#[test]
fn the_error_names_the_refused_element() {
    let Some((_scratch, mut nft)) = loaded() else { return };
    let plain = set("plain");
    let key = |port: u16| [vec![6, 0, 0, 0], port.to_be_bytes().to_vec(), vec![0, 0]].concat();
    let mut ops: Vec<NftOp> = (1..2_000).map(|port| add(plain, key(port), None)).collect();
    ops.push(add(plain, vec![1, 2, 3], None));
    let error = nft.commit(&ops).unwrap_err();
    assert!(error.to_string().contains("add element 010203 to inet mesh plain"), "{error}");
    assert!(nft.elements(Family::Inet, TABLE, "plain").unwrap().is_empty());

    let missing = rule("dispatch", "no such set", vec![daddr(0), Expr::Lookup { set: "absent", sreg: Reg(0), dreg: None }]);
    let error = nft.commit(&[missing]).unwrap_err();
    assert!(matches!(&error, KernelError::NotFound { action } if action.contains("expression 1 (lookup)")), "{error}");
}

/// What the documentation of `Expr::Lookup` says of `nft list`: a value is used from its second word on.
#[test]
fn a_map_value_can_be_a_key_and_still_be_listed() {
    let Some((scratch, mut nft)) = loaded() else { return };
    load_script(&scratch.ns, "table inet mesh {\n map wide { type ipv4_addr : mark . mark; }\n }").unwrap();
    let class = 1u32.to_ne_bytes();
    let decoyed = vec![
        daddr(0),
        Expr::Meta { key: MetaKey::Mark, dreg: Reg(1) },
        Expr::Lookup { set: "wide", sreg: Reg(0), dreg: Some(Reg(0)) },
        Expr::LookupVerdict { set: CLASSES.set, sreg: Reg(1) },
    ];
    nft.commit(&[
        chain("pick"),
        rule("dispatch", "by the second word", decoyed),
        rule("pick", "to the one backend", vec![Expr::Immediate { dreg: Reg(0), data: ip("127.0.0.11") }, dnat(0)]),
        add(CLASSES, class.to_vec(), Some(ElementData::Goto("pick".to_owned()))),
        add(set("wide"), ip("10.99.0.1"), value([class, class].concat())),
    ])
    .unwrap();
    scratch.run("ip addr add 10.99.0.1/32 dev lo");
    serve(&scratch, &["127.0.0.11"]);
    assert_eq!(ask(&scratch, "10.99.0.1"), "127.0.0.11");
    let listed = scratch.run("nft list table inet mesh");
    assert!(listed.contains("comment \"by the second word\""), "{listed}");
}

/// Each expression is accepted, and nft can list what it makes of it.
#[test]
fn every_expression_is_understood() {
    let Some((scratch, mut nft)) = loaded() else { return };
    scratch.run("ip link add probe type bridge");
    load_script(
        &scratch.ns,
        "table inet mesh {
            chain mangle { type filter hook prerouting priority -150; }
            chain input { type filter hook input priority 0; }
            chain source { type nat hook postrouting priority 100; }
        }
        table netdev mesh { chain egress { type filter hook egress device \"probe\" priority 0; policy accept; }
        }",
    )
    .unwrap();
    let mark = 5u32.to_ne_bytes().to_vec();
    let mut mangle = vec![
        Expr::Immediate { dreg: Reg(0), data: mark.clone() },
        Expr::MetaSetMark { sreg: Reg(0) },
        Expr::CtSetMark { sreg: Reg(0) },
        Expr::Bitwise { sreg: Reg(0), dreg: Reg(1), len: 4, mask: vec![0xff; 4], xor: vec![1, 0, 0, 0] },
        Expr::Jhash { sreg: Reg(0), dreg: Reg(2), len: 4, modulus: 1, seed: 7, offset: 0 },
        Expr::Numgen { dreg: Reg(3), modulus: 10, offset: 1, kind: NumgenKind::Random },
        Expr::PayloadWrite {
            base: PayloadBase::Network,
            offset: 16,
            len: 4,
            sreg: Reg(0),
            checksum: Checksum::InetAndPseudoHeader { offset: 10 },
        },
        Expr::PayloadWrite { base: PayloadBase::Network, offset: 8, len: 4, sreg: Reg(0), checksum: Checksum::PseudoHeader },
        Expr::PayloadWrite { base: PayloadBase::Network, offset: 1, len: 1, sreg: Reg(0), checksum: Checksum::Inet { offset: 10 } },
    ];
    for key in [
        MetaKey::Length,
        MetaKey::Protocol,
        MetaKey::Mark,
        MetaKey::Iif,
        MetaKey::Oif,
        MetaKey::IifName,
        MetaKey::OifName,
        MetaKey::IifType,
        MetaKey::NfProto,
        MetaKey::L4Proto,
        MetaKey::PacketType,
        MetaKey::Cpu,
        MetaKey::Random,
    ] {
        mangle.push(Expr::Meta { key, dreg: Reg(4) });
    }
    for key in [CtKey::State, CtKey::Direction, CtKey::Status, CtKey::Mark] {
        mangle.push(Expr::Ct { key, dreg: Reg(4) });
    }
    for side in [CtDirection::Original, CtDirection::Reply] {
        for key in [
            CtKey::Protocol(side),
            CtKey::SourceV4(side),
            CtKey::DestinationV4(side),
            CtKey::SourceV6(side),
            CtKey::DestinationV6(side),
            CtKey::SourcePort(side),
            CtKey::DestinationPort(side),
        ] {
            mangle.push(Expr::Ct { key, dreg: Reg(4) });
        }
    }
    for op in [CmpOp::Eq, CmpOp::Neq, CmpOp::Lt, CmpOp::Lte, CmpOp::Gt, CmpOp::Gte] {
        mangle.push(Expr::Cmp { sreg: Reg(0), op, data: mark.clone() });
    }
    mangle.push(Expr::Lookup { set: "classes_set", sreg: Reg(0), dreg: None });
    load_script(&scratch.ns, "table inet mesh {\n set classes_set { type mark; flags dynamic; size 10; }\n }").unwrap();
    for op in [DynsetOp::Add, DynsetOp::Delete] {
        mangle.push(Expr::Dynset { op, set: "classes_set", key: Reg(0), data: None, timeout: None });
    }
    mangle.push(Expr::Counter);
    mangle.push(Expr::Verdict(Verdict::Return));

    let tcp = vec![Expr::Meta { key: MetaKey::L4Proto, dreg: Reg(0) }, Expr::Cmp { sreg: Reg(0), op: CmpOp::Eq, data: vec![6] }];
    let reset = [tcp, vec![Expr::Reject(RejectKind::TcpReset)]].concat();
    let snat = vec![
        Expr::Meta { key: MetaKey::L4Proto, dreg: Reg(2) },
        Expr::Cmp { sreg: Reg(2), op: CmpOp::Eq, data: vec![6] },
        Expr::Immediate { dreg: Reg(0), data: ip("fd00::1") },
        Expr::Immediate { dreg: Reg(4), data: 80u16.to_be_bytes().to_vec() },
        Expr::Nat { kind: NatKind::Snat, family: NatFamily::V6, address: Some(Reg(0)), port: Some(Reg(4)) },
    ];
    let egress = vec![
        Expr::Meta { key: MetaKey::Mark, dreg: Reg(0) },
        Expr::PayloadWrite { base: PayloadBase::Link, offset: 2, len: 4, sreg: Reg(0), checksum: Checksum::None },
        Expr::Verdict(Verdict::Accept),
    ];
    nft.commit(&[
        chain("side"),
        rule("mangle", "everything", mangle),
        rule("mangle", "", vec![Expr::Verdict(Verdict::Jump("side".to_owned()))]),
        rule("input", "no", reset),
        rule("input", "no", vec![Expr::Reject(RejectKind::IcmpxPortUnreachable)]),
        rule("input", "no", vec![Expr::Verdict(Verdict::Drop)]),
        rule("source", "snat", snat),
        rule("source", "masquerade", vec![Expr::Masquerade]),
        NftOp::AddRule {
            family: Family::Netdev,
            table: TABLE,
            chain: "egress".to_owned(),
            comment: "way back".to_owned(),
            expressions: egress,
        },
    ])
    .unwrap();
    assert_eq!(nft.rules_count(Family::Inet, TABLE, "mangle").unwrap(), 2);
    assert_eq!(nft.rules_count(Family::Inet, TABLE, "side").unwrap(), 0);
    assert_eq!(nft.rules_count(Family::Netdev, TABLE, "egress").unwrap(), 1);
    assert_eq!(nft.rules_count(Family::Inet, TABLE, "absent").unwrap(), 0);
    let listed = scratch.run("nft list ruleset");
    println!("{listed}");
    for part in
        ["comment \"everything\"", "reject with tcp reset", "reject comment \"no\"", "snat ip6 to [fd00::1]:80", "masquerade", "jump side"]
    {
        assert!(listed.contains(part), "no {part} in {listed}");
    }
}

#[test]
fn tables_chains_and_generation_are_read() {
    let Some((scratch, mut nft)) = loaded() else { return };
    scratch.run("nft add table bridge other");
    scratch.run("nft add table ip other");
    scratch.run("nft add chain inet mesh extra");
    assert_eq!(nft.tables().unwrap(), [(Family::Inet, "mesh".to_owned()), (Family::Ip, "other".to_owned())]);
    let mut chains = nft.chains(Family::Inet, TABLE).unwrap();
    chains.sort();
    assert_eq!(chains, ["dispatch", "extra", "output"]);
    assert!(nft.chains(Family::Ip, "other").unwrap().is_empty());
    assert!(matches!(nft.chains(Family::Inet, "absent"), Err(KernelError::NotFound { .. })));
    assert!(matches!(nft.elements(Family::Inet, TABLE, "absent"), Err(KernelError::NotFound { .. })));
    let before = nft.generation().unwrap();
    nft.commit(&[chain("more")]).unwrap();
    assert_ne!(nft.generation().unwrap(), before);
    nft.commit(&[]).unwrap();
}

#[test]
fn scripts_are_checked_and_refused_by_type() {
    let Some(scratch) = Scratch::new() else { return };
    check_script(&scratch.ns, SKELETON).unwrap();
    assert!(NftSocket::open(&scratch.ns).unwrap().tables().unwrap().is_empty());
    let error = load_script(&scratch.ns, "table inet mesh { nonsense }").unwrap_err();
    assert!(matches!(&error, KernelError::Tool { tool: "nft", output, .. } if output.contains("nonsense")), "{error}");
}

#[test]
fn a_monitor_tells_who_took_what_apart() {
    let Some((scratch, mut nft)) = loaded() else { return };
    let mut monitor = NftMonitor::open(&scratch.ns).unwrap();
    assert!(monitor.read_events().unwrap().is_empty());
    let plain = set("plain");
    nft.commit(&[add(plain, vec![6, 0, 0, 0, 0, 80, 0, 0], None), add(plain, vec![6, 0, 0, 0, 0, 81, 0, 0], None), chain("own")]).unwrap();
    nft.commit(&[NftOp::FlushSet { set: plain }]).unwrap();
    let events = monitor.read_events().unwrap();
    assert!(events.iter().all(|event| event.port() == Some(nft.port_id())), "{events:?}");
    assert!(matches!(&events[1], NftEvent::ElementsDeleted { set, .. } if set == "plain"), "{events:?}");
    assert_eq!(events.len(), 3, "{events:?}");

    scratch.run("nft delete table inet mesh");
    let events = monitor.read_events().unwrap();
    println!("{events:#?}");
    assert!(events.iter().all(|event| event.port() != Some(nft.port_id())));
    let has = |wanted: &dyn Fn(&NftEvent) -> bool| events.iter().any(wanted);
    assert!(has(&|event| matches!(event, NftEvent::TableDeleted { table, .. } if table == "mesh")));
    assert!(has(&|event| matches!(event, NftEvent::ChainDeleted { chain, .. } if chain == "own")));
    assert!(has(&|event| matches!(event, NftEvent::RuleDeleted { chain, .. } if chain == "output")));
    assert!(has(&|event| matches!(event, NftEvent::SetDeleted { set, .. } if set == "plain")));
    assert!(
        matches!(events.last(), Some(NftEvent::Generation { name: Some(name), id, .. }) if name == "nft" && *id == nft.generation().unwrap())
    );
}

#[test]
fn a_monitor_survives_large_commits() {
    let Some((scratch, mut nft)) = loaded() else { return };
    let mut monitor = NftMonitor::open(&scratch.ns).unwrap();
    let ops: Vec<NftOp> = (0..100_000u32).map(|key| add(FRONT, key.to_be_bytes().to_vec(), value(vec![1; 4]))).collect();
    nft.commit(&ops).unwrap();
    nft.commit(&[NftOp::FlushSet { set: FRONT }]).unwrap();
    let events = monitor.read_events().unwrap();
    println!("{events:?}");
    assert!(!events.contains(&NftEvent::Lost), "{events:?}");
    assert_eq!(events.len(), 3, "{events:?}");
}

#[test]
fn a_handle_does_it_all_by_path() {
    let Some(scratch) = Scratch::new() else { return };
    let mut namespace = scratch.namespace();
    assert_eq!(namespace.chains(Family::Inet, TABLE).unwrap(), None);
    namespace.load_script(SKELETON).unwrap();
    assert_eq!(namespace.chains(Family::Inet, TABLE).unwrap().unwrap().len(), 2);
    assert!(namespace.has_rules(Family::Inet, TABLE, "output").unwrap());
    assert!(!namespace.has_rules(Family::Inet, TABLE, "dispatch").unwrap());
    namespace.commit(&[add(FRONT, ip("10.0.0.1"), value(vec![1; 4]))]).unwrap();
    let held = namespace.elements(FRONT).unwrap();
    assert_eq!(held, [Element { key: ip("10.0.0.1"), data: value(vec![1; 4]), timeout: None }]);
    let loopback = namespace.interfaces().unwrap().into_iter().find(|interface| interface.name == "lo").unwrap();
    assert!(loopback.up && loopback.addresses.contains(&"127.0.0.1/8".parse().unwrap()));
    assert_eq!(namespace.sysctl_read("net/netfilter/nf_conntrack_count").unwrap(), "0");
    let mut monitor = LinuxKernel.open_monitor(Some(&scratch.path())).unwrap();
    namespace.commit(&[NftOp::FlushSet { set: FRONT }]).unwrap();
    let own = namespace.port_id().unwrap();
    assert!(monitor.read_events().unwrap().iter().all(|event| event.port() == Some(own)));
}
