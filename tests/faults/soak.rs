//! Random faults from a seed, for as long as wanted, and then the checker's word: `local/soak --minutes N --seed S`.
//!
//! Three servers, three workers, gateway and dead letters, tenants that keep the queue filled and change their minds. The seed decides the whole schedule before anything is
//! started, so a run can be had again as far as real processes allow. It ends with everything mended and the queue empty;
//! what it found is printed, and its exit code is the verdict.

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "a test that runs as a program")]

mod checker;
#[allow(dead_code, reason = "the scenarios see more")]
mod history;
#[allow(dead_code, reason = "the scenarios use the rest")]
mod laboratory;
#[allow(dead_code, reason = "the scenarios use the rest")]
mod proxy;
#[path = "../sim/random.rs"]
#[allow(dead_code, reason = "the simulation uses the rest")]
mod random;
#[path = "../integration/stack.rs"]
#[allow(dead_code, reason = "the integration tests use the rest")]
mod stack;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use darkroom::job::Status;
use darkroom::shell::topology;
use darkroom::wire::subject;
use hyper::StatusCode;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use checker::{Bounds, check, report};
use history::What;
use laboratory::{BOUNDARIES, Client, LONG, Laboratory, pictures};
use proxy::{Flow, Proxy, Toward};
use random::Random;
use support::process::Background;
use support::s3::Trouble;

const LEASE: Duration = Duration::from_secs(5);
const WORKERS: usize = 3;
/// What runs beside the workers.
const FUNCTIONS: [fn(&Laboratory, &str) -> Background; 2] = [Laboratory::gateway, Laboratory::deadletter];
const TENANTS: [&str; 3] = ["ada", "bea", "cyd"];
/// Requests in the queue beyond which nobody submits.
const REQUESTS_WAITING_MAX: u64 = 24;
/// How often workers are looked after, and the queue.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// What may be left to do when the faults are over.
const DRAIN_MAX: Duration = Duration::from_secs(300);
/// Attempts that one fault may cost: what a few workers hold.
const ATTEMPTS_PER_FAULT: u32 = 24;
/// What a job may fail by here: its workers, the store and the bus are what is broken.
const EXPECTED_CODES: [&str; 3] = ["workers_lost", "store_failed", "bus_failed"];

/// One thing that is done to the system, or undone.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    KillWorker(usize),
    /// It dies by itself, at a boundary of its work.
    DoomWorker(usize, &'static str),
    TerminateWorker(usize),
    StopWorker(usize),
    ContinueWorker(usize),
    KillFunction(usize),
    KillServer(usize),
    KillServers,
    StopServer(usize),
    ContinueServers,
    ReviveServers,
    StepDown(usize),
    Store(Option<Trouble>),
    /// Between the workers and the store.
    StoreNetwork(Flow),
    ResetStoreNetwork,
    /// Between the first worker and its server.
    BusNetwork(Toward, Flow),
    BreakBusNetwork {
        half_open: bool,
    },
}

impl Fault {
    /// What it is counted as; `None` for what only mends.
    fn kind(self) -> Option<&'static str> {
        match self {
            Self::KillWorker(_) => Some("worker killed"),
            Self::DoomWorker(..) => Some("worker killed at a boundary"),
            Self::TerminateWorker(_) => Some("worker told to end"),
            Self::StopWorker(_) => Some("worker stopped"),
            Self::KillFunction(_) => Some("function killed"),
            Self::KillServer(_) => Some("server killed"),
            Self::KillServers => Some("all servers killed"),
            Self::StopServer(_) => Some("server stopped"),
            Self::StepDown(_) => Some("leader stepped down"),
            Self::Store(Some(_)) => Some("store in trouble"),
            Self::StoreNetwork(Flow::Slow(_) | Flow::Held | Flow::Late(_) | Flow::Loses(_))
            | Self::ResetStoreNetwork => Some("network to the store"),
            Self::BusNetwork(_, Flow::Slow(_) | Flow::Held | Flow::Late(_) | Flow::Loses(_))
            | Self::BreakBusNetwork { .. } => Some("network to NATS"),
            Self::ContinueWorker(_)
            | Self::ContinueServers
            | Self::ReviveServers
            | Self::Store(None)
            | Self::StoreNetwork(Flow::Open)
            | Self::BusNetwork(_, Flow::Open) => None,
        }
    }
}

