//! Taking messages of a durable consumer, for ever: what goes wrong on the bus is tried again.
//!
//! What a message means, and what becomes of it, is its handler's.

use std::time::Duration;

use async_nats::jetstream::consumer::{PullConsumer, pull};
use async_nats::jetstream::{AckKind, Message};
use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::job::{Fault, FaultCode};

use super::bus::{Bus, chain};

/// For how long messages are asked for at once.
pub const PULL_FOR: Duration = Duration::from_secs(5);

/// A consumer, and how it is pulled.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// The stream.
    pub stream: &'static str,
    /// The durable consumer.
    pub consumer: &'static str,
    /// Messages that are asked for at once.
    pub batch: usize,
    /// When a message comes back that could not be handled.
    pub again_after: Duration,
}

/// What went wrong on the bus.
pub fn lost(why: String) -> Fault {
    Fault::retry(FaultCode::BusFailed, why)
}

/// A durable consumer that is there.
///
/// # Errors
/// A `Retry` fault when it is not, or nobody answers.
pub async fn consumer(bus: &Bus, stream: &str, consumer: &str) -> Result<PullConsumer, Fault> {
    let found = bus.context.get_consumer_from_stream::<pull::Config, _, _>(consumer, stream).await;
    found.map_err(|error| lost(chain(&error)))
}

/// Handles messages one after the other: each is acknowledged when it was handled, and comes back when it was not.
///
/// # Errors
/// A `Retry` fault when the consumer or the server cannot be reached any more.
pub async fn one_by_one(
    bus: &Bus,
    source: Source,
    mut handle: impl AsyncFnMut(&Message) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let consumer = consumer(bus, source.stream, source.consumer).await?;
    loop {
        let pulled = consumer.batch().max_messages(source.batch).expires(PULL_FOR).messages().await;
        let mut messages = pulled.map_err(|error| lost(chain(&error)))?;
        while let Some(message) = messages.next().await {
            let message = message.map_err(|error| lost(chain(&*error)))?;
            let answer = match handle(&message).await {
                Ok(()) => AckKind::Ack,
                Err(_) => AckKind::Nak(Some(source.again_after)),
            };
            message.ack_with(answer).await.map_err(|error| lost(error.to_string()))?;
        }
    }
}

/// Runs `once` until `stop`, and again after a while when it fails; says so once for a row of failures, of `what`.
pub async fn again_until(
    stop: &CancellationToken,
    what: &'static str,
    again_after: Duration,
    mut once: impl AsyncFnMut() -> Result<(), Fault>,
) {
    let mut said = false;
    while !stop.is_cancelled() {
        let outcome = tokio::select! {
            () = stop.cancelled() => return,
            outcome = once() => outcome,
        };
        if let Err(fault) = &outcome {
            if !said {
                tracing::warn!(%fault, "{what}: is `darkroom setup` of this version done?");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(again_after) => {}
            }
        }
        said = outcome.is_err();
    }
}
