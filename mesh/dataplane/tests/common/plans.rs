//! Plans made by hand.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use swarmesh_model::{Protocol, TaskId};
use swarmesh_plan::{Backend, BackendState, Ingress, NodePlan, Policy, PublishedPort, SandboxPlan, Scheduler, TaskIngress, VirtualService};

use super::ip;

pub fn policy(change: impl FnOnce(&mut Policy)) -> Policy {
    let mut policy = Policy::default();
    change(&mut policy);
    policy
}

pub fn sticky() -> Policy {
    policy(|p| p.affinity = Some(Duration::from_secs(60)))
}

pub fn scheduled(scheduler: Scheduler) -> Policy {
    policy(|p| p.scheduler = scheduler)
}

/// `10.0.1.11`, or `10.0.1.11 drains`.
pub fn backends(of: &[&str]) -> Vec<Backend> {
    let mut backends: Vec<Backend> = of
        .iter()
        .map(|text| {
            let (address, state) = match text.split_once(' ') {
                Some((address, _)) => (address, BackendState::Draining),
                None => (*text, BackendState::Ready),
            };
            // Those of `Plan::task` are this node's.
            let task = match ip(address) {
                IpAddr::V4(a) if a.octets()[..3] == [10, 0, 0] && (101..110).contains(&a.octets()[3]) => {
                    format!("t{}", a.octets()[3] - 100)
                }
                _ => address.to_owned(),
            };
            Backend { address: ip(address), task: task.as_str().into(), state }
        })
        .collect();
    backends.sort();
    backends
}

/// Two networks `net1` (10.0.1.0/24, fd00:1::/64) and `net2` (10.0.2.0/24), the ingress network, and tasks `t1`….
#[derive(Clone, Debug, Default)]
pub struct Plan(pub NodePlan);

impl Plan {
    pub fn ingress(mut self) -> Self {
        self.0.ingress = Some(Arc::new(Ingress { network: "ingress".into(), subnets: vec!["10.0.0.0/24".parse().unwrap()], mtu: 1450 }));
        self
    }

    /// Task `tN` in the namespace `boxN`, in these networks; with published ports if there are any.
    pub fn task(mut self, number: u8, networks: &[&str], published: &[(Protocol, u16, u16)]) -> Self {
        let id: TaskId = format!("t{number}").as_str().into();
        let plan = SandboxPlan {
            task: id.clone(),
            name: format!("web.{number}"),
            sandbox: format!("box{number}"),
            networks: networks.iter().map(|n| (*n).into()).collect(),
            ingress: (!published.is_empty()).then(|| TaskIngress {
                addresses: vec![IpAddr::from([10, 0, 0, 100 + number])],
                published: published.iter().map(|(protocol, port, target)| ((*protocol, *port), *target)).collect(),
                host: BTreeSet::new(),
            }),
        };
        for network in networks {
            self.0.networks.entry((*network).into()).or_default();
        }
        self.0.sandboxes.insert(id, Arc::new(plan));
        self
    }

    pub fn vip(mut self, network: &str, vip: &str, policy: Policy, of: &[&str]) -> Self {
        let service = VirtualService { service: vip.into(), name: vip.to_owned(), policy: Arc::new(policy), backends: backends(of).into() };
        self.0.networks.entry(network.into()).or_default().insert(ip(vip), Arc::new(service));
        self
    }

    pub fn without_vip(mut self, network: &str, vip: &str) -> Self {
        self.0.networks.get_mut(network).unwrap().remove(&ip(vip));
        self
    }

    pub fn port(self, protocol: Protocol, port: u16, policy: Policy, of: &[&str]) -> Self {
        self.port_or_refuse(protocol, port, policy, of, false)
    }

    pub fn port_or_refuse(mut self, protocol: Protocol, port: u16, policy: Policy, of: &[&str], refuse: bool) -> Self {
        let service = format!("{protocol}{port}");
        let port_plan = PublishedPort {
            service: service.as_str().into(),
            name: service,
            target_port: 80,
            policy: Arc::new(policy),
            refuse,
            backends: backends(of),
        };
        self.0.published.insert((protocol, port), Arc::new(port_plan));
        self
    }

    pub fn without_port(mut self, protocol: Protocol, port: u16) -> Self {
        self.0.published.remove(&(protocol, port));
        self
    }

    pub fn without_task(mut self, number: u8) -> Self {
        self.0.sandboxes.remove(&format!("t{number}").as_str().into());
        let used: BTreeSet<_> = self.0.sandboxes.values().flat_map(|s| s.networks.clone()).collect();
        self.0.networks.retain(|n, _| used.contains(n));
        self
    }

    pub fn without_ingress(mut self) -> Self {
        self.0.ingress = None;
        self.0.published = Default::default();
        let without = |s: &SandboxPlan| Arc::new(SandboxPlan { ingress: None, ..s.clone() });
        self.0.sandboxes = self.0.sandboxes.iter().map(|(id, s)| (id.clone(), without(s))).collect();
        self
    }
}

/// Two tasks, one of which serves published ports; services of every kind.
pub fn rich() -> Plan {
    Plan::default()
        .ingress()
        .task(1, &["net1"], &[(Protocol::Tcp, 8080, 80), (Protocol::Udp, 5353, 53)])
        .task(2, &["net1", "net2"], &[])
        .vip("net1", "10.0.1.100", Policy::default(), &["10.0.1.11", "10.0.1.12", "10.0.1.13"])
        .vip("net1", "10.0.1.101", sticky(), &["10.0.1.14", "10.0.1.15"])
        .vip("net1", "10.0.1.102", scheduled(Scheduler::SourceHash), &["10.0.1.16", "10.0.1.17"])
        .vip("net1", "10.0.1.103", Policy::default(), &[])
        .vip("net1", "fd00:1::100", Policy::default(), &["fd00:1::11", "fd00:1::12"])
        .vip("net2", "10.0.2.100", scheduled(Scheduler::Random), &["10.0.2.11", "10.0.2.12"])
        .port(Protocol::Tcp, 8080, Policy::default(), &["10.0.0.101", "10.0.0.111"])
        .port(Protocol::Udp, 5353, sticky(), &["10.0.0.101", "10.0.0.112"])
        .port(Protocol::Tcp, 9090, policy(|p| p.source = swarmesh_plan::SourceMode::Snat), &["10.0.0.113"])
}
