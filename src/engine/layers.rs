//! The layers that UNet, VAE and text encoder are made of.
//!
//! Activations stay channels-first everywhere, `(b, c, h, w)` or `(b, d, t)` with `t = h * w`: so a linear layer is a
//! 1×1 convolution is one product `weight (out, in) @ x (b, in, t)`, and nothing is ever transposed or copied between
//! convolutions and attention. Nothing here knows of a whole model.

use candle_core::{D, DType, Device, Result, Tensor};

use super::error::LoadError;
use super::kernels::{self, Gelu};
use super::weights::{Matrix, Weights};

/// Attention scores up to this size are computed at once; more of them query by query.
const SCORE_BYTES_MAX: usize = 64 << 20;

/// Whether `x` can go to the CPU's products and convolutions.
pub(super) fn on_cpu(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

/// `x` plus `other`, which has the same shape or one value per channel. `x` must not be used otherwise: it may change.
pub(super) fn accumulate(x: Tensor, other: &Tensor) -> Result<Tensor> {
    if kernels::take(&x) {
        x.inplace_op2(other, &kernels::Accumulate)?;
        return Ok(x);
    }
    if x.elem_count() == other.elem_count() {
        // Among them values per channel of the only token of a single row.
        return &x + other.reshape(x.shape())?;
    }
    let mut shape = vec![1; x.rank()];
    shape[1] = other.elem_count();
    x.broadcast_add(&other.reshape(shape)?)
}

/// SiLU of a small tensor.
pub(super) fn silu(x: &Tensor) -> Result<Tensor> {
    candle_nn::ops::silu(x)
}

/// A kind of GELU. `x` must not be used otherwise: it may change.
pub(super) fn gelu(x: Tensor, kind: Gelu) -> Result<Tensor> {
    if kernels::take(&x) {
        x.inplace_op1(&kind)?;
        return Ok(x);
    }
    match kind {
        Gelu::Erf => x.gelu_erf(),
        Gelu::Tanh => x.gelu(),
        Gelu::Quick => &x * candle_nn::ops::sigmoid(&(&x * f64::from(kernels::QUICK_SLOPE))?)?,
    }
}

/// The wavelengths of embedded numbers go up to this, as in "Attention is all you need".
const PERIOD_MAX: f32 = 10_000.0;

/// Sines and cosines of each of `values`, `(n, width)` f32: diffusers' `get_timestep_embedding`.
pub(super) fn sinusoid(
    values: &[f32],
    width: usize,
    cosines_first: bool,
    frequency_shift: f32,
    device: &Device,
) -> Result<Tensor> {
    let half = width / 2;
    let mut embedded = Vec::with_capacity(values.len() * width);
    for value in values {
        let angles = (0..half).map(|index| {
            let exponent = -PERIOD_MAX.ln() * index as f32 / (half as f32 - frequency_shift);
            value * exponent.exp()
        });
        let (sines, cosines): (Vec<f32>, Vec<f32>) = angles.map(f32::sin_cos).unzip();
        let (head, tail) = if cosines_first { (cosines, sines) } else { (sines, cosines) };
        embedded.extend(head);
        embedded.extend(tail);
        embedded.resize(embedded.len() + width % 2, 0.0);
    }
    Tensor::from_vec(embedded, (values.len(), width), device)
}

/// A product with a matrix, along the channels.
#[derive(Debug)]
pub(super) struct Linear {
    /// `(out, in)`
    weight: Matrix,
    /// `(out)`
    bias: Option<Tensor>,
    outputs: usize,
}

impl Linear {
    pub(super) fn new(weights: &Weights, inputs: usize, outputs: usize) -> std::result::Result<Self, LoadError> {
        let bias = Some(weights.get(&[outputs], "bias")?);
        Ok(Self { bias, ..Self::unbiased(weights, inputs, outputs)? })
    }

    pub(super) fn unbiased(weights: &Weights, inputs: usize, outputs: usize) -> std::result::Result<Self, LoadError> {
        Ok(Self { weight: weights.matrix(&[outputs, inputs], "weight")?, bias: None, outputs })
    }

    /// A 1×1 convolution is a linear layer whose weights are stored with two more dimensions.
    pub(super) fn pointwise(weights: &Weights, inputs: usize, outputs: usize) -> std::result::Result<Self, LoadError> {
        Self::patchwise(weights, inputs, 1, outputs)
    }

    /// So is a convolution of patches of `side` that do not overlap, for `inputs` channels.
    pub(super) fn patchwise(
        weights: &Weights,
        inputs: usize,
        side: usize,
        outputs: usize,
    ) -> std::result::Result<Self, LoadError> {
        let weight = weights.matrix(&[outputs, inputs, side, side], "weight")?;
        Ok(Self { weight, bias: Some(weights.get(&[outputs], "bias")?), outputs })
    }

    /// `(b, in, t)` to `(b, out, t)`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if on_cpu(x) {
            let x = x.contiguous()?;
            return self.weight.with_values(|weight| {
                let product = kernels::Product { weight, outputs: self.outputs };
                match &self.bias {
                    Some(bias) => x.apply_op2_no_bwd(bias, &product),
                    None => x.apply_op1_no_bwd(&product),
                }
            });
        }
        let weight = self.weight.tensor()?.reshape((1, self.outputs, ()))?;
        let y = weight.broadcast_as((x.dim(0)?, self.outputs, weight.dim(2)?))?.matmul(x)?;
        match &self.bias {
            Some(bias) => accumulate(y, bias),
            None => Ok(y),
        }
    }

    /// `(b, in, h, w)` to `(b, out, h, w)`.
    pub(super) fn forward_image(&self, x: &Tensor) -> Result<Tensor> {
        let (b, _, h, w) = x.dims4()?;
        self.forward(&x.flatten_from(2)?)?.reshape((b, (), h, w))
    }
}

