//! Requests: JSON bodies, read with every violation reported at once.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::header;
use super::time::parse_rfc3339;
use crate::job::limits::{METADATA_BYTES_MAX, REQUEST_BYTES_MAX};
use crate::job::options::InvalidPictureSource;
use crate::job::{
    Draft, FeatureCache, InvalidWebhookUrl, JobId, JobSpec, LongPrompt, LoraChoice, ModelManifest, OnLate,
    OutputFormat, PictureSource, Priority, Rng, SamplerKind, Tenant, Violation, Webhook, WebhookEvent, WebhookFormat,
};

/// What a deadline may be, for people.
const DEADLINE_FORM: &str = "a time in RFC 3339, such as 2030-01-31T12:00:00Z";

/// The body of a request. Only `prompt` is required; the model's defaults fill the rest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Darkroom request")]
pub struct RequestDocument {
    /// The job's id; the same as the header `Nats-Msg-Id` when both are there.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[A-Za-z0-9_-]{1,64}$"))]
    pub id: Option<String>,
    /// What to draw.
    #[schemars(length(min = 1, max = 2000))]
    pub prompt: String,
    /// What to avoid.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2000))]
    pub negative_prompt: Option<String>,
    /// Denoising steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub num_inference_steps: Option<u32>,
    /// Classifier-free guidance; 1 is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1.0, max = 20.0))]
    pub guidance_scale: Option<f32>,
    /// Pixels; a multiple of 8 (or coarser) within the model's limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("multipleOf" = 8))]
    pub width: Option<u32>,
    /// Pixels; a multiple of 8 (or coarser) within the model's limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("multipleOf" = 8))]
    pub height: Option<u32>,
    /// Decides the noise of image 0; image n has seed + n. Derived from the job's id when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 9_007_199_254_740_983_u64))]
    pub seed: Option<u64>,
    /// Images of this job.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 8))]
    pub num_images: Option<u32>,
    /// The sampler.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = SamplerKind::ALL.iter().map(|kind| kind.as_str()).collect::<Vec<_>>()))]
    pub scheduler: Option<String>,
    /// How the images are stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["png", "jpeg", "webp"]))]
    pub output_format: Option<String>,
    /// How urgent it is; the same as in the subject.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["high", "normal", "low"]))]
    pub priority: Option<String>,
    /// When it is to be done, in RFC 3339 such as 2030-01-31T12:00:00Z. Its urgency grows as the time comes close.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub deadline: Option<String>,
    /// What becomes of a job that cannot make its deadline any more: it fails (the default), or goes on all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["fail", "continue"]))]
    pub on_late: Option<String>,
    /// A small picture with the progress of every n-th step.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub previews: Option<u32>,
    /// How much of guidance's growth in contrast is taken back; 0.7 suits models trained to zero terminal SNR.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub guidance_rescale: Option<f32>,
    /// Whose random numbers the seed gives: those of PyTorch's generator on the CPU (the default), or on CUDA.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["torch-cpu", "torch-cuda"]))]
    pub rng: Option<String>,
    /// What to start from: an object key below `<tenant>/`, a data: URL or an https: URL of a PNG, JPEG or WebP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_image: Option<String>,
    /// How much of `init_image` is made anew; 0.8 when absent, or 1 with a mask.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub strength: Option<f32>,
    /// Where `init_image` is made anew: white there, black elsewhere, of the same size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_image: Option<String>,
    /// Changes to the model's weights.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub loras: Vec<LoraDocument>,
    /// What happens to what is beyond 77 tokens: it is cut off with a warning (the default), or encoded in chunks.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["truncate", "chunk"]))]
    pub long_prompt: Option<String>,
    /// Whether `(word:1.3)`, `(word)`, `[word]` and BREAK have a meaning; they have none when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_weighting: Option<bool>,
    /// SDXL is told this height and width of the original; those of the picture when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_size: Option<[u32; 2]>,
    /// SDXL is told this top and left of the crop; 0, 0 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crops_coords_top_left: Option<[u32; 2]>,
    /// SDXL is told this height and width of the crop; those of the picture when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_size: Option<[u32; 2]>,
    /// Steps that do without most of the model, for a quicker and somewhat other picture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheDocument>,
    /// Who is told of the job by HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhook: Option<WebhookDocument>,
    /// Anything that fits in 4096 bytes of JSON; comes back with every durable event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, Value>>,
}

