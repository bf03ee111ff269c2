//! A workload: who sends how many jobs of which kind to how many workers, and the trace of arrivals it makes.
//!
//! Jobs are drawn first; from what they cost at best follows the rate at which they arrive. So a load of 0.8 means that
//! the fleet would be busy for 80 % of the time if every batch were full, of one size and of one number of steps.
//! Prompts, samplers and LoRAs are not part of it: they change neither time nor batches.

use std::ops::RangeInclusive;

use serde::Deserialize;

use crate::job::Priority;
use crate::sched::BatchKey;

use super::costs::{Costs, CostsError, MS_MAX};
use super::random::Random;

/// Jobs of a burst follow each other so closely.
const BURST_SPACING_US: u64 = 1000;

/// More than anybody replays, so that memory lasts and times do not overflow.
const WORKERS_MAX: u32 = 100_000;
const JOBS_MAX: u32 = 10_000_000;
const IMAGES_IN_BATCH_MAX: u32 = 1024;
/// Of steps, pixels a side, images and bursts.
const NUMBER_MAX: u32 = 100_000;
/// Of loads and weights.
const SHARES: RangeInclusive<f64> = 1e-6..=1e6;
/// 31 years.
const ARRIVAL_US_MAX: f64 = 1e15;

/// A workload that makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// It is not of the form of workloads.
    #[error("the workload cannot be read")]
    Malformed(#[from] toml::de::Error),
    /// Something in it cannot be.
    #[error("the workload's {field} {problem}")]
    Invalid {
        /// Where.
        field: &'static str,
        /// Why not.
        problem: String,
    },
    /// Its cost table cannot be used.
    #[error(transparent)]
    Costs(#[from] CostsError),
}

/// How much of the fleet's capacity is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Load {
    /// A share of the capacity under the best static batching.
    Share(f64),
    /// All jobs are there from the beginning.
    All(Saturated),
}

/// The word for "all jobs are there from the beginning".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Saturated {
    /// That word.
    Saturated,
}

impl Load {
    /// All jobs are there from the beginning.
    pub const SATURATED: Self = Self::All(Saturated::Saturated);

    /// How tables call it.
    pub fn label(self) -> String {
        match self {
            Self::Share(share) => format!("{:.0} %", share * 100.0),
            Self::All(Saturated::Saturated) => "all at once".to_owned(),
        }
    }
}

/// Round trips beside the engine, in milliseconds.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LatencyMs {
    /// Until a pull is with the broker.
    pub pull: f64,
    /// From the broker to the worker.
    pub deliver: f64,
    /// Taking a job in its record.
    pub claim: f64,
    /// Uploading the images; the baselines pay it too.
    pub store: f64,
    /// Changing the record.
    pub record: f64,
    /// Publishing the terminal event.
    pub publish: f64,
    /// Acknowledging.
    pub settle: f64,
    /// Extending a lease.
    pub extend: f64,
    /// How long a pull waits for messages.
    pub pull_expires: f64,
}

impl LatencyMs {
    fn all(&self) -> [f64; 9] {
        let Self { pull, deliver, claim, store, record, publish, settle, extend, pull_expires } = *self;
        [pull, deliver, claim, store, record, publish, settle, extend, pull_expires]
    }
}

impl Default for LatencyMs {
    fn default() -> Self {
        Self {
            pull: 1.0,
            deliver: 1.0,
            claim: 3.0,
            store: 30.0,
            record: 2.0,
            publish: 2.0,
            settle: 2.0,
            extend: 2.0,
            pull_expires: 1000.0,
        }
    }
}

/// Who sends jobs, and how.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantLoad {
    /// Its name.
    pub name: String,
    /// Its share of all jobs; shares need not add up to 1.
    pub share: f64,
    /// What it may use, compared with others.
    #[serde(default = "one")]
    pub weight: f64,
    /// So many jobs arrive together; 1 is a Poisson process.
    #[serde(default = "one_job")]
    pub burst: u32,
    /// Instead of the workload's: pairs of denoising steps and share.
    pub steps: Option<Vec<(u32, f64)>>,
    /// Instead of the workload's: pairs of pixels a side and share.
    pub sides: Option<Vec<(u32, f64)>>,
    /// Instead of the workload's: pairs of images in a job and share.
    pub images: Option<Vec<(u32, f64)>>,
    /// Instead of the workload's: pairs of priority and share.
    pub priorities: Option<Vec<(String, f64)>>,
}

fn one() -> f64 {
    1.0
}

fn one_job() -> u32 {
    1
}

