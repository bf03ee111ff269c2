//! When a job that waits will begin and end: what workers measure of themselves, and what follows for one more job.
//!
//! With continuous batching a worker that has room begins a job at its next step. So whoever finds messages before it finds
//! every worker full, and waits until these have begun: they do so as fast as the fleet finishes jobs, less what more urgent
//! ones will take that come in the meantime. What is then left is the wait in the worker, which is measured, not derived.
//!
//! It decides nothing, and but for the pool of a job with a deadline ([`super::route`]) nothing decides by it.

use std::cmp::Ordering;
use std::time::Duration;

use crate::job::{Pool, Priority};

use super::message::Lane;
use super::time::Mono;

/// What was longer ago than this hardly counts.
const MEMORY: Duration = Duration::from_secs(300);
/// By how much a single wait moves what is taken for the usual one.
const USUAL_STEP: f64 = 1.1;
/// However many urgent jobs come, the others get this share of the fleet: nothing starves for ever.
const SHARE_MIN: f64 = 0.1;

/// What the jobs of one priority are like.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PriorityLoad {
    /// Jobs that begin in a second.
    pub begun_per_s: f64,
    /// From delivery to the first step: half of the jobs wait longer. Absent until one began.
    pub begin_ms: Option<f64>,
}

/// How a model's jobs have been; absent is what no job has shown yet.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pace {
    /// Engine time of a job, its share of every batch it was in.
    pub job_ms: Option<f64>,
    /// From the first step of a job to its stored images.
    pub run_ms: Option<f64>,
    /// Engine time of a job for each million pixels and step.
    pub megapixel_step_ms: Option<f64>,
}

/// What one worker says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WorkerLoad {
    /// Engine time of all that it holds.
    pub work_left_ms: f64,
    /// How its jobs have been.
    pub pace: Pace,
    /// By priority, in the order of [`Priority::ALL`].
    pub priorities: [PriorityLoad; 3],
}

/// The measurements that a worker makes of its own jobs.
#[derive(Clone, Debug)]
pub struct Measured {
    since: Mono,
    at: Mono,
    // Sums in which what is old counts less.
    jobs: f64,
    engine_ms: f64,
    run_ms: f64,
    megapixel_steps: f64,
    begun: [f64; 3],
    begin_ms: [Option<f64>; 3],
}

fn index(priority: Priority) -> usize {
    Priority::ALL.iter().position(|candidate| *candidate == priority).unwrap_or_default()
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

impl Measured {
    /// Nothing was measured yet.
    pub fn new(now: Mono) -> Self {
        Self {
            since: now,
            at: now,
            jobs: 0.0,
            engine_ms: 0.0,
            run_ms: 0.0,
            megapixel_steps: 0.0,
            begun: [0.0; 3],
            begin_ms: [None; 3],
        }
    }

    /// A job's first step begins, so long after its delivery.
    pub fn begun(&mut self, now: Mono, priority: Priority, waited: Duration) {
        self.forget(now);
        self.begun[index(priority)] += 1.0;
        // Waits are short or long, seldom in between: their mean is what none of them is like, their median is not.
        let waited_ms = milliseconds(waited).max(1.0);
        let usual = &mut self.begin_ms[index(priority)];
        *usual = Some(match *usual {
            None => waited_ms,
            Some(usual) if waited_ms > usual => waited_ms.min(usual * USUAL_STEP),
            Some(usual) => waited_ms.max(usual / USUAL_STEP),
        });
    }

    /// A job's images are stored, so long after its first step.
    pub fn finished(&mut self, now: Mono, engine_ms: f64, run: Duration, megapixel_steps: f64) {
        self.forget(now);
        self.jobs += 1.0;
        self.engine_ms += engine_ms;
        self.run_ms += milliseconds(run);
        self.megapixel_steps += megapixel_steps;
    }

    /// What there is to say now.
    pub fn load(&self, now: Mono, work_left_ms: f64) -> WorkerLoad {
        let mean = |sum: f64, count: f64| (count > 1e-3).then(|| sum / count);
        let faded = fading(now.since(self.at));
        let seconds = MEMORY.as_secs_f64() * (1.0 - fading(now.since(self.since).max(Duration::from_secs(1))));
        let mut priorities = [PriorityLoad::default(); 3];
        for (nth, of) in priorities.iter_mut().enumerate() {
            *of = PriorityLoad { begun_per_s: self.begun[nth] * faded / seconds, begin_ms: self.begin_ms[nth] };
        }
        let pace = Pace {
            job_ms: mean(self.engine_ms, self.jobs),
            run_ms: mean(self.run_ms, self.jobs),
            megapixel_step_ms: mean(self.engine_ms, self.megapixel_steps),
        };
        WorkerLoad { work_left_ms, pace, priorities }
    }

    fn forget(&mut self, now: Mono) {
        let left = fading(now.since(self.at));
        self.at = now;
        let sums = [&mut self.jobs, &mut self.engine_ms, &mut self.run_ms, &mut self.megapixel_steps];
        for sum in sums.into_iter().chain(&mut self.begun) {
            *sum *= left;
        }
    }
}

/// What is left of a count after so long.
fn fading(after: Duration) -> f64 {
    (-after.as_secs_f64() / MEMORY.as_secs_f64()).exp()
}

/// The workers of a model that may take a job, summed up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Fleet {
    /// How many.
    pub workers: u32,
    /// Engine time of what the least busy of them holds.
    pub least_left_ms: f64,
    /// How their jobs have been.
    pub pace: Pace,
    /// All of them together.
    pub priorities: [PriorityLoad; 3],
}

