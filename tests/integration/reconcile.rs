//! What somebody left behind who died: each kind of it is made for real, and the dead-letter function mends it.

use std::process::Command;
use std::time::Duration;

use async_nats::HeaderMap;
use darkroom::job::{JobId, JobStep, Status, Tenant};
use darkroom::shell::bus::Bus;
use darkroom::shell::records::{Changed, Owned, Records};
use darkroom::wire::event::EventKind;
use darkroom::wire::record::{self, Record};
use darkroom::wire::request::canonical_digest;
use darkroom::wire::subject;
use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::stack::{PATIENCE, REQUESTS, Stack, program};
use crate::support::eventually;
use crate::support::process::Background;

const QUICK: [&str; 6] = ["--reconcile-every", "200ms", "--reconcile-grace", "1s", "--lost-after", "3s"];
const PATIENT: [&str; 6] = ["--reconcile-every", "200ms", "--reconcile-grace", "1h", "--lost-after", "2h"];

/// The dead-letter function with options of its own.
pub(crate) fn deadletter(stack: &Stack, options: &[&str]) -> Background {
    let mut command = Command::new(program("darkroom-deadletter"));
    command.args(["--nats", &stack.nats.url()]).args(options).env("DARKROOM_LOG", "info,darkroom=debug");
    Background::start(&mut command)
}

/// Waits until the function has looked at everything again, twice.
async fn passes(function: &Background) {
    let count = || function.stderr().matches("reconciler.pass").count();
    let before = count();
    eventually("two more passes", PATIENCE, async || (count() >= before + 2).then_some(())).await;
}

fn tenant() -> Tenant {
    "t".parse().unwrap()
}

fn id(job: &str) -> JobId {
    job.parse().unwrap()
}

fn body(job: &str) -> Vec<u8> {
    serde_json::to_vec(&json!({"id": job, "prompt": "a ring", "metadata": {"mine": job}})).unwrap()
}

fn won(changed: Changed) -> Owned {
    match changed {
        Changed::Won(owned) => owned,
        Changed::Lost | Changed::Cancelled(_) | Changed::Unrecorded => panic!("{changed:?}"),
    }
}

/// The record of a pending job.
async fn pending(stack: &Stack, job: &str, sequence: Option<u64>) -> Owned {
    let records = Records::open(&stack.bus).await.unwrap();
    let record = Record::accepted(canonical_digest(&body(job)), "shapes", sequence, 1_795_000_000_000);
    won(records.create(&tenant(), &id(job), record).await.unwrap())
}

/// The record of a job that a worker has.
async fn processing(stack: &Stack, job: &str, sequence: Option<u64>) -> Owned {
    let owned = pending(stack, job, sequence).await;
    step(stack, job, &owned, JobStep::Claim { worker: "w1".parse().unwrap() }, None).await
}

async fn step(stack: &Stack, job: &str, owned: &Owned, step: JobStep, terminal: Option<Value>) -> Owned {
    let records = Records::open(&stack.bus).await.unwrap();
    won(records.step(&tenant(), &id(job), owned, step, terminal, 1_795_000_000_000).await.unwrap())
}

/// The record of a job that ended so, with the data of its event.
async fn ended(stack: &Stack, job: &str, sequence: Option<u64>, how: JobStep) -> Owned {
    let data = match how {
        JobStep::Fail => json!({"error": {"code": "store_failed", "message": "the disk is full"}, "attempts": 1}),
        JobStep::Claim { .. }
        | JobStep::GiveBack
        | JobStep::Retry
        | JobStep::Complete
        | JobStep::Cancel
        | JobStep::Stop => json!({"attempts": 1, "images": []}),
    };
    let owned = processing(stack, job, sequence).await;
    step(stack, job, &owned, how, Some(data)).await
}

async fn remove(bus: &Bus, sequence: u64) {
    bus.api("STREAM.MSG.DELETE.DARKROOM_REQ", &json!({"seq": sequence, "no_erase": true})).await.unwrap();
}

async fn kinds(stack: &Stack, job: &str) -> Vec<EventKind> {
    stack.events_of("t", job).await.into_iter().map(|(kind, _)| kind).collect()
}

