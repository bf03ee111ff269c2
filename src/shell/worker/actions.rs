//! The actions of a job, each a task of its own: claim, store, record, publish, dead-letter, settle.

use async_nats::{HeaderMap, Message, Subject};
use bytes::Bytes;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tracing::Instrument;

use crate::engine::{self, ModelDigest, PictureFiles, StartingPictures};
use crate::job::{
    Fault, FaultClass, FaultCode, ImageSpec, InvalidToken, JobId, JobStep, ModelManifest, Priority, Tenant, Violation,
};
use crate::sched::{Action, Claim, Ticket, Transition, Verdict};
use crate::wire::event::{
    Cancelled, Completed, Cost, ErrorDocument, EventKind, Failed, StoredImage, to_the_microsecond,
};
use crate::wire::record::Record;
use crate::wire::request::{self, Context, Refusal, Request};
use crate::wire::subject::{self, RequestSubject};
use crate::wire::{header, key};

use super::super::bus::{Bus, chain};
use super::super::deadletter::DeadLetter;
use super::super::failpoint;
use super::super::records::{Changed, ClaimRequest, Claimed};
use super::{Fact, Job, Prepared, Worker, checkpoints};

/// A message of the request stream, with what its acknowledgement subject says.
#[derive(Clone, Debug)]
pub(super) struct Delivery {
    pub(super) reply: Subject,
    pub(super) subject: String,
    pub(super) headers: Option<HeaderMap>,
    pub(super) body: Bytes,
    pub(super) stream_sequence: u64,
    pub(super) delivered: i64,
    pub(super) pending: u64,
    pub(super) published_unix_ms: i64,
    pub(super) tenant: Option<Tenant>,
    pub(super) priority: Priority,
}

impl Delivery {
    /// Reads a message; `None` when it did not come from a consumer.
    pub(super) fn read(bus: &Bus, message: Message) -> Option<Self> {
        let message = async_nats::jetstream::Message { context: bus.context.clone(), message };
        let info = message.info().ok()?;
        let (stream_sequence, delivered, pending) = (info.stream_sequence, info.delivered, info.pending);
        let published_unix_ms = i64::try_from(info.published.unix_timestamp_nanos() / 1_000_000).ok()?;
        let Message { reply, subject, headers, payload, .. } = message.message;
        let parsed = RequestSubject::parse(subject.as_str());
        Some(Self {
            reply: reply?,
            subject: subject.to_string(),
            headers,
            body: payload,
            stream_sequence,
            delivered,
            pending,
            published_unix_ms,
            priority: parsed.as_ref().map_or(Priority::Normal, |parsed| parsed.priority),
            tenant: parsed.map(|parsed| parsed.tenant),
        })
    }

    /// Reads the request in it.
    pub(super) fn parse(&self, manifest: &ModelManifest, priority: Priority) -> Result<Request, Refusal> {
        let message_id = self.headers.as_ref().and_then(|headers| headers.get(header::MESSAGE_ID));
        let message_id = message_id.map(async_nats::HeaderValue::as_str);
        let Some(tenant) = &self.tenant else {
            let (_, tenant) = subject::model_and_tenant_tokens(&self.subject);
            let job = message_id.and_then(|id| id.parse().ok());
            return Err(Refusal {
                job: job.unwrap_or_else(|| JobId::from_stream_sequence(self.stream_sequence)),
                violations: vec![Violation::new("subject", tenant, format!("a tenant: it {InvalidToken}"))],
                digest: request::canonical_digest(&self.body),
            });
        };
        let context = Context { manifest, tenant, priority, message_id, stream_sequence: self.stream_sequence };
        request::parse(&self.body, &context)
    }
}

impl Worker {
    /// What so much device time costs.
    fn cost(&self, gpu_ms: f64) -> Option<Cost> {
        let usd = self.config.price_per_hour? * gpu_ms / 3.6e6;
        let (capacity, instance_type) = (self.config.capacity.to_string(), self.config.instance_type.clone());
        Some(Cost { usd: (usd * 1e9).round() / 1e9, capacity, instance_type })
    }
}

impl Job {
    pub(super) fn id(&self) -> JobId {
        match (&self.request, &self.refusal) {
            (Some(request), _) => request.job.clone(),
            (None, Some(refusal)) => refusal.job.clone(),
            (None, None) => JobId::from_stream_sequence(self.delivery.stream_sequence),
        }
    }

