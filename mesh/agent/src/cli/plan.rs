//! `swarmesh plan`: what is applied, or what would be.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use clap::Args;
use serde::Serialize;
use serde_json::Value;
use swarmesh_lab::{
    stack::{self, StackError},
    swarm,
};
use swarmesh_model::{FileError, NodeId, Snapshot};
use swarmesh_plan::{NodeContext, Takeover};

use super::{
    CliError, Client, Common, Exit,
    lists::routes_table,
    out::{self, Table, clean},
};
use crate::{
    config::{self, Layer, Output},
    view::{Origin, View, endpoints, routes, status::Status},
};

#[derive(Clone, Debug, Args)]
pub(super) struct PlanArgs {
    #[command(flatten)]
    common: Common,
    /// Plan a stack file or a snapshot file, without touching anything
    #[arg(long, env = "SWARMESH_FROM", value_name = "FILE", conflicts_with = "schema")]
    from: Option<PathBuf>,
    /// For which node of the file [default: the first]
    #[arg(long, env = "SWARMESH_NODE", value_name = "ID|HOSTNAME")]
    node: Option<String>,
    /// How many nodes to imagine for a stack file
    #[arg(long, env = "SWARMESH_NODES", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    nodes: u16,
    /// on or labelled, as for the agent [default: on]
    #[arg(long, env = "SWARMESH_TAKEOVER", value_name = "WHICH", value_parser = config::takeover)]
    takeover: Option<Takeover>,
    /// Show how the file's plan differs from the running agent's
    #[arg(long, env = "SWARMESH_DIFF", requires = "from")]
    diff: bool,
    /// Print the JSON schema of the snapshot file
    #[arg(long, env = "SWARMESH_SCHEMA")]
    schema: bool,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum PlanError {
    #[error("cannot read {}: {error}", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("{}: {error}", path.display())]
    Snapshot { path: PathBuf, error: FileError },
    #[error(transparent)]
    Stack(#[from] StackError),
    #[error("{} has no node {node:?}; its nodes are {known}", path.display())]
    NoNode { path: PathBuf, node: String, known: String },
}

impl PlanError {
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::Read { .. } | Self::Snapshot { .. } | Self::Stack(_) | Self::NoNode { .. } => Exit::Usage,
        }
    }
}

pub(super) fn run(args: PlanArgs) -> Result<(), CliError> {
    if args.schema {
        out::json(&swarmesh_model::schema())?;
        return Ok(());
    }
    let Some(path) = &args.from else { return applied(args.common) };
    let file = Layer::from_file(args.common.config.as_deref())?;
    let flags =
        Layer { admin: args.common.admin, output: args.common.output, takeover: args.takeover, node: args.node, ..Layer::default() };
    let config = flags.over(file).settle()?;
    let snapshot = read(path, args.nodes)?;
    let node = choose_node(path, &snapshot, config.node.as_deref())?;
    let context = NodeContext { node, takeover: config.takeover, dialects: config.router.dialects.clone(), ..NodeContext::default() };
    let plan = swarmesh_plan::plan(&snapshot, &context);
    let view = View { snapshot, plan, context, origin: Origin::File, ..View::default() };
    let plan = view.told_plan();
    if args.diff {
        let running: Value = Client::new(&config.admin).read("/v1/plan")?;
        let new = serde_json::to_value(&plan).map_err(io::Error::from)?;
        let changes = changes(&running, &new);
        match config.output {
            Output::Json => out::json(&changes)?,
            Output::Table => out::text(&changes_table(&changes))?,
        }
        return Ok(());
    }
    match config.output {
        Output::Json => out::json(&plan)?,
        Output::Table => out::text(&render(&view))?,
    }
    Ok(())
}

/// The running agent's plan, and what of it is not in the kernel.
fn applied(common: Common) -> Result<(), CliError> {
    let config = common.settle()?;
    let client = Client::new(&config.admin);
    if config.output == Output::Json {
        out::text(&client.get("/v1/plan")?)?;
        return Ok(());
    }
    let plan: Value = client.read("/v1/plan")?;
    let status: Status = client.read("/v1/status")?;
    let mut table = Table::new(&["WHAT", "WHO", "TO"]);
    for (what, value) in items(&plan) {
        let backends = value["backends"].as_array().map(|b| b.iter().filter_map(|b| b["address"].as_str()).collect::<Vec<_>>().join(","));
        let routes = || value["routes"].as_array().map(|r| format!("{} routes", r.len()));
        let networks = || value["networks"].as_array().map(|n| format!("{} networks", n.len())).unwrap_or_default();
        table.row([what, value["name"].as_str().unwrap_or_default().to_owned(), backends.or_else(routes).unwrap_or_else(networks)]);
    }
    let mut text = format!("version {}\n\n{table}", plan["version"]);
    if status.pending.is_empty() {
        text.push_str("\nall of it is applied\n");
    } else {
        text.push_str("\nnot applied yet:\n");
        status.pending.iter().for_each(|p| text.push_str(&format!("  {}: {}\n", clean(&p.what), clean(&p.why))));
    }
    out::text(&text)?;
    Ok(())
}

