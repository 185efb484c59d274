//! Which certificate a name is shown, and how that changes while connections come.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use aws_lc_rs::digest::{Context, Digest, SHA256};
use rustls::{
    client::verify_server_name,
    pki_types::ServerName,
    server::{ClientHello, ParsedCertificate, ResolvesServerCert},
    sign::CertifiedKey,
};
use swarmesh_model::SharedMap;
use swarmesh_router::{Table, model::CertificateRef};

use super::{
    error::{CertificateError, Place},
    pem::{self, Loaded},
};
use crate::{
    access_log::rfc3339,
    files::{Watched, in_directory},
};

/// Where the node keeps what routes name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directories {
    /// Docker's secrets, each a file.
    pub secrets: PathBuf,
    pub certificates: PathBuf,
}

/// The certificates of all routes. A handshake takes no lock and reads no file.
#[derive(Debug)]
pub struct Certificates {
    directories: Directories,
    /// For names that have none, and for clients that say no name.
    default: Option<CertificateRef>,
    current: ArcSwap<Current>,
    /// Shown for the names that they are for, where no route says which.
    free: ArcSwap<Vec<FreeCertificate>>,
    /// What `current` was made of. Held while that is made again.
    held: Mutex<Holding>,
}

#[derive(Debug, Default)]
struct Holding {
    by_reference: HashMap<CertificateRef, Held>,
    /// What was parsed is not parsed again while somebody has it.
    parsed: HashMap<Digested, Weak<Loaded>>,
}

#[derive(Debug, Default)]
struct Current {
    table: Arc<Table>,
    keys: SharedMap<CertificateRef, Arc<CertifiedKey>>,
    default: Option<Arc<CertifiedKey>>,
}

#[derive(Debug)]
struct Held {
    /// The files that it was read from.
    files: Vec<Watched>,
    loaded: Option<(Digested, Arc<Loaded>)>,
    /// Of the last reading. What was loaded before is still shown.
    error: Option<CertificateError>,
    /// How many routes name it; the node's default is one of them.
    uses: usize,
}

/// A certificate with its key that no route names.
#[derive(Clone, Debug)]
pub struct FreeCertificate {
    name: Arc<str>,
    key: Arc<CertifiedKey>,
}

/// Why a certificate is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShownFor {
    /// A route says so.
    Route,
    /// It is for this name, and no route says which is; it was given by this name.
    Name(Arc<str>),
    /// There is no better.
    Default,
}

impl FreeCertificate {
    /// From a text with both.
    pub fn read(name: &str, text: &[u8]) -> Result<Self, CertificateError> {
        let place = Place::Given(name.to_owned());
        Ok(Self { name: name.into(), key: pem::pair((&place, text), None)?.key })
    }

    fn is_for(&self, name: &ServerName<'_>) -> bool {
        let leaf = self.key.cert.first().and_then(|der| ParsedCertificate::try_from(der).ok());
        leaf.is_some_and(|leaf| verify_server_name(&leaf, name).is_ok())
    }
}

/// What was parsed, by its SHA-256.
type Digested = [u8; 32];

/// A certificate that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateProblem {
    pub certificate: CertificateRef,
    pub fault: CertificateFault,
    /// It is shown all the same: the last good one, or one that clients will not accept.
    pub shown: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateFault {
    #[error(transparent)]
    Unusable(#[from] CertificateError),
    #[error("expired at {}", rfc3339(*at))]
    Expired { at: SystemTime },
    #[error("expires at {}", rfc3339(*at))]
    ExpiresSoon { at: SystemTime },
    #[error("is not valid before {}", rfc3339(*before))]
    NotYetValid { before: SystemTime },
}

impl CertificateFault {
    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Unusable(error) => error.remedy(),
            Self::Expired { .. } | Self::ExpiresSoon { .. } => "put a newer one in its place",
            Self::NotYetValid { .. } => "put one that is valid in its place, or see that this node's clock is right",
        }
    }
}

