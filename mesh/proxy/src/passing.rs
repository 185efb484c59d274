//! Connections that are passed on unopened: TLS by the name in its hello, and TCP by its port.

use std::{rc::Rc, sync::Arc, time::Instant};

use http::HeaderMap;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::{
    access_log::{Entry, WorkerLog},
    hello::Hello,
    http::{body::Account, request::Client},
    live_set::Asking,
    proxy_protocol,
    rewound::Rewound,
    routing::Lane,
    tunnel::tunnel,
    upstream::Wanted,
    worker::Worker,
};

/// Copies a connection to one of the route's backends, beginning with what was read of it. A client that nobody takes sees its
/// connection closed, which is all that can be said.
pub(crate) async fn pass(worker: &Rc<Worker>, lane: &Arc<Lane>, client: &Client, mut stream: Rewound<TcpStream>, hello: Option<Hello>) {
    lane.counts.begin();
    let begun = Instant::now();
    let mut account = Account::new(Some(Arc::clone(lane)), begun);
    if let Some(log) = worker.log.as_ref().filter(|log| log.samples()) {
        account.entry = Some(open_entry(log, client, hello.as_ref()));
    }
    // Those that nobody takes are all told.
    let fail = |account: &mut Account, reason, tries: u32| {
        let Some(log) = &worker.log else { return };
        let entry = account.entry.get_or_insert_with(|| open_entry(log, client, hello.as_ref()));
        (entry.reason, entry.retries) = (Some(reason), tries.saturating_sub(1));
    };
    let Some(live) = &lane.live else { return };
    let policy = &lane.recipe.policy;
    let times = worker.config.times.of(&policy.timeouts);
    let none = HeaderMap::new();
    let session = hello.as_ref().map(|hello| hello.session.as_slice()).filter(|session| !session.is_empty());
    let asking = Asking { client: client.address.ip(), headers: &none, tls: hello.is_some(), tls_session: session };
    let mut tried = Vec::new();
    let mut tries: u32 = 0;
    let backend = loop {
        let now = Instant::now();
        let Some(choice) = live.choose(&asking, &tried, now) else {
            tracing::debug!(client = %client.address, route = %lane.route.origin.owner, "nobody takes a connection");
            fail(&mut account, if tries > 0 { "connect-failed" } else { "no-backend" }, tries);
            return;
        };
        let endpoint = choice.endpoint;
        tried.push(endpoint.id);
        let Some(busy) = endpoint.begin(policy.limits.connections) else { continue };
        if tries > 0 {
            lane.counts.retried();
        }
        tries += 1;
        let wanted = Wanted {
            host: "",
            connect_time: times.connect,
            fresh: true,
            preface: policy.proxy_protocol.map(|version| proxy_protocol::header(version, client.address, client.local)),
            private: true,
            streams: true,
            once: false,
        };
        match worker.upstreams.connect(&endpoint, &wanted).await {
            Ok(backend) => {
                if let Some(entry) = &mut account.entry {
                    entry.retries = tries.saturating_sub(1);
                }
                endpoint.health.succeeded();
                account.busy = Some(busy);
                break backend;
            }
            Err(error) => {
                tracing::debug!(client = %client.address, route = %lane.route.origin.owner, %error, "a backend is not reached");
                lane.counts.connect_failed();
                endpoint.health.failed(policy.ejection, now);
                let spent = policy.retries.attempts.is_some_and(|attempts| tried.len() > usize::from(attempts));
                if spent {
                    fail(&mut account, "connect-failed", tries);
                    return;
                }
            }
        }
    };
    let (mut backend, mut first) = (backend, 0);
    if let Some(hello) = &hello {
        if backend.write_all(&hello.bytes).await.is_err() {
            fail(&mut account, "backend-broke-off", tries);
            return;
        }
        first = hello.bytes.len() as u64;
    }
    let copied = tunnel(&mut stream, &mut backend, Some(times.tunnel), worker.patience_is_over()).await;
    account.upload.received.set(first + copied.to_backend);
    account.sent = copied.to_client;
}

fn open_entry(log: &Rc<WorkerLog>, client: &Client, hello: Option<&Hello>) -> Box<Entry> {
    let mut entry = log.connection(client, if hello.is_some() { "tls" } else { "tcp" });
    entry.sni = hello.and_then(|hello| hello.sni.clone());
    entry
}
