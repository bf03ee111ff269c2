//! `config.json` of the transformers of Stable Diffusion 3 and FLUX.1, and of the T5 text encoder that both have.

use std::path::Path;

use serde::Deserialize;

use super::Document;
use crate::engine::error::LoadError;

/// `transformer/config.json` of Stable Diffusion 3 and 3.5, an `SD3Transformer2DModel`.
#[derive(Clone, Debug)]
pub(crate) struct Sd3Config {
    /// Side of the latents that it was trained on, in latent pixels.
    pub(crate) sample_size: usize,
    /// Latent pixels along a side of the patch that becomes a token.
    pub(crate) patch_size: usize,
    pub(crate) in_channels: usize,
    pub(crate) out_channels: usize,
    pub(crate) num_layers: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) attention_head_dim: usize,
    /// Channels of the prompt's tokens.
    pub(crate) joint_attention_dim: usize,
    /// Channels of the pooled prompt.
    pub(crate) pooled_projection_dim: usize,
    /// Patches along a side of the largest picture.
    pub(crate) pos_embed_max_size: usize,
    /// Which layers attend a second time, among the image's tokens alone.
    pub(crate) dual_attention_layers: Vec<usize>,
    /// Whether each head's queries and keys go through a root mean square normalisation.
    pub(crate) qk_norm: bool,
}

impl Sd3Config {
    pub(in crate::engine) fn read(directory: &Path) -> Result<Self, LoadError> {
        #[derive(Deserialize)]
        #[serde(default)]
        struct Fields {
            sample_size: usize,
            patch_size: usize,
            in_channels: usize,
            out_channels: Option<usize>,
            num_layers: usize,
            num_attention_heads: usize,
            attention_head_dim: usize,
            joint_attention_dim: usize,
            caption_projection_dim: usize,
            pooled_projection_dim: usize,
            pos_embed_max_size: usize,
            dual_attention_layers: Vec<usize>,
            qk_norm: Option<String>,
        }
        impl Default for Fields {
            /// What diffusers takes for fields that are not there.
            fn default() -> Self {
                Self {
                    sample_size: 128,
                    patch_size: 2,
                    in_channels: 16,
                    out_channels: Some(16),
                    num_layers: 18,
                    num_attention_heads: 18,
                    attention_head_dim: 64,
                    joint_attention_dim: 4096,
                    caption_projection_dim: 1152,
                    pooled_projection_dim: 2048,
                    pos_embed_max_size: 96,
                    dual_attention_layers: Vec::new(),
                    qk_norm: None,
                }
            }
        }
        const READ: [&str; 13] = [
            "sample_size",
            "patch_size",
            "in_channels",
            "out_channels",
            "num_layers",
            "num_attention_heads",
            "attention_head_dim",
            "joint_attention_dim",
            "caption_projection_dim",
            "pooled_projection_dim",
            "pos_embed_max_size",
            "dual_attention_layers",
            "qk_norm",
        ];
        let document = Document::read(directory.join("transformer/config.json"))?;
        document.refuse_others(&READ, &[])?;
        let fields: Fields = document.parse()?;
        let qk_norm = match fields.qk_norm.as_deref() {
            None => false,
            Some("rms_norm") => true,
            Some(other) => return Err(document.unsupported("qk_norm", other, "null, rms_norm")),
        };
        let width = fields.num_attention_heads * fields.attention_head_dim;
        for (field, value) in [
            ("patch_size", fields.patch_size),
            ("num_layers", fields.num_layers),
            ("num_attention_heads", fields.num_attention_heads),
            ("attention_head_dim", fields.attention_head_dim),
        ] {
            if value == 0 {
                return Err(document.invalid(field, "is 0"));
            }
        }
        if fields.caption_projection_dim != width {
            let reason = format!("is not num_attention_heads times attention_head_dim, {width}");
            return Err(document.invalid("caption_projection_dim", reason));
        }
        if fields.dual_attention_layers.iter().any(|layer| *layer >= fields.num_layers) {
            let reason = format!("names a layer that is not below num_layers, {}", fields.num_layers);
            return Err(document.invalid("dual_attention_layers", reason));
        }
        Ok(Self {
            sample_size: fields.sample_size,
            patch_size: fields.patch_size,
            in_channels: fields.in_channels,
            out_channels: fields.out_channels.unwrap_or(fields.in_channels),
            num_layers: fields.num_layers,
            num_attention_heads: fields.num_attention_heads,
            attention_head_dim: fields.attention_head_dim,
            joint_attention_dim: fields.joint_attention_dim,
            pooled_projection_dim: fields.pooled_projection_dim,
            pos_embed_max_size: fields.pos_embed_max_size,
            dual_attention_layers: fields.dual_attention_layers,
            qk_norm,
        })
    }
}

