//! The worker: one scheduler, one engine, and the event loop between them and NATS.
//!
//! The loop selects one [`Fact`], tells the scheduler, and applies the effects. Applying starts work and never waits:
//! whatever takes time is a task whose result comes back as a fact.

mod actions;
mod checkpoints;
mod cold_start;
mod first_prompts;
mod floor;
mod prompts;
mod pull;
mod report;
mod usage;

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Subscriber;
use base64::Engine as _;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::join_all;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use uuid::Uuid;

use opentelemetry::trace::TraceContextExt;

use crate::engine::{self, KnownPieces, LoadError, LoadOptions, OpenedModel, RgbImage, StartingPictures};
use crate::job::limits::{DEATHS_MAX, FAILURES_MAX};
use crate::job::{Capacity, Fault, InvalidToken, ModelManifest, Pool, Status, Tenant, WorkerId};
use crate::sched::estimate::Measured;
use crate::sched::{
    Acted, BatchKey, Claim, CostModel, Deadline, Effect, EngineReport, EngineWork, Exit, Input, Lane, Mono, Offer,
    Policy, PullOutcome, RecordChange, RowKey, Scheduler, TenantKey, Ticket,
};
use crate::wire::event::{self, EventKind, StoredImage, Timings};
use crate::wire::request::{Refusal, Request};
use crate::wire::subject;
use crate::wire::worker::WorkerState;

use super::bus::Bus;
use super::clock::Clock;
use super::config::{Interruptions, Retention};
use super::costs;
use super::engine_thread::{self, Answer, Command, EngineThread, StartError};
use super::events::Events;
use super::fetch::Fetcher;
use super::guard::AddressGuard;
use super::loras::LoraFolder;
use super::metrics::Metrics;
use super::model_cache::{Coming, ModelCacheError, Present};
use super::records::{self, Changed, Claimed, Owned, Records};
use super::store::Store;
use super::telemetry;
use super::topology;

use actions::Delivery;
use checkpoints::Saved;
use cold_start::ColdStart;
use first_prompts::Waiting;
use floor::Floor;
use prompts::Prompts;
use pull::Found;
use report::Reports;
use usage::{Account, Usage};

/// A job that more urgent ones pass over steps once in so long.
const PASSED_OVER_MAX: Duration = Duration::from_secs(3);

/// While rows could step, encoding and decoding hold them up for so long and what they are at.
const STALL_MAX: Duration = Duration::from_millis(500);
/// Images that may wait in the engine besides, for each that may step: a few megabytes each.
const PARKED_PER_IMAGE: u32 = 3;
/// Jobs of a priority that may be held unclaimed: enough to find other tenants behind a flood.
const JOBS_AHEAD_MAX: u32 = 256;
/// Between two looks at how long the worker has run, at the least.
const ACCOUNT_EVERY: Duration = Duration::from_secs(1);
/// The share of the memory beside the model that steps may take: allocators waste some, and it is not measured while others
/// come and go.
const MEMORY_SHARE: f64 = 0.8;

/// What a worker is told once.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its name.
    pub worker: WorkerId,
    /// What it pulls: `any` also for workers that may be taken away.
    pub pools: Vec<Pool>,
    /// Images that step together; the model's own limit when absent.
    pub images_in_batch_max: Option<u32>,
    /// Bytes that steps may take on top of the loaded model; most of what the device has left when absent.
    pub memory: Option<u64>,
    /// How batches are made.
    pub policy: Policy,
    /// What `darkroom profile` measured; where it keeps it when absent.
    pub costs: Option<PathBuf>,
    /// What becomes of running jobs when it ends, dies or hangs.
    pub interruptions: Interruptions,
    /// End when there was nothing to do for so long.
    pub exit_when_idle: Option<Duration>,
    /// But not so many workers of this capacity, idle ones and others; the model's plan may say more.
    pub workers_min: u32,
    /// Where pictures may be fetched from besides the public internet.
    pub fetch_allow: AddressGuard,
    /// The folder that LoRAs of the store are put in.
    pub loras: Option<PathBuf>,
    /// How long jobs are kept after their end.
    pub retention: Retention,
    /// What it runs on.
    pub capacity: Capacity,
    /// The machine's type, as its cloud calls it.
    pub instance_type: Option<String>,
    /// What the machine costs, in US dollars.
    pub price_per_hour: Option<f64>,
    /// Began with the process.
    pub clock: Clock,
    /// Where the model comes from, if `load` waits for it.
    pub model: Option<Coming>,
}