/// The whole schedule: one fault every few seconds with its end, and a quiet quarter of every minute.
fn schedule(seed: u64, length: Duration) -> Vec<(Duration, Fault)> {
    let mut random = Random::new(seed);
    let mut plan = Vec::new();
    let mut at = Duration::from_secs(3);
    while at < length {
        if at.as_secs() % 60 >= 45 {
            at += Duration::from_secs(60 - at.as_secs() % 60);
            continue;
        }
        let until = at + random.millis(1_000, 12_000);
        let slot = usize::try_from(random.between(0, WORKERS as u64 - 1)).unwrap();
        let server = usize::try_from(random.between(0, 2)).unwrap();
        let mut now = |fault| plan.push((at, fault));
        match random.between(0, 20) {
            0..=2 => now(Fault::KillWorker(slot)),
            3..=5 => now(Fault::DoomWorker(slot, random.pick(&BOUNDARIES))),
            6 => now(Fault::TerminateWorker(slot)),
            7..=8 => plan.extend([(at, Fault::StopWorker(slot)), (until, Fault::ContinueWorker(slot))]),
            9..=10 => plan.extend([(at, Fault::KillServer(server)), (until, Fault::ReviveServers)]),
            11 => plan.extend([(at, Fault::KillServers), (at + random.millis(0, 2_000), Fault::ReviveServers)]),
            12 => plan.extend([(at, Fault::StopServer(server)), (until, Fault::ContinueServers)]),
            13..=14 => now(Fault::StepDown(server + usize::from(random.chance(300)))),
            15..=16 => {
                let trouble = match random.between(0, 2) {
                    0 => Trouble::Fails(StatusCode::SERVICE_UNAVAILABLE),
                    1 => Trouble::Hangs,
                    _ => Trouble::Late(random.millis(500, 8_000)),
                };
                plan.extend([(at, Fault::Store(Some(trouble))), (until, Fault::Store(None))]);
            }
            17 => {
                let flow = random.pick(&[Flow::Slow(2_000), Flow::Held, Flow::Late(Duration::from_millis(700))]);
                plan.extend([(at, Fault::StoreNetwork(flow)), (until, Fault::StoreNetwork(Flow::Open))]);
            }
            18 => now(Fault::KillFunction(slot % FUNCTIONS.len())),
            19 => {
                let toward = random.pick(&[Toward::Server, Toward::Client]);
                let flow = random.pick(&[Flow::Held, Flow::Held, Flow::Late(Duration::from_millis(700))]);
                plan.extend([(at, Fault::BusNetwork(toward, flow)), (until, Fault::BusNetwork(toward, Flow::Open))]);
            }
            _ => match random.between(0, 2) {
                0 => now(Fault::ResetStoreNetwork),
                1 => now(Fault::BreakBusNetwork { half_open: false }),
                _ => now(Fault::BreakBusNetwork { half_open: true }),
            },
        }
        at += random.millis(1_500, 6_000);
    }
    plan.sort_by_key(|(at, _)| *at);
    plan
}

/// One place for a worker; whoever dies in it is replaced.
struct Slot {
    worker: Background,
    incarnations: u32,
}

struct Soak {
    laboratory: Laboratory,
    slots: Vec<Slot>,
    /// By the place in [`FUNCTIONS`].
    functions: Vec<Background>,
    to_store: Proxy,
    to_bus: Proxy,
}

impl Soak {
    fn start_worker(
        laboratory: &Laboratory,
        to_store: &Proxy,
        to_bus: &Proxy,
        slot: usize,
        incarnation: u32,
        doom: Option<&str>,
    ) -> Background {
        let direct = laboratory.nats.url();
        let url = if slot == 0 { format!("nats://127.0.0.1:{}", to_bus.port()) } else { direct };
        let mut command = laboratory.worker_command_at(&format!("w{slot}-{incarnation}"), &url, to_store.port());
        command.args(["--grace", "5s"]);
        if let Some(point) = doom {
            command.env("FAILPOINTS", format!("{point}=1*return(kill)"));
        }
        Background::start(&mut command)
    }

    async fn start() -> Self {
        let laboratory = Laboratory::start_cluster(LEASE).await;
        let to_store = Proxy::start(laboratory.s3.port()).await;
        let to_bus = Proxy::start(laboratory.nats.port()).await;
        let start =
            |slot| Slot { worker: Self::start_worker(&laboratory, &to_store, &to_bus, slot, 0, None), incarnations: 1 };
        let slots = (0..WORKERS).map(start).collect();
        let functions = FUNCTIONS.iter().map(|start| start(&laboratory, &laboratory.nats.url())).collect();
        Self { laboratory, slots, functions, to_store, to_bus }
    }

