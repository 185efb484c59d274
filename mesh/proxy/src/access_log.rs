//! One line of JSON for each request, or for one of so many.
//!
//! A worker writes a line where the request ends, and hands what it has written to the one thread that knows the file, some twenty times
//! a second. It never waits: what that thread cannot take is counted and gone.

mod line;

use std::{
    cell::{Cell, RefCell},
    fs::{File, OpenOptions},
    io::{self, Write},
    num::NonZeroU32,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::PathBuf,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use http::{HeaderValue, Method, Version, request::Parts, uri::Authority, uri::PathAndQuery};
use swarmesh_router::model::Upstream;
use tokio::{sync::Notify, time::sleep};

pub(crate) use self::line::rfc3339;
use self::line::{Line, Second};
use crate::{
    http::{body::Account, request::Client},
    metrics::{add, read},
};

/// What is logged of requests, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLog {
    pub to: LogTarget,
    /// One of so many requests. Answers from 500 on are logged always.
    pub sample: NonZeroU32,
    /// In the order in which they are written.
    pub fields: Vec<Field>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    Stdout,
    /// Opened again once it has been renamed or removed.
    File(PathBuf),
}

macro_rules! fields {
    ($($(#[$about:meta])* $field:ident $name:literal,)*) => {
        /// Something that is said of a request. What there is none of is left out of its line.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Field { $($(#[$about])* $field,)* }

        impl Field {
            pub const ALL: &[Self] = &[$(Self::$field,)*];

            pub const fn name(self) -> &'static str {
                match self { $(Self::$field => $name,)* }
            }

            /// As a line has it before the value.
            const fn key(self) -> &'static [u8] {
                match self { $(Self::$field => concat!("\"", $name, "\":").as_bytes(),)* }
            }
        }
    };
}

fields! {
    /// When it came.
    Time "time",
    Node "node",
    /// The address of who asks.
    Client "client",
    /// `HTTP/1.1`, `HTTP/2.0`; `tls` and `tcp` for what is passed on unread.
    Protocol "protocol",
    /// The version, where TLS ends here.
    Tls "tls",
    Sni "sni",
    Method "method",
    Host "host",
    /// Without its query.
    Path "path",
    /// Not among the usual ones: queries carry secrets.
    Query "query",
    /// None if the client did not wait for it.
    Status "status",
    DurationMs "duration_ms",
    /// The backend's address.
    Upstream "upstream",
    Task "task",
    /// The service, or container, whose route it is.
    Service "service",
    /// The label that asked for the route.
    Route "route",
    /// Bytes of the request's body, or of a tunnel.
    Received "received",
    Sent "sent",
    RequestId "request_id",
    /// Who passed by a password.
    User "user",
    Retries "retries",
    /// Why the answer is our own, or is none.
    Reason "reason",
}

impl Field {
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|field| field.name() == name)
    }

    /// All but the query.
    pub fn usual() -> Vec<Self> {
        Self::ALL.iter().copied().filter(|field| *field != Self::Query).collect()
    }
}

/// What became of lines.
#[derive(Debug, Default)]
pub struct LogCounts {
    written: AtomicU64,
    lost: AtomicU64,
    has_told: AtomicBool,
}

impl LogCounts {
    pub fn written(&self) -> u64 {
        read(&self.written)
    }

    /// Lines that came faster than they could be written, or could not be written at all.
    pub fn lost(&self) -> u64 {
        read(&self.lost)
    }

    fn lose(&self, lines: u64) {
        add(&self.lost, lines);
        if !self.has_told.swap(true, Ordering::Relaxed) {
            tracing::warn!("lines of the access log are lost; how many, the metric swarmesh_access_log_lost tells from now on");
        }
    }
}

/// Batches that may wait to be written.
const QUEUE: usize = 64;
/// A batch is handed over when it has so many bytes,
const BATCH: usize = 32 * 1024;
/// and after this time at the latest. Waking the writer for each line would cost more than the line.
const DELAY: Duration = Duration::from_millis(50);
/// How often the writer looks whether its file is still in its place.
const LOOK: Duration = Duration::from_secs(1);

/// Whole lines of one worker.
#[derive(Debug, Default)]
struct Batch {
    bytes: Vec<u8>,
    lines: u64,
}

/// The way to the file, for workers.
#[derive(Clone, Debug)]
pub(crate) struct Lines {
    how: Arc<AccessLog>,
    node: Arc<str>,
    to: SyncSender<Batch>,
    counts: Arc<LogCounts>,
}

