//! A Darkroom to be broken: real servers, short leases, jobs whose images are known, and all of it written down.
//!
//! It breaks nothing itself. Two things differ from what `darkroom setup` makes: leases are short, so that what waits for
//! them is soon over, and the bucket of records keeps all revisions, so that they can be read afterwards.

use std::ops::Deref;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use async_nats::HeaderMap;
use darkroom::engine::{self, LoadOptions, StartingPictures, read_manifest};
use darkroom::job::{Defaults, ImageSpec, OutputFormat, Status};
use darkroom::shell::bus::{self, Bus, PubAck, PublishError};
use darkroom::shell::config::BusOptions;
use darkroom::shell::topology;
use darkroom::wire::cancel::{CancelAnswer, CancelOutcome, CancelRequest};
use darkroom::wire::event::EventKind;
use darkroom::wire::request::hexadecimal;
use darkroom::wire::{header, subject};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::checker::{self, Bounds};
use crate::history::{History, Log, What};
use crate::stack::{PATIENCE, model_directory, program};
use crate::support::eventually;
use crate::support::nats::NatsServer;
use crate::support::process::{Background, run};
use crate::support::s3::S3Server;

/// The most that a bucket can keep of one key.
const REVISIONS_KEPT: u32 = 64;
/// How long a client waits that got no confirmation.
const PUBLISH_AGAIN: Duration = Duration::from_millis(100);
/// Width and height of every picture: what breaks does not depend on them.
const SIZE: u32 = 128;

/// Where a worker can be stopped with a job that gets its image: points of `src/shell/failpoint.rs`.
pub(crate) const BOUNDARIES: [&str; 9] = [
    "claim.before",
    "claim.after",
    "store.before",
    "store.after",
    "record.after",
    "publish.before",
    "publish.after",
    "settle.before",
    "settle.after",
];

/// One picture that jobs may ask for.
#[derive(Debug)]
pub(crate) struct Picture {
    pub(crate) request: Value,
    /// Of the only image of a job that asks for it.
    pub(crate) sha256: String,
}

/// What to draw: prompt and steps, from a moment's work to some seconds'.
const PICTURES: [(&str, u32); 6] = [
    ("a red circle on a white background", 2),
    ("a green square on a white background", 4),
    ("a blue star on a yellow background", 8),
    ("a yellow ring on a blue background", 12),
    ("a purple heart on a white background", 20),
    ("a red triangle on a green background", 100),
];
/// The place of the one that takes long.
pub(crate) const LONG: usize = PICTURES.len() - 1;

/// The pictures, with what the engine makes of them when it has nothing else to do.
pub(crate) fn pictures() -> &'static [Picture] {
    static MADE: OnceLock<Vec<Picture>> = OnceLock::new();
    MADE.get_or_init(|| {
        let mut model = engine::load(&model_directory(), &LoadOptions::default()).expect("the default model");
        let scheduler = read_manifest(&model_directory()).expect("the default model").defaults.scheduler;
        let mut draw = |(seed, (prompt, steps)): (u64, (&str, u32))| {
            let defaults =
                Defaults { width: SIZE, height: SIZE, num_inference_steps: steps, guidance_scale: 5.0, scheduler };
            let spec = ImageSpec { seed, ..ImageSpec::with_defaults(prompt, &defaults) };
            let image =
                model.render(&spec, &StartingPictures::default(), None, &mut |_, _| ()).expect("an image").image;
            let bytes = engine::encode(&image, OutputFormat::Png).expect("a PNG");
            let request = json!({
                "prompt": prompt, "seed": seed, "num_inference_steps": steps, "guidance_scale": 5.0,
                "width": SIZE, "height": SIZE, "scheduler": scheduler.to_string(),
            });
            Picture { request, sha256: hexadecimal(&Sha256::digest(&bytes)) }
        };
        (0..).zip(PICTURES).map(&mut draw).collect()
    })
}

/// What is seen when a client begins to publish a request for a picture that must come.
pub(crate) fn submitted(picture: usize) -> What {
    What::Submitted { images: Some(vec![pictures()[picture].sha256.clone()]), may_fail: false }
}

/// Who asks for pictures, and writes down what came of it.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) bus: Bus,
    pub(crate) log: Log,
}

impl Client {
    /// Publishes a request for a picture, as often as it takes until the stream has confirmed it.
    pub(crate) async fn submit(&self, tenant: &str, id: &str, picture: usize) -> PubAck {
        self.log.saw(&format!("{tenant}/{id}"), submitted(picture));
        self.publish_surely(tenant, id, &pictures()[picture].request).await
    }

    /// The same where the faults may be too much for the job.
    pub(crate) async fn submit_allowing_failure(&self, tenant: &str, id: &str, picture: usize) -> PubAck {
        let Picture { request, sha256 } = &pictures()[picture];
        let images = Some(vec![sha256.clone()]);
        self.log.saw(&format!("{tenant}/{id}"), What::Submitted { images, may_fail: true });
        self.publish_surely(tenant, id, request).await
    }