/// What a 3×3 convolution does to the size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resize {
    Same,
    /// Every second pixel, from the first on.
    Halve,
    /// Every second pixel, from the second on: all padding is at the end, as in the VAE's encoder.
    HalveLate,
    /// Each pixel becomes four before the convolution.
    Double,
}

/// `x (b, c, h, w)` with `weight (out, c, 3, 3)`, by what the device has for it.
fn convolve(x: &Tensor, weight: &Tensor, padding: usize, stride: usize) -> Result<Tensor> {
    #[cfg(feature = "cudnn")]
    if let Some(y) = super::cudnn::convolve(x, weight, padding, stride)? {
        return Ok(y);
    }
    x.conv2d(weight, padding, stride, 1, 1)
}

/// A 3×3 convolution with padding of one pixel.
#[derive(Debug)]
pub(super) struct Convolution {
    /// `(out, in, 3, 3)`, or `(out, 3, 3, in)` if `channels_last`.
    weight: Matrix,
    /// `(out)`
    bias: Tensor,
    resize: Resize,
    #[cfg(feature = "cudnn")]
    channels_last: bool,
}

impl Convolution {
    pub(super) fn new(
        weights: &Weights,
        inputs: usize,
        outputs: usize,
        resize: Resize,
    ) -> std::result::Result<Self, LoadError> {
        let weight = weights.matrix(&[outputs, inputs, 3, 3], "weight")?;
        let bias = weights.get(&[outputs], "bias")?;
        #[cfg(feature = "cudnn")]
        if super::cudnn::wants_channels_last(bias.device(), bias.dtype(), inputs, outputs) {
            let weight = Matrix::Loaded(super::cudnn::channels_last(weight.tensor()?)?);
            return Ok(Self { weight, bias, resize, channels_last: true });
        }
        Ok(Self {
            weight,
            bias,
            resize,
            #[cfg(feature = "cudnn")]
            channels_last: false,
        })
    }

