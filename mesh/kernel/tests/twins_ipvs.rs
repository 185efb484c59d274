//! What the fake kernel was taught of IPVS, asked of the real one too: one table, run against both.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "helpers of tests may stop at the first surprise, as tests do")]

mod common;

use std::{net::SocketAddr, num::NonZeroU32, path::Path, time::Duration};

use common::Scratch;
use swarmesh_kernel::{
    Forwarding, IpvsOp, IpvsTimeouts, Kernel, KernelError, LinuxKernel, Namespace, Persistence, RealId, RealServer, SchedulerFlags, Tunnel,
    TunnelChecksum, VirtualId, VirtualScheduler, VirtualServer, fake::FakeKernel,
};

const fn mark(mark: u32, v6: bool) -> VirtualId {
    VirtualId::Mark { mark: NonZeroU32::new(mark).unwrap(), v6 }
}

const SEVEN: VirtualId = mark(7, false);
const SEVEN_V6: VirtualId = mark(7, true);
const NINE: VirtualId = mark(9, false);

fn server(id: VirtualId, scheduler: &str) -> VirtualServer {
    let scheduler = VirtualScheduler::of_name(scheduler);
    VirtualServer { id, scheduler, flags: SchedulerFlags::default(), one_packet: false, persistence: None, engine: None }
}

fn with_engine(engine: &str) -> VirtualServer {
    let persistence = Some(Persistence { timeout: Duration::from_secs(60), prefix: 32 });
    let id = VirtualId::Address { protocol: 17, address: [10, 99, 0, 1].into(), port: 5060 };
    VirtualServer { engine: Some(engine.to_owned()), one_packet: true, persistence, ..server(id, "rr") }
}

fn real(address: &str) -> RealServer {
    let address: SocketAddr = address.parse().unwrap();
    let id = RealId { address: address.ip(), port: address.port() };
    RealServer { id, weight: 1, forwarding: Forwarding::Masquerade, upper_threshold: 0, lower_threshold: 0 }
}

fn tunnel(address: &str, tunnel: Tunnel) -> RealServer {
    RealServer { forwarding: Forwarding::Tunnel(tunnel), ..real(address) }
}

/// The result of a change, by type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    Exists,
    NotFound,
    NotSupported,
    NoSense,
}

fn outcome(result: &Result<(), KernelError>) -> Outcome {
    match result {
        Ok(()) => Outcome::Done,
        Err(KernelError::Exists { .. }) => Outcome::Exists,
        Err(KernelError::NotFound { .. }) => Outcome::NotFound,
        Err(KernelError::NotSupported { .. }) => Outcome::NotSupported,
        Err(KernelError::Protocol { .. }) => Outcome::NoSense,
        Err(other) => panic!("an outcome that the table does not know: {other:?}"),
    }
}

/// In one namespace, one after another.
fn rows() -> Vec<(&'static str, IpvsOp, Outcome)> {
    use Outcome::{Done, Exists, NoSense, NotFound, NotSupported};
    let add = |real: RealServer| IpvsOp::AddReal { of: SEVEN, real };
    let add_v6 = |real: RealServer| IpvsOp::AddReal { of: SEVEN_V6, real };
    let set = |real: RealServer| IpvsOp::SetReal { of: SEVEN, real };
    let two = real("10.0.0.2:0");
    let day = Duration::from_secs(86_400);
    let gue = |port| Tunnel::Gue { port, checksum: TunnelChecksum::None };
    let crossed = RealServer { upper_threshold: 1, lower_threshold: 2, ..two };
    let mixed = tunnel("[fd00::3]:0", Tunnel::Ipip);
    vec![
        ("a virtual server", IpvsOp::AddVirtual(server(SEVEN, "rr")), Done),
        ("again", IpvsOp::AddVirtual(server(SEVEN, "rr")), Exists),
        ("again, and nobody looks at the scheduler", IpvsOp::AddVirtual(server(SEVEN, "nonesuch")), Exists),
        ("the other family's is another one", IpvsOp::AddVirtual(server(SEVEN_V6, "rr")), Done),
        ("a scheduler that is not there", IpvsOp::AddVirtual(server(NINE, "nonesuch")), NotSupported),
        ("a virtual server changed to it", IpvsOp::SetVirtual(server(SEVEN, "nonesuch")), NotSupported),
        ("changed to another one", IpvsOp::SetVirtual(server(SEVEN, "wlc")), Done),
        ("an engine that is not there", IpvsOp::AddVirtual(with_engine("none")), NotSupported),
        ("and one that is", IpvsOp::AddVirtual(with_engine("sip")), Done),
        ("changing what is not there", IpvsOp::SetVirtual(server(NINE, "rr")), NotFound),
        ("and nobody looks at the scheduler", IpvsOp::SetVirtual(server(NINE, "nonesuch")), NotFound),
        ("deleting it", IpvsOp::DeleteVirtual(NINE), NotFound),
        ("zeroing it", IpvsOp::Zero(Some(NINE)), NotFound),
        ("a real server for it", IpvsOp::AddReal { of: NINE, real: two }, NotFound),
        ("changing a real server that is not there", set(two), NotFound),
        ("deleting it", IpvsOp::DeleteReal { of: SEVEN, real: two.id }, NotFound),
        ("adding it", add(two), Done),
        ("again", add(two), Exists),
        ("again, with nonsense", add(crossed), NoSense),
        ("no more new connections", set(RealServer { weight: 0, ..two }), Done),
        ("with another port it is another one", add(real("10.0.0.2:81")), Done),
        ("a group's address", add(real("224.0.0.1:0")), NoSense),
        ("everybody's address", add(real("255.255.255.255:0")), NoSense),
        ("nobody's address", add(real("0.0.0.0:0")), NoSense),
        ("a group's address of IPv6", add_v6(real("[ff02::1]:0")), NoSense),
        ("nobody's address of IPv6", add_v6(real("[::]:0")), NoSense),
        ("an address that needs a link", add_v6(real("[fe80::1]:0")), NoSense),
        ("a weight that counts backwards", add(RealServer { weight: 1 << 31, ..real("10.0.0.3:0") }), NoSense),
        ("the largest weight", add(RealServer { weight: i32::MAX as u32, ..real("10.0.0.3:0") }), Done),
        ("thresholds that cross", set(crossed), NoSense),
        ("thresholds that do not", set(RealServer { upper_threshold: 2, lower_threshold: 2, ..two }), Done),
        ("the other family without a tunnel", add(real("[fd00::3]:0")), NoSense),
        ("and with one", add(mixed), Done),
        ("changed to do without", set(real("[fd00::3]:0")), NoSense),
        ("taken away", IpvsOp::DeleteReal { of: SEVEN, real: mixed.id }, Done),
        ("IPv4 for IPv6", add_v6(tunnel("10.0.0.3:0", Tunnel::Ipip)), Done),
        ("a tunnel to no port", add(tunnel("10.0.0.4:0", gue(0))), NoSense),
        ("and to one", add(tunnel("10.0.0.4:0", gue(6080))), Done),
        ("changed to no port", set(tunnel("10.0.0.4:0", gue(0))), NoSense),
        ("what is never sent", add(RealServer { forwarding: Forwarding::Kernel(1), ..real("10.0.0.5:0") }), NoSense),
        ("zeroing one", IpvsOp::Zero(Some(SEVEN)), Done),
        ("zeroing all", IpvsOp::Zero(None), Done),
        ("timeouts", IpvsOp::SetTimeouts(IpvsTimeouts { tcp: day, tcp_fin: day / 2, udp: day / 4 }), Done),
        ("no timeout", IpvsOp::SetTimeouts(IpvsTimeouts { tcp: day, tcp_fin: Duration::ZERO, udp: day }), NoSense),
        ("deleting with its real servers", IpvsOp::DeleteVirtual(SEVEN_V6), Done),
        ("real servers do not come back", IpvsOp::AddVirtual(server(SEVEN_V6, "rr")), Done),
    ]
}

