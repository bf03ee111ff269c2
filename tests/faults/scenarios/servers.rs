//! Servers that are killed, stopped, deposed, outvoted and full.

use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use darkroom::shell::bus::{self, PublishError};
use darkroom::shell::config::BusOptions;
use darkroom::wire::event::EventKind;
use darkroom::wire::subject;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::laboratory::{LONG, Laboratory, pictures, submitted};
use crate::proxy::{Flow, Proxy};
use crate::stack::{PATIENCE, started};
use crate::support::eventually;

/// No recovery may take as long; what it took is printed.
const RECOVERY_MAX: Duration = Duration::from_secs(60);

/// Submits one more job and waits for its image: how long since `began`.
async fn works_again(laboratory: &Laboratory, id: &str, began: Instant) -> f64 {
    laboratory.submit("t", id, 0).await;
    laboratory.seen(&format!("t/{id}"), EventKind::Completed).await;
    assert!(began.elapsed() < RECOVERY_MAX, "{:?}", began.elapsed());
    began.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_again_and_again_under_load_loses_no_accepted_job() {
    let mut laboratory = Laboratory::start(Duration::from_secs(4)).await;
    let _workers = (laboratory.worker("one").await, laboratory.worker("two").await);
    let mut recoveries = Vec::new();
    for round in 0..5 {
        for index in 0..8 {
            laboratory.submit("t", &format!("job-{round}-{index}"), index % LONG).await;
        }
        laboratory.seen(&format!("t/job-{round}-0"), EventKind::Started).await;
        let began = Instant::now();
        laboratory.nats.restart().await;
        recoveries.push(format!("{:.1}", works_again(&laboratory, &format!("after-{round}"), began).await));
        // The server has forgotten that it had this one; the record has not.
        laboratory.submit("t", &format!("after-{round}"), 0).await;
    }
    println!("from SIGKILL of the server to the next image, five times: {} s", recoveries.join(", "));
    // The server may forget which deliveries are out, so that what runs is delivered once more, every time.
    laboratory.verdict(5 * 8).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stands_still_for_longer_than_the_leases_makes_no_second_result() {
    let lease = Duration::from_secs(2);
    let laboratory = Laboratory::start(lease).await;
    let _workers = (laboratory.worker("one").await, laboratory.worker("two").await);
    for round in 0..2 {
        for index in 0..6 {
            laboratory.submit("t", &format!("job-{round}-{index}"), LONG - index % 2).await;
        }
        laboratory.seen(&format!("t/job-{round}-0"), EventKind::Started).await;
        laboratory.nats.pause();
        sleep(lease * 2).await;
        laboratory.nats.resume();
    }
    laboratory.verdict(2 * 6 * 2).await;
}

/// Which of its duties a server of the cluster has.
async fn duties(laboratory: &Laboratory, index: usize) -> String {
    let mut duties = Vec::new();
    for (duty, question) in [
        ("requests", format!("STREAM.INFO.{}", subject::STREAM_REQUESTS)),
        ("the consumer", format!("CONSUMER.INFO.{}.shapes-normal-any", subject::STREAM_REQUESTS)),
        ("records", format!("STREAM.INFO.KV_{}", subject::BUCKET_JOBS)),
        ("events", format!("STREAM.INFO.{}", subject::STREAM_EVENTS)),
    ] {
        let info = laboratory.bus.api(&question, &Value::Null).await.unwrap();
        if info["cluster"]["leader"] == format!("test-{index}").as_str() {
            duties.push(duty);
        }
    }
    if duties.is_empty() { "nothing".to_owned() } else { duties.join(", ") }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_server_of_three_may_be_killed_and_then_all_of_them() {
    let mut laboratory = Laboratory::start_cluster(Duration::from_secs(5)).await;
    let _workers = (laboratory.worker("one").await, laboratory.worker("two").await);
    for round in 0..4 {
        for index in 0..4 {
            laboratory.submit("t", &format!("job-{round}-{index}"), index + 1).await;
        }
        laboratory.seen(&format!("t/job-{round}-0"), EventKind::Started).await;
        // Each of the three once: whatever leads something, that of the cluster too, is among them.
        let leads = if round < 3 { duties(&laboratory, round).await } else { "everything".to_owned() };
        let began = Instant::now();
        if round < 3 {
            laboratory.nats.kill_member(round);
        } else {
            laboratory.nats.kill();
            laboratory.nats.revive();
        }
        let took = works_again(&laboratory, &format!("after-{round}"), began).await;
        println!("from SIGKILL of what leads {leads} to the next image: {took:.1} s");
        laboratory.nats.revive();
        eventually("three servers", PATIENCE, async || laboratory.nats.is_whole().await.then_some(())).await;
    }
    laboratory.verdict(4 * 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leaders_that_step_down_and_a_lost_quorum_lose_nothing() {
    let mut laboratory = Laboratory::start_cluster(Duration::from_secs(5)).await;
    let _workers = (laboratory.worker("one").await, laboratory.worker("two").await);
    let requests = subject::STREAM_REQUESTS;
    let posts = [
        format!("STREAM.LEADER.STEPDOWN.{requests}"),
        format!("CONSUMER.LEADER.STEPDOWN.{requests}.shapes-normal-any"),
        format!("STREAM.LEADER.STEPDOWN.KV_{}", subject::BUCKET_JOBS),
        format!("STREAM.LEADER.STEPDOWN.{}", subject::STREAM_EVENTS),
    ];
    for round in 0..12 {
        laboratory.submit("t", &format!("deposed-{round}"), round % LONG).await;
        // One that has no leader at the moment cannot be deposed.
        let _ = laboratory.bus.api(&posts[round % posts.len()], &Value::Null).await;
        sleep(Duration::from_millis(500)).await;
    }

    laboratory.nats.kill_member(1);
    laboratory.nats.kill_member(2);
    let began = Instant::now();
    let body = &pictures()[0].request;
    while began.elapsed() < Duration::from_secs(6) {
        let outcome = laboratory.publish_by(&laboratory.bus, "t", "outvoted", body).await;
        assert!(outcome.is_err(), "one server of three has accepted a job: {outcome:?}");
    }
    laboratory.nats.revive();
    let began = Instant::now();
    laboratory.submit("t", "outvoted", 0).await;
    laboratory.seen("t/outvoted", EventKind::Completed).await;
    println!("from the return of a quorum to the image: {:.1} s", began.elapsed().as_secs_f64());
    assert!(began.elapsed() < RECOVERY_MAX);
    laboratory.verdict(12 + 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_cut_off_from_the_others_confirms_nothing_and_all_agree_afterwards() {
    let mut laboratory = Laboratory::start_cluster(Duration::from_secs(5)).await;
    let mut proxies = Vec::new();
    for from in 0..3 {
        for to in 0..3 {
            proxies.push(((from, to), Proxy::start(laboratory.nats.route_port(to)).await));
        }
    }
    let ways = proxies.chunks(3).map(|ways| ways.iter().map(|(_, proxy)| proxy.port()).collect()).collect();
    laboratory.nats.reach_each_other_by(ways);
    laboratory.nats.restart().await;
    let urls: Vec<String> = laboratory.nats.url().split(',').map(str::to_owned).collect();
    let mut workers = Vec::new();
    for (index, url) in urls.iter().enumerate() {
        let mut command = laboratory.worker_command_at(&format!("at-{index}"), url, laboratory.s3.port());
        workers.push(started(&mut command).await);
    }
    let requests = format!("STREAM.INFO.{}", subject::STREAM_REQUESTS);
    for round in 0..3 {
        for index in 0..4 {
            laboratory.submit("t", &format!("job-{round}-{index}"), index + 1).await;
        }
        laboratory.seen(&format!("t/job-{round}-0"), EventKind::Started).await;
        // The one that leads the requests, and that this test itself is not a client of.
        let cut = eventually("another leader of the requests", PATIENCE, async || {
            let info = laboratory.bus.api(&requests, &Value::Null).await.ok()?;
            let leader = info["cluster"]["leader"].as_str()?.to_owned();
            if laboratory.bus.client.server_info().server_name == leader {
                let down = format!("STREAM.LEADER.STEPDOWN.{}", subject::STREAM_REQUESTS);
                let _ = laboratory.bus.api(&down, &Value::Null).await;
                return None;
            }
            leader.strip_prefix("test-")?.parse::<usize>().ok()
        })
        .await;
        let alone = bus::connect(&BusOptions::open(urls[cut].clone()), "alone").await.unwrap();
        let set_all = |flow| {
            for ((from, to), proxy) in &proxies {
                if [*from, *to].contains(&cut) {
                    proxy.set_both(flow);
                }
            }
        };
        set_all(Flow::Held);
        let began = Instant::now();
        let id = format!("minority-{round}");
        let outcome = laboratory.publish_by(&alone, "t", &id, &pictures()[0].request).await;
        assert!(outcome.is_err(), "a server alone has accepted a job: {outcome:?}");
        let took = works_again(&laboratory, &format!("majority-{round}"), began).await;
        println!("from a cut between servers to the next image: {took:.1} s");
        set_all(Flow::Open);
        laboratory.submit("t", &id, 0).await;
        laboratory.seen(&format!("t/{id}"), EventKind::Completed).await;
        eventually("copies that agree", PATIENCE, async || {
            let info = laboratory.bus.api(&requests, &Value::Null).await.ok()?;
            let others = info["cluster"]["replicas"].as_array()?;
            others
                .iter()
                .all(|other| other["current"] == true && other["lag"].as_u64().is_none_or(|lag| lag == 0))
                .then_some(())
        })
        .await;
    }
    laboratory.verdict(3 * 6).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_over_its_quota_is_refused_alone_and_gets_its_places_back() {
    let laboratory = Laboratory::start(Duration::from_secs(10)).await;
    let quota = 10;
    laboratory.change_stream(subject::STREAM_REQUESTS, "max_msgs_per_subject", json!(quota)).await;
    let flood = async |round: u32| {
        let mut refused = 0;
        for index in 0..quota * 3 {
            let id = format!("flood-{round}-{index}");
            match laboratory.publish_by(&laboratory.bus, "flood", &id, &pictures()[0].request).await {
                Ok(_) => {}
                Err(PublishError::QuotaReached { .. }) => refused += 1,
                Err(error) => panic!("{error}"),
            }
        }
        refused
    };
    assert_eq!(flood(0).await, quota * 2, "exactly the quota is accepted");
    laboratory.submit("other", "beside", 0).await;
    let first = laboratory.worker("first").await;
    laboratory.verdict(0).await;
    drop(first);
    // What is done and what has failed makes room alike.
    laboratory.submit_to_fail("flood", "malformed", &json!({"no_prompt": true})).await;
    let second = laboratory.worker("second").await;
    laboratory.verdict(0).await;
    drop(second);
    assert_eq!(flood(1).await, quota * 2);
    let _third = laboratory.worker("third").await;
    let history = laboratory.verdict(0).await;
    assert_eq!(history.last_records().len(), 2 * quota as usize + 2);
}

/// A file system of a server's own, which can be full. Gone when dropped.
struct Disk {
    path: PathBuf,
    with: &'static [&'static str],
}

/// As a program of this user, and as one of root where that needs no password.
const BY: [&[&str]; 2] = [&[], &["sudo", "-n"]];

impl Disk {
    /// A large one in memory; `None` where this user may not have one.
    async fn mount(path: PathBuf) -> Option<Self> {
        for with in BY {
            let disk = Self { path: path.clone(), with };
            if disk.run("mount", &["-t", "tmpfs", "-o", "size=20g,mode=777", "tmpfs"]).await {
                return Some(disk);
            }
        }
        None
    }

    /// Makes it small, and puts something large there.
    async fn fill(&self) {
        assert!(self.run("mount", &["-o", "remount,size=16m"]).await);
        let mut large = std::fs::File::create(self.path.join("large")).unwrap();
        let full = std::iter::repeat_with(|| large.write_all(&[1; 4096])).find_map(Result::err).unwrap();
        assert_eq!(full.kind(), ErrorKind::StorageFull);
    }

    /// Undoes [`Self::fill`].
    async fn clear(&self) {
        std::fs::remove_file(self.path.join("large")).unwrap();
        assert!(self.run("mount", &["-o", "remount,size=20g"]).await);
    }

    async fn run(&self, program: &str, arguments: &[&str]) -> bool {
        let words = [self.with, &[program], arguments].concat();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(&self.path);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        tokio::task::spawn_blocking(move || command.status().is_ok_and(|status| status.success())).await.unwrap()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // At once, although a server writes there.
        let words = [self.with, &["umount", "-l"]].concat();
        let _ = Command::new(words[0]).args(&words[1..]).arg(&self.path).stderr(Stdio::null()).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_accepts_nothing_falsely_and_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("store-0");
    std::fs::create_dir(&store).unwrap();
    let Some(disk) = Disk::mount(store).await else {
        // Past what libtest catches: a test that was not made must not look as if it was.
        writeln!(
            std::io::stderr(),
            "NOT RUN: a full disk needs a file system of its own: root, or sudo without a password"
        )
        .unwrap();
        return;
    };
    let mut laboratory = Laboratory::start_in(directory, Duration::from_secs(4)).await;
    let _worker = laboratory.worker("only").await;
    for index in 0..2 {
        laboratory.submit("t", &format!("before-{index}"), index).await;
    }
    laboratory.verdict(0).await;
    disk.fill().await;
    // The last page of each file takes some more.
    let mut accepted = 0;
    let refused = loop {
        let id = format!("full-{accepted}");
        laboratory.log.saw(&format!("t/{id}"), submitted(0));
        match laboratory.publish_by(&laboratory.bus, "t", &id, &pictures()[0].request).await {
            Ok(_) => accepted += 1,
            Err(error) => break (id, error),
        }
        assert!(accepted < 10_000, "a full disk takes everything");
    };
    println!("a full disk took {accepted} more requests, then: {}", refused.1);
    let doctor = laboratory.doctor().await;
    assert!(doctor.contains("DARKROOM_REQ takes no message") && doctor.contains("disk"), "{doctor}");
    // A gateway that is started on it says so at once, and one that runs with its next look.
    let gateway = laboratory.gateway(&laboratory.nats.url());
    gateway.wait_for_log(|line| line.contains("stream.unwritable") && line.contains("DARKROOM_REQ"), PATIENCE).await;
    disk.clear().await;
    laboratory.nats.restart().await;
    laboratory.submit("t", &refused.0, 0).await;
    laboratory.seen(&format!("t/{}", refused.0), EventKind::Completed).await;
    laboratory.verdict(3 * (accepted + 1)).await;
    gateway.wait_for_log(|line| line.contains("stream.writable") && line.contains("DARKROOM_REQ"), PATIENCE).await;
    let doctor = laboratory.doctor().await;
    assert!(doctor.contains("requests, events and records are taken"), "{doctor}");
    drop(disk);
}
