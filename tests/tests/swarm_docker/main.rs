//! Three real engines, one swarm, an agent on each node: everything by Docker's own commands, and what traffic makes of it.
//!
//! The rows run in order and each leaves the swarm as it found it. Names of rows are those of the emulator's tables
//! (TESTING.md) where the same is asked. Needs root, docker.io and busybox-static.
#![forbid(unsafe_code)]
#![expect(clippy::print_stderr, reason = "all of this is a test")]

mod swarm;

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use swarmesh_tests::{
    agents,
    dockerlab::residue,
    http::none_failed,
    lab::{Held, Knock, ask, ask_udp, get_in, knock_http, knock_tcp, knock_tcp_for, speak_from_one_port, spread_in, udp_socket},
    load::{Load, field},
    netns::within,
    rows::{Row, run},
};

use crate::swarm::*;

/// What a node's agent has told of ways that its overlays have lost to tasks of this service.
fn lost_ways(swarm: &Swarm, node: usize, service: &str) -> Result<usize> {
    let log = fs::read_to_string(agents::log(&swarm.lab.borrow(), node)?)?;
    let task = format!("\"{service}.");
    Ok(log.lines().filter(|line| line.contains("no overlay leads to these tasks") && line.contains(&task)).count())
}

const ROWS: &[Row<Swarm>] = &[
    ("E36 K1 published port: every node's address, TCP, from both clients, evenly", |swarm| {
        for node in 0..NODES {
            for (client, _) in CLIENTS {
                evenly(&spread_in(&swarm.client(client), at(node_address(node), 7000), 9)?, 3, 3)
                    .with_context(|| format!("client{client} to n{}", node + 1))?;
            }
            ensure!(get_in(&swarm.client(1), at(node_address(node), 7001))?.contains(":81"), "the second port of the service");
        }
        Ok(())
    }),
    ("K1 published port: every node's address, UDP, answered from where it was asked", |swarm| {
        for node in 0..NODES {
            let mut tasks = BTreeMap::new();
            for turn in 0..6 {
                let answer = ask_udp(&swarm.client(1), at(node_address(node), 7000), &format!("turn {turn}"))?;
                let Ok(answer) = answer else { bail!("n{}: {answer:?}", node + 1) };
                ensure!(answer.ends_with(&format!("turn {turn}")) && answer.contains(CLIENTS[0].1), "{answer}");
                *tasks.entry(first_word(&answer)).or_insert(0) += 1;
            }
            ensure!(tasks.len() == 3, "6 datagrams through n{}: {tasks:?}", node + 1);
        }
        Ok(())
    }),
    ("S1 the task sees the client's own address, from outside and from every node", |swarm| {
        for node in 0..NODES {
            for (client, address) in CLIENTS {
                let seen = remote(&get_in(&swarm.client(client), at(node_address(node), 7000))?)?;
                ensure!(seen == address.parse::<IpAddr>()?, "client{client} through n{}: {seen}", node + 1);
            }
            for other in 0..NODES {
                let seen = remote(&get_in(&swarm.node(node), at(node_address(other), 7000))?)?;
                ensure!(seen == node_address(node), "n{} to n{}: {seen}", node + 1, other + 1);
                let udp = ask_udp(&swarm.node(node), at(node_address(other), 7000), "x")?;
                ensure!(
                    udp.as_ref().is_ok_and(|a| a.contains(&node_address(node).to_string())),
                    "n{} to n{}: {udp:?}",
                    node + 1,
                    other + 1
                );
            }
        }
        Ok(())
    }),
    ("E45 127.0.0.1 answers on every node, IPv6 answers or refuses, never hangs", |swarm| {
        for node in 0..NODES {
            evenly(&spread_in(&swarm.node(node), "127.0.0.1:7000".parse()?, 9)?, 3, 3)?;
            let seen = remote(&get_in(&swarm.node(node), "127.0.0.1:7000".parse()?)?)?;
            ensure!(seen == node_address(node), "n{} by 127.0.0.1 is seen as {seen}", node + 1);
            for _ in 0..3 {
                let udp = ask_udp(&swarm.node(node), "127.0.0.1:7000".parse()?, "x")?;
                ensure!(udp.is_ok(), "n{} by 127.0.0.1, UDP: {udp:?}", node + 1);
            }
            let knock = knock_http(&swarm.node(node), "[::1]:7000".parse()?)?;
            ensure!(knock != Knock::Silent, "[::1] on n{}: {knock:?}", node + 1);
            let knock = knock_http(&swarm.client(1), format!("[2001:db8::{}]:7000", 11 + node).parse()?)?;
            ensure!(knock != Knock::Silent, "n{}'s IPv6 address: {knock:?}", node + 1);
        }
        Ok(())
    }),
    ("S37 one port of a client speaks to one task through every node at once, TCP and UDP", |swarm| {
        let targets: Vec<_> = (0..NODES).map(|node| at(node_address(node), 7013)).collect();
        speak_from_one_port(&swarm.client(1), &targets)
    }),
    ("S2 any local address of the node answers, its own bridges' included", |swarm| {
        for address in ["172.17.0.1:7000", "172.18.0.1:7000", "192.0.2.11:7000", "127.0.0.53:7000"] {
            ensure!(knock_tcp(&swarm.node(0), address.parse()?)? == Knock::Open, "{address}");
        }
        Ok(())
    }),
    ("S3 a task, and a plain container, reach published ports through every node", |swarm| {
        for caller in swarm.containers("api")?.iter().chain(&[swarm.plain()?]) {
            for node in 0..NODES {
                for _ in 0..3 {
                    get_in(&caller.namespace, at(node_address(node), 7000)).with_context(|| format!("{caller:?} to n{}", node + 1))?;
                }
                let udp = ask_udp(&caller.namespace, at(node_address(node), 7000), "x")?;
                ensure!(udp.is_ok(), "{caller:?} to n{}, UDP: {udp:?}", node + 1);
            }
        }
        Ok(())
    }),
    ("S16 large answers and large questions pass whole, by port and by VIP", |swarm| {
        let vip = swarm.vip("web", "back")?;
        let caller = swarm.first("api")?;
        let places = (0..NODES).map(|node| (swarm.client(1), at(node_address(node), 7000))).chain([(caller.namespace, at(vip, 80))]);
        for (namespace, target) in places {
            for _ in 0..3 {
                let answer = fetch(&namespace, target, "/bytes?n=300000").with_context(|| target.to_string())?;
                ensure!(answer.len() > 300_000, "{target}: {} bytes", answer.len());
                let mut held = Held::open(&namespace, target)?;
                held.say(&"x".repeat(100_000)).with_context(|| format!("100000 bytes to {target} and back"))?;
            }
        }
        Ok(())
    }),
    ("E31 a VIP balances any TCP port evenly across the nodes; the server sees the calling task", |swarm| {
        let vip = swarm.vip("web", "back")?;
        for caller in swarm.containers("api")? {
            for port in [80, 81] {
                evenly(&spread_in(&caller.namespace, at(vip, port), 9)?, 3, 3).with_context(|| caller.task.clone())?;
                let seen = remote(&get_in(&caller.namespace, at(vip, port))?)?;
                ensure!(seen == caller.address("back")?, "{} is seen as {seen}", caller.task);
            }
        }
        Ok(())
    }),
    ("E31 a VIP balances UDP, answered from the VIP", |swarm| {
        let vip = swarm.vip("web", "back")?;
        for caller in swarm.containers("api")? {
            let mut seen = BTreeMap::new();
            for _ in 0..6 {
                let answer = ask_udp(&caller.namespace, at(vip, 53), "x")?;
                let Ok(answer) = answer else { bail!("{}: {answer:?}", caller.task) };
                ensure!(answer.contains(&caller.address("back")?.to_string()), "{answer}");
                *seen.entry(first_word(&answer)).or_insert(0) += 1;
            }
            ensure!(seen.len() == 3, "{seen:?}");
        }
        Ok(())
    }),
    ("E31 K6 hairpin: a task reaches itself through its own VIP, TCP and UDP", |swarm| {
        let vip = swarm.vip("web", "back")?;
        for task in swarm.containers("web")? {
            evenly(&spread_in(&task.namespace, at(vip, 80), 9)?, 3, 3).with_context(|| task.task.clone())?;
            for _ in 0..3 {
                let udp = ask_udp(&task.namespace, at(vip, 53), "x")?;
                ensure!(udp.is_ok(), "{}: UDP to its own VIP: {udp:?}", task.task);
            }
        }
        Ok(())
    }),
    ("S5 ICMP echo to a VIP answers", |swarm| {
        let vip = swarm.vip("web", "back")?.to_string();
        for caller in swarm.containers("api")?.iter().chain(&swarm.containers("web")?) {
            swarm.inside(caller, &["ping", "-c", "1", "-W", "2", &vip])?;
        }
        Ok(())
    }),
    ("E1 by name: Docker's resolver says the VIP, and the VIP answers", |swarm| {
        let vip = swarm.vip("web", "back")?;
        for caller in swarm.containers("api")? {
            let answer = swarm.inside(&caller, &["wget", "-q", "-O", "-", "http://web:81/"])?;
            ensure!(field(&answer, "service").as_deref() == Some("web"), "{answer}");
            let names = swarm.inside(&caller, &["nslookup", "web"]).unwrap_or_else(|e| format!("{e:#}"));
            ensure!(names.contains(&vip.to_string()), "{names}");
        }
        Ok(())
    }),
    ("E21 S6 a VIP of a network that the task is not in is not reached", |swarm| {
        let vip = swarm.vip("elsewhere", "other")?;
        ensure!(knock_tcp(&swarm.first("api")?.namespace, at(vip, 80))? != Knock::Open, "{vip} is reached from another network");
        let own = swarm.first("elsewhere")?;
        ensure!(knock_tcp(&own.namespace, at(vip, 80))? == Knock::Open, "{vip} from its own network");
        Ok(())
    }),
    ("E22 dnsrr: no VIP; its tasks answer by name", |swarm| {
        ensure!(swarm.vip("rr", "back").is_err(), "Docker gave it a VIP");
        let (caller, task) = (swarm.first("api")?, swarm.first("rr")?);
        ensure!(swarm.inside(&caller, &["wget", "-q", "-O", "-", "http://rr/"])?.contains("service: rr"), "by name");
        get_in(&caller.namespace, at(task.address("back")?, 80)).map(drop)
    }),
    ("S17 an attached plain container: it reaches VIPs, services reach it", |swarm| {
        let plain = swarm.plain()?;
        let vip = swarm.vip("web", "back")?;
        evenly(&spread_in(&plain.namespace, at(vip, 80), 9)?, 3, 3)?;
        ensure!(remote(&get_in(&plain.namespace, at(vip, 81))?)? == plain.address("back")?, "seen with another address");
        ensure!(ask_udp(&plain.namespace, at(vip, 53), "x")?.is_ok(), "UDP");
        ensure!(swarm.inside(&plain, &["wget", "-q", "-O", "-", "http://api/"])?.contains("service: api"), "by name");
        let answer = swarm.inside(&swarm.first("api")?, &["wget", "-q", "-O", "-", "http://plain/"])?;
        ensure!(answer.contains("task: plain"), "{answer}");
        Ok(())
    }),
    ("K4 affinity: a client stays with its task by port and by VIP", |swarm| {
        for (client, _) in CLIENTS {
            let spread = spread_in(&swarm.client(client), at(node_address(0), 7002), 12)?;
            ensure!(spread.len() == 1, "client{client} was moved: {spread:?}");
        }
        let spread = spread_in(&swarm.first("api")?.namespace, at(swarm.vip("sticky", "back")?, 80), 12)?;
        ensure!(spread.len() == 1, "by VIP: {spread:?}");
        Ok(())
    }),
    ("K8 source=local: only the node with the task answers, the others refuse; health says which", |swarm| {
        let home = swarm.first("near")?.node;
        for node in 0..NODES {
            let knock = knock_tcp(&swarm.client(1), at(node_address(node), 7003))?;
            let (code, body) = swarm.admin(node, "/v1/health/published/tcp/7003")?;
            let expected = if node == home { (Knock::Open, 200) } else { (Knock::Refused, 503) };
            ensure!((knock, code) == expected, "n{} (home is n{}): {knock:?}, health {code} {body}", node + 1, home + 1);
        }
        ensure!(remote(&get_in(&swarm.client(1), at(node_address(home), 7003))?)?.to_string() == CLIENTS[0].1, "the client's address");
        Ok(())
    }),
    ("S8 source=snat: the task sees the entry node's ingress address", |swarm| {
        for node in 0..NODES {
            for _ in 0..2 {
                let IpAddr::V4(seen) = remote(&get_in(&swarm.client(1), at(node_address(node), 7004))?)? else { bail!("IPv6") };
                ensure!(seen.octets()[..3] == [10, 0, 0], "{seen}");
            }
        }
        Ok(())
    }),
    ("S9 bind: published on the named addresses, refused on the others", |swarm| {
        ensure!(knock_tcp(&swarm.client(1), at(node_address(0), 7005))? == Knock::Open, "on 192.0.2.11");
        ensure!(knock_tcp(&swarm.client(1), at(node_address(1), 7005))? == Knock::Refused, "on 192.0.2.12");
        ensure!(knock_tcp(&swarm.node(1), "127.0.0.1:7005".parse()?)? == Knock::Open, "on 127.0.0.1 of n2");
        ensure!(knock_tcp(&swarm.node(1), at(node_address(1), 7005))? == Knock::Refused, "from n2 itself, on 192.0.2.12");
        Ok(())
    }),
    ("K14 enable=false: not ours, not touched; switched on by an update and off again", |swarm| {
        let target = at(node_address(0), 7007);
        ensure!(knock_tcp(&swarm.client(1), target)? == Knock::Refused, "somebody answers");
        swarm.update("off", &["--label-rm", "swarmesh.enable"])?;
        swarm.wait("it is served", 10, || Ok(knock_tcp(&swarm.client(1), target)? == Knock::Open))?;
        swarm.update("off", &["--label-add", "swarmesh.enable=false"])?;
        swarm.wait("it is left alone", 10, || Ok(knock_tcp(&swarm.client(1), target)? == Knock::Refused))
    }),
    ("E44 host mode is Docker's: it answers only where the task runs, and as before", |swarm| {
        let home = swarm.first("direct")?.node;
        for node in 0..NODES {
            let knock = knock_tcp(&swarm.client(1), at(node_address(node), 7008))?;
            ensure!((knock == Knock::Open) == (node == home), "n{} (home is n{}): {knock:?}", node + 1, home + 1);
        }
        Ok(())
    }),
    ("E41 K5 no task: refused at once, by VIP and by port, TCP and UDP", |swarm| {
        let vip = swarm.vip("nobody", "back")?;
        let caller = swarm.first("api")?.namespace;
        for (namespace, tcp, udp) in
            [(swarm.client(1), at(node_address(0), 7009), at(node_address(0), 7009)), (caller, at(vip, 80), at(vip, 53))]
        {
            let start = Instant::now();
            ensure!(knock_tcp(&namespace, tcp)? == Knock::Refused, "tcp {tcp}");
            let answer = ask_udp(&namespace, udp, "x")?;
            ensure!(answer == Err(Knock::Refused), "udp {udp}: {answer:?}");
            ensure!(start.elapsed() < Duration::from_millis(500), "refused after {:?}", start.elapsed());
        }
        ensure!(swarm.admin(0, "/v1/health/published/tcp/7009")?.0 == 503, "health of a port without tasks");
        ensure!(swarm.admin(0, "/v1/health/published/tcp/7000")?.0 == 200, "health of a port with tasks");
        Ok(())
    }),
    ("S33 a task of the entry node is reached past the ingress sandbox", |swarm| {
        for container in swarm.containers("web")? {
            let target = at(node_address(container.node), 7000);
            let (_, told) = swarm.admin(container.node, &format!("/v1/explain?target=tcp%3A%2F%2F{target}"))?;
            ensure!(told.contains("reached straight over docker_gwbridge, at 172."), "n{}: {told}", container.node + 1);
            let tracked = || printed(&swarm.node(container.node), &["conntrack", "-L", "-p", "tcp", "--orig-port-dst", "7000"]);
            spread_in(&swarm.client(1), target, 3)?;
            let sandbox = printed(&swarm.sandbox(container.node)?, &["ip", "-4", "-o", "addr", "show"])?;
            let past = tracked()?.lines().any(|line| {
                let answers = line.split("src=").nth(2).and_then(|rest| rest.split(' ').next()).unwrap_or_default();
                !answers.is_empty() && !sandbox.contains(&format!(" {answers}/"))
            });
            ensure!(past, "n{}: all of {}", container.node + 1, tracked()?);
        }
        Ok(())
    }),
    ("S12 restarted agents with nothing to change write nothing", |swarm| {
        let web = swarm.containers("web")?;
        let mut places: Vec<PathBuf> = web.iter().map(|c| c.namespace.clone()).collect();
        for node in 0..NODES {
            places.extend([swarm.node(node), swarm.sandbox(node)?]);
        }
        let before = places.iter().map(|p| generation(p)).collect::<Result<Vec<_>>>()?;
        for node in 0..NODES {
            swarm.stop_agent(node, Signal::SIGTERM)?;
            swarm.start_agent(node)?;
        }
        for node in 0..NODES {
            swarm.connected(node)?;
        }
        sleep(Duration::from_millis(500));
        for (place, before) in places.iter().zip(before) {
            let after = generation(place)?;
            ensure!(before.contains("table inet swarmesh"), "no table of ours in {}", place.display());
            let new: Vec<&str> = after.lines().filter(|l| !before.lines().any(|b| b == *l)).collect();
            ensure!(before == after, "{}: written: {new:?}", place.display());
        }
        for node in 0..NODES {
            let plane = swarm.status(node)?["plane"].clone();
            ensure!(plane["commits"] == 0 && plane["errors"] == 0, "n{}: {plane}", node + 1);
        }
        Ok(())
    }),
    ("E37 K13 a foreign flush of our table is healed within a second, in every namespace", |swarm| {
        let caller = swarm.first("api")?;
        let vip = swarm.vip("web", "back")?;
        let target = at(node_address(caller.node), 7000);
        for place in [swarm.node(caller.node), swarm.sandbox(caller.node)?, caller.namespace.clone()] {
            for words in [&["nft", "flush", "table", "inet", "swarmesh"][..], &["nft", "delete", "table", "inet", "swarmesh"]] {
                let start = Instant::now();
                printed(&place, words)?;
                loop {
                    // Shorter than a SYN's retransmission: what is asked is when the way is there again.
                    let outside = knock_tcp_for(&swarm.client(1), target, Duration::from_millis(100))?;
                    let inside = knock_tcp_for(&caller.namespace, at(vip, 80), Duration::from_millis(100))?;
                    if outside == Knock::Open && inside == Knock::Open {
                        break;
                    }
                    ensure!(
                        start.elapsed() < Duration::from_secs(1),
                        "{words:?} in {} is not healed after a second: {outside:?} from outside, {inside:?} from inside",
                        place.display()
                    );
                }
            }
        }
        Ok(())
    }),
    ("E24 scale up under load: 0 failed, and the new tasks are used", |swarm| {
        let clients = Clients::start(swarm, 7000)?;
        swarm.scale("web", 6)?;
        sleep(Duration::from_secs(1));
        let outcome = clients.stop()?;
        ensure!(outcome.tasks.len() == 6, "{:?}", outcome.tasks);
        Ok(())
    }),
    ("E25 scale down under load: 0 failed, and held connections last as long as their tasks", |swarm| {
        let clients = Clients::start(swarm, 7000)?;
        let mut held = (0..NODES).map(|node| Held::open(&swarm.client(1), at(node_address(node), 7000))).collect::<Result<Vec<_>>>()?;
        swarm.docker(&["service", "scale", "--detach", "web=3"])?;
        sleep(Duration::from_millis(1200));
        for connection in &mut held {
            connection.talk().context("a connection was cut while its task still ran")?;
        }
        swarm.settled("web", 3)?;
        sleep(Duration::from_millis(500));
        clients.stop().map(drop)
    }),
    ("S20 rolling update start-first with a health check under load: 0 failed", |swarm| {
        swarm.create(
            "roll",
            3,
            &[&["--publish", "7010:80", "--network", "back", "--update-order", "start-first"], &SERVES_ALL[..], &LINGERS, &HEALTH].concat(),
        )?;
        swarm.settled("roll", 3)?;
        let clients = Clients::start(swarm, 7010)?;
        let caller = swarm.first("api")?;
        let inside = Load::start(&caller.namespace, vec![at(swarm.vip("roll", "back")?, 80)], 20)?;
        swarm.roll("roll", 3, &["--force"])?;
        let (outside, inside) = (clients.stop(), inside.stop());
        ensure!(inside.failed == 0 && inside.attempted > 20, "by VIP: {inside:?}");
        ensure!(outside?.tasks.len() >= 6, "not all tasks were used");
        Ok(())
    }),
    ("S21 rolling update stop-first of three replicas under load: 0 failed", |swarm| {
        let clients = Clients::start(swarm, 7010)?;
        swarm.roll("roll", 3, &["--update-order", "stop-first", "--force"])?;
        clients.stop().map(drop)
    }),
    ("E38 K3 ports come and go by updates, and the one that stays is not disturbed", |swarm| {
        let target = at(node_address(2), 7011);
        let clients = Clients::start(swarm, 7010)?;
        swarm.roll("roll", 3, &["--update-order", "start-first", "--publish-add", "7011:81"])?;
        evenly(&spread_in(&swarm.client(1), target, 6)?, 3, 2)?;
        clients.stop().context("while the port came")?;
        let clients = Clients::start(swarm, 7010)?;
        swarm.update("roll", &["--publish-rm", "81"])?;
        swarm.wait("the port is closed", 10, || {
            let knock = knock_tcp(&swarm.client(1), target)?;
            ensure!(knock != Knock::Silent, "no answer while the port goes");
            Ok(knock == Knock::Refused)
        })?;
        swarm.wait("the update is complete", 60, || {
            Ok(swarm.lab.borrow().api(0, "/services/roll")?["UpdateStatus"]["State"] == "completed" && swarm.containers("roll")?.len() == 3)
        })?;
        clients.stop().map(drop)
    }),
    ("K10 an unhealthy task gets nothing new from its own node, while it still answers and until it is replaced", |swarm| {
        let before = swarm.containers("roll")?;
        let sick = before.first().context("no task")?;
        // Health is not in the swarm's state: other nodes hear of the task when it has ended.
        let load = Load::start(&swarm.client(1), vec![at(node_address(sick.node), 7010)], 100)?;
        // Its health check fails from now on; everything else goes on until the swarm replaces it.
        swarm.inside(sick, &["sh", "-c", ": > /tmp/sick"])?;
        swarm.wait("it is replaced", 60, || Ok(!swarm.containers("roll")?.iter().any(|c| c.id == sick.id)))?;
        swarm.settled("roll", 3)?;
        let outcome = load.stop();
        ensure!(outcome.attempted > 50 && outcome.failed == 0, "{outcome:?}");
        Ok(())
    }),
    ("E34 E35 service rm: its port never hangs and is refused; re-created with the same port it answers", |swarm| {
        let target = at(node_address(1), 7010);
        swarm.docker(&["service", "rm", "roll"])?;
        let start = Instant::now();
        loop {
            match knock_tcp(&swarm.client(1), target)? {
                Knock::Silent => bail!("it hangs {:?} after the removal", start.elapsed()),
                Knock::Refused => break,
                // Its last tasks serve on for as long as they live.
                Knock::Open => ensure!(start.elapsed() < Duration::from_secs(8), "still open"),
            }
            sleep(Duration::from_millis(20));
        }
        for node in 0..NODES {
            swarm.wait("the port is closed on every node", 3, || {
                Ok(knock_tcp(&swarm.client(2), at(node_address(node), 7010))? == Knock::Refused)
            })?;
        }
        swarm.create("roll", 2, &["--publish", "7010:80", "--network", "back"])?;
        swarm.settled("roll", 2)?;
        for node in 0..NODES {
            swarm.wait("both tasks are used", 3, || {
                evenly(&spread_in(&swarm.client(1), at(node_address(node), 7010), 4)?, 2, 2).map(|()| true)
            })?;
        }
        evenly(&spread_in(&swarm.first("api")?.namespace, at(swarm.vip("roll", "back")?, 80), 4)?, 2, 2)?;
        swarm.remove("roll")
    }),
    ("E35 a network is added to a running service and removed again: its VIP there comes and goes", |swarm| {
        let caller = swarm.first("elsewhere")?;
        let roll = |option: &str| swarm.roll("api", 2, &[option, "other"]);
        roll("--network-add")?;
        let vip = swarm.vip("api", "other")?;
        swarm.wait("the VIP in the new network answers", 20, || Ok(knock_tcp(&caller.namespace, at(vip, 80))? == Knock::Open))?;
        evenly(&spread_in(&caller.namespace, at(vip, 80), 8)?, 2, 4)?;
        let seen = remote(&get_in(&caller.namespace, at(vip, 80))?)?;
        ensure!(seen == caller.address("other")?, "seen as {seen}");
        ensure!(swarm.inside(&caller, &["wget", "-q", "-O", "-", "http://api/"])?.contains("service: api"), "by name");
        let old = swarm.vip("api", "back")?;
        evenly(&spread_in(&swarm.plain()?.namespace, at(old, 80), 8)?, 2, 4)?;
        roll("--network-rm")?;
        ensure!(swarm.vip("api", "other").is_err(), "Docker left it a VIP");
        swarm.wait("the VIP is gone", 20, || Ok(knock_tcp(&caller.namespace, at(vip, 80))? != Knock::Open))?;
        evenly(&spread_in(&swarm.plain()?.namespace, at(swarm.vip("api", "back")?, 80), 8)?, 2, 4)
    }),
    ("K11 a UDP flow moves on when its task is killed, by port and by VIP", |swarm| {
        let vip = swarm.vip("web", "back")?;
        for (namespace, target) in [(swarm.client(1), at(node_address(0), 7000)), (swarm.first("api")?.namespace, at(vip, 53))] {
            let socket = within(&namespace, move || udp_socket(target))??;
            let Ok(answer) = ask(&socket, "x")? else { bail!("no answer from {target}") };
            let task = first_word(&answer);
            let container = swarm.containers("web")?.into_iter().find(|c| c.task.starts_with(&task)).context("the task that answered")?;
            swarm.lab.borrow().docker(container.node, &["kill", &container.id])?;
            let start = Instant::now();
            swarm.wait("another task answers", 5, || Ok(ask(&socket, "x")?.is_ok_and(|a| !a.starts_with(&task))))?;
            eprintln!("        {:?} until another task answers the flow to {target}", start.elapsed());
            swarm.settled("web", 3)?;
        }
        Ok(())
    }),
    ("S22 kill -9 and restart of every agent under load: 0 failed, 0 reset", |swarm| {
        let mut held = (0..NODES).map(|node| Held::open(&swarm.client(1), at(node_address(node), 7000))).collect::<Result<Vec<_>>>()?;
        let clients = Clients::start(swarm, 7000)?;
        for node in 0..NODES {
            swarm.stop_agent(node, Signal::SIGKILL)?;
        }
        sleep(Duration::from_secs(1));
        for node in 0..NODES {
            swarm.start_agent(node)?;
        }
        for node in 0..NODES {
            swarm.connected(node)?;
        }
        sleep(Duration::from_secs(1));
        for connection in &mut held {
            connection.talk()?;
        }
        clients.stop().map(drop)
    }),
    ("S25 what happened while no agent ran is caught up with", |swarm| {
        for node in 0..NODES {
            swarm.stop_agent(node, Signal::SIGKILL)?;
        }
        let before: Vec<String> = swarm.containers("web")?.into_iter().map(|c| c.id).collect();
        swarm.update("web", &["--force", "--update-parallelism", "0"])?;
        swarm.wait("all tasks are replaced", 60, || {
            let now = swarm.containers("web")?;
            Ok(now.len() == 3 && now.iter().all(|c| !before.contains(&c.id)))
        })?;
        for node in 0..NODES {
            swarm.start_agent(node)?;
        }
        swarm.settled("web", 3)?;
        let vip = swarm.vip("web", "back")?;
        for node in 0..NODES {
            evenly(&spread_in(&swarm.client(1), at(node_address(node), 7000), 9)?, 3, 3)?;
        }
        evenly(&spread_in(&swarm.first("api")?.namespace, at(vip, 80), 9)?, 3, 3)
    }),
    ("S26 an engine that hangs: the agent says so, keeps everything, and goes on when the engine does", |swarm| {
        // Docker itself takes the overlay's way to a silent node down after a few seconds, and the swarm starts its tasks again
        // elsewhere: what must not notice is the traffic to the others.
        swarm.create("calm", 2, &["--publish", "7012:80", "--constraint", "node.hostname!=n3"])?;
        swarm.settled("calm", 2)?;
        let clients = Clients::start(swarm, 7012)?;
        ensure!(swarm.containers("web")?.iter().any(|c| c.node == 2), "n3 has no task of web");
        let before = (lost_ways(swarm, 0, "web")?, lost_ways(swarm, 1, "web")?);
        swarm.lab.borrow().signal_engine(2, Signal::SIGSTOP)?;
        // E33: the managers hold the node for down after fifteen seconds; the others' overlays have lost it long before.
        let lost = swarm.wait("the others have lost the ways to the node", 20, || {
            Ok(lost_ways(swarm, 0, "web")? > before.0 && lost_ways(swarm, 1, "web")? > before.1)
        });
        let avoided = lost.and_then(|()| {
            let load = Load::start(&swarm.client(1), vec![at(node_address(0), 7000), at(node_address(1), 7000)], 30)?;
            sleep(Duration::from_secs(3));
            none_failed(load)
        });
        let noticed = swarm.wait("status says disconnected", 40, || Ok(swarm.status(2)?["source"]["connected"] == false));
        let kept = (0..6).try_for_each(|_| get_in(&swarm.client(1), at(node_address(2), 7012)).map(drop));
        let outcome = clients.stop();
        swarm.lab.borrow().signal_engine(2, Signal::SIGCONT)?;
        noticed?;
        kept.context("through the node itself")?;
        outcome?;
        avoided?;
        swarm.connected(2)?;
        swarm.settled("web", 3)?;
        swarm.overlays_converged(7000, 3)?;
        swarm.remove("calm")
    }),
    ("S27 an engine that is killed and comes back: traffic to the other tasks goes on", |swarm| {
        let stay = swarm.containers("web")?.into_iter().filter(|c| c.node != 2).map(|c| c.task).collect::<Vec<_>>();
        swarm.lab.borrow_mut().stop_engine(2, Signal::SIGKILL)?;
        swarm.wait("status says disconnected", 20, || Ok(swarm.status(2)?["source"]["connected"] == false))?;
        // Its containers go on: nothing needs to fail.
        let clients = Clients::start(swarm, 7000)?;
        sleep(Duration::from_secs(2));
        let outcome = clients.stop();
        swarm.lab.borrow_mut().start_engine(2)?;
        swarm.lab.borrow_mut().wait_for_engine(2)?;
        // Whatever came out, the rows after this one find a whole swarm.
        swarm.connected(2)?;
        swarm.settled("web", 3)?;
        swarm.overlays_converged(7000, 3)?;
        let outcome = outcome?;
        ensure!(stay.iter().all(|task| outcome.tasks.keys().any(|t| task.starts_with(t.as_str()))), "{:?}", outcome.tasks);
        Ok(())
    }),
    ("E33 a drained node: its tasks move under load with 0 failed, and its address goes on to answer", |swarm| {
        if !swarm.containers("web")?.iter().any(|c| c.node == 2) {
            // A swarm leaves a node that comes back without tasks until something is placed anew.
            swarm.update("web", &["--force"])?;
            swarm.wait("n3 has a task", 60, || Ok(swarm.containers("web")?.iter().any(|c| c.node == 2)))?;
            swarm.settled("web", 3)?;
            swarm.overlays_converged(7000, 3)?;
        }
        let clients = Clients::start(swarm, 7000)?;
        swarm.docker(&["node", "update", "--availability", "drain", "n3"])?;
        let moved = swarm.wait("the tasks are elsewhere", 60, || {
            let now = swarm.containers("web")?;
            Ok(now.len() == 3 && now.iter().all(|c| c.node != 2))
        });
        let outcome = moved.and_then(|()| swarm.settled("web", 3)).and_then(|()| clients.stop());
        let answer = get_in(&swarm.client(1), at(node_address(2), 7000));
        swarm.docker(&["node", "update", "--availability", "active", "n3"])?;
        outcome?;
        answer.map(drop)
    }),
    ("S14 uninstall leaves Docker's rules as they were, and an agent brings ours back", |swarm| {
        swarm.stop_agent(0, Signal::SIGTERM)?;
        let state = agents::state_dir(&swarm.lab.borrow(), 0)?;
        let said = swarm.agents.borrow().swarmesh(&swarm.lab.borrow(), 0, &["uninstall", "--state-dir", &state.to_string_lossy()])?;
        ensure!(said.contains("removed") && !said.contains("FAILED"), "{said}");
        let forgotten = !state.exists();
        let left = left_of_ours(swarm, 0);
        let knock = knock_tcp(&swarm.client(1), at(node_address(0), 7000));
        swarm.start_agent(0)?;
        left?;
        ensure!(knock? == Knock::Refused, "somebody answers without an agent");
        ensure!(forgotten, "the state directory is left");
        swarm.connected(0)?;
        swarm.settled("web", 3)?;
        evenly(&spread_in(&swarm.client(1), at(node_address(0), 7000), 9)?, 3, 3)
    }),
    ("S28 nothing went wrong in the agents", |swarm| {
        for node in 0..NODES {
            let status = swarm.status(node)?;
            ensure!(status["problems"] == Value::Array(Vec::new()), "n{}: {}", node + 1, status["problems"]);
            ensure!(status["pending"] == Value::Array(Vec::new()), "n{}: {}", node + 1, status["pending"]);
            let log = fs::read_to_string(agents::log(&swarm.lab.borrow(), node)?)?;
            let bad: Vec<&str> = log.lines().filter(|l| l.contains("ERROR") || l.contains("panicked")).collect();
            ensure!(bad.is_empty(), "n{}: {bad:?}", node + 1);
        }
        Ok(())
    }),
];

#[test]
fn swarm_rows() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let swarm = Swarm::up().unwrap();
    // Whatever the rows say, nothing may stay.
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&swarm, ROWS)));
    if outcome.is_err()
        && let Some(keep) = std::env::var_os("SWARM_LOGS")
    {
        for node in 0..NODES {
            let log = agents::log(&swarm.lab.borrow(), node).unwrap();
            let _copied = fs::copy(log, Path::new(&keep).join(format!("n{}.log", node + 1)));
        }
    }
    drop(swarm);
    assert_eq!(residue(PREFIX), Vec::<String>::new());
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}
