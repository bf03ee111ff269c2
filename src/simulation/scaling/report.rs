//! What a day under a rule cost, and how long its jobs waited.

use std::fmt::Write;

use serde::Serialize;

use crate::simulation::plot::{self, Line};
use crate::simulation::report::{Spread, spread};

use super::fleet::Books;
use super::{Rule, Run};

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// What it is called.
    pub name: String,
    /// Who decided.
    pub rule: Rule,
    /// Jobs.
    pub jobs: usize,
    /// Hours of all workers, from being asked for until they ended.
    pub gpu_hours: f64,
    /// Of these, on machines that may be taken away.
    pub spot_hours: f64,
    /// Dollars.
    pub cost: f64,
    /// Share of the time in which engines worked.
    pub busy: f64,
    /// Share of the time in which workers started.
    pub starting: f64,
    /// The rest.
    pub idle: f64,
    /// From arrival to the first step.
    pub wait: Spread,
    /// From arrival to the end.
    pub total: Spread,
    /// Jobs that were given back because their worker was ended while it had them.
    pub disturbed_by_scaling_in: u32,
    /// The same because the machine was taken away.
    pub disturbed_by_spot: f64,
    /// Machines that were taken away.
    pub notices: f64,
    /// Engine time that was lost and spent again, in seconds.
    pub wasted_gpu_s: f64,
    /// Workers that were started.
    pub starts: u32,
    /// Workers at the same time, at most.
    pub workers_most: u32,
    /// Workers at the beginning of every minute.
    pub workers: Vec<u32>,
}

impl Outcome {
    pub(super) fn new(run: &Run, books: &Books) -> Self {
        let hours = books.paid_us.map(|us| us as f64 / 3.6e9);
        let paid_us = books.paid_us.iter().sum::<u64>().max(1) as f64;
        let (busy, starting) = (books.busy_us as f64 / paid_us, books.starting_us as f64 / paid_us);
        Self {
            name: run.rule.label(),
            rule: run.rule,
            jobs: books.wait_us.len(),
            gpu_hours: hours[0] + hours[1],
            spot_hours: hours[0],
            cost: hours[0] * run.prices.spot.unwrap_or(0.0) + hours[1] * run.prices.on_demand,
            busy,
            starting,
            idle: 1.0 - busy - starting,
            wait: spread(books.wait_us.clone()),
            total: spread(books.total_us.clone()),
            disturbed_by_scaling_in: books.disturbed_by_scaling_in,
            disturbed_by_spot: f64::from(books.disturbed_by_spot),
            notices: f64::from(books.notices),
            wasted_gpu_s: books.lost_us / 1e6,
            starts: books.starts,
            workers_most: books.workers_most,
            workers: books.workers.clone(),
        }
    }

    /// The mean of several; numbers of workers and what scaling in disturbed are the first's.
    pub(super) fn mean(first: Self, others: &[Self]) -> Self {
        let outcomes = || std::iter::once(&first).chain(others);
        let of = |value: &dyn Fn(&Self) -> f64| outcomes().map(value).sum::<f64>() / outcomes().count() as f64;
        let spread = |of_one: &dyn Fn(&Self) -> Spread| Spread {
            p50_ms: of(&|one| of_one(one).p50_ms),
            p95_ms: of(&|one| of_one(one).p95_ms),
            p99_ms: of(&|one| of_one(one).p99_ms),
        };
        Self {
            gpu_hours: of(&|one| one.gpu_hours),
            spot_hours: of(&|one| one.spot_hours),
            cost: of(&|one| one.cost),
            busy: of(&|one| one.busy),
            starting: of(&|one| one.starting),
            idle: of(&|one| one.idle),
            wait: spread(&|one| one.wait),
            total: spread(&|one| one.total),
            disturbed_by_spot: of(&|one| one.disturbed_by_spot),
            notices: of(&|one| one.notices),
            wasted_gpu_s: of(&|one| one.wasted_gpu_s),
            ..first.clone()
        }
    }

    fn is_ours(&self) -> bool {
        matches!(self.rule, Rule::Darkroom { .. })
    }
}

/// Our cheapest run that is as quick as another rule's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ratio {
    /// The other.
    pub other: String,
    /// Ours, where the p95 of the wait is as good; and what it costs for each dollar of the other's.
    pub by_wait: Option<(String, f64)>,
    /// The same, where the p95 of the total time is as good too.
    pub by_wait_and_total: Option<(String, f64)>,
}

/// Compares at equal p95.
pub fn ratios(outcomes: &[Outcome]) -> Vec<Ratio> {
    let (ours, others): (Vec<&Outcome>, Vec<&Outcome>) = outcomes.iter().partition(|outcome| outcome.is_ours());
    let cheapest = |other: &Outcome, is_as_quick: &dyn Fn(&Outcome) -> bool| {
        let quick = ours.iter().filter(|own| is_as_quick(own));
        let best = quick.min_by(|one, two| one.cost.total_cmp(&two.cost))?;
        Some((best.name.clone(), best.cost / other.cost))
    };
    let ratio = |other: &&Outcome| {
        let waits = |own: &Outcome| own.wait.p95_ms <= other.wait.p95_ms;
        Ratio {
            other: other.name.clone(),
            by_wait: cheapest(other, &waits),
            by_wait_and_total: cheapest(other, &|own| waits(own) && own.total.p95_ms <= other.total.p95_ms),
        }
    };
    others.iter().map(ratio).collect()
}

