//! A fleet whose size changes, in virtual time: arrivals, starts, ends, machines that are taken away, and the rule that is
//! asked how many there should be.

use std::collections::VecDeque;
use std::time::Duration;

use crate::job::Capacity;
use crate::sched::scale::{self, Backlog, Demand, Offer, Pool, Running, Target};
use crate::simulation::SimulationError;
use crate::simulation::costs::Costs;
use crate::simulation::events::Events;
use crate::simulation::random::Random;
use crate::simulation::workload::Trace;

use super::rule::{Autoscaler, Rule, pods};
use super::setup::Setup;
use super::worker::{Member, Phase, Worker};
use super::{OnNotice, Run};

/// What came longer ago than this hardly counts for the rate of arrivals.
const RATE_MEMORY_US: f64 = 120e6;
/// A fleet that needs so many times the day is never done.
const DAYS_MAX: u64 = 20;
/// The size of the fleet is written down so often.
const SAMPLE_US: u64 = 60_000_000;
/// Streams of chance.
const STARTS: u64 = 11;
const NOTICES: u64 = 12;
const IDLE: u64 = 13;
const POOLS: u64 = 14;

#[derive(Clone, Copy, Debug)]
enum Event {
    /// A worker's step is over.
    Turn { worker: u32 },
    /// A worker has started.
    Ready { worker: u32 },
    /// A worker may have had nothing to do for long enough.
    IdleLong { worker: u32, since_us: u64 },
    /// A worker's machine is about to be taken away.
    Notice { worker: u32 },
    /// A worker is no more, whatever it does.
    End { worker: u32 },
    /// KEDA or Darkroom looks.
    Poll,
    /// The autoscaler looks.
    Sync,
    /// The size of the fleet is written down.
    Sample,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Books {
    /// By job: until the first step.
    pub(super) wait_us: Vec<u64>,
    /// By job: until its images are stored.
    pub(super) total_us: Vec<u64>,
    pub(super) paid_us: [u64; 2],
    pub(super) busy_us: u64,
    pub(super) starting_us: u64,
    pub(super) lost_us: f64,
    /// Jobs that had to be given back because a busy worker was ended to have fewer of them.
    pub(super) disturbed_by_scaling_in: u32,
    /// The same because a machine was taken away.
    pub(super) disturbed_by_spot: u32,
    pub(super) notices: u32,
    pub(super) starts: u32,
    pub(super) workers_most: u32,
    /// Workers that are paid for, minute by minute.
    pub(super) workers: Vec<u32>,
}

struct JobState {
    /// Steps left where it would go on.
    left: u32,
    begun_us: u64,
    ended_us: u64,
    is_on_demand: bool,
    /// Engine time at best, in all and for a step.
    work_us: u64,
    step_work_us: u64,
}

pub(super) struct Fleet<'a> {
    setup: &'a Setup,
    run: &'a Run,
    trace: &'a Trace,
    costs: &'a Costs,
    events: Events<Event>,
    now_us: u64,
    jobs: Vec<JobState>,
    /// Jobs that nobody has, for any machine and for on-demand ones, and their engine time.
    waiting: [VecDeque<u32>; 2],
    waiting_us: [u64; 2],
    /// Engine time that comes, decaying, and when it was last looked at.
    rates: [(f64, u64); 2],
    jobs_ended: usize,
    workers: Vec<Worker>,
    /// Those that are not gone.
    alive: Vec<u32>,
    /// Those with nothing to do, on spot and on demand.
    idle: [Vec<u32>; 2],
    autoscaler: Autoscaler,
    active_us: u64,
    starts: Random,
    notices: Random,
    chooses: Random,
    books: Books,
}

fn micros(seconds: f64) -> u64 {
    (seconds.max(0.0) * 1e6).round() as u64
}

fn slot(capacity: Capacity) -> usize {
    match capacity {
        Capacity::Spot => 0,
        Capacity::OnDemand => 1,
    }
}

