//! Darkroom itself: [`Scheduler`] as it is, fed as the shell feeds it, every round trip taking its time.
//!
//! Nothing fails here, so every claim is won and every action done.

use std::collections::BTreeMap;

use crate::job::{Capacity, Pool, Priority};
use crate::sched::estimate::Ahead;
use crate::sched::{
    Acted, Action, Claim, Config, CostModel, Effect, EngineReport, EngineWork, Input, Lane, Mono, Offer, Policy,
    PullOutcome, RowKey, Scheduler, TenantKey, Ticket, Verdict,
};

use super::super::events::Events;
use super::super::ledger::{Ledger, Member};
use super::super::workload::{Job, LatencyMs};
use super::super::{Fleet, SimulationError, micros};
use super::broker::{Broker, Delivery};
use super::estimates::Estimates;

/// What the scheduler is told under `adaptive`.
pub(super) fn adaptive(fleet: &Fleet) -> Config {
    Config { policy: Policy::Adaptive, ..fixed(fleet) }
}

/// What the scheduler is told under `fixed`.
pub(super) fn fixed(fleet: &Fleet) -> Config {
    Config {
        lanes: Priority::ALL.iter().map(|priority| Lane { priority: *priority, pool: Pool::Any }).collect(),
        images_in_batch_max: fleet.images_in_batch_max,
        memory_bytes: None,
        images_parked_max: 3 * fleet.images_in_batch_max,
        capacity: Capacity::OnDemand,
        jobs_ahead_max: 256,
        stall_max: std::time::Duration::from_millis(500),
        checkpoint_every: std::time::Duration::MAX,
        checkpoint_steps: None,
        engine_stall_max: std::time::Duration::from_secs(60),
        passed_over_max: std::time::Duration::from_secs(3),
        policy: Policy::Fixed,
        // It learns by what it does.
        costs: CostModel::default(),
        ack_wait: std::time::Duration::from_secs(30),
        failures_max: 3,
        deaths_max: 3,
        exit_when_idle: None,
        grace: std::time::Duration::from_secs(20),
    }
}

/// What the scheduler is told of a job.
fn offer(job: &Job) -> Offer {
    Offer {
        images: job.images,
        key: job.key,
        previews: None,
        steps: job.steps,
        whole_every: 1,
        tenant: TenantKey(u64::from(job.tenant)),
        deadline: None,
    }
}

/// An answer of the engine.
fn admitted(job: &Job) -> EngineReport {
    EngineReport::Admitted { steps: job.steps, made: 0 }
}

/// What an action was, as far as its answer differs.
#[derive(Clone, Copy, Debug)]
enum Done {
    Claim,
    Publish,
    Other,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Pull { worker: u32, lane: u32, max: u32, preference: u8 },
    PullEnds { worker: u32, lane: u32, id: u64 },
    Expired { worker: u32, lane: u32 },
    Deliver(Delivery),
    Again { lane: u32, job: u32 },
    Acted { worker: u32, job: u32, done: Done },
    Extended { worker: u32, job: u32, sent_us: u64 },
    Engine { worker: u32 },
    Tick { worker: u32 },
}

/// What the engine will answer.
#[derive(Clone, Copy, Debug)]
enum Question {
    Admit { job: u32 },
    Step,
    Save,
    Decode,
}

#[derive(Debug)]
struct Worker {
    scheduler: Scheduler,
    /// The job of each row in the engine.
    rows: Vec<(RowKey, u32)>,
    asked: Option<Question>,
    tick_at: Option<Mono>,
}

/// Round trips in microseconds.
#[derive(Clone, Copy, Debug)]
struct Latency {
    pull: u64,
    deliver: u64,
    claim: u64,
    store: u64,
    record: u64,
    publish: u64,
    settle: u64,
    extend: u64,
    pull_expires: u64,
}

impl From<&LatencyMs> for Latency {
    fn from(ms: &LatencyMs) -> Self {
        Self {
            pull: micros(ms.pull),
            deliver: micros(ms.deliver),
            claim: micros(ms.claim),
            store: micros(ms.store),
            record: micros(ms.record),
            publish: micros(ms.publish),
            settle: micros(ms.settle),
            extend: micros(ms.extend),
            pull_expires: micros(ms.pull_expires).max(1000),
        }
    }
}

struct World<'a> {
    lanes: Vec<Lane>,
    now_us: u64,
    events: Events<Event>,
    broker: Broker,
    workers: Vec<Worker>,
    latency: Latency,
    estimates: Estimates,
    ledger: Ledger<'a>,
    /// Of jobs that were given back or are held.
    deliveries: BTreeMap<u32, u64>,
    members: Vec<Member>,
}

