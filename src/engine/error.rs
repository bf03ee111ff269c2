//! Why a model cannot be loaded: one enum for reading its configuration, its tokenizer and its weights.
//!
//! Nothing here is about jobs: what goes wrong while an image is made is a [`crate::job::Fault`].

use std::path::{Path, PathBuf};

use super::lora::LoraError;

/// A model directory that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file or directory that the model needs does not exist.
    #[error("`{}` does not exist", path.display())]
    Missing {
        /// What was looked for.
        path: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("`{}` cannot be read", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// A file is not JSON of the expected form.
    #[error("`{}` is not the JSON that is expected", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        source: serde_json::Error,
    },
    /// `darkroom.toml` is not of the expected form.
    #[error("`{}` is not the TOML that is expected", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        source: toml::de::Error,
    },
    /// The model asks for something that this engine does not do.
    #[error("`{}`: {field} is {value}; supported: {supported}", file.display())]
    Unsupported {
        /// The configuration file.
        file: PathBuf,
        /// The field in it.
        field: String,
        /// What stands there, as JSON.
        value: String,
        /// What could stand there.
        supported: String,
    },
    /// A configuration value contradicts the others.
    #[error("`{}`: {field} {reason}", file.display())]
    Invalid {
        /// The configuration file.
        file: PathBuf,
        /// The field in it.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The weights exist only as a pickle file, which can run code when it is read.
    #[error("`{}` is a pickle file, which can run code when read; convert it to safetensors", path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
    },
    /// A safetensors file is truncated or no safetensors file at all.
    #[error("`{}` is not a complete safetensors file", path.display())]
    Weights {
        /// The file.
        path: PathBuf,
        /// What candle says.
        source: candle_core::Error,
    },
    /// The architecture needs a tensor that the weights do not have.
    #[error("`{}` has no tensor `{tensor}`", path.display())]
    MissingTensor {
        /// The first file of the part's weights.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
    },
    /// A tensor is not of the size that the configuration asks for.
    #[error("`{}`: tensor `{tensor}` has shape {found:?}, its config.json asks for {expected:?}", path.display())]
    WrongShape {
        /// The first file of the part's weights.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What the configuration asks for.
        expected: Vec<usize>,
        /// What the file holds.
        found: Vec<usize>,
    },
    /// The tokenizer's files do not make a tokenizer.
    #[error("`{}` is not a tokenizer: {reason}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A LoRA cannot be used with this model.
    #[error(transparent)]
    Lora(#[from] LoraError),
    /// The device cannot be used, or candle failed on it.
    #[error("the device cannot be used")]
    Device(#[from] candle_core::Error),
}

/// Whether the device had no room. cudarc has no type for it that candle would pass on.
pub(super) fn is_out_of_memory(error: &candle_core::Error) -> bool {
    let message = error.to_string();
    ["out of memory", "OUT_OF_MEMORY", "ALLOC_FAILED"].iter().any(|sign| message.contains(sign))
}

impl LoadError {
    /// Why `path` could not be read.
    pub(crate) fn reading(path: &Path, source: std::io::Error) -> Self {
        if source.kind() == std::io::ErrorKind::NotFound {
            return Self::Missing { path: path.into() };
        }
        Self::Io { path: path.into(), source }
    }
}
