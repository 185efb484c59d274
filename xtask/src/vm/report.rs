//! What a guest said, and what that amounts to.

use std::time::{Duration, Instant};

use super::suites::Test;
use crate::run::say;

/// Begins a table's line about a row that cannot be asked of the lab's plane; it says why.
const LEFT_OUT: &str = "left  ";

/// What one guest came to.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Passed,
    Failed(String),
}

pub(super) struct Report {
    kernel: String,
    tests: Vec<Test>,
    show_all: bool,
    started: Instant,
    up_after: Option<Duration>,
    running: Option<usize>,
    shown: Vec<String>,
    passed: usize,
    failures: Vec<String>,
    skipped: Vec<String>,
    alarms: Vec<String>,
    verdict: Option<Verdict>,
}

impl Report {
    pub(super) fn new(kernel: &str, tests: Vec<Test>, show_all: bool) -> Self {
        Self {
            kernel: kernel.to_owned(),
            tests,
            show_all,
            started: Instant::now(),
            up_after: None,
            running: None,
            shown: Vec::new(),
            passed: 0,
            failures: Vec::new(),
            skipped: Vec::new(),
            alarms: Vec::new(),
            verdict: None,
        }
    }

    /// Other guests may run beside it.
    fn say(&self, text: &str) {
        say(&format!("{:>5} {text}", self.kernel));
    }

    pub(super) fn up(&self) -> bool {
        self.up_after.is_some()
    }

    pub(super) fn verdict(&self) -> Option<bool> {
        self.verdict.as_ref().map(|verdict| *verdict == Verdict::Passed)
    }

    /// One line of the guest's; see `init.sh` for what there is.
    pub(super) fn line(&mut self, line: &str) {
        if let Some(shown) = line.strip_prefix("| ") {
            match self.show_all && self.running.is_none() {
                true => say(&format!("          {shown}")),
                false => self.shown.push(shown.to_owned()),
            }
            return;
        }
        let Some(said) = line.strip_prefix("@vm ") else { return };
        let words: Vec<&str> = said.split(' ').collect();
        match words[..] {
            ["up", ..] => self.up_after = Some(self.started.elapsed()),
            ["smoke", "ok", ..] => self.passed += 1,
            ["smoke", "failed", name] => {
                self.failures.push(format!("smoke: {name}"));
                self.say(&format!(" FAIL smoke: {name}"));
                self.show();
            }
            ["start", number] => {
                self.running = number.parse().ok();
                self.shown.clear();
            }
            ["end", _, "ok", seconds] => self.ended(seconds, None),
            ["end", _, "failed", seconds, code] => self.ended(seconds, Some(code)),
            ["script", _] => self.show(),
            ["verdict", "passed", ..] => self.verdict = Some(Verdict::Passed),
            ["verdict", ..] => self.verdict = Some(Verdict::Failed(words[2..].join(" "))),
            _ => {}
        }
    }

    fn name(&self) -> String {
        let test = self.running.and_then(|number| self.tests.get(number));
        let Some(test) = test else { return "a test that nobody knows".to_owned() };
        let plane = test.plane.map(|plane| format!(" on {}", plane.name())).unwrap_or_default();
        format!("{} {}{plane}", test.suite, test.name)
    }

    fn ended(&mut self, seconds: &str, code: Option<&str>) {
        let name = self.name();
        let skipped = self.shown.iter().any(|line| line.starts_with("skipped:"));
        let word = match code {
            Some("137") => "LIMIT",
            Some(_) => "FAIL",
            None if skipped => "SKIP",
            None => "PASS",
        };
        self.say(&format!("{word:>5} [{seconds:>3} s] {name}"));
        if code.is_some() || skipped || self.show_all {
            self.show();
        } else {
            self.shown.iter().filter(|line| line.starts_with(LEFT_OUT)).for_each(|line| self.say(&format!("  {line}")));
        }
        match (code, skipped) {
            (Some(_), _) => self.failures.push(name),
            (None, true) => self.skipped.push(name),
            (None, false) => self.passed += 1,
        }
        self.running = None;
    }

    fn show(&mut self) {
        std::mem::take(&mut self.shown).iter().for_each(|line| self.say(&format!("  {line}")));
    }

