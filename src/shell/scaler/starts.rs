//! How long it takes from the wish for a worker until there is one, as far as it was seen. It reads no clock.

use std::collections::HashMap;
use std::time::Duration;

use crate::job::{Capacity, ModelName};
use crate::sched::Mono;

/// By how much one start moves what is taken for the usual one.
const WEIGHT: f64 = 0.3;
/// A wish that was not granted for so long is forgotten: there was no machine to be had.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);

/// Starts of one model on one capacity.
#[derive(Clone, Copy, Debug, Default)]
struct Start {
    usual_s: Option<f64>,
    /// Since when more are wished for than are there, and how many there were.
    wished: Option<(Mono, u32)>,
}

/// Starts of all.
#[derive(Debug, Default)]
pub(super) struct Starts {
    of: HashMap<(ModelName, Capacity), Start>,
}

impl Starts {
    /// So many are ready, and so many were said to be wanted.
    pub(super) fn wished(&mut self, model: &ModelName, capacity: Capacity, ready: u32, wanted: u32, now: Mono) {
        let start = self.of.entry((model.clone(), capacity)).or_default();
        if wanted <= ready {
            start.wished = None;
        } else if start.wished.is_none() {
            start.wished = Some((now, ready));
        }
    }

    /// So many are ready.
    pub(super) fn seen(&mut self, model: &ModelName, capacity: Capacity, ready: u32, now: Mono) {
        let Some(start) = self.of.get_mut(&(model.clone(), capacity)) else { return };
        let Some((since, were_ready)) = start.wished else { return };
        let took = now.since(since);
        if ready > were_ready {
            let took_s = took.as_secs_f64();
            start.usual_s = Some(start.usual_s.map_or(took_s, |usual_s| usual_s + WEIGHT * (took_s - usual_s)));
            start.wished = None;
        } else if took > FORGOTTEN_AFTER {
            start.wished = None;
        } else {
            start.wished = Some((since, ready));
        }
    }

    /// What a start usually takes; `None` until one was seen.
    pub(super) fn measured(&self, model: &ModelName, capacity: Capacity) -> Option<Duration> {
        let start = self.of.get(&(model.clone(), capacity))?;
        start.usual_s.and_then(|usual_s| Duration::try_from_secs_f64(usual_s).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_lasts_from_the_first_wish_to_the_next_worker() {
        let model: ModelName = "shapes".parse().unwrap();
        let at = |seconds: u64| Mono::ZERO.after(Duration::from_secs(seconds));
        let mut starts = Starts::default();
        starts.seen(&model, Capacity::Spot, 0, at(0));
        starts.wished(&model, Capacity::Spot, 0, 2, at(1));
        starts.wished(&model, Capacity::Spot, 0, 2, at(30));
        starts.seen(&model, Capacity::Spot, 0, at(40));
        assert_eq!(starts.measured(&model, Capacity::Spot), None);
        starts.seen(&model, Capacity::Spot, 1, at(61));
        assert_eq!(starts.measured(&model, Capacity::Spot), Some(Duration::from_secs(60)));
        assert_eq!(starts.measured(&model, Capacity::OnDemand), None);
        // The next one is quicker; what it takes is not believed at once.
        starts.wished(&model, Capacity::Spot, 1, 2, at(70));
        starts.seen(&model, Capacity::Spot, 2, at(80));
        assert_eq!(starts.measured(&model, Capacity::Spot), Some(Duration::from_secs(45)));
        // A wish that is taken back measures nothing, nor does one that nobody grants.
        starts.wished(&model, Capacity::Spot, 2, 3, at(90));
        starts.wished(&model, Capacity::Spot, 2, 2, at(95));
        starts.seen(&model, Capacity::Spot, 3, at(100));
        starts.wished(&model, Capacity::Spot, 3, 4, at(100));
        starts.seen(&model, Capacity::Spot, 3, at(4000));
        starts.seen(&model, Capacity::Spot, 4, at(4001));
        assert_eq!(starts.measured(&model, Capacity::Spot), Some(Duration::from_secs(45)));
    }
}
