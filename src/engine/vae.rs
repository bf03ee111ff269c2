//! `AutoencoderKL`: pixels to latents and back.
//!
//! Built from the same layers as the UNet, because candle-transformers' decoder takes as long as many denoising steps.
//! Pictures go through it one by one. Nothing here is random: what is drawn from the encoder's distribution is not
//! decided here.

use candle_core::{DType, Device, Result, Tensor};

use super::RgbImage;
use super::config::VaeConfig;
use super::error::LoadError;
use super::layers::{Activation, Attention, Convolution, GroupNorm, Linear, ResidualBlock, ResidualShape, Resize};
use super::weights::Weights;

const NORM_EPS: f64 = 1e-6;
/// What diffusers confines the logarithm of the encoder's variance to.
const LOG_VARIANCE_RANGE: (f64, f64) = (-30.0, 20.0);

/// Between the VAE's own latents and those of unit variance that the denoiser sees.
#[derive(Clone, Debug)]
pub(crate) struct LatentScale {
    factor: f64,
    shift: f64,
    /// Mean and standard deviation of each channel, `(1, c, 1, 1)` f32.
    moments: Option<(Tensor, Tensor)>,
}

impl LatentScale {
    pub(crate) fn new(config: &VaeConfig, device: &Device) -> Result<Self> {
        let channels = |values: &[f64]| {
            let values: Vec<f32> = values.iter().map(|value| *value as f32).collect();
            let count = values.len();
            Tensor::from_vec(values, (1, count, 1, 1), device)
        };
        let moments = match (&config.latents_mean, &config.latents_std) {
            (Some(mean), Some(std)) => Some((channels(mean)?, channels(std)?)),
            _ => None,
        };
        Ok(Self { factor: config.scaling_factor, shift: config.shift_factor.unwrap_or(0.0), moments })
    }

    /// The VAE's latents as the denoiser sees them: `(b, c, h, w)` f32.
    pub(crate) fn normalise(&self, latents: &Tensor) -> Result<Tensor> {
        match &self.moments {
            Some((mean, std)) => (latents.broadcast_sub(mean)? * self.factor)?.broadcast_div(std),
            None => (latents - self.shift)? * self.factor,
        }
    }

    /// The inverse of `normalise`.
    pub(crate) fn restore(&self, latents: &Tensor) -> Result<Tensor> {
        match &self.moments {
            Some((mean, std)) => (latents.broadcast_mul(std)? / self.factor)?.broadcast_add(mean),
            None => (latents / self.factor)? + self.shift,
        }
    }
}

/// Residual block, attention over all pixels, residual block.
#[derive(Debug)]
struct Middle {
    residuals: [ResidualBlock; 2],
    norm: GroupNorm,
    attention: Attention,
}

