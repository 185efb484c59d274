//! Sockets to upstream servers, opened where Docker would open them.

use std::{
    io,
    net::{SocketAddr, TcpStream, UdpSocket},
    path::PathBuf,
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use swarmesh_dataplane::TO_ENGINE;
use swarmesh_dns::forward::{Origin, Sockets};
use swarmesh_kernel::{KernelError, Netns};

/// Opens sockets here, or in a container's namespace.
#[derive(Debug)]
pub(super) struct NetnsSockets {
    netns_dir: PathBuf,
}

impl NetnsSockets {
    pub(super) const fn new(netns_dir: PathBuf) -> Self {
        Self { netns_dir }
    }

    fn within<S>(&self, origin: &Origin, open: impl FnOnce() -> io::Result<S>) -> io::Result<S> {
        match origin {
            Origin::Host => open(),
            Origin::Sandbox(name) | Origin::Engine(name) => {
                let namespace = Netns::open(&self.netns_dir.join(&**name)).map_err(failed)?;
                namespace.enter(open).map_err(failed)?
            }
        }
    }
}

fn failed(error: KernelError) -> io::Error {
    io::Error::other(error)
}

impl Sockets for NetnsSockets {
    fn udp(&self, origin: &Origin, server: SocketAddr) -> io::Result<UdpSocket> {
        self.within(origin, || {
            let any: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
            let socket = UdpSocket::bind(any)?;
            socket.set_nonblocking(true)?;
            if let Origin::Engine(_) = origin {
                SockRef::from(&socket).set_mark(TO_ENGINE)?;
            }
            socket.connect(server)?;
            Ok(socket)
        })
    }

    fn tcp(&self, origin: &Origin, server: SocketAddr) -> io::Result<TcpStream> {
        self.within(origin, || {
            let socket = Socket::new(Domain::for_address(server), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_nonblocking(true)?;
            if let Origin::Engine(_) = origin {
                socket.set_mark(TO_ENGINE)?;
            }
            match socket.connect(&server.into()) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(nix::libc::EINPROGRESS) => {}
                Err(error) => return Err(error),
            }
            Ok(socket.into())
        })
    }
}
