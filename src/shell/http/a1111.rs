//! The interface of AUTOMATIC1111's web UI, below `/sdapi/v1`: for clients that have another host to ask.
//!
//! Nothing is set for all: a model is chosen by `override_settings`, and progress and interruption are of a task, or of the
//! caller's newest one.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::jobs::{LISTED_MAX, fields, id_of_key};
use super::problem::Problem;
use super::tutorial::Detail;
use super::waiting::ended;
use super::{Caller, Gateway};
use crate::job::{JobId, Status, Tenant, Violation};
use crate::shell::cancel::Keep;
use crate::shell::client;
use crate::wire::a1111::{self, Wanted};
use crate::wire::event::{Cancelled, EventKind};

/// The largest body of `img2img`: two pictures in Base64.
pub(super) const IMG2IMG_BYTES_MAX: usize = 64 << 20;
/// Steps between the pictures of `progress`, as the web UI has them.
const PREVIEW_EVERY: u32 = 10;

/// `POST /sdapi/v1/txt2img`, and `img2img`, which begins with a picture
pub(super) async fn images(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, Detail> {
    let tenant = caller.tenant;
    let asked = fields(&headers, body)?;
    let Wanted { mut fields, init_image, mask, task, send_images } =
        a1111::wanted(asked.clone()).map_err(|violations| Problem::invalid(&violations))?;
    // Before anything is waited for: pictures are large, and many may wait.
    let asked = echo(asked);
    for (name, ours, picture) in [("init_images", "init_image", init_image), ("mask", "mask_image", mask)] {
        if let Some(picture) = picture {
            fields.insert(ours.to_owned(), gateway.picture_of_text(&tenant, name, &picture).await?.into());
        }
    }
    let job = task.map(|task| id_of_key(&tenant, &task, "force_task_id")).transpose()?;
    let mut submission = gateway.submission(&tenant, fields, job).await?;
    submission.request.previews.get_or_insert(PREVIEW_EVERY);
    let model = gateway.model(Some(submission.model.as_str())).await?;
    let request = submission.request.clone();
    let (mut client, watch) = Arc::clone(&gateway).wait_for(submission, &headers).await?;
    let stored = match client.end(watch).await? {
        // What was interrupted is shown as far as it came.
        (EventKind::Cancelled, data) => {
            serde_json::from_value(data).map(|Cancelled { images, .. }| images).unwrap_or_default()
        }
        (kind, data) => ended(kind, data)?,
    };
    let mut pictures = Vec::new();
    if send_images {
        for image in &stored {
            pictures.push(STANDARD.encode(gateway.image_bytes(image).await?));
        }
    }
    Ok(Json(a1111::images(&pictures, &stored, &asked, &request, &model)))
}

/// What was asked, without the pictures.
fn echo(mut asked: Map<String, Value>) -> Map<String, Value> {
    asked.remove("init_images");
    asked.remove("mask");
    asked
}

/// Which task is meant; the caller's newest when it says nothing.
#[derive(Debug, Deserialize)]
pub(super) struct Task {
    id_task: Option<String>,
    #[serde(default)]
    skip_current_image: bool,
}

/// `GET /sdapi/v1/progress`
pub(super) async fn progress(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    Query(task): Query<Task>,
) -> Result<Json<Value>, Detail> {
    let job = match gateway.task(&caller.tenant, &task).await? {
        // Of a task that nobody has begun, and of none, the web UI says the same.
        Some(job) => gateway.job(&caller.tenant, &job).await.ok(),
        None => None,
    };
    Ok(Json(a1111::progress(job.as_ref(), !task.skip_current_image)))
}

/// `POST /sdapi/v1/interrupt`: the images are answered as far as they are.
pub(super) async fn interrupt(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    Query(task): Query<Task>,
) -> Result<Json<Value>, Detail> {
    if let Some(job) = gateway.task(&caller.tenant, &task).await? {
        gateway.cancel(&caller.tenant, &job, Keep::Partial).await?;
    }
    Ok(Json(json!({})))
}

/// `GET /sdapi/v1/samplers`: those that any model has.
pub(super) async fn samplers(State(gateway): State<Arc<Gateway>>, _: Caller) -> Result<Json<Value>, Detail> {
    let served = gateway.served().await?;
    let all: Vec<_> = served.iter().flat_map(|served| served.manifest.schedulers.iter().copied()).collect();
    Ok(Json(a1111::samplers(&all)))
}

/// `GET /sdapi/v1/schedulers`
pub(super) async fn schedulers(_: Caller) -> Json<Value> {
    Json(a1111::schedulers())
}

/// `GET /sdapi/v1/sd-models`
pub(super) async fn models(State(gateway): State<Arc<Gateway>>, _: Caller) -> Result<Json<Value>, Detail> {
    Ok(Json(a1111::models(&gateway.model_names().await?)))
}

/// `GET /sdapi/v1/options`
pub(super) async fn options(State(gateway): State<Arc<Gateway>>, _: Caller) -> Result<Json<Value>, Detail> {
    Ok(Json(gateway.options().await?))
}

/// `POST /sdapi/v1/options`: a choice that is no change is taken.
pub(super) async fn set_options(
    State(gateway): State<Arc<Gateway>>,
    _: Caller,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, Detail> {
    let asked = fields(&headers, body)?;
    let now = gateway.options().await?;
    let changed = asked.iter().filter(|(name, value)| now.get(name.as_str()) != Some(value));
    let violation = |(name, value): (&String, &Value)| {
        Violation::new(name, value, "nothing else: options are the same for all; choose by override_settings")
    };
    let violations: Vec<Violation> = changed.map(violation).collect();
    if violations.is_empty() { Ok(Json(json!({}))) } else { Err(Problem::invalid(&violations).into()) }
}

impl Gateway {
    async fn options(&self) -> Result<Value, Problem> {
        Ok(a1111::options(self.model_names().await?.first().map(String::as_str)))
    }

    /// The job of a task, or the tenant's newest that has not ended.
    async fn task(&self, tenant: &Tenant, task: &Task) -> Result<Option<JobId>, Problem> {
        if let Some(named) = &task.id_task {
            return id_of_key(tenant, named, "id_task").map(Some);
        }
        let listed = client::list_jobs(&self.bus, Some(tenant), false, LISTED_MAX, |_| true).await?;
        let open = |status: Status| {
            listed.iter().find(|listed| listed.record.as_ref().is_some_and(|record| record.state.status == status))
        };
        let newest = open(Status::Processing).or_else(|| open(Status::Pending));
        Ok(newest.and_then(|listed| listed.key.split_once('.')?.1.parse().ok()))
    }

    /// Puts a picture in Base64, with or without what makes it a data URL, where workers find it.
    async fn picture_of_text(&self, tenant: &Tenant, field: &str, text: &str) -> Result<String, Problem> {
        let wrong = || Problem::invalid(&[Violation::new(field, "(a text)", "the Base64 of a PNG, JPEG or WebP")]);
        let encoded = text.split_once(";base64,").map_or(text, |(_, encoded)| encoded);
        let bytes = STANDARD.decode(encoded).map_err(|_| wrong())?;
        self.picture(tenant, bytes.into()).await?.ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_not_sent_back() {
        let asked = json!({"prompt": "p", "init_images": ["AAAA"], "mask": "AAAA"});
        let Value::Object(asked) = asked else { panic!("{asked}") };
        assert_eq!(Value::Object(echo(asked)), json!({"prompt": "p"}));
    }
}
