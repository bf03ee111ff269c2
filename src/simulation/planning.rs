//! Which machines, how many and how they are bought, for so many jobs a second and a promised wait: from what the stages of an
//! image take on each GPU, what machines cost, and a replay of such a stream of jobs.
//!
//! The stream is even: what a day's peak needs is found by asking for the peak's rate, and what a whole day costs by
//! [`super::scaling`]. Memory is not modelled: whether the batch limit fits a GPU, `darkroom profile` tells.

use std::time::Duration;

use serde::Serialize;

use super::SimulationError;
use super::costs::Costs;
use super::scaling::{
    self, Arrivals, Darkroom, Kubernetes, Rule, Run, ScalingError, Setup, SetupError, Worker, WorkerPrices,
};
use crate::sched::BatchKey;

/// A larger batch must save this share of the time of an image to be worth its longer steps.
const GAIN_MIN: f64 = 0.02;
/// Jobs that are replayed.
const JOBS: f64 = 3000.0;
/// More workers than so many times those that the work itself needs do not make waits shorter.
const FLEET_MAX: f64 = 4.0;

/// One kind of machine; prices are of one worker, which has one GPU.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// Its key in the prices.
    pub instance: String,
    /// What is in it.
    pub gpu: String,
    /// How many: machines are bought whole.
    pub gpus: u32,
    /// What a worker costs.
    pub prices: WorkerPrices,
}

/// What is wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct Wish {
    /// Jobs that come in a second.
    pub rate_per_s: f64,
    /// 19 of 20 jobs begin within.
    pub wait_p95: Duration,
    /// Pairs of denoising steps and share.
    pub steps: Vec<(u32, f64)>,
    /// Pairs of pixels a side and share.
    pub sides: Vec<(u32, f64)>,
    /// Pairs of images in a job and share.
    pub images: Vec<(u32, f64)>,
    /// Share of the jobs that must not be interrupted.
    pub on_demand_share: f64,
    /// How often a spot machine is taken away in an hour.
    pub interruptions_per_hour: f64,
    /// How long before it is told.
    pub notice: Duration,
    /// From the wish for a worker to its first step.
    pub cold_start: Duration,
    /// Images in the engine at most, for memory's sake.
    pub images_in_batch_max: u32,
    /// Where the replay's chance begins.
    pub seed: u64,
}

/// What one kind of machine would do.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Candidate {
    /// The machine.
    pub instance: String,
    /// Its GPU.
    pub gpu: String,
    /// Images in the engine at most.
    pub batch_limit: u32,
    /// Engines that the work alone keeps busy.
    pub load: f64,
    /// Workers on spot machines.
    pub spot_workers: u32,
    /// Workers on on-demand machines.
    pub on_demand_workers: u32,
    /// Dollars an hour.
    pub per_hour: f64,
    /// Dollars for 1,000 images, from these workers under this load.
    pub per_thousand_images: f64,
    /// The same if engines were never idle and nothing were on demand that need not be: what no scaling can go below.
    pub per_thousand_images_busy: f64,
    /// What the replay says of the wait.
    pub wait_p95_s: f64,
    /// And of the time until images are stored.
    pub total_p95_s: f64,
    /// Whether the wait is as wanted.
    pub keeps_the_wait: bool,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Advice {
    /// All that was looked at, the cheapest that keeps the wait first.
    pub candidates: Vec<Candidate>,
    /// Why, in words.
    pub reasons: Vec<String>,
}

impl Advice {
    /// What is recommended; none when no machine keeps the wait.
    pub fn best(&self) -> Option<&Candidate> {
        self.candidates.first().filter(|candidate| candidate.keeps_the_wait)
    }
}