/// What is replayed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// What it is called.
    pub name: String,
    /// Where chance begins.
    pub seed: u64,
    /// GPUs.
    pub workers: u32,
    /// Jobs of all tenants together.
    pub jobs: u32,
    /// The cost table that comes along under this name.
    pub costs: String,
    /// It is replayed once with each.
    pub loads: Vec<Load>,
    /// Images that step together at most.
    pub images_in_batch_max: u32,
    /// Pairs of denoising steps and share.
    pub steps: Vec<(u32, f64)>,
    /// Pairs of pixels a side and share.
    pub sides: Vec<(u32, f64)>,
    /// Pairs of images in a job and share.
    pub images: Vec<(u32, f64)>,
    /// Pairs of priority and share.
    pub priorities: Vec<(String, f64)>,
    /// Pairs of a deadline, as a multiple of the job's time on an idle GPU, and share of the jobs that have it.
    #[serde(default)]
    pub deadlines: Vec<(f64, f64)>,
    /// Fairness is looked at in windows of so many milliseconds.
    #[serde(default = "ten_seconds")]
    pub fairness_window_ms: f64,
    /// Round trips.
    #[serde(default)]
    pub latency_ms: LatencyMs,
    /// Who sends the jobs.
    pub tenants: Vec<TenantLoad>,
}

fn ten_seconds() -> f64 {
    10_000.0
}

/// One job of a trace. Times are microseconds since the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    /// When it is published.
    pub arrived_us: u64,
    /// When it should be done; the end of time when nobody said.
    pub deadline_us: u64,
    /// Index of its tenant.
    pub tenant: u32,
    /// Its priority.
    pub priority: Priority,
    /// Its size.
    pub key: BatchKey,
    /// Denoising steps of each image.
    pub steps: u32,
    /// Images.
    pub images: u32,
}

/// Jobs in the order of their arrival.
#[derive(Clone, Debug)]
pub struct Trace {
    /// The jobs.
    pub jobs: Vec<Job>,
    /// Names of the tenants.
    pub tenants: Vec<String>,
    /// What each tenant may use, compared with others.
    pub weights: Vec<f64>,
    /// Fairness is looked at in windows of this length.
    pub window_us: u64,
}

impl Workload {
    /// Reads a workload.
    ///
    /// # Errors
    /// When it is none, or asks for what cannot be.
    pub fn parse(text: &str) -> Result<Self, WorkloadError> {
        let workload: Self = toml::from_str(text)?;
        workload.check()?;
        Ok(workload)
    }

    fn check(&self) -> Result<(), WorkloadError> {
        let invalid = |field, problem: &str| Err(WorkloadError::Invalid { field, problem: problem.to_owned() });
        for (field, number, most) in [
            ("workers", self.workers, WORKERS_MAX),
            ("jobs", self.jobs, JOBS_MAX),
            ("images_in_batch_max", self.images_in_batch_max, IMAGES_IN_BATCH_MAX),
        ] {
            if !(1..=most).contains(&number) {
                return invalid(field, &format!("must be 1 to {most}"));
            }
        }
        let share_is_wrong = |load: &Load| matches!(load, Load::Share(share) if !SHARES.contains(share));
        if self.loads.is_empty() || self.loads.iter().any(share_is_wrong) {
            return invalid("loads", "must hold shares above 0 or \"saturated\"");
        }
        let weighs = |tenant: &TenantLoad| SHARES.contains(&tenant.weight) && (1..=NUMBER_MAX).contains(&tenant.burst);
        if self.tenants.is_empty() || !self.tenants.iter().all(weighs) {
            return invalid("tenants", "must be there, with weights and bursts above 0");
        }
        if !(1.0..=MS_MAX).contains(&self.fairness_window_ms) {
            return invalid("fairness_window_ms", &format!("must be 1 to {MS_MAX}"));
        }
        if !self.latency_ms.all().into_iter().all(|ms| (0.0..=MS_MAX).contains(&ms)) {
            return invalid("latency_ms", &format!("must be 0 to {MS_MAX}"));
        }
        let mixes = |own: &Option<Vec<(u32, f64)>>, common: &Vec<(u32, f64)>| own.as_ref().unwrap_or(common).clone();
        for tenant in &self.tenants {
            let images = mixes(&tenant.images, &self.images);
            if images.iter().any(|(images, _)| *images > self.images_in_batch_max) {
                return invalid("images", "must not be more than images_in_batch_max");
            }
            let numbers = [images, mixes(&tenant.steps, &self.steps), mixes(&tenant.sides, &self.sides)];
            if numbers
                .iter()
                .any(|mix| !sensible(mix) || mix.iter().any(|(number, _)| !(1..=NUMBER_MAX).contains(number)))
            {
                return invalid("steps, sides and images", "must be numbers above 0 with shares");
            }
            let priorities = tenant.priorities.as_ref().unwrap_or(&self.priorities);
            if !sensible(priorities) || priorities.iter().any(|(name, _)| name.parse::<Priority>().is_err()) {
                return invalid("priorities", "must be high, normal or low with shares");
            }
        }
        let shares: Vec<((), f64)> = self.tenants.iter().map(|tenant| ((), tenant.share)).collect();
        if !sensible(&shares)
            || !self.deadlines.iter().all(|(times, share)| *times > 0.0 && (0.0..=1.0).contains(share))
        {
            return invalid("shares", "must not be negative, and not all be 0");
        }
        Ok(())
    }

