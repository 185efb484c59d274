//! A packet to a published port.

use std::net::{IpAddr, Ipv4Addr};

use swarmesh_dataplane::goes_direct;
use swarmesh_model::{EndpointMode, Port, Protocol, PublishMode, Service};
use swarmesh_plan::{Backend, BackendState, PublishedPort, SourceMode};

use super::{
    Local, Story, Verdict, View,
    backends::{Asked, choice, left_out, names},
};
use crate::view::{endpoints::backends, left_alone, policy_words, socket};

type Outcome = (Verdict, String);

pub(super) fn explain(view: &View, story: &mut Story, local: &Local, protocol: Protocol, address: IpAddr, number: u16) -> Outcome {
    if let Some(other) = at_address(view, story, local, address, number) {
        return other;
    }
    let Some(port) = view.plan.published.get(&(protocol, number)) else {
        return nobody(view, story, protocol, number);
    };
    story.hop(
        "published port",
        format!(
            "{number}/{protocol} is published by service {} through ingress; its tasks listen on {}; {}",
            port.name,
            port.target_port,
            policy_words(&port.policy)
        ),
    );
    if !port.policy.bind.is_empty() {
        let nets = port.policy.bind.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        if !port.policy.bind.iter().any(|net| net.contains(&address)) {
            story.hop("bind", format!("swarmesh.bind lets it listen on {nets} only, and {address} is not one of them"));
            return refused(protocol, format!("{} is published on {nets} only", port.name));
        }
        story.hop("bind", format!("swarmesh.bind lets it listen on {nets}, {address} among them"));
    }
    if port.refuse {
        story.hop("drain", "this node drains: new connections are refused, established ones go on");
        story.missing("`swarmesh resume` takes the node back into rotation".to_owned());
        return refused(protocol, "this node drains".to_owned());
    }
    deliver(view, story, port, protocol, address, number)
}

/// Whose address it is. `Some` ends the story there.
fn at_address(view: &View, story: &mut Story, local: &Local, address: IpAddr, number: u16) -> Option<Outcome> {
    let here = view.this_node().map_or("this node", |n| n.hostname.as_str()).to_owned();
    if let Some(interface) = local.interface(address) {
        story.hop("address", format!("{address} is an address of {here} ({interface})"));
        return None;
    }
    if let Some(node) = view.snapshot.nodes.values().find(|n| n.address == Some(address)) {
        let whose = if Some(&node.id) == view.context.node.as_ref() { "this node" } else { "another node" };
        story.hop(
            "address",
            format!("{address} is the address of {}, {whose}; what follows is how {here} treats it, and that is the same on every node but for swarmesh.source=local", node.hostname),
        );
        return None;
    }
    for (network, vips) in &view.plan.networks {
        if let Some(vip) = vips.get(&address) {
            let network = view.snapshot.networks.get(network).map_or("", |n| &n.name);
            story.hop("address", format!("{address} is the virtual IP of service {} in network {network}", vip.name));
            return Some((Verdict::NotOurs, format!("a virtual IP answers inside its network only; ask for vip://{}", vip.name)));
        }
    }
    if let Some(task) = view.snapshot.tasks.values().find(|t| t.addresses.iter().any(|a| a.address == address)) {
        story.hop("address", format!("{address} is the address of task {}", task.name));
        return Some((Verdict::NotOurs, format!("{} is a task's own: nothing is translated", socket(address, number))));
    }
    story.hop("address", format!("{address} is no address of {here}, of another node, of a service or of a task"));
    Some((Verdict::NotOurs, format!("{address} is not local to this node: nothing of the swarm listens here")))
}

