//! The access log: what is told of requests, and what is not.
#![expect(clippy::unwrap_used, reason = "helpers of tests may stop at the first surprise, as tests may")]

mod common;

use std::{
    fs,
    num::NonZeroU32,
    path::Path,
    time::{Duration, Instant},
};

use common::{Reply, Seen, Stage, ok, with_status};
use serde_json::Value;
use swarmesh_proxy::{
    Config,
    access_log::{AccessLog, Field, LogTarget},
};
use swarmesh_router::{
    Route,
    model::{Action, BasicAuth, Filter, Listener, Match, Password, User},
};

fn who(seen: &Seen) -> Reply {
    if seen.line.contains("/bad") { with_status("500 Internal Server Error", "bad") } else { ok(&seen.by) }
}

fn stage(file: &Path, sample: u32, fields: Vec<Field>) -> Stage {
    let log = AccessLog { to: LogTarget::File(file.to_owned()), sample: NonZeroU32::new(sample).unwrap(), fields };
    Stage::new(Config { access_log: Some(log), name: "n1".to_owned(), ..Config::default() }).service("web", 1, who)
}

/// Waits until there are so many lines, and reads them.
fn lines(file: &Path, count: usize) -> Vec<Value> {
    let begun = Instant::now();
    loop {
        let text = fs::read_to_string(file).unwrap_or_default();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        if lines.len() >= count || begun.elapsed() > Duration::from_secs(10) {
            assert_eq!(lines.len(), count, "{text}");
            return lines;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_request_is_a_line_without_its_secrets() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("access.log");
    let auth = BasicAuth {
        realm: "r".into(),
        users: vec![User { name: "joe".into(), password: Some(Password::Plain("hidden-1".into())) }],
        secret: None,
        secret_hashed: false,
        consume: true,
    };
    let stage = stage(&file, 1, Field::usual()).route(Match::host("a"), "web", |route| route.filters.push(Filter::BasicAuth(auth))).route(
        Match::host("gone"),
        "web",
        |route| route.action = Action::Status(410),
    );
    // joe:hidden-1
    let secrets = "Authorization: Basic am9lOmhpZGRlbi0x\r\nCookie: c=hidden-2\r\n";
    let body = "Content-Length: 3\r\n\r\nabc";
    assert_eq!(stage.ask(format!("POST /x?t=hidden-3 HTTP/1.1\r\nHost: a:81\r\n{secrets}{body}")).status, 200);
    assert_eq!(stage.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").status, 401);
    assert_eq!(stage.get("gone", "/").status, 410);
    assert_eq!(stage.get("nobody", "/").status, 503);
    assert_eq!(stage.ask("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").status, 400);
    let lines = lines(&file, 5);
    let first = &lines[0];
    for (field, value) in [
        ("node", "n1"),
        ("method", "POST"),
        ("host", "a:81"),
        ("path", "/x"),
        ("protocol", "HTTP/1.1"),
        ("user", "joe"),
        ("service", "web"),
        ("route", "test"),
        ("client", "127.0.0.1"),
    ] {
        assert_eq!(first[field], value, "{field} in {first}");
    }
    assert_eq!((&first["status"], &first["received"], &first["sent"]), (&200.into(), &3.into(), &5.into()));
    assert!(first["upstream"].as_str().unwrap().ends_with(&format!(":{}", stage.port)), "{first}");
    assert_eq!(first.get("reason"), None);
    let told: Vec<(u64, &str)> = lines[1..].iter().map(|l| (l["status"].as_u64().unwrap(), l["reason"].as_str().unwrap())).collect();
    assert_eq!(told, [(401, "unauthorized"), (410, "status"), (503, "no-route"), (400, "malformed")]);
    let text = fs::read_to_string(&file).unwrap();
    assert!(!text.contains("hidden") && !text.contains("am9l"), "{text}");
}

#[test]
fn one_of_so_many_is_logged_and_every_failure() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("access.log");
    let stage = stage(&file, 4, vec![Field::Path, Field::Status, Field::Retries, Field::Reason])
        .route(Match::host("a"), "web", |route| route.policy.retries.on.clear())
        .dead_task("dead")
        .route(Match::host("dead"), "dead", |_| {});
    for number in 0..8 {
        assert_eq!(stage.get("a", &format!("/{number}")).status, 200);
    }
    for _ in 0..2 {
        assert_eq!(stage.get("a", "/bad").status, 500);
    }
    assert_eq!(stage.get("dead", "/").status, 502);
    let lines: Vec<String> = lines(&file, 5).iter().map(Value::to_string).collect();
    assert_eq!(
        lines,
        [
            r#"{"path":"/0","retries":0,"status":200}"#,
            r#"{"path":"/4","retries":0,"status":200}"#,
            r#"{"path":"/bad","retries":0,"status":500}"#,
            r#"{"path":"/bad","retries":0,"status":500}"#,
            r#"{"path":"/","reason":"connect-failed","retries":0,"status":502}"#,
        ]
    );
}

#[test]
fn what_is_passed_on_is_told_when_it_ends_or_finds_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("access.log");
    // None is sampled but the first.
    let stage = stage(&file, 1000, Field::usual()).dead_task("dead");
    let port = stage.address().port();
    let passes = |route: &mut Route| {
        route.listener = Listener::Tcp;
        route.matching = Match { port: Some(port), ..Match::default() };
    };
    let mut stage = stage.route(Match::default(), "web", passes);
    let mut client = stage.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.answer().unwrap().body, "web.0");
    drop(client);
    let line = &lines(&file, 1)[0];
    assert_eq!((&line["protocol"], &line["service"], line.get("status")), (&"tcp".into(), &"web".into(), None));
    assert!(line["received"].as_u64() > Some(20) && line["sent"].as_u64() > Some(20) && line.get("upstream").is_some(), "{line}");

    stage.routes.clear();
    let mut stage = stage.route(Match::default(), "dead", passes);
    assert!(stage.connect().is_closed());
    let line = &lines(&file, 2)[1];
    assert_eq!((&line["reason"], &line["service"], &line["retries"]), (&"connect-failed".into(), &"dead".into(), &0.into()));
    stage.proxy.take().unwrap().stop();
}

