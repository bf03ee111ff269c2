//! Replicate's predictions, translated to and from submissions and jobs.
//!
//! Source: Replicate's HTTP reference, and the types of its Python package. What a record does not keep, such as the input
//! of a job that has ended, travels in the job's metadata where there is room.

use serde_json::{Map, Value, json};

use super::event::StoredImage;
use super::http::{JobDocument, ProblemDocument};
use super::record::Record;
use crate::job::limits::METADATA_BYTES_MAX;
use crate::job::{JobId, Status, Violation, WebhookEvent};

/// Under which name the input is kept in metadata.
const INPUT: &str = "input";
/// Names of theirs for fields of ours.
const RENAMED: [(&str, &str); 4] =
    [("num_outputs", "num_images"), ("image", "init_image"), ("mask", "mask_image"), ("prompt_strength", "strength")];
/// What their webhooks can be told of.
const EVENTS: [&str; 4] = ["start", "output", "logs", "completed"];
/// Inputs that change nothing here.
const WITHOUT_MEANING: [&str; 4] = ["disable_safety_checker", "safety_tolerance", "go_fast", "apply_watermark"];

/// The fields of a submission, from the body of a prediction; `model` is what the path or the version names.
///
/// # Errors
/// Every broken rule that the check of requests would not find.
pub fn fields(mut body: Map<String, Value>, model: Option<&str>) -> Result<Map<String, Value>, Vec<Violation>> {
    let mut violations = Vec::new();
    let input = match body.remove("input") {
        Some(Value::Object(input)) => input,
        Some(other) => {
            violations.push(Violation::new("input", other, "an object"));
            Map::new()
        }
        None => {
            violations.push(Violation::new("input", "nothing", "an object with prompt"));
            Map::new()
        }
    };
    let mut metadata = Map::new();
    let kept = json!({ INPUT: input });
    if kept.to_string().len() <= METADATA_BYTES_MAX {
        metadata.insert(INPUT.to_owned(), Value::Object(input.clone()));
    }
    let mut fields = Map::new();
    for (name, value) in input.into_iter().filter(|(_, value)| !value.is_null()) {
        let own = RENAMED.iter().find(|(theirs, _)| *theirs == name).map_or(name.as_str(), |(_, ours)| *ours);
        if !WITHOUT_MEANING.contains(&name.as_str()) {
            fields.insert(own.to_owned(), value);
        }
    }
    fields.insert("metadata".to_owned(), Value::Object(metadata));
    if let Some(webhook) = webhook_field(&mut body, &mut violations) {
        fields.insert("webhook".to_owned(), webhook);
    }
    if let Some(model) = model {
        fields.insert("model".to_owned(), model.into());
    }
    body.remove("stream");
    body.remove("version");
    for (name, value) in body.iter().filter(|(_, value)| !value.is_null()) {
        violations.push(Violation::new(name, value, "no such field"));
    }
    if violations.is_empty() { Ok(fields) } else { Err(violations) }
}

/// Whom to tell, and of what: everything when no filter says less. There is no output before the last one, and no log.
fn webhook_field(body: &mut Map<String, Value>, violations: &mut Vec<Violation>) -> Option<Value> {
    let filter = body.remove("webhook_events_filter").filter(|filter| !filter.is_null());
    let url = body.remove("webhook").filter(|url| !url.is_null())?;
    let mut events = Vec::new();
    let named = match filter {
        None => vec![json!("start"), json!("completed")],
        Some(Value::Array(named)) => named,
        Some(other) => {
            violations.push(Violation::new("webhook_events_filter", other, EVENTS.join(", ")));
            return None;
        }
    };
    for name in &named {
        match name.as_str() {
            Some("start") => events.push("started"),
            Some("completed") => events.extend(["completed", "failed", "cancelled"]),
            Some("output" | "logs") => {}
            _ => violations.push(Violation::new("webhook_events_filter", name, EVENTS.join(", "))),
        }
    }
    (!events.is_empty()).then(|| json!({ "url": url, "events": events, "format": "replicate" }))
}

