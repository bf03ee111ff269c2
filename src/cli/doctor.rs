//! `doctor`: looks at everything Darkroom needs, and says what to do about what is not well. It changes nothing for good.

use std::path::PathBuf;
use std::time::Duration;

use darkroom::engine::{self, DeviceChoice, Engine};
use darkroom::job::ModelManifest;
use darkroom::shell::bus::{self, Access, Bus, ConnectError, SERVER_VERSION_MIN, chain, version_numbers};
use darkroom::shell::config::{BusOptions, StoreOptions};
use darkroom::shell::store;
use darkroom::shell::topology::{self, Finding, Mode, Outcome};
use darkroom::shell::writable;
use serde_json::{Value, json};

use super::output::{Output, mark};
use super::{Exit, Failed};

#[derive(Debug, clap::Args)]
pub(crate) struct DoctorOptions {
    /// Also check this model: a diffusers directory
    #[arg(long, env = "DARKROOM_MODEL", value_name = "DIR")]
    model: Option<PathBuf>,
    /// Also check this object store
    #[arg(long, env = "DARKROOM_STORE", value_name = "URL")]
    store: Option<String>,
    /// Where to compute: auto, cpu or cuda
    #[arg(long, env = "DARKROOM_DEVICE", default_value = "auto")]
    device: DeviceChoice,
}

enum Verdict {
    Well(String),
    Warning { found: String, remedy: String },
    Problem { found: String, remedy: String },
    Skipped { because: String },
}

struct Report<'a> {
    output: &'a Output,
    problems: u32,
}

impl Report<'_> {
    fn say(&mut self, check: &str, verdict: &Verdict) {
        let (word, colour, text, remedy) = match verdict {
            Verdict::Well(found) => ("ok", "32", found, None),
            Verdict::Warning { found, remedy } => ("warning", "33", found, Some(remedy)),
            Verdict::Problem { found, remedy } => {
                self.problems += 1;
                ("problem", "31", found, Some(remedy))
            }
            Verdict::Skipped { because } => ("skipped", "36", because, None),
        };
        let mut line = format!("{} {check}: {text}", mark(&format!("{word:8}"), colour));
        if let Some(remedy) = remedy {
            line.push_str(&format!("\n         → {remedy}"));
        }
        self.output.line(line, &json!({"check": check, "verdict": word, "found": text, "remedy": remedy}));
    }
}

pub(crate) async fn doctor(options: &BusOptions, doctor: DoctorOptions, output: &Output) -> Result<Exit, Failed> {
    let mut report = Report { output, problems: 0 };
    let manifest = model(&mut report, &doctor);
    let bus = server(&mut report, options).await;
    match bus {
        Some(bus) => topology(&mut report, &bus, manifest.as_ref()).await,
        None => {
            for check in ["jetstream", "topology", "consumers", "requests", "writes"] {
                report.say(check, &Verdict::Skipped { because: "no usable server".to_owned() });
            }
        }
    }
    store(&mut report, doctor.store).await;
    if report.problems > 0 { Ok(Exit::Failure) } else { Ok(Exit::Success) }
}

async fn server(report: &mut Report<'_>, options: &BusOptions) -> Option<Bus> {
    let shown = bus::without_secrets(&options.nats);
    let bus = match bus::connect(options, "darkroom-doctor").await {
        Ok(bus) => bus,
        Err(error) => {
            let remedy = remedy(&error).to_owned();
            report.say("server", &Verdict::Problem { found: chain(&error), remedy });
            return None;
        }
    };
    let info = bus.client.server_info();
    let (major, minor, patch) = SERVER_VERSION_MIN;
    if version_numbers(&info.version) < SERVER_VERSION_MIN {
        let found = format!("{shown} is nats-server {}, at least {major}.{minor}.{patch} is needed", info.version);
        let remedy = "upgrade it; `local/nats-server --path` installs a good one".to_owned();
        report.say("server", &Verdict::Problem { found, remedy });
        return None;
    }
    report.say("server", &Verdict::Well(format!("nats-server {} at {shown}", info.version)));
    Some(bus)
}

