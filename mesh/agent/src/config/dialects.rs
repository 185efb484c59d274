//! What Interlock's and Docker Flow Proxy's own configuration said, as tables of ours.

use std::{net::SocketAddr, time::Duration};

use serde::Deserialize;
use swarmesh_router::{
    dialect::{self, flow_proxy, interlock},
    model::Timeouts,
};
use toml::Spanned;

const LONGEST: u64 = 7 * 24 * 3600;

/// `[interlock]`
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawInterlock {
    cluster: Option<String>,
    ip_hash: Option<bool>,
    hide_info_headers: Option<bool>,
    client_max_body_size: Option<u64>,
    connect_timeout: Option<u64>,
    server_timeout: Option<u64>,
    client_timeout: Option<u64>,
    keepalive_timeout: Option<u64>,
}

/// `[flow-proxy]`
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawFlowProxy {
    api: Option<String>,
    separator: Option<String>,
    service_domain_algo: Option<String>,
    https_only: Option<bool>,
    proxy_instance_name: Option<String>,
    networks: Option<Vec<String>>,
    max_connections: Option<u32>,
    timeout_connect: Option<u64>,
    timeout_client: Option<u64>,
    timeout_server: Option<u64>,
    timeout_queue: Option<u64>,
    timeout_tunnel: Option<u64>,
    timeout_http_request: Option<u64>,
    timeout_http_keep_alive: Option<u64>,
}

/// Where the proxy's API is to be answered.
pub(super) fn api(flow_proxy: Option<&Spanned<RawFlowProxy>>) -> Result<Option<SocketAddr>, (usize, String)> {
    let Some((raw, text)) = flow_proxy.and_then(|raw| Some((raw, raw.get_ref().api.as_ref()?))) else { return Ok(None) };
    if text == "off" {
        return Ok(None);
    }
    let wrong = || (raw.span().start, format!("flow-proxy.api: {text:?} is neither off nor ADDRESS:PORT; the usual one is 127.0.0.1:8080"));
    text.parse().map(Some).map_err(|_| wrong())
}

/// Nothing if neither table is there. A mistake comes with its offset in the file.
pub(super) fn settings(
    interlock: Option<Spanned<RawInterlock>>,
    flow_proxy: Option<Spanned<RawFlowProxy>>,
) -> Result<Option<dialect::Settings>, (usize, String)> {
    if interlock.is_none() && flow_proxy.is_none() {
        return Ok(None);
    }
    let mut settings = dialect::Settings::default();
    if let Some(raw) = interlock {
        let start = raw.span().start;
        settings.interlock = raw.into_inner().settle().map_err(|message| (start, format!("interlock.{message}")))?;
    }
    if let Some(raw) = flow_proxy {
        let start = raw.span().start;
        settings.flow_proxy = raw.into_inner().settle().map_err(|message| (start, format!("flow-proxy.{message}")))?;
    }
    Ok(Some(settings))
}

impl RawInterlock {
    fn settle(self) -> Result<interlock::Settings, String> {
        let usual = interlock::Settings::default();
        Ok(interlock::Settings {
            cluster: self.cluster.unwrap_or(usual.cluster),
            ip_hash: self.ip_hash.unwrap_or(usual.ip_hash),
            hide_info_headers: self.hide_info_headers.unwrap_or(usual.hide_info_headers),
            body: self.client_max_body_size.unwrap_or(usual.body),
            connect: seconds("connect-timeout", self.connect_timeout)?.unwrap_or(usual.connect),
            server: seconds("server-timeout", self.server_timeout)?.unwrap_or(usual.server),
            client: seconds("client-timeout", self.client_timeout)?.unwrap_or(usual.client),
            keep_alive: seconds("keepalive-timeout", self.keepalive_timeout)?.unwrap_or(usual.keep_alive),
        })
    }
}

