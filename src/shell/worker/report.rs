//! What a worker measures of its jobs and says of itself.

use std::time::Duration;

use crate::sched::{EngineWork, Mono, Scheduler, Ticket};
use crate::wire::header;
use crate::wire::worker::{WorkerReport, WorkerState};

use super::super::fleet::{self, Reporter};
use super::super::outlook::megapixel_steps;
use super::{Job, Worker};

/// A report is made anew at most this often; how often it is published is the reporter's business.
const MAKE_EVERY: Duration = Duration::from_millis(500);

/// The report that goes out next, and when it is due to be made anew.
#[derive(Debug)]
pub(super) struct Reports {
    reporter: Reporter,
    due: Mono,
}

impl Reports {
    /// Says that the worker is there.
    pub(super) fn start(worker: &Worker, scheduler: &Scheduler) -> Self {
        let first = worker.report(scheduler, WorkerState::Ready);
        let reporter =
            Reporter::start(worker.bus.clone(), worker.manifest.name.clone(), worker.config.worker.clone(), first);
        Self { reporter, due: worker.clock.now().after(MAKE_EVERY) }
    }

    /// Makes the report anew if it is time to. Never waits.
    pub(super) fn look(&mut self, worker: &Worker, scheduler: &Scheduler, state: WorkerState) {
        let now = worker.clock.now();
        if now >= self.due {
            self.due = now.after(MAKE_EVERY);
            self.reporter.update(worker.report(scheduler, state));
        }
    }

    /// Withdraws the report.
    pub(super) async fn end(self) {
        self.reporter.end().await;
    }
}

/// Images in the step under way.
pub(super) fn images_stepping(worker: &Worker) -> usize {
    match &worker.work {
        Some((EngineWork::Step { rows, .. }, _)) => rows.len(),
        Some(_) | None => 0,
    }
}

impl Worker {
    fn report(&self, scheduler: &Scheduler, state: WorkerState) -> WorkerReport {
        let load = self.measured.load(self.clock.now(), scheduler.work_left_ms());
        WorkerReport {
            worker: self.config.worker.to_string(),
            model: self.manifest.name.to_string(),
            pools: self.config.pools.iter().map(ToString::to_string).collect(),
            state,
            images_in_batch_max: self.config.images_in_batch_max.unwrap_or(self.manifest.limits.images_in_batch_max),
            jobs_held: scheduler.jobs_held() as u64,
            images_stepping: images_stepping(self) as u64,
            work_left_ms: load.work_left_ms,
            pace: fleet::pace_report(&load.pace),
            priorities: fleet::priority_reports(&load),
            loading_ms: whole_ms(self.cold_start.whole()),
            fetching_ms: self.cold_start.fetch().map(whole_ms),
            since_unix_ms: self.cold_start.ready_unix_ms(),
        }
    }

    /// The job's first step begins.
    pub(super) fn begins(&mut self, ticket: Ticket) {
        let now = self.clock.now();
        let Some(job) = self.jobs.get_mut(&ticket) else { return };
        job.stepping_since = Some(now);
        self.measured.begun(now, job.delivery.priority, now.since(job.came_at));
        let error_ms = job.estimated_start_error_ms(self.clock.unix_ms());
        if let Some(error_ms) = error_ms {
            self.metrics.estimated_start_error(error_ms);
        }
        self.publish_started(ticket, error_ms);
    }

    /// The job is stored and recorded.
    pub(super) fn ended_well(&mut self, ticket: Ticket) {
        let now = self.clock.now();
        if let Some(Job { request: Some(request), gpu_ms, stepping_since: Some(since), .. }) = self.jobs.get(&ticket) {
            self.measured.finished(now, *gpu_ms, now.since(*since), megapixel_steps(&request.spec));
        }
    }
}

fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Job {
    /// By how much it begins later than its client was told. Nobody told of later attempts.
    fn estimated_start_error_ms(&self, unix_ms: i64) -> Option<i64> {
        let first = self.owned.as_ref().is_none_or(|owned| owned.record.state.attempts <= 1);
        let text = self.delivery.headers.as_ref()?.get(header::ESTIMATED_START)?.as_str();
        let estimated = header::estimated_start(text, self.delivery.published_unix_ms)?;
        first.then(|| unix_ms.saturating_sub(estimated))
    }
}
