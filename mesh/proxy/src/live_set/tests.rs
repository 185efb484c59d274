use std::{collections::BTreeMap, time::Duration};

use http::header::{COOKIE, SET_COOKIE};
use proptest::{collection::vec, prelude::*};
use swarmesh_model::{NetworkId, TaskId};
use swarmesh_router::model::{BackendMode, BackendProtocol, BackendSet, Ejection, Member, Tasks};

use super::*;

const COOKIE_NAME: &str = "shop";

fn task(id: u64, name: &str) -> Arc<Endpoint> {
    let address = format!("10.0.{}.{}", id / 256, id % 256).parse().unwrap();
    endpoint(id, Upstream::Task { task: TaskId::from(name), address, port: 80 })
}

fn endpoint(id: u64, upstream: Upstream) -> Arc<Endpoint> {
    Arc::new(Endpoint::new(id, upstream, BackendProtocol::Http1, None, None))
}

/// Tasks `t0`, `t1` and so on, whose ids begin at `first`.
fn tasks(first: u64, weights: &[u16]) -> Vec<WeightedEndpoint> {
    (first..)
        .zip(weights)
        .map(|(id, weight)| WeightedEndpoint { endpoint: task(id, &format!("t{}", id - first)), weight: *weight })
        .collect()
}

fn asks<T>(client: &str, cookies: &[&str], tls: bool, act: impl FnOnce(&Asking<'_>) -> T) -> T {
    let headers = cookies.iter().map(|line| (COOKIE, HeaderValue::from_str(line).unwrap())).collect();
    act(&Asking { client: client.parse().unwrap(), headers: &headers, tls, tls_session: None })
}

fn by(set: &LiveSet, client: &str, cookies: &[&str]) -> u64 {
    asks(client, cookies, false, |asking| set.choose(asking, &[], Instant::now()).unwrap().endpoint.id)
}

fn id(set: &LiveSet) -> u64 {
    by(set, "192.0.2.1", &[])
}

fn shares(set: &LiveSet, requests: u64) -> BTreeMap<u64, u64> {
    let mut shares = BTreeMap::new();
    for _ in 0..requests {
        *shares.entry(id(set)).or_default() += 1;
    }
    shares
}

fn put_out(endpoint: &Endpoint) {
    let ejection = Ejection { failures: 1, time: Duration::from_secs(60) };
    assert!(endpoint.health.failed(Some(ejection), Instant::now()));
}

/// Two services as a swarm has them: four tasks of one, one of the other, and a VIP for each.
struct Shop;

impl Tasks for Shop {
    fn vip(&self, service: &str, _: Option<&NetworkId>) -> Option<IpAddr> {
        Some(if service == "stable" { [10, 0, 9, 1] } else { [10, 0, 9, 2] }.into())
    }

    fn usable(&self, owner: &str, _: Option<&NetworkId>) -> Vec<(TaskId, IpAddr)> {
        let count = if owner == "stable" { 4 } else { 1 };
        (1..=count).map(|n| (TaskId::from(format!("{owner}{n}")), [10, 0, 0, n].into())).collect()
    }

    fn network(&self, _: &str, asked: Option<&NetworkId>) -> Option<NetworkId> {
        asked.cloned()
    }

    fn published(&self, _: &str) -> Option<IpAddr> {
        None
    }
}

/// What part of a thousand requests each service gets.
fn canary(mode: BackendMode) -> (u64, u64) {
    let members = ["stable", "canary"].map(|id| Member::service(id, None, 8080, mode)).to_vec();
    let upstreams = BackendSet { members, ..BackendSet::default() }.upstreams(&Shop);
    let is_canary: Vec<bool> = upstreams
        .iter()
        .map(|u| match &u.upstream {
            Upstream::Task { task, .. } => task.as_str() == "canary1",
            Upstream::Vip { service, .. } => service == "canary",
            other => panic!("{other:?}"),
        })
        .collect();
    let endpoints = (0..).zip(upstreams).map(|(id, u)| WeightedEndpoint { endpoint: endpoint(id, u.upstream), weight: u.weight }).collect();
    let shares = shares(&LiveSet::new(Balance::RoundRobin, None, endpoints), 1000);
    let of = |canary| shares.iter().filter(|(id, _)| is_canary[**id as usize] == canary).map(|(_, n)| n).sum();
    (of(false), of(true))
}

#[test]
fn one_task_beside_four_is_a_fifth_and_one_service_beside_another_the_half() {
    assert_eq!(canary(BackendMode::Task), (800, 200));
    assert_eq!(canary(BackendMode::Vip), (500, 500));
}

#[test]
fn weights_are_exact_and_mixed() {
    let set = LiveSet::new(Balance::RoundRobin, None, tasks(0, &[300, 100, 0, 200]));
    let cycle: Vec<u64> = (0..6).map(|_| id(&set)).collect();
    assert_eq!([0, 1, 2, 3].map(|it| cycle.iter().filter(|id| **id == it).count()), [3, 1, 0, 2], "{cycle:?}");
    assert_eq!(cycle, (0..6).map(|_| id(&set)).collect::<Vec<_>>());
    assert!(!cycle.windows(3).any(|w| w == [0, 0, 0]), "{cycle:?}");
}

#[test]
fn turns_are_shared_by_threads_and_outlive_endpoints() {
    let set = LiveSet::new(Balance::RoundRobin, None, tasks(0, &[1, 1, 1]));
    let total = std::sync::Mutex::new(BTreeMap::<u64, u64>::new());
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mine = shares(&set, 1000);
                let mut total = total.lock().unwrap();
                mine.into_iter().for_each(|(id, n)| *total.entry(id).or_default() += n);
            });
        }
    });
    assert_eq!(total.into_inner().unwrap(), BTreeMap::from([(0, 1000), (1, 1000), (2, 1000)]));
    // Updates in the midst of a cycle do not begin it anew.
    let mut seen = BTreeMap::<u64, u64>::new();
    for _ in 0..300 {
        set.update(tasks(0, &[1, 1, 1]));
        *seen.entry(id(&set)).or_default() += 1;
    }
    assert_eq!(seen, BTreeMap::from([(0, 100), (1, 100), (2, 100)]));
}

