//! What every netlink family shares: message framing, attributes, and a socket that belongs to one namespace.

use std::{
    fmt,
    io::{self, IoSlice},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    time::Duration,
};

use netlink_sys::Socket;
use nix::{
    errno::Errno,
    libc,
    sys::{
        socket::{MsgFlags, recv, setsockopt, sockopt},
        time::TimeVal,
    },
};

use crate::{KernelError, Netns};

pub(crate) const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
pub(crate) const ACK: u16 = libc::NLM_F_ACK as u16;
pub(crate) const DUMP: u16 = libc::NLM_F_DUMP as u16;
pub(crate) const CREATE: u16 = libc::NLM_F_CREATE as u16;
pub(crate) const APPEND: u16 = libc::NLM_F_APPEND as u16;
pub(crate) const REPLACE: u16 = libc::NLM_F_REPLACE as u16;
pub(crate) const EXCLUSIVE: u16 = libc::NLM_F_EXCL as u16;

const DUMP_INTERRUPTED: u16 = libc::NLM_F_DUMP_INTR as u16;
/// NLM_F_CAPPED: the error echoes only the header of the refused message.
const CAPPED: u16 = 0x100;
/// NLM_F_ACK_TLVS: attributes follow the echoed message.
const ACK_TLVS: u16 = 0x200;
const NESTED: u16 = libc::NLA_F_NESTED as u16;
/// NLA_F_NESTED and NLA_F_NET_BYTEORDER are flags in the type field.
const TYPE_MASK: u16 = libc::NLA_TYPE_MASK as u16;

const HEADER_LEN: usize = 16;
const ERROR_ATTR_MESSAGE: u16 = 1;
const ERROR_ATTR_OFFSET: u16 = 2;

/// The kernel fills at most 32 KiB per read of a dump (`netlink_dump` in `net/netlink/af_netlink.c`); one refused batch
/// message echoed whole would be 64 KiB.
const READ_LEN: usize = 128 * 1024;
/// Answers come before `send` returns, save for the later parts of a dump, so this only ends a wait that never would.
const ANSWER_TIMEOUT: i64 = 10;
/// A busy node may change tables faster than a long dump is read, but not for this long.
const DUMP_ATTEMPTS: usize = 16;

const fn align(length: usize) -> usize {
    (length + 3) & !3
}

/// Builds netlink messages one behind another.
#[derive(Debug, Default)]
pub(crate) struct MessageBuffer {
    bytes: Vec<u8>,
    oversized: bool,
}

impl MessageBuffer {
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Appends one message; `body` writes what comes behind the header.
    pub(crate) fn message(&mut self, kind: u16, flags: u16, sequence: u32, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        body(self);
        let length = self.bytes.len() - start;
        match u32::try_from(length) {
            Ok(length) => self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes()),
            Err(_) => self.oversized = true,
        }
        self.pad();
    }

    /// Sets further flags in the header of the message that starts at `start`.
    pub(crate) fn add_flags(&mut self, start: usize, flags: u16) {
        if let Some(field) = self.bytes.get_mut(start + 6..start + 8) {
            let old = u16::from_ne_bytes([field[0], field[1]]);
            field.copy_from_slice(&(old | flags).to_ne_bytes());
        }
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// `struct nfgenmsg`: family, version 0, resource id (big-endian).
    pub(crate) fn netfilter_header(&mut self, family: u8, resource: u16) {
        self.raw(&[family, 0]);
        self.raw(&resource.to_be_bytes());
    }

    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or_else(|_| {
            self.oversized = true;
            4
        });
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
    }

    pub(crate) fn attribute_u32_be(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// A string attribute, with its terminating zero.
    pub(crate) fn attribute_str(&mut self, kind: u16, value: &str) {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.attribute(kind, &bytes);
    }

    pub(crate) fn nested(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        body(self);
        match u16::try_from(self.bytes.len() - start) {
            Ok(length) => self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes()),
            Err(_) => self.oversized = true,
        }
    }

    /// The bytes for the socket; an error if any attribute was too long for its 16-bit length.
    pub(crate) fn finish(self, action: &str) -> Result<Vec<u8>, KernelError> {
        if self.oversized {
            return Err(KernelError::protocol(action, "an attribute is longer than 64 KiB"));
        }
        Ok(self.bytes)
    }

    fn pad(&mut self) {
        self.bytes.resize(align(self.bytes.len()), 0);
    }
}

