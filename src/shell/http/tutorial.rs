//! The shape that tutorials of FastAPI with Redis have: `POST /generate`, `GET` and `DELETE /jobs/{id}`, `/ws/jobs/{id}`. For
//! front ends that were written against one of those, it answers as they do, errors included.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::events::follow;
use super::jobs::{Stopped, fields, idempotent_id, job_id};
use super::problem::Problem;
use super::{Caller, Gateway};
use crate::job::{Status, Tenant};
use crate::shell::cancel::Keep;
use crate::shell::client::Watch;
use crate::wire::http::JobDocument;

/// A problem as FastAPI tells it.
#[derive(Debug)]
pub(super) struct Detail(Problem);

impl From<Problem> for Detail {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Detail {
    fn into_response(self) -> Response {
        let document = &self.0.document;
        let detail = if document.violations.is_empty() {
            json!(document.detail)
        } else {
            let one = |violation: &crate::wire::event::ViolationDocument| {
                let message = format!("{} is not allowed: {}", violation.value, violation.allowed);
                json!({ "loc": ["body", violation.field], "msg": message, "type": "value_error" })
            };
            document.violations.iter().map(one).collect()
        };
        self.0.answer(&json!({ "detail": detail }))
    }
}

/// A job as these front ends show it. `progress` is a percentage.
fn document(job: &JobDocument, image_url: Option<String>) -> Value {
    let progress = match (job.status.as_str(), &job.progress) {
        ("completed", _) => 100,
        (_, Some(progress)) => progress.step * 100 / progress.steps.max(1),
        (_, None) => 0,
    };
    json!({
        "job_id": job.id, "status": job.status, "queue_position": job.queue_position,
        "estimated_time": job.estimated_time, "progress": progress, "image_url": image_url,
        "error": job.error.as_ref().map(|error| &error.message),
    })
}

impl Gateway {
    async fn tutorial(&self, job: &JobDocument, headers: &HeaderMap) -> Value {
        let image_url = match job.images.first() {
            Some(image) => Some(self.image_url(&job.id, image, headers).await),
            None => None,
        };
        document(job, image_url)
    }
}

/// `POST /generate`
pub(super) async fn generate(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, Detail> {
    let fields = fields(&headers, body)?;
    let submission = gateway.submission(&caller.tenant, fields, idempotent_id(&caller.tenant, &headers)?).await?;
    gateway.submit(&submission, None).await?;
    let job = gateway.job(&caller.tenant, &submission.job).await?;
    Ok(Json(gateway.tutorial(&job, &headers).await))
}

/// `GET /jobs/{job}`
pub(super) async fn show(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    headers: HeaderMap,
    Path(job): Path<String>,
) -> Result<Json<Value>, Detail> {
    let job = gateway.job(&caller.tenant, &job_id(&job)?).await?;
    Ok(Json(gateway.tutorial(&job, &headers).await))
}

/// `DELETE /jobs/{job}`
pub(super) async fn cancel(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    headers: HeaderMap,
    Path(job): Path<String>,
) -> Result<Json<Value>, Detail> {
    let job = job_id(&job)?;
    match gateway.cancel(&caller.tenant, &job, Keep::Nothing).await? {
        Stopped::Now | Stopped::Soon | Stopped::Before(Status::Cancelled) => {}
        Stopped::Before(status) => {
            let detail = format!("the job is {} and cannot be cancelled", status.as_str());
            return Err(Problem::new(StatusCode::BAD_REQUEST, "job_ended", detail).into());
        }
    }
    let job = gateway.job(&caller.tenant, &job).await?;
    Ok(Json(gateway.tutorial(&job, &headers).await))
}

/// `/ws/jobs/{job}`
pub(super) async fn socket(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    headers: HeaderMap,
    Path(job): Path<String>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Detail> {
    let watch = follow(&gateway, &caller, &job).await?;
    let upgrade =
        upgrade.map_err(|error| Problem::new(StatusCode::UPGRADE_REQUIRED, "no_websocket", error.to_string()))?;
    let stop = gateway.stop.clone();
    Ok(upgrade.on_upgrade(async move |socket| send(&gateway, socket, &caller.tenant, watch, &headers, stop).await))
}

/// The job anew whenever something has happened.
async fn send(
    gateway: &Gateway,
    mut socket: WebSocket,
    tenant: &Tenant,
    mut watch: Watch,
    headers: &HeaderMap,
    stop: CancellationToken,
) {
    loop {
        let seen = tokio::select! {
            () = stop.cancelled() => break,
            said = socket.recv() => match said {
                Some(Ok(_)) => continue,
                Some(Err(_)) | None => return,
            },
            seen = watch.next() => seen,
        };
        let Ok(seen) = seen else { break };
        let Ok(job) = gateway.job(tenant, watch.job()).await else { break };
        let text = gateway.tutorial(&job, headers).await.to_string();
        if socket.send(Message::Text(text.into())).await.is_err() {
            return;
        }
        if seen.kind.is_terminal() {
            break;
        }
    }
    let _ = socket.send(Message::Close(None)).await;
}
