//! One request: checked, routed, filtered, sent, answered.

pub(crate) mod body;
pub(crate) mod head;
pub(crate) mod request;
pub(crate) mod response;

use std::{
    convert::Infallible,
    future::Future,
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, request::Parts};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use swarmesh_router::{
    model::{Action, Filter, Headers, NO_ROUTE, Policy, REFUSED, RetryOn, Upstream},
    table,
};
use tokio::time::timeout;

use self::{
    body::{Account, AnswerBody, BackendBody, Breach, RequestBody, Upload},
    head::{Head, check},
    request::{About, Client, Outgoing, Stop, forget_claims, join_cookies, take_hop_by_hop},
    response::{Answering, own, stopped},
};
use crate::{
    access_log::{Entry, Field, Wish},
    auth, compress,
    config::Times,
    endpoint::{Busy, Endpoint},
    live_set::{Asking, LiveSet},
    metrics::add,
    routing::{Lane, Routing},
    tunnel::tunnel,
    upstream::{Answer, ConnectError, Lease, SendError, Unanswered, Wanted},
    worker::{Worker, activity::Unread},
};

/// What the table may ask of a request's headers.
struct Asked<'r>(&'r HeaderMap);

impl Headers for Asked<'_> {
    fn any(&self, name: &str, test: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        self.0.get_all(name).iter().any(|value| test(value.as_bytes()))
    }
}

/// Answers a request. Whatever happens, there is an answer.
pub(crate) async fn answer(
    worker: Rc<Worker>,
    client: Rc<Client>,
    request: Request<Incoming>,
    unread: Unread,
) -> Result<Response<AnswerBody>, Infallible> {
    let begun = Instant::now();
    let (mut parts, body) = request.into_parts();
    let head = match check(&parts) {
        Ok(head) => head,
        Err(error) => {
            add(&worker.shared.counts.malformed, 1);
            tracing::debug!(client = %client.address, %error, "a request is refused");
            let mut answer = own(error.status());
            if let Some(log) = worker.log.as_ref().filter(|log| log.samples()) {
                let mut entry = log.request(&client, Wish::new(&parts, None));
                entry.reason = Some("malformed");
                answer = logged(answer, begun, entry);
            }
            // What follows on this connection was perhaps meant as part of this.
            if parts.version < Version::HTTP_2 {
                answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            return Ok(answer);
        }
    };
    let lane = match find(&worker, &client, &parts, &head) {
        Ok(lane) => lane,
        Err(lost) => return Ok(lost.answer(&worker, &client, &parts, &head, begun)),
    };
    lane.counts.begin();
    let mut account = Account::new(Some(Arc::clone(&lane)), begun);
    let upload = Rc::clone(&account.upload);
    let mut wished = None;
    if let Some(log) = &worker.log {
        let this = Wish::new(&parts, Some((&head.host, &head.target)));
        if log.samples() {
            account.entry = Some(log.request(&client, this));
        } else {
            wished = Some(this);
        }
    }
    let times = worker.config.times.of(&lane.recipe.policy.timeouts);
    let body = RequestBody::new(body, lane.recipe.policy.limits.body, times.client, upload, unread);
    let upgrade = take_hop_by_hop(&mut parts.headers);
    let mut exchange = Exchange {
        worker: &worker,
        client: &client,
        lane: &lane,
        head,
        upgrade,
        times,
        request_id: String::new(),
        begun,
        retries: 0,
        attempts: 0,
        wished,
        passed: None,
    };
    let answer = exchange.run(&mut parts, body, account).await;
    Ok(answer)
}

/// Why a request has no route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    NoRoute,
    /// The TLS that it came by has been passed through since: by another connection, it would be.
    Misdirected,
}

