//! Tiny diffusers directories with known outputs, from the files of `make.py` and `dit.py`.
//!
//! Weights are a function of tensor name and shape, the same as in `tiny.py`.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// What diffusers recorded for `family`.
pub(crate) fn golden(family: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{family}.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A list of numbers in what was recorded.
#[allow(dead_code, reason = "not every test that includes this file compares numbers")]
pub(crate) fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

/// The tensors that it recorded.
#[allow(dead_code, reason = "not every test that includes this file compares numbers")]
pub(crate) fn tensors(family: &str) -> HashMap<String, Tensor> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{family}.safetensors"));
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

/// A directory with the tiny model of `family`.
pub(crate) fn model(family: &str) -> tempfile::TempDir {
    let golden = golden(family);
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    for (name, config) in golden["configs"].as_object().unwrap() {
        std::fs::create_dir_all(at(name).parent().unwrap()).unwrap();
        write_json(&at(name), config);
    }
    for (part, pad_token) in golden["pad_tokens"].as_object().unwrap() {
        std::fs::create_dir(at(part)).unwrap();
        write_json(&at(&format!("{part}/vocab.json")), &golden["vocabulary"]);
        write_json(&at(&format!("{part}/special_tokens_map.json")), &json!({ "pad_token": pad_token }));
        let merges: Vec<&str> =
            golden["merges"].as_array().unwrap().iter().map(|pair| pair.as_str().unwrap()).collect();
        let text = format!("#version: 0.2\n{}\n", merges.join("\n"));
        std::fs::write(at(&format!("{part}/merges.txt")), text).unwrap();
    }
    for (part, tokenizer) in golden["t5_tokenizers"].as_object().unwrap() {
        std::fs::create_dir(at(part)).unwrap();
        write_json(&at(&format!("{part}/tokenizer.json")), tokenizer);
    }
    for (part, shapes) in golden["shapes"].as_object().unwrap() {
        let stem = if part.starts_with("text_encoder") { "model" } else { "diffusion_pytorch_model" };
        let tensors: HashMap<&str, Tensor> = shapes
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, shape)| {
                let shape: Vec<usize> =
                    shape.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
                (name.as_str(), tensor(name, &shape))
            })
            .collect();
        candle_core::safetensors::save(&tensors, at(&format!("{part}/{stem}.safetensors"))).unwrap();
    }
    directory
}

pub(crate) fn write_json(path: &Path, value: &Value) {
    std::fs::write(path, value.to_string()).unwrap();
}

/// Replaces `field` of the JSON object in `path`.
#[allow(dead_code, reason = "not every test that includes this file edits a model")]
pub(crate) fn edit(path: &Path, field: &str, value: Value) {
    let mut object: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    object[field] = value;
    write_json(path, &json!(object));
}

/// The weights `name`: uniform from a hash of name and index, scaled as weights are.
pub(crate) fn tensor(name: &str, shape: &[usize]) -> Tensor {
    let digest = Sha256::digest(name.as_bytes());
    let seed = u64::from_le_bytes(digest[..8].try_into().unwrap());
    let count: usize = shape.iter().product();
    let (factor, constant) = match shape {
        [_, rest @ ..] if !rest.is_empty() => ((1.7 / (rest.iter().product::<usize>() as f64).sqrt()) as f32, 0.0),
        _ if name.contains("norm") && name.ends_with("weight") => (0.1, 1.0),
        _ => (0.1, 0.0),
    };
    let values: Vec<f32> = (1..=count as u64)
        .map(|index| {
            // splitmix64
            let z = seed.wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            let z = z ^ (z >> 31);
            let uniform = ((z >> 40) as f64 / f64::from(1 << 23) - 1.0) as f32;
            uniform * factor + constant
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}
