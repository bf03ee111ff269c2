//! The scaler as KEDA asks it, over gRPC and HTTP, while real jobs run.

use std::process::Command;

use darkroom::job::Status;
use serde_json::{Value, json};

use crate::stack::{PATIENCE, REQUESTS, Stack, program, started};
use crate::support::http::get;
use crate::support::process::{Background, run};
use crate::support::{checkout, eventually, nats, python};

const JOBS: usize = 24;

struct Scaler {
    process: Background,
    grpc: String,
    http: String,
    metrics: String,
}

async fn scaler(stack: &Stack) -> Scaler {
    let (grpc, other) = (nats::free_port_pair(), nats::free_port_pair());
    let address = |port: u16| format!("127.0.0.1:{port}");
    let mut command = Command::new(program("darkroom-scaler"));
    command.args(["--nats", &stack.nats.url(), "--provisioning", "0s", "--listen", &address(grpc)]).args([
        "--http-listen",
        &address(other),
        "--metrics-listen",
        &address(other + 1),
    ]);
    let process = Background::start(&mut command);
    process.wait_for_log(|line| line.contains("scaler.http"), PATIENCE).await;
    Scaler {
        process,
        grpc: address(grpc),
        http: format!("http://{}", address(other)),
        metrics: format!("http://{}", address(other + 1)),
    }
}

fn keda(scaler: &Scaler, metadata: &[&str]) -> Command {
    let mut command = python::client("keda.py", python::GRPC);
    command.arg(&scaler.grpc).arg(checkout().join("functions/scaler/externalscaler.proto"));
    for entry in metadata {
        command.args(["--metadata", entry]);
    }
    command
}

