//! The world: virtual time, what happens in it, and who lives in it.
//!
//! Events are ordered by time, then by the sequence in which they were made; chance comes from the seed alone. So a
//! seed is a run. What a worker's effects do is in
//! [`crate::shell`], what goes wrong by itself in [`crate::chaos`].

use std::collections::BTreeMap;
use std::time::Duration;

use darkroom::job::WorkerId;
use darkroom::sched::{Exit, Input, Mono, PullOutcome, Scheduler, Ticket};

use crate::broker::{Broker, Post, Timer};
use crate::chaos::Disaster;
use crate::clients::{self, Deed};
use crate::knobs::{Knobs, Rates, Trap};
use crate::oracle::Oracle;
use crate::parts::{Engine, Store};
use crate::random::Random;
use crate::records::Records;
use crate::shell::{Kept, Request};

/// When everything works again, all jobs end within this.
const ENDS_WITHIN: Duration = Duration::from_secs(15 * 60);
/// A run has fewer events than this, or something turns in circles.
const EVENTS_MAX: u64 = 200_000;

/// An input on its way, with what the shell must know of it: the delivery's count, or the fence.
#[derive(Clone, Debug)]
pub(crate) struct Parcel {
    pub(crate) input: Input,
    pub(crate) note: Option<u64>,
}

#[derive(Clone, Debug)]
pub(crate) enum Event {
    Deed(Deed),
    Disaster(Disaster),
    Start,
    Kill(u32),
    Resume(u32),
    Ring(Timer),
    Tick(u32),
    Arrive(u32, Parcel),
    Reach(u32, Request),
}

/// A process with a scheduler.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) name: WorkerId,
    pub(crate) scheduler: Scheduler,
    pub(crate) kept: BTreeMap<Ticket, Kept>,
    pub(crate) engine: Engine,
    /// What has come since it stands still.
    pub(crate) inbox: Option<Vec<Parcel>>,
    /// What comes over the subscription, and what is asked of it, keeps its order.
    pub(crate) heard_until: Mono,
    pub(crate) asked_until: Mono,
    tick_at: Option<Mono>,
}

/// One run.
pub(crate) struct World {
    pub(crate) knobs: Knobs,
    pub(crate) now: Mono,
    pub(crate) random: Random,
    pub(crate) broker: Broker,
    pub(crate) records: Records,
    pub(crate) store: Store,
    pub(crate) oracle: Oracle,
    pub(crate) workers: BTreeMap<u32, Worker>,
    /// Denoising steps that engines made, by job.
    pub(crate) steps: BTreeMap<u32, u32>,
    /// When the first image of a job was begun.
    pub(crate) begun_at: BTreeMap<u32, Mono>,
    pub(crate) trap: Option<Trap>,
    pub(crate) outage_until: Mono,
    pub(crate) records_out_until: Mono,
    pub(crate) store_out_until: Mono,
    pub(crate) trace: Option<Vec<String>>,
    events: BTreeMap<(Mono, u64), Event>,
    made: u64,
    workers_started: u32,
    calm_at: Mono,
    finishing: Option<Mono>,
}

impl World {
    pub(crate) fn new(knobs: Knobs, mut random: Random, deeds: Vec<(Mono, Deed)>, traced: bool) -> Self {
        let (drawn, damaged) = clients::plan(&knobs, &mut random);
        let calm_at = Mono::ZERO.after(knobs.calm_after);
        let mut world = Self {
            now: Mono::ZERO,
            broker: Broker::new(knobs.config.lanes.len(), knobs.config.ack_wait),
            records: Records::new(damaged),
            store: Store::default(),
            oracle: Oracle::default(),
            workers: BTreeMap::new(),
            steps: BTreeMap::new(),
            begun_at: BTreeMap::new(),
            trap: knobs.trap,
            outage_until: Mono::ZERO,
            records_out_until: Mono::ZERO,
            store_out_until: Mono::ZERO,
            trace: traced.then(Vec::new),
            events: BTreeMap::new(),
            made: 0,
            workers_started: 0,
            calm_at,
            finishing: None,
            random,
            knobs,
        };
        for _ in 0..world.knobs.workers {
            world.at(Mono::ZERO, Event::Start);
        }
        for (at, deed) in drawn.into_iter().chain(deeds) {
            world.at(at, Event::Deed(deed));
        }
        world.prepare_disasters();
        world
    }