impl RawFlowProxy {
    fn settle(self) -> Result<flow_proxy::Settings, String> {
        let usual = flow_proxy::Settings::default();
        if self.separator.as_deref() == Some("") {
            return Err("separator: is empty; the usual one is a comma".to_owned());
        }
        if let Some(name) = &self.service_domain_algo {
            flow_proxy::check_domain_algorithm(name).map_err(|reason| format!("service-domain-algo: {name:?} {reason}"))?;
        }
        Ok(flow_proxy::Settings {
            separator: self.separator.unwrap_or(usual.separator),
            domain_algorithm: self.service_domain_algo.unwrap_or(usual.domain_algorithm),
            https_only: self.https_only.unwrap_or(usual.https_only),
            instance: self.proxy_instance_name.or(usual.instance),
            networks: self.networks.unwrap_or(usual.networks),
            timeouts: Timeouts {
                connect: seconds("timeout-connect", self.timeout_connect)?.or(usual.timeouts.connect),
                client: seconds("timeout-client", self.timeout_client)?.or(usual.timeouts.client),
                server: seconds("timeout-server", self.timeout_server)?.or(usual.timeouts.server),
                queue: seconds("timeout-queue", self.timeout_queue)?.or(usual.timeouts.queue),
                tunnel: seconds("timeout-tunnel", self.timeout_tunnel)?.or(usual.timeouts.tunnel),
                request: seconds("timeout-http-request", self.timeout_http_request)?.or(usual.timeouts.request),
                keep_alive: seconds("timeout-http-keep-alive", self.timeout_http_keep_alive)?.or(usual.timeouts.keep_alive),
            },
            connections: self.max_connections.unwrap_or(usual.connections),
        })
    }
}

fn seconds(key: &str, value: Option<u64>) -> Result<Option<Duration>, String> {
    match value {
        Some(n) if !(1..=LONGEST).contains(&n) => Err(format!("{key}: {n} is not a number of seconds from 1 to {LONGEST}")),
        value => Ok(value.map(Duration::from_secs)),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Layer;

    #[test]
    fn tables_say_what_the_older_systems_were_told() {
        let text = "[interlock]\ncluster = \"blue\"\nip-hash = true\nconnect-timeout = 7\n\n[flow-proxy]\nhttps-only = true\n\
                    networks = [\"edge\"]\ntimeout-http-request = 3\nmax-connections = 9\n";
        let settings = Layer::from_toml(text, Path::new("s.toml")).unwrap().dialects.unwrap();
        assert_eq!((settings.interlock.cluster.as_str(), settings.interlock.ip_hash), ("blue", true));
        assert_eq!(settings.interlock.connect, Duration::from_secs(7));
        assert_eq!(settings.interlock.keep_alive, interlock::Settings::default().keep_alive);
        assert!(settings.flow_proxy.https_only);
        assert_eq!((settings.flow_proxy.networks.as_slice(), settings.flow_proxy.connections), (&["edge".to_owned()][..], 9));
        assert_eq!(settings.flow_proxy.timeouts.request, Some(Duration::from_secs(3)));
        assert_eq!(settings.flow_proxy.timeouts.queue, flow_proxy::Settings::default().timeouts.queue);
        assert_eq!(Layer::from_toml("", Path::new("s.toml")).unwrap().dialects, None);
        let api = |text: &str| Layer::from_toml(text, Path::new("s.toml")).map(|layer| layer.flow_proxy_api);
        assert_eq!(api("[flow-proxy]\napi = \"127.0.0.1:8080\"\n").unwrap(), Some(([127, 0, 0, 1], 8080).into()));
        assert_eq!(api("[flow-proxy]\napi = \"off\"\n").unwrap(), None);
        assert_eq!(api("[flow-proxy]\n").unwrap(), None, "off unless asked for");
        let error = api("\n[flow-proxy]\napi = \"8080\"\n").unwrap_err().to_string();
        assert!(error.starts_with("s.toml:2: flow-proxy.api: \"8080\" is neither off"), "{error}");
        let error = Layer::from_toml("\n[interlock]\nconnect-timeout = 0\n", Path::new("s.toml")).unwrap_err().to_string();
        assert!(error.starts_with("s.toml:2: interlock.connect-timeout: 0 is not a number of seconds"), "{error}");
    }
}