impl<'a> Fleet<'a> {
    pub(super) fn new(setup: &'a Setup, run: &'a Run, trace: &'a Trace, costs: &'a Costs) -> Self {
        let mut pools = Random::new(setup.seed, POOLS);
        let images_max = setup.worker.images_in_batch_max;
        let state = |job: &crate::simulation::workload::Job| {
            let all_us = costs.best_image_us(job.key, job.steps, images_max) * f64::from(job.images);
            let no_steps_us = costs.best_image_us(job.key, 0, images_max) * f64::from(job.images);
            JobState {
                left: job.steps,
                begun_us: u64::MAX,
                ended_us: u64::MAX,
                is_on_demand: pools.unit() < setup.arrivals.on_demand_share,
                work_us: all_us as u64,
                step_work_us: ((all_us - no_steps_us) / f64::from(job.steps.max(1))) as u64,
            }
        };
        let jobs = trace.jobs.iter().map(state).collect();
        let chance = |stream: u64| Random::new(setup.seed.wrapping_add(run.chance << 32), stream);
        Self {
            setup,
            run,
            trace,
            costs,
            events: Events::new(),
            now_us: 0,
            jobs,
            waiting: [VecDeque::new(), VecDeque::new()],
            waiting_us: [0, 0],
            rates: [(0.0, 0), (0.0, 0)],
            jobs_ended: 0,
            workers: Vec::new(),
            alive: Vec::new(),
            idle: [Vec::new(), Vec::new()],
            autoscaler: Autoscaler::new(micros(setup.kubernetes.stabilization_s), setup.worker.workers_max),
            active_us: 0,
            starts: chance(STARTS),
            notices: chance(NOTICES),
            chooses: chance(IDLE),
            books: Books::default(),
        }
    }

    /// From the first arrival until all is done and the day is over.
    pub(super) fn play(mut self) -> Result<Books, SimulationError> {
        let day_us = micros(self.setup.arrivals.hours * 3600.0);
        for _ in 0..self.run.rule.at_first() {
            let worker = self.ask(Capacity::OnDemand, Some(0));
            self.ready(worker);
        }
        let polls = match self.run.rule {
            Rule::Darkroom { .. } | Rule::ScaledObject { .. } | Rule::ScaledJob { .. } => true,
            Rule::QueueHpa { .. } | Rule::Fixed { .. } => false,
        };
        if polls {
            self.events.at(0, Event::Poll);
        }
        if matches!(self.run.rule, Rule::ScaledObject { .. } | Rule::QueueHpa { .. }) {
            self.events.at(0, Event::Sync);
        }
        self.events.at(0, Event::Sample);
        let mut arrivals = (0_u32..).zip(&self.trace.jobs).peekable();
        loop {
            let next_at = self.events.next_at();
            if let Some((job, arrival)) = arrivals.next_if(|(_, job)| next_at.is_none_or(|at| job.arrived_us <= at)) {
                self.now_us = arrival.arrived_us;
                self.arrive(job);
                continue;
            }
            let Some((at_us, event)) = self.events.pop() else { break };
            self.now_us = at_us;
            if self.jobs_ended == self.jobs.len() && at_us >= day_us {
                break;
            }
            if at_us > day_us.max(self.trace.jobs.last().map_or(0, |job| job.arrived_us)) * DAYS_MAX {
                break;
            }
            match event {
                Event::Turn { worker } => self.turn(worker),
                Event::Ready { worker } => self.ready(worker),
                Event::IdleLong { worker, since_us } => {
                    if self.workers[worker as usize].idle_since_us == Some(since_us) {
                        self.end(worker);
                    }
                }
                Event::Notice { worker } => self.notice(worker),
                Event::End { worker } => {
                    self.kill(worker);
                    self.wake();
                }
                Event::Poll => self.poll(),
                Event::Sync => self.sync(),
                Event::Sample => {
                    self.books.workers.push(u32::try_from(self.alive.len()).unwrap_or(u32::MAX));
                    self.events.at(at_us + SAMPLE_US, Event::Sample);
                }
            }
        }
        self.close()
    }

    fn close(mut self) -> Result<Books, SimulationError> {
        for worker in std::mem::take(&mut self.alive) {
            self.pay(worker, self.now_us);
        }
        for ((number, state), job) in (0_u32..).zip(&self.jobs).zip(&self.trace.jobs) {
            if state.ended_us == u64::MAX {
                return Err(SimulationError::Unfinished { job: number });
            }
            self.books.wait_us.push(state.begun_us - job.arrived_us);
            self.books.total_us.push(state.ended_us - job.arrived_us);
        }
        Ok(self.books)
    }

    fn pool_of(&self, job: u32) -> usize {
        usize::from(self.jobs[job as usize].is_on_demand)
    }

