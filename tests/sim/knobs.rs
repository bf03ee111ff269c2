//! What kind of world a seed makes: its size, and how often which trouble comes.
//!
//! Every trouble is absent from about half of the worlds, so that each is also met without the others.

use std::time::Duration;

use darkroom::job::{Capacity, Pool, Priority};
use darkroom::sched::{Action, Config, CostModel, Effect, EngineWork, Lane, Policy, Transition, Verdict};

use crate::random::Random;

/// The kinds of actions that a trap can wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Claim,
    Checkpoint,
    Store,
    Complete,
    Cancel,
    Fail,
    Retry,
    GiveBack,
    Refuse,
    Publish,
    DeadLetter,
    Ack,
    Nak,
    Term,
}

impl Kind {
    pub(crate) fn of(action: &Action) -> Self {
        match action {
            Action::Claim => Self::Claim,
            Action::Checkpoint => Self::Checkpoint,
            Action::Store => Self::Store,
            Action::Record(Transition::Complete) => Self::Complete,
            Action::Record(Transition::Cancel) => Self::Cancel,
            Action::Record(Transition::Fail(_)) => Self::Fail,
            Action::Record(Transition::Retry(_)) => Self::Retry,
            Action::Record(Transition::GiveBack) => Self::GiveBack,
            Action::Record(Transition::Refuse) => Self::Refuse,
            Action::Publish => Self::Publish,
            Action::DeadLetter => Self::DeadLetter,
            Action::Settle(Verdict::Ack) => Self::Ack,
            Action::Settle(Verdict::Nak(_)) => Self::Nak,
            Action::Settle(Verdict::Term) => Self::Term,
        }
    }
}

/// What a trap does to the worker that steps into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// It is killed before the request leaves.
    CrashBefore,
    /// It is killed when the request has taken effect, before it hears of that.
    CrashAfter,
    /// It stands still for longer than its lease, the request waiting in its socket.
    StallBefore,
    /// The request takes effect and the worker stands still for longer than its lease.
    StallAfter,
    /// The request gets lost.
    RequestLost,
    /// The request takes effect, the answer gets lost.
    AnswerLost,
    /// It is asked to end.
    Drain,
}

impl Trouble {
    pub(crate) const ALL: &'static [Self] = &[
        Self::CrashBefore,
        Self::CrashAfter,
        Self::StallBefore,
        Self::StallAfter,
        Self::RequestLost,
        Self::AnswerLost,
        Self::Drain,
    ];
}

/// Trouble at the first action of a kind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trap {
    pub(crate) kind: Kind,
    pub(crate) trouble: Trouble,
}

/// How often what goes wrong, in a thousand, until the world calms down.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rates {
    pub(crate) request_lost: u64,
    pub(crate) answer_lost: u64,
    pub(crate) slow: u64,
    pub(crate) extension_lost: u64,
    pub(crate) store_retry: u64,
    pub(crate) store_reject: u64,
    pub(crate) engine_retry: u64,
    pub(crate) engine_reject: u64,
    pub(crate) engine_fatal: u64,
    /// It never answers.
    pub(crate) engine_hangs: u64,
    /// A worker is not told that somebody cancelled its job.
    pub(crate) hint_lost: u64,
}

/// What clients do, in a thousand of jobs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clients {
    pub(crate) jobs: u32,
    pub(crate) repeated: u64,
    pub(crate) conflicting: u64,
    pub(crate) malformed: u64,
    /// They have a deadline.
    pub(crate) pressed: u64,
    pub(crate) cancelled: u64,
    pub(crate) poisoned: u64,
    pub(crate) damaged: u64,
}

/// How often in a run something happens to the server or to one of the workers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chaos {
    pub(crate) crashes: u32,
    pub(crate) stalls: u32,
    pub(crate) drains: u32,
    pub(crate) outages: u32,
    pub(crate) records_outages: u32,
    pub(crate) server_kills: u32,
    pub(crate) redeliveries: u32,
    pub(crate) store_outages: u32,
}

/// One world.
#[derive(Clone, Debug)]
pub(crate) struct Knobs {
    pub(crate) workers: u32,
    pub(crate) config: Config,
    /// Images that fit into the engine's memory in one step.
    pub(crate) images_fit: u32,
    pub(crate) pull_expires: Duration,
    /// Troubles and publishing end after this.
    pub(crate) calm_after: Duration,
    pub(crate) rates: Rates,
    pub(crate) clients: Clients,
    pub(crate) chaos: Chaos,
    pub(crate) trap: Option<Trap>,
    pub(crate) bug: Option<Bug>,
}

/// A mistake that is built into the workers, to see that the oracle finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// Messages are never settled.
    LostSettle,
    /// A step takes one image more than allowed.
    RowOverLimit,
    /// Leases are extended when it is too late.
    LateLease,
    /// Rows that are passed over wait for ever.
    StarvedShape,
    /// Rows stay in the engine when their job is gone.
    LeakedRow,
}

