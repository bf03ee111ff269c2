//! How many workers a model should have: one function of what waits, what runs, how long a start takes and what it costs.
//!
//! The function `scaler`, the local supervisor and the simulator ask it, so that what is simulated is what runs. It starts
//! nothing and ends nobody: workers end by themselves once they have been idle, so no image is ever lost to scaling in, and
//! a number below what runs means only that nobody is started.
//!
//! Demand is engine time, not messages: a message may be one step of a thumbnail or a hundred of a poster. What is there and
//! what will come while a worker starts must be done within a cold start and the wait that was promised. Workers that run
//! have all of that time, a new one only the wait; so many are started as are missing, and none for what would be done
//! before it is ready.

pub mod plan;

use std::fmt;
use std::time::Duration;

use crate::job::Capacity;

/// A worker that is started for less work than this share of its own start costs more than it saves.
const START_SHARE: f64 = 0.5;

/// What one pool of requests wants of the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Backlog {
    /// Requests that no worker has, and that are not delayed or paused.
    pub jobs: u64,
    /// Their engine time.
    pub work_ms: f64,
    /// Engine time that comes in a second, lately.
    pub arriving_ms_per_s: f64,
}

/// What a model's requests want.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Demand {
    /// Requests that may run anywhere.
    pub any: Backlog,
    /// Requests that must not be interrupted.
    pub on_demand: Backlog,
    /// Somebody is about to ask: one worker should be there.
    pub is_awaited: bool,
}

/// The workers on one capacity.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Running {
    /// They take jobs.
    pub ready: u32,
    /// Of these, how many have jobs.
    pub busy: u32,
    /// Asked for, and not ready yet.
    pub starting: u32,
    /// Engine time of all that they hold.
    pub work_left_ms: f64,
}

/// What one capacity offers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Offer {
    /// Dollars an hour.
    pub price_per_hour: f64,
    /// From the wish for a worker to its first step.
    pub cold_start: Duration,
    /// How often a machine is taken away in an hour.
    pub interruptions_per_hour: f64,
    /// Workers at most; 0 where there is none to be had.
    pub workers_max: u32,
}

/// What is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// How long a request waits beyond a cold start.
    pub wait: Duration,
    /// Workers that are kept though nothing waits.
    pub workers_min: u32,
    /// Workers at most, of both capacities.
    pub workers_max: u32,
}

/// One capacity's part of the question.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pool {
    /// What runs.
    pub running: Running,
    /// What can be had.
    pub offer: Offer,
}

/// Why there are as many as there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Nothing waits and nothing runs.
    Nothing,
    /// What runs has work.
    Busy,
    /// There is more to do than those that run can do in time.
    Backlog,
    /// Somebody is about to ask.
    Awaited,
    /// The plan keeps some.
    Floor,
    /// More would be of use, but no more may be.
    Ceiling,
}

impl Reason {
    /// Its name in answers and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "nothing waits",
            Self::Busy => "busy workers",
            Self::Backlog => "backlog",
            Self::Awaited => "awaited",
            Self::Floor => "floor of the plan",
            Self::Ceiling => "ceiling",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// How many workers there should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// On spot machines.
    pub spot: u32,
    /// On machines at the list price.
    pub on_demand: u32,
    /// Why.
    pub reason: Reason,
}

impl Wanted {
    /// Those on `capacity`.
    pub fn on(&self, capacity: Capacity) -> u32 {
        match capacity {
            Capacity::Spot => self.spot,
            Capacity::OnDemand => self.on_demand,
        }
    }
}

/// What an hour of useful work costs on a capacity: an interruption costs a start, and the steps since the last checkpoint.
fn effective_price(offer: &Offer) -> f64 {
    let lost_hours = offer.interruptions_per_hour * offer.cold_start.as_secs_f64() / 3600.0;
    if lost_hours >= 1.0 { f64::INFINITY } else { offer.price_per_hour / (1.0 - lost_hours) }
}

/// What a capacity is told to do.
struct Share<'a> {
    pool: &'a Pool,
    wait_ms: f64,
    wanted: u32,
}

