//! Asking for names, as a program in a container would, and a server upstream that remembers what it was asked.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata},
    serialize::binary::BinEncodable,
};

use crate::{
    netns::{spawn_within, within},
    patience::patient,
};

const RESOLVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11)), 53);
const PATIENCE: Duration = Duration::from_secs(5);

/// A question. `edns` is the size of datagram that the asker takes.
pub fn question(name: &str, kind: RecordType, edns: Option<u16>) -> Result<Message> {
    let mut message = Message::new(rand_id(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name)?, kind));
    if let Some(size) = edns {
        let mut opt = Edns::new();
        opt.set_max_payload(size);
        message.set_edns(opt);
    }
    Ok(message)
}

fn rand_id() -> u16 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0) as u16
}

/// Asks 127.0.0.11 in a namespace by one datagram, and once more if nothing comes, as resolvers do.
pub fn ask(namespace: &Path, message: &Message) -> Result<Message> {
    let (bytes, id) = (message.to_bytes()?, message.metadata.id);
    within(namespace, move || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(RESOLVER)?;
        let answer = ask_on(&socket, &bytes)?;
        ensure!(answer.metadata.id == id, "an answer to another question");
        Ok(answer)
    })?
}

/// Asks on a socket that is connected to the resolver.
pub fn ask_on(socket: &UdpSocket, bytes: &[u8]) -> Result<Message> {
    socket.set_read_timeout(Some(patient(PATIENCE)))?;
    socket.send(bytes)?;
    let mut room = vec![0; 65_535];
    let len = socket.recv(&mut room).context("no answer")?;
    Ok(Message::from_vec(&room[..len])?)
}

/// Asks over TCP, everything on one connection, and returns the answers as they come.
pub fn ask_tcp(namespace: &Path, messages: &[Message]) -> Result<Vec<Message>> {
    let messages: Vec<Vec<u8>> = messages.iter().map(BinEncodable::to_bytes).collect::<Result<_, _>>()?;
    within(namespace, move || {
        let mut stream = TcpStream::connect_timeout(&RESOLVER, patient(PATIENCE))?;
        stream.set_read_timeout(Some(patient(PATIENCE)))?;
        for message in &messages {
            stream.write_all(&u16::try_from(message.len())?.to_be_bytes())?;
            stream.write_all(message)?;
        }
        let mut answers = Vec::new();
        for _ in &messages {
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut answer)?;
            answers.push(Message::from_vec(&answer)?);
        }
        Ok(answers)
    })?
}

/// The data of the answer's records, sorted.
pub fn data(message: &Message) -> Vec<String> {
    let mut data: Vec<String> = message.answers.iter().map(|r| r.data.to_string()).collect();
    data.sort();
    data
}

/// The addresses that a name has for a namespace, sorted.
pub fn addresses(namespace: &Path, name: &str) -> Result<Vec<String>> {
    let answer = ask(namespace, &question(name, RecordType::A, None)?)?;
    ensure!(answer.metadata.response_code == ResponseCode::NoError, "{name}: {}", answer.metadata.response_code);
    Ok(data(&answer))
}

/// As [`addresses`], whatever the code is: none of a name that is not there.
pub fn found(namespace: &Path, name: &str) -> Result<Vec<IpAddr>> {
    let answer = ask(namespace, &question(name, RecordType::A, None)?)?;
    Ok(answer.answers.iter().filter_map(|record| record.data.ip_addr()).collect())
}

/// True of an answer that says: the name is ours, and has nothing of the sort.
pub fn is_no_data(message: &Message) -> bool {
    message.metadata.response_code == ResponseCode::NoError
        && message.answers.is_empty()
        && message.authorities.iter().any(|r| matches!(r.data, RData::SOA(_)))
}

/// A name server in a namespace, which knows every name below `example.` and no other.
#[derive(Debug)]
pub struct Upstream {
    asked: Arc<Mutex<Vec<String>>>,
    manners: Arc<Manners>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Manners {
    is_dead: AtomicBool,
    lies: AtomicBool,
    is_over: AtomicBool,
}

/// Where lies lead.
pub const LIE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 66);
/// Of each kind, before the truth.
const LIES: usize = 10;

