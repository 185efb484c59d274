//! Operations to one batch of netlink messages, and from a refused message back to the operation.

use super::{
    ElementData, Expr, NftOp, SetName, Verdict,
    codes::{
        NF_ACCEPT, NF_INET_LOCAL_OUT, NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END, NFNL_SUBSYS_NFTABLES, NFT_MSG_DELCHAIN, NFT_MSG_DELSETELEM,
        NFT_MSG_DELTABLE, NFT_MSG_NEWCHAIN, NFT_MSG_NEWRULE, NFT_MSG_NEWSETELEM, NFT_MSG_NEWTABLE, NFT_TABLE_F_OWNER, NFTA_CHAIN_HOOK,
        NFTA_CHAIN_NAME, NFTA_CHAIN_POLICY, NFTA_CHAIN_TABLE, NFTA_CHAIN_TYPE, NFTA_DATA_VALUE, NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY,
        NFTA_LIST_ELEM, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS, NFTA_RULE_TABLE, NFTA_RULE_USERDATA, NFTA_SET_ELEM_DATA, NFTA_SET_ELEM_KEY,
        NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_TABLE, NFTA_TABLE_FLAGS, NFTA_TABLE_NAME,
        NFTNL_UDATA_COMMENT_MAXLEN, NFTNL_UDATA_RULE_COMMENT, family_number, message_type,
    },
    expr::encode_verdict,
};
use crate::{
    KernelError,
    netlink::{ACK, APPEND, Answer, CREATE, MessageBuffer, REQUEST},
};

/// An attribute's length has 16 bits, and an element of a set needs a few hundred bytes at most.
const ELEMENTS_LEN: usize = 60_000;

/// An encoded batch.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) buffer: MessageBuffer,
    /// Sequence number of the first message between begin and end.
    first: u32,
    messages: Vec<Span>,
}

/// Which operations one message carries.
#[derive(Debug)]
struct Span {
    first_op: usize,
    /// Where in the message each element of a group, or each expression of a rule starts; bytes from the header.
    parts: Vec<u32>,
}

impl Batch {
    /// How many sequence numbers a batch of that many operations may need.
    pub(super) fn sequences(ops: usize) -> u32 {
        u32::try_from(ops).unwrap_or(u32::MAX - 2).saturating_add(2)
    }

    /// Encodes `ops`, with sequence numbers from `begin` on. Only the last operation asks for an acknowledgement.
    pub(super) fn encode(ops: &[NftOp], begin: u32) -> Self {
        let mut batch = Self { buffer: MessageBuffer::default(), first: begin + 1, messages: Vec::new() };
        batch.buffer.message(NFNL_MSG_BATCH_BEGIN, REQUEST, begin, |out| out.netfilter_header(0, NFNL_SUBSYS_NFTABLES));
        let mut next = 0;
        let mut last = 0;
        while next < ops.len() {
            last = batch.buffer.len();
            next += batch.encode_message(ops, next);
        }
        batch.buffer.add_flags(last, ACK);
        let end = batch.next_sequence();
        batch.buffer.message(NFNL_MSG_BATCH_END, REQUEST, end, |out| out.netfilter_header(0, NFNL_SUBSYS_NFTABLES));
        batch
    }

    fn next_sequence(&self) -> u32 {
        self.first + self.messages.len() as u32
    }

    /// Sequence number of the message that asks for the acknowledgement.
    pub(super) fn last(&self) -> u32 {
        self.next_sequence() - 1
    }

