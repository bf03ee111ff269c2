//! What every model's requests want of workers, read from the bus again and again, and how many there should be.
//!
//! How many is [`scale::wanted`]'s to say; the function `scaler` tells KEDA, the local supervisor starts processes. It starts
//! and ends nothing itself, and whatever it reads may be a second old.

mod http;
mod starts;
mod trigger;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::HeaderMap;
use futures_util::StreamExt;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::job::{Capacity, Fault, FaultCode, ModelManifest, ModelName, Pool, Priority};
use crate::sched::Mono;
use crate::sched::scale::{self, Backlog, Demand, Offer, Running, Target, Wanted};
use crate::wire::header;
use crate::wire::request::{Context, parse};
use crate::wire::scale::{HourPlan, ScalePlan, hour_of_week};
use crate::wire::subject::{self, RequestSubject};
use crate::wire::worker::{PaceReport, WorkerReport, WorkerState};

use super::bus::{Bus, chain};
use super::clock::Clock;
use super::config::parse_duration;
use super::metrics::ScalerMetrics;
use super::outlook::megapixel_steps;
use super::stored;
use super::topology::{self, Served};
use super::{fleet, telemetry};

pub use http::serve as serve_http;
use starts::Starts;
pub use trigger::{Trigger, TriggerError};

/// Between two looks, unless something happens.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// And the least time, whatever happens.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Between two looks at the plans.
const PLANS_EVERY: Duration = Duration::from_secs(60);
/// Requests that are read of those that wait, to know what they are like.
const SAMPLE: usize = 64;
/// What arrived longer ago than this hardly counts.
const MEMORY_S: f64 = 60.0;
/// For how long a hint keeps a worker.
const AWAITED_FOR: Duration = Duration::from_secs(120);
/// For how long one who asked counts as one who starts workers: ten of KEDA's usual polls.
const ASKS_FOR: Duration = Duration::from_secs(300);
/// What a job is taken for while nobody knows how long any takes.
const GUESSED_JOB_MS: f64 = 10_000.0;

/// What is promised, and what machines cost, where a trigger does not say otherwise.
#[derive(Clone, Copy, Debug, PartialEq, clap::Args)]
pub struct ScalerOptions {
    /// How long a request may wait beyond a cold start
    #[arg(long, env = "DARKROOM_SCALE_TARGET_WAIT", default_value = "10s", value_parser = parse_duration, value_name = "DURATION")]
    pub target_wait: Duration,
    /// From the wish for a machine until its worker's process begins, until that was measured
    #[arg(long, env = "DARKROOM_SCALE_PROVISIONING", default_value = "90s", value_parser = parse_duration, value_name = "DURATION")]
    pub provisioning: Duration,
    /// Price of a spot machine, in the same money as the other one's; spot comes first where neither is known
    #[arg(long, env = "DARKROOM_SCALE_SPOT_PRICE", default_value_t = 0.0, value_name = "PRICE")]
    pub spot_price: f64,
    /// Price of an on-demand machine
    #[arg(long, env = "DARKROOM_SCALE_ON_DEMAND_PRICE", default_value_t = 0.0, value_name = "PRICE")]
    pub on_demand_price: f64,
    /// How often in an hour a spot machine is taken away
    #[arg(long, env = "DARKROOM_SCALE_INTERRUPTIONS", default_value_t = 0.05, value_name = "PER HOUR")]
    pub interruptions_per_hour: f64,
}

/// What one who asks has of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Workers that are kept though nothing waits.
    pub workers_min: Option<u32>,
    /// Workers on this capacity at most.
    pub workers_max: Option<u32>,
    /// How long a request may wait beyond a cold start.
    pub target_wait: Option<Duration>,
    /// Workers that were started and have not said anything yet, where the one who asks knows.
    pub starting: u32,
}

/// One model, as it was a moment ago.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Look {
    /// What its requests want.
    pub demand: Demand,
    /// What runs, in the order of [`Capacity::ALL`].
    pub running: [Running; 2],
    /// Workers that finish what they have, in that order.
    pub draining: [u32; 2],
    /// From the start of a worker's process until it is ready.
    pub loading: Duration,
}

/// Every model by its name.
pub type Looks = BTreeMap<ModelName, Look>;