    /// The same for a request that may fail, or must when no image is due.
    pub(crate) async fn submit_to_fail(&self, tenant: &str, id: &str, body: &Value) -> PubAck {
        self.log.saw(&format!("{tenant}/{id}"), What::Submitted { images: None, may_fail: true });
        self.publish_surely(tenant, id, body).await
    }

    async fn publish_surely(&self, tenant: &str, id: &str, body: &Value) -> PubAck {
        let publish = async {
            loop {
                if let Ok(confirmed) = self.publish_by(&self.bus, tenant, id, body).await {
                    return confirmed;
                }
                tokio::time::sleep(PUBLISH_AGAIN).await;
            }
        };
        match tokio::time::timeout(PATIENCE, publish).await {
            Ok(confirmed) => confirmed,
            Err(_) => panic!("{tenant}/{id} is not accepted within {PATIENCE:?}"),
        }
    }

    /// Asks a gateway to cancel a job, once, as a tenant does; `None` when the answer does not come.
    pub(crate) async fn cancel(&self, tenant: &str, id: &str, keep_partial: bool) -> Option<CancelAnswer> {
        let job = format!("{tenant}/{id}");
        self.log.saw(&job, What::CancelWanted);
        let request = CancelRequest { job: id.to_owned(), keep_partial };
        let subject = subject::api_cancel(&tenant.parse().expect("a tenant"));
        let body = serde_json::to_vec(&request).expect("JSON").into();
        let answer = self.bus.client.request(subject, body).await.ok()?;
        let answer: CancelAnswer = serde_json::from_slice(&answer.payload).ok()?;
        if answer.status.as_deref() == Some(Status::Cancelled.as_str()) {
            self.log.saw(&job, What::Cancelled);
        }
        if answer.outcome == CancelOutcome::Unknown {
            self.log.saw(&job, What::Denied);
        }
        Some(answer)
    }

    /// Publishes once, over the given connection.
    pub(crate) async fn publish_by(
        &self,
        bus: &Bus,
        tenant: &str,
        id: &str,
        body: &Value,
    ) -> Result<PubAck, PublishError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::MESSAGE_ID, id);
        let body = serde_json::to_vec(body).expect("JSON").into();
        let outcome = bus.publish(&format!("darkroom.req.shapes.normal.any.{tenant}"), headers, body).await;
        let job = format!("{tenant}/{id}");
        match &outcome {
            Ok(PubAck { sequence, duplicate }) => {
                self.log.saw(&job, What::Acknowledged { sequence: *sequence, duplicate: *duplicate });
            }
            Err(PublishError::Refused { description, .. }) => {
                self.log.saw(&job, What::Refused { reason: description.clone() });
            }
            Err(_) => {}
        }
        outcome
    }
}

/// Everything of one run.
pub(crate) struct Laboratory {
    pub(crate) nats: NatsServer,
    pub(crate) s3: S3Server,
    pub(crate) client: Client,
}

impl Deref for Laboratory {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Laboratory {
    /// One server; leases last `ack_wait`.
    pub(crate) async fn start(ack_wait: Duration) -> Self {
        Self::around(NatsServer::start_one().await, ack_wait).await
    }

    /// Three servers.
    pub(crate) async fn start_cluster(ack_wait: Duration) -> Self {
        Self::around(NatsServer::start_cluster().await, ack_wait).await
    }

    /// One server, in a directory that the test has prepared.
    pub(crate) async fn start_in(directory: TempDir, ack_wait: Duration) -> Self {
        Self::around(NatsServer::start_in(directory).await, ack_wait).await
    }

    async fn around(nats: NatsServer, ack_wait: Duration) -> Self {
        let bus = bus::connect(&BusOptions::open(nats.url()), "laboratory").await.expect("a server");
        let manifest = read_manifest(&model_directory()).expect("the default model");
        let models = std::slice::from_ref(&manifest);
        topology::reconcile_with(&bus, models, nats.replicas(), topology::Mode::Apply).await.expect("the topology");
        let log = Log::default();
        log.listen(&bus).await;
        let laboratory = Self { nats, s3: S3Server::start().await, client: Client { bus, log } };
        let records = format!("KV_{}", subject::BUCKET_JOBS);
        laboratory.change_stream(&records, "max_msgs_per_subject", json!(REVISIONS_KEPT)).await;
        laboratory.set_lease(ack_wait).await;
        laboratory
    }

    /// Changes how long leases last, also those that are out; workers know what it was when they started.
    pub(crate) async fn set_lease(&self, ack_wait: Duration) {
        let model = "shapes".parse().expect("a name");
        for (priority, pool) in topology::lanes() {
            self.set_lease_of(&subject::consumer(&model, priority, pool), ack_wait).await;
        }
    }

    /// Changes one field of a stream's configuration.
    pub(crate) async fn change_stream(&self, stream: &str, field: &str, value: Value) {
        eventually(&format!("{field} of {stream} to be changed"), PATIENCE, async || {
            let mut config = self.bus.api(&format!("STREAM.INFO.{stream}"), &Value::Null).await.ok()?["config"].take();
            config[field] = value.clone();
            self.bus.api(&format!("STREAM.UPDATE.{stream}"), &config).await.ok()
        })
        .await;
    }

