//! The connection to NATS and what is done with single messages: publish, settle, ask.

use std::time::Duration;

use async_nats::client::Request;
use async_nats::connection::State;
use async_nats::jetstream::{self, context::Context};
use async_nats::{Client, HeaderMap, RequestErrorKind, Subject};
use bytes::Bytes;
use serde_json::Value;

use crate::job::{Fault, FaultCode};
use crate::wire::header;
use crate::wire::subject::API_PREFIX;

use super::config::BusOptions;

/// The oldest server whose work queues keep what they are given.
pub const SERVER_VERSION_MIN: (i64, i64, i64) = (2, 12, 5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// NATS' error code for "the last sequence of the subject is another one".
const WRONG_LAST_SEQUENCE: [u64; 2] = [10071, 10164];

/// A connection.
#[derive(Clone, Debug)]
pub struct Bus {
    /// Core NATS.
    pub client: Client,
    /// JetStream.
    pub context: Context,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody answers there, or not as NATS.
    #[error("no NATS server answers at {url}")]
    Unreachable {
        /// Where, without secrets.
        url: String,
        /// Why.
        #[source]
        source: async_nats::ConnectError,
    },
    /// The credentials file cannot be used.
    #[error("the credentials file {path} cannot be read")]
    Credentials {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A JetStream request that was answered with an error, or not at all.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No answer.
    #[error("{subject} was not answered")]
    Unanswered {
        /// The request's subject.
        subject: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An error for an answer.
    #[error("{subject}: {description} (code {code})")]
    Refused {
        /// The request's subject.
        subject: String,
        /// NATS' `err_code`.
        code: u64,
        /// NATS' words.
        description: String,
    },
}

impl ApiError {
    /// NATS' `err_code`, if it answered.
    pub fn code(&self) -> Option<u64> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::Unanswered { .. } => None,
        }
    }
}

/// Why a message was not stored.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// No stream takes the subject: the model is unknown, or `darkroom setup` has not been run.
    #[error("no stream takes {subject}")]
    NoStream {
        /// The subject.
        subject: String,
    },
    /// The expectation in the headers does not hold.
    #[error("{subject} is not empty")]
    WrongLastSequence {
        /// The subject.
        subject: String,
    },
    /// The stream is full, for this tenant or for all.
    #[error("{subject} was refused: {description}")]
    Refused {
        /// The subject.
        subject: String,
        /// NATS' `err_code`.
        code: u64,
        /// NATS' words.
        description: String,
    },
    /// No answer: stored or not.
    #[error("the publish to {subject} was not confirmed")]
    Unconfirmed {
        /// The subject.
        subject: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What a stream says of a stored message.
#[derive(Clone, Copy, Debug)]
pub struct PubAck {
    /// Its sequence.
    pub sequence: u64,
    /// Whether it was there before.
    pub duplicate: bool,
}

/// Connects, once: later interruptions are the client's to mend.
///
/// # Errors
/// [`ConnectError`] within a few seconds.
pub async fn connect(options: &BusOptions, name: &str) -> Result<Bus, ConnectError> {
    let mut connect = async_nats::ConnectOptions::new()
        .name(name)
        .connection_timeout(CONNECT_TIMEOUT)
        .request_timeout(Some(Duration::from_secs(5)))
        .ping_interval(Duration::from_secs(10))
        .reconnect_delay_callback(|attempt| {
            Duration::from_millis(50 * 2_u64.saturating_pow(u32::try_from(attempt).unwrap_or(u32::MAX).min(6)))
        })
        .event_callback(|event| async move { tracing::info!(%event, "bus.connection") });
    if let Some(path) = &options.nats_creds {
        connect = connect
            .credentials_file(path)
            .await
            .map_err(|source| ConnectError::Credentials { path: path.display().to_string(), source })?;
    }
    let client = connect
        .connect(&options.nats)
        .await
        .map_err(|source| ConnectError::Unreachable { url: without_secrets(&options.nats), source })?;
    let mut context = jetstream::new(client.clone());
    context.set_timeout(Duration::from_secs(5));
    Ok(Bus { client, context })
}

/// A URL as it may be logged.
pub fn without_secrets(text: &str) -> String {
    if !text.contains('@') {
        return text.to_owned();
    }
    match url::Url::parse(text) {
        Ok(mut url) => {
            let hidden = url.set_password(None).and_then(|()| url.set_username(""));
            if hidden.is_ok() { url.to_string() } else { "(a URL)".to_owned() }
        }
        Err(_) => text.rsplit('@').next().unwrap_or_default().to_owned(),
    }
}

/// The version of a server as numbers; what is missing counts as 0.
pub fn version_numbers(version: &str) -> (i64, i64, i64) {
    let mut numbers = version.split(['.', '-', '+']).map(|part| part.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next(), next())
}

impl Bus {
    /// Asks the JetStream API: `subject` is without the prefix; a null request is sent without a body.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn api(&self, subject: &str, request: &Value) -> Result<Value, ApiError> {
        // Some requests must have a body and some must not.
        let body = if request.is_null() { Bytes::new() } else { request.to_string().into() };
        let asked = Request::new().payload(body).timeout(Some(Duration::from_secs(5)));
        let unanswered = |source| ApiError::Unanswered { subject: subject.to_owned(), source };
        let answer = self
            .client
            .send_request(format!("{API_PREFIX}{subject}"), asked)
            .await
            .map_err(|error| unanswered(Box::new(error)))?;
        let answer: Value = serde_json::from_slice(&answer.payload).map_err(|error| unanswered(Box::new(error)))?;
        match answer.get("error") {
            None => Ok(answer),
            Some(error) => Err(ApiError::Refused {
                subject: subject.to_owned(),
                code: error.get("err_code").and_then(Value::as_u64).unwrap_or_default(),
                description: error.get("description").and_then(Value::as_str).unwrap_or("unknown").to_owned(),
            }),
        }
    }

    /// Publishes to a stream and waits for its word.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn publish(&self, subject: &str, headers: HeaderMap, body: Bytes) -> Result<PubAck, PublishError> {
        let request = Request::new().payload(body).headers(headers).timeout(Some(Duration::from_secs(5)));
        let answer = match self.client.send_request(subject.to_owned(), request).await {
            Ok(message) => message,
            Err(error) if error.kind() == RequestErrorKind::NoResponders => {
                return Err(PublishError::NoStream { subject: subject.to_owned() });
            }
            Err(error) => {
                return Err(PublishError::Unconfirmed { subject: subject.to_owned(), source: Box::new(error) });
            }
        };
        publish_answer(subject, &answer.payload)
    }

    /// Sends an acknowledgement of any kind and waits for the server's word that it has it.
    ///
    /// # Errors
    /// A `Retry` fault: the server did not answer, so it may or may not have it.
    pub async fn settle(&self, reply: &Subject, payload: Bytes) -> Result<(), Fault> {
        if self.client.connection_state() != State::Connected {
            // Queued until the connection is back it could hit whoever holds the message then.
            return Err(Fault::retry(FaultCode::BusFailed, "not connected to NATS"));
        }
        let request = Request::new().payload(payload).timeout(Some(ANSWER_TIMEOUT));
        match self.client.send_request(reply.clone(), request).await {
            Ok(_) => Ok(()),
            Err(error) => {
                Err(Fault::retry(FaultCode::BusFailed, format!("the acknowledgement was not confirmed: {error}")))
            }
        }
    }
}

