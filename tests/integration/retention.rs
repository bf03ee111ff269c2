//! Jobs after their end: how long they can be looked up, and what is left of them; and what a full queue says.

use std::process::Command;
use std::time::Duration;

use darkroom::job::{JobId, JobStep, Status, Tenant};
use darkroom::sched::Claim;
use darkroom::shell::bus;
use darkroom::shell::config::{BusOptions, Retention};
use darkroom::shell::records::{Changed, ClaimRequest, Found, Owned, Records};
use darkroom::wire::record::Record;
use darkroom::wire::request::canonical_digest;
use serde_json::{Value, json};

use crate::stack::{PATIENCE, REQUESTS, Stack, program, started};
use crate::support::nats::NatsServer;
use crate::support::process::{Finished, run};
use crate::support::{checkout, eventually};

fn tenant() -> Tenant {
    "t".parse().unwrap()
}

async fn darkroom(stack: &Stack, arguments: &[&str]) -> Finished {
    let mut command = Command::new(program("darkroom"));
    command.env("DARKROOM_TENANT", "t");
    run(command.args(["--nats", &stack.nats.url(), "--json"]).args(arguments), PATIENCE).await
}

#[track_caller]
fn expect(finished: &Finished, exit: i32, words: &str) {
    assert_eq!(finished.status.code(), Some(exit), "{finished}");
    assert!(format!("{}{}", finished.stdout, finished.stderr).contains(words), "{words}: {finished}");
}

async fn is_gone(stack: &Stack, job: &JobId) {
    let records = Records::open(&stack.bus).await.unwrap();
    eventually("the record's removal", PATIENCE, async || {
        matches!(records.look(&tenant(), job).await, Ok(Found::Gone)).then_some(())
    })
    .await;
}

