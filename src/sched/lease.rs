//! The lease of one message: when to extend it, and when it must be presumed lost.
//!
//! An extension that comes after `ack_wait` saves nothing, so it is asked for at a third of it: two may get lost.

use std::time::Duration;

use super::time::Mono;

/// The lease of one message.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    confirmed: Mono,
    extend_at: Mono,
    ack_wait: Duration,
}

impl Lease {
    pub(super) fn new(now: Mono, ack_wait: Duration) -> Self {
        Self { confirmed: now, extend_at: now.after(ack_wait / 3), ack_wait }
    }

    /// When the next extension is due.
    pub(super) fn extend_at(&self) -> Mono {
        self.extend_at
    }

    /// An extension left now.
    pub(super) fn extension_sent(&mut self, now: Mono) {
        self.extend_at = now.after(self.ack_wait / 3);
    }

    /// The extension that left at `sent` reached the server. One that left too late is answered, but saves nothing.
    pub(super) fn extended(&mut self, sent: Mono) {
        if !self.is_presumed_lost(sent) {
            self.confirmed = self.confirmed.max(sent);
        }
    }

    /// Whether the server may have handed the message to somebody else.
    pub(super) fn is_presumed_lost(&self, now: Mono) -> bool {
        now.since(self.confirmed) >= self.ack_wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_extensions_may_get_lost_before_the_lease_is() {
        let second = |n: u64| Mono::from_micros(n * 1_000_000);
        let mut lease = Lease::new(second(0), Duration::from_secs(30));
        assert_eq!(lease.extend_at(), second(10));
        lease.extension_sent(second(10));
        assert_eq!(lease.extend_at(), second(20));
        assert!(!lease.is_presumed_lost(second(29)));
        assert!(lease.is_presumed_lost(second(30)));
        lease.extended(second(10));
        assert!(!lease.is_presumed_lost(second(39)));
        assert!(lease.is_presumed_lost(second(40)));
        lease.extended(second(40));
        assert!(lease.is_presumed_lost(second(41)), "an extension after the lease saves nothing");
    }
}
