//! The way of queries on a real kernel: ours answer first, the resolver that was there answers when ours end, and a client's own
//! socket does not notice.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    process::{Child, Command},
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, unshare};
use swarmesh_dataplane::{PlaneError, Redirect, ResolverSockets};
use swarmesh_kernel::{LinuxKernel, Netns};

/// A namespace in which something like Docker's resolver answers "docker".
struct Sandbox {
    path: PathBuf,
    ns: Netns,
    holder: Child,
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

impl Sandbox {
    fn new() -> Self {
        let holder = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
            let (udp, tcp) = (UdpSocket::bind("127.0.0.11:0").unwrap(), TcpListener::bind("127.0.0.11:0").unwrap());
            for (protocol, port) in [("udp", udp.local_addr().unwrap().port()), ("tcp", tcp.local_addr().unwrap().port())] {
                let rule = format!("-t nat -A OUTPUT -d 127.0.0.11 -p {protocol} --dport 53 -j DNAT --to-destination 127.0.0.11:{port}");
                assert!(Command::new("iptables").args(rule.split(' ')).status().unwrap().success());
            }
            answer_udp(udp, "docker");
            answer_tcp(tcp, "docker");
            Command::new("sleep").arg("120").spawn().unwrap()
        })
        .join()
        .unwrap();
        let path = PathBuf::from(format!("/proc/{}/ns/net", holder.id()));
        Self { ns: Netns::open(&path).unwrap(), path, holder }
    }

    fn udp_client(&self) -> UdpSocket {
        let socket = self.ns.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        socket.connect("127.0.0.11:53").unwrap();
        socket
    }

    fn ask_tcp(&self) -> String {
        let mut stream = self.ns.enter(|| TcpStream::connect("127.0.0.11:53")).unwrap().unwrap();
        stream.write_all(b"question").unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        said
    }
}

fn ask(socket: &UdpSocket) -> String {
    socket.send(b"question").unwrap();
    let mut room = [0; 64];
    let len = socket.recv(&mut room).unwrap();
    String::from_utf8(room[..len].to_vec()).unwrap()
}

fn answer_udp(socket: UdpSocket, word: &'static str) {
    socket.set_nonblocking(false).unwrap();
    thread::spawn(move || {
        let mut room = [0; 64];
        while let Ok((_, client)) = socket.recv_from(&mut room) {
            if socket.send_to(word.as_bytes(), client).is_err() {
                return;
            }
        }
    });
}

fn answer_tcp(listener: TcpListener, word: &'static str) {
    listener.set_nonblocking(false).unwrap();
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut room = [0; 8];
            let _ = stream.read_exact(&mut room);
            let _ = stream.write_all(word.as_bytes());
        }
    });
}

fn serve(sockets: ResolverSockets, word: &'static str) {
    answer_udp(sockets.udp, word);
    answer_tcp(sockets.tcp, word);
}

#[test]
fn ours_answer_first_and_what_was_there_answers_afterwards() {
    let sandbox = Sandbox::new();
    let client = sandbox.udp_client();
    assert_eq!((ask(&client), sandbox.ask_tcp()), ("docker".to_owned(), "docker".to_owned()));

    let (mut redirect, sockets) = Redirect::open(&LinuxKernel, &sandbox.path).unwrap();
    serve(sockets, "ours");
    assert_eq!((ask(&sandbox.udp_client()), sandbox.ask_tcp()), ("ours".to_owned(), "ours".to_owned()));
    assert_eq!(ask(&client), "ours", "a socket that asked Docker before");

    // A second agent has to wait for the first.
    assert!(matches!(Redirect::open(&LinuxKernel, &sandbox.path), Err(PlaneError::ResolverTaken)));

    let ours = sandbox.udp_client();
    assert_eq!(ask(&ours), "ours");
    redirect.take_no_more().unwrap();
    assert_eq!((ask(&ours), sandbox.ask_tcp()), ("docker".to_owned(), "docker".to_owned()), "the very next question");
    drop(redirect);
    assert_eq!(ask(&ours), "docker");
    Redirect::open(&LinuxKernel, &sandbox.path).unwrap();
}

#[test]
fn an_answer_on_its_way_arrives_though_no_more_are_taken() {
    let sandbox = Sandbox::new();
    let (mut redirect, sockets) = Redirect::open(&LinuxKernel, &sandbox.path).unwrap();
    let client = sandbox.udp_client();
    client.send(b"slow question").unwrap();
    redirect.take_no_more().unwrap();
    let mut room = [0; 64];
    sockets.udp.set_nonblocking(false).unwrap();
    let (_, from) = sockets.udp.recv_from(&mut room).unwrap();
    sockets.udp.send_to(b"ours", from).unwrap();
    let len = client.recv(&mut room).unwrap();
    assert_eq!(&room[..len], b"ours");
}

#[test]
fn port_53_stays_the_containers_own() {
    let sandbox = Sandbox::new();
    let (_redirect, sockets) = Redirect::open(&LinuxKernel, &sandbox.path).unwrap();
    serve(sockets, "ours");
    let own = sandbox.ns.enter(|| UdpSocket::bind("0.0.0.0:53")).unwrap().unwrap();
    answer_udp(own, "own");
    let client = sandbox.ns.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    client.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    client.connect("127.0.0.1:53").unwrap();
    assert_eq!(ask(&client), "own");
    assert_eq!(ask(&sandbox.udp_client()), "ours");
}