/// A wish that nobody can be advised on.
#[derive(Debug, thiserror::Error)]
pub enum PlanningError {
    /// A field holds what cannot be.
    #[error("{field} must be {must}")]
    Invalid {
        /// Which.
        field: &'static str,
        /// What would be right.
        must: String,
    },
    /// No machine was given.
    #[error(
        "there is no machine with both a price and a cost table for this model; a cost table says how fast its GPU is"
    )]
    NoMachine,
    /// The wish makes no sense with a cost table.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The replay did not come to an end.
    #[error(transparent)]
    Replay(#[from] ScalingError),
}

impl Wish {
    fn check(&self) -> Result<(), PlanningError> {
        let invalid = |field, must: &str| Err(PlanningError::Invalid { field, must: must.to_owned() });
        if !(1e-6..=1e4).contains(&self.rate_per_s) {
            return invalid("the rate", "0.000001 to 10000 jobs a second");
        }
        if !(0.0..=1.0).contains(&self.on_demand_share) {
            return invalid("the share of jobs that must not be interrupted", "0 to 1");
        }
        if !(0.0..=60.0).contains(&self.interruptions_per_hour) {
            return invalid("the interruptions in an hour", "0 to 60");
        }
        Ok(())
    }

    fn mean_images(&self) -> f64 {
        mean(&self.images, f64::from)
    }
}

fn mean(mix: &[(u32, f64)], of: impl Fn(u32) -> f64) -> f64 {
    let all: f64 = mix.iter().map(|(_, share)| share).sum();
    mix.iter().map(|(number, share)| of(*number) * share).sum::<f64>() / all
}

/// Engine time of an image of the wish in batches of up to `images`, in seconds.
fn image_s(wish: &Wish, costs: &Costs, images: u32) -> f64 {
    mean(&wish.sides, |side| {
        let key = BatchKey { width: side, height: side };
        mean(&wish.steps, |steps| costs.best_image_us(key, steps, images))
    }) / 1e6
}

/// The smallest limit beyond which batches save next to nothing.
fn batch_limit(wish: &Wish, costs: &Costs) -> u32 {
    let most = wish.images_in_batch_max.max(1);
    let least = wish.images.iter().filter(|(_, share)| *share > 0.0).map(|(images, _)| *images).max().unwrap_or(1);
    let best_s = image_s(wish, costs, most);
    let good_enough = |images: &u32| image_s(wish, costs, *images) <= best_s * (1.0 + GAIN_MIN);
    (1..=most).find(good_enough).unwrap_or(most).max(least.min(most))
}

/// Advises.
///
/// # Errors
/// When the wish holds what cannot be, or no machine is given.
pub fn advise(wish: &Wish, machines: &[(Machine, Costs)]) -> Result<Advice, PlanningError> {
    wish.check()?;
    let mut candidates = Vec::new();
    let mut reasons = vec![format!(
        "wanted: {} jobs/s of {:.2} images, 95 % of them begun within {:.1} s; an even stream, {} such jobs replayed",
        wish.rate_per_s,
        wish.mean_images(),
        wish.wait_p95.as_secs_f64(),
        JOBS
    )];
    for (machine, costs) in machines {
        candidates.push(judge(wish, machine, costs, &mut reasons)?);
    }
    if candidates.is_empty() {
        return Err(PlanningError::NoMachine);
    }
    candidates.sort_by(|one, two| {
        let order = two.keeps_the_wait.cmp(&one.keeps_the_wait);
        order.then(one.per_thousand_images.total_cmp(&two.per_thousand_images))
    });
    let advice = Advice { candidates, reasons };
    let last = match advice.best() {
        Some(best) => {
            let next = advice.candidates.get(1).filter(|next| next.keeps_the_wait);
            let next = next.map_or_else(String::new, |next| {
                let more = (next.per_thousand_images / best.per_thousand_images - 1.0) * 100.0;
                format!("; {} would cost {more:.0} % more", next.instance)
            });
            format!("{} is the cheapest that keeps the wait{next}", best.instance)
        }
        None => "no machine keeps the wait, however many there are: a job's prompts alone take longer".to_owned(),
    };
    let reasons = advice.reasons.into_iter().chain([last]).collect();
    Ok(Advice { reasons, ..advice })
}

