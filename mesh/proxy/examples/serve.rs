//! A proxy with one worker before a backend on this machine, for profilers and benches.
//!
//! `serve LISTEN BACKEND HOSTS`: routes `h0.example` to `h(HOSTS-1).example`, with `X-Forwarded-For`, until stdin ends.
#![expect(clippy::print_stdout, reason = "says where it listens")]

use std::{
    io::Read,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use swarmesh_model::{NetworkId, TaskId};
use swarmesh_proxy::{Config, Proxy, endpoint::OwnNamespace, routing::Switchboard};
use swarmesh_router::{
    Route,
    model::{
        Action, BackendMode, BackendSet, Dialect, Filter, ForwardHeaders, ForwardedProto, Listener, Match, Member, Origin, Owner,
        OwnerKind, Policy, Precedence, Share, Tasks,
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

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [listen, backend, hosts] = words.as_slice() else { return Err("serve LISTEN BACKEND HOSTS".into()) };
    let (listen, backend, hosts): (SocketAddr, SocketAddr, u32) = (listen.parse()?, backend.parse()?, hosts.parse()?);
    let config = Config { http: vec![listen], workers: 1, name: "bench".to_owned(), ..Config::default() };
    let mut switchboard = Switchboard::new(&config);
    let proxy = Proxy::start(config, Arc::new(OwnNamespace))?;
    let routes = (0..hosts).map(|number| {
        let owner = Owner { id: format!("{number}"), name: "web".to_owned(), kind: OwnerKind::Service };
        let forward = ForwardHeaders { forwarded_for: true, proto: Some(ForwardedProto::Set), ..ForwardHeaders::default() };
        Arc::new(Route {
            origin: Origin { owner, dialect: Dialect::Swarmesh, label: "bench".to_owned(), part: 0 },
            listener: Listener::Any,
            matching: Match::host(format!("h{number}.example")),
            precedence: Precedence::Specific { priority: 0 },
            share: Share::Alone,
            filters: vec![Filter::Forward(forward)],
            action: Action::Forward(BackendSet::of(Member::service("web", None, backend.port(), BackendMode::Task))),
            certificate: None,
            policy: Policy::default(),
        })
    });
    let (routing, _) = switchboard.route(routes, &One(backend.ip()));
    proxy.shared().set_routing(routing);
    println!("{:?}", proxy.addresses());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    proxy.stop();
    Ok(())
}
