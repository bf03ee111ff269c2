//! Dead letters on the command line: looked at, published again, dropped.

use std::process::Command;

use async_nats::HeaderMap;
use darkroom::job::Status;
use darkroom::shell::client;
use darkroom::shell::deadletter::DeadLetter;
use serde_json::{Value, json};

use crate::stack::{PATIENCE, Stack, program};
use crate::support::nats::NatsServer;
use crate::support::process::{Finished, run};

async fn dlq(url: &str, arguments: &[&str]) -> Finished {
    let mut command = Command::new(program("darkroom"));
    run(command.args(["--nats", url, "--json", "dlq"]).args(arguments), PATIENCE).await
}

fn lines(finished: &Finished) -> Vec<Value> {
    assert!(finished.status.success(), "{finished}");
    finished.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn numbers(finished: &Finished) -> Vec<u64> {
    lines(finished).iter().map(|line| line["number"].as_u64().unwrap()).collect()
}

fn letter(tenant: &str, model: &str, job: &str, code: &str, sequence: u64) -> DeadLetter {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", format!("{tenant}.{job}"));
    headers.insert("traceparent", "00-1-2-01");
    DeadLetter {
        job: job.parse().unwrap(),
        subject: format!("darkroom.req.{model}.normal.any.{tenant}"),
        headers: Some(headers),
        body: serde_json::to_vec(&json!({"prompt": "a ring", "seed": sequence})).unwrap().into(),
        stream_sequence: sequence,
        attempts: 3,
        code: code.to_owned(),
        message: "the disk is full".to_owned(),
        worker: Some("w1".to_owned()),
    }
}

async fn with_letters() -> Stack {
    let stack = Stack::start().await;
    for letter in [
        letter("t", "shapes", "a", "store_failed", 1),
        letter("t", "shapes", "b", "not_finite", 2),
        letter("u", "shapes", "a", "store_failed", 3),
        letter("t", "other", "c", "unserved", 4),
    ] {
        letter.send(&stack.bus).await.unwrap();
    }
    stack
}

async fn status(stack: &Stack, tenant: &str, job: &str) -> Option<Status> {
    let record = client::status(&stack.bus, &tenant.parse().unwrap(), &job.parse().unwrap()).await.unwrap();
    record.map(|record| record.state.status)
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_newest_first_and_filtered() {
    let stack = with_letters().await;
    let url = stack.nats.url();
    for (arguments, expected) in [
        (&["list"][..], &[4, 3, 2, 1][..]),
        (&["list", "--limit", "2"], &[4, 3]),
        (&["list", "--tenant", "t"], &[4, 2, 1]),
        (&["list", "--model", "other"], &[4]),
        (&["list", "--code", "store_failed"], &[3, 1]),
        (&["list", "--tenant", "t", "--model", "shapes", "--code", "store_failed"], &[1]),
        (&["list", "--tenant", "nobody"], &[]),
    ] {
        assert_eq!(numbers(&dlq(&url, arguments).await), expected, "{arguments:?}");
    }
    // More than one page.
    for sequence in 5..200 {
        letter("v", "shapes", &format!("j{sequence}"), "store_failed", sequence).send(&stack.bus).await.unwrap();
    }
    assert_eq!(numbers(&dlq(&url, &["list", "--limit", "1000"]).await), (1..200).rev().collect::<Vec<u64>>());
    let table = run(Command::new(program("darkroom")).args(["--nats", &url, "dlq", "list"]), PATIENCE).await;
    assert_eq!(table.expect_success().lines().count(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_is_shown_by_its_number_or_its_job() {
    let stack = with_letters().await;
    let url = stack.nats.url();
    for arguments in [&["show", "2"][..], &["show", "b"], &["show", "b", "--tenant", "t"]] {
        let shown = &lines(&dlq(&url, arguments).await)[0];
        assert_eq!((&shown["number"], &shown["job"], &shown["tenant"]), (&json!(2), &json!("b"), &json!("t")));
        assert_eq!(
            (&shown["code"], &shown["attempts"], &shown["worker"]),
            (&json!("not_finite"), &json!(3), &json!("w1"))
        );
        assert_eq!(shown["subject"], "darkroom.req.shapes.normal.any.t");
        assert_eq!(shown["headers"]["traceparent"], "00-1-2-01");
        assert_eq!(shown["body"], json!({"prompt": "a ring", "seed": 2}));
    }
    assert_eq!(numbers(&dlq(&url, &["show", "a", "--tenant", "u"]).await), [3]);
    for (arguments, exit, words) in [
        (&["show", "99"][..], 6, "unknown_dead_letter"),
        (&["show", "nothing"], 6, "unknown_dead_letter"),
        (&["show", "a"], 1, "numbers 3, 1"),
        (&["drop"], 2, "required"),
        (&["retry", "1", "--all"], 2, "cannot be used with"),
    ] {
        let finished = dlq(&url, arguments).await;
        assert_eq!(finished.status.code(), Some(exit), "{finished}");
        assert!(finished.stderr.contains(words), "{finished}");
    }
    let bare = NatsServer::start_one().await;
    let finished = dlq(&bare.url(), &["list"]).await;
    assert_eq!(finished.status.code(), Some(6), "{finished}");
    assert!(finished.stderr.contains("darkroom setup"), "{finished}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_is_a_new_job_and_the_same_one_when_it_is_repeated() {
    let stack = with_letters().await;
    let url = stack.nats.url();
    let kept = &lines(&dlq(&url, &["retry", "1", "--keep"]).await)[0];
    assert_eq!((&kept["job"], &kept["retry_of"], &kept["removed"]), (&json!("a-retry-1"), &json!("a"), &json!(false)));
    assert_eq!(status(&stack, "t", "a-retry-1").await, Some(Status::Pending));
    // As after a crash between the publish and the removal.
    let again = &lines(&dlq(&url, &["retry", "1"]).await)[0];
    assert_eq!((&again["job"], &again["stream_sequence"]), (&json!("a-retry-1"), &Value::Null));
    let requests = stack.stored("DARKROOM_REQ", "darkroom.req.").await;
    assert_eq!(requests.len(), 1);
    let body: Value = serde_json::from_slice(&requests[0].payload).unwrap();
    assert_eq!(body, json!({"id": "a-retry-1", "prompt": "a ring", "seed": 1}));
    assert_eq!(numbers(&dlq(&url, &["list"]).await), [4, 3, 2]);
    assert_eq!(dlq(&url, &["retry", "1"]).await.status.code(), Some(6));

    // What fails once more is tried under the next name, and one may be chosen.
    letter("t", "shapes", "a-retry-1", "store_failed", 9).send(&stack.bus).await.unwrap();
    assert_eq!(lines(&dlq(&url, &["retry", "a-retry-1"]).await)[0]["job"], "a-retry-2");
    assert_eq!(lines(&dlq(&url, &["retry", "b", "--job", "mine"]).await)[0]["job"], "mine");
    assert_eq!(status(&stack, "t", "mine").await, Some(Status::Pending));
    assert_eq!(numbers(&dlq(&url, &["list"]).await), [4, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_be_refused_again_stays_where_it_is() {
    let stack = with_letters().await;
    let url = stack.nats.url();
    let mut unreadable = letter("t", "shapes", "d", "invalid_request", 5);
    unreadable.body = "hello".into();
    let mut wrong = letter("t", "shapes", "e", "invalid_request", 6);
    wrong.body = r#"{"prompt":"p","num_inference_steps":101}"#.into();
    let mut elsewhere = letter("t", "shapes", "f", "unserved", 7);
    elsewhere.subject = "darkroom.req.shapes.urgent.any.t".to_owned();
    for letter in [unreadable, wrong, elsewhere] {
        letter.send(&stack.bus).await.unwrap();
    }
    for (id, exit, words) in [
        ("c", 6, "other is not served"),
        ("d", 5, "not a request"),
        ("e", 5, "num_inference_steps"),
        ("f", 5, "darkroom.req.<model>"),
    ] {
        let finished = dlq(&url, &["retry", id]).await;
        assert_eq!(finished.status.code(), Some(exit), "{finished}");
        assert!(finished.stderr.contains(words), "{finished}");
    }
    assert_eq!(numbers(&dlq(&url, &["list"]).await), [7, 6, 5, 4, 3, 2, 1]);

    // With all of them, what can be retried is.
    let all = dlq(&url, &["retry", "--all", "--tenant", "t"]).await;
    assert_eq!(all.status.code(), Some(1), "{all}");
    let mut jobs: Vec<String> = all
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["job"].as_str().unwrap().to_owned())
        .collect();
    jobs.sort();
    assert_eq!(jobs, ["a-retry-1", "b-retry-1"]);
    assert_eq!(all.stderr.lines().count(), 4, "{all}");
    assert_eq!(numbers(&dlq(&url, &["list"]).await), [7, 6, 5, 4, 3]);
    assert_eq!(numbers(&dlq(&url, &["drop", "--all", "--code", "invalid_request"]).await), [6, 5]);
    assert_eq!(numbers(&dlq(&url, &["drop", "7"]).await), [7]);
    assert_eq!(numbers(&dlq(&url, &["list"]).await), [4, 3]);
}
