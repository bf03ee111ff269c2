//! Who had how much of the engine: fair shares between tenants.
//!
//! Deficit round robin, kept as one number for each tenant: the milliseconds that the engine spent on its rows. The one
//! that had least is next; within [`QUANTUM_MS`] tenants count as equal, so that the engine does not change sides with every
//! step. A tenant that had nothing for a while begins one quantum before the others, so its first job is next; what it did
//! not use before is not saved up. So it waits for another tenant at most a quantum and a step longer than its share
//! demands; and where the other's jobs have a higher priority, until that is [`AHEAD_MAX_MS`] ahead.

use std::collections::BTreeMap;

/// How far a tenant may get ahead of another before that one is next.
pub(super) const QUANTUM_MS: f64 = 1000.0;

/// What a tenant may have saved up that had less than its share.
pub(super) const CREDIT_MS: f64 = QUANTUM_MS;
/// A tenant that is further ahead of another than this goes behind all that it has, whatever their priorities.
pub(super) const AHEAD_MAX_MS: f64 = 5.0 * QUANTUM_MS;

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
        let begins_at = self.least_served().map_or(0.0, |least| least - CREDIT_MS);
        let account = self.accounts.entry(tenant).or_insert(Account { served_ms: begins_at, jobs: 0 });
        account.served_ms = account.served_ms.max(begins_at);
        account.jobs += 1;
    }

    /// A job of `tenant` is gone. Its account stays until it could not tell it from a new one, so that nobody gains by
    /// sending one job after the other.
    pub(super) fn went(&mut self, tenant: TenantKey) {
        if let Some(account) = self.accounts.get_mut(&tenant) {
            account.jobs = account.jobs.saturating_sub(1);
        }
        match self.least_served() {
            Some(least) => self.accounts.retain(|_, account| account.jobs > 0 || account.served_ms > least - CREDIT_MS),
            None => self.accounts.clear(),
        }
    }

    /// What the tenant had that had least, of those that have jobs.
    pub(super) fn least_served(&self) -> Option<f64> {
        let with_jobs = self.accounts.values().filter(|account| account.jobs > 0);
        with_jobs.map(|account| account.served_ms).reduce(f64::min)
    }

    /// The engine spent time on a row of `tenant`.
    pub(super) fn charge(&mut self, tenant: TenantKey, spent_ms: f64) {
        if let Some(account) = self.accounts.get_mut(&tenant) {
            account.served_ms += spent_ms;
        }
    }

    /// Whether a tenant had so much more than `least_ms` that all others go first.
    pub(super) fn is_far_ahead(&self, tenant: TenantKey, least_ms: f64) -> bool {
        self.standing(tenant, least_ms).0
    }

    /// The same, and whose turn it is: the smaller, the sooner.
    pub(super) fn standing(&self, tenant: TenantKey, least_ms: f64) -> (bool, i64) {
        let Some(Account { served_ms, .. }) = self.accounts.get(&tenant) else { return (false, 0) };
        (served_ms - least_ms > AHEAD_MAX_MS, (served_ms / QUANTUM_MS).floor() as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(shares: &Shares, tenant: TenantKey) -> i64 {
        shares.standing(tenant, 0.0).1
    }

    const ONE: TenantKey = TenantKey(1);
    const OTHER: TenantKey = TenantKey(2);

    #[test]
    fn whoever_had_least_is_next_but_not_for_a_step() {
        let mut shares = Shares::default();
        shares.came(ONE);
        shares.came(OTHER);
        shares.charge(OTHER, QUANTUM_MS);
        shares.charge(ONE, QUANTUM_MS * 0.9);
        assert_eq!(turn(&shares, ONE), turn(&shares, OTHER));
        shares.charge(ONE, QUANTUM_MS * 0.2);
        assert!(turn(&shares, OTHER) < turn(&shares, ONE));
        shares.charge(OTHER, QUANTUM_MS * 2.0);
        assert!(turn(&shares, ONE) < turn(&shares, OTHER));
    }

    #[test]
    fn what_was_not_used_is_not_saved_up() {
        let mut shares = Shares::default();
        shares.came(ONE);
        shares.charge(ONE, QUANTUM_MS * 50.0);
        shares.came(OTHER);
        assert_eq!(turn(&shares, OTHER) + 1, turn(&shares, ONE));
        shares.went(OTHER);
        shares.charge(ONE, QUANTUM_MS * 50.0);
        shares.came(OTHER);
        assert_eq!(turn(&shares, OTHER) + 1, turn(&shares, ONE));
    }

    #[test]
    fn nobody_gains_by_sending_one_job_after_the_other() {
        let mut shares = Shares::default();
        shares.came(ONE);
        for _ in 0..10 {
            shares.came(OTHER);
            shares.charge(OTHER, QUANTUM_MS);
            shares.went(OTHER);
        }
        shares.came(OTHER);
        assert!(turn(&shares, OTHER) > turn(&shares, ONE) + 5);
    }
}
