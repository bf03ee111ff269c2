//! Which jobs this worker takes on: what it asks the consumers for, which of the delivered jobs it claims, and which it
//! gives back early.
//!
//! While more waits in the stream, jobs are held **ahead**, unclaimed: enough to choose by tenant, urgency and size, so that
//! no tenant's flood stands before the others and batches get full. When nothing waits in the stream any more, somebody
//! else may be idle, so what cannot begin soon goes back.
//!
//! A tenant that had far more of the engine than another goes behind all of that one's jobs, whatever their priorities: see
//! `fair`.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::time::Duration;

use crate::job::{Capacity, Fault, FaultCode, Pool, Priority};

use super::super::batch::{Backlog, BatchKey, Rank, images_in_step};
use super::super::fair::TenantKey;
use super::super::message::{Action, Effect, Lane, Offer, Ticket, Transition};
use super::super::pulls::STARVING;
use super::held::{AHEAD_MAX, CLASSES, Held, Phase, class};
use super::roster::Counts;
use super::{Policy, Scheduler};

/// The places among those that ask for work: the first, behind that a worker that rests, busy ones, the last.
const IDLE: u8 = 0;
const RESTING: u8 = 1;
const BUSY: u8 = 2;
const PREFERENCE_MAX: u8 = 9;
/// A worker with nothing to do for so long rests: it is served after those that just had something, so that of too many
/// workers some end instead of each getting a job before it would.
const RESTS_AFTER: Duration = Duration::from_secs(10);
/// How long a message is away that is given back to whoever is idle: their pulls are open already.
const HAND_BACK: Duration = Duration::from_millis(50);
/// One of so many is given back at once.
const HANDED_BACK_SHARE: usize = 8;
/// While they come back, others are given back only so often in the end.
const HAND_BACK_EVERY_MAX: Duration = Duration::from_secs(2);
/// Jobs that are held ahead are looked at so often when there is no room for any.
const LOOK_AHEAD_EVERY: Duration = Duration::from_millis(250);
const LAST_LEVEL: u8 = 2 * CLASSES as u8 - 1;
/// A job cannot make its deadline any more when it takes more than this share of the time left by itself: the engine may
/// prove faster than it was.
const LATE_SHARE: f64 = 1.1;

/// What is held, by urgency: the classes, and behind them those of tenants that had too much.
#[derive(Clone, Debug, Default)]
pub(super) struct Levels {
    held: [Counts; 2 * CLASSES],
    /// What the tenant had that had least.
    least_served_ms: f64,
}

impl Levels {
    /// Images of claimed jobs up to a level.
    fn claimed(&self, level: u8) -> u32 {
        self.held.iter().take(usize::from(level) + 1).map(|counts| counts.claimed).sum()
    }

    /// Images still to be made.
    fn images(&self) -> u32 {
        self.held.iter().map(|counts| counts.claimed + counts.ahead).sum()
    }

    fn are_ahead(&self) -> bool {
        self.held.iter().any(|counts| counts.jobs_ahead > 0)
    }
}

/// The level of jobs of a class, and of a tenant that had too much or not.
fn level(class: u8, far_ahead: bool) -> u8 {
    class + if far_ahead { CLASSES as u8 } else { 0 }
}

/// Images of claimed jobs that are equal in this.
#[derive(Clone, Copy, Debug)]
struct Claimed {
    key: BatchKey,
    tenant: TenantKey,
    turn: (u8, i64),
    images: u32,
}

/// How many images of one size are worth stepping together.
#[derive(Clone, Copy, Debug)]
pub(super) struct UsefulImages {
    calm: u32,
    behind: u32,
}