    /// Puts a new worker where one has died, or is to.
    fn replace(&mut self, slot: usize, doom: Option<&str>) {
        let Self { laboratory, slots, to_store, to_bus, .. } = self;
        let place = &mut slots[slot];
        place.worker.kill();
        place.worker = Self::start_worker(laboratory, to_store, to_bus, slot, place.incarnations, doom);
        place.incarnations += 1;
    }

    /// Puts a new one where a worker or a function has died.
    fn look_after_all(&mut self) {
        for slot in 0..WORKERS {
            if !self.slots[slot].worker.is_running() {
                self.replace(slot, None);
            }
        }
        for (start, function) in FUNCTIONS.iter().zip(&mut self.functions) {
            if !function.is_running() {
                *function = start(&self.laboratory, &self.laboratory.nats.url());
            }
        }
    }

    async fn apply(&mut self, fault: Fault) {
        match fault {
            Fault::KillWorker(slot) => self.slots[slot].worker.kill(),
            Fault::DoomWorker(slot, point) => self.replace(slot, Some(point)),
            Fault::TerminateWorker(slot) => self.slots[slot].worker.terminate(),
            Fault::StopWorker(slot) => self.slots[slot].worker.pause(),
            Fault::ContinueWorker(slot) => self.slots[slot].worker.resume(),
            Fault::KillFunction(index) => self.functions[index].kill(),
            Fault::KillServer(index) => self.laboratory.nats.kill_member(index),
            Fault::KillServers => self.laboratory.nats.kill(),
            Fault::StopServer(index) => self.laboratory.nats.pause_member(index),
            Fault::ContinueServers => self.laboratory.nats.resume(),
            Fault::ReviveServers => self.laboratory.nats.revive(),
            Fault::StepDown(post) => {
                let streams = [subject::STREAM_REQUESTS, subject::STREAM_EVENTS, "KV_darkroom_jobs"];
                let question = match streams.get(post) {
                    Some(stream) => format!("STREAM.LEADER.STEPDOWN.{stream}"),
                    None => format!("CONSUMER.LEADER.STEPDOWN.{}.shapes-normal-any", subject::STREAM_REQUESTS),
                };
                let bus = self.laboratory.bus.clone();
                // Nobody may be there to hear it.
                tokio::spawn(async move { bus.api(&question, &Value::Null).await });
            }
            Fault::Store(trouble) => self.laboratory.s3.set_trouble(trouble),
            Fault::StoreNetwork(flow) => self.to_store.set_both(flow),
            Fault::ResetStoreNetwork => self.to_store.reset(),
            Fault::BusNetwork(toward, flow) => self.to_bus.set(toward, flow),
            Fault::BreakBusNetwork { half_open: true } => self.to_bus.half_open(),
            Fault::BreakBusNetwork { half_open: false } => self.to_bus.reset(),
        }
    }

    async fn mend(&mut self) {
        self.laboratory.nats.resume();
        self.laboratory.nats.revive();
        self.laboratory.s3.set_trouble(None);
        self.to_store.set_both(Flow::Open);
        self.to_bus.set_both(Flow::Open);
        for slot in &self.slots {
            slot.worker.resume();
        }
        self.look_after_all();
    }

    /// Waits until no request is left; false if some are after all that time.
    async fn drain(&mut self) -> bool {
        let end = Instant::now() + DRAIN_MAX;
        while Instant::now() < end {
            self.look_after_all();
            if topology::requests_stored(&self.laboratory.bus).await.is_ok_and(|left| left == 0) {
                return true;
            }
            sleep(LOOK_EVERY).await;
        }
        false
    }
}