/// How long before it expires a certificate is told.
const SOON: Duration = Duration::from_secs(14 * 86_400);

impl Certificates {
    /// Has none but the default one until it is given a table. Reads files.
    pub fn new(directories: Directories, default: Option<CertificateRef>) -> Self {
        let certificates = Self { directories, default, current: ArcSwap::default(), free: ArcSwap::default(), held: Mutex::default() };
        let mut held = certificates.held();
        if let Some(reference) = &certificates.default {
            certificates.hold(reference, &mut held);
        }
        let wanted = certificates.default.clone();
        certificates.publish(&held, wanted.iter(), Arc::default());
        drop(held);
        certificates
    }

    /// From now on, names are shown what this table says. Reads the files of certificates that are new. What it costs follows what
    /// differs from the table before.
    pub fn update(&self, table: Arc<Table>) {
        let mut held = self.held();
        let before = Arc::clone(&self.current.load().table);
        let mut changed: HashSet<&CertificateRef> = HashSet::new();
        let mut left: Vec<&CertificateRef> = Vec::new();
        for (new, old) in table.differences(&before) {
            if let Some(reference) = new.and_then(|route| route.certificate.as_ref())
                && self.hold(reference, &mut held)
            {
                changed.insert(reference);
            }
            left.extend(old.and_then(|route| route.certificate.as_ref()));
        }
        for reference in left {
            if let Entry::Occupied(mut entry) = held.by_reference.entry(reference.clone()) {
                entry.get_mut().uses -= 1;
                if entry.get().uses == 0 {
                    entry.remove();
                    changed.insert(reference);
                }
            }
        }
        self.publish(&held, changed.into_iter(), Arc::clone(&table));
    }

    /// One more names this certificate. Says whether it is new, and read now.
    fn hold(&self, reference: &CertificateRef, holding: &mut Holding) -> bool {
        if let Some(known) = holding.by_reference.get_mut(reference) {
            known.uses += 1;
            return false;
        }
        let read = self.read(reference, None, &mut holding.parsed);
        holding.by_reference.insert(reference.clone(), Held { uses: 1, ..read });
        true
    }

    /// Looks at all files, and reads those that changed. Says whether another certificate is shown now. To be called from time to
    /// time, from where waiting for a disk delays nobody.
    pub fn refresh(&self) -> bool {
        let mut holding = self.held();
        let Holding { by_reference, parsed } = &mut *holding;
        parsed.retain(|_, loaded| loaded.strong_count() > 0);
        let mut changed = Vec::new();
        for (reference, held) in by_reference.iter_mut() {
            if held.files.iter().any(Watched::is_stale) {
                let (before, uses) = (held.digest(), held.uses);
                *held = Held { uses, ..self.read(reference, held.loaded.take(), parsed) };
                if held.digest() != before {
                    changed.push(reference.clone());
                }
            }
        }
        if !changed.is_empty() {
            let table = Arc::clone(&self.current.load().table);
            self.publish(&holding, changed.iter(), table);
        }
        !changed.is_empty()
    }

    /// From now on, names that no route has a certificate for are shown the first of these that is for them.
    pub fn set_free(&self, certificates: Vec<FreeCertificate>) {
        self.free.store(Arc::new(certificates));
    }

    /// What a client that asks for this name is shown; `None` refuses it.
    pub fn find(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        self.choose(name).map(|(_, key)| key)
    }

    /// The same, with the reason.
    pub fn choose(&self, name: Option<&str>) -> Option<(ShownFor, Arc<CertifiedKey>)> {
        let current = self.current.load();
        let named = current.table.certificate(name).and_then(|reference| current.keys.get(reference));
        let of_route = named.map(|key| (ShownFor::Route, Arc::clone(key)));
        of_route.or_else(|| self.find_free(name?)).or_else(|| Some((ShownFor::Default, current.default.clone()?)))
    }

