//! The table finds what asking every route in order finds.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use proptest::{collection::vec, option, prelude::*, sample::select};
use swarmesh_router::{
    Effect, Reason, Request, Route, Table,
    model::{
        Action, BackendMode, BackendSet, CertificateRef, Dialect, Filter, HeaderMatch, HostMatch, ListClass, ListOrder, Listener, Match,
        Member, Origin, Owner, OwnerKind, PathKind, PathMatch, Pattern, Policy, Pool, Precedence, Share, TextMatch,
    },
    table::{Book, Condition, Verdict},
};

fn owner(id: &str) -> Owner {
    Owner { id: id.to_owned(), name: format!("svc-{id}"), kind: OwnerKind::Service }
}

fn route(id: &str, matching: Match) -> Route {
    Route {
        origin: Origin { owner: owner(id), dialect: Dialect::Swarmesh, label: "l".into(), part: 0 },
        listener: Listener::Any,
        matching,
        precedence: Precedence::Specific { priority: 0 },
        share: Share::Alone,
        filters: vec![],
        action: Action::Forward(BackendSet::of(Member::service(id, None, 80, BackendMode::Task))),
        certificate: None,
        policy: Policy::default(),
    }
}

fn host_name() -> impl Strategy<Value = String> {
    vec(select(vec!["a", "b", "ab", "ba"]), 1..4).prop_map(|labels| labels.join("."))
}

fn host_match() -> impl Strategy<Value = HostMatch> {
    prop_oneof![
        4 => host_name().prop_map(HostMatch::Exact),
        2 => host_name().prop_map(|h| HostMatch::Suffix(format!(".{h}"))),
        1 => host_name().prop_map(HostMatch::Suffix),
        1 => host_name().prop_map(HostMatch::SuffixOrWhole),
        2 => host_name().prop_map(HostMatch::Prefix),
        1 => host_name().prop_map(HostMatch::Labels),
    ]
}

fn path_text() -> impl Strategy<Value = String> {
    vec(select(vec!["", "x", "y", "X"]), 0..3).prop_map(|parts| format!("/{}", parts.join("/")))
}

fn path_match() -> impl Strategy<Value = PathMatch> {
    let kind = prop_oneof![
        path_text().prop_map(PathKind::Exact),
        path_text().prop_map(PathKind::Prefix),
        path_text().prop_map(PathKind::Segments),
        path_text().prop_map(PathKind::Suffix),
        select(vec!["x", "y/"]).prop_map(|t| PathKind::Contains(t.to_owned())),
        path_text().prop_map(PathKind::Directory),
        select(vec!["^/x", "y$", "^/[xy]/"]).prop_map(|t| PathKind::Regex(Pattern::new(t).unwrap())),
    ];
    (kind, prop::bool::weighted(0.2)).prop_map(|(kind, ignore_case)| PathMatch { kind, ignore_case })
}

fn precedence() -> impl Strategy<Value = Precedence> {
    prop_oneof![
        6 => (-1i32..2).prop_map(|priority| Precedence::Specific { priority }),
        1 => Just(Precedence::Rest),
        1 => Just(Precedence::Default),
        3 => (select(vec![ListClass::Redirect, ListClass::WellKnown, ListClass::Plain, ListClass::Root]), "[ab]", 0u16..3)
            .prop_map(|(class, name, index)| Precedence::Listed(ListOrder { class, name, index })),
    ]
}

prop_compose! {
    fn any_route()(
        id in "[a-c]",
        listener in select(vec![Listener::Http, Listener::Https, Listener::Any, Listener::Tls]),
        hosts in vec(host_match(), 0..3),
        paths in vec(path_match(), 0..3),
        not_paths in vec(path_match(), 0..2),
        header in option::weighted(0.2, any::<bool>()),
        methods in select(vec![vec![], vec!["GET".to_owned()], vec![]]),
        port in option::weighted(0.2, select(vec![80u16, 81])),
        precedence in precedence(),
    ) -> Route {
        let headers = header.map(|negate| HeaderMatch { name: "h".into(), values: vec![TextMatch::Exact("v".into())], negate });
        let mut route = route(&id, Match { hosts, paths, not_paths, headers: headers.into_iter().collect(), methods, port });
        route.listener = listener;
        route.precedence = precedence;
        route
    }
}