impl Lost {
    fn answer(self, worker: &Worker, client: &Client, parts: &Parts, head: &Head, begun: Instant) -> Response<AnswerBody> {
        add(&worker.shared.counts.unrouted, 1);
        let (status, reason) = match self {
            Self::NoRoute => (StatusCode::from_u16(NO_ROUTE).unwrap_or(StatusCode::SERVICE_UNAVAILABLE), "no-route"),
            // May be sent again, by another connection (RFC 9110, 15.5.20).
            Self::Misdirected => (StatusCode::MISDIRECTED_REQUEST, "misdirected"),
        };
        let mut answer = own(status);
        if self == Self::Misdirected && parts.version < Version::HTTP_2 {
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        match worker.log.as_ref().filter(|log| log.samples() || status.is_server_error()) {
            Some(log) => {
                let mut entry = log.request(client, Wish::new(parts, Some((&head.host, &head.target))));
                entry.reason = Some(reason);
                logged(answer, begun, entry)
            }
            None => answer,
        }
    }
}

/// The route that a request takes.
fn find(worker: &Worker, client: &Client, parts: &Parts, head: &Head) -> Result<Arc<Lane>, Lost> {
    let asked = table::Request {
        tls: client.tls.is_some(),
        port: client.local.port(),
        host: head.host.as_str(),
        method: parts.method.as_str(),
        path: head.path(),
        headers: &Asked(&parts.headers),
    };
    let find_in = |routing: &Routing| {
        let lane = routing.table.position(&asked).and_then(|position| routing.lane(position));
        lane.inspect(|lane| lane.fetch()).cloned()
    };
    let routing = worker.shared.routing.load();
    let opened_by = client.tls.as_ref().and_then(|tls| tls.opened_by.take());
    if let Some(lane) = find_in(&routing) {
        return Ok(lane);
    }
    match &client.tls {
        // Who opened it while it ended here, and has asked for nothing yet, cannot know better.
        Some(tls) if routing.table.position_tls(tls.sni.as_deref(), client.local.port()).is_some() => {
            opened_by.as_deref().and_then(find_in).ok_or(Lost::Misdirected)
        }
        _ => Err(Lost::NoRoute),
    }
}

/// An answer of no route.
fn logged(answer: Response<AnswerBody>, begun: Instant, entry: Box<Entry>) -> Response<AnswerBody> {
    let mut account = Account::new(None, begun);
    account.status = answer.status().as_u16();
    account.entry = Some(entry);
    answer.map(|body| body.accounted(account))
}

/// One request on its way to a backend and back.
struct Exchange<'r> {
    worker: &'r Rc<Worker>,
    client: &'r Client,
    lane: &'r Arc<Lane>,
    head: Head,
    /// The protocol that the client wants to speak instead.
    upgrade: Option<HeaderValue>,
    times: Times,
    request_id: String,
    begun: Instant,
    /// What the route's limit of them counts: to send again what an idle connection lost is none.
    retries: u32,
    /// Backends that were tried, one perhaps more than once.
    attempts: u32,
    /// What was asked for, if it is logged only when it fails.
    wished: Option<Wish>,
    /// `Authorization` that was let pass, if the log is to name the user.
    passed: Option<HeaderValue>,
}

/// Why a backend was not reached, or did not answer.
#[derive(Debug)]
enum Failure {
    /// Nobody is there.
    NoBackend,
    /// All that are there have as much to do as they may.
    Full,
    Connect(ConnectError),
    Send(#[expect(dead_code, reason = "told in the log, by Debug")] SendError),
    TimedOut,
    /// The client itself is why.
    Client(Breach),
}

impl Failure {
    /// As HAProxy and nginx agree for the most part: nobody there 503, no understandable answer 502, none in time 504.
    const fn status(&self) -> StatusCode {
        match self {
            Self::NoBackend | Self::Full | Self::Connect(ConnectError::NoFoothold) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Connect(_) | Self::Send(_) => StatusCode::BAD_GATEWAY,
            Self::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            Self::Client(Breach::Off) => StatusCode::BAD_REQUEST,
            Self::Client(Breach::Stalled) => StatusCode::REQUEST_TIMEOUT,
            Self::Client(Breach::TooLong) => StatusCode::PAYLOAD_TOO_LARGE,
        }
    }

