//! KServe's Open Inference Protocol below `/v2`, as Triton's HTTP clients speak it, and TorchServe's `/predictions` and `/ping`.
//!
//! Its answers come when the job has ended.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::multipart::MultipartRejection;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Multipart, Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::jobs::{body_of, fields, idempotent_id};
use super::problem::Problem;
use super::{Caller, Gateway, health};
use crate::job::{JobId, Tenant, Violation};
use crate::wire::event::StoredImage;
use crate::wire::kserve::{self, Inference, Output, OutputName};

/// How many bytes of a body are JSON, where tensors follow.
const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// A problem as Triton's clients read it.
#[derive(Debug)]
pub(super) struct Refused(Problem);

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self(problem.into_bad_request())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        self.0.answer(&json!({ "error": self.0.document.detail }))
    }
}

/// `GET /v2`
pub(super) async fn server() -> Json<Value> {
    Json(kserve::server())
}

/// `GET /v2/health/live`
pub(super) async fn live() -> StatusCode {
    StatusCode::OK
}

/// `GET /v2/health/ready`
pub(super) async fn ready(state: State<Arc<Gateway>>) -> StatusCode {
    health::ready(state).await.0
}

/// What a path names besides the model, such as a version, is not looked at: there is one of each.
#[derive(Debug, Deserialize)]
pub(super) struct Named {
    model: String,
}

/// `GET /v2/models/{model}`
pub(super) async fn model(
    State(gateway): State<Arc<Gateway>>,
    caller: Result<Caller, Problem>,
    Path(Named { model }): Path<Named>,
) -> Result<Json<Value>, Refused> {
    caller?;
    Ok(Json(kserve::metadata(gateway.model(Some(&model)).await?.name.as_str())))
}

/// `GET /v2/models/{model}/ready`
pub(super) async fn model_ready(
    State(gateway): State<Arc<Gateway>>,
    caller: Result<Caller, Problem>,
    Path(Named { model }): Path<Named>,
) -> Result<Json<Value>, Refused> {
    caller?;
    Ok(Json(json!({ "name": gateway.model(Some(&model)).await?.name.as_str(), "ready": true })))
}

/// `POST /v2/models/{model}/infer`
pub(super) async fn infer(
    State(gateway): State<Arc<Gateway>>,
    caller: Result<Caller, Problem>,
    Path(Named { model }): Path<Named>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refused> {
    let tenant = caller?.tenant;
    let length = match headers.get(&HEADER_LENGTH) {
        None => None,
        Some(value) => Some(value.to_str().ok().and_then(|text| text.parse().ok()).ok_or_else(|| {
            let violation = Violation::new(HEADER_LENGTH.as_str(), "(a header)", "the bytes of the JSON part");
            Problem::invalid(&[violation])
        })?),
    };
    let Inference { id, mut fields, outputs } =
        kserve::parse(&body_of(body)?, length).map_err(|violations| Problem::invalid(&violations))?;
    fields.insert("model".to_owned(), model.as_str().into());
    let (job, images) = Arc::clone(&gateway).made(&tenant, fields, &headers).await?;
    let mut tensors = Vec::with_capacity(outputs.len());
    for Output { name, form } in outputs {
        let mut elements = Vec::with_capacity(images.len());
        for image in &images {
            elements.push(match name {
                OutputName::Image => gateway.image_bytes(image).await?,
                OutputName::ImageUrl => gateway.image_url(job.as_str(), image, &headers).await.into(),
            });
        }
        tensors.push((Output { name, form }, elements));
    }
    let (body, length) = kserve::answer(&model, id.as_deref(), &tensors);
    let mut response = body.into_response();
    let media_type = if length.is_some() { "application/octet-stream" } else { "application/json" };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    if let Some(length) = length {
        response.headers_mut().insert(HEADER_LENGTH, HeaderValue::from(length));
    }
    Ok(response)
}

/// `GET /ping`
pub(super) async fn ping(state: State<Arc<Gateway>>) -> (StatusCode, Json<Value>) {
    let (status, _) = health::ready(state).await;
    let word = if status == StatusCode::OK { "Healthy" } else { "Unhealthy" };
    (status, Json(json!({ "status": word })))
}

/// `POST /predictions/{model}`: the fields of a request as JSON, or a prompt as text, as the body or as `data` of a form;
/// answered with the first image.
pub(super) async fn predictions(
    State(gateway): State<Arc<Gateway>>,
    caller: Result<Caller, Problem>,
    Path(Named { model }): Path<Named>,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Refused> {
    let tenant = caller?.tenant;
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut fields = if media_type.contains("json") {
        fields(&headers, Bytes::from_request(request, &()).await)?
    } else if media_type.starts_with("multipart/form-data") {
        let data = data_of_form(Multipart::from_request(request, &()).await).await?;
        match serde_json::from_slice(&data) {
            Ok(fields) => fields,
            Err(_) => of_prompt(&data),
        }
    } else {
        of_prompt(&body_of(Bytes::from_request(request, &()).await)?)
    };
    fields.insert("model".to_owned(), model.into());
    let (_, images) = Arc::clone(&gateway).made(&tenant, fields, &headers).await?;
    let first = images.first().ok_or_else(|| Problem::unavailable("the job has no image"))?;
    Ok(gateway.image_answer(first).await?)
}

fn of_prompt(text: &[u8]) -> Map<String, Value> {
    Map::from_iter([("prompt".to_owned(), String::from_utf8_lossy(text).into())])
}

/// What stands in a form under the name that TorchServe has for it.
async fn data_of_form(form: Result<Multipart, MultipartRejection>) -> Result<Bytes, Problem> {
    let mut form = form?;
    while let Some(field) = form.next_field().await? {
        if field.name() == Some("data") {
            return Ok(field.bytes().await?);
        }
    }
    Err(Problem::invalid(&[Violation::new("data", "nothing", "a prompt, or the fields of a request as JSON")]))
}

impl Gateway {
    /// Makes what the fields ask for, while the client waits.
    async fn made(
        self: Arc<Self>,
        tenant: &Tenant,
        fields: Map<String, Value>,
        headers: &HeaderMap,
    ) -> Result<(JobId, Vec<StoredImage>), Problem> {
        let submission = self.submission(tenant, fields, idempotent_id(tenant, headers)?).await?;
        let (mut client, watch) = self.wait_for(submission, headers).await?;
        let images = client.images(watch).await?;
        Ok((client.job.clone(), images))
    }
}
