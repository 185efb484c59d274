//! As much of nft's language as our skeletons use: tables, chains, sets and maps by name and type, and rules as bare text.

use std::sync::Arc;

use super::{
    FakeRule,
    tables::{DataType, Set, SetType, Tables},
};
use crate::{ElementData, Family, KernelError, NftEvent};

/// Applies `script` to `tables`, and returns what monitors are told about it. On an error the tables are left half changed, so
/// give it a copy.
pub(super) fn load(tables: &mut Tables, script: &str, port: u32) -> Result<Vec<NftEvent>, KernelError> {
    let words = split(script);
    let mut parser = Parser { words: &words, tables, port, events: Vec::new() };
    while let Some(word) = parser.next() {
        parser.statement(word)?;
    }
    Ok(parser.events)
}

fn refused<T>(detail: impl Into<String>) -> Result<T, KernelError> {
    Err(KernelError::Tool { tool: "nft", action: "load a table into the fake kernel".to_owned(), output: detail.into() })
}

/// Words, braces, and ends of statements (as `;`); comments are dropped, quoted strings are one word.
fn split(script: &str) -> Vec<String> {
    let mut words = Vec::new();
    for line in script.lines() {
        let mut word = String::new();
        let mut quoted = false;
        for letter in line.chars() {
            match letter {
                '"' => {
                    quoted = !quoted;
                    word.push(letter);
                }
                _ if quoted => word.push(letter),
                '#' => break,
                '{' | '}' | ';' | ',' => {
                    words.extend(Some(std::mem::take(&mut word)).filter(|word| !word.is_empty()));
                    words.push(letter.to_string());
                }
                _ if letter.is_whitespace() => words.extend(Some(std::mem::take(&mut word)).filter(|word| !word.is_empty())),
                _ => word.push(letter),
            }
        }
        words.extend(Some(word).filter(|word| !word.is_empty()));
        words.push(";".to_owned());
    }
    words
}

struct Parser<'a> {
    words: &'a [String],
    tables: &'a mut Tables,
    port: u32,
    events: Vec<NftEvent>,
}

