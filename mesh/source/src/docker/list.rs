//! The calls of a session: lists, and looks at single containers.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
};

use hyper::{StatusCode, body::Bytes};
use tokio::task::JoinSet;

use super::{
    events::Dirty,
    http::{ApiError, Client},
    view::View,
};

// The swarm's networks and this node's own, in one list.
const NETWORKS: &str = "/networks?filters=%7B%22scope%22%3A%5B%22swarm%22%2C%22local%22%5D%7D";
const SERVICES: &str = "/services";
const TASKS: &str = "/tasks";
const NODES: &str = "/nodes";
const CONTAINERS: &str = "/containers/json";

/// More than a few at once only queue up inside the engine.
const MOST_INSPECTIONS: usize = 8;

#[derive(Debug)]
pub(super) struct Watch {
    client: Client,
    /// Looks under way. They run beside everything else: the engine answers for a container only when it has started.
    running: JoinSet<Inspected>,
    looks: BTreeMap<String, Look>,
}

/// An answer about one container.
#[derive(Debug)]
pub(super) struct Inspected {
    id: String,
    path: String,
    answer: Result<Bytes, ApiError>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Waiting,
    UnderWay,
    /// Something happened meanwhile: the answer under way may be older than that.
    UnderWayThenAgain,
    /// Went wrong; tried again with the next poll.
    Failed,
}

impl Watch {
    pub(super) fn new(client: Client) -> Self {
        Self { client, running: JoinSet::new(), looks: BTreeMap::new() }
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) async fn list_all(&mut self, view: &mut View) -> Result<(), ApiError> {
        let (networks, nodes, services, tasks, containers) = tokio::try_join!(
            self.client.get(NETWORKS),
            self.client.get(NODES),
            self.client.get(SERVICES),
            self.client.get(TASKS),
            self.client.get(CONTAINERS),
        )?;
        self.take_networks(networks, view).await?;
        view.nodes.take(NODES, nodes)?;
        view.take_services(SERVICES, services)?;
        view.tasks.take(TASKS, tasks)?;
        let containers = view.take_container_list(CONTAINERS, &containers)?;
        self.look_at(containers);
        Ok(())
    }

    /// True when anything is different from before.
    pub(super) async fn list_dirty(&mut self, dirty: Dirty, view: &mut View) -> Result<bool, ApiError> {
        self.look_at(dirty.containers);
        let mut changed = false;
        if dirty.networks {
            let networks = self.client.get(NETWORKS).await?;
            changed |= self.take_networks(networks, view).await?;
        }
        if dirty.nodes {
            changed |= view.nodes.take(NODES, self.client.get(NODES).await?)?;
        }
        if dirty.services {
            changed |= view.take_services(SERVICES, self.client.get(SERVICES).await?)?;
        }
        if dirty.tasks {
            changed |= self.list_tasks(view).await?;
        }
        Ok(changed)
    }

    pub(super) async fn list_tasks(&mut self, view: &mut View) -> Result<bool, ApiError> {
        let changed = view.tasks.take(TASKS, self.client.get(TASKS).await?)?;
        if changed && view.misses_a_service() {
            view.take_services(SERVICES, self.client.get(SERVICES).await?)?;
        }
        Ok(changed)
    }

    /// Takes the list of networks, unless it may be short of some.
    ///
    /// While the swarm has no leader, the engine answers with what it has itself and hides the error (moby's `getNetworksList`).
    /// So a list that lacks something counts only between two lists that are known to fail then.
    async fn take_networks(&self, mut body: Bytes, view: &mut View) -> Result<bool, ApiError> {
        if view.networks.would_remove(NETWORKS, body.clone())? {
            self.client.get(NODES).await?;
            body = self.client.get(NETWORKS).await?;
            self.client.get(NODES).await?;
        }
        let local = view.local_networks.take(NETWORKS, body.clone())?;
        Ok(view.networks.take(NETWORKS, body)? || local)
    }

    fn look_at(&mut self, ids: BTreeSet<String>) {
        for id in ids {
            let look = self.looks.entry(id).or_insert(Look::Waiting);
            *look = match *look {
                Look::UnderWay | Look::UnderWayThenAgain => Look::UnderWayThenAgain,
                Look::Waiting | Look::Failed => Look::Waiting,
            };
        }
        self.start_waiting();
    }

    pub(super) fn retry_inspections(&mut self) {
        self.looks.values_mut().filter(|l| **l == Look::Failed).for_each(|l| *l = Look::Waiting);
        self.start_waiting();
    }

    fn start_waiting(&mut self) {
        let room = MOST_INSPECTIONS.saturating_sub(self.running.len());
        for (id, look) in self.looks.iter_mut().filter(|(_, l)| **l == Look::Waiting).take(room) {
            *look = Look::UnderWay;
            let (client, id) = (self.client.clone(), id.clone());
            self.running.spawn(async move {
                let path = format!("/containers/{id}/json");
                let answer = client.get(&path).await;
                Inspected { id, path, answer }
            });
        }
    }

    /// The next answer; pending for ever while nothing is under way.
    pub(super) async fn inspected(&mut self) -> Inspected {
        loop {
            match self.running.join_next().await {
                Some(Ok(inspected)) => return inspected,
                Some(Err(error)) => tracing::error!(%error, "a look at a container ended early"),
                None => pending().await,
            }
        }
    }

    /// True when something is different from before.
    pub(super) fn take_inspected(&mut self, inspected: Inspected, view: &mut View) -> bool {
        let Inspected { id, path, answer } = inspected;
        let (changed, failed) = match answer {
            Ok(body) => match view.take_container(&path, &body) {
                Ok(changed) => (changed, false),
                Err(error) => {
                    tracing::warn!(container = id, %error, "container not understood");
                    (false, false)
                }
            },
            Err(ApiError::Status { status: StatusCode::NOT_FOUND, .. }) => (view.container_gone(&id), false),
            Err(error) => {
                tracing::debug!(container = id, %error, "container not inspected; trying again");
                (false, true)
            }
        };
        if self.looks.remove(&id) == Some(Look::UnderWayThenAgain) {
            self.looks.insert(id, Look::Waiting);
        } else if failed {
            self.looks.insert(id, Look::Failed);
        }
        self.start_waiting();
        changed
    }

    /// Waits for all looks, so that the first snapshot has its sandboxes.
    pub(super) async fn finish_inspections(&mut self, view: &mut View) {
        while !self.running.is_empty() {
            let inspected = self.inspected().await;
            self.take_inspected(inspected, view);
        }
    }
}
