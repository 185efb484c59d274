//! The proxies, one worker each, on the first core.

use std::{
    fs::{self, File, OpenOptions},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::config::{self, Place};
use crate::run::{output, root};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Everything is switched on.
    Ours,
    /// As the peers: no log, no request id, no retries, no checks.
    OursBare,
    /// As the first, with ten thousand hosts.
    OursLarge,
    Haproxy,
    /// What ours has, as far as it has that: log, request id, retries, checks.
    HaproxyAll,
    Nginx,
    Caddy,
    Pingora,
    /// Bytes are copied and not looked at: the limit.
    Copy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

impl Kind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours, all switched on",
            Self::OursBare => "ours, as the peers: no log, ids, retries, checks",
            Self::OursLarge => "ours, all switched on, 10,000 hosts",
            Self::Haproxy => "HAProxy",
            Self::HaproxyAll => "HAProxy with log, ids, retries, checks",
            Self::Nginx => "nginx",
            Self::Caddy => "Caddy",
            Self::Pingora => "pingora, the least proxy",
            Self::Copy => "HAProxy in TCP mode, which copies bytes: the limit",
        }
    }

    const fn hosts(self) -> u32 {
        if matches!(self, Self::OursLarge) { 10_000 } else { 1 }
    }

    const fn has_log(self) -> bool {
        matches!(self, Self::Ours | Self::OursLarge | Self::HaproxyAll)
    }

    /// What the figures of others mean nothing without.
    pub(super) const fn is_needed(self) -> bool {
        matches!(self, Self::Ours | Self::OursBare | Self::OursLarge | Self::Haproxy)
    }
}

/// What is run that no package has.
pub(super) struct Programs {
    ours: PathBuf,
    /// Or why there is none.
    pingora: Result<PathBuf, String>,
}

pub(super) struct Proxy {
    pub(super) kind: Kind,
    pub(super) address: SocketAddr,
    pub(super) hosts: u32,
    log: Option<PathBuf>,
    child: Child,
}

