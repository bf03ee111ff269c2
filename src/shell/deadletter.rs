//! The dead-letter function: dead letters, and the sweep that fails what no consumer serves.
//!
//! A request for an unknown model, priority or pool, or on a subject with tokens missing or left over, lies in the
//! stream where no worker looks. The sweep finds it, announces `failed` with code `unserved`, and removes it.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use bytes::Bytes;
use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::job::{Fault, FaultCode, JobId};
use crate::wire::{header, subject};

use super::bus::{ApiError, Bus, chain};
use super::clock::Clock;
use super::config::Retention;
use super::ending::Ending;
use super::metrics::{self, ReconcilerMetrics};
use super::reconciler::ReconcileOptions;
use super::stored::Stored;
use super::{advisories, reconciler, telemetry, topology};

/// What the function is told once.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct DeadletterOptions {
    /// How long jobs are kept after their end.
    #[command(flatten)]
    pub retention: Retention,
    /// How disagreements are mended.
    #[command(flatten)]
    pub reconcile: ReconcileOptions,
}

/// How often the stream is looked through when nothing hints at an unserved request.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// A request this young may have been published before the consumers of its model were made.
const PATIENCE: Duration = Duration::from_secs(1);
/// Requests on one subject that one sweep fails.
const AT_ONCE: usize = 256;
/// How much later a sweep for it comes.
const HASTE: Duration = Duration::from_millis(100);

/// A request that will not be tried again, with the reason.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// The job that it was for.
    pub job: JobId,
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
        headers.insert(header::DEAD_LETTER_JOB, self.job.as_str());
        headers.insert(header::DEAD_LETTER_CODE, self.code.as_str());
        headers.insert(header::DEAD_LETTER_MESSAGE, self.message.replace(['\r', '\n'], " "));
        headers.insert(header::DEAD_LETTER_SUBJECT, self.subject.clone());
        headers.insert(header::DEAD_LETTER_SEQUENCE, self.stream_sequence.to_string());
        headers.insert(header::DEAD_LETTER_ATTEMPTS, self.attempts.to_string());
        if let Some(worker) = self.worker {
            headers.insert(header::DEAD_LETTER_WORKER, worker);
        }
        let kept = bus.publish(&target, headers, self.body).await?;
        if !kept.duplicate {
            metrics::dead_letter(&telemetry::meter(), &self.code);
        }
        Ok(())
    }
}

/// Sweeps, takes advisories and reconciles until `stop`.
///
/// # Errors
/// A `Retry` fault when the bucket of records cannot be opened.
pub async fn run(bus: Bus, options: DeadletterOptions, stop: CancellationToken) -> Result<(), Fault> {
    let clock = Clock::start();
    let ending = Ending::open(bus, clock, options.retention).await?;
    let metrics = ReconcilerMetrics::new(&telemetry::meter());
    let sweeping = sweep_until(&ending, &stop);
    let advised = advisories::run(&ending, &metrics, &stop);
    let reconciling = reconciler::run(&ending, &metrics, options.reconcile, &stop);
    tokio::join!(sweeping, advised, reconciling).0
}

/// Sweeps: at once when a request arrives on an unserved subject, and now and then in any case.
async fn sweep_until(ending: &Ending, stop: &CancellationToken) -> Result<(), Fault> {
    let lost = |error: &(dyn std::error::Error + 'static)| Fault::retry(FaultCode::BusFailed, chain(error));
    // A hint only: the stream itself is the authority.
    let mut hints = match ending.bus.client.subscribe(subject::ALL_REQUESTS).await {
        Ok(hints) => hints,
        Err(error) => {
            stop.cancel();
            return Err(lost(&error));
        }
    };
    let mut served = Vec::new();
    // It goes on through every hint: where requests never stop, one that began anew with each would never end.
    let mut due = Box::pin(tokio::time::sleep(Duration::ZERO));
    let mut is_hastened = true;
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            hint = hints.next() => {
                let Some(hint) = hint else {
                    stop.cancel();
                    return Ok(());
                };
                if is_served(&served, hint.subject.as_str()) || is_hastened {
                    continue;
                }
                due.set(tokio::time::sleep(PATIENCE + HASTE));
                is_hastened = true;
            }
            () = &mut due => {
                is_hastened = false;
                let swept = tokio::select! {
                    // Each step of it can be made once more by the next one.
                    () = stop.cancelled() => return Ok(()),
                    swept = sweep(ending) => swept,
                };
                match swept {
                    Ok(swept) => {
                        served = swept.filters;
                        is_hastened = swept.some_are_left;
                    }
                    Err(fault) => tracing::warn!(%fault, "deadletter.sweep"),
                }
                due.set(tokio::time::sleep(if is_hastened { PATIENCE + HASTE } else { SWEEP_EVERY }));
            }
        }
    }
}

