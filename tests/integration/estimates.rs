//! What waiting jobs are told of their place and their time, and what is said of how far off that was.

use std::process::Command;

use async_nats::HeaderMap;
use darkroom::shell::fleet;
use darkroom::wire::event::EventKind;
use darkroom::wire::worker::WorkerState;
use serde_json::{Value, json};

use crate::stack::{PATIENCE, REQUESTS, Stack, kinds_without_checkpoints, started};
use crate::support::eventually;
use crate::support::process::run;

async fn darkroom(stack: &Stack, arguments: &[&str]) -> Vec<Value> {
    let mut command = Command::new(crate::stack::program("darkroom"));
    command.args(["--nats", &stack.nats.url(), "--json"]).args(arguments);
    let said = run(&mut command, PATIENCE).await.expect_success();
    said.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn submit(stack: &Stack, job: &str, priority: &str) -> Value {
    let small = ["--steps", "2", "--width", "64", "--height", "64"];
    let whose = ["submit", "a red circle", "--tenant", "t", "--job", job, "--priority", priority];
    darkroom(stack, &[&whose[..], &small].concat()).await.remove(0)
}

async fn status(stack: &Stack, job: &str) -> Value {
    darkroom(stack, &["status", job, "--tenant", "t"]).await.remove(0)
}

/// The data of a job's `started` event, after its end.
async fn started_data(stack: &Stack, job: &str) -> Value {
    let events = stack.events_to_the_end("t", job).await;
    let kinds = kinds_without_checkpoints(&events);
    assert_eq!(kinds, [EventKind::Accepted, EventKind::Started, EventKind::Completed], "{job}");
    events[1].1["data"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_jobs_know_their_place_and_when_they_begin() {
    let stack = Stack::start().await;
    let model = "shapes".parse().unwrap();
    for (place, job) in ["a", "b", "c"].into_iter().enumerate() {
        let submitted = submit(&stack, job, "normal").await;
        assert_eq!(submitted["queue_position"], place, "{submitted}");
        assert_eq!(submitted["estimated_start_ms"], Value::Null, "nobody has ever loaded the model: {submitted}");
    }
    assert_eq!(submit(&stack, "b", "normal").await["stream_sequence"], Value::Null, "it was submitted before");
    let pending = status(&stack, "b").await;
    assert_eq!((&pending["status"], &pending["queue_position"]), (&json!("pending"), &json!(1)), "{pending}");

    let mut worker = started(stack.worker_command().args(["--exit-when-idle", "1s"])).await;
    let report = eventually("the worker's report", PATIENCE, async || {
        fleet::worker_reports(&stack.bus, &model).await.unwrap().pop()
    })
    .await;
    assert_eq!((report.model.as_str(), report.state), ("shapes", WorkerState::Ready));
    for job in ["a", "b", "c"] {
        let data = started_data(&stack, job).await;
        assert_eq!(data.get("estimated_start_error_ms"), None, "nothing was estimated: {data}");
    }
    let ended = status(&stack, "b").await;
    assert_eq!((&ended["status"], ended.get("queue_position")), (&json!("completed"), None), "{ended}");
    assert!(worker.wait(PATIENCE).await.success());
    assert_eq!(fleet::worker_reports(&stack.bus, &model).await.unwrap(), [], "whoever ends withdraws its report");
    let remembered = fleet::model_report(&stack.bus, &model).await.unwrap().unwrap();
    assert!(remembered.loading_ms > 0 && remembered.pace.job_ms.is_some_and(|ms| ms > 0.0), "{remembered:?}");

    // Now that it is known how long loading and jobs take, there is an estimate, and its error.
    for (place, job) in ["d", "e", "f"].into_iter().enumerate() {
        let submitted = submit(&stack, job, "normal").await;
        assert_eq!(submitted["queue_position"], place, "{submitted}");
        let [start_ms, end_ms] =
            ["estimated_start_ms", "estimated_time_ms"].map(|field| submitted[field].as_u64().unwrap());
        assert!(start_ms >= remembered.loading_ms && end_ms > start_ms, "{submitted} {remembered:?}");
    }
    for (place, job) in ["d", "e", "f"].into_iter().enumerate() {
        let pending = status(&stack, job).await;
        assert_eq!(pending["queue_position"], place, "{pending}");
        assert!(pending["estimated_time_ms"].as_u64() > pending["estimated_start_ms"].as_u64(), "{pending}");
    }
    let watched = watch(&stack, "e").await;
    assert_eq!((&watched["status"], &watched["queue_position"]), (&json!("pending"), &json!(1)), "{watched}");
    assert_eq!(submit(&stack, "urgent", "high").await["queue_position"], 0);
    assert_eq!(status(&stack, "d").await["queue_position"], 1, "the urgent one goes before it");

    let _worker = stack.worker().await;
    for job in ["d", "e", "f", "urgent"] {
        let data = started_data(&stack, job).await;
        assert!(data["estimated_start_error_ms"].is_i64(), "{data}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_bears_no_interruption_keeps_a_job_off_machines_that_may_be_taken_away() {
    let stack = Stack::start().await;
    // Jobs of 64 x 64 and two steps take ten seconds here.
    let announce = async |worker: &str, pools: Value| {
        let report = json!({
            "worker": worker, "model": "shapes", "pools": pools, "state": "ready", "images_in_batch_max": 4, "jobs_held": 0,
            "images_stepping": 0, "work_left_ms": 0.0, "job_ms": 10_000.0, "run_ms": 10_000.0,
            "megapixel_step_ms": 10_000.0 / (2.0 * 64.0 * 64.0 / 1e6), "priorities": [], "loading_ms": 1, "since_unix_ms": 1
        });
        stack.publish(&format!("$KV.darkroom_workers.shapes.{worker}"), None, report.to_string()).await;
    };
    let small = ["submit", "a red circle", "--tenant", "t", "--steps", "2", "--width", "64", "--height", "64"];
    for (both, more, expected) in [
        (true, &["--deadline", "15s"][..], "ondemand"),
        (true, &["--deadline", "10m"], "any"),
        (true, &[], "any"),
        (true, &["--deadline", "10m", "--pool", "ondemand"], "ondemand"),
        (false, &["--deadline", "15s"], "any"),
    ] {
        announce("cheap", json!(["any"])).await;
        if both {
            announce("steady", json!(["any", "ondemand"])).await;
        } else {
            stack
                .bus
                .api("STREAM.PURGE.KV_darkroom_workers", &json!({"filter": "$KV.darkroom_workers.shapes.steady"}))
                .await
                .unwrap();
        }
        let submitted = darkroom(&stack, &[&small[..], more].concat()).await.remove(0);
        let sequence = submitted["stream_sequence"].as_u64().unwrap();
        let requests = stack.bus.context.get_stream("DARKROOM_REQ").await.unwrap();
        let message = requests.get_raw_message(sequence).await.unwrap();
        let subject = format!("darkroom.req.shapes.normal.{expected}.t");
        assert_eq!(message.subject.as_str(), subject, "{more:?} {submitted}");
        assert_eq!(submitted["pool"], expected, "{submitted}");
    }
}

/// The first thing that `watch` says of a job, which it does not wait for.
async fn watch(stack: &Stack, job: &str) -> Value {
    let mut command = Command::new(crate::stack::program("darkroom"));
    command.args(["--nats", &stack.nats.url(), "--json", "watch", job, "--tenant", "t", "--timeout", "100ms"]);
    let finished = run(&mut command, PATIENCE).await;
    serde_json::from_str(finished.stdout.lines().next().unwrap_or_else(|| panic!("{finished}"))).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_estimate_that_cannot_be_one_is_ignored() {
    let stack = Stack::start().await;
    let _worker = stack.worker().await;
    let body = json!({"prompt": "a cross", "num_inference_steps": 2, "width": 64, "height": 64}).to_string();
    for (job, estimate) in [("word", "soon"), ("past", "7"), ("future", "9223372036854775807")] {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", job);
        headers.insert("Darkroom-Estimated-Start", estimate);
        stack.bus.publish(REQUESTS, headers, body.clone().into()).await.unwrap();
        let data = started_data(&stack, job).await;
        assert_eq!(data.get("estimated_start_error_ms"), None, "{data}");
    }
}