/// The value of `cache`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CacheDocument {
    /// Every n-th step is a whole one; the others take what the model's deep layers said then.
    #[schemars(range(min = 2, max = 10))]
    pub interval: u32,
}

/// One entry of `loras`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoraDocument {
    /// The LoRA's file, without `.safetensors`.
    #[schemars(regex(pattern = r"^[A-Za-z0-9_-]{1,64}$"))]
    pub name: String,
    /// How much of it; 1 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -10.0, max = 10.0))]
    pub weight: Option<f32>,
}

/// `webhook`: whom to tell, and of what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookDocument {
    /// An http or https URL without user name and password, which takes POSTs.
    #[schemars(
        length(max = 2048),
        regex(pattern = r"^[Hh][Tt][Tt][Pp][Ss]?://[^\s/?#@\\:][^\s/?#@\\]*([/?#][^\s\\]*)?$")
    )]
    pub url: String,
    /// Of which events; of those that end the job when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), extend("uniqueItems" = true, "items" = event_schema()))]
    pub events: Option<Vec<String>>,
    /// The body: `cloudevents`, the event as on the bus, when absent; `replicate`, one of Replicate's predictions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = WebhookFormat::ALL.iter().map(|format| format.as_str()).collect::<Vec<_>>()))]
    pub format: Option<String>,
}

fn event_schema() -> Value {
    let names: Vec<&str> = WebhookEvent::ALL.iter().map(|event| event.as_str()).collect();
    serde_json::json!({ "type": "string", "enum": names })
}

impl From<&Webhook> for WebhookDocument {
    fn from(webhook: &Webhook) -> Self {
        let events = webhook.events.iter().map(|event| event.as_str().to_owned()).collect();
        let format = (webhook.format != WebhookFormat::default()).then(|| webhook.format.to_string());
        Self { url: webhook.url.as_str().to_owned(), events: Some(events), format }
    }
}

/// What decides how a body is read, besides the body.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The model's limits and defaults.
    pub manifest: &'a ModelManifest,
    /// The tenant of the subject.
    pub tenant: &'a Tenant,
    /// The priority of the subject.
    pub priority: Priority,
    /// The header `Nats-Msg-Id`, unchecked.
    pub message_id: Option<&'a str>,
    /// The sequence of the message in the request stream; names jobs that name none.
    pub stream_sequence: u64,
}

/// A request that can be done.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Its id.
    pub job: JobId,
    /// What to do.
    pub spec: JobSpec,
    /// Echoed with events.
    pub metadata: Option<Map<String, Value>>,
    /// SHA-256 of the canonical body, in hexadecimal digits: tells a repeated request from another one.
    pub digest: String,
}

/// A request that cannot be done.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// Its id: the one it names if that is an id, else the one of its stream sequence.
    pub job: JobId,
    /// Every broken rule, at least one.
    pub violations: Vec<Violation>,
    /// SHA-256 of the body as it came.
    pub digest: String,
}

