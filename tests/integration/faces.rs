//! Interfaces of other servers at the gateway, by plain HTTP; those with a client package are tested with that as well, in
//! `clients.rs` and `http.rs`.

use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use darkroom::wire::request::hexadecimal;
use reqwest::{Method, Response, StatusCode, header};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::http::{Gateway, circle, read};
use crate::stack::{PATIENCE, Stack, program};
use crate::support::eventually;
use crate::support::process::{Background, run};
use crate::support::python;

const PROMPT: &str = "a red circle on a blue background";

async fn post(gateway: &Gateway, path: &str, body: impl ToString) -> Response {
    let request = gateway.request(Method::POST, path).header(header::CONTENT_TYPE, "application/json");
    request.body(body.to_string()).send().await.unwrap()
}

fn digest(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

fn digest_of_text(encoded: &Value) -> String {
    digest(&STANDARD.decode(encoded.as_str().unwrap()).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn kserves_clients_get_an_image_in_json_or_after_it() {
    let stack = Stack::start().await;
    let gateway = Gateway::open(&stack).await;
    let _worker = stack.worker().await;
    assert_eq!(gateway.get("/v2").await.1["extensions"], json!(["binary_tensor_data"]));
    for path in ["/v2/health/live", "/v2/health/ready", "/v2/models/shapes/ready", "/v2/models/shapes/versions/1/ready"]
    {
        assert_eq!(gateway.request(Method::GET, path).send().await.unwrap().status(), StatusCode::OK, "{path}");
    }
    let (_, metadata) = gateway.get("/v2/models/shapes").await;
    assert_eq!(metadata["inputs"][0], json!({"name": "PROMPT", "datatype": "BYTES", "shape": [1]}));

    let inputs = json!([
        {"name": "PROMPT", "datatype": "BYTES", "shape": [1], "data": [PROMPT]},
        {"name": "SEED", "datatype": "INT64", "shape": [1], "data": [7]},
        {"name": "STEPS", "datatype": "INT32", "shape": [1], "data": [8]},
        {"name": "WIDTH", "datatype": "INT32", "shape": [1], "data": [128]},
        {"name": "HEIGHT", "datatype": "UINT16", "shape": [1], "data": [128]},
        {"name": "GUIDANCE", "datatype": "FP32", "shape": [1, 1], "data": [[5.0]]},
    ]);
    let (status, answer) =
        read(post(&gateway, "/v2/models/shapes/infer", json!({"id": "42", "inputs": inputs})).await).await;
    assert_eq!((status, &answer["id"]), (StatusCode::OK, &json!("42")), "{answer}");
    assert_eq!(digest_of_text(&answer["outputs"][0]["data"][0]), circle(7));
    let url = answer["outputs"][1]["data"][0].as_str().unwrap();
    assert_eq!(digest(&reqwest::get(url).await.unwrap().bytes().await.unwrap()), circle(7));

    let outputs = json!([{"name": "IMAGE", "parameters": {"binary_data": true}}]);
    let answer = post(&gateway, "/v2/models/shapes/infer", json!({"inputs": inputs, "outputs": outputs})).await;
    assert_eq!(answer.headers()[header::CONTENT_TYPE], "application/octet-stream");
    let length: usize = answer.headers()["inference-header-content-length"].to_str().unwrap().parse().unwrap();
    let body = answer.bytes().await.unwrap();
    // Each element has its length before it.
    assert_eq!(digest(&body[length + 4..]), circle(7));

    for (path, body, status, words) in [
        ("/v2/models/sdxl/infer", json!({"inputs": inputs}), StatusCode::NOT_FOUND, "sdxl"),
        ("/v2/models/shapes/infer", json!({"inputs": []}), StatusCode::BAD_REQUEST, "prompt"),
        (
            "/v2/models/shapes/infer",
            json!({"inputs": [{"name": "SEED", "datatype": "BYTES", "shape": [1], "data": ["7"]}]}),
            StatusCode::BAD_REQUEST,
            "SEED.datatype",
        ),
        ("/v2/models/shapes/infer", json!("no object"), StatusCode::BAD_REQUEST, "body"),
    ] {
        let (found, answer) = read(post(&gateway, path, body).await).await;
        assert_eq!(found, status, "{answer}");
        assert!(answer["error"].as_str().unwrap().contains(words), "{answer}");
    }
    let too_long = gateway.request(Method::POST, "/v2/models/shapes/infer");
    let too_long = too_long.header("Inference-Header-Content-Length", "99").body("{}").send().await.unwrap();
    let (status, answer) = read(too_long).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
    stack.queue_is_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn torchserves_clients_send_a_prompt_and_get_a_picture() {
    let stack = Stack::start().await;
    let gateway = Gateway::open(&stack).await;
    let _worker = stack.worker().await;
    assert_eq!(gateway.get("/ping").await, (StatusCode::OK, json!({"status": "Healthy"})));
    let body = json!({"prompt": PROMPT, "seed": 7, "num_inference_steps": 8, "guidance_scale": 5.0, "width": 128,
        "height": 128});
    let answer = post(&gateway, "/predictions/shapes", &body).await;
    assert_eq!(
        (answer.status(), &answer.headers()[header::CONTENT_TYPE]),
        (StatusCode::OK, &"image/png".parse().unwrap())
    );
    assert_eq!(digest(&answer.bytes().await.unwrap()), circle(7));
    let form = |name: &str, data: &str| {
        format!("--x\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{data}\r\n--x--\r\n")
    };
    let send = async |form: String| {
        let request = gateway.request(Method::POST, "/predictions/shapes").body(form);
        request.header(header::CONTENT_TYPE, "multipart/form-data; boundary=x").send().await.unwrap()
    };
    let answer = send(form("data", &body.to_string())).await;
    assert_eq!(digest(&answer.bytes().await.unwrap()), circle(7));
    assert_eq!(send(form("data", "a ring")).await.headers()[header::CONTENT_TYPE], "image/png");
    let (status, answer) = read(send(form("file", "a ring")).await).await;
    assert!(status == StatusCode::BAD_REQUEST && answer["error"].as_str().unwrap().contains("data"), "{answer}");
    let text = gateway.request(Method::POST, "/predictions/shapes").body("a ring").send().await.unwrap();
    assert_eq!(text.headers()[header::CONTENT_TYPE], "image/png");
    let (status, answer) = read(post(&gateway, "/predictions/sdxl", json!({"prompt": "a ring"})).await).await;
    assert!(status == StatusCode::NOT_FOUND && answer["error"].is_string(), "{status} {answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_the_web_ui_draw_look_on_and_interrupt_one_task() {
    let stack = Stack::start().await;
    let gateway = Gateway::open(&stack).await;
    let _worker = stack.worker().await;
    let wanted = json!({"prompt": PROMPT, "seed": 7, "steps": 8, "cfg_scale": 5.0, "width": 128, "height": 128, "n_iter": 1,
        "enable_hr": false, "override_settings": {"sd_model_checkpoint": "shapes"}});
    let (status, answer) = read(post(&gateway, "/sdapi/v1/txt2img", &wanted).await).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!(digest_of_text(&answer["images"][0]), circle(7));
    assert_eq!(answer["parameters"], wanted);
    let info: Value = serde_json::from_str(answer["info"].as_str().unwrap()).unwrap();
    assert_eq!((&info["all_seeds"], &info["sd_model_name"]), (&json!([7]), &json!("shapes")));

    let begun = json!({"prompt": PROMPT, "seed": 7, "steps": 8, "width": 128, "height": 128, "init_images": [answer["images"][0]], "denoising_strength": 0.5});
    let (status, begun) = read(post(&gateway, "/sdapi/v1/img2img", begun).await).await;
    assert_eq!((status, begun["images"].as_array().map(Vec::len)), (StatusCode::OK, Some(1)), "{begun}");
    assert_eq!(begun["parameters"]["init_images"], Value::Null);

    // Two at once: each task has its own progress, and one is interrupted.
    let long = |task: &str| json!({"prompt": PROMPT, "steps": 100, "force_task_id": task});
    let interrupted = async {
        let progress = async |task: &str| gateway.get(&format!("/sdapi/v1/progress?id_task={task}")).await.1;
        eventually("a picture of task one", PATIENCE, async || {
            let seen = progress("one").await;
            (seen["progress"].as_f64().unwrap() > 0.0 && seen["current_image"].is_string()).then_some(())
        })
        .await;
        assert_eq!(progress("none").await["progress"], 0.0);
        let answer = post(&gateway, "/sdapi/v1/interrupt?id_task=one", "{}").await;
        assert_eq!(answer.status(), StatusCode::OK);
    };
    let (one, other, ()) = tokio::join!(
        post(&gateway, "/sdapi/v1/txt2img", long("one")),
        post(&gateway, "/sdapi/v1/txt2img", long("task(other)")),
        interrupted
    );
    let ((_, one), (_, other)) = (read(one).await, read(other).await);
    let pictures = |answer: &Value| answer["images"].as_array().unwrap().iter().map(digest_of_text).collect::<Vec<_>>();
    assert_eq!((pictures(&one).len(), pictures(&other).len()), (1, 1), "{one} {other}");
    assert_ne!(pictures(&one), pictures(&other), "one is as far as it had come");
    assert_eq!(gateway.get("/sdapi/v1/progress?id_task=one").await.1["state"]["interrupted"], true);
    // Nothing runs any more.
    assert_eq!(gateway.get("/sdapi/v1/progress").await.1["state"]["job_count"], 0);

    assert_eq!(gateway.get("/sdapi/v1/sd-models").await.1[0]["title"], "shapes");
    let (_, samplers) = gateway.get("/sdapi/v1/samplers").await;
    assert!(samplers.as_array().unwrap().iter().any(|sampler| sampler["name"] == "DPM++ 2M"), "{samplers}");
    assert_eq!(gateway.get("/sdapi/v1/schedulers").await.1[0]["name"], "automatic");
    let (_, options) = gateway.get("/sdapi/v1/options").await;
    assert_eq!(post(&gateway, "/sdapi/v1/options", &options).await.status(), StatusCode::OK);
    for (path, body, field) in [
        ("/sdapi/v1/txt2img", json!({"prompt": "a ring", "tiling": true}), "tiling"),
        ("/sdapi/v1/txt2img", json!({"prompt": "a ring", "sampler_name": "Restart"}), "sampler_name"),
        ("/sdapi/v1/txt2img", json!({"prompt": "a ring", "width": 129}), "width"),
        ("/sdapi/v1/img2img", json!({"prompt": "a ring", "init_images": ["no picture"]}), "init_images"),
        ("/sdapi/v1/options", json!({"sd_model_checkpoint": "sdxl"}), "sd_model_checkpoint"),
    ] {
        let (status, answer) = read(post(&gateway, path, body).await).await;
        assert_eq!(
            (status, &answer["detail"][0]["loc"]),
            (StatusCode::UNPROCESSABLE_ENTITY, &json!(["body", field])),
            "{answer}"
        );
    }
    stack.queue_is_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_one_interface_is_watched_by_another_and_cancelled_by_a_third() {
    let stack = Stack::start().await;
    let gateway = Gateway::open(&stack).await;
    let mut watch = python::client("watch_job.py", python::NATS_PY);
    let mut watch = Background::start(watch.args(["--nats", &stack.nats.url(), "--tenant", "t", "--job", "shared"]));
    watch.wait_for_line(|line| line == "watching", PATIENCE).await;
    let _worker = stack.worker().await;
    let submitted = async {
        let body = json!({"prompt": PROMPT, "n": 8, "num_inference_steps": 100}).to_string();
        let request =
            gateway.request(Method::POST, "/openai/v1/images/generations").header("Idempotency-Key", "shared");
        read(request.header(header::CONTENT_TYPE, "application/json").body(body).send().await.unwrap()).await
    };
    let cancelled = async {
        watch.wait_for_line(|line| line == "started", PATIENCE).await;
        read(post(&gateway, "/replicate/v1/predictions/shared/cancel", "").await).await
    };
    let ((status, answer), (_, prediction)) = tokio::join!(submitted, cancelled);
    assert_eq!((status, &answer["error"]["code"]), (StatusCode::CONFLICT, &json!("cancelled")), "{answer}");
    assert_eq!(prediction["status"], "canceled");
    assert!(watch.wait(PATIENCE).await.success(), "{watch:?}");
    assert_eq!(watch.stdout().lines().last(), Some("cancelled"));
    assert_eq!(gateway.get("/v1/jobs/shared").await.1["status"], "cancelled");
}

/// Where each interface takes what is to be drawn, and where its errors have their words.
const FACES: [(&str, &str); 7] = [
    ("/v1/jobs", "/detail"),
    ("/openai/v1/images/generations", "/error/message"),
    ("/replicate/v1/predictions", "/detail"),
    ("/v2/models/shapes/infer", "/error"),
    ("/predictions/shapes", "/error"),
    ("/sdapi/v1/txt2img", "/detail"),
    ("/generate", "/detail"),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_interface_says_in_its_own_form_what_is_wrong_with_a_body() {
    let stack = Stack::start().await;
    let (guarded, open) = (Gateway::start(&stack, &[]).await, Gateway::open(&stack).await);
    for (path, words) in FACES {
        let ask = async |gateway: &Gateway, media_type: &str, body: &str| {
            let request = gateway.request(Method::POST, path).header(header::CONTENT_TYPE, media_type);
            let (status, answer) = read(request.body(body.to_owned()).send().await.unwrap()).await;
            assert!(answer.pointer(words).is_some_and(Value::is_string), "{path}: {answer}");
            status
        };
        assert_eq!(ask(&guarded, "application/json", "{}").await, StatusCode::UNAUTHORIZED, "{path}");
        assert_eq!(ask(&open, "application/json", r#"{"prompt""#).await, StatusCode::BAD_REQUEST, "{path}");
        assert_eq!(ask(&open, "application/json", "[]").await, StatusCode::BAD_REQUEST, "{path}");
        // Tensors have no type of their own, and TorchServe's bodies may be anything.
        if !["/v2/models/shapes/infer", "/predictions/shapes"].contains(&path) {
            assert_eq!(ask(&open, "text/xml", "{}").await, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{path}");
        }
    }
    for (media_type, body) in [("multipart/form-data", ""), ("multipart/form-data; boundary=x", "--x\r\nno header")] {
        let request = open.request(Method::POST, "/openai/v1/images/edits").header(header::CONTENT_TYPE, media_type);
        let (status, answer) = read(request.body(body).send().await.unwrap()).await;
        assert!(status == StatusCode::BAD_REQUEST && answer["error"]["message"].is_string(), "{status} {answer}");
    }
    for path in ["/v1/jobs/none", "/replicate/v1/predictions/none", "/jobs/none"] {
        let (status, answer) = open.get(path).await;
        assert!(status == StatusCode::NOT_FOUND && answer["detail"].is_string(), "{path}: {status} {answer}");
    }
    stack.queue_is_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_may_be_the_password_of_clients_that_have_no_other_place_for_it() {
    let stack = Stack::start().await;
    let gateway = Gateway::start(&stack, &[]).await;
    let mut command = Command::new(program("darkroom"));
    command.args(["--nats", &stack.nats.url(), "--json", "keys", "add", "t"]);
    let made: Value = serde_json::from_str(&run(&mut command, PATIENCE).await.expect_success()).unwrap();
    let key = made["key"].as_str().unwrap();
    let ask = async |authorization: String| {
        let request = gateway.request(Method::GET, "/sdapi/v1/sd-models").header(header::AUTHORIZATION, authorization);
        request.send().await.unwrap().status()
    };
    assert_eq!(ask(format!("Basic {}", STANDARD.encode(format!("anybody:{key}")))).await, StatusCode::OK);
    for wrong in [STANDARD.encode(key), STANDARD.encode("anybody:dk_wrong"), "no base64".to_owned()] {
        assert_eq!(ask(format!("Basic {wrong}")).await, StatusCode::UNAUTHORIZED, "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fleet_is_seen_over_http() {
    let stack = Stack::start().await;
    let gateway = Gateway::open(&stack).await;
    let (_, fleet) = gateway.get("/v1/fleet").await;
    assert_eq!(fleet, json!({"models": [{"name": "shapes", "pending": 0, "workers": []}]}));
    let _worker = stack.worker().await;
    let workers = eventually("a worker", PATIENCE, async || {
        let (_, fleet) = gateway.get("/v1/fleet").await;
        fleet["models"][0]["workers"].as_array().filter(|workers| !workers.is_empty()).cloned()
    })
    .await;
    assert_eq!((&workers[0]["state"], &workers[0]["jobs_held"]), (&json!("ready"), &json!(0)));
}
