//! The Images API as OpenAI's clients speak it, translated to and from requests and events. Fields that say how much an
//! account pays, or that moderate, are taken and mean nothing here.
//!
//! Source: OpenAI's API reference, and the types of its Python package.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::event::Progress;
use super::http::ProblemDocument;
use crate::job::Violation;

/// How images are answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseFormat {
    /// Where they are.
    Url,
    /// What they are.
    B64Json,
}

/// What a client of that API wants, besides the job.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// The fields of a submission.
    pub fields: Map<String, Value>,
    /// How images are answered with.
    pub response_format: ResponseFormat,
    /// Whether events are answered with, and with how many partial images at the most.
    pub stream: Option<u32>,
}

/// Fields that are ours, and that the packages pass on when told to (`extra_body`).
const OURS: [&str; 17] = [
    "model",
    "negative_prompt",
    "num_inference_steps",
    "guidance_scale",
    "seed",
    "scheduler",
    "priority",
    "pool",
    "deadline",
    "on_late",
    "loras",
    "strength",
    "rng",
    "long_prompt",
    "prompt_weighting",
    "guidance_rescale",
    "cache",
];
/// Fields of theirs that change nothing here.
const WITHOUT_MEANING: [&str; 8] = [
    "quality",
    "style",
    "background",
    "moderation",
    "output_compression",
    "user",
    "safety_identifier",
    "input_fidelity",
];

/// Reads the body of `images/generations`, or the fields of `images/edits`.
///
/// # Errors
/// Every broken rule that the check of requests would not find.
pub fn wanted(mut body: Map<String, Value>) -> Result<Wanted, Vec<Violation>> {
    let mut violations = Vec::new();
    let mut fields = Map::new();
    let mut take = |name: &str| body.remove(name).filter(|value| !value.is_null());
    if let Some(prompt) = take("prompt") {
        fields.insert("prompt".to_owned(), prompt);
    }
    if let Some(images) = take("n") {
        fields.insert("num_images".to_owned(), images);
    }
    if let Some(format) = take("output_format") {
        fields.insert("output_format".to_owned(), format);
    }
    for name in ["init_image", "mask_image"] {
        if let Some(picture) = take(name) {
            fields.insert(name.to_owned(), picture);
        }
    }
    match take("size") {
        None => {}
        Some(Value::String(auto)) if auto == "auto" => {}
        Some(size) => match size.as_str().and_then(sides) {
            Some((width, height)) => {
                fields.insert("width".to_owned(), width.into());
                fields.insert("height".to_owned(), height.into());
            }
            None => violations.push(Violation::new("size", size, "auto, or WIDTHxHEIGHT such as 512x512")),
        },
    }
    let response_format = match take("response_format") {
        None => ResponseFormat::Url,
        Some(Value::String(word)) if word == "url" => ResponseFormat::Url,
        Some(Value::String(word)) if word == "b64_json" => ResponseFormat::B64Json,
        Some(other) => {
            violations.push(Violation::new("response_format", other, "url or b64_json"));
            ResponseFormat::Url
        }
    };
    let stream = match take("stream") {
        None | Some(Value::Bool(false)) => false,
        Some(Value::Bool(true)) => true,
        Some(other) => {
            violations.push(Violation::new("stream", other, "true or false"));
            false
        }
    };
    let partial_images = match take("partial_images") {
        None => 0,
        Some(count) => match count.as_u64().and_then(|count| u32::try_from(count).ok()).filter(|count| *count <= 3) {
            Some(count) => count,
            None => {
                violations.push(Violation::new("partial_images", count, "0 to 3"));
                0
            }
        },
    };
    for name in OURS {
        if let Some(value) = take(name) {
            fields.insert(name.to_owned(), value);
        }
    }
    for name in WITHOUT_MEANING {
        take(name);
    }
    for (name, value) in body.iter().filter(|(_, value)| !value.is_null()) {
        violations.push(Violation::new(name, value, "no such field"));
    }
    let stream = stream.then_some(partial_images);
    if violations.is_empty() { Ok(Wanted { fields, response_format, stream }) } else { Err(violations) }
}

fn sides(text: &str) -> Option<(u32, u32)> {
    let (width, height) = text.split_once('x')?;
    Some((width.parse().ok()?, height.parse().ok()?))
}

