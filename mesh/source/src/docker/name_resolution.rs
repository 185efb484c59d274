//! How a container was told to resolve names: from its inspection, and from the `resolv.conf` that its engine wrote for it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    net::IpAddr,
    path::Path,
};

use swarmesh_model::ContainerDns;

use super::wire;

/// On these alone, a container gets no resolver, and a `resolv.conf` to use as it is.
const WITHOUT_RESOLVER: [&str; 3] = ["bridge", "host", "none"];
/// The engine's own are a few lines long. The container can write to its file, and what it writes has no end if it likes.
const LONGEST_FILE: u64 = 64 << 10;

/// What the engine's resolver would go by for this container.
pub(super) fn container_dns(container: &wire::Container) -> ContainerDns {
    let networks = container.network_settings.networks.iter().filter(|(_, endpoint)| endpoint.is_some());
    // One that shares another container's namespace (`--network container:…`) is on no network of its own.
    if networks.map(|(name, _)| name.as_str()).all(|name| WITHOUT_RESOLVER.contains(&name)) {
        return ContainerDns { disabled: true, ..ContainerDns::default() };
    }
    let file = match container.resolv_conf_path.as_str() {
        "" => ResolvConf::default(),
        // The engine may be in another mount namespace or on another host; the inspection alone has to do then.
        path => read(Path::new(path)).map(|text| ResolvConf::parse(&text)).unwrap_or_default(),
    };
    let given: Vec<IpAddr> = container.host_config.dns.iter().filter_map(|text| text.trim().parse().ok()).collect();
    ContainerDns {
        // Servers from the daemon's configuration are in no inspection.
        servers: if given.is_empty() { file.overriding_servers } else { given },
        ndots: file.ndots || container.host_config.dns_options.iter().filter_map(|option| ndots(option)).next().is_some(),
        disabled: false,
    }
}

/// `Links` of an endpoint, by alias. `db:store`; `db` alone is its own alias; `/db:/web/store` is how old inspections put it.
pub(super) fn links(texts: &[String]) -> BTreeMap<String, String> {
    let link = |text: &String| match text.split(':').collect::<Vec<_>>().as_slice() {
        [name] => Some(((*name).to_owned(), (*name).to_owned())),
        [name, alias] => match name.strip_prefix('/') {
            Some(name) => Some((alias.rsplit('/').next()?.to_owned(), name.to_owned())),
            None => Some(((*alias).to_owned(), (*name).to_owned())),
        },
        _ => None,
    };
    texts.iter().filter_map(link).filter(|(alias, name)| !alias.is_empty() && !name.is_empty()).collect()
}

