//! The host's `resolv.conf`: which servers it names now, and when that changes.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use inotify::{Inotify, WatchMask};
use tokio::sync::watch;

/// systemd-resolved's own listener, which answers from the host's namespace only and by the host's split horizon.
const STUB: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 53));
/// Where it keeps what it knows, for those who would rather ask themselves.
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";
/// Where inotify is not to be had, or the file is reached by a link into another directory.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The servers in a file's text. Other lines, and what is no address, are somebody else's.
pub fn servers(text: &str) -> Vec<IpAddr> {
    let words = text.lines().map(|line| line.split_whitespace());
    let addresses = words.filter_map(|mut words| {
        let (Some("nameserver"), Some(address)) = (words.next(), words.next()) else { return None };
        // An interface may follow a link-local address; the routing table finds it without.
        address.split('%').next()?.parse().ok()
    });
    let mut found: Vec<IpAddr> = Vec::new();
    // An agent in a container with a network of its own sees that container's file: asking there would be asking ourselves.
    let of_docker = IpAddr::from([127, 0, 0, 11]);
    for address in addresses.filter(|a: &IpAddr| !a.is_unspecified() && *a != of_docker) {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

/// Docker's rule: where the only server is systemd-resolved's stub, the file behind it counts.
fn read(path: &Path) -> io::Result<Vec<IpAddr>> {
    let found = servers(&fs::read_to_string(path)?);
    if found == [STUB]
        && let Ok(text) = fs::read_to_string(BEHIND_STUB)
    {
        let behind = servers(&text);
        if !behind.is_empty() {
            return Ok(behind);
        }
    }
    Ok(found)
}

/// Follows the file for as long as somebody listens. One that cannot be read, or names nobody, changes nothing.
pub fn watch(path: &Path) -> watch::Receiver<Arc<[IpAddr]>> {
    let first = read(path).unwrap_or_else(|error| {
        tracing::warn!(file = %path.display(), %error, "the host's name servers are not known");
        Vec::new()
    });
    if first.is_empty() {
        tracing::warn!(file = %path.display(), "names no server; containers without servers of their own resolve names of the swarm only");
    }
    let (sender, receiver) = watch::channel(first.into());
    let path = path.to_owned();
    let follower = std::thread::Builder::new().name("resolv-conf".to_owned()).spawn(move || follow(&path, &sender));
    if let Err(error) = follower {
        tracing::warn!(%error, "changes of the host's name servers are not noticed");
    }
    receiver
}

fn follow(path: &Path, sender: &watch::Sender<Arc<[IpAddr]>>) {
    while !sender.is_closed() {
        wait(path);
        match read(path) {
            Ok(found) if !found.is_empty() => {
                sender.send_if_modified(|known| {
                    let changed = **known != *found;
                    if changed {
                        tracing::info!(servers = ?found, "the host's name servers have changed");
                        *known = found.into();
                    }
                    changed
                });
            }
            Ok(_) => tracing::debug!(file = %path.display(), "names no server; the last ones are kept"),
            Err(error) => tracing::debug!(file = %path.display(), %error, "cannot be read; the last servers are kept"),
        }
    }
}

/// Returns when something near the file has changed, and after a while in any case.
fn wait(path: &Path) {
    let watched = || -> io::Result<bool> {
        let inotify = Inotify::init()?;
        let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::CREATE | WatchMask::ATTRIB;
        // The directory, because files are replaced; and the one that a link leads to.
        let mut directories: Vec<PathBuf> = path.parent().map(Path::to_owned).into_iter().collect();
        directories.extend(fs::canonicalize(path)?.parent().map(Path::to_owned));
        directories.push(PathBuf::from(BEHIND_STUB).parent().map(Path::to_owned).unwrap_or_default());
        let added = directories.iter().filter(|d| inotify.watches().add(d, mask).is_ok()).count();
        let ready = nix::poll::poll(
            &mut [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&inotify), nix::poll::PollFlags::POLLIN)],
            nix::poll::PollTimeout::try_from(LOOK_EVERY).unwrap_or(nix::poll::PollTimeout::MAX),
        )?;
        Ok(added > 0 && ready > 0)
    };
    match watched() {
        // Whoever writes is given the time to finish.
        Ok(true) => std::thread::sleep(Duration::from_millis(20)),
        Ok(false) => {}
        Err(_) => std::thread::sleep(LOOK_EVERY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_as_resolvers_read_them() {
        for (text, expected) in [
            ("nameserver 1.2.3.4\n", &["1.2.3.4"][..]),
            ("# nameserver 9.9.9.9\nsearch a b\nnameserver  1.2.3.4 # comment\nnameserver\tfe80::1%eth0\n", &["1.2.3.4", "fe80::1"]),
            (
                "nameserver 127.0.0.11\nnameserver 1.2.3.4\nnameserver 1.2.3.4\nnameserver 0.0.0.0\nnameserver nonsense\nnameserver\n",
                &["1.2.3.4"],
            ),
            ("options ndots:5\n", &[]),
            ("", &[]),
        ] {
            let expected: Vec<IpAddr> = expected.iter().map(|a| a.parse().unwrap()).collect();
            assert_eq!(servers(text), expected, "{text:?}");
        }
    }

    #[tokio::test]
    async fn changes_are_told_through_renames_and_links_and_a_broken_file_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        fs::write(other.path().join("real"), "nameserver 127.0.0.1\n").unwrap();
        std::os::unix::fs::symlink(other.path().join("real"), &path).unwrap();
        let mut seen = watch(&path);
        let one = |address: &str| Arc::<[IpAddr]>::from([address.parse::<IpAddr>().unwrap()]);
        assert_eq!(*seen.borrow_and_update(), one("127.0.0.1"));
        let wait = Duration::from_secs(8);
        // The watch has to be there before the change.
        tokio::time::sleep(Duration::from_millis(200)).await;
        fs::write(other.path().join("real"), "nameserver 127.0.0.2\n").unwrap();
        tokio::time::timeout(wait, seen.changed()).await.unwrap().unwrap();
        assert_eq!(*seen.borrow_and_update(), one("127.0.0.2"));
        fs::write(other.path().join("real"), "nothing of use\n").unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!seen.has_changed().unwrap());
        fs::write(directory.path().join("next"), "nameserver 127.0.0.3\n").unwrap();
        fs::rename(directory.path().join("next"), &path).unwrap();
        tokio::time::timeout(wait, seen.changed()).await.unwrap().unwrap();
        assert_eq!(*seen.borrow_and_update(), one("127.0.0.3"));
    }
}
