//! What this node has and lacks. Works without an agent and without Docker, and changes nothing: what must be tried is
//! tried in a namespace of its own that goes when its thread does.

mod docker;
mod host;
mod scratch;
mod tools;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    Ok,
    Info,
    Warning,
    /// The agent cannot do its work.
    Critical,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Finding {
    pub(crate) check: String,
    pub(crate) level: Level,
    pub(crate) detail: String,
    /// What to do; empty when there is nothing to do.
    pub(crate) remedy: String,
}

impl Finding {
    fn new(check: &str, level: Level, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check: check.to_owned(), level, detail: detail.into(), remedy: remedy.into() }
    }

    fn ok(check: &str, detail: impl Into<String>) -> Self {
        Self::new(check, Level::Ok, detail, "")
    }

    fn info(check: &str, detail: impl Into<String>) -> Self {
        Self::new(check, Level::Info, detail, "")
    }

    fn warning(check: &str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(check, Level::Warning, detail, remedy)
    }

    fn critical(check: &str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(check, Level::Critical, detail, remedy)
    }
}

/// Where to look.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    /// `None` when the agent would not ask Docker.
    pub(crate) docker: Option<String>,
    pub(crate) netns_dir: PathBuf,
}

/// Examines everything, in the order in which an operator would mend it.
pub(crate) fn examine(subject: &Subject) -> Vec<Finding> {
    let mut findings = vec![host::privilege(), host::kernel()];
    findings.extend(tools::programs());
    findings.extend(scratch::features());
    findings.extend(host::sysctls());
    findings.extend(docker::docker(subject));
    findings.extend(host::ingress_sandbox(&subject.netns_dir));
    findings.extend(host::neighbours());
    findings
}
