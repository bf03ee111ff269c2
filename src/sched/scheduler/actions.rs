//! What becomes of one held job: the actions that the shell takes for it, one after the other, and what follows from their
//! answers. When a job begins and what the engine does for it, is decided elsewhere.

use std::collections::VecDeque;
use std::time::Duration;

use crate::job::{Fault, FaultClass, FaultCode, Priority};

use super::super::batch::BatchKey;
use super::super::fair::TenantKey;
use super::super::lease::Lease;
use super::super::message::{Acted, Action, Claim, Effect, EngineWork, Offer, RowKey, Ticket, Transition, Verdict};
use super::super::retry;
use super::held::{Held, Phase, Saving};
use super::{Mode, Scheduler};

/// The actions that end a job, in their order.
fn ending(transition: Transition, nak: Duration) -> VecDeque<Action> {
    let record = Action::Record(transition.clone());
    VecDeque::from(match transition {
        Transition::Complete | Transition::Cancel => {
            vec![Action::Store, record, Action::Publish, Action::Settle(Verdict::Ack)]
        }
        Transition::Fail(_) | Transition::Refuse => {
            vec![record, Action::Publish, Action::DeadLetter, Action::Settle(Verdict::Term)]
        }
        Transition::Retry(_) | Transition::GiveBack => vec![record, Action::Settle(Verdict::Nak(nak))],
    })
}

/// Nothing is decided of it yet, or nothing can be stored.
fn can_be_given_back(held: &Held) -> bool {
    match &held.phase {
        Phase::Ahead | Phase::Active => true,
        Phase::Trying { action, .. } => *action == Action::Store,
        Phase::Acting(_) => false,
    }
}

impl Scheduler {
    pub(super) fn delivered(&mut self, ticket: Ticket, lane: usize, offer: Option<Offer>, deliveries: u64) {
        if self.held.contains(ticket) {
            // Delivered again while we have it: the server lost track, but the lease is new.
            let lease = Lease::new(self.now, self.config.ack_wait);
            self.held.change(ticket, |held| {
                held.lease = lease;
                held.came_again |= matches!(held.phase, Phase::Acting(Action::Settle(Verdict::Nak(_))));
            });
            return;
        }
        let malformed = offer.is_none();
        let key = BatchKey { width: 0, height: 0 };
        let tenant = TenantKey::default();
        let nothing = Offer { images: 0, key, previews: None, steps: 0, whole_every: 1, tenant, deadline: None };
        let offer = offer.unwrap_or(nothing);
        self.orders += 1;
        self.shares.came(offer.tenant);
        let held = Held {
            steps_of_image: offer.steps,
            offer,
            lane,
            priority: self.config.lanes.get(lane).map_or(Priority::Normal, |lane| lane.priority),
            order: self.orders,
            came_at: self.now,
            lease: Lease::new(self.now, self.config.ack_wait),
            phase: Phase::Ahead,
            todo: VecDeque::new(),
            tries: 0,
            failures: 0,
            runs_alone: false,
            is_suspect: false,
            images_admitted: 0,
            images_decoded: 0,
            steps_made: 0,
            started_at: None,
            progress_at: None,
            stopping: false,
            leaving: false,
            saving: Saving::No,
            saved_at: self.now,
            came_again: false,
            unstored_since: None,
        };
        self.held.insert(ticket, held);
        match self.mode {
            Mode::Draining { .. } => self.give_back_unclaimed(ticket, retry::GIVE_BACK),
            Mode::Running if malformed => self.begin(ticket, ending(Transition::Refuse, Duration::ZERO)),
            Mode::Running if deliveries <= 1 && self.is_meant_for_others(ticket) => {
                self.give_back_unclaimed(ticket, retry::MISDELIVERED);
            }
            Mode::Running => {}
        }
    }

    pub(super) fn acted(&mut self, ticket: Ticket, outcome: Acted) {
        let Some(held) = self.held.get(ticket) else { return };
        let action = match &held.phase {
            Phase::Acting(action) => action.clone(),
            Phase::Active if held.saving == Saving::Storing => return self.checkpointed(ticket, &outcome),
            Phase::Ahead | Phase::Active | Phase::Trying { .. } => return,
        };
        if action == Action::Store {
            self.store.answered(ticket, outcome == Acted::Done, self.now);
        }
        match outcome {
            Acted::Claimed(claim) => {
                self.succeeded(ticket);
                self.claimed(ticket, claim);
            }
            Acted::Done if held.came_again => {
                // It was given back, and is here again already: forgotten now, nobody would have it until its lease ends.
                self.succeeded(ticket);
                self.act(ticket, action);
            }
            Acted::Done => {
                self.succeeded(ticket);
                self.advance(ticket);
            }
            Acted::Lost if action == Action::Record(Transition::Refuse) => {
                // The malformed request names a job that is not its own: that job's events stay its own.
                self.begin(ticket, VecDeque::from([Action::DeadLetter, Action::Settle(Verdict::Term)]));
            }
            Acted::Lost => self.forget(ticket),
            Acted::Ended => self.ended_elsewhere(ticket),
            Acted::Failed(fault) => self.action_failed(ticket, action, fault),
        }
    }

