//! The shape of our tables: names, marks, and the skeletons as nft text.
//!
//! What can be decided once per connection is decided in nat chains, which see a connection's first packet only; chains
//! that see every packet hold one rule or two.
//!
//! Three kinds of namespace have one each. Everything is in `inet swarmesh` (and, in a task, `netdev swarmesh` for the last
//! step of the way back). Docker's tables are never touched: ours stand at earlier priorities of the same hooks.
//!
//! A skeleton holds what depends on the namespace's interfaces only. What depends on the swarm is elements of its maps.
//! Loading it again is harmless: sets are added when missing, chains are emptied and filled in the same transaction.

use std::{
    collections::hash_map::DefaultHasher,
    fmt::Write,
    hash::{Hash, Hasher},
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net};
use swarmesh_kernel::{Expr, Family, NftOp, PayloadBase, Reg, SetName};

use crate::PlaneError;

/// Name of our tables in every namespace.
pub const TABLE: &str = "swarmesh";

/// Grows when the meaning of sets or of encoded rules changes, so that a newer agent does not trust an older one's.
const LAYOUT: u32 = 1;

/// Connections that came in by an entry node carry this mark; the bits outside of [`MARK_MASK`] tell which.
///
/// The low 20 bits of an entry node's ingress address, as they stand in its MAC (Docker gives a swarm endpoint
/// `02:42` and its IPv4 address), are copied from packet bytes to mark and back. So the constants are the bytes
/// `57 50 00 00` and `ff f0 00 00` in packet order, read as the native integers that a mark is.
pub const MARK: u32 = u32::from_ne_bytes([0x57, 0x50, 0x00, 0x00]);
pub const MARK_MASK: u32 = u32::from_ne_bytes([0xff, 0xf0, 0x00, 0x00]);
/// Connections that came straight from this node, from a client that the task's own routes would answer by another leg.
pub(crate) const NEAR_MARK: u32 = u32::from_ne_bytes([0x57, 0xd0, 0x00, 0x00]);
/// Both of these marks, by what they have in common.
pub(crate) const ANSWER_MASK: u32 = u32::from_ne_bytes([0xff, 0x70, 0x00, 0x00]);
/// Copies the varying bits.
const ENTRY_BITS: [u8; 4] = [0x00, 0x0f, 0xff, 0xff];

/// In the ingress sandbox: this connection's client is not to be shown to the task (`swarmesh.source=snat`).
const HIDDEN_MARK: u32 = 0x5751_0001;

/// Packets to a frontend that IPVS balances carry a mark of this range: the upper 8 bits, as the number that IPVS compares.
pub(crate) const VIRTUAL_MARK: u32 = 0x4d00_0000;
pub(crate) const VIRTUAL_MASK: u32 = 0xff00_0000;
/// The one that no virtual server has.
pub(crate) const REFUSE_MARK: u32 = VIRTUAL_MARK;

/// Routing table and rule priority of the way back in a task's namespace.
pub const RETURN_TABLE: u32 = 5750;
pub const RETURN_PRIORITY: u32 = 5750;
/// The same for the leg on the node's bridge.
pub const NEAR_TABLE: u32 = 5751;
pub(crate) const NEAR_PRIORITY: u32 = 5751;
/// A next hop that only exists as a permanent neighbour: the real MAC is written at egress.
pub(crate) const RETURN_VIA4: Ipv4Addr = Ipv4Addr::new(169, 254, 87, 80);
pub(crate) const RETURN_VIA6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0x57, 0x50);
pub(crate) const RETURN_MAC: [u8; 6] = [0x02, 0x42, 0, 0, 0, 1];

pub(crate) const fn inet(set: &'static str) -> SetName {
    SetName { family: Family::Inet, table: TABLE, set }
}

