//! Who may pass, by name and password (RFC 7617).
//!
//! Hashes are made to take long, so they are checked on other threads, a few at a time, and what proved right is remembered for a
//! minute. Whom a list does not know takes as long as whom it knows.

mod crypt;
mod user_file;

use std::{
    collections::HashMap,
    fmt,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use aws_lc_rs::{constant_time, hmac, rand::SystemRandom};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};
use swarmesh_router::model::{BasicAuth, HashKind, Password, User};
use tokio::sync::Semaphore;

pub use self::user_file::NodeUsers;
use self::user_file::UserFile;
use crate::{files::Unreadable, tls::Place};

/// Why nobody can be checked.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    #[error("the system gives no random numbers; passwords cannot be remembered safely without")]
    Random,
}

/// Why a request does not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 401 with this `WWW-Authenticate`.
    Challenge(HeaderValue),
    /// 503: too many are waiting to be checked.
    Busy,
}

/// Who of those that are to get in gets in nowhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserFault {
    #[error("{place} {error}, so none of its users gets in: {remedy}")]
    File { place: Place, error: Unreadable, remedy: &'static str },
    #[error("{place} has no users, so nobody gets in by it: write name:password in lines")]
    Empty { place: Place },
    #[error(
        "{place}: {count} entries get in nowhere: write name:password, with a crypt hash that can be checked where hashes are asked for"
    )]
    Entries { place: Place, count: usize },
    #[error("user {name:?} gets in nowhere: there is no password, or a hash that would take too long to check")]
    NoPassword { name: String },
}

/// One list of users, and what it says to everybody else.
#[derive(Debug)]
pub struct Gate {
    challenge: HeaderValue,
    listed: Vec<User>,
    file: Option<UserFile>,
    list: ArcSwap<List>,
}

/// Who passes, as far as the file said when it was read.
#[derive(Debug, Default)]
struct List {
    users: Users,
    faults: Vec<UserFault>,
}

/// Names, and what proves them.
#[derive(Default)]
pub struct Users {
    by_name: HashMap<Arc<str>, usize>,
    all: Vec<(Arc<str>, Proof)>,
}

#[derive(Clone)]
enum Proof {
    Plain(Arc<str>),
    Hash(HashKind, Arc<str>),
}

/// Checks passwords. The process has one.
pub struct Verifier {
    /// Of this process alone.
    key: hmac::Key,
    turns: Arc<Semaphore>,
    waiting: AtomicUsize,
    verified: Arc<Verified>,
    computed: AtomicU64,
}

/// What stands for a user's right password, and until when.
#[derive(Default)]
struct Verified(Mutex<HashMap<[u8; 32], Instant>>);

/// How long a password that proved right is remembered.
const REMEMBERED: Duration = Duration::from_secs(60);
const MOST_REMEMBERED: usize = 10_000;
const MOST_WAITING: usize = 256;

/// No header that a person's name and password fit in is longer.
const LONGEST_HEADER: usize = 4096;

impl Gate {
    /// A route's gate. Reads its secret, a file of that name in `secrets`; a route without one has the passwords of those whom it only
    /// names from the node's own list.
    pub fn new(auth: &BasicAuth, secrets: &Path, node: Option<&NodeUsers>) -> Arc<Self> {
        let file = match &auth.secret {
            Some(name) => Some(UserFile::secret(secrets, name, auth.secret_hashed)),
            None => node.filter(|_| names_alone(&auth.users)).cloned().map(UserFile::of_node),
        };
        Self::reading(&auth.realm, auth.users.clone(), file)
    }

    /// For whom the node's own list has.
    pub fn node(realm: &str, list: NodeUsers) -> Arc<Self> {
        Self::reading(realm, Vec::new(), Some(UserFile::of_node(list)))
    }

    fn reading(realm: &str, listed: Vec<User>, file: Option<UserFile>) -> Arc<Self> {
        let gate = Self { challenge: challenge(realm), listed, file, list: ArcSwap::default() };
        gate.read();
        Arc::new(gate)
    }

    /// What it says may change.
    pub(crate) fn has_file(&self) -> bool {
        self.file.is_some()
    }

    /// Looks at the file, and reads it if it changed. To be called from time to time, from where waiting for a disk delays nobody.
    pub(crate) fn refresh(&self) {
        if self.file.as_ref().is_some_and(UserFile::is_stale) {
            self.read();
        }
    }

