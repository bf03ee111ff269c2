//! The main job: a request becomes an image, events come in order, batches change no byte.

use std::process::Command;
use std::time::Duration;

use darkroom::engine::{self, LoadOptions, StartingPictures};
use darkroom::job::{Defaults, ImageSpec, OutputFormat, Status};
use darkroom::wire::event::EventKind;
use darkroom::wire::subject;
use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::stack::{PATIENCE, Stack, image_bytes, kinds_without_checkpoints, model_directory, started};
use crate::support::otlp::OtlpReceiver;
use crate::support::process::run;
use crate::support::python;

#[tokio::test(flavor = "multi_thread")]
async fn a_client_in_another_language_sees_the_whole_job() {
    let stack = Stack::start().await;
    for job in ["first", "second"] {
        let mut client: Command = python::client("main_job.py", python::NATS_PY);
        client.args(["--nats", &stack.nats.url(), "--model", "shapes", "--tenant", "t", "--job", job]);
        client.args(["--prompt", "a red circle on a blue background"]);
        // The worker comes when there is work, however long the client takes to publish it.
        let (report, mut worker) = tokio::join!(run(&mut client, PATIENCE), async {
            stack.queue_is_filled().await;
            started(stack.worker_command().args(["--exit-when-idle", "1s"])).await
        });
        let report = report.expect_success();
        let report: Value = serde_json::from_str(report.trim()).unwrap();
        assert_eq!(report["events"][0], "accepted");
        stack.queue_is_empty().await;
        assert!(worker.wait(PATIENCE).await.success(), "an idle worker ends with 0");
    }
}

