//! What the gateway's own HTTP interface answers with, below `/v1`. Requests are [`super::request::RequestDocument`]s with
//! two more fields.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::event::{ErrorDocument, Progress, StoredImage, Timings, ViolationDocument};
use super::record::Record;
use super::time::rfc3339;
use super::worker::{WorkerReport, WorkerState};
use crate::job::Status;

/// The body of `POST /v1/jobs`: a request, and where it goes.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[schemars(title = "Submission")]
pub struct SubmissionDocument {
    /// The model; the only one that is served when absent.
    pub model: Option<String>,
    /// Machines: `any`, or `ondemand` for those that are not taken away.
    #[schemars(extend("enum" = ["any", "ondemand"]))]
    pub pool: Option<String>,
    /// What to draw, and how.
    #[serde(flatten)]
    pub request: super::request::RequestDocument,
}

/// A job, as `GET /v1/jobs/{id}` shows it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "Job")]
pub struct JobDocument {
    /// Its id.
    pub id: String,
    /// `pending`, `processing`, `completed`, `failed` or `cancelled`.
    #[schemars(extend("enum" = Status::ALL.iter().map(|status| status.as_str()).collect::<Vec<_>>()))]
    pub status: String,
    /// The model.
    pub model: String,
    /// When it was accepted, RFC 3339.
    pub created: String,
    /// When that last changed, RFC 3339.
    pub updated: String,
    /// How often a worker has begun it.
    pub attempts: u32,
    /// Jobs that go before it and that no worker has yet; while it is pending, if anybody can tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_position: Option<u64>,
    /// Seconds until it is done; while it is pending or processing, if anybody can tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimated_time: Option<f64>,
    /// How far it is; while it is processing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// What was made, by index.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<StoredImage>,
    /// Where the time went; when it is completed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
    /// What the requester should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorDocument>,
    /// As in the request; when it has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
    /// Where more of it is.
    pub links: Links,
}

/// Addresses of a job, relative to the gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Links {
    /// This document; `DELETE` cancels.
    #[serde(rename = "self")]
    pub job: String,
    /// Its events, as they happen.
    pub events: String,
    /// Its images, each by its index.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
}

/// The newest jobs, newest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "Jobs")]
pub struct JobList {
    /// The jobs.
    pub jobs: Vec<JobDocument>,
}

/// A model that is served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "Model")]
pub struct ModelDocument {
    /// Its name.
    pub name: String,
    /// Its family, as `sdxl`.
    pub family: String,
    /// What a request that names nothing else gets.
    pub defaults: ModelDefaults,
    /// The smallest and the largest side of a picture, and what both are multiples of, in pixels.
    pub sides: [u32; 3],
    /// Requests that no worker has yet.
    pub pending: u64,
}

/// Defaults of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelDefaults {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Denoising steps.
    pub num_inference_steps: u32,
    /// Classifier-free guidance.
    pub guidance_scale: f32,
    /// The sampler.
    pub scheduler: String,
}

/// The models.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "Models")]
pub struct ModelList {
    /// By name.
    pub models: Vec<ModelDocument>,
}

/// Who works, and how much there is to do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "Fleet")]
pub struct FleetDocument {
    /// By name.
    pub models: Vec<FleetModel>,
}

/// The workers of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FleetModel {
    /// The model.
    pub name: String,
    /// Requests that no worker has yet.
    pub pending: u64,
    /// As they said a moment ago; none when it is scaled to zero.
    pub workers: Vec<FleetWorker>,
}

/// One worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FleetWorker {
    /// Its name.
    pub worker: String,
    /// Whether it takes jobs.
    pub state: WorkerState,
    /// The pools that it pulls.
    pub pools: Vec<String>,
    /// Jobs that it holds.
    pub jobs_held: u64,
    /// Images in the step under way.
    pub images_stepping: u64,
    /// Images that step together at most.
    pub images_in_batch_max: u32,
    /// Steps of images of the model's own size that it makes in a second while it steps; once that was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_steps_per_second: Option<f64>,
    /// When it was ready, RFC 3339.
    pub since: String,
}

impl FleetWorker {
    /// What a worker reports; the model's images have so many million pixels.
    pub fn of_report(report: &WorkerReport, megapixels: f64) -> Self {
        let step_ms = report.pace.megapixel_step_ms.map(|ms| ms * megapixels).filter(|ms| *ms > 0.0);
        Self {
            worker: report.worker.clone(),
            state: report.state,
            pools: report.pools.clone(),
            jobs_held: report.jobs_held,
            images_stepping: report.images_stepping,
            images_in_batch_max: report.images_in_batch_max,
            image_steps_per_second: step_ms.map(|ms| 1e3 / ms),
            since: rfc3339(report.since_unix_ms),
        }
    }
}

/// Why something was not done: RFC 9457, `application/problem+json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "Problem")]
pub struct ProblemDocument {
    /// A stable name, as `invalid_request`.
    pub code: String,
    /// The HTTP status.
    pub status: u16,
    /// What kind of thing it is, in words.
    pub title: String,
    /// What it is this time.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[serde(default)]
    pub detail: String,
    /// Every rule that the request breaks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub violations: Vec<ViolationDocument>,
}

/// Whether the gateway can do its work.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "Health")]
pub struct HealthDocument {
    /// Whether all of it is well.
    pub ready: bool,
    /// What is not.
    pub problems: Vec<String>,
}

impl JobDocument {
    /// Whether nothing of it will change any more.
    pub fn has_ended(&self) -> bool {
        self.status.parse().is_ok_and(Status::is_terminal)
    }

    /// What a record says of a job.
    pub fn of_record(id: &str, record: &Record) -> Self {
        let terminal = record.terminal.as_ref();
        let field = |name: &str| terminal.and_then(|data| data.get(name)).cloned();
        let images: Vec<StoredImage> =
            field("images").and_then(|images| serde_json::from_value(images).ok()).unwrap_or_default();
        Self {
            id: id.to_owned(),
            status: record.state.status.as_str().to_owned(),
            model: record.model.clone(),
            created: record.created.clone(),
            updated: record.updated.clone(),
            attempts: record.state.attempts,
            queue_position: None,
            estimated_time: None,
            progress: None,
            links: Links::of(id, images.len()),
            images,
            timings: field("timings").and_then(|timings| serde_json::from_value(timings).ok()),
            warnings: field("warnings").and_then(|words| serde_json::from_value(words).ok()).unwrap_or_default(),
            error: field("error").and_then(|error| serde_json::from_value(error).ok()),
            metadata: field("metadata").and_then(|metadata| metadata.as_object().cloned()),
        }
    }
}

impl Links {
    /// Those of a job with so many images.
    pub fn of(id: &str, images: usize) -> Self {
        let job = format!("/v1/jobs/{id}");
        Self {
            events: format!("{job}/events"),
            images: (0..images).map(|index| format!("{job}/images/{index}")).collect(),
            job,
        }
    }
}
