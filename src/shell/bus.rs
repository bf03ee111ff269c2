//! The connection to NATS and what is done with single messages: publish, settle, ask.

use std::path::Path;
use std::time::Duration;

use async_nats::client::Request;
use async_nats::connection::State;
use async_nats::jetstream::{self, context::Context};
use async_nats::{Client, ConnectErrorKind, HeaderMap, RequestErrorKind, Subject};
use bytes::Bytes;
use serde_json::Value;

use crate::job::{Fault, FaultCode};
use crate::wire::header;
use crate::wire::subject::API_PREFIX;

use super::accounts;
use super::config::BusOptions;

/// The oldest server whose work queues keep what they are given.
pub const SERVER_VERSION_MIN: (i64, i64, i64) = (2, 12, 5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
const API_TIMEOUT: Duration = Duration::from_secs(4);
/// How often a question is asked again at which nobody is there who could answer, and after how long.
const LOOKS_AGAIN_MAX: u32 = 5;
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// For how many of those one counts that timed out, which takes longer.
const LOOKS_PER_SILENCE: u32 = 2;

/// NATS' error code for an account that has no JetStream of its own.
const NO_JETSTREAM_IN_ACCOUNT: u64 = 10039;

/// NATS' error code for "the last sequence of the subject is another one".
const WRONG_LAST_SEQUENCE: [u64; 2] = [10071, 10164];

/// NATS' error code for a stream that may hold more than the server may still promise, by its configuration or its disk.
const STORAGE_PROMISED: u64 = 10047;
/// NATS' error code for a message that a stream could not store, because of its limits or of the disk.
const STORE_FAILED: u64 = 10077;

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
    /// Somebody answers, but TLS does not come about.
    #[error("no TLS with the NATS server at {url}")]
    Tls {
        /// Where, without secrets.
        url: String,
        /// Why.
        #[source]
        source: async_nats::ConnectError,
    },
    /// The server does not know who this is.
    #[error("the NATS server at {url} refuses these credentials, or wants some")]
    Unauthorized {
        /// Where, without secrets.
        url: String,
        /// Why.
        #[source]
        source: async_nats::ConnectError,
    },
    /// One of a client certificate and its key without the other.
    #[error("a client certificate needs both --nats-cert and --nats-key")]
    HalfCertificate,
    /// The file with the credentials or the nkey's seed cannot be used.
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
        /// Whether an answer was waited for: somebody may be there, and what was asked may have been done.
        timed_out: bool,
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

    /// Whether no answer came in time.
    pub fn timed_out(&self) -> bool {
        matches!(self, Self::Unanswered { timed_out: true, .. })
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
    /// As many messages are on the subject as the stream takes there: a tenant's quota.
    #[error("{subject} holds as many messages as it may")]
    QuotaReached {
        /// The subject.
        subject: String,
    },
    /// The stream is full, for all.
    #[error("the stream of {subject} is full: {description}")]
    StreamFull {
        /// The subject.
        subject: String,
        /// NATS' words: which limit.
        description: String,
    },
    /// The stream refuses this message.
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

/// What kind of account a connection is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The one that the streams are in.
    Platform,
    /// One that reaches them by what it imports: no more than its own requests, events and records.
    Tenant,
}

/// Connects, once: later interruptions are the client's to mend.
///
/// # Errors
/// [`ConnectError`] within a few seconds.
pub async fn connect(options: &BusOptions, name: &str) -> Result<Bus, ConnectError> {
    // Two are compiled in, by us and by the object stores' clients, and TLS panics where nobody has chosen. Once is enough.
    let _ = async_nats::rustls::crypto::ring::default_provider().install_default();
    let mut connect = async_nats::ConnectOptions::new()
        .name(name)
        .connection_timeout(CONNECT_TIMEOUT)
        .request_timeout(Some(Duration::from_secs(5)))
        .ping_interval(Duration::from_secs(10))
        .custom_inbox_prefix(&options.nats_inbox_prefix)
        .reconnect_delay_callback(|attempt| {
            Duration::from_millis(50 * 2_u64.saturating_pow(u32::try_from(attempt).unwrap_or(u32::MAX).min(6)))
        })
        .event_callback(|event| async move {
            if let async_nats::Event::ServerError(error) = event {
                // What may not be done is answered by silence: this is the only word about it.
                tracing::warn!(%error, "bus.refused");
            } else {
                tracing::info!(%event, "bus.connection");
            }
        });
    let unreadable = |path: &Path| {
        let path = path.display().to_string();
        |source| ConnectError::Credentials { path, source }
    };
    if let Some(path) = &options.nats_creds {
        connect = connect.credentials_file(path).await.map_err(unreadable(path))?;
    }
    if let Some(path) = &options.nats_nkey {
        let seed = std::fs::read_to_string(path).and_then(|text| accounts::seed_in(&text)).map_err(unreadable(path))?;
        connect = connect.nkey(seed);
    }
    if let Some(path) = &options.nats_ca {
        // Who names an authority does not want to be talked into a connection without one.
        connect = connect.add_root_certificates(path.clone()).require_tls(true);
    }
    match (&options.nats_cert, &options.nats_key) {
        (Some(certificate), Some(key)) => {
            connect = connect.add_client_certificate(certificate.clone(), key.clone()).require_tls(true);
        }
        (None, None) => {}
        (Some(_), None) | (None, Some(_)) => return Err(ConnectError::HalfCertificate),
    }
    let servers: Vec<&str> = options.nats.split(',').map(str::trim).collect();
    let client = connect.connect(servers).await.map_err(|source| {
        let url = without_secrets(&options.nats);
        if is_tls(&source) {
            ConnectError::Tls { url, source }
        } else if source.kind() == ConnectErrorKind::AuthorizationViolation {
            ConnectError::Unauthorized { url, source }
        } else {
            ConnectError::Unreachable { url, source }
        }
    })?;
    let mut context = jetstream::new(client.clone());
    context.set_timeout(Duration::from_secs(5));
    Ok(Bus { client, context })
}

/// Whether TLS is what failed: the client library says so only where the fault is its own.
fn is_tls(error: &async_nats::ConnectError) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        // An I/O error is transparent: what it wraps is not its source.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if wrapped.is_some_and(|wrapped| wrapped.is::<async_nats::rustls::Error>())
            || error.is::<async_nats::rustls::Error>()
        {
            return true;
        }
        cause = error.source();
    }
    error.kind() == ConnectErrorKind::Tls
}

