//! What the scheduler knows of one job that it holds, and of its rows.

use std::collections::VecDeque;
use std::time::Duration;

use crate::job::{OnLate, Priority};

use super::super::batch::Group;
use super::super::lease::Lease;
use super::super::message::{Action, Offer, Ticket, Transition};
use super::super::time::Mono;

/// What was held ahead for so long while nothing waited in the stream goes back to whoever is idle.
pub(super) const AHEAD_MAX: Duration = Duration::from_secs(1);

/// What a job is at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Delivered, and nothing more: nobody knows yet whether it is ours, and it can still be given back unseen.
    Ahead,
    /// An action is out.
    Acting(Action),
    /// An action failed and is tried again.
    Trying { action: Action, at: Mono },
    /// Claimed: waiting for rows or in the batch.
    Active,
}

/// A job between its delivery and its settlement.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) offer: Offer,
    pub(super) lane: usize,
    pub(super) priority: Priority,
    pub(super) order: u64,
    pub(super) came_at: Mono,
    pub(super) lease: Lease,
    pub(super) phase: Phase,
    pub(super) todo: VecDeque<Action>,
    pub(super) tries: u32,
    pub(super) failures: u32,
    /// It has failed before, or may take workers down: nobody shall share a step with it.
    pub(super) runs_alone: bool,
    /// One more worker that dies with it, and it is given up; at most one of those is held.
    pub(super) is_suspect: bool,
    pub(super) images_admitted: u32,
    pub(super) images_decoded: u32,
    pub(super) steps_made: u32,
    /// As the engine said; as asked for before.
    pub(super) steps_of_image: u32,
    pub(super) started_at: Option<Mono>,
    pub(super) progress_at: Option<Mono>,
    /// Somebody wants it stopped: no step is made any more.
    pub(super) stopping: bool,
    /// It is given back when it is saved: no step is made any more.
    pub(super) leaving: bool,
    pub(super) saving: Saving,
    /// When its rows were written down last, or it began.
    pub(super) saved_at: Mono,
    /// It was delivered once more before the server said that it took it back.
    pub(super) came_again: bool,
    /// When its upload failed for the first time.
    pub(super) unstored_since: Option<Mono>,
}

/// How far the saving of a job's rows is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Saving {
    /// Nothing is under way.
    No,
    /// The engine writes them down.
    InEngine,
    /// [`Action::Checkpoint`] is out while the job goes on.
    Storing,
}

impl Held {
    /// The class that jobs of its priority begin in: the smaller, the more urgent.
    pub(super) fn class(&self) -> u8 {
        class(self.priority)
    }

    pub(super) fn waits_for_rows(&self) -> bool {
        self.may_step() && self.images_admitted < self.offer.images
    }

    /// Whether its rows go on.
    pub(super) fn may_step(&self) -> bool {
        self.phase == Phase::Active && !self.stopping && !self.leaving
    }

    /// Whether its images are still to be made, as far as one knows.
    pub(super) fn is_open(&self) -> bool {
        match &self.phase {
            Phase::Ahead | Phase::Active => true,
            Phase::Acting(action) | Phase::Trying { action, .. } => *action == Action::Claim,
        }
    }

    /// Whether it is being claimed or given back: its record may still name this worker, with which it would be taken for dead.
    pub(super) fn changes_hands(&self) -> bool {
        match &self.phase {
            Phase::Acting(action) | Phase::Trying { action, .. } => {
                matches!(action, Action::Claim | Action::Record(Transition::GiveBack))
            }
            Phase::Ahead | Phase::Active => false,
        }
    }

    /// When it needs something next, after `now`: its lease, an action that is tried again, or somebody to look at it.
    pub(super) fn due_at(&self, now: Mono) -> Mono {
        let own = match &self.phase {
            Phase::Trying { at, .. } => Some(*at),
            Phase::Ahead => Some(self.came_at.after(AHEAD_MAX)),
            Phase::Acting(_) | Phase::Active => None,
        };
        let late = self.ends_by().filter(|_| self.is_open());
        let due = [own, late].into_iter().flatten().filter(|at| *at > now);
        due.chain([self.lease.extend_at()]).min().unwrap_or(now)
    }

    /// Denoising steps that are still to be made, over all images.
    pub(super) fn steps_left(&self) -> u32 {
        (self.steps_of_image * self.offer.images).saturating_sub(self.steps_made)
    }

    /// When it must end, if missing that ends it.
    pub(super) fn ends_by(&self) -> Option<Mono> {
        self.offer.deadline.filter(|deadline| deadline.on_late == OnLate::Fail).map(|deadline| deadline.at)
    }
}

/// See [`Held::class`].
pub(super) fn class(priority: Priority) -> u8 {
    match priority {
        Priority::High => 0,
        Priority::Normal => 1,
        Priority::Low => 2,
    }
}

/// How many classes there are.
pub(super) const CLASSES: usize = 3;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RowStage {
    Admitting,
    Stepping,
    Finished,
}

/// An image in the engine.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) ticket: Ticket,
    pub(super) image: u32,
    pub(super) group: Group,
    pub(super) stage: RowStage,
    pub(super) step: u32,
    pub(super) steps: u32,
    /// Steps that were made when it was written down last.
    pub(super) saved: u32,
    /// When it was admitted, or stepped last.
    pub(super) moved_at: Mono,
}