/// One received message.
#[derive(Debug)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// Port of the socket that this answers, or in a notification, that caused it.
    pub(crate) port: u32,
    pub(crate) payload: &'a [u8],
}

/// Splits what one read returned. Stops at the first header that does not fit, as the kernel's `NLMSG_OK` does.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let (header, _) = bytes.split_first_chunk::<HEADER_LEN>()?;
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let payload = bytes.get(HEADER_LEN..length)?;
        let message = Message {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            sequence: u32::from_ne_bytes([header[8], header[9], header[10], header[11]]),
            port: u32::from_ne_bytes([header[12], header[13], header[14], header[15]]),
            payload,
        };
        bytes = bytes.get(align(length)..).unwrap_or_default();
        Some(message)
    })
}

/// Splits attributes into (type without flags, value). Stops at the first one that does not fit.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (header, _) = bytes.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(align(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute of that type.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

pub(crate) fn u32_be(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

pub(crate) fn u32_ne(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.try_into().ok()?))
}

/// A string attribute without its terminating zero; kernel names are ASCII.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// What an NLMSG_ERROR or NLMSG_DONE message says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Positive errno; zero is the acknowledgement.
    pub(crate) errno: i32,
    /// The kernel's own explanation.
    pub(crate) explanation: Option<String>,
    /// Where in the refused message the attribute is that it disliked, in bytes from the header.
    pub(crate) offset: Option<u32>,
}

impl Answer {
    pub(crate) fn parse(message: &Message<'_>) -> Self {
        let code = message.payload.first_chunk::<4>().map_or(0, |code| i32::from_ne_bytes(*code));
        let mut answer = Self { errno: code.checked_neg().unwrap_or(libc::EIO), explanation: None, offset: None };
        if message.flags & ACK_TLVS == 0 || i32::from(message.kind) != libc::NLMSG_ERROR {
            return answer;
        }
        let echoed = match message.payload.get(4..8) {
            Some(length) if message.flags & CAPPED == 0 => align(u32_ne(length).map_or(HEADER_LEN, |length| length as usize)),
            _ => HEADER_LEN,
        };
        for (kind, value) in attributes(message.payload.get(4 + echoed..).unwrap_or_default()) {
            match kind {
                ERROR_ATTR_MESSAGE => answer.explanation = Some(text(value)),
                ERROR_ATTR_OFFSET => answer.offset = u32_ne(value),
                _ => {}
            }
        }
        answer
    }

    /// The error that this answer is, if it is one.
    pub(crate) fn into_result(self, action: &str) -> Result<(), KernelError> {
        match (self.errno, self.explanation) {
            (0, _) => Ok(()),
            (errno, Some(explanation)) => Err(KernelError::from_errno(format!("{action} (kernel: {explanation})"), errno)),
            (errno, None) => Err(KernelError::from_errno(action, errno)),
        }
    }
}

/// A netlink socket in one namespace. The kernel fixes the namespace when the socket is created, so it works from any thread.
pub(crate) struct NetlinkSocket {
    socket: Socket,
    port: u32,
    sequence: u32,
    buffer: Vec<u8>,
}

impl fmt::Debug for NetlinkSocket {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("NetlinkSocket").field("fd", &self.socket.as_raw_fd()).field("port", &self.port).finish_non_exhaustive()
    }
}

