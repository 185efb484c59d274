//! What stands behind the question mark.

use std::collections::BTreeMap;

use crate::view::explain::percent_decode;

/// Parameters, by their names as they came. Names are the same in any case, and the first value of a name counts.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Query(BTreeMap<String, String>);

/// What cannot be read might have protected something, so all of it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the query is not percent-encoded UTF-8")]
pub(super) struct NotDecoded;

impl Query {
    pub(super) fn parse(text: &str) -> Result<Self, NotDecoded> {
        let mut this = Self::default();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decode = |text: &str| percent_decode(&text.replace('+', " ")).ok_or(NotDecoded);
            let (name, value) = (decode(name)?, decode(value)?);
            if this.0.keys().all(|known| !known.eq_ignore_ascii_case(&name)) {
                this.0.insert(name, value);
            }
        }
        Ok(this)
    }

    /// Empty if it is not there.
    pub(super) fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value.trim())
    }

    pub(super) fn is_true(&self, name: &str) -> bool {
        matches!(self.get(name).to_ascii_lowercase().as_str(), "1" | "t" | "true")
    }

    pub(super) fn into_parameters(self) -> BTreeMap<String, String> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_any_case_and_the_first_value_counts() {
        let query = Query::parse("serviceName=a%2Fb+c&servicename=other&empty&Distribute=TRUE&&x.1=%C3%A4").unwrap();
        assert_eq!((query.get("SERVICENAME"), query.get("empty"), query.get("x.1"), query.get("absent")), ("a/b c", "", "ä", ""));
        assert!(query.is_true("distribute") && !query.is_true("empty"));
        assert_eq!(query.into_parameters().len(), 4);
        for text in ["a=%", "a=%zz", "%ff=1"] {
            assert_eq!(Query::parse(text).err(), Some(NotDecoded), "{text}");
        }
    }
}