    /// `(b, in, h, w)` to `(b, out, h', w')`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (stride, repeat, padding) = match self.resize {
            Resize::Same => (1, 1, 1),
            Resize::Halve => (2, 1, 1),
            Resize::HalveLate => (2, 1, 0),
            Resize::Double => (1, 2, 1),
        };
        if on_cpu(x) {
            let x = x.contiguous()?;
            return self.weight.with_values(|weight| {
                x.apply_op2_no_bwd(&self.bias, &kernels::Convolution { weight, stride, repeat, padding })
            });
        }
        let (_, _, h, w) = x.dims4()?;
        let x = match self.resize {
            Resize::Same | Resize::Halve => x.clone(),
            Resize::HalveLate => x.pad_with_zeros(2, 0, 1)?.pad_with_zeros(3, 0, 1)?,
            Resize::Double => x.upsample_nearest2d(h * repeat, w * repeat)?,
        };
        let weight = self.weight.tensor()?.clone();
        #[cfg(feature = "cudnn")]
        let weight = if self.channels_last {
            if let Some(y) = super::cudnn::convolve_channels_last(&x, &weight, &self.bias, padding, stride)? {
                return Ok(y);
            }
            weight.permute((0, 3, 1, 2))?.contiguous()?
        } else {
            weight
        };
        accumulate(convolve(&x, &weight, padding, stride)?, &self.bias)
    }
}

/// What follows a normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Activation {
    None,
    Silu,
}

/// Group normalisation over channels and space.
#[derive(Debug)]
pub(super) struct GroupNorm {
    /// Weight and bias: `(2, c)`
    affine: Tensor,
    groups: usize,
    eps: f64,
    activation: Activation,
}

impl GroupNorm {
    pub(super) fn new(
        weights: &Weights,
        channels: usize,
        groups: usize,
        eps: f64,
        activation: Activation,
    ) -> std::result::Result<Self, LoadError> {
        let parts = [weights.get(&[channels], "weight")?, weights.get(&[channels], "bias")?];
        Ok(Self { affine: Tensor::stack(&parts, 0)?, groups, eps, activation })
    }

    /// `(b, c, h, w)`, after adding `shift (b, c)` if there is one.
    pub(super) fn forward(&self, x: &Tensor, shift: Option<&Tensor>) -> Result<Tensor> {
        if kernels::take(x) {
            let kernel = kernels::GroupNorm {
                groups: self.groups,
                eps: self.eps as f32,
                silu: self.activation == Activation::Silu,
            };
            return match shift {
                Some(shift) => x.apply_op3_no_bwd(&self.affine, shift, &kernel),
                None => x.apply_op2_no_bwd(&self.affine, &kernel),
            };
        }
        let x = match shift {
            Some(shift) => x.broadcast_add(&shift.unsqueeze(2)?.unsqueeze(3)?)?,
            None => x.clone(),
        };
        let channels = self.affine.dim(1)?;
        let (weight, bias) = (self.affine.get(0)?, self.affine.get(1)?);
        let norm = candle_nn::GroupNorm::new(weight, bias, channels, self.groups, self.eps)?;
        let x = candle_nn::Module::forward(&norm, &x)?;
        match self.activation {
            Activation::Silu => x.silu(),
            Activation::None => Ok(x),
        }
    }
}

/// Layer normalisation over the channels of each token.
#[derive(Debug)]
pub(super) struct LayerNorm {
    /// Weight and bias: `(2, d)`
    affine: Tensor,
    eps: f64,
}

impl LayerNorm {
    pub(super) fn new(weights: &Weights, width: usize, eps: f64) -> std::result::Result<Self, LoadError> {
        let parts = [weights.get(&[width], "weight")?, weights.get(&[width], "bias")?];
        Ok(Self { affine: Tensor::stack(&parts, 0)?, eps })
    }

