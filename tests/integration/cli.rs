//! The command line as a user meets it: the real program, a real nats-server, exit codes and words.
//!
//! Most of it needs no worker.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use darkroom::shell::bus::{self, Bus};
use darkroom::shell::config::BusOptions;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::stack::{PATIENCE, Stack, model_directory, program};
use crate::support::checkout;
use crate::support::nats::{NatsServer, fake_old_server, free_port_pair};
use crate::support::process::{Finished, run};

/// What `setup` makes with one model: 15 streams and buckets, 3 consumers, and one for each priority and pool.
const STREAMS_AND_CONSUMERS: usize = 24;

/// Runs `darkroom` with these arguments.
async fn darkroom<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Finished {
    run(Command::new(program("darkroom")).args(arguments), PATIENCE).await
}

/// The same against one server, or as many as `url` names.
async fn darkroom_at(url: &str, arguments: &[&str]) -> Finished {
    let mut command = Command::new(program("darkroom"));
    let servers = url.split(',').count();
    if servers > 1 {
        command.env("DARKROOM_REPLICAS", servers.to_string());
    }
    run(command.args(["--nats", url]).args(arguments), PATIENCE).await
}

/// Asserts how a command ended and, in any order, what its output holds.
#[track_caller]
fn expect(finished: &Finished, code: i32, stdout: &[&str], stderr: &[&str]) {
    assert_eq!(finished.status.code(), Some(code), "{finished}");
    for (text, stream) in stdout.iter().map(|text| (text, &finished.stdout)) {
        assert!(stream.contains(*text), "standard output lacks {text:?}\n{finished}");
    }
    for (text, stream) in stderr.iter().map(|text| (text, &finished.stderr)) {
        assert!(stream.contains(*text), "standard error lacks {text:?}\n{finished}");
    }
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

async fn connect(server: &NatsServer) -> Bus {
    bus::connect(&BusOptions::open(server.url()), "test").await.unwrap()
}

/// A server with the topology for the model that comes along.
async fn server_with_model() -> NatsServer {
    let server = NatsServer::start().await;
    darkroom_at(&server.url(), &["setup", "--model", text(&model_directory())]).await.expect_success();
    server
}

/// Lines of `setup` by their outcome: the word after the colon.
fn outcomes(stdout: &str) -> Vec<&str> {
    stdout.lines().map(|line| line.split(": ").nth(1).unwrap_or(line)).collect()
}

#[tokio::test]
async fn setup_makes_everything_once_and_then_finds_nothing_to_do() {
    let server = NatsServer::start().await;
    let model = model_directory();
    let setup = ["setup", "--model", text(&model)];
    let first = darkroom_at(&server.url(), &setup).await;
    expect(&first, 0, &["stream DARKROOM_REQ: created", "consumer shapes-normal-any: created"], &[]);
    let second = darkroom_at(&server.url(), &setup).await;
    expect(&second, 0, &[], &[]);
    assert_eq!(outcomes(&first.stdout), ["created"; STREAMS_AND_CONSUMERS], "{first}");
    assert_eq!(outcomes(&second.stdout), ["unchanged"; STREAMS_AND_CONSUMERS], "{second}");
}

#[tokio::test]
async fn setups_at_the_same_time_do_not_disturb_each_other() {
    let server = NatsServer::start().await;
    let (url, model) = (server.url(), model_directory());
    let setup = ["setup", "--model", text(&model)];
    let (one, two, three) =
        tokio::join!(darkroom_at(&url, &setup), darkroom_at(&url, &setup), darkroom_at(&url, &setup));
    for finished in [one, two, three] {
        expect(&finished, 0, &[], &[]);
        assert!(outcomes(&finished.stdout).iter().all(|word| ["created", "unchanged"].contains(word)), "{finished}");
    }
    let after = darkroom_at(&url, &setup).await;
    assert_eq!(outcomes(&after.stdout), ["unchanged"; STREAMS_AND_CONSUMERS], "{after}");
}

#[tokio::test]
async fn setup_mends_what_may_change_and_keeps_what_it_does_not_know() {
    let server = server_with_model().await;
    let bus = connect(&server).await;
    let mut config = bus.api("STREAM.INFO.DARKROOM_EV", &Value::Null).await.unwrap()["config"].clone();
    config["max_bytes"] = json!(1_000_000);
    config["metadata"]["owner"] = json!("somebody");
    bus.api("STREAM.UPDATE.DARKROOM_EV", &config).await.unwrap();

    let mended = darkroom_at(&server.url(), &["--json", "setup"]).await;
    expect(&mended, 0, &[], &[]);
    let findings = json_lines(&mended.stdout);
    let events = findings.iter().find(|finding| finding["name"] == "DARKROOM_EV").unwrap();
    assert_eq!(events["outcome"], "updated");
    assert_eq!(events["differences"][0]["field"], "max_bytes");
    assert_eq!(events["differences"][0]["found"], 1_000_000);
    let config = bus.api("STREAM.INFO.DARKROOM_EV", &Value::Null).await.unwrap()["config"].clone();
    assert_eq!(config["max_bytes"], events["differences"][0]["wanted"]);
    assert_eq!(config["metadata"]["owner"], "somebody");
}

#[tokio::test]
async fn setup_reports_drift_after_doing_everything_else() {
    let server = NatsServer::start().await;
    let bus = connect(&server).await;
    let foreign =
        json!({ "name": "DARKROOM_PROG", "subjects": ["darkroom.prog.>"], "storage": "file", "retention": "limits" });
    bus.api("STREAM.CREATE.DARKROOM_PROG", &foreign).await.unwrap();

    let model = model_directory();
    let setup = darkroom_at(&server.url(), &["setup", "--model", text(&model)]).await;
    let drifted = "stream DARKROOM_PROG: drifted";
    expect(
        &setup,
        3,
        &[drifted, r#"storage is "file", wanted "memory""#, "consumer shapes-low-ondemand: created"],
        &[],
    );
    assert_eq!(
        outcomes(&setup.stdout).iter().filter(|word| **word == "created").count(),
        STREAMS_AND_CONSUMERS - 1,
        "{setup}"
    );
    let config = bus.api("STREAM.INFO.DARKROOM_PROG", &Value::Null).await.unwrap()["config"].clone();
    assert_eq!(config["storage"], "file", "what is stored must not be lost");
}

#[tokio::test]
async fn setup_with_check_says_what_is_missing_and_changes_nothing() {
    let server = NatsServer::start().await;
    let finished = darkroom_at(&server.url(), &["setup", "--check"]).await;
    assert_eq!(finished.status.code(), Some(1), "{finished}");
    assert!(outcomes(&finished.stdout).iter().all(|word| *word == "missing"), "{finished}");
    let bus = connect(&server).await;
    assert_eq!(bus.api("INFO", &Value::Null).await.unwrap()["streams"], 0);

    darkroom_at(&server.url(), &["setup"]).await;
    let finished = darkroom_at(&server.url(), &["setup", "--check"]).await;
    assert_eq!(finished.status.code(), Some(0), "{finished}");
    assert!(outcomes(&finished.stdout).iter().all(|word| *word == "unchanged"), "{finished}");
}

/// The verdict and the words of each check of `doctor --json`.
fn checks(finished: &Finished) -> Vec<(String, String, String)> {
    let word = |check: &Value, field: &str| check[field].as_str().unwrap_or_default().to_owned();
    json_lines(&finished.stdout)
        .iter()
        .map(|check| {
            let words = format!("{} → {}", word(check, "found"), word(check, "remedy"));
            (word(check, "check"), word(check, "verdict"), words)
        })
        .collect()
}

/// Asserts that doctor found a problem in `name` alone, that its words hold `words`, and that it says what to do.
#[track_caller]
fn expect_problem(finished: &Finished, name: &str, words: &[&str]) {
    assert_eq!(finished.status.code(), Some(1), "{finished}");
    let checks = checks(finished);
    let (_, verdict, said) = checks.iter().find(|(check, ..)| check == name).unwrap_or_else(|| panic!("{finished}"));
    assert_eq!(verdict, "problem", "{finished}");
    assert!(words.iter().all(|word| said.contains(word)), "{said:?} lacks some of {words:?}\n{finished}");
    assert!(!said.ends_with("→ "), "{name} does not say what to do\n{finished}");
}

#[track_caller]
fn expect_skipped(finished: &Finished, names: &[&str]) {
    for name in names {
        let found = checks(finished).into_iter().find(|(check, ..)| check == name).unwrap();
        assert_eq!(found.1, "skipped", "{finished}");
    }
}

#[tokio::test]
async fn doctor_finds_nothing_wrong_where_all_is_well() {
    let (server, objects) = (server_with_model().await, tempfile::tempdir().unwrap());
    let (model, store) = (model_directory(), format!("file://{}", objects.path().display()));
    let doctor = ["--json", "doctor", "--model", text(&model), "--store", &store, "--device", "cpu"];
    let finished = darkroom_at(&server.url(), &doctor).await;
    expect(&finished, 0, &[], &[]);
    let checks = checks(&finished);
    assert!(checks.len() >= 7 && checks.iter().all(|(_, verdict, _)| verdict == "ok"), "{finished}");
}

#[tokio::test]
async fn doctor_says_that_there_is_no_server() {
    let url = format!("nats://127.0.0.1:{}", free_port_pair());
    let finished = darkroom_at(&url, &["--json", "doctor"]).await;
    expect_problem(&finished, "server", &[&url, "--nats"]);
    expect_skipped(&finished, &["jetstream", "topology", "requests"]);
}

#[tokio::test]
async fn doctor_says_that_the_server_is_too_old() {
    let server = fake_old_server().await;
    let finished = darkroom_at(&server.url(), &["--json", "doctor"]).await;
    expect_problem(&finished, "server", &["2.9.0", "2.12.5"]);
}

#[tokio::test]
async fn doctor_says_that_jetstream_is_missing() {
    let server = NatsServer::start_without_jetstream().await;
    let finished = darkroom_at(&server.url(), &["--json", "doctor"]).await;
    expect_problem(&finished, "jetstream", &["JetStream", "nats-server -js"]);
    expect_skipped(&finished, &["topology", "consumers", "requests"]);
}

#[tokio::test]
async fn doctor_says_that_setup_has_not_been_run() {
    let server = NatsServer::start().await;
    let finished = darkroom_at(&server.url(), &["--json", "doctor"]).await;
    expect_problem(&finished, "topology", &["missing", "DARKROOM_REQ", "darkroom setup"]);
}

#[tokio::test]
async fn doctor_says_which_stream_was_lost() {
    let server = server_with_model().await;
    connect(&server).await.api("STREAM.DELETE.DARKROOM_DLQ", &Value::Null).await.unwrap();
    let finished = darkroom_at(&server.url(), &["--json", "doctor"]).await;
    expect_problem(&finished, "topology", &["DARKROOM_DLQ", "darkroom setup"]);
    assert!(!finished.stdout.contains("DARKROOM_EV"), "what is well must not be named\n{finished}");
}

#[tokio::test]
async fn doctor_says_that_the_store_cannot_be_written() {
    let (server, directory) = (server_with_model().await, tempfile::tempdir().unwrap());
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    for store in [format!("file://{}/below", file.display()), "nonsense".to_owned(), "s3x://bucket".to_owned()] {
        let finished = darkroom_at(&server.url(), &["--json", "doctor", "--store", &store]).await;
        expect_problem(&finished, "store", &[store.trim_start_matches("file://")]);
    }
}

/// The model that comes along with one file replaced.
fn broken_model(part: &str, file: &str, contents: Option<&[u8]>) -> TempDir {
    let (directory, good) = (tempfile::tempdir().unwrap(), model_directory());
    let broken = directory.path().join("shapes");
    fs::create_dir_all(broken.join(part)).unwrap();
    for (from, to) in [(good.clone(), broken.clone()), (good.join(part), broken.join(part))] {
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let to = to.join(entry.file_name());
            if to.exists() || (entry.file_name() == file && to.starts_with(broken.join(part))) {
                continue;
            }
            symlink(entry.path(), to).unwrap();
        }
    }
    if let Some(contents) = contents {
        fs::write(broken.join(part).join(file), contents).unwrap();
    }
    directory
}

#[tokio::test]
async fn doctor_and_render_say_what_is_wrong_with_a_model() {
    let server = server_with_model().await;
    let empty = tempfile::tempdir().unwrap();
    fs::create_dir(empty.path().join("shapes")).unwrap();
    let weights = "diffusion_pytorch_model.safetensors";
    let whole = fs::read(model_directory().join("unet").join(weights)).unwrap();
    let request = empty.path().join("request.json");
    fs::write(&request, r#"{"prompt": "a red circle"}"#).unwrap();

    let cases: [(TempDir, &[&str]); 5] = [
        (empty, &["model_index.json", "does not exist"]),
        (broken_model("unet", weights, Some(&whole[..whole.len() / 2])), &["unet", weights, "not a complete"]),
        (broken_model("unet", weights, None), &["unet", "does not exist"]),
        (broken_model("vae", "config.json", Some(b"{")), &["vae/config.json", "JSON"]),
        (broken_model("tokenizer", "tokenizer.json", Some(b"[]")), &["tokenizer.json"]),
    ];
    for (directory, words) in &cases {
        let model = directory.path().join("shapes");
        let finished = darkroom_at(&server.url(), &["--json", "doctor", "--model", text(&model)]).await;
        expect_problem(&finished, "model", words);
        let out = directory.path().join("image.png");
        let render =
            ["render", "--model", text(&model), "--request", text(&request), "--out", text(&out), "--device", "cpu"];
        expect(&darkroom(render).await, 1, &[], words);
        assert!(!out.exists());
    }
}

#[tokio::test]
async fn doctor_warns_of_requests_that_nobody_takes() {
    let server = server_with_model().await;
    darkroom_at(&server.url(), &["submit", "a red circle"]).await.expect_success();
    let finished = darkroom_at(&server.url(), &["doctor"]).await;
    expect(&finished, 0, &["1 requests wait", "darkroom-generate"], &[]);

    let bus = connect(&server).await;
    bus.publish("darkroom.req.nobody.normal.any.me", Default::default(), "{}".into()).await.unwrap();
    let finished = darkroom_at(&server.url(), &["doctor"]).await;
    expect(&finished, 0, &["1 requests that no consumer serves", "darkroom-deadletter"], &[]);
}

#[tokio::test]
async fn submit_takes_the_only_model_and_says_which_there_are_for_an_unknown_one() {
    let server = NatsServer::start().await;
    darkroom_at(&server.url(), &["setup"]).await.expect_success();
    expect(&darkroom_at(&server.url(), &["submit", "x"]).await, 6, &[], &["darkroom setup --model"]);

    let model = model_directory();
    darkroom_at(&server.url(), &["setup", "--model", text(&model)]).await.expect_success();
    let submitted = darkroom_at(&server.url(), &["submit", "a red circle"]).await.expect_success();
    assert_eq!(submitted.trim().len(), 36, "a UUID is expected: {submitted}");
    let unknown = darkroom_at(&server.url(), &["submit", "x", "--model", "painter"]).await;
    expect(&unknown, 6, &[], &["painter", "shapes"]);
    assert_eq!(unknown.stdout, "");
}

#[tokio::test]
async fn submit_reports_all_violations_at_once_and_publishes_nothing() {
    let server = server_with_model().await;
    let wrong = ["submit", "", "--width", "7", "--steps", "0", "--scheduler", "magic", "--format", "gif"];
    let fields = ["prompt", "width", "num_inference_steps", "scheduler", "output_format"];
    let finished = darkroom_at(&server.url(), &wrong).await;
    expect(&finished, 5, &[], &fields);
    assert_eq!(finished.stdout, "", "no id of a job that does not exist");

    let finished = darkroom_at(&server.url(), &[&["--json"], &wrong[..]].concat()).await;
    expect(&finished, 5, &[], &fields);
    let error = &json_lines(&finished.stderr)[0]["error"];
    assert_eq!(error["code"], "invalid_request", "{finished}");
    let bus = connect(&server).await;
    assert_eq!(bus.api("STREAM.INFO.DARKROOM_REQ", &Value::Null).await.unwrap()["state"]["messages"], 0);
    assert_eq!(darkroom_at(&server.url(), &["list"]).await.expect_success(), "");
}

#[tokio::test]
async fn the_same_submission_again_changes_nothing_and_another_under_its_id_is_a_conflict() {
    let server = server_with_model().await;
    let submit = |prompt| ["submit", prompt, "--job", "order-1", "--tenant", "me"];
    for _ in 0..2 {
        assert_eq!(darkroom_at(&server.url(), &submit("a red circle")).await.expect_success(), "order-1\n");
    }
    let conflict = darkroom_at(&server.url(), &[&["--json"], &submit("a blue circle")[..]].concat()).await;
    expect(&conflict, 7, &[], &["order-1"]);
    assert_eq!(json_lines(&conflict.stderr)[0]["error"]["code"], "job_id_conflict");
    // Another tenant's ids are its own.
    darkroom_at(&server.url(), &["submit", "a blue circle", "--job", "order-1"]).await.expect_success();
    let bus = connect(&server).await;
    assert_eq!(bus.api("STREAM.INFO.DARKROOM_REQ", &Value::Null).await.unwrap()["state"]["messages"], 2);
}

#[tokio::test]
async fn a_job_can_be_looked_at_before_any_worker_has_seen_it() {
    let server = server_with_model().await;
    let url = server.url();
    darkroom_at(&url, &["submit", "a red circle", "--job", "early", "--tenant", "me"]).await.expect_success();

    let status = darkroom_at(&url, &["--json", "status", "early", "--tenant", "me"]).await.expect_success();
    let status = &json_lines(&status)[0];
    assert_eq!((&status["status"], &status["model"]), (&json!("pending"), &json!("shapes")));
    let listed = darkroom_at(&url, &["--json", "list", "--tenant", "me"]).await.expect_success();
    assert_eq!(json_lines(&listed)[0]["job"], "early");
    assert_eq!(darkroom_at(&url, &["--json", "list", "--tenant", "you"]).await.expect_success(), "");
    expect(&darkroom_at(&url, &["status", "early"]).await, 6, &[], &["early", "default"]);
    expect(&darkroom_at(&url, &["watch", "late"]).await, 6, &[], &["late"]);

    let models = darkroom_at(&url, &["--json", "models"]).await.expect_success();
    assert_eq!((&json_lines(&models)[0]["name"], &json_lines(&models)[0]["pending"]), (&json!("shapes"), &json!(1)));
}

#[tokio::test]
async fn waiting_ends_at_its_limit_and_the_job_goes_on() {
    let server = server_with_model().await;
    let submit = ["submit", "a red circle", "--job", "slow", "--watch", "--timeout", "50ms"];
    expect(&darkroom_at(&server.url(), &submit).await, 9, &["slow"], &["50ms"]);
    darkroom_at(&server.url(), &["status", "slow"]).await.expect_success();
}

#[tokio::test]
async fn no_server_and_wrong_command_lines_have_exit_codes_of_their_own() {
    let url = format!("nats://me:secret@127.0.0.1:{}", free_port_pair());
    for arguments in [&["submit", "x"][..], &["list"], &["models"], &["status", "x"], &["watch", "x"], &["setup"]] {
        let finished = darkroom_at(&url, arguments).await;
        expect(&finished, 4, &[], &["no NATS server answers"]);
        assert!(!finished.stderr.contains("secret"), "{finished}");
    }
    let wrong: [&[&str]; 6] = [
        &[],
        &["paint"],
        &["submit"],
        &["submit", "x", "--job", "not an id"],
        &["submit", "x", "--priority", "urgent"],
        &["submit", "x", "--seed", "many"],
    ];
    for arguments in wrong {
        expect(&darkroom(arguments).await, 2, &[], &[]);
    }
    expect(&darkroom(["--help"]).await, 0, &["Exit codes", "doctor"], &[]);
}

#[tokio::test]
async fn render_reports_each_violation_on_its_own_line() {
    let (directory, model) = (tempfile::tempdir().unwrap(), model_directory());
    let (request, out) = (directory.path().join("request.json"), directory.path().join("image.png"));
    let render = || darkroom(["render", "--model", text(&model), "--request", text(&request), "--out", text(&out)]);

    expect(&render().await, 1, &[], &["request.json", "No such file"]);
    fs::write(&request, "a red circle").unwrap();
    expect(&render().await, 5, &[], &["not JSON"]);
    fs::write(&request, r#"{"prompt": "", "width": 7, "steps": 3, "seed": -1}"#).unwrap();
    let finished = render().await;
    expect(&finished, 5, &[], &[]);
    for field in ["prompt is", "width is", "steps is", "seed is"] {
        assert!(finished.stderr.lines().any(|line| line.trim_start().starts_with(field)), "{field}\n{finished}");
    }
    assert!(!out.exists());
}

#[tokio::test]
async fn profile_tells_time_and_memory_of_each_stage_and_keeps_them() {
    let (directory, model) = (tempfile::tempdir().unwrap(), model_directory());
    let kept = directory.path().join("costs.json");
    let profile = |images: &'static str, extra: &'static [&'static str]| {
        let measured = ["--size", "128x64", "--images", images, "--turns", "2", "--device", "cpu"];
        let files = ["profile", "--model", text(&model), "--costs", text(&kept)];
        darkroom(extra.iter().chain(&files).chain(&measured).map(ToString::to_string).collect::<Vec<_>>())
    };
    let said = profile("1,3", &["--json"]).await.expect_success();
    let said: Value = serde_json::from_str(&said).unwrap();
    let table: Value = serde_json::from_slice(&fs::read(&kept).unwrap()).unwrap();
    for table in [&said, &table] {
        let stages =
            [(&table["steps"][0], json!(1)), (&table["steps"][1], json!(3)), (&table["decode"][0], json!(null))];
        for (stage, images) in stages {
            assert_eq!((&stage["width"], &stage["height"], &stage["images"]), (&json!(128), &json!(64), &images));
            assert!(stage["ms"].as_f64().unwrap() > 0.0, "{stage}");
            // The picture alone, and what the process has in all.
            let bytes = stage["bytes"].as_u64();
            let plausible = 3 * 4 * 128 * 64..said["resident_peak_bytes"].as_u64().unwrap_or(u64::MAX);
            assert!(bytes.map_or(!cfg!(target_os = "linux"), |bytes| plausible.contains(&bytes)), "{stage}");
        }
    }
    let said = profile("1", &[]).await.expect_success();
    assert!(said.contains("128x64: encode ") && said.contains("step of 1 "), "{said}");
    assert!(!cfg!(target_os = "linux") || said.contains(" ms and "), "{said}");
}

#[tokio::test]
async fn render_makes_the_same_bytes_each_time_and_numbers_several_images() {
    let (directory, model) = (tempfile::tempdir().unwrap(), model_directory());
    let request = directory.path().join("request.json");
    let body = json!({
        "prompt": "a red circle", "seed": 7, "num_images": 2, "num_inference_steps": 2, "width": 64, "height": 64,
        "priority": "high"
    });
    fs::write(&request, body.to_string()).unwrap();
    for name in ["one", "two"] {
        let out = directory.path().join(name).with_extension("png");
        let render =
            ["render", "--model", text(&model), "--request", text(&request), "--out", text(&out), "--device", "cpu"];
        let said = darkroom(render).await.expect_success();
        assert_eq!(said.lines().count(), 2, "{said}");
    }
    let bytes = |name: &str| fs::read(directory.path().join(name)).unwrap();
    assert_eq!(bytes("one-0.png"), bytes("two-0.png"));
    assert_eq!(bytes("one-1.png"), bytes("two-1.png"));
    assert_ne!(bytes("one-0.png"), bytes("one-1.png"), "each image has a seed of its own");
    assert!(bytes("one-0.png").starts_with(b"\x89PNG"));
}

#[tokio::test]
async fn an_image_does_not_depend_on_the_number_of_threads() {
    let directory = tempfile::tempdir().unwrap();
    let request = directory.path().join("request.json");
    let body = json!({ "prompt": "a red circle", "seed": 7, "num_inference_steps": 3, "width": 128, "height": 96 });
    fs::write(&request, body.to_string()).unwrap();
    let mut images = Vec::new();
    for threads in ["1", "2", "4"] {
        let out = directory.path().join(threads).with_extension("png");
        let mut command = Command::new(program("darkroom"));
        command
            .arg("render")
            .arg("--model")
            .arg(model_directory())
            .arg("--request")
            .arg(&request)
            .arg("--out")
            .arg(&out);
        let finished = run(command.env("RAYON_NUM_THREADS", threads), PATIENCE).await;
        assert!(finished.status.success(), "{finished}");
        images.push(fs::read(out).unwrap());
    }
    assert!(images.iter().all(|image| *image == images[0]));
}

#[tokio::test]
async fn the_schemas_in_the_repository_are_what_the_program_writes() {
    let directory = tempfile::tempdir().unwrap();
    darkroom(["schema", "--dir", text(directory.path())]).await.expect_success();
    let names = |directory: &Path| {
        let mut names: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let committed = checkout().join("nats/schema");
    assert_eq!(names(directory.path()), names(&committed));
    for name in names(&committed) {
        let (written, committed) = (directory.path().join(&name), committed.join(&name));
        let equal = fs::read(written).unwrap() == fs::read(&committed).unwrap();
        assert!(equal, "{} is out of date: run `darkroom schema --dir nats/schema`", committed.display());
    }
}

#[tokio::test]
async fn a_reader_that_goes_away_is_no_error() {
    let server = server_with_model().await;
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(program("darkroom"));
    command.args(["--nats", &server.url(), "models"]).stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped());
    let finished = command.output().unwrap();
    assert!(finished.status.success(), "{finished:?}");
    assert_eq!(String::from_utf8_lossy(&finished.stderr), "");
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
    let done = darkroom_at(&nats, &arguments).await;
    assert!(done.status.success(), "{done}");
    assert_eq!(done.stdout.lines().collect::<Vec<_>>(), ["ring", &out]);
    assert!(done.stderr.contains("step 3/3"), "{done}");
    let picture = fs::read(&out).unwrap();

    // The same again follows the job that there is.
    let again = directory.path().join("again.png").display().to_string();
    let mut arguments = submit.to_vec();
    arguments.extend(["--out", &again]);
    assert!(darkroom_at(&nats, &arguments).await.status.success());
    assert_eq!(fs::read(&again).unwrap(), picture);

    let watched = darkroom_at(&nats, &["--json", "watch", "ring"]).await;
    let kinds: Vec<Value> = json_lines(&watched.stdout).into_iter().map(|line| line["type"].clone()).collect();
    assert_eq!(kinds, ["darkroom.job.accepted", "darkroom.job.started", "darkroom.job.completed"]);
    let listed = json_lines(&darkroom_at(&nats, &["--json", "list"]).await.stdout);
    assert_eq!((&listed[0]["job"], &listed[0]["status"]), (&json!("ring"), &json!("completed")));
    let models = json_lines(&darkroom_at(&nats, &["--json", "models"]).await.stdout);
    assert_eq!((&models[0]["name"], models.len()), (&json!("shapes"), 1));

    // And the engine alone makes the same bytes.
    let request = directory.path().join("request.json");
    let body = json!({"prompt": "a ring", "num_inference_steps": 3, "seed": 1, "width": 128, "height": 128});
    fs::write(&request, body.to_string()).unwrap();
    let alone = directory.path().join("alone.png");
    let latents = directory.path().join("latents.safetensors");
    let render = render_alone(&request, &alone, &["--latents", &latents.display().to_string()]).await;
    assert!(render.status.success(), "{render}");
    assert_eq!(fs::read(&alone).unwrap(), picture);
    assert!(latents.metadata().unwrap().len() > 4 * 16 * 16 * 4);
}

async fn render_alone(request: &Path, out: &Path, more: &[&str]) -> Finished {
    let mut command = Command::new(program("darkroom"));
    command.arg("render").arg("--model").arg(model_directory()).arg("--request").arg(request).arg("--out").arg(out);
    run(command.args(more), PATIENCE).await
}
