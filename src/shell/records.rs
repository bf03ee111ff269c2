//! Records of jobs in the bucket `darkroom_jobs`: claim, and change by compare-and-set. The revision is the fence.
//!
//! Who decides by a record asks the bucket's leader. A copy may not have heard of a record that its job's client knows of, or
//! that whoever asks has written himself. Copies answer tenants, and others who only show what they are told.

use std::time::Duration;

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::Stream;
use async_nats::{HeaderMap, HeaderValue};
use bytes::Bytes;

use crate::job::{Fault, FaultCode, JobId, JobState, JobStep, Status, Tenant, Webhook, WorkerId};
use crate::sched::{Claim, RecordChange};
use crate::wire::record::{self, Record};
use crate::wire::time::rfc3339;
use crate::wire::{header, subject};

use super::bus::{Bus, PublishError, chain, look};
use super::config::Retention;
use super::stored;

/// How often a claim looks again when others change the record under it.
const RACES_MAX: usize = 16;
/// The leader may refuse a change because of one that it has taken but not yet made: it is asked again after this.
const BEHIND: Duration = Duration::from_millis(50);

/// The bucket.
#[derive(Clone, Debug)]
pub struct Records {
    bus: Bus,
    stream: Stream<()>,
    retention: Retention,
}

/// What stands under a job's key.
#[derive(Clone, Debug)]
pub enum Found {
    /// Its record.
    Record(Box<Owned>),
    /// The job ended, and its record was removed after its time.
    Gone,
    /// Nothing that counts.
    Absent {
        /// What a record must name that is made there: 0, or the revision of a deletion.
        revision: u64,
    },
}

/// A record with the revision that proves ownership.
#[derive(Clone, Debug)]
pub struct Owned {
    /// What it held when it was read or written.
    pub record: Record,
    /// The fence.
    pub revision: u64,
}

/// The answer to a claim, with the record unless there is none to look at.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// Whether the job is ours.
    pub claim: Claim,
    /// The record as it is now.
    pub owned: Option<Owned>,
}

/// What somebody else made of a record, which was `ours` and is now as `found`.
pub fn news(ours: &Owned, found: &Owned) -> Option<RecordChange> {
    let (was, is) = (&ours.record.state, &found.record.state);
    if found.revision <= ours.revision {
        return None;
    }
    match is.status {
        Status::Cancelled => Some(RecordChange::Cancelled),
        Status::Processing if (&is.worker, is.attempts) == (&was.worker, was.attempts) => {
            is.stopping.then_some(RecordChange::Stopping)
        }
        Status::Pending | Status::Processing | Status::Completed | Status::Failed => Some(RecordChange::Taken),
    }
}

/// What somebody wants to claim.
#[derive(Clone, Debug)]
pub struct ClaimRequest {
    /// Whose job.
    pub tenant: Tenant,
    /// Which.
    pub job: JobId,
    /// Digest of the request.
    pub digest: String,
    /// The model.
    pub model: String,
    /// The message.
    pub stream_sequence: u64,
    /// How often the server says that it delivered the message: 1 is the first time.
    pub delivered: i64,
    /// Who claims.
    pub worker: WorkerId,
    /// Whom the request wants told.
    pub webhook: Option<Webhook>,
}

/// How a change of a record ended.
#[derive(Clone, Debug)]
pub enum Changed {
    /// As wished.
    Won(Owned),
    /// The record has moved on: it is somebody else's.
    Lost,
    /// The job was cancelled meanwhile; this is its record.
    Cancelled(Owned),
    /// There is no key to keep a record under.
    Unrecorded,
}

