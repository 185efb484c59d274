//! What changes while it is asked about, on Docker's own resolver and on ours.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use swarmesh_tests::names::Upstream;

use crate::{IMAGE, Subject};

/// Whose resolver answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    Docker,
    Ours,
}

impl Subject {
    /// Tasks that are wanted and run.
    fn wanted(&self, service: &str) -> Result<BTreeSet<String>> {
        let path = format!("/tasks?filters=%7B%22service%22:%5B%22{service}%22%5D,%22desired-state%22:%5B%22running%22%5D%7D");
        let tasks = self.lab.api(0, &path)?;
        let running = tasks.as_array().into_iter().flatten().filter(|t| t["Status"]["State"] == "running");
        Ok(running.filter_map(|t| t["ID"].as_str().map(str::to_owned)).collect())
    }

    /// E19. Until May 2026, libnetwork kept the aliases of a service's first task for all that followed (its commit
    /// 1143f413f6), so of Docker only that much is asked: while old tasks run, nothing is lost.
    pub(crate) fn aliases_follow_a_rollout(&self, whose: Whose) -> Result<()> {
        let (from, to) = if whose == Whose::Docker { ("old", "new") } else { ("new", "newer") };
        let vip = self.outcome("plain", "moving", "A")?;
        self.wait("the alias leads to the service", || Ok(self.outcome("plain", from, "A")? == vip))?;
        let old = self.wanted("moving")?;
        let network = format!("name=front,alias={to}");
        let words = ["service", "update", "--quiet", "--detach", "--network-rm", "front", "--network-add", &network, "moving"];
        self.lab.docker(0, &words)?;
        let (mut checks, mut wrong, mut last) = (0, Vec::new(), String::new());
        self.wait("all tasks are new", || {
            let before = self.wanted("moving")?;
            let (led, leads, elsewhere) =
                (self.outcome("plain", from, "A")?, self.outcome("plain", to, "A")?, self.outcome("b2", from, "A")?);
            let is_old = |wanted: &BTreeSet<String>| !wanted.is_disjoint(&old);
            // An old task was wanted before and after the questions, so it was when they were answered.
            let both = is_old(&before) && is_old(&self.wanted("moving")?);
            checks += usize::from(both);
            if both && led != vip || leads != vip && leads != "asked upstream" || elsewhere != "asked upstream" {
                wrong.push(format!("{from} leads to {led}, {to} to {leads}, elsewhere {from} to {elsewhere}"));
            }
            last = format!("{from} leads to {led}, {to} to {leads}");
            let is_over = led == "asked upstream" && leads == vip;
            Ok(!is_old(&before) && (is_over || whose == Whose::Docker))
        })
        .with_context(|| format!("{whose:?}, {checks} checks, {wrong:?}, {last}"))?;
        ensure!(wrong.is_empty() && checks >= 3, "{whose:?}, {checks} checks: {wrong:?}");
        eprintln!("      E19 {whose:?}: {checks} checks while old tasks ran; in the end, {last}");
        Ok(())
    }

    /// E11. Engines before 25 ask from internal networks all the same, so what they say is shown only.
    pub(crate) fn a_way_out_comes_and_goes(&self, whose: Whose) -> Result<()> {
        let container = format!("lonely{}", u8::from(whose == Whose::Ours));
        let words = ["run", "--detach", "--name", &container, "--network", "cellar", IMAGE, "/bin/swarmesh", "whoami"];
        self.askers.borrow_mut().insert("lonely", self.lab.task_netns(0, self.lab.docker(0, &words)?.trim())?);
        let mut number = 0;
        let mut ask = || {
            // Each time another name, so that no cache has it.
            number += 1;
            self.outcome("lonely", &format!("out{number}{container}.example"), "A")
        };
        if whose == Whose::Docker {
            eprintln!("      E11 Docker: {} within", ask()?);
            self.lab.docker(0, &["network", "connect", "yard", &container])?;
            eprintln!("      E11 Docker: {} connected", ask()?);
            self.lab.docker(0, &["network", "disconnect", "yard", &container])?;
            eprintln!("      E11 Docker: {} disconnected", ask()?);
        } else {
            // As soon as ours answers, and as long as nobody changes that.
            self.wait("the container's names are ours", || Ok(self.authoritative("lonely", "lonely1").unwrap_or(false)))?;
            self.upstream.asked();
            ensure!(ask()? == "Server Failure" && self.upstream.asked().is_empty(), "an internal network leads out");
            self.lab.docker(0, &["network", "connect", "yard", &container])?;
            self.wait("there is a way out", || Ok(ask()? == "198.51.100.7"))?;
            self.lab.docker(0, &["network", "disconnect", "yard", &container])?;
            self.wait("there is none", || Ok(ask()? == "Server Failure"))?;
            self.upstream.asked();
            ensure!(ask()? == "Server Failure" && self.upstream.asked().is_empty(), "it still leads out");
        }
        self.askers.borrow_mut().remove("lonely");
        self.lab.docker(0, &["rm", "--force", &container]).map(drop)
    }

    /// E10 and E12: containers with servers of their own. What old engines make of it is shown only.
    pub(crate) fn own_servers(&self, whose: Whose) -> Result<()> {
        let suffix = u8::from(whose == Whose::Ours);
        let inside = self.lab.docker(0, &["inspect", "--format", "{{.NetworkSettings.Networks.cellar.IPAddress}}", "keeper"])?;
        let id = self.lab.docker(0, &["inspect", "--format", "{{.Id}}", "keeper"])?;
        let server = Upstream::start(&self.lab.task_netns(0, id.trim())?, inside.trim().parse()?)?;
        for (row, network, servers, expected) in [
            ("E10", "front", &["127.0.0.11"][..], "Server Failure"),
            ("E10", "front", &["127.0.0.11", "192.0.2.101"], "198.51.100.7"),
            ("E12", "cellar", &[inside.trim()], "198.51.100.7"),
        ] {
            let container = format!("own{suffix}");
            let mut words = vec!["run", "--detach", "--name", &container, "--network", network];
            words.extend(servers.iter().flat_map(|server| ["--dns", server]));
            words.extend([IMAGE, "/bin/swarmesh", "whoami"]);
            self.askers.borrow_mut().insert("own", self.lab.task_netns(0, self.lab.docker(0, &words)?.trim())?);
            if whose == Whose::Ours {
                self.wait("the container's names are ours", || Ok(self.authoritative("own", &container).unwrap_or(false)))?;
            }
            let outcome = self.outcome("own", &format!("{row}{suffix}.example").to_ascii_lowercase(), "A")?;
            eprintln!("      {row} {whose:?}: {servers:?} {outcome}");
            ensure!(whose == Whose::Docker || outcome == expected, "{row}: {servers:?} {outcome}");
            ensure!(row != "E12" || whose == Whose::Docker || server.asked() == ["e121.example."], "asked elsewhere");
            self.askers.borrow_mut().remove("own");
            self.lab.docker(0, &["rm", "--force", &container])?;
        }
        Ok(())
    }

    /// Ours says that it is the authority for its names, and Docker's does not.
    fn authoritative(&self, asker: &str, name: &str) -> Result<bool> {
        let question = swarmesh_tests::names::question(name, hickory_proto::rr::RecordType::A, None)?;
        Ok(swarmesh_tests::names::ask(&self.asker(asker)?, &question)?.metadata.authoritative)
    }
}
