//! An OTLP receiver: protobuf over HTTP, as the collector has it, that keeps what it gets.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode, header};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::metrics::v1::{Metric, metric, number_data_point};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

use super::eventually;
use super::http::{AsyncHandler, HttpServer};

/// A span and whose it is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ReceivedSpan {
    /// `service.name`.
    pub(crate) service: String,
    pub(crate) span: Span,
}

impl ReceivedSpan {
    /// An attribute in text form.
    pub(crate) fn attribute(&self, name: &str) -> Option<String> {
        attribute(&self.span.attributes, name)
    }
}

/// A metric as one export had it, and whose it is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ReceivedMetric {
    /// `service.name`.
    pub(crate) service: String,
    pub(crate) metric: Metric,
}

impl ReceivedMetric {
    /// Sums and gauges: their points added up. Histograms: how many values were recorded.
    pub(crate) fn total(&self) -> f64 {
        let numbers = match &self.metric.data {
            Some(metric::Data::Gauge(gauge)) => &gauge.data_points,
            Some(metric::Data::Sum(sum)) => &sum.data_points,
            Some(metric::Data::Histogram(histogram)) => {
                return histogram.data_points.iter().map(|point| point.count as f64).sum();
            }
            Some(metric::Data::ExponentialHistogram(histogram)) => {
                return histogram.data_points.iter().map(|point| point.count as f64).sum();
            }
            Some(metric::Data::Summary(_)) | None => return 0.0,
        };
        let value = |value: &Option<number_data_point::Value>| match value {
            Some(number_data_point::Value::AsDouble(value)) => *value,
            Some(number_data_point::Value::AsInt(value)) => *value as f64,
            None => 0.0,
        };
        numbers.iter().map(|point| value(&point.value)).sum()
    }
}

/// All that came in.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Received {
    pub(crate) spans: Vec<ReceivedSpan>,
    /// Every export of every metric: cumulative ones come again and again.
    pub(crate) metrics: Vec<ReceivedMetric>,
    pub(crate) logs: Vec<LogRecord>,
}

impl Received {
    /// The spans of a name.
    pub(crate) fn spans_named(&self, name: &str) -> Vec<&ReceivedSpan> {
        self.spans.iter().filter(|received| received.span.name == name).collect()
    }

    /// Whether these words were logged.
    pub(crate) fn has_logged(&self, words: &str) -> bool {
        let body = |record: &LogRecord| record.body.as_ref().and_then(|body| body.value.as_ref()).map(text);
        self.logs.iter().any(|record| body(record).as_deref() == Some(words))
    }

    /// The last export of a metric.
    pub(crate) fn metric_named(&self, name: &str) -> Option<&ReceivedMetric> {
        self.metrics.iter().rev().find(|received| received.metric.name == name)
    }
}

/// A running receiver. Gone when dropped.
#[derive(Debug)]
pub(crate) struct OtlpReceiver {
    http: HttpServer,
    received: Arc<Mutex<Received>>,
}

impl OtlpReceiver {
    /// Starts one.
    pub(crate) async fn start() -> Self {
        let received = Arc::<Mutex<Received>>::default();
        let http = HttpServer::start(Handler { received: Arc::clone(&received) }).await;
        Self { http, received }
    }

    /// What `OTEL_EXPORTER_OTLP_ENDPOINT` takes.
    pub(crate) fn endpoint(&self) -> String {
        self.http.url()
    }

    /// All that came in so far.
    pub(crate) fn received(&self) -> Received {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The spans that came in so far.
    pub(crate) fn spans(&self) -> Vec<ReceivedSpan> {
        self.received().spans
    }

    /// The metrics that came in so far, once for every export.
    pub(crate) fn metrics(&self) -> Vec<ReceivedMetric> {
        self.received().metrics
    }

    /// Waits until `is_enough` holds of what came in.
    ///
    /// # Panics
    /// If it does not within `deadline`.
    pub(crate) async fn wait_for(&self, is_enough: impl Fn(&Received) -> bool, deadline: Duration) -> Received {
        eventually("the telemetry that is waited for", deadline, async || Some(self.received()).filter(&is_enough))
            .await
    }
}

#[derive(Clone)]
struct Handler {
    received: Arc<Mutex<Received>>,
}

impl AsyncHandler<Full<Bytes>> for Handler {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path().to_owned();
        let is_plain = !request.headers().contains_key(header::CONTENT_ENCODING);
        let is_protobuf =
            request.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/x-protobuf");
        let Ok(body) = request.into_body().collect().await else { return status(StatusCode::BAD_REQUEST) };
        if !is_plain || !is_protobuf {
            return status(StatusCode::UNSUPPORTED_MEDIA_TYPE);
        }
        let body = body.to_bytes();
        let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        match path.as_str() {
            "/v1/traces" => {
                let Ok(export) = ExportTraceServiceRequest::decode(body) else {
                    return status(StatusCode::BAD_REQUEST);
                };
                for group in export.resource_spans {
                    let service = service(group.resource.as_ref());
                    let spans = group.scope_spans.into_iter().flat_map(|scope| scope.spans);
                    received.spans.extend(spans.map(|span| ReceivedSpan { service: service.clone(), span }));
                }
            }
            "/v1/metrics" => {
                let Ok(export) = ExportMetricsServiceRequest::decode(body) else {
                    return status(StatusCode::BAD_REQUEST);
                };
                for group in export.resource_metrics {
                    let service = service(group.resource.as_ref());
                    let metrics = group.scope_metrics.into_iter().flat_map(|scope| scope.metrics);
                    received.metrics.extend(metrics.map(|metric| ReceivedMetric { service: service.clone(), metric }));
                }
            }
            "/v1/logs" => {
                let Ok(export) = ExportLogsServiceRequest::decode(body) else {
                    return status(StatusCode::BAD_REQUEST);
                };
                let scopes = export.resource_logs.into_iter().flat_map(|group| group.scope_logs);
                received.logs.extend(scopes.flat_map(|scope| scope.log_records));
            }
            _ => return status(StatusCode::NOT_FOUND),
        }
        // The answer of the protocol: a message without fields, which is no bytes.
        let mut response = status(StatusCode::OK);
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/x-protobuf"));
        response
    }
}

fn status(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

fn service(resource: Option<&Resource>) -> String {
    resource.and_then(|resource| attribute(&resource.attributes, "service.name")).unwrap_or_default()
}

fn attribute(attributes: &[KeyValue], name: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == name)?;
    Some(text(found.value.as_ref()?.value.as_ref()?))
}

fn text(value: &any_value::Value) -> String {
    match value {
        any_value::Value::StringValue(text) => text.clone(),
        any_value::Value::BoolValue(value) => value.to_string(),
        any_value::Value::IntValue(value) => value.to_string(),
        any_value::Value::DoubleValue(value) => value.to_string(),
        any_value::Value::ArrayValue(array) => {
            let texts: Vec<String> =
                array.values.iter().filter_map(|AnyValue { value }| value.as_ref().map(text)).collect();
            texts.join(",")
        }
        any_value::Value::BytesValue(_)
        | any_value::Value::KvlistValue(_)
        | any_value::Value::StringValueStrindex(_) => format!("{value:?}"),
    }
}