    /// Engine time that a job still needs from where it would go on.
    fn left_us(&self, job: u32, left: u32) -> u64 {
        let state = &self.jobs[job as usize];
        let done = self.trace.jobs[job as usize].steps - left;
        state.work_us.saturating_sub(u64::from(done) * state.step_work_us)
    }

    fn arrive(&mut self, job: u32) {
        let pool = self.pool_of(job);
        let work_us = self.left_us(job, self.jobs[job as usize].left);
        let (rate, at_us) = &mut self.rates[pool];
        let since_us = (self.now_us - *at_us) as f64;
        *rate = *rate * (-since_us / RATE_MEMORY_US).exp() + work_us as f64 / RATE_MEMORY_US;
        *at_us = self.now_us;
        self.waiting[pool].push_back(job);
        self.waiting_us[pool] += work_us;
        self.wake();
        // The first job need not wait for the next look.
        if self.alive.is_empty() && matches!(self.run.rule, Rule::Darkroom { .. }) {
            self.follow_darkroom();
        }
    }

    /// Puts back a job that was not done.
    fn give_back(&mut self, job: u32) {
        let pool = self.pool_of(job);
        self.waiting_us[pool] += self.left_us(job, self.jobs[job as usize].left);
        self.waiting[pool].push_front(job);
    }

    /// Gives what waits to workers with nothing to do; on-demand ones get what no spot worker wants.
    fn wake(&mut self) {
        loop {
            let (any, on_demand) = (!self.waiting[0].is_empty(), !self.waiting[1].is_empty());
            let capacity = if any && !self.idle[0].is_empty() {
                0
            } else if (any || on_demand) && !self.idle[1].is_empty() {
                1
            } else {
                return;
            };
            let chosen = self.choose(&self.idle[capacity].clone());
            let worker = self.idle[capacity].swap_remove(chosen);
            self.workers[worker as usize].idle_since_us = None;
            self.turn(worker);
        }
    }

    /// Which of the workers with nothing to do is served. Pulls are renewed all the time, so it is chance; those that have
    /// rested for long come last where workers say so in their pulls.
    fn choose(&mut self, idle: &[u32]) -> usize {
        let chance = self.chooses.next() as usize;
        let rested = |worker: &u32| {
            let since_us = self.workers[*worker as usize].idle_since_us.unwrap_or(0);
            self.setup.worker.rests_after_s.is_some_and(|rest| since_us + micros(rest) <= self.now_us)
        };
        let fresh: Vec<usize> = (0..idle.len()).filter(|place| !rested(&idle[*place])).collect();
        if fresh.is_empty() { chance % idle.len().max(1) } else { fresh[chance % fresh.len()] }
    }

    fn turn(&mut self, number: u32) {
        if self.workers[number as usize].phase == Phase::Gone {
            return;
        }
        let mut took_us = 0;
        self.workers[number as usize].end_step();
        let done: Vec<Member> =
            self.workers[number as usize].members.extract_if(.., |member| member.left == 0).collect();
        for member in done {
            took_us += u64::from(member.images) * self.costs.decode_us(member.key);
            let state = &mut self.jobs[member.job as usize];
            state.ended_us = self.now_us + took_us + micros(self.setup.worker.store_ms / 1e3);
            self.jobs_ended += 1;
        }
        if let Some(every) = self.run.checkpoint_steps {
            for member in self.workers[number as usize].members.iter_mut().filter(|member| member.unsaved >= every) {
                self.jobs[member.job as usize].left = member.left;
                (member.unsaved, member.unsaved_us) = (0, 0.0);
            }
        }
        match self.workers[number as usize].phase {
            Phase::HandingOver => {
                let members = std::mem::take(&mut self.workers[number as usize].members);
                self.note_disturbed(number, members.len());
                for member in members.into_iter().rev() {
                    self.jobs[member.job as usize].left = member.left;
                    self.give_back(member.job);
                }
                self.books.busy_us += took_us;
                self.leave(number, self.now_us + took_us);
                self.wake();
                return;
            }
            Phase::Ready => took_us += self.admit(number),
            Phase::Starting | Phase::Draining | Phase::Gone => {}
        }
        let worker = &mut self.workers[number as usize];
        if let Some(key) = worker.next_key() {
            let images = worker.begin_step(key);
            let step_us = self.costs.step_us(key, images);
            worker.book_step(step_us, images);
            for member in worker.members.iter().filter(|member| member.steps_now) {
                let begun_us = &mut self.jobs[member.job as usize].begun_us;
                *begun_us = (self.now_us + took_us).min(*begun_us);
            }
            took_us += step_us;
        }
        if took_us > 0 {
            worker.turn_began_us = self.now_us;
            worker.turn_ends_us = self.now_us + took_us;
            self.books.busy_us += took_us;
            self.events.at(self.now_us + took_us, Event::Turn { worker: number });
        } else if worker.phase == Phase::Draining {
            self.leave(number, self.now_us);
        } else {
            worker.idle_since_us = Some(self.now_us);
            let capacity = worker.capacity;
            self.idle[slot(capacity)].push(number);
            if self.run.rule.lets_workers_exit() {
                let at_us = self.now_us + micros(self.setup.worker.exit_when_idle_s);
                self.events.at(at_us, Event::IdleLong { worker: number, since_us: self.now_us });
            }
        }
    }

