//! `swarmesh services`, `swarmesh endpoints`, `swarmesh names` and `swarmesh routes`.

use swarmesh_model::{EndpointMode, PublishMode};

use super::{
    CliError, Client,
    out::{self, Table, clean},
};
use crate::{
    config::{Config, Output},
    view::{
        endpoints::{EndpointRow, Front},
        names::NameRow,
        routes::RouteRow,
        services::{PortRow, ServiceRow},
    },
};

pub(super) fn services(config: &Config) -> Result<(), CliError> {
    let client = Client::new(&config.admin);
    let text = client.get("/v1/services")?;
    match config.output {
        Output::Json => out::text(&text)?,
        Output::Table => out::text(&services_table(&client.parse::<Vec<ServiceRow>>(&text)?))?,
    }
    Ok(())
}

fn services_table(rows: &[ServiceRow]) -> String {
    let mut table = Table::new(&["SERVICE", "MODE", "READY", "DRAINING", "TOTAL", "VIPS", "PORTS", "POLICY"]);
    let mut notes = String::new();
    for row in rows {
        let mode = match row.mode {
            EndpointMode::Vip => "vip",
            EndpointMode::Dnsrr => "dnsrr",
            EndpointMode::Unknown => "unknown",
        };
        let vips: Vec<String> = row.vips.iter().map(|v| format!("{}@{}", v.address, v.network)).collect();
        table.row([
            row.name.clone(),
            mode.to_owned(),
            row.ready.to_string(),
            row.draining.to_string(),
            row.total.to_string(),
            vips.join(","),
            row.ports.iter().map(port).collect::<Vec<_>>().join(","),
            if row.managed { row.policy.clone() } else { "left to Docker".to_owned() },
        ]);
        let reason = Some(&row.reason).filter(|r| !r.is_empty());
        for note in reason.into_iter().chain(&row.problems) {
            notes.push_str(&format!("{}: {}\n", clean(&row.name), clean(note)));
        }
    }
    if notes.is_empty() { table.to_string() } else { format!("{table}\n{notes}") }
}

fn port(port: &PortRow) -> String {
    let published = port.published.map_or_else(|| "?".to_owned(), |p| p.to_string());
    let mode = match port.mode {
        PublishMode::Ingress if port.here => "",
        PublishMode::Ingress => " (not served)",
        PublishMode::Host => " (host)",
    };
    format!("{published}->{}/{}{mode}", port.target, port.protocol)
}

/// `swarmesh names`.
pub(super) fn names(config: &Config, everything: bool) -> Result<(), CliError> {
    let client = Client::new(&config.admin);
    let text = client.get(if everything { "/v1/names?all=true" } else { "/v1/names" })?;
    match config.output {
        Output::Json => out::text(&text)?,
        Output::Table => out::text(&names_table(&client.parse::<Vec<NameRow>>(&text)?).to_string())?,
    }
    Ok(())
}

fn names_table(rows: &[NameRow]) -> Table {
    let mut table = Table::new(&["NETWORK", "NAME", "KIND", "ADDRESSES", "OWNER"]);
    for row in rows {
        let addresses: Vec<String> = row.addresses.iter().map(ToString::to_string).collect();
        let addresses = if addresses.is_empty() { "none now".to_owned() } else { addresses.join(",") };
        table.row([row.network.clone(), row.name.clone(), row.kind.clone(), addresses, row.owner.clone()]);
    }
    table
}

/// `swarmesh routes`.
pub(super) fn routes(config: &Config) -> Result<(), CliError> {
    let client = Client::new(&config.admin);
    let text = client.get("/v1/routes")?;
    match config.output {
        Output::Json => out::text(&text)?,
        Output::Table => out::text(&routes_table(&client.parse::<Vec<RouteRow>>(&text)?))?,
    }
    Ok(())
}

/// One line a route, in the order in which they are asked; below it, what is missing.
pub(super) fn routes_table(rows: &[RouteRow]) -> String {
    let columns = ["LISTENER", "HOST", "PATH", "TO", "USABLE", "DIALECT", "OWNER", "LABEL", "REQUESTS", "5XX", "OPEN"];
    // A node that takes no requests has none to count.
    let is_served = rows.iter().any(|row| row.served.is_some());
    let mut table = Table::new(if is_served { &columns } else { &columns[..8] });
    let mut notes = String::new();
    for row in rows {
        let or_all = |list: &[String]| if list.is_empty() { "*".to_owned() } else { list.join(",") };
        let path = [std::slice::from_ref(&or_all(&row.paths)), &row.conditions].concat().join(", ");
        // A redirect or a status needs nobody.
        let usable = if row.answers_itself { String::new() } else { row.usable.to_string() };
        let mut cells = vec![
            row.listener.clone(),
            or_all(&row.hosts),
            path,
            row.to.clone(),
            usable,
            row.dialect.clone(),
            row.owner.clone(),
            row.label.clone(),
        ];
        if is_served {
            let counts = row.served.map(|served| [served.requests, served.failed, served.in_flight]);
            cells.extend((0..3).map(|n| counts.map_or(String::new(), |counts| counts[n].to_string())));
        }
        table.row(cells);
        for missing in &row.missing {
            notes.push_str(&format!("{} by {}: {}\n", clean(&row.owner), clean(&row.label), clean(missing)));
        }
    }
    if notes.is_empty() { table.to_string() } else { format!("{table}\n{notes}") }
}

pub(super) fn endpoints(config: &Config) -> Result<(), CliError> {
    let client = Client::new(&config.admin);
    let text = client.get("/v1/endpoints")?;
    match config.output {
        Output::Json => out::text(&text)?,
        Output::Table => out::text(&endpoints_table(&client.parse::<Vec<EndpointRow>>(&text)?).to_string())?,
    }
    Ok(())
}

fn endpoints_table(rows: &[EndpointRow]) -> Table {
    let mut table = Table::new(&["SERVICE", "FRONT", "BACKEND", "STATE", "NODE", "TASK", "APPLIED"]);
    for row in rows {
        let front = match &row.front {
            Front::Vip { network, address } => format!("{address}@{network}"),
            Front::Port { protocol, published, target, refuses } => {
                format!("{published}->{target}/{protocol}{}", if *refuses { " (drains)" } else { "" })
            }
        };
        let applied = if row.applied { "yes".to_owned() } else { format!("NO: {}", row.pending.join(", ")) };
        for backend in &row.backends {
            table.row([
                row.service.clone(),
                front.clone(),
                backend.address.to_string(),
                backend.state.clone(),
                backend.node.clone(),
                backend.task.clone(),
                applied.clone(),
            ]);
        }
        if row.backends.is_empty() {
            table.row([row.service.clone(), front, String::new(), "refuses".to_owned(), String::new(), String::new(), applied]);
        }
    }
    table
}