impl<'a> Share<'a> {
    /// Begins with those that must not be disturbed.
    fn new(pool: &'a Pool, wait_ms: f64) -> Self {
        Self { pool, wait_ms, wanted: pool.running.busy }
    }

    fn cold_start_ms(&self) -> f64 {
        self.pool.offer.cold_start.as_secs_f64() * 1e3
    }

    fn horizon_ms(&self) -> f64 {
        self.cold_start_ms() + self.wait_ms
    }

    /// Engine time that those which run can still give within the horizon.
    fn supply_ms(&self) -> f64 {
        let Running { ready, starting, work_left_ms, .. } = self.pool.running;
        // One that starts is half-way, as far as one can tell.
        let supply = f64::from(ready) * self.horizon_ms()
            + f64::from(starting) * (self.horizon_ms() - self.cold_start_ms() / 2.0);
        (supply - work_left_ms).max(0.0)
    }

    /// What a new worker must have to do, at least, to be worth its start; and what it can do in time.
    fn of_a_new_one_ms(&self) -> f64 {
        self.wait_ms.max(START_SHARE * self.cold_start_ms()).max(1.0)
    }

    /// Gives it work; answers what is left over.
    fn take(&mut self, backlog: &Backlog, supply_ms: &mut f64) -> Backlog {
        let coming_ms = backlog.arriving_ms_per_s * self.horizon_ms() / 1e3;
        let work_ms = backlog.work_ms + coming_ms;
        let Running { ready, starting, .. } = self.pool.running;
        let there = ready + starting;
        let by_those_there = work_ms.min(*supply_ms);
        *supply_ms -= by_those_there;
        // How many of those that are there it takes: the rest may go to sleep.
        let kept = (by_those_there / self.horizon_ms().max(1.0)).ceil() as u32;
        let mut missing_ms = work_ms - by_those_there;
        let mut wanted = self.wanted.max(kept.min(there));
        if missing_ms > 0.0 || (there == 0 && backlog.jobs > 0) {
            // A job is not divided; and what has not come yet needs nobody if nothing waits.
            let jobs = u32::try_from(backlog.jobs).unwrap_or(u32::MAX);
            let new =
                ((missing_ms / self.of_a_new_one_ms()).ceil() as u32).clamp(u32::from(there == 0 && jobs > 0), jobs);
            let room = self.pool.offer.workers_max.saturating_sub(there);
            let had = new.min(room);
            wanted = wanted.max(there + had);
            missing_ms = if had == new { 0.0 } else { missing_ms * f64::from(new - had) / f64::from(new) };
        }
        self.wanted = wanted;
        let left = if work_ms > 0.0 { missing_ms / work_ms } else { 0.0 };
        Backlog {
            jobs: (backlog.jobs as f64 * left).ceil() as u64,
            work_ms: backlog.work_ms * left,
            arriving_ms_per_s: backlog.arriving_ms_per_s * left,
        }
    }
}

/// How many workers a model should have.
pub fn wanted(demand: &Demand, spot: &Pool, on_demand: &Pool, target: &Target) -> Wanted {
    let wait_ms = target.wait.as_secs_f64() * 1e3;
    let (mut cheap, mut dear) = (Share::new(spot, wait_ms), Share::new(on_demand, wait_ms));
    let (mut cheap_supply, mut dear_supply) = (cheap.supply_ms(), dear.supply_ms());
    let busy = cheap.wanted + dear.wanted;

    let mut left_over = dear.take(&demand.on_demand, &mut dear_supply);
    let spot_first = effective_price(&spot.offer) <= effective_price(&on_demand.offer);
    let rest = if spot_first {
        let rest = cheap.take(&demand.any, &mut cheap_supply);
        dear.take(&rest, &mut dear_supply)
    } else {
        let rest = dear.take(&demand.any, &mut dear_supply);
        cheap.take(&rest, &mut cheap_supply)
    };
    left_over.jobs += rest.jobs;

    let mut reason = match cheap.wanted + dear.wanted {
        0 => Reason::Nothing,
        all if all > busy => Reason::Backlog,
        _ => Reason::Busy,
    };
    if left_over.jobs > 0 {
        reason = Reason::Ceiling;
    }
    let floor = target.workers_min.max(u32::from(demand.is_awaited)).min(target.workers_max);
    let all = cheap.wanted + dear.wanted;
    if all < floor {
        let missing = floor - all;
        let room = |share: &Share<'_>| share.pool.offer.workers_max.saturating_sub(share.wanted);
        let (first, second) = if spot_first { (&mut cheap, &mut dear) } else { (&mut dear, &mut cheap) };
        let by_first = missing.min(room(first));
        first.wanted += by_first;
        second.wanted += (missing - by_first).min(room(second));
        reason = if target.workers_min > all { Reason::Floor } else { Reason::Awaited };
    }
    // Nobody who has jobs is asked to go; of the others the dearer ones are done without first.
    let mut wanted = Wanted { spot: cheap.wanted, on_demand: dear.wanted, reason };
    let must = u32::from(demand.on_demand.jobs > 0).max(on_demand.running.busy);
    let mut excess = (wanted.spot + wanted.on_demand).saturating_sub(target.workers_max);
    if excess > 0 {
        wanted.reason = Reason::Ceiling;
        let from_on_demand = excess.min(wanted.on_demand.saturating_sub(must));
        wanted.on_demand -= from_on_demand;
        excess -= from_on_demand;
        wanted.spot = wanted.spot.saturating_sub(excess).max(spot.running.busy);
    }
    wanted
}

