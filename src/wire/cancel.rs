//! What is asked of the service `cancel`, and what it answers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A request to `darkroom.api.cancel.<tenant>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CancelRequest {
    /// The job's id.
    pub job: String,
    /// Decode and store what is there of its images. Only a running job has something.
    #[serde(default)]
    pub keep_partial: bool,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CancelOutcome {
    /// The job is cancelled, and was not before.
    Cancelled,
    /// Its worker stores what is there and then cancels it; its event tells.
    Stopping,
    /// It had ended before; `status` says how.
    Ended,
    /// It had ended before, and its record was removed after its retention.
    Gone,
    /// There is no such job of this tenant.
    Unknown,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CancelAnswer {
    /// The job's id.
    pub job: String,
    /// What became of the request.
    pub outcome: CancelOutcome,
    /// Where the job stands now; absent when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
}