fn routes(most: usize) -> impl Strategy<Value = Vec<Route>> {
    vec(any_route(), 0..most).prop_map(|mut routes| {
        for (part, route) in (0..).zip(&mut routes) {
            route.origin.part = part;
        }
        routes
    })
}

/// By comparing texts, and nothing clever.
fn host_matches(hosts: &[HostMatch], host: &str) -> bool {
    hosts.is_empty()
        || !host.is_empty()
            && hosts.iter().any(|h| match h {
                HostMatch::Exact(text) => host == text,
                HostMatch::Suffix(text) => host.ends_with(text.as_str()) && host != text,
                HostMatch::SuffixOrWhole(text) => host.ends_with(text.as_str()),
                HostMatch::Prefix(text) => host.starts_with(text.as_str()),
                HostMatch::Labels(text) => format!(".{host}.").contains(&format!(".{text}.")),
            })
}

fn naive<'r>(routes: &'r [Route], request: &Request<'_>, host: &str) -> Option<&'r Route> {
    let mut matching: Vec<&Route> = routes
        .iter()
        .filter(|r| r.listener == Listener::Any || r.listener == if request.tls { Listener::Https } else { Listener::Http })
        .filter(|r| host_matches(&r.matching.hosts, host))
        .filter(|r| r.matching.paths.is_empty() || r.matching.paths.iter().any(|p| p.matches(request.path)))
        .filter(|r| !r.matching.not_paths.iter().any(|p| p.matches(request.path)))
        .filter(|r| r.matching.methods.is_empty() || r.matching.methods.iter().any(|m| m == request.method))
        .filter(|r| r.matching.headers.iter().all(|h| h.holds(request.headers)))
        .filter(|r| r.matching.port.is_none_or(|p| p == request.port))
        .collect();
    matching.sort_by(|a, b| a.cmp_precedence(b));
    matching.first().copied()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 160, ..ProptestConfig::default() })]

    #[test]
    fn the_table_finds_what_asking_each_route_finds(
        routes in routes(60),
        questions in vec((host_name(), path_text(), any::<bool>(), select(vec![80u16, 81]), select(vec!["GET", "PUT"]), option::of(select(vec!["v", "w"]))), 1..12),
    ) {
        let (table, _) = Table::new(routes.clone());
        for (host, path, tls, port, method, header) in questions {
            let headers: &[_; 1] = &[("H", header.unwrap_or("other"))];
            let sent = format!("{}:{port}", host.to_uppercase());
            let request = Request { tls, port, host: &sent, method, path: &path, headers };
            let expected = naive(&routes, &request, &host);
            let found = table.find(&request);
            prop_assert_eq!(found.map(|r| &**r), expected, "{:?}", request);
            let chosen = table.explain(&request).find(|(_, verdict)| *verdict == Verdict::Chosen).map(|(route, _)| route);
            prop_assert_eq!(chosen, found);

            let tls_expected = routes.iter()
                .filter(|r| r.listener == Listener::Tls && host_matches(&r.matching.hosts, &host))
                .filter(|r| r.matching.port.is_none_or(|p| p == port))
                .min_by(|a, b| a.cmp_precedence(b));
            prop_assert_eq!(table.find_tls(Some(&host), port).map(|r| &**r), tls_expected);
        }
    }

    #[test]
    fn the_order_in_which_routes_come_does_not_matter(routes in routes(30), rotate in 0usize..30) {
        let mut other = routes.clone();
        other.reverse();
        if !other.is_empty() {
            let by = rotate % other.len();
            other.rotate_left(by);
        }
        let (a, problems_a) = Table::new(routes);
        let (b, problems_b) = Table::new(other);
        prop_assert_eq!(a.routes(), b.routes());
        prop_assert_eq!(problems_a, problems_b);
    }
}