impl AsFd for NetlinkSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl NetlinkSocket {
    pub(crate) fn open(ns: &Netns, protocol: isize, family: &str) -> Result<Self, KernelError> {
        let open = || -> io::Result<(Socket, u32)> {
            let mut socket = Socket::new(protocol)?;
            let port = socket.bind_auto()?.port_number();
            // Without the first, a refused batch message is echoed whole; with the second, the kernel says which attribute.
            socket.set_cap_ack(true)?;
            socket.set_ext_ack(true)?;
            setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_TIMEOUT, 0))?;
            Ok((socket, port))
        };
        let (socket, port) = ns.enter(open)?.map_err(|source| {
            let action = format!("open a {family} netlink socket in {}", ns.path().display());
            source
                .raw_os_error()
                .map_or_else(|| KernelError::protocol(&action, source.to_string()), |errno| KernelError::from_errno(&action, errno))
        })?;
        Ok(Self { socket, port, sequence: 0, buffer: vec![0; READ_LEN] })
    }

    /// The netlink port id, unique in the namespace; notifications of changes made by this socket carry it.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Reserves `count` sequence numbers and returns the first.
    pub(crate) fn reserve(&mut self, count: u32) -> u32 {
        // Wrapping past zero is skipped, so that a range never wraps: notifications have sequence zero.
        if self.sequence.checked_add(count).is_none() {
            self.sequence = 0;
        }
        let first = self.sequence + 1;
        self.sequence += count;
        first
    }

    pub(crate) fn send(&self, bytes: &[u8], action: &str) -> Result<(), KernelError> {
        let sent = nix::sys::socket::sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(bytes)], &[], MsgFlags::empty(), None);
        match sent {
            Ok(length) if length == bytes.len() => Ok(()),
            Ok(length) => Err(KernelError::protocol(action, format!("only {length} of {} bytes were taken", bytes.len()))),
            Err(errno) => Err(KernelError::from_errno(action, errno as i32)),
        }
    }

    /// One read. `Ok(None)` if `wait` is false and nothing is there.
    pub(crate) fn receive(&mut self, wait: bool) -> Result<Option<&[u8]>, Errno> {
        let flags = MsgFlags::MSG_TRUNC | if wait { MsgFlags::empty() } else { MsgFlags::MSG_DONTWAIT };
        loop {
            match recv(self.socket.as_raw_fd(), &mut self.buffer, flags) {
                // With MSG_TRUNC the length is the datagram's own.
                Ok(length) if length <= self.buffer.len() => return Ok(Some(&self.buffer[..length])),
                Ok(_) => return Err(Errno::EMSGSIZE),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if !wait => return Ok(None),
                Err(Errno::EAGAIN) => return Err(Errno::ETIMEDOUT),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Sends one request and hands every answer to `on_message` until the acknowledgement or the end of the dump.
    ///
    /// Returns whether the kernel says that the dump is not consistent.
    fn exchange(
        &mut self,
        action: &str,
        request: &[u8],
        sequence: u32,
        mut on_message: impl FnMut(&Message<'_>) -> Result<(), KernelError>,
    ) -> Result<bool, KernelError> {
        self.send(request, action)?;
        let mut interrupted = false;
        loop {
            let bytes = self.receive(true).map_err(|errno| KernelError::from_errno(action, errno as i32))?.unwrap_or_default();
            // Answers to an earlier request that ended in an error may still be queued.
            for message in messages(bytes).filter(|message| message.sequence == sequence) {
                interrupted |= message.flags & DUMP_INTERRUPTED != 0;
                match i32::from(message.kind) {
                    libc::NLMSG_ERROR | libc::NLMSG_DONE => return Answer::parse(&message).into_result(action).map(|()| interrupted),
                    libc::NLMSG_NOOP => {}
                    _ => on_message(&message)?,
                }
            }
        }
    }

    /// One request that is acknowledged; `on_message` sees the answers before the acknowledgement.
    pub(crate) fn request(
        &mut self,
        action: &str,
        kind: u16,
        flags: u16,
        body: impl FnOnce(&mut MessageBuffer),
        on_message: impl FnMut(&Message<'_>) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        let sequence = self.reserve(1);
        let mut buffer = MessageBuffer::default();
        buffer.message(kind, REQUEST | ACK | flags, sequence, body);
        self.exchange(action, &buffer.finish(action)?, sequence, on_message).map(|_| ())
    }

    /// Dumps, and starts again if something changed meanwhile, so that the result is one state that really was.
    pub(crate) fn dump<T>(
        &mut self,
        action: &str,
        kind: u16,
        body: impl Fn(&mut MessageBuffer),
        mut parse: impl FnMut(&Message<'_>, &mut Vec<T>) -> Result<(), KernelError>,
    ) -> Result<Vec<T>, KernelError> {
        for _ in 0..DUMP_ATTEMPTS {
            let sequence = self.reserve(1);
            let mut buffer = MessageBuffer::default();
            buffer.message(kind, REQUEST | DUMP, sequence, &body);
            let mut found = Vec::new();
            match self.exchange(action, &buffer.finish(action)?, sequence, |message| parse(message, &mut found)) {
                Ok(false) => return Ok(found),
                Ok(true) => tracing::debug!(action, "changed while it was read, reading again"),
                // nf_tables refuses to go on with a dump that lost its place (`-EINTR` in nf_tables_dump_setelem).
                Err(KernelError::Io { source, .. }) if source.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
        Err(KernelError::protocol(action, format!("it changed during each of {DUMP_ATTEMPTS} reads; try again later")))
    }
}

/// Milliseconds, as nf_tables carries them, rounded up so that a timeout never becomes "none".
pub(crate) fn milliseconds(timeout: Duration) -> u64 {
    u64::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