impl Scheduler {
    /// Extends leases, tries again what is due, and counts what is held.
    pub(super) fn wake_jobs(&mut self) {
        if self.held.wake_at().is_some_and(|at| at <= self.now) {
            let (now, effects) = (self.now, &mut self.effects);
            let mut due = Vec::new();
            self.held.wake(|ticket, held| {
                if held.lease.extend_at() <= now {
                    held.lease.extension_sent(now);
                    effects.push_back(Effect::Extend { ticket });
                }
                if let Phase::Trying { action, at } = &held.phase
                    && *at <= now
                {
                    due.push((ticket, action.clone()));
                }
            });
            for (ticket, action) in due {
                self.act(ticket, action);
            }
        }
        self.count_levels();
        for key in self.held.keys() {
            if !self.useful.contains_key(&key) {
                let useful = |backlog| images_in_step(self.limit(key), self.costs.steps_ms(key), backlog);
                let useful = UsefulImages { calm: useful(Backlog::None), behind: useful(Backlog::Waiting) };
                self.useful.insert(key, useful);
            }
        }
    }

    fn count_levels(&mut self) {
        let least_served_ms = self.shares.least_served().unwrap_or_default();
        self.levels = Levels { least_served_ms, ..Levels::default() };
        for (tenant, class, counts) in self.held.counts() {
            let level = usize::from(self.level_of(tenant, class));
            let sum = &mut self.levels.held[level];
            sum.claimed += counts.claimed;
            sum.ahead += counts.ahead;
            sum.jobs_ahead += counts.jobs_ahead;
        }
    }

    fn level_of(&self, tenant: TenantKey, class: u8) -> u8 {
        level(class, self.shares.is_far_ahead(tenant, self.levels.least_served_ms))
    }

    /// A job's level: see [`Levels`].
    pub(super) fn level(&self, held: &Held) -> u8 {
        self.level_of(held.offer.tenant, held.class())
    }

    /// What the engine took for a step of one size was other than expected.
    pub(super) fn forget_useful(&mut self, key: BatchKey) {
        let costs = &self.costs;
        self.useful.retain(|other, _| *other != key && costs.is_known(*other));
    }

    /// Claims what there is room for, the most urgent first, and gives back what it is no use to hold.
    pub(super) fn take_in(&mut self) {
        while let Some(ticket) = self.next_claim() {
            self.begin(ticket, VecDeque::from([Action::Claim]));
            self.count_levels();
        }
        if self.now >= self.look_ahead_at {
            self.look_ahead_at = self.now.after(LOOK_AHEAD_EVERY);
        }
        self.hand_back();
    }

    fn next_claim(&self) -> Option<Ticket> {
        let total = self.levels.claimed(LAST_LEVEL);
        let is_full = self.config.policy == Policy::Adaptive && total >= self.rows_max(0);
        let looks_at_each = self.now >= self.look_ahead_at;
        if !self.levels.are_ahead() || is_full && !looks_at_each {
            return None;
        }
        if self.held.has_suspect() {
            // What is claimed beside it would die with it, and be given up for it in the end.
            return None;
        }
        if is_full {
            let late = self.held.with_deadline().filter(|(_, held)| held.phase == Phase::Ahead && self.is_late(held));
            return late.min_by_key(|(_, held)| self.rank(held)).map(|(ticket, _)| ticket);
        }
        let claimed: Vec<Claimed> = self
            .held
            .claimed()
            .map(|(key, tenant, class, images)| Claimed { key, tenant, turn: self.turn_of(tenant, class), images })
            .collect();
        if looks_at_each {
            // What was outranked for too long may begin, unless that takes a row from what is more urgent.
            let starves =
                |held: &Held| self.now.since(held.came_at) >= STARVING && total < self.rows_max(self.level(held));
            let has_room =
                |held: &Held| self.is_late(held) || self.has_room(held, self.turn(held), &claimed) || starves(held);
            let ahead = self.held.ahead().filter(|(_, held)| has_room(held));
            return ahead.min_by_key(|(_, held)| self.rank(held)).map(|(ticket, _)| ticket);
        }
        let mut best: Option<(Rank, Ticket)> = None;
        for ((key, tenant, class), mut jobs) in self.held.ahead_by_kind() {
            // They are equal in all that decides whether there is room.
            let turn = self.turn_of(tenant, class);
            let Some((ticket, first)) = jobs.next().filter(|(_, held)| self.has_room(held, turn, &claimed)) else {
                continue;
            };
            let rank = self.ranks(key, tenant);
            let ranked = std::iter::once((ticket, first)).chain(jobs).map(|(ticket, held)| (rank(held), ticket));
            best = best.into_iter().chain(ranked).min();
        }
        best.map(|(_, ticket)| ticket)
    }