/// Routes that meet: few hosts and paths, pools, certificates and every door.
fn meeting_route() -> impl Strategy<Value = Route> {
    let pool = option::weighted(0.4, select(vec!["p", "q"]));
    let certificate = option::weighted(0.3, select(vec!["c", "d"]));
    let door = select(vec![Listener::Http, Listener::Https, Listener::Any, Listener::Any, Listener::Tls, Listener::Tcp]);
    let hosts = vec(select(vec!["a", "b", "*a", "a*", "*.a.*", "**b"]), 0..3);
    (any_route(), pool, certificate, door, hosts, 0u16..2).prop_map(|(mut route, pool, certificate, door, hosts, filters)| {
        route.share = pool.map_or(Share::Alone, |name| Share::Pool(Pool { dialect: Dialect::Interlock, name: name.to_owned() }));
        let secret = |name: &str| CertificateRef::Secrets { certificate: name.to_owned(), key: None };
        route.certificate = certificate.filter(|_| !matches!(door, Listener::Tls | Listener::Tcp)).map(secret);
        route.listener = door;
        route.filters = std::iter::repeat_n(Filter::InfoHeaders, usize::from(filters)).collect();
        let host = |text: &&str| match *text {
            "*a" => HostMatch::Suffix(".a".into()),
            "a*" => HostMatch::Prefix("a".into()),
            "*.a.*" => HostMatch::Labels("a".into()),
            "**b" => HostMatch::SuffixOrWhole("b".into()),
            exact => HostMatch::Exact(exact.to_owned()),
        };
        route.matching.hosts = hosts.iter().map(host).collect();
        route.matching.paths.truncate(1);
        route.matching.not_paths.clear();
        route.matching.headers.clear();
        route
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    /// Changes one after the other come to what building everything at once comes to, and copies from before stay as they were.
    #[test]
    fn a_book_that_is_changed_is_the_book_that_is_built(
        changes in vec(vec((0u8..6, vec(meeting_route(), 0..8)), 1..3), 1..10),
        questions in vec((select(vec!["a", "b", "x.a", "ab", "y.a.z", "c"]), path_text(), select(vec![80u16, 81])), 1..8),
    ) {
        let mut book: Book<u8> = Book::default();
        let mut all: std::collections::BTreeMap<u8, Vec<std::sync::Arc<Route>>> = Default::default();
        let (mut copies, mut part) = (Vec::new(), 0);
        for change in changes {
            let mut given = Vec::new();
            for (owner, mut routes) in change {
                for route in &mut routes {
                    // Some stay as they were: from one change to the next an owner often has the same route.
                    let same = all.get(&owner).and_then(|routes| routes.iter().find(|r| r.listener == route.listener));
                    if let Some(same) = same.filter(|_| !route.filters.is_empty()) {
                        *route = Route::clone(same);
                    } else {
                        part += 1;
                        route.origin.part = part;
                    }
                    // As services do, an owner has one id.
                    route.origin.owner = self::owner(["e", "b", "a", "f", "d", "c"][usize::from(owner)]);
                }
                routes.dedup_by(|a, b| a.origin == b.origin);
                let mut origins = std::collections::BTreeSet::new();
                routes.retain(|route| origins.insert(route.origin.clone()));
                let routes: Vec<_> = routes.into_iter().map(std::sync::Arc::new).collect();
                all.insert(owner, routes.clone());
                given.push((owner, routes));
            }
            let before: Vec<_> = (0..200).map(|position| book.table().at(position).cloned()).collect();
            let told = book.problems();
            let change = book.change(given);
            for (position, before) in before.iter().enumerate() {
                prop_assert_eq!(before.as_ref() != book.table().at(position), change.positions.contains(&position));
            }
            prop_assert!(change.problems || told == book.problems());
            copies.push((book.table().clone(), book.problems(), all.clone()));
        }
        for (table, problems, all) in copies {
            let (whole, expected) = Table::new(all.values().flatten().cloned());
            prop_assert_eq!(table.routes(), whole.routes());
            prop_assert_eq!(problems, expected);
            for (host, path, port) in &questions {
                for tls in [false, true] {
                    let request = Request { tls, port: *port, host, method: "GET", path, headers: &[] };
                    prop_assert_eq!(table.find(&request), whole.find(&request));
                }
                prop_assert_eq!(table.find_tls(Some(host), *port), whole.find_tls(Some(host), *port));
                prop_assert_eq!(table.find_tcp(*port), whole.find_tcp(*port));
                prop_assert_eq!(table.certificate(Some(host)), whole.certificate(Some(host)));
            }
        }
    }

    /// A host with many paths, whose list is turned over as it grows and shrinks.
    #[test]
    fn a_host_that_gets_and_loses_paths_is_the_host_that_is_built(steps in vec((0u8..40, any::<bool>(), path_match()), 1..80), asked in vec(path_text(), 1..6)) {
        let mut book: Book<u8> = Book::default();
        let mut all = std::collections::BTreeMap::new();
        for (owner, stays, path) in steps {
            let mut one = route(&format!("{owner:02}"), Match { hosts: vec![exact("a")], paths: vec![path], ..Match::default() });
            one.origin.part = owner.into();
            let routes: Vec<_> = std::iter::repeat_n(std::sync::Arc::new(one), usize::from(stays)).collect();
            book.change([(owner, routes.clone())]);
            all.insert(owner, routes);
            let (whole, problems) = Table::new(all.values().flatten().cloned());
            prop_assert_eq!(book.table().routes(), whole.routes());
            prop_assert_eq!(book.problems(), problems);
            let plain: Vec<Route> = whole.routes().iter().map(|route| Route::clone(route)).collect();
            for path in &asked {
                let request = Request { tls: false, port: 80, host: "a", method: "GET", path, headers: &[] };
                prop_assert_eq!(book.table().find(&request), whole.find(&request));
                prop_assert_eq!(book.table().find(&request).map(|r| &**r), naive(&plain, &request, "a"));
            }
        }
    }
}

fn get<'t>(table: &'t Table, host: &str, path: &str) -> Option<&'t str> {
    ask(table, &Request { tls: false, port: 80, host, method: "GET", path, headers: &[] })
}

