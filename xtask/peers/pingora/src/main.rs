//! `swarmesh-peer-pingora LISTEN BACKEND [CERTIFICATE KEY]`: one worker before one backend, for `cargo xtask bench`.
#![forbid(unsafe_code)]

use std::error::Error;

use async_trait::async_trait;
use pingora::{
    http::RequestHeader,
    prelude::{HttpPeer, Result, Server},
    proxy::{ProxyHttp, Session, http_proxy_service},
    server::configuration::ServerConf,
};

/// Where everything goes that asks for `h0.example`.
struct Minimal {
    backend: HttpPeer,
    proto: &'static str,
}

#[async_trait]
impl ProxyHttp for Minimal {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn request_filter(&self, session: &mut Session, (): &mut ()) -> Result<bool> {
        // As long as the others keep idle connections.
        session.set_keepalive(Some(300));
        let host = session.get_header("host").and_then(|host| host.to_str().ok()).unwrap_or_default();
        let is_ours = host.split(':').next().is_some_and(|name| name.eq_ignore_ascii_case("h0.example"));
        if !is_ours {
            session.respond_error(404).await?;
        }
        Ok(!is_ours)
    }

    async fn upstream_peer(&self, _: &mut Session, (): &mut ()) -> Result<Box<HttpPeer>> {
        Ok(Box::new(self.backend.clone()))
    }

    async fn upstream_request_filter(&self, session: &mut Session, request: &mut RequestHeader, (): &mut ()) -> Result<()> {
        if let Some(client) = session.client_addr().and_then(|client| client.as_inet()) {
            request.append_header("X-Forwarded-For", client.ip().to_string())?;
        }
        request.insert_header("X-Forwarded-Proto", self.proto)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (listen, backend, tls) = match words.as_slice() {
        [listen, backend] => (listen, backend, None),
        [listen, backend, certificate, key] => (listen, backend, Some((certificate, key))),
        _ => return Err("swarmesh-peer-pingora LISTEN BACKEND [CERTIFICATE KEY]".into()),
    };
    let conf = ServerConf { threads: 1, upstream_keepalive_pool_size: 256, ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let proto = if tls.is_some() { "https" } else { "http" };
    let backend = HttpPeer::new(backend.as_str(), false, String::new());
    let mut service = http_proxy_service(&server.configuration, Minimal { backend, proto });
    match tls {
        None => service.add_tcp(listen),
        Some((certificate, key)) => service.add_tls(listen, certificate, key)?,
    }
    server.add_service(service);
    server.run_forever()
}
