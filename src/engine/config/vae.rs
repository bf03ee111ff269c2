//! `vae/config.json`: the variational autoencoder between pixels and latents.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::{Document, LEVELS_MAX, groups, yes};
use crate::engine::error::LoadError;

/// `vae/config.json`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct VaeConfig {
    pub(crate) block_out_channels: Vec<usize>,
    pub(crate) layers_per_block: usize,
    pub(crate) latent_channels: usize,
    pub(crate) out_channels: usize,
    #[serde(default = "groups")]
    pub(crate) norm_num_groups: usize,
    /// Latents of unit variance are the VAE's latents times this.
    #[serde(default = "stable_diffusion_1_scaling")]
    pub(crate) scaling_factor: f64,
    /// Added to latents after that scaling is undone.
    pub(crate) shift_factor: Option<f64>,
    /// Mean of each channel of the VAE's latents, with `latents_std` in place of `shift_factor`.
    pub(crate) latents_mean: Option<Vec<f64>>,
    /// Standard deviation of each channel.
    pub(crate) latents_std: Option<Vec<f64>>,
    #[serde(default = "yes")]
    pub(crate) use_post_quant_conv: bool,
    #[serde(default = "yes")]
    pub(crate) use_quant_conv: bool,
    /// Whether decoding overflows in f16, where it is said.
    pub(crate) force_upcast: Option<bool>,
}

fn stable_diffusion_1_scaling() -> f64 {
    0.18215
}

impl VaeConfig {
    pub(super) fn read(directory: &Path) -> Result<Self, LoadError> {
        const READ: [&str; 12] = [
            "block_out_channels",
            "layers_per_block",
            "latent_channels",
            "out_channels",
            "norm_num_groups",
            "scaling_factor",
            "shift_factor",
            "latents_mean",
            "latents_std",
            "use_quant_conv",
            "use_post_quant_conv",
            "force_upcast",
        ];
        const FIXED: [(&str, &[&str]); 4] = [
            ("act_fn", &["\"silu\""]),
            ("in_channels", &["3"]),
            ("mid_block_add_attention", &["true"]),
            ("sample_size", &["*"]),
        ];
        let document = Document::read(directory.join("vae/config.json"))?;
        let read: Vec<&str> = READ.into_iter().chain(["down_block_types", "up_block_types"]).collect();
        document.refuse_others(&read, &FIXED)?;
        for (field, class) in [("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")] {
            let value = document.fields.get(field).unwrap_or(&Value::Null);
            if !value.as_array().is_some_and(|classes| classes.iter().all(|one| one == class)) {
                return Err(document.unsupported(field, value, format!("a list of {class}")));
            }
        }
        if document.fields.get("mid_block_add_attention") == Some(&Value::Bool(false)) {
            return Err(document.unsupported("mid_block_add_attention", "false", "true"));
        }
        let config: Self = document.parse()?;
        if config.out_channels != 3 {
            return Err(document.unsupported("out_channels", config.out_channels, "3"));
        }
        for (field, list) in [("latents_mean", &config.latents_mean), ("latents_std", &config.latents_std)] {
            if list.as_ref().is_some_and(|list| list.len() != config.latent_channels) {
                return Err(document.invalid(field, format!("has not {} values", config.latent_channels)));
            }
        }
        if !(1..=LEVELS_MAX).contains(&config.block_out_channels.len()) {
            return Err(document.invalid("block_out_channels", format!("has not 1 to {LEVELS_MAX} levels")));
        }
        if config.norm_num_groups == 0 {
            return Err(document.invalid("norm_num_groups", "is 0"));
        }
        if config.block_out_channels.iter().any(|channels| !channels.is_multiple_of(config.norm_num_groups)) {
            return Err(document.invalid("norm_num_groups", "does not divide block_out_channels"));
        }
        Ok(config)
    }

    /// Pixels along a side for each latent pixel.
    pub(crate) fn pixels_per_latent(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
}