/// Why a worker could not begin, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError<E: std::error::Error + 'static> {
    /// No engine.
    #[error(transparent)]
    Engine(#[from] StartError<E>),
    /// JetStream does not answer, or a stream, bucket or consumer is missing.
    #[error("{what} is not there; run `darkroom setup`")]
    Topology {
        /// What is missing.
        what: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Pictures could not be fetched by anybody.
    #[error("the HTTP client cannot be made")]
    Http(#[from] reqwest::Error),
    /// The engine broke; every lease was given back.
    #[error("the engine cannot go on")]
    Fatal(#[source] Fault),
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// It is not on this machine.
    #[error("the model cannot be brought here")]
    Bring(#[source] Arc<ModelCacheError>),
    /// It is none that the engine can use.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// A name that no other process has. One that is started again must have another, or the death of a job's holder looks like
/// its own second attempt; process ids are the same in every container.
///
/// # Errors
/// Never: it is a valid name.
pub fn fresh_name() -> Result<WorkerId, InvalidToken> {
    format!("generate-{:08x}", Uuid::new_v4().as_fields().0).parse()
}

/// Opens the model when its files are there, for [`run`]. The device is made ready meanwhile.
///
/// # Errors
/// [`ModelError`].
pub fn open(model: &Coming, options: &LoadOptions) -> Result<OpenedModel, ModelError> {
    options.device.prepare();
    let present = model.wait().map_err(ModelError::Bring)?;
    let known = KnownPieces { piece_bytes: Present::PIECE_BYTES, files: present.pieces.clone() };
    Ok(engine::open(&present.directory, options, known)?)
}

/// What the loop learns. Each becomes one scheduler input.
#[derive(Debug)]
pub(crate) enum Fact {
    Delivered { lane: usize, message: async_nats::Message },
    PullEnded { lane: usize, outcome: PullOutcome },
    PullsStopped,
    Claimed { ticket: Ticket, outcome: Result<Claimed, Fault>, prepared: Prepared },
    Checkpointed { ticket: Ticket, outcome: Result<Changed, Fault> },
    Stored { ticket: Ticket, outcome: Result<Vec<StoredImage>, Fault>, took: Duration },
    Recorded { ticket: Ticket, outcome: Result<Changed, Fault> },
    Acted { ticket: Ticket, outcome: Result<(), Fault> },
    Extended { ticket: Ticket, sent: Mono },
    Stay(bool),
    Hint { job: String },
    Looked { ticket: Ticket, found: Owned },
    Engine(Box<Answer>),
    Drain,
    Tick,
}

/// What the worker keeps for a job between its delivery and its settlement.
#[derive(Debug)]
struct Job {
    delivery: Delivery,
    request: Option<Request>,
    refusal: Option<Refusal>,
    owned: Option<Owned>,
    prepared: Prepared,
    warnings: Vec<String>,
    /// What the engine wrote down of its images, by index.
    saved: BTreeMap<u32, Saved>,
    /// Something of it was stored.
    is_checkpointed: bool,
    /// Steps that were made before this attempt.
    resumed_from_step: u32,
    images: Vec<Option<Arc<RgbImage>>>,
    stored: Vec<StoredImage>,
    timings: Timings,
    gpu_ms: f64,
    came_at: Mono,
    claimed_at: Mono,
    stepping_since: Option<Mono>,
    span: Span,
}

/// What was brought for a job before it is the engine's turn.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    pictures: StartingPictures,
    model_digest: String,
    /// What encoding the prompts ahead took.
    encoding: Duration,
    /// How far somebody else was with its images.
    saved: BTreeMap<u32, Saved>,
}

/// An image in the engine, as far as the worker needs to know it.
#[derive(Clone, Copy, Debug)]
struct RowState {
    ticket: Ticket,
    image: u32,
    /// Steps made.
    step: u32,
}

/// Tells tenants apart within one process.
fn tenant_key(tenant: &Tenant) -> TenantKey {
    let mut hasher = DefaultHasher::new();
    tenant.as_str().hash(&mut hasher);
    TenantKey(hasher.finish())
}

/// What was measured of the model before; a file of no use is as good as none.
fn known_costs(path: Option<PathBuf>, model: &str, placement: &str) -> CostModel {
    let Some(path) = path.or_else(|| costs::path(model, placement)) else { return CostModel::default() };
    costs::read(&path).unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), %error, "costs.unreadable");
        CostModel::default()
    })
}

/// Bytes that steps may take on top of the loaded model: what was asked for, or a safe share of what is left.
fn memory_for_steps(asked: Option<u64>, left: Option<u64>) -> Option<u64> {
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share")]
    asked.or_else(|| left.map(|left| (left as f64 * MEMORY_SHARE) as u64))
}

struct Worker {
    config: Config,
    manifest: ModelManifest,
    lanes: Vec<Lane>,
    bus: Bus,
    store: Store,
    fetcher: Fetcher,
    loras: Option<LoraFolder>,
    records: Records,
    events: Events,
    metrics: Metrics,
    measured: Measured,
    usage: Usage,
    accounted: Mono,
    clock: Clock,
    engine: EngineThread,
    prompts: Prompts,
    cold_start: ColdStart,
    facts: mpsc::UnboundedSender<Fact>,
    pulls: Vec<pull::Handle>,
    tasks: TaskTracker,
    jobs: HashMap<Ticket, Job>,
    rows: HashMap<RowKey, RowState>,
    previews: HashMap<RowKey, Vec<u8>>,
    work: Option<(EngineWork, Span)>,
}

