//! Programs that ask for names as programs in containers do: through glibc, musl, Python, dig, busybox, and Go where it is there.
#![expect(clippy::print_stderr, reason = "the table's report")]

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::netns::within;

/// A program that prints the addresses of the name that is its last word.
#[derive(Clone, Debug)]
pub struct Client {
    pub name: &'static str,
    words: Vec<String>,
    /// Comes again by TCP for what was cut.
    pub has_tcp: bool,
    /// Tries the names of a search list until one is there. busybox shows what each of them gives.
    pub searches: bool,
}

fn client(name: &'static str, words: &[&str]) -> Client {
    Client { name, words: words.iter().map(|w| (*w).to_owned()).collect(), has_tcp: true, searches: true }
}

/// All that there are on this machine. Builds what has to be built in `directory`.
pub fn clients(directory: &Path) -> Result<Vec<Client>> {
    let source = |name: &str| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("clients").join(name);
    let build = |command: &mut Command| -> Result<()> {
        let output = command.output().with_context(|| format!("cannot run {:?}: is it installed?", command.get_program()))?;
        ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    let [glibc, musl, go] = ["glibc", "musl", "go"].map(|name| directory.join(name));
    let c = source("lookup.c");
    build(Command::new("gcc").args(["-Wall", "-Werror", "-O2", "-o"]).args([&glibc, &c]))?;
    build(Command::new("musl-gcc").args(["-static", "-Wall", "-Werror", "-O2", "-o"]).args([&musl, &c]))?;
    let python = "import socket, sys\n\
        try: print(*{a[4][0] for a in socket.getaddrinfo(sys.argv[1], None)}, sep='\\n')\n\
        except socket.gaierror as e: sys.exit(3 if e.errno == socket.EAI_NONAME else 1)";
    let mut clients = vec![
        client("glibc", &[&glibc.to_string_lossy()]),
        Client { has_tcp: false, ..client("musl", &[&musl.to_string_lossy()]) },
        client("Python", &["python3", "-c", python]),
        client("dig", &["dig", "+short", "+search"]),
        Client { has_tcp: false, searches: false, ..client("busybox", &["busybox", "nslookup"]) },
    ];
    if Command::new("go").arg("version").output().is_ok_and(|o| o.status.success()) {
        let cache = directory.join("cache");
        build(Command::new("go").args(["build", "-o"]).args([&go, &source("lookup.go")]).env("CGO_ENABLED", "0").env("GOCACHE", cache))?;
        clients.push(client("Go", &[&go.to_string_lossy()]));
    } else {
        eprintln!("      there is no go on this machine: its resolver is not tried");
    }
    Ok(clients)
}

impl Client {
    /// The addresses, in a container whose `resolv.conf` is this; `None` where the name does not exist.
    pub fn find(&self, namespace: &Path, resolv_conf: &Path, name: &str) -> Result<Option<BTreeSet<IpAddr>>> {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\""]);
        command.arg(resolv_conf).args(&self.words).arg(name);
        let output = within(namespace, move || command.output())??;
        let printed = String::from_utf8_lossy(&output.stdout);
        // busybox prints the server first, and all else after a label.
        let told = printed.split_once("\n\n").map_or(&*printed, |(_, answer)| answer);
        let found: BTreeSet<IpAddr> = told.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        match output.status.code() {
            Some(0) => Ok(Some(found)),
            Some(3) => Ok(None),
            Some(1) if self.name == "busybox" => Ok(None),
            code => bail!("{} {name}: {code:?}, {printed}{}", self.name, String::from_utf8_lossy(&output.stderr)),
        }
    }
}