fn read(path: &Path, nodes: u16) -> Result<Snapshot, PlanError> {
    let bytes = fs::read(path).map_err(|error| PlanError::Read { path: path.to_owned(), error })?;
    let is_json = bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{');
    if is_json {
        return Snapshot::from_json(&String::from_utf8_lossy(&bytes)).map_err(|error| PlanError::Snapshot { path: path.to_owned(), error });
    }
    // As `docker stack deploy` is usually called: the stack is named like the file.
    let name = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let stack = stack::load(&bytes, &path.display().to_string(), &name, &|variable| std::env::var(variable).ok())?;
    // An address before a published port, say, which a swarm does not heed.
    for note in &stack.notes {
        out::complain(&format!("note: {}:{}: {}: {}", stack.file, note.line, note.place, note.message));
    }
    Ok(swarm::snapshot_of(&stack, usize::from(nodes))?)
}

fn choose_node(path: &Path, snapshot: &Snapshot, wanted: Option<&str>) -> Result<Option<NodeId>, PlanError> {
    let mut nodes: Vec<_> = snapshot.nodes.values().collect();
    nodes.sort_by(|a, b| a.hostname.cmp(&b.hostname));
    let Some(wanted) = wanted else { return Ok(nodes.first().map(|n| n.id.clone())) };
    match nodes.iter().find(|n| n.id.as_str() == wanted || n.hostname == wanted) {
        Some(node) => Ok(Some(node.id.clone())),
        None => Err(PlanError::NoNode {
            path: path.to_owned(),
            node: wanted.to_owned(),
            known: nodes.iter().map(|n| n.hostname.as_str()).collect::<Vec<_>>().join(", "),
        }),
    }
}

fn render(view: &View) -> String {
    let node = view.this_node().map_or("no node", |n| n.hostname.as_str());
    let mut table = Table::new(&["SERVICE", "FRONT", "BACKEND", "STATE", "NODE", "TASK"]);
    for row in endpoints::endpoints(view) {
        let front = match &row.front {
            endpoints::Front::Vip { network, address } => format!("{address}@{network}"),
            endpoints::Front::Port { protocol, published, target, .. } => format!("{published}->{target}/{protocol}"),
        };
        for b in &row.backends {
            table.row([row.service.clone(), front.clone(), b.address.to_string(), b.state.clone(), b.node.clone(), b.task.clone()]);
        }
        if row.backends.is_empty() {
            table.row([row.service.clone(), front, String::new(), "refuses".to_owned(), String::new(), String::new()]);
        }
    }
    let mut text =
        format!("node {}: {} sandboxes, {} published ports\n\n{table}", clean(node), view.plan.sandboxes.len(), view.plan.published.len());
    let routes = routes::routes(view);
    if !routes.is_empty() {
        text.push_str(&format!("\n{}", routes_table(&routes)));
    }
    let problems = view.problems();
    if !problems.is_empty() {
        text.push_str("\nproblems:\n");
        problems.iter().for_each(|p| text.push_str(&format!("  {}\n", clean(&p.to_string()))));
    }
    text
}

#[derive(Debug, PartialEq, Serialize)]
struct Change {
    what: String,
    /// `null` when it is new.
    applied: Value,
    /// `null` when it goes.
    planned: Value,
}

fn changes(old: &Value, new: &Value) -> Vec<Change> {
    let (mut old, mut new) = (items(old), items(new));
    let names: BTreeSet<String> = old.keys().chain(new.keys()).cloned().collect();
    let change = |what: String| {
        let (applied, planned) = (old.remove(&what).unwrap_or_default(), new.remove(&what).unwrap_or_default());
        (applied != planned).then_some(Change { what, applied, planned })
    };
    names.into_iter().filter_map(change).collect()
}

/// A plan's parts by name.
fn items(plan: &Value) -> BTreeMap<String, Value> {
    let mut items = BTreeMap::new();
    let members = |value: &Value| value.as_object().cloned().unwrap_or_default();
    for (network, vips) in members(&plan["networks"]) {
        items.extend(members(&vips).into_iter().map(|(address, vip)| (format!("vip {address} in {network}"), vip)));
    }
    items.extend(members(&plan["published"]).into_iter().map(|(port, value)| (format!("port {port}"), value)));
    items.extend(members(&plan["sandboxes"]).into_iter().map(|(task, value)| (format!("sandbox {task}"), value)));
    items.extend(members(&plan["routes"]["owners"]).into_iter().map(|(owner, value)| (format!("routes of {owner}"), value)));
    if !plan["ingress"].is_null() {
        items.insert("ingress".to_owned(), plan["ingress"].clone());
    }
    items
}

fn changes_table(changes: &[Change]) -> String {
    if changes.is_empty() {
        return "nothing would change\n".to_owned();
    }
    let mut table = Table::new(&["CHANGE", "WHAT", "WHO"]);
    for change in changes {
        let (sign, value) = match (&change.applied, &change.planned) {
            (Value::Null, planned) => ("+", planned),
            (applied, Value::Null) => ("-", applied),
            (_, planned) => ("~", planned),
        };
        table.row([sign.to_owned(), change.what.clone(), value["name"].as_str().unwrap_or_default().to_owned()]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn changes_name_what_comes_goes_and_differs() {
        let old = json!({"published": {"tcp/80": {"name": "a"}, "tcp/81": {"name": "b"}}, "networks": {}, "ingress": null});
        let new = json!({"published": {"tcp/80": {"name": "a"}, "tcp/82": {"name": "c"}}, "networks": {"n": {"10.0.1.2": {"name": "v"}}}});
        let changes = changes(&old, &new);
        let text = changes_table(&changes);
        assert_eq!(
            text,
            "CHANGE  WHAT               WHO\n-       port tcp/81        b\n+       port tcp/82        c\n+       vip 10.0.1.2 in n  v\n"
        );
    }

    #[test]
    fn the_committed_schema_is_current() {
        let committed: Value = serde_json::from_str(include_str!("../../schema/snapshot.json")).unwrap();
        assert_eq!(committed, swarmesh_model::schema(), "write it anew with: swarmesh plan --schema > mesh/agent/schema/snapshot.json");
    }
}