impl Proxy {
    /// With `counted`, callgrind runs it and writes there when it ends.
    pub(super) fn start(
        kind: Kind,
        scheme: Scheme,
        backend: SocketAddr,
        programs: &Programs,
        directory: &Path,
        counted: Option<&Path>,
    ) -> Result<Self> {
        let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let place = Place { scheme, address, backend, directory };
        let own = |name: &str| directory.join(format!("{name}-{}", address.port()));
        let log = kind.has_log().then(|| own("access.log"));
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", "0"]).stdout(Stdio::null());
        if let Some(file) = counted {
            command.args(["valgrind", "--tool=callgrind", "--quiet", &format!("--callgrind-out-file={}", file.display())]);
        }
        match kind {
            Kind::Ours | Kind::OursBare | Kind::OursLarge => {
                command.arg(&programs.ours).args([address.to_string(), backend.to_string(), kind.hosts().to_string()]);
                if scheme == Scheme::Https {
                    command.arg("--tls").arg(directory);
                }
                if let Some(log) = &log {
                    command.arg("--all").arg(log);
                }
            }
            Kind::Haproxy | Kind::HaproxyAll | Kind::Copy => {
                let file = own("haproxy.cfg");
                fs::write(&file, config::haproxy(kind, place))?;
                command.args(["haproxy", "-db", "-f"]).arg(file);
                if let Some(log) = &log {
                    command.stdout(OpenOptions::new().create(true).append(true).open(log)?);
                }
            }
            Kind::Nginx => {
                let file = own("nginx.conf");
                fs::write(&file, config::nginx(place))?;
                command.args(["nginx", "-c"]).arg(file);
            }
            Kind::Caddy => {
                let file = own("Caddyfile");
                fs::write(&file, config::caddy(place))?;
                command.args(["caddy", "run", "--adapter", "caddyfile", "--config"]).arg(file);
                command.env("GOMAXPROCS", "1").env("HOME", directory).env_remove("XDG_CONFIG_HOME").env_remove("XDG_DATA_HOME");
            }
            Kind::Pingora => {
                let Ok(program) = programs.pingora.as_ref().map_err(|why| why.clone()) else {
                    bail!("it cannot be built: {}", programs.pingora.as_ref().err().map_or("", String::as_str));
                };
                command.arg(program).args([address.to_string(), backend.to_string()]);
                if scheme == Scheme::Https {
                    command.arg(directory.join("site.pem")).arg(directory.join("site.key"));
                }
            }
        }
        // What it complains of, if it does not start.
        let complaints = own("stderr");
        command.stderr(File::create(&complaints)?);
        // Ours ends with its input.
        let child = command.stdin(Stdio::piped()).spawn().context(kind.name())?;
        let mut proxy = Self { kind, address, hosts: kind.hosts(), log, child };
        let begun = Instant::now();
        while TcpStream::connect(address).is_err() {
            let ended = proxy.child.try_wait()?;
            if ended.is_some() || begun.elapsed() > Duration::from_secs(20) {
                let text = fs::read_to_string(&complaints).unwrap_or_default();
                bail!("{} does not listen: {}", kind.name(), text.lines().last().unwrap_or("it says nothing"));
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(proxy)
    }

    /// Seconds of all its threads so far, in user space and kernel. (`taskset` becomes the proxy.)
    pub(super) fn cpu(&self) -> Result<f64> {
        let mut nanoseconds = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let path = task?.path().join("schedstat");
            // A thread may end meanwhile; none that works does.
            let Ok(text) = fs::read_to_string(&path) else { continue };
            nanoseconds += text.split(' ').next().and_then(|n| n.parse::<u64>().ok()).context("no time in schedstat")?;
        }
        Ok(nanoseconds as f64 / 1e9)
    }

    /// Bytes of memory that are its own, and its part of what it shares.
    pub(super) fn memory(&self) -> Result<u64> {
        let path = format!("/proc/{}/smaps_rollup", self.child.id());
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).with_context(|| format!("no Pss in {path}"))?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib * 1024)
    }

    /// Ends it in a way that lets it end its own things, callgrind's file among them.
    pub(super) fn end(mut self) -> Result<()> {
        // This is how ours is told.
        drop(self.child.stdin.take());
        if !matches!(self.kind, Kind::Ours | Kind::OursBare | Kind::OursLarge) {
            // pingora would wait for minutes with SIGTERM.
            kill(Pid::from_raw(self.child.id().try_into()?), Signal::SIGINT)?;
        }
        let begun = Instant::now();
        while self.child.try_wait()?.is_none() {
            ensure!(begun.elapsed() < Duration::from_secs(60), "{} does not end", self.kind.name());
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// What is to be logged is logged: one line for each of so many requests. Empties the log.
    pub(super) fn check_log(&self, requests: usize) -> Result<()> {
        let Some(path) = &self.log else { return Ok(()) };
        let begun = Instant::now();
        loop {
            let lines = fs::read(path).with_context(|| path.display().to_string())?.iter().filter(|byte| **byte == b'\n').count();
            if lines >= requests {
                break;
            }
            ensure!(begun.elapsed() < Duration::from_secs(2), "{} logged {lines} of {requests} requests", self.kind.name());
            thread::sleep(Duration::from_millis(20));
        }
        OpenOptions::new().write(true).open(path)?.set_len(0)?;
        Ok(())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // One that has ended needs no end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One worker of ours before a backend, as a program, and the peer that has no package.
pub(super) fn build() -> Result<Programs> {
    let ours = example("serve")?;
    // A workspace of its own, so that its dependencies are nobody else's. Not the same directory: cargo would build each anew.
    let target = target().join("peers");
    let pingora = output(
        Command::new(env!("CARGO"))
            .current_dir(root().join("xtask/peers/pingora"))
            .args(["build", "--release", "--locked", "--target-dir"])
            .arg(&target),
    );
    let pingora = pingora.map(|_| target.join("release/swarmesh-peer-pingora")).map_err(|error| format!("{error:#}"));
    Ok(Programs { ours, pingora })
}

/// Builds an example of the proxy's and returns where it is.
pub(crate) fn example(name: &str) -> Result<PathBuf> {
    output(Command::new(env!("CARGO")).current_dir(root()).args(["build", "--release", "--package", "swarmesh-proxy", "--example", name]))?;
    Ok(target().join("release/examples").join(name))
}

fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), Into::into)
}
