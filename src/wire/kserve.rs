//! KServe's Open Inference Protocol, version 2, with Triton's extension for binary tensors, translated to and from
//! submissions.
//!
//! Inputs are tensors of one element: `PROMPT` and `NEGATIVE_PROMPT` (BYTES), `SEED` (INT64 or UINT64), `STEPS`, `WIDTH`,
//! `HEIGHT` and `NUM_IMAGES` (INT32, or any other whole number), `GUIDANCE` (FP32 or FP64), `SCHEDULER` (BYTES). Outputs are
//! `IMAGE` and `IMAGE_URL`, BYTES of shape `[images]`; an image in JSON is Base64, as JSON has no bytes.
//!
//! Source: the Open Inference Protocol's REST specification, and Triton's `extension_binary_data`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::job::Violation;

/// There is one of each model.
const VERSION: &str = "1";
/// What clients may name, with the field of a submission and the kind of element.
const INPUTS: [(&str, &str, Kind); 9] = [
    ("PROMPT", "prompt", Kind::Text),
    ("NEGATIVE_PROMPT", "negative_prompt", Kind::Text),
    ("SCHEDULER", "scheduler", Kind::Text),
    ("SEED", "seed", Kind::Whole),
    ("STEPS", "num_inference_steps", Kind::Whole),
    ("WIDTH", "width", Kind::Whole),
    ("HEIGHT", "height", Kind::Whole),
    ("NUM_IMAGES", "num_images", Kind::Whole),
    ("GUIDANCE", "guidance_scale", Kind::Number),
];

/// Which data types stand for an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Whole,
    Number,
}

impl Kind {
    fn types(self) -> &'static [&'static str] {
        match self {
            Self::Text => &["BYTES"],
            Self::Whole => &["INT64", "INT32", "UINT64", "UINT32", "INT16", "UINT16"],
            Self::Number => &["FP32", "FP64"],
        }
    }
}

/// How an output is to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// In the JSON part.
    Json,
    /// After it.
    Binary,
}

/// What can be had of each image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputName {
    /// Its bytes.
    Image,
    /// Where they are.
    ImageUrl,
}

impl OutputName {
    const ALL: [Self; 2] = [Self::Image, Self::ImageUrl];

    fn as_str(self) -> &'static str {
        match self {
            Self::Image => "IMAGE",
            Self::ImageUrl => "IMAGE_URL",
        }
    }
}

/// An output that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output {
    /// Which.
    pub name: OutputName,
    /// How.
    pub form: Form,
}

/// One request to infer.
#[derive(Clone, Debug, PartialEq)]
pub struct Inference {
    /// Comes back with the answer.
    pub id: Option<String>,
    /// The fields of a submission.
    pub fields: Map<String, Value>,
    /// The outputs that are wanted, in order; both when it names none.
    pub outputs: Vec<Output>,
}

