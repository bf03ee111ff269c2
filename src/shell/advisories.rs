//! What the server says of requests that it gave up delivering, from its advisories.
//!
//! Whose deliveries are used up is ended here with a reason. Of a request that somebody terminated nothing is left but its
//! job's record, which the reconciler finds.

use std::time::Duration;

use async_nats::jetstream::Message;
use async_nats::jetstream::stream::RawMessageErrorKind;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::job::{Fault, FaultCode};
use crate::wire::subject;
use crate::wire::time::parse_rfc3339;

use super::bus::chain;
use super::consume::{Source, again_until, one_by_one};
use super::ending::Ending;
use super::metrics::ReconcilerMetrics;
use super::topology;

const ADVISORIES: Source = Source {
    stream: subject::STREAM_ADVISORIES,
    consumer: subject::CONSUMER_ADVISORIES,
    batch: 32,
    again_after: Duration::from_secs(5),
};
/// After what went wrong for all of them.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// Reasons that are ours, or that somebody who removes a request has.
const EXPECTED_REASONS: [&str; 2] = ["dead-lettered", "Unacknowledged message was deleted"];

/// One advisory, of either kind.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Advisory {
    r#type: String,
    timestamp: String,
    consumer: String,
    stream_seq: u64,
    deliveries: u64,
    #[serde(default)]
    reason: String,
}

/// What an advisory asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Meaning {
    /// Nothing: it is the echo of what we did.
    Expected,
    /// The request's deliveries are used up.
    Exhausted,
    /// Somebody terminated it.
    Terminated,
}

impl Advisory {
    fn meaning(&self) -> Meaning {
        if self.r#type.ends_with(".max_deliver") {
            Meaning::Exhausted
        } else if EXPECTED_REASONS.contains(&self.reason.as_str()) {
            Meaning::Expected
        } else {
            Meaning::Terminated
        }
    }
}

/// Takes advisories until `stop`.
pub async fn run(ending: &Ending, metrics: &ReconcilerMetrics, stop: &CancellationToken) {
    let handled = async |message: &Message| {
        let outcome = handle(ending, metrics, message).await;
        outcome.inspect_err(|fault| tracing::warn!(%fault, "advisory"))
    };
    let once = async || one_by_one(&ending.bus, ADVISORIES, &handled).await;
    again_until(stop, "advisories", LOOK_AGAIN, once).await;
}

async fn handle(ending: &Ending, metrics: &ReconcilerMetrics, message: &Message) -> Result<(), Fault> {
    let Ok(advisory) = serde_json::from_slice::<Advisory>(&message.payload) else {
        tracing::warn!(subject = %message.subject, "advisory.unreadable");
        return Ok(());
    };
    let Advisory { consumer, stream_seq: sequence, deliveries, reason, .. } = &advisory;
    match advisory.meaning() {
        Meaning::Expected => Ok(()),
        Meaning::Terminated => {
            tracing::warn!(consumer, sequence, deliveries, reason, "advisory.terminated");
            metrics.found("terminated");
            Ok(())
        }
        Meaning::Exhausted => {
            if is_delivered_anew(ending, &advisory).await? {
                return Ok(());
            }
            let stream = ending.bus.context.get_stream_no_info(subject::STREAM_REQUESTS).await;
            let stream = stream.map_err(|error| Fault::retry(FaultCode::BusFailed, chain(&error)))?;
            let request = match stream.get_raw_message(*sequence).await {
                Ok(request) => request.into(),
                // Somebody has ended it.
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => return Ok(()),
                Err(error) => return Err(Fault::retry(FaultCode::BusFailed, chain(&error))),
            };
            let fault = exhausted(*deliveries, consumer);
            tracing::warn!(%fault, sequence, "advisory.exhausted");
            ending.end_request(&request, &fault).await?;
            metrics.repaired("deliveries_exhausted");
            Ok(())
        }
    }
}

/// The fault of a request that is not delivered any more.
pub(super) fn exhausted(deliveries: u64, consumer: &str) -> Fault {
    let message = match deliveries {
        0 => format!("the consumer {consumer} does not deliver it any more"),
        deliveries => format!("delivered {deliveries} times, as often as the consumer {consumer} may, and never ended"),
    };
    Fault::reject(FaultCode::DeliveriesExhausted, message)
}

/// Whether the consumer was made again after its advisory, and so delivers everything once more.
async fn is_delivered_anew(ending: &Ending, advisory: &Advisory) -> Result<bool, Fault> {
    let served = topology::served(&ending.bus).await;
    let served = served.map_err(|error| Fault::retry(FaultCode::BusFailed, chain(&error)))?;
    let consumer = served.iter().find(|served| served.consumer == advisory.consumer);
    let made = consumer.and_then(|consumer| parse_rfc3339(&consumer.created));
    Ok(made.zip(parse_rfc3339(&advisory.timestamp)).is_some_and(|(made, said)| made > said))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advisories_are_read_as_the_server_writes_them() {
        let exhausted = r#"{"type":"io.nats.jetstream.advisory.v1.max_deliver","id":"2GNT","timestamp":"2026-11-25T20:15:01.357653295Z","stream":"DARKROOM_REQ","consumer":"shapes-normal-any","stream_seq":1,"deliveries":2}"#;
        let read: Advisory = serde_json::from_str(exhausted).unwrap();
        assert_eq!((read.meaning(), read.stream_seq, read.deliveries), (Meaning::Exhausted, 1, 2));
        for (reason, expected) in [
            ("dead-lettered", Meaning::Expected),
            ("Unacknowledged message was deleted", Meaning::Expected),
            ("", Meaning::Terminated),
            ("bad", Meaning::Terminated),
        ] {
            let text = format!(
                r#"{{"type":"io.nats.jetstream.advisory.v1.terminated","timestamp":"","consumer":"c","stream_seq":1,"deliveries":1,"reason":"{reason}"}}"#
            );
            assert_eq!(serde_json::from_str::<Advisory>(&text).unwrap().meaning(), expected, "{reason:?}");
        }
    }
}