/// The sets of one address family's balancer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BalancerSets {
    /// Frontend to class.
    pub(crate) front: SetName,
    /// Class to the chain that picks a slot.
    pub(crate) classes: SetName,
    /// Frontend and slot to backend.
    pub(crate) slot: SetName,
    /// The same for frontends with affinity.
    pub(crate) sticky: SetName,
    /// Frontend and client to the backend that the client stays with.
    pub(crate) affinity: SetName,
    /// Frontend and backend, for frontends with affinity: the memory of a backend that is gone is not believed.
    pub(crate) live: SetName,
    pub(crate) dispatch: &'static str,
}

pub(crate) const SETS4: BalancerSets = BalancerSets {
    front: inet("front4"),
    classes: inet("classes4"),
    slot: inet("slot4"),
    sticky: inet("sticky4"),
    affinity: inet("affinity4"),
    live: inet("live4"),
    dispatch: "dispatch4",
};
pub(crate) const SETS6: BalancerSets = BalancerSets {
    front: inet("front6"),
    classes: inet("classes6"),
    slot: inet("slot6"),
    sticky: inet("sticky6"),
    affinity: inet("affinity6"),
    live: inet("live6"),
    dispatch: "dispatch6",
};

/// The maps of one address family's virtual servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VirtualSets {
    /// Frontend to mark.
    pub(crate) marks: SetName,
    /// Frontend that refuses to the mark that it had.
    pub(crate) parked: SetName,
}

pub(crate) const VIRTUALS4: VirtualSets = VirtualSets { marks: inet("marks4"), parked: inet("parked4") };
pub(crate) const VIRTUALS6: VirtualSets = VirtualSets { marks: inet("marks6"), parked: inet("parked6") };

/// The chain that only a table has whose frontends are virtual servers.
pub(crate) const MARK_CHAIN: &str = "to_virtual";

/// Class 0: no backend, refuse.
pub(crate) const REFUSE_CLASS: u32 = 0;
pub(crate) const REFUSE_CHAIN: &str = "refuse";

/// A skeleton's text and the marker chain whose presence says that it is loaded.
#[derive(Clone, Debug)]
pub(crate) struct Skeleton {
    pub(crate) script: String,
    /// Its sets and maps alone, and chains that nothing leads to yet.
    pub(crate) declarations: String,
    pub(crate) marker: String,
    /// Chains that must not be empty.
    pub(crate) chains: Vec<&'static str>,
    /// All chains that it names itself.
    names: Vec<&'static str>,
    /// Has the table with the last step of the way back.
    pub(crate) netdev: bool,
}