impl<'a> Parser<'a> {
    fn next(&mut self) -> Option<&'a str> {
        let (first, rest) = self.words.split_first()?;
        self.words = rest;
        Some(first)
    }

    fn peek(&self) -> Option<&'a str> {
        self.words.first().map(String::as_str)
    }

    fn name(&mut self) -> Result<&'a str, KernelError> {
        match self.next() {
            Some(word) if !matches!(word, "{" | "}" | ";" | ",") => Ok(word),
            other => refused(format!("a name was expected, not {other:?}")),
        }
    }

    fn family(&mut self) -> Family {
        let named =
            [Family::Inet, Family::Netdev, Family::Ip, Family::Ip6].into_iter().find(|family| self.peek() == Some(family.keyword()));
        if named.is_some() {
            self.next();
        }
        named.unwrap_or(Family::Ip)
    }

    fn statement(&mut self, word: &str) -> Result<(), KernelError> {
        match word {
            ";" => Ok(()),
            "add" => match self.name()? {
                "table" => self.table(),
                "chain" => {
                    let (family, table, chain) = (self.family(), self.name()?.to_owned(), self.name()?.to_owned());
                    let Some(found) = self.tables.0.get_mut(&(family, table)) else { return refused("no such table") };
                    found.chains.entry(chain).or_default();
                    Ok(())
                }
                other => refused(format!("the fake does not know 'add {other}'")),
            },
            "table" => self.table(),
            "delete" | "destroy" => {
                let what = self.name()?;
                self.delete(what, word == "destroy")
            }
            "flush" => {
                let what = self.name()?;
                self.flush(what)
            }
            _ => refused(format!("the fake does not know '{word}'")),
        }
    }

    fn delete(&mut self, what: &str, tolerant: bool) -> Result<(), KernelError> {
        let (family, table) = (self.family(), self.name()?.to_owned());
        let gone = match what {
            "table" => match self.tables.0.remove(&(family, table.clone())) {
                Some(gone) => {
                    gone.deleted(family, &table, self.port, &mut self.events);
                    true
                }
                None => false,
            },
            "chain" => {
                let chain = self.name()?;
                let Some(found) = self.tables.0.get_mut(&(family, table.clone())) else { return refused("no such table") };
                if found.is_referred_to(chain) {
                    return refused(format!("chain {chain} is in use"));
                }
                self.events.push(NftEvent::ChainDeleted { family, table, chain: chain.to_owned(), port: self.port });
                found.chains.remove(chain).is_some()
            }
            "map" | "set" => {
                let set = self.name()?;
                let Some(found) = self.tables.0.get_mut(&(family, table.clone())) else { return refused("no such table") };
                if found.is_looked_into(set) {
                    return refused(format!("{what} {set} is in use"));
                }
                self.events.push(NftEvent::SetDeleted { family, table, set: set.to_owned(), port: self.port });
                found.sets.remove(set).is_some()
            }
            _ => return refused(format!("the fake does not know 'delete {what}'")),
        };
        if gone || tolerant { Ok(()) } else { refused(format!("delete {what}: no such {what}")) }
    }

    fn flush(&mut self, what: &str) -> Result<(), KernelError> {
        if what == "ruleset" {
            for ((family, table), gone) in std::mem::take(&mut self.tables.0) {
                gone.deleted(family, &table, self.port, &mut self.events);
            }
            return Ok(());
        }
        let (family, table) = (self.family(), self.name()?.to_owned());
        let name = if what == "table" { "" } else { self.name()? };
        let Some(found) = self.tables.0.get_mut(&(family, table.clone())) else { return refused("no such table") };
        match what {
            "table" => found.chains.values_mut().for_each(|chain| chain.rules = Arc::default()),
            "chain" => match found.chains.get_mut(name) {
                Some(chain) => chain.rules = Arc::default(),
                None => return refused("no such chain"),
            },
            "set" | "map" => match found.sets.get_mut(name) {
                Some(set) => {
                    if !set.elements.is_empty() {
                        self.events.push(NftEvent::ElementsDeleted { family, table, set: name.to_owned(), port: self.port });
                    }
                    set.elements = Arc::default();
                }
                None => return refused("no such set"),
            },
            _ => return refused(format!("the fake does not know 'flush {what}'")),
        }
        Ok(())
    }

    fn table(&mut self) -> Result<(), KernelError> {
        let key = (self.family(), self.name()?.to_owned());
        self.tables.0.entry(key.clone()).or_default();
        if self.peek() != Some("{") {
            return Ok(());
        }
        self.next();
        loop {
            match self.next() {
                Some(";") => {}
                Some("}") => return Ok(()),
                Some("chain") => self.chain(&key)?,
                Some(what @ ("set" | "map")) => self.set(&key, what == "map")?,
                Some("comment" | "flags") => while self.next().is_some_and(|word| word != ";") {},
                other => return refused(format!("the fake does not know {other:?} in a table")),
            }
        }
    }

    /// The statements of a block, each with its own braces inside.
    fn block(&mut self) -> Result<Vec<Vec<&'a str>>, KernelError> {
        if self.next() != Some("{") {
            return refused("a block was expected");
        }
        let mut statements = vec![Vec::new()];
        let mut depth = 0;
        while let Some(word) = self.next() {
            match word {
                "}" if depth == 0 => return Ok(statements.into_iter().filter(|statement| !statement.is_empty()).collect()),
                ";" if depth == 0 => statements.push(Vec::new()),
                // A line may end inside of braces.
                ";" => {}
                _ => {
                    depth = match word {
                        "{" => depth + 1,
                        "}" => depth - 1,
                        _ => depth,
                    };
                    if let Some(statement) = statements.last_mut() {
                        statement.push(word);
                    }
                }
            }
        }
        refused("a block is not closed")
    }

    fn chain(&mut self, table: &(Family, String)) -> Result<(), KernelError> {
        let name = self.name()?.to_owned();
        let statements = self.block()?;
        let chain = self.tables.0.entry(table.clone()).or_default().chains.entry(name).or_default();
        for statement in statements {
            match statement[0] {
                "type" => chain.base = true,
                "policy" | "comment" => {}
                _ => Arc::make_mut(&mut chain.rules).push(FakeRule::Text(statement.join(" "))),
            }
        }
        Ok(())
    }

    fn set(&mut self, table: &(Family, String), map: bool) -> Result<(), KernelError> {
        let name = self.name()?.to_owned();
        let mut kind = SetType { data: map.then_some(DataType::Value(None)), ..SetType::default() };
        let mut elements = Vec::new();
        for statement in self.block()? {
            match statement[0] {
                "type" => {
                    let mut sides = statement[1..].split(|word| *word == ":");
                    kind.key = sides.next().and_then(width);
                    kind.data = match sides.next() {
                        None => None,
                        Some(["verdict"]) => Some(DataType::Verdict),
                        Some(types) => Some(DataType::Value(width(types))),
                    };
                    if kind.data.is_some() != map {
                        return refused(format!("{name}: a map leads to something, a set does not"));
                    }
                }
                "size" => kind.size = statement.get(1).and_then(|size| size.parse().ok()),
                "elements" => elements = statement[2..].to_vec(),
                _ => {}
            }
        }
        let set = self
            .tables
            .0
            .entry(table.clone())
            .or_default()
            .sets
            .entry(name.clone())
            .or_insert_with(|| Set { kind: kind.clone(), ..Set::default() });
        if set.kind != kind {
            return refused(format!("{name}: there already, with another type"));
        }
        for element in elements.split(|word| matches!(*word, "{" | "}" | ",")).filter(|element| !element.is_empty()) {
            let (key, data) = parse_element(element)?;
            Arc::make_mut(&mut set.elements).insert(key, data);
        }
        Ok(())
    }
}

/// Bytes of a key or value of these types; in a concatenation each is padded to 4. `None` for types the fake does not know.
fn width(types: &[&str]) -> Option<usize> {
    let single = |name: &str| match name {
        "inet_proto" | "nf_proto" => Some(1),
        "inet_service" | "ether_type" => Some(2),
        "ipv4_addr" | "mark" => Some(4),
        "ether_addr" => Some(6),
        "ipv6_addr" | "ifname" => Some(16),
        _ => None,
    };
    match types {
        [one] => single(one),
        many => many.iter().filter(|word| **word != ".").map(|name| single(name).map(|width| width.next_multiple_of(4))).sum(),
    }
}

/// Only marks as keys, to chains or marks: what skeletons have.
fn parse_element(words: &[&str]) -> Result<(Vec<u8>, Option<ElementData>), KernelError> {
    let number = |word: &str| {
        let parsed = word.strip_prefix("0x").map_or_else(|| word.parse(), |hex| u32::from_str_radix(hex, 16));
        parsed.map(|number| number.to_ne_bytes().to_vec()).or_else(|_| refused(format!("the fake does not know the element '{word}'")))
    };
    match words {
        [key] => Ok((number(key)?, None)),
        [key, ":", "goto", chain] => Ok((number(key)?, Some(ElementData::Goto((*chain).to_owned())))),
        [key, ":", value] => Ok((number(key)?, Some(ElementData::Value(number(value)?)))),
        _ => refused(format!("the fake does not know the element '{}'", words.join(" "))),
    }
}
