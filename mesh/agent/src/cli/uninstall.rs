//! `swarmesh uninstall`.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use swarmesh_kernel::KernelError;

use super::{CliError, Client, Common, Exit, kernel_exit, out};
use crate::{
    Store,
    config::{AdminAddress, Layer, Output},
    privilege,
};

#[derive(Clone, Debug, Args)]
pub(super) struct UninstallArgs {
    #[command(flatten)]
    common: Common,
    /// Where Docker keeps its namespaces [default: /var/run/docker/netns]
    #[arg(long, env = "SWARMESH_NETNS_DIR", value_name = "DIR")]
    netns_dir: Option<PathBuf>,
    /// Where the agent kept its snapshot [default: /var/lib/swarmesh]
    #[arg(long, env = "SWARMESH_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Even while an agent answers, which would put everything back
    #[arg(long, env = "SWARMESH_FORCE")]
    force: bool,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum UninstallError {
    #[error("an agent answers at {0} and would put everything back; stop it first, or use --force")]
    AgentRuns(AdminAddress),
    #[error("{count} places could not be cleared, the first for this reason: {first}")]
    Places { count: usize, first: KernelError },
}

impl UninstallError {
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::AgentRuns(_) => Exit::Failed,
            Self::Places { first, .. } => kernel_exit(first),
        }
    }
}

#[derive(Serialize)]
struct Report {
    place: String,
    removed: bool,
    error: String,
}

pub(super) fn run(args: UninstallArgs) -> Result<(), CliError> {
    let file = Layer::from_file(args.common.config.as_deref())?;
    let flags = Layer {
        admin: args.common.admin,
        output: args.common.output,
        netns_dir: args.netns_dir,
        state_dir: args.state_dir,
        ..Layer::default()
    };
    let config = flags.over(file).settle()?;
    if !args.force && Client::new(&config.admin).is_answered() {
        return Err(UninstallError::AgentRuns(config.admin).into());
    }
    privilege::check()?;

    let mut reports = Vec::new();
    let mut failed: Option<(usize, KernelError)> = None;
    for (place, outcome) in swarmesh_dataplane::uninstall(&swarmesh_kernel::LinuxKernel, &config.netns_dir) {
        reports.push(Report {
            place,
            removed: outcome.as_ref().is_ok_and(|removed| *removed),
            error: outcome.as_ref().err().map(ToString::to_string).unwrap_or_default(),
        });
        if let Err(error) = outcome {
            failed = Some(failed.map_or((1, error), |(count, first)| (count + 1, first)));
        }
    }
    let state = Store::new(&config.state_dir).remove();
    reports.push(Report {
        place: config.state_dir.display().to_string(),
        removed: state.as_ref().is_ok_and(|removed| *removed),
        error: state.as_ref().err().map(ToString::to_string).unwrap_or_default(),
    });
    match config.output {
        Output::Json => out::json(&reports)?,
        Output::Table => out::text(&table(&reports))?,
    }
    if let Some((count, first)) = failed {
        return Err(UninstallError::Places { count, first }.into());
    }
    state?;
    Ok(())
}

fn table(reports: &[Report]) -> String {
    let mut table = out::Table::new(&["PLACE", "OUTCOME"]);
    for report in reports.iter().filter(|r| r.removed || !r.error.is_empty()) {
        let outcome = if report.error.is_empty() { "removed".to_owned() } else { format!("FAILED: {}", report.error) };
        table.row([report.place.clone(), outcome]);
    }
    if table.is_empty() { "there was nothing to remove\n".to_owned() } else { table.to_string() }
}
