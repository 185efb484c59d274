//! Scratch network namespaces: made by a thread that unshares and ends, kept only by a descriptor, so nothing is left over.
#![allow(dead_code, reason = "each test binary uses its own part of this")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "only tests use this")]

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use nix::sched::{CloneFlags, unshare};
use swarmesh_kernel::{Kernel, LinuxKernel, Namespace, Netns};

/// A network namespace of this test's own, with loopback up.
pub(crate) struct Scratch {
    pub(crate) ns: Netns,
}

impl Scratch {
    /// `None`, with the reason printed, where the test cannot run.
    pub(crate) fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root to make a network namespace");
            return None;
        }
        // The thread's namespace would end with it, if not for the descriptor.
        let ns = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            Netns::current().unwrap()
        });
        let scratch = Self { ns: ns.join().unwrap() };
        scratch.run("ip link set lo up");
        Some(scratch)
    }

    /// Runs a command line inside, and returns what it printed.
    pub(crate) fn run(&self, line: &str) -> String {
        let mut words = line.split_whitespace();
        let mut command = Command::new(words.next().unwrap());
        command.args(words).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = self.ns.spawn(&mut command).unwrap().wait_with_output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A path to the namespace for as long as this value lives.
    pub(crate) fn path(&self) -> PathBuf {
        use std::os::fd::{AsFd, AsRawFd};
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.ns.as_fd().as_raw_fd()))
    }

    pub(crate) fn namespace(&self) -> Box<dyn Namespace> {
        LinuxKernel.open(&self.path()).unwrap()
    }
}
