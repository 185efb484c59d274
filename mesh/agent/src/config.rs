//! Flags, environment, file, defaults: in this order, each key by itself.

mod dialects;
mod router;

use std::{
    collections::BTreeSet,
    fmt, fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use serde::Deserialize;
use swarmesh_dns::Compat;
use swarmesh_plan::Takeover;
use swarmesh_router::dialect;
use swarmesh_source::SourceSpec;
use toml::Spanned;

pub const DEFAULT_FILE: &str = "/etc/swarmesh/swarmesh.toml";
const DEFAULT_SOCKET: &str = "unix:///var/run/docker.sock";
const DEFAULT_NETNS_DIR: &str = "/var/run/docker/netns";
const DEFAULT_STATE_DIR: &str = "/var/lib/swarmesh";
const DEFAULT_RESOLV_CONF: &str = "/etc/resolv.conf";
const DEFAULT_LOG: &str = "info";

/// A configuration that cannot be used. Exit code 64.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration file {}: {error}", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("{}:{line}: {message}", path.display())]
    File { path: PathBuf, line: usize, message: String },
    #[error("{0} is to be listened on twice by --http and --https; give each address once")]
    Twice(SocketAddr),
    #[error("--http and --https take addresses, or off alone")]
    OffBeside,
}

/// A value that is not one of those the flag takes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    #[error("{0:?} is not a plane; use auto, ebpf, ipvs or nft")]
    Plane(String),
    #[error("{0:?} is neither on nor labelled")]
    Takeover(String),
    #[error("{0:?} is neither ADDRESS:PORT nor the path of a unix socket; the usual one is 127.0.0.1:9790")]
    Admin(String),
    #[error("{0:?} is neither table nor json")]
    Output(String),
    #[error("{0:?} is neither on nor off")]
    Dns(String),
    #[error("{0:?} is neither swarmesh nor docker")]
    Compat(String),
    #[error("{0:?} is not a number of seconds from 0 to 86400")]
    Ttl(String),
    #[error("{0:?} is neither off nor ADDRESS:PORT, such as 0.0.0.0:80 or [::]:80")]
    Listen(String),
}

/// `--plane`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PlaneChoice {
    #[default]
    Auto,
    Nft,
    Ipvs,
    Ebpf,
}

impl fmt::Display for PlaneChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Nft => "nft",
            Self::Ipvs => "ipvs",
            Self::Ebpf => "ebpf",
        })
    }
}

impl FromStr for PlaneChoice {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "auto" => Ok(Self::Auto),
            "nft" => Ok(Self::Nft),
            "ipvs" => Ok(Self::Ipvs),
            "ebpf" => Ok(Self::Ebpf),
            _ => Err(ValueError::Plane(text.to_owned())),
        }
    }
}

pub(crate) fn takeover(text: &str) -> Result<Takeover, ValueError> {
    match text {
        "on" => Ok(Takeover::On),
        "labelled" => Ok(Takeover::Labelled),
        _ => Err(ValueError::Takeover(text.to_owned())),
    }
}

pub(crate) fn dns(text: &str) -> Result<bool, ValueError> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(ValueError::Dns(text.to_owned())),
    }
}

pub(crate) fn compat(text: &str) -> Result<Compat, ValueError> {
    match text {
        "swarmesh" => Ok(Compat::Swarmesh),
        "docker" => Ok(Compat::Docker),
        _ => Err(ValueError::Compat(text.to_owned())),
    }
}

pub(crate) fn ttl(text: &str) -> Result<u32, ValueError> {
    text.parse().ok().filter(|seconds| *seconds <= 86_400).ok_or_else(|| ValueError::Ttl(text.to_owned()))
}

/// One word of `--http` or `--https`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listen {
    Off,
    At(SocketAddr),
}

impl FromStr for Listen {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let text = text.trim();
        if text == "off" {
            return Ok(Self::Off);
        }
        let address: Option<SocketAddr> = text.parse().ok().filter(|a: &SocketAddr| a.port() != 0);
        address.map(Self::At).ok_or_else(|| ValueError::Listen(text.to_owned()))
    }
}

/// Nothing if none was said, and an empty list for `off`.
pub(crate) fn listeners(words: &[Listen]) -> Result<Option<Vec<SocketAddr>>, ConfigError> {
    let addresses: Vec<SocketAddr> = words.iter().filter_map(|w| if let Listen::At(address) = w { Some(*address) } else { None }).collect();
    match (words.len(), addresses.len()) {
        (0, _) => Ok(None),
        (1, 0) => Ok(Some(addresses)),
        (all, some) if all == some => Ok(Some(addresses)),
        _ => Err(ConfigError::OffBeside),
    }
}

