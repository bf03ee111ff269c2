//! Cancelling: jobs that wait, that run among others, that end at the same moment, and those of others.

use std::process::Command;
use std::time::Duration;

use darkroom::job::{JobId, JobStep, Status, Tenant};
use darkroom::shell::cancel::{Canceller, Keep, Outcome};
use darkroom::shell::clock::Clock;
use darkroom::shell::config::Retention;
use darkroom::shell::events::Events;
use darkroom::shell::records::{Changed, Records};
use darkroom::wire::event::EventKind;
use darkroom::wire::record::Record;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use crate::main_job::rendered_alone;
use crate::stack::{PATIENCE, Stack, image_bytes, program, started};
use crate::support::eventually;
use crate::support::process::{Background, Finished, run};

async fn darkroom(stack: &Stack, arguments: &[&str]) -> Finished {
    let mut command = Command::new(program("darkroom"));
    command.args(["--nats", &stack.nats.url(), "--json"]).args(arguments);
    run(&mut command, PATIENCE).await
}

async fn cancel(stack: &Stack, job: &str, more: &[&str]) -> Finished {
    darkroom(stack, &[&["cancel", job, "--tenant", "t"], more].concat()).await
}

fn long(seed: u32) -> Value {
    json!({"prompt": "a yellow star on a blue background", "seed": seed, "num_inference_steps": 100,
        "width": 128, "height": 128, "guidance_scale": 5.0, "scheduler": "ddim", "previews": 1, "metadata": {"order": seed}})
}

/// Waits until `job` has made `steps` steps.
async fn has_stepped(stack: &Stack, job: &str, steps: u64) {
    eventually("progress", PATIENCE, async || (progress(stack, job).await? >= steps).then_some(())).await;
}

async fn progress(stack: &Stack, job: &str) -> Option<u64> {
    let stream = stack.bus.context.get_stream_no_info("DARKROOM_PROG").await.ok()?;
    let last = stream.direct_get_last_for_subject(format!("darkroom.prog.t.{job}")).await.ok()?;
    serde_json::from_slice::<Value>(&last.payload).ok()?["data"]["step"].as_u64()
}

