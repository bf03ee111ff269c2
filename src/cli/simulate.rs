//! `simulate`: replays a workload on a fleet in virtual time and says how it went under each policy, with no bus.

use std::path::PathBuf;

use anyhow::Context as _;
use darkroom::simulation::costs::Costs;
use darkroom::simulation::policy::Policy;
use darkroom::simulation::workload::{Load, Workload};
use darkroom::simulation::{self, report};
use serde_json::json;

use super::output::Output;
use super::{Exit, Failed};

#[derive(Debug, clap::Args)]
pub(crate) struct SimulateOptions {
    /// What is replayed: a TOML file such as those in docs/workloads
    #[arg(long, value_name = "FILE")]
    workload: PathBuf,
    /// Who runs what when: adaptive, fixed, triton, fastapi, fcfs-steps, one; all when absent
    #[arg(long = "policy", value_name = "NAME,…", value_delimiter = ',')]
    policies: Vec<Policy>,
    /// Instead of the workload's loads: shares of the capacity such as 0.8, or saturated
    #[arg(long = "load", value_name = "SHARE,…", value_delimiter = ',', value_parser = load)]
    loads: Vec<Load>,
    /// Instead of the workload's number of GPUs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    workers: Option<u32>,
    /// Instead of the cost table that the workload names: a file of that form
    #[arg(long, value_name = "FILE")]
    costs: Option<PathBuf>,
    /// Where plots go, as SVG; none are made when absent
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

fn load(text: &str) -> Result<Load, String> {
    let share = || text.parse().ok().filter(|share: &f64| share.is_finite() && *share > 0.0).map(Load::Share);
    let load = if text == "saturated" { Some(Load::SATURATED) } else { share() };
    load.ok_or_else(|| "must be a number above 0, or saturated".to_owned())
}

pub(crate) fn simulate(options: &SimulateOptions, output: &Output) -> Result<Exit, Failed> {
    let read = |path: &PathBuf| std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()));
    let mut workload = Workload::parse(&read(&options.workload)?)?;
    if !options.loads.is_empty() {
        workload.loads.clone_from(&options.loads);
    }
    workload.workers = options.workers.unwrap_or(workload.workers);
    let costs = match &options.costs {
        Some(path) => Costs::parse(&read(path)?)?,
        None => Costs::named(&workload.costs)?,
    };
    let policies = if options.policies.is_empty() { Policy::ALL } else { options.policies.as_slice() };
    let reports = simulation::compare(&workload, &costs, policies, |policy, load| {
        output.note(format!("{}: {policy}, load {load}", workload.name));
    })?;
    if let Some(folder) = &options.out {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        for (name, svg) in simulation::plots(&workload.name, &reports) {
            let path = folder.join(name);
            std::fs::write(&path, svg).with_context(|| format!("writing {}", path.display()))?;
        }
    }
    let tables = [report::table(&reports), report::group_table(&reports), report::estimate_table(&reports)];
    let text = tables.join("\n");
    let value = json!({"workload": workload.name, "costs": costs.name(), "workers": workload.workers, "runs": reports});
    output.line(text.trim_end(), &value);
    Ok(Exit::Success)
}
