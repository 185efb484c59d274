//! The program as scripts see it: exit codes, streams, precedence.
#![expect(clippy::unwrap_used, reason = "helpers of tests may stop at the first surprise, as tests may")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

const SNAPSHOT: &str = r#"{"version": 3,
"networks": [{"id": "ing", "name": "ingress", "ingress": true, "subnets": [{"subnet": "10.0.0.0/24"}]}],
"services": [{"id": "s", "name": "web", "ports": [{"target_port": 80, "published_port": 8000}]}],
"tasks": [{"id": "t", "service": "s", "name": "web.1.t", "node": "n1", "desired_state": "running", "state": "running",
 "addresses": [{"network": "ing", "address": "10.0.0.5"}]}],
"nodes": [{"id": "n1", "hostname": "node1"}, {"id": "n2", "hostname": "node2"}]}"#;

fn swarmesh(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_swarmesh"));
    // What the developer's own shell has set must not decide.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SWARMESH_")) {
        command.env_remove(name);
    }
    command.args(arguments);
    command
}

fn run(arguments: &[&str]) -> (i32, String, String) {
    outcome(swarmesh(arguments).output().unwrap())
}

fn outcome(output: Output) -> (i32, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn written(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn bad_usage_is_64_and_says_what_to_write() {
    for (arguments, expected) in [
        (&["nonsense"][..], "unrecognized subcommand"),
        (&["agent", "--source", "podman:x"], "use docker:URL"),
        (&["agent", "--plane", "xdp"], "use auto, ebpf, ipvs or nft"),
        (&["agent", "--plane", "ebpf"], "plane ebpf is not in this version"),
        (&["agent", "--source", "upstream"], "not available in this version"),
        (&["agent", "--config", "/nonexistent/s.toml"], "cannot read the configuration file /nonexistent/s.toml"),
        (&["status", "--admin", "nowhere"], "neither ADDRESS:PORT nor the path"),
        (&["explain", "ftp://web"], "use tcp://ADDRESS:PORT"),
        (&["explain", "http://web/?q=1"], "a query decides nothing"),
        (&["agent", "--http", "80"], "neither off nor ADDRESS:PORT"),
        (&["agent", "--http", "off", "--http", "0.0.0.0:80"], "or off alone"),
        (&["agent", "--http", "0.0.0.0:80", "--https", "0.0.0.0:80"], "give each address once"),
        (&["agent", "--dns", "maybe"], "neither on nor off"),
        (&["agent", "--dns-ttl", "soon"], "not a number of seconds"),
        (&["agent", "--dns-compat", "podman"], "neither swarmesh nor docker"),
        (&["plan", "--from", "/nonexistent.json"], "cannot read /nonexistent.json"),
        (&["plan", "--diff"], "--from"),
    ] {
        let (code, stdout, stderr) = run(arguments);
        assert_eq!((code, stdout.as_str()), (64, ""), "{arguments:?}: {stderr}");
        assert!(stderr.contains(expected), "{arguments:?}: {stderr}");
    }
}

#[test]
fn parts_that_do_not_exist_have_no_flags() {
    assert_eq!(run(&["agent", "--control", "off"]).0, 64);
}

#[test]
fn without_an_agent_it_is_69_and_names_the_address() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("none.sock").display().to_string();
    for command in ["status", "services", "endpoints", "names", "routes", "plan", "drain", "resume"] {
        let (code, stdout, stderr) = run(&[command, "--admin", &socket]);
        assert_eq!((code, stdout.as_str()), (69, ""), "{command}: {stderr}");
        assert!(stderr.contains(&format!("no agent answers at unix://{socket}")), "{command}: {stderr}");
    }
    assert_eq!(run(&["explain", "tcp://127.0.0.1:1", "--admin", &socket]).0, 69);
}

#[test]
fn flags_win_over_environment_over_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = written(directory.path(), "s.toml", "admin = \"/nonexistent/file.sock\"\n");
    let address = |environment: Option<&str>, flag: Option<&str>| {
        let mut command = swarmesh(&["status", "--config", &file]);
        command.envs(environment.map(|value| ("SWARMESH_ADMIN", value)));
        command.args(flag.iter().flat_map(|value| ["--admin", value]));
        outcome(command.output().unwrap()).2
    };
    assert!(address(None, None).contains("/nonexistent/file.sock"));
    assert!(address(Some("/nonexistent/env.sock"), None).contains("/nonexistent/env.sock"));
    assert!(address(Some("/nonexistent/env.sock"), Some("/nonexistent/flag.sock")).contains("/nonexistent/flag.sock"));

    let bad = written(directory.path(), "bad.toml", "\nadmim = \"x\"\n");
    let (code, _, stderr) = run(&["status", "--config", &bad]);
    assert_eq!(code, 64);
    assert!(stderr.contains("bad.toml:2: unknown field `admim`"), "{stderr}");
}