fn ask<'t>(table: &'t Table, request: &Request<'_>) -> Option<&'t str> {
    table.find(request).map(|r| r.origin.owner.id.as_str())
}

fn at(host: HostMatch, path: PathKind) -> Match {
    Match { hosts: vec![host], paths: vec![PathMatch::new(path)], ..Match::default() }
}

fn exact(host: &str) -> HostMatch {
    HostMatch::Exact(host.to_owned())
}

#[test]
fn precise_hosts_come_before_precise_paths() {
    let prefix = |text: &str| PathKind::Prefix(text.to_owned());
    let (table, problems) = Table::new(vec![
        route("1", at(HostMatch::Prefix("a".into()), PathKind::Exact("/x/y".into()))),
        route("2", at(HostMatch::Suffix(".example".into()), prefix("/x/y"))),
        route("3", at(HostMatch::Suffix(".b.example".into()), prefix("/"))),
        route("4", at(exact("a.b.example"), prefix("/x"))),
        route("5", at(exact("a.b.example"), prefix("/x/y"))),
        route("6", at(exact("a.b.example"), PathKind::Exact("/x/y".into()))),
        route("7", at(exact("a.b.example"), PathKind::Regex(Pattern::new("^/x/y/z").unwrap()))),
        route("8", Match::default()),
        Route { precedence: Precedence::Default, ..route("9", Match { port: Some(80), ..Match::default() }) },
    ]);
    assert_eq!(problems, []);
    for (host, path, id) in [
        ("a.b.example", "/x/y", "6"),
        ("a.b.example", "/x/y/", "5"),
        ("a.b.example", "/x/y/z", "7"),
        ("a.b.example", "/x", "4"),
        ("a.b.example", "/", "3"),
        ("c.b.example", "/x/y", "3"),
        ("c.example", "/x/y", "2"),
        ("abc", "/x/y", "1"),
        ("abc", "/x", "8"),
        ("", "/", "8"),
    ] {
        assert_eq!(get(&table, host, path), Some(id), "{host}{path}");
    }
}

