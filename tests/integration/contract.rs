//! The scripts of `tests/contract` against a real nats-server, with the topology that `darkroom setup` makes.
//!
//! Only `ack_wait` is another. Each script has a model name, and so consumers, of its own; those that kill the server
//! have a server of their own. Workers are connections that pull and answer with the worker's own words; there is no
//! scheduler and no picture here.

#[path = "../contract/script.rs"]
mod script;
#[path = "../contract/scripts.rs"]
mod scripts;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use async_nats::jetstream::consumer::{PullConsumer, pull::BatchConfig};
use async_nats::{HeaderMap, StatusCode, Subject};
use darkroom::job::{Defaults, ModelLimits, ModelManifest, ModelName, Pool, Priority, SamplerKind, Tenant};
use darkroom::shell::bus::{self, Bus};
use darkroom::shell::config::BusOptions;
use darkroom::shell::topology;
use darkroom::wire::subject;
use futures_util::StreamExt;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::support::eventually;
use crate::support::nats::NatsServer;
use script::{Event, Failure, PATIENCE, Queue, Script, Word, play};
use scripts::SCRIPTS;

/// Runs of a script on a machine that is too slow for it.
const RUNS_MAX: u32 = 5;
/// Until so many requests, of two seconds each, remain without an answer, it is the machine that is slow.
const ASKED_MAX: u32 = 3;

