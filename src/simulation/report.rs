//! What a run was like: throughput, waiting, waste and fairness, as numbers and as tables.
//!
//! A job waits from its arrival to its first step, and takes from its arrival until its images are stored and its event
//! is published. Fairness is Jain's index over what tenants got for their weight, in windows of time in which at least
//! two of them had jobs waiting throughout; 1 is even, 1/n is all for one of n.

use std::fmt::Write;

use serde::Serialize;

use crate::job::Priority;

use super::ledger::Ledger;
use super::policy::Policy;
use super::workload::Load;

/// Points of a distribution that plots need.
const CDF_POINTS: usize = 200;
/// An estimate that is off by no more is as good as a right one, in microseconds.
const CLOSE_US: u64 = 1_000_000;

/// Percentiles in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// Half are below.
    pub p50_ms: f64,
    /// 19 of 20 are below.
    pub p95_ms: f64,
    /// 99 of 100 are below.
    pub p99_ms: f64,
}

/// Jobs that have something in common.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Group {
    /// What it is.
    pub name: String,
    /// How many.
    pub jobs: usize,
    /// From arrival to the first step.
    pub wait: Spread,
    /// From arrival to the end.
    pub total: Spread,
    /// Share of the jobs with a deadline that kept it.
    pub in_time: Option<f64>,
    /// GPU seconds spent on it, where that was counted.
    pub gpu_s: Option<f64>,
    /// How far off the estimated starts were, where there were any.
    pub estimate: Option<EstimateError>,
}

/// How far off the estimates were that clients got.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct EstimateError {
    /// Share of all jobs that had one.
    pub share: f64,
    /// Half of the jobs began closer to the estimated time, in milliseconds.
    pub p50_ms: f64,
    /// 19 of 20 did.
    pub p95_ms: f64,
    /// Share that began within a second, or a fifth of the wait, of it.
    pub close: f64,
}

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The policy.
    pub policy: String,
    /// The load.
    pub load: String,
    /// GPUs.
    pub workers: u32,
    /// From the first arrival to the last end, in seconds.
    pub span_s: f64,
    /// Jobs ended in a second.
    pub jobs_per_s: f64,
    /// Images made in a second.
    pub images_per_s: f64,
    /// Share of the time that GPUs worked.
    pub gpu_used: f64,
    /// GPU seconds in which the engine worked.
    pub gpu_busy_s: f64,
    /// GPU seconds of steps that nobody wanted.
    pub gpu_wasted_s: f64,
    /// Images in a step, on average.
    pub images_in_step: f64,
    /// Jobs that ended in time, or had no deadline, in a second.
    pub in_time_per_s: f64,
    /// Jain's index, where two tenants ever waited at the same time.
    pub jain: Option<f64>,
    /// Windows that it was taken over.
    pub jain_windows: usize,
    /// All jobs.
    pub overall: Group,
    /// By tenant.
    pub tenants: Vec<Group>,
    /// By priority.
    pub priorities: Vec<Group>,
    /// Total times in milliseconds at evenly spaced shares of all jobs, the last being the longest.
    pub total_cdf_ms: Vec<f64>,
}

/// The value below which `share` of all are, by nearest rank; `sorted` grows.
pub fn percentile(sorted: &[u64], share: f64) -> u64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(0)
}

/// Jain's index of fairness: (Σx)² / (n Σx²).
pub fn jain(shares: &[f64]) -> Option<f64> {
    let squares: f64 = shares.iter().map(|share| share * share).sum();
    let sum: f64 = shares.iter().sum();
    (squares > 0.0).then(|| sum * sum / (shares.len() as f64 * squares))
}

