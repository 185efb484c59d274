use neli::{genl::Nlattr, types::Buffer};
use nix::libc;
use proptest::prelude::*;

use super::{
    codes::{Command, DestAttribute, InfoAttribute, ServiceAttribute, StatsAttribute, TopAttribute},
    decode, encode,
    socket::{batch, settle},
    *,
};
use crate::{
    KernelError,
    netlink::{Message, messages},
};

const PORT_80: VirtualId = VirtualId::Address { protocol: 6, address: IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 9)), port: 80 };

fn mark(mark: u32) -> VirtualId {
    VirtualId::Mark { mark: NonZeroU32::new(mark).unwrap(), v6: false }
}

fn server(id: VirtualId) -> VirtualServer {
    let scheduler = VirtualScheduler::RoundRobin;
    VirtualServer { id, scheduler, flags: SchedulerFlags::default(), one_packet: false, persistence: None, engine: None }
}

fn real(address: &str) -> RealServer {
    let id = RealId { address: address.parse().unwrap(), port: 0 };
    RealServer { id, weight: 1, forwarding: Forwarding::Masquerade, upper_threshold: 0, lower_threshold: 0 }
}

// Byte for byte, as the header and `ip_vs_genl_parse_service` have it.

#[cfg(target_endian = "little")]
#[test]
fn a_virtual_server_by_mark_in_bytes() {
    let mut wanted = server(mark(0x107));
    wanted.persistence = Some(Persistence { timeout: Duration::from_secs(300), prefix: 24 });
    let bytes = encode::bytes(&encode::op(&IpvsOp::AddVirtual(wanted)).unwrap()).unwrap();
    let expected: &[u8] = &[
        1, 1, 0, 0, // IPVS_CMD_NEW_SERVICE, version 1
        56, 0, 1, 0x80, // IPVS_CMD_ATTR_SERVICE, nested
        6, 0, 1, 0, 2, 0, 0, 0, // AF_INET
        8, 0, 5, 0, 7, 1, 0, 0, // mark
        7, 0, 6, 0, b'r', b'r', 0, 0, // scheduler
        12, 0, 7, 0, 1, 0, 0, 0, 0x3d, 0, 0, 0, // persistent, of what may be set
        8, 0, 8, 0, 0x2c, 1, 0, 0, // 300 s
        8, 0, 9, 0, 255, 255, 255, 0, // 255.255.255.0
    ];
    assert_eq!(bytes, expected);
}

#[cfg(target_endian = "little")]
#[test]
fn a_real_server_of_the_other_family_in_bytes() {
    let mut wanted = real("fd00::2");
    wanted.id.port = 8080;
    wanted.forwarding = Forwarding::Tunnel(Tunnel::Gue { port: 6080, checksum: TunnelChecksum::Remote });
    let bytes = encode::bytes(&encode::op(&IpvsOp::AddReal { of: PORT_80, real: wanted }).unwrap()).unwrap();
    let service: &[u8] = &[
        44, 0, 1, 0x80, 6, 0, 1, 0, 2, 0, 0, 0, 6, 0, 2, 0, 6, 0, 0, 0, 20, 0, 3, 0, 10, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6, 0,
        4, 0, 0, 80, 0, 0,
    ];
    let dest: &[u8] = &[
        6, 0, 11, 0, 10, 0, 0, 0, // AF_INET6
        20, 0, 1, 0, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, // address
        6, 0, 2, 0, 0x1f, 0x90, 0, 0, // port
        8, 0, 3, 0, 2, 0, 0, 0, // tunnel
        8, 0, 4, 0, 1, 0, 0, 0, // weight
        8, 0, 5, 0, 0, 0, 0, 0, 8, 0, 6, 0, 0, 0, 0, 0, // thresholds
        5, 0, 13, 0, 1, 0, 0, 0, // GUE
        6, 0, 14, 0, 0x17, 0xc0, 0, 0, // its port
        6, 0, 15, 0, 2, 0, 0, 0, // remote checksum
    ];
    let nested = [&(dest.len() as u16 + 4).to_le_bytes()[..], &[2, 0x80]].concat();
    let mut service = service.to_vec();
    service[0] = service.len() as u8;
    assert_eq!(bytes, [&[5, 1, 0, 0][..], &service, &nested, dest].concat());
}

