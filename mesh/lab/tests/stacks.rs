//! Stack files that have to load, and what they come to.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::time::Duration;

use swarmesh_lab::{
    stack::{
        self, Constraint, ConstraintKey, DnsSpec, FailureAction, HealthTest, Mode, NetworkUse, RestartCondition, STACK_LABEL, Stack,
        StackService, UpdateOrder,
    },
    swarm,
};
use swarmesh_model::{ContainerDns, EndpointMode, Port, Protocol, PublishMode, Snapshot};

fn load(text: &str) -> Stack {
    let env = |name: &str| (name == "DOMAIN").then(|| "shop.example.com".to_owned());
    stack::load(text.as_bytes(), "stack.yml", "shop", &env).unwrap()
}

fn service<'a>(stack: &'a Stack, name: &str) -> &'a StackService {
    stack.services.iter().find(|s| s.name == name).unwrap()
}

fn network_use(network: &str, aliases: &[&str]) -> NetworkUse {
    NetworkUse { network: network.to_owned(), aliases: aliases.iter().map(|a| (*a).to_owned()).collect() }
}

#[test]
fn the_published_examples_load_as_they_are() {
    for (text, label, value) in [
        (include_str!("stacks/hrm-http.yml"), "com.docker.ucp.mesh.http.8080", "external_route=http://shop.example.com,internal_port=8080"),
        (
            include_str!("stacks/hrm-sticky.yml"),
            "com.docker.ucp.mesh.http.8080",
            "external_route=http://shop.example.com,internal_port=8080,sticky_sessions=SESSION",
        ),
        (include_str!("stacks/hrm-https.yml"), "com.docker.ucp.mesh.http.8443", "external_route=sni://shop.example.com,internal_port=8443"),
    ] {
        let stack = load(text);
        assert_eq!(stack.notes, []);
        let redis = service(&stack, "redis");
        assert_eq!((redis.spec.name.as_str(), redis.spec.hostname.as_deref()), ("shop_redis", Some("redis")));
        assert_eq!(redis.spec.networks, [network_use("shop_back-end", &["redis"])]);
        let app = service(&stack, "session-example");
        assert_eq!(app.spec.mode, Mode::Replicated { replicas: 5 });
        assert_eq!(app.spec.labels[label], value);
        assert_eq!(app.spec.labels[STACK_LABEL], "shop");
        let networks = [network_use("shop_back-end", &["session-example"]), network_use("ucp-hrm", &["session-example"])];
        assert_eq!(app.spec.networks, networks);
        assert_eq!((app.spec.ports.len(), app.spec.ports[0].published_port), (1, None));
        assert!(stack.networks.iter().any(|n| n.external && n.spec.name == "ucp-hrm"));

        let snapshot = swarm::snapshot_of(&stack, 3).unwrap();
        assert_eq!(Snapshot::from_json(&snapshot.to_json()), Ok(snapshot.clone()));
        assert_eq!(snapshot.tasks.len(), 6);
        assert!(snapshot.tasks.values().all(|t| t.is_usable()));
        let app = snapshot.services.values().find(|s| s.name == "shop_session-example").unwrap();
        assert_eq!((app.ports[0].published_port, app.vips.len()), (Some(30000), 3));
    }
}

