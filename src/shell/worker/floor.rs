//! Finds out whether this worker stays though it has nothing to do: the floor is a setting or the model's plan, whichever is
//! higher, and [`scale::stays`] says who makes it up.
//!
//! It starts nobody, and it ends nobody that has something to do.

use std::time::Duration;

use tokio::sync::mpsc;

use crate::job::{ModelName, WorkerId};
use crate::sched::Mono;
use crate::sched::scale::{self, Seniority};
use crate::wire::scale::{ScalePlan, hour_of_week};
use crate::wire::worker::WorkerState;

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
    /// Workers that are kept whatever the plan says.
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
                plan_at = Some(now.after(PLAN_EVERY));
                match scaler::plan(&self.bus, &self.model).await {
                    Ok(found) => plan = found,
                    // The old one is as good as any.
                    Err(fault) => tracing::debug!(%fault, "worker.plan"),
                }
            }
            let hour = hour_of_week(self.clock.unix_ms());
            let planned = plan.as_ref().and_then(|plan| plan.hours.get(hour)).map_or(0, |hour| hour.workers_min);
            let floor = self.workers_min.max(planned);
            let stays_now = if floor == 0 { false } else { self.is_of(floor).await.unwrap_or(stays) };
            if stays_now != stays {
                stays = stays_now;
                if facts.send(Fact::Stay(stays)).is_err() {
                    return;
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// `None` when nobody answers.
    async fn is_of(&self, floor: u32) -> Option<bool> {
        let reports = fleet::worker_reports(&self.bus, &self.model).await;
        let reports = reports.inspect_err(|fault| tracing::debug!(%fault, "worker.floor")).ok()?;
        let ready: Vec<Seniority<'_>> = reports
            .iter()
            .filter(|report| report.state == WorkerState::Ready)
            .map(|report| (report.since_unix_ms, report.worker.as_str()))
            .collect();
        Some(scale::stays((self.ready_unix_ms, self.worker.as_str()), &ready, floor))
    }
}
