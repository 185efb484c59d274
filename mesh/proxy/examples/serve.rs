//! A proxy with one worker before a backend on this machine, for profilers and benches.
//!
//! `serve LISTEN BACKEND HOSTS [--tls DIRECTORY] [--all LOG]`: routes `h0.example` to `h(HOSTS-1).example`, with
//! `X-Forwarded-For`, until stdin ends. `--tls` takes TLS instead, with `site.pem` and `site.key` from there. `--all` switches on what
//! a request can have and benches can carry: a line in this access log, all headers that say who asks, a request id,
//! retries, ejection and checks in the background. Metrics are always counted.
#![expect(clippy::print_stdout, reason = "says where it listens")]

use std::{
    io::Read,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use swarmesh_model::{NetworkId, TaskId};
use swarmesh_proxy::{
    Config, Proxy,
    access_log::{AccessLog, Field, LogTarget},
    config::Times,
    endpoint::OwnNamespace,
    routing::Switchboard,
};
use swarmesh_router::{
    Route,
    model::{
        Action, BackendMode, BackendSet, CertificateRef, Dialect, Ejection, Filter, ForwardHeaders, ForwardedProto, Listener, Match,
        Member, Origin, Owner, OwnerKind, Policy, Precedence, Retries, RetryOn, Share, Tasks,
    },
};

/// One service with one task.
struct One(IpAddr);

impl Tasks for One {
    fn vip(&self, _: &str, _: Option<&NetworkId>) -> Option<IpAddr> {
        None
    }

    fn usable(&self, _: &str, _: Option<&NetworkId>) -> Vec<(TaskId, IpAddr)> {
        vec![(TaskId::from("task"), self.0)]
    }

    fn published(&self, _: &str) -> Option<IpAddr> {
        None
    }

    fn network(&self, _: &str, _: Option<&NetworkId>) -> Option<NetworkId> {
        None
    }
}

/// What was asked for on the command line.
struct Wanted {
    listen: SocketAddr,
    backend: SocketAddr,
    hosts: u32,
    tls: Option<PathBuf>,
    log: Option<PathBuf>,
}

impl Wanted {
    fn read() -> Result<Self, Box<dyn std::error::Error>> {
        const USAGE: &str = "serve LISTEN BACKEND HOSTS [--tls DIRECTORY] [--all LOG]";
        let words: Vec<String> = std::env::args().skip(1).collect();
        let [listen, backend, hosts, options @ ..] = words.as_slice() else { return Err(USAGE.into()) };
        let mut wanted = Self { listen: listen.parse()?, backend: backend.parse()?, hosts: hosts.parse()?, tls: None, log: None };
        for option in options.chunks(2) {
            match option {
                [name, value] if name == "--tls" => wanted.tls = Some(value.into()),
                [name, value] if name == "--all" => wanted.log = Some(value.into()),
                _ => return Err(USAGE.into()),
            }
        }
        Ok(wanted)
    }

    fn config(&self) -> Config {
        let mut config = Config { workers: 1, name: "bench".to_owned(), ..Config::default() };
        // Idle connections are to stay while they are counted.
        config.times = Times { keep_alive: Duration::from_secs(300), ..config.times };
        match &self.tls {
            None => config.http = vec![self.listen],
            Some(directory) => {
                config.https = vec![self.listen];
                config.certificates_dir.clone_from(directory);
                config.default_certificate =
                    Some(CertificateRef::Files { certificate: "site.pem".to_owned(), key: Some("site.key".to_owned()) });
            }
        }
        config.access_log =
            self.log.clone().map(|file| AccessLog { to: LogTarget::File(file), sample: NonZeroU32::MIN, fields: Field::usual() });
        config
    }

    fn route(&self, number: u32) -> Route {
        let all = self.log.is_some();
        let owner = Owner { id: format!("{number}"), name: "web".to_owned(), kind: OwnerKind::Service };
        let forward = ForwardHeaders { forwarded_for: true, proto: Some(ForwardedProto::Set), real_ip: all, port: all, request_id: all };
        let on = [RetryOn::ConnectFailure, RetryOn::Timeout, RetryOn::Status(502), RetryOn::Status(503), RetryOn::Status(504)];
        let policy = if all {
            Policy {
                retries: Retries { attempts: Some(3), on: on.to_vec() },
                ejection: Some(Ejection { failures: 3, time: Duration::from_secs(10) }),
                check_connect: true,
                ..Policy::default()
            }
        } else {
            Policy::default()
        };
        Route {
            origin: Origin { owner, dialect: Dialect::Swarmesh, label: "bench".to_owned(), part: 0 },
            listener: Listener::Any,
            matching: Match::host(format!("h{number}.example")),
            precedence: Precedence::Specific { priority: 0 },
            share: Share::Alone,
            filters: vec![Filter::Forward(forward)],
            action: Action::Forward(BackendSet::of(Member::service("web", None, self.backend.port(), BackendMode::Task))),
            certificate: None,
            policy,
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let wanted = Wanted::read()?;
    let config = wanted.config();
    let mut switchboard = Switchboard::new(&config);
    let proxy = Proxy::start(config, Arc::new(OwnNamespace))?;
    let routes = (0..wanted.hosts).map(|number| Arc::new(wanted.route(number)));
    let (routing, _) = switchboard.route(routes, &One(wanted.backend.ip()));
    proxy.shared().set_routing(routing);
    println!("{:?}", proxy.addresses());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    proxy.stop();
    Ok(())
}
