//! What must hold, looked at with everything that a worker hears, does and is answered, and at the end.
//!
//! Of a worker, by [`Oracle::input`], [`Oracle::effect`] and [`Oracle::settled_down`]:
//!
//! * at most one action of a job is out; none follows its settlement;
//! * a step has rows of one key, no more than the limit, each with steps left, none released, and no other row is passed
//!   over for too long; a picture is decoded after exactly its steps, a job completes with exactly its pictures, and forgetting a job leaves no row behind;
//! * a lease is extended at a third of `ack_wait`, and a message is not given back when its lease may be over;
//! * no more jobs are claimed than there are rows for, and held unclaimed than it is told to;
//! * rows that could step wait for other work of the engine no longer than it is told to, and for no missed deadline;
//! * only the job that failed by itself, or went down with its batch, counts a failure;
//! * after a drain nothing is pulled and the worker is gone within its grace; an idle worker ends when it should.
//!
//! Of the world, by [`Oracle::acted`] and [`Oracle::end`]: the promises on terminal states, events, dead letters and
//! acknowledgements, see there.

use std::collections::BTreeMap;
use std::time::Duration;

use darkroom::job::{FaultCode, Status};
use darkroom::sched::{
    Acted, Action, Claim, Config, Effect, Exit, Input, Mono, Policy, RecordChange, Scheduler, Ticket, Transition,
    Verdict,
};

use crate::broker::Broker;
use crate::clients::Body;
use crate::parts::Store;
use crate::records::Records;
use crate::watch::{Held, Watch};

/// Deliveries of one message in a run: more is a livelock.
const DELIVERIES_MAX: u32 = 60;
/// How late a worker that stands still for nothing may be.
const LATE: Duration = Duration::from_millis(20);

/// The judge of a run.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    watches: BTreeMap<u32, Watch>,
    deliveries: BTreeMap<Ticket, u32>,
    /// The first thing that was wrong.
    pub(crate) violation: Option<String>,
    /// How often what was met: a run in which nothing happens proves nothing.
    pub(crate) met: BTreeMap<&'static str, u64>,
}

macro_rules! must {
    ($oracle:expr, $holds:expr, $($what:tt)+) => {
        if !$holds && $oracle.violation.is_none() {
            $oracle.violation = Some(format!($($what)+));
        }
    };
}

impl Oracle {
    pub(crate) fn met(&mut self, what: &'static str) {
        *self.met.entry(what).or_default() += 1;
    }

    pub(crate) fn started(&mut self, worker: u32, config: Config, now: Mono) {
        self.watches.insert(worker, Watch::new(config, now));
    }

    /// It was killed.
    pub(crate) fn gone(&mut self, worker: u32) {
        self.watches.remove(&worker);
    }

    /// Until then slowness of the worker is not its own.
    pub(crate) fn trouble(&mut self, worker: u32, until: Mono) {
        if let Some(watch) = self.watches.get_mut(&worker) {
            watch.trouble_until = watch.trouble_until.max(until);
        }
    }

    /// Before the worker takes it in.
    pub(crate) fn input(&mut self, worker: u32, now: Mono, input: &Input, body: Option<&Body>) {
        let Some(watch) = self.watches.get_mut(&worker) else { return };
        match input {
            Input::Delivered { ticket, .. } => {
                let count = self.deliveries.entry(*ticket).or_default();
                *count += 1;
                must!(self, *count <= DELIVERIES_MAX, "{ticket:?} was delivered {count} times");
                if let Some(held) = watch.held.get_mut(ticket) {
                    (held.extended, held.confirmed) = (now, now);
                    held.came_again |= matches!(held.action, Some(Action::Settle(Verdict::Nak(_))));
                    *self.met.entry("redelivered to its holder").or_default() += 1;
                } else if let Some(body) = body {
                    watch.held.insert(*ticket, Held::new(body.clone(), now));
                }
            }
            Input::Acted { ticket, outcome } => {
                let Some(held) = watch.held.get_mut(ticket) else { return };
                let came_again = std::mem::take(&mut held.came_again);
                match (held.action.take(), outcome) {
                    // What came again while it was given back is to be given back once more.
                    (Some(Action::Settle(_)), Acted::Done) => held.settled = !came_again,
                    (Some(Action::Store), Acted::Done) => held.stored = true,
                    (Some(Action::Store), Acted::Failed(_)) => held.blamed = true,
                    (Some(Action::Claim), Acted::Claimed(claim)) => {
                        held.waiting = matches!(claim, Claim::Won { .. });
                        held.stopping = matches!(claim, Claim::Won { stopping: true, .. });
                        held.blamed |= match claim {
                            Claim::Unprepared { .. } => true,
                            Claim::Won { deaths, .. } => *deaths >= watch.config.deaths_max,
                            Claim::Ended { .. } | Claim::Duplicate | Claim::Conflict | Claim::HeldElsewhere => false,
                        };
                    }
                    (_, _) => {}
                }
            }
            Input::RecordChanged { ticket, change } => {
                if let Some(held) = watch.held.get_mut(ticket) {
                    held.stopping |= *change == RecordChange::Stopping;
                    held.waiting = false;
                }
            }
            Input::Extended { ticket, sent } => {
                if let Some(held) = watch.held.get_mut(ticket)
                    && sent.since(held.confirmed) < watch.config.ack_wait
                {
                    held.confirmed = held.confirmed.max(*sent);
                }
            }
            Input::Engine(outcome) => match (watch.engine.take(), outcome) {
                (Some(work), Ok(report)) => watch.engine_did(now, &work, report),
                (Some(work), Err(fault)) => watch.engine_failed(&work, fault.class),
                (None, _) => {}
            },
            Input::Drain => watch.drain_wanted = true,
            Input::PullEnded { .. } | Input::PullsStopped | Input::Stay(_) | Input::Tick => {}
        }
    }

