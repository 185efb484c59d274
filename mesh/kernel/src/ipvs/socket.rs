//! The socket: requests out, answers in.

use neli::{
    consts::genl::{CtrlAttr, CtrlCmd},
    genl::{Genlmsghdr, GenlmsghdrBuilder},
    types::GenlBuffer,
};
use netlink_sys::protocols::NETLINK_GENERIC;
use nix::libc;

use super::{
    IpvsInfo, IpvsOp, IpvsTimeouts, RealState, VirtualId, VirtualState,
    codes::{Command, FAMILY},
    decode, encode,
};
use crate::{
    KernelError, Netns,
    netlink::{ACK, Answer, Message, MessageBuffer, NetlinkSocket, REQUEST, messages},
};

/// The family that knows the numbers of the others: `GENL_ID_CTRL`.
const CONTROL: u16 = libc::GENL_ID_CTRL as u16;
/// `genlctrl_init` in `net/netlink/genetlink.c` has had 2 since it counts.
const CONTROL_VERSION: u8 = 2;
/// Requests sent in one go. If all of them are refused, all refusals must fit the socket's receive buffer.
const AT_ONCE: usize = 64;

/// One for each request.
type Results = Vec<Result<(), KernelError>>;

/// A socket for IPVS of the namespace that it was opened in, from whatever thread.
#[derive(Debug)]
pub struct IpvsSocket {
    netlink: NetlinkSocket,
    family: u16,
}

impl IpvsSocket {
    /// Opens a socket in `ns`. The kernel loads the module `ip_vs` if it is there; [`KernelError::NotSupported`] if it is not.
    pub fn open(ns: &Netns) -> Result<Self, KernelError> {
        let mut netlink = NetlinkSocket::open(ns, NETLINK_GENERIC, "generic")?;
        let family = family(&mut netlink)?;
        Ok(Self { netlink, family })
    }

    /// Does each of `ops`, in order, many with one system call. There is a result for each: IPVS knows no transactions.
    ///
    /// Only the last request of a call asks for an acknowledgement; a refusal comes in any case. An error of the whole leaves open what
    /// was done: read the state again.
    pub fn apply(&mut self, ops: &[IpvsOp]) -> Result<Vec<Result<(), KernelError>>, KernelError> {
        let mut results = Vec::with_capacity(ops.len());
        for ops in ops.chunks(AT_ONCE) {
            results.extend(self.apply_at_once(ops)?);
        }
        Ok(results)
    }

    fn apply_at_once(&mut self, ops: &[IpvsOp]) -> Result<Results, KernelError> {
        let action = format!("make {} changes to IPVS", ops.len());
        let first = self.netlink.reserve(ops.len() as u32);
        let (bytes, mut results) = batch(ops, self.family, first, &action)?;
        let Some(last) = results.iter().rposition(Result::is_ok) else { return Ok(results) };
        self.netlink.send(&bytes, &action)?;
        loop {
            let bytes = self.netlink.receive(true).map_err(|errno| KernelError::from_errno(&action, errno as i32))?.unwrap_or_default();
            if settle(messages(bytes), ops, first, last, &mut results) {
                return Ok(results);
            }
        }
    }

    /// All virtual servers of the namespace, in no order.
    pub fn virtual_servers(&mut self) -> Result<Vec<VirtualState>, KernelError> {
        self.list("list the virtual servers", encode::request(Command::GetService, Vec::new()), decode::virtual_state)
    }

    /// All real servers of a virtual one, in no order. None if there is no such virtual server: the kernel makes no difference.
    pub fn real_servers(&mut self, of: &VirtualId) -> Result<Vec<RealState>, KernelError> {
        self.list(&format!("list the real servers of {of}"), encode::list_real(of), |payload| decode::real_state(payload, of))
    }

    /// Version and size.
    pub fn info(&mut self) -> Result<IpvsInfo, KernelError> {
        self.read("read the version of IPVS", encode::request(Command::GetInfo, Vec::new()), decode::info)
    }

    /// The namespace's timeouts.
    pub fn timeouts(&mut self) -> Result<IpvsTimeouts, KernelError> {
        self.read("read the timeouts of IPVS", encode::request(Command::GetConfig, Vec::new()), decode::timeouts)
    }

    fn list<T>(
        &mut self,
        action: &str,
        request: Result<encode::Request, String>,
        decode: impl Fn(&[u8]) -> Result<Option<T>, String>,
    ) -> Result<Vec<T>, KernelError> {
        let body = body(request).map_err(|why| KernelError::protocol(action, why))?;
        self.netlink.dump(
            action,
            self.family,
            |out| out.raw(&body),
            |message, found| {
                found.extend(decode(message.payload).map_err(|why| KernelError::protocol(action, why))?);
                Ok(())
            },
        )
    }

