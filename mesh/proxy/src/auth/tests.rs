use std::fs;

use proptest::prelude::*;

use super::*;

/// `secret`, in two schemes.
const SHA: &str = "$5$rounds=1000$abcdefghijklmnop$FzYoqjtuN.mjYqssIob4upmoKbZEpkdQMtytZuqNN/6";
const MD5: &str = "$1$abcdefgh$cHJi5PXp/ki/ktXzqlk6I1";

fn basic(text: &str) -> HeaderMap {
    header(&format!("Basic {}", BASE64_STANDARD.encode(text)))
}

fn header(value: &str) -> HeaderMap {
    HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(value).unwrap())])
}

fn user(name: &str, password: Option<&str>) -> User {
    let password = password.map(|text| Password::hash(text).unwrap_or_else(|_| Password::Plain(text.to_owned())));
    User { name: name.to_owned(), password }
}

fn auth(users: Vec<User>, secret: Option<&str>, secret_hashed: bool) -> BasicAuth {
    BasicAuth { realm: "shop".into(), users, secret: secret.map(str::to_owned), secret_hashed, consume: true }
}

fn verifier() -> Verifier {
    Verifier::new(2).unwrap()
}

async fn passes(gate: &Arc<Gate>, verifier: &Verifier, credentials: &str) -> bool {
    match gate.pass(verifier, &basic(credentials)).await {
        Ok(name) => {
            assert_eq!(Some(&*name), credentials.split(':').next());
            true
        }
        Err(Refusal::Challenge(challenge)) => {
            assert_eq!(challenge, "Basic realm=\"shop\", charset=\"UTF-8\"");
            false
        }
        Err(Refusal::Busy) => panic!("nobody else asks"),
    }
}

#[tokio::test]
async fn the_right_password_passes_and_no_other() {
    let users = vec![user("plain", Some("p:ä ss")), user("sha", Some(SHA)), user("md5", Some(MD5)), user("nobody", None)];
    let gate = Gate::new(&auth(users, None, false), Path::new("/"), None);
    let verifier = verifier();
    for right in ["plain:p:ä ss", "sha:secret", "md5:secret", "sha:secret"] {
        assert!(passes(&gate, &verifier, right).await, "{right}");
    }
    for wrong in [
        "plain:p:ä s",
        "plain:",
        "plain:p:ä sss",
        "sha:Secret",
        "md5:",
        "nobody:",
        "nobody:secret",
        "other:secret",
        ":secret",
        "Plain:p:ä ss",
    ] {
        assert!(!passes(&gate, &verifier, wrong).await, "{wrong}");
    }
    // A hash is no password.
    assert!(!passes(&gate, &verifier, &format!("sha:{SHA}")).await);
}

#[tokio::test]
async fn a_header_that_is_not_exactly_right_is_none() {
    let gate = Gate::new(&auth(vec![user("a", Some("b"))], None, false), Path::new("/"), None);
    let verifier = verifier();
    // `a:b` is YTpi.
    for right in ["Basic YTpi", "bAsIc   YTpi ", "Basic\u{20}YTpi"] {
        assert!(gate.pass(&verifier, &header(right)).await.is_ok(), "{right:?}");
    }
    for wrong in [
        "",
        "Basic",
        "Basic ",
        "YTpi",
        "BasicYTpi",
        "Bearer YTpi",
        "Basic YTpi=",
        "Basic YTpiCg",
        "Basic YT pi",
        "Basic YTpj",
        "Basic YTp_",
    ] {
        assert!(gate.pass(&verifier, &header(wrong)).await.is_err(), "{wrong:?}");
    }
    let mut twice = header("Basic YTpi");
    twice.append(AUTHORIZATION, HeaderValue::from_static("Basic YTpi"));
    assert!(gate.pass(&verifier, &twice).await.is_err());
    assert!(gate.pass(&verifier, &HeaderMap::new()).await.is_err());
    assert_eq!(credentials(&basic("a:b\n")), None);
    assert_eq!(credentials(&basic("ab")), None);
    assert_eq!(credentials(&header(&format!("Basic {}", BASE64_STANDARD.encode([b'a', b':', 0xff])))), None);
    assert_eq!(credentials(&basic(&format!("a:{}", "x".repeat(LONGEST_HEADER)))), None);
}

