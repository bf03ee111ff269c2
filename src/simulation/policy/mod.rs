//! Who runs what when: Darkroom's scheduler and what other servers do.
//!
//! Policies differ in nothing else. All see the same arrivals and costs; the baselines share one queue in memory that
//! costs nothing, and upload their images while the GPU goes on, which is kinder to them than most of their deployments
//! are.

mod broker;
mod darkroom;
mod estimates;
mod fastapi;
mod fcfs_steps;
mod one;
mod requests;
mod triton;

use std::fmt;
use std::str::FromStr;

use super::ledger::Ledger;
use super::{Fleet, SimulationError};

/// A policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// [`crate::sched::Scheduler`] with everything it can.
    Adaptive,
    /// [`crate::sched::Scheduler`] with batches bounded by their number of images alone.
    Fixed,
    /// Whole requests of one size and one number of steps share a batch.
    Triton,
    /// Whole requests of one size share a batch that runs the most steps any of them wants.
    Fastapi,
    /// Steps of one size share a batch; who came first goes first, and whoever does not fit holds up the rest.
    FcfsSteps,
    /// One image after the other.
    One,
}

/// A name that no policy has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be one of adaptive, fixed, triton, fastapi, fcfs-steps, one")]
pub struct UnknownPolicy;

impl Policy {
    /// Every policy.
    pub const ALL: &'static [Self] =
        &[Self::Adaptive, Self::Fixed, Self::Triton, Self::Fastapi, Self::FcfsSteps, Self::One];

    /// Its name in tables and options.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Adaptive => "adaptive",
            Self::Fixed => "fixed",
            Self::Triton => "triton",
            Self::Fastapi => "fastapi",
            Self::FcfsSteps => "fcfs-steps",
            Self::One => "one",
        }
    }

    pub(super) fn run<'a>(self, fleet: &Fleet, ledger: Ledger<'a>) -> Result<Ledger<'a>, SimulationError> {
        match self {
            Self::Adaptive => darkroom::run(fleet, darkroom::adaptive(fleet), ledger),
            Self::Fixed => darkroom::run(fleet, darkroom::fixed(fleet), ledger),
            Self::Triton => requests::run(fleet, triton::Triton::new(), ledger),
            Self::Fastapi => requests::run(fleet, fastapi::Fastapi::new(), ledger),
            Self::FcfsSteps => fcfs_steps::run(fleet, ledger),
            Self::One => requests::run(fleet, one::One::default(), ledger),
        }
    }
}

impl FromStr for Policy {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, UnknownPolicy> {
        Self::ALL.iter().copied().find(|policy| policy.as_str() == text).ok_or(UnknownPolicy)
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}
