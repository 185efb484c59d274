//! The way from the bytes of a read to our types and back, without a socket: for `fuzz/`, and for nobody else.

use super::{IpvsInfo, IpvsOp, IpvsTimeouts, RealState, VirtualId, VirtualState, decode, encode, socket};
use crate::{KernelError, netlink::messages};

/// What is behind the headers of the messages in one read.
pub fn payloads(bytes: &[u8]) -> Vec<&[u8]> {
    messages(bytes).map(|message| message.payload).collect()
}

/// As a virtual server, if it is a whole one.
pub fn virtual_state(payload: &[u8]) -> Option<VirtualState> {
    decode::virtual_state(payload).ok().flatten()
}

/// As a real server, if it is a whole one.
pub fn real_state(payload: &[u8], of: &VirtualId) -> Option<RealState> {
    decode::real_state(payload, of).ok().flatten()
}

/// As a version, if it is a whole one.
pub fn info(payload: &[u8]) -> Option<IpvsInfo> {
    decode::info(payload).ok().flatten()
}

/// As timeouts, if they are whole.
pub fn timeouts(payload: &[u8]) -> Option<IpvsTimeouts> {
    decode::timeouts(payload).ok().flatten()
}

/// What would be sent, without the netlink header; nothing if it makes no sense.
pub fn request(op: &IpvsOp) -> Option<Vec<u8>> {
    encode::bytes(&encode::op(op).ok()?).ok()
}

/// Takes a read for the answers to `ops`, numbered from `first` on: whether that was all, and each one's result.
pub fn answers(bytes: &[u8], ops: &[IpvsOp], first: u32) -> (bool, Vec<Result<(), KernelError>>) {
    let mut results: Vec<_> = ops.iter().map(|_| Ok(())).collect();
    let done = socket::settle(messages(bytes), ops, first, ops.len().saturating_sub(1), &mut results);
    (done, results)
}