/// One row for each run.
pub fn table(outcomes: &[Outcome]) -> String {
    let mut text =
        "| rule | GPU-hours | cost | busy / starting / idle | wait p50 / p95 / p99 s | total p50 / p95 / p99 s | \
                    jobs disturbed by scaling in | GPU s wasted | starts | workers at most |\n\
                    |---|---|---|---|---|---|---|---|---|---|\n"
            .to_owned();
    for outcome in outcomes {
        let _ = writeln!(
            text,
            "| {} | {:.1} | ${:.2} | {} | {} | {} | {} | {:.0} | {} | {} |",
            outcome.name,
            outcome.gpu_hours,
            outcome.cost,
            shares(outcome),
            seconds(outcome.wait),
            seconds(outcome.total),
            outcome.disturbed_by_scaling_in,
            outcome.wasted_gpu_s,
            outcome.starts,
            outcome.workers_most,
        );
    }
    text
}

/// What ours costs at equal p95, one row for each other rule.
pub fn ratio_table(ratios: &[Ratio]) -> String {
    let mut text = "| against | ours at equal p95 of the wait | cost ratio | and of the total time | cost ratio |\n\
                    |---|---|---|---|---|\n"
        .to_owned();
    let cells = |found: &Option<(String, f64)>| {
        found.as_ref().map_or_else(|| "none | –".to_owned(), |(name, ratio)| format!("{name} | {ratio:.2}"))
    };
    for Ratio { other, by_wait, by_wait_and_total } in ratios {
        let _ = writeln!(text, "| {other} | {} | {} |", cells(by_wait), cells(by_wait_and_total));
    }
    text
}

/// Runs on machines that may be taken away, against the first, which has none of them.
pub fn spot_table(outcomes: &[Outcome]) -> String {
    let mut text =
        "| machines | cost | against on-demand | GPU-hours | of these spot | machines taken away | jobs disturbed | \
                    GPU s wasted | wait p95 / p99 s | total p95 / p99 s |\n|---|---|---|---|---|---|---|---|---|---|\n"
            .to_owned();
    let Some(first) = outcomes.first() else { return String::new() };
    for outcome in outcomes {
        let _ = writeln!(
            text,
            "| {} | ${:.2} | {:.2} | {:.1} | {:.1} | {:.1} | {:.1} | {:.0} | {:.1} / {:.1} | {:.1} / {:.1} |",
            outcome.name,
            outcome.cost,
            outcome.cost / first.cost,
            outcome.gpu_hours,
            outcome.spot_hours,
            outcome.notices,
            outcome.disturbed_by_spot,
            outcome.wasted_gpu_s,
            outcome.wait.p95_ms / 1e3,
            outcome.wait.p99_ms / 1e3,
            outcome.total.p95_ms / 1e3,
            outcome.total.p99_ms / 1e3,
        );
    }
    text
}

/// Names and texts of the plots that show a comparison: cost over the p95 of the wait, and workers over the day, of ours the
/// run that stands against the first of the others.
pub fn plots(name: &str, outcomes: &[Outcome]) -> Vec<(String, String)> {
    let (ours, others): (Vec<&Outcome>, Vec<&Outcome>) = outcomes.iter().partition(|outcome| outcome.is_ours());
    let point = |outcome: &Outcome| (outcome.wait.p95_ms, outcome.cost);
    let mut lines = vec![Line::new("darkroom".to_owned(), ours.iter().map(|own| point(own)).collect())];
    lines.extend(others.iter().map(|other| Line::new(other.name.clone(), vec![point(other)])));
    let mut files = vec![(
        format!("{name}-cost.svg"),
        plot::over_waits(&format!("{name}: cost of the day over p95 of the wait"), "dollars", &lines),
    )];
    let ratios = ratios(outcomes);
    let mut pairs = others.iter().filter(|other| !matches!(other.rule, Rule::Fixed { .. })).filter_map(|other| {
        let (name, _) = ratios.iter().find(|ratio| ratio.other == other.name)?.by_wait.as_ref()?;
        Some((*ours.iter().find(|own| own.name == *name)?, *other))
    });
    if let Some((own, other)) = pairs.next() {
        let by_hour = |outcome: &Outcome| {
            let points = (0_u32..)
                .zip(&outcome.workers)
                .map(|(minute, workers)| (f64::from(minute) / 60.0, f64::from(*workers)));
            Line::new(outcome.name.clone(), points.collect())
        };
        let lines = [by_hour(own), by_hour(other)];
        files.push((format!("{name}-workers.svg"), plot::over_hours(&format!("{name}: workers"), "workers", &lines)));
    }
    files
}

fn shares(outcome: &Outcome) -> String {
    format!("{:.0} / {:.0} / {:.0} %", outcome.busy * 100.0, outcome.starting * 100.0, outcome.idle * 100.0)
}

fn seconds(spread: Spread) -> String {
    format!("{:.1} / {:.1} / {:.1}", spread.p50_ms / 1e3, spread.p95_ms / 1e3, spread.p99_ms / 1e3)
}
