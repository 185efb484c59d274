//! `ports` of a service, in both spellings.

use std::net::IpAddr;

use swarmesh_model::{Port, Protocol, PublishMode};

use super::{
    keys,
    tree::shown,
    value::{Read, Value},
};

/// A port and where the file gives it.
pub(super) struct PortAt<'a> {
    pub(super) port: Port,
    pub(super) at: Value<'a>,
}

const PROTOCOLS: &[(&str, Protocol)] = &[("tcp", Protocol::Tcp), ("udp", Protocol::Udp), ("sctp", Protocol::Sctp)];

pub(super) fn ports<'a>(value: &Value<'a>) -> Read<Vec<PortAt<'a>>> {
    let mut ports: Vec<PortAt<'a>> = Vec::new();
    for item in value.list()? {
        let new = if item.is_scalar() { short(&item.full_text()?, &item).map_err(|m| item.fail(m))? } else { vec![long(&item)?] };
        for port in new {
            let twice = |other: &PortAt<'a>| {
                other.port.published_port.is_some()
                    && (other.port.published_port, other.port.protocol) == (port.published_port, port.protocol)
            };
            if ports.iter().any(twice) {
                let number = port.published_port.unwrap_or_default();
                return Err(item.fail(format!("{number}/{} is published twice by this service", port.protocol)));
            }
            ports.push(PortAt { port, at: item.clone() });
        }
    }
    Ok(ports)
}

/// `[address:][published:]target[/protocol]`, where each number may be a range.
fn short(text: &str, at: &Value<'_>) -> Result<Vec<Port>, String> {
    let (numbers, protocol) = match text.rsplit_once('/') {
        Some((numbers, protocol)) => (numbers, protocol_named(protocol)?),
        None => (text, Protocol::Tcp),
    };
    let (front, target) = numbers.rsplit_once(':').map_or((None, numbers), |(front, target)| (Some(front), target));
    let (address, published) = match front {
        None => (None, None),
        Some(front) => front.rsplit_once(':').map_or((None, Some(front)), |(address, published)| (Some(address), Some(published))),
    };
    if let Some(address) = address {
        at.note(bind_note(&address_of(address, text)?));
    }
    let targets = range(target)?;
    if targets.0 == 0 {
        return Err("0 is not a port; ports are 1 to 65535".to_owned());
    }
    let port = |target_port, published_port| Port { name: None, protocol, target_port, published_port, publish_mode: PublishMode::Ingress };
    let Some(published) = published.filter(|p| !p.is_empty()) else {
        return Ok((targets.0..=targets.1).map(|target| port(target, None)).collect());
    };
    let published = range(published)?;
    if published == (0, 0) {
        // As in Docker, 0 asks for any free port.
        return Ok((targets.0..=targets.1).map(|target| port(target, None)).collect());
    }
    if published.0 == 0 {
        return Err("0 is not a port; ports are 1 to 65535".to_owned());
    }
    let (many, few) = (published.1 - published.0, targets.1 - targets.0);
    match few {
        _ if many == few => Ok((published.0..=published.1).zip(targets.0..=targets.1).map(|(p, t)| port(t, Some(p))).collect()),
        // All of them lead to the one target.
        0 => Ok((published.0..=published.1).map(|p| port(targets.0, Some(p))).collect()),
        _ => Err(format!("{} published ports cannot lead to {} target ports", u32::from(many) + 1, u32::from(few) + 1)),
    }
}

fn long(value: &Value<'_>) -> Read<Port> {
    let fields = value.fields(keys::PORT, keys::PORT_IGNORED)?;
    let target = fields.get("target").ok_or_else(|| value.fail("a port needs a target"))?;
    let target_port = number(&target.text()?).map_err(|m| target.fail(m))?;
    if target_port == 0 {
        return Err(target.fail("0 is not a port; ports are 1 to 65535"));
    }
    let published_port = fields.optional("published", |v| number(&v.text()?).map_err(|m| v.fail(m)))?;
    if let Some(address) = fields.get("host_ip") {
        let text = address.text()?;
        address.note(bind_note(&address_of(&text, &text).map_err(|m| address.fail(m))?));
    }
    Ok(Port {
        name: fields.optional("name", Value::full_text)?,
        protocol: fields.read("protocol", Protocol::Tcp, |v| protocol_named(&v.text()?).map_err(|m| v.fail(m)))?,
        target_port,
        published_port: published_port.filter(|p| *p != 0),
        publish_mode: fields
            .read("mode", PublishMode::Ingress, |v| v.choice(&[("ingress", PublishMode::Ingress), ("host", PublishMode::Host)]))?,
    })
}

fn bind_note(address: &IpAddr) -> String {
    format!(
        "the address {address} is left out: swarm services publish on every address of a node; \
         the label swarmesh.bind on the service restricts them"
    )
}

fn address_of(address: &str, whole: &str) -> Result<IpAddr, String> {
    if let Some(inner) = address.strip_prefix('[') {
        let inner = inner.strip_suffix(']').ok_or_else(|| format!("{} has a bracket without its partner", shown(whole)))?;
        return inner.parse::<std::net::Ipv6Addr>().map(IpAddr::V6).map_err(|_| format!("{} is not an IPv6 address", shown(inner)));
    }
    match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(v4)) => Ok(IpAddr::V4(v4)),
        _ if address.contains(':') => Err(format!("{}: an IPv6 address stands in brackets, as in \"[::1]:8080:80\"", shown(whole))),
        Ok(IpAddr::V6(v6)) => Ok(IpAddr::V6(v6)),
        Err(_) => Err(format!("{} is not an IP address", shown(address))),
    }
}

fn protocol_named(text: &str) -> Result<Protocol, String> {
    let found = PROTOCOLS.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, protocol)| *protocol);
    found.ok_or_else(|| format!("{:?} is not a protocol; use tcp, udp or sctp", shown(text)))
}

fn number(text: &str) -> Result<u16, String> {
    if text.is_empty() {
        return Err("a port number is missing".to_owned());
    }
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("{:?} is not a port; ports are 1 to 65535", shown(text)));
    }
    text.parse().map_err(|_| format!("{} is not a port; ports are 1 to 65535", shown(text)))
}

fn range(text: &str) -> Result<(u16, u16), String> {
    let Some((first, last)) = text.split_once('-') else {
        let only = number(text)?;
        return Ok((only, only));
    };
    let (first, last) = (number(first)?, number(last)?);
    if last < first {
        return Err(format!("the range {first}-{last} runs backwards"));
    }
    Ok((first, last))
}
