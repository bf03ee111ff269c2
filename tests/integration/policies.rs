//! The scheduler against its own request-level mode on the real engine: `cargo bench -p darkroom-integration --bench
//! policies [-- JOBS LOAD]`, after `cargo build --release --workspace --bins`.
//!
//! The same jobs at the same moments, for the one and for the other: a Poisson stream of mixed step counts at a share of
//! what one worker does of a full queue, measured before. Prints what was measured and judges nothing but the pictures, which must be the
//! same bytes.

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods, reason = "a benchmark")]

#[allow(dead_code, reason = "the tests use the rest")]
mod stack;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use darkroom::wire::event::EventKind;
use futures_util::StreamExt;
use serde_json::{Value, json};

use stack::{PATIENCE, REQUESTS, Stack, started};

const STEPS: [u32; 4] = [4, 8, 20, 50];
const SIDE: u32 = 128;

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1).filter_map(|argument| argument.parse::<f64>().ok());
    let jobs = arguments.next().unwrap_or(200.0) as usize;
    let load = arguments.next().unwrap_or(0.8);
    let service_s = service_s().await;
    println!(
        "shapes, {SIDE} × {SIDE}, {jobs} jobs of {STEPS:?} steps, load {load}; a job takes {service_s:.3} s of a full queue"
    );
    let mut results = BTreeMap::new();
    for policy in ["fixed", "adaptive", "fixed", "adaptive"] {
        let (mut totals, pictures) = run(policy, jobs, service_s / load).await;
        totals.sort_by(f64::total_cmp);
        let at = |share: f64| totals[((totals.len() as f64 * share) as usize).min(totals.len() - 1)];
        println!("{policy:9} total time p50 {:.2} s, p95 {:.2} s, p99 {:.2} s", at(0.5), at(0.95), at(0.99));
        results.entry(policy).or_insert_with(Vec::new).push((at(0.95), pictures));
    }
    let all: Vec<_> = results.values().flatten().map(|(_, pictures)| pictures).collect();
    assert!(all.iter().all(|pictures| *pictures == all[0]), "a policy changed a picture");
    for (round, (adaptive, fixed)) in results["adaptive"].iter().zip(&results["fixed"]).enumerate() {
        println!("p95 of total time, adaptive to fixed, round {}: {:.2}", round + 1, adaptive.0 / fixed.0);
    }
    println!("all {jobs} pictures have the same bytes");
}

/// What one job of the mixture takes of a worker that has a full queue: its batches are as full as they get.
async fn service_s() -> f64 {
    const JOBS: usize = 60;
    let stack = Stack::start().await;
    let _worker = stack.worker().await;
    stack.request("warm-up", &body(STEPS[0], 0)).await;
    stack.events_to_the_end("t", "warm-up").await;
    let mut completed = stack.bus.client.subscribe("darkroom.ev.t.*.completed").await.unwrap();
    stack.bus.client.flush().await.unwrap();
    let began = Instant::now();
    for (index, steps) in STEPS.iter().cycle().take(JOBS).enumerate() {
        stack.request(&format!("full-{index}"), &body(*steps, index)).await;
    }
    for _ in 0..JOBS {
        tokio::time::timeout(PATIENCE, completed.next()).await.unwrap().unwrap();
    }
    began.elapsed().as_secs_f64() / JOBS as f64
}

fn body(steps: u32, index: usize) -> Value {
    let colour = ["red", "green", "blue", "yellow", "purple"][index % 5];
    json!({
        "prompt": format!("a {colour} circle on a white background"), "num_inference_steps": steps, "seed": index,
        "width": SIDE, "height": SIDE,
    })
}

/// Total times in seconds, and the digests of all pictures.
async fn run(policy: &str, jobs: usize, every_s: f64) -> (Vec<f64>, BTreeMap<String, String>) {
    let stack = Stack::start().await;
    let _worker = started(stack.worker_command().args(["--policy", policy])).await;
    let mut events = stack.bus.client.subscribe("darkroom.ev.t.*.*").await.unwrap();
    stack.bus.client.flush().await.unwrap();
    // A stream of its own for chance, the same for every run.
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1_u64 << 53) as f64
    };
    let mut at_s = 0.0;
    let plan: Vec<(f64, u32)> = (0..jobs)
        .map(|_| {
            at_s += -every_s * (1.0 - random()).ln();
            (at_s, STEPS[(random() * 4.0) as usize])
        })
        .collect();
    let began = Instant::now();
    let publish = async {
        for (index, (at_s, steps)) in plan.iter().enumerate() {
            tokio::time::sleep_until((began + Duration::from_secs_f64(*at_s)).into()).await;
            stack
                .publish(REQUESTS, Some(&format!("job-{index}")), serde_json::to_vec(&body(*steps, index)).unwrap())
                .await;
        }
    };
    let collect = async {
        let (mut totals, mut pictures) = (Vec::new(), BTreeMap::new());
        while totals.len() < jobs {
            let message = tokio::time::timeout(PATIENCE, events.next()).await.unwrap().unwrap();
            let event: Value = serde_json::from_slice(&message.payload).unwrap();
            if EventKind::from_type(event["type"].as_str().unwrap()).unwrap() == EventKind::Completed {
                let job = event["subject"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
                let index: usize = job.strip_prefix("job-").unwrap().parse().unwrap();
                totals.push(began.elapsed().as_secs_f64() - plan[index].0);
                pictures.insert(job, event["data"]["images"][0]["sha256"].as_str().unwrap().to_owned());
            }
        }
        (totals, pictures)
    };
    let ((), collected) = tokio::join!(publish, collect);
    collected
}
