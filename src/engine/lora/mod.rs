//! LoRAs: small files that change the weights of a loaded base model (arXiv 2106.09685).
//!
//! A LoRA is merged when weights are read: `weight + scale * up @ down`, in f32, then in the model's number format. So
//! a model with LoRAs is a model like any other. Which LoRAs a request wants, and how long merged models are kept, is
//! not decided here. DoRA, LoHa, LoKr and whatever else is not a plain LoRA is refused by name.

mod file;
mod key;
mod names;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};

use crate::job::LoraName;
pub(crate) use file::Lora;
pub(crate) use key::MergeKey;
pub(crate) use names::Base;

/// So many names are listed when there is no LoRA of the name that was asked for.
const LISTED_MAX: usize = 10;

/// A part of a pipeline that LoRAs change; its name is that of the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// `unet`
    Unet,
    /// `transformer`, of Stable Diffusion 3 and FLUX.
    Transformer,
    /// `text_encoder`
    TextEncoder,
    /// `text_encoder_2`
    TextEncoder2,
    /// `text_encoder_3`
    TextEncoder3,
}

impl Part {
    /// Every one.
    pub const ALL: [Self; 5] =
        [Self::Unet, Self::Transformer, Self::TextEncoder, Self::TextEncoder2, Self::TextEncoder3];

    /// The directory in a diffusers directory, and the prefix of keys in a LoRA file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unet => "unet",
            Self::Transformer => "transformer",
            Self::TextEncoder => "text_encoder",
            Self::TextEncoder2 => "text_encoder_2",
            Self::TextEncoder3 => "text_encoder_3",
        }
    }
}

/// A LoRA that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoraError {
    /// There is no such LoRA.
    #[error("there is no LoRA `{name}` in `{}`; there is: {found}", directory.display())]
    Missing {
        /// What was asked for.
        name: LoraName,
        /// Where it was looked for.
        directory: PathBuf,
        /// The names of those that are there, or of some of them.
        found: String,
    },
    /// The file cannot be read.
    #[error("`{}` cannot be read", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The file is truncated or no safetensors file at all.
    #[error("`{}` is not a complete safetensors file", path.display())]
    Incomplete {
        /// The file.
        path: PathBuf,
        /// What candle says.
        source: candle_core::Error,
    },
    /// The file holds something else that changes models.
    #[error("`{}`: `{key}` belongs to {kind}, which is not supported; supported: LoRA", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The first key that says so.
        key: String,
        /// What it is.
        kind: &'static str,
    },
    /// A key or value is not what LoRA files have.
    #[error("`{}`: `{key}` {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The base model has no such layer.
    #[error("`{}` is for another architecture: this model has no layer for `{key}`", path.display())]
    UnknownLayer {
        /// The file.
        path: PathBuf,
        /// The first key without a layer.
        key: String,
    },
    /// The base model's layer is of another size.
    #[error(
        "`{}` is for another architecture: `{key}` has shape {found:?}, this model's layer needs {expected:?}",
        path.display()
    )]
    WrongShape {
        /// The file.
        path: PathBuf,
        /// The first key of the wrong shape.
        key: String,
        /// What would fit the model.
        expected: Vec<usize>,
        /// What the file holds.
        found: Vec<usize>,
    },
    /// The device cannot compute the change.
    #[error("a LoRA cannot be computed")]
    Device(#[from] candle_core::Error),
}

/// Several LoRAs, each with its weight.
#[derive(Clone, Debug, Default)]
pub(crate) struct LoraSet {
    /// In the order of their names, so that the order of a request decides no rounding.
    loras: Vec<(Arc<Lora>, f32)>,
}

impl LoraSet {
    pub(crate) fn new(mut loras: Vec<(Arc<Lora>, f32)>) -> Self {
        loras.sort_by(|(one, _), (other, _)| one.name().cmp(other.name()));
        Self { loras }
    }

    /// The digests of their files, in that order, with commas.
    pub(crate) fn digests(&self) -> String {
        self.loras.iter().map(|(lora, _)| lora.digest()).collect::<Vec<_>>().join(",")
    }

    /// Whether any LoRA adds to `tensor` of `part`.
    pub(crate) fn changes(&self, part: Part, tensor: &str) -> bool {
        self.loras.iter().any(|(lora, _)| lora.layer(part, tensor).is_some())
    }

    /// Bytes, as f32, of the weights that it changes; those that several LoRAs change count more than once.
    pub(crate) fn changed_bytes(&self) -> u64 {
        let layers = self.loras.iter().flat_map(|(lora, _)| lora.shapes());
        layers.map(|shape| (shape.iter().product::<usize>() * size_of::<f32>()) as u64).sum()
    }

    /// What is added to `tensor` of `part`, which has `shape`: f32 on `device`, none when no LoRA changes it.
    ///
    /// # Errors
    /// `WrongShape` when `shape` is not what the LoRAs were read for, `Device`.
    pub(crate) fn delta(
        &self,
        part: Part,
        tensor: &str,
        shape: &[usize],
        device: &Device,
    ) -> Result<Option<Tensor>, LoraError> {
        let mut sum: Option<Tensor> = None;
        for (lora, weight) in &self.loras {
            let Some(layer) = lora.layer(part, tensor) else { continue };
            if layer.shape() != shape {
                return Err(LoraError::WrongShape {
                    path: lora.path().into(),
                    key: tensor.into(),
                    expected: shape.to_vec(),
                    found: layer.shape().to_vec(),
                });
            }
            let delta = layer.delta(*weight, device)?;
            sum = Some(match sum {
                Some(sum) => (sum + delta)?,
                None => delta,
            });
        }
        Ok(sum.map(|sum| sum.reshape(shape)).transpose()?)
    }
}

/// The names of the LoRAs in `directory`, in order; files that a request could not name are left out.
pub(crate) fn list(directory: &Path) -> Vec<LoraName> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<LoraName> = entries
        .filter(|entry| entry.path().is_file())
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".safetensors")?.parse().ok())
        .collect();
    names.sort();
    names
}

/// The file of the LoRA `name` in `directory`: `<name>.safetensors`.
///
/// # Errors
/// `Missing`, with the names of up to 10 that are there.
pub(crate) fn find(directory: &Path, name: &LoraName) -> Result<PathBuf, LoraError> {
    let path = directory.join(format!("{name}.safetensors"));
    if path.is_file() {
        return Ok(path);
    }
    let names = list(directory);
    let mut found: Vec<String> = names.iter().take(LISTED_MAX).map(LoraName::to_string).collect();
    if names.len() > LISTED_MAX {
        found.push(format!("and {} more", names.len() - LISTED_MAX));
    }
    let found = if found.is_empty() { "none".into() } else { found.join(", ") };
    Err(LoraError::Missing { name: name.clone(), directory: directory.into(), found })
}
