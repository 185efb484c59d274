//! The supervisor's socket: a server's side and a client's.

use std::{
    fs,
    io::{self, BufRead, BufReader, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::Duration,
};

use super::{
    RuntimeError,
    error::Doing,
    names::LabName,
    protocol::{LabStatus, Reply, Request},
};
use crate::swarm::Changes;

/// The longest that the supervisor can be busy with one thing, such as twenty new tasks on an emulated machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// A request, and where its replies go. Dropping the sender ends the conversation.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) request: Request,
    pub(crate) replies: Sender<Reply>,
}

/// Answers on the lab's socket from now on; each request goes through `deliver`.
pub(crate) fn serve(lab: &LabName, deliver: impl Fn(Call) + Send + Clone + 'static) -> Result<(), RuntimeError> {
    let path = lab.socket();
    let listener = UnixListener::bind(&path).doing(|| format!("listening on {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).doing(|| format!("protecting {}", path.display()))?;
    let accept = move || {
        for stream in listener.incoming().flatten() {
            let deliver = deliver.clone();
            let answer = move || {
                if let Err(error) = converse(&stream, deliver) {
                    tracing::debug!("control connection: {error}");
                }
            };
            if let Err(error) = thread::Builder::new().name("control".to_owned()).spawn(answer) {
                tracing::warn!("control connection: {error}");
            }
        }
    };
    thread::Builder::new().name("accept".to_owned()).spawn(accept).doing(|| "starting a thread".to_owned())?;
    Ok(())
}

fn converse(stream: &UnixStream, deliver: impl Fn(Call)) -> io::Result<()> {
    let mut out = stream;
    for line in BufReader::new(stream).lines() {
        let (replies, received): (Sender<Reply>, Receiver<Reply>) = channel();
        match serde_json::from_str(&line?) {
            Ok(request) => deliver(Call { request, replies }),
            // The channel cannot be closed: its other end is here.
            Err(error) => drop(replies.send(Reply::Failed(format!("not understood: {error}")))),
        }
        for reply in received {
            let mut text = serde_json::to_vec(&reply)?;
            text.push(b'\n');
            out.write_all(&text)?;
        }
    }
    Ok(())
}

/// A connection to the supervisor.
#[derive(Debug)]
pub(crate) struct Control {
    lab: LabName,
    stream: BufReader<UnixStream>,
}

impl Control {
    pub(crate) fn connect(lab: &LabName) -> Result<Self, RuntimeError> {
        match UnixStream::connect(lab.socket()) {
            Ok(stream) => {
                let control = Self { lab: lab.clone(), stream: BufReader::new(stream) };
                control.set_patience(PATIENCE)?;
                Ok(control)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(RuntimeError::NoLab(lab.to_string())),
            Err(error) => Err(RuntimeError::Supervisor { lab: lab.to_string(), error }),
        }
    }

    /// How long to wait for each reply.
    pub(crate) fn set_patience(&self, patience: Duration) -> Result<(), RuntimeError> {
        let stream = self.stream.get_ref();
        stream.set_read_timeout(Some(patience)).map_err(|error| RuntimeError::Supervisor { lab: self.lab.to_string(), error })
    }

    /// Sends a request and returns the last reply; `progress` hears what comes before.
    pub(crate) fn call(&mut self, request: &Request, mut progress: impl FnMut(&str)) -> Result<Reply, RuntimeError> {
        let broken = |error: io::Error| RuntimeError::Supervisor { lab: self.lab.to_string(), error };
        let mut text = serde_json::to_vec(request).map_err(|e| broken(e.into()))?;
        text.push(b'\n');
        self.stream.get_mut().write_all(&text).map_err(broken)?;
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line).map_err(broken)? == 0 {
                return Err(broken(io::ErrorKind::UnexpectedEof.into()));
            }
            match serde_json::from_str(&line).map_err(|e| broken(e.into()))? {
                Reply::Progress(text) => progress(&text),
                Reply::Failed(message) => return Err(RuntimeError::Refused(message)),
                reply => return Ok(reply),
            }
        }
    }

    pub(crate) fn status(&mut self) -> Result<LabStatus, RuntimeError> {
        match self.call(&Request::Status, |_| {})? {
            Reply::Status(status) => Ok(*status),
            _ => Err(self.confused()),
        }
    }

    pub(crate) fn changes(&mut self, request: &Request) -> Result<Changes, RuntimeError> {
        match self.call(request, |_| {})? {
            Reply::Changes(changes) => Ok(changes),
            _ => Err(self.confused()),
        }
    }

    /// For requests that are answered with a sentence.
    pub(crate) fn done(&mut self, request: &Request, progress: impl FnMut(&str)) -> Result<String, RuntimeError> {
        match self.call(request, progress)? {
            Reply::Done(text) => Ok(text),
            _ => Err(self.confused()),
        }
    }

    fn confused(&self) -> RuntimeError {
        RuntimeError::Supervisor { lab: self.lab.to_string(), error: io::Error::other("an answer to another question") }
    }
}