/// Looks, and answers.
#[derive(Clone, Debug)]
pub struct Scaler {
    options: ScalerOptions,
    clock: Clock,
    looks: watch::Receiver<Arc<Looks>>,
    asked: Arc<Mutex<Asked>>,
}

/// What is remembered of those who ask.
#[derive(Debug, Default)]
struct Asked {
    /// By model and capacity: one that nobody asks for is not there.
    wishes: HashMap<(ModelName, Capacity), Asking>,
    starts: Starts,
    plans: BTreeMap<ModelName, ScalePlan>,
}

/// What somebody wishes for, and when he asked last.
#[derive(Clone, Copy, Debug)]
struct Asking {
    wish: Wish,
    at: Mono,
}

impl Asked {
    /// Somebody who starts workers asks. What another one asked for with a wish of his own stays as it is where there is none.
    fn asks(&mut self, model: &ModelName, capacity: Capacity, wish: Option<Wish>, now: Mono) {
        let key = (model.clone(), capacity);
        let stays = wish.is_none() && self.wishes.get(&key).is_some_and(|asking| asking.wish != Wish::default());
        if !stays {
            self.wishes.insert(key, Asking { wish: wish.unwrap_or_default(), at: now });
        }
    }

    /// Forgets who has not asked for long: jobs must not wait for workers that nobody starts any more.
    fn forget(&mut self, now: Mono) {
        self.wishes.retain(|_, asking| now.since(asking.at) < ASKS_FOR);
    }

    fn wish(&self, model: &ModelName, capacity: Capacity) -> Option<Wish> {
        self.wishes.get(&(model.clone(), capacity)).map(|asking| asking.wish)
    }
}

fn index(capacity: Capacity) -> usize {
    match capacity {
        Capacity::Spot => 0,
        Capacity::OnDemand => 1,
    }
}

impl Scaler {
    /// Begins to look, until `stop`.
    ///
    /// # Errors
    /// A `Retry` fault when NATS does not answer.
    pub async fn start(bus: Bus, options: ScalerOptions, stop: CancellationToken) -> Result<Self, Fault> {
        let clock = Clock::start();
        let (sender, looks) = watch::channel(Arc::new(Looks::new()));
        let metrics = ScalerMetrics::new(&telemetry::meter());
        let scaler = Self { options, clock, looks, asked: Arc::default() };
        let arrivals = Arc::new(Arrivals::default());
        let hints = listen(&bus, clock, Arc::clone(&arrivals), stop.clone()).await?;
        let mut looker = Looker { bus, clock, arrivals, metrics, sender, served: Vec::new() };
        // So that whoever asks first is not told that nothing waits.
        if let Err(fault) = looker.look().await {
            tracing::warn!(%fault, "scaler.look");
        }
        let told = scaler.clone();
        tokio::spawn(async move {
            looker.until(stop, hints, told).await;
        });
        Ok(scaler)
    }

    /// What was seen last; changes with every look that differs.
    pub fn looks(&self) -> watch::Receiver<Arc<Looks>> {
        self.looks.clone()
    }

    /// The models that there are.
    pub fn models(&self) -> Vec<ModelName> {
        self.looks.borrow().keys().cloned().collect()
    }

    /// How many workers of a model there should be, for one who starts them, and who may have wishes of his own; `None` for a
    /// model that is not served.
    pub fn wanted(&self, model: &ModelName, capacity: Capacity, wish: Option<Wish>) -> Option<Wanted> {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.asks(model, capacity, wish, self.clock.now());
        let wanted = self.answer(&asked, model)?;
        let ready = self.looks.borrow().get(model).map_or(0, |look| look.running[index(capacity)].ready);
        asked.starts.wished(model, capacity, ready, wanted.on(capacity), self.clock.now());
        Some(wanted)
    }

