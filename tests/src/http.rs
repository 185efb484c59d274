//! Clients of routed services, as the documents of older routers have them: curl and `openssl s_client`, somewhere on the nodes'
//! LAN. Node 1 is 192.0.2.11 in every lab.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    load::{Load, field},
    netns::within,
    patience::patient,
    websocket::WebSocket,
};

/// What curl printed.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn read(printed: &str) -> Result<Self> {
        let printed = printed.replace("\r\n", "\n");
        let (head, body) = printed.split_once("\n\n").with_context(|| format!("no end of the head in {printed:?}"))?;
        let mut lines = head.lines();
        let status = lines.next().and_then(|l| l.split_whitespace().nth(1)).and_then(|s| s.parse().ok()).context("no status")?;
        let headers = lines.filter_map(|l| l.split_once(": ")).map(|(n, v)| (n.to_ascii_lowercase(), v.to_owned())).collect();
        Ok(Self { status, headers, body: body.to_owned() })
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// A line of what the server tells: `task`, `service`, or a header that it got.
    pub fn told(&self, name: &str) -> String {
        field(&self.body, name).unwrap_or_default()
    }

    /// It came from this service, with 200.
    pub fn is_of(&self, service: &str) -> Result<()> {
        ensure!(self.status == 200, "{self:?}");
        ensure!(without_stack(&self.told("service")) == service, "not from {service}: {self:?}");
        Ok(())
    }

    pub fn is(&self, status: u16) -> Result<()> {
        ensure!(self.status == status, "not {status}: {self:?}");
        Ok(())
    }

    /// It sends the client elsewhere.
    pub fn leads_to(&self, status: u16, location: &str) -> Result<()> {
        ensure!(self.status == status && self.header("location") == Some(location), "not {status} to {location}: {self:?}");
        Ok(())
    }

    /// The request line that the server got has this path.
    pub fn asked_for(&self, path: &str) -> Result<()> {
        ensure!(self.body.lines().any(|l| l == format!("GET {path} HTTP/1.1")), "the server was not asked for {path}: {self:?}");
        Ok(())
    }
}

/// A service's name as its own document has it: `demo` for `demo` of stack `t`.
fn without_stack(service: &str) -> &str {
    service.strip_prefix("t_").unwrap_or(service)
}

/// The address of a node, counted from 0.
pub fn node(index: usize) -> IpAddr {
    IpAddr::from([192, 0, 2, 11 + u8::try_from(index).unwrap_or(0)])
}

/// A port of each of three nodes.
pub fn every_node(port: u16) -> Vec<SocketAddr> {
    (0..3).map(|index| SocketAddr::new(node(index), port)).collect()
}

/// Asks from one network namespace.
#[derive(Clone, Debug)]
pub struct Client {
    namespace: PathBuf,
}

impl Client {
    pub fn new(namespace: PathBuf) -> Self {
        Self { namespace }
    }

    pub fn namespace(&self) -> &Path {
        &self.namespace
    }

    /// Runs a program there, to its end.
    pub fn output(&self, words: &[&str]) -> Result<Output> {
        let (program, words) = words.split_first().context("nothing to run")?;
        let mut command = Command::new(program);
        command.args(words);
        within(&self.namespace, move || command.output())?.with_context(|| format!("cannot run {program}"))
    }

