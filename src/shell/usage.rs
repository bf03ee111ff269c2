//! What workers did, read back: every report of the bucket of usage since some time.
//!
//! It adds nothing up: `sched::bill` does.

use std::time::Duration;

use crate::job::{Fault, ModelName};
use crate::wire::subject;
use crate::wire::usage::{self, UsageReport};

use super::bus::Bus;
use super::stored;

/// The reports of all hours that begin at `since_unix_s` or later, oldest first. A page of the bucket is read at a time.
///
/// # Errors
/// A `Retry` fault when nobody answers.
pub async fn since(bus: &Bus, model: Option<&ModelName>, since_unix_s: i64) -> Result<Vec<UsageReport>, Fault> {
    let stream = subject::stream_of_bucket(subject::BUCKET_USAGE);
    let filter = subject::all_usage(model);
    let (mut next, mut reports) = (1, Vec::new());
    loop {
        let page = stored::page(bus, &stream, next, &filter, stored::PAGE_MAX).await?;
        let Some(last) = page.last() else { return Ok(reports) };
        next = last.sequence + 1;
        // Another build's report is nobody's.
        let read = page.iter().filter_map(|stored| usage::decode(&stored.body).ok());
        reports.extend(read.filter(|report| report.hour_unix_s >= since_unix_s));
    }
}

/// How many engines were busy in the mean, in each of so many hours from `begin_unix_s` on.
pub fn engines_by_hour(reports: &[UsageReport], begin_unix_s: i64, hours: usize) -> Vec<f64> {
    let mut engines = vec![0.0; hours];
    for report in reports {
        let hour = (report.hour_unix_s - begin_unix_s).div_euclid(3600);
        if let Some(engines) = usize::try_from(hour).ok().and_then(|hour| engines.get_mut(hour)) {
            *engines += report.gpu_ms / 3.6e6;
        }
    }
    engines
}

/// The beginning of the hour that was so long before `unix_ms`, in seconds.
pub fn hour_before(unix_ms: i64, ago: Duration) -> i64 {
    let since_ms = unix_ms.saturating_sub(i64::try_from(ago.as_millis()).unwrap_or(i64::MAX));
    since_ms.div_euclid(usage::HOUR_MS) * (usage::HOUR_MS / 1000)
}