/// A word of the key that the bucket refuses, or silence.
fn unanswered(error: &(dyn std::error::Error + 'static)) -> Fault {
    Fault::retry(FaultCode::BusFailed, format!("the job's record: {}", chain(error)))
}

/// Looks at a job as a tenant may: by its subject, without opening the bucket, and maybe a moment late.
///
/// # Errors
/// As [`Records::look`].
pub async fn look_at(bus: &Bus, tenant: &Tenant, job: &JobId) -> Result<Found, Fault> {
    let last = stored::last_on(&stream_of(bus).await?, &subject::record(tenant, job)).await;
    found(last.map_err(|error| unanswered(&error))?)
}

/// Looks at a job without opening the bucket.
///
/// # Errors
/// As [`Records::look`].
pub async fn look_at_leader(bus: &Bus, tenant: &Tenant, job: &JobId) -> Result<Found, Fault> {
    look_in(&stream_of(bus).await?, tenant, job).await
}

/// Reads a record as a tenant may: by its subject, without opening the bucket.
///
/// # Errors
/// As [`Records::read`].
pub async fn read(bus: &Bus, tenant: &Tenant, job: &JobId) -> Result<Option<Owned>, Fault> {
    Ok(look_at(bus, tenant, job).await?.into_record())
}

impl Found {
    /// The record, if there is one.
    pub fn into_record(self) -> Option<Owned> {
        match self {
            Self::Record(owned) => Some(*owned),
            Self::Gone | Self::Absent { .. } => None,
        }
    }

    /// Reads what a stream has under a job's key.
    ///
    /// # Errors
    /// A `Reject` fault when it is a record that this build cannot read.
    pub fn read(headers: &HeaderMap, body: &[u8], revision: u64) -> Result<Self, Fault> {
        if !body.is_empty() {
            let record =
                record::decode(body).map_err(|error| Fault::reject(FaultCode::JobIdConflict, chain(&error)))?;
            return Ok(Self::Record(Box::new(Owned { record, revision })));
        }
        // The server's own mark of a record that outlived its time; anybody else who removes one means to free the key.
        let reason = headers.get(header::MARKER_REASON).map(HeaderValue::as_str);
        Ok(if reason == Some(header::MARKER_MAX_AGE) { Self::Gone } else { Self::Absent { revision } })
    }
}

async fn stream_of(bus: &Bus) -> Result<Stream<()>, Fault> {
    let stream = bus.context.get_stream_no_info(subject::STREAM_JOBS).await;
    stream.map_err(|error| unanswered(&error))
}

async fn look_in(stream: &Stream<()>, tenant: &Tenant, job: &JobId) -> Result<Found, Fault> {
    let last = stored::last_at_leader(stream, &subject::record(tenant, job)).await;
    found(last.map_err(|error| unanswered(&error))?)
}

fn found(last: Option<StreamMessage>) -> Result<Found, Fault> {
    match last {
        Some(message) => Found::read(&message.headers, &message.payload, message.sequence),
        None => Ok(Found::Absent { revision: 0 }),
    }
}

impl Records {
    /// Opens the bucket. What is written there of jobs that ended is kept for the usual time.
    ///
    /// # Errors
    /// A `Retry` fault when it does not exist or nobody answers.
    pub async fn open(bus: &Bus) -> Result<Self, Fault> {
        let bucket = look(|| bus.context.get_key_value(subject::BUCKET_JOBS));
        bucket.await.map_err(|error| unanswered(&*error))?;
        Ok(Self { bus: bus.clone(), stream: stream_of(bus).await?, retention: Retention::default() })
    }

    /// The same, with jobs that are kept so long after their end.
    pub fn kept_for(self, retention: Retention) -> Self {
        Self { retention, ..self }
    }

    /// Looks at what stands under a job's key.
    ///
    /// # Errors
    /// A `Retry` fault when nobody answers; `Reject` when the record cannot be read.
    pub async fn look(&self, tenant: &Tenant, job: &JobId) -> Result<Found, Fault> {
        look_in(&self.stream, tenant, job).await
    }

    /// Reads a record.
    ///
    /// # Errors
    /// As [`Self::look`].
    pub async fn read(&self, tenant: &Tenant, job: &JobId) -> Result<Option<Owned>, Fault> {
        Ok(self.look(tenant, job).await?.into_record())
    }

    /// Makes a record if there is none and none was removed after its time.
    ///
    /// # Errors
    /// A `Retry` fault when nobody answers.
    pub async fn create(&self, tenant: &Tenant, job: &JobId, record: Record) -> Result<Changed, Fault> {
        match self.put(tenant, job, 0, &record).await? {
            Some(revision) => Ok(Changed::Won(Owned { record, revision })),
            None => match self.look(tenant, job).await? {
                Found::Absent { revision } => {
                    let revision = self.put(tenant, job, revision, &record).await?;
                    Ok(revision.map_or(Changed::Lost, |revision| Changed::Won(Owned { record, revision })))
                }
                Found::Record(_) | Found::Gone => Ok(Changed::Lost),
            },
        }
    }

    /// Replaces a record if it still has the revision of `owned`.
    ///
    /// # Errors
    /// A `Retry` fault when nobody answers.
    pub async fn replace(&self, tenant: &Tenant, job: &JobId, owned: &Owned, record: Record) -> Result<Changed, Fault> {
        match self.put(tenant, job, owned.revision, &record).await? {
            Some(revision) => Ok(Changed::Won(Owned { record, revision })),
            // A lost answer to our own write looks like somebody else's: the content tells, whenever it was tried first.
            None => match self.read(tenant, job).await? {
                Some(found) if (Record { updated: record.updated.clone(), ..found.record.clone() }) == record => {
                    Ok(Changed::Won(found))
                }
                Some(_) | None => Ok(Changed::Lost),
            },
        }
    }

    /// Takes a record away whose request was not published, so that its id can be used again for as long as a failed job
    /// would be kept.
    ///
    /// # Errors
    /// A `Retry` fault when nobody answers.
    pub async fn withdraw(&self, tenant: &Tenant, job: &JobId, owned: &Owned) -> Result<(), Fault> {
        let mut headers = expecting(owned.revision);
        headers.insert(header::KEY_OPERATION, header::KEY_DELETED);
        headers.insert(header::TIME_TO_LIVE, header::time_to_live(self.retention.failed));
        match self.bus.publish(&subject::record(tenant, job), headers, Bytes::new()).await {
            Ok(_) | Err(PublishError::WrongLastSequence { .. }) => Ok(()),
            Err(error) => Err(unanswered(&error)),
        }
    }

    /// Writes a record where `revision` is the last one, with its time to live if it is terminal; `None` if another is.
    ///
    /// The client library can give no time to a value that replaces another.
    async fn put(&self, tenant: &Tenant, job: &JobId, revision: u64, record: &Record) -> Result<Option<u64>, Fault> {
        let mut headers = expecting(revision);
        if let Some(kept) = self.retention.of(record.state.status) {
            headers.insert(header::TIME_TO_LIVE, header::time_to_live(kept));
        }
        let value = Bytes::from(record::encode(record));
        match self.bus.publish(&subject::record(tenant, job), headers, value).await {
            Ok(stored) => Ok(Some(stored.sequence)),
            Err(PublishError::WrongLastSequence { .. }) => Ok(None),
            Err(error) => Err(unanswered(&error)),
        }
    }

    /// Takes a step in the job's state machine, under the fence.
    ///
    /// # Errors
    /// A `Retry` fault when nobody answers.
    pub async fn step(
        &self,
        tenant: &Tenant,
        job: &JobId,
        owned: &Owned,
        step: JobStep,
        terminal: Option<serde_json::Value>,
        unix_ms: i64,
    ) -> Result<Changed, Fault> {
        // A failure may be the checkpoint's fault, and who has ended needs none.
        let keeps_checkpoint = step == JobStep::GiveBack;
        self.amend(tenant, job, owned, unix_ms, |record| {
            let state = record.state.next(step.clone()).ok()?;
            let checkpoint = record.checkpoint.clone().filter(|_| keeps_checkpoint);
            Some(Record { state, checkpoint, terminal: terminal.clone(), ..record.clone() })
        })
        .await
    }

    /// Changes a record that is owned. What others may write into it meanwhile, such as the wish that it stops, does not end
    /// the ownership: the change is made of what the record holds then.
    ///
    /// # Errors
    /// A `Retry` fault when nobody answers.
    pub async fn amend(
        &self,
        tenant: &Tenant,
        job: &JobId,
        owned: &Owned,
        unix_ms: i64,
        change: impl Fn(&Record) -> Option<Record>,
    ) -> Result<Changed, Fault> {
        let mut newest = owned.clone();
        for _ in 0..RACES_MAX {
            let Some(record) = change(&newest.record) else { return Ok(Changed::Lost) };
            let record = Record { updated: rfc3339(unix_ms), ..record };
            match self.replace(tenant, job, &newest, record).await? {
                Changed::Lost => {}
                changed @ (Changed::Won(_) | Changed::Cancelled(_) | Changed::Unrecorded) => return Ok(changed),
            }
            let Some(found) = self.read(tenant, job).await? else { return Ok(Changed::Lost) };
            match news(owned, &found) {
                Some(RecordChange::Cancelled) => return Ok(Changed::Cancelled(found)),
                Some(RecordChange::Taken) => return Ok(Changed::Lost),
                Some(RecordChange::Stopping) | None if found.revision <= newest.revision => {
                    tokio::time::sleep(BEHIND).await;
                }
                Some(RecordChange::Stopping) | None => newest = found,
            }
        }
        Err(Fault::retry(FaultCode::BusFailed, "the job's record changes faster than it can be written"))
    }

    /// Makes the failed record of a request that cannot be read, unless its id is another request's.
    ///
    /// # Errors
    /// A `Retry` fault when nobody answers.
    pub async fn refuse(
        &self,
        tenant: &Tenant,
        job: &JobId,
        fresh: Record,
        terminal: Option<serde_json::Value>,
        unix_ms: i64,
    ) -> Result<Changed, Fault> {
        for _ in 0..RACES_MAX {
            let found = self.look(tenant, job).await?;
            if let Found::Gone = found {
                return Ok(Changed::Lost);
            }
            let Some(owned) = found.into_record() else {
                let state = fresh.state.next(JobStep::Fail).unwrap_or_else(|_| fresh.state.clone());
                let record = Record { state, terminal: terminal.clone(), ..fresh.clone() };
                match self.create(tenant, job, record).await? {
                    Changed::Lost => continue,
                    changed @ (Changed::Won(_) | Changed::Cancelled(_) | Changed::Unrecorded) => return Ok(changed),
                }
            };
            let same_message = owned.record.stream_sequence.is_none_or(|found| Some(found) == fresh.stream_sequence);
            if owned.record.request_digest != fresh.request_digest || !same_message {
                return Ok(Changed::Lost);
            }
            if owned.record.state.status == Status::Failed {
                return Ok(Changed::Won(owned));
            }
            return self.step(tenant, job, &owned, JobStep::Fail, terminal, unix_ms).await;
        }
        Ok(Changed::Lost)
    }

    /// Takes the job if it is to be had.
    ///
    /// # Errors
    /// A `Retry` fault when nobody answers, `Reject` when the record is unreadable.
    pub async fn claim(&self, request: &ClaimRequest, unix_ms: i64) -> Result<Claimed, Fault> {
        let ClaimRequest { tenant, job, digest, model, stream_sequence, delivered, worker, webhook } = request;
        let fresh =
            || Record::accepted(digest.clone(), model, Some(*stream_sequence), unix_ms).telling(webhook.clone());
        let claimed = |owned: &Owned| Claimed {
            claim: Claim::Won {
                failures: owned.record.state.failures,
                deaths: owned.record.state.deaths,
                stopping: owned.record.state.stopping,
            },
            owned: Some(owned.clone()),
        };
        for _ in 0..RACES_MAX {
            // The usual case first: nobody has heard of this job.
            if *delivered <= 1 {
                let fresh = fresh();
                let step = JobStep::Claim { worker: worker.clone() };
                let state = fresh.state.next(step).unwrap_or_else(|_| JobState::accepted());
                if let Changed::Won(owned) = self.create(tenant, job, Record { state, ..fresh }).await? {
                    return Ok(claimed(&owned));
                }
            }
            let found = self.look(tenant, job).await?;
            if let Found::Gone = found {
                // It ended long ago: a late duplicate must not make it again.
                tracing::warn!(%tenant, %job, stream_sequence, "job.gone");
                return Ok(Claimed { claim: Claim::Duplicate, owned: None });
            }
            let Some(owned) = found.into_record() else {
                self.create(tenant, job, fresh()).await?;
                continue;
            };
            let Record { state, request_digest, stream_sequence: of_record, .. } = &owned.record;
            let another_message = of_record.is_some_and(|sequence| sequence != *stream_sequence);
            let another_holder = state.worker.as_ref().is_some_and(|holder| holder != worker);
            let claim = if request_digest != digest {
                Claim::Conflict
            } else if state.status.is_terminal() {
                Claim::Ended { dead_letter: state.status == Status::Failed && !another_message }
            } else if another_message {
                Claim::Duplicate
            } else if state.status == Status::Processing && another_holder && *delivered <= 1 {
                // The server lost count: the holder may be well.
                Claim::HeldElsewhere
            } else {
                let step = JobStep::Claim { worker: worker.clone() };
                let state = state.next(step).unwrap_or_else(|_| state.clone());
                let record = Record {
                    state,
                    stream_sequence: Some(*stream_sequence),
                    updated: rfc3339(unix_ms),
                    ..owned.record.clone()
                };
                match self.replace(tenant, job, &owned, record).await? {
                    Changed::Won(owned) => return Ok(claimed(&owned)),
                    Changed::Lost | Changed::Cancelled(_) | Changed::Unrecorded => continue,
                }
            };
            return Ok(Claimed { claim, owned: Some(owned) });
        }
        Err(Fault::retry(FaultCode::BusFailed, "the job's record changes faster than it can be claimed"))
    }
}

fn expecting(revision: u64) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::EXPECTED_LAST_SUBJECT_SEQUENCE, revision.to_string());
    headers
}
