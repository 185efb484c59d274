//! The proxies, one worker each, on the first core.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::run::{output, root};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Ours,
    /// The same with ten thousand hosts.
    OursLarge,
    Haproxy,
    Nginx,
    /// Bytes are copied and not looked at: the limit.
    Copy,
}

impl Kind {
    pub(super) const ALL: [Self; 5] = [Self::Ours, Self::OursLarge, Self::Haproxy, Self::Nginx, Self::Copy];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours, 1 host",
            Self::OursLarge => "ours, 10,000 hosts",
            Self::Haproxy => "HAProxy, 1 host",
            Self::Nginx => "nginx, 1 host",
            Self::Copy => "HAProxy in TCP mode, which copies bytes",
        }
    }

    const fn hosts(self) -> u32 {
        if matches!(self, Self::OursLarge) { 10_000 } else { 1 }
    }
}

pub(super) struct Proxy {
    pub(super) kind: Kind,
    pub(super) address: SocketAddr,
    pub(super) hosts: u32,
    child: Child,
}

impl Proxy {
    pub(super) fn start(kind: Kind, backend: SocketAddr, program: &Path, directory: &Path) -> Result<Self> {
        let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", "0"]);
        match kind {
            Kind::Ours | Kind::OursLarge => {
                command.arg(program).args([address.to_string(), backend.to_string(), kind.hosts().to_string()]);
            }
            Kind::Haproxy | Kind::Copy => {
                let file = directory.join(format!("haproxy-{}.cfg", address.port()));
                fs::write(&file, haproxy(kind, address, backend))?;
                command.args(["haproxy", "-db", "-f"]).arg(file);
            }
            Kind::Nginx => {
                let file = directory.join("nginx.conf");
                fs::write(&file, nginx(address, backend, directory))?;
                command.args(["nginx", "-c"]).arg(file);
            }
        }
        // Ours ends with its input.
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().context(kind.name())?;
        let proxy = Self { kind, address, hosts: kind.hosts(), child };
        let begun = Instant::now();
        while TcpStream::connect(address).is_err() {
            if begun.elapsed() > Duration::from_secs(10) {
                bail!("{} does not listen", kind.name());
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
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            nanoseconds += text.split(' ').next().and_then(|n| n.parse::<u64>().ok()).context("no time in schedstat")?;
        }
        Ok(nanoseconds as f64 / 1e9)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // One that has ended needs no end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One worker of ours before a backend, as a program.
pub(super) fn build() -> Result<PathBuf> {
    output(Command::new(env!("CARGO")).current_dir(root()).args([
        "build",
        "--release",
        "--package",
        "swarmesh-proxy",
        "--example",
        "serve",
    ]))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), Into::into);
    Ok(target.join("release/examples/serve"))
}

fn haproxy(kind: Kind, address: SocketAddr, backend: SocketAddr) -> String {
    let common = "global\n  nbthread 1\n  maxconn 4000\ndefaults\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n  timeout http-keep-alive 60s\n";
    if kind == Kind::Copy {
        return format!("{common}  mode tcp\nlisten copy\n  bind {address}\n  server one {backend}\n");
    }
    format!(
        "{common}  mode http\n  option forwardfor\n  http-reuse always\nfrontend in\n  bind {address}\n  use_backend web if {{ hdr(host) -i h0.example }}\n\
         backend web\n  http-request set-header X-Forwarded-Proto http\n  server one {backend}\n"
    )
}

fn nginx(address: SocketAddr, backend: SocketAddr, directory: &Path) -> String {
    let directory = directory.display();
    format!(
        "daemon off;\nmaster_process off;\npid {directory}/nginx.pid;\nerror_log /dev/null;\nevents {{ worker_connections 4096; }}\n\
         http {{\n  access_log off;\n  keepalive_requests 1000000000;\n  client_body_temp_path {directory}/c;\n  proxy_temp_path {directory}/p;\n\
         fastcgi_temp_path {directory}/f;\n  uwsgi_temp_path {directory}/u;\n  scgi_temp_path {directory}/s;\n\
         upstream web {{ server {backend}; keepalive 256; keepalive_requests 1000000000; }}\n\
         server {{ listen {address}; server_name h0.example;\n    location / {{ proxy_pass http://web; proxy_http_version 1.1;\n\
         proxy_set_header Connection \"\"; proxy_set_header Host $host; proxy_set_header X-Forwarded-Proto http;\n\
         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }} }}\n}}\n"
    )
}
