//! The topology of `nats/` on a server: made where missing, mended where that is allowed, never deleted.
//!
//! The files are compiled in, so that they are the one source of truth wherever the program runs.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::job::{ModelManifest, ModelName, Pool, Priority};
use crate::wire::{manifest, subject};

use super::bus::{ApiError, Bus};

const STREAMS: [&str; 15] = [
    include_str!("../../nats/streams/DARKROOM_REQ.json"),
    include_str!("../../nats/streams/DARKROOM_EV.json"),
    include_str!("../../nats/streams/DARKROOM_PROG.json"),
    include_str!("../../nats/streams/DARKROOM_DLQ.json"),
    include_str!("../../nats/streams/DARKROOM_ADV.json"),
    include_str!("../../nats/streams/DARKROOM_HOOK.json"),
    include_str!("../../nats/streams/DARKROOM_HOOK_DLQ.json"),
    include_str!("../../nats/buckets/darkroom_jobs.json"),
    include_str!("../../nats/buckets/darkroom_workers.json"),
    include_str!("../../nats/buckets/darkroom_models.json"),
    include_str!("../../nats/buckets/darkroom_usage.json"),
    include_str!("../../nats/buckets/darkroom_scale.json"),
    include_str!("../../nats/buckets/darkroom_keys.json"),
    include_str!("../../nats/buckets/darkroom_webhooks.json"),
    include_str!("../../nats/buckets/darkroom_webhook_secrets.json"),
];
const CONSUMER: &str = include_str!("../../nats/consumers/generate.json");
/// Consumers that are there whatever models are served: the stream, the name, the file.
const FIXED_CONSUMERS: [(&str, &str, &str); 3] = [
    (subject::STREAM_ADVISORIES, subject::CONSUMER_ADVISORIES, include_str!("../../nats/consumers/deadletter.json")),
    (subject::STREAM_EVENTS, subject::CONSUMER_WEBHOOK, include_str!("../../nats/consumers/webhook.json")),
    (subject::STREAM_WEBHOOKS, subject::CONSUMER_WEBHOOK, include_str!("../../nats/consumers/webhook-delivery.json")),
];

/// What the server refuses to change, or what would strand stored messages.
const STREAM_FIXED: [&str; 4] = ["name", "subjects", "storage", "retention"];
const CONSUMER_FIXED: [&str; 6] =
    ["durable_name", "filter_subject", "deliver_policy", "ack_policy", "replay_policy", "max_waiting"];

const STREAM_NOT_FOUND: u64 = 10059;
const CONSUMER_NOT_FOUND: u64 = 10014;
/// A cluster that has not found all its servers, or its leader.
const UNSETTLED: [u64; 2] = [10005, 10008];
/// How often something is asked for in such a cluster, and how long between.
const TRIES_MAX: u32 = 8;
const TRY_EVERY: Duration = Duration::from_secs(1);
const NAME_IN_USE: [u64; 3] = [10058, 10013, 10148];

/// What was found, and done, for one stream or consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// `stream` or `consumer`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a stream or consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is as the files say.
    Unchanged,
    /// It was not there; made, unless only looking.
    Created,
    /// These fields differed; mended, unless only looking.
    Updated(Vec<Difference>),
    /// These fields differ and must not be changed under stored messages; somebody has to decide.
    Drifted(Vec<Difference>),
}

/// One field that is not as the files say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The field.
    pub field: String,
    /// What the server has.
    pub found: Value,
    /// What the files say.
    pub wanted: Value,
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} is {}, wanted {}", self.field, self.found, self.wanted)
    }
}

/// Whether to change anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Create and update.
    Apply,
    /// Only look.
    Check,
}

/// Compares the server with the files, for the streams, the buckets and the consumers of `models`.
///
/// # Errors
/// [`ApiError`] when JetStream does not answer or refuses.
pub async fn reconcile(bus: &Bus, models: &[ModelManifest], mode: Mode) -> Result<Vec<Finding>, ApiError> {
    reconcile_with(bus, models, None, mode).await
}

