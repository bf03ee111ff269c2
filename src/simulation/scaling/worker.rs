//! One worker: the jobs in its engine, and what it is paid for.
//!
//! Simpler than [`crate::sched::Scheduler`]: jobs come and go between steps, first come, first served; rows of one size step
//! together and sizes take turns; there are no priorities, deadlines or shares of tenants. Who waits for whom inside of a
//! worker is the same under every rule, so that only the number of workers differs.

use crate::job::Capacity;
use crate::sched::BatchKey;

/// Where a worker is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Asked for.
    Starting,
    /// It takes jobs.
    Ready,
    /// It takes none any more, and ends what it has until then at the latest.
    Draining,
    /// It writes down where its jobs are at the end of its step, gives them back and ends.
    HandingOver,
    /// It is paid for no longer.
    Gone,
}

/// A job in the engine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    pub(super) job: u32,
    pub(super) key: BatchKey,
    pub(super) images: u32,
    /// Steps that are left.
    pub(super) left: u32,
    /// Steps since it was last written down.
    pub(super) unsaved: u32,
    /// Engine time since then, its share of every step.
    pub(super) unsaved_us: f64,
    /// Of this, what belongs to the turn under way.
    pub(super) turn_us: f64,
    /// Whether it is in the step under way.
    pub(super) steps_now: bool,
    /// The turn in which it last stepped.
    pub(super) stepped: u64,
}

/// A worker.
#[derive(Clone, Debug)]
pub(super) struct Worker {
    pub(super) capacity: Capacity,
    pub(super) phase: Phase,
    pub(super) asked_us: u64,
    pub(super) ready_us: u64,
    /// When it is paid for no longer.
    pub(super) ended_us: u64,
    /// Since when it has nothing to do.
    pub(super) idle_since_us: Option<u64>,
    pub(super) members: Vec<Member>,
    pub(super) turn_began_us: u64,
    pub(super) turn_ends_us: u64,
    pub(super) turns: u64,
    /// It was told to end by whoever scales in, not because its machine is taken away.
    pub(super) is_scaled_in: bool,
}

impl Worker {
    pub(super) fn new(capacity: Capacity, now_us: u64, ready_us: u64) -> Self {
        Self {
            capacity,
            phase: Phase::Starting,
            asked_us: now_us,
            ready_us,
            ended_us: u64::MAX,
            idle_since_us: None,
            members: Vec::new(),
            turn_began_us: 0,
            turn_ends_us: 0,
            turns: 0,
            is_scaled_in: false,
        }
    }

    /// Images in the engine.
    pub(super) fn images(&self) -> u32 {
        self.members.iter().map(|member| member.images).sum()
    }

    /// Counts the step that is over.
    pub(super) fn end_step(&mut self) {
        for member in self.members.iter_mut().filter(|member| member.steps_now) {
            member.steps_now = false;
            member.left -= 1;
            member.unsaved += 1;
        }
        for member in &mut self.members {
            member.turn_us = 0.0;
        }
    }

    /// The size whose turn it is: of those in the engine, the one that has waited longest.
    pub(super) fn next_key(&self) -> Option<BatchKey> {
        self.members
            .iter()
            .filter(|member| member.left > 0)
            .min_by_key(|member| member.stepped)
            .map(|member| member.key)
    }

    /// Rows of this size step together; answers how many images that are.
    pub(super) fn begin_step(&mut self, key: BatchKey) -> u32 {
        self.turns += 1;
        let mut images = 0;
        for member in self.members.iter_mut().filter(|member| member.key == key && member.left > 0) {
            member.steps_now = true;
            member.stepped = self.turns;
            images += member.images;
        }
        images
    }

    /// Books a step on its rows.
    pub(super) fn book_step(&mut self, step_us: u64, images: u32) {
        for member in self.members.iter_mut().filter(|member| member.steps_now) {
            let share_us = step_us as f64 * f64::from(member.images) / f64::from(images.max(1));
            member.unsaved_us += share_us;
            member.turn_us += share_us;
        }
    }

    /// Engine time that is lost when it is gone at `now_us`.
    pub(super) fn lost_us(&self, now_us: u64) -> f64 {
        let length_us = self.turn_ends_us.saturating_sub(self.turn_began_us);
        let to_come = self.turn_ends_us.saturating_sub(now_us) as f64 / (length_us.max(1) as f64);
        self.members.iter().map(|member| member.unsaved_us - member.turn_us * to_come.min(1.0)).sum()
    }
}
