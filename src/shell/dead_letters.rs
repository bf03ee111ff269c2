//! Dead letters as an operator works with them: list, find, send again, drop.

use std::ops::ControlFlow;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::job::{Fault, JobId, ModelName, Tenant};
use crate::wire::header::{self, is_kept_on_dead_letter};
use crate::wire::request::{RequestDocument, id_in_body};
use crate::wire::subject::{self, RequestSubject};

use super::bus::{Access, ApiError, Bus};
use super::client::{self, Submission, SubmitError, Submitted};
use super::clock::Clock;
use super::stored::{self, Stored};

/// Sequences that one page going back covers.
const WINDOW: u64 = 64;
const STREAM_NOT_FOUND: u64 = 10059;
const NO_MESSAGE: u64 = 10057;
/// Bytes that are shown of a body that is not JSON.
const SHOWN_BYTES_MAX: usize = 2048;
/// How the id of a job ends that tries another one again.
const RETRY: &str = "-retry-";

/// A dead letter as it is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Letter {
    /// Its sequence in the stream of dead letters.
    pub sequence: u64,
    /// When it was stored, in milliseconds since the Unix epoch.
    pub unix_ms: i64,
    /// The model, as the request's subject has it.
    pub model: String,
    /// The tenant, as the request's subject has it.
    pub tenant: String,
    /// The job.
    pub job: JobId,
    /// Why, as a fault code.
    pub code: String,
    /// Why, as a sentence.
    pub message: String,
    /// Where the request was published to.
    pub subject: String,
    /// The sequence of the request.
    pub request_sequence: u64,
    /// Claims of its job.
    pub attempts: u32,
    /// Who gave up.
    pub worker: Option<String>,
    /// Its headers, without those of NATS.
    pub headers: Vec<(String, String)>,
    /// The request's body.
    pub body: Bytes,
}

/// Which letters.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only of this tenant.
    pub tenant: Option<Tenant>,
    /// Only of this model.
    pub model: Option<ModelName>,
    /// Only with this fault code.
    pub code: Option<String>,
}