    /// Runs to the end, which is when all is done and all workers are gone.
    ///
    /// # Errors
    /// What the oracle does not accept.
    pub(crate) fn run(&mut self) -> Result<(), String> {
        while let Some(((at, _), event)) = self.events.pop_first() {
            self.now = at;
            self.happen(event);
            for (key, worker) in &self.workers {
                if worker.inbox.is_none() {
                    self.oracle.look_at(*key, self.now);
                }
            }
            self.finish();
            let circles = self.made > EVENTS_MAX;
            if circles || self.finishing.is_none() && self.now > self.calm_at.after(ENDS_WITHIN) {
                let left: Vec<u64> =
                    self.broker.messages().map(|(at, _)| at).filter(|at| self.broker.holds(*at)).collect();
                return Err(format!("no end after {} events: messages {left:?} are left", self.made));
            }
            if let Some(violation) = self.oracle.violation.take() {
                return Err(format!("at {} µs: {violation}", self.now.as_micros()));
            }
            if self.finishing.is_some() && self.workers.is_empty() {
                self.oracle.end(&self.broker, &self.records, &self.store);
                return self.oracle.violation.take().map_or(Ok(()), Err);
            }
        }
        Err("nothing happens any more".to_owned())
    }

    pub(crate) fn at(&mut self, at: Mono, event: Event) {
        self.made += 1;
        self.events.insert((at, self.made), event);
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.now >= self.calm_at
    }

