//! Replicate's predictions, below `/replicate/v1`: for clients that have its package and another base URL.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::images::address;
use super::jobs::{LISTED_MAX, fields, idempotent_id, job_id, preferred_wait};
use super::problem::Problem;
use super::{Caller, Gateway};
use crate::job::Tenant;
use crate::shell::cancel::Keep;
use crate::shell::client;
use crate::shell::webhooks::keep;
use crate::wire::http::JobDocument;
use crate::wire::replicate;

/// A problem as Replicate's packages read it.
#[derive(Debug)]
pub(super) struct Detail(Problem);

impl From<Problem> for Detail {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Detail {
    fn into_response(self) -> Response {
        self.0.answer(&replicate::error(&self.0.document))
    }
}

type Caught<T> = Result<T, Problem>;

/// `POST /replicate/v1/predictions`
pub(super) async fn create(
    State(gateway): State<Arc<Gateway>>,
    caller: Caught<Caller>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Detail> {
    let tenant = caller?.tenant;
    let body = fields(&headers, body)?;
    let version = body.get("version").and_then(Value::as_str).map(|text| replicate::model_of_version(text).to_owned());
    gateway.predict(&tenant, &headers, body, version.as_deref()).await
}

/// `POST /replicate/v1/models/{owner}/{name}/predictions`
pub(super) async fn create_of_model(
    State(gateway): State<Arc<Gateway>>,
    caller: Caught<Caller>,
    Path((_, name)): Path<(String, String)>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Detail> {
    let tenant = caller?.tenant;
    let body = fields(&headers, body)?;
    gateway.predict(&tenant, &headers, body, Some(&name)).await
}

/// `GET /replicate/v1/predictions/{id}`
pub(super) async fn get(
    State(gateway): State<Arc<Gateway>>,
    caller: Caught<Caller>,
    headers: HeaderMap,
    Path(job): Path<String>,
) -> Result<Json<Value>, Detail> {
    let job = gateway.job(&caller?.tenant, &job_id(&job)?).await?;
    Ok(Json(gateway.prediction(&job, &headers).await))
}

/// `GET /replicate/v1/predictions`
pub(super) async fn list(
    State(gateway): State<Arc<Gateway>>,
    caller: Caught<Caller>,
    headers: HeaderMap,
) -> Result<Json<Value>, Detail> {
    let listed = client::list_jobs(&gateway.bus, Some(&caller?.tenant), false, LISTED_MAX, |_| true).await;
    let mut results = Vec::new();
    for client::Listed { key, record } in listed.map_err(Problem::from)? {
        if let (Some((_, id)), Some(record)) = (key.split_once('.'), record) {
            results.push(gateway.prediction(&JobDocument::of_record(id, &record), &headers).await);
        }
    }
    Ok(Json(json!({ "previous": null, "next": null, "results": results })))
}

/// `POST /replicate/v1/predictions/{id}/cancel`. What has ended stays as it is, as there.
pub(super) async fn cancel(
    State(gateway): State<Arc<Gateway>>,
    caller: Caught<Caller>,
    headers: HeaderMap,
    Path(job): Path<String>,
) -> Result<Json<Value>, Detail> {
    let (tenant, job) = (caller?.tenant, job_id(&job)?);
    gateway.cancel(&tenant, &job, Keep::Nothing).await?;
    let job = gateway.job(&tenant, &job).await?;
    Ok(Json(gateway.prediction(&job, &headers).await))
}

/// `GET /replicate/v1/webhooks/default/secret`: the caller's own.
pub(super) async fn secret(State(gateway): State<Arc<Gateway>>, caller: Caught<Caller>) -> Result<Json<Value>, Detail> {
    let secrets = keep::secrets(&gateway.bus, &caller?.tenant).await.map_err(Problem::from)?;
    Ok(Json(json!({ "key": secrets.current.reveal() })))
}

impl Gateway {
    async fn predict(
        &self,
        tenant: &Tenant,
        headers: &HeaderMap,
        body: Map<String, Value>,
        model: Option<&str>,
    ) -> Result<Response, Detail> {
        let fields = replicate::fields(body, model).map_err(|violations| Problem::invalid(&violations))?;
        let submission = self.submission(tenant, fields, idempotent_id(tenant, headers)?).await?;
        self.submit(&submission, preferred_wait(headers)).await?;
        let job = self.job(tenant, &submission.job).await?;
        Ok((StatusCode::CREATED, Json(self.prediction(&job, headers).await)).into_response())
    }

    async fn prediction(&self, job: &JobDocument, headers: &HeaderMap) -> Value {
        let mut outputs = Vec::with_capacity(job.images.len());
        for image in &job.images {
            outputs.push(self.image_url(&job.id, image, headers).await);
        }
        replicate::prediction(job, &outputs, &address(headers))
    }
}
