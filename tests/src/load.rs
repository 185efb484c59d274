//! New connections at a fixed rate, each one counted: the load under which nothing may fail.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{
    netns::spawn_within,
    patience::{patient, rate},
};

/// How the connections of a run ended.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub attempted: u64,
    pub succeeded: u64,
    /// What went wrong, with the time since the start; at most a hundred are kept.
    pub failures: Vec<(Duration, String)>,
    pub failed: u64,
    /// Who answered, and how often.
    pub tasks: std::collections::BTreeMap<String, u64>,
}

/// A running load; [`Load::stop`] ends it.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    outcome: Arc<Mutex<Outcome>>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// `per_second` connections in all, on an ordinary machine, from the namespace at `path`, to each of `targets` in turn: connect, one HTTP
    /// request, the answer read to its end. Eight threads, so that a slow answer does not hold up the others.
    pub fn start(path: &Path, targets: Vec<SocketAddr>, per_second: u32) -> Result<Self> {
        Self::start_for(path, targets, None, per_second)
    }

    /// As [`Self::start`], for a host of this name.
    pub fn start_for(path: &Path, targets: Vec<SocketAddr>, host: Option<&'static str>, per_second: u32) -> Result<Self> {
        const THREADS: u32 = 8;
        let stop = Arc::new(AtomicBool::new(false));
        let outcome = Arc::new(Mutex::new(Outcome::default()));
        let mut threads = Vec::new();
        let start = Instant::now();
        for number in 0..THREADS {
            let (stop, outcome, targets) = (Arc::clone(&stop), Arc::clone(&outcome), targets.clone());
            let pause = Duration::from_secs(1).mul_f64(f64::from(THREADS) / rate(per_second.max(1)));
            let handle = spawn_within(path, move || {
                let mut due = start + pause * number / THREADS;
                let mut turn = number as usize;
                while !stop.load(Ordering::Relaxed) {
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    due += pause;
                    let target = targets[turn % targets.len()];
                    turn += 1;
                    let result = match host {
                        Some(host) => request_for(host, target, patient(Duration::from_secs(5))),
                        None => request(target, patient(Duration::from_secs(5))),
                    };
                    let Ok(mut outcome) = outcome.lock() else { return };
                    outcome.attempted += 1;
                    match result {
                        Ok(body) => {
                            outcome.succeeded += 1;
                            let task = field(&body, "task").unwrap_or_default();
                            *outcome.tasks.entry(task).or_default() += 1;
                        }
                        Err(error) => {
                            outcome.failed += 1;
                            if outcome.failures.len() < 100 {
                                outcome.failures.push((start.elapsed(), format!("{target}: {error}")));
                            }
                        }
                    }
                }
            })?;
            threads.push(handle);
        }
        Ok(Self { stop, outcome, threads })
    }

    pub fn so_far(&self) -> Outcome {
        self.outcome.lock().map(|o| o.clone()).unwrap_or_default()
    }

    pub fn stop(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            // A panic there shows in the counts.
            let _ = thread.join();
        }
        self.outcome.lock().map(|o| o.clone()).unwrap_or_default()
    }
}

/// One connection, one request, the whole answer.
pub fn request(target: SocketAddr, patience: Duration) -> std::io::Result<String> {
    request_for(&target.to_string(), target, patience)
}

/// As [`request`], for `host`.
pub fn request_for(host: &str, target: SocketAddr, patience: Duration) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&target, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.starts_with("HTTP/1.1 200") {
        Ok(answer)
    } else {
        Err(std::io::Error::new(ErrorKind::InvalidData, format!("not a 200: {:?}", answer.lines().next())))
    }
}

/// A `name: value` line of what `swarmesh whoami` says.
pub fn field(answer: &str, name: &str) -> Option<String> {
    answer.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": ").map(|v| v.trim().to_owned()))
}
