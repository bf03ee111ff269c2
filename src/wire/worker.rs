//! What workers say of themselves in the bucket `darkroom_workers`, and what is remembered of a model in `darkroom_models`.
//!
//! Estimates are made of it. A report says how it was when it was made; whoever reads it knows that it is seconds old.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whether a worker takes jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WorkerState {
    /// It does.
    Ready,
    /// It finishes what it has, and ends.
    Draining,
}

/// How a model's jobs have been; absent is what no job has shown yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PaceReport {
    /// Engine time of a job, its share of every batch it was in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_ms: Option<f64>,
    /// From the first step of a job to its stored images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_ms: Option<f64>,
    /// Engine time of a job for each million pixels and step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub megapixel_step_ms: Option<f64>,
}

/// What the jobs of one priority are like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PriorityReport {
    /// `high`, `normal` or `low`.
    pub priority: String,
    /// Jobs that begin in a second.
    pub begun_per_s: f64,
    /// From delivery to the first step: half of the jobs wait longer. Absent until one began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begin_ms: Option<f64>,
}

/// One worker, under the key `<model>.<worker>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerReport {
    /// Its name.
    pub worker: String,
    /// Its model.
    pub model: String,
    /// The pools that it pulls.
    pub pools: Vec<String>,
    /// Whether it takes jobs.
    pub state: WorkerState,
    /// Images that step together at most.
    pub images_in_batch_max: u32,
    /// Jobs that it holds.
    pub jobs_held: u64,
    /// Images that are in the step under way.
    pub images_stepping: u64,
    /// Engine time of all that it holds, if each image stepped alone.
    pub work_left_ms: f64,
    /// How its jobs have been.
    #[serde(flatten)]
    pub pace: PaceReport,
    /// By priority.
    pub priorities: Vec<PriorityReport>,
    /// From its start until it was ready.
    pub loading_ms: u64,
    /// How much of it the model's files took to come from the object store; absent when they did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetching_ms: Option<u64>,
    /// When it was ready.
    pub since_unix_ms: i64,
}

/// One model, under the key `<model>`: how it was when a worker last said so.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelReport {
    /// Its name.
    pub model: String,
    /// What loading it took.
    pub loading_ms: u64,
    /// How its jobs were.
    #[serde(flatten)]
    pub pace: PaceReport,
}

/// A report as bytes.
pub fn encode<R: Serialize>(report: &R) -> Vec<u8> {
    serde_json::to_vec(report).unwrap_or_default()
}

/// Reads a worker's report.
///
/// # Errors
/// serde's, when the bytes are none.
pub fn decode(bytes: &[u8]) -> Result<WorkerReport, serde_json::Error> {
    serde_json::from_slice(bytes)
}

/// Reads what is remembered of a model.
///
/// # Errors
/// serde's, when the bytes are none.
pub fn decode_model(bytes: &[u8]) -> Result<ModelReport, serde_json::Error> {
    serde_json::from_slice(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_read_back_and_leave_out_what_is_not_known() {
        let pace = PaceReport { job_ms: Some(12.5), ..PaceReport::default() };
        let of_high = PriorityReport { priority: "high".into(), begun_per_s: 0.25, begin_ms: None };
        let report = WorkerReport {
            worker: "w-1".into(),
            model: "shapes".into(),
            pools: vec!["any".into()],
            state: WorkerState::Draining,
            images_in_batch_max: 8,
            jobs_held: 2,
            images_stepping: 3,
            work_left_ms: 40.0,
            pace,
            priorities: vec![of_high],
            loading_ms: 700,
            fetching_ms: Some(500),
            since_unix_ms: 1_795_000_000_123,
        };
        let text = String::from_utf8(encode(&report)).unwrap();
        assert!(text.contains(r#""state":"draining""#) && text.contains(r#""job_ms":12.5"#), "{text}");
        assert!(!text.contains("run_ms") && !text.contains("begin_ms"), "{text}");
        assert_eq!(decode(text.as_bytes()).unwrap(), report);
        let without = text.replace(r#""fetching_ms":500,"#, "");
        assert_eq!(decode(without.as_bytes()).unwrap(), WorkerReport { fetching_ms: None, ..report });
        let model = ModelReport { model: "shapes".into(), loading_ms: 700, pace };
        assert_eq!(decode_model(&encode(&model)).unwrap(), model);
        assert!(decode(b"{}").is_err() && decode_model(b"").is_err());
    }
}
