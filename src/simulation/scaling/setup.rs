//! What is compared: a day of arrivals, what a worker costs and takes to start, and the rules' own numbers.
//!
//! A file says all of it; prices come from elsewhere, by the name of the instance type.

use serde::Deserialize;

use crate::sched::BatchKey;
use crate::simulation::costs::Costs;

/// More than anybody replays, so that memory lasts and times do not overflow.
const JOBS_MAX: f64 = 5e6;
const WORKERS_MAX: u32 = 10_000;
const SECONDS_MAX: f64 = 86_400.0;
const HOURS_MAX: f64 = 24.0 * 31.0;
const NUMBER_MAX: u32 = 10_000;

/// A file that makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// It is not of this form.
    #[error("the scaling file cannot be read")]
    Malformed(#[from] toml::de::Error),
    /// A field holds what cannot be.
    #[error("the scaling file's {field} {problem}")]
    Invalid {
        /// Where.
        field: &'static str,
        /// What would be right.
        problem: String,
    },
}

/// When jobs come, and of what kind.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arrivals {
    /// How many are to be expected in all, those of bursts included.
    pub jobs: f64,
    /// From the first to the last.
    pub hours: f64,
    /// Relative rates at evenly spaced moments from the beginning on, joined by lines; the end is the beginning again.
    pub curve: Vec<f64>,
    /// Moments at which somebody sends much at once.
    #[serde(default)]
    pub bursts: f64,
    /// Jobs of one burst, on average; they are all of one kind.
    #[serde(default)]
    pub burst_jobs: f64,
    /// A burst's jobs are spread over so many seconds.
    #[serde(default)]
    pub burst_s: f64,
    /// Pairs of denoising steps and share.
    pub steps: Vec<(u32, f64)>,
    /// Pairs of pixels a side and share.
    pub sides: Vec<(u32, f64)>,
    /// Pairs of images in a job and share.
    pub images: Vec<(u32, f64)>,
    /// Share of the jobs that must not be interrupted, so that only on-demand machines may run them.
    #[serde(default)]
    pub on_demand_share: f64,
}

/// What a worker is.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Worker {
    /// The machine, by its key in the prices.
    pub instance: String,
    /// Images in the engine at most.
    pub images_in_batch_max: u32,
    /// From the wish for a worker to its first step, on average.
    pub cold_start_s: f64,
    /// Starts take this share longer or shorter, evenly spread.
    #[serde(default)]
    pub cold_start_spread: f64,
    /// A worker that ends by itself does so after it had nothing to do for this long.
    pub exit_when_idle_s: f64,
    /// A worker that had nothing to do for this long is served after others that have nothing to do, so that it ends sooner;
    /// all the same when absent.
    pub rests_after_s: Option<f64>,
    /// How long a worker that is told to end may go on with what it has.
    pub grace_s: f64,
    /// Uploading the images of a job.
    pub store_ms: f64,
    /// Workers at most, of all kinds.
    pub workers_max: u32,
}

/// Numbers of Darkroom's own rule.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Darkroom {
    /// How often it is asked.
    pub every_s: f64,
    /// Waits to promise; each is replayed, so that the cheapest one can be picked that is as quick as another rule.
    pub target_waits_s: Vec<f64>,
}

/// Numbers of KEDA and of the horizontal pod autoscaler.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kubernetes {
    /// KEDA looks so often.
    pub polling_s: f64,
    /// KEDA goes to zero when nothing was there for so long.
    pub cooldown_s: f64,
    /// Messages for each pod.
    pub lag_thresholds: Vec<u32>,
    /// The autoscaler looks so often.
    pub sync_s: f64,
    /// It follows the highest of its wishes of so many seconds when it scales in.
    pub stabilization_s: f64,
    /// Waiting messages for each pod, where an autoscaler looks at the length of the queue.
    pub queue_per_worker: u32,
}

/// What machines that may be taken away are like.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spot {
    /// How often a machine is taken away in an hour; each is replayed.
    pub interruptions_per_hour: Vec<f64>,
    /// How long before it is told.
    pub notice_s: f64,
    /// Steps after which a checkpoint is written, where they are.
    pub checkpoint_steps: u32,
    /// The wait that is promised in these runs.
    pub target_wait_s: f64,
    /// Each run is repeated with other chances, and the mean is told: machines that are taken away are few.
    pub repeats: u32,
}

/// Everything.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setup {
    /// What it is called.
    pub name: String,
    /// Where chance begins.
    pub seed: u64,
    /// The cost table that comes along under this name.
    pub costs: String,
    /// When jobs come.
    pub arrivals: Arrivals,
    /// What serves them.
    pub worker: Worker,
    /// Our rule.
    pub darkroom: Darkroom,
    /// Theirs.
    pub kubernetes: Kubernetes,
    /// Sizes of fleets that never change.
    #[serde(default)]
    pub fixed: Vec<u32>,
    /// Runs on machines that may be taken away.
    pub spot: Option<Spot>,
}

impl Setup {
    /// Reads a file.
    ///
    /// # Errors
    /// When it is none, or a field holds what cannot be.
    pub fn parse(text: &str) -> Result<Self, SetupError> {
        let setup: Self = toml::from_str(text)?;
        setup.check()?;
        Ok(setup)
    }

