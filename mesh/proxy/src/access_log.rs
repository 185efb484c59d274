//! One line of JSON for each request, or for one of so many.
//!
//! A worker writes a line where the request ends and hands it to the one thread that knows the file. It never waits: what that thread
//! cannot take is counted and gone.

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
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::{Method, Version, request::Parts, uri::Authority, uri::PathAndQuery};
use swarmesh_router::model::Upstream;

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

/// Lines that may wait to be written.
const QUEUE: usize = 4096;
/// So many bytes are written at once.
const BATCH: usize = 64 * 1024;
/// Longer texts are cut: what waits must not be large.
const LONGEST: usize = 2048;

/// The way to the file, for workers.
#[derive(Clone, Debug)]
pub(crate) struct Lines {
    how: Arc<AccessLog>,
    node: Arc<str>,
    to: SyncSender<Box<[u8]>>,
    counts: Arc<LogCounts>,
}

/// Opens the file, so that a mistake is told at the start. The thread ends when all `Lines` are gone and written.
pub(crate) fn start(how: &AccessLog, node: &str, counts: Arc<LogCounts>) -> io::Result<(Lines, JoinHandle<()>)> {
    let mut sink = match &how.to {
        LogTarget::Stdout => Sink::Stdout,
        LogTarget::File(path) => Sink::File { path: path.clone(), open: None },
    };
    sink.open()?;
    let (to, lines) = sync_channel(QUEUE);
    let writers = Arc::clone(&counts);
    let thread = thread::Builder::new().name("access-log".to_owned()).spawn(move || write_lines(&lines, sink, &writers))?;
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
        self.open()?;
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

fn write_lines(lines: &Receiver<Box<[u8]>>, mut sink: Sink, counts: &LogCounts) {
    let mut batch = Vec::new();
    let mut has_failed = false;
    while let Ok(first) = lines.recv() {
        batch.clear();
        if has_failed {
            // Half a line may be there already.
            batch.push(b'\n');
        }
        batch.extend_from_slice(&first);
        let mut count = 1;
        while batch.len() < BATCH
            && let Ok(next) = lines.try_recv()
        {
            batch.extend_from_slice(&next);
            count += 1;
        }
        match sink.write(&batch) {
            Ok(()) => {
                add(&counts.written, count);
                has_failed = false;
            }
            Err(error) => {
                if !has_failed {
                    tracing::warn!(%error, "the access log cannot be written");
                }
                counts.lose(count);
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
    scratch: RefCell<Vec<u8>>,
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
    client: std::net::SocketAddr,
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
        Self { lines, turn: Cell::new(0), scratch: RefCell::default() }
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
            client: client.address,
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
    /// Hands the line over. Called once, where the request ends.
    pub(crate) fn end(&self, account: &Account) {
        let lines = &self.log.lines;
        let mut out = self.log.scratch.borrow_mut();
        out.clear();
        self.write(account, &lines.how.fields, &mut out);
        if lines.to.try_send(out.as_slice().into()).is_err() {
            lines.counts.lose(1);
        }
    }

    fn write(&self, account: &Account, fields: &[Field], out: &mut Vec<u8>) {
        let took = account.begun.elapsed();
        let origin = account.lane.as_ref().map(|lane| &lane.route.origin);
        let upstream = account.busy.as_ref().map(|busy| &busy.endpoint().upstream);
        let place = self.asked.as_ref().and_then(|asked| asked.place.as_ref());
        let mut line = Line { out, is_empty: true };
        for field in fields.iter().copied() {
            match field {
                Field::Time => line.show(field, &rfc3339(SystemTime::now().checked_sub(took).unwrap_or(UNIX_EPOCH))),
                Field::Node => line.text(field, &self.log.lines.node),
                Field::Client => line.show(field, &self.client.ip()),
                Field::Protocol => line.text(field, self.protocol),
                Field::Tls => line.text(field, self.tls.unwrap_or_default()),
                Field::Sni => line.text(field, self.sni.as_deref().unwrap_or_default()),
                Field::Method => line.text(field, self.asked.as_ref().map_or("", |asked| asked.method.as_str())),
                Field::Host => line.text(field, place.map_or("", |(host, _)| host.as_str())),
                Field::Path => line.text(field, place.map_or("", |(_, target)| target.path())),
                Field::Query => line.text(field, place.and_then(|(_, target)| target.query()).unwrap_or_default()),
                Field::Status if account.status != 0 => line.number(field, &account.status),
                Field::Status => {}
                Field::DurationMs => line.number(field, &format_args!("{:.3}", took.as_secs_f64() * 1e3)),
                Field::Upstream => match upstream {
                    Some(
                        Upstream::Task { address, port, .. }
                        | Upstream::Vip { address, port, .. }
                        | Upstream::Published { address, port, .. },
                    ) => line.show(field, &std::net::SocketAddr::new(*address, *port)),
                    Some(Upstream::Host { name, port }) => line.text(field, &format!("{name}:{port}")),
                    None => {}
                },
                Field::Task => {
                    if let Some(Upstream::Task { task, .. }) = upstream {
                        line.text(field, task.as_str());
                    }
                }
                Field::Service => line.text(field, origin.map_or("", |origin| &origin.owner.name)),
                Field::Route => line.text(field, origin.map_or("", |origin| &origin.label)),
                Field::Received => line.number(field, &account.received.get()),
                Field::Sent => line.number(field, &account.sent),
                Field::RequestId => line.text(field, &self.request_id),
                Field::User => line.text(field, self.user.as_deref().unwrap_or_default()),
                Field::Retries => line.number(field, &self.retries),
                Field::Reason => line.text(field, self.reason.unwrap_or_default()),
            }
        }
        line.end();
    }
}

/// An object that is being written.
struct Line<'o> {
    out: &'o mut Vec<u8>,
    is_empty: bool,
}

impl Line<'_> {
    fn key(&mut self, field: Field) {
        self.out.push(if std::mem::take(&mut self.is_empty) { b'{' } else { b',' });
        // Writing to a Vec does not fail, here and below.
        let _ = write!(self.out, "\"{}\":", field.name());
    }

    fn number(&mut self, field: Field, value: &dyn std::fmt::Display) {
        self.key(field);
        let _ = write!(self.out, "{value}");
    }

    /// What needs no escaping.
    fn show(&mut self, field: Field, value: &dyn std::fmt::Display) {
        self.key(field);
        let _ = write!(self.out, "\"{value}\"");
    }

    /// Left out if it is empty.
    fn text(&mut self, field: Field, text: &str) {
        if text.is_empty() {
            return;
        }
        self.key(field);
        let short = &text[..text.floor_char_boundary(LONGEST)];
        // Escapes all that JSON wants escaped, ends of lines among it.
        let _ = serde_json::to_writer(&mut *self.out, short);
        if short.len() < text.len() {
            self.out.pop();
            self.out.extend_from_slice("…\"".as_bytes());
        }
    }

    fn end(self) {
        if self.is_empty {
            self.out.push(b'{');
        }
        self.out.extend_from_slice(b"}\n");
    }
}

/// In UTC, with milliseconds.
pub(crate) fn rfc3339(at: SystemTime) -> impl std::fmt::Display {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (seconds, millis) = (since.as_secs(), since.subsec_millis());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years are counted from March, in eras of 400, so that the odd day is a year's last.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, year) = (day - (153 * month + 2) / 5 + 1, year + era * 400);
    let (year, month) = if month < 10 { (year, month + 3) } else { (year + 1, month - 9) };
    std::fmt::from_fn(move |f| {
        write!(f, "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{millis:03}Z", second / 3600, second / 60 % 60, second % 60)
    })
}

#[cfg(test)]
mod tests;
