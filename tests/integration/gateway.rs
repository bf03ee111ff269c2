//! The figures of what clients reach over HTTP: `cargo bench -p darkroom-integration --bench gateway [-- PART]`, after
//! `cargo build --release --workspace --bins`. The parts are `watchers`, `delay` and `deliveries`; all without one.
//!
//! Prints what was measured, and judges only that no webhook is lost.

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods, reason = "a benchmark")]

mod figures;
#[allow(dead_code, reason = "the tests use the rest")]
mod stack;
#[path = "../support/mod.rs"]
mod support;
#[allow(dead_code, reason = "the tests use the rest")]
mod told;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use darkroom::job::WebhookEvent;
use darkroom::wire::event::EventKind;
use futures_util::{StreamExt, stream};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::task::JoinSet;

use figures::{resident_mb, shares};
use stack::{PATIENCE, Stack, program};
use support::process::Background;
use support::receiver::{Receiver, Reply};
use told::Jobs;

const WATCHERS: usize = 1_000;
const SUBMISSIONS_PER_S: u32 = 200;
const FOR: Duration = Duration::from_secs(60);
const DELAYS: usize = 1_000;
const DELIVERIES: usize = 10_000;

#[tokio::main]
async fn main() {
    println!("{} cores", std::thread::available_parallelism().map_or(0, usize::from));
    let part = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let wanted = |name: &str| part.as_deref().is_none_or(|part| part == name);
    if wanted("watchers") {
        watchers().await;
    }
    if wanted("delay") {
        delay().await;
    }
    if wanted("deliveries") {
        deliveries().await;
    }
}