    /// Whether a job whose turn this is would get rows soon enough to be claimed now, by what goes before it or with it.
    /// While more waits, batches of several sizes form side by side, but no tenant takes all rows, so that there is one for
    /// whoever comes.
    fn has_room(&self, held: &Held, turn: (u8, i64), claimed: &[Claimed]) -> bool {
        if self.config.policy == Policy::Fixed {
            return true;
        }
        let Offer { key, tenant, .. } = held.offer;
        let (mut in_front, mut of_tenant, mut of_key) = (0, 0, 0);
        for other in claimed.iter().filter(|other| other.turn <= turn) {
            in_front += other.images;
            of_tenant += if other.tenant == tenant { other.images } else { 0 };
            of_key += if other.key == key { other.images } else { 0 };
        }
        let of_tenant_max = self.rows_max(if self.held.is_shared() { LAST_LEVEL } else { CLASSES as u8 });
        if of_tenant >= of_tenant_max {
            false
        } else if self.pulls.are_behind() {
            in_front < self.rows_max(turn.0) && of_key < self.images_useful(key)
        } else {
            in_front < self.images_useful_of_any()
        }
    }

    /// Images that may be in the engine before one of this level goes there: the rest is for more urgent ones.
    pub(super) fn rows_max(&self, level: u8) -> u32 {
        let parked = self.config.images_parked_max * 4_u32.saturating_sub(u32::from(level)) / 4;
        self.config.images_in_batch_max.max(1) + parked
    }

    /// When nothing waits in the stream any more, whoever is idle gets some of what was held ahead in vain: what would
    /// begin last. If it comes back, nobody was, and it takes longer until the next try.
    fn hand_back(&mut self) {
        if self.now < self.hand_back_at || self.config.policy == Policy::Fixed || !self.levels.are_ahead() {
            return;
        }
        self.hand_back_at = self.now.after(self.hand_back_every);
        let in_vain = |held: &Held| self.now.since(held.came_at) >= AHEAD_MAX && self.pulls.pending(held.lane) == 0;
        let mut last: Vec<_> = self.held.ahead().filter(|(_, held)| in_vain(held)).collect();
        last.sort_by_cached_key(|(_, held)| Reverse(self.rank(held)));
        last.truncate(last.len().div_ceil(HANDED_BACK_SHARE));
        let tickets: Vec<(Ticket, usize)> = last.into_iter().map(|(ticket, held)| (ticket, held.lane)).collect();
        for (ticket, lane) in tickets {
            self.pulls.given_back(lane);
            self.handed_back.insert(ticket);
            self.give_back_unclaimed(ticket, HAND_BACK);
        }
    }

    /// A message came again that was given back for somebody else.
    pub(super) fn came_back(&mut self, ticket: Ticket) {
        if self.handed_back.remove(&ticket) {
            self.hand_back_every = (self.hand_back_every * 2).min(HAND_BACK_EVERY_MAX);
        }
    }

    /// Somebody else took what was given back, or there was nothing of that kind.
    pub(super) fn nothing_more(&mut self) {
        self.handed_back.clear();
        self.hand_back_every = AHEAD_MAX;
    }

    /// A job that cannot make its deadline any more is not worth another step.
    pub(super) fn fail_late(&mut self) {
        let late: Vec<Ticket> = self
            .held
            .with_deadline()
            .filter(|(_, held)| held.phase == Phase::Active && self.is_late(held))
            .map(|(ticket, _)| ticket)
            .collect();
        for ticket in late {
            let Some(held) = self.held.get(ticket) else { continue };
            let left = held.steps_left();
            let message = format!("the deadline cannot be met any more: {left} steps are left");
            self.end(ticket, Transition::Fail(Fault::reject(FaultCode::DeadlineExceeded, message)));
        }
    }

    /// Whether a job cannot make its deadline any more and wants to end then.
    fn is_late(&self, held: &Held) -> bool {
        let Some(ends_by) = held.ends_by() else { return false };
        let left = ends_by.since(self.now);
        let known = self.costs.is_known(held.offer.key);
        left.is_zero() || known && self.alone_ms(held) > LATE_SHARE * left.as_secs_f64() * 1e3
    }

