//! Something that is wrong with one object and leaves the others alone.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is wrong, on which object, and what to do. Shown by `status`; never fatal to anything but the object it names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// The object, as a person would name it: `service web`, `network back-end`, `task web.1.x2m…`.
    pub object: String,
    /// The place in it: a label's name, a field.
    pub place: String,
    pub message: String,
}

impl Problem {
    pub fn new(object: impl Into<String>, place: impl Into<String>, message: impl Into<String>) -> Self {
        Self { object: object.into(), place: place.into(), message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.object, self.place, self.message)
    }
}
