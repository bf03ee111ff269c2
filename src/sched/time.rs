//! Time as the scheduler sees it: an argument.

use std::time::Duration;

/// Microseconds since the worker began. There is no `now()`: whoever drives the scheduler says what time it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mono(u64);

impl Mono {
    /// When the worker began.
    pub const ZERO: Self = Self(0);

    /// A point in time, in microseconds since the worker began.
    pub fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since the worker began.
    pub fn as_micros(self) -> u64 {
        self.0
    }

    /// A later point in time.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
    }

    /// The time since `earlier`; zero when that is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}