    /// The same of every capacity that somebody starts workers on, for one who only wants to know.
    pub fn known(&self, model: &ModelName) -> Vec<(Capacity, Wanted)> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(wanted) = self.answer(&asked, model) else { return Vec::new() };
        let is_asked_for = |capacity: &Capacity| asked.wish(model, *capacity).is_some();
        Capacity::ALL.into_iter().filter(is_asked_for).map(|capacity| (capacity, wanted)).collect()
    }

    fn answer(&self, asked: &Asked, model: &ModelName) -> Option<Wanted> {
        let looks = Arc::clone(&self.looks.borrow());
        let look = looks.get(model)?;
        let plan = asked.plans.get(model).and_then(|plan| plan.hours.get(hour_of_week(self.clock.unix_ms()))).copied();
        let wish = |capacity: Capacity| asked.wish(model, capacity);
        let pool = |capacity: Capacity| {
            let starting = wish(capacity).map_or(0, |wish| wish.starting);
            let running = Running { starting, ..look.running[index(capacity)] };
            let workers_max = wish(capacity).map_or(0, |wish| wish.workers_max.unwrap_or(u32::MAX));
            let measured = asked.starts.measured(model, capacity);
            scale::Pool { running, offer: self.offer(capacity, workers_max, measured, look.loading) }
        };
        let wishes: Vec<Wish> = Capacity::ALL.into_iter().filter_map(wish).collect();
        let target = self.target(plan, &wishes);
        Some(scale::wanted(&look.demand, &pool(Capacity::Spot), &pool(Capacity::OnDemand), &target))
    }

    fn offer(&self, capacity: Capacity, workers_max: u32, measured: Option<Duration>, loading: Duration) -> Offer {
        let (price_per_hour, interruptions_per_hour) = match capacity {
            Capacity::Spot => (self.options.spot_price, self.options.interruptions_per_hour),
            Capacity::OnDemand => (self.options.on_demand_price, 0.0),
        };
        let cold_start = measured.unwrap_or(self.options.provisioning + loading);
        Offer { price_per_hour, cold_start, interruptions_per_hour, workers_max }
    }

    /// The strictest of what they wish for.
    fn target(&self, plan: Option<HourPlan>, wishes: &[Wish]) -> Target {
        let planned = plan.unwrap_or(HourPlan { workers_min: 0, workers_max: u32::MAX });
        let workers_min = wishes.iter().filter_map(|wish| wish.workers_min).max().unwrap_or_default();
        Target {
            wait: wishes.iter().filter_map(|wish| wish.target_wait).min().unwrap_or(self.options.target_wait),
            workers_min: workers_min.max(planned.workers_min),
            workers_max: planned.workers_max,
        }
    }
}

/// Messages that a consumer has still to settle, those that were delivered included.
///
/// # Errors
/// A `Retry` fault when the server does not answer or has no such consumer.
pub async fn lag(bus: &Bus, stream: &str, consumer: &str) -> Result<u64, Fault> {
    let info = bus.api(&format!("CONSUMER.INFO.{stream}.{consumer}"), &serde_json::Value::Null).await;
    let info = info.map_err(|error| Fault::retry(FaultCode::BusFailed, chain(&error)))?;
    let count = |field: &str| info[field].as_u64().unwrap_or_default();
    Ok(count("num_pending") + count("num_ack_pending"))
}

/// What was published lately: a hint that nothing depends on but how early workers are started.
#[derive(Debug, Default)]
struct Arrivals {
    by_pool: Mutex<HashMap<(ModelName, Pool), Fading>>,
    awaited: Mutex<HashMap<ModelName, Mono>>,
    manifests: Mutex<BTreeMap<ModelName, ModelManifest>>,
}

/// A sum in which what is old counts less.
#[derive(Clone, Copy, Debug)]
struct Fading {
    jobs: f64,
    megapixel_steps: f64,
    at: Mono,
}

impl Fading {
    fn at(self, now: Mono) -> Self {
        let left = (-now.since(self.at).as_secs_f64() / MEMORY_S).exp();
        Self { jobs: self.jobs * left, megapixel_steps: self.megapixel_steps * left, at: now }
    }
}

impl Arrivals {
    fn came(&self, now: Mono, subject: &str, body: &[u8]) {
        let Some(RequestSubject { model, priority, pool, tenant }) = RequestSubject::parse(subject) else { return };
        let manifests = self.manifests.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(manifest) = manifests.get(&model) else { return };
        let context = Context { manifest, tenant: &tenant, priority, message_id: None, stream_sequence: 0 };
        // What is wrong with it will be said by a worker, which takes no time.
        let Ok(request) = parse(body, &context) else { return };
        let work = megapixel_steps(&request.spec);
        let mut by_pool = self.by_pool.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = by_pool.entry((model, pool)).or_insert(Fading { jobs: 0.0, megapixel_steps: 0.0, at: now });
        let faded = sum.at(now);
        *sum = Fading { jobs: faded.jobs + 1.0, megapixel_steps: faded.megapixel_steps + work, at: now };
    }