    /// The kernel complained. It may go on, but it has not passed.
    pub(super) fn alarm(&mut self, alarm: &str, line: &str) {
        self.say(&format!("the kernel says: {line}"));
        let during = if self.running.is_some() { format!(" during {}", self.name()) } else { String::new() };
        self.alarms.push(format!("{alarm}{during}"));
    }

    /// It had to be ended from outside.
    pub(super) fn hangs(&mut self, why: &str, console: &str) {
        if self.running.is_some() {
            self.failures.push(self.name());
            self.say(&format!("during {}:", self.name()));
            self.show();
        }
        self.say("the console's last lines:");
        console.lines().for_each(|line| self.say(&format!("  {line}")));
        self.verdict = Some(Verdict::Failed(why.to_owned()));
    }

    /// One line, and whether it is a good one. A test that was left out did not pass: leaving out is for other kernels than these.
    pub(super) fn conclude(&self) -> (bool, String) {
        let mut wrong: Vec<String> = Vec::new();
        match &self.verdict {
            Some(Verdict::Passed) => {}
            Some(Verdict::Failed(why)) => wrong.push(why.clone()),
            None => wrong.push("no verdict".to_owned()),
        }
        let mut named = |what: &str, names: &[String]| {
            if !names.is_empty() {
                wrong.push(format!("{what}: {}", names.join(", ")));
            }
        };
        named("failed", &self.failures);
        named("left out", &self.skipped);
        named("the kernel's console", &self.alarms);
        let times = format!(
            "up after {:.0} s, done after {:.0} s",
            self.up_after.unwrap_or_default().as_secs_f32(),
            self.started.elapsed().as_secs_f32()
        );
        let line = match wrong.is_empty() {
            true => format!("vm {}: passed, {} checks; {times}", self.kernel, self.passed),
            false => format!("vm {}: FAILED: {}; {times}", self.kernel, wrong.join("; ")),
        };
        (wrong.is_empty(), line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(lines: &[&str]) -> Report {
        let test = |name: &str| Test { suite: "a::real".to_owned(), name: name.to_owned(), binary: "/t".into(), plane: None };
        let mut report = Report::new("6.1.0", vec![test("one"), test("two")], false);
        lines.iter().for_each(|line| report.line(line));
        report
    }

    #[test]
    fn all_well() {
        let (good, line) =
            told(&["@vm up 6.1", "@vm smoke ok ip", "@vm start 0", "| x", "@vm end 0 ok 1", "@vm verdict passed 1"]).conclude();
        assert!(good, "{line}");
        assert!(line.contains("2 checks"), "{line}");
    }

    #[test]
    fn each_thing_that_is_wrong_is_named() {
        let up = "@vm up 6.1";
        for (lines, word) in [
            (
                vec![up, "@vm start 1", "| thread panicked", "@vm end 1 failed 3 101", "@vm verdict failed 0 of the smoke test"],
                "a::real two",
            ),
            (vec![up, "@vm start 0", "| skipped: no such thing", "@vm end 0 ok 1", "@vm verdict passed 1"], "left out: a::real one"),
            (vec![up, "@vm smoke failed ipvs", "@vm verdict failed 1"], "smoke: ipvs"),
            (vec![up], "no verdict"),
        ] {
            let (good, line) = told(&lines).conclude();
            assert!(!good && line.contains(word), "{line}");
        }
    }

    #[test]
    fn a_complaint_of_the_kernel_or_a_hang_is_a_failure() {
        let mut report = told(&["@vm up 6.1", "@vm start 1"]);
        report.alarm("WARNING:", "WARNING: CPU: 0");
        report.line("@vm end 1 ok 2");
        report.line("@vm verdict passed 1");
        let (good, line) = report.conclude();
        assert!(!good && line.contains("WARNING: during a::real two"), "{line}");

        let mut report = told(&["@vm up 6.1", "@vm start 0"]);
        report.hangs("silent for 9 s", "");
        assert_eq!(report.verdict(), Some(false));
        let (good, line) = report.conclude();
        assert!(!good && line.contains("silent") && line.contains("a::real one"), "{line}");
    }
}
