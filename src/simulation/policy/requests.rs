//! Servers that batch whole requests: who is in a batch stays to its end, and all end together.

use super::super::events::Events;
use super::super::ledger::{Ledger, Member};
use super::super::workload::Job;
use super::super::{Fleet, SimulationError, micros};

/// Says which requests run together.
pub(super) trait Batcher {
    /// A job has come.
    fn arrive(&mut self, job: u32, of: &Job);
    /// Takes the jobs that a free worker is to run now.
    fn take(&mut self, now_us: u64, into: &mut Vec<u32>);
    /// When [`Self::take`] may give more although nothing has come.
    fn due_us(&self) -> Option<u64>;
    /// Whether the images of a batch go through the engine one after the other.
    fn is_serial(&self) -> bool {
        false
    }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Free { worker: u32 },
    Due,
}

pub(super) fn run<'a>(
    fleet: &Fleet,
    mut batcher: impl Batcher,
    mut ledger: Ledger<'a>,
) -> Result<Ledger<'a>, SimulationError> {
    let mut events = Events::new();
    let mut idle: Vec<u32> = (0..fleet.workers).rev().collect();
    let store_us = micros(fleet.latency_ms.store);
    let mut due_us = None;
    let mut batch = Vec::new();
    let mut arrivals = (0_u32..).zip(&ledger.trace.jobs).peekable();
    loop {
        let next_at = events.next_at();
        let now_us;
        if let Some((job, arrival)) = arrivals.next_if(|(_, job)| next_at.is_none_or(|at| job.arrived_us <= at)) {
            now_us = arrival.arrived_us;
            batcher.arrive(job, arrival);
        } else if let Some((at, event)) = events.pop() {
            now_us = at;
            match event {
                Event::Free { worker } => idle.push(worker),
                Event::Due => due_us = None,
            }
        } else {
            return Ok(ledger);
        }
        while let Some(worker) = idle.pop() {
            batch.clear();
            batcher.take(now_us, &mut batch);
            if batch.is_empty() {
                idle.push(worker);
                break;
            }
            let free_us = work(now_us, &batch, batcher.is_serial(), store_us, &mut ledger)?;
            events.at(free_us, Event::Free { worker });
        }
        let wanted = batcher.due_us().filter(|_| !idle.is_empty());
        if let Some(due) = wanted
            && due_us.is_none_or(|set| due < set)
        {
            due_us = Some(due);
            events.at(due.max(now_us), Event::Due);
        }
    }
}

/// Runs a batch from beginning to end; answers when the worker is free.
fn work(
    begin_us: u64,
    batch: &[u32],
    is_serial: bool,
    store_us: u64,
    ledger: &mut Ledger<'_>,
) -> Result<u64, SimulationError> {
    let mut now_us = begin_us;
    let member = |ledger: &Ledger<'_>, job: u32| {
        let Job { images, steps, .. } = *ledger.job(job);
        Member { job, images, steps }
    };
    if is_serial {
        for job in batch {
            let Member { images, steps, .. } = member(ledger, *job);
            for _ in 0..images {
                now_us += ledger.encode(now_us, *job, 1);
                now_us += ledger.step(now_us, &[Member { job: *job, images: 1, steps }], steps);
                now_us += ledger.decode(now_us, *job, 1);
            }
        }
    } else {
        let members: Vec<Member> = batch.iter().map(|job| member(ledger, *job)).collect();
        for Member { job, images, .. } in &members {
            now_us += ledger.encode(now_us, *job, *images);
        }
        let steps = members.iter().map(|member| member.steps).max().unwrap_or(0);
        now_us += ledger.step(now_us, &members, steps);
        for Member { job, images, .. } in &members {
            now_us += ledger.decode(now_us, *job, *images);
        }
    }
    for job in batch {
        ledger.finish(now_us + store_us, *job)?;
    }
    Ok(now_us)
}

/// Queues of jobs that may share a batch: a batch is ready when it is full or its first job has waited long enough.
#[derive(Debug)]
pub(super) struct Queues<K> {
    images_max: u32,
    wait_max_us: u64,
    queues: Vec<Queue<K>>,
}

#[derive(Debug)]
struct Queue<K> {
    key: K,
    images: u32,
    /// Job, images, arrival.
    jobs: std::collections::VecDeque<(u32, u32, u64)>,
}

impl<K: PartialEq> Queues<K> {
    pub(super) fn new(images_max: u32, wait_max_us: u64) -> Self {
        Self { images_max, wait_max_us, queues: Vec::new() }
    }

    pub(super) fn arrive(&mut self, key: K, job: u32, of: &Job) {
        let place = self.queues.iter().position(|queue| queue.key == key).unwrap_or_else(|| {
            self.queues.push(Queue { key, images: 0, jobs: std::collections::VecDeque::new() });
            self.queues.len() - 1
        });
        let queue = &mut self.queues[place];
        queue.images += of.images;
        queue.jobs.push_back((job, of.images, of.arrived_us));
    }

    /// The ready batch whose first job has waited longest.
    pub(super) fn take(&mut self, now_us: u64, into: &mut Vec<u32>) {
        let ready = |queue: &&mut Queue<K>| {
            queue.images >= self.images_max || queue.first_us().is_some_and(|at| at + self.wait_max_us <= now_us)
        };
        let Some(queue) = self.queues.iter_mut().filter(ready).min_by_key(|queue| queue.first_us()) else { return };
        let mut images = 0;
        while let Some((job, more, _)) = queue.jobs.front().copied() {
            if images > 0 && images + more > self.images_max {
                break;
            }
            images += more;
            into.push(job);
            queue.jobs.pop_front();
        }
        queue.images -= images;
    }

    pub(super) fn due_us(&self) -> Option<u64> {
        self.queues.iter().filter_map(Queue::first_us).min().map(|at| at + self.wait_max_us)
    }
}

impl<K> Queue<K> {
    fn first_us(&self) -> Option<u64> {
        self.jobs.front().map(|(_, _, arrived_us)| *arrived_us)
    }
}
