//! One image at a time, in the order of arrival: what a server with a lock around its pipeline does.

use std::collections::VecDeque;

use super::super::workload::Job;
use super::requests::Batcher;

#[derive(Debug, Default)]
pub(super) struct One(VecDeque<u32>);

impl Batcher for One {
    fn arrive(&mut self, job: u32, _: &Job) {
        self.0.push_back(job);
    }

    fn take(&mut self, _: u64, into: &mut Vec<u32>) {
        into.extend(self.0.pop_front());
    }

    fn due_us(&self) -> Option<u64> {
        None
    }

    fn is_serial(&self) -> bool {
        true
    }
}
