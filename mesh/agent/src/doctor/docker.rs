//! Docker: reachable, in a swarm, and how it has laid out its rules.

use std::{
    io::{self, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    os::unix::net::UnixStream,
    time::Duration,
};

use serde_json::Value;
use swarmesh_model::HostLayout;

use super::{Finding, Subject, tools::run};

const PATIENCE: Duration = Duration::from_secs(5);
const LARGEST: u64 = 16 * 1024 * 1024;

pub(super) fn docker(subject: &Subject) -> Vec<Finding> {
    let mut findings = vec![layout_by_rules()];
    let Some(url) = &subject.docker else {
        findings.push(Finding::info("docker", "not asked: the source is not Docker"));
        return findings;
    };
    let version = match get(url, "/version") {
        Ok(version) => version,
        Err(error) => {
            findings.push(Finding::warning(
                "docker",
                format!("cannot ask Docker at {url}: {error}"),
                "start Docker, or name its socket with --source docker:URL; the agent waits for it",
            ));
            return findings;
        }
    };
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let release = text(&version["Version"]);
    findings.push(Finding::ok("docker", format!("{release}, API {}", text(&version["ApiVersion"]))));
    if let Some(layout) = HostLayout::of_release(&release) {
        let which = match layout {
            HostLayout::IngressChains => "up to 29.7: chain DOCKER-INGRESS",
            HostLayout::PortMappings => "29.8 and newer: ordinary port mappings",
        };
        findings.push(Finding::info("docker's rules, by version", which));
    }
    match get(url, "/info") {
        Ok(info) => findings.extend(swarm(&info["Swarm"])),
        Err(error) => findings.push(Finding::warning("swarm", format!("cannot ask Docker: {error}"), "see dockerd's log")),
    }
    match get(url, "/networks") {
        Ok(networks) => findings.push(ingress_network(&networks)),
        Err(error) => findings.push(Finding::warning("ingress network", format!("cannot ask Docker: {error}"), "see dockerd's log")),
    }
    findings
}

fn swarm(swarm: &Value) -> Vec<Finding> {
    let state = swarm["LocalNodeState"].as_str().unwrap_or("unknown");
    if state != "active" {
        return vec![Finding::warning(
            "swarm",
            format!("this engine is no active node of a swarm ({state})"),
            "docker swarm init, join or unlock",
        )];
    }
    let node = swarm["NodeID"].as_str().unwrap_or("?");
    let role = match swarm["ControlAvailable"].as_bool() {
        Some(true) => Finding::ok("role", "manager: knows the swarm's services"),
        _ => Finding::warning(
            "role",
            "worker: only managers know the swarm's services",
            "run the agent here with --source snapshot:FILE, or promote the node (docker node promote)",
        ),
    };
    vec![Finding::ok("swarm", format!("active, node {node}")), role]
}

fn ingress_network(networks: &Value) -> Finding {
    let check = "ingress network";
    let Some(network) = networks.as_array().into_iter().flatten().find(|n| n["Ingress"].as_bool() == Some(true)) else {
        return Finding::warning(
            check,
            "there is none, so no port can be published through ingress",
            "docker network create --driver overlay --ingress NAME",
        );
    };
    let name = network["Name"].as_str().unwrap_or("?");
    let configs = network["IPAM"]["Config"].as_array().cloned().unwrap_or_default();
    let subnets: Vec<&str> = configs.iter().filter_map(|c| c["Subnet"].as_str()).collect();
    let wide = subnets
        .iter()
        .find(|s| s.rsplit_once('/').is_some_and(|(net, size)| !net.contains(':') && size.parse::<u8>().is_ok_and(|n| n < 12)));
    match wide {
        Some(subnet) => Finding::critical(
            check,
            format!("{name} is {subnet}: entry nodes cannot be told apart in it"),
            "make it anew with a /12 or smaller",
        ),
        None => Finding::ok(check, format!("{name}, {}", subnets.join(", "))),
    }
}

fn layout_by_rules() -> Finding {
    let check = "docker's rules";
    let has = |chain: &str| run("iptables", &["-w", "5", "-t", "nat", "-S", chain], "").is_ok_and(|said| said.success);
    if has("DOCKER-INGRESS") {
        Finding::ok(check, "as up to 29.7: chain DOCKER-INGRESS is there")
    } else if has("DOCKER") {
        Finding::ok(check, "as from 29.8 on, or no port was ever published: there is no chain DOCKER-INGRESS")
    } else {
        Finding::info(check, "none: Docker has not set up iptables here")
    }
}

/// HTTP/1.0, so that the end of the answer is the end of the connection.
fn get(url: &str, path: &str) -> io::Result<Value> {
    let request = format!("GET {path} HTTP/1.0\r\nHost: docker\r\n\r\n");
    let answer = match url.split_once("://") {
        Some(("unix", socket)) => {
            let stream = UnixStream::connect(socket)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            exchange(stream, &request)?
        }
        Some((_, authority)) => {
            let address = authority.trim_end_matches('/').to_socket_addrs()?.next().ok_or(io::ErrorKind::NotFound)?;
            let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            exchange(stream, &request)?
        }
        None => return Err(io::ErrorKind::InvalidInput.into()),
    };
    parse(&answer)
}

fn exchange(mut stream: impl Read + Write, request: &str) -> io::Result<Vec<u8>> {
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(LARGEST).read_to_end(&mut answer)?;
    Ok(answer)
}

fn parse(answer: &[u8]) -> io::Result<Value> {
    let garbled = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").ok_or_else(|| garbled("this is not HTTP"))?;
    let status = String::from_utf8_lossy(answer.split(|b| *b == b'\r').next().unwrap_or_default()).into_owned();
    if status.split(' ').nth(1) != Some("200") {
        return Err(garbled(&format!("it says {status}")));
    }
    serde_json::from_slice(&answer[end + 4..]).map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::doctor::Level;

    #[test]
    fn answers_are_read() {
        assert_eq!(parse(b"HTTP/1.0 200 OK\r\nA: b\r\n\r\n{\"x\":1}").unwrap()["x"], 1);
        assert!(parse(b"HTTP/1.0 503 Not now\r\n\r\n{}").unwrap_err().to_string().contains("503 Not now"));
        assert!(parse(b"SSH-2.0").is_err());
    }

    #[test]
    fn a_worker_and_a_wide_ingress_network_are_found() {
        let worker = swarm(&json!({"LocalNodeState": "active", "NodeID": "n", "ControlAvailable": false}));
        assert_eq!(worker[1].level, Level::Warning);
        assert_eq!(swarm(&json!({"LocalNodeState": "inactive"}))[0].level, Level::Warning);
        let network = |subnet: &str| json!([{"Name": "ingress", "Ingress": true, "IPAM": {"Config": [{"Subnet": subnet}]}}]);
        assert_eq!(ingress_network(&network("10.0.0.0/24")).level, Level::Ok);
        assert_eq!(ingress_network(&network("10.0.0.0/8")).level, Level::Critical);
        assert_eq!(ingress_network(&json!([])).level, Level::Warning);
    }
}
