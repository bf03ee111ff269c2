//! `GET /metrics` for Prometheus and `GET /health` for whoever restarts what is dead, on a port of their own.
//!
//! Both say how this process is. Whether the whole of Darkroom is well, `darkroom doctor` and the gateway's
//! `/health/ready` say.

use std::io;
use std::net::SocketAddr;

use async_nats::connection::State;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus::{Encoder, TextEncoder};
use tokio::net::TcpListener;

use super::bus::Bus;

/// Where a function can be watched.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct ExpositionOptions {
    /// Address and port to answer Prometheus (/metrics) and health checks (/health) on, such as 0.0.0.0:9464; none when
    /// absent
    #[arg(long, env = "DARKROOM_METRICS_LISTEN", value_name = "ADDRESS")]
    pub metrics_listen: Option<SocketAddr>,
}

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("--metrics-listen: {address} cannot be listened on")]
pub struct ExpositionError {
    /// Where.
    address: SocketAddr,
    /// Why.
    #[source]
    source: io::Error,
}

/// Answers for as long as the process lives, if it is to.
///
/// # Errors
/// [`ExpositionError`].
pub async fn start(options: ExpositionOptions, bus: &Bus) -> Result<(), ExpositionError> {
    let Some(address) = options.metrics_listen else { return Ok(()) };
    let failed = |source| ExpositionError { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    tracing::info!(%address, "metrics.listen");
    let client = bus.client.clone();
    let health = move || {
        let connected = client.connection_state() == State::Connected;
        async move {
            if connected {
                (StatusCode::OK, "ok\n")
            } else {
                (StatusCode::SERVICE_UNAVAILABLE, "no connection to NATS\n")
            }
        }
    };
    let router = Router::new().route("/metrics", get(metrics)).route("/health", get(health));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "metrics.listen");
        }
    });
    Ok(())
}

async fn metrics() -> impl IntoResponse {
    let mut text = Vec::new();
    match TextEncoder::new().encode(&prometheus::gather(), &mut text) {
        Ok(()) => (StatusCode::OK, [(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text),
        Err(error) => {
            let why = error.to_string().into_bytes();
            (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], why)
        }
    }
}