impl Skeleton {
    fn new(body: &str, chains: &[(&'static str, &str, String)], netdev: Option<&str>) -> Self {
        let mut hasher = DefaultHasher::new();
        (body, chains, netdev).hash(&mut hasher);
        let marker = format!("{}{:016x}", Self::prefix(), hasher.finish());
        let declarations = format!("table inet {TABLE} {{\n{body}}}\n");
        let mut script = format!("table inet {TABLE} {{\n{body}\tchain {marker} {{ }}\n");
        for (name, hook, _) in chains {
            let _ = writeln!(script, "\tchain {name} {{ {hook} }}");
        }
        script.push_str("}\n");
        for (name, _, rules) in chains {
            let _ = writeln!(script, "flush chain inet {TABLE} {name}\ntable inet {TABLE} {{ chain {name} {{\n{rules}\t}}\n}}");
        }
        if let Some(device) = netdev {
            let _ = writeln!(
                script,
                "table netdev {TABLE} {{\n\tchain way_back {{ type filter hook egress device \"{device}\" priority 0; policy accept; }}\n}}"
            );
        }
        let names = chains.iter().map(|(name, _, _)| *name).collect();
        let chains = chains.iter().filter(|(_, _, rules)| !rules.is_empty()).map(|(name, _, _)| *name).collect();
        Self { script, declarations, marker, chains, names, netdev: netdev.is_some() }
    }

    /// True for a chain that a skeleton with other parameters had and this one has not.
    pub(crate) fn has_done_with(&self, chain: &str) -> bool {
        let kept = ["dispatch", "pick", "bindings_", "was_off_", "was_on_", "layout_"];
        !self.names.contains(&chain) && !kept.iter().any(|k| chain.starts_with(k))
    }

    /// True for a chain whose rules it brings along.
    pub(crate) fn rewrites(&self, chain: &str) -> bool {
        self.names.contains(&chain)
    }

    /// Marker chains of this layout start so.
    pub(crate) fn prefix() -> String {
        format!("layout_{LAYOUT}_")
    }
}

/// The chain that only a task with an ingress leg has.
pub(crate) const DELIVER: &str = "deliver";
/// The chain that only a task with that and a leg on the node's bridge has.
pub(crate) const ARRIVE: &str = "arrive";

const REFUSE: &str = "\t\tmeta l4proto tcp reject with tcp reset\n\t\treject with icmpx type port-unreachable\n";

/// What a published port is looked up by.
const PORT: &str = "inet_proto . inet_service";

/// The maps that a balancer lives in, by family: number, type of addresses, and what a frontend is looked up by.
///
/// Values that are looked up again have a first word without meaning: `nft list` stops at a rule whose key begins with
/// the first word of another map's value (see [`Expr::Lookup`]), and operators list rules.
fn balancer_maps(out: &mut String, families: &[(&str, &str, &str)]) {
    for (n, address, key) in families {
        let _ = writeln!(out, "\tmap front{n} {{ type {key} : mark . mark; }}");
        let _ = writeln!(out, "\tmap slot{n} {{ type {key} . mark : {address}; }}");
        let _ = writeln!(out, "\tmap sticky{n} {{ type {key} . mark : mark . {address}; }}");
        let _ = writeln!(out, "\tmap classes{n} {{ type mark : verdict; elements = {{ 0x{REFUSE_CLASS:08x} : goto {REFUSE_CHAIN} }}; }}");
        let _ = writeln!(out, "\tmap affinity{n} {{ type {key} . {address} : mark . {address}; size 262144; flags dynamic,timeout; }}");
        let _ = writeln!(out, "\tset live{n} {{ type {key} . {address}; }}");
    }
}

/// The maps that lead to virtual servers, by family: number, and what a frontend is looked up by.
fn virtual_maps(out: &mut String, families: &[(&str, &str)]) {
    for (n, key) in families {
        let _ = writeln!(out, "\tmap marks{n} {{ type {key} : mark; }}");
        let _ = writeln!(out, "\tmap parked{n} {{ type {key} : mark; }}");
    }
}

/// Interface names stand between quotes in scripts, and as words of iptables. Linux allows almost any byte in them, but
/// nft's strings have no escape for a quote, and a name's last `*` (nft) or `+` (iptables) would stand for many names.
pub(crate) fn check_name(name: &str) -> Result<(), PlaneError> {
    let odd = |c: char| !c.is_ascii_graphic() || matches!(c, '"' | '\\' | '*' | '+');
    if name.is_empty() || name.starts_with(['-', '!']) || name.contains(odd) {
        return Err(PlaneError::OddInterface { name: name.to_owned() });
    }
    Ok(())
}

/// The node's own namespace: published ports on its addresses, handed to the ingress sandbox or straight to tasks of this
/// node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct NodeParameters {
    /// The bridge that the ingress sandbox hangs on, and the sandbox's addresses there.
    pub(crate) bridge: String,
    pub(crate) sandbox4: Option<Ipv4Addr>,
    pub(crate) sandbox6: Option<Ipv6Addr>,
    /// What tasks see of clients whose own address means nothing outside of this node.
    pub(crate) node4: Option<Ipv4Addr>,
    pub(crate) node6: Option<Ipv6Addr>,
    /// Subnets of this node's own bridges: the same ones exist on every node.
    pub(crate) private: Vec<IpNet>,
    /// Without a way for IPv6, refuse it rather than let Docker's silent listener accept (moby 53091).
    pub(crate) refuse6: bool,
}

pub(crate) fn node_skeleton(p: &NodeParameters) -> Skeleton {
    let bridge = &p.bridge;
    let mut body = String::new();
    balancer_maps(&mut body, &[("4", "ipv4_addr", PORT)]);
    body.push_str("\tchain dispatch4 { }\n\tset direct { type inet_service; }\n");
    body.push_str("\tset published { type inet_proto . inet_service; }\n");
    body.push_str("\tset bound { type inet_proto . inet_service; }\n");
    body.push_str("\tset bound4 { type inet_proto . inet_service . ipv4_addr; flags interval; }\n");
    body.push_str("\tset bound6 { type inet_proto . inet_service . ipv6_addr; flags interval; }\n");

    // We let 127.0.0.0/8 pass on the bridge for the answers to this node's own connections, and nobody else may use that.
    let guard = format!("\t\tiifname \"{bridge}\" ip daddr 127.0.0.0/8 drop\n");

    let (mut enter, mut severed) = (String::new(), String::new());
    if let Some(sandbox) = p.sandbox4 {
        // The sandbox is reached through a published port or not at all: no route of a neighbour's leads to it.
        let _ = writeln!(enter, "\t\tiifname != \"{bridge}\" ip daddr {sandbox} drop");
    }
    if let Some(sandbox) = p.sandbox6 {
        let _ = writeln!(enter, "\t\tiifname != \"{bridge}\" ip6 daddr {sandbox} drop");
    }
    if let Some(sandbox) = p.sandbox4 {
        // A task's answer whose connection was cut would begin a new one here and go on under the port it had. (What the
        // sandbox sends is judged there.)
        let _ = writeln!(enter, "\t\tiifname \"{bridge}\" ip saddr != {sandbox} tcp flags & (syn | ack) != syn jump severed");
        for set in ["published", "bound"] {
            let _ = writeln!(severed, "\t\tmeta l4proto . th sport @{set} drop");
        }
    }
    enter.push_str("\t\tfib daddr type != local return\n");
    // This runs before the routing decision that would drop a martian, so it must say itself that loopback stays
    // loopback (moby 45610): nobody on a wire may send to 127.0.0.1 or ::1.
    enter.push_str("\t\tiifname != \"lo\" ip daddr 127.0.0.0/8 drop\n\t\tiifname != \"lo\" ip6 daddr ::1 drop\n");
    enter.push_str("\t\tgoto published_ports\n");

    let (mut published, mut entrust) = (String::new(), String::new());
    if let Some(to) = p.sandbox4 {
        published.push_str("\t\tmeta nfproto ipv4 meta l4proto . th dport @published goto entrust\n");
        // The protocol from the header: of `meta l4proto` in a key with ranges, nft up to 1.0.6 makes a swap of two bytes in
        // one, which Linux 6.12.117 refuses.
        published.push_str("\t\tip protocol . th dport . ip daddr @bound4 goto entrust\n");
        // Whatever the balancer has no task of this node for is the sandbox's: ports that it does not know, and slots
        // that nothing is in.
        let _ = writeln!(entrust, "\t\tjump dispatch4\n\t\tdnat ip to {to}");
    }
    if let Some(to) = p.sandbox6 {
        // ::1 has no route_localnet: as a source it never leaves by a bridge. Refused rather than left waiting.
        published.push_str("\t\tip6 daddr ::1 meta l4proto . th dport @published goto refuse\n");
        published.push_str("\t\tip6 daddr ::1 meta l4proto . th dport @bound goto refuse\n");
        let _ = writeln!(published, "\t\tmeta nfproto ipv6 meta l4proto . th dport @published dnat ip6 to {to}");
        let _ = writeln!(published, "\t\tip6 nexthdr . th dport . ip6 daddr @bound6 dnat ip6 to {to}");
    }
    if p.refuse6 {
        published.push_str("\t\tmeta nfproto ipv6 meta l4proto . th dport @published goto refuse\n");
    }
    // A port that listens on few addresses is refused on the others, before Docker's rules offer it on all.
    published.push_str("\t\tmeta l4proto . th dport @bound goto refuse\n");

    // Addresses that exist on every node would collide at a task that two nodes deliver to, and answers to the bridge's
    // own neighbours would not come back through this node's connection table.
    let (mut source, mut disguise) = (String::new(), String::new());
    if let Some(sandbox) = p.sandbox4 {
        let ours = format!("oifname \"{bridge}\" ct status dnat");
        let _ = writeln!(source, "\t\t{ours} ip daddr {sandbox} goto disguise");
        // By the port that was asked for, connections to tasks are told from those to their host-mode ports, which are
        // Docker's.
        let _ = writeln!(source, "\t\t{ours} meta nfproto ipv4 meta l4proto tcp ct original proto-dst @direct goto disguise");
        let to = p.node4.map_or_else(|| "masquerade".to_owned(), |a| format!("snat ip to {a}"));
        let _ = writeln!(disguise, "\t\tip saddr 127.0.0.0/8 {to}");
        for net in p.private.iter().filter(|net| net.addr().is_ipv4()) {
            let _ = writeln!(disguise, "\t\tip saddr {net} {to}");
        }
        // Claimed as it is, or Docker's rule for local sources would hide this node behind its bridge's address.
        // What came by an interface is not local; kernels before 5.7 do not know here, and look it up.
        disguise.push_str("\t\tmeta iif != 0 return\n\t\tfib saddr type local snat ip to ip saddr\n");
    }
    if let Some(sandbox) = p.sandbox6 {
        let ours = format!("oifname \"{bridge}\" ip6 daddr {sandbox} ct status dnat");
        let to = p.node6.map_or_else(|| "masquerade".to_owned(), |a| format!("snat ip6 to {a}"));
        for net in p.private.iter().filter(|net| net.addr().is_ipv6()) {
            let _ = writeln!(source, "\t\t{ours} ip6 saddr {net} {to}");
        }
    }

    // A segment that the connection tracker cannot place is not translated; answered here, it would draw a reset that ends
    // the connection it belongs to (kubernetes 74839).
    let stray = "\t\tct state invalid meta l4proto . th dport @published drop\n\t\tct state invalid meta l4proto . th dport @bound drop\n";

    Skeleton::new(
        &body,
        &[
            ("guard", "type filter hook prerouting priority -300; policy accept;", guard),
            ("refuse", "", REFUSE.to_owned()),
            ("severed", "", severed),
            ("entrust", "", entrust),
            ("published_ports", "", published),
            ("disguise", "", disguise),
            ("enter", "type nat hook prerouting priority -110; policy accept;", enter),
            ("leave", "type nat hook output priority -110; policy accept;", "\t\tfib daddr type local goto published_ports\n".to_owned()),
            ("stray", "type filter hook input priority -10; policy accept;", stray.to_owned()),
            ("source", "type nat hook postrouting priority 90; policy accept;", source),
        ],
        None,
    )
}

/// Docker's ingress sandbox: published port to a task's ingress address, the client's address kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct IngressParameters {
    /// The leg on the node's bridge, where connections come from.
    pub(crate) bridge_leg: String,
    /// The leg in the ingress network.
    pub(crate) ingress_leg: String,
    pub(crate) mtu: u32,
    /// Ports are virtual servers, or the balancer's.
    pub(crate) virtuals: bool,
}