#[test]
fn everything_at_once() {
    let stack = load(
        r#"
version: '3.8'
x-common: &common
  image: nginx:${TAG:-1.27}
  environment: &environment {A: 1, B: "two", C: true, DOMAIN: , GONE: }
  logging: {driver: json-file}
services:
  web:
    <<: *common
    command: sh -c 'exec nginx -g "daemon off;"'
    entrypoint: [/bin/tini, --]
    hostname: "{{.Node.Hostname}}-web"
    labels: [container=yes]
    networks:
      front: {aliases: [www, web], ipv4_address: 10.9.0.9}
      back:
    ports:
      - 9000
      - "8080:80"
      - "53:53/udp"
      - "3000-3002:4000-4002"
      - "7000-7001:7"
      - "127.0.0.1:8081:81"
      - "[::1]:8082:82"
      - {target: 443, published: "8443", protocol: tcp, mode: host, name: tls}
    healthcheck:
      test: [CMD, curl, -f, localhost]
      interval: 1m30s
      timeout: 500ms
      retries: 5
      start_period: 40s
    stop_grace_period: 1m
    stop_signal: quit
    deploy:
      mode: replicated
      replicas: 3
      labels: {a.b: 1, empty: , on: yes, dollar: "$$1"}
      update_config: {parallelism: 2, delay: 10s, order: start-first, failure_action: rollback, monitor: 3s, max_failure_ratio: 0.1}
      rollback_config: {parallelism: 0}
      restart_policy: {condition: on-failure, delay: 1s, max_attempts: 3, window: 120s}
      placement:
        constraints: [node.role != manager, "node.labels.disk==ssd", node.platform.os == linux]
        preferences: [{spread: node.labels.zone}]
        max_replicas_per_node: 2
      resources: {limits: {cpus: '0.5'}}
    depends_on: [db]
    restart: always
    volumes: [data:/data]
    secrets: [{source: s, mode: 0400}]
  db:
    image: "postgres:${MISSING}"
    environment: ["X=1=2", DOMAIN, NONE]
    healthcheck: {disable: true}
    deploy: {mode: global, endpoint_mode: dnsrr}
    network_mode: host
networks:
  front:
    driver: overlay
    driver_opts: {com.docker.network.driver.mtu: 9000}
    attachable: true
    enable_ipv6: true
    ipam: {driver: default, config: [{subnet: 10.9.0.0/24, gateway: 10.9.0.254}, {subnet: "fd00:9::/64"}]}
    labels: {n: 1}
  back: {internal: true, name: back-end}
  unused: {}
volumes: {data: {}}
secrets: {s: {external: true}}
configs: {}
"#,
    );
    let web = &service(&stack, "web").spec;
    assert_eq!(service(&stack, "web").line, 8);
    assert_eq!(web.image, "nginx:1.27");
    assert_eq!(web.command, ["sh", "-c", "exec nginx -g \"daemon off;\""]);
    assert_eq!(web.entrypoint.as_deref(), Some(&["/bin/tini".to_owned(), "--".to_owned()][..]));
    let environment: Vec<String> = web.environment.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(environment, ["A=1", "B=two", "C=true", "DOMAIN=shop.example.com"]);
    assert_eq!(web.networks, [network_use("shop_front", &["web", "www"]), network_use("back-end", &["web"])]);
    let port = |protocol, target_port, published_port| Port {
        name: None,
        protocol,
        target_port,
        published_port,
        publish_mode: PublishMode::Ingress,
    };
    let tls = Port { name: Some("tls".to_owned()), publish_mode: PublishMode::Host, ..port(Protocol::Tcp, 443, Some(8443)) };
    assert_eq!(
        web.ports,
        [
            port(Protocol::Tcp, 9000, None),
            port(Protocol::Tcp, 80, Some(8080)),
            port(Protocol::Udp, 53, Some(53)),
            port(Protocol::Tcp, 4000, Some(3000)),
            port(Protocol::Tcp, 4001, Some(3001)),
            port(Protocol::Tcp, 4002, Some(3002)),
            port(Protocol::Tcp, 7, Some(7000)),
            port(Protocol::Tcp, 7, Some(7001)),
            port(Protocol::Tcp, 81, Some(8081)),
            port(Protocol::Tcp, 82, Some(8082)),
            tls,
        ]
    );
    let health = web.healthcheck.as_ref().unwrap();
    assert_eq!(health.test, HealthTest::Command(["curl", "-f", "localhost"].map(str::to_owned).to_vec()));
    assert_eq!((health.interval, health.timeout), (Duration::from_secs(90), Duration::from_millis(500)));
    assert_eq!((health.retries, health.start_period), (5, Duration::from_secs(40)));
    assert_eq!((web.stop_grace, web.stop_signal.as_str()), (Duration::from_secs(60), "SIGQUIT"));
    assert_eq!(web.mode, Mode::Replicated { replicas: 3 });
    let labels: Vec<String> = web.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(labels, ["a.b=1", "com.docker.stack.namespace=shop", "dollar=$1", "empty=", "on=yes"]);
    assert_eq!(web.container_labels["container"], "yes");
    assert_eq!((web.update.parallelism, web.update.delay, web.update.order), (2, Duration::from_secs(10), UpdateOrder::StartFirst));
    assert_eq!((web.update.failure_action, web.update.monitor), (FailureAction::Rollback, Duration::from_secs(3)));
    assert_eq!(web.rollback.parallelism, 0);
    assert_eq!((web.restart.condition, web.restart.delay), (RestartCondition::OnFailure, Some(Duration::from_secs(1))));
    assert_eq!((web.restart.max_attempts, web.placement.max_replicas_per_node), (Some(3), Some(2)));
    let constraint = |key, equal, value: &str| Constraint { key, equal, value: value.to_owned() };
    let label = ConstraintKey::Label("disk".to_owned());
    assert_eq!(web.placement.constraints, [constraint(ConstraintKey::Role, false, "manager"), constraint(label, true, "ssd")]);

    let db = &service(&stack, "db").spec;
    assert_eq!((db.mode, db.endpoint_mode), (Mode::Global, EndpointMode::Dnsrr));
    assert_eq!(db.environment.get("X").map(String::as_str), Some("1=2"));
    assert_eq!((db.environment.get("NONE"), db.environment.contains_key("DOMAIN")), (None, true));
    assert_eq!(db.healthcheck.as_ref().map(|h| &h.test), Some(&HealthTest::None));
    assert_eq!(db.networks, [network_use("shop_default", &["db"])]);

    let names: Vec<&str> = stack.networks.iter().map(|n| n.spec.name.as_str()).collect();
    assert_eq!(names, ["shop_front", "back-end", "shop_default"]);
    let front = &stack.networks[0].spec;
    assert_eq!((front.mtu, front.attachable, front.enable_ipv6, front.subnets.len()), (Some(8950), true, true, 2));
    assert_eq!(front.subnets[0].gateway.map(|g| g.to_string()).as_deref(), Some("10.9.0.254"));
    assert!(stack.networks[1].spec.internal);

    let notes: Vec<String> = stack.notes.iter().map(|n| format!("{} {}: {}", n.line, n.place, &n.message[..20])).collect();
    assert_eq!(
        notes,
        [
            "15 services.web.networks.front.ipv4_address: a service's tasks sh",
            "23 services.web.ports[5]: the address 127.0.0.",
            "24 services.web.ports[6]: the address ::1 is l",
            "42 services.web.deploy.placement.constraints[2]: the constraint on no",
            "51 services.db.image: the variable MISSING",
            "55 services.db.network_mode: network_mode does no",
            "65 networks.unused: no service is on thi",
        ]
    );
}