    /// `(b, d, t)`
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if kernels::take(x) {
            return x.apply_op2_no_bwd(&self.affine, &kernels::LayerNorm { eps: self.eps as f32 });
        }
        let x = x.transpose(1, 2)?.contiguous()?;
        let y = candle_nn::ops::layer_norm(&x, &self.affine.get(0)?, &self.affine.get(1)?, self.eps as f32)?;
        y.transpose(1, 2)?.contiguous()
    }
}

/// Multi-head attention.
#[derive(Debug)]
pub(super) struct Attention {
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) output: Linear,
    pub(super) heads: usize,
    /// Whether scores are computed in f32 whatever the number format.
    pub(super) upcast: bool,
}

impl Attention {
    /// `x (b, d, t)` attends to `context (b, e, s)`; `mask (s, t)` is added to the scores.
    pub(super) fn forward(&self, x: &Tensor, context: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let (b, _, t) = x.dims3()?;
        let s = context.dim(2)?;
        // (b, d, t) is (b, heads, d / heads, t): heads are slices of the channels.
        let split = |x: Tensor, length: usize| x.reshape((b * self.heads, (), length));
        let (query, key) = (split(self.query.forward(x)?, t)?, split(self.key.forward(context)?, s)?);
        let value = split(self.value.forward(context)?, s)?;
        // Kernels sum in f32 anyway.
        let upcasts = self.upcast && !kernels::attend(&query, &value, mask);
        let upcast = |x: Tensor| if upcasts { x.to_dtype(DType::F32) } else { Ok(x) };
        let (query, key) = (upcast(query)?, upcast(key)?);

        let scale = 1.0 / (query.dim(1)? as f64).sqrt();
        let y = attention(&query, &key, &value, mask, scale)?;
        self.output.forward(&y.reshape((b, (), t))?)
    }
}

/// `query (n, d, t)` attends to `key (n, d, s)` and `value (n, d, s)`, `n` being heads of rows: `(n, d, t)`.
///
/// `mask`, `(s, t)` or `(n, s, t)`, is added to the scores before they are multiplied by `scale`. Where there is no
/// kernel for it, scores are computed for as many queries at once as memory should hold.
pub(super) fn attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    mask: Option<&Tensor>,
    scale: f64,
) -> Result<Tensor> {
    if kernels::attend(query, value, mask) {
        let (query, key, value) = (query.contiguous()?, key.contiguous()?, value.contiguous()?);
        return query.apply_op3_no_bwd(&key, &value, &kernels::Attention { mask, scale: scale as f32 });
    }
    let (n, _, t) = query.dims3()?;
    let chunk = (SCORE_BYTES_MAX / (n * key.dim(2)? * query.dtype().size_in_bytes())).clamp(1, t);
    let mut chunks = Vec::with_capacity(t.div_ceil(chunk));
    for start in (0..t).step_by(chunk) {
        let length = chunk.min(t - start);
        let query = if length == t { query.clone() } else { query.narrow(2, start, length)?.contiguous()? };
        let mask = mask.map(|mask| mask.narrow(D::Minus1, start, length)).transpose()?;
        chunks.push(attend(&query, key, value, mask.as_ref(), scale)?);
    }
    if chunks.len() == 1 { Ok(chunks.swap_remove(0)) } else { Tensor::cat(&chunks, 2) }
}

/// `query (n, d, t)`, `key (n, d, s)`, `value (n, d, s)` to `(n, d, t)`.
fn attend(query: &Tensor, key: &Tensor, value: &Tensor, mask: Option<&Tensor>, scale: f64) -> Result<Tensor> {
    // (n, t, d) @ (n, d, s)
    let mut scores = query.transpose(1, 2)?.matmul(key)?;
    if let Some(mask) = mask {
        scores = scores.broadcast_add(&mask.transpose(D::Minus2, D::Minus1)?)?;
    }
    let weights = candle_nn::ops::softmax_last_dim(&(scores * scale)?)?;
    // (n, d, s) @ (n, s, t)
    value.matmul(&weights.to_dtype(value.dtype())?.transpose(D::Minus1, D::Minus2)?)
}