    /// Whose it is; nobody's, where the subject does not say.
    pub(super) fn tenant(&self) -> &str {
        self.delivery.tenant.as_ref().map_or("", Tenant::as_str)
    }

    fn attempts(&self) -> u32 {
        self.owned.as_ref().map_or(0, |owned| owned.record.state.attempts)
    }

    fn metadata(&self) -> Option<Map<String, Value>> {
        self.request.as_ref().and_then(|request| request.metadata.clone())
    }

    fn refused(&self) -> Failed {
        let violations = self.refusal.as_ref().map_or(&[][..], |refusal| &refusal.violations);
        Failed { error: ErrorDocument::invalid_request(violations), attempts: 0, metadata: None }
    }

    fn failed(&self, fault: &Fault) -> Failed {
        Failed { error: ErrorDocument::from(fault), attempts: self.attempts(), metadata: self.metadata() }
    }
}

impl Worker {
    /// Starts an action; its end comes back as a fact.
    pub(super) fn act(&mut self, ticket: Ticket, action: Action) {
        let Some(job) = self.jobs.get(&ticket) else { return };
        let (facts, span) = (self.facts.clone(), job.span.clone());
        match action {
            Action::Claim => self.claim(ticket),
            Action::Checkpoint => self.checkpoint(ticket),
            Action::Store => {
                let stored = failpoint::around("store", &job.id(), self.store_images(job));
                let clock = self.clock;
                let began = clock.now();
                self.tasks.spawn(async move {
                    let span = tracing::info_span!(parent: &span, "job.store");
                    let outcome = stored.instrument(span).await;
                    let _ = facts.send(Fact::Stored { ticket, outcome, took: clock.now().since(began) });
                });
            }
            Action::Record(transition) => {
                if let Transition::Retry(fault) = &transition {
                    self.metrics.attempt_failed(fault.code.as_str());
                    tracing::warn!(parent: &span, %fault, "job.retry");
                }
                let changed = failpoint::around("record", &job.id(), self.record(job, transition));
                let recorded = async move {
                    let outcome = changed.await;
                    let _ = facts.send(Fact::Recorded { ticket, outcome });
                };
                self.tasks.spawn(recorded.instrument(span));
            }
            Action::Publish => {
                let published = span.in_scope(|| self.publish_terminal(job));
                let published = failpoint::around("publish", &job.id(), published);
                self.tasks.spawn(async move {
                    let outcome = published.await;
                    let _ = facts.send(Fact::Acted { ticket, outcome });
                });
            }
            Action::DeadLetter => {
                let (letter, id) = (self.dead_letter(job), job.id());
                let bus = self.bus.clone();
                let sent = async move {
                    let outcome = failpoint::around("letter", &id, letter.send(&bus)).await;
                    let _ = facts.send(Fact::Acted { ticket, outcome });
                };
                self.tasks.spawn(sent.instrument(span));
            }
            Action::Settle(verdict) => {
                let payload = match verdict {
                    Verdict::Ack => Bytes::from_static(b"+ACK"),
                    Verdict::Nak(delay) => format!("-NAK {{\"delay\":{}}}", delay.as_nanos()).into(),
                    Verdict::Term => Bytes::from_static(b"+TERM dead-lettered"),
                };
                let (bus, reply, id) = (self.bus.clone(), job.delivery.reply.clone(), job.id());
                self.tasks.spawn(async move {
                    let span = tracing::info_span!(parent: &span, "job.settle");
                    let settled = failpoint::around("settle", &id, bus.settle(&reply, payload));
                    let outcome = settled.instrument(span).await;
                    let _ = facts.send(Fact::Acted { ticket, outcome });
                });
            }
        }
    }

