//! Network namespaces: held by descriptor, named by (device, inode), entered only by a closure.

use std::{
    fmt,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::Arc,
};

use nix::{
    libc,
    sched::{CloneFlags, setns},
};

use crate::KernelError;

/// The calling thread's own namespace. `/proc/self/ns/net` would be the main thread's.
const CURRENT: &str = "/proc/thread-self/ns/net";

/// One network namespace, kept alive for as long as this value or a clone of it is.
#[derive(Clone, Debug)]
pub struct Netns {
    file: Arc<OwnedFd>,
    id: NetnsId,
    path: PathBuf,
}

/// What tells namespaces apart: two paths to the same namespace have the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetnsId {
    /// Device of the nsfs file.
    pub device: u64,
    /// Inode of the nsfs file.
    pub inode: u64,
}

impl fmt::Display for NetnsId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "net:[{}]", self.inode)
    }
}

impl Netns {
    /// Opens the namespace that `path` leads to, such as `/proc/<pid>/ns/net` or `/run/docker/netns/<id>`.
    ///
    /// A path that leads to a plain file counts as gone: Docker creates the file first and mounts the namespace over it, and
    /// the file outlives the mount for a moment.
    pub fn open(path: &Path) -> Result<Self, KernelError> {
        let action = || format!("open the network namespace {}", path.display());
        let gone = || KernelError::NamespaceGone { path: path.to_path_buf() };
        let file = File::open(path).map_err(|source| match source.raw_os_error() {
            // A zombie's /proc/<pid>/ns/net says ESRCH or EINVAL, depending on the kernel.
            Some(libc::ENOENT | libc::ENOTDIR | libc::ESRCH | libc::EINVAL) => gone(),
            _ => KernelError::from_io(action(), source),
        })?;
        if !is_network_namespace(&file) {
            return Err(gone());
        }
        Self::from_file(file, path, action)
    }

    /// The namespace that the calling thread is in.
    pub fn current() -> Result<Self, KernelError> {
        let action = || "open the thread's own network namespace".to_owned();
        let file = File::open(CURRENT).map_err(|source| KernelError::from_io(action(), source))?;
        Self::from_file(file, Path::new(CURRENT), action)
    }

    fn from_file(file: File, path: &Path, action: impl Fn() -> String) -> Result<Self, KernelError> {
        let metadata = file.metadata().map_err(|source| KernelError::from_io(action(), source))?;
        let id = NetnsId { device: metadata.dev(), inode: metadata.ino() };
        Ok(Self { file: Arc::new(OwnedFd::from(file)), id, path: path.to_path_buf() })
    }

    /// Device and inode, the same for every path to this namespace.
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// The path it was opened by; for messages, not for opening it again.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` with the calling thread in this namespace, and takes the thread back.
    ///
    /// `work` must not wait for other threads' work: meanwhile this thread is in the wrong place for everything else. There
    /// and back costs about a microsecond. Aborts the process if the way back fails, since every later packet and file of
    /// this thread would land in a stranger's namespace.
    pub fn enter<T>(&self, work: impl FnOnce() -> T) -> Result<T, KernelError> {
        let home = Self::current()?;
        if home.id == self.id {
            return Ok(work());
        }
        setns(&*self.file, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| KernelError::from_errno(format!("enter the network namespace {}", self.path.display()), errno as i32))?;
        let _way_back = WayBack(home);
        Ok(work())
    }

    /// Starts `command` as a child inside this namespace.
    pub fn spawn(&self, command: &mut Command) -> Result<Child, KernelError> {
        self.enter(|| command.spawn())?.map_err(|source| {
            let program = command.get_program().to_string_lossy().into_owned();
            KernelError::from_io(format!("start {program} in {}", self.path.display()), source)
        })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Asks the descriptor itself. Its link in `/proc/self/fd` reads `net:[...]` only if it was not opened through a bind mount,
/// which is how Docker and `ip netns` keep namespaces: there it reads the mount's path (`d_path` in `fs/d_path.c`).
fn is_network_namespace(file: &File) -> bool {
    /// `_IO(0xb7, 3)` in `include/uapi/linux/nsfs.h`, since Linux 4.11.
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    // SAFETY: the descriptor is open for as long as `file` is borrowed, and this request takes no argument, so the kernel
    // reads and writes no memory of ours. Another kind of file refuses it with ENOTTY.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
    kind == libc::CLONE_NEWNET
}

/// Takes the thread home when dropped, so also when the closure panics.
struct WayBack(Netns);

impl Drop for WayBack {
    fn drop(&mut self) {
        if let Err(errno) = setns(&*self.0.file, CloneFlags::CLONE_NEWNET) {
            let error = io::Error::from(errno);
            tracing::error!(%error, "cannot return to the agent's own network namespace, stopping");
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_are_no_namespace_count_as_gone() {
        for path in ["/nonexistent/net", "/proc/self/status/net", "/proc/self/status", "/proc/self/ns/mnt", "/dev/null"] {
            let error = Netns::open(Path::new(path)).unwrap_err();
            assert!(matches!(error, KernelError::NamespaceGone { .. }), "{path}: {error}");
        }
    }

    #[test]
    fn one_namespace_has_one_id_by_every_path() {
        let by_path = Netns::open(Path::new("/proc/self/ns/net")).unwrap();
        let current = Netns::current().unwrap();
        assert_eq!(by_path.id(), current.id());
        assert_eq!(by_path.enter(|| 7).unwrap(), 7);
    }
}