// What the kernel would answer, made of what it would be asked and counters.

fn stats<T>(kind: T, counters: &Counters, wide: bool) -> Nlattr<T, Buffer>
where
    T: neli::consts::genl::NlAttrType + neli::Size,
{
    let rates = &counters.per_second;
    let values = [
        (StatsAttribute::Connections, counters.connections),
        (StatsAttribute::PacketsIn, counters.packets_in),
        (StatsAttribute::PacketsOut, counters.packets_out),
        (StatsAttribute::BytesIn, counters.bytes_in),
        (StatsAttribute::BytesOut, counters.bytes_out),
        (StatsAttribute::ConnectionRate, rates.connections),
        (StatsAttribute::PacketRateIn, rates.packets_in),
        (StatsAttribute::PacketRateOut, rates.packets_out),
        (StatsAttribute::ByteRateIn, rates.bytes_in),
        (StatsAttribute::ByteRateOut, rates.bytes_out),
    ];
    let inner = values.into_iter().map(|(kind, value)| match wide {
        true => encode::attribute(kind, value).unwrap(),
        // Bytes have been 64 bits wide from the beginning.
        false if matches!(kind, StatsAttribute::BytesIn | StatsAttribute::BytesOut) => encode::attribute(kind, value).unwrap(),
        false => encode::attribute(kind, value as u32).unwrap(),
    });
    encode::nested(kind, inner.collect()).unwrap()
}

fn virtual_answer(state: &VirtualState, wide: bool) -> Vec<u8> {
    let mut attributes = encode::virtual_server(&state.server).unwrap();
    attributes.push(stats(ServiceAttribute::Stats, &narrowed(state.counters), false));
    if wide {
        attributes.push(stats(ServiceAttribute::Stats64, &state.counters, true));
    }
    let service = encode::nested(TopAttribute::Service, attributes).unwrap();
    encode::bytes(&encode::request(Command::NewService, vec![service]).unwrap()).unwrap()
}

fn real_answer(state: &RealState, wide: bool) -> Vec<u8> {
    let mut attributes = encode::real_server(&state.server).unwrap();
    for (kind, value) in [
        (DestAttribute::ActiveConnections, state.active),
        (DestAttribute::InactiveConnections, state.inactive),
        (DestAttribute::PersistentConnections, state.persistent),
    ] {
        attributes.push(encode::attribute(kind, value).unwrap());
    }
    attributes.push(stats(DestAttribute::Stats, &narrowed(state.counters), false));
    if wide {
        attributes.push(stats(DestAttribute::Stats64, &state.counters, true));
    }
    let dest = encode::nested(TopAttribute::Dest, attributes).unwrap();
    encode::bytes(&encode::request(Command::NewDest, vec![dest]).unwrap()).unwrap()
}

/// As the old attribute has it.
fn narrowed(counters: Counters) -> Counters {
    let low = |value: u64| u64::from(value as u32);
    let rates = counters.per_second;
    Counters {
        connections: low(counters.connections),
        packets_in: low(counters.packets_in),
        packets_out: low(counters.packets_out),
        per_second: Rates {
            connections: low(rates.connections),
            packets_in: low(rates.packets_in),
            packets_out: low(rates.packets_out),
            bytes_in: low(rates.bytes_in),
            bytes_out: low(rates.bytes_out),
        },
        ..counters
    }
}

fn addresses() -> impl Strategy<Value = IpAddr> {
    prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)]
}

fn virtual_ids() -> impl Strategy<Value = VirtualId> {
    prop_oneof![
        (1..=u32::MAX, any::<bool>()).prop_map(|(mark, v6)| VirtualId::Mark { mark: NonZeroU32::new(mark).unwrap(), v6 }),
        (any::<u8>(), addresses(), any::<u16>()).prop_map(|(protocol, address, port)| VirtualId::Address { protocol, address, port }),
    ]
}

