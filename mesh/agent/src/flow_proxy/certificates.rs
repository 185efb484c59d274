//! Certificates that were put: kept in the state directory, and shown by the proxy.

use std::sync::{Arc, Mutex, PoisonError};

use swarmesh_proxy::{
    Shared,
    tls::{CertificateError, FreeCertificate},
};

use crate::{Store, StoreError};

/// Looked through at each handshake of a name that no route has a certificate for.
const MOST: usize = 200;
pub(super) const LARGEST: usize = 1 << 20;

/// What was put, and who shows it.
#[derive(Debug)]
pub struct Certificates {
    store: Store,
    /// `None` if the proxy listens nowhere.
    proxy: Option<Arc<Shared>>,
    /// Held while files are written: the last one written is the one that is shown.
    writing: Mutex<()>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum PutError {
    #[error("certName parameter is mandatory")]
    NoName,
    #[error("certName is not a plain file name of letters, digits, and any of - . _ * @ +")]
    Name,
    #[error("Body cannot be empty")]
    Empty,
    #[error("the body is not text; give the certificate, its chain and its key in PEM")]
    NotText,
    #[error("{0}; give the certificate, its chain and its key in PEM")]
    Certificate(#[from] CertificateError),
    #[error("there are {MOST} certificates already; remove some from the state directory")]
    TooMany,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Certificates {
    /// Shows what was put before. Reads files.
    pub fn new(store: Store, proxy: Option<Arc<Shared>>) -> Self {
        let this = Self { store, proxy, writing: Mutex::default() };
        if let Err(error) = this.show() {
            tracing::warn!(%error, "certificates that were put are not shown");
        }
        this
    }

    pub(super) fn put(&self, name: &str, body: &[u8]) -> Result<(), PutError> {
        if name.is_empty() {
            return Err(PutError::NoName);
        }
        if body.is_empty() {
            return Err(PutError::Empty);
        }
        if !Store::may_name_certificate(name) {
            return Err(PutError::Name);
        }
        let text = std::str::from_utf8(body).map_err(|_| PutError::NotText)?;
        FreeCertificate::read(name, body)?;
        // Nothing is left half done by a panic: files are whole or not there.
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let there = self.store.load_certificates()?;
        if there.len() >= MOST && there.iter().all(|(known, _)| known != name) {
            return Err(PutError::TooMany);
        }
        self.store.save_certificate(name, text)?;
        self.show()?;
        Ok(())
    }

    /// Names, with the certificates that everybody may see.
    pub(super) fn list(&self) -> Result<Vec<(String, String)>, StoreError> {
        Ok(self.store.load_certificates()?.into_iter().map(|(name, text)| (name, without_keys(&text))).collect())
    }

    fn show(&self) -> Result<(), StoreError> {
        let Some(proxy) = &self.proxy else { return Ok(()) };
        let mut shown = Vec::new();
        for (name, text) in self.store.load_certificates()? {
            match FreeCertificate::read(&name, text.as_bytes()) {
                Ok(certificate) => shown.push(certificate),
                Err(error) => tracing::warn!(%error, "a certificate that was put is not shown"),
            }
        }
        proxy.certificates.set_free(shown);
        Ok(())
    }
}

/// The blocks that are certificates, and nothing else of the text.
fn without_keys(text: &str) -> String {
    let mut out = String::new();
    let mut inside = false;
    for line in text.lines().map(str::trim) {
        inside |= line == "-----BEGIN CERTIFICATE-----";
        if inside {
            out.push_str(line);
            out.push('\n');
        }
        inside &= line != "-----END CERTIFICATE-----";
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn nothing_but_certificates_is_listed() {
        let text = "-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----\nsubject\n-----BEGIN CERTIFICATE-----\r\none\n\
                    -----END CERTIFICATE-----\n-----BEGIN EC PRIVATE KEY-----\nsecret\n-----END EC PRIVATE KEY-----\n";
        assert_eq!(super::without_keys(text), "-----BEGIN CERTIFICATE-----\none\n-----END CERTIFICATE-----\n");
    }
}
