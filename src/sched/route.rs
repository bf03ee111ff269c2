//! Which pool a job that may run anywhere is put into, as it is published.
//!
//! Cheap machines are taken away now and then. What is taken away begins anew elsewhere, so it ends late by as much as doing it
//! again takes; mostly nobody minds, and the pool `any` lets the cheapest free machine have it. A deadline that leaves no time
//! for that is another matter: then, and only where a machine that stays can make it, the job is put into `ondemand`.
//!
//! It asks for no machines; what waits in a pool does that, by [`super::scale`].

use std::time::Duration;

use crate::job::Pool;

use super::estimate::Estimate;

/// What is known of the workers when a job is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Workers that may be taken away.
    pub spot_workers: u32,
    /// Workers that stay.
    pub on_demand_workers: u32,
    /// When the job would begin and end in the pool `any`.
    pub any: Estimate,
    /// And in `ondemand`.
    pub on_demand: Estimate,
}

/// Which pool, where `left` is the time until the deadline.
///
/// An interruption costs, at the worst, all that was done of the job, and as long a wait as before: a job with time to be
/// made twice may meet one. Nobody is moved on a guess; without an estimate the pool is `any`.
pub fn pool(left: Duration, choice: &Choice) -> Pool {
    let left_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
    let Choice { spot_workers, on_demand_workers, any, on_demand } = choice;
    let (Some(any_end_ms), Some(on_demand_end_ms)) = (any.end_ms, on_demand.end_ms) else { return Pool::Any };
    let is_at_stake = *spot_workers > 0 && any_end_ms.saturating_mul(2) > left_ms;
    let is_sure = *on_demand_workers > 0 && on_demand_end_ms <= left_ms;
    if is_at_stake && is_sure { Pool::OnDemand } else { Pool::Any }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(end_ms: u64) -> Estimate {
        Estimate { position: 0, start_ms: Some(0), end_ms: Some(end_ms) }
    }

    #[test]
    fn only_a_job_that_cannot_be_made_twice_in_time_is_kept_off_machines_that_may_go() {
        let both = Choice { spot_workers: 2, on_demand_workers: 1, any: ends(10_000), on_demand: ends(12_000) };
        let unknown = Estimate { end_ms: None, ..ends(0) };
        for (what, left_s, choice, expected) in [
            ("time to be made twice", 20, both, Pool::Any),
            ("no time for a second try", 19, both, Pool::OnDemand),
            ("too late where nobody is interrupted", 11, both, Pool::Any),
            ("late already", 0, both, Pool::Any),
            ("nobody who stays", 15, Choice { on_demand_workers: 0, ..both }, Pool::Any),
            ("nobody who may go", 15, Choice { spot_workers: 0, ..both }, Pool::Any),
            ("nobody knows how long", 15, Choice { any: unknown, ..both }, Pool::Any),
            ("nobody knows how long there", 15, Choice { on_demand: unknown, ..both }, Pool::Any),
        ] {
            assert_eq!(pool(Duration::from_secs(left_s), &choice), expected, "{what}");
        }
    }
}
