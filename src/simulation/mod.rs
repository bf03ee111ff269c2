//! A fleet of workers in virtual time: the same arrivals and costs under Darkroom's scheduler and under other policies.
//!
//! What drives the workers of Darkroom is [`crate::sched::Scheduler`] as it is in production, with its pulls, claims
//! and leases. There are no faults here, no cold starts, no memory limits and no prompts: `tests/sim` is where things
//! go wrong. It reads no clock, no file and no environment; its chance comes from the workload's seed.

pub mod costs;
mod events;
pub mod ledger;
pub mod planning;
pub mod plot;
pub mod policy;
mod random;
pub mod report;
pub mod scaling;
pub mod workload;

use costs::Costs;
use ledger::Ledger;
use policy::Policy;
use report::Report;
use workload::{LatencyMs, Load, Trace, Workload, WorkloadError};

/// What cannot happen; a policy is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SimulationError {
    /// Nothing happens any more.
    #[error("job {job} never ends")]
    Unfinished {
        /// Its place in the trace.
        job: u32,
    },
    /// It was done before.
    #[error("job {job} ends twice")]
    FinishedTwice {
        /// Its place in the trace.
        job: u32,
    },
}

/// A comparison that came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ComparisonError {
    /// The workload or its costs cannot be used.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    /// A policy does not do its work.
    #[error("under the policy {policy}")]
    Policy {
        /// Which.
        policy: Policy,
        /// What it does instead.
        source: SimulationError,
    },
}

/// The machines that a trace is replayed on.
#[derive(Clone, Debug)]
pub struct Fleet {
    /// GPUs.
    pub workers: u32,
    /// Images that step together at most, for policies that batch by steps.
    pub images_in_batch_max: u32,
    /// Round trips.
    pub latency_ms: LatencyMs,
}

impl From<&Workload> for Fleet {
    fn from(workload: &Workload) -> Self {
        let latency_ms = workload.latency_ms.clone();
        Self { workers: workload.workers, images_in_batch_max: workload.images_in_batch_max, latency_ms }
    }
}

/// Replays a trace under a policy.
///
/// # Errors
/// When a job does not end exactly once, which is a bug of the policy.
pub fn simulate<'a>(
    policy: Policy,
    fleet: &Fleet,
    trace: &'a Trace,
    costs: &'a Costs,
) -> Result<Ledger<'a>, SimulationError> {
    policy.run(fleet, Ledger::new(trace, costs))?.close()
}

/// Replays every load of a workload under every policy; `begins` hears of each run before it.
///
/// # Errors
/// When the workload asks for what the costs have not, or a policy has a bug.
pub fn compare(
    workload: &Workload,
    costs: &Costs,
    policies: &[Policy],
    mut begins: impl FnMut(Policy, &str),
) -> Result<Vec<Report>, ComparisonError> {
    let fleet = Fleet::from(workload);
    let mut reports = Vec::new();
    for load in workload.loads.iter().copied() {
        let trace = workload.trace(costs, load)?;
        for policy in policies.iter().copied() {
            begins(policy, &load.label());
            let ledger =
                simulate(policy, &fleet, &trace, costs).map_err(|source| ComparisonError::Policy { policy, source })?;
            reports.push(Report::new(policy, load, fleet.workers, &ledger));
        }
    }
    Ok(reports)
}

/// Names and texts of the plots that show a comparison.
pub fn plots(name: &str, reports: &[Report]) -> Vec<(String, String)> {
    let mut loads: Vec<&str> = reports.iter().map(|report| report.load.as_str()).collect();
    loads.dedup();
    let mut files = Vec::new();
    for load in &loads {
        let chosen: Vec<&Report> = reports.iter().filter(|report| report.load == *load).collect();
        let svg = plot::total_times(&format!("{name}, load {load}: total time"), &chosen);
        let word: String = load.chars().filter(char::is_ascii_alphanumeric).collect();
        files.push((format!("{name}-total-{word}.svg"), svg));
    }
    // Where all jobs come at once, times say how many they are, not how the policy does.
    let saturated = Load::SATURATED.label();
    let steady: Vec<&Report> = reports.iter().filter(|report| report.load != saturated).collect();
    if loads.iter().filter(|load| **load != saturated).count() > 1 {
        files.push((format!("{name}-p95.svg"), plot::p95_by_load(&format!("{name}: p95 of total time"), &steady)));
    }
    files
}

/// Milliseconds as microseconds.
fn micros(millis: f64) -> u64 {
    (millis.max(0.0) * 1e3).round() as u64
}
