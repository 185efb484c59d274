//! What nobody should send, and everybody may: rows in which a task, or a server upstream, means harm.

use std::{
    io::{Read, Write},
    net::{TcpStream, UdpSocket},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RecordType,
    serialize::binary::BinEncodable,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::Value;
use swarmesh_tests::{
    lab::Lab,
    names::{LIE, addresses, ask, ask_tcp, data, question},
    netns::{spawn_within, within},
    rows::Row,
};

use crate::{NODES, Subject};

const RESOLVER: ([u8; 4], u16) = ([127, 0, 0, 11], 53);
const CONNECTIONS: usize = 10_000;
/// Far more than what is bounded may take, and far less than what is not.
const ROOM: u64 = 16 << 20;

/// Bytes of memory that all agents have in use.
fn resident(lab: &Lab) -> Result<u64> {
    let mut all = 0;
    for node in NODES {
        let status: Value = serde_json::from_str(&lab.api(node, "/v1/status")?.1)?;
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", status["agent"]["pid"]))?;
        all += statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).context("an odd statm")? * 4096;
    }
    Ok(all)
}

/// Asks at most 20 times by both transports, and says how long that took.
fn polite(asker: &Path) -> Result<Duration> {
    let start = Instant::now();
    for _ in 0..20 {
        addresses(asker, "web")?;
        ask_tcp(asker, &[question("web", RecordType::A, None)?])?;
    }
    Ok(start.elapsed())
}

/// Names of ours are answered, to whoever was rude and to others.
fn all_is_well(s: &Subject, rude: &Path) -> Result<()> {
    let (vip, asked) = (s.vip("web", "front")?, [question("web", RecordType::A, None)?]);
    for asker in [rude, &s.of("both")?] {
        ensure!(addresses(asker, "web")? == vip, "{}", asker.display());
    }
    s.lab.wait("TCP works again", || Ok(ask_tcp(rude, &asked).is_ok_and(|answers| data(&answers[0]) == vip)))
}

/// What is wrong with it, a question for `web`, and the code of the answer, if there is to be one.
type Malformed = (&'static str, Vec<u8>, Option<u8>);

fn malformed() -> Result<Vec<Malformed>> {
    let good = question("web", RecordType::A, None)?.to_bytes()?;
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = good.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    };
    // Header, then a name as it is on the wire, then A and IN.
    let named = |name: &[u8]| [&good[..12], name, &[0, 1, 0, 1]].concat();
    // The question, then additional records as they are on the wire.
    let and = |count: u8, records: &[u8]| [&with(11, &[count])[..], records].concat();
    const OPT: [u8; 11] = [0, 0, 41, 16, 0, 0, 0, 0, 0, 0, 0];
    let many = |label: &[u8], times: usize| named(&[&label.repeat(times)[..], &[0]].concat());
    let long = [&[63][..], &[b'a'; 63]].concat();
    Ok(vec![
        ("an update", with(2, &[0x29]), Some(4)),
        ("a notification", with(2, &[0x21]), Some(4)),
        ("a status query", with(2, &[0x11]), Some(4)),
        ("no question", with(5, &[0]), Some(1)),
        ("two questions", with(5, &[2]), Some(1)),
        ("65,535 questions", with(4, &[0xff, 0xff]), Some(1)),
        ("an answer to itself", with(7, &[1]), Some(1)),
        ("an authority", with(9, &[1]), Some(1)),
        ("a header alone", good[..12].to_vec(), Some(1)),
        ("cut short", good[..good.len() - 1].to_vec(), Some(1)),
        ("a pointer to itself", named(&[0xc0, 12]), Some(1)),
        ("a pointer into the header", named(&[0xc0, 0]), Some(1)),
        ("a pointer beyond the end", named(&[0xff, 0xff]), Some(1)),
        ("two pointers at each other", named(&[0xc0, 14, 0xc0, 12]), Some(1)),
        ("a label and a pointer back to it", named(&[1, b'a', 0xc0, 12]), Some(1)),
        ("an extended label", named(&[0x41, 1, 0]), Some(1)),
        ("a label of a kind that there is not", named(&[0x80, 1, 0]), Some(1)),
        ("a label beyond the end", named(&[63, b'a']), Some(1)),
        ("a name of 257 octets", many(&long, 4), Some(1)),
        ("a name of 1,000 labels", many(&[1, b'a'], 1000), Some(1)),
        ("an additional record that is not there", with(11, &[1]), Some(1)),
        ("65,535 additional records", with(10, &[0xff, 0xff]), Some(1)),
        ("two OPT records", and(2, &[OPT, OPT].concat()), Some(1)),
        ("an OPT record of a name", and(1, &[&[1, b'a'][..], &OPT].concat()), Some(1)),
        ("an OPT record of a pointer to itself", and(1, &[&[0xc0, 21][..], &OPT[1..]].concat()), Some(1)),
        ("an OPT record beyond the end", and(1, &[&OPT[..9], &[0xff, 0xff]].concat()), Some(1)),
        ("another class", with(19, &[0, 3]), Some(5)),
        // These are names, and none of ours: they are for the server upstream.
        ("a dot in a label", named(&[&[13][..], b"t_web.t_front", &[0]].concat()), Some(3)),
        ("a zero in a label", named(&[&[4][..], b"web\0", &[0]].concat()), Some(3)),
        ("high bits in a label", named(&[&[3][..], &[b'w' | 0x80, b'e' | 0x80, b'b' | 0x80], &[0]].concat()), Some(3)),
        ("a response", with(2, &[0x81]), None),
        ("nothing", Vec::new(), None),
        ("eleven bytes", good[..11].to_vec(), None),
        ("more than any question", and(1, &[&OPT[..9], &[0x20, 0], &[0; 0x2000]].concat()), None),
    ])
}

