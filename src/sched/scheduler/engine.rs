//! What the engine is asked, one question at a time, and what follows from its answers.
//!
//! Which jobs are claimed for it is decided in `intake`, which rows step together in `batch`.

use std::time::Duration;

use crate::job::{Fault, FaultClass, FaultCode, Priority};

use super::super::batch::{Backlog, Candidate, Group, next_step};
use super::super::message::{Effect, EngineReport, EngineWork, RowKey, Ticket, Transition};
use super::held::{Held, Phase, Row, RowStage, Saving};
use super::{Exit, Policy, Scheduler};

/// Progress of one job is published at most this often, previews and the last step apart.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

impl Scheduler {
    pub(super) fn engine_answered(&mut self, outcome: Result<EngineReport, Fault>) {
        let Some((work, since)) = self.engine.take() else { return };
        let took = self.now.since(since);
        match work {
            EngineWork::Step { .. } => self.stalled = Duration::ZERO,
            EngineWork::Admit { .. }
            | EngineWork::Save { .. }
            | EngineWork::Decode { .. }
            | EngineWork::Release { .. } => self.stalled += took,
        }
        match (work, outcome) {
            (work, Err(fault)) => self.engine_failed(work, fault),
            (EngineWork::Admit { row, .. }, Ok(EngineReport::Admitted { steps, made })) => {
                if let Some(row) = self.rows.get_mut(&row) {
                    row.stage = if made >= steps { RowStage::Finished } else { RowStage::Stepping };
                    (row.steps, row.step, row.saved) = (steps, made, made);
                    if let Some(held) = self.held.noting(row.ticket) {
                        held.steps_of_image = steps;
                        held.steps_made += made;
                    }
                }
            }
            (EngineWork::Step { rows, previews }, Ok(EngineReport::Stepped)) => {
                self.observe_step(&rows, took);
                for row in rows {
                    self.stepped(row, previews.contains(&row));
                }
            }
            (EngineWork::Save { ticket, rows }, Ok(EngineReport::Saved)) => self.saved(ticket, &rows),
            (EngineWork::Decode { row, ticket, .. }, Ok(EngineReport::Decoded)) => {
                if let Some(row) = self.rows.get(&row) {
                    self.costs.observed_decode(row.group.key, took);
                }
                self.release(row);
                let is_done = self.held.change(ticket, |held| {
                    held.images_decoded += 1;
                    held.images_decoded == held.offer.images && held.phase == Phase::Active && !held.stopping
                });
                if is_done == Some(true) {
                    self.end(ticket, Transition::Complete);
                } else {
                    self.end_stopped(ticket);
                }
            }
            (
                EngineWork::Admit { .. }
                | EngineWork::Step { .. }
                | EngineWork::Save { .. }
                | EngineWork::Decode { .. }
                | EngineWork::Release { .. },
                Ok(_),
            ) => debug_assert!(false, "the engine answered another question"),
        }
    }

    fn observe_step(&mut self, rows: &[RowKey], took: Duration) {
        let images = u32::try_from(rows.len()).unwrap_or(u32::MAX);
        if let Some(key) = rows.first().and_then(|row| self.rows.get(row)).map(|row| row.group.key) {
            let is_whole = |row: &RowKey| {
                let held = self.rows.get(row).and_then(|row| self.held.get(row.ticket));
                held.is_none_or(|held| held.offer.whole_every <= 1)
            };
            // One that is not whole says nothing of the others.
            if rows.iter().all(is_whole) {
                self.costs.observed_step(key, images, took);
                if images >= self.images_useful(key) && images < self.images_at_hand(rows).min(self.limit(key)) {
                    self.costs.kept_small(key, images);
                }
            }
            self.fits.stepped(key, images);
            self.forget_useful(key);
        }
        let each_ms = took.as_secs_f64() * 1e3 / f64::from(images.max(1));
        for row in rows {
            if let Some(held) = self.rows.get(row).and_then(|row| self.held.get(row.ticket)) {
                self.shares.charge(held.offer.tenant, each_ms);
            }
        }
    }

    /// How many images could have been in this step: all that are in the engine, and those behind them.
    fn images_at_hand(&self, rows: &[RowKey]) -> u32 {
        let group = rows.first().and_then(|row| self.rows.get(row)).map(|row| row.group);
        match self.backlog() {
            Backlog::Waiting => u32::MAX,
            Backlog::None => {
                let mates =
                    self.rows.values().filter(|row| Some(row.group) == group && row.stage == RowStage::Stepping);
                u32::try_from(mates.count()).unwrap_or(u32::MAX)
            }
        }
    }

