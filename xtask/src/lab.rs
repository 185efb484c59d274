//! placeholder
use clap::Subcommand;
#[derive(Subcommand)]
pub(crate) enum LabCommand {
    Up,
}
pub(crate) fn run(_: LabCommand) -> anyhow::Result<()> {
    anyhow::bail!("x")
}
