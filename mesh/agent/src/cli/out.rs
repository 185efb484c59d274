//! What people and programs read: stdout for results, stderr for the reason of a failure.

use std::{
    fmt::Display,
    io::{self, Write},
};

use serde::Serialize;

pub(super) fn text(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

pub(super) fn json(value: &impl Serialize) -> io::Result<()> {
    let mut out = serde_json::to_string_pretty(value)?;
    out.push('\n');
    text(&out)
}

pub(super) fn complain(error: &dyn Display) {
    // When not even stderr takes it, the exit code has to do.
    let _ = writeln!(io::stderr(), "swarmesh: {error}");
}

/// Columns, aligned; the last one runs free.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(|h| (*h).to_owned()).collect()] }
    }

    pub(super) fn row(&mut self, cells: impl Into<Vec<String>>) {
        self.rows.push(cells.into());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.len() < 2
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| self.rows.iter().filter_map(|r| r.get(column)).map(|c| shown(c).chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{:<width$}  ", shown(cell)));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// An empty cell would look like a missing one; control characters in a name must not steer the terminal.
fn shown(cell: &str) -> String {
    if cell.is_empty() { "-".to_owned() } else { clean(cell) }
}

/// Names and messages come from others, and may hold anything.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_cells_are_harmless() {
        let mut table = Table::new(&["NAME", "N"]);
        assert!(table.is_empty());
        table.row(["wéb".to_owned(), String::new()]);
        table.row(["\u{1b}[31mlonger".to_owned(), "12".to_owned()]);
        assert_eq!(table.to_string(), "NAME         N\nwéb          -\n\u{fffd}[31mlonger  12\n");
    }
}
