//! What others make of a held job: it is cancelled, stopped with what is there, or taken over.
//!
//! The record decides; this only follows it.

use std::collections::VecDeque;

use super::super::message::{Action, RecordChange, RowKey, Ticket, Transition, Verdict};
use super::Scheduler;
use super::held::{Phase, RowStage};

impl Scheduler {
    pub(super) fn record_changed(&mut self, ticket: Ticket, change: RecordChange) {
        match change {
            RecordChange::Cancelled => self.overtaken(ticket, cancelled()),
            RecordChange::Taken => self.overtaken(ticket, VecDeque::new()),
            RecordChange::Stopping => self.stop(ticket),
        }
    }

    /// The job has ended by somebody else's hand, who may have been lost before he told of it.
    pub(super) fn ended_elsewhere(&mut self, ticket: Ticket) {
        self.release_rows(ticket);
        self.begin(ticket, cancelled());
    }

    /// Nothing is made of the job any more; `todo` is what is left. Where an action is out that says the same when it ends,
    /// that is waited for.
    fn overtaken(&mut self, ticket: Ticket, todo: VecDeque<Action>) {
        match self.held.get(ticket).map(|held| &held.phase) {
            Some(Phase::Active | Phase::Trying { action: Action::Store, .. }) => {
                self.release_rows(ticket);
                self.begin_after_save(ticket, todo);
            }
            Some(Phase::Acting(Action::Store | Action::Checkpoint)) => {
                self.held.change(ticket, |held| held.todo = todo);
            }
            Some(Phase::Ahead | Phase::Acting(_) | Phase::Trying { .. }) | None => {}
        }
    }

    /// Its rows are decoded as far as they are; nothing is begun any more. What only has to be decoded completes.
    pub(super) fn stop(&mut self, ticket: Ticket) {
        let rows_left = self.rows.values().any(|row| row.ticket == ticket && row.stage != RowStage::Finished);
        let stops = self.held.change(ticket, |held| {
            let images_left = held.images_admitted < held.offer.images;
            let stops = held.phase == Phase::Active && !held.stopping && (images_left || rows_left);
            held.stopping |= stops;
            stops
        });
        if stops != Some(true) {
            return;
        }
        let mut empty: Vec<RowKey> = Vec::new();
        for (key, row) in self.rows.iter_mut().filter(|(_, row)| row.ticket == ticket) {
            match row.stage {
                RowStage::Stepping if row.step > 0 => row.stage = RowStage::Finished,
                RowStage::Admitting | RowStage::Stepping => empty.push(*key),
                RowStage::Finished => {}
            }
        }
        for row in empty {
            self.release(row);
        }
        self.end_stopped(ticket);
    }

    /// When the last row of a job that stops is decoded.
    pub(super) fn end_stopped(&mut self, ticket: Ticket) {
        let stops = self.held.get(ticket).is_some_and(|held| held.stopping && held.phase == Phase::Active);
        if stops && self.rows.values().all(|row| row.ticket != ticket) {
            self.end(ticket, Transition::Cancel);
        }
    }
}

fn cancelled() -> VecDeque<Action> {
    VecDeque::from([Action::Publish, Action::Settle(Verdict::Ack)])
}
