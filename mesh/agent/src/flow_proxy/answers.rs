//! What each path answers.

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc};

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{self, HeaderMap, HeaderValue},
};
use serde_json::{Map, Value, json};
use swarmesh_model::Service;
use swarmesh_plan::{Added, host_workload, labels_of_host};
use swarmesh_router::{
    Effect, RouteProblem,
    dialect::{self, Workload, flow_proxy::PREFIX},
    model::Dialect,
};

use super::{
    certificates::{Certificates, LARGEST},
    described::Described,
    query::Query,
};
use crate::{
    admin::{Answer, Answers, Peer, guard, metrics},
    config::AdminAddress,
    engine::{AddedChange, EngineHandle},
    view::{Origin, View},
};

/// Every one of them is a part of everybody's table.
const MOST_SERVICES: usize = 1000;
const LONGEST_NAME: usize = 253;

/// What cannot be done here is told, not left out in silence: others would go without.
const NOT_DISTRIBUTED: &str = "distribute is not taken up: each node's agent keeps what it is told itself; send distribute=false to each of \
                               them, or put the parameters into labels, which all nodes read";

#[derive(Debug)]
pub(super) struct Server {
    pub(super) engine: EngineHandle,
    pub(super) bound: AdminAddress,
    pub(super) certificates: Arc<Certificates>,
}

impl Answers for Server {
    async fn answer(&self, request: Request<Incoming>, peer: Peer) -> Answer {
        if let Err(forbidden) = guard::may_read(request.headers(), peer, &self.bound) {
            return refused(StatusCode::FORBIDDEN, forbidden);
        }
        let uri = request.uri().clone();
        let query = match Query::parse(uri.query().unwrap_or_default()) {
            Ok(query) => query,
            Err(error) => return refused(StatusCode::BAD_REQUEST, error),
        };
        let Some(what) = What::of(uri.path()) else {
            // A slash more leads to the path without it.
            return match uri.path().strip_suffix('/').filter(|path| What::of(path).is_some()) {
                Some(path) => moved(path, uri.query()),
                None => answer(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "404 page not found\n".into()),
            };
        };
        if what.changes() && is_from_a_page(request.headers()) {
            return refused(StatusCode::FORBIDDEN, "not from a web page: the request has headers that only browsers send");
        }
        match what {
            What::Reconfigure => self.reconfigure(query).await,
            What::Remove => self.remove(&query).await,
            What::Reload | What::Ping | What::Notify => ok(""),
            What::Certificate if request.method() == hyper::Method::PUT => self.put(&query, request.into_body()).await,
            What::Certificate => {
                let mut answer = answer(StatusCode::METHOD_NOT_ALLOWED, "text/plain; charset=utf-8", Bytes::new());
                answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("PUT"));
                answer
            }
            What::Certificates => {
                let certificates = Arc::clone(&self.certificates);
                blocking(move || list(&certificates)).await
            }
            What::Config => {
                let engine = self.engine.clone();
                blocking(move || config(&engine.shared.view(), &query)).await
            }
            What::Metrics => {
                let engine = self.engine.clone();
                blocking(move || match metrics::render(&engine.shared) {
                    Ok(text) => answer(StatusCode::OK, metrics::CONTENT_TYPE, text.into()),
                    Err(failed) => refused(StatusCode::INTERNAL_SERVER_ERROR, failed),
                })
                .await
            }
            What::Loaded => match self.engine.shared.read(|view| view.origin) {
                Origin::None => refused(StatusCode::INTERNAL_SERVER_ERROR, "no snapshot of the swarm has come yet"),
                Origin::Source | Origin::StateDir | Origin::File => ok(""),
            },
            What::Test(message) => ok(message),
            What::Services => {
                let engine = self.engine.clone();
                blocking(move || services(&engine.shared.view())).await
            }
        }
    }
}

/// What is asked for, by path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Reconfigure,
    Remove,
    Reload,
    Certificate,
    Certificates,
    Config,
    Metrics,
    Ping,
    Loaded,
    Test(&'static str),
    /// The listener's.
    Services,
    Notify,
}

