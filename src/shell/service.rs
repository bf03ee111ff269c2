//! The NATS micro service `darkroom`: request–reply on `darkroom.api.<verb>.<tenant>`, found by `nats micro list`.
//!
//! A tenant's account imports only the subjects that end in its own name, so the subject says who asks. What the verbs do is
//! in modules of their own.

use async_nats::service::error::Error as ServiceError;
use async_nats::service::{Request, ServiceExt};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::job::{Fault, FaultCode, JobId, Tenant};
use crate::wire::cancel::{CancelAnswer, CancelOutcome, CancelRequest};
use crate::wire::subject;

use super::bus::Bus;
use super::cancel::{Canceller, Keep, Outcome};
use super::clock::Clock;
use super::config::Retention;
use super::writable::Unwritable;

/// Requests that are worked on at a time: what comes beyond waits in the subscription.
const CONCURRENCY_MAX: usize = 64;
/// As in HTTP: the request is wrong.
const BAD_REQUEST: usize = 400;
/// As in HTTP: try again later.
const UNAVAILABLE: usize = 503;

/// Answers until `stop`.
///
/// # Errors
/// A `Retry` fault when the service cannot be started, or its subscription ends.
pub async fn run(
    bus: Bus,
    retention: Retention,
    writable: watch::Receiver<Vec<Unwritable>>,
    stop: CancellationToken,
) -> Result<(), Fault> {
    let lost = |error: async_nats::Error| Fault::retry(FaultCode::BusFailed, format!("the service: {error}"));
    let service = bus
        .client
        .service_builder()
        .description("Cancels jobs")
        .start("darkroom", env!("CARGO_PKG_VERSION"))
        .await
        .map_err(lost)?;
    let mut requests = service.endpoint_builder().name("cancel").add(subject::API_CANCEL).await.map_err(lost)?;
    let canceller = Canceller::open(bus.clone(), Clock::start(), retention).await?;
    let tasks = TaskTracker::new();
    tracing::info!("gateway.ready");
    let limit = std::sync::Arc::new(tokio::sync::Semaphore::new(CONCURRENCY_MAX));
    loop {
        let permit = std::sync::Arc::clone(&limit).acquire_owned().await;
        let request = tokio::select! {
            () = stop.cancelled() => break,
            request = requests.next() => request,
        };
        let Some(request) = request else {
            return Err(Fault::retry(FaultCode::BusFailed, "the service's subscription has ended"));
        };
        let (canceller, writable) = (canceller.clone(), writable.clone());
        tasks.spawn(async move {
            let answer = cancel(&canceller, &request, &writable).await;
            if let Err(error) = request.respond(answer).await {
                tracing::warn!(%error, "service.answer");
            }
            drop(permit);
        });
    }
    tasks.close();
    tasks.wait().await;
    let _ = bus.client.flush().await;
    Ok(())
}

async fn cancel(
    canceller: &Canceller,
    request: &Request,
    writable: &watch::Receiver<Vec<Unwritable>>,
) -> Result<Bytes, ServiceError> {
    let wrong = |status: String| ServiceError { code: BAD_REQUEST, status };
    let tenant: Tenant = subject::tenant_of_api(request.message.subject.as_str())
        .and_then(|tenant| tenant.parse().ok())
        .ok_or_else(|| wrong("the subject must be darkroom.api.cancel.<tenant>".to_owned()))?;
    let CancelRequest { job, keep_partial } = serde_json::from_slice(&request.message.payload).map_err(|error| {
        wrong(format!("the request must be {{\"job\": ID, \"keep_partial\": true|false}}: {error}"))
    })?;
    let id: JobId = job.parse().map_err(|error| wrong(format!("job: {error}")))?;
    let keep = if keep_partial { Keep::Partial } else { Keep::Nothing };
    let outcome = canceller
        .cancel(&tenant, &id, keep)
        .await
        .map_err(|fault| ServiceError { code: UNAVAILABLE, status: explained(&fault, &writable.borrow()) })?;
    tracing::info!(%tenant, %job, ?outcome, "job.cancel");
    Ok(serde_json::to_vec(&answer(job, outcome)).unwrap_or_default().into())
}

/// Why something could not be done, with what is known of the streams.
fn explained(fault: &Fault, unwritable: &[Unwritable]) -> String {
    let mut text = fault.to_string();
    for stream in unwritable {
        text.push_str(&format!("; {stream}"));
    }
    text
}

/// What is answered.
pub fn answer(job: String, outcome: Outcome) -> CancelAnswer {
    let (outcome, status) = match outcome {
        Outcome::Cancelled => (CancelOutcome::Cancelled, Some("cancelled")),
        Outcome::Stopping => (CancelOutcome::Stopping, Some("processing")),
        Outcome::Ended(status) => (CancelOutcome::Ended, Some(status.as_str())),
        Outcome::Gone => (CancelOutcome::Gone, None),
        Outcome::Unknown => (CancelOutcome::Unknown, None),
    };
    CancelAnswer { job, outcome, status: status.map(str::to_owned) }
}
