//! What must not be shown: passwords and keys. `Debug` and JSON say that there is one, and no more.

use std::fmt;

use serde::{Serialize, Serializer};

/// A password as a label gives it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Password {
    Plain(String),
    /// In crypt(3)'s form, `$id$salt$hash`.
    Hash(HashKind, String),
}

/// The schemes of crypt(3) that a hash may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HashKind {
    /// `$1$`
    Md5,
    /// `$5$`
    Sha256,
    /// `$6$`
    Sha512,
    /// `$2a$`, `$2b$`, `$2y$`
    Bcrypt,
}

/// Why a text is no password hash that can be checked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum PasswordError {
    #[error("is no hash in crypt(3)'s form")]
    NotAHash,
    #[error("has a hash of scheme {0}, which is not one of 1, 2a, 2b, 2y, 5 and 6")]
    Scheme(String),
}

impl Password {
    pub fn hash(text: &str) -> Result<Self, PasswordError> {
        let mut fields = text.strip_prefix('$').ok_or(PasswordError::NotAHash)?.splitn(3, '$');
        let (Some(scheme), Some(salt), Some(hash)) = (fields.next(), fields.next(), fields.next()) else {
            return Err(PasswordError::NotAHash);
        };
        let kind = match scheme {
            "1" => HashKind::Md5,
            "5" => HashKind::Sha256,
            "6" => HashKind::Sha512,
            "2a" | "2b" | "2y" => HashKind::Bcrypt,
            other => return Err(PasswordError::Scheme(other.chars().take(16).collect())),
        };
        if salt.is_empty() || hash.is_empty() {
            return Err(PasswordError::NotAHash);
        }
        Ok(Self::Hash(kind, text.to_owned()))
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(_) => f.write_str("plain"),
            Self::Hash(kind, _) => write!(f, "{kind:?}"),
        }
    }
}

impl Serialize for Password {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            Self::Plain(_) => "plain",
            Self::Hash(HashKind::Md5, _) => "md5",
            Self::Hash(HashKind::Sha256, _) => "sha256",
            Self::Hash(HashKind::Sha512, _) => "sha512",
            Self::Hash(HashKind::Bcrypt, _) => "bcrypt",
        })
    }
}

/// Where a certificate and its key are.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CertificateRef {
    /// Docker secrets by name. Without a key, the certificate's holds both.
    Secrets { certificate: String, key: Option<String> },
    /// Files in the directory that the node keeps certificates in.
    Files { certificate: String, key: Option<String> },
    /// Certificates and key in PEM, as a label gave them.
    Inline { name: String, pem: String },
}

impl CertificateRef {
    /// What to call it.
    pub fn name(&self) -> &str {
        match self {
            Self::Secrets { certificate, .. } | Self::Files { certificate, .. } => certificate,
            Self::Inline { name, .. } => name,
        }
    }
}

impl fmt::Debug for CertificateRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secrets { certificate, key } => write!(f, "secret {certificate} with {}", key.as_deref().unwrap_or("itself")),
            Self::Files { certificate, key } => write!(f, "file {certificate} with {}", key.as_deref().unwrap_or("itself")),
            Self::Inline { name, .. } => write!(f, "label's {name}"),
        }
    }
}

impl Serialize for CertificateRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{self:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_known_by_their_scheme() {
        for (text, kind) in [
            ("$1$salt$hash", HashKind::Md5),
            ("$5$rounds=1000$salt$hash", HashKind::Sha256),
            ("$6$salt$hash", HashKind::Sha512),
            ("$2y$10$abcdefghijklmnopqrstuv", HashKind::Bcrypt),
        ] {
            assert!(matches!(Password::hash(text), Ok(Password::Hash(k, t)) if k == kind && t == text), "{text}");
        }
        for text in ["", "secret", "$6$salt", "$6$$hash", "$6$salt$"] {
            assert_eq!(Password::hash(text), Err(PasswordError::NotAHash), "{text}");
        }
        assert_eq!(Password::hash("$y$j9T$salt$hash"), Err(PasswordError::Scheme("y".into())));
    }

    #[test]
    fn nothing_secret_is_shown() {
        let inline = CertificateRef::Inline { name: "shop".into(), pem: "-----BEGIN PRIVATE KEY-----".into() };
        for shown in [
            format!("{:?}", Password::Plain("hunter2".into())),
            serde_json::to_string(&Password::Plain("hunter2".into())).unwrap(),
            format!("{:?}", Password::hash("$6$hunter2$hunter2").unwrap()),
            format!("{inline:?}"),
            serde_json::to_string(&inline).unwrap(),
        ] {
            assert!(!shown.contains("hunter2") && !shown.contains("BEGIN"), "{shown}");
        }
    }
}