#[test]
fn the_rest_of_a_host_is_not_another_hosts() {
    let (table, problems) = Table::new(vec![
        route("1", at(exact("a.example"), PathKind::Prefix("/app".into()))),
        Route { precedence: Precedence::Rest, action: Action::Status(404), ..route("1", Match::host("a.example")) },
        Route { precedence: Precedence::Rest, action: Action::Status(404), ..route("2", Match::host("a.example")) },
        Route { precedence: Precedence::Default, ..route("3", Match::default()) },
    ]);
    assert_eq!(problems, []);
    assert_eq!(get(&table, "a.example", "/other"), Some("1"));
    assert_eq!(get(&table, "b.example", "/other"), Some("3"));
    assert_eq!(table.routes().len(), 3);
}

#[test]
fn a_claim_is_the_smaller_ids_and_the_other_is_told() {
    let path = |p: &str| at(exact("a.example"), PathKind::Prefix(p.to_owned()));
    let both = Match { hosts: vec![exact("a.example"), exact("b.example")], ..Match::default() };
    let (table, problems) = Table::new(vec![route("2", path("/")), route("1", Match::host("a.example")), route("3", both)]);
    assert_eq!(get(&table, "a.example", "/x"), Some("1"));
    assert_eq!(get(&table, "b.example", "/x"), Some("3"));
    let told: Vec<_> = problems.iter().map(|p| (p.owner.id.as_str(), p.effect, p.value.as_str())).collect();
    // The second asked for the same with other words; the third keeps its other host.
    assert_eq!(told, [("2", Effect::NoRoute, "a.example"), ("3", Effect::Shadowed, "a.example")]);
    assert!(problems.iter().all(|p| p.reason == Reason::Claimed { winner: owner("1"), label: "l".into() }));
    let shown = problems[0].to_string();
    assert!(
        shown.starts_with("service svc-2: l: \"a.example\" is claimed by service svc-1 already, by l; its route is left out"),
        "{shown}"
    );
}

#[test]
fn a_condition_more_is_another_claim() {
    let mut with_header = route("2", Match::host("a.example"));
    with_header.matching.headers.push(HeaderMatch { name: "x-version".into(), values: vec![TextMatch::Exact("2".into())], negate: false });
    let (table, problems) = Table::new(vec![route("1", Match::host("a.example")), with_header]);
    assert_eq!(problems, []);
    let request = |headers| Request { tls: true, port: 443, host: "a.example", method: "GET", path: "/", headers };
    assert_eq!(ask(&table, &request(&[("X-Version", "2")])), Some("2"));
    assert_eq!(ask(&table, &request(&[("X-Version", "3")])), Some("1"));
    let verdicts: Vec<_> = table.explain(&request(&[("X-Version", "3")])).map(|(_, v)| v).collect();
    assert_eq!(verdicts, [Verdict::Fails(Condition::Header), Verdict::Chosen]);
    let verdicts: Vec<_> = table.explain(&request(&[("X-Version", "2")])).map(|(_, v)| v).collect();
    assert_eq!(verdicts, [Verdict::Chosen, Verdict::After]);
}

