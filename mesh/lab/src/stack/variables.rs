//! `${…}` in values, as Compose defines it.

/// Defaults may hold variables in turn.
const DEEPEST: usize = 16;

/// Puts variables in. `unset` is told of each one that has neither value nor default.
pub(super) fn fill_in(text: &str, env: &dyn Fn(&str) -> Option<String>, unset: &mut dyn FnMut(&str)) -> Result<String, String> {
    fill(text, env, unset, 0)
}

fn fill(text: &str, env: &dyn Fn(&str) -> Option<String>, unset: &mut dyn FnMut(&str), depth: usize) -> Result<String, String> {
    if depth > DEEPEST {
        return Err("variables are nested too deep".to_owned());
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('{') {
            let end = closing(after)
                .ok_or_else(|| format!("the variable ${{{} has no closing brace; write $$ for a dollar sign", short(after)))?;
            out.push_str(&braced(&after[..end], env, unset, depth)?);
            rest = &after[end + 1..];
        } else {
            let (name, after) = split_name(rest);
            if name.is_empty() {
                return Err(format!("${} is not a variable; write $$ for a dollar sign", short(rest)));
            }
            out.push_str(&plain(name, env, unset));
            rest = after;
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn plain(name: &str, env: &dyn Fn(&str) -> Option<String>, unset: &mut dyn FnMut(&str)) -> String {
    env(name).unwrap_or_else(|| {
        unset(name);
        String::new()
    })
}

fn braced(body: &str, env: &dyn Fn(&str) -> Option<String>, unset: &mut dyn FnMut(&str), depth: usize) -> Result<String, String> {
    let (name, after) = split_name(body);
    let wrong = || format!("${{{}}} is not a variable; write ${{NAME}}, ${{NAME:-default}} or ${{NAME:?message}}", short(body));
    if name.is_empty() {
        return Err(wrong());
    }
    let value = env(name);
    // With a colon, an empty variable counts as unset.
    let (value, operator) = match after.strip_prefix(':') {
        Some(after) => (value.filter(|v| !v.is_empty()), after),
        None => (value, after),
    };
    if operator.is_empty() {
        return if after.is_empty() { Ok(plain(name, env, unset)) } else { Err(wrong()) };
    }
    if let Some(default) = operator.strip_prefix('-') {
        value.map_or_else(|| fill(default, env, unset, depth + 1), Ok)
    } else if let Some(message) = operator.strip_prefix('?') {
        value.ok_or_else(|| {
            let message = if message.is_empty() { "it is required" } else { message };
            format!("the variable {name} is not set: {message}")
        })
    } else if let Some(replacement) = operator.strip_prefix('+') {
        value.map_or_else(|| Ok(String::new()), |_| fill(replacement, env, unset, depth + 1))
    } else {
        Err(wrong())
    }
}

/// The offset of the brace that ends a variable; defaults may hold further pairs.
fn closing(text: &str) -> Option<usize> {
    let mut open = 0usize;
    let mut before = ' ';
    for (at, c) in text.char_indices() {
        match c {
            '{' if before == '$' => open += 1,
            '}' if open == 0 => return Some(at),
            '}' => open -= 1,
            _ => {}
        }
        before = c;
    }
    None
}

fn split_name(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len());
    let end = if text.starts_with(|c: char| c.is_ascii_digit()) { 0 } else { end };
    text.split_at(end)
}

fn short(text: &str) -> String {
    text.chars().take(24).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(text: &str) -> Result<String, String> {
        let env = |name: &str| match name {
            "SET" => Some("value".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        let mut unset = Vec::new();
        let filled = fill_in(text, &env, &mut |name| unset.push(name.to_owned()))?;
        Ok(if unset.is_empty() { filled } else { format!("{filled} unset {}", unset.join(",")) })
    }

    #[test]
    fn every_form_works() {
        for (text, wanted) in [
            ("no variable", "no variable"),
            ("a $SET b", "a value b"),
            ("${SET}/x", "value/x"),
            ("$SET.x", "value.x"),
            ("$$SET $${SET}", "$SET ${SET}"),
            ("${GONE:-default}", "default"),
            ("${GONE-default}", "default"),
            ("${EMPTY:-default}", "default"),
            ("${EMPTY-default}", ""),
            ("${SET:-default}", "value"),
            ("${SET:?why}", "value"),
            ("${EMPTY?why}", ""),
            ("${SET:+other}", "other"),
            ("${GONE+other}", ""),
            ("${GONE:-${ALSO:-${SET}}}", "value"),
            ("${GONE:-a-b:c}", "a-b:c"),
            ("${GONE:-}", ""),
            ("x${GONE}y", "xy unset GONE"),
            ("$GONE", " unset GONE"),
        ] {
            assert_eq!(filled(text).as_deref(), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn wrong_ones_are_named() {
        for (text, fragment) in [
            ("${SET", "closing brace"),
            ("$", "write $$"),
            ("100$ more", "write $$"),
            ("${}", "not a variable"),
            ("${1A}", "not a variable"),
            ("${SET:}", "not a variable"),
            ("${SET!x}", "not a variable"),
            ("${GONE:?give a domain}", "GONE is not set: give a domain"),
            ("${EMPTY:?}", "EMPTY is not set: it is required"),
        ] {
            let message = filled(text).unwrap_err();
            assert!(message.contains(fragment), "{text}: {message}");
        }
        let deep = "${A:-".repeat(40) + &"}".repeat(40);
        assert!(filled(&deep).unwrap_err().contains("too deep"));
    }
}