pub(crate) fn ingress_skeleton(p: &IngressParameters) -> Skeleton {
    let (from, to) = (&p.bridge_leg, &p.ingress_leg);
    let mut body = String::new();
    body.push_str("\tset hidden { type inet_proto . inet_service; }\n");
    if p.virtuals {
        virtual_maps(&mut body, &[("4", PORT), ("6", PORT)]);
    } else {
        balancer_maps(&mut body, &[("4", "ipv4_addr", PORT), ("6", "ipv6_addr", PORT)]);
        body.push_str("\tchain dispatch4 { }\n\tchain dispatch6 { }\n");
    }

    // Nothing passes through here but connections that a published port translates: neither from the node's side nor from
    // members of the ingress network.
    // After the translation the published port is no longer in the packet, so what it asked for is noted before.
    let mut enter = format!(
        "\t\tiifname \"{to}\" fib daddr type != local drop\n\
         \t\tiifname != \"{from}\" return\n\
         \t\tfib daddr type != local drop\n\
         \t\tmeta l4proto . th dport @hidden ct mark set 0x{HIDDEN_MARK:08x}\n"
    );
    if !p.virtuals {
        enter.push_str("\t\tmeta nfproto ipv4 goto dispatch4\n\t\tgoto dispatch6\n");
    }
    // Clamped both ways: the node's leg takes longer packets than VXLAN does. IPv6 and IPv4 headers differ by 20 bytes.
    let (mss4, mss6) = (p.mtu.saturating_sub(40), p.mtu.saturating_sub(60));
    let clamp =
        format!("\t\tmeta nfproto ipv4 tcp option maxseg size set {mss4}\n\t\tmeta nfproto ipv6 tcp option maxseg size set {mss6}\n");
    // As on the node: what cannot be placed must not be answered.
    let stray = "\t\tct state invalid drop\n".to_owned();
    let forward = "\t\tct state invalid drop\n\t\ttcp flags syn goto clamp\n".to_owned();
    let mut chains = vec![
        ("refuse", "", REFUSE.to_owned()),
        ("enter", "type nat hook prerouting priority -110; policy accept;", enter),
        ("clamp", "", clamp),
        ("forward", "type filter hook forward priority -10; policy accept;", forward),
        ("stray", "type filter hook input priority -10; policy accept;", stray),
    ];
    if p.virtuals {
        // Refused before connection tracking takes note of it: a UDP flow that it knew would not be IPVS's to translate when
        // there is a task, and its answers would be nobody's.
        // Behind Docker's own marks (-150), which lead to its virtual servers and stay; and behind translations (-100), so
        // that what another plane of ours translated goes on as it did. IPVS takes packets at input, 98 and 99.
        let mark = format!(
            "\t\tiifname != \"{from}\" return\n\
             \t\tmeta nfproto ipv4 meta mark set meta l4proto . th dport map @marks4\n\
             \t\tmeta nfproto ipv6 meta mark set meta l4proto . th dport map @marks6\n\
             \t\tmeta mark 0x{REFUSE_MARK:08x} ct state new goto refuse\n"
        );
        // What IPVS sends on to a task passes output, its answers pass forward.
        let sent = format!("\t\toifname \"{to}\" meta mark & 0x{VIRTUAL_MASK:08x} == 0x{VIRTUAL_MARK:08x} tcp flags syn goto clamp\n");
        // Claimed as it is, or Docker's rule for what IPVS sends would hide the client behind the sandbox's address.
        let ours = format!("oifname \"{to}\" meta mark & 0x{VIRTUAL_MASK:08x} == 0x{VIRTUAL_MARK:08x}");
        let source = format!(
            "\t\toifname \"{to}\" ct mark 0x{HIDDEN_MARK:08x} masquerade\n\
             \t\t{ours} snat ip to ip saddr\n\
             \t\t{ours} snat ip6 to ip6 saddr\n"
        );
        chains.push((MARK_CHAIN, "type filter hook prerouting priority -99; policy accept;", mark));
        chains.push(("sent", "type filter hook output priority -10; policy accept;", sent));
        chains.push(("source", "type nat hook postrouting priority 90; policy accept;", source));
    } else {
        let source = format!("\t\toifname \"{to}\" ct status dnat ct mark 0x{HIDDEN_MARK:08x} masquerade\n");
        chains.push(("source", "type nat hook postrouting priority 90; policy accept;", source));
    }
    Skeleton::new(&body, &chains, None)
}