/// Loads the model that `open` opens, then works until there is a reason to stop. `stop` is the wish to end.
///
/// # Errors
/// [`WorkerError`].
pub async fn run<E, O>(
    config: Config,
    open: O,
    bus: Bus,
    store: Store,
    stop: CancellationToken,
) -> Result<Exit, WorkerError<E>>
where
    E: std::error::Error + From<LoadError> + Send + 'static,
    O: FnOnce() -> Result<OpenedModel, E> + Send + 'static,
{
    let fetcher = Fetcher::new(store.clone(), config.fetch_allow.clone())?;
    let clock = config.clock;
    let (facts, mut inbox) = mpsc::unbounded_channel();
    let answers = facts.clone();
    let opening = engine_thread::start(open, clock, move |answer| {
        let _ = answers.send(Fact::Engine(Box::new(answer)));
    });
    let opening = tokio::select! {
        opening = opening => opening?,
        () = stop.cancelled() => return Ok(Exit::Drained),
    };
    let manifest = opening.manifest.clone();
    let prompts = Prompts::new(Arc::clone(&opening.prompts), clock);

    let records = Records::open(&bus).await.map_err(|fault| WorkerError::Topology {
        what: format!("the bucket {}", subject::BUCKET_JOBS),
        source: Box::new(fault),
    })?;
    let records = records.kept_for(config.retention);
    let Consumers { lanes, pulls, ack_wait, waiting } = consumers(&bus, &config.pools, &manifest, &facts).await?;
    let hints = bus.client.subscribe(subject::ALL_CANCEL_HINTS).await;
    let hints = hints.map_err(|source| WorkerError::Topology {
        what: subject::ALL_CANCEL_HINTS.to_owned(),
        source: Box::new(source),
    })?;
    if let Some(waiting) = waiting {
        tokio::spawn(first_prompts::encode(bus.clone(), manifest.clone(), waiting, prompts.clone()));
    }

    let engine = tokio::select! {
        engine = opening.ready() => engine?,
        () = stop.cancelled() => return Ok(Exit::Drained),
    };
    let memory_bytes = memory_for_steps(config.memory, engine.memory_left);
    let fetched = config.model.as_ref().and_then(Coming::fetched);
    let metrics = Metrics::new(&telemetry::meter(), &manifest.name, config.capacity);
    let cold_start = ColdStart::ready(metrics.clone(), clock, fetched);
    tracing::info!(
        model = %manifest.name,
        loading_ms = cold_start.whole().as_millis(),
        fetch_ms = cold_start.fetch().map(|took| took.as_millis()),
        load_ms = cold_start.load().as_millis(),
        fetched_bytes = fetched.map(|fetched| fetched.bytes),
        memory_bytes,
        "worker.ready"
    );

    let images_in_batch_max = config.images_in_batch_max.unwrap_or(manifest.limits.images_in_batch_max);
    let sched_config = crate::sched::Config {
        lanes: lanes.clone(),
        capacity: config.capacity,
        images_in_batch_max,
        memory_bytes,
        images_parked_max: PARKED_PER_IMAGE * images_in_batch_max,
        jobs_ahead_max: JOBS_AHEAD_MAX,
        stall_max: STALL_MAX,
        passed_over_max: PASSED_OVER_MAX,
        checkpoint_every: config.interruptions.checkpoint_every,
        checkpoint_steps: config.interruptions.checkpoint_steps,
        engine_stall_max: config.interruptions.engine_stall_max,
        policy: config.policy,
        costs: known_costs(config.costs.clone(), manifest.name.as_str(), &engine.placement),
        ack_wait,
        failures_max: FAILURES_MAX,
        deaths_max: DEATHS_MAX,
        exit_when_idle: config.exit_when_idle,
        grace: config.interruptions.grace,
    };
    let account = Account {
        worker: config.worker.clone(),
        model: manifest.name.clone(),
        capacity: config.capacity,
        instance_type: config.instance_type.clone(),
        price_per_hour: config.price_per_hour,
    };
    let worker = Worker {
        accounted: Mono::ZERO,
        usage: Usage::new(account, clock.unix_ms() - i64::try_from(cold_start.whole().as_millis()).unwrap_or(0)),
        metrics,
        measured: Measured::new(clock.now()),
        events: Events::start(bus.clone(), clock).kept_for(config.retention),
        fetcher,
        loras: config.loras.clone().map(|folder| LoraFolder::new(folder, store.clone())),
        config,
        manifest,
        lanes,
        bus,
        store,
        records,
        clock,
        prompts,
        engine,
        cold_start,
        facts,
        pulls,
        tasks: TaskTracker::new(),
        jobs: HashMap::new(),
        rows: HashMap::new(),
        previews: HashMap::new(),
        work: None,
    };
    let mut beside = JoinSet::new();
    beside.spawn(listen(hints, worker.facts.clone()));
    if worker.config.exit_when_idle.is_some() {
        beside.spawn(worker.floor().watch(worker.facts.clone()));
    }
    let outcome = worker.drive(Scheduler::new(sched_config, clock.now()), &mut inbox, &stop).await;
    beside.shutdown().await;
    outcome
}

