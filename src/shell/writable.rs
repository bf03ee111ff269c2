//! Whether the streams that promises rest on still take messages.
//!
//! A server whose disk was full answers every question and confirms no message, and it does not begin to again before it is
//! restarted; so the only way to know is to write something. What is written is nobody's, has no body, and is gone after a
//! second. This mends nothing.

use std::fmt;
use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::wire::{header, subject};

use super::bus::{Bus, PublishError, chain};
use super::metrics::GatewayMetrics;
use super::telemetry;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(30);
/// The shortest time that a stream can be told to keep a message for.
const KEPT: Duration = Duration::from_secs(1);

/// A stream that takes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unwritable {
    /// Its name.
    pub stream: &'static str,
    /// What came of the attempt.
    pub because: String,
}

impl fmt::Display for Unwritable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "the stream {} takes no message ({})", self.stream, self.because)
    }
}

/// What to do about it.
pub const REMEDY: &str =
    "look at the disk of the nats-server; one whose disk was full must be restarted once there is room";

/// Writes to every one of them and tells which did not confirm it. A stream that does not exist is not among them.
pub async fn unwritable(bus: &Bus) -> Vec<Unwritable> {
    join_all(subject::PROBES.map(|(stream, to)| async move {
        let mut headers = HeaderMap::new();
        headers.insert(header::TIME_TO_LIVE, header::time_to_live(KEPT));
        // In a bucket it is a key that was never there.
        headers.insert(header::KEY_OPERATION, header::KEY_DELETED);
        match bus.publish(to, headers, Bytes::new()).await {
            Ok(_) | Err(PublishError::NoStream { .. }) => None,
            Err(error) => Some(Unwritable { stream, because: chain(&error) }),
        }
    }))
    .await
    .into_iter()
    .flatten()
    .collect()
}

/// Looks now and then until `stop`, and tells metrics and the log; what is returned has what was found last.
pub fn watch(bus: Bus, stop: CancellationToken) -> watch::Receiver<Vec<Unwritable>> {
    let (state, found) = watch::channel(Vec::new());
    let metrics = GatewayMetrics::new(&telemetry::meter());
    tokio::spawn(async move { look_until(&bus, &metrics, &state, &stop).await });
    found
}

async fn look_until(
    bus: &Bus,
    metrics: &GatewayMetrics,
    state: &watch::Sender<Vec<Unwritable>>,
    stop: &CancellationToken,
) {
    loop {
        let found = tokio::select! {
            () = stop.cancelled() => return,
            found = unwritable(bus) => found,
        };
        for (stream, _) in subject::PROBES {
            metrics.stream_writable(stream, found.iter().all(|unwritable| unwritable.stream != stream));
        }
        let known = state.borrow().clone();
        for unwritable in found.iter().filter(|unwritable| known.iter().all(|known| known.stream != unwritable.stream))
        {
            tracing::error!(stream = unwritable.stream, because = unwritable.because, REMEDY, "stream.unwritable");
        }
        for unwritable in known.iter().filter(|known| found.iter().all(|found| found.stream != known.stream)) {
            tracing::info!(stream = unwritable.stream, "stream.writable");
        }
        state.send_replace(found);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}
