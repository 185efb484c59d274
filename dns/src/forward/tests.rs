//! The forwarder against servers that are real, on loopback, and of every kind of bad manners.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener},
    sync::atomic::AtomicUsize,
    time::Duration,
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query as HickoryQuery, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata},
    serialize::binary::BinEncodable,
};
use tokio::task::LocalSet;

use super::*;

struct Plain;

impl Sockets for Plain {
    fn udp(&self, _: &Origin, server: SocketAddr) -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_nonblocking(true)?;
        socket.connect(server)?;
        Ok(socket)
    }

    fn tcp(&self, _: &Origin, server: SocketAddr) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(server)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }
}

/// A server by datagrams, and how often it was asked. It ends with the test's process.
struct Server {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
}

/// What it says to a question: datagrams, sent in order.
fn server(behave: impl Fn(&Message) -> Vec<Vec<u8>> + Send + 'static) -> Server {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        let mut room = [0; 4096];
        while let Ok((len, client)) = socket.recv_from(&mut room) {
            count.fetch_add(1, Relaxed);
            for answer in behave(&Message::from_vec(&room[..len]).unwrap()) {
                socket.send_to(&answer, client).unwrap();
            }
        }
    });
    Server { address, asked }
}

impl Server {
    fn asked(&self) -> usize {
        self.asked.load(Relaxed)
    }
}

fn reply(question: &Message, code: ResponseCode) -> Message {
    let mut message = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
    message.metadata.response_code = code;
    message.metadata.recursion_available = true;
    message.queries = question.queries.clone();
    message
}

fn with_address(question: &Message, ttl: u32, host: u8) -> Message {
    let mut message = reply(question, ResponseCode::NoError);
    let name = question.queries[0].name().clone();
    message.add_answer(Record::from_rdata(name, ttl, RData::A(rdata::A(Ipv4Addr::new(192, 0, 2, host)))));
    message
}

fn bytes(message: &Message) -> Vec<u8> {
    message.to_bytes().unwrap()
}

fn good(ttl: u32, host: u8) -> Server {
    server(move |question| vec![bytes(&with_address(question, ttl, host))])
}

fn failing(code: ResponseCode) -> Server {
    server(move |question| vec![bytes(&reply(question, code))])
}

fn silent() -> Server {
    server(|_| Vec::new())
}

fn asking(name: &str) -> Vec<u8> {
    let mut message = Message::new(0x4242, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(HickoryQuery::query(Name::from_ascii(name).unwrap(), RecordType::A));
    bytes(&message)
}

fn route(asker: u64, servers: &[SocketAddr]) -> Route {
    Route { asker, upstreams: servers.iter().map(|server| Upstream { server: *server, origin: Origin::Host }).collect(), inner: None }
}

/// A route past an engine's own resolver.
fn inner(engine: &Server, upstream: &Server, keeps_single_labels: bool) -> Route {
    let engine = Upstream { server: engine.address, origin: Origin::Engine("box".into()) };
    let route = route(1, &[upstream.address]);
    let both = std::iter::once(engine.clone()).chain(route.upstreams.iter().cloned()).collect();
    Route { inner: Some(Inner { engine: [engine].into(), both, networks: ["front".into()].into(), keeps_single_labels }), ..route }
}

async fn ask_by(forwarder: &Rc<Forwarder>, name: &str, route: &Route) -> Message {
    let bytes = asking(name);
    Message::from_vec(&forwarder.resolve(&Query::parse(&bytes).unwrap(), route).await).unwrap()
}

fn forwarder(limits: Limits) -> Rc<Forwarder> {
    Rc::new(Forwarder::new(Arc::new(Plain), limits, Arc::default(), Arc::default()))
}

async fn ask(forwarder: &Rc<Forwarder>, name: &str, servers: &[&Server]) -> Message {
    let servers: Vec<SocketAddr> = servers.iter().map(|s| s.address).collect();
    let bytes = asking(name);
    let answer = forwarder.resolve(&Query::parse(&bytes).unwrap(), &route(1, &servers)).await;
    let message = Message::from_vec(&answer).unwrap();
    assert_eq!(message.metadata.id, 0x4242);
    message
}

fn host(message: &Message) -> Option<String> {
    Some(message.answers.first()?.data.to_string())
}

/// A port that is free for UDP may be taken for TCP, and the other way round.
fn by_both() -> (UdpSocket, TcpListener) {
    let pair = || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        UdpSocket::bind(listener.local_addr().unwrap()).map(|socket| (socket, listener)).ok()
    };
    std::iter::repeat_with(pair).take(100).flatten().next().unwrap()
}

fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

#[test]
fn e5_a_missing_name_is_final_and_comes_with_its_soa() {
    run(async {
        let first = server(|question| {
            let mut message = reply(question, ResponseCode::NXDomain);
            let soa = rdata::SOA::new(Name::root(), Name::root(), 1, 1, 1, 1, 60);
            message.add_authority(Record::from_rdata(Name::root(), 60, RData::SOA(soa)));
            vec![bytes(&message)]
        });
        let second = good(60, 2);
        let forwarder = forwarder(Limits::default());
        for _ in 0..2 {
            let answer = ask(&forwarder, "missing.example.", &[&first, &second]).await;
            assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
            assert_eq!(answer.authorities.len(), 1);
        }
        assert_eq!((first.asked(), second.asked()), (1, 0), "the second time from the cache");
    });
}

#[test]
fn e6_servfail_and_refused_move_on_at_once() {
    for code in [ResponseCode::ServFail, ResponseCode::Refused, ResponseCode::NotImp] {
        run(async {
            let (first, second) = (failing(code), good(60, 2));
            let start = Instant::now();
            let answer = ask(&forwarder(Limits::default()), "a.example.", &[&first, &second]).await;
            assert_eq!(host(&answer).as_deref(), Some("192.0.2.2"));
            assert_eq!((first.asked(), second.asked()), (1, 1), "{code}");
            assert!(start.elapsed() < Duration::from_millis(100), "{code}");
        });
    }
}

#[test]
fn e7_nobody_to_ask_and_nobody_who_knows_is_a_failure_and_not_silence() {
    run(async {
        let forwarder = forwarder(Limits::default());
        assert_eq!(ask(&forwarder, "a.example.", &[]).await.metadata.response_code, ResponseCode::ServFail);
        let (first, second) = (failing(ResponseCode::ServFail), failing(ResponseCode::Refused));
        assert_eq!(ask(&forwarder, "a.example.", &[&first, &second]).await.metadata.response_code, ResponseCode::ServFail);
        // Nobody listens there at all.
        let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let bytes = asking("a.example.");
        let start = Instant::now();
        let answer = forwarder.resolve(&Query::parse(&bytes).unwrap(), &route(1, &[closed])).await;
        assert_eq!(Message::from_vec(&answer).unwrap().metadata.response_code, ResponseCode::ServFail);
        assert!(start.elapsed() < Duration::from_secs(1));
    });
}

#[test]
fn e8_a_large_datagram_that_nobody_asked_for_is_taken() {
    run(async {
        let large = server(|question| {
            let mut message = with_address(question, 60, 1);
            for host in 2..=80 {
                message.add_answer(with_address(question, 60, host).answers[0].clone());
            }
            vec![bytes(&message)]
        });
        assert_eq!(ask(&forwarder(Limits::default()), "a.example.", &[&large]).await.answers.len(), 80);
    });
}

#[test]
fn e13_a_dead_first_server_costs_little_at_first_and_then_nothing() {
    run(async {
        let (first, second) = (silent(), good(0, 2));
        let forwarder = forwarder(Limits::default());
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(1300) {
            let asked = Instant::now();
            let name = format!("n{}.example.", start.elapsed().as_micros());
            assert_eq!(host(&ask(&forwarder, &name, &[&first, &second]).await).as_deref(), Some("192.0.2.2"));
            assert!(asked.elapsed() < Duration::from_millis(400), "{:?}", asked.elapsed());
        }
        let before = first.asked();
        let mut times: Vec<Duration> = Vec::new();
        for number in 0..200 {
            let asked = Instant::now();
            ask(&forwarder, &format!("m{number}.example."), &[&first, &second]).await;
            times.push(asked.elapsed());
        }
        times.sort();
        assert!(times[197] < Duration::from_millis(100), "{:?}", times[197]);
        assert!(first.asked() - before < 5, "it is hardly asked any more");
    });
}

