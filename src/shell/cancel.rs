//! Cancelling a job: whoever changes its record first has decided, so a job that completes at the same moment either
//! completes or is cancelled.
//!
//! What a worker does with a job that it loses this way is its own business: it is told by a hint, and looks at the record
//! now and then for hints that were lost.

use bytes::Bytes;

use crate::job::{Fault, FaultCode, JobId, JobStep, Status, Tenant};
use crate::wire::event::Cancelled;
use crate::wire::record::Record;
use crate::wire::request::{canonical_digest, webhook_in_body};
use crate::wire::subject;

use super::bus::Bus;
use super::clock::Clock;
use super::config::Retention;
use super::ending::{Ending, metadata};
use super::outlook;
use super::records::{Changed, Found};
use super::stored::Stored;

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
    /// It had ended before, and its record was removed after its retention.
    Gone,
    /// There is no such job.
    Unknown,
}

/// Who cancels.
#[derive(Clone, Debug)]
pub struct Canceller {
    ending: Ending,
}

impl Canceller {
    /// Opens the bucket of records.
    ///
    /// # Errors
    /// A `Retry` fault when it does not exist or nobody answers.
    pub async fn open(bus: Bus, clock: Clock, retention: Retention) -> Result<Self, Fault> {
        Ok(Self { ending: Ending::open(bus, clock, retention).await? })
    }

    /// Cancels a job. Doing it again changes nothing, and completes what was interrupted.
    ///
    /// # Errors
    /// A `Retry` fault when nobody answers; what had been done by then stays.
    pub async fn cancel(&self, tenant: &Tenant, job: &JobId, keep: Keep) -> Result<Outcome, Fault> {
        let Ending { bus, clock, records, .. } = &self.ending;
        for _ in 0..RACES_MAX {
            let now = clock.unix_ms();
            let owned = match records.look(tenant, job).await? {
                Found::Record(owned) => *owned,
                Found::Gone => return Ok(Outcome::Gone),
                // Nobody has seen the request yet, but it may wait.
                Found::Absent { .. } => match self.ending.request_of(tenant, job).await? {
                    // Or it was taken and done between these two looks.
                    None => match records.look(tenant, job).await? {
                        Found::Absent { .. } => return Ok(Outcome::Unknown),
                        Found::Record(_) | Found::Gone => continue,
                    },
                    Some(request) => match records.create(tenant, job, record_of(&request, now)).await? {
                        Changed::Won(owned) => owned,
                        Changed::Lost | Changed::Cancelled(_) | Changed::Unrecorded => continue,
                    },
                },
            };
            let state = &owned.record.state;
            let step = match (state.status, keep) {
                (Status::Cancelled, _) => {
                    // Who did it may have been lost before he told of it.
                    self.ending.announce(tenant, job, &owned.record).await?;
                    return Ok(Outcome::Ended(Status::Cancelled));
                }
                (status @ (Status::Completed | Status::Failed), _) => return Ok(Outcome::Ended(status)),
                (Status::Processing, Keep::Partial) if state.stopping => return Ok(Outcome::Stopping),
                (Status::Processing, Keep::Partial) => JobStep::Stop,
                (Status::Pending, Keep::Partial) | (Status::Pending | Status::Processing, Keep::Nothing) => {
                    JobStep::Cancel
                }
            };
            let was_pending = state.status == Status::Pending;
            let request = match owned.record.stream_sequence {
                Some(sequence) => outlook::request(bus, sequence).await?.map(Stored::from),
                None => self.ending.request_of(tenant, job).await?,
            };
            let stops = step == JobStep::Stop;
            let data = Cancelled {
                images: Vec::new(),
                attempts: state.attempts,
                metadata: request.as_ref().and_then(metadata),
            };
            let terminal = if stops { None } else { serde_json::to_value(data).ok() };
            let owned = match records.step(tenant, job, &owned, step, terminal, now).await? {
                Changed::Won(owned) => owned,
                Changed::Lost | Changed::Cancelled(_) | Changed::Unrecorded => continue,
            };
            self.tell_worker(job).await;
            if stops {
                return Ok(Outcome::Stopping);
            }
            self.ending.announce(tenant, job, &owned.record).await?;
            if let Some(request) = request.filter(|_| was_pending) {
                // No worker shall be woken for it. If one has it already, its acknowledgement finds nothing, which is as good.
                self.ending.remove(request.sequence).await?;
            }
            return Ok(Outcome::Cancelled);
        }
        Err(Fault::retry(FaultCode::BusFailed, "the job's record changes faster than it can be cancelled"))
    }

    /// A hint may be lost: the record is the authority.
    async fn tell_worker(&self, job: &JobId) {
        let client = &self.ending.bus.client;
        let told = async {
            client.publish(subject::cancel_hint(job), Bytes::new()).await.map_err(|error| error.to_string())?;
            client.flush().await.map_err(|error| error.to_string())
        };
        if let Err(error) = told.await {
            tracing::warn!(%error, "cancel.hint");
        }
    }
}

fn record_of(request: &Stored, unix_ms: i64) -> Record {
    let (model, _) = subject::model_and_tenant_tokens(&request.subject);
    Record::accepted(canonical_digest(&request.body), model, Some(request.sequence), unix_ms)
        .telling(webhook_in_body(&request.body))
}
