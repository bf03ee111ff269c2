//! What the oracle knows of one worker from the outside, and what that may do in this position.

use std::collections::BTreeMap;
use std::time::Duration;

use darkroom::job::{FaultClass, FaultCode, OnLate};
use darkroom::sched::{
    Action, Config, Effect, EngineReport, EngineWork, Mono, Policy, RowKey, Ticket, Transition, Verdict,
};

use crate::clients::Body;

/// How late a worker may be in the modelled world.
const LATE: Duration = Duration::from_millis(20);
/// An admission, a step and a decode of the modelled engine together take no longer.
const TURN_MAX: Duration = Duration::from_millis(1000);

#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) body: Body,
    /// The delivery, or the last request for an extension.
    pub(crate) extended: Mono,
    /// The delivery, or the last extension in time that was answered.
    pub(crate) confirmed: Mono,
    pub(crate) action: Option<Action>,
    /// It takes up room: about to be claimed, or claimed and not yet ending.
    pub(crate) waiting: bool,
    /// Nothing was done for it yet.
    pub(crate) ahead: bool,
    pub(crate) decoded: u32,
    pub(crate) stored: bool,
    pub(crate) blamed: bool,
    pub(crate) settled: bool,
    /// It was delivered once more while it was given back.
    pub(crate) came_again: bool,
    /// A picture of it was decoded before its last step.
    pub(crate) partial: bool,
    /// Somebody wants it stopped.
    pub(crate) stopping: bool,
}

#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) ticket: Ticket,
    pub(crate) steps: Option<u32>,
    pub(crate) made: u32,
    pub(crate) decoded: bool,
    /// When it could step for the first time, or stepped last.
    pub(crate) moved: Mono,
}

/// What is known of one worker from the outside.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) config: Config,
    pub(crate) held: BTreeMap<Ticket, Held>,
    pub(crate) rows: BTreeMap<RowKey, Row>,
    pub(crate) engine: Option<EngineWork>,
    pub(crate) engine_broken: bool,
    pub(crate) engine_hangs: bool,
    pub(crate) empty_since: Mono,
    /// The engine does something else though rows could step.
    stalled_since: Option<Mono>,
    pub(crate) drain_wanted: bool,
    pub(crate) stopping_since: Option<Mono>,
    pub(crate) trouble_until: Mono,
}

impl Held {
    pub(crate) fn new(body: Body, now: Mono) -> Self {
        Self {
            ahead: body.offer.is_some(),
            waiting: false,
            body,
            extended: now,
            confirmed: now,
            action: None,
            decoded: 0,
            stored: false,
            blamed: false,
            settled: false,
            came_again: false,
            partial: false,
            stopping: false,
        }
    }

    fn ends_by(&self) -> Option<Mono> {
        let deadline = self.body.offer.as_ref()?.deadline?;
        (deadline.on_late == OnLate::Fail).then_some(deadline.at)
    }

    pub(crate) fn images(&self) -> u32 {
        self.body.offer.as_ref().map_or(0, |offer| offer.images)
    }
}

fn rows_of(work: &EngineWork) -> Vec<RowKey> {
    match work {
        EngineWork::Admit { row, .. } | EngineWork::Decode { row, .. } | EngineWork::Release { row } => vec![*row],
        EngineWork::Step { rows, .. } | EngineWork::Save { rows, .. } => rows.clone(),
    }
}

