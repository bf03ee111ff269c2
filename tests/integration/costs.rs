//! What images cost, and what a worker tells those who watch it.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use crate::stack::{PATIENCE, Stack, program, started};
use crate::support::eventually;
use crate::support::http::{AsyncHandler, HttpServer, get};
use crate::support::nats;
use crate::support::process::run;

/// Amazon's metadata service, version 2: a token is put first; then there is no notice at first, and one from then on.
#[derive(Clone, Debug, Default)]
struct MetadataService {
    asked: Arc<AtomicUsize>,
}

impl AsyncHandler<Full<Bytes>> for MetadataService {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let shows_token = request.headers().get("x-aws-ec2-metadata-token").is_some_and(|token| token == "a-token");
        let (status, text) = match (request.method(), request.uri().path()) {
            (&Method::PUT, "/latest/api/token") => (StatusCode::OK, "a-token"),
            (&Method::GET, "/latest/meta-data/spot/instance-action") if shows_token => {
                match self.asked.fetch_add(1, Ordering::SeqCst) {
                    0 => (StatusCode::NOT_FOUND, ""),
                    _ => (StatusCode::OK, r#"{"action": "terminate", "time": "2026-11-26T12:00:00Z"}"#),
                }
            }
            _ => (StatusCode::UNAUTHORIZED, ""),
        };
        Response::builder().status(status).body(Full::new(text.into())).unwrap()
    }
}

fn body(steps: u32) -> Value {
    json!({"prompt": "a ring", "num_inference_steps": steps, "width": 64, "height": 64, "num_images": 2})
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_carry_their_cost_and_the_bill_has_all_that_was_paid() {
    let stack = Stack::start().await;
    let address = format!("127.0.0.1:{}", nats::free_port_pair());
    let mut command = stack.worker_command();
    command.args(["--capacity", "spot", "--instance-type", "g5.xlarge", "--price-per-hour", "36"]);
    let mut worker = started(command.args(["--exit-when-idle", "5s", "--metrics-listen", &address])).await;
    stack.request("one", &body(4)).await;
    let data = stack.end_of("one").await.terminal.unwrap();
    let gpu_ms = data["gpu_ms"].as_f64().unwrap();
    // 36 dollars an hour are a cent a second.
    assert!((data["cost"]["usd"].as_f64().unwrap() - gpu_ms / 1e5).abs() < 1e-8, "{data}");
    assert_eq!((&data["cost"]["capacity"], &data["cost"]["instance_type"]), (&json!("spot"), &json!("g5.xlarge")));

    // A worker counts what it has done after the record says so.
    for name in [
        r#"diffusion_requests_total{model="shapes",status="completed"} 1"#,
        "diffusion_generation_duration_seconds_count",
        "diffusion_queue_wait_seconds_bucket",
        r#"diffusion_phase_duration_seconds_count{model="shapes",phase="decoding"} 1"#,
        r#"darkroom_gpu_seconds_total{capacity="spot",model="shapes"}"#,
        r#"darkroom_cold_start_duration_seconds_count{model="shapes",phase="load"} 1"#,
        r#"darkroom_cold_start_duration_seconds_count{model="shapes",phase="first_step"} 1"#,
        "diffusion_rows_parked",
    ] {
        eventually(name, PATIENCE, async || {
            let metrics = get(&format!("http://{address}/metrics")).await.body.to_vec();
            String::from_utf8(metrics).unwrap().contains(name).then_some(())
        })
        .await;
    }
    assert_eq!(get(&format!("http://{address}/health")).await.status, StatusCode::OK);
    assert!(worker.wait(PATIENCE).await.success());

    let mut costs = Command::new(program("darkroom"));
    let printed = run(costs.args(["--nats", &stack.nats.url(), "--json", "costs", "--since", "2h"]), PATIENCE).await;
    let lines: Vec<Value> = printed.expect_success().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |kind: &str| lines.iter().find(|line| line["kind"] == kind).unwrap();
    let (pool, tenant, all) = (of("pool"), of("tenant"), of("all"));
    assert_eq!((&pool["model"], &pool["capacity"], &tenant["tenant"]), (&json!("shapes"), &json!("spot"), &json!("t")));
    let number = |line: &Value, name: &str| line[name].as_f64().unwrap();
    for line in [pool, tenant, all] {
        assert_eq!(line["images"], 2, "{line}");
        assert!((number(line, "gpu_hours") * 3.6e6 - gpu_ms).abs() < 0.01, "{line} {gpu_ms}");
        assert!((number(line, "usd") - 36.0 * number(line, "ran_hours")).abs() < 1e-9, "{line}");
        assert!((number(line, "usd_per_1000_images") - 500.0 * number(line, "usd")).abs() < 1e-9, "{line}");
    }
    // It waited five seconds for more.
    assert!(number(all, "ran_hours") * 3600.0 >= 5.0 && number(all, "idle_share") > 0.0, "{all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notice_of_the_cloud_hands_the_work_over() {
    let stack = Stack::start().await;
    let service = MetadataService::default();
    let server = HttpServer::start(service.clone()).await;
    let mut command = stack.worker_command();
    command.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.url());
    let mut worker = started(command.args(["--capacity", "spot", "--spot-notices", "ec2", "--grace", "6s"])).await;
    stack.request("long", &json!({"prompt": "a ring", "num_inference_steps": 100, "num_images": 8})).await;
    assert!(worker.wait(PATIENCE).await.success(), "{}", worker.stderr());
    assert!(worker.stderr().contains("spot.notice"), "{}", worker.stderr());
    assert!(service.asked.load(Ordering::SeqCst) >= 2);
    let _other = stack.worker().await;
    let record = stack.end_of("long").await;
    assert_eq!(record.terminal.unwrap()["images"].as_array().unwrap().len(), 8);
    assert_eq!(record.state.failures, 0, "to be taken away is no failure");
}
