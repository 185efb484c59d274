use std::{
    fs::{self, OpenOptions},
    io::Write,
};

use tokio::sync::mpsc::{Receiver, channel};

use super::*;
use crate::SourceSpec;

struct Lab {
    directory: tempfile::TempDir,
    updates: Receiver<Update>,
}

impl Lab {
    fn start(prepare: impl FnOnce(&Path)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.json");
        prepare(&path);
        let (sender, updates) = channel(16);
        tokio::spawn(crate::run(SourceSpec::SnapshotFile { path }, sender));
        Self { directory, updates }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("s.json")
    }

    async fn next(&mut self) -> Update {
        time::timeout(Duration::from_secs(5), self.updates.recv()).await.expect("an update in time").expect("a running source")
    }

    async fn state(&mut self) -> SourceState {
        match self.next().await {
            Update::State(state) => state,
            other => panic!("expected a state: {other:?}"),
        }
    }

    async fn full(&mut self) -> Snapshot {
        match self.next().await {
            Update::Full(snapshot) => snapshot,
            other => panic!("expected a snapshot: {other:?}"),
        }
    }

    async fn nodes(&mut self) -> Vec<String> {
        match self.next().await {
            Update::Delta(delta) => {
                assert!(!delta.is_empty());
                delta.nodes.iter().map(|(id, n)| n.as_ref().map_or_else(|| format!("-{id}"), |n| format!("{id}={}", n.hostname))).collect()
            }
            other => panic!("expected a delta: {other:?}"),
        }
    }

    async fn quiet(&mut self) {
        let update = time::timeout(Duration::from_millis(60), self.updates.recv()).await;
        assert!(update.is_err(), "unexpected {update:?}");
    }
}

fn one(version: u64, hostname: &str) -> String {
    format!("{{\"version\": {version}, \"nodes\": [\n{{\"id\": \"a\", \"hostname\": \"{hostname}\"}}]}}\n")
}

#[tokio::test]
async fn follows_replacement_and_writing_in_place() {
    let mut lab = Lab::start(|path| fs::write(path, one(1, "x")).unwrap());
    assert_eq!(lab.full().await.nodes.len(), 1);
    assert!(lab.state().await.connected);

    let other = lab.directory.path().join("s.json.new");
    fs::write(&other, one(2, "y")).unwrap();
    fs::rename(&other, lab.path()).unwrap();
    assert_eq!(lab.nodes().await, ["a=y"]);

    // The version is what the writer says; what counts is the content.
    fs::write(lab.path(), one(2, "z")).unwrap();
    loop {
        // A write in place may be seen half done.
        match lab.next().await {
            Update::Delta(delta) => {
                assert_eq!(delta.nodes.values().flatten().next().unwrap().hostname, "z");
                break;
            }
            Update::State(_) => {}
            Update::Full(_) => panic!("a second full snapshot"),
        }
    }
}

#[tokio::test]
async fn rewriting_the_same_says_nothing() {
    let mut lab = Lab::start(|path| fs::write(path, one(1, "x")).unwrap());
    lab.full().await;
    lab.state().await;
    let other = lab.directory.path().join("other");
    fs::write(&other, one(9, "x")).unwrap();
    fs::rename(&other, lab.path()).unwrap();
    lab.quiet().await;
}

#[tokio::test]
async fn half_a_file_keeps_the_last_good_one() {
    let mut lab = Lab::start(|path| fs::write(path, one(1, "x")).unwrap());
    lab.full().await;
    lab.state().await;
    let text = one(2, "y");
    let (head, tail) = text.split_at(40);
    fs::write(lab.path(), head).unwrap();
    let mut state = lab.state().await;
    while !state.detail.contains("line 2") {
        // The file is empty for a moment.
        state = lab.state().await;
    }
    assert!(state.connected && state.detail.contains("the last good snapshot stays in force"), "{}", state.detail);
    assert!(state.problems[0].place.contains("line 2"), "{:?}", state.problems);
    OpenOptions::new().append(true).open(lab.path()).unwrap().write_all(tail.as_bytes()).unwrap();
    assert_eq!(lab.nodes().await, ["a=y"]);
    let state = lab.state().await;
    assert_eq!((state.detail.as_str(), state.problems.len()), ("", 0));
}