/// Where requests come in; nowhere by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listeners {
    pub http: Vec<SocketAddr>,
    pub https: Vec<SocketAddr>,
}

impl Listeners {
    pub fn is_empty(&self) -> bool {
        self.http.is_empty() && self.https.is_empty()
    }

    pub fn has_port(&self, port: u16) -> bool {
        self.http.iter().chain(&self.https).any(|address| address.port() == port)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let mut seen = BTreeSet::new();
        match self.http.iter().chain(&self.https).find(|address| !seen.insert(**address)) {
            Some(address) => Err(ConfigError::Twice(*address)),
            None => Ok(()),
        }
    }
}

/// What is routed, and where requests come in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouterConfig {
    pub listeners: Listeners,
    /// What was said beside the labels, in the systems that the labels were for.
    pub dialects: Arc<dialect::Settings>,
    /// All of the proxy's but its listeners.
    pub proxy: Arc<swarmesh_proxy::Config>,
    /// Where Docker Flow Proxy's API is answered; nowhere by default.
    pub flow_proxy_api: Option<SocketAddr>,
}

/// Where the admin API listens, or is to be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminAddress {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Default for AdminAddress {
    fn default() -> Self {
        Self::Tcp(SocketAddr::from(([127, 0, 0, 1], 9790)))
    }
}

impl FromStr for AdminAddress {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let path = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:")).unwrap_or(text);
        if path.starts_with('/') {
            return Ok(Self::Unix(path.into()));
        }
        let numeric = text.strip_prefix("localhost:").map_or_else(|| text.to_owned(), |port| format!("127.0.0.1:{port}"));
        numeric.parse().map(Self::Tcp).map_err(|_| ValueError::Admin(text.to_owned()))
    }
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// `--output`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

impl FromStr for Output {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "table" => Ok(Self::Table),
            "json" => Ok(Self::Json),
            _ => Err(ValueError::Output(text.to_owned())),
        }
    }
}

/// One layer of settings: what one of flags and environment (which clap merges) or file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layer {
    pub source: Option<SourceSpec>,
    pub plane: Option<PlaneChoice>,
    pub admin: Option<AdminAddress>,
    pub netns_dir: Option<PathBuf>,
    pub state_dir: Option<PathBuf>,
    pub takeover: Option<Takeover>,
    pub node: Option<String>,
    pub output: Option<Output>,
    pub log: Option<String>,
    pub dns: Option<bool>,
    pub dns_ttl: Option<u32>,
    pub dns_compat: Option<Compat>,
    pub resolv_conf: Option<PathBuf>,
    pub http: Option<Vec<SocketAddr>>,
    pub https: Option<Vec<SocketAddr>>,
    pub dialects: Option<Arc<dialect::Settings>>,
    pub proxy: Option<Arc<swarmesh_proxy::Config>>,
    pub flow_proxy_api: Option<SocketAddr>,
}