    /// O(certificates): there are few, and a handshake costs more than all of them.
    fn find_free(&self, name: &str) -> Option<(ShownFor, Arc<CertifiedKey>)> {
        let free = self.free.load();
        if free.is_empty() {
            return None;
        }
        let name = ServerName::try_from(name).ok()?;
        let found = free.iter().find(|certificate| certificate.is_for(&name))?;
        Some((ShownFor::Name(Arc::clone(&found.name)), Arc::clone(&found.key)))
    }

    /// What is not as it should be, at this time.
    pub fn problems(&self, now: SystemTime) -> Vec<CertificateProblem> {
        let mut problems = Vec::new();
        for (certificate, held) in &self.held().by_reference {
            let shown = held.loaded.is_some();
            let mut add = |fault| problems.push(CertificateProblem { certificate: certificate.clone(), fault, shown });
            if let Some(error) = &held.error {
                add(error.clone().into());
            }
            if let Some((_, loaded)) = &held.loaded {
                let validity = loaded.validity;
                if validity.to < now {
                    add(CertificateFault::Expired { at: validity.to });
                } else if now < validity.from {
                    add(CertificateFault::NotYetValid { before: validity.from });
                } else if validity.to.duration_since(now).is_ok_and(|left| left < SOON) {
                    add(CertificateFault::ExpiresSoon { at: validity.to });
                }
            }
        }
        problems.sort_by(|a, b| a.certificate.name().cmp(b.certificate.name()));
        problems
    }

    /// When each certificate that is shown expires.
    pub fn expiries(&self) -> Vec<(CertificateRef, SystemTime)> {
        let held = self.held();
        held.by_reference.iter().filter_map(|(reference, held)| Some((reference.clone(), held.loaded.as_ref()?.1.validity.to))).collect()
    }

    /// Whether names without a certificate are shown this one.
    pub fn is_default(&self, reference: &CertificateRef) -> bool {
        self.default.as_ref() == Some(reference)
    }

    fn held(&self) -> MutexGuard<'_, Holding> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish<'c>(&self, held: &Holding, changed: impl Iterator<Item = &'c CertificateRef>, table: Arc<Table>) {
        let key = |reference: &CertificateRef| {
            let (_, loaded) = held.by_reference.get(reference)?.loaded.as_ref()?;
            Some(Arc::clone(&loaded.key))
        };
        let mut keys = self.current.load().keys.clone();
        for reference in changed {
            match key(reference) {
                Some(key) => keys.insert(reference.clone(), key),
                None => keys.remove(reference),
            };
        }
        let default = self.default.as_ref().and_then(key);
        self.current.store(Arc::new(Current { table, keys, default }));
    }

    /// `before` is what it was until now, and stays if what is there cannot be used.
    fn read(
        &self,
        reference: &CertificateRef,
        before: Option<(Digested, Arc<Loaded>)>,
        parsed: &mut HashMap<Digested, Weak<Loaded>>,
    ) -> Held {
        let mut files = Vec::new();
        let result = self.load(reference, &mut files, parsed);
        let (loaded, error) = match result {
            Ok(loaded) => (Some(loaded), None),
            Err(error) => (before, Some(error)),
        };
        if let Some((digest, loaded)) = &loaded {
            parsed.insert(*digest, Arc::downgrade(loaded));
        }
        Held { files, loaded, error, uses: 0 }
    }

