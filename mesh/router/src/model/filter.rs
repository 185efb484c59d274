//! What is done to a request on its way, and to its answer on the way back.

use std::fmt::Write as _;

use serde::Serialize;

use super::{Password, Pattern, Replacement};

/// One step. Steps that answer by themselves end the way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// A request without TLS is sent to the same place with it.
    HttpsOnly(RedirectCode),
    /// 403 for requests without TLS.
    RefusePlain,
    /// 403 for other methods.
    AllowMethods(Vec<String>),
    /// 403 for these methods.
    DenyMethods(Vec<String>),
    /// 403 without a client certificate that the node's CA signed.
    ClientCertificate,
    /// 401 without a user that this list knows.
    BasicAuth(BasicAuth),
    /// 401 without a user of the node's own list, if the node has one; `Authorization` then goes no further.
    GlobalAuth,
    /// Says who the client is.
    Forward(ForwardHeaders),
    Request(HeaderChange),
    Response(HeaderChange),
    Rewrite(Rewrite),
    /// A path that names a directory without saying so is sent to where it does.
    AppendSlash(AppendSlash),
    Compress(Compression),
    /// `x-request-id`, `x-proxy-id`, `x-server-info`, `x-upstream-addr` and `x-upstream-response-time` on answers with status
    /// 200, 201, 204, 206, 301, 302, 303, 304, 307 or 308; those without a value are left out.
    InfoHeaders,
    /// `Strict-Transport-Security` on answers in TLS.
    StrictTransport {
        seconds: u64,
        subdomains: bool,
        preload: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum RedirectCode {
    MovedPermanently = 301,
    Found = 302,
    SeeOther = 303,
    Temporary = 307,
    Permanent = 308,
}

impl RedirectCode {
    pub fn new(code: u16) -> Option<Self> {
        [Self::MovedPermanently, Self::Found, Self::SeeOther, Self::Temporary, Self::Permanent].into_iter().find(|c| c.code() == code)
    }

    pub fn code(self) -> u16 {
        self as u16
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Redirect {
    pub code: RedirectCode,
    pub to: RedirectTarget,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RedirectTarget {
    /// The same host and path with TLS.
    Https,
    /// This text, then the request's path and query.
    Before(String),
    /// This and nothing of the request.
    Exactly(String),
}

impl Redirect {
    /// The `Location` for a request. `path` includes the query.
    pub fn location(&self, host: &str, path: &str) -> String {
        // `OPTIONS *` and the like have no path; and what does not begin with a slash would become part of the host.
        let path = if path.starts_with('/') { path } else { "/" };
        match &self.to {
            RedirectTarget::Https => https_location(host, path),
            RedirectTarget::Before(prefix) => format!("{prefix}{path}"),
            RedirectTarget::Exactly(url) => url.clone(),
        }
    }
}

/// Where a request without TLS is sent to have it. The port it came by is not one for TLS, so it goes.
pub(crate) fn https_location(host: &str, path: &str) -> String {
    format!("https://{}{path}", crate::table::without_port(host))
}

/// A user's name and password, as in `Authorization: Basic`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct BasicAuth {
    pub realm: String,
    pub users: Vec<User>,
    /// A Docker secret with more users; those of `users` without a password have theirs there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// The secret's passwords are hashes.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub secret_hashed: bool,
    /// `Authorization` goes no further.
    pub consume: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct User {
    pub name: String,
    /// Without one here, it is looked up in the secret, or, without a secret, in the node's own list. One that is found nowhere
    /// lets nobody in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<Password>,
}

/// Headers that tell the backend about the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct ForwardHeaders {
    /// The client's address at the end of `X-Forwarded-For`.
    pub forwarded_for: bool,
    pub real_ip: bool,
    pub proto: Option<ForwardedProto>,
    /// The port that the client connected to in `X-Forwarded-Port`.
    pub port: bool,
    /// An `x-request-id`, new for each request.
    pub request_id: bool,
}

/// What `X-Forwarded-Proto` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ForwardedProto {
    /// `http` or `https`, as the request came.
    Set,
    /// `https` if it came so; else nothing is said.
    IfTls,
    /// What a trusted client says, else as the request came.
    Pass,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct HeaderChange {
    /// Lower case.
    pub name: String,
    pub change: HeaderChangeKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when: Option<When>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HeaderChangeKind {
    /// One more value.
    Add(Template),
    /// This value in place of all that there are.
    Set(Template),
    Delete,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    Tls,
    Plain,
}

/// A value that is put together for each request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Template(pub Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Piece {
    Text(String),
    Variable(Variable),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Variable {
    ClientAddress,
    ClientPort,
    /// The address and the port that the client connected to.
    LocalAddress,
    LocalPort,
    Host,
    Path,
    Method,
    /// `1` with TLS, else `0`.
    Tls,
    /// The name in the TLS hello.
    Sni,
    /// The first value of a request's header.
    Header(String),
    /// This node's name.
    ProxyName,
    RequestId,
}

impl Template {
    pub fn text(text: impl Into<String>) -> Self {
        Self(vec![Piece::Text(text.into())])
    }

    /// The value, given what each variable stands for.
    pub fn render(&self, mut value: impl FnMut(&Variable, &mut String)) -> String {
        let mut out = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Variable(variable) => value(variable, &mut out),
            }
        }
        out
    }
}

/// A new path, or a new request line. The query stays, except where the whole line is rewritten.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rewrite {
    /// The first match in the path is replaced.
    Path { search: Pattern, replace: Replacement },
    /// `/root/x` becomes `/x`, and `/root` becomes `/`. What does not begin with the whole root stays.
    StripPrefix { root: String },
    /// `METHOD SP path SP version` becomes what the replacement says, if it matches.
    RequestLine { search: Pattern, replace: Replacement },
}

/// A rewritten request line is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the rewritten request line is not a method, a path and a version")]
pub struct RequestLineError;

impl Rewrite {
    /// A path's new form, or `None` if it stays as it is. `path` is without the query.
    pub fn path(&self, path: &str) -> Option<String> {
        match self {
            Self::Path { search, replace } => {
                String::from_utf8(search.replace_first(path.as_bytes(), replace)?).ok().filter(|new| is_path(new))
            }
            Self::StripPrefix { root } => {
                let rest = path.strip_prefix(root.trim_end_matches('/'))?;
                // One slash: a path that begins with two is a host to some who read it.
                (rest.is_empty() || rest.starts_with('/')).then(|| format!("/{}", rest.trim_start_matches('/')))
            }
            Self::RequestLine { .. } => None,
        }
    }

    /// Method and target of a rewritten request line; `None` if it stays. `target` includes the query.
    pub fn request_line(&self, method: &str, target: &str) -> Result<Option<(String, String)>, RequestLineError> {
        let Self::RequestLine { search, replace } = self else { return Ok(None) };
        let mut line = String::with_capacity(method.len() + target.len() + 10);
        // Writing to a String does not fail.
        let _ = write!(line, "{method} {target} HTTP/1.1");
        let Some(new) = search.expand_first(line.as_bytes(), replace) else { return Ok(None) };
        let new = String::from_utf8(new).map_err(|_| RequestLineError)?;
        let mut words = new.split(' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some(method), Some(target), Some(version), None)
                if is_token(method) && is_path(target) && matches!(version, "HTTP/1.0" | "HTTP/1.1") =>
            {
                Ok(Some((method.to_owned(), target.to_owned())))
            }
            _ => Err(RequestLineError),
        }
    }
}

/// Nothing in it could end the request line or begin another.
fn is_path(text: &str) -> bool {
    text.starts_with('/') && text.bytes().all(|b| b > b' ' && b != 0x7f)
}

/// RFC 9110, 5.6.2.
pub(crate) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// For paths below `root` with no dot and no slash at the end: 301 to the same with a slash.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct AppendSlash {
    pub root: String,
}

