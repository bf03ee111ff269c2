//! How many messages to ask each consumer for.
//!
//! Every consumer has a pull for one message open while it has a free row, so that nothing waits for a poll. Only a
//! consumer that filled its last pull is asked for as many as are wanted. How many are wanted of which consumer, for free
//! rows or to choose from, is decided elsewhere.

use std::time::Duration;

use super::retry::FAILED_PULL;
use super::time::Mono;

/// A worker that is busy with more urgent jobs still takes a job of each consumer so often.
pub(super) const STARVING: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, Default)]
struct LaneState {
    outstanding: u32,
    /// What the last pull said of how busy this worker is.
    preference: u8,
    filled_last: bool,
    /// Messages that waited when the last one came.
    pending: u64,
    /// Messages that were given back for somebody else and that nobody has taken yet, as far as one knows.
    given_back: u64,
    not_before: Mono,
    delivered_at: Mono,
}

/// The pulls of all consumers, in the order of their urgency.
#[derive(Clone, Debug)]
pub(super) struct Pulls {
    lanes: Vec<LaneState>,
}

impl Pulls {
    pub(super) fn new(lanes: usize) -> Self {
        Self { lanes: vec![LaneState::default(); lanes] }
    }

    /// A message came, and so many more wait.
    pub(super) fn delivered(&mut self, lane: usize, now: Mono, pending: u64) {
        if let Some(lane) = self.lanes.get_mut(lane) {
            lane.delivered_at = now;
            lane.pending = pending;
            lane.given_back = lane.given_back.saturating_sub(1);
            lane.outstanding = lane.outstanding.saturating_sub(1);
            // Until the pull ends, what is left of it counts as asked for.
            lane.filled_last |= lane.outstanding == 0;
        }
    }

    /// The pull ended without being filled.
    pub(super) fn expired(&mut self, lane: usize) {
        if let Some(lane) = self.lanes.get_mut(lane) {
            *lane = LaneState { delivered_at: lane.delivered_at, ..LaneState::default() };
        }
    }

    /// The pull did not work.
    pub(super) fn failed(&mut self, lane: usize, now: Mono) {
        if let Some(lane) = self.lanes.get_mut(lane) {
            let LaneState { delivered_at, .. } = *lane;
            *lane = LaneState { not_before: now.after(FAILED_PULL), delivered_at, ..LaneState::default() };
        }
    }

    /// What the last pull of a consumer said of how busy this worker is.
    pub(super) fn preference(&self, lane: usize) -> u8 {
        self.lanes.get(lane).map_or(0, |lane| lane.preference)
    }

    /// What to ask for when each consumer has so many rows `free` without a message: pairs of consumer and number.
    pub(super) fn plan(&mut self, now: Mono, free: &[u32], preference: u8) -> Vec<(usize, u32)> {
        // What less urgent consumers were asked for does not count: more urgent jobs take its place.
        let mut asked = 0;
        let mut plan = Vec::new();
        for (index, (lane, free)) in self.lanes.iter_mut().zip(free).enumerate() {
            let left = free.saturating_sub(asked);
            if left > 0 && lane.outstanding == 0 && lane.not_before <= now {
                lane.outstanding = if lane.filled_last { left } else { 1 };
                lane.preference = preference;
                plan.push((index, lane.outstanding));
            }
            if lane.filled_last {
                asked += lane.outstanding;
            }
        }
        plan
    }

    /// Whether nothing came from a consumer for so long that its messages may starve.
    pub(super) fn may_starve(&self, lane: usize, now: Mono) -> bool {
        self.lanes.get(lane).is_some_and(|lane| now.since(lane.delivered_at) >= STARVING)
    }

    /// A message was given back for whoever is idle: it waits, but the server does not count it.
    pub(super) fn given_back(&mut self, lane: usize) {
        if let Some(lane) = self.lanes.get_mut(lane) {
            lane.given_back += 1;
        }
    }

    /// How many messages wait at a consumer that nobody ever had, as far as one knows.
    pub(super) fn pending(&self, lane: usize) -> u64 {
        self.lanes.get(lane).map_or(0, |lane| lane.pending)
    }

    /// Whether a consumer has more messages, as far as one knows.
    pub(super) fn is_behind(&self, lane: usize) -> bool {
        self.lanes.get(lane).is_some_and(|lane| lane.pending + lane.given_back > 0)
    }

    /// Whether any consumer had more messages, as far as one knows.
    pub(super) fn are_behind(&self) -> bool {
        self.lanes.iter().any(|lane| lane.pending + lane.given_back > 0)
    }

    /// When a consumer may be asked again that may not now.
    pub(super) fn next_deadline(&self, now: Mono) -> Option<Mono> {
        self.lanes.iter().map(|lane| lane.not_before).filter(|not_before| *not_before > now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Mono = Mono::ZERO;

    #[test]
    fn an_idle_worker_asks_each_consumer_for_one() {
        let mut pulls = Pulls::new(3);
        assert_eq!(pulls.plan(NOW, &[8; 3], 0), [(0, 1), (1, 1), (2, 1)]);
        assert_eq!(pulls.plan(NOW, &[8; 3], 0), []);
    }

    #[test]
    fn a_consumer_that_delivers_is_asked_for_all_free_rows() {
        let mut pulls = Pulls::new(3);
        pulls.plan(NOW, &[8; 3], 0);
        pulls.delivered(1, NOW, 4);
        assert!(pulls.are_behind());
        assert_eq!(pulls.plan(NOW, &[7; 3], 0), [(1, 7)]);
        pulls.delivered(1, NOW, 3);
        assert_eq!(pulls.plan(NOW, &[6; 3], 0), []);
        assert!(pulls.are_behind());
        pulls.expired(1);
        assert!(!pulls.are_behind());
        assert_eq!(pulls.plan(NOW, &[6; 3], 0), [(1, 1)]);
    }

    #[test]
    fn an_urgent_consumer_is_asked_when_the_others_have_no_room() {
        let mut pulls = Pulls::new(2);
        assert_eq!(pulls.plan(NOW, &[4, 0], 0), [(0, 1)]);
        pulls.delivered(0, NOW, 1);
        assert_eq!(pulls.plan(NOW, &[3, 0], 0), [(0, 3)]);
    }

    #[test]
    fn a_full_worker_asks_nobody_and_a_refusing_consumer_is_left_alone_for_a_while() {
        let mut pulls = Pulls::new(1);
        assert_eq!(pulls.plan(NOW, &[0], 0), []);
        pulls.plan(NOW, &[1], 0);
        pulls.failed(0, NOW);
        assert_eq!(pulls.plan(NOW, &[1], 0), []);
        let later = pulls.next_deadline(NOW).unwrap();
        assert_eq!(pulls.plan(later, &[1], 0), [(0, 1)]);
    }
}