fn virtual_servers() -> impl Strategy<Value = VirtualServer> {
    let scheduler = prop_oneof![
        prop::sample::select(vec!["rr", "wrr", "lc", "wlc", "sh", "mh"]).prop_map(VirtualScheduler::of_name),
        "[a-z]{3,15}".prop_map(|name| VirtualScheduler::of_name(&name)),
    ];
    let persistence = prop::option::of((1..=2_147_483u32, 1u8..=128));
    let flags =
        (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(fallback, ports, third)| SchedulerFlags { fallback, ports, third });
    (virtual_ids(), scheduler, flags, any::<bool>(), persistence, prop::option::of("[a-z]{1,15}")).prop_map(
        |(id, scheduler, flags, one_packet, persistence, engine)| {
            let whole = if id.is_v6() { 128 } else { 32 };
            let persistence = persistence
                .map(|(timeout, prefix)| Persistence { timeout: Duration::from_secs(u64::from(timeout)), prefix: prefix.min(whole) });
            VirtualServer { id, scheduler, flags, one_packet, persistence, engine }
        },
    )
}

fn forwardings() -> impl Strategy<Value = Forwarding> {
    let checksum = prop::sample::select(vec![TunnelChecksum::None, TunnelChecksum::Full, TunnelChecksum::Remote]);
    prop_oneof![
        Just(Forwarding::Masquerade),
        Just(Forwarding::DirectRoute),
        Just(Forwarding::Tunnel(Tunnel::Ipip)),
        (any::<u16>(), checksum.clone()).prop_map(|(port, checksum)| Forwarding::Tunnel(Tunnel::Gue { port, checksum })),
        checksum.prop_map(|checksum| Forwarding::Tunnel(Tunnel::Gre { checksum })),
    ]
}

fn real_states() -> impl Strategy<Value = RealState> {
    let server = (addresses(), any::<u16>(), any::<[u32; 3]>(), forwardings()).prop_map(|(address, port, numbers, forwarding)| {
        let [weight, upper_threshold, lower_threshold] = numbers;
        RealServer { id: RealId { address, port }, weight, forwarding, upper_threshold, lower_threshold }
    });
    (server, any::<[u32; 3]>(), counters()).prop_map(|(server, [active, inactive, persistent], counters)| RealState {
        server,
        active,
        inactive,
        persistent,
        counters,
    })
}

fn counters() -> impl Strategy<Value = Counters> {
    any::<[u64; 10]>().prop_map(|[connections, packets_in, packets_out, bytes_in, bytes_out, c, pi, po, bi, bo]| Counters {
        connections,
        packets_in,
        packets_out,
        bytes_in,
        bytes_out,
        per_second: Rates { connections: c, packets_in: pi, packets_out: po, bytes_in: bi, bytes_out: bo },
    })
}