/// How often a job of so many steps sends a preview, so that there are at most `partial_images`.
pub fn preview_every(steps: u32, partial_images: u32) -> Option<u32> {
    (partial_images > 0).then(|| steps / (partial_images + 1) + 1)
}

/// One image of an answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// Its bytes, in Base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub b64_json: Option<String>,
    /// Where it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// The answer to `images/generations` and `images/edits`.
pub fn images(created_unix_s: i64, data: &[Image]) -> Value {
    json!({ "created": created_unix_s, "data": data })
}

/// `data` of the event of a partial image: what its preview shows.
pub fn partial_image(kind: &str, index: u32, progress: &Progress, created_unix_s: i64) -> Option<Value> {
    Some(json!({
        "type": format!("{kind}.partial_image"), "b64_json": progress.preview.as_ref()?, "partial_image_index": index,
        "created_at": created_unix_s, "size": "auto", "quality": "auto", "background": "auto", "output_format": "jpeg",
    }))
}

/// `data` of the last event.
pub fn completed(kind: &str, b64_json: &str, size: &str, output_format: &str, created_unix_s: i64) -> Value {
    let none = json!({ "image_tokens": 0, "text_tokens": 0 });
    json!({
        "type": format!("{kind}.completed"), "b64_json": b64_json, "created_at": created_unix_s, "size": size,
        "quality": "auto", "background": "auto", "output_format": output_format,
        "usage": { "input_tokens": 0, "input_tokens_details": none, "output_tokens": 0, "total_tokens": 0 },
    })
}

/// The answer to `models`.
pub fn models(names: &[String]) -> Value {
    let one = |name: &String| json!({ "id": name, "object": "model", "created": 0, "owned_by": "darkroom" });
    json!({ "object": "list", "data": names.iter().map(one).collect::<Vec<_>>() })
}

/// An error as their packages read it.
pub fn error(problem: &ProblemDocument) -> Value {
    let kind = match problem.status {
        401 => "authentication_error",
        429 => "rate_limit_error",
        500.. => "server_error",
        _ => "invalid_request_error",
    };
    let field = problem.violations.first().map(|violation| match violation.field.as_str() {
        "num_images" => "n",
        "width" | "height" => "size",
        other => other,
    });
    let code = if problem.code == "unknown_model" { "model_not_found" } else { &problem.code };
    let param = if problem.code == "unknown_model" { Some("model") } else { field };
    json!({ "error": { "message": problem.detail, "type": kind, "param": param, "code": code } })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: Value) -> Result<Wanted, Vec<String>> {
        let Value::Object(body) = body else { panic!("an object") };
        wanted(body).map_err(|violations| violations.into_iter().map(|violation| violation.field).collect())
    }

    #[test]
    fn a_body_becomes_the_fields_of_a_submission() {
        let read = read(json!({
            "prompt": "a ring", "model": "shapes", "n": 2, "size": "128x64", "quality": "high", "user": "u", "seed": 7,
            "response_format": "b64_json", "stream": true, "partial_images": 2, "style": null,
        }));
        let wanted = read.unwrap();
        let fields =
            json!({"prompt": "a ring", "model": "shapes", "num_images": 2, "width": 128, "height": 64, "seed": 7});
        assert_eq!(Value::Object(wanted.fields), fields);
        assert_eq!((wanted.response_format, wanted.stream), (ResponseFormat::B64Json, Some(2)));
    }

    #[test]
    fn every_field_that_is_wrong_is_named() {
        let body = json!({"size": "large", "response_format": "gif", "stream": 1, "partial_images": 4, "hat": 1});
        let mut fields = read(body).unwrap_err();
        fields.sort_unstable();
        assert_eq!(fields, ["hat", "partial_images", "response_format", "size", "stream"]);
    }

    #[test]
    fn there_are_at_most_as_many_previews_as_are_wanted() {
        for (steps, partial_images) in [(1, 3), (4, 1), (20, 3), (50, 2), (100, 1)] {
            let every = preview_every(steps, partial_images).unwrap();
            assert!(steps / every <= partial_images, "{steps} {partial_images} {every}");
        }
        assert_eq!(preview_every(20, 0), None);
    }
}