impl Fleet {
    /// Sums up reports.
    pub fn of(loads: &[WorkerLoad]) -> Self {
        let mean = |value: &dyn Fn(&WorkerLoad) -> Option<f64>| {
            let (sum, count) =
                loads.iter().filter_map(value).fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
            (count > 0.0).then(|| sum / count)
        };
        let of_priority = |nth: usize| PriorityLoad {
            begun_per_s: loads.iter().map(|load| load.priorities[nth].begun_per_s).sum(),
            begin_ms: mean(&|load| load.priorities[nth].begin_ms),
        };
        Self {
            workers: u32::try_from(loads.len()).unwrap_or(u32::MAX),
            least_left_ms: loads.iter().map(|load| load.work_left_ms).reduce(f64::min).unwrap_or_default(),
            pace: Pace {
                job_ms: mean(&|load| load.pace.job_ms),
                run_ms: mean(&|load| load.pace.run_ms),
                megapixel_step_ms: mean(&|load| load.pace.megapixel_step_ms),
            },
            priorities: [of_priority(0), of_priority(1), of_priority(2)],
        }
    }
}

/// How it was when workers were there last.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Remembered {
    /// From the start of a worker's process until it is ready.
    pub loading_ms: Option<f64>,
    /// How its jobs were.
    pub pace: Pace,
}

/// Messages that no worker has, and that go before a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ahead {
    /// Of its priority.
    pub alike: u64,
    /// More urgent ones.
    pub more_urgent: u64,
}

/// What goes before a job of which so many of its own consumer do: more urgent ones of every pool that its workers pull, and
/// those that are as urgent, of other pools, as far as they take turns with its own. `lanes` are all consumers of the model
/// with what they have still to deliver, `pools` those of its workers.
pub fn ahead(own: Lane, alike: u64, lanes: &[(Lane, u64)], pools: &[Pool]) -> Ahead {
    let mut ahead = Ahead { alike, more_urgent: 0 };
    for (lane, pending) in lanes {
        let competes = lane.pool == own.pool || pools.contains(&lane.pool);
        match lane.priority.cmp(&own.priority) {
            Ordering::Less if competes => ahead.more_urgent += pending,
            Ordering::Equal if competes && lane.pool != own.pool => ahead.alike += alike.min(*pending),
            Ordering::Less | Ordering::Equal | Ordering::Greater => {}
        }
    }
    ahead
}

/// The job that asks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wanted {
    /// Its priority.
    pub priority: Priority,
    /// Millions of pixels, times steps, over all its images.
    pub megapixel_steps: f64,
}

/// When a job will be made, as far as one can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// Jobs that go before it and that no worker has yet.
    pub position: u64,
    /// Until its first step, in milliseconds.
    pub start_ms: Option<u64>,
    /// Until its images are stored, in milliseconds.
    pub end_ms: Option<u64>,
}

/// When one more job will begin and end.
pub fn estimate(fleet: &Fleet, remembered: &Remembered, ahead: Ahead, wanted: Wanted) -> Estimate {
    let pace = Pace {
        job_ms: fleet.pace.job_ms.or(remembered.pace.job_ms),
        run_ms: fleet.pace.run_ms.or(remembered.pace.run_ms),
        megapixel_step_ms: fleet.pace.megapixel_step_ms.or(remembered.pace.megapixel_step_ms),
    };
    let position = ahead.alike + ahead.more_urgent;
    let start_ms = match fleet.workers {
        0 => start_cold_ms(remembered.loading_ms, &pace, position),
        _ => start_warm_ms(fleet, &pace, position, wanted.priority),
    };
    let end_ms = start_ms.and_then(|start_ms| Some(start_ms + run_ms(&pace, wanted.megapixel_steps)?));
    Estimate { position, start_ms: whole(start_ms), end_ms: whole(end_ms) }
}