    /// If a name is listed alone, the list says who may pass, and the file only has passwords. Else the file's users may pass, too.
    fn read(&self) {
        let mut faults = Vec::new();
        let of_file = self.file.as_ref().map(|file| file.read(&mut faults)).unwrap_or_default();
        let mut users = Users::of(&self.listed, &of_file, &mut faults);
        if !names_alone(&self.listed) {
            for (name, proof) in &of_file.all {
                users.add(name, proof.clone());
            }
        }
        let before = self.list.load();
        for fault in faults.iter().filter(|fault| !before.faults.contains(fault)) {
            tracing::warn!("{fault}");
        }
        self.list.store(Arc::new(List { users, faults }));
    }

    /// Who does not get in, and why.
    pub fn faults(&self) -> Vec<UserFault> {
        self.list.load().faults.clone()
    }

    /// The user's name, if a request has one with the right password.
    pub async fn pass(&self, verifier: &Verifier, headers: &HeaderMap) -> Result<Arc<str>, Refusal> {
        let (name, password) = credentials(headers).ok_or_else(|| self.refusal())?;
        let list = self.list.load_full();
        verifier.verify(&list.users, &name, password).await?.ok_or_else(|| self.refusal())
    }

    fn refusal(&self) -> Refusal {
        Refusal::Challenge(self.challenge.clone())
    }
}

impl Users {
    /// From `name:password` lines, or such pairs between commas in one line. Also says how many could not be read.
    pub fn parse(text: &str, hashed: bool) -> (Self, usize) {
        let mut users = Self::default();
        let mut unread = 0;
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let parts = || line.split(',').map(str::trim).filter(|part| !part.is_empty());
            // Where not each part is a pair, the commas belong to a password.
            let is_list = parts().all(|part| part.contains(':'));
            for pair in if is_list { parts().collect() } else { vec![line] } {
                match pair.split_once(':').map(|(name, password)| (name.trim(), password.trim())) {
                    Some((name, password)) if !name.is_empty() && !password.is_empty() => {
                        let password = if hashed { Password::hash(password).ok() } else { Some(Password::Plain(password.to_owned())) };
                        match password.as_ref().and_then(Proof::new) {
                            Some(proof) => users.add(name, proof),
                            None => unread += 1,
                        }
                    }
                    _ => unread += 1,
                }
            }
        }
        (users, unread)
    }

    /// Those who are listed; a name alone is looked up among the others. Who is found nowhere, or with a hash that would take too
    /// long, gets in nowhere, and is added to the faults.
    fn of(listed: &[User], others: &Self, faults: &mut Vec<UserFault>) -> Self {
        let mut users = Self::default();
        for user in listed {
            let proof = match &user.password {
                Some(password) => Proof::new(password),
                None => others.find(&user.name).map(|(_, proof)| proof.clone()),
            };
            match proof {
                Some(proof) => users.add(&user.name, proof),
                None => faults.push(UserFault::NoPassword { name: user.name.clone() }),
            }
        }
        users
    }

    /// The first of a name stays.
    fn add(&mut self, name: &str, proof: Proof) {
        if !self.by_name.contains_key(name) {
            let name: Arc<str> = name.into();
            self.by_name.insert(Arc::clone(&name), self.all.len());
            self.all.push((name, proof));
        }
    }

    fn find(&self, name: &str) -> Option<&(Arc<str>, Proof)> {
        self.all.get(*self.by_name.get(name)?)
    }
}

impl Proof {
    /// `None` if it could not be checked in reasonable time.
    fn new(password: &Password) -> Option<Self> {
        match password {
            Password::Plain(plain) => Some(Self::Plain(plain.as_str().into())),
            Password::Hash(kind, hash) => crypt::is_bearable(*kind, hash).then(|| Self::Hash(*kind, hash.as_str().into())),
        }
    }
}