#[test]
fn a_first_server_that_comes_back_is_asked_first_again() {
    run(async {
        let lives = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let switch = Arc::clone(&lives);
        let first = server(move |question| if switch.load(Relaxed) { vec![bytes(&with_address(question, 0, 1))] } else { Vec::new() });
        let second = good(0, 2);
        let forwarder = forwarder(Limits::default());
        ask(&forwarder, "a.example.", &[&first, &second]).await;
        tokio::time::sleep(Duration::from_millis(1000)).await;
        lives.store(true, Relaxed);
        let mut answers = Vec::new();
        for number in 0..30 {
            answers.push(host(&ask(&forwarder, &format!("n{number}.example."), &[&first, &second]).await).unwrap());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(answers.last().map(String::as_str), Some("192.0.2.1"), "{answers:?}");
    });
}

#[test]
fn it_is_known_whose_answer_counted_and_why() {
    run(async {
        let (dead, broken, second) = (silent(), failing(ResponseCode::ServFail), good(0, 2));
        let forwarder = forwarder(Limits::default());
        let of = |server: &Server| Upstream { server: server.address, origin: Origin::Host };
        let why = |server: &Server| forwarder.health.conduct(&of(server)).chosen.map(|(_, why)| why);
        ask(&forwarder, "a.example.", &[&second, &dead]).await;
        assert_eq!(why(&second), Some(Choice::First));
        ask(&forwarder, "b.example.", &[&broken, &second]).await;
        assert_eq!(why(&second), Some(Choice::OthersFailed));
        // What it says is an answer, if of no use: nobody has to wait for it.
        let conduct = forwarder.health.conduct(&of(&broken));
        assert_eq!((conduct.answers, conduct.failures, conduct.chosen, conduct.rests_until), (1, 0, None, None));
        ask(&forwarder, "c.example.", &[&dead, &second]).await;
        assert_eq!(why(&second), Some(Choice::Faster));
        let mut number = 0;
        while why(&second) != Some(Choice::OthersRest) {
            assert!(number < 200, "{:?}", forwarder.health.conduct(&of(&dead)));
            tokio::time::sleep(Duration::from_millis(50)).await;
            ask(&forwarder, &format!("d{number}.example."), &[&dead, &second]).await;
            number += 1;
        }
        let conduct = forwarder.health.conduct(&of(&dead));
        assert!(conduct.failures > 0 && conduct.answers == 0 && conduct.chosen.is_none(), "{conduct:?}");
        assert!(conduct.last_failure.is_some() && conduct.rests_until.is_some() && conduct.time.is_none(), "{conduct:?}");
    });
}

#[test]
fn a_slow_first_server_knows_better_that_a_name_exists() {
    run(async {
        let slow = server(|question| {
            std::thread::sleep(Duration::from_millis(400));
            vec![bytes(&with_address(question, 0, 1))]
        });
        let forwarder = forwarder(Limits::default());
        for number in 0..3 {
            let answer = ask(&forwarder, &format!("inside{number}.example."), &[&slow, &failing(ResponseCode::NXDomain)]).await;
            assert_eq!(host(&answer).as_deref(), Some("192.0.2.1"), "{number}");
        }
        // One that does not answer at all is not waited for to the end.
        let start = Instant::now();
        let answer = ask(&forwarder, "missing.example.", &[&silent(), &failing(ResponseCode::NXDomain)]).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        assert!(start.elapsed() < Duration::from_millis(1500), "{:?}", start.elapsed());
    });
}

#[test]
fn names_that_may_be_a_containers_are_asked_of_the_engine_first_and_not_kept_for_long() {
    run(async {
        let (engine, upstream) = (good(600, 1), good(600, 2));
        let (forwarder, route) = (forwarder(Limits::default()), inner(&engine, &upstream, false));
        for name in ["plain.", "plain.front.", "plain.FRONT.", "4.0.0.10.in-addr.arpa."] {
            let answer = ask_by(&forwarder, name, &route).await;
            assert_eq!((host(&answer).as_deref(), answer.answers[0].ttl), (Some("192.0.2.1"), 5), "{name}");
        }
        assert_eq!(upstream.asked(), 0);
        for name in ["example.org.", "front.", "afront.org."].into_iter().filter(|n| n.matches('.').count() > 1) {
            let answer = ask_by(&forwarder, name, &route).await;
            assert_eq!((host(&answer).as_deref(), answer.answers[0].ttl), (Some("192.0.2.2"), 600), "{name}");
        }
        // An engine that is stuck with its own servers costs a moment, and no more the tenth time than the first.
        let route = inner(&silent(), &upstream, false);
        for number in 0..10 {
            let start = Instant::now();
            assert_eq!(host(&ask_by(&forwarder, &format!("name{number}."), &route).await).as_deref(), Some("192.0.2.2"));
            assert!(start.elapsed() < Duration::from_millis(300), "{:?}", start.elapsed());
        }
    });
}

#[test]
fn e16_single_labels_stay_where_ndots_was_set() {
    run(async {
        let (engine, upstream) = (failing(ResponseCode::ServFail), good(60, 2));
        let (forwarder, route) = (forwarder(Limits::default()), inner(&engine, &upstream, true));
        let answer = ask_by(&forwarder, "typo.", &route).await;
        assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NoError, 0));
        assert_eq!((engine.asked(), upstream.asked()), (1, 0));
        assert_eq!(host(&ask_by(&forwarder, "example.org.", &route).await).as_deref(), Some("192.0.2.2"));
    });
}

