//! Tables, chains, sets and elements, and what nf_tables says to each operation on them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use nix::libc;

use super::FakeRule;
use crate::{Element, ElementData, Expr, Family, KernelError, NftEvent, NftOp, SetName, Verdict};

/// What a set's declaration says, as far as operations are checked against it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SetType {
    /// Bytes of a key, if its types are known.
    pub(super) key: Option<usize>,
    /// What a map leads to; `None` for a set.
    pub(super) data: Option<DataType>,
    /// Most elements.
    pub(super) size: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DataType {
    Verdict,
    /// Bytes, if the types are known.
    Value(Option<usize>),
}

#[derive(Clone, Debug, Default)]
pub(super) struct Set {
    pub(super) kind: SetType,
    /// Shared with the state before the batch until it is written to.
    pub(super) elements: Arc<BTreeMap<Vec<u8>, Option<ElementData>>>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Chain {
    pub(super) base: bool,
    pub(super) rules: Arc<Vec<FakeRule>>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    /// Port of the handle that the table belongs to.
    pub(super) owner: Option<u32>,
    pub(super) chains: BTreeMap<String, Chain>,
    pub(super) sets: BTreeMap<String, Set>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Tables(pub(super) BTreeMap<(Family, String), Table>);

fn refused<T>(op: &NftOp, errno: i32) -> Result<T, KernelError> {
    Err(KernelError::from_errno(op.to_string(), errno))
}

impl Tables {
    /// Applies one operation, and appends what monitors are told about it.
    pub(super) fn apply(&mut self, op: &NftOp, port: u32, events: &mut Vec<NftEvent>) -> Result<(), KernelError> {
        let (family, name) = op.table();
        let owner = self.table(family, name).map(|t| t.owner);
        if owner.flatten().is_some_and(|owner| owner != port) {
            return refused(op, libc::EPERM);
        }
        match op {
            NftOp::AddOwnedTable { family, table } => match owner {
                // The kernel lets nobody change whose a table is.
                Some(None) => refused(op, libc::EOPNOTSUPP),
                Some(Some(_)) => Ok(()),
                None => {
                    self.0.insert((*family, (*table).to_owned()), Table { owner: Some(port), ..Table::default() });
                    Ok(())
                }
            },
            NftOp::AddOutputChain { family, table, chain, .. } => {
                let Some(found) = self.table(*family, table) else { return refused(op, libc::ENOENT) };
                found.chains.entry(chain.clone()).or_default().base = true;
                Ok(())
            }
            NftOp::AddElement { set, key, data } => self.add_element(op, *set, key, data.as_ref()),
            NftOp::DeleteElement { set, key } => {
                let Some(found) = self.set(*set) else { return refused(op, libc::ENOENT) };
                check_length(op, found.kind.key, key)?;
                if Arc::make_mut(&mut found.elements).remove(key).is_none() {
                    return refused(op, libc::ENOENT);
                }
                events.push(elements_deleted(*set, port));
                Ok(())
            }
            NftOp::FlushSet { set } => {
                let Some(found) = self.set(*set) else { return refused(op, libc::ENOENT) };
                if !found.elements.is_empty() {
                    found.elements = Arc::default();
                    events.push(elements_deleted(*set, port));
                }
                Ok(())
            }
            NftOp::AddChain { family, table, chain } => {
                let Some(found) = self.table(*family, table) else { return refused(op, libc::ENOENT) };
                found.chains.entry(chain.clone()).or_default();
                Ok(())
            }
            NftOp::DeleteChain { family, table, chain } => {
                let Some(found) = self.table(*family, table) else { return refused(op, libc::ENOENT) };
                if !found.chains.contains_key(chain) {
                    return refused(op, libc::ENOENT);
                }
                if found.is_referred_to(chain) {
                    return refused(op, libc::EBUSY);
                }
                found.chains.remove(chain);
                events.push(NftEvent::ChainDeleted { family: *family, table: (*table).to_owned(), chain: chain.clone(), port });
                Ok(())
            }
            NftOp::AddRule { family, table, chain, comment, expressions } => {
                let Some(found) = self.table(*family, table) else { return refused(op, libc::ENOENT) };
                if !found.chains.contains_key(chain) {
                    return refused(op, libc::ENOENT);
                }
                expressions.iter().try_for_each(|expression| found.check(op, expression))?;
                if let Some(chain) = found.chains.get_mut(chain) {
                    Arc::make_mut(&mut chain.rules).push(FakeRule::Op(comment.clone(), expressions.clone()));
                }
                Ok(())
            }
            NftOp::DeleteTable { family, table } => match self.0.remove(&(*family, (*table).to_owned())) {
                None => refused(op, libc::ENOENT),
                Some(gone) => {
                    gone.deleted(*family, table, port, events);
                    Ok(())
                }
            },
        }
    }

    fn table(&mut self, family: Family, table: &str) -> Option<&mut Table> {
        self.0.get_mut(&(family, table.to_owned()))
    }

    fn set(&mut self, name: SetName) -> Option<&mut Set> {
        self.table(name.family, name.table)?.sets.get_mut(name.set)
    }

    fn add_element(&mut self, op: &NftOp, name: SetName, key: &[u8], data: Option<&ElementData>) -> Result<(), KernelError> {
        let Some(table) = self.table(name.family, name.table) else { return refused(op, libc::ENOENT) };
        let Some(set) = table.sets.get(name.set) else { return refused(op, libc::ENOENT) };
        match (&set.kind.data, data) {
            (None, None) => {}
            (Some(DataType::Value(length)), Some(ElementData::Value(value))) => check_length(op, *length, value)?,
            (Some(DataType::Verdict), Some(ElementData::Goto(chain))) => match table.chains.get(chain) {
                None => return refused(op, libc::ENOENT),
                Some(chain) if chain.base => return refused(op, libc::EOPNOTSUPP),
                Some(_) => {}
            },
            _ => return refused(op, libc::EINVAL),
        }
        check_length(op, set.kind.key, key)?;
        match set.elements.get(key) {
            Some(held) if held.as_ref() == data => return Ok(()),
            Some(_) => return refused(op, libc::EEXIST),
            None if set.kind.size.is_some_and(|size| set.elements.len() >= size) => return refused(op, libc::ENFILE),
            None => {}
        }
        if let Some(set) = table.sets.get_mut(name.set) {
            Arc::make_mut(&mut set.elements).insert(key.to_vec(), data.cloned());
        }
        Ok(())
    }

    pub(super) fn elements(&self, name: SetName) -> Option<Vec<Element>> {
        let set = self.0.get(&(name.family, name.table.to_owned()))?.sets.get(name.set)?;
        Some(set.elements.iter().map(|(key, data)| Element { key: key.clone(), data: data.clone(), timeout: None }).collect())
    }

    pub(super) fn chains(&self, family: Family, table: &str) -> Option<Vec<String>> {
        Some(self.0.get(&(family, table.to_owned()))?.chains.keys().cloned().collect())
    }

    pub(super) fn rules(&self, family: Family, table: &str, chain: &str) -> &[FakeRule] {
        self.0.get(&(family, table.to_owned())).and_then(|table| table.chains.get(chain)).map_or(&[], |chain| &chain.rules)
    }

    pub(super) fn names(&self) -> Vec<(Family, String)> {
        self.0.keys().cloned().collect()
    }
}

impl Table {
    /// True while a rule of any chain or an element of any map leads to the chain. A chain's own rules go with it.
    pub(super) fn is_referred_to(&self, chain: &str) -> bool {
        let by_rule = self.chains.iter().filter(|(name, _)| *name != chain).flat_map(|(_, other)| other.rules.iter());
        let by_element = self.sets.values().flat_map(|set| set.elements.values());
        by_rule.flat_map(targets).any(|target| target == chain)
            || by_element.flatten().any(|data| matches!(data, ElementData::Goto(target) if target == chain))
    }

    /// True if a rule names the set.
    pub(super) fn is_looked_into(&self, name: &str) -> bool {
        let names = |expression: &Expr| match expression {
            Expr::Lookup { set, .. } | Expr::LookupVerdict { set, .. } | Expr::Dynset { set, .. } => *set == name,
            _ => false,
        };
        let word = format!("@{name}");
        self.chains.values().flat_map(|chain| chain.rules.iter()).any(|rule| match rule {
            FakeRule::Op(_, expressions) => expressions.iter().any(names),
            FakeRule::Text(text) => text.split_whitespace().any(|part| part == word),
        })
    }

    /// What nf_tables checks when an expression is initialised.
    fn check(&self, op: &NftOp, expression: &Expr) -> Result<(), KernelError> {
        match expression {
            Expr::Lookup { set, dreg, .. } => match (self.sets.get(*set).map(|set| set.kind.data), dreg) {
                (None, _) => refused(op, libc::ENOENT),
                (Some(None | Some(DataType::Verdict)), Some(_)) => refused(op, libc::EINVAL),
                (Some(Some(DataType::Verdict)), None) => refused(op, libc::EINVAL),
                _ => Ok(()),
            },
            Expr::LookupVerdict { set, .. } => match self.sets.get(*set).map(|set| set.kind.data) {
                None => refused(op, libc::ENOENT),
                Some(Some(DataType::Verdict)) => Ok(()),
                Some(_) => refused(op, libc::EINVAL),
            },
            Expr::Dynset { set, data, .. } => match (self.sets.get(*set).map(|set| set.kind.data), data) {
                (None, _) => refused(op, libc::ENOENT),
                (Some(None), Some(_)) | (Some(Some(DataType::Verdict)), Some(_)) => refused(op, libc::EOPNOTSUPP),
                (Some(Some(_)), None) => refused(op, libc::EINVAL),
                _ => Ok(()),
            },
            Expr::Verdict(Verdict::Goto(target) | Verdict::Jump(target)) => match self.chains.get(target) {
                None => refused(op, libc::ENOENT),
                Some(chain) if chain.base => refused(op, libc::EOPNOTSUPP),
                Some(_) => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// What monitors are told of the table's end: its parts first.
    pub(super) fn deleted(&self, family: Family, name: &str, port: u32, events: &mut Vec<NftEvent>) {
        let table = || name.to_owned();
        for (chain, _) in self.chains.iter().filter(|(_, chain)| !chain.rules.is_empty()) {
            events.push(NftEvent::RuleDeleted { family, table: table(), chain: chain.clone(), port });
        }
        for set in self.sets.keys() {
            events.push(NftEvent::SetDeleted { family, table: table(), set: set.clone(), port });
        }
        for chain in self.chains.keys() {
            events.push(NftEvent::ChainDeleted { family, table: table(), chain: chain.clone(), port });
        }
        events.push(NftEvent::TableDeleted { family, table: table(), port });
    }
}

fn elements_deleted(set: SetName, port: u32) -> NftEvent {
    NftEvent::ElementsDeleted { family: set.family, table: set.table.to_owned(), set: set.set.to_owned(), port }
}

fn check_length(op: &NftOp, wanted: Option<usize>, bytes: &[u8]) -> Result<(), KernelError> {
    if wanted.is_some_and(|wanted| wanted != bytes.len()) { refused(op, libc::EINVAL) } else { Ok(()) }
}

/// Chains that a rule leads to.
fn targets(rule: &FakeRule) -> BTreeSet<String> {
    match rule {
        FakeRule::Op(_, expressions) => expressions
            .iter()
            .filter_map(|expression| match expression {
                Expr::Verdict(Verdict::Goto(chain) | Verdict::Jump(chain)) => Some(chain.clone()),
                _ => None,
            })
            .collect(),
        FakeRule::Text(text) => {
            let words: Vec<&str> = text.split_whitespace().collect();
            words
                .windows(2)
                .filter(|pair| matches!(pair[0], "goto" | "jump"))
                .map(|pair| pair[1].trim_end_matches(',').to_owned())
                .collect()
        }
    }
}
