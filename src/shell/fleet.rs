//! Workers' reports: publishing one's own, reading those of all workers of a model.
//!
//! Estimates, scaling and the choice of a pool go by them; no job's end does. A report that cannot be published is logged, and is
//! missed by nobody else.

use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::job::{Capacity, Fault, ModelName, Pool, Priority, WorkerId};
use crate::sched::estimate::{Fleet, Pace, PriorityLoad, Remembered, WorkerLoad};
use crate::wire::worker::{self, ModelReport, PaceReport, PriorityReport, WorkerReport, WorkerState};
use crate::wire::{header, subject};

use super::bus::{Bus, chain};
use super::stored::{self, Stored};

/// Between two reports; the bucket keeps each for five times as long.
const REPORT_EVERY: Duration = Duration::from_secs(2);
/// The model's report is renewed with every so many of the worker's, and at the end.
const REPORTS_PER_MODEL_REPORT: u64 = 30;
/// How long the end of a worker is held up by its last report.
const PATIENCE: Duration = Duration::from_secs(2);

/// Publishes a worker's reports, on a task of its own.
#[derive(Debug)]
pub struct Reporter {
    newest: watch::Sender<WorkerReport>,
    ended: CancellationToken,
    task: JoinHandle<()>,
}

impl Reporter {
    /// Publishes `first`, and from then on the newest report every two seconds.
    pub fn start(bus: Bus, model: ModelName, worker: WorkerId, first: WorkerReport) -> Self {
        let (newest, reports) = watch::channel(first);
        let ended = CancellationToken::new();
        let publisher = Publisher { bus, model, worker, reports, before: None, is_failing: false };
        let task = tokio::spawn(publisher.run(ended.clone()));
        Self { newest, ended, task }
    }

    /// Replaces the report that is published next. Never waits.
    pub fn update(&self, report: WorkerReport) {
        self.newest.send_replace(report);
    }

    /// Withdraws the worker's report, and leaves the model's.
    pub async fn end(self) {
        self.ended.cancel();
        let _ = tokio::time::timeout(PATIENCE, self.task).await;
    }
}

struct Publisher {
    bus: Bus,
    model: ModelName,
    worker: WorkerId,
    reports: watch::Receiver<WorkerReport>,
    /// What was remembered of the model when this worker began.
    before: Option<ModelReport>,
    is_failing: bool,
}

impl Publisher {
    async fn run(mut self, ended: CancellationToken) {
        let mut ticks = tokio::time::interval(REPORT_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut reports: u64 = 0;
        loop {
            tokio::select! {
                () = ended.cancelled() => break,
                _ = ticks.tick() => {}
            }
            self.put(subject::worker_report(&self.model, &self.worker), HeaderMap::new(), &self.newest()).await;
            if reports == 0 {
                self.before = model_report(&self.bus, &self.model).await.unwrap_or_default();
            }
            if reports.is_multiple_of(REPORTS_PER_MODEL_REPORT) {
                self.put_model().await;
            }
            reports += 1;
        }
        let mut deleted = HeaderMap::new();
        deleted.insert(header::KEY_OPERATION, header::KEY_DELETED);
        let key = subject::worker_report(&self.model, &self.worker);
        self.publish(key, deleted, Bytes::new()).await;
        self.put_model().await;
    }

    fn newest(&self) -> WorkerReport {
        self.reports.borrow().clone()
    }

    async fn put_model(&mut self) {
        let WorkerReport { model, loading_ms, pace, .. } = self.newest();
        let before = self.before.as_ref().map(|before| before.pace).unwrap_or_default();
        let pace = PaceReport {
            job_ms: pace.job_ms.or(before.job_ms),
            run_ms: pace.run_ms.or(before.run_ms),
            megapixel_step_ms: pace.megapixel_step_ms.or(before.megapixel_step_ms),
        };
        let report = ModelReport { model, loading_ms, pace };
        self.put(subject::model_report(&self.model), HeaderMap::new(), &report).await;
    }

    async fn put<R: serde::Serialize>(&mut self, key: String, headers: HeaderMap, report: &R) {
        self.publish(key, headers, worker::encode(report).into()).await;
    }

    async fn publish(&mut self, key: String, headers: HeaderMap, body: Bytes) {
        let outcome = self.bus.publish(&key, headers, body).await;
        // Once for each time that it begins to fail, not every two seconds.
        if let Err(error) = &outcome
            && !self.is_failing
        {
            tracing::warn!(error = chain(error), "worker.report");
        }
        self.is_failing = outcome.is_err();
    }
}

/// A report of what was measured; the rest of it is the worker's to say.
pub fn priority_reports(load: &WorkerLoad) -> Vec<PriorityReport> {
    let report = |(priority, of): (&Priority, &PriorityLoad)| PriorityReport {
        priority: priority.to_string(),
        begun_per_s: of.begun_per_s,
        begin_ms: of.begin_ms,
    };
    Priority::ALL.iter().zip(&load.priorities).map(report).collect()
}

/// A pace as it is reported.
pub fn pace_report(pace: &Pace) -> PaceReport {
    PaceReport { job_ms: pace.job_ms, run_ms: pace.run_ms, megapixel_step_ms: pace.megapixel_step_ms }
}

fn pace(report: &PaceReport) -> Pace {
    Pace { job_ms: report.job_ms, run_ms: report.run_ms, megapixel_step_ms: report.megapixel_step_ms }
}

fn load(report: &WorkerReport) -> WorkerLoad {
    let of = |nth: usize| {
        let own = report.priorities.iter().find(|of| of.priority == Priority::ALL[nth].as_str());
        own.map_or_else(PriorityLoad::default, |of| PriorityLoad { begun_per_s: of.begun_per_s, begin_ms: of.begin_ms })
    };
    WorkerLoad { work_left_ms: report.work_left_ms, pace: pace(&report.pace), priorities: [of(0), of(1), of(2)] }
}

/// What is known of the workers of a model that take jobs of a pool.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Those that are there.
    pub fleet: Fleet,
    /// The pools that they pull.
    pub pools: Vec<Pool>,
    /// How it was when some were there.
    pub remembered: Remembered,
}

