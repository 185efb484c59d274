//! An engine that says what a test wants it to: HTTP over a unix socket, well or badly.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::broadcast,
    task::JoinHandle,
};

/// How a path is answered.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    Json(String),
    Status(u16, &'static str),
    /// Promises more than it sends, then hangs up.
    Broken(String),
    /// Accepts the request, and says nothing more.
    Stall,
}

#[derive(Clone, Debug)]
enum Stream {
    Line(String),
    End,
}

/// Dropped, it is gone with its socket, as a stopped engine is.
#[derive(Debug)]
pub(super) struct FakeEngine {
    pub(super) socket: PathBuf,
    answers: Arc<Mutex<BTreeMap<String, Answer>>>,
    asked: Arc<Mutex<Vec<String>>>,
    events: broadcast::Sender<Stream>,
    server: JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl FakeEngine {
    /// A manager of an empty swarm.
    pub(super) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("docker.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let answers: Arc<Mutex<BTreeMap<String, Answer>>> = Arc::default();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (events, _) = broadcast::channel(64);
        let (serving, asking, stream) = (Arc::clone(&answers), Arc::clone(&asked), events.clone());
        let server = tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                // Subscribed before the answer's head goes out: what the test says after that arrives.
                tokio::spawn(serve(connection, Arc::clone(&serving), Arc::clone(&asking), stream.subscribe()));
            }
        });
        let engine = Self { socket, answers, asked, events, server, _directory: directory };
        engine.info("manager", true);
        for path in ["/networks", "/services", "/tasks", "/nodes", "/containers/json"] {
            engine.json(path, "[]");
        }
        engine
    }

    pub(super) fn answer(&self, path: &str, answer: Answer) {
        self.answers.lock().unwrap().insert(path.to_owned(), answer);
    }

    /// Back to how an engine answers of itself.
    pub(super) fn forget(&self, path: &str) {
        self.answers.lock().unwrap().remove(path);
    }

    pub(super) fn json(&self, path: &str, json: impl Into<String>) {
        self.answer(path, Answer::Json(json.into()));
    }

    pub(super) fn info(&self, node: &str, manager: bool) {
        let swarm =
            format!(r#"{{"Swarm":{{"NodeID":"{node}","LocalNodeState":"active","ControlAvailable":{manager},"RemoteManagers":null}}}}"#);
        self.json("/info", swarm);
    }

    pub(super) fn event(&self, json: &str) {
        self.events.send(Stream::Line(json.to_owned())).unwrap();
    }

    pub(super) fn end_events(&self) {
        // Nobody may be listening, which is as good.
        let _ = self.events.send(Stream::End);
    }

    pub(super) fn times_asked(&self, path: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|p| *p == path).count()
    }
}

impl Drop for FakeEngine {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(
    mut connection: UnixStream,
    answers: Arc<Mutex<BTreeMap<String, Answer>>>,
    asked: Arc<Mutex<Vec<String>>>,
    mut events: broadcast::Receiver<Stream>,
) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        match connection.read_u8().await {
            Ok(byte) => request.push(byte),
            Err(_) => return,
        }
    }
    let line = String::from_utf8(request).unwrap();
    let path = line.split(' ').nth(1).unwrap().split('?').next().unwrap().to_owned();
    let path = path.strip_prefix("/v1.41").unwrap_or(&path).to_owned();
    asked.lock().unwrap().push(path.clone());
    if path == "/_ping" && !answers.lock().unwrap().contains_key("/_ping") {
        let _ = connection.write_all(b"HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nContent-Length: 2\r\nConnection: close\r\n\r\nOK").await;
        return;
    }
    if path == "/events" && !answers.lock().unwrap().contains_key("/events") {
        connection.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
        while let Ok(Stream::Line(line)) = events.recv().await {
            let chunk = format!("{:x}\r\n{line}\n\r\n", line.len() + 1);
            if connection.write_all(chunk.as_bytes()).await.is_err() {
                return;
            }
        }
        let _ = connection.write_all(b"0\r\n\r\n").await;
        return;
    }
    let answer = answers.lock().unwrap().get(&path).cloned().unwrap_or(Answer::Status(404, "no such object"));
    let text = match answer {
        Answer::Json(body) => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()),
        Answer::Status(status, message) => {
            let body = format!("{{\"message\":\"{message}\"}}\n");
            format!("HTTP/1.1 {status} No\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
        }
        Answer::Broken(body) => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len() + 1000),
        Answer::Stall => std::future::pending().await,
    };
    let _ = connection.write_all(text.as_bytes()).await;
}
