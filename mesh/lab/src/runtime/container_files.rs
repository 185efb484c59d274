//! What a container has in place of the host's `/etc/hosts` and `/etc/resolv.conf`, as Docker writes them.

use std::{fmt::Write as _, fs, path::PathBuf};

use super::{RuntimeError, error::Doing, names::LabName, process::Container};
use crate::{stack::DnsSpec, swarm::TaskSpec};

/// Begins a container's hosts file.
const HOSTS: &str = "127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
ff00::0\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
";
/// The kernel's limit.
const LONGEST_HOSTNAME: usize = 64;

/// Writes a task's files, and says how its processes see them.
pub(super) fn write(lab: &LabName, spec: &TaskSpec) -> Result<Container, RuntimeError> {
    let container = container(lab, &spec.sandbox, &spec.hostname);
    for ((path, _), text) in container.files.iter().zip([resolv_conf(&spec.dns), hosts(spec, &container.hostname)]) {
        fs::write(path, text).doing(|| format!("writing {}", path.display()))?;
    }
    Ok(container)
}

/// A task's container once [`write`] has been there. The files are named after its sandbox.
pub(super) fn container(lab: &LabName, sandbox: &str, hostname: &str) -> Container {
    let file = |name: &str| lab.file("files").join(format!("{sandbox}.{name}"));
    Container {
        hostname: hostname.chars().take(LONGEST_HOSTNAME).collect(),
        files: vec![(file("resolv.conf"), PathBuf::from("/etc/resolv.conf")), (file("hosts"), PathBuf::from("/etc/hosts"))],
    }
}

/// The node's own file has neither domains nor options to hand on.
fn resolv_conf(dns: &DnsSpec) -> String {
    let mut text = "nameserver 127.0.0.11\n".to_owned();
    let search: Vec<&str> = dns.search.iter().map(String::as_str).filter(|domain| *domain != ".").collect();
    if !search.is_empty() {
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    let valid = |option: &&str| option.strip_prefix("ndots:").is_none_or(|number| number.parse::<u32>().is_ok());
    let mut options: Vec<&str> = dns.options.iter().map(String::as_str).filter(valid).collect();
    if dns.ndots().is_none() {
        // Names of services have no dots, and are to be asked for as they are.
        options.push("ndots:0");
    }
    let _ = writeln!(text, "options {}", options.join(" "));
    text
}

/// A container finds itself here. Nobody reaches it through the ingress network by name.
fn hosts(spec: &TaskSpec, hostname: &str) -> String {
    let mut text = HOSTS.to_owned();
    for address in spec.networks.iter().filter(|n| !n.ingress).flat_map(|n| &n.addresses) {
        let _ = writeln!(text, "{}\t{hostname}", address.address);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_confs_are_as_docker_writes_them() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
        for (search, options, expected) in [
            ("", "", "nameserver 127.0.0.11\noptions ndots:0\n"),
            ("a.test b.test", "", "nameserver 127.0.0.11\nsearch a.test b.test\noptions ndots:0\n"),
            (".", "timeout:1", "nameserver 127.0.0.11\noptions timeout:1 ndots:0\n"),
            ("a.test .", "ndots:2 rotate", "nameserver 127.0.0.11\nsearch a.test\noptions ndots:2 rotate\n"),
            ("", "ndots:x ndots:-1 rotate", "nameserver 127.0.0.11\noptions rotate ndots:0\n"),
        ] {
            let dns = DnsSpec { servers: vec!["192.0.2.53".parse().unwrap()], search: words(search), options: words(options) };
            assert_eq!(resolv_conf(&dns), expected);
        }
    }
}
