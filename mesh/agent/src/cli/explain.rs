//! `swarmesh explain`.

use clap::Args;

use super::{
    CliError, Client, Common,
    out::{self, clean},
};
use crate::{
    config::Output,
    view::explain::{Explanation, Target, percent_encode},
};

#[derive(Clone, Debug, Args)]
pub(super) struct ExplainArgs {
    #[command(flatten)]
    common: Common,
    /// tcp://ADDRESS:PORT, udp://ADDRESS:PORT, vip://NAME[?from=TASK], dns://NAME[?from=TASK][&type=AAAA] or
    /// http[s]://HOST[:PORT][/PATH][?method=METHOD][&header=NAME:VALUE]; IPv6 in brackets
    #[arg(value_name = "TARGET")]
    target: Target,
}

pub(super) fn run(args: ExplainArgs) -> Result<(), CliError> {
    let config = args.common.settle()?;
    let client = Client::new(&config.admin);
    let text = client.get(&format!("/v1/explain?target={}", percent_encode(&args.target.to_string())))?;
    match config.output {
        Output::Json => out::text(&text)?,
        Output::Table => out::text(&render(&client.parse(&text)?))?,
    }
    Ok(())
}

fn render(explanation: &Explanation) -> String {
    let mut out = format!("{}\n  {}\n\n", clean(&explanation.target), clean(&explanation.summary));
    for (number, hop) in explanation.hops.iter().enumerate() {
        out.push_str(&format!("{:>2}. {}: {}\n", number + 1, clean(&hop.at), clean(&hop.what)));
        for backend in &hop.backends {
            let line = format!("{:<15} {:<8} {} on {}", backend.address.to_string(), backend.state, backend.task, backend.node);
            out.push_str(&format!("      {}\n", clean(&line)));
        }
        for other in &hop.left_out {
            out.push_str(&format!("      not {} on {}: {}\n", clean(&other.task), clean(&other.node), clean(&other.why)));
        }
        for other in &hop.routes {
            let line = format!("not {} of {} ({}): {}", other.label, other.owner, other.takes, other.why);
            out.push_str(&format!("      {}\n", clean(&line)));
        }
        for upstream in &hop.upstreams {
            out.push_str(&format!("      {}\n", clean(&upstream.words())));
        }
    }
    if !explanation.missing.is_empty() {
        out.push_str("\nmissing:\n");
        for missing in &explanation.missing {
            out.push_str(&format!("  {}\n", clean(missing)));
        }
    }
    out
}
