//! A hostile tenant: by reply subjects, headers, message ids, bodies, numbers and pages, nothing of another's is reached.

use std::fs;

use async_nats::HeaderMap;
use async_nats::jetstream::stream::DirectGetErrorKind;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::stack::PATIENCE;
use crate::support::eventually;
use crate::support::nats::ORIGIN;
use crate::tenants::{ANSWER, Platform, Session, body, requests_of};

#[tokio::test(flavor = "multi_thread")]
async fn where_a_tenant_wants_its_answer_sent_reaches_nobody_else() {
    let platform = Platform::start().await;
    platform.with_work_of_beta().await;
    let before = platform.of_others().await;
    let acme = platform.bus("acme").await.client;
    for reply in [
        "darkroom.ev.beta.job-1.completed",
        "darkroom.ev.beta.job-2.failed",
        "darkroom.prog.beta.job-2",
        "darkroom.req.shapes.normal.any.beta",
        "darkroom.ctl.cancel.job-2",
        "darkroom.dlq.shapes.beta",
        "$KV.darkroom_jobs.beta.job-1",
        "$JS.API.STREAM.PURGE.DARKROOM_REQ",
        "$JS.API.STREAM.DELETE.DARKROOM_EV",
    ] {
        acme.publish_with_reply(requests_of("acme"), reply, body("job-9")).await.unwrap();
        let read = "$JS.API.DIRECT.GET.DARKROOM_EV.darkroom.ev.acme.job-1.completed";
        acme.publish_with_reply(read, reply, bytes::Bytes::new()).await.unwrap();
    }
    // What was published before has been handled when this is confirmed.
    platform.bus("acme").await.publish(&requests_of("acme"), HeaderMap::new(), body("job-9")).await.unwrap();
    acme.flush().await.unwrap();
    eventually("all requests are stored", ANSWER, async || {
        (platform.subjects("DARKROOM_REQ").await.get(&requests_of("acme")) == Some(&10)).then_some(())
    })
    .await;
    assert_eq!(platform.of_others().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_of_a_tenant_change_nothing_of_others() {
    let platform = Platform::start().await;
    platform.with_work_of_beta().await;
    let before = platform.of_others().await;
    let acme = platform.bus("acme").await.client;
    let victim = &requests_of("beta");
    let tricks: [&[(&str, &str)]; 20] = [
        &[("Nats-Rollup", "all")],
        &[("Nats-Rollup", "sub")],
        &[("Nats-TTL", "1")],
        &[("Nats-TTL", "never")],
        &[("Nats-Expected-Stream", "DARKROOM_EV")],
        &[("Nats-Expected-Last-Sequence", "0")],
        &[("Nats-Expected-Last-Msg-Id", "beta.job-2")],
        &[("Nats-Expected-Last-Subject-Sequence", "0")],
        &[("Nats-Expected-Last-Subject-Sequence", "0"), ("Nats-Expected-Last-Subject-Sequence-Subject", victim)],
        &[("Nats-Schedule", "@at 2020-01-01T00:00:00Z"), ("Nats-Schedule-Target", victim)],
        &[("Nats-Scheduler", victim), ("Nats-Schedule-Next", "purge")],
        &[("Nats-Incr", "+1")],
        &[("Nats-Batch-Id", "b"), ("Nats-Batch-Sequence", "1"), ("Nats-Batch-Commit", "1")],
        &[("Nats-Trace-Dest", "darkroom.ev.beta.job-1.completed")],
        &[("Nats-Trace-Dest", "darkroom.ev.beta.job-1.completed"), ("Nats-Trace-Only", "true")],
        &[("Nats-Marker-Reason", "Purge")],
        &[("KV-Operation", "PURGE"), ("Nats-Rollup", "sub")],
        &[("Nats-Request-Info", r#"{"acc":"DARKROOM","user":"setup"}"#)],
        &[("Nats-Subject", victim), ("Nats-Stream", "DARKROOM_EV")],
        &[("Nats-Required-Api-Level", "999")],
    ];
    let reads = "$JS.API.DIRECT.GET.KV_darkroom_jobs.$KV.darkroom_jobs.acme.job-1";
    for trick in tricks {
        let mut headers = HeaderMap::new();
        for (name, value) in trick {
            headers.insert(*name, *value);
        }
        for subject in [&requests_of("acme"), reads, victim] {
            acme.publish_with_headers(subject.to_owned(), headers.clone(), body("job-9")).await.unwrap();
        }
    }
    platform.bus("acme").await.publish(&requests_of("acme"), HeaderMap::new(), body("job-9")).await.unwrap();
    assert_eq!(platform.of_others().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_id_that_another_tenant_used_first_loses_no_job() {
    let platform = Platform::start().await;
    let acme = platform.bus("acme").await;
    for id in ["beta.one", "beta.two", "one", "two"] {
        let headers = HeaderMap::from_iter([("Nats-Msg-Id".parse().unwrap(), id.parse().unwrap())]);
        acme.publish(&requests_of("acme"), headers, body("mine")).await.unwrap();
    }
    for (who, job) in [("beta", "one"), ("gateway", "two")] {
        let submit = ["submit", "a ring", "--model", "shapes", "--tenant", "beta", "--job", job];
        platform.darkroom(who, submit).await.expect_success();
        // Again, while nobody has claimed it: stored once more, which the job's record absorbs.
        platform.darkroom(who, submit).await.expect_success();
    }
    let _worker = platform.worker().await;
    for job in ["one", "two"] {
        eventually("the end of the job", PATIENCE, async || {
            let status = platform.darkroom("beta", ["--json", "status", job, "--tenant", "beta"]).await;
            status.stdout.contains("\"completed\"").then_some(())
        })
        .await;
    }
    eventually("no request is left", PATIENCE, async || {
        (!platform.subjects("DARKROOM_REQ").await.contains_key(&requests_of("beta"))).then_some(())
    })
    .await;
    let ends = platform.subjects("DARKROOM_EV").await;
    let ends: Vec<_> = ends.iter().filter(|(subject, _)| subject.starts_with("darkroom.ev.beta.")).collect();
    let ends: Vec<_> = ends.into_iter().filter(|(subject, _)| subject.ends_with(".completed")).collect();
    assert_eq!(ends.len(), 2, "{ends:?}");
    assert!(ends.iter().all(|(_, count)| **count == 1), "{ends:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_body_turns_a_read_of_ones_own_into_one_of_anothers() {
    let platform = Platform::start().await;
    platform.with_work_of_beta().await;
    let worker = platform.bus("worker").await;
    worker.publish("darkroom.ev.acme.job-1.completed", HeaderMap::new(), "of acme".into()).await.unwrap();
    let acme = platform.bus("acme").await.client;
    let own = "$JS.API.DIRECT.GET.DARKROOM_EV.darkroom.ev.acme.job-1.completed";
    for body in [
        json!({ "seq": 1 }),
        json!({ "last_by_subj": "darkroom.ev.beta.job-1.completed" }),
        json!({ "next_by_subj": "darkroom.ev.>", "seq": 1 }),
        json!({ "multi_last": ["darkroom.ev.>"], "batch": 10 }),
        json!({ "batch": 10, "seq": 1 }),
        json!({ "start_time": "2020-01-01T00:00:00Z", "batch": 10 }),
    ] {
        let answer = acme.request(own, body.to_string().into()).await.unwrap();
        assert!(!String::from_utf8_lossy(&answer.payload).contains("beta"), "{body}");
    }
    // Subjects with wildcards are their own subjects, and find own messages only.
    let wide = "$JS.API.DIRECT.GET.DARKROOM_EV.darkroom.ev.acme.>";
    assert_eq!(acme.request(wide, bytes::Bytes::new()).await.unwrap().payload, "of acme");
    let bus = platform.bus("acme").await;
    let stream = bus.context.get_stream_no_info("DARKROOM_EV").await.unwrap();
    for wide in ["darkroom.ev.*.job-1.completed", "darkroom.ev.>", ">"] {
        let found = stream.direct_get_last_for_subject(wide).await.map(|message| message.payload);
        assert!(found.as_ref().is_err_and(|error| error.kind() != DirectGetErrorKind::NotFound), "{wide}: {found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_is_at_its_cap_is_refused_and_another_is_not() {
    let platform = Platform::start().await;
    let info = platform.bus("setup").await.api("STREAM.INFO.DARKROOM_REQ", &Value::Null).await.unwrap();
    let cap = info["config"]["max_msgs_per_subject"].as_u64().unwrap();
    let acme = platform.bus("acme").await;
    for _ in 0..cap - 1 {
        acme.client.publish(requests_of("acme"), "{}".into()).await.unwrap();
    }
    acme.publish(&requests_of("acme"), HeaderMap::new(), "{}".into()).await.unwrap();
    let submit = ["submit", "a ring", "--model", "shapes", "--tenant", "acme"];
    let refused = platform.darkroom("acme", submit).await;
    assert_eq!(refused.status.code(), Some(11), "{refused}");
    assert!(refused.stderr.contains("the quota is reached"), "{refused}");
    platform.bus("beta").await.publish(&requests_of("beta"), HeaderMap::new(), body("one")).await.unwrap();
    let of_acme = platform.subjects("DARKROOM_REQ").await[&requests_of("acme")];
    assert_eq!(of_acme, cap);

    // A message beyond the account's size ends the connection instead of filling the stream.
    let mut large = Session::open(&platform, "beta").await;
    large.client.publish(requests_of("beta"), vec![b' '; 400 * 1024].into()).await.unwrap();
    let words = timeout(ANSWER, large.refusals.recv()).await.unwrap().unwrap();
    // Its last words may be lost with the connection.
    assert!(["maximum payload", "disconnected"].iter().any(|end| words.to_lowercase().contains(end)), "{words}");
    assert_eq!(platform.subjects("DARKROOM_REQ").await[&requests_of("beta")], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_are_let_in_from_named_origins_only() {
    let platform = Platform::start_bare(false).await;
    let authority = fs::read(&platform.nats.certificates().authority).unwrap();
    let authority = reqwest::Certificate::from_pem(&authority).unwrap();
    let browser = reqwest::Client::builder().tls_certs_only([authority]).build().unwrap();
    let url = platform.nats.websocket_url().replace("wss://", "https://");
    for (origin, status) in [(ORIGIN, 101), ("https://evil.example.com", 403), ("http://app.example.com", 403)] {
        let upgrade = browser
            .get(&url)
            .header("Connection", "Upgrade")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA==")
            .header("Origin", origin);
        assert_eq!(upgrade.send().await.unwrap().status().as_u16(), status, "{origin}");
    }
}
