//! Webhooks: told, signed, tried again, given up; and what receivers do to others and strangers to us.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use async_nats::jetstream::consumer::{FromConsumer as _, pull};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use darkroom::job::WebhookEvent;
use darkroom::wire::event::EventKind;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use crate::stack::{PATIENCE, REQUESTS, Stack, program};
use crate::support::process::{Background, Finished, run};
use crate::support::python;
use crate::support::receiver::{Attempt, Receiver, Reply};
use crate::told::Jobs;

/// A stack with little to wait for.
async fn stack() -> Stack {
    let stack = Stack::start().await;
    for (stream, ack_wait) in [("DARKROOM_EV", 1), ("DARKROOM_HOOK", 3)] {
        let stream = stack.bus.context.get_stream(stream).await.unwrap();
        let consumer = stream.get_consumer::<pull::Config>("webhook").await.unwrap();
        let config = pull::Config::try_from_consumer_config(consumer.cached_info().config.clone()).unwrap();
        stream.update_consumer(pull::Config { ack_wait: Duration::from_secs(ack_wait), ..config }).await.unwrap();
    }
    stack
}

/// The function, which may reach receivers of the test.
pub(crate) async fn function(stack: &Stack, options: &[&str]) -> Background {
    bare_function(stack, &[&["--webhook-allow", "127.0.0.1"], options].concat()).await
}

async fn bare_function(stack: &Stack, options: &[&str]) -> Background {
    let mut command = Command::new(program("darkroom-webhook"));
    command.args(["--nats", &stack.nats.url()]).args(options).env("DARKROOM_LOG", "info,darkroom=debug");
    let function = Background::start(&mut command);
    function.wait_for_log(|line| line.contains("webhook.ready"), PATIENCE).await;
    function
}

async fn webhooks(stack: &Stack, arguments: &[&str]) -> Finished {
    let mut command = Command::new(program("darkroom"));
    run(command.args(["--nats", &stack.nats.url(), "--json", "webhooks"]).args(arguments), PATIENCE).await
}

