//! Docker Flow Proxy: `com.df.*` on services.
//!
//! A service has destinations, numbered 1 to 10, or one without a number. All services' routes are one list, which is
//! searched from its beginning: the first that matches has the request, not the most precise.

mod destination;
mod service;

use std::{collections::BTreeMap, time::Duration};

use self::service::Reader;
use super::{Maker, Outcome, Workload, haproxy::HostAlgorithm, labels};
use crate::{
    model::{Dialect, Timeouts},
    problem::Reason,
};

/// What its labels begin with.
pub const PREFIX: &str = "com.df.";

/// What the proxy's environment said there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `SEPARATOR`
    pub separator: String,
    /// `SERVICE_DOMAIN_ALGO`
    pub domain_algorithm: String,
    /// `HTTPS_ONLY`
    pub https_only: bool,
    /// `PROXY_INSTANCE_NAME`, if `FILTER_PROXY_INSTANCE_NAME` is true
    pub instance: Option<String>,
    /// The networks that the proxy was on. A service on one of them is reached there, another in its first.
    pub networks: Vec<String>,
    /// `TIMEOUT_CONNECT` and so on
    pub timeouts: Timeouts,
    /// `maxconn` of its template
    pub connections: u32,
}

impl Default for Settings {
    fn default() -> Self {
        let seconds = |n| Some(Duration::from_secs(n));
        Self {
            separator: ",".to_owned(),
            domain_algorithm: "hdr_beg(host)".to_owned(),
            https_only: false,
            instance: None,
            networks: vec!["proxy".to_owned()],
            timeouts: Timeouts {
                connect: seconds(5),
                client: seconds(20),
                server: seconds(20),
                queue: seconds(30),
                tunnel: seconds(3600),
                request: seconds(5),
                keep_alive: seconds(15),
            },
            connections: 5000,
        }
    }
}

/// Whether `SERVICE_DOMAIN_ALGO` can be understood.
pub fn check_domain_algorithm(text: &str) -> Result<(), Reason> {
    HostAlgorithm::of_host(text).map(drop)
}

/// Parameters that may have a number behind them.
const INDEXED: [&str; 30] = [
    "allowedmethods",
    "balancegroup",
    "checktcp",
    "clitcpka",
    "deniedmethods",
    "denyhttp",
    "httpsonly",
    "httpsport",
    "httpsredirectcode",
    "ignoreauthorization",
    "outboundhostname",
    "pathtype",
    "port",
    "redirectfromdomain",
    "reqmode",
    "reqpathsearchreplace",
    "servicedomain",
    "servicegroup",
    "serviceheader",
    "servicepath",
    "servicepathexclude",
    "srcport",
    "srchttpsport",
    "sslverifynone",
    "timeoutclient",
    "timeoutserver",
    "timeouttunnel",
    "verifyclientssl",
    "useragent",
    "userdef",
];

/// Parameters of the service as a whole.
const SERVICE: [&str; 44] = [
    "aclname",
    "addheader",
    "addreqheader",
    "addresheader",
    "backendextra",
    "checkresolvers",
    "compressionalgo",
    "compressiontype",
    "connectionmode",
    "consultemplatebepath",
    "consultemplatefepath",
    "delreqheader",
    "delresheader",
    "discoverytype",
    "distribute",
    "isdefaultbackend",
    "notify",
    "notifyservice",
    "proxyinstancename",
    "redirectunlesshttpsproto",
    "redirectwhenhttpproto",
    "replicas",
    "reqpathreplace",
    "reqpathsearch",
    "reqrepreplace",
    "reqrepsearch",
    "scrapenetwork",
    "servicecert",
    "servicecolor",
    "servicedomainalgo",
    "servicedomainmatchall",
    "servicename",
    "sessiontype",
    "setheader",
    "setreqheader",
    "setresheader",
    "shortname",
    "skipcheck",
    "templatebepath",
    "templatefepath",
    "users",
    "userspassencrypted",
    "userssecret",
    "xforwardedproto",
];

/// A label that cannot be followed: its name, what to show of its value, and why.
type Fault = Box<(String, String, Reason)>;

fn fault(label: impl Into<String>, value: impl Into<String>, reason: Reason) -> Fault {
    Box::new((label.into(), value.into(), reason))
}

/// Reads all labels of the dialect.
pub fn read(workload: &Workload<'_>, settings: &Settings, outcome: &mut Outcome) {
    let mut params = BTreeMap::new();
    for (label, value) in workload.labels_from(PREFIX) {
        params.insert(label[PREFIX.len()..].to_ascii_lowercase(), (label, value.trim()));
    }
    let mut maker = Maker::new(&workload.owner, Dialect::FlowProxy, outcome);
    match params.get("notify") {
        None => return,
        Some((label, value)) => match labels::boolean(value) {
            Ok(true) => {}
            Ok(false) => return,
            Err(reason) => return maker.refuse(label, *value, reason),
        },
    }
    let mut reader = Reader { workload, settings, params };
    if let Err(fault) = reader.read(&mut maker) {
        let (label, value, reason) = *fault;
        maker.refuse(&label, value, reason);
    }
}

fn label(name: &str) -> String {
    format!("{PREFIX}{name}")
}