    async fn set_lease_of(&self, consumer: &str, ack_wait: Duration) {
        eventually(&format!("the leases of {consumer} to be changed"), PATIENCE, async || {
            let info = format!("CONSUMER.INFO.{}.{consumer}", subject::STREAM_REQUESTS);
            let mut config = self.bus.api(&info, &Value::Null).await.ok()?["config"].take();
            config["ack_wait"] = json!(u64::try_from(ack_wait.as_nanos()).ok()?);
            let filter = config["filter_subject"].as_str()?.to_owned();
            let update = json!({ "stream_name": subject::STREAM_REQUESTS, "config": config, "action": "update" });
            let change = format!("CONSUMER.CREATE.{}.{consumer}.{filter}", subject::STREAM_REQUESTS);
            self.bus.api(&change, &update).await.ok()
        })
        .await;
    }

    /// The command of a worker of that name, which a test may add to.
    pub(crate) fn worker_command(&self, name: &str) -> Command {
        self.worker_command_at(name, &self.nats.url(), self.s3.port())
    }

    /// The same, with other ways to NATS and the store.
    pub(crate) fn worker_command_at(&self, name: &str, nats: &str, s3_port: u16) -> Command {
        let mut command = Command::new(program("darkroom-generate"));
        command.args(["--worker", name, "--nats", nats, "--store", &self.s3.store_url(), "--model"]);
        command.arg(model_directory()).envs(self.s3.environment());
        command.env("AWS_ENDPOINT", format!("http://127.0.0.1:{s3_port}"));
        command
    }

    /// What answers clients, as it starts.
    pub(crate) fn gateway(&self, nats: &str) -> Background {
        Background::start(Command::new(program("darkroom-gateway")).args(["--nats", nats]))
    }

    /// What `darkroom doctor` says.
    pub(crate) async fn doctor(&self) -> String {
        let mut command = Command::new(program("darkroom"));
        run(command.args(["--nats", &self.nats.url(), "doctor"]), PATIENCE).await.stdout
    }

    /// What ends jobs that no worker will end, as it starts, and quicker about it than it is by default.
    pub(crate) fn deadletter(&self, nats: &str) -> Background {
        let mut command = Command::new(program("darkroom-deadletter"));
        command.args(["--nats", nats, "--reconcile-every", "5s", "--reconcile-grace", "20s"]);
        Background::start(&mut command)
    }

    /// A worker that is ready to pull.
    pub(crate) async fn worker(&self, name: &str) -> Background {
        crate::stack::started(&mut self.worker_command(name)).await
    }

    /// Waits until no pull is open that could get what is published next.
    pub(crate) async fn nobody_pulls(&self) {
        let info = format!("CONSUMER.INFO.{}.shapes-normal-any", subject::STREAM_REQUESTS);
        eventually("no open pull", PATIENCE, async || {
            let info = self.bus.api(&info, &Value::Null).await.ok()?;
            (info["num_waiting"] == 0).then_some(())
        })
        .await;
    }

    /// How many events of that kind are stored of a job.
    pub(crate) async fn events(&self, job: &str, kind: EventKind) -> Option<u64> {
        let request = json!({ "subjects_filter": format!("darkroom.ev.{}.{}", job.replace('/', "."), kind.as_str()) });
        let info = self.bus.api(&format!("STREAM.INFO.{}", subject::STREAM_EVENTS), &request).await.ok()?;
        let counts = info["state"]["subjects"].as_object().cloned().unwrap_or_default();
        Some(counts.values().filter_map(Value::as_u64).sum())
    }

    /// Waits until there is such an event of a job.
    pub(crate) async fn seen(&self, job: &str, kind: EventKind) {
        self.seen_times(1, job, kind).await;
    }

    /// Waits until there are so many of them.
    pub(crate) async fn seen_times(&self, times: u64, job: &str, kind: EventKind) {
        eventually(&format!("{} of {job}, {times} times", kind.as_str()), PATIENCE, async || {
            self.events(job, kind).await.filter(|count| *count >= times)
        })
        .await;
    }

    /// Waits until no request is left, and returns what was seen.
    pub(crate) async fn drained(&self) -> History {
        eventually("an empty queue", PATIENCE, async || {
            topology::requests_stored(&self.bus).await.ok().filter(|left| *left == 0)
        })
        .await;
        self.log.history(&self.bus, &self.s3).await
    }

    /// Waits until no request is left, and judges.
    ///
    /// # Panics
    /// If a promise was broken, with all that was seen of the jobs concerned.
    pub(crate) async fn verdict(&self, attempts_wasted_max: u32) -> History {
        let history = self.drained().await;
        let violations = checker::check(&history, &Bounds { attempts_wasted_max });
        assert!(violations.is_empty(), "\n{}", checker::report(&history, &violations));
        history
    }
}