proptest! {
    #[test]
    fn virtual_servers_survive_a_round_trip(server in virtual_servers(), counters in counters(), wide in any::<bool>()) {
        let mut state = VirtualState { server, counters };
        let bytes = virtual_answer(&state, wide);
        if !wide {
            state.counters = narrowed(counters);
        }
        prop_assert_eq!(decode::virtual_state(&bytes), Ok(Some(state)));
        prop_assert_eq!(decode::real_state(&bytes, &PORT_80), Ok(None));
    }

    #[test]
    fn real_servers_survive_a_round_trip(mut state in real_states(), wide in any::<bool>()) {
        let bytes = real_answer(&state, wide);
        if !wide {
            state.counters = narrowed(state.counters);
        }
        prop_assert_eq!(decode::real_state(&bytes, &PORT_80), Ok(Some(state)));
    }

    /// Half an answer is never taken for a whole one.
    #[test]
    fn truncated_answers_are_errors(server in virtual_servers(), state in real_states(), counters in counters(), cut in any::<prop::sample::Index>()) {
        let whole = virtual_answer(&VirtualState { server, counters }, true);
        let half = &whole[..cut.index(whole.len())];
        prop_assert!(decode::virtual_state(half).is_err());
        let whole = real_answer(&state, true);
        prop_assert!(decode::real_state(&whole[..cut.index(whole.len())], &PORT_80).is_err());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), command in 1u8..18) {
        for bytes in [bytes.clone(), [&[command, 1, 0, 0][..], &bytes].concat()] {
            let _ = decode::virtual_state(&bytes);
            let _ = decode::real_state(&bytes, &PORT_80);
            let _ = decode::info(&bytes);
            let _ = decode::timeouts(&bytes);
        }
    }

    /// Valid ones with a byte changed: closer to the parser's heart than noise.
    #[test]
    fn damaged_answers_never_panic(server in virtual_servers(), state in real_states(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = virtual_answer(&VirtualState { server, counters: Counters::default() }, true);
        let index = at.index(bytes.len());
        bytes[index] = byte;
        let _ = decode::virtual_state(&bytes);
        let mut bytes = real_answer(&state, true);
        let index = at.index(bytes.len());
        bytes[index] = byte;
        let _ = decode::real_state(&bytes, &PORT_80);
    }

    /// Whatever order the answers come in, each refusal is its own request's.
    #[test]
    fn refusals_find_their_requests(refused in prop::collection::vec(any::<bool>(), 1..64), first in 1u32..1000, turn in any::<prop::sample::Index>()) {
        let ops: Vec<IpvsOp> = (0..refused.len()).map(|number| IpvsOp::DeleteVirtual(mark(number as u32 + 1))).collect();
        let (bytes, mut results) = batch(&ops, 30, first, "test").unwrap();
        let sent: Vec<_> = messages(&bytes).map(|message| (message.sequence, message.flags & libc::NLM_F_ACK as u16 != 0)).collect();
        let last = ops.len() - 1;
        let expected: Vec<_> = (0..=last).map(|index| (first + index as u32, index == last)).collect();
        prop_assert_eq!(sent, expected);

        let gone = (-libc::ESRCH).to_ne_bytes();
        let mut answers: Vec<(u32, [u8; 4])> =
            refused[..last].iter().enumerate().filter(|(_, refused)| **refused).map(|(index, _)| (first + index as u32, gone)).collect();
        // One of an earlier batch, and one of nobody's.
        answers.extend([(first.wrapping_sub(1), gone), (first + 1000, gone)]);
        let turn = turn.index(answers.len());
        answers.rotate_left(turn);
        answers.push((first + last as u32, if refused[last] { gone } else { [0; 4] }));
        let parts = answers.split_at(answers.len() - 1);
        prop_assert!(!settle(answered(parts.0), &ops, first, last, &mut results));
        prop_assert!(settle(answered(parts.1), &ops, first, last, &mut results));
        for (index, (result, refused)) in results.iter().zip(&refused).enumerate() {
            let right = match result {
                Ok(()) => !refused,
                Err(KernelError::NotFound { action }) => *refused && action.ends_with(&format!("mark {:#x}", index + 1)),
                Err(_) => false,
            };
            prop_assert!(right, "{}: {:?}", index, result);
        }
    }
}

fn answered(answers: &[(u32, [u8; 4])]) -> impl Iterator<Item = Message<'_>> {
    answers.iter().map(|(sequence, payload)| Message { kind: libc::NLMSG_ERROR as u16, flags: 0, sequence: *sequence, port: 0, payload })
}

