//! What this worker did in the present hour, put into the bucket of usage now and then.
//!
//! A report that is lost costs the bill half a minute. Prices are not its business; it only repeats them.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::HeaderMap;

use crate::job::{Capacity, ModelName, WorkerId};
use crate::wire::subject;
use crate::wire::usage::{self, HOUR_MS, TenantUsage, UsageReport};

use super::super::bus::{Bus, chain};

/// Between two reports.
const REPORT_EVERY_MS: i64 = 30_000;
/// Tenants that a report names; the rest is summed up.
const TENANTS_MAX: usize = 100;
/// How long the end of a worker is held up by its last report.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whose usage it is, and what it costs.
#[derive(Clone, Debug)]
pub(super) struct Account {
    pub(super) worker: WorkerId,
    pub(super) model: ModelName,
    pub(super) capacity: Capacity,
    pub(super) instance_type: Option<String>,
    pub(super) price_per_hour: Option<f64>,
}

/// The present hour.
#[derive(Clone, Debug)]
pub(super) struct Usage {
    account: Account,
    start_unix_ms: i64,
    hour_unix_ms: i64,
    since_unix_ms: i64,
    reported_unix_ms: i64,
    gpu_ms: f64,
    tenants: BTreeMap<String, TenantUsage>,
}

fn hour_of(unix_ms: i64) -> i64 {
    unix_ms.div_euclid(HOUR_MS) * HOUR_MS
}

impl Usage {
    /// Nothing was done yet by a process that began at `start_unix_ms`.
    pub(super) fn new(account: Account, start_unix_ms: i64) -> Self {
        Self {
            account,
            start_unix_ms,
            hour_unix_ms: hour_of(start_unix_ms),
            since_unix_ms: start_unix_ms,
            reported_unix_ms: start_unix_ms,
            gpu_ms: 0.0,
            tenants: BTreeMap::new(),
        }
    }

    /// The device worked for a tenant.
    pub(super) fn gpu(&mut self, tenant: &str, gpu_ms: f64) {
        self.gpu_ms += gpu_ms;
        self.of(tenant).gpu_ms += gpu_ms;
    }

    /// Images of a tenant were stored.
    pub(super) fn stored(&mut self, tenant: &str, images: u64) {
        self.of(tenant).images += images;
    }

    fn of(&mut self, tenant: &str) -> &mut TenantUsage {
        let known = self.tenants.len() < TENANTS_MAX || self.tenants.contains_key(tenant);
        let name = if known { tenant } else { "" };
        self.tenants
            .entry(name.to_owned())
            .or_insert_with(|| TenantUsage { tenant: name.to_owned(), ..TenantUsage::default() })
    }

    fn report(&self, until_unix_ms: i64) -> (String, UsageReport) {
        let Account { worker, model, capacity, instance_type, price_per_hour } = &self.account;
        let hour_unix_s = self.hour_unix_ms / 1000;
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of an hour fit")]
        let ran_ms = until_unix_ms.saturating_sub(self.since_unix_ms).max(0) as f64;
        let report = UsageReport {
            worker: worker.to_string(),
            model: model.to_string(),
            capacity: capacity.to_string(),
            instance_type: instance_type.clone(),
            price_per_hour: *price_per_hour,
            hour_unix_s,
            ran_ms,
            gpu_ms: self.gpu_ms,
            tenants: self.tenants.values().cloned().collect(),
        };
        (subject::usage(model, *capacity, worker, self.start_unix_ms / 1000, hour_unix_s), report)
    }

    /// What is to be put where, if it is time to.
    pub(super) fn due(&mut self, now_unix_ms: i64) -> Vec<(String, UsageReport)> {
        let mut reports = Vec::new();
        let hour_unix_ms = hour_of(now_unix_ms);
        if hour_unix_ms > self.hour_unix_ms {
            reports.push(self.report(self.hour_unix_ms + HOUR_MS));
            *self = Self {
                hour_unix_ms,
                since_unix_ms: hour_unix_ms,
                reported_unix_ms: now_unix_ms,
                ..Self::new(self.account.clone(), self.start_unix_ms)
            };
            reports.push(self.report(now_unix_ms));
        } else if now_unix_ms - self.reported_unix_ms >= REPORT_EVERY_MS {
            self.reported_unix_ms = now_unix_ms;
            reports.push(self.report(now_unix_ms));
        }
        reports
    }

    /// The last report.
    pub(super) fn last(&self, now_unix_ms: i64) -> (String, UsageReport) {
        self.report(now_unix_ms)
    }
}

/// Puts reports where they belong.
pub(super) async fn put(bus: Bus, reports: Vec<(String, UsageReport)>) {
    let all = async {
        for (key, report) in reports {
            if let Err(error) = bus.publish(&key, HeaderMap::new(), usage::encode(&report).into()).await {
                tracing::warn!(error = chain(&error), "worker.usage");
            }
        }
    };
    if tokio::time::timeout(PATIENCE, all).await.is_err() {
        tracing::warn!("worker.usage: no answer");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START_MS: i64 = 1_795_392_000_000 - 600_000;

    fn usage() -> Usage {
        let account = Account {
            worker: "w".parse().unwrap(),
            model: "shapes".parse().unwrap(),
            capacity: Capacity::Spot,
            instance_type: Some("g5.xlarge".into()),
            price_per_hour: Some(0.5),
        };
        Usage::new(account, START_MS)
    }

    #[test]
    fn an_hour_is_reported_again_and_again_and_whole_when_it_is_over() {
        let mut usage = usage();
        usage.gpu("a", 100.0);
        usage.stored("a", 2);
        assert!(usage.due(START_MS + 29_000).is_empty());
        let reports = usage.due(START_MS + 30_000);
        assert_eq!((reports.len(), reports[0].1.ran_ms, reports[0].1.gpu_ms), (1, 30_000.0, 100.0));
        assert!(usage.due(START_MS + 31_000).is_empty());
        usage.gpu("b", 50.0);
        let reports = usage.due(START_MS + 660_000);
        let [(key, ended), (next_key, begun)] = &reports[..] else { panic!("{reports:?}") };
        assert_eq!((ended.ran_ms, ended.gpu_ms, ended.tenants.len()), (600_000.0, 150.0, 2));
        assert_eq!((begun.ran_ms, begun.gpu_ms, begun.tenants.len()), (60_000.0, 0.0, 0));
        assert_ne!(key, next_key);
        assert_eq!(usage.last(START_MS + 661_000).0, *next_key);
    }

    #[test]
    fn a_thousand_tenants_do_not_make_a_report_long() {
        let mut usage = usage();
        for tenant in 0..1000 {
            usage.gpu(&format!("t{tenant}"), 1.0);
        }
        let (_, report) = usage.last(START_MS);
        assert_eq!(report.tenants.len(), TENANTS_MAX + 1);
        assert!((report.tenants.iter().map(|of| of.gpu_ms).sum::<f64>() - 1000.0).abs() < 1e-6);
    }
}
