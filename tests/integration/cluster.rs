//! Three servers: three copies of everything, and one of them may go.

use std::process::Command;

use darkroom::shell::bus;
use darkroom::shell::config::BusOptions;
use serde_json::Value;

use crate::stack::{PATIENCE, model_directory, program, started};
use crate::support::nats::NatsServer;
use crate::support::process::run;

fn darkroom(url: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program("darkroom"));
    command.args(["--nats", url]).args(arguments);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_done_although_one_of_three_servers_is_lost() {
    let mut nats = NatsServer::start_cluster().await;
    let (url, model) = (nats.url(), model_directory().display().to_string());
    let setup = ["setup", "--replicas", "3", "--model", &model];
    run(&mut darkroom(&url, &setup), PATIENCE).await.expect_success();
    let checked = [&setup[..], &["--check"]].concat();
    run(&mut darkroom(&url, &checked), PATIENCE).await.expect_success();
    // Without a number nothing is said of copies, so that they stay.
    run(&mut darkroom(&url, &["setup", "--model", &model, "--check"]), PATIENCE).await.expect_success();

    let bus = bus::connect(&BusOptions::open(&url), "test").await.unwrap();
    for stream in ["DARKROOM_REQ", "DARKROOM_EV", "DARKROOM_PROG", "DARKROOM_DLQ", "DARKROOM_ADV", "KV_darkroom_jobs"] {
        let info = bus.api(&format!("STREAM.INFO.{stream}"), &Value::Null).await.unwrap();
        assert_eq!(info["cluster"]["replicas"].as_array().map(Vec::len), Some(2), "{stream}: {info}");
    }
    let consumer = bus.api("CONSUMER.INFO.DARKROOM_REQ.shapes-normal-any", &Value::Null).await.unwrap();
    assert_eq!(consumer["cluster"]["replicas"].as_array().map(Vec::len), Some(2), "{consumer}");

    let objects = tempfile::tempdir().unwrap();
    let mut worker = Command::new(program("darkroom-generate"));
    worker.args(["--nats", &url, "--model", &model, "--store"]).arg(format!("file://{}", objects.path().display()));
    let submit = ["submit", "a red circle", "--job", "one", "--steps", "3"];
    run(&mut darkroom(&url, &submit), PATIENCE).await.expect_success();
    let _worker = started(&mut worker).await;
    nats.kill_first();
    run(&mut darkroom(&url, &["watch", "one", "--timeout", "150s"]), PATIENCE).await.expect_success();
    // And what comes after is taken too.
    let submit = ["submit", "a blue ring", "--job", "two", "--steps", "2", "--watch", "--timeout", "150s"];
    run(&mut darkroom(&url, &submit), PATIENCE).await.expect_success();
}

#[tokio::test]
async fn more_copies_than_servers_are_refused_with_the_reason() {
    let nats = NatsServer::start_one().await;
    let refused = run(&mut darkroom(&nats.url(), &["setup", "--replicas", "3"]), PATIENCE).await;
    assert_eq!(refused.status.code(), Some(4), "{refused}");
    assert!(refused.stderr.contains("replicas > 1 not supported in non-clustered mode"), "{refused}");
}