#[test]
fn pools_come_together_and_the_first_says_how() {
    let pool = || Share::Pool(Pool { dialect: Dialect::Interlock, name: String::new() });
    let shared = |id: &str, listener, filters| Route { share: pool(), listener, filters, ..route(id, Match::host("a.example")) };
    let (table, problems) = Table::new(vec![
        shared("3", Listener::Any, vec![Filter::InfoHeaders]),
        shared("1", Listener::Http, vec![Filter::InfoHeaders]),
        shared("2", Listener::Http, vec![]),
        route("4", Match::host("a.example")),
    ]);
    let request = |tls| Request { tls, port: 80, host: "a.example", method: "GET", path: "/", headers: &[] };
    for (tls, first) in [(false, "1"), (true, "3")] {
        let found = table.find(&request(tls)).unwrap();
        assert_eq!(found.origin.owner.id, first);
        assert_eq!(found.backends().unwrap().members.len(), 3);
    }
    let told: Vec<_> = problems.iter().map(|p| (p.owner.id.as_str(), p.reason.clone(), p.effect)).collect();
    let options = || Reason::OptionsOfFirst { first: owner("1") };
    assert_eq!(
        told,
        [
            ("2", options(), Effect::Ignored),
            ("3", options(), Effect::Ignored),
            ("4", Reason::Claimed { winner: owner("1"), label: "l".into() }, Effect::NoRoute),
            ("4", Reason::Claimed { winner: owner("3"), label: "l".into() }, Effect::NoRoute),
        ]
    );
}

#[test]
fn tls_for_a_name_has_one_way() {
    let certificate = |name: &str| Some(CertificateRef::Secrets { certificate: name.to_owned(), key: None });
    let opened = |id: &str, name: &str| Route {
        certificate: certificate(name),
        ..route(id, at(exact("a.example"), PathKind::Prefix(format!("/{id}"))))
    };
    let passed = |id: &str| Route { listener: Listener::Tls, ..route(id, Match::host("a.example")) };

    let (table, problems) = Table::new(vec![opened("2", "b"), opened("1", "a"), passed("3")]);
    assert_eq!(table.certificate(Some("A.example")).map(CertificateRef::name), Some("a"));
    assert_eq!(table.certificate(Some("b.example")), None);
    assert!(table.find_tls(Some("a.example"), 443).is_none());
    let told: Vec<_> = problems.iter().map(|p| (p.owner.id.as_str(), p.effect)).collect();
    assert_eq!(told, [("2", Effect::Shadowed), ("3", Effect::NoRoute)]);

    let (table, problems) = Table::new(vec![opened("2", "b"), passed("1")]);
    assert_eq!(table.find_tls(Some("a.example"), 8443).map(|r| r.origin.owner.id.as_str()), Some("1"));
    // Nobody took its last host away and left it with all of them.
    assert!(table.find_tls(Some("b.example"), 443).is_none() && table.find_tls(None, 443).is_none());
    assert_eq!(table.certificate(Some("a.example")), None);
    assert_eq!(problems.len(), 1);
    // Its path without TLS is untouched.
    assert_eq!(get(&table, "a.example", "/2"), Some("2"));
}

#[test]
fn a_default_takes_tls_without_a_name() {
    let default = |listener| Route { precedence: Precedence::Default, listener, ..route("1", Match::default()) };
    let (table, _) = Table::new(vec![default(Listener::Tls), Route { listener: Listener::Tls, ..route("2", Match::host("a.example")) }]);
    assert_eq!(table.find_tls(None, 443).map(|r| r.origin.owner.id.as_str()), Some("1"));
    assert_eq!(table.find_tls(Some("a.example"), 443).map(|r| r.origin.owner.id.as_str()), Some("2"));
}

#[test]
fn a_tcp_port_is_one_services() {
    let tcp = |id: &str, port| Route { listener: Listener::Tcp, ..route(id, Match { port: Some(port), ..Match::default() }) };
    let (table, problems) = Table::new(vec![tcp("2", 1883), tcp("1", 1883), tcp("2", 5432)]);
    assert_eq!(table.find_tcp(1883).map(|r| r.origin.owner.id.as_str()), Some("1"));
    assert_eq!(table.find_tcp(5432).map(|r| r.origin.owner.id.as_str()), Some("2"));
    assert!(table.find_tcp(80).is_none());
    assert_eq!(problems.len(), 1);
}
