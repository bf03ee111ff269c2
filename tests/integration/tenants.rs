//! Tenants in accounts of their own: what each role may do, and that programs work with no more than that.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event, HeaderMap, StatusCode};
use darkroom::shell::bus::{self, Bus};
use darkroom::shell::config::BusOptions;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::stack::{PATIENCE, model_directory, program, started};
use crate::support::certificates::Certificates;
use crate::support::nats::{self, NatsServer};
use crate::support::process::{Background, Finished, run};
use crate::support::{checkout, eventually};

/// How long an answer on loopback may take.
pub(crate) const ANSWER: Duration = Duration::from_secs(20);

/// A server with accounts, the topology, and the tenants `acme` and `beta`.
pub(crate) struct Platform {
    pub(crate) nats: NatsServer,
    objects: TempDir,
}

impl Platform {
    pub(crate) async fn start() -> Self {
        let platform = Self::start_bare(false).await;
        let model = model_directory();
        let setup = platform.darkroom("setup", ["setup", "--model", &model.display().to_string()]).await;
        setup.expect_success();
        platform
    }

    /// Without streams; `verify`: clients need a certificate too.
    pub(crate) async fn start_bare(verify: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().display().to_string();
        run(Command::new(program("darkroom")).args(["accounts", "--dir", &path]), PATIENCE).await.expect_success();
        for tenant in ["acme", "beta"] {
            add_tenant(directory.path(), tenant).await;
        }
        let nats = NatsServer::start_with_accounts(directory, Certificates::make(), verify).await;
        Self { nats, objects: tempfile::tempdir().unwrap() }
    }

    fn seed(&self, who: &str) -> PathBuf {
        self.nats.directory().join(who).with_extension("nk")
    }

    fn inbox(who: &str) -> String {
        if ["acme", "beta", "late"].contains(&who) { "_INBOX".to_owned() } else { format!("_INBOX_{who}") }
    }

    pub(crate) fn options(&self, who: &str) -> BusOptions {
        BusOptions {
            nats_nkey: Some(self.seed(who)),
            nats_ca: Some(self.nats.certificates().authority.clone()),
            nats_inbox_prefix: Self::inbox(who),
            ..BusOptions::open(self.nats.url())
        }
    }

    pub(crate) async fn bus(&self, who: &str) -> Bus {
        bus::connect(&self.options(who), "test").await.unwrap()
    }

    /// A program that is `who` on the bus.
    pub(crate) fn command(&self, name: &str, who: &str) -> Command {
        let mut command = Command::new(program(name));
        command
            .env("NATS_URL", self.nats.url())
            .env("NATS_NKEY", self.seed(who))
            .env("NATS_CA", &self.nats.certificates().authority)
            .env("NATS_INBOX_PREFIX", Self::inbox(who));
        command
    }