#[test]
fn who_is_out_or_tried_or_gone_is_passed_over() {
    for balance in [Balance::RoundRobin, Balance::LeastConnections, Balance::IpHash, Balance::SourceHash, Balance::Random] {
        let endpoints = tasks(0, &[1, 2, 1, 4]);
        let set = LiveSet::new(balance, None, endpoints.clone());
        let choose = |tried: &[u64]| {
            asks("192.0.2.1", &[], false, |asking| set.choose(asking, tried, Instant::now()).map(|choice| choice.endpoint.id))
        };
        put_out(&endpoints[3].endpoint);
        for _ in 0..50 {
            assert!(choose(&[]).is_some_and(|id| id != 3), "{balance:?}");
            assert_eq!(choose(&[0, 2]), Some(1), "{balance:?}");
            assert_eq!(choose(&[0, 1, 2]), Some(3), "{balance:?}: out, but nobody else is left");
            assert_eq!(choose(&[0, 1, 2, 3]), None, "{balance:?}");
        }
        let long_ago = Instant::now();
        endpoints[1].endpoint.retire(long_ago);
        for _ in 0..50 {
            assert!(choose(&[]).is_some_and(|id| id != 1), "{balance:?}");
        }
        assert_eq!(choose(&[0, 2, 3]), Some(1), "{balance:?}: the last of a route that has just gone");
        let later = |time| asks("192.0.2.1", &[], false, |asking| set.choose(asking, &[0, 2, 3], long_ago + time).is_some());
        assert!(later(Duration::from_millis(900)) && !later(Duration::from_millis(1100)), "{balance:?}");
        set.update(tasks(10, &[0, 0]));
        assert_eq!((choose(&[]), set.endpoints().len()), (None, 2), "{balance:?}");
        set.update(Vec::new());
        assert_eq!(choose(&[]), None, "{balance:?}");
    }
}

