//! From a query's bytes to an answer's, for names of our own: no waiting, no lock, no allocation in the usual case.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smallvec::SmallVec;

use crate::{
    Asker, Found, Record, Services,
    asker::reversed,
    wire::{self, Code, Owner, Query, Response, Unusable, kind},
};

/// How names of ours are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Seconds that a client may keep an answer.
    pub ttl: u32,
    pub compat: Compat,
}

/// Whose habits to keep where ours differ from Docker's; TESTING.md has the table of differences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compat {
    #[default]
    Swarmesh,
    Docker,
}

/// Docker's TTL, which outlives most tasks' addresses in caches that believe it.
const DOCKER_TTL: u32 = 600;

impl Default for Settings {
    fn default() -> Self {
        Self { ttl: 5, compat: Compat::Swarmesh }
    }
}

impl Settings {
    fn ttl(self) -> u32 {
        match self.compat {
            Compat::Swarmesh => self.ttl,
            Compat::Docker => DOCKER_TTL,
        }
    }

    fn is_docker(self) -> bool {
        self.compat == Compat::Docker
    }
}

/// What became of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered with that many bytes.
    Answered(usize, Answer),
    /// Not one of ours: to be asked upstream.
    Forward,
    /// Nothing to answer to.
    Ignored,
}

/// Kinds of answers, for the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Answer {
    /// With records.
    Records,
    /// The name is ours and has none of the type.
    NoData,
    /// A service without such a port, and alike.
    NoName,
    /// A code for a query that cannot be answered.
    Error(ErrorKind),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErrorKind {
    Format,
    NotImplemented,
    Refused,
    Failed,
}

/// A small generator (xorshift64*): the order of answers is no secret.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        ((high * bound as u64) >> 32) as usize
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// Answers `bytes` for `asker` if that needs nobody else. `limit` is what the transport carries; over UDP the query's own
/// limit counts as well.
pub fn respond(bytes: &[u8], asker: &Asker, settings: Settings, is_udp: bool, random: &mut Random, out: &mut [u8]) -> Outcome {
    let query = match Query::parse(bytes) {
        Ok(query) => query,
        Err(Unusable::Silent) => return Outcome::Ignored,
        Err(Unusable::Code(code)) => {
            let error = if code == Code::NotImp { ErrorKind::NotImplemented } else { ErrorKind::Format };
            return Outcome::Answered(wire::refusal(bytes, code, out), Answer::Error(error));
        }
    };
    let limit = if is_udp { query.udp_limit() } else { out.len() };
    let mut reply = Reply { query: &query, settings, limit, out };
    // RFC 6891, section 6.1.3: the OPT record then says BADVERS.
    if query.edns.is_some_and(|edns| edns.version > 0) {
        return reply.empty(Code::NoError, Answer::Error(ErrorKind::Format));
    }
    if !query.is_internet() {
        return reply.empty(Code::Refused, Answer::Error(ErrorKind::Refused));
    }
    let Some(name) = query.name() else { return Outcome::Forward };
    if let Some(address) = reversed(name) {
        return reply.reverse(asker, address);
    }
    if let Some((port, protocol, name)) = service_name(name)
        && !settings.is_docker()
    {
        return asker.find(name, |found| reply.services(found, port, protocol)).unwrap_or(Outcome::Forward);
    }
    asker.find(name, |found| reply.addresses(found, random)).unwrap_or(Outcome::Forward)
}

/// What a client would be told, for people: the answer is made by [`respond`] and read back.
pub fn answers(asker: &Asker, name: &str, kind: u16) -> Vec<String> {
    let mut out = vec![0; usize::from(u16::MAX)];
    let Some(query) = wire::question(name, kind) else { return Vec::new() };
    match respond(&query, asker, Settings::default(), false, &mut Random::new(1), &mut out) {
        Outcome::Answered(len, _) => wire::answers(&out[..len]),
        Outcome::Forward | Outcome::Ignored => Vec::new(),
    }
}

/// `_http._tcp.web` or, for all ports of a protocol, `_tcp.web`: port's name, protocol, and whose it is.
fn service_name(name: &str) -> Option<(Option<&str>, &str, &str)> {
    let protocol = |label: &str| matches!(label, "_tcp" | "_udp" | "_sctp");
    let (first, rest) = name.split_once('.')?;
    if protocol(first) {
        return Some((None, &first[1..], rest));
    }
    let (second, name) = rest.split_once('.')?;
    (first.len() > 1 && first.starts_with('_') && protocol(second)).then(|| (Some(&first[1..]), &second[1..], name))
}

/// One answer in the making.
struct Reply<'r> {
    query: &'r Query<'r>,
    settings: Settings,
    limit: usize,
    out: &'r mut [u8],
}

