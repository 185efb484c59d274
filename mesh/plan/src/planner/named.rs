//! Names, after VIPs and tasks.

use std::{net::IpAddr, sync::Arc};

use swarmesh_model::{Delta, NetworkId, Service};

use super::{Dirty, Planner, note};
use crate::{Backend, PlanDelta, names};

impl Planner {
    /// Names follow what was planned so far: who serves, and with which VIPs.
    pub(super) fn plan_names(&self, out: &mut PlanDelta, delta: &Delta, dirty: &Dirty) {
        if self.context.leaves_names {
            return;
        }
        for id in delta.networks.keys() {
            let new = self.snapshot.networks.get(id).and_then(|n| names::named_network(n)).map(Arc::new);
            note(&mut out.names.networks, &self.plan.names.networks, id, new);
        }
        for id in &dirty.services {
            let new = self.snapshot.services.get(id).map(|service| {
                names::service_names(service, &self.snapshot, |network| {
                    [false, true].map(|v6| self.named_backends(service, network, v6, out))
                })
            });
            note(&mut out.names.services, &self.plan.names.services, id, new.map(Arc::new));
        }
        for id in delta.tasks.keys().chain(&dirty.named_tasks) {
            let task = self.snapshot.tasks.get(id);
            let new = task.and_then(|t| names::named_task(t, &self.snapshot, self.is_on_node_that_is_down(t)));
            note(&mut out.names.tasks, &self.plan.names.tasks, id, new);
        }
        for id in dirty.tasks.iter().chain(&dirty.named_tasks) {
            let task = self.snapshot.tasks.get(id).filter(|t| self.is_local(t));
            note(&mut out.names.askers, &self.plan.names.askers, id, task.and_then(|t| names::asker(t, &self.snapshot)).map(Arc::new));
        }
    }

    /// What a VIP of the service in this network leads to, if one was planned: held once.
    pub(super) fn named_backends(&self, service: &Service, network: &NetworkId, v6: bool, out: &PlanDelta) -> Arc<[Backend]> {
        let planned = |vip: &IpAddr| match out.vips.get(network).and_then(|changes| changes.get(vip)) {
            Some(changed) => changed.as_ref(),
            // What was planned of a network that nobody here is in any more is not kept up.
            None if out.left.contains(network) => None,
            None => self.plan.networks.get(network).and_then(|vips| vips.get(vip)),
        };
        let vips = service.vips.iter().filter(|v| v.network == *network && v.address.is_ipv6() == v6);
        let shared = vips.filter_map(|v| planned(&v.address)).find(|vip| vip.service == service.id);
        shared.map_or_else(|| self.backends(&service.id, network, v6, false).into(), |vip| Arc::clone(&vip.backends))
    }
}
