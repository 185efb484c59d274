//! YAML text as a tree in which every value knows its line.
//!
//! Aliases are shared, not copied, and what they would expand to is bounded: a few hundred bytes can otherwise stand for
//! more values than there is memory. Merge keys (`<<`) are resolved here.

use std::{
    collections::{BTreeMap, HashMap},
    rc::Rc,
};

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError, Span};

use super::StackError;

/// Docker's own limit for a stack file is smaller than this.
pub(super) const MOST_BYTES: usize = 4 << 20;
const MOST_VALUES: usize = 500_000;
/// With every alias written out.
const MOST_EXPANDED: usize = 64 << 20;
/// What a value costs besides its text.
const VALUE_COST: usize = 16;
/// The format itself needs seven.
const DEEPEST: usize = 64;

#[derive(Debug)]
pub(super) struct Node {
    pub(super) line: usize,
    pub(super) column: usize,
    pub(super) kind: Kind,
    expanded: usize,
    depth: usize,
}

#[derive(Debug)]
pub(super) enum Kind {
    /// `plain` is without quotes: only then may it stand for something else than a string.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Rc<Node>>),
    Map(Vec<Entry>),
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) line: usize,
    pub(super) column: usize,
    pub(super) value: Rc<Node>,
}

impl Node {
    /// Nothing, at a position.
    pub(super) const fn at(line: usize, column: usize) -> Self {
        Self { line, column, kind: Kind::Scalar { text: String::new(), plain: true }, expanded: VALUE_COST, depth: 1 }
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(&self.kind, Kind::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    pub(super) fn type_name(&self) -> &'static str {
        match self.kind {
            _ if self.is_null() => "nothing",
            Kind::Scalar { .. } => "a single value",
            Kind::List(_) => "a list",
            Kind::Map(_) => "a mapping",
        }
    }
}

/// A list or mapping that has begun.
struct Open {
    line: usize,
    column: usize,
    anchor: usize,
    content: Content,
}

enum Content {
    List(Vec<Rc<Node>>),
    Map { entries: Vec<Entry>, first: HashMap<String, usize>, key: Option<(String, usize, usize)>, merged: Vec<Rc<Node>> },
}

struct Builder<'a> {
    file: &'a str,
    open: Vec<Open>,
    root: Option<Rc<Node>>,
    /// `None` while the anchored value is still open.
    anchors: BTreeMap<usize, Option<Rc<Node>>>,
    values: usize,
}

pub(super) fn parse(bytes: &[u8], file: &str) -> Result<Rc<Node>, StackError> {
    let fail = |line, column, message: String| StackError { file: file.to_owned(), line, column, place: String::new(), message };
    let fail_after = |count: usize, message: String| {
        let before = bytes.get(..count).unwrap_or_default();
        let line_start = before.iter().rposition(|b| *b == b'\n').map_or(0, |p| p + 1);
        let column = String::from_utf8_lossy(before.get(line_start..).unwrap_or_default()).chars().count() + 1;
        fail(before.iter().filter(|b| **b == b'\n').count() + 1, column, message)
    };
    if bytes.len() > MOST_BYTES {
        return Err(fail_after(MOST_BYTES, format!("the file is too long; at most {MOST_BYTES} bytes are read, which end here")));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| fail_after(error.valid_up_to(), "this is not UTF-8 text".to_owned()))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let options = granit_parser::options! { flow_nesting_limit: DEEPEST, block_nesting_limit: DEEPEST, emit_comments: false };
    let mut builder = Builder { file, open: Vec::new(), root: None, anchors: BTreeMap::new(), values: 0 };
    for next in Parser::new_from_str_with_options(text, options) {
        let (event, span) = next.map_err(|e| builder.syntax(&e))?;
        builder.event(event, &span)?;
    }
    match builder.root {
        Some(root) if !root.is_null() => Ok(root),
        _ => Err(fail(1, 1, "the file is empty; a stack file needs services".to_owned())),
    }
}