impl AppendSlash {
    /// The path to go to, or `None` if the path is left as it is.
    pub fn location(&self, path: &str) -> Option<String> {
        // To a browser, two slashes are the beginning of another host.
        let is_path = path.starts_with('/') && !path.starts_with("//");
        let applies = is_path && path.starts_with(&self.root) && !path.contains('.') && !path.ends_with('/');
        applies.then(|| format!("{path}/"))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Compression {
    /// By preference.
    pub algorithms: Vec<CompressionAlgorithm>,
    /// Media types that are compressed; all if empty.
    pub types: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CompressionAlgorithm {
    Identity,
    Gzip,
    /// With zlib's wrapping.
    Deflate,
    /// Without.
    RawDeflate,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(search: &str, replace: &str) -> Rewrite {
        let search = Pattern::new(search).unwrap();
        let replace = Replacement::new(replace, &search).unwrap();
        Rewrite::RequestLine { search, replace }
    }

    #[test]
    fn a_request_line_is_rewritten_whole_or_not_at_all() {
        let rewrite = line(r"^([^\ ]*)\ /something/(.*)", r"\1\ /demo/\2");
        let to = |m: &str, t: &str| Ok(Some((m.to_owned(), t.to_owned())));
        assert_eq!(rewrite.request_line("GET", "/something/hello?x=1"), to("GET", "/demo/hello?x=1"));
        assert_eq!(rewrite.request_line("GET", "/else/something/"), Ok(None));
        assert_eq!(rewrite.path("/something/x"), None);
        // The version is lost, as it would be in HAProxy, whose whole line is what the replacement says.
        assert_eq!(line("^GET /a", "GET /b").request_line("GET", "/a"), Err(RequestLineError));
        for replace in
            ["GET  /b HTTP/1.1", "GET b HTTP/1.1", "G(T /b HTTP/1.1", "GET /b HTTP/2", "GET /b\r\nX: HTTP/1.1", "GET /b HTTP/1.1 x"]
        {
            assert_eq!(line("^.*$", replace).request_line("GET", "/a"), Err(RequestLineError), "{replace:?}");
        }
        assert_eq!(line("^GET (.*)$", r"POST \1").request_line("GET", "/a"), to("POST", "/a"));
    }

    #[test]
    fn paths_are_rewritten_at_their_first_match() {
        let search = Pattern::new("/something/").unwrap();
        let rewrite = Rewrite::Path { replace: Replacement::new("/", &search).unwrap(), search };
        assert_eq!(rewrite.path("/a/something/something/").as_deref(), Some("/a/something/"));
        assert_eq!(rewrite.path("/a"), None);
        let search = Pattern::new("^/a").unwrap();
        let to_space = Rewrite::Path { replace: Replacement::new("/a b", &search).unwrap(), search };
        assert_eq!(to_space.path("/a"), None);
        let strip = Rewrite::StripPrefix { root: "/app".into() };
        assert_eq!(strip.path("/app/x").as_deref(), Some("/x"));
        assert_eq!(strip.path("/app/").as_deref(), Some("/"));
        assert_eq!(strip.path("/apple"), None);
        assert_eq!(strip.path("/app").as_deref(), Some("/"));
        assert_eq!(strip.path("/app//evil.example").as_deref(), Some("/evil.example"));
    }

    #[test]
    fn a_slash_is_appended_where_a_directory_is_meant() {
        let append = AppendSlash { root: "/app".into() };
        assert_eq!(append.location("/app").as_deref(), Some("/app/"));
        assert_eq!(append.location("/app/x").as_deref(), Some("/app/x/"));
        for path in ["/app/", "/app/x.css", "/a.b/app", "/other", ""] {
            assert_eq!(append.location(path), None, "{path}");
        }
        assert_eq!(AppendSlash { root: "/".into() }.location("//evil"), None);
    }

    #[test]
    fn redirects_keep_what_they_should() {
        let to = |to| Redirect { code: RedirectCode::Found, to }.location("a.example:8080", "/x?y");
        assert_eq!(to(RedirectTarget::Https), "https://a.example/x?y");
        assert_eq!(to(RedirectTarget::Before("http://b.example".into())), "http://b.example/x?y");
        assert_eq!(to(RedirectTarget::Exactly("http://b.example/z".into())), "http://b.example/z");
        let before = Redirect { code: RedirectCode::Found, to: RedirectTarget::Before("http://b.example".into()) };
        assert_eq!(before.location("a.example", "@evil.example"), "http://b.example/");
        assert_eq!(RedirectCode::new(307), Some(RedirectCode::Temporary));
        assert_eq!(RedirectCode::new(304), None);
    }
}
