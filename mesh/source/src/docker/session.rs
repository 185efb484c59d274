//! One connection's life: list everything, then watch, poll and list again what changed, until something fails.

use std::{convert::Infallible, future::pending, time::Instant};

use http_body_util::BodyExt;
use hyper::body::Incoming;
use swarmesh_model::NodeId;
use tokio::time::{self, MissedTickBehavior};

use super::{
    Endpoint, Timing,
    events::{self, Dirty, Lines},
    http::{ApiError, Client},
    list::Watch,
    view::View,
    wire,
};
use crate::{
    SourceState,
    publish::{Publisher, ReceiverGone},
};

const INFO: &str = "/info";

/// How a session ends.
#[derive(Debug)]
pub(super) enum End {
    Lost(ApiError),
    ReceiverGone,
}

impl From<ApiError> for End {
    fn from(error: ApiError) -> Self {
        Self::Lost(error)
    }
}

impl From<ReceiverGone> for End {
    fn from(_: ReceiverGone) -> Self {
        Self::ReceiverGone
    }
}

/// What outlives a session.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) name: String,
    pub(super) endpoint: Endpoint,
    pub(super) timing: Timing,
    pub(super) publisher: Publisher,
    pub(super) view: View,
}

impl Source {
    pub(super) fn state(&self, connected: bool, detail: String) -> SourceState {
        SourceState { source: self.name.clone(), connected, detail, node: self.view.node.clone(), problems: self.view.problems() }
    }

    /// Returns only when the session is over. `established` is set once everything has been listed.
    pub(super) async fn session(&mut self, established: &mut bool) -> End {
        match self.attend(established).await {
            Err(end) => end,
            Ok(never) => match never {},
        }
    }

    async fn attend(&mut self, established: &mut bool) -> Result<Infallible, End> {
        let client = Client::connect(self.endpoint.clone(), self.timing.patience).await?;
        self.learn_self(&client).await?;
        // Open before the first list, so that nothing falls between the two.
        let events = client.open(events::PATH).await?;
        let mut watch = Watch::new(client);
        watch.list_all(&mut self.view).await?;
        watch.finish_inspections(&mut self.view).await;
        self.publish().await?;
        *established = true;
        tracing::info!(source = self.name, "connected to Docker");
        self.watch(watch, events).await
    }

    async fn publish(&mut self) -> Result<(), End> {
        let snapshot = self.view.assemble(self.publisher.version() + 1);
        self.publisher.objects(snapshot).await?;
        let state = self.state(true, String::new());
        Ok(self.publisher.state(state).await?)
    }

    /// Which node this is, and whether it can know anything about the swarm.
    async fn learn_self(&mut self, client: &Client) -> Result<(), ApiError> {
        let body = client.get(INFO).await?;
        let info: wire::Info =
            serde_json::from_slice(&body).map_err(|error| ApiError::Garbled { path: INFO.to_owned(), message: error.to_string() })?;
        let swarm = info.swarm;
        if !swarm.node_id.is_empty() {
            self.view.node = Some(NodeId::from(swarm.node_id));
        }
        match (swarm.local_node_state.as_str(), swarm.control_available) {
            (_, true) => Ok(()),
            ("active", false) => Err(ApiError::Worker),
            (state, false) => Err(ApiError::NoSwarm { state: state.to_owned() }),
        }
    }

    async fn watch(&mut self, mut watch: Watch, mut events: Incoming) -> Result<Infallible, End> {
        let mut lines = Lines::default();
        let mut dirty = Dirty::default();
        let mut settled: Option<time::Instant> = None;
        let mut next_poll = time::Instant::now() + self.timing.poll;
        let mut resync = time::interval_at(time::Instant::now() + self.timing.resync, self.timing.resync);
        resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let settle = async {
                match settled {
                    Some(at) => time::sleep_until(at).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = self.publisher.closed() => return Err(End::ReceiverGone),
                frame = events.frame() => {
                    let frame = frame
                        .ok_or_else(|| ApiError::EventsEnded { at: watch.client().endpoint().to_string() })?
                        .map_err(|error| ApiError::Broken {
                            at: watch.client().endpoint().to_string(),
                            path: "/events".to_owned(),
                            error,
                        })?;
                    if let Ok(chunk) = frame.into_data() {
                        lines.push(&chunk, &mut dirty);
                    }
                }
                inspected = watch.inspected() => {
                    if watch.take_inspected(inspected, &mut self.view) {
                        self.publish().await?;
                    }
                }
                () = settle => {
                    settled = None;
                    if watch.list_dirty(std::mem::take(&mut dirty), &mut self.view).await? {
                        self.publish().await?;
                    }
                }
                () = time::sleep_until(next_poll) => {
                    let started = Instant::now();
                    let changed = watch.list_tasks(&mut self.view).await?;
                    // A list that takes the engine long is asked for less often, so that polling costs it a tenth of its time at most.
                    next_poll = time::Instant::now() + self.timing.poll.max(started.elapsed() * 10);
                    if changed {
                        self.publish().await?;
                    }
                    watch.retry_inspections();
                }
                _ = resync.tick() => {
                    // The engine drops events that a slow reader leaves standing; nothing stays wrong for longer than this.
                    watch.list_all(&mut self.view).await?;
                    self.publish().await?;
                }
            }
            if settled.is_none() && !dirty.is_empty() {
                settled = Some(time::Instant::now() + self.timing.settle);
            }
        }
    }
}