#[test]
fn the_turns_of_who_is_out_are_dealt_to_the_others() {
    let endpoints = tasks(0, &[1, 1, 1, 2]);
    let set = LiveSet::new(Balance::RoundRobin, None, endpoints.clone());
    put_out(&endpoints[3].endpoint);
    assert_eq!(shares(&set, 15), BTreeMap::from([(0, 5), (1, 5), (2, 5)]));
    endpoints[..3].iter().for_each(|e| put_out(&e.endpoint));
    assert_eq!(shares(&set, 15), BTreeMap::from([(0, 3), (1, 3), (2, 3), (3, 6)]), "all are out, so all are used");
}

#[test]
fn the_least_busy_for_its_weight_is_next() {
    let endpoints = tasks(0, &[1, 1, 2]);
    let set = LiveSet::new(Balance::LeastConnections, None, endpoints.clone());
    assert_eq!(shares(&set, 8), BTreeMap::from([(0, 2), (1, 2), (2, 4)]), "all are idle");
    let mut held = Vec::new();
    for _ in 0..40 {
        let chosen = id(&set);
        held.push(endpoints[chosen as usize].endpoint.begin(None).unwrap());
    }
    assert_eq!(endpoints.iter().map(|e| e.endpoint.load()).collect::<Vec<_>>(), [10, 10, 20]);
    held.retain(|busy| busy.endpoint().id != 1);
    assert_eq!(shares(&set, 5), BTreeMap::from([(1, 5)]), "until it is as busy as the others");
    held.clear();
    held.push(endpoints[0].endpoint.begin(None).unwrap());
    assert_eq!(shares(&set, 9), BTreeMap::from([(1, 3), (2, 6)]), "ties go by turn, as the weights are");
}

#[test]
fn hashes_look_at_what_they_should() {
    let weights = [1; 16];
    let ip = LiveSet::new(Balance::IpHash, None, tasks(0, &weights));
    let source = LiveSet::new(Balance::SourceHash, None, tasks(0, &weights));
    let all = |set: &LiveSet, clients: &[String]| clients.iter().map(|c| by(set, c, &[])).collect::<std::collections::BTreeSet<_>>().len();
    let one_net: Vec<String> = (0..200).map(|n| format!("198.51.100.{n}")).collect();
    let nets: Vec<String> = (0..200).map(|n| format!("198.51.{n}.7")).collect();
    let v6: Vec<String> = (0..200).map(|n| format!("2001:db8::{n:x}")).collect();
    assert_eq!((all(&ip, &one_net), all(&ip, &nets), all(&ip, &v6)), (1, 16, 16));
    assert_eq!((all(&source, &one_net), all(&source, &v6)), (16, 16));
    assert_eq!(by(&source, "::ffff:198.51.100.7", &[]), by(&source, "198.51.100.7", &[]));
    // Another node: other ids, other addresses, another order.
    let mut there = tasks(500, &weights);
    there.reverse();
    let there = LiveSet::new(Balance::SourceHash, None, there);
    for client in one_net.iter().chain(&v6) {
        assert_eq!(by(&source, client, &[]) + 500, by(&there, client, &[]));
    }
}

#[test]
fn random_shares_are_about_right_and_not_in_turn() {
    let endpoints = tasks(0, &[1, 3]);
    let set = LiveSet::new(Balance::Random, None, endpoints.clone());
    let ids: Vec<u64> = (0..4000).map(|_| id(&set)).collect();
    let ones = ids.iter().filter(|id| **id == 1).count();
    assert!((2900..3100).contains(&ones), "{ones}");
    assert!(ids.windows(2).any(|w| w == [0, 0]));
    put_out(&endpoints[0].endpoint);
    assert_eq!(shares(&set, 100), BTreeMap::from([(1, 100)]));
}

fn insert(endpoints: Vec<WeightedEndpoint>) -> LiveSet {
    LiveSet::new(Balance::RoundRobin, Some(Stickiness::InsertCookie(COOKIE_NAME.into())), endpoints)
}

