//! From events to deliveries, one after the other: the consumer lets one event be under way, over all who pull it, so that
//! deliveries are in the order of the events.

use async_nats::jetstream::Message;
use tokio_util::sync::CancellationToken;

use crate::job::limits::WEBHOOK_BODY_BYTES_MAX;
use crate::job::{Fault, FaultClass, Undelivered, WebhookFormat};
use crate::wire::{event, header, replicate, subject, webhook};

use super::super::bus::{Bus, PublishError};
use super::super::consume::{Source, again_until, one_by_one};
use super::super::metrics::WebhookMetrics;
use super::super::records;
use super::{AGAIN_AFTER, Delivery, End};

const EVENTS: Source = Source {
    stream: subject::STREAM_EVENTS,
    consumer: subject::CONSUMER_WEBHOOK,
    batch: 256,
    again_after: AGAIN_AFTER,
};

/// Turns events into deliveries until `stop`. Links in Replicate's form begin with `gateway`.
pub(super) async fn run(bus: &Bus, metrics: &WebhookMetrics, gateway: &str, stop: &CancellationToken) {
    let collected = async |message: &Message| {
        let outcome = collect(bus, metrics, gateway, message).await;
        outcome.inspect_err(|fault| tracing::warn!(%fault, "webhook.collect"))
    };
    again_until(stop, "webhook events", AGAIN_AFTER, async || one_by_one(bus, EVENTS, &collected).await).await;
}

async fn collect(bus: &Bus, metrics: &WebhookMetrics, gateway: &str, message: &Message) -> Result<(), Fault> {
    let sequence = message.info().map_or(0, |info| info.stream_sequence);
    let Some((tenant, job, kind)) = subject::event_owner(&message.subject) else { return Ok(()) };
    let Some(of) = webhook::event_of(kind) else { return Ok(()) };
    // Not of a copy: who has not heard of the record yet would tell nobody of the event, ever.
    let record = match records::look_at_leader(bus, &tenant, &job).await {
        Ok(found) => found.into_record().map(|owned| owned.record),
        // Another build's, which this one cannot read: it would be the same the next time.
        Err(fault) if fault.class == FaultClass::Reject => {
            tracing::warn!(%fault, %tenant, %job, "webhook.record");
            None
        }
        Err(fault) => return Err(fault),
    };
    let Some(record) = record else { return Ok(()) };
    let Some(webhook) = &record.webhook else { return Ok(()) };
    if !webhook.events.contains(&of) {
        return Ok(());
    }
    let body = match webhook.format {
        WebhookFormat::CloudEvents => webhook::body(&message.payload, WEBHOOK_BODY_BYTES_MAX),
        WebhookFormat::Replicate => event::decode(&message.payload)
            .ok()
            .and_then(|whole| replicate::webhook(&job, of, &whole.data, &record, gateway, WEBHOOK_BODY_BYTES_MAX)),
    };
    let Some((id, body)) = webhook::id_of(&message.payload).zip(body) else {
        tracing::warn!(%tenant, %job, kind, "webhook.unreadable");
        return Ok(());
    };
    let delivery = Delivery { id, tenant, job, url: webhook.url.clone(), format: webhook.format, body: body.into() };
    match delivery.send(bus, &delivery.id).await {
        Err(PublishError::StreamFull { description, .. }) => {
            let id = header::crowded_out_webhook_id(sequence);
            let end = End { attempts: 0, words: description };
            delivery.give_up(bus, metrics, &id, Undelivered::QueueFull, &end).await
        }
        sent => Ok(sent?),
    }
}
