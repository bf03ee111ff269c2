//! Dead letters, and the sweep that fails what no consumer serves.
//!
//! A request for an unknown model, priority or pool, or on a subject with tokens missing or left over, lies in the
//! stream where no worker looks. The sweep finds it, announces `failed` with code `unserved`, and removes it.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::message::StreamMessage;
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::job::{Fault, FaultCode, JobId};
use crate::wire::event::{ErrorDocument, EventKind, Failed};
use crate::wire::header;
use crate::wire::record::Record;
use crate::wire::request::{canonical_digest, id_in_body};
use crate::wire::subject::{self, RequestSubject};

use super::bus::{ApiError, Bus, chain};
use super::clock::Clock;
use super::events::Events;
use super::records::Records;
use super::topology;

/// How often the stream is looked through when nothing hints at an unserved request.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// A request this young may have been published before the consumers of its model were made.
const PATIENCE_MS: i64 = 1_000;

/// A request that will not be tried again, with the reason.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// Where it was published to.
    pub subject: String,
    /// Its headers.
    pub headers: Option<HeaderMap>,
    /// Its body.
    pub body: Bytes,
    /// Its sequence in the request stream.
    pub stream_sequence: u64,
    /// Claims of its job.
    pub attempts: u32,
    /// Why, as a fault code.
    pub code: String,
    /// Why, as a sentence.
    pub message: String,
    /// Who gave up.
    pub worker: Option<String>,
}

impl DeadLetter {
    /// Stores it; sending the same again stores nothing.
    ///
    /// # Errors
    /// A `Retry` fault when the stream does not confirm it.
    pub async fn send(self, bus: &Bus) -> Result<(), Fault> {
        let (model, tenant) = subject::model_and_tenant_tokens(&self.subject);
        let target = subject::dead_letter(model, tenant);
        let mut headers = HeaderMap::new();
        for (name, values) in self.headers.iter().flat_map(HeaderMap::iter) {
            if header::is_kept_on_dead_letter(name.as_ref()) {
                for value in values {
                    headers.append(name.clone(), value.clone());
                }
            }
        }
        headers.insert(header::MESSAGE_ID, header::dead_letter_id(self.stream_sequence));
        headers.insert(header::DEAD_LETTER_CODE, self.code);
        headers.insert(header::DEAD_LETTER_MESSAGE, self.message.replace(['\r', '\n'], " "));
        headers.insert(header::DEAD_LETTER_SUBJECT, self.subject.clone());
        headers.insert(header::DEAD_LETTER_SEQUENCE, self.stream_sequence.to_string());
        headers.insert(header::DEAD_LETTER_ATTEMPTS, self.attempts.to_string());
        if let Some(worker) = self.worker {
            headers.insert(header::DEAD_LETTER_WORKER, worker);
        }
        bus.publish(&target, headers, self.body).await?;
        Ok(())
    }
}

/// Sweeps until `stop`: at once when a request arrives on an unserved subject, and now and then in any case.
///
/// # Errors
/// A `Retry` fault when the bucket of records cannot be opened.
pub async fn run(bus: Bus, stop: CancellationToken) -> Result<(), Fault> {
    let clock = Clock::start();
    let records = Records::open(&bus).await?;
    let events = Events::start(bus.clone(), clock);
    let lost = |error: &(dyn std::error::Error + 'static)| Fault::retry(FaultCode::BusFailed, chain(error));
    // A hint only: the stream itself is the authority.
    let mut hints = bus.client.subscribe(subject::ALL_REQUESTS).await.map_err(|error| lost(&error))?;
    let sweeper = Sweeper { bus, clock, records, events };
    let mut served = Vec::new();
    let mut wait = Duration::ZERO;
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            hint = hints.next() => {
                let Some(hint) = hint else { return Ok(()) };
                if is_served(&served, hint.subject.as_str()) || wait <= Duration::from_millis(1_100) {
                    continue;
                }
                wait = Duration::from_millis(1_100);
            }
            () = tokio::time::sleep(wait) => {
                match sweeper.sweep().await {
                    Ok(filters) => served = filters,
                    Err(fault) => tracing::warn!(%fault, "deadletter.sweep"),
                }
                wait = SWEEP_EVERY;
            }
        }
    }
}

fn is_served(filters: &[String], subject: &str) -> bool {
    RequestSubject::parse(subject).is_some_and(|parsed| {
        filters.contains(&subject::request_filter(&parsed.model, parsed.priority, parsed.pool))
    })
        // A tenant token that is not an id still belongs to the consumer: it refuses such requests with all others.
        || subject.rsplit_once('.').is_some_and(|(front, _)| filters.contains(&format!("{front}.*")))
}

