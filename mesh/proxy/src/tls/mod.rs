//! TLS that ends here, and TLS to backends.
//!
//! aws-lc-rs is the provider everywhere, by name: no default of the process is needed, and none is changed.

mod error;
mod pem;
mod store;
mod stream;
#[cfg(test)]
pub(crate) mod testing;
mod upstream;
mod x509;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use self::{
    error::{CertificateError, Place, Reason},
    store::{CertificateFault, CertificateProblem, Certificates, Directories, FreeCertificate, ShownFor},
    stream::TlsStream,
    upstream::{DEBIAN_BUNDLE, UpstreamTls, UpstreamTlsError, connect, server_name},
};
use crate::{files::Watched, hello::Alert};
use bytes::BytesMut;
use rustls::{
    CommonState, ProtocolVersion, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    time::{Instant, timeout_at},
};

/// What a client and the proxy can speak in TLS, the best first.
const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Whom clients' certificates are believed from.
#[derive(Debug)]
pub struct ClientAuthorities {
    verifier: Arc<dyn ClientCertVerifier>,
    bundle: PathBuf,
    file: Watched,
    text: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    #[error("no client certificate can be verified: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    #[error("the client asks for a name that there is no certificate for: {}", .0.as_deref().unwrap_or("none"))]
    UnknownName(Option<String>),
    #[error("the client did not finish the handshake in time")]
    Late,
    #[error("the handshake failed: {0}")]
    Tls(rustls::Error),
    #[error("the connection failed during the handshake: {0}")]
    Connection(io::Error),
}

impl ClientAuthorities {
    /// From a bundle of CAs in PEM. Who has no certificate, or does not give it, can go on; who gives one that they did not sign,
    /// or that has expired, cannot.
    pub fn read(bundle: &Path) -> Result<Self, ConfigError> {
        let (file, text) = Watched::read(bundle.to_owned());
        let place = Place::Configured(bundle.to_owned());
        let text = text.map_err(|reason| place.error(reason))?;
        let roots = pem::roots(&place, &text)?;
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
        Ok(Self { verifier: builder.allow_unauthenticated().build()?, bundle: bundle.to_owned(), file, text })
    }

    /// Looks at the bundle, and reads it if it changed. Says whether there are others now, which takes another configuration. A bundle
    /// that cannot be used leaves what there was, and is told each time. To be called from time to time, from where waiting for a
    /// disk delays nobody.
    pub fn refresh(&mut self) -> Result<bool, ConfigError> {
        if !self.file.is_stale() {
            return Ok(false);
        }
        let new = Self::read(&self.bundle)?;
        if new.text == self.text {
            self.file = new.file;
            return Ok(false);
        }
        *self = new;
        Ok(true)
    }
}

/// For all listeners and workers: tickets that one of them gave are good with the others. Another bundle of client CAs takes
/// another configuration, whose ticket keys are new, so that nobody comes back who would not be let in again.
pub fn server_config(certificates: Arc<Certificates>, clients: Option<&ClientAuthorities>) -> Result<Arc<ServerConfig>, ConfigError> {
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13, &TLS12])?;
    let builder = match clients {
        Some(clients) => builder.with_client_cert_verifier(Arc::clone(&clients.verifier)),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(certificates);
    config.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
    // The key changes every six hours, and the one before is still good. What was agreed on is in the ticket, and no table of
    // sessions is locked.
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// Opens a connection whose hello asked for `name`. `first` was read of `stream` already.
pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    config: Arc<ServerConfig>,
    certificates: &Certificates,
    mut stream: S,
    first: BytesMut,
    name: Option<&str>,
    deadline: Instant,
) -> Result<TlsStream<S>, AcceptError> {
    if certificates.find(name).is_none() {
        refuse(&mut stream, Alert::UnrecognizedName, deadline).await;
        return Err(AcceptError::UnknownName(name.map(Into::into)));
    }
    match timeout_at(deadline, TlsStream::accept(config, stream, first)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(match error.downcast::<rustls::Error>() {
            Ok(error) => AcceptError::Tls(error),
            Err(error) => AcceptError::Connection(error),
        }),
        Err(_) => Err(AcceptError::Late),
    }
}

/// Tells a client, before anything is encrypted, why it is refused, and that nothing follows.
pub async fn refuse<S: AsyncWrite + Unpin>(stream: &mut S, alert: Alert, deadline: Instant) {
    let told = async {
        stream.write_all(&alert.record()).await?;
        stream.shutdown().await
    };
    // It is refused whether it hears that or not.
    let _ = timeout_at(deadline, told).await;
}

/// Whether both sides agreed on HTTP/2.
pub fn is_http2(connection: &CommonState) -> bool {
    connection.alpn_protocol() == Some(HTTP2)
}

/// Empty before the handshake.
pub fn version_name(connection: &CommonState) -> &'static str {
    match connection.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "",
    }
}

/// Whether the client gave a certificate. It was verified then.
pub fn has_client_certificate(connection: &CommonState) -> bool {
    connection.peer_certificates().is_some_and(|chain| !chain.is_empty())
}

#[cfg(test)]
mod tests;