fn need(holds: bool, what: &'static str) -> Result<(), &'static str> {
    if holds { Ok(()) } else { Err(what) }
}

impl Watch {
    pub(crate) fn new(config: Config, now: Mono) -> Self {
        Self {
            config,
            held: BTreeMap::new(),
            rows: BTreeMap::new(),
            engine: None,
            engine_broken: false,
            engine_hangs: false,
            empty_since: now,
            stalled_since: None,
            drain_wanted: false,
            stopping_since: None,
            trouble_until: Mono::ZERO,
        }
    }

    pub(crate) fn engine_did(&mut self, now: Mono, work: &EngineWork, report: &EngineReport) {
        match (work, report) {
            (EngineWork::Admit { row, .. }, EngineReport::Admitted { steps, made }) => {
                if let Some(row) = self.rows.get_mut(row) {
                    (row.steps, row.made) = (Some(*steps), *made);
                    row.moved = now;
                }
            }
            (EngineWork::Step { rows, .. }, EngineReport::Stepped) => {
                for row in rows {
                    if let Some(row) = self.rows.get_mut(row) {
                        row.made += 1;
                        row.moved = now;
                    }
                }
            }
            (EngineWork::Decode { ticket, .. }, EngineReport::Decoded) => {
                if let Some(held) = self.held.get_mut(ticket) {
                    held.decoded += 1;
                }
            }
            (_, _) => {}
        }
    }

    /// Whatever it is at will not be answered.
    pub(crate) fn hangs(&mut self) {
        self.engine_hangs = true;
        if let Some(work) = self.engine.clone() {
            self.blame(&work);
        }
    }

    fn blame(&mut self, work: &EngineWork) {
        for row in rows_of(work) {
            if let Some(held) = self.rows.get(&row).and_then(|row| self.held.get_mut(&row.ticket)) {
                held.blamed = true;
            }
        }
    }

    pub(crate) fn engine_failed(&mut self, work: &EngineWork, class: FaultClass) {
        // A batch that fails says nothing of its members, unless it took the engine down; what is not saved is not lost.
        let harmless = matches!(work, EngineWork::Save { .. }) || rows_of(work).len() > 1;
        if !harmless || class == FaultClass::Fatal {
            self.blame(work);
        }
        self.engine_broken |= class == FaultClass::Fatal;
    }

    pub(crate) fn effect(&mut self, now: Mono, effect: &Effect) -> Result<(), &'static str> {
        match effect {
            Effect::Pull { lane, max, preference } => {
                need(*preference <= 9, "the server refuses such a pull")?;
                need(self.stopping_since.is_none(), "pulls after it stopped")?;
                need(*lane < self.config.lanes.len() && *max > 0, "there is no such pull")
            }
            Effect::StopPulling => {
                let idle = self.config.exit_when_idle.is_some_and(|idle| now.since(self.empty_since) >= idle);
                let reason =
                    self.drain_wanted || self.engine_broken || self.engine_hangs || self.held.is_empty() && idle;
                need(self.stopping_since.is_none() && reason, "for no reason")?;
                self.stopping_since = Some(now);
                Ok(())
            }
            Effect::Act { ticket, action } => self.act(now, *ticket, action),
            Effect::Extend { ticket } => {
                let held = self.held.get_mut(ticket).ok_or("it is not held")?;
                held.extended = now;
                Ok(())
            }
            Effect::Engine(work) => self.engine_asked(now, work),
            Effect::Started { ticket } => need(self.held.contains_key(ticket), "it is not held"),
            Effect::Progress { ticket, step, steps, .. } => {
                need(self.held.contains_key(ticket) && step <= steps, "more steps than there are")
            }
            Effect::Forget { ticket } => {
                need(self.rows.values().all(|row| row.ticket != *ticket), "rows are left in the engine")?;
                let held = self.held.remove(ticket).ok_or("it is not held")?;
                if self.held.is_empty() {
                    self.empty_since = now;
                }
                need(held.action.is_none(), "an action is out")
            }
        }
    }

    fn act(&mut self, now: Mono, ticket: Ticket, action: &Action) -> Result<(), &'static str> {
        let rows_left = self.rows.values().any(|row| row.ticket == ticket);
        let held = self.held.get_mut(&ticket).ok_or("it is not held")?;
        need(held.action.is_none(), "another action is out")?;
        need(!held.settled, "it is settled")?;
        need(!rows_left || *action == Action::Checkpoint, "it has rows in the engine")?;
        match action {
            Action::Store => need(held.decoded == held.images() || held.stopping, "images are missing")?,
            Action::Record(Transition::Cancel) => need(held.stopping && held.stored, "nobody wants it stopped")?,
            Action::Record(Transition::Complete) => {
                need(held.stored && !held.partial, "not all of it is made and stored")?
            }
            Action::Record(Transition::Fail(fault)) if fault.code == FaultCode::DeadlineExceeded => {
                need(held.ends_by().is_some(), "it has no deadline to miss")?;
            }
            Action::Record(Transition::Fail(_) | Transition::Retry(_)) => need(held.blamed, "it did nothing wrong")?,
            Action::Settle(Verdict::Nak(delay)) => {
                need(!delay.is_zero(), "at once")?;
                need(now.since(held.confirmed) < self.config.ack_wait, "its lease may be over")?;
            }
            Action::Claim
            | Action::Checkpoint
            | Action::Record(Transition::GiveBack | Transition::Refuse)
            | Action::Publish
            | Action::DeadLetter
            | Action::Settle(Verdict::Ack | Verdict::Term) => {}
        }
        held.ahead = false;
        held.waiting = *action == Action::Claim || held.waiting && *action == Action::Checkpoint;
        held.action = Some(action.clone());
        Ok(())
    }

    fn engine_asked(&mut self, now: Mono, work: &EngineWork) -> Result<(), &'static str> {
        if let EngineWork::Release { row } = work {
            return need(self.rows.remove(row).is_some(), "there is no such row");
        }
        need(self.engine.is_none() && !self.engine_broken, "the engine cannot be asked")?;
        self.engine = Some(work.clone());
        let goes_on = |row: &Row| self.held.get(&row.ticket).is_some_and(|held| !held.stopping && !held.blamed);
        let could_step = self.rows.values().any(|row| row.steps.is_some_and(|steps| row.made < steps) && goes_on(row));
        if let EngineWork::Step { .. } = work {
            self.stalled_since = None;
        } else if could_step && !matches!(work, EngineWork::Save { .. }) {
            let since = *self.stalled_since.get_or_insert(now);
            // Between two steps, and after what is done at last.
            let since = since.max(self.trouble_until);
            need(now.since(since) <= self.config.stall_max + LATE, "rows that could step are held up")?;
        } else {
            self.stalled_since = None;
        }
        match work {
            EngineWork::Admit { row, ticket, .. } => {
                need(self.held.contains_key(ticket), "it is not held")?;
                self.rows.insert(*row, Row { ticket: *ticket, steps: None, made: 0, decoded: false, moved: now });
                let most = self.config.images_in_batch_max + self.config.images_parked_max;
                need(self.rows.len() <= most as usize, "too many rows")
            }
            EngineWork::Step { rows, .. } => {
                need(!rows.is_empty(), "no rows")?;
                need(rows.len() <= self.config.images_in_batch_max as usize, "too many rows in a step")?;
                self.nobody_starves(now, rows)?;
                let mut keys = Vec::new();
                for key in rows {
                    let row = self.rows.get(key).ok_or("there is no such row")?;
                    need(row.steps.is_some_and(|steps| row.made < steps), "a row has no step left")?;
                    let held = self.held.get(&row.ticket).ok_or("it is not held")?;
                    need(held.ends_by().is_none_or(|ends_by| now < ends_by), "it has missed its deadline")?;
                    keys.extend(held.body.offer.as_ref().map(|offer| offer.key));
                }
                keys.dedup();
                need(keys.len() == 1, "rows of several keys")
            }
            EngineWork::Save { ticket, rows } => {
                let of_job = |key: &RowKey| self.rows.get(key).is_some_and(|row| row.ticket == *ticket && row.made > 0);
                need(!rows.is_empty() && rows.iter().all(of_job), "there is nothing to save")
            }
            EngineWork::Decode { row, ticket, .. } => {
                let row = self.rows.get_mut(row).ok_or("there is no such row")?;
                let held = self.held.get_mut(ticket).ok_or("it is not held")?;
                let stopping = held.stopping;
                held.partial |= row.steps != Some(row.made);
                need(row.steps == Some(row.made) || stopping && row.made > 0, "not its steps")?;
                need(!row.decoded, "it is decoded")?;
                row.decoded = true;
                Ok(())
            }
            EngineWork::Release { .. } => Ok(()),
        }
    }

    /// Rows that could step and do not, again.
    fn nobody_starves(&self, now: Mono, stepping: &[RowKey]) -> Result<(), &'static str> {
        if self.config.policy == Policy::Fixed {
            return Ok(());
        }
        let could = |row: &Row| row.steps.is_some_and(|steps| row.made < steps);
        let passed_over = self.rows.iter().filter(|(key, row)| could(row) && !stepping.contains(key));
        // All rows may be due at once, one after the other, with admissions and decodes between.
        let limit = self.config.passed_over_max + TURN_MAX * u32::try_from(self.rows.len() + 1).unwrap_or(1);
        let starved = passed_over.map(|(_, row)| now.since(row.moved.max(self.trouble_until))).any(|wait| wait > limit);
        need(!starved, "a row is passed over for too long")
    }
}