    /// The arrivals under a load.
    ///
    /// # Errors
    /// When the cost table lacks a size.
    pub fn trace(&self, costs: &Costs, load: Load) -> Result<Trace, WorkloadError> {
        let mut jobs: Vec<(u64, Job)> = Vec::with_capacity(self.jobs as usize);
        let all: f64 = self.tenants.iter().map(|tenant| tenant.share).sum();
        let mut counts = Vec::new();
        let mut order = Random::new(self.seed, 0);
        for (index, tenant) in (0_u32..).zip(&self.tenants) {
            let left = self.jobs - counts.iter().sum::<u32>();
            let is_last = index as usize + 1 == self.tenants.len();
            let own = (f64::from(self.jobs) * tenant.share / all).round() as u32;
            let count = if is_last { left } else { own.min(left) };
            counts.push(count);
            let mut random = Random::new(self.seed, 1 + 2 * u64::from(index));
            for _ in 0..count {
                jobs.push((order.next(), self.draw(index, tenant, costs, &mut random)?));
            }
        }
        if let Load::Share(share) = load {
            let cost_us =
                |job: &Job| f64::from(job.images) * costs.best_image_us(job.key, job.steps, self.images_in_batch_max);
            let mean_us = jobs.iter().map(|(_, job)| cost_us(job)).sum::<f64>() / jobs.len().max(1) as f64;
            let between_us = mean_us / (f64::from(self.workers) * share);
            let mut rest = jobs.as_mut_slice();
            for ((index, tenant), count) in (0_u64..).zip(&self.tenants).zip(counts) {
                let (own, others) = rest.split_at_mut(count as usize);
                let mut random = Random::new(self.seed, 2 + 2 * index);
                let mean = between_us * f64::from(self.jobs) / f64::from(count.max(1)) * f64::from(tenant.burst);
                let mut now = 0.0;
                for burst in own.chunks_mut(tenant.burst as usize) {
                    now += random.exponential(mean);
                    if now > ARRIVAL_US_MAX {
                        let problem = "spread the jobs over more than 31 years".to_owned();
                        return Err(WorkloadError::Invalid { field: "loads", problem });
                    }
                    for (nth, (_, job)) in (0_u64..).zip(burst) {
                        job.arrived_us = now as u64 + nth * BURST_SPACING_US;
                    }
                }
                rest = others;
            }
        }
        jobs.sort_by_key(|(order, job)| (job.arrived_us, *order));
        let mut jobs: Vec<Job> = jobs.into_iter().map(|(_, job)| job).collect();
        for job in &mut jobs {
            job.deadline_us = job.deadline_us.saturating_add(job.arrived_us);
        }
        Ok(Trace {
            jobs,
            tenants: self.tenants.iter().map(|tenant| tenant.name.clone()).collect(),
            weights: self.tenants.iter().map(|tenant| tenant.weight).collect(),
            window_us: (self.fairness_window_ms * 1e3) as u64,
        })
    }

    fn draw(&self, index: u32, tenant: &TenantLoad, costs: &Costs, random: &mut Random) -> Result<Job, WorkloadError> {
        let side = random.pick(tenant.sides.as_ref().unwrap_or(&self.sides)).unwrap_or(1);
        let key = BatchKey { width: side, height: side };
        if !costs.knows(key) {
            let problem = format!("has {side}, which the cost table {:?} has not", costs.name());
            return Err(WorkloadError::Invalid { field: "sides", problem });
        }
        let steps = random.pick(tenant.steps.as_ref().unwrap_or(&self.steps)).unwrap_or(1);
        let images = random.pick(tenant.images.as_ref().unwrap_or(&self.images)).unwrap_or(1);
        let priorities = tenant.priorities.as_ref().unwrap_or(&self.priorities);
        let choices: [(Priority, f64); 3] = [Priority::High, Priority::Normal, Priority::Low].map(|priority| {
            let own = priorities.iter().filter(|(name, _)| name == priority.as_str());
            (priority, own.map(|(_, share)| share).sum())
        });
        let priority = random.pick(&choices).unwrap_or(Priority::Normal);
        let with_deadline: f64 = self.deadlines.iter().map(|(_, share)| share).sum();
        let chance = random.unit();
        let times = random.pick(&self.deadlines).filter(|_| chance < with_deadline);
        let alone_us = u64::from(images) * (costs.encode_us() + costs.decode_us(key))
            + u64::from(steps) * costs.step_us(key, images);
        // Until the arrival is known, from zero.
        let deadline_us = times.map_or(u64::MAX, |times| (alone_us as f64 * times) as u64);
        Ok(Job { arrived_us: 0, deadline_us, tenant: index, priority, key, steps, images })
    }
}

fn sensible<T>(mix: &[(T, f64)]) -> bool {
    mix.iter().all(|(_, share)| share.is_finite() && *share >= 0.0) && mix.iter().any(|(_, share)| *share > 0.0)
}