    /// Takes what there is room for; answers how long its prompts take.
    fn admit(&mut self, number: u32) -> u64 {
        let mut took_us = 0;
        let capacity = self.workers[number as usize].capacity;
        loop {
            let room = self.setup.worker.images_in_batch_max - self.workers[number as usize].images();
            let pools: &[usize] = if capacity == Capacity::OnDemand { &[1, 0] } else { &[0] };
            let fits = |pool: &&usize| {
                let first = self.waiting[**pool].front();
                first.is_some_and(|job| self.trace.jobs[*job as usize].images <= room)
            };
            let Some(pool) = pools.iter().find(fits).copied() else { return took_us };
            let Some(number_of_job) = self.waiting[pool].pop_front() else { return took_us };
            let job = &self.trace.jobs[number_of_job as usize];
            let left = self.jobs[number_of_job as usize].left;
            self.waiting_us[pool] -= self.left_us(number_of_job, left);
            let encode_us = u64::from(job.images) * self.costs.encode_us();
            took_us += encode_us;
            let worker = &mut self.workers[number as usize];
            worker.members.push(Member {
                job: number_of_job,
                key: job.key,
                images: job.images,
                left,
                unsaved: 0,
                unsaved_us: encode_us as f64,
                turn_us: encode_us as f64,
                steps_now: false,
                stepped: worker.turns,
            });
        }
    }

    fn ask(&mut self, capacity: Capacity, cold_start_us: Option<u64>) -> u32 {
        let number = u32::try_from(self.workers.len()).unwrap_or(u32::MAX);
        let spread = (self.starts.unit() * 2.0 - 1.0) * self.setup.worker.cold_start_spread;
        let usual_us = micros(self.setup.worker.cold_start_s * (1.0 + spread));
        let ready_us = self.now_us + cold_start_us.unwrap_or(usual_us);
        self.workers.push(Worker::new(capacity, self.now_us, ready_us));
        self.alive.push(number);
        self.books.starts += 1;
        self.books.workers_most = self.books.workers_most.max(u32::try_from(self.alive.len()).unwrap_or(u32::MAX));
        if cold_start_us.is_none() {
            self.events.at(ready_us, Event::Ready { worker: number });
        }
        number
    }

    fn ready(&mut self, number: u32) {
        let worker = &mut self.workers[number as usize];
        if worker.phase != Phase::Starting {
            return;
        }
        worker.phase = Phase::Ready;
        if let Some(spot) = self.run.spot.filter(|_| worker.capacity == Capacity::Spot)
            && spot.interruptions_per_hour > 0.0
        {
            let life_us = self.notices.exponential(3.6e9 / spot.interruptions_per_hour);
            self.events.at(self.now_us + life_us as u64, Event::Notice { worker: number });
        }
        self.turn(number);
    }

    /// A machine is about to be taken away.
    fn notice(&mut self, number: u32) {
        let Some(spot) = self.run.spot else { return };
        if self.workers[number as usize].phase == Phase::Gone {
            return;
        }
        self.books.notices += 1;
        match spot.on_notice {
            OnNotice::Ignore => {}
            OnNotice::Drain => self.tell_to_end(number, Phase::Draining),
            OnNotice::HandOver => self.tell_to_end(number, Phase::HandingOver),
        }
        if self.workers[number as usize].phase != Phase::Gone {
            self.events.at(self.now_us + spot.notice_us, Event::End { worker: number });
        }
    }