async fn won(changed: Changed) -> Owned {
    match changed {
        Changed::Won(owned) => owned,
        Changed::Lost | Changed::Cancelled(_) | Changed::Unrecorded => panic!("{changed:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_end_is_kept_for_its_own_time_and_what_has_not_ended_for_ever() {
    let stack = Stack::start().await;
    let retention = Retention { completed: Duration::from_secs(3600), failed: Duration::from_secs(60) };
    let records = Records::open(&stack.bus).await.unwrap().kept_for(retention);
    for (job, step, expected) in [
        ("completed", Some(JobStep::Complete), Some("3600s")),
        ("failed", Some(JobStep::Fail), Some("60s")),
        ("cancelled", Some(JobStep::Cancel), Some("60s")),
        ("processing", None, None),
    ] {
        let id: JobId = job.parse().unwrap();
        let fresh = Record::accepted("d".to_owned(), "shapes", None, 0);
        let pending = won(records.create(&tenant(), &id, fresh).await.unwrap()).await;
        let claim = JobStep::Claim { worker: "w".parse().unwrap() };
        let claimed = won(records.step(&tenant(), &id, &pending, claim, None, 0).await.unwrap()).await;
        if let Some(step) = step {
            won(records.step(&tenant(), &id, &claimed, step, None, 0).await.unwrap()).await;
        }
        let stored = stack.stored("KV_darkroom_jobs", &format!("$KV.darkroom_jobs.t.{job}")).await;
        let headers = stored.last().unwrap().headers.clone().unwrap_or_default();
        assert_eq!(headers.get("Nats-TTL").map(|value| value.as_str()), expected, "{job}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_gone_is_told_from_one_that_never_was_and_is_not_made_again() {
    let stack = Stack::start().await;
    let _worker = started(stack.worker_command().args(["--retain-completed", "1s"])).await;
    let body = json!({"id": "short", "prompt": "a star", "num_inference_steps": 2, "width": 64, "height": 64});
    stack.publish(REQUESTS, None, serde_json::to_vec(&body).unwrap()).await;
    let events = stack.events_to_the_end("t", "short").await;
    is_gone(&stack, &"short".parse().unwrap()).await;
    stack.queue_is_empty().await;

    expect(&darkroom(&stack, &["status", "short"]).await, 10, r#""status":"gone""#);
    expect(&darkroom(&stack, &["watch", "short"]).await, 10, r#""code":"gone""#);
    expect(&darkroom(&stack, &["submit", "a star", "--job", "short"]).await, 10, r#""code":"gone""#);
    expect(&darkroom(&stack, &["status", "never"]).await, 6, "unknown_job");
    expect(&darkroom(&stack, &["watch", "never"]).await, 6, "unknown_job");
    assert_eq!(darkroom(&stack, &["list"]).await.expect_success(), "");
    expect(&darkroom(&stack, &["list", "--gone"]).await, 0, r#""job":"short","status":"gone""#);

    // A late duplicate is absorbed: its event has been read, its image is stored.
    stack.publish(REQUESTS, None, serde_json::to_vec(&body).unwrap()).await;
    stack.queue_is_empty().await;
    assert_eq!(stack.events_of("t", "short").await, events);
    is_gone(&stack, &"short".parse().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_cannot_be_claimed_created_or_refused_and_what_was_deleted_can() {
    let stack = Stack::start().await;
    let retention = Retention { completed: Duration::from_secs(1), failed: Duration::from_secs(1) };
    let records = Records::open(&stack.bus).await.unwrap().kept_for(retention);
    let job: JobId = "j".parse().unwrap();
    let fresh = || Record::accepted(canonical_digest(b"{}"), "shapes", Some(1), 0);
    won(records.refuse(&tenant(), &job, fresh(), None, 0).await.unwrap()).await;
    is_gone(&stack, &job).await;
    let claim = |delivered| ClaimRequest {
        tenant: tenant(),
        job: "j".parse().unwrap(),
        digest: canonical_digest(b"{}"),
        model: "shapes".to_owned(),
        stream_sequence: 1,
        delivered,
        worker: "w".parse().unwrap(),
        webhook: None,
    };
    for delivered in [1, 2] {
        assert_eq!(records.claim(&claim(delivered), 0).await.unwrap().claim, Claim::Duplicate);
    }
    assert!(matches!(records.create(&tenant(), &job, fresh()).await.unwrap(), Changed::Lost));
    assert!(matches!(records.refuse(&tenant(), &job, fresh(), None, 0).await.unwrap(), Changed::Lost));
    is_gone(&stack, &job).await;

    // Somebody who deletes a record frees its key.
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("KV-Operation", "DEL");
    stack.bus.publish("$KV.darkroom_jobs.t.j", headers, bytes::Bytes::new()).await.unwrap();
    assert!(matches!(records.look(&tenant(), &job).await.unwrap(), Found::Absent { revision } if revision > 0));
    let claimed = records.claim(&claim(1), 0).await.unwrap();
    assert!(matches!(claimed.claim, Claim::Won { .. }));
    assert_eq!(claimed.owned.unwrap().record.state.status, Status::Processing);
}

async fn limit(stack: &Stack, field: &str, value: u64) {
    let mut config = stack.bus.api("STREAM.INFO.DARKROOM_REQ", &Value::Null).await.unwrap()["config"].clone();
    config[field] = json!(value);
    stack.bus.api("STREAM.UPDATE.DARKROOM_REQ", &config).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn over_its_quota_a_tenant_is_told_how_much_is_queued_and_others_are_not_concerned() {
    let stack = Stack::start().await;
    limit(&stack, "max_msgs_per_subject", 2).await;
    let submit =
        async |tenant: &str, job: &str| darkroom(&stack, &["submit", "a ring", "--tenant", tenant, "--job", job]).await;
    for job in ["one", "two"] {
        submit("t", job).await.expect_success();
    }
    let refused = submit("t", "three").await;
    expect(&refused, 11, "2 requests, 2 allowed");
    expect(&refused, 11, r#""code":"quota_reached""#);
    // It is no job, so nobody waits for it.
    expect(&darkroom(&stack, &["status", "three"]).await, 6, "unknown_job");
    submit("u", "other").await.expect_success();
    // What was accepted before is no further request.
    submit("t", "two").await.expect_success();
    let first = stack.stored("DARKROOM_REQ", REQUESTS).await;
    assert_eq!(first.len(), 2);
    stack.bus.api("STREAM.MSG.DELETE.DARKROOM_REQ", &json!({"seq": 1, "no_erase": true})).await.unwrap();
    submit("t", "three").await.expect_success();
    expect(&darkroom(&stack, &["status", "three"]).await, 0, r#""status":"pending""#);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_full_for_all_says_so() {
    let stack = Stack::start().await;
    limit(&stack, "max_msgs", 1).await;
    darkroom(&stack, &["submit", "a ring", "--job", "one"]).await.expect_success();
    let refused = darkroom(&stack, &["submit", "a ring", "--tenant", "u", "--job", "two"]).await;
    expect(&refused, 12, r#""code":"queue_full""#);
    expect(&refused, 12, "maximum messages exceeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_before_learn_to_remove_what_has_had_its_time() {
    let nats = NatsServer::start_one().await;
    let bus = bus::connect(&BusOptions::open(nats.url()), "test").await.unwrap();
    for (file, max_age) in [("buckets/darkroom_jobs.json", 604_800_000_000_000_u64), ("streams/DARKROOM_EV.json", 0)] {
        let text = std::fs::read_to_string(checkout().join("nats").join(file)).unwrap();
        let mut old: Value = serde_json::from_str(&text).unwrap();
        for field in ["allow_msg_ttl", "subject_delete_marker_ttl"] {
            old.as_object_mut().unwrap().remove(field);
        }
        old["max_age"] = json!(max_age);
        bus.api(&format!("STREAM.CREATE.{}", old["name"].as_str().unwrap()), &old).await.unwrap();
    }
    let setup = async |more: &[&str]| {
        run(Command::new(program("darkroom")).args(["--nats", &nats.url(), "setup"]).args(more), PATIENCE).await
    };
    let mended = setup(&[]).await.expect_success();
    for stream in ["KV_darkroom_jobs", "DARKROOM_EV"] {
        assert!(mended.contains(&format!("stream {stream}: updated")), "{mended}");
    }
    setup(&["--check"]).await.expect_success();
}
