//! Faults: workers killed, stopped and drained, servers gone, engines without a model. Nothing is lost, nothing twice.

use std::time::Duration;

use darkroom::job::Status;
use darkroom::wire::event::EventKind;
use serde_json::json;

use crate::main_job::{forty_requests, rendered_alone};
use crate::stack::{PATIENCE, Stack, image_bytes, started};
use crate::support::eventually;
use crate::support::process::{Background, run};

async fn started_events(stack: &Stack) -> usize {
    stack
        .stored("DARKROOM_EV", "darkroom.ev.t.")
        .await
        .iter()
        .filter(|message| message.subject.ends_with(".started"))
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_in_the_middle_of_forty_jobs_loses_none_and_doubles_none() {
    let stack = Stack::start().await;
    let requests = forty_requests();
    for (id, body) in &requests {
        stack.request(id, body).await;
    }
    let mut worker = stack.worker().await;
    eventually("jobs in the middle", PATIENCE, async || (started_events(&stack).await >= 12).then_some(())).await;
    worker.kill();
    let _next = stack.worker().await;
    let expected = rendered_alone(&requests);
    for ((id, _), expected) in requests.iter().zip(expected) {
        let record = stack.end_of(id).await;
        assert_eq!(record.state.status, Status::Completed, "{id}");
        let events = stack.events_to_the_end("t", id).await;
        let completed = events.iter().filter(|(kind, _)| *kind == EventKind::Completed).count();
        assert_eq!(completed, 1, "{id}");
        assert!(events.iter().all(|(kind, _)| *kind != EventKind::Failed), "{id}");
        assert!(image_bytes(&record.terminal.unwrap()["images"][0]) == expected, "{id}");
    }
    stack.queue_is_empty().await;
}

fn long_request(seed: u32) -> serde_json::Value {
    json!({"prompt": "a yellow star on a blue background", "seed": seed, "num_inference_steps": 100})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_told_to_end_gives_back_what_it_cannot_finish() {
    let stack = Stack::start().await;
    for index in 0..10 {
        stack.request(&format!("long-{index}"), &long_request(index)).await;
    }
    let mut worker = started(stack.worker_command().args(["--grace", "4s"])).await;
    eventually("a running batch", PATIENCE, async || (started_events(&stack).await >= 4).then_some(())).await;
    worker.terminate();
    assert!(worker.wait(Duration::from_secs(20)).await.success(), "{}", worker.stderr());
    // Given back, not lost with the lease: the next worker has them before any lease ran out.
    let stream = stack.bus.context.get_stream("DARKROOM_REQ").await.unwrap();
    assert!(stream.cached_info().state.messages > 0, "ten long jobs do not fit into four seconds");
    let _next = stack.worker().await;
    for index in 0..10 {
        let record = stack.end_of(&format!("long-{index}")).await;
        assert_eq!(record.state.status, Status::Completed);
        assert_eq!(record.state.failures, 0, "a hand-over is not a failure");
    }
    stack.queue_is_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_gone_in_the_middle_of_a_job_comes_back_to_one_result() {
    let mut stack = Stack::start().await;
    let worker = stack.worker().await;
    stack.request("through", &long_request(1)).await;
    eventually("a running job", PATIENCE, async || (started_events(&stack).await == 1).then_some(())).await;
    stack.nats.kill();
    worker.wait_for_log(|line| line.contains("disconnected"), PATIENCE).await;
    stack.nats.restart().await;
    assert_eq!(stack.end_of("through").await.state.status, Status::Completed);
    let events = stack.events_to_the_end("t", "through").await;
    assert_eq!(events.iter().filter(|(kind, _)| *kind == EventKind::Completed).count(), 1);
    stack.queue_is_empty().await;
    // And the worker goes on pulling.
    stack.request("after", &json!({"prompt": "a ring", "num_inference_steps": 2})).await;
    assert_eq!(stack.end_of("after").await.state.status, Status::Completed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_stopped_and_wakes_up_changes_nothing() {
    let stack = Stack::start().await;
    let zombie = stack.worker().await;
    stack.request("fenced", &long_request(2)).await;
    eventually("a running job", PATIENCE, async || (started_events(&stack).await == 1).then_some(())).await;
    zombie.pause();
    let _next = stack.worker().await;
    let record = stack.end_of("fenced").await;
    assert_eq!((record.state.status, record.state.attempts), (Status::Completed, 2));
    zombie.resume();
    // It finishes its own copy and finds that the record is not its own any more.
    let gives_up = |line: &str| line.contains("job.fenced") || line.contains("Taken");
    zombie.wait_for_log(gives_up, PATIENCE).await;
    assert_eq!(stack.end_of("fenced").await, record);
    let events = stack.events_of("t", "fenced").await;
    assert_eq!(events.iter().filter(|(kind, _)| *kind == EventKind::Completed).count(), 1);
    stack.queue_is_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_what_it_needs_says_so_and_fails() {
    let stack = Stack::start().await;
    let elsewhere = tempfile::tempdir().unwrap();
    let nats = stack.nats.url();
    let store = stack.store_url();
    let model = crate::stack::model_directory().display().to_string();
    let empty = elsewhere.path().display().to_string();
    for (arguments, word) in [
        (vec!["--nats", &nats, "--store", &store, "--model", &empty], "model_index.json"),
        (vec!["--nats", "nats://127.0.0.1:1", "--store", &store, "--model", &model], "no NATS server"),
        (vec!["--nats", &nats, "--store", "nowhere", "--model", &model], "not a URL"),
    ] {
        let mut command = std::process::Command::new(crate::stack::program("darkroom-generate"));
        let finished = run(command.args(&arguments), PATIENCE).await;
        assert!(!finished.status.success(), "{arguments:?}");
        assert!(finished.stderr.contains(word), "{arguments:?}: {}", finished.stderr);
    }
    let bare = crate::support::nats::NatsServer::start().await;
    let mut command = std::process::Command::new(crate::stack::program("darkroom-generate"));
    let mut worker = Background::start(command.args(["--nats", &bare.url(), "--store", &store, "--model", &model]));
    assert!(!worker.wait(PATIENCE).await.success());
    assert!(worker.stderr().contains("darkroom setup"), "{}", worker.stderr());
}