    /// Encodes the message that `ops[index]` starts, and returns how many operations it carries.
    fn encode_message(&mut self, ops: &[NftOp], index: usize) -> usize {
        let sequence = self.next_sequence();
        let mut span = Span { first_op: index, parts: Vec::new() };
        let out = &mut self.buffer;
        let mut taken = 1;
        match &ops[index] {
            NftOp::AddElement { set, .. } => {
                taken = elements(
                    out,
                    NFT_MSG_NEWSETELEM,
                    CREATE,
                    sequence,
                    *set,
                    &mut span.parts,
                    ops[index..].iter().map_while(|op| match op {
                        NftOp::AddElement { set: other, key, data } if other == set => Some((key, data.as_ref())),
                        _ => None,
                    }),
                );
            }
            NftOp::DeleteElement { set, .. } => {
                taken = elements(
                    out,
                    NFT_MSG_DELSETELEM,
                    0,
                    sequence,
                    *set,
                    &mut span.parts,
                    ops[index..].iter().map_while(|op| match op {
                        NftOp::DeleteElement { set: other, key } if other == set => Some((key, None)),
                        _ => None,
                    }),
                );
            }
            NftOp::FlushSet { set } => {
                // Without a list, the kernel takes all of them (nf_tables_delsetelem).
                out.message(message_type(NFT_MSG_DELSETELEM), REQUEST, sequence, |out| set_header(out, *set));
            }
            NftOp::AddOwnedTable { family, table } => {
                out.message(message_type(NFT_MSG_NEWTABLE), REQUEST | CREATE, sequence, |out| {
                    out.netfilter_header(family_number(*family), 0);
                    out.attribute_str(NFTA_TABLE_NAME, table);
                    out.attribute_u32_be(NFTA_TABLE_FLAGS, NFT_TABLE_F_OWNER);
                });
            }
            NftOp::AddOutputChain { family, table, chain, priority } => {
                out.message(message_type(NFT_MSG_NEWCHAIN), REQUEST | CREATE, sequence, |out| {
                    out.netfilter_header(family_number(*family), 0);
                    out.attribute_str(NFTA_CHAIN_TABLE, table);
                    out.attribute_str(NFTA_CHAIN_NAME, chain);
                    out.nested(NFTA_CHAIN_HOOK, |out| {
                        out.attribute_u32_be(NFTA_HOOK_HOOKNUM, NF_INET_LOCAL_OUT);
                        out.attribute(NFTA_HOOK_PRIORITY, &priority.to_be_bytes());
                    });
                    out.attribute(NFTA_CHAIN_POLICY, &NF_ACCEPT.to_be_bytes());
                    out.attribute_str(NFTA_CHAIN_TYPE, "filter");
                });
            }
            NftOp::AddChain { family, table, chain } => {
                out.message(message_type(NFT_MSG_NEWCHAIN), REQUEST | CREATE, sequence, |out| {
                    out.netfilter_header(family_number(*family), 0);
                    out.attribute_str(NFTA_CHAIN_TABLE, table);
                    out.attribute_str(NFTA_CHAIN_NAME, chain);
                });
            }
            NftOp::DeleteChain { family, table, chain } => {
                out.message(message_type(NFT_MSG_DELCHAIN), REQUEST, sequence, |out| {
                    out.netfilter_header(family_number(*family), 0);
                    out.attribute_str(NFTA_CHAIN_TABLE, table);
                    out.attribute_str(NFTA_CHAIN_NAME, chain);
                });
            }
            NftOp::AddRule { family, table, chain, comment, expressions } => {
                let start = out.len();
                out.message(message_type(NFT_MSG_NEWRULE), REQUEST | CREATE | APPEND, sequence, |out| {
                    out.netfilter_header(family_number(*family), 0);
                    out.attribute_str(NFTA_RULE_TABLE, table);
                    out.attribute_str(NFTA_RULE_CHAIN, chain);
                    out.nested(NFTA_RULE_EXPRESSIONS, |out| {
                        for expression in expressions {
                            span.parts.push((out.len() - start) as u32);
                            out.nested(NFTA_LIST_ELEM, |out| expression.encode(out));
                        }
                    });
                    rule_comment(out, comment);
                });
            }
            NftOp::DeleteTable { family, table } => {
                out.message(message_type(NFT_MSG_DELTABLE), REQUEST, sequence, |out| {
                    out.netfilter_header(family_number(*family), 0);
                    out.attribute_str(NFTA_TABLE_NAME, table);
                });
            }
        }
        self.messages.push(span);
        taken
    }

