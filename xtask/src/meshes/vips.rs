//! E27–E35: VIPs and what is bound to them.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::Path,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use swarmesh_tests::{dockerlab::Container, lab::Held, netns::within};

use super::{
    Facts,
    sampler::{Sampler, exchange, tcp, tcp_times, udp, udp_socket},
    seen::{Reach, Saw},
    swarm::{SERVES, Swarm, at},
};

/// How long is looked for something that may never come.
const LOOK: Duration = Duration::from_secs(40);
/// After a change, before the load ends: what fails late is seen, too.
const AFTERMATH: Duration = Duration::from_secs(8);

pub(super) fn start_first(swarm: &Swarm, facts: &mut Facts) -> Result<()> {
    swarm.create("one", 1, &[&["--network", "back", "--update-order", "start-first"], &SERVES[..]].concat())?;
    swarm.runs("one", 1)?;
    let (vip, api) = (swarm.vip("one", "back")?, swarm.task("api")?);
    swarm.until(LOOK, || Ok(tcp(&api.namespace, at(vip, 80))?.answered()))?;
    let load = Sampler::start(&api.namespace, &[at(vip, 80)])?;
    swarm.roll("one", 1, &["--force"])?;
    sleep(AFTERMATH);
    facts.put("one replica is replaced start-first: new connections to its VIP", Saw::load(&load.stop()))?;
    facts.put("its VIP afterwards", if swarm.vip("one", "back")? == vip { Saw::Same } else { Saw::Changed })?;
    swarm.remove("one")
}

/// One of two tasks is told to stop, serves on for eight seconds, and ends.
pub(super) fn leaving(swarm: &Swarm, facts: &mut Facts) -> Result<()> {
    swarm.create("leave", 2, &[&["--network", "back", "--publish", "7020:80"], &SERVES[..]].concat())?;
    swarm.runs("leave", 2)?;
    swarm.all_answer(7020, 2)?;
    let api = swarm.task("api")?;
    let before = swarm.tasks("leave")?;
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(Held::open(&swarm.client(), swarm.at(0, 7020))?);
        held.push(Held::open(&api.namespace, at(swarm.vip("leave", "back")?, 80))?);
    }
    let load = Sampler::start(&swarm.client(), &swarm.everywhere(7020))?;
    sleep(Duration::from_secs(2));
    let told = load.now();
    swarm.scale("leave", 1)?;
    // Who leaves is known when it is gone; until then all held connections are tried, and all names looked up.
    let mut cuts: Vec<Option<Duration>> = vec![None; held.len()];
    let mut names: Vec<(Duration, Vec<IpAddr>)> = Vec::new();
    let mut last_seen = told;
    let gone = loop {
        for (connection, cut) in held.iter_mut().zip(&mut cuts) {
            if cut.is_none() && connection.talk().is_err() {
                *cut = Some(load.now());
            }
        }
        names.push((load.now(), swarm.resolve(&api.namespace, "tasks.leave")?.unwrap_or_default()));
        let now = swarm.tasks("leave")?;
        if let Some(gone) = before.iter().find(|b| now.iter().all(|n| n.id != b.id)) {
            break gone.clone();
        }
        last_seen = load.now();
        sleep(Duration::from_millis(300));
        ensure!(load.now() < told + LOOK * 2, "no task leaves");
    };
    sleep(AFTERMATH);
    let samples = load.stop();
    let end = last_seen - told;
    let last = samples.iter().filter(|s| s.at > told && s.reach.task().is_some_and(|task| same(&gone, task))).map(|s| s.at - told).max();
    facts.row("E28").put("a leaving task that serves on: how long `tasks.` names it", {
        let own = gone.address("back")?;
        let last = names.iter().filter(|(_, found)| found.contains(&own)).map(|(at, _)| at.saturating_sub(told)).max();
        Saw::Last { last, end }
    })?;
    facts.row("E30").put("a leaving task that serves on: how long it gets new connections", Saw::Last { last, end })?;
    for (place, first) in [("by port", 0), ("by VIP", 1)] {
        let Some(number) = (first..held.len()).step_by(2).find(|n| same(&gone, held[*n].task())) else {
            facts
                .put(&format!("a connection to it that is held {place}"), Saw::NotObserved("no held connection was its own".to_owned()))?;
            continue;
        };
        // Its server ends before its container does.
        let saw = Saw::Last { last: Some(cuts[number].unwrap_or(last_seen) - told), end };
        facts.put(&format!("a connection to it that is held {place}"), saw)?;
    }
    facts.put("new connections by port meanwhile", Saw::load(&samples))?;
    Ok(())
}

