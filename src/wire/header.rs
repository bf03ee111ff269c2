//! Header names of requests, events and dead letters, and how message ids are made.

use std::time::Duration;

use crate::job::{JobId, Tenant};

/// NATS: the id by which a stream drops repeated publishes; on requests `<job>`, or `<tenant>.<job>`.
pub const MESSAGE_ID: &str = "Nats-Msg-Id";
/// NATS: the publish succeeds only if this is the last sequence on the subject; 0 for "none yet".
pub const EXPECTED_LAST_SUBJECT_SEQUENCE: &str = "Nats-Expected-Last-Subject-Sequence";
/// NATS: how long a stream keeps the message, as `90s`, unless its own rule is shorter.
pub const TIME_TO_LIVE: &str = "Nats-TTL";
/// NATS: why a message without a body stands where the last one of a subject was.
pub const MARKER_REASON: &str = "Nats-Marker-Reason";
/// It outlived its time.
pub const MARKER_MAX_AGE: &str = "MaxAge";
/// Of which subject the last message is meant there, when not of that published to.
pub const EXPECTED_LAST_SUBJECT: &str = "Nats-Expected-Last-Subject-Sequence-Subject";
/// Media type of the body.
pub const CONTENT_TYPE: &str = "Content-Type";
/// Events are structured CloudEvents.
pub const CONTENT_TYPE_CLOUD_EVENT: &str = "application/cloudevents+json";

/// Requests: when the job will begin, as far as its client can tell, in milliseconds since the Unix epoch.
pub const ESTIMATED_START: &str = "Darkroom-Estimated-Start";
/// NATS: what became of a key of a bucket.
pub const KEY_OPERATION: &str = "KV-Operation";
/// It was deleted.
pub const KEY_DELETED: &str = "DEL";

/// Webhooks: the id of the event, the same with every attempt.
pub const WEBHOOK_ID: &str = "webhook-id";
/// Webhooks: when the attempt was made, in seconds since the Unix epoch.
pub const WEBHOOK_TIMESTAMP: &str = "webhook-timestamp";
/// Webhooks: signatures of id, timestamp and body, separated by spaces.
pub const WEBHOOK_SIGNATURE: &str = "webhook-signature";
/// Webhooks on their way: whom to tell.
pub const WEBHOOK_URL: &str = "Darkroom-Webhook-Url";
/// The id of the event that a webhook on its way tells of.
pub const WEBHOOK_EVENT: &str = "Darkroom-Webhook-Event";
/// What is no event, but JSON.
pub const CONTENT_TYPE_JSON: &str = "application/json";

/// NATS micro services: why a request was refused.
pub const SERVICE_ERROR: &str = "Nats-Service-Error";

/// Dead letters: why, as a fault code.
pub const DEAD_LETTER_CODE: &str = "Darkroom-Error-Code";
/// Dead letters: why, as a sentence.
pub const DEAD_LETTER_MESSAGE: &str = "Darkroom-Error-Message";
/// Dead letters: the job that the request was for.
pub const DEAD_LETTER_JOB: &str = "Darkroom-Job";
/// Dead letters: the subject that the request was published to.
pub const DEAD_LETTER_SUBJECT: &str = "Darkroom-Original-Subject";
/// Dead letters: its sequence in the request stream.
pub const DEAD_LETTER_SEQUENCE: &str = "Darkroom-Original-Sequence";
/// Dead letters: attempts that were made.
pub const DEAD_LETTER_ATTEMPTS: &str = "Darkroom-Attempts";
/// Dead letters: the worker that gave up.
pub const DEAD_LETTER_WORKER: &str = "Darkroom-Worker";

/// The message id of a job. Streams compare ids over all subjects, so it tells tenants apart.
pub fn message_id(tenant: &Tenant, job: &JobId) -> String {
    format!("{tenant}.{job}")
}

/// The job's id in a message id: the whole of it, or what follows the tenant.
pub fn job_in_message_id<'a>(tenant: &Tenant, message_id: &'a str) -> &'a str {
    message_id.strip_prefix(tenant.as_str()).and_then(|rest| rest.strip_prefix('.')).unwrap_or(message_id)
}

/// Reads an estimated start. Anybody may write the header, so what cannot be an estimate is none: a time before the request
/// was published, clocks apart, or more than a week after.
pub fn estimated_start(text: &str, published_unix_ms: i64) -> Option<i64> {
    const CLOCKS_APART_MS: i64 = 60_000;
    const LATEST_MS: i64 = 7 * 24 * 3_600_000;
    let unix_ms: i64 = text.parse().ok()?;
    let earliest = published_unix_ms.saturating_sub(CLOCKS_APART_MS);
    (earliest..=published_unix_ms.saturating_add(LATEST_MS)).contains(&unix_ms).then_some(unix_ms)
}

/// The id of a dead letter, so that repeating it stores nothing.
pub fn dead_letter_id(stream_sequence: u64) -> String {
    format!("dlq-{stream_sequence}")
}

/// The id of a webhook that an operator sends again: another one than that it was given up under.
pub fn webhook_again_id(id: &str, dead_sequence: u64) -> String {
    format!("{id}/again-{dead_sequence}")
}

/// The id of a webhook that was given up, by its sequence among those on their way.
pub fn dead_webhook_id(sequence: u64) -> String {
    format!("dead-{sequence}")
}

/// The id of a webhook for which there was no room, by the sequence of its event.
pub fn crowded_out_webhook_id(event_sequence: u64) -> String {
    format!("full-{event_sequence}")
}

/// A time to live as NATS reads it: whole seconds, at least one.
pub fn time_to_live(duration: Duration) -> String {
    format!("{}s", duration.as_secs().max(1))
}

/// Whether a header of the original request is kept on its dead letter: NATS' own would change what the stream does.
pub fn is_kept_on_dead_letter(name: &str) -> bool {
    !name.to_ascii_lowercase().starts_with("nats-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimated_starts_that_cannot_be_are_ignored() {
        let published = 1_795_000_000_000;
        for good in ["1795000000000", "1795000012345", "1794999999000"] {
            assert_eq!(estimated_start(good, published), good.parse().ok());
        }
        for bad in ["", "soon", "1.5", "NaN", "0", "-1", "1794000000000", "9223372036854775807", "9223372036854775808"]
        {
            assert_eq!(estimated_start(bad, published), None, "{bad:?}");
        }
        assert_eq!(estimated_start("9223372036854775807", i64::MAX), Some(i64::MAX), "no overflow");
    }
}
