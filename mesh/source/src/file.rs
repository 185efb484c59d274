//! The snapshot file: read at start and after every change, whichever way it was written.

use std::{
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::{FutureExt, StreamExt};
use inotify::{EventMask, EventStream, Inotify, WatchMask};
use swarmesh_model::{Problem, Snapshot};
use tokio::{sync::mpsc::Sender, task, time};

use crate::{
    SourceError, SourceState, Update,
    publish::{Publisher, ReceiverGone},
};

/// Writers are seldom done with their first write.
const SETTLE: Duration = Duration::from_millis(5);
/// For what the directory's watch cannot see: a missing directory, a link's target elsewhere, network file systems.
const LOOK_ANYWAY: Duration = Duration::from_secs(1);

/// What tells one content from another without reading it.
type Stamp = (u64, u64, i64, i64, u64);

struct FileSource {
    name: String,
    path: PathBuf,
    publisher: Publisher,
    /// Of what was read last; `None` when there was nothing to read.
    stamp: Option<Stamp>,
}

enum Reading {
    Unchanged,
    Absent(io::Error),
    Unreadable(io::Error),
    Text(Stamp, Vec<u8>),
}

pub(crate) async fn run(name: String, path: &Path, updates: Sender<Update>) -> Result<(), SourceError> {
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let mut source = FileSource { name, path: path.to_owned(), publisher: Publisher::new(updates), stamp: None };
    loop {
        // The watch comes before the first look, so that nothing falls between the two.
        let watch = match Watch::on(&directory) {
            Ok(watch) => Some(watch),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(SourceError::Watch { directory, error }),
        };
        if source.follow(watch).await.is_err() {
            return Ok(());
        }
    }
}

/// The directory is watched, not the file: a file that is replaced by another under its name takes its watch with it.
struct Watch {
    events: EventStream<[u8; 4096]>,
}

impl Watch {
    fn on(directory: &Path) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let mask = WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::MODIFY | WatchMask::CLOSE_WRITE | WatchMask::DELETE;
        let gone = WatchMask::MOVED_FROM | WatchMask::DELETE_SELF | WatchMask::MOVE_SELF | WatchMask::ONLYDIR;
        inotify.watches().add(directory, mask | gone)?;
        Ok(Self { events: inotify.into_event_stream([0; 4096])? })
    }

    /// Waits for an event. False when the directory itself is gone, or the watch is of no more use.
    async fn changed(&mut self) -> bool {
        let gone = EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::IGNORED | EventMask::UNMOUNT;
        match self.events.next().await {
            Some(Ok(event)) => !event.mask.intersects(gone),
            Some(Err(error)) => {
                tracing::warn!(%error, "inotify failed; watching anew");
                false
            }
            None => false,
        }
    }

    /// Events that have arrived meanwhile need no look of their own.
    fn skip_arrived(&mut self) -> bool {
        std::iter::from_fn(|| self.changed().now_or_never()).all(|alive| alive)
    }
}

impl FileSource {
    /// Until the directory has to be watched anew.
    async fn follow(&mut self, mut watch: Option<Watch>) -> Result<(), ReceiverGone> {
        loop {
            self.look().await?;
            let mut alive = tokio::select! {
                () = self.publisher.closed() => return Err(ReceiverGone),
                alive = async {
                    match &mut watch {
                        Some(watch) => watch.changed().await,
                        None => std::future::pending().await,
                    }
                } => alive,
                // Without a watch, the directory may have come into being.
                () = time::sleep(LOOK_ANYWAY) => watch.is_some(),
            };
            time::sleep(SETTLE).await;
            alive &= watch.as_mut().is_none_or(Watch::skip_arrived);
            if !alive {
                return Ok(());
            }
        }
    }