pub(super) fn run<'a>(fleet: &Fleet, config: Config, ledger: Ledger<'a>) -> Result<Ledger<'a>, SimulationError> {
    let worker = || Worker {
        scheduler: Scheduler::new(config.clone(), Mono::ZERO),
        rows: Vec::new(),
        asked: None,
        tick_at: None,
    };
    let mut world = World {
        lanes: config.lanes.clone(),
        now_us: 0,
        events: Events::new(),
        broker: Broker::new(config.lanes.len(), fleet.workers),
        workers: (0..fleet.workers).map(|_| worker()).collect(),
        latency: Latency::from(&fleet.latency_ms),
        estimates: Estimates::new(fleet.workers, ledger.trace.jobs.len()),
        ledger,
        deliveries: BTreeMap::new(),
        members: Vec::new(),
    };
    for worker in 0..fleet.workers {
        world.settle_down(worker);
    }
    let jobs = &world.ledger.trace.jobs;
    let mut arrivals = (0_u32..).zip(jobs).peekable();
    while !world.ledger.is_done() {
        let next_at = world.events.next_at();
        if let Some((job, arrival)) = arrivals.next_if(|(_, job)| next_at.is_none_or(|at| job.arrived_us <= at)) {
            world.now_us = arrival.arrived_us;
            world.estimate(job, arrival);
            if let Some(delivery) = world.broker.publish(world.lane_of(arrival), job) {
                world.deliver(delivery);
            }
        } else if let Some((at, event)) = world.events.pop() {
            world.now_us = at;
            world.happen(event)?;
        } else {
            break;
        }
    }
    Ok(world.ledger)
}