    fn succeeded(&mut self, ticket: Ticket) {
        if let Some(held) = self.held.noting(ticket) {
            held.tries = 0;
        }
    }

    /// A checkpoint is worth less than the job: if it fails, the next one may not.
    fn checkpointed(&mut self, ticket: Ticket, outcome: &Acted) {
        if let Some(held) = self.held.noting(ticket) {
            held.saving = Saving::No;
        }
        match outcome {
            Acted::Done | Acted::Failed(_) | Acted::Claimed(_) => {}
            Acted::Lost => self.forget(ticket),
            Acted::Ended => self.ended_elsewhere(ticket),
        }
    }

    fn claimed(&mut self, ticket: Ticket, claim: Claim) {
        let ack = Action::Settle(Verdict::Ack);
        match claim {
            Claim::Won { failures, deaths, stopping } => {
                let now = self.now;
                let is_suspect = deaths + 1 >= self.config.deaths_max;
                let beside_another = is_suspect && self.held.has_suspect();
                self.held.change(ticket, |held| {
                    held.saved_at = now;
                    held.failures = failures;
                    held.runs_alone = failures > 0 || is_suspect;
                    held.is_suspect = is_suspect && !beside_another;
                    held.phase = Phase::Active;
                });
                if deaths >= self.config.deaths_max {
                    let message = format!("{deaths} workers died or stood still with this job");
                    return self.end(ticket, Transition::Fail(Fault::reject(FaultCode::WorkersLost, message)));
                }
                if stopping {
                    self.stop(ticket);
                } else if beside_another || matches!(self.mode, Mode::Draining { .. }) {
                    self.end(ticket, Transition::GiveBack);
                }
            }
            Claim::Unprepared { failures, fault } => {
                self.held.change(ticket, |held| held.failures = failures);
                self.fail(ticket, fault);
            }
            Claim::Ended { dead_letter: false } => self.begin(ticket, VecDeque::from([Action::Publish, ack])),
            Claim::Ended { dead_letter: true } => {
                self.begin(ticket, VecDeque::from([Action::Publish, Action::DeadLetter, ack]));
            }
            Claim::Duplicate => self.begin(ticket, VecDeque::from([ack])),
            Claim::Conflict => {
                self.begin(ticket, VecDeque::from([Action::DeadLetter, Action::Settle(Verdict::Term)]));
            }
            Claim::HeldElsewhere => {
                let delay = retry::held_elsewhere(self.config.ack_wait);
                self.begin(ticket, VecDeque::from([Action::Settle(Verdict::Nak(delay))]));
            }
        }
    }

    fn action_failed(&mut self, ticket: Ticket, action: Action, fault: Fault) {
        let now = self.now;
        let is_store = action == Action::Store;
        let tried = self.held.change(ticket, |held| {
            held.tries += 1;
            let unstored_since = if is_store { *held.unstored_since.get_or_insert(now) } else { now };
            (held.tries, held.lease.is_presumed_lost(now), unstored_since)
        });
        let Some((tries, lease_lost, unstored_since)) = tried else { return };
        match (&action, fault.class) {
            (Action::Checkpoint, _) => return self.advance(ticket),
            // Where nothing can be stored at all, the pictures are kept until it can: another attempt would fare no better.
            (Action::Store, FaultClass::Retry)
                if tries < retry::STORE_TRIES_MAX
                    || !self.store.worked_since(unstored_since)
                        && now.since(unstored_since) < retry::STORE_PATIENCE => {}
            (Action::Store, _) => return self.fail(ticket, fault),
            // The record cannot be read, by nobody: what cannot be claimed must not wait silently.
            (Action::Claim, FaultClass::Reject) => {
                return self.begin(ticket, VecDeque::from([Action::DeadLetter, Action::Settle(Verdict::Term)]));
            }
            // A server that forgot the delivery when it was killed never answers. All is recorded: whoever gets the message
            // again finds that out and settles it.
            (Action::Settle(_), _) if tries >= retry::SETTLE_TRIES_MAX => return self.forget(ticket),
            // Nothing is decided yet and the message goes to somebody else by itself.
            (Action::Claim, _) if lease_lost => return self.forget(ticket),
            (
                Action::Claim | Action::Record(_) | Action::Publish | Action::DeadLetter | Action::Settle(_),
                FaultClass::Reject | FaultClass::Retry | FaultClass::Fatal,
            ) => {}
        }
        let at = now.after(retry::failed_action(tries));
        self.held.change(ticket, |held| held.phase = Phase::Trying { action, at });
    }

