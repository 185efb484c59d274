//! What the kernel says of IPVS: whatever is read of it can be asked for, and reads the same again.

use swarmesh_kernel::{Forwarding, IpvsOp, RealServer, Tunnel, VirtualId, VirtualServer, ipvs_fuzz as codec};

const SERVICE: u16 = 1;
const DEST: u16 = 2;
const STATS: u16 = 10;
/// `struct genlmsghdr`.
const GENERIC_HEADER: usize = 4;

pub fn check(input: &[u8]) {
    // A read as it comes, and its first message alone, so that chance need not find a length that fits.
    for payload in codec::payloads(input).into_iter().chain([input]) {
        answer(payload);
    }
    settled(input);
}

fn answer(payload: &[u8]) {
    let by_port = VirtualId::Address { protocol: 6, address: [10, 0, 0, 1].into(), port: 80 };
    if let Some(state) = codec::virtual_state(payload) {
        asked_again(&state.server);
        assert!(codec::real_state(payload, &by_port).is_none(), "both a virtual server and a real one");
    }
    if let Some(state) = codec::real_state(payload, &by_port) {
        real_asked_again(by_port, &state.server);
    }
    if let Some(timeouts) = codec::timeouts(payload)
        && let Some(request) = codec::request(&IpvsOp::SetTimeouts(timeouts))
    {
        assert_eq!(codec::timeouts(&request), Some(timeouts));
    }
    let _ = codec::info(payload);
}

fn asked_again(server: &VirtualServer) {
    // What is not asked for: times that overflow, masks that begin with a zero, names that are too long.
    let Some(request) = codec::request(&IpvsOp::AddVirtual(server.clone())) else {
        let odd = server.persistence.is_some()
            || server.engine.is_some()
            || server.scheduler.name().is_empty()
            || server.scheduler.name().len() > 15;
        assert!(odd, "read, and never to be asked for: {server:?}");
        return;
    };
    let mut answer = request;
    append(&mut answer, SERVICE, &stats());
    let again = codec::virtual_state(&answer).map(|state| state.server);
    assert_eq!(again.as_ref(), Some(server));
}

fn real_asked_again(of: VirtualId, real: &RealServer) {
    let Some(request) = codec::request(&IpvsOp::AddReal { of, real: *real }) else {
        assert!(matches!(real.forwarding, Forwarding::Kernel(_) | Forwarding::Tunnel(Tunnel::Other(_))), "{real:?}");
        return;
    };
    let mut answer = request;
    let counts: Vec<u8> = (7..=9).flat_map(|kind: u16| [&8u16.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 4]].concat()).collect();
    append(&mut answer, DEST, &[counts, stats()].concat());
    let again = codec::real_state(&answer, &of).map(|state| state.server);
    assert_eq!(again.as_ref(), Some(real));
}

/// Ten counters of nothing.
fn stats() -> Vec<u8> {
    let counters: Vec<u8> = (1..=10).flat_map(|kind: u16| [&8u16.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 4]].concat()).collect();
    [&(counters.len() as u16 + 4).to_ne_bytes()[..], &STATS.to_ne_bytes(), &counters].concat()
}

/// Puts more into the last attribute of the first level, which must be of this kind.
fn append(message: &mut Vec<u8>, kind: u16, more: &[u8]) {
    let mut at = GENERIC_HEADER;
    loop {
        let length = usize::from(u16::from_ne_bytes([message[at], message[at + 1]]));
        let next = at + length.next_multiple_of(4);
        if next >= message.len() {
            assert_eq!(u16::from_ne_bytes([message[at + 2], message[at + 3]]) & 0x3fff, kind);
            let longer = (length + more.len()) as u16;
            message[at..at + 2].copy_from_slice(&longer.to_ne_bytes());
            message.extend_from_slice(more);
            // The command of the request is that of the answer: both are "new".
            return;
        }
        at = next;
    }
}

/// The same bytes as acknowledgements: a refusal is an error, and nobody else's.
fn settled(input: &[u8]) {
    let of = VirtualId::Address { protocol: 17, address: [10, 0, 0, 1].into(), port: 53 };
    let ops = [IpvsOp::DeleteVirtual(of), IpvsOp::Zero(None), IpvsOp::Flush];
    let (_, results) = codec::answers(input, &ops, 1);
    assert_eq!(results.len(), ops.len());
    let (_, others) = codec::answers(input, &ops, u32::MAX - 8);
    let numbers: Vec<u32> = sequences(input);
    for (index, result) in results.iter().enumerate() {
        assert!(result.is_ok() || numbers.contains(&(index as u32 + 1)), "refused by nobody: {result:?}");
    }
    for (index, result) in others.iter().enumerate() {
        assert!(result.is_ok() || numbers.contains(&(u32::MAX - 8 + index as u32)), "refused by nobody: {result:?}");
    }
}

/// Of the messages' headers, read without the crate's own code.
fn sequences(mut bytes: &[u8]) -> Vec<u32> {
    let mut found = Vec::new();
    while let Some(header) = bytes.first_chunk::<16>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        if length < 16 || length > bytes.len() {
            break;
        }
        found.push(u32::from_ne_bytes([header[8], header[9], header[10], header[11]]));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}
