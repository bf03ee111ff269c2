//! A day of requests in a few minutes under `darkroom up`: `cargo bench -p darkroom-integration --bench day [-- MINUTES [calm]]`,
//! after `cargo build --release --workspace --bins`.
//!
//! A calm day has half as many requests, longer ones, and no bursts: what the two cores of a small machine bear.
//!
//! Says how long processes ran for how long engines worked, how long jobs waited for their first step, and whether scaling in
//! disturbed any. Judges only the last.

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods, reason = "a benchmark")]

#[allow(dead_code, reason = "other benchmarks use the rest")]
mod figures;
#[allow(dead_code, reason = "the tests use the rest")]
mod stack;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use darkroom::shell::clock::Clock;
use darkroom::shell::config::BusOptions;
use darkroom::shell::{bus, fleet, usage};
use darkroom::wire::header;
use darkroom::wire::time::parse_rfc3339;
use darkroom::wire::usage::UsageReport;
use futures_util::StreamExt;
use serde_json::{Value, json};

use figures::shares;
use stack::{PATIENCE, model_directory, program};
use support::process::{Background, run};
use support::{eventually, nats};

const SEED: u64 = 7;
const INSTANCE_TYPE: &str = "g5.xlarge";
/// What a day is like.
struct Day {
    /// Requests in a minute when it is quietest and busiest.
    per_minute: [f64; 2],
    /// Bursts, at random times.
    bursts: usize,
    /// Steps of the shortest requests; others have up to twice as many more as [`STEPS_MORE`].
    steps: usize,
    /// How long an idle worker stays.
    idle: &'static str,
}

const USUAL: Day = Day { per_minute: [2.0, 14.0], bursts: 6, steps: 20, idle: "500ms" };
const CALM: Day = Day { per_minute: [1.0, 7.0], bursts: 0, steps: 80, idle: "300ms" };
const STEPS_MORE: usize = 10;
/// Requests of a burst.
const BURST: usize = 4;

/// A generator that gives the same numbers for the same seed: SplitMix64.
struct Random(u64);