    pub(crate) async fn darkroom<'a>(&self, who: &str, arguments: impl IntoIterator<Item = &'a str>) -> Finished {
        run(self.command("darkroom", who).args(arguments), PATIENCE).await
    }

    pub(crate) async fn worker(&self) -> Background {
        let mut command = self.command("darkroom-generate", "worker");
        command.arg("--store").arg(format!("file://{}", self.objects.path().display()));
        started(command.arg("--model").arg(model_directory())).await
    }

    pub(crate) async fn gateway(&self) -> Background {
        let gateway = Background::start(&mut self.command("darkroom-gateway", "gateway"));
        gateway.wait_for_log(|line| line.contains("gateway.ready"), PATIENCE).await;
        gateway
    }

    /// What is in a stream, as `setup` sees it: messages by subject.
    pub(crate) async fn subjects(&self, stream: &str) -> BTreeMap<String, u64> {
        let info = json!({ "subjects_filter": ">" });
        let info = self.bus("setup").await.api(&format!("STREAM.INFO.{stream}"), &info).await.unwrap();
        let mut subjects: BTreeMap<String, u64> =
            serde_json::from_value(info["state"]["subjects"].clone()).unwrap_or_default();
        // What the gateway finds out by itself whether streams take messages.
        subjects.retain(|subject, _| !subject.ends_with("._probe"));
        subjects
    }

    /// All that a tenant could wish to change, of everybody but `acme`.
    pub(crate) async fn of_others(&self) -> BTreeMap<String, u64> {
        let mut all = BTreeMap::new();
        for stream in ["DARKROOM_REQ", "DARKROOM_EV", "DARKROOM_PROG", "DARKROOM_DLQ", "KV_darkroom_jobs"] {
            all.extend(self.subjects(stream).await);
        }
        all.retain(|subject, _| !subject.split('.').any(|token| token == "acme"));
        all
    }

    /// A job of beta's that waits, an event and a record of its other one.
    pub(crate) async fn with_work_of_beta(&self) {
        let worker = self.bus("worker").await;
        for subject in ["darkroom.ev.beta.job-1.completed", "darkroom.prog.beta.job-1", "$KV.darkroom_jobs.beta.job-1"]
        {
            worker.publish(subject, HeaderMap::new(), "of beta".into()).await.unwrap();
        }
        self.bus("beta").await.publish(&requests_of("beta"), HeaderMap::new(), body("job-2")).await.unwrap();
    }
}

pub(crate) fn requests_of(tenant: &str) -> String {
    format!("darkroom.req.shapes.normal.any.{tenant}")
}

pub(crate) fn body(job: &str) -> bytes::Bytes {
    json!({ "id": job, "prompt": "a red circle" }).to_string().into()
}

async fn add_tenant(directory: &Path, tenant: &str) {
    let seed = directory.join(tenant).with_extension("nk").display().to_string();
    let mut command = Command::new(program("darkroom"));
    command.args(["tenant", "add", tenant, "--model", "shapes", "--seed", &seed]);
    let block = run(&mut command, PATIENCE).await.expect_success();
    let path = directory.join("tenants.conf");
    let known = fs::read_to_string(&path).unwrap();
    fs::write(path, known + &block).unwrap();
}

/// A connection that hears what the server refuses.
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) refusals: mpsc::UnboundedReceiver<String>,
}

/// How an attempt ended.
#[derive(Debug)]
enum Outcome {
    /// The server refused it, in these words.
    Violation(String),
    /// Nobody was there to hear it.
    NoResponders,
    /// An answer.
    Answer(Value),
    /// Nothing was refused, and nothing more will be said.
    Silence,
}

#[derive(Clone, Copy, Debug)]
enum Attempt {
    Publish(&'static str, &'static str),
    /// What nobody answers, allowed or not.
    Tell(&'static str, &'static str),
    Subscribe(&'static str),
}

impl Session {
    pub(crate) async fn open(platform: &Platform, who: &str) -> Self {
        let (words, refusals) = mpsc::unbounded_channel();
        let seed = fs::read_to_string(platform.seed(who)).unwrap().trim().to_owned();
        let client = ConnectOptions::with_nkey(seed)
            .add_root_certificates(platform.nats.certificates().authority.clone())
            .require_tls(true)
            .custom_inbox_prefix(Platform::inbox(who))
            .event_callback(move |event| {
                if let Event::ServerError(_) | Event::Disconnected = event {
                    let _ = words.send(event.to_string());
                }
                async {}
            })
            .connect(platform.nats.url())
            .await
            .unwrap();
        Self { client, refusals }
    }

    /// What was refused before now: something that is refused to everybody tells where now is.
    async fn violations(&mut self) -> Vec<String> {
        const PROBE: &str = "forbidden.to.all";
        self.client.publish(PROBE, bytes::Bytes::new()).await.unwrap();
        self.client.flush().await.unwrap();
        let mut found = Vec::new();
        loop {
            let words = timeout(ANSWER, self.refusals.recv()).await.expect("the probe is refused").unwrap();
            if words.contains(PROBE) {
                return found;
            }
            found.push(words);
        }
    }

