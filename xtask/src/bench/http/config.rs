//! What the peers are told: the same work as ours, one worker, no log unless it says so.

use std::{net::SocketAddr, path::Path};

use super::proxy::{Kind, Scheme};

/// A proxy's place in the world.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) scheme: Scheme,
    pub(super) address: SocketAddr,
    pub(super) backend: SocketAddr,
    /// The certificate is there, and whatever the proxy writes.
    pub(super) directory: &'a Path,
}

pub(super) fn haproxy(kind: Kind, place: Place<'_>) -> String {
    let Place { scheme, address, backend, directory } = place;
    // A machine may not let it have as many files as it reckons it needs for that many connections.
    let mut global = "global\n  nbthread 1\n  maxconn 12000\n  no strict-limits\n".to_owned();
    let mut defaults =
        "defaults\n  timeout connect 5s\n  timeout client 300s\n  timeout server 60s\n  timeout http-keep-alive 300s\n".to_owned();
    let tls = match scheme {
        Scheme::Http => String::new(),
        Scheme::Https => format!(" ssl crt {}/both.pem ssl-min-ver TLSv1.3 alpn http/1.1", directory.display()),
    };
    if kind == Kind::Copy {
        return format!("{global}{defaults}  mode tcp\nlisten copy\n  bind {address}{tls}\n  server one {backend}\n");
    }
    defaults.push_str("  mode http\n  option forwardfor\n  http-reuse always\n");
    let (mut own, mut server) = (String::new(), String::new());
    if kind == Kind::HaproxyAll {
        global.push_str("  log stdout format raw local0\n");
        defaults.push_str(
            "  log global\n  option httplog\n  option redispatch\n  retries 3\n  retry-on conn-failure response-timeout 502 503 504\n",
        );
        own.push_str(
            "  unique-id-format %{+X}o%ci%cp%Ts%rt%pid\n  unique-id-header X-Request-ID\n  http-request set-header X-Real-IP %[src]\n\
             \x20 http-request set-header X-Forwarded-Port %[dst_port]\n",
        );
        server.push_str(" check inter 2s observe layer7 error-limit 3 on-error mark-down");
    }
    let proto = scheme.name();
    format!(
        "{global}{defaults}frontend in\n  bind {address}{tls}\n{own}  http-request set-header X-Forwarded-Proto {proto}\n\
         \x20 use_backend web if {{ hdr(host) -i h0.example }}\nbackend web\n  server one {backend}{server}\n"
    )
}

pub(super) fn nginx(place: Place<'_>) -> String {
    let Place { scheme, address, backend, directory } = place;
    let directory = directory.display();
    let (listen, tls) = match scheme {
        Scheme::Http => (String::new(), String::new()),
        Scheme::Https => (
            " ssl".to_owned(),
            format!("ssl_certificate {directory}/site.pem; ssl_certificate_key {directory}/site.key; ssl_protocols TLSv1.3;"),
        ),
    };
    let port = address.port();
    format!(
        "daemon off;\nmaster_process off;\npid {directory}/nginx-{port}.pid;\nerror_log /dev/null;\nevents {{ worker_connections 12000; }}\n\
         http {{\n  access_log off;\n  keepalive_requests 1000000000;\n  keepalive_timeout 300s;\n\
         client_body_temp_path {directory}/c;\n  proxy_temp_path {directory}/p;\n\
         fastcgi_temp_path {directory}/f;\n  uwsgi_temp_path {directory}/u;\n  scgi_temp_path {directory}/s;\n\
         upstream web {{ server {backend}; keepalive 256; keepalive_requests 1000000000; }}\n\
         server {{ listen {address}{listen}; server_name h0.example; {tls}\n    location / {{ proxy_pass http://web; proxy_http_version 1.1;\n\
         proxy_set_header Connection \"\"; proxy_set_header Host $host; proxy_set_header X-Forwarded-Proto $scheme;\n\
         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }} }}\n}}\n"
    )
}

/// It sets `X-Forwarded-For` and the like by itself.
pub(super) fn caddy(place: Place<'_>) -> String {
    let Place { scheme, address, backend, directory } = place;
    let directory = directory.display();
    let (tls, port, ip) = (
        if scheme == Scheme::Https { format!("  tls {directory}/site.pem {directory}/site.key\n") } else { String::new() },
        address.port(),
        address.ip(),
    );
    format!(
        "{{\n  admin off\n  auto_https off\n  servers {{\n    protocols h1\n  }}\n}}\n\
         {}://h0.example:{port} {{\n  bind {ip}\n{tls}  reverse_proxy {backend} {{\n    transport http {{\n      keepalive_idle_conns 256\n      \
         keepalive_idle_conns_per_host 256\n    }}\n  }}\n}}\n",
        scheme.name(),
    )
}