    fn tell_to_end(&mut self, number: u32, phase: Phase) {
        let worker = &mut self.workers[number as usize];
        match worker.phase {
            Phase::Starting => self.leave(number, self.now_us),
            Phase::Ready if worker.idle_since_us.is_some() => self.end(number),
            Phase::Ready => worker.phase = phase,
            Phase::Draining | Phase::HandingOver | Phase::Gone => {}
        }
    }

    /// Ends a worker that has nothing to do.
    fn end(&mut self, number: u32) {
        let idle = &mut self.idle[slot(self.workers[number as usize].capacity)];
        idle.retain(|other| *other != number);
        self.leave(number, self.now_us);
    }

    /// Ends a worker, whatever it does: what its jobs have not written down is lost.
    fn kill(&mut self, number: u32) {
        let worker = &mut self.workers[number as usize];
        if worker.phase == Phase::Gone {
            return;
        }
        if worker.idle_since_us.is_some() {
            return self.end(number);
        }
        self.books.lost_us += worker.lost_us(self.now_us);
        self.books.busy_us -= worker.turn_ends_us.saturating_sub(self.now_us.max(worker.turn_began_us));
        let members = std::mem::take(&mut worker.members);
        self.note_disturbed(number, members.len());
        for member in members.into_iter().rev() {
            self.give_back(member.job);
        }
        self.leave(number, self.now_us);
    }

    fn note_disturbed(&mut self, number: u32, jobs: usize) {
        let jobs = u32::try_from(jobs).unwrap_or(u32::MAX);
        if self.workers[number as usize].is_scaled_in {
            self.books.disturbed_by_scaling_in += jobs;
        } else {
            self.books.disturbed_by_spot += jobs;
        }
    }

    fn leave(&mut self, number: u32, at_us: u64) {
        self.workers[number as usize].phase = Phase::Gone;
        self.alive.retain(|other| *other != number);
        self.pay(number, at_us);
    }

    fn pay(&mut self, number: u32, at_us: u64) {
        let worker = &mut self.workers[number as usize];
        worker.ended_us = at_us;
        self.books.paid_us[slot(worker.capacity)] += at_us - worker.asked_us;
        self.books.starting_us += at_us.min(worker.ready_us) - worker.asked_us;
    }

    /// Messages that are not acknowledged, with a worker or not.
    fn lag(&self) -> u64 {
        let held: usize = self.alive.iter().map(|worker| self.workers[*worker as usize].members.len()).sum();
        self.queue() + held as u64
    }

    fn queue(&self) -> u64 {
        self.waiting.iter().map(|waiting| waiting.len() as u64).sum()
    }

    /// Workers that were not told to end.
    fn pods_now(&self) -> u32 {
        let counts = |worker: &&u32| matches!(self.workers[**worker as usize].phase, Phase::Starting | Phase::Ready);
        u32::try_from(self.alive.iter().filter(counts).count()).unwrap_or(u32::MAX)
    }

    fn poll(&mut self) {
        let kubernetes = &self.setup.kubernetes;
        let every_s = match self.run.rule {
            Rule::Darkroom { .. } => {
                self.follow_darkroom();
                self.setup.darkroom.every_s
            }
            Rule::ScaledObject { .. } => {
                let lag = self.lag();
                if lag > 0 {
                    self.active_us = self.now_us;
                    if self.pods_now() == 0 {
                        self.ask(Capacity::OnDemand, None);
                    }
                } else if self.now_us >= self.active_us + micros(kubernetes.cooldown_s) {
                    self.scale_in(self.pods_now());
                }
                kubernetes.polling_s
            }
            Rule::ScaledJob { lag_threshold } => {
                let wanted = pods(self.lag(), lag_threshold).min(self.setup.worker.workers_max);
                let running = u32::try_from(self.alive.len()).unwrap_or(u32::MAX);
                for _ in running..wanted {
                    self.ask(Capacity::OnDemand, None);
                }
                kubernetes.polling_s
            }
            Rule::QueueHpa { .. } | Rule::Fixed { .. } => return,
        };
        self.events.at(self.now_us + micros(every_s), Event::Poll);
    }

