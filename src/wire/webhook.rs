//! What webhooks carry, and what is remembered of them: bodies, waits that receivers ask for, attempts, endpoints.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::job::{WebhookEvent, WebhookUrl};

use super::request::hexadecimal;
use super::time::{parse_rfc3339, rfc3339};

/// What `data.truncated` is the list of.
const TRUNCATED: &str = "truncated";
/// Characters that are left of an error's message in a body that is too large.
const MESSAGE_CHARACTERS_MAX: usize = 1000;

/// The event of this `kind`, the last token of its subject, if webhooks are told of it.
pub fn event_of(kind: &str) -> Option<WebhookEvent> {
    kind.parse().ok()
}

/// The event as it is told: itself, or with as much left out as it must to have at most `bytes_max` bytes. `data.truncated`
/// then says what: metadata goes first, links last. `None` when the bytes are no event.
pub fn body(event: &[u8], bytes_max: usize) -> Option<Vec<u8>> {
    let mut value: Value = serde_json::from_slice(event).ok()?;
    value.get("id")?.as_str()?;
    if event.len() <= bytes_max {
        return Some(event.to_vec());
    }
    let mut truncated = Vec::new();
    for (name, leave_out) in LEFT_OUT {
        let data = value.get_mut("data")?;
        if leave_out(data) {
            truncated.push(name);
            data[TRUNCATED] = json!(truncated);
            let bytes = serde_json::to_vec(&value).ok()?;
            if bytes.len() <= bytes_max {
                return Some(bytes);
            }
        }
    }
    None
}

/// What can be left out, in this order; each says whether there was anything.
type LeaveOut = fn(&mut Value) -> bool;
const LEFT_OUT: [(&str, LeaveOut); 6] = [
    ("metadata", |data| removed(data, "metadata")),
    ("warnings", |data| removed(data, "warnings")),
    ("error.violations", |data| data.get_mut("error").is_some_and(|error| removed(error, "violations"))),
    ("error.message", |data| {
        let Some(Value::String(message)) = data.pointer_mut("/error/message") else { return false };
        let Some((end, _)) = message.char_indices().nth(MESSAGE_CHARACTERS_MAX) else { return false };
        message.truncate(end);
        message.push('…');
        true
    }),
    ("images.url", |data| {
        let Some(images) = data.get_mut("images").and_then(Value::as_array_mut) else { return false };
        images.iter_mut().fold(false, |any, image| removed(image, "url") | any)
    }),
    ("data", |data| {
        *data = json!({});
        true
    }),
];

fn removed(from: &mut Value, name: &str) -> bool {
    from.as_object_mut().is_some_and(|fields| fields.remove(name).is_some())
}

/// The id of an event in its body.
pub fn id_of(body: &[u8]) -> Option<String> {
    let event: Value = serde_json::from_slice(body).ok()?;
    Some(event.get("id")?.as_str()?.to_owned())
}

/// Reads the header `Retry-After`: seconds, or a time. A time that is over is now.
pub fn retry_after(text: &str, unix_ms: i64) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let time = jiff::fmt::rfc2822::parse(text).ok()?.timestamp().as_millisecond();
    Some(Duration::from_millis(u64::try_from(time.saturating_sub(unix_ms)).unwrap_or_default()))
}

/// What names an endpoint of a tenant: a digest of its URL, which may hold secrets and what keys cannot.
pub fn endpoint_key(url: &WebhookUrl) -> String {
    let mut digest = hexadecimal(&Sha256::digest(url.as_str()));
    digest.truncate(32);
    digest
}

/// From 0 to 1, the same for the same attempt of the same event: spreads retries without random numbers.
pub fn jitter(id: &str, attempt: u32) -> f64 {
    let digest = Sha256::digest(format!("{id} {attempt}"));
    f64::from(u16::from_be_bytes([digest[0], digest[1]])) / f64::from(u16::MAX)
}

/// How far a delivery has come that is not over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Attempts that failed.
    pub attempts: u32,
    /// When the next one is due, in milliseconds since the Unix epoch.
    pub next_unix_ms: i64,
    /// What came of the last one.
    pub last: String,
    /// The id of the event, for people.
    #[serde(default)]
    pub id: String,
    /// The receiver's host and port, for people.
    #[serde(default)]
    pub host: String,
}

impl Progress {
    /// As it is kept.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads what [`Self::encode`] wrote. What cannot be read is no progress: then there are more attempts.
    pub fn decode(bytes: &[u8]) -> Self {
        serde_json::from_slice(bytes).unwrap_or_default()
    }

    /// How long it is until the next attempt is due.
    pub fn wait(&self, unix_ms: i64) -> Option<Duration> {
        let wait = u64::try_from(self.next_unix_ms.saturating_sub(unix_ms)).ok()?;
        (wait > 0).then(|| Duration::from_millis(wait))
    }
}

/// An endpoint that is told nothing, until an operator enables it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DisabledEndpoint {
    /// Its URL.
    pub url: String,
    /// Since when, in milliseconds since the Unix epoch.
    pub unix_ms: i64,
}

#[derive(Serialize, Deserialize)]
struct DisabledDocument {
    url: String,
    since: String,
}

