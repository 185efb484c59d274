//! Requests through the proxy: where they go, what backends see, and what becomes of them when backends fail.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use base64::Engine as _;
use common::{Reply, Seen, Stage, ok, with_status};
use swarmesh_proxy::{Config, auth::NodeUsers};
use swarmesh_router::model::{
    Action, BackendMode, BasicAuth, Ejection, Filter, ForwardHeaders, ForwardedProto, Match, Password, PathMatch, Redirect, RedirectCode,
    RedirectTarget, RetryOn, Stickiness, User,
};

fn who(seen: &Seen) -> Reply {
    ok(&format!("{} {}", seen.by, seen.line))
}

fn stage() -> Stage {
    Stage::new(Config::default())
}

#[test]
fn a_request_goes_where_its_route_says_and_others_are_told_503() {
    let stage = stage().service("web", 1, who).route(Match::host("a.example"), "web", |_| {});
    assert_eq!(stage.get("a.example", "/x?y=1").body, "web.0 GET /x?y=1 HTTP/1.1");
    assert_eq!(stage.get("A.Example.:80", "/").status, 200);
    assert_eq!(stage.get("b.example", "/").status, 503);
    let seen = stage.seen("web");
    assert_eq!(seen[0].header("host"), Some("a.example"));
    assert_eq!(seen[0].header("connection"), None);
}

#[test]
fn requests_of_many_clients_share_few_connections_to_a_backend() {
    let stage = stage().service("web", 1, who).route(Match::host("a"), "web", |_| {});
    for _ in 0..20 {
        assert_eq!(stage.get("a", "/").status, 200);
    }
    assert_eq!(stage.backends["web"][0].connections.load(Ordering::Relaxed), 1);
    // Several requests of one connection, sent at once.
    let mut client = stage.connect();
    client.send("GET /1 HTTP/1.1\r\nHost: a\r\n\r\n".repeat(3));
    for _ in 0..3 {
        assert_eq!(client.answer().unwrap().body, "web.0 GET /1 HTTP/1.1");
    }
}

/// What was opened in a namespace ends with it, and nobody says so.
#[test]
fn connections_are_used_again_only_while_the_network_is_reached_from_where_they_were_opened() {
    let mut stage = stage();
    stage.stand_in("first");
    let mut stage = stage.service("web", 1, who).route(Match::host("a"), "web", |_| {});
    let mut client = stage.connect();
    for (sandbox, connections) in [("first", 1), ("first", 1), ("second", 2), ("second", 2), ("first", 3)] {
        stage.stand_in(sandbox);
        for _ in 0..3 {
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(client.answer().unwrap().status, 200);
        }
        assert_eq!(stage.backends["web"][0].connections.load(Ordering::Relaxed), connections, "by {sandbox}");
    }
}

/// They are sent in two ways, but not on two kinds of connections.
#[test]
fn requests_with_and_without_bodies_share_a_connection() {
    let stage = stage().service("web", 1, who).route(Match::host("a"), "web", |_| {});
    let mut client = stage.connect();
    for _ in 0..3 {
        client.send("GET /1 HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.answer().unwrap().body, "web.0 GET /1 HTTP/1.1");
        client.send("POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc");
        assert_eq!(client.answer().unwrap().body, "web.0 POST /2 HTTP/1.1");
    }
    assert!(stage.seen("web").iter().all(|seen| seen.line.starts_with("GET") && seen.body.is_empty() || seen.body == b"abc"));
    assert_eq!(stage.backends["web"][0].connections.load(Ordering::Relaxed), 1);
}

/// Who balances a VIP sees connections, so that two requests on one would go to the same task.
#[test]
fn each_request_to_a_vip_has_a_connection_of_its_own() {
    let stage = stage().service("web", 1, who).route(Match::host("a"), "web", |route| {
        if let Action::Forward(backends) = &mut route.action {
            backends.members.iter_mut().for_each(|member| member.mode = BackendMode::Vip);
        }
    });
    let mut client = stage.connect();
    for _ in 0..5 {
        client.send("GET /1 HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.answer().unwrap().body, "web.0 GET /1 HTTP/1.1");
    }
    assert_eq!(stage.backends["web"][0].connections.load(Ordering::Relaxed), 5);
}

/// What the route's own list keeps to itself, the node's list needs too.
#[test]
fn a_user_of_the_route_and_of_the_node_gets_in() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "both:secret\nnode:secret\n").unwrap();
    let user = |name: &str| User { name: name.to_owned(), password: Some(Password::Plain("secret".into())) };
    let auth =
        BasicAuth { realm: "r".to_owned(), users: vec![user("both"), user("route")], secret: None, secret_hashed: false, consume: true };
    let stage = Stage::new(Config { users: Some(NodeUsers { path: file.path().to_owned(), hashed: false }), ..Config::default() })
        .service("web", 1, who)
        .route(Match::host("a"), "web", |route| route.filters = vec![Filter::BasicAuth(auth), Filter::GlobalAuth]);
    for (credentials, status) in [("both:secret", 200), ("route:secret", 401), ("node:secret", 401), ("both:wrong", 401)] {
        let mut client = stage.connect();
        let encoded = base64::engine::general_purpose::STANDARD.encode(credentials);
        client.send(format!("GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Basic {encoded}\r\n\r\n"));
        assert_eq!(client.answer().unwrap().status, status, "{credentials}");
    }
    assert!(stage.seen("web").iter().all(|seen| seen.header("authorization").is_none()), "the password went on to the backend");
}

