//! Who is asked for an asker, and what an update does to aliases: rows in which containers come and go.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hickory_proto::{op::ResponseCode, rr::RecordType};
use serde_json::Value;
use swarmesh_tests::{
    lab::Lab,
    names::{Upstream, addresses, ask, question},
    rows::Row,
};

use crate::{SECOND, STACK, Subject, name};

/// A plain container, gone with the value.
struct Container<'l> {
    lab: &'l Lab,
    name: &'static str,
    task: Value,
}

impl<'l> Container<'l> {
    fn run(lab: &'l Lab, name: &'static str, words: &[&str]) -> Result<Self> {
        lab.lab(&[&["run"], words, &[name]].concat())?;
        let mut container = Self { lab, name, task: Value::Null };
        lab.wait("its names are answered", || {
            let tasks = lab.snapshot()?["tasks"].as_array().cloned().unwrap_or_default();
            let task = tasks.into_iter().find(|t| t["name"] == name && t["state"] == "running").context("it does not run")?;
            container.task = task;
            Ok(ask(&container.namespace(), &question(name, RecordType::A, None)?)?.answers.len() == 1)
        })?;
        Ok(container)
    }

    fn namespace(&self) -> std::path::PathBuf {
        self.lab.task_namespace(&self.task)
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        // The lab goes with its test, and what is left of this one with it.
        let _ = self.lab.lab(&["rm", self.name]);
    }
}

/// How many questions a node's agent has taken.
fn taken(lab: &Lab, node: &str) -> Result<u64> {
    let (_, metrics) = lab.api(node, "/metrics")?;
    let counts =
        metrics.lines().filter(|l| l.starts_with("swarmesh_dns_queries_total{")).filter_map(|l| l.rsplit_once(' ')?.1.parse::<u64>().ok());
    Ok(counts.sum())
}

pub(crate) const ROWS: &[Row<Subject>] = &[
    ("E10 127.0.0.11 as a container's own server is nobody to ask, however it is written", |s| {
        s.leaked();
        for (name, server) in [("itself", "127.0.0.11"), ("mapped", "::ffff:127.0.0.11")] {
            let alone = Container::run(&s.lab, name, &["--network", "t_front", "--dns", server])?;
            let (before, start) = (taken(&s.lab, "node1")?, Instant::now());
            let answer = ask(&alone.namespace(), &question("some.example", RecordType::A, None)?)?;
            ensure!(answer.metadata.response_code == ResponseCode::ServFail, "{server}: {answer:?}");
            let taken = taken(&s.lab, "node1")? - before;
            ensure!(taken == 1, "{server}: one question became {taken}");
            ensure!(start.elapsed() < Duration::from_secs(3), "{server}: {:?}", start.elapsed());
            ensure!(addresses(&alone.namespace(), "web")? == s.vip("web", "front")?, "{server}: names of ours");
        }
        ensure!(s.leaked().is_empty(), "the host's servers are not its own");
        let second = Container::run(&s.lab, "second", &["--network", "t_front", "--dns", "127.0.0.11", "--dns", "192.0.2.102"])?;
        ensure!(addresses(&second.namespace(), "own.example")? == ["198.51.100.7"], "the other server of its own");
        ensure!(s.upstream.asked().is_empty() && s.second.asked() == ["own.example."], "and no other");
        Ok(())
    }),
    ("E12 a server inside of an internal network is asked by who was told to", |s| {
        let inside = s.lab.tasks("inside")?.into_iter().next().context("no task")?;
        let address = s.lab.address(&inside, "inner")?;
        let server = Upstream::start(&s.lab.task_namespace(&inside), address)?;
        let (told, address) = (SECOND.map(|octet| octet.to_string()).join("."), address.to_string());
        s.leaked();
        let asker = Container::run(&s.lab, "insider", &["--network", "t_inner", "--dns", &address])?;
        ensure!(addresses(&asker.namespace(), "own.example")? == ["198.51.100.7"], "asked inside");
        ensure!(server.asked() == ["own.example."], "once");
        let other = Container::run(&s.lab, "outsider", &["--network", "t_inner", "--dns", &told])?;
        let answer = ask(&other.namespace(), &question("leak.example", RecordType::A, None)?)?;
        ensure!(answer.metadata.response_code == ResponseCode::ServFail, "there is no way to one outside: {answer:?}");
        ensure!(s.leaked().is_empty(), "asked outside");
        Ok(())
    }),
    ("E19 during a rollout an old alias leads on until its last task is gone, and the new one leads too", |s| {
        let (asker, stranger) = (s.of("web")?, s.of("hidden")?);
        let vip = s.vip("moving", "front")?;
        ensure!(addresses(&asker, "old")? == vip, "before");
        let is_unknown = |asker: &std::path::Path, name: &str| -> Result<bool> {
            Ok(ask(asker, &question(name, RecordType::A, None)?)?.metadata.response_code == ResponseCode::NXDomain)
        };
        ensure!(is_unknown(&asker, "new")? && is_unknown(&stranger, "old")?, "not yet, and not elsewhere");
        let old: Vec<Value> = s.lab.tasks("moving")?;
        let is_there = || -> Result<bool> { Ok(s.lab.tasks("moving")?.iter().any(|t| old.iter().any(|o| name(o) == name(t)))) };
        s.lab.deploy(&STACK.replace("aliases: [old]", "aliases: [new]"))?;
        let (mut checks, mut is_new, mut wrong) = (0, false, Vec::new());
        s.lab.wait("all tasks are new", || {
            let before = is_there()?;
            let (old, new) = (addresses(&asker, "old").unwrap_or_default(), addresses(&asker, "new").unwrap_or_default());
            // An old task ran before and after the question, so it ran when that was answered.
            let both = before && is_there()?;
            checks += usize::from(both);
            if both && old != vip || new != vip && (is_new || !new.is_empty()) {
                wrong.push(format!("old leads to {old:?}, new to {new:?}"));
            }
            if !is_unknown(&stranger, "old")? || !is_unknown(&stranger, "new")? {
                wrong.push("known in another network".to_owned());
            }
            is_new |= new == vip;
            Ok(!before && old.is_empty() && is_new)
        })?;
        ensure!(wrong.is_empty() && checks >= 5, "{checks} checks: {wrong:?}");
        s.lab.deploy(STACK)?;
        s.lab.wait("the old alias is back", || Ok(addresses(&asker, "old").unwrap_or_default() == vip && is_unknown(&asker, "new")?))?;
        s.leaked();
        Ok(())
    }),
];
