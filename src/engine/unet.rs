//! The UNet of Stable Diffusion 1.x/2.x, assembled from its own `config.json`, with a timestep for each row.
//!
//! candle-transformers' UNet takes one timestep for the whole batch; here rows are at different steps of different
//! images. What the output means, and what is done with it, is the sampler's business.

use candle_core::{DType, Device, Result, Tensor};

use super::config::UnetConfig;
use super::error::LoadError;
use super::layers::{
    Activation, Convolution, GroupNorm, Linear, ResidualBlock, ResidualShape, Resize, Transformer, TransformerShape,
    silu,
};
use super::weights::Weights;

/// The wavelengths of the timestep embedding go up to this, as in "Attention is all you need".
const PERIOD_MAX: f32 = 10_000.0;

/// Residual blocks, each with a transformer after it where the level has attention, then a change of size.
#[derive(Debug)]
struct Level {
    residuals: Vec<ResidualBlock>,
    /// As many as residual blocks, or none.
    transformers: Vec<Transformer>,
    resize: Option<Convolution>,
}

/// The noise prediction model.
#[derive(Debug)]
pub struct Unet {
    input: Convolution,
    time_1: Linear,
    time_2: Linear,
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
        let residual =
            ResidualShape { groups: config.norm_num_groups, eps: config.norm_eps, time_width: Some(time_width) };
        let transformer = TransformerShape {
            groups: config.norm_num_groups,
            context_width: config.cross_attention_dim,
            linear_projection: config.use_linear_projection,
            upcast: config.upcast_attention,
        };
        let last = config.levels.len() - 1;

        let mut down = Vec::new();
        let mut inputs = first;
        for (index, level) in config.levels.iter().enumerate() {
            let weights = weights.at(&format!("down_blocks.{index}"));
            let mut residuals = Vec::new();
            let mut transformers = Vec::new();
            for layer in 0..config.layers_per_block {
                let at = weights.at(&format!("resnets.{layer}"));
                residuals.push(ResidualBlock::new(&at, inputs, level.channels, residual)?);
                inputs = level.channels;
                if level.transformer_layers > 0 {
                    let at = weights.at(&format!("attentions.{layer}"));
                    transformers.push(Transformer::new(
                        &at,
                        level.channels,
                        level.heads,
                        level.transformer_layers,
                        transformer,
                    )?);
                }
            }
            let resize = (index < last)
                .then(|| Convolution::new(&weights.at("downsamplers.0.conv"), inputs, inputs, Resize::Halve))
                .transpose()?;
            down.push(Level { residuals, transformers, resize });
        }

        let weights_mid = weights.at("mid_block");
        let heads = config.levels[last].heads;
        let mid = (
            ResidualBlock::new(&weights_mid.at("resnets.0"), inputs, inputs, residual)?,
            Transformer::new(
                &weights_mid.at("attentions.0"),
                inputs,
                heads,
                config.mid_transformer_layers,
                transformer,
            )?,
            ResidualBlock::new(&weights_mid.at("resnets.1"), inputs, inputs, residual)?,
        );

        let mut up = Vec::new();
        for (index, level) in config.levels.iter().rev().enumerate() {
            let weights = weights.at(&format!("up_blocks.{index}"));
            // The last residual block meets what the way down had before it changed to this level's channels.
            let below = config.levels[(last - index).saturating_sub(1)].channels;
            let mut residuals = Vec::new();
            let mut transformers = Vec::new();
            for layer in 0..=config.layers_per_block {
                let skip = if layer == config.layers_per_block { below } else { level.channels };
                let at = weights.at(&format!("resnets.{layer}"));
                residuals.push(ResidualBlock::new(&at, inputs + skip, level.channels, residual)?);
                inputs = level.channels;
                if level.transformer_layers > 0 {
                    let at = weights.at(&format!("attentions.{layer}"));
                    transformers.push(Transformer::new(
                        &at,
                        level.channels,
                        level.heads,
                        level.transformer_layers,
                        transformer,
                    )?);
                }
            }
            let resize = (index < last)
                .then(|| Convolution::new(&weights.at("upsamplers.0.conv"), inputs, inputs, Resize::Double))
                .transpose()?;
            up.push(Level { residuals, transformers, resize });
        }

        let groups = config.norm_num_groups;
        Ok(Self {
            input: Convolution::new(&weights.at("conv_in"), config.in_channels, first, Resize::Same)?,
            time_1: Linear::new(&weights.at("time_embedding.linear_1"), first, time_width)?,
            time_2: Linear::new(&weights.at("time_embedding.linear_2"), time_width, time_width)?,
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

    /// The model's output for latents `x (b, c, h, w)`, each row at its own timestep, with the prompts' embeddings
    /// `context (b, d, t)`; both in the model's number format, and so is the result.
    pub fn forward(&self, x: &Tensor, timesteps: &[f32], context: &Tensor) -> Result<Tensor> {
        let time = self.embed(timesteps)?; // (b, c, 1)
        let time = self.time_2.forward(&silu(&self.time_1.forward(&time)?)?)?;
        // Every residual block wants it after a SiLU.
        let time = silu(&time)?;

        let mut x = self.input.forward(x)?;
        let mut skips = vec![x.clone()];
        for level in &self.down {
            for (index, residual) in level.residuals.iter().enumerate() {
                x = residual.forward(&x, Some(&time))?;
                if let Some(transformer) = level.transformers.get(index) {
                    x = transformer.forward(&x, context)?;
                }
                skips.push(x.clone());
            }
            if let Some(resize) = &level.resize {
                x = resize.forward(&x)?;
                skips.push(x.clone());
            }
        }
        x = self.mid.0.forward(&x, Some(&time))?;
        x = self.mid.1.forward(&x, context)?;
        x = self.mid.2.forward(&x, Some(&time))?;
        for level in &self.up {
            for (index, residual) in level.residuals.iter().enumerate() {
                if let Some(skip) = skips.pop() {
                    x = Tensor::cat(&[&x, &skip], 1)?;
                }
                x = residual.forward(&x, Some(&time))?;
                if let Some(transformer) = level.transformers.get(index) {
                    x = transformer.forward(&x, context)?;
                }
            }
            if let Some(resize) = &level.resize {
                x = resize.forward(&x)?;
            }
        }
        self.output.forward(&self.norm.forward(&x, None)?)
    }

    /// Sines and cosines of each timestep: `(b, c, 1)`.
    ///
    /// Always in f32: in f16 a timestep times a frequency would lose almost all of its fraction.
    fn embed(&self, timesteps: &[f32]) -> Result<Tensor> {
        let width = self.config.levels[0].channels;
        let half = width / 2;
        let mut values = Vec::with_capacity(timesteps.len() * width);
        for timestep in timesteps {
            let angles = (0..half).map(|index| {
                let exponent = -PERIOD_MAX.ln() * index as f32 / (half as f32 - self.config.freq_shift as f32);
                timestep * exponent.exp()
            });
            let (sines, cosines): (Vec<f32>, Vec<f32>) = angles.map(f32::sin_cos).unzip();
            let (head, tail) = if self.config.flip_sin_to_cos { (cosines, sines) } else { (sines, cosines) };
            values.extend(head);
            values.extend(tail);
            values.resize(values.len() + width % 2, 0.0);
        }
        Tensor::from_vec(values, (timesteps.len(), width, 1), &self.device)?.to_dtype(self.dtype)
    }
}