#[tokio::test]
async fn strangers_cost_what_users_cost() {
    let gate = Gate::new(&auth(vec![user("a", Some(SHA)), user("b", Some(MD5))], None, false), Path::new("/"), None);
    let verifier = verifier();
    for (tried, credentials) in (1..).zip(["a:wrong", "stranger:secret", "stranger:secret", "b:wrong", "other:", ":"]) {
        assert!(!passes(&gate, &verifier, credentials).await, "{credentials}");
        assert_eq!(verifier.computed(), tried, "{credentials}");
    }
    let nobody = Gate::new(&auth(Vec::new(), None, false), Path::new("/"), None);
    assert!(!passes(&nobody, &verifier, "a:b").await);
}

#[tokio::test]
async fn what_proved_right_is_remembered_and_what_was_wrong_is_not() {
    let gate = Gate::new(&auth(vec![user("a", Some(SHA)), user("b", Some(SHA))], None, false), Path::new("/"), None);
    let verifier = Arc::new(verifier());
    let headers = basic("a:secret");
    let mut set = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (gate, verifier, headers) = (Arc::clone(&gate), Arc::clone(&verifier), headers.clone());
        set.spawn(async move { gate.pass(&verifier, &headers).await.is_ok() });
    }
    assert!(set.join_all().await.into_iter().all(|passed| passed));
    assert!((1..=2).contains(&verifier.computed()), "{}: as many as may compute at once", verifier.computed());
    let before = verifier.computed();
    assert!(passes(&gate, &verifier, "a:secret").await);
    assert_eq!(verifier.computed(), before);
    // The same password of another user is another matter.
    assert!(passes(&gate, &verifier, "b:secret").await);
    assert_eq!(verifier.computed(), before + 1);
    for n in 1..3 {
        assert!(!passes(&gate, &verifier, "a:wrong").await);
        assert_eq!(verifier.computed(), before + 1 + n);
    }
    // For a minute.
    verifier.verified.0.lock().unwrap().values_mut().for_each(|until| *until = until.checked_sub(REMEMBERED).unwrap());
    assert!(passes(&gate, &verifier, "a:secret").await);
    assert_eq!(verifier.computed(), before + 4);
}

#[tokio::test]
async fn more_than_can_wait_are_sent_away() {
    let gate = Gate::new(&auth(vec![user("a", Some(SHA))], None, false), Path::new("/"), None);
    let verifier = verifier();
    let all: Vec<_> = (0..MOST_WAITING).map(|_| Waiting::begin(&verifier.waiting).unwrap()).collect();
    assert_eq!(gate.pass(&verifier, &basic("a:secret")).await, Err(Refusal::Busy));
    drop(all);
    assert!(passes(&gate, &verifier, "a:secret").await);
    assert_eq!(verifier.waiting.load(Ordering::Relaxed), 0);
}

#[test]
fn what_is_remembered_is_bounded() {
    let verifier = verifier();
    for n in 0..MOST_REMEMBERED + 10 {
        verifier.verified.remember(verifier.tag(&[&n.to_be_bytes()]));
    }
    assert!(verifier.verified.0.lock().unwrap().len() <= MOST_REMEMBERED);
    assert!(verifier.verified.has(&verifier.tag(&[&(MOST_REMEMBERED + 9).to_be_bytes()])));
    assert_ne!(verifier.tag(&[b"a", b"bc"]), verifier.tag(&[b"ab", b"c"]));
}

