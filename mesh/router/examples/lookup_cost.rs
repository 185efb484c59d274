//! What a lookup, a compilation and a change cost: `cargo run --release -p swarmesh-router --example lookup_cost`.
//!
//! With a number of hosts, of lookups and of changes it does these and nothing else, for `valgrind --tool=callgrind`: what two runs
//! differ by is what the lookups or changes between them cost.
//!
//! Asks tables of 1, 100, 10,000 and 100,000 hosts for their own hosts in a fixed, scattered order, in rounds that take turns
//! between the tables, and prints the median of the rounds. Time is this thread's CPU time, so that neighbours count little.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "prints what it measured")]

use std::{env, fs, hint::black_box, ops::Range, sync::Arc};

use swarmesh_router::{
    Request, Route, Table,
    model::{
        Action, BackendMode, BackendSet, Dialect, HostMatch, Listener, Match, Member, Origin, Owner, OwnerKind, PathMatch, Policy,
        Precedence, Share,
    },
    table::Book,
};

const ROUNDS: usize = 15;
const LOOKUPS: usize = 1_000_000;
const CHANGES: usize = 10_000;

fn route(number: usize) -> Route {
    let id = format!("{number:08}");
    // One in ten is a wildcard, and each tenth host has a path besides.
    let host = if number % 10 == 9 { HostMatch::Suffix(format!(".w{number}.example")) } else { HostMatch::Exact(host(number)) };
    let paths = if number % 10 == 8 { vec![PathMatch::prefix("/app")] } else { Vec::new() };
    Route {
        origin: Origin {
            owner: Owner { id: id.clone(), name: id.clone(), kind: OwnerKind::Service },
            dialect: Dialect::Swarmesh,
            label: String::new(),
            part: 0,
        },
        listener: Listener::Any,
        matching: Match { hosts: vec![host], paths, ..Match::default() },
        precedence: Precedence::Specific { priority: 0 },
        share: Share::Alone,
        filters: Vec::new(),
        action: Action::Forward(BackendSet::of(Member::service(id, None, 80, BackendMode::Task))),
        certificate: None,
        policy: Policy::default(),
    }
}

fn host(number: usize) -> String {
    if number % 10 == 9 { format!("www.w{number}.example") } else { format!("shop-{number}.customers.example.com") }
}

/// What this thread has had of the CPU; as of the last tick of the scheduler, so good for tens of milliseconds and more.
fn cpu_ns() -> f64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(f64::NAN)
}

fn ask(table: &Table, names: &[String], lookups: usize) {
    for lookup in 0..lookups {
        let host = &names[lookup.wrapping_mul(2_654_435_761) % names.len()];
        let request = Request { tls: false, port: 80, host, method: "GET", path: "/app/x", headers: &[] };
        assert!(black_box(table.find(black_box(&request))).is_some());
    }
}

/// One service's route after the other to another port, while workers still hold the table from before.
fn change(book: &mut Book<usize>, hosts: usize, numbers: Range<usize>) {
    let mut held = book.table().clone();
    for number in numbers {
        let owner = number.wrapping_mul(2_654_435_761) % hosts;
        let mut new = route(owner);
        if let Action::Forward(set) = &mut new.action {
            // What is as it was changes nothing.
            set.members[0].port = 1024 + (number % 50_021) as u16;
        }
        let change = book.change([(owner, vec![Arc::new(new)])]);
        black_box(change);
        held = black_box(book.table().clone());
    }
    drop(held);
}

fn main() {
    let numbers: Vec<usize> = env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    if let [hosts, lookups, changes] = numbers[..] {
        let mut book = Book::default();
        book.change((0..hosts).map(|number| (number, vec![Arc::new(route(number))])));
        ask(book.table(), &(0..hosts).map(host).collect::<Vec<_>>(), lookups);
        change(&mut book, hosts, 0..changes);
        return;
    }
    let tables: Vec<(usize, Table, Vec<String>, f64)> = [1, 100, 10_000, 100_000]
        .into_iter()
        .map(|hosts| {
            let routes: Vec<Arc<Route>> = (0..hosts).map(|number| Arc::new(route(number))).collect();
            let start = cpu_ns();
            let rounds = 100_000 / hosts.max(5_000);
            for _ in 1..rounds {
                black_box(Table::new(routes.iter().cloned()));
            }
            let (table, problems) = Table::new(routes.iter().cloned());
            let compiled = (cpu_ns() - start) / 1e6 / rounds as f64;
            assert!(problems.is_empty());
            (hosts, table, (0..hosts).map(host).collect(), compiled)
        })
        .collect();
    let mut rounds = vec![Vec::new(); tables.len()];
    for _ in 0..ROUNDS {
        for ((_, table, names, _), results) in tables.iter().zip(&mut rounds) {
            let start = cpu_ns();
            ask(table, names, LOOKUPS);
            results.push((cpu_ns() - start) / LOOKUPS as f64);
        }
    }
    println!("hosts\tns per lookup (median, least, most)\tms to compile");
    for ((hosts, _, _, compiled), mut results) in tables.into_iter().zip(rounds) {
        results.sort_by(f64::total_cmp);
        println!("{hosts}\t{:.0}\t{:.0}\t{:.0}\t{compiled:.1}", results[ROUNDS / 2], results[0], results[ROUNDS - 1]);
    }
    println!("hosts\tµs to change one route (median, least, most)");
    for hosts in [100, 10_000, 100_000] {
        let mut book = Book::default();
        book.change((0..hosts).map(|number| (number, vec![Arc::new(route(number))])));
        let mut results: Vec<f64> = (0..ROUNDS)
            .map(|round| {
                let start = cpu_ns();
                change(&mut book, hosts, round * CHANGES..(round + 1) * CHANGES);
                (cpu_ns() - start) / 1e3 / CHANGES as f64
            })
            .collect();
        results.sort_by(f64::total_cmp);
        println!("{hosts}\t{:.1}\t{:.1}\t{:.1}", results[ROUNDS / 2], results[0], results[ROUNDS - 1]);
    }
}
