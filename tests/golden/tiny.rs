//! Tiny Stable Diffusion directories with known outputs, from `tiny.json`.
//!
//! Weights are a function of tensor name and index, the same as in `tiny.py`.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// What diffusers recorded for `variant`.
pub(crate) fn golden(variant: &str) -> Value {
    let document: Value = serde_json::from_str(include_str!("tiny.json")).unwrap();
    document[variant].clone()
}

/// A list of numbers in what was recorded.
#[allow(dead_code, reason = "not every test that includes this file compares numbers")]
pub(crate) fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

/// A directory with the model `variant`.
pub(crate) fn model(variant: &str) -> tempfile::TempDir {
    let golden = golden(variant);
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    for part in ["unet", "vae", "text_encoder", "scheduler", "tokenizer"] {
        std::fs::create_dir(at(part)).unwrap();
    }
    for (name, config) in golden["configs"].as_object().unwrap() {
        write_json(&at(name), config);
    }
    write_json(&at("tokenizer/vocab.json"), &golden["vocabulary"]);
    let merges: Vec<&str> = golden["merges"].as_array().unwrap().iter().map(|merge| merge.as_str().unwrap()).collect();
    std::fs::write(at("tokenizer/merges.txt"), format!("#version: 0.2\n{}\n", merges.join("\n"))).unwrap();
    for (part, file) in [
        ("unet", "unet/diffusion_pytorch_model.safetensors"),
        ("vae", "vae/diffusion_pytorch_model.safetensors"),
        ("text_encoder", "text_encoder/model.safetensors"),
    ] {
        let shapes = golden["shapes"][part].as_object().unwrap();
        let tensors: HashMap<&str, Tensor> = shapes
            .iter()
            .map(|(name, shape)| {
                let shape: Vec<usize> =
                    shape.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
                (name.as_str(), tensor(name, &shape))
            })
            .collect();
        candle_core::safetensors::save(&tensors, at(file)).unwrap();
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
