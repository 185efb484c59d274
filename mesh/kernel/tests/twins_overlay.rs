//! What the fake kernel was taught of overlays, asked of the real one too.
#![allow(clippy::unwrap_used, reason = "helpers of tests may stop at the first surprise, as tests do")]

mod common;

use std::{
    collections::BTreeSet,
    io::Write as _,
    net::IpAddr,
    path::Path,
    process::{Command, Stdio},
};

use common::Scratch;
use swarmesh_kernel::{Kernel, KernelError, LinuxKernel, NeighbourEvent, NeighbourMonitor, fake::FakeKernel};

const PEERS: [IpAddr; 2] = [IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 1, 3)), IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 1, 4))];

enum Step {
    Overlay(bool),
    Peer(IpAddr, bool),
}

/// All that a monitor tells of the steps, and where the overlay leads after each.
fn run(kernel: &dyn Kernel, path: &Path, act: impl Fn(&Step)) -> (Vec<Vec<NeighbourEvent>>, Vec<BTreeSet<IpAddr>>) {
    let open = || kernel.open_neighbours(path);
    assert!(matches!(open(), Err(KernelError::NotFound { .. })), "no overlay");
    act(&Step::Overlay(true));
    act(&Step::Peer(PEERS[0], true));
    let mut monitor: NeighbourMonitor = open().unwrap();
    let (mut told, mut present) = (vec![monitor.read_events().unwrap()], vec![monitor.present().unwrap()]);
    for step in [Step::Peer(PEERS[1], true), Step::Peer(PEERS[0], false), Step::Peer(PEERS[0], true), Step::Peer(PEERS[1], false)] {
        act(&step);
        told.push(monitor.read_events().unwrap());
        present.push(monitor.present().unwrap());
    }
    act(&Step::Overlay(false));
    // That its neighbours go with the interface may be told, too.
    let end = monitor.read_events().unwrap();
    assert!(end.contains(&NeighbourEvent::Ended), "{end:?}");
    assert!(matches!(open(), Err(KernelError::NotFound { .. })), "it has ended");
    (told, present)
}

#[test]
fn overlays_agree() {
    let fake = FakeKernel::new();
    let view = fake.add_namespace("/overlay");
    let taught = run(&fake, Path::new("/overlay"), |step| match step {
        Step::Overlay(there) => view.set_overlay(*there),
        Step::Peer(address, there) => view.set_peer(*address, *there, true),
    });
    let [one, other] = PEERS;
    let (there, gone) = (NeighbourEvent::There, NeighbourEvent::Gone);
    assert_eq!(taught.0, [vec![], vec![there(other)], vec![gone(one)], vec![there(one)], vec![gone(other)]]);
    assert_eq!(taught.1, [vec![one], vec![one, other], vec![other], vec![one, other], vec![one]].map(BTreeSet::from_iter));
    let Some(scratch) = Scratch::new() else { return };
    let real = run(&LinuxKernel, &scratch.path(), |step| match step {
        Step::Overlay(true) => {
            scratch.run("ip link add vxlan0 type vxlan id 4097 dstport 4789 proxy l2miss l3miss");
            scratch.run("ip link set vxlan0 up");
        }
        Step::Overlay(false) => drop(scratch.run("ip link del vxlan0")),
        Step::Peer(address, true) => {
            scratch.run(&format!("ip neigh add {address} lladdr 02:42:0a:00:01:03 dev vxlan0 nud permanent"));
            // As Docker does; not for us.
            scratch.run("bridge fdb replace 02:42:0a:00:01:03 dev vxlan0 dst 192.0.2.13 self permanent");
        }
        Step::Peer(address, false) => drop(scratch.run(&format!("ip neigh del {address} dev vxlan0"))),
    });
    assert_eq!(taught, real, "fake (left) and real kernel (right) differ");
}

/// A node with thousands of tasks goes while nobody reads: what is left of the messages ends in a loss, and reading back says the rest.
#[test]
fn more_changes_than_a_socket_holds_are_told_as_a_loss() {
    const PEERS: u32 = 6000;
    let Some(scratch) = Scratch::new() else { return };
    let batch = |verb: &str, last: &str| {
        let lines = (0..PEERS).map(|n| format!("neigh {verb} 10.7.{}.{} {last} dev vxlan0\n", n / 250, n % 250 + 2)).collect::<String>();
        let mut command = Command::new("ip");
        let mut child = scratch.ns.spawn(command.args(["-batch", "-"]).stdin(Stdio::piped())).unwrap();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    };
    scratch.run("ip link add vxlan0 type vxlan id 4097 dstport 4789");
    scratch.run("ip link set vxlan0 up");
    batch("add", "lladdr 02:42:0a:00:01:03 nud permanent");
    let mut monitor = LinuxKernel.open_neighbours(&scratch.path()).unwrap();
    assert_eq!(monitor.present().unwrap().len(), PEERS as usize);
    batch("del", "");
    let told = monitor.read_events().unwrap();
    assert!(told.contains(&NeighbourEvent::Lost), "all {} were told", told.len());
    assert_eq!(monitor.present().unwrap(), BTreeSet::new());
    // It goes on after that.
    scratch.run("ip neigh add 10.7.0.2 lladdr 02:42:0a:00:01:03 dev vxlan0 nud permanent");
    assert_eq!(monitor.read_events().unwrap(), [NeighbourEvent::There([10, 7, 0, 2].into())]);
}
