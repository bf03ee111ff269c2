//! Stored messages by direct get, many in one question. Copies of a stream answer, so what is read may be a moment old;
//! only [`last_at_leader`] asks the one that knows.

use std::time::Duration;

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{
    DirectGetError, DirectGetErrorKind, LastRawMessageError, LastRawMessageErrorKind, Stream,
};
use async_nats::{HeaderMap, HeaderValue, StatusCode};
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::job::{Fault, FaultCode};
use crate::wire::subject::API_PREFIX;
use crate::wire::time::parse_rfc3339;

use super::bus::{Bus, Looks, chain};

/// Messages that one question brings, at the most: the server has the same bound for subjects.
pub const PAGE_MAX: usize = 256;
/// Bytes after which the server ends a page.
const PAGE_BYTES_MAX: u32 = 4 << 20;
/// The server answers for so many subjects at once.
const SUBJECTS_MAX: u32 = 1024;
/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(4);
/// "All answers were given."
const END_OF_BATCH: u16 = 204;

/// A message as a stream keeps it.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its sequence.
    pub sequence: u64,
    /// Where it was published to.
    pub subject: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// When it was stored, in milliseconds since the Unix epoch, by the server's clock.
    pub unix_ms: i64,
}

impl Stored {
    /// A header's first value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(HeaderValue::as_str)
    }

    /// How long it has been stored at `unix_ms`; nothing where clocks differ.
    pub fn age(&self, unix_ms: i64) -> Duration {
        Duration::from_millis(u64::try_from(unix_ms.saturating_sub(self.unix_ms)).unwrap_or(0))
    }
}

impl From<StreamMessage> for Stored {
    fn from(message: StreamMessage) -> Self {
        Self {
            sequence: message.sequence,
            subject: message.subject.to_string(),
            headers: message.headers,
            body: message.payload,
            unix_ms: i64::try_from(message.time.unix_timestamp_nanos() / 1_000_000).unwrap_or(0),
        }
    }
}

/// The first messages from sequence `from` on whose subject matches `filter`: at most `messages_max`, fewer where they are
/// large, none at the end.
///
/// # Errors
/// A `Retry` fault when nobody answers.
pub async fn page(bus: &Bus, stream: &str, from: u64, filter: &str, messages_max: usize) -> Result<Vec<Stored>, Fault> {
    let question = json!({
        "seq": from.max(1), "next_by_subj": filter, "batch": messages_max.clamp(2, PAGE_MAX), "max_bytes": PAGE_BYTES_MAX,
    });
    ask(bus, stream, &question).await
}

/// The last message of each of `subjects` that has one; wildcards stand for at most 1024.
///
/// # Errors
/// A `Retry` fault when nobody answers.
pub async fn last_of(bus: &Bus, stream: &str, subjects: &[String]) -> Result<Vec<Stored>, Fault> {
    if subjects.is_empty() {
        return Ok(Vec::new());
    }
    ask(bus, stream, &json!({ "multi_last": subjects, "batch": SUBJECTS_MAX })).await
}

async fn ask(bus: &Bus, stream: &str, question: &Value) -> Result<Vec<Stored>, Fault> {
    let lost = |why: String| Fault::retry(FaultCode::BusFailed, format!("the stream {stream}: {why}"));
    let inbox = bus.client.new_inbox();
    let mut answers = bus.client.subscribe(inbox.clone()).await.map_err(|error| lost(chain(&error)))?;
    let to = format!("{API_PREFIX}DIRECT.GET.{stream}");
    let asked = bus.client.publish_with_reply(to, inbox, question.to_string().into()).await;
    asked.map_err(|error| lost(chain(&error)))?;
    let all = async {
        let mut found = Vec::new();
        while let Some(answer) = answers.next().await {
            match answer.status {
                None | Some(StatusCode::OK) => found.extend(read(answer)),
                Some(StatusCode::NOT_FOUND) => return Ok(found),
                Some(status) if status.as_u16() == END_OF_BATCH => return Ok(found),
                Some(status) => {
                    return Err(lost(format!("{status} {}", answer.description.unwrap_or_default())));
                }
            }
        }
        Err(lost("the connection was lost".to_owned()))
    };
    match tokio::time::timeout(PATIENCE, all).await {
        Ok(found) => found,
        Err(_) => Err(lost("no answer".to_owned())),
    }
}

/// A message as a direct get answers with it: what the stream knows is in headers.
fn read(answer: async_nats::Message) -> Option<Stored> {
    let headers = answer.headers?;
    let text = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
    let sequence = text("Nats-Sequence")?.parse().ok()?;
    let unix_ms = parse_rfc3339(&text("Nats-Time-Stamp")?)?;
    let subject = text("Nats-Subject")?;
    Some(Stored { sequence, subject, headers, body: answer.payload, unix_ms })
}

/// The last message on a subject, if there is one, as the stream's leader has it: what was acknowledged is there.
///
/// # Errors
/// async-nats', when nobody answers.
pub async fn last_at_leader(stream: &Stream<()>, subject: &str) -> Result<Option<StreamMessage>, LastRawMessageError> {
    let mut looks = Looks::default();
    loop {
        match stream.get_last_raw_message_by_subject(subject).await {
            Ok(message) => return Ok(Some(message)),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => return Ok(None),
            Err(error) => {
                if !looks.again(&chain(&error)).await {
                    return Err(error);
                }
            }
        }
    }
}

/// The last message on a subject, if there is one; asked for again where a cluster has no leader.
///
/// # Errors
/// async-nats', when nobody answers.
pub async fn last_on(stream: &Stream<()>, subject: &str) -> Result<Option<StreamMessage>, DirectGetError> {
    let mut looks = Looks::default();
    loop {
        match stream.direct_get_last_for_subject(subject).await {
            Ok(message) => return Ok(Some(message)),
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => return Ok(None),
            Err(error) => {
                if !looks.again(&chain(&error)).await {
                    return Err(error);
                }
            }
        }
    }
}