fn judge(wish: &Wish, machine: &Machine, costs: &Costs, reasons: &mut Vec<String>) -> Result<Candidate, PlanningError> {
    let limit = batch_limit(wish, costs);
    let each_s = image_s(wish, costs, limit);
    let load = wish.rate_per_s * wish.mean_images() * each_s;
    let prices = machine.prices;
    let setup = stream(wish, limit);
    setup.check_sizes(costs)?;
    let trace = scaling::trace(&setup, costs)?;
    let least = (load.ceil() as u32).max(1);
    let most = (load * FLEET_MAX).ceil() as u32 + 4;
    let mut workers = least;
    let outcome = loop {
        let run = Run { rule: Rule::Fixed { workers }, spot: None, checkpoint_steps: None, prices, chance: 0 };
        let outcome = scaling::simulate(&setup, &run, &trace, costs).map_err(|source: SimulationError| {
            PlanningError::Replay(ScalingError::Rule { rule: run.rule.label(), source })
        })?;
        if outcome.wait.p95_ms <= wish.wait_p95.as_secs_f64() * 1e3 || workers >= most {
            break outcome;
        }
        workers += (workers / 20).max(1);
    };
    let keeps_the_wait = outcome.wait.p95_ms <= wish.wait_p95.as_secs_f64() * 1e3;
    reasons.push(format!(
        "{} ({}): {each_s:.2} s an image in batches of up to {limit}, so {load:.2} engines are busy; with {workers} of \
         them 95 % begin within {:.1} s in the replay",
        machine.instance,
        machine.gpu,
        outcome.wait.p95_ms / 1e3,
    ));
    let (spot_workers, on_demand_workers) = split(wish, machine, workers, reasons);
    let per_hour =
        f64::from(spot_workers) * prices.spot.unwrap_or(0.0) + f64::from(on_demand_workers) * prices.on_demand;
    let images_an_hour = wish.rate_per_s * wish.mean_images() * 3600.0;
    let cheapest = if spot_workers > 0 { prices.spot.unwrap_or(prices.on_demand) } else { prices.on_demand };
    let busy = cheapest * (1.0 - wish.on_demand_share) + prices.on_demand * wish.on_demand_share;
    Ok(Candidate {
        instance: machine.instance.clone(),
        gpu: machine.gpu.clone(),
        batch_limit: limit,
        load,
        spot_workers,
        on_demand_workers,
        per_hour,
        per_thousand_images: per_hour / images_an_hour * 1000.0,
        per_thousand_images_busy: each_s * busy / 3.6,
        wait_p95_s: outcome.wait.p95_ms / 1e3,
        total_p95_s: outcome.total.p95_ms / 1e3,
        keeps_the_wait,
    })
}

/// How many of the workers are on spot machines and how many on others; machines are bought whole.
fn split(wish: &Wish, machine: &Machine, workers: u32, reasons: &mut Vec<String>) -> (u32, u32) {
    let whole = |workers: u32| workers.div_ceil(machine.gpus.max(1)) * machine.gpus.max(1);
    let lost_s = wish.cold_start.as_secs_f64();
    let lost = wish.interruptions_per_hour * lost_s / 3600.0;
    let Some(spot) = machine.prices.spot.filter(|spot| lost < 1.0 && spot / (1.0 - lost) < machine.prices.on_demand)
    else {
        let why =
            if machine.prices.spot.is_some() { "is no cheaper with its interruptions" } else { "has no known price" };
        reasons.push(format!("  all {} on demand: spot {why}", whole(workers)));
        return (0, whole(workers));
    };
    let on_demand = (f64::from(workers) * wish.on_demand_share).ceil() as u32;
    let on_demand = whole(on_demand.min(workers));
    let rest = workers.saturating_sub(on_demand);
    // A machine that is told of its end is replaced in the meantime, if a start takes no longer.
    let gap_s = (lost_s - wish.notice.as_secs_f64()).max(0.0);
    let spare = (f64::from(rest) * wish.interruptions_per_hour * gap_s / 3600.0).ceil() as u32;
    let spot_workers = whole(rest + spare);
    reasons.push(format!(
        "  {spot_workers} on spot at ${spot:.3} an hour each{}, {on_demand} on demand at ${:.3} for what must not be interrupted",
        if spare > 0 { format!(" ({spare} more than needed, for those that are being replaced)") } else { String::new() },
        machine.prices.on_demand
    ));
    (spot_workers, on_demand)
}

