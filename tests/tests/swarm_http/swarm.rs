//! The swarm that the rows are about: three engines with agents that route, everything that is deployed there, and who asks.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use swarmesh_tests::{
    agents::{self, Agents},
    certificates::Certificates,
    dockerlab::DockerLab,
    http::Client,
    lab::program,
    patience::patient,
    printed::{
        BACK_END, BY_VIP, COUNTER, COUNTER_BACKEND, GO_DEMO_DB, PASSED, REDIRECTED, REWRITTEN, SESSION_EXAMPLE, STICKY, TERMINATED,
        TWO_SITES, demo, go_demo, session_example_https, session_example_sticky,
    },
    service_create::options,
};

pub(crate) const PREFIX: &str = "swhttp";
pub(crate) const NODES: usize = 3;
const IMAGE: &str = "whoami:1";
/// The documents' images. There is no registry here: all of them are [`IMAGE`] by another name.
const IMAGES: [&str; 11] = [
    "redis:3.0.7",
    "redis:latest",
    "mongo",
    "ahromis/session-example:0.1",
    "ahromis/nginx-twosite:latest",
    "ahromis/lbinfo:latest",
    "dockersuccess/webserver:latest",
    "dockersuccess/counter-demo:latest",
    "ehazlett/docker-demo",
    "ehazlett/interlock-default-app",
    "vfarcic/go-demo",
];
/// So that a task can say who it is.
const IDENTITY: [(&str, &str); 3] =
    [("WHOAMI_TASK", "{{.Task.Name}}"), ("WHOAMI_NODE", "{{.Node.Hostname}}"), ("WHOAMI_SERVICE", "{{.Service.Name}}")];
/// Where the nodes' agents find secrets. Docker gives them to tasks alone, so the proxy's own service hands them on.
const SECRETS: &str = "/run/swarmesh/secrets";
/// Where each node answers Docker Flow Proxy's calls.
pub(crate) const FLOW_PROXY: &str = "127.0.0.1:8081";
/// As docs/routes.md has it.
const HAND_ON: &str = r#"
trap exit TERM
cd /agent || exit 1
for file in /run/secrets/*; do cp "$file" .new && mv .new "${file##*/}"; done
for file in *; do [ -e "/run/secrets/$file" ] || rm -f "$file"; done
while :; do sleep 3600 & wait; done
"#;

pub(crate) struct Swarm {
    pub(crate) lab: DockerLab,
    pub(crate) agents: RefCell<Agents>,
    /// Asks from outside of the swarm.
    pub(crate) client: Client,
    pub(crate) certificates: Certificates,
}

/// A document's stack, and what one of its services needs here.
#[derive(Clone, Copy)]
struct Stack<'a> {
    name: &'a str,
    services: &'a str,
    /// Its own networks.
    own: &'a str,
    /// The one that is there already.
    joined: &'a str,
    domain: &'a str,
    service: &'a str,
    /// Lines of the service's `environment`.
    environment: &'a str,
    /// Lines beside that.
    beside: &'a str,
}

impl Swarm {
    pub(crate) fn up() -> Result<Self> {
        let start = Instant::now();
        let lab = DockerLab::up(PREFIX, NODES, NODES)?;
        configure(&lab, "")?;
        let config = format!("--config={}", config_file(&lab).display());
        let agents = Agents::new(&lab, &program())?.with_options(&["--http=0.0.0.0:80", "--https=0.0.0.0:443,0.0.0.0:8443", &config]);
        agents::import_image(&lab, agents.program(), IMAGE)?;
        lab.name_image(IMAGE, &IMAGES)?;
        let client = Client::new(Path::new("/run/netns").join(lab.client_netns(1)));
        let certificates = Certificates::new(lab.work());
        let swarm = Self { lab, agents: RefCell::new(agents), client, certificates };
        report(start, "three engines, one swarm, the images");
        let start = Instant::now();
        for node in 0..NODES {
            swarm.lab.exec_node(node, &["mkdir", "-p", "-m", "700", SECRETS])?;
            swarm.agents.borrow_mut().start(&swarm.lab, node)?;
        }
        swarm.deploy_all()?;
        report(start, "all stacks are asked for");
        let start = Instant::now();
        swarm.settled()?;
        report(start, "all tasks run, and every agent knows");
        Ok(swarm)
    }

