//! One attempt: a POST to a stranger. Of the answer only the head counts; its body is never read.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use url::Url;

use crate::job::WebhookUrl;
use crate::sched::delivery::Outcome;
use crate::wire::{header, webhook};

use super::super::bus::chain;
use super::super::guard::{AddressGuard, refusal};

/// What is sent.
#[derive(Clone, Debug)]
pub(super) struct Post {
    pub(super) id: String,
    /// When the attempt is made, in milliseconds since the Unix epoch.
    pub(super) unix_ms: i64,
    pub(super) signatures: String,
    pub(super) media_type: &'static str,
    pub(super) body: Bytes,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attempted {
    pub(super) outcome: Outcome,
    /// For people, without the URL.
    pub(super) words: String,
}

/// The host and port of a URL: the part that is no secret.
pub(super) fn host_of(url: &WebhookUrl) -> String {
    let host = |url: Url| {
        let port = url.port_or_known_default().unwrap_or_default();
        url.host_str().map(|host| format!("{host}:{port}"))
    };
    Url::parse(url.as_str()).ok().and_then(host).unwrap_or_default()
}

/// Sends it, and takes no longer than `timeout`.
pub(super) async fn attempt(
    client: &reqwest::Client,
    guard: &AddressGuard,
    url: &WebhookUrl,
    post: Post,
    timeout: Duration,
) -> Attempted {
    let refused = |words: String| Attempted { outcome: Outcome::Refused, words };
    let url = match Url::parse(url.as_str()) {
        Ok(url) => url,
        Err(error) => return refused(format!("the URL cannot be read: {error}")),
    };
    if let Err(reason) = guard.check(&url) {
        return refused(reason.to_string());
    }
    let request = client
        .post(url)
        .timeout(timeout)
        .header(CONTENT_TYPE, post.media_type)
        .header(header::WEBHOOK_ID, post.id)
        .header(header::WEBHOOK_TIMESTAMP, post.unix_ms.div_euclid(1000).to_string())
        .header(header::WEBHOOK_SIGNATURE, post.signatures)
        .body(post.body);
    // The answer is dropped with its body unread: that ends the connection of who has more to say.
    match request.send().await {
        Ok(answer) => {
            let status = answer.status();
            let retry_after = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
            let retry_after = retry_after.and_then(|text| webhook::retry_after(text, post.unix_ms));
            let outcome = Outcome::Answered { status: status.as_u16(), retry_after };
            Attempted { outcome, words: format!("answered {status}") }
        }
        Err(error) => match refusal(&error) {
            Some(reason) => refused(reason.to_string()),
            None if error.is_timeout() => {
                Attempted { outcome: Outcome::Silent, words: format!("no answer within {} s", timeout.as_secs_f64()) }
            }
            None => {
                Attempted { outcome: Outcome::Silent, words: format!("no answer: {}", chain(&error.without_url())) }
            }
        },
    }
}