#[tokio::test]
async fn a_secret_gives_users_and_passwords() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("team"), "alice:one, two\n\nbob : three:four \nbroken\n").unwrap();
    fs::write(directory.path().join("hashed"), format!("alice:{SHA},bob:{MD5}\nplain:word\nslow:$6$rounds=999999999$salt$x\n")).unwrap();
    let node = NodeUsers { path: directory.path().join("node"), hashed: false };
    fs::write(&node.path, "node:own\nother:too\n").unwrap();
    let gate = |users, secret, hashed| Gate::new(&auth(users, secret, hashed), directory.path(), Some(&node));
    let verifier = verifier();

    let team = gate(vec![], Some("team"), false);
    assert!(passes(&team, &verifier, "alice:one, two").await && passes(&team, &verifier, "bob:three:four").await);
    assert!(!passes(&team, &verifier, "alice:one").await && !passes(&team, &verifier, "node:own").await);
    assert_eq!(team.faults(), [UserFault::Entries { place: Place::Secret("team".into()), count: 1 }]);

    let hashed = gate(vec![], Some("hashed"), true);
    assert!(passes(&hashed, &verifier, "alice:secret").await && passes(&hashed, &verifier, "bob:secret").await);
    assert!(!passes(&hashed, &verifier, "plain:word").await && !passes(&hashed, &verifier, "slow:x").await);
    assert_eq!(hashed.faults(), [UserFault::Entries { place: Place::Secret("hashed".into()), count: 2 }]);

    // A name alone: the list says who, the file says what.
    let named = gate(vec![user("alice", None), user("carol", Some("five"))], Some("team"), false);
    assert!(passes(&named, &verifier, "alice:one, two").await && passes(&named, &verifier, "carol:five").await);
    assert!(!passes(&named, &verifier, "bob:three:four").await);

    // Only pairs: the file has more, but nobody else's name.
    let more = gate(vec![user("alice", Some("mine"))], Some("team"), false);
    assert!(passes(&more, &verifier, "alice:mine").await && passes(&more, &verifier, "bob:three:four").await);
    assert!(!passes(&more, &verifier, "alice:one, two").await);

    // Without a secret, the node's own list has the password.
    let own = gate(vec![user("node", None), user("bob", None)], None, false);
    assert!(passes(&own, &verifier, "node:own").await);
    assert!(!passes(&own, &verifier, "bob:three:four").await && !passes(&own, &verifier, "other:too").await);
    assert_eq!(own.faults(), [UserFault::NoPassword { name: "bob".into() }]);
    let pairs = gate(vec![user("alice", Some("mine"))], None, false);
    assert!(passes(&pairs, &verifier, "alice:mine").await && !passes(&pairs, &verifier, "node:own").await);
    let whole = Gate::node("shop", node.clone());
    assert!(passes(&whole, &verifier, "node:own").await && passes(&whole, &verifier, "other:too").await);
}

#[tokio::test]
async fn a_list_that_cannot_be_read_lets_nobody_in_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("users");
    let list = NodeUsers { path: path.clone(), hashed: false };
    let (gate, verifier) = (Gate::node("shop", list), verifier());
    let place = Place::Configured(path.clone());
    let fault = |error| vec![UserFault::File { remedy: place.remedy(error), place: place.clone(), error }];
    assert!(!passes(&gate, &verifier, "a:b").await && !passes(&gate, &verifier, ":").await);
    assert_eq!(gate.faults(), fault(Unreadable::Missing));
    assert!(
        gate.faults()[0]
            .to_string()
            .ends_with("is not there, so none of its users gets in: see that it is a file and that the agent may read it")
    );
    fs::create_dir(&path).unwrap();
    let gate = Gate::node("shop", NodeUsers { path: path.clone(), hashed: false });
    assert_eq!(gate.faults(), fault(Unreadable::NotAFile));
    // Another reason is told, too.
    fs::remove_dir(&path).unwrap();
    std::os::unix::fs::symlink(&path, &path).unwrap();
    gate.refresh();
    assert!(matches!(gate.faults()[..], [UserFault::File { error: Unreadable::Read(_), .. }]), "{:?}", gate.faults());
    fs::remove_file(&path).unwrap();
    // What a mended text would let in is what anybody can write.
    fs::write(&path, b"a:b\nodd:\xff\nc:d\n").unwrap();
    gate.refresh();
    assert_eq!(gate.faults(), [UserFault::Entries { place: place.clone(), count: 1 }]);
    assert!(passes(&gate, &verifier, "a:b").await && passes(&gate, &verifier, "c:d").await);
    assert!(!passes(&gate, &verifier, "odd:\u{fffd}").await && !passes(&gate, &verifier, "odd:").await);
    fs::write(&path, "\n").unwrap();
    gate.refresh();
    assert!(!passes(&gate, &verifier, "a:b").await && !passes(&gate, &verifier, ":").await);
    assert_eq!(gate.faults(), [UserFault::Empty { place }]);
}

