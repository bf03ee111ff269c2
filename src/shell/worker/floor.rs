//! Finds out whether this worker stays though it has nothing to do: a setting says how many of its capacity do, and the model's
//! plan how many of all. [`scale::stays`] says which.
//!
//! It starts nobody, and it ends nobody that has something to do.

use std::time::Duration;

use tokio::sync::mpsc;

use crate::job::{Capacity, ModelName, WorkerId};
use crate::sched::Mono;
use crate::sched::scale::{self, Seniority};
use crate::wire::scale::{ScalePlan, hour_of_week};
use crate::wire::worker::{WorkerReport, WorkerState};

use super::super::bus::Bus;
use super::super::clock::Clock;
use super::super::{fleet, scaler};
use super::Fact;

/// Between two looks at who is there.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// And at the plan.
const PLAN_EVERY: Duration = Duration::from_secs(60);

/// What it takes to find out.
pub(super) struct Floor {
    pub(super) bus: Bus,
    pub(super) clock: Clock,
    pub(super) model: ModelName,
    pub(super) worker: WorkerId,
    /// Since when the worker is ready.
    pub(super) ready_unix_ms: i64,
    pub(super) capacity: Capacity,
    /// Workers of this capacity that are kept whatever the plan says.
    pub(super) workers_min: u32,
}

impl Floor {
    /// Tells of every change, until nobody listens.
    pub(super) async fn watch(self, facts: mpsc::UnboundedSender<Fact>) {
        let (mut plan, mut plan_at): (Option<ScalePlan>, Option<Mono>) = (None, None);
        let mut stays = false;
        loop {
            let now = self.clock.now();
            if plan_at.is_none_or(|at| now >= at) {
                match scaler::plan(&self.bus, &self.model).await {
                    Ok(found) => (plan, plan_at) = (found, Some(now.after(PLAN_EVERY))),
                    // The old one is as good as any, until the next look.
                    Err(fault) => tracing::debug!(%fault, "worker.plan"),
                }
            }
            let hour = hour_of_week(self.clock.unix_ms());
            let planned = plan.as_ref().and_then(|plan| plan.hours.get(hour)).map_or(0, |hour| hour.workers_min);
            let is_asked = planned > 0 || self.workers_min > 0;
            let stays_now = is_asked && self.is_among(planned).await.unwrap_or(stays);
            if stays_now != stays {
                stays = stays_now;
                if facts.send(Fact::Stay(stays)).is_err() {
                    return;
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Whether it is among those that stay, of its capacity or of the `planned` of all; `None` when nobody answers.
    async fn is_among(&self, planned: u32) -> Option<bool> {
        let reports = fleet::worker_reports(&self.bus, &self.model).await;
        let reports = reports.inspect_err(|fault| tracing::debug!(%fault, "worker.floor")).ok()?;
        let own = (self.ready_unix_ms, self.worker.as_str());
        let ready = || reports.iter().filter(|report| report.state == WorkerState::Ready);
        let all: Vec<_> = ready().map(seniority).collect();
        let alike: Vec<_> =
            ready().filter(|report| fleet::capacity_of(report) == self.capacity).map(seniority).collect();
        Some(scale::stays(own, &all, planned) || scale::stays(own, &alike, self.workers_min))
    }
}

fn seniority(report: &WorkerReport) -> Seniority<'_> {
    (report.since_unix_ms, report.worker.as_str())
}
