//! Names of a swarm that exists in its snapshot alone, larger and quicker than any lab: the agent's own engine on real sockets in
//! real namespaces.
#![forbid(unsafe_code)]
#![expect(clippy::print_stderr, reason = "all of this is a test")]

mod clients;
mod truth;
mod world;

use std::{
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};
use hickory_proto::{op::ResponseCode, rr::RecordType, serialize::binary::BinEncodable};
use swarmesh_model::{Delta, Snapshot};
use swarmesh_tests::{
    names::{ask, ask_on, data, question},
    netns::{spawn_within, within},
};

use crate::{
    truth::{Said, Truth},
    world::{Namespace, World, asker, network, node},
};

const RATE: u32 = 1000;
const SECONDS: u32 = 30;
const ASKERS: usize = 4;
const SOCKETS: usize = 3;
/// Between a socket's questions, so that there is a core for the changes.
const PAUSE: Duration = Duration::from_millis(5);

/// What one socket has seen.
#[derive(Default)]
struct Seen {
    answers: usize,
    /// Where only one answer was true.
    strict: usize,
    /// Most changes that were on their way during one question.
    behind: u64,
    wrong: Vec<String>,
}

#[test]
fn n11_a_thousand_changes_a_second_and_no_answer_is_wrong_or_lost() {
    let host = Arc::new(Namespace::new("changes").unwrap());
    let inside = Arc::clone(&host);
    within(&host.path(), move || thousand(&inside)).unwrap().unwrap();
}

fn thousand(host: &Namespace) -> Result<()> {
    let (truth, snapshot) = Truth::new(ASKERS);
    let truth = Arc::new(truth);
    let world = Arc::new(World::up(host, "changes", ASKERS, &snapshot)?);
    let is_over = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    for number in 0..ASKERS * SOCKETS {
        let (world, truth, is_over) = (Arc::clone(&world), Arc::clone(&truth), Arc::clone(&is_over));
        let namespace = world.askers[number % ASKERS].path();
        threads.push(spawn_within(&namespace, move || interrogate(number, &world, &truth, &is_over))?);
    }
    let start = Instant::now();
    for number in 0..RATE * SECONDS {
        let due = start + Duration::from_secs(1) * number / RATE;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        world.send(truth.next(u64::from(number) + snapshot.version + 1))?;
    }
    let took = start.elapsed();
    is_over.store(true, Ordering::SeqCst);
    let mut all = Seen::default();
    for thread in threads {
        let seen = thread.join().map_err(|_| anyhow!("an asker panicked"))??;
        all.answers += seen.answers;
        all.strict += seen.strict;
        all.behind = all.behind.max(seen.behind);
        all.wrong.extend(seen.wrong);
    }
    eprintln!(
        "{} changes in {took:.1?}, {} answers, {} of them where only one was true, at most {} changes behind",
        RATE * SECONDS,
        all.answers,
        all.strict,
        all.behind
    );
    ensure!(all.wrong.is_empty(), "{} wrong: {:#?}", all.wrong.len(), &all.wrong[..all.wrong.len().min(5)]);
    ensure!(all.answers > 10_000 && all.strict > all.answers / 10, "too few answers to show anything");
    world.wait("the last change is in force", || world.applied() == world.sent.load(Ordering::SeqCst))?;
    // At rest, there is one answer to everything.
    for asker in 0..ASKERS {
        let (inner, truth) = (Arc::clone(&world), Arc::clone(&truth));
        within(&world.askers[asker].path(), move || -> Result<()> {
            let socket = connected()?;
            for question in truth.everything(asker) {
                let (said, allowed) = examine(&socket, &inner, &truth, &question)?;
                ensure!(allowed.len() == 1 && allowed.contains(&said), "{question:?}: {said:?}, not {allowed:?}");
            }
            Ok(())
        })??;
    }
    Arc::into_inner(world).ok_or_else(|| anyhow!("still in use"))?.down()
}

fn connected() -> Result<UdpSocket> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect("127.0.0.11:53")?;
    Ok(socket)
}

/// Asks until it is over. An error is a lost answer.
fn interrogate(number: usize, world: &World, truth: &Truth, is_over: &AtomicBool) -> Result<Seen> {
    let socket = connected()?;
    let (mut seen, mut seed) = (Seen::default(), 77 + number as u64);
    while !is_over.load(Ordering::SeqCst) {
        let question = truth.question(number % ASKERS, &mut seed);
        std::thread::sleep(PAUSE);
        let before = world.applied();
        let (said, allowed) = examine(&socket, world, truth, &question)?;
        seen.answers += 1;
        seen.strict += usize::from(allowed.len() == 1);
        seen.behind = seen.behind.max(world.sent.load(Ordering::SeqCst) - before);
        if !allowed.contains(&said) {
            seen.wrong.push(format!("{question:?}: {said:?}, not one of {allowed:?}"));
        }
    }
    Ok(seen)
}

/// The answer to a question, and all that were true at some time between the question and the answer.
fn examine(socket: &UdpSocket, world: &World, truth: &Truth, asked: &truth::Question) -> Result<(Said, Vec<Said>)> {
    let from = world.applied();
    let message = question(&asked.name, asked.kind, Some(4096))?;
    let answer = ask_on(socket, &message.to_bytes()?).map_err(|error| anyhow!("{asked:?}: {error:#}"))?;
    let to = world.sent.load(Ordering::SeqCst);
    ensure!(answer.metadata.id == message.metadata.id, "an answer to another question");
    let said = match answer.metadata.response_code {
        ResponseCode::NoError => Said::Known(data(&answer).into_iter().collect()),
        ResponseCode::NXDomain => Said::Unknown,
        code => Said::Other(code.to_string()),
    };
    Ok((said, truth.between(asked, from, to)))
}

/// E11: an asker's way out comes and goes with its networks.
#[test]
fn e11_a_network_that_leads_out_is_connected_and_disconnected() {
    let host = Arc::new(Namespace::new("wayout").unwrap());
    let inside = Arc::clone(&host);
    within(&host.path(), move || way_out(&inside)).unwrap().unwrap();
}

fn way_out(host: &Namespace) -> Result<()> {
    let mut snapshot = Snapshot { version: 1, ..Snapshot::default() };
    snapshot.insert_node(node());
    snapshot.insert_network(network("inner", true));
    snapshot.insert_network(network("front", false));
    snapshot.insert_task(asker(0, &["inner"]));
    let world = World::up(host, "wayout", 1, &snapshot)?;
    let namespace = world.askers[0].path();
    for (version, networks, expected) in [
        (2, &["inner"][..], ResponseCode::ServFail),
        (3, &["inner", "front"], ResponseCode::NoError),
        (4, &["inner"], ResponseCode::ServFail),
        (5, &["front"], ResponseCode::NoError),
    ] {
        let task = Some(Arc::new(asker(0, networks)));
        world.send(Delta { version, tasks: [("asker0".into(), task)].into(), ..Delta::default() })?;
        world.wait("it is in force", || world.applied() == version)?;
        world.upstream.asked();
        // Also a name that was answered while there was a way out, and is known to the cache.
        for name in ["same.example".to_owned(), format!("other{version}.example")] {
            let answer = ask(&namespace, &question(&name, RecordType::A, None)?)?;
            ensure!(answer.metadata.response_code == expected, "{networks:?}, {name}: {answer:?}");
        }
        ensure!(world.upstream.asked().is_empty() == (expected == ResponseCode::ServFail), "{networks:?}");
        ensure!(data(&ask(&namespace, &question("asker0", RecordType::A, None)?)?) == ["10.1.0.1"], "its own names");
    }
    world.down()
}
