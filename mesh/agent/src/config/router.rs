//! `[router]`: whom the proxy believes, and where it keeps what it shows.

use std::{
    net::IpAddr,
    num::NonZeroU32,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use serde::Deserialize;
use swarmesh_proxy::{
    Config,
    access_log::{AccessLog, Field, LogTarget},
    auth::NodeUsers,
};
use swarmesh_router::model::CertificateRef;

/// As in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawRouter {
    workers: Option<usize>,
    trusted: Option<Vec<String>>,
    proxy_protocol: Option<bool>,
    name: Option<String>,
    secrets: Option<PathBuf>,
    certificates: Option<PathBuf>,
    default_certificate: Option<String>,
    default_key: Option<String>,
    client_authorities: Option<PathBuf>,
    backend_authorities: Option<PathBuf>,
    users: Option<PathBuf>,
    users_hashed: Option<bool>,
    local_hosts: Option<bool>,
    access_log: Option<String>,
    access_log_sample: Option<u32>,
    access_log_fields: Option<Vec<String>>,
}

const MOST_WORKERS: usize = 256;

impl RawRouter {
    pub(super) fn settle(self) -> Result<Config, String> {
        let usual = Config::default();
        let network = |text: &String| {
            let single = || text.parse::<IpAddr>().ok().map(IpNet::from);
            text.parse().ok().or_else(single).ok_or_else(|| format!("trusted: {text:?} is neither an address nor a CIDR"))
        };
        let trusted: Vec<IpNet> = self.trusted.iter().flatten().map(network).collect::<Result<_, _>>()?;
        let accept_proxy_protocol = self.proxy_protocol.unwrap_or_default();
        if accept_proxy_protocol && trusted.is_empty() {
            return Err("proxy-protocol: is believed from trusted clients only; list them as trusted".to_owned());
        }
        if self.workers.is_some_and(|n| n > MOST_WORKERS) {
            return Err(format!("workers: is at most {MOST_WORKERS}; 0 is one per core"));
        }
        let default_certificate = match (self.default_certificate, self.default_key) {
            (Some(certificate), key) => Some(CertificateRef::Files { certificate, key }),
            (None, None) => None,
            (None, Some(_)) => return Err("default-key: has no default-certificate".to_owned()),
        };
        Ok(Config {
            workers: self.workers.unwrap_or(usual.workers),
            trusted,
            accept_proxy_protocol,
            name: self.name.unwrap_or(usual.name),
            secrets_dir: self.secrets.unwrap_or(usual.secrets_dir),
            certificates_dir: self.certificates.unwrap_or(usual.certificates_dir),
            default_certificate,
            client_authorities: self.client_authorities,
            backend_authorities: self.backend_authorities.unwrap_or(usual.backend_authorities),
            users: self.users.map(|path| NodeUsers { path, hashed: self.users_hashed.unwrap_or_default() }),
            local_hosts: self.local_hosts.unwrap_or_default(),
            access_log: access_log(self.access_log.as_deref(), self.access_log_sample, self.access_log_fields.as_deref())?,
            ..usual
        })
    }
}

fn access_log(to: Option<&str>, sample: Option<u32>, fields: Option<&[String]>) -> Result<Option<AccessLog>, String> {
    let sample = sample.map(NonZeroU32::try_from).transpose().map_err(|_| "access-log-sample: is at least 1, which logs all".to_owned())?;
    let field = |name: &String| {
        let known = || Field::ALL.iter().map(|field| field.name()).collect::<Vec<_>>().join(", ");
        Field::parse(name).ok_or_else(|| format!("access-log-fields: {name:?} is none of {}", known()))
    };
    let fields = fields.map(|names| names.iter().map(field).collect::<Result<Vec<_>, _>>()).transpose()?;
    if let Some(twice) = fields.iter().flatten().enumerate().find_map(|(n, field)| fields.iter().flatten().take(n).find(|f| *f == field)) {
        return Err(format!("access-log-fields: has {:?} twice", twice.name()));
    }
    if fields.as_ref().is_some_and(Vec::is_empty) {
        return Err("access-log-fields: is empty; access-log = \"off\" logs nothing".to_owned());
    }
    let to = match to {
        None | Some("off") => return Ok(None),
        Some("stdout") => LogTarget::Stdout,
        Some(path) if Path::new(path).is_absolute() => LogTarget::File(path.into()),
        Some(other) => return Err(format!("access-log: {other:?} is neither off nor stdout nor a path from /")),
    };
    Ok(Some(AccessLog { to, sample: sample.unwrap_or(NonZeroU32::MIN), fields: fields.unwrap_or_else(Field::usual) }))
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroU32, path::Path};

    use swarmesh_proxy::access_log::{Field, LogTarget};

    use crate::config::Layer;

    #[test]
    fn the_table_is_read_and_mistakes_are_named() {
        let read = |text: &str| Layer::from_toml(text, Path::new("s.toml"));
        let text =
            "[router]\nworkers = 2\ntrusted = [\"10.0.0.0/8\", \"192.0.2.1\"]\nproxy-protocol = true\ndefault-certificate = \"site.pem\"\n";
        let proxy = read(text).unwrap().proxy.unwrap();
        assert_eq!((proxy.workers, proxy.trusted.len(), proxy.accept_proxy_protocol), (2, 2, true));
        assert!(proxy.default_certificate.is_some());
        let log = |text: &str| read(&format!("[router]\n{text}")).unwrap().proxy.unwrap().access_log.clone();
        assert_eq!((log(""), log("access-log = \"off\"\naccess-log-sample = 9")), (None, None));
        let usual = log("access-log = \"stdout\"").unwrap();
        assert_eq!((usual.to, usual.sample, usual.fields), (LogTarget::Stdout, NonZeroU32::MIN, Field::usual()));
        let chosen = log("access-log = \"/a/b\"\naccess-log-sample = 9\naccess-log-fields = [\"query\", \"status\"]").unwrap();
        assert_eq!((chosen.to, chosen.sample.get()), (LogTarget::File("/a/b".into()), 9));
        assert_eq!(chosen.fields, [Field::Query, Field::Status]);
        for (text, wrong) in [
            ("[router]\naccess-log = \"a/b\"\n", "router.access-log: \"a/b\" is neither off"),
            ("[router]\naccess-log-sample = 0\n", "router.access-log-sample: is at least 1"),
            ("[router]\naccess-log-fields = [\"cookie\"]\n", "\"cookie\" is none of time, node"),
            ("[router]\naccess-log-fields = [\"host\", \"host\"]\n", "has \"host\" twice"),
            ("[router]\naccess-log-fields = []\n", "router.access-log-fields: is empty"),
            ("\n[router]\ntrusted = [\"x\"]\n", "s.toml:2: router.trusted: \"x\" is neither"),
            ("[router]\nproxy-protocol = true\n", "s.toml:1: router.proxy-protocol: is believed from trusted"),
            ("[router]\ndefault-key = \"k\"\n", "s.toml:1: router.default-key: has no"),
            ("[router]\nworkers = 1000\n", "s.toml:1: router.workers: is at most"),
            ("[router]\nworkerz = 1\n", "unknown field `workerz`"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(wrong), "{error}");
        }
    }
}
