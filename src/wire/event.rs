//! Events: CloudEvents 1.0 in structured JSON.
//!
//! `type` is `darkroom.job.<kind>`, `subject` is `<tenant>/<job>`, `data` is one of the structs here.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::job::{Fault, JobId, Status, Violation};

use super::time::rfc3339;

/// What happened to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventKind {
    /// A worker has read the request and will do it.
    Accepted,
    /// Denoising begins.
    Started,
    /// A step was made.
    Progress,
    /// Another worker could go on from here.
    Checkpoint,
    /// Every image is stored.
    Completed,
    /// There will be no image.
    Failed,
    /// Somebody stopped it.
    Cancelled,
}

impl EventKind {
    /// Every kind.
    pub const ALL: &'static [Self] = &[
        Self::Accepted,
        Self::Started,
        Self::Progress,
        Self::Checkpoint,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
    ];

    /// The last token of the subject.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Started => "started",
            Self::Progress => "progress",
            Self::Checkpoint => "checkpoint",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing follows.
    pub fn is_terminal(self) -> bool {
        match self {
            Self::Completed | Self::Failed | Self::Cancelled => true,
            Self::Accepted | Self::Started | Self::Progress | Self::Checkpoint => false,
        }
    }

    /// The kind of the event that a terminal state is announced by.
    pub fn of_terminal(status: Status) -> Option<Self> {
        match status {
            Status::Completed => Some(Self::Completed),
            Status::Failed => Some(Self::Failed),
            Status::Cancelled => Some(Self::Cancelled),
            Status::Pending | Status::Processing => None,
        }
    }

    /// The terminal state that this kind announces.
    pub fn as_terminal(self) -> Option<Status> {
        match self {
            Self::Completed => Some(Status::Completed),
            Self::Failed => Some(Status::Failed),
            Self::Cancelled => Some(Status::Cancelled),
            Self::Accepted | Self::Started | Self::Progress | Self::Checkpoint => None,
        }
    }

    /// The kind of a CloudEvents `type`.
    pub fn from_type(text: &str) -> Option<Self> {
        let kind = text.strip_prefix("darkroom.job.")?;
        Self::named(kind)
    }

    /// The kind of an event's `id`, as [`envelope`] makes it.
    pub fn from_id(id: &str) -> Option<Self> {
        Self::named(id.split('/').nth(2)?)
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|candidate| candidate.as_str() == name)
    }
}

/// The envelope.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CloudEvent<D> {
    /// Always `1.0`.
    pub specversion: String,
    /// Unique with `source`; the same when an event is repeated.
    pub id: String,
    /// Always `darkroom`.
    pub source: String,
    /// `darkroom.job.<kind>`.
    pub r#type: String,
    /// `<tenant>/<job>`.
    pub subject: String,
    /// When it was made, RFC 3339.
    pub time: String,
    /// Always `application/json`.
    pub datacontenttype: String,
    /// What happened.
    pub data: D,
}

/// `data` of `accepted`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Accepted {
    /// The model.
    pub model: String,
    /// The priority.
    pub priority: String,
    /// The seed of image 0, also when the request named none.
    pub seed: u64,
    /// As in the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
}

/// `data` of `started`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Started {
    /// The worker.
    pub worker: String,
    /// Counts claims of this job, from 1.
    pub attempt: u32,
    /// SHA-256 over the model's files.
    pub model_digest: String,
    /// By how much it begins later than was estimated when it was submitted, in milliseconds; absent when nothing was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimated_start_error_ms: Option<i64>,
    /// As in the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
}

/// `data` of `progress`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Progress {
    /// Denoising steps made, over all images of the job.
    pub step: u32,
    /// Denoising steps of the job, over all its images.
    pub steps: u32,
    /// Time to the last step at the present pace.
    pub remaining_ms: u64,
    /// A small JPEG of what image 0 becomes, in Base64; only when previews were asked for and one is due.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preview: Option<String>,
}

/// `data` of `checkpoint`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Checkpointed {
    /// The worker.
    pub worker: String,
    /// Claims of this job, from 1.
    pub attempt: u32,
    /// Denoising steps that will not be made again, over all images of the job.
    pub step: u32,
    /// As in the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
}

/// One stored image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StoredImage {
    /// Counts from 0.
    pub index: u32,
    /// Its key in the object store.
    pub key: String,
    /// Where it can be read: presigned where the store can sign.
    pub url: String,
    /// Its media type.
    pub content_type: String,
    /// Its size.
    pub size_bytes: u64,
    /// SHA-256 of its bytes, in hexadecimal digits.
    pub sha256: String,
    /// The seed of its noise.
    pub seed: u64,
}

/// Where the time of a job went, in milliseconds of the worker's clock.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Timings {
    /// From publish to delivery to this worker, by the server's clock and ours.
    pub queued_ms: f64,
    /// Until the worker had its model, if this job waited for it.
    pub loading_ms: f64,
    /// How much of that the model's files took to come from the object store.
    #[serde(default)]
    pub fetching_ms: f64,
    /// Text encoding.
    pub encoding_ms: f64,
    /// From the first step to the last, in batches with other jobs.
    pub denoising_ms: f64,
    /// Latents to pixels.
    pub decoding_ms: f64,
    /// Compression and upload.
    pub storing_ms: f64,
}