/// What a webhook is told of a job, in at most `bytes_max` bytes: `data` is that of the event, `gateway` is where clients reach
/// that. Of an event that is not the last, only what was known then.
pub fn webhook(
    job: &JobId,
    event: WebhookEvent,
    data: &Value,
    record: &Record,
    gateway: &str,
    bytes_max: usize,
) -> Option<Vec<u8>> {
    let metadata = data.get("metadata").and_then(|metadata| metadata.as_object().cloned());
    let whole = JobDocument { metadata, ..JobDocument::of_record(job.as_str(), record) };
    let document = match event {
        WebhookEvent::Started | WebhookEvent::Progress => JobDocument {
            status: Status::Processing.as_str().to_owned(),
            images: Vec::new(),
            error: None,
            timings: None,
            ..whole
        },
        WebhookEvent::Completed | WebhookEvent::Failed | WebhookEvent::Cancelled => whole,
    };
    let url =
        |image: &StoredImage| match (image.url.starts_with("http"), document.links.images.get(image.index as usize)) {
            (false, Some(path)) => format!("{gateway}{path}"),
            _ => image.url.clone(),
        };
    let outputs: Vec<String> = document.images.iter().map(url).collect();
    let mut prediction = prediction(&document, &outputs, gateway);
    let bytes = serde_json::to_vec(&prediction).ok()?;
    if bytes.len() <= bytes_max {
        return Some(bytes);
    }
    prediction["input"] = json!({});
    serde_json::to_vec(&prediction).ok().filter(|bytes| bytes.len() <= bytes_max)
}

/// The model that a version names: `owner/name:version`, `owner/name` or a name.
pub fn model_of_version(version: &str) -> &str {
    let name = version.split(':').next().unwrap_or(version);
    name.rsplit('/').next().unwrap_or(name)
}

/// Their word for a status.
pub fn status(ours: &str) -> &'static str {
    match ours {
        "processing" => "processing",
        "completed" => "succeeded",
        "failed" => "failed",
        "cancelled" => "canceled",
        _ => "starting",
    }
}

/// A job as a prediction; `outputs` are where its images are, `at` is the address of the gateway.
pub fn prediction(job: &JobDocument, outputs: &[String], at: &str) -> Value {
    let url = format!("{at}/replicate/v1/predictions/{}", job.id);
    let timings = job.timings.as_ref();
    let seconds = |milliseconds: f64| milliseconds / 1e3;
    let metrics = timings.map(|timings| {
        let predict = timings.encoding_ms + timings.denoising_ms + timings.decoding_ms;
        let total = predict + timings.queued_ms + timings.loading_ms + timings.storing_ms;
        json!({ "predict_time": seconds(predict), "total_time": seconds(total) })
    });
    let input = job.metadata.as_ref().and_then(|metadata| metadata.get(INPUT)).cloned().unwrap_or_else(|| json!({}));
    json!({
        "id": job.id, "model": job.model, "version": job.model, "input": input,
        "output": if outputs.is_empty() { Value::Null } else { json!(outputs) },
        "error": job.error.as_ref().map(|error| &error.message), "logs": "", "metrics": metrics.unwrap_or_else(|| json!({})),
        "status": status(&job.status), "source": "api", "data_removed": false, "created_at": job.created,
        "started_at": (job.attempts > 0).then_some(&job.updated), "completed_at": job.has_ended().then_some(&job.updated),
        "urls": { "get": url, "cancel": format!("{url}/cancel"), "stream": format!("{at}{}", job.links.events) },
    })
}