/// Reads one request.
///
/// # Errors
/// [`Refusal`] with every broken rule, for any bytes whatever.
pub fn parse(body: &[u8], context: &Context<'_>) -> Result<Request, Refusal> {
    let mut violations = Vec::new();
    let mut fields = body_fields(body, &mut violations);

    let id_in_body = take_text(&mut fields, "id", &mut violations);
    let job = job_id(context, id_in_body.as_deref(), &mut violations);
    let draft = Draft {
        prompt: take_text(&mut fields, "prompt", &mut violations),
        negative_prompt: take_text(&mut fields, "negative_prompt", &mut violations),
        width: take_u32(&mut fields, "width", &mut violations),
        height: take_u32(&mut fields, "height", &mut violations),
        num_inference_steps: take_u32(&mut fields, "num_inference_steps", &mut violations),
        guidance_scale: take_f32(&mut fields, "guidance_scale", &mut violations),
        seed: take(&mut fields, "seed", "a whole number", &mut violations, Value::as_u64),
        num_images: take_u32(&mut fields, "num_images", &mut violations),
        scheduler: take_name(&mut fields, "scheduler", SamplerKind::ALL, SamplerKind::as_str, &mut violations),
        output_format: take_name(
            &mut fields,
            "output_format",
            OutputFormat::ALL,
            OutputFormat::as_str,
            &mut violations,
        ),
        previews: take_u32(&mut fields, "previews", &mut violations),
        guidance_rescale: take_f32(&mut fields, "guidance_rescale", &mut violations),
        rng: take_name(&mut fields, "rng", Rng::ALL, Rng::as_str, &mut violations),
        init_image: take_picture(&mut fields, "init_image", &mut violations),
        strength: take_f32(&mut fields, "strength", &mut violations),
        mask_image: take_picture(&mut fields, "mask_image", &mut violations),
        loras: take_loras(&mut fields, &mut violations),
        long_prompt: take_name(&mut fields, "long_prompt", LongPrompt::ALL, LongPrompt::as_str, &mut violations),
        prompt_weighting: take(&mut fields, "prompt_weighting", "true or false", &mut violations, Value::as_bool),
        original_size: take_pair(&mut fields, "original_size", &mut violations),
        crops_coords_top_left: take_pair(&mut fields, "crops_coords_top_left", &mut violations),
        target_size: take_pair(&mut fields, "target_size", &mut violations),
        deadline_unix_ms: take(&mut fields, "deadline", DEADLINE_FORM, &mut violations, |value| {
            value.as_str().and_then(parse_rfc3339)
        }),
        on_late: take_name(&mut fields, "on_late", OnLate::ALL, OnLate::as_str, &mut violations),
        webhook: take_webhook(&mut fields, &mut violations),
        cache: take(&mut fields, "cache", r#"an object as {"interval": 3}"#, &mut violations, |value| {
            let CacheDocument { interval } = CacheDocument::deserialize(value.as_object()?).ok()?;
            Some(FeatureCache { interval })
        }),
    };
    let priority = take_name(&mut fields, "priority", Priority::ALL, Priority::as_str, &mut violations);
    if let Some(priority) = priority.filter(|priority| *priority != context.priority) {
        violations.push(Violation::new("priority", priority, format!("{} as in the subject", context.priority)));
    }
    let metadata = take(&mut fields, "metadata", "an object", &mut violations, |value| value.as_object().cloned());
    if let Some(metadata) = &metadata {
        let bytes = serde_json::to_vec(metadata).map_or(usize::MAX, |json| json.len());
        if bytes > METADATA_BYTES_MAX {
            let allowed = format!("up to {METADATA_BYTES_MAX} bytes of JSON");
            violations.push(Violation::new("metadata", format!("{bytes} bytes"), allowed));
        }
    }
    for (field, value) in &fields {
        violations.push(Violation::new(field_name(field), value, "no such field"));
    }

    // A prompt of the wrong type, and a body without fields, are reported already: no second violation for them.
    let mut check = draft.clone();
    if check.prompt.is_none() && violations.iter().any(|found| found.field == "prompt" || found.field == "body") {
        check.prompt = Some("-".to_owned());
    }
    let spec = JobSpec::check(&check, context.manifest, seed_of(context.tenant, &job), &mut violations);
    match spec {
        Some(spec) if violations.is_empty() => Ok(Request { job, spec, metadata, digest: canonical_digest(body) }),
        _ => Err(Refusal { job, violations, digest: canonical_digest(body) }),
    }
}

/// SHA-256 of the body with its keys in order, or of the bytes when they are not JSON.
pub fn canonical_digest(body: &[u8]) -> String {
    let canonical = serde_json::from_slice::<BTreeMap<String, Value>>(body)
        .ok()
        .and_then(|fields| serde_json::to_vec(&fields).ok())
        .unwrap_or_else(|| body.to_vec());
    hexadecimal(&Sha256::digest(&canonical))
}

/// The job that a body names, for answers to requests that are not read any further.
pub fn id_in_body(body: &[u8]) -> Option<JobId> {
    let fields: Value = serde_json::from_slice(body).ok()?;
    fields.get("id")?.as_str()?.parse().ok()
}

/// The webhook that a body names, whatever else is wrong with it; `None` when it names none that could be told.
pub fn webhook_in_body(body: &[u8]) -> Option<Webhook> {
    if body.len() > REQUEST_BYTES_MAX {
        return None;
    }
    let mut fields: Map<String, Value> = serde_json::from_slice(body).ok()?;
    let mut violations = Vec::new();
    take_webhook(&mut fields, &mut violations).filter(|_| violations.is_empty())
}

/// Lower-case hexadecimal digits.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        for nibble in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0'));
        }
        text
    })
}

/// The seed of a job that names none: the same for every attempt, and small enough to type.
fn seed_of(tenant: &Tenant, job: &JobId) -> u64 {
    let hash = Sha256::digest(format!("{tenant}/{job}"));
    u64::from(u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]))
}

