//! The scripts that the plane loads, as nft and the kernel see them.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, reason = "a test stops at the first surprise")]

mod common;

use std::{path::Path, process::Command, sync::Arc, thread};

use common::*;
use nix::{
    sched::{CloneFlags, unshare},
    unistd::geteuid,
};
use swarmesh_dataplane::{NetfilterPlane, PlaneConfig};
use swarmesh_kernel::{LinuxKernel, Netns, check_script, fake::FakeView, load_script};
use swarmesh_model::Protocol::Tcp;
use swarmesh_plan::{PlanDelta, Policy};

/// Names that Linux allows and that look like something else to nft.
const ODD_NAMES: [&str; 9] = ["eth0", "a;b", "x{y}", "#1", "$a", "@set", "accept", "1", "a'b,c"];

/// Runs `work` in a network namespace of its own that has these interfaces; prints why if it cannot.
fn in_namespace(interfaces: &'static [&'static str], work: impl FnOnce(&Netns) + Send + 'static) {
    if !geteuid().is_root() {
        eprintln!("skipped: network namespaces are made by root");
        return;
    }
    thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("root");
        for name in interfaces {
            let made = Command::new("ip").args(["link", "add", "name", name, "type", "bridge"]).output().expect("ip");
            assert!(made.status.success(), "{name}: {}", String::from_utf8_lossy(&made.stderr));
        }
        let ns = Netns::open(Path::new("/proc/thread-self/ns/net")).expect("this thread's namespace");
        work(&ns);
    })
    .join()
    .unwrap();
}

/// Every script that was loaded, checked alone and then loaded in its turn.
fn check_all(ns: &Netns, view: &FakeView, what: &str) {
    let scripts = view.scripts();
    assert!(!scripts.is_empty(), "{what}");
    for script in scripts {
        check_script(ns, &script).unwrap_or_else(|error| panic!("{what}: {error}\n{script}"));
        load_script(ns, &script).unwrap_or_else(|error| panic!("{what}: {error}\n{script}"));
        // Loading a skeleton again is harmless.
        if script.starts_with("table") {
            load_script(ns, &script).unwrap_or_else(|error| panic!("{what}, again: {error}\n{script}"));
        }
    }
    Command::new("nft").args(["flush", "ruleset"]).status().expect("nft");
}

#[test]
fn nft_takes_every_skeleton() {
    in_namespace(&["eth0", "eth1", "eth2", "docker_gwbridge"], |ns| {
        let mut world = World::with(rich());
        // With the old layout's IPv6, without any address of its own, and a task that loses its ports and gets them again.
        let mut docker = swarmesh_kernel::Kernel::open_current(&world.kernel).unwrap();
        docker.load_script("table ip filter {\n\tchain DOCKER-INGRESS { }\n}\n").unwrap();
        world.plane.set_node_address(None, world.now);
        world.apply(rich().task(1, &["net1"], &[]));
        world.apply(rich());
        world.settled();
        for place in ["node", "ingress", "task web.1", "task web.2"] {
            let view = world.view(place);
            assert!(place != "task web.1" || view.scripts().len() == 3);
            check_all(ns, &view, place);
        }
    });
}

#[test]
fn nft_takes_both_families_of_the_ingress_network() {
    in_namespace(&["eth0", "eth1", "docker_gwbridge"], |ns| {
        let mut world = World::new();
        let mut interfaces = sandbox_interfaces();
        for (index, address) in [(1, "fd00::2/64"), (2, "fd18::2/64")] {
            interfaces[index].addresses.push(address.parse().unwrap());
        }
        world.sandbox().set_interfaces(interfaces);
        world.apply(Plan::default().ingress().port(Tcp, 8080, swarmesh_plan::Policy::default(), &["10.0.0.3", "fd00::3"]));
        world.settled();
        assert!(world.plane.status(world.now).host.unwrap().ipv6);
        for place in ["node", "ingress"] {
            check_all(ns, &world.view(place), place);
        }
    });
}

/// What `check_name` lets through stands for itself.
#[test]
fn nft_takes_odd_interface_names_for_names() {
    in_namespace(&ODD_NAMES, |ns| {
        for name in ODD_NAMES {
            let mut world = World::new();
            world.add_boxes(&rich());
            let mut interfaces = box_interfaces(1);
            interfaces[1].name = name.to_owned();
            world.task(1).set_interfaces(interfaces);
            let mut interfaces = sandbox_interfaces();
            interfaces[1].name = name.to_owned();
            world.sandbox().set_interfaces(interfaces);
            world.apply(rich());
            world.settled();
            for place in ["ingress", "task web.1"] {
                let view = world.view(place);
                for script in view.scripts() {
                    load_script(ns, &script).unwrap_or_else(|error| panic!("{name}: {error}\n{script}"));
                }
                let listed = Command::new("nft").args(["list", "ruleset"]).output().expect("nft");
                let listed = String::from_utf8(listed.stdout).unwrap();
                assert!(listed.contains(&format!("ifname \"{name}\"")), "{name}:\n{listed}");
                assert!(Command::new("nft").args(["flush", "ruleset"]).status().expect("nft").success());
            }
        }
    });
}