#[test]
fn a_renamed_file_is_let_go_and_the_last_line_is_written_before_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let (file, old) = (directory.path().join("access.log"), directory.path().join("access.log.1"));
    let mut stage = stage(&file, 1, vec![Field::Path]).route(Match::host("a"), "web", |_| {});
    stage.get("a", "/1");
    lines(&file, 1);
    fs::rename(&file, &old).unwrap();
    // The writer looks once a second.
    std::thread::sleep(Duration::from_millis(1100));
    stage.get("a", "/2");
    assert_eq!(lines(&file, 1)[0]["path"], "/2");
    assert_eq!(lines(&old, 1)[0]["path"], "/1");
    fs::remove_file(&file).unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    stage.get("a", "/3");
    let counts = stage.proxy.as_ref().unwrap().shared().access_log.clone().unwrap();
    stage.proxy.take().unwrap().stop();
    assert_eq!(lines(&file, 1)[0]["path"], "/3");
    assert_eq!((counts.written(), counts.lost()), (3, 0));
}

#[test]
fn a_file_that_cannot_be_opened_is_told_at_the_start() {
    let log = AccessLog { to: LogTarget::File("/nonexistent/access.log".into()), sample: NonZeroU32::MIN, fields: Field::usual() };
    let config = Config { access_log: Some(log), http: vec![([127, 0, 0, 1], 0).into()], workers: 1, ..Config::default() };
    let error = swarmesh_proxy::Proxy::start(config, std::sync::Arc::new(swarmesh_proxy::endpoint::OwnNamespace)).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/access.log"), "{error}");
}
