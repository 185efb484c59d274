//! Services that this node was told of beside the swarm's labels, by Docker Flow Proxy's API.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use swarmesh_model::Service;
use swarmesh_router::{
    dialect::{Workload, flow_proxy},
    model::{Owner, OwnerKind},
};

/// By the service's name, the parameters that came with it, which are labels without their prefix.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Added(BTreeMap<String, BTreeMap<String, String>>);

impl Added {
    pub fn get(&self, name: &str) -> Option<&BTreeMap<String, String>> {
        self.0.get(name)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&String, &BTreeMap<String, String>)> {
        self.0.iter()
    }

    /// What came before under this name is forgotten.
    pub fn insert(&mut self, name: String, parameters: BTreeMap<String, String>) {
        self.0.insert(name, parameters);
    }

    /// Says whether it was there.
    pub fn remove(&mut self, name: &str) -> bool {
        self.0.remove(name).is_some()
    }

    /// The names whose parameters are others there.
    pub(crate) fn changed<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a String> {
        let here = self.0.iter().filter(|(name, parameters)| other.0.get(*name) != Some(*parameters)).map(|(name, _)| name);
        here.chain(other.0.keys().filter(|name| !self.0.contains_key(*name)))
    }

    /// A service's labels: what was told of it stands for all labels of its own that the same dialect reads.
    pub fn labels<'a>(&self, service: &'a Service) -> Cow<'a, BTreeMap<String, String>> {
        match self.get(&service.name) {
            None => Cow::Borrowed(&service.labels),
            Some(parameters) => Cow::Owned(flow_proxy::labels_of(parameters, &service.labels)),
        }
    }
}

/// Parameters may be passwords and keys.
impl fmt::Debug for Added {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// The labels of a name that is no service's: it is a host's.
pub fn labels_of_host(name: &str, parameters: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut labels = flow_proxy::labels_of(parameters, &BTreeMap::new());
    flow_proxy::lead_to_host(&mut labels, name);
    labels
}

/// To be read as if it were a service.
pub fn host_workload<'a>(name: &str, labels: &'a BTreeMap<String, String>) -> Workload<'a> {
    // No id of a swarm's object has a colon.
    let owner = Owner { id: format!("flow-proxy:{name}"), name: name.to_owned(), kind: OwnerKind::Service };
    Workload { owner, labels, ports: &[], networks: Vec::new() }
}