impl Verifier {
    /// `at_once` hashes are computed at one time at most.
    pub fn new(at_once: usize) -> Result<Self, AuthError> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).map_err(|_| AuthError::Random)?;
        Ok(Self {
            key,
            turns: Arc::new(Semaphore::new(at_once.clamp(1, Semaphore::MAX_PERMITS))),
            waiting: AtomicUsize::new(0),
            verified: Arc::default(),
            computed: AtomicU64::new(0),
        })
    }

    /// Hashes that were computed so far.
    pub fn computed(&self) -> u64 {
        self.computed.load(Ordering::Relaxed)
    }

    /// The user's name, if the list has the user with this password.
    pub async fn verify(&self, users: &Users, name: &str, password: String) -> Result<Option<Arc<str>>, Refusal> {
        let known = users.find(name);
        // A stranger is checked against somebody else's password, whose does not matter, and refused whatever comes of it.
        let (listed, proof) = match known {
            Some((listed, proof)) => (listed, proof),
            None => match users.all.get(self.some(name, users.all.len())) {
                Some((listed, proof)) => (listed, proof),
                None => return Ok(None),
            },
        };
        let is_right = match proof {
            // Of the same length whatever is compared.
            Proof::Plain(plain) => {
                let (right, given) = (self.tag(&[plain.as_bytes()]), self.tag(&[password.as_bytes()]));
                constant_time::verify_slices_are_equal(&right, &given).is_ok()
            }
            Proof::Hash(kind, hash) => {
                let tag = self.tag(&[name.as_bytes(), password.as_bytes(), hash.as_bytes()]);
                self.verified.has(&tag) || self.compute(*kind, hash, password, &tag, known.is_some()).await?
            }
        };
        Ok((is_right && known.is_some()).then(|| Arc::clone(listed)))
    }

    async fn compute(&self, kind: HashKind, hash: &Arc<str>, password: String, tag: &[u8; 32], known: bool) -> Result<bool, Refusal> {
        let _waiting = Waiting::begin(&self.waiting).ok_or(Refusal::Busy)?;
        let turn = Arc::clone(&self.turns).acquire_owned().await.map_err(|_| Refusal::Busy)?;
        // Browsers ask for many things at once, all with the same password.
        if self.verified.has(tag) {
            return Ok(true);
        }
        self.computed.fetch_add(1, Ordering::Relaxed);
        let (hash, tag, verified) = (Arc::clone(hash), *tag, Arc::clone(&self.verified));
        // The turn ends with the work, even if nobody waits for it any more, and whoever has the next one finds what came of it.
        let work = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let is_right = crypt::verify(kind, &hash, &password);
            if is_right && known {
                verified.remember(tag);
            }
            is_right
        });
        Ok(work.await.unwrap_or(false))
    }

    /// What stands for these texts, and for no others, as long as the process lives.
    fn tag(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.key);
        for part in parts {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let tag = context.sign();
        std::array::from_fn(|at| tag.as_ref().get(at).copied().unwrap_or_default())
    }

    /// A number below `length`, the same for a name each time, that nobody can foresee.
    fn some(&self, name: &str, length: usize) -> usize {
        let tag = self.tag(&[name.as_bytes()]);
        let number = tag.iter().take(4).fold(0, |number, byte| number << 8 | usize::from(*byte));
        number.checked_rem(length).unwrap_or(0)
    }
}

impl Verified {
    fn has(&self, tag: &[u8; 32]) -> bool {
        let verified = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        verified.get(tag).is_some_and(|until| Instant::now() < *until)
    }

    fn remember(&self, tag: [u8; 32]) {
        let mut verified = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if verified.len() >= MOST_REMEMBERED {
            verified.retain(|_, until| now < *until);
            if verified.len() >= MOST_REMEMBERED {
                verified.clear();
            }
        }
        verified.insert(tag, now + REMEMBERED);
    }
}

/// One of those who wait for a turn.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(waiting: &'a AtomicUsize) -> Option<Self> {
        let before = waiting.fetch_add(1, Ordering::Relaxed);
        let this = Self(waiting);
        (before < MOST_WAITING).then_some(this)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn names_alone(listed: &[User]) -> bool {
    listed.iter().any(|user| user.password.is_none())
}

/// Name and password. Strictly: one header, padded Base64, UTF-8, no control characters.
fn credentials(headers: &HeaderMap) -> Option<(String, String)> {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    let (Some(header), None) = (all.next(), all.next()) else { return None };
    decode(header)
}

/// Who says to be whom, in a header that has been let pass.
pub(crate) fn user_name(header: &HeaderValue) -> Option<String> {
    decode(header).map(|(name, _)| name)
}

fn decode(header: &HeaderValue) -> Option<(String, String)> {
    let (scheme, rest) = header.as_bytes().split_at_checked(5).filter(|_| header.len() <= LONGEST_HEADER)?;
    let encoded = rest.strip_prefix(b" ").filter(|_| scheme.eq_ignore_ascii_case(b"basic"))?.trim_ascii();
    let text = String::from_utf8(BASE64_STANDARD.decode(encoded).ok()?).ok()?;
    let (name, password) = text.split_once(':').filter(|_| !text.contains(char::is_control))?;
    Some((name.to_owned(), password.to_owned()))
}

fn challenge(realm: &str) -> HeaderValue {
    let mut text = String::from("Basic realm=\"");
    for letter in realm.chars().filter(|letter| !letter.is_control()) {
        if matches!(letter, '"' | '\\') {
            text.push('\\');
        }
        text.push(letter);
    }
    text.push_str("\", charset=\"UTF-8\"");
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("Basic"))
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} users", self.all.len())
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("waiting", &self.waiting).field("computed", &self.computed).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
