//! OpenTelemetry: logs to standard error always; traces, metrics and logs over OTLP when an endpoint is configured; metrics
//! for Prometheus when it may ask (`shell::exposition` answers).
//!
//! The endpoint and everything else come from the standard variables (`OTEL_EXPORTER_OTLP_ENDPOINT`, …).

use std::collections::HashMap;
use std::io::IsTerminal;

use async_nats::HeaderMap;
use opentelemetry::global;
use opentelemetry::metrics::Meter;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{Context, KeyValue};
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// What must be flushed at the end.
#[derive(Debug)]
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
    metrics: Option<SdkMeterProvider>,
    logs: Option<SdkLoggerProvider>,
}

/// Why telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The exporter refused its configuration.
    #[error("the OTLP exporter cannot be used")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    /// Prometheus' registry refused the exporter.
    #[error("metrics cannot be kept for Prometheus")]
    Registry(#[from] opentelemetry_sdk::error::OTelSdkError),
    /// A form of lines that there is not.
    #[error("DARKROOM_LOG_FORMAT is {0:?}, must be text or json")]
    Format(String),
    /// A subscriber was installed before.
    #[error("telemetry is set up already")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// Who reads metrics besides an OTLP endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scraped {
    /// Nobody.
    Never,
    /// Prometheus, from its default registry.
    ByPrometheus,
}

/// Sets up logs, and OTLP for all three if the environment names an endpoint. Once per process.
///
/// # Errors
/// [`TelemetryError`].
pub fn start(service: &'static str, log_default: &str, scraped: Scraped) -> Result<Telemetry, TelemetryError> {
    let endpoint = |signal: &str| {
        let named = |name: &str| std::env::var(name).is_ok_and(|value| !value.is_empty());
        named("OTEL_EXPORTER_OTLP_ENDPOINT") || named(&format!("OTEL_EXPORTER_OTLP_{signal}_ENDPOINT"))
    };
    let resource = Resource::builder()
        .with_service_name(service)
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();

    let traces = if endpoint("TRACES") {
        let exporter = opentelemetry_otlp::SpanExporter::builder().with_http().build()?;
        Some(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.clone()).build())
    } else {
        None
    };
    let log_resource = resource.clone();
    let mut readers = SdkMeterProvider::builder().with_resource(resource);
    if endpoint("METRICS") {
        readers = readers.with_periodic_exporter(opentelemetry_otlp::MetricExporter::builder().with_http().build()?);
    }
    if scraped == Scraped::ByPrometheus {
        // Names say units and what is a counter already, so that they are the same wherever they are read.
        let exporter =
            opentelemetry_prometheus::exporter().without_units().without_counter_suffixes().scope_info_enabled(false);
        readers = readers.with_reader(exporter.with_registry(prometheus::default_registry().clone()).build()?);
    }
    let metrics = (endpoint("METRICS") || scraped == Scraped::ByPrometheus).then(|| {
        let provider = readers.build();
        global::set_meter_provider(provider.clone());
        provider
    });

    let filter = EnvFilter::try_from_env("DARKROOM_LOG")
        .unwrap_or_else(|_| EnvFilter::new(format!("{log_default},async_nats=warn")));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    let lines = match std::env::var("DARKROOM_LOG_FORMAT").as_deref() {
        Err(_) | Ok("" | "text") => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        Ok("json") => lines.json().flatten_event(true).boxed(),
        Ok(other) => return Err(TelemetryError::Format(other.to_owned())),
    };
    let logs = if endpoint("LOGS") {
        let exporter = opentelemetry_otlp::LogExporter::builder().with_http().build()?;
        Some(SdkLoggerProvider::builder().with_batch_exporter(exporter).with_resource(log_resource).build())
    } else {
        None
    };
    // Not of what sends them, which would have more to say with everything that it sends; and no prompts, whatever is wanted
    // on this machine.
    let sent = logs.as_ref().map(|provider| {
        OpenTelemetryTracingBridge::new(provider).with_filter(EnvFilter::new("darkroom=info,async_nats=warn"))
    });
    let spans = traces.as_ref().map(|provider| {
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("darkroom"))
            .with_filter(EnvFilter::new("darkroom=info"))
    });
    tracing_subscriber::registry().with(lines.with_filter(filter)).with(spans).with(sent).try_init()?;
    Ok(Telemetry { traces, metrics, logs })
}

impl Telemetry {
    /// Sends what is left. Blocks for as long as the exporter's timeout.
    pub fn flush(self) {
        let flushed = [
            self.traces.map(|traces| traces.shutdown()),
            self.metrics.map(|metrics| metrics.shutdown()),
            self.logs.map(|logs| logs.shutdown()),
        ];
        for error in flushed.into_iter().flatten().filter_map(Result::err) {
            tracing::warn!(%error, "telemetry.flush");
        }
    }
}

/// The meter of all instruments.
pub fn meter() -> Meter {
    global::meter("darkroom")
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(async_nats::HeaderValue::as_str)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name.as_ref()).collect()
    }
}

struct HeadersMut<'a>(&'a mut HeaderMap);

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        self.0.insert(key, value.as_str());
    }
}

/// The trace context of a request's headers.
pub fn extract(headers: Option<&HeaderMap>) -> Context {
    match headers {
        Some(headers) => TraceContextPropagator::new().extract(&Headers(headers)),
        None => Context::new(),
    }
}

/// Puts the trace context of the present span into headers; nothing when there is none.
pub fn inject(headers: &mut HeaderMap) {
    let context = tracing::Span::current().context();
    let mut fields = HashMap::new();
    TraceContextPropagator::new().inject_context(&context, &mut fields);
    for (name, value) in fields {
        HeadersMut(headers).set(&name, value);
    }
}