/// Where a worker gets its work.
struct Consumers {
    lanes: Vec<Lane>,
    pulls: Vec<pull::Handle>,
    /// The same for all.
    ack_wait: Duration,
    /// What nobody has of the most urgent that is not empty.
    waiting: Option<Waiting>,
}

/// Finds the consumers of the pools.
async fn consumers<E: std::error::Error + 'static>(
    bus: &Bus,
    pools: &[Pool],
    manifest: &ModelManifest,
    facts: &mpsc::UnboundedSender<Fact>,
) -> Result<Consumers, WorkerError<E>> {
    let mut found =
        Consumers { lanes: Vec::new(), pulls: Vec::new(), ack_wait: Duration::from_secs(30), waiting: None };
    for (priority, pool) in topology::lanes().filter(|(_, pool)| pools.contains(pool)) {
        let (lane, consumer) = (Lane { priority, pool }, subject::consumer(&manifest.name, priority, pool));
        let Found { handle, ack_wait, waiting_from } = pull::start(bus, &consumer, found.lanes.len(), facts.clone())
            .await
            .map_err(|source| WorkerError::Topology { what: format!("the consumer {consumer}"), source })?;
        found.lanes.push(lane);
        found.pulls.push(handle);
        found.ack_wait = ack_wait;
        let waiting = waiting_from.map(|from_sequence| Waiting { lane, from_sequence });
        found.waiting = found.waiting.or(waiting);
    }
    Ok(found)
}

/// Passes on which jobs somebody has cancelled. The record decides, so a hint may be lost or forged.
async fn listen(mut hints: Subscriber, facts: mpsc::UnboundedSender<Fact>) {
    while let Some(hint) = hints.next().await {
        let Some(job) = subject::cancelled_job(hint.subject.as_str()) else { continue };
        if facts.send(Fact::Hint { job: job.to_owned() }).is_err() {
            break;
        }
    }
}

impl Worker {
    fn floor(&self) -> Floor {
        Floor {
            bus: self.bus.clone(),
            clock: self.clock,
            model: self.manifest.name.clone(),
            worker: self.config.worker.clone(),
            ready_unix_ms: self.cold_start.ready_unix_ms(),
            capacity: self.config.capacity,
            workers_min: self.config.workers_min,
        }
    }

    /// Says now and then how long it has run, and what it did.
    fn keep_account(&mut self) {
        let now = self.clock.now();
        let since = now.since(self.accounted);
        if since < ACCOUNT_EVERY {
            return;
        }
        self.accounted = now;
        self.metrics.ran(since, self.config.price_per_hour.unwrap_or_default());
        let stepping = report::images_stepping(self);
        self.metrics.rows(stepping, self.rows.len().saturating_sub(stepping));
        let due = self.usage.due(self.clock.unix_ms());
        if !due.is_empty() {
            self.tasks.spawn(usage::put(self.bus.clone(), due));
        }
    }