    fn stepped(&mut self, key: RowKey, preview: bool) {
        let Some(row) = self.rows.get_mut(&key) else { return };
        row.step += 1;
        row.moved_at = self.now;
        if row.step == row.steps {
            row.stage = RowStage::Finished;
        }
        let last = row.step == row.steps;
        let ticket = row.ticket;
        let now = self.now;
        let progress = self.held.noting(ticket).and_then(|held| {
            held.steps_made += 1;
            let steps = held.steps_of_image * held.offer.images;
            let started = *held.started_at.get_or_insert(now);
            let due = held.progress_at.is_none_or(|before| now.since(before) >= PROGRESS_EVERY);
            (due || preview || last).then(|| {
                held.progress_at = Some(now);
                let pace = now.since(started) / held.steps_made.max(1);
                let remaining = pace * steps.saturating_sub(held.steps_made);
                let preview = preview.then_some(key);
                Effect::Progress { ticket, step: held.steps_made, steps, remaining, preview }
            })
        });
        self.effects.extend(progress);
    }

    pub(super) fn engine_failed(&mut self, work: EngineWork, fault: Fault) {
        let rows = match &work {
            EngineWork::Admit { row, .. } | EngineWork::Decode { row, .. } | EngineWork::Release { row } => vec![*row],
            EngineWork::Step { rows, .. } | EngineWork::Save { rows, .. } => rows.clone(),
        };
        let mut tickets: Vec<Ticket> = rows.iter().filter_map(|row| self.rows.get(row)).map(|row| row.ticket).collect();
        tickets.sort_unstable();
        tickets.dedup();
        match fault.class {
            FaultClass::Reject | FaultClass::Retry if matches!(work, EngineWork::Save { .. }) => {
                // The job goes on; its next save may do better.
                for ticket in tickets {
                    let now = self.now;
                    self.held.change(ticket, |held| (held.saving, held.saved_at) = (Saving::No, now));
                }
                for key in rows {
                    if let Some(row) = self.rows.get_mut(&key) {
                        row.saved = row.step;
                    }
                }
            }
            FaultClass::Fatal => {
                // Whoever was in the step is suspected; bystanders are not. A batch says nothing of its members, so none
                // of them fails for good by it, but each counts a failure and is alone the next time.
                let suspicion = Fault { class: FaultClass::Retry, ..fault.clone() };
                match tickets[..] {
                    [suspect] => self.fail(suspect, suspicion),
                    _ => tickets.iter().for_each(|suspect| self.end(*suspect, Transition::Retry(suspicion.clone()))),
                }
                self.drain(Exit::Fatal(fault));
            }
            FaultClass::Reject | FaultClass::Retry if rows.len() > 1 && fault.code == FaultCode::OutOfMemory => {
                // No row has moved: they go on in smaller batches.
                if let Some(row) = rows.first().and_then(|row| self.rows.get(row)) {
                    self.fits.failed(row.group.key, u32::try_from(rows.len()).unwrap_or(u32::MAX));
                }
            }
            FaultClass::Reject | FaultClass::Retry if rows.len() > 1 => {
                // No row has moved: each goes on by itself, and only the one that fails alone has failed.
                for key in rows {
                    if let Some(row) = self.rows.get_mut(&key) {
                        row.group.alone = Some(key);
                    }
                }
            }
            FaultClass::Reject | FaultClass::Retry => {
                for ticket in tickets {
                    self.fail(ticket, fault.clone());
                }
            }
        }
    }

    /// Gives the engine its next work: finish what is finished, then fill the batch, then step. While rows could step,
    /// the first two may only take so long.
    pub(super) fn feed_engine(&mut self) {
        if self.engine.is_some() {
            return;
        }
        if let Some(work) = self.next_save() {
            return self.ask_engine(work);
        }
        let may_wait =
            self.stalled < self.config.stall_max || self.rows.values().all(|row| row.stage != RowStage::Stepping);
        let beside = if may_wait { self.next_decode().or_else(|| self.next_admission()) } else { None };
        let work = beside.or_else(|| self.next_step());
        if let Some(work) = work {
            self.ask_engine(work);
        }
    }

    fn ask_engine(&mut self, work: EngineWork) {
        self.engine = Some((work.clone(), self.now));
        self.engine_is_suspected = false;
        self.effects.push_back(Effect::Engine(work));
    }

    fn next_decode(&mut self) -> Option<EngineWork> {
        let leaves = |row: &Row| self.held.get(row.ticket).is_some_and(|held| held.leaving);
        let (key, row) = self.rows.iter().find(|(_, row)| row.stage == RowStage::Finished && !leaves(row))?;
        let (row, ticket, image) = (*key, row.ticket, row.image);
        self.begins(ticket);
        Some(EngineWork::Decode { row, ticket, image })
    }