    fn sync(&mut self) {
        let pods_now = self.pods_now();
        let (messages, each) = match self.run.rule {
            Rule::ScaledObject { lag_threshold } => (self.lag(), lag_threshold),
            Rule::QueueHpa { queue_per_worker } => (self.queue(), queue_per_worker),
            Rule::Darkroom { .. } | Rule::ScaledJob { .. } | Rule::Fixed { .. } => return,
        };
        // At zero pods the autoscaler is off, and KEDA wakes the first one.
        if pods_now > 0 {
            let desired = self.autoscaler.desired(self.now_us, messages, each, pods_now);
            for _ in pods_now..desired {
                self.ask(Capacity::OnDemand, None);
            }
            self.scale_in(pods_now.saturating_sub(desired));
        }
        self.events.at(self.now_us + micros(self.setup.kubernetes.sync_s), Event::Sync);
    }

    /// Ends so many as a ReplicaSet does: who is not ready first, then the youngest, whatever they do.
    fn scale_in(&mut self, count: u32) {
        let mut candidates: Vec<u32> = self.alive.clone();
        candidates.retain(|worker| matches!(self.workers[*worker as usize].phase, Phase::Starting | Phase::Ready));
        let order = |worker: &u32| {
            let Worker { phase, ready_us, .. } = &self.workers[*worker as usize];
            (*phase == Phase::Ready, std::cmp::Reverse(*ready_us), *worker)
        };
        candidates.sort_unstable_by_key(order);
        for worker in candidates.into_iter().take(count as usize) {
            self.workers[worker as usize].is_scaled_in = true;
            self.tell_to_end(worker, Phase::Draining);
            if self.workers[worker as usize].phase != Phase::Gone {
                self.events.at(self.now_us + micros(self.setup.worker.grace_s), Event::End { worker });
            }
        }
    }

    fn follow_darkroom(&mut self) {
        let Rule::Darkroom { target_wait } = self.run.rule else { return };
        let workers_max = self.setup.worker.workers_max;
        let target = Target { wait: target_wait, workers_min: 0, workers_max };
        let pools = [self.pool(Capacity::Spot), self.pool(Capacity::OnDemand)];
        let demand = Demand { any: self.backlog(0), on_demand: self.backlog(1), is_awaited: false };
        let wanted = scale::wanted(&demand, &pools[0], &pools[1], &target);
        for (capacity, pool) in Capacity::ALL.into_iter().zip(&pools) {
            for _ in pool.running.ready + pool.running.starting..wanted.on(capacity) {
                self.ask(capacity, None);
            }
        }
    }

    fn backlog(&self, pool: usize) -> Backlog {
        let (rate, at_us) = self.rates[pool];
        Backlog {
            jobs: self.waiting[pool].len() as u64,
            work_ms: self.waiting_us[pool] as f64 / 1e3,
            arriving_ms_per_s: rate * (-((self.now_us - at_us) as f64) / RATE_MEMORY_US).exp() * 1e3,
        }
    }

    fn pool(&self, capacity: Capacity) -> Pool {
        let mut running = Running::default();
        for worker in self.alive.iter().map(|worker| &self.workers[*worker as usize]) {
            match worker.phase {
                _ if worker.capacity != capacity => {}
                Phase::Starting => running.starting += 1,
                Phase::Ready => {
                    running.ready += 1;
                    running.busy += u32::from(!worker.members.is_empty());
                    let left_us: u64 = worker.members.iter().map(|member| self.left_us(member.job, member.left)).sum();
                    running.work_left_ms += left_us as f64 / 1e3;
                }
                Phase::Draining | Phase::HandingOver | Phase::Gone => {}
            }
        }
        let (price_per_hour, interruptions_per_hour, workers_max) = match (capacity, self.run.spot) {
            (Capacity::Spot, None) => (self.run.prices.spot.unwrap_or(f64::MAX), 0.0, 0),
            (Capacity::Spot, Some(spot)) => {
                (self.run.prices.spot.unwrap_or(f64::MAX), spot.interruptions_per_hour, self.setup.worker.workers_max)
            }
            (Capacity::OnDemand, _) => (self.run.prices.on_demand, 0.0, self.setup.worker.workers_max),
        };
        let cold_start = Duration::from_secs_f64(self.setup.worker.cold_start_s);
        Pool { running, offer: Offer { price_per_hour, cold_start, interruptions_per_hour, workers_max } }
    }
}