    /// The engine will not answer.
    pub(crate) fn hangs(&mut self, worker: u32) {
        if let Some(watch) = self.watches.get_mut(&worker) {
            watch.hangs();
            self.met("engine: hangs");
        }
    }

    /// Before the world carries it out.
    pub(crate) fn effect(&mut self, worker: u32, now: Mono, effect: &Effect) {
        let Some(watch) = self.watches.get_mut(&worker) else { return };
        if let Err(what) = watch.effect(now, effect) {
            must!(self, false, "worker {worker}: {effect:?}: {what}");
        }
    }

    /// After all effects of an input.
    pub(crate) fn settled_down(&mut self, worker: u32, now: Mono, scheduler: &Scheduler) {
        let Some(watch) = self.watches.get_mut(&worker) else { return };
        must!(self, scheduler.jobs_held() == watch.held.len(), "worker {worker} holds other jobs than it told");
        let next = scheduler.next_deadline();
        must!(self, next.is_none_or(|next| next > now), "worker {worker}: the deadline {next:?} is not in the future");
        let stopping = watch.stopping_since.is_some();
        must!(self, stopping || !watch.drain_wanted && !watch.engine_broken, "worker {worker} does not begin to end");
        let Config { images_in_batch_max, images_parked_max, jobs_ahead_max, lanes, policy, .. } = &watch.config;
        // What cannot make its deadline is claimed to be failed.
        let pressed = |held: &Held| held.body.offer.as_ref().is_some_and(|offer| offer.deadline.is_some());
        let wants_rows = |held: &Held| held.waiting && !held.blamed && held.decoded < held.images();
        let waiting = watch.held.values().filter(|held| wants_rows(held) && !pressed(held)).count();
        let rows = (images_in_batch_max + images_parked_max) as usize;
        let most = rows + if *policy == Policy::Fixed { lanes.len() } else { 0 };
        must!(self, waiting <= most, "worker {worker} took {waiting} jobs, {most} at most");
        let ahead = watch.held.values().filter(|held| held.ahead).count();
        let most = (rows + *jobs_ahead_max as usize) * lanes.len();
        must!(self, ahead <= most, "worker {worker} holds {ahead} jobs ahead, {most} at most");
    }

    /// Whenever something happens anywhere, for workers that are not standing still.
    pub(crate) fn look_at(&mut self, worker: u32, now: Mono) {
        let Some(watch) = self.watches.get_mut(&worker) else { return };
        let late = |since: Mono, limit: Duration| now.since(since) > limit + LATE;
        for (ticket, held) in &watch.held {
            let third = watch.config.ack_wait / 3;
            must!(self, !late(held.extended, third), "worker {worker} does not extend the lease of {ticket:?}");
        }
        if let Some(idle) = watch.config.exit_when_idle
            && watch.held.is_empty()
            && watch.stopping_since.is_none()
        {
            must!(self, !late(watch.empty_since, idle), "worker {worker} stays though idle");
        }
        if let Some(since) = watch.stopping_since
            && watch.trouble_until < since
        {
            must!(self, !late(since, watch.config.grace), "worker {worker} does not end within its grace");
        }
    }

    pub(crate) fn exited(&mut self, worker: u32, now: Mono, exit: &Exit) {
        self.look_at(worker, now);
        let Some(watch) = self.watches.remove(&worker) else { return };
        must!(self, watch.held.is_empty() && watch.rows.is_empty(), "worker {worker} ends with jobs or rows");
        let right = match exit {
            Exit::Idle => watch.config.exit_when_idle.is_some(),
            Exit::Drained => watch.drain_wanted,
            Exit::Fatal(_) => watch.engine_broken || watch.engine_hangs,
        };
        must!(self, right, "worker {worker} ends as {exit:?}");
        self.met(match exit {
            Exit::Idle => "exit: idle",
            Exit::Drained => "exit: drained",
            Exit::Fatal(_) => "exit: fatal",
        });
    }