impl World<'_> {
    fn lane_of(&self, job: &Job) -> usize {
        self.lanes.iter().position(|lane| lane.priority == job.priority).unwrap_or(0)
    }

    fn estimate(&mut self, job: u32, arrival: &Job) {
        let lane = self.lane_of(arrival);
        let more_urgent = (0..lane).map(|lane| self.broker.waiting(lane)).sum();
        let ahead = Ahead { alike: self.broker.waiting(lane), more_urgent };
        let schedulers = self.workers.iter().map(|worker| &worker.scheduler);
        let start_us = self.estimates.of(self.now_us, arrival, ahead, schedulers);
        self.ledger.estimated_start_us[job as usize] = start_us.unwrap_or(u64::MAX);
    }

    fn after(&mut self, latency_us: u64, event: Event) {
        self.events.at(self.now_us + latency_us, event);
    }

    fn deliver(&mut self, delivery: Delivery) {
        self.after(self.latency.deliver, Event::Deliver(delivery));
    }

    fn happen(&mut self, event: Event) -> Result<(), SimulationError> {
        let (worker, input) = match event {
            Event::Pull { worker, lane, max, preference } => {
                let id = self.broker.pull(worker, lane as usize, max, preference);
                self.after(self.latency.pull_expires, Event::PullEnds { worker, lane, id });
                while let Some(delivery) = self.broker.dispatch(lane as usize) {
                    self.deliver(delivery);
                }
                return Ok(());
            }
            Event::PullEnds { worker, lane, id } => {
                if self.broker.expire(worker, lane as usize, id) {
                    self.after(self.latency.deliver, Event::Expired { worker, lane });
                }
                return Ok(());
            }
            Event::Expired { worker, lane } => {
                (worker, Input::PullEnded { lane: lane as usize, outcome: PullOutcome::Expired })
            }
            Event::Deliver(Delivery { worker, job }) => {
                self.estimates.delivered(self.now_us, worker, job);
                let of = self.ledger.job(job);
                let (lane, offer) = (self.lane_of(of), Some(offer(of)));
                let pending = self.broker.waiting(lane);
                let deliveries = self.deliveries.entry(job).and_modify(|count| *count += 1).or_insert(1);
                let deliveries = *deliveries;
                (worker, Input::Delivered { ticket: Ticket(u64::from(job)), lane, offer, pending, deliveries })
            }
            Event::Again { lane, job } => {
                if let Some(delivery) = self.broker.again(lane as usize, job) {
                    self.deliver(delivery);
                }
                return Ok(());
            }
            Event::Acted { worker, job, done } => {
                let outcome = match done {
                    Done::Claim => Acted::Claimed(Claim::Won { failures: 0, deaths: 0, stopping: false }),
                    Done::Publish => {
                        self.estimates.finished(self.now_us, worker, job, &self.ledger);
                        self.ledger.finish(self.now_us, job)?;
                        self.deliveries.remove(&job);
                        Acted::Done
                    }
                    Done::Other => Acted::Done,
                };
                (worker, Input::Acted { ticket: Ticket(u64::from(job)), outcome })
            }
            Event::Extended { worker, job, sent_us } => {
                (worker, Input::Extended { ticket: Ticket(u64::from(job)), sent: Mono::from_micros(sent_us) })
            }
            Event::Engine { worker } => {
                let report = match self.workers[worker as usize].asked.take() {
                    Some(Question::Admit { job }) => admitted(self.ledger.job(job)),
                    Some(Question::Save) => EngineReport::Saved,
                    Some(Question::Decode) => EngineReport::Decoded,
                    Some(Question::Step) | None => EngineReport::Stepped,
                };
                (worker, Input::Engine(Ok(report)))
            }
            Event::Tick { worker } => {
                let own = &mut self.workers[worker as usize];
                if own.tick_at != Some(Mono::from_micros(self.now_us)) {
                    // Another was due earlier, or this one twice.
                    return Ok(());
                }
                own.tick_at = None;
                (worker, Input::Tick)
            }
        };
        self.workers[worker as usize].scheduler.handle(Mono::from_micros(self.now_us), input);
        self.settle_down(worker);
        Ok(())
    }

    /// Carries out the effects; then the worker waits.
    fn settle_down(&mut self, worker: u32) {
        while let Some(effect) = self.workers[worker as usize].scheduler.poll_effect() {
            self.perform(worker, effect);
        }
        let now = Mono::from_micros(self.now_us);
        let own = &mut self.workers[worker as usize];
        if let Some(next) = own.scheduler.next_deadline()
            && own.tick_at.is_none_or(|tick_at| next < tick_at)
        {
            let next = next.max(now);
            own.tick_at = Some(next);
            self.events.at(next.as_micros(), Event::Tick { worker });
        }
    }

    fn perform(&mut self, worker: u32, effect: Effect) {
        let latency = self.latency;
        match effect {
            Effect::Pull { lane, max, preference } => {
                self.after(latency.pull, Event::Pull { worker, lane: lane as u32, max, preference });
            }
            Effect::Act { ticket, action } => {
                let (took, done) = match action {
                    Action::Claim => (latency.claim, Done::Claim),
                    Action::Store | Action::Checkpoint => (latency.store, Done::Other),
                    Action::Record(_) => (latency.record, Done::Other),
                    Action::Publish => (latency.publish, Done::Publish),
                    Action::DeadLetter => (latency.publish, Done::Other),
                    Action::Settle(Verdict::Nak(delay)) => {
                        let lane = self.lane_of(self.ledger.job(job_of(ticket))) as u32;
                        let back_us = latency.settle / 2 + delay.as_micros() as u64;
                        self.after(back_us, Event::Again { lane, job: job_of(ticket) });
                        (latency.settle, Done::Other)
                    }
                    Action::Settle(_) => (latency.settle, Done::Other),
                };
                self.after(took, Event::Acted { worker, job: job_of(ticket), done });
            }
            Effect::Extend { ticket } => {
                let sent_us = self.now_us;
                self.after(latency.extend, Event::Extended { worker, job: job_of(ticket), sent_us });
            }
            Effect::Engine(work) => self.ask_engine(worker, work),
            Effect::Forget { ticket } => self.estimates.forgotten(worker, job_of(ticket)),
            // No work is withdrawn here, and nobody watches.
            Effect::StopPulling | Effect::Started { .. } | Effect::Progress { .. } => {}
        }
    }

    fn ask_engine(&mut self, worker: u32, work: EngineWork) {
        let now_us = self.now_us;
        let own = &mut self.workers[worker as usize];
        let (question, took_us) = match work {
            EngineWork::Admit { row, ticket, .. } => {
                let job = job_of(ticket);
                own.rows.push((row, job));
                let took_us = self.ledger.encode(now_us, job, 1);
                self.estimates.worked([job].into_iter(), took_us);
                (Question::Admit { job }, took_us)
            }
            EngineWork::Step { rows, .. } => {
                self.members.clear();
                for (_, job) in own.rows.iter().filter(|(row, _)| rows.contains(row)) {
                    self.members.push(Member { job: *job, images: 1, steps: 1 });
                }
                let took_us = self.ledger.step(now_us, &self.members, 1);
                self.estimates.worked(self.members.iter().map(|member| member.job), took_us);
                for member in &self.members {
                    self.estimates.steps(now_us, worker, member.job, self.ledger.job(member.job));
                }
                (Question::Step, took_us)
            }
            EngineWork::Decode { ticket, .. } => {
                let took_us = self.ledger.decode(now_us, job_of(ticket), 1);
                self.estimates.worked([job_of(ticket)].into_iter(), took_us);
                (Question::Decode, took_us)
            }
            EngineWork::Save { .. } => (Question::Save, 0),
            EngineWork::Release { row } => return own.rows.retain(|(kept, _)| *kept != row),
        };
        own.asked = Some(question);
        self.after(took_us, Event::Engine { worker });
    }
}

fn job_of(ticket: Ticket) -> u32 {
    ticket.0 as u32
}
