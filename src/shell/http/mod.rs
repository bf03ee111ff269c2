//! The gateway over HTTP: translates what clients ask into what `shell::client` and `shell::cancel` do, and back.
//!
//! It decides nothing about jobs and keeps nothing of them: any number of copies may run. A tenant is whoever shows one of
//! its keys.

mod a1111;
mod console;
mod events;
mod fleet;
mod health;
mod images;
mod jobs;
mod keys;
mod kserve;
mod measured;
mod openai;
mod problem;
mod replicate;
mod tutorial;
mod waiting;

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower_http::cors::{AllowOrigin, CorsLayer};
use tower_http::timeout::TimeoutLayer;

use crate::job::{Fault, ModelManifest, Tenant};
use crate::sched::Mono;

use super::bus::Bus;
use super::cancel::Canceller;
use super::clock::Clock;
use super::config::{Retention, parse_bytes};
use super::metrics::GatewayMetrics;
use super::records::Records;
use super::store::Store;
use super::telemetry;
use super::topology::{self, Served};
use super::writable::Unwritable;
use keys::{Checked, Keys};
use problem::Problem;

/// How long the list of models is taken for true.
const SERVED_FOR: Duration = Duration::from_secs(5);
/// Until an answer begins: somewhat longer than the longest wait that clients may wish for.
const ANSWER_WITHIN: Duration = Duration::from_secs(75);

/// How the gateway is reached over HTTP.
#[derive(Clone, Debug, clap::Args)]
pub struct HttpOptions {
    /// Address and port to listen on for HTTP, such as 127.0.0.1:8080; none when absent
    #[arg(long, env = "DARKROOM_HTTP_LISTEN", value_name = "ADDRESS")]
    pub http_listen: Option<SocketAddr>,
    /// Whoever shows no key is this tenant; only on loopback
    #[arg(long, env = "DARKROOM_OPEN_TENANT", value_name = "TENANT")]
    pub open_tenant: Option<Tenant>,
    /// Pages of these origins may ask, such as https://app.example.com; * for all; separated by commas
    #[arg(long, env = "DARKROOM_HTTP_ORIGINS", value_delimiter = ',', value_name = "ORIGINS")]
    pub http_origins: Vec<HeaderValue>,
    /// The largest body of a request
    #[arg(long, env = "DARKROOM_HTTP_BODY_MAX", default_value = "1MB", value_parser = parse_bytes, value_name = "BYTES")]
    pub http_body_max: u64,
    /// The console's WebSocket to NATS, such as ws://127.0.0.1:4223; only with --open-tenant. Without, it follows jobs here
    #[arg(long, env = "DARKROOM_CONSOLE_NATS", requires = "open_tenant", value_name = "URL")]
    pub console_nats: Option<String>,
    /// Requests that a key may make in a minute, where the key does not say
    #[arg(long, env = "DARKROOM_KEY_REQUESTS_PER_MINUTE", default_value = "600", value_name = "N")]
    pub requests_per_minute: NonZeroU32,
}

/// Why HTTP is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Anybody could be that tenant.
    #[error(
        "--open-tenant is for loopback: {address} can be reached from elsewhere; make keys with `darkroom keys add`"
    )]
    Open {
        /// Where it was to listen.
        address: SocketAddr,
    },
    /// Somebody else listens there, or nobody may.
    #[error("{address} cannot be listened on")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// NATS does not answer.
    #[error(transparent)]
    Bus(#[from] Fault),
}

/// What every request needs.
#[derive(Debug)]
struct Gateway {
    bus: Bus,
    clock: Clock,
    canceller: Canceller,
    records: Records,
    store: Option<Store>,
    keys: Keys,
    open_tenant: Option<Tenant>,
    console_nats: Option<String>,
    served: Mutex<Option<(Mono, Arc<[Served]>)>>,
    unwritable: watch::Receiver<Vec<Unwritable>>,
    metrics: GatewayMetrics,
    stop: CancellationToken,
}