impl Middle {
    fn new(weights: &Weights, width: usize, shape: ResidualShape) -> std::result::Result<Self, LoadError> {
        let at = weights.at("attentions.0");
        // Files from before 2023 have other names.
        let names = if at.has("to_q.weight") {
            ["to_q", "to_k", "to_v", "to_out.0"]
        } else {
            ["query", "key", "value", "proj_attn"]
        };
        let linear = |name: &str| Linear::new(&at.at(name), width, width);
        Ok(Self {
            residuals: [
                ResidualBlock::new(&weights.at("resnets.0"), width, width, shape)?,
                ResidualBlock::new(&weights.at("resnets.1"), width, width, shape)?,
            ],
            norm: GroupNorm::new(&at.at("group_norm"), width, shape.groups, NORM_EPS, Activation::None)?,
            attention: Attention {
                query: linear(names[0])?,
                key: linear(names[1])?,
                value: linear(names[2])?,
                output: linear(names[3])?,
                heads: 1,
                upcast: true,
            },
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.residuals[0].forward(x, None)?;
        let tokens = self.norm.forward(&x, None)?.flatten_from(2)?; // (b, c, h * w)
        let x = (self.attention.forward(&tokens, &tokens, None)?.reshape(x.shape())? + x)?;
        self.residuals[1].forward(&x, None)
    }
}

/// Residual blocks at one resolution, then a change of it.
#[derive(Debug)]
struct Level {
    residuals: Vec<ResidualBlock>,
    resize: Option<Convolution>,
}

impl Level {
    fn new(
        weights: &Weights,
        inputs: usize,
        outputs: usize,
        layers: usize,
        resize: Option<(&str, Resize)>,
        shape: ResidualShape,
    ) -> std::result::Result<Self, LoadError> {
        let residual = |layer: usize| {
            let inputs = if layer == 0 { inputs } else { outputs };
            ResidualBlock::new(&weights.at(&format!("resnets.{layer}")), inputs, outputs, shape)
        };
        Ok(Self {
            residuals: (0..layers).map(residual).collect::<std::result::Result<_, _>>()?,
            resize: resize
                .map(|(name, resize)| Convolution::new(&weights.at(name), outputs, outputs, resize))
                .transpose()?,
        })
    }

    fn forward(&self, mut x: Tensor) -> Result<Tensor> {
        for residual in &self.residuals {
            x = residual.forward(&x, None)?;
        }
        match &self.resize {
            Some(resize) => resize.forward(&x),
            None => Ok(x),
        }
    }
}

/// Pixels to the distribution of latents.
#[derive(Debug)]
pub(crate) struct Encoder {
    input: Convolution,
    down: Vec<Level>,
    mid: Middle,
    norm: GroupNorm,
    output: Convolution,
    quantisation: Option<Linear>,
    dtype: DType,
}

impl Encoder {
    pub(crate) fn new(weights: &Weights, config: &VaeConfig, dtype: DType) -> std::result::Result<Self, LoadError> {
        let (moments, groups) = (2 * config.latent_channels, config.norm_num_groups);
        let shape = ResidualShape { groups, eps: NORM_EPS, time_width: None };
        let encoder = weights.at("encoder");
        let first = config.block_out_channels[0];
        let last = config.block_out_channels.len() - 1;
        let mut down = Vec::new();
        let mut inputs = first;
        for (index, channels) in config.block_out_channels.iter().enumerate() {
            let resize = (index < last).then_some(("downsamplers.0.conv", Resize::HalveLate));
            let at = encoder.at(&format!("down_blocks.{index}"));
            down.push(Level::new(&at, inputs, *channels, config.layers_per_block, resize, shape)?);
            inputs = *channels;
        }
        Ok(Self {
            input: Convolution::new(&encoder.at("conv_in"), config.out_channels, first, Resize::Same)?,
            down,
            mid: Middle::new(&encoder.at("mid_block"), inputs, shape)?,
            norm: GroupNorm::new(&encoder.at("conv_norm_out"), inputs, groups, NORM_EPS, Activation::Silu)?,
            output: Convolution::new(&encoder.at("conv_out"), inputs, moments, Resize::Same)?,
            quantisation: config
                .use_quant_conv
                .then(|| Linear::pointwise(&weights.at("quant_conv"), moments, moments))
                .transpose()?,
            dtype,
        })
    }

    /// Mean and standard deviation of the VAE's latents for `pixels (b, 3, h, w)` f32 in -1 to 1: each
    /// `(b, c, h / 8, w / 8)` f32.
    pub(crate) fn forward(&self, pixels: &Tensor) -> Result<(Tensor, Tensor)> {
        let mut x = self.input.forward(&pixels.to_dtype(self.dtype)?)?;
        for level in &self.down {
            x = level.forward(x)?;
        }
        let x = self.output.forward(&self.norm.forward(&self.mid.forward(&x)?, None)?)?;
        let x = match &self.quantisation {
            Some(layer) => layer.forward_image(&x)?,
            None => x,
        };
        let moments = x.to_dtype(DType::F32)?.chunk(2, 1)?;
        let (low, high) = LOG_VARIANCE_RANGE;
        Ok((moments[0].contiguous()?, (moments[1].clamp(low, high)? * 0.5)?.exp()?))
    }
}

/// Latents to pixels.
#[derive(Debug)]
pub(crate) struct Decoder {
    scale: LatentScale,
    post_quantisation: Option<Linear>,
    input: Convolution,
    mid: Middle,
    up: Vec<Level>,
    norm: GroupNorm,
    output: Convolution,
    dtype: DType,
}

impl Decoder {
    pub(crate) fn new(
        weights: &Weights,
        config: &VaeConfig,
        scale: LatentScale,
        dtype: DType,
    ) -> std::result::Result<Self, LoadError> {
        let (latent, groups) = (config.latent_channels, config.norm_num_groups);
        let last = config.block_out_channels.len() - 1;
        let widest = config.block_out_channels[last];
        let shape = ResidualShape { groups, eps: NORM_EPS, time_width: None };
        let decoder = weights.at("decoder");
        let mut up = Vec::new();
        let mut inputs = widest;
        for (index, channels) in config.block_out_channels.iter().rev().enumerate() {
            let resize = (index < last).then_some(("upsamplers.0.conv", Resize::Double));
            let at = decoder.at(&format!("up_blocks.{index}"));
            up.push(Level::new(&at, inputs, *channels, config.layers_per_block + 1, resize, shape)?);
            inputs = *channels;
        }
        Ok(Self {
            scale,
            post_quantisation: config
                .use_post_quant_conv
                .then(|| Linear::pointwise(&weights.at("post_quant_conv"), latent, latent))
                .transpose()?,
            input: Convolution::new(&decoder.at("conv_in"), latent, widest, Resize::Same)?,
            mid: Middle::new(&decoder.at("mid_block"), widest, shape)?,
            up,
            norm: GroupNorm::new(&decoder.at("conv_norm_out"), inputs, groups, NORM_EPS, Activation::Silu)?,
            output: Convolution::new(&decoder.at("conv_out"), inputs, config.out_channels, Resize::Same)?,
            dtype,
        })
    }

    /// `latents (b, c, h, w)` of unit variance to `(b, 3, 8 h, 8 w)` f32, in -1 to 1 and a little beyond.
    pub(crate) fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        let x = self.scale.restore(latents)?.to_dtype(self.dtype)?;
        let x = match &self.post_quantisation {
            Some(layer) => layer.forward_image(&x)?,
            None => x,
        };
        let mut x = self.mid.forward(&self.input.forward(&x)?)?;
        for level in &self.up {
            x = level.forward(x)?;
        }
        self.output.forward(&self.norm.forward(&x, None)?)?.to_dtype(DType::F32)
    }

    /// The picture of `latents (1, c, h, w)`; `None` where some of its values are no numbers.
    pub(crate) fn decode(&self, latents: &Tensor) -> Result<Option<RgbImage>> {
        let pixels = self.forward(latents)?.squeeze(0)?; // (3, h, w)
        let (_, height, width) = pixels.dims3()?;
        let values = pixels.permute((1, 2, 0))?.flatten_all()?.to_vec1::<f32>()?;
        if !values.iter().all(|value| value.is_finite()) {
            return Ok(None);
        }
        // As diffusers does it: to 0..1, cut off, to 0..255, rounded half to even.
        let byte = |value: f32| ((value / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
        let pixels = values.into_iter().map(byte).collect();
        Ok(Some(RgbImage { width: width as u32, height: height as u32, pixels }))
    }
}
