//! Cancelling a job: whoever changes its record first has decided, so a job that completes at the same moment either
//! completes or is cancelled.
//!
//! What a worker does with a job that it loses this way is its own business: it is told by a hint, and looks at the record
//! now and then for hints that were lost.

use async_nats::HeaderMap;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::DirectGetErrorKind;
use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::job::{Fault, FaultCode, JobId, JobStep, Status, Tenant};
use crate::wire::event::{Cancelled, EventKind};
use crate::wire::record::Record;
use crate::wire::request::{canonical_digest, id_in_body};
use crate::wire::{header, subject};

use super::bus::{Bus, chain};
use super::clock::Clock;
use super::events::Events;
use super::records::{Changed, Owned, Records};

/// How often it is tried again when the record changes under it.
const RACES_MAX: usize = 16;

/// What becomes of the images of a running job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing is stored.
    Nothing,
    /// The worker stores them as far as they are.
    Partial,
}

/// What became of the wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The job is cancelled.
    Cancelled,
    /// Its worker stores what is there, and cancels it then.
    Stopping,
    /// It had ended before.
    Ended(Status),
    /// There is no such job.
    Unknown,
}

/// Who cancels.
#[derive(Clone, Debug)]
pub struct Canceller {
    bus: Bus,
    clock: Clock,
    records: Records,
    events: Events,
}

impl Canceller {
    /// Opens the bucket of records.
    ///
    /// # Errors
    /// A `Retry` fault when it does not exist or nobody answers.
    pub async fn open(bus: Bus, clock: Clock) -> Result<Self, Fault> {
        let records = Records::open(&bus).await?;
        Ok(Self { events: Events::start(bus.clone(), clock), bus, clock, records })
    }

    /// Cancels a job. Doing it again changes nothing, and completes what was interrupted.
    ///
    /// # Errors
    /// A `Retry` fault when nobody answers; what had been done by then stays.
    pub async fn cancel(&self, tenant: &Tenant, job: &JobId, keep: Keep) -> Result<Outcome, Fault> {
        let Self { bus, clock, records, events } = self;
        for _ in 0..RACES_MAX {
            let now = clock.unix_ms();
            let owned = match records.read(tenant, job).await? {
                Some(owned) => owned,
                // Nobody has seen the request yet, but it may wait.
                None => match request_of(bus, tenant, job).await? {
                    None => return Ok(Outcome::Unknown),
                    Some(message) => match records.create(tenant, job, record_of(&message, now)).await? {
                        Changed::Won(owned) => owned,
                        Changed::Lost | Changed::Cancelled(_) | Changed::Unrecorded => continue,
                    },
                },
            };
            let state = &owned.record.state;
            let step = match (state.status, keep) {
                (Status::Cancelled, _) => {
                    // Who did it may have been lost before he told of it.
                    announce(events, tenant, job, &owned).await?;
                    return Ok(Outcome::Ended(Status::Cancelled));
                }
                (status @ (Status::Completed | Status::Failed), _) => return Ok(Outcome::Ended(status)),
                (Status::Processing, Keep::Partial) if state.stopping => return Ok(Outcome::Stopping),
                (Status::Processing, Keep::Partial) => JobStep::Stop,
                (Status::Processing | Status::Pending, Keep::Nothing) | (Status::Pending, Keep::Partial) => {
                    JobStep::Cancel
                }
            };
            let was_pending = state.status == Status::Pending;
            let message = message_of(bus, tenant, job, &owned.record).await?;
            let terminal = (step == JobStep::Cancel).then(|| Cancelled {
                images: Vec::new(),
                attempts: state.attempts,
                metadata: message.as_ref().and_then(metadata),
            });
            let terminal = terminal.and_then(|data| serde_json::to_value(data).ok());
            let stops = step == JobStep::Stop;
            let owned = match records.step(tenant, job, &owned, step, terminal, now).await? {
                Changed::Won(owned) => owned,
                Changed::Lost | Changed::Cancelled(_) | Changed::Unrecorded => continue,
            };
            tell_worker(bus, job).await;
            if stops {
                return Ok(Outcome::Stopping);
            }
            announce(events, tenant, job, &owned).await?;
            if let Some(message) = message.filter(|_| was_pending) {
                // No worker shall be woken for it. If one has it already, its acknowledgement finds nothing, which is as good.
                remove(bus, message.sequence).await?;
            }
            return Ok(Outcome::Cancelled);
        }
        Err(Fault::retry(FaultCode::BusFailed, "the job's record changes faster than it can be cancelled"))
    }
}

