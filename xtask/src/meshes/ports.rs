//! E36–E46: published ports.

use std::{
    net::{IpAddr, SocketAddr, TcpListener},
    process::Command,
    thread::sleep,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use swarmesh_tests::netns::within;

use super::{
    Facts,
    sampler::{Sampler, tcp, tcp_times, udp},
    seen::Saw,
    swarm::{SERVES, Swarm, at},
};

const LOOK: Duration = Duration::from_secs(40);
const AFTERMATH: Duration = Duration::from_secs(8);

pub(super) fn published(swarm: &Swarm, facts: &mut Facts) -> Result<()> {
    let own = [swarm.client_address()];
    let mut tcps = Vec::new();
    let mut udps = Vec::new();
    for node in 0..swarm.nodes() {
        tcps.extend(tcp_times(&swarm.client(), swarm.at(node, 7000), 6)?);
        for _ in 0..3 {
            udps.push(udp(&swarm.client(), swarm.at(node, 7000))?);
        }
    }
    facts.put("six connections from outside to each node", Saw::Spread(tcps.clone()))?;
    facts.put("whom the task sees", swarm.callers(&tcps, &own)?)?;
    facts.put("three datagrams to each node", Saw::Spread(udps.clone()))?;
    facts.put("whom the task sees by UDP", swarm.callers(&udps, &own)?)?;
    let from = tcp_times(&swarm.node(0), swarm.at(1, 7000), 3)?;
    facts.put("a node calls another node's port", Saw::Spread(from.clone()))?;
    facts.put("whom the task sees of it", swarm.callers(&from, &[swarm.lab().address(0)])?)?;
    let api = swarm.task("api")?;
    let from = tcp_times(&api.namespace, swarm.at(1, 7000), 3)?;
    facts.put("a task calls a node's published port", Saw::Spread(from))?;
    Ok(())
}

/// Rules that are not the engine's to lose.
pub(super) fn flush(swarm: &Swarm, facts: &mut Facts) -> Result<()> {
    let output = within(&swarm.node(swarm.last()), || Command::new("nft").args(["flush", "ruleset"]).output())??;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let saw = swarm.until(LOOK, || Ok(tcp(&swarm.client(), swarm.at(swarm.last(), 7000))?.answered()))?;
    facts.put("`nft flush ruleset` on a node: its published port answers again", saw)?;
    Ok(())
}

/// After [`flush`], so that what the engine does about its rules at its start is seen.
pub(super) fn engine_restarts(swarm: &Swarm, facts: &mut Facts) -> Result<()> {
    // Asked before the lab is borrowed to be changed.
    let last = swarm.last();
    swarm.lab_mut().stop_engine(last, Signal::SIGTERM)?;
    swarm.lab_mut().start_engine(last)?;
    swarm.lab_mut().wait_for_engine(last)?;
    let saw = swarm.until(LOOK * 2, || Ok(tcp(&swarm.client(), swarm.at(swarm.last(), 7000))?.answered()))?;
    facts.put("the node's engine is restarted: the port answers, counted from its API's first answer", saw)?;
    swarm.runs("web", 3)?;
    swarm.all_answer(7000, 3)
}

pub(super) fn port_comes(swarm: &Swarm, facts: &mut Facts) -> Result<()> {
    let create = |name: &str, ports: &[&str]| {
        let ports: Vec<&str> = ports.iter().flat_map(|port| ["--publish", port]).collect();
        swarm.create(name, 2, &[&ports[..], &["--network", "back", "--update-order", "start-first"], &SERVES].concat())
    };
    create("ports", &["7030:80"])?;
    swarm.runs("ports", 2)?;
    swarm.all_answer(7030, 2)?;
    let load = Sampler::start(&swarm.client(), &swarm.everywhere(7030))?;
    swarm.roll("ports", 2, &["--publish-add", "7031:81"])?;
    let comes = swarm.until(LOOK, || Ok(tcp(&swarm.client(), swarm.at(1, 7031))?.answered()))?;
    sleep(AFTERMATH);
    facts.put("a second port is added, start-first: new connections to the first one meanwhile", Saw::load(&load.stop()))?;
    facts.put("the second one answers, counted from the update's end", comes)?;
    facts.put("six connections to the second one", Saw::Spread(tcp_times(&swarm.client(), swarm.at(1, 7031), 6)?))?;
    swarm.remove("ports")?;
    create("heir", &["7030:80", "7031:81"])?;
    swarm.runs("heir", 2)?;
    for port in [7030, 7031] {
        let saw = swarm.until(LOOK, || Ok(tcp(&swarm.client(), swarm.at(2, port))?.answered()))?;
        facts.put(&format!("removed, and another service publishes both: {port} answers"), saw)?;
    }
    swarm.remove("heir")
}

/// A program of the second node has the port already.
pub(super) fn taken(swarm: &Swarm, facts: &mut Facts) -> Result<()> {
    let listener = within(&swarm.node(1), || TcpListener::bind("[::]:7040"))?.context("cannot listen on the second node")?;
    swarm.create("late", 2, &[&["--publish", "7040:80"], &SERVES[..]].concat())?;
    swarm.runs("late", 2)?;
    let saw = swarm.until(LOOK, || Ok(tcp(&swarm.client(), swarm.at(0, 7040))?.answered()))?;
    facts.put("a program on one node listens on a port that is then published: another node answers", saw)?;
    // The program accepts and says nothing.
    let target = swarm.at(1, 7040);
    let saw = match swarm.until(LOOK / 2, || Ok(tcp(&swarm.client(), target)?.answered()))? {
        Saw::NotWithin(_) => Saw::Reach(tcp(&swarm.client(), target)?),
        saw => saw,
    };
    facts.put("the node with the program", saw)?;
    drop(listener);
    facts.put("the program ends: that node answers", swarm.until(LOOK, || Ok(tcp(&swarm.client(), target)?.answered()))?)?;
    swarm.remove("late")
}

pub(super) fn target_moves(swarm: &Swarm, facts: &mut Facts) -> Result<()> {
    swarm.create("shift", 2, &[&["--publish", "7050:80", "--update-order", "start-first"], &SERVES[..]].concat())?;
    swarm.runs("shift", 2)?;
    swarm.all_answer(7050, 2)?;
    let load = Sampler::start(&swarm.client(), &swarm.everywhere(7050))?;
    swarm.roll("shift", 2, &["--publish-rm", "80", "--publish-add", "7050:81"])?;
    sleep(AFTERMATH);
    facts.put("the target port changes under a published port, start-first: new connections", Saw::load(&load.stop()))?;
    facts.put("afterwards, six connections", Saw::Spread(tcp_times(&swarm.client(), swarm.at(0, 7050), 6)?))?;
    swarm.remove("shift")
}

pub(super) fn nobody(swarm: &Swarm, facts: &mut Facts) -> Result<()> {
    swarm.create("empty", 1, &[&["--network", "back", "--publish", "7060:80", "--publish", "7060:53/udp"], &SERVES[..]].concat())?;
    swarm.runs("empty", 1)?;
    swarm.all_answer(7060, 1)?;
    let (vip, api) = (swarm.vip("empty", "back")?, swarm.task("api")?);
    let target = swarm.at(0, 7060);
    let load = Sampler::start(&swarm.client(), &swarm.everywhere(7060))?;
    let told = load.now();
    swarm.scale("empty", 0)?;
    let mut end = told;
    while !swarm.tasks("empty")?.is_empty() {
        end = load.now();
        sleep(Duration::from_millis(300));
        ensure!(end < told + LOOK * 2, "the last task does not leave");
    }
    sleep(AFTERMATH);
    let samples = load.stop();
    let last = samples.iter().filter(|s| s.at > told && s.reach.answered()).map(|s| s.at - told).max();
    facts.put("the last task leaves and serves on: how long it gets new connections by port", Saw::Last { last, end: end - told })?;
    facts.put("no task is left, by port", Saw::Reach(tcp(&swarm.client(), target)?))?;
    facts.put("no task is left, by port, UDP", Saw::Reach(udp(&swarm.client(), target)?))?;
    facts.put("no task is left, by VIP", Saw::Reach(tcp(&api.namespace, at(vip, 80))?))?;
    facts.put("no task is left, by VIP, UDP", Saw::Reach(udp(&api.namespace, at(vip, 53))?))?;
    swarm.scale("empty", 1)?;
    swarm.runs("empty", 1)?;
    facts.put("a task comes: it answers by port", swarm.until(LOOK, || Ok(tcp(&swarm.client(), target)?.answered()))?)?;
    facts.put("and by VIP", swarm.until(LOOK, || Ok(tcp(&api.namespace, at(vip, 80))?.answered()))?)?;
    swarm.remove("empty")
}

/// Only without any service that publishes a port: the last row.
pub(super) fn custom_ingress(swarm: &Swarm, facts: &mut Facts) -> Result<()> {
    let make = |name: &'static str, subnet: &'static str| {
        swarm.takes(&["network", "create", "--driver", "overlay", "--ingress", "--subnet", subnet, name], "")
    };
    let said = |taken: bool| if taken { Saw::Accepted } else { Saw::Rejected };
    facts.put("a second ingress network", said(make("second", "10.66.0.0/24")?))?;
    swarm.remove("web")?;
    // The engine says no while its nodes still use it.
    swarm.wait("the ingress network is removed", || swarm.takes(&["network", "rm", "ingress"], "y\n"))?;
    swarm.wait("it is gone from every node", || {
        let gone = (0..swarm.nodes()).map(|node| Ok(!swarm.sandbox(node)?.exists())).collect::<Result<Vec<_>>>()?;
        Ok(gone.iter().all(|gone| *gone))
    })?;
    facts.put("without one: a service with a published port", swarm.creates("needs", &["--publish", "7070:80"])?)?;
    facts.put("without one: a dnsrr service", swarm.creates("free", &["--endpoint-mode", "dnsrr", "--network", "back"])?)?;
    let (api, elsewhere) = (swarm.task("api")?, swarm.vip("api", "back")?);
    facts.put("without one: a VIP", Saw::Spread(tcp_times(&api.namespace, at(elsewhere, 80), 3)?))?;
    ensure!(make("front-door", "10.77.0.0/24")?, "the engine takes no other ingress network");
    swarm.create("web", 3, &[&["--publish", "7071:80"], &SERVES[..]].concat())?;
    swarm.runs("web", 3)?;
    let saw = swarm.until(LOOK * 2, || Ok(tcp(&swarm.client(), swarm.at(0, 7071))?.answered()))?;
    facts.put("one of another name and subnet: a port published on it answers", saw)?;
    sleep(AFTERMATH);
    let mut reaches = Vec::new();
    for node in 0..swarm.nodes() {
        reaches.extend(tcp_times(&swarm.client(), swarm.at(node, 7071), 6)?);
    }
    facts.put("six connections to each node", Saw::Spread(reaches.clone()))?;
    facts.put("whom the task sees", swarm.callers(&reaches, &[swarm.client_address()])?)?;
    Ok(())
}

pub(super) fn refused(swarm: &Swarm, facts: &mut Facts) -> Result<()> {
    facts.put("dnsrr with an ingress port", swarm.creates("bad", &["--endpoint-mode", "dnsrr", "--publish", "7080:80"])?)?;
    facts.put("a published port that another service has", swarm.creates("bad", &["--publish", "7000:81"])?)?;
    Ok(())
}

pub(super) fn host_mode(swarm: &Swarm, facts: &mut Facts) -> Result<()> {
    swarm.create("direct", 1, &[&["--publish", "mode=host,published=7008,target=80"], &SERVES[..]].concat())?;
    swarm.runs("direct", 1)?;
    let home = swarm.task("direct")?.node;
    // It runs a moment before it listens.
    swarm.until(LOOK, || Ok(tcp(&swarm.client(), swarm.at(home, 7008))?.answered()))?;
    let at_home = tcp_times(&swarm.client(), swarm.at(home, 7008), 3)?;
    facts.put("host mode: the node that runs the task", Saw::Spread(at_home.clone()))?;
    facts.put("whom the task sees", swarm.callers(&at_home, &[swarm.client_address()])?)?;
    facts.put("over IPv6", Saw::Reach(tcp(&swarm.client(), six(home, 7008)?)?))?;
    if swarm.nodes() > 1 {
        facts.put("another node", Saw::Reach(tcp(&swarm.client(), swarm.at(home + 1, 7008))?))?;
    }
    swarm.remove("direct")
}

pub(super) fn loopback(swarm: &Swarm, facts: &mut Facts) -> Result<()> {
    let node = swarm.node(0);
    let reaches = tcp_times(&node, "127.0.0.1:7000".parse()?, 6)?;
    facts.put("127.0.0.1 on a node", Saw::Spread(reaches.clone()))?;
    facts.put("whom the task sees", swarm.callers(&reaches, &["127.0.0.1".parse()?])?)?;
    facts.put("127.0.0.1 by UDP", Saw::Reach(udp(&node, "127.0.0.1:7000".parse()?)?))?;
    facts.put("[::1] on a node", Saw::Reach(tcp(&node, "[::1]:7000".parse()?)?))?;
    facts.put("a node's IPv6 address, from outside", Saw::Reach(tcp(&swarm.client(), six(0, 7000)?)?))?;
    Ok(())
}

/// On a task's address in the ingress network, called from another node's ingress sandbox.
pub(super) fn ingress_address(swarm: &Swarm, facts: &mut Facts) -> Result<()> {
    let tasks = swarm.tasks("web")?;
    // On two nodes other than the first, if there are such.
    let mut by_node: Vec<_> = tasks.iter().collect();
    by_node.sort_by_key(|task| std::cmp::Reverse(task.node));
    let [peer, task, ..] = by_node[..] else { bail!("there are no two tasks") };
    let address = task.address("ingress")?;
    let sandbox = swarm.sandbox(0)?;
    facts.put("the published port on a task's ingress address", Saw::Reach(tcp(&sandbox, at(address, 7000))?))?;
    facts.put("another port of the task there", Saw::Reach(tcp(&sandbox, at(address, 81))?))?;
    let there = at(peer.address("ingress")?, 7000);
    facts.put("a task calls another one's ingress address", Saw::Reach(tcp(&task.namespace, there)?))?;
    Ok(())
}

fn six(node: usize, port: u16) -> Result<SocketAddr> {
    let address: IpAddr = format!("2001:db8::{}", 11 + node).parse()?;
    Ok(at(address, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_have_the_labs_ipv6_addresses() {
        assert_eq!(six(2, 80).unwrap().to_string(), "[2001:db8::13]:80");
    }
}