/// Why `check_name` refuses these: nft would take them for something else, or not at all.
#[test]
fn nft_misreads_the_names_that_are_refused() {
    in_namespace(&["eth*", "et\"h0"], |ns| {
        assert!(check_script(ns, "table inet t {\n\tchain c {\n\t\tiifname \"et\"h0\" accept\n\t}\n}\n").is_err());
        load_script(ns, "table inet t {\n\tchain c {\n\t\tiifname \"eth*\" accept\n\t}\n}\n").unwrap();
        // As much as a name with three letters and anything after them.
        let listed = Command::new("nft").args(["--debug=netlink", "list", "chain", "inet", "t", "c"]).output().expect("nft");
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert!(listed.contains("cmp eq reg 1 0x00687465 ]"), "{listed}");
    });
}

/// The fake knows no ranges of addresses, so this is the one place where `swarmesh.bind` is damaged.
#[test]
fn bindings_are_put_back() {
    in_namespace(&["docker_gwbridge"], |_| {
        let holder = Command::new("unshare").args(["--net", "--", "sleep", "60"]).spawn().expect("unshare");
        let holder = Holder(holder);
        let pid = holder.0.id().to_string();
        let here = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        while std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap() == here {
            thread::sleep(std::time::Duration::from_millis(5));
        }
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(format!("/proc/{pid}/ns/net"), dir.path().join("ingress_sbox")).unwrap();
        for words in [
            "link add eth0 type veth peer name v0".to_owned(),
            format!("link add v1 type veth peer name eth1 netns {pid}"),
            format!("link set eth0 netns {pid}"),
            "addr add 172.18.0.1/16 dev docker_gwbridge".to_owned(),
            "link set docker_gwbridge up".to_owned(),
            "link set v1 up".to_owned(),
        ] {
            ip_command(&[], &words);
        }
        for words in ["addr add 10.0.0.2/24 dev eth0", "addr add 172.18.0.2/16 dev eth1", "link set eth1 up"] {
            ip_command(&["-t", &pid, "-n", "ip"], words);
        }
        ip_command(&["-t", &pid, "-n", "ip"], "route add default via 172.18.0.1");

        let config = PlaneConfig { balancing: swarmesh_dataplane::Balancing::Nft, netns_dir: dir.path().to_owned(), node_address: None };
        let plane = || NetfilterPlane::new(Arc::new(LinuxKernel), config.clone());
        let bound = policy(|p| p.bind = vec!["127.0.0.1/32".parse().unwrap(), "192.0.2.0/24".parse().unwrap(), "::1/128".parse().unwrap()]);
        let plan = Plan::default().ingress().port(Tcp, 8080, bound, &["10.0.0.3"]).port(Tcp, 80, Policy::default(), &["10.0.0.3"]);
        let (delta, now) = (PlanDelta::between(&Plan::default().0, &plan.0), std::time::Instant::now());
        let mut first = plane();
        first.apply(&delta, now);
        assert!(first.is_settled(), "{:?}", first.status(now).places);
        let whole = ruleset();
        assert!(whole.contains("192.0.2.0/24") && whole.contains("::1"), "{whole}");

        for harm in [
            "flush set inet swarmesh bound4",
            "flush set inet swarmesh bound6",
            "delete element inet swarmesh bound4 { tcp . 8080 . 127.0.0.1 }",
        ] {
            nft(harm);
            assert_ne!(ruleset(), whole);
            first.check_events(now);
            assert_eq!(ruleset(), whole, "not put back after {harm}");
        }
        // With nobody there to notice, what is read back tells.
        drop(first);
        nft("flush set inet swarmesh bound4; flush set inet swarmesh bound6; flush set inet swarmesh bound");
        let mut second = plane();
        second.apply(&delta, now);
        assert_eq!(ruleset(), whole);
        // And a third agent has nothing to do.
        let mut third = plane();
        third.apply(&delta, now);
        assert_eq!((third.status(now).commits, ruleset()), (0, whole));

        // Nothing bound any more.
        let open = plan.port(Tcp, 8080, Policy::default(), &["10.0.0.3"]);
        third.apply(
            &PlanDelta { published: open.0.published.iter().map(|(k, p)| (*k, Some(Arc::clone(p)))).collect(), ..PlanDelta::default() },
            now,
        );
        assert!(third.is_settled() && !ruleset().contains("192.0.2.0/24"), "{}", ruleset());
    });
}

struct Holder(std::process::Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ip_command(enter: &[&str], words: &str) {
    let mut command = if enter.is_empty() { Command::new("ip") } else { Command::new("nsenter") };
    let output = command.args(enter).args(words.split(' ')).output().expect("ip");
    assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
}

fn nft(script: &str) {
    assert!(Command::new("nft").arg(script).status().expect("nft").success(), "{script}");
}

fn ruleset() -> String {
    let output = Command::new("nft").args(["list", "ruleset"]).output().expect("nft");
    // A chain that is loaded again stands elsewhere.
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}