/// As [`reconcile`], with so many copies of every stream, on servers of their own; consumers have as many as their
/// stream. `None` leaves what is there: one copy where a stream is made.
///
/// # Errors
/// As [`reconcile`]; also when there are fewer servers.
pub async fn reconcile_with(
    bus: &Bus,
    models: &[ModelManifest],
    replicas: Option<u32>,
    mode: Mode,
) -> Result<Vec<Finding>, ApiError> {
    let mut findings = Vec::new();
    for text in STREAMS {
        let mut wanted = object(text);
        if let Some(replicas) = replicas {
            wanted.insert("num_replicas".to_owned(), json!(replicas));
        }
        let name = wanted["name"].as_str().unwrap_or_default().to_owned();
        let outcome = reconcile_stream(bus, &name, &wanted, mode).await?;
        findings.push(Finding { kind: "stream", name, outcome });
    }
    for (stream, name, text) in FIXED_CONSUMERS {
        let outcome = reconcile_consumer(bus, stream, name, &object(text), mode).await?;
        findings.push(Finding { kind: "consumer", name: format!("{stream}/{name}"), outcome });
    }
    for model in models {
        for (priority, pool) in lanes() {
            let wanted = consumer_config(model, priority, pool);
            let name = subject::consumer(&model.name, priority, pool);
            let outcome = reconcile_consumer(bus, subject::STREAM_REQUESTS, &name, &wanted, mode).await?;
            findings.push(Finding { kind: "consumer", name, outcome });
        }
    }
    Ok(findings)
}

/// Every (priority, pool), most urgent first.
pub fn lanes() -> impl Iterator<Item = (Priority, Pool)> {
    Priority::ALL.iter().flat_map(|priority| Pool::ALL.iter().map(|pool| (*priority, *pool)))
}

/// A consumer of requests as the server has it.
#[derive(Clone, Debug)]
pub struct Served {
    /// Its name.
    pub consumer: String,
    /// Its model, as `darkroom setup` recorded it.
    pub manifest: ModelManifest,
    /// What it filters.
    pub filter: String,
    /// Messages that nobody has yet.
    pub pending: u64,
    /// The last sequence of the stream that it delivered.
    pub delivered_sequence: u64,
    /// Messages that workers have.
    pub in_flight: u64,
    /// Open pulls.
    pub pulls: u64,
    /// Whether it delivers nothing for now, because somebody has paused it.
    pub is_paused: bool,
    /// When it was made, RFC 3339.
    pub created: String,
}

/// The consumers of requests that the server has.
///
/// # Errors
/// [`ApiError`].
pub async fn served(bus: &Bus) -> Result<Vec<Served>, ApiError> {
    let mut consumers = Vec::new();
    let mut offset = 0;
    loop {
        let subject = format!("CONSUMER.LIST.{}", subject::STREAM_REQUESTS);
        let page = bus.api(&subject, &json!({ "offset": offset })).await?;
        let found = page["consumers"].as_array().cloned().unwrap_or_default();
        offset += found.len();
        for info in &found {
            let Some(manifest) = info["config"]["metadata"][manifest::METADATA_KEY].as_str() else { continue };
            let Some(manifest) = manifest::decode(manifest) else { continue };
            consumers.push(Served {
                consumer: info["name"].as_str().unwrap_or_default().to_owned(),
                manifest,
                filter: info["config"]["filter_subject"].as_str().unwrap_or_default().to_owned(),
                pending: info["num_pending"].as_u64().unwrap_or_default(),
                delivered_sequence: info["delivered"]["stream_seq"].as_u64().unwrap_or_default(),
                in_flight: info["num_ack_pending"].as_u64().unwrap_or_default(),
                pulls: info["num_waiting"].as_u64().unwrap_or_default(),
                is_paused: info["paused"].as_bool().unwrap_or_default(),
                created: info["created"].as_str().unwrap_or_default().to_owned(),
            });
        }
        if found.is_empty() || offset >= usize::try_from(page["total"].as_u64().unwrap_or_default()).unwrap_or(0) {
            return Ok(consumers);
        }
    }
}

