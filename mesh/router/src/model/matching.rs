//! Which requests a route takes.

use std::cmp::Reverse;

use serde::Serialize;

use super::Pattern;

/// Conditions that must all hold. Within `hosts`, `paths` and `methods` one is enough; an empty list asks for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Match {
    /// The host of a request, or the name in a TLS hello.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<HostMatch>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<PathMatch>,
    /// None of these may match.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_paths: Vec<PathMatch>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderMatch>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// The port that the client connected to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// Lower case, without port and without final dot; so is what it is compared with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HostMatch {
    Exact(String),
    /// Ends with this, and is longer. `*.example.com` is the ending `.example.com`.
    Suffix(String),
    /// As `Suffix`, or the whole.
    SuffixOrWhole(String),
    Prefix(String),
    /// Whole labels, anywhere: `acme.com` in `www.acme.com.example`.
    Labels(String),
}

impl HostMatch {
    /// The text that is looked for.
    pub fn text(&self) -> &str {
        match self {
            Self::Exact(text) | Self::Suffix(text) | Self::SuffixOrWhole(text) | Self::Prefix(text) | Self::Labels(text) => text,
        }
    }

    /// Whether a host matches, given as it is compared. The table does not ask one by one.
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(text) => host == text,
            Self::Suffix(text) => host.len() > text.len() && host.ends_with(text.as_str()),
            Self::SuffixOrWhole(text) => host.ends_with(text.as_str()),
            Self::Prefix(text) => host.starts_with(text.as_str()),
            Self::Labels(text) => {
                let mut starts = std::iter::once(0).chain(host.match_indices('.').map(|(dot, _)| dot + 1));
                starts.any(|at| host[at..].strip_prefix(text.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
            }
        }
    }

    /// Smaller is more precise.
    fn precision(&self) -> (u8, Reverse<usize>) {
        let class = match self {
            Self::Exact(_) => 0,
            Self::Suffix(_) | Self::SuffixOrWhole(_) => 1,
            Self::Prefix(_) => 2,
            Self::Labels(_) => 3,
        };
        (class, Reverse(self.text().len()))
    }
}

/// A condition on the path: what stands before the `?`, as the client sent it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct PathMatch {
    pub kind: PathKind,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ignore_case: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PathKind {
    Exact(String),
    /// These bytes come first: `/app` also takes `/apple`, as nginx's locations and HAProxy's `path_beg` do.
    Prefix(String),
    /// Whole segments come first: `/app` takes `/app` and `/app/x`.
    Segments(String),
    Suffix(String),
    Contains(String),
    /// Whole segments, anywhere, as HAProxy's `path_dir`.
    Directory(String),
    Regex(Pattern),
}

impl PathMatch {
    pub fn new(kind: PathKind) -> Self {
        Self { kind, ignore_case: false }
    }

    /// Compared byte by byte.
    pub fn prefix(text: impl Into<String>) -> Self {
        Self::new(PathKind::Prefix(text.into()))
    }

    pub fn exact(text: impl Into<String>) -> Self {
        Self::new(PathKind::Exact(text.into()))
    }

    pub fn matches(&self, path: &str) -> bool {
        let (path, fold) = (path.as_bytes(), self.ignore_case);
        match &self.kind {
            PathKind::Exact(text) => same(path, text.as_bytes(), fold),
            PathKind::Prefix(text) => starts_with(path, text.as_bytes(), fold),
            PathKind::Segments(text) => {
                let text = text.strip_suffix('/').unwrap_or(text).as_bytes();
                starts_with(path, text, fold) && matches!(path.get(text.len()), None | Some(b'/'))
            }
            PathKind::Suffix(text) => path.len() >= text.len() && same(&path[path.len() - text.len()..], text.as_bytes(), fold),
            PathKind::Contains(text) => contains(path, text.as_bytes(), fold),
            PathKind::Directory(text) => {
                let text = text.trim_matches('/').as_bytes();
                let ends = |at: usize| matches!(path.get(at), None | Some(b'/'));
                !text.is_empty()
                    && path
                        .windows(text.len())
                        .enumerate()
                        .any(|(at, part)| at > 0 && path[at - 1] == b'/' && ends(at + text.len()) && same(part, text, fold))
            }
            PathKind::Regex(pattern) => pattern.is_match(path),
        }
    }

    /// Asks for nothing that a path does not have.
    pub fn is_every(&self) -> bool {
        matches!(&self.kind, PathKind::Prefix(text) | PathKind::Segments(text) if text == "/")
    }

    /// Smaller is more precise: exact, then expressions, then the longest text.
    fn precision(&self) -> (u8, Reverse<usize>) {
        let (class, length) = match &self.kind {
            PathKind::Exact(text) => (0, text.len()),
            PathKind::Regex(pattern) => (1, pattern.as_str().len()),
            // One segment's end is one more byte that has to be right.
            PathKind::Segments(text) => (2, text.trim_end_matches('/').len() + 1),
            PathKind::Prefix(text) => (2, text.len()),
            PathKind::Suffix(text) | PathKind::Directory(text) => (3, text.len()),
            PathKind::Contains(text) => (4, text.len()),
        };
        (class, Reverse(length))
    }
}

/// A condition on one header.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct HeaderMatch {
    /// Lower case.
    pub name: String,
    /// One is enough. None of them: the header has to be there.
    pub values: Vec<TextMatch>,
    /// The condition holds when the header is not so.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub negate: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TextMatch {
    Exact(String),
    /// ASCII case does not matter.
    Contains(String),
    Regex(Pattern),
}

