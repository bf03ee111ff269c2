//! The request stream as Darkroom's workers see it: one queue for each lane, first in, first out, and open pulls.
//!
//! As in `tests/sim`, without everything that goes wrong there: no lease that ends, no lost pull.

use std::collections::VecDeque;

/// A message on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Delivery {
    pub(super) worker: u32,
    pub(super) job: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Pull {
    id: u64,
    left: u32,
    preference: u8,
}

/// Pulls have one of so many places.
const PREFERENCES: usize = 10;

#[derive(Debug, Default)]
struct Lane {
    ready: VecDeque<u32>,
    /// What was given back: it goes first.
    again: VecDeque<u32>,
    /// By preference: workers and ids of their pulls; those that are over are skipped.
    waiting: [VecDeque<(u32, u64)>; PREFERENCES],
    /// By worker.
    open: Vec<Pull>,
}

/// The stream and its consumers.
#[derive(Debug)]
pub(super) struct Broker {
    lanes: Vec<Lane>,
    pulls_made: u64,
}

impl Broker {
    pub(super) fn new(lanes: usize, workers: u32) -> Self {
        let lane = || Lane { open: vec![Pull::default(); workers as usize], ..Lane::default() };
        Self { lanes: (0..lanes).map(|_| lane()).collect(), pulls_made: 0 }
    }

    pub(super) fn publish(&mut self, lane: usize, job: u32) -> Option<Delivery> {
        let lane = self.lanes.get_mut(lane)?;
        lane.ready.push_back(job);
        lane.dispatch()
    }

    /// A message that was given back may be delivered again.
    pub(super) fn again(&mut self, lane: usize, job: u32) -> Option<Delivery> {
        let lane = self.lanes.get_mut(lane)?;
        lane.again.push_back(job);
        lane.dispatch()
    }

    /// Opens a pull and answers its id; whether there are messages says [`Self::dispatch`].
    pub(super) fn pull(&mut self, worker: u32, lane: usize, max: u32, preference: u8) -> u64 {
        self.pulls_made += 1;
        if let Some(lane) = self.lanes.get_mut(lane) {
            lane.open[worker as usize] = Pull { id: self.pulls_made, left: max, preference };
            lane.waiting[usize::from(preference)].push_back((worker, self.pulls_made));
        }
        self.pulls_made
    }

    /// The next delivery of a lane, if one is due.
    pub(super) fn dispatch(&mut self, lane: usize) -> Option<Delivery> {
        self.lanes.get_mut(lane)?.dispatch()
    }

    /// Messages that wait on a lane and were never delivered, which is what a delivery says of the rest.
    pub(super) fn waiting(&self, lane: usize) -> u64 {
        self.lanes.get(lane).map_or(0, |lane| lane.ready.len() as u64)
    }

    /// Whether the pull is still open, which it is no longer.
    pub(super) fn expire(&mut self, worker: u32, lane: usize, id: u64) -> bool {
        let Some(lane) = self.lanes.get_mut(lane) else { return false };
        let open = &mut lane.open[worker as usize];
        let expires = open.id == id && open.left > 0;
        if expires {
            open.left = 0;
        }
        lane.forget_closed();
        expires
    }
}

impl Lane {
    fn is_open(&self, (worker, id): (u32, u64)) -> bool {
        let open = self.open[worker as usize];
        open.id == id && open.left > 0
    }

    fn forget_closed(&mut self) {
        for place in 0..PREFERENCES {
            while self.waiting[place].front().is_some_and(|front| !self.is_open(*front)) {
                self.waiting[place].pop_front();
            }
        }
    }

    fn dispatch(&mut self) -> Option<Delivery> {
        self.forget_closed();
        if self.ready.is_empty() && self.again.is_empty() {
            return None;
        }
        let first = self.waiting.iter_mut().find(|waiting| !waiting.is_empty())?;
        let (worker, id) = first.pop_front()?;
        let job = self.again.pop_front().or_else(|| self.ready.pop_front())?;
        let open = &mut self.open[worker as usize];
        open.left -= 1;
        if open.left > 0 {
            // Whoever has just been served waits behind the others.
            self.waiting[usize::from(open.preference)].push_back((worker, id));
        }
        Some(Delivery { worker, job })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pulls_take_turns_and_expire() {
        let mut broker = Broker::new(1, 3);
        let first = broker.pull(0, 0, 2, 0);
        broker.pull(1, 0, 1, 0);
        let late = broker.pull(2, 0, 1, 0);
        let takers = |broker: &mut Broker, job| broker.publish(0, job).map(|delivery| delivery.worker);
        assert_eq!(takers(&mut broker, 10), Some(0));
        assert_eq!(takers(&mut broker, 11), Some(1));
        assert!(broker.expire(2, 0, late));
        assert!(!broker.expire(2, 0, late));
        assert_eq!(takers(&mut broker, 12), Some(0));
        assert_eq!(takers(&mut broker, 13), None);
        assert!(!broker.expire(0, 0, first));
        broker.pull(1, 0, 5, 0);
        assert_eq!(broker.dispatch(0), Some(Delivery { worker: 1, job: 13 }));
        assert_eq!(broker.dispatch(0), None);
    }
}
