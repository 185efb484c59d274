//! Tables of behaviours: each row has the name that the reference gives it, runs, and is reported by name.
#![expect(clippy::print_stderr, reason = "the table's report")]

use std::time::Instant;

use anyhow::Result;

use crate::plane::LeftOut;

/// A row: its name in the reference, and the check.
pub type Row<T> = (&'static str, fn(&T) -> Result<()>);

/// Runs every row, also after failures, and panics at the end if there were any.
///
/// `ROWS=E31,E36` runs only rows whose names start so.
pub fn run<T>(subject: &T, rows: &[Row<T>]) {
    run_some(subject, rows, &[""]);
}

/// As [`run`], for the rows whose names start with one of `prefixes`.
pub fn run_some<T>(subject: &T, rows: &[Row<T>], prefixes: &[&str]) {
    let only = std::env::var("ROWS").unwrap_or_default();
    let wanted: Vec<&str> = only.split(',').filter(|w| !w.is_empty()).collect();
    let mut failed = Vec::new();
    let starts = |name: &str, prefixes: &[&str]| prefixes.iter().any(|p| name.starts_with(p));
    for (name, check) in rows.iter().filter(|(name, _)| starts(name, prefixes) && (wanted.is_empty() || starts(name, &wanted))) {
        let start = Instant::now();
        let outcome = check(subject);
        let took = start.elapsed().as_secs_f32();
        match outcome {
            Ok(()) => eprintln!("ok    {took:6.1} s  {name}"),
            Err(error) if error.is::<LeftOut>() => eprintln!("left  {took:6.1} s  {name}: {error}"),
            Err(error) => {
                eprintln!("FAIL  {took:6.1} s  {name}: {error:#}");
                failed.push(format!("{name}: {error:#}"));
            }
        }
    }
    // The reasons once more: where only the end of a log is kept, they are in it.
    assert!(failed.is_empty(), "{} of {} rows failed: {failed:#?}", failed.len(), rows.len());
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;
    use crate::plane::Plane;

    #[test]
    fn a_row_that_is_left_out_has_not_failed() {
        run(&(), &[("E1 nft's own", |()| Err(LeftOut { plane: Plane::Ipvs, why: "it has none" }.into()))]);
    }

    #[test]
    #[should_panic(expected = "1 of 2 rows failed")]
    fn a_failure_is_one_after_rows_that_pass() {
        run(&(), &[("E1 good", |()| Ok(())), ("E2 bad", |()| bail!("left out on ipvs: or so it says"))]);
    }
}