/// `transformer/config.json` of FLUX.1, a `FluxTransformer2DModel`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub(crate) struct FluxConfig {
    /// Of tokens: four times those of the latents.
    pub(crate) in_channels: usize,
    /// Like `in_channels`, which it is when there is none.
    pub(crate) out_channels: Option<usize>,
    /// Blocks with weights of their own for the prompt's tokens and the image's.
    pub(crate) num_layers: usize,
    /// The blocks after them, which make no difference between tokens.
    pub(crate) num_single_layers: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) attention_head_dim: usize,
    /// Channels of the prompt's tokens.
    pub(crate) joint_attention_dim: usize,
    /// Channels of the pooled prompt.
    pub(crate) pooled_projection_dim: usize,
    /// Whether the guidance scale is an input of the model (dev) or not (schnell).
    pub(crate) guidance_embeds: bool,
    /// How many channels of each head stand for the three coordinates of a token: always 0, row, column.
    pub(crate) axes_dims_rope: [usize; 3],
}

impl Default for FluxConfig {
    /// What diffusers takes for fields that are not there.
    fn default() -> Self {
        Self {
            in_channels: 64,
            out_channels: None,
            num_layers: 19,
            num_single_layers: 38,
            num_attention_heads: 24,
            attention_head_dim: 128,
            joint_attention_dim: 4096,
            pooled_projection_dim: 768,
            guidance_embeds: false,
            axes_dims_rope: [16, 56, 56],
        }
    }
}

impl FluxConfig {
    pub(in crate::engine) fn read(directory: &Path) -> Result<Self, LoadError> {
        const READ: [&str; 10] = [
            "in_channels",
            "out_channels",
            "num_layers",
            "num_single_layers",
            "num_attention_heads",
            "attention_head_dim",
            "joint_attention_dim",
            "pooled_projection_dim",
            "guidance_embeds",
            "axes_dims_rope",
        ];
        let document = Document::read(directory.join("transformer/config.json"))?;
        document.refuse_others(&READ, &[("patch_size", &["1"])])?;
        let config: Self = document.parse()?;
        for (field, channels) in [("in_channels", config.in_channels), ("out_channels", config.out_channels())] {
            if channels == 0 || !channels.is_multiple_of(4) {
                return Err(document.invalid(field, format!("is {channels}, not four times the latents' channels")));
            }
        }
        if config.num_attention_heads == 0 || config.attention_head_dim == 0 {
            return Err(document.invalid("num_attention_heads, attention_head_dim", "must not be 0"));
        }
        let axes = config.axes_dims_rope;
        if axes.iter().sum::<usize>() != config.attention_head_dim || axes.iter().any(|axis| !axis.is_multiple_of(2)) {
            let reason = format!("is not three even numbers whose sum is attention_head_dim, {axes:?}");
            return Err(document.invalid("axes_dims_rope", reason));
        }
        Ok(config)
    }

    /// Channels of the output's tokens.
    pub(crate) fn out_channels(&self) -> usize {
        self.out_channels.unwrap_or(self.in_channels)
    }
}

/// The feed-forward half of T5's layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum T5Activation {
    /// One product, then a rectifier, of the first T5.
    Relu,
    /// Two products, one of which gates the other after a GELU, of T5 1.1.
    GatedGelu,
}

