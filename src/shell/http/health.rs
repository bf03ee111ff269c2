//! Whether the gateway can do its work, and what it can be asked.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::Value;

use super::Gateway;
use crate::shell::bus::chain;
use crate::wire::http::HealthDocument;
use crate::wire::openapi;

/// How long NATS and the store may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// A key that no job can have: ids do not begin with a dot.
const NO_KEY: &str = ".health/none";

/// `GET /health/live`: it answers.
pub(super) async fn live() -> Json<HealthDocument> {
    Json(HealthDocument { ready: true, problems: Vec::new() })
}

/// `GET /health/ready`: what it needs answers too.
pub(super) async fn ready(State(gateway): State<Arc<Gateway>>) -> (StatusCode, Json<HealthDocument>) {
    let jetstream = async {
        match tokio::time::timeout(ANSWER_WITHIN, gateway.bus.api("INFO", &Value::Null)).await {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(format!("NATS: {}", chain(&error))),
            Err(_) => Some("NATS does not answer".to_owned()),
        }
    };
    let store = async {
        let store = gateway.store.as_ref()?;
        match tokio::time::timeout(ANSWER_WITHIN, store.find(NO_KEY, 1)).await {
            Ok(Ok(_)) => None,
            Ok(Err(fault)) => Some(format!("the object store: {}", fault.message)),
            Err(_) => Some("the object store does not answer".to_owned()),
        }
    };
    let (jetstream, store) = tokio::join!(jetstream, store);
    let mut problems: Vec<String> = jetstream.into_iter().chain(store).collect();
    problems.extend(gateway.unwritable.borrow().iter().map(ToString::to_string));
    if gateway.stop.is_cancelled() {
        problems.push("it is about to end".to_owned());
    }
    let status = if problems.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(HealthDocument { ready: problems.is_empty(), problems }))
}

/// `GET /openapi.json`
pub(super) async fn openapi() -> Json<Value> {
    Json(openapi::document())
}
