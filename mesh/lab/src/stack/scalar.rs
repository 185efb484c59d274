//! Values that are written as text but are more than text.

use std::{net::IpAddr, time::Duration};

use super::tree::shown;

/// Go's duration syntax: `1m30s`, `1.5h`, `500ms`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    const LONGEST: f64 = 100.0 * 365.0 * 86400.0;
    let wrong = || format!("{text:?} is not a duration; write it like 500ms, 10s or 1m30s");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut seconds = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" | "μs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(wrong()),
        };
        seconds += number * unit;
        rest = &rest[end..];
    }
    if text.is_empty() {
        return Err(wrong());
    }
    if seconds > LONGEST {
        return Err(format!("{text:?} is longer than a hundred years"));
    }
    // Rounded, so that 1.1s is not a nanosecond short.
    Ok(Duration::from_nanos((seconds * 1e9).round() as u64))
}

pub(crate) fn hostname(text: &str) -> Result<String, String> {
    const LONGEST: usize = 63;
    // Docker's templates are filled in for each task.
    let fine = text.contains("{{") || (text.len() <= LONGEST && text.bytes().all(is_of_name));
    if fine { Ok(text.to_owned()) } else { Err(format!("{:?} is not a hostname; use letters, digits, dots and -", shown(text))) }
}

/// A name server's address.
pub(super) fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("{:?} is not the address of a name server", shown(text)))
}

/// One word of a `search` line. A dot alone means that there is nothing to search.
pub(crate) fn search_domain(text: &str) -> Result<String, String> {
    let fine = text.len() <= 253 && text.bytes().all(is_of_name);
    if fine { Ok(text.to_owned()) } else { Err(format!("{:?} is not a domain; use letters, digits, dots and -", shown(text))) }
}

/// One word of an `options` line. What resolvers make of it is their affair.
pub(crate) fn resolver_option(text: &str) -> Result<String, String> {
    let fine = text.len() <= 253 && text.bytes().all(|b| b.is_ascii_graphic());
    if fine { Ok(text.to_owned()) } else { Err(format!("{:?} is not an option; write one word, like ndots:2", shown(text))) }
}

fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

/// Splits a command as a shell would, without expanding anything.
pub(super) fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('\'') => break,
                        Some(c) => word.push(c),
                        None => return Err("a single quote has no end".to_owned()),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('"') => break,
                        Some('\\') => match chars.next() {
                            Some(c @ ('"' | '\\' | '$' | '`')) => word.push(c),
                            Some('\n') => {}
                            Some(c) => word.extend(['\\', c]),
                            None => return Err("a double quote has no end".to_owned()),
                        },
                        Some(c) => word.push(c),
                        None => return Err("a double quote has no end".to_owned()),
                    }
                }
            }
            '\\' => match chars.next() {
                Some('\n') => {}
                Some(c) => word.get_or_insert_default().push(c),
                None => return Err("a backslash at the end escapes nothing".to_owned()),
            },
            c if c.is_whitespace() => words.extend(word.take()),
            '#' if word.is_none() => {
                // A comment, to the end of its line.
                chars.by_ref().find(|c| *c == '\n');
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

/// A signal's name with its SIG, or its number.
pub(super) fn signal(text: &str) -> Result<String, String> {
    let wrong = || format!("{text:?} is not a signal; write it like SIGTERM or 15");
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=64).contains(&number) { Ok(text.to_owned()) } else { Err(wrong()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    let real_time = name.strip_prefix("SIGRTMIN").or_else(|| name.strip_prefix("SIGRTMAX"));
    let known = name.parse::<nix::sys::signal::Signal>().is_ok()
        || real_time.is_some_and(|offset| offset.is_empty() || offset.parse::<i32>().is_ok_and(|n| n.abs() <= 30));
    if known { Ok(name) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        for (text, millis) in [("10s", 10_000), ("1m30s", 90_000), ("1.5h", 5_400_000), ("500ms", 500), ("0", 0), ("0s", 0), ("1.1s", 1100)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "10", "s", "1d", "-1s", "1..5s", "10 s", "1e9s", "99999999h", "\u{660}s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn words_are_a_shells() {
        let split = |text| words(text).unwrap();
        assert_eq!(split("redis-server --save '' \"a b\" c\\ d"), ["redis-server", "--save", "", "a b", "c d"]);
        assert_eq!(split("sh -c 'echo \"$HOME\"' # shown"), ["sh", "-c", "echo \"$HOME\""]);
        assert_eq!(split("a\"b\\\"c\"'d'"), ["ab\"cd"]);
        assert_eq!(split("  "), Vec::<String>::new());
        assert!(words("a 'b").is_err() && words("a \"b").is_err() && words("a\\").is_err());
    }

    #[test]
    fn signals_are_checked() {
        assert_eq!(signal("term").as_deref(), Ok("SIGTERM"));
        assert_eq!(signal("SIGQUIT").as_deref(), Ok("SIGQUIT"));
        assert_eq!(signal("15").as_deref(), Ok("15"));
        assert_eq!(signal("SIGRTMIN+3").as_deref(), Ok("SIGRTMIN+3"));
        assert!(signal("SIGSTOPIT").is_err() && signal("0").is_err() && signal("").is_err());
    }
}
