//! `darkroom up`: workers only while there is work, one line for scripts, and nothing left behind.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::stack::{PATIENCE, model_directory, program};
use crate::support::process::{Background, run};
use crate::support::{eventually, nats};

/// The command of a platform on these ports.
pub(crate) fn up(data: &Path, port: u16, http: u16) -> Command {
    let mut command = Command::new(program("darkroom"));
    command
        .args(["up", "--idle", "1s", "--nats-port", &port.to_string(), "--http-port", &http.to_string(), "--data"])
        .arg(data);
    command.arg("--model").arg(model_directory()).arg("--nats-server").arg(nats::program());
    command
}

/// Processes whose command line names `port`: all that one `up` started.
fn processes(port: u16, name: &str) -> usize {
    let address = format!("127.0.0.1:{port}");
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(name) && line.contains(&address))
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_runs_only_while_there_is_work_and_nothing_stays_behind() {
    let data = tempfile::tempdir().unwrap();
    let port = nats::free_port_pair();
    let http = nats::free_port_pair();
    let mut platform = Background::start(&mut up(data.path(), port, http));
    let line = platform.wait_for_line(|line| line.contains("ready"), PATIENCE).await;
    let ready: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(ready["ready"], true);
    assert_eq!(ready["nats"], format!("nats://127.0.0.1:{port}"));
    assert_eq!(ready["websocket"], format!("ws://127.0.0.1:{}", port + 1));
    assert_eq!(ready["gateway"], format!("http://127.0.0.1:{http}"));
    let models = eventually("the gateway", PATIENCE, async || {
        reqwest::get(format!("http://127.0.0.1:{http}/v1/models")).await.ok()?.text().await.ok()
    })
    .await;
    assert!(models.contains("\"shapes\""), "nobody needs a key here: {models}");
    assert!(ready["store"].as_str().unwrap().starts_with("file:///"));
    assert_eq!(processes(port, "darkroom-generate"), 0, "nothing is queued, so nothing runs");

    for job in ["one", "two"] {
        let mut submit = Command::new(program("darkroom"));
        submit.args(["--nats", ready["nats"].as_str().unwrap(), "submit", "a ring", "--steps", "2", "--watch"]);
        run(submit.args(["--job", job]), PATIENCE).await.expect_success();
        eventually("the worker's end", PATIENCE, async || (processes(port, "darkroom-generate") == 0).then_some(()))
            .await;
    }

    // A second one on the same ports says so, and leaves the first alone.
    let second = run(&mut up(&data.path().join("second"), port, http), PATIENCE).await;
    assert_eq!(second.status.code(), Some(1));
    assert!(second.stderr.contains(&format!("port {port} is in use")), "{second}");

    let mut submit = Command::new(program("darkroom"));
    submit.args(["--nats", ready["nats"].as_str().unwrap(), "submit", "a ring", "--steps", "100"]);
    run(&mut submit, PATIENCE).await.expect_success();
    eventually("a worker", PATIENCE, async || (processes(port, "darkroom-generate") == 1).then_some(())).await;
    platform.terminate();
    assert!(platform.wait(Duration::from_secs(60)).await.success(), "{}", platform.stderr());
    for name in ["darkroom-generate", "darkroom-deadletter", "darkroom-gateway", "darkroom-webhook", "nats"] {
        assert_eq!(processes(port, name), 0, "{name} is left behind");
    }

    // What was not finished is still there, and the next `up` does it.
    let platform = Background::start(&mut up(data.path(), port, http));
    platform.wait_for_line(|line| line.contains("ready"), PATIENCE).await;
    let nats = format!("nats://127.0.0.1:{port}");
    eventually("the end of the third job", PATIENCE, async || {
        let list = run(Command::new(program("darkroom")).args(["--nats", &nats, "--json", "list"]), PATIENCE).await;
        let done = list.stdout.lines().filter(|line| line.contains("\"status\":\"completed\"")).count();
        (done == 3).then_some(())
    })
    .await;
}
