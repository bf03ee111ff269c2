//! The scheduler's state and its one transition, [`Scheduler::handle`].
//!
//! A held job goes: ahead → claimed, waiting for rows → in the engine → a fixed list of actions that ends it. That list,
//! made by `actions::ending`, is where the order "store, record, publish, acknowledge" is written down. Which jobs are
//! asked for, claimed and given back is decided in `intake`; what the engine does next in `engine`; when rows are saved in
//! `saving`.
//!
//! There may be more rows in the engine than step together: those that do not are parked, and cost nothing but their few
//! megabytes. That lets an urgent job begin at the next step while others are under way.

mod actions;
mod engine;
mod held;
mod intake;
mod roster;
mod saving;
mod stopping;
mod trouble;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::job::{Capacity, Fault};

use super::batch::BatchKey;
use super::cost::CostModel;
use super::fair::Shares;
use super::fit::Fits;
use super::message::{Effect, EngineWork, Input, Lane, PullOutcome, RowKey, Ticket};
use super::pulls::Pulls;
use super::time::Mono;

use held::{AHEAD_MAX, Row};
use intake::{Levels, UsefulImages};
use roster::Roster;
use trouble::StoreHealth;

/// Before the grace period ends, so much is kept for saving the unfinished and giving it back.
const SAVE_RESERVE: Duration = Duration::from_secs(5);
/// What cannot be saved in time is given back without, so long before the end.
const GIVE_BACK_RESERVE: Duration = Duration::from_secs(2);

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
    /// What the worker runs on.
    pub capacity: Capacity,
    /// Images that step together.
    pub images_in_batch_max: u32,
    /// Bytes that a step may take on top of the loaded model, if anybody knows.
    pub memory_bytes: Option<u64>,
    /// Images that may wait in the engine besides, for more urgent ones.
    pub images_parked_max: u32,
    /// Jobs that may be held unclaimed, to choose from, while more wait in the stream.
    pub jobs_ahead_max: u32,
    /// While a row could step, encoding and decoding hold it up for so long, and the rest of what they are at.
    pub stall_max: Duration,
    /// A row that was passed over for so long steps once, however urgent the others are.
    pub passed_over_max: Duration,
    /// The rows of a running job are saved after so long.
    pub checkpoint_every: Duration,
    /// And after so many of its steps, if that is sooner.
    pub checkpoint_steps: Option<u32>,
    /// An engine that does not answer for so long, or much longer than it usually takes, stands still.
    pub engine_stall_max: Duration,
    /// How batches are made.
    pub policy: Policy,
    /// What is known of the engine's speed.
    pub costs: CostModel,
    /// After so long without an extension the server hands a message to somebody else.
    pub ack_wait: Duration,
    /// Failures after which a job is dead-lettered.
    pub failures_max: u32,
    /// Workers lost with a job, after which it is dead-lettered; it runs alone before the last.
    pub deaths_max: u32,
    /// End when there was nothing to do for so long, unless [`super::Input::Stay`] says otherwise.
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
    /// At `save_at` what is unfinished is saved and given back, at `deadline` whatever is left.
    Draining {
        save_at: Mono,
        deadline: Mono,
        exit: Exit,
    },
}

