//! Namespaces, routing, sysctls, iptables and connection tracking on the kernel that runs this test, each in a namespace of its own.
#![allow(clippy::unwrap_used, reason = "helpers of tests may stop at the first surprise, as tests do")]

mod common;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::Path,
};

use common::Scratch;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use swarmesh_kernel::{
    ConntrackSocket, DefaultRoute, FlowFilter, Iptables, Kernel, KernelError, LinuxKernel, Netns, RouteSocket, load_script, sysctl,
};

#[test]
fn routes_rules_and_neighbours_are_ensured() {
    let Some(scratch) = Scratch::new() else { return };
    scratch.run("ip link add probe mtu 1450 address 02:42:0a:00:00:02 type veth peer name other");
    scratch.run("ip link set other up");
    scratch.run("ip addr add 10.0.0.2/24 dev probe");
    scratch.run("ip addr add fd00::2/64 dev probe");
    scratch.run("ip link set probe up");
    let mut route = RouteSocket::open(&scratch.ns).unwrap();

    let probe = route.links().unwrap().into_iter().find(|link| link.name == "probe").unwrap();
    assert_eq!((probe.mtu, probe.mac, probe.up, probe.kind.as_deref()), (1450, Some([2, 0x42, 0x0a, 0, 0, 2]), true, Some("veth")));
    let addresses: Vec<String> = route.addresses().unwrap().iter().filter(|a| a.index == probe.index).map(|a| a.net.to_string()).collect();
    assert!(addresses.contains(&"10.0.0.2/24".to_owned()) && addresses.contains(&"fd00::2/64".to_owned()), "{addresses:?}");

    assert_eq!(route.default_route(false).unwrap(), None);
    scratch.run("ip route add default via 10.0.0.7 dev probe metric 200");
    scratch.run("ip route add default via 10.0.0.1 dev probe metric 100");
    scratch.run("ip route add default dev probe table 77");
    assert_eq!(route.default_route(false).unwrap(), Some(DefaultRoute { index: probe.index, gateway: Some("10.0.0.1".parse().unwrap()) }));

    for v6 in [false, true] {
        let via: IpAddr = if v6 { "fe80::57:50" } else { "169.254.87.80" }.parse().unwrap();
        let other: IpAddr = if v6 { "fe80::57:51" } else { "169.254.87.81" }.parse().unwrap();
        let mac = [2, 0x42, 0, 0, 0, 1];
        for expected in [true, false] {
            assert_eq!(route.ensure_neighbour(probe.index, via, mac).unwrap(), expected, "{via}");
            assert_eq!(route.ensure_default_route(v6, 5750, probe.index, via).unwrap(), expected, "{via}");
            assert_eq!(route.ensure_rule_fwmark(v6, 0x5750_0000, 0xfff0_0000, 5750, 5750).unwrap(), expected, "{via}");
        }
        assert!(route.ensure_neighbour(probe.index, via, [2; 6]).unwrap());
        assert!(route.ensure_default_route(v6, 5750, probe.index, other).unwrap());
        let flag = if v6 { "-6" } else { "-4" };
        let table = scratch.run(&format!("ip {flag} route show table 5750"));
        assert!(table.contains(&format!("default via {other} dev probe")) && table.contains("onlink"), "{table}");
        assert_eq!(table.lines().count(), 1, "{table}");
        assert!(scratch.run(&format!("ip {flag} neigh show {via} dev probe")).contains("02:02:02:02:02:02 PERMANENT"));
        let rules = scratch.run(&format!("ip {flag} rule show"));
        assert!(rules.contains("5750:\tfrom all fwmark 0x57500000/0xfff00000 lookup 5750"), "{rules}");

        for expected in [true, false] {
            assert_eq!(route.remove_neighbour(probe.index, via).unwrap(), expected);
            assert_eq!(route.remove_default_route(v6, 5750).unwrap(), expected);
            assert_eq!(route.remove_rule_fwmark(v6, 0x5750_0000, 0xfff0_0000, 5750, 5750).unwrap(), expected);
        }
    }
    assert!(matches!(route.ensure_neighbour(9_999, "10.0.0.9".parse().unwrap(), [2; 6]), Err(KernelError::NotFound { .. })));
}

