//! Ending the jobs of requests that no worker will end: record, event, dead letter, and only then the removal.
//!
//! Each step can be repeated, so whoever is killed between two of them leaves it to the next. It does not decide which
//! requests those are.

use serde_json::{Map, Value, json};

use crate::job::{Fault, FaultCode, JobId, JobStep, Status, Tenant};
use crate::sched::reconcile::Relation;
use crate::wire::event::{ErrorDocument, EventKind, Failed};
use crate::wire::header;
use crate::wire::record::Record;
use crate::wire::request::{canonical_digest, id_in_body, webhook_in_body};
use crate::wire::subject;

use super::bus::{Bus, chain};
use super::clock::Clock;
use super::config::Retention;
use super::dead_letters;
use super::deadletter::DeadLetter;
use super::events::Events;
use super::records::{Changed, Found, Owned, Records};
use super::stored::{self, Stored};

/// "There is no such message", for a removal.
const NO_MESSAGE: u64 = 10057;
/// A dead letter that is as old as this may have been forgotten by its stream, which then would store it again.
const STREAM_FORGETS_MS: i64 = 500_000;

/// What ends jobs.
#[derive(Clone, Debug)]
pub struct Ending {
    /// The connection.
    pub bus: Bus,
    /// The clock.
    pub clock: Clock,
    /// Where records are.
    pub records: Records,
    /// Where events go.
    pub events: Events,
}

/// Whose request a message is.
#[derive(Clone, Debug)]
pub struct Owner {
    /// The tenant; `None` when the subject's token is no tenant.
    pub tenant: Option<Tenant>,
    /// The job.
    pub job: JobId,
}

impl Owner {
    /// Reads it from headers, body or sequence, in that order, as workers do.
    pub fn of(message: &Stored) -> Self {
        let (_, token) = subject::model_and_tenant_tokens(&message.subject);
        let tenant: Option<Tenant> = token.parse().ok();
        let id = message.header(header::MESSAGE_ID);
        let id = id.map(|id| tenant.as_ref().map_or(id, |tenant| header::job_in_message_id(tenant, id)));
        let job = id.and_then(|id| id.parse().ok()).or_else(|| id_in_body(&message.body));
        Self { tenant, job: job.unwrap_or_else(|| JobId::from_stream_sequence(message.sequence)) }
    }
}

/// How a request stands to what is under its job's key.
pub fn relation(message: &Stored, found: &Found) -> Relation {
    match found {
        Found::Absent { .. } => Relation::Unrecorded,
        Found::Gone => Relation::Gone,
        Found::Record(owned) => {
            let record = &owned.record;
            let is_same = record.request_digest == canonical_digest(&message.body);
            Relation::of(record.state.status, is_same, record.stream_sequence, message.sequence)
        }
    }
}

fn changed_meanwhile() -> Fault {
    Fault::retry(FaultCode::BusFailed, "the job's record changed meanwhile")
}

impl Ending {
    /// Opens the bucket and starts the task that publishes events.
    ///
    /// # Errors
    /// A `Retry` fault when the bucket of records cannot be opened.
    pub async fn open(bus: Bus, clock: Clock, retention: Retention) -> Result<Self, Fault> {
        let records = Records::open(&bus).await?.kept_for(retention);
        let events = Events::start(bus.clone(), clock).kept_for(retention);
        Ok(Self { bus, clock, records, events })
    }

    /// Ends a request: as its record says if the job has ended, else with `fault`.
    ///
    /// # Errors
    /// A `Retry` fault when nobody answers, or when somebody else was quicker: then everything can be done again.
    pub async fn end_request(&self, message: &Stored, fault: &Fault) -> Result<(), Fault> {
        let Owner { tenant, job } = Owner::of(message);
        let mut letter = DeadLetter {
            job: job.clone(),
            subject: message.subject.clone(),
            headers: Some(message.headers.clone()),
            body: message.body.clone(),
            stream_sequence: message.sequence,
            attempts: 0,
            code: fault.code.as_str().to_owned(),
            message: fault.message.clone(),
            worker: None,
        };
        let Some(tenant) = tenant else {
            // Without a tenant there is no key to keep a record under.
            let (_, token) = subject::model_and_tenant_tokens(&message.subject);
            self.events.publish(EventKind::Failed, token, &job, 0, failed(fault, 0, message)).await?;
            self.dead_letter(letter, message).await?;
            return self.remove(message.sequence).await;
        };
        let found = match self.records.look(&tenant, &job).await {
            // A record that this build cannot read belongs to somebody else.
            Err(fault) if fault.code == FaultCode::JobIdConflict => None,
            found => Some(found?),
        };
        let relation = found.as_ref().map_or(Relation::Foreign, |found| relation(message, found));
        let ended = match (relation, found.and_then(Found::into_record)) {
            (Relation::Gone | Relation::Duplicate, _) => return self.remove(message.sequence).await,
            (Relation::Foreign, _) => {
                self.dead_letter(letter, message).await?;
                return self.remove(message.sequence).await;
            }
            (Relation::Ended(_), Some(owned)) => owned,
            (Relation::Open(_), Some(owned)) => {
                letter.worker = owned.record.state.worker.as_ref().map(ToString::to_string);
                let data = failed(fault, owned.record.state.attempts, message);
                self.fail(&tenant, &job, &owned, data).await?
            }
            (Relation::Unrecorded | Relation::Ended(_) | Relation::Open(_), _) => {
                let (model, _) = subject::model_and_tenant_tokens(&message.subject);
                let now = self.clock.unix_ms();
                let fresh = Record::accepted(canonical_digest(&message.body), model, Some(message.sequence), now)
                    .telling(webhook_in_body(&message.body));
                let data = serde_json::to_value(failed(fault, 0, message)).ok();
                match self.records.refuse(&tenant, &job, fresh, data, now).await? {
                    Changed::Won(owned) => owned,
                    Changed::Lost | Changed::Cancelled(_) | Changed::Unrecorded => return Err(changed_meanwhile()),
                }
            }
        };
        self.announce(&tenant, &job, &ended.record).await?;
        if ended.record.state.status == Status::Failed {
            letter.attempts = ended.record.state.attempts;
            if let Some(error) = ended.record.terminal.as_ref().and_then(|data| data.get("error")) {
                let text = |field: &str| error[field].as_str().unwrap_or_default().to_owned();
                (letter.code, letter.message) = (text("code"), text("message"));
            }
            self.dead_letter(letter, message).await?;
        }
        self.remove(message.sequence).await
    }

