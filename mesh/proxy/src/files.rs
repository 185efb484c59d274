//! Small files that are looked at again: a stat tells whether one has to be read.

use std::{
    fs::{self, File, Metadata},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

const LARGEST: u64 = 1 << 20;
/// A file that was changed this shortly before it was read may change again without its times telling.
const SETTLES: Duration = Duration::from_secs(2);

/// Why there is nothing to be had of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("is no plain file name")]
    Name,
    #[error("is not there")]
    Missing,
    #[error("cannot be read: {}", io::Error::from(*.0))]
    Read(io::ErrorKind),
    #[error("is no file")]
    NotAFile,
    #[error("is larger than {most} bytes")]
    TooBig { most: u64 },
}

/// A file as it was when it was read last.
#[derive(Debug)]
pub(crate) struct Watched {
    path: PathBuf,
    /// Or why there was none, which may change, too.
    stamp: Result<Stamp, Unreadable>,
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
    pub(crate) fn read(path: PathBuf) -> (Self, Result<Vec<u8>, Unreadable>) {
        let opened = open(&path);
        let now = SystemTime::now();
        let (file, stamp) = match opened {
            Ok((file, metadata)) => (file, Stamp::of(&metadata)),
            Err(error) => return (Self { path, stamp: Err(error), settled: true }, Err(error)),
        };
        (Self { path, stamp: Ok(stamp), settled: stamp.settled(now) }, contents(file))
    }

    /// It has to be read again, or may have to.
    pub(crate) fn is_stale(&self) -> bool {
        !self.settled || look(&self.path).as_ref().map(Stamp::of).map_err(|error| *error) != self.stamp
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

/// Where the file of this name is. Names that lead out of the directory are refused.
pub(crate) fn in_directory(directory: &Path, name: &str) -> Result<PathBuf, Unreadable> {
    let mut components = Path::new(name).components();
    let one = matches!(components.next(), Some(Component::Normal(part)) if part == name) && components.next().is_none();
    if one && !name.contains('\0') { Ok(directory.join(name)) } else { Err(Unreadable::Name) }
}

fn look(path: &Path) -> Result<Metadata, Unreadable> {
    let metadata = fs::metadata(path).map_err(|e| failed(&e))?;
    if metadata.is_file() { Ok(metadata) } else { Err(Unreadable::NotAFile) }
}

fn open(path: &Path) -> Result<(File, Metadata), Unreadable> {
    // Before it is opened, since opening a pipe waits for its other end.
    look(path)?;
    let file = File::open(path).map_err(|e| failed(&e))?;
    let metadata = file.metadata().map_err(|e| failed(&e))?;
    Ok((file, metadata))
}

fn contents(file: File) -> Result<Vec<u8>, Unreadable> {
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(|e| failed(&e))?;
    if bytes.len() as u64 > LARGEST { Err(Unreadable::TooBig { most: LARGEST }) } else { Ok(bytes) }
}

fn failed(error: &io::Error) -> Unreadable {
    match error.kind() {
        io::ErrorKind::NotFound => Unreadable::Missing,
        kind => Unreadable::Read(kind),
    }
}
