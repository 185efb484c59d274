//! `cargo xtask demo`: the product in one minute, on this machine, without Docker.

use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{
    packages,
    run::{build, output, root, run as execute, say},
};

const NAME: &str = "demo";
/// Addresses of the emulator's nodes (RFC 5737), and where its outside clients are.
const NODES: [&str; 3] = ["192.0.2.11", "192.0.2.12", "192.0.2.13"];

pub(crate) fn run() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the demo makes network namespaces: run it as root");
    }
    packages::ensure(&["nftables", "iptables", "iproute2", "conntrack", "curl", "procps", "iputils-ping"])?;
    let lab = Lab { program: build(false)? };
    lab.down();
    let shown = lab.show();
    title("Down: the emulator takes away everything it made");
    lab.down();
    shown
}

struct Lab {
    program: PathBuf,
}

impl Lab {
    fn show(&self) -> Result<()> {
        title("Up: three nodes, their overlays, the tasks of examples/demo.yml, and an agent on each node");
        let stack = root().join("examples/demo.yml");
        // The agents' own variable: they take requests on port 80 of their nodes.
        execute(self.lab(&["up", "--name", NAME, "--nodes", "3", "--wait", "--file"]).arg(&stack).env("SWARMESH_HTTP", "0.0.0.0:80"))?;
        execute(&mut self.lab(&["status", "--name", NAME]))?;

        title("Published ports: any node answers, any task may, and it sees the client's own address");
        for node in NODES.into_iter().flat_map(|node| [node; 2]) {
            let answer = self.exec("client1", &["curl", "--silent", "--show-error", "--max-time", "5", &format!("http://{node}:8080/")])?;
            say(&format!("client1 -> {node}:8080   {}", first_lines(&answer, &["task", "node", "remote"])));
        }

        title("VIPs: from a task to another service; the server sees the calling task");
        let vip = self.vip("demo_api", "back")?;
        for _ in 0..2 {
            let answer = self.exec("demo_web.1", &["curl", "--silent", "--show-error", "--max-time", "5", &format!("http://{vip}/")])?;
            say(&format!("web.1 -> {vip} (api)   {}", first_lines(&answer, &["task", "node", "remote"])));
        }
        execute(&mut self.lab_exec("demo_web.1", &["ping", "-c", "1", "-W", "2", &vip]))?;

        title("Names: a service by its name, and a virtual IP back to it");
        for words in [&["getent", "ahostsv4", "api"][..], &["getent", "hosts", &vip]] {
            say(&format!("web.1$ {}", words.join(" ")));
            say(self.exec("demo_web.1", words)?.trim_end());
        }
        let answer = self.exec("demo_web.1", &["curl", "--silent", "--show-error", "--max-time", "5", "http://api/"])?;
        say(&format!("web.1 -> http://api/   {}", first_lines(&answer, &["task", "node", "remote"])));

        title("Routes: by a request's host, from our own labels and from Interlock's, to the tasks themselves");
        for (node, host) in NODES.into_iter().zip(["api.example.com", "api.example.org", "api.example.com"]) {
            let (url, header) = (format!("http://{node}/"), format!("Host: {host}"));
            let answer = self.exec("client1", &["curl", "--silent", "--show-error", "--max-time", "5", "--header", &header, &url])?;
            say(&format!("client1 -> {node} as {host}   {}", first_lines(&answer, &["task", "node"])));
        }

        title("Scaling: no task, no silence: a port without a usable task refuses at once");
        execute(&mut self.lab(&["scale", "--name", NAME, "demo_web=0"]))?;
        let url = format!("http://{}:8080/", NODES[0]);
        let call = || -> Result<std::process::Output> {
            Ok(self.lab_exec("client1", &["curl", "--silent", "--show-error", "--max-time", "5", &url]).output()?)
        };
        // Stopping tasks serve until they are gone.
        self.wait_for("no task of web is left", || Ok(!call()?.status.success()))?;
        let refused = call()?;
        say(&format!("client1 -> {}:8080   {}", NODES[0], String::from_utf8_lossy(&refused.stderr).trim()));
        execute(&mut self.lab(&["scale", "--name", NAME, "demo_web=3"]))?;
        self.wait_for("three tasks of web are back", || Ok(self.usable(8080)? == 3))?;

        title("What the agent on node1 says");
        for command in [
            &["status"][..],
            &["services"],
            &["endpoints"],
            &["names"],
            &["routes"],
            &["explain", "tcp://192.0.2.11:8080"],
            &["explain", "dns://tasks.api"],
            &["explain", "http://api.example.com/"],
        ] {
            let program = self.program.to_string_lossy().into_owned();
            let words: Vec<&str> = std::iter::once(program.as_str()).chain(command.iter().copied()).collect();
            say(&format!("\nnode1$ swarmesh {}", command.join(" ")));
            say(&self.exec("node1", &words)?);
        }
        Ok(())
    }

    fn down(&self) {
        // Whether there was anything to take down is not of interest here.
        let _ = execute(&mut self.lab(&["down", "--name", NAME]));
    }

    fn lab(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("lab").args(words);
        command
    }

    fn lab_exec(&self, place: &str, words: &[&str]) -> Command {
        let mut command = self.lab(&["exec", "--name", NAME, place, "--"]);
        command.args(words);
        command
    }

    fn exec(&self, place: &str, words: &[&str]) -> Result<String> {
        output(&mut self.lab_exec(place, words))
    }

    fn api(&self, path: &str) -> Result<Value> {
        let url = format!("http://127.0.0.1:9790{path}");
        Ok(serde_json::from_str(&self.exec("node1", &["curl", "--silent", "--max-time", "5", &url])?)?)
    }

    fn usable(&self, port: u16) -> Result<u64> {
        Ok(self.api(&format!("/v1/health/published/tcp/{port}"))?["usable"].as_u64().unwrap_or(0))
    }

    fn vip(&self, service: &str, network: &str) -> Result<String> {
        let snapshot = self.api("/v1/snapshot")?;
        let list = |name: &str| snapshot[name].as_array().cloned().unwrap_or_default();
        let network = list("networks").into_iter().find(|n| n["name"].as_str().is_some_and(|n| n.ends_with(network)));
        let network = network.context("the network is not in the snapshot")?["id"].clone();
        let service = list("services").into_iter().find(|s| s["name"] == service).context("the service is not in the snapshot")?;
        let vips = service["vips"].as_array().cloned().unwrap_or_default();
        let vip = vips.into_iter().find(|v| v["network"] == network).context("the service has no VIP there")?;
        Ok(vip["address"].as_str().unwrap_or_default().to_owned())
    }

    fn wait_for(&self, what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
        for _ in 0..150 {
            if done()? {
                say(&format!("({what})"));
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        bail!("waited 30 s in vain until {what}")
    }
}

fn title(text: &str) {
    say(&format!("\n== {text}"));
}

fn first_lines(answer: &str, fields: &[&str]) -> String {
    let wanted = answer.lines().filter(|l| fields.iter().any(|f| l.starts_with(&format!("{f}:"))));
    wanted.collect::<Vec<_>>().join("  ")
}