async fn once(scaler: &Scaler, metadata: &[&str]) -> Value {
    let finished = run(keda(scaler, metadata).arg("--once"), PATIENCE).await;
    serde_json::from_str(finished.stdout.trim()).unwrap_or_else(|_| panic!("{finished}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_go_from_none_to_many_to_none_while_jobs_run() {
    let stack = Stack::start().await;
    let scaler = scaler(&stack).await;
    let spot = ["model=shapes", "capacity=spot", "workersMax=3", "targetWait=1s"];
    assert_eq!(once(&scaler, &spot).await, json!({"metric": 0.0, "target": 1.0, "active": false}));

    let mut command = keda(&scaler, &spot);
    command.arg("--run").arg(program("darkroom-generate")).args(["--nats", &stack.nats.url()]);
    command.args(["--store", &stack.store_url(), "--capacity", "spot", "--exit-when-idle", "2s", "--batch", "2"]);
    command.arg("--model").arg(checkout().join("local/models/shapes"));
    let mut cluster = Background::start(&mut command);
    cluster.wait_for_line(|line| line.contains(r#""pushed": false"#), PATIENCE).await;
    let body = |steps: u32| json!({"prompt": "a ring", "num_inference_steps": steps, "width": 64, "height": 64});
    for job in 0..JOBS {
        stack.request(&format!("job-{job}"), &body(100)).await;
    }
    // One that must not be interrupted: none of these workers may take it.
    let uninterrupted = REQUESTS.replace(".any.", ".ondemand.");
    stack.publish(&uninterrupted, Some("mine"), serde_json::to_vec(&body(2)).unwrap()).await;
    assert!(cluster.wait(PATIENCE).await.success(), "{}\n{}", cluster.stdout(), cluster.stderr());

    let said: Vec<Value> = cluster.stdout().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let numbers = |name: &str| said.iter().filter_map(|line| line[name].as_u64()).collect::<Vec<_>>();
    assert_eq!((numbers("wanted").first(), numbers("wanted").last()), (Some(&0), Some(&0)), "{said:?}");
    assert_eq!(numbers("running").iter().max(), Some(&3), "{said:?}");
    let pushed: Vec<bool> = said.iter().filter_map(|line| line["pushed"].as_bool()).collect();
    assert!(pushed.starts_with(&[false, true]), "{said:?}");
    assert!(numbers("exit").iter().all(|status| *status == 0), "nobody is ended from outside: {said:?}");
    for job in 0..JOBS {
        assert_eq!(stack.end_of(&format!("job-{job}")).await.state.attempts, 1, "job-{job}");
    }

    // Over HTTP the other capacity is asked for the first time: now there is somebody for the job that waits.
    let answer: Value =
        serde_json::from_slice(&get(&format!("{}/v1/scale/shapes/on-demand", scaler.http)).await.body).unwrap();
    assert_eq!(answer["workers"], 1, "{answer}");
    let metrics = String::from_utf8(get(&format!("{}/metrics", scaler.metrics)).await.body.to_vec()).unwrap();
    let waits = r#"diffusion_queue_size{model="shapes",pool="ondemand",priority="normal"} 1"#;
    assert!(metrics.contains(waits), "{metrics}");
    assert!(metrics.contains(r#"darkroom_workers_wanted{capacity="spot",model="shapes"} 0"#), "{metrics}");
    assert_eq!(get(&format!("{}/health", scaler.metrics)).await.status, 200);
    scaler.process.terminate();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_queue_wants_nobody_a_hint_wants_one_and_mistakes_are_named() {
    let stack = Stack::start().await;
    let scaler = scaler(&stack).await;
    let on_demand = ["model=shapes", "capacity=on-demand"];
    let wants = async |number: f64| {
        eventually(&format!("{number} workers"), PATIENCE, async || {
            (once(&scaler, &on_demand).await["metric"] == number).then_some(())
        })
        .await;
    };
    let pause = async |until: &str| {
        let api = "CONSUMER.PAUSE.DARKROOM_REQ.shapes-normal-any";
        stack.bus.api(api, &json!({ "pause_until": until })).await.unwrap();
    };
    pause("2100-01-01T00:00:00Z").await;
    stack.request("waits", &json!({"prompt": "a ring"})).await;
    eventually("the request in the queue", PATIENCE, async || {
        let text = get(&format!("{}/metrics", scaler.metrics)).await.body.to_vec();
        String::from_utf8(text).unwrap().contains(r#"pool="any",priority="normal"} 1"#).then_some(())
    })
    .await;
    wants(0.0).await;
    stack.bus.client.publish("darkroom.ctl.wake.shapes", "".into()).await.unwrap();
    wants(1.0).await;
    pause("2000-01-01T00:00:00Z").await;
    wants(1.0).await;

    for (metadata, code, expected) in [
        (&["model=shapes"][..], "INVALID_ARGUMENT", "capacity is missing"),
        (&["model=shapes", "capacity=cheap"], "INVALID_ARGUMENT", "must be spot or on-demand"),
        (&["model=nobody", "capacity=spot"], "NOT_FOUND", "run `darkroom setup`"),
        (&["stream=DARKROOM_HOOK", "consumer=nobody"], "UNAVAILABLE", "DARKROOM_HOOK/nobody"),
    ] {
        let answer = once(&scaler, metadata).await;
        assert_eq!(answer["code"], code, "{answer}");
        assert!(answer["details"].as_str().unwrap().contains(expected), "{answer}");
    }
    // Functions are scaled by what their consumer has still to settle.
    let webhooks = ["stream=DARKROOM_HOOK", "consumer=webhook", "messagesPerReplica=20"];
    assert_eq!(once(&scaler, &webhooks).await, json!({"metric": 0.0, "target": 20.0, "active": false}));
    let hook = stack.publish("darkroom.hook.due.t.job", None, "{}").await;
    assert_eq!(hook, 1);
    assert_eq!(once(&scaler, &webhooks).await, json!({"metric": 1.0, "target": 20.0, "active": true}));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_idle_workers_as_many_stay_as_the_floor_says() {
    for planned in [true, false] {
        let stack = Stack::start().await;
        if planned {
            let plan = json!({"model": "shapes", "hours": vec![json!({"workers_min": 1, "workers_max": 9}); 168]});
            stack.publish("$KV.darkroom_scale.plan.shapes", None, plan.to_string()).await;
        }
        let workers_min = if planned { "0" } else { "1" };
        let worker = async |name: &str, capacity: &str| {
            let mut command = stack.worker_command();
            command.args(["--exit-when-idle", "2s", "--workers-min", workers_min, "--worker", name]);
            started(command.args(["--capacity", capacity])).await
        };
        let (mut first, mut spot) = (worker("first", "on-demand").await, worker("spot", "spot").await);
        let mut second = worker("second", "on-demand").await;
        assert!(second.wait(PATIENCE).await.success());
        // They were idle for longer.
        assert!(first.is_running(), "planned: {planned}\n{}", first.stderr());
        if planned {
            assert!(spot.wait(PATIENCE).await.success(), "a plan speaks of all");
        } else {
            assert!(spot.is_running(), "a setting speaks of its capacity\n{}", spot.stderr());
            spot.terminate();
            assert!(spot.wait(PATIENCE).await.success());
        }
        stack.request("job", &json!({"prompt": "a ring", "num_inference_steps": 2, "width": 64, "height": 64})).await;
        assert_eq!(stack.end_of("job").await.state.status, Status::Completed);
        first.terminate();
        assert!(first.wait(PATIENCE).await.success());
    }
}
