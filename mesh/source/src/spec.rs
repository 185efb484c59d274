//! `--source`: which source, and where.

use std::{fmt, path::PathBuf, str::FromStr};

use crate::{SpecError, docker::Endpoint};

/// Which source to run. Reads and writes as on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceSpec {
    /// `docker:unix:///var/run/docker.sock`, `docker:tcp://192.0.2.1:2375`: the API of a manager's engine.
    Docker { url: String },
    /// `snapshot:FILE`: a file in the form of `/v1/snapshot`, read again whenever it changes.
    SnapshotFile { path: PathBuf },
    /// `upstream`: a manager's agent.
    Upstream,
    /// `auto`, `auto:URL`: `docker` on a manager, `upstream` on a worker.
    Auto { url: Option<String> },
}

impl FromStr for SourceSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let (kind, rest) = text.split_once(':').map_or((text, None), |(kind, rest)| (kind, Some(rest)));
        let rest = rest.filter(|rest| !rest.is_empty());
        match kind {
            "docker" => {
                let url = rest.ok_or(SpecError::NoUrl)?;
                Endpoint::parse(url)?;
                Ok(Self::Docker { url: url.to_owned() })
            }
            "snapshot" => Ok(Self::SnapshotFile { path: rest.ok_or(SpecError::NoFile)?.into() }),
            "upstream" if text == kind => Ok(Self::Upstream),
            "auto" => {
                rest.map(Endpoint::parse).transpose()?;
                Ok(Self::Auto { url: rest.map(str::to_owned) })
            }
            _ => Err(SpecError::Unknown(text.to_owned())),
        }
    }
}

impl fmt::Display for SourceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Docker { url } => write!(f, "docker:{url}"),
            Self::SnapshotFile { path } => write!(f, "snapshot:{}", path.display()),
            Self::Upstream => f.write_str("upstream"),
            Self::Auto { url: None } => f.write_str("auto"),
            Self::Auto { url: Some(url) } => write!(f, "auto:{url}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_every_form() {
        for text in [
            "docker:unix:///var/run/docker.sock",
            "docker:tcp://192.0.2.1:2375",
            "docker:tcp://[2001:db8::1]:2375",
            "snapshot:/etc/swarmesh/s.json",
            "snapshot:relative: with colon",
            "upstream",
            "auto",
            "auto:unix:///run/docker.sock",
        ] {
            let spec: SourceSpec = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(spec.to_string(), text);
        }
    }

    #[test]
    fn refuses_others_with_what_to_write() {
        for (text, expected) in [
            ("", "unknown source \"\""),
            ("podman:unix:///x", "use docker:URL, snapshot:FILE, upstream, or auto[:URL]"),
            ("upstream:x", "unknown source"),
            ("docker", "needs a URL"),
            ("docker:", "needs a URL"),
            ("snapshot:", "needs a file"),
            ("docker:/var/run/docker.sock", "use unix:///path/to/docker.sock or tcp://host:port"),
            ("docker:unix://relative", "absolute path"),
            ("docker:tcp://host", "port"),
            ("docker:tcp://:2375", "host"),
            ("docker:tcp://host:0", "port"),
            ("docker:https://host:2376", "TLS"),
            ("auto:ssh://host", "ssh"),
        ] {
            let error = text.parse::<SourceSpec>().expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
