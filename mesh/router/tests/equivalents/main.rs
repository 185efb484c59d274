//! The same wish in each dialect's labels: a stack that moves from one to another by this table is decided as before.
//!
//! A row has the labels in each dialect that can say it, requests, and what becomes of them. A dialect may differ only where
//! the row says so, and then must differ in just that way. `docs/compatibility.md` has the same rows for people.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[path = "../common/mod.rs"]
mod common;
mod decided;
mod rows;

use std::collections::BTreeSet;

use swarmesh_router::model::Dialect::{self, FlowProxy as Df, Hrm, Interlock as Lb, Interlock1 as Old, Swarmesh as Own};

use decided::{decide, parts, table, without};
use rows::{Labels, ROWS, STANDING};

#[test]
fn the_same_wish_is_decided_alike_in_every_dialect() {
    for row in ROWS {
        for (dialect, services) in row.says {
            let table = table(*dialect, services, row.name);
            let mut used = BTreeSet::new();
            for (ask, expected) in row.asks {
                let of_dialect = row.differs.iter().find(|(d, a, _)| (d, a) == (dialect, ask));
                let expected = of_dialect.map_or(*expected, |(_, _, instead)| {
                    assert_ne!(instead, expected, "{}: {dialect} does not differ at {ask}", row.name);
                    used.insert(*ask);
                    *instead
                });
                let standing = STANDING.iter().find(|(d, _)| d == dialect).map_or(&[][..], |(_, parts)| parts);
                let decided = without(&decide(&table, ask), standing);
                assert_eq!(decided, without(&parts(expected), standing), "{}: {dialect}, {ask}", row.name);
            }
            let listed: BTreeSet<&str> = row.differs.iter().filter(|(d, ..)| d == dialect).map(|(_, ask, _)| *ask).collect();
            assert_eq!(listed, used, "{}: a difference of {dialect} that no request shows", row.name);
        }
        let speakers: BTreeSet<Dialect> = row.says.iter().map(|(dialect, _)| *dialect).collect();
        assert!(speakers.contains(&Own) && speakers.len() > 1, "{}: ours can say all that the others can", row.name);
        assert!(row.differs.iter().all(|(dialect, ..)| speakers.contains(dialect)), "{}", row.name);
    }
    let names: BTreeSet<&str> = ROWS.iter().map(|row| row.name).collect();
    assert_eq!(names.len(), ROWS.len(), "a name stands for one row");
}

/// Ours says by labels what each of the others does to all requests.
#[test]
fn what_a_dialect_does_to_all_requests_can_be_said_in_ours() {
    for (dialect, theirs, ours) in [
        (Lb, &[("hosts", "a.example"), ("port", "80")][..], &[("forwarded", "for,real-ip,request-id"), ("info-headers", "true")][..]),
        (
            Df,
            &[("serviceDomain", "a.example"), ("port", "80"), ("discoveryType", "DNS"), ("serviceDomainAlgo", "hdr(host)")],
            &[("forwarded", "for,proto-if-tls"), ("auth.global", "true")],
        ),
        (Old, &[("hostname", "a"), ("domain", "example"), ("port", "80")], &[("forwarded", "for,real-ip,proto-pass")]),
    ] {
        let ours = [&[("host", "a.example"), ("port", "80")], ours].concat();
        let decided = |dialect, labels: Labels<'_>| decide(&table(dialect, &[labels], "standing"), "GET http://a.example/");
        let theirs = decided(dialect, theirs);
        assert_eq!(theirs, decided(Own, &ours), "{dialect}");
        let standing = STANDING.iter().find(|(d, _)| *d == dialect).map_or(&[][..], |(_, parts)| parts);
        for part in standing {
            assert!(theirs.iter().any(|have| have == part), "{dialect}: {part} of {theirs:?}");
        }
    }
}

/// The page for people has these rows and no others, with `-` for who cannot say it.
#[test]
fn the_page_has_every_row() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/compatibility.md")).unwrap();
    let part = page.split("## The same in each dialect").nth(1).expect("the page has the table");
    let table = part.split("\n\n").find(|part| part.starts_with("| Wish")).expect("the table begins so");
    let told: Vec<(&str, Vec<Dialect>)> = table
        .lines()
        .skip(2)
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            assert_eq!(cells.len(), 7, "{line}");
            (cells[0], [Hrm, Lb, Df, Old, Own].into_iter().zip(&cells[1..]).filter(|(_, cell)| **cell != "-").map(|(d, _)| d).collect())
        })
        .collect();
    for (number, row) in ROWS.iter().enumerate() {
        let speakers: Vec<Dialect> = row.says.iter().map(|(dialect, _)| *dialect).collect();
        assert_eq!(told.get(number), Some(&(row.name, speakers)), "{}", row.name);
    }
    assert_eq!(told.len(), ROWS.len());
}
