//! What the shell does with a worker's effects: requests leave, take effect or get lost, and are answered or not.

use std::collections::BTreeMap;
use std::time::Duration;

use darkroom::job::{Fault, FaultCode};
use darkroom::sched::{
    Acted, Action, Claim, Effect, EngineWork, Input, Mono, PullOutcome, RecordChange, Ticket, Transition, Verdict,
};

use crate::clients::Body;
use crate::knobs::{Kind, Trouble};
use crate::parts::store_fault;
use crate::records::{Claimant, Record};
use crate::world::{Event, Parcel, World};

/// An action that takes longer than this excuses a worker that ends too late.
const SLOW: Duration = Duration::from_millis(400);
/// The same for an upload.
const SLOW_STORE: Duration = Duration::from_secs(1);
/// A request that was not answered for so long has failed.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The scheduler tries again after this at the latest, which excuses it too.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// What the shell remembers of a message that the scheduler holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kept {
    count: u64,
    fence: Option<u64>,
    images: u32,
    /// Steps that were made before, by image.
    pub(crate) begun: BTreeMap<u32, u32>,
    /// What the engine wrote down, by image.
    written: BTreeMap<u32, u32>,
}

/// How an action goes.
#[derive(Clone, Debug)]
pub(crate) struct Fate {
    request_lost: bool,
    answer_lost: bool,
    fault: Option<Fault>,
    trouble: Option<Trouble>,
    back: Duration,
}

/// Something on its way from a worker.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    Pull { lane: usize, max: u32, preference: u8 },
    StopPulling,
    Extend { ticket: Ticket, sent: Mono },
    Act { ticket: Ticket, action: Action, kept: Box<Kept>, claimant: Claimant, fate: Box<Fate> },
}

impl World {
    /// Before the scheduler hears of it: what the shell and the oracle need to know.
    pub(crate) fn take_in(&mut self, key: u32, parcel: &Parcel) {
        let Some(worker) = self.workers.get_mut(&key) else { return };
        let mut body = None;
        match &parcel.input {
            Input::Delivered { ticket, .. } => {
                worker.kept.entry(*ticket).or_default().count = parcel.note.unwrap_or(1);
                body = Some(&self.broker.message(ticket.0).body);
            }
            Input::Acted { ticket, .. } if parcel.note.is_some() => {
                let body = &self.broker.message(ticket.0).body;
                let saved = self.records.get(body.job).map(|record| record.saved.clone()).unwrap_or_default();
                let kept = worker.kept.entry(*ticket).or_default();
                if matches!(parcel.input, Input::Acted { outcome: Acted::Claimed(_), .. }) {
                    kept.begun.clone_from(&saved);
                    kept.written = saved;
                }
                kept.fence = parcel.note;
            }
            Input::Acted { .. }
            | Input::PullEnded { .. }
            | Input::PullsStopped
            | Input::RecordChanged { .. }
            | Input::Extended { .. }
            | Input::Engine(_)
            | Input::Stay(_)
            | Input::Drain
            | Input::Tick => {}
        }
        self.oracle.input(key, self.now, &parcel.input, body);
    }

    /// Starts what the effect asks for.
    pub(crate) fn perform(&mut self, key: u32, effect: Effect) {
        match effect {
            Effect::Pull { lane, max, preference } => self.ask(key, Request::Pull { lane, max, preference }),
            Effect::StopPulling => self.ask(key, Request::StopPulling),
            Effect::Act { ticket, action } => self.act(key, ticket, action),
            Effect::Extend { ticket } => {
                let latency = self.random.millis(1, 20);
                self.at(self.now.after(latency), Event::Reach(key, Request::Extend { ticket, sent: self.now }));
            }
            Effect::Engine(work) => self.ask_engine(key, &work),
            Effect::Forget { ticket } => {
                if let Some(worker) = self.workers.get_mut(&key) {
                    worker.kept.remove(&ticket);
                }
            }
            Effect::Started { .. } | Effect::Progress { .. } => {}
        }
    }