/// An even stream of the jobs that are wanted, and what the replay needs besides.
fn stream(wish: &Wish, images_in_batch_max: u32) -> Setup {
    Setup {
        name: "plan".to_owned(),
        seed: wish.seed,
        costs: String::new(),
        arrivals: Arrivals {
            jobs: JOBS,
            hours: JOBS / wish.rate_per_s / 3600.0,
            curve: vec![1.0],
            bursts: 0.0,
            burst_jobs: 0.0,
            burst_s: 0.0,
            steps: wish.steps.clone(),
            sides: wish.sides.clone(),
            images: wish.images.clone(),
            on_demand_share: 0.0,
        },
        worker: Worker {
            instance: String::new(),
            images_in_batch_max,
            cold_start_s: wish.cold_start.as_secs_f64(),
            cold_start_spread: 0.0,
            exit_when_idle_s: 60.0,
            rests_after_s: None,
            grace_s: 0.0,
            store_ms: 30.0,
            workers_max: u32::MAX,
        },
        darkroom: Darkroom { every_s: 5.0, target_waits_s: Vec::new() },
        kubernetes: Kubernetes {
            polling_s: 5.0,
            cooldown_s: 300.0,
            lag_thresholds: Vec::new(),
            sync_s: 15.0,
            stabilization_s: 300.0,
            queue_per_worker: 1,
        },
        fixed: Vec::new(),
        spot: None,
    }
}

