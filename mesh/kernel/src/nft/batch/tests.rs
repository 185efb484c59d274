use nix::libc;
use proptest::prelude::*;

use super::*;
use crate::{
    Family,
    netlink::{Message, attribute, attributes, messages, text},
    nft::{PayloadBase, Reg, parse},
};

const SET: SetName = SetName { family: Family::Inet, table: "mesh", set: "front" };

fn add(key: &[u8], data: Option<ElementData>) -> NftOp {
    NftOp::AddElement { set: SET, key: key.to_vec(), data }
}

fn delete(key: &[u8]) -> NftOp {
    NftOp::DeleteElement { set: SET, key: key.to_vec() }
}

fn encoded(ops: &[NftOp]) -> (Batch, Vec<u8>) {
    let mut batch = Batch::encode(ops, 100);
    let bytes = std::mem::take(&mut batch.buffer).finish("test").unwrap();
    (batch, bytes)
}

fn kinds(bytes: &[u8]) -> Vec<u16> {
    messages(bytes).map(|message| message.kind).collect()
}

#[test]
fn a_batch_is_framed_and_only_the_last_operation_wants_an_answer() {
    let ops = [delete(&[1; 4]), add(&[1; 4], None), add(&[2; 4], None), NftOp::DeleteTable { family: Family::Inet, table: "mesh" }];
    let (batch, bytes) = encoded(&ops);
    let del = message_type(NFT_MSG_DELSETELEM);
    let new = message_type(NFT_MSG_NEWSETELEM);
    assert_eq!(kinds(&bytes), [NFNL_MSG_BATCH_BEGIN, del, new, message_type(NFT_MSG_DELTABLE), NFNL_MSG_BATCH_END]);
    let acked: Vec<u32> = messages(&bytes).filter(|message| message.flags & ACK != 0).map(|message| message.sequence).collect();
    assert_eq!(acked, [batch.last()]);
    let sequences: Vec<u32> = messages(&bytes).map(|message| message.sequence).collect();
    assert_eq!(sequences, [100, 101, 102, 103, 104]);
}

#[test]
fn a_long_run_is_split_below_the_length_of_an_attribute() {
    let ops: Vec<NftOp> = (0..5_000u32).map(|key| add(&key.to_be_bytes(), Some(ElementData::Value(vec![7; 4])))).collect();
    let (_, bytes) = encoded(&ops);
    let new: Vec<Message<'_>> = messages(&bytes).filter(|message| message.kind == message_type(NFT_MSG_NEWSETELEM)).collect();
    assert!(new.len() > 1 && new.len() < 10, "{}", new.len());
    let mut found = Vec::new();
    assert!(new.iter().all(|message| parse::elements(message, &mut found)));
    assert_eq!(found.len(), ops.len());
}

#[test]
fn a_rule_carries_its_expressions_and_its_comment() {
    let expressions = vec![
        Expr::Payload { base: PayloadBase::Network, offset: 16, len: 4, dreg: Reg(0) },
        Expr::Lookup { set: "front", sreg: Reg(0), dreg: Some(Reg(1)) },
        Expr::Verdict(Verdict::Goto("pick".to_owned())),
    ];
    let comment = "x".repeat(200);
    let op = NftOp::AddRule { family: Family::Inet, table: "mesh", chain: "dispatch".to_owned(), comment, expressions };
    let (_, bytes) = encoded(&[op]);
    let rule = messages(&bytes).nth(1).unwrap();
    let body = &rule.payload[4..];
    let names: Vec<String> =
        attributes(attribute(body, NFTA_RULE_EXPRESSIONS).unwrap()).map(|(_, item)| text(attribute(item, 1).unwrap())).collect();
    assert_eq!(names, ["payload", "lookup", "immediate"]);
    let comment = attribute(body, NFTA_RULE_USERDATA).unwrap();
    assert_eq!((comment[0], comment[1], comment.len()), (0, 128, 130));
    let payload = attributes(attribute(body, NFTA_RULE_EXPRESSIONS).unwrap()).next().unwrap().1;
    let data: Vec<(u16, Vec<u8>)> = attributes(attribute(payload, 2).unwrap()).map(|(kind, value)| (kind, value.to_vec())).collect();
    let number = |kind: u16, value: u8| (kind, vec![0, 0, 0, value]);
    assert_eq!(data, [number(1, 8), number(2, 1), number(3, 16), number(4, 4)]);
}

