//! JSON schemas of requests, events and reports, generated from the types; `nats/schema/` holds them and a test compares.

use schemars::schema_for;
use serde_json::Value;

use super::cancel::{CancelAnswer, CancelRequest};
use super::event::{Accepted, Cancelled, Checkpointed, CloudEvent, Completed, Failed, Progress, Started};
use super::request::RequestDocument;
use super::scale::ScalePlan;
use super::usage::UsageReport;
use super::worker::{ModelReport, WorkerReport};

/// Every schema with the name of its file in `nats/schema/`.
pub fn all() -> Vec<(&'static str, Value)> {
    vec![
        ("request.json", schema_for!(RequestDocument).to_value()),
        ("event.accepted.json", schema_for!(CloudEvent<Accepted>).to_value()),
        ("event.started.json", schema_for!(CloudEvent<Started>).to_value()),
        ("cancel.request.json", schema_for!(CancelRequest).to_value()),
        ("cancel.answer.json", schema_for!(CancelAnswer).to_value()),
        ("event.checkpoint.json", schema_for!(CloudEvent<Checkpointed>).to_value()),
        ("event.progress.json", schema_for!(CloudEvent<Progress>).to_value()),
        ("event.completed.json", schema_for!(CloudEvent<Completed>).to_value()),
        ("event.failed.json", schema_for!(CloudEvent<Failed>).to_value()),
        ("event.cancelled.json", schema_for!(CloudEvent<Cancelled>).to_value()),
        ("worker.json", schema_for!(WorkerReport).to_value()),
        ("model.json", schema_for!(ModelReport).to_value()),
        ("usage.json", schema_for!(UsageReport).to_value()),
        ("scale.plan.json", schema_for!(ScalePlan).to_value()),
    ]
}
