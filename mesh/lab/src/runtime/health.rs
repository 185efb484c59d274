//! Health checks: one thread a task, in the task's namespace.

use std::{
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, Thread},
    time::{Duration, Instant},
};

use super::{
    RuntimeError,
    error::Doing,
    process::{self, Place, wait_timeout},
    program,
    tools::program_in_path,
};
use crate::{
    stack::{HealthTest, Healthcheck},
    swarm::{Observed, TaskSpec},
};

/// Until a task has been healthy once, it is asked more often than its interval says: nobody waits for 30 seconds here.
const EAGER: Duration = Duration::from_millis(250);

/// How a task is asked.
#[derive(Clone, Debug)]
enum Probe {
    Command {
        program: PathBuf,
        args: Vec<String>,
        environment: Vec<(String, String)>,
    },
    /// `GET /health` of the built-in server.
    Http(u16),
    Connect(u16),
}

/// A running health check; ends when dropped.
#[derive(Debug)]
pub(crate) struct HealthCheck {
    stop: Arc<AtomicBool>,
    thread: Thread,
}

impl Drop for HealthCheck {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.unpark();
    }
}

/// Starts checking if the task has a check. `report` is called for each change.
pub(crate) fn start(
    spec: &TaskSpec,
    built_in: bool,
    place: Place,
    report: impl Fn(Observed) + Send + 'static,
) -> Result<Option<HealthCheck>, RuntimeError> {
    let Some((check, probe)) = spec.healthcheck.as_ref().and_then(|check| Some((check.clone(), probe(spec, check, built_in)?))) else {
        return Ok(None);
    };
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let work = move || {
        // As `docker exec` would: with the container's own resolver and hosts.
        if let Err(error) = process::enter(&place) {
            tracing::warn!("health check: {error}");
            return;
        }
        watch(&check, &probe, &stopped, report);
    };
    let handle = thread::Builder::new().name("health".to_owned()).spawn(work).doing(|| "starting a thread".to_owned())?;
    Ok(Some(HealthCheck { stop, thread: handle.thread().clone() }))
}

fn probe(spec: &TaskSpec, check: &Healthcheck, built_in: bool) -> Option<Probe> {
    let path = spec.environment.get("PATH").map(String::as_str);
    let environment = || program::environment(spec).into_iter().collect();
    let own = match &check.test {
        HealthTest::None | HealthTest::Image => return None,
        HealthTest::Command(words) => words.split_first().and_then(|(program, args)| {
            Some(Probe::Command { program: program_in_path(program, path)?, args: args.to_vec(), environment: environment() })
        }),
        // The shell is always there; what it is told to run may not be.
        HealthTest::Shell(line) => line.split_whitespace().next().and_then(|word| program_in_path(word, path)).and_then(|_| {
            Some(Probe::Command {
                program: program_in_path("sh", path)?,
                args: vec!["-c".to_owned(), line.clone()],
                environment: environment(),
            })
        }),
    };
    let port = program::first_tcp_port(spec);
    Some(own.unwrap_or(if built_in { Probe::Http(port) } else { Probe::Connect(port) }))
}

fn watch(check: &Healthcheck, probe: &Probe, stop: &AtomicBool, report: impl Fn(Observed)) {
    let start = Instant::now();
    let retries = check.retries.max(1);
    let (mut was_healthy, mut failures, mut unhealthy) = (false, 0, false);
    while !stop.load(Ordering::Relaxed) {
        let healthy = passes(probe, check.timeout);
        if stop.load(Ordering::Relaxed) {
            return;
        }
        if healthy {
            failures = 0;
            if !was_healthy || unhealthy {
                (was_healthy, unhealthy) = (true, false);
                report(Observed::Running);
            }
        } else {
            failures += 1;
            // Eager questions do not make a task fail sooner than its own interval would.
            let patience = if was_healthy { Duration::ZERO } else { check.start_period + check.interval * retries };
            if failures >= retries && start.elapsed() >= patience && !unhealthy {
                unhealthy = true;
                report(Observed::Unhealthy);
            }
        }
        thread::park_timeout(if was_healthy { check.interval } else { check.interval.min(EAGER) });
    }
}

fn passes(probe: &Probe, timeout: Duration) -> bool {
    let timeout = timeout.max(Duration::from_millis(1));
    match probe {
        Probe::Command { program, args, environment } => {
            let mut command = Command::new(program);
            command.args(args).env_clear().envs(environment.iter().map(|(k, v)| (k, v)));
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
            command.spawn().is_ok_and(|mut child| wait_timeout(&mut child, timeout).is_ok_and(|s| s.is_some_and(|s| s.success())))
        }
        Probe::Http(port) => http_status((Ipv4Addr::LOCALHOST, *port).into(), "/health", timeout) == Some(200),
        Probe::Connect(port) => TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, *port).into(), timeout).is_ok(),
    }
}

/// The status that a server of the calling thread's namespace answers with.
pub(crate) fn http_status(server: SocketAddr, path: &str, timeout: Duration) -> Option<u16> {
    let mut stream = TcpStream::connect_timeout(&server, timeout).ok()?;
    stream.set_read_timeout(Some(timeout)).ok()?;
    stream.set_write_timeout(Some(timeout)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {server}\r\nconnection: close\r\n\r\n").ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    line.split(' ').nth(1)?.parse().ok()
}