struct Sweeper {
    bus: Bus,
    clock: Clock,
    records: Records,
    events: Events,
}

impl Sweeper {
    /// Fails every request that no consumer filters, and returns the filters.
    async fn sweep(&self) -> Result<Vec<String>, Fault> {
        let lost = |error: ApiError| Fault::retry(FaultCode::BusFailed, chain(&error));
        let served = topology::served(&self.bus).await.map_err(lost)?;
        let filters: Vec<String> = served.into_iter().map(|consumer| consumer.filter).collect();
        let info = format!("STREAM.INFO.{}", subject::STREAM_REQUESTS);
        let request = json!({ "subjects_filter": subject::ALL_REQUESTS });
        let info = self.bus.api(&info, &request).await.map_err(lost)?;
        let subjects: Vec<String> = info["state"]["subjects"]
            .as_object()
            .map(|subjects| subjects.keys().cloned().collect())
            .unwrap_or_default();
        for subject in subjects.iter().filter(|subject| !is_served(&filters, subject)) {
            self.fail_all_on(subject, &filters).await?;
        }
        Ok(filters)
    }

    async fn fail_all_on(&self, on: &str, filters: &[String]) -> Result<(), Fault> {
        let lost = |error: &(dyn std::error::Error + 'static)| Fault::retry(FaultCode::BusFailed, chain(error));
        let stream =
            self.bus.context.get_stream_no_info(subject::STREAM_REQUESTS).await.map_err(|error| lost(&error))?;
        loop {
            let message: StreamMessage = match stream.get_last_raw_message_by_subject(on).await {
                Ok(message) => message,
                Err(error) if chain(&error).contains("no message found") => return Ok(()),
                Err(error) => return Err(lost(&error)),
            };
            let age_ms =
                self.clock.unix_ms() - i64::try_from(message.time.unix_timestamp_nanos() / 1_000_000).unwrap_or(0);
            if age_ms < PATIENCE_MS {
                return Ok(());
            }
            self.fail(on, &message, filters).await?;
            let delete = format!("STREAM.MSG.DELETE.{}", subject::STREAM_REQUESTS);
            let request = json!({ "seq": message.sequence, "no_erase": true });
            self.bus.api(&delete, &request).await.map_err(|error| lost(&error))?;
        }
    }

    async fn fail(&self, on: &str, message: &StreamMessage, filters: &[String]) -> Result<(), Fault> {
        let mut models: Vec<&str> = filters.iter().filter_map(|filter| filter.split('.').nth(2)).collect();
        models.dedup();
        let known = if models.is_empty() { "none yet".to_owned() } else { models.join(", ") };
        let fault = Fault::reject(
            FaultCode::Unserved,
            format!("nothing serves {on}; a request goes to {}, models here: {known}", subject::REQUEST_FORM),
        );
        tracing::warn!(%fault, sequence = message.sequence, "deadletter.unserved");
        let (model, tenant) = subject::model_and_tenant_tokens(on);
        let id = message.headers.get(header::MESSAGE_ID).map(|id| id.as_str());
        let id = id.map(|id| tenant.parse().map_or(id, |tenant| header::job_in_message_id(&tenant, id)));
        let id = id.and_then(|id| id.parse::<JobId>().ok());
        let id = id.or_else(|| id_in_body(&message.payload));
        let job = id.unwrap_or_else(|| JobId::from_stream_sequence(message.sequence));
        let data = Failed { error: ErrorDocument::from(&fault), attempts: 0, metadata: None };
        let now = self.clock.unix_ms();
        let ours = match tenant.parse() {
            Ok(tenant) => {
                let digest = canonical_digest(&message.payload);
                let fresh = Record::accepted(digest, model, Some(message.sequence), now);
                let terminal: Option<Value> = serde_json::to_value(&data).ok();
                let changed = self.records.refuse(&tenant, &job, fresh, terminal, now).await?;
                !matches!(changed, super::records::Changed::Lost)
            }
            Err(_) => true,
        };
        if ours {
            self.events.publish(EventKind::Failed, tenant, &job, 0, data).await?;
        }
        let letter = DeadLetter {
            subject: on.to_owned(),
            headers: Some(message.headers.clone()),
            body: message.payload.clone(),
            stream_sequence: message.sequence,
            attempts: 0,
            code: fault.code.as_str().to_owned(),
            message: fault.message,
            worker: None,
        };
        letter.send(&self.bus).await
    }
}
