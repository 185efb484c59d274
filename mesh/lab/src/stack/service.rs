//! One service of the file.

use std::time::Duration;

use super::{
    DnsSpec, HealthTest, Healthcheck, NetworkUse, STACK_LABEL, ServiceSpec, deploy, keys,
    ports::{self, PortAt},
    scalar,
    tree::shown,
    value::{Read, Value},
};

/// A service and where the file has its parts.
pub(super) struct ServiceAt<'a> {
    pub(super) name: String,
    pub(super) at: Value<'a>,
    /// Network uses here are by the file's keys.
    pub(super) spec: ServiceSpec,
    pub(super) networks: Vec<(NetworkUse, Value<'a>)>,
    pub(super) ports: Vec<PortAt<'a>>,
}

/// swarmkit's limit: a service's name is a DNS label.
const LONGEST_NAME: usize = 63;
const LONGEST_ALIAS: usize = 253;

pub(super) fn service<'a>(name: &str, at: Value<'a>, value: &Value<'a>, stack: &str) -> Read<ServiceAt<'a>> {
    let full = format!("{stack}_{name}");
    if !is_dns_label(name) {
        return Err(at.fail(format!("{:?} is not a service's name; use letters, digits, - and _", shown(name))));
    }
    if full.len() > LONGEST_NAME {
        return Err(at.fail(format!(
            "the service's full name {} has {} characters; at most {LONGEST_NAME} work",
            shown(&full),
            full.len()
        )));
    }
    if value.is_null() {
        return Err(at.fail("the service has no image"));
    }
    let fields = value.fields(keys::SERVICE, keys::SERVICE_IGNORED)?;
    let image = fields.get("image").ok_or_else(|| at.fail("the service has no image"))?;
    let mut spec = ServiceSpec::new(full, image.full_text()?);
    if spec.image.contains(char::is_whitespace) {
        return Err(image.fail(format!("{:?} is not the name of an image", shown(&spec.image))));
    }
    spec.command = fields.read("command", Vec::new(), Value::words)?;
    spec.entrypoint = fields.optional("entrypoint", Value::words)?;
    spec.hostname = fields.optional("hostname", |v| scalar::hostname(&v.full_text()?).map_err(|m| v.fail(m)))?;
    spec.dns = DnsSpec {
        servers: fields.read("dns", Vec::new(), |v| each(v, scalar::address))?,
        search: fields.read("dns_search", Vec::new(), |v| each(v, scalar::search_domain))?,
        options: fields.read("dns_opt", Vec::new(), |v| each(v, scalar::resolver_option))?,
    };
    if let Some(options) = fields.get("dns_opt") {
        options.note("docker stack deploy does not take this key; on a swarm, use docker service update --dns-option-add");
    }
    spec.environment = fields.read("environment", spec.environment, Value::environment)?;
    spec.container_labels = fields.read("labels", spec.container_labels, Value::labels)?;
    spec.healthcheck = fields.optional("healthcheck", healthcheck)?;
    spec.stop_grace = fields.read("stop_grace_period", spec.stop_grace, Value::duration)?;
    spec.stop_signal = fields.read("stop_signal", spec.stop_signal, |v| scalar::signal(&v.full_text()?).map_err(|m| v.fail(m)))?;
    let deploy = fields.read("deploy", deploy::Deploy::default(), deploy::deploy)?;
    spec.mode = deploy.mode;
    spec.endpoint_mode = deploy.endpoint_mode;
    spec.labels = deploy.labels;
    spec.update = deploy.update;
    spec.rollback = deploy.rollback;
    spec.restart = deploy.restart;
    spec.placement = deploy.placement;
    spec.labels.insert(STACK_LABEL.to_owned(), stack.to_owned());
    spec.container_labels.insert(STACK_LABEL.to_owned(), stack.to_owned());
    if let Some(mode) = fields.get("network_mode") {
        mode.note("network_mode does not exist for swarm services; name the network under networks");
    }
    let networks = fields.read("networks", Vec::new(), networks)?;
    let ports = fields.read("ports", Vec::new(), ports::ports)?;
    spec.ports = ports.iter().map(|p| p.port.clone()).collect();
    Ok(ServiceAt { name: name.to_owned(), at, spec, networks, ports })
}

