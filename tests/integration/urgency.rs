//! Urgent jobs among others: who is first, and that nobody's picture changes by it.

use darkroom::wire::event::EventKind;
use serde_json::json;

use crate::main_job::rendered_alone;
use crate::stack::{PATIENCE, Stack, image_bytes, started};
use crate::support::eventually;

#[tokio::test(flavor = "multi_thread")]
async fn an_urgent_job_overtakes_a_long_one_whose_picture_stays_the_same() {
    let stack = Stack::start().await;
    // With room for a single image the urgent job has to take the other's place.
    let _worker = started(stack.worker_command().args(["--batch", "1"])).await;
    let body = |steps: u32, seed: u32| {
        let prompt = "a red circle on a blue background";
        json!({"prompt": prompt, "num_inference_steps": steps, "seed": seed, "width": 128, "height": 128, "guidance_scale": 5.0, "scheduler": "ddim"})
    };
    let jobs = [("long".to_owned(), body(100, 1)), ("urgent".to_owned(), body(4, 2))];
    let publish = async |priority: &str, (id, body): &(String, serde_json::Value)| {
        let to = format!("darkroom.req.shapes.{priority}.any.t");
        stack.publish(&to, Some(id), serde_json::to_vec(body).unwrap()).await;
    };
    publish("low", &jobs[0]).await;
    eventually("the long job's start", PATIENCE, async || {
        let events = stack.events_of("t", "long").await;
        events.iter().any(|(kind, _)| *kind == EventKind::Started).then_some(())
    })
    .await;
    publish("high", &jobs[1]).await;
    let alone = {
        let jobs = jobs.clone();
        tokio::task::spawn_blocking(move || rendered_alone(&jobs)).await.unwrap()
    };
    let mut ended = Vec::new();
    for (id, _) in &jobs {
        let events = stack.events_to_the_end("t", id).await;
        let (kind, last) = events.last().unwrap();
        assert_eq!(*kind, EventKind::Completed, "{last}");
        ended.push((last["time"].as_str().unwrap().to_owned(), image_bytes(&last["data"]["images"][0])));
    }
    assert!(ended[1].0 < ended[0].0, "the urgent job ended at {}, the long one at {}", ended[1].0, ended[0].0);
    assert!(ended[0].1 == alone[0] && ended[1].1 == alone[1], "a picture has other bytes than alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_cannot_make_its_deadline_fails_at_once_unless_it_wants_to_go_on() {
    let stack = Stack::start().await;
    let over = "2020-01-31T12:00:00Z";
    let body = |on_late: &str| {
        let prompt = "a red circle on a blue background";
        json!({"prompt": prompt, "num_inference_steps": 4, "width": 128, "height": 128, "deadline": over, "on_late": on_late})
    };
    for on_late in ["fail", "continue"] {
        let body = serde_json::to_vec(&body(on_late)).unwrap();
        stack.publish("darkroom.req.shapes.normal.any.t", Some(on_late), body).await;
    }
    let _worker = stack.worker().await;
    let failed = stack.events_to_the_end("t", "fail").await;
    let (kind, last) = failed.last().unwrap();
    assert_eq!((*kind, &last["data"]["error"]["code"]), (EventKind::Failed, &json!("deadline_exceeded")), "{last}");
    assert!(failed.iter().all(|(kind, _)| *kind != EventKind::Started), "no step was made for it: {failed:?}");
    let went_on = stack.events_to_the_end("t", "continue").await;
    assert_eq!(went_on.last().unwrap().0, EventKind::Completed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_behind_another_tenants_flood_is_among_the_first() {
    const FLOOD: usize = 60;
    let stack = Stack::start().await;
    let body = |seed: usize| {
        let prompt = "a red circle on a blue background";
        let body = json!({"prompt": prompt, "num_inference_steps": 20, "seed": seed, "width": 128, "height": 128});
        serde_json::to_vec(&body).unwrap()
    };
    for job in 0..FLOOD {
        stack.publish("darkroom.req.shapes.normal.any.flood", Some(&format!("flood-{job}")), body(job)).await;
    }
    stack.publish("darkroom.req.shapes.normal.any.quiet", Some("quiet"), body(FLOOD)).await;
    let _worker = started(stack.worker_command().args(["--batch", "2"])).await;
    let quiet = stack.events_to_the_end("quiet", "quiet").await;
    assert_eq!(quiet.last().unwrap().0, EventKind::Completed);
    // The last that came went before nearly all of the flood.
    let mut before = 0;
    for job in 0..FLOOD {
        let events = stack.events_of("flood", &format!("flood-{job}")).await;
        before += usize::from(events.iter().any(|(kind, _)| *kind == EventKind::Completed));
    }
    assert!(before < FLOOD / 2, "{before} of {FLOOD} jobs of the flood went before");
}