    /// The error for an answer to the message with that sequence number.
    pub(super) fn refusal(&self, ops: &[NftOp], sequence: u32, answer: Answer) -> KernelError {
        let span = sequence.checked_sub(self.first).and_then(|index| self.messages.get(index as usize));
        // The begin message is what the kernel names when it refuses the batch as a whole.
        let Some((span, op)) = span.and_then(|span| Some((span, ops.get(span.first_op)?))) else {
            return refused(&format!("commit {} changes to nftables", ops.len()), answer);
        };
        let part = answer.offset.and_then(|offset| span.parts.partition_point(|start| *start <= offset).checked_sub(1));
        match (op, part) {
            (NftOp::AddRule { expressions, .. }, Some(part)) => rule_refusal(op, part, expressions.get(part), answer),
            (NftOp::AddElement { .. } | NftOp::DeleteElement { .. }, Some(part)) => {
                refused(&ops.get(span.first_op + part).unwrap_or(op).to_string(), answer)
            }
            (NftOp::AddElement { .. } | NftOp::DeleteElement { .. }, None) if span.parts.len() > 1 => {
                refused(&format!("{op}, or one of the {} that follow", span.parts.len() - 1), answer)
            }
            _ => refused(&op.to_string(), answer),
        }
    }
}

fn refused(action: &str, answer: Answer) -> KernelError {
    match answer.into_result(action) {
        Err(error) => error,
        Ok(()) => KernelError::protocol(action, "acknowledged, yet not committed"),
    }
}

/// ENOENT at an expression that refers to nothing means that the kernel has no such expression.
fn rule_refusal(op: &NftOp, part: usize, expression: Option<&Expr>, answer: Answer) -> KernelError {
    let name = expression.map_or("unknown", Expr::name);
    let action = format!("{op}, expression {part} ({name})");
    match refused(&action, answer) {
        KernelError::NotFound { action } if !expression.is_some_and(Expr::refers) => {
            KernelError::NotSupported { action, detail: format!("no nftables expression '{name}'") }
        }
        error => error,
    }
}

/// One message with as many elements as fit; returns their number.
fn elements<'a>(
    out: &mut MessageBuffer,
    message: u8,
    flags: u16,
    sequence: u32,
    set: SetName,
    parts: &mut Vec<u32>,
    items: impl Iterator<Item = (&'a Vec<u8>, Option<&'a ElementData>)>,
) -> usize {
    let start = out.len();
    out.message(message_type(message), REQUEST | flags, sequence, |out| {
        set_header(out, set);
        out.nested(NFTA_SET_ELEM_LIST_ELEMENTS, |out| {
            let list = out.len();
            for (key, data) in items {
                parts.push((out.len() - start) as u32);
                out.nested(NFTA_LIST_ELEM, |out| element(out, key, data));
                if out.len() - list > ELEMENTS_LEN {
                    break;
                }
            }
        });
    });
    parts.len()
}

fn set_header(out: &mut MessageBuffer, set: SetName) {
    out.netfilter_header(family_number(set.family), 0);
    out.attribute_str(NFTA_SET_ELEM_LIST_TABLE, set.table);
    out.attribute_str(NFTA_SET_ELEM_LIST_SET, set.set);
}

fn element(out: &mut MessageBuffer, key: &[u8], data: Option<&ElementData>) {
    out.nested(NFTA_SET_ELEM_KEY, |out| out.attribute(NFTA_DATA_VALUE, key));
    match data {
        None => {}
        Some(ElementData::Value(value)) => out.nested(NFTA_SET_ELEM_DATA, |out| out.attribute(NFTA_DATA_VALUE, value)),
        Some(ElementData::Goto(chain)) => out.nested(NFTA_SET_ELEM_DATA, |out| encode_verdict(out, &Verdict::Goto(chain.clone()))),
    }
}

fn rule_comment(out: &mut MessageBuffer, comment: &str) {
    let length = comment.floor_char_boundary(NFTNL_UDATA_COMMENT_MAXLEN - 1);
    if length == 0 {
        return;
    }
    let mut data = vec![NFTNL_UDATA_RULE_COMMENT, length as u8 + 1];
    data.extend_from_slice(&comment.as_bytes()[..length]);
    data.push(0);
    out.attribute(NFTA_RULE_USERDATA, &data);
}

#[cfg(test)]
mod tests;