    fn ask(&mut self, key: u32, request: Request) {
        let latency = self.random.millis(1, 20);
        let Some(worker) = self.workers.get_mut(&key) else { return };
        worker.asked_until = worker.asked_until.max(self.now.after(latency));
        let at = worker.asked_until;
        self.at(at, Event::Reach(key, request));
    }

    fn ask_engine(&mut self, key: u32, work: &EngineWork) {
        let (rates, images_fit) = (self.rates(), self.knobs.images_fit);
        let Some(worker) = self.workers.get_mut(&key) else { return };
        let begun = match work {
            EngineWork::Admit { ticket, image, .. } => {
                self.begun_at.entry(self.broker.message(ticket.0).body.job).or_insert(self.now);
                worker.kept.get(ticket).and_then(|kept| kept.begun.get(image)).copied().unwrap_or(0)
            }
            EngineWork::Step { .. }
            | EngineWork::Save { .. }
            | EngineWork::Decode { .. }
            | EngineWork::Release { .. } => 0,
        };
        if begun > 0 {
            self.oracle.met("resumed");
        }
        let asked = worker.engine.ask(work, begun, &self.broker, images_fit, &rates, &mut self.random);
        let Some((cost, outcome)) = asked else { return };
        match (work, &outcome) {
            (EngineWork::Decode { ticket, .. }, Ok(_)) => {
                if let Some(kept) = worker.kept.get_mut(ticket) {
                    kept.images += 1;
                }
            }
            (EngineWork::Step { rows, .. }, Ok(_)) => {
                for ticket in worker.engine.tickets(rows) {
                    *self.steps.entry(self.broker.message(ticket.0).body.job).or_default() += 1;
                }
            }
            (EngineWork::Save { ticket, rows }, Ok(_)) => {
                let written = worker.engine.made(rows);
                if let Some(kept) = worker.kept.get_mut(ticket) {
                    kept.written.extend(written);
                }
            }
            (_, _) => {}
        }
        if self.random.chance(rates.engine_hangs) {
            self.oracle.hangs(key);
            return;
        }
        self.at(self.now.after(cost), Event::Arrive(key, Parcel { input: Input::Engine(outcome), note: None }));
    }

    fn act(&mut self, key: u32, ticket: Ticket, action: Action) {
        let rates = self.rates();
        let is_store = !on_bus_alone(&action);
        let normal = if is_store { (20, 700) } else { (1, 20) };
        let (low, high) = if self.random.chance(rates.slow) { (500, 5000) } else { normal };
        let mut there = self.random.millis(low, high);
        let back = self.random.millis(1, 20);
        let kind = Kind::of(&action);
        let trouble = self.trap.take_if(|trap| trap.kind == kind).map(|trap| trap.trouble);
        if trouble.is_some() {
            self.oracle.met("trap");
        }
        if trouble == Some(Trouble::CrashBefore) {
            return self.kill(key);
        }
        if trouble == Some(Trouble::Drain) {
            self.at(self.now, Event::Arrive(key, Parcel { input: Input::Drain, note: None }));
        }
        if trouble == Some(Trouble::StallBefore) {
            there = self.knobs.config.ack_wait * 2;
            self.stall_for(key, there);
        }
        if there > if is_store { SLOW_STORE } else { SLOW } {
            self.oracle.trouble(key, self.now.after(there).after(back));
        }
        let request_lost = self.random.chance(rates.request_lost) || trouble == Some(Trouble::RequestLost);
        let answer_lost = self.random.chance(rates.answer_lost) || trouble == Some(Trouble::AnswerLost);
        let mut fault = if is_store { store_fault(&rates, &mut self.random) } else { None };
        if action == Action::Store && self.broker.message(ticket.0).body.unstorable {
            fault = Some(Fault::retry(FaultCode::StoreFailed, "not this one"));
        }
        let fate = Box::new(Fate { request_lost, answer_lost, fault, trouble, back });
        let Some(worker) = self.workers.get(&key) else { return };
        let kept = Box::new(worker.kept.get(&ticket).cloned().unwrap_or_default());
        let body = &self.broker.message(ticket.0).body;
        let (job, digest, worker) = (body.job, body.digest, worker.name.clone());
        let claimant = Claimant { job, digest, sequence: ticket.0, count: kept.count, worker };
        let request = Request::Act { ticket, action, kept, claimant, fate };
        self.at(self.now.after(there), Event::Reach(key, request));
    }

