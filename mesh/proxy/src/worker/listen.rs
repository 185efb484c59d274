//! Listeners, and how many connections are open.

use std::{cell::Cell, io, net::SocketAddr, rc::Rc, time::Duration};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{net::TcpListener, sync::Notify, time::sleep};

use super::{Kind, Worker, connection};
use crate::metrics::add;

/// Connections that wait to be accepted, as HAProxy and nginx have it at least.
const BACKLOG: i32 = 4096;
/// When there are no descriptors, accepting at once again would only burn time.
const PAUSE: Duration = Duration::from_millis(50);

/// A listener beside which others listen on the same address: the kernel deals connections out among them.
pub(super) fn open(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_port(true)?;
    // An address whose old connections still linger can be listened on.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A worker's open connections.
#[derive(Clone, Debug)]
pub(crate) struct Count(Rc<Counted>);

#[derive(Debug)]
struct Counted {
    most: usize,
    open: Cell<usize>,
    fewer: Notify,
}

/// Counts one connection as long as it lives.
#[derive(Debug)]
pub(crate) struct Open(Rc<Counted>);

impl Count {
    pub(super) fn new(most: usize) -> Self {
        Self(Rc::new(Counted { most, open: Cell::new(0), fewer: Notify::new() }))
    }

    pub(super) fn open(&self) -> usize {
        self.0.open.get()
    }

    pub(crate) fn add(&self) -> Open {
        self.0.open.set(self.0.open.get() + 1);
        Open(Rc::clone(&self.0))
    }

    async fn has_room(&self) {
        while self.0.open.get() >= self.0.most {
            self.0.fewer.notified().await;
        }
    }

    pub(super) async fn none_left(&self) {
        while self.0.open.get() > 0 {
            self.0.fewer.notified().await;
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get().saturating_sub(1));
        self.0.fewer.notify_one();
    }
}

pub(super) async fn accept(worker: Rc<Worker>, kind: Kind, listener: TcpListener) {
    loop {
        worker.connections.has_room().await;
        match listener.accept().await {
            Ok((stream, peer)) => {
                add(&worker.shared.counts.connections, 1);
                let (worker, open) = (Rc::clone(&worker), worker.connections.add());
                tokio::task::spawn_local(async move {
                    connection::serve(worker, kind, stream, peer).await;
                    drop(open);
                });
            }
            // A client that has left while it waited costs nothing but itself.
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {}
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted; is the limit of open files too low?");
                sleep(PAUSE).await;
            }
        }
    }
}