/// A task: its VIPs, and (with an ingress leg) published ports coming in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TaskParameters {
    pub(crate) ingress_leg: Option<String>,
    /// The leg on the node's bridge, and the task's address there.
    pub(crate) bridge_leg: Option<(String, Ipv4Addr)>,
    /// VIPs are virtual servers, or the balancer's.
    pub(crate) virtuals: bool,
}

pub(crate) fn task_skeleton(p: &TaskParameters) -> Skeleton {
    let mut body = String::new();
    balancer_maps(&mut body, &[("4", "ipv4_addr", "ipv4_addr"), ("6", "ipv6_addr", "ipv6_addr")]);
    body.push_str("\tchain dispatch4 { }\n\tchain dispatch6 { }\n");
    // Nothing goes out by the ingress leg on the task's own account.
    let no_exit =
        p.ingress_leg.as_ref().map_or_else(String::new, |leg| format!("\t\toifname \"{leg}\" meta l4proto {{ tcp, udp, sctp }} reject\n"));
    // Only new connections come by here; saying so turns connection tracking on, without which none would (a table whose VIPs
    // have no backend at all has no other reason to).
    let mut vips = format!("\t\tct state != new return\n{no_exit}");
    let mut chains = vec![("refuse", "", REFUSE.to_owned())];
    if p.virtuals {
        virtual_maps(&mut body, &[("4", "ipv4_addr"), ("6", "ipv6_addr")]);
        body.push_str("\tmap other4 { type ipv4_addr : ipv4_addr; }\n\tmap other6 { type ipv6_addr : ipv6_addr; }\n");
        let balanced = "meta l4proto { tcp, udp, sctp }";
        // IPVS knows three protocols; of the others, ICMP echo is the one that people send.
        vips.push_str("\t\tmeta l4proto != { tcp, udp, sctp } dnat ip to ip daddr map @other4\n");
        vips.push_str("\t\tmeta l4proto != { tcp, udp, sctp } dnat ip6 to ip6 daddr map @other6\n");
        // Behind translations (-100), whose packets are for no VIP any more; before IPVS (-98).
        let ours = format!("meta mark & 0x{VIRTUAL_MASK:08x} == 0x{VIRTUAL_MARK:08x}");
        // What IPVS sends on comes by here a second time.
        let mark = format!(
            "\t\t{ours} meta mark set 0x00000000 return\n\
             \t\tmeta nfproto ipv4 {balanced} meta mark set ip daddr map @marks4\n\
             \t\tmeta nfproto ipv6 {balanced} meta mark set ip6 daddr map @marks6\n"
        );
        // What is for a VIP still is what IPVS has no virtual server or no connection for. It must not leave: Docker's own
        // sandbox may have that address, or nobody, and then its sender would wait.
        let unknown = format!(
            "\t\t{ours} meta nfproto ipv4 meta mark set ip daddr map @marks4 goto refuse\n\
             \t\t{ours} meta nfproto ipv6 meta mark set ip6 daddr map @marks6 goto refuse\n"
        );
        chains.push((MARK_CHAIN, "type filter hook output priority -99; policy accept;", mark));
        chains.push(("unknown", "type filter hook output priority -90; policy accept;", unknown));
    }
    // With virtual servers, this is for the share that the task itself has of its own services: IPVS cannot send a packet of
    // this namespace back to it.
    vips.push_str("\t\tmeta nfproto ipv4 goto dispatch4\n\t\tmeta nfproto ipv6 goto dispatch6\n");
    chains.push(("vips", "type nat hook output priority -110; policy accept;", vips));
    if let Some(leg) = &p.ingress_leg {
        body.push_str("\tmap port4 { type inet_proto . inet_service : ipv4_addr . inet_service; }\n");
        body.push_str("\tmap port6 { type inet_proto . inet_service : ipv6_addr . inet_service; }\n");
        let [mask, mark] = [u32::from_be_bytes(ENTRY_BITS), 0x5750_0000];
        body.push_str("\tset near { type inet_service; }\n");
        let mut stray = format!("\t\tiifname \"{leg}\" ct state invalid drop\n");
        let answer = format!("\t\tct direction reply ct mark & 0x{ANSWER_MASK:08x} == 0x{MARK:08x} meta mark set ct mark\n");
        // The entry node is remembered; then, as Docker has it, only published ports come in by this leg. The numbers of
        // the first rule are in packet order: nft takes a raw payload byte by byte.
        let mut deliver = String::new();
        if let Some((bridge, address)) = &p.bridge_leg {
            let _ = writeln!(stray, "\t\tiifname \"{bridge}\" ct state invalid ip daddr {address} tcp dport @near drop");
            let _ = writeln!(deliver, "\t\tiifname \"{bridge}\" ip daddr {address} tcp dport @near goto arrive");
            // The answer goes out by the default route, unless the client's address is one that a route of the task's
            // own leads to: an overlay's subnet, which may well be somebody's network outside, too.
            let arrive = format!(
                "\t\tfib saddr . iif oif missing ct mark set 0x{NEAR_MARK:08x}\n\t\tdnat ip to meta l4proto . th dport map @port4\n"
            );
            chains.push((ARRIVE, "", arrive));
        }
        let _ = write!(
            deliver,
            "\t\tiifname != \"{leg}\" return\n\
             \t\tct mark set @ll,64,32 & 0x{mask:08x} | 0x{mark:08x}\n\
             \t\tdnat ip to meta l4proto . th dport map @port4\n\
             \t\tdnat ip6 to meta l4proto . th dport map @port6\n\
             \t\tmeta l4proto {{ tcp, udp, sctp }} drop\n"
        );
        // Two entry nodes may send what one port of a client says to each, and only here it meets: connection tracking tells them
        // apart by a zone of the entry node's, the last two bytes of its MAC. Answers are all of one zone, so if a client's port is
        // taken by another entry node's connection, address translation finds another port for it.
        let entry_node = format!("\t\tiifname \"{leg}\" ct original zone set @ll,80,16\n");
        chains.push(("entry_node", "type filter hook prerouting priority -300; policy accept;", entry_node));
        chains.push(("stray", "type filter hook prerouting priority -150; policy accept;", stray));
        chains.push(("answer", "type route hook output priority -150; policy accept;", answer));
        chains.push((DELIVER, "type nat hook prerouting priority -110; policy accept;", deliver));
    }
    Skeleton::new(&body, &chains, p.ingress_leg.as_deref())
}