    /// A request arrives where it takes effect.
    pub(crate) fn reach(&mut self, key: u32, request: Request) {
        let out = self.now < self.outage_until;
        if !self.workers.contains_key(&key) && self.random.chance(500) {
            // It had not left the worker when that died.
            return;
        }
        match request {
            Request::Pull { lane, .. } if out => {
                self.answer(key, TIMEOUT, Input::PullEnded { lane, outcome: PullOutcome::Failed }, None);
            }
            Request::Pull { lane, max, preference } => {
                if self.workers.contains_key(&key) {
                    self.broker.pull(self.now, key, lane, max, preference, self.knobs.pull_expires);
                }
            }
            Request::StopPulling => {
                self.broker.withdraw_pulls(key);
                self.hear(key, Input::PullsStopped, None);
            }
            Request::Extend { ticket, sent } => {
                let rates = self.rates();
                if !out && !self.random.chance(rates.extension_lost) {
                    self.broker.extend(self.now, ticket.0);
                    self.answer(key, Duration::from_millis(5), Input::Extended { ticket, sent }, None);
                    self.look_at_records(key, |_| true);
                }
            }
            Request::Act { ticket, action, kept, claimant, fate } => {
                let on_bus = action != Action::Store;
                let on_records = matches!(action, Action::Claim | Action::Checkpoint | Action::Record(_));
                if fate.request_lost || on_bus && out || on_records && self.now < self.records_out_until {
                    return self.fail(key, ticket, TIMEOUT);
                }
                let store_out = !on_bus_alone(&action) && self.now < self.store_out_until;
                let store_out = store_out.then(|| Fault::retry(FaultCode::StoreFailed, "nobody there"));
                if let Some(fault) = fate.fault.or(store_out) {
                    self.oracle.trouble(key, self.now.after(fate.back));
                    return self.answer(key, fate.back, Input::Acted { ticket, outcome: Acted::Failed(fault) }, None);
                }
                let (outcome, fence) = self.apply(ticket, &action, &kept, &claimant);
                let facts = (ticket.0, &action, &outcome);
                let failures_max = self.knobs.config.failures_max;
                self.oracle.acted(facts, failures_max, &self.broker, &self.records, &self.store);
                let heard =
                    !matches!(action, Action::Settle(Verdict::Ack | Verdict::Term)) || self.broker.remove(ticket.0);
                self.note(|| format!("w{key} {action:?} of {ticket:?} took effect: {outcome:?}"));
                match fate.trouble {
                    Some(Trouble::CrashAfter) => self.kill(key),
                    Some(Trouble::StallAfter) => self.stall_for(key, self.knobs.config.ack_wait * 2),
                    Some(_) | None => {}
                }
                if fate.answer_lost || !heard {
                    return self.fail(key, ticket, TIMEOUT);
                }
                self.answer(key, fate.back, Input::Acted { ticket, outcome }, fence);
            }
        }
    }

    fn fail(&mut self, key: u32, ticket: Ticket, after: Duration) {
        self.oracle.trouble(key, self.now.after(after).after(BACKOFF_MAX));
        let fault = Fault::retry(FaultCode::BusFailed, "no answer");
        self.answer(key, after, Input::Acted { ticket, outcome: Acted::Failed(fault) }, None);
    }

