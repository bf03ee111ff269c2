//! The webhook function: tells events of jobs to the receivers that their requests name.
//!
//! In two steps, each at least once, so that neither slows the other down or loses what it cannot do: `collect` turns
//! events into deliveries, in a stream of their own that outlives events and records; `deliver` makes the attempts. When
//! to try again is [`crate::sched::delivery`]'s to say. It is never in the way of a job: of jobs it only reads.

pub mod again;
mod attempt;
mod collect;
mod deliver;
pub mod keep;
mod progress;

use std::sync::Arc;
use std::time::Duration;

use async_nats::{HeaderMap, HeaderValue};
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::job::{Fault, FaultCode, JobId, Tenant, Undelivered, WebhookFormat, WebhookUrl};
use crate::sched::delivery::{Room, Schedule};
use crate::wire::{header, subject};

use super::bus::{Bus, PublishError};
use super::clock::Clock;
use super::config::parse_duration;
use super::guard::AddressGuard;
use super::metrics::WebhookMetrics;
use super::telemetry;

/// After what failed on the bus.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What the function is told once.
#[derive(Clone, Debug, clap::Args)]
pub struct WebhookOptions {
    /// Hosts, addresses and networks that webhooks may go to although they are not on the public internet, with http too;
    /// separated by commas, as `localhost,10.1.0.0/16`
    #[arg(long, env = "DARKROOM_WEBHOOK_ALLOW", default_value = "", value_name = "HOSTS")]
    pub webhook_allow: AddressGuard,
    /// Waits between the attempts of one delivery, separated by commas; when all are over it is given up
    #[arg(
        long,
        env = "DARKROOM_WEBHOOK_RETRIES",
        value_delimiter = ',',
        default_values = ["5s", "5m", "30m", "2h", "5h", "10h", "14h", "20h", "24h"],
        value_parser = parse_duration,
        value_name = "DURATIONS"
    )]
    pub webhook_retries: Vec<Duration>,
    /// How long one attempt may take, from the look-up of the host to the status of the answer; 25s at most
    #[arg(
        long,
        env = "DARKROOM_WEBHOOK_TIMEOUT",
        default_value = "20s",
        value_parser = parse_timeout,
        value_name = "DURATION"
    )]
    pub webhook_timeout: Duration,
    /// Where clients reach the gateway, for links in webhooks that have Replicate's form
    #[arg(long, env = "DARKROOM_GATEWAY_URL", default_value = "", value_name = "URL")]
    pub gateway_url: String,
    /// Attempts under way, at the most
    #[arg(long, env = "DARKROOM_WEBHOOK_CONCURRENCY", default_value_t = 256, value_name = "N")]
    pub concurrency: usize,
    /// Of them for one tenant
    #[arg(long, env = "DARKROOM_WEBHOOK_CONCURRENCY_PER_TENANT", default_value_t = 64, value_name = "N")]
    pub concurrency_per_tenant: usize,
    /// Of them with one host
    #[arg(long, env = "DARKROOM_WEBHOOK_CONCURRENCY_PER_HOST", default_value_t = 8, value_name = "N")]
    pub concurrency_per_host: usize,
}

/// An attempt must end before its delivery is given to another, which is 30 s after it was given to this one.
fn parse_timeout(text: &str) -> Result<Duration, String> {
    let timeout = parse_duration(text).map_err(|error| error.to_string())?;
    if timeout <= Duration::from_secs(25) { Ok(timeout) } else { Err("must be at most 25s".to_owned()) }
}

impl WebhookOptions {
    fn room(&self) -> Room {
        Room {
            all: self.concurrency.max(1),
            tenant: self.concurrency_per_tenant.max(1),
            host: self.concurrency_per_host.max(1),
        }
    }

    fn schedule(&self) -> Schedule {
        Schedule { waits: self.webhook_retries.clone() }
    }
}

