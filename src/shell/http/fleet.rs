//! What is served, who works, and who will be needed.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use bytes::Bytes;

use super::problem::Problem;
use super::{Caller, Gateway};
use crate::shell::bus::chain;
use crate::shell::fleet;
use crate::shell::topology::Served;
use crate::wire::http::{FleetDocument, FleetModel, FleetWorker, ModelDefaults, ModelDocument, ModelList};
use crate::wire::subject;

/// `GET /v1/models`
pub(super) async fn models(State(gateway): State<Arc<Gateway>>, _: Caller) -> Result<Json<ModelList>, Problem> {
    let served = gateway.served().await?;
    let served = by_name(&served);
    let models = by_model(&served).map(|group| {
        let manifest = &group[0].manifest;
        let (defaults, limits) = (&manifest.defaults, &manifest.limits);
        ModelDocument {
            name: manifest.name.to_string(),
            family: manifest.family.clone(),
            defaults: ModelDefaults {
                width: defaults.width,
                height: defaults.height,
                num_inference_steps: defaults.num_inference_steps,
                guidance_scale: defaults.guidance_scale,
                scheduler: defaults.scheduler.to_string(),
            },
            sides: [limits.side_min, limits.side_max, limits.side_multiple],
            pending: pending(group),
        }
    });
    Ok(Json(ModelList { models: models.collect() }))
}

/// `POST /v1/models/{model}/wake`: somebody will soon ask for it.
pub(super) async fn wake(
    State(gateway): State<Arc<Gateway>>,
    _: Caller,
    Path(model): Path<String>,
) -> Result<StatusCode, Problem> {
    let manifest = gateway.model(Some(&model)).await?;
    let told = gateway.bus.client.publish(subject::wake_hint(&manifest.name), Bytes::new()).await;
    told.map_err(|error| Problem::unavailable(chain(&error)))?;
    Ok(StatusCode::ACCEPTED)
}

/// `GET /v1/fleet`
pub(super) async fn fleet(State(gateway): State<Arc<Gateway>>, _: Caller) -> Result<Json<FleetDocument>, Problem> {
    let served = gateway.served().await?;
    let served = by_name(&served);
    let mut models = Vec::new();
    for group in by_model(&served) {
        let manifest = &group[0].manifest;
        let megapixels = f64::from(manifest.defaults.width) * f64::from(manifest.defaults.height) / 1e6;
        let reports = fleet::worker_reports(&gateway.bus, &manifest.name).await?;
        models.push(FleetModel {
            name: manifest.name.to_string(),
            pending: pending(group),
            workers: reports.iter().map(|report| FleetWorker::of_report(report, megapixels)).collect(),
        });
    }
    Ok(Json(FleetDocument { models }))
}

/// Consumers, those of one model after each other.
fn by_name(served: &[Served]) -> Vec<&Served> {
    let mut served: Vec<_> = served.iter().collect();
    served.sort_by(|one, other| one.manifest.name.cmp(&other.manifest.name));
    served
}

/// Requests of a model that no worker has yet.
fn pending(of_model: &[&Served]) -> u64 {
    of_model.iter().map(|served| served.pending).sum()
}

fn by_model<'a>(served: &'a [&'a Served]) -> impl Iterator<Item = &'a [&'a Served]> {
    served.chunk_by(|one, other| one.manifest.name == other.manifest.name)
}