/// The scheduler of one worker.
#[derive(Clone, Debug)]
pub struct Scheduler {
    config: Config,
    now: Mono,
    mode: Mode,
    held: Roster,
    rows: BTreeMap<RowKey, Row>,
    /// What the engine is at, since when.
    engine: Option<(EngineWork, Mono)>,
    /// It is at its work for longer than it should be.
    engine_is_suspected: bool,
    costs: CostModel,
    shares: Shares,
    /// Sizes of which the engine had no memory for more images.
    fits: Fits,
    /// How many images of a size are worth stepping together, of the sizes held.
    useful: BTreeMap<BatchKey, UsefulImages>,
    /// What is held, by urgency.
    levels: Levels,
    /// When the jobs that are held ahead are looked at again, though there is no room.
    look_ahead_at: Mono,
    /// When some of them are given back for others, how often that happens, and which were.
    hand_back_at: Mono,
    hand_back_every: Duration,
    handed_back: BTreeSet<Ticket>,
    /// How long the engine was at something else since its last step.
    stalled: Duration,
    /// When this should hear something at the latest.
    wake_by: Option<Mono>,
    /// Whether the batch of [`Policy::Fixed`] has begun.
    is_closed: bool,
    store: StoreHealth,
    pulls: Pulls,
    pulls_stopped: bool,
    idle_since: Mono,
    /// It is one of those that are kept though nothing waits.
    stays: bool,
    orders: u64,
    row_keys: u64,
    effects: VecDeque<Effect>,
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
            held: Roster::default(),
            rows: BTreeMap::new(),
            engine: None,
            engine_is_suspected: false,
            shares: Shares::default(),
            fits: Fits::default(),
            useful: BTreeMap::new(),
            levels: Levels::default(),
            look_ahead_at: now,
            hand_back_at: now,
            hand_back_every: AHEAD_MAX,
            handed_back: BTreeSet::new(),
            stalled: Duration::ZERO,
            wake_by: None,
            is_closed: false,
            store: StoreHealth::default(),
            pulls,
            pulls_stopped: false,
            idle_since: now,
            stays: false,
            orders: 0,
            row_keys: 0,
            effects: VecDeque::new(),
        };
        scheduler.plan();
        scheduler.wake_by = scheduler.next_deadline();
        scheduler
    }

    /// Takes in one fact at time `now`, which never goes back.
    pub fn handle(&mut self, now: Mono, input: Input) {
        debug_assert!(self.effects.is_empty(), "drain poll_effect before the next handle");
        debug_assert!(now >= self.now, "time goes forward");
        self.stood_still(now);
        self.now = now;
        self.held.now = now;
        match input {
            Input::Delivered { ticket, lane, offer, pending, deliveries } => {
                self.pulls.delivered(lane, now, pending);
                self.came_back(ticket);
                self.delivered(ticket, lane, offer, deliveries);
            }
            Input::PullEnded { lane, outcome: PullOutcome::Expired } => {
                self.pulls.expired(lane);
                self.nothing_more();
            }
            Input::PullEnded { lane, outcome: PullOutcome::Failed } => self.pulls.failed(lane, now),
            Input::PullsStopped => self.pulls_stopped = true,
            Input::Acted { ticket, outcome } => self.acted(ticket, outcome),
            Input::Extended { ticket, sent } => {
                if let Some(held) = self.held.noting(ticket) {
                    held.lease.extended(sent);
                }
            }
            Input::RecordChanged { ticket, change } => self.record_changed(ticket, change),
            Input::Engine(outcome) => self.engine_answered(outcome),
            Input::Stay(stays) => self.stays = stays,
            Input::Drain => self.drain(Exit::Drained),
            Input::Tick => {}
        }
        self.plan();
        self.check();
        self.wake_by = self.next_deadline();
    }

    /// The next thing to do, until `None`.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When [`Input::Tick`] is due at the latest. It may change with every `handle`.
    pub fn next_deadline(&self) -> Option<Mono> {
        let of_mode = match &self.mode {
            Mode::Running if self.held.is_empty() => self.exits_at(),
            Mode::Running => None,
            Mode::Draining { save_at, deadline, .. } => [*save_at, *deadline].into_iter().find(|at| *at > self.now),
        };
        let own = [of_mode, self.engine_stalls_at(), self.store.wakes_at().filter(|at| *at > self.now)];
        let others = [self.held.wake_at(), self.pulls.next_deadline(self.now)];
        own.into_iter().chain(others).flatten().min()
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
        let jobs = self.held.iter().map(|(_, held)| {
            let decodes = held.offer.images.saturating_sub(held.images_decoded);
            f64::from(held.steps_left()) * self.costs.step_ms(held.offer.key, 1)
                + f64::from(decodes) * self.costs.decode_ms(held.offer.key)
        });
        jobs.sum()
    }

    /// When this worker ends if nothing comes.
    fn exits_at(&self) -> Option<Mono> {
        self.config.exit_when_idle.filter(|_| !self.stays).map(|idle| self.idle_since.after(idle))
    }

    fn drain(&mut self, exit: Exit) {
        let lost = matches!(exit, Exit::Fatal(_));
        match &self.mode {
            Mode::Running => self.effects.push_back(Effect::StopPulling),
            // The first reason stands, but an engine that breaks while draining is worse.
            Mode::Draining { .. } if !lost => return,
            Mode::Draining { .. } => {}
        }
        let before_end = |reserve| self.now.after(self.config.grace.saturating_sub(reserve));
        let (save_at, deadline) = (before_end(SAVE_RESERVE), before_end(GIVE_BACK_RESERVE));
        self.mode = Mode::Draining { save_at, deadline, exit };
        // What has no row yet is not begun; without an engine nothing goes on.
        self.give_back(|held| lost || held.images_admitted == 0);
    }

    /// Policy, once per input, after the state is up to date.
    fn plan(&mut self) {
        self.wake_jobs();
        self.watch_engine();
        match &self.mode {
            Mode::Running => {
                if self.held.is_empty() && self.exits_at().is_some_and(|at| self.now >= at) {
                    self.drain(Exit::Idle);
                }
            }
            Mode::Draining { deadline, .. } if self.now >= *deadline => self.give_back(|_| true),
            Mode::Draining { save_at, .. } if self.now >= *save_at => self.leave(),
            Mode::Draining { .. } => {}
        }
        self.fail_late();
        let takes_more = matches!(self.mode, Mode::Running) && !self.is_store_down();
        if takes_more {
            self.take_in();
        }
        if !matches!(self.mode, Mode::Draining { exit: Exit::Fatal(_), .. }) {
            self.feed_engine();
        }
        if takes_more {
            self.ask_for_more();
        }
    }

    /// What must always hold, looked at in builds with debug assertions.
    fn check(&self) {
        let rows_max = self.config.images_in_batch_max.max(1) + self.config.images_parked_max;
        debug_assert!(self.rows.len() <= rows_max as usize, "no more rows than the limit");
        debug_assert!(self.rows.values().all(|row| self.held.contains(row.ticket)), "every row has its job");
        debug_assert!(
            self.held.iter().all(|(_, held)| held.lease.extend_at() > self.now),
            "no lease is left unextended"
        );
        debug_assert!(self.held.is_consistent(), "the roster is up to date");
    }
}