/// What a worker runs on, by what it pulls: spot never takes what must not be interrupted.
pub fn capacity_of(report: &WorkerReport) -> Capacity {
    let takes_all = report.pools.iter().any(|pool| pool == Pool::OnDemand.as_str());
    if takes_all { Capacity::OnDemand } else { Capacity::Spot }
}

/// What the bus has of a model's workers.
#[derive(Clone, Debug)]
pub struct Reports {
    workers: Vec<WorkerReport>,
    model: Option<ModelReport>,
}

/// Reads what the bus has.
///
/// # Errors
/// A `Retry` fault when nobody answers, or the buckets are not there.
pub async fn reports(bus: &Bus, model: &ModelName) -> Result<Reports, Fault> {
    let (workers, model) = tokio::try_join!(worker_reports(bus, model), model_report(bus, model))?;
    Ok(Reports { workers, model })
}

impl Reports {
    /// What is known of those that take jobs of a pool.
    pub fn known(&self, pool: Pool) -> Known {
        let mut known = Known::default();
        if let Some(report) = &self.model {
            #[expect(clippy::cast_precision_loss, reason = "milliseconds of loading fit")]
            let loading_ms = Some(report.loading_ms as f64);
            known.remembered = Remembered { loading_ms, pace: pace(&report.pace) };
        }
        let mut loads = Vec::new();
        for report in self.ready() {
            let pools: Vec<Pool> = report.pools.iter().filter_map(|pool| pool.parse().ok()).collect();
            if pools.contains(&pool) {
                loads.push(load(report));
                known.pools.extend(pools);
            }
        }
        known.fleet = Fleet::of(&loads);
        known
    }

    /// How many take jobs, and may be taken away.
    pub fn spot_workers(&self) -> u32 {
        let count = self.ready().filter(|report| capacity_of(report) == Capacity::Spot).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    fn ready(&self) -> impl Iterator<Item = &WorkerReport> {
        self.workers.iter().filter(|report| report.state == WorkerState::Ready)
    }
}

/// The reports of all workers of a model, none of them older than ten seconds.
///
/// # Errors
/// A `Retry` fault when nobody answers, or the bucket is not there.
pub async fn worker_reports(bus: &Bus, model: &ModelName) -> Result<Vec<WorkerReport>, Fault> {
    let values = values(bus, subject::BUCKET_WORKERS, &subject::worker_reports(model)).await?;
    // Another build's report is nobody's.
    Ok(values.iter().filter_map(|value| worker::decode(value).ok()).collect())
}

/// What is remembered of a model.
///
/// # Errors
/// A `Retry` fault when nobody answers, or the bucket is not there.
pub async fn model_report(bus: &Bus, model: &ModelName) -> Result<Option<ModelReport>, Fault> {
    let values = values(bus, subject::BUCKET_MODELS, &subject::model_report(model)).await?;
    Ok(values.first().and_then(|value| worker::decode_model(value).ok()))
}

/// The values of a bucket under the keys that match: the client library needs one question for each key, or waits for a
/// first one that never comes.
async fn values(bus: &Bus, bucket: &str, keys: &str) -> Result<Vec<Bytes>, Fault> {
    let stored = stored::last_of(bus, &subject::stream_of_bucket(bucket), &[keys.to_owned()]).await?;
    let is_deleted = |message: &Stored| message.headers.get(header::KEY_OPERATION).is_some();
    Ok(stored.into_iter().filter(|message| !is_deleted(message)).map(|message| message.body).collect())
}