    fn claim(&self, ticket: Ticket) {
        let Some(Job { request: Some(request), delivery, span, .. }) = self.jobs.get(&ticket) else { return };
        let Some(tenant) = delivery.tenant.clone() else { return };
        let claim = ClaimRequest {
            tenant,
            job: request.job.clone(),
            digest: request.digest.clone(),
            model: self.manifest.name.to_string(),
            stream_sequence: delivery.stream_sequence,
            delivered: delivery.delivered,
            worker: self.config.worker.clone(),
            webhook: request.spec.webhook.clone(),
        };
        let (records, facts, unix_ms) = (self.records.clone(), self.facts.clone(), self.clock.unix_ms());
        let (fetcher, loras, spec) = (self.fetcher.clone(), self.loras.clone(), request.spec.clone());
        let metrics = self.metrics.clone();
        let (digest, prompts, store) = (self.engine.digest.clone(), self.prompts.clone(), self.store.clone());
        let claimed = async move {
            let mut outcome = match failpoint::around("claim", &claim.job, records.claim(&claim, unix_ms)).await {
                // A record that this build cannot read belongs to somebody else.
                Err(fault) if fault.class == FaultClass::Reject => Ok(Claimed { claim: Claim::Conflict, owned: None }),
                outcome => outcome,
            };
            let mut prepared = Prepared::default();
            // Only for the owner, and before it is the engine's turn: a slow web server must not hold up a batch.
            if let Ok(Claimed { claim: won @ Claim::Won { stopping: false, .. }, owned }) = &mut outcome
                && let Claim::Won { failures, .. } = *won
            {
                let preparing = async {
                    if let Some(loras) = &loras {
                        loras.bring(&spec.image.loras).await?;
                    }
                    let files = fetcher.picture_files(&claim.tenant, &spec).await?;
                    let checkpoint = owned.as_ref().and_then(|owned| owned.record.checkpoint.clone());
                    let saved = checkpoints::bring(&store, &checkpoint.unwrap_or_default(), &metrics).await;
                    let image = spec.image.clone();
                    let ready = tokio::task::spawn_blocking(move || prepare(&files, &image, &digest))
                        .await
                        .map_err(|_| Fault::retry(FaultCode::EngineFailed, "preparing the job panicked"))??;
                    // Last, for a job that can be begun.
                    Ok::<_, Fault>(Prepared { encoding: prompts.prepare(spec.image).await, saved, ..ready })
                };
                match preparing.await {
                    Ok(ready) => prepared = ready,
                    Err(fault) => *won = Claim::Unprepared { failures, fault },
                }
            }
            let _ = facts.send(Fact::Claimed { ticket, outcome, prepared });
        };
        self.tasks.spawn(claimed.instrument(span.clone()));
    }

