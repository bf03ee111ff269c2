//! Delays. A bare NAK comes back at once, so every one of them waits.

use std::time::Duration;

/// Given back unharmed: long enough for the pulls of a leaving worker to be gone.
pub(super) const GIVE_BACK: Duration = Duration::from_millis(500);

/// Delivered by a pull that said too much: the one that it is meant for waits already.
pub(super) const MISDELIVERED: Duration = Duration::from_millis(5);

/// Somebody else seems to hold the job: look again when a lost lease would have run out.
pub(super) fn held_elsewhere(ack_wait: Duration) -> Duration {
    ack_wait
}

/// After the `failures`-th failure of a job, counted from 1: 1 s, 4 s, 16 s, a minute at most.
pub(super) fn failed_job(failures: u32) -> Duration {
    Duration::from_secs(4_u64.saturating_pow(failures.saturating_sub(1)).min(60))
}

/// After the `tries`-th failure of an action, counted from 1: 0.2 s, doubled each time, 5 s at most.
pub(super) fn failed_action(tries: u32) -> Duration {
    Duration::from_millis(200 * 2_u64.saturating_pow(tries.saturating_sub(1)).min(25))
}

/// After a pull that the server refused or did not answer.
pub(super) const FAILED_PULL: Duration = Duration::from_secs(1);

/// How often storing is tried where others are stored, before the job has failed.
pub(super) const STORE_TRIES_MAX: u32 = 3;

/// For how long it is tried where nothing can be stored: the pictures are kept that long.
pub(super) const STORE_PATIENCE: Duration = Duration::from_secs(15 * 60);

/// How often a settlement is tried before the message is left to the end of its lease.
pub(super) const SETTLE_TRIES_MAX: u32 = 5;