    fn lately(&self, now: Mono, model: &ModelName, pool: Pool) -> Option<Fading> {
        let by_pool = self.by_pool.lock().unwrap_or_else(PoisonError::into_inner);
        by_pool.get(&(model.clone(), pool)).map(|sum| sum.at(now))
    }

    fn is_awaited(&self, now: Mono, model: &ModelName) -> bool {
        let awaited = self.awaited.lock().unwrap_or_else(PoisonError::into_inner);
        awaited.get(model).is_some_and(|since| now.since(*since) < AWAITED_FOR)
    }
}

/// Hears of requests and of those who will soon ask.
async fn listen(
    bus: &Bus,
    clock: Clock,
    arrivals: Arc<Arrivals>,
    stop: CancellationToken,
) -> Result<Arc<Notify>, Fault> {
    let lost = |error: async_nats::SubscribeError| Fault::retry(FaultCode::BusFailed, chain(&error));
    let mut requests = bus.client.subscribe(subject::ALL_REQUESTS).await.map_err(lost)?;
    let mut hints = bus.client.subscribe(subject::ALL_WAKE_HINTS).await.map_err(lost)?;
    let notify = Arc::new(Notify::new());
    let heard = Arc::clone(&notify);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                request = requests.next() => {
                    let Some(request) = request else { return };
                    arrivals.came(clock.now(), request.subject.as_str(), &request.payload);
                }
                hint = hints.next() => {
                    let Some(hint) = hint else { return };
                    let Some(model) = subject::awaited_model(hint.subject.as_str()) else { continue };
                    arrivals.awaited.lock().unwrap_or_else(PoisonError::into_inner).insert(model, clock.now());
                }
            }
            heard.notify_one();
        }
    });
    Ok(notify)
}

struct Looker {
    bus: Bus,
    clock: Clock,
    arrivals: Arc<Arrivals>,
    metrics: ScalerMetrics,
    sender: watch::Sender<Arc<Looks>>,
    served: Vec<Served>,
}

