//! What each path answers.

use std::sync::atomic::Ordering::Relaxed;

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body, Bytes, Incoming},
    header::{self, HeaderValue},
};
use serde::Serialize;
use serde_json::json;
use swarmesh_model::Protocol;
use swarmesh_plan::BackendState;

use super::{
    Answer, Answers,
    guard::{Peer, may_change, may_read},
    metrics,
};
use crate::{
    config::AdminAddress,
    engine::EngineHandle,
    view::{View, endpoints::endpoints, explain, names::names, routes::routes, services::services, status},
};

/// No request has a body worth reading.
const LARGEST_BODY: u64 = 4096;

#[derive(Debug)]
pub(super) struct Server {
    pub(super) engine: EngineHandle,
    pub(super) bound: AdminAddress,
}

impl Answers for Server {
    async fn answer(&self, request: Request<Incoming>, peer: Peer) -> Answer {
        if let Err(forbidden) = may_read(request.headers(), peer, &self.bound) {
            return error(StatusCode::FORBIDDEN, forbidden);
        }
        if request.body().size_hint().lower() > LARGEST_BODY {
            return error(StatusCode::PAYLOAD_TOO_LARGE, "no request needs a body");
        }
        let path = request.uri().path();
        match (request.method(), path) {
            (&Method::GET, "/healthz") => json(StatusCode::OK, &json!({"status": "ok"})),
            (&Method::POST, "/v1/drain" | "/v1/resume") => match may_change(request.headers(), peer) {
                Ok(()) => self.drain(path == "/v1/drain").await,
                Err(forbidden) => error(StatusCode::FORBIDDEN, forbidden),
            },
            (&Method::POST, "/v1/names/log") => match may_change(request.headers(), peer) {
                Ok(()) => self.log_names(request.uri().query()),
                Err(forbidden) => error(StatusCode::FORBIDDEN, forbidden),
            },
            (_, "/v1/drain" | "/v1/resume" | "/v1/names/log") => not_allowed("POST"),
            (&Method::GET, _) => {
                // Big answers take a while to write; the source shares this thread.
                let (engine, uri) = (self.engine.clone(), request.uri().clone());
                let made = tokio::task::spawn_blocking(move || read(&engine, uri.path(), uri.query())).await;
                made.unwrap_or_else(|e| error(StatusCode::INTERNAL_SERVER_ERROR, e))
            }
            _ => not_allowed("GET"),
        }
    }
}

impl Server {
    /// Logs one of so many queries from now on; 0 ends that.
    fn log_names(&self, query: Option<&str>) -> Answer {
        let every = query.and_then(|q| q.split('&').find_map(|pair| pair.strip_prefix("every="))).and_then(|n| n.parse::<u64>().ok());
        let Some(every) = every else {
            return error(StatusCode::BAD_REQUEST, "needs ?every=N: one of N queries is logged, none with 0");
        };
        match self.engine.shared.read(|view| view.dns.clone()) {
            Some(dns) => {
                dns.log_every.store(every, Relaxed);
                json(StatusCode::OK, &json!({"log_every": every}))
            }
            None => error(StatusCode::CONFLICT, "the agent runs with --dns off"),
        }
    }

    async fn drain(&self, drain: bool) -> Answer {
        match self.engine.drain(drain).await {
            Ok(()) => json(StatusCode::OK, &json!({"draining": drain})),
            Err(gone) => error(StatusCode::SERVICE_UNAVAILABLE, gone),
        }
    }
}

