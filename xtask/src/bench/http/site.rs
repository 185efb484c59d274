//! The certificate that all proxies show, and clients that believe it unseen.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, NamedGroup, SignatureScheme,
    client::{
        ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{
        CryptoProvider,
        aws_lc_rs::{cipher_suite::TLS13_AES_128_GCM_SHA256, default_provider, kx_group::X25519},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
    version::TLS13,
};

pub(super) const HOST: &str = "h0.example";

/// Writes `site.pem` and `site.key`, ECDSA P-256, and `both.pem`, which has the two.
pub(super) fn write(directory: &Path) -> Result<()> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let certificate = rcgen::CertificateParams::new(vec![HOST.to_owned()])?.self_signed(&key)?.pem();
    let key = key.serialize_pem();
    fs::write(directory.join("both.pem"), format!("{certificate}{key}"))?;
    fs::write(directory.join("site.pem"), certificate)?;
    fs::write(directory.join("site.key"), key)?;
    Ok(())
}

/// Speaks TLS 1.3 with AES-128-GCM and X25519 and nothing else, so that all proxies do the same work.
pub(super) fn client(resumes: bool) -> Result<Arc<ClientConfig>> {
    let provider = CryptoProvider { cipher_suites: vec![TLS13_AES_128_GCM_SHA256], kx_groups: vec![X25519], ..default_provider() };
    let builder = ClientConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(&[&TLS13])?;
    let mut config = builder.dangerous().with_custom_certificate_verifier(Arc::new(Unseen)).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::store(Arc::new(Tickets { keeps: resumes, kept: Mutex::default() }));
    Ok(Arc::new(config))
}

/// The generator is not to spend its time on proofs.
#[derive(Debug)]
struct Unseen;

impl ServerCertVerifier for Unseen {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// What servers give for the next time: each is used once, the newest first, since some servers remember only so many. A client that keeps none still asks for them, as browsers do.
#[derive(Debug)]
struct Tickets {
    keeps: bool,
    kept: Mutex<Vec<Tls13ClientSessionValue>>,
}

impl Tickets {
    fn kept(&self) -> std::sync::MutexGuard<'_, Vec<Tls13ClientSessionValue>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        let mut kept = self.kept();
        if self.keeps && kept.len() < 1024 {
            kept.push(value);
        }
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.kept().pop()
    }
}
