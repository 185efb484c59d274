//! What engines say of their containers, services and networks.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::DockerLab;

/// A container, by what its engine says.
#[derive(Clone, Debug)]
pub struct Container {
    /// Empty for one that is no task.
    pub task: String,
    pub id: String,
    pub node: usize,
    /// Runs, and passes its health check if it has one.
    pub healthy: bool,
    pub namespace: PathBuf,
    pub addresses: BTreeMap<String, IpAddr>,
}

impl Container {
    /// Its address in a network.
    pub fn address(&self, network: &str) -> Result<IpAddr> {
        self.addresses.get(network).copied().with_context(|| format!("{} is not in {network}", self.task))
    }
}

impl DockerLab {
    /// The running containers of all nodes that a filter of the Engine API leaves, such as `name=plain`.
    pub fn containers(&self, filter: &str) -> Result<Vec<Container>> {
        let (kind, value) = filter.split_once('=').context("a filter")?;
        let query = format!("/containers/json?filters=%7B%22{kind}%22%3A%5B%22{}%22%5D%7D", value.replace('=', "%3D"));
        let mut containers = Vec::new();
        for node in 0..self.len() {
            for listed in array(&self.api(node, &query)?) {
                let id = text(&listed["Id"]);
                // It may have ended since.
                let Ok(seen) = self.api(node, &format!("/containers/{id}/json")) else { continue };
                let sandbox = text(&seen["NetworkSettings"]["SandboxKey"]);
                let networks = seen["NetworkSettings"]["Networks"].as_object().cloned().unwrap_or_default();
                containers.push(Container {
                    task: text(&seen["Config"]["Labels"]["com.docker.swarm.task.name"]),
                    node,
                    healthy: seen["State"]["Running"] == true && seen["State"]["Health"]["Status"].as_str().is_none_or(|s| s == "healthy"),
                    namespace: self.netns_dir(node)?.join(sandbox.rsplit('/').next().unwrap_or_default()),
                    addresses: networks
                        .into_iter()
                        .filter_map(|(name, settings)| Some((name, settings["IPAddress"].as_str()?.parse().ok()?)))
                        .collect(),
                    id,
                });
            }
        }
        Ok(containers)
    }

    /// The running containers of a service's tasks on all nodes, leaving ones included.
    pub fn tasks(&self, service: &str) -> Result<Vec<Container>> {
        self.containers(&format!("label=com.docker.swarm.service.name={service}"))
    }

    /// A service's VIP in a network.
    pub fn vip(&self, service: &str, network: &str) -> Result<IpAddr> {
        let network = self.api(0, &format!("/networks/{network}?scope=swarm"))?["Id"].clone();
        let service = self.api(0, &format!("/services/{service}"))?;
        let vip =
            array(&service["Endpoint"]["VirtualIPs"]).into_iter().find(|v| v["NetworkID"] == network).context("it has no VIP there")?;
        Ok(text(&vip["Addr"]).split('/').next().unwrap_or_default().parse()?)
    }
}

fn array(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
