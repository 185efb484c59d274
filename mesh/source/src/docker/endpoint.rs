//! Where the Docker API listens.

use std::{fmt, path::PathBuf};

use crate::SpecError;

/// A checked Docker URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Unix(PathBuf),
    /// `host:port`, brackets around an IPv6 address kept.
    Tcp(String),
}

impl Endpoint {
    pub(crate) fn parse(url: &str) -> Result<Self, SpecError> {
        let wrong = |problem| SpecError::Url { url: url.to_owned(), problem };
        let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong("there is no scheme"))?;
        match scheme {
            "unix" if rest.starts_with('/') => Ok(Self::Unix(rest.into())),
            "unix" => Err(wrong("a unix socket needs an absolute path (three slashes)")),
            "tcp" | "http" => {
                let authority = rest.strip_suffix('/').unwrap_or(rest);
                let (host, port) = authority.rsplit_once(':').ok_or_else(|| wrong("the port is missing"))?;
                if host.is_empty() || host.contains('/') || host.contains('@') {
                    return Err(wrong("the host is missing or not a plain host name"));
                }
                if port.parse::<u16>().is_ok_and(|port| port > 0) {
                    Ok(Self::Tcp(authority.to_owned()))
                } else {
                    Err(wrong("the port is not a number from 1 to 65535"))
                }
            }
            "https" => Err(wrong("TLS to the engine is not available in this version")),
            "ssh" => Err(wrong("ssh is not supported")),
            _ => Err(wrong("unknown scheme")),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(authority) => write!(f, "tcp://{authority}"),
        }
    }
}