impl What {
    fn of(path: &str) -> Option<Self> {
        Some(match path {
            "/v1/docker-flow-proxy/reconfigure" => Self::Reconfigure,
            "/v1/docker-flow-proxy/remove" => Self::Remove,
            "/v1/docker-flow-proxy/reload" => Self::Reload,
            "/v1/docker-flow-proxy/cert" => Self::Certificate,
            "/v1/docker-flow-proxy/certs" => Self::Certificates,
            "/v1/docker-flow-proxy/config" => Self::Config,
            "/v1/docker-flow-proxy/metrics" | "/metrics" => Self::Metrics,
            "/v1/docker-flow-proxy/ping" | "/v1/docker-flow-swarm-listener/ping" => Self::Ping,
            "/v1/docker-flow-proxy/successfulinitreload" => Self::Loaded,
            "/v1/test" => Self::Test("Test v1"),
            "/v2/test" => Self::Test("Test v2"),
            "/v1/docker-flow-swarm-listener/get-services" => Self::Services,
            "/v1/docker-flow-swarm-listener/notify-services" => Self::Notify,
            _ => return None,
        })
    }

    fn changes(self) -> bool {
        matches!(self, Self::Reconfigure | Self::Remove | Self::Reload | Self::Certificate)
    }
}

/// Calls that change something are plain GETs, which any page can make a browser send, without an `Origin`.
fn is_from_a_page(headers: &HeaderMap) -> bool {
    headers.contains_key(header::ORIGIN) || headers.contains_key(header::REFERER) || headers.contains_key("sec-fetch-site")
}

impl Server {
    async fn reconfigure(&self, query: Query) -> Answer {
        let name = query.get("serviceName").to_owned();
        let distribute = query.is_true("distribute");
        let parameters = query.into_parameters();
        let settings = self.engine.shared.read(|view| Arc::clone(&view.context.dialects));
        let described = Described::new(parameters.iter().map(|(n, v)| (n.as_str(), v.as_str())), &settings.flow_proxy.separator);
        let fields = described.fields(&name);
        if let Err((code, message)) = check(&name, &described) {
            return respond(code, message, &name, fields);
        }
        if distribute {
            return respond(StatusCode::INTERNAL_SERVER_ERROR, NOT_DISTRIBUTED, &name, fields);
        }
        let view = self.engine.shared.view();
        if view.context.added.len() >= MOST_SERVICES && view.context.added.get(&name).is_none() {
            let message = format!("there are {MOST_SERVICES} services already; remove some");
            return respond(StatusCode::INTERNAL_SERVER_ERROR, &message, &name, fields);
        }
        let problems = problems(&view, &name, &parameters);
        let told = told(&problems);
        // As there, a service that cannot be served as it is written is not served in part.
        if problems.iter().any(|problem| problem.effect == Effect::NoRoute) {
            return respond(StatusCode::INTERNAL_SERVER_ERROR, &told, &name, fields);
        }
        match self.engine.change_added(AddedChange::Put(name.clone(), parameters)).await {
            Ok(changed) => {
                tracing::info!(service = %name, changed, "told of a service by the API");
                respond(StatusCode::OK, &told, &name, fields)
            }
            Err(error) => respond(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string(), &name, fields),
        }
    }

    async fn remove(&self, query: &Query) -> Answer {
        let name = query.get("serviceName").to_owned();
        if name.is_empty() {
            return respond(StatusCode::BAD_REQUEST, "The serviceName query is mandatory", "", Map::new());
        }
        if query.is_true("distribute") {
            return respond(StatusCode::INTERNAL_SERVER_ERROR, NOT_DISTRIBUTED, &name, Map::new());
        }
        match self.engine.change_added(AddedChange::Remove(name.clone())).await {
            Ok(changed) => {
                tracing::info!(service = ?name, changed, "told by the API that a service is gone");
                let is_labelled = |s: &Service| s.name == name && is_on(s);
                let stays = self.engine.shared.read(|view| view.snapshot.services.values().any(|s| is_labelled(s)));
                let message = if stays { "what the service's labels say stays; docker service update changes them" } else { "" };
                respond(StatusCode::OK, message, &name, Map::new())
            }
            Err(error) => respond(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string(), &name, Map::new()),
        }
    }

