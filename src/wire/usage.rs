//! What a worker did in one hour, under a key of its own in the bucket `darkroom_usage`: bills and plans are made of it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Milliseconds of an hour.
pub const HOUR_MS: i64 = 3_600_000;

/// What a tenant got.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TenantUsage {
    /// Whose.
    pub tenant: String,
    /// Images that were stored.
    pub images: u64,
    /// Device time of its rows, whatever became of them.
    pub gpu_ms: f64,
}

/// One worker in one hour.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UsageReport {
    /// Its name.
    pub worker: String,
    /// Its model.
    pub model: String,
    /// `spot` or `on-demand`.
    pub capacity: String,
    /// The machine's type, as its cloud calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_type: Option<String>,
    /// US dollars, where they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price_per_hour: Option<f64>,
    /// The beginning of the hour, in seconds since the Unix epoch.
    pub hour_unix_s: i64,
    /// How long the process ran in that hour.
    pub ran_ms: f64,
    /// How long of it the device worked on jobs.
    pub gpu_ms: f64,
    /// By tenant; what has no name is of those beyond the first hundred.
    pub tenants: Vec<TenantUsage>,
}

/// A report as bytes.
pub fn encode(report: &UsageReport) -> Vec<u8> {
    serde_json::to_vec(report).unwrap_or_default()
}

/// Reads a report.
///
/// # Errors
/// serde's, when the bytes are none.
pub fn decode(bytes: &[u8]) -> Result<UsageReport, serde_json::Error> {
    serde_json::from_slice(bytes)
}
