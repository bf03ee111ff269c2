//! What a deployment cost, from what its workers say of each hour: sums, shares and prices of a thousand images.
//!
//! Device time is what jobs got, running time what is paid for; the difference is idle time and starts. An image costs its
//! share of what was paid, the idle time included.

use std::collections::BTreeMap;

/// What one worker did in one hour.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its model.
    pub model: String,
    /// What it ran on.
    pub capacity: String,
    /// How long it ran.
    pub ran_ms: f64,
    /// How long its device worked for jobs.
    pub gpu_ms: f64,
    /// US dollars an hour, where they are known.
    pub price_per_hour: Option<f64>,
    /// Images and device time of each tenant.
    pub tenants: Vec<(String, u64, f64)>,
}

/// A line of a bill.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Line {
    /// Images that were stored.
    pub images: u64,
    /// Hours that were paid for.
    pub ran_hours: f64,
    /// Hours that devices worked for jobs.
    pub gpu_hours: f64,
    /// US dollars; what has no price counts nothing.
    pub usd: f64,
    /// Hours of which no price is known.
    pub unpriced_hours: f64,
}

impl Line {
    /// The share of the paid time in which devices did not work for jobs.
    pub fn idle_share(&self) -> Option<f64> {
        (self.ran_hours > 0.0).then(|| (1.0 - self.gpu_hours / self.ran_hours).clamp(0.0, 1.0))
    }

    /// What a thousand images cost, if the price of all of the time is known.
    pub fn usd_per_1000_images(&self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "a number of images fits")]
        (self.images > 0 && self.unpriced_hours <= 0.0).then(|| self.usd * 1000.0 / self.images as f64)
    }

    fn add(&mut self, images: u64, ran_ms: f64, gpu_ms: f64, price_per_hour: Option<f64>) {
        let hours = ran_ms / 3.6e6;
        self.images = self.images.saturating_add(images);
        self.ran_hours += hours;
        self.gpu_hours += gpu_ms / 3.6e6;
        match price_per_hour {
            Some(price) => self.usd += hours * price,
            None => self.unpriced_hours += hours,
        }
    }
}

/// What was paid, seen from three sides.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bill {
    /// All of it.
    pub all: Line,
    /// By model and capacity.
    pub pools: BTreeMap<(String, String), Line>,
    /// By tenant and model: a worker's paid time is shared out by the device time that each tenant got. What served nobody is
    /// under the empty name.
    pub tenants: BTreeMap<(String, String), Line>,
}

/// Adds up.
pub fn bill(entries: &[Entry]) -> Bill {
    let mut bill = Bill::default();
    for entry in entries {
        let images = entry.tenants.iter().fold(0_u64, |sum, (_, images, _)| sum.saturating_add(*images));
        let pool = bill.pools.entry((entry.model.clone(), entry.capacity.clone())).or_default();
        for line in [pool, &mut bill.all] {
            line.add(images, entry.ran_ms, entry.gpu_ms, entry.price_per_hour);
        }
        let all_ms: f64 = entry.tenants.iter().map(|(_, _, gpu_ms)| gpu_ms.max(0.0)).sum();
        if all_ms <= 0.0 {
            let line = bill.tenants.entry((String::new(), entry.model.clone())).or_default();
            line.add(images, entry.ran_ms, 0.0, entry.price_per_hour);
            continue;
        }
        for (tenant, images, gpu_ms) in &entry.tenants {
            let line = bill.tenants.entry((tenant.clone(), entry.model.clone())).or_default();
            line.add(*images, entry.ran_ms * gpu_ms.max(0.0) / all_ms, *gpu_ms, entry.price_per_hour);
        }
    }
    bill
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(capacity: &str, price_per_hour: Option<f64>, tenants: &[(&str, u64, f64)]) -> Entry {
        let tenants: Vec<_> = tenants.iter().map(|(name, images, ms)| ((*name).to_owned(), *images, *ms)).collect();
        let gpu_ms = tenants.iter().map(|(_, _, ms)| ms).sum();
        Entry { model: "shapes".into(), capacity: capacity.into(), ran_ms: 3.6e6, gpu_ms, price_per_hour, tenants }
    }

    #[test]
    fn all_that_was_paid_is_on_the_bill_once_from_each_side() {
        let entries = [
            entry("spot", Some(0.4), &[("a", 600, 1.2e6), ("b", 300, 0.6e6)]),
            entry("on-demand", Some(1.0), &[("a", 100, 0.36e6)]),
            entry("on-demand", Some(1.0), &[]),
        ];
        let bill = bill(&entries);
        assert_eq!((bill.all.images, bill.pools.len(), bill.tenants.len()), (1000, 2, 3));
        assert!((bill.all.usd - 2.4).abs() < 1e-9 && (bill.all.ran_hours - 3.0).abs() < 1e-9);
        let sum = |lines: Vec<&Line>| lines.iter().map(|line| line.usd).sum::<f64>();
        assert!((sum(bill.pools.values().collect()) - 2.4).abs() < 1e-9);
        assert!((sum(bill.tenants.values().collect()) - 2.4).abs() < 1e-9);
        let spot = bill.pools[&("shapes".to_owned(), "spot".to_owned())];
        assert!((spot.idle_share().unwrap() - 0.5).abs() < 1e-9);
        assert!((spot.usd_per_1000_images().unwrap() - 0.4 / 0.9).abs() < 1e-9);
        let of_a = bill.tenants[&("a".to_owned(), "shapes".to_owned())];
        assert!((of_a.usd - (0.4 * 2.0 / 3.0 + 1.0)).abs() < 1e-9, "{of_a:?}");
        let nobody = bill.tenants[&(String::new(), "shapes".to_owned())];
        assert!((nobody.usd - 1.0).abs() < 1e-9 && nobody.usd_per_1000_images().is_none());
    }

    #[test]
    fn what_has_no_price_is_not_taken_for_free() {
        let bill = bill(&[entry("spot", None, &[("a", 10, 1000.0)]), entry("spot", Some(0.4), &[("a", 10, 1000.0)])]);
        assert!((bill.all.unpriced_hours - 1.0).abs() < 1e-9 && (bill.all.usd - 0.4).abs() < 1e-9);
        assert_eq!(bill.all.usd_per_1000_images(), None);
        assert_eq!(Line::default().idle_share(), None);
    }
}
