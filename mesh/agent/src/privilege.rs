//! What this process may do, read before it tries, so that the message can say what to change.

use std::fs;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

// capabilities(7), numbers from include/uapi/linux/capability.h.
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;

/// The process lacks what programming other namespaces needs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("missing {}: run as root, or grant them (systemd: AmbientCapabilities=CAP_NET_ADMIN CAP_SYS_ADMIN)", missing.join(" and "))]
pub struct Unprivileged {
    pub missing: Vec<&'static str>,
}

pub(crate) fn check() -> Result<(), Unprivileged> {
    // Without /proc nothing can be said, and the kernel's own refusal will have to do.
    match fs::read_to_string("/proc/thread-self/status") {
        Ok(status) => check_status(&status),
        Err(_) => Ok(()),
    }
}

fn check_status(status: &str) -> Result<(), Unprivileged> {
    let field = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let Some(effective) = field.and_then(|f| u64::from_str_radix(f.trim(), 16).ok()) else { return Ok(()) };
    let needed = [(CAP_NET_ADMIN, "CAP_NET_ADMIN"), (CAP_SYS_ADMIN, "CAP_SYS_ADMIN")];
    let missing: Vec<_> = needed.iter().filter(|(bit, _)| effective >> bit & 1 == 0).map(|(_, name)| *name).collect();
    if missing.is_empty() { Ok(()) } else { Err(Unprivileged { missing }) }
}

/// Takes as many descriptors as it may: each container costs three to six.
pub(crate) fn raise_descriptors() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(soft, hard)| if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) });
    if let Err(error) = raised {
        tracing::info!(%error, "the limit of open files stays as it is");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_which_capability_is_missing() {
        assert_eq!(check_status("Name:\tx\nCapEff:\t000001ffffffffff\n"), Ok(()));
        let without_sys_admin = check_status("CapEff:\t0000000000001000\n").unwrap_err();
        assert_eq!(without_sys_admin.missing, ["CAP_SYS_ADMIN"]);
        assert!(check_status("CapEff:\t0\n").unwrap_err().to_string().contains("CAP_NET_ADMIN and CAP_SYS_ADMIN"));
        assert_eq!(check_status("garbage"), Ok(()));
    }
}