/// Since when a worker is ready, in milliseconds, and its name: those that were there first stay first.
pub type Seniority<'a> = (i64, &'a str);

/// Whether a worker stays though it has nothing to do, where `floor` are to be kept of those that are ready.
///
/// Each of them asks for itself; as all count the same ones in the same order, as many stay as should.
pub fn stays(own: Seniority<'_>, ready: &[Seniority<'_>], floor: u32) -> bool {
    ready.iter().filter(|other| **other < own).count() < floor as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Target = Target { wait: Duration::from_secs(10), workers_min: 0, workers_max: 100 };

    fn pool(price_per_hour: f64, running: Running) -> Pool {
        let offer = Offer {
            price_per_hour,
            cold_start: Duration::from_secs(60),
            interruptions_per_hour: 0.05,
            workers_max: 20,
        };
        Pool { running, offer }
    }

    fn backlog(jobs: u64, work_s: f64) -> Backlog {
        Backlog { jobs, work_ms: work_s * 1e3, arriving_ms_per_s: 0.0 }
    }

    fn any(jobs: u64, work_s: f64) -> Demand {
        Demand { any: backlog(jobs, work_s), ..Demand::default() }
    }

    fn asked(demand: &Demand, spot: Running, on_demand: Running) -> (u32, u32, Reason) {
        let wanted = wanted(demand, &pool(0.4, spot), &pool(1.0, on_demand), &TARGET);
        (wanted.spot, wanted.on_demand, wanted.reason)
    }

    fn ready(ready: u32, busy: u32, work_left_s: f64) -> Running {
        Running { ready, busy, starting: 0, work_left_ms: work_left_s * 1e3 }
    }

    #[test]
    fn nothing_costs_nothing_and_the_first_job_wakes_one() {
        let none = Running::default();
        assert_eq!(asked(&Demand::default(), none, none), (0, 0, Reason::Nothing));
        assert_eq!(asked(&any(1, 3.0), none, none), (1, 0, Reason::Backlog));
        // However many messages are little work.
        assert_eq!(asked(&any(5, 5.0), none, none), (1, 0, Reason::Backlog));
        let uninterrupted = Demand { on_demand: backlog(1, 3.0), ..Demand::default() };
        assert_eq!(asked(&uninterrupted, none, none), (0, 1, Reason::Backlog));
        let awaited = Demand { is_awaited: true, ..Demand::default() };
        assert_eq!(asked(&awaited, none, none), (1, 0, Reason::Awaited));
    }

    #[test]
    fn nobody_is_started_for_what_is_done_before_it_would_be_ready() {
        // One worker has 70 s until a new one would have kept the promise.
        let one = ready(1, 1, 5.0);
        assert_eq!(asked(&any(20, 60.0), one, Running::default()).0, 1);
        assert_eq!(asked(&any(20, 95.0), one, Running::default()).0, 2);
        assert_eq!(asked(&any(20, 155.0), one, Running::default()).0, 4);
        let starting = Running { starting: 4, ..one };
        assert_eq!(
            asked(&any(20, 155.0), starting, Running::default()),
            (3, 0, Reason::Backlog),
            "others start already"
        );
    }

    #[test]
    fn busy_workers_stay_and_idle_ones_need_not() {
        assert_eq!(asked(&Demand::default(), ready(5, 2, 1.0), ready(3, 1, 1.0)), (2, 1, Reason::Busy));
    }

    #[test]
    fn what_arrives_while_a_worker_starts_counts() {
        let mut demand = any(2, 1.0);
        demand.any.arriving_ms_per_s = 3000.0;
        // Three workers' worth comes all the time; two jobs that wait justify two more.
        assert_eq!(asked(&demand, ready(1, 1, 60.0), Running::default()).0, 3);
        assert_eq!(asked(&demand, ready(4, 4, 10.0), Running::default()).0, 4);
    }

    #[test]
    fn spot_comes_first_while_it_is_cheaper_and_on_demand_takes_what_it_has_no_room_for() {
        let none = Running::default();
        assert_eq!(asked(&any(100, 1000.0), none, none), (20, 14, Reason::Backlog));
        let mut spot = pool(0.4, none);
        spot.offer.workers_max = 0;
        let wanted = wanted(&any(3, 30.0), &spot, &pool(1.0, none), &TARGET);
        assert_eq!((wanted.spot, wanted.on_demand), (0, 1), "none to be had");
        spot.offer = Offer { workers_max: 20, price_per_hour: 1.2, ..spot.offer };
        let wanted = super::wanted(&any(3, 30.0), &spot, &pool(1.0, none), &TARGET);
        assert_eq!((wanted.spot, wanted.on_demand), (0, 1), "dearer than at the list price");
    }

    #[test]
    fn floor_and_ceiling_hold() {
        let none = Running::default();
        let (spot, on_demand) = (pool(0.4, none), pool(1.0, none));
        let floor = Target { workers_min: 2, ..TARGET };
        assert_eq!(
            wanted(&Demand::default(), &spot, &on_demand, &floor),
            Wanted { spot: 2, on_demand: 0, reason: Reason::Floor }
        );
        let ceiling = Target { workers_max: 3, ..TARGET };
        let mut demand = any(100, 1000.0);
        demand.on_demand = backlog(10, 100.0);
        assert_eq!(
            wanted(&demand, &spot, &on_demand, &ceiling),
            Wanted { spot: 2, on_demand: 1, reason: Reason::Ceiling }
        );
        let all_busy = pool(0.4, ready(5, 5, 50.0));
        assert_eq!(wanted(&demand, &all_busy, &on_demand, &ceiling).spot, 5, "nobody is asked to go");
    }

    #[test]
    fn numbers_are_bounded_whatever_comes_in() {
        let wild = [0.0, -1.0, 1e300, f64::INFINITY, f64::NAN];
        for work_ms in wild {
            for arriving_ms_per_s in wild {
                for jobs in [0, 1, u64::MAX] {
                    let any = Backlog { jobs, work_ms, arriving_ms_per_s };
                    let demand = Demand { any, on_demand: any, is_awaited: true };
                    let wanted = wanted(&demand, &pool(0.4, ready(3, 1, 9.0)), &pool(1.0, Running::default()), &TARGET);
                    assert!(wanted.spot <= 20 && wanted.on_demand <= 20, "{demand:?} {wanted:?}");
                }
            }
        }
    }

    #[test]
    fn as_many_stay_as_the_floor_says_and_those_that_were_there_first() {
        let ready = [(20, "b"), (10, "z"), (20, "a"), (30, "c")];
        for (floor, expected) in [(0, ""), (1, "z"), (2, "za"), (3, "zab"), (9, "zabc")] {
            let mut staying: Vec<Seniority<'_>> = ready.into_iter().filter(|own| stays(*own, &ready, floor)).collect();
            staying.sort_unstable();
            assert_eq!(staying.iter().map(|(_, name)| *name).collect::<String>(), expected, "floor {floor}");
        }
        assert!(stays((10, "new"), &[], 1), "its own report is not there yet");
    }
}