impl Report {
    /// Sums up a run.
    pub fn new(policy: Policy, load: Load, workers: u32, ledger: &Ledger<'_>) -> Self {
        let jobs = &ledger.trace.jobs;
        let first = jobs.first().map_or(0, |job| job.arrived_us);
        let last = ledger.finished_us.iter().copied().max().unwrap_or(first);
        let span_s = (last - first).max(1) as f64 / 1e6;
        let images: u64 = jobs.iter().map(|job| u64::from(job.images)).sum();
        let in_time = |index: usize| ledger.finished_us[index] <= jobs[index].deadline_us;
        let in_time_all = (0..jobs.len()).filter(|index| in_time(*index)).count();
        let group = |name: &str, gpu_ns: Option<u64>, chosen: &dyn Fn(usize) -> bool| {
            let members: Vec<usize> = (0..jobs.len()).filter(|index| chosen(*index)).collect();
            let with_deadline = members.iter().filter(|index| jobs[**index].deadline_us < u64::MAX);
            let (mut kept, mut had) = (0_usize, 0_usize);
            for index in with_deadline {
                had += 1;
                kept += usize::from(in_time(*index));
            }
            let wait = |index: &usize| ledger.started_us[*index].saturating_sub(jobs[*index].arrived_us);
            let total = |index: &usize| ledger.finished_us[*index].saturating_sub(jobs[*index].arrived_us);
            Group {
                name: name.to_owned(),
                jobs: members.len(),
                wait: spread(members.iter().map(wait).collect()),
                total: spread(members.iter().map(total).collect()),
                in_time: (had > 0).then(|| kept as f64 / had as f64),
                gpu_s: gpu_ns.map(|ns| ns as f64 / 1e9),
                estimate: estimate_error(ledger, &members),
            }
        };
        let tenant = |(index, name): (u32, &String)| {
            group(name, ledger.service_ns.get(index as usize).copied(), &|job| jobs[job].tenant == index)
        };
        let priority = |priority: &Priority| group(priority.as_str(), None, &|job| jobs[job].priority == *priority);
        let (jain, jain_windows) = fairness(ledger);
        let mut totals: Vec<u64> =
            jobs.iter().zip(&ledger.finished_us).map(|(job, finished)| finished - job.arrived_us).collect();
        totals.sort_unstable();
        let point = |nth: usize| percentile(&totals, nth as f64 / CDF_POINTS as f64) as f64 / 1e3;
        Self {
            policy: policy.as_str().to_owned(),
            load: load.label(),
            workers,
            span_s,
            jobs_per_s: jobs.len() as f64 / span_s,
            images_per_s: images as f64 / span_s,
            gpu_used: ledger.busy_us as f64 / 1e6 / (span_s * f64::from(workers)),
            gpu_busy_s: ledger.busy_us as f64 / 1e6,
            gpu_wasted_s: ledger.wasted_ns as f64 / 1e9,
            images_in_step: ledger.image_steps as f64 / ledger.steps.max(1) as f64,
            in_time_per_s: in_time_all as f64 / span_s,
            jain,
            jain_windows,
            overall: group("all", Some(ledger.service_ns.iter().sum()), &|_| true),
            tenants: (0_u32..).zip(&ledger.trace.tenants).map(tenant).collect(),
            priorities: Priority::ALL.iter().map(priority).filter(|group| group.jobs > 0).collect(),
            total_cdf_ms: (1..=CDF_POINTS).map(point).collect(),
        }
    }
}

pub(super) fn spread(mut values_us: Vec<u64>) -> Spread {
    values_us.sort_unstable();
    let at = |share| percentile(&values_us, share) as f64 / 1e3;
    Spread { p50_ms: at(0.5), p95_ms: at(0.95), p99_ms: at(0.99) }
}

fn estimate_error(ledger: &Ledger<'_>, members: &[usize]) -> Option<EstimateError> {
    let (mut errors_us, mut close) = (Vec::new(), 0_usize);
    for index in members {
        let (estimated_us, started_us) = (ledger.estimated_start_us[*index], ledger.started_us[*index]);
        if estimated_us == u64::MAX {
            continue;
        }
        let error_us = estimated_us.abs_diff(started_us);
        close += usize::from(error_us <= CLOSE_US.max((started_us - ledger.trace.jobs[*index].arrived_us) / 5));
        errors_us.push(error_us);
    }
    let jobs = errors_us.len();
    let Spread { p50_ms, p95_ms, .. } = spread(errors_us);
    let of = |part: usize, all: usize| part as f64 / all as f64;
    (jobs > 0).then(|| EstimateError { share: of(jobs, members.len()), p50_ms, p95_ms, close: of(close, jobs) })
}

