//! `unet/config.json`.

use std::path::Path;

use serde::Deserialize;

use super::{Document, LEVELS_MAX, epsilon, groups, yes};
use crate::engine::error::LoadError;

/// One value for every level of the UNet, or one for each.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum PerLevel {
    Same(usize),
    Each(Vec<usize>),
}

/// One level of the UNet, of its way down; the way up mirrors it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UnetLevel {
    /// Channels of its output.
    pub(crate) channels: usize,
    /// Attention heads. (diffusers calls it `attention_head_dim`, for historical reasons.)
    pub(crate) heads: usize,
    /// Transformer layers after each residual block; none for blocks without attention.
    pub(crate) transformer_layers: usize,
}

/// `unet/config.json`.
#[derive(Clone, Debug)]
pub(crate) struct UnetConfig {
    pub(crate) in_channels: usize,
    pub(crate) out_channels: usize,
    /// Side of the latents that it was trained on, in latent pixels.
    pub(crate) sample_size: usize,
    pub(crate) levels: Vec<UnetLevel>,
    /// Of the middle block, which has attention whatever the last level has.
    pub(crate) mid_transformer_layers: usize,
    pub(crate) layers_per_block: usize,
    pub(crate) cross_attention_dim: usize,
    pub(crate) norm_num_groups: usize,
    pub(crate) norm_eps: f64,
    pub(crate) flip_sin_to_cos: bool,
    pub(crate) freq_shift: f64,
    pub(crate) use_linear_projection: bool,
    pub(crate) upcast_attention: bool,
    /// Width of the guidance embedding of models that were distilled with guidance built in (LCM).
    pub(crate) time_cond_proj_dim: Option<usize>,
    /// What SDXL conditions on besides the prompt's tokens.
    pub(crate) addition: Option<Addition>,
}

/// `addition_embed_type` `text_time`: the pooled prompt and the embedded sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addition {
    /// `addition_time_embed_dim`: width of the embedding of each of the six sizes.
    pub(crate) size_width: usize,
    /// Width of the pooled embedding.
    pub(crate) pooled_width: usize,
}

/// Numbers that SDXL is told of a picture's sizes: original, crop and target, two each.
pub(crate) const TIME_IDS: usize = 6;