/// `config.json` of a `T5EncoderModel`.
#[derive(Clone, Debug)]
pub(crate) struct T5Config {
    pub(crate) vocab_size: usize,
    pub(crate) d_model: usize,
    /// Channels of each head.
    pub(crate) d_kv: usize,
    pub(crate) d_ff: usize,
    pub(crate) num_layers: usize,
    pub(crate) num_heads: usize,
    /// Even: half of them are for tokens before, half for tokens after.
    pub(crate) relative_attention_num_buckets: usize,
    /// Tokens that are farther away share one bucket.
    pub(crate) relative_attention_max_distance: usize,
    pub(crate) layer_norm_epsilon: f64,
    pub(crate) activation: T5Activation,
}

impl T5Config {
    /// Reads `part/config.json`: `text_encoder_3` of Stable Diffusion 3, `text_encoder_2` of FLUX.1.
    pub(in crate::engine) fn read(directory: &Path, part: &str) -> Result<Self, LoadError> {
        #[derive(Deserialize)]
        struct Fields {
            vocab_size: usize,
            d_model: usize,
            d_kv: usize,
            d_ff: usize,
            num_layers: usize,
            num_heads: usize,
            #[serde(default = "buckets")]
            relative_attention_num_buckets: usize,
            #[serde(default = "max_distance")]
            relative_attention_max_distance: usize,
            #[serde(default = "epsilon")]
            layer_norm_epsilon: f64,
            #[serde(default = "relu")]
            feed_forward_proj: String,
            dense_act_fn: Option<String>,
        }
        const READ: [&str; 11] = [
            "vocab_size",
            "d_model",
            "d_kv",
            "d_ff",
            "num_layers",
            "num_heads",
            "relative_attention_num_buckets",
            "relative_attention_max_distance",
            "layer_norm_epsilon",
            "feed_forward_proj",
            "dense_act_fn",
        ];
        // What is about the decoder, about training or about files.
        const FIXED: [(&str, &[&str]); 22] = [
            ("architectures", &["*"]),
            ("bos_token_id", &["*"]),
            ("classifier_dropout", &["*"]),
            ("decoder_start_token_id", &["*"]),
            ("dropout_rate", &["*"]),
            ("dtype", &["*"]),
            ("eos_token_id", &["*"]),
            ("initializer_factor", &["*"]),
            ("is_encoder_decoder", &["*"]),
            ("is_gated_act", &["*"]),
            ("model_type", &["\"t5\""]),
            ("n_positions", &["*"]),
            ("num_decoder_layers", &["*"]),
            ("output_past", &["*"]),
            ("pad_token_id", &["*"]),
            ("scale_decoder_outputs", &["*"]),
            ("task_specific_params", &["*"]),
            ("tie_word_embeddings", &["*"]),
            ("tokenizer_class", &["*"]),
            ("torch_dtype", &["*"]),
            ("transformers_version", &["*"]),
            ("use_cache", &["*"]),
        ];
        let document = Document::read(directory.join(part).join("config.json"))?;
        document.refuse_others(&READ, &FIXED)?;
        let fields: Fields = document.parse()?;
        let (activation, function) = match fields.feed_forward_proj.as_str() {
            "relu" => (T5Activation::Relu, "relu"),
            "gated-gelu" => (T5Activation::GatedGelu, "gelu_new"),
            other => return Err(document.unsupported("feed_forward_proj", other, "relu, gated-gelu")),
        };
        if let Some(other) = fields.dense_act_fn.filter(|named| named != function) {
            let supported = format!("{function} where feed_forward_proj is {}", fields.feed_forward_proj);
            return Err(document.unsupported("dense_act_fn", other, supported));
        }
        let buckets = fields.relative_attention_num_buckets;
        if buckets < 4 || !buckets.is_multiple_of(2) {
            return Err(document.invalid("relative_attention_num_buckets", "is not an even number from 4"));
        }
        if fields.relative_attention_max_distance <= buckets / 4 {
            let reason = format!("is not above a quarter of the buckets, {}", buckets / 4);
            return Err(document.invalid("relative_attention_max_distance", reason));
        }
        Ok(Self {
            vocab_size: fields.vocab_size,
            d_model: fields.d_model,
            d_kv: fields.d_kv,
            d_ff: fields.d_ff,
            num_layers: fields.num_layers,
            num_heads: fields.num_heads,
            relative_attention_num_buckets: buckets,
            relative_attention_max_distance: fields.relative_attention_max_distance,
            layer_norm_epsilon: fields.layer_norm_epsilon,
            activation,
        })
    }
}