    /// As [`Self::output`], for programs that must succeed; returns what they print.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        let output = self.output(words)?;
        if !output.status.success() {
            bail!("{} ended with {}: {}", words.join(" "), output.status, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    pub fn curl(&self, words: &[&str]) -> Result<Answer> {
        let limit = patient(Duration::from_secs(10)).as_secs().to_string();
        let mut all = vec!["curl", "--silent", "--show-error", "--include", "--max-time", &limit];
        all.extend(words);
        Answer::read(&self.run(&all)?)
    }

    /// `curl -H "Host: HOST" http://NODE/PATH`.
    pub fn ask(&self, index: usize, host: &str, path: &str) -> Result<Answer> {
        self.ask_with(index, host, path, &[])
    }

    pub fn ask_with(&self, index: usize, host: &str, path: &str, words: &[&str]) -> Result<Answer> {
        let (header, url) = (format!("Host: {host}"), format!("http://{}{path}", node(index)));
        let mut all = vec!["-H", &header, &url];
        all.extend(words);
        self.curl(&all)
    }

    /// `curl -k https://HOST:PORT/PATH`, with the name led to a node.
    pub fn ask_tls(&self, index: usize, host: &str, port: u16, path: &str) -> Result<Answer> {
        let (lead, url) = (format!("{host}:{port}:{}", node(index)), format!("https://{host}:{port}{path}"));
        self.curl(&["--insecure", "--resolve", &lead, &url])
    }

    /// Which tasks answer `count` requests.
    pub fn spread(&self, index: usize, host: &str, path: &str, count: usize, words: &[&str]) -> Result<BTreeMap<String, usize>> {
        let mut tasks = BTreeMap::new();
        for _ in 0..count {
            let answer = self.ask_with(index, host, path, words)?;
            answer.is(200)?;
            *tasks.entry(answer.told("task")).or_default() += 1;
        }
        Ok(tasks)
    }

    /// As [`Self::spread`], on one connection: a node's workers each count turns for themselves.
    pub fn turns(&self, index: usize, host: &str, count: usize) -> Result<BTreeMap<String, usize>> {
        self.turns_at(index, host, "/", count)
    }

    /// As [`Self::turns`], for what is below `path`, which ends with a slash.
    pub fn turns_at(&self, index: usize, host: &str, path: &str, count: usize) -> Result<BTreeMap<String, usize>> {
        self.told_on_one_connection(index, host, path, count, "task")
    }

    /// As [`Self::turns`], by service.
    pub fn shares(&self, index: usize, host: &str, count: usize) -> Result<BTreeMap<String, usize>> {
        self.told_on_one_connection(index, host, "/", count, "service")
    }

    fn told_on_one_connection(&self, index: usize, host: &str, path: &str, count: usize, what: &str) -> Result<BTreeMap<String, usize>> {
        let (header, url) = (format!("Host: {host}"), format!("http://{}{path}[1-{count}]", node(index)));
        let printed = self.run(&["curl", "--silent", "--show-error", "--fail", "-H", &header, &url])?;
        let mut told = BTreeMap::new();
        for value in printed.lines().filter_map(|l| l.strip_prefix(what)?.strip_prefix(": ")) {
            *told.entry(without_stack(value).to_owned()).or_default() += 1;
        }
        ensure!(told.values().sum::<usize>() == count, "{count} requests: {told:?}");
        Ok(told)
    }

    /// What `openssl s_client` shows of the certificate: `subject`, `serial`.
    pub fn certificate(&self, index: usize, name: &str, shown: &str) -> Result<String> {
        let script = format!(
            "openssl s_client -connect {}:443 -servername {name} </dev/null 2>/dev/null | openssl x509 -noout -{shown}",
            node(index)
        );
        self.run(&["sh", "-c", &script])
    }

    pub fn websocket(&self, index: usize, host: &str, path: &str) -> Result<WebSocket> {
        WebSocket::open(&self.namespace, SocketAddr::new(node(index), 80), host, path)
    }

    /// 50 requests a second through all nodes.
    pub fn load(&self, host: &'static str) -> Result<Load> {
        Load::start_for(&self.namespace, every_node(80), Some(host), 50)
    }
}

/// Ends a load of which nothing may have failed.
pub fn none_failed(load: Load) -> Result<()> {
    let outcome = load.stop();
    ensure!(outcome.attempted > 50, "only {} requests were tried", outcome.attempted);
    ensure!(outcome.failed == 0, "{} of {} requests failed: {:?}", outcome.failed, outcome.attempted, outcome.failures);
    Ok(())
}