/// Opens the file, so that a mistake is told at the start. The thread ends when all `Lines` are gone and written.
pub(crate) fn start(how: &AccessLog, node: &str, counts: Arc<LogCounts>) -> io::Result<(Lines, JoinHandle<()>)> {
    let mut sink = match &how.to {
        LogTarget::Stdout => Sink::Stdout,
        LogTarget::File(path) => Sink::File { path: path.clone(), open: None },
    };
    sink.open()?;
    let (to, batches) = sync_channel(QUEUE);
    let writers = Arc::clone(&counts);
    let thread = thread::Builder::new().name("access-log".to_owned()).spawn(move || write_batches(&batches, sink, &writers))?;
    Ok((Lines { how: Arc::new(how.clone()), node: node.into(), to, counts }, thread))
}

#[derive(Debug)]
enum Sink {
    Stdout,
    File { path: PathBuf, open: Option<File> },
}

impl Sink {
    /// Whoever rotates logs renames the file, and expects another one in its place.
    fn open(&mut self) -> io::Result<()> {
        let Self::File { path, open } = self else { return Ok(()) };
        if let Some(file) = open {
            let (ours, there) = (file.metadata()?, std::fs::metadata(&*path));
            if there.is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
                return Ok(());
            }
        }
        *open = Some(OpenOptions::new().append(true).create(true).mode(0o640).open(path)?);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(bytes)?;
                out.flush()
            }
            Self::File { open: Some(file), .. } => file.write_all(bytes),
            Self::File { open: None, .. } => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

fn write_batches(batches: &Receiver<Batch>, mut sink: Sink, counts: &LogCounts) {
    let mut looked = Instant::now();
    let mut has_failed = false;
    while let Ok(batch) = batches.recv() {
        let mut write = || {
            if has_failed || looked.elapsed() >= LOOK {
                looked = Instant::now();
                sink.open()?;
            }
            if has_failed {
                // Half a line may be there already.
                sink.write(b"\n")?;
            }
            sink.write(&batch.bytes)
        };
        match write() {
            Ok(()) => {
                add(&counts.written, batch.lines);
                has_failed = false;
            }
            Err(error) => {
                if !has_failed {
                    tracing::warn!(%error, "the access log cannot be written");
                }
                counts.lose(batch.lines);
                has_failed = true;
            }
        }
    }
}

/// One worker's.
#[derive(Debug)]
pub(crate) struct WorkerLog {
    lines: Lines,
    turn: Cell<u32>,
    batch: RefCell<Batch>,
    /// There is a first line in a batch.
    begun: Notify,
    second: RefCell<Second>,
}

/// What a client asked for, before any filter was at it. Copies are references.
#[derive(Debug)]
pub(crate) struct Wish {
    pub(crate) method: Method,
    pub(crate) version: Version,
    /// Unknown of a request that is none.
    pub(crate) place: Option<(Authority, PathAndQuery)>,
}

impl Wish {
    pub(crate) fn new(parts: &Parts, place: Option<(&Authority, &PathAndQuery)>) -> Self {
        let place = place.map(|(host, target)| (host.clone(), target.clone()));
        Self { method: parts.method.clone(), version: parts.version, place }
    }
}

/// A line to be.
#[derive(Debug)]
pub(crate) struct Entry {
    log: Rc<WorkerLog>,
    /// Without a port.
    client: HeaderValue,
    tls: Option<&'static str>,
    protocol: &'static str,
    asked: Option<Wish>,
    pub(crate) sni: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) request_id: String,
    pub(crate) retries: u32,
    pub(crate) reason: Option<&'static str>,
}

impl WorkerLog {
    pub(crate) fn new(lines: Lines) -> Self {
        Self { lines, turn: Cell::new(0), batch: RefCell::default(), begun: Notify::new(), second: RefCell::default() }
    }

    /// Hands over what was not handed over because there was too little of it. Does not end.
    pub(crate) async fn hands_over(self: Rc<Self>) {
        loop {
            self.begun.notified().await;
            sleep(DELAY).await;
            self.hand_over();
        }
    }

    fn hand_over(&self) {
        let mut batch = self.batch.borrow_mut();
        if batch.lines == 0 {
            return;
        }
        // The next one will be about as long.
        let next = Batch { bytes: Vec::with_capacity(batch.bytes.len()), lines: 0 };
        let lines = batch.lines;
        if self.lines.to.try_send(std::mem::replace(&mut batch, next)).is_err() {
            self.lines.counts.lose(lines);
        }
    }

