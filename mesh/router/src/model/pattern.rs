//! Regular expressions as the older systems wrote them, and what replaces a match.

use std::{
    fmt,
    hash::{Hash, Hasher},
};

use regex::bytes::{Regex, RegexBuilder};
use serde::{Serialize, Serializer};

/// Of a compiled expression, in bytes: a label must not take the node's memory.
const SIZE_LIMIT: usize = 64 * 1024;
const LONGEST: usize = 4096;

/// A regular expression over bytes, in linear time. Two are equal if their texts are.
#[derive(Clone)]
pub struct Pattern {
    text: Box<str>,
    ignore_case: bool,
    regex: Regex,
}

/// Why a text is no [`Pattern`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum PatternError {
    #[error("looks around or refers back, which cannot be done in linear time")]
    NotRegular,
    #[error("is too large")]
    TooLarge,
    #[error("is no regular expression: {0}")]
    Syntax(String),
    #[error("refers to group {0}, which the expression does not have")]
    NoGroup(u8),
}

impl Pattern {
    pub fn new(text: &str) -> Result<Self, PatternError> {
        Self::build(text, false)
    }

    pub fn ignoring_case(text: &str) -> Result<Self, PatternError> {
        Self::build(text, true)
    }

    fn build(text: &str, ignore_case: bool) -> Result<Self, PatternError> {
        if text.len() > LONGEST {
            return Err(PatternError::TooLarge);
        }
        let regex = RegexBuilder::new(text)
            .unicode(false)
            .case_insensitive(ignore_case)
            .size_limit(SIZE_LIMIT)
            .dfa_size_limit(SIZE_LIMIT)
            .nest_limit(64)
            .build()
            .map_err(|error| match error {
                regex::Error::CompiledTooBig(_) => PatternError::TooLarge,
                _ if not_regular(text) => PatternError::NotRegular,
                // The last line says what is wrong; those before it point at the place, over several lines.
                other => {
                    PatternError::Syntax(other.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned())
                }
            })?;
        Ok(Self { text: text.into(), ignore_case, regex })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn is_match(&self, text: &[u8]) -> bool {
        self.regex.is_match(text)
    }

    /// How many groups it has, the whole match not counted.
    pub fn groups(&self) -> usize {
        self.regex.captures_len() - 1
    }

    /// `text` with its first match replaced; `None` if there is none.
    pub fn replace_first(&self, text: &[u8], by: &Replacement) -> Option<Vec<u8>> {
        let captures = self.regex.captures(text)?;
        let whole = captures.get(0)?;
        let mut out = Vec::with_capacity(text.len() + 16);
        out.extend_from_slice(&text[..whole.start()]);
        by.expand(&captures, &mut out);
        out.extend_from_slice(&text[whole.end()..]);
        Some(out)
    }

    /// What the replacement makes of the first match, and nothing else of `text`; `None` if there is no match.
    pub fn expand_first(&self, text: &[u8], by: &Replacement) -> Option<Vec<u8>> {
        let captures = self.regex.captures(text)?;
        let mut out = Vec::with_capacity(text.len() + 16);
        by.expand(&captures, &mut out);
        Some(out)
    }
}

/// Whether the syntax in it is that of look-around, back references, atomic groups, possessive quantifiers or `\K`.
fn not_regular(text: &str) -> bool {
    if ["(?=", "(?!", "(?<=", "(?<!", "(?>", "(?|", "(?R", "(?P=", "(?&"].iter().any(|s| text.contains(s)) {
        return true;
    }
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'\\' && matches!(bytes.next(), Some(b'1'..=b'9' | b'K' | b'k' | b'g' | b'G' | b'R')) {
            return true;
        }
    }
    false
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text && self.ignore_case == other.ignore_case
    }
}

impl Eq for Pattern {}

impl Hash for Pattern {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
        self.ignore_case.hash(state);
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/{}", self.text, if self.ignore_case { "i" } else { "" })
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}{}", if self.ignore_case { "(?i)" } else { "" }, self.text))
    }
}

/// What a match becomes: text and groups.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Replacement(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
enum Part {
    Text(String),
    Group(u8),
}

impl Replacement {
    /// HAProxy's form: `\0` to `\9` are groups, `\` before anything else stands for that.
    pub fn new(text: &str, pattern: &Pattern) -> Result<Self, PatternError> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            if c != '\\' {
                plain.push(c);
                continue;
            }
            match chars.next() {
                Some(digit @ '0'..='9') => {
                    let group = digit as u8 - b'0';
                    if usize::from(group) > pattern.groups() {
                        return Err(PatternError::NoGroup(group));
                    }
                    if !plain.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut plain)));
                    }
                    parts.push(Part::Group(group));
                }
                Some(other) => plain.push(other),
                None => plain.push('\\'),
            }
        }
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Self(parts))
    }

    fn expand(&self, captures: &regex::bytes::Captures<'_>, out: &mut Vec<u8>) {
        for part in &self.0 {
            match part {
                Part::Text(text) => out.extend_from_slice(text.as_bytes()),
                Part::Group(group) => out.extend_from_slice(captures.get(usize::from(*group)).map_or(&[][..], |m| m.as_bytes())),
            }
        }
    }
}

impl fmt::Display for Replacement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|part| match part {
            Part::Text(text) => f.write_str(&text.replace('\\', r"\\")),
            Part::Group(group) => write!(f, "\\{group}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_linear_is_told_from_what_is_wrong() {
        for (text, error) in [
            (r"(?=a)", PatternError::NotRegular),
            (r"(a)\1", PatternError::NotRegular),
            (r"(?<!x)y", PatternError::NotRegular),
            (r"((((a{100}){100}){100}){100})", PatternError::TooLarge),
        ] {
            assert_eq!(Pattern::new(text).err(), Some(error), "{text}");
        }
        assert!(matches!(Pattern::new("(a"), Err(PatternError::Syntax(_))));
        assert!(matches!(Pattern::new(r"\\1("), Err(PatternError::Syntax(_))));
        assert_eq!(Pattern::new(&"a".repeat(LONGEST + 1)).err(), Some(PatternError::TooLarge));
    }

    #[test]
    fn the_first_match_is_replaced_and_groups_are_put_in() {
        let replace = |pattern: &str, by: &str, text: &str| {
            let pattern = Pattern::new(pattern).unwrap();
            let by = Replacement::new(by, &pattern).unwrap();
            pattern.replace_first(text.as_bytes(), &by).map(|out| String::from_utf8(out).unwrap())
        };
        assert_eq!(replace("/a", "/b", "/a/a").as_deref(), Some("/b/a"));
        assert_eq!(replace("^/(x)(y)?", r"\2/\1\0\\", "/xz").as_deref(), Some(r"/x/x\z"));
        assert_eq!(replace("q", "r", "/a"), None);
        let pattern = Pattern::new("(a)").unwrap();
        assert_eq!(Replacement::new(r"\2", &pattern), Err(PatternError::NoGroup(2)));
        for text in [r"/x\1y\\", ""] {
            assert_eq!(Replacement::new(text, &pattern).unwrap().to_string(), text);
        }
    }
}