/// Why nothing could be done with a dead letter.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    /// No stream.
    #[error("there is no stream of dead letters; run `darkroom setup`")]
    StreamMissing,
    /// A tenant's account reaches no dead letters.
    #[error("a tenant's account reaches no dead letters; they are the platform's")]
    TenantsAccount,
    /// Neither a number nor a job.
    #[error("there is no dead letter {id}, by number or by job")]
    Unknown {
        /// What was asked for.
        id: String,
    },
    /// A webhook that cannot be read, so that it cannot be sent.
    #[error("the webhook {sequence} cannot be read")]
    UnreadableWebhook {
        /// Its number.
        sequence: u64,
    },
    /// More than one is of the job.
    #[error("several dead letters are of a job {id}: numbers {}; name one by its number", numbers(sequences))]
    Ambiguous {
        /// What was asked for.
        id: String,
        /// Their numbers.
        sequences: Vec<u64>,
    },
    /// The request's subject is not one of a request.
    #[error("it would be refused again: {subject} is not where a request goes, which is {}", subject::REQUEST_FORM)]
    NotARequest {
        /// The subject.
        subject: String,
    },
    /// The body is no request.
    #[error("it would be refused again: its body is not a request")]
    Unreadable(#[source] serde_json::Error),
    /// No id can be made.
    #[error("no id of another try can be made from {job}; choose one with --job")]
    Name {
        /// The failed job.
        job: JobId,
    },
    /// The new job was refused.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// JetStream does not answer.
    #[error("JetStream does not answer")]
    Api(#[from] ApiError),
    /// The stream does not answer.
    #[error(transparent)]
    Bus(#[from] Fault),
}

fn numbers(sequences: &[u64]) -> String {
    sequences.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl Filter {
    fn matches(&self, letter: &Letter) -> bool {
        self.code.as_ref().is_none_or(|code| *code == letter.code)
    }

    fn subject(&self) -> String {
        subject::dead_letters(self.model.as_ref(), self.tenant.as_ref())
    }
}

fn read(stored: Stored) -> Letter {
    let text = |name: &str| stored.header(name).unwrap_or_default().to_owned();
    let request_sequence = text(header::DEAD_LETTER_SEQUENCE).parse().unwrap_or_default();
    let subject = text(header::DEAD_LETTER_SUBJECT);
    let (model, tenant) = subject::model_and_tenant_tokens(&subject);
    let named = text(header::DEAD_LETTER_JOB).parse().ok().or_else(|| id_in_body(&stored.body));
    let values = |(name, values): (&async_nats::HeaderName, &Vec<async_nats::HeaderValue>)| {
        let name = name.to_string();
        values.iter().map(|value| (name.clone(), value.as_str().to_owned())).collect::<Vec<_>>()
    };
    Letter {
        sequence: stored.sequence,
        unix_ms: stored.unix_ms,
        model: model.to_owned(),
        tenant: tenant.to_owned(),
        job: named.unwrap_or_else(|| JobId::from_stream_sequence(request_sequence)),
        code: text(header::DEAD_LETTER_CODE),
        message: text(header::DEAD_LETTER_MESSAGE),
        request_sequence,
        attempts: text(header::DEAD_LETTER_ATTEMPTS).parse().unwrap_or_default(),
        worker: stored.header(header::DEAD_LETTER_WORKER).map(str::to_owned),
        headers: stored
            .headers
            .iter()
            .filter(|(name, _)| is_kept_on_dead_letter(name.as_ref()))
            .flat_map(values)
            .collect(),
        subject,
        body: stored.body,
    }
}

/// Goes through the letters of `stream` on `filter`, newest first, until told to stop.
pub(super) async fn scan(
    bus: &Bus,
    stream: &str,
    filter: &str,
    mut each: impl FnMut(Stored) -> ControlFlow<()>,
) -> Result<(), DeadLetterError> {
    let info = match bus.api(&format!("STREAM.INFO.{stream}"), &Value::Null).await {
        Ok(info) => info,
        Err(error) if error.code() == Some(STREAM_NOT_FOUND) => return Err(DeadLetterError::StreamMissing),
        Err(error) if bus.access().await.is_ok_and(|access| access == Access::Tenant) => {
            tracing::debug!(%error, "dead letters");
            return Err(DeadLetterError::TenantsAccount);
        }
        Err(error) => return Err(error.into()),
    };
    let first = info["state"]["first_seq"].as_u64().unwrap_or_default().max(1);
    let mut to = info["state"]["last_seq"].as_u64().unwrap_or_default();
    while to >= first {
        let from = to.saturating_sub(WINDOW - 1).max(first);
        let mut window: Vec<Stored> = Vec::new();
        let mut next = from;
        while next <= to {
            // A page ends early where letters are large.
            let page = stored::page(bus, stream, next, filter, stored::PAGE_MAX).await?;
            let Some(last) = page.last() else { break };
            next = last.sequence + 1;
            window.extend(page.into_iter().filter(|letter| letter.sequence <= to));
        }
        for letter in window.into_iter().rev() {
            if each(letter).is_break() {
                return Ok(());
            }
        }
        to = from - 1;
    }
    Ok(())
}

/// Dead letters, newest first, at most `limit`.
///
/// # Errors
/// [`DeadLetterError`].
pub async fn list(bus: &Bus, filter: &Filter, limit: usize) -> Result<Vec<Letter>, DeadLetterError> {
    let mut found = Vec::new();
    if limit == 0 {
        return Ok(found);
    }
    scan(bus, subject::STREAM_DEAD_LETTERS, &filter.subject(), |stored| {
        let letter = read(stored);
        if filter.matches(&letter) {
            found.push(letter);
        }
        if found.len() == limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .await?;
    Ok(found)
}

/// The letter that people mean by `id`: its number, or its job.
///
/// # Errors
/// [`DeadLetterError`].
pub async fn find(bus: &Bus, id: &str, filter: &Filter) -> Result<Letter, DeadLetterError> {
    let number: Option<u64> = id.parse().ok();
    let (mut by_number, mut by_job) = (None, Vec::new());
    scan(bus, subject::STREAM_DEAD_LETTERS, &filter.subject(), |stored| {
        let letter = read(stored);
        if Some(letter.sequence) == number && filter.matches(&letter) {
            by_number = Some(letter);
            return ControlFlow::Break(());
        }
        if letter.job.as_str() == id && filter.matches(&letter) {
            by_job.push(letter);
        }
        ControlFlow::Continue(())
    })
    .await?;
    if let Some(letter) = by_number {
        return Ok(letter);
    }
    let sequences: Vec<u64> = by_job.iter().map(|letter| letter.sequence).collect();
    match (by_job.pop(), by_job.is_empty()) {
        (Some(letter), true) => Ok(letter),
        (Some(_), false) => Err(DeadLetterError::Ambiguous { id: id.to_owned(), sequences }),
        (None, _) => Err(DeadLetterError::Unknown { id: id.to_owned() }),
    }
}

/// Whether a request was dead-lettered: looks back to the time at which it was published.
///
/// # Errors
/// A `Retry` fault when the stream is not there or does not answer.
pub async fn has_request(bus: &Bus, request: &Stored) -> Result<bool, Fault> {
    const CLOCKS_APART_MS: i64 = 60_000;
    let mut found = false;
    let (model, tenant) = subject::model_and_tenant_tokens(&request.subject);
    let id = request.sequence.to_string();
    let filter = subject::dead_letter(model, tenant);
    let scanned = scan(bus, subject::STREAM_DEAD_LETTERS, &filter, |letter| {
        found = letter.header(header::DEAD_LETTER_SEQUENCE) == Some(&id);
        let is_older = letter.unix_ms < request.unix_ms - CLOCKS_APART_MS;
        if found || is_older { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    match scanned.await {
        Ok(()) => Ok(found),
        Err(DeadLetterError::Bus(fault)) => Err(fault),
        Err(error) => Err(Fault::retry(crate::job::FaultCode::BusFailed, super::bus::chain(&error))),
    }
}

/// Removes a letter; one that is gone already is no error.
///
/// # Errors
/// [`DeadLetterError`].
pub async fn remove(bus: &Bus, letter: &Letter) -> Result<(), DeadLetterError> {
    remove_from(bus, subject::STREAM_DEAD_LETTERS, letter.sequence).await
}

/// Removes a message from a stream; one that is gone already is no error.
pub(super) async fn remove_from(bus: &Bus, stream: &str, sequence: u64) -> Result<(), DeadLetterError> {
    match bus.api(&format!("STREAM.MSG.DELETE.{stream}"), &json!({ "seq": sequence, "no_erase": true })).await {
        Err(error) if error.code() != Some(NO_MESSAGE) => Err(error.into()),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Publishes a letter's request again, as a job of its own: the failed one has had its end, and keeps its id.
///
/// The new id is `job`, or follows from the failed job's. The same letter again is the same job again, so that whoever is
/// killed before the letter is removed can repeat it.
///
/// # Errors
/// [`DeadLetterError`].
pub async fn retry(
    bus: &Bus,
    clock: &Clock,
    letter: &Letter,
    job: Option<JobId>,
) -> Result<(JobId, Submitted), DeadLetterError> {
    let not_a_request = || DeadLetterError::NotARequest { subject: letter.subject.clone() };
    let RequestSubject { model, priority, pool, tenant } =
        RequestSubject::parse(&letter.subject).ok_or_else(not_a_request)?;
    let request: RequestDocument = serde_json::from_slice(&letter.body).map_err(DeadLetterError::Unreadable)?;
    let name = || DeadLetterError::Name { job: letter.job.clone() };
    let job = job.or_else(|| next_try(&letter.job)).ok_or_else(name)?;
    let request = RequestDocument { id: None, ..request };
    let submission = Submission { tenant, job, model, priority, pool, request };
    let submitted = client::submit(bus, clock, &submission).await?;
    Ok((submission.job, submitted))
}

/// The id of the next try of a job: `<job>-retry-1`, then `<job>-retry-2`.
fn next_try(job: &JobId) -> Option<JobId> {
    let text = job.as_str();
    let counted = text.rsplit_once(RETRY).and_then(|(first, nth)| Some((first, nth.parse::<u32>().ok()?)));
    let (first, nth) = counted.unwrap_or((text, 0));
    format!("{first}{RETRY}{}", nth.checked_add(1)?).parse().ok()
}

/// The body as it may be shown: JSON, or text as far as it is some.
pub fn body_for_people(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or_else(|_| {
        let text = String::from_utf8_lossy(&body[..body.len().min(SHOWN_BYTES_MAX)]);
        Value::String(text.into_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_are_counted_in_the_id() {
        let long = "a".repeat(64);
        for (job, next) in [
            ("job", Some("job-retry-1")),
            ("job-retry-1", Some("job-retry-2")),
            ("job-retry-9", Some("job-retry-10")),
            ("a-retry-b", Some("a-retry-b-retry-1")),
            ("a-retry-1-retry-3", Some("a-retry-1-retry-4")),
            (long.as_str(), None),
            ("job-retry-4294967295", None),
        ] {
            let next: Option<JobId> = next.map(|next| next.parse().unwrap());
            assert_eq!(next_try(&job.parse().unwrap()), next, "{job}");
        }
    }
}
