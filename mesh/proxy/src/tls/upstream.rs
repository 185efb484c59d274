//! TLS to backends: proved by the node's bundle of CAs, or only encrypted.

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use http::uri::Authority;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    version::{TLS12, TLS13},
};
use swarmesh_router::model::{BackendProtocol, BackendTls};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, timeout_at},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{CertificateError, ConfigError, HTTP1, HTTP2, Place, pem, provider};
use crate::files::Watched;

/// Where Debian's package ca-certificates keeps its bundle.
pub const DEBIAN_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// What backends are spoken to with. For all workers: one of each kind, so that sessions are resumed.
#[derive(Debug)]
pub struct UpstreamTls {
    bundle: PathBuf,
    file: Mutex<Watched>,
    verified: ArcSwap<Verified>,
    unverified: ByProtocol,
}

#[derive(Debug)]
struct Verified {
    configs: Result<ByProtocol, CertificateError>,
    /// Of the last reading, if `configs` are of an earlier one.
    error: Option<CertificateError>,
}

#[derive(Clone, Debug)]
struct ByProtocol {
    http1: Arc<ClientConfig>,
    /// Or HTTP/1.1, as the backend chooses.
    http2: Arc<ClientConfig>,
}

#[derive(Debug, thiserror::Error)]
pub enum UpstreamTlsError {
    #[error("no backend can be verified: {0}")]
    Authorities(#[from] CertificateError),
    #[error("{0:?} is no name that a backend can prove")]
    Name(String),
    #[error("the backend did not finish the handshake in time")]
    Late,
    #[error("the handshake with the backend failed: {0}")]
    Tls(rustls::Error),
    #[error("the connection to the backend failed during the handshake: {0}")]
    Connection(io::Error),
}

impl UpstreamTlsError {
    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Authorities(error) => error.remedy(),
            Self::Name(_) => "say with backend-name which name the backend's certificate is for",
            Self::Late | Self::Connection(_) => "see that the backend listens for TLS on this port",
            Self::Tls(_) => "see that the backend's certificate is for this name and signed by a CA of the node's bundle",
        }
    }
}

impl UpstreamTls {
    /// Reads the bundle. If that cannot be used, backends that need not be verified can be reached all the same.
    pub fn new(bundle: PathBuf) -> Result<Self, ConfigError> {
        let provider = provider();
        let verifier = Arc::new(Unverified(provider.signature_verification_algorithms));
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13, &TLS12])?;
        let unverified = ByProtocol::of(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth());
        let (file, roots) = read(&bundle);
        let configs = match roots {
            Ok(roots) => Ok(ByProtocol::with(roots)?),
            Err(error) => Err(error),
        };
        let verified = ArcSwap::from_pointee(Verified { configs, error: None });
        Ok(Self { bundle, file: Mutex::new(file), verified, unverified })
    }

    /// Looks at the bundle, and reads it if it changed. One that cannot be used leaves what there was. To be called from time to time,
    /// from where waiting for a disk delays nobody.
    pub fn refresh(&self) -> Result<bool, ConfigError> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if !file.is_stale() {
            return Ok(false);
        }
        let (now, roots) = read(&self.bundle);
        *file = now;
        let next = match roots {
            Ok(roots) => Verified { configs: Ok(ByProtocol::with(roots)?), error: None },
            Err(error) => match &self.verified.load().configs {
                Ok(before) => Verified { configs: Ok(before.clone()), error: Some(error) },
                Err(_) => Verified { configs: Err(error), error: None },
            },
        };
        self.verified.store(Arc::new(next));
        Ok(true)
    }

    /// What is wrong with the bundle.
    pub fn problem(&self) -> Option<CertificateError> {
        let verified = self.verified.load();
        verified.error.clone().or_else(|| verified.configs.as_ref().err().cloned())
    }

    pub fn config(&self, tls: &BackendTls, protocol: BackendProtocol) -> Result<Arc<ClientConfig>, UpstreamTlsError> {
        let of = |configs: &ByProtocol| match protocol {
            BackendProtocol::H2 => Arc::clone(&configs.http2),
            BackendProtocol::Http1 | BackendProtocol::H2c => Arc::clone(&configs.http1),
        };
        if !tls.verify {
            return Ok(of(&self.unverified));
        }
        Ok(of(self.verified.load().configs.as_ref().map_err(Clone::clone)?))
    }
}

