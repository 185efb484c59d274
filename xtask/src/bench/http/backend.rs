//! A backend of one thread that answers each request with the same bytes.

use std::{
    collections::HashMap,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    thread,
};

use anyhow::Result;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// Listens on loopback and answers until the process ends.
pub(super) fn start(body: usize) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {body}\r\n\r\n{}", "x".repeat(body)).into_bytes();
    thread::Builder::new().name("backend".to_owned()).spawn(move || serve(&listener, &answer))?;
    Ok(address)
}

struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

fn serve(listener: &TcpListener, answer: &[u8]) -> Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::empty())?;
    epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
    let mut clients: HashMap<u64, Client> = HashMap::new();
    let mut events = vec![EpollEvent::empty(); 256];
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let count = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        for event in &events[..count] {
            if event.data() == 0 {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true)?;
                    stream.set_nodelay(true)?;
                    let id = stream.as_raw_fd() as u64;
                    epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, id))?;
                    clients.insert(id, Client { stream, buffer: Vec::new() });
                }
                continue;
            }
            let Some(client) = clients.get_mut(&event.data()) else { continue };
            if !client.answer(&mut chunk, answer) {
                // Closing takes it out of the epoll, too.
                clients.remove(&event.data());
            }
        }
    }
}

impl Client {
    /// Answers all requests that are here. False if the connection is over.
    fn answer(&mut self, chunk: &mut [u8], answer: &[u8]) -> bool {
        match self.stream.read(chunk) {
            Ok(0) => return false,
            Ok(read) => self.buffer.extend_from_slice(&chunk[..read]),
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
        while let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            self.buffer.drain(..end + 4);
            // A kilobyte fits into every socket's buffer.
            if self.stream.write_all(answer).is_err() {
                return false;
            }
        }
        true
    }
}
