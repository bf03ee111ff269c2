//! Checkpoints: a job that loses its worker goes on elsewhere, from the step that was saved, to the same bytes.

use std::time::Duration;

use darkroom::job::{JobId, Status, Tenant};
use darkroom::shell::client;
use darkroom::shell::records::{Changed, Records};
use darkroom::wire::event::EventKind;
use darkroom::wire::record::{Checkpoint, Record, SavedImage};
use darkroom::wire::subject;
use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::main_job::rendered_alone;
use crate::stack::{PATIENCE, Stack, image_bytes, started};
use crate::support::eventually;

fn request(seed: u32, steps: u32) -> Value {
    json!({"prompt": "a yellow star on a blue background", "seed": seed, "num_inference_steps": steps,
        "width": 128, "height": 128, "guidance_scale": 5.0, "scheduler": "euler_ancestral", "previews": 1})
}

fn names(job: &str) -> (Tenant, JobId) {
    ("t".parse().unwrap(), job.parse().unwrap())
}

async fn record_of(stack: &Stack, job: &str) -> Record {
    let (tenant, job) = names(job);
    client::status(&stack.bus, &tenant, &job).await.unwrap().unwrap()
}

/// Resolves when the job has made `step` steps.
async fn stepped(stack: &Stack, job: &str, step: u64) {
    let (tenant, job) = names(job);
    let mut progress = stack.bus.client.subscribe(subject::progress(&tenant, &job)).await.unwrap();
    loop {
        let message = tokio::time::timeout(PATIENCE, progress.next()).await.unwrap().unwrap();
        let event: Value = serde_json::from_slice(&message.payload).unwrap();
        if event["data"]["step"].as_u64().unwrap() >= step {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_told_to_end_hands_four_running_jobs_over_at_their_step() {
    let grace = Duration::from_secs(6);
    let stack = Stack::start().await;
    let jobs: Vec<(String, Value)> = (0..4).map(|seed| (format!("job-{seed}"), request(seed, 100))).collect();
    let mut worker =
        started(stack.worker_command().args(["--batch", "4", "--grace", "6s", "--checkpoint-every", "1h"])).await;
    let running: Vec<_> = jobs.iter().map(|(id, _)| stepped(&stack, id, 5)).collect();
    let running = async { futures_util::future::join_all(running).await };
    let publish = async {
        // After the subscriptions.
        stack.bus.client.flush().await.unwrap();
        for (id, body) in &jobs {
            stack.request(id, body).await;
        }
    };
    tokio::join!(running, publish);
    let told = tokio::time::Instant::now();
    worker.terminate();
    assert!(worker.wait(grace).await.success(), "{}", worker.stderr());
    assert!(told.elapsed() <= grace, "it took {:?}", told.elapsed());

    let mut saved = Vec::new();
    for (id, _) in &jobs {
        let record = record_of(&stack, id).await;
        assert_eq!((record.state.status, record.state.attempts), (Status::Pending, 0), "{id}: no attempt was used up");
        let checkpoint = record.checkpoint.unwrap_or_else(|| panic!("{id} was not saved"));
        assert_eq!(checkpoint.images.len(), 1);
        assert!((5..100).contains(&checkpoint.images[0].step), "{checkpoint:?}");
        saved.push(checkpoint.images[0].step);
    }
    let _next = stack.worker().await;
    let rendered = rendered_alone(&jobs);
    for (((id, _), expected), step) in jobs.iter().zip(rendered).zip(saved) {
        let record = stack.end_of(id).await;
        assert_eq!(record.state.status, Status::Completed, "{id}");
        let terminal = record.terminal.unwrap();
        assert_eq!(terminal["resumed_from_step"], step, "{id}");
        assert!(image_bytes(&terminal["images"][0]) == expected, "{id} has other bytes than uninterrupted");
        assert_eq!(record.checkpoint, None);
    }
    stack.queue_is_empty().await;
    for (id, _) in &jobs {
        let left = stack.objects.path().join(format!("t/{id}/checkpoints"));
        let files = async || (std::fs::read_dir(&left).map(Iterator::count).unwrap_or(0) == 0).then_some(());
        eventually("the checkpoints' removal", PATIENCE, files).await;
    }
}

/// One run for every step at which the worker is killed.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_at_any_step_costs_no_more_than_the_steps_between_two_checkpoints() {
    const STEPS: u32 = 20;
    const INTERVAL: u32 = 3;
    let stack = Stack::start().await;
    stack.set_ack_wait(Duration::from_secs(2)).await;
    let interval = INTERVAL.to_string();
    let next = async || {
        started(stack.worker_command().args(["--checkpoint-every", "1h", "--checkpoint-steps", &interval])).await
    };
    let expected = rendered_alone(&[("alone".to_owned(), request(7, STEPS))]).remove(0);
    let mut worker = next().await;
    let mut interrupted = 0;
    let saved_in = |record: &Record| record.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.images[0].step);
    for step in 1..STEPS {
        let job = format!("killed-at-{step}");
        let at_step = stepped(&stack, &job, step.into());
        let publish = async {
            stack.bus.client.flush().await.unwrap();
            stack.request(&job, &request(7, STEPS)).await;
        };
        tokio::join!(at_step, publish);
        // The last checkpoint may still be on its way.
        let is_recorded = async || {
            let record = record_of(&stack, &job).await;
            (saved_in(&record) + INTERVAL >= step || record.state.status.is_terminal()).then_some(())
        };
        eventually("a checkpoint of one of the last steps", PATIENCE, is_recorded).await;
        worker.kill();
        let left = record_of(&stack, &job).await;
        let was_interrupted = !left.state.status.is_terminal();
        interrupted += u32::from(was_interrupted);
        worker = next().await;
        let record = stack.end_of(&job).await;
        assert_eq!(record.state.status, Status::Completed, "{job}");
        let terminal = record.terminal.unwrap();
        assert!(image_bytes(&terminal["images"][0]) == expected, "{job} has other bytes than uninterrupted");
        let resumed = u32::try_from(terminal["resumed_from_step"].as_u64().unwrap()).unwrap();
        let at_least = if was_interrupted { saved_in(&left).max(step.saturating_sub(INTERVAL)) } else { 0 };
        assert!(resumed >= at_least, "{job} went on from step {resumed}, not from {at_least} at least");
    }
    assert!(interrupted > STEPS / 2, "all but {interrupted} had ended before a checkpoint was recorded");
    stack.queue_is_empty().await;
}

/// What a checkpoint was exchanged for.
enum Exchange {
    Damaged,
    Gone,
    OfAnotherJob,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_is_damaged_gone_or_of_another_job_is_not_gone_on_from() {
    let stack = Stack::start().await;
    let jobs: Vec<(String, Value)> = (0..4).map(|seed| (format!("job-{seed}"), request(seed, 60))).collect();
    let mut worker = started(stack.worker_command().args(["--batch", "4", "--grace", "5s"])).await;
    let running = futures_util::future::join_all(jobs.iter().map(|(id, _)| stepped(&stack, id, 5)));
    let publish = async {
        stack.bus.client.flush().await.unwrap();
        for (id, body) in &jobs {
            stack.request(id, body).await;
        }
    };
    tokio::join!(running, publish);
    worker.terminate();
    assert!(worker.wait(PATIENCE).await.success(), "{}", worker.stderr());
    let records = Records::open(&stack.bus).await.unwrap();
    let saved_of = async |job: &str| record_of(&stack, job).await.checkpoint.unwrap().images[0].clone();
    let other = saved_of("job-3").await;
    for ((job, _), exchange) in jobs.iter().zip([Exchange::Damaged, Exchange::Gone, Exchange::OfAnotherJob]) {
        let saved = saved_of(job).await;
        let path = stack.objects.path().join(&saved.key);
        match exchange {
            Exchange::Damaged => {
                let mut bytes = std::fs::read(&path).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                std::fs::write(&path, bytes).unwrap();
            }
            Exchange::Gone => std::fs::remove_file(&path).unwrap(),
            Exchange::OfAnotherJob => {
                // The digest is right; what it is of is not.
                let (tenant, id) = names(job);
                let owned = records.read(&tenant, &id).await.unwrap().unwrap();
                let images = vec![SavedImage { index: 0, ..other.clone() }];
                let record = Record { checkpoint: Some(Checkpoint { images }), ..owned.record.clone() };
                let changed = records.replace(&tenant, &id, &owned, record).await.unwrap();
                assert!(matches!(changed, Changed::Won(_)), "{changed:?}");
            }
        }
    }
    let next = stack.worker().await;
    let rendered = rendered_alone(&jobs);
    for (index, ((id, _), expected)) in jobs.iter().zip(rendered).enumerate() {
        let record = stack.end_of(id).await;
        assert_eq!(record.state.status, Status::Completed, "{id}");
        let terminal = record.terminal.unwrap();
        assert_eq!(terminal["resumed_from_step"] == 0, index < 3, "{id}: {terminal}");
        assert!(image_bytes(&terminal["images"][0]) == expected, "{id} has other bytes than uninterrupted");
    }
    let said = next.stderr();
    assert_eq!(said.matches("checkpoint.unusable").count(), 2, "{said}");
    assert_eq!(said.matches("checkpoint.unfit").count(), 1, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_several_images_keeps_those_that_are_done() {
    let stack = Stack::start().await;
    // One after the other: some are done, one is under way, some are not begun.
    let body = json!({"prompt": "a red circle on a blue background", "seed": 3, "num_inference_steps": 30,
        "width": 128, "height": 128, "guidance_scale": 5.0, "scheduler": "ddim", "num_images": 4, "previews": 1});
    let arguments = ["--batch", "1", "--grace", "5s", "--checkpoint-every", "1h"];
    let mut worker = started(stack.worker_command().args(arguments)).await;
    let publish = async {
        stack.bus.client.flush().await.unwrap();
        stack.request("several", &body).await;
    };
    tokio::join!(stepped(&stack, "several", 3), publish);
    worker.terminate();
    assert!(worker.wait(PATIENCE).await.success(), "{}", worker.stderr());
    let saved: u32 = record_of(&stack, "several").await.checkpoint.unwrap().images.iter().map(|image| image.step).sum();
    let _next = stack.worker().await;
    let terminal = stack.end_of("several").await.terminal.unwrap();
    assert_eq!(terminal["resumed_from_step"], saved);
    let events = stack.events_of("t", "several").await;
    assert!(events.iter().any(|(kind, event)| *kind == EventKind::Checkpoint && event["data"]["step"] == saved));
    let images = terminal["images"].as_array().unwrap();
    assert_eq!(images.len(), 4);
    for (index, image) in images.iter().enumerate() {
        let mut alone = body.clone();
        alone["num_images"] = json!(1);
        alone["seed"] = image["seed"].clone();
        let expected = rendered_alone(&[(format!("alone-{index}"), alone)]).remove(0);
        assert!(image_bytes(image) == expected, "image {index} has other bytes than uninterrupted");
    }
}
