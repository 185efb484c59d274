//! Kernel features, tried for real in a namespace that nobody else sees.

use std::{io, thread};

use nix::sched::{CloneFlags, unshare};
use swarmesh_dataplane::{MARK, MARK_MASK, RETURN_PRIORITY, RETURN_TABLE};
use swarmesh_kernel::{Family, FlowFilter, Kernel, KernelError, LinuxKernel, Namespace, NftOp};
use swarmesh_model::Protocol;

use super::{Finding, tools::run};

const MODULES: &str = "load the module (modprobe), install linux-modules-extra or its like, or use a newer kernel";

/// Feature, what needs it, and a script that loads only where it works.
const SCRIPTS: [(&str, &str, &str); 9] = [
    (
        "maps",
        "frontends and backends live in maps",
        "table inet probe { map m { type inet_proto . inet_service . mark : ipv4_addr; elements = { tcp . 80 . 1 : 192.0.2.1 }; }; }",
    ),
    (
        "dnat",
        "VIPs and published ports are translated in inet tables (Linux 5.2)",
        "table inet probe { chain c { type nat hook prerouting priority -110; dnat ip to 192.0.2.1; dnat ip6 to 2001:db8::1; }; }",
    ),
    (
        "numgen",
        "round robin and random",
        "table inet probe { chain c { type nat hook output priority -110; dnat ip to numgen inc mod 2 map { 0 : 192.0.2.1, 1 : 192.0.2.2 }; }; }",
    ),
    (
        "jhash",
        "swarmesh.scheduler=sh",
        "table inet probe { chain c { type nat hook output priority -110; dnat ip to jhash ip saddr mod 2 map { 0 : 192.0.2.1, 1 : 192.0.2.2 }; }; }",
    ),
    (
        "fib",
        "published ports answer on the node's own addresses",
        "table inet probe { chain c { type nat hook prerouting priority -110; fib daddr type local counter; fib saddr . iif oif missing counter; }; }",
    ),
    (
        "ct",
        "connections remember their entry node",
        "table inet probe { chain c { type filter hook prerouting priority -110; ct state new ct mark set 0x57500001; meta mark set ct mark; meta l4proto tcp ct original proto-dst 80 counter; }; }",
    ),
    (
        "ct zone",
        "a client's port speaks to one task through several nodes (CONFIG_NF_CONNTRACK_ZONES)",
        "table inet probe { chain c { type filter hook prerouting priority -300; ct original zone set @ll,80,16; }; }",
    ),
    (
        "reject",
        "fronts without a task refuse at once, before routing too (Linux 5.9)",
        "table inet probe { chain c { type filter hook prerouting priority -110; meta l4proto tcp reject with tcp reset; reject with icmpx type port-unreachable; }; }",
    ),
    (
        "netdev egress",
        "answers find their entry node (Linux 5.16)",
        "table netdev probe { chain c { type filter hook egress device \"lo\" priority 0; policy accept; ether daddr set 02:42:00:00:00:01; }; }",
    ),
];

pub(super) fn features() -> Vec<Finding> {
    let tried = thread::Builder::new().name("scratch".to_owned()).spawn(|| {
        // Only this thread moves, and it ends here.
        match unshare(CloneFlags::CLONE_NEWNET) {
            Ok(()) => try_all(),
            Err(error) => vec![Finding::critical(
                "features",
                format!("cannot make a network namespace to try them in: {error}"),
                "run as root, or with CAP_SYS_ADMIN and CAP_NET_ADMIN",
            )],
        }
    });
    let not_tried = |why: String| vec![Finding::critical("features", why, "run the doctor again; report this if it stays")];
    match tried.map(thread::JoinHandle::join) {
        Ok(Ok(findings)) => findings,
        Ok(Err(_)) => not_tried("the thread that tries them failed".to_owned()),
        Err(error) => not_tried(format!("cannot start a thread to try them: {error}")),
    }
}

fn try_all() -> Vec<Finding> {
    let mut findings: Vec<Finding> = SCRIPTS.iter().map(|(name, use_, script)| script_finding(name, use_, script)).collect();
    match LinuxKernel.open_current() {
        Ok(mut ns) => {
            findings.push(rules(&mut *ns));
            findings.push(conntrack(&mut *ns));
            findings.push(owned_tables(&mut *ns));
        }
        Err(error) => findings.push(Finding::critical("netlink", error.to_string(), MODULES)),
    }
    findings.push(vxlan());
    findings
}

fn script_finding(name: &str, needed_for: &str, script: &str) -> Finding {
    let check = format!("nftables: {name}");
    match run("nft", &["-f", "-"], &format!("{script}\n")) {
        Ok(said) => {
            // The next script starts from nothing.
            let _ = run("nft", &["flush", "ruleset"], "");
            match said {
                said if said.success => Finding::ok(&check, needed_for),
                said => {
                    let first = said.stderr.lines().next().unwrap_or_default().to_owned();
                    Finding::critical(&check, format!("{needed_for}; the kernel says: {first}"), MODULES)
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Finding::critical(&check, format!("{needed_for}; not tried without nft"), "install the package nftables")
        }
        Err(error) => Finding::critical(&check, format!("{needed_for}; not tried: {error}"), "run the doctor again"),
    }
}

/// The way back in a task's namespace.
fn rules(ns: &mut dyn Namespace) -> Finding {
    let mut attempt = || -> Result<(), KernelError> {
        for v6 in [false, true] {
            ns.ensure_rule_fwmark(v6, MARK, MARK_MASK, RETURN_TABLE, RETURN_PRIORITY)?;
        }
        Ok(())
    };
    match attempt() {
        Ok(()) => Finding::ok("policy routing", format!("ip rule by mark, table {RETURN_TABLE}")),
        Err(error) => {
            Finding::critical("policy routing", error.to_string(), "use a kernel with CONFIG_IP_MULTIPLE_TABLES (every distribution's)")
        }
    }
}

fn conntrack(ns: &mut dyn Namespace) -> Finding {
    let filter = FlowFilter { protocol: Some(Protocol::Udp.number()), ..FlowFilter::default() };
    match ns.flush_flows(&filter) {
        Ok(()) => Finding::ok("conntrack", "flows of a task that is gone can be ended"),
        Err(error) => Finding::warning(
            "conntrack",
            error.to_string(),
            "modprobe nf_conntrack_netlink; without it, UDP flows stay with tasks that are gone",
        ),
    }
}

/// The way of containers' questions to our resolver, which must end with the agent.
fn owned_tables(ns: &mut dyn Namespace) -> Finding {
    match ns.commit(&[NftOp::AddOwnedTable { family: Family::Ip, table: "probe_owned" }]) {
        Ok(()) => Finding::ok("nftables: owned tables", "names are answered here, and by Docker as soon as the agent ends (Linux 5.12)"),
        Err(error) => Finding::warning(
            "nftables: owned tables",
            error.to_string(),
            "use Linux 5.12 or newer; without it, names are left to Docker's resolver",
        ),
    }
}

fn vxlan() -> Finding {
    let made = run("ip", &["link", "add", "probe", "type", "vxlan", "id", "1", "dstport", "4789", "dev", "lo"], "");
    match made {
        Ok(said) if said.success => Finding::ok("vxlan", "overlay networks can be made"),
        Ok(said) => Finding::warning(
            "vxlan",
            format!("cannot make a VXLAN interface: {}", said.stderr),
            "modprobe vxlan; Docker's overlay networks need it",
        ),
        Err(_) => Finding::info("vxlan", "not tried: the program ip is not installed"),
    }
}