#[test]
fn what_does_not_answer_the_question_is_not_believed() {
    run(async {
        let liar = server(|question| {
            let mut wrong_id = with_address(question, 60, 66);
            wrong_id.metadata.id = question.metadata.id.wrapping_add(1);
            let mut wrong_name = with_address(question, 60, 66);
            wrong_name.queries[0].set_name(Name::from_ascii("b.example.").unwrap());
            let mut a_query = with_address(question, 60, 66);
            a_query.metadata.message_type = MessageType::Query;
            let truth = bytes(&with_address(question, 60, 1));
            vec![bytes(&wrong_id), bytes(&wrong_name), bytes(&a_query), vec![1, 2, 3], truth[..truth.len() - 2].to_vec(), truth]
        });
        assert_eq!(host(&ask(&forwarder(Limits::default()), "a.example.", &[&liar]).await).as_deref(), Some("192.0.2.1"));
    });
}

#[test]
fn an_answer_from_another_address_is_not_believed() {
    run(async {
        let other = UdpSocket::bind("127.0.0.1:0").unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut room = [0; 512];
            while let Ok((len, client)) = socket.recv_from(&mut room) {
                let question = Message::from_vec(&room[..len]).unwrap();
                other.send_to(&bytes(&with_address(&question, 60, 66)), client).unwrap();
                std::thread::sleep(Duration::from_millis(30));
                socket.send_to(&bytes(&with_address(&question, 60, 1)), client).unwrap();
            }
        });
        let asked = asking("a.example.");
        let answer = forwarder(Limits::default()).resolve(&Query::parse(&asked).unwrap(), &route(1, &[address])).await;
        assert_eq!(host(&Message::from_vec(&answer).unwrap()).as_deref(), Some("192.0.2.1"));
    });
}

