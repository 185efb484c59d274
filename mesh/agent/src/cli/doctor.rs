//! `swarmesh doctor`.

use std::path::PathBuf;

use clap::Args;
use swarmesh_source::SourceSpec;

use super::{
    CliError, Common,
    out::{self, clean},
};
use crate::{
    config::{Layer, Output},
    doctor::{Finding, Level, Subject, examine},
};

#[derive(Clone, Debug, Args)]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    common: Common,
    /// The agent's source, to know which Docker to ask [default: docker:unix:///var/run/docker.sock]
    #[arg(long, env = "SWARMESH_SOURCE", value_name = "SOURCE")]
    source: Option<SourceSpec>,
    /// Where Docker keeps its namespaces [default: /var/run/docker/netns]
    #[arg(long, env = "SWARMESH_NETNS_DIR", value_name = "DIR")]
    netns_dir: Option<PathBuf>,
}

pub(super) fn run(args: DoctorArgs) -> Result<(), CliError> {
    let file = Layer::from_file(args.common.config.as_deref())?;
    let flags =
        Layer { output: args.common.output, admin: args.common.admin, source: args.source, netns_dir: args.netns_dir, ..Layer::default() };
    let config = flags.over(file).settle()?;
    let docker = match config.source {
        SourceSpec::Docker { url } | SourceSpec::Auto { url: Some(url) } => Some(url),
        SourceSpec::SnapshotFile { .. } | SourceSpec::Upstream | SourceSpec::Auto { url: None } => None,
    };
    let findings = examine(&Subject { docker, netns_dir: config.netns_dir });
    match config.output {
        Output::Json => out::json(&findings)?,
        Output::Table => out::text(&render(&findings))?,
    }
    if findings.iter().any(|f| f.level == Level::Critical) { Err(CliError::Critical) } else { Ok(()) }
}

fn render(findings: &[Finding]) -> String {
    let mut out = String::new();
    for finding in findings {
        let level = match finding.level {
            Level::Ok => "ok",
            Level::Info => "info",
            Level::Warning => "WARNING",
            Level::Critical => "CRITICAL",
        };
        out.push_str(&format!("{level:<9} {}: {}\n", finding.check, clean(&finding.detail)));
        if !finding.remedy.is_empty() {
            out.push_str(&format!("          -> {}\n", clean(&finding.remedy)));
        }
    }
    out
}
