//! The scaler over HTTP: `GET /v1/scale` for people, and `GET /v1/scale/{model}/{capacity}` for KEDA's `metrics-api` trigger.
//!
//! Who asks for one capacity counts for a while as one who starts workers on it, so people ask for all.

use std::io;
use std::net::SocketAddr;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::job::{Capacity, ModelName};
use crate::sched::scale::Wanted;
use crate::wire::scale::ScaleAnswer;

use super::Scaler;

/// Answers until `stop`.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(scaler: Scaler, address: SocketAddr, stop: CancellationToken) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    tracing::info!(address = %listener.local_addr()?, "scaler.http");
    let router = Router::new().route("/v1/scale", get(all)).route("/v1/scale/{model}/{capacity}", get(one));
    axum::serve(listener, router.with_state(scaler)).with_graceful_shutdown(stop.cancelled_owned()).await
}

fn answer(model: &ModelName, capacity: Capacity, wanted: Wanted) -> ScaleAnswer {
    ScaleAnswer {
        model: model.to_string(),
        capacity: capacity.to_string(),
        workers: wanted.on(capacity),
        reason: wanted.reason.to_string(),
    }
}

async fn all(State(scaler): State<Scaler>) -> Json<Vec<ScaleAnswer>> {
    let mut answers = Vec::new();
    for model in scaler.models() {
        answers.extend(scaler.known(&model).into_iter().map(|(capacity, wanted)| answer(&model, capacity, wanted)));
    }
    Json(answers)
}

async fn one(
    State(scaler): State<Scaler>,
    Path((model, capacity)): Path<(String, String)>,
) -> Result<Json<ScaleAnswer>, (StatusCode, Json<Value>)> {
    let refused = |status, error: String| (status, Json(json!({ "error": error })));
    let capacity: Capacity = capacity
        .parse()
        .map_err(|error| refused(StatusCode::BAD_REQUEST, format!("the capacity {capacity:?} {error}")))?;
    let unknown = || refused(StatusCode::NOT_FOUND, format!("the model {model:?} is not served"));
    let name: ModelName = model.parse().map_err(|_| unknown())?;
    let wanted = scaler.wanted(&name, capacity, None).ok_or_else(unknown)?;
    Ok(Json(answer(&name, capacity, wanted)))
}