    pub(crate) fn answer(&mut self, key: u32, after: Duration, input: Input, note: Option<u64>) {
        self.at(self.now.after(after), Event::Arrive(key, Parcel { input, note }));
    }

    /// A worker reads the records of jobs that it has claimed.
    pub(crate) fn look_at_records(&mut self, key: u32, of: impl Fn(&Body) -> bool) {
        if self.now < self.outage_until.max(self.records_out_until) {
            return;
        }
        let Some(worker) = self.workers.get(&key) else { return };
        let claimed = worker.kept.iter().filter(|(_, kept)| kept.fence.is_some());
        let changed: Vec<(Ticket, RecordChange)> = claimed
            .filter_map(|(ticket, _)| {
                let body = &self.broker.message(ticket.0).body;
                of(body)
                    .then(|| self.records.change_of(body.job, &worker.name))
                    .flatten()
                    .map(|change| (*ticket, change))
            })
            .collect();
        for (ticket, change) in changed {
            let latency = self.random.millis(1, 40);
            self.answer(key, latency, Input::RecordChanged { ticket, change }, None);
        }
    }

    fn apply(&mut self, ticket: Ticket, action: &Action, kept: &Kept, claimant: &Claimant) -> (Acted, Option<u64>) {
        let Claimant { job, digest, .. } = *claimant;
        let worker = &claimant.worker;
        let outcome = match action {
            Action::Claim => {
                let (mut outcome, fence) = self.records.claim(claimant);
                if let Acted::Claimed(Claim::Won { failures, .. }) = outcome
                    && let Some(fault) = store_fault(&self.rates(), &mut self.random)
                {
                    outcome = Acted::Claimed(Claim::Unprepared { failures, fault });
                }
                self.oracle.met(claim_word(&outcome));
                return (outcome, fence);
            }
            Action::Checkpoint => {
                let outcome = self.records.checkpoint(job, kept.fence, worker, &kept.written);
                let revision = self.records.get(job).map(Record::fence).filter(|_| outcome == Acted::Done);
                return (outcome, revision);
            }
            Action::Store => {
                self.store.put(&self.broker.message(ticket.0).body, kept.images);
                Acted::Done
            }
            Action::Record(Transition::Refuse) => self.records.refuse(job, digest, ticket.0),
            Action::Record(transition) => self.records.change(job, kept.fence, worker, transition),
            Action::Publish => {
                if let Some(record) = self.records.get(job) {
                    let status = record.state.status;
                    self.records.publish(job, status);
                }
                Acted::Done
            }
            Action::DeadLetter => {
                self.records.dead_letters.insert(ticket.0);
                Acted::Done
            }
            Action::Settle(Verdict::Nak(delay)) => {
                self.broker.nak(self.now, ticket.0, *delay);
                Acted::Done
            }
            // The oracle looks before the message is gone.
            Action::Settle(Verdict::Ack | Verdict::Term) => Acted::Done,
        };
        (outcome, None)
    }
}

fn on_bus_alone(action: &Action) -> bool {
    !matches!(action, Action::Store | Action::Checkpoint)
}

fn claim_word(outcome: &Acted) -> &'static str {
    use darkroom::sched::Claim::{Conflict, Duplicate, Ended, HeldElsewhere, Unprepared, Won};
    match outcome {
        Acted::Claimed(Won { .. }) => "claim: won",
        Acted::Claimed(Unprepared { .. }) => "claim: unprepared",
        Acted::Claimed(Ended { .. }) => "claim: ended",
        Acted::Claimed(Duplicate) => "claim: duplicate",
        Acted::Claimed(Conflict) => "claim: conflict",
        Acted::Claimed(HeldElsewhere) => "claim: held elsewhere",
        Acted::Done | Acted::Lost | Acted::Ended | Acted::Failed(_) => "claim: failed",
    }
}