impl DisabledEndpoint {
    /// As it is kept.
    pub fn encode(&self) -> Vec<u8> {
        let document = DisabledDocument { url: self.url.clone(), since: rfc3339(self.unix_ms) };
        serde_json::to_vec(&document).unwrap_or_default()
    }

    /// Reads what [`Self::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let document: DisabledDocument = serde_json::from_slice(bytes).ok()?;
        Some(Self { url: document.url, unix_ms: parse_rfc3339(&document.since)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(data: &Value) -> Vec<u8> {
        serde_json::to_vec(&json!({"specversion": "1.0", "id": "t/j/completed", "data": data})).unwrap()
    }

    fn truncated(data: &Value, bytes_max: usize) -> (Value, usize) {
        let body = body(&event(data), bytes_max).unwrap();
        (serde_json::from_slice::<Value>(&body).unwrap()["data"].take(), body.len())
    }

    #[test]
    fn an_event_that_fits_is_told_byte_for_byte() {
        let data = json!({"metadata": {"a": "b".repeat(99)}, "images": [{"url": "https://x"}]});
        let whole = event(&data);
        assert_eq!(body(&whole, whole.len()), Some(whole.clone()));
        let (data, _) = truncated(&data, whole.len() - 1);
        assert_eq!(data, json!({"images": [{"url": "https://x"}], "truncated": ["metadata"]}));
    }

    #[test]
    fn what_is_too_large_loses_as_little_as_it_must_and_says_what() {
        let long = "ü".repeat(15_000);
        let violations: Vec<Value> = (0..9).map(|_| json!({"field": "a".repeat(2_000)})).collect();
        for (data, left_out) in [
            (json!({"metadata": {"a": long}, "model": "m"}), json!(["metadata"])),
            (json!({"metadata": {"a": 1}, "warnings": [long]}), json!(["metadata", "warnings"])),
            (json!({"error": {"message": "m", "violations": violations}}), Value::Null),
            (
                json!({"error": {"message": long, "violations": violations}}),
                json!(["error.violations", "error.message"]),
            ),
            (json!({"images": [{"key": "k", "url": long}, {"key": "l"}]}), json!(["images.url"])),
            (json!({"images": [{"key": long, "url": "u"}]}), json!(["images.url", "data"])),
        ] {
            let (told, bytes) = truncated(&data, 20_000);
            assert!(bytes <= 20_000, "{bytes} bytes");
            assert_eq!(told["truncated"], left_out);
        }
        let (told, _) = truncated(&json!({"error": {"code": "c", "message": long}}), 20_000);
        assert_eq!(
            (&told["error"]["code"], told["error"]["message"].as_str().unwrap().chars().count()),
            (&json!("c"), 1001)
        );
    }

    #[test]
    fn what_is_no_event_is_not_told() {
        for bytes in ["", "{}", "[]", "text", r#"{"id": 7, "data": {}}"#] {
            assert_eq!(body(bytes.as_bytes(), 20_000), None, "{bytes}");
        }
        let envelope = serde_json::to_vec(&json!({"id": "x".repeat(300), "data": {}})).unwrap();
        assert_eq!(body(&envelope, 200), None, "an envelope that does not fit by itself");
        assert_eq!(id_of(&event(&json!({}))).as_deref(), Some("t/j/completed"));
    }

    #[test]
    fn retry_after_is_seconds_or_a_time() {
        let now = 1_445_412_480_000; // Wed, 21 Oct 2015 07:28:00 GMT
        for (text, seconds) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("Wed, 21 Oct 2015 07:28:30 GMT", Some(30)),
            ("Wed, 21 Oct 2015 07:27:00 GMT", Some(0)),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
            ("99999999999999999999999", None),
        ] {
            assert_eq!(retry_after(text, now), seconds.map(Duration::from_secs), "{text:?}");
        }
    }

    #[test]
    fn what_is_remembered_reads_back() {
        let progress = Progress {
            attempts: 3,
            next_unix_ms: 1_795_000_000_123,
            last: "answered 500".into(),
            id: "t/j/failed".into(),
            host: "example.com:443".into(),
        };
        assert_eq!(Progress::decode(&progress.encode()), progress);
        assert_eq!(Progress::decode(b"damaged"), Progress::default());
        assert_eq!(progress.wait(1_795_000_000_000), Some(Duration::from_millis(123)));
        assert_eq!((progress.wait(1_795_000_000_123), progress.wait(i64::MAX)), (None, None));
        let endpoint = DisabledEndpoint { url: "https://example.com".into(), unix_ms: 1_795_000_000_123 };
        assert_eq!(DisabledEndpoint::decode(&endpoint.encode()), Some(endpoint));
        assert_eq!(DisabledEndpoint::decode(b"{}"), None);
    }

    #[test]
    fn jitter_is_spread_over_its_range_and_the_same_every_time() {
        let all: Vec<f64> = (1..=1000).map(|attempt| jitter("t/j/completed", attempt)).collect();
        assert!(all.iter().all(|jitter| (0.0..=1.0).contains(jitter)));
        let mean = all.iter().sum::<f64>() / 1000.0;
        assert!((mean - 0.5).abs() < 0.05, "{mean}");
        assert_eq!(jitter("t/j/completed", 7).to_bits(), all[6].to_bits());
    }
}
