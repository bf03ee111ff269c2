//! The reconciler: reads what is queued, recorded and announced, a bounded piece at a time, and does what
//! `sched::reconcile` says about it.
//!
//! It is the last to notice anything: whatever it mends was left by somebody who died, and nothing young is touched. Several
//! may run at once.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::job::{Fault, FaultCode, JobId, Tenant};
use crate::sched::reconcile::{
    ConsumerSeen, Known, Need, Patience, RecordRepair, RecordSeen, RequestRepair, RequestSeen, judge_record,
    judge_request, need,
};
use crate::wire::event::EventKind;
use crate::wire::{header, subject};

use super::advisories::exhausted;
use super::bus::{ApiError, chain};
use super::config::parse_duration;
use super::deadletter::serves;
use super::ending::{Ending, Owner, relation};
use super::metrics::ReconcilerMetrics;
use super::outlook;
use super::records::{Changed, Found, Owned};
use super::stored::{self, Stored};
use super::topology;

/// Pages of requests, and of records, that one pass looks at; the next goes on where it ended.
const PAGES_PER_PASS: usize = 40;
/// Requests that one pass looks up one by one.
const LOOKUPS_PER_PASS: usize = 2_000;

/// When and what it mends.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct ReconcileOptions {
    /// Time between two looks for disagreements of queue, records and events
    #[arg(
        long = "reconcile-every",
        env = "DARKROOM_RECONCILE_EVERY",
        default_value = "60s",
        value_parser = parse_duration,
        value_name = "DURATION"
    )]
    pub every: Duration,
    /// Nothing that is younger is mended; several times the lease of a request
    #[arg(
        long = "reconcile-grace",
        env = "DARKROOM_RECONCILE_GRACE",
        default_value = "5m",
        value_parser = parse_duration,
        value_name = "DURATION"
    )]
    pub grace: Duration,
    /// A job that a worker has, and whose request is gone, fails after so long
    #[arg(
        long = "lost-after",
        env = "DARKROOM_LOST_AFTER",
        default_value = "1h",
        value_parser = parse_duration,
        value_name = "DURATION"
    )]
    pub lost_after: Duration,
}

/// Looks and mends until `stop`.
pub async fn run(ending: &Ending, metrics: &ReconcilerMetrics, options: ReconcileOptions, stop: &CancellationToken) {
    let patience = Patience { grace: options.grace, lost: options.lost_after };
    let mut reconciler =
        Reconciler { ending, metrics, patience, next_request: 1, next_record: 1, settled: 0, round: Round::default() };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(options.every) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            outcome = reconciler.pass() => {
                if let Err(fault) = outcome {
                    tracing::warn!(%fault, "reconciler.pass");
                }
            }
        }
    }
}

struct Reconciler<'a> {
    ending: &'a Ending,
    metrics: &'a ReconcilerMetrics,
    patience: Patience,
    /// Where the next pass goes on in the stream of requests.
    next_request: u64,
    /// Where it does in the bucket of records.
    next_record: u64,
    /// Up to this revision every terminal record has its event: they never change any more.
    settled: u64,
    round: Round,
}

/// What is remembered from one pass to the next.
#[derive(Debug, Default)]
struct Round {
    consumers: BTreeMap<String, ConsumerSeen>,
    /// Whether every terminal record of this round, from the first on, has its event.
    is_settled: bool,
}

/// A consumer with what it filters.
struct Counted {
    name: String,
    filter: String,
    now: ConsumerSeen,
    before: ConsumerSeen,
}

