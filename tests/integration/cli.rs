//! The command line, through the real binary: what it prints, and what it exits with.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use darkroom::wire::subject;
use serde_json::{Value, json};

use crate::stack::{PATIENCE, Stack, model_directory, program};
use crate::support::nats::{NatsServer, fake_old_server};
use crate::support::process::{Finished, run};
use crate::support::s3::S3Server;

async fn darkroom(nats: &str, arguments: &[&str]) -> Finished {
    run(Command::new(program("darkroom")).args(["--nats", nats]).args(arguments), PATIENCE).await
}

fn lines(finished: &Finished) -> Vec<Value> {
    finished.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn model() -> String {
    model_directory().display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn setup_creates_then_finds_all_well_then_mends_and_reports_drift() {
    let nats = NatsServer::start().await;
    let setup = async || darkroom(&nats.url(), &["--json", "setup", "--model", &model()]).await;

    // Two at once: neither fails, and together they make everything.
    let (one, other) = tokio::join!(setup(), setup());
    assert!(one.status.success() && other.status.success(), "{one}\n{other}");
    let again = setup().await;
    assert!(again.status.success());
    assert_eq!(lines(&again).len(), 12, "six streams, six consumers");
    assert!(lines(&again).iter().all(|line| line["outcome"] == "unchanged"), "{again}");

    let client = async_nats::connect(nats.url()).await.unwrap();
    let api = async |to: &str, body: Value| {
        let answer = client.request(format!("$JS.API.{to}"), body.to_string().into()).await.unwrap();
        let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
        assert!(answer.get("error").is_none(), "{answer}");
    };
    let mut config: Value = serde_json::from_str(include_str!("../../nats/streams/DARKROOM_EV.json")).unwrap();
    config["max_age"] = json!(3_600_000_000_000_u64);
    api("STREAM.UPDATE.DARKROOM_EV", config).await;
    let mended = setup().await;
    assert!(mended.status.success());
    let line = lines(&mended).into_iter().find(|line| line["name"] == "DARKROOM_EV").unwrap();
    assert_eq!((&line["outcome"], &line["differences"][0]["field"]), (&json!("updated"), &json!("max_age")));
    assert!(lines(&setup().await).iter().all(|line| line["outcome"] == "unchanged"));

    let client = async_nats::connect(nats.url()).await.unwrap();
    let jetstream = async_nats::jetstream::new(client);
    jetstream.delete_stream("DARKROOM_PROG").await.unwrap();
    let foreign = async_nats::jetstream::stream::Config {
        name: "DARKROOM_PROG".into(),
        subjects: vec!["darkroom.prog.>".into()],
        ..Default::default()
    };
    jetstream.create_stream(foreign).await.unwrap();
    let drifted = setup().await;
    assert_eq!(drifted.status.code(), Some(3), "{drifted}");
    let line = lines(&drifted).into_iter().find(|line| line["name"] == "DARKROOM_PROG").unwrap();
    assert_eq!(line["outcome"], "drifted");
    let fields: Vec<&str> =
        line["differences"].as_array().unwrap().iter().map(|one| one["field"].as_str().unwrap()).collect();
    assert!(fields.contains(&"storage"), "{fields:?}");
}

fn verdict<'a>(report: &'a [Value], check: &str) -> (&'a str, String) {
    let line = report.iter().find(|line| line["check"] == check).unwrap();
    (line["verdict"].as_str().unwrap(), format!("{} → {}", line["found"], line["remedy"]))
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_finds_a_healthy_set_up_well() {
    let stack = Stack::start().await;
    let s3 = S3Server::start().await;
    let mut command = Command::new(program("darkroom"));
    command.args(["--nats", &stack.nats.url(), "--json", "doctor", "--model", &model(), "--store", &s3.store_url()]);
    let report = run(command.envs(s3.environment()), PATIENCE).await;
    assert!(report.status.success(), "{report}");
    assert!(lines(&report).iter().all(|line| line["verdict"] == "ok"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_says_what_is_wrong_and_what_to_do() {
    let stack = Stack::start().await;
    let bare = NatsServer::start().await;
    let without = NatsServer::start_without_jetstream().await;
    let old = fake_old_server().await;
    let directory = tempfile::tempdir().unwrap();
    let in_the_way = directory.path().join("file");
    std::fs::write(&in_the_way, b"").unwrap();
    let unwritable = format!("file://{}/objects", in_the_way.display());
    let broken = directory.path().join("model");
    std::fs::create_dir(&broken).unwrap();
    let broken = broken.display().to_string();
    let nobody = "nats://127.0.0.1:1".to_owned();
    let (healthy, bare, without, old) = (stack.nats.url(), bare.url(), without.url(), old.url());

    for (nats, extra, check, found, remedy) in [
        (&nobody, vec![], "server", "no NATS server", "local/up"),
        (&old, vec![], "server", "2.9.0", "upgrade"),
        (&without, vec![], "jetstream", "INFO", "-js"),
        (&bare, vec![], "topology", "missing: DARKROOM_REQ", "darkroom setup"),
        (&bare, vec![], "consumers", "STREAM", "darkroom setup"),
        (&healthy, vec!["--store", &unwritable], "store", "cannot be made", "check the URL"),
        (&healthy, vec!["--store", "nowhere"], "store", "not a URL", "check the URL"),
        (&healthy, vec!["--model", &broken], "model", "model_index.json", "safetensors"),
    ] {
        let mut arguments = vec!["--json", "doctor"];
        arguments.extend(extra.iter().copied());
        let report = darkroom(nats, &arguments).await;
        assert_eq!(report.status.code(), Some(1), "{check}: {report}");
        let report = lines(&report);
        let (word, text) = verdict(&report, check);
        assert_eq!(word, "problem", "{check}: {text}");
        assert!(text.contains(found) || check == "consumers", "{check}: {text}");
        assert!(text.contains(remedy), "{check}: {text}");
    }
    // Requests that nobody takes are a warning: the set-up is sound, but somebody waits.
    stack.publish("darkroom.req.unheard.normal.any.t", None, "{}").await;
    let report = lines(&darkroom(&healthy, &["--json", "doctor"]).await);
    let (word, text) = verdict(&report, "requests");
    assert_eq!(word, "warning", "{text}");
    assert!(text.contains("darkroom-deadletter"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn submit_refuses_what_cannot_be_done_before_it_is_published() {
    let stack = Stack::start().await;
    let nats = stack.nats.url();
    let error = |finished: &Finished| -> Value { serde_json::from_str(finished.stderr.trim()).unwrap() };

    let unknown = darkroom(&nats, &["--json", "submit", "a ring", "--model", "unheard"]).await;
    assert_eq!(unknown.status.code(), Some(6));
    assert!(error(&unknown)["error"]["message"].as_str().unwrap().contains("shapes"), "{unknown}");

    let wrong =
        darkroom(&nats, &["--json", "submit", "", "--steps", "101", "--width", "100", "--scheduler", "x"]).await;
    assert_eq!(wrong.status.code(), Some(5));
    for field in ["prompt", "num_inference_steps", "width", "scheduler"] {
        assert!(error(&wrong)["error"]["message"].as_str().unwrap().contains(field), "{field}: {wrong}");
    }

    let first = darkroom(&nats, &["submit", "a ring", "--job", "mine"]).await;
    assert_eq!((first.status.code(), first.stdout.trim()), (Some(0), "mine"));
    assert!(darkroom(&nats, &["submit", "a ring", "--job", "mine"]).await.status.success(), "the same is no conflict");
    let conflict = darkroom(&nats, &["submit", "a heart", "--job", "mine"]).await;
    assert_eq!(conflict.status.code(), Some(7), "{conflict}");
    for id in ["a.b", "*", "a b", ""] {
        assert_eq!(darkroom(&nats, &["submit", "a ring", "--job", id]).await.status.code(), Some(2), "{id:?}");
    }
    let mut stream = stack.bus.context.get_stream(subject::STREAM_REQUESTS).await.unwrap();
    assert_eq!(stream.info().await.unwrap().state.messages, 1, "one request was published in all of this");

    let status = darkroom(&nats, &["--json", "status", "mine"]).await;
    assert_eq!(lines(&status)[0]["status"], "pending");
    assert_eq!(darkroom(&nats, &["status", "theirs"]).await.status.code(), Some(6));
    assert_eq!(darkroom(&nats, &["watch", "theirs"]).await.status.code(), Some(6));
    assert_eq!(darkroom(&nats, &["watch", "mine", "--timeout", "200ms"]).await.status.code(), Some(9));
    assert_eq!(darkroom("nats://127.0.0.1:1", &["list"]).await.status.code(), Some(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submitted_job_can_be_followed_fetched_and_found_again() {
    let stack = Stack::start().await;
    let _worker = stack.worker().await;
    let nats = stack.nats.url();
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("ring.png").display().to_string();
    let submit =
        ["submit", "a ring", "--job", "ring", "--steps", "3", "--seed", "1", "--width", "128", "--height", "128"];
    let mut arguments = submit.to_vec();
    arguments.extend(["--out", &out]);
    let done = darkroom(&nats, &arguments).await;
    assert!(done.status.success(), "{done}");
    assert_eq!(done.stdout.lines().collect::<Vec<_>>(), ["ring", &out]);
    assert!(done.stderr.contains("step 3/3"), "{done}");
    let picture = std::fs::read(&out).unwrap();

    // The same again follows the job that there is.
    let again = directory.path().join("again.png").display().to_string();
    let mut arguments = submit.to_vec();
    arguments.extend(["--out", &again]);
    assert!(darkroom(&nats, &arguments).await.status.success());
    assert_eq!(std::fs::read(&again).unwrap(), picture);

    let watched = darkroom(&nats, &["--json", "watch", "ring"]).await;
    let kinds: Vec<Value> = lines(&watched).into_iter().map(|line| line["type"].clone()).collect();
    assert_eq!(kinds, ["darkroom.job.accepted", "darkroom.job.started", "darkroom.job.completed"]);
    let listed = lines(&darkroom(&nats, &["--json", "list"]).await);
    assert_eq!((&listed[0]["job"], &listed[0]["status"]), (&json!("ring"), &json!("completed")));
    let models = lines(&darkroom(&nats, &["--json", "models"]).await);
    assert_eq!((&models[0]["name"], models.len()), (&json!("shapes"), 1));

    // And the engine alone makes the same bytes.
    let request = directory.path().join("request.json");
    let body = json!({"prompt": "a ring", "num_inference_steps": 3, "seed": 1, "width": 128, "height": 128});
    std::fs::write(&request, body.to_string()).unwrap();
    let alone = directory.path().join("alone.png");
    let latents = directory.path().join("latents.safetensors");
    let render = render(&request, &alone, &["--latents", &latents.display().to_string()]).await;
    assert!(render.status.success(), "{render}");
    assert_eq!(std::fs::read(&alone).unwrap(), picture);
    assert!(latents.metadata().unwrap().len() > 4 * 16 * 16 * 4);
}

async fn render(request: &Path, out: &Path, more: &[&str]) -> Finished {
    let mut command = Command::new(program("darkroom"));
    command.arg("render").arg("--model").arg(model_directory()).arg("--request").arg(request).arg("--out").arg(out);
    run(command.args(more), PATIENCE).await
}

#[tokio::test(flavor = "multi_thread")]
async fn render_reports_every_violation_and_every_file_that_is_of_no_use() {
    let directory = tempfile::tempdir().unwrap();
    let request = directory.path().join("request.json");
    let out = directory.path().join("out.png");
    std::fs::write(&request, r#"{"prompt":"","width":7}"#).unwrap();
    let wrong = render(&request, &out, &[]).await;
    assert_eq!(wrong.status.code(), Some(5));
    assert!(wrong.stderr.contains("prompt is") && wrong.stderr.contains("width is 7"), "{wrong}");

    std::fs::write(&request, r#"{"prompt":"a ring","num_inference_steps":1,"width":64,"height":64}"#).unwrap();
    let noise = directory.path().join("noise.safetensors");
    std::fs::write(&noise, b"not tensors").unwrap();
    let wrong = render(&request, &out, &["--noise", &noise.display().to_string()]).await;
    assert!(!wrong.status.success() && wrong.stderr.contains("noise.safetensors"), "{wrong}");
    assert!(!out.exists());
    let missing = render(&directory.path().join("none.json"), &out, &[]).await;
    assert!(missing.stderr.contains("none.json"), "{missing}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_goes_away_ends_it_quietly() {
    let script = format!("{} --help | true", program("darkroom").display());
    let finished = run(Command::new("sh").args(["-c", &script]), Duration::from_secs(30)).await;
    assert!(!finished.stderr.contains("panicked"), "{finished}");
}
