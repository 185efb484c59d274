//! Routes, after everything that they lead to.

use std::{collections::BTreeSet, sync::Arc};

use swarmesh_model::{EndpointMode, NetworkId, PublishMode, Service, ServiceId, TaskId, TaskState};
use swarmesh_router::dialect::Workload;

use super::{Dirty, Planner, Subject, note, note_problems, owns};
use crate::{Backend, OwnerKey, PlanDelta, RoutedNetwork, RoutedService, added, routes};

impl Planner {
    /// Routes follow what was planned so far: where the tasks are.
    pub(super) fn plan_routes(&mut self, out: &mut PlanDelta, dirty: &mut Dirty) {
        // Of networks, those that may be reached from elsewhere than before.
        let mut touched = BTreeSet::new();
        for id in &dirty.tasks {
            let task = self.snapshot.tasks.get(id).filter(|t| self.is_local(t));
            self.routing.stand(id, task.map(AsRef::as_ref), &mut touched);
        }
        let mut owners = BTreeSet::new();
        let mut services: BTreeSet<ServiceId> = dirty.services.iter().filter(|id| self.routing.is_named(id)).cloned().collect();
        let mut read = Vec::new();
        for id in &dirty.routed {
            let key = OwnerKey::Service(id.clone());
            let old = self.plan.routes.owners.get(&key).map(AsRef::as_ref);
            let service = self.snapshot.services.get(id);
            let new = service.and_then(|s| {
                let labels = self.context.added.labels(s);
                let workload = Workload { labels: &labels, ..Workload::service(s, &self.snapshot) };
                routes::owner_routes(&workload, &self.context.dialects, old)
            });
            read.push((key, new));
        }
        for name in &dirty.added {
            let key = OwnerKey::Added(name.clone());
            let old = self.plan.routes.owners.get(&key).map(AsRef::as_ref);
            let is_host = || self.knows_names && self.snapshot.services.values().all(|s| s.name != *name);
            let new = self.context.added.get(name).filter(|_| is_host()).and_then(|parameters| {
                let labels = added::labels_of_host(name, parameters);
                routes::owner_routes(&added::host_workload(name, &labels), &self.context.dialects, old)
            });
            read.push((key, new));
        }
        for (key, new) in read {
            let old = self.plan.routes.owners.get(&key).map(AsRef::as_ref);
            if old == new.as_ref() {
                continue;
            }
            let problems = new.iter().flat_map(|n| &n.problems).map(|p| p.problem()).collect();
            dirty.problems |= note_problems(&mut self.problems, Subject::Routes(key.clone()), problems);
            services.extend(self.routing.rename(&key, old, new.as_ref()));
            out.routes.owners.insert(key.clone(), new.map(Arc::new));
            owners.insert(key);
        }
        for id in &dirty.routed_containers {
            let key = OwnerKey::Container(id.clone());
            let old = self.plan.routes.owners.get(&key).map(AsRef::as_ref);
            let task = self.snapshot.tasks.get(id).filter(|t| self.is_local(t) && t.state <= TaskState::Running);
            let workload = task.and_then(|t| routes::container(t, &self.snapshot));
            let new = workload.and_then(|w| routes::owner_routes(&w, &self.context.dialects, old));
            let leads = new.as_ref().is_some_and(|n| !n.routes.is_empty());
            let routed = task.filter(|_| leads).and_then(|t| routes::routed_container(t, &self.snapshot)).map(Arc::new);
            note(&mut out.routes.containers, &self.plan.routes.containers, id, routed);
            if old != new.as_ref() {
                let problems = new.iter().flat_map(|n| &n.problems).map(|p| p.problem()).collect();
                dirty.problems |= note_problems(&mut self.problems, Subject::Routes(key.clone()), problems);
                out.routes.owners.insert(key.clone(), new.map(Arc::new));
                owners.insert(key);
            }
        }
        for id in &services {
            let service = self.snapshot.services.get(id).filter(|_| self.routing.is_named(id));
            let new = service.map(|s| Arc::new(self.routed_service(s, out)));
            let old = self.plan.routes.services.get(id);
            if routes::moved(old.map(AsRef::as_ref), new.as_deref()) {
                owners.extend(self.routing.owners_naming(id).cloned());
            }
            note(&mut out.routes.services, &self.plan.routes.services, id, new);
        }
        self.plan.routes.apply(&out.routes);
        for owner in &owners {
            self.routing.lead(owner, &self.plan.routes, &mut touched);
        }
        if out.ingress.is_some() {
            touched.extend(self.routing.wanted().cloned());
        }
        let ingress = self.plan.ingress.as_ref().map(|i| &i.network);
        for network in &touched {
            let sandbox = |task: &TaskId| self.snapshot.tasks.get(task)?.sandbox.as_deref().map(str::to_owned);
            let new = self.routing.foothold(network, ingress, sandbox);
            note(&mut out.routes.footholds, &self.plan.routes.footholds, network, new);
        }
    }

    fn routed_service(&self, service: &Service, out: &PlanDelta) -> RoutedService {
        let mut networks: Vec<RoutedNetwork> = Vec::new();
        for id in service.networks.iter().map(|n| &n.network).chain(service.vips.iter().map(|v| &v.network)) {
            let Some(network) = self.snapshot.networks.get(id).filter(|n| !n.ingress) else { continue };
            if networks.iter().any(|n| n.network == *id) {
                continue;
            }
            let has_vips = service.endpoint_mode != EndpointMode::Dnsrr;
            let vips = service.vips.iter().filter(|v| has_vips && v.network == *id && owns(network, v.address));
            let backends = self.routed_backends(service, id, out);
            networks.push(RoutedNetwork { network: id.clone(), vips: vips.map(|v| v.address).collect(), backends });
        }
        let is_published = service.ports.iter().any(|p| p.publish_mode == PublishMode::Ingress);
        let ingress = self.plan.ingress.as_ref().filter(|_| is_published).map(|ingress| RoutedNetwork {
            network: ingress.network.clone(),
            vips: Box::default(),
            backends: [false, true].map(|v6| self.backends(&service.id, &ingress.network, v6, false).into()),
        });
        RoutedService { networks: networks.into(), ingress }
    }

    /// What the service's name leads to in this network, where names are planned, or its VIP: held once.
    fn routed_backends(&self, service: &Service, network: &NetworkId, out: &PlanDelta) -> [Arc<[Backend]>; 2] {
        let named = match out.names.services.get(&service.id) {
            Some(changed) => changed.as_ref(),
            None => self.plan.names.services.get(&service.id),
        };
        match named.and_then(|n| n.in_network(network)) {
            Some(zone) => zone.backends.clone(),
            None => [false, true].map(|v6| self.named_backends(service, network, v6, out)),
        }
    }
}
