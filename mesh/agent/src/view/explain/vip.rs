//! A packet from a task to a service's virtual IP.

use std::{net::IpAddr, sync::Arc};

use swarmesh_model::{EndpointMode, Network, NetworkId, Service, Task};
use swarmesh_plan::{BackendState, SandboxPlan, VirtualService};

use super::{
    Story, Verdict, View,
    backends::{Asked, choice, left_out, names},
};
use crate::view::{endpoints::backends, left_alone, policy_words};

type Outcome = (Verdict, String);

pub(super) fn explain(view: &View, story: &mut Story, name: &str, from: Option<&str>) -> Outcome {
    let address: Option<IpAddr> = name.parse().ok();
    let has = |s: &Service| s.name == name || s.id.as_str() == name || s.vips.iter().any(|v| Some(v.address) == address);
    let Some(service) = view.snapshot.services.values().find(|s| has(s)) else {
        story.hop("service", format!("no service is called {name}, or has it as a virtual IP"));
        return (Verdict::NotOurs, format!("there is no service {name}"));
    };
    if let Some(why) = left_alone(service, view.context.takeover) {
        story.hop("service", format!("service {}: {why}", service.name));
        return (Verdict::NotOurs, why);
    }
    if service.endpoint_mode == EndpointMode::Dnsrr {
        story.hop(
            "service",
            format!("service {} is in dnsrr mode: it has no virtual IP, its name leads to the tasks' own addresses", service.name),
        );
        return (Verdict::NotOurs, "a dnsrr service has no virtual IP".to_owned());
    }
    let vips: Vec<(NetworkId, IpAddr)> = service
        .vips
        .iter()
        .filter(|v| address.is_none_or(|a| a == v.address) && view.snapshot.networks.get(&v.network).is_none_or(|n| !n.ingress))
        .map(|v| (v.network.clone(), v.address))
        .collect();
    let listed: Vec<String> = vips.iter().map(|(n, a)| format!("{a} in {}", network_name(view, n))).collect();
    if listed.is_empty() {
        story.hop("service", format!("service {} has no virtual IP outside of ingress: it is on no other network", service.name));
        return (Verdict::NotOurs, format!("service {} joins no network that tasks could reach it by", service.name));
    }
    story.hop("service", format!("service {} has {}", service.name, listed.join(", ")));
    match from {
        Some(from) => from_task(view, story, service, &vips, from),
        None => from_anywhere(view, story, service, &vips),
    }
}

fn from_task(view: &View, story: &mut Story, service: &Service, vips: &[(NetworkId, IpAddr)], from: &str) -> Outcome {
    let Some(task) = find_task(view, from) else {
        story.hop("caller", format!("no task has the name or id {from}"));
        return (Verdict::NotOurs, format!("there is no task {from}"));
    };
    let Some(sandbox) = view.plan.sandboxes.get(&task.id) else {
        let why = if task.node == view.context.node && task.node.is_some() {
            "runs here, but its sandbox is not known (yet)".to_owned()
        } else {
            format!("runs on {}; ask that node's agent", view.task_node(&task.id))
        };
        story.hop("caller", format!("{} {why}", task.name));
        return (Verdict::NotOurs, format!("{} {why}", task.name));
    };
    let shared: Vec<_> = vips.iter().filter(|(network, _)| sandbox.networks.contains(network)).collect();
    let networks: Vec<String> = sandbox.networks.iter().map(|n| network_name(view, n)).collect();
    story.hop(
        "caller",
        format!("{} is in {}", task.name, if networks.is_empty() { "no network of the swarm".to_owned() } else { networks.join(", ") }),
    );
    if shared.is_empty() {
        story.missing(format!("{} and service {} have no network in common", task.name, service.name));
        return (Verdict::NotOurs, format!("{} cannot reach service {}: they share no network", task.name, service.name));
    }
    let mut outcomes: Vec<Outcome> = Vec::new();
    for (network, address) in shared {
        outcomes.push(one(view, story, service, network, *address, &[sandbox]));
    }
    best(outcomes)
}

fn from_anywhere(view: &View, story: &mut Story, service: &Service, vips: &[(NetworkId, IpAddr)]) -> Outcome {
    let mut outcomes: Vec<Outcome> = Vec::new();
    for (network, address) in vips {
        let sandboxes: Vec<&Arc<SandboxPlan>> = view.plan.sandboxes.values().filter(|s| s.networks.contains(network)).collect();
        if sandboxes.is_empty() {
            let what = format!("no task of this node is in {}, so nobody here can ask for {address}", network_name(view, network));
            story.hop("caller", what.clone());
            outcomes.push((Verdict::NotOurs, what));
            continue;
        }
        let callers: Vec<&str> = sandboxes.iter().map(|s| s.name.as_str()).collect();
        story.hop("caller", format!("this node's tasks in {}: {}", network_name(view, network), callers.join(", ")));
        outcomes.push(one(view, story, service, network, *address, &sandboxes));
    }
    best(outcomes)
}

