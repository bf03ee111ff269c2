//! How a worker came to its first step: what each phase took, and how much of it a job has waited for.

use std::time::Duration;

use crate::sched::Mono;

use super::super::clock::Clock;
use super::super::metrics::Metrics;
use super::super::model_cache::Fetched;

/// The phases from the start of the process to the first step. They follow each other but for gaps in which there is no job.
#[derive(Clone, Debug)]
pub(super) struct ColdStart {
    metrics: Metrics,
    fetched: Option<Fetched>,
    /// From the start of the process until it was ready.
    whole: Duration,
    ready_unix_ms: i64,
    /// When its first job came.
    has_work_since: Option<Mono>,
    has_stepped: bool,
}

/// A phase, as it is called where it is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Until the files of the model were on this machine.
    Fetch,
    /// From then until the engine was ready.
    Load,
    /// From the first job's delivery, through its claim and its prompts, to the end of its first step.
    FirstStep,
}

impl Phase {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::Load => "load",
            Self::FirstStep => "first_step",
        }
    }
}

impl ColdStart {
    /// The engine is ready now.
    pub(super) fn ready(metrics: Metrics, clock: Clock, fetched: Option<Fetched>) -> Self {
        let whole = clock.now().since(Mono::ZERO);
        let (ready_unix_ms, has_work_since) = (clock.unix_ms(), None);
        let cold_start = Self { metrics, fetched, whole, ready_unix_ms, has_work_since, has_stepped: false };
        if let Some(fetched) = fetched {
            cold_start.measured(Phase::Fetch, fetched.took);
            cold_start.metrics.fetched(fetched.bytes);
        }
        cold_start.measured(Phase::Load, cold_start.load());
        cold_start
    }

    /// A phase has ended.
    fn measured(&self, phase: Phase, took: Duration) {
        self.metrics.cold_start(phase.as_str(), took);
        tracing::debug!(phase = phase.as_str(), took_ms = took.as_millis(), "worker.cold_start");
    }

    pub(super) fn whole(&self) -> Duration {
        self.whole
    }

    pub(super) fn fetch(&self) -> Option<Duration> {
        Some(self.fetched?.took)
    }

    pub(super) fn load(&self) -> Duration {
        self.whole.saturating_sub(self.fetch().unwrap_or_default())
    }

    pub(super) fn ready_unix_ms(&self) -> i64 {
        self.ready_unix_ms
    }

    /// A job has come.
    pub(super) fn has_work(&mut self, now: Mono) {
        self.has_work_since.get_or_insert(now);
    }

    /// All jobs that have come are gone: what was refused, or is somebody else's, is not waited for.
    pub(super) fn has_no_work(&mut self) {
        self.has_work_since = None;
    }

    /// The engine has made a step.
    pub(super) fn stepped(&mut self, now: Mono) {
        if let (false, Some(since)) = (self.has_stepped, self.has_work_since) {
            self.has_stepped = true;
            let took = now.since(since);
            self.measured(Phase::FirstStep, took);
            let since_start_ms = now.since(Mono::ZERO).as_millis();
            tracing::info!(first_step_ms = took.as_millis(), since_start_ms, "worker.first_step");
        }
    }

    /// How long a job that was published then has waited for the worker to be ready.
    pub(super) fn waited(&self, published_unix_ms: i64) -> Duration {
        overlap(self.ready_unix_ms, self.whole, published_unix_ms)
    }

    /// How much of that it has waited for the model's files.
    pub(super) fn waited_for_files(&self, published_unix_ms: i64) -> Duration {
        self.fetched.map_or(Duration::ZERO, |fetched| overlap(fetched.at_unix_ms, fetched.took, published_unix_ms))
    }
}

/// How much of what took so long and ended then was after `since_unix_ms`.
fn overlap(ended_unix_ms: i64, took: Duration, since_unix_ms: i64) -> Duration {
    let after_ms = u64::try_from(ended_unix_ms.saturating_sub(since_unix_ms)).unwrap_or(0);
    took.min(Duration::from_millis(after_ms))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Capacity;
    use crate::shell::telemetry;

    fn metrics() -> Metrics {
        Metrics::new(&telemetry::meter(), &"m".parse().unwrap(), Capacity::OnDemand)
    }

    #[test]
    fn a_job_has_waited_for_what_came_after_it() {
        let fetched = Fetched { took: Duration::from_millis(300), at_unix_ms: 1_000_400, bytes: 7, resumed_bytes: 0 };
        let cold_start = ColdStart {
            metrics: metrics(),
            fetched: Some(fetched),
            whole: Duration::from_millis(500),
            ready_unix_ms: 1_000_550,
            has_work_since: None,
            has_stepped: false,
        };
        let ms = Duration::from_millis;
        assert_eq!(cold_start.load(), ms(200));
        // Before the process, while it fetched, while it loaded, and when it was ready.
        let waited = [(0, 500, 300), (1_000_300, 250, 100), (1_000_500, 50, 0), (1_000_550, 0, 0), (2_000_000, 0, 0)];
        for (published, whole, files) in waited {
            assert_eq!(cold_start.waited(published), ms(whole), "{published}");
            assert_eq!(cold_start.waited_for_files(published), ms(files), "{published}");
        }
    }

    #[test]
    fn the_first_step_counts_once() {
        let mut cold_start = ColdStart::ready(metrics(), Clock::start(), None);
        cold_start.stepped(Mono::from_micros(5));
        assert!(!cold_start.has_stepped, "a step without a job");
        cold_start.has_work(Mono::from_micros(10));
        cold_start.has_work(Mono::from_micros(20));
        assert_eq!(cold_start.has_work_since, Some(Mono::from_micros(10)));
        cold_start.has_no_work();
        cold_start.has_work(Mono::from_micros(25));
        assert_eq!(cold_start.has_work_since, Some(Mono::from_micros(25)), "the first was refused");
        cold_start.stepped(Mono::from_micros(30));
        assert!(cold_start.has_stepped);
        assert_eq!((cold_start.fetch(), cold_start.load()), (None, cold_start.whole()));
    }
}