/// Without the list that it is to have, a node is closed, not open; and it need not begin anew for another.
#[test]
fn the_nodes_users_are_those_of_its_file_as_it_is_now() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("users");
    let stage = Stage::new(Config { users: Some(NodeUsers { path: path.clone(), hashed: false }), ..Config::default() })
        .service("web", 1, who)
        .route(Match::host("a"), "web", |route| route.filters = vec![Filter::GlobalAuth]);
    let status = |credentials: &str| {
        let mut client = stage.connect();
        let encoded = base64::engine::general_purpose::STANDARD.encode(credentials);
        client.send(format!("GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Basic {encoded}\r\n\r\n"));
        client.answer().unwrap().status
    };
    let until = |credentials: &str, wanted: u16| {
        let patience = Instant::now() + Duration::from_secs(20);
        while status(credentials) != wanted {
            assert!(Instant::now() < patience, "{credentials} does not get {wanted}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    assert_eq!(stage.get("a", "/").status, 401);
    std::fs::write(&path, "one:x\n").unwrap();
    until("one:x", 200);
    std::fs::write(&path, "two:y\n").unwrap();
    until("two:y", 200);
    assert_eq!(status("one:x"), 401);
    std::fs::remove_file(&path).unwrap();
    until("two:y", 401);
    assert_eq!(stage.get("a", "/").status, 401);
}

#[test]
fn tasks_take_turns_and_those_that_refuse_are_passed_over() {
    let stage = stage().service("web", 3, who).dead_task("web").route(Match::host("a"), "web", |_| {});
    let mut count = BTreeMap::new();
    for _ in 0..30 {
        let answer = stage.get("a", "/");
        assert_eq!(answer.status, 200);
        *count.entry(answer.body).or_insert(0) += 1;
    }
    assert_eq!(count.len(), 3, "{count:?}");
    assert!(count.values().all(|n| (7..=15).contains(n)), "{count:?}");
}

#[test]
fn a_body_arrives_whole_whichever_way_it_is_framed() {
    let stage = stage().service("web", 1, |seen| ok(&format!("{}", seen.body.len()))).route(Match::host("a"), "web", |_| {});
    let body = "x".repeat(100_000);
    let length = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    assert_eq!(stage.ask(length).body, "100000");
    let chunked = format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n186a0\r\n{body}\r\n0\r\n\r\n");
    assert_eq!(stage.ask(chunked).body, "100000");
    let expecting = "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc";
    assert_eq!(stage.ask(expecting).body, "3");
    assert!(stage.seen("web").iter().all(|seen| seen.header("expect").is_none()));
}

#[test]
fn a_body_that_is_too_long_is_refused() {
    let limited = |route: &mut swarmesh_router::Route| route.policy.limits.body = Some(10);
    let stage = stage().service("web", 1, who).route(Match::host("a"), "web", limited);
    assert_eq!(stage.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n01234567890").status, 413);
    assert_eq!(stage.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n0123456789").status, 200);
    assert_eq!(stage.seen("web").len(), 1);
}

#[test]
fn a_backend_learns_who_asks_and_believes_only_us() {
    let forward = Filter::Forward(ForwardHeaders {
        forwarded_for: true,
        real_ip: true,
        proto: Some(ForwardedProto::Pass),
        port: true,
        request_id: true,
    });
    let request = "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\nX-Real-IP: 192.0.2.1\r\nForwarded: for=192.0.2.1\r\n\r\n";
    for trusted in [false, true] {
        let config = Config { trusted: if trusted { vec!["127.0.0.0/8".parse().unwrap()] } else { vec![] }, ..Config::default() };
        let filter = forward.clone();
        let stage = Stage::new(config).service("web", 1, who).route(Match::host("a"), "web", |route| route.filters.push(filter));
        stage.ask(request);
        let seen = stage.seen("web").remove(0);
        let expected = if trusted { "192.0.2.1, 127.0.0.1" } else { "127.0.0.1" };
        assert_eq!(seen.headers("x-forwarded-for"), [expected]);
        assert_eq!(seen.header("x-forwarded-proto"), Some(if trusted { "https" } else { "http" }));
        assert_eq!(seen.header("x-real-ip"), Some(if trusted { "192.0.2.1" } else { "127.0.0.1" }));
        assert_eq!(seen.header("forwarded"), trusted.then_some("for=192.0.2.1, for=127.0.0.1;proto=http"));
        assert_eq!(seen.header("x-forwarded-port"), Some(stage.address().port().to_string().as_str()));
        assert_eq!(seen.header("x-request-id").map(str::len), Some(32));
    }
}

#[test]
fn redirects_and_refusals_are_answered_here() {
    let redirect = |code, to| Action::Redirect(Redirect { code, to });
    let stage = stage()
        .service("web", 1, who)
        .route(Match::host("old"), "web", |r| {
            r.action = redirect(RedirectCode::MovedPermanently, RedirectTarget::Before("http://new".into()));
        })
        .route(Match::host("gone"), "web", |r| r.action = Action::Status(410))
        .route(Match::host("safe"), "web", |r| r.filters.push(Filter::HttpsOnly(RedirectCode::Permanent)))
        .route(Match::host("read"), "web", |r| r.filters.push(Filter::AllowMethods(vec!["GET".into()])));
    let answer = stage.get("old", "/x?y");
    assert_eq!((answer.status, answer.header("location")), (301, Some("http://new/x?y")));
    assert_eq!(stage.get("gone", "/").status, 410);
    let answer = stage.get("safe:8080", "/x");
    assert_eq!((answer.status, answer.header("location")), (308, Some("https://safe/x")));
    assert_eq!(stage.get("read", "/").status, 200);
    assert_eq!(stage.ask("DELETE / HTTP/1.1\r\nHost: read\r\n\r\n").status, 403);
    assert_eq!(stage.seen("web").len(), 1);
}

#[test]
fn a_websocket_is_a_tunnel_without_being_listed() {
    let upgrade = |_: &Seen| Reply::Echo(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n".to_vec());
    let stage = stage().service("web", 1, upgrade).route(Match::host("a"), "web", |_| {});
    let mut client = stage.connect();
    client.send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n");
    let answer = client.answer().unwrap();
    assert_eq!((answer.status, answer.header("upgrade")), (101, Some("websocket")));
    for word in ["hello", "again"] {
        client.send(word);
        assert_eq!(client.read_exactly(5).unwrap(), word.as_bytes());
    }
    let seen = stage.seen("web").remove(0);
    assert_eq!((seen.header("upgrade"), seen.header("sec-websocket-key")), (Some("websocket"), Some("x")));
    // A backend that was not asked to must not.
    assert_eq!(stage.get("a", "/").status, 502);
}

#[test]
fn what_fails_before_an_answer_is_tried_elsewhere_if_it_can_be() {
    // The second request of a connection finds it closed, as after a backend's own idle time.
    let stage =
        stage().service("web", 1, |seen| if seen.number > 1 { Reply::Close } else { who(seen) }).route(Match::host("a"), "web", |_| {});
    for _ in 0..5 {
        assert_eq!(stage.get("a", "/").status, 200);
    }
    // One that changes something is not sent twice: it may have been done.
    stage.get("a", "/");
    let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx";
    assert_eq!(stage.ask(post).status, 502);
    let posts = stage.seen("web").iter().filter(|seen| seen.line.starts_with("POST")).count();
    assert_eq!(posts, 1);
}

#[test]
fn retries_follow_the_route() {
    let broken = |seen: &Seen| if seen.by.ends_with('0') { with_status("503 Unavailable", "no") } else { who(seen) };
    let plain = stage().service("web", 2, broken).route(Match::host("a"), "web", |_| {});
    let statuses: Vec<u16> = (0..4).map(|_| plain.get("a", "/").status).collect();
    assert_eq!(statuses.iter().filter(|s| **s == 503).count(), 2, "{statuses:?}");
    let again =
        stage().service("web", 2, broken).route(Match::host("a"), "web", |route| route.policy.retries.on.push(RetryOn::Status(503)));
    for _ in 0..4 {
        assert_eq!(again.get("a", "/").status, 200);
    }
    // With nobody else to ask, the backend's own answer is the answer.
    let alone =
        stage().service("web", 1, broken).route(Match::host("a"), "web", |route| route.policy.retries.on.push(RetryOn::Status(503)));
    let answer = alone.get("a", "/");
    assert_eq!((answer.status, answer.body.as_str()), (503, "no"));
    let never =
        stage().service("web", 1, who).dead_task("web").route(Match::host("a"), "web", |route| route.policy.retries.attempts = Some(0));
    let statuses: Vec<u16> = (0..2).map(|_| never.get("a", "/").status).collect();
    assert!(statuses.contains(&502) && statuses.contains(&200), "{statuses:?}");
}

#[test]
fn a_backend_that_fails_is_left_out_for_a_while() {
    let broken = |seen: &Seen| if seen.by.ends_with('0') { Reply::Close } else { who(seen) };
    let stage = stage().service("web", 2, broken).route(Match::host("a"), "web", |route| {
        route.policy.ejection = Some(Ejection { failures: 1, time: Duration::from_secs(60) });
    });
    let statuses: Vec<u16> = (0..10).map(|_| stage.get("a", "/").status).collect();
    assert_eq!(statuses.iter().filter(|s| **s != 200).count(), 1, "{statuses:?}");
}

#[test]
fn silence_is_a_504_and_nobody_a_503() {
    let stage = stage()
        .service("slow", 1, |_| Reply::Silence(Duration::from_secs(5)))
        .route(Match::host("slow"), "slow", |route| route.policy.timeouts.server = Some(Duration::from_millis(200)))
        .route(Match::host("none"), "none", |_| {})
        .dead_task("dead");
    let stage = stage.route(Match::host("dead"), "dead", |_| {});
    assert_eq!(stage.get("slow", "/").status, 504);
    assert_eq!(stage.get("none", "/").status, 503);
    assert_eq!(stage.get("dead", "/").status, 502);
}

#[test]
fn a_client_comes_back_to_its_task_by_an_inserted_cookie() {
    let sticky = |route: &mut swarmesh_router::Route| {
        if let Action::Forward(set) = &mut route.action {
            set.stickiness = Some(Stickiness::InsertCookie("session".into()));
        }
    };
    let mut stage = stage().service("web", 3, who).route(Match::host("a"), "web", sticky);
    let first = stage.get("a", "/");
    let cookie = first.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: other=1; {cookie}\r\n\r\n");
    for _ in 0..6 {
        let again = stage.ask(&request);
        assert_eq!(again.body, first.body);
        assert_eq!(again.header("set-cookie"), None);
    }
    // Its task goes: another one, and another cookie.
    let gone = first.body.split(' ').next().unwrap().trim_start_matches("web.").parse::<usize>().unwrap();
    stage.services.0.get_mut("web").unwrap()[gone] = stage.services.0["web"][(gone + 1) % 3];
    let left = stage.services.0["web"].clone();
    stage.services.0.insert("web".into(), left);
    stage.apply();
    let after = stage.ask(&request);
    assert_eq!(after.status, 200);
}

#[test]
fn routes_change_under_open_connections() {
    let mut stage = stage().service("web", 1, who).service("new", 1, who).route(Match::host("a"), "web", |_| {});
    let mut client = stage.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(client.answer().unwrap().body.starts_with("web.0"));
    stage.routes.clear();
    let stage = stage.route(Match { paths: vec![PathMatch::prefix("/")], ..Match::host("a") }, "new", |_| {});
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(client.answer().unwrap().body.starts_with("new.0"));
    drop(stage);
}

/// A service that goes from its tasks to its VIP, or a host that goes to another service, has all of its backends replaced at once.
#[test]
fn requests_have_a_backend_while_all_of_a_routes_backends_are_replaced() {
    let stage = stage().service("web", 1, who).service("new", 1, who);
    let mut stage = stage.route(Match::host("a"), "web", |_| {});
    let mut client = stage.connect();
    let mut ask = || {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        client.answer().unwrap().body
    };
    assert!(ask().starts_with("web.0"));
    stage.routes.clear();
    let route = Arc::new(stage.make_route(Match::host("a"), "new"));
    let (routing, _) = stage.switchboard.route([route], &stage.services);
    // Made, and not served yet, as while certificates are read.
    assert!(ask().starts_with("web.0"));
    assert_eq!(stage.backends["web"][0].connections.load(Ordering::Relaxed), 1, "nor does it lose connections yet");
    stage.proxy.as_ref().unwrap().shared().set_routing(routing);
    assert!(ask().starts_with("new.0"));
}

#[test]
fn the_end_lets_requests_finish() {
    let slow = |seen: &Seen| {
        std::thread::sleep(Duration::from_millis(500));
        who(seen)
    };
    let mut stage = stage().service("web", 1, slow).route(Match::host("a"), "web", |_| {});
    let mut client = stage.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    std::thread::sleep(Duration::from_millis(100));
    let address = stage.address();
    let proxy = stage.proxy.take().unwrap();
    let ending = std::thread::spawn(move || proxy.stop());
    assert_eq!(client.answer().unwrap().status, 200);
    ending.join().unwrap();
    assert!(std::net::TcpStream::connect(address).is_err(), "still listening");
}

/// Longer than an idle connection keeps what serves requests.
const REST: Duration = Duration::from_millis(1500);

#[test]
fn a_client_that_rests_is_served_on_the_connection_that_it_has() {
    let echo = |seen: &Seen| ok(&format!("{} {}", seen.line, String::from_utf8_lossy(&seen.body)));
    let mut stage = stage().service("web", 1, echo).route(Match::host("a"), "web", |_| {});
    let mut client = stage.connect();
    let mut ask = |pieces: &[&str], wanted: &str| {
        for piece in pieces {
            std::thread::sleep(REST);
            client.send(piece);
        }
        assert_eq!(client.answer().unwrap().body, wanted);
    };
    ask(&["GET /1 HTTP/1.1\r\nHost: a\r\n\r\n"], "GET /1 HTTP/1.1 ");
    ask(&["POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbo", "dy"], "POST /2 HTTP/1.1 body");
    ask(&["POST /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n", "\r\n"], "POST /3 HTTP/1.1 body");
    // Begins as HTTP/2 does.
    ask(&["P", "R", "I /4 HTTP/1.1\r\n", "Host: a\r\n\r\n"], "PRI /4 HTTP/1.1 ");
    // The end is told to those who rest.
    std::thread::sleep(REST);
    let begun = std::time::Instant::now();
    stage.proxy.take().unwrap().stop();
    assert!(begun.elapsed() < Duration::from_secs(5), "waited for one who rests");
    assert!(client.answer().is_none());
}

/// What is still to come of a body is never taken for a request, however long it takes.
#[test]
fn the_rest_of_an_unread_body_is_no_request() {
    let stage = stage().service("web", 1, who).route(Match::host("a"), "web", |_| {}).route(Match::host("gone"), "web", |route| {
        route.action = Action::Status(410);
    });
    let hidden = "GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n";
    for framing in [format!("Content-Length: {}\r\n\r\n", hidden.len()), "Transfer-Encoding: chunked\r\n\r\n".to_owned()] {
        let mut client = stage.connect();
        client.send(format!("POST / HTTP/1.1\r\nHost: gone\r\n{framing}"));
        assert_eq!(client.answer().unwrap().status, 410);
        std::thread::sleep(REST);
        client.send(hidden);
        assert!(client.answer().is_none(), "{framing}");
    }
    assert!(stage.seen("web").is_empty());
}

#[test]
fn an_upload_may_take_longer_than_an_answer() {
    let patient = |route: &mut swarmesh_router::Route| route.policy.timeouts.server = Some(Duration::from_millis(300));
    let stage = stage().service("web", 1, |seen| ok(&format!("{}", seen.body.len()))).route(Match::host("a"), "web", patient);
    let mut client = stage.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n");
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(100));
        client.send("x");
    }
    assert_eq!(client.answer().unwrap().body, "10");
}

/// A backend that is passed over after one failure must not be a client's to take from the others.
#[test]
fn an_upload_that_breaks_is_no_failure_of_the_backend() {
    let count = |seen: &Seen| ok(&format!("{} {}", seen.by, seen.body.len()));
    let stage = stage().service("web", 2, count).route(Match::host("a"), "web", |route| {
        route.policy.ejection = Some(Ejection { failures: 1, time: Duration::from_secs(60) });
        route.policy.retries.on = vec![RetryOn::InvalidAnswer, RetryOn::Timeout];
        route.policy.timeouts.server = Some(Duration::from_millis(300));
        route.policy.limits.body = Some(100);
    });
    let head = |framing: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n");
    let chunked = head("Transfer-Encoding: chunked");
    for (upload, status) in [
        (format!("{chunked}5\r\nhello\r\nno chunk\r\n"), 400),
        (format!("{chunked}0\r\n{}\r\n", "X: y\r\n".repeat(5000)), 400),
        (format!("{chunked}5\r\nhello\r\n60\r\n{}", "x".repeat(0x60)), 413),
        (format!("{}hel", head("Content-Length: 5")), 408),
        (format!("{chunked}5\r\nhello\r\n"), 408),
    ] {
        for _ in 0..2 {
            let mut client = stage.connect();
            client.send(&upload);
            assert_eq!(client.answer().map(|answer| answer.status), Some(status), "{upload:.80?}");
        }
    }
    for _ in 0..2 {
        let mut gone = stage.connect();
        gone.send(format!("{}hel", head("Content-Length: 5")));
        drop(gone);
    }
    std::thread::sleep(Duration::from_millis(100));
    let seen: BTreeSet<String> = (0..4).map(|_| stage.get("a", "/").body).collect();
    assert_eq!(seen.len(), 2, "a backend is passed over: {seen:?}");
}

#[test]
fn answers_without_a_body_keep_their_length() {
    let head = |seen: &Seen| match seen.line.split(' ').nth(1) {
        Some("/304") => Reply::Bytes(b"HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n".to_vec()),
        Some("/204") => Reply::Bytes(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()),
        _ => Reply::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n".to_vec()),
    };
    let stage = stage().service("web", 1, head).route(Match::host("a"), "web", |_| {});
    let mut client = stage.connect();
    for _ in 0..2 {
        client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
        let answer = client.answer_to("HEAD").unwrap();
        assert_eq!((answer.status, answer.header("content-length")), (200, Some("1000")));
        for status in [204, 304] {
            client.send(format!("GET /{status} HTTP/1.1\r\nHost: a\r\n\r\n"));
            assert_eq!(client.answer().unwrap().status, status);
        }
    }
    assert_eq!(stage.backends["web"][0].connections.load(Ordering::Relaxed), 1);
}

#[test]
fn a_length_beside_chunks_does_not_go_on() {
    let both = |_: &Seen| {
        Reply::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_vec())
    };
    let stage = stage().service("web", 1, both).route(Match::host("a"), "web", |_| {});
    let mut client = stage.connect();
    for _ in 0..2 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let answer = client.answer().unwrap();
        assert_eq!((answer.body.as_str(), answer.header("content-length")), ("hello", None));
    }
}

#[test]
fn a_task_that_cannot_be_connected_to_is_left_out_when_checks_are_asked_for() {
    let stage = stage().service("web", 1, who).dead_task("web").route(Match::host("a"), "web", |route| {
        route.policy.check_connect = true;
        // Without this, a request that meets it goes on to the other one, and nobody sees a difference.
        route.policy.retries.attempts = Some(0);
    });
    let begun = std::time::Instant::now();
    let all_well = || (0..10).all(|_| stage.get("a", "/").status == 200);
    while !all_well() {
        assert!(begun.elapsed() < Duration::from_secs(15), "it still gets requests");
        std::thread::sleep(Duration::from_millis(200));
    }
}
