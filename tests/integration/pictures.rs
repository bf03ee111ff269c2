//! Jobs that start from pictures: where they come from, and what is refused.

use bytes::Bytes;
use darkroom::engine::{self, LoadOptions, PictureFiles, RgbImage, StartingPictures};
use darkroom::job::{Defaults, ImageSpec, OutputFormat, SamplerKind, Start, Status};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::stack::{Stack, image_bytes, model_directory, started};
use crate::support::http::{AsyncHandler, HttpServer};

/// A PNG file with a diagonal.
fn picture(width: u32, height: u32) -> Vec<u8> {
    let pixel = |index: u32| if index % width * height > index / width * width { [230, 40, 40] } else { [30, 60, 220] };
    let pixels = (0..width * height).flat_map(pixel).collect();
    engine::encode(&RgbImage { width, height, pixels }, OutputFormat::Png).unwrap()
}

fn body(change: &Value) -> Value {
    let mut body = json!({ "prompt": "a red circle on a blue background", "seed": 3, "num_inference_steps": 4,
        "guidance_scale": 2.0, "scheduler": "ddim", "width": 128, "height": 128 });
    body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_of_the_store_becomes_the_image_that_the_engine_makes_of_it() {
    let stack = Stack::start().await;
    let _worker = stack.worker().await;
    let file = picture(128, 128);
    let path = stack.objects.path().join("t/inputs/diagonal.png");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, &file).unwrap();
    stack.request("job", &body(&json!({ "init_image": "t/inputs/diagonal.png", "strength": 0.5 }))).await;

    let events = stack.events_to_the_end("t", "job").await;
    let (_, last) = events.last().unwrap();
    assert_eq!(last["type"], "darkroom.job.completed", "{last}");
    let defaults =
        Defaults { width: 128, height: 128, num_inference_steps: 4, guidance_scale: 2.0, scheduler: SamplerKind::Ddim };
    let spec = ImageSpec {
        seed: 3,
        start: Start::Picture { strength: 0.5 },
        ..ImageSpec::with_defaults("a red circle on a blue background", &defaults)
    };
    let files = PictureFiles { init_image: Some(file.into()), mask_image: None };
    let pictures = StartingPictures::prepare(&files, &spec).unwrap();
    let alone = tokio::task::spawn_blocking(move || {
        let mut model = engine::load(&model_directory(), &LoadOptions::default()).unwrap();
        engine::encode(&model.render(&spec, &pictures, None, &mut |_, _| ()).unwrap().image, OutputFormat::Png).unwrap()
    });
    assert!(image_bytes(&last["data"]["images"][0]) == alone.await.unwrap());
}

/// Redirects `/away` to the address of this machine, and has a picture anywhere else.
#[derive(Clone)]
struct Redirecting;

impl AsyncHandler<Full<Bytes>> for Redirecting {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() != "/away" {
            return Response::new(Full::new(Bytes::from(picture(128, 128))));
        }
        let port = request.headers()[header::HOST].to_str().unwrap().rsplit(':').next().unwrap().to_owned();
        let away = Response::builder().status(StatusCode::FOUND);
        away.header(header::LOCATION, format!("http://127.0.0.1:{port}/secret")).body(Full::default()).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_job_must_not_start_from_fails_it_with_the_reason() {
    let stack = Stack::start().await;
    let server = HttpServer::start(Redirecting).await;
    // As a name the server may be spoken to; as an address it is this machine.
    let named = server.url().replace("127.0.0.1", "localhost");
    let mut command = stack.worker_command();
    let _worker = started(command.env("DARKROOM_FETCH_ALLOW", "localhost")).await;
    let fine = stack.objects.path().join("t/inputs");
    std::fs::create_dir_all(&fine).unwrap();
    std::fs::write(fine.join("fine.png"), picture(128, 128)).unwrap();
    std::fs::write(fine.join("small.png"), picture(64, 128)).unwrap();
    std::fs::write(fine.join("cut.png"), &picture(128, 128)[..200]).unwrap();

    stack.request("allowed", &body(&json!({ "init_image": format!("{named}/picture.png") }))).await;
    assert_eq!(stack.end_of("allowed").await.state.status, Status::Completed);
    let cases = [
        ("redirected", json!({ "init_image": format!("{named}/away") }), "init_image: "),
        ("loopback", json!({ "init_image": format!("{}/picture.png", server.url()) }), "init_image: "),
        ("metadata", json!({ "init_image": "http://169.254.169.254/latest/meta-data" }), "init_image: "),
        ("foreign", json!({ "init_image": "other/inputs/fine.png" }), "init_image: "),
        ("missing", json!({ "init_image": "t/inputs/none.png" }), "init_image: "),
        ("cut", json!({ "init_image": "t/inputs/cut.png" }), "init_image: "),
        ("mask", json!({ "init_image": "t/inputs/fine.png", "mask_image": "t/inputs/small.png" }), "mask_image: "),
        ("lora", json!({ "loras": [{ "name": "nobody" }] }), "loras: "),
    ];
    for (id, change, _) in &cases {
        stack.request(id, &body(change)).await;
    }
    for (id, _, words) in &cases {
        let events = stack.events_to_the_end("t", id).await;
        let (_, last) = events.last().unwrap();
        assert_eq!(last["type"], "darkroom.job.failed", "{last}");
        let message = last["data"]["error"]["message"].as_str().unwrap();
        assert!(message.contains(words), "{id}: {message}");
    }
    stack.queue_is_empty().await;
}
