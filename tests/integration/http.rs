//! The gateway's own HTTP interface, by a client as anybody has one.

use std::process::Command;
use std::time::Duration;

use darkroom::engine::read_manifest;
use darkroom::wire::request::hexadecimal;
use futures_util::{SinkExt, StreamExt};
use reqwest::{Client, Method, Response, StatusCode, header};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio_websockets::{ClientBuilder, Message};

use crate::main_job::rendered_alone;
use crate::stack::{PATIENCE, Stack, model_directory, program};
use crate::support::process::{Background, run};
use crate::support::{eventually, python};
use crate::webhooks::function;

/// A gateway and who asks it.
pub(crate) struct Gateway {
    process: Background,
    pub(crate) address: String,
    client: Client,
    pub(crate) key: Option<String>,
}

impl Gateway {
    pub(crate) async fn start(stack: &Stack, arguments: &[&str]) -> Self {
        let mut command = Command::new(program("darkroom-gateway"));
        command.args(["--nats", &stack.nats.url(), "--store", &stack.store_url(), "--http-listen", "127.0.0.1:0"]);
        let process = Background::start(command.args(arguments));
        let line = process.wait_for_log(|line| line.contains("gateway.http"), PATIENCE).await;
        let address = line.rsplit("address=").next().unwrap().trim().to_owned();
        Self { process, address: format!("http://{address}"), client: Client::new(), key: None }
    }

    /// One at which everybody is tenant `t`.
    pub(crate) async fn open(stack: &Stack) -> Self {
        Self::start(stack, &["--open-tenant", "t"]).await
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.address)).timeout(PATIENCE);
        match &self.key {
            Some(key) => request.header(header::AUTHORIZATION, format!("Bearer {key}")),
            None => request,
        }
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, Value) {
        read(self.request(Method::GET, path).send().await.unwrap()).await
    }

    async fn post(&self, body: &Value, headers: &[(&str, &str)]) -> Response {
        let mut request = self.request(Method::POST, "/v1/jobs").header(header::CONTENT_TYPE, "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(body.to_string()).send().await.unwrap()
    }

    async fn submit(&self, body: &Value) -> String {
        let (status, job) = read(self.post(body, &[]).await).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{job}");
        job["id"].as_str().unwrap().to_owned()
    }

    /// The events of a job to the terminal one: kind and id.
    async fn events(&self, job: &str, last_event_id: Option<&str>) -> Vec<(String, Value)> {
        let mut request = self.request(Method::GET, &format!("/v1/jobs/{job}/events"));
        if let Some(id) = last_event_id {
            request = request.header("Last-Event-ID", id);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
        parse_events(&response.text().await.unwrap())
    }
}

pub(crate) async fn read(response: Response) -> (StatusCode, Value) {
    let status = response.status();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status} is not JSON: {text:?}")))
}

/// Server-sent events by the rules of the HTML standard that matter here: fields, and an empty line after each event.
fn parse_events(text: &str) -> Vec<(String, Value)> {
    let field = |block: &str, name: &str| {
        block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned))
    };
    text.split("\n\n")
        .filter_map(|block| {
            let data: Value = serde_json::from_str(&field(block, "data")?).unwrap();
            assert_eq!(field(block, "id").as_deref(), data["id"].as_str());
            Some((field(block, "event")?, data))
        })
        .collect()
}

fn ring(seed: u32) -> Value {
    json!({"prompt": "a yellow ring on a blue background", "seed": seed, "num_inference_steps": 4,
        "width": 128, "height": 128, "metadata": {"order": seed}})
}

