//! What the person at the terminal sees meanwhile.
#![expect(clippy::print_stderr, reason = "progress is for the person at the terminal")]

use std::{
    io::{IsTerminal, Write, stderr},
    time::{Duration, Instant},
};

/// Without a terminal, a line that would be rewritten is printed this often.
const SPARSE: Duration = Duration::from_secs(2);

/// Progress on stderr: lines that stay, and one that is rewritten where that is possible.
#[derive(Debug)]
pub struct Progress {
    terminal: bool,
    transient: String,
    printed: Instant,
}

impl Default for Progress {
    fn default() -> Self {
        Self { terminal: stderr().is_terminal(), transient: String::new(), printed: Instant::now() }
    }
}

impl Progress {
    /// A line that stays.
    pub fn line(&mut self, text: &str) {
        self.clear();
        eprintln!("{text}");
    }

    /// A line that the next one replaces.
    pub fn transient(&mut self, text: &str) {
        if text == self.transient {
            return;
        }
        if self.terminal {
            self.clear();
            eprint!("{text}");
            // Progress that cannot be shown is not worth an error.
            let _ = stderr().flush();
        } else if self.printed.elapsed() >= SPARSE {
            eprintln!("{text}");
            self.printed = Instant::now();
        } else {
            return;
        }
        text.clone_into(&mut self.transient);
    }

    fn clear(&mut self) {
        if self.terminal && !self.transient.is_empty() {
            eprint!("\r\x1b[K");
        }
        self.transient.clear();
    }
}