fn body_fields(body: &[u8], violations: &mut Vec<Violation>) -> Map<String, Value> {
    if body.len() > REQUEST_BYTES_MAX {
        let allowed = format!("up to {REQUEST_BYTES_MAX} bytes");
        violations.push(Violation::new("body", format!("{} bytes", body.len()), allowed));
        return Map::new();
    }
    let text = match std::str::from_utf8(body) {
        Ok(text) => text,
        Err(error) => {
            let value = format!("not UTF-8 at byte {}", error.valid_up_to());
            violations.push(Violation::new("body", value, "a JSON object in UTF-8"));
            return Map::new();
        }
    };
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(fields)) => fields,
        Ok(other) => {
            violations.push(Violation::new("body", kind_of(&other), "a JSON object"));
            Map::new()
        }
        Err(error) => {
            violations.push(Violation::new("body", format!("not JSON: {error}"), "a JSON object"));
            Map::new()
        }
    }
}

fn job_id(context: &Context<'_>, in_body: Option<&str>, violations: &mut Vec<Violation>) -> JobId {
    let mut named = None;
    let in_header = context.message_id.map(|id| header::job_in_message_id(context.tenant, id));
    for (field, text) in [(header::MESSAGE_ID, in_header), ("id", in_body)] {
        let Some(text) = text else { continue };
        match text.parse::<JobId>() {
            Ok(job) if named.as_ref().is_some_and(|earlier| *earlier != job) => {
                violations.push(Violation::new(field, job, "the same id as in the header Nats-Msg-Id"));
            }
            Ok(job) => named = Some(job),
            Err(error) => violations.push(Violation::new(field, text, error.to_string())),
        }
    }
    named.unwrap_or_else(|| JobId::from_stream_sequence(context.stream_sequence))
}

/// Takes one field: absent and `null` are gaps, anything that `read` cannot use is a violation.
fn take<T>(
    fields: &mut Map<String, Value>,
    name: &str,
    allowed: &str,
    violations: &mut Vec<Violation>,
    read: impl FnOnce(&Value) -> Option<T>,
) -> Option<T> {
    let value = fields.remove(name)?;
    if value.is_null() {
        return None;
    }
    let read = read(&value);
    if read.is_none() {
        violations.push(Violation::new(name, shown(&value), allowed));
    }
    read
}

fn take_text(fields: &mut Map<String, Value>, name: &str, violations: &mut Vec<Violation>) -> Option<String> {
    take(fields, name, "a string", violations, |value| value.as_str().map(str::to_owned))
}

fn take_u32(fields: &mut Map<String, Value>, name: &str, violations: &mut Vec<Violation>) -> Option<u32> {
    take(fields, name, "a whole number", violations, |value| value.as_u64().and_then(|number| number.try_into().ok()))
}

#[expect(clippy::cast_possible_truncation, reason = "out of range becomes infinite, which is refused")]
fn to_f32(value: &Value) -> Option<f32> {
    value.as_f64().map(|number| number as f32)
}

fn take_f32(fields: &mut Map<String, Value>, name: &str, violations: &mut Vec<Violation>) -> Option<f32> {
    take(fields, name, "a number", violations, to_f32)
}

fn take_picture(fields: &mut Map<String, Value>, name: &str, violations: &mut Vec<Violation>) -> Option<PictureSource> {
    let allowed = InvalidPictureSource.to_string();
    take(fields, name, &allowed, violations, |value| value.as_str()?.parse().ok())
}

fn take_pair(fields: &mut Map<String, Value>, name: &str, violations: &mut Vec<Violation>) -> Option<[u32; 2]> {
    take(fields, name, "two whole numbers", violations, |value| {
        let numbers: Option<Vec<u32>> =
            value.as_array()?.iter().map(|number| number.as_u64().and_then(|number| number.try_into().ok())).collect();
        numbers?.try_into().ok()
    })
}