/// One row for each kind of machine.
pub fn table(candidates: &[Candidate]) -> String {
    use std::fmt::Write;
    let mut text =
        "| instance | GPU | batch limit | engines busy | workers spot + on demand | $ an hour | $ for 1,000 images | \
                    never idle | wait p95 s | total p95 s |\n|---|---|---|---|---|---|---|---|---|---|\n"
            .to_owned();
    for candidate in candidates {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {:.2} | {} + {} | {:.2} | {:.2} | {:.2} | {:.1}{} | {:.1} |",
            candidate.instance,
            candidate.gpu,
            candidate.batch_limit,
            candidate.load,
            candidate.spot_workers,
            candidate.on_demand_workers,
            candidate.per_hour,
            candidate.per_thousand_images,
            candidate.per_thousand_images_busy,
            candidate.wait_p95_s,
            if candidate.keeps_the_wait { "" } else { " (too long)" },
            candidate.total_p95_s,
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(instance: &str, gpu: &str, gpus: u32, spot: Option<f64>, on_demand: f64) -> (Machine, Costs) {
        let prices = WorkerPrices { spot, on_demand };
        let costs = Costs::of_gpu(gpu, "sd15").unwrap();
        (Machine { instance: instance.to_owned(), gpu: gpu.to_owned(), gpus, prices }, costs)
    }

    fn machines() -> Vec<(Machine, Costs)> {
        vec![
            machine("t4.one", "T4", 1, Some(0.2), 0.5),
            machine("a10g.one", "A10G", 1, Some(0.5), 1.0),
            machine("a100.eight", "A100", 8, Some(1.5), 2.7),
            machine("h100.one", "H100", 1, None, 6.9),
        ]
    }

    fn wish() -> Wish {
        Wish {
            rate_per_s: 2.0,
            wait_p95: Duration::from_secs(2),
            steps: vec![(20, 1.0)],
            sides: vec![(512, 1.0)],
            images: vec![(1, 1.0)],
            on_demand_share: 0.0,
            interruptions_per_hour: 0.1,
            notice: Duration::from_secs(120),
            cold_start: Duration::from_secs(90),
            images_in_batch_max: 8,
            seed: 1,
        }
    }

    #[test]
    fn the_cheapest_machine_that_keeps_the_wait_is_named_with_reasons() {
        let advice = advise(&wish(), &machines()).unwrap();
        let best = advice.best().unwrap();
        assert!(best.wait_p95_s <= 2.0 && best.keeps_the_wait);
        let kept = advice.candidates.iter().filter(|candidate| candidate.keeps_the_wait);
        assert!(kept.clone().all(|candidate| candidate.per_thousand_images >= best.per_thousand_images));
        assert_eq!(advice.candidates.len(), 4);
        let last = advice.reasons.last().unwrap();
        assert!(last.starts_with(&best.instance), "{last}");
        assert_eq!(table(&advice.candidates).lines().count(), 6);
        for candidate in &advice.candidates {
            assert!(candidate.per_thousand_images >= candidate.per_thousand_images_busy * 0.99, "{candidate:?}");
            assert!(f64::from(candidate.spot_workers + candidate.on_demand_workers) >= candidate.load, "{candidate:?}");
        }
    }

    #[test]
    fn machines_are_bought_whole_and_spot_only_where_it_is_to_be_had() {
        let advice = advise(&wish(), &machines()).unwrap();
        let of = |name: &str| advice.candidates.iter().find(|candidate| candidate.instance == name).unwrap();
        assert_eq!((of("a100.eight").spot_workers, of("a100.eight").on_demand_workers), (8, 0));
        assert_eq!(of("h100.one").spot_workers, 0);
        let uninterrupted = Wish { on_demand_share: 1.0, ..wish() };
        let advice = advise(&uninterrupted, &machines()).unwrap();
        assert!(advice.candidates.iter().all(|candidate| candidate.spot_workers == 0));
        let stormy = Wish { interruptions_per_hour: 39.0, ..wish() };
        let advice = advise(&stormy, &machines()).unwrap();
        assert!(advice.candidates.iter().all(|candidate| candidate.spot_workers == 0), "spot would mostly start");
    }

    #[test]
    fn more_jobs_and_shorter_waits_never_need_fewer_workers() {
        let workers = |wish: &Wish| {
            let advice = advise(wish, &machines()[1..2]).unwrap();
            advice.candidates[0].spot_workers
        };
        let few = workers(&wish());
        assert!(workers(&Wish { rate_per_s: 8.0, ..wish() }) > few);
        assert!(workers(&Wish { wait_p95: Duration::from_millis(200), ..wish() }) >= few);
        // Starts that take longer than the notice need workers to spare.
        let slow = Wish { cold_start: Duration::from_secs(3000), interruptions_per_hour: 0.3, ..wish() };
        assert!(workers(&slow) > few);
    }

    #[test]
    fn what_cannot_be_advised_on_is_named() {
        let error = advise(&Wish { rate_per_s: 0.0, ..wish() }, &machines()).unwrap_err().to_string();
        assert!(error.contains("rate"), "{error}");
        let error = advise(&Wish { on_demand_share: 2.0, ..wish() }, &machines()).unwrap_err().to_string();
        assert!(error.contains("0 to 1"), "{error}");
        let error = advise(&Wish { sides: vec![(640, 1.0)], ..wish() }, &machines()).unwrap_err().to_string();
        assert!(error.contains("640"), "{error}");
        assert!(matches!(advise(&wish(), &[]), Err(PlanningError::NoMachine)));
        let hurried = Wish { wait_p95: Duration::ZERO, ..wish() };
        let advice = advise(&hurried, &machines()[..1]).unwrap();
        assert!(advice.best().is_none() && advice.reasons.last().unwrap().contains("no machine"));
    }
}
