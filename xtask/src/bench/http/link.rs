//! One connection of a client, with TLS or without.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
};

use anyhow::{Result, bail, ensure};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, pki_types::ServerName};

use super::site::HOST;

pub(super) struct Link {
    pub(super) stream: TcpStream,
    tls: Option<Box<ClientConnection>>,
    /// Bytes of the answer that are still to come, once its head is there.
    left: Option<usize>,
    head: Vec<u8>,
}

impl Link {
    /// Connected, and not yet anything else: the handshake goes on as answers are read. Does not block from here on.
    pub(super) fn begin(to: SocketAddr, tls: Option<&Arc<ClientConfig>>) -> Result<Self> {
        let stream = TcpStream::connect(to)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let tls = match tls {
            Some(config) => Some(Box::new(ClientConnection::new(Arc::clone(config), ServerName::try_from(HOST)?)?)),
            None => None,
        };
        let mut link = Self { stream, tls, left: None, head: Vec::new() };
        link.flush()?;
        Ok(link)
    }

    /// Ready for requests. Does not block from here on.
    pub(super) fn open(to: SocketAddr, tls: Option<&Arc<ClientConfig>>) -> Result<Self> {
        let mut link = Self::begin(to, tls)?;
        if let Some(tls) = &mut link.tls {
            link.stream.set_nonblocking(false)?;
            while tls.is_handshaking() {
                tls.complete_io(&mut link.stream)?;
            }
            link.stream.set_nonblocking(true)?;
        }
        Ok(link)
    }

    pub(super) fn send(&mut self, request: &[u8]) -> Result<()> {
        match &mut self.tls {
            None => self.stream.write_all(request)?,
            Some(tls) => {
                tls.writer().write_all(request)?;
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Requests are small: the socket takes them.
    fn flush(&mut self) -> Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        while tls.wants_write() {
            tls.write_tls(&mut self.stream)?;
        }
        Ok(())
    }

    /// Takes what is there. True if an answer is complete by that.
    pub(super) fn read(&mut self, chunk: &mut [u8]) -> Result<bool> {
        let Some(tls) = &mut self.tls else {
            let read = match self.stream.read(chunk) {
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error.into()),
            };
            ensure!(read > 0, "a connection was closed");
            return self.take(&chunk[..read]);
        };
        match tls.read_tls(&mut self.stream) {
            Ok(read) => ensure!(read > 0, "a connection was closed"),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        tls.process_new_packets()?;
        self.flush()?;
        let mut complete = false;
        while let Some(tls) = &mut self.tls {
            match tls.reader().read(chunk) {
                Ok(0) => bail!("a connection was closed"),
                Ok(read) => complete |= self.take(&chunk[..read])?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(complete)
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<bool> {
        if self.left.is_none() {
            self.head.extend_from_slice(bytes);
            let Some(end) = self.head.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(false) };
            let head = String::from_utf8_lossy(&self.head[..end]).to_ascii_lowercase();
            ensure!(head.starts_with("http/1.1 200"), "not a 200: {head}");
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
            ensure!(length.is_some(), "an answer without a length: {head}");
            let beyond = self.head.len() - end - 4;
            bytes = &bytes[bytes.len() - beyond..];
            self.left = length;
            self.head.clear();
        }
        let left = self.left.unwrap_or_default();
        ensure!(bytes.len() <= left, "more than one answer");
        self.left = Some(left - bytes.len());
        if self.left != Some(0) {
            return Ok(false);
        }
        self.left = None;
        Ok(true)
    }

    /// One request and its whole answer.
    pub(super) fn ask(&mut self, request: &[u8], chunk: &mut [u8]) -> Result<()> {
        self.stream.set_nonblocking(false)?;
        self.send(request)?;
        while !self.read(chunk)? {}
        self.stream.set_nonblocking(true)?;
        Ok(())
    }

    /// Whether the other side still holds it. What comes without having been asked for, such as tickets, is taken.
    pub(super) fn is_open(&mut self, chunk: &mut [u8]) -> bool {
        // An answer that nobody asked for is as bad as an end.
        matches!(self.read(chunk), Ok(false))
    }

    /// How its handshake went; `None` without TLS or before.
    pub(super) fn handshake(&self) -> Option<HandshakeKind> {
        self.tls.as_ref()?.handshake_kind()
    }

    /// Ends it as clients do.
    pub(super) fn close(mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            // A server that has closed already need not hear it.
            let _ = self.flush();
        }
    }
}
