//! The `config.json` files of a Stable Diffusion 1.x/2.x directory, as far as they decide pixels.
//!
//! Reading is strict: a value that this engine does not implement is refused by name, because ignoring it would make
//! wrong pictures. A field that nobody here knows passes only when it is null or false. Weights are not looked at.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::error::LoadError;
use crate::job::SamplerKind;

/// The one pipeline of this family.
pub(crate) const PIPELINE_CLASS: &str = "StableDiffusionPipeline";

/// The directories of a pipeline that this engine reads, with the library and the classes that it implements.
pub(crate) const PARTS: [(&str, &str, &[&str]); 5] = [
    (
        "scheduler",
        "diffusers",
        &[
            "DDIMScheduler",
            "DPMSolverMultistepScheduler",
            "EulerAncestralDiscreteScheduler",
            "EulerDiscreteScheduler",
            "LCMScheduler",
            "PNDMScheduler",
        ],
    ),
    ("text_encoder", "transformers", &["CLIPTextModel"]),
    ("tokenizer", "transformers", &["CLIPTokenizer", "CLIPTokenizerFast"]),
    ("unet", "diffusers", &["UNet2DConditionModel"]),
    ("vae", "diffusers", &["AutoencoderKL"]),
];

/// A JSON object and where it came from.
#[derive(Debug)]
struct Document {
    file: PathBuf,
    fields: Map<String, Value>,
}

impl Document {
    fn read(file: PathBuf) -> Result<Self, LoadError> {
        let fields = read_json(&file)?;
        Ok(Self { file, fields })
    }

    fn parse<T: DeserializeOwned>(&self) -> Result<T, LoadError> {
        serde_json::from_value(Value::Object(self.fields.clone()))
            .map_err(|source| LoadError::Json { path: self.file.clone(), source })
    }

    /// Refuses every field that is neither in `read` nor null, false, or as `fixed` says (in JSON; `*` is anything).
    fn refuse_others(&self, read: &[&str], fixed: &[(&str, &[&str])]) -> Result<(), LoadError> {
        for (field, value) in &self.fields {
            let known = field.starts_with('_') || read.contains(&field.as_str());
            let off = matches!(value, Value::Null | Value::Bool(false));
            let allowed = fixed.iter().find(|(name, _)| name == field).map_or(&[][..], |(_, allowed)| allowed);
            let text = value.to_string();
            if !known && !off && !allowed.iter().any(|one| *one == "*" || *one == text) {
                let supported = if allowed.is_empty() { "null".into() } else { allowed.join(", ") };
                return Err(self.unsupported(field, text, supported));
            }
        }
        Ok(())
    }

    fn unsupported(&self, field: &str, value: impl ToString, supported: impl Into<String>) -> LoadError {
        LoadError::Unsupported {
            file: self.file.clone(),
            field: field.into(),
            value: value.to_string(),
            supported: supported.into(),
        }
    }

    fn invalid(&self, field: &str, reason: impl Into<String>) -> LoadError {
        LoadError::Invalid { file: self.file.clone(), field: field.into(), reason: reason.into() }
    }
}

/// The JSON in `path`.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, LoadError> {
    let bytes = std::fs::read(path).map_err(|source| LoadError::reading(path, source))?;
    serde_json::from_slice(&bytes).map_err(|source| LoadError::Json { path: path.into(), source })
}

/// Everything that the configuration files of a model say.
#[derive(Clone, Debug)]
pub(crate) struct PipelineConfig {
    pub(crate) unet: UnetConfig,
    pub(crate) vae: VaeConfig,
    pub(crate) text_encoder: TextEncoderConfig,
    pub(crate) scheduler: SchedulerConfig,
}

impl PipelineConfig {
    /// Reads `model_index.json` and the configuration of each part below `directory`.
    pub(crate) fn read(directory: &Path) -> Result<Self, LoadError> {
        if !directory.is_dir() {
            return Err(LoadError::Missing { path: directory.into() });
        }
        check_index(&Document::read(directory.join("model_index.json"))?)?;
        let config = Self {
            unet: UnetConfig::read(directory)?,
            vae: VaeConfig::read(directory)?,
            text_encoder: TextEncoderConfig::read(directory)?,
            scheduler: SchedulerConfig::read(directory)?,
        };
        let unet_file = || directory.join("unet/config.json");
        if config.unet.in_channels != config.vae.latent_channels || config.unet.out_channels != config.unet.in_channels
        {
            return Err(LoadError::Unsupported {
                file: unet_file(),
                field: "in_channels, out_channels".into(),
                value: format!("{}, {}", config.unet.in_channels, config.unet.out_channels),
                supported: format!("the VAE's latent_channels, {}", config.vae.latent_channels),
            });
        }
        if config.unet.cross_attention_dim != config.text_encoder.hidden_size {
            return Err(LoadError::Invalid {
                file: unet_file(),
                field: "cross_attention_dim".into(),
                reason: format!("is not the text encoder's hidden_size, {}", config.text_encoder.hidden_size),
            });
        }
        Ok(config)
    }
}