/// A residual block of two convolutions, conditioned on the timestep in the UNet.
#[derive(Debug)]
pub(super) struct ResidualBlock {
    norm_1: GroupNorm,
    convolution_1: Convolution,
    time: Option<Linear>,
    norm_2: GroupNorm,
    convolution_2: Convolution,
    shortcut: Option<Linear>,
}

/// What residual blocks of one model have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct ResidualShape {
    pub(super) groups: usize,
    pub(super) eps: f64,
    /// Width of the time embedding; none in the VAE.
    pub(super) time_width: Option<usize>,
}

impl ResidualBlock {
    pub(super) fn new(
        weights: &Weights,
        inputs: usize,
        outputs: usize,
        shape: ResidualShape,
    ) -> std::result::Result<Self, LoadError> {
        let ResidualShape { groups, eps, time_width } = shape;
        Ok(Self {
            norm_1: GroupNorm::new(&weights.at("norm1"), inputs, groups, eps, Activation::Silu)?,
            convolution_1: Convolution::new(&weights.at("conv1"), inputs, outputs, Resize::Same)?,
            time: time_width.map(|width| Linear::new(&weights.at("time_emb_proj"), width, outputs)).transpose()?,
            norm_2: GroupNorm::new(&weights.at("norm2"), outputs, groups, eps, Activation::Silu)?,
            convolution_2: Convolution::new(&weights.at("conv2"), outputs, outputs, Resize::Same)?,
            shortcut: (inputs != outputs)
                .then(|| Linear::pointwise(&weights.at("conv_shortcut"), inputs, outputs))
                .transpose()?,
        })
    }

    /// `x (b, c, h, w)`; `time (b, d, 1)` is the time embedding after its SiLU.
    pub(super) fn forward(&self, x: &Tensor, time: Option<&Tensor>) -> Result<Tensor> {
        let shift = match (&self.time, time) {
            (Some(layer), Some(time)) => Some(layer.forward(time)?.squeeze(2)?),
            _ => None,
        };
        let y = self.convolution_1.forward(&self.norm_1.forward(x, None)?)?;
        let y = self.convolution_2.forward(&self.norm_2.forward(&y, shift.as_ref())?)?;
        match &self.shortcut {
            Some(shortcut) => accumulate(y, &shortcut.forward_image(x)?),
            None => accumulate(y, x),
        }
    }
}

/// The feed-forward half of a transformer layer, with its gated non-linearity.
#[derive(Debug)]
struct FeedForward {
    gated: Linear,
    output: Linear,
}

impl FeedForward {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.gated.forward(x)?;
        let y = if kernels::take(&y) {
            y.apply_op1_no_bwd(&kernels::GatedGelu)?
        } else {
            let halves = y.chunk(2, 1)?;
            (&halves[0] * halves[1].gelu_erf()?)?
        };
        self.output.forward(&y)
    }
}

#[derive(Debug)]
struct TransformerLayer {
    norm_self: LayerNorm,
    attention_self: Attention,
    norm_cross: LayerNorm,
    attention_cross: Attention,
    norm_feed_forward: LayerNorm,
    feed_forward: FeedForward,
}

/// What the transformers of one model have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct TransformerShape {
    pub(super) groups: usize,
    pub(super) context_width: usize,
    pub(super) linear_projection: bool,
    pub(super) upcast: bool,
}

/// Transformer layers between pixels of an image and the tokens of a prompt.
#[derive(Debug)]
pub(super) struct Transformer {
    norm: GroupNorm,
    input: Linear,
    layers: Vec<TransformerLayer>,
    output: Linear,
}