impl Random {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// When requests come: two peaks, chance in between, and bursts.
fn arrivals(kind: &Day, day: Duration) -> Vec<Duration> {
    let [quiet, busy] = kind.per_minute;
    let mut random = Random(SEED);
    let day_s = day.as_secs_f64();
    let rate = |at_s: f64| {
        let of_day = at_s / day_s * std::f64::consts::TAU;
        let curve = (0.5 - 0.4 * of_day.cos() + 0.2 * (2.0 * of_day).sin()).clamp(0.0, 1.0);
        (quiet + (busy - quiet) * curve) / 60.0
    };
    let (mut at_s, mut times) = (0.0, Vec::new());
    // Candidates at the highest rate, of which as many stay as the rate at that time says.
    while at_s < day_s {
        at_s += -(1.0 - random.unit()).ln() * 60.0 / busy;
        if random.unit() < rate(at_s) * 60.0 / busy {
            times.push(at_s);
        }
    }
    for _ in 0..kind.bursts {
        let begin_s = random.unit() * day_s * 0.95;
        times.extend((0..BURST).map(|nth| begin_s + nth as f64 * 0.01));
    }
    times.retain(|at_s| *at_s < day_s);
    times.sort_by(f64::total_cmp);
    times.into_iter().map(Duration::from_secs_f64).collect()
}

#[tokio::main]
async fn main() {
    let minutes = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(10_u64);
    let day = if std::env::args().any(|argument| argument == "calm") { CALM } else { USUAL };
    let data = tempfile::tempdir().unwrap();
    let (port, http) = (nats::free_port_pair(), nats::free_port_pair());
    let mut command = Command::new(program("darkroom"));
    command.args(["up", "--nats-port", &port.to_string(), "--http-port", &http.to_string(), "--workers", "2"]);
    command.args(["--idle", day.idle, "--target-wait", "1s", "--nats-server"]).arg(nats::program());
    // So that there is a bill: this machine has no price.
    command
        .env("DARKROOM_INSTANCE_TYPE", INSTANCE_TYPE)
        .arg("--data")
        .arg(data.path())
        .arg("--model")
        .arg(model_directory());
    let mut platform = Background::start(&mut command);
    platform.wait_for_line(|line| line.contains("ready"), PATIENCE).await;
    let bus = bus::connect(&BusOptions::open(format!("nats://127.0.0.1:{port}")), "day").await.unwrap();
    let mut events = bus.client.subscribe("darkroom.ev.t.>").await.unwrap();

    let arrivals = arrivals(&day, Duration::from_secs(60 * minutes));
    println!("{} requests in {minutes} minutes, seed {SEED}, 2 workers at most", arrivals.len());
    let count = arrivals.len() as u64;
    let following = tokio::spawn(async move {
        let (mut started, mut ended, mut attempts, mut cold_ms) = (BTreeMap::new(), 0_u64, 0_u64, Vec::new());
        while ended < count {
            let message = events.next().await.unwrap();
            let event: Value = serde_json::from_slice(&message.payload).unwrap();
            let job = event["subject"].as_str().unwrap().to_owned();
            match event["type"].as_str().unwrap() {
                "darkroom.job.started" => {
                    let unix_ms = parse_rfc3339(event["time"].as_str().unwrap()).unwrap();
                    started.entry(job).or_insert(unix_ms);
                }
                "darkroom.job.completed" => {
                    ended += 1;
                    attempts += event["data"]["attempts"].as_u64().unwrap();
                    cold_ms.extend(event["data"]["timings"]["loading_ms"].as_f64().filter(|ms| *ms > 0.0));
                }
                "darkroom.job.failed" => panic!("{event}"),
                _ => {}
            }
        }
        (started, attempts, cold_ms)
    });

    let (clock, begin) = (Clock::start(), Instant::now());
    let mut published = BTreeMap::new();
    for (nth, at) in arrivals.iter().enumerate() {
        tokio::time::sleep_until((begin + *at).into()).await;
        let job = format!("job-{nth}");
        let mut headers = HeaderMap::new();
        headers.insert(header::MESSAGE_ID, job.as_str());
        let body =
            json!({"prompt": "a red circle", "num_inference_steps": day.steps + nth % 3 * STEPS_MORE, "seed": nth});
        published.insert(format!("t/{job}"), clock.unix_ms());
        bus.publish("darkroom.req.shapes.normal.any.t", headers, body.to_string().into()).await.unwrap();
    }
    let (started, attempts, mut cold_ms) = tokio::time::timeout(PATIENCE, following).await.unwrap().unwrap();
    // Workers say what they did when they end.
    let reports = eventually("the end of all workers", PATIENCE, async || {
        let left = fleet::worker_reports(&bus, &"shapes".parse().unwrap()).await.ok()?;
        if !left.is_empty() {
            return None;
        }
        usage::since(&bus, None, 0).await.ok()
    })
    .await;
    let sum = |of: fn(&UsageReport) -> f64| reports.iter().map(of).sum::<f64>() / 1e3;
    let (ran_s, busy_s) = (sum(|report| report.ran_ms), sum(|report| report.gpu_ms));
    let mut waits: Vec<f64> = published.iter().map(|(job, at)| (started[job] - at).max(0) as f64).collect();
    waits.sort_by(f64::total_cmp);
    cold_ms.sort_by(f64::total_cmp);
    println!("publish to first step: {}; p95 {:.0} ms", shares(&waits), waits[waits.len() * 95 / 100]);
    println!("{} jobs waited for a process to start and load: {}", cold_ms.len(), shares(&cold_ms));
    println!(
        "{} workers were started; they ran {ran_s:.1} s, engines worked {busy_s:.1} s: ratio {:.2}",
        reports.len(),
        ran_s / busy_s
    );
    assert_eq!(attempts, count, "scaling in disturbs nobody");
    let mut costs = Command::new(program("darkroom"));
    costs.args(["costs", "--since", "1d", "--nats", &format!("nats://127.0.0.1:{port}")]);
    print!("{}", run(&mut costs, PATIENCE).await.expect_success());
    platform.terminate();
    platform.wait(PATIENCE).await;
}
