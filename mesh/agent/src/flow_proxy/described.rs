//! A service in the proxy's own words: its JSON, without passwords, keys and what headers are set to.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// What kind of value stands under a name.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    List,
    /// A list whose parts begin with a header's name. The rest may be a secret.
    Headers,
    Flag,
    Number,
}

const SERVICE: [(&str, Kind); 25] = [
    ("AclName", Kind::Text),
    ("AddReqHeader", Kind::Headers),
    ("AddResHeader", Kind::Headers),
    ("BackendExtra", Kind::Text),
    ("CheckResolvers", Kind::Flag),
    ("CompressionAlgo", Kind::Text),
    ("CompressionType", Kind::Text),
    ("ConnectionMode", Kind::Text),
    ("DelReqHeader", Kind::List),
    ("DelResHeader", Kind::List),
    ("DiscoveryType", Kind::Text),
    ("Distribute", Kind::Flag),
    ("IsDefaultBackend", Kind::Flag),
    ("ProxyInstanceName", Kind::Text),
    ("RedirectUnlessHttpsProto", Kind::Flag),
    ("RedirectWhenHttpProto", Kind::Flag),
    ("Replicas", Kind::Number),
    ("ReqPathReplace", Kind::Text),
    ("ReqPathSearch", Kind::Text),
    ("ServiceDomainAlgo", Kind::Text),
    ("SessionType", Kind::Text),
    ("SetReqHeader", Kind::Headers),
    ("SetResHeader", Kind::Headers),
    ("TemplateBePath", Kind::Text),
    ("TemplateFePath", Kind::Text),
];

const DESTINATION: [(&str, Kind); 29] = [
    ("AllowedMethods", Kind::List),
    ("BalanceGroup", Kind::Text),
    ("CheckTCP", Kind::Flag),
    ("Clitcpka", Kind::Flag),
    ("DeniedMethods", Kind::List),
    ("DenyHttp", Kind::Flag),
    ("HttpsOnly", Kind::Flag),
    ("HttpsPort", Kind::Number),
    ("HttpsRedirectCode", Kind::Text),
    ("IgnoreAuthorization", Kind::Flag),
    ("OutboundHostname", Kind::Text),
    ("PathType", Kind::Text),
    ("Port", Kind::Text),
    ("RedirectFromDomain", Kind::List),
    ("ReqMode", Kind::Text),
    ("ReqPathSearchReplace", Kind::Text),
    ("ServiceDomain", Kind::List),
    ("ServiceGroup", Kind::Text),
    ("ServiceHeader", Kind::List),
    ("ServicePath", Kind::List),
    ("ServicePathExclude", Kind::List),
    ("SrcHttpsPort", Kind::Number),
    ("SrcPort", Kind::Number),
    ("SslVerifyNone", Kind::Flag),
    ("TimeoutClient", Kind::Text),
    ("TimeoutServer", Kind::Text),
    ("TimeoutTunnel", Kind::Text),
    ("UserDef", Kind::Text),
    ("VerifyClientSsl", Kind::Flag),
];

/// Parameters of one service, whatever case their names have.
pub(super) struct Described<'p> {
    parameters: BTreeMap<String, &'p str>,
    separator: &'p str,
}

impl<'p> Described<'p> {
    pub(super) fn new(parameters: impl IntoIterator<Item = (&'p str, &'p str)>, separator: &'p str) -> Self {
        let parameters = parameters.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value.trim())).collect();
        Self { parameters, separator }
    }

    /// Of a numbered destination; what has no number stands in for what is missing.
    pub(super) fn get(&self, name: &str, index: usize) -> &'p str {
        let name = name.to_ascii_lowercase();
        let find = |name: &str| self.parameters.get(name).copied().filter(|value| !value.is_empty());
        let numbered = if index > 0 { find(&format!("{name}.{index}")) } else { None };
        numbered.or_else(|| find(&name)).unwrap_or_default()
    }

    /// The numbers of the destinations, or 0 for the one that has none.
    pub(super) fn indexes(&self) -> Vec<usize> {
        let there = |index: &usize| {
            let names = ["servicepath", "port", "servicedomain", "httpsport"];
            names.iter().any(|name| self.parameters.get(&format!("{name}.{index}")).is_some_and(|value| !value.is_empty()))
        };
        let numbered: Vec<usize> = (1..=10).take_while(there).collect();
        if numbered.is_empty() { vec![0] } else { numbered }
    }

    /// All fields, with what the proxy has where nothing is said.
    pub(super) fn fields(&self, service: &str) -> Map<String, Value> {
        let mut out: Map<String, Value> = SERVICE.iter().map(|(name, kind)| ((*name).to_owned(), self.value(name, *kind, 0))).collect();
        if self.get("AclName", 0).is_empty() {
            out.insert("AclName".to_owned(), json!(service));
        }
        let users = self.get("users", 0).split([',', '\n']).map(|user| user.split(':').next().unwrap_or_default().trim());
        let users: Vec<Value> = users.filter(|user| !user.is_empty()).map(|user| json!({"Username": user})).collect();
        out.insert("Users".to_owned(), users.into());
        out.insert("ServiceName".to_owned(), json!(service));
        let destinations = self.indexes().into_iter().map(|index| {
            let mut out: Map<String, Value> =
                DESTINATION.iter().map(|(name, kind)| ((*name).to_owned(), self.value(name, *kind, index))).collect();
            if self.get("ReqMode", index).is_empty() {
                out.insert("ReqMode".to_owned(), json!("http"));
            }
            out.insert("Index".to_owned(), json!(index));
            Value::Object(out)
        });
        out.insert("ServiceDest".to_owned(), destinations.collect());
        out
    }

    fn value(&self, name: &str, kind: Kind, index: usize) -> Value {
        let text = self.get(name, index);
        let parts = || text.split(self.separator).map(str::trim).filter(|part| !part.is_empty());
        match kind {
            Kind::Text => json!(text),
            Kind::List if text.is_empty() => Value::Null,
            Kind::List => parts().collect(),
            Kind::Headers if text.is_empty() => Value::Null,
            Kind::Headers => parts().filter_map(|part| part.split_whitespace().next()).collect(),
            Kind::Flag => json!(matches!(text.to_ascii_lowercase().as_str(), "1" | "t" | "true")),
            Kind::Number => json!(text.parse::<i64>().unwrap_or_default()),
        }
    }
}