impl TextMatch {
    fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(text) => value == text.as_bytes(),
            Self::Contains(text) => contains(value, text.as_bytes(), true),
            Self::Regex(pattern) => pattern.is_match(value),
        }
    }
}

/// A request's headers, as far as conditions ask for them.
pub trait Headers {
    /// Whether the test holds for one of the values that this header has. The name is in lower case.
    fn any(&self, name: &str, test: &mut dyn FnMut(&[u8]) -> bool) -> bool;
}

impl Headers for [(&str, &str)] {
    fn any(&self, name: &str, test: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        self.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).any(|(_, value)| test(value.as_bytes()))
    }
}

impl<const N: usize> Headers for [(&str, &str); N] {
    fn any(&self, name: &str, test: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        self.as_slice().any(name, test)
    }
}

impl HeaderMatch {
    /// Whether the condition holds for a request.
    pub fn holds(&self, headers: &dyn Headers) -> bool {
        headers.any(&self.name, &mut |value| self.values.is_empty() || self.values.iter().any(|v| v.matches(value))) != self.negate
    }
}

impl Match {
    /// A match of one host, exactly.
    pub fn host(host: impl Into<String>) -> Self {
        Self { hosts: vec![HostMatch::Exact(host.into())], ..Self::default() }
    }

    pub fn is_any_host(&self) -> bool {
        self.hosts.is_empty()
    }

    pub(super) fn precision(&self) -> Precision {
        let paths = self.paths.iter().filter(|p| !p.is_every()).map(PathMatch::precision);
        Precision {
            host: self.hosts.iter().map(HostMatch::precision).min().unwrap_or(NOTHING),
            path: paths.min().unwrap_or(NOTHING),
            conditions: self.headers.len()
                + usize::from(!self.methods.is_empty())
                + usize::from(self.port.is_some())
                + usize::from(!self.not_paths.is_empty()),
        }
    }
}

/// What is not asked for is the least precise.
const NOTHING: (u8, Reverse<usize>) = (u8::MAX, Reverse(0));

/// How narrow a match is. Of hosts and paths the smaller is the more precise.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Precision {
    pub(super) host: (u8, Reverse<usize>),
    pub(super) path: (u8, Reverse<usize>),
    pub(super) conditions: usize,
}

fn same(a: &[u8], b: &[u8], ignore_case: bool) -> bool {
    if ignore_case { a.eq_ignore_ascii_case(b) } else { a == b }
}

fn starts_with(text: &[u8], start: &[u8], ignore_case: bool) -> bool {
    text.len() >= start.len() && same(&text[..start.len()], start, ignore_case)
}

fn contains(text: &[u8], part: &[u8], ignore_case: bool) -> bool {
    part.is_empty() || text.windows(part.len()).any(|window| same(window, part, ignore_case))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_path_takes_what_it_should() {
        let regex = PathKind::Regex(Pattern::new("^/v[0-9]+/").unwrap());
        for (kind, yes, no) in [
            (PathKind::Exact("/a".into()), &["/a"][..], &["/a/", "/A", "/"][..]),
            (PathKind::Prefix("/app".into()), &["/app", "/app/x", "/apple"], &["/ap", "/x/app", "/App"]),
            (PathKind::Segments("/app".into()), &["/app", "/app/", "/app/x"], &["/apple", "/"]),
            (PathKind::Segments("/app/".into()), &["/app", "/app/x"], &["/apple"]),
            (PathKind::Segments("/".into()), &["/", "/x"], &["*"]),
            (PathKind::Suffix(".png".into()), &["/a.png", ".png"], &["/a.png/", "png"]),
            (PathKind::Contains("api".into()), &["/x/rapid", "api"], &["/ap/i"]),
            (PathKind::Directory("img".into()), &["/img", "/a/img/b", "/img/"], &["/imgs", "img", "/a-img"]),
            (PathKind::Directory("/a/b/".into()), &["/x/a/b/c", "/a/b"], &["/a/bc"]),
            (PathKind::Directory("/".into()), &[], &["/", "/x"]),
            (regex, &["/v1/x"], &["/v/x", "/x/v1/"]),
        ] {
            let matching = PathMatch::new(kind);
            for path in yes {
                assert!(matching.matches(path), "{matching:?} {path}");
            }
            for path in no {
                assert!(!matching.matches(path), "{matching:?} {path}");
            }
        }
        let folded = PathMatch { kind: PathKind::Prefix("/App".into()), ignore_case: true };
        assert!(folded.matches("/aPPle") && !folded.matches("/ap"));
    }

    struct Slice<'a>(&'a [(&'a str, &'a str)]);

    impl Headers for Slice<'_> {
        fn any(&self, name: &str, test: &mut dyn FnMut(&[u8]) -> bool) -> bool {
            self.0.any(name, test)
        }
    }

    #[test]
    fn a_header_is_compared_as_its_kind_says() {
        let holds = |values: Vec<TextMatch>, negate, header: &[&str]| {
            let headers: Vec<(&str, &str)> = header.iter().map(|v| ("X", *v)).collect();
            HeaderMatch { name: "x".into(), values, negate }.holds(&Slice(&headers))
        };
        let exact = || vec![TextMatch::Exact("v".into()), TextMatch::Exact("w".into())];
        assert!(holds(exact(), false, &["u", "w"]));
        assert!(!holds(exact(), false, &["V"]));
        assert!(!holds(exact(), false, &[]));
        assert!(holds(exact(), true, &[]));
        assert!(holds(vec![], false, &[""]) && !holds(vec![], false, &[]));
        assert!(holds(vec![TextMatch::Contains("MoZ".into())], false, &["like mozilla"]));
    }
}