async fn announce(events: &Events, tenant: &Tenant, job: &JobId, owned: &Owned) -> Result<(), Fault> {
    let Record { state, terminal, .. } = &owned.record;
    events.publish(EventKind::Cancelled, tenant.as_str(), job, state.attempts, terminal.clone()).await
}

/// A hint may be lost: the record is the authority.
async fn tell_worker(bus: &Bus, job: &JobId) {
    let told = async {
        bus.client.publish(subject::cancel_hint(job), Bytes::new()).await.map_err(|error| error.to_string())?;
        bus.client.flush().await.map_err(|error| error.to_string())
    };
    if let Err(error) = told.await {
        tracing::warn!(%error, "cancel.hint");
    }
}

async fn remove(bus: &Bus, sequence: u64) -> Result<(), Fault> {
    let delete = format!("STREAM.MSG.DELETE.{}", subject::STREAM_REQUESTS);
    match bus.api(&delete, &json!({ "seq": sequence, "no_erase": true })).await {
        // A worker was quicker.
        Err(error) if error.code() == Some(NO_SUCH_MESSAGE) => Ok(()),
        Err(error) => Err(Fault::retry(FaultCode::BusFailed, chain(&error))),
        Ok(_) => Ok(()),
    }
}

/// NATS' `err_code` for a sequence that is not there.
const NO_SUCH_MESSAGE: u64 = 10043;

fn record_of(message: &StreamMessage, unix_ms: i64) -> Record {
    let (model, _) = subject::model_and_tenant_tokens(message.subject.as_str());
    Record::accepted(canonical_digest(&message.payload), model, Some(message.sequence), unix_ms)
}

fn metadata(message: &StreamMessage) -> Option<Map<String, Value>> {
    let body: Value = serde_json::from_slice(&message.payload).ok()?;
    body.get("metadata")?.as_object().cloned()
}

/// The request that a record is of, while it is in the stream.
async fn message_of(bus: &Bus, tenant: &Tenant, job: &JobId, record: &Record) -> Result<Option<StreamMessage>, Fault> {
    match record.stream_sequence {
        None => request_of(bus, tenant, job).await,
        Some(sequence) => {
            let stream =
                bus.context.get_stream_no_info(subject::STREAM_REQUESTS).await.map_err(|error| lost(&error))?;
            match stream.direct_get(sequence).await {
                Ok(message) => Ok(Some(message)),
                Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
                Err(error) => Err(lost(&error)),
            }
        }
    }
}

/// The waiting request with this id, looked for among all of its tenant: only whoever published it by hand made no record.
async fn request_of(bus: &Bus, tenant: &Tenant, job: &JobId) -> Result<Option<StreamMessage>, Fault> {
    let stream = bus.context.get_stream_no_info(subject::STREAM_REQUESTS).await.map_err(|error| lost(&error))?;
    let mut next = 1;
    loop {
        match stream.direct_get_next_for_subject(subject::requests_of(tenant), Some(next)).await {
            Ok(message) if job_of(tenant, &message).as_ref() == Some(job) => return Ok(Some(message)),
            Ok(message) => next = message.sequence + 1,
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(lost(&error)),
        }
    }
}

fn job_of(tenant: &Tenant, message: &StreamMessage) -> Option<JobId> {
    named(tenant, &message.headers)
        .or_else(|| id_in_body(&message.payload))
        .or_else(|| Some(JobId::from_stream_sequence(message.sequence)))
}

fn named(tenant: &Tenant, headers: &HeaderMap) -> Option<JobId> {
    let id = headers.get(header::MESSAGE_ID)?;
    header::job_in_message_id(tenant, id.as_str()).parse().ok()
}

fn lost(error: &(dyn std::error::Error + 'static)) -> Fault {
    Fault::retry(FaultCode::BusFailed, format!("the requests: {}", chain(error)))
}