/// The models of consumers, each once, by name.
pub fn manifests(served: &[Served]) -> Vec<&ModelManifest> {
    let mut manifests: Vec<&ModelManifest> = served.iter().map(|served| &served.manifest).collect();
    manifests.sort_by(|one, other| one.name.cmp(&other.name));
    manifests.dedup_by(|one, other| one.name == other.name);
    manifests
}

/// The last sequence of the request stream.
///
/// # Errors
/// [`ApiError`].
pub async fn last_sequence(bus: &Bus) -> Result<u64, ApiError> {
    let info = bus.api(&format!("STREAM.INFO.{}", subject::STREAM_REQUESTS), &Value::Null).await?;
    Ok(info["state"]["last_seq"].as_u64().unwrap_or_default())
}

/// Messages in the request stream, served or not.
///
/// # Errors
/// [`ApiError`].
pub async fn requests_stored(bus: &Bus) -> Result<u64, ApiError> {
    Ok(requests_by_subject(bus).await?.values().sum())
}

/// Requests in the stream, by subject.
///
/// # Errors
/// [`ApiError`].
pub async fn requests_by_subject(bus: &Bus) -> Result<BTreeMap<String, u64>, ApiError> {
    let mut counts = BTreeMap::new();
    let is_request = |subject: &str| subject::PROBES.iter().all(|(_, probe)| subject != *probe);
    loop {
        let request = json!({ "subjects_filter": subject::ALL_REQUESTS, "offset": counts.len() });
        let info = bus.api(&format!("STREAM.INFO.{}", subject::STREAM_REQUESTS), &request).await?;
        let page = info["state"]["subjects"].as_object().cloned().unwrap_or_default();
        let known = counts.len();
        counts.extend(page.into_iter().filter_map(|(subject, count)| Some((subject, count.as_u64()?))));
        // The server answers with so many subjects at once.
        if counts.len() == known || counts.len() as u64 >= info["total"].as_u64().unwrap_or_default() {
            counts.retain(|subject, _| is_request(subject));
            return Ok(counts);
        }
    }
}

/// Requests on one subject, and how many may be there; `None` for no end.
///
/// # Errors
/// [`ApiError`].
pub async fn quota_of(bus: &Bus, subject: &str) -> Result<(u64, Option<u64>), ApiError> {
    let request = json!({ "subjects_filter": subject });
    let info = bus.api(&format!("STREAM.INFO.{}", subject::STREAM_REQUESTS), &request).await?;
    let queued = info["state"]["subjects"][subject].as_u64().unwrap_or_default();
    Ok((queued, info["config"]["max_msgs_per_subject"].as_u64()))
}

