//! Files that are refused, each with the line and the words that its author gets.

use swarmesh_lab::stack::{self, StackError};

struct Broken {
    line: usize,
    place: &'static str,
    says: &'static str,
    text: &'static str,
}

/// Compared without the first newline, so that line 1 is the first one written.
const fn broken(line: usize, place: &'static str, says: &'static str, text: &'static str) -> Broken {
    Broken { line, place, says, text }
}

fn load(text: &[u8]) -> Result<stack::Stack, StackError> {
    stack::load(text, "stack.yml", "shop", &|name| (name == "SET").then(|| "value".to_owned()))
}

#[test]
fn broken_stacks_are_refused_at_their_line() {
    let mut wrong = Vec::new();
    for case in CASES {
        let text = case.text.strip_prefix('\n').unwrap_or(case.text);
        match load(text.as_bytes()) {
            Ok(_) => wrong.push(format!("accepted:\n{text}")),
            Err(error) => {
                let shown = error.to_string();
                let head = format!("stack.yml:{}:{}:", error.line, error.column);
                let fits = error.line == case.line && error.place == case.place && error.message.contains(case.says);
                if !fits || !shown.starts_with(&head) || shown.contains('\n') {
                    wrong.push(format!("{shown}, not {} {} {}:\n{text}", case.line, case.place, case.says));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

const CASES: &[Broken] = &[
    // The text as such.
    broken(1, "", "the file is empty", ""),
    broken(1, "", "the file is empty", "\n# only a comment\n"),
    broken(1, "", "the file is empty", "~"),
    broken(1, "", "should be a mapping, and is a list", "\n- services\n"),
    broken(1, "", "there are no services", "version: \"3.1\"\n"),
    broken(2, "services", "there are no services", "\nversion: \"3.1\"\nservices: {}\n"),
    broken(3, "", "a tab", "\nservices:\n  web:\n\t  image: nginx\n"),
    broken(1, "", "not YAML", "\nservices: [\n"),
    broken(3, "services.web", "first on line 2", "\nservices:\n  web: {image: a}\n  web: {image: b}\n"),
    broken(4, "services.web.image", "first on line 3", "\nservices:\n  web:\n    image: a\n    image: b\n"),
    broken(3, "", "second document", "\nservices:\n  web: {image: a}\n---\nservices: {}\n"),
    broken(2, "services", "should be a mapping, and is a list", "\nservices:\n  - image: a\n"),
    broken(2, "services.web", "no image", "\nservices:\n  web:\n"),
    broken(2, "services.web", "no image", "\nservices:\n  web: {hostname: a}\n"),
    broken(2, "services.web", "should be a mapping, and is a single value", "\nservices:\n  web: nginx\n"),
    broken(3, "services.web.image", "single value, and is a list", "\nservices:\n  web:\n    image: [a]\n"),
    broken(1, "version", "version 2.4 is not read here", "\nversion: \"2.4\"\nservices: {web: {image: a}}\n"),
    // Keys.
    broken(1, "servces", "did you mean services?", "\nservces:\n  web: {image: a}\n"),
    broken(4, "services.web.prots", "did you mean ports?", "\nservices:\n  web:\n    image: a\n    prots: [80]\n"),
    broken(
        5,
        "services.web.deploy.replicass",
        "did you mean replicas?",
        "\nservices:\n  web:\n    image: a\n    deploy:\n      replicass: 2\n",
    ),
    broken(3, "services.web.zebra", "there is no key \"zebra\" here", "\nservices:\n  web:\n    zebra: 1\n"),
    broken(5, "networks.a.subnet", "there is no key", "\nservices:\n  web: {image: a}\nnetworks:\n  a:\n    subnet: 10.0.0.0/8\n"),
    // Names.
    broken(2, "services.\"we.b\"", "not a service's name", "\nservices:\n  we.b: {image: a}\n"),
    broken(2, "services.-web", "not a service's name", "\nservices:\n  -web: {image: a}\n"),
    broken(
        2,
        "services.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "at most 63",
        "\nservices:\n  aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa: {image: a}\n",
    ),
    broken(4, "networks.a b", "not a network's name", "\nservices:\n  web: {image: a}\nnetworks:\n  a b: {}\n"),
    broken(2, "services.web.hostname", "not a hostname", "\nservices:\n  web: {image: a, hostname: a b}\n"),
    // Networks.
    broken(3, "services.web.networks[0]", "back-end is not among", "\nservices:\n  web:\n    networks: [back-end]\n    image: a\n"),
    broken(
        4,
        "services.web.networks[0]",
        "did you mean back-end?",
        "\nservices:\n  web:\n    image: a\n    networks: [backend]\nnetworks: {back-end: }\n",
    ),
    broken(3, "services.web.networks[1]", "listed twice", "\nservices:\n  web:\n    networks: [a, a]\n    image: a\nnetworks: {a: }\n"),
    broken(
        9,
        "networks.b.ipam.config[0].subnet",
        "10.1.2.0/24 overlaps 10.1.0.0/16 of network a",
        "
services: {web: {image: a}}
networks:
  a:
    ipam:
      config: [{subnet: 10.1.0.0/16}]
  b:
    ipam:
      config:
        - subnet: 10.1.2.0/24
",
    ),
    broken(
        6,
        "networks.a.ipam.config[0].gateway",
        "gateway 10.2.0.1 is outside of 10.1.0.0/16",
        "\nservices: {web: {image: a}}\nnetworks:\n  a:\n    ipam:\n      config: [{subnet: 10.1.0.0/16,\n        gateway: 10.2.0.1}]\n",
    ),
    broken(
        3,
        "networks.a.ipam.config[0].subnet",
        "not a subnet",
        "\nservices: {web: {image: a}}\nnetworks:\n  a: {ipam: {config: [{subnet: 10.1.0.0}]}}\n",
    ),
    broken(
        3,
        "networks.a.ipam.config[0].subnet",
        "127.0.0.0/8 cannot be a network's subnet",
        "\nservices: {web: {image: a}}\nnetworks:\n  a: {ipam: {config: [{subnet: 127.0.0.0/8}]}}\n",
    ),
    broken(
        3,
        "networks.a.ipam.config[0].subnet",
        "224.0.1.0/24 cannot be a network's subnet",
        "\nservices: {web: {image: a}}\nnetworks:\n  a: {ipam: {config: [{subnet: 224.0.1.0/24}]}}\n",
    ),
    broken(
        3,
        "networks.a.ipam.config[0].subnet",
        "fe80::/64 cannot be a network's subnet",
        "\nservices: {web: {image: a}}\nnetworks:\n  a: {ipam: {config: [{subnet: \"fe80::/64\"}]}}\n",
    ),
    broken(3, "networks.a.driver", "need driver overlay", "\nservices: {web: {image: a}}\nnetworks:\n  a: {driver: bridge}\n"),
    broken(
        3,
        "networks.a.driver_opts.\"com.docker.network.driver.mtu\"",
        "not an MTU",
        "\nservices: {web: {image: a}}\nnetworks:\n  a: {driver_opts: {com.docker.network.driver.mtu: big}}\n",
    ),
    broken(
        3,
        "networks.a.driver",
        "external network is made by someone else",
        "\nservices: {web: {image: a}}\nnetworks:\n  a: {external: true, driver: overlay}\n",
    ),
    broken(3, "networks.a.internal", "true or false", "\nservices: {web: {image: a}}\nnetworks:\n  a: {internal: maybe}\n"),
    broken(
        2,
        "services.web.networks.a.aliases[0]",
        "looked up",
        "\nservices:\n  web: {image: a, networks: {a: {aliases: [\"a b\"]}}}\nnetworks: {a: }\n",
    ),
    // Ports.
    broken(
        5,
        "services.web.ports[1]",
        "70000 is not a port",
        "\nservices:\n  web:\n    ports:\n      - 80\n      - 70000:80\n    image: a\n",
    ),
    broken(2, "services.web.ports[0]", "0 is not a port", "\nservices:\n  web: {image: a, ports: [\"8080:0\"]}\n"),
    broken(2, "services.web.ports[0].target", "0 is not a port", "\nservices:\n  web: {image: a, ports: [{target: 0}]}\n"),
    broken(2, "services.web.ports[0]", "needs a target", "\nservices:\n  web: {image: a, ports: [{published: 80}]}\n"),
    broken(
        2,
        "services.web.ports[0].published",
        "65536 is not a port",
        "\nservices:\n  web: {image: a, ports: [{target: 80, published: 65536}]}\n",
    ),
    broken(2, "services.web.ports[0]", "not a port", "\nservices:\n  web: {image: a, ports: [\"http\"]}\n"),
    broken(2, "services.web.ports[0]", "use tcp, udp or sctp", "\nservices:\n  web: {image: a, ports: [\"80/http\"]}\n"),
    broken(
        2,
        "services.web.ports[0].protocol",
        "use tcp, udp or sctp",
        "\nservices:\n  web: {image: a, ports: [{target: 80, protocol: icmp}]}\n",
    ),
    broken(
        2,
        "services.web.ports[0].mode",
        "\"bridge\" should be ingress or host",
        "\nservices:\n  web: {image: a, ports: [{target: 80, mode: bridge}]}\n",
    ),
    broken(
        2,
        "services.web.ports[0]",
        "6 published ports cannot lead to 4",
        "\nservices:\n  web: {image: a, ports: [\"3000-3005:3000-3003\"]}\n",
    ),
    broken(2, "services.web.ports[0]", "runs backwards", "\nservices:\n  web: {image: a, ports: [\"3005-3000:3000-3005\"]}\n"),
    broken(2, "services.web.ports[0]", "bracket", "\nservices:\n  web: {image: a, ports: [\"[::1:8080:80\"]}\n"),
    broken(2, "services.web.ports[0]", "not an IPv6 address", "\nservices:\n  web: {image: a, ports: [\"[::g]:8080:80\"]}\n"),
    broken(2, "services.web.ports[0]", "stands in brackets", "\nservices:\n  web: {image: a, ports: [\"::1:8080:80\"]}\n"),
    broken(2, "services.web.ports[0]", "not an IP address", "\nservices:\n  web: {image: a, ports: [\"localhost:8080:80\"]}\n"),
    broken(2, "services.web.ports", "should be a list", "\nservices:\n  web: {image: a, ports: 80}\n"),
    broken(
        3,
        "services.b.ports[0]",
        "8080/tcp is published by service a already",
        "\nservices:\n  a: {image: a, ports: [\"8080:80\"]}\n  b: {image: a, ports: [\"8080:81\"]}\n",
    ),
    broken(
        3,
        "services.b.ports[0]",
        "published by service a",
        "\nservices:\n  a: {image: a, ports: [\"8080:80\"]}\n  b: {image: a, ports: [{target: 80, published: 8080, mode: host}]}\n",
    ),
    broken(2, "services.a.ports[1]", "published twice", "\nservices:\n  a: {image: a, ports: [\"8080:80\", \"8080:81\"]}\n"),
    broken(
        5,
        "services.web.ports[0]",
        "dnsrr",
        "\nservices:\n  web:\n    image: a\n    deploy: {endpoint_mode: dnsrr}\n    ports: [\"80:80\"]\n",
    ),
    // deploy
    broken(2, "services.web.deploy.replicas", "-1 is not a number of replicas", "\nservices:\n  web: {image: a, deploy: {replicas: -1}}\n"),
    broken(2, "services.web.deploy.replicas", "from 0 to 100000", "\nservices:\n  web: {image: a, deploy: {replicas: 100001}}\n"),
    broken(2, "services.web.deploy.replicas", "many is not", "\nservices:\n  web: {image: a, deploy: {replicas: many}}\n"),
    broken(
        2,
        "services.web.deploy.replicas",
        "replicas cannot be given",
        "\nservices:\n  web: {image: a, deploy: {mode: global, replicas: 3}}\n",
    ),
    broken(2, "services.web.deploy.mode", "replicated or global", "\nservices:\n  web: {image: a, deploy: {mode: swarm}}\n"),
    broken(2, "services.web.deploy.endpoint_mode", "vip or dnsrr", "\nservices:\n  web: {image: a, deploy: {endpoint_mode: lvs}}\n"),
    broken(
        2,
        "services.web.deploy.update_config.order",
        "stop-first or start-first",
        "\nservices:\n  web: {image: a, deploy: {update_config: {order: both}}}\n",
    ),
    broken(
        2,
        "services.web.deploy.update_config.delay",
        "not a duration",
        "\nservices:\n  web: {image: a, deploy: {update_config: {delay: 10}}}\n",
    ),
    broken(
        2,
        "services.web.deploy.rollback_config.failure_action",
        "pause or continue",
        "\nservices:\n  web: {image: a, deploy: {rollback_config: {failure_action: rollback}}}\n",
    ),
    broken(
        2,
        "services.web.deploy.placement.constraints[0]",
        "not a constraint",
        "\nservices:\n  web: {image: a, deploy: {placement: {constraints: [node.role = manager]}}}\n",
    ),
    broken(
        2,
        "services.web.deploy.placement.constraints[0]",
        "nothing to constrain by",
        "\nservices:\n  web: {image: a, deploy: {placement: {constraints: [node.colour == red]}}}\n",
    ),
    broken(
        2,
        "services.web.deploy.placement.constraints[0]",
        "manager or worker",
        "\nservices:\n  web: {image: a, deploy: {placement: {constraints: [node.role == boss]}}}\n",
    ),
    broken(2, "services.web.deploy.labels[0]", "name is missing", "\nservices:\n  web: {image: a, deploy: {labels: [\"=x\"]}}\n"),
    broken(
        2,
        "services.web.deploy.labels.a",
        "should be a single value, and is a list",
        "\nservices:\n  web: {image: a, deploy: {labels: {a: [b]}}}\n",
    ),
    // The rest of a service.
    broken(
        2,
        "services.web.stop_grace_period",
        "\"10 seconds\" is not a duration",
        "\nservices:\n  web: {image: a, stop_grace_period: 10 seconds}\n",
    ),
    broken(2, "services.web.stop_signal", "not a signal", "\nservices:\n  web: {image: a, stop_signal: SIGPLEASE}\n"),
    broken(2, "services.web.command", "quote has no end", "\nservices:\n  web: {image: a, command: \"sh -c 'echo\"}\n"),
    broken(
        2,
        "services.web.healthcheck.test",
        "begins with CMD",
        "\nservices:\n  web: {image: a, healthcheck: {test: [curl, localhost]}}\n",
    ),
    broken(
        2,
        "services.web.healthcheck.test",
        "switched off",
        "\nservices:\n  web: {image: a, healthcheck: {disable: true, test: \"true\"}}\n",
    ),
    broken(
        2,
        "services.web.healthcheck.retries",
        "not a number of retries",
        "\nservices:\n  web: {image: a, healthcheck: {retries: few}}\n",
    ),
    // Variables.
    broken(2, "services.web.image", "closing brace", "\nservices:\n  web: {image: \"a:${TAG\"}\n"),
    broken(2, "services.web.image", "write $$", "\nservices:\n  web: {image: \"a:$ \"}\n"),
    broken(2, "services.web.image", "TAG is not set: give one", "\nservices:\n  web: {image: \"a:${TAG:?give one}\"}\n"),
    broken(2, "services.web.deploy.replicas", "value is not a number", "\nservices:\n  web: {image: a, deploy: {replicas: \"$SET\"}}\n"),
    // Aliases.
    broken(3, "services.web.x-a.self", "lies within the value", "\nservices:\n  web:\n    x-a: &a {self: *a}\n    image: a\n"),
    broken(2, "", "anchor", "\nservices:\n  web: *gone\n"),
    broken(3, "services.web", "<< merges mappings", "\nservices:\n  web:\n    <<: [1]\n    image: a\n"),
];

#[test]
fn bytes_that_are_not_utf8_are_found() {
    let error = load(b"services:\n  web:\n    image: \"a\xff\"\n").unwrap_err();
    assert_eq!((error.line, error.column), (3, 14), "{error}");
    let error = load(b"\xff\xfes\0e\0r\0").unwrap_err();
    assert_eq!((error.line, error.column), (1, 1));
}

#[test]
fn bombs_do_not_go_off() {
    // Each line stands for ten times what the one above does.
    let mut bomb = String::from("x-0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]\n");
    for level in 1..12 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb.push_str(&format!("x-{level}: &a{level} [{aliases}]\n"));
    }
    let error = load(bomb.as_bytes()).unwrap_err();
    assert!(error.line > 5 && error.line <= 12 && error.message.contains("aliases written out"), "{error}");

    let mut merges = String::from("x-base: &base\n");
    for key in 0..2000 {
        merges.push_str(&format!("  k{key}: 1\n"));
    }
    for copy in 0..2000 {
        merges.push_str(&format!("x-{copy}: {{<<: *base}}\n"));
    }
    let error = load(merges.as_bytes()).unwrap_err();
    assert!(error.message.contains("values"), "{error}");

    let mut ladder = String::from("x-0: &a0 [x]\n");
    for level in 1..100_000 {
        ladder.push_str(&format!("x-{level}: &a{level} [*a{}]\n", level - 1));
    }
    assert!(load(ladder.as_bytes()).unwrap_err().message.contains("deep"));

    let nested = format!("services: {}", "[".repeat(5000));
    assert!(load(nested.as_bytes()).unwrap_err().message.contains("deep"));
    let nested: String = (0..5000).map(|depth| format!("{}a:\n", " ".repeat(depth.min(800)))).collect();
    load(nested.as_bytes()).unwrap_err();
}

#[test]
fn what_is_too_large_is_refused() {
    let label =
        |size: usize| format!("services:\n  web:\n    image: a\n    deploy:\n      labels:\n        big: \"{}\"\n", "x".repeat(size));
    let error = load(label(10 << 20).as_bytes()).unwrap_err();
    assert!(error.line == 6 && error.message.contains("at most 4194304 bytes are read"), "{error}");
    let error = load(label(70_000).as_bytes()).unwrap_err();
    assert_eq!((error.line, error.place.as_str()), (6, "services.web.deploy.labels.big"));
    assert!(error.message.contains("70003 bytes") && error.to_string().len() < 200, "{error}");
    load(label(65_000).as_bytes()).unwrap();
    let many: String =
        std::iter::once("x-many: [a".to_owned()).chain((0..600_000).map(|_| ",a".to_owned())).chain(["]\n".to_owned()]).collect();
    assert!(load(many.as_bytes()).unwrap_err().message.contains("more than 500000 values"));
}

#[test]
fn what_cannot_stand_in_a_resolv_conf_is_refused() {
    for (setting, place, says) in [
        ("dns: [192.0.2.1, ns.test]", "services.web.dns[1]", "not the address of a name server"),
        ("dns: 192.0.2.1 192.0.2.2", "services.web.dns", "not the address of a name server"),
        ("dns: {a: b}", "services.web.dns", "single value, and is a mapping"),
        ("dns_search: [\"a.test\\nnameserver 192.0.2.1\"]", "services.web.dns_search[0]", "not a domain"),
        ("dns_opt: \"ndots:2 rotate\"", "services.web.dns_opt", "not an option"),
        ("dns_opt: [\"\"]", "services.web.dns_opt[0]", "must not be empty"),
        ("hostname: a b", "services.web.hostname", "not a hostname"),
    ] {
        let error = load(format!("services:\n  web:\n    image: a\n    {setting}\n").as_bytes()).unwrap_err();
        assert_eq!((error.line, error.place.as_str()), (4, place), "{error}");
        assert!(error.message.contains(says), "{error}");
    }
}

#[test]
fn a_bad_stack_name_is_refused() {
    let error = stack::load(b"services: {web: {image: a}}", "stack.yml", "my shop", &|_| None).unwrap_err();
    assert_eq!(error.to_string(), "stack.yml: \"my shop\" is not a stack's name; use letters, digits, - and _");
}

/// No text at all makes the reader panic or hang.
#[test]
fn mangled_files_are_refused_or_read_but_never_crash() {
    let good = include_str!("stacks/hrm-https.yml");
    for position in (0..good.len()).step_by(3) {
        for change in [&b"\t"[..], b"\n", b": ", b"&a *a", b"[", b"\"", b"\xff", b"- "] {
            let mut text = good.as_bytes().to_vec();
            text.splice(position..position, change.iter().copied());
            let _ = load(&text);
            let _ = load(&text[..position]);
        }
    }
}
