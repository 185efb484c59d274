//! What can go wrong at the seam, sorted by what the caller can do about it.

use std::{io, path::PathBuf};

use nix::libc;

/// A refusal of the kernel, or of one of the tools around it.
///
/// `action` says what was being done to which object. Callers decide on the variant, never on the text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The container or sandbox behind the path ended, so whoever holds state for it can drop that state.
    #[error("no network namespace at {path} (yet, or any more)", path = path.display())]
    NamespaceGone {
        /// Where the namespace was expected.
        path: PathBuf,
    },
    /// EPERM or EACCES.
    #[error("not permitted to {action}: run as root or with CAP_NET_ADMIN and CAP_SYS_ADMIN")]
    NotPermitted {
        /// What was being done.
        action: String,
    },
    /// The running kernel was built without it, or its module cannot be loaded.
    #[error("this kernel cannot {action} ({detail}): load the missing module or use a newer kernel")]
    NotSupported {
        /// What was being done.
        action: String,
        /// What the kernel said, or which part of the request it did not know.
        detail: String,
    },
    /// The object is there already, with another value.
    #[error("cannot {action}: it exists already with another value; delete it in the same batch, or read the state again")]
    Exists {
        /// What was being done.
        action: String,
    },
    /// The object, or one that it refers to, is not there.
    #[error("cannot {action}: it, or something it refers to, is not there; read the state again")]
    NotFound {
        /// What was being done.
        action: String,
    },
    /// Something else still refers to the object.
    #[error("cannot {action}: still referred to by a rule or a map element; remove those first")]
    Busy {
        /// What was being done.
        action: String,
    },
    /// A set reached its declared size.
    #[error("cannot {action}: full; declare a larger size for the set")]
    Full {
        /// What was being done.
        action: String,
    },
    /// The kernel had no memory for the request or for its answer.
    #[error("no buffer space to {action}: try again with a smaller request, or give the node more memory")]
    NoBuffer {
        /// What was being done.
        action: String,
    },
    /// A command line tool ran and refused.
    #[error("{tool} failed to {action}: {output}")]
    Tool {
        /// Name of the program.
        tool: &'static str,
        /// What it was asked for.
        action: String,
        /// What it printed.
        output: String,
    },
    /// A command line tool is not installed.
    #[error("{tool} is not installed: install the package {package}")]
    ToolMissing {
        /// Name of the program.
        tool: &'static str,
        /// Package that has it on Debian, Ubuntu, Fedora and Alpine.
        package: &'static str,
    },
    /// Any other failing system call.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was being done.
        action: String,
        /// The system's own words.
        source: io::Error,
    },
    /// An answer that makes no sense, or a request that never could.
    #[error("cannot {action}: {detail}")]
    Protocol {
        /// What was being done.
        action: String,
        /// What was wrong with it.
        detail: String,
    },
}

impl KernelError {
    /// Sorts a positive `errno` that a netlink answer or a system call on a socket carried.
    ///
    /// ENFILE is what nf_tables says of a full set (`nft_add_set_elem` in `net/netfilter/nf_tables_api.c`), so this is not
    /// for errors of `open(2)`, where it means something else.
    pub fn from_errno(action: impl Into<String>, errno: i32) -> Self {
        let action = action.into();
        match errno {
            libc::EPERM | libc::EACCES => Self::NotPermitted { action },
            libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT | libc::ENOPROTOOPT | libc::ENOSYS => {
                Self::NotSupported { action, detail: io::Error::from_raw_os_error(errno).to_string() }
            }
            libc::EEXIST => Self::Exists { action },
            libc::ENOENT | libc::ESRCH | libc::ENODEV | libc::ENXIO => Self::NotFound { action },
            libc::EBUSY => Self::Busy { action },
            libc::ENOSPC | libc::ENFILE => Self::Full { action },
            libc::ENOBUFS | libc::ENOMEM => Self::NoBuffer { action },
            _ => Self::Io { action, source: io::Error::from_raw_os_error(errno) },
        }
    }

    /// Sorts the error of a system call on a file.
    /// The error for a failed call of the standard library.
    pub fn from_io(action: impl Into<String>, source: io::Error) -> Self {
        let action = action.into();
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::NotPermitted { action },
            _ => Self::Io { action, source },
        }
    }

    pub(crate) fn protocol(action: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Protocol { action: action.into(), detail: detail.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_is_sorted_by_what_the_caller_can_do() {
        let of = |errno| KernelError::from_errno("add element 7f000001", errno);
        assert!(matches!(of(libc::EPERM), KernelError::NotPermitted { .. }));
        assert!(matches!(of(libc::EEXIST), KernelError::Exists { .. }));
        assert!(matches!(of(libc::ENOENT), KernelError::NotFound { .. }));
        assert!(matches!(of(libc::ENFILE), KernelError::Full { .. }));
        assert!(matches!(of(libc::ENOBUFS), KernelError::NoBuffer { .. }));
        assert!(matches!(of(libc::EBUSY), KernelError::Busy { .. }));
        assert!(matches!(of(libc::EOPNOTSUPP), KernelError::NotSupported { .. }));
        assert!(matches!(of(libc::EINVAL), KernelError::Io { .. }));
        assert!(of(libc::EPERM).to_string().contains("CAP_NET_ADMIN"));
    }
}
