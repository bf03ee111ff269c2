//! Telemetry: a request's trace goes on through batch, store and event; metrics say what happened.

use std::time::Duration;

use async_nats::HeaderMap;
use serde_json::{Value, json};

use crate::stack::{PATIENCE, REQUESTS, Stack, started};
use crate::support::otlp::{OtlpReceiver, ReceivedSpan};
use darkroom::wire::request::hexadecimal;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn trace_of(span: &ReceivedSpan) -> String {
    hexadecimal(&span.span.trace_id)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trace_of_a_request_goes_on_through_batch_store_and_event() {
    let stack = Stack::start().await;
    let otlp = OtlpReceiver::start().await;
    let mut command = stack.worker_command();
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", otlp.endpoint()).args(["--exit-when-idle", "1s"]);
    let mut worker = started(&mut command).await;
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", "traced");
    headers.insert("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-01"));
    let body = json!({"prompt": "a cross", "num_inference_steps": 3, "width": 64, "height": 64});
    stack.bus.publish(REQUESTS, headers, serde_json::to_vec(&body).unwrap().into()).await.unwrap();
    stack.end_of("traced").await;
    assert!(worker.wait(PATIENCE).await.success());

    let received = otlp
        .wait_for(
            |received| {
                !received.spans_named("job.process").is_empty()
                    && received.metric_named("diffusion_requests_total").is_some()
                    && received.has_logged("worker.exit")
            },
            Duration::from_secs(30),
        )
        .await;
    let span = |name: &str| received.spans_named(name).into_iter().next().unwrap_or_else(|| panic!("no span {name}"));
    let process = span("job.process");
    assert_eq!(trace_of(process), TRACE);
    assert_eq!(process.attribute("job.id").as_deref(), Some("traced"));
    for name in ["job.encode_ahead", "job.encode", "job.decode", "job.store", "job.settle"] {
        assert_eq!(trace_of(span(name)), TRACE, "{name}");
    }
    let (ahead, admitted) = (&span("job.encode_ahead").span, &span("job.encode").span);
    assert!(ahead.end_time_unix_nano <= admitted.start_time_unix_nano, "prompts were ready when it was admitted");
    let step = span("batch.step");
    assert_ne!(trace_of(step), TRACE, "a step belongs to no single job");
    assert!(
        step.span.links.iter().any(|link| hexadecimal(&link.trace_id) == TRACE),
        "but is linked to those it works for"
    );
    let events = stack.stored("DARKROOM_EV", "darkroom.ev.t.traced.").await;
    for event in &events {
        let parent = event.headers.as_ref().unwrap().get("traceparent").unwrap().as_str();
        assert!(parent.contains(TRACE), "{}: {parent}", event.subject);
    }
    assert_eq!(events.len(), 3);

    for name in [
        "diffusion_requests_total",
        "diffusion_generation_duration_seconds",
        "diffusion_phase_duration_seconds",
        "diffusion_queue_wait_seconds",
        "diffusion_batch_size",
        "diffusion_step_duration_seconds",
    ] {
        assert!(received.metric_named(name).is_some(), "no metric {name}");
    }
    assert!((received.metric_named("diffusion_requests_total").unwrap().total() - 1.0).abs() < f64::EPSILON);
}

#[tokio::test(flavor = "multi_thread")]
async fn prompts_do_not_reach_logs() {
    let stack = Stack::start().await;
    let otlp = OtlpReceiver::start().await;
    let mut command = stack.worker_command();
    command.args(["--exit-when-idle", "1s"]).env("OTEL_EXPORTER_OTLP_ENDPOINT", otlp.endpoint());
    command.env("DARKROOM_LOG", "debug").env("DARKROOM_LOG_FORMAT", "json");
    let mut worker = started(&mut command).await;
    stack
        .request("secret", &json!({"prompt": "xyzzyplugh", "num_inference_steps": 2, "width": 64, "height": 64}))
        .await;
    stack.end_of("secret").await;
    worker.wait(PATIENCE).await;
    let lines = worker.stderr();
    assert!(!lines.contains("xyzzyplugh"));
    let logged = |line: &str| serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    assert!(lines.lines().map(logged).any(|line| line["message"] == "worker.exit"));
    let received = otlp.wait_for(|received| received.has_logged("worker.exit"), PATIENCE).await;
    assert!(!format!("{:?}", received.logs).contains("xyzzyplugh"));
}