/// Reads a body whose first `header_bytes` are JSON, all of it when `None`.
///
/// # Errors
/// Every broken rule that the check of requests would not find.
pub fn parse(body: &[u8], header_bytes: Option<usize>) -> Result<Inference, Vec<Violation>> {
    let one = |field: &str, value: String, allowed: &str| vec![Violation::new(field, value, allowed)];
    let length = header_bytes.unwrap_or(body.len());
    let Some((header, mut tensors)) = body.split_at_checked(length) else {
        let allowed = format!("at most the {} bytes of the body", body.len());
        return Err(one("Inference-Header-Content-Length", length.to_string(), &allowed));
    };
    let header: Map<String, Value> =
        serde_json::from_slice(header).map_err(|error| one("body", error.to_string(), "a JSON object"))?;
    let mut violations = Vec::new();
    let mut fields = Map::new();
    for input in header.get("inputs").and_then(Value::as_array).map_or(&[][..], Vec::as_slice) {
        let name = input["name"].as_str().unwrap_or_default();
        let binary = input["parameters"]["binary_data_size"].as_u64().and_then(|size| usize::try_from(size).ok());
        let bytes = match binary.map(|size| tensors.split_at_checked(size)) {
            None => None,
            Some(Some((bytes, rest))) => {
                tensors = rest;
                Some(bytes)
            }
            Some(None) => {
                violations.push(Violation::new(name, "binary_data_size", "no more than the body has"));
                break;
            }
        };
        let Some((_, field, kind)) = INPUTS.iter().find(|(known, ..)| *known == name) else {
            let known: Vec<&str> = INPUTS.iter().map(|(known, ..)| *known).collect();
            violations.push(Violation::new("inputs.name", name, known.join(", ")));
            continue;
        };
        let datatype = input["datatype"].as_str().unwrap_or_default();
        if !kind.types().contains(&datatype) {
            violations.push(Violation::new(format!("{name}.datatype"), datatype, kind.types().join(", ")));
            continue;
        }
        let element = match bytes {
            Some(bytes) => element(datatype, bytes),
            None => only(&input["data"]).cloned(),
        };
        match element {
            Some(value) => drop(fields.insert((*field).to_owned(), value)),
            None => violations.push(Violation::new(name, "its data", format!("one element of {datatype}"))),
        }
    }
    let parameters = header.get("parameters").cloned().unwrap_or_default();
    // Triton counts 1 as the most urgent, and 0 as the default.
    match parameters["priority"].as_u64() {
        Some(1) => drop(fields.insert("priority".to_owned(), "high".into())),
        Some(3..) => drop(fields.insert("priority".to_owned(), "low".into())),
        Some(_) | None => {}
    }
    let all_binary = parameters["binary_data_output"].as_bool().unwrap_or(false);
    let form = |is_binary: bool| if is_binary { Form::Binary } else { Form::Json };
    let mut outputs = Vec::new();
    for output in header.get("outputs").and_then(Value::as_array).map_or(&[][..], Vec::as_slice) {
        let asked = output["name"].as_str().unwrap_or_default();
        let is_binary = output["parameters"]["binary_data"].as_bool().unwrap_or(all_binary);
        match OutputName::ALL.into_iter().find(|name| name.as_str() == asked) {
            // Each would have the bytes of all images once more.
            Some(name) if outputs.iter().any(|output: &Output| output.name == name) => {
                violations.push(Violation::new("outputs.name", asked, "each output once"));
            }
            Some(name) => outputs.push(Output { name, form: form(is_binary) }),
            None => violations.push(Violation::new("outputs.name", asked, "IMAGE, IMAGE_URL")),
        }
    }
    if outputs.is_empty() {
        outputs = OutputName::ALL.map(|name| Output { name, form: form(all_binary) }).into();
    }
    let id = header.get("id").and_then(Value::as_str).map(str::to_owned);
    if violations.is_empty() { Ok(Inference { id, fields, outputs }) } else { Err(violations) }
}

/// The only element of nested arrays.
fn only(data: &Value) -> Option<&Value> {
    if data.is_null() {
        return None;
    }
    let Some(elements) = data.as_array() else { return Some(data) };
    let [element] = &elements[..] else { return None };
    only(element)
}

/// The only element of a binary tensor, little-endian; BYTES have their length before them.
fn element(datatype: &str, bytes: &[u8]) -> Option<Value> {
    fn array<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
        bytes.try_into().ok()
    }
    Some(match datatype {
        "BYTES" => {
            let (length, text) = bytes.split_at_checked(4)?;
            let length = usize::try_from(u32::from_le_bytes(array(length)?)).ok()?;
            Value::String(String::from_utf8(text.to_vec()).ok().filter(|text| text.len() == length)?)
        }
        "INT64" => i64::from_le_bytes(array(bytes)?).into(),
        "UINT64" => u64::from_le_bytes(array(bytes)?).into(),
        "INT32" => i32::from_le_bytes(array(bytes)?).into(),
        "UINT32" => u32::from_le_bytes(array(bytes)?).into(),
        "INT16" => i16::from_le_bytes(array(bytes)?).into(),
        "UINT16" => u16::from_le_bytes(array(bytes)?).into(),
        "FP32" => f32::from_le_bytes(array(bytes)?).into(),
        "FP64" => f64::from_le_bytes(array(bytes)?).into(),
        _ => return None,
    })
}

/// An answer: its body, and how much of it is JSON if something comes after that.
pub fn answer(model: &str, id: Option<&str>, tensors: &[(Output, Vec<Bytes>)]) -> (Vec<u8>, Option<usize>) {
    let mut binary = Vec::new();
    let mut outputs = Vec::new();
    for (Output { name, form }, elements) in tensors {
        let mut output = json!({ "name": name.as_str(), "datatype": "BYTES", "shape": [elements.len()] });
        match (form, name) {
            (Form::Binary, _) => {
                let before = binary.len();
                for element in elements {
                    binary.extend(u32::try_from(element.len()).unwrap_or(u32::MAX).to_le_bytes());
                    binary.extend(element);
                }
                output["parameters"] = json!({ "binary_data_size": binary.len() - before });
            }
            (Form::Json, OutputName::Image) => {
                output["data"] = elements.iter().map(|element| Value::String(STANDARD.encode(element))).collect();
            }
            (Form::Json, OutputName::ImageUrl) => {
                let text = |element: &Bytes| Value::String(String::from_utf8_lossy(element).into_owned());
                output["data"] = elements.iter().map(text).collect();
            }
        }
        outputs.push(output);
    }
    let mut header = json!({ "model_name": model, "model_version": VERSION, "outputs": outputs });
    if let Some(id) = id {
        header["id"] = json!(id);
    }
    let mut body = header.to_string().into_bytes();
    let header_bytes = (!binary.is_empty()).then_some(body.len());
    body.extend(binary);
    (body, header_bytes)
}

