//! Docker Flow Proxy's own HTTP API: services that are told of by calls instead of labels, and certificates.
//!
//! It is off unless it is asked for. The calls' parameters are read as the labels that they are without their prefix; what
//! comes of them is planned with the swarm's labels, and kept in the state directory.

mod answers;
mod certificates;
mod described;
mod query;

use std::{io, net::SocketAddr, sync::Arc};

pub use certificates::Certificates;

use crate::{
    admin::{Listener, serve_answers},
    engine::EngineHandle,
};

/// A service's certificate can come as a parameter.
const LARGEST_HEAD: usize = 64 * 1024;

/// Needs a running runtime.
pub async fn bind(address: SocketAddr) -> io::Result<Listener> {
    let listener = Listener::tcp(address).await?;
    if !address.ip().is_loopback() {
        tracing::warn!(
            %address,
            "Docker Flow Proxy's API asks nobody for a password: who reaches this address changes routes and certificates"
        );
    }
    Ok(listener)
}

/// Serves until the returned future is dropped.
pub async fn serve(listener: Listener, engine: EngineHandle, certificates: Certificates) {
    let bound = listener.address().clone();
    serve_answers(listener, Arc::new(answers::Server { engine, bound, certificates: Arc::new(certificates) }), LARGEST_HEAD).await;
}