#[test]
fn what_cannot_be_asked_for_is_refused_alone() {
    let mut nameless = server(mark(2));
    nameless.scheduler = VirtualScheduler::Named("a name that is too long".to_owned());
    let mut hasty = server(mark(3));
    hasty.persistence = Some(Persistence { timeout: Duration::from_millis(1500), prefix: 32 });
    let mut patient = server(mark(5));
    patient.persistence = Some(Persistence { timeout: Duration::from_secs(1 << 22), prefix: 32 });
    let mut wide = server(mark(4));
    wide.persistence = Some(Persistence { timeout: Duration::from_secs(1), prefix: 64 });
    let mut kernels = real("10.0.0.1");
    kernels.forwarding = Forwarding::Kernel(1);
    let day = Duration::from_secs(86_400);
    let ops = [
        IpvsOp::AddVirtual(nameless),
        IpvsOp::AddVirtual(server(mark(1))),
        IpvsOp::AddVirtual(hasty),
        IpvsOp::AddVirtual(wide),
        IpvsOp::AddVirtual(patient),
        IpvsOp::AddReal { of: mark(1), real: kernels },
        IpvsOp::SetTimeouts(IpvsTimeouts { tcp: day, tcp_fin: Duration::ZERO, udp: day }),
    ];
    let (bytes, results) = batch(&ops, 30, 7, "test").unwrap();
    let sent: Vec<_> = messages(&bytes).map(|message| (message.sequence, message.flags & libc::NLM_F_ACK as u16 != 0)).collect();
    assert_eq!(sent, [(8, true)]);
    for (index, result) in results.iter().enumerate() {
        assert_eq!(result.is_ok(), index == 1, "{index}: {result:?}");
        assert!(index == 1 || matches!(result, Err(KernelError::Protocol { .. })), "{index}: {result:?}");
    }
}

#[test]
fn a_refusal_says_what_to_do() {
    use crate::netlink::Answer;
    let refused = |op: IpvsOp, errno| op.refusal(Answer { errno, explanation: None, offset: None });
    let add = || IpvsOp::AddVirtual(server(mark(1)));
    let add_real = |address| IpvsOp::AddReal { of: mark(1), real: real(address) };
    let error = refused(add(), libc::ENOENT);
    assert!(matches!(error, KernelError::NotSupported { .. }) && error.to_string().contains("ip_vs_rr"), "{error}");
    assert!(matches!(refused(add(), libc::EEXIST), KernelError::Exists { .. }));
    assert!(matches!(refused(add(), libc::EPERM), KernelError::NotPermitted { .. }));
    assert!(matches!(refused(add(), libc::ENOBUFS), KernelError::NoBuffer { .. }));
    assert!(matches!(refused(add(), libc::ENOMEM), KernelError::NoBuffer { .. }));
    assert!(matches!(refused(add(), libc::EAFNOSUPPORT), KernelError::NotSupported { .. }));
    assert!(matches!(refused(add_real("10.0.0.1"), libc::ESRCH), KernelError::NotFound { .. }));
    assert!(matches!(refused(add_real("10.0.0.1"), libc::ENOENT), KernelError::NotFound { .. }));
    let error = refused(add_real("fd00::1"), libc::EINVAL);
    assert!(matches!(&error, KernelError::Protocol { .. }) && error.to_string().contains("tunnel"), "{error}");
    let error = refused(add_real("10.0.0.1"), libc::ERANGE);
    assert!(matches!(&error, KernelError::Protocol { .. }) && error.to_string().contains("weight"), "{error}");
}

#[test]
fn version_and_timeouts_are_read() {
    let attribute = |kind, value: u32| encode::attribute(kind, value).unwrap();
    let info = [attribute(InfoAttribute::Version, 0x0001_0201), attribute(InfoAttribute::ConnectionTableSize, 4096)];
    let mut bytes = vec![u8::from(Command::SetInfo), 1, 0, 0];
    bytes.extend(info.iter().flat_map(|attribute| encode::bytes(attribute).unwrap()));
    assert_eq!(decode::info(&bytes), Ok(Some(IpvsInfo { version: (1, 2, 1), connection_table: 4096 })));
    assert_eq!(decode::timeouts(&bytes), Ok(None));

    let timeouts = IpvsTimeouts { tcp: Duration::from_secs(7200), tcp_fin: Duration::from_secs(120), udp: Duration::from_secs(300) };
    // It is asked for as it is answered.
    let bytes = encode::bytes(&encode::op(&IpvsOp::SetTimeouts(timeouts)).unwrap()).unwrap();
    assert_eq!(decode::timeouts(&bytes), Ok(Some(timeouts)));
}
