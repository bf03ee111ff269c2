//! Workers that are killed, stopped, starved and poisoned, at every boundary of their work.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use darkroom::job::Status;
use darkroom::wire::cancel::CancelOutcome;
use darkroom::wire::event::EventKind;
use rustix::process::Signal;
use serde_json::json;
use tokio::time::sleep;

use crate::laboratory::{BOUNDARIES, LONG, Laboratory, pictures};
use crate::stack::PATIENCE;
use crate::support::eventually;
use crate::support::process::Background;

/// As [`BOUNDARIES`], with a job that is refused.
const BOUNDARIES_OF_REFUSAL: [&str; 6] =
    ["record.before", "record.after", "publish.after", "letter.before", "letter.after", "settle.before"];
/// Longer than any test: nothing is delivered again before the test wants it.
const NO_REDELIVERY: Duration = Duration::from_secs(600);

fn id_at(kind: &str, point: &str) -> String {
    format!("{kind}-{}", point.replace('.', "-"))
}

/// Submits a job whose worker ends at `point` by itself, and returns that worker as it was just started.
async fn at(laboratory: &Laboratory, kind: &str, point: &str, action: &str, arguments: &[&str]) -> Background {
    let id = id_at(kind, point);
    laboratory.nobody_pulls().await;
    if kind == "refused" {
        laboratory.submit_to_fail("t", &id, &json!({ "no_prompt": id })).await;
    } else {
        laboratory.submit("t", &id, 0).await;
    }
    let mut command = laboratory.worker_command(&id);
    Background::start(command.args(arguments).env("FAILPOINTS", format!("{point}/{id}=1*return({action})")))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_at_any_boundary_costs_an_attempt_and_nothing_else() {
    let laboratory = Laboratory::start(NO_REDELIVERY).await;
    let boundaries = BOUNDARIES.map(|point| ("good", point)).into_iter();
    for (kind, point) in boundaries.chain(BOUNDARIES_OF_REFUSAL.map(|point| ("refused", point))) {
        let mut doomed = at(&laboratory, kind, point, "kill", &[]).await;
        let status = doomed.wait(PATIENCE).await;
        assert_eq!(status.signal(), Some(Signal::KILL.as_raw()), "{kind} {point}: {doomed:?}");
    }
    laboratory.set_lease(Duration::from_secs(2)).await;
    let _healthy = laboratory.worker("healthy").await;
    // After the claim each death costs one attempt until the record is terminal.
    let history = laboratory.verdict(3).await;
    assert_eq!(history.last_records().len(), BOUNDARIES.len() + BOUNDARIES_OF_REFUSAL.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_stopped_at_any_boundary_wakes_up_to_change_nothing() {
    let laboratory = Laboratory::start(NO_REDELIVERY).await;
    let mut stopped = Vec::new();
    for point in BOUNDARIES {
        let zombie = at(&laboratory, "zombie", point, "stop", &["--exit-when-idle", "1s"]).await;
        zombie.wait_until_stopped(PATIENCE).await;
        stopped.push((point, zombie));
    }
    let lease = Duration::from_secs(2);
    laboratory.set_lease(lease).await;
    let _healthy = laboratory.worker("healthy").await;
    for point in BOUNDARIES {
        laboratory.seen(&format!("t/{}", id_at("zombie", point)), EventKind::Completed).await;
    }
    let before = laboratory.drained().await;
    for (point, mut zombie) in stopped {
        zombie.resume();
        assert!(zombie.wait(PATIENCE).await.success(), "{point}: {zombie:?}");
    }
    let history = laboratory.verdict(3).await;
    assert_eq!(history.last_records(), before.last_records());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_cancelled_at_any_boundary_of_its_worker_has_one_end() {
    let laboratory = Laboratory::start(NO_REDELIVERY).await;
    let gateway = laboratory.gateway(&laboratory.nats.url());
    gateway.wait_for_log(|line| line.contains("gateway.ready"), PATIENCE).await;
    let mut expected = Vec::new();
    for point in BOUNDARIES {
        let mut worker = at(&laboratory, "cancelled", point, "stop", &["--exit-when-idle", "1s"]).await;
        worker.wait_until_stopped(PATIENCE).await;
        let id = id_at("cancelled", point);
        let answer = laboratory.cancel("t", &id, false).await.unwrap();
        // Whoever changes the record first has decided.
        let status = if point.starts_with("claim") || point.starts_with("store") {
            assert_eq!(answer.outcome, CancelOutcome::Cancelled, "{point}");
            Status::Cancelled
        } else {
            assert_eq!(answer.outcome, CancelOutcome::Ended, "{point}");
            Status::Completed
        };
        expected.push((format!("t/{id}"), status));
        worker.resume();
        assert!(worker.wait(PATIENCE).await.success(), "{point}: {worker:?}");
    }
    let history = laboratory.verdict(0).await;
    for (job, status) in expected {
        assert_eq!(history.last_records()[job.as_str()].state.status, status, "{job}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_jobs_of_a_killed_worker_are_done_elsewhere_when_its_leases_are_over() {
    let lease = Duration::from_secs(4);
    let laboratory = Laboratory::start(lease).await;
    let mut killed = laboratory.worker("killed").await;
    for index in 0..4 {
        laboratory.submit("t", &format!("job-{index}"), LONG).await;
    }
    for index in 0..4 {
        laboratory.seen(&format!("t/job-{index}"), EventKind::Started).await;
    }
    let _other = laboratory.worker("other").await;
    killed.kill();
    let began = tokio::time::Instant::now();
    for index in 0..4 {
        laboratory.seen_times(2, &format!("t/job-{index}"), EventKind::Started).await;
    }
    println!(
        "four jobs of a killed worker: {:.1} s until all run elsewhere, with leases of {lease:?}",
        began.elapsed().as_secs_f64()
    );
    assert!(began.elapsed() < lease + Duration::from_secs(30), "{:?}", began.elapsed());
    laboratory.verdict(4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_come_and_go_with_the_work_leave_none_of_it() {
    let laboratory = Laboratory::start(Duration::from_secs(10)).await;
    let mut worker = None::<Background>;
    let mut started = 0;
    for round in 0..12_u64 {
        let jobs = [0, 1].map(|index| format!("job-{round}-{index}"));
        for (picture, job) in jobs.iter().enumerate() {
            laboratory.submit("t", job, picture).await;
        }
        eventually("both jobs to be done", PATIENCE, async || {
            // As a scaler does: one where there is none, however the last one went.
            if worker.as_mut().is_none_or(|worker| !worker.is_running()) {
                let mut command = laboratory.worker_command(&format!("worker-{started}"));
                worker = Some(Background::start(command.args(["--exit-when-idle", "1s"])));
                started += 1;
            }
            for job in &jobs {
                laboratory.events(&format!("t/{job}"), EventKind::Completed).await.filter(|count| *count == 1)?;
            }
            Some(())
        })
        .await;
        match (round % 3, &worker) {
            // Told to end at the very moment at which there is work again.
            (0, Some(worker)) => worker.terminate(),
            // About to end by itself then, a little later every time.
            (1, Some(_)) => sleep(Duration::from_millis(880 + 30 * round)).await,
            _ => {}
        }
    }
    println!("{started} workers came and went in 12 rounds");
    assert!(started > 4, "{started}");
    // Giving back is no attempt, and nobody died.
    laboratory.verdict(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_worker_with_an_open_pull_keeps_no_job_longer_than_its_lease() {
    let lease = Duration::from_secs(3);
    let laboratory = Laboratory::start(lease).await;
    let frozen = laboratory.worker("frozen").await;
    let _live = laboratory.worker("live").await;
    frozen.pause();
    let began = tokio::time::Instant::now();
    for index in 0..6 {
        laboratory.submit("t", &format!("job-{index}"), index % 3).await;
    }
    for index in 0..6 {
        laboratory.seen(&format!("t/job-{index}"), EventKind::Completed).await;
    }
    println!("six jobs beside a frozen worker: {:.1} s, with leases of {lease:?}", began.elapsed().as_secs_f64());
    assert!(began.elapsed() < lease + Duration::from_secs(60));
    frozen.resume();
    // Nobody but the live one has claimed any.
    laboratory.verdict(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_threads_are_starved_makes_no_second_result() {
    let laboratory = Laboratory::start(Duration::from_secs(3)).await;
    let mut command = laboratory.worker_command("starved");
    command.env("FAILPOINTS", "store.before=2*sleep(8000)");
    let _starved = crate::stack::started(&mut command).await;
    for index in 0..4 {
        laboratory.submit("t", &format!("job-{index}"), index).await;
    }
    laboratory.verdict(4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_kills_its_workers_is_given_up_and_its_neighbours_are_done() {
    let laboratory = Laboratory::start(Duration::from_secs(2)).await;
    laboratory.submit_to_fail("t", "poison", &pictures()[0].request).await;
    for index in 0..6 {
        laboratory.submit("t", &format!("neighbour-{index}"), index % 3).await;
    }
    let mut worker = None::<Background>;
    let mut deaths = 0;
    loop {
        if worker.as_mut().is_none_or(|worker| !worker.is_running()) {
            deaths += u32::from(worker.is_some());
            let mut command = laboratory.worker_command(&format!("worker-{deaths}"));
            worker = Some(Background::start(command.env("FAILPOINTS", "store.before/poison=return(abort)")));
        }
        let ends = ["poison", "neighbour-0", "neighbour-1", "neighbour-2", "neighbour-3", "neighbour-4", "neighbour-5"];
        let mut ended = 0;
        for job in ends {
            let kind = if job == "poison" { EventKind::Failed } else { EventKind::Completed };
            ended += laboratory.events(&format!("t/{job}"), kind).await.unwrap_or(0);
        }
        if ended == ends.len() as u64 {
            break;
        }
        assert!(deaths < 10, "a job kills one worker after the other");
    }
    let history = laboratory.verdict(3 + 6 * 2).await;
    let poison = history.last_records()["t/poison"];
    assert_eq!((poison.state.status, poison.state.deaths), (Status::Failed, 3));
    assert_eq!(poison.terminal.as_ref().unwrap()["error"]["code"], "workers_lost");
    assert_eq!(deaths, 3);
}