/// Each entry with its own violations: an object with a `name` and perhaps a `weight`.
fn take_loras(fields: &mut Map<String, Value>, violations: &mut Vec<Violation>) -> Vec<LoraChoice> {
    let allowed = "a list of objects with name and weight";
    let entries = take(fields, "loras", allowed, violations, |value| value.as_array().cloned()).unwrap_or_default();
    let mut loras = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let Value::Object(entry) = entry else {
            violations.push(Violation::new(format!("loras[{index}]"), shown(entry), "an object with name and weight"));
            continue;
        };
        let name = entry.get("name").and_then(Value::as_str).map(str::parse);
        let weight = match entry.get("weight") {
            None | Some(Value::Null) => Some(1.0),
            Some(value) => to_f32(value),
        };
        if let Some(unknown) = entry.keys().find(|key| !["name", "weight"].contains(&key.as_str())) {
            violations.push(Violation::new(
                format!("loras[{index}].{}", field_name(unknown)),
                "given",
                "no such field",
            ));
        }
        match (name, weight) {
            (Some(Ok(name)), Some(weight)) => loras.push(LoraChoice { name, weight }),
            (Some(Ok(_)), None) => {
                violations.push(Violation::new(format!("loras[{index}].weight"), shown(&entry["weight"]), "a number"))
            }
            (name, _) => {
                let value = entry.get("name").map_or_else(|| "missing".to_owned(), shown);
                let allowed = match name {
                    Some(Err(error)) => error.to_string(),
                    _ => "a string".to_owned(),
                };
                violations.push(Violation::new(format!("loras[{index}].name"), value, allowed));
            }
        }
    }
    loras
}

/// The URL is never shown: it may hold a secret.
fn take_webhook(fields: &mut Map<String, Value>, violations: &mut Vec<Violation>) -> Option<Webhook> {
    let allowed = "an object with url, events and format";
    let mut given = take(fields, "webhook", allowed, violations, |value| value.as_object().cloned())?;
    let before = violations.len();
    let url = given.remove("url");
    let read = url.as_ref().and_then(Value::as_str).and_then(|text| text.parse().ok());
    if read.is_none() {
        let value = url.as_ref().map_or("missing", kind_of);
        violations.push(Violation::new("webhook.url", value, InvalidWebhookUrl.to_string()));
    }
    let events = webhook_events(given.remove("events"), violations);
    let format = match given.remove("format") {
        None | Some(Value::Null) => WebhookFormat::default(),
        Some(named) => named.as_str().and_then(|name| name.parse().ok()).unwrap_or_else(|| {
            let all = WebhookFormat::ALL.iter().map(|format| format.as_str()).collect::<Vec<_>>().join(", ");
            violations.push(Violation::new("webhook.format", shown(&named), all));
            WebhookFormat::default()
        }),
    };
    for name in given.keys() {
        violations.push(Violation::new(format!("webhook.{}", field_name(name)), "given", "no such field"));
    }
    let url = read.filter(|_| violations.len() == before)?;
    Some(Webhook { url, events, format })
}

fn webhook_events(given: Option<Value>, violations: &mut Vec<Violation>) -> Vec<WebhookEvent> {
    let all = WebhookEvent::ALL.iter().map(|event| event.as_str()).collect::<Vec<_>>().join(", ");
    let names = match given {
        None | Some(Value::Null) => return WebhookEvent::TERMINAL.to_vec(),
        Some(Value::Array(names)) if !names.is_empty() => names,
        Some(other) => {
            let value = if other.is_array() { "empty" } else { kind_of(&other) };
            violations.push(Violation::new("webhook.events", value, format!("a list of some of: {all}")));
            return Vec::new();
        }
    };
    let mut events = Vec::new();
    for (index, name) in names.iter().enumerate() {
        match name.as_str().and_then(|name| name.parse::<WebhookEvent>().ok()) {
            Some(event) if !events.contains(&event) => events.push(event),
            found => {
                let allowed = if found.is_some() { "each event once" } else { all.as_str() };
                violations.push(Violation::new(format!("webhook.events[{index}]"), shown(name), allowed));
            }
        }
    }
    events
}

fn take_name<T: Copy>(
    fields: &mut Map<String, Value>,
    name: &str,
    all: &[T],
    as_str: impl Fn(T) -> &'static str,
    violations: &mut Vec<Violation>,
) -> Option<T> {
    let allowed = all.iter().map(|value| as_str(*value)).collect::<Vec<_>>().join(", ");
    take(fields, name, &allowed, violations, |value| {
        let text = value.as_str()?;
        all.iter().copied().find(|candidate| as_str(*candidate) == text)
    })
}

/// A value as a violation shows it: prompts and other long texts never in full.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => format!("\"{text}\""),
        Value::Number(number) => number.to_string(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => kind_of(value).to_owned(),
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// A field name that a client made up, shortened; where there is none, the quotes around nothing.
fn field_name(name: &str) -> String {
    if name.is_empty() { "\"\"".to_owned() } else { name.chars().take(64).collect() }
}