#[test]
fn a_file_is_planned_without_touching_anything() {
    let directory = tempfile::tempdir().unwrap();
    let file = written(directory.path(), "snapshot.json", SNAPSHOT);
    let (code, stdout, stderr) = run(&["plan", "--from", &file]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("node node1"), "{stdout}");
    assert!(stdout.lines().any(|l| l.split_whitespace().eq(["web", "8000->80/tcp", "10.0.0.5", "ready", "node1", "web.1.t"])), "{stdout}");

    let (code, stdout, _) = run(&["plan", "--from", &file, "--node", "node2", "--output", "json"]);
    assert_eq!(code, 0);
    let plan: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(plan["published"]["tcp/8000"]["backends"][0]["address"], "10.0.0.5");

    let (code, _, stderr) = run(&["plan", "--from", &file, "--node", "node9"]);
    assert_eq!(code, 64);
    assert!(stderr.contains("its nodes are node1, node2"), "{stderr}");

    let routed = SNAPSHOT.replace(
        r#""name": "web","#,
        r#""name": "web", "labels": {"swarmesh.http.a.host": "a.example", "swarmesh.http.a.status": "410",
            "swarmesh.http.b.host": "a.example", "swarmesh.http.b.status": "404", "swarmesh.http.c.host": "!"},"#,
    );
    let file = written(directory.path(), "routed.json", &routed);
    let (code, stdout, stderr) = run(&["plan", "--from", &file]);
    assert_eq!(code, 0, "{stderr}");
    let line = ["any", "a.example", "*", "status", "410", "-", "swarmesh", "service", "web", "swarmesh.http.a.host"];
    assert!(stdout.lines().any(|l| l.split_whitespace().eq(line)), "{stdout}");
    for problem in ["service web: swarmesh.http.b.host: ", "service web: swarmesh.http.c.host: "] {
        assert!(stdout.contains(problem), "{stdout}");
    }
    let (_, stdout, _) = run(&["plan", "--from", &file, "--output", "json"]);
    let plan: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(plan["problems"].as_array().map(Vec::len), Some(2), "{stdout}");
    assert_eq!(plan["routes"]["owners"]["service/s"]["routes"].as_array().map(Vec::len), Some(2));

    let broken = written(directory.path(), "broken.json", "{\"version\": 1,\n\"nodes\": [{}]}");
    let (code, _, stderr) = run(&["plan", "--from", &broken]);
    assert_eq!(code, 64);
    assert!(stderr.contains("broken.json: line 2"), "{stderr}");
}

#[test]
fn the_schema_is_printed_as_json() {
    let (code, stdout, _) = run(&["plan", "--schema"]);
    assert_eq!(code, 0);
    let schema: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(schema["title"], "Swarmesh snapshot");
}

#[test]
fn doctor_works_without_agent_and_docker_and_gives_remedies() {
    let directory = tempfile::tempdir().unwrap();
    let netns = directory.path().display().to_string();
    let (code, stdout, stderr) =
        run(&["doctor", "--source", "docker:unix:///nonexistent/docker.sock", "--netns-dir", &netns, "--output", "json"]);
    let findings: Vec<serde_json::Value> = serde_json::from_str(&stdout).unwrap();
    let critical = findings.iter().any(|f| f["level"] == "critical");
    assert_eq!(code, if critical { 77 } else { 0 }, "{stderr}");
    for finding in &findings {
        let harmless = finding["level"] == "ok" || finding["level"] == "info";
        assert_eq!(finding["remedy"] == "", harmless, "{finding}");
    }
    let level = |check: &str| findings.iter().find(|f| f["check"] == check).map(|f| f["level"].clone());
    assert_eq!(level("docker"), Some("warning".into()));
    assert_eq!(level("ingress sandbox"), Some("warning".into()));
    for check in ["privilege", "kernel", "nft", "iptables", "ip_forward", "ipvs", "firewalld", "own names"] {
        assert!(level(check).is_some(), "{check}");
    }
}
