//! The little of HAProxy's configuration language that labels may hold.
//!
//! What is not understood is refused whole: half of a rule is another rule.

use super::labels;
use crate::{
    model::{Balance, HeaderChange, HeaderChangeKind, HostMatch, PathKind, PathMatch, Pattern, Piece, Template, Variable, When},
    problem::Reason,
};

const RAW: Reason = Reason::Raw { system: "HAProxy" };

/// Words as HAProxy splits them: by blanks, with quotes and `\`.
fn words(text: &str) -> Result<Vec<String>, Reason> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            (c, Some(q)) if c == q => quote = None,
            ('\\', None | Some('"')) => word.get_or_insert_default().push(chars.next().ok_or(RAW)?),
            (c, Some(_)) => word.get_or_insert_default().push(c),
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            ('#', None) if word.is_none() => break,
            (' ' | '\t', None) => words.extend(word.take()),
            (c, None) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err(RAW);
    }
    words.extend(word);
    Ok(words)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderVerb {
    Add,
    Set,
    Delete,
}

/// `NAME VALUE [if|unless { ssl_fc }]`, or the name alone for [`HeaderVerb::Delete`].
pub(super) fn header(text: &str, verb: HeaderVerb) -> Result<HeaderChange, Reason> {
    let words = words(text)?;
    let mut words = words.iter().map(String::as_str);
    let name = labels::header_name(words.next().ok_or(Reason::Empty)?)?;
    if labels::is_framing(&name) {
        return Err(Reason::NotSupported { why: "this header says where a message ends or to whom it goes" });
    }
    let change = match verb {
        HeaderVerb::Delete => HeaderChangeKind::Delete,
        HeaderVerb::Add => HeaderChangeKind::Add(template(words.next().ok_or(Reason::NotAPair)?)?),
        HeaderVerb::Set => HeaderChangeKind::Set(template(words.next().ok_or(Reason::NotAPair)?)?),
    };
    let condition: Vec<&str> = words.collect();
    let when = match condition[..] {
        [] => None,
        ["if", "{", "ssl_fc", "}"] | ["unless", "!{", "ssl_fc", "}"] | ["unless", "{", "!ssl_fc", "}"] => Some(When::Tls),
        ["unless", "{", "ssl_fc", "}"] | ["if", "!{", "ssl_fc", "}"] | ["if", "{", "!ssl_fc", "}"] => Some(When::Plain),
        _ => return Err(RAW),
    };
    Ok(HeaderChange { name, change, when })
}

/// Text with `%[fetch]` and a few of the log's variables.
pub(super) fn template(text: &str) -> Result<Template, Reason> {
    if !labels::is_header_value(text) {
        return Err(RAW);
    }
    let mut pieces = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        plain.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            plain.push('%');
            rest = after;
            continue;
        }
        let (variable, after) = if let Some(inner) = rest.strip_prefix('[') {
            let (fetch, after) = inner.split_once(']').ok_or(RAW)?;
            (fetched(fetch.trim())?, after)
        } else {
            let end = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
            (logged(&rest[..end])?, &rest[end..])
        };
        if !plain.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut plain)));
        }
        pieces.push(Piece::Variable(variable));
        rest = after;
    }
    plain.push_str(rest);
    if !plain.is_empty() {
        pieces.push(Piece::Text(plain));
    }
    Ok(Template(pieces))
}

fn fetched(fetch: &str) -> Result<Variable, Reason> {
    Ok(match fetch {
        "src" => Variable::ClientAddress,
        "src_port" => Variable::ClientPort,
        "dst" => Variable::LocalAddress,
        "dst_port" => Variable::LocalPort,
        "ssl_fc" => Variable::Tls,
        "ssl_fc_sni" => Variable::Sni,
        "path" => Variable::Path,
        "method" => Variable::Method,
        "hostname" | "env(HOSTNAME)" => Variable::ProxyName,
        "uuid" | "uuid()" | "unique-id" => Variable::RequestId,
        // No other variable of the environment: it may hold secrets.
        _ => {
            let header = ["req.hdr(", "req.fhdr(", "hdr("].iter().find_map(|f| fetch.strip_prefix(f)).and_then(|f| f.strip_suffix(')'));
            match labels::header_name(header.ok_or(RAW)?)?.as_str() {
                "host" => Variable::Host,
                "authorization" | "proxy-authorization" => {
                    return Err(Reason::NotSupported { why: "passwords are not copied into other headers" });
                }
                name => Variable::Header(name.to_owned()),
            }
        }
    })
}

