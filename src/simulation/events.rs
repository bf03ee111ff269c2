//! What happens when, in order of time, then in the order in which it was made.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Events to come. Times are microseconds since the simulation began.
#[derive(Debug)]
pub(super) struct Events<E> {
    heap: BinaryHeap<Reverse<(u64, u64, Ordered<E>)>>,
    made: u64,
}

/// Compares equal to everything: time and number have decided before.
#[derive(Debug)]
struct Ordered<E>(E);

impl<E> PartialEq for Ordered<E> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<E> Eq for Ordered<E> {}

impl<E> PartialOrd for Ordered<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Ordered<E> {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

impl<E> Events<E> {
    pub(super) fn new() -> Self {
        Self { heap: BinaryHeap::new(), made: 0 }
    }

    pub(super) fn at(&mut self, at_us: u64, event: E) {
        self.made += 1;
        self.heap.push(Reverse((at_us, self.made, Ordered(event))));
    }

    /// When the next event is due.
    pub(super) fn next_at(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse((at, ..))| *at)
    }

    pub(super) fn pop(&mut self) -> Option<(u64, E)> {
        self.heap.pop().map(|Reverse((at, _, Ordered(event)))| (at, event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_time_and_then_as_they_were_made() {
        let mut events = Events::new();
        events.at(5, "c");
        events.at(1, "a");
        events.at(1, "b");
        assert_eq!(events.next_at(), Some(1));
        assert_eq!([events.pop(), events.pop(), events.pop()], [Some((1, "a")), Some((1, "b")), Some((5, "c"))]);
        assert_eq!(events.pop(), None);
    }
}
