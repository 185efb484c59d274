//! Certificates and keys as people keep them: in PEM, in one file or two, in any order that can be understood.

use std::sync::Arc;

use rustls::{
    RootCertStore,
    crypto::aws_lc_rs::sign::any_supported_type,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{PemObject, SectionKind},
    },
    server::ParsedCertificate,
    sign::CertifiedKey,
};

use super::{
    error::{CertificateError, Place, Reason},
    x509::{self, Validity},
};

/// What is shown to clients, and when it counts.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) key: Arc<CertifiedKey>,
    pub(super) validity: Validity,
}

struct Block {
    line: usize,
    kind: SectionKind,
    der: Vec<u8>,
}

/// A block that has begun.
struct Open<'a> {
    line: usize,
    label: &'a [u8],
    body: Vec<u8>,
    encrypted: bool,
}

/// The chain from one text and the key from another, or both from the first.
pub(super) fn pair(certificate: (&Place, &[u8]), key: Option<(&Place, &[u8])>) -> Result<Loaded, CertificateError> {
    let (place, text) = certificate;
    let at = |reason| place.error(reason);
    let both = blocks(text).map_err(at)?;
    let (key_place, key_blocks) = match key {
        Some((place, text)) => (place, &blocks(text).map_err(|reason| place.error(reason))?),
        None => (place, &both),
    };
    let chain: Vec<(usize, CertificateDer<'static>)> = both
        .iter()
        .filter(|block| block.kind == SectionKind::Certificate)
        .map(|block| (block.line, CertificateDer::from(block.der.clone())))
        .collect();
    let mut keys = key_blocks.iter().filter_map(|block| Some((block.line, PrivateKeyDer::from_pem(block.kind, block.der.clone())?)));
    let (key_line, key) = keys.next().ok_or_else(|| key_place.error(Reason::NoKey))?;
    if let Some((second, _)) = keys.next() {
        return Err(key_place.error(Reason::SecondKey { line: second }));
    }
    let signing = any_supported_type(&key).map_err(|_| key_place.error(Reason::Key { line: key_line }))?;
    let Some((leaf_line, leaf)) = chain.first() else { return Err(at(Reason::NoCertificate)) };
    for (line, certificate) in &chain {
        x509::validity(certificate).ok_or_else(|| at(Reason::Certificate { line: *line }))?;
    }
    let no_leaf = || at(Reason::Certificate { line: *leaf_line });
    ParsedCertificate::try_from(leaf).map_err(|_| no_leaf())?;
    let validity = x509::validity(leaf).ok_or_else(no_leaf)?;
    let belongs =
        |certificate: &CertificateDer<'static>| CertifiedKey::new(vec![certificate.clone()], Arc::clone(&signing)).keys_match().is_ok();
    if !belongs(leaf) {
        let other = chain.iter().find(|(_, certificate)| belongs(certificate));
        return Err(at(other.map_or(Reason::Mismatch, |(line, _)| Reason::Order { line: *line })));
    }
    let chain = chain.into_iter().map(|(_, certificate)| certificate).collect();
    Ok(Loaded { key: Arc::new(CertifiedKey::new(chain, signing)), validity })
}

/// A bundle of CAs. Those that cannot be used are left out, as bundles have some that are too old.
pub(super) fn roots(place: &Place, text: &[u8]) -> Result<RootCertStore, CertificateError> {
    let blocks = blocks(text).map_err(|reason| place.error(reason))?;
    let certificates = blocks.into_iter().filter(|block| block.kind == SectionKind::Certificate);
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates.map(|block| CertificateDer::from(block.der)));
    if roots.is_empty() { Err(place.error(Reason::NoCertificate)) } else { Ok(roots) }
}