    /// Compresses and uploads every image.
    fn store_images(&self, job: &Job) -> impl Future<Output = Result<Vec<StoredImage>, Fault>> + Send + 'static {
        let (store, images) = (self.store.clone(), job.images.clone());
        let request = job.request.clone();
        let tenant = job.delivery.tenant.clone();
        let is_stopped = job.owned.as_ref().is_some_and(|owned| owned.record.state.stopping);
        async move {
            let (Some(request), Some(tenant)) = (request, tenant) else { return Ok(Vec::new()) };
            let format = request.spec.output_format;
            let mut stored = Vec::with_capacity(images.len());
            for (index, image) in (0_u32..).zip(images) {
                let image = match image {
                    Some(image) => image,
                    None if is_stopped => continue,
                    None => return Err(Fault::retry(FaultCode::EngineFailed, format!("image {index} is missing"))),
                };
                let encoded = tokio::task::spawn_blocking(move || {
                    let bytes = engine::encode(&image, format)?;
                    let sha256 = request::hexadecimal(&Sha256::digest(&bytes));
                    Ok::<_, Fault>((Bytes::from(bytes), sha256))
                });
                let lost = |_| Fault::retry(FaultCode::EngineFailed, "the image could not be compressed");
                let (bytes, sha256) = encoded.await.map_err(lost)??;
                let key = key::image(&tenant, &request.job, index, format);
                store.put(&key, bytes.clone(), format.content_type()).await?;
                stored.push(StoredImage {
                    index,
                    url: store.url_of(&key).await?,
                    key,
                    content_type: format.content_type().to_owned(),
                    size_bytes: bytes.len() as u64,
                    sha256,
                    seed: request.spec.image(index).seed,
                });
            }
            Ok(stored)
        }
    }

    /// Changes the job's record under the fence.
    fn record(
        &self,
        job: &Job,
        transition: Transition,
    ) -> impl Future<Output = Result<Changed, Fault>> + Send + 'static {
        let terminal = |data| serde_json::to_value(data).ok();
        let (step, terminal) = match &transition {
            Transition::Complete => {
                let data = Completed {
                    images: job.stored.clone(),
                    timings: job.timings.to_the_microsecond(),
                    gpu_ms: to_the_microsecond(job.gpu_ms),
                    cost: self.cost(job.gpu_ms),
                    model: self.manifest.name.to_string(),
                    model_digest: job.prepared.model_digest.clone(),
                    worker: self.config.worker.to_string(),
                    attempts: job.attempts(),
                    resumed_from_step: job.resumed_from_step,
                    warnings: job.warnings.clone(),
                    metadata: job.metadata(),
                };
                (JobStep::Complete, serde_json::to_value(data).ok())
            }
            Transition::Cancel => {
                let (images, attempts) = (job.stored.clone(), job.attempts());
                (JobStep::Cancel, serde_json::to_value(Cancelled { images, attempts, metadata: job.metadata() }).ok())
            }
            Transition::Fail(fault) => (JobStep::Fail, terminal(job.failed(fault))),
            Transition::Refuse => (JobStep::Fail, terminal(job.refused())),
            Transition::Retry(_) => (JobStep::Retry, None),
            Transition::GiveBack => (JobStep::GiveBack, None),
        };
        let (records, unix_ms, model) = (self.records.clone(), self.clock.unix_ms(), self.manifest.name.to_string());
        let (owned, tenant, id) = (job.owned.clone(), job.delivery.tenant.clone(), job.id());
        let refusal = job.refusal.clone();
        let sequence = job.delivery.stream_sequence;
        // Whoever is told of refusals may be named in what is refused.
        let webhook = refusal.as_ref().and_then(|_| request::webhook_in_body(&job.delivery.body));
        async move {
            match (owned, tenant, refusal) {
                (Some(owned), Some(tenant), None) => records.step(&tenant, &id, &owned, step, terminal, unix_ms).await,
                (_, Some(tenant), Some(refusal)) => {
                    let fresh = Record::accepted(refusal.digest, &model, Some(sequence), unix_ms).telling(webhook);
                    records.refuse(&tenant, &id, fresh, terminal, unix_ms).await
                }
                // Without a tenant there is no key to keep a record under.
                (_, None, _) => Ok(Changed::Unrecorded),
                (None, Some(_), None) => Ok(Changed::Lost),
            }
        }
    }

    /// The terminal event, as the record has it.
    fn publish_terminal(&self, job: &Job) -> impl Future<Output = Result<(), Fault>> + Send + 'static {
        let (_, tenant) = subject::model_and_tenant_tokens(&job.delivery.subject);
        let recorded = job.owned.as_ref().and_then(|owned| {
            let kind = EventKind::of_terminal(owned.record.state.status)?;
            Some((kind, owned.record.terminal.clone()?))
        });
        let (kind, data) =
            recorded.unwrap_or_else(|| (EventKind::Failed, serde_json::to_value(job.refused()).unwrap_or_default()));
        self.events.publish(kind, tenant, &job.id(), job.attempts(), data)
    }

    fn dead_letter(&self, job: &Job) -> DeadLetter {
        let (code, message) = match (&job.refusal, job.owned.as_ref().and_then(|owned| owned.record.terminal.as_ref()))
        {
            (Some(_), _) => {
                let Failed { error, .. } = job.refused();
                (error.code, error.message)
            }
            (None, Some(terminal)) if terminal.get("error").is_some() => {
                let text = |field: &str| terminal["error"][field].as_str().unwrap_or_default().to_owned();
                (text("code"), text("message"))
            }
            (None, _) => {
                let message = format!("the id {} belongs to a different request", job.id());
                (FaultCode::JobIdConflict.as_str().to_owned(), message)
            }
        };
        DeadLetter {
            job: job.id(),
            subject: job.delivery.subject.clone(),
            headers: job.delivery.headers.clone(),
            body: job.delivery.body.clone(),
            stream_sequence: job.delivery.stream_sequence,
            attempts: job.attempts(),
            code,
            message,
            worker: Some(self.config.worker.to_string()),
        }
    }
}

/// What a job needs besides the model: its pictures, and whose pixels they will become.
fn prepare(files: &PictureFiles, spec: &ImageSpec, digest: &ModelDigest) -> Result<Prepared, Fault> {
    let pictures = StartingPictures::prepare(files, spec)?;
    match digest.wait() {
        Ok(digest) => Ok(Prepared { pictures, model_digest: digest.to_owned(), ..Prepared::default() }),
        Err(error) => Err(Fault::retry(FaultCode::EngineFailed, format!("the model's files: {}", chain(error)))),
    }
}
