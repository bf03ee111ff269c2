//! The scheduler's state and its one transition, [`Scheduler::handle`].
//!
//! A held job goes: claim → waiting for rows → in the engine → a fixed list of actions that ends it. That list, made by
//! [`ending`], is where the order "store, record, publish, acknowledge" is written down.
//!
//! There may be more rows in the engine than step together: those that do not are parked, and cost nothing but their few
//! megabytes. That lets an urgent job begin at the next step while others are under way.

use std::cmp::Reverse;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::job::{Fault, FaultClass, FaultCode, Priority};

use super::batch::{Backlog, BatchKey, Candidate, Group, Rank, images_in_step, next_step};
use super::cost::CostModel;
use super::fair::{Shares, TenantKey};
use super::lease::Lease;
use super::message::{
    Acted, Action, Claim, Effect, EngineReport, EngineWork, Input, Lane, Offer, PullOutcome, RowKey, Ticket,
    Transition, Verdict,
};
use super::pulls::Pulls;
use super::retry;
use super::time::Mono;

/// Progress of one job is published at most this often, previews and the last step apart.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);
/// Before the grace period ends, so much is kept for giving the unfinished back.
const GIVE_BACK_RESERVE: Duration = Duration::from_secs(3);

/// The last place among those that ask for work.
const PREFERENCE_MAX: u8 = 9;

/// How batches are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Jobs join and leave between steps; the most urgent go first, in batches as large as they pay.
    #[default]
    Adaptive,
    /// What request-level batching does, to compare with: what waits becomes a batch, and nobody joins until all of it is
    /// done. First come, first served.
    Fixed,
}

/// A policy that has no such name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be adaptive or fixed")]
pub struct UnknownPolicy;

impl std::str::FromStr for Policy {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, UnknownPolicy> {
        match text {
            "adaptive" => Ok(Self::Adaptive),
            "fixed" => Ok(Self::Fixed),
            _ => Err(UnknownPolicy),
        }
    }
}

/// What a scheduler is told once.
#[derive(Clone, Debug)]
pub struct Config {
    /// The consumers, most urgent first.
    pub lanes: Vec<Lane>,
    /// Images that step together.
    pub images_in_batch_max: u32,
    /// Images that may wait in the engine besides, for more urgent ones.
    pub images_parked_max: u32,
    /// A row that was passed over for so long steps once, however urgent the others are.
    pub passed_over_max: Duration,
    /// How batches are made.
    pub policy: Policy,
    /// What is known of the engine's speed.
    pub costs: CostModel,
    /// After so long without an extension the server hands a message to somebody else.
    pub ack_wait: Duration,
    /// Failures after which a job is dead-lettered.
    pub failures_max: u32,
    /// End when there was nothing to do for so long.
    pub exit_when_idle: Option<Duration>,
    /// Time between the wish to end and the end.
    pub grace: Duration,
}

/// Why the loop may end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// There was nothing to do.
    Idle,
    /// It was asked to.
    Drained,
    /// The engine cannot go on.
    Fatal(Fault),
}

#[derive(Clone, Debug)]
enum Mode {
    Running,
    Draining { deadline: Mono, exit: Exit },
}

/// What a job is at.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// An action is out.
    Acting(Action),
    /// An action failed and is tried again.
    Trying { action: Action, at: Mono },
    /// Claimed: waiting for rows or in the batch.
    Active,
}

#[derive(Clone, Debug)]
struct Held {
    offer: Offer,
    priority: Priority,
    order: u64,
    came_at: Mono,
    lease: Lease,
    phase: Phase,
    todo: VecDeque<Action>,
    tries: u32,
    failures: u32,
    images_admitted: u32,
    images_decoded: u32,
    steps_made: u32,
    steps_of_image: u32,
    started_at: Option<Mono>,
    progress_at: Option<Mono>,
}

