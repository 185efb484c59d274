use std::os::fd::AsFd;

use nix::{
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::*;

const SET: SetName = SetName { family: Family::Inet, table: "mesh", set: "front" };

fn add(key: u8) -> NftOp {
    NftOp::AddElement { set: SET, key: vec![key; 4], data: None }
}

fn opened() -> (FakeKernel, Box<dyn Namespace>) {
    let kernel = FakeKernel::new();
    let mut namespace = kernel.open_current().unwrap();
    namespace.load_script("table inet mesh { set front { type ipv4_addr; } }").unwrap();
    (kernel, namespace)
}

#[test]
fn a_path_that_was_removed_is_gone_but_its_handles_work() {
    let kernel = FakeKernel::new();
    kernel.add_namespace("/run/docker/netns/a");
    let mut handle = kernel.open(Path::new("/run/docker/netns/a")).unwrap();
    kernel.remove_namespace("/run/docker/netns/a");
    assert!(matches!(kernel.open(Path::new("/run/docker/netns/a")), Err(KernelError::NamespaceGone { .. })));
    assert_eq!(handle.chains(Family::Inet, "mesh").unwrap(), None);
}

#[test]
fn a_fault_strikes_once_and_changes_nothing() {
    let (kernel, mut namespace) = opened();
    let view = kernel.here();
    view.forget_records();
    view.fail_next(Call::Commit, libc::ENOBUFS);
    assert!(matches!(namespace.commit(&[add(1)]), Err(KernelError::NoBuffer { .. })));
    assert!(view.elements(SET).is_empty());
    assert_eq!(view.writes(), 0);
    namespace.commit(&[add(1)]).unwrap();
    assert_eq!((view.elements(SET).len(), view.writes(), view.commits()), (1, 1, vec![vec![add(1)]]));
}

#[test]
fn a_monitor_tells_strangers_from_ourselves() {
    let (kernel, mut namespace) = opened();
    let mut monitor = kernel.open_monitor(None).unwrap();
    namespace.commit(&[add(1), add(2)]).unwrap();
    let own = namespace.port_id().unwrap();
    assert!(monitor.read_events().unwrap().iter().all(|event| event.port() == Some(own)));

    let readable = |monitor: &NftMonitor| poll(&mut [PollFd::new(monitor.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO).unwrap() == 1;
    assert!(!readable(&monitor));
    kernel.here().commit_as_stranger(&[NftOp::FlushSet { set: SET }]).unwrap();
    assert!(readable(&monitor));
    let events = monitor.read_events().unwrap();
    assert!(
        matches!(&events[..], [NftEvent::ElementsDeleted { set, port, .. }, NftEvent::Generation { .. }] if set == "front" && *port != own)
    );
    kernel.here().lose_events();
    assert_eq!(monitor.read_events().unwrap(), [NftEvent::Lost]);
}

#[test]
fn ensuring_twice_writes_once() {
    let (kernel, mut namespace) = opened();
    let view = kernel.here();
    view.forget_records();
    for expected in [true, false] {
        assert_eq!(namespace.sysctl_ensure("net/ipv4/ip_forward", "1").unwrap(), expected);
        assert_eq!(namespace.ensure_rule_fwmark(false, 1, 1, 100, 200).unwrap(), expected);
    }
    assert_eq!(view.writes(), 2);
    assert_eq!(namespace.ensure_forward_rule(false, &["-j", "ACCEPT"]).unwrap(), None);
    view.set_docker_user(false, true);
    for expected in [true, false] {
        assert_eq!(namespace.ensure_forward_rule(false, &["-j", "ACCEPT"]).unwrap(), Some(expected));
    }
    assert_eq!(namespace.remove_forward_rule(false, &["-j", "ACCEPT"]).unwrap(), Some(true));
    assert_eq!(view.docker_user(false), Some(vec![]));
}

#[test]
fn an_unbounded_filter_is_refused() {
    let (kernel, mut namespace) = opened();
    assert!(matches!(namespace.flush_flows(&FlowFilter::default()), Err(KernelError::Protocol { .. })));
    assert!(kernel.here().flushed().is_empty());
}