/// Keeps the queue filled until told to stop: most jobs are short, some take long, a few are malformed or sent twice.
async fn submit(client: Client, tenant: &'static str, mut random: Random, stop: Arc<AtomicBool>) -> u32 {
    let mut submitted = 0;
    let mut changes_of_mind = JoinSet::new();
    while !stop.load(Ordering::SeqCst) {
        let waiting = topology::requests_stored(&client.bus).await;
        if waiting.is_ok_and(|waiting| waiting > REQUESTS_WAITING_MAX) {
            sleep(LOOK_EVERY).await;
            continue;
        }
        let id = format!("{tenant}-{submitted}");
        if random.chance(20) {
            client.submit_to_fail(tenant, &id, &serde_json::json!({ "no_prompt": id })).await;
        } else {
            let picture = if random.chance(50) { LONG } else { random.between(0, LONG as u64 - 1) as usize };
            client.submit_allowing_failure(tenant, &id, picture).await;
            if random.chance(50) {
                client.submit_allowing_failure(tenant, &id, picture).await;
            }
            if random.chance(80) {
                let (client, keep_partial) = (client.clone(), random.chance(500));
                let after = random.millis(0, 4_000);
                changes_of_mind.spawn(async move {
                    sleep(after).await;
                    // As often as it takes to be told what has become of it.
                    while client.cancel(tenant, &id, keep_partial).await.is_none() {
                        sleep(LOOK_EVERY).await;
                    }
                });
            }
        }
        submitted += 1;
        sleep(random.millis(20, 400)).await;
    }
    changes_of_mind.join_all().await;
    submitted
}

fn option(name: &str, default: u64) -> u64 {
    let mut arguments = std::env::args().skip_while(|argument| argument != name).skip(1);
    arguments.next().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} {text}: not a number")))
}

#[tokio::main]
async fn main() -> ExitCode {
    let (minutes, seed) = (option("--minutes", 3), option("--seed", 1));
    let length = Duration::from_secs(minutes * 60);
    let plan = schedule(seed, length);
    pictures();
    println!("{minutes} minutes of faults by seed {seed}: three servers, {WORKERS} workers, {} tenants", TENANTS.len());
    let mut soak = Soak::start().await;
    let began = Instant::now();
    let stop = Arc::<AtomicBool>::default();
    let submitters: Vec<_> = (1..)
        .zip(TENANTS)
        .map(|(index, tenant)| {
            let random = Random::new(seed.wrapping_mul(1_000).wrapping_add(index));
            tokio::spawn(submit(soak.laboratory.client.clone(), tenant, random, Arc::clone(&stop)))
        })
        .collect();

    let mut kinds = BTreeMap::<&str, u32>::new();
    for (at, fault) in plan {
        while began.elapsed() < at {
            soak.look_after_all();
            sleep_until((began + at).min(Instant::now() + LOOK_EVERY)).await;
        }
        println!("{:>7.1} s  {fault:?}", began.elapsed().as_secs_f64());
        soak.apply(fault).await;
        if let Some(kind) = fault.kind() {
            *kinds.entry(kind).or_default() += 1;
        }
    }
    stop.store(true, Ordering::SeqCst);
    soak.mend().await;
    let mut jobs = 0;
    for submitter in submitters {
        jobs += timeout(DRAIN_MAX, submitter).await.expect("a submitter is heard in the end").unwrap();
    }
    let drained = soak.drain().await;
    println!("{:>7.1} s  {}", began.elapsed().as_secs_f64(), if drained { "drained" } else { "not drained" });

    let history = soak.laboratory.log.history(&soak.laboratory.bus, &soak.laboratory.s3).await;
    let faults: u32 = kinds.values().sum();
    let violations = check(&history, &Bounds { attempts_wasted_max: faults * ATTEMPTS_PER_FAULT });
    let records = history.last_records();
    let mut codes = BTreeMap::<String, u32>::new();
    let (mut completed, mut cancelled, mut more_attempts) = (0, 0, 0);
    for record in records.values() {
        completed += u32::from(record.state.status == Status::Completed);
        cancelled += u32::from(record.state.status == Status::Cancelled);
        more_attempts += record.state.attempts.saturating_sub(1);
        let code = record.terminal.as_ref().and_then(|data| data["error"]["code"].as_str());
        if let (Status::Failed, Some(code)) = (record.state.status, code) {
            *codes.entry(code.to_owned()).or_default() += 1;
        }
    }
    let letters = history.0.iter().filter(|seen| matches!(seen.what, What::Letter { .. })).count();
    println!(
        "\njobs submitted {jobs}, with records {}, completed {completed}, cancelled {cancelled}, failed {codes:?}",
        records.len()
    );
    println!("attempts beyond the first {more_attempts}, dead letters {letters}");
    println!("faults {faults}: {kinds:?}");
    let unexpected = codes.keys().any(|code| code != "invalid_request" && !EXPECTED_CODES.contains(&code.as_str()));
    let clean = violations.is_empty() && drained && !unexpected;
    println!("verdict: {}", if clean { "clean" } else { "NOT CLEAN" });
    if !clean {
        println!("{}", report(&history, &violations));
    }
    if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
