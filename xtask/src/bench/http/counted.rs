//! What each proxy does in user space, in instructions, by callgrind: the same on a busy machine as on a quiet one.
//!
//! One request at a time, so nothing is done for several at once. Two runs, of which the difference counts. What the kernel does is not in
//! it, nor what caches do.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, ensure};
use rustls::HandshakeKind;

use super::{
    Headers, Stage,
    link::Link,
    load::request,
    proxy::{Kind, Scheme},
    site,
};
use crate::run::say;

const KINDS: [Kind; 6] = [Kind::Ours, Kind::OursBare, Kind::Haproxy, Kind::HaproxyAll, Kind::Nginx, Kind::Pingora];
/// Requests of either run, and connections of either run.
const REQUESTS: [usize; 2] = [500, 2500];
const CONNECTIONS: [usize; 2] = [50, 150];

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    Plain(bool),
    Tls(bool),
    /// A new connection with one request.
    Full,
    Resumed,
}

impl Work {
    const ALL: [Self; 6] = [Self::Plain(false), Self::Plain(true), Self::Tls(false), Self::Tls(true), Self::Full, Self::Resumed];

    const fn counts(self) -> [usize; 2] {
        match self {
            Self::Plain(_) | Self::Tls(_) => REQUESTS,
            Self::Full | Self::Resumed => CONNECTIONS,
        }
    }

    const fn scheme(self) -> Scheme {
        if matches!(self, Self::Plain(_)) { Scheme::Http } else { Scheme::Https }
    }
}

pub(crate) fn run() -> Result<()> {
    let stage = Stage::set()?;
    let mut failed: BTreeMap<(Kind, Work), String> = BTreeMap::new();
    say("\nuser-space instructions, by callgrind, one request at a time, 1024 bytes\n\
         | proxy | request, bare | a browser's headers | over TLS, bare | a browser's headers | new TLS connection with one request, full | resumed |\n\
         |---|---|---|---|---|---|---|");
    for kind in KINDS {
        let cells = Work::ALL.map(|work| {
            count(&stage, kind, work).map_or_else(
                |error| {
                    failed.insert((kind, work), format!("{error:#}"));
                    "–".to_owned()
                },
                |instructions| instructions.to_string(),
            )
        });
        say(&format!("| {} | {} |", kind.name(), cells.join(" | ")));
    }
    for ((kind, _), why) in &failed {
        say(&format!("{}: a figure is missing: {why}", kind.name()));
    }
    ensure!(!failed.keys().any(|(kind, _)| kind.is_needed()), "figures are missing without which the others say little");
    Ok(())
}

/// Per request or connection.
fn count(stage: &Stage, kind: Kind, work: Work) -> Result<u64> {
    let counts = work.counts();
    let mut totals = [0; 2];
    for (count, total) in counts.into_iter().zip(&mut totals) {
        let file = stage.directory.path().join("callgrind");
        let proxy = stage.start_counted(kind, work.scheme(), &file)?;
        match work {
            Work::Plain(browser) | Work::Tls(browser) => {
                requests(&proxy, work.scheme(), if browser { Headers::Browser } else { Headers::Bare }, count)?;
            }
            Work::Full => connections(&proxy, HandshakeKind::Full, count)?,
            Work::Resumed => connections(&proxy, HandshakeKind::Resumed, count)?,
        }
        proxy.end()?;
        *total = total_of(&file)?;
        fs::remove_file(&file)?;
    }
    Ok(totals[1].saturating_sub(totals[0]) / (counts[1] - counts[0]) as u64)
}

fn requests(proxy: &super::proxy::Proxy, scheme: Scheme, headers: Headers, count: usize) -> Result<()> {
    let tls = (scheme == Scheme::Https).then(|| site::client(true)).transpose()?;
    let (request, mut chunk) = (request(0, headers.text()), vec![0; 64 * 1024]);
    let mut links = (0..8).map(|_| Link::open(proxy.address, tls.as_ref())).collect::<Result<Vec<_>>>()?;
    for number in 0..count {
        let at = number % links.len();
        links[at].ask(&request, &mut chunk)?;
    }
    links.into_iter().for_each(Link::close);
    Ok(())
}

fn connections(proxy: &super::proxy::Proxy, kind: HandshakeKind, count: usize) -> Result<()> {
    let tls = site::client(kind == HandshakeKind::Resumed)?;
    let (request, mut chunk) = (request(0, ""), vec![0; 64 * 1024]);
    for number in 0..=count {
        let mut link = Link::open(proxy.address, Some(&tls))?;
        link.ask(&request, &mut chunk)?;
        // The first leaves its ticket to the second.
        ensure!(number == 0 || link.handshake() == Some(kind), "a handshake was {:?} and not {kind:?}", link.handshake());
        link.close();
    }
    Ok(())
}

pub(crate) fn total_of(file: &Path) -> Result<u64> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let line = text.lines().find_map(|line| line.strip_prefix("totals:")).context("callgrind told no totals")?;
    Ok(line.trim().parse()?)
}
