//! `config.json` of CLIP text encoders.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::{Document, epsilon};
use crate::engine::error::LoadError;

/// The non-linearity of the text encoder.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TextActivation {
    /// `x * sigmoid(1.702 x)`, of OpenAI's CLIP.
    QuickGelu,
    /// With the error function, of OpenCLIP.
    Gelu,
}

/// `text_encoder/config.json`, and `text_encoder_2` where that is a CLIP too.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ClipConfig {
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) max_position_embeddings: usize,
    pub(crate) hidden_act: TextActivation,
    #[serde(default = "epsilon")]
    pub(crate) layer_norm_eps: f64,
    /// The token whose first position gives the pooled embedding; 2 means the token with the highest id, as old files
    /// have it.
    #[serde(default = "clip_end")]
    pub(crate) eos_token_id: u32,
    /// Width of the pooled embedding of `CLIPTextModelWithProjection`.
    #[serde(default = "clip_projection")]
    pub(crate) projection_dim: usize,
}

// What transformers takes for fields that a file does not have.
fn clip_end() -> u32 {
    49407
}
fn clip_projection() -> usize {
    512
}

impl ClipConfig {
    /// Reads the configuration of the encoder in directory `part` of the pipeline.
    pub(super) fn read(directory: &Path, part: &str) -> Result<Self, LoadError> {
        let document = Document::read(directory.join(part).join("config.json"))?;
        let activation = document.fields.get("hidden_act").unwrap_or(&Value::Null);
        if !["quick_gelu", "gelu"].iter().any(|known| activation == known) {
            return Err(document.unsupported("hidden_act", activation, "quick_gelu, gelu"));
        }
        let config: Self = document.parse()?;
        if config.num_attention_heads == 0 || !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            return Err(document.invalid("num_attention_heads", "does not divide hidden_size"));
        }
        if config.num_hidden_layers < 2 {
            return Err(document.invalid("num_hidden_layers", "is below 2, so that there is no last layer but one"));
        }
        Ok(config)
    }
}
