//! The two echo protocols.

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UdpSocket,
};

use super::{
    Failure, Server, listen,
    sniff::{Carrier, Rewound},
};

/// A longer line is echoed in pieces of this size.
const LONGEST_LINE: u64 = 64 * 1024;

/// One greeting, then every line as it came.
pub(super) async fn lines<S: Carrier>(stream: Rewound<S>, remote: SocketAddr, local: SocketAddr, server: &Server) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    server.think().await;
    let greeting = server.identity.greeting(remote, local) + "\n";
    stream.write_all(greeting.as_bytes()).await?;
    let mut line = Vec::new();
    loop {
        line.clear();
        if (&mut stream).take(LONGEST_LINE).read_until(b'\n', &mut line).await? == 0 {
            return stream.shutdown().await;
        }
        server.think().await;
        stream.write_all(&line).await?;
    }
}

/// Answers each datagram with the greeting and what it carried. Never returns.
pub(super) async fn datagrams(socket: &UdpSocket, server: &Server) {
    let port = socket.local_addr().map_or(0, |a| a.port());
    let mut buffer = vec![0; 65_536];
    loop {
        // Errors here are ICMP answers to earlier datagrams of ours.
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
        if matches!(server.fail, Failure::Hang | Failure::Reset) {
            continue;
        }
        let remote = listen::canonical(from);
        let local = listen::preferred_source(remote, port).unwrap_or_else(|| SocketAddr::new(remote.ip(), port));
        let mut answer = (server.identity.greeting(remote, local) + " ").into_bytes();
        answer.extend_from_slice(&buffer[..length]);
        server.think().await;
        // A lost answer is what UDP promises.
        let _ = socket.send_to(&answer, from).await;
    }
}
