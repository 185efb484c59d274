//! What can be wrong with a certificate, and where. None of it has a byte of what was read.

use std::{fmt, path::PathBuf};

use crate::files::Unreadable;

/// Where a certificate, a key or a bundle of CAs comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// A Docker secret, by name.
    Secret(String),
    /// A file in the node's directory of certificates, by name.
    File(String),
    /// A label's, by the name that it is given there.
    Label(String),
    /// Given by a call of an API, by the name that it is given there.
    Given(String),
    /// A file that the node's configuration names.
    Configured(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret(name) => write!(f, "secret {name:?}"),
            Self::File(name) => write!(f, "certificate file {name:?}"),
            Self::Label(name) => write!(f, "label's certificate {name:?}"),
            Self::Given(name) => write!(f, "certificate {name:?}"),
            Self::Configured(path) => write!(f, "{}", path.display()),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct CertificateError {
    pub place: Place,
    pub reason: Reason,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    #[error(transparent)]
    File(#[from] Unreadable),
    #[error("line {line} is not PEM")]
    NotPem { line: usize },
    #[error("the block that begins in line {line} does not end")]
    NoEnd { line: usize },
    #[error("the block that begins in line {line} is not base64")]
    NotBase64 { line: usize },
    #[error("has no certificate")]
    NoCertificate,
    #[error("has no private key")]
    NoKey,
    #[error("has another private key in line {line}")]
    SecondKey { line: usize },
    #[error("the private key in line {line} is encrypted")]
    EncryptedKey { line: usize },
    #[error("the private key in line {line} is of no kind that TLS can use here")]
    Key { line: usize },
    #[error("the certificate in line {line} cannot be read")]
    Certificate { line: usize },
    #[error("the private key does not belong to the certificate")]
    Mismatch,
    #[error("the private key belongs to the certificate in line {line}, and not to the first")]
    Order { line: usize },
}

impl Place {
    pub(super) fn error(&self, reason: impl Into<Reason>) -> CertificateError {
        CertificateError { place: self.clone(), reason: reason.into() }
    }

    /// What to do if it cannot be read.
    pub(crate) fn remedy(&self, error: Unreadable) -> &'static str {
        match (error, self) {
            (Unreadable::Name, _) => "give a name without / that is neither . nor ..",
            (Unreadable::Missing, Self::Secret(_)) => {
                "give the secret to the service that hands secrets on to this node's agent, or put it in the secrets directory"
            }
            (Unreadable::Missing, Self::File(_)) => "put the file into the node's directory of certificates",
            (Unreadable::TooBig { .. }, _) => "give only what belongs there",
            (Unreadable::Missing | Unreadable::Read(_) | Unreadable::NotAFile, _) => "see that it is a file and that the agent may read it",
        }
    }
}

impl CertificateError {
    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match &self.reason {
            Reason::File(error) => self.place.remedy(*error),
            Reason::NotPem { .. } | Reason::NoEnd { .. } | Reason::NotBase64 { .. } => "give it whole, in PEM",
            Reason::NoCertificate | Reason::NoKey => "give the certificate, its chain and its key, in PEM",
            Reason::SecondKey { .. } => "leave only the certificate's key",
            Reason::EncryptedKey { .. } => "give it without a passphrase, as with: openssl pkey -in old -out new",
            Reason::Key { .. } => "give an RSA key of at least 2048 bits, or one of P-256, P-384, P-521 or Ed25519",
            Reason::Certificate { .. } => "give X.509 certificates of version 3",
            Reason::Mismatch => "give the key that the certificate was made for",
            Reason::Order { .. } => "put the server's certificate first, and its chain behind it",
        }
    }
}
