//! The node itself: privileges, sysctls, neighbours.

use std::{fs, path::Path};

use swarmesh_dataplane::TABLE;
use swarmesh_kernel::{Family, Kernel, LinuxKernel, Netns};
use swarmesh_plan::Scheduler;

use super::{Finding, tools::run};
use crate::{choice, privilege};

pub(super) fn privilege() -> Finding {
    match privilege::check() {
        Ok(()) => Finding::ok("privilege", "CAP_NET_ADMIN and CAP_SYS_ADMIN"),
        Err(missing) => Finding::critical("privilege", missing.to_string(), "run as root"),
    }
}

pub(super) fn kernel() -> Finding {
    let release = read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) < (5, 16) => {
            Finding::critical("kernel", format!("Linux {release}"), "use Linux 5.16 or newer: answers find their way by netdev egress")
        }
        (Some(_), Some(_)) => Finding::ok("kernel", format!("Linux {release}")),
        _ => Finding::info("kernel", format!("cannot tell the version from {release:?}")),
    }
}

pub(super) fn sysctls() -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.push(match read("/proc/sys/net/ipv4/ip_forward").as_deref() {
        Some("1") => Finding::ok("ip_forward", "1"),
        Some(_) => Finding::warning(
            "ip_forward",
            "0: packets for published ports would not be passed on",
            "sysctl -w net.ipv4.ip_forward=1 (dockerd does it unless told not to)",
        ),
        None => Finding::critical("ip_forward", "cannot read /proc/sys/net/ipv4/ip_forward", "mount /proc with sysctls"),
    });
    findings.push(match read("/proc/sys/net/bridge/bridge-nf-call-iptables").as_deref() {
        Some("1") => Finding::info(
            "bridge-nf-call-iptables",
            "1: bridged packets pass the node's netfilter hooks too; they are told apart, at some cost",
        ),
        Some(value) => Finding::ok("bridge-nf-call-iptables", value),
        None => Finding::ok("bridge-nf-call-iptables", "br_netfilter is not loaded"),
    });
    let strict = ["all", "default"].map(|name| (name, read(&format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"))));
    let values = strict.iter().map(|(name, value)| format!("{name}={}", value.as_deref().unwrap_or("?"))).collect::<Vec<_>>().join(" ");
    findings.push(match strict.iter().any(|(name, value)| *name == "all" && value.as_deref() == Some("1")) {
        true => Finding::info(
            "rp_filter",
            format!("{values}: strict on the node, which is fine; in the sandboxes it is loosened on the legs that need it"),
        ),
        false => Finding::ok("rp_filter", values),
    });
    findings
}

/// Docker makes it with the swarm's ingress network.
pub(super) fn ingress_sandbox(netns_dir: &Path) -> Option<Finding> {
    let path = netns_dir.join("ingress_sbox");
    let check = "ingress sandbox";
    if !netns_dir.is_dir() {
        return Some(Finding::warning(
            check,
            format!("there is no {}", netns_dir.display()),
            "start Docker, or give its directory with --netns-dir; in a container, mount it with bind propagation",
        ));
    }
    Some(match Netns::open(&path) {
        Ok(ns) => Finding::ok(check, format!("{} is {}", path.display(), ns.id())),
        Err(error) => Finding::warning(
            check,
            error.to_string(),
            "join the swarm (docker swarm init or join); if it is a member, see docker network inspect ingress; in a container, mount the directory with bind propagation",
        ),
    })
}

/// Others that work on the same ground.
pub(super) fn neighbours() -> Vec<Finding> {
    let mut findings = vec![ipvs(), own_names()];
    if runs("firewalld") {
        findings.push(Finding::warning(
            "firewalld",
            "firewalld is active: its reload takes other programs' rules away, and Docker puts its own back",
            "nothing, if the agent runs: it puts its rules back within moments; open published ports in firewalld's zones",
        ));
    } else {
        findings.push(Finding::ok("firewalld", "not active"));
    }
    let has = |chain: &str| run("iptables", &["-w", "5", "-t", "nat", "-S", chain], "").is_ok_and(|said| said.success);
    if has("KUBE-SERVICES") {
        findings.push(Finding::warning(
            "kube-proxy",
            "kube-proxy's chains are present",
            "take care that its node ports and the swarm's published ports differ",
        ));
    }
    findings
}

/// Whether the plane of virtual servers could run; trying loads its modules.
fn ipvs() -> Finding {
    match choice::try_plane_ipvs() {
        Ok(schedulers) if schedulers.len() == IPVS_SCHEDULERS.len() => {
            Finding::ok("ipvs", "--plane ipvs would run, with all its schedulers; so does Docker's own mesh, behind ours")
        }
        Ok(schedulers) => {
            let missing: Vec<_> = IPVS_SCHEDULERS.iter().filter(|(s, _)| !schedulers.contains(s)).map(|(_, module)| *module).collect();
            Finding::warning(
                "ipvs",
                format!("--plane ipvs would run, without {}: services that ask for these get round robin", missing.join(", ")),
                format!("modprobe -a {}", missing.join(" ")),
            )
        }
        Err(error) => {
            Finding::info("ipvs", format!("--plane ipvs, and Docker's own mesh, would not run: {error}; --plane nft needs none of it"))
        }
    }
}

/// With the modules that they are in.
const IPVS_SCHEDULERS: [(Scheduler, &str); 6] = [
    (Scheduler::RoundRobin, "ip_vs_rr"),
    (Scheduler::WeightedRoundRobin, "ip_vs_wrr"),
    (Scheduler::LeastConnections, "ip_vs_lc"),
    (Scheduler::WeightedLeastConnections, "ip_vs_wlc"),
    (Scheduler::SourceHash, "ip_vs_sh"),
    (Scheduler::Maglev, "ip_vs_mh"),
];

fn own_names() -> Finding {
    let check = "own names";
    let chains = LinuxKernel.open_current().and_then(|mut ns| ns.chains(Family::Inet, TABLE));
    match chains {
        Ok(None) => Finding::ok(check, format!("nobody has a table inet {TABLE}")),
        Ok(Some(chains)) if chains.iter().any(|c| c.starts_with("layout_")) => {
            Finding::info(check, format!("table inet {TABLE} is there: an agent runs, or has run"))
        }
        Ok(Some(_)) => Finding::warning(
            check,
            format!("another program has a table inet {TABLE}, or an older agent left it"),
            format!("nft delete table inet {TABLE}, if nobody else needs it; the agent would take it over"),
        ),
        Err(error) => Finding::warning(check, error.to_string(), "run as root"),
    }
}

fn runs(name: &str) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else { return false };
    processes.flatten().any(|p| read(&p.path().join("comm").display().to_string()).as_deref() == Some(name))
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}