fn read(engine: &EngineHandle, path: &str, query: Option<&str>) -> Answer {
    let shared = &engine.shared;
    match path {
        "/readyz" => {
            let pending = shared.read(status::pending);
            let code = if pending.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            json(code, &json!({"ready": pending.is_empty(), "pending": pending}))
        }
        "/metrics" => match metrics::render(shared) {
            Ok(text) => answer(StatusCode::OK, metrics::CONTENT_TYPE, text.into()),
            Err(failed) => error(StatusCode::INTERNAL_SERVER_ERROR, failed),
        },
        "/v1/snapshot" => answer(StatusCode::OK, "application/json", shared.view().snapshot.to_json().into()),
        "/v1/plan" => json(StatusCode::OK, &shared.view().told_plan()),
        "/v1/status" => json(StatusCode::OK, &status::status(&shared.view(), shared.uptime())),
        "/v1/services" => json(StatusCode::OK, &services(&shared.view())),
        "/v1/endpoints" => json(StatusCode::OK, &endpoints(&shared.view())),
        "/v1/names" => json(StatusCode::OK, &names(&shared.view(), query.is_some_and(|q| q.split('&').any(|p| p == "all=true")))),
        "/v1/routes" => json(StatusCode::OK, &routes(&shared.view())),
        "/v1/explain" => explanation(&shared.view(), query),
        _ => match path.strip_prefix("/v1/health/published/") {
            Some(port) => shared.read(|view| published(view, port)),
            None => error(StatusCode::NOT_FOUND, format!("there is nothing at {path}")),
        },
    }
}

fn explanation(view: &View, query: Option<&str>) -> Answer {
    let target = query.unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("target="));
    let Some(target) = target.and_then(explain::percent_decode) else {
        return error(
            StatusCode::BAD_REQUEST,
            "needs ?target=tcp://ADDRESS:PORT, udp://ADDRESS:PORT, vip://NAME, dns://NAME or http://HOST/PATH, percent-encoded",
        );
    };
    match target.parse::<explain::Target>() {
        Ok(target) => json(StatusCode::OK, &explain::explain(view, &target, &explain::Local::read())),
        Err(wrong) => error(StatusCode::BAD_REQUEST, wrong),
    }
}

/// For load balancers: any answer but 200 takes this node out of rotation for the port.
fn published(view: &View, what: &str) -> Answer {
    let key = what.split_once('/').and_then(|(protocol, port)| {
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return None,
        };
        port.parse::<u16>().ok().filter(|p| *p > 0).map(|port| (protocol, port))
    });
    let Some((protocol, number)) = key else {
        return error(StatusCode::BAD_REQUEST, "the path is /v1/health/published/{tcp,udp}/PORT, with a port from 1 to 65535");
    };
    let unusable = |why: String| json(StatusCode::SERVICE_UNAVAILABLE, &json!({"usable": 0, "error": why}));
    let Some(port) = view.plan.published.get(&(protocol, number)) else {
        if protocol == Protocol::Tcp && view.listeners.has_port(number) {
            return match (view.stopping, view.context.draining) {
                (true, _) => unusable("the agent stops, and its router with it".to_owned()),
                (_, true) => unusable("this node drains".to_owned()),
                (false, false) => json(StatusCode::OK, &json!({"routes": view.plan.routes.routes().count()})),
            };
        }
        return unusable(format!("no service of the swarm publishes {protocol} port {number}"));
    };
    if port.refuse {
        return unusable("this node drains".to_owned());
    }
    if let Some(place) = view.pending_entry() {
        return unusable(format!("not applied in {}: {}", place.place, place.error));
    }
    // Stopping tasks serve on while no other is left, but who comes from here should go where there are others.
    match port.backends.iter().filter(|b| b.state == BackendState::Ready).count() {
        0 => unusable(format!("no usable task of service {}", port.name)),
        usable => json(StatusCode::OK, &json!({"usable": usable})),
    }
}

fn not_allowed(allowed: &'static str) -> Answer {
    let mut answer = error(StatusCode::METHOD_NOT_ALLOWED, format!("only {allowed}"));
    answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    answer
}

fn json(code: StatusCode, body: &impl Serialize) -> Answer {
    match serde_json::to_vec(body) {
        Ok(mut text) => {
            text.push(b'\n');
            answer(code, "application/json", text.into())
        }
        Err(failed) => error(StatusCode::INTERNAL_SERVER_ERROR, failed),
    }
}

fn error(code: StatusCode, message: impl ToString) -> Answer {
    answer(code, "application/json", format!("{}\n", json!({"error": message.to_string()})).into())
}

fn answer(code: StatusCode, content_type: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = code;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    // A page that could open these answers as something else would have a way past their type.
    answer.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}
