//! Bad input on the bus: each is answered with a reason, kept as a dead letter, and leaves nothing behind.

use std::process::Command;
use std::time::Duration;

use darkroom::job::Status;
use darkroom::job::limits::REQUEST_BYTES_MAX;
use darkroom::shell::bus::PublishError;
use darkroom::wire::event::EventKind;
use darkroom::wire::subject;
use serde_json::{Value, json};

use crate::stack::{PATIENCE, REQUESTS, Stack, kinds_without_checkpoints, program};
use crate::support::eventually;
use crate::support::process::Background;

async fn dead_letters(stack: &Stack, count: usize) -> Vec<(String, String)> {
    eventually(&format!("{count} dead letters"), PATIENCE, async || {
        let messages = stack.stored(subject::STREAM_DEAD_LETTERS, "darkroom.dlq.>").await;
        let letters: Vec<_> = messages
            .iter()
            .map(|message| {
                let headers = message.headers.as_ref().unwrap();
                let text = |name: &str| headers.get(name).map_or("", |value| value.as_str()).to_owned();
                (text("Darkroom-Error-Code"), text("Darkroom-Original-Sequence"))
            })
            .collect();
        (letters.len() >= count).then_some(letters)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_fails_with_every_reason_and_is_kept() {
    let stack = Stack::start().await;
    let _worker = stack.worker().await;
    let bodies: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("not-json", b"hello".to_vec(), &["body"]),
        ("not-text", b"\xff\xfe\x00".to_vec(), &["body"]),
        ("empty", Vec::new(), &["body"]),
        ("no-prompt", b"{}".to_vec(), &["prompt"]),
        ("two", br#"{"prompt":"","width":7}"#.to_vec(), &["prompt", "width"]),
        ("unknown", br#"{"prompt":"p","colour":"red"}"#.to_vec(), &["colour"]),
        ("steps", br#"{"prompt":"p","num_inference_steps":101}"#.to_vec(), &["num_inference_steps"]),
        ("guidance", br#"{"prompt":"p","guidance_scale":NaN}"#.to_vec(), &["body"]),
        ("long", format!(r#"{{"prompt":"{}"}}"#, "a".repeat(REQUEST_BYTES_MAX)).into_bytes(), &["body"]),
    ];
    let count = bodies.len();
    for (id, body, _) in &bodies {
        stack.publish(REQUESTS, Some(id), body.clone()).await;
    }
    for (id, _, fields) in &bodies {
        let events = stack.events_to_the_end("t", id).await;
        assert_eq!(events.len(), 1, "{id}");
        assert_eq!(events[0].0, EventKind::Failed, "{id}");
        let error = &events[0].1["data"]["error"];
        assert_eq!(error["code"], "invalid_request", "{id}");
        let found: Vec<&str> =
            error["violations"].as_array().unwrap().iter().map(|v| v["field"].as_str().unwrap()).collect();
        assert_eq!(&found, fields, "{id}");
        assert_eq!(stack.end_of(id).await.state.status, Status::Failed);
    }
    stack.queue_is_empty().await;
    let letters = dead_letters(&stack, count).await;
    assert!(letters.iter().all(|(code, _)| code == "invalid_request"), "{letters:?}");
    assert_eq!(letters.len(), count, "one for each, none twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_and_tenants_that_are_no_tokens_are_answered_where_that_is_possible() {
    let stack = Stack::start().await;
    let _worker = stack.worker().await;
    let long = "a".repeat(1000);
    for id in ["*", "a.b", "a b", ">", long.as_str()] {
        let sequence = stack.publish(REQUESTS, Some(id), r#"{"prompt":"p"}"#).await;
        let events = stack.events_to_the_end("t", &format!("seq-{sequence}")).await;
        let violation = &events[0].1["data"]["error"]["violations"][0];
        assert_eq!(violation["field"], "Nats-Msg-Id", "{id:?}");
    }
    let sequence = stack.publish("darkroom.req.shapes.normal.any.t!", None, r#"{"prompt":"p"}"#).await;
    let events = stack.events_to_the_end("t!", &format!("seq-{sequence}")).await;
    assert_eq!(events[0].1["data"]["error"]["violations"][0]["field"], "subject");
    stack.queue_is_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_an_id_is_named_by_its_place_in_the_stream() {
    let stack = Stack::start().await;
    let _worker = stack.worker().await;
    let body = json!({"prompt": "a star", "num_inference_steps": 2, "width": 64, "height": 64});
    let sequence = stack.publish(REQUESTS, None, serde_json::to_vec(&body).unwrap()).await;
    let record = stack.end_of(&format!("seq-{sequence}")).await;
    assert_eq!(record.state.status, Status::Completed);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_id_twice_is_one_job_and_another_body_under_it_is_a_conflict() {
    let stack = Stack::start().await;
    let body = json!({"prompt": "a star", "num_inference_steps": 2, "width": 64, "height": 64, "id": "twin"});
    let same = json!({"id": "twin", "height": 64, "prompt": "a star", "num_inference_steps": 2, "width": 64});
    let other = json!({"prompt": "a heart", "num_inference_steps": 2, "width": 64, "height": 64, "id": "twin"});
    // Ids in the body only, so that the stream's own filter does not hide what the record does.
    for body in [&body, &same, &other] {
        stack.publish(REQUESTS, None, serde_json::to_vec(body).unwrap()).await;
    }
    let _worker = stack.worker().await;
    let letters = dead_letters(&stack, 1).await;
    assert_eq!(letters, [("job_id_conflict".to_owned(), "3".to_owned())]);
    let events = stack.events_to_the_end("t", "twin").await;
    let kinds = kinds_without_checkpoints(&events);
    assert_eq!(kinds, [EventKind::Accepted, EventKind::Started, EventKind::Completed]);
    stack.queue_is_empty().await;
    // Long after its end it is still the same job.
    stack.publish(REQUESTS, None, serde_json::to_vec(&same).unwrap()).await;
    stack.queue_is_empty().await;
    assert_eq!(stack.events_of("t", "twin").await.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_consumer_serves_is_failed_and_kept() {
    let stack = Stack::start().await;
    let _deadletter =
        Background::start(Command::new(program("darkroom-deadletter")).args(["--nats", &stack.nats.url()]));
    for (to, id, tenant) in [
        ("darkroom.req.unheard.normal.any.t", Some("a"), "t"),
        ("darkroom.req.shapes.urgent.any.t", Some("b"), "t"),
        ("darkroom.req.shapes.normal.any.t.more", Some("c"), "t"),
        ("darkroom.req.shapes", None, "unknown"),
    ] {
        let sequence = stack.publish(to, id, r#"{"prompt":"p"}"#).await;
        let job = id.map_or_else(|| format!("seq-{sequence}"), str::to_owned);
        let events = stack.events_to_the_end(tenant, &job).await;
        assert_eq!(events[0].0, EventKind::Failed);
        let error: &Value = &events[0].1["data"]["error"];
        assert_eq!(error["code"], "unserved", "{to}");
        assert!(error["message"].as_str().unwrap().contains("shapes"), "says what there is");
    }
    stack.queue_is_empty().await;
    assert_eq!(dead_letters(&stack, 4).await.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_consumer_serves_is_failed_though_requests_never_stop() {
    let stack = Stack::start().await;
    let _deadletter =
        Background::start(Command::new(program("darkroom-deadletter")).args(["--nats", &stack.nats.url()]));
    let unserved = "darkroom.req.unheard.normal.any.t";
    stack.publish(unserved, Some("first"), r#"{"prompt":"p"}"#).await;
    let others = async {
        let mut soon = tokio::time::interval(Duration::from_millis(200));
        loop {
            soon.tick().await;
            for to in [REQUESTS, unserved] {
                stack.publish(to, None, r#"{"prompt":"p"}"#).await;
            }
        }
    };
    let events = tokio::select! {
        () = others => unreachable!("it never stops"),
        events = stack.events_to_the_end("t", "first") => events,
    };
    assert_eq!((events[0].0, &events[0].1["data"]["error"]["code"]), (EventKind::Failed, &json!("unserved")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_beyond_the_streams_limit_is_refused_at_the_door() {
    let stack = Stack::start().await;
    let refused = stack.bus.publish(REQUESTS, async_nats::HeaderMap::new(), vec![b' '; 1_000_000].into()).await;
    assert!(matches!(refused, Err(PublishError::Refused { .. })), "{refused:?}");
}
