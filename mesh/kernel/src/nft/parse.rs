//! What the kernel says about tables, chains and elements.

use std::time::Duration;

use super::{
    Element, ElementData, Family,
    codes::{
        NFT_GOTO, NFTA_CHAIN_NAME, NFTA_CHAIN_TABLE, NFTA_DATA_VALUE, NFTA_DATA_VERDICT, NFTA_LIST_ELEM, NFTA_SET_ELEM_DATA,
        NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_SET_ELEM_TIMEOUT, NFTA_TABLE_NAME, NFTA_VERDICT_CHAIN, NFTA_VERDICT_CODE,
        family_of,
    },
};
use crate::netlink::{Message, attribute, attributes, text};

const NETFILTER_HEADER_LEN: usize = 4;

/// Family and attributes of an nfnetlink message; `None` for families that this crate does not work with.
pub(super) fn netfilter<'a>(message: &Message<'a>) -> Option<(Family, &'a [u8])> {
    Some((family_of(*message.payload.first()?)?, message.payload.get(NETFILTER_HEADER_LEN..)?))
}

/// Family and name of a table message.
pub(super) fn table(message: &Message<'_>) -> Option<(Family, String)> {
    let (family, body) = netfilter(message)?;
    Some((family, text(attribute(body, NFTA_TABLE_NAME)?)))
}

/// Family, table and name of a chain message.
pub(super) fn chain(message: &Message<'_>) -> Option<(Family, String, String)> {
    let (family, body) = netfilter(message)?;
    Some((family, text(attribute(body, NFTA_CHAIN_TABLE)?), text(attribute(body, NFTA_CHAIN_NAME)?)))
}

/// Appends the elements of one part of a dump; false if one makes no sense.
pub(super) fn elements(message: &Message<'_>, found: &mut Vec<Element>) -> bool {
    let Some((_, body)) = netfilter(message) else { return false };
    let list = attribute(body, NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default();
    for (kind, item) in attributes(list) {
        match (kind, element(item)) {
            (NFTA_LIST_ELEM, Some(element)) => found.push(element),
            _ => return false,
        }
    }
    true
}

fn element(item: &[u8]) -> Option<Element> {
    let mut element = Element { key: Vec::new(), data: None, timeout: None };
    let mut has_key = false;
    for (kind, value) in attributes(item) {
        match kind {
            NFTA_SET_ELEM_KEY => {
                element.key = attribute(value, NFTA_DATA_VALUE)?.to_vec();
                has_key = true;
            }
            NFTA_SET_ELEM_DATA => element.data = data(value),
            NFTA_SET_ELEM_TIMEOUT => element.timeout = Some(Duration::from_millis(u64::from_be_bytes(value.try_into().ok()?))),
            _ => {}
        }
    }
    has_key.then_some(element)
}

fn data(value: &[u8]) -> Option<ElementData> {
    if let Some(value) = attribute(value, NFTA_DATA_VALUE) {
        return Some(ElementData::Value(value.to_vec()));
    }
    let verdict = attribute(value, NFTA_DATA_VERDICT)?;
    let code = i32::from_be_bytes(attribute(verdict, NFTA_VERDICT_CODE)?.try_into().ok()?);
    (code == NFT_GOTO).then(|| attribute(verdict, NFTA_VERDICT_CHAIN).map(|chain| ElementData::Goto(text(chain)))).flatten()
}