fn kinds(events: &[(EventKind, Value)]) -> Vec<EventKind> {
    events.iter().map(|(kind, _)| *kind).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_waits_never_begins_and_leaves_the_queue() {
    let stack = Stack::start().await;
    // One by hand, of which nobody has a record; one by the command line, which makes one.
    stack.request("by-hand", &long(1)).await;
    let submit = ["submit", "a ring", "--tenant", "t", "--job", "by-command", "--model", "shapes"];
    darkroom(&stack, &submit).await.expect_success();
    for job in ["by-hand", "by-command"] {
        let cancelled = cancel(&stack, job, &[]).await.expect_success();
        let answer: Value = serde_json::from_str(&cancelled).unwrap();
        assert_eq!(answer, json!({"job": job, "outcome": "cancelled", "status": "cancelled"}));
        let events = stack.events_to_the_end("t", job).await;
        assert_eq!(kinds(&events), [EventKind::Cancelled]);
    }
    let events = stack.events_of("t", "by-hand").await;
    assert_eq!(events[0].1["data"], json!({"attempts": 0, "metadata": {"order": 1}}));
    // No worker is needed for that, and none is woken.
    stack.queue_is_empty().await;
    // Cancelling again is no error; it says that there was nothing left to do.
    let again = cancel(&stack, "by-hand", &[]).await.expect_success();
    assert!(again.contains(r#""outcome":"ended","status":"cancelled""#), "{again}");
    // The same request again is the same job: cancelled.
    stack.request("by-hand", &long(1)).await;
    let _worker = stack.worker().await;
    stack.queue_is_empty().await;
    assert_eq!(kinds(&stack.events_of("t", "by-hand").await), [EventKind::Cancelled]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_job_stops_within_a_step_and_its_batch_mates_do_not_notice() {
    let stack = Stack::start().await;
    let _worker = started(stack.worker_command().args(["--batch", "4"])).await;
    let jobs: Vec<(String, Value)> = (0..3).map(|seed| (format!("mate-{seed}"), long(seed))).collect();
    for (id, body) in &jobs {
        stack.request(id, body).await;
    }
    for (id, _) in &jobs {
        has_stepped(&stack, id, 10).await;
    }
    cancel(&stack, "mate-1", &[]).await.expect_success();
    let cancelled_at = progress(&stack, "mate-1").await.unwrap();
    let events = stack.events_to_the_end("t", "mate-1").await;
    assert_eq!(events.last().unwrap().0, EventKind::Cancelled);
    let rendered = rendered_alone(&[jobs[0].clone(), jobs[2].clone()]);
    for ((id, _), expected) in [&jobs[0], &jobs[2]].into_iter().zip(rendered) {
        let record = stack.end_of(id).await;
        assert_eq!(record.state.status, Status::Completed, "{id}");
        assert!(image_bytes(&record.terminal.unwrap()["images"][0]) == expected, "{id}");
    }
    stack.queue_is_empty().await;
    let steps = progress(&stack, "mate-1").await.unwrap();
    assert!(steps <= cancelled_at + 3, "{steps} steps were made, it was cancelled after {cancelled_at}");
    let stored = std::fs::read_dir(stack.objects.path().join("t/mate-1")).map(Iterator::count).unwrap_or(0);
    assert_eq!(stored, 0, "nothing of it is stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_not_told_finds_out() {
    let stack = Stack::start().await;
    stack.set_ack_wait(Duration::from_secs(3)).await;
    let worker = stack.worker().await;
    stack.request("silent", &long(1)).await;
    has_stepped(&stack, "silent", 2).await;
    let (tenant, job) = ("t".parse::<Tenant>().unwrap(), "silent".parse::<JobId>().unwrap());
    let records = Records::open(&stack.bus).await.unwrap();
    // Somebody who was killed right after he had written it down.
    eventually("the record", PATIENCE, async || {
        let owned = records.read(&tenant, &job).await.unwrap().unwrap();
        let data = json!({"attempts": 1});
        let changed = records.step(&tenant, &job, &owned, JobStep::Cancel, Some(data), 0).await.unwrap();
        matches!(changed, Changed::Won(_)).then_some(())
    })
    .await;
    worker.wait_for_log(|line| line.contains("job.record") && line.contains("Cancelled"), PATIENCE).await;
    let events = stack.events_to_the_end("t", "silent").await;
    assert_eq!(events.last().unwrap().0, EventKind::Cancelled);
    stack.queue_is_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_of_a_stopped_job_is_kept_if_that_is_wanted() {
    let stack = Stack::start().await;
    let _worker = stack.worker().await;
    let body = json!({"prompt": "a red circle on a blue background", "seed": 1, "num_inference_steps": 100,
        "width": 128, "height": 128, "num_images": 2, "previews": 1});
    stack.request("partial", &body).await;
    has_stepped(&stack, "partial", 60).await;
    let answer = cancel(&stack, "partial", &["--keep-partial"]).await.expect_success();
    assert!(answer.contains(r#""outcome":"stopping""#), "{answer}");
    let record = stack.end_of("partial").await;
    assert_eq!(record.state.status, Status::Cancelled);
    let terminal = record.terminal.unwrap();
    let images = terminal["images"].as_array().unwrap();
    assert!(!images.is_empty() && images.len() <= 2, "{terminal}");
    for image in images {
        let picture = image::load_from_memory(&image_bytes(image)).unwrap();
        assert_eq!((picture.width(), picture.height()), (128, 128));
    }
    let events = stack.events_to_the_end("t", "partial").await;
    assert_eq!(events.last().unwrap().1["data"], terminal);
    stack.queue_is_empty().await;
    let mut watch = Command::new(program("darkroom"));
    let out = stack.objects.path().join("out.png");
    watch.args(["--nats", &stack.nats.url(), "watch", "partial", "--tenant", "t", "--out"]).arg(&out);
    let watched = run(&mut watch, PATIENCE).await;
    assert_eq!(watched.status.code(), Some(8), "{watched}");
    assert!(watched.stdout.contains("out"), "{watched}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cancels_what_is_not_there_or_has_ended_is_told_so() {
    let stack = Stack::start().await;
    let _worker = stack.worker().await;
    stack.request("done", &json!({"prompt": "a ring", "num_inference_steps": 2})).await;
    assert_eq!(stack.end_of("done").await.state.status, Status::Completed);
    for (tenant, job, exit, words) in [
        ("t", "done", 7, r#""outcome":"ended","status":"completed""#),
        ("t", "never", 6, "there is no job never of tenant t"),
        ("another", "done", 6, "there is no job done of tenant another"),
    ] {
        let finished = darkroom(&stack, &["cancel", job, "--tenant", tenant]).await;
        assert_eq!(finished.status.code(), Some(exit), "{finished}");
        assert!(finished.stdout.contains(words) || finished.stderr.contains(words), "{finished}");
    }
    assert_eq!(stack.end_of("done").await.state.status, Status::Completed);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_cancels_for_whoever_asks_over_nats() {
    let stack = Stack::start().await;
    let mut gateway = Command::new(program("darkroom-gateway"));
    let gateway = Background::start(gateway.args(["--nats", &stack.nats.url()]));
    gateway.wait_for_log(|line| line.contains("gateway.ready"), PATIENCE).await;
    stack.request("asked", &long(1)).await;
    let ask = async |to: &str, body: &str| {
        let answer = stack.bus.client.request(to.to_owned(), body.to_owned().into()).await.unwrap();
        let refused = answer.headers.as_ref().and_then(|headers| headers.get("Nats-Service-Error"));
        let text = String::from_utf8(answer.payload.to_vec()).unwrap();
        refused.map_or(text, |refused| refused.as_str().to_owned())
    };
    let to = "darkroom.api.cancel.t";
    for (body, words) in [
        ("", "the request must be"),
        (r#"{"id": "asked"}"#, "unknown field `id`"),
        (r#"{"job": "a b"}"#, "job: "),
        (r#"{"job": "other"}"#, r#""outcome":"unknown""#),
        (r#"{"job": "asked"}"#, r#""outcome":"cancelled""#),
        (r#"{"job": "asked"}"#, r#""outcome":"ended","status":"cancelled""#),
    ] {
        let answer = ask(to, body).await;
        assert!(answer.contains(words), "{body}: {answer}");
    }
    stack.queue_is_empty().await;
    let found = ask("$SRV.PING.darkroom", "").await;
    assert!(found.contains("io.nats.micro.v1.ping_response"), "{found}");
}

/// Ten thousand jobs, each completed by its worker and cancelled by somebody at the same moment.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_cancellation_and_a_completion_exactly_one_wins() {
    const RACES: u32 = 10_000;
    let stack = Stack::start().await;
    let clock = Clock::start();
    let records = Records::open(&stack.bus).await.unwrap();
    let canceller = Canceller::open(stack.bus.clone(), clock, Retention::default()).await.unwrap();
    let events = Events::start(stack.bus.clone(), clock);
    let tenant: Tenant = "t".parse().unwrap();
    let race = async |index: u32| {
        let job: JobId = format!("race-{index}").parse().unwrap();
        let fresh = Record::accepted("digest".into(), "shapes", Some(1_000_000 + u64::from(index)), 0);
        let claimed = fresh.state.next(JobStep::Claim { worker: "w".parse().unwrap() }).unwrap();
        let created = records.create(&tenant, &job, Record { state: claimed, ..fresh }).await.unwrap();
        let Changed::Won(owned) = created else { panic!("{created:?}") };
        let complete = async {
            // Whoever cancels looks first: the other lets him, for as many round trips as he may need or not.
            for _ in 0..index % 4 {
                records.read(&tenant, &job).await.unwrap();
            }
            let data = Some(json!({"images": []}));
            let changed = records.step(&tenant, &job, &owned, JobStep::Complete, data.clone(), 0).await.unwrap();
            if let Changed::Won(_) = changed {
                events.publish(EventKind::Completed, tenant.as_str(), &job, 1, data).await.unwrap();
                return true;
            }
            false
        };
        let (completed, cancelled) = tokio::join!(complete, canceller.cancel(&tenant, &job, Keep::Nothing));
        let status = records.read(&tenant, &job).await.unwrap().unwrap().record.state.status;
        match (completed, cancelled.unwrap()) {
            (true, Outcome::Ended(Status::Completed)) => assert_eq!(status, Status::Completed),
            (false, Outcome::Cancelled) => assert_eq!(status, Status::Cancelled),
            both => panic!("race {index}: {both:?}, {status:?}"),
        }
        completed
    };
    let completed = stream::iter(0..RACES).map(race).buffer_unordered(64).filter(|won| std::future::ready(*won));
    let completed = completed.count().await;
    assert!(completed > 0 && completed < RACES as usize, "{completed} of {RACES} completed: that is no race");
    let mut stream = stack.bus.context.get_stream("DARKROOM_EV").await.unwrap();
    let stored = stream.info().await.unwrap().state.messages;
    assert_eq!(stored, u64::from(RACES), "one terminal event each");
}