/// The mean of Jain's index over the windows in which tenants competed, and how many these are.
fn fairness(ledger: &Ledger<'_>) -> (Option<f64>, usize) {
    let trace = ledger.trace;
    let tenants = trace.tenants.len();
    let windows = ledger.windows_ns.len() / tenants.max(1);
    let mut waits = vec![false; windows * tenants];
    for tenant in 0..tenants {
        let own = || trace.jobs.iter().enumerate().filter(|(_, job)| job.tenant as usize == tenant);
        let mut changes: Vec<(u64, i64)> = own().map(|(_, job)| (job.arrived_us, 1)).collect();
        changes.extend(own().map(|(index, _)| (ledger.started_us[index], -1)));
        // At one time, arrivals count before starts, so that a queue that is handed on is not taken for empty.
        changes.sort_unstable_by_key(|(at, change)| (*at, -*change));
        let mut changes = changes.into_iter().peekable();
        let mut waiting = 0;
        for window in 0..windows {
            let end_us = (window as u64 + 1) * trace.window_us;
            let mut least = waiting;
            // What arrives with the beginning of everything has waited from the beginning.
            if window == 0 {
                while let Some((_, change)) = changes.next_if(|(at, change)| *at == 0 && *change > 0) {
                    waiting += change;
                }
                least = waiting;
            }
            while let Some((_, change)) = changes.next_if(|(at, _)| *at < end_us) {
                waiting += change;
                least = least.min(waiting);
            }
            waits[window * tenants + tenant] = least > 0;
        }
    }
    let mut indices = Vec::new();
    for window in 0..windows {
        let of_window = window * tenants..(window + 1) * tenants;
        let got = ledger.windows_ns[of_window.clone()].iter().zip(&trace.weights).zip(&waits[of_window]);
        let shares: Vec<f64> = got.filter(|(_, waits)| **waits).map(|((ns, weight), _)| ns / weight).collect();
        if shares.len() > 1 {
            indices.extend(jain(&shares));
        }
    }
    let mean = indices.iter().sum::<f64>() / indices.len().max(1) as f64;
    ((!indices.is_empty()).then_some(mean), indices.len())
}

/// One row for each run.
pub fn table(reports: &[Report]) -> String {
    let mut text =
        "| policy | load | jobs/s | images/s | GPU used | GPU s wasted | images in a step | wait p50 / p95 / p99 \
                    s | total p50 / p95 / p99 s | in time | jobs/s in time | Jain |\n\
                    |---|---|---|---|---|---|---|---|---|---|---|---|\n"
            .to_owned();
    for report in reports {
        let Report { overall, .. } = report;
        let jain = report.jain.map_or_else(|| "–".to_owned(), |jain| format!("{jain:.3}"));
        let _ = writeln!(
            text,
            "| {} | {} | {:.2} | {:.2} | {:.1} % | {:.0} | {:.2} | {} | {} | {} | {:.2} | {jain} |",
            report.policy,
            report.load,
            report.jobs_per_s,
            report.images_per_s,
            report.gpu_used * 100.0,
            report.gpu_wasted_s,
            report.images_in_step,
            seconds(overall.wait),
            seconds(overall.total),
            share(overall.in_time),
            report.in_time_per_s,
        );
    }
    text
}

/// One row for each tenant and each priority of each run.
pub fn group_table(reports: &[Report]) -> String {
    let mut text =
        "| policy | load | whose | jobs | wait p50 / p95 / p99 s | total p50 / p95 / p99 s | in time | GPU s |\n\
                    |---|---|---|---|---|---|---|---|\n"
            .to_owned();
    for report in reports {
        for group in report.tenants.iter().chain(&report.priorities) {
            let gpu = group.gpu_s.map_or_else(|| "–".to_owned(), |gpu_s| format!("{gpu_s:.0}"));
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} | {gpu} |",
                report.policy,
                report.load,
                group.name,
                group.jobs,
                seconds(group.wait),
                seconds(group.total),
                share(group.in_time),
            );
        }
    }
    text
}

/// How far off the estimates were, one row for all jobs and for each priority of each run that made any.
pub fn estimate_table(reports: &[Report]) -> String {
    let mut text = String::new();
    for report in reports {
        for group in std::iter::once(&report.overall).chain(&report.priorities) {
            let Some(error) = group.estimate else { continue };
            if text.is_empty() {
                text.push_str(
                    "| policy | load | whose | jobs | with estimate | start off by p50 / p95 s | within 1 s or 20 % |\n\
                     |---|---|---|---|---|---|---|\n",
                );
            }
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} / {} | {} |",
                report.policy,
                report.load,
                group.name,
                group.jobs,
                share(Some(error.share)),
                digits(error.p50_ms),
                digits(error.p95_ms),
                share(Some(error.close)),
            );
        }
    }
    text
}

fn seconds(spread: Spread) -> String {
    format!("{} / {} / {}", digits(spread.p50_ms), digits(spread.p95_ms), digits(spread.p99_ms))
}

fn digits(ms: f64) -> String {
    if ms < 9_995.0 { format!("{:.2}", ms / 1e3) } else { format!("{:.0}", ms / 1e3) }
}

fn share(share: Option<f64>) -> String {
    share.map_or_else(|| "–".to_owned(), |share| format!("{:.1} %", share * 100.0))
}