    /// For the access log.
    const fn reason(&self) -> &'static str {
        match self {
            Self::NoBackend => "no-backend",
            Self::Full => "backends-full",
            Self::Connect(ConnectError::NoFoothold) => "no-foothold",
            Self::Connect(_) => "connect-failed",
            Self::Send(_) => "no-valid-answer",
            Self::TimedOut => "backend-timed-out",
            Self::Client(Breach::Off) => "client-broke-off",
            Self::Client(Breach::Stalled) => "client-stalled",
            Self::Client(Breach::TooLong) => "body-too-long",
        }
    }
}

/// An answer, and by whom.
struct Answered {
    response: Answer,
    lease: Lease,
    busy: Busy,
    set_cookie: Option<HeaderValue>,
}

impl Exchange<'_> {
    async fn run(&mut self, parts: &mut Parts, body: RequestBody, mut account: Account) -> Response<AnswerBody> {
        if body.is_too_long() {
            return self.finish(own(StatusCode::PAYLOAD_TOO_LARGE), "body-too-long", parts, account);
        }
        forget_claims(&mut parts.headers, self.client);
        join_cookies(&mut parts.headers);
        if let Err(stop) = self.filter(parts).await {
            let reason = stop.reason();
            return self.finish(stopped(stop), reason, parts, account);
        }
        let lane = self.lane;
        let Some(live) = &lane.live else {
            let (answer, reason) = match &lane.route.action {
                Action::Redirect(redirect) => (stopped(Stop::redirect(redirect, &self.head)), "redirect"),
                Action::Status(status) => (stopped(Stop::Status(*status)), "status"),
                // Unreachable: a lane has a live set if its route forwards.
                Action::Forward(_) => (own(StatusCode::SERVICE_UNAVAILABLE), "no-backend"),
            };
            return self.finish(answer, reason, parts, account);
        };
        let on_upgrade = self.upgrade.as_ref().and_then(|_| parts.extensions.remove::<hyper::upgrade::OnUpgrade>());
        let wish = lane.recipe.filters.iter().find_map(|filter| match filter {
            Filter::Compress(how) => Some((how, compress::wish(how, &parts.method, parts.version, &parts.headers))),
            _ => None,
        });
        let outgoing = self.outgoing(parts, body);
        match self.forward(live, outgoing, Rc::clone(&account.upload)).await {
            Ok(mut answered) => {
                if answered.response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    return self.switch(answered, on_upgrade, parts, account);
                }
                live.answered(answered.busy.endpoint(), answered.response.headers());
                let headers = answered.response.headers_mut();
                response::take_hop_by_hop(headers);
                if let Some(cookie) = answered.set_cookie.take() {
                    headers.append(header::SET_COOKIE, cookie);
                    // A cache would give this client's cookie to others.
                    headers.append(header::CACHE_CONTROL, HeaderValue::from_static("private"));
                }
                self.filter_answer(&mut answered.response, parts, Some(answered.busy.endpoint()));
                let (mut head, body) = answered.response.into_parts();
                head.version = Version::HTTP_11;
                head.extensions.clear();
                self.conclude(&mut account, head.status, None);
                account.busy = Some(answered.busy);
                let body = BackendBody::new(body, answered.lease, Rc::clone(&self.worker.upstreams), self.times.server, account);
                let encoding =
                    if body.is_end_stream() { None } else { wish.and_then(|(how, wish)| compress::prepare(how, wish, &mut head)) };
                Response::from_parts(head, AnswerBody::backend(body, encoding))
            }
            Err(failure) => {
                tracing::debug!(client = %self.client.address, route = %self.lane.route.origin.owner, ?failure, "a request has no answer");
                self.finish(own(failure.status()), failure.reason(), parts, account)
            }
        }
    }

    /// An answer of our own goes through the route's filters, too.
    fn finish(
        &mut self,
        mut answer: Response<AnswerBody>,
        reason: &'static str,
        parts: &Parts,
        mut account: Account,
    ) -> Response<AnswerBody> {
        self.filter_answer(&mut answer, parts, None);
        self.conclude(&mut account, answer.status(), Some(reason));
        answer.map(|body| body.accounted(account))
    }

    /// What is told of this request is known now, but for its end.
    fn conclude(&mut self, account: &mut Account, status: StatusCode, reason: Option<&'static str>) {
        account.status = status.as_u16();
        let Some(log) = &self.worker.log else { return };
        if account.entry.is_none()
            && status.is_server_error()
            && let Some(wished) = self.wished.take()
        {
            account.entry = Some(log.request(self.client, wished));
        }
        if let Some(entry) = &mut account.entry {
            entry.user = self.passed.as_ref().and_then(auth::user_name);
            entry.request_id = self.request_id.clone();
            entry.retries = self.attempts.saturating_sub(1);
            entry.reason = reason;
        }
    }

    /// Keeps who passed, if that is to be told.
    fn has_passed(&mut self, headers: &HeaderMap) {
        if self.worker.log.as_ref().is_some_and(|log| log.wants(Field::User)) {
            self.passed = headers.get(header::AUTHORIZATION).cloned();
        }
    }

    async fn filter(&mut self, parts: &mut Parts) -> Result<(), Stop> {
        let (lane, shared) = (self.lane, &self.worker.shared);
        let mut gates = lane.gates.iter();
        // Each gate sees what the client said, also behind one that lets nothing of it go on.
        let mut said = HeaderMap::new();
        if !lane.gates.is_empty() || shared.node_gate.is_some() {
            said.extend(parts.headers.get_all(header::AUTHORIZATION).iter().map(|v| (header::AUTHORIZATION, v.clone())));
        }
        for filter in &lane.recipe.filters {
            match filter {
                Filter::BasicAuth(auth) => {
                    let gate = gates.next().ok_or(Stop::Status(REFUSED))?;
                    Box::pin(gate.pass(&shared.verifier, &said)).await.map_err(Stop::Auth)?;
                    self.has_passed(&said);
                    if auth.consume {
                        parts.headers.remove(header::AUTHORIZATION);
                    }
                }
                Filter::GlobalAuth => {
                    if let Some(gate) = &shared.node_gate {
                        Box::pin(gate.pass(&shared.verifier, &said)).await.map_err(Stop::Auth)?;
                        self.has_passed(&said);
                        parts.headers.remove(header::AUTHORIZATION);
                    }
                }
                filter => {
                    let mut outgoing = Outgoing {
                        method: &mut parts.method,
                        head: &mut self.head,
                        headers: &mut parts.headers,
                        client: self.client,
                        request_id: &mut self.request_id,
                        proxy_name: &self.worker.config.name,
                    };
                    outgoing.apply(filter)?;
                }
            }
        }
        Ok(())
    }

    fn filter_answer<B>(&mut self, answer: &mut Response<B>, parts: &Parts, by: Option<&Arc<Endpoint>>) {
        let lane = self.lane;
        let is_for_answers =
            |filter: &&Filter| matches!(filter, Filter::Response(_) | Filter::InfoHeaders | Filter::StrictTransport { .. });
        let mut filters = lane.recipe.filters.iter().filter(is_for_answers).peekable();
        if filters.peek().is_none() {
            return;
        }
        if self.request_id.is_empty() {
            self.request_id = request::new_request_id();
        }
        let answering = Answering {
            about: About {
                client: self.client,
                head: &self.head,
                method: &parts.method,
                headers: &parts.headers,
                proxy_name: &self.worker.config.name,
            },
            request_id: &self.request_id,
            upstream: by.map(|endpoint| &endpoint.upstream),
            took: self.begun.elapsed(),
        };
        let status = answer.status();
        for filter in filters {
            answering.apply(filter, status, answer.headers_mut());
        }
    }

    /// The request as the backend gets it.
    fn outgoing(&self, parts: &mut Parts, body: RequestBody) -> Request<RequestBody> {
        let mut request = Request::new(body);
        *request.method_mut() = parts.method.clone();
        *request.headers_mut() =
            if self.lane.recipe.answers_ask_headers { parts.headers.clone() } else { std::mem::take(&mut parts.headers) };
        let headers = request.headers_mut();
        // The server side has said 100 already, or will, when the body is asked for.
        headers.remove(header::EXPECT);
        let host = self.head.host.as_str();
        if headers.get(header::HOST).is_none_or(|said| said != host)
            && let Ok(host) = HeaderValue::from_str(host)
        {
            headers.insert(header::HOST, host);
        }
        if let Some(protocol) = &self.upgrade {
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, protocol.clone());
        }
        *request.uri_mut() = Uri::from(self.head.target.clone());
        request
    }

    /// Finds a backend that answers. Another one is tried as long as nothing can have been done twice.
    async fn forward(&mut self, live: &LiveSet, mut request: Request<RequestBody>, upload: Rc<Upload>) -> Result<Answered, Failure> {
        let lane = self.lane;
        let policy = &lane.recipe.policy;
        let can_repeat = request.body().is_none() && is_idempotent(request.method());
        let mut tried: Vec<u64> = Vec::new();
        let mut fresh = false;
        let mut failure = Failure::NoBackend;
        loop {
            let now = Instant::now();
            let Some(choice) = live.choose(&self.asking(request.headers()), &tried, now) else { return Err(failure) };
            let endpoint = choice.endpoint;
            let Some(busy) = self.room(&endpoint, policy).await else {
                tried.push(endpoint.id);
                failure = Failure::Full;
                continue;
            };
            if self.attempts > 0 {
                lane.counts.retried();
            }
            self.attempts += 1;
            let wanted = Wanted {
                host: if endpoint.tls.is_some() { self.head.host.host() } else { "" },
                connect_time: self.times.connect,
                fresh,
                preface: policy
                    .proxy_protocol
                    .map(|version| crate::proxy_protocol::header(version, self.client.address, self.client.local)),
                private: self.upgrade.is_some(),
                streams: self.upgrade.is_some() || !request.body().is_none(),
                // Behind a VIP, it is the connection that is balanced.
                once: self.upgrade.is_none() && (policy.close_upstream || matches!(endpoint.upstream, Upstream::Vip { .. })),
            };
            let mut lease = match self.worker.upstreams.connection(&endpoint, &wanted).await {
                Ok(lease) => lease,
                Err(error) => {
                    self.lane.counts.connect_failed();
                    endpoint.health.failed(policy.ejection, now);
                    tried.push(endpoint.id);
                    failure = Failure::Connect(error);
                    if !self.may_retry(policy, RetryOn::ConnectFailure, true) {
                        return Err(failure);
                    }
                    continue;
                }
            };
            // What may have to be said again is kept.
            let keeps = can_repeat && (lease.is_reused || !policy.retries.on.is_empty());
            let sent = match lease.own() {
                Some(own) => {
                    let answer = own.ask(&request, self.times.server).await;
                    let is_unsent = own.is_unsent();
                    answer.map(|answer| answer.map(|a| a.map(|()| None)).map_err(|error| Unanswered { error: error.into(), is_unsent }))
                }
                // Seldom, and it would make each request's future larger.
                None => Box::pin(self.in_time(lease.send(&mut request, keeps), &upload)).await,
            };
            match sent {
                Some(Ok(response)) => {
                    let status = response.status().as_u16();
                    let again = policy.retries.on.contains(&RetryOn::Status(status));
                    if status >= 500 && again {
                        endpoint.health.failed(policy.ejection, now);
                    } else {
                        endpoint.health.succeeded();
                    }
                    if again && keeps {
                        tried.push(endpoint.id);
                        if live.choose(&self.asking(request.headers()), &tried, now).is_some()
                            && self.may_retry(policy, RetryOn::Status(status), false)
                        {
                            continue;
                        }
                    }
                    if let Some(own) = lease.own() {
                        own.recycle(std::mem::take(request.headers_mut()));
                    }
                    return Ok(Answered { response, lease, busy, set_cookie: choice.set_cookie });
                }
                Some(Err(Unanswered { error, is_unsent })) => {
                    // Whoever breaks off an upload must not take a backend from all others.
                    if let Some(breach) = upload.breach() {
                        return Err(Failure::Client(breach));
                    }
                    let stale = lease.is_reused;
                    if !is_unsent && !(keeps && (stale || self.may_retry(policy, RetryOn::InvalidAnswer, false))) {
                        endpoint.health.failed(policy.ejection, now);
                        return Err(Failure::Send(error));
                    }
                    if stale {
                        // It was closed while it was idle, which says nothing about the backend.
                        fresh = true;
                    } else {
                        endpoint.health.failed(policy.ejection, now);
                        tried.push(endpoint.id);
                        failure = Failure::Send(error);
                    }
                }
                None if upload.is_awaited() => return Err(Failure::Client(Breach::Stalled)),
                None => {
                    endpoint.health.failed(policy.ejection, now);
                    tried.push(endpoint.id);
                    failure = Failure::TimedOut;
                    if !keeps || !self.may_retry(policy, RetryOn::Timeout, false) {
                        return Err(failure);
                    }
                }
            }
        }
    }

    /// Waits for an answer's head, as long as the route says after the last of the request's body.
    async fn in_time<T>(&self, answering: impl Future<Output = T>, upload: &Upload) -> Option<T> {
        let mut answering = pin!(answering);
        loop {
            let before = upload.received.get();
            match timeout(self.times.server, answering.as_mut()).await {
                Ok(answer) => return Some(answer),
                Err(_) if upload.received.get() != before => {}
                Err(_) => return None,
            }
        }
    }

    fn asking<'h>(&self, headers: &'h HeaderMap) -> Asking<'h> {
        Asking { client: self.client.address.ip(), headers, tls: self.client.tls.is_some(), tls_session: None }
    }

    /// A request more for a backend, as soon as it may have one.
    async fn room(&self, endpoint: &Arc<Endpoint>, policy: &Policy) -> Option<Busy> {
        let most = policy.limits.connections;
        if let Some(busy) = endpoint.begin(most) {
            return Some(busy);
        }
        let deadline = Instant::now() + self.times.queue;
        while Instant::now() < deadline {
            Box::pin(tokio::time::sleep(Duration::from_millis(5))).await;
            if let Some(busy) = endpoint.begin(most) {
                return Some(busy);
            }
        }
        None
    }

    /// Whether the route lets this be tried again. One that reached nobody may unless the route says never.
    fn may_retry(&mut self, policy: &Policy, after: RetryOn, always: bool) -> bool {
        let allowed = policy.retries.attempts.is_none_or(|attempts| self.retries < u32::from(attempts));
        let retry = allowed && (always || policy.retries.on.contains(&after));
        if retry {
            self.retries += 1;
        }
        retry
    }

    /// Both sides speak something else from now on: bytes are copied.
    fn switch(
        &mut self,
        mut answered: Answered,
        on_upgrade: Option<hyper::upgrade::OnUpgrade>,
        parts: &Parts,
        mut account: Account,
    ) -> Response<AnswerBody> {
        let protocol = answered.response.headers().get(header::UPGRADE).cloned();
        let (Some(on_upgrade), Some(protocol)) = (on_upgrade, protocol) else {
            // It was not asked to.
            return self.finish(own(StatusCode::BAD_GATEWAY), "not-asked-to-upgrade", parts, account);
        };
        let upstream = hyper::upgrade::on(&mut answered.response);
        response::take_hop_by_hop(answered.response.headers_mut());
        self.filter_answer(&mut answered.response, parts, Some(answered.busy.endpoint()));
        let mut answer = Response::new(AnswerBody::own(""));
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *answer.headers_mut() = std::mem::take(answered.response.headers_mut());
        answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        answer.headers_mut().insert(header::UPGRADE, protocol);
        self.conclude(&mut account, StatusCode::SWITCHING_PROTOCOLS, None);
        account.busy = Some(answered.busy);
        let (idle, worker) = (self.times.tunnel, Rc::clone(self.worker));
        let open = worker.connections.add();
        tokio::task::spawn_local(async move {
            if let (Ok(client), Ok(backend)) = (on_upgrade.await, upstream.await) {
                let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
                let copied = tunnel(&mut client, &mut backend, Some(idle), worker.patience_is_over()).await;
                account.upload.received.set(copied.to_backend);
                account.sent = copied.to_client;
            }
            drop((account, open));
        });
        answer
    }
}

/// RFC 9110, 9.2.2.
fn is_idempotent(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::PUT, Method::DELETE, Method::TRACE].contains(method)
}