// What transformers takes for fields that are not there.
fn buckets() -> usize {
    32
}
fn max_distance() -> usize {
    128
}
fn epsilon() -> f64 {
    1e-6
}
fn relu() -> String {
    "relu".into()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn directory(part: &str, config: &Value) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join(part)).unwrap();
        std::fs::write(directory.path().join(part).join("config.json"), config.to_string()).unwrap();
        directory
    }

    #[test]
    fn fields_that_are_not_there_are_what_diffusers_takes_for_them() {
        let empty = directory("transformer", &json!({"_class_name": "SD3Transformer2DModel"}));
        let config = Sd3Config::read(empty.path()).unwrap();
        assert_eq!((config.sample_size, config.out_channels, config.pos_embed_max_size), (128, 16, 96));
        let config = FluxConfig::read(empty.path()).unwrap();
        assert_eq!((config.in_channels, config.out_channels(), config.axes_dims_rope), (64, 64, [16, 56, 56]));
    }

    #[test]
    fn the_published_configurations_are_read() {
        let medium = json!({
            "_class_name": "SD3Transformer2DModel", "_diffusers_version": "0.31.0", "attention_head_dim": 64,
            "caption_projection_dim": 1536, "dual_attention_layers": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
            "in_channels": 16, "joint_attention_dim": 4096, "num_attention_heads": 24, "num_layers": 24,
            "out_channels": 16, "patch_size": 2, "pooled_projection_dim": 2048, "pos_embed_max_size": 384,
            "qk_norm": "rms_norm", "sample_size": 128,
        });
        let config = Sd3Config::read(directory("transformer", &medium).path()).unwrap();
        assert!(config.qk_norm && config.dual_attention_layers.len() == 13);

        let dev = json!({
            "_class_name": "FluxTransformer2DModel", "_diffusers_version": "0.30.0.dev0", "_name_or_path": "x",
            "attention_head_dim": 128, "guidance_embeds": true, "in_channels": 64, "joint_attention_dim": 4096,
            "num_attention_heads": 24, "num_layers": 19, "num_single_layers": 38, "patch_size": 1,
            "pooled_projection_dim": 768,
        });
        assert!(FluxConfig::read(directory("transformer", &dev).path()).unwrap().guidance_embeds);

        let xxl = json!({
            "_name_or_path": "google/t5-v1_1-xxl", "architectures": ["T5EncoderModel"], "classifier_dropout": 0.0,
            "d_ff": 10240, "d_kv": 64, "d_model": 4096, "decoder_start_token_id": 0, "dense_act_fn": "gelu_new",
            "dropout_rate": 0.1, "eos_token_id": 1, "feed_forward_proj": "gated-gelu", "initializer_factor": 1.0,
            "is_encoder_decoder": true, "is_gated_act": true, "layer_norm_epsilon": 1e-06, "model_type": "t5",
            "num_decoder_layers": 24, "num_heads": 64, "num_layers": 24, "output_past": true, "pad_token_id": 0,
            "relative_attention_max_distance": 128, "relative_attention_num_buckets": 32,
            "tie_word_embeddings": false, "torch_dtype": "float16", "transformers_version": "4.41.2",
            "use_cache": true, "vocab_size": 32128,
        });
        let config = T5Config::read(directory("text_encoder_3", &xxl).path(), "text_encoder_3").unwrap();
        assert_eq!((config.activation, config.num_heads * config.d_kv), (T5Activation::GatedGelu, 4096));
    }
}
