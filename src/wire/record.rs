//! The record of a job in the bucket `darkroom_jobs`, key `<tenant>.<job>`: state machine, idempotency and outbox.
//!
//! A terminal record carries the data of its terminal event, so that whoever finds it can publish the event again.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::job::{JobState, Webhook, WebhookEvent, WebhookFormat};

use super::request::WebhookDocument;
use super::time::rfc3339;

/// The layout of records that this build writes.
pub const SCHEMA: u32 = 1;

/// What a record holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Where the job stands.
    pub state: JobState,
    /// The digest of the request: another request under the same id is a conflict.
    pub request_digest: String,
    /// The message in the request stream that this record answers; unknown until a worker saw it.
    pub stream_sequence: Option<u64>,
    /// The model.
    pub model: String,
    /// When the record was made, RFC 3339.
    pub created: String,
    /// When it last changed, RFC 3339.
    pub updated: String,
    /// Where a worker can go on from, if anything was saved.
    pub checkpoint: Option<Checkpoint>,
    /// The `data` of the terminal event; only in terminal states.
    pub terminal: Option<Value>,
    /// Whom to tell of it, as the request says: that is gone when the job has ended.
    pub webhook: Option<Webhook>,
}

/// What was saved of a job that runs, or ran.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Its images, as far as they were begun, by index.
    pub images: Vec<SavedImage>,
}

/// How far one image was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedImage {
    /// Counts from 0.
    pub index: u32,
    /// Denoising steps that were made.
    pub step: u32,
    /// Where the state is in the object store.
    pub key: String,
    /// Its size.
    pub size_bytes: u64,
    /// SHA-256 of its bytes, in hexadecimal digits: what is there otherwise is not what was saved.
    pub sha256: String,
}

impl Record {
    /// The record of a job nobody has claimed.
    pub fn accepted(request_digest: String, model: &str, stream_sequence: Option<u64>, unix_ms: i64) -> Self {
        let now = rfc3339(unix_ms);
        Self {
            state: JobState::accepted(),
            request_digest,
            stream_sequence,
            model: model.to_owned(),
            created: now.clone(),
            updated: now,
            checkpoint: None,
            terminal: None,
            webhook: None,
        }
    }

    /// The same, of a request that wants somebody told.
    #[must_use]
    pub fn telling(self, webhook: Option<Webhook>) -> Self {
        Self { webhook, ..self }
    }
}

#[derive(Serialize, Deserialize)]
struct RecordDocument {
    schema: u32,
    status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<String>,
    attempts: u32,
    failures: u32,
    #[serde(default)]
    deaths: u32,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    stopping: bool,
    request_digest: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_sequence: Option<u64>,
    model: String,
    created: String,
    updated: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    checkpoint: Option<Checkpoint>,
    #[serde(skip_serializing_if = "Option::is_none")]
    terminal: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    webhook: Option<WebhookDocument>,
}

/// A record that this build cannot read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Not JSON, or fields are missing.
    #[error("the job's record is damaged")]
    Damaged(#[from] serde_json::Error),
    /// Written by a newer build.
    #[error("the job's record has schema {found}, this build reads {SCHEMA}")]
    Schema {
        /// What the record says.
        found: u32,
    },
    /// A word that no state is called by.
    #[error("the job's record has the unknown status {found:?}")]
    Status {
        /// What the record says.
        found: String,
    },
}

/// The record as bytes.
pub fn encode(record: &Record) -> Vec<u8> {
    let document = RecordDocument {
        schema: SCHEMA,
        status: record.state.status.as_str().to_owned(),
        worker: record.state.worker.as_ref().map(ToString::to_string),
        attempts: record.state.attempts,
        failures: record.state.failures,
        deaths: record.state.deaths,
        stopping: record.state.stopping,
        request_digest: record.request_digest.clone(),
        stream_sequence: record.stream_sequence,
        model: record.model.clone(),
        created: record.created.clone(),
        updated: record.updated.clone(),
        checkpoint: record.checkpoint.clone(),
        terminal: record.terminal.clone(),
        webhook: record.webhook.as_ref().map(WebhookDocument::from),
    };
    serde_json::to_vec(&document).unwrap_or_default()
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// [`RecordError`] when the bytes are not a record of ours.
pub fn decode(bytes: &[u8]) -> Result<Record, RecordError> {
    let document: RecordDocument = serde_json::from_slice(bytes)?;
    if document.schema != SCHEMA {
        return Err(RecordError::Schema { found: document.schema });
    }
    let Ok(status) = document.status.parse() else {
        return Err(RecordError::Status { found: document.status });
    };
    Ok(Record {
        state: JobState {
            status,
            worker: document.worker.and_then(|worker| worker.parse().ok()),
            attempts: document.attempts,
            failures: document.failures,
            deaths: document.deaths,
            stopping: document.stopping,
        },
        request_digest: document.request_digest,
        stream_sequence: document.stream_sequence,
        model: document.model,
        created: document.created,
        updated: document.updated,
        checkpoint: document.checkpoint,
        terminal: document.terminal,
        webhook: document.webhook.and_then(webhook),
    })
}

/// An event that this build does not know is one that it does not tell of; so is a format.
fn webhook(document: WebhookDocument) -> Option<Webhook> {
    let events: Vec<WebhookEvent> = document.events?.iter().filter_map(|name| name.parse().ok()).collect();
    let format = document.format.map_or_else(|| Ok(WebhookFormat::default()), |name| name.parse()).ok()?;
    Some(Webhook { url: document.url.parse().ok()?, events, format })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::JobStep;

    #[test]
    fn records_read_back() {
        let mut record = Record::accepted("d".into(), "shapes", Some(7), 1_795_000_000_123);
        assert_eq!(decode(&encode(&record)).unwrap(), record);
        record.state = record.state.next(JobStep::Claim { worker: "w".parse().unwrap() }).unwrap();
        assert_eq!(decode(&encode(&record)).unwrap(), record);
        record.state = record.state.next(JobStep::Stop).unwrap();
        let saved =
            SavedImage { index: 1, step: 3, key: "t/j/checkpoints/1-3".into(), size_bytes: 9, sha256: "aa".into() };
        record.checkpoint = Some(Checkpoint { images: vec![saved] });
        assert_eq!(decode(&encode(&record)).unwrap(), record);
        record.state = record.state.next(JobStep::Complete).unwrap();
        record.terminal = Some(serde_json::json!({"images": []}));
        assert_eq!(decode(&encode(&record)).unwrap(), record);
        let url = "https://example.com/hook".parse().unwrap();
        let record = record.telling(Some(Webhook {
            url,
            events: WebhookEvent::TERMINAL.to_vec(),
            format: WebhookFormat::Replicate,
        }));
        assert_eq!(decode(&encode(&record)).unwrap(), record);
    }

    #[test]
    fn foreign_records_are_errors() {
        let newer = String::from_utf8(encode(&Record::accepted(String::new(), "m", None, 0))).unwrap();
        assert!(matches!(
            decode(newer.replace("\"schema\":1", "\"schema\":2").as_bytes()),
            Err(RecordError::Schema { found: 2 })
        ));
        assert!(matches!(decode(newer.replace("pending", "sleeping").as_bytes()), Err(RecordError::Status { .. })));
        assert!(matches!(decode(b"{}"), Err(RecordError::Damaged(_))));
    }
}