    /// What a job still takes if the engine does nothing else, at least.
    fn alone_ms(&self, held: &Held) -> f64 {
        let steps = held.steps_left().div_ceil(held.offer.images.max(1));
        // What steps between whole ones take, nobody has measured.
        let steps = f64::from(steps.div_ceil(held.offer.whole_every.max(1)));
        steps * self.costs.step_ms(held.offer.key, 1) + self.costs.decode_ms(held.offer.key)
    }

    /// Pulls.
    pub(super) fn ask_for_more(&mut self) {
        let free = self.rows_free();
        let preference = self.preference();
        for (lane, max) in self.pulls.plan(self.now, &free, preference) {
            let preference = self.standing(lane, preference);
            self.effects.push_back(Effect::Pull { lane, max, preference });
        }
    }

    /// For each consumer, how many messages are wanted: for rows that no held job will need (those that less urgent jobs
    /// need can be taken), and while more wait anywhere, to choose from. A consumer whose jobs are outranked, and from which
    /// nothing came for long, may bring one all the same.
    fn rows_free(&self) -> Vec<u32> {
        let useful = self.images_useful_of_any();
        let (parked_max, ahead_max) = match self.config.policy {
            Policy::Adaptive => (self.config.images_parked_max, self.config.jobs_ahead_max),
            Policy::Fixed => (0, 0),
        };
        let are_behind = self.pulls.are_behind();
        let all = (useful + parked_max).saturating_sub(self.levels.images());
        let free = |(lane, Lane { priority, .. }): (usize, &Lane)| {
            let (more_urgent, from_here) = self.held.of_class().split_at(usize::from(class(*priority)));
            let as_urgent = from_here.first().copied().unwrap_or_default();
            let wanted: u32 = more_urgent.iter().chain([&as_urgent]).map(|counts| counts.claimed + counts.ahead).sum();
            let starving = more_urgent.iter().any(|counts| counts.jobs > 0) && self.pulls.may_starve(lane, self.now);
            let room_ahead = ahead_max.saturating_sub(as_urgent.jobs_ahead);
            let ahead = if self.pulls.is_behind(lane) { room_ahead } else { room_ahead.min(u32::from(are_behind)) };
            all.min(useful.saturating_sub(wanted).max(u32::from(starving))).max(ahead)
        };
        self.config.lanes.iter().enumerate().map(free).collect()
    }

    /// Images of a size that are worth holding: what cannot step together sooner than one by one is better left to others.
    pub(super) fn images_useful(&self, key: BatchKey) -> u32 {
        self.images_useful_with(self.backlog(), key)
    }

    fn images_useful_of_any(&self) -> u32 {
        let backlog = self.backlog();
        let of_keys = self.held.keys().map(|key| self.images_useful_with(backlog, key));
        of_keys.max().unwrap_or(self.config.images_in_batch_max)
    }

    fn images_useful_with(&self, backlog: Backlog, key: BatchKey) -> u32 {
        let Some(useful) = self.useful.get(&key).filter(|_| self.config.policy == Policy::Adaptive) else {
            return self.config.images_in_batch_max;
        };
        match backlog {
            Backlog::None => useful.calm,
            Backlog::Waiting => useful.behind,
        }
    }

    /// Images of a size that may step together.
    pub(super) fn limit(&self, key: BatchKey) -> u32 {
        let most = self.config.images_in_batch_max.min(self.fits.images(key)).max(1);
        self.config.memory_bytes.map_or(most, |bytes| self.costs.images_within(key, bytes, most))
    }

    /// Whether more waits than is claimed.
    pub(super) fn backlog(&self) -> Backlog {
        let waiting = self.pulls.are_behind() || self.levels.are_ahead() || self.config.policy == Policy::Fixed;
        if waiting { Backlog::Waiting } else { Backlog::None }
    }