/// What a model takes and gives.
pub fn metadata(model: &str) -> Value {
    let inputs = INPUTS.map(|(name, _, kind)| json!({ "name": name, "datatype": kind.types()[0], "shape": [1] }));
    let outputs = OutputName::ALL.map(|name| json!({ "name": name.as_str(), "datatype": "BYTES", "shape": [-1] }));
    json!({ "name": model, "versions": [VERSION], "platform": "darkroom", "inputs": inputs, "outputs": outputs })
}

/// What the server is.
pub fn server() -> Value {
    json!({ "name": "darkroom", "version": env!("CARGO_PKG_VERSION"), "extensions": ["binary_tensor_data"] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_and_binary_tensors_say_the_same() {
        let header = |binary: bool| {
            let input = |name: &str, datatype: &str, data: Value, size: usize| {
                let mut input = json!({ "name": name, "datatype": datatype, "shape": [1] });
                if binary {
                    input["parameters"] = json!({ "binary_data_size": size });
                } else {
                    input["data"] = json!([data]);
                }
                input
            };
            json!({ "id": "7", "inputs": [
                input("PROMPT", "BYTES", json!("a ring"), 10), input("SEED", "INT64", json!(9), 8), input("GUIDANCE", "FP32", json!(2.5), 4),
            ]})
        };
        let json = parse(header(false).to_string().as_bytes(), None).unwrap();
        let mut body = header(true).to_string().into_bytes();
        let length = body.len();
        body.extend(6_u32.to_le_bytes());
        body.extend(b"a ring");
        body.extend(9_i64.to_le_bytes());
        body.extend(2.5_f32.to_le_bytes());
        assert_eq!(parse(&body, Some(length)).unwrap(), json);
        let fields = json!({"prompt": "a ring", "seed": 9, "guidance_scale": 2.5});
        assert_eq!((Value::Object(json.fields), json.id.as_deref()), (fields, Some("7")));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let named = |body: Value| -> Vec<String> {
            let violations = parse(body.to_string().as_bytes(), None).unwrap_err();
            violations.into_iter().map(|violation| violation.field).collect()
        };
        let input = |name: &str, datatype: &str, data: Value| json!({"inputs": [{"name": name, "datatype": datatype, "data": data}]});
        assert_eq!(named(input("PROMPT", "INT32", json!([1]))), ["PROMPT.datatype"]);
        assert_eq!(named(input("PROMPT", "BYTES", json!(["a", "b"]))), ["PROMPT"]);
        assert_eq!(named(input("IMAGE", "BYTES", json!(["a"]))), ["inputs.name"]);
        assert_eq!(named(json!({"outputs": [{"name": "LATENTS"}]})), ["outputs.name"]);
        assert_eq!(named(json!({"outputs": [{"name": "IMAGE"}, {"name": "IMAGE"}]})), ["outputs.name"]);
        assert_eq!(parse(b"{}", Some(9)).unwrap_err()[0].field, "Inference-Header-Content-Length");
        let short = json!({"inputs": [{"name": "SEED", "datatype": "INT64", "parameters": {"binary_data_size": 8}}]});
        assert_eq!(named(short), ["SEED"]);
    }

    #[test]
    fn an_answer_has_its_images_after_the_json_or_in_it() {
        let image = |form| (Output { name: OutputName::Image, form }, vec![Bytes::from_static(&[1, 2, 3])]);
        let url = (Output { name: OutputName::ImageUrl, form: Form::Json }, vec![Bytes::from_static(b"u")]);
        let (body, length) = answer("shapes", None, &[image(Form::Binary), url]);
        let header: Value = serde_json::from_slice(&body[..length.unwrap()]).unwrap();
        assert_eq!(header["outputs"][0]["parameters"]["binary_data_size"], 7);
        assert_eq!(header["outputs"][1]["data"], json!(["u"]));
        assert_eq!(body[length.unwrap()..], [3, 0, 0, 0, 1, 2, 3]);
        let (body, length) = answer("shapes", Some("7"), &[image(Form::Json)]);
        assert_eq!(length, None);
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((&body["id"], &body["outputs"][0]["data"]), (&json!("7"), &json!(["AQID"])));
    }
}
