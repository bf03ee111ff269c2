//! Header names of requests, events and dead letters.

/// NATS: the id by which a stream drops repeated publishes; on requests it is the job's id.
pub const MESSAGE_ID: &str = "Nats-Msg-Id";
/// NATS: the publish succeeds only if this is the last sequence on the subject; 0 for "none yet".
pub const EXPECTED_LAST_SUBJECT_SEQUENCE: &str = "Nats-Expected-Last-Subject-Sequence";
/// W3C trace context, taken up from requests and sent on with events.
pub const TRACEPARENT: &str = "traceparent";
/// W3C trace context, vendor part.
pub const TRACESTATE: &str = "tracestate";
/// Media type of the body.
pub const CONTENT_TYPE: &str = "Content-Type";
/// Events are structured CloudEvents.
pub const CONTENT_TYPE_CLOUD_EVENT: &str = "application/cloudevents+json";

/// Dead letters: why, as a fault code.
pub const DEAD_LETTER_CODE: &str = "Darkroom-Error-Code";
/// Dead letters: why, as a sentence.
pub const DEAD_LETTER_MESSAGE: &str = "Darkroom-Error-Message";
/// Dead letters: the subject that the request was published to.
pub const DEAD_LETTER_SUBJECT: &str = "Darkroom-Original-Subject";
/// Dead letters: its sequence in the request stream.
pub const DEAD_LETTER_SEQUENCE: &str = "Darkroom-Original-Sequence";
/// Dead letters: attempts that were made.
pub const DEAD_LETTER_ATTEMPTS: &str = "Darkroom-Attempts";
/// Dead letters: the worker that gave up.
pub const DEAD_LETTER_WORKER: &str = "Darkroom-Worker";

/// The id of a dead letter, so that repeating it stores nothing.
pub fn dead_letter_id(stream_sequence: u64) -> String {
    format!("dlq-{stream_sequence}")
}

/// Whether a header of the original request is kept on its dead letter: NATS' own would change what the stream does.
pub fn is_kept_on_dead_letter(name: &str) -> bool {
    !name.to_ascii_lowercase().starts_with("nats-")
}
