//! Opening ports, and one loop for each.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdUdp},
    sync::Arc,
    time::Duration,
};

use socket2::{Domain, SockRef, Socket, Type};
use swarmesh_model::Protocol;
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::{Failure, Running, Server, WhoamiError, echo, sniff};

/// After a failed accept (no descriptors left), before the next try.
const PAUSE: Duration = Duration::from_millis(50);

pub(super) fn tcp(port: u16, server: &Arc<Server>, running: &Running) -> Result<(), WhoamiError> {
    let failed = |error| WhoamiError::Listen { protocol: Protocol::Tcp, port, error };
    let socket = open(port, Type::STREAM).map_err(failed)?;
    socket.listen(4096).map_err(failed)?;
    let listener = TcpListener::from_std(socket.into()).map_err(failed)?;
    let (server, mut running) = (Arc::clone(server), running.clone());
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = running.stopped() => return,
            };
            match accepted {
                Ok((stream, remote)) => drop(tokio::spawn(connection(stream, remote, Arc::clone(&server), running.clone()))),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    });
    Ok(())
}

async fn connection(stream: TcpStream, remote: SocketAddr, server: Arc<Server>, mut running: Running) {
    match server.fail {
        Failure::Reset => {
            // Closing without lingering sends a reset instead of a FIN.
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        }
        Failure::Hang => {
            running.stopped().await;
            drop(stream);
        }
        _ => {
            let Ok(local) = stream.local_addr() else { return };
            let _ = stream.set_nodelay(true);
            sniff::serve(stream, canonical(remote), canonical(local), server, running).await;
        }
    }
}

pub(super) fn udp(port: u16, server: &Arc<Server>, running: &Running) -> Result<(), WhoamiError> {
    let failed = |error| WhoamiError::Listen { protocol: Protocol::Udp, port, error };
    let socket = open(port, Type::DGRAM).map_err(failed)?;
    let socket = UdpSocket::from_std(socket.into()).map_err(failed)?;
    let (server, mut running) = (Arc::clone(server), running.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = echo::datagrams(&socket, &server) => {}
            () = running.stopped() => {}
        }
    });
    Ok(())
}

/// One socket for both families; IPv4 alone where IPv6 is switched off.
fn open(port: u16, kind: Type) -> io::Result<Socket> {
    let bound = |domain, address: SocketAddr| -> io::Result<Socket> {
        let socket = Socket::new(domain, kind, None)?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(false)?;
        }
        if kind == Type::STREAM {
            socket.set_reuse_address(true)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        Ok(socket)
    };
    match bound(Domain::IPV6, (Ipv6Addr::UNSPECIFIED, port).into()) {
        Err(e) if e.kind() != io::ErrorKind::AddrInUse => bound(Domain::IPV4, (Ipv4Addr::UNSPECIFIED, port).into()),
        result => result,
    }
}

/// IPv4 callers of a dual-stack socket under their own address.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The address that an answer to `remote` leaves from: what the routing table prefers, as for any server on a wildcard socket.
pub(super) fn preferred_source(remote: SocketAddr, port: u16) -> Option<SocketAddr> {
    let any: SocketAddr = if remote.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let probe = StdUdp::bind(any).ok()?;
    probe.connect(remote).ok()?;
    Some(SocketAddr::new(probe.local_addr().ok()?.ip(), port))
}
