//! The HTTP side.

use std::{
    convert::Infallible,
    fmt::Write as _,
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderValue, SET_COOKIE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde::Serialize;

use super::{
    Failure, Running, Server,
    answer::Answer,
    sniff::{Carrier, Rewound},
    websocket,
};

/// `/bytes` gives no more than this.
const MOST_BYTES: u64 = 1 << 32;

/// What is told about a request.
#[derive(Serialize)]
struct Told<'a> {
    service: &'a str,
    task: &'a str,
    node: &'a str,
    remote: SocketAddr,
    local: SocketAddr,
    time_ms: u128,
    method: &'a str,
    path: String,
    version: String,
    headers: Vec<(&'a str, String)>,
}

pub(super) async fn serve<S: Carrier>(
    stream: Rewound<S>,
    remote: SocketAddr,
    local: SocketAddr,
    server: Arc<Server>,
    mut running: Running,
) {
    let upgraded = running.clone();
    let service = service_fn(|mut request| {
        let (server, running) = (Arc::clone(&server), upgraded.clone());
        async move {
            let response = match websocket::accept(&mut request, remote, local, &server, running) {
                Some(response) => response,
                None => answer(&request, remote, local, &server).await,
            };
            Ok::<_, Infallible>(response)
        }
    });
    // Without a timer hyper would refuse its own header read timeout; a caller may idle as long as it likes.
    let mut connection = pin!(
        http1::Builder::new().header_read_timeout(None).half_close(true).serve_connection(TokioIo::new(stream), service).with_upgrades()
    );
    tokio::select! {
        // Errors are the caller's: it went away, or did not speak HTTP after all.
        _ = connection.as_mut() => return,
        () = running.stopped() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

async fn answer(request: &Request<Incoming>, remote: SocketAddr, local: SocketAddr, server: &Server) -> Response<Answer> {
    server.think().await;
    let path = request.uri().path();
    if server.fail == Failure::Error500 && path != "/health" {
        return plain(StatusCode::INTERNAL_SERVER_ERROR, Answer::text("failing, as --fail error500 asked for\n"));
    }
    match path {
        "/health" if server.is_healthy() => plain(StatusCode::OK, Answer::text("healthy\n")),
        "/health" => plain(StatusCode::SERVICE_UNAVAILABLE, Answer::text("unhealthy\n")),
        "/bytes" => {
            let mut response = plain(StatusCode::OK, Answer::Fill(parameter(request, "n").unwrap_or(1024).min(MOST_BYTES)));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            response
        }
        "/stream" => {
            let every = Duration::from_millis(parameter(request, "ms").unwrap_or(100));
            plain(StatusCode::OK, Answer::drip(parameter(request, "n").unwrap_or(10), every))
        }
        "/json" => {
            // These types serialize without fail: string keys, no maps.
            let text = serde_json::to_string(&told(request, remote, local, server)).unwrap_or_default() + "\n";
            let mut response = plain(StatusCode::OK, Answer::text(text));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
        "/login" => {
            let name = word(request, "cookie").unwrap_or("SESSION");
            let mut response = plain(StatusCode::OK, Answer::text(lines(&told(request, remote, local, server))));
            let session = format!("{name}={:x}-{}; Path=/; HttpOnly", now_ns(), remote.port());
            // What cannot stand in a header was not asked for by a browser.
            if let Ok(value) = HeaderValue::from_str(&session) {
                response.headers_mut().insert(SET_COOKIE, value);
            }
            response
        }
        _ => {
            if path == "/slow" {
                tokio::time::sleep(Duration::from_millis(parameter(request, "ms").unwrap_or(500))).await;
            }
            plain(StatusCode::OK, Answer::text(lines(&told(request, remote, local, server))))
        }
    }
}

fn plain(status: StatusCode, body: Answer) -> Response<Answer> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn parameter(request: &Request<Incoming>, name: &str) -> Option<u64> {
    word(request, name)?.parse().ok()
}

fn word<'a>(request: &'a Request<Incoming>, name: &str) -> Option<&'a str> {
    Some(request.uri().query()?.split('&').filter_map(|p| p.split_once('=')).find(|(n, _)| *n == name)?.1)
}

fn now_ns() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos())
}

fn told<'a>(request: &'a Request<Incoming>, remote: SocketAddr, local: SocketAddr, server: &'a Server) -> Told<'a> {
    Told {
        service: &server.identity.service,
        task: &server.identity.task,
        node: &server.identity.node,
        remote,
        local,
        time_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis()),
        method: request.method().as_str(),
        path: request.uri().to_string(),
        version: format!("{:?}", request.version()),
        headers: headers(request.headers()),
    }
}

fn headers(map: &HeaderMap) -> Vec<(&str, String)> {
    map.iter().map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes()).into_owned())).collect()
}

fn lines(told: &Told<'_>) -> String {
    let mut text = format!(
        "service: {}\ntask: {}\nnode: {}\nremote: {}\nlocal: {}\ntime-ms: {}\n{} {} {}\n",
        told.service, told.task, told.node, told.remote, told.local, told.time_ms, told.method, told.path, told.version
    );
    for (name, value) in &told.headers {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name}: {value}");
    }
    text
}
