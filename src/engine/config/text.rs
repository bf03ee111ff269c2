//! `config.json` of text encoders.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::{Document, epsilon};
use crate::engine::error::LoadError;

/// The non-linearity of the text encoder.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TextActivation {
    /// `x * sigmoid(1.702 x)`, of Stable Diffusion 1.
    QuickGelu,
    /// With the error function, of Stable Diffusion 2.
    Gelu,
}

/// `text_encoder/config.json`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct TextEncoderConfig {
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) max_position_embeddings: usize,
    pub(crate) hidden_act: TextActivation,
    #[serde(default = "epsilon")]
    pub(crate) layer_norm_eps: f64,
}

impl TextEncoderConfig {
    pub(super) fn read(directory: &Path) -> Result<Self, LoadError> {
        let document = Document::read(directory.join("text_encoder/config.json"))?;
        let activation = document.fields.get("hidden_act").unwrap_or(&Value::Null);
        if !["quick_gelu", "gelu"].iter().any(|known| activation == known) {
            return Err(document.unsupported("hidden_act", activation, "quick_gelu, gelu"));
        }
        let config: Self = document.parse()?;
        if config.num_attention_heads == 0 || !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            return Err(document.invalid("num_attention_heads", "does not divide hidden_size"));
        }
        Ok(config)
    }
}