#[test]
fn a_refusal_names_the_operation_by_sequence_and_offset() {
    let ops = [add(&[1; 4], None), add(&[2; 4], None), add(&[3; 4], None), delete(&[9; 4])];
    let (batch, bytes) = encoded(&ops);
    let group = messages(&bytes).nth(1).unwrap();
    let list = attribute(&group.payload[4..], NFTA_SET_ELEM_LIST_ELEMENTS).unwrap();
    let second = attributes(list).nth(1).unwrap().1;
    // Offsets count from the message's header to the refused attribute's own.
    let offset = (second.as_ptr() as usize - group.payload.as_ptr() as usize) as u32 - 4 + 16;
    let answer = |offset| Answer { errno: libc::EEXIST, explanation: None, offset };
    let text = |sequence, offset| batch.refusal(&ops, sequence, answer(offset)).to_string();
    assert!(text(101, Some(offset)).contains("add element 02020202"), "{}", text(101, Some(offset)));
    assert!(text(101, None).contains("or one of the 2 that follow"));
    assert!(text(102, None).contains("delete element 09090909"));
    assert!(text(100, None).contains("commit 4 changes"));
    assert!(text(55, None).contains("commit 4 changes"));
}

#[test]
fn a_missing_expression_is_told_from_a_missing_set() {
    let expressions = vec![Expr::Masquerade, Expr::LookupVerdict { set: "classes", sreg: Reg(0) }];
    let ops = [NftOp::AddRule { family: Family::Inet, table: "mesh", chain: "c".to_owned(), comment: String::new(), expressions }];
    let (batch, _) = encoded(&ops);
    let part = |index: usize| batch.messages[0].parts[index];
    let refusal = |offset| batch.refusal(&ops, 101, Answer { errno: libc::ENOENT, explanation: None, offset: Some(offset) });
    assert!(matches!(refusal(part(0)), KernelError::NotSupported { .. }));
    assert!(matches!(refusal(part(1)), KernelError::NotFound { .. }));
    assert!(matches!(refusal(20), KernelError::NotFound { .. }));
}

fn element() -> impl Strategy<Value = (Vec<u8>, Option<ElementData>)> {
    let data = prop_oneof![
        Just(None),
        prop::collection::vec(any::<u8>(), 1..16).prop_map(|value| Some(ElementData::Value(value))),
        "[a-z][a-z0-9_]{0,30}".prop_map(|chain| Some(ElementData::Goto(chain))),
    ];
    (prop::collection::vec(any::<u8>(), 1..32), data)
}

proptest! {
    #[test]
    fn elements_survive_a_round_trip(wanted in prop::collection::vec(element(), 1..200)) {
        let ops: Vec<NftOp> = wanted.iter().map(|(key, data)| add(key, data.clone())).collect();
        let (_, bytes) = encoded(&ops);
        let mut found = Vec::new();
        for message in messages(&bytes).filter(|message| message.kind == message_type(NFT_MSG_NEWSETELEM)) {
            prop_assert!(parse::elements(&message, &mut found));
        }
        let found: Vec<(Vec<u8>, Option<ElementData>)> = found.into_iter().map(|element| (element.key, element.data)).collect();
        prop_assert_eq!(found, wanted);
    }

    #[test]
    fn any_answer_becomes_an_error(sequence in any::<u32>(), offset in prop::option::of(any::<u32>()), errno in 1..200i32) {
        let ops = [add(&[1; 4], None), add(&[2; 4], None)];
        let (batch, _) = encoded(&ops);
        let error = batch.refusal(&ops, sequence, Answer { errno, explanation: None, offset });
        prop_assert!(!error.to_string().is_empty());
    }

    #[test]
    fn arbitrary_payloads_never_panic(payload in prop::collection::vec(any::<u8>(), 0..200)) {
        let message = Message { kind: 0, flags: 0, sequence: 0, port: 0, payload: &payload };
        let _ = parse::elements(&message, &mut Vec::new());
        let _ = (parse::table(&message), parse::chain(&message));
    }
}