/// The id that was chosen and the cookie that was set, as a client would show it.
fn first(set: &LiveSet, tls: bool) -> (u64, String) {
    let choice = asks("192.0.2.1", &["a=b"], tls, |asking| set.choose(asking, &[], Instant::now()).unwrap());
    let line = choice.set_cookie.unwrap().to_str().unwrap().to_owned();
    (choice.endpoint.id, line)
}

#[test]
fn an_inserted_cookie_leads_back_to_its_task() {
    let set = insert(tasks(0, &[1, 1, 1]));
    let (task, line) = first(&set, false);
    let (cookie, attributes) = line.split_once("; ").unwrap();
    assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Lax");
    assert_eq!((cookie.len(), cookie.contains(&format!("t{task}"))), ("shop=".len() + 16, false));
    assert!(first(&set, true).1.ends_with("; Path=/; HttpOnly; SameSite=Lax; Secure"));
    let again = |set: &LiveSet, tried: &[u64]| {
        asks("192.0.2.1", &["x=y; shop=0123456789abcdef", cookie], false, |asking| {
            let choice = set.choose(asking, tried, Instant::now()).unwrap();
            (choice.endpoint.id, choice.set_cookie.is_some())
        })
    };
    for _ in 0..5 {
        assert_eq!(again(&set, &[]), (task, false), "the client has it already");
    }
    // Somewhere else, after others came and went, at another address.
    let mut others = tasks(100, &[1, 1, 1, 1, 1]);
    others.reverse();
    assert_eq!(again(&insert(others), &[]), (task + 100, false));
    // On another port of the task.
    let port = endpoint(7, Upstream::Task { task: TaskId::from(format!("t{task}")), address: [10, 0, 0, 9].into(), port: 81 });
    let mut ports = tasks(200, &[1, 1, 1]);
    ports.retain(|e| e.endpoint.id != 200 + task);
    ports.push(WeightedEndpoint { endpoint: port, weight: 1 });
    assert_eq!(again(&insert(ports), &[]), (7, false));
    // It was tried, it is out, it is gone, it has no turns.
    let other = again(&set, &[task]);
    assert!(other.0 != task && other.1);
    put_out(&set.endpoints()[task as usize].endpoint);
    assert!(again(&set, &[]).0 != task && again(&set, &[]).1);
    assert_eq!(again(&set, &[0, 1, 2].into_iter().filter(|id| *id != task).collect::<Vec<_>>()), (task, false), "nobody else is left");
    set.endpoints()[task as usize].endpoint.retire(Instant::now());
    assert!(again(&set, &[]).0 != task);
    let mut without = tasks(0, &[1, 1, 1]);
    without[task as usize].weight = 0;
    set.update(without);
    assert!(again(&set, &[]).0 != task && again(&set, &[]).1);
}

#[test]
fn foreign_values_of_an_inserted_cookie_mean_nothing() {
    let set = insert(tasks(0, &[1, 1]));
    let (_, line) = first(&set, false);
    let cookie = line.split(';').next().unwrap();
    for foreign in
        [cookie.to_uppercase().replace("SHOP", "shop"), format!("{cookie}0"), cookie[..20].into(), "shop=".into(), "shop=x".into()]
    {
        let cookies: Vec<bool> = (0..2)
            .map(|_| asks("192.0.2.1", &[&foreign], false, |asking| set.choose(asking, &[], Instant::now()).unwrap().set_cookie.is_some()))
            .collect();
        assert_eq!(cookies, [true, true], "{foreign}");
    }
    let unnamed = LiveSet::new(Balance::RoundRobin, Some(Stickiness::InsertCookie("a\nb".into())), tasks(0, &[1]));
    let choice = asks("192.0.2.1", &[], false, |asking| unnamed.choose(asking, &[], Instant::now()).unwrap());
    assert!(choice.set_cookie.is_none());
}