/// The one rule of the way back that text cannot express: the entry node's MAC, put together from the mark and what
/// all ingress addresses share.
pub(crate) fn way_back_rule(subnet: Ipv4Net) -> NftOp {
    let bits = u32::from_be_bytes(ENTRY_BITS);
    let shared = (u32::from(subnet.network()) & !bits).to_be_bytes();
    NftOp::AddRule {
        family: Family::Netdev,
        table: TABLE,
        chain: "way_back".to_owned(),
        comment: "answers go back to the entry node that the mark names".to_owned(),
        expressions: vec![
            Expr::Meta { key: swarmesh_kernel::MetaKey::Mark, dreg: Reg(0) },
            Expr::Bitwise { sreg: Reg(0), dreg: Reg(1), len: 4, mask: MARK_MASK.to_ne_bytes().to_vec(), xor: vec![0; 4] },
            Expr::Cmp { sreg: Reg(1), op: swarmesh_kernel::CmpOp::Eq, data: MARK.to_ne_bytes().to_vec() },
            Expr::Bitwise { sreg: Reg(0), dreg: Reg(0), len: 4, mask: ENTRY_BITS.to_vec(), xor: shared.to_vec() },
            Expr::PayloadWrite { base: PayloadBase::Link, offset: 2, len: 4, sreg: Reg(0), checksum: swarmesh_kernel::Checksum::None },
        ],
    }
}

/// The entry node is told apart by 20 bits of its address.
pub(crate) fn fits_in_mark(subnet: &IpNet) -> bool {
    matches!(subnet, IpNet::V4(net) if net.prefix_len() >= 12)
}
