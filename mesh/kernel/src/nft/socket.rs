//! One persistent nf_tables socket.

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::{
    errno::Errno,
    libc,
    sys::socket::{setsockopt, sockopt},
};

use super::{
    Element, Family, NftOp,
    batch::Batch,
    codes::{
        NFT_MSG_GETCHAIN, NFT_MSG_GETGEN, NFT_MSG_GETRULE, NFT_MSG_GETSETELEM, NFT_MSG_GETTABLE, NFT_MSG_NEWCHAIN, NFT_MSG_NEWGEN,
        NFT_MSG_NEWTABLE, NFTA_GEN_ID, NFTA_RULE_CHAIN, NFTA_RULE_TABLE, NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_TABLE, NFTA_TABLE_NAME,
        family_number, message_type,
    },
    parse,
};
use crate::{
    KernelError, Netns,
    netlink::{Answer, NetlinkSocket, attribute, messages, u32_be},
};

/// Room for the answers to a batch in which everything is refused; the first refusal is what counts, and it comes first.
const RECEIVE_BUFFER: usize = 4 << 20;
/// What the kernel keeps of the send buffer for itself, generously.
const SEND_OVERHEAD: usize = 64 * 1024;

/// A socket for reading and changing nftables in the namespace it was opened in, from whatever thread.
///
/// Keep it: closing an nfnetlink socket waits for an RCU grace period, some 10 ms.
#[derive(Debug)]
pub struct NftSocket {
    netlink: NetlinkSocket,
    send_buffer: usize,
}

impl NftSocket {
    /// Opens a socket in `ns`. Needs CAP_NET_ADMIN in the user namespace that owns `ns`.
    pub fn open(ns: &Netns) -> Result<Self, KernelError> {
        let netlink = NetlinkSocket::open(ns, NETLINK_NETFILTER, "nftables")?;
        setsockopt(netlink.socket(), sockopt::RcvBufForce, &RECEIVE_BUFFER)
            .map_err(|errno| KernelError::from_errno("raise the receive buffer of the nftables socket", errno as i32))?;
        Ok(Self { netlink, send_buffer: 0 })
    }

    /// The netlink port id, which notifications of this socket's changes carry.
    pub fn port_id(&self) -> u32 {
        self.netlink.port()
    }

    /// Commits all of `ops`, or none of them. The error names the operation that the kernel refused first.
    ///
    /// A batch is one `sendmsg`, however large: nfnetlink starts a transaction per call (`nfnetlink_rcv_batch`). An element
    /// that is deleted and added with other data in one commit is at no moment absent for packets.
    pub fn commit(&mut self, ops: &[NftOp]) -> Result<(), KernelError> {
        if ops.is_empty() {
            return Ok(());
        }
        let action = format!("commit {} changes to nftables", ops.len());
        let begin = self.netlink.reserve(Batch::sequences(ops.len()));
        let mut batch = Batch::encode(ops, begin);
        let bytes = std::mem::take(&mut batch.buffer).finish(&action)?;
        self.ensure_send_buffer(bytes.len() + SEND_OVERHEAD)?;
        self.netlink.send(&bytes, &action)?;
        self.verdict(ops, &batch, begin, &action)
    }

    /// Reads until the acknowledgement or the first refusal, and then empties the socket.
    ///
    /// nfnetlink sends the refusals in the order of the operations, and each but the last operation only if it is refused.
    fn verdict(&mut self, ops: &[NftOp], batch: &Batch, begin: u32, action: &str) -> Result<(), KernelError> {
        let mut result = None;
        let mut overrun = false;
        loop {
            let bytes = match self.netlink.receive(result.is_none() && !overrun) {
                Ok(Some(bytes)) => bytes,
                Ok(None) => break,
                // More refusals than fit; the first ones are queued all the same.
                Err(Errno::ENOBUFS) => {
                    overrun = true;
                    continue;
                }
                Err(errno) => return Err(KernelError::from_errno(action, errno as i32)),
            };
            for message in messages(bytes).filter(|message| message.sequence >= begin && i32::from(message.kind) == libc::NLMSG_ERROR) {
                let answer = Answer::parse(&message);
                if answer.errno != 0 && !matches!(result, Some(Err(_))) {
                    result = Some(Err(batch.refusal(ops, message.sequence, answer)));
                } else if message.sequence == batch.last() && result.is_none() {
                    result = Some(Ok(()));
                }
            }
        }
        result.unwrap_or_else(|| Err(KernelError::NoBuffer { action: action.to_owned() }))
    }