/// Text around blocks is left alone, and so are blocks that are neither certificates nor keys.
fn blocks(text: &[u8]) -> Result<Vec<Block>, Reason> {
    let mut blocks = Vec::new();
    let mut open: Option<Open<'_>> = None;
    for (line, text) in (1..).zip(text.split(|byte| *byte == b'\n')) {
        let text = text.trim_ascii();
        if let Some(rest) = text.strip_prefix(b"-----BEGIN") {
            if let Some(open) = open {
                return Err(Reason::NoEnd { line: open.line });
            }
            let label = label(rest).ok_or(Reason::NotPem { line })?;
            open = Some(Open { line, label, body: Vec::new(), encrypted: false });
        } else if let Some(rest) = text.strip_prefix(b"-----END") {
            let Some(open) = open.take_if(|open| label(rest) == Some(open.label)) else { return Err(Reason::NotPem { line }) };
            blocks.extend(open.decode()?);
        } else if let Some(open) = &mut open {
            // RFC 1421's headers: all that openssl writes there is that a key is encrypted.
            if text.contains(&b':') {
                open.encrypted |= text.starts_with(b"Proc-Type:") && text.ends_with(b"ENCRYPTED");
            } else if !(open.encrypted && text.is_empty()) {
                open.body.extend_from_slice(text);
            }
        }
    }
    match open {
        Some(open) => Err(Reason::NoEnd { line: open.line }),
        None => Ok(blocks),
    }
}

fn label(rest: &[u8]) -> Option<&[u8]> {
    rest.strip_prefix(b" ")?.strip_suffix(b"-----")
}

