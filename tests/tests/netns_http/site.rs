//! The emulated swarm that the rows are about, its client, and what the nodes' operator keeps in files.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread::JoinHandle,
};

use anyhow::{Result, ensure};
use swarmesh_tests::{
    certificates::Certificates,
    http::{Client, node},
    lab::Lab,
    netns::spawn_within,
    printed::GO_DEMO_DB,
    service_create::service,
};

pub(crate) const NODES: [&str; 3] = ["node1", "node2", "node3"];

pub(crate) struct Site {
    pub(crate) lab: Lab,
    /// Asks from outside of the swarm.
    pub(crate) client: Client,
    pub(crate) certificates: Certificates,
    files: tempfile::TempDir,
}

/// A stack of `services` and the networks of the documents; `networks` are those of the services' own.
pub(crate) fn stack(services: &str, networks: &str) -> String {
    format!(
        r#"
version: "3.8"
services:
    edge:
      image: example/edge
      networks: [ucp-hrm, demo, proxy]
      deploy: {{mode: global}}
{services}
networks:
    ucp-hrm:
      name: ucp-hrm
      labels: {{com.docker.ucp.mesh.http: "true"}}
    demo:
      name: demo
    proxy:
      name: proxy
{networks}
"#
    )
}

fn configure(files: &Path, more: &str) -> Result<()> {
    let secrets = files.join("secrets");
    Ok(fs::write(files.join("swarmesh.toml"), format!("[router]\nsecrets = {secrets:?}\ncertificates = {files:?}\n{more}"))?)
}

impl Site {
    pub(crate) fn up() -> Result<Self> {
        let files = tempfile::tempdir()?;
        fs::create_dir(files.path().join("secrets"))?;
        configure(files.path(), "")?;
        let config = format!("--agent-arg=--config={}", files.path().join("swarmesh.toml").display());
        let lab = Lab::up(
            "http",
            3,
            &stack("", ""),
            &["--agent-arg=--http=0.0.0.0:80", "--agent-arg=--https=0.0.0.0:443,0.0.0.0:8443", &config],
        )?;
        lab.settled(&NODES)?;
        let (client, certificates) = (Client::new(lab.namespace("client1")), Certificates::new(files.path()));
        Ok(Self { lab, client, certificates, files })
    }

    pub(crate) fn file(&self, name: &str) -> String {
        self.files.path().join(name).to_string_lossy().into_owned()
    }

    /// The operator's file for all nodes, with these lines more.
    pub(crate) fn configure(&self, more: &str) -> Result<()> {
        configure(self.files.path(), more)
    }

    /// Puts `services` in the place of what was there, and waits until they are served.
    pub(crate) fn deploy(&self, services: &str, networks: &str, variables: &[(&str, &str)]) -> Result<()> {
        self.lab.deploy(&stack("", ""))?;
        self.lab.wait("what was there is gone", || {
            Ok(self.lab.snapshot()?["services"].as_array().is_some_and(|services| services.len() == 1))
        })?;
        self.lab.deploy_with(&stack(services, networks), variables)?;
        self.lab.lab(&["wait"])?;
        self.lab.settled(&NODES)
    }

    pub(crate) fn create_demo(&self, command: &str) -> Result<()> {
        self.create(&[(GO_DEMO_DB, "27017"), (command, "8080")])
    }

    /// Services by the commands that documents print, each with the ports that its server listens on.
    pub(crate) fn create(&self, commands: &[(&str, &str)]) -> Result<()> {
        let services: String = commands.iter().map(|(command, ports)| service(command, ports)).collect::<Result<_>>()?;
        self.deploy(&services, "    go-demo:\n      name: go-demo\n", &[])
    }

    /// `docker secret create NAME FILE`: on a node, secrets are files.
    pub(crate) fn secret(&self, name: &str, file: &str) -> Result<()> {
        let (new, place) = (self.file("new-secret"), Path::new(&self.file("secrets")).join(name));
        fs::copy(file, &new)?;
        Ok(fs::rename(new, place)?)
    }

    /// Restarts every agent, for what is read at its start.
    pub(crate) fn restart_agents(&self) -> Result<()> {
        self.lab.restart_agents(&NODES)
    }

    pub(crate) fn wait_for_tasks(&self, service: &str, count: usize) -> Result<()> {
        self.lab.wait(&format!("{service} has {count} tasks and no other"), || {
            Ok(self.lab.tasks(service)?.len() == count && self.lab.all_tasks(service)?.len() == count)
        })?;
        self.lab.settled(&NODES)
    }
}

/// Handshakes with every node, one after the other and each a new one, until it is told to stop.
pub(crate) struct Handshakes {
    stop: PathBuf,
    running: Vec<JoinHandle<Result<String>>>,
}

impl Handshakes {
    pub(crate) fn start(site: &Site) -> Result<Self> {
        let stop = PathBuf::from(site.file("stop-handshakes"));
        // Nothing may be left of the last run.
        let _ = fs::remove_file(&stop);
        let mut running = Vec::new();
        for index in 0..NODES.len() {
            let lead = format!("demo.local:443:{}", node(index));
            let script = format!(
                "while [ ! -e {} ]; do curl --silent --show-error --insecure --max-time 5 --resolve {lead} --output /dev/null \
                 --write-out '%{{http_code}}\\n' https://demo.local/ping 2>&1; done",
                stop.display()
            );
            let namespace = site.client.namespace().to_owned();
            let run = move || Ok(String::from_utf8_lossy(&Command::new("sh").args(["-c", &script]).output()?.stdout).into_owned());
            running.push(spawn_within(&namespace, run)?);
        }
        Ok(Self { stop, running })
    }

    pub(crate) fn stop(self) -> Result<()> {
        fs::write(&self.stop, "")?;
        for run in self.running {
            let printed = run.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
            let (good, bad): (Vec<&str>, Vec<&str>) = printed.lines().partition(|line| *line == "200");
            ensure!(bad.is_empty(), "{} of {} failed: {:?}", bad.len(), good.len() + bad.len(), bad.first());
            ensure!(good.len() > 20, "only {} handshakes", good.len());
        }
        Ok(())
    }
}
