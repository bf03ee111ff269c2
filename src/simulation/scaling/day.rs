//! The arrivals of a day: a rate that follows a curve, and bursts on top of it.

use crate::job::Priority;
use crate::sched::BatchKey;
use crate::simulation::costs::Costs;
use crate::simulation::random::Random;
use crate::simulation::workload::{Job, Trace};

use super::setup::{Arrivals, Setup, SetupError};

/// Streams of chance.
const WHEN: u64 = 1;
const BURSTS: u64 = 2;
const WHAT: u64 = 3;

/// What `setup` says, as a trace.
///
/// # Errors
/// When the cost table lacks a size.
pub fn trace(setup: &Setup, costs: &Costs) -> Result<Trace, SetupError> {
    setup.check_sizes(costs)?;
    let Arrivals { jobs, hours, bursts, burst_jobs, burst_s, .. } = setup.arrivals;
    let day_us = hours * 3.6e9;
    let mut what = Random::new(setup.seed, WHAT);
    let kind = |random: &mut Random, arrived_us: u64| {
        let Arrivals { steps, sides, images, .. } = &setup.arrivals;
        let side = random.pick(sides).unwrap_or(1);
        Job {
            arrived_us,
            deadline_us: u64::MAX,
            tenant: 0,
            priority: Priority::Normal,
            key: BatchKey { width: side, height: side },
            steps: random.pick(steps).unwrap_or(1),
            images: random.pick(images).unwrap_or(1),
        }
    };
    let steady = steady(setup.seed, jobs - bursts * burst_jobs, day_us, &setup.arrivals.curve);
    let mut all: Vec<Job> = steady.into_iter().map(|arrived_us| kind(&mut what, arrived_us)).collect();
    let mut random = Random::new(setup.seed, BURSTS);
    if bursts > 0.0 && burst_jobs > 0.0 {
        let mut begin_us = random.exponential(day_us / bursts);
        while begin_us < day_us {
            // Who sends much at once sends much of the same.
            let first = kind(&mut random, 0);
            let size = random.exponential(burst_jobs).ceil() as u64;
            let moment = |random: &mut Random| (begin_us + random.unit() * burst_s * 1e6) as u64;
            all.extend((0..size).map(|_| Job { arrived_us: moment(&mut random), ..first }));
            begin_us += random.exponential(day_us / bursts);
        }
    }
    all.sort_by_key(|job| job.arrived_us);
    Ok(Trace { jobs: all, tenants: vec!["all".to_owned()], weights: vec![1.0], window_us: 3_600_000_000 })
}

/// Arrivals at a rate that follows the curve: drawn at its highest rate, of which as many are kept as it is lower.
fn steady(seed: u64, jobs: f64, day_us: f64, curve: &[f64]) -> Vec<u64> {
    let highest = curve.iter().copied().fold(0.0, f64::max);
    let mean = curve.iter().sum::<f64>() / curve.len() as f64;
    let mut random = Random::new(seed, WHEN);
    let mut arrived_us = Vec::new();
    if jobs <= 0.0 {
        return arrived_us;
    }
    let between_us = day_us / jobs * mean / highest;
    let mut now_us = random.exponential(between_us);
    while now_us < day_us {
        if random.unit() * highest < rate_at(now_us / day_us, curve) {
            arrived_us.push(now_us as u64);
        }
        now_us += random.exponential(between_us);
    }
    arrived_us
}

/// The curve where `part` of the day is over.
fn rate_at(part: f64, curve: &[f64]) -> f64 {
    let place = part * curve.len() as f64;
    let at = |index: usize| curve[index % curve.len()];
    let (left, beyond) = (place.floor() as usize, place.fract());
    at(left) * (1.0 - beyond) + at(left + 1) * beyond
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_follows_the_curve() {
        assert!((rate_at(0.25, &[0.0, 4.0]) - 2.0).abs() < 1e-9);
        assert!((rate_at(0.75, &[0.0, 4.0]) - 2.0).abs() < 1e-9, "back to the beginning");
        let arrived_us = steady(7, 10_000.0, 1e9, &[0.0, 2.0, 0.0, 0.0]);
        assert!((9_700..10_300).contains(&arrived_us.len()), "{}", arrived_us.len());
        let in_second_half = arrived_us.iter().filter(|at| **at > 500_000_000).count();
        assert_eq!(in_second_half, 0);
        assert_eq!(arrived_us, steady(7, 10_000.0, 1e9, &[0.0, 2.0, 0.0, 0.0]));
        assert_ne!(arrived_us, steady(8, 10_000.0, 1e9, &[0.0, 2.0, 0.0, 0.0]));
    }
}