fn publish_answer(subject: &str, payload: &[u8]) -> Result<PubAck, PublishError> {
    let answer: Value = serde_json::from_slice(payload)
        .map_err(|error| PublishError::Unconfirmed { subject: subject.to_owned(), source: Box::new(error) })?;
    if let Some(error) = answer.get("error") {
        let code = error.get("err_code").and_then(Value::as_u64).unwrap_or_default();
        if WRONG_LAST_SEQUENCE.contains(&code) {
            return Err(PublishError::WrongLastSequence { subject: subject.to_owned() });
        }
        let description = error.get("description").and_then(Value::as_str).unwrap_or("unknown").to_owned();
        return Err(PublishError::Refused { subject: subject.to_owned(), code, description });
    }
    Ok(PubAck {
        sequence: answer.get("seq").and_then(Value::as_u64).unwrap_or_default(),
        duplicate: answer.get("duplicate").and_then(Value::as_bool).unwrap_or(false),
    })
}

impl From<PublishError> for Fault {
    fn from(error: PublishError) -> Self {
        Self::retry(FaultCode::BusFailed, chain(&error))
    }
}

/// An error with its causes, as one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

/// Headers of an event that must be the only one of its subject.
pub fn only_one_on_subject(mut headers: HeaderMap) -> HeaderMap {
    headers.insert(header::EXPECTED_LAST_SUBJECT_SEQUENCE, "0");
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_reach_logs() {
        assert_eq!(without_secrets("nats://me:secret@host:4222"), "nats://host:4222");
        assert!(!without_secrets("me:secret@host").contains("secret"));
        assert_eq!(without_secrets("file:///data/images"), "file:///data/images");
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(version_numbers("2.15.1"), (2, 15, 1));
        assert_eq!(version_numbers("2.12.0-RC.1"), (2, 12, 0));
        assert!(version_numbers("2.9.25") < SERVER_VERSION_MIN);
    }
}