    async fn put(&self, query: &Query, body: Incoming) -> Answer {
        let certs = |code, message: &str| json(code, &json!({"Status": status(code), "Message": message, "Certs": null}));
        if query.is_true("distribute") {
            return certs(StatusCode::BAD_REQUEST, NOT_DISTRIBUTED);
        }
        let body = match Limited::new(body, LARGEST).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                return certs(StatusCode::BAD_REQUEST, &format!("the body is larger than {LARGEST} bytes"));
            }
            Err(error) => return certs(StatusCode::BAD_REQUEST, &format!("the body did not arrive: {error}")),
        };
        let (certificates, name) = (Arc::clone(&self.certificates), query.get("certName").to_owned());
        blocking(move || match certificates.put(&name, &body) {
            Ok(()) => {
                tracing::info!(name, "a certificate was put");
                certs(StatusCode::OK, "")
            }
            Err(error) => certs(StatusCode::BAD_REQUEST, &error.to_string()),
        })
        .await
    }
}

/// Files and big answers take a while; the source shares the thread that requests come in by.
async fn blocking(make: impl FnOnce() -> Answer + Send + 'static) -> Answer {
    tokio::task::spawn_blocking(make).await.unwrap_or_else(|e| refused(StatusCode::INTERNAL_SERVER_ERROR, e))
}

fn list(certificates: &Certificates) -> Answer {
    let listed = match certificates.list() {
        Ok(listed) => listed,
        Err(error) => return refused(StatusCode::INTERNAL_SERVER_ERROR, error),
    };
    let certs: Vec<Value> = listed
        .into_iter()
        .map(|(name, text)| json!({"ServicePort": "", "ProxyServiceName": name, "CertsDir": "/certs", "CertContent": text}))
        .collect();
    json(StatusCode::OK, &json!({"Status": "OK", "Message": "", "Certs": certs}))
}

/// All services in force: those of labels, and those that were told of.
fn config(view: &View, query: &Query) -> Answer {
    if !query.get("type").eq_ignore_ascii_case("json") {
        let text = "There is no haproxy.cfg here. Ask with type=json, or see swarmesh routes.\n";
        return answer(StatusCode::INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", text.into());
    }
    let separator = &view.context.dialects.flow_proxy.separator;
    let mut out = Map::new();
    for service in view.snapshot.services.values().filter(|s| is_on(s)) {
        let described = Described::new(parameters_of(service), separator);
        out.insert(service.name.clone(), Value::Object(described.fields(&service.name)));
    }
    for (name, parameters) in view.context.added.iter() {
        let described = Described::new(parameters.iter().map(|(n, v)| (n.as_str(), v.as_str())), separator);
        out.insert(name.clone(), Value::Object(described.fields(name)));
    }
    json(StatusCode::OK, &Value::Object(out))
}

/// For proxies that begin with a listener's list. Services with passwords or keys in their labels are not in it: who asks
/// is not known, and a proxy that got them without would leave them open.
fn services(view: &View) -> Answer {
    let has_secret = |s: &Service| {
        parameters_of(s).any(|(name, value)| ["users", "servicecert"].contains(&name.to_ascii_lowercase().as_str()) && !value.is_empty())
    };
    let listed = view.snapshot.services.values().filter(|s| is_on(s) && !has_secret(s)).map(|service| {
        let mut out: Map<String, Value> = parameters_of(service)
            .filter(|(name, _)| !name.eq_ignore_ascii_case("notify"))
            .map(|(name, value)| (name.to_owned(), json!(value)))
            .collect();
        out.insert("serviceName".to_owned(), json!(service.name));
        out.entry("distribute").or_insert_with(|| json!("true"));
        Value::Object(out)
    });
    json(StatusCode::OK, &listed.collect::<Value>())
}

/// What the proxy itself asks of every call, before its configuration is made.
fn check(name: &str, described: &Described<'_>) -> Result<(), (StatusCode, &'static str)> {
    if name.is_empty() {
        return Err((StatusCode::BAD_REQUEST, "serviceName parameter is mandatory."));
    }
    // It becomes part of a realm, a cookie and a log.
    if name.len() > LONGEST_NAME || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) {
        return Err((StatusCode::BAD_REQUEST, "serviceName is not a name of letters, digits, hyphens, underscores and dots"));
    }
    let first = described.indexes().first().copied().unwrap_or_default();
    let has = |parameter: &str| !described.get(parameter, first).is_empty();
    let mode = described.get("reqMode", first);
    if mode.is_empty() || mode.eq_ignore_ascii_case("http") {
        if !has("servicePath") && !has("serviceDomain") {
            return Err((StatusCode::CONFLICT, "When using reqMode http, servicePath or serviceDomain are mandatory"));
        }
    } else if !has("srcPort") || !has("port") {
        let message = "When NOT using reqMode http (e.g. tcp), srcPort and port parameters are mandatory.";
        return Err((StatusCode::BAD_REQUEST, message));
    }
    if !has("port") && !has("httpsPort") {
        return Err((StatusCode::BAD_REQUEST, "When MODE is set to \"service\" or \"swarm\", the port query is mandatory"));
    }
    Ok(())
}