    fn read<T>(
        &mut self,
        action: &str,
        request: Result<encode::Request, String>,
        decode: impl Fn(&[u8]) -> Result<Option<T>, String>,
    ) -> Result<T, KernelError> {
        let body = body(request).map_err(|why| KernelError::protocol(action, why))?;
        let mut found = None;
        self.netlink.request(
            action,
            self.family,
            0,
            |out| out.raw(&body),
            |message| {
                found = decode(message.payload).map_err(|why| KernelError::protocol(action, why))?.or(found.take());
                Ok(())
            },
        )?;
        found.ok_or_else(|| KernelError::protocol(action, "there was no answer before the acknowledgement"))
    }
}

fn body(request: Result<encode::Request, String>) -> Result<Vec<u8>, String> {
    encode::bytes(&request?)
}

/// The messages of those that can be written, with a sequence number for each from `first` on, and a result for each: an error
/// for those that cannot.
pub(super) fn batch(ops: &[IpvsOp], family: u16, first: u32, action: &str) -> Result<(Vec<u8>, Results), KernelError> {
    let bodies: Vec<Result<Vec<u8>, String>> = ops.iter().map(|op| body(encode::op(op))).collect();
    let last = bodies.iter().rposition(Result::is_ok);
    let mut out = MessageBuffer::default();
    let mut results = Vec::with_capacity(ops.len());
    for ((index, body), op) in bodies.into_iter().enumerate().zip(ops) {
        results.push(match body {
            Ok(body) => {
                let flags = REQUEST | if Some(index) == last { ACK } else { 0 };
                out.message(family, flags, first + index as u32, |out| out.raw(&body));
                Ok(())
            }
            Err(why) => Err(KernelError::protocol(op.to_string(), why)),
        });
    }
    Ok((out.finish(action)?, results))
}

/// Enters refusals by their sequence number. True when the last one is answered: the kernel works in order, so all are.
pub(super) fn settle<'a>(
    answers: impl Iterator<Item = Message<'a>>,
    ops: &[IpvsOp],
    first: u32,
    last: usize,
    results: &mut [Result<(), KernelError>],
) -> bool {
    let mut done = false;
    for message in answers.filter(|message| i32::from(message.kind) == libc::NLMSG_ERROR) {
        // Answers to what was asked before, and given up, may still be queued.
        let Some(index) = message.sequence.checked_sub(first).map(|index| index as usize).filter(|index| *index <= last) else { continue };
        let answer = Answer::parse(&message);
        if let (Some(op), Some(result), true) = (ops.get(index), results.get_mut(index), answer.errno != 0) {
            *result = Err(op.refusal(answer));
        }
        done |= index == last;
    }
    done
}

/// The number of IPVS among the generic families. Asking for it makes the kernel look for the module.
fn family(netlink: &mut NetlinkSocket) -> Result<u16, KernelError> {
    let action = "use IPVS";
    let request = || -> Result<Vec<u8>, String> {
        let attributes = [encode::attribute(CtrlAttr::FamilyName, FAMILY)?].into_iter().collect::<GenlBuffer<_, _>>();
        let request: Genlmsghdr<CtrlCmd, CtrlAttr> = GenlmsghdrBuilder::default()
            .cmd(CtrlCmd::Getfamily)
            .version(CONTROL_VERSION)
            .attrs(attributes)
            .build()
            .map_err(|error| error.to_string())?;
        encode::bytes(&request)
    };
    let body = request().map_err(|why| KernelError::protocol(action, why))?;
    let mut family = None;
    let asked = netlink.request(
        action,
        CONTROL,
        0,
        |out| out.raw(&body),
        |message| {
            let answer: Genlmsghdr<CtrlCmd, CtrlAttr> =
                decode::message(message.payload).map_err(|why| KernelError::protocol(action, why))?;
            family = answer.attrs().get_attr_handle().get_attr_payload_as::<u16>(CtrlAttr::FamilyId).ok().or(family);
            Ok(())
        },
    );
    match asked {
        Err(KernelError::NotFound { .. }) => {
            Err(KernelError::NotSupported { action: action.to_owned(), detail: "no module ip_vs".to_owned() })
        }
        Err(error) => Err(error),
        Ok(()) => family.ok_or_else(|| KernelError::protocol(action, "the kernel told no number for it")),
    }
}
