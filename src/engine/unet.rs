//! The UNet of Stable Diffusion 1.x, 2.x and XL, assembled from its own `config.json`, with a timestep for each row.
//!
//! candle-transformers' UNet takes one timestep for the whole batch and leaves out what SDXL is told besides the prompt.
//! What the output means, and what is done with it, is the sampler's business.

use candle_core::{DType, Device, Result, Tensor};

use super::config::{TIME_IDS, UnetConfig, UnetLevel};
use super::error::LoadError;
use super::layers::{
    Activation, Convolution, GroupNorm, Linear, ResidualBlock, ResidualShape, Resize, Transformer, TransformerShape,
    silu, sinusoid,
};
use super::weights::Weights;

/// What LCM multiplies guidance with before it is embedded.
const GUIDANCE_SCALE: f32 = 1000.0;

/// Residual blocks, each with a transformer after it where the level has attention, then a change of size.
#[derive(Debug)]
struct Level {
    residuals: Vec<ResidualBlock>,
    /// As many as residual blocks, or none.
    transformers: Vec<Transformer>,
    resize: Option<Convolution>,
}

impl Level {
    /// `inputs`: channels that each residual block gets.
    fn new(
        weights: &Weights,
        config: &UnetConfig,
        level: UnetLevel,
        inputs: &[usize],
        resize: Option<(&str, Resize)>,
    ) -> std::result::Result<Self, LoadError> {
        let mut residuals = Vec::new();
        let mut transformers = Vec::new();
        for (layer, inputs) in inputs.iter().enumerate() {
            let at = weights.at(&format!("resnets.{layer}"));
            residuals.push(ResidualBlock::new(&at, *inputs, level.channels, residual_shape(config))?);
            if level.transformer_layers > 0 {
                let at = weights.at(&format!("attentions.{layer}"));
                transformers.push(transformer(&at, config, level, level.transformer_layers)?);
            }
        }
        let resize = resize
            .map(|(name, resize)| Convolution::new(&weights.at(name), level.channels, level.channels, resize))
            .transpose()?;
        Ok(Self { residuals, transformers, resize })
    }

    /// One residual block, and the transformer after it.
    fn layer(&self, index: usize, x: &Tensor, time: &Tensor, context: &Tensor) -> Result<Tensor> {
        let x = self.residuals[index].forward(x, Some(time))?;
        match self.transformers.get(index) {
            Some(transformer) => transformer.forward(&x, context),
            None => Ok(x),
        }
    }
}

fn residual_shape(config: &UnetConfig) -> ResidualShape {
    let time_width = Some(4 * config.levels[0].channels);
    ResidualShape { groups: config.norm_num_groups, eps: config.norm_eps, time_width }
}

fn transformer(
    weights: &Weights,
    config: &UnetConfig,
    level: UnetLevel,
    layers: usize,
) -> std::result::Result<Transformer, LoadError> {
    let shape = TransformerShape {
        groups: config.norm_num_groups,
        context_width: config.cross_attention_dim,
        linear_projection: config.use_linear_projection,
        upcast: config.upcast_attention,
    };
    Transformer::new(weights, level.channels, level.heads, layers, shape)
}

/// Two linear layers with a SiLU between.
#[derive(Debug)]
struct Embedding(Linear, Linear);

impl Embedding {
    fn new(weights: &Weights, inputs: usize, outputs: usize) -> std::result::Result<Self, LoadError> {
        Ok(Self(
            Linear::new(&weights.at("linear_1"), inputs, outputs)?,
            Linear::new(&weights.at("linear_2"), outputs, outputs)?,
        ))
    }

    /// `(b, in, 1)` to `(b, out, 1)`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.1.forward(&silu(&self.0.forward(x)?)?)
    }
}

/// The noise prediction model.
#[derive(Debug)]
pub struct Unet {
    input: Convolution,
    time: Embedding,
    /// Of models with guidance built in: `time_embedding.cond_proj`.
    guidance: Option<Linear>,
    /// Of SDXL: `add_embedding`.
    addition: Option<Embedding>,
    down: Vec<Level>,
    mid: (ResidualBlock, Transformer, ResidualBlock),
    up: Vec<Level>,
    norm: GroupNorm,
    output: Convolution,
    config: UnetConfig,
    device: Device,
    dtype: DType,
}