impl Looker {
    async fn until(&mut self, stop: CancellationToken, hints: Arc<Notify>, scaler: Scaler) {
        let mut plans_at = self.clock.now();
        loop {
            if self.clock.now() >= plans_at {
                plans_at = self.clock.now().after(PLANS_EVERY);
                self.plans(&scaler.asked).await;
            }
            if let Err(fault) = self.look().await {
                tracing::warn!(%fault, "scaler.look");
            }
            {
                let mut asked = scaler.asked.lock().unwrap_or_else(PoisonError::into_inner);
                let now = self.clock.now();
                asked.forget(now);
                for (model, look) in self.sender.borrow().iter() {
                    for capacity in Capacity::ALL {
                        asked.starts.seen(model, capacity, look.running[index(capacity)].ready, now);
                    }
                }
            }
            for model in scaler.models() {
                let known = scaler.known(&model);
                for capacity in Capacity::ALL {
                    let wanted = known.iter().find(|(of, _)| *of == capacity).map_or(0, |(of, wanted)| wanted.on(*of));
                    self.metrics.wanted(model.as_str(), capacity, u64::from(wanted));
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
                // The request is on its way into the stream.
                () = async { hints.notified().await; tokio::time::sleep(LOOK_AGAIN).await } => {}
            }
        }
    }

    async fn plans(&self, asked: &Mutex<Asked>) {
        let looks = Arc::clone(&self.sender.borrow());
        for model in looks.keys().cloned() {
            match plan(&self.bus, &model).await {
                Ok(Some(plan)) => {
                    asked.lock().unwrap_or_else(PoisonError::into_inner).plans.insert(model, plan);
                }
                Ok(None) => {
                    asked.lock().unwrap_or_else(PoisonError::into_inner).plans.remove(&model);
                }
                // The old one is as good as any.
                Err(fault) => tracing::warn!(%fault, %model, "scaler.plan"),
            }
        }
    }

    async fn look(&mut self) -> Result<(), Fault> {
        let served = topology::served(&self.bus).await;
        self.served = served.map_err(|error| Fault::retry(FaultCode::BusFailed, chain(&error)))?;
        let manifests: Vec<ModelManifest> = topology::manifests(&self.served).into_iter().cloned().collect();
        let mut looks = Looks::new();
        for manifest in &manifests {
            looks.insert(manifest.name.clone(), self.look_at(manifest).await?);
        }
        *self.arrivals.manifests.lock().unwrap_or_else(PoisonError::into_inner) =
            manifests.into_iter().map(|manifest| (manifest.name.clone(), manifest)).collect();
        self.sender.send_if_modified(|known| {
            let is_new = **known != looks;
            *known = Arc::new(looks);
            is_new
        });
        Ok(())
    }

    async fn look_at(&self, manifest: &ModelManifest) -> Result<Look, Fault> {
        let model = &manifest.name;
        let (reports, remembered) =
            tokio::try_join!(fleet::worker_reports(&self.bus, model), fleet::model_report(&self.bus, model))?;
        let pace = pace(&reports, remembered.as_ref().map(|report| report.pace));
        let now = self.clock.now();
        let held: u64 = reports.iter().map(|report| report.jobs_held).sum();
        let own = |pool: Pool, priority: Priority| {
            let name = subject::consumer(model, priority, pool);
            self.served.iter().find(move |served| served.consumer == name)
        };
        let in_flight: u64 =
            topology::lanes().filter_map(|(priority, pool)| own(pool, priority)).map(|served| served.in_flight).sum();
        // In nobody's hands: a worker died with them, or their delay is not over. Whoever is there will get them.
        let mut lost = if reports.is_empty() { in_flight.saturating_sub(held) } else { 0 };
        let mut backlogs = [Backlog::default(); 2];
        for (nth, pool) in [Pool::Any, Pool::OnDemand].into_iter().enumerate() {
            let mut jobs = 0;
            let mut from = u64::MAX;
            for priority in Priority::ALL {
                let Some(served) = own(pool, *priority) else { continue };
                self.metrics.queue_size(model.as_str(), priority.as_str(), pool.as_str(), served.pending);
                if served.is_paused {
                    continue;
                }
                let of_the_lost = lost.min(served.in_flight);
                lost -= of_the_lost;
                jobs += served.pending + of_the_lost;
                if served.pending > 0 {
                    from = from.min(served.delivered_sequence + 1);
                }
                if of_the_lost > 0 {
                    from = 1;
                }
            }
            let lately = self.arrivals.lately(now, model, pool);
            let typical = if jobs > 0 { self.typical(manifest, pool, from).await? } else { None };
            let each_ms = |megapixel_steps: Option<f64>| {
                let by_size = megapixel_steps.zip(pace.megapixel_step_ms).map(|(work, each_ms)| work * each_ms);
                by_size.or(pace.job_ms).unwrap_or(GUESSED_JOB_MS)
            };
            #[expect(clippy::cast_precision_loss, reason = "a queue's length fits")]
            let work_ms = jobs as f64 * each_ms(typical);
            let arriving_ms_per_s = lately.map_or(0.0, |sum| {
                let mean = (sum.jobs > 1e-6).then(|| sum.megapixel_steps / sum.jobs);
                sum.jobs / MEMORY_S * each_ms(mean)
            });
            backlogs[nth] = Backlog { jobs, work_ms, arriving_ms_per_s };
        }
        let demand =
            Demand { any: backlogs[0], on_demand: backlogs[1], is_awaited: self.arrivals.is_awaited(now, model) };
        let mut look = Look { demand, ..Look::default() };
        look.loading = Duration::from_millis(remembered.as_ref().map_or(0, |report| report.loading_ms));
        for report in &reports {
            let nth = index(fleet::capacity_of(report));
            if report.state == WorkerState::Draining {
                look.draining[nth] += 1;
                continue;
            }
            let running = &mut look.running[nth];
            running.ready += 1;
            running.busy += u32::from(report.jobs_held > 0);
            running.work_left_ms += report.work_left_ms;
        }
        self.tell(model, &look);
        Ok(look)
    }

    /// Millions of pixels, times steps, of the requests of a pool that wait: the mean of the next ones.
    async fn typical(&self, manifest: &ModelManifest, pool: Pool, from: u64) -> Result<Option<f64>, Fault> {
        let filter = subject::requests_of_pool(&manifest.name, pool);
        let page = stored::page(&self.bus, subject::STREAM_REQUESTS, from, &filter, SAMPLE).await?;
        let works = page.iter().filter_map(|message| {
            let RequestSubject { priority, tenant, .. } = RequestSubject::parse(&message.subject)?;
            let sequence = message.sequence;
            let context = Context { manifest, tenant: &tenant, priority, message_id: None, stream_sequence: sequence };
            parse(&message.body, &context).ok().map(|request| megapixel_steps(&request.spec))
        });
        let (sum, count) = works.fold((0.0, 0.0), |(sum, count), work| (sum + work, count + 1.0));
        Ok((count > 0.0).then(|| sum / count))
    }

    fn tell(&self, model: &ModelName, look: &Look) {
        let mut backlog_ms = look.demand.any.work_ms + look.demand.on_demand.work_ms;
        for capacity in Capacity::ALL {
            let nth = index(capacity);
            backlog_ms += look.running[nth].work_left_ms;
            self.metrics.workers(model.as_str(), capacity, "ready", u64::from(look.running[nth].ready));
            self.metrics.workers(model.as_str(), capacity, "draining", u64::from(look.draining[nth]));
        }
        self.metrics.backlog(model.as_str(), backlog_ms / 1e3);
    }
}

/// How the jobs of a model are: as those who run say, or as it was when somebody did.
fn pace(reports: &[WorkerReport], remembered: Option<PaceReport>) -> PaceReport {
    let mean = |of: &dyn Fn(&PaceReport) -> Option<f64>| {
        let known: Vec<f64> = reports.iter().filter_map(|report| of(&report.pace)).collect();
        #[expect(clippy::cast_precision_loss, reason = "a number of workers fits")]
        let mean = (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64);
        mean.or_else(|| remembered.as_ref().and_then(of))
    };
    PaceReport {
        job_ms: mean(&|pace| pace.job_ms),
        run_ms: mean(&|pace| pace.run_ms),
        megapixel_step_ms: mean(&|pace| pace.megapixel_step_ms),
    }
}

/// Keeps a model's plan, or that it has none.
///
/// # Errors
/// A `Retry` fault when nobody confirms it.
pub async fn keep_plan(bus: &Bus, model: &ModelName, plan: Option<&ScalePlan>) -> Result<(), Fault> {
    let mut headers = HeaderMap::new();
    if plan.is_none() {
        headers.insert(header::KEY_OPERATION, header::KEY_DELETED);
    }
    let body = plan.map(crate::wire::scale::encode).unwrap_or_default();
    let kept = bus.publish(&subject::scale_plan(model), headers, body.into()).await;
    kept.map(drop).map_err(|error| Fault::retry(FaultCode::BusFailed, chain(&error)))
}

/// A model's plan, if somebody has made one.
///
/// # Errors
/// A `Retry` fault when nobody answers; a `Reject` fault when what is there is no plan.
pub async fn plan(bus: &Bus, model: &ModelName) -> Result<Option<ScalePlan>, Fault> {
    let stream = subject::stream_of_bucket(subject::BUCKET_SCALE);
    let found = stored::last_of(bus, &stream, &[subject::scale_plan(model)]).await?;
    let Some(found) = found.first().filter(|found| !found.body.is_empty()) else { return Ok(None) };
    let plan = crate::wire::scale::decode(&found.body);
    plan.map(Some).map_err(|error| Fault::reject(FaultCode::InvalidRequest, format!("the plan of {model}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_ask_any_more_starts_no_workers() {
        let model: ModelName = "shapes".parse().unwrap();
        let (spot, on_demand) = (Capacity::Spot, Capacity::OnDemand);
        let four = Wish { workers_max: Some(4), ..Wish::default() };
        let mut asked = Asked::default();
        asked.asks(&model, spot, Some(four), Mono::ZERO);
        asked.asks(&model, on_demand, None, Mono::ZERO);
        // One without wishes does not take away another's, nor keep it.
        let later = Mono::ZERO.after(ASKS_FOR / 2);
        asked.asks(&model, spot, None, later);
        asked.asks(&model, on_demand, None, later);
        asked.forget(later);
        assert_eq!((asked.wish(&model, spot), asked.wish(&model, on_demand)), (Some(four), Some(Wish::default())));
        asked.forget(Mono::ZERO.after(ASKS_FOR));
        assert_eq!((asked.wish(&model, spot), asked.wish(&model, on_demand)), (None, Some(Wish::default())));
    }
}
