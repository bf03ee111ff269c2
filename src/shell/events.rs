//! Publishing events in the order in which they happened.
//!
//! One task sends what is put into its queue, first in first out, over the one connection; who needs to know that an
//! event is stored waits for the answer, nobody else does.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::context::PublishErrorKind;
use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::job::{Fault, FaultCode, JobId, Tenant};
use crate::wire::event::{self, EventKind};
use crate::wire::{header, subject};

use super::bus::{Bus, chain, only_one_on_subject, only_without};
use super::clock::Clock;
use super::config::Retention;
use super::telemetry;

/// Events that may wait to be sent; progress is dropped beyond it.
const QUEUE_LENGTH: usize = 1024;

/// By how much an event outlives its job's record.
pub(super) const LONGER_THAN_RECORD: Duration = Duration::from_secs(600);

struct Outgoing {
    subject: String,
    headers: HeaderMap,
    body: Bytes,
    stored: Option<oneshot::Sender<Result<(), Fault>>>,
}

/// The sending end.
#[derive(Clone, Debug)]
pub struct Events {
    queue: mpsc::Sender<Outgoing>,
    clock: Clock,
    retention: Retention,
}

impl Events {
    /// Starts the sending task; it ends when the last clone is dropped.
    pub fn start(bus: Bus, clock: Clock) -> Self {
        let (queue, mut outgoing) = mpsc::channel::<Outgoing>(QUEUE_LENGTH);
        tokio::spawn(async move {
            while let Some(Outgoing { subject, headers, body, stored }) = outgoing.recv().await {
                let Some(stored) = stored else {
                    if let Err(error) = bus.client.publish_with_headers(subject, headers, body).await {
                        tracing::warn!(%error, "event.publish");
                    }
                    continue;
                };
                // It is written before the next event is; the stream's word is waited for elsewhere.
                let sent = bus.context.publish_with_headers(subject, headers, body).await;
                tokio::spawn(async move {
                    let outcome = match sent {
                        Ok(stored) => stored.await.map(|_| ()),
                        Err(error) => Err(error),
                    };
                    let outcome = match outcome {
                        // It was published before, by this worker or by one that died, or the job has its images.
                        Err(error) if error.kind() != PublishErrorKind::WrongLastSequence => {
                            Err(Fault::retry(FaultCode::BusFailed, format!("the event: {}", chain(&error))))
                        }
                        Ok(()) | Err(_) => Ok(()),
                    };
                    let _ = stored.send(outcome);
                });
            }
        });
        Self { queue, clock, retention: Retention::default() }
    }

    /// The same, with events that are kept so long.
    pub fn kept_for(self, retention: Retention) -> Self {
        Self { retention, ..self }
    }

    /// Queues a durable event, at once, and resolves when it is stored. `accepted` and the terminal kinds are stored at
    /// most once per job, whoever publishes them; the others are not stored any more when `completed` is.
    ///
    /// # Errors
    /// A `Retry` fault when the stream does not confirm it.
    pub fn publish<D: Serialize>(
        &self,
        kind: EventKind,
        tenant: &str,
        job: &JobId,
        attempt: u32,
        data: D,
    ) -> impl Future<Output = Result<(), Fault>> + Send + 'static + use<D> {
        let (sender, stored) = oneshot::channel();
        let event = event::envelope(kind, tenant, job, attempt, self.clock.unix_ms(), data);
        let mut headers = headers();
        if kind.is_terminal() || kind == EventKind::Accepted {
            headers = only_one_on_subject(headers);
        } else {
            // A worker that stood still for longer than its lease must not tell of a job that has its images.
            headers = only_without(headers, subject::event(tenant, job, EventKind::Completed.as_str()));
        }
        let kept = kind.as_terminal().and_then(|status| self.retention.of(status));
        // Longer than the record: who finds the record and no event would publish it once more.
        let kept = kept.unwrap_or_else(|| self.retention.longest()).saturating_add(LONGER_THAN_RECORD);
        headers.insert(header::TIME_TO_LIVE, header::time_to_live(kept));
        let subject = subject::event(tenant, job, kind.as_str());
        let outgoing = Outgoing { subject, headers, body: event::encode(&event).into(), stored: Some(sender) };
        let queued = self.queue.try_send(outgoing);
        async move {
            let lost = || Fault::retry(FaultCode::BusFailed, "too many events wait to be sent");
            queued.map_err(|_| lost())?;
            stored.await.map_err(|_| lost())?
        }
    }

    /// Publishes progress: nobody waits, and under pressure it is dropped.
    pub fn progress(&self, tenant: &Tenant, job: &JobId, attempt: u32, data: &event::Progress) {
        let event = event::envelope(EventKind::Progress, tenant.as_str(), job, attempt, self.clock.unix_ms(), data);
        let outgoing = Outgoing {
            subject: subject::progress(tenant, job),
            headers: headers(),
            body: event::encode(&event).into(),
            stored: None,
        };
        let _ = self.queue.try_send(outgoing);
    }
}

fn headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, header::CONTENT_TYPE_CLOUD_EVENT);
    telemetry::inject(&mut headers);
    headers
}
