//! Every metric, by the names that dashboards and alerts know. Without anybody who reads them they cost next to nothing.

use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{AsyncInstrument, Counter, Gauge, Histogram, Meter};

use crate::job::{Capacity, ModelName, Status};
use crate::wire::event::Timings;

/// Of requests and phases: from a glance to ten minutes.
const LONG_S: [f64; 12] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];
/// Of steps and answers.
const SHORT_S: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

fn counter(meter: &Meter, name: &'static str, description: &'static str) -> Counter<u64> {
    meter.u64_counter(name).with_description(description).build()
}

fn sum(meter: &Meter, name: &'static str, description: &'static str) -> Counter<f64> {
    meter.f64_counter(name).with_description(description).build()
}

fn gauge(meter: &Meter, name: &'static str, description: &'static str) -> Gauge<u64> {
    meter.u64_gauge(name).with_description(description).build()
}

fn seconds(meter: &Meter, name: &'static str, description: &'static str, boundaries: &[f64]) -> Histogram<f64> {
    let boundaries = boundaries.to_vec();
    meter.f64_histogram(name).with_unit("s").with_description(description).with_boundaries(boundaries).build()
}

/// A request became a dead letter, here; so rarely that no instrument is kept for it.
pub fn dead_letter(meter: &Meter, code: &str) {
    let letters = counter(meter, "darkroom_dead_letters_total", "Requests that became dead letters");
    letters.add(1, &[KeyValue::new("code", code.to_owned())]);
}

/// A GPU as it is at a moment; absent is what it does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Its number on this machine.
    pub id: u32,
    /// Memory that is in use, by whomever.
    pub used_bytes: Option<u64>,
    /// All of its memory.
    pub total_bytes: Option<u64>,
    /// The share of the last moments in which it was at work.
    pub utilization_percent: Option<u64>,
}

/// Looks at the GPUs whenever somebody reads metrics.
pub fn gpus(meter: &Meter, look: impl Fn() -> Vec<Gpu> + Clone + Send + Sync + 'static) {
    let gauge = |name: &'static str, description: &'static str, of: fn(&Gpu) -> Option<u64>| {
        let look = look.clone();
        let observe = move |observer: &dyn AsyncInstrument<u64>| {
            for gpu in look() {
                if let Some(value) = of(&gpu) {
                    observer.observe(value, &[KeyValue::new("gpu_id", i64::from(gpu.id))]);
                }
            }
        };
        let _ = meter.u64_observable_gauge(name).with_description(description).with_callback(observe).build();
    };
    gauge("gpu_memory_used_bytes", "Memory of the GPU that is in use", |gpu| gpu.used_bytes);
    gauge("gpu_memory_total_bytes", "Memory of the GPU", |gpu| gpu.total_bytes);
    gauge("gpu_utilization_percent", "Share of the last moments in which the GPU was at work", |gpu| {
        gpu.utilization_percent
    });
}

/// The instruments of a worker.
#[derive(Clone, Debug)]
pub struct Metrics {
    model: KeyValue,
    capacity: KeyValue,
    requests: Counter<u64>,
    images: Counter<u64>,
    generation: Histogram<f64>,
    queue_wait: Histogram<f64>,
    batch_size: Histogram<u64>,
    step: Histogram<f64>,
    phase: Histogram<f64>,
    rows_occupied: Gauge<u64>,
    rows_parked: Gauge<u64>,
    start_error: Histogram<f64>,
    failures: Counter<u64>,
    checkpoints: Counter<u64>,
    redeliveries: Counter<u64>,
    fence_losses: Counter<u64>,
    gpu_seconds: Counter<f64>,
    cost_dollars: Counter<f64>,
    worker_seconds: Counter<f64>,
    cold_start: Histogram<f64>,
    fetched_bytes: Counter<u64>,
}

