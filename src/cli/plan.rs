//! `plan`: which machines, how many and how they are bought, for so many jobs a second and a promised wait, with no bus.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use darkroom::job::Capacity;
use darkroom::simulation::costs::Costs;
use darkroom::simulation::planning::{self, Machine, Wish};
use darkroom::simulation::scaling::WorkerPrices;
use darkroom::wire::price::{InstancePrice, Prices};
use serde_json::json;

use super::output::Output;
use super::{Exit, Failed};

#[derive(Debug, clap::Args)]
pub(crate) struct PlanOptions {
    /// The model whose cost tables come along: sd15 or sdxl
    #[arg(long, value_name = "NAME", required_unless_present = "costs")]
    model: Option<String>,
    /// Instead: a cost table of your own, in the form of docs/workloads/costs; it is that of --gpu
    #[arg(long, value_name = "FILE", requires = "gpu", conflicts_with = "model")]
    costs: Option<PathBuf>,
    /// Only machines with this GPU, as the prices call it: A10G
    #[arg(long, value_name = "NAME")]
    gpu: Option<String>,
    /// Jobs that come in a second, at the peak that is to be served
    #[arg(long, value_name = "JOBS/S")]
    rate: f64,
    /// 95 % of the jobs begin within this time, such as 5s
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    slo: Duration,
    /// What machines cost: a file in the form of infra/prices.toml, which comes along
    #[arg(long, env = "DARKROOM_PRICES", value_name = "FILE")]
    prices: Option<PathBuf>,
    /// Denoising steps with their shares
    #[arg(long, value_name = "N:SHARE,…", value_delimiter = ',', value_parser = weighed, default_value = "20:1")]
    steps: Vec<(u32, f64)>,
    /// Pixels a side with their shares; 512 for sd15 and 1024 otherwise when absent
    #[arg(long, value_name = "N:SHARE,…", value_delimiter = ',', value_parser = weighed)]
    size: Vec<(u32, f64)>,
    /// Images in a job with their shares
    #[arg(long, value_name = "N:SHARE,…", value_delimiter = ',', value_parser = weighed, default_value = "1:1")]
    images: Vec<(u32, f64)>,
    /// Share of the jobs that must not be interrupted
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    on_demand_share: f64,
    /// How often a spot machine is taken away in an hour
    #[arg(long, value_name = "N", default_value_t = 0.05)]
    interruptions: f64,
    /// How long before a spot machine is told
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "2m")]
    notice: Duration,
    /// From the wish for a worker to its first step
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "90s")]
    cold_start: Duration,
    /// Images that fit into the GPU's memory together: darkroom profile tells
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=64))]
    images_in_batch_max: u32,
    /// Where the replay's chance begins
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

/// A number and its share: `20:0.7`, or `20` for a share of 1.
fn weighed(text: &str) -> Result<(u32, f64), String> {
    let (number, share) = text.split_once(':').unwrap_or((text, "1"));
    let number = number.parse().ok().filter(|number| *number > 0);
    let share = share.parse().ok().filter(|share: &f64| share.is_finite() && *share > 0.0);
    number.zip(share).ok_or_else(|| "must be a number above 0, or N:SHARE such as 20:0.7".to_owned())
}

/// What a worker on this machine costs.
fn worker_prices(instance: &InstancePrice) -> Option<WorkerPrices> {
    let on_demand = instance.per_gpu_hour(Capacity::OnDemand)?;
    Some(WorkerPrices { spot: instance.per_gpu_hour(Capacity::Spot), on_demand })
}

/// Prices from a file, or those that come along.
pub(super) fn read_prices(path: Option<&Path>) -> Result<Prices, Failed> {
    let Some(path) = path else { return Ok(Prices::come_along()?) };
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(Prices::parse(&text).with_context(|| format!("in {}", path.display()))?)
}

pub(crate) fn plan(options: &PlanOptions, output: &Output) -> Result<Exit, Failed> {
    let prices = read_prices(options.prices.as_deref())?;
    let own = match &options.costs {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
            Some(Costs::parse(&text).with_context(|| format!("in {}", path.display()))?)
        }
        None => None,
    };
    let model = options.model.as_deref().unwrap_or_default();
    let mut machines = Vec::new();
    for instance in prices.instances() {
        if options.gpu.as_ref().is_some_and(|gpu| !gpu.eq_ignore_ascii_case(&instance.gpu)) {
            continue;
        }
        let costs = own.clone().or_else(|| Costs::of_gpu(&instance.gpu, model));
        match costs.zip(worker_prices(instance)) {
            Some((costs, prices)) => {
                let InstancePrice { name, gpu, gpus, .. } = instance.clone();
                machines.push((Machine { instance: name, gpu, gpus, prices }, costs));
            }
            None => output
                .note(format!("{}: left out, there is no cost table of {} for {model}", instance.name, instance.gpu)),
        }
    }
    if machines.is_empty() {
        return Err(Failed::new(
            Exit::InvalidRequest,
            "no_machine",
            anyhow!(
                "no machine in the prices has a cost table; --model must be sd15 or sdxl, --gpu one of the prices' GPUs"
            ),
        ));
    }
    let side = if model == "sd15" { 512 } else { 1024 };
    let wish = Wish {
        rate_per_s: options.rate,
        wait_p95: options.slo,
        steps: options.steps.clone(),
        sides: if options.size.is_empty() { vec![(side, 1.0)] } else { options.size.clone() },
        images: options.images.clone(),
        on_demand_share: options.on_demand_share,
        interruptions_per_hour: options.interruptions,
        notice: options.notice,
        cold_start: options.cold_start,
        images_in_batch_max: options.images_in_batch_max,
        seed: options.seed,
    };
    let advice = planning::advise(&wish, &machines)?;
    let text = format!("{}\n{}", planning::table(&advice.candidates), advice.reasons.join("\n"));
    output.line(text, &json!({"best": advice.best(), "candidates": advice.candidates, "reasons": advice.reasons}));
    Ok(if advice.best().is_some() { Exit::Success } else { Exit::Failure })
}
