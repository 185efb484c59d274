//! What it costs in the proxy to find where a request goes: the table alone, and with the choice of a backend.
//!
//! In time, by a loop, and in instructions, by callgrind: N lookups and 2N, of which the difference counts.

use std::{collections::BTreeMap, path::Path, process::Command};

use anyhow::Result;

use super::{
    http::{counted::total_of, proxy::example},
    stats::{Random, median, ratio},
};
use crate::run::{output, say};

const LOOKUPS: usize = 2_000_000;
const COUNTED: usize = 50_000;
const HOSTS: [u32; 2] = [1, 10_000];

type Subject = (&'static str, &'static str, u32);

pub(crate) fn run(blocks: usize) -> Result<()> {
    let program = example("route")?;
    let subjects: Vec<Subject> = ["exact", "wildcard"]
        .iter()
        .flat_map(|form| ["table", "choice"].iter().flat_map(|part| HOSTS.map(|hosts| (*form, *part, hosts))))
        .collect();
    let mut times: BTreeMap<Subject, Vec<f64>> = BTreeMap::new();
    let mut random = Random(19);
    for block in 0..=blocks {
        let mut order = subjects.clone();
        random.shuffle(&mut order);
        for subject in order {
            let nanoseconds: f64 = output(lookups(&mut Command::new(&program), subject, LOOKUPS))?.trim().parse()?;
            if block > 0 {
                times.entry(subject).or_default().push(nanoseconds);
            }
        }
    }
    say(&format!(
        "\nfinding a request's route, {LOOKUPS} random lookups per block, {blocks} interleaved blocks; instructions by callgrind\n\
         | hosts | what | µs | against 1 host [95 % CI] | instructions |\n|---|---|---|---|---|"
    ));
    for subject in subjects {
        let (form, part, hosts) = subject;
        let one = times.get(&(form, part, HOSTS[0])).map_or(&[][..], Vec::as_slice);
        let own = times.get(&subject).map_or(&[][..], Vec::as_slice);
        say(&format!(
            "| {hosts} {} | {} | {:.3} | {} | {} |",
            if form == "exact" { "exact" } else { "with a wildcard" },
            if part == "table" { "the table" } else { "the table, and one of three backends" },
            median(own) / 1e3,
            ratio(own, one),
            instructions(&program, subject)?,
        ));
    }
    Ok(())
}

fn lookups(command: &mut Command, (form, part, hosts): Subject, count: usize) -> &mut Command {
    command.args([form, &hosts.to_string(), part, &count.to_string()])
}

/// Per lookup.
fn instructions(program: &Path, subject: Subject) -> Result<u64> {
    let directory = tempfile::tempdir()?;
    let mut counted = [0; 2];
    for (file, (count, counted)) in ["n", "2n"].iter().zip([COUNTED, 2 * COUNTED].into_iter().zip(&mut counted)) {
        let file = directory.path().join(file);
        let mut command = Command::new("valgrind");
        command.args(["--tool=callgrind", "--quiet", &format!("--callgrind-out-file={}", file.display())]).arg(program);
        output(lookups(&mut command, subject, count))?;
        *counted = total_of(&file)?;
    }
    Ok((counted[1] - counted[0]) / COUNTED as u64)
}