fn check_index(index: &Document) -> Result<(), LoadError> {
    let class = index.fields.get("_class_name").unwrap_or(&Value::Null);
    if class != PIPELINE_CLASS {
        return Err(index.unsupported("_class_name", class, PIPELINE_CLASS));
    }
    for (part, library, classes) in PARTS {
        let value = index.fields.get(part).unwrap_or(&Value::Null);
        let named =
            |class: &&str| value.get(0).is_some_and(|x| x == library) && value.get(1).is_some_and(|x| x == class);
        if !classes.iter().any(named) {
            return Err(index.unsupported(part, value, format!("{library}: {}", classes.join(", "))));
        }
    }
    Ok(())
}

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
}

impl UnetConfig {
    fn read(directory: &Path) -> Result<Self, LoadError> {
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
        }
        const READ: [&str; 16] = [
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
                || !channels.is_multiple_of(fields.norm_num_groups.max(1))
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
        })
    }
}

// What diffusers takes for fields that older files do not have.
fn one_layer() -> PerLevel {
    PerLevel::Same(1)
}
fn groups() -> usize {
    32
}
fn epsilon() -> f64 {
    1e-5
}
fn yes() -> bool {
    true
}

/// `vae/config.json`, of which only the decoder is used.
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
    #[serde(default = "yes")]
    pub(crate) use_post_quant_conv: bool,
    /// Whether decoding overflows in f16.
    #[serde(default)]
    pub(crate) force_upcast: bool,
}

fn stable_diffusion_1_scaling() -> f64 {
    0.18215
}

impl VaeConfig {
    fn read(directory: &Path) -> Result<Self, LoadError> {
        const READ: [&str; 8] = [
            "block_out_channels",
            "layers_per_block",
            "latent_channels",
            "out_channels",
            "norm_num_groups",
            "scaling_factor",
            "use_post_quant_conv",
            "force_upcast",
        ];
        const FIXED: [(&str, &[&str]); 5] = [
            ("act_fn", &["\"silu\""]),
            ("in_channels", &["*"]),
            ("mid_block_add_attention", &["true"]),
            ("sample_size", &["*"]),
            ("use_quant_conv", &["*"]),
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
        if config.block_out_channels.is_empty() {
            return Err(document.invalid("block_out_channels", "is empty"));
        }
        if config.block_out_channels.iter().any(|channels| !channels.is_multiple_of(config.norm_num_groups.max(1))) {
            return Err(document.invalid("norm_num_groups", "does not divide block_out_channels"));
        }
        Ok(config)
    }

    /// Pixels along a side for each latent pixel.
    pub(crate) fn pixels_per_latent(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
}

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
    fn read(directory: &Path) -> Result<Self, LoadError> {
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

/// What the model's output means.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Prediction {
    /// The noise.
    #[default]
    Epsilon,
    /// The velocity: `sqrt(alpha) * noise - sqrt(1 - alpha) * x0`.
    #[serde(rename = "v_prediction")]
    Velocity,
    /// The picture.
    Sample,
}

/// How noise grows over the training timesteps.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BetaSchedule {
    /// Betas are evenly spaced.
    Linear,
    /// Their square roots are.
    ScaledLinear,
    /// The cosine schedule.
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredCosine,
}

/// Which training timesteps are visited; table 2 of arXiv 2305.08891.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Spacing {
    /// Evenly, from the first to the last.
    Linspace,
    /// Evenly, from the first on.
    Leading,
    /// Evenly, to the last.
    Trailing,
}