/// Nobody is there: the first jobs begin together with the worker, the others after them.
fn start_cold_ms(loading_ms: Option<f64>, pace: &Pace, position: u64) -> Option<f64> {
    let abreast = pace.job_ms.zip(pace.run_ms).map_or(1.0, |(job_ms, run_ms)| (run_ms / job_ms.max(1e-3)).max(1.0));
    let behind = (position as f64 - (abreast - 1.0)).max(0.0);
    match pace.job_ms {
        Some(job_ms) => Some(loading_ms? + behind * job_ms),
        None if position == 0 => loading_ms,
        None => None,
    }
}

fn start_warm_ms(fleet: &Fleet, pace: &Pace, position: u64, priority: Priority) -> Option<f64> {
    let own = index(priority);
    let of_own = &fleet.priorities[own];
    // Where nothing waits, the least busy worker takes the job, and cannot make it wait for longer than its work.
    let usual_ms = of_own.begin_ms.unwrap_or_default();
    if position == 0 {
        return Some(usual_ms.min(fleet.least_left_ms));
    }
    let all_per_ms = f64::from(fleet.workers) / pace.job_ms?.max(1e-3);
    let more_urgent_per_s: f64 = fleet.priorities[..own].iter().map(|of| of.begun_per_s).sum();
    // What jobs like it got until now is never too much to hope for.
    let left_per_ms = (all_per_ms - more_urgent_per_s / 1e3).max(of_own.begun_per_s / 1e3).max(SHARE_MIN * all_per_ms);
    Some(position as f64 / left_per_ms + usual_ms)
}

/// A job runs as long as those before it did for the same work.
fn run_ms(pace: &Pace, megapixel_steps: f64) -> Option<f64> {
    let (run_ms, job_ms) = (pace.run_ms?, pace.job_ms?);
    let own_ms = pace.megapixel_step_ms.map_or(job_ms, |each_ms| each_ms * megapixel_steps);
    Some(own_ms * run_ms / job_ms.max(1e-3))
}

fn whole(ms: Option<f64>) -> Option<u64> {
    ms.filter(|ms| ms.is_finite()).map(|ms| ms.max(0.0).round() as u64)
}