impl ByProtocol {
    fn with(roots: RootCertStore) -> Result<Self, ConfigError> {
        let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13, &TLS12])?;
        Ok(Self::of(builder.with_root_certificates(roots).with_no_client_auth()))
    }

    fn of(config: ClientConfig) -> Self {
        let speaking = |protocols: &[&[u8]]| {
            let mut config = config.clone();
            config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
            Arc::new(config)
        };
        Self { http1: speaking(&[HTTP1]), http2: speaking(&[HTTP2, HTTP1]) }
    }
}

fn read(bundle: &Path) -> (Watched, Result<RootCertStore, CertificateError>) {
    let place = Place::Configured(bundle.to_owned());
    let (file, text) = Watched::read(bundle.to_owned());
    (file, text.map_err(|reason| place.error(reason)).and_then(|text| pem::roots(&place, &text)))
}

/// The name that a backend is asked for and has to prove: the route's, or that of the request's `Host`. One that need not be proved
/// can be missing: then nothing is asked for.
pub fn server_name(tls: &BackendTls, host: Option<&str>, address: IpAddr) -> Result<ServerName<'static>, UpstreamTlsError> {
    let name = tls.name.as_deref().or(host);
    match name.and_then(parse) {
        Some(name) => Ok(name),
        None if tls.verify || tls.name.is_some() => Err(UpstreamTlsError::Name(name.unwrap_or_default().to_owned())),
        None => Ok(ServerName::from(address)),
    }
}

/// `Host` may have a port, and brackets.
fn parse(host: &str) -> Option<ServerName<'static>> {
    let authority: Authority = host.parse().ok()?;
    let host = authority.host();
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    ServerName::try_from(host.strip_suffix('.').unwrap_or(host)).ok().map(|name| name.to_owned())
}

/// Begins TLS on a connection to a backend.
pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    stream: S,
    deadline: Instant,
) -> Result<TlsStream<S>, UpstreamTlsError> {
    match timeout_at(deadline, TlsConnector::from(config).connect(name, stream)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(match error.downcast::<rustls::Error>() {
            Ok(error) => UpstreamTlsError::Tls(error),
            Err(error) => UpstreamTlsError::Connection(error),
        }),
        Err(_) => Err(UpstreamTlsError::Late),
    }
}

