//! The decoder of `AutoencoderKL`: latents to pixels.
//!
//! Built from the same layers as the UNet, because candle-transformers' decoder takes as long as many denoising steps.
//! Pictures are decoded one by one. There is no encoder: nothing here starts from a picture.

use candle_core::{DType, Result, Tensor};

use super::RgbImage;
use super::config::VaeConfig;
use super::error::LoadError;
use super::layers::{Activation, Attention, Convolution, GroupNorm, Linear, ResidualBlock, ResidualShape, Resize};
use super::weights::Weights;

const NORM_EPS: f64 = 1e-6;

/// Latents to pixels.
#[derive(Debug)]
pub(crate) struct Decoder {
    post_quantisation: Option<Linear>,
    input: Convolution,
    mid: (ResidualBlock, GroupNorm, Attention, ResidualBlock),
    up: Vec<(Vec<ResidualBlock>, Option<Convolution>)>,
    norm: GroupNorm,
    output: Convolution,
    scaling_factor: f64,
    dtype: DType,
}

impl Decoder {
    pub(crate) fn new(weights: &Weights, config: &VaeConfig, dtype: DType) -> std::result::Result<Self, LoadError> {
        let (latent, groups) = (config.latent_channels, config.norm_num_groups);
        let last = config.block_out_channels.len() - 1;
        let widest = config.block_out_channels[last];
        let shape = ResidualShape { groups, eps: NORM_EPS, time_width: None };
        let decoder = weights.at("decoder");

        let middle = decoder.at("mid_block");
        let attention = middle.at("attentions.0");
        // Files from before 2023 have other names.
        let names = if attention.has("to_q.weight") {
            ["to_q", "to_k", "to_v", "to_out.0"]
        } else {
            ["query", "key", "value", "proj_attn"]
        };
        let linear = |name: &str| Linear::new(&attention.at(name), widest, widest);
        let mid = (
            ResidualBlock::new(&middle.at("resnets.0"), widest, widest, shape)?,
            GroupNorm::new(&attention.at("group_norm"), widest, groups, NORM_EPS, Activation::None)?,
            Attention {
                query: linear(names[0])?,
                key: linear(names[1])?,
                value: linear(names[2])?,
                output: linear(names[3])?,
                heads: 1,
                upcast: true,
            },
            ResidualBlock::new(&middle.at("resnets.1"), widest, widest, shape)?,
        );

        let mut up = Vec::new();
        let mut inputs = widest;
        for (index, channels) in config.block_out_channels.iter().rev().enumerate() {
            let weights = decoder.at(&format!("up_blocks.{index}"));
            let mut residuals = Vec::new();
            for layer in 0..=config.layers_per_block {
                let at = weights.at(&format!("resnets.{layer}"));
                residuals.push(ResidualBlock::new(&at, inputs, *channels, shape)?);
                inputs = *channels;
            }
            let resize = (index < last)
                .then(|| Convolution::new(&weights.at("upsamplers.0.conv"), inputs, inputs, Resize::Double))
                .transpose()?;
            up.push((residuals, resize));
        }
        Ok(Self {
            post_quantisation: config
                .use_post_quant_conv
                .then(|| Linear::pointwise(&weights.at("post_quant_conv"), latent, latent))
                .transpose()?,
            input: Convolution::new(&decoder.at("conv_in"), latent, widest, Resize::Same)?,
            mid,
            up,
            norm: GroupNorm::new(&decoder.at("conv_norm_out"), inputs, groups, NORM_EPS, Activation::Silu)?,
            output: Convolution::new(&decoder.at("conv_out"), inputs, config.out_channels, Resize::Same)?,
            scaling_factor: config.scaling_factor,
            dtype,
        })
    }

    /// `latents (b, c, h, w)` of unit variance to `(b, 3, 8 h, 8 w)` f32, in -1 to 1 and a little beyond.
    pub(crate) fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        let x = (latents / self.scaling_factor)?.to_dtype(self.dtype)?;
        let x = match &self.post_quantisation {
            Some(layer) => layer.forward_image(&x)?,
            None => x,
        };
        let x = self.mid.0.forward(&self.input.forward(&x)?, None)?;
        let tokens = self.mid.1.forward(&x, None)?.flatten_from(2)?; // (b, c, h * w)
        let x = (self.mid.2.forward(&tokens, &tokens, None)?.reshape(x.shape())? + x)?;
        let mut x = self.mid.3.forward(&x, None)?;
        for (residuals, resize) in &self.up {
            for residual in residuals {
                x = residual.forward(&x, None)?;
            }
            if let Some(resize) = resize {
                x = resize.forward(&x)?;
            }
        }
        self.output.forward(&self.norm.forward(&x, None)?)?.to_dtype(DType::F32)
    }

    /// The picture of `latents (1, c, h, w)`.
    pub(crate) fn decode(&self, latents: &Tensor) -> Result<RgbImage> {
        let pixels = self.forward(latents)?.squeeze(0)?; // (3, h, w)
        let (_, height, width) = pixels.dims3()?;
        let values = pixels.permute((1, 2, 0))?.flatten_all()?.to_vec1::<f32>()?;
        // As diffusers does it: to 0..1, cut off, to 0..255, rounded half to even.
        let byte = |value: f32| ((value / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
        let pixels = values.into_iter().map(byte).collect();
        Ok(RgbImage { width: width as u32, height: height as u32, pixels })
    }
}
