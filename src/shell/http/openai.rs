//! OpenAI's Images API, below `/openai/v1`: for clients that have its package and another base URL.
//!
//! Its answers come when the job has ended.

use std::convert::Infallible;
use std::io::Cursor;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::multipart::MultipartRejection;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Multipart, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream::{self, Stream, StreamExt};
use image::{ExtendedColorType, ImageEncoder};
use serde_json::{Map, Value};
use tokio::sync::Semaphore;

use super::events::KEEP_ALIVE;
use super::jobs::{fields, idempotent_id};
use super::problem::Problem;
use super::waiting::{Client, ended};
use super::{Caller, Gateway};
use crate::job::{Tenant, Violation};
use crate::shell::client::Watch;
use crate::shell::inputs;
use crate::wire::event::{EventKind, Progress};
use crate::wire::openai::{self, Image, ResponseFormat, Wanted};

/// The largest body of `images/edits`: two pictures, uncompressed or nearly.
pub(super) const EDIT_BYTES_MAX: usize = 64 << 20;
/// A side of a mask: what no model makes, and what still fits in memory.
const MASK_SIDE_MAX: u32 = 4096;
/// Form fields that are not texts.
const NOT_TEXTS: [&str; 12] = [
    "n",
    "seed",
    "num_inference_steps",
    "guidance_scale",
    "guidance_rescale",
    "strength",
    "partial_images",
    "stream",
    "prompt_weighting",
    "loras",
    "cache",
    "output_compression",
];

/// A problem as OpenAI's packages read it.
#[derive(Debug)]
pub(super) struct Refused(Problem);

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self(problem.into_bad_request())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        self.0.answer(&openai::error(&self.0.document))
    }
}