    /// What goes wrong by itself at this time.
    pub(crate) fn rates(&self) -> Rates {
        if self.is_calm() { Rates::default() } else { self.knobs.rates.clone() }
    }

    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>12} {:>6} {}", self.now.as_micros(), self.made, line()));
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Deed(deed) => self.deed(deed),
            Event::Disaster(disaster) => self.disaster(disaster),
            Event::Start => self.start(),
            Event::Kill(worker) => self.kill(worker),
            Event::Resume(worker) => self.resume(worker),
            Event::Ring(timer) => self.broker.ring(self.now, timer),
            Event::Tick(worker) => {
                if let Some(worker) = self.workers.get_mut(&worker) {
                    worker.tick_at = None;
                }
                self.arrive(worker, Parcel { input: Input::Tick, note: None });
            }
            Event::Arrive(worker, parcel) => self.arrive(worker, parcel),
            Event::Reach(worker, request) => self.reach(worker, request),
        }
        self.post();
    }

    fn deed(&mut self, deed: Deed) {
        self.note(|| format!("client: {deed:?}"));
        match deed {
            Deed::Publish(body) => {
                self.broker.publish(self.now, body);
            }
            Deed::KillAll => {
                for key in self.workers.keys().copied().collect::<Vec<_>>() {
                    self.kill(key);
                }
            }
            Deed::Cancel { job, keep_partial } => {
                let and_publish = self.random.chance(500);
                if keep_partial && self.records.stop(job) {
                    self.oracle.met("stopped");
                } else {
                    self.records.cancel(job, and_publish);
                }
                let hint_lost = self.rates().hint_lost;
                for key in self.workers.keys().copied().collect::<Vec<_>>() {
                    if !self.random.chance(hint_lost) {
                        self.look_at_records(key, |body| body.job == job);
                    }
                }
            }
        }
    }

    fn start(&mut self) {
        if self.finishing.is_some() {
            return;
        }
        if self.workers_started >= self.knobs.workers && self.broker.is_empty() {
            // Nobody needs it: the scaler looks again.
            return self.at(self.now.after(Duration::from_secs(2)), Event::Start);
        }
        self.workers_started += 1;
        let key = self.workers_started;
        let Ok(name) = format!("w{key}").parse() else { return };
        let config = self.knobs.config.clone();
        self.oracle.started(key, config.clone(), self.now);
        let config = match self.knobs.bug {
            Some(bug) => bug.config(config),
            None => config,
        };
        let worker = Worker {
            name,
            scheduler: Scheduler::new(config, self.now),
            kept: BTreeMap::new(),
            engine: Engine::default(),
            inbox: None,
            heard_until: self.now,
            asked_until: self.now,
            tick_at: None,
        };
        self.workers.insert(key, worker);
        self.note(|| format!("w{key} starts"));
        self.settle_down(key);
    }

    /// What the broker has for others.
    fn post(&mut self) {
        while let Some(post) = self.broker.next_post() {
            match post {
                Post::Timer { at, timer } => self.at(at, Event::Ring(timer)),
                Post::PullExpired { worker, lane } => {
                    self.hear(worker, Input::PullEnded { lane, outcome: PullOutcome::Expired }, None);
                }
                Post::PullLost { worker, lane } => {
                    // The client notices when the answer is overdue.
                    let overdue = self.knobs.pull_expires.saturating_add(Duration::from_secs(1));
                    self.answer(worker, overdue, Input::PullEnded { lane, outcome: PullOutcome::Failed }, None);
                }
                Post::Deliver { worker, sequence, count } => {
                    let body = &self.broker.message(sequence).body;
                    let (lane, offer) = (body.lane, body.offer.clone());
                    let pending = self.broker.waiting(lane);
                    let deliveries = count;
                    let input = Input::Delivered { ticket: Ticket(sequence), lane, offer, pending, deliveries };
                    self.hear(worker, input, Some(count));
                }
            }
        }
    }

    /// Sends something over a worker's subscription, which keeps the order.
    pub(crate) fn hear(&mut self, key: u32, input: Input, note: Option<u64>) {
        let latency = self.random.millis(1, 20);
        let Some(worker) = self.workers.get_mut(&key) else { return };
        worker.heard_until = worker.heard_until.max(self.now.after(latency));
        let at = worker.heard_until;
        self.at(at, Event::Arrive(key, Parcel { input, note }));
    }

    pub(crate) fn arrive(&mut self, key: u32, parcel: Parcel) {
        let Some(worker) = self.workers.get_mut(&key) else { return };
        if let Some(inbox) = &mut worker.inbox {
            inbox.push(parcel);
            return;
        }
        self.note(|| format!("w{key} <- {:?} {:?}", parcel.input, parcel.note));
        self.take_in(key, &parcel);
        if let Some(worker) = self.workers.get_mut(&key) {
            worker.scheduler.handle(self.now, parcel.input);
            self.settle_down(key);
        }
    }

    /// Carries out the effects; then the worker waits, or ends.
    fn settle_down(&mut self, key: u32) {
        while let Some(effect) = self.workers.get_mut(&key).and_then(|worker| worker.scheduler.poll_effect()) {
            self.note(|| format!("w{key} -> {effect:?}"));
            if self.knobs.bug.is_some_and(|bug| bug.swallows(&effect)) {
                continue;
            }
            self.oracle.effect(key, self.now, &effect);
            self.perform(key, effect);
        }
        let Some(worker) = self.workers.get_mut(&key) else { return };
        self.oracle.settled_down(key, self.now, &worker.scheduler);
        if let Some(exit) = worker.scheduler.exit().cloned() {
            self.exit(key, &exit);
        } else if let Some(next) = worker.scheduler.next_deadline()
            && worker.tick_at.is_none_or(|tick_at| next < tick_at)
        {
            let next = next.max(self.now);
            worker.tick_at = Some(next);
            let late = self.random.millis(0, 3);
            self.at(next.after(late), Event::Tick(key));
        }
    }

    fn exit(&mut self, key: u32, exit: &Exit) {
        self.note(|| format!("w{key} exits: {exit:?}"));
        self.oracle.exited(key, self.now, exit);
        self.workers.remove(&key);
        self.replace(key);
    }

    /// When all is done, whoever does not end by itself is told to.
    fn finish(&mut self) {
        let done = self.is_calm()
            && self.broker.is_empty()
            && self.workers.values().all(|worker| worker.scheduler.jobs_held() == 0);
        if done && self.finishing.is_none() {
            self.finishing = Some(self.now);
            if self.knobs.config.exit_when_idle.is_none() {
                for key in self.workers.keys().copied().collect::<Vec<_>>() {
                    self.arrive(key, Parcel { input: Input::Drain, note: None });
                }
            }
        }
    }
}
