//! What a client is told of a job that waits: its place, when it will begin and end, and which pool it is put into.
//!
//! What is said here is an estimate of what others do; a job's record and events are the truth.

use std::time::Duration;

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::DirectGetErrorKind;

use crate::job::{Fault, FaultCode, JobSpec, ModelName, Pool, Priority, Status};
use crate::sched::Lane;
use crate::sched::estimate::{self, Estimate, Wanted};
use crate::sched::route::{self, Choice};
use crate::wire::record::Record;
use crate::wire::request::{Context, parse};
use crate::wire::subject::{self, RequestSubject};

use super::bus::{ApiError, Bus, Looks, chain};
use super::fleet;
use super::topology::{self, Served};

/// What one job is like, as far as estimates go by it.
#[derive(Clone, Copy, Debug)]
pub struct Waiting<'a> {
    /// Its model.
    pub model: &'a ModelName,
    /// Its consumer.
    pub lane: Lane,
    /// Millions of pixels, times steps, over all its images.
    pub megapixel_steps: f64,
}

/// What a step between whole ones takes of one, about.
const SHARE_BETWEEN: f64 = 0.125;

/// Millions of pixels, times steps, over all images: engine time is about in proportion to it. Steps that keep features
/// count as the share of a step that they take.
pub fn megapixel_steps(spec: &JobSpec) -> f64 {
    let image = &spec.image;
    let interval = f64::from(image.whole_every());
    let share = (1.0 + (interval - 1.0) * SHARE_BETWEEN) / interval;
    f64::from(image.width) * f64::from(image.height) / 1e6
        * f64::from(image.num_inference_steps)
        * share
        * f64::from(spec.num_images)
}

/// The message of a request, while no worker has settled it.
///
/// # Errors
/// A `Retry` fault when nobody answers.
pub async fn request(bus: &Bus, sequence: u64) -> Result<Option<StreamMessage>, Fault> {
    let lost = |error: &(dyn std::error::Error + 'static)| {
        Fault::retry(FaultCode::BusFailed, format!("the request: {}", chain(error)))
    };
    let stream = bus.context.get_stream_no_info(subject::STREAM_REQUESTS).await.map_err(|error| lost(&error))?;
    let mut looks = Looks::default();
    loop {
        match stream.direct_get(sequence).await {
            Ok(message) => return Ok(Some(message)),
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => return Ok(None),
            Err(error) => {
                if !looks.again(&chain(&error)).await {
                    return Err(lost(&error));
                }
            }
        }
    }
}

fn unanswered(error: &ApiError) -> Fault {
    Fault::retry(FaultCode::BusFailed, chain(error))
}

/// What a client is told of a job that is about to be published.
#[derive(Clone, Copy, Debug)]
pub struct New {
    /// The pool that it is put into: its own, unless it may run anywhere and its deadline says better.
    pub pool: Pool,
    /// When it will begin and end there.
    pub estimate: Estimate,
    /// How many of its consumer go before it.
    pub pending: u64,
}

/// What there is to say of a job that is about to be published, with so much time until its deadline; `None` when nobody
/// answers.
pub async fn of_new(bus: &Bus, waiting: &Waiting<'_>, left: Option<Duration>) -> Option<New> {
    as_service(estimate_new(bus, waiting, left).await)
}

/// The estimate for a job that was published before; `None` when it does not wait any more, nobody knows its message, or
/// nobody answers.
pub async fn of_record(bus: &Bus, record: &Record) -> Option<Estimate> {
    as_service(estimate_record(bus, record).await).flatten()
}

/// Estimates are a service: nothing is refused for want of one.
fn as_service<T>(outcome: Result<T, Fault>) -> Option<T> {
    outcome.inspect_err(|fault| tracing::debug!(%fault, "job.estimate")).ok()
}

async fn estimate_new(bus: &Bus, waiting: &Waiting<'_>, left: Option<Duration>) -> Result<New, Fault> {
    let served = async { topology::served(bus).await.map_err(|error| unanswered(&error)) };
    let (served, reports) = tokio::try_join!(served, fleet::reports(bus, waiting.model))?;
    let in_pool = |pool: Pool| {
        let waiting = Waiting { lane: Lane { pool, ..waiting.lane }, ..*waiting };
        let pending = consumer(&served, &waiting).map_or(0, |own| own.pending);
        let known = reports.known(pool);
        (New { pool, estimate: estimated(&served, &known, &waiting, pending), pending }, known.fleet.workers)
    };
    let (own, _) = in_pool(waiting.lane.pool);
    let Some(left) = left.filter(|_| own.pool == Pool::Any) else { return Ok(own) };
    let (on_demand, on_demand_workers) = in_pool(Pool::OnDemand);
    let choice = Choice {
        spot_workers: reports.spot_workers(),
        on_demand_workers,
        any: own.estimate,
        on_demand: on_demand.estimate,
    };
    Ok(match route::pool(left, &choice) {
        Pool::Any => own,
        Pool::OnDemand => on_demand,
    })
}

async fn estimate_record(bus: &Bus, record: &Record) -> Result<Option<Estimate>, Fault> {
    let (Status::Pending, Some(sequence)) = (record.state.status, record.stream_sequence) else { return Ok(None) };
    let Some(message) = request(bus, sequence).await? else { return Ok(None) };
    let Some(RequestSubject { model, priority, pool, tenant }) = RequestSubject::parse(&message.subject) else {
        return Ok(None);
    };
    let (served, last, reports) = tokio::try_join!(
        async { topology::served(bus).await.map_err(|error| unanswered(&error)) },
        async { topology::last_sequence(bus).await.map_err(|error| unanswered(&error)) },
        fleet::reports(bus, &model),
    )?;
    let lane = Lane { priority, pool };
    let mut waiting = Waiting { model: &model, lane, megapixel_steps: 0.0 };
    let Some(own) = consumer(&served, &waiting) else { return Ok(None) };
    let context =
        Context { manifest: &own.manifest, tenant: &tenant, priority, message_id: None, stream_sequence: sequence };
    // What is wrong with it will be said by a worker.
    let Ok(request) = parse(&message.payload, &context) else { return Ok(None) };
    waiting.megapixel_steps = megapixel_steps(&request.spec);
    let alike = estimate::position(sequence, own.pending, own.delivered_sequence, last);
    Ok(Some(estimated(&served, &reports.known(pool), &waiting, alike)))
}

fn consumer<'a>(served: &'a [Served], waiting: &Waiting<'_>) -> Option<&'a Served> {
    let name = subject::consumer(waiting.model, waiting.lane.priority, waiting.lane.pool);
    served.iter().find(|served| served.consumer == name)
}

fn estimated(served: &[Served], known: &fleet::Known, waiting: &Waiting<'_>, alike: u64) -> Estimate {
    let lane = |(priority, pool): (Priority, Pool)| {
        let lane = Lane { priority, pool };
        let pending = consumer(served, &Waiting { lane, ..*waiting }).map_or(0, |served| served.pending);
        (lane, pending)
    };
    let lanes: Vec<(Lane, u64)> = topology::lanes().map(lane).collect();
    let ahead = estimate::ahead(waiting.lane, alike, &lanes, &known.pools);
    let wanted = Wanted { priority: waiting.lane.priority, megapixel_steps: waiting.megapixel_steps };
    estimate::estimate(&known.fleet, &known.remembered, ahead, wanted)
}