impl Metrics {
    /// Makes the instruments of a worker that serves `model`.
    pub fn new(meter: &Meter, model: &ModelName, capacity: Capacity) -> Self {
        let images = vec![1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0];
        let early_and_late =
            [-300.0, -60.0, -30.0, -10.0, -5.0, -2.5, -1.0, -0.25, 0.25, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
        let metrics = Self {
            model: KeyValue::new("model", model.to_string()),
            capacity: KeyValue::new("capacity", capacity.as_str()),
            requests: counter(meter, "diffusion_requests_total", "Jobs that reached a terminal state"),
            images: counter(meter, "darkroom_images_total", "Images that were stored"),
            generation: seconds(
                meter,
                "diffusion_generation_duration_seconds",
                "From the claim of a job to its stored images",
                &LONG_S,
            ),
            queue_wait: seconds(meter, "diffusion_queue_wait_seconds", "From publish to delivery", &LONG_S),
            batch_size: meter
                .u64_histogram("diffusion_batch_size")
                .with_description("Images in one denoising step")
                .with_boundaries(images)
                .build(),
            step: seconds(meter, "diffusion_step_duration_seconds", "One denoising step of a batch", &SHORT_S),
            phase: seconds(meter, "diffusion_phase_duration_seconds", "One phase of a completed job", &LONG_S),
            rows_occupied: gauge(meter, "diffusion_rows_occupied", "Images in the step under way"),
            rows_parked: gauge(meter, "diffusion_rows_parked", "Images in the engine that wait for a step"),
            start_error: seconds(
                meter,
                "diffusion_estimated_start_error_seconds",
                "From the estimated to the actual first step of a job: negative when it began sooner",
                &early_and_late,
            ),
            failures: counter(meter, "diffusion_failures_total", "Attempts that failed and are tried again"),
            checkpoints: counter(meter, "darkroom_checkpoints_total", "Checkpoints by what became of them"),
            redeliveries: counter(meter, "darkroom_redeliveries_total", "Requests that came once more"),
            fence_losses: counter(meter, "darkroom_fence_losses_total", "Jobs that another worker had taken over"),
            gpu_seconds: sum(meter, "darkroom_gpu_seconds_total", "Time of the device on jobs"),
            cost_dollars: sum(
                meter,
                "darkroom_cost_dollars_total",
                "What the worker cost since its start, idle or not",
            ),
            worker_seconds: sum(meter, "darkroom_worker_seconds_total", "Time that workers ran, idle or not"),
            cold_start: seconds(
                meter,
                "darkroom_cold_start_duration_seconds",
                "From the start of the process, by phase",
                &LONG_S,
            ),
            fetched_bytes: counter(
                meter,
                "darkroom_model_fetched_bytes_total",
                "Bytes of models from the object store",
            ),
        };
        metrics.begin();
        metrics
    }

    /// Counters begin at nothing, so that the first of each kind is seen as one more.
    fn begin(&self) {
        for status in [Status::Completed, Status::Failed, Status::Cancelled] {
            self.requests.add(0, &self.with("status", status.as_str()));
        }
        for outcome in ["saved", "resumed", "damaged"] {
            self.checkpoints.add(0, &self.with("outcome", outcome));
        }
        for total in [&self.redeliveries, &self.fence_losses, &self.fetched_bytes] {
            total.add(0, &[self.model()]);
        }
        self.rows(0, 0);
        self.images.add(0, &self.on_capacity());
        for total in [&self.gpu_seconds, &self.cost_dollars, &self.worker_seconds] {
            total.add(0.0, &self.on_capacity());
        }
    }

    fn model(&self) -> KeyValue {
        self.model.clone()
    }

    fn with(&self, name: &'static str, value: &'static str) -> [KeyValue; 2] {
        [KeyValue::new(name, value), self.model()]
    }

    fn on_capacity(&self) -> [KeyValue; 2] {
        [self.model(), self.capacity.clone()]
    }

    /// A job reached a terminal state.
    pub fn request_ended(&self, status: &'static str) {
        self.requests.add(1, &self.with("status", status));
    }

    /// So many images of a job were stored.
    pub fn stored(&self, images: u64) {
        self.images.add(images, &self.on_capacity());
    }

    /// A job with so many steps was made in so much time.
    pub fn generated(&self, took: Duration, steps: u32, timings: &Timings) {
        self.generation.record(took.as_secs_f64(), &[self.model(), KeyValue::new("steps", i64::from(steps))]);
        for (phase, ms) in timings.phases() {
            self.phase.record(ms / 1e3, &self.with("phase", phase));
        }
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

    /// So many images are in the step under way, and so many others in the engine.
    pub fn rows(&self, occupied: usize, parked: usize) {
        self.rows_occupied.record(occupied as u64, &[self.model()]);
        self.rows_parked.record(parked as u64, &[self.model()]);
    }

    /// A job began so many milliseconds later than was estimated.
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of a wait fit")]
    pub fn estimated_start_error(&self, error_ms: i64) {
        self.start_error.record(error_ms as f64 / 1e3, &[self.model()]);
    }

    /// An attempt failed and will be made again.
    pub fn attempt_failed(&self, code: &'static str) {
        self.failures.add(1, &self.with("code", code));
    }

    /// A checkpoint was `saved`, `resumed` from, or found `damaged`.
    pub fn checkpoint(&self, outcome: &'static str) {
        self.checkpoints.add(1, &self.with("outcome", outcome));
    }

    /// A request came once more.
    pub fn redelivered(&self) {
        self.redeliveries.add(1, &[self.model()]);
    }

    /// A job turned out to be another worker's.
    pub fn fenced(&self) {
        self.fence_losses.add(1, &[self.model()]);
    }

    /// The device worked so long on jobs.
    pub fn gpu(&self, took: Duration) {
        self.gpu_seconds.add(took.as_secs_f64(), &self.on_capacity());
    }

    /// The worker ran for so long since it last said so, at so many dollars an hour.
    pub fn ran(&self, took: Duration, price_per_hour: f64) {
        self.worker_seconds.add(took.as_secs_f64(), &self.on_capacity());
        self.cost_dollars.add(took.as_secs_f64() / 3600.0 * price_per_hour, &self.on_capacity());
    }

    /// A phase of the start was over: `fetch`, `load`, `first_step`.
    pub fn cold_start(&self, phase: &'static str, took: Duration) {
        self.cold_start.record(took.as_secs_f64(), &self.with("phase", phase));
    }

    /// So many bytes of the model came from the object store.
    pub fn fetched(&self, bytes: u64) {
        self.fetched_bytes.add(bytes, &[self.model()]);
    }
}

/// The instruments of the scaler.
#[derive(Clone, Debug)]
pub struct ScalerMetrics {
    queue_size: Gauge<u64>,
    workers: Gauge<u64>,
    wanted: Gauge<u64>,
    backlog: Gauge<f64>,
}

impl ScalerMetrics {
    /// Makes them.
    pub fn new(meter: &Meter) -> Self {
        Self {
            queue_size: gauge(meter, "diffusion_queue_size", "Requests that no worker has yet"),
            workers: gauge(meter, "darkroom_workers", "Workers by what they say of themselves"),
            wanted: gauge(meter, "darkroom_workers_wanted", "Workers that there should be"),
            backlog: meter
                .f64_gauge("darkroom_backlog_seconds")
                .with_description("Engine time of all that waits and runs")
                .build(),
        }
    }

    /// So many requests wait in a consumer.
    pub fn queue_size(&self, model: &str, priority: &'static str, pool: &'static str, waiting: u64) {
        let labels = [("priority", priority), ("pool", pool)].map(|(name, value)| KeyValue::new(name, value));
        self.queue_size
            .record(waiting, &[KeyValue::new("model", model.to_owned()), labels[0].clone(), labels[1].clone()]);
    }

    /// So many workers are in a state.
    pub fn workers(&self, model: &str, capacity: Capacity, state: &'static str, count: u64) {
        let labels = [
            KeyValue::new("model", model.to_owned()),
            KeyValue::new("capacity", capacity.as_str()),
            KeyValue::new("state", state),
        ];
        self.workers.record(count, &labels);
    }

    /// So many workers there should be.
    pub fn wanted(&self, model: &str, capacity: Capacity, count: u64) {
        let labels = [KeyValue::new("model", model.to_owned()), KeyValue::new("capacity", capacity.as_str())];
        self.wanted.record(count, &labels);
    }

    /// So much engine time is to be spent on what is there.
    pub fn backlog(&self, model: &str, seconds: f64) {
        self.backlog.record(seconds, &[KeyValue::new("model", model.to_owned())]);
    }
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
        Self {
            repairs: counter(
                meter,
                "darkroom_reconciler_repairs_total",
                "Disagreements of queue, records and events that were mended",
            ),
            findings: counter(meter, "darkroom_reconciler_findings_total", "Disagreements that were only seen"),
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
        Self {
            attempts: counter(meter, "darkroom_webhook_attempts_total", "Attempts to tell a receiver of an event"),
            given_up: counter(meter, "darkroom_webhook_given_up_total", "Events that a receiver was not told of"),
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

/// The instruments of the gateway.
#[derive(Clone, Debug)]
pub struct GatewayMetrics {
    stream_writable: Gauge<u64>,
    requests: Histogram<f64>,
}

impl GatewayMetrics {
    /// Makes them.
    pub fn new(meter: &Meter) -> Self {
        let description = "1 where a stream takes messages, 0 where it does not, as when the server's disk is full";
        Self {
            stream_writable: gauge(meter, "darkroom_stream_writable", description),
            requests: seconds(
                meter,
                "http_server_request_duration_seconds",
                "From a request to the head of its answer",
                &SHORT_S,
            ),
        }
    }

    /// Whether a stream takes messages.
    pub fn stream_writable(&self, stream: &'static str, is_writable: bool) {
        self.stream_writable.record(u64::from(is_writable), &[KeyValue::new("stream", stream)]);
    }

    /// A request was answered, by the route that is called so.
    pub fn answered(&self, method: &str, route: &str, status: u16, took: Duration) {
        let labels = [
            KeyValue::new("http_request_method", method.to_owned()),
            KeyValue::new("http_route", route.to_owned()),
            KeyValue::new("http_response_status_code", i64::from(status)),
        ];
        self.requests.record(took.as_secs_f64(), &labels);
    }
}