/// Goes on with the one task that `leaving` left, and another one.
pub(super) fn killed(swarm: &Swarm, facts: &mut Facts) -> Result<()> {
    swarm.scale("leave", 2)?;
    swarm.runs("leave", 2)?;
    swarm.all_answer(7020, 2)?;
    let load = Sampler::start(&swarm.client(), &swarm.everywhere(7020))?;
    sleep(Duration::from_secs(2));
    let victim = swarm.task("leave")?;
    let told = load.now();
    swarm.lab().docker(victim.node, &["kill", &victim.id])?;
    swarm.wait("another task is there", || {
        let now = swarm.tasks("leave")?;
        Ok(now.len() == 2 && now.iter().all(|task| task.id != victim.id))
    })?;
    sleep(AFTERMATH);
    let samples = load.stop();
    facts.put("a task is killed: new connections by port", Saw::load(&samples))?;
    let late = samples.iter().filter(|s| s.at > told && !s.reach.answered()).map(|s| s.at - told).max();
    facts.put("the last of them that fails", late.map_or(Saw::NoFailure, Saw::After))?;
    swarm.remove("leave")?;

    let web = swarm.at(0, 7000);
    let (api, vip) = (swarm.task("api")?, swarm.vip("web", "back")?);
    for (what, namespace, target) in [("by port", swarm.client(), web), ("by VIP", api.namespace, at(vip, 53))] {
        swarm.runs("web", 3)?;
        swarm.all_answer(7000, 3)?;
        let socket = within(&namespace, move || udp_socket(target))??;
        let Reach::Answered { task, .. } = exchange(&socket) else {
            facts.put(&format!("a UDP flow {what} whose task is killed moves on"), Saw::NotObserved("no first answer".to_owned()))?;
            continue;
        };
        let victim = swarm.tasks("web")?.into_iter().find(|c| same(c, &task)).context("the task that answered")?;
        swarm.lab().docker(victim.node, &["kill", &victim.id])?;
        let saw = swarm.until(LOOK, || Ok(exchange(&socket).task().is_some_and(|now| now != task)))?;
        facts.put(&format!("a UDP flow {what} whose task is killed moves on"), saw)?;
    }
    swarm.runs("web", 3)?;
    swarm.all_answer(7000, 3)
}

pub(super) fn health(swarm: &Swarm, facts: &mut Facts) -> Result<()> {
    let check = ["--health-cmd", "test -e /tmp/well", "--health-interval", "1s", "--health-retries", "3", "--health-timeout", "10s"];
    let start = ["--health-start-period", "300s", "--network", "back", "--publish", "7021:80"];
    swarm.create("ill", 2, &[&check[..], &start, &SERVES].concat())?;
    swarm.wait("both tasks are there", || Ok(swarm.tasks("ill")?.len() == 2))?;
    let api = swarm.task("api")?;
    sleep(Duration::from_secs(5));
    facts.put("no task has passed its health check: a connection by port", Saw::Reach(tcp(&swarm.client(), swarm.at(0, 7021))?))?;
    let vip = swarm.vip("ill", "back")?;
    facts.put("by VIP", Saw::Reach(tcp(&api.namespace, at(vip, 80))?))?;
    facts.put("its name", swarm.name(&api.namespace, "ill", Some(vip), &[])?)?;
    let tasks = swarm.tasks("ill")?;
    for task in &tasks {
        swarm.inside(task, &["sh", "-c", ": > /tmp/well"])?;
    }
    swarm.runs("ill", 2)?;
    facts.put("healthy: it answers by port", swarm.until(LOOK, || Ok(tcp(&swarm.client(), swarm.at(0, 7021))?.answered()))?)?;
    swarm.all_answer(7021, 2)?;
    let load = Sampler::start(&swarm.client(), &swarm.everywhere(7021))?;
    let sick = tasks.first().context("no task")?;
    swarm.inside(sick, &["busybox", "rm", "/tmp/well"])?;
    let mut unhealthy = None;
    while let Some(state) = swarm.health(sick) {
        if state == "unhealthy" {
            unhealthy.get_or_insert(load.now());
        }
        sleep(Duration::from_millis(50));
        ensure!(load.now() < LOOK * 3, "it goes on unhealthy");
    }
    let end = load.now();
    swarm.wait("another one is there", || {
        let now = swarm.tasks("ill")?;
        Ok(now.len() == 2 && now.iter().all(|task| task.id != sick.id))
    })?;
    let samples = load.stop();
    facts.put(
        "one turns unhealthy and serves on until it is ended: how long it gets new connections",
        match unhealthy {
            None => Saw::NotObserved("it ended before its state was seen".to_owned()),
            Some(at) => {
                let last =
                    samples.iter().filter(|s| s.at > at && s.reach.task().is_some_and(|task| same(sick, task))).map(|s| s.at - at).max();
                Saw::Last { last, end: end - at }
            }
        },
    )?;
    facts.put("new connections by port meanwhile", Saw::load(&samples))?;
    swarm.remove("ill")
}

