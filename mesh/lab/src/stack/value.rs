//! Reads typed values out of the tree; every complaint carries its line and place.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, time::Duration};

use super::{
    Note, StackError, keys, scalar,
    tree::{Entry, Kind, Node, shown},
    variables,
};

/// What reading needs besides the tree, and what it leaves behind.
pub(super) struct Reader<'a> {
    pub(super) file: &'a str,
    pub(super) env: &'a dyn Fn(&str) -> Option<String>,
    pub(super) notes: RefCell<Vec<Note>>,
}

/// A value and where it is.
#[derive(Clone)]
pub(super) struct Value<'a> {
    reader: &'a Reader<'a>,
    node: Rc<Node>,
    place: String,
}

/// A mapping all of whose keys are known.
pub(super) struct Fields<'a> {
    reader: &'a Reader<'a>,
    node: Rc<Node>,
    place: String,
}

pub(super) type Read<T> = Result<T, StackError>;

impl<'a> Value<'a> {
    pub(super) fn root(reader: &'a Reader<'a>, node: Rc<Node>) -> Self {
        Self { reader, node, place: String::new() }
    }

    pub(super) fn line(&self) -> usize {
        self.node.line
    }

    pub(super) fn is_null(&self) -> bool {
        self.node.is_null()
    }

    pub(super) fn is_scalar(&self) -> bool {
        matches!(self.node.kind, Kind::Scalar { .. })
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self.node.kind, Kind::List(_))
    }

    pub(super) fn fail(&self, message: impl Into<String>) -> StackError {
        StackError {
            file: self.reader.file.to_owned(),
            line: self.node.line,
            column: self.node.column,
            place: self.place.clone(),
            message: message.into(),
        }
    }

    pub(super) fn note(&self, message: impl Into<String>) {
        let note = Note { line: self.node.line, place: self.place.clone(), message: message.into() };
        let mut notes = self.reader.notes.borrow_mut();
        // A merged or aliased value is read more than once.
        if !notes.contains(&note) {
            notes.push(note);
        }
    }

    fn expected(&self, what: &str) -> StackError {
        self.fail(format!("this should be {what}, and is {}", self.node.type_name()))
    }

    /// Any single value, with its variables filled in. `None` for nothing.
    pub(super) fn optional_text(&self) -> Read<Option<String>> {
        if self.is_null() {
            return Ok(None);
        }
        let Kind::Scalar { text, .. } = &self.node.kind else { return Err(self.expected("a single value")) };
        let mut unset = Vec::new();
        let text = variables::fill_in(text, self.reader.env, &mut |name| unset.push(name.to_owned())).map_err(|e| self.fail(e))?;
        for name in unset {
            self.note(format!("the variable {name} is not set; it counts as empty"));
        }
        if text.contains('\0') {
            return Err(self.fail("there is a NUL character in this"));
        }
        Ok(Some(text))
    }

    pub(super) fn text(&self) -> Read<String> {
        self.optional_text()?.ok_or_else(|| self.expected("a single value"))
    }

    pub(super) fn full_text(&self) -> Read<String> {
        let text = self.text()?;
        if text.trim().is_empty() { Err(self.fail("this must not be empty")) } else { Ok(text) }
    }

    pub(super) fn boolean(&self) -> Read<bool> {
        match self.text()?.as_str() {
            "true" | "True" | "TRUE" | "yes" | "on" => Ok(true),
            "false" | "False" | "FALSE" | "no" | "off" => Ok(false),
            other => Err(self.fail(format!("{:?} should be true or false", shown(other)))),
        }
    }

    pub(super) fn number(&self, what: &str, least: u64, most: u64) -> Read<u64> {
        let text = self.text()?;
        let digits = text.strip_prefix("0x").map(|hex| (hex, 16)).unwrap_or((&text, 10));
        match u64::from_str_radix(digits.0, digits.1) {
            Ok(number) if (least..=most).contains(&number) && !text.starts_with('+') => Ok(number),
            _ => Err(self.fail(format!("{} is not {what} from {least} to {most}", shown(&text)))),
        }
    }

    pub(super) fn duration(&self) -> Read<Duration> {
        scalar::duration(&self.text()?).map_err(|e| self.fail(e))
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Read<T> {
        let text = self.text()?;
        let found = choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        found.ok_or_else(|| {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            let (last, others) = names.split_last().map_or(("", &[][..]), |(last, others)| (*last, others));
            let list = if others.is_empty() { last.to_owned() } else { format!("{} or {last}", others.join(", ")) };
            self.fail(format!("{:?} should be {list}", shown(&text)))
        })
    }

    pub(super) fn list(&self) -> Read<Vec<Self>> {
        let Kind::List(items) = &self.node.kind else { return Err(self.expected("a list")) };
        let item = |(index, node): (usize, &Rc<Node>)| Self {
            reader: self.reader,
            node: Rc::clone(node),
            place: format!("{}[{index}]", self.place),
        };
        Ok(items.iter().enumerate().map(item).collect())
    }

    /// A mapping whose keys are names. The key's own position comes with each value.
    pub(super) fn named(&self) -> Read<Vec<(String, Self, Self)>> {
        let Kind::Map(entries) = &self.node.kind else { return Err(self.expected("a mapping")) };
        Ok(entries.iter().map(|entry| (entry.key.clone(), self.key_of(entry), self.child(entry))).collect())
    }

    fn child(&self, entry: &Entry) -> Self {
        Self { reader: self.reader, node: Rc::clone(&entry.value), place: join(&self.place, &entry.key) }
    }

    /// The key itself as a value, for complaints about it.
    fn key_of(&self, entry: &Entry) -> Self {
        let node = Node::at(entry.line, entry.column);
        Self { reader: self.reader, node: Rc::new(node), place: join(&self.place, &entry.key) }
    }

    /// A mapping of settings. Keys in neither list are refused.
    pub(super) fn fields(&self, known: &[&str], ignored: &[&str]) -> Read<Fields<'a>> {
        let Kind::Map(entries) = &self.node.kind else { return Err(self.expected("a mapping")) };
        for entry in entries {
            let key = entry.key.as_str();
            if known.contains(&key) || ignored.contains(&key) || key.starts_with("x-") {
                continue;
            }
            let hint = keys::closest(key, known.iter().chain(ignored)).map_or_else(String::new, |near| format!("; did you mean {near}?"));
            return Err(self.key_of(entry).fail(format!("there is no key {:?} here{hint}", shown(key))));
        }
        Ok(Fields { reader: self.reader, node: Rc::clone(&self.node), place: self.place.clone() })
    }

    /// `command` and its like: words in one string, or a list of them.
    pub(super) fn words(&self) -> Read<Vec<String>> {
        if self.is_list() {
            return self.list()?.iter().map(Self::text).collect();
        }
        scalar::words(&self.text()?).map_err(|e| self.fail(e))
    }

    /// `labels` and `environment`: a mapping, or a list of `name=value`. A name alone has no value.
    pub(super) fn pairs(&self) -> Read<Vec<(String, Option<String>, Self)>> {
        let mut pairs = Vec::new();
        if self.is_list() {
            for item in self.list()? {
                let text = item.text()?;
                let (name, value) = text.split_once('=').map_or((text.as_str(), None), |(n, v)| (n, Some(v.to_owned())));
                pairs.push((name.to_owned(), value, item));
            }
        } else {
            for (name, _, value) in self.named()? {
                pairs.push((name, value.optional_text()?, value));
            }
        }
        match pairs.iter().find(|(name, ..)| name.trim().is_empty()) {
            Some((_, _, at)) => Err(at.fail("a name is missing before the =")),
            None => Ok(pairs),
        }
    }

    pub(super) fn labels(&self) -> Read<BTreeMap<String, String>> {
        /// The model refuses longer ones; nothing reads them.
        const LONGEST: usize = 64 * 1024;
        let mut labels = BTreeMap::new();
        for (name, value, at) in self.pairs()? {
            let value = value.unwrap_or_default();
            if name.len() + value.len() > LONGEST {
                let message = format!("label {} has {} bytes; at most {LONGEST} are taken", shown(&name), name.len() + value.len());
                return Err(at.fail(message));
            }
            if labels.insert(name.clone(), value).is_some() {
                at.note(format!("label {} is given twice; the last one counts", shown(&name)));
            }
        }
        Ok(labels)
    }

    pub(super) fn environment(&self) -> Read<BTreeMap<String, String>> {
        let mut environment = BTreeMap::new();
        for (name, value, _) in self.pairs()? {
            // Without a value it is handed on from whoever deploys, if they have it.
            match value.or_else(|| (self.reader.env)(&name)) {
                Some(value) => environment.insert(name, value),
                None => environment.remove(&name),
            };
        }
        Ok(environment)
    }
}

impl<'a> Fields<'a> {
    /// A key's value. A key with nothing behind it counts as absent.
    pub(super) fn get(&self, key: &str) -> Option<Value<'a>> {
        let Kind::Map(entries) = &self.node.kind else { return None };
        let entry = entries.iter().find(|e| e.key == key)?;
        let value = Value { reader: self.reader, node: Rc::clone(&entry.value), place: join(&self.place, key) };
        (!value.is_null()).then_some(value)
    }

    /// Reads a key's value, or takes the default.
    pub(super) fn read<T>(&self, key: &str, default: T, read: impl FnOnce(&Value<'a>) -> Read<T>) -> Read<T> {
        self.get(key).map_or(Ok(default), |value| read(&value))
    }

    pub(super) fn optional<T>(&self, key: &str, read: impl FnOnce(&Value<'a>) -> Read<T>) -> Read<Option<T>> {
        self.get(key).map(|value| read(&value)).transpose()
    }
}

fn join(place: &str, key: &str) -> String {
    // A key with dots in it is one step all the same.
    let key = if key.contains('.') { format!("{:?}", shown(key)) } else { shown(key) };
    if place.is_empty() { key } else { format!("{place}.{key}") }
}