/// The server has not closed it.
fn is_open(stream: &TcpStream) -> bool {
    let peeked = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
    peeked.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

/// Says whether the server has closed the connection within some seconds, whatever it answered before.
fn is_closed(stream: &mut TcpStream) -> Result<bool> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut room = [0; 4096];
    Ok(loop {
        match stream.read(&mut room) {
            Ok(0) => break true,
            Ok(_) => {}
            Err(error) => break error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    })
}

fn lying_lengths(rude: &Path) -> Result<()> {
    let good = question("web", RecordType::A, None)?.to_bytes()?;
    let mut response = good.clone();
    response[2] |= 0x80;
    let framed = |len: u16, bytes: &[u8]| [&len.to_be_bytes()[..], bytes].concat();
    for (what, bytes) in [
        ("65,535 bytes, of which few come", framed(u16::MAX, &good)),
        ("65,535 bytes, all of which come", framed(u16::MAX, &[0; 65_535])),
        ("one more than any question", framed(4097, &[0; 4097])),
        ("nothing", framed(0, &[])),
        ("eleven bytes", framed(11, &good[..11])),
        ("more than it sends", framed(good.len() as u16 + 1, &good)),
        ("half of a length", vec![0]),
        ("nothing at all", Vec::new()),
        ("a response", framed(response.len() as u16, &response)),
    ] {
        let closed = within(rude, move || -> Result<bool> {
            let mut stream = TcpStream::connect(std::net::SocketAddr::from(RESOLVER))?;
            // What is closed while it is written to says so when it is read.
            let _ = stream.write_all(&bytes);
            is_closed(&mut stream)
        })??;
        ensure!(closed, "{what}: the connection stays");
    }
    Ok(())
}

pub(crate) const ROWS: &[Row<Subject>] = &[
    ("N7 malformed questions get their code, and harm nobody", |s| {
        let asker = s.of("web")?;
        let cases = malformed()?;
        within(&asker, move || -> Result<()> {
            for (what, bytes, expected) in cases {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.connect(std::net::SocketAddr::from(RESOLVER))?;
                socket.set_read_timeout(Some(Duration::from_millis(if expected.is_some() { 5000 } else { 200 })))?;
                socket.send(&bytes)?;
                let mut room = [0; 512];
                let got = socket.recv(&mut room);
                let code = got.as_ref().ok().map(|_| room[3] & 15);
                ensure!(code == expected, "{what}: {code:?}, not {expected:?}");
                ensure!(got.map_or(true, |len| len <= 512 && room[..2] == bytes[..2]), "{what}: an answer to something else");
            }
            Ok(())
        })??;
        s.leaked();
        all_is_well(s, &asker)
    }),
    ("N8 a task with ten thousand TCP connections is in its own way alone", |s| {
        let (rude, other) = (s.of("rr")?, s.of("web")?);
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        ensure!(hard as usize > CONNECTIONS + 1000, "the limit of open files, {hard}, is too low for this row");
        let before = resident(&s.lab)?;
        let flood = spawn_within(&rude, || -> Vec<TcpStream> {
            let connect = |_| TcpStream::connect_timeout(&RESOLVER.into(), Duration::from_millis(500)).ok();
            (0..CONNECTIONS).filter_map(connect).collect()
        })?;
        let mut took = Duration::ZERO;
        while !flood.is_finished() {
            took = took.max(polite(&other)?);
        }
        let held = flood.join().map_err(|_| anyhow::anyhow!("the flooding thread panicked"))?;
        let open = held.iter().filter(|stream| is_open(stream)).count();
        took = took.max(polite(&other)?);
        let grown = resident(&s.lab)?.saturating_sub(before);
        ensure!(held.len() > CONNECTIONS / 2, "only {} connections were made", held.len());
        // What the agent allows one task, and as many that it has not looked at.
        ensure!(open <= 256, "{open} connections are open at once");
        ensure!(took < Duration::from_secs(3), "another task waits {took:?}");
        ensure!(grown < ROOM, "the agents have grown by {grown} bytes");
        ensure!(addresses(&rude, "web")? == s.vip("web", "front")?, "its own datagrams are answered");
        drop(held);
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
        all_is_well(s, &rude)
    }),
    ("N13 TCP: lengths that lie, questions that drip, answers that nobody takes away", |s| {
        let (rude, other) = (s.of("rr")?, s.of("web")?);
        lying_lengths(&rude)?;
        let before = resident(&s.lab)?;
        // As many as may be open, each with a byte now and then.
        let good = question("web", RecordType::A, None)?.to_bytes()?;
        let dripping = spawn_within(&rude, move || -> Result<(usize, Duration)> {
            let streams = (0..128).map(|_| TcpStream::connect(std::net::SocketAddr::from(RESOLVER)));
            let mut streams: Vec<TcpStream> = streams.collect::<std::io::Result<_>>()?;
            let start = Instant::now();
            let drops = [&(good.len() as u16).to_be_bytes()[..], &good].concat();
            for byte in &drops[..drops.len() - 1] {
                streams.iter_mut().for_each(|stream| _ = stream.write_all(&[*byte]));
                std::thread::sleep(Duration::from_millis(200));
            }
            let closed = streams.iter_mut().map(is_closed).collect::<Result<Vec<bool>>>()?;
            Ok((closed.into_iter().filter(|closed| *closed).count(), start.elapsed()))
        })?;
        let took = polite(&other)?;
        let (closed, _) = dripping.join().map_err(|_| anyhow::anyhow!("the dripping thread panicked"))??;
        ensure!(closed == 128, "{closed} of 128 were closed");
        ensure!(took < Duration::from_secs(3), "another task waits {took:?}");
        // Large answers, and a client that reads none of them.
        let greedy = question("tasks.web", RecordType::A, None)?.to_bytes()?;
        let outcome = within(&rude, move || -> Result<bool> {
            let mut stream = TcpStream::connect(std::net::SocketAddr::from(RESOLVER))?;
            stream.set_write_timeout(Some(Duration::from_secs(10)))?;
            let framed = [&(greedy.len() as u16).to_be_bytes()[..], &greedy].concat().repeat(200);
            let refused = (0..1000).any(|_| stream.write_all(&framed).is_err());
            Ok(refused)
        })??;
        ensure!(outcome, "200,000 questions were taken from who reads no answer");
        let grown = resident(&s.lab)?.saturating_sub(before);
        ensure!(grown < ROOM, "the agents have grown by {grown} bytes");
        all_is_well(s, &rude)
    }),
    ("N14 forged and poisoned answers from upstream: none is believed, passed on, or kept", |s| {
        let (asker, other): (PathBuf, PathBuf) = (s.of("web")?, s.of("both")?);
        let set = |lies: bool| [&s.upstream, &s.second].iter().for_each(|server| server.set_lies(lies));
        s.leaked();
        let has_lie = |message: &Message| {
            let records = message.answers.iter().chain(&message.additionals).chain(&message.authorities);
            records.map(|r| r.data.to_string()).any(|data| data == LIE.to_string())
        };
        let before = resident(&s.lab)?;
        set(true);
        let lied_to = || -> Result<()> {
            for number in 0..300 {
                let name = format!("honest{number}.example");
                let answer = ask(&asker, &question(&name, RecordType::A, (number % 2 == 0).then_some(1400))?)?;
                ensure!(data(&answer) == ["198.51.100.7"] && answer.answers.len() == 1 && !has_lie(&answer), "{name}: {answer:?}");
                let answer = ask(&asker, &question(&format!("honest{number}.org"), RecordType::A, None)?)?;
                ensure!(answer.metadata.response_code == ResponseCode::NXDomain && !has_lie(&answer), "{answer:?}");
            }
            Ok(())
        };
        let outcome = lied_to();
        set(false);
        outcome?;
        let grown = resident(&s.lab)?.saturating_sub(before);
        ensure!(grown < ROOM, "the agents have grown by {grown} bytes");
        ensure!(!s.leaked().contains(&"victim.example.".to_owned()), "asked too early");
        for asker in [&asker, &other] {
            ensure!(addresses(asker, "victim.example")? == ["198.51.100.7"], "kept: {:?}", addresses(asker, "victim.example")?);
        }
        s.leaked();
        all_is_well(s, &asker)
    }),
];