impl Layer {
    /// Reads the configuration file: the given one, which must be there, or the usual one, which need not.
    pub fn from_file(given: Option<&Path>) -> Result<Self, ConfigError> {
        let path = given.unwrap_or(Path::new(DEFAULT_FILE));
        match fs::read_to_string(path) {
            Ok(text) => Self::from_toml(&text, path),
            Err(error) if given.is_none() && matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
                Ok(Self::default())
            }
            Err(error) => Err(ConfigError::Read { path: path.to_owned(), error }),
        }
    }

    fn from_toml(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let wrong = |start: usize, message: String| ConfigError::File { path: path.to_owned(), line: line_of(text, start), message };
        let raw: RawFile = toml::from_str(text).map_err(|e| wrong(e.span().map_or(0, |s| s.start), e.message().trim().to_owned()))?;
        fn read<T, E: fmt::Display>(
            key: &str,
            value: Option<Spanned<String>>,
            parse: impl FnOnce(&str) -> Result<T, E>,
        ) -> Result<Option<T>, (usize, String)> {
            let Some(value) = value else { return Ok(None) };
            parse(value.get_ref()).map(Some).map_err(|e| (value.span().start, format!("{key}: {e}")))
        }
        let (dns_word, table) = match raw.dns {
            Some(dns) => dns_table(&dns).map_err(|message| wrong(dns.span().start, message))?,
            None => (None, DnsTable::default()),
        };
        let read_all = || -> Result<Self, (usize, String)> {
            Ok(Self {
                http: raw.http.map(|list| listen_list("http", &list)).transpose()?,
                https: raw.https.map(|list| listen_list("https", &list)).transpose()?,
                flow_proxy_api: dialects::api(raw.flow_proxy.as_ref())?,
                dialects: dialects::settings(raw.interlock, raw.flow_proxy)?.map(Arc::new),
                proxy: raw.router.map(router_table).transpose()?.map(Arc::new),
                dns: read("dns", dns_word, dns)?,
                dns_ttl: read("dns-ttl", raw.dns_ttl.or(table.ttl), ttl)?,
                dns_compat: read("dns-compat", raw.dns_compat.or(table.compat), compat)?,
                resolv_conf: raw.resolv_conf,
                source: read("source", raw.source, str::parse)?,
                plane: read("plane", raw.plane, str::parse)?,
                admin: read("admin", raw.admin, str::parse)?,
                netns_dir: raw.netns_dir,
                state_dir: raw.state_dir,
                takeover: read("takeover", raw.takeover, takeover)?,
                node: raw.node,
                output: read("output", raw.output, str::parse)?,
                log: raw.log,
            })
        };
        read_all().map_err(|(start, message)| wrong(start, message))
    }

    /// This layer's settings, and `below`'s where it has none.
    #[must_use]
    pub fn over(self, below: Self) -> Self {
        Self {
            source: self.source.or(below.source),
            plane: self.plane.or(below.plane),
            admin: self.admin.or(below.admin),
            netns_dir: self.netns_dir.or(below.netns_dir),
            state_dir: self.state_dir.or(below.state_dir),
            takeover: self.takeover.or(below.takeover),
            node: self.node.or(below.node),
            output: self.output.or(below.output),
            log: self.log.or(below.log),
            dns: self.dns.or(below.dns),
            dns_ttl: self.dns_ttl.or(below.dns_ttl),
            dns_compat: self.dns_compat.or(below.dns_compat),
            resolv_conf: self.resolv_conf.or(below.resolv_conf),
            http: self.http.or(below.http),
            https: self.https.or(below.https),
            dialects: self.dialects.or(below.dialects),
            proxy: self.proxy.or(below.proxy),
            flow_proxy_api: self.flow_proxy_api.or(below.flow_proxy_api),
        }
    }

    /// Fills the rest with the defaults.
    pub fn settle(self) -> Result<Config, ConfigError> {
        let listeners = Listeners { http: self.http.unwrap_or_default(), https: self.https.unwrap_or_default() };
        listeners.check()?;
        Ok(Config {
            source: self.source.unwrap_or_else(|| SourceSpec::Docker { url: DEFAULT_SOCKET.to_owned() }),
            plane: self.plane.unwrap_or_default(),
            admin: self.admin.unwrap_or_default(),
            netns_dir: self.netns_dir.unwrap_or_else(|| DEFAULT_NETNS_DIR.into()),
            state_dir: self.state_dir.unwrap_or_else(|| DEFAULT_STATE_DIR.into()),
            takeover: self.takeover.unwrap_or_default(),
            node: self.node,
            output: self.output.unwrap_or_default(),
            log: self.log.unwrap_or_else(|| DEFAULT_LOG.to_owned()),
            dns: DnsConfig {
                is_on: self.dns.unwrap_or(true),
                ttl: self.dns_ttl.unwrap_or(swarmesh_dns::Settings::default().ttl),
                compat: self.dns_compat.unwrap_or_default(),
                resolv_conf: self.resolv_conf.unwrap_or_else(|| DEFAULT_RESOLV_CONF.into()),
            },
            router: RouterConfig {
                listeners,
                dialects: self.dialects.unwrap_or_default(),
                proxy: self.proxy.unwrap_or_default(),
                flow_proxy_api: self.flow_proxy_api,
            },
        })
    }
}

/// Everything settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub source: SourceSpec,
    pub plane: PlaneChoice,
    pub admin: AdminAddress,
    pub netns_dir: PathBuf,
    pub state_dir: PathBuf,
    pub takeover: Takeover,
    /// Id or host name of this node, where the source cannot tell.
    pub node: Option<String>,
    pub output: Output,
    /// What to log, in the syntax of `RUST_LOG`.
    pub log: String,
    pub dns: DnsConfig,
    pub router: RouterConfig,
}

