//! A question for a name: who asks, which network knows it, or who is asked instead.

use std::sync::Arc;

use swarmesh_dns::{forward::Upstream, wire::kind};
use swarmesh_plan::AskerPlan;

use super::{Story, Verdict, View, upstream, vip::find_task};
use crate::names::{Book, route};

type Outcome = (Verdict, String);
/// Who is asked, when it is not answered here.
type Upstreams = Arc<[Upstream]>;

/// What may follow `&type=`.
pub(super) const KINDS: [(&str, u16); 6] =
    [("a", kind::A), ("aaaa", kind::AAAA), ("ptr", kind::PTR), ("srv", kind::SRV), ("mx", kind::MX), ("any", kind::ANY)];

pub(super) fn explain(view: &View, story: &mut Story, name: &str, from: Option<&str>, kind: u16) -> Outcome {
    if view.dns.is_none() && view.origin != super::super::Origin::File {
        story.hop("resolver", "the agent runs with --dns off: Docker's own resolver answers");
        return (Verdict::NotOurs, "names are left to Docker".to_owned());
    }
    let askers: Vec<&Arc<AskerPlan>> = match from {
        None => view.plan.names.askers.values().collect(),
        Some(from) => {
            let Some(task) = find_task(view, from) else {
                story.hop("asker", format!("no task has the name or id {from}"));
                return (Verdict::NotOurs, format!("there is no task {from}"));
            };
            let Some(asker) = view.plan.names.askers.get(&task.id) else {
                let why = if task.node == view.context.node && task.node.is_some() {
                    "runs here, but has no resolver of ours: no network with names, or its sandbox is not known (yet)".to_owned()
                } else {
                    format!("runs on {}; ask that node's agent", view.task_node(&task.id))
                };
                story.hop("asker", format!("{} {why}", task.name));
                return (Verdict::NotOurs, format!("{} {why}", task.name));
            };
            vec![asker]
        }
    };
    if askers.is_empty() {
        story.hop("asker", "no container of this node is in a network with names");
        return (Verdict::NotOurs, "nobody here can ask".to_owned());
    }
    let book = Book::of(&view.plan.names);
    let mut outcomes: Vec<(Outcome, Vec<&str>)> = Vec::new();
    let mut asked: Vec<Upstreams> = Vec::new();
    for asker in &askers {
        let (outcome, upstreams) = one(view, &book, asker, name, kind);
        // Each container's way to the engine is its own, and of interest when it is asked for.
        let is_own = upstreams.iter().any(Upstream::is_engine);
        let upstreams = if is_own && askers.len() > 1 { upstreams.iter().filter(|u| !u.is_engine()).cloned().collect() } else { upstreams };
        if !upstreams.is_empty() && !asked.contains(&upstreams) {
            asked.push(upstreams);
        }
        match outcomes.iter_mut().find(|(known, _)| *known == outcome) {
            Some((_, who)) => who.push(&asker.name),
            None => outcomes.push((outcome, vec![&asker.name])),
        }
    }
    for ((_, what), who) in &outcomes {
        story.hop("asker", format!("{}: {what}", who.join(", ")));
    }
    for upstreams in &asked {
        upstream::tell(view, story, upstreams);
    }
    for asker in &askers {
        let resolver = view.resolvers.iter().find(|r| r.task == asker.name && !r.error.is_empty());
        if let Some(pending) = resolver {
            story.missing(format!("in {} Docker's resolver answers instead: {}", asker.name, pending.error));
        }
    }
    let best = outcomes.into_iter().map(|(outcome, _)| outcome).min_by_key(|(verdict, _)| *verdict != Verdict::Delivered);
    best.unwrap_or((Verdict::NotOurs, "nobody here can ask".to_owned()))
}

fn one(view: &View, book: &Book, plan: &AskerPlan, name: &str, kind: u16) -> (Outcome, Upstreams) {
    let asker = book.asker(0, plan);
    let lower = name.trim_end_matches('.').to_ascii_lowercase();
    let here = |verdict, what| ((verdict, what), Upstreams::default());
    if let Some((network, rest)) = asker.find(&lower, |found| (found.network.title.to_string(), found.name.to_owned())) {
        let searched: Vec<&str> = asker.networks.iter().map(|n| &*n.title).collect();
        let answers = swarmesh_dns::answers(&asker, &lower, kind);
        let what = if answers.is_empty() {
            format!("network {network} knows {rest}, which has nothing of this type now: an empty answer, and nothing is asked upstream")
        } else {
            format!("network {network} knows {rest}: {}", answers.join(", "))
        };
        let order =
            if searched.len() > 1 { format!(" (its networks are searched in the order {})", searched.join(", ")) } else { String::new() };
        return here(Verdict::Delivered, format!("{what}{order}"));
    }
    let answers = swarmesh_dns::answers(&asker, &lower, kind);
    if !answers.is_empty() {
        return here(Verdict::Delivered, answers.join(", "));
    }
    let route = route(0, plan, &view.host_servers, book.titles(plan));
    let (upstreams, is_engines_alone) = route.choose(Some(&lower));
    if is_engines_alone {
        let what = "no network knows it, and ndots was set: a name without a dot is asked of the engine's own resolver and not upstream; \
                    it gets an empty answer where that one does not know it either";
        return ((Verdict::Refused, what.to_owned()), Arc::clone(upstreams));
    }
    let what = if !upstreams.is_empty() {
        let what = format!("no network of it knows {lower}; asked upstream, in this order: {}", upstream::listed(upstreams));
        return ((Verdict::NotOurs, what), Arc::clone(upstreams));
    } else if !plan.leads_out && plan.servers.is_empty() {
        "no network of it knows it, and none leads out, so nobody is asked: SERVFAIL"
    } else {
        "no network of it knows it, and there is no server to ask: SERVFAIL"
    };
    here(Verdict::Refused, what.to_owned())
}