/// One event for one receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The id of the event, the same with every attempt.
    pub id: String,
    /// Whose job.
    pub tenant: Tenant,
    /// Which.
    pub job: JobId,
    /// Whom to tell.
    pub url: WebhookUrl,
    /// In which form.
    pub format: WebhookFormat,
    /// What.
    pub body: Bytes,
}

impl Delivery {
    /// Reads it from a message; `None` when it is none of ours.
    fn read(subject: &str, headers: Option<&HeaderMap>, body: &Bytes) -> Option<Self> {
        let (tenant, job) = subject::webhook_owner(subject)?;
        let text = |name: &str| headers?.get(name).map(HeaderValue::as_str);
        let url = text(header::WEBHOOK_URL)?.parse().ok()?;
        let id = text(header::WEBHOOK_EVENT)?.to_owned();
        let format =
            *WebhookFormat::ALL.iter().find(|format| text(header::CONTENT_TYPE) == Some(media_type(**format)))?;
        Some(Self { id, tenant, job, url, format, body: body.clone() })
    }

    fn headers(&self, message_id: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::MESSAGE_ID, message_id);
        headers.insert(header::CONTENT_TYPE, media_type(self.format));
        headers.insert(header::WEBHOOK_URL, self.url.as_str());
        headers.insert(header::WEBHOOK_EVENT, &*self.id);
        headers
    }

    /// Puts it among those on their way; the same message id again puts nothing there.
    async fn send(&self, bus: &Bus, message_id: &str) -> Result<(), PublishError> {
        let to = subject::webhook(&self.tenant, &self.job);
        bus.publish(&to, self.headers(message_id), self.body.clone()).await.map(|_| ())
    }

    /// Keeps it where operators find it.
    async fn give_up(
        &self,
        bus: &Bus,
        metrics: &WebhookMetrics,
        message_id: &str,
        why: Undelivered,
        end: &End,
    ) -> Result<(), Fault> {
        let mut headers = self.headers(message_id);
        headers.insert(header::DEAD_LETTER_CODE, why.as_str());
        headers.insert(header::DEAD_LETTER_MESSAGE, end.words.replace(['\r', '\n'], " "));
        headers.insert(header::DEAD_LETTER_ATTEMPTS, end.attempts.to_string());
        bus.publish(&subject::dead_webhook(&self.tenant, &self.job), headers, self.body.clone()).await?;
        metrics.given_up(why.as_str());
        tracing::warn!(
            id = self.id,
            host = attempt::host_of(&self.url),
            why = why.as_str(),
            words = end.words,
            "webhook.given_up"
        );
        Ok(())
    }
}

/// What a receiver is told that the body is.
fn media_type(format: WebhookFormat) -> &'static str {
    match format {
        WebhookFormat::CloudEvents => header::CONTENT_TYPE_CLOUD_EVENT,
        WebhookFormat::Replicate => header::CONTENT_TYPE_JSON,
    }
}

/// How a delivery ended that was given up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct End {
    attempts: u32,
    /// What came of the last attempt.
    words: String,
}

/// Collects and delivers until `stop`.
///
/// # Errors
/// A `Fatal` fault when TLS cannot be set up.
pub async fn run(bus: Bus, options: WebhookOptions, stop: CancellationToken) -> Result<(), Fault> {
    let fatal = |error: reqwest::Error| Fault::fatal(FaultCode::FetchFailed, super::bus::chain(&error));
    let client = options.webhook_allow.client().map_err(fatal)?;
    let metrics = WebhookMetrics::new(&telemetry::meter());
    tracing::info!("webhook.ready");
    let collecting = collect::run(&bus, &metrics, &options.gateway_url, &stop);
    let courier = deliver::Courier::new(bus.clone(), Clock::start(), options.clone(), client, metrics.clone());
    let courier = Arc::new(courier);
    tokio::join!(collecting, deliver::run(&courier, &stop), progress::run(&courier, &stop));
    Ok(())
}