    fn load(
        &self,
        reference: &CertificateRef,
        files: &mut Vec<Watched>,
        parsed: &HashMap<Digested, Weak<Loaded>>,
    ) -> Result<(Digested, Arc<Loaded>), CertificateError> {
        let mut text = |place: &Place, directory: &Path, name: &str| {
            let path = in_directory(directory, name).map_err(|error| place.error(error))?;
            let (file, bytes) = Watched::read(path);
            files.push(file);
            bytes.map_err(|error| place.error(error))
        };
        let (place, directory, certificate, key) = match reference {
            CertificateRef::Secrets { certificate, key } => {
                let key = key.as_ref().map(|name| (Place::Secret(name.clone()), name));
                (Place::Secret(certificate.clone()), &self.directories.secrets, certificate, key)
            }
            CertificateRef::Files { certificate, key } => {
                let key = key.as_ref().map(|name| (Place::File(name.clone()), name));
                (Place::File(certificate.clone()), &self.directories.certificates, certificate, key)
            }
            CertificateRef::Inline { name, pem } => return pair(parsed, (&Place::Label(name.clone()), pem.as_bytes()), None),
        };
        // Both are read before either counts: so both are looked at again.
        let certificate = text(&place, directory, certificate);
        let key = key.map(|(place, name)| (text(&place, directory, name), place));
        let certificate = certificate?;
        let key = match key {
            Some((text, place)) => Some((place, text?)),
            None => None,
        };
        pair(parsed, (&place, &certificate), key.as_ref().map(|(place, text)| (place, text.as_slice())))
    }
}

impl Held {
    fn digest(&self) -> Option<Digested> {
        self.loaded.as_ref().map(|(digest, _)| *digest)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.find(hello.server_name())
    }
}

/// What was parsed already is not parsed again.
fn pair(
    parsed: &HashMap<Digested, Weak<Loaded>>,
    certificate: (&Place, &[u8]),
    key: Option<(&Place, &[u8])>,
) -> Result<(Digested, Arc<Loaded>), CertificateError> {
    let digest = digest(certificate.1, key.map(|(_, text)| text));
    if let Some(loaded) = parsed.get(&digest).and_then(Weak::upgrade) {
        return Ok((digest, loaded));
    }
    Ok((digest, Arc::new(pem::pair(certificate, key)?)))
}