/// Takes any certificate. Whoever shows it must have its key, so that nobody in between can pass on another's.
#[derive(Debug)]
struct Unverified(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, leaf, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use rustls::{
        CertificateError as Refused, HandshakeKind, ServerConfig, SupportedProtocolVersion,
        crypto::aws_lc_rs::sign::any_supported_type,
        pki_types::{PrivateKeyDer, pem::PemObject},
        server::{ClientHello, ResolvesServerCert},
        sign::CertifiedKey,
    };
    use tokio::{io::AsyncReadExt, io::AsyncWriteExt, net::TcpListener, net::TcpStream};
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::tls::{
        is_http2,
        testing::{self, Authority, Site},
    };

    #[derive(Debug)]
    struct Shows(Arc<CertifiedKey>);

    impl ResolvesServerCert for Shows {
        fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            Some(Arc::clone(&self.0))
        }
    }

    fn backend(certificate: &str, key: &str, alpn: &[&[u8]], versions: &[&'static SupportedProtocolVersion]) -> ServerConfig {
        let key = any_supported_type(&PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap();
        let shown = CertifiedKey::new(vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()], key);
        let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(versions).unwrap();
        let mut config = builder.with_no_client_auth().with_cert_resolver(Arc::new(Shows(Arc::new(shown))));
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config
    }

    /// Says the name that it was asked for.
    async fn serve(config: ServerConfig) -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let name = stream.get_ref().1.server_name().unwrap_or("nobody").to_owned();
                stream.write_all(name.as_bytes()).await.ok();
                stream.shutdown().await.ok();
            }
        });
        address
    }

    fn tls(verify: bool, name: Option<&str>) -> BackendTls {
        BackendTls { verify, name: name.map(Into::into) }
    }

    struct Node {
        root: tempfile::TempDir,
        authority: Authority,
        upstream: UpstreamTls,
    }

    impl Node {
        fn new() -> Self {
            let (root, authority) = (tempfile::tempdir().unwrap(), Authority::new());
            let bundle = root.path().join("bundle.pem");
            fs::write(&bundle, &authority.certificate).unwrap();
            Self { root, authority, upstream: UpstreamTls::new(bundle).unwrap() }
        }

        /// The name that the backend was asked for, whether HTTP/2 was agreed on, and the kind of the handshake.
        async fn visit(
            &self,
            to: std::net::SocketAddr,
            tls: &BackendTls,
            protocol: BackendProtocol,
            host: Option<&str>,
        ) -> Result<(String, bool, Option<HandshakeKind>), UpstreamTlsError> {
            let config = self.upstream.config(tls, protocol)?;
            let name = server_name(tls, host, to.ip())?;
            let stream = TcpStream::connect(to).await.unwrap();
            let mut stream = connect(config, name, stream, Instant::now() + Duration::from_secs(20)).await?;
            let mut asked = String::new();
            stream.read_to_string(&mut asked).await.map_err(UpstreamTlsError::Connection)?;
            let connection = stream.get_ref().1;
            Ok((asked, is_http2(connection), connection.handshake_kind()))
        }
    }

    const BOTH: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];

    fn shows(site: &Site) -> ServerConfig {
        backend(&site.certificate, &site.key, &[], BOTH)
    }

    #[tokio::test]
    async fn a_verified_backend_proves_its_name() {
        let node = Node::new();
        let site = serve(shows(&node.authority.site(&["a.example", "127.0.0.1"]))).await;
        let stranger = serve(shows(&Authority::new().site(&["a.example"]))).await;
        let expired = |params: &mut rcgen::CertificateParams| params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        let expired = serve(shows(&node.authority.site_with(&["a.example"], expired))).await;
        let http1 = BackendProtocol::Http1;
        for (to, name, host, expected) in [
            (site, None, Some("a.example:8443"), Ok("a.example")),
            (site, Some("a.example"), Some("b.example"), Ok("a.example")),
            (site, None, Some("127.0.0.1:80"), Ok("nobody")),
            (site, None, Some("b.example"), Err("name")),
            (site, Some("b.example"), Some("a.example"), Err("name")),
            (stranger, None, Some("a.example"), Err("issuer")),
            (expired, None, Some("a.example"), Err("expired")),
        ] {
            let result = node.visit(to, &tls(true, name), http1, host).await;
            let result = result.as_ref().map(|(name, ..)| name.as_str()).map_err(|error| match error {
                UpstreamTlsError::Tls(rustls::Error::InvalidCertificate(refused)) => match refused {
                    Refused::NotValidForNameContext { .. } => "name",
                    Refused::UnknownIssuer => "issuer",
                    Refused::ExpiredContext { .. } => "expired",
                    _ => "refused",
                },
                _ => "failed",
            });
            assert_eq!(result, expected, "{name:?} {host:?}");
            // What is not verified is only encrypted.
            assert!(node.visit(to, &tls(false, name), http1, host).await.is_ok());
        }
    }

    #[tokio::test]
    async fn an_unverified_backend_has_the_key_of_what_it_shows() {
        let node = Node::new();
        let site = node.authority.site(&["a.example"]);
        for version in [&TLS13, &TLS12] {
            let honest = serve(backend(&site.certificate, &site.key, &[], &[version])).await;
            let other = serve(backend(&site.certificate, &testing::key(), &[], &[version])).await;
            for verify in [false, true] {
                let tls = tls(verify, None);
                let visit = |to| node.visit(to, &tls, BackendProtocol::H2, Some("a.example"));
                assert!(visit(honest).await.is_ok(), "{version:?}");
                let error = visit(other).await.unwrap_err();
                assert!(matches!(error, UpstreamTlsError::Tls(rustls::Error::InvalidCertificate(Refused::BadSignature))), "{error}");
            }
        }
    }

    #[tokio::test]
    async fn http2_is_spoken_where_both_sides_want_it_and_sessions_are_resumed() {
        let node = Node::new();
        let site = node.authority.site(&["a.example"]);
        let config = |alpn: &[&[u8]]| backend(&site.certificate, &site.key, alpn, BOTH);
        let (both, one, none) = (serve(config(&[HTTP2, HTTP1])).await, serve(config(&[HTTP1])).await, serve(config(&[])).await);
        for verify in [true, false] {
            for (to, protocol, http2) in [
                (both, BackendProtocol::H2, true),
                (one, BackendProtocol::H2, false),
                (none, BackendProtocol::H2, false),
                (both, BackendProtocol::Http1, false),
                (none, BackendProtocol::Http1, false),
            ] {
                let tls = tls(verify, None);
                let visit = || node.visit(to, &tls, protocol, Some("a.example"));
                assert_eq!(visit().await.unwrap().1, http2, "{protocol:?}");
                assert_eq!(visit().await.unwrap().2, Some(HandshakeKind::Resumed));
            }
        }
    }

    #[tokio::test]
    async fn another_bundle_counts_from_when_it_is_seen_and_a_bad_one_never() {
        let node = Node::new();
        let (other, bundle) = (Authority::new(), node.root.path().join("bundle.pem"));
        let site = serve(shows(&other.site(&["a.example"]))).await;
        let verified = tls(true, None);
        let visit = || node.visit(site, &verified, BackendProtocol::Http1, Some("a.example"));
        assert!(visit().await.is_err());
        fs::write(&bundle, &other.certificate).unwrap();
        assert!(node.upstream.refresh().unwrap());
        assert!(visit().await.is_ok());
        assert_eq!(node.upstream.problem(), None);
        fs::remove_file(&bundle).unwrap();
        assert!(node.upstream.refresh().unwrap());
        assert_eq!(node.upstream.problem().unwrap().reason, super::super::Reason::File(crate::files::Unreadable::Missing));
        assert!(visit().await.is_ok());

        let none = UpstreamTls::new(bundle).unwrap();
        assert!(matches!(none.config(&verified, BackendProtocol::H2), Err(UpstreamTlsError::Authorities(_))));
        assert!(none.config(&tls(false, None), BackendProtocol::H2).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_backend_is_late() {
        let node = Node::new();
        let (near, _far) = tokio::io::duplex(1 << 16);
        let tls = tls(false, Some("a.example"));
        let config = node.upstream.config(&tls, BackendProtocol::Http1).unwrap();
        let name = server_name(&tls, None, [127, 0, 0, 1].into()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(4);
        assert!(matches!(connect(config, name, near, deadline).await, Err(UpstreamTlsError::Late)));
        assert_eq!(Instant::now(), deadline);
    }

    #[test]
    fn names_are_the_routes_or_the_requests() {
        let address = IpAddr::from([192, 0, 2, 1]);
        let said = |tls: &BackendTls, host| server_name(tls, host, address).map(|name| name.to_str().into_owned()).ok();
        for (name, host, verified, unverified) in [
            (Some("n.example"), Some("h.example"), Some("n.example"), Some("n.example")),
            (Some("n.example"), None, Some("n.example"), Some("n.example")),
            (Some("not a name"), Some("h.example"), None, None),
            (None, Some("h.example"), Some("h.example"), Some("h.example")),
            (None, Some("h.example.:8080"), Some("h.example"), Some("h.example")),
            (None, Some("192.0.2.9:80"), Some("192.0.2.9"), Some("192.0.2.9")),
            (None, Some("[2001:db8::1]:80"), Some("2001:db8::1"), Some("2001:db8::1")),
            (None, Some("no name!"), None, Some("192.0.2.1")),
            (None, Some(""), None, Some("192.0.2.1")),
            (None, None, None, Some("192.0.2.1")),
        ] {
            assert_eq!(said(&tls(true, name), host).as_deref(), verified, "{name:?} {host:?}");
            assert_eq!(said(&tls(false, name), host).as_deref(), unverified, "{name:?} {host:?}");
        }
    }

    #[test]
    fn debians_bundle_is_understood() {
        let upstream = UpstreamTls::new(DEBIAN_BUNDLE.into()).unwrap();
        assert_eq!(upstream.problem(), None, "of Debian's package ca-certificates");
    }
}
