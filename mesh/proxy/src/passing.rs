//! Connections that are passed on unopened: TLS by the name in its hello, and TCP by its port.

use std::{cell::Cell, rc::Rc, sync::Arc, time::Instant};

use http::HeaderMap;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::{
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
    let mut account = Account { lane: Some(Arc::clone(lane)), begun, status: 0, received: Rc::new(Cell::new(0)), sent: 0, busy: None };
    let Some(live) = &lane.live else { return };
    let policy = &lane.route.policy;
    let times = worker.config.times.of(&policy.timeouts);
    let none = HeaderMap::new();
    let session = hello.as_ref().map(|hello| hello.session.as_slice()).filter(|session| !session.is_empty());
    let asking = Asking { client: client.address.ip(), headers: &none, tls: hello.is_some(), tls_session: session };
    let mut tried = Vec::new();
    let mut tries = 0;
    let backend = loop {
        let now = Instant::now();
        let Some(choice) = live.choose(&asking, &tried, now) else {
            tracing::debug!(client = %client.address, route = %lane.route.origin.owner, "nobody takes a connection");
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
            once: false,
        };
        match worker.upstreams.connect(&endpoint, &wanted).await {
            Ok(backend) => {
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
                    return;
                }
            }
        }
    };
    let (mut backend, mut first) = (backend, 0);
    if let Some(hello) = &hello {
        if backend.write_all(&hello.bytes).await.is_err() {
            return;
        }
        first = hello.bytes.len() as u64;
    }
    let copied = tunnel(&mut stream, &mut backend, Some(times.tunnel), worker.patience_is_over()).await;
    account.received.set(first + copied.to_backend);
    account.sent = copied.to_client;
}