/// `POST /openai/v1/images/generations`
pub(super) async fn generations(
    State(gateway): State<Arc<Gateway>>,
    caller: Result<Caller, Problem>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refused> {
    let tenant = caller?.tenant;
    let fields = fields(&headers, body)?;
    answer(gateway, tenant, &headers, fields, "image_generation").await
}

/// `POST /openai/v1/images/edits`
pub(super) async fn edits(
    State(gateway): State<Arc<Gateway>>,
    caller: Result<Caller, Problem>,
    headers: HeaderMap,
    form: Result<Multipart, MultipartRejection>,
) -> Result<Response, Refused> {
    let tenant = caller?.tenant;
    let fields = gateway.form_fields(&tenant, form.map_err(Problem::from)?).await?;
    answer(gateway, tenant, &headers, fields, "image_edit").await
}

/// `GET /openai/v1/models`
pub(super) async fn models(
    State(gateway): State<Arc<Gateway>>,
    caller: Result<Caller, Problem>,
) -> Result<Json<Value>, Refused> {
    caller?;
    Ok(Json(openai::models(&gateway.model_names().await?)))
}

async fn answer(
    gateway: Arc<Gateway>,
    tenant: Tenant,
    headers: &HeaderMap,
    fields: Map<String, Value>,
    kind: &'static str,
) -> Result<Response, Refused> {
    let Wanted { fields, response_format, stream } =
        openai::wanted(fields).map_err(|violations| Problem::invalid(&violations))?;
    let mut submission = gateway.submission(&tenant, fields, idempotent_id(&tenant, headers)?).await?;
    if let Some(partial_images) = stream {
        let defaults = gateway.model(Some(submission.model.as_str())).await?.defaults;
        let steps = submission.request.num_inference_steps.unwrap_or(defaults.num_inference_steps);
        submission.request.previews = openai::preview_every(steps, partial_images);
    }
    let (mut client, watch) = Arc::clone(&gateway).wait_for(submission, headers).await?;
    if stream.is_some() {
        let events = Sse::new(events(client, watch, kind)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
        return Ok(events.into_response());
    }
    let images = client.images(watch).await?;
    let mut data = Vec::with_capacity(images.len());
    for image in &images {
        data.push(match response_format {
            ResponseFormat::B64Json => {
                Image { b64_json: Some(STANDARD.encode(gateway.image_bytes(image).await?)), url: None }
            }
            ResponseFormat::Url => {
                Image { url: Some(gateway.image_url(client.job.as_str(), image, headers).await), b64_json: None }
            }
        });
    }
    Ok(Json(openai::images(gateway.clock.unix_ms() / 1000, &data)).into_response())
}

/// Partial images as they come, and the images.
fn events(client: Client, watch: Watch, kind: &'static str) -> impl Stream<Item = Result<Event, Infallible>> {
    let steps = stream::unfold(Some((client, watch, 0_u32)), move |state| async move {
        let (mut client, mut watch, partial_images) = state?;
        loop {
            let seen = tokio::select! {
                () = client.gateway.stop.cancelled() => return None,
                seen = watch.next() => seen.ok()?,
            };
            let now_s = client.gateway.clock.unix_ms() / 1000;
            if seen.kind == EventKind::Progress {
                let progress: Progress = serde_json::from_value(seen.event.data).ok()?;
                if let Some(data) = openai::partial_image(kind, partial_images, &progress, now_s) {
                    return Some((vec![event_of(&data)], Some((client, watch, partial_images + 1))));
                }
            } else if seen.kind.is_terminal() {
                client.has_seen_the_end();
                return Some((last_events(&client, seen.kind, seen.event.data, kind, now_s).await, None));
            }
        }
    });
    steps.flat_map(|events| stream::iter(events.into_iter().map(Ok)))
}

async fn last_events(client: &Client, ended_by: EventKind, data: Value, kind: &str, now_s: i64) -> Vec<Event> {
    let images = match ended(ended_by, data) {
        Ok(images) => images,
        Err(problem) => {
            let Value::Object(mut error) = openai::error(&Refused::from(problem).0.document) else { return Vec::new() };
            error.insert("type".to_owned(), "error".into());
            return vec![event_of(&Value::Object(error))];
        }
    };
    let mut events = Vec::with_capacity(images.len());
    for image in &images {
        let event = match client.gateway.image_bytes(image).await {
            Ok(bytes) => {
                let format = image.content_type.trim_start_matches("image/");
                openai::completed(kind, &STANDARD.encode(bytes), "auto", format, now_s)
            }
            Err(problem) => openai::error(&problem.document),
        };
        events.push(event_of(&event));
    }
    events
}

fn event_of(data: &Value) -> Event {
    Event::default().event(data["type"].as_str().unwrap_or("error")).data(data.to_string())
}

impl Gateway {
    /// The fields of a form, with its pictures where workers find them.
    async fn form_fields(&self, tenant: &Tenant, mut form: Multipart) -> Result<Map<String, Value>, Problem> {
        let mut fields = Map::new();
        let mut violations = Vec::new();
        while let Some(field) = form.next_field().await? {
            let name = field.name().unwrap_or_default().to_owned();
            match name.as_str() {
                "image" | "image[]" | "mask" => {
                    let bytes = field.bytes().await?;
                    let (name, bytes) = if name == "mask" {
                        match mask_beside(bytes).await? {
                            Ok(mask) => ("mask_image", mask),
                            Err(error) => {
                                violations.push(Violation::new("mask", error, "a picture with transparency"));
                                continue;
                            }
                        }
                    } else {
                        ("init_image", bytes)
                    };
                    match self.picture(tenant, bytes).await? {
                        Some(_) if fields.contains_key(name) => {
                            violations.push(Violation::new("image", "several", "one picture"));
                        }
                        Some(source) => drop(fields.insert(name.to_owned(), source.into())),
                        None => violations.push(Violation::new("image", "(bytes)", "a PNG, JPEG or WebP")),
                    }
                }
                _ => {
                    let text = field.text().await?;
                    let value = if NOT_TEXTS.contains(&name.as_str()) {
                        serde_json::from_str(&text).unwrap_or(Value::String(text))
                    } else {
                        Value::String(text)
                    };
                    fields.insert(name, value);
                }
            }
        }
        if !fields.contains_key("init_image") && violations.is_empty() {
            violations.push(Violation::new("image", "nothing", "a PNG, JPEG or WebP"));
        }
        if violations.is_empty() { Ok(fields) } else { Err(Problem::invalid(&violations)) }
    }

    /// Puts a picture where workers find it; `None` if it is none.
    pub(super) async fn picture(&self, tenant: &Tenant, bytes: Bytes) -> Result<Option<String>, Problem> {
        let Some(media_type) = inputs::media_type(&bytes) else { return Ok(None) };
        Ok(Some(match &self.store {
            Some(store) => inputs::put(store, tenant, bytes, media_type).await?,
            None => inputs::data_url(&bytes, media_type),
        }))
    }
}

/// [`mask_of_transparency`] on a thread of its own, where it holds nobody up; one after the other, for the memory that it takes.
async fn mask_beside(bytes: Bytes) -> Result<Result<Bytes, image::ImageError>, Problem> {
    static ALONE: Semaphore = Semaphore::const_new(1);
    let _alone = ALONE.acquire().await;
    let made = tokio::task::spawn_blocking(move || mask_of_transparency(&bytes)).await;
    made.map_err(|_| Problem::unavailable("the mask could not be read"))
}

/// Theirs is transparent where the picture is made anew, ours is white there. A PNG.
fn mask_of_transparency(bytes: &[u8]) -> Result<Bytes, image::ImageError> {
    let mut reader = image::ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    let mut limits = image::Limits::default();
    limits.max_image_width = Some(MASK_SIDE_MAX);
    limits.max_image_height = Some(MASK_SIDE_MAX);
    reader.limits(limits);
    let picture = reader.decode()?.into_rgba8();
    let mask: Vec<u8> = picture.pixels().map(|pixel| 255 - pixel.0[3]).collect();
    let mut png = Vec::new();
    image::codecs::png::PngEncoder::new(&mut png).write_image(
        &mask,
        picture.width(),
        picture.height(),
        ExtendedColorType::L8,
    )?;
    Ok(png.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_transparent_is_made_anew() {
        let picture = image::RgbaImage::from_fn(2, 1, |x, _| image::Rgba([9, 9, 9, if x == 0 { 0 } else { 255 }]));
        let mut png = Vec::new();
        picture.write_to(&mut Cursor::new(&mut png), image::ImageFormat::Png).unwrap();
        let mask = image::load_from_memory(&mask_of_transparency(&png).unwrap()).unwrap().into_luma8();
        assert_eq!(mask.into_raw(), [255, 0]);
        assert!(mask_of_transparency(b"no picture").is_err());
    }
}