    fn deploy_all(&self) -> Result<()> {
        let overlay = ["network", "create", "--driver", "overlay"];
        self.docker(&[&overlay[..], &["--label", "com.docker.ucp.mesh.http=true", "ucp-hrm"]].concat())?;
        for network in ["demo", "proxy", "go-demo"] {
            self.docker(&[&overlay[..], &[network]].concat())?;
        }
        let (certificate, key) = self.certificates.as_printed("demo.local")?;
        self.docker(&["secret", "create", "demo.local.cert", &certificate])?;
        self.docker(&["secret", "create", "demo.local.key", &key])?;
        self.docker(&["secret", "create", "pass.local.pem", &self.certificates.pem("pass.local")?])?;
        let users = self.lab.work().join("users");
        fs::write(&users, "observer:password\n")?;
        self.docker(&["secret", "create", "dfp_users_monitoring", &users.to_string_lossy()])?;
        // The proxy's own service of the documents: it is on its networks, on every node.
        let mut edge = vec!["service", "create", "--quiet", "--detach", "--no-resolve-image", "--name", "edge", "--mode", "global"];
        edge.extend(["--network", "ucp-hrm", "--network", "demo", "--network", "proxy"]);
        let mount = format!("type=bind,source={SECRETS},destination=/agent");
        for secret in ["demo.local.cert", "demo.local.key", "dfp_users_monitoring"] {
            edge.extend(["--secret", secret]);
        }
        edge.extend(["--mount", &mount, IMAGE, "/bin/sh", "-c", HAND_ON]);
        self.docker(&edge)?;

        let session = Stack {
            name: "http",
            services: SESSION_EXAMPLE,
            own: BACK_END,
            joined: "ucp-hrm",
            domain: "app.example.com",
            service: "session-example",
            environment: "WHOAMI_TCP: 8080",
            beside: "",
        };
        self.stack(&session)?;
        self.stack(&Stack { name: "sticky", services: &session_example_sticky(), domain: "session.example.com", ..session })?;
        self.stack(&Stack {
            name: "https",
            services: &session_example_https(),
            domain: "secure.example.com",
            environment: "WHOAMI_TCP: 8443\n      WHOAMI_TLS: /run/secrets/own.pem",
            beside: "    secrets: [own.pem]\n",
            ..session
        })?;
        self.create(TWO_SITES, "8000,8001")?;
        self.create(REDIRECTED, "8080")?;

        self.stack(&Stack {
            name: "counter",
            services: COUNTER,
            own: COUNTER_BACKEND,
            joined: "demo",
            domain: "app.dockerdemos.com",
            service: "web",
            environment: "WHOAMI_TCP: 2015",
            beside: "",
        })?;
        self.create(&renamed(&demo(STICKY), "sticky", "sticky.local"), "8080")?;
        self.create(&demo(TERMINATED), "8080")?;
        let own = format!("{PASSED} --secret pass.local.pem --env WHOAMI_TLS=/run/secrets/pass.local.pem");
        self.create(&renamed(&demo(&own), "passed", "pass.local"), "8080")?;
        self.create(&renamed(&demo(BY_VIP), "vip", "vip.local"), "8080")?;

        self.create(GO_DEMO_DB, "27017")?;
        self.create(&go_demo("--label com.df.servicePath=/demo/hello,/demo/person"), "8080")?;
        for (name, more) in [
            ("two-domains", "--label com.df.servicePath=/demo --label com.df.serviceDomain=my-domain.com,my-other-domain.com"),
            ("guarded", "--label com.df.servicePath=/guarded --label com.df.usersSecret=monitoring"),
            ("wildcard", "--label com.df.servicePath=/demo --label com.df.serviceDomain=*domain.org"),
            ("rewritten", &format!("--label com.df.servicePath=/something {}", REWRITTEN[0])),
            ("replaced", &format!("--label com.df.servicePath=/anything {}", REWRITTEN[1].replace("/something/", "/anything/"))),
        ] {
            self.create(&renamed(&go_demo(more), name, ""), "8080")?;
        }
        self.create(ROLLING, "8080")
    }