fn logged(name: &str) -> Result<Variable, Reason> {
    Ok(match name {
        "ci" => Variable::ClientAddress,
        "cp" => Variable::ClientPort,
        "fi" => Variable::LocalAddress,
        "fp" => Variable::LocalPort,
        "H" => Variable::ProxyName,
        "HM" => Variable::Method,
        "HP" => Variable::Path,
        "ID" => Variable::RequestId,
        _ => return Err(RAW),
    })
}

/// How a host is compared: `hdr(host)`, `hdr_beg(host)`, `hdr_end(host)`, `hdr_dom(host)`, or the same of the name in a TLS hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HostAlgorithm {
    Exact,
    Beginning,
    End,
    Labels,
}

impl HostAlgorithm {
    pub(super) fn of_host(text: &str) -> Result<Self, Reason> {
        let words = words(text)?;
        let mut words = words.iter().map(String::as_str);
        let kind = match words.next().ok_or(Reason::Empty)? {
            "hdr(host)" | "req.hdr(host)" => Self::Exact,
            "hdr_beg(host)" | "req.hdr_beg(host)" => Self::Beginning,
            "hdr_end(host)" | "req.hdr_end(host)" => Self::End,
            "hdr_dom(host)" | "req.hdr_dom(host)" => Self::Labels,
            _ => return Err(RAW),
        };
        kind.with_flags(words)
    }

    pub(super) fn of_sni(text: &str) -> Result<Self, Reason> {
        let words = words(text)?;
        let mut words = words.iter().map(String::as_str);
        let kind = match words.next().ok_or(Reason::Empty)? {
            "req_ssl_sni" | "req.ssl_sni" => Self::Exact,
            "req_ssl_sni_beg" | "req.ssl_sni_beg" => Self::Beginning,
            "req_ssl_sni_end" | "req.ssl_sni_end" => Self::End,
            _ => return Err(RAW),
        };
        kind.with_flags(words)
    }

    /// `-i`, which hosts always have, and `-m METHOD`.
    fn with_flags<'w>(mut self, mut words: impl Iterator<Item = &'w str>) -> Result<Self, Reason> {
        while let Some(word) = words.next() {
            self = match word {
                "-i" => self,
                "-m" => match words.next() {
                    Some("str") => Self::Exact,
                    Some("beg") => Self::Beginning,
                    Some("end") => Self::End,
                    Some("dom") => Self::Labels,
                    _ => return Err(RAW),
                },
                _ => return Err(RAW),
            };
        }
        Ok(self)
    }

    pub(super) fn host(self, text: &str) -> Result<HostMatch, Reason> {
        Ok(match self {
            Self::Exact => HostMatch::Exact(labels::host(text)?),
            Self::Beginning => HostMatch::Prefix(labels::host_part(text)?),
            Self::End => HostMatch::SuffixOrWhole(labels::host_part(text)?),
            Self::Labels => HostMatch::Labels(labels::host(text)?),
        })
    }
}

/// `path`, `path_beg`, `path_end`, `path_sub`, `path_dir`, `path_reg`, with `-i` and `-m`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PathAlgorithm {
    kind: &'static str,
    ignore_case: bool,
}

impl PathAlgorithm {
    pub(super) fn new(text: &str) -> Result<Self, Reason> {
        const KINDS: [(&str, &str); 6] =
            [("path", "str"), ("path_beg", "beg"), ("path_end", "end"), ("path_sub", "sub"), ("path_dir", "dir"), ("path_reg", "reg")];
        let words = words(text)?;
        let mut words = words.iter().map(String::as_str);
        let first = words.next().ok_or(Reason::Empty)?;
        let mut kind = KINDS.iter().find(|(fetch, _)| *fetch == first).ok_or(RAW)?.1;
        let mut ignore_case = false;
        while let Some(word) = words.next() {
            match word {
                "-i" => ignore_case = true,
                "-m" => kind = words.next().and_then(|m| KINDS.iter().find(|(_, method)| *method == m)).ok_or(RAW)?.1,
                _ => return Err(RAW),
            }
        }
        Ok(Self { kind, ignore_case })
    }