    /// Fails a job whose request is not there, and says so.
    ///
    /// # Errors
    /// As [`Self::end_request`].
    pub async fn fail_job(&self, tenant: &Tenant, job: &JobId, owned: &Owned, fault: &Fault) -> Result<(), Fault> {
        let error = ErrorDocument::from(fault);
        let data = Failed { error, attempts: owned.record.state.attempts, metadata: None };
        let ended = self.fail(tenant, job, owned, data).await?;
        self.announce(tenant, job, &ended.record).await
    }

    async fn fail(&self, tenant: &Tenant, job: &JobId, owned: &Owned, data: Failed) -> Result<Owned, Fault> {
        let terminal = serde_json::to_value(data).ok();
        let now = self.clock.unix_ms();
        match self.records.step(tenant, job, owned, JobStep::Fail, terminal, now).await? {
            Changed::Won(owned) => Ok(owned),
            Changed::Lost | Changed::Cancelled(_) | Changed::Unrecorded => Err(changed_meanwhile()),
        }
    }

    /// Publishes the event that a terminal record stands for, unless it is there.
    ///
    /// # Errors
    /// A `Retry` fault when the stream does not confirm it.
    pub async fn announce(&self, tenant: &Tenant, job: &JobId, record: &Record) -> Result<(), Fault> {
        let Some(kind) = EventKind::of_terminal(record.state.status) else { return Ok(()) };
        let attempts = record.state.attempts;
        // Who cancels a job before it began has nothing more to say.
        let data = record.terminal.clone().unwrap_or_else(|| json!({ "attempts": attempts }));
        self.events.publish(kind, tenant.as_str(), job, attempts, data).await
    }

    /// The request of a job among those of its tenant that are in the stream.
    ///
    /// # Errors
    /// A `Retry` fault when the stream does not answer.
    pub async fn request_of(&self, tenant: &Tenant, job: &JobId) -> Result<Option<Stored>, Fault> {
        let filter = subject::requests_of(tenant);
        let mut next = 1;
        loop {
            let page = stored::page(&self.bus, subject::STREAM_REQUESTS, next, &filter, stored::PAGE_MAX).await?;
            let Some(last) = page.last() else { return Ok(None) };
            next = last.sequence + 1;
            if let Some(request) = page.into_iter().find(|request| Owner::of(request).job == *job) {
                return Ok(Some(request));
            }
        }
    }

    /// Removes a request from its stream; one that is gone already is no error.
    ///
    /// # Errors
    /// A `Retry` fault when the stream does not answer.
    pub async fn remove(&self, sequence: u64) -> Result<(), Fault> {
        let delete = format!("STREAM.MSG.DELETE.{}", subject::STREAM_REQUESTS);
        match self.bus.api(&delete, &json!({ "seq": sequence, "no_erase": true })).await {
            Err(error) if error.code() != Some(NO_MESSAGE) => Err(Fault::retry(FaultCode::BusFailed, chain(&error))),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Keeps a dead letter, unless whoever began to end the request has.
    async fn dead_letter(&self, letter: DeadLetter, message: &Stored) -> Result<(), Fault> {
        let is_recent = self.clock.unix_ms() - message.unix_ms < STREAM_FORGETS_MS;
        if !is_recent && dead_letters::has_request(&self.bus, message).await? {
            return Ok(());
        }
        letter.send(&self.bus).await
    }
}

fn failed(fault: &Fault, attempts: u32, message: &Stored) -> Failed {
    Failed { error: ErrorDocument::from(fault), attempts, metadata: metadata(message) }
}

/// What a request wants to be echoed.
pub fn metadata(message: &Stored) -> Option<Map<String, Value>> {
    let body: Option<Map<String, Value>> = serde_json::from_slice(&message.body).ok();
    body.and_then(|body| body.get("metadata").and_then(Value::as_object).cloned())
}