/// How names are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsConfig {
    pub is_on: bool,
    /// Seconds that a client may keep an answer about names of the swarm.
    pub ttl: u32,
    pub compat: Compat,
    /// The host's own, which says who is asked about everything else.
    pub resolv_conf: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawFile {
    source: Option<Spanned<String>>,
    plane: Option<Spanned<String>>,
    admin: Option<Spanned<String>>,
    netns_dir: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    takeover: Option<Spanned<String>>,
    node: Option<String>,
    output: Option<Spanned<String>>,
    log: Option<String>,
    dns: Option<Spanned<toml::Value>>,
    dns_ttl: Option<Spanned<String>>,
    dns_compat: Option<Spanned<String>>,
    resolv_conf: Option<PathBuf>,
    http: Option<Spanned<OneOrMany>>,
    https: Option<Spanned<OneOrMany>>,
    interlock: Option<Spanned<dialects::RawInterlock>>,
    flow_proxy: Option<Spanned<dialects::RawFlowProxy>>,
    router: Option<Spanned<router::RawRouter>>,
}

fn router_table(raw: Spanned<router::RawRouter>) -> Result<swarmesh_proxy::Config, (usize, String)> {
    let start = raw.span().start;
    raw.into_inner().settle().map_err(|message| (start, format!("router.{message}")))
}

/// `http = "0.0.0.0:80"`, or a list.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

fn listen_list(key: &str, list: &Spanned<OneOrMany>) -> Result<Vec<SocketAddr>, (usize, String)> {
    let wrong = |error: &dyn fmt::Display| (list.span().start, format!("{key}: {error}"));
    let words: Vec<&str> = match list.get_ref() {
        OneOrMany::One(word) => word.split(',').collect(),
        OneOrMany::Many(words) => words.iter().map(String::as_str).collect(),
    };
    let words: Vec<Listen> = words.into_iter().map(str::parse).collect::<Result<_, _>>().map_err(|e: ValueError| wrong(&e))?;
    Ok(listeners(&words).map_err(|e| wrong(&e))?.unwrap_or_default())
}

/// `dns.compat = "docker"` and alike.
#[derive(Default)]
struct DnsTable {
    ttl: Option<Spanned<String>>,
    compat: Option<Spanned<String>>,
}