impl Upstream {
    pub fn start(namespace: &Path, address: IpAddr) -> Result<Self> {
        let (socket, other) =
            within(namespace, move || std::io::Result::Ok((UdpSocket::bind((address, 53))?, UdpSocket::bind((address, 0))?)))??;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let (asked, manners) = (Arc::default(), Arc::<Manners>::default());
        let mut server = Self { asked: Arc::clone(&asked), manners: Arc::clone(&manners), thread: None };
        server.thread = Some(spawn_within(namespace, move || serve(&socket, &other, &asked, &manners))?);
        Ok(server)
    }

    /// What it was asked since this was last called, sorted, each once.
    pub fn asked(&self) -> Vec<String> {
        let mut asked = std::mem::take(&mut *self.asked.lock().unwrap_or_else(PoisonError::into_inner));
        asked.sort();
        asked.dedup();
        asked
    }

    /// From now on it takes questions and says nothing, or answers again.
    pub fn set_dead(&self, dead: bool) {
        self.manners.is_dead.store(dead, Ordering::Relaxed);
    }

    /// From now on, forged answers precede each true one, and that has records of other names in it.
    pub fn set_lies(&self, lies: bool) {
        self.manners.lies.store(lies, Ordering::Relaxed);
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.manners.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(socket: &UdpSocket, other: &UdpSocket, asked: &Mutex<Vec<String>>, manners: &Manners) {
    let mut room = [0; 4096];
    while !manners.is_over.load(Ordering::Relaxed) {
        let Ok((len, client)) = socket.recv_from(&mut room) else { continue };
        let Ok(question) = Message::from_vec(&room[..len]) else { continue };
        let Some(query) = question.queries.first() else { continue };
        let name = query.name().to_string().to_ascii_lowercase();
        asked.lock().unwrap_or_else(PoisonError::into_inner).push(name.clone());
        if manners.is_dead.load(Ordering::Relaxed) {
            continue;
        }
        let mut answer = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
        answer.metadata.recursion_available = true;
        answer.queries = question.queries.clone();
        let soa = || Record::from_rdata(Name::root(), 30, RData::SOA(rdata::SOA::new(Name::root(), Name::root(), 1, 1, 1, 1, 30)));
        if !name.ends_with(".example.") {
            answer.metadata.response_code = ResponseCode::NXDomain;
            answer.add_authority(soa());
        } else if query.query_type() == RecordType::A {
            answer.add_answer(Record::from_rdata(query.name().clone(), 30, RData::A(rdata::A(Ipv4Addr::new(198, 51, 100, 7)))));
        } else {
            answer.add_authority(soa());
        }
        if manners.lies.load(Ordering::Relaxed) {
            for (from, lie) in lies(&question).iter().cycle().take(LIES * 4) {
                if let Ok(bytes) = lie.to_bytes() {
                    let _ = if *from { socket } else { other }.send_to(&bytes, client);
                }
            }
            poison(&mut answer);
        }
        if let Ok(bytes) = answer.to_bytes() {
            let _ = socket.send_to(&bytes, client);
        }
    }
}

/// Forged answers, and whether they come from where the question went.
fn lies(question: &Message) -> [(bool, Message); 4] {
    let name = question.queries[0].name().clone();
    let mut lie = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
    lie.queries = question.queries.clone();
    lie.add_answer(Record::from_rdata(name, 3000, RData::A(rdata::A(LIE))));
    let mut of_another_id = lie.clone();
    of_another_id.metadata.id = question.metadata.id.wrapping_add(1);
    let mut of_another_question = lie.clone();
    of_another_question.queries[0].set_name(victim());
    let mut a_question = lie.clone();
    a_question.metadata.message_type = MessageType::Query;
    [(true, of_another_id), (true, of_another_question), (true, a_question), (false, lie)]
}

fn victim() -> Name {
    Name::from_ascii("victim.example.").unwrap_or_default()
}

/// Adds what the question was not about, in every section.
fn poison(answer: &mut Message) {
    let web = Name::from_ascii("web.").unwrap_or_default();
    for name in [victim(), web] {
        let record = Record::from_rdata(name.clone(), 3000, RData::A(rdata::A(LIE)));
        answer.answers.insert(0, record.clone());
        answer.add_additional(record);
        answer.add_authority(Record::from_rdata(Name::root(), 3000, RData::NS(rdata::NS(name))));
    }
}
