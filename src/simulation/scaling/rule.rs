//! Who decides how many workers there are, and the arithmetic of the horizontal pod autoscaler.

use std::collections::VecDeque;
use std::time::Duration;

use serde::Serialize;

/// The autoscaler leaves things alone while the ratio of what is to what should be is this close to 1.
const TOLERANCE: f64 = 0.1;
/// Its default of scaling out: so many pods, or as many as there are, whichever is more, in [`SCALE_OUT_US`].
const SCALE_OUT_PODS: u32 = 4;
const SCALE_OUT_US: u64 = 15_000_000;

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "rule", rename_all = "kebab-case")]
pub enum Rule {
    /// [`crate::sched::scale::wanted`]; workers end by themselves.
    Darkroom {
        /// What is promised.
        target_wait: Duration,
    },
    /// A ScaledObject of KEDA on the consumer's lag: from and to zero by KEDA, the rest by the autoscaler.
    ScaledObject {
        /// Messages for each pod.
        lag_threshold: u32,
    },
    /// A ScaledJob of KEDA on the consumer's lag, strategy `default`; workers end by themselves.
    ScaledJob {
        /// Messages for each pod.
        lag_threshold: u32,
    },
    /// An autoscaler on the number of messages that wait, never below one pod.
    QueueHpa {
        /// Messages for each pod.
        queue_per_worker: u32,
    },
    /// Always the same.
    Fixed {
        /// So many.
        workers: u32,
    },
}

impl Rule {
    /// Its name in tables and plots.
    pub fn label(self) -> String {
        match self {
            Self::Darkroom { target_wait } => {
                format!("darkroom, wait {:.3} s", target_wait.as_secs_f64()).replace(".000 s", " s")
            }
            Self::ScaledObject { lag_threshold } => format!("ScaledObject, lag {lag_threshold}"),
            Self::ScaledJob { lag_threshold } => format!("ScaledJob, lag {lag_threshold}"),
            Self::QueueHpa { queue_per_worker } => format!("HPA, queue {queue_per_worker}"),
            Self::Fixed { workers } => format!("fixed, {workers}"),
        }
    }

    /// Whether workers end by themselves when they have nothing to do.
    pub(super) fn lets_workers_exit(self) -> bool {
        matches!(self, Self::Darkroom { .. } | Self::ScaledJob { .. })
    }

    /// Workers that are there from the beginning.
    pub(super) fn at_first(self) -> u32 {
        match self {
            Self::Darkroom { .. } | Self::ScaledObject { .. } | Self::ScaledJob { .. } => 0,
            Self::QueueHpa { .. } => 1,
            Self::Fixed { workers } => workers,
        }
    }
}

/// How many pods so many messages are worth.
pub(super) fn pods(messages: u64, each: u32) -> u32 {
    u32::try_from(messages.div_ceil(u64::from(each.max(1)))).unwrap_or(u32::MAX)
}

/// The horizontal pod autoscaler with one external metric of type AverageValue and its default behaviour.
#[derive(Clone, Debug)]
pub(super) struct Autoscaler {
    stabilization_us: u64,
    pods_max: u32,
    /// Its wishes of the last while, and when.
    wishes: VecDeque<(u64, u32)>,
    /// Pods that it added, and when.
    added: VecDeque<(u64, u32)>,
}

impl Autoscaler {
    pub(super) fn new(stabilization_us: u64, pods_max: u32) -> Self {
        Self { stabilization_us, pods_max, wishes: VecDeque::new(), added: VecDeque::new() }
    }

    /// How many pods there should be; at least one.
    pub(super) fn desired(&mut self, now_us: u64, messages: u64, each: u32, pods_now: u32) -> u32 {
        let ratio = messages as f64 / (f64::from(each.max(1)) * f64::from(pods_now.max(1)));
        let wish = if (ratio - 1.0).abs() <= TOLERANCE { pods_now } else { pods(messages, each) };
        let wish = wish.clamp(1, self.pods_max);
        self.wishes.push_back((now_us, wish));
        while self.wishes.front().is_some_and(|(at, _)| at + self.stabilization_us < now_us) {
            self.wishes.pop_front();
        }
        while self.added.front().is_some_and(|(at, _)| at + SCALE_OUT_US <= now_us) {
            self.added.pop_front();
        }
        if wish > pods_now {
            let before = pods_now.saturating_sub(self.added.iter().map(|(_, pods)| pods).sum());
            let most = (before + SCALE_OUT_PODS).max(before.saturating_mul(2));
            let desired = wish.min(most).max(pods_now);
            if desired > pods_now {
                self.added.push_back((now_us, desired - pods_now));
            }
            desired
        } else {
            let highest = self.wishes.iter().map(|(_, wish)| *wish).max().unwrap_or(wish);
            highest.min(pods_now)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    #[test]
    fn an_autoscaler_divides_rounds_up_and_tolerates_a_tenth() {
        let desired = |messages, pods_now| Autoscaler::new(0, 100).desired(0, messages, 3, pods_now);
        assert_eq!([desired(7, 2), desired(9, 3), desired(13, 4), desired(14, 4)], [3, 3, 4, 5]);
        assert_eq!(desired(0, 5), 1, "never to zero");
        assert_eq!(desired(3000, 90), 100, "never above the most");
    }

    #[test]
    fn it_adds_four_pods_or_doubles_in_fifteen_seconds() {
        let mut autoscaler = Autoscaler::new(300 * SECOND, 100);
        assert_eq!(autoscaler.desired(0, 300, 3, 1), 5);
        assert_eq!(autoscaler.desired(5 * SECOND, 300, 3, 5), 5, "not again so soon");
        assert_eq!(autoscaler.desired(15 * SECOND, 300, 3, 5), 10);
        assert_eq!(autoscaler.desired(30 * SECOND, 300, 3, 10), 20);
    }

    #[test]
    fn it_scales_in_to_the_highest_wish_of_five_minutes() {
        let mut autoscaler = Autoscaler::new(300 * SECOND, 100);
        assert_eq!(autoscaler.desired(0, 30, 3, 10), 10);
        assert_eq!(autoscaler.desired(15 * SECOND, 12, 3, 10), 10);
        assert_eq!(autoscaler.desired(300 * SECOND, 0, 3, 10), 10);
        assert_eq!(autoscaler.desired(301 * SECOND, 0, 3, 10), 4);
        assert_eq!(autoscaler.desired(316 * SECOND, 0, 3, 4), 1);
    }

    #[test]
    fn whoever_has_a_job_counts_for_a_scaled_job() {
        assert_eq!([pods(0, 3), pods(1, 3), pods(3, 3), pods(4, 3)], [0, 1, 1, 2]);
    }
}