#[tokio::test(flavor = "multi_thread")]
async fn a_real_server_follows_every_script() {
    let shared = NatsServer::start().await;
    topology::reconcile_with(&connect(&shared.url()).await, &[], shared.replicas(), topology::Mode::Apply)
        .await
        .unwrap();
    let url = shared.url();
    let runs = SCRIPTS.iter().enumerate().map(async |(number, script)| {
        let mut verdict = Ok(());
        for run in 1..=RUNS_MAX {
            // Of a cluster another server would know what this one forgets.
            let own = if script.kills() { Some(NatsServer::start_one().await) } else { None };
            let url = own.as_ref().map_or_else(|| url.clone(), NatsServer::url);
            let mut queue = Real::new(own, url, format!("c{number}-{run}").parse().unwrap(), script).await;
            verdict = play(script, &mut queue).await;
            if !matches!(verdict, Err(Failure::TooSlow(_))) {
                break;
            }
        }
        verdict.err().map(|failure| format!("{}: {failure:?}", script.claim))
    });
    let failures: Vec<String> = join_all(runs).await.into_iter().flatten().collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

async fn connect(url: &str) -> Bus {
    bus::connect(&BusOptions::open(url), "contract").await.unwrap()
}

fn manifest(name: ModelName) -> ModelManifest {
    ModelManifest {
        name,
        family: String::new(),
        limits: ModelLimits::default(),
        defaults: Defaults {
            width: 64,
            height: 64,
            num_inference_steps: 1,
            guidance_scale: 1.0,
            scheduler: SamplerKind::Ddim,
        },
        tasks: Vec::new(),
        schedulers: Vec::new(),
    }
}

/// A worker's subscription for one lane, and what is left of its pull.
struct Inbox {
    subject: String,
    left: u32,
}

/// A connection of its own.
struct Worker {
    bus: Bus,
    inboxes: BTreeMap<usize, Inbox>,
    replies: BTreeMap<u32, Subject>,
    unread: VecDeque<Event>,
    arrivals: mpsc::UnboundedReceiver<(usize, async_nats::Message)>,
    arrived: mpsc::UnboundedSender<(usize, async_nats::Message)>,
    /// Ends the subscriptions when dropped.
    subscriptions: JoinSet<()>,
}

impl Worker {
    async fn new(url: &str) -> Self {
        let (arrived, arrivals) = mpsc::unbounded_channel();
        Self {
            bus: connect(url).await,
            inboxes: BTreeMap::new(),
            replies: BTreeMap::new(),
            unread: VecDeque::new(),
            arrivals,
            arrived,
            subscriptions: JoinSet::new(),
        }
    }

    async fn inbox(&mut self, lane: usize) -> String {
        if let Some(inbox) = self.inboxes.get(&lane) {
            return inbox.subject.clone();
        }
        let subject = self.bus.client.new_inbox();
        let mut messages = self.bus.client.subscribe(subject.clone()).await.unwrap();
        let arrived = self.arrived.clone();
        self.subscriptions.spawn(async move {
            while let Some(message) = messages.next().await {
                let _ = arrived.send((lane, message));
            }
        });
        self.inboxes.insert(lane, Inbox { subject: subject.clone(), left: 0 });
        subject
    }

    fn hear(&mut self, lane: usize, message: async_nats::Message) {
        let left = self.inboxes.get_mut(&lane).map(|inbox| &mut inbox.left);
        let event = match message.status {
            None if message.reply.is_some() => {
                if let Some(left) = left {
                    *left = left.saturating_sub(1);
                }
                let reply = message.reply.clone().unwrap();
                let number: u32 = std::str::from_utf8(&message.payload).unwrap().parse().unwrap();
                self.replies.insert(number, reply);
                let message = async_nats::jetstream::Message { message, context: self.bus.context.clone() };
                let count = message.info().unwrap().delivered;
                Event::Delivered { message: number, count: count.try_into().unwrap() }
            }
            Some(StatusCode::TIMEOUT) => {
                if let Some(left) = left {
                    *left = 0;
                }
                Event::PullOver { lane }
            }
            status => Event::Unknown(format!("{status:?} {:?}", message.description)),
        };
        self.unread.push_back(event);
    }

    /// Takes what has arrived.
    fn absorb(&mut self) {
        while let Ok((lane, message)) = self.arrivals.try_recv() {
            self.hear(lane, message);
        }
    }
}

/// The consumers of one model on a real server.
struct Real {
    server: Option<NatsServer>,
    url: String,
    bus: Bus,
    model: ModelName,
    lanes: Vec<(Priority, Pool)>,
    workers: BTreeMap<u32, Worker>,
    began: Instant,
}

impl Real {
    async fn new(server: Option<NatsServer>, url: String, model: ModelName, script: &Script) -> Self {
        let bus = connect(&url).await;
        let replicas = server.as_ref().and_then(NatsServer::replicas);
        topology::reconcile_with(&bus, &[manifest(model.clone())], replicas, topology::Mode::Apply).await.unwrap();
        let lanes: Vec<_> = topology::lanes().collect();
        let queue = Self { server, url, bus, model, lanes, workers: BTreeMap::new(), began: Instant::now() };
        for lane in 0..queue.lanes.len() {
            queue.set_ack_wait(lane, Duration::from_millis(script.ack_wait_millis)).await;
        }
        queue
    }

    fn consumer(&self, lane: usize) -> String {
        let (priority, pool) = self.lanes[lane];
        subject::consumer(&self.model, priority, pool)
    }

    async fn info(&self, lane: usize) -> Value {
        let subject = format!("CONSUMER.INFO.{}.{}", subject::STREAM_REQUESTS, self.consumer(lane));
        self.bus.api(&subject, &Value::Null).await.unwrap()
    }

    async fn set_ack_wait(&self, lane: usize, ack_wait: Duration) {
        let mut config = self.info(lane).await["config"].clone();
        config["ack_wait"] = json!(u64::try_from(ack_wait.as_nanos()).unwrap());
        let (stream, consumer) = (subject::STREAM_REQUESTS, self.consumer(lane));
        let filter = config["filter_subject"].as_str().unwrap().to_owned();
        let request = json!({ "stream_name": stream, "config": config, "action": "update" });
        // A cluster that makes hundreds of consumers takes its time.
        let update = format!("CONSUMER.CREATE.{stream}.{consumer}.{filter}");
        eventually("the consumer's ack_wait", PATIENCE, async || self.bus.api(&update, &request).await.ok()).await;
    }

    async fn worker(&mut self, worker: u32) -> &mut Worker {
        if !self.workers.contains_key(&worker) {
            self.workers.insert(worker, Worker::new(&self.url).await);
        }
        self.workers.get_mut(&worker).unwrap()
    }

    /// Waits until the server has the pulls that its workers have, no more and no less.
    async fn pulls_are_known(&mut self, lane: usize) {
        let all = async {
            loop {
                let waiting = self.info(lane).await["num_waiting"].as_u64().unwrap();
                let mut open = 0;
                for worker in self.workers.values_mut() {
                    worker.absorb();
                    open += u64::from(worker.inboxes.get(&lane).is_some_and(|inbox| inbox.left > 0));
                }
                if waiting == open {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, all).await.expect("the server knows the pulls");
    }

    async fn all_pulls_are_known(&mut self) {
        for lane in 0..self.lanes.len() {
            self.pulls_are_known(lane).await;
        }
    }
}

impl Queue for Real {
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    async fn publish(&mut self, lane: usize, message: u32) {
        let (priority, pool) = self.lanes[lane];
        // Every message has a subject of its own, by which the stream tells what it has.
        let tenant: Tenant = format!("m{message}").parse().unwrap();
        let to = subject::request(&self.model, priority, pool, &tenant);
        self.bus.publish(&to, HeaderMap::new(), message.to_string().into()).await.unwrap();
    }

    async fn pull(&mut self, worker: u32, lane: usize, max: u32, preference: u8, expires: Duration) {
        let consumer = self.consumer(lane);
        let worker = self.worker(worker).await;
        let inbox = worker.inbox(lane).await;
        let stream = worker.bus.context.get_stream_no_info(subject::STREAM_REQUESTS).await.unwrap();
        let consumer: PullConsumer = stream.get_consumer(&consumer).await.unwrap();
        let batch = BatchConfig {
            batch: max as usize,
            expires: Some(expires),
            group: Some(subject::PULL_GROUP.to_owned()),
            priority: Some(preference.into()),
            ..BatchConfig::default()
        };
        consumer.request_batch(batch, inbox.into()).await.unwrap();
        worker.inboxes.get_mut(&lane).unwrap().left = max;
        self.pulls_are_known(lane).await;
    }

    async fn say(&mut self, worker: u32, message: u32, word: Word) -> bool {
        let payload = match word {
            Word::Ack => "+ACK".to_owned(),
            Word::Term => "+TERM contract".to_owned(),
            Word::Nak { delay_millis } => format!("-NAK {{\"delay\":{}}}", delay_millis * 1_000_000),
            Word::Extend => "+WPI".to_owned(),
        };
        let worker = self.worker(worker).await;
        for _ in 0..ASKED_MAX {
            if worker.bus.settle(&worker.replies[&message], payload.clone().into()).await.is_ok() {
                return true;
            }
        }
        false
    }

    async fn withdraw(&mut self, worker: u32) {
        let withdrawn = self.workers.get_mut(&worker).unwrap();
        withdrawn.absorb();
        withdrawn.inboxes.clear();
        withdrawn.subscriptions.shutdown().await;
        self.all_pulls_are_known().await;
    }

    async fn die(&mut self, worker: u32) {
        self.workers.remove(&worker);
        self.all_pulls_are_known().await;
    }

    async fn kill(&mut self) {
        let server = self.server.as_mut().expect("a server of its own");
        server.kill();
        server.restart().await;
        let info = format!("CONSUMER.INFO.{}.{}", subject::STREAM_REQUESTS, self.consumer(0));
        for bus in self.workers.values().map(|worker| &worker.bus).chain([&self.bus]) {
            eventually("a connection to the new server", PATIENCE, async || bus.api(&info, &Value::Null).await.ok())
                .await;
        }
        for inbox in self.workers.values_mut().flat_map(|worker| worker.inboxes.values_mut()) {
            inbox.left = 0;
        }
        self.all_pulls_are_known().await;
    }

    async fn forget(&mut self, lane: usize) {
        let subject = format!("CONSUMER.RESET.{}.{}", subject::STREAM_REQUESTS, self.consumer(lane));
        self.bus.api(&subject, &json!({})).await.unwrap();
    }

    async fn pass(&mut self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    async fn next(&mut self, worker: u32) -> Option<Event> {
        let worker = self.worker(worker).await;
        worker.absorb();
        if worker.unread.is_empty() {
            let (lane, message) = timeout(PATIENCE, worker.arrivals.recv()).await.ok()??;
            worker.hear(lane, message);
        }
        worker.unread.pop_front()
    }

    async fn stored(&mut self, awaited: &[u32]) -> Vec<u32> {
        let request = json!({ "subjects_filter": format!("darkroom.req.{}.>", self.model) });
        let began = Instant::now();
        loop {
            let info = self.bus.api(&format!("STREAM.INFO.{}", subject::STREAM_REQUESTS), &request).await.unwrap();
            let subjects = info["state"]["subjects"].as_object().cloned().unwrap_or_default();
            let number = |subject: &String| subject.rsplit_once(".m").and_then(|(_, number)| number.parse().ok());
            let mut stored: Vec<u32> = subjects.keys().filter_map(number).collect();
            stored.sort_unstable();
            if stored == awaited || began.elapsed() > PATIENCE {
                return stored;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn unread(&mut self) -> Vec<(u32, Event)> {
        let mut unread = Vec::new();
        for (key, worker) in &mut self.workers {
            worker.absorb();
            unread.extend(worker.unread.drain(..).map(|event| (*key, event)));
        }
        unread
    }
}