fn digest(certificate: &[u8], key: Option<&[u8]>) -> Digested {
    let mut context = Context::new(&SHA256);
    context.update(&(certificate.len() as u64).to_be_bytes());
    context.update(certificate);
    if let Some(key) = key {
        context.update(&[1]);
        context.update(key);
    }
    let digest: Digest = context.finish();
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_ref());
    bytes
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        time::{Duration, UNIX_EPOCH},
    };

    use rcgen::date_time_ymd;
    use swarmesh_router::model::Route;

    use super::*;
    use crate::{
        files::Unreadable,
        tls::{
            Reason,
            testing::{self, Authority, route},
        },
    };

    struct Node {
        root: tempfile::TempDir,
        authority: Authority,
    }

    impl Node {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            for name in ["secrets", "certificates"] {
                fs::create_dir(root.path().join(name)).unwrap();
            }
            Self { root, authority: Authority::new() }
        }

        fn directories(&self) -> Directories {
            Directories { secrets: self.root.path().join("secrets"), certificates: self.root.path().join("certificates") }
        }

        fn certificates(&self, default: Option<CertificateRef>, routes: Vec<Route>) -> Certificates {
            let certificates = Certificates::new(self.directories(), default);
            certificates.update(table(routes));
            certificates
        }

        fn put(&self, directory: &str, name: &str, text: &str) {
            // As orchestrators do: whole, and by another name first.
            let path = self.root.path().join(directory);
            fs::write(path.join(".new"), text).unwrap();
            fs::rename(path.join(".new"), path.join(name)).unwrap();
        }
    }

    fn table(routes: Vec<Route>) -> Arc<Table> {
        let (table, problems) = Table::new(routes);
        assert_eq!(problems, []);
        Arc::new(table)
    }

    fn secret(certificate: &str, key: Option<&str>) -> CertificateRef {
        CertificateRef::Secrets { certificate: certificate.into(), key: key.map(Into::into) }
    }

    fn file(certificate: &str) -> CertificateRef {
        CertificateRef::Files { certificate: certificate.into(), key: None }
    }

    fn faults(certificates: &Certificates) -> Vec<(String, CertificateFault, bool)> {
        let problems = certificates.problems(SystemTime::now());
        problems.into_iter().map(|p| (p.certificate.name().to_owned(), p.fault, p.shown)).collect()
    }

    #[test]
    fn names_are_shown_what_their_routes_say() {
        let node = Node::new();
        let (shop, wild, inline) = (node.authority.site(&["shop.example"]), node.authority.site(&["*.wild.example"]), Authority::new());
        let inline = inline.site(&["in.example"]);
        node.put("secrets", "shop.crt", &shop.certificate);
        node.put("secrets", "shop.key", &shop.key);
        node.put("certificates", "wild.pem", &wild.combined());
        let certificates = node.certificates(
            None,
            vec![
                route("shop.example", Some(secret("shop.crt", Some("shop.key")))),
                route("*.wild.example", Some(file("wild.pem"))),
                route("in.example", Some(CertificateRef::Inline { name: "in".into(), pem: inline.combined() })),
                route("plain.example", None),
            ],
        );
        assert_eq!(faults(&certificates), []);
        let shown = |name| certificates.find(name).map(|key| testing::pem(&key.cert[0]));
        assert_eq!(shown(Some("shop.example")), Some(shop.certificate.clone()));
        assert_eq!(shown(Some("SHOP.example.")), Some(shop.certificate));
        assert_eq!(shown(Some("a.wild.example")), Some(wild.certificate));
        assert_eq!(shown(Some("in.example")), Some(inline.certificate));
        for nobody in [Some("plain.example"), Some("wild.example"), Some("other.example"), Some(""), None] {
            assert_eq!(shown(nobody), None, "{nobody:?}");
        }
    }

    #[test]
    fn the_default_is_for_whoever_has_none_or_one_that_cannot_be_used() {
        let node = Node::new();
        let (site, default) = (node.authority.site(&["a.example"]), node.authority.site(&["default.example"]));
        node.put("certificates", "default.pem", &default.combined());
        node.put("certificates", "a.pem", &site.certificate);
        let certificates = node.certificates(Some(file("default.pem")), vec![route("a.example", Some(file("a.pem")))]);
        for name in [Some("a.example"), Some("b.example"), None] {
            assert_eq!(testing::pem(&certificates.find(name).unwrap().cert[0]), default.certificate, "{name:?}");
        }
        let no_key = CertificateError { place: Place::File("a.pem".into()), reason: Reason::NoKey };
        assert_eq!(faults(&certificates), [("a.pem".into(), CertificateFault::Unusable(no_key), false)]);
        node.put("certificates", "a.pem", &site.combined());
        assert!(certificates.refresh());
        assert_eq!(testing::pem(&certificates.find(Some("a.example")).unwrap().cert[0]), site.certificate);
        assert_eq!(faults(&certificates), []);
    }

    #[test]
    fn files_that_change_are_read_again_and_what_is_the_same_is_kept() {
        let node = Node::new();
        let (old, new) = (node.authority.site(&["a.example"]), node.authority.site(&["a.example"]));
        node.put("secrets", "a.crt", &old.certificate);
        node.put("secrets", "a.key", &old.key);
        let certificates = node.certificates(None, vec![route("a.example", Some(secret("a.crt", Some("a.key"))))]);
        let find = || certificates.find(Some("a.example")).unwrap();
        let first = find();
        assert!(!certificates.refresh());
        node.put("secrets", "a.key", &old.key);
        assert!(!certificates.refresh(), "another file, the same bytes");
        assert!(Arc::ptr_eq(&find(), &first));

        // Half of a change: what worked goes on, and the fault is told until the other half is there.
        node.put("secrets", "a.crt", &new.certificate);
        assert!(!certificates.refresh());
        assert!(Arc::ptr_eq(&find(), &first));
        let mismatch = CertificateError { place: Place::Secret("a.crt".into()), reason: Reason::Mismatch };
        assert_eq!(faults(&certificates), [("a.crt".into(), CertificateFault::Unusable(mismatch), true)]);
        node.put("secrets", "a.key", &new.key);
        assert!(certificates.refresh());
        assert_eq!(testing::pem(&find().cert[0]), new.certificate);
        assert_eq!(faults(&certificates), []);

        let second = find();
        fs::remove_file(node.root.path().join("secrets/a.key")).unwrap();
        assert!(!certificates.refresh());
        assert!(Arc::ptr_eq(&find(), &second));
        let missing = CertificateError { place: Place::Secret("a.key".into()), reason: Reason::File(Unreadable::Missing) };
        assert_eq!(faults(&certificates), [("a.crt".into(), CertificateFault::Unusable(missing), true)]);
    }

    #[test]
    fn a_file_is_read_again_only_if_it_changed_or_had_just_done_so() {
        let node = Node::new();
        let path = node.root.path().join("certificates/a.pem");
        fs::write(&path, "one").unwrap();
        let (fresh, _) = Watched::read(path.clone());
        assert!(fresh.is_stale(), "it may change within the same tick of the clock");
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            let (watched, bytes) = Watched::read(path.clone());
            assert_eq!(bytes.unwrap(), b"one");
            if !watched.is_stale() {
                fs::write(&path, "two").unwrap();
                assert!(watched.is_stale());
                break;
            }
            assert!(std::time::Instant::now() < deadline, "stale for ever");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    #[test]
    fn another_table_reads_what_is_new_and_keeps_what_was_parsed() {
        let node = Node::new();
        let site = node.authority.site(&["a.example"]);
        node.put("certificates", "a.pem", &site.combined());
        node.put("certificates", "copy.pem", &site.combined());
        let certificates = node.certificates(None, vec![route("a.example", Some(file("a.pem")))]);
        let first = certificates.find(Some("a.example")).unwrap();
        certificates.update(table(vec![route("a.example", Some(file("a.pem"))), route("b.example", Some(file("copy.pem")))]));
        assert!(Arc::ptr_eq(&certificates.find(Some("a.example")).unwrap(), &first));
        assert!(Arc::ptr_eq(&certificates.find(Some("b.example")).unwrap(), &first), "the same bytes by another name");
        // Who reads them again finds none.
        for name in ["a.pem", "copy.pem"] {
            fs::remove_file(node.root.path().join("certificates").join(name)).unwrap();
        }
        certificates.update(table(vec![
            route("a.example", Some(file("copy.pem"))),
            route("b.example", Some(file("a.pem"))),
            route("c.example", None),
        ]));
        assert!(Arc::ptr_eq(&certificates.find(Some("a.example")).unwrap(), &first), "other routes, the same certificates");
        assert!(certificates.find(Some("c.example")).is_none());
        assert_eq!(faults(&certificates), []);
        certificates.update(table(vec![route("b.example", Some(file("copy.pem")))]));
        assert!(certificates.find(Some("a.example")).is_none());
        assert!(certificates.find(Some("b.example")).is_some());
        assert_eq!(certificates.expiries().len(), 1, "what no route names any more is forgotten");
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let node = Node::new();
        let site = node.authority.site(&["a.example"]);
        node.put("certificates", "a.pem", &site.combined());
        fs::create_dir(node.root.path().join("secrets/directory")).unwrap();
        let outside = node.root.path().join("certificates/a.pem");
        for (name, reason) in [
            ("../certificates/a.pem", Reason::File(Unreadable::Name)),
            (outside.to_str().unwrap(), Reason::File(Unreadable::Name)),
            ("..", Reason::File(Unreadable::Name)),
            (".", Reason::File(Unreadable::Name)),
            ("", Reason::File(Unreadable::Name)),
            ("a.pem/", Reason::File(Unreadable::Name)),
            ("./a.pem", Reason::File(Unreadable::Name)),
            ("directory/a.pem", Reason::File(Unreadable::Name)),
            ("a.pem\0", Reason::File(Unreadable::Name)),
            ("directory", Reason::File(Unreadable::NotAFile)),
            ("a.pem", Reason::File(Unreadable::Missing)),
        ] {
            let certificates = node.certificates(None, vec![route("a.example", Some(secret(name, None)))]);
            assert!(certificates.find(Some("a.example")).is_none());
            let error = CertificateError { place: Place::Secret(name.to_owned()), reason };
            assert_eq!(faults(&certificates), [(name.to_owned(), CertificateFault::Unusable(error), false)], "{name:?}");
        }
        node.put("secrets", "large", &"a".repeat(1 << 20 | 1));
        let certificates = node.certificates(None, vec![route("a.example", Some(secret("large", None)))]);
        let problems = faults(&certificates);
        assert!(
            matches!(&problems[..], [(_, CertificateFault::Unusable(e), false)] if e.reason == Reason::File(Unreadable::TooBig { most: 1 << 20 }))
        );
    }

    #[test]
    fn one_that_has_expired_is_shown_and_told() {
        let node = Node::new();
        let site = node.authority.site_with(&["a.example"], |params| {
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2020, 2, 1));
        });
        node.put("certificates", "a.pem", &site.combined());
        let certificates = node.certificates(None, vec![route("a.example", Some(file("a.pem")))]);
        assert!(certificates.find(Some("a.example")).is_some());
        let at = UNIX_EPOCH + Duration::from_secs(1_580_515_200);
        assert_eq!(faults(&certificates), [("a.pem".into(), CertificateFault::Expired { at }, true)]);
        let from = UNIX_EPOCH + Duration::from_secs(1_577_836_800);
        assert_eq!(certificates.problems(from), []);
        let early = certificates.problems(from - Duration::from_secs(1));
        assert_eq!(early[0].fault, CertificateFault::NotYetValid { before: from });
        assert_eq!(certificates.problems(at - SOON), []);
        let soon = certificates.problems(at - SOON + Duration::from_secs(1)).remove(0).fault;
        assert_eq!(soon, CertificateFault::ExpiresSoon { at });
        assert_eq!(soon.to_string(), "expires at 2020-02-01T00:00:00.000Z");
        assert_eq!(certificates.expiries(), [(file("a.pem"), at)]);
    }

    #[test]
    fn a_free_certificate_is_shown_for_its_names_where_no_route_says_which() {
        let node = Node::new();
        let (named, free) = (node.authority.site(&["a.example"]), node.authority.site(&["a.example", "*.free.example"]));
        node.put("certificates", "a.pem", &named.combined());
        let certificates = node.certificates(None, vec![route("a.example", Some(file("a.pem")))]);
        let shown = |name: Option<&str>| certificates.find(name).map(|key| key.cert[0].clone());
        assert_eq!(shown(Some("x.free.example")), None);
        certificates.set_free(vec![FreeCertificate::read("f", free.combined().as_bytes()).unwrap()]);
        let leaf = |name| shown(Some(name)).unwrap();
        assert_ne!(leaf("x.free.example"), leaf("a.example"), "a route's own comes first");
        let shown_for = |name| certificates.choose(Some(name)).unwrap().0;
        assert_eq!([shown_for("a.example"), shown_for("x.free.example")], [ShownFor::Route, ShownFor::Name("f".into())]);
        for other in [Some("free.example"), Some("b.example"), Some("not a name"), None] {
            assert_eq!(shown(other), None, "{other:?}");
        }
        let error = FreeCertificate::read("f", free.certificate.as_bytes()).unwrap_err();
        assert_eq!((error.place, error.reason), (Place::Given("f".into()), Reason::NoKey));
        certificates.set_free(Vec::new());
        assert_eq!(shown(Some("x.free.example")), None);
    }
}
