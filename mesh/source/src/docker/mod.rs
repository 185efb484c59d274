//! The Docker API of a manager: list everything, watch `/events`, poll `/tasks`, and come back after every loss.

mod decode;
mod endpoint;
mod events;
mod http;
mod kind;
mod list;
mod listed;
mod local;
mod name_resolution;
mod session;
mod view;
mod wire;

#[cfg(test)]
mod decode_tests;
#[cfg(test)]
mod fake_engine;
#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod local_tests;
#[cfg(test)]
mod session_tests;
#[cfg(test)]
mod view_tests;

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use tokio::{sync::mpsc::Sender, time};

use self::{
    session::{End, Source},
    view::View,
};
use crate::{SourceError, Update, publish::Publisher};

pub(crate) use endpoint::Endpoint;

#[derive(Clone, Copy, Debug)]
struct Timing {
    /// Between two lists of tasks, of which there are no events.
    poll: Duration,
    /// Between two lists of everything.
    resync: Duration,
    /// From an event to the list it asks for: events come in bursts.
    settle: Duration,
    /// For each wait on the engine.
    patience: Duration,
    first_retry: Duration,
    last_retry: Duration,
}

const TIMING: Timing = Timing {
    poll: Duration::from_millis(500),
    resync: Duration::from_secs(60),
    settle: Duration::from_millis(20),
    patience: Duration::from_secs(10),
    first_retry: Duration::from_millis(250),
    last_retry: Duration::from_secs(10),
};

pub(crate) async fn run(name: String, url: &str, updates: Sender<Update>) -> Result<(), SourceError> {
    let endpoint = Endpoint::parse(url)?;
    run_with(Source { name, endpoint, timing: TIMING, publisher: Publisher::new(updates), view: View::default() }).await;
    Ok(())
}

/// Until nobody receives.
async fn run_with(mut source: Source) {
    let mut retry = source.timing.first_retry;
    loop {
        let mut established = false;
        let lost = match source.session(&mut established).await {
            End::ReceiverGone => return,
            End::Lost(lost) => lost,
        };
        if established {
            retry = source.timing.first_retry;
        }
        tracing::warn!(source = source.name, error = %lost, "Docker lost; what is known stays in force");
        let state = source.state(false, lost.to_string());
        if source.publisher.state(state).await.is_err() {
            return;
        }
        tokio::select! {
            () = source.publisher.closed() => return,
            () = time::sleep(jittered(retry)) => {}
        }
        retry = (retry * 2).min(source.timing.last_retry);
    }
}

/// Between half and all of it, so that the agents of a swarm do not all come back to a manager at once.
fn jittered(delay: Duration) -> Duration {
    // A fresh `RandomState` hashes the same input differently each time; that is all the randomness needed here.
    let share = u32::from(RandomState::new().hash_one(()) as u16);
    delay / 2 + delay / 2 * share / u32::from(u16::MAX)
}