    fn begins(&mut self, ticket: Ticket) {
        if let Some(held) = self.held.noting(ticket)
            && held.started_at.is_none()
        {
            held.started_at = Some(self.now);
            self.effects.push_back(Effect::Started { ticket });
        }
    }

    fn next_admission(&mut self) -> Option<EngineWork> {
        let in_engine = u32::try_from(self.rows.len()).unwrap_or(u32::MAX);
        let in_batch_max = self.config.images_in_batch_max.max(1);
        if self.rows.is_empty() {
            self.is_closed = false;
        }
        let ticket = match self.config.policy {
            Policy::Fixed if self.is_closed || in_engine >= in_batch_max => return None,
            Policy::Adaptive if in_engine >= in_batch_max + self.config.images_parked_max => return None,
            Policy::Adaptive if in_engine >= in_batch_max => {
                // A step's worth is there: only for what goes before some of it, what fills batches of its own size, or
                // what was passed over for too long.
                let in_rows = self.rows.values().filter_map(|row| self.held.get(row.ticket));
                let last = in_rows.map(|held| self.turn(held)).max()?;
                let fills = |held: &Held| {
                    let of_key = self.rows.values().filter(|row| row.group.key == held.offer.key).count();
                    in_engine < self.rows_max(self.level(held)) && of_key < self.images_useful(held.offer.key) as usize
                };
                let behind = self.backlog() == Backlog::Waiting;
                self.most_urgent(|held| self.turn(held) < last || behind && fills(held))
                    .or_else(|| self.passed_over())?
            }
            Policy::Fixed | Policy::Adaptive => self.most_urgent(|_| true)?,
        };
        let (image, key, runs_alone) = self.held.change(ticket, |held| {
            held.images_admitted += 1;
            (held.images_admitted - 1, held.offer.key, held.runs_alone)
        })?;
        self.row_keys += 1;
        let row = RowKey(self.row_keys);
        // What has failed before may take a batch down with it.
        let group = Group { key, alone: runs_alone.then_some(row) };
        let (stage, moved_at) = (RowStage::Admitting, self.now);
        self.rows.insert(row, Row { ticket, image, group, stage, step: 0, steps: 0, saved: 0, moved_at });
        Some(EngineWork::Admit { row, ticket, image })
    }

    /// Whether it may have rows. A suspect waits until what was claimed beside it is given back: that would die with it, and
    /// be given up for it in the end.
    fn may_begin(&self, held: &Held) -> bool {
        !held.is_suspect || !self.held.iter().any(|(_, other)| other.changes_hands())
    }

    /// The most urgent of those jobs that wait for a row.
    fn most_urgent(&self, of: impl Fn(&Held) -> bool) -> Option<Ticket> {
        let waiting = self.held.waiting().filter(|(_, held)| self.may_begin(held) && of(held));
        waiting.min_by_key(|(_, held)| self.rank(held)).map(|(ticket, _)| ticket)
    }

    /// The first job that waits for too long while nothing of its priority is in the engine.
    fn passed_over(&self) -> Option<Ticket> {
        let in_rows = |priority: Priority| {
            let mut jobs = self.rows.values().filter_map(|row| self.held.get(row.ticket));
            jobs.any(|held| held.priority == priority)
        };
        let waits =
            |held: &Held| self.now.since(held.came_at) >= self.config.passed_over_max && !in_rows(held.priority);
        let passed_over = self.held.waiting().filter(|(_, held)| self.may_begin(held) && waits(held));
        passed_over.min_by_key(|(_, held)| held.order).map(|(ticket, _)| ticket)
    }

    fn next_step(&mut self) -> Option<EngineWork> {
        let candidates =
            self.rows.iter().filter(|(_, row)| row.stage == RowStage::Stepping).filter_map(|(key, row)| {
                let mut rank = self.rank(self.held.get(row.ticket).filter(|held| held.may_step())?);
                if self.now.since(row.moved_at) >= self.config.passed_over_max {
                    rank.level = 0;
                    rank.class = 0;
                    rank.turn = i64::MIN;
                }
                Some(Candidate { row: *key, group: row.group, rank })
            });
        let (_, rows) = next_step(candidates.collect(), &self.costs, |key| self.limit(key), self.backlog())?;
        self.is_closed = true;
        let wants_preview = |key: &RowKey| {
            let row = &self.rows[key];
            let every = self.held.get(row.ticket).and_then(|held| held.offer.previews);
            row.image == 0 && every.is_some_and(|every| (row.step + 1).is_multiple_of(every))
        };
        let previews = rows.iter().copied().filter(|key| wants_preview(key)).collect();
        for key in &rows {
            self.begins(self.rows[key].ticket);
        }
        Some(EngineWork::Step { rows, previews })
    }
}
