//! Stack files: Compose format version 3, as `docker stack deploy` reads it.
//!
//! [`load`] is the only way in. It reports the first mistake with its file, line, column and place, and never guesses:
//! a key that it does not know is an error, because a misspelt one would otherwise be a setting that silently does nothing.

mod check;
mod deploy;
mod error;
mod keys;
mod network;
mod ports;
mod scalar;
mod service;
mod spec;
mod tree;
mod value;
mod variables;

use std::{
    cell::RefCell,
    fs::File,
    io::{self, Read as _},
    path::Path,
};

pub use error::StackError;
pub(crate) use scalar::{hostname, resolver_option, search_domain};
pub(crate) use spec::MOST_REPLICAS;
pub use spec::{
    Constraint, ConstraintKey, DnsSpec, FailureAction, HealthTest, Healthcheck, Mode, NetworkSpec, NetworkUse, Placement, RestartCondition,
    RestartPolicy, ServiceSpec, UpdateConfig, UpdateOrder,
};

use value::{Reader, Value};

/// The service label by which Docker finds the services of a stack.
pub const STACK_LABEL: &str = "com.docker.stack.namespace";

/// A stack file, read and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    /// Its name in messages.
    pub file: String,
    pub name: String,
    /// In the order of the file.
    pub services: Vec<StackService>,
    /// Those of the file, and the default network if a service is on it.
    pub networks: Vec<StackNetwork>,
    /// What was accepted but does not do here what its author may expect.
    pub notes: Vec<Note>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackService {
    /// The name in the file; `spec.name` has the stack's name in front.
    pub name: String,
    pub line: usize,
    pub spec: ServiceSpec,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackNetwork {
    /// The name in the file; `spec.name` is what the swarm calls it.
    pub key: String,
    /// Where the file declares it; 0 for the default network.
    pub line: usize,
    /// Made by someone else: the file only refers to it.
    pub external: bool,
    pub spec: NetworkSpec,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Note {
    pub line: usize,
    pub place: String,
    pub message: String,
}

/// The bytes of a stack file, for [`load`]: as many as it takes, and one more of a file that is too long, however long it is.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(tree::MOST_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads a stack file. `file` is its name in messages; `env` looks up the variables for `${…}`.
pub fn load(text: &[u8], file: &str, stack_name: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Stack, StackError> {
    if !service::is_dns_label(stack_name) {
        let message = format!("{:?} is not a stack's name; use letters, digits, - and _", tree::shown(stack_name));
        return Err(StackError { file: file.to_owned(), line: 0, column: 0, place: String::new(), message });
    }
    let reader = Reader { file, env, notes: RefCell::default() };
    let root = Value::root(&reader, tree::parse(text, file)?);
    let fields = root.fields(keys::TOP, keys::TOP_IGNORED)?;
    if let Some(version) = fields.get("version") {
        let text = version.text()?;
        if text != "3" && text.strip_prefix("3.").is_none_or(|minor| minor.parse::<u8>().is_err()) {
            return Err(version.fail(format!("version {} is not read here; stack files have version 3", tree::shown(&text))));
        }
    }
    let mut networks = Vec::new();
    if let Some(section) = fields.get("networks") {
        for (key, at, value) in section.named()? {
            networks.push(network::network(&key, at, &value, stack_name)?);
        }
    }
    let mut services = Vec::new();
    let section = fields.get("services").ok_or_else(|| root.fail("there are no services; a stack file needs some"))?;
    for (name, at, value) in section.named()? {
        services.push(service::service(&name, at, &value, stack_name)?);
    }
    if services.is_empty() {
        return Err(section.fail("there are no services; a stack file needs some"));
    }
    let (services, networks) = check::join(services, networks, stack_name)?;
    let mut notes = reader.notes.take();
    notes.sort();
    Ok(Stack { file: file.to_owned(), name: stack_name.to_owned(), services, networks, notes })
}
