//! Sysctls of a namespace. `/proc/sys/net` shows the namespace of the thread that opens a file in it.

use std::{fs, io, path::PathBuf};

use crate::{KernelError, Netns};

/// Reads `key`, such as `net/ipv4/ip_forward`, without the newline at its end. An interface name in the key may have dots.
pub fn read(ns: &Netns, key: &str) -> Result<String, KernelError> {
    let path = path(key)?;
    let value = ns.enter(|| fs::read_to_string(path))?.map_err(|source| sorted(format!("read sysctl {key}"), source))?;
    Ok(value.trim_end().to_owned())
}

/// Writes `value` unless it is there already. True if it was not.
pub fn ensure(ns: &Netns, key: &str, value: &str) -> Result<bool, KernelError> {
    if read(ns, key)? == value {
        return Ok(false);
    }
    let path = path(key)?;
    ns.enter(|| fs::write(path, value))?.map_err(|source| sorted(format!("set sysctl {key} to {value}"), source))?;
    Ok(true)
}

/// Only `net/` is per namespace; anything else would be the whole node's.
fn path(key: &str) -> Result<PathBuf, KernelError> {
    if !key.starts_with("net/") || key.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return Err(KernelError::protocol(format!("use sysctl {key}"), "not a key below net/"));
    }
    Ok(PathBuf::from("/proc/sys").join(key))
}

fn sorted(action: String, source: io::Error) -> KernelError {
    match source.kind() {
        io::ErrorKind::NotFound => KernelError::NotFound { action },
        io::ErrorKind::ReadOnlyFilesystem => {
            KernelError::Io { action: format!("{action} (mount /proc/sys read-write into the agent's container)"), source }
        }
        _ => KernelError::from_io(action, source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_below_net_are_accepted() {
        assert_eq!(path("net/ipv4/conf/eth0.5/rp_filter").unwrap(), PathBuf::from("/proc/sys/net/ipv4/conf/eth0.5/rp_filter"));
        for key in ["kernel/panic", "net", "net/../kernel/panic", "net//ipv4", "/net/ipv4/ip_forward", ""] {
            assert!(path(key).is_err(), "{key}");
        }
    }

    #[test]
    fn an_unknown_key_is_not_found() {
        let ns = Netns::current().unwrap();
        assert!(matches!(read(&ns, "net/ipv4/no_such_key"), Err(KernelError::NotFound { .. })));
    }
}
