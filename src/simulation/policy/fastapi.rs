//! As a batch collector in a FastAPI service or a Redis worker: wait a little, take what is there, one call of the
//! pipeline.
//!
//! A pipeline has one `num_inference_steps`, so all members run as many steps as the longest wants, and all answers
//! come at its end. Four images, half a second, one size. There are no priorities.

use crate::sched::BatchKey;

use super::super::workload::Job;
use super::requests::{Batcher, Queues};

const IMAGES_MAX: u32 = 4;
const WAIT_MAX_US: u64 = 500_000;

#[derive(Debug)]
pub(super) struct Fastapi(Queues<BatchKey>);

impl Fastapi {
    pub(super) fn new() -> Self {
        Self(Queues::new(IMAGES_MAX, WAIT_MAX_US))
    }
}

impl Batcher for Fastapi {
    fn arrive(&mut self, job: u32, of: &Job) {
        self.0.arrive(of.key, job, of);
    }

    fn take(&mut self, now_us: u64, into: &mut Vec<u32>) {
        self.0.take(now_us, into);
    }

    fn due_us(&self) -> Option<u64> {
        self.0.due_us()
    }
}
