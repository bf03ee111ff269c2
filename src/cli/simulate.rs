//! `simulate`: replays a workload on a fleet in virtual time and says how it went under each policy, or a day on a fleet
//! whose size changes and what it cost under each rule, with no bus.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use darkroom::job::Capacity;
use darkroom::simulation::costs::Costs;
use darkroom::simulation::policy::Policy;
use darkroom::simulation::scaling::{self, Setup, WorkerPrices};
use darkroom::simulation::workload::{Load, Workload};
use darkroom::simulation::{self, report};
use serde_json::json;

use super::output::Output;
use super::{Exit, Failed};

#[derive(Debug, clap::Args)]
pub(crate) struct SimulateOptions {
    /// What is replayed: a TOML file such as those in docs/workloads
    #[arg(long, value_name = "FILE", required_unless_present = "scaling")]
    workload: Option<PathBuf>,
    /// Replay a day on a fleet whose size changes: a TOML file such as those in docs/scaling
    #[arg(long, value_name = "FILE", conflicts_with_all = ["policies", "workers"])]
    scaling: Option<PathBuf>,
    /// What machines cost, with --scaling: a file in the form of infra/prices.toml, which comes along
    #[arg(long, env = "DARKROOM_PRICES", value_name = "FILE")]
    prices: Option<PathBuf>,
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

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

fn write(folder: &Path, plots: Vec<(String, String)>) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    for (name, svg) in plots {
        let path = folder.join(name);
        std::fs::write(&path, svg).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

pub(crate) fn simulate(options: &SimulateOptions, output: &Output) -> Result<Exit, Failed> {
    match (&options.scaling, &options.workload) {
        (Some(path), _) => scale(path, options, output),
        (None, Some(path)) => replay(path, options, output),
        (None, None) => Err(anyhow::anyhow!("either --workload or --scaling must be there").into()),
    }
}

/// A day on a fleet whose size changes. With `--workload`, its arrivals instead of the file's.
fn scale(path: &Path, options: &SimulateOptions, output: &Output) -> Result<Exit, Failed> {
    let mut setup = Setup::parse(&read(path)?).with_context(|| format!("in {}", path.display()))?;
    let costs = match &options.costs {
        Some(path) => Costs::parse(&read(path)?)?,
        None => Costs::named(&setup.costs)?,
    };
    let prices = super::plan::read_prices(options.prices.as_deref())?;
    let instance = prices.instance(&setup.worker.instance)?;
    let on_demand = prices.per_worker_hour(&instance.name, Capacity::OnDemand)?;
    let worker_prices = WorkerPrices { spot: instance.per_gpu_hour(Capacity::Spot), on_demand };
    let trace = match &options.workload {
        Some(path) => {
            let workload = Workload::parse(&read(path)?)?;
            let load = options.loads.first().or_else(|| workload.loads.first()).copied().unwrap_or(Load::Share(0.5));
            let trace = workload.trace(&costs, load)?;
            if trace.jobs.iter().any(|job| job.images > setup.worker.images_in_batch_max) {
                return Err(
                    anyhow::anyhow!("the workload has jobs of more images than worker.images_in_batch_max").into()
                );
            }
            setup.arrivals.hours = trace.jobs.last().map_or(0.0, |job| job.arrived_us as f64 / 3.6e9);
            trace
        }
        None => scaling::trace(&setup, &costs)?,
    };
    let comparison = scaling::compare(&setup, &trace, &costs, worker_prices, |run| {
        output.note(format!("{}: {run}", setup.name));
    })?;
    if let Some(folder) = &options.out {
        write(folder, scaling::plots(&setup.name, &comparison.rules))?;
    }
    let ratios = scaling::ratios(&comparison.rules);
    let tables =
        [scaling::table(&comparison.rules), scaling::ratio_table(&ratios), scaling::spot_table(&comparison.spot)];
    let value = json!({
        "scaling": setup.name, "costs": costs.name(), "instance": instance.name, "jobs": trace.jobs.len(),
        "runs": comparison.rules, "ratios": ratios, "spot": comparison.spot,
    });
    output.line(tables.join("\n").trim_end(), &value);
    Ok(Exit::Success)
}

fn replay(path: &Path, options: &SimulateOptions, output: &Output) -> Result<Exit, Failed> {
    let mut workload = Workload::parse(&read(path)?)?;
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
        write(folder, simulation::plots(&workload.name, &reports))?;
    }
    let tables = [report::table(&reports), report::group_table(&reports), report::estimate_table(&reports)];
    let text = tables.join("\n");
    let value = json!({"workload": workload.name, "costs": costs.name(), "workers": workload.workers, "runs": reports});
    output.line(text.trim_end(), &value);
    Ok(Exit::Success)
}