impl UnetConfig {
    pub(super) fn read(directory: &Path) -> Result<Self, LoadError> {
        #[derive(Deserialize)]
        struct Fields {
            in_channels: usize,
            out_channels: usize,
            sample_size: usize,
            block_out_channels: Vec<usize>,
            down_block_types: Vec<String>,
            up_block_types: Vec<String>,
            attention_head_dim: PerLevel,
            #[serde(default = "one_layer")]
            transformer_layers_per_block: PerLevel,
            layers_per_block: usize,
            cross_attention_dim: usize,
            #[serde(default = "groups")]
            norm_num_groups: usize,
            #[serde(default = "epsilon")]
            norm_eps: f64,
            #[serde(default = "yes")]
            flip_sin_to_cos: bool,
            #[serde(default)]
            freq_shift: f64,
            #[serde(default)]
            use_linear_projection: bool,
            #[serde(default)]
            upcast_attention: bool,
            time_cond_proj_dim: Option<usize>,
            addition_embed_type: Option<String>,
            addition_time_embed_dim: Option<usize>,
            projection_class_embeddings_input_dim: Option<usize>,
        }
        const READ: [&str; 20] = [
            "in_channels",
            "out_channels",
            "sample_size",
            "block_out_channels",
            "down_block_types",
            "up_block_types",
            "attention_head_dim",
            "transformer_layers_per_block",
            "layers_per_block",
            "cross_attention_dim",
            "norm_num_groups",
            "norm_eps",
            "flip_sin_to_cos",
            "freq_shift",
            "use_linear_projection",
            "upcast_attention",
            "time_cond_proj_dim",
            "addition_embed_type",
            "addition_time_embed_dim",
            "projection_class_embeddings_input_dim",
        ];
        const FIXED: [(&str, &[&str]); 12] = [
            ("act_fn", &["\"silu\"", "\"swish\""]),
            ("addition_embed_type_num_heads", &["*"]),
            ("attention_type", &["\"default\""]),
            ("conv_in_kernel", &["3"]),
            ("conv_out_kernel", &["3"]),
            ("downsample_padding", &["1"]),
            ("dropout", &["*"]),
            ("mid_block_scale_factor", &["1", "1.0"]),
            ("mid_block_type", &["\"UNetMidBlock2DCrossAttn\""]),
            ("resnet_out_scale_factor", &["1", "1.0"]),
            ("resnet_time_scale_shift", &["\"default\""]),
            ("time_embedding_type", &["\"positional\""]),
        ];
        let document = Document::read(directory.join("unet/config.json"))?;
        document.refuse_others(&READ, &FIXED)?;
        let fields: Fields = document.parse()?;
        let addition = match fields.addition_embed_type.as_deref() {
            None => None,
            Some("text_time") => {
                let size_width = fields.addition_time_embed_dim.unwrap_or(0);
                let all = fields.projection_class_embeddings_input_dim.unwrap_or(0);
                match all.checked_sub(TIME_IDS * size_width) {
                    Some(pooled_width) if pooled_width > 0 && size_width > 0 => {
                        Some(Addition { size_width, pooled_width })
                    }
                    _ => {
                        let reason = format!("leaves nothing for the prompt beside {TIME_IDS} sizes of {size_width}");
                        return Err(document.invalid("projection_class_embeddings_input_dim", reason));
                    }
                }
            }
            Some(other) => {
                return Err(document.unsupported("addition_embed_type", format!("\"{other}\""), "null, \"text_time\""));
            }
        };

        let count = fields.block_out_channels.len();
        let per_level = |field: &str, value: &PerLevel| match value {
            PerLevel::Same(value) => Ok(vec![*value; count]),
            PerLevel::Each(values) if values.len() == count => Ok(values.clone()),
            PerLevel::Each(values) => {
                Err(document.invalid(field, format!("has {} values for {count} levels", values.len())))
            }
        };
        let heads = per_level("attention_head_dim", &fields.attention_head_dim)?;
        let layers = per_level("transformer_layers_per_block", &fields.transformer_layers_per_block)?;
        if count == 0 || fields.down_block_types.len() != count || fields.up_block_types.len() != count {
            return Err(document.invalid("down_block_types", "is not as long as up_block_types and block_out_channels"));
        }
        if count > LEVELS_MAX {
            return Err(document.invalid("block_out_channels", format!("has more than {LEVELS_MAX} levels")));
        }
        if fields.norm_num_groups == 0 {
            return Err(document.invalid("norm_num_groups", "is 0"));
        }
        let mut levels = Vec::with_capacity(count);
        for index in 0..count {
            let (down, up) = (&fields.down_block_types[index], &fields.up_block_types[count - 1 - index]);
            let attends = match down.as_str() {
                "CrossAttnDownBlock2D" => true,
                "DownBlock2D" => false,
                _ => return Err(document.unsupported("down_block_types", down, "CrossAttnDownBlock2D, DownBlock2D")),
            };
            let mirrored = if attends { "CrossAttnUpBlock2D" } else { "UpBlock2D" };
            if up != mirrored {
                return Err(document.unsupported("up_block_types", up, format!("{mirrored} opposite {down}")));
            }
            let channels = fields.block_out_channels[index];
            if heads[index] == 0
                || !channels.is_multiple_of(heads[index])
                || !channels.is_multiple_of(fields.norm_num_groups)
            {
                let reason = format!("has {channels}, which the heads or norm_num_groups do not divide");
                return Err(document.invalid("block_out_channels", reason));
            }
            let transformer_layers = if attends { layers[index] } else { 0 };
            levels.push(UnetLevel { channels, heads: heads[index], transformer_layers });
        }
        Ok(Self {
            in_channels: fields.in_channels,
            out_channels: fields.out_channels,
            sample_size: fields.sample_size,
            levels,
            mid_transformer_layers: layers[count - 1],
            layers_per_block: fields.layers_per_block,
            cross_attention_dim: fields.cross_attention_dim,
            norm_num_groups: fields.norm_num_groups,
            norm_eps: fields.norm_eps,
            flip_sin_to_cos: fields.flip_sin_to_cos,
            freq_shift: fields.freq_shift,
            use_linear_projection: fields.use_linear_projection,
            upcast_attention: fields.upcast_attention,
            time_cond_proj_dim: fields.time_cond_proj_dim,
            addition,
        })
    }
}

fn one_layer() -> PerLevel {
    PerLevel::Same(1)
}
