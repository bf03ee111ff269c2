//! From deliveries to attempts: as many at once as there is room for, each job's in their order.
//!
//! A delivery is acknowledged when its outcome is known and, where it was given up, kept. Who is killed in between leaves it
//! to the end of its lease, and it is told once more under the same id.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::Message;
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::job::{Fault, FaultCode, Undelivered};
use crate::sched::delivery::{Next, Outcome, Schedule, Slots, turned_away};
use crate::wire::webhook::{Progress, jitter};
use crate::wire::{header, subject};

use super::super::bus::{Bus, chain};
use super::super::clock::Clock;
use super::super::consume::{PULL_FOR, again_until, consumer, lost};
use super::super::metrics::WebhookMetrics;
use super::attempt::{Attempted, Post, attempt, host_of};
use super::{AGAIN_AFTER, Delivery, End, WebhookOptions, keep, media_type};

/// Deliveries that are asked for at once.
const BATCH: usize = 64;
/// Time that attempts get when the function is to end.
const GRACE: Duration = Duration::from_secs(5);
/// After what failed on the bus, which may have been after the attempt.
const AFTER_FAULT: Duration = Duration::from_secs(5);
/// How much later than an earlier one of its job a delivery is tried.
const AFTER_EARLIER: Duration = Duration::from_millis(250);
/// "There is no such message."
const NO_MESSAGE: u64 = 10037;

/// Who delivers.
#[derive(Debug)]
pub(super) struct Courier {
    pub(super) bus: Bus,
    pub(super) clock: Clock,
    options: WebhookOptions,
    schedule: Schedule,
    client: reqwest::Client,
    metrics: WebhookMetrics,
    slots: Mutex<Slots>,
    freed: Notify,
}

/// What the server is told of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settlement {
    /// It is over.
    Done,
    /// It is to come back.
    Later(Duration),
}

/// Room for one attempt, given back when dropped.
pub(super) struct Slot {
    courier: Arc<Courier>,
    tenant: String,
    host: String,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.courier.slots().give_back(&self.tenant, &self.host);
        self.courier.freed.notify_one();
    }
}

/// Delivers until `stop`, and a little longer what is under way.
pub(super) async fn run(courier: &Arc<Courier>, stop: &CancellationToken) {
    let attempts = TaskTracker::new();
    again_until(stop, "webhook deliveries", AGAIN_AFTER, async || take(courier, &attempts).await).await;
    attempts.close();
    if tokio::time::timeout(GRACE, attempts.wait()).await.is_err() {
        tracing::warn!(attempts = attempts.len(), "webhook.left: they are made again when their leases are over");
    }
}

async fn take(courier: &Arc<Courier>, attempts: &TaskTracker) -> Result<(), Fault> {
    let consumer = consumer(&courier.bus, subject::STREAM_WEBHOOKS, subject::CONSUMER_WEBHOOK).await?;
    loop {
        let free = courier.slots().free();
        if free == 0 {
            courier.freed.notified().await;
            continue;
        }
        let pulled = consumer.batch().max_messages(free.min(BATCH)).expires(PULL_FOR).messages().await;
        let mut messages = pulled.map_err(|error| lost(chain(&error)))?;
        while let Some(message) = messages.next().await {
            let message = message.map_err(|error| lost(chain(&*error)))?;
            let Some(delivery) = Delivery::read(&message.subject, message.headers.as_ref(), &message.payload) else {
                tracing::warn!(subject = %message.subject, "webhook.unreadable");
                courier.settle(&message, Settlement::Done).await;
                continue;
            };
            let (courier, slot) = (Arc::clone(courier), courier.slot_for(&delivery));
            attempts.spawn(async move {
                let settlement = match slot {
                    Some(_slot) => courier.deliver(&delivery, &message).await,
                    None => Settlement::Later(turned_away(delivered(&message))),
                };
                courier.settle(&message, settlement).await;
            });
        }
    }
}

fn delivered(message: &Message) -> i64 {
    message.info().map_or(1, |info| info.delivered)
}

