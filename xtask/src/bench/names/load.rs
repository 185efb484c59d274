//! What asks, and the two servers that are threads of this program: the limit, and the upstream.

use std::{
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use crate::bench::stats::Random;

/// Queries per second. Below the knee of the slowest on two cores that the generator shares.
pub(super) const RATE: u32 = 20_000;
pub(super) const BLOCK: Duration = Duration::from_secs(3);
const SOCKETS: usize = 16;
const MISSING: u32 = 500;
const MOST_OPEN: usize = 64;

/// The smallest server that there is: what it costs, every server has to pay.
pub(crate) fn echo(address: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(address)?;
    let mut room = [0; 2048];
    loop {
        let (len, client) = socket.recv_from(&mut room)?;
        room[2] |= 0x80;
        socket.send_to(&room[..len], client)?;
    }
}

/// The upstream: every name is missing, for a while.
pub(super) fn nothing_exists() {
    let Ok(socket) = UdpSocket::bind("127.0.0.2:53") else { return };
    let mut room = [0; 2048];
    while let Ok((len, client)) = socket.recv_from(&mut room) {
        // Header, question, and whatever else is dropped.
        let Some(name) = room[12..len].iter().position(|b| *b == 0) else { continue };
        let mut answer = room[..12 + name + 5].to_vec();
        answer[2..12].copy_from_slice(&[0x81, 0x83, 0, 1, 0, 0, 0, 1, 0, 0]);
        // . 300 SOA . . 1 1 1 1 300
        answer.extend([0, 0, 6, 0, 1, 0, 0, 1, 44, 0, 22, 0, 0]);
        answer.extend([1u32, 1, 1, 1, 300].iter().flat_map(|n| n.to_be_bytes()));
        let _ = socket.send_to(&answer, client);
    }
}

pub(super) fn query(id: u16, name: &str, is_aaaa: bool) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, if is_aaaa { 28 } else { 1 }, 0, 1]);
    bytes
}

pub(super) fn is_up(address: SocketAddr, is_echo: bool) -> bool {
    let ask = || -> std::io::Result<bool> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        socket.connect(address)?;
        socket.send(&query(1, "service0", false))?;
        let mut room = [0; 512];
        let len = socket.recv(&mut room)?;
        Ok(len > 12 && (is_echo || room[7] > 0))
    };
    ask().unwrap_or(false)
}

/// Asks at a fixed rate and checks every answer. Returns the time that each took, in seconds.
pub(super) fn generate(address: SocketAddr, services: u32, is_echo: bool, seed: u64, rate: u32) -> Result<Vec<f64>> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let sockets: Vec<UdpSocket> = (0..SOCKETS)
        .map(|_| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(address)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
        .collect::<std::io::Result<_>>()?;
    let total = (f64::from(rate) * BLOCK.as_secs_f64()) as usize & !1;
    let mut sent: Vec<(Instant, bool, bool)> = Vec::with_capacity(total);
    let mut times = Vec::with_capacity(total);
    let start = Instant::now();
    let gap = Duration::from_secs_f64(2.0 / f64::from(rate));
    let mut room = [0; 2048];
    let mut pair = 0;
    while times.len() < total {
        // After a pause that was not ours, no burst makes up for it beyond what any server's socket takes.
        if sent.len() < total && sent.len() - times.len() < MOST_OPEN && start.elapsed() >= gap * pair {
            let is_missing = pair % 20 == 19;
            let name = if is_missing {
                format!("missing{}", random.below(MISSING as usize))
            } else {
                format!("service{}", random.below(services as usize))
            };
            // Both of a pair on one socket, as getaddrinfo does it.
            let socket = &sockets[pair as usize % SOCKETS];
            for is_aaaa in [false, true] {
                let bytes = query(sent.len() as u16, &name, is_aaaa);
                sent.push((Instant::now(), is_missing, is_aaaa));
                socket.send(&bytes)?;
            }
            pair += 1;
            continue;
        }
        let mut idle = true;
        for socket in &sockets {
            while let Ok(len) = socket.recv(&mut room) {
                idle = false;
                ensure!(len >= 12, "a short answer");
                // IDs are counted; fewer than 65536 queries are ever on their way.
                let low = u16::from_be_bytes([room[0], room[1]]);
                let newest = sent.len() - 1;
                let index = newest - usize::from((newest as u16).wrapping_sub(low));
                let (asked, is_missing, is_aaaa) = sent[index];
                times.push(asked.elapsed().as_secs_f64());
                let (code, answers) = (room[3] & 15, room[7]);
                let expected = match (is_missing, is_aaaa) {
                    (true, _) => (3, 0),
                    (false, true) => (0, 0),
                    (false, false) => (0, 1),
                };
                ensure!(is_echo || (code, answers) == expected, "a wrong answer: code {code}, {answers} records, expected {expected:?}");
            }
        }
        if idle {
            ensure!(start.elapsed() < BLOCK * 3 + Duration::from_secs(5), "{} of {total} answers are missing", total - times.len());
            if sent.len() == total || gap * pair > start.elapsed() + Duration::from_micros(60) {
                std::thread::sleep(Duration::from_micros(20));
            }
        }
    }
    Ok(times)
}