/// Where a message of a work queue stands in its consumer: messages before it that nobody has.
///
/// `pending` is what the consumer has still to deliver, `delivered` the last sequence that it did deliver, and `last` that of
/// the stream, of which `sequence` is one. Messages of other consumers lie between; they are taken to be spread evenly, so
/// this is exact for the first and the last message, and wherever the consumer is alone in the stream.
pub fn position(sequence: u64, pending: u64, delivered: u64, last: u64) -> u64 {
    if sequence <= delivered {
        return 0;
    }
    let (before, behind) = (sequence - delivered - 1, last.max(sequence) - delivered - 1);
    let others = pending.saturating_sub(1);
    if behind == 0 { 0 } else { (others as f64 * before as f64 / behind as f64).round() as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Wanted = Wanted { priority: Priority::Normal, megapixel_steps: 5.0 };

    fn pace() -> Pace {
        Pace { job_ms: Some(2000.0), run_ms: Some(6000.0), megapixel_step_ms: Some(400.0) }
    }

    fn load(work_left_ms: f64) -> WorkerLoad {
        let mut priorities = [PriorityLoad::default(); 3];
        priorities[1].begin_ms = Some(300.0);
        WorkerLoad { work_left_ms, pace: pace(), priorities }
    }

    fn asked(fleet: &Fleet, alike: u64, more_urgent: u64) -> Estimate {
        estimate(fleet, &Remembered::default(), Ahead { alike, more_urgent }, WANTED)
    }

    #[test]
    fn nobody_knows_when_a_model_begins_that_has_never_been_loaded() {
        let nothing = Estimate { position: 3, start_ms: None, end_ms: None };
        assert_eq!(asked(&Fleet::default(), 3, 0), nothing);
    }

    #[test]
    fn without_a_worker_jobs_wait_for_its_model_and_then_for_those_that_do_not_run_beside_them() {
        let cold = |loading_ms, pace, alike| {
            let remembered = Remembered { loading_ms: Some(loading_ms), pace };
            let estimate = estimate(&Fleet::default(), &remembered, Ahead { alike, more_urgent: 0 }, WANTED);
            (estimate.start_ms, estimate.end_ms)
        };
        // Three run side by side, each of which takes 6 s.
        assert_eq!(cold(9000.0, pace(), 0), (Some(9000), Some(15_000)));
        assert_eq!(cold(9000.0, pace(), 2).0, Some(9000));
        assert_eq!(cold(9000.0, pace(), 12).0, Some(9000 + 10 * 2000));
        // It was loaded, but has never finished a job.
        assert_eq!(cold(9000.0, Pace::default(), 0), (Some(9000), None));
        assert_eq!(cold(9000.0, Pace::default(), 1), (None, None));
    }

    #[test]
    fn an_idle_worker_begins_at_once_and_a_busy_one_as_it_usually_does() {
        assert_eq!(asked(&Fleet::of(&[load(9000.0), load(0.0)]), 0, 0).start_ms, Some(0));
        assert_eq!(asked(&Fleet::of(&[load(9000.0), load(200.0)]), 0, 0).start_ms, Some(200));
        assert_eq!(asked(&Fleet::of(&[load(9000.0), load(8000.0)]), 0, 0).start_ms, Some(300));
    }

    #[test]
    fn a_long_queue_drains_by_as_many_workers_as_there_are_and_more_urgent_jobs_slow_it() {
        let one = Fleet::of(&[load(9000.0)]);
        assert_eq!(asked(&one, 10, 5), Estimate { position: 15, start_ms: Some(30_300), end_ms: Some(36_300) });
        let mut four = Fleet::of(&[load(9000.0); 4]);
        assert_eq!(asked(&four, 10, 5).start_ms, Some(7_800));
        // The four finish two jobs in a second, of which one and a half are more urgent ones.
        four.priorities[0].begun_per_s = 1.5;
        assert_eq!(asked(&four, 10, 5).start_ms, Some(30_300));
        // However many these are.
        four.priorities[0].begun_per_s = 15.0;
        assert_eq!(asked(&four, 10, 5).start_ms, Some(75_300));
    }

    #[test]
    fn a_larger_job_ends_later() {
        let fleet = Fleet::of(&[load(0.0)]);
        let end_ms = |megapixel_steps| {
            let wanted = Wanted { megapixel_steps, ..WANTED };
            estimate(&fleet, &Remembered::default(), Ahead::default(), wanted).end_ms
        };
        assert_eq!((end_ms(5.0), end_ms(50.0)), (Some(6000), Some(60_000)));
    }

    #[test]
    fn pools_compete_where_workers_pull_both() {
        let lane = |priority, pool| Lane { priority, pool };
        let all: Vec<(Lane, u64)> = [(Priority::High, 1), (Priority::Normal, 10), (Priority::Low, 100)]
            .into_iter()
            .flat_map(|(priority, count)| {
                [(lane(priority, Pool::Any), count), (lane(priority, Pool::OnDemand), 2 * count)]
            })
            .collect();
        let own = lane(Priority::Normal, Pool::Any);
        assert_eq!(ahead(own, 7, &all, &[]), Ahead { alike: 7, more_urgent: 1 });
        assert_eq!(ahead(own, 7, &all, &[Pool::Any, Pool::OnDemand]), Ahead { alike: 14, more_urgent: 3 });
        assert_eq!(ahead(lane(Priority::High, Pool::Any), 0, &all, Pool::ALL), Ahead::default());
    }

    #[test]
    fn measurements_are_of_the_jobs_and_fade() {
        let at = |seconds: u64| Mono::from_micros(seconds * 1_000_000);
        let mut measured = Measured::new(at(0));
        assert_eq!(measured.load(at(0), 0.0), WorkerLoad::default());
        for second in 1..=600 {
            measured.begun(at(second), Priority::High, Duration::from_millis(if second % 4 == 0 { 3000 } else { 40 }));
            measured.finished(at(second), 500.0, Duration::from_secs(2), 5.0);
        }
        let now = measured.load(at(600), 7.0);
        let close = |found: Option<f64>, wanted: f64| found.is_some_and(|found| (found / wanted - 1.0).abs() < 0.05);
        assert!(close(now.pace.job_ms, 500.0) && close(now.pace.run_ms, 2000.0), "{now:?}");
        assert!(close(now.pace.megapixel_step_ms, 100.0), "{now:?}");
        assert!(close(Some(now.priorities[0].begun_per_s), 1.0), "{now:?}");
        assert!(now.priorities[0].begin_ms.is_some_and(|usual| usual < 60.0), "the median, not the mean: {now:?}");
        assert_eq!((now.priorities[1].begin_ms, now.priorities[1].begun_per_s), (None, 0.0));
        let later = measured.load(at(1200), 0.0);
        assert!(later.priorities[0].begun_per_s < 0.2 && close(later.pace.job_ms, 500.0), "{later:?}");
    }

    #[test]
    fn a_place_is_exact_where_the_consumer_is_alone_and_at_both_ends() {
        for sequence in 11..=20 {
            assert_eq!(position(sequence, 10, 10, 20), sequence - 11);
        }
        assert_eq!(position(10, 10, 10, 20), 0, "a worker has it");
        assert_eq!((position(11, 4, 10, 50), position(50, 4, 10, 50)), (0, 3));
        assert_eq!(position(31, 4, 10, 50), 2, "about the middle of four");
        assert_eq!((position(5, 0, 0, 0), position(1, 1, 0, 1)), (0, 0));
    }
}