pub(super) fn vip(swarm: &Swarm, facts: &mut Facts) -> Result<()> {
    let (vip, api) = (swarm.vip("web", "back")?, swarm.task("api")?);
    let own = [api.address("back")?];
    for port in [80, 81] {
        let reaches = tcp_times(&api.namespace, at(vip, port), 9)?;
        facts.put(&format!("a task calls a VIP nine times, TCP port {port}"), Saw::Spread(reaches.clone()))?;
        facts.put(&format!("whom the server sees there, port {port}"), swarm.callers(&reaches, &own)?)?;
    }
    let reaches = (0..6).map(|_| udp(&api.namespace, at(vip, 53))).collect::<Result<Vec<_>>>()?;
    facts.put("six times by UDP", Saw::Spread(reaches.clone()))?;
    facts.put("whom the server sees by UDP", swarm.callers(&reaches, &own)?)?;
    let web = swarm.task("web")?;
    facts.put("a task calls its own service's VIP nine times", Saw::Spread(tcp_times(&web.namespace, at(vip, 80), 9)?))?;
    let reaches = (0..6).map(|_| udp(&web.namespace, at(vip, 53))).collect::<Result<Vec<_>>>()?;
    facts.put("six times by UDP to its own", Saw::Spread(reaches))?;
    let inside = swarm.inside(&api, &["ping", "-c", "1", "-W", "5", &vip.to_string()]).is_ok();
    facts.put("an ICMP echo to the VIP", if inside { Saw::Echo } else { Saw::Reach(Reach::Silent) })?;
    let outside = swarm.task("elsewhere")?;
    facts.put("a task that is not in the network calls the VIP", Saw::Reach(tcp(&outside.namespace, at(vip, 80))?))?;
    Ok(())
}

pub(super) fn to_dnsrr(swarm: &Swarm, facts: &mut Facts) -> Result<()> {
    swarm.create("mode", 2, &[&["--network", "back"], &SERVES[..]].concat())?;
    swarm.runs("mode", 2)?;
    let (vip, api) = (swarm.vip("mode", "back")?, swarm.task("api")?);
    swarm.until(LOOK, || Ok(tcp(&api.namespace, at(vip, 80))?.answered()))?;
    swarm.roll("mode", 2, &["--endpoint-mode", "dnsrr", "--force"])?;
    sleep(AFTERMATH);
    let addresses: Vec<IpAddr> = swarm.tasks("mode")?.iter().filter_map(|task| task.address("back").ok()).collect();
    facts.put("vip to dnsrr: where the name leads after the update", swarm.name(&api.namespace, "mode", Some(vip), &addresses)?)?;
    facts.put("a connection to the old VIP", Saw::Reach(tcp(&api.namespace, at(vip, 80))?))?;
    swarm.remove("mode")
}

