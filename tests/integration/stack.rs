//! A Darkroom for one test: nats-server, topology, a directory for images, and workers as real processes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{FromConsumer as _, pull};
use darkroom::engine::read_manifest;
use darkroom::job::{JobId, Tenant};
use darkroom::shell::bus::{self, Bus};
use darkroom::shell::config::BusOptions;
use darkroom::shell::{client, topology};
use darkroom::wire::event::EventKind;
use darkroom::wire::record::Record;
use darkroom::wire::{header, subject};
use futures_util::StreamExt;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::nats::NatsServer;
use crate::support::process::Background;
use crate::support::{checkout, eventually};

/// How long anything may take on a slow machine before a test gives up on it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

pub(crate) fn model_directory() -> PathBuf {
    checkout().join("local/models/shapes")
}

/// A program of the workspace, as `cargo build --workspace --bins --examples` made it.
pub(crate) fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join(name);
    assert!(path.exists(), "{} is not there: run `cargo build --workspace --bins --examples` first", path.display());
    path
}

pub(crate) struct Stack {
    pub(crate) nats: NatsServer,
    pub(crate) bus: Bus,
    pub(crate) objects: TempDir,
}

impl Stack {
    pub(crate) async fn start() -> Self {
        let nats = NatsServer::start().await;
        let options = BusOptions::open(nats.url());
        let bus = bus::connect(&options, "test").await.unwrap();
        let manifest = read_manifest(&model_directory()).unwrap();
        let models = std::slice::from_ref(&manifest);
        topology::reconcile_with(&bus, models, nats.replicas(), topology::Mode::Apply).await.unwrap();
        Self { nats, bus, objects: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn store_url(&self) -> String {
        format!("file://{}", self.objects.path().display())
    }

    /// Lets messages of workers that are lost come back sooner. Workers that are started later know.
    pub(crate) async fn set_ack_wait(&self, ack_wait: Duration) {
        let stream = self.bus.context.get_stream(subject::STREAM_REQUESTS).await.unwrap();
        let mut names = stream.consumer_names();
        while let Some(name) = names.next().await {
            let consumer = stream.get_consumer::<pull::Config>(&name.unwrap()).await.unwrap();
            let config = consumer.cached_info().config.clone();
            let config = pull::Config { ack_wait, ..pull::Config::try_from_consumer_config(config).unwrap() };
            stream.update_consumer(config).await.unwrap();
        }
    }

    /// The command of a worker, which a test may add to.
    pub(crate) fn worker_command(&self) -> Command {
        self.worker_command_for(&self.store_url())
    }

    /// The same with another store.
    pub(crate) fn worker_command_for(&self, store: &str) -> Command {
        let mut command = Command::new(program("darkroom-generate"));
        command.args(["--nats", &self.nats.url(), "--store", store, "--model"]).arg(model_directory());
        command
    }

    /// A worker that is ready to pull.
    pub(crate) async fn worker(&self) -> Background {
        started(&mut self.worker_command()).await
    }

    /// Publishes a body as any NATS client would.
    pub(crate) async fn publish(&self, to: &str, id: Option<&str>, body: impl Into<Vec<u8>>) -> u64 {
        let mut headers = HeaderMap::new();
        if let Some(id) = id {
            headers.insert(header::MESSAGE_ID, id);
        }
        self.bus.publish(to, headers, bytes::Bytes::from(body.into())).await.unwrap().sequence
    }

    /// Publishes a request of tenant `t`.
    pub(crate) async fn request(&self, id: &str, body: &Value) -> u64 {
        self.publish(REQUESTS, Some(id), serde_json::to_vec(body).unwrap()).await
    }

    /// Waits for the job's end.
    pub(crate) async fn end_of(&self, job: &str) -> Record {
        let (tenant, job): (Tenant, JobId) = ("t".parse().unwrap(), job.parse().unwrap());
        eventually(&format!("the end of {job}"), PATIENCE, async || {
            let record = client::status(&self.bus, &tenant, &job).await.ok()??;
            record.state.status.is_terminal().then_some(record)
        })
        .await
    }

    /// Every stored event of a job: kinds in the order in which they were stored, with their bodies.
    pub(crate) async fn events_of(&self, tenant: &str, job: &str) -> Vec<(EventKind, Value)> {
        let filter = format!("darkroom.ev.{tenant}.{job}.>");
        let messages = self.stored(subject::STREAM_EVENTS, &filter).await;
        messages
            .iter()
            .map(|message| {
                let event: Value = serde_json::from_slice(&message.payload).unwrap();
                (EventKind::from_type(event["type"].as_str().unwrap()).unwrap(), event)
            })
            .collect()
    }

    /// Waits for a terminal event and returns all events.
    pub(crate) async fn events_to_the_end(&self, tenant: &str, job: &str) -> Vec<(EventKind, Value)> {
        eventually(&format!("the last event of {tenant}/{job}"), PATIENCE, async || {
            let events = self.events_of(tenant, job).await;
            events.last().is_some_and(|(kind, _)| kind.is_terminal()).then_some(events)
        })
        .await
    }

    /// The messages of a stream on subjects that match.
    pub(crate) async fn stored(&self, stream: &str, filter: &str) -> Vec<async_nats::Message> {
        let stream = bus::look(|| self.bus.context.get_stream(stream)).await.unwrap();
        let state = stream.cached_info().state.clone();
        let mut found = Vec::new();
        let prefix = filter.trim_end_matches('>');
        for sequence in state.first_sequence..=state.last_sequence {
            if let Ok(message) = stream.get_raw_message(sequence).await
                && message.subject.as_str().starts_with(prefix)
            {
                found.push(async_nats::Message {
                    subject: message.subject.clone(),
                    reply: None,
                    payload: message.payload.clone(),
                    headers: Some(message.headers.clone()),
                    status: None,
                    description: None,
                    length: 0,
                });
            }
        }
        found
    }

    /// Waits until no request is left.
    pub(crate) async fn queue_is_empty(&self) {
        self.queue_is("an empty queue", |requests| requests == 0).await;
    }

    /// Waits until there is a request.
    pub(crate) async fn queue_is_filled(&self) {
        self.queue_is("a request", |requests| requests > 0).await;
    }

    async fn queue_is(&self, what: &str, wanted: impl Fn(u64) -> bool) {
        eventually(what, PATIENCE, async || {
            let mut stream = self.bus.context.get_stream(subject::STREAM_REQUESTS).await.ok()?;
            wanted(stream.info().await.ok()?.state.messages).then_some(())
        })
        .await;
    }
}

/// Where tenant `t` publishes.
pub(crate) const REQUESTS: &str = "darkroom.req.shapes.normal.any.t";

/// What happened to a job; a machine that is slow enough makes checkpoints besides.
pub(crate) fn kinds_without_checkpoints(events: &[(EventKind, Value)]) -> Vec<EventKind> {
    events.iter().map(|(kind, _)| *kind).filter(|kind| *kind != EventKind::Checkpoint).collect()
}

/// Starts a worker and waits until it has its model.
pub(crate) async fn started(command: &mut Command) -> Background {
    let worker = Background::start(command);
    worker.wait_for_log(|line| line.contains("worker.ready"), PATIENCE).await;
    worker
}

/// The bytes of the image that an event or record speaks of, with its sha256 checked.
pub(crate) fn image_bytes(image: &Value) -> Vec<u8> {
    use sha2::{Digest, Sha256};
    let path = image["url"].as_str().unwrap().strip_prefix("file://").unwrap();
    let bytes = std::fs::read(Path::new(path)).unwrap();
    let digest = darkroom::wire::request::hexadecimal(&Sha256::digest(&bytes));
    assert_eq!(image["sha256"], digest.as_str());
    assert_eq!(image["size_bytes"], bytes.len() as u64);
    bytes
}