/// Serves HTTP until `stop`, then ends what is open: whoever follows a job is told to come back.
///
/// # Errors
/// [`ServeError`].
pub async fn serve(
    bus: Bus,
    options: HttpOptions,
    address: SocketAddr,
    store: Option<Store>,
    retention: Retention,
    unwritable: watch::Receiver<Vec<Unwritable>>,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    if options.open_tenant.is_some() && !address.ip().is_loopback() {
        return Err(ServeError::Open { address });
    }
    let clock = Clock::start();
    let gateway = Arc::new(Gateway {
        canceller: Canceller::open(bus.clone(), clock, retention).await?,
        records: Records::open(&bus).await?,
        keys: Keys::new(bus.clone(), options.requests_per_minute),
        bus,
        clock,
        store,
        open_tenant: options.open_tenant.clone(),
        console_nats: options.console_nats.clone(),
        served: Mutex::default(),
        unwritable,
        metrics: GatewayMetrics::new(&telemetry::meter()),
        stop: stop.clone(),
    });
    let listen = |source| ServeError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(listen)?;
    tracing::info!(address = %listener.local_addr().map_err(listen)?, "gateway.http");
    axum::serve(listener, router(gateway, &options))
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
        .map_err(listen)
}

fn router(gateway: Arc<Gateway>, options: &HttpOptions) -> Router {
    let body_max = usize::try_from(options.http_body_max).unwrap_or(usize::MAX);
    let in_time = TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, ANSWER_WITHIN);
    // Answered when the job has ended: as long as that takes.
    let waiting = Router::new()
        .route("/openai/v1/images/generations", post(openai::generations))
        .route("/openai/v1/images/edits", post(openai::edits).layer(DefaultBodyLimit::max(openai::EDIT_BYTES_MAX)))
        .route("/openai/v1/models", get(openai::models))
        .route("/sdapi/v1/txt2img", post(a1111::images))
        .route("/sdapi/v1/img2img", post(a1111::images).layer(DefaultBodyLimit::max(a1111::IMG2IMG_BYTES_MAX)))
        .route("/v2/models/{model}/infer", post(kserve::infer))
        .route("/v2/models/{model}/versions/{version}/infer", post(kserve::infer))
        .route("/predictions/{model}", post(kserve::predictions))
        .route("/predictions/{model}/{version}", post(kserve::predictions));
    let own = Router::new()
        .route("/v1/jobs", get(jobs::list).post(jobs::submit))
        .route("/v1/jobs/{job}", get(jobs::show).delete(jobs::cancel))
        .route("/v1/jobs/{job}/events", get(events::stream))
        .route("/v1/ws/jobs/{job}", get(events::socket))
        .route("/v1/jobs/{job}/images/{index}", get(images::image))
        .route("/v1/models", get(fleet::models))
        .route("/v1/models/{model}/wake", post(fleet::wake))
        .route("/v1/fleet", get(fleet::fleet))
        .route("/", get(console::page))
        .route("/console/config.json", get(console::config))
        .route("/console/{file}", get(console::file))
        .route("/openapi.json", get(health::openapi))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/replicate/v1/predictions", get(replicate::list).post(replicate::create))
        .route("/replicate/v1/webhooks/default/secret", get(replicate::secret))
        .route("/replicate/v1/predictions/{job}", get(replicate::get))
        .route("/replicate/v1/predictions/{job}/cancel", post(replicate::cancel))
        .route("/replicate/v1/models/{owner}/{name}/predictions", post(replicate::create_of_model))
        .route("/sdapi/v1/progress", get(a1111::progress))
        .route("/sdapi/v1/interrupt", post(a1111::interrupt))
        .route("/sdapi/v1/samplers", get(a1111::samplers))
        .route("/sdapi/v1/schedulers", get(a1111::schedulers))
        .route("/sdapi/v1/sd-models", get(a1111::models))
        .route("/sdapi/v1/options", get(a1111::options).post(a1111::set_options))
        .route("/v2", get(kserve::server))
        .route("/v2/health/live", get(kserve::live))
        .route("/v2/health/ready", get(kserve::ready))
        .route("/v2/models/{model}", get(kserve::model))
        .route("/v2/models/{model}/versions/{version}", get(kserve::model))
        .route("/v2/models/{model}/ready", get(kserve::model_ready))
        .route("/v2/models/{model}/versions/{version}/ready", get(kserve::model_ready))
        .route("/ping", get(kserve::ping))
        .route("/generate", post(tutorial::generate))
        .route("/jobs/{job}", get(tutorial::show).delete(tutorial::cancel))
        .route("/ws/jobs/{job}", get(tutorial::socket))
        .layer(in_time);
    own.merge(waiting)
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "no_such_path", "nothing is there"))
        .method_not_allowed_fallback(async || {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "no_such_method", "that cannot be done there")
        })
        .layer(DefaultBodyLimit::max(body_max))
        .layer(cors(&options.http_origins))
        .layer(from_fn_with_state(Arc::clone(&gateway), measured::measured))
        .with_state(gateway)
}

