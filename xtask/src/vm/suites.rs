//! Which tests run inside, on which plane, and the files that they are in: nextest says.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::Deserialize;

use crate::{
    run::{cargo, output},
    tiers::{ensure_nextest, narrowed},
};

/// Tests against a kernel that make their own namespaces and need nothing but the tools of the image.
const KERNEL: &str = "package(/^swarmesh-(kernel|dataplane)$/) and (binary(~real) or binary(~twins))";
/// The emulator with agents, and nothing that has to be built or fetched while it runs.
const LABS: &str = "package(swarmesh-tests) and binary(/^netns_(mesh|life|services|ipv6)$/)";
/// Of the labs, what a minute or two per plane can show: every row about steady state, on Docker's present rules.
const FEW_LABS: &str = "package(swarmesh-tests) and test(=mesh_rows)";

/// `SWARMESH_TEST_PLANE` of a lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Plane {
    Nft,
    Ipvs,
}

impl Plane {
    /// Those that this version's agent has.
    pub(super) const ALL: [Self; 2] = [Self::Nft, Self::Ipvs];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Ipvs => "ipvs",
        }
    }
}

/// One test of one binary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Test {
    pub(super) suite: String,
    pub(super) name: String,
    pub(super) binary: PathBuf,
    /// Of a lab's agents; a test without a lab has none.
    pub(super) plane: Option<Plane>,
}

/// What the caller wants of it.
pub(super) struct Choice<'a> {
    /// All labs, not only the quick ones. A caller who names tests means all of that name.
    pub(super) all: bool,
    pub(super) planes: &'a [Plane],
    pub(super) filter: &'a [String],
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

/// Builds the tests and names those that are wanted, those without a lab first.
pub(super) fn listed(choice: &Choice<'_>) -> Result<Vec<Test>> {
    ensure_nextest()?;
    let labs = if choice.all || !choice.filter.is_empty() { LABS } else { FEW_LABS };
    let mut tests = chosen(KERNEL, choice.filter)?;
    let labs = chosen(labs, choice.filter)?;
    let on = |plane: Plane| labs.iter().map(move |test| Test { plane: Some(plane), ..test.clone() });
    tests.extend(choice.planes.iter().flat_map(|plane| on(*plane)));
    if tests.is_empty() {
        bail!("no test of the vm tier is left by {:?}", choice.filter);
    }
    Ok(tests)
}

/// What nextest's own `filter` leaves of an expression.
fn chosen(expression: &str, filter: &[String]) -> Result<Vec<Test>> {
    let (expression, filter) = narrowed(expression, filter);
    let mut command = cargo();
    // All packages, as in the tiers before: what these have built is built.
    command.args(["nextest", "list", "--workspace", "--locked", "--message-format", "json", "--filterset", &expression]);
    parsed(&output(command.args(&filter))?)
}

fn parsed(json: &str) -> Result<Vec<Test>> {
    let listed: Listed = serde_json::from_str(json).context("cannot read what nextest lists")?;
    let tests = listed.suites.into_iter().flat_map(|(id, suite)| {
        let wanted = suite.testcases.into_iter().filter(|(_, case)| !case.ignored && case.filter_match.status == "matches");
        wanted.map(move |(name, _)| Test { suite: id.clone(), name, binary: suite.binary_path.clone(), plane: None }).collect::<Vec<_>>()
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
        let test = Test { suite: "a::real".to_owned(), name: "one".to_owned(), binary: "/t/real-1".into(), plane: None };
        assert_eq!(parsed(json).unwrap(), [test]);
    }
}