#[test]
fn sysctls_belong_to_the_namespace() {
    let Some(scratch) = Scratch::new() else { return };
    let key = "net/ipv4/ip_forward";
    let outside = sysctl::read(&Netns::current().unwrap(), key).unwrap();
    let wanted = if outside == "1" { "0" } else { "1" };
    sysctl::ensure(&scratch.ns, key, &outside).unwrap();
    assert!(sysctl::ensure(&scratch.ns, key, wanted).unwrap());
    assert!(!sysctl::ensure(&scratch.ns, key, wanted).unwrap());
    assert_eq!(sysctl::read(&Netns::current().unwrap(), key).unwrap(), outside);
}

#[test]
fn namespaces_are_told_apart_and_left_again() {
    let Some(scratch) = Scratch::new() else { return };
    let home = Netns::current().unwrap();
    assert_ne!(scratch.ns.id(), home.id());
    assert_eq!(Netns::open(&scratch.path()).unwrap().id(), scratch.ns.id());
    assert_eq!(scratch.ns.enter(|| Netns::current().unwrap().id()).unwrap(), scratch.ns.id());
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| scratch.ns.enter(|| panic!("on purpose"))));
    assert!(panicked.is_err());
    assert_eq!(Netns::current().unwrap().id(), home.id());
    let error = LinuxKernel.open(Path::new("/run/docker/netns/none")).err().unwrap();
    assert!(matches!(error, KernelError::NamespaceGone { .. }));
}

/// Docker keeps a sandbox by a bind mount over a file, and the file may be there before and after the mount is.
#[test]
fn a_bind_mounted_namespace_is_opened() {
    let Some(scratch) = Scratch::new() else { return };
    let file = std::env::temp_dir().join(format!("swarmesh-kernel-netns-{}", std::process::id()));
    std::fs::write(&file, "").unwrap();
    let (source, target) = (scratch.path(), file.clone());
    // The mount is this thread's own and ends with it.
    let mounted = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        mount(Some(&source), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        Netns::open(&target)
    });
    let mounted = mounted.join().unwrap();
    let bare = Netns::open(&file);
    std::fs::remove_file(&file).unwrap();
    assert_eq!(mounted.unwrap().id(), scratch.ns.id());
    assert!(matches!(bare, Err(KernelError::NamespaceGone { .. })));
}

#[test]
fn docker_user_is_found_and_kept_in_order() {
    let Some(scratch) = Scratch::new() else { return };
    let mut namespace = scratch.namespace();
    let rule = ["-m", "mark", "--mark", "0x5750", "-j", "ACCEPT"];
    for (v6, tool) in [(false, "iptables"), (true, "ip6tables")] {
        assert_eq!(Iptables::detect(&scratch.ns, v6).unwrap(), None, "{tool}");
        assert_eq!(namespace.ensure_forward_rule(v6, &rule).unwrap(), None, "{tool}");
        scratch.run(&format!("{tool} -N DOCKER-USER"));
        scratch.run(&format!("{tool} -A DOCKER-USER -j RETURN"));
        for expected in [true, false] {
            assert_eq!(namespace.ensure_forward_rule(v6, &rule).unwrap(), Some(expected), "{tool}");
        }
        let listed = scratch.run(&format!("{tool} -S DOCKER-USER"));
        assert!(listed.lines().nth(1).unwrap().contains("--mark 0x5750 -j ACCEPT"), "{listed}");
        for expected in [true, false] {
            assert_eq!(namespace.remove_forward_rule(v6, &rule).unwrap(), Some(expected), "{tool}");
        }
        assert!(matches!(namespace.ensure_forward_rule(v6, &["-m", "nonsense"]), Err(KernelError::Tool { .. })), "{tool}");
    }
}

/// Original destinations of the tracked UDP connections, by conntrack's own tool.
fn flows(scratch: &Scratch, v6: bool) -> BTreeMap<String, usize> {
    let listed = scratch.run(&format!("conntrack -L -p udp -f {}", if v6 { "ipv6" } else { "ipv4" }));
    let mut flows = BTreeMap::new();
    for line in listed.lines() {
        let part = |name: &str| line.split_whitespace().filter_map(|word| word.strip_prefix(name)).map(str::to_owned).collect::<Vec<_>>();
        let (destination, port, source) = (part("dst=")[0].clone(), part("dport=")[0].clone(), part("src=")[1].clone());
        *flows.entry(format!("{destination}#{port}>{source}")).or_default() += 1;
    }
    flows
}

fn send(scratch: &Scratch, v6: bool, targets: &[&str]) {
    let socket = scratch.ns.enter(|| UdpSocket::bind(if v6 { "[::]:0" } else { "0.0.0.0:0" })).unwrap().unwrap();
    for target in targets {
        socket.send_to(b"x", target.parse::<SocketAddr>().unwrap()).unwrap();
    }
}