/// What the planner will find wrong with it.
fn problems(view: &View, name: &str, parameters: &BTreeMap<String, String>) -> Vec<RouteProblem> {
    let mut added = Added::default();
    added.insert(name.to_owned(), parameters.clone());
    let settings = &view.context.dialects;
    let service = view.snapshot.services.values().find(|s| s.name == name);
    let outcome = match service {
        Some(service) => {
            let labels = added.labels(service);
            dialect::routes(&Workload { labels: &labels, ..Workload::service(service, &view.snapshot) }, settings)
        }
        None => {
            let labels = labels_of_host(name, parameters);
            dialect::routes(&host_workload(name, &labels), settings)
        }
    };
    outcome.problems.into_iter().filter(|problem| problem.dialect == Dialect::FlowProxy).collect()
}

fn told(problems: &[RouteProblem]) -> String {
    let mut out = String::new();
    for problem in problems {
        let told = problem.problem();
        let label = problem.label.strip_prefix(PREFIX).unwrap_or(&problem.label);
        // Writing to a text cannot fail.
        let _ = write!(out, "{}{label}: {}", if out.is_empty() { "" } else { "; " }, told.message);
    }
    out
}

fn is_on(service: &Service) -> bool {
    let notify = parameters_of(service).find(|(name, _)| name.eq_ignore_ascii_case("notify"));
    notify.is_some_and(|(_, value)| value.trim().eq_ignore_ascii_case("true"))
}

fn parameters_of(service: &Service) -> impl Iterator<Item = (&str, &str)> {
    service.labels.iter().filter_map(|(label, value)| Some((label.strip_prefix(PREFIX)?, value.as_str())))
}

fn status(code: StatusCode) -> &'static str {
    if code.is_success() { "OK" } else { "NOK" }
}

fn respond(code: StatusCode, message: &str, service: &str, mut fields: Map<String, Value>) -> Answer {
    fields.insert("Status".to_owned(), json!(status(code)));
    fields.insert("Message".to_owned(), json!(message));
    fields.insert("ServiceName".to_owned(), json!(service));
    json(code, &Value::Object(fields))
}

fn ok(message: &str) -> Answer {
    json(StatusCode::OK, &json!({"Status": "OK", "Message": message, "ServiceName": ""}))
}

fn refused(code: StatusCode, message: impl ToString) -> Answer {
    json(code, &json!({"Status": "NOK", "Message": message.to_string(), "ServiceName": ""}))
}

fn moved(path: &str, query: Option<&str>) -> Answer {
    let to = query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    let mut answer = answer(StatusCode::MOVED_PERMANENTLY, "text/plain; charset=utf-8", Bytes::new());
    if let Ok(to) = HeaderValue::from_str(&to) {
        answer.headers_mut().insert(header::LOCATION, to);
    }
    answer
}

fn json(code: StatusCode, body: &Value) -> Answer {
    answer(code, "application/json", body.to_string().into())
}

fn answer(code: StatusCode, content_type: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = code;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}