/// `dns = "off"`, or a table of its own.
fn dns_table(dns: &Spanned<toml::Value>) -> Result<(Option<Spanned<String>>, DnsTable), String> {
    let spanned = |text: String| Some(Spanned::new(dns.span(), text));
    let values = match dns.get_ref() {
        toml::Value::String(word) => return Ok((spanned(word.clone()), DnsTable::default())),
        toml::Value::Table(values) => values,
        other => return Err(format!("dns: {other} is neither on nor off")),
    };
    let mut table = DnsTable::default();
    for (key, value) in values {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        match key.as_str() {
            "ttl" => table.ttl = spanned(text),
            "compat" => table.compat = spanned(text),
            _ => return Err(format!("dns: unknown field `{key}`, expected `ttl` or `compat`")),
        }
    }
    Ok((None, table))
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|b| **b == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Layer, String> {
        Layer::from_toml(text, Path::new("s.toml")).map_err(|e| e.to_string())
    }

    #[test]
    fn a_layer_wins_over_those_below_key_by_key() {
        let file = read("plane = \"nft\"\nadmin = \"/run/swarmesh.sock\"\nnetns-dir = \"/x\"\ntakeover = \"labelled\"\n").unwrap();
        let flags = Layer { admin: Some("127.0.0.1:1".parse().unwrap()), ..Layer::default() };
        let config = flags.over(file).settle().unwrap();
        assert_eq!(config.admin.to_string(), "127.0.0.1:1");
        assert_eq!(config.plane, PlaneChoice::Nft);
        assert_eq!(config.netns_dir, Path::new("/x"));
        assert_eq!(config.takeover, Takeover::Labelled);
        assert_eq!(config.state_dir, Path::new(DEFAULT_STATE_DIR));
        assert_eq!(config.source.to_string(), "docker:unix:///var/run/docker.sock");
    }

    #[test]
    fn mistakes_in_the_file_are_named_with_their_line() {
        for (text, expected) in [
            ("plane = \"nft\"\n\nplain = \"x\"\n", "s.toml:3: unknown field `plain`"),
            ("\nplane = \"xdp\"\n", "s.toml:2: plane: \"xdp\" is not a plane; use auto, ebpf, ipvs or nft"),
            ("source = \"podman:x\"", "s.toml:1: source: unknown source"),
            ("# one\n# two\nadmin = 9790\n", "s.toml:3: "),
            ("plane = \"nft\"\nstate-dir = \n", "s.toml:2: "),
            ("takeover = \"maybe\"", "s.toml:1: takeover: \"maybe\" is neither on nor labelled"),
            ("dns = \"perhaps\"", "s.toml:1: dns: \"perhaps\" is neither on nor off"),
            ("\ndns.compat = \"podman\"", "s.toml:2: dns-compat: \"podman\" is neither swarmesh nor docker"),
            ("dns-ttl = \"soon\"", "s.toml:1: dns-ttl: \"soon\" is not a number of seconds"),
            ("dns.colour = \"red\"", "s.toml:1: "),
            ("\nhttp = \"80\"", "s.toml:2: http: \"80\" is neither off nor ADDRESS:PORT"),
            ("https = [\"off\", \"[::]:443\"]", "s.toml:1: https: --http and --https take addresses, or off alone"),
            ("[interlock]\nip-hash = 1", "s.toml:2: "),
            ("[flow-proxy]\nseparator = \"\"", "s.toml:1: flow-proxy.separator: is empty"),
            ("[flow-proxy]\nservice-domain-algo = \"magic\"", "s.toml:1: flow-proxy.service-domain-algo: \"magic\" is HAProxy"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(expected), "{text:?}: {error}");
        }
    }

    #[test]
    fn names_are_set_by_a_word_or_by_a_table() {
        let config = read("dns = \"off\"\ndns-ttl = \"30\"\n").unwrap().settle().unwrap().dns;
        assert_eq!((config.is_on, config.ttl, config.compat), (false, 30, Compat::Swarmesh));
        let config = read("[dns]\ncompat = \"docker\"\nttl = \"1\"\n").unwrap().settle().unwrap().dns;
        assert_eq!((config.is_on, config.ttl, config.compat), (true, 1, Compat::Docker));
        assert_eq!(read("dns.compat = \"docker\"").unwrap().dns_compat, Some(Compat::Docker));
    }

    #[test]
    fn listeners_are_one_or_many_and_stand_once() {
        let listeners = |text: &str| read(text).unwrap().settle().map(|c| c.router.listeners);
        let addresses = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect::<Vec<SocketAddr>>();
        assert_eq!(listeners("").unwrap(), Listeners::default());
        assert_eq!(listeners("http = \"off\"\n").unwrap(), Listeners::default());
        let two = listeners("http = \"0.0.0.0:80,[::1]:80\"\nhttps = [\"0.0.0.0:443\"]\n").unwrap();
        assert_eq!((two.http, two.https), (addresses(&["0.0.0.0:80", "[::1]:80"]), addresses(&["0.0.0.0:443"])));
        let twice = listeners("http = \"0.0.0.0:80\"\nhttps = \"0.0.0.0:80\"\n").unwrap_err();
        assert!(twice.to_string().starts_with("0.0.0.0:80 is to be listened on twice"), "{twice}");
        let flags = Layer { http: super::listeners(&["off".parse().unwrap()]).unwrap(), ..Layer::default() };
        let file = read("http = \"0.0.0.0:80\"\n").unwrap();
        assert!(flags.over(file).settle().unwrap().router.listeners.is_empty(), "off wins over the file");
    }

    #[test]
    fn only_the_usual_file_may_be_absent() {
        let directory = tempfile::tempdir().unwrap();
        let absent = directory.path().join("absent.toml");
        assert!(matches!(Layer::from_file(Some(&absent)), Err(ConfigError::Read { .. })));
    }

    #[test]
    fn admin_addresses_are_sockets_or_paths() {
        for (text, shown) in [
            ("127.0.0.1:9790", "127.0.0.1:9790"),
            ("[::1]:9790", "[::1]:9790"),
            ("localhost:80", "127.0.0.1:80"),
            ("/run/a.sock", "unix:///run/a.sock"),
            ("unix:/run/a.sock", "unix:///run/a.sock"),
            ("unix:///run/a.sock", "unix:///run/a.sock"),
        ] {
            assert_eq!(text.parse::<AdminAddress>().unwrap().to_string(), shown);
        }
        for text in ["", "9790", "relative.sock", "host:80", "127.0.0.1"] {
            assert!(text.parse::<AdminAddress>().is_err(), "{text}");
        }
    }
}
