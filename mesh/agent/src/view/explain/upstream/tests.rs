//! With a real forwarder, for nobody else can write what it remembers.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    rc::Rc,
    sync::Arc,
};

use swarmesh_dns::{
    Shared,
    forward::{Forwarder, Limits, Route, Sockets},
    wire::{Query, kind, question},
};
use swarmesh_plan::{NodeContext, Takeover, plan};

use super::*;
use crate::view::explain::{Explanation, Local, Verdict, explain};

const SWARM: &str = r#"{"version": 1,
"networks": [{"id": "back", "name": "back", "subnets": [{"subnet": "10.0.1.0/24"}]}],
"services": [{"id": "web", "name": "web", "vips": [{"network": "back", "address": "10.0.1.2"}]}],
"tasks": [{"id": "t1", "service": "web", "name": "web.1.t1", "node": "n1", "desired_state": "running", "state": "running",
  "sandbox": "sb1", "addresses": [{"network": "back", "address": "10.0.1.5"}]}],
"nodes": [{"id": "n1", "hostname": "node1", "address": "192.0.2.11"}]}"#;

/// Two servers of documentation's addresses, which are sockets of this test.
struct Redirected {
    servers: [(IpAddr, SocketAddr); 2],
}

impl Sockets for Redirected {
    fn udp(&self, _: &Origin, server: SocketAddr) -> io::Result<UdpSocket> {
        let (_, to) = self.servers.iter().find(|(known, _)| *known == server.ip()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_nonblocking(true)?;
        socket.connect(to)?;
        Ok(socket)
    }

    fn tcp(&self, _: &Origin, _: SocketAddr) -> io::Result<TcpStream> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

fn ask(view: &View) -> Explanation {
    explain(view, &"dns://other.example?from=web.1.t1".parse().unwrap(), &Local::default())
}

#[test]
fn who_is_asked_is_told_with_what_is_known_of_it() {
    let snapshot = swarmesh_model::Snapshot::from_json(SWARM).unwrap();
    let context = NodeContext { node: Some("n1".into()), takeover: Takeover::On, ..NodeContext::default() };
    let plan = plan(&snapshot, &context);
    let servers: [IpAddr; 2] = ["192.0.2.53".parse().unwrap(), "192.0.2.54".parse().unwrap()];
    let shared = Arc::new(Shared::default());
    let dns = Some(Arc::clone(&shared));
    let view = View { snapshot, plan, context, host_servers: servers.into(), dns, ..View::default() };

    let told = ask(&view);
    assert_eq!(told.verdict, Verdict::NotOurs);
    assert!(told.summary.contains("192.0.2.53 from the host, by its resolv.conf; 192.0.2.54 from the host"), "{}", told.summary);
    let hop = told.hops.iter().find(|hop| hop.at == "upstream").unwrap();
    assert_eq!(
        hop.what,
        "now 192.0.2.53 would be asked, the first in order, and 192.0.2.54 too if there is no answer within 150 ms; \
         none of them has answered anything yet"
    );
    assert!(hop.upstreams.iter().all(|row| row.words().ends_with("resolv.conf; not asked yet")), "{:?}", hop.upstreams);

    // The first says nothing, the second that there is no such name.
    let sockets = [UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap()];
    let places = [0, 1].map(|index: usize| (servers[index], sockets[index].local_addr().unwrap()));
    let [_silent, answering] = sockets;
    std::thread::spawn(move || {
        let mut room = [0; 512];
        while let Ok((len, client)) = answering.recv_from(&mut room) {
            room[2..4].copy_from_slice(&[0x81, 0x83]);
            let _ = answering.send_to(&room[..len], client);
        }
    });
    let upstreams: Vec<Upstream> =
        servers.iter().map(|server| Upstream { server: SocketAddr::new(*server, 53), origin: Origin::Host }).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let health = Arc::clone(&shared.upstreams);
        let sockets = Arc::new(Redirected { servers: places });
        let forwarder = Rc::new(Forwarder::new(sockets, Limits::default(), Arc::default(), Arc::clone(&health)));
        let query = question("other.example", kind::A).unwrap();
        let route = Route { asker: 1, upstreams: upstreams.clone().into(), inner: None };
        forwarder.resolve(&Query::parse(&query).unwrap(), &route).await;
        while health.conduct(&upstreams[0]).failures == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });

    let told = ask(&view);
    let hop = told.hops.iter().find(|hop| hop.at == "upstream").unwrap();
    let [first, second] = &hop.upstreams[..] else { panic!("{:?}", hop.upstreams) };
    assert_eq!((first.answers, first.failures, first.latency_ms), (0, 1, None));
    assert_eq!((second.answers, second.failures), (1, 0));
    assert!(second.latency_ms.is_some() && second.last_answer_seconds_ago.is_some() && first.last_failure_seconds_ago.is_some());
    // It rests for a second; this test may have slept longer.
    let expected = if first.rests_seconds.is_some() {
        "now 192.0.2.54 would be asked, the first in order that does not rest"
    } else {
        assert!(first.on_trial);
        "now 192.0.2.53 would be asked, the first in order, and 192.0.2.54 at the same time"
    };
    assert!(hop.what.starts_with(expected), "{}", hop.what);
    assert!(hop.what.contains("the last answer was that of 192.0.2.54, "), "{}", hop.what);
    assert!(first.words().contains("1 not answered") && second.words().contains("1 answered in "), "{:?}", hop.upstreams);
}
