//! Models of what a worker works with: the engine with its costs and faults, and the object store.

use std::collections::BTreeMap;
use std::time::Duration;

use darkroom::job::{Fault, FaultCode};
use darkroom::sched::{EngineReport, EngineWork, RowKey, Ticket};

use crate::broker::Broker;
use crate::clients::{Body, Poison};
use crate::knobs::Rates;
use crate::random::Random;

/// The engine of one worker.
#[derive(Debug, Default)]
pub(crate) struct Engine {
    rows: BTreeMap<RowKey, Image>,
}

#[derive(Debug)]
struct Image {
    ticket: Ticket,
    image: u32,
    made: u32,
}

impl Engine {
    /// How long the work takes and how it ends; `None` when there is no answer.
    pub(crate) fn ask(
        &mut self,
        work: &EngineWork,
        begun: u32,
        broker: &Broker,
        images_fit: u32,
        rates: &Rates,
        random: &mut Random,
    ) -> Option<(Duration, Result<EngineReport, Fault>)> {
        let body = |ticket: Ticket| &broker.message(ticket.0).body;
        let (cost, report) = match work {
            EngineWork::Admit { row, ticket, image } => {
                self.rows.insert(*row, Image { ticket: *ticket, image: *image, made: begun });
                (random.millis(5, 60), EngineReport::Admitted { steps: body(*ticket).steps, made: begun })
            }
            EngineWork::Step { rows, previews } => {
                let most = 10 + 40 * rows.len() as u64 + 20 * previews.len() as u64;
                (random.millis(10, most), EngineReport::Stepped)
            }
            EngineWork::Save { .. } => (random.millis(1, 5), EngineReport::Saved),
            EngineWork::Decode { .. } => (random.millis(10, 150), EngineReport::Decoded),
            EngineWork::Release { row } => {
                self.rows.remove(row);
                return None;
            }
        };
        let rows: &[RowKey] = match work {
            EngineWork::Step { rows, .. } => rows,
            EngineWork::Decode { row, .. } => &[*row],
            EngineWork::Admit { .. } | EngineWork::Save { .. } | EngineWork::Release { .. } => &[],
        };
        if rows.len() > images_fit as usize {
            return Some((cost, Err(Fault::retry(FaultCode::OutOfMemory, "too many images"))));
        }
        let poison = rows.iter().filter_map(|row| self.rows.get(row)).find_map(|Image { ticket, made, .. }| {
            let Body { poison, poison_at, .. } = body(*ticket);
            (poison_at <= made).then_some(*poison).filter(|poison| *poison != Poison::None)
        });
        if let Some(fault) = fault(poison, rates, random) {
            return Some((cost, Err(fault)));
        }
        if let EngineWork::Step { rows, .. } = work {
            for row in rows {
                if let Some(image) = self.rows.get_mut(row) {
                    image.made += 1;
                }
            }
        }
        Some((cost, Ok(report)))
    }
}

impl Engine {
    /// Whose rows they are.
    pub(crate) fn tickets(&self, rows: &[RowKey]) -> Vec<Ticket> {
        rows.iter().filter_map(|row| self.rows.get(row)).map(|image| image.ticket).collect()
    }

    /// Steps made, by image.
    pub(crate) fn made(&self, rows: &[RowKey]) -> Vec<(u32, u32)> {
        rows.iter().filter_map(|row| self.rows.get(row)).map(|image| (image.image, image.made)).collect()
    }
}

fn fault(poison: Option<Poison>, rates: &Rates, random: &mut Random) -> Option<Fault> {
    if poison == Some(Poison::Fatal) || random.chance(rates.engine_fatal) {
        return Some(Fault::fatal(FaultCode::EngineLost, "fatal"));
    }
    if poison == Some(Poison::Reject) || random.chance(rates.engine_reject) {
        return Some(Fault::reject(FaultCode::NotFinite, "rejected"));
    }
    if poison == Some(Poison::Retry) || random.chance(rates.engine_retry) {
        return Some(Fault::retry(FaultCode::EngineFailed, "try again"));
    }
    None
}

/// The object store: whose images lie under the keys of a job.
#[derive(Debug, Default)]
pub(crate) struct Store {
    stored: BTreeMap<u32, (u64, u32)>,
}

impl Store {
    pub(crate) fn put(&mut self, body: &Body, images: u32) {
        self.stored.insert(body.job, (body.digest, images));
    }

    /// Whether all images of this request are there.
    pub(crate) fn has(&self, body: &Body) -> bool {
        let images = body.offer.as_ref().map_or(0, |offer| offer.images);
        self.stored.get(&body.job) == Some(&(body.digest, images))
    }
}

/// Why an upload fails, if it does.
pub(crate) fn store_fault(rates: &Rates, random: &mut Random) -> Option<Fault> {
    if random.chance(rates.store_reject) {
        return Some(Fault::reject(FaultCode::StoreFailed, "refused"));
    }
    random.chance(rates.store_retry).then(|| Fault::retry(FaultCode::StoreFailed, "no answer"))
}
