//! Which tests run inside, and the files that they are in: nextest says.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::{
    run::{cargo, output},
    tiers::{ensure_nextest, narrowed},
};

/// Tests against a kernel that make their own namespaces and need nothing but the tools of the image.
const TESTS: &str = "binary(~real) or binary(~twins)";
const PACKAGES: [&str; 2] = ["swarmesh-kernel", "swarmesh-dataplane"];

/// One test of one binary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Test {
    pub(super) suite: String,
    pub(super) name: String,
    pub(super) binary: PathBuf,
}

#[derive(Deserialize)]
struct Listed {
    #[serde(rename = "rust-suites")]
    suites: BTreeMap<String, Suite>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Suite {
    binary_path: PathBuf,
    testcases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Case {
    ignored: bool,
    filter_match: Match,
}

#[derive(Deserialize)]
struct Match {
    status: String,
}

/// Builds the tests and names those that nextest's own `filter` leaves.
pub(super) fn listed(filter: &[String]) -> Result<Vec<Test>> {
    ensure_nextest()?;
    let (expression, filter) = narrowed(TESTS, filter);
    let mut command = cargo();
    command.args(["nextest", "list", "--locked", "--message-format", "json", "--filterset", &expression]);
    PACKAGES.iter().for_each(|package| {
        command.args(["--package", package]);
    });
    let tests = parsed(&output(command.args(&filter))?)?;
    if tests.is_empty() {
        bail!("no test of the vm tier is left by {expression} {filter:?}");
    }
    Ok(tests)
}

fn parsed(json: &str) -> Result<Vec<Test>> {
    let listed: Listed = serde_json::from_str(json).context("cannot read what nextest lists")?;
    let tests = listed.suites.into_iter().flat_map(|(id, suite)| {
        let wanted = suite.testcases.into_iter().filter(|(_, case)| !case.ignored && case.filter_match.status == "matches");
        wanted.map(move |(name, _)| Test { suite: id.clone(), name, binary: suite.binary_path.clone() }).collect::<Vec<_>>()
    });
    Ok(tests.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_matches_and_is_not_ignored_runs() {
        let json = r#"{"rust-suites": {"a::real": {"binary-path": "/t/real-1", "cwd": "/", "testcases": {
            "one": {"ignored": false, "filter-match": {"status": "matches"}},
            "two": {"ignored": true, "filter-match": {"status": "matches"}},
            "three": {"ignored": false, "filter-match": {"status": "mismatch", "reason": "expression"}}}}}}"#;
        let test = Test { suite: "a::real".to_owned(), name: "one".to_owned(), binary: "/t/real-1".into() };
        assert_eq!(parsed(json).unwrap(), [test]);
    }
}