    /// After an action took effect, whether or not the worker hears of it.
    ///
    /// * Images are stored before the record says `completed`; a failure is counted below the limit.
    /// * A terminal event follows the terminal record, and says what that says.
    /// * The own message of a job is settled for good after its record is terminal, its event published and, when it
    ///   failed, its dead letter written. What conflicts or is malformed has its dead letter before.
    pub(crate) fn acted(
        &mut self,
        (sequence, action, outcome): (u64, &Action, &Acted),
        failures_max: u32,
        broker: &Broker,
        records: &Records,
        store: &Store,
    ) {
        let body = &broker.message(sequence).body;
        let record = records.get(body.job);
        let status = record.map(|record| record.state.status);
        match action {
            Action::Record(Transition::Complete) if *outcome == Acted::Done => {
                must!(self, store.has(body), "message {sequence} is complete without its images");
            }
            Action::Record(transition) if *outcome == Acted::Done => {
                if matches!(transition, Transition::Fail(fault) if fault.code == FaultCode::WorkersLost) {
                    self.met("record: workers lost");
                }
                if matches!(transition, Transition::Fail(fault) if fault.code == FaultCode::DeadlineExceeded) {
                    self.met("record: too late");
                }
                if *transition == Transition::Cancel {
                    self.met("record: cancelled by its holder");
                }
                if *transition == Transition::GiveBack {
                    self.met("record: given back");
                }
                let failures = record.map_or(0, |record| record.state.failures);
                must!(self, failures <= failures_max, "message {sequence} failed {failures} times");
            }
            Action::Record(_) => self.met("record: lost"),
            Action::Publish => {
                let ended = status.is_some_and(Status::is_terminal);
                must!(self, ended, "message {sequence} publishes the end of a job that is {status:?}");
                let events = records.events.get(&body.job).map_or(&[][..], Vec::as_slice);
                must!(self, status.is_some_and(|status| events == [status]), "job {} ended as {events:?}", body.job);
            }
            Action::DeadLetter => {
                let others = records.is_damaged(body.job) || record.is_some_and(|record| record.digest != body.digest);
                let right = others || status == Some(Status::Failed);
                must!(self, right, "message {sequence} is a dead letter, its job is {status:?}");
            }
            Action::Settle(Verdict::Ack | Verdict::Term) => {
                let may = may_go(sequence, broker, records);
                must!(self, may.is_ok(), "message {sequence} is settled: {}", may.err().unwrap_or_default());
            }
            Action::Settle(Verdict::Nak(_)) if status.is_none_or(|status| status == Status::Pending) => {
                self.met("given back unclaimed");
            }
            Action::Checkpoint if *outcome == Acted::Done => self.met("checkpoint"),
            Action::Claim | Action::Checkpoint | Action::Store | Action::Settle(Verdict::Nak(_)) => {}
        }
    }

    /// When the queue is empty: every accepted job has one terminal state, told by exactly one event.
    pub(crate) fn end(&mut self, broker: &Broker, records: &Records, store: &Store) {
        for (sequence, message) in broker.messages() {
            let body = &message.body;
            must!(self, !broker.holds(sequence), "message {sequence} is left in the queue");
            let may = may_go(sequence, broker, records);
            must!(self, may.is_ok(), "message {sequence} is gone: {}", may.err().unwrap_or_default());
            let Some(record) = records.get(body.job) else { continue };
            let status = record.state.status;
            must!(self, status.is_terminal(), "job {} is {status:?} for ever", body.job);
            let events = records.events.get(&body.job).map_or(&[][..], Vec::as_slice);
            must!(self, events == [status], "job {} is {status:?}, its events say {events:?}", body.job);
            if status == Status::Completed && record.digest == body.digest {
                must!(self, store.has(body), "job {} has no images", body.job);
            }
            self.met(match status {
                Status::Completed => "job: completed",
                Status::Failed => "job: failed",
                Status::Cancelled => "job: cancelled",
                Status::Pending | Status::Processing => "job: open",
            });
        }
        self.deliveries.clear();
    }
}

/// Why a message must not leave the queue yet.
fn may_go(sequence: u64, broker: &Broker, records: &Records) -> Result<(), &'static str> {
    let body = &broker.message(sequence).body;
    let has_dead_letter = records.dead_letters.contains(&sequence);
    let need = |holds: bool, what| if holds { Ok(()) } else { Err(what) };
    let Some(record) = records.get(body.job).filter(|record| record.digest == body.digest) else {
        return need(has_dead_letter, "without record of its own and dead letter");
    };
    let status = record.state.status;
    if record.sequence != sequence {
        let covered = status.is_terminal() || broker.holds(record.sequence);
        return need(covered, "nobody does its job");
    }
    need(status.is_terminal(), "its job is open")?;
    need(records.events.contains_key(&body.job), "its event is missing")?;
    need(status != Status::Failed || has_dead_letter, "its dead letter is missing")
}