    fn check(&self) -> Result<(), SetupError> {
        let Self { arrivals, worker, darkroom, kubernetes, .. } = self;
        // Each: where, what is there, from, to.
        let numbers = [
            ("arrivals.jobs", arrivals.jobs, 1.0, JOBS_MAX),
            ("arrivals.hours", arrivals.hours, 0.01, HOURS_MAX),
            ("arrivals.bursts", arrivals.bursts, 0.0, 1e5),
            ("arrivals.burst_jobs", arrivals.burst_jobs, 0.0, 1e5),
            ("arrivals.burst_s", arrivals.burst_s, 0.0, SECONDS_MAX),
            ("arrivals.on_demand_share", arrivals.on_demand_share, 0.0, 1.0),
            ("worker.cold_start_s", worker.cold_start_s, 0.0, SECONDS_MAX),
            ("worker.cold_start_spread", worker.cold_start_spread, 0.0, 1.0),
            ("worker.exit_when_idle_s", worker.exit_when_idle_s, 1.0, SECONDS_MAX),
            ("worker.rests_after_s", worker.rests_after_s.unwrap_or(0.0), 0.0, SECONDS_MAX),
            ("worker.grace_s", worker.grace_s, 0.0, SECONDS_MAX),
            ("worker.store_ms", worker.store_ms, 0.0, 1e6),
            ("darkroom.every_s", darkroom.every_s, 0.1, SECONDS_MAX),
            ("kubernetes.polling_s", kubernetes.polling_s, 0.1, SECONDS_MAX),
            ("kubernetes.cooldown_s", kubernetes.cooldown_s, 0.0, SECONDS_MAX),
            ("kubernetes.sync_s", kubernetes.sync_s, 0.1, SECONDS_MAX),
            ("kubernetes.stabilization_s", kubernetes.stabilization_s, 0.0, SECONDS_MAX),
        ];
        for (field, number, from, to) in numbers {
            if !(from..=to).contains(&number) {
                return invalid(field, format!("must be {from} to {to}"));
            }
        }
        let whole = [
            ("worker.images_in_batch_max", worker.images_in_batch_max, NUMBER_MAX),
            ("worker.workers_max", worker.workers_max, WORKERS_MAX),
            ("kubernetes.queue_per_worker", kubernetes.queue_per_worker, NUMBER_MAX),
        ];
        for (field, number, most) in whole {
            if !(1..=most).contains(&number) {
                return invalid(field, format!("must be 1 to {most}"));
            }
        }
        if !kubernetes.lag_thresholds.iter().all(|messages| (1..=NUMBER_MAX).contains(messages)) {
            return invalid("kubernetes.lag_thresholds", format!("must each be 1 to {NUMBER_MAX}"));
        }
        if !self.fixed.iter().all(|workers| (1..=worker.workers_max).contains(workers)) {
            return invalid("fixed", "must each be 1 to worker.workers_max".to_owned());
        }
        let waits = &darkroom.target_waits_s;
        if waits.is_empty() || !waits.iter().all(|wait| (0.0..=SECONDS_MAX).contains(wait)) {
            return invalid("darkroom.target_waits_s", format!("must hold some, each 0 to {SECONDS_MAX}"));
        }
        let curve = &arrivals.curve;
        if !curve.iter().all(|rate| rate.is_finite() && *rate >= 0.0) || !curve.iter().any(|rate| *rate > 0.0) {
            return invalid("arrivals.curve", "must hold rates that are not negative, and one above 0".to_owned());
        }
        if arrivals.bursts * arrivals.burst_jobs > arrivals.jobs {
            return invalid("arrivals.bursts", "times burst_jobs must not be more than jobs".to_owned());
        }
        for (field, mix) in [
            ("arrivals.steps", &arrivals.steps),
            ("arrivals.sides", &arrivals.sides),
            ("arrivals.images", &arrivals.images),
        ] {
            let makes_sense =
                |(number, share): &(u32, f64)| (1..=NUMBER_MAX).contains(number) && share.is_finite() && *share >= 0.0;
            if !mix.iter().all(makes_sense) || !mix.iter().any(|(_, share)| *share > 0.0) {
                return invalid(field, format!("must be pairs of 1 to {NUMBER_MAX} and a share, not all of them 0"));
            }
        }
        if arrivals.images.iter().any(|(images, _)| *images > worker.images_in_batch_max) {
            return invalid("arrivals.images", "must not be more than worker.images_in_batch_max".to_owned());
        }
        if let Some(spot) = &self.spot {
            if !spot.interruptions_per_hour.iter().all(|rate| (0.0..=60.0).contains(rate)) {
                return invalid("spot.interruptions_per_hour", "must each be 0 to 60".to_owned());
            }
            for (field, number) in [("spot.notice_s", spot.notice_s), ("spot.target_wait_s", spot.target_wait_s)] {
                if !(0.0..=SECONDS_MAX).contains(&number) {
                    return invalid(field, format!("must be 0 to {SECONDS_MAX}"));
                }
            }
            if !(1..=100).contains(&spot.repeats) {
                return invalid("spot.repeats", "must be 1 to 100".to_owned());
            }
            if !(1..=NUMBER_MAX).contains(&spot.checkpoint_steps) {
                return invalid("spot.checkpoint_steps", format!("must be 1 to {NUMBER_MAX}"));
            }
        }
        Ok(())
    }

    /// Whether the table has all sizes that are asked for.
    ///
    /// # Errors
    /// When it lacks one.
    pub fn check_sizes(&self, costs: &Costs) -> Result<(), SetupError> {
        for (side, _) in &self.arrivals.sides {
            if !costs.knows(BatchKey { width: *side, height: *side }) {
                return invalid(
                    "arrivals.sides",
                    format!("has {side}, which the cost table {:?} has not", costs.name()),
                );
            }
        }
        Ok(())
    }
}

fn invalid<T>(field: &'static str, problem: String) -> Result<T, SetupError> {
    Err(SetupError::Invalid { field, problem })
}