impl Transformer {
    pub(super) fn new(
        weights: &Weights,
        width: usize,
        heads: usize,
        layers: usize,
        shape: TransformerShape,
    ) -> std::result::Result<Self, LoadError> {
        let projection = if shape.linear_projection { Linear::new } else { Linear::pointwise };
        let attention = |weights: Weights, context: usize| -> std::result::Result<Attention, LoadError> {
            Ok(Attention {
                query: Linear::unbiased(&weights.at("to_q"), width, width)?,
                key: Linear::unbiased(&weights.at("to_k"), context, width)?,
                value: Linear::unbiased(&weights.at("to_v"), context, width)?,
                output: Linear::new(&weights.at("to_out.0"), width, width)?,
                heads,
                upcast: shape.upcast,
            })
        };
        let layer = |index: usize| -> std::result::Result<TransformerLayer, LoadError> {
            let weights = weights.at(&format!("transformer_blocks.{index}"));
            Ok(TransformerLayer {
                norm_self: LayerNorm::new(&weights.at("norm1"), width, 1e-5)?,
                attention_self: attention(weights.at("attn1"), width)?,
                norm_cross: LayerNorm::new(&weights.at("norm2"), width, 1e-5)?,
                attention_cross: attention(weights.at("attn2"), shape.context_width)?,
                norm_feed_forward: LayerNorm::new(&weights.at("norm3"), width, 1e-5)?,
                feed_forward: FeedForward {
                    gated: Linear::new(&weights.at("ff.net.0.proj"), width, 8 * width)?,
                    output: Linear::new(&weights.at("ff.net.2"), 4 * width, width)?,
                },
            })
        };
        Ok(Self {
            norm: GroupNorm::new(&weights.at("norm"), width, shape.groups, 1e-6, Activation::None)?,
            input: projection(&weights.at("proj_in"), width, width)?,
            layers: (0..layers).map(layer).collect::<std::result::Result<_, _>>()?,
            output: projection(&weights.at("proj_out"), width, width)?,
        })
    }

    /// `x (b, c, h, w)`, `context (b, d, t)`
    pub(super) fn forward(&self, x: &Tensor, context: &Tensor) -> Result<Tensor> {
        let y = self.norm.forward(x, None)?.flatten_from(2)?; // (b, c, h * w)
        let mut y = self.input.forward(&y)?;
        for layer in &self.layers {
            let normed = layer.norm_self.forward(&y)?;
            y = accumulate(layer.attention_self.forward(&normed, &normed, None)?, &y)?;
            y = accumulate(layer.attention_cross.forward(&layer.norm_cross.forward(&y)?, context, None)?, &y)?;
            y = accumulate(layer.feed_forward.forward(&layer.norm_feed_forward.forward(&y)?)?, &y)?;
        }
        accumulate(self.output.forward(&y)?.reshape(x.shape())?, x)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tiny;
    use super::*;

    #[test]
    fn attention_in_chunks_is_attention() {
        let (n, d, s, t) = (8, 2, 700, 1500);
        assert!(n * s * t * size_of::<f64>() > SCORE_BYTES_MAX);
        let [query, key, value] =
            [("query", t), ("key", s), ("value", s)].map(|(name, length)| tiny::tensor(name, &[n, d, length]));
        let mask = (tiny::tensor("mask", &[s, t]) * 20.0).unwrap();
        let mask_of_each = mask.broadcast_as((n, s, t)).unwrap().contiguous().unwrap();
        let wide = |tensor: &Tensor| tensor.to_dtype(DType::F64).unwrap();
        let [wide_query, wide_key, wide_value] = [&query, &key, &value].map(wide);
        let whole = attend(&wide_query, &wide_key, &wide_value, Some(&wide(&mask)), 0.5).unwrap();
        for mask in [&mask, &mask_of_each] {
            let chunked = attention(&wide_query, &wide_key, &wide_value, Some(&wide(mask)), 0.5).unwrap();
            let fused = attention(&query, &key, &value, Some(mask), 0.5).unwrap();
            for (found, close) in [(chunked, 1e-12), (fused, 1e-6)] {
                let difference = (wide(&found) - &whole).unwrap().abs().unwrap().max_all().unwrap();
                assert!(difference.to_scalar::<f64>().unwrap() < close);
            }
        }
    }
}
