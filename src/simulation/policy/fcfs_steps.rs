//! As the engines that batch by steps: images of one size join and leave between steps, strictly in the order of
//! arrival.
//!
//! Whoever is first in the queue and has another size, or more images than there is room for, holds up all behind it
//! until a worker has room or nothing left. There are no priorities.

use std::collections::VecDeque;

use super::super::events::Events;
use super::super::ledger::{Ledger, Member};
use super::super::{Fleet, SimulationError, micros};

#[derive(Clone, Debug, Default)]
struct Worker {
    /// Jobs in the batch; `steps` is what is left.
    batch: Vec<Member>,
}

pub(super) fn run<'a>(fleet: &Fleet, mut ledger: Ledger<'a>) -> Result<Ledger<'a>, SimulationError> {
    let store_us = micros(fleet.latency_ms.store);
    let mut workers = vec![Worker::default(); fleet.workers as usize];
    let mut idle: Vec<u32> = (0..fleet.workers).rev().collect();
    let mut events = Events::new();
    let mut queue = VecDeque::new();
    let mut arrivals = (0_u32..).zip(&ledger.trace.jobs).peekable();
    loop {
        let next_at = events.next_at();
        let (now_us, worker) =
            if let Some((job, arrival)) = arrivals.next_if(|(_, job)| next_at.is_none_or(|at| job.arrived_us <= at)) {
                queue.push_back(job);
                let Some(worker) = idle.pop() else { continue };
                (arrival.arrived_us, worker)
            } else if let Some(next) = events.pop() {
                next
            } else {
                return Ok(ledger);
            };
        let batch = &mut workers[worker as usize].batch;
        let free_us = turn(now_us, batch, &mut queue, fleet.images_in_batch_max, store_us, &mut ledger)?;
        if free_us > now_us {
            events.at(free_us, worker);
        } else {
            idle.push(worker);
        }
    }
}

/// Decodes what is finished, lets in who fits, and makes one step; answers when that is over.
fn turn(
    begin_us: u64,
    batch: &mut Vec<Member>,
    queue: &mut VecDeque<u32>,
    images_max: u32,
    store_us: u64,
    ledger: &mut Ledger<'_>,
) -> Result<u64, SimulationError> {
    let mut now_us = begin_us;
    for member in batch.iter().filter(|member| member.steps == 0) {
        now_us += ledger.decode(now_us, member.job, member.images);
        ledger.finish(now_us + store_us, member.job)?;
    }
    batch.retain(|member| member.steps > 0);
    while let Some(job) = queue.front().copied() {
        let first = ledger.job(job);
        let images: u32 = batch.iter().map(|member| member.images).sum();
        let fits = batch
            .first()
            .is_none_or(|member| ledger.job(member.job).key == first.key && images + first.images <= images_max);
        if !fits {
            break;
        }
        queue.pop_front();
        now_us += ledger.encode(now_us, job, first.images);
        batch.push(Member { job, images: first.images, steps: first.steps });
    }
    now_us += ledger.step(now_us, batch, 1);
    batch.iter_mut().for_each(|member| member.steps -= 1);
    Ok(now_us)
}