/// Milliseconds to the microsecond: fewer digits than JSON readers get wrong, and nobody measures finer.
pub fn to_the_microsecond(milliseconds: f64) -> f64 {
    (milliseconds * 1e3).round() / 1e3
}

impl Timings {
    /// Each phase by its name, in the order in which they follow each other.
    pub fn phases(&self) -> [(&'static str, f64); 6] {
        // Fetching is a part of loading.
        let Self { queued_ms, loading_ms, encoding_ms, denoising_ms, decoding_ms, storing_ms, fetching_ms: _ } = *self;
        [
            ("queued", queued_ms),
            ("loading", loading_ms),
            ("encoding", encoding_ms),
            ("denoising", denoising_ms),
            ("decoding", decoding_ms),
            ("storing", storing_ms),
        ]
    }

    /// The same, as [`to_the_microsecond`].
    #[must_use]
    pub fn to_the_microsecond(&self) -> Self {
        let Self { queued_ms, loading_ms, fetching_ms, encoding_ms, denoising_ms, decoding_ms, storing_ms } = self;
        Self {
            queued_ms: to_the_microsecond(*queued_ms),
            loading_ms: to_the_microsecond(*loading_ms),
            fetching_ms: to_the_microsecond(*fetching_ms),
            encoding_ms: to_the_microsecond(*encoding_ms),
            denoising_ms: to_the_microsecond(*denoising_ms),
            decoding_ms: to_the_microsecond(*decoding_ms),
            storing_ms: to_the_microsecond(*storing_ms),
        }
    }
}

/// `data` of `completed`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Completed {
    /// The images, by index.
    pub images: Vec<StoredImage>,
    /// Where the time went.
    pub timings: Timings,
    /// Device time attributed to this job's rows.
    pub gpu_ms: f64,
    /// What that time cost, where the worker knows its price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
    /// The model.
    pub model: String,
    /// SHA-256 over the model's files.
    pub model_digest: String,
    /// The worker.
    pub worker: String,
    /// Claims of this job.
    pub attempts: u32,
    /// Denoising steps that were made before the last attempt began, over all images.
    pub resumed_from_step: u32,
    /// What the requester should know, such as a prompt that was cut off.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// As in the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
}

/// What a job's device time cost: its share of batches, none of the time that workers are idle or start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Cost {
    /// US dollars.
    pub usd: f64,
    /// `spot` or `on-demand`.
    pub capacity: String,
    /// The machine's type, as its cloud calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_type: Option<String>,
}

/// Why a job failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorDocument {
    /// A stable name, as `invalid_request`.
    pub code: String,
    /// One sentence.
    pub message: String,
    /// Every rule that the request breaks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub violations: Vec<ViolationDocument>,
}

/// One broken rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ViolationDocument {
    /// The field.
    pub field: String,
    /// What it holds, shortened.
    pub value: String,
    /// What it may hold.
    pub allowed: String,
}

/// `data` of `failed`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Failed {
    /// Why.
    pub error: ErrorDocument,
    /// Claims of this job; 0 when it was refused unread.
    pub attempts: u32,
    /// As in the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
}

/// `data` of `cancelled`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Cancelled {
    /// What there was when it was stopped, if that was to be kept: pictures as far as they had become.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<StoredImage>,
    /// Claims of this job.
    pub attempts: u32,
    /// As in the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
}

impl ErrorDocument {
    /// The document of a refused request.
    pub fn invalid_request(violations: &[Violation]) -> Self {
        let message = violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        let violations = violations
            .iter()
            .map(|Violation { field, value, allowed }| ViolationDocument {
                field: field.clone(),
                value: value.clone(),
                allowed: allowed.clone(),
            })
            .collect();
        Self { code: crate::job::FaultCode::InvalidRequest.as_str().to_owned(), message, violations }
    }
}

impl From<&Fault> for ErrorDocument {
    fn from(fault: &Fault) -> Self {
        Self { code: fault.code.as_str().to_owned(), message: fault.message.clone(), violations: Vec::new() }
    }
}

/// Wraps `data` of `kind` for a job. `attempt` makes the id of repeatable kinds unique.
pub fn envelope<D>(kind: EventKind, tenant: &str, job: &JobId, attempt: u32, unix_ms: i64, data: D) -> CloudEvent<D> {
    let id = if kind.is_terminal() || kind == EventKind::Accepted {
        format!("{tenant}/{job}/{}", kind.as_str())
    } else {
        format!("{tenant}/{job}/{}/{attempt}/{unix_ms}", kind.as_str())
    };
    CloudEvent {
        specversion: "1.0".to_owned(),
        id,
        source: "darkroom".to_owned(),
        r#type: format!("darkroom.job.{}", kind.as_str()),
        subject: format!("{tenant}/{job}"),
        time: rfc3339(unix_ms),
        datacontenttype: "application/json".to_owned(),
        data,
    }
}

/// The event as bytes.
pub fn encode<D: Serialize>(event: &CloudEvent<D>) -> Vec<u8> {
    serde_json::to_vec(event).unwrap_or_default()
}

/// Reads any event; its `data` stays JSON.
///
/// # Errors
/// serde's, when the bytes are not an event.
pub fn decode(bytes: &[u8]) -> Result<CloudEvent<Value>, serde_json::Error> {
    serde_json::from_slice(bytes)
}