impl Builder<'_> {
    fn fail(&self, line: usize, column: usize, message: impl Into<String>) -> StackError {
        StackError { file: self.file.to_owned(), line, column, place: self.place(), message: message.into() }
    }

    fn syntax(&self, error: &ScanError) -> StackError {
        let message = match error.kind() {
            ErrorKind::TabInBlockIndentation | ErrorKind::TabNotAllowed => {
                "a tab stands where YAML wants spaces; indent with spaces".to_owned()
            }
            ErrorKind::UnknownAnchor => "this alias (*name) refers to an anchor (&name) that is not set above it".to_owned(),
            ErrorKind::RecursionLimitExceeded => format!("values are nested more than {DEEPEST} deep"),
            other => format!("this is not YAML: {other}"),
        };
        let marker = error.marker();
        StackError { file: self.file.to_owned(), line: marker.line(), column: marker.col() + 1, place: String::new(), message }
    }

    /// Where the value that comes next belongs.
    fn place(&self) -> String {
        let mut place = String::new();
        for open in &self.open {
            match &open.content {
                Content::List(items) => place.push_str(&format!("[{}]", items.len())),
                Content::Map { key: Some((key, ..)), .. } => {
                    if !place.is_empty() {
                        place.push('.');
                    }
                    place.push_str(&shown(key));
                }
                Content::Map { .. } => {}
            }
        }
        place
    }

    fn event(&mut self, event: Event<'_>, span: &Span) -> Result<(), StackError> {
        let (line, column) = (span.start.line(), span.start.col() + 1);
        match event {
            Event::DocumentStart(..) if self.root.is_some() => {
                Err(self.fail(line, column, "a second document begins here (---); a stack file is one document"))
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.count(line, column)?;
                // A tag is the author's own word for what the text is; only !!str matters here, and it means quotes.
                let plain = style == ScalarStyle::Plain && tag.is_none();
                let expanded = text.len() + VALUE_COST;
                let node = Rc::new(Node { line, column, kind: Kind::Scalar { text: text.into_owned(), plain }, expanded, depth: 1 });
                self.add(node, anchor, (line, column))
            }
            Event::SequenceStart(_, anchor, _) => self.begin(line, column, anchor, Content::List(Vec::new())),
            Event::MappingStart(_, anchor, _) => {
                let content = Content::Map { entries: Vec::new(), first: HashMap::new(), key: None, merged: Vec::new() };
                self.begin(line, column, anchor, content)
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(anchor) => match self.anchors.get(&anchor).cloned() {
                Some(Some(node)) => self.add(node, 0, (line, column)),
                Some(None) => Err(self.fail(line, column, "this alias lies within the value that it refers to")),
                None => Err(self.fail(line, column, "this alias refers to an anchor that is not set above it")),
            },
            _ => Ok(()),
        }
    }

    fn count(&mut self, line: usize, column: usize) -> Result<(), StackError> {
        self.values += 1;
        if self.values > MOST_VALUES {
            return Err(self.fail(line, column, format!("the file has more than {MOST_VALUES} values")));
        }
        Ok(())
    }

    fn begin(&mut self, line: usize, column: usize, anchor: usize, content: Content) -> Result<(), StackError> {
        self.count(line, column)?;
        if let Some(Open { content: Content::Map { key: None, .. }, .. }) = self.open.last() {
            return Err(self.fail(line, column, "a key has to be a single value, not a list or a mapping"));
        }
        if anchor > 0 {
            self.anchors.insert(anchor, None);
        }
        self.open.push(Open { line, column, anchor, content });
        Ok(())
    }

    fn end(&mut self) -> Result<(), StackError> {
        let Some(open) = self.open.pop() else { return Ok(()) };
        let kind = match open.content {
            Content::List(items) => Kind::List(items),
            Content::Map { mut entries, first, merged, .. } => {
                let mut known: HashMap<String, usize> = first;
                for source in &merged {
                    self.merge(source, &mut entries, &mut known)?;
                }
                Kind::Map(entries)
            }
        };
        let children: Box<dyn Iterator<Item = &Rc<Node>>> = match &kind {
            Kind::List(items) => Box::new(items.iter()),
            Kind::Map(entries) => Box::new(entries.iter().map(|e| &e.value)),
            Kind::Scalar { .. } => Box::new(std::iter::empty()),
        };
        let (mut expanded, mut depth) = (VALUE_COST, 0);
        for child in children {
            expanded = child.expanded.saturating_add(expanded);
            depth = depth.max(child.depth);
        }
        let node = Rc::new(Node { line: open.line, column: open.column, kind, expanded, depth: depth + 1 });
        self.add(node, open.anchor, (open.line, open.column))
    }

    /// Entries of a merged mapping stand behind the mapping's own.
    fn merge(&mut self, source: &Rc<Node>, entries: &mut Vec<Entry>, known: &mut HashMap<String, usize>) -> Result<(), StackError> {
        match &source.kind {
            Kind::Map(more) => {
                for entry in more {
                    if !known.contains_key(&entry.key) {
                        // Each merge copies: many of them would multiply what the file holds.
                        self.count(source.line, source.column)?;
                        known.insert(entry.key.clone(), entry.line);
                        entries.push(entry.clone());
                    }
                }
                Ok(())
            }
            Kind::List(sources) if sources.iter().all(|s| matches!(s.kind, Kind::Map(_))) => {
                sources.iter().try_for_each(|s| self.merge(s, entries, known))
            }
            _ => Err(self.fail(source.line, source.column, format!("<< merges mappings; this is {}", source.type_name()))),
        }
    }

    /// `at` is where the value stands, which for an alias is not where it was written.
    fn add(&mut self, node: Rc<Node>, anchor: usize, at: (usize, usize)) -> Result<(), StackError> {
        if node.expanded > MOST_EXPANDED {
            return Err(self.fail(at.0, at.1, format!("with its aliases written out, this has more than {} MiB", MOST_EXPANDED >> 20)));
        }
        if node.depth + self.open.len() > DEEPEST {
            return Err(self.fail(at.0, at.1, format!("values are nested more than {DEEPEST} deep")));
        }
        if anchor > 0 {
            self.anchors.insert(anchor, Some(Rc::clone(&node)));
        }
        let file = self.file;
        let place = self.place();
        let fail = |place: String, message: String| StackError { file: file.to_owned(), line: at.0, column: at.1, place, message };
        match self.open.last_mut().map(|open| &mut open.content) {
            None => self.root = Some(node),
            Some(Content::List(items)) => items.push(node),
            Some(Content::Map { entries, first, key, merged }) => match key.take() {
                None => {
                    let Kind::Scalar { text, .. } = &node.kind else {
                        return Err(fail(place, "a key has to be a single value, not a list or a mapping".to_owned()));
                    };
                    if let Some(line) = first.get(text) {
                        let place = if place.is_empty() { shown(text) } else { format!("{place}.{}", shown(text)) };
                        return Err(fail(place, format!("the key is given twice, first on line {line}")));
                    }
                    first.insert(text.clone(), at.0);
                    *key = Some((text.clone(), at.0, at.1));
                }
                Some((name, ..)) if name == "<<" => merged.push(node),
                Some((key, line, column)) => entries.push(Entry { key, line, column, value: node }),
            },
        }
        Ok(())
    }
}

/// A key in a message: not a screenful.
pub(super) fn shown(key: &str) -> String {
    const LONGEST: usize = 64;
    let clean = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    match key.char_indices().nth(LONGEST) {
        Some((end, _)) => key[..end].chars().map(clean).chain(std::iter::once('…')).collect(),
        None => key.chars().map(clean).collect(),
    }
}
