//! What clients are told when something is not done: RFC 9457 documents with a stable code.

use axum::Json;
use axum::extract::multipart::{MultipartError, MultipartRejection};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::job::{Fault, JobId, Violation};
use crate::shell::client::{SubmitError, WatchError};
use crate::wire::event::ErrorDocument;
use crate::wire::http::ProblemDocument;

/// Seconds after which a client that was sent away for want of room may try again.
const ROOM_AGAIN_S: u64 = 5;
/// And one that was sent away because something does not answer.
const ANSWER_AGAIN_S: u64 = 2;

/// An answer that is none of the wanted ones.
#[derive(Clone, Debug, Default)]
pub(super) struct Problem {
    pub(super) document: ProblemDocument,
    /// When it is worth to try again, in seconds.
    pub(super) retry_after_s: Option<u64>,
    /// Whether a key would help.
    pub(super) wants_key: bool,
}

impl Problem {
    pub(super) fn new(status: StatusCode, code: &str, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Problem").to_owned();
        let document = ProblemDocument {
            code: code.to_owned(),
            status: status.as_u16(),
            title,
            detail: detail.into(),
            violations: Vec::new(),
        };
        Self { document, ..Self::default() }
    }

    /// Rules are broken.
    pub(super) fn invalid(violations: &[Violation]) -> Self {
        let ErrorDocument { code, message, violations } = ErrorDocument::invalid_request(violations);
        let mut problem = Self::new(StatusCode::UNPROCESSABLE_ENTITY, &code, message);
        problem.document.violations = violations;
        problem
    }

    /// There is no such job of this tenant.
    pub(super) fn unknown_job(job: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "unknown_job", format!("there is no job {job}"))
    }

    /// There was one.
    pub(super) fn gone(job: &JobId) -> Self {
        let detail = format!("the job {job} has ended, and its record was removed after its retention");
        Self::new(StatusCode::GONE, "gone", detail)
    }

    /// As interfaces say it whose word for a broken rule is a bad request.
    pub(super) fn into_bad_request(mut self) -> Self {
        if self.document.status == StatusCode::UNPROCESSABLE_ENTITY.as_u16() {
            self.document.status = StatusCode::BAD_REQUEST.as_u16();
        }
        self
    }

    /// NATS or the store does not answer.
    pub(super) fn unavailable(detail: impl Into<String>) -> Self {
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail);
        Self { retry_after_s: Some(ANSWER_AGAIN_S), ..problem }
    }
}

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        Self::unavailable(fault.to_string())
    }
}

impl From<MultipartRejection> for Problem {
    fn from(error: MultipartRejection) -> Self {
        Self::new(error.status(), "wrong_media_type", error.body_text())
    }
}

impl From<MultipartError> for Problem {
    fn from(error: MultipartError) -> Self {
        Self::new(error.status(), "invalid_body", error.body_text())
    }
}

impl From<SubmitError> for Problem {
    fn from(error: SubmitError) -> Self {
        let detail = error.to_string();
        let with = |status, code: &str| Self::new(status, code, detail.clone());
        match error {
            SubmitError::UnknownModel { .. } => with(StatusCode::NOT_FOUND, "unknown_model"),
            SubmitError::Invalid { violations } => Self::invalid(&violations),
            SubmitError::Conflict { .. } => with(StatusCode::CONFLICT, "job_id_conflict"),
            SubmitError::Gone { .. } => with(StatusCode::GONE, "gone"),
            SubmitError::QuotaReached { .. } => {
                Self { retry_after_s: Some(ROOM_AGAIN_S), ..with(StatusCode::TOO_MANY_REQUESTS, "quota_reached") }
            }
            SubmitError::QueueFull { .. } => {
                Self { retry_after_s: Some(ROOM_AGAIN_S), ..with(StatusCode::SERVICE_UNAVAILABLE, "queue_full") }
            }
            SubmitError::Api(_) | SubmitError::Bus(_) | SubmitError::Publish(_) => Self::unavailable(detail),
        }
    }
}

impl From<WatchError> for Problem {
    fn from(error: WatchError) -> Self {
        match error {
            WatchError::Unknown { job, .. } => Self::unknown_job(job.as_str()),
            WatchError::Gone { job, .. } => Self::gone(&job),
            WatchError::Closed | WatchError::Bus(_) => Self::unavailable(error.to_string()),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.answer(&self.document);
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response
    }
}

impl Problem {
    /// Its status and headers, with a body as the clients of some interface read it.
    pub(super) fn answer(&self, body: &impl Serialize) -> Response {
        let status = StatusCode::from_u16(self.document.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        let mut insert = |name: HeaderName, value: HeaderValue| drop(headers.insert(name, value));
        if let Some(seconds) = self.retry_after_s {
            insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.wants_key {
            insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
