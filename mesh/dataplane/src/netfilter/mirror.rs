//! The mirror of one plain set or map: what was last committed, and the operations to what is wanted.

use std::collections::HashMap;

use swarmesh_kernel::{Element, ElementData, NftOp, SetName};

#[derive(Debug)]
pub(crate) struct SetMirror {
    set: SetName,
    elements: HashMap<Vec<u8>, Option<Vec<u8>>>,
}

impl SetMirror {
    pub(crate) fn new(set: SetName) -> Self {
        Self { set, elements: HashMap::new() }
    }

    pub(crate) fn name(&self) -> SetName {
        self.set
    }

    pub(crate) fn holds(&self, key: &[u8]) -> bool {
        self.elements.contains_key(key)
    }

    pub(crate) fn adopt(&mut self, elements: Vec<Element>) {
        let value = |data| match data {
            Some(ElementData::Value(bytes)) => Some(bytes),
            _ => None,
        };
        self.elements = elements.into_iter().map(|e| (e.key, value(e.data))).collect();
    }

    /// Adds, changes or (`wanted` = `None`) removes one element. True when it was not there before.
    pub(crate) fn set(&mut self, key: Vec<u8>, wanted: Option<Option<Vec<u8>>>, ops: &mut Vec<NftOp>) -> bool {
        let present = self.elements.get(&key);
        let is_new = present.is_none();
        if present == wanted.as_ref() {
            return false;
        }
        if !is_new {
            ops.push(NftOp::DeleteElement { set: self.set, key: key.clone() });
        }
        match wanted {
            Some(data) => {
                ops.push(NftOp::AddElement { set: self.set, key: key.clone(), data: data.clone().map(ElementData::Value) });
                self.elements.insert(key, data);
            }
            None => {
                self.elements.remove(&key);
            }
        }
        is_new
    }

    /// Makes the set hold just `wanted`.
    pub(crate) fn replace(&mut self, wanted: HashMap<Vec<u8>, Option<Vec<u8>>>, ops: &mut Vec<NftOp>) {
        let gone: Vec<Vec<u8>> = self.elements.keys().filter(|k| !wanted.contains_key(*k)).cloned().collect();
        for key in gone {
            self.set(key, None, ops);
        }
        for (key, data) in wanted {
            self.set(key, Some(data), ops);
        }
    }

    /// Removes what is not to stay.
    pub(crate) fn retain(&mut self, stays: impl Fn(&[u8]) -> bool, ops: &mut Vec<NftOp>) {
        let gone: Vec<Vec<u8>> = self.elements.keys().filter(|k| !stays(k)).cloned().collect();
        for key in gone {
            self.set(key, None, ops);
        }
    }
}