pub(super) fn is_dns_label(name: &str) -> bool {
    name.len() <= LONGEST_NAME
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.ends_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

/// One value, or a list of them.
fn each<T>(value: &Value<'_>, read: impl Fn(&str) -> Result<T, String>) -> Read<Vec<T>> {
    let items = if value.is_list() { value.list()? } else { vec![value.clone()] };
    items.iter().map(|item| read(&item.full_text()?).map_err(|message| item.fail(message))).collect()
}

fn networks<'a>(value: &Value<'a>) -> Read<Vec<(NetworkUse, Value<'a>)>> {
    let mut uses: Vec<(NetworkUse, Value<'a>)> = Vec::new();
    if value.is_list() {
        for item in value.list()? {
            let network = item.full_text()?;
            if uses.iter().any(|(u, _)| u.network == network) {
                return Err(item.fail(format!("network {} is listed twice", shown(&network))));
            }
            uses.push((NetworkUse { network, aliases: Vec::new() }, item));
        }
        return Ok(uses);
    }
    for (network, key, value) in value.named()? {
        let mut aliases = Vec::new();
        if !value.is_null() {
            let fields = value.fields(keys::SERVICE_NETWORK, keys::SERVICE_NETWORK_IGNORED)?;
            for address in ["ipv4_address", "ipv6_address"].iter().filter_map(|k| fields.get(k)) {
                address.note("a service's tasks share no fixed address; the swarm allocates one each");
            }
            for alias in fields.get("aliases").map_or(Ok(Vec::new()), |v| v.list())? {
                let name = alias.full_text()?;
                if name.len() > LONGEST_ALIAS || !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
                    return Err(alias.fail(format!("{:?} is not a name that can be looked up", shown(&name))));
                }
                if !aliases.contains(&name) {
                    aliases.push(name);
                }
            }
        }
        uses.push((NetworkUse { network, aliases }, key));
    }
    Ok(uses)
}

fn healthcheck(value: &Value<'_>) -> Read<Healthcheck> {
    let fields = value.fields(keys::HEALTHCHECK, keys::HEALTHCHECK_IGNORED)?;
    let disabled = fields.read("disable", false, Value::boolean)?;
    let test = match fields.get("test") {
        Some(test) if disabled => return Err(test.fail("a check that is switched off (disable) has no test")),
        Some(test) => health_test(&test)?,
        None if disabled => HealthTest::None,
        None => HealthTest::Image,
    };
    // Zero means the default, as in Docker.
    let time = |key: &str, default: u64| {
        let read = fields.read(key, Duration::ZERO, Value::duration)?;
        Ok(if read.is_zero() { Duration::from_secs(default) } else { read })
    };
    let retries = fields.read("retries", 0, |v| v.number("a number of retries", 0, 10_000))?;
    Ok(Healthcheck {
        test,
        interval: time("interval", 30)?,
        timeout: time("timeout", 30)?,
        retries: u32::try_from(retries).ok().filter(|r| *r > 0).unwrap_or(3),
        start_period: fields.read("start_period", Duration::ZERO, Value::duration)?,
    })
}

fn health_test(value: &Value<'_>) -> Read<HealthTest> {
    if !value.is_list() {
        return Ok(HealthTest::Shell(value.full_text()?));
    }
    let words: Vec<String> = value.list()?.iter().map(Value::text).collect::<Read<_>>()?;
    match words.split_first() {
        None => Ok(HealthTest::Image),
        Some((kind, [])) if kind == "NONE" => Ok(HealthTest::None),
        Some((kind, command)) if kind == "CMD" && !command.is_empty() => Ok(HealthTest::Command(command.to_vec())),
        Some((kind, [command])) if kind == "CMD-SHELL" => Ok(HealthTest::Shell(command.clone())),
        Some((kind, _)) if kind == "CMD" || kind == "CMD-SHELL" => {
            Err(value.fail(format!("{kind} takes {}", if kind == "CMD" { "a command and its arguments" } else { "one command line" })))
        }
        Some((kind, _)) => Err(value.fail(format!("a test begins with CMD, CMD-SHELL or NONE, not {:?}", shown(kind)))),
    }
}