#[tokio::test]
async fn waits_for_a_file_and_for_its_directory() {
    let directory = tempfile::tempdir().unwrap();
    let below = directory.path().join("later");
    let path = below.join("s.json");
    let (sender, updates) = channel(16);
    tokio::spawn(crate::run(SourceSpec::SnapshotFile { path: path.clone() }, sender));
    let mut lab = Lab { directory, updates };
    let state = lab.state().await;
    assert!(!state.connected && state.detail.contains("waiting for it"), "{}", state.detail);
    fs::create_dir(&below).unwrap();
    fs::write(below.join("tmp"), one(1, "x")).unwrap();
    fs::rename(below.join("tmp"), &path).unwrap();
    assert_eq!(lab.full().await.nodes.len(), 1);
    assert!(lab.state().await.connected);

    fs::remove_dir_all(&below).unwrap();
    let state = lab.state().await;
    assert!(!state.connected && state.detail.contains("last good"), "{}", state.detail);
    fs::create_dir(&below).unwrap();
    fs::write(below.join("tmp"), one(1, "y")).unwrap();
    fs::rename(below.join("tmp"), &path).unwrap();
    assert_eq!(lab.nodes().await, ["a=y"]);
}

#[tokio::test]
async fn names_the_line_of_what_is_not_text() {
    let mut lab = Lab::start(|path| fs::write(path, b"{\"version\": 1,\n\n\"nodes\": \"\xff\"}").unwrap());
    let state = lab.state().await;
    assert_eq!(state.problems[0].place, "line 3");
    assert!(state.detail.contains("not UTF-8"), "{}", state.detail);
}

#[tokio::test]
async fn follows_a_link_that_is_turned() {
    let mut lab = Lab::start(|path| {
        let directory = path.parent().unwrap();
        fs::write(directory.join("one"), one(1, "x")).unwrap();
        std::os::unix::fs::symlink("one", path).unwrap();
    });
    lab.full().await;
    lab.state().await;
    let directory = lab.directory.path().to_owned();
    fs::write(directory.join("two"), one(2, "y")).unwrap();
    std::os::unix::fs::symlink("two", directory.join("link")).unwrap();
    fs::rename(directory.join("link"), lab.path()).unwrap();
    assert_eq!(lab.nodes().await, ["a=y"]);
}

#[tokio::test]
async fn a_file_that_no_swarm_comes_to_is_not_read_and_the_next_one_is() {
    let mut lab = Lab::start(|path| fs::write(path, one(1, "x")).unwrap());
    lab.full().await;
    lab.state().await;
    // With a hole: on disk it has nothing.
    fs::File::create(lab.path()).unwrap().set_len(40 << 30).unwrap();
    let mut state = lab.state().await;
    if state.detail.contains("line 1") {
        // Seen between the two calls, while it was empty.
        state = lab.state().await;
    }
    assert!(state.detail.contains("larger than 1073741824 bytes"), "{}", state.detail);
    assert!(state.detail.contains("stays in force"), "{}", state.detail);
    fs::write(lab.path(), one(2, "y")).unwrap();
    assert_eq!(lab.nodes().await, ["a=y"]);
}

#[tokio::test]
async fn ends_when_nobody_listens() {
    let directory = tempfile::tempdir().unwrap();
    let (sender, updates) = channel(1);
    drop(updates);
    let path = directory.path().join("s.json");
    let ended = time::timeout(Duration::from_secs(5), crate::run(SourceSpec::SnapshotFile { path }, sender)).await;
    assert!(matches!(ended, Ok(Ok(()))));
}

#[tokio::test]
async fn others_are_not_available_yet() {
    for spec in [SourceSpec::Upstream, SourceSpec::Auto { url: None }] {
        let (sender, _updates) = channel(1);
        let error = crate::run(spec, sender).await.expect_err("not available");
        assert!(matches!(error, SourceError::NotAvailable { .. }));
        assert!(error.to_string().contains("not available in this version"));
    }
}
