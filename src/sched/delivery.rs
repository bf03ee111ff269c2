//! When a webhook is tried, tried again and given up, and how many may be under way.
//!
//! The schedule is that of Standard Webhooks 1.0. Nothing here knows HTTP beyond its status codes, or what is told.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Mono;
use crate::job::Undelivered;

/// By how much a retry may come sooner or later than the schedule says.
const JITTER: f64 = 0.1;
/// No receiver can put a retry off for longer.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);
/// A delivery for which there is no room comes back after so long, doubled each time up to the second.
const TURNED_AWAY_FIRST: Duration = Duration::from_millis(250);
const TURNED_AWAY_MAX: Duration = Duration::from_secs(30);
const GONE: u16 = 410;

/// What came of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The receiver answered.
    Answered {
        /// The HTTP status.
        status: u16,
        /// How long it wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// It cannot be reached, or does not answer in time.
    Silent,
    /// Its address is none that may be reached.
    Refused,
}

/// What becomes of the delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It has arrived.
    Delivered,
    /// It is tried again.
    Retry {
        /// From now on.
        after: Duration,
    },
    /// It is not tried any more.
    GivenUp(Undelivered),
}

/// The waits between attempts; the first attempt is made at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Before the second attempt, the third, and so on: there is one more attempt than there are waits.
    pub waits: Vec<Duration>,
}

impl Default for Schedule {
    /// Ten attempts in about three days.
    fn default() -> Self {
        const SECONDS: [u64; 9] = [5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400];
        Self { waits: SECONDS.map(Duration::from_secs).to_vec() }
    }
}

impl Schedule {
    /// What follows the `attempt`-th attempt, counted from 1. `jitter` is from 0 to 1; what is not counts as the nearer end.
    pub fn next(&self, attempt: u32, outcome: Outcome, jitter: f64) -> Next {
        let retry_after = match outcome {
            Outcome::Answered { status: 200..=299, .. } => return Next::Delivered,
            Outcome::Answered { status: GONE, .. } => return Next::GivenUp(Undelivered::Gone),
            Outcome::Refused => return Next::GivenUp(Undelivered::Refused),
            Outcome::Answered { retry_after, .. } => retry_after.unwrap_or_default().min(RETRY_AFTER_MAX),
            Outcome::Silent => Duration::ZERO,
        };
        let made = usize::try_from(attempt.saturating_sub(1)).unwrap_or(usize::MAX);
        match self.waits.get(made) {
            Some(wait) => Next::Retry { after: spread(*wait, jitter).max(retry_after) },
            None => Next::GivenUp(Undelivered::Exhausted),
        }
    }
}

fn spread(wait: Duration, jitter: f64) -> Duration {
    let jitter = if jitter.is_nan() { 0.5 } else { jitter.clamp(0.0, 1.0) };
    Duration::try_from_secs_f64(wait.as_secs_f64() * (1.0 + JITTER * (2.0 * jitter - 1.0))).unwrap_or(wait)
}

/// When a delivery comes back for which there was no room, or whose turn it was not; the server has delivered it so often.
pub fn turned_away(delivered: i64) -> Duration {
    let doublings = u32::try_from(delivered.saturating_sub(1).clamp(0, 16)).unwrap_or_default();
    (TURNED_AWAY_FIRST * 2_u32.saturating_pow(doublings)).min(TURNED_AWAY_MAX)
}

/// Whose turn it is to be told of progress: each job's now and then. It knows so many jobs, and forgets those whose last turn
/// is longest ago.
#[derive(Clone, Debug)]
pub struct Turns<T> {
    every: Duration,
    jobs_max: usize,
    known: BTreeMap<String, (T, Mono)>,
}

impl<T> Turns<T> {
    /// Nobody is known yet; each gets a turn once in `every`.
    pub fn new(every: Duration, jobs_max: usize) -> Self {
        Self { every, jobs_max: jobs_max.max(1), known: BTreeMap::new() }
    }

    /// Whether the job is known.
    pub fn knows(&self, job: &str) -> bool {
        self.known.contains_key(job)
    }

