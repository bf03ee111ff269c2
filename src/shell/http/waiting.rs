//! Clients whose answer comes when the job has ended. Who leaves before takes the job along, unless an Idempotency-Key named
//! it, so that it can be had later.

use std::sync::Arc;

use axum::http::{HeaderMap, StatusCode};
use serde_json::Value;

use super::Gateway;
use super::jobs::IDEMPOTENCY_KEY;
use super::problem::Problem;
use crate::job::{JobId, Tenant};
use crate::shell::cancel::Keep;
use crate::shell::client::{Submission, Watch};
use crate::wire::event::{Completed, EventKind, Failed, StoredImage};

/// Somebody who waits for a job. Dropped before the job has ended, the job is cancelled, if nobody can come back for it.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) gateway: Arc<Gateway>,
    tenant: Tenant,
    pub(super) job: JobId,
    leaves: bool,
}

impl Gateway {
    /// Submits a job for a client that waits for it.
    pub(super) async fn wait_for(
        self: Arc<Self>,
        submission: Submission,
        headers: &HeaderMap,
    ) -> Result<(Client, Watch), Problem> {
        let (_, watch) = self.submit_and_follow(&submission).await?;
        let leaves = !headers.contains_key(IDEMPOTENCY_KEY);
        Ok((Client { gateway: self, tenant: submission.tenant, job: submission.job, leaves }, watch))
    }
}

impl Client {
    /// How the job ended: its terminal event.
    pub(super) async fn end(&mut self, mut watch: Watch) -> Result<(EventKind, Value), Problem> {
        loop {
            let seen = watch.next().await?;
            if seen.kind.is_terminal() {
                self.has_seen_the_end();
                return Ok((seen.kind, seen.event.data));
            }
        }
    }

    /// What the job has become.
    pub(super) async fn images(&mut self, watch: Watch) -> Result<Vec<StoredImage>, Problem> {
        let (kind, data) = self.end(watch).await?;
        ended(kind, data)
    }

    /// There is nothing left to cancel.
    pub(super) fn has_seen_the_end(&mut self) {
        self.leaves = false;
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if !self.leaves {
            return;
        }
        let (gateway, tenant, job) = (Arc::clone(&self.gateway), self.tenant.clone(), self.job.clone());
        // Of a job that has ended this changes nothing.
        tokio::spawn(async move {
            if let Err(fault) = gateway.canceller.cancel(&tenant, &job, Keep::Nothing).await {
                tracing::debug!(%fault, %tenant, %job, "gateway.leave");
            }
        });
    }
}

/// The images of a terminal event, or why there are none.
pub(super) fn ended(kind: EventKind, data: Value) -> Result<Vec<StoredImage>, Problem> {
    let unreadable = |error: serde_json::Error| Problem::unavailable(format!("the job's event: {error}"));
    match kind {
        EventKind::Completed => Ok(serde_json::from_value::<Completed>(data).map_err(unreadable)?.images),
        EventKind::Failed => {
            let Failed { error, .. } = serde_json::from_value(data).map_err(unreadable)?;
            let status = match error.code.as_str() {
                "invalid_request" => StatusCode::UNPROCESSABLE_ENTITY,
                "deadline_exceeded" => StatusCode::GATEWAY_TIMEOUT,
                _ => StatusCode::INTERNAL_SERVER_ERROR,
            };
            let mut problem = Problem::new(status, &error.code, error.message);
            problem.document.violations = error.violations;
            Err(problem)
        }
        EventKind::Cancelled
        | EventKind::Accepted
        | EventKind::Started
        | EventKind::Progress
        | EventKind::Checkpoint => Err(Problem::new(StatusCode::CONFLICT, "cancelled", "the job was cancelled")),
    }
}
