//! An agent on each node of a lab of real engines, inside of the node's namespaces as a package would install it.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::dockerlab::DockerLab;

/// The agents that this process started.
#[derive(Debug)]
pub struct Agents {
    program: PathBuf,
    options: Vec<String>,
    running: Vec<Option<Child>>,
}

impl Agents {
    /// None runs yet. The program is copied into the lab: what is built meanwhile does not mix with what runs.
    pub fn new(lab: &DockerLab, program: &Path) -> Result<Self> {
        let copy = lab.work().join("swarmesh");
        fs::copy(program, &copy).with_context(|| format!("cannot copy {}: is it built?", program.display()))?;
        Ok(Self { program: copy, options: Vec::new(), running: (0..lab.len()).map(|_| None).collect() })
    }

    /// Options of `swarmesh agent` for those that are started from now on.
    pub fn with_options(mut self, options: &[&str]) -> Self {
        self.options = options.iter().map(|&option| option.to_owned()).collect();
        self
    }

    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Starts a node's agent, which must not run.
    pub fn start(&mut self, lab: &DockerLab, node: usize) -> Result<()> {
        let slot = self.running.get_mut(node).context("there is no such node")?;
        ensure!(slot.is_none(), "the agent of node {} runs already", node + 1);
        let log = File::options().create(true).append(true).open(log(lab, node)?)?;
        let program = self.program.to_str().context("the lab's directory is not text")?;
        let mut command = lab.command_in_node(node, program)?;
        // The machine's own servers are not the lab's: nothing leaves it.
        let resolv_conf = lab.node_work(node)?.join("agent-resolv.conf");
        if !resolv_conf.exists() {
            fs::write(&resolv_conf, "")?;
        }
        command.args(["agent", "--source", "docker:unix:///var/run/docker.sock", "--state-dir"]).arg(state_dir(lab, node)?);
        command.arg("--resolv-conf").arg(resolv_conf).args(&self.options);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        *slot = Some(command.spawn().context("cannot start the agent")?);
        Ok(())
    }

    /// Ends a node's agent with `signal` and waits for its end.
    pub fn stop(&mut self, node: usize, signal: Signal) -> Result<()> {
        let mut child = self.running.get_mut(node).and_then(Option::take).context("the agent does not run")?;
        kill(Pid::from_raw(i32::try_from(child.id())?), signal)?;
        child.wait()?;
        Ok(())
    }

    /// Runs `swarmesh WORDS…` on a node, as an operator would.
    pub fn swarmesh(&self, lab: &DockerLab, node: usize, words: &[&str]) -> Result<String> {
        let program = self.program.to_str().context("the lab's directory is not text")?;
        let words: Vec<&str> = std::iter::once(program).chain(words.iter().copied()).collect();
        lab.exec_node(node, &words)
    }
}

/// Where a node's agent logs.
pub fn log(lab: &DockerLab, node: usize) -> Result<PathBuf> {
    Ok(lab.node_work(node)?.join("agent.log"))
}

/// Where a node's agent keeps its snapshot.
pub fn state_dir(lab: &DockerLab, node: usize) -> Result<PathBuf> {
    Ok(lab.node_work(node)?.join("agent"))
}

/// `docker service create` with the server of `swarmesh whoami` as its task, which says who it is: add options in `options`.
pub fn whoami<'a>(image: &'a str, name: &'a str, options: &[&'a str]) -> Vec<&'a str> {
    let mut words = vec!["service", "create", "--quiet", "--detach", "--no-resolve-image", "--name", name];
    words.extend(["--env", "WHOAMI_TASK={{.Task.Name}}", "--env", "WHOAMI_NODE={{.Node.Hostname}}"]);
    words.extend(["--env", "WHOAMI_SERVICE={{.Service.Name}}"]);
    words.extend(options);
    words.extend([image, "/bin/swarmesh", "whoami"]);
    words
}

/// The image that [`whoami`] needs: the program, which runs as that server unless told else, and a busybox to look around with.
pub fn import_image(lab: &DockerLab, program: &Path, tag: &str) -> Result<()> {
    let root = crate::dockerlab::Rootfs::new(lab.work().join("whoami"))?;
    root.program(program, "swarmesh")?;
    root.busybox(&["sh", "ip", "nc", "nslookup", "ping", "ps", "sleep", "wget"])?;
    lab.import_image_with(tag, root.path(), &[r#"CMD ["/bin/swarmesh", "whoami"]"#])?;
    Ok(fs::remove_dir_all(root.path())?)
}