/// `scheduler/scheduler_config.json`: what a sampler is made from.
///
/// A field that the file leaves out is `None` where diffusers' scheduler classes differ in what they take instead.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
pub(crate) struct SchedulerConfig {
    /// The class that the model comes with.
    #[serde(rename = "_class_name", default)]
    pub(crate) class: String,
    /// Timesteps of the training.
    pub(crate) num_train_timesteps: Option<usize>,
    /// The first beta.
    pub(crate) beta_start: Option<f64>,
    /// The last beta.
    pub(crate) beta_end: Option<f64>,
    /// How betas lie between them.
    pub(crate) beta_schedule: Option<BetaSchedule>,
    /// What the model's output means.
    #[serde(default)]
    pub(crate) prediction_type: Prediction,
    /// Which timesteps are visited.
    pub(crate) timestep_spacing: Option<Spacing>,
    /// Added to timesteps of the spacing `leading`.
    #[serde(default)]
    pub(crate) steps_offset: usize,
    /// Whether the picture is clamped at each step (DDIM and LCM).
    pub(crate) clip_sample: Option<bool>,
    /// To which absolute value.
    pub(crate) clip_sample_range: Option<f64>,
    /// Whether the last step ends without any noise (DDIM and LCM).
    pub(crate) set_alpha_to_one: Option<bool>,
    /// Whether betas are rescaled so that the last timestep is nothing but noise.
    #[serde(default)]
    pub(crate) rescale_betas_zero_snr: bool,
    /// Whether Euler and DPM++ take the spacing of Karras et al.
    #[serde(default)]
    pub(crate) use_karras_sigmas: Option<bool>,
    /// Steps of the schedule that an LCM was distilled with.
    pub(crate) original_inference_steps: Option<usize>,
    /// Of LCM's boundary conditions.
    pub(crate) timestep_scaling: Option<f64>,
}

impl SchedulerConfig {
    fn read(directory: &Path) -> Result<Self, LoadError> {
        const READ: [&str; 14] = [
            "num_train_timesteps",
            "beta_start",
            "beta_end",
            "beta_schedule",
            "prediction_type",
            "timestep_spacing",
            "steps_offset",
            "clip_sample",
            "clip_sample_range",
            "set_alpha_to_one",
            "rescale_betas_zero_snr",
            "use_karras_sigmas",
            "original_inference_steps",
            "timestep_scaling",
        ];
        const FIXED: [(&str, &[&str]); 13] = [
            ("algorithm_type", &["\"dpmsolver++\""]),
            ("dynamic_thresholding_ratio", &["*"]),
            ("final_sigmas_type", &["\"zero\""]),
            ("flow_shift", &["*"]),
            ("interpolation_type", &["\"linear\""]),
            ("lambda_min_clipped", &["*"]),
            ("lower_order_final", &["true"]),
            ("sample_max_value", &["*"]),
            ("skip_prk_steps", &["true"]),
            ("solver_order", &["2"]),
            ("solver_type", &["\"midpoint\""]),
            ("time_shift_type", &["*"]),
            ("timestep_type", &["\"discrete\""]),
        ];
        let document = Document::read(directory.join("scheduler/scheduler_config.json"))?;
        document.refuse_others(&READ, &FIXED)?;
        let config: Self = document.parse()?;
        if config.default_sampler().is_none() {
            return Err(document.unsupported("_class_name", &config.class, PARTS[0].2.join(", ")));
        }
        if config.num_train_timesteps == Some(0) {
            return Err(document.invalid("num_train_timesteps", "is 0"));
        }
        Ok(config)
    }

    /// The sampler that the model comes with.
    ///
    /// `PNDMScheduler` is answered with DDIM, which walks the same schedule: PNDM itself is not implemented.
    pub(crate) fn default_sampler(&self) -> Option<SamplerKind> {
        match self.class.as_str() {
            "DDIMScheduler" => Some(SamplerKind::Ddim),
            "PNDMScheduler" => {
                tracing::warn!("the model's PNDMScheduler is not implemented: its default is ddim");
                Some(SamplerKind::Ddim)
            }
            "EulerDiscreteScheduler" => Some(SamplerKind::Euler),
            "EulerAncestralDiscreteScheduler" => Some(SamplerKind::EulerAncestral),
            "DPMSolverMultistepScheduler" if self.use_karras_sigmas == Some(true) => {
                Some(SamplerKind::DpmPlusPlus2MKarras)
            }
            "DPMSolverMultistepScheduler" => Some(SamplerKind::DpmPlusPlus2M),
            "LCMScheduler" => Some(SamplerKind::Lcm),
            _ => None,
        }
    }
}