impl Reconciler<'_> {
    async fn pass(&mut self) -> Result<(), Fault> {
        let consumers = self.count().await?;
        self.requests(&consumers).await?;
        self.records().await?;
        tracing::debug!("reconciler.pass");
        Ok(())
    }

    /// Compares what the stream holds with what its consumers count.
    async fn count(&mut self) -> Result<Vec<Counted>, Fault> {
        let lost = |error: ApiError| Fault::retry(FaultCode::BusFailed, chain(&error));
        let bus = &self.ending.bus;
        let stored = topology::requests_by_subject(bus).await.map_err(lost)?;
        let served = topology::served(bus).await.map_err(lost)?;
        let count = |served: topology::Served| {
            let own = stored.iter().filter(|(subject, _)| serves(&served.filter, subject));
            let now = ConsumerSeen {
                stored: own.map(|(_, count)| count).sum(),
                pending: served.pending,
                in_flight: served.in_flight,
                delivered: served.delivered_sequence,
            };
            let before = self.round.consumers.get(&served.consumer).copied().unwrap_or_default();
            Counted { name: served.consumer, filter: served.filter, now, before }
        };
        let counted: Vec<Counted> = served.into_iter().map(count).collect();
        for Counted { name, now, before, .. } in &counted {
            // Twice, because requests come and go between the two counts.
            if now.surplus() > 0 && before.surplus() > 0 {
                let ConsumerSeen { stored, pending, in_flight, .. } = now;
                tracing::warn!(consumer = name, stored, pending, in_flight, "reconciler.counts");
                self.metrics.found("counts");
            }
        }
        self.round.consumers = counted.iter().map(|counted| (counted.name.clone(), counted.now)).collect();
        Ok(counted)
    }

    /// Removes or fails requests that nobody will end.
    async fn requests(&mut self, consumers: &[Counted]) -> Result<(), Fault> {
        for _ in 0..PAGES_PER_PASS {
            let bus = &self.ending.bus;
            let page =
                stored::page(bus, subject::STREAM_REQUESTS, self.next_request, subject::ALL_REQUESTS, stored::PAGE_MAX);
            let page = page.await?;
            let Some(last) = page.last() else {
                self.next_request = 1;
                return Ok(());
            };
            self.next_request = last.sequence + 1;
            let now = self.ending.clock.unix_ms();
            let old: Vec<(Stored, Owner)> = page
                .into_iter()
                .filter(|request| request.age(now) >= self.patience.grace)
                .map(|request| {
                    let owner = Owner::of(&request);
                    (request, owner)
                })
                .collect();
            let keys: Vec<String> = old.iter().filter_map(|(_, owner)| key(owner)).collect();
            let records = stored::last_of(bus, subject::STREAM_JOBS, &keys).await?;
            let records: HashMap<&str, &Stored> =
                records.iter().map(|record| (record.subject.as_str(), record)).collect();
            for (request, owner) in &old {
                // What has no consumer is the sweep's, and so is what has no tenant.
                let consumer = consumers.iter().find(|counted| serves(&counted.filter, &request.subject));
                let (Some(consumer), Some(key)) = (consumer, key(owner)) else { continue };
                let record = records.get(key.as_str()).copied();
                if let Err(fault) = self.request(request, record, consumer).await {
                    tracing::warn!(%fault, sequence = request.sequence, job = %owner.job, "reconciler.request");
                }
            }
        }
        Ok(())
    }

    async fn request(&self, request: &Stored, record: Option<&Stored>, consumer: &Counted) -> Result<(), Fault> {
        let now = self.ending.clock.unix_ms();
        let found = match record {
            None => Found::Absent { revision: 0 },
            Some(record) => match Found::read(&record.headers, &record.body, record.sequence) {
                Ok(found) => found,
                // Of another build: not ours to judge.
                Err(_) => return Ok(()),
            },
        };
        let seen = RequestSeen {
            age: request.age(now),
            relation: relation(request, &found),
            record_age: record.unwrap_or(request).age(now),
            is_exhausted: consumer.now.has_exhausted(&consumer.before, request.sequence),
        };
        let (fault, kind) = match judge_request(&seen, &self.patience) {
            RequestRepair::Leave => return Ok(()),
            // Its record has the reason; this one is for a job that is not as it was any more.
            RequestRepair::Settle => (
                Fault::reject(FaultCode::RequestLost, "its job had ended, and nobody removed the request"),
                "request_left_behind",
            ),
            RequestRepair::GiveUp => (exhausted(0, &consumer.name), "deliveries_exhausted"),
        };
        tracing::warn!(
            sequence = request.sequence, subject = request.subject, relation = ?seen.relation, kind, "reconciler.repair"
        );
        self.ending.end_request(request, &fault).await?;
        self.metrics.repaired(kind);
        Ok(())
    }

    /// Announces, limits and fails jobs whose record says more than the streams.
    async fn records(&mut self) -> Result<(), Fault> {
        let mut lookups = LOOKUPS_PER_PASS;
        let filter = subject::all_records();
        for _ in 0..PAGES_PER_PASS {
            if self.next_record == 1 {
                self.round.is_settled = true;
            }
            let bus = &self.ending.bus;
            let page = stored::page(bus, subject::STREAM_JOBS, self.next_record, &filter, stored::PAGE_MAX);
            let page = page.await?;
            if page.is_empty() {
                self.next_record = 1;
                return Ok(());
            }
            let now = self.ending.clock.unix_ms();
            let mut seen = Vec::new();
            for stored in &page {
                let Some((tenant, job)) = subject::record_owner(&stored.subject) else { continue };
                let Ok(Found::Record(owned)) = Found::read(&stored.headers, &stored.body, stored.sequence) else {
                    continue;
                };
                let record = RecordSeen {
                    status: owned.record.state.status,
                    stream_sequence: owned.record.stream_sequence,
                    age: stored.age(now),
                    is_limited: stored.header(header::TIME_TO_LIVE).is_some(),
                };
                let is_settled = record.status.is_terminal() && owned.revision <= self.settled;
                let need = if is_settled { Need::Nothing } else { need(&record, &self.patience) };
                seen.push((Job { tenant, job, owned: *owned }, record, need));
            }
            let events = self.events_of(&seen).await?;
            for (job, record, need) in seen {
                let revision = job.owned.revision;
                if lookups == 0 && matches!(need, Need::Request(_) | Need::AnyRequest) {
                    // The next pass goes on with it.
                    self.next_record = revision;
                    return Ok(());
                }
                self.next_record = revision + 1;
                let outcome = match need {
                    Need::Nothing => Ok(()),
                    Need::Event => {
                        let is_stored = events.contains_key(&terminal_event(&job));
                        self.record(&job, &record, Known::Event(is_stored)).await
                    }
                    Need::Request(_) | Need::AnyRequest => {
                        lookups -= 1;
                        self.look_up(&job, &record, need).await
                    }
                };
                let is_young = record.status.is_terminal() && need == Need::Nothing && revision > self.settled;
                if let Err(fault) = &outcome {
                    tracing::warn!(%fault, tenant = %job.tenant, job = %job.job, "reconciler.record");
                }
                self.round.is_settled &= outcome.is_ok() && !is_young;
                if self.round.is_settled {
                    self.settled = self.settled.max(revision);
                }
            }
            self.next_record = page.last().map_or(self.next_record, |last| last.sequence + 1);
        }
        Ok(())
    }

    /// Which of the terminal events that have to be known are stored, by subject.
    async fn events_of(&self, seen: &[(Job, RecordSeen, Need)]) -> Result<HashMap<String, u64>, Fault> {
        let wanted = seen.iter().filter(|(_, _, need)| *need == Need::Event);
        let subjects: Vec<String> = wanted.map(|(job, _, _)| terminal_event(job)).collect();
        let stored = stored::last_of(&self.ending.bus, subject::STREAM_EVENTS, &subjects).await?;
        Ok(stored.into_iter().map(|event| (event.subject, event.sequence)).collect())
    }

    async fn look_up(&self, job: &Job, record: &RecordSeen, need: Need) -> Result<(), Fault> {
        let found = match need {
            Need::Request(sequence) => {
                let stored = outlook::request(&self.ending.bus, sequence).await?;
                stored.map(|request| request.sequence)
            }
            Need::AnyRequest => {
                let stored = self.ending.request_of(&job.tenant, &job.job).await?;
                stored.map(|request| request.sequence)
            }
            Need::Nothing | Need::Event => return Ok(()),
        };
        self.record(job, record, Known::Request(found)).await
    }

    async fn record(&self, Job { tenant, job, owned }: &Job, seen: &RecordSeen, known: Known) -> Result<(), Fault> {
        for repair in judge_record(seen, known, &self.patience) {
            let status = seen.status.as_str();
            if repair == RecordRepair::Report {
                tracing::warn!(%tenant, %job, status, sequence = seen.stream_sequence, "reconciler.request_missing");
                self.metrics.found("request_missing");
                continue;
            }
            tracing::warn!(%tenant, %job, status, ?repair, "reconciler.repair");
            let kind = match repair {
                RecordRepair::Report => continue,
                RecordRepair::Announce => {
                    self.ending.announce(tenant, job, &owned.record).await?;
                    "event_missing"
                }
                RecordRepair::Limit => {
                    self.ending.records.replace(tenant, job, owned, owned.record.clone()).await?;
                    "record_without_end"
                }
                RecordRepair::Name(sequence) => {
                    let mut named = owned.record.clone();
                    named.stream_sequence = Some(sequence);
                    if let Changed::Lost = self.ending.records.replace(tenant, job, owned, named).await? {
                        continue;
                    }
                    "request_unnamed"
                }
                RecordRepair::Fail(code) => {
                    let fault = Fault::reject(code, reason(code));
                    self.ending.fail_job(tenant, job, owned, &fault).await?;
                    code.as_str()
                }
            };
            self.metrics.repaired(kind);
        }
        Ok(())
    }
}

/// A job with its record.
struct Job {
    tenant: Tenant,
    job: JobId,
    owned: Owned,
}

fn terminal_event(Job { tenant, job, owned }: &Job) -> String {
    let kind = EventKind::of_terminal(owned.record.state.status).unwrap_or(EventKind::Failed);
    subject::event(tenant.as_str(), job, kind.as_str())
}

fn key(owner: &Owner) -> Option<String> {
    owner.tenant.as_ref().map(|tenant| subject::record(tenant, &owner.job))
}

fn reason(code: FaultCode) -> &'static str {
    if code == FaultCode::NeverPublished {
        "a record was made for the job, and its request was never published"
    } else {
        "its request is not in the stream any more, and nobody said how the job ended"
    }
}