/// A URL, or several, as they may be logged.
pub fn without_secrets(text: &str) -> String {
    if !text.contains('@') {
        return text.to_owned();
    }
    let one = |text: &str| match (url::Url::parse(text), text.rsplit_once('@')) {
        (Ok(mut url), _) => {
            let hidden = url.set_password(None).and_then(|()| url.set_username(""));
            if hidden.is_ok() { url.to_string() } else { "(a URL)".to_owned() }
        }
        (Err(_), Some((_, host))) => host.to_owned(),
        // Half of a password with a comma in it looks like this.
        (Err(_), None) => "(a URL)".to_owned(),
    };
    text.split(',').map(|text| one(text.trim())).collect::<Vec<_>>().join(",")
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
    /// In a cluster, what has no leader yet answers nothing, so who only looks looks again.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn api(&self, subject: &str, request: &Value) -> Result<Value, ApiError> {
        let only_looks = subject.split('.').any(|token| token == "INFO" || token == "LIST");
        let mut looks = Looks::default();
        loop {
            match self.ask(subject, request).await {
                Err(error) if only_looks && error.timed_out() && looks.after_silence() => {}
                outcome => return outcome,
            }
        }
    }

    async fn ask(&self, subject: &str, request: &Value) -> Result<Value, ApiError> {
        // Some requests must have a body and some must not.
        let body = if request.is_null() { Bytes::new() } else { request.to_string().into() };
        let asked = Request::new().payload(body).timeout(Some(API_TIMEOUT));
        let answer = self.client.send_request(format!("{API_PREFIX}{subject}"), asked).await.map_err(|error| {
            let timed_out = error.kind() == RequestErrorKind::TimedOut;
            ApiError::Unanswered { subject: subject.to_owned(), timed_out, source: Box::new(error) }
        })?;
        let answer: Value = serde_json::from_slice(&answer.payload).map_err(|error| ApiError::Unanswered {
            subject: subject.to_owned(),
            timed_out: false,
            source: Box::new(error),
        })?;
        match answer.get("error") {
            None => Ok(answer),
            Some(error) => Err(api_refusal(subject, error)),
        }
    }

    /// Finds out what kind of account this is: a tenant's has no JetStream of its own.
    ///
    /// # Errors
    /// [`ApiError`] when nobody answers.
    pub async fn access(&self) -> Result<Access, ApiError> {
        match self.api("INFO", &Value::Null).await {
            Ok(_) => Ok(Access::Platform),
            Err(error) if error.code() == Some(NO_JETSTREAM_IN_ACCOUNT) => Ok(Access::Tenant),
            Err(error) => Err(error),
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

fn api_refusal(subject: &str, error: &Value) -> ApiError {
    let code = error.get("err_code").and_then(Value::as_u64).unwrap_or_default();
    let mut description = error.get("description").and_then(Value::as_str).unwrap_or("unknown").to_owned();
    if code == STORAGE_PROMISED {
        description
            .push_str("; give the server's disk more room or raise jetstream.max_file_store in its configuration");
    }
    ApiError::Refused { subject: subject.to_owned(), code, description }
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
        let subject = subject.to_owned();
        return Err(match code {
            // One code for all of a stream's limits; only the words say which.
            STORE_FAILED if description.contains("per subject") => PublishError::QuotaReached { subject },
            STORE_FAILED if description.starts_with("maximum ") => PublishError::StreamFull { subject, description },
            _ => PublishError::Refused { subject, code, description },
        });
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

/// How often a question may still be asked again.
#[derive(Debug)]
pub(crate) struct Looks {
    left: u32,
}

impl Default for Looks {
    fn default() -> Self {
        Self { left: LOOKS_AGAIN_MAX }
    }
}

impl Looks {
    /// Whether to ask again after an error, told by its words as async-nats tells it; waits if that was said at once.
    pub(crate) async fn again(&mut self, error: &str) -> bool {
        if error.contains("timed out") {
            return self.after_silence();
        }
        let nobody_there = error.contains("503") && self.left > 0;
        if nobody_there {
            self.left -= 1;
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        nobody_there
    }

    fn after_silence(&mut self) -> bool {
        let left = self.left.checked_sub(LOOKS_PER_SILENCE);
        self.left = left.unwrap_or_default();
        left.is_some()
    }
}

/// Looks, and again if nobody answers: in a cluster, what has lost its leader says nothing until it has another.
///
/// # Errors
/// Those of `once`.
pub async fn look<T, E, F>(mut once: impl FnMut() -> F) -> Result<T, Box<dyn std::error::Error + Send + Sync>>
where
    F: Future<Output = Result<T, E>>,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut looks = Looks::default();
    loop {
        match once().await.map_err(Into::into) {
            Ok(found) => return Ok(found),
            Err(error) => {
                if !looks.again(&chain(&*error)).await {
                    return Err(error);
                }
            }
        }
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

/// Headers of an event that must not come when there is one on `subject`.
pub fn only_without(mut headers: HeaderMap, subject: String) -> HeaderMap {
    headers.insert(header::EXPECTED_LAST_SUBJECT, subject);
    only_one_on_subject(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_reach_logs() {
        assert_eq!(without_secrets("nats://me:secret@host:4222"), "nats://host:4222");
        assert!(!without_secrets("me:secret@host").contains("secret"));
        assert_eq!(without_secrets("file:///data/images"), "file:///data/images");
        assert_eq!(without_secrets("nats://a:s@one:1,nats://b:s@two:2"), "nats://one:1,nats://two:2");
        assert!(!without_secrets("nats://me:sec,ret@host:4222").contains("sec"));
    }

    #[test]
    fn a_server_that_promises_no_more_storage_is_told_with_what_to_do() {
        let error = serde_json::json!({"err_code": 10047, "description": "insufficient storage resources available"});
        let told = api_refusal("STREAM.CREATE.DARKROOM_EV", &error).to_string();
        assert!(told.contains("DARKROOM_EV") && told.contains("max_file_store"), "{told}");
    }

    #[test]
    fn a_stream_that_is_full_is_told_from_a_tenant_that_is() {
        let answer = |code: u64, description: &str| {
            let answer = serde_json::json!({"error": {"code": 503, "err_code": code, "description": description}});
            publish_answer("s", answer.to_string().as_bytes()).unwrap_err()
        };
        assert!(matches!(answer(10077, "maximum messages per subject exceeded"), PublishError::QuotaReached { .. }));
        for full in ["maximum messages exceeded", "maximum bytes exceeded"] {
            assert!(matches!(answer(10077, full), PublishError::StreamFull { .. }), "{full}");
        }
        assert!(matches!(answer(10077, "error writing to disk"), PublishError::Refused { .. }));
        assert!(matches!(answer(10054, "message size exceeds maximum allowed"), PublishError::Refused { .. }));
        assert!(matches!(answer(10164, "wrong last sequence: 3"), PublishError::WrongLastSequence { .. }));
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(version_numbers("2.15.1"), (2, 15, 1));
        assert_eq!(version_numbers("2.12.0-RC.1"), (2, 12, 0));
        assert!(version_numbers("2.9.25") < SERVER_VERSION_MIN);
    }
}