fn lines(finished: Finished) -> Vec<Value> {
    finished.expect_success().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Why each webhook was given up, by the id of its event.
async fn given_up(stack: &Stack) -> BTreeMap<String, String> {
    let text = |line: &Value, field: &str| line[field].as_str().unwrap().to_owned();
    let found = lines(webhooks(stack, &["list", "--limit", "1000"]).await);
    found.iter().map(|line| (text(line, "id"), text(line, "code"))).collect()
}

/// Waits until so many were given up.
async fn wait_for_given_up(stack: &Stack, many: usize) -> BTreeMap<String, String> {
    crate::support::eventually("webhooks that were given up", PATIENCE, async || {
        Some(given_up(stack).await).filter(|found| found.len() >= many)
    })
    .await
}

async fn secret(stack: &Stack, tenant: &str) -> String {
    lines(webhooks(stack, &["secret", tenant]).await)[0]["secret"].as_str().unwrap().to_owned()
}

/// What the standard's own package reads in an attempt whose signature it takes.
async fn verified(attempt: &Attempt, secret: &str) -> String {
    let mut verify = python::client("verify_webhook.py", python::STANDARD_WEBHOOKS);
    verify.args(["--secret", secret, "--headers", &json!(attempt.headers).to_string()]);
    verify.args(["--body", &STANDARD.encode(&attempt.body)]);
    run(&mut verify, PATIENCE).await.expect_success()
}

fn arrived(attempts: &[Attempt]) -> BTreeSet<String> {
    attempts.iter().filter(|attempt| attempt.has_arrived()).map(|attempt| attempt.id().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_is_the_event_signed_as_the_standard_says() {
    let stack = stack().await;
    let receiver = Receiver::start(|_, _| Reply::Status(204)).await;
    let _function = function(&stack, &[]).await;
    let jobs = Jobs::of(&stack).await;
    jobs.complete("t", "one", &receiver.url()).await;
    // Neither of these is told: one has no webhook, the other wants to hear of something else.
    jobs.tell("t", "none", EventKind::Completed).await;
    jobs.begin("t", "other", &receiver.url(), &[WebhookEvent::Failed]).await;
    jobs.tell("t", "other", EventKind::Completed).await;
    jobs.complete("t", "two", &receiver.url()).await;
    let attempts = receiver.wait_for("two webhooks", PATIENCE, |attempts| attempts.len() == 2).await;
    let ids: BTreeSet<&str> = attempts.iter().map(Attempt::id).collect();
    assert_eq!(ids, BTreeSet::from(["t/one/completed", "t/two/completed"]));

    let secret = secret(&stack, "t").await;
    for attempt in &attempts {
        assert_eq!(attempt.signatures(), [attempt.signature_by(&secret)], "worked out by hand");
        assert_eq!(attempt.headers["content-type"], "application/cloudevents+json");
        assert_eq!((attempt.path.as_str(), attempt.event()["id"].as_str()), ("/hook", Some(attempt.id())));
        let sent_at_s = i64::try_from(attempt.at_ns / 1_000_000_000).unwrap();
        assert!((sent_at_s - 60..=sent_at_s).contains(&attempt.timestamp()), "the time of the attempt");
        assert!(verified(attempt, &secret).await.contains(attempt.id()), "the standard's own package takes it");
    }
    let stored = stack.stored("DARKROOM_EV", "darkroom.ev.t.one.>").await;
    assert_eq!(attempts.iter().find(|attempt| attempt.id() == "t/one/completed").unwrap().body, stored[0].payload);
    assert!(given_up(&stack).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_is_tried_again_under_the_same_id_and_not_before_the_receiver_wants_it() {
    let stack = stack().await;
    let receiver = Receiver::start(|id, nth| match (id, nth) {
        ("t/fails/completed", 1..=2) => Reply::Status(500),
        ("t/waits/completed", 1) => Reply::With(429, "retry-after", "4".to_owned()),
        _ => Reply::Status(200),
    })
    .await;
    let _function = function(&stack, &["--webhook-retries", "100ms,100ms,100ms"]).await;
    let jobs = Jobs::of(&stack).await;
    for job in ["fails", "waits"] {
        jobs.complete("t", job, &receiver.url()).await;
    }
    let waiting = crate::support::eventually("what waits", PATIENCE, async || {
        let found = lines(webhooks(&stack, &["waiting", "--tenant", "t"]).await);
        found.into_iter().find(|line| line["id"] == "t/waits/completed")
    });
    let waiting = waiting.await;
    assert_eq!((&waiting["attempts"], &waiting["last"]), (&json!(1), &json!("answered 429 Too Many Requests")));
    let attempts = receiver.wait_for("both", PATIENCE, |attempts| arrived(attempts).len() == 2).await;
    assert_eq!(attempts.len(), 5);
    let secret = secret(&stack, "t").await;
    for attempt in &attempts {
        assert_eq!(attempt.signatures(), [attempt.signature_by(&secret)], "each attempt has its own time");
    }
    let fails = receiver.attempts_of("t/fails/completed");
    assert_eq!(fails.iter().map(|attempt| attempt.nth).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(fails.iter().all(|attempt| attempt.body == fails[0].body));
    let waits = receiver.attempts_of("t/waits/completed");
    let waited_ms = (waits[1].at_ns - waits[0].at_ns) / 1_000_000;
    assert!((3_950..30_000).contains(&waited_ms), "{waited_ms} ms");
    crate::support::eventually("nothing waits", PATIENCE, async || {
        lines(webhooks(&stack, &["waiting"]).await).is_empty().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_tried_in_vain_is_kept_and_sent_again_by_an_operator() {
    let stack = stack().await;
    let mended = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_mended = std::sync::Arc::clone(&mended);
    let receiver = Receiver::start(move |_, _| {
        Reply::Status(if is_mended.load(std::sync::atomic::Ordering::SeqCst) { 200 } else { 503 })
    })
    .await;
    let _function = function(&stack, &["--webhook-retries", "50ms,50ms"]).await;
    let jobs = Jobs::of(&stack).await;
    for job in ["one", "two", "three"] {
        jobs.complete("t", job, &receiver.url()).await;
    }
    let found = wait_for_given_up(&stack, 3).await;
    assert!(found.values().all(|code| code == "attempts_exhausted"), "{found:?}");
    assert_eq!(receiver.attempts().len(), 9, "one attempt, and one after each wait");
    let line = &lines(webhooks(&stack, &["list", "--limit", "1"]).await)[0];
    assert_eq!((&line["attempts"], &line["tenant"]), (&json!(3), &json!("t")));
    assert!(line["message"].as_str().unwrap().contains("503"), "{line}");
    assert_eq!(line["host"], format!("127.0.0.1:{}", receiver.port()));

    mended.store(true, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(lines(webhooks(&stack, &["retry", "t/two/completed"]).await).len(), 1);
    receiver.wait_for("the one", PATIENCE, |attempts| arrived(attempts).len() == 1).await;
    assert_eq!(lines(webhooks(&stack, &["drop", "three"]).await)[0]["id"], "t/three/completed");
    assert_eq!(lines(webhooks(&stack, &["retry", "--all"]).await)[0]["id"], "t/one/completed");
    let attempts = receiver.wait_for("the other", PATIENCE, |attempts| arrived(attempts).len() == 2).await;
    assert_eq!(arrived(&attempts), BTreeSet::from(["t/one/completed".to_owned(), "t/two/completed".to_owned()]));
    assert!(given_up(&stack).await.is_empty());
    assert_eq!(webhooks(&stack, &["retry", "99"]).await.status.code(), Some(6));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_says_it_is_gone_is_told_nothing_until_it_is_enabled() {
    let stack = stack().await;
    let receiver = Receiver::start(|id, nth| match (id, nth) {
        ("t/one/completed", 1) => Reply::Status(410),
        _ => Reply::Status(200),
    })
    .await;
    let _function = function(&stack, &["--webhook-retries", "50ms"]).await;
    let jobs = Jobs::of(&stack).await;
    jobs.complete("t", "one", &receiver.url()).await;
    wait_for_given_up(&stack, 1).await;
    jobs.complete("t", "two", &receiver.url()).await;
    let found = wait_for_given_up(&stack, 2).await;
    assert_eq!(
        (found["t/one/completed"].as_str(), found["t/two/completed"].as_str()),
        ("endpoint_gone", "endpoint_disabled")
    );
    // The same URL is another endpoint for another tenant, and so is another URL.
    jobs.complete("u", "one", &receiver.url()).await;
    jobs.complete("t", "three", &format!("{}/other", receiver.url())).await;
    let attempts = receiver.wait_for("the others", PATIENCE, |attempts| arrived(attempts).len() == 2).await;
    assert_eq!(arrived(&attempts), BTreeSet::from(["u/one/completed".to_owned(), "t/three/completed".to_owned()]));
    assert_eq!(attempts.len(), 3);

    let disabled = lines(webhooks(&stack, &["disabled"]).await);
    assert_eq!(disabled.len(), 1);
    assert_eq!((&disabled[0]["tenant"], &disabled[0]["url"]), (&json!("t"), &json!(receiver.url())));
    webhooks(&stack, &["enable", "t", &receiver.url()]).await.expect_success();
    assert!(lines(webhooks(&stack, &["disabled", "--tenant", "t"]).await).is_empty());
    jobs.complete("t", "four", &receiver.url()).await;
    receiver.wait_for("the next event", PATIENCE, |attempts| arrived(attempts).contains("t/four/completed")).await;
    assert_eq!(lines(webhooks(&stack, &["retry", "--all"]).await).len(), 2);
    receiver.wait_for("what was missed", PATIENCE, |attempts| arrived(attempts).len() == 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_reach_nothing_inside_by_a_webhook() {
    let stack = stack().await;
    let inside = Receiver::start(|_, _| Reply::Status(200)).await;
    let port = inside.port();
    let _function = bare_function(&stack, &["--webhook-retries", "50ms"]).await;
    let jobs = Jobs::of(&stack).await;
    let urls = [
        format!("http://127.0.0.1:{port}/"),
        format!("https://127.0.0.1:{port}/"),
        format!("https://[::ffff:127.0.0.1]:{port}/"),
        format!("https://2130706433:{port}/"),
        // A name that only the resolver knows to be this machine.
        format!("https://localhost:{port}/"),
        "https://169.254.169.254/latest/meta-data/".to_owned(),
        "https://10.0.0.1/".to_owned(),
        "http://example.com/".to_owned(),
    ];
    for (index, url) in urls.iter().enumerate() {
        jobs.complete("t", &format!("j{index}"), url).await;
    }
    let found = wait_for_given_up(&stack, urls.len()).await;
    assert!(found.values().all(|code| code == "url_refused"), "{found:?}");
    let list = lines(webhooks(&stack, &["list"]).await);
    assert!(list.iter().all(|line| line["attempts"] == 1), "not tried again: {list:?}");
    assert!(inside.attempts().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_a_failure_and_is_not_followed() {
    let stack = stack().await;
    let inside = Receiver::start(|_, _| Reply::Status(200)).await;
    let target = inside.url();
    let receiver = Receiver::start(move |id, _| {
        let to = if id.contains("metadata") { "http://169.254.169.254/latest/".to_owned() } else { target.clone() };
        Reply::With(if id.contains("307") { 307 } else { 302 }, "location", to)
    })
    .await;
    let function = function(&stack, &["--webhook-retries", "50ms"]).await;
    let jobs = Jobs::of(&stack).await;
    for job in ["metadata-302", "metadata-307", "inside-302", "inside-307"] {
        jobs.complete("t", job, &receiver.url()).await;
    }
    let found = wait_for_given_up(&stack, 4).await;
    assert!(found.values().all(|code| code == "attempts_exhausted"), "{found:?}");
    assert_eq!((receiver.attempts().len(), inside.attempts().len()), (8, 0));
    assert!(!function.stderr().contains("169.254"), "{function:?}");
}

/// Accepts connections, reads a little, and hangs up.
async fn hangs_up() -> (u16, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let _ = connection.read(&mut [0; 16]).await;
        }
    });
    (port, task)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_misbehaves_delays_nobody_else() {
    let stack = stack().await;
    let hanging = Receiver::start(|_, _| Reply::Hang).await;
    let flooding = Receiver::start(|id, _| Reply::Flood(if id.contains("bad") { 500 } else { 200 })).await;
    let (hangs_up, _task) = hangs_up().await;
    let good = Receiver::start(|_, _| Reply::Status(200)).await;
    let options = ["--webhook-retries", "100ms", "--webhook-timeout", "6s"];
    let room = ["--concurrency", "12", "--concurrency-per-tenant", "12", "--concurrency-per-host", "3"];
    let function = function(&stack, &[options.as_slice(), &room].concat()).await;
    let jobs = Jobs::of(&stack).await;
    for index in 0..6 {
        jobs.complete("t", &format!("hangs-{index}"), &hanging.url()).await;
    }
    jobs.complete("t", "hangs-up", &format!("http://127.0.0.1:{hangs_up}/")).await;
    for job in ["flood-good", "flood-bad"] {
        jobs.complete("t", job, &flooding.url()).await;
    }
    let begun = hanging.wait_for("the first that hang", PATIENCE, |attempts| attempts.len() >= 3).await;
    for index in 0..20 {
        jobs.complete("t", &format!("good-{index}"), &good.url()).await;
    }
    let attempts = good.wait_for("all of the good one's", PATIENCE, |attempts| arrived(attempts).len() == 20).await;
    let last = attempts.iter().map(|attempt| attempt.at_ns).max().unwrap();
    assert!(last - begun[0].at_ns < 6_000_000_000, "before the first that hang could have been over");
    // What the function has given up may be open here for a moment longer.
    assert!(hanging.open_max() <= 6, "{} at once", hanging.open_max());

    let found = wait_for_given_up(&stack, 8).await;
    assert!(found.values().all(|code| code == "attempts_exhausted"), "{found:?}");
    assert!(!found.contains_key("t/flood-good/completed"), "its head said 200");
    assert!(flooding.flooded_bytes() < 64 << 20, "{} bytes were taken", flooding.flooded_bytes());
    let lines = lines(webhooks(&stack, &["list", "--limit", "100"]).await);
    let message =
        |id: &str| lines.iter().find(|line| line["id"] == id).unwrap()["message"].as_str().unwrap().to_owned();
    assert!(message("t/hangs-0/completed").contains("within 6 s"), "{lines:?}");
    assert!(message("t/hangs-up/completed").contains("no answer"), "{lines:?}");
    drop(function);
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_told_now_and_then_to_who_asks_for_it() {
    let stack = stack().await;
    let receiver = Receiver::start(|_, _| Reply::Status(204)).await;
    let _function = function(&stack, &[]).await;
    let _worker = stack.worker().await;
    for (job, events) in [("asks", json!(["progress", "completed"])), ("does-not", json!(["completed"]))] {
        let webhook = json!({"url": receiver.url(), "events": events});
        let body = json!({"prompt": "a ring", "num_inference_steps": 100, "num_images": 2, "webhook": webhook});
        stack.request(job, &body).await;
    }
    let ends = |attempts: &[Attempt]| attempts.iter().filter(|attempt| attempt.id().ends_with("/completed")).count();
    let attempts = receiver.wait_for("both ends", PATIENCE, |attempts| ends(attempts) == 2).await;
    let told: Vec<Value> = attempts.iter().map(Attempt::event).filter(|event| event["data"]["step"].is_u64()).collect();
    assert!(!told.is_empty() && told.len() < 100, "{attempts:?}");
    assert!(told.iter().all(|event| event["subject"] == "t/asks" && event["data"]["steps"] == 200), "{told:?}");
    let secret = secret(&stack, "t").await;
    assert!(attempts.iter().all(|attempt| attempt.signatures() == [attempt.signature_by(&secret)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_job_are_told_in_their_order_by_however_many_functions() {
    let stack = stack().await;
    // The first event fails twice; the second would arrive at once, if it were tried.
    let receiver =
        Receiver::start(|id, nth| Reply::Status(if id.contains("/started") && nth <= 2 { 500 } else { 200 })).await;
    let options = ["--webhook-retries", "300ms,300ms,300ms"];
    let _functions = (function(&stack, &options).await, function(&stack, &options).await);
    let jobs = Jobs::of(&stack).await;
    let names: Vec<String> = (0..8).map(|index| format!("j{index}")).collect();
    for job in &names {
        jobs.begin("t", job, &receiver.url(), WebhookEvent::ALL).await;
        jobs.tell("t", job, EventKind::Started).await;
        jobs.tell("t", job, EventKind::Completed).await;
    }
    let attempts = receiver.wait_for("both of each", PATIENCE, |attempts| arrived(attempts).len() == 16).await;
    for job in &names {
        let of_job: Vec<(bool, bool)> = attempts
            .iter()
            .filter(|attempt| attempt.id().starts_with(&format!("t/{job}/")))
            .map(|attempt| (attempt.id().contains("/started"), attempt.has_arrived()))
            .collect();
        assert_eq!(of_job, [(true, false), (true, false), (true, true), (false, true)], "{job}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_rotation_both_secrets_sign_the_new_one_first() {
    let stack = stack().await;
    let receiver = Receiver::start(|_, _| Reply::Status(200)).await;
    let _function = function(&stack, &[]).await;
    let jobs = Jobs::of(&stack).await;
    let told = async |job: &str| {
        jobs.complete("t", job, &receiver.url()).await;
        let id = format!("t/{job}/completed");
        receiver.wait_for("the webhook", PATIENCE, |attempts| arrived(attempts).contains(&id)).await;
        receiver.attempts_of(&id).remove(0)
    };
    let old = secret(&stack, "t").await;
    let first = told("one").await;
    assert_eq!(first.signatures(), [first.signature_by(&old)]);
    assert_eq!(secret(&stack, "t").await, old, "asking changes nothing");
    assert_ne!(secret(&stack, "u").await, old);

    let rotated = lines(webhooks(&stack, &["secret", "t", "--rotate"]).await).remove(0);
    let new = rotated["secret"].as_str().unwrap();
    assert_eq!((new == old, &rotated["previous"][0]["secret"]), (false, &json!(old)));
    let second = told("two").await;
    assert_eq!(second.signatures(), [second.signature_by(new), second.signature_by(&old)]);
    // A receiver that still has the old one takes it, by the standard's own package.
    verified(&second, &old).await;

    let newest = lines(webhooks(&stack, &["secret", "u", "--rotate", "--keep-old", "0s"]).await).remove(0);
    assert_eq!(newest["previous"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_is_killed_twice_loses_no_delivery() {
    const JOBS: usize = 300;
    let stack = stack().await;
    // Three of ten attempts fail, whatever their number.
    let receiver = Receiver::start(|id, nth| {
        let lot = id.bytes().fold(nth * 7, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(byte)));
        Reply::Status(if lot % 10 < 3 { 500 } else { 200 })
    })
    .await;
    let waits = ["100ms"; 30].join(",");
    let options = ["--webhook-retries", &waits, "--concurrency-per-host", "16"];
    let mut first = function(&stack, &options).await;
    let jobs = Jobs::of(&stack).await;
    let publishing = async {
        for index in 0..JOBS {
            jobs.complete("t", &format!("j{index}"), &receiver.url()).await;
        }
    };
    let killing = async {
        receiver.wait_for("some", PATIENCE, |attempts| attempts.len() >= 40).await;
        first.kill();
        let mut second = function(&stack, &options).await;
        receiver.wait_for("some more", PATIENCE, |attempts| attempts.len() >= 160).await;
        second.kill();
        function(&stack, &options).await
    };
    let (_third, ()) = tokio::join!(killing, publishing);
    let attempts = receiver.wait_for("all", PATIENCE, |attempts| arrived(attempts).len() == JOBS).await;
    let failed = attempts.iter().filter(|attempt| !attempt.has_arrived()).count();
    assert!(failed > JOBS / 10, "{failed} failed");
    let secret = secret(&stack, "t").await;
    assert!(attempts.iter().all(|attempt| attempt.signatures() == [attempt.signature_by(&secret)]));
    assert!(given_up(&stack).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_complete_fail_are_refused_cancelled_or_not_served_are_all_told() {
    let stack = stack().await;
    let receiver = Receiver::start(|_, _| Reply::Status(200)).await;
    let _function = function(&stack, &[]).await;
    let webhook = json!({"url": receiver.url(), "events": ["started", "completed", "failed", "cancelled"]});
    let body = |change: Value| {
        let mut body =
            json!({"prompt": "a ring", "num_inference_steps": 2, "width": 64, "height": 64, "webhook": webhook});
        body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        serde_json::to_vec(&body).unwrap()
    };
    let published = async |job: &str, change: Value| stack.publish(REQUESTS, Some(job), body(change)).await;
    // Cancelled while it waits, by whom no worker has told anything.
    published("cancelled", json!({})).await;
    let mut cancel = Command::new(program("darkroom"));
    cancel.args(["--nats", &stack.nats.url(), "cancel", "cancelled", "--tenant", "t"]);
    run(&mut cancel, PATIENCE).await.expect_success();
    // Refused, by a worker that cannot make it.
    published("refused", json!({"num_inference_steps": 101, "colour": "red"})).await;
    published("failed", json!({"init_image": "t/nothing.png"})).await;
    // Served by nobody.
    stack.publish("darkroom.req.ghost.normal.any.t", Some("unserved"), body(json!({}))).await;
    let mut deadletter = Command::new(program("darkroom-deadletter"));
    let _deadletter = Background::start(deadletter.args(["--nats", &stack.nats.url()]));
    // By the command line, which makes the record.
    let mut submit = Command::new(program("darkroom"));
    submit.args([
        "--nats",
        &stack.nats.url(),
        "submit",
        "a ring",
        "--steps",
        "2",
        "--job",
        "completed",
        "--tenant",
        "t",
    ]);
    submit.args(["--webhook", &receiver.url(), "--webhook-event", "completed", "--webhook-event", "started"]);
    run(&mut submit, PATIENCE).await.expect_success();
    let _worker = stack.worker().await;
    let ends = [
        ("t/cancelled/cancelled", Value::Null),
        ("t/refused/failed", json!("invalid_request")),
        ("t/failed/failed", json!("invalid_request")),
        ("t/unserved/failed", json!("unserved")),
        ("t/completed/completed", Value::Null),
    ];
    let all: BTreeSet<String> = ends.iter().map(|(id, _)| (*id).to_owned()).collect();
    let attempts = receiver.wait_for("every end", PATIENCE, |attempts| arrived(attempts).is_superset(&all)).await;
    for (id, code) in ends {
        let event = receiver.attempts_of(id).remove(0).event();
        assert_eq!(event["data"]["error"]["code"], code, "{event}");
    }
    let of_completed: Vec<&str> =
        attempts.iter().map(Attempt::id).filter(|id| id.starts_with("t/completed/")).collect();
    assert_eq!(of_completed.len(), 2, "{of_completed:?}");
    assert!(of_completed[0].starts_with("t/completed/started/") && of_completed[1] == "t/completed/completed");
    let image = &receiver.attempts_of("t/completed/completed")[0].event()["data"]["images"][0];
    assert!(image["url"].as_str().unwrap().starts_with("file://"), "a link and no pixels: {image}");

    // What is wrong with a webhook is said with the rest, and nobody can be told of it.
    published("wrong", json!({"webhook": {"url": "ftp://example.com", "events": ["begun"], "secret": "x"}})).await;
    let end = stack.end_of("wrong").await;
    let violations = end.terminal.unwrap()["error"]["violations"].take();
    let fields: BTreeSet<&str> =
        violations.as_array().unwrap().iter().map(|violation| violation["field"].as_str().unwrap()).collect();
    assert_eq!(fields, BTreeSet::from(["webhook.url", "webhook.events[0]", "webhook.secret"]));
    assert_eq!(end.webhook, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_function_and_the_operator_work_with_the_keys_of_their_roles() {
    use crate::tenants::Platform;
    let platform = Platform::start().await;
    let receiver = Receiver::start(|id, _| Reply::Status(if id.contains("gone") { 410 } else { 200 })).await;
    let mut command = platform.command("darkroom-webhook", "webhook");
    command
        .args(["--webhook-allow", "127.0.0.1", "--webhook-retries", "50ms"])
        .env("DARKROOM_LOG", "info,darkroom=debug");
    let function = Background::start(&mut command);
    function.wait_for_log(|line| line.contains("webhook.ready"), PATIENCE).await;
    let worker = platform.bus("worker").await;
    let jobs = Jobs::over(worker).await;
    let gone = format!("{}/gone", receiver.url());
    for (job, url) in [("good", &receiver.url()), ("gone", &gone)] {
        jobs.begin("acme", job, url, WebhookEvent::ALL).await;
        jobs.tell("acme", job, EventKind::Started).await;
        jobs.tell("acme", job, EventKind::Completed).await;
    }
    receiver.wait_for("the good ones", PATIENCE, |attempts| arrived(attempts).len() == 2).await;
    crate::support::eventually("what was given up", PATIENCE, async || {
        let listed = platform.darkroom("gateway", ["--json", "webhooks", "list"]).await.expect_success();
        listed.contains("endpoint_gone").then_some(())
    })
    .await;
    let disabled = platform.darkroom("gateway", ["--json", "webhooks", "disabled"]).await.expect_success();
    assert!(disabled.contains("acme"), "{disabled}");
    platform.darkroom("gateway", ["webhooks", "enable", "acme", &gone]).await.expect_success();
    platform.darkroom("gateway", ["webhooks", "drop", "--all"]).await.expect_success();
    let secret = async |role| platform.darkroom(role, ["webhooks", "secret", "acme"]).await.expect_success();
    assert!(secret("webhook").await.starts_with("whsec_"));
    assert_eq!(secret("gateway").await, secret("webhook").await);
    assert!(!function.stderr().contains("bus.refused"), "{function:?}");
}