    /// Makes a job known, with what its turns are for; its first one is at once.
    pub fn meet(&mut self, job: &str, what: T, now: Mono) {
        if self.known.len() >= self.jobs_max {
            let oldest = self.known.iter().min_by_key(|(_, (_, due))| *due).map(|(job, _)| job.clone());
            oldest.map(|job| self.known.remove(&job));
        }
        self.known.insert(job.to_owned(), (what, now));
    }

    /// What the job's turn is for, if it is its turn.
    pub fn take(&mut self, job: &str, now: Mono) -> Option<&T> {
        let (what, due) = self.known.get_mut(job)?;
        if now < *due {
            return None;
        }
        *due = now.after(self.every);
        Some(what)
    }
}

/// How many attempts may be under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Over all.
    pub all: usize,
    /// For one tenant, whatever hosts it names.
    pub tenant: usize,
    /// With one host.
    pub host: usize,
}

/// The attempts that are under way. A receiver that is slow fills its own room, and nobody else's.
#[derive(Clone, Debug)]
pub struct Slots {
    room: Room,
    all: usize,
    tenants: BTreeMap<String, usize>,
    hosts: BTreeMap<String, usize>,
}

impl Slots {
    /// None is under way.
    pub fn new(room: Room) -> Self {
        Self { room, all: 0, tenants: BTreeMap::new(), hosts: BTreeMap::new() }
    }

    /// How many more there is room for, over all.
    pub fn free(&self) -> usize {
        self.room.all.saturating_sub(self.all)
    }

    /// How many are under way.
    pub fn taken(&self) -> usize {
        self.all
    }

    /// Takes room for one attempt, if there is some.
    pub fn take(&mut self, tenant: &str, host: &str) -> bool {
        let has_room = |taken: &BTreeMap<String, usize>, name: &str, room: usize| {
            taken.get(name).copied().unwrap_or_default() < room
        };
        if self.free() == 0
            || !has_room(&self.tenants, tenant, self.room.tenant)
            || !has_room(&self.hosts, host, self.room.host)
        {
            return false;
        }
        self.all += 1;
        *self.tenants.entry(tenant.to_owned()).or_default() += 1;
        *self.hosts.entry(host.to_owned()).or_default() += 1;
        true
    }

