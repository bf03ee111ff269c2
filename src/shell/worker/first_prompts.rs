//! Prompts of the job that will most likely be the first, encoded while the rest of the model is being loaded.
//!
//! The request is only looked at: a worker that is not ready takes nothing, since another one may be, and since loading may
//! be what kills it. Whoever gets it, nothing changes but when its prompts are encoded.

use crate::job::ModelManifest;
use crate::sched::Lane;
use crate::wire::request::{self, Context};
use crate::wire::{header, subject};

use super::super::bus::{Bus, chain};
use super::prompts::Prompts;

/// Requests that nobody has yet: those of a consumer's stream from here on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) lane: Lane,
    pub(super) from_sequence: u64,
}

/// Encodes the prompts of the first of those. Whatever keeps it from that is met again by whoever takes the job.
pub(super) async fn encode(bus: Bus, manifest: ModelManifest, waiting: Waiting, prompts: Prompts) {
    let Waiting { lane: Lane { priority, pool }, from_sequence } = waiting;
    let filter = subject::request_filter(&manifest.name, priority, pool);
    let look = async {
        let stream = bus.context.get_stream_no_info(subject::STREAM_REQUESTS).await.map_err(|error| chain(&error))?;
        stream.direct_get_next_for_subject(filter, Some(from_sequence)).await.map_err(|error| chain(&error))
    };
    let message = match look.await {
        Ok(message) => message,
        Err(error) => return tracing::debug!(error, "first_prompts.look"),
    };
    let Some(subject) = subject::RequestSubject::parse(message.subject.as_str()) else { return };
    let context = Context {
        manifest: &manifest,
        tenant: &subject.tenant,
        priority,
        message_id: message.headers.get(header::MESSAGE_ID).map(async_nats::HeaderValue::as_str),
        stream_sequence: message.sequence,
    };
    let Ok(request) = request::parse(&message.payload, &context) else { return };
    let job = request.job.to_string();
    let took = prompts.prepare(request.spec.image).await;
    tracing::info!(job.id = job, took_ms = took.as_millis(), "worker.first_prompts");
}