/// An error as their packages read it.
pub fn error(problem: &ProblemDocument) -> Value {
    json!({ "title": problem.title, "detail": problem.detail, "status": problem.status })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_becomes_the_fields_of_a_submission() {
        let Value::Object(body) =
            json!({"version": "v", "input": {"prompt": "a ring", "num_outputs": 2, "image": "k", "go_fast": true}})
        else {
            panic!("an object")
        };
        let fields = fields(body.clone(), Some("shapes")).unwrap();
        assert_eq!(fields["metadata"]["input"], body["input"]);
        let rest: Map<String, Value> = fields.into_iter().filter(|(name, _)| name != "metadata").collect();
        assert_eq!(
            Value::Object(rest),
            json!({"prompt": "a ring", "num_images": 2, "init_image": "k", "model": "shapes"})
        );
    }

    #[test]
    fn what_is_no_prediction_is_refused_by_name() {
        let Value::Object(body) = json!({"input": 7, "inputs": {}}) else { panic!("an object") };
        let named: Vec<String> = fields(body, None).unwrap_err().into_iter().map(|violation| violation.field).collect();
        assert_eq!(named, ["input", "inputs"]);
    }

    #[test]
    fn a_webhook_is_told_of_what_its_filter_says() {
        let webhook = |body: Value| -> Result<Option<Value>, Vec<String>> {
            let mut violations = Vec::new();
            let found = webhook_field(&mut body.as_object().cloned().unwrap(), &mut violations);
            if violations.is_empty() { Ok(found) } else { Err(violations.into_iter().map(|one| one.field).collect()) }
        };
        let told = |events: Value| Ok(Some(json!({"url": "u", "events": events, "format": "replicate"})));
        let all = json!(["started", "completed", "failed", "cancelled"]);
        assert_eq!(webhook(json!({"webhook": "u"})), told(all));
        assert_eq!(
            webhook(json!({"webhook": "u", "webhook_events_filter": ["start", "logs"]})),
            told(json!(["started"]))
        );
        assert_eq!(webhook(json!({"webhook": "u", "webhook_events_filter": ["output"]})), Ok(None));
        assert_eq!(webhook(json!({"webhook_events_filter": ["completed"]})), Ok(None));
        for wrong in [json!("start"), json!(["end"])] {
            let named = webhook(json!({"webhook": "u", "webhook_events_filter": wrong}));
            assert_eq!(named, Err(vec!["webhook_events_filter".to_owned()]));
        }
    }

    #[test]
    fn a_webhook_has_the_prediction_as_it_was_with_links_to_the_gateway() {
        let mut record = Record::accepted("d".into(), "shapes", Some(1), 1_795_000_000_000);
        let data = json!({
            "images": [{"index": 0, "key": "k", "url": "file:///k", "content_type": "image/png", "size_bytes": 1, "sha256": "", "seed": 7}],
            "metadata": {"input": {"prompt": "p".repeat(3000)}},
        });
        record.terminal = Some(data.clone());
        record.state.status = Status::Completed;
        let job = "j".parse().unwrap();
        let body = |event, bytes_max| -> Value {
            let bytes = webhook(&job, event, &data, &record, "https://gateway", bytes_max).unwrap();
            serde_json::from_slice(&bytes).unwrap()
        };
        let completed = body(WebhookEvent::Completed, 20_000);
        assert_eq!((&completed["status"], &completed["id"]), (&json!("succeeded"), &json!("j")));
        assert_eq!(completed["output"], json!(["https://gateway/v1/jobs/j/images/0"]));
        assert_eq!(completed["urls"]["get"], "https://gateway/replicate/v1/predictions/j");
        let started = body(WebhookEvent::Started, 20_000);
        assert_eq!((&started["status"], &started["output"]), (&json!("processing"), &Value::Null));
        assert_eq!(started["input"], data["metadata"]["input"]);
        assert_eq!(body(WebhookEvent::Completed, 2_000)["input"], json!({}));
        assert_eq!(webhook(&job, WebhookEvent::Completed, &data, &record, "", 10), None);
    }

    #[test]
    fn versions_name_models() {
        for (version, model) in [("shapes", "shapes"), ("me/shapes", "shapes"), ("me/shapes:0123", "shapes")] {
            assert_eq!(model_of_version(version), model);
        }
    }
}