#[test]
fn a_hashed_cookie_chooses_and_no_cookie_is_balanced() {
    let sticky = Some(Stickiness::HashCookie(COOKIE_NAME.into()));
    let set = LiveSet::new(Balance::RoundRobin, sticky.clone(), tasks(0, &[1, 1, 1, 1]));
    assert_eq!(shares(&set, 8), BTreeMap::from([(0, 2), (1, 2), (2, 2), (3, 2)]));
    let there = LiveSet::new(Balance::RoundRobin, sticky, tasks(40, &[1, 1, 1, 1]));
    let mut seen = std::collections::BTreeSet::new();
    for n in 0..100 {
        let cookie = format!("shop={n}");
        let chosen = by(&set, "192.0.2.1", &[&cookie]);
        assert_eq!(chosen, by(&set, "192.0.2.2", &["x=y", &cookie]));
        assert_eq!(chosen + 40, by(&there, "192.0.2.1", &[&cookie]));
        seen.insert(chosen);
    }
    assert_eq!(seen.len(), 4);
}

#[test]
fn a_learned_cookie_leads_to_who_set_it() {
    let endpoints = tasks(0, &[1, 1, 1, 1]);
    let set = LiveSet::new(Balance::RoundRobin, Some(Stickiness::LearnCookie(COOKIE_NAME.into())), endpoints.clone());
    let cookies = ["shop=s3cret; Path=/", "other=1"].map(|line| (SET_COOKIE, HeaderValue::from_static(line)));
    set.answered(&endpoints[2].endpoint, &cookies.into_iter().collect());
    let back = |set: &LiveSet, cookie: &str| (0..4).map(|_| by(set, "192.0.2.1", &[cookie])).collect::<Vec<_>>();
    assert_eq!(back(&set, "shop=s3cret"), [2, 2, 2, 2]);
    for unknown in ["shop=other", "other=1", "shop="] {
        let mut ids = back(&set, unknown);
        ids.sort_unstable();
        assert_eq!(ids, [0, 1, 2, 3], "{unknown}");
    }
    // The same endpoints are there after an update, so what was learned is still right.
    set.update([&endpoints[3], &endpoints[2]].map(Clone::clone).to_vec());
    assert_eq!(back(&set, "shop=s3cret"), [2, 2, 2, 2]);
    set.update(vec![endpoints[3].clone()]);
    assert_eq!(back(&set, "shop=s3cret"), [3, 3, 3, 3]);
    assert!(!format!("{set:?}").contains("s3cret"));
}

#[test]
fn what_is_asked_for_stays_learned_and_the_rest_is_bounded() {
    let learned = Learned::new(3200);
    learned.learn(b"mine", 7);
    for n in 0..20_000_u32 {
        learned.learn(&n.to_be_bytes(), 8);
        assert_eq!(learned.who(b"mine"), Some(7), "{n}");
    }
    let kept = learned.shards.iter().map(|s| s.lock().unwrap()).map(|g| g.young.len() + g.old.len()).sum::<usize>();
    assert!((1600..=3200).contains(&kept), "{kept}");
    assert_eq!(learned.who(&0_u32.to_be_bytes()), None);
    assert_eq!(learned.who(&19_999_u32.to_be_bytes()), Some(8));
    learned.learn(b"mine", 9);
    assert_eq!(learned.who(b"mine"), Some(9), "the last one who set it");
}

#[test]
fn a_tls_session_stays_and_no_session_is_balanced() {
    let set = LiveSet::new(Balance::RoundRobin, Some(Stickiness::TlsSession), tasks(0, &[1, 1, 1, 1]));
    let headers = HeaderMap::new();
    let session = |tls_session: Option<&[u8]>| {
        let asking = Asking { client: [192, 0, 2, 1].into(), headers: &headers, tls: false, tls_session };
        set.choose(&asking, &[], Instant::now()).unwrap().endpoint.id
    };
    let of = |n: u8| session(Some(&[n; 32]));
    assert_eq!((0..50).map(of).collect::<std::collections::BTreeSet<_>>().len(), 4);
    assert!((0..50).all(|n| of(n) == of(n)));
    for none in [None, Some(&[][..])] {
        let mut ids = [0; 4].map(|_| session(none));
        ids.sort_unstable();
        assert_eq!(ids, [0, 1, 2, 3]);
    }
}

