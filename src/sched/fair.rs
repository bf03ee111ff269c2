//! Who had how much of the engine: fair shares between tenants.
//!
//! Deficit round robin, kept as one number for each tenant: the milliseconds that the engine spent on its rows. The one
//! that had least is next; within [`QUANTUM_MS`] tenants count as equal, so that the engine does not change sides with every
//! step. A tenant that has jobs again begins where the others are: what it did not use is not saved up. So it waits for
//! another tenant at most a quantum and a step longer than its share demands.

use std::collections::BTreeMap;

/// How far a tenant may get ahead of another before that one is next.
pub(super) const QUANTUM_MS: f64 = 1000.0;

/// Names a tenant in one worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantKey(pub u64);

#[derive(Clone, Copy, Debug)]
struct Account {
    served_ms: f64,
    jobs: u32,
}

/// The accounts of all tenants that have jobs here.
#[derive(Clone, Debug, Default)]
pub(super) struct Shares {
    accounts: BTreeMap<TenantKey, Account>,
}

impl Shares {
    /// A job of `tenant` came.
    pub(super) fn came(&mut self, tenant: TenantKey) {
        let least = self.accounts.values().map(|account| account.served_ms).reduce(f64::min).unwrap_or_default();
        self.accounts.entry(tenant).or_insert(Account { served_ms: least, jobs: 0 }).jobs += 1;
    }

    /// A job of `tenant` is gone.
    pub(super) fn went(&mut self, tenant: TenantKey) {
        if let Some(account) = self.accounts.get_mut(&tenant) {
            account.jobs = account.jobs.saturating_sub(1);
            if account.jobs == 0 {
                self.accounts.remove(&tenant);
            }
        }
    }

    /// The engine spent time on a row of `tenant`.
    pub(super) fn charge(&mut self, tenant: TenantKey, spent_ms: f64) {
        if let Some(account) = self.accounts.get_mut(&tenant) {
            account.served_ms += spent_ms;
        }
    }

    /// Whose turn it is: the smaller, the sooner.
    pub(super) fn turn(&self, tenant: TenantKey) -> u64 {
        self.accounts.get(&tenant).map_or(0, |account| (account.served_ms / QUANTUM_MS) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: TenantKey = TenantKey(1);
    const OTHER: TenantKey = TenantKey(2);

    #[test]
    fn whoever_had_least_is_next_but_not_for_a_step() {
        let mut shares = Shares::default();
        shares.came(ONE);
        shares.came(OTHER);
        shares.charge(ONE, QUANTUM_MS * 0.9);
        assert_eq!(shares.turn(ONE), shares.turn(OTHER));
        shares.charge(ONE, QUANTUM_MS * 0.2);
        assert!(shares.turn(OTHER) < shares.turn(ONE));
        shares.charge(OTHER, QUANTUM_MS * 2.0);
        assert!(shares.turn(ONE) < shares.turn(OTHER));
    }

    #[test]
    fn what_was_not_used_is_not_saved_up() {
        let mut shares = Shares::default();
        shares.came(ONE);
        shares.charge(ONE, QUANTUM_MS * 50.0);
        shares.came(OTHER);
        assert_eq!(shares.turn(OTHER), shares.turn(ONE));
        shares.went(OTHER);
        shares.charge(ONE, QUANTUM_MS * 50.0);
        shares.came(OTHER);
        assert_eq!(shares.turn(OTHER), shares.turn(ONE));
    }
}