/// Everything that one can see from outside, but for the kernel's own counts.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    servers: Vec<(VirtualServer, Vec<RealServer>)>,
    nobodys: usize,
    timeouts: IpvsTimeouts,
    version: (u8, u8, u8),
}

fn seen(namespace: &mut dyn Namespace) -> Seen {
    let mut servers: Vec<_> = namespace.virtual_servers().unwrap().into_iter().map(|state| (state.server, Vec::new())).collect();
    servers.sort();
    for (server, reals) in &mut servers {
        *reals = namespace.real_servers(&server.id).unwrap().into_iter().map(|state| state.server).collect();
        reals.sort();
    }
    let nobodys = namespace.real_servers(&NINE).unwrap().len();
    Seen { servers, nobodys, timeouts: namespace.ipvs_timeouts().unwrap(), version: namespace.ipvs_info().unwrap().version }
}

/// All at once, or each alone; the outcomes, and what was there in the beginning, before a flush and in the end.
fn run(kernel: &dyn Kernel, path: &Path, at_once: bool) -> (Vec<Outcome>, Vec<Seen>) {
    let mut namespace = kernel.open(path).unwrap();
    let first = seen(&mut *namespace);
    let ops: Vec<IpvsOp> = rows().into_iter().map(|(_, op, _)| op).collect();
    let results = match at_once {
        true => namespace.ipvs_apply(&ops).unwrap(),
        false => ops.iter().flat_map(|op| namespace.ipvs_apply(std::slice::from_ref(op)).unwrap()).collect(),
    };
    let filled = seen(&mut *namespace);
    assert!(namespace.ipvs_apply(&[IpvsOp::Flush]).unwrap().iter().all(Result::is_ok));
    (results.iter().map(outcome).collect(), vec![first, filled, seen(&mut *namespace)])
}

#[test]
fn changes_to_ipvs_agree() {
    let expected: Vec<_> = rows().into_iter().map(|(name, op, outcome)| format!("{name}: {op}: {outcome:?}")).collect();
    let named = |outcomes: &[Outcome]| -> Vec<String> {
        rows().into_iter().zip(outcomes).map(|((name, op, _), outcome)| format!("{name}: {op}: {outcome:?}")).collect()
    };
    for at_once in [true, false] {
        let fake = FakeKernel::new();
        fake.add_namespace("/scratch");
        let (outcomes, taught) = run(&fake, Path::new("/scratch"), at_once);
        assert_eq!(named(&outcomes), expected, "the fake");
        let Some(scratch) = Scratch::new() else { return };
        match LinuxKernel.open(&scratch.path()).unwrap().ipvs_info() {
            Err(KernelError::NotSupported { detail, .. }) => {
                println!("skipped: this kernel has no IPVS ({detail}); the vm tier has kernels with it");
                return;
            }
            info => info.unwrap(),
        };
        let (outcomes, real) = run(&LinuxKernel, &scratch.path(), at_once);
        assert_eq!(named(&outcomes), expected, "the real kernel");
        assert_eq!(taught, real, "fake (left) and real kernel (right) differ");
    }
}