    async fn attempt(&mut self, attempt: Attempt) -> Outcome {
        match attempt {
            Attempt::Subscribe(subject) => {
                let mut subscription = self.client.subscribe(subject).await.unwrap();
                let violations = self.violations().await;
                subscription.unsubscribe().await.unwrap();
                violations.into_iter().next().map_or(Outcome::Silence, Outcome::Violation)
            }
            Attempt::Tell(subject, body) => {
                self.client.publish(subject, body.into()).await.unwrap();
                self.violations().await.into_iter().next().map_or(Outcome::Silence, Outcome::Violation)
            }
            Attempt::Publish(subject, body) => {
                let inbox = self.client.new_inbox();
                let mut answers = self.client.subscribe(inbox.clone()).await.unwrap();
                self.client.publish_with_reply(subject, inbox, body.into()).await.unwrap();
                if let Some(words) = self.violations().await.into_iter().next() {
                    return Outcome::Violation(words);
                }
                let answer = timeout(ANSWER, answers.next()).await;
                let answer = answer.unwrap_or_else(|_| panic!("no answer on {subject}")).unwrap();
                if answer.status == Some(StatusCode::NO_RESPONDERS) {
                    return Outcome::NoResponders;
                }
                Outcome::Answer(serde_json::from_slice(&answer.payload).unwrap_or(Value::Null))
            }
        }
    }
}

/// What stands behind the rows of the table in docs/tenants.md; the tenant is `acme`.
fn attempts() -> BTreeMap<&'static str, Attempt> {
    use Attempt::{Publish, Subscribe, Tell};
    BTreeMap::from([
        ("publish a request of its own", Publish("darkroom.req.shapes.normal.any.acme", "{}")),
        (
            "publish a request for a pool that was not granted",
            Publish("darkroom.req.shapes.normal.ondemand.acme", "{}"),
        ),
        ("publish a request for a model that was not granted", Publish("darkroom.req.other.normal.any.acme", "{}")),
        ("publish a request as another tenant", Publish("darkroom.req.shapes.normal.any.beta", "{}")),
        ("hear requests", Subscribe("darkroom.req.>")),
        ("pull a request", Publish("$JS.API.CONSUMER.MSG.NEXT.DARKROOM_REQ.shapes-low-any", r#"{"no_wait":true}"#)),
        ("acknowledge a request", Tell("$JS.ACK.DARKROOM_REQ.shapes-low-any.1.1.1.1.0", "+ACK")),
        ("get a request from the stream", Publish("$JS.API.STREAM.MSG.GET.DARKROOM_REQ", r#"{"seq":1}"#)),
        ("get a request from a copy of the stream", Publish("$JS.API.DIRECT.GET.DARKROOM_REQ", r#"{"seq":1}"#)),
        ("remove a request", Publish("$JS.API.STREAM.MSG.DELETE.DARKROOM_REQ", r#"{"seq":987654}"#)),
        ("remove all requests", Publish("$JS.API.STREAM.PURGE.DARKROOM_REQ", "")),
        ("hear events of its own", Subscribe("darkroom.ev.acme.>")),
        ("hear events of another tenant", Subscribe("darkroom.ev.beta.>")),
        ("hear events of all", Subscribe("darkroom.ev.>")),
        ("hear progress of its own", Subscribe("darkroom.prog.acme.*")),
        ("hear progress of another tenant", Subscribe("darkroom.prog.beta.*")),
        (
            "read a stored event of its own",
            Publish("$JS.API.DIRECT.GET.DARKROOM_EV.darkroom.ev.acme.job-1.completed", ""),
        ),
        (
            "read a stored event of another tenant",
            Publish("$JS.API.DIRECT.GET.DARKROOM_EV.darkroom.ev.beta.job-1.completed", ""),
        ),
        ("read a stored event by its number", Publish("$JS.API.DIRECT.GET.DARKROOM_EV", r#"{"seq":1}"#)),
        ("publish an event `completed`", Publish("darkroom.ev.acme.job-3.completed", "{}")),
        ("publish an event `failed`", Publish("darkroom.ev.acme.job-3.failed", "{}")),
        ("publish an event `cancelled`", Publish("darkroom.ev.acme.job-3.cancelled", "{}")),
        ("publish an event `started`", Publish("darkroom.ev.acme.job-3.started", "{}")),
        ("publish an event of another tenant", Publish("darkroom.ev.beta.job-3.completed", "{}")),
        ("publish progress", Publish("darkroom.prog.acme.job-3", "{}")),
        ("publish a dead letter", Publish("darkroom.dlq.shapes.acme", "{}")),
        ("look at the stream of dead letters", Publish("$JS.API.STREAM.INFO.DARKROOM_DLQ", "")),
        ("read a dead letter", Publish("$JS.API.DIRECT.GET.DARKROOM_DLQ", r#"{"seq":1}"#)),
        ("remove a dead letter", Publish("$JS.API.STREAM.MSG.DELETE.DARKROOM_DLQ", r#"{"seq":987654}"#)),
        ("read records of all at once", Publish("$JS.API.DIRECT.GET.KV_darkroom_jobs", r#"{"seq":1}"#)),
        ("read what all workers announced", Publish("$JS.API.DIRECT.GET.KV_darkroom_workers", r#"{"seq":1}"#)),
        (
            "pull what the server says of requests",
            Publish("$JS.API.CONSUMER.MSG.NEXT.DARKROOM_ADV.deadletter", r#"{"no_wait":true,"expires":1000000}"#),
        ),
        (
            "make a consumer of what the server says of requests",
            Publish("$JS.API.CONSUMER.CREATE.DARKROOM_ADV.mine", "{}"),
        ),
        (
            "read a record where records are written",
            Publish("$JS.API.STREAM.MSG.GET.KV_darkroom_jobs", r#"{"last_by_subj":"$KV.darkroom_jobs.acme.job-1"}"#),
        ),
        ("read a record of its own", Publish("$JS.API.DIRECT.GET.KV_darkroom_jobs.$KV.darkroom_jobs.acme.job-1", "")),
        (
            "read a record of another tenant",
            Publish("$JS.API.DIRECT.GET.KV_darkroom_jobs.$KV.darkroom_jobs.beta.job-1", ""),
        ),
        ("write a record", Publish("$KV.darkroom_jobs.acme.job-3", "{}")),
        ("write a record of another tenant", Publish("$KV.darkroom_jobs.beta.job-3", "{}")),
        (
            "list the keys of all records",
            Publish("$JS.API.STREAM.INFO.KV_darkroom_jobs", r#"{"subjects_filter":"$KV.darkroom_jobs.>"}"#),
        ),
        ("follow all records", Publish("$JS.API.CONSUMER.CREATE.KV_darkroom_jobs.follow", "{}")),
        ("find out whether a stream takes messages", Publish("darkroom.req._probe", "")),
        ("look up an API key", Publish("$JS.API.DIRECT.GET.KV_darkroom_keys.$KV.darkroom_keys.abc", "")),
        ("make an API key", Publish("$KV.darkroom_keys.abc", "{}")),
        ("announce a worker", Publish("$KV.darkroom_workers.worker-1", "{}")),
        (
            "read what a worker announced",
            Publish("$JS.API.DIRECT.GET.KV_darkroom_workers.$KV.darkroom_workers.worker-1", ""),
        ),
        ("ask for a job of its own to be cancelled", Publish("darkroom.api.cancel.acme", r#"{"job":"job-9"}"#)),
        ("ask for a job of another tenant to be cancelled", Publish("darkroom.api.cancel.beta", r#"{"job":"job-9"}"#)),
        ("hear who wants a job cancelled", Subscribe("darkroom.api.cancel.*")),
        ("ask a worker to cancel", Tell("darkroom.ctl.cancel.job-1", "")),
        ("hear what is to be cancelled", Subscribe("darkroom.ctl.cancel.*")),
        ("look at a consumer of requests", Publish("$JS.API.CONSUMER.INFO.DARKROOM_REQ.shapes-low-any", "")),
        ("list the consumers of requests", Publish("$JS.API.CONSUMER.LIST.DARKROOM_REQ", "")),
        ("make a consumer of requests", Publish("$JS.API.CONSUMER.CREATE.DARKROOM_REQ.mine.darkroom.req.mine.>", "{}")),
        ("make a consumer of events", Publish("$JS.API.CONSUMER.CREATE.DARKROOM_EV.mine.darkroom.ev.acme.>", "{}")),
        (
            "pull an event for webhooks",
            Publish("$JS.API.CONSUMER.MSG.NEXT.DARKROOM_EV.webhook", r#"{"no_wait":true,"expires":1000000}"#),
        ),
        ("send a webhook on its way", Publish("darkroom.hook.due.acme.job-3", "{}")),
        (
            "pull a webhook",
            Publish("$JS.API.CONSUMER.MSG.NEXT.DARKROOM_HOOK.webhook", r#"{"no_wait":true,"expires":1000000}"#),
        ),
        ("get a webhook that is on its way", Publish("$JS.API.STREAM.MSG.GET.DARKROOM_HOOK", r#"{"seq":1}"#)),
        ("make a consumer of webhooks", Publish("$JS.API.CONSUMER.CREATE.DARKROOM_HOOK.mine", "{}")),
        ("keep a webhook that was given up", Publish("darkroom.hook.dead.acme.job-3", "{}")),
        ("look at the stream of webhooks that were given up", Publish("$JS.API.STREAM.INFO.DARKROOM_HOOK_DLQ", "")),
        ("read a webhook that was given up", Publish("$JS.API.DIRECT.GET.DARKROOM_HOOK_DLQ", r#"{"seq":1}"#)),
        (
            "remove a webhook that was given up",
            Publish("$JS.API.STREAM.MSG.DELETE.DARKROOM_HOOK_DLQ", r#"{"seq":987654}"#),
        ),
        ("count an attempt of a webhook", Publish("$KV.darkroom_webhooks.attempts.1", "{}")),
        ("disable or enable an endpoint", Publish("$KV.darkroom_webhooks.endpoint.acme.aa", "{}")),
        (
            "read whether an endpoint is disabled",
            Publish("$JS.API.DIRECT.GET.KV_darkroom_webhooks.$KV.darkroom_webhooks.endpoint.acme.aa", ""),
        ),
        ("list disabled endpoints", Publish("$JS.API.DIRECT.GET.KV_darkroom_webhooks", r#"{"seq":1}"#)),
        (
            "read a tenant's secret",
            Publish("$JS.API.DIRECT.GET.KV_darkroom_webhook_secrets.$KV.darkroom_webhook_secrets.acme", ""),
        ),
        ("read secrets of all at once", Publish("$JS.API.DIRECT.GET.KV_darkroom_webhook_secrets", r#"{"seq":1}"#)),
        ("remember how a model was", Publish("$KV.darkroom_models.shapes", "{}")),
        ("count what a worker did", Publish("$KV.darkroom_usage.shapes.spot.w.1.3600", "{}")),
        ("read what workers did", Publish("$JS.API.DIRECT.GET.KV_darkroom_usage", r#"{"seq":1}"#)),
        ("plan how a model is scaled", Publish("$KV.darkroom_scale.plan.shapes", "{}")),
        ("read how a model is to be scaled", Publish("$JS.API.DIRECT.GET.KV_darkroom_scale", r#"{"seq":1}"#)),
        ("say that somebody will soon ask for a model", Tell("darkroom.ctl.wake.shapes", "")),
        ("hear who will soon ask", Subscribe("darkroom.ctl.wake.*")),
        ("look at a consumer of webhooks", Publish("$JS.API.CONSUMER.INFO.DARKROOM_HOOK.webhook", "")),
        ("change a tenant's secret", Publish("$KV.darkroom_webhook_secrets.acme", "{}")),
        ("make a consumer of secrets", Publish("$JS.API.CONSUMER.CREATE.KV_darkroom_webhook_secrets.mine", "{}")),
        ("look at the stream of requests", Publish("$JS.API.STREAM.INFO.DARKROOM_REQ", "")),
        ("look at the stream of events", Publish("$JS.API.STREAM.INFO.DARKROOM_EV", "")),
        ("make or change a stream", Publish("$JS.API.STREAM.CREATE.MINE", "{}")),
        ("delete a stream", Publish("$JS.API.STREAM.DELETE.DARKROOM_EV", "")),
        ("take a copy of a stream away", Publish("$JS.API.STREAM.SNAPSHOT.DARKROOM_EV", "{}")),
        ("delete a consumer of requests", Publish("$JS.API.CONSUMER.DELETE.DARKROOM_REQ.shapes-low-any", "")),
        ("ask the server about itself", Publish("$SYS.REQ.SERVER.PING", "")),
        ("hear answers to workers", Subscribe("_INBOX_worker.>")),
        ("hear everything", Subscribe(">")),
    ])
}

/// The table of docs/tenants.md: its roles, and its rows with a cell for each.
fn table() -> (Vec<String>, Vec<(String, Vec<bool>)>) {
    let text = fs::read_to_string(checkout().join("docs/tenants.md")).unwrap();
    let cells =
        |line: &str| -> Vec<String> { line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect() };
    let mut lines = text.lines().skip_while(|line| !line.starts_with("| | tenant"));
    let roles = cells(lines.next().unwrap())[1..].to_vec();
    let rows = lines.skip(1).take_while(|line| line.starts_with('|')).map(|line| {
        let cells = cells(line);
        let allowed = cells[1..].iter().map(|cell| match cell.as_str() {
            "yes" => true,
            "–" => false,
            other => panic!("{other} in {line}"),
        });
        (cells[0].clone(), allowed.collect())
    });
    (roles, rows.collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_can_do_what_the_table_says_and_nothing_else() {
    let platform = Platform::start().await;
    let _gateway = platform.gateway().await;
    let (roles, rows) = table();
    let attempts = attempts();
    let named: Vec<&str> = rows.iter().map(|(name, _)| name.as_str()).collect();
    let unnamed: Vec<&&str> = attempts.keys().filter(|name| !named.contains(name)).collect();
    assert!(unnamed.is_empty(), "not in docs/tenants.md: {unnamed:?}");

    let mut wrong = Vec::new();
    for (column, role) in roles.iter().enumerate() {
        let is_tenant = role == "tenant";
        let mut session = Session::open(&platform, if is_tenant { "acme" } else { role }).await;
        for (name, allowed) in &rows {
            let attempt = attempts.get(name.as_str()).unwrap_or_else(|| panic!("nothing tries: {name}"));
            let outcome = session.attempt(*attempt).await;
            let could = match &outcome {
                Outcome::Violation(words) => {
                    assert!(words.to_lowercase().contains("permissions violation"), "{role}: {name}: {words}");
                    false
                }
                // In the platform's account only permissions are asked about; in a tenant's, what is behind the wall.
                Outcome::NoResponders => !is_tenant,
                Outcome::Answer(answer) => !is_tenant || answer["error"]["err_code"] != 10039,
                Outcome::Silence => true,
            };
            if could != allowed[column] {
                wrong.push(format!("{role}: {name}: {outcome:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_cancels_its_own_jobs_and_no_others() {
    let platform = Platform::start().await;
    let cancel = async |who, tenant| {
        let finished = platform.darkroom(who, ["--json", "cancel", "one", "--tenant", tenant]).await;
        (finished.status.code(), format!("{finished}"))
    };
    let submit = ["submit", "a ring", "--model", "shapes", "--job", "one", "--tenant", "acme"];
    platform.darkroom("acme", submit).await.expect_success();
    let (code, said) = cancel("acme", "acme").await;
    assert!(code == Some(4) && said.contains("no gateway answers"), "{said}");
    let _gateway = platform.gateway().await;
    let (code, said) = cancel("beta", "acme").await;
    assert!(code == Some(4), "another tenant's jobs cannot even be asked for: {said}");
    let (code, said) = cancel("beta", "beta").await;
    assert!(code == Some(6) && said.contains("there is no job one of tenant beta"), "{said}");
    let (code, said) = cancel("acme", "acme").await;
    assert!(code == Some(0) && said.contains(r#""outcome":"cancelled""#), "{said}");
    let watched = platform.darkroom("acme", ["watch", "one", "--tenant", "acme"]).await;
    assert_eq!(watched.status.code(), Some(8), "{watched}");
    assert!(platform.subjects("DARKROOM_REQ").await.is_empty(), "no worker is woken for it");
    // The operator's key does the same without a gateway's help.
    platform.darkroom("acme", submit.map(|word| if word == "one" { "two" } else { word })).await.expect_success();
    platform.darkroom("gateway", ["cancel", "two", "--tenant", "acme"]).await.expect_success();
    assert!(platform.subjects("DARKROOM_REQ").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_job_runs_through_its_account_and_no_other_sees_it() {
    let platform = Platform::start().await;
    let beta = platform.bus("beta").await.client;
    let (mut events, mut progress) =
        (beta.subscribe("darkroom.ev.beta.>").await.unwrap(), beta.subscribe("darkroom.prog.beta.*").await.unwrap());
    beta.flush().await.unwrap();
    let _worker = platform.worker().await;

    let out = platform.objects.path().join("out.png").display().to_string();
    let own = ["--tenant", "acme"];
    let submit = ["--json", "submit", "a red circle", "--model", "shapes", "--job", "one", "--steps", "2"];
    let arguments = [&submit[..], &["--width", "64", "--height", "64", "--out", &out], &own].concat();
    let done = platform.darkroom("acme", arguments).await;
    assert!(done.status.success(), "{done}");
    for kind in ["accepted", "started", "progress", "completed"] {
        assert!(done.stdout.contains(&format!("darkroom.job.{kind}")), "{done}");
    }
    assert!(fs::read(&out).unwrap().starts_with(b"\x89PNG"));

    let status = platform.darkroom("acme", ["--json", "status", "one", "--tenant", "acme"]).await.expect_success();
    assert!(status.contains("\"status\":\"completed\""), "{status}");
    let watched = platform.darkroom("acme", ["--json", "watch", "one", "--tenant", "acme"]).await.expect_success();
    assert!(watched.contains("darkroom.job.completed"), "{watched}");
    let doctor = platform.darkroom("acme", ["doctor"]).await.expect_success();
    assert!(doctor.contains("tenant's"), "{doctor}");

    // What is wrong with a request is said by the worker.
    let wrong = ["submit", "a red circle", "--model", "shapes", "--job", "two", "--steps", "101", "--watch"];
    let failed = platform.darkroom("acme", [&wrong[..], &own].concat()).await;
    assert_eq!(failed.status.code(), Some(5), "{failed}");
    assert!(failed.stderr.contains("num_inference_steps"), "{failed}");

    // Another tenant, and its own name for the job, get nothing.
    for arguments in [["status", "one", "--tenant", "acme"], ["watch", "one", "--tenant", "acme"]] {
        let finished = platform.darkroom("beta", arguments).await;
        assert!(!finished.status.success() && !finished.stdout.contains("completed"), "{finished}");
    }
    assert_eq!(platform.darkroom("beta", ["status", "one", "--tenant", "beta"]).await.status.code(), Some(6));
    let as_acme = [&submit[..], &own].concat();
    let refused = platform.darkroom("beta", as_acme).await;
    assert!(refused.stderr.contains("no stream takes"), "{refused}");
    // What beta hears next is its own: everything before it has been heard.
    platform.bus("worker").await.publish("darkroom.ev.beta.end.failed", HeaderMap::new(), "own".into()).await.unwrap();
    let heard = timeout(ANSWER, events.next()).await.unwrap().unwrap();
    assert_eq!(heard.subject.as_str(), "darkroom.ev.beta.end.failed");
    beta.flush().await.unwrap();
    progress.unsubscribe().await.unwrap();
    assert!(progress.next().await.is_none(), "beta hears of another's progress");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_platforms_programs_work_with_the_keys_of_their_roles() {
    let platform = Platform::start().await;
    let mut command = platform.command("darkroom-deadletter", "deadletter");
    let _deadletter = Background::start(&mut command);
    let gateway = platform.bus("gateway").await;
    let ghost = "darkroom.req.ghost.normal.any.acme";
    gateway.publish(ghost, HeaderMap::new(), body("lost")).await.unwrap();
    let submit = ["submit", "a ring", "--job", "kept", "--tenant", "beta"];
    assert_eq!(platform.darkroom("gateway", submit).await.expect_success(), "kept\n");
    eventually("the end of the request that nobody serves", PATIENCE, async || {
        let status = platform.darkroom("gateway", ["--json", "status", "lost", "--tenant", "acme"]).await;
        (status.stdout.contains("\"failed\"") && status.stdout.contains("unserved")).then_some(())
    })
    .await;
    let listed = platform.darkroom("gateway", ["--json", "list"]).await.expect_success();
    assert_eq!(listed.lines().count(), 2, "{listed}");
    let models = platform.darkroom("gateway", ["models"]).await.expect_success();
    assert!(models.contains("shapes"), "{models}");
    platform.darkroom("setup", ["doctor"]).await.expect_success();
    platform.darkroom("setup", ["setup", "--check"]).await.expect_success();
    assert_eq!(platform.subjects("DARKROOM_DLQ").await.keys().collect::<Vec<_>>(), ["darkroom.dlq.ghost.acme"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_come_while_the_server_runs_and_an_import_of_anothers_is_refused() {
    let platform = Platform::start().await;
    let directory = platform.nats.directory().to_owned();
    add_tenant(&directory, "late").await;
    let worker = platform.bus("worker").await;
    assert!(bus::connect(&platform.options("late"), "test").await.is_err(), "the server cannot know it yet");
    // The first makes the account, and only the second connects what it imports (seen with nats-server 2.15.1).
    platform.nats.reload().await;
    platform.nats.reload().await;
    platform.bus("late").await.publish(&requests_of("late"), HeaderMap::new(), body("one")).await.unwrap();
    // Those who were there before noticed nothing.
    worker.publish("darkroom.ev.late.one.accepted", HeaderMap::new(), "x".into()).await.unwrap();
    assert!(platform.subjects("DARKROOM_REQ").await.contains_key(&requests_of("late")));

    let path = directory.join("tenants.conf");
    let good = fs::read_to_string(&path).unwrap();
    for (own, anothers) in [
        ("subject: \"darkroom.ev.late.>\"", "subject: \"darkroom.ev.beta.>\""),
        ("subject: \"darkroom.req.shapes.low.any.late\"", "subject: \"darkroom.req.shapes.low.any.beta\""),
        ("$KV.darkroom_jobs.late.*", "$KV.darkroom_jobs.beta.*"),
    ] {
        fs::write(&path, good.replace(own, anothers)).unwrap();
        let mut check = Command::new(nats::program());
        check.args(["-t", "-c"]).arg(directory.join("server.conf"));
        let checked = run(platform.nats.environment(&mut check), PATIENCE).await;
        assert!(!checked.status.success() && checked.stderr.contains("import not authorized"), "{own}: {checked}");
    }
}
