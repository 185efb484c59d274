//! Where the admin API listens.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use nix::sys::stat::{Mode, umask};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::guard::Peer;
use crate::config::AdminAddress;

#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("cannot listen on {address} for the admin API: {error}; is another agent running? choose another --admin if so")]
    Listen { address: AdminAddress, error: io::Error },
    #[error("another process answers on {}; stop it, or choose another --admin", path.display())]
    InUse { path: PathBuf },
    #[error("{} is there and is not a socket; remove it, or choose another --admin", path.display())]
    NotASocket { path: PathBuf },
}

/// A bound admin API. A unix socket's file goes when this is dropped.
#[derive(Debug)]
pub struct Listener {
    kind: Kind,
    address: AdminAddress,
}

#[derive(Debug)]
enum Kind {
    Tcp(TcpListener),
    Unix(UnixListener),
}

pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Listener {
    /// Needs a running runtime.
    pub async fn bind(address: &AdminAddress) -> Result<Self, BindError> {
        let failed = |error| BindError::Listen { address: address.clone(), error };
        match address {
            AdminAddress::Tcp(wanted) => Self::tcp(*wanted).await.map_err(failed),
            AdminAddress::Unix(path) => {
                make_way(path).await.map_err(|e| e.unwrap_or_else(failed))?;
                // Nobody else may connect, not even between the bind and a chmod.
                let before = umask(Mode::from_bits_truncate(0o177));
                let bound = UnixListener::bind(path);
                umask(before);
                Ok(Self { kind: Kind::Unix(bound.map_err(failed)?), address: address.clone() })
            }
        }
    }

    pub(crate) async fn tcp(wanted: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(wanted).await?;
        // With port 0 the kernel chose one.
        let address = AdminAddress::Tcp(listener.local_addr()?);
        Ok(Self { kind: Kind::Tcp(listener), address })
    }

    /// As bound.
    pub fn address(&self) -> &AdminAddress {
        &self.address
    }

    pub(super) async fn accept(&self) -> io::Result<(Stream, Peer)> {
        match &self.kind {
            Kind::Tcp(listener) => listener.accept().await.map(|(s, from)| (Stream::Tcp(s), Peer::Tcp(from.ip()))),
            Kind::Unix(listener) => listener.accept().await.map(|(s, _)| (Stream::Unix(s), Peer::Unix)),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let AdminAddress::Unix(path) = &self.address
            && let Err(error) = fs::remove_file(path)
        {
            tracing::debug!(%error, path = %path.display(), "the admin socket's file stays");
        }
    }
}

/// Removes a socket file that nobody listens on any more.
async fn make_way(path: &Path) -> Result<(), Refused> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Refused::Io(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(Refused::Why(BindError::NotASocket { path: path.to_owned() }));
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(Refused::Io),
        Ok(_) => Err(Refused::Why(BindError::InUse { path: path.to_owned() })),
        Err(error) => Err(Refused::Io(error)),
    }
}

enum Refused {
    Io(io::Error),
    Why(BindError),
}

impl Refused {
    fn unwrap_or_else(self, io: impl FnOnce(io::Error) -> BindError) -> BindError {
        match self {
            Self::Io(error) => io(error),
            Self::Why(why) => why,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let address = AdminAddress::Unix(path.clone());

        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let first = Listener::bind(&address).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(Listener::bind(&address).await, Err(BindError::InUse { .. })));
        drop(first);
        assert!(!path.exists());

        fs::write(&path, "").unwrap();
        assert!(matches!(Listener::bind(&address).await, Err(BindError::NotASocket { .. })));
    }
}
