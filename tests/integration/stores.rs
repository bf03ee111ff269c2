//! Object stores: files, S3 over HTTP, and stores that fail.

use std::os::unix::fs::PermissionsExt;

use darkroom::job::Status;
use darkroom::shell::client;
use serde_json::json;

use crate::stack::{PATIENCE, Stack, started};
use crate::support::s3::S3Server;
use crate::support::{eventually, http};

fn small() -> serde_json::Value {
    json!({"prompt": "a heart", "num_inference_steps": 2, "width": 64, "height": 64, "seed": 1})
}

#[tokio::test(flavor = "multi_thread")]
async fn images_in_s3_have_their_media_type_and_a_url_that_anyone_can_read() {
    let stack = Stack::start().await;
    let s3 = S3Server::start().await;
    let mut command = stack.worker_command_for(&s3.store_url());
    command.envs(s3.environment());
    let _worker = started(&mut command).await;
    stack.request("one", &small()).await;
    let data = stack.end_of("one").await.terminal.unwrap();
    let image = &data["images"][0];
    assert_eq!(image["key"], "t/one/0.png");
    let url = image["url"].as_str().unwrap();
    assert!(url.contains("X-Amz-Signature"), "{url}");
    let answer = http::get(url).await;
    assert_eq!(answer.status.as_u16(), 200);
    assert_eq!(answer.headers["content-type"], "image/png");
    assert_eq!(image["size_bytes"], answer.body.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_an_earlier_attempt_left_is_no_obstacle() {
    let stack = Stack::start().await;
    let s3 = S3Server::start().await;
    let mut command = stack.worker_command_for(&s3.store_url());
    command.envs(s3.environment());
    let torn = s3.file("t/one/0.png");
    std::fs::create_dir_all(torn.parent().unwrap()).unwrap();
    std::fs::write(&torn, b"half an imag").unwrap();
    let _worker = started(&mut command).await;
    stack.request("one", &small()).await;
    let data = stack.end_of("one").await.terminal.unwrap();
    let stored = std::fs::read(&torn).unwrap();
    assert_eq!(data["images"][0]["size_bytes"], stored.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_down_costs_no_attempt_and_nothing_more_is_begun() {
    const JOBS: usize = 12;
    let stack = Stack::start().await;
    let s3 = S3Server::start().await;
    let mut command = stack.worker_command_for(&s3.store_url());
    command.envs(s3.environment()).args(["--batch", "1"]);
    s3.set_failing(Some(hyper::StatusCode::FORBIDDEN));
    let _worker = started(&mut command).await;
    for index in 0..JOBS {
        stack.request(&format!("later-{index}"), &small()).await;
    }
    let refused = async || s3.requests().iter().filter(|request| request.status == 403).count();
    eventually("tries to store", PATIENCE, async || (refused().await >= 8).then_some(())).await;
    let begun = stack.stored("DARKROOM_EV", "darkroom.ev.t.").await;
    let begun = begun.iter().filter(|message| message.subject.ends_with(".started")).count();
    assert!(begun < JOBS, "{begun} jobs were begun that could not be stored");
    s3.set_failing(None);
    for index in 0..JOBS {
        let record = stack.end_of(&format!("later-{index}")).await;
        let state = (record.state.status, record.state.attempts, record.state.failures);
        assert_eq!(state, (Status::Completed, 1, 0), "later-{index}");
    }
    stack.queue_is_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_stored_while_others_are_fails_after_three_attempts() {
    let stack = Stack::start().await;
    // A file where the tenant's directory should be stops even root.
    std::fs::write(stack.objects.path().join("t"), b"in the way").unwrap();
    std::fs::set_permissions(stack.objects.path().join("t"), std::fs::Permissions::from_mode(0o444)).unwrap();
    let _worker = stack.worker().await;
    stack.request("never", &small()).await;
    // Another tenant's jobs can be stored, one after the other.
    let ended = async |tenant: &str, job: &str| {
        let record = client::status(&stack.bus, &tenant.parse().unwrap(), &job.parse().unwrap()).await.ok()??;
        record.state.status.is_terminal().then_some(record)
    };
    let body = serde_json::to_vec(&small()).unwrap();
    let mut others = 0;
    let record = eventually("the end of never", PATIENCE, async || {
        if others == 0 || ended("u", &format!("u-{others}")).await.is_some() {
            others += 1;
            let to = "darkroom.req.shapes.normal.any.u";
            stack.publish(to, Some(&format!("u-{others}")), body.clone()).await;
        }
        ended("t", "never").await
    })
    .await;
    assert_eq!(record.state.status, Status::Failed);
    assert_eq!(record.state.attempts, 3);
    let events = stack.events_to_the_end("t", "never").await;
    assert_eq!(events.last().unwrap().1["data"]["error"]["code"], "store_failed");
    stack.queue_is_empty().await;
    assert_eq!(stack.stored("DARKROOM_DLQ", "darkroom.dlq.shapes.t").await.len(), 1);
}
