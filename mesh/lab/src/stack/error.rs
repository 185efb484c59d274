//! The one error that a stack file is refused with.

use std::fmt;

/// Why a stack file was refused: the first mistake found, where it is, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct StackError {
    pub file: String,
    /// From 1; 0 when the file as a whole is meant.
    pub line: usize,
    /// From 1, in characters; 0 together with `line`.
    pub column: usize,
    /// `services.web.ports[1]`; empty when the text is not YAML at all.
    pub place: String,
    pub message: String,
}

impl fmt::Display for StackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file)?;
        if self.line > 0 {
            write!(f, "{}:{}:", self.line, self.column)?;
        }
        if !self.place.is_empty() {
            write!(f, " {}:", self.place)?;
        }
        write!(f, " {}", self.message)
    }
}
