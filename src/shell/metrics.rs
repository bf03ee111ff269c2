//! Every metric, one function each. Without an OTLP endpoint they cost next to nothing.

use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter};

/// The instruments of a worker.
#[derive(Clone, Debug)]
pub struct Metrics {
    model: String,
    requests: Counter<u64>,
    generation: Histogram<f64>,
    queue_size: Gauge<u64>,
    queue_wait: Histogram<f64>,
    batch_size: Histogram<u64>,
    step: Histogram<f64>,
    start_error: Histogram<f64>,
    failures: Counter<u64>,
}

/// The instruments of the dead-letter function.
#[derive(Clone, Debug)]
pub struct ReconcilerMetrics {
    repairs: Counter<u64>,
    findings: Counter<u64>,
}

impl ReconcilerMetrics {
    /// Makes them.
    pub fn new(meter: &Meter) -> Self {
        let counter = |name: &'static str, description: &'static str| {
            meter.u64_counter(name).with_description(description).build()
        };
        Self {
            repairs: counter(
                "darkroom.reconciler.repairs",
                "Disagreements of queue, records and events that were mended",
            ),
            findings: counter("darkroom.reconciler.findings", "Disagreements that were only seen"),
        }
    }

    /// Something was mended.
    pub fn repaired(&self, kind: &'static str) {
        self.repairs.add(1, &[KeyValue::new("kind", kind)]);
    }

    /// Something was seen.
    pub fn found(&self, kind: &'static str) {
        self.findings.add(1, &[KeyValue::new("kind", kind)]);
    }
}

/// The instruments of the webhook function.
#[derive(Clone, Debug)]
pub struct WebhookMetrics {
    attempts: Counter<u64>,
    given_up: Counter<u64>,
}

impl WebhookMetrics {
    /// Makes them.
    pub fn new(meter: &Meter) -> Self {
        let counter = |name: &'static str, description: &'static str| {
            meter.u64_counter(name).with_description(description).build()
        };
        Self {
            attempts: counter("darkroom.webhook.attempts", "Attempts to tell a receiver of an event"),
            given_up: counter("darkroom.webhook.given_up", "Events that a receiver was not told of"),
        }
    }

    /// An attempt was made, and ended so.
    pub fn attempted(&self, outcome: &'static str) {
        self.attempts.add(1, &[KeyValue::new("outcome", outcome)]);
    }

    /// A delivery will not be tried again.
    pub fn given_up(&self, why: &'static str) {
        self.given_up.add(1, &[KeyValue::new("why", why)]);
    }
}

/// What the gateway knows of the server.
#[derive(Clone, Debug)]
pub struct ServerMetrics {
    stream_writable: Gauge<u64>,
}

impl ServerMetrics {
    /// Makes them.
    pub fn new(meter: &Meter) -> Self {
        let description = "1 where a stream takes messages, 0 where it does not, as when the server's disk is full";
        Self { stream_writable: meter.u64_gauge("darkroom.stream.writable").with_description(description).build() }
    }

    /// Whether a stream takes messages.
    pub fn stream_writable(&self, stream: &'static str, is_writable: bool) {
        self.stream_writable.record(u64::from(is_writable), &[KeyValue::new("stream", stream)]);
    }
}

impl Metrics {
    /// Makes the instruments of a worker that serves `model`.
    pub fn new(meter: &Meter, model: &str) -> Self {
        let seconds = |name: &'static str, description: &'static str, boundaries: Vec<f64>| {
            meter.f64_histogram(name).with_unit("s").with_description(description).with_boundaries(boundaries).build()
        };
        let long = vec![0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];
        Self {
            model: model.to_owned(),
            requests: meter
                .u64_counter("diffusion_requests_total")
                .with_description("Jobs that reached a terminal state")
                .build(),
            generation: seconds(
                "diffusion_generation_duration_seconds",
                "From the claim of a job to its stored images",
                long.clone(),
            ),
            queue_size: meter
                .u64_gauge("diffusion_queue_size")
                .with_description("Requests that no worker has yet")
                .build(),
            queue_wait: seconds("diffusion_queue_wait_seconds", "From publish to delivery", long),
            batch_size: meter
                .u64_histogram("diffusion_batch_size")
                .with_description("Images in one denoising step")
                .with_boundaries(vec![1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0])
                .build(),
            step: seconds(
                "diffusion_step_duration_seconds",
                "One denoising step of a batch",
                vec![0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0],
            ),
            start_error: seconds(
                "diffusion_estimated_start_error_seconds",
                "From the estimated to the actual first step of a job: negative when it began sooner",
                vec![
                    -300.0, -60.0, -30.0, -10.0, -5.0, -2.5, -1.0, -0.25, 0.25, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
                ],
            ),
            failures: meter
                .u64_counter("diffusion_failures_total")
                .with_description("Attempts that failed and are tried again")
                .build(),
        }
    }

    fn model(&self) -> KeyValue {
        KeyValue::new("model", self.model.clone())
    }

    /// A job reached a terminal state.
    pub fn request_ended(&self, status: &'static str) {
        self.requests.add(1, &[KeyValue::new("status", status), self.model()]);
    }

    /// A job with so many steps was made in so much time.
    pub fn generated(&self, took: Duration, steps: u32) {
        self.generation.record(took.as_secs_f64(), &[self.model(), KeyValue::new("steps", i64::from(steps))]);
    }

    /// So many requests wait in one consumer.
    pub fn queue_size(&self, consumer: &str, pending: u64) {
        self.queue_size.record(pending, &[self.model(), KeyValue::new("consumer", consumer.to_owned())]);
    }

    /// A request waited so long.
    pub fn queue_wait(&self, waited: Duration) {
        self.queue_wait.record(waited.as_secs_f64(), &[self.model()]);
    }

    /// A step of so many images took so long.
    pub fn stepped(&self, images: usize, took: Duration) {
        self.batch_size.record(images as u64, &[self.model()]);
        self.step.record(took.as_secs_f64(), &[self.model()]);
    }

    /// A job began so many milliseconds later than was estimated.
    pub fn estimated_start_error(&self, error_ms: i64) {
        self.start_error.record(error_ms as f64 / 1e3, &[self.model()]);
    }

    /// An attempt failed and will be made again.
    pub fn attempt_failed(&self, code: &'static str) {
        self.failures.add(1, &[KeyValue::new("code", code), self.model()]);
    }
}
