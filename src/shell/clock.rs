//! The only place that reads a clock.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::sched::Mono;

/// Both clocks of a process: one that never goes back, one that people read.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock whose monotonic time begins now.
    #[expect(clippy::disallowed_methods, reason = "the one place")]
    pub fn start() -> Self {
        Self { origin: Instant::now() }
    }

    /// Time since [`Clock::start`].
    pub fn now(&self) -> Mono {
        Mono::ZERO.after(self.origin.elapsed())
    }

    /// The instant at which [`Clock::now`] will be `time`.
    pub fn instant(&self, time: Mono) -> Instant {
        self.origin + Duration::from_micros(time.as_micros())
    }

    /// When it will be `unix_ms`, or now if that is over.
    pub fn mono(&self, unix_ms: i64) -> Mono {
        let ahead_ms = u64::try_from(unix_ms.saturating_sub(self.unix_ms())).unwrap_or(0);
        self.now().after(Duration::from_millis(ahead_ms))
    }

    /// Milliseconds since the Unix epoch.
    #[expect(clippy::disallowed_methods, reason = "the one place")]
    pub fn unix_ms(&self) -> i64 {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)
    }
}