/// One VIP, asked for from these sandboxes.
fn one(
    view: &View,
    story: &mut Story,
    service: &Service,
    network: &NetworkId,
    address: IpAddr,
    sandboxes: &[&Arc<SandboxPlan>],
) -> Outcome {
    let planned = view.plan.networks.get(network).and_then(|v| v.get(&address)).filter(|v| v.service == service.id);
    let Some(vip) = planned else {
        let problems: Vec<String> = view.problems_of(service).iter().map(|p| format!("{}: {}", p.place, p.message)).collect();
        let why =
            format!("{address} is not served: {}", if problems.is_empty() { "no reason is known".to_owned() } else { problems.join("; ") });
        story.hop("caller's sandbox", why.clone());
        story.missing(why.clone());
        return (Verdict::NotOurs, why);
    };
    let (ready, targets) = targets(vip);
    let picks = match targets.len() {
        0 => "refuses at once, for there is no backend".to_owned(),
        count => format!("turns it into the address of {}", choice(count, ready)),
    };
    let who = if view.plane.virtual_servers { "IPVS, by a mark of table inet swarmesh," } else { "table inet swarmesh" };
    let hop = story.hop("caller's sandbox", format!("{address}, any port: {who} {picks}; {}", policy_words(&vip.policy)));
    hop.backends = backends(view, &vip.backends);
    hop.left_out = left_out(view, service, Asked { network, v6: address.is_ipv6(), local_only: false }, &vip.backends);
    let pending: Vec<_> =
        view.pending_places().filter(|p| sandboxes.iter().any(|s| p.place.strip_prefix("task ") == Some(&s.name))).collect();
    for place in &pending {
        story.missing(format!("not applied in {}: {}", place.place, place.error));
    }
    if targets.is_empty() {
        story.missing(format!("no usable task of service {}", service.name));
        return (
            Verdict::Refused,
            format!("refused at once: service {} has no usable task in {}", service.name, network_name(view, network)),
        );
    }
    let tasks = names(view, targets.into_iter());
    story.hop(
        "network",
        format!(
            "goes straight over {} to the task; the port stays as it is, and the task sees the caller's own address",
            network_name(view, network)
        ),
    );
    story.hop("way back", "the task answers the caller directly; the caller's sandbox restores the virtual IP");
    if !pending.is_empty() && pending.len() == sandboxes.len() {
        return (Verdict::Pending, format!("would reach {tasks}, and is not applied yet"));
    }
    (Verdict::Delivered, format!("{address} reaches {tasks}"))
}

type Targets = Vec<(swarmesh_model::TaskId, IpAddr)>;

fn targets(vip: &VirtualService) -> (bool, Targets) {
    let ready = vip.backends.iter().any(|b| b.state == BackendState::Ready);
    let wanted = vip.backends.iter().filter(|b| !ready || b.state == BackendState::Ready);
    (ready, wanted.map(|b| (b.task.clone(), b.address)).collect())
}

/// By full name, id, container id, or a prefix of one of the ids that is long enough to be meant.
pub(super) fn find_task<'a>(view: &'a View, name: &str) -> Option<&'a Task> {
    let tasks = || view.snapshot.tasks.values().map(AsRef::as_ref);
    let exact = |t: &&Task| &*t.name == name || t.id.as_str() == name || t.container.as_deref() == Some(name);
    let prefix = |t: &&Task| {
        name.len() >= 4
            && (t.id.as_str().starts_with(name)
                || t.name.starts_with(&format!("{name}."))
                || t.container.as_ref().is_some_and(|c| c.starts_with(name)))
    };
    // `web.1` stands for the task that runs in that slot now.
    tasks().find(exact).or_else(|| tasks().find(|t| prefix(t) && t.is_usable())).or_else(|| tasks().find(prefix))
}

fn network_name(view: &View, id: &NetworkId) -> String {
    view.snapshot.networks.get(id).map_or_else(|| id.short().to_owned(), |n: &Arc<Network>| n.name.clone())
}

/// Of several networks' outcomes, the one that a caller would be glad of.
fn best(outcomes: Vec<Outcome>) -> Outcome {
    let rank = |verdict: Verdict| match verdict {
        Verdict::Delivered | Verdict::Answered => 0,
        Verdict::Pending => 1,
        Verdict::Refused => 2,
        Verdict::NotOurs => 3,
    };
    let first = outcomes.into_iter().min_by_key(|(verdict, _)| rank(*verdict));
    first.unwrap_or_else(|| (Verdict::NotOurs, "nothing is known of it".to_owned()))
}
