//! What the running proxy finds wrong, told on the services whose routes ask for it.

use std::{
    collections::BTreeMap,
    time::{Instant, SystemTime},
};

use swarmesh_model::Problem;
use swarmesh_proxy::{Shared, routing::Routing};
use swarmesh_router::{
    Route,
    model::{Filter, Upstream},
};

use super::{socket, status::Out};

/// What is the node's own and no service's.
const NODES: &str = "router";

pub(super) fn problems(proxy: &Shared, now: SystemTime) -> Vec<Problem> {
    let routing = proxy.routing();
    let mut problems = Vec::new();
    for found in proxy.certificates.problems(now) {
        let (fault, reference) = (&found.fault, &found.certificate);
        let shown = if found.shown { "" } else { "; it is not shown" };
        let message = format!("{reference:?}: {fault}{shown}: {}", fault.remedy());
        let of_routes = on_owners(&routing, &message, |route| route.certificate.as_ref() == Some(reference));
        let of_node = proxy.certificates.is_default(reference).then(|| Problem::new(NODES, "default-certificate", message.clone()));
        problems.extend(of_routes.into_iter().chain(of_node));
    }
    if let Some(error) = proxy.backend_tls.problem() {
        let message = format!("backends cannot be verified: {error}: {}", error.remedy());
        // Where no route verifies any, the bundle need not be there.
        problems.extend(on_owners(&routing, &message, verifies_backends));
    }
    problems.extend(of_users(proxy, &routing));
    if let Some(problem) = &*proxy.client_authorities_problem.load() {
        let message = format!("clients are believed by the CAs of before: {problem}");
        problems.push(Problem::new(NODES, "client-authorities", message));
    }
    if !proxy.knows_client_authorities {
        let message = "asks for client certificates, and this node knows no CA of them, so nobody gets in: name a bundle as \
                       client-authorities in [router]";
        problems.extend(on_owners(&routing, message, |route| route.filters.contains(&Filter::ClientCertificate)));
    }
    problems
}

/// Once for each owner, on the first label.
fn on_owners(routing: &Routing, message: &str, concerns: impl Fn(&Route) -> bool) -> Vec<Problem> {
    let mut origins: Vec<_> = routing.table.routes().iter().filter(|route| concerns(route)).map(|route| &route.origin).collect();
    origins.sort();
    origins.dedup_by(|a, b| a.owner == b.owner);
    origins.into_iter().map(|origin| Problem::new(origin.owner.to_string(), origin.label.clone(), message)).collect()
}

/// Each once for each owner, on the first label.
fn of_users(proxy: &Shared, routing: &Routing) -> impl Iterator<Item = Problem> {
    let mut found = BTreeMap::new();
    for lane in routing.lanes() {
        for fault in lane.user_faults() {
            let origin = &lane.route.origin;
            let label = found.entry((origin.owner.to_string(), fault.to_string())).or_insert_with(|| origin.label.clone());
            if origin.label < *label {
                label.clone_from(&origin.label);
            }
        }
    }
    let of_routes = found.into_iter().map(|((owner, message), label)| Problem::new(owner, label, message));
    of_routes.chain(proxy.node_user_faults().into_iter().map(|fault| Problem::new(NODES, "users", fault.to_string())))
}

fn verifies_backends(route: &Route) -> bool {
    route.backends().is_some_and(|set| set.members.iter().any(|member| member.tls.as_ref().is_some_and(|tls| tls.verify)))
}

/// Backends that failed and are passed over for a while.
pub(super) fn out(proxy: &Shared) -> Vec<Out> {
    let now = Instant::now();
    let mut out = Vec::new();
    for lane in proxy.routing().lanes() {
        let Some(live) = &lane.live else { continue };
        for found in live.endpoints().iter().filter(|e| e.endpoint.health.is_out(now)) {
            let backend = match &found.endpoint.upstream {
                Upstream::Task { address, port, .. } | Upstream::Vip { address, port, .. } | Upstream::Published { address, port, .. } => {
                    socket(*address, *port)
                }
                Upstream::Host { name, port } => format!("{name}:{port}"),
            };
            out.push(Out { owner: lane.route.origin.owner.to_string(), backend });
        }
    }
    out.sort();
    out.dedup();
    out
}