fn remedy(error: &ConnectError) -> &'static str {
    match error {
        ConnectError::Unreachable { .. } => "start one (`local/up` does), or name the right one with --nats",
        ConnectError::Tls { .. } => {
            "name the authority of the server's certificate with --nats-ca and the host that it is for with --nats; a server \
             that wants a certificate of its clients gets it by --nats-cert and --nats-key; without TLS there is no --nats-ca"
        }
        ConnectError::Unauthorized { .. } => {
            "name a key that the server knows with --nats-nkey (or --nats-creds), and tell the server to reload after adding it"
        }
        ConnectError::HalfCertificate => "name both, or neither",
        ConnectError::Credentials { .. } => "name a file that exists and holds a seed or credentials",
    }
}

async fn topology(report: &mut Report<'_>, bus: &Bus, manifest: Option<&ModelManifest>) {
    if let Ok(Access::Tenant) = bus.access().await {
        let found =
            "none in this account: it is a tenant's, which can submit, watch and ask for its own jobs".to_owned();
        report.say("jetstream", &Verdict::Well(found));
        for check in ["topology", "consumers", "requests", "writes"] {
            report.say(check, &Verdict::Skipped { because: "not for tenants to see".to_owned() });
        }
        return;
    }
    match bus.api("INFO", &Value::Null).await {
        Ok(info) => {
            let streams = info["streams"].as_u64().unwrap_or_default();
            report.say("jetstream", &Verdict::Well(format!("enabled, {streams} streams")));
        }
        Err(error) => {
            let remedy = "start the server with JetStream: `nats-server -js`, or `jetstream {}` in its configuration";
            report.say("jetstream", &Verdict::Problem { found: chain(&error), remedy: remedy.to_owned() });
            for check in ["topology", "consumers", "requests", "writes"] {
                report.say(check, &Verdict::Skipped { because: "no JetStream".to_owned() });
            }
            return;
        }
    }
    // The models that are served are known from any one of their consumers; the others may be missing.
    let served = topology::served(bus).await.unwrap_or_default().into_iter().map(|served| served.manifest);
    let mut models: Vec<ModelManifest> = manifest.into_iter().cloned().chain(served).collect();
    models.sort_by(|one, other| one.name.cmp(&other.name));
    models.dedup_by(|one, other| one.name == other.name);
    let setup = "run `darkroom setup` with --model DIR for each model";
    match topology::reconcile(bus, &models, Mode::Check).await {
        Ok(findings) => report.say("topology", &judge(&findings)),
        Err(error) => {
            report.say("topology", &Verdict::Problem { found: chain(&error), remedy: setup.to_owned() });
        }
    }
    let served = match topology::served(bus).await {
        Ok(served) => served,
        Err(error) => {
            report.say("consumers", &Verdict::Problem { found: chain(&error), remedy: setup.to_owned() });
            for check in ["requests", "writes"] {
                report.say(check, &Verdict::Skipped { because: "no stream of requests".to_owned() });
            }
            return;
        }
    };
    let names: Vec<&str> = topology::manifests(&served).iter().map(|manifest| manifest.name.as_str()).collect();
    let consumers = if names.is_empty() {
        Verdict::Problem { found: "no model is served".to_owned(), remedy: setup.to_owned() }
    } else {
        Verdict::Well(format!("models {}", names.join(", ")))
    };
    report.say("consumers", &consumers);

    let (pending, in_flight) = served
        .iter()
        .fold((0, 0), |(pending, in_flight), served| (pending + served.pending, in_flight + served.in_flight));
    let pulls: u64 = served.iter().map(|served| served.pulls).sum();
    let stored = topology::requests_stored(bus).await.unwrap_or_default();
    let requests = if stored > pending + in_flight {
        Verdict::Warning {
            found: format!("{} requests that no consumer serves", stored - pending - in_flight),
            remedy: "run `darkroom-deadletter`: it fails them with a reason".to_owned(),
        }
    } else if pending > 0 && pulls == 0 && in_flight == 0 {
        Verdict::Warning {
            found: format!("{pending} requests wait and no worker pulls"),
            remedy: "start a worker: `darkroom-generate --model DIR --store URL`".to_owned(),
        }
    } else {
        Verdict::Well(format!("{pending} pending, {in_flight} in flight"))
    };
    report.say("requests", &requests);
    report.say("writes", &writes(bus).await);
}