/// Forty jobs of different lengths, samplers, guidance and seeds.
pub(crate) fn forty_requests() -> Vec<(String, Value)> {
    let samplers = ["ddim", "euler", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_karras", "unipc", "heun", "lcm"];
    let colours = ["red", "green", "blue", "yellow", "purple"];
    (0..40_usize)
        .map(|index| {
            let steps = [4, 8, 20, 50][index % 4];
            let guidance_scale = if index % 5 == 0 { 1.0 } else { 5.0 };
            let body = json!({
                "prompt": format!("a {} circle on a white background", colours[index % colours.len()]),
                "seed": index,
                "num_inference_steps": steps,
                "scheduler": samplers[index % samplers.len()],
                "guidance_scale": guidance_scale,
                // Small pictures: what is tested does not depend on the size, and forty large ones take long.
                "width": 128,
                "height": 128,
            });
            (format!("job-{index}"), body)
        })
        .collect()
}

/// What the engine makes of a request when it has nothing else to do.
pub(crate) fn rendered_alone(requests: &[(String, Value)]) -> Vec<Vec<u8>> {
    let mut model = engine::load(&model_directory(), &LoadOptions::default()).unwrap();
    requests
        .iter()
        .map(|(_, body)| {
            let defaults = Defaults {
                width: 128,
                height: 128,
                num_inference_steps: u32::try_from(body["num_inference_steps"].as_u64().unwrap()).unwrap(),
                guidance_scale: if body["guidance_scale"] == json!(1.0) { 1.0 } else { 5.0 },
                scheduler: body["scheduler"].as_str().unwrap().parse().unwrap(),
            };
            let spec = ImageSpec {
                seed: body["seed"].as_u64().unwrap(),
                ..ImageSpec::with_defaults(body["prompt"].as_str().unwrap(), &defaults)
            };
            let rendered = model.render(&spec, &StartingPictures::default(), None, &mut |_, _| ()).unwrap();
            engine::encode(&rendered.image, OutputFormat::Png).unwrap()
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_share_batches_get_the_bytes_they_get_alone() {
    let stack = Stack::start().await;
    let otlp = OtlpReceiver::start().await;
    let requests = forty_requests();
    let alone = tokio::task::spawn_blocking({
        let requests = requests.clone();
        move || rendered_alone(&requests)
    });
    // On a processor it depends on the minute whether batches pay, which the adaptive policy finds out; the other one makes
    // them anyway.
    let halves = requests.split_at(requests.len() / 2);
    for (policy, requests) in [("fixed", halves.0), ("adaptive", halves.1)] {
        for (id, body) in requests {
            stack.request(id, body).await;
        }
        let mut command = stack.worker_command();
        command.args(["--exit-when-idle", "1s", "--policy", policy]);
        if policy == "fixed" {
            command.env("OTEL_EXPORTER_OTLP_ENDPOINT", otlp.endpoint());
        }
        let mut worker = started(&mut command).await;
        for (id, _) in requests {
            assert_eq!(stack.end_of(id).await.state.status, Status::Completed, "{id}");
        }
        assert!(worker.wait(PATIENCE).await.success());
    }
    for ((id, _), expected) in requests.iter().zip(alone.await.unwrap()) {
        let events = stack.events_of("t", id).await;
        let kinds = kinds_without_checkpoints(&events);
        assert_eq!(kinds, [EventKind::Accepted, EventKind::Started, EventKind::Completed], "{id}");
        let data = &events.last().unwrap().1["data"];
        assert!(image_bytes(&data["images"][0]) == expected, "{id} is not what the engine makes alone");
        assert!(data["gpu_ms"].as_f64().unwrap() > 0.0);
    }
    let received = otlp
        .wait_for(|received| received.metric_named("diffusion_batch_size").is_some(), Duration::from_secs(30))
        .await;
    let steps = received.spans_named("batch.step").len();
    let all: usize = halves.0.iter().map(|(_, body)| body["num_inference_steps"].as_u64().unwrap() as usize).sum();
    // How many are there to share the first ones depends on how fast they were claimed.
    assert!(steps * 10 < all * 9, "{all} steps of images took {steps} steps of batches");
    stack.queue_is_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_may_have_several_images_formats_and_previews() {
    let stack = Stack::start().await;
    let _worker = stack.worker().await;
    let tenant = "t".parse().unwrap();
    let mut progress = stack.bus.client.subscribe(subject::progress(&tenant, &"many".parse().unwrap())).await.unwrap();
    let body = json!({"prompt": "a pink heart on a black background", "seed": 3, "num_images": 3, "previews": 2,
        "num_inference_steps": 4, "output_format": "jpeg", "metadata": {"order": 7}});
    stack.request("many", &body).await;
    let record = stack.end_of("many").await;
    let data = record.terminal.unwrap();
    let images = data["images"].as_array().unwrap();
    assert_eq!(images.len(), 3);
    for (index, image) in images.iter().enumerate() {
        assert_eq!(image["seed"], 3 + index as u64);
        assert_eq!(image["content_type"], "image/jpeg");
        assert_eq!(image["key"], format!("t/many/{index}.jpg"));
        let picture = image::load_from_memory(&image_bytes(image)).unwrap();
        assert_eq!((picture.width(), picture.height()), (256, 256));
    }
    assert_ne!(images[0]["sha256"], images[1]["sha256"]);
    assert_eq!(data["metadata"]["order"], 7);

    let mut previews = 0;
    loop {
        let message = tokio::time::timeout(PATIENCE, progress.next()).await.unwrap().unwrap();
        let event: Value = serde_json::from_slice(&message.payload).unwrap();
        if let Some(preview) = event["data"]["preview"].as_str() {
            use base64::Engine;
            let jpeg = base64::engine::general_purpose::STANDARD.decode(preview).unwrap();
            assert!(image::load_from_memory_with_format(&jpeg, image::ImageFormat::Jpeg).is_ok());
            previews += 1;
        }
        if event["data"]["step"] == event["data"]["steps"] {
            assert_eq!(event["data"]["steps"], 12);
            break;
        }
    }
    assert_eq!(previews, 2, "every second of four steps");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_different_sizes_and_priorities_are_all_done() {
    let stack = Stack::start().await;
    let requests = [
        ("darkroom.req.shapes.high.ondemand.t", "a", 128, 192),
        ("darkroom.req.shapes.low.any.t", "b", 192, 128),
        ("darkroom.req.shapes.normal.any.t", "c", 128, 128),
    ];
    for (to, id, width, height) in requests {
        let body = json!({"prompt": "a ring", "num_inference_steps": 3, "width": width, "height": height});
        stack.publish(to, Some(id), serde_json::to_vec(&body).unwrap()).await;
    }
    let _worker = stack.worker().await;
    for (_, id, width, height) in requests {
        let data = stack.end_of(id).await.terminal.unwrap();
        let picture = image::load_from_memory(&image_bytes(&data["images"][0])).unwrap();
        assert_eq!((picture.width(), picture.height()), (width, height), "{id}");
    }
    stack.queue_is_empty().await;
}
