//! Certificates for tests.

use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use swarmesh_router::model::{
    Action, CertificateRef, Dialect, HostMatch, Listener, Match, Origin, Owner, OwnerKind, Policy, Precedence, Route, Share,
};

pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// In PEM, with a line end.
    pub(crate) certificate: String,
}

pub(crate) struct Site {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        params.distinguished_name.push(DnType::CommonName, format!("test authority {number}"));
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let certificate = unix(&issuer.pem());
        Self { issuer, certificate }
    }

    pub(crate) fn site(&self, names: &[&str]) -> Site {
        self.site_with(names, |_| {})
    }

    pub(crate) fn site_with(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Site {
        let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Site { certificate: unix(&certificate.pem()), key: unix(&key.serialize_pem()) }
    }
}

impl Site {
    pub(crate) fn combined(&self) -> String {
        format!("{}{}", self.certificate, self.key)
    }
}

/// Nobody's.
pub(crate) fn key() -> String {
    unix(&KeyPair::generate().unwrap().serialize_pem())
}

fn unix(pem: &str) -> String {
    pem.replace("\r\n", "\n").trim_end().to_owned() + "\n"
}

/// One that is in DER.
pub(crate) fn pem(certificate: &[u8]) -> String {
    let mut text = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for line in base64(certificate).as_bytes().chunks(64) {
        text.push_str(str::from_utf8(line).unwrap());
        text.push('\n');
    }
    text + "-----END CERTIFICATE-----\n"
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let number = (0..3).fold(0, |number, at| number << 8 | usize::from(three.get(at).copied().unwrap_or(0)));
        for digit in 0..4 {
            let written = digit <= three.len();
            text.push(if written { DIGITS[number >> (18 - 6 * digit) & 63].into() } else { '=' });
        }
    }
    text
}

/// A route for this host: `name` or `*.name`.
pub(crate) fn route(host: &str, certificate: Option<CertificateRef>) -> Route {
    let owner = Owner { id: format!("id of {host}"), name: host.to_owned(), kind: OwnerKind::Service };
    let host = match host.strip_prefix('*') {
        Some(ending) => HostMatch::Suffix(ending.to_owned()),
        None => HostMatch::Exact(host.to_owned()),
    };
    Route {
        origin: Origin { owner, dialect: Dialect::Swarmesh, label: "swarmesh.http.a.host".into(), part: 0 },
        listener: Listener::Https,
        matching: Match { hosts: vec![host], ..Match::default() },
        precedence: Precedence::Specific { priority: 0 },
        share: Share::Alone,
        filters: vec![],
        action: Action::Status(404),
        certificate,
        policy: Policy::default(),
    }
}
