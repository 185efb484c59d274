//! A lab's state as tables.

use std::{fmt::Write as _, net::IpAddr};

use swarmesh_model::{EndpointMode, Port, PublishMode};

use crate::runtime::{
    protocol::{AgentState, LabStatus, ServiceRow},
    supervisor::word,
};

/// What `lab status` prints.
pub fn render(status: &LabStatus) -> String {
    let mut text = format!(
        "lab {}: {}, snapshot version {}{}\n",
        status.name,
        word(&status.layout),
        status.version,
        if status.settled { "" } else { ", not settled" }
    );
    let mut nodes = Table::new(&["NODE", "STATE", "ROLE", "ADDRESS", "ADDRESS6", "INGRESS", "AGENT"]);
    for node in &status.nodes {
        let state = match (node.powered, node.up) {
            (true, true) => word(&node.availability),
            (false, true) => "off, not noticed yet".to_owned(),
            (true, false) => "back, not noticed yet".to_owned(),
            (false, false) => "off".to_owned(),
        };
        let agent = match node.agent {
            None => "-".to_owned(),
            Some(AgentState::Off) => "off".to_owned(),
            Some(AgentState::Running(process)) => format!("running ({})", process.pid),
            Some(AgentState::Exited { code }) => format!("ended ({code})"),
        };
        let machine = &node.machine;
        nodes.row([
            machine.name.clone(),
            state,
            word(&node.role),
            machine.address.to_string(),
            machine.address_v6.to_string(),
            list(&node.ingress, |address| address.to_string()),
            agent,
        ]);
    }
    for client in &status.clients {
        let (address, address_v6) = (client.address.to_string(), client.address_v6.to_string());
        nodes.row([client.name.clone(), "client".to_owned(), "-".to_owned(), address, address_v6, "-".to_owned(), "-".to_owned()]);
    }
    text += &nodes.finish();

    let mut networks = Table::new(&["NETWORK", "SUBNETS", "VNI", "KIND"]);
    for network in &status.networks {
        let kinds = [(network.ingress, "ingress"), (network.internal, "internal"), (network.attachable, "attachable")];
        let kinds: Vec<&str> = kinds.iter().filter(|(is, _)| *is).map(|(_, kind)| *kind).collect();
        networks.row([
            network.name.clone(),
            list(&network.subnets, |subnet| subnet.to_string()),
            network.vni.map_or_else(|| "-".to_owned(), |vni| vni.to_string()),
            list(&kinds, |kind| (*kind).to_owned()),
        ]);
    }
    text += &networks.finish();

    if !status.services.is_empty() {
        let mut services = Table::new(&["SERVICE", "REPLICAS", "PORTS", "VIPS", "UPDATE"]);
        for service in &status.services {
            services.row([
                service.name.clone(),
                format!("{}/{}{}", service.running, service.wanted, if service.global { " global" } else { "" }),
                list(&service.ports, port),
                vips(service),
                service.update.map_or_else(|| "-".to_owned(), |update| word(&update)),
            ]);
        }
        text += &services.finish();
    }
    if !status.tasks.is_empty() {
        let mut tasks = Table::new(&["TASK", "NODE", "STATE", "PID", "ADDRESSES"]);
        for task in &status.tasks {
            let mut state = word(&task.state);
            if task.desired_state != task.state {
                // Writing to a String cannot fail.
                let _ = write!(state, " -> {}", word(&task.desired_state));
            }
            if task.healthy == Some(false) {
                state += ", unhealthy";
            }
            if let Some(error) = &task.error {
                let _ = write!(state, " ({error})");
            }
            tasks.row([
                task.name.clone(),
                task.node.clone().unwrap_or_else(|| "-".to_owned()),
                state,
                task.process.as_ref().map_or_else(|| "-".to_owned(), |p| p.id.pid.to_string()),
                list(&task.addresses, in_network),
            ]);
        }
        text += &tasks.finish();
    }
    for problem in &status.problems {
        let _ = writeln!(text, "! {problem}");
    }
    text
}

fn vips(service: &ServiceRow) -> String {
    if service.endpoint_mode == EndpointMode::Dnsrr { "dnsrr".to_owned() } else { list(&service.vips, in_network) }
}

fn in_network((network, address): &(String, IpAddr)) -> String {
    format!("{network}={address}")
}

fn port(port: &Port) -> String {
    let published = port.published_port.map_or_else(|| "*".to_owned(), |p| p.to_string());
    let mode = if port.publish_mode == PublishMode::Host { " host" } else { "" };
    format!("{published}->{}/{}{mode}", port.target_port, port.protocol)
}

fn list<T>(items: &[T], show: impl Fn(&T) -> String) -> String {
    if items.is_empty() { "-".to_owned() } else { items.iter().map(show).collect::<Vec<_>>().join(" ") }
}

/// Columns as wide as they need to be, after an empty line.
struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    fn new(titles: &[&str; N]) -> Self {
        Self { rows: vec![titles.map(str::to_owned)] }
    }

    fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }

    fn finish(self) -> String {
        let mut widths = [0; N];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = "\n".to_owned();
        for row in &self.rows {
            let line: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            text += line.join("  ").trim_end();
            text.push('\n');
        }
        text
    }
}
