//! Small files that are looked at again: a stat tells whether one has to be read.

use std::{
    fs::{self, File, Metadata},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::error::Reason;

const LARGEST: u64 = 1 << 20;
/// A file that was changed this shortly before it was read may change again without its times telling.
const SETTLES: Duration = Duration::from_secs(2);

/// A file as it was when it was read last.
#[derive(Debug)]
pub(super) struct Watched {
    path: PathBuf,
    /// `None` if it was not there or no file.
    stamp: Option<Stamp>,
    settled: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Watched {
    pub(super) fn read(path: PathBuf) -> (Self, Result<Vec<u8>, Reason>) {
        let opened = open(&path);
        let now = SystemTime::now();
        let Ok((file, metadata)) = opened else {
            return (Self { path, stamp: None, settled: true }, opened.map(|_| Vec::new()));
        };
        let stamp = Stamp::of(&metadata);
        (Self { path, stamp: Some(stamp), settled: stamp.settled(now) }, contents(file))
    }

    /// It has to be read again, or may have to.
    pub(super) fn is_stale(&self) -> bool {
        let stamp = fs::metadata(&self.path).ok().filter(Metadata::is_file).as_ref().map(Stamp::of);
        !self.settled || stamp != self.stamp
    }
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    fn settled(&self, now: SystemTime) -> bool {
        let changed = UNIX_EPOCH + Duration::from_secs(u64::try_from(self.changed.0).unwrap_or(0));
        now.duration_since(changed).is_ok_and(|since| since > SETTLES)
    }
}

fn open(path: &Path) -> Result<(File, Metadata), Reason> {
    // Before it is opened, since opening a pipe waits for its other end.
    if !fs::metadata(path).map_err(|e| failed(&e))?.is_file() {
        return Err(Reason::NotAFile);
    }
    let file = File::open(path).map_err(|e| failed(&e))?;
    let metadata = file.metadata().map_err(|e| failed(&e))?;
    Ok((file, metadata))
}

fn contents(file: File) -> Result<Vec<u8>, Reason> {
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(|e| failed(&e))?;
    if bytes.len() as u64 > LARGEST { Err(Reason::TooBig { most: LARGEST }) } else { Ok(bytes) }
}

fn failed(error: &io::Error) -> Reason {
    match error.kind() {
        io::ErrorKind::NotFound => Reason::Missing,
        kind => Reason::Read(kind),
    }
}
