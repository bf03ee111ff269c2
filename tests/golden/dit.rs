//! Parts of tiny transformer-based models with known outputs, from `dit.json`; helpers of the tests of `dit`, `mmdit`,
//! `flux` and `t5`.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use super::super::device::Placement;
use super::super::error::LoadError;
use super::super::tiny;
use super::super::weights::{self, Weights};

/// What was recorded.
pub(crate) fn document() -> Value {
    serde_json::from_str(include_str!("dit.json")).unwrap()
}

/// A directory with one part of a model, and what it makes of the inputs.
pub(crate) struct Part {
    directory: tempfile::TempDir,
    output: Value,
}

impl Part {
    /// `name` is the part's directory, `golden` what was recorded: configuration, shapes of the weights, output.
    pub(crate) fn new(name: &str, golden: &Value) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join(name)).unwrap();
        tiny::write_json(&directory.path().join(name).join("config.json"), &golden["config"]);
        let part = Self { directory, output: golden["output"].clone() };
        let shapes = golden["shapes"].as_object().unwrap();
        part.write_weights(
            name,
            shapes.iter().map(|(name, shape)| {
                let shape: Vec<usize> =
                    shape.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
                (name.clone(), tiny::tensor(name, &shape))
            }),
        );
        part
    }

    fn write_weights(&self, name: &str, tensors: impl Iterator<Item = (String, Tensor)>) {
        let path = self.directory().join(name).join("model.safetensors");
        candle_core::safetensors::save(&tensors.collect::<HashMap<_, _>>(), path).unwrap();
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn weights(&self, name: &str, dtype: DType) -> Weights {
        let placement = Placement { device: Device::Cpu, dtype };
        Weights::open(&weights::files(&self.directory().join(name)).unwrap(), &placement).unwrap()
    }

    /// [`check`] against what was recorded.
    pub(crate) fn check(&self, what: &str, ours: &Tensor) {
        check(what, ours, &self.output);
    }
}

/// Fails when `ours` is farther from `theirs`, of which six digits were recorded, than 1e-5 of the largest magnitude.
pub(crate) fn check(what: &str, ours: &Tensor, theirs: &Value) {
    let worst = worst(ours, &tiny::numbers(theirs));
    assert!(worst <= 1e-5, "{what} differs by {worst} of the largest magnitude");
}

/// The largest difference, in units of the largest magnitude.
fn worst(ours: &Tensor, theirs: &[f32]) -> f32 {
    let ours: Vec<f32> = ours.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    assert_eq!(ours.len(), theirs.len());
    let largest = theirs.iter().copied().map(f32::abs).fold(0.0, f32::max);
    ours.iter().zip(theirs).map(|(ours, theirs)| (ours - theirs).abs()).fold(0.0, f32::max) / largest
}

/// The transformer `variant` of `family`.
pub(crate) fn transformer(family: &str, variant: &str) -> Part {
    Part::new("transformer", &document()[family][variant])
}

/// What the transformers were given: two rows.
pub(crate) struct Inputs {
    pub(crate) latents: Tensor,
    pub(crate) timesteps: Vec<f32>,
    pub(crate) context: Tensor,
    pub(crate) pooled: Tensor,
    pub(crate) guidance: f32,
}

impl Inputs {
    pub(crate) fn to_dtype(&self, dtype: DType) -> Self {
        let convert = |tensor: &Tensor| tensor.to_dtype(dtype).unwrap();
        Self {
            latents: convert(&self.latents),
            context: convert(&self.context),
            pooled: convert(&self.pooled),
            timesteps: self.timesteps.clone(),
            guidance: self.guidance,
        }
    }
}

pub(crate) fn inputs() -> Inputs {
    let document = document();
    let context = (tiny::tensor("context", &[2, 9, 20]) * 10.0).unwrap();
    Inputs {
        latents: (tiny::tensor("latents", &[2, 4, 8, 12]) * 20.0).unwrap(),
        timesteps: tiny::numbers(&document["timesteps"]),
        context: context.transpose(1, 2).unwrap().contiguous().unwrap(),
        pooled: (tiny::tensor("pooled", &[2, 12]) * 3.0).unwrap(),
        guidance: document["guidance"].as_f64().unwrap() as f32,
    }
}

/// Fails when `forward` makes something else of a row alone than of the same row among others.
pub(crate) fn rows_alone(forward: impl Fn(&Inputs) -> Tensor) {
    let inputs = inputs();
    let together = forward(&inputs);
    for row in 0..2 {
        let one = |tensor: &Tensor| tensor.narrow(0, row, 1).unwrap().contiguous().unwrap();
        let alone = forward(&Inputs {
            latents: one(&inputs.latents),
            timesteps: vec![inputs.timesteps[row]],
            context: one(&inputs.context),
            pooled: one(&inputs.pooled),
            guidance: inputs.guidance,
        });
        let worst = worst(&alone, &one(&together).flatten_all().unwrap().to_vec1::<f32>().unwrap());
        assert!(worst <= 1e-5, "row {row} differs by {worst}");
    }
}

/// [`refusals_of`] the transformer `variant` of `family`.
pub(crate) fn refusals<T>(
    family: &str,
    variant: &str,
    load: impl Fn(&Part) -> Result<T, LoadError>,
    missing: &str,
    changes: &[(&str, Value)],
) {
    refusals_of("transformer", &document()[family][variant], load, missing, changes);
}

/// Fails unless the part is refused without the tensor `missing`, and with each of `changes` to its configuration, by
/// name.
pub(crate) fn refusals_of<T>(
    name: &str,
    golden: &Value,
    load: impl Fn(&Part) -> Result<T, LoadError>,
    missing: &str,
    changes: &[(&str, Value)],
) {
    let refusal = |part: &Part| match load(part) {
        Ok(_) => panic!("it was loaded"),
        Err(error) => error,
    };
    for (key, value) in changes {
        let part = Part::new(name, golden);
        tiny::edit(&part.directory().join(name).join("config.json"), key, value.clone());
        let error = refusal(&part);
        let named =
            matches!(&error, LoadError::Unsupported { field, .. } | LoadError::Invalid { field, .. } if field == key);
        assert!(named, "{key}: {error}");
    }
    let mut without = golden.clone();
    without["shapes"].as_object_mut().unwrap().remove(missing).unwrap();
    let error = refusal(&Part::new(name, &without));
    assert!(matches!(&error, LoadError::MissingTensor { tensor, .. } if tensor == missing), "{error}");
}
