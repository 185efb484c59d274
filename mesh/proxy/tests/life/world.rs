//! A proxy with many hosts, which changes by orders.

use std::{
    collections::HashSet,
    fmt,
    net::{IpAddr, SocketAddr},
    path::Path,
    str::FromStr,
    sync::Arc,
};

use swarmesh_model::{NetworkId, TaskId};
use swarmesh_proxy::{Config, Proxy, ProxyError, endpoint::OwnNamespace, routing::Switchboard};
use swarmesh_router::{
    Route,
    model::{
        Action, BackendMode, BackendSet, CertificateRef, Dialect, Filter, ForwardHeaders, ForwardedProto, HeaderChange, HeaderChangeKind,
        Listener, Match, Member, Origin, Owner, OwnerKind, PathMatch, Piece, Policy, Precedence, Retries, RetryOn, Share, Tasks, Template,
    },
};

/// So many of the hosts have half of the requests, and tasks of their own, which flap.
pub(crate) const HOT: u32 = 16;
/// Addresses of tasks: the first half is the hot hosts', the other half everybody else's.
pub(crate) const TASKS: usize = 8;
/// Which a host's routes can have.
const FORMS: u32 = 3;
/// In the directory of certificates; for all hosts.
pub(crate) const CERTIFICATE: &str = "site.pem";

/// What is to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// This host's routes are others: the second number says which.
    Route(u32, u32),
    /// A host that nobody asks for comes or goes.
    Stranger(u32, bool),
    /// A task of the hot hosts takes requests or does not.
    Task(usize, bool),
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Route(host, form) => write!(f, "route {host} {form}"),
            Self::Stranger(host, is_there) => write!(f, "stranger {host} {is_there}"),
            Self::Task(task, is_there) => write!(f, "task {task} {is_there}"),
        }
    }
}

impl FromStr for Order {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let wrong = || format!("no order: {line}");
        let words: Vec<&str> = line.split(' ').collect();
        let [what, which, how] = words[..] else { return Err(wrong()) };
        let which: u32 = which.parse().map_err(|_| wrong())?;
        Ok(match what {
            "route" => Self::Route(which, how.parse().map_err(|_| wrong())?),
            "stranger" => Self::Stranger(which, how.parse().map_err(|_| wrong())?),
            "task" => Self::Task(which as usize, how.parse().map_err(|_| wrong())?),
            _ => return Err(wrong()),
        })
    }
}

/// Who has tasks where.
struct Services {
    addresses: Vec<IpAddr>,
    gone: HashSet<usize>,
}

impl Tasks for Services {
    fn vip(&self, _: &str, _: Option<&NetworkId>) -> Option<IpAddr> {
        None
    }

    fn usable(&self, owner: &str, _: Option<&NetworkId>) -> Vec<(TaskId, IpAddr)> {
        let Some((host, form)) = owner.split_once('.') else { return Vec::new() };
        let (Ok(host), Ok(form)) = (host.parse::<usize>(), form.parse::<usize>()) else { return Vec::new() };
        let (half, number) = (TASKS / 2, host + form);
        let first = if host < HOT as usize { 0 } else { half };
        let tasks = [number % half, (number + 1) % half].map(|task| first + task);
        let usable = tasks.into_iter().filter(|task| !self.gone.contains(task));
        usable.filter_map(|task| Some((TaskId::from(format!("{owner}.{task}")), *self.addresses.get(task)?))).collect()
    }

    fn published(&self, _: &str) -> Option<IpAddr> {
        None
    }

    fn network(&self, _: &str, _: Option<&NetworkId>) -> Option<NetworkId> {
        None
    }
}

pub(crate) struct World {
    proxy: Proxy,
    switchboard: Switchboard<u32>,
    services: Services,
    /// Of all tasks.
    port: u16,
}

