//! Fleets whose size changes, in virtual time: the same day of arrivals under Darkroom's own rule and under those of
//! Kubernetes, and on machines that may be taken away.
//!
//! What decides for Darkroom is [`crate::sched::scale::wanted`] as it is in production. What happens inside of a worker is
//! simpler than in production (see `worker.rs`) and the same under every rule. There are no tenants, priorities, deadlines
//! and no round trips to a broker here: [`super::simulate`] has them. Machines are to be had whenever they are asked for.

mod day;
mod fleet;
mod report;
mod rule;
mod setup;
#[cfg(test)]
mod tests;
mod worker;

use std::time::Duration;

use super::SimulationError;
use super::costs::Costs;
use super::workload::Trace;

pub use day::trace;
pub use report::{Outcome, Ratio, plots, ratio_table, ratios, spot_table, table};
pub use rule::Rule;
pub use setup::{Arrivals, Darkroom, Kubernetes, Setup, SetupError, Spot, Worker};

/// Dollars an hour for a worker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WorkerPrices {
    /// On a machine that may be taken away, where there are any.
    pub spot: Option<f64>,
    /// At the list price.
    pub on_demand: f64,
}

/// What a worker does when it is told that its machine will be taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnNotice {
    /// It goes on until it is gone.
    Ignore,
    /// It takes no more jobs and ends those that it can.
    Drain,
    /// It writes down where its jobs are after the present step, and gives them to others.
    HandOver,
}

impl OnNotice {
    fn label(self) -> &'static str {
        match self {
            Self::Ignore => "goes on",
            Self::Drain => "drains",
            Self::HandOver => "hands over",
        }
    }
}

/// Machines that may be taken away.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interruptions {
    /// How often one is, in an hour.
    pub interruptions_per_hour: f64,
    /// How long before it is told, in microseconds.
    pub notice_us: u64,
    /// What it then does.
    pub on_notice: OnNotice,
}

/// One run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Run {
    /// Who decides.
    pub rule: Rule,
    /// Where there are machines that may be taken away; only on-demand ones otherwise.
    pub spot: Option<Interruptions>,
    /// Jobs are written down after so many steps; never when absent.
    pub checkpoint_steps: Option<u32>,
    /// What workers cost.
    pub prices: WorkerPrices,
    /// Runs that differ in it differ in how long starts take, who is served and which machines are taken away.
    pub chance: u64,
}

/// Everything a scaling file asks for.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// All rules on on-demand machines, ours once for each wait.
    pub rules: Vec<Outcome>,
    /// Ours on machines that may be taken away, the first on on-demand ones; empty where the file or the price has none.
    pub spot: Vec<Outcome>,
}

/// A comparison that came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ScalingError {
    /// The file cannot be used.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// A rule leaves jobs behind.
    #[error("under {rule}")]
    Rule {
        /// Which.
        rule: String,
        /// What it does.
        source: SimulationError,
    },
}

/// Replays a trace once.
///
/// # Errors
/// When a job is never done: the fleet is too small for ever, or a rule has a bug.
pub fn simulate(setup: &Setup, run: &Run, trace: &Trace, costs: &Costs) -> Result<Outcome, SimulationError> {
    let books = fleet::Fleet::new(setup, run, trace, costs).play()?;
    Ok(Outcome::new(run, &books))
}

/// Replays a trace under every rule that `setup` names; `begins` hears of each run before it.
///
/// # Errors
/// When a rule leaves jobs behind.
pub fn compare(
    setup: &Setup,
    trace: &Trace,
    costs: &Costs,
    prices: WorkerPrices,
    mut begins: impl FnMut(&str),
) -> Result<Comparison, ScalingError> {
    let mut play = |run: &Run, name: String, repeats: u32| {
        begins(&name);
        let once = |chance| simulate(setup, &Run { chance, ..*run }, trace, costs);
        let all = once(0).and_then(|first| {
            let others: Result<Vec<Outcome>, _> = (1..u64::from(repeats)).map(once).collect();
            Ok(Outcome::mean(first, &others?))
        });
        let outcome = all.map_err(|source| ScalingError::Rule { rule: name.clone(), source })?;
        Ok::<_, ScalingError>(Outcome { name, ..outcome })
    };
    let waits = setup.darkroom.target_waits_s.iter().map(|wait| Rule::Darkroom { target_wait: seconds(*wait) });
    let thresholds = || setup.kubernetes.lag_thresholds.iter().copied();
    let rules = waits
        .chain(thresholds().map(|lag_threshold| Rule::ScaledObject { lag_threshold }))
        .chain(thresholds().map(|lag_threshold| Rule::ScaledJob { lag_threshold }))
        .chain([Rule::QueueHpa { queue_per_worker: setup.kubernetes.queue_per_worker }])
        .chain(setup.fixed.iter().map(|workers| Rule::Fixed { workers: *workers }));
    let on_demand = |rule| Run { rule, spot: None, checkpoint_steps: None, prices, chance: 0 };
    let rules = rules.map(|rule| play(&on_demand(rule), rule.label(), 1)).collect::<Result<_, _>>()?;
    let mut spot = Vec::new();
    if let Some(of) = setup.spot.as_ref().filter(|_| prices.spot.is_some()) {
        let rule = Rule::Darkroom { target_wait: seconds(of.target_wait_s) };
        spot.push(play(&on_demand(rule), "on-demand only".to_owned(), of.repeats)?);
        for interruptions_per_hour in of.interruptions_per_hour.iter().copied() {
            let ways = [
                (OnNotice::Ignore, None),
                (OnNotice::Ignore, Some(of.checkpoint_steps)),
                (OnNotice::Drain, None),
                (OnNotice::HandOver, Some(of.checkpoint_steps)),
            ];
            for (on_notice, checkpoint_steps) in ways {
                let notice_us = (of.notice_s * 1e6) as u64;
                let interruptions = Interruptions { interruptions_per_hour, notice_us, on_notice };
                let run = Run { rule, spot: Some(interruptions), checkpoint_steps, prices, chance: 0 };
                let checkpoints =
                    checkpoint_steps.map_or_else(|| "none".to_owned(), |steps| format!("every {steps} steps"));
                let percent = interruptions_per_hour * 100.0;
                let name = format!("{percent:.0} %/h, {}, checkpoints {checkpoints}", on_notice.label());
                spot.push(play(&run, name, of.repeats)?);
            }
        }
    }
    Ok(Comparison { rules, spot })
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}