#[test]
fn flows_are_forgotten_by_each_part_of_a_filter() {
    let Some(scratch) = Scratch::new() else { return };
    for v6 in [false, true] {
        let (vip1, vip2, backend, key) =
            if v6 { ("fd99::1", "fd99::2", "fd98::5", "ip6") } else { ("10.99.0.1", "10.99.0.2", "10.98.0.5", "ip") };
        for address in [vip1, vip2, backend] {
            scratch.run(&if v6 { format!("ip addr add {address}/128 dev lo nodad") } else { format!("ip addr add {address}/32 dev lo") });
        }
        load_script(
            &scratch.ns,
            &format!("table {key} nat {{ chain o {{ type nat hook output priority -100; {key} daddr {vip2} dnat to {backend}\n }}\n }}"),
        )
        .unwrap();
        let at = |address: &str, port: u16| if v6 { format!("[{address}]:{port}") } else { format!("{address}:{port}") };
        let targets = [at(vip1, 53), at(vip1, 54), at(vip2, 53), at(backend, 55)];
        let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
        let name = |destination: &str, port: u16, source: &str| format!("{destination}#{port}>{source}");
        let all = [name(vip1, 53, vip1), name(vip1, 54, vip1), name(vip2, 53, backend), name(backend, 55, backend)];
        let udp = FlowFilter { protocol: Some(17), ..FlowFilter::default() };
        let to = |address: &str| Some(address.parse::<IpAddr>().unwrap());

        // Each filter, and which of the four flows it leaves.
        let table: Vec<(FlowFilter, &[usize])> = vec![
            (FlowFilter { original_destination: to(vip1), ..FlowFilter::default() }, &[2, 3]),
            (FlowFilter { original_destination: to(vip1), ..udp }, &[2, 3]),
            (FlowFilter { original_destination: to(vip1), original_destination_port: Some(53), ..udp }, &[1, 2, 3]),
            (FlowFilter { original_destination_port: Some(53), ..udp }, &[1, 3]),
            (FlowFilter { original_destination_port: Some(53), ..FlowFilter::default() }, &[1, 3]),
            (FlowFilter { reply_source: to(backend), ..udp }, &[0, 1]),
            (FlowFilter { original_destination: to(vip2), reply_source: to(backend), ..udp }, &[0, 1, 3]),
            (FlowFilter { original_destination: to(vip2), reply_source: to(vip1), ..udp }, &[0, 1, 2, 3]),
            (FlowFilter { reply_source: to(backend), reply_source_port: Some(55), ..udp }, &[0, 1, 2]),
            (FlowFilter { reply_source_port: Some(54), ..udp }, &[0, 2, 3]),
            (FlowFilter { protocol: Some(6), original_destination: to(vip1), ..FlowFilter::default() }, &[0, 1, 2, 3]),
            (FlowFilter { v6: Some(!v6), ..udp }, &[0, 1, 2, 3]),
            (FlowFilter { v6: Some(v6), ..udp }, &[]),
        ];
        let mut conntrack = ConntrackSocket::open(&scratch.ns).unwrap();
        // As they are, and tracked in a zone of their first direction's, as a task's are.
        let zone = "table inet zone { chain o { type filter hook output priority -300; ct original zone set 0x1234\n }\n }";
        for (zoned, (filter, left)) in table.iter().map(|row| (false, row)).chain(table.iter().map(|row| (true, row))) {
            load_script(&scratch.ns, &format!("table inet zone {{ }}\ndelete table inet zone\n{}", if zoned { zone } else { "" })).unwrap();
            scratch.run("conntrack -F");
            send(&scratch, v6, &targets);
            assert_eq!(flows(&scratch, v6).keys().count(), 4, "{:?}", flows(&scratch, v6));
            let family = if v6 { "ipv6" } else { "ipv4" };
            assert_eq!(scratch.run(&format!("conntrack -L -p udp -f {family}")).contains("zone-orig=4660"), zoned);
            conntrack.flush(filter).unwrap();
            let found: Vec<String> = flows(&scratch, v6).into_keys().collect();
            let mut expected: Vec<String> = left.iter().map(|index| all[*index].clone()).collect();
            expected.sort();
            assert_eq!(found, expected, "{filter:?}, in a zone: {zoned}");
            // Nothing to forget is fine.
            conntrack.flush(filter).unwrap();
        }
        assert!(matches!(conntrack.flush(&FlowFilter::default()), Err(KernelError::Protocol { .. })));
    }
}
