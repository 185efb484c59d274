//! IPVS on the kernel that runs this test, each in a namespace of its own, with `ipvsadm` as the second opinion.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "helpers of tests may stop at the first surprise, as tests do")]

mod common;

use std::{
    collections::BTreeSet,
    io::Write,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    num::NonZeroU32,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use common::Scratch;
use swarmesh_kernel::{
    Forwarding, IpvsOp, IpvsSocket, IpvsTimeouts, KernelError, Persistence, RealId, RealServer, SchedulerFlags, Tunnel, TunnelChecksum,
    VirtualId, VirtualScheduler, VirtualServer,
};

fn opened() -> Option<(Scratch, IpvsSocket)> {
    let scratch = Scratch::new()?;
    match IpvsSocket::open(&scratch.ns) {
        Ok(socket) => Some((scratch, socket)),
        Err(KernelError::NotSupported { detail, .. }) => {
            println!("skipped: this kernel has no IPVS ({detail}); the vm tier has kernels with it");
            None
        }
        Err(other) => panic!("{other}"),
    }
}

fn mark(mark: u32, v6: bool) -> VirtualId {
    VirtualId::Mark { mark: NonZeroU32::new(mark).unwrap(), v6 }
}

fn at(protocol: u8, address: &str) -> VirtualId {
    let address: SocketAddr = address.parse().unwrap();
    VirtualId::Address { protocol, address: address.ip(), port: address.port() }
}

fn server(id: VirtualId, scheduler: &str) -> VirtualServer {
    let scheduler = VirtualScheduler::of_name(scheduler);
    VirtualServer { id, scheduler, flags: SchedulerFlags::default(), one_packet: false, persistence: None, engine: None }
}

fn sticky(id: VirtualId, scheduler: &str, seconds: u64, prefix: u8) -> VirtualServer {
    VirtualServer { persistence: Some(Persistence { timeout: Duration::from_secs(seconds), prefix }), ..server(id, scheduler) }
}

fn real(address: &str, weight: u32, forwarding: Forwarding) -> RealServer {
    let address: SocketAddr = address.parse().unwrap();
    let id = RealId { address: address.ip(), port: address.port() };
    RealServer { id, weight, forwarding, upper_threshold: 0, lower_threshold: 0 }
}

/// What `ipvsadm --save` leaves out; it takes it all the same.
const THRESHOLDS: &str = " -x 100 -y 20";

/// Virtual servers with their real servers, and the lines that `ipvsadm --save --numeric` has for them.
/// (It prints marks above `i32::MAX` as negative numbers, so there are none.)
fn zoo() -> Vec<(VirtualServer, Vec<RealServer>, Vec<&'static str>)> {
    use Forwarding::{DirectRoute, Masquerade};
    let tunnel = Forwarding::Tunnel;
    let hashed = SchedulerFlags { fallback: true, ports: true, third: false };
    vec![
        (
            server(mark(7, false), "rr"),
            vec![real("10.0.0.2:0", 1, Masquerade), real("10.0.0.3:0", 0, Masquerade)],
            vec!["-A -f 7 -s rr", "-a -f 7 -r 10.0.0.2:0 -m -w 1", "-a -f 7 -r 10.0.0.3:0 -m -w 0"],
        ),
        (
            server(mark(7, true), "wrr"),
            vec![real("[fd00::2]:0", 3, Masquerade)],
            vec!["-A -f 7 -6 -s wrr", "-a -f 7 -6 -r [fd00::2]:0 -m -w 3"],
        ),
        (sticky(mark(0x5750_0007, false), "wlc", 600, 24), vec![], vec!["-A -f 1464860679 -s wlc -p 600 -M 255.255.255.0"]),
        (
            server(at(6, "10.99.0.1:80"), "lc"),
            vec![
                real("10.0.0.2:80", 5, DirectRoute),
                RealServer { upper_threshold: 100, lower_threshold: 20, ..real("10.0.0.3:8080", 1, Masquerade) },
            ],
            vec![
                "-A -t 10.99.0.1:80 -s lc",
                "-a -t 10.99.0.1:80 -r 10.0.0.2:80 -g -w 5",
                "-a -t 10.99.0.1:80 -r 10.0.0.3:8080 -m -w 1 -x 100 -y 20",
            ],
        ),
        (
            VirtualServer { one_packet: true, ..server(at(17, "10.99.0.1:53"), "rr") },
            vec![
                real("10.0.0.2:53", 1, tunnel(Tunnel::Ipip)),
                real("10.0.0.3:53", 1, tunnel(Tunnel::Gue { port: 6080, checksum: TunnelChecksum::None })),
                real("10.0.0.4:53", 1, tunnel(Tunnel::Gre { checksum: TunnelChecksum::Full })),
            ],
            vec![
                "-A -u 10.99.0.1:53 -s rr -o",
                "-a -u 10.99.0.1:53 -r 10.0.0.2:53 -i -w 1 --tun-type ipip",
                "-a -u 10.99.0.1:53 -r 10.0.0.3:53 -i -w 1 --tun-type gue --tun-port 6080 --tun-nocsum",
                "-a -u 10.99.0.1:53 -r 10.0.0.4:53 -i -w 1 --tun-type gre --tun-csum",
            ],
        ),
        (
            VirtualServer { flags: hashed, ..server(at(6, "[fd00:99::1]:443"), "mh") },
            // Of the other family: through a tunnel.
            vec![real("[fd00::2]:443", 1, Masquerade), real("10.0.0.9:443", 1, tunnel(Tunnel::Ipip))],
            vec![
                "-A -t [fd00:99::1]:443 -s mh -b mh-fallback,mh-port",
                "-a -t [fd00:99::1]:443 -r [fd00::2]:443 -m -w 1",
                "-a -t [fd00:99::1]:443 -r 10.0.0.9:443 -i -w 1 --tun-type ipip",
            ],
        ),
        (
            VirtualServer { flags: hashed, ..sticky(at(17, "[fd00:99::1]:0"), "sh", 30, 64) },
            vec![],
            vec!["-A -u [fd00:99::1]:0 -s sh -p 30 -M 64 -b sh-fallback,sh-port"],
        ),
        (server(at(132, "10.99.0.1:9000"), "sed"), vec![], vec!["-A --sctp-service 10.99.0.1:9000 -s sed"]),
    ]
}

fn additions() -> Vec<IpvsOp> {
    let add = |(server, reals, _): (VirtualServer, Vec<RealServer>, _)| {
        let of = server.id;
        std::iter::once(IpvsOp::AddVirtual(server)).chain(reals.into_iter().map(move |real| IpvsOp::AddReal { of, real }))
    };
    zoo().into_iter().flat_map(add).collect()
}

fn all_done(results: Vec<Result<(), KernelError>>) {
    for (index, result) in results.into_iter().enumerate() {
        result.unwrap_or_else(|error| panic!("{index}: {error}"));
    }
}

fn saved(scratch: &Scratch) -> BTreeSet<String> {
    scratch.run("ipvsadm --save --numeric").lines().map(|line| line.trim().to_owned()).collect()
}

fn held(ipvs: &mut IpvsSocket) -> Vec<(VirtualServer, Vec<RealServer>)> {
    let servers = ipvs.virtual_servers().unwrap().into_iter().map(|state| state.server);
    let mut held: Vec<_> =
        servers.collect::<Vec<_>>().into_iter().map(|server| (reals(ipvs, &server.id), server)).map(|(r, s)| (s, r)).collect();
    held.sort();
    held
}

fn reals(ipvs: &mut IpvsSocket, of: &VirtualId) -> Vec<RealServer> {
    let mut reals: Vec<_> = ipvs.real_servers(of).unwrap().into_iter().map(|state| state.server).collect();
    reals.sort();
    reals
}

fn expected() -> Vec<(VirtualServer, Vec<RealServer>)> {
    let mut expected: Vec<_> = zoo()
        .into_iter()
        .map(|(server, mut reals, _)| {
            reals.sort();
            (server, reals)
        })
        .collect();
    expected.sort();
    expected
}

#[test]
fn ipvsadm_sees_what_we_made() {
    let Some((scratch, mut ipvs)) = opened() else { return };
    all_done(ipvs.apply(&additions()).unwrap());
    let wanted: BTreeSet<String> = zoo().iter().flat_map(|(_, _, lines)| lines.iter().map(|line| line.replace(THRESHOLDS, ""))).collect();
    let seen = saved(&scratch);
    let (missing, more): (Vec<_>, Vec<_>) = (wanted.difference(&seen).collect(), seen.difference(&wanted).collect());
    assert!(missing.is_empty() && more.is_empty(), "ipvsadm lacks {missing:#?} and has {more:#?}");
    let thresholds = scratch.run("ipvsadm --list --numeric --thresholds");
    let row: Vec<&str> = thresholds.lines().find(|line| line.contains("10.0.0.3:8080")).unwrap().split_whitespace().collect();
    assert_eq!(row[2..4], ["100", "20"], "{thresholds}");
    assert_eq!(held(&mut ipvs), expected());
}

#[test]
fn we_see_what_ipvsadm_made() {
    let Some((scratch, mut ipvs)) = opened() else { return };
    let lines: Vec<&str> = zoo().into_iter().flat_map(|(_, _, lines)| lines).collect();
    let mut command = Command::new("ipvsadm");
    let mut restore = scratch.ns.spawn(command.arg("--restore").stdin(Stdio::piped())).unwrap();
    restore.stdin.take().unwrap().write_all(lines.join("\n").as_bytes()).unwrap();
    assert!(restore.wait().unwrap().success());
    assert_eq!(held(&mut ipvs), expected());
}

#[test]
fn what_is_there_is_changed_in_place() {
    let Some((scratch, mut ipvs)) = opened() else { return };
    let id = mark(7, false);
    let two = |weight| real("10.0.0.2:0", weight, Forwarding::Masquerade);
    all_done(ipvs.apply(&[IpvsOp::AddVirtual(server(id, "rr")), IpvsOp::AddReal { of: id, real: two(4) }]).unwrap());
    let changed = VirtualServer { flags: SchedulerFlags { fallback: true, ..SchedulerFlags::default() }, ..sticky(id, "sh", 60, 32) };
    all_done(ipvs.apply(&[IpvsOp::SetVirtual(changed.clone()), IpvsOp::SetReal { of: id, real: two(0) }]).unwrap());
    assert_eq!(held(&mut ipvs), [(changed, vec![two(0)])]);
    // What is not said any more is not so any more.
    all_done(ipvs.apply(&[IpvsOp::SetVirtual(server(id, "wrr"))]).unwrap());
    assert_eq!(held(&mut ipvs), [(server(id, "wrr"), vec![two(0)])]);
    assert!(saved(&scratch).contains("-A -f 7 -s wrr"), "{:?}", saved(&scratch));

    all_done(ipvs.apply(&[IpvsOp::DeleteReal { of: id, real: two(0).id }]).unwrap());
    assert_eq!(held(&mut ipvs), [(server(id, "wrr"), vec![])]);
    all_done(ipvs.apply(&[IpvsOp::AddVirtual(server(mark(u32::MAX, true), "rr")), IpvsOp::DeleteVirtual(id)]).unwrap());
    assert_eq!(held(&mut ipvs), [(server(mark(u32::MAX, true), "rr"), vec![])]);
    all_done(ipvs.apply(&[IpvsOp::Flush]).unwrap());
    assert_eq!(held(&mut ipvs), []);
    assert_eq!(reals(&mut ipvs, &id), []);
}

/// The kind of a refusal, by type.
fn kind(result: &Result<(), KernelError>) -> &'static str {
    match result {
        Ok(()) => "done",
        Err(KernelError::Exists { .. }) => "exists",
        Err(KernelError::NotPermitted { .. }) => "not permitted",
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn without_the_capability_nothing_is_done() {
    let Some((_scratch, mut ipvs)) = opened() else { return };
    let results = std::thread::spawn(move || {
        // SAFETY: the call reads no memory of ours. Unlike the function of libc, it is about this thread only, which ends here.
        let done = unsafe { nix::libc::syscall(nix::libc::SYS_setresuid, 65_534, 65_534, 65_534) };
        assert_eq!(done, 0);
        (ipvs.apply(&[IpvsOp::AddVirtual(server(mark(7, false), "rr"))]).unwrap(), ipvs.virtual_servers())
    });
    let (changed, listed) = results.join().unwrap();
    assert_eq!(kind(&changed[0]), "not permitted");
    assert!(matches!(listed, Err(KernelError::NotPermitted { .. })), "{listed:?}");
}

#[test]
fn thousands_at_once_and_each_has_its_result() {
    let Some((_scratch, mut ipvs)) = opened() else { return };
    let mut ops = Vec::new();
    for number in 1..=1000u32 {
        let id = mark(number, false);
        ops.push(IpvsOp::AddVirtual(server(id, "rr")));
        let address = IpAddr::from([10, 1, (number >> 8) as u8, number as u8]);
        let real = RealServer { id: RealId { address, port: 0 }, ..real("10.0.0.2:0", number, Forwarding::Masquerade) };
        ops.push(IpvsOp::AddReal { of: id, real });
        // Every other request from here on is refused.
        if number > 900 {
            ops.push(IpvsOp::AddVirtual(server(id, "rr")));
            ops.push(IpvsOp::AddReal { of: id, real });
        }
    }
    let results = ipvs.apply(&ops).unwrap();
    assert_eq!(results.len(), ops.len());
    let mut seen = BTreeSet::new();
    for (op, result) in ops.iter().zip(&results) {
        let expected = if seen.insert(op.to_string()) { "done" } else { "exists" };
        assert_eq!(kind(result), expected, "{op}");
    }
    // All refused: more than what a receive buffer holds.
    let again = ipvs.apply(&ops).unwrap();
    assert!(again.iter().all(|result| kind(result) == "exists"));
    let listed: BTreeSet<VirtualId> = ipvs.virtual_servers().unwrap().into_iter().map(|state| state.server.id).collect();
    assert_eq!(listed, (1..=1000).map(|number| mark(number, false)).collect());
    assert_eq!(reals(&mut ipvs, &mark(1000, false))[0].weight, 1000);
    // More than one part of a dump.
    let of = mark(1, false);
    let many: Vec<IpvsOp> = (2..1500u32)
        .map(|number| IpvsOp::AddReal { of, real: real(&format!("10.2.{}.{}:0", number >> 8, number & 255), 1, Forwarding::Masquerade) })
        .filter(|op| !op.to_string().contains(".255:") && !op.to_string().contains(".0:0"))
        .collect();
    all_done(ipvs.apply(&many).unwrap());
    assert_eq!(reals(&mut ipvs, &of).len(), many.len() + 1);
}

#[test]
fn a_socket_belongs_to_its_namespace() {
    let (Some((here, mut ipvs)), Some((there, mut other))) = (opened(), opened()) else { return };
    let timeouts = |seconds| {
        let seconds = Duration::from_secs(seconds);
        IpvsTimeouts { tcp: seconds * 60, tcp_fin: seconds * 2, udp: seconds }
    };
    // From another thread, which is in another namespace.
    let mut ipvs = std::thread::spawn(move || {
        all_done(ipvs.apply(&[IpvsOp::AddVirtual(server(mark(7, false), "rr")), IpvsOp::SetTimeouts(timeouts(100))]).unwrap());
        ipvs
    })
    .join()
    .unwrap();
    assert_eq!(other.virtual_servers().unwrap(), []);
    all_done(other.apply(&[IpvsOp::SetTimeouts(timeouts(200))]).unwrap());
    assert_eq!(ipvs.timeouts().unwrap(), timeouts(100));
    assert_eq!(other.timeouts().unwrap(), timeouts(200));
    assert!(here.run("ipvsadm --list --timeout").contains("6000 200 100"), "{}", here.run("ipvsadm --list --timeout"));
    assert!(there.run("ipvsadm --list --timeout").contains("12000 400 200"));
    assert_eq!(saved(&there), BTreeSet::new());
    let info = ipvs.info().unwrap();
    let (major, minor, patch) = info.version;
    let told = here.run("ipvsadm --list");
    assert!(told.contains(&format!("version {major}.{minor}.{patch} (size={})", info.connection_table)), "{info:?}: {told}");
}

#[test]
fn connections_are_counted_until_zeroed() {
    let Some((scratch, mut ipvs)) = opened() else { return };
    scratch.run("ip link add probe type dummy");
    scratch.run("ip addr add 10.0.0.1/24 dev probe");
    scratch.run("ip addr add 10.0.0.2/32 dev probe");
    scratch.run("ip addr add 10.99.0.1/32 dev probe");
    scratch.run("ip link set probe up");
    let listener = scratch.ns.enter(|| TcpListener::bind("10.0.0.2:8080")).unwrap().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.unwrap().write_all(b"hello");
        }
    });
    let id = at(6, "10.99.0.1:80");
    let backend = real("10.0.0.2:8080", 1, Forwarding::Masquerade);
    all_done(ipvs.apply(&[IpvsOp::AddVirtual(server(id, "rr")), IpvsOp::AddReal { of: id, real: backend }]).unwrap());
    for _ in 0..5 {
        let vip: SocketAddr = "10.99.0.1:80".parse().unwrap();
        let stream = scratch.ns.enter(|| TcpStream::connect_timeout(&vip, Duration::from_secs(5))).unwrap().unwrap();
        assert_eq!(std::io::read_to_string(stream).unwrap(), "hello");
    }
    // They are added up every two seconds, if the machine has the time.
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut read = || (ipvs.virtual_servers().unwrap()[0].counters, ipvs.real_servers(&id).unwrap()[0]);
    let (mut counted, mut state) = read();
    while counted.connections.min(state.counters.connections) < 5 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(200));
        (counted, state) = read();
    }
    assert_eq!(counted.connections, 5, "{counted:?}");
    assert!(counted.packets_in >= 15 && counted.packets_out >= 10 && counted.bytes_in > 600 && counted.bytes_out > 400, "{counted:?}");
    assert_eq!((state.counters.connections, state.active + state.inactive), (5, 5), "{state:?}");
    let told = scratch.run("ipvsadm --list --numeric --exact --stats");
    let row: Vec<&str> = told.lines().find(|line| line.contains("10.99.0.1:80")).unwrap().split_whitespace().collect();
    assert_eq!(row[2], "5", "{told}");
    assert!(row[3].parse::<u64>().unwrap() >= 15, "{told}");

    all_done(ipvs.apply(&[IpvsOp::Zero(Some(id))]).unwrap());
    assert_eq!(ipvs.virtual_servers().unwrap()[0].counters.connections, 0);
    let state = ipvs.real_servers(&id).unwrap()[0];
    assert_eq!((state.counters.connections, state.active + state.inactive), (0, 5), "{state:?}");
    all_done(ipvs.apply(&[IpvsOp::Zero(None)]).unwrap());
}