    /// A fault of one job: it fails for good, or goes back with one failure more.
    pub(super) fn fail(&mut self, ticket: Ticket, fault: Fault) {
        let Some(held) = self.held.get(ticket) else { return };
        let last = held.failures + 1 >= self.config.failures_max;
        match fault.class {
            FaultClass::Reject => self.end(ticket, Transition::Fail(fault)),
            FaultClass::Retry | FaultClass::Fatal if last => self.end(ticket, Transition::Fail(fault)),
            FaultClass::Retry | FaultClass::Fatal => self.end(ticket, Transition::Retry(fault)),
        }
    }

    pub(super) fn end(&mut self, ticket: Ticket, transition: Transition) {
        let Some(held) = self.held.get(ticket) else { return };
        let nak = match transition {
            Transition::Retry(_) => retry::failed_job(held.failures + 1),
            Transition::Complete
            | Transition::Cancel
            | Transition::Fail(_)
            | Transition::GiveBack
            | Transition::Refuse => retry::GIVE_BACK,
        };
        self.release_rows(ticket);
        self.begin_after_save(ticket, ending(transition, nak));
    }

    /// A checkpoint that is on its way changes the record: what follows waits for its answer.
    pub(super) fn begin_after_save(&mut self, ticket: Ticket, todo: VecDeque<Action>) {
        let storing = self.held.change(ticket, |held| {
            let storing = held.phase == Phase::Active && held.saving == Saving::Storing;
            held.saving = Saving::No;
            if storing {
                held.todo.clone_from(&todo);
                held.phase = Phase::Acting(Action::Checkpoint);
            }
            storing
        });
        if storing == Some(false) {
            self.begin(ticket, todo);
        }
    }

    pub(super) fn begin(&mut self, ticket: Ticket, todo: VecDeque<Action>) {
        if let Some(held) = self.held.noting(ticket) {
            held.todo = todo;
            self.advance(ticket);
        }
    }

    fn advance(&mut self, ticket: Ticket) {
        match self.held.noting(ticket).map(|held| held.todo.pop_front()) {
            Some(Some(action)) => self.act(ticket, action),
            Some(None) => self.forget(ticket),
            None => {}
        }
    }

    pub(super) fn act(&mut self, ticket: Ticket, action: Action) {
        let Some(held) = self.held.get(ticket) else { return };
        if matches!(action, Action::Settle(Verdict::Nak(_))) && held.lease.is_presumed_lost(self.now) {
            // A message that may be somebody else's by now must not be given back: that would deliver it once more.
            return self.forget(ticket);
        }
        self.held.change(ticket, |held| {
            held.phase = Phase::Acting(action.clone());
            // Of the newest delivery.
            held.came_again = false;
        });
        self.effects.push_back(Effect::Act { ticket, action });
    }

    fn forget(&mut self, ticket: Ticket) {
        self.release_rows(ticket);
        self.store.gone(ticket);
        if let Some(held) = self.held.remove(ticket) {
            self.shares.went(held.offer.tenant);
            self.effects.push_back(Effect::Forget { ticket });
        }
        if self.held.is_empty() {
            self.idle_since = self.now;
        }
    }

    pub(super) fn release_rows(&mut self, ticket: Ticket) {
        let rows: Vec<RowKey> = self.rows.iter().filter(|(_, row)| row.ticket == ticket).map(|(key, _)| *key).collect();
        for row in rows {
            self.release(row);
        }
    }

    pub(super) fn release(&mut self, row: RowKey) {
        if self.rows.remove(&row).is_some() {
            self.effects.push_back(Effect::Engine(EngineWork::Release { row }));
        }
    }

    pub(super) fn give_back(&mut self, chosen: impl Fn(&Held) -> bool) {
        let tickets: Vec<Ticket> = self
            .held
            .iter()
            .filter(|(_, held)| can_be_given_back(held) && chosen(held))
            .map(|(ticket, _)| ticket)
            .collect();
        for ticket in tickets {
            match self.held.get(ticket).map(|held| &held.phase) {
                Some(Phase::Ahead) => self.give_back_unclaimed(ticket, retry::GIVE_BACK),
                Some(Phase::Active | Phase::Acting(_) | Phase::Trying { .. }) => self.end(ticket, Transition::GiveBack),
                None => {}
            }
        }
    }

    /// Nothing is written down of what nobody claimed, so nothing needs to be.
    pub(super) fn give_back_unclaimed(&mut self, ticket: Ticket, delay: Duration) {
        self.begin(ticket, VecDeque::from([Action::Settle(Verdict::Nak(delay))]));
    }
}
