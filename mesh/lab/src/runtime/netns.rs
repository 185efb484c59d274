//! Network namespaces: made, entered for the length of one closure, found and removed.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    thread,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};

use super::{
    RuntimeError,
    error::Doing,
    names::{NETNS_DIR, netns_path},
};

/// Makes a namespace that lives until [`remove`], and runs `inside` in it.
///
/// A thread that changed its namespace is not given back to anybody, so each of these calls takes a thread of its own.
pub(crate) fn create<T: Send>(name: &str, inside: impl FnOnce() -> Result<T, RuntimeError> + Send) -> Result<T, RuntimeError> {
    fs::create_dir_all(NETNS_DIR).doing(|| format!("making {NETNS_DIR}"))?;
    let path = netns_path(name);
    File::create_new(&path).doing(|| format!("making {}", path.display()))?;
    on_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).doing(|| format!("making network namespace {name}"))?;
        mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .doing(|| format!("mounting network namespace {name}"))?;
        inside()
    })
}

/// Runs `inside` in an existing namespace.
pub(crate) fn within<T: Send>(path: &Path, inside: impl FnOnce() -> Result<T, RuntimeError> + Send) -> Result<T, RuntimeError> {
    on_thread(|| {
        enter(path)?;
        inside()
    })
}

/// Moves the calling thread, for good.
pub(crate) fn enter(path: &Path) -> Result<(), RuntimeError> {
    let file = File::open(path).doing(|| format!("opening {}", path.display()))?;
    setns(file, CloneFlags::CLONE_NEWNET).doing(|| format!("entering {}", path.display()))
}

fn on_thread<T: Send>(work: impl FnOnce() -> Result<T, RuntimeError> + Send) -> Result<T, RuntimeError> {
    thread::scope(|scope| {
        let handle = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, work).doing(|| "starting a thread".to_owned())?;
        handle.join().unwrap_or_else(|_| Err(RuntimeError::io("working in a namespace", io::Error::other("the thread panicked"))))
    })
}

/// Removes the name; the namespace itself goes with its last process. No error when there is none.
pub(crate) fn remove(name: &str) -> Result<(), RuntimeError> {
    let path = netns_path(name);
    // Several labs' or `ip netns`' own mounts can lie over each other; not mounted at all is fine too.
    while umount2(&path, MntFlags::MNT_DETACH).is_ok() {}
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(RuntimeError::io(format!("removing {}", path.display()), e)),
        _ => Ok(()),
    }
}

/// The names of all namespaces that begin with `prefix`.
pub(crate) fn list(prefix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(NETNS_DIR) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).filter(|name| name.starts_with(prefix)).collect();
    names.sort_unstable();
    names
}

/// What tells one namespace from another: its inode, and that of the file system that it is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Identity(u64, u64);

pub(crate) fn identity(path: &Path) -> Option<Identity> {
    fs::metadata(path).ok().map(|m| Identity(m.dev(), m.ino()))
}

/// Sets kernel parameters of the calling thread's namespace: `net/ipv4/ip_forward`, value.
pub(crate) fn sysctl(settings: &[(&str, &str)]) -> Result<(), RuntimeError> {
    settings.iter().try_for_each(|(name, value)| {
        let path = Path::new("/proc/sys").join(name);
        fs::write(&path, value).doing(|| format!("setting {} to {value}", path.display()))
    })
}