impl Open<'_> {
    fn decode(self) -> Result<Option<Block>, Reason> {
        let Self { line, label, body, encrypted } = self;
        match label {
            b"ENCRYPTED PRIVATE KEY" => return Err(Reason::EncryptedKey { line }),
            b"CERTIFICATE" => {}
            b"PRIVATE KEY" | b"RSA PRIVATE KEY" | b"EC PRIVATE KEY" if encrypted => return Err(Reason::EncryptedKey { line }),
            b"PRIVATE KEY" | b"RSA PRIVATE KEY" | b"EC PRIVATE KEY" => {}
            _ => return Ok(None),
        }
        let text = [b"-----BEGIN ", label, b"-----\n", &body, b"\n-----END ", label, b"-----\n"].concat();
        let (kind, der) = <(SectionKind, Vec<u8>)>::from_pem_slice(&text).map_err(|_| Reason::NotBase64 { line })?;
        Ok(Some(Block { line, kind, der }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::testing::{self, Authority};

    fn place(name: &str) -> Place {
        Place::File(name.to_owned())
    }

    fn load(certificate: &str, key: Option<&str>) -> Result<Loaded, CertificateError> {
        let (at, key_at) = (place("site.pem"), place("site.key"));
        pair((&at, certificate.as_bytes()), key.map(|key| (&key_at, key.as_bytes())))
    }

    #[test]
    fn keys_and_chains_are_taken_in_any_arrangement() {
        let authority = Authority::new();
        let site = authority.site(&["a.example"]);
        let (leaf, ca, key) = (&site.certificate, &authority.certificate, &site.key);
        for (what, certificate, separate, length) in [
            ("two files", format!("{leaf}{ca}"), Some(key.clone()), 2),
            ("one file", format!("{leaf}{ca}{key}"), None, 2),
            ("the key first", format!("{key}{leaf}"), None, 1),
            ("the key between", format!("{leaf}{key}{ca}"), None, 2),
            ("text around", format!("subject=CN = a.example\n\n{leaf}\nBag Attributes: <No>\n{key}\nend"), None, 1),
            ("line ends of another system", format!("{leaf}{key}").replace('\n', "\r\n"), None, 1),
            ("spaces", format!("{leaf}{key}").replace('\n', "  \n\t"), None, 1),
            ("other blocks", format!("{key}-----BEGIN DH PARAMETERS-----\nAAAA\n-----END DH PARAMETERS-----\n{leaf}"), None, 1),
            ("no last line end", format!("{leaf}{key}").trim_end().to_owned(), None, 1),
            ("another key there", format!("{leaf}{}", testing::key()), Some(key.clone()), 1),
        ] {
            let loaded = load(&certificate, separate.as_deref()).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(loaded.key.cert.len(), length, "{what}");
            assert!(loaded.key.keys_match().is_ok(), "{what}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_told_with_its_place_and_nothing_of_the_key() {
        let authority = Authority::new();
        let site = authority.site(&["a.example"]);
        let (leaf, ca, key) = (site.certificate.as_str(), authority.certificate.as_str(), site.key.as_str());
        let lines = |text: &str| text.lines().count();
        let other = testing::key();
        let middle = key.lines().nth(1).unwrap();
        let damaged = key.replacen(middle, &format!("{}!{}", &middle[..9], &middle[10..]), 1);
        let cut = key.rsplit_once("-----END").unwrap().0;
        let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let old =
            "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
        let nonsense = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        let no_certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let from = lines(leaf) + 1;
        for (what, certificate, separate, name, reason) in [
            ("nothing", String::new(), Some(key), "site.pem", Reason::NoCertificate),
            ("no certificate", key.to_owned(), None, "site.pem", Reason::NoCertificate),
            ("no key", leaf.to_owned(), None, "site.pem", Reason::NoKey),
            ("no key in its file", leaf.to_owned(), Some(leaf), "site.key", Reason::NoKey),
            ("another's key", leaf.to_owned(), Some(&other), "site.pem", Reason::Mismatch),
            ("the CA first", format!("{ca}{leaf}"), Some(key), "site.pem", Reason::Order { line: lines(ca) + 1 }),
            ("two keys", format!("{leaf}{key}{key}"), None, "site.pem", Reason::SecondKey { line: from + lines(key) }),
            ("not base64", format!("{leaf}{damaged}"), None, "site.pem", Reason::NotBase64 { line: from }),
            ("cut", leaf.to_owned(), Some(cut), "site.key", Reason::NoEnd { line: 1 }),
            ("cut in the middle", format!("{leaf}{cut}{ca}"), None, "site.pem", Reason::NoEnd { line: from }),
            ("no beginning", leaf.replacen("-----BEGIN", "----BEGIN", 1), Some(key), "site.pem", Reason::NotPem { line: lines(leaf) }),
            ("half a beginning", leaf.replacen("CERTIFICATE-----", "CERTIFICATE--", 1), Some(key), "site.pem", Reason::NotPem { line: 1 }),
            ("encrypted", format!("{leaf}{encrypted}"), None, "site.pem", Reason::EncryptedKey { line: from }),
            ("encrypted of old", leaf.to_owned(), Some(old), "site.key", Reason::EncryptedKey { line: 1 }),
            ("no key inside", leaf.to_owned(), Some(nonsense), "site.key", Reason::Key { line: 1 }),
            ("nothing inside", no_certificate.to_owned(), Some(key), "site.pem", Reason::Certificate { line: 1 }),
            ("nothing in the chain", format!("{leaf}{no_certificate}"), Some(key), "site.pem", Reason::Certificate { line: from }),
        ] {
            let error = load(&certificate, separate).unwrap_err();
            assert_eq!((&error.place, &error.reason), (&place(name), &reason), "{what}");
            let told = format!("{error} {error:?} {}", error.remedy());
            let secret = key.lines().chain(other.lines()).filter(|line| !line.starts_with("--"));
            assert!(secret.into_iter().all(|line| !told.contains(&line[..8])), "{what}: {told}");
        }
    }

    /// As openssl writes them, with what it writes beside them.
    #[test]
    fn keys_of_all_kinds_and_forms_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let openssl = |arguments: &str| {
            let mut command = std::process::Command::new("openssl");
            let output = command.current_dir(&directory).args(arguments.split(' ')).output().expect("openssl, of Debian's package");
            assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        };
        for (make, begins) in [
            ("ecparam -name prime256v1 -genkey -out key", "-----BEGIN EC PARAMETERS-----"),
            ("ecparam -name secp384r1 -genkey -noout -out key", "-----BEGIN EC PRIVATE KEY-----"),
            ("genrsa -traditional -out key 2048", "-----BEGIN RSA PRIVATE KEY-----"),
            ("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out key", "-----BEGIN PRIVATE KEY-----"),
            ("genpkey -algorithm ED25519 -out key", "-----BEGIN PRIVATE KEY-----"),
        ] {
            openssl(make);
            openssl("req -x509 -key key -subj /CN=a.example -days 2 -out certificate");
            let read = |name| std::fs::read_to_string(directory.path().join(name)).unwrap();
            let (key, certificate) = (read("key"), read("certificate"));
            assert!(key.starts_with(begins), "{make}");
            let loaded = load(&certificate, Some(&key)).unwrap_or_else(|e| panic!("{make}: {e}"));
            assert_eq!(testing::pem(&loaded.key.cert[0]), certificate, "{make}");
        }
    }

    #[test]
    fn a_bundle_is_what_can_be_used_of_it() {
        let (a, b) = (Authority::new(), Authority::new());
        let bundle =
            format!("# some CAs\n{}-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n{}", a.certificate, b.certificate);
        assert_eq!(roots(&place("ca.pem"), bundle.as_bytes()).unwrap().len(), 2);
        assert_eq!(roots(&place("ca.pem"), b"# none").unwrap_err().reason, Reason::NoCertificate);
    }
}
