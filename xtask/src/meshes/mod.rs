//! `cargo xtask meshes`: Docker's own mesh and ours, asked the same on one kernel.
//!
//! The rows are those of TESTING.md. Each is a probe that says what it saw, and judges nothing: it runs once in a swarm
//! without agents and once in a new one with them, and the table has the two side by side. That takes a kernel with IPVS,
//! so it is done in a guest; `--here` is what runs inside, and on any machine that has such a kernel itself.

mod ports;
mod sampler;
mod seen;
mod swarm;
mod table;
mod vips;

use std::{fs, process::Command, time::Duration};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use nix::sys::utsname::uname;

use self::{
    seen::{Fact, Saw},
    swarm::Swarm,
    table::Said,
};
use crate::{
    run::{build, output, say},
    vm,
};

/// Both meshes, in an emulated machine that shares its processors.
const PATIENCE: Duration = Duration::from_secs(7200);

type Row = (&'static str, fn(&Swarm, &mut Facts) -> Result<()>);

/// In the order in which they run: what disturbs the swarm comes late.
const ROWS: &[Row] = &[
    ("E36", ports::published),
    ("E31", vips::vip),
    ("E45", ports::loopback),
    ("E46", ports::ingress_address),
    ("E43", ports::refused),
    ("E44", ports::host_mode),
    ("E27", vips::start_first),
    ("E28", vips::leaving),
    ("E28", vips::killed),
    ("E29", vips::health),
    ("E32", vips::to_dnsrr),
    ("E34", vips::service_goes),
    ("E35", vips::network_comes),
    ("E38", ports::port_comes),
    ("E39", ports::taken),
    ("E40", ports::target_moves),
    ("E41", ports::nobody),
    ("E33", vips::node_fails),
    ("E37", ports::flush),
    ("E36", ports::engine_restarts),
    ("E42", ports::custom_ingress),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mesh {
    Docker,
    Swarmesh,
}

#[derive(Args)]
pub(crate) struct MeshesArgs {
    /// Which of Debian's kernels
    #[arg(long = "kernel", value_enum, default_value = "6.12")]
    series: vm::Series,
    /// The agents' plane
    #[arg(long, default_value = "nft", value_parser = ["nft", "ipvs", "ebpf", "auto"])]
    plane: String,
    /// Engines of the swarm. Each takes its share of the guest's processors, and rows about other nodes need some
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=3))]
    nodes: u8,
    /// Rows whose names start so; all of them when left out
    #[arg(long, value_delimiter = ',', value_name = "ROW")]
    rows: Vec<String>,
    /// One of the two; both when left out
    #[arg(long, value_enum)]
    mesh: Option<Mesh>,
    /// On this machine's kernel, which needs IPVS for Docker's mesh to do anything
    #[arg(long)]
    here: bool,
    /// Run this in the guest's shell instead, and show what it prints
    #[arg(long, value_name = "SCRIPT", conflicts_with = "here")]
    run: Option<String>,
}

pub(crate) fn run(args: &MeshesArgs) -> Result<()> {
    if args.here {
        return here(args);
    }
    let words = [
        Some(format!("--plane {} --nodes {}", args.plane, args.nodes)),
        (!args.rows.is_empty()).then(|| format!("--rows {}", args.rows.join(","))),
        args.mesh.and_then(|mesh| Some(format!("--mesh {}", mesh.to_possible_value()?.get_name()))),
    ];
    let inside = format!("$XTASK meshes --here {}", words.into_iter().flatten().collect::<Vec<_>>().join(" "));
    let script = args.run.as_deref().unwrap_or(&inside);
    let guest = vm::boot_engines(&vm::Engines { series: args.series, script, patience: PATIENCE })?;
    if args.run.is_none() {
        keep(&table::columns(guest.said.iter().map(String::as_str)))?;
    }
    guest.ended_well()
}

/// Meshes that were asked in earlier runs stay in the table: each takes its time.
fn keep(columns: &[table::Column]) -> Result<()> {
    if columns.is_empty() {
        return Ok(());
    }
    let directory = vm::directory().join("meshes");
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    for column in columns {
        fs::write(directory.join(column.file_name()), serde_json::to_string(column)?)?;
    }
    let mut files = fs::read_dir(&directory)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    let all = files.iter().map(|file| Ok(serde_json::from_str(&fs::read_to_string(file)?)?)).collect::<Result<Vec<table::Column>>>()?;
    let table = table::table(&all);
    let file = directory.join("table.md");
    fs::write(&file, &table).with_context(|| format!("cannot write {}", file.display()))?;
    say(&format!("{table}\nThe table is in {}.", file.display()));
    Ok(())
}

fn here(args: &MeshesArgs) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("a swarm's labs are network namespaces: run this as root");
    }
    let wanted = |mesh| args.mesh.is_none_or(|only| only == mesh);
    [Mesh::Docker, Mesh::Swarmesh].into_iter().filter(|mesh| wanted(*mesh)).try_for_each(|mesh| all_rows(args, mesh))
}

/// All rows of one mesh, in a swarm of its own.
fn all_rows(args: &MeshesArgs, mesh: Mesh) -> Result<()> {
    say(&format!("\n== {mesh:?} =="));
    let plane = (mesh == Mesh::Swarmesh).then_some(args.plane.as_str());
    let program = std::env::var_os("SWARMESH_BIN").map_or_else(|| build(false), |path| Ok(path.into()))?;
    let swarm = Swarm::up(&program, usize::from(args.nodes), plane)?;
    let name = swarm.plane()?.map_or_else(|| "Docker".to_owned(), |plane| format!("Swarmesh, {plane}"));
    let engine = output(Command::new("dockerd").arg("--version"))?;
    let day = output(Command::new("date").arg("+%Y-%m-%d"))?;
    let place = format!("{} nodes, Linux {}, {}, {}", swarm.nodes(), uname()?.release().to_string_lossy(), engine.trim(), day.trim());
    say(&Said::Mesh { name, place }.print()?);
    let mut facts = Facts { row: "" };
    for (name, probe) in ROWS {
        if !args.rows.is_empty() && !args.rows.iter().any(|row| name == row) {
            continue;
        }
        facts.row = name;
        if let Err(error) = probe(&swarm, &mut facts) {
            facts.put("the rest of this row", Saw::NotObserved(format!("{error:#}")))?;
            swarm.tidy()?;
        }
    }
    say(&Said::Done.print()?);
    drop(swarm);
    let left = swarmesh_tests::dockerlab::residue(swarm::PREFIX);
    if !left.is_empty() {
        bail!("left behind: {}", left.join(", "));
    }
    Ok(())
}

/// Where the probes of one mesh say what they saw.
struct Facts {
    row: &'static str,
}

impl Facts {
    /// The row of what follows, for probes that answer several.
    fn row(&mut self, row: &'static str) -> &mut Self {
        self.row = row;
        self
    }

    fn put(&mut self, what: &str, saw: Saw) -> Result<()> {
        say(&Said::line(&Fact { row: self.row, what: what.to_owned(), saw }).print()?);
        Ok(())
    }
}