impl Bug {
    /// The configuration of a worker that has it.
    pub(crate) fn config(self, config: Config) -> Config {
        let hour = Duration::from_secs(3600);
        match self {
            Self::RowOverLimit => Config { images_in_batch_max: config.images_in_batch_max + 1, ..config },
            Self::LateLease => Config { ack_wait: config.ack_wait * 4, ..config },
            Self::StarvedShape => Config { passed_over_max: hour, ..config },
            Self::LostSettle | Self::LeakedRow => config,
        }
    }

    /// Whether an effect of a worker that has it is forgotten.
    pub(crate) fn swallows(self, effect: &Effect) -> bool {
        match self {
            Self::LostSettle => matches!(effect, Effect::Act { action: Action::Settle(_), .. }),
            Self::LeakedRow => matches!(effect, Effect::Engine(EngineWork::Release { .. })),
            Self::RowOverLimit | Self::LateLease | Self::StarvedShape => false,
        }
    }
}

impl Knobs {
    /// Two workers, no trouble.
    pub(crate) fn quiet() -> Self {
        Self {
            workers: 2,
            config: Config {
                lanes: lanes(2),
                images_in_batch_max: 4,
                memory_bytes: None,
                images_parked_max: 4,
                capacity: Capacity::OnDemand,
                jobs_ahead_max: 8,
                stall_max: Duration::from_millis(500),
                checkpoint_every: Duration::from_secs(2),
                checkpoint_steps: None,
                engine_stall_max: Duration::from_secs(10),
                passed_over_max: Duration::from_secs(3),
                policy: Policy::Adaptive,
                costs: CostModel::default(),
                ack_wait: Duration::from_secs(30),
                failures_max: 3,
                deaths_max: 3,
                exit_when_idle: Some(Duration::from_secs(60)),
                grace: Duration::from_secs(20),
            },
            images_fit: 64,
            pull_expires: Duration::from_secs(5),
            calm_after: Duration::from_secs(60),
            rates: Rates::default(),
            clients: Clients::default(),
            chaos: Chaos::default(),
            trap: None,
            bug: None,
        }
    }

    pub(crate) fn from_seed(random: &mut Random) -> Self {
        let mut sometimes = |most: u64| if random.chance(500) { random.between(1, most) } else { 0 };
        let rates = Rates {
            request_lost: sometimes(60),
            answer_lost: sometimes(60),
            slow: sometimes(60),
            extension_lost: sometimes(400),
            store_retry: sometimes(400),
            store_reject: sometimes(60),
            engine_retry: sometimes(40),
            engine_reject: sometimes(20),
            engine_fatal: sometimes(8),
            engine_hangs: 0,
            hint_lost: 0,
        };
        let clients = Clients {
            jobs: 0,
            repeated: sometimes(500),
            conflicting: sometimes(200),
            malformed: sometimes(200),
            pressed: sometimes(400),
            cancelled: sometimes(200),
            poisoned: sometimes(200),
            damaged: sometimes(60),
        };
        let mut times = |most: u64| u32::try_from(sometimes(most)).unwrap_or(0);
        let chaos = Chaos {
            crashes: times(5),
            stalls: times(5),
            drains: times(4),
            outages: times(3),
            records_outages: times(2),
            server_kills: times(3),
            redeliveries: times(8),
            store_outages: times(2),
        };
        let rates = Rates { engine_hangs: sometimes(4), hint_lost: sometimes(800), ..rates };
        let idle = random.chance(500).then(|| random.millis(1000, 40_000));
        Self {
            workers: random.small(1, 3),
            config: Config {
                lanes: lanes(random.small(1, 3)),
                images_in_batch_max: random.small(1, 8),
                memory_bytes: None,
                images_parked_max: random.small(0, 8),
                capacity: Capacity::OnDemand,
                jobs_ahead_max: random.small(0, 12),
                stall_max: random.millis(0, 400),
                checkpoint_every: if random.chance(300) { Duration::MAX } else { random.millis(0, 5_000) },
                checkpoint_steps: random.chance(300).then(|| random.small(0, 5)),
                engine_stall_max: random.millis(2_000, 10_000),
                passed_over_max: random.millis(500, 5_000),
                policy: if random.chance(150) { Policy::Fixed } else { Policy::Adaptive },
                costs: CostModel::default(),
                ack_wait: random.millis(9_000, 30_000),
                failures_max: random.small(1, 4),
                deaths_max: random.small(2, 3),
                exit_when_idle: idle,
                grace: if random.chance(300) { random.millis(3_200, 5_000) } else { random.millis(5_000, 30_000) },
            },
            images_fit: if random.chance(300) { random.small(1, 4) } else { 64 },
            pull_expires: random.millis(2_000, 8_000),
            calm_after: random.millis(10_000, 150_000),
            rates,
            clients: Clients { jobs: random.small(1, 24), ..clients },
            chaos,
            trap: None,
            bug: None,
        }
    }
}

fn lanes(count: u32) -> Vec<Lane> {
    let all = [(Priority::High, Pool::Any), (Priority::Normal, Pool::Any), (Priority::Low, Pool::OnDemand)];
    all.into_iter().take(count as usize).map(|(priority, pool)| Lane { priority, pool }).collect()
}
