//! Checkpoints of a job: what the engine wrote down goes to the store, and the record says where; who claims the job later
//! brings it back.
//!
//! When that happens is the scheduler's business, what the bytes hold the engine's. A checkpoint never fails its job: what
//! cannot be stored is tried again with the next, what cannot be brought back is made again.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use sha2::{Digest, Sha256};

use crate::job::{Fault, FaultCode, JobId, Tenant};
use crate::wire::event::{Checkpointed, EventKind};
use crate::wire::key;
use crate::wire::record::{Checkpoint, Record, SavedImage};
use crate::wire::request::hexadecimal;

use super::super::metrics::Metrics;
use super::super::records::Changed;
use super::super::store::{Found, Store};
use super::{Fact, Job, Ticket, Worker, log_failure};

/// A store that takes longer is not waited for: the job goes on, and the end of a grace period does not wait.
const STORE_WITHIN: Duration = Duration::from_secs(2);
/// Latents and their history are far smaller, of any model at any size.
const BYTES_MAX: usize = 256 << 20;

/// How far one image was when the engine wrote it down.
#[derive(Clone, Debug)]
pub(super) struct Saved {
    pub(super) step: u32,
    pub(super) bytes: Bytes,
}

impl Worker {
    /// Stores what was written down since the last checkpoint, and points the record to it.
    pub(super) fn checkpoint(&self, ticket: Ticket) {
        let Some(Job { request: Some(request), delivery, owned: Some(owned), saved, span, .. }) =
            self.jobs.get(&ticket)
        else {
            return;
        };
        let Some(tenant) = delivery.tenant.clone() else { return };
        let (job, metadata) = (request.job.clone(), request.metadata.clone());
        let (store, records, facts) = (self.store.clone(), self.records.clone(), self.facts.clone());
        let (owned, saved, unix_ms) = (owned.clone(), saved.clone(), self.clock.unix_ms());
        let (events, worker) = (self.events.clone(), self.config.worker.to_string());
        let span = tracing::info_span!(parent: span, "job.checkpoint");
        let attempt = owned.record.state.attempts;
        let stored = async move {
            let before = owned.record.checkpoint.clone().unwrap_or_default();
            let checkpoint = tokio::time::timeout(STORE_WITHIN, store_all(&store, &tenant, &job, &before, &saved));
            let outcome = match checkpoint.await {
                Err(_) => Err(Fault::retry(FaultCode::StoreFailed, "the checkpoint was not stored in time")),
                Ok(Err(fault)) => Err(fault),
                Ok(Ok(checkpoint)) => {
                    let step = checkpoint.images.iter().map(|image| image.step).sum();
                    let superseded = superseded(&before, &checkpoint);
                    let amend =
                        |record: &Record| Some(Record { checkpoint: Some(checkpoint.clone()), ..record.clone() });
                    let changed = records.amend(&tenant, &job, &owned, unix_ms, amend).await;
                    if let Ok(Changed::Won(_)) = &changed {
                        let data = Checkpointed { worker, attempt, step, metadata };
                        let told = events.publish(EventKind::Checkpoint, tenant.as_str(), &job, attempt, data);
                        log_failure("event.checkpoint", told).await;
                        join_all(superseded.iter().map(|key| store.delete(key))).await;
                    }
                    changed
                }
            };
            let _ = facts.send(Fact::Checkpointed { ticket, outcome });
        };
        self.tasks.spawn(tracing::Instrument::instrument(stored, span));
    }

    /// What the engine wrote down, for the next checkpoint.
    pub(super) fn keep_saved(&mut self, saved: Vec<(crate::sched::RowKey, Bytes)>) {
        for (row, bytes) in saved {
            let Some(super::RowState { ticket, image, step }) = self.rows.get(&row).copied() else { continue };
            if let Some(job) = self.jobs.get_mut(&ticket) {
                job.saved.insert(image, Saved { step, bytes });
            }
        }
    }

    /// Nobody goes on from the checkpoints of a job that has ended.
    pub(super) fn sweep_checkpoints(&self, job: &Job) {
        let Job { request: Some(request), delivery, owned: Some(owned), .. } = job else { return };
        let state = &owned.record.state;
        let had_some = job.is_checkpointed || state.attempts > 1 || state.deaths > 0 || state.failures > 0;
        let (true, Some(tenant)) = (state.status.is_terminal() && had_some, delivery.tenant.clone()) else { return };
        let (store, prefix) = (self.store.clone(), key::checkpoints(&tenant, &request.job));
        self.tasks.spawn(async move {
            // What is left behind costs a little room, until the bucket's own rule removes it.
            if let Err(fault) = store.delete_all(&prefix).await {
                tracing::warn!(%fault, prefix, "checkpoint.sweep");
            }
        });
    }
}

/// Puts every image's newest state in the store, and says where all of them are.
async fn store_all(
    store: &Store,
    tenant: &Tenant,
    job: &JobId,
    before: &Checkpoint,
    saved: &BTreeMap<u32, Saved>,
) -> Result<Checkpoint, Fault> {
    let mut images: BTreeMap<u32, SavedImage> =
        before.images.iter().map(|image| (image.index, image.clone())).collect();
    for (index, Saved { step, bytes }) in saved {
        if images.get(index).is_some_and(|image| image.step == *step) {
            continue;
        }
        let key = key::checkpoint(tenant, job, *index, *step);
        store.put_checkpoint(&key, bytes.clone()).await?;
        let sha256 = hexadecimal(&Sha256::digest(bytes));
        let size_bytes = bytes.len() as u64;
        images.insert(*index, SavedImage { index: *index, step: *step, key, size_bytes, sha256 });
    }
    Ok(Checkpoint { images: images.into_values().collect() })
}

fn superseded(before: &Checkpoint, after: &Checkpoint) -> Vec<String> {
    let is_kept = |key: &str| after.images.iter().any(|image| image.key == key);
    before.images.iter().filter(|image| !is_kept(&image.key)).map(|image| image.key.clone()).collect()
}

/// What can be gone on from, by image: what is missing or damaged is left out, and made again.
pub(super) async fn bring(store: &Store, checkpoint: &Checkpoint, metrics: &Metrics) -> BTreeMap<u32, Saved> {
    let brought = checkpoint.images.iter().map(|image| async move {
        let unusable = match store.find(&image.key, BYTES_MAX).await {
            Ok(Found::Object(bytes)) if hexadecimal(&Sha256::digest(&bytes)) == image.sha256 => {
                return Some((image.index, Saved { step: image.step, bytes }));
            }
            Ok(Found::Object(_)) => "its bytes are others".to_owned(),
            Ok(Found::TooLarge { bytes }) => format!("it has {bytes} bytes"),
            Ok(Found::Nothing) => "it is gone".to_owned(),
            Err(fault) => fault.to_string(),
        };
        tracing::warn!(key = image.key, unusable, "checkpoint.unusable");
        metrics.checkpoint("damaged");
        None
    });
    join_all(brought).await.into_iter().flatten().collect()
}
