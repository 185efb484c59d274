//! A WebSocket client (RFC 6455) for `swarmesh whoami`, which greets and then sends every message back.

use std::{
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{netns::within, patience::patient};

const PATIENCE: Duration = Duration::from_secs(5);
/// The RFC's example and its answer: what a key is, its server does not care.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPTED: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
const TEXT: u8 = 0x1;
const CLOSE: u8 = 0x8;

#[derive(Debug)]
pub struct WebSocket {
    stream: BufReader<TcpStream>,
    /// The task that answered.
    pub task: String,
}

impl WebSocket {
    /// Opens it in the namespace at `place`; the socket stays there.
    pub fn open(place: &Path, target: SocketAddr, host: &str, path: &str) -> Result<Self> {
        let stream = within(place, move || TcpStream::connect_timeout(&target, patient(PATIENCE)))?.with_context(|| format!("{target}"))?;
        stream.set_read_timeout(Some(patient(PATIENCE)))?;
        let mut stream = BufReader::new(stream);
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
        );
        stream.get_mut().write_all(request.as_bytes())?;
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            ensure!(stream.read_line(&mut head)? > 0, "closed after {head:?}");
        }
        ensure!(head.starts_with("HTTP/1.1 101 "), "not upgraded: {head}");
        let accepts =
            |line: &str| line.split_once(": ").is_some_and(|(n, v)| n.eq_ignore_ascii_case("sec-websocket-accept") && v == ACCEPTED);
        ensure!(head.lines().any(accepts), "the key is not answered: {head}");
        let mut socket = Self { stream, task: String::new() };
        socket.task = socket.receive()?.split_whitespace().next().unwrap_or_default().to_owned();
        Ok(socket)
    }

    /// Says something and waits for it to come back.
    pub fn say(&mut self, text: &str) -> Result<()> {
        let length = u8::try_from(text.len()).ok().filter(|length| *length < 126).context("one short frame is all this client has")?;
        let mut frame = vec![0x80 | TEXT, 0x80 | length];
        frame.extend(MASK);
        frame.extend(text.bytes().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        self.stream.get_mut().write_all(&frame)?;
        let answer = self.receive()?;
        ensure!(answer == text, "unexpected answer {answer:.100?}");
        Ok(())
    }

    /// Whether the other side ends it while nobody says anything.
    pub fn ends_within(&mut self, time: Duration) -> Result<bool> {
        self.stream.get_ref().set_read_timeout(Some(patient(time)))?;
        match self.receive() {
            Ok(text) => bail!("it says {text:.100?}"),
            Err(error) => {
                Ok(!error.downcast_ref::<std::io::Error>().is_some_and(|e| matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)))
            }
        }
    }

    fn receive(&mut self) -> Result<String> {
        let mut head = [0; 2];
        self.stream.read_exact(&mut head).context("closed by the other side")?;
        ensure!(head[1] < 126, "a server's frame is short and not masked here");
        let mut content = vec![0; usize::from(head[1])];
        self.stream.read_exact(&mut content)?;
        match head[0] & 0x0f {
            TEXT => Ok(String::from_utf8(content)?),
            CLOSE => bail!("closed with a close frame"),
            kind => bail!("a frame of kind {kind}"),
        }
    }
}