    async fn drive<E: std::error::Error + 'static>(
        mut self,
        mut scheduler: Scheduler,
        inbox: &mut mpsc::UnboundedReceiver<Fact>,
        stop: &CancellationToken,
    ) -> Result<Exit, WorkerError<E>> {
        let mut draining = false;
        let mut store_was_down = false;
        let mut reports = Reports::start(&self, &scheduler);
        let exit = loop {
            while let Some(effect) = scheduler.poll_effect() {
                self.apply(effect);
            }
            if let Some(exit) = scheduler.exit() {
                break exit.clone();
            }
            let deadline = scheduler.next_deadline();
            let fact = self.select(inbox, deadline, stop, &mut draining).await;
            if let Some(input) = self.learn(fact) {
                scheduler.handle(self.clock.now(), input);
            }
            if scheduler.is_store_down() != store_was_down {
                store_was_down = !store_was_down;
                if store_was_down {
                    tracing::error!("store.down: nothing is begun until something can be stored");
                } else {
                    tracing::info!("store.up");
                }
            }
            self.keep_account();
            reports.look(&self, &scheduler, if draining { WorkerState::Draining } else { WorkerState::Ready });
        };
        tracing::info!(?exit, "worker.exit");
        self.tasks.close();
        self.tasks.wait().await;
        let ended = usage::put(self.bus.clone(), vec![self.usage.last(self.clock.unix_ms())]);
        tokio::join!(reports.end(), ended);
        // After the last acknowledgement: whatever is still queued goes out.
        let _ = tokio::time::timeout(Duration::from_secs(2), self.bus.client.flush()).await;
        match exit {
            Exit::Fatal(fault) => Err(WorkerError::Fatal(fault)),
            Exit::Idle | Exit::Drained => Ok(exit),
        }
    }

    /// Chooses what happens next; every branch only returns a value.
    async fn select(
        &self,
        inbox: &mut mpsc::UnboundedReceiver<Fact>,
        deadline: Option<Mono>,
        stop: &CancellationToken,
        draining: &mut bool,
    ) -> Fact {
        let far = Mono::from_micros(self.clock.now().as_micros() + 3_600_000_000);
        let wake = self.clock.instant(deadline.unwrap_or(far)).into();
        tokio::select! {
            fact = inbox.recv() => fact.unwrap_or(Fact::Tick),
            () = stop.cancelled(), if !*draining => {
                *draining = true;
                Fact::Drain
            }
            () = tokio::time::sleep_until(wake) => Fact::Tick,
        }
    }

    /// Keeps what the scheduler does not need to know and translates the rest.
    fn learn(&mut self, fact: Fact) -> Option<Input> {
        match fact {
            Fact::Delivered { lane, message } => self.delivered(lane, message),
            Fact::PullEnded { lane, outcome } => Some(Input::PullEnded { lane, outcome }),
            Fact::PullsStopped => Some(Input::PullsStopped),
            Fact::Claimed { ticket, outcome, prepared } => {
                let outcome = match outcome {
                    Ok(Claimed { claim, owned }) => {
                        if let Some(job) = self.jobs.get_mut(&ticket) {
                            job.owned = owned;
                            job.claimed_at = self.clock.now();
                            let encoding_ms = milliseconds(prepared.encoding);
                            job.timings.encoding_ms += encoding_ms;
                            job.gpu_ms += encoding_ms;
                            self.usage.gpu(job.tenant(), encoding_ms);
                            let checkpoint = job.owned.as_ref().and_then(|owned| owned.record.checkpoint.as_ref());
                            job.is_checkpointed = checkpoint.is_some();
                            job.saved.clone_from(&prepared.saved);
                            job.prepared = prepared;
                        }
                        if matches!(claim, Claim::Won { .. } | Claim::Unprepared { .. }) {
                            self.publish_accepted(ticket);
                        }
                        Acted::Claimed(claim)
                    }
                    Err(fault) => Acted::Failed(fault),
                };
                Some(Input::Acted { ticket, outcome })
            }
            Fact::Checkpointed { ticket, outcome } => {
                if let Err(fault) = &outcome {
                    tracing::warn!(%fault, "job.checkpoint");
                }
                if let (Some(job), Ok(Changed::Won(_))) = (self.jobs.get_mut(&ticket), &outcome) {
                    job.is_checkpointed = true;
                    self.metrics.checkpoint("saved");
                }
                Some(Input::Acted { ticket, outcome: self.changed(ticket, outcome) })
            }
            Fact::Stored { ticket, outcome, took } => {
                let outcome = match outcome {
                    Ok(stored) => {
                        if let Some(job) = self.jobs.get_mut(&ticket) {
                            job.stored = stored;
                            job.images.clear();
                            job.timings.storing_ms = milliseconds(took);
                        }
                        Acted::Done
                    }
                    Err(fault) => {
                        tracing::warn!(%fault, "job.store");
                        Acted::Failed(fault)
                    }
                };
                Some(Input::Acted { ticket, outcome })
            }
            Fact::Recorded { ticket, outcome } => {
                let status = match &outcome {
                    Ok(Changed::Won(owned)) => Some(owned.record.state.status),
                    Ok(Changed::Lost | Changed::Cancelled(_) | Changed::Unrecorded) | Err(_) => None,
                };
                let outcome = self.changed(ticket, outcome);
                if let (Some(status), Some(job)) = (status, self.jobs.get(&ticket)) {
                    if status.is_terminal() {
                        self.metrics.request_ended(status.as_str());
                    }
                    if let (Status::Completed, Some(request)) = (status, &job.request) {
                        let took = self.clock.now().since(job.claimed_at);
                        self.metrics.generated(took, request.spec.image.num_inference_steps, &job.timings);
                        self.usage.stored(job.tenant(), job.stored.len() as u64);
                        self.metrics.stored(job.stored.len() as u64);
                        self.ended_well(ticket);
                    }
                }
                Some(Input::Acted { ticket, outcome })
            }
            Fact::Acted { ticket, outcome } => {
                let outcome = match outcome {
                    Ok(()) => Acted::Done,
                    Err(fault) => Acted::Failed(fault),
                };
                Some(Input::Acted { ticket, outcome })
            }
            Fact::Extended { ticket, sent } => {
                // Who was not told that it is cancelled finds out.
                self.look(ticket);
                Some(Input::Extended { ticket, sent })
            }
            Fact::Hint { job } => {
                let meant = |(ticket, held): (&Ticket, &Job)| (held.id().as_str() == job).then_some(*ticket);
                for ticket in self.jobs.iter().filter_map(meant).collect::<Vec<_>>() {
                    self.look(ticket);
                }
                None
            }
            Fact::Looked { ticket, found } => {
                let job = self.jobs.get_mut(&ticket)?;
                let change = records::news(job.owned.as_ref()?, &found)?;
                if change != RecordChange::Taken {
                    job.owned = Some(found);
                }
                tracing::info!(ticket = ticket.0, ?change, "job.record");
                Some(Input::RecordChanged { ticket, change })
            }
            Fact::Engine(answer) => Some(self.engine_answered(*answer)),
            Fact::Stay(stays) => Some(Input::Stay(stays)),
            Fact::Drain => Some(Input::Drain),
            Fact::Tick => Some(Input::Tick),
        }
    }

    /// What the change of a job's record means for the scheduler.
    fn changed(&mut self, ticket: Ticket, outcome: Result<Changed, Fault>) -> Acted {
        let (outcome, owned) = match outcome {
            Ok(Changed::Won(owned)) => (Acted::Done, owned),
            Ok(Changed::Cancelled(owned)) => (Acted::Ended, owned),
            Ok(Changed::Unrecorded) => return Acted::Done,
            Ok(Changed::Lost) => {
                tracing::warn!(ticket = ticket.0, "job.fenced");
                self.metrics.fenced();
                return Acted::Lost;
            }
            Err(fault) => return Acted::Failed(fault),
        };
        if let Some(job) = self.jobs.get_mut(&ticket)
            // A look may have found what was written later, such as the wish that it stops.
            && job.owned.as_ref().is_none_or(|known| known.revision < owned.revision)
        {
            job.owned = Some(owned);
        }
        outcome
    }

    /// Reads the record of a job that is owned.
    fn look(&self, ticket: Ticket) {
        let Some(Job { owned: Some(_), delivery, .. }) = self.jobs.get(&ticket) else { return };
        let (Some(tenant), Some(job)) = (delivery.tenant.clone(), self.jobs.get(&ticket).map(Job::id)) else { return };
        let (records, facts) = (self.records.clone(), self.facts.clone());
        self.tasks.spawn(async move {
            if let Ok(Some(found)) = records.read(&tenant, &job).await {
                let _ = facts.send(Fact::Looked { ticket, found });
            }
        });
    }

    fn delivered(&mut self, lane: usize, message: async_nats::Message) -> Option<Input> {
        let delivery = Delivery::read(&self.bus, message)?;
        let (ticket, pending) = (Ticket(delivery.stream_sequence), delivery.pending);
        let deliveries = u64::try_from(delivery.delivered).unwrap_or(1);
        if let Some(job) = self.jobs.get_mut(&ticket) {
            // The server hands it to us once more: only the newest acknowledgement subject is sure to count.
            job.delivery = delivery;
            self.metrics.redelivered();
            return Some(Input::Delivered { ticket, lane, offer: None, pending, deliveries });
        }
        if deliveries > 1 {
            self.metrics.redelivered();
        }
        let now_unix_ms = self.clock.unix_ms();
        let queued_ms = now_unix_ms.saturating_sub(delivery.published_unix_ms).max(0);
        self.metrics.queue_wait(Duration::from_millis(u64::try_from(queued_ms).unwrap_or(0)));

        let span = tracing::info_span!(
            "job.process",
            otel.kind = "consumer",
            messaging.system = "nats",
            messaging.destination.name = %delivery.subject,
            job.id = tracing::field::Empty,
            job.attempt = tracing::field::Empty,
            model.id = %self.manifest.name,
        );
        let _ = span.set_parent(telemetry::extract(delivery.headers.as_ref()));

        #[expect(clippy::cast_precision_loss, reason = "milliseconds of a queue fit")]
        let queued_ms = queued_ms as f64;
        let loading_ms = milliseconds(self.cold_start.waited(delivery.published_unix_ms));
        let fetching_ms = milliseconds(self.cold_start.waited_for_files(delivery.published_unix_ms));
        let timings = Timings { queued_ms, loading_ms, fetching_ms, ..Timings::default() };
        let lane_of = &self.lanes[lane];
        let (request, refusal) = match delivery.parse(&self.manifest, lane_of.priority) {
            Ok(request) => (Some(request), None),
            Err(refusal) => (None, Some(refusal)),
        };
        if let Some(request) = &request {
            span.record("job.id", request.job.as_str());
        }
        let offer = request.as_ref().map(|Request { spec, .. }| Offer {
            images: spec.num_images,
            key: BatchKey { width: spec.image.width, height: spec.image.height },
            previews: spec.previews,
            steps: spec.image.num_inference_steps,
            whole_every: spec.image.whole_every(),
            tenant: delivery.tenant.as_ref().map(tenant_key).unwrap_or_default(),
            deadline: spec
                .deadline
                .map(|deadline| Deadline { at: self.clock.mono(deadline.unix_ms), on_late: deadline.on_late }),
        });
        let images = offer.as_ref().map_or(0, |offer| offer.images as usize);
        let job = Job {
            delivery,
            request,
            refusal,
            owned: None,
            prepared: Prepared::default(),
            warnings: Vec::new(),
            saved: BTreeMap::new(),
            is_checkpointed: false,
            resumed_from_step: 0,
            images: vec![None; images],
            stored: Vec::new(),
            timings,
            gpu_ms: 0.0,
            came_at: self.clock.now(),
            claimed_at: self.clock.now(),
            stepping_since: None,
            span,
        };
        self.cold_start.has_work(job.came_at);
        self.jobs.insert(ticket, job);
        Some(Input::Delivered { ticket, lane, offer, pending, deliveries })
    }

    fn engine_answered(&mut self, answer: Answer) -> Input {
        let Answer { outcome, image, previews, saved, warnings, took } = answer;
        if let Err(fault) = &outcome {
            tracing::error!(%fault, "engine");
        }
        let Some((work, span)) = self.work.take() else { return Input::Tick };
        drop(span);
        let spent_ms = milliseconds(took);
        self.metrics.gpu(took);
        match &work {
            EngineWork::Admit { row, ticket, .. } => {
                let made = if let Ok(EngineReport::Admitted { made, .. }) = &outcome { *made } else { 0 };
                if let Some(row) = self.rows.get_mut(row) {
                    row.step = made;
                }
                if made > 0 {
                    self.metrics.checkpoint("resumed");
                }
                if let Some(job) = self.jobs.get_mut(ticket) {
                    self.usage.gpu(job.tenant(), spent_ms);
                    job.resumed_from_step += made;
                    // All images of a job have the same.
                    job.warnings = warnings;
                    job.timings.encoding_ms += spent_ms;
                    job.gpu_ms += spent_ms;
                }
            }
            EngineWork::Step { rows, .. } => {
                self.metrics.stepped(rows.len(), took);
                let now = self.clock.now();
                self.cold_start.stepped(now);
                #[expect(clippy::cast_precision_loss, reason = "a batch is small")]
                let share_ms = spent_ms / rows.len().max(1) as f64;
                for row in rows {
                    let Some(row) = self.rows.get_mut(row) else { continue };
                    row.step += u32::from(outcome.is_ok());
                    let Some(job) = self.jobs.get_mut(&row.ticket) else { continue };
                    job.gpu_ms += share_ms;
                    self.usage.gpu(job.tenant(), share_ms);
                    let since = job.stepping_since.unwrap_or(now);
                    job.timings.denoising_ms = milliseconds(now.since(since));
                }
                // A row that was released meanwhile will not be asked for its own.
                self.previews.extend(previews.into_iter().filter(|(row, _)| self.rows.contains_key(row)));
            }
            EngineWork::Save { .. } => self.keep_saved(saved),
            EngineWork::Decode { ticket, image: index, .. } => {
                self.keep_saved(saved);
                if let Some(job) = self.jobs.get_mut(ticket) {
                    self.usage.gpu(job.tenant(), spent_ms);
                    job.timings.decoding_ms += spent_ms;
                    job.gpu_ms += spent_ms;
                    if let (Some(image), Some(place)) = (image, job.images.get_mut(*index as usize)) {
                        *place = Some(Arc::new(image));
                    }
                }
            }
            EngineWork::Release { .. } => {}
        }
        Input::Engine(outcome)
    }

    /// Starts what the scheduler wants. Never waits.
    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Pull { lane, max, preference } => self.pulls[lane].ask(max, preference),
            Effect::StopPulling => {
                let stopped = join_all(self.pulls.iter().map(pull::Handle::stop));
                let facts = self.facts.clone();
                self.tasks.spawn(async move {
                    stopped.await;
                    let _ = facts.send(Fact::PullsStopped);
                });
            }
            Effect::Act { ticket, action } => self.act(ticket, action),
            Effect::Extend { ticket } => self.extend(ticket),
            Effect::Engine(work) => self.engine_work(work),
            Effect::Started { ticket } => self.begins(ticket),
            Effect::Progress { ticket, step, steps, remaining, preview } => {
                let preview = preview.and_then(|row| self.previews.remove(&row));
                let Some(Job { request: Some(request), delivery, owned, .. }) = self.jobs.get(&ticket) else {
                    return;
                };
                let data = event::Progress {
                    step,
                    steps,
                    remaining_ms: u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX),
                    preview: preview.map(|jpeg| base64::engine::general_purpose::STANDARD.encode(jpeg)),
                };
                let attempt = owned.as_ref().map_or(1, |owned| owned.record.state.attempts);
                if let Some(tenant) = &delivery.tenant {
                    self.events.progress(tenant, &request.job, attempt, &data);
                }
            }
            Effect::Forget { ticket } => {
                if let Some(job) = self.jobs.remove(&ticket) {
                    self.sweep_checkpoints(&job);
                }
                if self.jobs.is_empty() {
                    self.cold_start.has_no_work();
                }
            }
        }
    }

    fn engine_work(&mut self, work: EngineWork) {
        let (command, span) = match &work {
            EngineWork::Release { row } => {
                self.rows.remove(row);
                self.previews.remove(row);
                return self.engine.send(Command::Release { row: *row });
            }
            EngineWork::Admit { row, ticket, image } => {
                let Some(Job { request: Some(request), prepared, span, .. }) = self.jobs.get(ticket) else { return };
                self.rows.insert(*row, RowState { ticket: *ticket, image: *image, step: 0 });
                let spec = Box::new(request.spec.image(*image));
                let saved = prepared.saved.get(image).map(|saved| saved.bytes.clone());
                (
                    Command::Admit { row: *row, spec, pictures: prepared.pictures.clone(), saved },
                    tracing::info_span!(parent: span, "job.encode"),
                )
            }
            EngineWork::Step { rows, previews } => {
                let span = tracing::info_span!(parent: None, "batch.step", batch.size = rows.len());
                for job in rows.iter().filter_map(|row| self.jobs.get(&self.rows.get(row)?.ticket)) {
                    let context = job.span.context();
                    span.add_link(context.span().span_context().clone());
                }
                (Command::Step { rows: rows.clone(), previews: previews.clone() }, span)
            }
            EngineWork::Save { ticket, rows } => {
                let parent = self.jobs.get(ticket).map_or_else(Span::none, |job| job.span.clone());
                (Command::Save { rows: rows.clone() }, tracing::info_span!(parent: parent, "job.save"))
            }
            EngineWork::Decode { row, ticket, .. } => {
                let job = self.jobs.get(ticket);
                let parent = job.map_or_else(Span::none, |job| job.span.clone());
                // Whoever takes the job over while others of its images are made need not make this one again.
                let save = job.is_some_and(|job| job.images.len() > 1);
                (Command::Decode { row: *row, save }, tracing::info_span!(parent: parent, "job.decode"))
            }
        };
        self.work = Some((work, span));
        self.engine.send(command);
    }

    fn extend(&mut self, ticket: Ticket) {
        let Some(job) = self.jobs.get(&ticket) else { return };
        let (bus, reply, facts) = (self.bus.clone(), job.delivery.reply.clone(), self.facts.clone());
        let sent = self.clock.now();
        self.tasks.spawn(async move {
            match bus.settle(&reply, Bytes::from_static(b"+WPI")).await {
                Ok(()) => drop(facts.send(Fact::Extended { ticket, sent })),
                Err(fault) => tracing::warn!(ticket = ticket.0, %fault, "lease.extend"),
            }
        });
    }

    fn publish_accepted(&self, ticket: Ticket) {
        let Some(Job { request: Some(request), delivery, span, .. }) = self.jobs.get(&ticket) else { return };
        let Some(tenant) = delivery.tenant.clone() else { return };
        let data = event::Accepted {
            model: self.manifest.name.to_string(),
            priority: delivery.priority.to_string(),
            seed: request.spec.image.seed,
            metadata: request.metadata.clone(),
        };
        let stored = span.in_scope(|| self.events.publish(EventKind::Accepted, tenant.as_str(), &request.job, 1, data));
        self.tasks.spawn(log_failure("event.accepted", stored));
    }

    fn publish_started(&self, ticket: Ticket, estimated_start_error_ms: Option<i64>) {
        let Some(Job { request: Some(request), delivery, owned, prepared, span, .. }) = self.jobs.get(&ticket) else {
            return;
        };
        let Some(tenant) = delivery.tenant.clone() else { return };
        let attempt = owned.as_ref().map_or(1, |owned| owned.record.state.attempts);
        span.record("job.attempt", attempt);
        let data = event::Started {
            worker: self.config.worker.to_string(),
            attempt,
            model_digest: prepared.model_digest.clone(),
            estimated_start_error_ms,
            metadata: request.metadata.clone(),
        };
        let stored =
            span.in_scope(|| self.events.publish(EventKind::Started, tenant.as_str(), &request.job, attempt, data));
        self.tasks.spawn(log_failure("event.started", stored));
    }
}

/// For events that nothing waits for.
async fn log_failure(what: &'static str, stored: impl Future<Output = Result<(), Fault>>) {
    if let Err(fault) = stored.await {
        tracing::warn!(%fault, "{what}");
    }
}

pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