pub(super) fn service_goes(swarm: &Swarm, facts: &mut Facts) -> Result<()> {
    swarm.create("gone", 2, &[&["--network", "back", "--publish", "7022:80"], &SERVES[..]].concat())?;
    swarm.runs("gone", 2)?;
    swarm.all_answer(7022, 2)?;
    let (vip, api) = (swarm.vip("gone", "back")?, swarm.task("api")?);
    swarm.remove("gone")?;
    let target = swarm.at(1, 7022);
    facts.put(
        "a service is removed, its tasks are gone: its port stops answering",
        swarm.until(LOOK, || Ok(!tcp(&swarm.client(), target)?.answered()))?,
    )?;
    facts.put("then a connection to its port", Saw::Reach(tcp(&swarm.client(), target)?))?;
    facts.put("to its VIP", Saw::Reach(tcp(&api.namespace, at(vip, 80))?))?;
    facts.put("its name goes", swarm.until(LOOK, || Ok(swarm.resolve(&api.namespace, "gone")?.is_none_or(|found| found.is_empty())))?)?;
    let web = swarm.vip("web", "back")?;
    facts.put("another service's name", swarm.name(&api.namespace, "web", Some(web), &[])?)?;
    Ok(())
}

pub(super) fn network_comes(swarm: &Swarm, facts: &mut Facts) -> Result<()> {
    swarm.create("wander", 2, &[&["--network", "back"], &SERVES[..]].concat())?;
    swarm.runs("wander", 2)?;
    let caller = swarm.task("elsewhere")?;
    swarm.roll("wander", 2, &["--network-add", "other"])?;
    let vip = swarm.vip("wander", "other")?;
    facts.put(
        "a network is added to a running service: its VIP there answers, counted from its tasks' restart",
        swarm.until(LOOK, || Ok(tcp(&caller.namespace, at(vip, 80))?.answered()))?,
    )?;
    sleep(AFTERMATH);
    facts.put("six calls", Saw::Spread(tcp_times(&caller.namespace, at(vip, 80), 6)?))?;
    swarm.roll("wander", 2, &["--network-rm", "other"])?;
    sleep(AFTERMATH);
    facts.put("the network is taken away: the VIP there", Saw::Reach(tcp(&caller.namespace, at(vip, 80))?))?;
    facts.put("its name there", swarm.name(&caller.namespace, "wander", Some(vip), &[])?)?;
    swarm.remove("wander")
}

/// The third node's cable is pulled, and put back.
pub(super) fn node_fails(swarm: &Swarm, facts: &mut Facts) -> Result<()> {
    ensure!(swarm.nodes() == 3, "a swarm of {} has no majority without a node", swarm.nodes());
    swarm.all_answer(7000, 3)?;
    let third = swarm.tasks("web")?.into_iter().filter(|task| task.node == 2).count();
    ensure!(third > 0, "the third node has no task");
    let lan = Path::new("/run/netns/meshes-lan");
    let cable = |state: &'static str| -> Result<()> {
        let output = within(lan, move || Command::new("ip").args(["link", "set", "n3", state]).output())??;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    let load = Sampler::start(&swarm.client(), &[swarm.at(0, 7000), swarm.at(1, 7000)])?;
    sleep(Duration::from_secs(2));
    let pulled = load.now();
    cable("down")?;
    sleep(LOOK);
    let samples = load.stop();
    cable("up")?;
    facts.put("a node loses its network: new connections by the others in 40 s", Saw::load(&samples))?;
    let late = samples.iter().filter(|s| s.at > pulled && !s.reach.answered()).map(|s| s.at - pulled).max();
    facts.put("the last of them that fails", late.map_or(Saw::NoFailure, Saw::After))?;
    let back = Instant::now();
    let saw = swarm.until(LOOK * 3, || Ok(tcp(&swarm.client(), swarm.at(2, 7000))?.answered()))?;
    facts.put("the node is back: its port answers", saw)?;
    swarm.runs("web", 3)?;
    // Whether every connection is answered again, which takes the overlays on all ways.
    let saw = swarm.until(LOOK * 3, || {
        let mut reaches = Vec::new();
        for node in 0..swarm.nodes() {
            reaches.extend(tcp_times(&swarm.client(), swarm.at(node, 7000), 6)?);
        }
        let who: BTreeSet<_> = reaches.iter().filter_map(Reach::task).collect();
        Ok(who.len() == 3 && reaches.iter().all(Reach::answered))
    })?;
    facts.put(
        "all three tasks answer by all nodes",
        match saw {
            Saw::After(_) => Saw::After(back.elapsed()),
            saw => saw,
        },
    )?;
    Ok(())
}

/// Whether this is the container of a task, by the name that the task says.
fn same(container: &Container, task: &str) -> bool {
    !task.is_empty() && container.task.starts_with(task)
}