    fn ensure_send_buffer(&mut self, wanted: usize) -> Result<(), KernelError> {
        if wanted > self.send_buffer {
            setsockopt(self.netlink.socket(), sockopt::SndBufForce, &wanted)
                .map_err(|errno| KernelError::from_errno("raise the send buffer of the nftables socket", errno as i32))?;
            self.send_buffer = wanted;
        }
        Ok(())
    }

    /// Generation of the namespace's rule set: it changes with every commit, whoever makes it.
    pub fn generation(&mut self) -> Result<u32, KernelError> {
        let action = "read the nftables generation";
        let mut generation = None;
        self.netlink.request(
            action,
            message_type(NFT_MSG_GETGEN),
            0,
            |out| out.netfilter_header(0, 0),
            |message| {
                if message.kind == message_type(NFT_MSG_NEWGEN) {
                    generation = message.payload.get(4..).and_then(|body| u32_be(attribute(body, NFTA_GEN_ID)?));
                }
                Ok(())
            },
        )?;
        generation.ok_or_else(|| KernelError::protocol(action, "the answer has no generation"))
    }

    /// All elements of a set or map, in no order. [`KernelError::NotFound`] if there is no such set.
    pub fn elements(&mut self, family: Family, table: &str, set: &str) -> Result<Vec<Element>, KernelError> {
        let action = format!("read the elements of {family} {table} {set}");
        self.netlink.dump(
            &action,
            message_type(NFT_MSG_GETSETELEM),
            |out| {
                out.netfilter_header(family_number(family), 0);
                out.attribute_str(NFTA_SET_ELEM_LIST_TABLE, table);
                out.attribute_str(NFTA_SET_ELEM_LIST_SET, set);
            },
            |message, found| {
                let sound = parse::elements(message, found);
                if sound { Ok(()) } else { Err(KernelError::protocol(&action, "an element of the answer has no key")) }
            },
        )
    }

    /// Names of all chains of a table, base chains too. [`KernelError::NotFound`] if there is no such table.
    pub fn chains(&mut self, family: Family, table: &str) -> Result<Vec<String>, KernelError> {
        let action = format!("read the chains of table {family} {table}");
        self.netlink.request(
            &action,
            message_type(NFT_MSG_GETTABLE),
            0,
            |out| {
                out.netfilter_header(family_number(family), 0);
                out.attribute_str(NFTA_TABLE_NAME, table);
            },
            |_| Ok(()),
        )?;
        self.netlink.dump(
            &action,
            message_type(NFT_MSG_GETCHAIN),
            |out| out.netfilter_header(family_number(family), 0),
            |message, found| {
                // The kernel dumps the chains of every table of the family.
                if message.kind == message_type(NFT_MSG_NEWCHAIN)
                    && let Some((_, owner, chain)) = parse::chain(message)
                    && owner == table
                {
                    found.push(chain);
                }
                Ok(())
            },
        )
    }

    /// All tables of the families that this crate works with.
    pub fn tables(&mut self) -> Result<Vec<(Family, String)>, KernelError> {
        self.netlink.dump(
            "read the nftables tables",
            message_type(NFT_MSG_GETTABLE),
            |out| out.netfilter_header(0, 0),
            |message, found| {
                if message.kind == message_type(NFT_MSG_NEWTABLE) {
                    found.extend(parse::table(message));
                }
                Ok(())
            },
        )
    }

    /// How many rules a chain has; zero if it is not there.
    pub fn rules_count(&mut self, family: Family, table: &str, chain: &str) -> Result<usize, KernelError> {
        let action = format!("count the rules of {family} {table} {chain}");
        let rules = self.netlink.dump(
            &action,
            message_type(NFT_MSG_GETRULE),
            |out| {
                out.netfilter_header(family_number(family), 0);
                out.attribute_str(NFTA_RULE_TABLE, table);
                out.attribute_str(NFTA_RULE_CHAIN, chain);
            },
            |message, found| {
                // Older kernels ignore one or both of the names.
                if let Some((_, body)) = parse::netfilter(message)
                    && attribute(body, NFTA_RULE_TABLE).map(crate::netlink::text).as_deref() == Some(table)
                    && attribute(body, NFTA_RULE_CHAIN).map(crate::netlink::text).as_deref() == Some(chain)
                {
                    found.push(());
                }
                Ok(())
            },
        );
        match rules {
            Ok(rules) => Ok(rules.len()),
            Err(KernelError::NotFound { .. }) => Ok(0),
            Err(error) => Err(error),
        }
    }
}
