//! What clients are told when they submit: each job's estimate, from the same facts and by the same function as on the bus.
//!
//! Workers report every two seconds, so a client knows what was so at most that long ago.

use std::time::Duration;

use crate::sched::estimate::{Ahead, Fleet, Measured, Remembered, Wanted, WorkerLoad, estimate};
use crate::sched::{Mono, Scheduler};

use super::super::ledger::Ledger;
use super::super::workload::Job;

/// Between two reports of a worker.
const REPORT_EVERY_US: u64 = 2_000_000;

/// What one worker knows of its jobs.
#[derive(Clone, Debug)]
struct Worker {
    measured: Measured,
    /// Jobs that have not begun, and when they were delivered.
    waiting: Vec<(u32, u64)>,
}

/// Everything that estimates are made of.
#[derive(Debug)]
pub(super) struct Estimates {
    workers: Vec<Worker>,
    /// By job, engine time in microseconds.
    spent_us: Vec<f64>,
    fleet: Fleet,
    report_at_us: u64,
}

/// Millions of pixels, times steps, over all images.
fn megapixel_steps(job: &Job) -> f64 {
    f64::from(job.key.width) * f64::from(job.key.height) / 1e6 * f64::from(job.steps) * f64::from(job.images)
}

impl Estimates {
    pub(super) fn new(workers: u32, jobs: usize) -> Self {
        let worker = Worker { measured: Measured::new(Mono::ZERO), waiting: Vec::new() };
        let workers = vec![worker; workers as usize];
        Self { workers, spent_us: vec![0.0; jobs], fleet: Fleet::default(), report_at_us: 0 }
    }

    /// The worker has the job.
    pub(super) fn delivered(&mut self, now_us: u64, worker: u32, job: u32) {
        self.workers[worker as usize].waiting.push((job, now_us));
    }

    /// The engine begins to work so long for these jobs, each as often as it has images in that.
    pub(super) fn worked(&mut self, jobs: impl ExactSizeIterator<Item = u32>, took_us: u64) {
        let each_us = took_us as f64 / jobs.len().max(1) as f64;
        for job in jobs {
            self.spent_us[job as usize] += each_us;
        }
    }

    /// A step of the job begins, which may be its first.
    pub(super) fn steps(&mut self, now_us: u64, worker: u32, job: u32, of: &Job) {
        let own = &mut self.workers[worker as usize];
        if let Some(place) = own.waiting.iter().position(|(waiting, _)| *waiting == job) {
            let (_, delivered_us) = own.waiting.swap_remove(place);
            let waited = Duration::from_micros(now_us - delivered_us);
            own.measured.begun(Mono::from_micros(now_us), of.priority, waited);
        }
    }

    /// The worker has the job no more.
    pub(super) fn forgotten(&mut self, worker: u32, job: u32) {
        self.workers[worker as usize].waiting.retain(|(waiting, _)| *waiting != job);
    }

    /// The job's images are stored.
    pub(super) fn finished(&mut self, now_us: u64, worker: u32, job: u32, ledger: &Ledger<'_>) {
        let run = Duration::from_micros(now_us.saturating_sub(ledger.started_us[job as usize]));
        let spent_ms = self.spent_us[job as usize] / 1e3;
        let measured = &mut self.workers[worker as usize].measured;
        measured.finished(Mono::from_micros(now_us), spent_ms, run, megapixel_steps(ledger.job(job)));
    }

    /// A job is about to be published: when it begins as far as its client can tell, in microseconds.
    pub(super) fn of<'a>(
        &mut self,
        now_us: u64,
        job: &Job,
        ahead: Ahead,
        schedulers: impl Iterator<Item = &'a Scheduler>,
    ) -> Option<u64> {
        if now_us >= self.report_at_us {
            let load = |(worker, scheduler): (&Worker, &Scheduler)| {
                worker.measured.load(Mono::from_micros(now_us), scheduler.work_left_ms())
            };
            let loads: Vec<WorkerLoad> = self.workers.iter().zip(schedulers).map(load).collect();
            self.fleet = Fleet::of(&loads);
            self.report_at_us = now_us - now_us % REPORT_EVERY_US + REPORT_EVERY_US;
        }
        let wanted = Wanted { priority: job.priority, megapixel_steps: megapixel_steps(job) };
        let start_ms = estimate(&self.fleet, &Remembered::default(), ahead, wanted).start_ms?;
        Some(now_us + 1000 * start_ms)
    }
}