proptest! {
    #[test]
    fn shares_are_exact_over_a_cycle_and_never_far_from_it(weights in vec(0..=60_u16, 1..12), skip in 0..200_u64) {
        let set = LiveSet::new(Balance::RoundRobin, None, tasks(0, &weights));
        let common = weights.iter().map(|w| u64::from(*w)).fold(0, gcd).max(1);
        let length: u64 = weights.iter().map(|w| u64::from(*w) / common).sum();
        prop_assume!(length > 0);
        (0..skip).for_each(|_| { id(&set); });
        let mut got = vec![0_u64; weights.len()];
        for turn in 1..=length {
            got[id(&set) as usize] += 1;
            for (got, weight) in got.iter().zip(&weights) {
                let due = turn as f64 * (f64::from(*weight) / common as f64) / length as f64;
                prop_assert!((*got as f64 - due).abs() < 5.0, "{got} instead of {due} after {turn} of {length}");
            }
        }
        prop_assert_eq!(got, weights.iter().map(|w| u64::from(*w) / common).collect::<Vec<_>>());
    }

    /// With some out, the others get what they should over all cycles of cycles.
    #[test]
    fn shares_stay_exact_among_those_left(weights in vec(1..=6_u16, 2..6), out in any::<prop::sample::Index>()) {
        let endpoints = tasks(0, &weights);
        let out = out.index(weights.len());
        put_out(&endpoints[out].endpoint);
        let common = weights.iter().map(|w| u64::from(*w)).fold(0, gcd);
        let reduced: Vec<u64> = weights.iter().map(|w| u64::from(*w) / common).collect();
        let length: u64 = reduced.iter().sum();
        let left = length - reduced[out];
        let set = LiveSet::new(Balance::RoundRobin, None, endpoints);
        let shares = shares(&set, length * left);
        for (id, weight) in (0..).zip(&reduced) {
            let due = if id == out as u64 { None } else { Some(weight * length) };
            prop_assert_eq!(shares.get(&id).copied(), due);
        }
    }

    /// Who comes takes only for himself, and only who goes is replaced, whatever the weights.
    #[test]
    fn hashes_move_only_what_must_move(weights in vec(1..=9_u16, 2..10), who in any::<prop::sample::Index>(), clients in vec(any::<u32>(), 60)) {
        let who = who.index(weights.len());
        let set = LiveSet::new(Balance::SourceHash, None, tasks(0, &weights));
        let chosen = |set: &LiveSet| clients.iter().map(|c| by(set, &std::net::Ipv4Addr::from(*c).to_string(), &[])).collect::<Vec<_>>();
        let with = chosen(&set);
        let mut left = tasks(0, &weights);
        left.remove(who);
        set.update(left);
        for (with, without) in with.iter().zip(chosen(&set)) {
            if *with == who as u64 {
                prop_assert_ne!(without, who as u64);
            } else {
                prop_assert_eq!(*with, without);
            }
        }
        // More weight takes from others, too, and gives nothing away.
        let mut heavier = weights.clone();
        heavier[who] += 5;
        set.update(tasks(0, &heavier));
        for (with, after) in with.iter().zip(chosen(&set)) {
            prop_assert!(*with == after || after == who as u64);
        }
    }
}

#[test]
fn hashes_share_out_as_the_weights_are() {
    for weights in [[1, 1, 1, 1], [1, 2, 3, 4]] {
        let set = LiveSet::new(Balance::SourceHash, None, tasks(0, &weights));
        let mut shares = [0_u32; 4];
        for n in 0..20_000_u32 {
            shares[by(&set, &std::net::Ipv4Addr::from(0x0a00_0000 + n).to_string(), &[]) as usize] += 1;
        }
        let sum = f64::from(weights.iter().sum::<u16>());
        for (share, weight) in shares.into_iter().zip(weights) {
            let due = 20_000.0 * f64::from(weight) / sum;
            assert!((f64::from(share) / due - 1.0).abs() < 0.06, "{shares:?} for {weights:?}");
        }
    }
}
