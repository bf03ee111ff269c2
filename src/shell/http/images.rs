//! The images of a job: where the store lets clients read them, or their bytes.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::jobs::job_id;
use super::problem::Problem;
use super::{Caller, Gateway};
use crate::job::Status;
use crate::shell::store::Found;
use crate::wire::event::StoredImage;
use crate::wire::http::JobDocument;

/// No image is larger.
const IMAGE_BYTES_MAX: usize = 256 << 20;

/// `GET /v1/jobs/{job}/images/{index}`
pub(super) async fn image(
    State(gateway): State<Arc<Gateway>>,
    caller: Caller,
    Path((job, index)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let id = job_id(&job)?;
    let record = gateway.record(&caller.tenant, &id).await?;
    let status = record.state.status;
    let JobDocument { images, .. } = JobDocument::of_record(id.as_str(), &record);
    let Some(image) = images.iter().find(|image| image.index.to_string() == index) else {
        let detail = match status {
            Status::Pending | Status::Processing => format!("the job {id} is {}: it has no image yet", status.as_str()),
            Status::Completed | Status::Failed | Status::Cancelled => {
                format!("the job {id} is {}, with {} images: there is no image {index}", status.as_str(), images.len())
            }
        };
        return Err(Problem::new(StatusCode::NOT_FOUND, "no_such_image", detail));
    };
    let url = match &gateway.store {
        // Signed anew: the one in the record may have expired.
        Some(store) => store.url_of(&image.key).await?,
        None => image.url.clone(),
    };
    if url.starts_with("http") {
        let location = HeaderValue::from_str(&url).map_err(|_| Problem::unavailable("the store's URL is none"))?;
        let headers = [(header::LOCATION, location), (header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
        return Ok((StatusCode::FOUND, headers).into_response());
    }
    gateway.image_answer(image).await
}

/// Where the gateway is, as the client of this request sees it.
pub(super) fn address(headers: &HeaderMap) -> String {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let scheme = text("x-forwarded-proto").unwrap_or("http");
    let host = text("x-forwarded-host").or_else(|| text("host")).unwrap_or("localhost");
    format!("{scheme}://{host}")
}

impl Gateway {
    /// Where a client of this request reads an image: at the store, or here.
    pub(super) async fn image_url(&self, job: &str, image: &StoredImage, headers: &HeaderMap) -> String {
        let at_store = match &self.store {
            Some(store) => store.url_of(&image.key).await.ok(),
            None => Some(image.url.clone()),
        };
        at_store
            .filter(|url| url.starts_with("http"))
            .unwrap_or_else(|| format!("{}/v1/jobs/{job}/images/{}", address(headers), image.index))
    }

    /// The bytes of an image.
    pub(super) async fn image_bytes(&self, image: &StoredImage) -> Result<axum::body::Bytes, Problem> {
        let Some(store) = &self.store else {
            let detail = "this gateway does not know the object store: start it with --store";
            return Err(Problem::new(StatusCode::NOT_IMPLEMENTED, "no_store", detail));
        };
        match store.find(&image.key, IMAGE_BYTES_MAX).await? {
            Found::Object(bytes) => Ok(bytes),
            Found::Nothing | Found::TooLarge { .. } => {
                Err(Problem::new(StatusCode::GONE, "image_gone", "the object store has removed the image"))
            }
        }
    }

    /// The bytes of an image, with what caches and browsers need to know.
    pub(super) async fn image_answer(&self, image: &StoredImage) -> Result<Response, Problem> {
        let bytes = self.image_bytes(image).await?;
        let text = |text: &str| HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""));
        let headers = [
            (header::CONTENT_TYPE, text(&image.content_type)),
            (header::ETAG, text(&format!("\"{}\"", image.sha256))),
            (header::CACHE_CONTROL, HeaderValue::from_static("private, max-age=31536000, immutable")),
            (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        ];
        Ok((headers, Body::from(bytes)).into_response())
    }
}
