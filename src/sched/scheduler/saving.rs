//! When the rows of running jobs are saved, so that another worker can go on from there.
//!
//! A save is two things: the engine writes down the rows between two of its works, and [`Action::Checkpoint`] brings that to
//! the store while the rows go on. What a checkpoint holds, and what a worker makes of one, is the shell's and the engine's
//! business.

use std::cmp::Reverse;

use super::super::message::{Action, Effect, EngineWork, RowKey, Ticket, Transition};
use super::Scheduler;
use super::held::{Held, Phase, Row, RowStage, Saving};

impl Row {
    /// Steps that would be lost with this worker.
    fn steps_unsaved(&self) -> u32 {
        match self.stage {
            RowStage::Admitting => 0,
            RowStage::Stepping | RowStage::Finished => self.step - self.saved,
        }
    }
}

impl Scheduler {
    /// The job whose rows are written down next: one that is to leave, or whose time has come.
    pub(super) fn next_save(&mut self) -> Option<EngineWork> {
        let due = self.rows.values().filter(|row| row.steps_unsaved() > 0).filter_map(|row| {
            let held = self.held.get(row.ticket)?;
            let is_due = held.saving == Saving::No && held.phase == Phase::Active && !held.stopping;
            let steps_are_up = self.config.checkpoint_steps.is_some_and(|steps| row.steps_unsaved() >= steps.max(1));
            let time_is_up = self.now.since(held.saved_at) >= self.config.checkpoint_every;
            (is_due && (held.leaving || steps_are_up || time_is_up)).then_some((held, row.ticket))
        });
        let (_, ticket) = due.min_by_key(|(held, ticket)| (Reverse(held.leaving), held.saved_at, *ticket))?;
        let unsaved = self.rows.iter().filter(|(_, row)| row.ticket == ticket && row.steps_unsaved() > 0);
        let rows: Vec<RowKey> = unsaved.map(|(key, _)| *key).collect();
        self.held.noting(ticket)?.saving = Saving::InEngine;
        Some(EngineWork::Save { ticket, rows })
    }

    /// The engine has written down rows, unless their job has ended meanwhile.
    pub(super) fn saved(&mut self, ticket: Ticket, rows: &[RowKey]) {
        for row in rows {
            if let Some(row) = self.rows.get_mut(row) {
                row.saved = row.step;
            }
        }
        let now = self.now;
        let goes_on = |held: &&mut Held| held.phase == Phase::Active && held.saving == Saving::InEngine;
        if let Some(held) = self.held.noting(ticket).filter(goes_on) {
            held.saving = Saving::Storing;
            held.saved_at = now;
            self.effects.push_back(Effect::Act { ticket, action: Action::Checkpoint });
        }
    }

    /// Before the end of the grace period: no more steps; what was made is saved, then all is given back.
    pub(super) fn leave(&mut self) {
        let active: Vec<Ticket> =
            self.held.iter().filter(|(_, held)| held.phase == Phase::Active).map(|(ticket, _)| ticket).collect();
        for ticket in active {
            let saving = self.held.change(ticket, |held| {
                held.leaving = true;
                held.saving
            });
            let unsaved = self.rows.values().any(|row| row.ticket == ticket && row.steps_unsaved() > 0);
            if saving == Some(Saving::No) && !unsaved {
                self.end(ticket, Transition::GiveBack);
            }
        }
    }
}