    /// `docker stack deploy` of the document's file, and of a second one with what is this lab's.
    fn stack(&self, stack: &Stack<'_>) -> Result<()> {
        let identity: String = IDENTITY.iter().map(|(name, value)| format!("      {name}: \"{value}\"\n")).collect();
        let pem = self.certificates.pem(stack.domain)?;
        let files = [
            format!(
                "version: \"3.8\"\nservices:\n{}\nnetworks:\n    {}:\n      external: true\n{}",
                stack.services, stack.joined, stack.own
            ),
            format!(
                "version: \"3.8\"\nservices:\n  {}:\n    environment:\n{identity}      {}\n{}secrets:\n  own.pem:\n    file: {pem}\n",
                stack.service, stack.environment, stack.beside
            ),
        ];
        let mut command = self.lab.docker_command(0);
        command.env("DOMAIN", stack.domain).args(["stack", "deploy", "--resolve-image", "never"]);
        for (kind, text) in ["printed", "here"].iter().zip(files) {
            let file = self.lab.work().join(format!("{}-{kind}.yml", stack.name));
            fs::write(&file, text)?;
            command.arg("--compose-file").arg(file);
        }
        let output = command.arg(stack.name).output()?;
        ensure!(output.status.success(), "stack {}: {}", stack.name, String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// A service by the command that a document prints; its server listens on `ports`.
    pub(crate) fn create(&self, command: &str, ports: &str) -> Result<()> {
        let mut words = ["service", "create", "--quiet", "--detach", "--no-resolve-image"].map(str::to_owned).to_vec();
        for (name, value) in IDENTITY.into_iter().chain([("WHOAMI_TCP", ports)]) {
            words.extend(["--env".to_owned(), format!("{name}={value}")]);
        }
        words.extend(options(command)?);
        self.docker(&words.iter().map(String::as_str).collect::<Vec<_>>()).map(drop)
    }

    /// The operator's file for all nodes, with these lines of `[router]` more, and an agent on each that has read it.
    pub(crate) fn restart_with(&self, more: &str) -> Result<()> {
        configure(&self.lab, more)?;
        for node in 0..NODES {
            self.agents.borrow_mut().stop(node, Signal::SIGTERM)?;
            self.agents.borrow_mut().start(&self.lab, node)?;
        }
        self.settled()
    }

    /// Runs the Docker client against the first node's engine.
    pub(crate) fn docker(&self, words: &[&str]) -> Result<String> {
        self.lab.docker(0, words)
    }

    /// Waits until every service has the tasks that it is to have and no others, and every agent has applied that.
    pub(crate) fn settled(&self) -> Result<()> {
        self.wait("all services have their tasks", 120, || {
            let services = array(&self.lab.api(0, "/services?status=true")?);
            let waiting: Vec<&Value> = services
                .iter()
                .filter(|s| s["ServiceStatus"]["RunningTasks"] != s["ServiceStatus"]["DesiredTasks"])
                .map(|s| &s["Spec"]["Name"])
                .collect();
            ensure!(waiting.is_empty(), "still waiting for {waiting:?}");
            Ok(true)
        })?;
        let mut tasks = BTreeSet::new();
        self.wait("no task is leaving", 60, || {
            let all = array(&self.lab.api(0, "/tasks")?);
            let lives = |t: &&Value| t["Status"]["State"] == "running";
            let leaving = all.iter().filter(lives).filter(|t| t["DesiredState"] != "running").count();
            tasks = all.iter().filter(lives).filter_map(|t| Some(t["ID"].as_str()?.to_owned())).collect();
            ensure!(leaving == 0, "{leaving} tasks are leaving");
            Ok(true)
        })?;
        for node in 0..NODES {
            self.wait(&format!("n{} has applied all of it", node + 1), 30, || {
                let snapshot = self.admin(node, "/v1/snapshot")?;
                let usable = |t: &&Value| t["state"] == "running" && t["desired_state"] == "running" && t["healthy"] != false;
                let known: BTreeSet<String> =
                    array(&snapshot["tasks"]).iter().filter(usable).filter_map(|t| Some(t["id"].as_str()?.to_owned())).collect();
                ensure!(known == tasks, "it knows {} tasks of {}", known.len(), tasks.len());
                self.admin(node, "/readyz").map(|_| true)
            })?;
        }
        Ok(())
    }

    /// What an agent's admin API answers with 200.
    pub(crate) fn admin(&self, node: usize, path: &str) -> Result<Value> {
        let url = format!("http://127.0.0.1:9790{path}");
        Ok(serde_json::from_str(&self.node(node).run(&["curl", "--silent", "--show-error", "--fail", "--max-time", "10", &url])?)?)
    }

    /// Asks from a node.
    pub(crate) fn node(&self, node: usize) -> Client {
        Client::new(Path::new("/run/netns").join(self.lab.node_netns(node)))
    }

    /// Polls until `done`.
    pub(crate) fn wait(&self, what: &str, seconds: u64, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
        let end = Instant::now() + patient(Duration::from_secs(seconds));
        loop {
            let outcome = done();
            if matches!(outcome, Ok(true)) {
                return Ok(());
            }
            if Instant::now() > end {
                outcome.with_context(|| format!("waited in vain until {what}"))?;
                bail!("waited {seconds} s in vain until {what}");
            }
            sleep(Duration::from_millis(200));
        }
    }
}

fn config_file(lab: &DockerLab) -> PathBuf {
    lab.work().join("swarmesh.toml")
}

fn configure(lab: &DockerLab, more: &str) -> Result<()> {
    let text = format!("[router]\nsecrets = {SECRETS:?}\n{more}[flow-proxy]\napi = {FLOW_PROXY:?}\n");
    Ok(fs::write(config_file(lab), text)?)
}

/// A replaced task is told to stop, serves on for a moment, as a careful server does, and is asked for its health.
const ROLLING: &str = r#"docker service create --name rolling --network demo --replicas 6 \
    --label com.docker.lb.hosts=rolling.local --label com.docker.lb.port=8080 --env WHOAMI_LINGER=2 \
    --health-cmd "wget -q -O /dev/null http://127.0.0.1:8080/health" --health-interval 500ms --health-retries 20 --health-timeout 3s \
    --update-order start-first --update-parallelism 3 --update-delay 500ms --stop-grace-period 10s ehazlett/docker-demo"#;

/// The document's command for a service beside the document's others: by another name, for another host.
pub(crate) fn renamed(command: &str, name: &str, host: &str) -> String {
    let command = command.replace("--name demo ", &format!("--name {name} ")).replace("--name go-demo ", &format!("--name {name} "));
    command.replace("hosts=demo.local", &format!("hosts={host}"))
}

pub(crate) fn array(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

fn report(start: Instant, what: &str) {
    eprintln!("      {:6.1} s  {what}", start.elapsed().as_secs_f32());
}