impl Courier {
    pub(super) fn new(
        bus: Bus,
        clock: Clock,
        options: WebhookOptions,
        client: reqwest::Client,
        metrics: WebhookMetrics,
    ) -> Self {
        let (schedule, slots) = (options.schedule(), Mutex::new(Slots::new(options.room())));
        Self { bus, clock, options, schedule, client, metrics, slots, freed: Notify::new() }
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn slot_for(self: &Arc<Self>, delivery: &Delivery) -> Option<Slot> {
        let (tenant, host) = (delivery.tenant.to_string(), host_of(&delivery.url));
        let taken = self.slots().take(&tenant, &host);
        taken.then(|| Slot { courier: Arc::clone(self), tenant, host })
    }

    async fn settle(&self, message: &Message, settlement: Settlement) {
        let Some(reply) = &message.reply else { return };
        let payload: Bytes = match settlement {
            Settlement::Done => "+ACK".into(),
            Settlement::Later(delay) => format!("-NAK {{\"delay\":{}}}", delay.as_nanos()).into(),
        };
        if let Err(fault) = self.bus.settle(reply, payload).await {
            // Its lease runs out, and it comes back.
            tracing::warn!(%fault, "webhook.settle");
        }
    }

    async fn deliver(&self, delivery: &Delivery, message: &Message) -> Settlement {
        let Ok(info) = message.info() else { return Settlement::Done };
        let sequence = info.stream_sequence;
        let progress = match keep::progress(&self.bus, sequence).await {
            Ok(progress) => progress,
            Err(fault) => {
                tracing::warn!(%fault, id = delivery.id, "webhook.progress");
                return Settlement::Later(AFTER_FAULT);
            }
        };
        let was_tried = progress.attempts > 0;
        match self.try_to_deliver(delivery, sequence, info.delivered, progress).await {
            Ok(Settlement::Done) if was_tried => {
                if let Err(fault) = keep::forget_progress(&self.bus, sequence).await {
                    tracing::warn!(%fault, id = delivery.id, "webhook.progress");
                }
                Settlement::Done
            }
            Ok(settlement) => settlement,
            Err(fault) => {
                tracing::warn!(%fault, id = delivery.id, "webhook.deliver");
                Settlement::Later(AFTER_FAULT)
            }
        }
    }

    async fn try_to_deliver(
        &self,
        delivery: &Delivery,
        sequence: u64,
        delivered: i64,
        progress: Progress,
    ) -> Result<Settlement, Fault> {
        // A server that lost count delivers at once what was to come back later.
        if let Some(wait) = progress.wait(self.clock.unix_ms()) {
            return Ok(Settlement::Later(wait));
        }
        if let Some(earlier) = self.earlier_of_its_job(delivery, sequence).await? {
            let of_earlier = keep::progress(&self.bus, earlier).await?.wait(self.clock.unix_ms());
            let soon = turned_away(delivered);
            return Ok(Settlement::Later(of_earlier.map_or(soon, |wait| wait.saturating_add(AFTER_EARLIER))));
        }
        let dead_id = header::dead_webhook_id(sequence);
        if keep::is_disabled(&self.bus, &delivery.tenant, &delivery.url).await? {
            let end = End { attempts: progress.attempts, words: "the endpoint had answered 410 before".to_owned() };
            delivery.give_up(&self.bus, &self.metrics, &dead_id, Undelivered::Disabled, &end).await?;
            return Ok(Settlement::Done);
        }
        let attempts = progress.attempts.saturating_add(1);
        let Attempted { outcome, words } = self.attempt(delivery).await?;
        let next = self.schedule.next(attempts, outcome, jitter(&delivery.id, attempts));
        let (id, host) = (&delivery.id, host_of(&delivery.url));
        match next {
            Next::Delivered => {
                tracing::debug!(id, host, attempts, "webhook.delivered");
                Ok(Settlement::Done)
            }
            Next::Retry { after } => {
                tracing::info!(id, host, attempts, words, after_s = after.as_secs_f64(), "webhook.failed");
                let after_ms = i64::try_from(after.as_millis()).unwrap_or(i64::MAX);
                let next_unix_ms = self.clock.unix_ms().saturating_add(after_ms);
                let progress = Progress { attempts, next_unix_ms, last: words, id: id.clone(), host };
                keep::set_progress(&self.bus, sequence, &progress, after).await?;
                Ok(Settlement::Later(after))
            }
            Next::GivenUp(why) => {
                if why == Undelivered::Gone {
                    keep::disable(&self.bus, &self.clock, &delivery.tenant, &delivery.url).await?;
                }
                delivery.give_up(&self.bus, &self.metrics, &dead_id, why, &End { attempts, words }).await?;
                Ok(Settlement::Done)
            }
        }
    }

    /// Makes one attempt, signed.
    pub(super) async fn attempt(&self, delivery: &Delivery) -> Result<Attempted, Fault> {
        let secrets = keep::secrets(&self.bus, &delivery.tenant).await?;
        let unix_ms = self.clock.unix_ms();
        let post = Post {
            id: delivery.id.clone(),
            unix_ms,
            signatures: secrets.sign(&delivery.id, unix_ms, &delivery.body),
            media_type: media_type(delivery.format),
            body: delivery.body.clone(),
        };
        let WebhookOptions { webhook_allow: guard, webhook_timeout: timeout, .. } = &self.options;
        let attempted = attempt(&self.client, guard, &delivery.url, post, *timeout).await;
        self.metrics.attempted(match attempted.outcome {
            Outcome::Answered { status: 200..=299, .. } => "delivered",
            Outcome::Answered { .. } => "answered",
            Outcome::Silent => "silent",
            Outcome::Refused => "refused",
        });
        Ok(attempted)
    }

    /// What of the same job is on its way that came before, by its sequence. What is over is removed, so the first on the
    /// subject is the next; the stream's leader knows.
    async fn earlier_of_its_job(&self, delivery: &Delivery, sequence: u64) -> Result<Option<u64>, Fault> {
        let subject = subject::webhook(&delivery.tenant, &delivery.job);
        let question = json!({ "seq": 1, "next_by_subj": subject });
        match self.bus.api(&format!("STREAM.MSG.GET.{}", subject::STREAM_WEBHOOKS), &question).await {
            Ok(answer) => Ok(answer["message"]["seq"].as_u64().filter(|first| *first < sequence)),
            Err(error) if error.code() == Some(NO_MESSAGE) => Ok(None),
            Err(error) => Err(Fault::retry(FaultCode::BusFailed, chain(&error))),
        }
    }
}