/// Nothing is planned for this port. Says why, where a service would have it.
fn nobody(view: &View, story: &mut Story, protocol: Protocol, number: u16) -> Outcome {
    let wants = |p: &&Port| p.protocol == protocol && p.published_port == Some(number);
    let claimants: Vec<(&Service, PublishMode)> =
        view.snapshot.services.values().filter_map(|s| s.ports.iter().find(wants).map(|p| (s.as_ref(), p.publish_mode))).collect();
    let Some((service, mode)) = claimants.first() else {
        story.hop("published port", format!("no service publishes {number}/{protocol}"));
        return (Verdict::NotOurs, format!("nothing of the swarm listens here: no service publishes {number}/{protocol}"));
    };
    if *mode == PublishMode::Host {
        story.hop("published port", format!("service {} publishes {number}/{protocol} in host mode", service.name));
        let tasks: Vec<String> = view
            .snapshot
            .tasks
            .values()
            .filter(|t| t.service.as_ref() == Some(&service.id) && t.is_usable())
            .map(|t| format!("{} on {}", t.name, view.task_node(&t.id)))
            .collect();
        let at = if tasks.is_empty() { "no running task".to_owned() } else { tasks.join(", ") };
        return (Verdict::NotOurs, format!("host mode is Docker's own: the port leads straight to the task of the node ({at})"));
    }
    let why = if let Some(why) = left_alone(service, view.context.takeover) {
        format!("service {} publishes it, but {why}", service.name)
    } else if service.endpoint_mode == EndpointMode::Dnsrr {
        format!("service {} is in dnsrr mode, which cannot publish through ingress; use mode host", service.name)
    } else if view.plan.ingress.is_none() {
        "the swarm has no ingress network; create one with docker network create --ingress".to_owned()
    } else {
        let problems: Vec<String> = view.problems_of(service).iter().map(|p| format!("{}: {}", p.place, p.message)).collect();
        format!("service {} publishes it, but it cannot be served: {}", service.name, problems.join("; "))
    };
    story.hop("published port", why.clone());
    story.missing(why.clone());
    (Verdict::NotOurs, why)
}