    /// The fuller this worker, the further behind it stands for further work. While more waits, the tenant that has most
    /// here does not count: what it has waits for the others.
    fn preference(&self) -> u8 {
        let all = self.levels.images();
        if all == 0 {
            let rests = self.held.is_empty() && self.now.since(self.idle_since) >= RESTS_AFTER;
            return if rests { RESTING } else { IDLE };
        }
        let most = if self.pulls.are_behind() { self.held.most_images_of_a_tenant() } else { 0 };
        let sevenths = (7 * (all - most)).div_ceil(self.config.images_in_batch_max.max(1)).max(1);
        u8::try_from(sevenths)
            .map_or(PREFERENCE_MAX, |sevenths| (BUSY - 1).saturating_add(sevenths).min(PREFERENCE_MAX))
    }

    /// Where a worker so full stands among those that pull from a consumer: what may run anywhere goes to machines at the
    /// list price only if no cheaper one wants it, but urgent jobs rather to an idle one of these than to a cheap one that
    /// has others.
    fn standing(&self, lane: usize, preference: u8) -> u8 {
        let Some(Lane { priority, pool: Pool::Any }) = self.config.lanes.get(lane) else { return preference };
        let of_half = if preference < BUSY { preference } else { BUSY + (preference - BUSY) / 3 };
        match (priority, self.config.capacity) {
            (Priority::High, _) if preference >= BUSY => 2 * BUSY + (preference - BUSY) * 5 / 7,
            (Priority::High, Capacity::Spot) => preference,
            (Priority::High, Capacity::OnDemand) => BUSY + preference,
            (Priority::Normal | Priority::Low, Capacity::Spot) => of_half,
            (Priority::Normal | Priority::Low, Capacity::OnDemand) => PREFERENCE_MAX.div_ceil(2) + of_half,
        }
    }

    /// Whether a job that has just come would be better off elsewhere: the pull that brought it said that this worker is
    /// less busy than it has become, the job would have to wait here, and nothing says that all others are busy too.
    pub(super) fn is_meant_for_others(&self, ticket: Ticket) -> bool {
        let Some(held) = self.held.get(ticket).filter(|_| self.config.policy == Policy::Adaptive) else { return false };
        let before = |other: &Held| other.order < held.order && other.is_open() && other.class() <= held.class();
        !self.pulls.are_behind()
            && self.pulls.preference(held.lane) < self.preference()
            && self.held.iter().any(|(_, other)| before(other))
    }

    /// How urgent a job is.
    pub(super) fn rank(&self, held: &Held) -> Rank {
        self.ranks(held.offer.key, held.offer.tenant)(held)
    }

    /// How urgent jobs of one size and tenant are.
    fn ranks(&self, key: BatchKey, tenant: TenantKey) -> impl Fn(&Held) -> Rank {
        let step_ms = self.costs.step_ms(key, 1);
        let (first_level, turn) = self.turn_of(tenant, 0);
        move |held: &Held| {
            if self.config.policy == Policy::Fixed {
                return Rank { level: 0, class: 0, turn: 0, response: Reverse(0), order: held.order };
            }
            let left_ms = f64::from(held.steps_left().max(1)) * step_ms;
            let here_ms = self.now.since(held.came_at).as_secs_f64() * 1e3;
            let class = self.urgency(held);
            let response = Reverse((1e3 * here_ms / left_ms.max(1e-3)) as u64);
            Rank { level: first_level + class, class, turn, response, order: held.order }
        }
    }

    /// A job's class, one less when its deadline comes close, until it has missed it.
    fn urgency(&self, held: &Held) -> u8 {
        let presses = held.offer.deadline.is_some_and(|deadline| {
            let left_ms = deadline.at.since(self.now).as_secs_f64() * 1e3;
            left_ms > 0.0 && left_ms < 2.0 * self.alone_ms(held)
        });
        held.class().saturating_sub(u8::from(presses))
    }

    /// What decides whether a job goes before another that is in the engine already.
    pub(super) fn turn(&self, held: &Held) -> (u8, i64) {
        self.turn_of(held.offer.tenant, self.urgency(held))
    }

    fn turn_of(&self, tenant: TenantKey, class: u8) -> (u8, i64) {
        let (far_ahead, turn) = self.shares.standing(tenant, self.levels.least_served_ms);
        (level(class, far_ahead), turn)
    }
}