    /// Gives back what [`Self::take`] took.
    pub fn give_back(&mut self, tenant: &str, host: &str) {
        self.all = self.all.saturating_sub(1);
        for (taken, name) in [(&mut self.tenants, tenant), (&mut self.hosts, host)] {
            if let Some(count) = taken.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    taken.remove(name);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: u16) -> Outcome {
        Outcome::Answered { status, retry_after: None }
    }

    fn after(next: Next) -> Duration {
        match next {
            Next::Retry { after } => after,
            Next::Delivered | Next::GivenUp(_) => panic!("{next:?}"),
        }
    }

    #[test]
    fn only_2xx_arrives_and_only_410_and_refusals_end_it_at_once() {
        let schedule = Schedule::default();
        for status in 0..=999 {
            let next = schedule.next(1, answered(status), 0.5);
            match status {
                200..=299 => assert_eq!(next, Next::Delivered, "{status}"),
                410 => assert_eq!(next, Next::GivenUp(Undelivered::Gone)),
                _ => assert_eq!(after(next), Duration::from_secs(5), "{status}"),
            }
        }
        assert_eq!(schedule.next(1, Outcome::Refused, 0.5), Next::GivenUp(Undelivered::Refused));
        assert_eq!(after(schedule.next(1, Outcome::Silent, 0.5)), Duration::from_secs(5));
    }

    #[test]
    fn ten_attempts_take_three_days() {
        let schedule = Schedule::default();
        let mut elapsed = Duration::ZERO;
        for attempt in 1..=9 {
            elapsed += after(schedule.next(attempt, Outcome::Silent, 0.5));
        }
        assert_eq!(elapsed, Duration::from_secs(5 + 300 + 1_800 + 3_600 * (2 + 5 + 10 + 14 + 20 + 24)));
        for attempt in [10, 11, u32::MAX] {
            assert_eq!(schedule.next(attempt, answered(500), 0.5), Next::GivenUp(Undelivered::Exhausted));
        }
        assert_eq!(schedule.next(10, answered(204), 0.5), Next::Delivered);
        assert_eq!(
            after(schedule.next(0, answered(500), 0.5)),
            Duration::from_secs(5),
            "no attempt counts as the first"
        );
        let once = Schedule { waits: Vec::new() };
        assert_eq!(once.next(1, Outcome::Silent, 0.5), Next::GivenUp(Undelivered::Exhausted));
    }

    #[test]
    fn retries_are_spread_by_a_tenth() {
        let schedule = Schedule { waits: vec![Duration::from_secs(100)] };
        let wait = |jitter| after(schedule.next(1, answered(503), jitter)).as_secs_f64();
        for (jitter, seconds) in
            [(0.0, 90.0), (0.5, 100.0), (1.0, 110.0), (-7.0, 90.0), (7.0, 110.0), (f64::NAN, 100.0)]
        {
            assert!((wait(jitter) - seconds).abs() < 1e-6, "{jitter}: {}", wait(jitter));
        }
        let forever = Schedule { waits: vec![Duration::MAX] };
        assert_eq!(after(forever.next(1, answered(503), 1.0)), Duration::MAX);
    }

    #[test]
    fn a_receiver_can_put_a_retry_off_but_not_for_ever_nor_hasten_it() {
        let schedule = Schedule::default();
        for (asked, waits) in [(0, 5), (1, 5), (60, 60), (3_600, 3_600), (1 << 40, 24 * 3_600)] {
            let outcome = Outcome::Answered { status: 429, retry_after: Some(Duration::from_secs(asked)) };
            assert_eq!(after(schedule.next(1, outcome, 0.5)), Duration::from_secs(waits), "{asked}");
        }
        let outcome = Outcome::Answered { status: 200, retry_after: Some(Duration::from_secs(9)) };
        assert_eq!(schedule.next(1, outcome, 0.5), Next::Delivered);
    }

    #[test]
    fn what_is_turned_away_comes_back_ever_later_up_to_a_bound() {
        let waits: Vec<u128> = (1..=9).map(|delivered| turned_away(delivered).as_millis()).collect();
        assert_eq!(waits, [250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
        for delivered in [i64::MIN, -1, 0] {
            assert_eq!(turned_away(delivered), TURNED_AWAY_FIRST);
        }
        assert_eq!(turned_away(i64::MAX), TURNED_AWAY_MAX);
    }

    #[test]
    fn a_job_is_told_of_now_and_then_and_forgotten_when_others_come() {
        let at = |ms| Mono::ZERO.after(Duration::from_millis(ms));
        let mut turns = Turns::new(Duration::from_secs(1), 2);
        turns.meet("a", 1, at(0));
        let told: Vec<u64> =
            [0, 1, 999, 1_000, 1_500, 2_500].into_iter().filter(|ms| turns.take("a", at(*ms)).is_some()).collect();
        assert_eq!(told, [0, 1_000, 2_500]);
        assert_eq!(turns.take("b", at(3_000)), None, "nobody met it");
        turns.meet("b", 2, at(4_000));
        turns.meet("c", 3, at(4_000));
        assert_eq!((turns.knows("a"), turns.knows("b"), turns.take("c", at(4_000))), (false, true, Some(&3)));
    }

    #[test]
    fn one_host_or_tenant_never_fills_the_room_of_others() {
        let mut slots = Slots::new(Room { all: 5, tenant: 3, host: 2 });
        assert!(slots.take("t", "slow") && slots.take("t", "slow"));
        assert!(!slots.take("t", "slow") && !slots.take("u", "slow"), "the host is full, whoever asks");
        assert!(slots.take("t", "other"));
        assert!(!slots.take("t", "third"), "the tenant is full, whatever it asks for");
        assert!(slots.take("u", "third") && slots.take("u", "third"));
        assert_eq!((slots.free(), slots.taken()), (0, 5));
        assert!(!slots.take("v", "fourth"), "all is full");
        slots.give_back("t", "slow");
        assert!(slots.take("u", "slow"), "what is given back can be taken");
        for (tenant, host) in [("t", "slow"), ("t", "other"), ("u", "third"), ("u", "third"), ("u", "slow")] {
            slots.give_back(tenant, host);
        }
        assert_eq!(slots.free(), 5);
        assert!(slots.tenants.is_empty() && slots.hosts.is_empty(), "nothing is remembered of who is done");
    }
}