fn deliver(view: &View, story: &mut Story, port: &PublishedPort, protocol: Protocol, address: IpAddr, number: u16) -> Outcome {
    let service = view.snapshot.services.get(&port.service);
    let local_only = port.policy.source == SourceMode::Local;
    let all: Vec<_> = port.backends.iter().filter(|b| b.address.is_ipv6() == address.is_ipv6()).cloned().collect();
    let ready = all.iter().any(|b| b.state == BackendState::Ready);
    let targets: Vec<_> = all.iter().filter(|b| !ready || b.state == BackendState::Ready).cloned().collect();
    let out = match (service, &view.plan.ingress) {
        (Some(service), Some(ingress)) => {
            let asked = Asked { network: &ingress.network, v6: address.is_ipv6(), local_only };
            left_out(view, service, asked, &all)
        }
        _ => Vec::new(),
    };
    let bridge = view.plane.host.as_ref().map(|h| format!(" over {}", h.bridge)).unwrap_or_default();
    let is_near = |b: &Backend| near(view, port, protocol, number, b).is_some();
    let (here, elsewhere): (Vec<_>, Vec<_>) = targets.iter().cloned().partition(is_near);
    if here.is_empty() {
        let what = format!("table inet swarmesh hands it to the ingress sandbox{bridge}, ahead of Docker's rules{}", fate(view, "node"));
        story.hop("node", what);
    } else {
        let at: Vec<String> = here.iter().filter_map(|b| near(view, port, protocol, number, b)).map(|a| socket(a.into(), number)).collect();
        let others = if elsewhere.is_empty() { "" } else { "; the turns of the others go to the ingress sandbox" };
        let turns = if targets.len() == 1 {
            format!("has {}", choice(1, ready))
        } else {
            format!("takes {} in turn", choice(targets.len(), ready))
        };
        let what = format!(
            "table inet swarmesh {turns}, ahead of Docker's rules: this node's own are reached straight{bridge}, at {}{others}{}",
            at.join(", "),
            fate(view, "node")
        );
        story.hop("node", what).backends = backends(view, &here);
    }
    let picks = match elsewhere.len() {
        0 if !here.is_empty() => "is not on the way: every backend is this node's own".to_owned(),
        0 => "refuses, for there is no backend".to_owned(),
        count if view.plane.virtual_servers => format!("has IPVS pick {}", choice(count, ready)),
        count => format!("picks {}", choice(count, ready)),
    };
    let hop = story.hop("ingress sandbox", format!("{picks}{}", fate(view, "ingress")));
    let behind: Vec<_> = all.iter().filter(|b| !here.contains(b)).cloned().collect();
    hop.backends = backends(view, &behind);
    hop.left_out = out;
    if let Some(place) = view.pending_entry() {
        story.missing(format!("not applied in {}: {}", place.place, place.error));
    }
    if targets.is_empty() {
        if address.is_ipv6() && port.backends.iter().any(|b| b.address.is_ipv4()) {
            story.missing("the ingress network has no IPv6 subnet, so published ports refuse IPv6; use IPv4".to_owned());
            return refused(protocol, "no task has an IPv6 address in the ingress network".to_owned());
        }
        story.missing(format!("no usable task of service {}", port.name));
        return refused(protocol, format!("service {} has no usable task{}", port.name, if local_only { " on this node" } else { "" }));
    }

    let tasks = names(view, targets.iter().map(|b| (b.task.clone(), b.address)));
    let mut what = format!("translates {number} to {} and hands it to the program: {tasks}", port.target_port);
    let mut pending = Vec::new();
    for target in &targets {
        let Some(sandbox) = view.plan.sandboxes.get(&target.task) else { continue };
        let place = format!("task {}", sandbox.name);
        // Where an update changes ports, old tasks go on listening where they did.
        let own = sandbox.ingress.as_ref().and_then(|i| i.published.get(&(protocol, number)));
        if let Some(own) = own.filter(|own| **own != port.target_port) {
            what.push_str(&format!("; {} still listens on {own}", sandbox.name));
        }
        pending.extend(view.pending_places().filter(|p| p.place == place).map(|p| format!("{}: {}", p.place, p.error)));
    }
    story.hop("task", what);
    let straight = match (here.is_empty(), elsewhere.is_empty()) {
        (true, _) => "",
        (false, true) => "; it comes straight from the task's leg on the node's bridge",
        (false, false) => "; from this node's own tasks it comes straight, from their legs on the node's bridge",
    };
    story.hop("way back", format!("{}{straight}", way_back(port.policy.source, address)));

    pending.into_iter().for_each(|p| story.missing(format!("not applied in {p}")));
    if view.pending_entry().is_some() {
        return (Verdict::Pending, format!("would reach {} of service {}, and is not applied on this node yet", tasks, port.name));
    }
    (Verdict::Delivered, format!("reaches service {} on {}: {tasks}", port.name, port.target_port))
}

/// Where new connections go to this backend past the ingress sandbox, if they do.
fn near(view: &View, port: &PublishedPort, protocol: Protocol, number: u16, backend: &Backend) -> Option<Ipv4Addr> {
    let address = view.plane.near.get(&backend.task).filter(|_| backend.address.is_ipv4())?;
    let ingress = view.plan.sandboxes.get(&backend.task)?.ingress.as_ref()?;
    goes_direct((protocol, number), port, ingress).then_some(*address)
}

fn way_back(source: SourceMode, address: IpAddr) -> &'static str {
    if address.is_loopback() {
        return "the task sees this node's address instead of loopback; the answer returns through this node";
    }
    match source {
        SourceMode::Snat => "the task sees the entry node's ingress address (swarmesh.source=snat), and answers there",
        SourceMode::Keep | SourceMode::Local => {
            "the task sees the client's own address; a mark on the connection leads the answer back through the entry node, which restores the published address"
        }
    }
}

fn fate(view: &View, place: &str) -> String {
    match view.pending_places().find(|p| p.place == place) {
        Some(pending) => format!(" (not applied: {})", pending.error),
        None => String::new(),
    }
}

fn refused(protocol: Protocol, why: String) -> Outcome {
    let how = match protocol {
        Protocol::Tcp => "with a reset",
        Protocol::Udp | Protocol::Sctp => "with ICMP port unreachable",
    };
    (Verdict::Refused, format!("refused at once {how}: {why}"))
}