/// Submissions that cost no image, at a fixed rate: without and with watchers of jobs that run.
async fn watchers() {
    let stack = Stack::start().await;
    let mut command = Command::new(program("darkroom-gateway"));
    command.args(["--nats", &stack.nats.url(), "--store", &stack.store_url(), "--http-listen", "127.0.0.1:0"]);
    let gateway = Background::start(command.args(["--open-tenant", "t"]));
    let line = gateway.wait_for_log(|line| line.contains("gateway.http"), PATIENCE).await;
    let address = format!("http://{}", line.rsplit("address=").next().unwrap().trim());
    let client = Client::new();
    println!("{SUBMISSIONS_PER_S} submissions a second for {} s, half refused, half known already:", FOR.as_secs());
    submit(&client, &address, "nobody watches, no worker").await;
    println!("  resident memory of the gateway: {:.0} MB", resident_mb(gateway.id()));

    // Jobs enough for one worker and all the time.
    let _worker = stack.worker().await;
    let mut jobs = Vec::new();
    for seed in 0..50 {
        let body = json!({
            "prompt": "a yellow star on a blue background",
            "seed": seed,
            "width": 512,
            "height": 512,
            "num_inference_steps": 100,
            "num_images": 4,
        });
        let (status, job) = post(&client, &address, &body, None).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{job}");
        jobs.push(job["id"].as_str().unwrap().to_owned());
    }
    submit(&client, &address, "nobody watches, a worker is busy").await;
    let events = Arc::new(AtomicU64::new(0));
    let (opened, open) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut watching = JoinSet::new();
    for watcher in 0..WATCHERS {
        let url = format!("{address}/v1/jobs/{}/events", jobs[watcher % jobs.len()]);
        let (client, events) = (client.clone(), Arc::clone(&events));
        let (opened, open) = (Arc::clone(&opened), Arc::clone(&open));
        watching.spawn(async move {
            let response = client.get(url).send().await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            open.fetch_add(1, Ordering::Relaxed);
            opened.fetch_add(1, Ordering::Relaxed);
            let mut pieces = response.bytes_stream();
            while let Some(piece) = pieces.next().await {
                let piece = piece.unwrap();
                events.fetch_add(
                    piece.windows(7).filter(|window| window == b"\nevent:").count() as u64,
                    Ordering::Relaxed,
                );
            }
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
    // The streams of jobs that are done end again.
    while opened.load(Ordering::Relaxed) < WATCHERS {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let before = events.load(Ordering::Relaxed);
    submit(&client, &address, "1000 watch, a worker is busy").await;
    println!(
        "  {} watchers at the end, {} events to them; resident memory of the gateway: {:.0} MB",
        open.load(Ordering::Relaxed),
        events.load(Ordering::Relaxed) - before,
        resident_mb(gateway.id())
    );
    watching.shutdown().await;
}

/// Submits at the fixed rate, whether answers come or not, and prints how long they took.
async fn submit(client: &Client, address: &str, what: &str) {
    let known = json!({"prompt": "a ring", "priority": "low", "pool": "ondemand"});
    let (status, first) = post(client, address, &known, Some("known")).await;
    assert!(status.is_success(), "{first}");
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / SUBMISSIONS_PER_S);
    let mut asked = JoinSet::new();
    for index in 0..u64::from(SUBMISSIONS_PER_S) * FOR.as_secs() {
        let due = ticks.tick().await;
        let (client, address, known) = (client.clone(), address.to_owned(), known.clone());
        asked.spawn(async move {
            let (status, expected) = if index.is_multiple_of(2) {
                (post(&client, &address, &known, Some("known")).await.0.is_success(), "known")
            } else {
                let refused = json!({"prompt": "a ring", "width": 129});
                (post(&client, &address, &refused, None).await.0 == StatusCode::UNPROCESSABLE_ENTITY, "refused")
            };
            assert!(status, "{expected}");
            // From when it was due: what waits for its turn counts.
            due.elapsed().as_secs_f64() * 1e3
        });
    }
    let mut samples = asked.join_all().await;
    samples.sort_by(f64::total_cmp);
    println!("  {what}: {}", shares(&samples));
}

async fn post(client: &Client, address: &str, body: &Value, key: Option<&str>) -> (StatusCode, Value) {
    let mut request = client.post(format!("{address}/v1/jobs")).header("content-type", "application/json");
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    let response = request.body(body.to_string()).send().await.unwrap();
    let status = response.status();
    (status, serde_json::from_str(&response.text().await.unwrap()).unwrap())
}

/// From an event to its webhook, one after the other.
async fn delay() {
    let stack = Stack::start().await;
    let arrived: Arc<Mutex<BTreeMap<String, Instant>>> = Arc::default();
    let receiver = {
        let arrived = Arc::clone(&arrived);
        Receiver::start(move |id, _| {
            arrived.lock().unwrap().insert(id.to_owned(), Instant::now());
            Reply::Status(204)
        })
        .await
    };
    let _function = function(&stack, &[]).await;
    let jobs = Jobs::of(&stack).await;
    let mut samples = Vec::with_capacity(DELAYS);
    for index in 0..DELAYS {
        let job = format!("job-{index}");
        jobs.begin("t", &job, &receiver.url(), WebhookEvent::TERMINAL).await;
        let began = Instant::now();
        jobs.tell("t", &job, EventKind::Completed).await;
        let came = loop {
            if let Some(came) = arrived.lock().unwrap().iter().find(|(id, _)| id.contains(&job)).map(|(_, came)| *came)
            {
                break came;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        arrived.lock().unwrap().clear();
        samples.push(came.duration_since(began).as_secs_f64() * 1e3);
    }
    samples.sort_by(f64::total_cmp);
    println!("from the publishing of an event to the arrival of its webhook, {DELAYS} times: {}", shares(&samples));
}

/// Many deliveries at once to a receiver that often fails, by a function that is killed twice.
async fn deliveries() {
    let stack = Stack::start().await;
    let arrived: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let attempts = Arc::new(AtomicUsize::new(0));
    let receiver = {
        let (arrived, attempts) = (Arc::clone(&arrived), Arc::clone(&attempts));
        Receiver::start(move |id, nth| {
            attempts.fetch_add(1, Ordering::Relaxed);
            let fails = Sha256::digest(format!("{id} {nth}"))[0] < 77;
            if fails {
                return Reply::Status(500);
            }
            arrived.lock().unwrap().insert(id.to_owned());
            Reply::Status(204)
        })
        .await
    };
    let jobs = Arc::new(Jobs::of(&stack).await);
    let url = receiver.url();
    let retries = [
        "--webhook-retries",
        "200ms,200ms,200ms,200ms,200ms,200ms,200ms,200ms,200ms,200ms,200ms,200ms,200ms,200ms,200ms,200ms,200ms,200ms",
    ];
    let options = [&retries[..], &["--concurrency-per-host", "64"]].concat();
    let mut function = function(&stack, &options).await;
    let began = Instant::now();
    let telling = async {
        let job = |index: usize| {
            let (jobs, url) = (Arc::clone(&jobs), url.clone());
            async move { jobs.complete("t", &format!("job-{index}"), &url).await }
        };
        stream::iter(0..DELIVERIES).map(job).buffer_unordered(32).collect::<()>().await;
        began.elapsed()
    };
    let killing = async {
        for share in [3, 6] {
            while arrived.lock().unwrap().len() < DELIVERIES * share / 10 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            function.kill();
            function = self::function(&stack, &options).await;
        }
        while arrived.lock().unwrap().len() < DELIVERIES {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        began.elapsed()
    };
    let deadline = Duration::from_secs(600);
    let (told, all) = tokio::time::timeout(deadline, async { tokio::join!(telling, killing) }).await.unwrap();
    println!(
        "{DELIVERIES} webhooks to a receiver that fails 30 % of the attempts, by a function that is killed -9 twice: all \
         arrived after {:.1} s, events were published for {:.1} s; {} attempts",
        all.as_secs_f64(),
        told.as_secs_f64(),
        attempts.load(Ordering::Relaxed)
    );
}

async fn function(stack: &Stack, options: &[&str]) -> Background {
    let mut command = Command::new(program("darkroom-webhook"));
    command.args(["--nats", &stack.nats.url(), "--webhook-allow", "127.0.0.1"]).args(options);
    let function = Background::start(&mut command);
    function.wait_for_log(|line| line.contains("webhook.ready"), PATIENCE).await;
    function
}