/// Codes and original sequences of all dead letters.
async fn letters(stack: &Stack) -> Vec<(String, String)> {
    let messages = stack.stored(subject::STREAM_DEAD_LETTERS, "darkroom.dlq.>").await;
    let text = |message: &async_nats::Message, name: &str| {
        message.headers.as_ref().unwrap().get(name).map_or("", |value| value.as_str()).to_owned()
    };
    let letter = |message| (text(message, "Darkroom-Error-Code"), text(message, "Darkroom-Original-Sequence"));
    messages.iter().map(letter).collect()
}

/// Makes a consumer that delivers only once, and uses that up for what is queued.
async fn exhaust(stack: &Stack, messages: usize) {
    let consumer = "CONSUMER.INFO.DARKROOM_REQ.shapes-normal-any";
    let mut config = stack.bus.api(consumer, &Value::Null).await.unwrap()["config"].clone();
    config["max_deliver"] = json!(1);
    config["ack_wait"] = json!(1_000_000_000);
    let create = "CONSUMER.CREATE.DARKROOM_REQ.shapes-normal-any.darkroom.req.shapes.normal.any.*";
    let update = json!({"stream_name": "DARKROOM_REQ", "config": config, "action": "update"});
    stack.bus.api(create, &update).await.unwrap();
    let inbox = stack.bus.client.new_inbox();
    let mut pulled = stack.bus.client.subscribe(inbox.clone()).await.unwrap();
    let pull = json!({"batch": messages, "expires": 5_000_000_000_u64, "group": "workers"}).to_string();
    let next = "$JS.API.CONSUMER.MSG.NEXT.DARKROOM_REQ.shapes-normal-any";
    stack.bus.client.publish_with_reply(next, inbox, pull.into()).await.unwrap();
    for _ in 0..messages {
        assert!(pulled.next().await.unwrap().status.is_none());
    }
    // The server notices when somebody asks for more.
    let more = json!({"batch": 1, "no_wait": true, "expires": 100_000_000, "group": "workers"}).to_string();
    eventually("deliveries that are used up", PATIENCE, async || {
        let inbox = stack.bus.client.new_inbox();
        stack.bus.client.publish_with_reply(next, inbox, more.clone().into()).await.ok()?;
        let info = stack.bus.api(consumer, &Value::Null).await.ok()?;
        (info["num_ack_pending"] == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_was_recorded_and_not_announced_is_announced_once() {
    let stack = Stack::start().await;
    for (job, how) in [("a", JobStep::Complete), ("b", JobStep::Fail), ("c", JobStep::Cancel)] {
        ended(&stack, job, None, how).await;
    }
    let functions = [deadletter(&stack, &QUICK), deadletter(&stack, &QUICK)];
    for (job, kind) in [("a", EventKind::Completed), ("b", EventKind::Failed), ("c", EventKind::Cancelled)] {
        let events = stack.events_to_the_end("t", job).await;
        assert_eq!((events.len(), events[0].0), (1, kind), "{job}");
        assert_eq!(events[0].1["data"]["attempts"], 1, "the data is the record's");
    }
    for function in &functions {
        passes(function).await;
    }
    assert_eq!(kinds(&stack, "a").await, [EventKind::Completed]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_job_has_ended_is_removed_and_kept_if_it_failed() {
    let stack = Stack::start().await;
    let mut failed = 0;
    for (job, how) in [("a", JobStep::Complete), ("b", JobStep::Fail), ("c", JobStep::Cancel)] {
        let sequence = stack.publish(REQUESTS, None, body(job)).await;
        ended(&stack, job, Some(sequence), how.clone()).await;
        if how == JobStep::Fail {
            failed = sequence;
        }
    }
    // Another message of a job is none of its own.
    stack.publish(REQUESTS, None, body("a")).await;
    let _functions = [deadletter(&stack, &QUICK), deadletter(&stack, &QUICK)];
    stack.queue_is_empty().await;
    assert_eq!(letters(&stack).await, [("store_failed".to_owned(), failed.to_string())]);
    for (job, kind) in [("a", EventKind::Completed), ("b", EventKind::Failed), ("c", EventKind::Cancelled)] {
        assert_eq!(kinds(&stack, job).await, [kind], "{job}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_request_is_gone_or_never_came_fails_with_the_reason() {
    let stack = Stack::start().await;
    let sequence = stack.publish(REQUESTS, None, body("gone")).await;
    pending(&stack, "gone", Some(sequence)).await;
    let taken = stack.publish(REQUESTS, None, body("taken")).await;
    processing(&stack, "taken", Some(taken)).await;
    for sequence in [sequence, taken] {
        remove(&stack.bus, sequence).await;
    }
    pending(&stack, "never", None).await;
    // Published, by somebody who died before it was written down.
    let unnamed = stack.publish(REQUESTS, Some("t.unnamed"), body("unnamed")).await;
    pending(&stack, "unnamed", None).await;
    let function = deadletter(&stack, &QUICK);
    function.wait_for_log(|line| line.contains("reconciler.request_missing") && line.contains("taken"), PATIENCE).await;
    for (job, code) in [("gone", "request_lost"), ("never", "never_published"), ("taken", "request_lost")] {
        let events = stack.events_to_the_end("t", job).await;
        assert_eq!(events.len(), 1, "{job}");
        assert_eq!(events[0].1["data"]["error"]["code"], code, "{job}");
        assert_eq!(stack.end_of(job).await.state.status, Status::Failed, "{job}");
    }
    let named = eventually("the name of the request", PATIENCE, async || {
        let owned = Records::open(&stack.bus).await.ok()?.read(&tenant(), &id("unnamed")).await.ok()??;
        owned.record.stream_sequence.map(|sequence| (sequence, owned.record.state.status))
    });
    assert_eq!(named.await, (unnamed, Status::Pending));
    assert_eq!(letters(&stack).await, [], "there is no request to keep");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_young_is_touched() {
    let stack = Stack::start().await;
    ended(&stack, "ended", None, JobStep::Complete).await;
    let sequence = stack.publish(REQUESTS, None, body("left")).await;
    ended(&stack, "left", Some(sequence), JobStep::Fail).await;
    pending(&stack, "never", None).await;
    pending(&stack, "gone", Some(999)).await;
    let exhausted = stack.publish(REQUESTS, None, body("exhausted")).await;
    exhaust(&stack, 2).await;
    stack.bus.api("STREAM.PURGE.DARKROOM_ADV", &Value::Null).await.unwrap();
    let state = async || {
        let mut all = Vec::new();
        for stream in [subject::STREAM_REQUESTS, subject::STREAM_EVENTS, subject::STREAM_JOBS] {
            let info = stack.bus.api(&format!("STREAM.INFO.{stream}"), &Value::Null).await.unwrap();
            all.push((info["state"]["messages"].clone(), info["state"]["last_seq"].clone()));
        }
        all
    };
    let before = state().await;
    let function = deadletter(&stack, &PATIENT);
    passes(&function).await;
    passes(&function).await;
    assert_eq!(state().await, before);
    // But that the numbers do not add up is said at once.
    function.wait_for_log(|line| line.contains("reconciler.counts"), PATIENCE).await;
    drop(function);
    let _function = deadletter(&stack, &QUICK);
    stack.queue_is_empty().await;
    assert!(letters(&stack).await.contains(&("deliveries_exhausted".to_owned(), exhausted.to_string())));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_past_its_deliveries_fails_with_all_that_is_known() {
    let stack = Stack::start().await;
    let unseen = stack.publish(REQUESTS, Some("unseen"), body("unseen")).await;
    let taken = stack.publish(REQUESTS, None, body("taken")).await;
    processing(&stack, "taken", Some(taken)).await;
    let done = stack.publish(REQUESTS, None, body("done")).await;
    ended(&stack, "done", Some(done), JobStep::Complete).await;
    // Nothing but the advisory may be the cause.
    let _functions = [deadletter(&stack, &PATIENT), deadletter(&stack, &PATIENT)];
    exhaust(&stack, 3).await;
    stack.queue_is_empty().await;
    for (job, attempts) in [("unseen", 0), ("taken", 1)] {
        let record = stack.end_of(job).await;
        assert_eq!(record.state.status, Status::Failed, "{job}");
        let events = stack.events_to_the_end("t", job).await;
        let data = &events[0].1["data"];
        assert_eq!(data["error"]["code"], "deliveries_exhausted", "{data}");
        assert_eq!((&data["attempts"], &data["metadata"]["mine"]), (&json!(attempts), &json!(job)));
        assert_eq!(record.terminal.as_ref(), Some(data), "{job}");
    }
    assert_eq!(kinds(&stack, "done").await, [EventKind::Completed]);
    let mut kept = letters(&stack).await;
    kept.sort();
    let kept_for = |sequence: u64| ("deliveries_exhausted".to_owned(), sequence.to_string());
    assert_eq!(kept, [kept_for(unseen), kept_for(taken)]);
    let messages = stack.stored(subject::STREAM_DEAD_LETTERS, "darkroom.dlq.>").await;
    let workers: Vec<_> =
        messages.iter().filter_map(|letter| letter.headers.as_ref()?.get("Darkroom-Worker")).collect();
    assert_eq!(workers.len(), 1);
    assert_eq!(workers[0].as_str(), "w1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_past_its_deliveries_is_found_although_the_advisory_was_lost() {
    let stack = Stack::start().await;
    let sequence = stack.publish(REQUESTS, None, body("silent")).await;
    exhaust(&stack, 1).await;
    stack.bus.api("STREAM.PURGE.DARKROOM_ADV", &Value::Null).await.unwrap();
    let _functions = [deadletter(&stack, &QUICK), deadletter(&stack, &QUICK)];
    stack.queue_is_empty().await;
    assert_eq!(letters(&stack).await, [("deliveries_exhausted".to_owned(), sequence.to_string())]);
    let events = stack.events_to_the_end("t", "silent").await;
    assert_eq!((events.len(), events[0].0), (1, EventKind::Failed));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_was_killed_between_two_steps_is_followed_by_one_who_goes_on() {
    let stack = Stack::start().await;
    // The record is failed, and nothing else was done.
    let first = stack.publish(REQUESTS, None, body("recorded")).await;
    ended(&stack, "recorded", Some(first), JobStep::Fail).await;
    // The event is published, too.
    let second = stack.publish(REQUESTS, None, body("announced")).await;
    let owned = ended(&stack, "announced", Some(second), JobStep::Fail).await;
    let event = json!({"specversion": "1.0", "id": "t/announced/failed", "source": "darkroom",
        "type": "darkroom.job.failed", "subject": "t/announced", "time": "2030-01-01T00:00:00.000Z",
        "datacontenttype": "application/json", "data": owned.record.terminal});
    let event = serde_json::to_vec(&event).unwrap();
    stack.bus.publish("darkroom.ev.t.announced.failed", HeaderMap::new(), event.into()).await.unwrap();
    exhaust(&stack, 2).await;
    let _function = deadletter(&stack, &PATIENT);
    stack.queue_is_empty().await;
    for job in ["recorded", "announced"] {
        assert_eq!(kinds(&stack, job).await, [EventKind::Failed], "{job}");
    }
    let kept = letters(&stack).await;
    assert_eq!(kept.len(), 2, "{kept:?}");
    assert!(kept.iter().all(|(code, _)| code == "store_failed"), "the reason is that of the record: {kept:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_before_get_an_end() {
    let stack = Stack::start().await;
    let owned = ended(&stack, "endless", None, JobStep::Complete).await;
    let on = "$KV.darkroom_jobs.t.endless";
    stack.bus.publish(on, HeaderMap::new(), record::encode(&owned.record).into()).await.unwrap();
    let stored = async || {
        let stored = stack.stored(subject::STREAM_JOBS, on).await;
        stored.last().unwrap().headers.as_ref().and_then(|headers| headers.get("Nats-TTL").cloned())
    };
    assert_eq!(stored().await, None);
    let _function = deadletter(&stack, &[&QUICK[..], &["--retain-completed", "2h"]].concat());
    let limit = eventually("an end", PATIENCE, stored).await;
    assert_eq!(limit.as_str(), "7200s");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_function_is_patient_with_a_server_that_comes_back() {
    let mut stack = Stack::start().await;
    let function = deadletter(&stack, &[&QUICK[..4], &["--lost-after", "1h"]].concat());
    passes(&function).await;
    stack.nats.kill();
    function
        .wait_for_log(|line| line.contains("reconciler.pass") && line.contains("fault"), Duration::from_secs(60))
        .await;
    stack.nats.restart().await;
    ended(&stack, "after", None, JobStep::Complete).await;
    assert_eq!(stack.events_to_the_end("t", "after").await[0].0, EventKind::Completed);
}