impl Unet {
    pub(crate) fn new(
        weights: &Weights,
        config: &UnetConfig,
        device: &Device,
        dtype: DType,
    ) -> std::result::Result<Self, LoadError> {
        let first = config.levels[0].channels;
        let time_width = 4 * first;
        let last = config.levels.len() - 1;
        let layers = config.layers_per_block;

        let mut down = Vec::new();
        let mut inputs = first;
        for (index, level) in config.levels.iter().enumerate() {
            let at = weights.at(&format!("down_blocks.{index}"));
            let each: Vec<usize> = (0..layers).map(|layer| if layer == 0 { inputs } else { level.channels }).collect();
            let resize = (index < last).then_some(("downsamplers.0.conv", Resize::Halve));
            down.push(Level::new(&at, config, *level, &each, resize)?);
            inputs = level.channels;
        }

        let at = weights.at("mid_block");
        let residual = |name: &str| ResidualBlock::new(&at.at(name), inputs, inputs, residual_shape(config));
        let attention =
            transformer(&at.at("attentions.0"), config, config.levels[last], config.mid_transformer_layers)?;
        let mid = (residual("resnets.0")?, attention, residual("resnets.1")?);

        let mut up = Vec::new();
        for (index, level) in config.levels.iter().rev().enumerate() {
            let at = weights.at(&format!("up_blocks.{index}"));
            // The last residual block meets what the way down had before it changed to this level's channels.
            let below = config.levels[(last - index).saturating_sub(1)].channels;
            let each: Vec<usize> = (0..=layers)
                .map(|layer| {
                    let skip = if layer == layers { below } else { level.channels };
                    skip + if layer == 0 { inputs } else { level.channels }
                })
                .collect();
            let resize = (index < last).then_some(("upsamplers.0.conv", Resize::Double));
            up.push(Level::new(&at, config, *level, &each, resize)?);
            inputs = level.channels;
        }

        let groups = config.norm_num_groups;
        let guidance = |width: usize| Linear::unbiased(&weights.at("time_embedding.cond_proj"), width, first);
        let addition = config.addition.map(|addition| {
            let width = addition.pooled_width + TIME_IDS * addition.size_width;
            Embedding::new(&weights.at("add_embedding"), width, time_width)
        });
        Ok(Self {
            input: Convolution::new(&weights.at("conv_in"), config.in_channels, first, Resize::Same)?,
            time: Embedding::new(&weights.at("time_embedding"), first, time_width)?,
            guidance: config.time_cond_proj_dim.map(guidance).transpose()?,
            addition: addition.transpose()?,
            down,
            mid,
            up,
            norm: GroupNorm::new(&weights.at("conv_norm_out"), first, groups, config.norm_eps, Activation::Silu)?,
            output: Convolution::new(&weights.at("conv_out"), first, config.out_channels, Resize::Same)?,
            config: config.clone(),
            device: device.clone(),
            dtype,
        })
    }

    /// What the model is told besides timestep and prompt, `(b, v)`: worked out once for each image.
    ///
    /// `pooled (b, p)` and `time_ids` (original height and width, crop from the top and the left, target height and
    /// width, in pixels) are SDXL's; `guidance_scale` is of models with guidance built in. `None` for models that take
    /// none of these.
    pub(crate) fn vector(
        &self,
        pooled: &Tensor,
        time_ids: [f32; TIME_IDS],
        guidance_scale: f32,
    ) -> Result<Option<Tensor>> {
        let rows = pooled.dim(0)?;
        let mut parts = Vec::new();
        if let (Some(layer), Some(width)) = (&self.guidance, self.config.time_cond_proj_dim) {
            let values = vec![(guidance_scale - 1.0) * GUIDANCE_SCALE; rows];
            let embedded = sinusoid(&values, width, false, 1.0, &self.device)?.to_dtype(self.dtype)?;
            parts.push(layer.forward(&embedded.unsqueeze(2)?)?);
        }
        if let (Some(layer), Some(addition)) = (&self.addition, self.config.addition) {
            let sizes = self.embed(&time_ids.repeat(rows), addition.size_width)?.reshape((rows, ()))?;
            let all = Tensor::cat(&[pooled.to_dtype(self.dtype)?, sizes], 1)?;
            parts.push(layer.forward(&all.unsqueeze(2)?)?);
        }
        if parts.is_empty() { Ok(None) } else { Ok(Some(Tensor::cat(&parts, 1)?.squeeze(2)?)) }
    }