/// Whether a consumer with one of these filters takes requests on `subject`.
pub(super) fn is_served(filters: &[String], subject: &str) -> bool {
    filters.iter().any(|filter| serves(filter, subject))
}

/// Whether the consumer with this filter takes requests on `subject`: that of (model, priority, pool), whatever the tenant's
/// token is. One that is not an id still belongs to the consumer: it refuses such requests with all others.
pub(super) fn serves(filter: &str, subject: &str) -> bool {
    let front = |text: &str| text.rsplit_once('.').map(|(front, _)| front.len());
    let (Some(in_filter), Some(in_subject)) = (front(filter), front(subject)) else { return false };
    filter.ends_with(".*") && filter[..in_filter] == subject[..in_subject]
}

/// What a sweep found.
struct Swept {
    /// Those of all consumers.
    filters: Vec<String>,
    /// Whether unserved requests are left that were not old enough, or too many.
    some_are_left: bool,
}

/// Fails every request that no consumer filters, unless it is too young.
async fn sweep(ending: &Ending) -> Result<Swept, Fault> {
    let lost = |error: ApiError| Fault::retry(FaultCode::BusFailed, chain(&error));
    let served = topology::served(&ending.bus).await.map_err(lost)?;
    let filters: Vec<String> = served.into_iter().map(|consumer| consumer.filter).collect();
    let counts = topology::requests_by_subject(&ending.bus).await.map_err(lost)?;
    let mut some_are_left = false;
    for subject in counts.keys().filter(|subject| !is_served(&filters, subject)) {
        some_are_left |= fail_some_on(ending, subject, &filters).await?;
    }
    Ok(Swept { filters, some_are_left })
}

/// Fails the oldest requests on a subject; whether some are left. Not all at once: where more keep coming, other subjects have
/// their turn, and whoever serves this one meanwhile is seen.
async fn fail_some_on(ending: &Ending, on: &str, filters: &[String]) -> Result<bool, Fault> {
    let lost = |error: &(dyn std::error::Error + 'static)| Fault::retry(FaultCode::BusFailed, chain(error));
    let stream = ending.bus.context.get_stream_no_info(subject::STREAM_REQUESTS).await.map_err(|error| lost(&error))?;
    let mut models: Vec<&str> = filters.iter().filter_map(|filter| filter.split('.').nth(2)).collect();
    models.dedup();
    let known = if models.is_empty() { "none yet".to_owned() } else { models.join(", ") };
    let fault = Fault::reject(
        FaultCode::Unserved,
        format!("nothing serves {on}; a request goes to {}, models here: {known}", subject::REQUEST_FORM),
    );
    for _ in 0..AT_ONCE {
        // The oldest first: while new ones keep coming, the newest is never old enough.
        let message: Stored = match stream.get_first_raw_message_by_subject(on, 1).await {
            Ok(message) => message.into(),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => return Ok(false),
            Err(error) => return Err(lost(&error)),
        };
        if message.age(ending.clock.unix_ms()) < PATIENCE {
            return Ok(true);
        }
        tracing::warn!(%fault, sequence = message.sequence, "deadletter.unserved");
        ending.end_request(&message, &fault).await?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_serves_every_tenant_and_no_other_form() {
        let filters = ["darkroom.req.shapes.normal.any.*".to_owned()];
        for (subject, served) in [
            ("darkroom.req.shapes.normal.any.t", true),
            ("darkroom.req.shapes.normal.any.t!", true),
            ("darkroom.req.shapes.low.any.t", false),
            ("darkroom.req.other.normal.any.t", false),
            ("darkroom.req.shapes.normal.any.t.more", false),
            ("darkroom.req.shapes.normal.any", false),
            ("darkroom.req.shapes", false),
        ] {
            assert_eq!(is_served(&filters, subject), served, "{subject}");
        }
    }
}
