//! As Triton's dynamic batcher: requests whose tensors agree, which here means size and number of steps, share a batch.
//!
//! `preferred_batch_size: [4]`, `max_queue_delay_microseconds: 100000`. Real queues only join neighbours; this one
//! finds what fits anywhere in the queue. There are no priorities.

use crate::sched::BatchKey;

use super::super::workload::Job;
use super::requests::{Batcher, Queues};

const IMAGES_PREFERRED: u32 = 4;
const QUEUE_DELAY_US: u64 = 100_000;

#[derive(Debug)]
pub(super) struct Triton(Queues<(BatchKey, u32)>);

impl Triton {
    pub(super) fn new() -> Self {
        Self(Queues::new(IMAGES_PREFERRED, QUEUE_DELAY_US))
    }
}

impl Batcher for Triton {
    fn arrive(&mut self, job: u32, of: &Job) {
        self.0.arrive((of.key, of.steps), job, of);
    }

    fn take(&mut self, now_us: u64, into: &mut Vec<u32>) {
        self.0.take(now_us, into);
    }

    fn due_us(&self) -> Option<u64> {
        self.0.due_us()
    }
}