    /// The model's output for latents `x (b, c, h, w)`, each row at its own timestep, with the prompts' embeddings
    /// `context (b, d, t)` and what [`Unet::vector`] returned; all in the model's number format, and so is the result.
    pub fn forward(&self, x: &Tensor, timesteps: &[f32], context: &Tensor, vector: Option<&Tensor>) -> Result<Tensor> {
        // Work on another device of the same GPU would not be waited for.
        if !x.device().same_device(&self.device) || !context.device().same_device(&self.device) {
            candle_core::bail!("the model is on another device than its inputs");
        }
        let time = self.embed_timesteps(timesteps)?;
        self.forward_keeping(x, &time, context, vector, None).map(|(output, _)| output)
    }

    /// Sines and cosines of timesteps: `(n, c)`.
    pub(crate) fn embed_timesteps(&self, timesteps: &[f32]) -> Result<Tensor> {
        self.embed(timesteps, self.config.levels[0].channels)
    }

    /// The same for what [`Self::embed_timesteps`] made of the timesteps, with what the last residual block on the way up gets from below it, `(b, c, h, w)`. Where that is `kept` from
    /// another step, only that block is computed, with its transformer and what stands before and behind all blocks.
    ///
    /// Ma, Fang and Wang, "DeepCache: Accelerating Diffusion Models for Free" (2023), with the outermost of its branches.
    pub(crate) fn forward_keeping(
        &self,
        x: &Tensor,
        time: &Tensor,
        context: &Tensor,
        vector: Option<&Tensor>,
        kept: Option<&Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        let time = self.time(time, vector)?;
        let first = self.input.forward(x)?;
        let below = match kept {
            Some(kept) => kept.clone(),
            None => self.deep(&first, &time, context)?,
        };
        let mut x = Tensor::cat(&[&below, &first], 1)?;
        if let Some(level) = self.up.last() {
            x = level.layer(level.residuals.len() - 1, &x, &time, context)?;
            if let Some(resize) = &level.resize {
                x = resize.forward(&x)?;
            }
        }
        Ok((self.output.forward(&self.norm.forward(&x, None)?)?, below))
    }

    /// The embedding of timesteps, whose sines and cosines are `time (b, c)`, and of what else the model is told, after the SiLU that every residual block wants:
    /// `(b, d, 1)`.
    fn time(&self, time: &Tensor, vector: Option<&Tensor>) -> Result<Tensor> {
        let mut time = time.unsqueeze(2)?; // (b, c, 1)
        let vector = vector.map(|vector| vector.unsqueeze(2)).transpose()?;
        let mut used = 0;
        if let (Some(_), Some(vector)) = (&self.guidance, &vector) {
            used = time.dim(1)?;
            time = (time + vector.narrow(1, 0, used)?)?;
        }
        time = self.time.forward(&time)?;
        if let (Some(_), Some(vector)) = (&self.addition, &vector) {
            time = (&time + vector.narrow(1, used, time.dim(1)?)?)?;
        }
        silu(&time)
    }

    /// From the latents' features `x (b, c, h, w)` down and up again, to what the last residual block gets from below.
    fn deep(&self, x: &Tensor, time: &Tensor, context: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        // What came in first meets the last residual block.
        let mut skips = Vec::new();
        for level in &self.down {
            for index in 0..level.residuals.len() {
                x = level.layer(index, &x, time, context)?;
                skips.push(x.clone());
            }
            if let Some(resize) = &level.resize {
                x = resize.forward(&x)?;
                skips.push(x.clone());
            }
        }
        x = self.mid.0.forward(&x, Some(time))?;
        x = self.mid.1.forward(&x, context)?;
        x = self.mid.2.forward(&x, Some(time))?;
        for level in &self.up {
            for index in 0..level.residuals.len() {
                let Some(skip) = skips.pop() else { return Ok(x) };
                x = level.layer(index, &Tensor::cat(&[&x, &skip], 1)?, time, context)?;
            }
            if let Some(resize) = &level.resize {
                x = resize.forward(&x)?;
            }
        }
        Ok(x)
    }

    /// Sines and cosines of numbers: `(n, width)`.
    ///
    /// Always worked out in f32: in f16 a timestep times a frequency would lose almost all of its fraction.
    fn embed(&self, values: &[f32], width: usize) -> Result<Tensor> {
        let UnetConfig { flip_sin_to_cos, freq_shift, .. } = self.config;
        sinusoid(values, width, flip_sin_to_cos, freq_shift as f32, &self.device)?.to_dtype(self.dtype)
    }
}
