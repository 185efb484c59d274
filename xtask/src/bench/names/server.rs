//! The servers that are measured.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use swarmesh_tests::{dockerlab::DockerLab, netns::within};

use super::load::{RATE, is_up};
use crate::{
    bench::swarm::{Sandbox, snapshot, vip},
    run::build,
};

const TICKS_PER_SECOND: f64 = 100.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Ours,
    Dnsmasq,
    Unbound,
    Knot,
    Docker,
    Echo,
}

impl Kind {
    pub(super) const ALL: [Self; 6] = [Self::Ours, Self::Dnsmasq, Self::Unbound, Self::Knot, Self::Docker, Self::Echo];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours (the whole agent)",
            Self::Dnsmasq => "dnsmasq",
            Self::Unbound => "unbound, local-data, one thread",
            Self::Knot => "knot, one UDP worker",
            Self::Docker => "Docker's own (the whole dockerd)",
            Self::Echo => "UDP echo, recvfrom and sendto",
        }
    }

    /// The others have something to say without it.
    pub(super) const fn is_optional(self) -> bool {
        !matches!(self, Self::Ours | Self::Echo)
    }

    pub(super) fn address(self) -> SocketAddr {
        let host = match self {
            // Each in namespaces of its own.
            Self::Ours | Self::Docker => 11,
            Self::Dnsmasq => 21,
            Self::Unbound => 22,
            Self::Knot => 23,
            Self::Echo => 24,
        };
        SocketAddr::from(([127, 0, 0, host], 53))
    }
}

pub(super) struct Server {
    pub(super) kind: Kind,
    /// The namespace to ask in.
    pub(super) place: PathBuf,
    /// How many names it has.
    pub(super) names: u32,
    /// Queries per second.
    pub(super) rate: u32,
    /// What a reader of its figures must know.
    pub(super) note: String,
    pub(super) process: u32,
    /// Ends with this.
    _life: Life,
}

enum Life {
    Child(Child),
    Lab { _lab: DockerLab },
}

impl Drop for Life {
    fn drop(&mut self) {
        if let Self::Child(child) = self {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Server {
    /// Starts it and waits until it answers. `upstream` is the agent's resolv.conf.
    pub(super) fn start(kind: Kind, sandbox: &Sandbox, directory: &Path, services: u32, upstream: &str) -> Result<Self> {
        let at = |name: &str| directory.join(name);
        let text = |name: &str, text: String| std::fs::write(at(name), text).with_context(|| name.to_owned());
        let mut command = match kind {
            Kind::Ours => {
                text("resolv.conf", upstream.to_owned())?;
                text("snapshot.json", snapshot(services, 1).to_json())?;
                let mut command = Command::new(build(true)?);
                command.args(["agent", "--node", "here", "--source"]).arg(format!("snapshot:{}", at("snapshot.json").display()));
                command.arg("--netns-dir").arg(sandbox.netns_dir()).arg("--state-dir").arg(at("state"));
                command.arg("--resolv-conf").arg(at("resolv.conf"));
                command
            }
            Kind::Dnsmasq => {
                text("hosts", (0..services).map(|n| format!("{} service{n}\n", vip(n))).collect())?;
                let mut command = Command::new("dnsmasq");
                command.args([
                    "--keep-in-foreground",
                    "--conf-file=/dev/null",
                    "--no-resolv",
                    "--no-hosts",
                    "--bind-interfaces",
                    "--user=root",
                ]);
                command
                    .args(["--listen-address=127.0.0.21", "--local=/#/", "--local-ttl=5", "--pid-file="])
                    .arg(format!("--addn-hosts={}", at("hosts").display()));
                command
            }
            Kind::Unbound => {
                let data: String = (0..services).map(|n| format!("  local-data: \"service{n}. 5 A {}\"\n", vip(n))).collect();
                text(
                    "unbound.conf",
                    format!(
                        "server:\n  interface: 127.0.0.22\n  num-threads: 1\n  do-daemonize: no\n  use-syslog: no\n  username: \"\"\n  chroot: \"\"\n  directory: \"{0}\"\n  pidfile: \"\"\n  access-control: 127.0.0.0/8 allow\n  module-config: \"iterator\"\n  local-zone: \".\" static\n{data}remote-control:\n  control-enable: no\n",
                        directory.display()
                    ),
                )?;
                let mut command = Command::new("unbound");
                command.arg("-c").arg(at("unbound.conf"));
                command
            }
            Kind::Knot => {
                let records: String = (0..services).map(|n| format!("service{n}. 5 A {}\n", vip(n))).collect();
                text("root.zone", format!(". 5 SOA . . 1 3600 600 86400 5\n. 5 NS ns.\nns. 5 A 127.0.0.23\n{records}"))?;
                text(
                    "knot.conf",
                    format!(
                        "server:\n  listen: 127.0.0.23@53\n  rundir: {0}\n  udp-workers: 1\n  tcp-workers: 1\n  background-workers: 1\ndatabase:\n  storage: {0}/knot\nlog:\n  - target: stderr\n    any: error\nzone:\n  - domain: .\n    file: {0}/root.zone\n",
                        directory.display()
                    ),
                )?;
                let mut command = Command::new("knotd");
                command.arg("-c").arg(at("knot.conf"));
                command
            }
            Kind::Docker => bail!("an engine is no program of one namespace"),
            Kind::Echo => {
                let mut command = Command::new(std::env::current_exe()?);
                command.args(["bench-echo", &kind.address().to_string()]);
                command
            }
        };
        command.stdout(Stdio::null()).stderr(std::fs::File::create(at(&format!("{kind:?}.log")))?);
        let child = within(&sandbox.path(), move || command.spawn())?.with_context(|| format!("cannot run {kind:?}"))?;
        let process = child.id();
        let life = Life::Child(child);
        let server = Self { kind, place: sandbox.path(), names: services, rate: RATE, note: String::new(), process, _life: life };
        let path = sandbox.path();
        let start = Instant::now();
        while !within(&path, move || is_up(kind.address(), kind == Kind::Echo))? {
            if start.elapsed() > Duration::from_secs(30) {
                bail!("{kind:?} does not answer: {}", std::fs::read_to_string(at(&format!("{kind:?}.log"))).unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }

    /// An engine's resolver, as it is found in the namespace of one of its containers.
    pub(super) fn of_engine(lab: DockerLab, place: PathBuf, process: u32, names: u32) -> Self {
        Self { kind: Kind::Docker, place, names, rate: RATE, note: String::new(), process, _life: Life::Lab { _lab: lab } }
    }

    /// Seconds of user and system time since its start.
    pub(super) fn cpu(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(PathBuf::from(format!("/proc/{}/stat", self.process)))?;
        let fields: Vec<&str> = stat.rsplit_once(')').context("an odd stat line")?.1.split_whitespace().collect();
        let ticks = |index: usize| fields.get(index).and_then(|f| f.parse::<f64>().ok()).context("an odd stat line");
        Ok((ticks(11)? + ticks(12)?) / TICKS_PER_SECOND)
    }
}