/// The only check that writes: a server whose disk is full answers everything else as ever.
async fn writes(bus: &Bus) -> Verdict {
    let unwritable = writable::unwritable(bus).await;
    if unwritable.is_empty() {
        return Verdict::Well("requests, events and records are taken".to_owned());
    }
    let found: Vec<String> = unwritable.iter().map(ToString::to_string).collect();
    Verdict::Problem { found: found.join("; "), remedy: writable::REMEDY.to_owned() }
}

fn judge(findings: &[Finding]) -> Verdict {
    let named = |chosen: fn(&Outcome) -> bool| -> Vec<&str> {
        findings.iter().filter(|finding| chosen(&finding.outcome)).map(|finding| finding.name.as_str()).collect()
    };
    let missing = named(|outcome| matches!(outcome, Outcome::Created));
    let drifted = named(|outcome| matches!(outcome, Outcome::Drifted(_)));
    let outdated = named(|outcome| matches!(outcome, Outcome::Updated(_)));
    if !missing.is_empty() {
        let remedy = "run `darkroom setup` with --model DIR for each model".to_owned();
        Verdict::Problem { found: format!("missing: {}", missing.join(", ")), remedy }
    } else if !drifted.is_empty() {
        let remedy = "`darkroom setup` shows the fields; they cannot be changed under stored messages".to_owned();
        Verdict::Problem { found: format!("another build's or changed by hand: {}", drifted.join(", ")), remedy }
    } else if !outdated.is_empty() {
        let remedy = "run `darkroom setup` to update them".to_owned();
        Verdict::Warning { found: format!("outdated: {}", outdated.join(", ")), remedy }
    } else {
        Verdict::Well(format!("{} streams and consumers as they should be", findings.len()))
    }
}

async fn store(report: &mut Report<'_>, url: Option<String>) {
    let Some(url) = url else {
        return report.say("store", &Verdict::Skipped { because: "none given; use --store URL".to_owned() });
    };
    let problem = |found: String| Verdict::Problem {
        found,
        remedy: "check the URL, that it may be written, and the credentials in the environment".to_owned(),
    };
    let store = match store::open(&StoreOptions { store: url, url_expires: Duration::from_secs(60) }) {
        Ok(store) => store,
        Err(error) => return report.say("store", &problem(chain(&error))),
    };
    // A key that no job can have: ids do not begin with a dot.
    let key = format!(".doctor/{}", uuid::Uuid::now_v7());
    let tried = async {
        store.put(&key, bytes::Bytes::from_static(b"well"), "text/plain").await?;
        let found = store.get(&key).await?;
        store.delete(&key).await?;
        Ok::<_, darkroom::job::Fault>(found == b"well".as_slice())
    };
    let verdict = match tokio::time::timeout(Duration::from_secs(20), tried).await {
        Ok(Ok(true)) => {
            Verdict::Well(format!("{} can be written and read", bus::without_secrets(store.url().as_str())))
        }
        Ok(Ok(false)) => problem("reads back other bytes than were written".to_owned()),
        Ok(Err(fault)) => problem(fault.message),
        Err(_) => problem("does not answer within 20 s".to_owned()),
    };
    report.say("store", &verdict);
}

fn model(report: &mut Report<'_>, options: &DoctorOptions) -> Option<ModelManifest> {
    let Some(directory) = &options.model else {
        for check in ["model", "device"] {
            report.say(check, &Verdict::Skipped { because: "no model given; use --model DIR".to_owned() });
        }
        return None;
    };
    match engine::load(directory, &engine::LoadOptions { device: options.device, ..Default::default() }) {
        Ok(model) => {
            let manifest = model.manifest().clone();
            report.say("model", &Verdict::Well(format!("{} ({})", manifest.name, manifest.family)));
            report.say("device", &Verdict::Well(model.placement()));
            Some(manifest)
        }
        Err(error) => {
            let remedy = "it must be a diffusers directory with safetensors weights, as `save_pretrained` writes it";
            report.say("model", &Verdict::Problem { found: chain(&error), remedy: remedy.to_owned() });
            report.say("device", &Verdict::Skipped { because: "no usable model".to_owned() });
            engine::read_manifest(directory).ok()
        }
    }
}
