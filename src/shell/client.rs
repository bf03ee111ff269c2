//! What a client does: publish a request, follow its events, look at its record.

use std::collections::VecDeque;
use std::time::Duration;

use async_nats::jetstream::kv::Operation;
use async_nats::{HeaderMap, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::Value;

use crate::job::{Fault, FaultCode, JobId, JobState, ModelManifest, ModelName, OnLate, Pool, Priority, Tenant};
use crate::sched::Lane;
use crate::sched::estimate::Estimate;
use crate::wire::cancel::{CancelAnswer, CancelRequest};
use crate::wire::event::{self, CloudEvent, EventKind};
use crate::wire::record::Record;
use crate::wire::request::{Context, RequestDocument, parse};
use crate::wire::{header, subject};

use super::bus::{Access, ApiError, Bus, PublishError, chain};
use super::cancel::{Canceller, Keep};
use super::clock::Clock;
use super::config::Retention;
use super::outlook;
use super::records::{self, Changed, Found, Owned, Records};
use super::service;
use super::topology;

/// How often the record is looked at while events are waited for: they are the quick way, it is the sure one.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A request on its way.
#[derive(Clone, Debug)]
pub struct Submission {
    /// Whose job.
    pub tenant: Tenant,
    /// Its id.
    pub job: JobId,
    /// The model.
    pub model: ModelName,
    /// Its priority.
    pub priority: Priority,
    /// Its pool; what may run anywhere is put into `ondemand` where its deadline leaves no time to be made twice.
    pub pool: Pool,
    /// The body.
    pub request: RequestDocument,
}

impl Submission {
    /// Where it is published, in the pool that it is put into.
    fn subject(&self, pool: Pool) -> String {
        subject::request(&self.model, self.priority, pool, &self.tenant)
    }
}

/// Why a request was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// No consumers for the model.
    #[error("the model {model} is not served; served are: {}", list(served))]
    UnknownModel {
        /// What was asked for.
        model: ModelName,
        /// What there is.
        served: Vec<String>,
    },
    /// Rules are broken.
    #[error("the request is invalid: {}", violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid {
        /// All of them.
        violations: Vec<crate::job::Violation>,
    },
    /// The id is taken.
    #[error("the job id {job} belongs to a different request")]
    Conflict {
        /// The id.
        job: JobId,
    },
    /// The id was used before.
    #[error("the job id {job} was used by a job that ended; its record was removed after its retention")]
    Gone {
        /// The id.
        job: JobId,
    },
    /// The tenant has as many requests in the queue as it may.
    #[error("the quota is reached: {} of tenant {tenant} wait or run at {subject}", requests(*queued, *limit))]
    QuotaReached {
        /// Whose.
        tenant: Tenant,
        /// Where requests are counted.
        subject: String,
        /// How many are there; `None` where that may not be asked.
        queued: Option<u64>,
        /// How many may be.
        limit: Option<u64>,
    },
    /// The queue of all tenants is full.
    #[error("the queue of all tenants is full ({description}); try again later")]
    QueueFull {
        /// Which limit, in NATS' words.
        description: String,
    },
    /// JetStream does not answer.
    #[error("JetStream does not answer")]
    Api(#[from] ApiError),
    /// The record or the stream does not answer.
    #[error(transparent)]
    Bus(#[from] Fault),
    /// The stream did not take it.
    #[error("the request was not stored")]
    Publish(#[from] PublishError),
}

fn requests(queued: Option<u64>, limit: Option<u64>) -> String {
    match (queued, limit) {
        (Some(queued), Some(limit)) => format!("{queued} requests, {limit} allowed,"),
        (Some(queued), None) => format!("{queued} requests"),
        (None, _) => "as many requests as are allowed".to_owned(),
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none; run `darkroom setup --model DIR`".to_owned() } else { names.join(", ") }
}

/// What became of a submission.
#[derive(Clone, Debug)]
pub struct Submitted {
    /// Its place in the request stream; `None` when the job was there before.
    pub stream_sequence: Option<u64>,
    /// The pool that it is in; `None` when the job was there before.
    pub pool: Option<Pool>,
    /// Requests of all tenants that wait before it in its consumer.
    pub pending: u64,
    /// When it will be made, as far as one could tell before it was published.
    pub estimate: Option<Estimate>,
}

/// Checks a request against its model, makes the job's record, and publishes. The same submission again changes nothing.
///
/// A tenant's account can only publish: the worker that claims the job checks it and makes the record.
///
/// # Errors
/// [`SubmitError`].
pub async fn submit(bus: &Bus, clock: &Clock, submission: &Submission) -> Result<Submitted, SubmitError> {
    let Submission { tenant, model, pool, .. } = submission;
    if bus.access().await? == Access::Tenant {
        let (to, Message { headers, body }) = (submission.subject(*pool), Message::of(submission));
        let stored = match publish_surely(bus, &to, &headers, body).await {
            Ok(stored) => stored,
            Err(error) => return Err(refused(bus, Access::Tenant, tenant, error).await),
        };
        return Ok(Submitted { stream_sequence: Some(stored.sequence), pool: Some(*pool), pending: 0, estimate: None });
    }
    let Some(manifest) = topology::manifest_of(bus, model).await? else {
        let served = topology::served(bus).await?;
        let served = topology::manifests(&served).iter().map(|manifest| manifest.name.to_string()).collect();
        return Err(SubmitError::UnknownModel { model: model.clone(), served });
    };
    submit_to(bus, clock, &Records::open(bus).await?, &manifest, submission).await
}

/// The same on the platform's own account, for who submits often and knows the model and the records already.
///
/// # Errors
/// [`SubmitError`].
pub async fn submit_to(
    bus: &Bus,
    clock: &Clock,
    bucket: &Records,
    manifest: &ModelManifest,
    submission: &Submission,
) -> Result<Submitted, SubmitError> {
    let Submission { tenant, job, model, priority, pool, .. } = submission;
    let Message { mut headers, body } = Message::of(submission);
    let context = Context { manifest, tenant, priority: *priority, message_id: Some(job.as_str()), stream_sequence: 0 };
    let parsed = parse(&body, &context).map_err(|refusal| SubmitError::Invalid { violations: refusal.violations })?;

    let fresh = Record::accepted(parsed.digest.clone(), model.as_str(), None, clock.unix_ms());
    let fresh = fresh.telling(parsed.spec.webhook.clone());
    let made = match record_to_publish(bus, bucket, submission, fresh).await? {
        Recorded::ToPublish(owned) => owned,
        Recorded::Published => return Ok(Submitted { stream_sequence: None, pool: None, pending: 0, estimate: None }),
    };

    let lane = Lane { priority: *priority, pool: *pool };
    let waiting = outlook::Waiting { model, lane, megapixel_steps: outlook::megapixel_steps(&parsed.spec) };
    // What goes on when it is late is better off wherever somebody takes it.
    let deadline = parsed.spec.deadline.filter(|deadline| deadline.on_late == OnLate::Fail);
    let left_ms = deadline.map(|deadline| deadline.unix_ms.saturating_sub(clock.unix_ms()));
    let left = left_ms.map(|left_ms| Duration::from_millis(u64::try_from(left_ms).unwrap_or_default()));
    let new = outlook::of_new(bus, &waiting, left).await;
    let (estimate, pending) = new.map(|new| (new.estimate, new.pending)).unzip();
    let asked = *pool;
    let mut pool = new.map_or(asked, |new| new.pool);
    if let Some(start_ms) = estimate.and_then(|estimate| i64::try_from(estimate.start_ms?).ok()) {
        headers.insert(header::ESTIMATED_START, clock.unix_ms().saturating_add(start_ms).to_string());
    }
    let mut with_id = headers.clone();
    with_id.insert(header::MESSAGE_ID, header::message_id(tenant, job));
    let mut outcome = publish_surely(bus, &submission.subject(pool), &with_id, body.clone()).await;
    if pool != asked && matches!(outcome, Err(PublishError::QuotaReached { .. })) {
        // It was not the client who wanted this one.
        pool = asked;
        outcome = publish_surely(bus, &submission.subject(pool), &with_id, body.clone()).await;
    }
    let mut stored = match outcome {
        Ok(stored) => stored,
        Err(error) => {
            let error = refused(bus, Access::Platform, tenant, error).await;
            let not_stored = matches!(error, SubmitError::QuotaReached { .. } | SubmitError::QueueFull { .. });
            // So that nobody takes it for a job that waits, and its id is free.
            if let (true, Some(owned)) = (not_stored, &made)
                && let Err(fault) = bucket.withdraw(tenant, job, owned).await
            {
                tracing::debug!(%fault, "job.withdraw");
            }
            return Err(error);
        }
    };
    if stored.duplicate {
        let first = outlook::request(bus, stored.sequence).await?;
        // Its first copy may have been put into another pool.
        let is_in =
            |pool: &Pool| first.as_ref().is_some_and(|first| first.subject.as_str() == submission.subject(*pool));
        match Pool::ALL.iter().copied().find(is_in) {
            Some(found) => pool = found,
            // Somebody else was there with this id, or it was ours and is done: then the record absorbs it.
            None => stored = publish_surely(bus, &submission.subject(pool), &headers, body).await?,
        }
    }
    // So that its place can be told later. A worker that was quicker has recorded it, and has the record.
    if let Some(owned) = made {
        let published = Record { stream_sequence: Some(stored.sequence), ..owned.record.clone() };
        if let Err(fault) = bucket.replace(tenant, job, &owned, published).await {
            tracing::debug!(%fault, "job.record");
        }
    }
    Ok(Submitted {
        stream_sequence: Some(stored.sequence),
        pool: Some(pool),
        pending: pending.unwrap_or_default(),
        estimate,
    })
}

/// A request as it is published.
struct Message {
    headers: HeaderMap,
    body: Bytes,
}

impl Message {
    fn of(Submission { job, request, .. }: &Submission) -> Self {
        // The job's id is in the body too: the stream's memory of message ids is shared with all tenants.
        let named = RequestDocument { id: Some(job.to_string()), ..request.clone() };
        let body = Bytes::from(serde_json::to_vec(&named).unwrap_or_default());
        let mut headers = HeaderMap::new();
        super::telemetry::inject(&mut headers);
        Self { headers, body }
    }
}

/// What a refusal means to a client.
async fn refused(bus: &Bus, access: Access, tenant: &Tenant, error: PublishError) -> SubmitError {
    match error {
        PublishError::QuotaReached { subject } => {
            let counted = match access {
                Access::Platform => topology::quota_of(bus, &subject).await.ok(),
                Access::Tenant => None,
            };
            let (queued, limit) = counted.unzip();
            SubmitError::QuotaReached { tenant: tenant.clone(), subject, queued, limit: limit.flatten() }
        }
        PublishError::StreamFull { description, .. } => SubmitError::QueueFull { description },
        error @ (PublishError::NoStream { .. }
        | PublishError::WrongLastSequence { .. }
        | PublishError::Refused { .. }
        | PublishError::Unconfirmed { .. }) => SubmitError::Publish(error),
    }
}

/// What a job's record says before its request is published.
enum Recorded {
    /// It is to be published; with the record, where it is ours to change.
    ToPublish(Option<Box<Owned>>),
    /// It was published before.
    Published,
}

/// Makes the record of a job, or finds out what became of the job before.
async fn record_to_publish(
    bus: &Bus,
    bucket: &Records,
    Submission { tenant, job, .. }: &Submission,
    fresh: Record,
) -> Result<Recorded, SubmitError> {
    let digest = fresh.request_digest.clone();
    if let Changed::Won(owned) = bucket.create(tenant, job, fresh).await? {
        return Ok(Recorded::ToPublish(Some(Box::new(owned))));
    }
    let owned = match bucket.look(tenant, job).await? {
        Found::Record(owned) => *owned,
        Found::Gone => return Err(SubmitError::Gone { job: job.clone() }),
        Found::Absent { .. } => return Ok(Recorded::ToPublish(None)),
    };
    if owned.record.request_digest != digest {
        return Err(SubmitError::Conflict { job: job.clone() });
    }
    if owned.record.state != JobState::accepted() {
        return Ok(Recorded::Published);
    }
    // Somebody published it before us, unless nobody has seen it yet: then publishing again is the cure.
    let Some(sequence) = owned.record.stream_sequence else { return Ok(Recorded::ToPublish(Some(Box::new(owned)))) };
    if outlook::request(bus, sequence).await?.is_some() {
        return Ok(Recorded::Published);
    }
    // Its message is gone: another one would be taken for a duplicate as long as the record names the first.
    let nameless = Record { stream_sequence: None, ..owned.record.clone() };
    match bucket.replace(tenant, job, &owned, nameless).await? {
        Changed::Won(owned) => Ok(Recorded::ToPublish(Some(Box::new(owned)))),
        Changed::Lost | Changed::Cancelled(_) | Changed::Unrecorded => Ok(Recorded::Published),
    }
}

/// Publishes until the stream confirms it: the message id, and without one the job's record, makes repeating harmless.
async fn publish_surely(
    bus: &Bus,
    to: &str,
    headers: &HeaderMap,
    body: Bytes,
) -> Result<super::bus::PubAck, PublishError> {
    const TRIES_MAX: u32 = 4;
    let mut tries = 1;
    loop {
        match bus.publish(to, headers.clone(), body.clone()).await {
            Err(PublishError::Unconfirmed { .. } | PublishError::NoStream { .. }) if tries < TRIES_MAX => {
                tokio::time::sleep(Duration::from_millis(200) * tries).await;
                tries += 1;
            }
            outcome => return outcome,
        }
    }
}

/// One thing that a watcher sees.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// What happened.
    pub kind: EventKind,
    /// The whole event.
    pub event: CloudEvent<Value>,
}

/// Why watching ended without a terminal event.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The subscription could not be made, or ended.
    #[error("the connection to NATS was lost")]
    Closed,
    /// The job's record says nothing of it.
    #[error("there is no job {job} of tenant {tenant}")]
    Unknown {
        /// The id.
        job: JobId,
        /// Whose.
        tenant: Tenant,
    },
    /// It ended, and its record was removed.
    #[error("the job {job} of tenant {tenant} ended, and its record was removed after its retention")]
    Gone {
        /// The id.
        job: JobId,
        /// Whose.
        tenant: Tenant,
    },
    /// The record does not answer.
    #[error(transparent)]
    Bus(#[from] Fault),
}

/// Follows one job.
#[derive(Debug)]
pub struct Watch {
    bus: Bus,
    tenant: Tenant,
    job: JobId,
    events: Subscriber,
    progress: Subscriber,
    earlier: VecDeque<Seen>,
    last_kind: Option<EventKind>,
}

impl Watch {
    /// Subscribes first, so that nothing is missed between this call and a submission after it.
    ///
    /// # Errors
    /// [`WatchError`].
    pub async fn start(bus: &Bus, tenant: &Tenant, job: &JobId) -> Result<Self, WatchError> {
        let subscribe = |to: String| bus.client.subscribe(to);
        let events = subscribe(subject::events_of_job(tenant, job)).await.map_err(|_| WatchError::Closed)?;
        let progress = subscribe(subject::progress(tenant, job)).await.map_err(|_| WatchError::Closed)?;
        bus.client.flush().await.map_err(|_| WatchError::Closed)?;
        Ok(Self {
            bus: bus.clone(),
            tenant: tenant.clone(),
            job: job.clone(),
            events,
            progress,
            earlier: VecDeque::new(),
            last_kind: None,
        })
    }

    /// The job that is followed.
    pub fn job(&self) -> &JobId {
        &self.job
    }

    /// Reads what was published before, for a job that was submitted earlier.
    ///
    /// # Errors
    /// [`WatchError::Unknown`] when there is no such job, [`WatchError::Gone`] when there is none any more.
    pub async fn catch_up(&mut self) -> Result<(), WatchError> {
        let (job, tenant) = (self.job.clone(), self.tenant.clone());
        match records::look_at(&self.bus, &tenant, &job).await? {
            Found::Record(_) => {}
            Found::Gone => return Err(WatchError::Gone { job, tenant }),
            Found::Absent { .. } => return Err(WatchError::Unknown { job, tenant }),
        }
        self.read_earlier().await
    }

    /// The same for a job that is known to be there, though a copy of the bucket may not have heard of it yet.
    ///
    /// # Errors
    /// [`WatchError`].
    pub async fn read_earlier(&mut self) -> Result<(), WatchError> {
        for kind in [EventKind::Accepted, EventKind::Started] {
            if let Some(seen) = self.stored(kind).await? {
                self.earlier.push_back(seen);
            }
        }
        if let Some(seen) = self.stored_end().await? {
            self.earlier.push_back(seen);
        }
        Ok(())
    }

    /// Leaves out what a watcher has seen who saw the event with this id last: that one, and what of earlier times comes
    /// before it.
    pub fn skip_until(&mut self, event_id: &str) {
        let Some(last) = EventKind::from_id(event_id) else { return };
        // Kinds stand in the order in which they come.
        self.earlier.retain(|seen| seen.kind >= last && seen.event.id != event_id);
    }

    /// The next event; the terminal one is the last.
    ///
    /// # Errors
    /// [`WatchError`].
    pub async fn next(&mut self) -> Result<Seen, WatchError> {
        loop {
            let seen = match self.earlier.pop_front() {
                Some(seen) => seen,
                None => tokio::select! {
                    message = self.events.next() => match decode(message)? { Some(seen) => seen, None => continue },
                    message = self.progress.next() => match decode(message)? { Some(seen) => seen, None => continue },
                    () = tokio::time::sleep(LOOK_EVERY) => match self.stored_end().await? {
                        Some(seen) => seen,
                        None => continue,
                    },
                },
            };
            // `accepted` and `started` may be seen twice when catching up.
            let may_repeat = matches!(seen.kind, EventKind::Progress | EventKind::Checkpoint);
            if !may_repeat && self.last_kind == Some(seen.kind) {
                continue;
            }
            self.last_kind = Some(seen.kind);
            return Ok(seen);
        }
    }

    async fn stored_end(&self) -> Result<Option<Seen>, WatchError> {
        let Some(Owned { record, .. }) = records::read(&self.bus, &self.tenant, &self.job).await? else {
            return Ok(None);
        };
        match EventKind::of_terminal(record.state.status) {
            Some(kind) => {
                if let Some(seen) = self.stored(kind).await? {
                    return Ok(Some(seen));
                }
                // The event has been lost or is still on its way; the record holds its data.
                let data = record.terminal.unwrap_or_default();
                let attempts = record.state.attempts;
                let event = event::envelope(kind, self.tenant.as_str(), &self.job, attempts, 0, data);
                Ok(Some(Seen { kind, event: CloudEvent { time: record.updated, ..event } }))
            }
            None => Ok(None),
        }
    }

    async fn stored(&self, kind: EventKind) -> Result<Option<Seen>, WatchError> {
        let stream =
            self.bus.context.get_stream_no_info(subject::STREAM_EVENTS).await.map_err(|_| WatchError::Closed)?;
        let on = subject::event(self.tenant.as_str(), &self.job, kind.as_str());
        match stream.direct_get_last_for_subject(on).await {
            Ok(message) => Ok(event::decode(&message.payload).ok().map(|event| Seen { kind, event })),
            Err(_) => Ok(None),
        }
    }
}

fn decode(message: Option<async_nats::Message>) -> Result<Option<Seen>, WatchError> {
    let message = message.ok_or(WatchError::Closed)?;
    let Ok(event) = event::decode(&message.payload) else { return Ok(None) };
    Ok(EventKind::from_type(&event.r#type).map(|kind| Seen { kind, event }))
}

/// A job and its record.
#[derive(Clone, Debug)]
pub struct Listed {
    /// `<tenant>.<job>`.
    pub key: String,
    /// The record; `None` where it was removed after its retention.
    pub record: Option<Record>,
}

/// The newest records that are `wanted`, newest first: `tenant` and at most `limit`; also of jobs that are gone, if
/// `with_gone`.
///
/// # Errors
/// A `Retry` fault when nobody answers.
pub async fn list_jobs(
    bus: &Bus,
    tenant: Option<&Tenant>,
    with_gone: bool,
    limit: usize,
    wanted: impl Fn(&Record) -> bool,
) -> Result<Vec<Listed>, Fault> {
    let lost = |error: &(dyn std::error::Error + 'static)| {
        Fault::retry(FaultCode::BusFailed, format!("the jobs' records: {}", chain(error)))
    };
    let bucket = bus.context.get_key_value(subject::BUCKET_JOBS).await.map_err(|error| lost(&error))?;
    if bucket.status().await.map_err(|error| lost(&error))?.values() == 0 {
        return Ok(Vec::new());
    }
    let pattern = tenant.map_or_else(|| ">".to_owned(), |tenant| format!("{tenant}.*"));
    let mut entries = bucket.watch_with_history(&pattern).await.map_err(|error| lost(&error))?;
    let mut listed = VecDeque::new();
    // A tenant without records never gets an entry, so the wait is bounded. Oldest come first: a part would be the wrong one.
    let mut is_begun = false;
    loop {
        let entry = match tokio::time::timeout(Duration::from_secs(if is_begun { 10 } else { 2 }), entries.next()).await
        {
            Ok(Some(entry)) => entry.map_err(|error| lost(&error))?,
            Ok(None) | Err(_) if is_begun => {
                return Err(Fault::retry(FaultCode::BusFailed, "the jobs' records: not all of them came in time"));
            }
            Ok(None) | Err(_) => break,
        };
        is_begun = true;
        let record = crate::wire::record::decode(&entry.value).ok();
        // The client library takes the server's mark for a purge, which nobody else makes here.
        let is_gone = entry.value.is_empty() && entry.operation == Operation::Purge;
        if record.as_ref().is_some_and(&wanted) || (is_gone && with_gone) {
            listed.push_front(Listed { key: entry.key, record });
            listed.truncate(limit);
        }
        if entry.delta == 0 {
            break;
        }
    }
    Ok(listed.into())
}

/// Cancels a job: where the streams can be reached by itself, from a tenant's account by asking the gateway.
///
/// # Errors
/// A `Retry` fault when nobody answers.
pub async fn cancel(
    bus: &Bus,
    clock: &Clock,
    tenant: &Tenant,
    job: &JobId,
    keep_partial: bool,
) -> Result<CancelAnswer, Fault> {
    let unanswered = |why: String| Fault::retry(FaultCode::BusFailed, why);
    if bus.access().await.map_err(|error| unanswered(chain(&error)))? == Access::Platform {
        let keep = if keep_partial { Keep::Partial } else { Keep::Nothing };
        let outcome =
            Canceller::open(bus.clone(), *clock, Retention::default()).await?.cancel(tenant, job, keep).await?;
        return Ok(service::answer(job.to_string(), outcome));
    }
    let request = CancelRequest { job: job.to_string(), keep_partial };
    let body = serde_json::to_vec(&request).unwrap_or_default();
    let answer = bus.client.request(subject::api_cancel(tenant), body.into()).await;
    let answer = answer.map_err(|error| unanswered(format!("no gateway answers: {}", chain(&error))))?;
    let refused = answer.headers.as_ref().and_then(|headers| headers.get(header::SERVICE_ERROR));
    if let Some(refused) = refused {
        return Err(unanswered(refused.as_str().to_owned()));
    }
    serde_json::from_slice(&answer.payload).map_err(|error| unanswered(format!("the gateway's answer: {error}")))
}

/// The record of one job.
///
/// # Errors
/// A `Retry` fault when nobody answers.
pub async fn status(bus: &Bus, tenant: &Tenant, job: &JobId) -> Result<Option<Record>, Fault> {
    Ok(records::read(bus, tenant, job).await?.map(|owned| owned.record))
}
