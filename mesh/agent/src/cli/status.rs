//! `swarmesh status`.

use std::fmt::Write;

use super::{
    CliError, Client,
    out::{self, Table, clean},
};
use crate::{
    config::{Config, Output},
    view::{Origin, status::Status},
};

pub(super) fn run(config: &Config) -> Result<(), CliError> {
    let client = Client::new(&config.admin);
    let text = client.get("/v1/status")?;
    match config.output {
        Output::Json => out::text(&text)?,
        Output::Table => out::text(&render(&client.parse(&text)?))?,
    }
    Ok(())
}

fn render(status: &Status) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{name:<10} {}", clean(&value));
    };
    line("agent", format!("{}, pid {}, up {}", status.agent.version, status.agent.pid, duration(status.agent.uptime_seconds)));
    line(
        "node",
        match &status.node {
            Some(node) => {
                let address = node.address.map(|a| format!(", {a}")).unwrap_or_default();
                let name = if node.hostname.is_empty() { "not in the snapshot" } else { &node.hostname };
                format!("{name} ({}{address}){}", node.id, if status.draining { ", drains" } else { "" })
            }
            None => format!("unknown{}", if status.draining { ", drains" } else { "" }),
        },
    );
    line(
        "source",
        match &status.source {
            Some(source) if source.connected => format!("{}, connected", source.source),
            Some(source) => format!("{}, NOT CONNECTED: {}", source.source, source.detail),
            None => "has not said anything yet".to_owned(),
        },
    );
    let snapshot = &status.snapshot;
    let origin = match snapshot.origin {
        Origin::None => "none yet",
        Origin::Source => "from the source",
        Origin::StateDir => "the last good one of an earlier run: the source has not delivered since",
        Origin::File => "from a file",
    };
    line(
        "snapshot",
        format!(
            "version {}, {origin}; {} networks, {} services, {} tasks, {} nodes",
            snapshot.version, snapshot.networks, snapshot.services, snapshot.tasks, snapshot.nodes
        ),
    );
    let plane = &status.plane;
    line("takeover", status.takeover.clone());
    line("plane", format!("{}, {}", plane.name, if plane.settled { "settled" } else { "NOT SETTLED" }));
    let others: Vec<String> = plane.others.iter().map(|o| format!("{}: {}", o.name, o.reason)).collect();
    line("", format!("others: {}", others.join(", ")));
    if let Some(host) = &plane.host {
        let layout = if host.old_layout { "up to 29.7" } else { "29.8 or newer" };
        line(
            "",
            format!(
                "bridge {}, Docker's rules are those of {layout}, published ports over IPv6: {}",
                host.bridge,
                if host.ipv6 { "yes" } else { "no" }
            ),
        );
    }
    line("", format!("{} commits, {} operations, {} errors, {} healed", plane.commits, plane.operations, plane.errors, plane.healed));
    line(
        "names",
        match &status.names {
            None => "off: Docker's own resolver answers".to_owned(),
            Some(names) => {
                let pending = if names.pending > 0 { format!(", {} STILL BY DOCKER", names.pending) } else { String::new() };
                let log = if names.log_every > 0 { format!(", one of {} logged", names.log_every) } else { String::new() };
                format!("{} containers are answered{pending}, {} queries{log}", names.answered, names.queries)
            }
        },
    );
    if let Some(names) = &status.names {
        let servers: Vec<String> = names.host_servers.iter().map(ToString::to_string).collect();
        line(
            "",
            format!("everything else: {}", if servers.is_empty() { "the host names no server".to_owned() } else { servers.join(", ") }),
        );
    }
    let routes = &status.routes;
    let dialects: Vec<String> = routes.dialects.iter().map(|(name, count)| format!("{count} {name}")).collect();
    let listeners: Vec<String> =
        routes.http.iter().map(|a| format!("http {a}")).chain(routes.https.iter().map(|a| format!("https {a}"))).collect();
    line(
        "routes",
        format!(
            "{}; {}",
            if dialects.is_empty() { "none".to_owned() } else { format!("{} of {} owners", dialects.join(", "), routes.owners) },
            if listeners.is_empty() { "no request is taken here: --http and --https are off".to_owned() } else { listeners.join(", ") }
        ),
    );
    if let Some(served) = &routes.served {
        line(
            "",
            format!(
                "{} connections, {} requests, {} under way, {} answered from 500 on, {} without a route, {} handshakes failed",
                served.connections, served.requests, served.in_flight, served.failed, served.unrouted, served.failed_handshakes
            ),
        );
    }

    let mut places = Table::new(&["PLACE", "STATE", "SINCE", "FRONTS", "HEALED", "PATH"]);
    for place in &plane.places {
        let state = if place.applied { "applied" } else { "PENDING" };
        places.row([
            place.place.clone(),
            state.to_owned(),
            duration(place.since_seconds),
            place.fronts.to_string(),
            place.healed.to_string(),
            place.path.clone(),
        ]);
    }
    if !places.is_empty() {
        let _ = write!(out, "\n{places}");
    }
    let mut section = |title: &str, lines: Vec<String>| {
        if !lines.is_empty() {
            let _ = writeln!(out, "\n{title}");
            lines.iter().for_each(|l| {
                let _ = writeln!(out, "  {}", clean(l));
            });
        }
    };
    section("not applied yet:", status.pending.iter().map(|p| format!("{}: {}", p.what, p.why)).collect());
    let failed = routes.served.iter().flat_map(|served| &served.out);
    section("backends that failed and are passed over for a while:", failed.map(|o| format!("{}: {}", o.owner, o.backend)).collect());
    section("problems:", status.problems.iter().map(ToString::to_string).collect());
    out
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::PlaneChoice,
        view::{View, status::status},
    };

    #[test]
    fn says_what_is_missing_and_why_other_planes_do_not_run() {
        let other_planes = vec![(PlaneChoice::Ebpf, "not in this version".to_owned()), (PlaneChoice::Ipvs, "no module".to_owned())];
        let view = View { other_planes, ..View::default() };
        let text = render(&status(&view, std::time::Duration::from_secs(3700)));
        for expected in
            ["up 1h1m", "others: ebpf: not in this version, ipvs: no module", "none yet", "snapshot: the source has not delivered yet"]
        {
            assert!(text.contains(expected), "{expected} in\n{text}");
        }
    }
}
