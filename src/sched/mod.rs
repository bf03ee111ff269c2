//! The scheduler is a value: time and facts go in, effects come out.
//!
//! The contract with the loop that drives it:
//!
//! 1. [`Scheduler::handle`] takes the time and one [`Input`].
//! 2. [`Scheduler::poll_effect`] is drained to `None` before the next `handle`.
//! 3. `handle` with [`Input::Tick`] follows no later than [`Scheduler::next_deadline`]; spurious ticks are harmless.
//! 4. When [`Scheduler::exit`] answers, the loop ends.
//!
//! It knows neither NATS nor candle, reads no clock, draws no randomness and is not async: the same value runs under
//! tokio in production and in a seeded world in `tests/sim`.

mod batch;
pub mod bill;
mod cost;
pub mod delivery;
pub mod estimate;
mod fair;
mod fit;
mod lease;
mod message;
mod pulls;
pub mod reconcile;
mod retry;
pub mod route;
pub mod scale;
mod scheduler;
mod time;

pub use batch::BatchKey;
pub use cost::CostModel;
pub use fair::TenantKey;
pub use message::{
    Acted, Action, Claim, Deadline, Effect, EngineReport, EngineWork, Input, Lane, Offer, PullOutcome, RecordChange,
    RowKey, Ticket, Transition, Verdict,
};
pub use scheduler::{Config, Exit, Policy, Scheduler, UnknownPolicy};
pub use time::Mono;