#[test]
fn host_ports_may_be_shared_and_yaml_corners_work() {
    let stack = load(
        "\u{feff}%YAML 1.2\n---\n\"services\":\n  a: {image: 'a', ports: [{target: 80, published: 80, mode: host}]}\n  ? b\n  : {image: !!str b, \
         ports: [{target: 80, published: 80, mode: host}], command: [], networks: []}\n...\n",
    );
    assert_eq!(stack.services.len(), 2);
    assert_eq!(stack.networks.len(), 1);
    let mut folded =
        load("services:\n  a:\n    image: a\n    command: >\n      one\n      two\n    labels:\n      text: |\n        x\n        y\n");
    let folded = folded.services.remove(0).spec;
    assert_eq!((folded.command, folded.container_labels["text"].as_str()), (vec!["one".to_owned(), "two".to_owned()], "x\ny\n"));
}

#[test]
fn dns_is_read_and_lands_in_the_tasks() {
    let stack = load(
        "services:\n  one: {image: a, dns: 192.0.2.53, dns_search: a.test, hostname: uno}\n  two:\n    image: a\n    \
         dns: [192.0.2.53, \"2001:db8::53\"]\n    dns_search: [a.test, .]\n    dns_opt: [timeout:1, \"ndots:2\"]\n  none: {image: a, dns: , dns_search: []}\n",
    );
    let dns = |name: &str| service(&stack, name).spec.dns.clone();
    let addresses = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect::<Vec<_>>();
    let texts = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
    assert_eq!(dns("one"), DnsSpec { servers: addresses(&["192.0.2.53"]), search: texts(&["a.test"]), options: vec![] });
    let two = DnsSpec {
        servers: addresses(&["192.0.2.53", "2001:db8::53"]),
        search: texts(&["a.test", "."]),
        options: texts(&["timeout:1", "ndots:2"]),
    };
    assert_eq!((dns("two"), dns("none")), (two.clone(), DnsSpec::default()));
    let notes: Vec<&str> = stack.notes.iter().map(|n| n.place.as_str()).collect();
    assert_eq!(notes, ["services.two.dns_opt"], "docker stack deploy refuses it");

    let snapshot = swarm::snapshot_of(&stack, 1).unwrap();
    assert_eq!(Snapshot::from_json(&snapshot.to_json()), Ok(snapshot.clone()));
    let task = |name: &str| snapshot.tasks.values().find(|t| t.name.starts_with(name)).unwrap();
    assert_eq!(task("shop_one").hostname.as_deref(), Some("uno"));
    assert_eq!(task("shop_one").dns, Some(Box::new(ContainerDns { servers: addresses(&["192.0.2.53"]), ..ContainerDns::default() })));
    assert_eq!(task("shop_two").dns, Some(Box::new(ContainerDns { servers: two.servers, ndots: true, disabled: false })));
    assert_eq!(task("shop_none").dns, Some(Box::default()));
}

#[test]
fn crlf_lines_count_once() {
    let error = stack::load(b"services:\r\n  web:\r\n    image: a\r\n    prots: []\r\n", "s.yml", "shop", &|_| None).unwrap_err();
    assert_eq!((error.line, error.column), (4, 5));
}

#[test]
fn merged_values_keep_their_own_line() {
    let text = "x-base: &base\n  stop_signal: NOPE\nservices:\n  web: {<<: *base, image: a}\n";
    let error = stack::load(text.as_bytes(), "s.yml", "shop", &|_| None).unwrap_err();
    assert_eq!((error.line, error.place.as_str()), (2, "services.web.stop_signal"));
}
