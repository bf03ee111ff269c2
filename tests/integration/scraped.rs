//! A real Prometheus scrapes the functions while jobs run, and what the dashboards ask has answers.

use std::process::Command;
use std::time::Duration;

use serde_json::json;

use crate::stack::{PATIENCE, Stack, program};
use crate::support::process::{Background, run};
use crate::support::{checkout, nats};

/// More jobs than are made while Prometheus looks; the rest ends with the test.
const JOBS: usize = 400;

#[tokio::test(flavor = "multi_thread")]
async fn what_the_dashboards_ask_of_a_running_stack_has_answers() {
    let stack = Stack::start().await;
    let (mut functions, mut url) = (Vec::new(), String::new());
    let mut scrape = Command::new(checkout().join("infra/check-scrape"));
    // The first compilation of rules and the discovery of targets take their time on a busy machine.
    scrape.args(["--timeout", "150", "--has", "prices"]).env("PYTHONDONTWRITEBYTECODE", "1");
    for name in ["darkroom-gateway", "darkroom-webhook", "darkroom-deadletter", "darkroom-scaler", "darkroom-generate"]
    {
        let (port, other) = (nats::free_port_pair(), nats::free_port_pair());
        let mut command = if name == "darkroom-generate" {
            let mut worker = stack.worker_command();
            worker.args(["--price-per-hour", "1.5", "--capacity", "spot"]);
            worker
        } else {
            let mut command = Command::new(program(name));
            command.args(["--nats", &stack.nats.url()]);
            command
        };
        match name {
            "darkroom-gateway" => {
                command.args(["--http-listen", &format!("127.0.0.1:{other}"), "--open-tenant", "t"]);
            }
            "darkroom-scaler" => {
                command.args(["--listen", &format!("127.0.0.1:{other}")]);
            }
            _ => {}
        }
        command.args(["--metrics-listen", &format!("127.0.0.1:{port}")]);
        let function = Background::start(&mut command);
        function.wait_for_log(|line| line.contains("metrics.listen"), PATIENCE).await;
        scrape.args(["--target", &format!("{name}=127.0.0.1:{port}")]);
        if name == "darkroom-gateway" {
            function.wait_for_log(|line| line.contains("gateway.http"), PATIENCE).await;
            url = format!("http://127.0.0.1:{other}/v1/jobs");
        }
        functions.push(function);
    }
    // Those who ask the gateway are told when their jobs will begin.
    let asking = tokio::spawn(async move {
        let body = json!({"prompt": "a ring", "num_inference_steps": 2, "width": 64, "height": 64, "priority": "high"});
        let mut ticks = tokio::time::interval(Duration::from_millis(500));
        loop {
            ticks.tick().await;
            let asked = reqwest::Client::new().post(&url).header("content-type", "application/json");
            let _ = asked.body(body.to_string()).send().await;
        }
    });
    for job in 0..JOBS {
        let body = json!({"prompt": "a ring", "num_inference_steps": 20 + job % 3, "width": 64, "height": 64});
        stack.request(&format!("job-{job}"), &body).await;
    }
    let finished = run(&mut scrape, Duration::from_secs(240)).await;
    asking.abort();
    println!("{}", finished.expect_success());
}