/// The manifest that `darkroom setup` recorded for a model.
///
/// # Errors
/// [`ApiError`].
pub async fn manifest_of(bus: &Bus, model: &ModelName) -> Result<Option<ModelManifest>, ApiError> {
    let name = subject::consumer(model, Priority::Normal, Pool::Any);
    match bus.api(&format!("CONSUMER.INFO.{}.{name}", subject::STREAM_REQUESTS), &Value::Null).await {
        Ok(info) => Ok(info["config"]["metadata"][manifest::METADATA_KEY].as_str().and_then(manifest::decode)),
        Err(error) if error.code() == Some(CONSUMER_NOT_FOUND) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn reconcile_stream(bus: &Bus, name: &str, wanted: &Map<String, Value>, mode: Mode) -> Result<Outcome, ApiError> {
    let found = match bus.api(&format!("STREAM.INFO.{name}"), &Value::Null).await {
        Ok(info) => info["config"].as_object().cloned().unwrap_or_default(),
        Err(error) if error.code() == Some(STREAM_NOT_FOUND) => {
            if mode == Mode::Check {
                return Ok(Outcome::Created);
            }
            match change(bus, &format!("STREAM.CREATE.{name}"), &Value::Object(wanted.clone())).await {
                Ok(()) => return Ok(Outcome::Created),
                // Somebody else made it in the meantime: look at what they made.
                Err(error) if error.code().is_some_and(|code| NAME_IN_USE.contains(&code)) => {
                    let info = bus.api(&format!("STREAM.INFO.{name}"), &Value::Null).await?;
                    info["config"].as_object().cloned().unwrap_or_default()
                }
                Err(error) => return Err(error),
            }
        }
        Err(error) => return Err(error),
    };
    let outcome = compare(&found, wanted, &STREAM_FIXED);
    if let (Outcome::Updated(_), Mode::Apply) = (&outcome, mode) {
        let merged = merge(found, wanted);
        change(bus, &format!("STREAM.UPDATE.{name}"), &Value::Object(merged)).await?;
    }
    Ok(outcome)
}

async fn reconcile_consumer(
    bus: &Bus,
    stream: &str,
    name: &str,
    wanted: &Map<String, Value>,
    mode: Mode,
) -> Result<Outcome, ApiError> {
    let create = match wanted.get("filter_subject").and_then(Value::as_str) {
        Some(filter) => format!("CONSUMER.CREATE.{stream}.{name}.{filter}"),
        None => format!("CONSUMER.CREATE.{stream}.{name}"),
    };
    let found = match bus.api(&format!("CONSUMER.INFO.{stream}.{name}"), &Value::Null).await {
        Ok(info) => info["config"].as_object().cloned().unwrap_or_default(),
        Err(error) if error.code() == Some(CONSUMER_NOT_FOUND) || error.code() == Some(STREAM_NOT_FOUND) => {
            if mode == Mode::Check {
                return Ok(Outcome::Created);
            }
            let request = json!({ "stream_name": stream, "config": wanted, "action": "create" });
            match change(bus, &create, &request).await {
                Ok(()) => return Ok(Outcome::Created),
                Err(error) if error.code().is_some_and(|code| NAME_IN_USE.contains(&code)) => {
                    let info = bus.api(&format!("CONSUMER.INFO.{stream}.{name}"), &Value::Null).await?;
                    info["config"].as_object().cloned().unwrap_or_default()
                }
                Err(error) => return Err(error),
            }
        }
        Err(error) => return Err(error),
    };
    let outcome = compare(&found, wanted, &CONSUMER_FIXED);
    if let (Outcome::Updated(_), Mode::Apply) = (&outcome, mode) {
        let request = json!({ "stream_name": stream, "config": merge(found, wanted), "action": "update" });
        change(bus, &create, &request).await?;
    }
    Ok(outcome)
}

/// Makes or changes something; repeating it changes nothing more.
async fn change(bus: &Bus, subject: &str, request: &Value) -> Result<(), ApiError> {
    let mut tries = 1;
    loop {
        match bus.api(subject, request).await {
            Err(error)
                if tries < TRIES_MAX
                    && (error.timed_out() || error.code().is_some_and(|code| UNSETTLED.contains(&code))) =>
            {
                tokio::time::sleep(TRY_EVERY).await;
                tries += 1;
            }
            outcome => return outcome.map(|_| ()),
        }
    }
}

/// The configuration of one consumer: the file with its placeholders filled, and the model's manifest.
fn consumer_config(model: &ModelManifest, priority: Priority, pool: Pool) -> Map<String, Value> {
    let text = CONSUMER
        .replace("{model}", model.name.as_str())
        .replace("{priority}", priority.as_str())
        .replace("{pool}", pool.as_str());
    let mut config = object(&text);
    config.insert("metadata".to_owned(), json!({ manifest::METADATA_KEY: manifest::encode(model) }));
    config
}

fn object(text: &str) -> Map<String, Value> {
    serde_json::from_str(text).unwrap_or_default()
}

fn compare(found: &Map<String, Value>, wanted: &Map<String, Value>, fixed: &[&str]) -> Outcome {
    let differences: Vec<Difference> = wanted
        .iter()
        .filter(|(field, value)| !is_same(field, found.get(*field), value))
        .map(|(field, value)| Difference {
            field: field.clone(),
            found: found.get(field).cloned().unwrap_or(Value::Null),
            wanted: value.clone(),
        })
        .collect();
    if differences.is_empty() {
        Outcome::Unchanged
    } else if differences.iter().any(|difference| fixed.contains(&difference.field.as_str())) {
        Outcome::Drifted(differences)
    } else {
        Outcome::Updated(differences)
    }
}

/// The server leaves out what is at its default, and adds `_nats.` entries to metadata.
fn is_same(field: &str, found: Option<&Value>, wanted: &Value) -> bool {
    match (field, found, wanted) {
        ("metadata", Some(found), Value::Object(wanted)) => {
            wanted.iter().all(|(key, value)| found.get(key) == Some(value))
        }
        (_, Some(found), wanted) => found == wanted,
        (_, None, wanted) => wanted == &json!(0) || wanted == &json!(false) || wanted == &json!(""),
    }
}

fn merge(mut found: Map<String, Value>, wanted: &Map<String, Value>) -> Map<String, Value> {
    for (field, value) in wanted {
        match (found.get_mut(field), value) {
            (Some(Value::Object(old)), Value::Object(new)) if field == "metadata" => old.extend(new.clone()),
            _ => {
                found.insert(field.clone(), value.clone());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_json_and_names_what_the_code_means() {
        let names: Vec<String> = STREAMS.iter().map(|text| object(text)["name"].as_str().unwrap().to_owned()).collect();
        let expected = [
            subject::STREAM_REQUESTS.to_owned(),
            subject::STREAM_EVENTS.to_owned(),
            subject::STREAM_PROGRESS.to_owned(),
            subject::STREAM_DEAD_LETTERS.to_owned(),
            subject::STREAM_ADVISORIES.to_owned(),
            subject::STREAM_WEBHOOKS.to_owned(),
            subject::STREAM_DEAD_WEBHOOKS.to_owned(),
            format!("KV_{}", subject::BUCKET_JOBS),
            format!("KV_{}", subject::BUCKET_WORKERS),
            format!("KV_{}", subject::BUCKET_MODELS),
            subject::stream_of_bucket(subject::BUCKET_USAGE),
            subject::stream_of_bucket(subject::BUCKET_SCALE),
            format!("KV_{}", subject::BUCKET_KEYS),
            subject::stream_of_bucket(subject::BUCKET_WEBHOOKS),
            subject::stream_of_bucket(subject::BUCKET_WEBHOOK_SECRETS),
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn fixed_consumers_are_named_as_the_code_means() {
        for (stream, name, text) in FIXED_CONSUMERS {
            assert_eq!(object(text)["durable_name"], json!(name), "{stream}");
        }
    }

    #[test]
    fn consumers_filter_what_the_subjects_module_says() {
        let model = ModelManifest {
            name: "shapes".parse().unwrap(),
            family: String::new(),
            limits: crate::job::ModelLimits::default(),
            defaults: crate::job::Defaults {
                width: 64,
                height: 64,
                num_inference_steps: 1,
                guidance_scale: 1.0,
                scheduler: crate::job::SamplerKind::Ddim,
            },
            tasks: Vec::new(),
            schedulers: Vec::new(),
        };
        for (priority, pool) in lanes() {
            let config = consumer_config(&model, priority, pool);
            assert_eq!(config["filter_subject"], json!(subject::request_filter(&model.name, priority, pool)));
            assert_eq!(config["durable_name"], json!(subject::consumer(&model.name, priority, pool)));
        }
    }

    #[test]
    fn only_what_differs_is_reported_and_fixed_fields_are_never_mended() {
        let wanted = object(r#"{"name":"A","max_msgs":5,"max_age":0,"storage":"file"}"#);
        let found = object(r#"{"name":"A","max_msgs":5,"storage":"file","num_replicas":3}"#);
        assert_eq!(compare(&found, &wanted, &STREAM_FIXED), Outcome::Unchanged);
        let found = object(r#"{"name":"A","max_msgs":4,"storage":"file"}"#);
        assert!(matches!(compare(&found, &wanted, &STREAM_FIXED), Outcome::Updated(fields) if fields.len() == 1));
        let found = object(r#"{"name":"A","max_msgs":4,"storage":"memory"}"#);
        assert!(matches!(compare(&found, &wanted, &STREAM_FIXED), Outcome::Drifted(fields) if fields.len() == 2));
    }
}
