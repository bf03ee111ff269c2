//! Trouble that is nobody's job: an engine that stands still, a store that takes nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::job::{Fault, FaultCode};

use super::super::message::{EngineWork, RowKey, Ticket};
use super::super::time::Mono;
use super::Scheduler;

/// How much longer than it usually takes an engine is waited for.
const PATIENCE: f64 = 20.0;
/// So many times longer it is waited for while nobody knows what it usually takes.
const UNMEASURED: u32 = 10;
/// A process that hears of the time later than this has stood still, or its machine has.
const LATE_MAX: Duration = Duration::from_millis(500);

/// After so long of one job's failed uploads, another job is begun.
const ANOTHER_AFTER: Duration = Duration::from_secs(10);

/// Whether anything can be stored. While nothing can, nothing is begun: it would only pile up.
#[derive(Clone, Debug, Default)]
pub(super) struct StoreHealth {
    /// Jobs whose upload has failed and is tried again.
    unstored: BTreeSet<Ticket>,
    failed_at: Mono,
    worked_at: Option<Mono>,
    failed_last: bool,
}

impl StoreHealth {
    /// An upload is over.
    pub(super) fn answered(&mut self, ticket: Ticket, is_stored: bool, now: Mono) {
        if !is_stored && !self.failed_last {
            self.failed_at = now;
        }
        self.failed_last = !is_stored;
        if is_stored {
            self.worked_at = Some(now);
            self.unstored.remove(&ticket);
        } else {
            self.unstored.insert(ticket);
        }
    }

    /// The job is gone.
    pub(super) fn gone(&mut self, ticket: Ticket) {
        self.unstored.remove(&ticket);
    }

    /// Whether the last upload failed, and one is left to show when it works again. One job alone may be at fault itself, so
    /// another is tried after a while.
    pub(super) fn is_down(&self, now: Mono) -> bool {
        let just_failed = now.since(self.failed_at) < ANOTHER_AFTER;
        self.failed_last && (self.unstored.len() > 1 || just_failed && !self.unstored.is_empty())
    }

    /// When [`Self::is_down`] may change by itself.
    pub(super) fn wakes_at(&self) -> Option<Mono> {
        (self.failed_last && self.unstored.len() == 1).then(|| self.failed_at.after(ANOTHER_AFTER))
    }

    /// Whether something was stored after that, so that what fails is not the store's fault.
    pub(super) fn worked_since(&self, since: Mono) -> bool {
        self.worked_at.is_some_and(|at| at > since)
    }
}

impl Scheduler {
    /// Whether nothing is taken in because nothing can be stored.
    pub fn is_store_down(&self) -> bool {
        self.store.is_down(self.now)
    }

    /// When the engine is not waited for any longer.
    pub(super) fn engine_stalls_at(&self) -> Option<Mono> {
        let (work, since) = self.engine.as_ref()?;
        let key_of = |row: &RowKey| self.rows.get(row).map(|row| row.group.key);
        let usual_ms = match work {
            EngineWork::Step { rows, .. } => {
                rows.first().and_then(key_of).filter(|key| self.costs.is_known(*key)).map(|key| {
                    let images = u32::try_from(rows.len()).unwrap_or(u32::MAX);
                    self.costs.step_ms(key, images)
                })
            }
            EngineWork::Decode { row, .. } => {
                key_of(row).filter(|key| self.costs.is_known(*key)).map(|key| self.costs.decode_ms(key))
            }
            EngineWork::Save { .. } => Some(0.0),
            EngineWork::Admit { .. } | EngineWork::Release { .. } => None,
        };
        let limit = match usual_ms {
            Some(usual_ms) => self.config.engine_stall_max.max(Duration::from_secs_f64(PATIENCE * usual_ms / 1e3)),
            None => self.config.engine_stall_max * UNMEASURED,
        };
        Some(since.after(limit))
    }

    /// Who stood still himself cannot tell for how long the engine did: its answer may be waiting.
    pub(super) fn stood_still(&mut self, now: Mono) {
        let was_late = self.wake_by.is_some_and(|wake_by| now.since(wake_by) > LATE_MAX);
        if let Some((_, since)) = &mut self.engine
            && was_late
        {
            *since = now;
        }
    }

    /// An engine that stands still keeps its jobs from all others: they are given back and this process ends. What has come
    /// while this process stood still is heard first.
    pub(super) fn watch_engine(&mut self) {
        let Some(stalls_at) = self.engine_stalls_at().filter(|at| *at <= self.now) else { return };
        let Some((work, since)) = self.engine.take() else { return };
        if !self.engine_is_suspected {
            self.engine_is_suspected = true;
            self.engine = Some((work, since.after(self.now.since(stalls_at)).after(LATE_MAX)));
            return;
        }
        let message = format!("the engine has not answered for {} s", self.now.since(since).as_secs());
        self.engine_failed(work, Fault::fatal(FaultCode::EngineLost, message));
    }
}
