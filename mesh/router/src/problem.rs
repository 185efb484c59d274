//! What is wrong with a label, and what to do. Costs nobody but the service that carries it.

use std::fmt;

use serde::Serialize;
use swarmesh_model::Problem;

use crate::model::{Dialect, Origin, Owner, PasswordError, PatternError};

/// One label, or one claim of it, that is not served as written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct RouteProblem {
    pub owner: Owner,
    pub dialect: Dialect,
    pub label: String,
    /// The label's value, or the part that is meant. Passwords and keys are left out.
    pub value: String,
    pub reason: Reason,
    pub effect: Effect,
}

/// What comes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// The route that the label is part of does not exist.
    NoRoute,
    /// The route exists, as if this were not written.
    Ignored,
    /// The route exists, and nobody reaches it by what another has claimed.
    Shadowed,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    #[error("is missing")]
    Missing,
    #[error("is empty")]
    Empty,
    #[error("is not a label that this dialect knows")]
    UnknownLabel,
    #[error("has a key that this dialect does not know")]
    UnknownKey,
    #[error("has more than {most} parts")]
    TooMany { most: usize },
    #[error("says {key} twice")]
    Twice { key: String },
    #[error("is not a pair of a name and a value")]
    NotAPair,
    #[error("is neither true nor false")]
    NotABool,
    #[error("is not a port from 1 to 65535")]
    NotAPort,
    #[error("is not a number from {least} to {most}")]
    NotANumber { least: u64, most: u64 },
    #[error("is not a host name")]
    NotAHost,
    #[error("names a port with the host")]
    HostWithPort,
    #[error("is not a path")]
    NotAPath,
    #[error("is not an http or https URL")]
    NotAUrl,
    #[error("is not a method")]
    NotAMethod,
    #[error("is not a header's name")]
    NotAHeader,
    #[error("is not a cookie's name")]
    NotACookie,
    #[error("is not one of {allowed}")]
    NotOneOf { allowed: &'static str },
    #[error("is not a status for redirects")]
    NotARedirectCode,
    #[error("{0}")]
    Pattern(PatternError),
    #[error("{0}")]
    Password(PasswordError),
    #[error("is not a certificate and a key in PEM")]
    NotAPem,
    #[error("the service has no published port that could be meant")]
    NoPort,
    #[error("the service has several published ports")]
    SeveralPorts,
    #[error("the service is on several networks")]
    SeveralNetworks,
    #[error("the service is on no network")]
    NoNetwork,
    #[error("the service is not on this network; it is on {on}")]
    NotOnNetwork { on: String },
    #[error("the service is on no network that is labelled {label}")]
    NoLabelledNetwork { label: &'static str },
    #[error("the container has no published port that fits")]
    NotPublished,
    #[error("is {system} text beyond what is understood")]
    Raw { system: &'static str },
    #[error("does not go together with {other}")]
    Excludes { other: String },
    #[error("does nothing without {other}")]
    Needs { other: String },
    #[error("is not taken up: {why}")]
    NotSupported { why: &'static str },
    #[error("is for cluster {cluster:?}, which this node does not route for")]
    OtherCluster { cluster: String },
    #[error("is superseded: the service has {by} labels")]
    Superseded { by: Dialect },
    #[error("is claimed by {winner} already, by {label}")]
    Claimed { winner: Owner, label: String },
    #[error("differs from {first}, which claimed the host first; that one's options are used")]
    OptionsOfFirst { first: Owner },
}

impl Reason {
    /// What to do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Missing | Self::Empty => "give it a value".to_owned(),
            Self::UnknownLabel | Self::UnknownKey => "check the spelling, or remove it".to_owned(),
            Self::TooMany { most } => format!("say at most {most} at once"),
            Self::Twice { key } => format!("say {key} once; another route is another label"),
            Self::NotAPair => "write name and value with the separator of this dialect between them".to_owned(),
            Self::NotABool => "write true or false".to_owned(),
            Self::NotAPort => "give the port that the container listens on".to_owned(),
            Self::NotANumber { least, most } => format!("give a number from {least} to {most}"),
            Self::NotAHost => "give a name of letters, digits, hyphens and dots".to_owned(),
            Self::HostWithPort => "give the name alone; a port of the listener is another label's matter".to_owned(),
            Self::NotAPath => "begin it with / and leave out spaces".to_owned(),
            Self::NotAUrl => "give http://host or https://host, with a path if one is meant".to_owned(),
            Self::NotAMethod => "give methods such as GET,POST".to_owned(),
            Self::NotAHeader | Self::NotACookie => "give a name of letters, digits, hyphens and underscores".to_owned(),
            Self::NotOneOf { allowed } => format!("choose one of {allowed}"),
            Self::NotARedirectCode => "choose one of 301, 302, 303, 307, 308".to_owned(),
            Self::Pattern(PatternError::NotRegular) => "write the expression without look-around and back references".to_owned(),
            Self::Pattern(PatternError::TooLarge) => "write a smaller expression".to_owned(),
            Self::Pattern(_) => "mend the expression".to_owned(),
            Self::Password(_) => "make the hash with mkpasswd -m sha-512".to_owned(),
            Self::NotAPem => "give the certificate, its chain and its key, with \\n for line ends".to_owned(),
            Self::NoPort | Self::SeveralPorts => "name the port in the label".to_owned(),
            Self::SeveralNetworks | Self::NotOnNetwork { .. } => {
                "name one of the service's networks in full; a stack's are called STACK_NETWORK".to_owned()
            }
            Self::NoNetwork => "attach the service to an overlay network".to_owned(),
            Self::NoLabelledNetwork { label } => {
                format!("attach the service to a network made with --label {label}=true, or to the one that is named ucp-hrm")
            }
            Self::NotPublished => "publish the port, or name a network".to_owned(),
            Self::Raw { .. } => {
                "say it with labels that are understood (docs/compatibility.md lists the text that is), or with swarmesh.http labels"
                    .to_owned()
            }
            Self::Excludes { other } => format!("remove it or {other}"),
            Self::Needs { other } => format!("add {other}, or remove it"),
            Self::NotSupported { .. } => "remove it, or say what is meant with swarmesh.http labels".to_owned(),
            Self::OtherCluster { .. } => "nothing, if another node routes for that cluster".to_owned(),
            Self::Superseded { .. } => "remove the older labels when nothing else reads them".to_owned(),
            Self::Claimed { .. } => "give one of the two another host or path, or remove one".to_owned(),
            Self::OptionsOfFirst { .. } => "give both the same options".to_owned(),
        }
    }
}

impl RouteProblem {
    pub(crate) fn of(origin: &Origin, value: impl Into<String>, reason: Reason, effect: Effect) -> Self {
        Self {
            owner: origin.owner.clone(),
            dialect: origin.dialect,
            label: origin.label.clone(),
            value: shown(value.into()),
            reason,
            effect,
        }
    }

    /// The form in which `status` shows the problems of all objects.
    pub fn problem(&self) -> Problem {
        let what = match self.effect {
            Effect::NoRoute => "; its route is left out",
            Effect::Ignored => "; it has no effect",
            Effect::Shadowed => "; its route is not reached there",
        };
        Problem::new(self.owner.to_string(), self.label.clone(), format!("{}{what}: {}", self.subject(), self.reason.remedy()))
    }

    fn subject(&self) -> String {
        if self.value.is_empty() { self.reason.to_string() } else { format!("{:?} {}", self.value, self.reason) }
    }
}

/// As much of a value as a person reads.
pub(crate) fn shown(mut value: String) -> String {
    const MOST: usize = 200;
    if let Some((end, _)) = value.char_indices().nth(MOST) {
        value.truncate(end);
        value.push('…');
    }
    value
}

impl fmt::Display for RouteProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.problem().fmt(f)
    }
}