impl Reply<'_> {
    fn response(&mut self, code: Code) -> Response<'_> {
        Response::new(self.query, code, !self.settings.is_docker(), self.limit, self.out)
    }

    fn empty(&mut self, code: Code, answer: Answer) -> Outcome {
        Outcome::Answered(self.response(code).finish(), answer)
    }

    fn negative(&mut self, code: Code, answer: Answer) -> Outcome {
        let (ttl, with_soa) = (self.settings.ttl(), !self.settings.is_docker());
        let mut response = self.response(code);
        if with_soa {
            response.soa(ttl);
        }
        Outcome::Answered(response.finish(), answer)
    }

    /// The name is ours and has nothing of this type. Never asked upstream, where somebody else might know it.
    fn no_data(&mut self) -> Outcome {
        self.negative(Code::NoError, Answer::NoData)
    }

    fn addresses(&mut self, found: &Found<'_>, random: &mut Random) -> Outcome {
        let kind = self.query.kind;
        if self.settings.is_docker() {
            let is_empty = found.records.iter().all(|(_, r)| r.addresses.is_empty());
            if is_empty || !matches!(kind, kind::A | kind::AAAA | kind::MX) {
                return Outcome::Forward;
            }
        }
        let any = kind == kind::ANY;
        let mut v4 = SmallVec::<[Ipv4Addr; 64]>::new();
        let mut v6 = SmallVec::<[Ipv6Addr; 16]>::new();
        if any || kind == kind::A {
            merge(&mut v4, found.records.iter().map(|(_, record)| record.v4()));
            random.shuffle(&mut v4);
        }
        if any || kind == kind::AAAA {
            merge(&mut v6, found.records.iter().map(|(_, record)| record.v6()));
            random.shuffle(&mut v6);
        }
        if v4.is_empty() && v6.is_empty() {
            return self.no_data();
        }
        let ttl = self.settings.ttl();
        let mut response = self.response(Code::NoError);
        // The first that does not fit ends it.
        let _ = v4.iter().all(|address| response.a(Owner::Question, ttl, *address))
            && v6.iter().all(|address| response.aaaa(Owner::Question, ttl, *address));
        Outcome::Answered(response.finish(), Answer::Records)
    }

    fn reverse(&mut self, asker: &Asker, address: IpAddr) -> Outcome {
        let answer = asker.find_address(address, |network, name| {
            if self.query.kind != kind::PTR && self.query.kind != kind::ANY {
                return if self.settings.is_docker() { Outcome::Forward } else { self.no_data() };
            }
            let ttl = self.settings.ttl();
            let mut response = self.response(Code::NoError);
            if response.ptr(ttl, &[name, &network.title]) {
                return Outcome::Answered(response.finish(), Answer::Records);
            }
            // A name that DNS cannot write, such as one with a label of 64 characters.
            self.empty(Code::ServFail, Answer::Error(ErrorKind::Failed))
        });
        answer.unwrap_or(Outcome::Forward)
    }

    fn services(&mut self, found: &Found<'_>, wanted: Option<&str>, protocol: &str) -> Outcome {
        let ttl = self.settings.ttl();
        let all = || found.records.iter().filter_map(|(_, record)| Some((record, record.services.as_deref()?)));
        let matching = |services: &Services| {
            let ports =
                services.ports.iter().filter(|p| p.protocol == protocol && wanted.is_none_or(|w| *p.name == *w || is_number(w, p.port)));
            ports.map(|p| p.port).collect::<SmallVec<[u16; 8]>>()
        };
        if all().all(|(_, services)| matching(services).is_empty()) {
            return self.negative(Code::NxDomain, Answer::NoName);
        }
        let serves = |record: &Record, services: &Services| match &services.hosts {
            Some(hosts) => !hosts.is_empty(),
            None => !record.addresses.is_empty(),
        };
        let is_asked = matches!(self.query.kind, kind::SRV | kind::ANY);
        if !is_asked || !all().any(|(record, services)| serves(record, services)) {
            return self.no_data();
        }
        let title = &*found.network.title;
        let mut response = self.response(Code::NoError);
        for (_, services) in all().filter(|(record, services)| serves(record, services)) {
            for port in matching(services) {
                match &services.hosts {
                    None => _ = response.srv(ttl, port, &[found.name, title]),
                    Some(hosts) => hosts.iter().for_each(|host| _ = response.srv(ttl, port, &[&host.name, title])),
                }
            }
        }
        // What the client would ask next.
        for (record, services) in all() {
            if services.hosts.is_none() {
                let owner = [found.name, title];
                record.v4().for_each(|a| _ = response.a(Owner::Named(&owner), ttl, a));
                record.v6().for_each(|a| _ = response.aaaa(Owner::Named(&owner), ttl, a));
            }
            for host in services.hosts.iter().flatten() {
                let owner = [&*host.name, title];
                match host.address {
                    IpAddr::V4(a) => response.a(Owner::Named(&owner), ttl, a),
                    IpAddr::V6(a) => response.aaaa(Owner::Named(&owner), ttl, a),
                };
            }
        }
        Outcome::Answered(response.finish(), Answer::Records)
    }
}

fn is_number(text: &str, port: u16) -> bool {
    text.parse() == Ok(port)
}

/// Each address once. One owner's addresses are different already.
fn merge<T: PartialEq, const N: usize>(into: &mut SmallVec<[T; N]>, mut lists: impl Iterator<Item = impl Iterator<Item = T>>)
where
    [T; N]: smallvec::Array<Item = T>,
{
    into.extend(lists.next().into_iter().flatten());
    for list in lists {
        for item in list {
            if !into.contains(&item) {
                into.push(item);
            }
        }
    }
}

#[cfg(test)]
mod tests;
