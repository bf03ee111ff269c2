//! Where a job's events are told to outside of the bus, and why they were not.
//!
//! Whether a host may be reached is not known here: that is asked when it is about to be.

use std::str::FromStr;

use super::id::by_name;
use super::limits::WEBHOOK_URL_BYTES_MAX;

/// An event that a webhook can be told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WebhookEvent {
    /// Denoising begins.
    Started,
    /// Some of it is done: now and then, and not surely.
    Progress,
    /// Every image is stored.
    Completed,
    /// There will be no image.
    Failed,
    /// Somebody stopped it.
    Cancelled,
}

impl WebhookEvent {
    /// Every one.
    pub const ALL: &'static [Self] = &[Self::Started, Self::Progress, Self::Completed, Self::Failed, Self::Cancelled];
    /// Those that end a job: what a webhook is told of that names no events.
    pub const TERMINAL: &'static [Self] = &[Self::Completed, Self::Failed, Self::Cancelled];

    /// The name on the wire, which is that of the event.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Progress => "progress",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// The URL of a webhook: http or https, a host, no user name and no password.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WebhookUrl(String);

/// Text that is no such URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an http or https URL of up to {WEBHOOK_URL_BYTES_MAX} bytes, without user name and password")]
pub struct InvalidWebhookUrl;

impl WebhookUrl {
    /// As the request has it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for WebhookUrl {
    type Err = InvalidWebhookUrl;

    fn from_str(text: &str) -> Result<Self, InvalidWebhookUrl> {
        let (scheme, rest) = text.split_once("://").ok_or(InvalidWebhookUrl)?;
        let is_http = ["http", "https"].iter().any(|allowed| scheme.eq_ignore_ascii_case(allowed));
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        // Browsers read a backslash as a slash, so it could hide where the host ends.
        let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
        let has_host = !authority.is_empty() && !authority.starts_with(':') && !authority.contains('@');
        if is_http && is_plain && has_host && text.len() <= WEBHOOK_URL_BYTES_MAX {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidWebhookUrl)
        }
    }
}

/// The form in which a webhook is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WebhookFormat {
    /// The event, as on the bus.
    #[default]
    CloudEvents,
    /// The job as one of Replicate's predictions.
    Replicate,
}

impl WebhookFormat {
    /// Every one.
    pub const ALL: &'static [Self] = &[Self::CloudEvents, Self::Replicate];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CloudEvents => "cloudevents",
            Self::Replicate => "replicate",
        }
    }
}

/// Whom to tell of a job, and of what.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Webhook {
    /// Whom.
    pub url: WebhookUrl,
    /// Of what, each once; at least one.
    pub events: Vec<WebhookEvent>,
    /// How.
    pub format: WebhookFormat,
}

/// Why an event was not told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Undelivered {
    /// As often tried as it may be.
    Exhausted,
    /// The receiver said that it is gone for good.
    Gone,
    /// The receiver had said so before.
    Disabled,
    /// The URL points to where strangers have no business.
    Refused,
    /// Too many others wait.
    QueueFull,
}

impl Undelivered {
    /// Every one.
    pub const ALL: &'static [Self] = &[Self::Exhausted, Self::Gone, Self::Disabled, Self::Refused, Self::QueueFull];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exhausted => "attempts_exhausted",
            Self::Gone => "endpoint_gone",
            Self::Disabled => "endpoint_disabled",
            Self::Refused => "url_refused",
            Self::QueueFull => "queue_full",
        }
    }
}

by_name!(WebhookEvent);
by_name!(WebhookFormat);
by_name!(Undelivered);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_urls_of_web_servers_are_webhooks() {
        for good in [
            "https://example.com",
            "https://example.com/hook?key=1#part",
            "HTTPS://EXAMPLE.com:8443/",
            "http://127.0.0.1:9/",
            "https://[::1]:9/a@b",
        ] {
            assert_eq!(good.parse::<WebhookUrl>().unwrap().as_str(), good);
        }
        let long = format!("https://example.com/{}", "a".repeat(WEBHOOK_URL_BYTES_MAX));
        for bad in [
            "",
            "example.com",
            "https:example.com",
            "https://",
            "https:///path",
            "https://:80/",
            "https://user@example.com/",
            "https://user:secret@example.com/",
            "https://example.com\\@inside/",
            "https://example.com/a b",
            "https://example.com/\r\nhost: inside",
            "https://exämple.com/",
            "ftp://example.com/",
            "file:///etc/passwd",
            "javascript://example.com/",
            long.as_str(),
        ] {
            assert_eq!(bad.parse::<WebhookUrl>(), Err(InvalidWebhookUrl), "{bad:?}");
        }
    }

    #[test]
    fn names_read_back() {
        for event in WebhookEvent::ALL {
            assert_eq!(event.as_str().parse(), Ok(*event));
        }
        for format in WebhookFormat::ALL {
            assert_eq!(format.as_str().parse(), Ok(*format));
        }
        for why in Undelivered::ALL {
            assert_eq!(why.as_str().parse(), Ok(*why));
        }
    }
}
