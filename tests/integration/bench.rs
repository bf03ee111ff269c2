//! The figures of the local stack: `cargo bench -p darkroom-integration`, after `cargo build --release --workspace --bins`.
//!
//! Prints what was measured and judges nothing: how much Darkroom adds to the engine's own time, how long the first image
//! takes from nothing running, and how much memory an idle worker has.

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods, reason = "a benchmark")]

mod figures;
#[allow(dead_code, reason = "the tests use the rest")]
mod stack;
#[path = "../support/mod.rs"]
mod support;

use std::process::Command;
use std::time::{Duration, Instant};

use darkroom::shell::bus;
use darkroom::shell::config::BusOptions;
use darkroom::wire::event::EventKind;
use futures_util::StreamExt;
use serde_json::{Value, json};

use figures::{resident_mb, shares};
use stack::{PATIENCE, REQUESTS, Stack, model_directory, program};
use support::nats;
use support::process::Background;

const JOBS: usize = 200;

#[tokio::main]
async fn main() {
    println!("the model shapes, 256 × 256, on {} cores", std::thread::available_parallelism().map_or(0, usize::from));
    overhead().await;
    first_image().await;
}

async fn overhead() {
    let stack = Stack::start().await;
    let worker = stack.worker().await;
    let mut samples = Vec::with_capacity(JOBS);
    // The first ones are not counted: they warm the caches of both servers.
    for index in 0..JOBS + 5 {
        let (took, data) = one_job(&stack.bus, &format!("bench-{index}"), 4).await;
        if index >= 5 {
            samples.push(took.as_secs_f64() * 1e3 - data["gpu_ms"].as_f64().unwrap());
        }
    }
    samples.sort_by(f64::total_cmp);
    println!("publish to `completed`, less the engine's own time, {JOBS} jobs one after the other:");
    println!("  {}", shares(&samples));
    println!("resident memory of the idle worker: {:.0} MB", resident_mb(worker.id()));
}

async fn first_image() {
    let mut samples = Vec::new();
    for round in 0..5 {
        let data = tempfile::tempdir().unwrap();
        let (port, http) = (nats::free_port_pair(), nats::free_port_pair());
        let mut command = Command::new(program("darkroom"));
        command
            .args(["up", "--idle", "30s", "--nats-port", &port.to_string(), "--http-port", &http.to_string(), "--data"])
            .arg(data.path());
        command.arg("--model").arg(model_directory()).arg("--nats-server").arg(nats::program());
        let up = Background::start(&mut command);
        let line = up.wait_for_line(|line| line.contains("ready"), PATIENCE).await;
        let line: Value = serde_json::from_str(&line).unwrap();
        let options = BusOptions::open(line["nats"].as_str().unwrap());
        let bus = bus::connect(&options, "bench").await.unwrap();
        let (took, _) = one_job(&bus, &format!("first-{round}"), 20).await;
        samples.push(took.as_secs_f64());
    }
    samples.sort_by(f64::total_cmp);
    let shown: Vec<String> = samples.iter().map(|seconds| format!("{seconds:.2}")).collect();
    println!("no worker running, publish to `completed` of 20 steps, five times: {} s", shown.join(", "));
}

async fn one_job(bus: &bus::Bus, id: &str, steps: u32) -> (Duration, Value) {
    let mut events = bus.client.subscribe(format!("darkroom.ev.t.{id}.>")).await.unwrap();
    bus.client.flush().await.unwrap();
    let body = json!({"prompt": "a red circle on a blue background", "num_inference_steps": steps, "seed": 7});
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Msg-Id", id);
    let began = Instant::now();
    bus.publish(REQUESTS, headers, serde_json::to_vec(&body).unwrap().into()).await.unwrap();
    loop {
        let message = tokio::time::timeout(PATIENCE, events.next()).await.unwrap().unwrap();
        let event: Value = serde_json::from_slice(&message.payload).unwrap();
        match EventKind::from_type(event["type"].as_str().unwrap()).unwrap() {
            EventKind::Completed => return (began.elapsed(), event["data"].clone()),
            EventKind::Failed | EventKind::Cancelled => panic!("{event}"),
            EventKind::Accepted | EventKind::Started | EventKind::Progress | EventKind::Checkpoint => {}
        }
    }
}