#[test]
fn a_truncated_answer_is_fetched_whole_by_tcp_and_kept() {
    run(async {
        let (socket, listener) = by_both();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut room = [0; 512];
            while let Ok((len, client)) = socket.recv_from(&mut room) {
                let mut message = reply(&Message::from_vec(&room[..len]).unwrap(), ResponseCode::NoError);
                message.metadata.truncation = true;
                socket.send_to(&bytes(&message), client).unwrap();
            }
        });
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut length = [0; 2];
                stream.read_exact(&mut length).unwrap();
                let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
                stream.read_exact(&mut question).unwrap();
                let question = Message::from_vec(&question).unwrap();
                let mut message = with_address(&question, 60, 1);
                for host in 2..=200 {
                    message.add_answer(with_address(&question, 60, host).answers[0].clone());
                }
                let answer = bytes(&message);
                stream.write_all(&(answer.len() as u16).to_be_bytes()).unwrap();
                stream.write_all(&answer).unwrap();
            }
        });
        let forwarder = forwarder(Limits::default());
        let asked = asking("a.example.");
        for _ in 0..2 {
            let answer = forwarder.resolve(&Query::parse(&asked).unwrap(), &route(1, &[address])).await;
            assert_eq!(Message::from_vec(&answer).unwrap().answers.len(), 200);
        }
        assert_eq!(forwarder.counters.by_tcp.load(Relaxed), 1);
    });
}

#[test]
fn who_wants_ad_and_who_does_not_are_two_in_the_cache() {
    run(async {
        // It validates, and says so to everybody, as some do.
        let server = server(|question| {
            let mut answer = with_address(question, 60, 1);
            answer.metadata.authentic_data = true;
            vec![bytes(&answer)]
        });
        let forwarder = forwarder(Limits::default());
        for (wants, asked_by_then) in [(false, 1), (true, 2), (false, 2), (true, 2)] {
            let mut asked = asking("a.example.");
            asked[3] |= if wants { 0x20 } else { 0 };
            let answer = forwarder.resolve(&Query::parse(&asked).unwrap(), &route(1, &[server.address])).await;
            let answer = Message::from_vec(&answer).unwrap();
            assert_eq!((answer.metadata.authentic_data, server.asked()), (wants, asked_by_then));
        }
    });
}

#[test]
fn equal_questions_are_asked_once_and_each_gets_its_answer() {
    run(async {
        let slow = server(|question| {
            std::thread::sleep(Duration::from_millis(50));
            vec![bytes(&with_address(question, 60, 1))]
        });
        let forwarder = forwarder(Limits::default());
        let tasks: Vec<_> = (0..50)
            .map(|_| {
                let (forwarder, address) = (Rc::clone(&forwarder), slow.address);
                tokio::task::spawn_local(async move {
                    let asked = asking("A.example.");
                    let answer = forwarder.resolve(&Query::parse(&asked).unwrap(), &route(1, &[address])).await;
                    host(&Message::from_vec(&answer).unwrap())
                })
            })
            .collect();
        for task in tasks {
            assert_eq!(task.await.unwrap().as_deref(), Some("192.0.2.1"));
        }
        assert_eq!(slow.asked(), 1);
        assert_eq!(forwarder.in_flight(), 0);
    });
}

#[test]
fn e26_too_many_questions_are_refused_at_once_and_one_asker_leaves_room_for_others() {
    run(async {
        let (dead, alive) = (silent(), good(60, 2));
        let forwarder = forwarder(Limits { of_one: 100, of_all: 150 });
        let stuck: Vec<_> = (0..100)
            .map(|number| {
                let (forwarder, address) = (Rc::clone(&forwarder), dead.address);
                tokio::task::spawn_local(async move {
                    let asked = asking(&format!("n{number}.example."));
                    forwarder.resolve(&Query::parse(&asked).unwrap(), &route(7, &[address])).await
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(forwarder.in_flight(), 100);
        let start = Instant::now();
        let asked = asking("one.more.");
        let answer = forwarder.resolve(&Query::parse(&asked).unwrap(), &route(7, &[alive.address])).await;
        assert_eq!(Message::from_vec(&answer).unwrap().metadata.response_code, ResponseCode::Refused);
        assert!(start.elapsed() < Duration::from_millis(50));
        assert_eq!(host(&ask(&forwarder, "other.example.", &[&alive]).await).as_deref(), Some("192.0.2.2"), "another asker");
        for task in stuck {
            let answer = task.await.unwrap();
            assert_eq!(Message::from_vec(&answer).unwrap().metadata.response_code, ResponseCode::ServFail);
        }
        assert!(start.elapsed() < Duration::from_secs(5), "before the client gives up");
        assert!(forwarder.by_asker.borrow().is_empty() && forwarder.asking.borrow().is_empty());
    });
}
