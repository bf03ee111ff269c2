//! Progress to who asked for it: now and then, once each, and never in the way of what is sure to be told.
//!
//! It comes from the bus as it happens. Nothing of it is kept: what does not arrive, or has no room, is lost.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Message;
use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::job::limits::WEBHOOK_BODY_BYTES_MAX;
use crate::job::{Fault, Webhook, WebhookEvent, WebhookFormat};
use crate::sched::delivery::Turns;
use crate::wire::{subject, webhook};

use super::super::bus::chain;
use super::super::consume::{again_until, lost};
use super::super::records;
use super::deliver::Courier;
use super::{AGAIN_AFTER, Delivery};

/// How often a receiver is told of one job.
const EVERY: Duration = Duration::from_secs(1);
/// Jobs that are known at once.
const JOBS_MAX: usize = 10_000;

/// Tells of progress until `stop`.
pub(super) async fn run(courier: &Arc<Courier>, stop: &CancellationToken) {
    again_until(stop, "webhook progress", AGAIN_AFTER, async || listen(courier).await).await;
}

async fn listen(courier: &Arc<Courier>) -> Result<(), Fault> {
    let group = subject::CONSUMER_WEBHOOK.to_owned();
    // Each message to one of all who tell.
    let subscribed = courier.bus.client.queue_subscribe(subject::ALL_PROGRESS, group).await;
    let mut messages = subscribed.map_err(|error| lost(chain(&error)))?;
    let mut turns = Turns::new(EVERY, JOBS_MAX);
    while let Some(message) = messages.next().await {
        let Some(delivery) = due(courier, &mut turns, &message).await else { continue };
        let Some(slot) = courier.slot_for(&delivery) else { continue };
        let courier = Arc::clone(courier);
        tokio::spawn(async move {
            let outcome = courier.attempt(&delivery).await;
            tracing::debug!(id = delivery.id, ?outcome, "webhook.progress");
            drop(slot);
        });
    }
    Err(lost("the subscription ended".to_owned()))
}

/// What is to be told because of a message, if anything.
async fn due(courier: &Courier, turns: &mut Turns<Option<Webhook>>, message: &Message) -> Option<Delivery> {
    let key = message.subject.as_str();
    let (tenant, job) = subject::progress_owner(key)?;
    if !turns.knows(key) {
        let record = records::look_at_leader(&courier.bus, &tenant, &job).await.ok()?.into_record()?.record;
        // Replicate's form has no such event.
        let wants = |webhook: &Webhook| {
            webhook.format == WebhookFormat::CloudEvents && webhook.events.contains(&WebhookEvent::Progress)
        };
        turns.meet(key, record.webhook.filter(wants), courier.clock.now());
    }
    let url = turns.take(key, courier.clock.now())?.as_ref()?.url.clone();
    let body = webhook::body(&message.payload, WEBHOOK_BODY_BYTES_MAX)?;
    let id = webhook::id_of(&body)?;
    Some(Delivery { id, tenant, job, url, format: WebhookFormat::CloudEvents, body: body.into() })
}