fn cors(origins: &[HeaderValue]) -> CorsLayer {
    let origins = match origins {
        [only] if only == "*" => AllowOrigin::any(),
        origins => AllowOrigin::list(origins.iter().cloned()),
    };
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            header::HeaderName::from_static("idempotency-key"),
            header::HeaderName::from_static("last-event-id"),
            header::HeaderName::from_static("prefer"),
        ])
        .expose_headers([header::LOCATION, header::RETRY_AFTER])
}

impl Gateway {
    /// The consumers of requests, as they were a moment ago.
    async fn served(&self) -> Result<Arc<[Served]>, Problem> {
        let now = self.clock.now();
        if let Some((looked, served)) = &*self.served.lock().unwrap_or_else(PoisonError::into_inner)
            && now.since(*looked) < SERVED_FOR
        {
            return Ok(Arc::clone(served));
        }
        let served = topology::served(&self.bus).await;
        let served: Arc<[Served]> = served.map_err(|error| Problem::unavailable(super::bus::chain(&error)))?.into();
        *self.served.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, Arc::clone(&served)));
        Ok(served)
    }

    /// The names of the models that are served, in their order.
    async fn model_names(&self) -> Result<Vec<String>, Problem> {
        let served = self.served().await?;
        Ok(topology::manifests(&served).iter().map(|manifest| manifest.name.to_string()).collect())
    }

    /// The model of that name, or the only one that is served.
    async fn model(&self, name: Option<&str>) -> Result<ModelManifest, Problem> {
        let served = self.served().await?;
        let manifests = topology::manifests(&served);
        let names = || {
            let names: Vec<&str> = manifests.iter().map(|manifest| manifest.name.as_str()).collect();
            if names.is_empty() { "none".to_owned() } else { names.join(", ") }
        };
        match name {
            Some(name) => {
                let found = manifests.iter().find(|manifest| manifest.name.as_str() == name);
                let unknown = || format!("the model {name:?} is not served; served are: {}", names());
                found
                    .map(|manifest| (*manifest).clone())
                    .ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "unknown_model", unknown()))
            }
            None => match &manifests[..] {
                [only] => Ok((*only).clone()),
                [] => Err(Problem::unavailable("no model is served")),
                _ => {
                    let detail = format!("several models are served; choose one with the field model: {}", names());
                    Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "model_missing", detail))
                }
            },
        }
    }
}

/// Who asks.
#[derive(Clone, Debug)]
struct Caller {
    tenant: Tenant,
}

impl FromRequestParts<Arc<Gateway>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, gateway: &Arc<Gateway>) -> Result<Self, Problem> {
        let unauthorized = |detail: &str| Problem {
            wants_key: true,
            ..Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
        };
        let Some(key) = shown_key(parts) else {
            let open = gateway.open_tenant.clone().map(|tenant| Self { tenant });
            return open.ok_or_else(|| unauthorized("an API key is needed: `Authorization: Bearer dk_…`"));
        };
        match gateway.keys.check(&key, gateway.clock.now()).await? {
            Checked::Of(tenant) => Ok(Self { tenant }),
            Checked::TooOften(again) => Err(Problem {
                retry_after_s: Some(again.as_secs().max(1)),
                ..Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", "this key has asked too often")
            }),
            Checked::Unknown => match (&gateway.open_tenant, key.starts_with(crate::wire::api_key::PREFIX)) {
                // Clients that cannot leave it out send anything.
                (Some(tenant), false) => Ok(Self { tenant: tenant.clone() }),
                _ => Err(unauthorized("nobody has this API key")),
            },
        }
    }
}

/// The key in the header, or in the query where browsers cannot set headers: event streams and web sockets. Clients that
/// know users and passwords have it as the password.
fn shown_key(parts: &Parts) -> Option<String> {
    let header = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let of_header = |text: &str| match text.split_once(' ')? {
        ("Bearer" | "Token", key) => Some(key.trim().to_owned()),
        ("Basic", encoded) => {
            let pair = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
            Some(pair.split_once(':')?.1.to_owned())
        }
        _ => None,
    };
    header.and_then(of_header).or_else(|| {
        let mut pairs = parts.uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(name, _)| *name == "api_key").map(|(_, key)| key.to_owned())
    })
}