    pub(crate) fn wants(&self, field: Field) -> bool {
        self.lines.how.fields.contains(&field)
    }

    /// Whether the next request is logged, however it ends.
    pub(crate) fn samples(&self) -> bool {
        let turn = self.turn.get();
        self.turn.set((turn + 1) % self.lines.how.sample);
        turn == 0
    }

    pub(crate) fn request(self: &Rc<Self>, client: &Client, asked: Wish) -> Box<Entry> {
        let protocol = match asked.version {
            Version::HTTP_10 => "HTTP/1.0",
            Version::HTTP_2 => "HTTP/2.0",
            _ => "HTTP/1.1",
        };
        let mut entry = self.connection(client, protocol);
        entry.asked = Some(asked);
        entry
    }

    /// Of one that is passed on.
    pub(crate) fn connection(self: &Rc<Self>, client: &Client, protocol: &'static str) -> Box<Entry> {
        Box::new(Entry {
            log: Rc::clone(self),
            client: client.address_text(),
            tls: client.tls.as_ref().map(|tls| tls.version).filter(|version| !version.is_empty()),
            protocol,
            asked: None,
            sni: client.tls.as_ref().and_then(|tls| tls.sni.clone()),
            user: None,
            request_id: String::new(),
            retries: 0,
            reason: None,
        })
    }
}

impl Entry {
    /// Writes the line. Called once, where the request ends.
    pub(crate) fn end(&self, account: &Account) {
        let log = &self.log;
        let mut batch = log.batch.borrow_mut();
        self.write(account, &log.lines.how.fields, &mut batch.bytes);
        batch.lines += 1;
        let (lines, length) = (batch.lines, batch.bytes.len());
        drop(batch);
        if length >= BATCH {
            log.hand_over();
        } else if lines == 1 {
            log.begun.notify_one();
        }
    }

    fn write(&self, account: &Account, fields: &[Field], out: &mut Vec<u8>) {
        let took = account.begun.elapsed();
        let names = account.lane.as_ref().map(|lane| &lane.names);
        let endpoint = account.busy.as_ref().map(|busy| busy.endpoint());
        let place = self.asked.as_ref().and_then(|asked| asked.place.as_ref());
        let mut line = Line::begin(out);
        for field in fields.iter().copied() {
            match field {
                Field::Time => {
                    let came = SystemTime::now().checked_sub(took).unwrap_or(UNIX_EPOCH);
                    line.time(field, came, &mut self.log.second.borrow_mut());
                }
                Field::Node => line.text(field, &self.log.lines.node),
                Field::Client => line.text(field, self.client.to_str().unwrap_or_default()),
                Field::Protocol => line.text(field, self.protocol),
                Field::Tls => line.text(field, self.tls.unwrap_or_default()),
                Field::Sni => line.text(field, self.sni.as_deref().unwrap_or_default()),
                Field::Method => line.text(field, self.asked.as_ref().map_or("", |asked| asked.method.as_str())),
                Field::Host => line.text(field, place.map_or("", |(host, _)| host.as_str())),
                Field::Path => line.text(field, place.map_or("", |(_, target)| target.path())),
                Field::Query => line.text(field, place.and_then(|(_, target)| target.query()).unwrap_or_default()),
                Field::Status if account.status != 0 => line.number(field, account.status.into()),
                Field::Status => {}
                Field::DurationMs => line.milliseconds(field, took),
                Field::Upstream => line.text(field, endpoint.map_or("", |endpoint| &endpoint.address)),
                Field::Task => {
                    if let Some(Upstream::Task { task, .. }) = endpoint.map(|endpoint| &endpoint.upstream) {
                        line.text(field, task.as_str());
                    }
                }
                Field::Service => line.text(field, names.map_or("", |names| names.service())),
                Field::Route => line.text(field, names.map_or("", |names| names.label())),
                Field::Received => line.number(field, account.upload.received.get()),
                Field::Sent => line.number(field, account.sent),
                Field::RequestId => line.text(field, &self.request_id),
                Field::User => line.text(field, self.user.as_deref().unwrap_or_default()),
                Field::Retries => line.number(field, self.retries.into()),
                Field::Reason => line.text(field, self.reason.unwrap_or_default()),
            }
        }
        line.end();
    }
}

impl Drop for WorkerLog {
    fn drop(&mut self) {
        self.hand_over();
    }
}

#[cfg(test)]
mod tests;