impl World {
    /// `listen`: for HTTP, and for HTTPS.
    pub(crate) fn start(listen: [SocketAddr; 2], hosts: u32, tasks: &[SocketAddr], certificates: &Path) -> Result<Self, ProxyError> {
        let config = Config {
            http: vec![listen[0]],
            https: vec![listen[1]],
            workers: 1,
            name: "life".to_owned(),
            certificates_dir: certificates.to_owned(),
            ..Config::default()
        };
        let switchboard = Switchboard::by_owner(&config);
        let proxy = Proxy::start(config, Arc::new(OwnNamespace))?;
        let port = tasks.first().map_or(0, SocketAddr::port);
        let services = Services { addresses: tasks.iter().map(SocketAddr::ip).collect(), gone: HashSet::new() };
        let mut world = Self { proxy, switchboard, services, port };
        let all = (0..hosts).map(|host| (host, world.routes(host, 0))).collect::<Vec<_>>();
        world.change(all);
        Ok(world)
    }

    #[allow(dead_code, clippy::allow_attributes, reason = "who says where to listen need not ask")]
    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        self.proxy.addresses()
    }

    pub(crate) fn stop(self) {
        self.proxy.stop();
    }

    pub(crate) fn obey(&mut self, order: Order) {
        match order {
            Order::Route(host, form) => self.change(vec![(host, self.routes(host, form))]),
            Order::Stranger(host, is_there) => {
                let routes = if is_there { self.routes(host, 0) } else { Vec::new() };
                self.change(vec![(host, routes)]);
            }
            Order::Task(task, is_there) => {
                if is_there {
                    self.services.gone.remove(&task)
                } else {
                    self.services.gone.insert(task)
                };
                let concerned: Vec<String> = (0..HOT).flat_map(|host| (0..FORMS).map(move |form| service(host, form))).collect();
                self.switchboard.refresh(&concerned.iter().map(String::as_str).collect(), &self.services);
            }
        }
    }

    fn change(&mut self, owners: Vec<(u32, Vec<Arc<Route>>)>) {
        let routing = self.switchboard.change(owners, &self.services);
        self.proxy.shared().set_routing(routing);
    }

    /// A host's routes in one of several forms, all of which take all of its requests. Its tasks are told which host it was, and
    /// clients which form.
    fn routes(&self, host: u32, form: u32) -> Vec<Arc<Route>> {
        let parts: &[Option<&str>] = match form % FORMS {
            0 => &[None],
            1 => &[None, Some("/a")],
            _ => &[Some("/"), Some("/a"), Some("/b/c")],
        };
        let route = |(part, path): (u16, &Option<&str>)| {
            let owner = Owner { id: host.to_string(), name: format!("s{host}"), kind: OwnerKind::Service };
            let set = |name: &str, value: u32| HeaderChange {
                name: name.to_owned(),
                change: HeaderChangeKind::Set(Template(vec![Piece::Text(value.to_string())])),
                when: None,
            };
            let forward = ForwardHeaders { forwarded_for: true, proto: Some(ForwardedProto::Set), ..ForwardHeaders::default() };
            Arc::new(Route {
                origin: Origin { owner, dialect: Dialect::Swarmesh, label: "life".to_owned(), part },
                listener: Listener::Any,
                matching: Match { paths: path.iter().map(|path| PathMatch::prefix(*path)).collect(), ..Match::host(host_name(host)) },
                precedence: Precedence::Specific { priority: 0 },
                share: Share::Alone,
                filters: vec![Filter::Forward(forward), Filter::Request(set("x-host", host)), Filter::Response(set("x-form", form))],
                action: Action::Forward(BackendSet::of(Member::service(service(host, form), None, self.port, BackendMode::Task))),
                certificate: Some(CertificateRef::Files { certificate: CERTIFICATE.to_owned(), key: None }),
                policy: Policy {
                    // As Interlock's: a task that breaks off is no reason for the client to be told.
                    retries: Retries { attempts: None, on: vec![RetryOn::ConnectFailure, RetryOn::InvalidAnswer] },
                    ..Policy::default()
                },
            })
        };
        (0..).zip(parts).map(route).collect()
    }
}

/// Another one in each form, so that none of a host's backends outlives a change.
fn service(host: u32, form: u32) -> String {
    format!("{host}.{}", form % FORMS)
}

pub(crate) fn host_name(host: u32) -> String {
    format!("h{host}.life.example")
}