fn read(path: &Path) -> io::Result<String> {
    // Opening anything else could take for ever.
    if !fs::metadata(path)?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(LONGEST_FILE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What an engine's `resolv.conf` says beyond the container's inspection.
#[derive(Debug, Default, PartialEq, Eq)]
struct ResolvConf {
    /// Given in place of the host's servers: asked from the container's own namespace.
    overriding_servers: Vec<IpAddr>,
    /// From the container's creator, the engine's configuration or the host.
    ndots: bool,
}

impl ResolvConf {
    fn parse(text: &str) -> Self {
        let (mut servers, mut overridden, mut origin, mut number) = (Vec::new(), false, None, None);
        for line in text.lines().map(str::trim) {
            // Engines before 26 write no comments.
            if let Some(list) = line.strip_prefix("# ExtServers:") {
                // Those in `host(…)` are the host's, and asked from there.
                servers = words(list).filter_map(|word| word.parse().ok()).collect();
            } else if let Some(list) = line.strip_prefix("# Overrides:") {
                // Without this word, even a server outside of `host(…)` comes from the host's file: the first engines with
                // comments marked loopback addresses only.
                overridden = words(list).any(|word| word == "nameservers");
            } else if let Some(from) = line.strip_prefix("# Option ndots from:") {
                origin = Some(from.trim());
            } else if let Some(options) = line.strip_prefix("options").filter(|rest| rest.starts_with([' ', '\t'])) {
                number = options.split_whitespace().filter_map(ndots).next_back().or(number);
            }
        }
        let ndots = match origin {
            Some(origin) => origin != "internal",
            // Docker adds `ndots:0` where nobody has said otherwise.
            None => number.is_some_and(|number| number > 0),
        };
        Self { overriding_servers: if overridden { servers } else { Vec::new() }, ndots }
    }
}

/// The words in `[one two]`.
fn words(list: &str) -> impl Iterator<Item = &str> {
    list.trim().trim_start_matches('[').trim_end_matches(']').split_whitespace()
}

/// The number in a valid `ndots:N`; Docker passes over others.
fn ndots(option: &str) -> Option<u32> {
    option.trim().strip_prefix("ndots:")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn files_of_old_and_new_engines() {
        let new = |servers: &str, overrides: &str, options: &str, from: &str| {
            format!(
                "# Generated by Docker Engine.\n# This file can be edited; Docker Engine will not make further changes once it\n\
                 # has been modified.\n\nnameserver 127.0.0.11\nsearch example.test\noptions {options}\n\n\
                 # Based on host file: '/etc/resolv.conf' (internal resolver)\n{servers}# Overrides: [{overrides}]\n{from}"
            )
        };
        let from = |origin: &str| format!("# Option ndots from: {origin}\n");
        let two = "# ExtServers: [192.0.2.53 2001:db8::53]\n";
        for (what, text, servers, ndots) in [
            ("20.10", "search example.test\nnameserver 127.0.0.11\noptions ndots:0\n".to_owned(), vec![], false),
            ("20.10, options of the host", "nameserver 127.0.0.11\noptions edns0 trust-ad ndots:0\n".to_owned(), vec![], false),
            ("20.10, ndots of the host", "nameserver 127.0.0.11\noptions ndots:2 edns0\n".to_owned(), vec![], true),
            ("host's servers", new("# ExtServers: [host(127.0.0.53)]\n", "", "ndots:0", &from("internal")), vec![], false),
            ("26, host's servers", new(two, "", "ndots:0", &from("internal")), vec![], false),
            ("daemon's servers", new(two, "nameservers", "ndots:0", &from("internal")), addresses(&["192.0.2.53", "2001:db8::53"]), false),
            ("no servers", new("# NO EXTERNAL NAMESERVERS DEFINED\n", "nameservers search", "ndots:0", &from("internal")), vec![], false),
            (
                "zones",
                new("# ExtServers: [fe80::1%eth0 192.0.2.9]\n", "nameservers", "ndots:0", &from("internal")),
                addresses(&["192.0.2.9"]),
                false,
            ),
            ("host's ndots, which is Docker's number", new("", "", "ndots:0", &from("host")), vec![], true),
            ("given ndots", new("", "options", "ndots:1", &from("override")), vec![], true),
            ("Docker's ndots beside another's word for it", new("", "", "ndots:7", &from("internal")), vec![], false),
            (
                "invalid",
                "nameserver 127.0.0.11\noptions ndots:x ndots:-1 ndots\noptionsndots:5\n#options ndots:5\n".to_owned(),
                vec![],
                false,
            ),
            ("nothing", String::new(), vec![], false),
        ] {
            assert_eq!(ResolvConf::parse(&text), ResolvConf { overriding_servers: servers, ndots }, "{what}");
        }
    }

    #[test]
    fn links_in_all_spellings() {
        let texts = ["db:Store", "cache", "/old:/web/store", "a:b:c", "", ":x", "x:"].map(str::to_owned);
        let read = links(&texts);
        let pairs: Vec<_> = read.iter().map(|(alias, name)| (alias.as_str(), name.as_str())).collect();
        assert_eq!(pairs, [("Store", "db"), ("cache", "cache"), ("store", "old")]);
    }

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        assert!(read(directory.path()).is_err() && read(&directory.path().join("none")).is_err() && read(Path::new("/dev/zero")).is_err());
        let long = directory.path().join("long");
        fs::write(&long, vec![b'#'; 1 << 20]).unwrap();
        assert_eq!(read(&long).unwrap().len() as u64, LONGEST_FILE);
    }
}