    async fn look(&mut self) -> Result<(), ReceiverGone> {
        let (path, stamp) = (self.path.clone(), self.stamp);
        // A large file takes its time, and this runtime has others to serve.
        let reading = task::spawn_blocking(move || read(&path, stamp)).await;
        let reading = reading.unwrap_or_else(|error| Reading::Unreadable(io::Error::other(error)));
        let shown = self.path.display().to_string();
        match reading {
            Reading::Unchanged => Ok(()),
            Reading::Absent(error) => {
                self.stamp = None;
                let detail = format!("snapshot file {shown}: {error}; waiting for it{}", self.still());
                self.state(false, detail, Vec::new()).await
            }
            Reading::Unreadable(error) => {
                self.stamp = None;
                let detail = format!("snapshot file {shown} cannot be read: {error}{}", self.still());
                self.state(false, detail, Vec::new()).await
            }
            Reading::Text(stamp, bytes) => {
                self.stamp = Some(stamp);
                match parse(bytes, self.publisher.snapshot()).await {
                    Ok(snapshot) => {
                        self.publisher.objects(snapshot).await?;
                        self.state(true, String::new(), Vec::new()).await
                    }
                    Err((place, message)) => {
                        let detail = format!("snapshot file {shown}: {place}: {message}; correct the file{}", self.still());
                        tracing::warn!(source = self.name, detail, "snapshot file not taken");
                        let problem = Problem::new(format!("snapshot file {shown}"), place, message);
                        self.state(true, detail, vec![problem]).await
                    }
                }
            }
        }
    }

    fn still(&self) -> &'static str {
        if self.publisher.has_objects() { "; the last good snapshot stays in force" } else { "" }
    }

    async fn state(&mut self, connected: bool, detail: String, problems: Vec<Problem>) -> Result<(), ReceiverGone> {
        self.publisher.state(SourceState { source: self.name.clone(), connected, detail, node: None, problems }).await
    }
}

fn read(path: &Path, known: Option<Stamp>) -> Reading {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Reading::Absent(error),
        _ => Reading::Unreadable(error),
    };
    // The stamp is older than the content at worst: then the next look reads it once more.
    let stamp = match std::fs::metadata(path) {
        Ok(m) if m.is_file() => (m.dev(), m.ino(), m.mtime(), m.mtime_nsec(), m.size()),
        Ok(_) => return Reading::Unreadable(io::Error::other("not a regular file")),
        Err(error) => return failed(error),
    };
    if known == Some(stamp) && settled(stamp) {
        return Reading::Unchanged;
    }
    match contents(path, stamp.4) {
        Ok(bytes) => Reading::Text(stamp, bytes),
        Err(error) => failed(error),
    }
}

/// glibc gives memory above this size back to the system for certain. Below, a freed buffer of a size that was freed before
/// stays the process's own (`DEFAULT_MMAP_THRESHOLD_MAX` in its malloc.c). Pages that are not written to cost nothing.
const GIVEN_BACK: usize = 33 << 20;
/// Files that are not worth that.
const SMALL: u64 = 1 << 20;

/// Some forty times what ten thousand services of ten tasks come to. A file of another kind, or with a hole, must not take the
/// node's memory.
const LARGEST: u64 = 1 << 30;

fn contents(path: &Path, size: u64) -> io::Result<Vec<u8>> {
    let mut bytes = if size < SMALL { Vec::new() } else { Vec::with_capacity(GIVEN_BACK) };
    // It may grow while it is read.
    if size > LARGEST || std::fs::File::open(path)?.take(LARGEST + 1).read_to_end(&mut bytes)? as u64 > LARGEST {
        return Err(io::Error::other(format!("larger than {LARGEST} bytes, which no swarm comes to")));
    }
    Ok(bytes)
}

/// True when no write can have hidden behind the same time stamp: the kernel's clock for files moves every few milliseconds only.
fn settled(stamp: Stamp) -> bool {
    let (_, _, seconds, nanoseconds, _) = stamp;
    let written = Duration::new(u64::try_from(seconds).unwrap_or_default(), u32::try_from(nanoseconds).unwrap_or_default());
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .is_ok_and(|now| now.checked_sub(written).is_some_and(|age| age > Duration::from_millis(100)))
}

/// The snapshot, sharing with the one `before` what has not changed; or where it is wrong and how.
async fn parse(bytes: Vec<u8>, before: Snapshot) -> Result<Snapshot, (String, String)> {
    let parsed = task::spawn_blocking(move || {
        let text = std::str::from_utf8(&bytes).map_err(|error| {
            let line = 1 + bytes[..error.valid_up_to()].iter().filter(|b| **b == b'\n').count();
            (format!("line {line}"), "not UTF-8 text".to_owned())
        })?;
        Snapshot::from_json_after(text, &before).map_err(|error| {
            let place = match (error.line, error.place.as_str()) {
                (0, place) => place.to_owned(),
                (line, "") => format!("line {line}"),
                (line, place) => format!("line {line}: {place}"),
            };
            (place, error.message)
        })
    });
    parsed.await.unwrap_or_else(|error| Err((String::new(), error.to_string())))
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