fn long(seed: u32) -> Value {
    json!({"prompt": "a yellow star on a blue background", "seed": seed, "num_inference_steps": 100,
        "width": 128, "height": 128, "previews": 10})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_submitted_followed_and_fetched() {
    let stack = Stack::start().await;
    let gateway = Gateway::open(&stack).await;
    let response = gateway.post(&ring(1), &[]).await;
    let location = response.headers()[header::LOCATION].to_str().unwrap().to_owned();
    let (status, job) = read(response).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    assert_eq!((&job["status"], &job["queue_position"]), (&json!("pending"), &json!(0)), "{job}");
    assert_eq!(job["links"]["self"], location);
    let id = job["id"].as_str().unwrap();

    let _worker = stack.worker().await;
    let events = gateway.events(id, None).await;
    let kinds: Vec<&str> = events.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!((kinds[..2].to_vec(), *kinds.last().unwrap()), (vec!["accepted", "started"], "completed"));
    assert!(kinds.contains(&"progress"), "{kinds:?}");
    // Whoever was cut off goes on where he was, and whoever has seen all sees nothing twice.
    let again = gateway.events(id, Some(events[1].1["id"].as_str().unwrap())).await;
    assert_eq!(again.iter().map(|(kind, _)| kind.as_str()).collect::<Vec<_>>(), ["completed"]);

    let last = events.last().unwrap().1["id"].as_str().unwrap();
    let request = gateway.request(Method::GET, &format!("{location}/events")).header("Last-Event-ID", last);
    assert_eq!(request.send().await.unwrap().status(), StatusCode::NO_CONTENT, "a browser need not come back");

    let (status, job) = gateway.get(&location).await;
    assert_eq!((status, &job["status"], &job["metadata"]["order"]), (StatusCode::OK, &json!("completed"), &json!(1)));
    let image = &job["images"][0];
    let response = gateway.request(Method::GET, job["links"]["images"][0].as_str().unwrap()).send().await.unwrap();
    assert_eq!(response.headers()[header::CONTENT_TYPE], "image/png");
    let bytes = response.bytes().await.unwrap();
    assert_eq!(hexadecimal(&Sha256::digest(&bytes)), image["sha256"].as_str().unwrap());

    let (status, jobs) = gateway.get("/v1/jobs?status=completed&limit=5").await;
    assert_eq!((status, &jobs["jobs"][0]["id"]), (StatusCode::OK, &json!(id)));
    assert_eq!(gateway.get("/v1/jobs?status=failed").await.1, json!({"jobs": []}));
    let (_, models) = gateway.get("/v1/models").await;
    assert_eq!(models["models"][0]["name"], "shapes");
    let mut hints = stack.bus.client.subscribe("darkroom.ctl.wake.*").await.unwrap();
    stack.bus.client.flush().await.unwrap();
    for (model, expected) in [("nobody", StatusCode::NOT_FOUND), ("shapes", StatusCode::ACCEPTED)] {
        let answer = gateway.request(Method::POST, &format!("/v1/models/{model}/wake")).send().await.unwrap();
        assert_eq!(answer.status(), expected);
    }
    let hint = tokio::time::timeout(PATIENCE, hints.next()).await.unwrap().unwrap();
    assert_eq!(hint.subject.as_str(), "darkroom.ctl.wake.shapes");
    let (status, problem) = read(gateway.request(Method::DELETE, &location).send().await.unwrap()).await;
    assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("job_ended")));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_wants_to_wait_gets_the_images_and_a_repeated_submission_is_the_same_job() {
    let stack = Stack::start().await;
    let gateway = Gateway::open(&stack).await;
    let (status, job) =
        read(gateway.post(&ring(2), &[("Prefer", "wait=1"), ("Idempotency-Key", "order 2")]).await).await;
    assert_eq!((status, &job["status"]), (StatusCode::ACCEPTED, &json!("pending")), "there is no worker yet");
    let _worker = stack.worker().await;
    let headers = [("Prefer", "respond-async, wait=60"), ("Idempotency-Key", "order 2")];
    let (status, done) = read(gateway.post(&ring(2), &headers).await).await;
    assert_eq!((status, &done["status"], &done["id"]), (StatusCode::OK, &json!("completed"), &job["id"]));
    assert_eq!(done["images"].as_array().unwrap().len(), 1);
    let (status, problem) = read(gateway.post(&ring(3), &[("Idempotency-Key", "order 2")]).await).await;
    assert_eq!((status, &problem["code"]), (StatusCode::CONFLICT, &json!("job_id_conflict")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_job_shows_how_far_it_is_and_is_cancelled() {
    let stack = Stack::start().await;
    let gateway = Gateway::open(&stack).await;
    let _worker = stack.worker().await;
    let id = gateway.submit(&long(1)).await;
    let path = format!("/v1/jobs/{id}");
    let running = eventually("progress", PATIENCE, async || {
        let (_, job) = gateway.get(&path).await;
        (job["progress"]["step"].as_u64()? >= 10).then_some(job)
    })
    .await;
    assert_eq!(running["status"], "processing");
    assert!(running["estimated_time"].as_f64().unwrap() > 0.0, "{running}");
    let (status, problem) = gateway.get(&format!("{path}/images/0")).await;
    assert_eq!((status, &problem["code"]), (StatusCode::NOT_FOUND, &json!("no_such_image")));
    for _ in 0..2 {
        let (status, job) = read(gateway.request(Method::DELETE, &path).send().await.unwrap()).await;
        assert_eq!((status, &job["status"]), (StatusCode::OK, &json!("cancelled")), "the second time changes nothing");
    }
    assert_eq!(gateway.events(&id, None).await.last().unwrap().0, "cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_events_come_over_a_web_socket() {
    let stack = Stack::start().await;
    let gateway = Gateway::open(&stack).await;
    let id = gateway.submit(&ring(4)).await;
    let uri = format!("{}/v1/ws/jobs/{id}", gateway.address.replace("http://", "ws://"));
    let (mut socket, _) = ClientBuilder::new().uri(&uri).unwrap().connect().await.unwrap();
    socket.send(Message::text("anything")).await.unwrap();
    let _worker = stack.worker().await;
    let mut kinds = Vec::new();
    while let Some(Ok(message)) = socket.next().await {
        if let Some(text) = message.as_text() {
            kinds.push(serde_json::from_str::<Value>(text).unwrap()["type"].as_str().unwrap().to_owned());
        } else if let Some((code, _)) = message.as_close() {
            assert_eq!(u16::from(code), 1000);
        }
    }
    assert_eq!(kinds.first().map(String::as_str), Some("darkroom.job.accepted"));
    assert_eq!(kinds.last().map(String::as_str), Some("darkroom.job.completed"));
    let (status, _) = gateway.get("/v1/ws/jobs/none").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let (status, problem) = gateway.get(&format!("/v1/ws/jobs/{id}")).await;
    assert_eq!((status, &problem["code"]), (StatusCode::UPGRADE_REQUIRED, &json!("no_websocket")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_told_with_its_name_and_what_would_be_right() {
    let stack = Stack::start().await;
    // Small: a client that is still sending may not hear why it is cut off.
    let gateway = Gateway::start(&stack, &["--open-tenant", "t", "--http-body-max", "20kB"]).await;
    let json = "application/json";
    let large = json!({"prompt": "x".repeat(30_000)}).to_string();
    let bodies: [(&str, &str, u16, &str, &[&str]); 13] = [
        (json, "{", 400, "invalid_json", &[]),
        (json, "[1]", 400, "invalid_json", &[]),
        (json, "", 400, "invalid_json", &[]),
        ("", "{}", 415, "wrong_media_type", &[]),
        ("text/plain", r#"{"prompt":"a ring"}"#, 415, "wrong_media_type", &[]),
        (json, &large, 413, "body_too_large", &[]),
        (json, "{}", 422, "invalid_request", &["prompt"]),
        (
            json,
            r#"{"prompt":1,"width":129,"scheduler":"magic","shape":"x"}"#,
            422,
            "invalid_request",
            &["prompt", "width", "scheduler", "shape"],
        ),
        (json, r#"{"prompt":"a","pool":"cheap","priority":"urgent"}"#, 422, "invalid_request", &["pool", "priority"]),
        (json, r#"{"prompt":"a","model":7}"#, 422, "invalid_request", &["model"]),
        (json, r#"{"prompt":"a","id":"a job"}"#, 422, "invalid_request", &["id"]),
        (json, r#"{"prompt":"a","model":"sdxl"}"#, 404, "unknown_model", &[]),
        (json, r#"{"prompt":"a","loras":[{"weight":1}]}"#, 422, "invalid_request", &["loras[0].name"]),
    ];
    for (media_type, body, status, code, fields) in bodies {
        let shown: String = body.chars().take(80).collect();
        let request = gateway.request(Method::POST, "/v1/jobs").header(header::CONTENT_TYPE, media_type);
        let response = request.body(body.to_owned()).send().await.unwrap();
        let media_type = response.headers()[header::CONTENT_TYPE].clone();
        let (found, problem) = read(response).await;
        assert_eq!((found.as_u16(), problem["code"].as_str()), (status, Some(code)), "{shown}: {problem}");
        assert_eq!(
            (media_type.to_str().unwrap(), problem["status"].as_u64()),
            ("application/problem+json", Some(status.into()))
        );
        let violations = problem["violations"].as_array().cloned().unwrap_or_default();
        let named: Vec<&str> = violations.iter().map(|violation| violation["field"].as_str().unwrap()).collect();
        for field in fields {
            assert!(named.contains(field), "{shown}: {field} is not in {problem}");
        }
        assert!(violations.iter().all(|violation| !violation["allowed"].as_str().unwrap().is_empty()), "{problem}");
    }
    for (method, path, status, code) in [
        (Method::GET, "/v1/jobs/none", 404, "unknown_job"),
        (Method::GET, "/v1/jobs/a%20b", 404, "unknown_job"),
        (Method::GET, "/v1/jobs/none/events", 404, "unknown_job"),
        (Method::GET, "/v1/jobs/none/images/0", 404, "unknown_job"),
        (Method::DELETE, "/v1/jobs/none", 404, "unknown_job"),
        (Method::DELETE, "/v1/jobs/none?keep_partial=perhaps", 422, "invalid_request"),
        (Method::GET, "/v1/jobs?limit=0", 422, "invalid_request"),
        (Method::GET, "/v1/jobs?limit=many", 422, "invalid_request"),
        (Method::GET, "/v1/jobs?status=lost", 422, "invalid_request"),
        (Method::PUT, "/v1/jobs", 405, "no_such_method"),
        (Method::GET, "/v2/nothing", 404, "no_such_path"),
    ] {
        let (found, problem) = read(gateway.request(method.clone(), path).send().await.unwrap()).await;
        assert_eq!((found.as_u16(), problem["code"].as_str()), (status, Some(code)), "{method} {path}: {problem}");
    }
    stack.queue_is_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_opens_its_tenants_jobs_and_no_others() {
    let stack = Stack::start().await;
    let keys = async |arguments: &[&str]| {
        let mut command = Command::new(program("darkroom"));
        let finished = run(command.args(["--nats", &stack.nats.url(), "--json", "keys"]).args(arguments), PATIENCE);
        finished.await.expect_success()
    };
    let made = async |arguments: &[&str]| -> Value { serde_json::from_str(&keys(arguments).await).unwrap() };
    let (one, two) = (made(&["add", "one", "--label", "shop"]).await, made(&["add", "two"]).await);
    let rare = made(&["add", "rare", "--requests-per-minute", "2"]).await;
    let mut gateway = Gateway::start(&stack, &[]).await;

    for key in [None, Some("dk_nobodys"), Some("")] {
        gateway.key = key.map(str::to_owned);
        let response = gateway.request(Method::GET, "/v1/jobs").send().await.unwrap();
        assert_eq!(response.headers()[header::WWW_AUTHENTICATE], "Bearer");
        assert_eq!(read(response).await.0, StatusCode::UNAUTHORIZED, "{key:?}");
    }
    gateway.key = one["key"].as_str().map(str::to_owned);
    let id = gateway.submit(&ring(5)).await;
    assert_eq!(gateway.get(&format!("/v1/jobs/{id}")).await.0, StatusCode::OK);
    gateway.key = two["key"].as_str().map(str::to_owned);
    for method in [Method::GET, Method::DELETE] {
        let (status, problem) = read(gateway.request(method, &format!("/v1/jobs/{id}")).send().await.unwrap()).await;
        assert_eq!((status, &problem["code"]), (StatusCode::NOT_FOUND, &json!("unknown_job")));
    }
    assert_eq!(gateway.get("/v1/jobs").await.1, json!({"jobs": []}));
    // As browsers show it, who cannot set headers.
    gateway.key = None;
    let path = format!("/v1/jobs/{id}?api_key={}", one["key"].as_str().unwrap());
    assert_eq!(gateway.get(&path).await.0, StatusCode::OK);

    gateway.key = rare["key"].as_str().map(str::to_owned);
    for _ in 0..2 {
        assert_eq!(gateway.get("/v1/jobs").await.0, StatusCode::OK);
    }
    let response = gateway.request(Method::GET, "/v1/jobs").send().await.unwrap();
    let again: u64 = response.headers()[header::RETRY_AFTER].to_str().unwrap().parse().unwrap();
    assert!((1..=30).contains(&again), "{again}");
    assert_eq!(read(response).await.1["code"], "too_many_requests");

    let listed = keys(&["list", "--tenant", "one"]).await;
    assert!(listed.contains("shop") && !listed.contains(one["key"].as_str().unwrap()), "a key is shown once: {listed}");
    keys(&["remove", &one["name"].as_str().unwrap()[..16]]).await;
    let fresh = Gateway { key: one["key"].as_str().map(str::to_owned), ..Gateway::start(&stack, &[]).await };
    assert_eq!(fresh.get("/v1/jobs").await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_tells_the_truth_and_an_end_lets_go_of_who_follows() {
    let mut stack = Stack::start().await;
    let mut gateway = Gateway::open(&stack).await;
    assert_eq!(gateway.get("/health/live").await.0, StatusCode::OK);
    let (status, health) = gateway.get("/health/ready").await;
    assert_eq!((status, &health["ready"]), (StatusCode::OK, &json!(true)), "{health}");
    let id = gateway.submit(&ring(6)).await;
    let followed = gateway.request(Method::GET, &format!("/v1/jobs/{id}/events")).send().await.unwrap();
    stack.nats.kill();
    eventually("unready", PATIENCE, async || {
        let (status, health) = gateway.get("/health/ready").await;
        let told = health["problems"].to_string().contains("NATS");
        (status == StatusCode::SERVICE_UNAVAILABLE && told).then_some(())
    })
    .await;
    assert_eq!(gateway.get("/health/live").await.0, StatusCode::OK);
    let response = gateway.post(&ring(7), &[]).await;
    assert!(response.headers().contains_key(header::RETRY_AFTER));
    assert_eq!(read(response).await.0, StatusCode::SERVICE_UNAVAILABLE);
    stack.nats.restart().await;
    eventually("ready", PATIENCE, async || (gateway.get("/health/ready").await.0 == StatusCode::OK).then_some(()))
        .await;
    gateway.process.terminate();
    assert!(gateway.process.wait(Duration::from_secs(20)).await.success(), "{:?}", gateway.process);
    // It ends without a terminal event: the client comes back, to another copy.
    assert!(!followed.text().await.unwrap().contains("completed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_let_in_without_a_key_from_elsewhere() {
    let stack = Stack::start().await;
    let mut command = Command::new(program("darkroom-gateway"));
    command.args(["--nats", &stack.nats.url(), "--http-listen", "0.0.0.0:0", "--open-tenant", "t"]);
    let finished = run(&mut command, PATIENCE).await;
    assert_eq!(finished.status.code(), Some(1));
    assert!(finished.stderr.contains("darkroom keys add"), "{finished}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_let_in_from_named_origins_only() {
    let stack = Stack::start().await;
    let gateway = Gateway::start(&stack, &["--http-origins", "https://app.example.com"]).await;
    for (origin, allowed) in [("https://app.example.com", true), ("https://evil.example.com", false)] {
        let request = gateway.request(Method::OPTIONS, "/v1/jobs").header(header::ORIGIN, origin);
        let request = request.header(header::ACCESS_CONTROL_REQUEST_METHOD, "POST");
        let response = request.header(header::ACCESS_CONTROL_REQUEST_HEADERS, "authorization").send().await.unwrap();
        let found = response.headers().get(header::ACCESS_CONTROL_ALLOW_ORIGIN).map(|value| value.to_str().unwrap());
        assert_eq!(found, allowed.then_some(origin));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_in_the_description_is_there() {
    let stack = Stack::start().await;
    let gateway = Gateway::open(&stack).await;
    let (_, document) = gateway.get("/openapi.json").await;
    assert_eq!(document["openapi"], "3.1.0");
    let mut operations = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys().filter(|method| *method != "parameters") {
            let path = path.replace("{job}", "none").replace("{index}", "0");
            let method: Method = method.to_uppercase().parse().unwrap();
            let (_, answer) = read(gateway.request(method.clone(), &path).send().await.unwrap()).await;
            let code = answer["code"].as_str().unwrap_or_default();
            assert!(!["no_such_path", "no_such_method"].contains(&code), "{method} {path}: {answer}");
            operations += 1;
        }
    }
    assert_eq!(operations, 13);
    // Every reference leads somewhere.
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert!(document.pointer(reference).is_some(), "{reference}");
    }
}

/// The picture that the Python clients ask for, as the engine makes it alone.
pub(crate) fn circle(seed: u64) -> String {
    let scheduler = read_manifest(&model_directory()).unwrap().defaults.scheduler.to_string();
    let body = json!({"prompt": "a red circle on a blue background", "seed": seed, "num_inference_steps": 8,
        "guidance_scale": 5.0, "scheduler": scheduler});
    hexadecimal(&Sha256::digest(&rendered_alone(&[("circle".to_owned(), body)])[0]))
}

async fn python_client(gateway: &Gateway, script: &str, base: &str) -> Value {
    let mut client = python::client(script, python::HTTP_CLIENTS);
    client.args(["--base-url", &format!("{}{base}", gateway.address)]);
    serde_json::from_str(run(&mut client, PATIENCE).await.expect_success().trim()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn openais_package_generates_streams_edits_and_understands_what_is_wrong() {
    let stack = Stack::start().await;
    let gateway = Gateway::open(&stack).await;
    let _worker = stack.worker().await;
    let report = python_client(&gateway, "openai_images.py", "/openai/v1").await;
    let (first, second) = (circle(7), circle(8));
    assert_eq!(report["models"], json!(["shapes"]));
    assert_eq!(report["b64_json"], first.as_str());
    assert_eq!(report["urls"], json!([first, second]));
    let stream = report["stream"].as_array().unwrap();
    let (last, partial) = stream.split_last().unwrap();
    assert_eq!(*last, json!(["image_generation.completed", first, false]));
    assert!((1..=2).contains(&partial.len()), "{report}");
    assert!(partial.iter().all(|event| event[0] == "image_generation.partial_image" && event[2] == true), "{report}");
    assert_eq!(report["edit"], "image/png");
    assert_eq!(
        report["errors"],
        json!([
            ["BadRequestError", 400, "invalid_request", "prompt"],
            ["BadRequestError", 400, "invalid_request", "size"],
            ["BadRequestError", 400, "invalid_request", "size"],
            ["BadRequestError", 400, "invalid_request", "n"],
            ["NotFoundError", 404, "model_not_found", "model"],
        ])
    );
    stack.queue_is_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_before_the_image_is_there_takes_the_job_along_unless_it_has_a_name() {
    let stack = Stack::start().await;
    let gateway = Gateway::open(&stack).await;
    let ask = async |key: Option<&str>| {
        let mut request = gateway.request(Method::POST, "/openai/v1/images/generations");
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        let body = json!({"prompt": "a ring", "num_inference_steps": 4}).to_string();
        let request = request.header(header::CONTENT_TYPE, "application/json").body(body);
        request.timeout(Duration::from_secs(2)).send().await.unwrap_err();
    };
    ask(None).await;
    let statuses = async || {
        let (_, jobs) = gateway.get("/v1/jobs").await;
        jobs["jobs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|job| job["status"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    eventually("the cancellation", PATIENCE, async || (statuses().await == ["cancelled"]).then_some(())).await;
    ask(Some("mine")).await;
    let _worker = stack.worker().await;
    eventually("the image", PATIENCE, async || (statuses().await == ["completed", "cancelled"]).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicates_package_runs_waits_cancels_and_understands_what_is_wrong() {
    let stack = Stack::start().await;
    let gateway = Gateway::open(&stack).await;
    let _worker = stack.worker().await;
    let _webhook = function(&stack, &[]).await;
    let report = python_client(&gateway, "replicate_predictions.py", "/replicate").await;
    assert_eq!(report["run"], json!([circle(7)]));
    // A worker may have been as quick as the answer.
    assert!(["starting", "processing"].contains(&report["created"].as_str().unwrap()), "{report}");
    assert_eq!(report["waited"], json!(["succeeded", 2, "a red circle on a blue background", true]));
    assert_eq!(
        (&report["cancelled"], &report["listed"]),
        (&json!("canceled"), &json!(["canceled", "succeeded", "succeeded", "succeeded"]))
    );
    // What the package itself validates, in the order of its events.
    let [started, completed] = &report["webhooks"].as_array().unwrap()[..] else { panic!("{report}") };
    assert_eq!(*started, json!(["processing", null, "a red circle on a blue background"]));
    assert_eq!((&completed[0], &completed[2]), (&json!("succeeded"), &started[2]));
    assert_eq!(completed[1].as_array().unwrap().len(), 1, "{report}");
    let errors = report["errors"].as_array().unwrap();
    assert_eq!((errors[0][0].as_u64(), errors[1][0].as_u64()), (Some(422), Some(404)), "{report}");
    assert!(errors[0][1].as_str().unwrap().contains("width"), "{report}");
    assert!(errors[2][1].as_str().unwrap().contains("webhook_events_filter"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_asked_gets_an_answer_that_the_description_has() {
    let stack = Stack::start().await;
    let gateway = Gateway::open(&stack).await;
    // Where it keeps what it found.
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new("python3");
    command
        .env("PYTHONPATH", python::installed(python::SCHEMATHESIS))
        .current_dir(directory.path())
        .args(["-m", "schemathesis.cli", "run", &format!("{}/openapi.json", gateway.address)])
        .args(["--seed", "7", "--max-examples", "15", "--phases", "coverage,fuzzing", "--no-color"])
        .args([
            "--checks",
            "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
        ])
        // Streams that end with their job: theirs are the tests above.
        .args(["--exclude-operation-id", "events", "--exclude-operation-id", "socket"]);
    let report = run(&mut command, PATIENCE).await.expect_success();
    assert!(report.contains("10 selected"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_console_is_served_with_all_that_it_loads_and_nothing_else() {
    let stack = Stack::start().await;
    let gateway = Gateway::start(&stack, &[]).await;
    let page = gateway.request(Method::GET, "/").send().await.unwrap();
    assert!(page.headers()["content-security-policy"].to_str().unwrap().starts_with("default-src 'self'"));
    let page = page.text().await.unwrap();
    let links = page.split(['"', '\'']).filter(|text| text.starts_with("/console/"));
    let mut loaded = 0;
    for link in links {
        let file = gateway.request(Method::GET, link).send().await.unwrap();
        assert_eq!(file.status(), StatusCode::OK, "{link}");
        let again = gateway.request(Method::GET, link).header(header::IF_NONE_MATCH, &file.headers()[header::ETAG]);
        assert_eq!(again.send().await.unwrap().status(), StatusCode::NOT_MODIFIED, "{link}");
        loaded += 1;
    }
    assert!(loaded >= 3, "{page}");
    // Where nobody is let in without a key, nobody is told of NATS.
    assert_eq!(gateway.get("/console/config.json").await.1, json!({"nats": null}));
    assert_eq!(gateway.get("/console/..%2fCargo.toml").await.1["code"], "no_such_path");
}

#[tokio::test(flavor = "multi_thread")]
async fn front_ends_of_the_usual_tutorial_find_what_they_know() {
    let stack = Stack::start().await;
    let gateway = Gateway::open(&stack).await;
    let post = async |body: &Value| {
        let request = gateway.request(Method::POST, "/generate").header(header::CONTENT_TYPE, "application/json");
        read(request.body(body.to_string()).send().await.unwrap()).await
    };
    let (status, job) = post(&ring(9)).await;
    assert_eq!((status, &job["status"], &job["queue_position"]), (StatusCode::OK, &json!("pending"), &json!(0)));
    assert_eq!((&job["progress"], &job["image_url"], &job["error"]), (&json!(0), &Value::Null, &Value::Null));
    let id = job["job_id"].as_str().unwrap();
    let uri = format!("{}/ws/jobs/{id}", gateway.address.replace("http://", "ws://"));
    let (mut socket, _) = ClientBuilder::new().uri(&uri).unwrap().connect().await.unwrap();
    let _worker = stack.worker().await;
    let mut last = Value::Null;
    while let Some(Ok(message)) = socket.next().await {
        if let Some(text) = message.as_text() {
            last = serde_json::from_str(text).unwrap();
        }
    }
    assert_eq!((&last["status"], &last["progress"]), (&json!("completed"), &json!(100)));
    let (_, job) = gateway.get(&format!("/jobs/{id}")).await;
    assert_eq!(job, last);
    let image = gateway.client.get(job["image_url"].as_str().unwrap()).send().await.unwrap();
    assert_eq!(image.headers()[header::CONTENT_TYPE], "image/png");

    let (status, refused) = post(&json!({"prompt": "", "width": 1})).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(
        (&refused["detail"][0]["loc"][0], &refused["detail"][0]["type"]),
        (&json!("body"), &json!("value_error"))
    );
    let (status, unknown) = gateway.get("/jobs/none").await;
    assert_eq!((status, unknown["detail"].is_string()), (StatusCode::NOT_FOUND, true));
    let (status, ended) = read(gateway.request(Method::DELETE, &format!("/jobs/{id}")).send().await.unwrap()).await;
    assert_eq!((status, ended["detail"].is_string()), (StatusCode::BAD_REQUEST, true));
}
