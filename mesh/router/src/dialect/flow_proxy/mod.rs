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

/// What a call of the proxy's API says of a service, as the labels that say the same, among those of its labels that another
/// dialect reads. Its name is not among the parameters that count: the owner has it.
pub fn labels_of(parameters: &BTreeMap<String, String>, others: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<String, String> =
        others.iter().filter(|(label, _)| !label.starts_with(PREFIX)).map(|(label, value)| (label.clone(), value.clone())).collect();
    let said = parameters.iter().filter(|(name, _)| !["servicename", "notify"].contains(&name.to_ascii_lowercase().as_str()));
    labels.extend(said.map(|(name, value)| (label(name), value.clone())));
    labels.insert(label("notify"), "true".to_owned());
    labels
}

/// Without another host, requests go to this one: to a name that is no service's.
pub fn lead_to_host(labels: &mut BTreeMap<String, String>, host: &str) {
    let outbound = label("outboundHostname");
    let is_said = |(label, value): (&String, &String)| label.eq_ignore_ascii_case(&outbound) && !value.trim().is_empty();
    if !labels.iter().any(is_said) {
        labels.retain(|label, _| !label.eq_ignore_ascii_case(&outbound));
        labels.insert(outbound, host.to_owned());
    }
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