    pub(super) fn path(&self, text: &str) -> Result<PathMatch, Reason> {
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Reason::NotAPath);
        }
        let owned = || text.to_owned();
        let kind = match self.kind {
            "str" => PathKind::Exact(labels::path(text)?),
            "beg" => PathKind::Prefix(labels::path(text)?),
            "end" => PathKind::Suffix(owned()),
            "sub" => PathKind::Contains(owned()),
            "dir" => PathKind::Directory(owned()),
            _ => {
                let pattern = if self.ignore_case { Pattern::ignoring_case(text) } else { Pattern::new(text) };
                return Ok(PathMatch::new(PathKind::Regex(pattern.map_err(Reason::Pattern)?)));
            }
        };
        Ok(PathMatch { kind, ignore_case: self.ignore_case })
    }
}

/// What follows `balance`.
pub(super) fn balance(text: &str) -> Result<Balance, Reason> {
    match text.trim() {
        "roundrobin" | "static-rr" => Ok(Balance::RoundRobin),
        "leastconn" => Ok(Balance::LeastConnections),
        "source" => Ok(Balance::SourceHash),
        "random" => Ok(Balance::Random),
        _ => Err(RAW),
    }
}

/// A backend's extra lines: a `balance` line is understood, and no other.
pub(super) fn backend_extra(text: &str) -> Result<Option<Balance>, Reason> {
    let mut found = None;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        found = Some(balance(line.strip_prefix("balance ").ok_or(RAW)?)?);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_as_haproxy_does() {
        let split = |text: &str| words(text).unwrap();
        assert_eq!(split(r#"a  "b c" 'd\ "' e\ f"#), ["a", "b c", r#"d\ ""#, "e f"]);
        assert_eq!(split("a # b"), ["a"]);
        assert_eq!(split(r#""""#), [""]);
        for text in ["\"a", "'", "a\\"] {
            assert_eq!(words(text), Err(RAW), "{text:?}");
        }
    }

    #[test]
    fn what_is_half_understood_is_refused() {
        for text in ["%[env(PASSWORD)]", "%[src,ipmask(24)]", "%[rand]", "%ST", "%[src", "%", "a\nb"] {
            assert_eq!(template(text), Err(RAW), "{text:?}");
        }
        assert!(matches!(template("%[req.hdr(Authorization)]"), Err(Reason::NotSupported { .. })));
        for text in ["X a b", "X a if TRUE", "X a if { src 10.0.0.0/8 }", "X a if { ssl_fc } { dst_port 80 }", "X a unless"] {
            assert_eq!(header(text, HeaderVerb::Set), Err(RAW), "{text:?}");
        }
        assert!(matches!(header("Transfer-Encoding chunked", HeaderVerb::Set), Err(Reason::NotSupported { .. })));
        assert_eq!(header("X", HeaderVerb::Add), Err(Reason::NotAPair));
        assert_eq!(header("X y", HeaderVerb::Delete), Err(RAW));
        for text in ["hdr_reg(host)", "hdr_sub(host)", "src", "hdr(host) -f file"] {
            assert_eq!(HostAlgorithm::of_host(text), Err(RAW), "{text:?}");
        }
        for text in ["path_len", "url_beg", "path -m len", "path_beg -f x"] {
            assert_eq!(PathAlgorithm::new(text), Err(RAW), "{text:?}");
        }
        for text in ["http-request deny", "balance uri", "balance roundrobin\nhttp-request deny"] {
            assert_eq!(backend_extra(text), Err(RAW), "{text:?}");
        }
        assert_eq!(backend_extra("\n balance leastconn \n"), Ok(Some(Balance::LeastConnections)));
    }
}