#[tokio::test]
async fn a_secret_is_read_again_when_it_changes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("team");
    let gate = Gate::new(&auth(vec![user("own", Some("x"))], Some("team"), false), directory.path(), None);
    let verifier = verifier();
    assert!(!passes(&gate, &verifier, "alice:one").await);
    fs::write(&path, "alice:one").unwrap();
    gate.refresh();
    assert!(passes(&gate, &verifier, "alice:one").await && passes(&gate, &verifier, "own:x").await);
    // A file that has just been written may have been written once more.
    while gate.file.as_ref().unwrap().is_stale() {
        gate.refresh();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let before = gate.list.load_full();
    gate.refresh();
    assert!(passes(&gate, &verifier, "alice:one").await);
    assert!(Arc::ptr_eq(&before, &gate.list.load_full()), "it did not change");
    fs::write(directory.path().join("new"), "alice:two").unwrap();
    fs::rename(directory.path().join("new"), &path).unwrap();
    gate.refresh();
    assert!(passes(&gate, &verifier, "alice:two").await && !passes(&gate, &verifier, "alice:one").await);
    fs::remove_file(&path).unwrap();
    gate.refresh();
    assert!(!passes(&gate, &verifier, "alice:two").await && passes(&gate, &verifier, "own:x").await);
}

#[tokio::test]
async fn only_files_of_the_directory_are_secrets() {
    let directory = tempfile::tempdir().unwrap();
    let below = directory.path().join("secrets");
    fs::create_dir(&below).unwrap();
    fs::write(directory.path().join("outside"), "a:b").unwrap();
    fs::write(below.join("inside"), "a:b").unwrap();
    let absolute = directory.path().join("outside");
    let verifier = verifier();
    for (name, found) in
        [("inside", true), ("../outside", false), (absolute.to_str().unwrap(), false), (".", false), ("", false), ("inside/", false)]
    {
        let gate = Gate::new(&auth(vec![], Some(name), false), &below, None);
        assert_eq!(passes(&gate, &verifier, "a:b").await, found, "{name:?}");
    }
}

#[test]
fn realms_are_quoted() {
    assert_eq!(challenge("a \"b\" \\ c\r\nX: y"), "Basic realm=\"a \\\"b\\\" \\\\ cX: y\", charset=\"UTF-8\"");
    assert_eq!(challenge("café").as_bytes(), "Basic realm=\"café\", charset=\"UTF-8\"".as_bytes());
}

#[test]
fn nothing_secret_is_shown() {
    let users = vec![user("a", Some("hunter2")), user("b", Some("$6$hunter2$hunter2"))];
    let gate = Gate::new(&auth(users, Some("team"), false), Path::new("/nonexistent"), None);
    let shown = format!("{gate:?} {:?} {:?} {:?}", verifier(), Users::parse("a:hunter2", false), gate.faults());
    assert!(!shown.contains("hunter2"), "{shown}");
}

proptest! {
    #[test]
    fn any_header_is_read_or_not(value in prop::collection::vec(any::<u8>(), 0..60), text in "[a-c:é]{0,12}") {
        if let Ok(value) = HeaderValue::from_bytes(&value) {
            credentials(&HeaderMap::from_iter([(AUTHORIZATION, value)]));
        }
        let expected = text.split_once(':').map(|(name, password)| (name.to_owned(), password.to_owned()));
        prop_assert_eq!(credentials(&basic(&text)), expected);
    }

    #[test]
    fn any_list_is_read(text in "[a-c:,\n ]{0,40}", hashed: bool) {
        let (users, unread) = Users::parse(&text, hashed);
        prop_assert!(users.all.iter().all(|(name, _)| !name.is_empty() && !name.contains(':')));
        prop_assert!(!hashed || users.all.is_empty());
        prop_assert!(unread <= text.len());
    }
}