impl Held {
    fn waits_for_rows(&self) -> bool {
        self.phase == Phase::Active && self.images_admitted < self.offer.images
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum RowStage {
    Admitting,
    Stepping,
    Finished,
}

#[derive(Clone, Debug)]
struct Row {
    ticket: Ticket,
    image: u32,
    group: Group,
    stage: RowStage,
    step: u32,
    steps: u32,
    /// When it was admitted, or stepped last.
    moved_at: Mono,
}

/// The scheduler of one worker.
#[derive(Clone, Debug)]
pub struct Scheduler {
    config: Config,
    now: Mono,
    mode: Mode,
    held: BTreeMap<Ticket, Held>,
    /// How many of them want pictures of which size.
    keys_held: BTreeMap<BatchKey, u32>,
    rows: BTreeMap<RowKey, Row>,
    /// What the engine is at, since when.
    engine: Option<(EngineWork, Mono)>,
    costs: CostModel,
    shares: Shares,
    /// Sizes of which the engine had no memory for more images.
    images_fit: BTreeMap<BatchKey, u32>,
    /// Whether the batch of [`Policy::Fixed`] has begun.
    is_closed: bool,
    pulls: Pulls,
    pulls_stopped: bool,
    idle_since: Mono,
    orders: u64,
    row_keys: u64,
    effects: VecDeque<Effect>,
}

/// The actions that end a job, in their order.
fn ending(transition: Transition, nak: Duration) -> VecDeque<Action> {
    let record = Action::Record(transition.clone());
    VecDeque::from(match transition {
        Transition::Complete => vec![Action::Store, record, Action::Publish, Action::Settle(Verdict::Ack)],
        Transition::Fail(_) | Transition::Refuse => {
            vec![record, Action::Publish, Action::DeadLetter, Action::Settle(Verdict::Term)]
        }
        Transition::Retry(_) | Transition::GiveBack => vec![record, Action::Settle(Verdict::Nak(nak))],
    })
}

/// The class that jobs of a priority begin in: the smaller, the more urgent.
fn class(priority: Priority) -> u8 {
    match priority {
        Priority::High => 0,
        Priority::Normal => 1,
        Priority::Low => 2,
    }
}

impl Scheduler {
    /// A scheduler that has seen nothing yet.
    pub fn new(config: Config, now: Mono) -> Self {
        let pulls = Pulls::new(config.lanes.len());
        let mut scheduler = Self {
            costs: config.costs.clone(),
            config,
            now,
            mode: Mode::Running,
            held: BTreeMap::new(),
            keys_held: BTreeMap::new(),
            rows: BTreeMap::new(),
            engine: None,
            shares: Shares::default(),
            images_fit: BTreeMap::new(),
            is_closed: false,
            pulls,
            pulls_stopped: false,
            idle_since: now,
            orders: 0,
            row_keys: 0,
            effects: VecDeque::new(),
        };
        scheduler.plan();
        scheduler
    }

    /// Takes in one fact at time `now`, which never goes back.
    pub fn handle(&mut self, now: Mono, input: Input) {
        debug_assert!(self.effects.is_empty(), "drain poll_effect before the next handle");
        debug_assert!(now >= self.now, "time goes forward");
        self.now = now;
        match input {
            Input::Delivered { ticket, lane, offer, pending } => {
                self.pulls.delivered(lane, now, pending);
                self.delivered(ticket, lane, offer);
            }
            Input::PullEnded { lane, outcome: PullOutcome::Expired } => self.pulls.expired(lane),
            Input::PullEnded { lane, outcome: PullOutcome::Failed } => self.pulls.failed(lane, now),
            Input::PullsStopped => self.pulls_stopped = true,
            Input::Acted { ticket, outcome } => self.acted(ticket, outcome),
            Input::Extended { ticket, sent } => {
                if let Some(held) = self.held.get_mut(&ticket) {
                    held.lease.extended(sent);
                }
            }
            Input::Engine(outcome) => self.engine_answered(outcome),
            Input::Drain => self.drain(Exit::Drained),
            Input::Tick => {}
        }
        self.plan();
        self.check();
    }

    /// The next thing to do, until `None`.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When [`Input::Tick`] is due at the latest. It may change with every `handle`.
    pub fn next_deadline(&self) -> Option<Mono> {
        let of_jobs = self.held.values().flat_map(|held| {
            let again = match &held.phase {
                Phase::Trying { at, .. } => Some(*at),
                Phase::Acting(_) | Phase::Active => None,
            };
            [Some(held.lease.extend_at()), again]
        });
        let of_mode = match &self.mode {
            Mode::Running if self.held.is_empty() => self.config.exit_when_idle.map(|idle| self.idle_since.after(idle)),
            Mode::Running => None,
            Mode::Draining { deadline, .. } => Some(*deadline).filter(|deadline| *deadline > self.now),
        };
        of_jobs.flatten().chain(of_mode).chain(self.pulls.next_deadline(self.now)).min()
    }

    /// Why the loop may end now.
    pub fn exit(&self) -> Option<&Exit> {
        match &self.mode {
            Mode::Draining { exit, .. } if self.held.is_empty() && self.pulls_stopped => Some(exit),
            Mode::Running | Mode::Draining { .. } => None,
        }
    }

    /// Jobs that are held.
    pub fn jobs_held(&self) -> usize {
        self.held.len()
    }

    /// Engine time, in milliseconds, of all that held jobs still need, each image stepping alone: an upper bound of what
    /// they take together.
    pub fn work_left_ms(&self) -> f64 {
        let jobs = self.held.values().map(|held| {
            let (images, key) = (held.offer.images, held.offer.key);
            let steps = (held.offer.steps.max(held.steps_of_image) * images).saturating_sub(held.steps_made);
            let decodes = images.saturating_sub(held.images_decoded);
            f64::from(steps) * self.costs.step_ms(key, 1) + f64::from(decodes) * self.costs.decode_ms(key)
        });
        jobs.sum()
    }

    fn delivered(&mut self, ticket: Ticket, lane: usize, offer: Option<Offer>) {
        if let Some(held) = self.held.get_mut(&ticket) {
            // Delivered again while we have it: the server lost track, but the lease is new.
            held.lease = Lease::new(self.now, self.config.ack_wait);
            return;
        }
        let malformed = offer.is_none();
        let key = BatchKey { width: 0, height: 0 };
        let nothing = Offer { images: 0, key, previews: None, steps: 0, tenant: TenantKey::default() };
        let offer = offer.unwrap_or(nothing);
        self.orders += 1;
        self.shares.came(offer.tenant);
        *self.keys_held.entry(offer.key).or_default() += 1;
        let held = Held {
            offer,
            priority: self.config.lanes.get(lane).map_or(Priority::Normal, |lane| lane.priority),
            order: self.orders,
            came_at: self.now,
            lease: Lease::new(self.now, self.config.ack_wait),
            phase: Phase::Active,
            todo: VecDeque::new(),
            tries: 0,
            failures: 0,
            images_admitted: 0,
            images_decoded: 0,
            steps_made: 0,
            steps_of_image: 0,
            started_at: None,
            progress_at: None,
        };
        self.held.insert(ticket, held);
        let todo = match self.mode {
            Mode::Draining { .. } => VecDeque::from([Action::Settle(Verdict::Nak(retry::GIVE_BACK))]),
            Mode::Running if malformed => ending(Transition::Refuse, Duration::ZERO),
            Mode::Running => VecDeque::from([Action::Claim]),
        };
        self.begin(ticket, todo);
    }

    fn acted(&mut self, ticket: Ticket, outcome: Acted) {
        let Some(held) = self.held.get_mut(&ticket) else { return };
        let Phase::Acting(action) = held.phase.clone() else { return };
        match outcome {
            Acted::Claimed(claim) => {
                held.tries = 0;
                self.claimed(ticket, claim);
            }
            Acted::Done => {
                held.tries = 0;
                self.advance(ticket);
            }
            Acted::Lost if action == Action::Record(Transition::Refuse) => {
                // The malformed request names a job that is not its own: that job's events stay its own.
                self.begin(ticket, VecDeque::from([Action::DeadLetter, Action::Settle(Verdict::Term)]));
            }
            Acted::Lost => self.forget(ticket),
            Acted::Failed(fault) => self.action_failed(ticket, action, fault),
        }
    }

    fn claimed(&mut self, ticket: Ticket, claim: Claim) {
        let ack = Action::Settle(Verdict::Ack);
        match claim {
            Claim::Won { failures } => {
                if let Some(held) = self.held.get_mut(&ticket) {
                    held.failures = failures;
                    held.phase = Phase::Active;
                }
                if let Mode::Draining { .. } = self.mode {
                    self.end(ticket, Transition::GiveBack);
                }
            }
            Claim::Unprepared { failures, fault } => {
                if let Some(held) = self.held.get_mut(&ticket) {
                    held.failures = failures;
                }
                self.fail(ticket, fault);
            }
            Claim::Ended { dead_letter: false } => self.begin(ticket, VecDeque::from([Action::Publish, ack])),
            Claim::Ended { dead_letter: true } => {
                self.begin(ticket, VecDeque::from([Action::Publish, Action::DeadLetter, ack]));
            }
            Claim::Duplicate => self.begin(ticket, VecDeque::from([ack])),
            Claim::Conflict => {
                self.begin(ticket, VecDeque::from([Action::DeadLetter, Action::Settle(Verdict::Term)]));
            }
            Claim::HeldElsewhere => {
                let delay = retry::held_elsewhere(self.config.ack_wait);
                self.begin(ticket, VecDeque::from([Action::Settle(Verdict::Nak(delay))]));
            }
        }
    }

    fn action_failed(&mut self, ticket: Ticket, action: Action, fault: Fault) {
        let Some(held) = self.held.get_mut(&ticket) else { return };
        held.tries += 1;
        let lease_lost = held.lease.is_presumed_lost(self.now);
        match (&action, fault.class) {
            (Action::Store, FaultClass::Retry) if held.tries < retry::STORE_TRIES_MAX => {}
            (Action::Store, _) => return self.fail(ticket, fault),
            // The record cannot be read, by nobody: what cannot be claimed must not wait silently.
            (Action::Claim, FaultClass::Reject) => {
                return self.begin(ticket, VecDeque::from([Action::DeadLetter, Action::Settle(Verdict::Term)]));
            }
            // A server that forgot the delivery when it was killed never answers. All is recorded: whoever gets the message
            // again finds that out and settles it.
            (Action::Settle(_), _) if held.tries >= retry::SETTLE_TRIES_MAX => return self.forget(ticket),
            // Nothing is decided yet and the message goes to somebody else by itself.
            (Action::Claim, _) if lease_lost => return self.forget(ticket),
            (
                Action::Claim | Action::Record(_) | Action::Publish | Action::DeadLetter | Action::Settle(_),
                FaultClass::Reject | FaultClass::Retry | FaultClass::Fatal,
            ) => {}
        }
        held.phase = Phase::Trying { action, at: self.now.after(retry::failed_action(held.tries)) };
    }

    fn engine_answered(&mut self, outcome: Result<EngineReport, Fault>) {
        let Some((work, since)) = self.engine.take() else { return };
        let took = self.now.since(since);
        match (work, outcome) {
            (work, Err(fault)) => self.engine_failed(work, fault),
            (EngineWork::Admit { row, .. }, Ok(EngineReport::Admitted { steps })) => {
                if let Some(row) = self.rows.get_mut(&row) {
                    row.stage = if steps == 0 { RowStage::Finished } else { RowStage::Stepping };
                    row.steps = steps;
                    if let Some(held) = self.held.get_mut(&row.ticket) {
                        held.steps_of_image = steps;
                    }
                }
            }
            (EngineWork::Step { rows, previews }, Ok(EngineReport::Stepped)) => {
                self.observe_step(&rows, took);
                for row in rows {
                    self.stepped(row, previews.contains(&row));
                }
            }
            (EngineWork::Decode { row, ticket, .. }, Ok(EngineReport::Decoded)) => {
                if let Some(row) = self.rows.get(&row) {
                    self.costs.observed_decode(row.group.key, took);
                }
                self.release(row);
                if let Some(held) = self.held.get_mut(&ticket) {
                    held.images_decoded += 1;
                    if held.images_decoded == held.offer.images && held.phase == Phase::Active {
                        self.end(ticket, Transition::Complete);
                    }
                }
            }
            (
                EngineWork::Admit { .. }
                | EngineWork::Step { .. }
                | EngineWork::Decode { .. }
                | EngineWork::Release { .. },
                Ok(_),
            ) => debug_assert!(false, "the engine answered another question"),
        }
    }

    fn observe_step(&mut self, rows: &[RowKey], took: Duration) {
        let images = u32::try_from(rows.len()).unwrap_or(u32::MAX);
        if let Some(row) = rows.first().and_then(|row| self.rows.get(row)) {
            self.costs.observed_step(row.group.key, images, took);
        }
        let each_ms = took.as_secs_f64() * 1e3 / f64::from(images.max(1));
        for row in rows {
            if let Some(held) = self.rows.get(row).and_then(|row| self.held.get(&row.ticket)) {
                self.shares.charge(held.offer.tenant, each_ms);
            }
        }
    }

    fn stepped(&mut self, key: RowKey, preview: bool) {
        let Some(row) = self.rows.get_mut(&key) else { return };
        row.step += 1;
        row.moved_at = self.now;
        if row.step == row.steps {
            row.stage = RowStage::Finished;
        }
        let last = row.step == row.steps;
        let Some(held) = self.held.get_mut(&row.ticket) else { return };
        held.steps_made += 1;
        let steps = held.steps_of_image * held.offer.images;
        let started = *held.started_at.get_or_insert(self.now);
        let due = held.progress_at.is_none_or(|before| self.now.since(before) >= PROGRESS_EVERY);
        if due || preview || last {
            held.progress_at = Some(self.now);
            let pace = self.now.since(started) / held.steps_made.max(1);
            self.effects.push_back(Effect::Progress {
                ticket: row.ticket,
                step: held.steps_made,
                steps,
                remaining: pace * steps.saturating_sub(held.steps_made),
                preview: preview.then_some(key),
            });
        }
    }

    fn engine_failed(&mut self, work: EngineWork, fault: Fault) {
        let rows = match &work {
            EngineWork::Admit { row, .. } | EngineWork::Decode { row, .. } | EngineWork::Release { row } => vec![*row],
            EngineWork::Step { rows, .. } => rows.clone(),
        };
        let mut tickets: Vec<Ticket> = rows.iter().filter_map(|row| self.rows.get(row)).map(|row| row.ticket).collect();
        tickets.sort_unstable();
        tickets.dedup();
        match fault.class {
            FaultClass::Fatal => {
                // Whoever was in the step is suspected; bystanders are not. A batch says nothing of its members, so none
                // of them fails for good by it, but each counts a failure and is alone the next time.
                let suspicion = Fault { class: FaultClass::Retry, ..fault.clone() };
                match tickets[..] {
                    [suspect] => self.fail(suspect, suspicion),
                    _ => tickets.iter().for_each(|suspect| self.end(*suspect, Transition::Retry(suspicion.clone()))),
                }
                self.drain(Exit::Fatal(fault));
            }
            FaultClass::Reject | FaultClass::Retry if rows.len() > 1 && fault.code == FaultCode::OutOfMemory => {
                // No row has moved: they go on in smaller batches.
                if let Some(row) = rows.first().and_then(|row| self.rows.get(row)) {
                    self.images_fit.insert(row.group.key, u32::try_from(rows.len() / 2).unwrap_or(1));
                }
            }
            FaultClass::Reject | FaultClass::Retry if rows.len() > 1 => {
                // No row has moved: each goes on by itself, and only the one that fails alone has failed.
                for key in rows {
                    if let Some(row) = self.rows.get_mut(&key) {
                        row.group.alone = Some(key);
                    }
                }
            }
            FaultClass::Reject | FaultClass::Retry => {
                for ticket in tickets {
                    self.fail(ticket, fault.clone());
                }
            }
        }
    }

    /// A fault of one job: it fails for good, or goes back with one failure more.
    fn fail(&mut self, ticket: Ticket, fault: Fault) {
        let Some(held) = self.held.get(&ticket) else { return };
        let last = held.failures + 1 >= self.config.failures_max;
        match fault.class {
            FaultClass::Reject => self.end(ticket, Transition::Fail(fault)),
            FaultClass::Retry | FaultClass::Fatal if last => self.end(ticket, Transition::Fail(fault)),
            FaultClass::Retry | FaultClass::Fatal => self.end(ticket, Transition::Retry(fault)),
        }
    }

    fn end(&mut self, ticket: Ticket, transition: Transition) {
        let Some(held) = self.held.get(&ticket) else { return };
        let nak = match transition {
            Transition::Retry(_) => retry::failed_job(held.failures + 1),
            Transition::Complete | Transition::Fail(_) | Transition::GiveBack | Transition::Refuse => retry::GIVE_BACK,
        };
        self.release_rows(ticket);
        self.begin(ticket, ending(transition, nak));
    }

    fn begin(&mut self, ticket: Ticket, todo: VecDeque<Action>) {
        if let Some(held) = self.held.get_mut(&ticket) {
            held.todo = todo;
            self.advance(ticket);
        }
    }

    fn advance(&mut self, ticket: Ticket) {
        let Some(held) = self.held.get_mut(&ticket) else { return };
        match held.todo.pop_front() {
            Some(action) => self.act(ticket, action),
            None => self.forget(ticket),
        }
    }

    fn act(&mut self, ticket: Ticket, action: Action) {
        let Some(held) = self.held.get_mut(&ticket) else { return };
        if matches!(action, Action::Settle(Verdict::Nak(_))) && held.lease.is_presumed_lost(self.now) {
            // A message that may be somebody else's by now must not be given back: that would deliver it once more.
            return self.forget(ticket);
        }
        held.phase = Phase::Acting(action.clone());
        self.effects.push_back(Effect::Act { ticket, action });
    }

    fn forget(&mut self, ticket: Ticket) {
        self.release_rows(ticket);
        if let Some(held) = self.held.remove(&ticket) {
            self.shares.went(held.offer.tenant);
            if let Entry::Occupied(mut count) = self.keys_held.entry(held.offer.key) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
            self.effects.push_back(Effect::Forget { ticket });
        }
        if self.held.is_empty() {
            self.idle_since = self.now;
        }
    }

    fn release_rows(&mut self, ticket: Ticket) {
        let rows: Vec<RowKey> = self.rows.iter().filter(|(_, row)| row.ticket == ticket).map(|(key, _)| *key).collect();
        for row in rows {
            self.release(row);
        }
    }

    fn release(&mut self, row: RowKey) {
        if self.rows.remove(&row).is_some() {
            self.effects.push_back(Effect::Engine(EngineWork::Release { row }));
        }
    }

    fn drain(&mut self, exit: Exit) {
        let lost = matches!(exit, Exit::Fatal(_));
        match &self.mode {
            Mode::Running => self.effects.push_back(Effect::StopPulling),
            // The first reason stands, but an engine that breaks while draining is worse.
            Mode::Draining { .. } if !lost => return,
            Mode::Draining { .. } => {}
        }
        self.mode =
            Mode::Draining { deadline: self.now.after(self.config.grace.saturating_sub(GIVE_BACK_RESERVE)), exit };
        // What has no row yet is not begun; without an engine nothing goes on.
        self.give_back(|held| lost || held.images_admitted == 0);
    }

    fn give_back(&mut self, chosen: impl Fn(&Held) -> bool) {
        let tickets: Vec<Ticket> = self
            .held
            .iter()
            .filter(|(_, held)| held.phase == Phase::Active && chosen(held))
            .map(|(ticket, _)| *ticket)
            .collect();
        for ticket in tickets {
            self.end(ticket, Transition::GiveBack);
        }
    }

    /// Policy, once per input, after the state is up to date.
    fn plan(&mut self) {
        self.extend_leases();
        self.try_again();
        match &self.mode {
            Mode::Running => {
                let idle = self.config.exit_when_idle.is_some_and(|idle| self.now >= self.idle_since.after(idle));
                if self.held.is_empty() && idle {
                    self.drain(Exit::Idle);
                }
            }
            Mode::Draining { deadline, .. } if self.now >= *deadline => self.give_back(|_| true),
            Mode::Draining { .. } => {}
        }
        if !matches!(self.mode, Mode::Draining { exit: Exit::Fatal(_), .. }) {
            self.feed_engine();
        }
        if matches!(self.mode, Mode::Running) {
            let free = self.rows_free();
            let preference = self.preference();
            for (lane, max) in self.pulls.plan(self.now, &free) {
                self.effects.push_back(Effect::Pull { lane, max, preference });
            }
        }
    }

    fn extend_leases(&mut self) {
        for (ticket, held) in &mut self.held {
            if held.lease.extend_at() <= self.now {
                held.lease.extension_sent(self.now);
                self.effects.push_back(Effect::Extend { ticket: *ticket });
            }
        }
    }

    fn try_again(&mut self) {
        let mut due = Vec::new();
        for (ticket, held) in &self.held {
            if let Phase::Trying { action, at } = &held.phase
                && *at <= self.now
            {
                due.push((*ticket, action.clone()));
            }
        }
        for (ticket, action) in due {
            self.act(ticket, action);
        }
    }

    /// For each consumer, rows that no held job will need: those that less urgent jobs need can be taken. A consumer whose
    /// jobs are outranked, and from which nothing came for long, may bring one all the same.
    fn rows_free(&self) -> Vec<u32> {
        // By class.
        let (mut wanted, mut is_held) = ([0; 3], [false; 3]);
        for held in self.held.values() {
            let waits = match &held.phase {
                Phase::Active => true,
                Phase::Acting(action) | Phase::Trying { action, .. } => *action == Action::Claim,
            };
            let images = if waits { held.offer.images - held.images_decoded } else { 0 };
            let class = usize::from(class(held.priority));
            wanted[class] += images;
            is_held[class] = true;
        }
        let useful = self.images_useful();
        let parked_max = match self.config.policy {
            Policy::Adaptive => self.config.images_parked_max,
            Policy::Fixed => 0,
        };
        let all = (useful + parked_max).saturating_sub(wanted.iter().sum());
        let free = |(lane, Lane { priority, .. }): (usize, &Lane)| {
            let class = usize::from(class(*priority));
            let as_urgently: u32 = wanted[..=class].iter().sum();
            let starving = is_held[..class].contains(&true) && self.pulls.may_starve(lane, self.now);
            all.min(useful.saturating_sub(as_urgently).max(u32::from(starving)))
        };
        self.config.lanes.iter().enumerate().map(free).collect()
    }

    /// Images that are worth holding: what cannot step together sooner than one by one is better left to others.
    fn images_useful(&self) -> u32 {
        if self.config.policy == Policy::Fixed {
            return self.config.images_in_batch_max;
        }
        let backlog = self.backlog();
        let useful = |key| images_in_step(self.limit(key), |images| self.costs.step_ms(key, images), backlog);
        self.keys_held.keys().copied().map(useful).max().unwrap_or(self.config.images_in_batch_max)
    }

    /// Images of a size that may step together.
    fn limit(&self, key: BatchKey) -> u32 {
        let fit = self.images_fit.get(&key).copied().unwrap_or(u32::MAX);
        self.config.images_in_batch_max.min(fit).max(1)
    }

    fn backlog(&self) -> Backlog {
        let waiting = self.pulls.are_behind() || self.config.policy == Policy::Fixed;
        if waiting { Backlog::Waiting } else { Backlog::None }
    }

    /// The fuller this worker, the further behind it stands for further work.
    fn preference(&self) -> u8 {
        let held: u32 = self.held.values().map(|held| held.offer.images - held.images_decoded).sum();
        let eighths = (8 * held).div_ceil(self.config.images_in_batch_max.max(1));
        u8::try_from(eighths.min(u32::from(PREFERENCE_MAX))).unwrap_or(PREFERENCE_MAX)
    }

    /// Gives the engine its next work: finish what is finished, then fill the batch, then step.
    fn feed_engine(&mut self) {
        if self.engine.is_some() {
            return;
        }
        let work = self.next_decode().or_else(|| self.next_admission()).or_else(|| self.next_step());
        if let Some(work) = work {
            self.engine = Some((work.clone(), self.now));
            self.effects.push_back(Effect::Engine(work));
        }
    }

    fn next_decode(&self) -> Option<EngineWork> {
        let (key, row) = self.rows.iter().find(|(_, row)| row.stage == RowStage::Finished)?;
        Some(EngineWork::Decode { row: *key, ticket: row.ticket, image: row.image })
    }

    fn next_admission(&mut self) -> Option<EngineWork> {
        let in_engine = u32::try_from(self.rows.len()).unwrap_or(u32::MAX);
        let in_batch_max = self.config.images_in_batch_max.max(1);
        if self.rows.is_empty() {
            self.is_closed = false;
        }
        let ticket = match self.config.policy {
            Policy::Fixed if self.is_closed || in_engine >= in_batch_max => return None,
            Policy::Adaptive if in_engine >= in_batch_max + self.config.images_parked_max => return None,
            Policy::Adaptive if in_engine >= in_batch_max => {
                // The batch is full: only for what is more urgent than some of it, or was passed over for too long.
                let in_rows = self.rows.values().filter_map(|row| self.held.get(&row.ticket));
                let least_urgent = in_rows.map(|held| held.priority).max()?;
                self.most_urgent(|held| held.priority < least_urgent).or_else(|| self.passed_over())?
            }
            Policy::Fixed | Policy::Adaptive => self.most_urgent(|_| true)?,
        };
        let held = self.held.get_mut(&ticket)?;
        let image = held.images_admitted;
        held.images_admitted += 1;
        if image == 0 {
            self.effects.push_back(Effect::Started { ticket });
        }
        self.row_keys += 1;
        let row = RowKey(self.row_keys);
        // What has failed before may take a batch down with it.
        let group = Group { key: held.offer.key, alone: (held.failures > 0).then_some(row) };
        let (stage, moved_at) = (RowStage::Admitting, self.now);
        self.rows.insert(row, Row { ticket, image, group, stage, step: 0, steps: 0, moved_at });
        Some(EngineWork::Admit { row, ticket, image })
    }

    /// The most urgent of those jobs that wait for a row.
    fn most_urgent(&self, of: impl Fn(&Held) -> bool) -> Option<Ticket> {
        let waiting = self.held.iter().filter(|(_, held)| held.waits_for_rows() && of(held));
        waiting.min_by_key(|(_, held)| self.rank(held)).map(|(ticket, _)| *ticket)
    }

    /// The first job that waits for too long while nothing of its priority is in the engine.
    fn passed_over(&self) -> Option<Ticket> {
        let in_rows = |priority: Priority| {
            let mut jobs = self.rows.values().filter_map(|row| self.held.get(&row.ticket));
            jobs.any(|held| held.priority == priority)
        };
        let waits = |held: &Held| {
            held.waits_for_rows()
                && self.now.since(held.came_at) >= self.config.passed_over_max
                && !in_rows(held.priority)
        };
        let passed_over = self.held.iter().filter(|(_, held)| waits(held));
        passed_over.min_by_key(|(_, held)| held.order).map(|(ticket, _)| *ticket)
    }

    /// How urgent a job is.
    fn rank(&self, held: &Held) -> Rank {
        if self.config.policy == Policy::Fixed {
            return Rank { class: 0, turn: 0, response: Reverse(0), order: held.order };
        }
        let steps = held.offer.steps.max(held.steps_of_image) * held.offer.images;
        let steps_left = f64::from(steps.saturating_sub(held.steps_made).max(1));
        let left_ms = steps_left * self.costs.step_ms(held.offer.key, 1);
        let here_ms = self.now.since(held.came_at).as_secs_f64() * 1e3;
        Rank {
            class: class(held.priority),
            turn: self.shares.turn(held.offer.tenant),
            response: Reverse((1e3 * here_ms / left_ms.max(1e-3)) as u64),
            order: held.order,
        }
    }

    fn next_step(&mut self) -> Option<EngineWork> {
        let candidates =
            self.rows.iter().filter(|(_, row)| row.stage == RowStage::Stepping).filter_map(|(key, row)| {
                let mut rank = self.rank(self.held.get(&row.ticket)?);
                if self.now.since(row.moved_at) >= self.config.passed_over_max {
                    rank.class = 0;
                    rank.turn = 0;
                }
                Some(Candidate { row: *key, group: row.group, rank })
            });
        let (_, rows) = next_step(candidates, &self.costs, |key| self.limit(key), self.backlog())?;
        self.is_closed = true;
        let wants_preview = |key: &RowKey| {
            let row = &self.rows[key];
            let every = self.held.get(&row.ticket).and_then(|held| held.offer.previews);
            row.image == 0 && every.is_some_and(|every| (row.step + 1).is_multiple_of(every))
        };
        let previews = rows.iter().copied().filter(|key| wants_preview(key)).collect();
        for key in &rows {
            if let Some(held) = self.held.get_mut(&self.rows[key].ticket) {
                held.started_at.get_or_insert(self.now);
            }
        }
        Some(EngineWork::Step { rows, previews })
    }

    /// What must always hold, looked at in builds with debug assertions.
    fn check(&self) {
        let rows_max = self.config.images_in_batch_max.max(1) + self.config.images_parked_max;
        debug_assert!(self.rows.len() <= rows_max as usize, "no more rows than the limit");
        debug_assert!(self.rows.values().all(|row| self.held.contains_key(&row.ticket)), "every row has its job");
        debug_assert!(self.held.values().all(|held| held.lease.extend_at() > self.now), "no lease is left unextended");
    }
}
