//! The layers that the transformers of Stable Diffusion 3 and FLUX.1 share: what makes tokens of patches, what the
//! timestep does to them, and blocks in which the tokens of the image and of the prompt attend to each other.
//!
//! Tokens are columns, `(b, d, t)`, as everywhere in the engine; a head is a slice of the channels. The prompt's tokens
//! come before the image's. Nothing here knows of a whole model.

use candle_core::{DType, Device, Result, Tensor};

use super::error::LoadError;
use super::kernels::{self, Gelu};
use super::layers::{Linear, accumulate, attention, gelu, on_cpu, silu, sinusoid};
use super::weights::Weights;

/// Of all normalisations.
const EPS: f64 = 1e-6;
/// Sines and cosines that a timestep is told by.
const TIME_WIDTH: usize = 256;

/// What all blocks make of the image's tokens `before`, `(b, d, t)`, and what they changed in them. Where the change is
/// `kept` from another step, no block is computed.
///
/// Liu et al., "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model" (2024), who also say when, which is
/// not decided here.
pub(super) fn changed(
    before: &Tensor,
    kept: Option<&Tensor>,
    blocks: impl FnOnce() -> Result<Tensor>,
) -> Result<(Tensor, Tensor)> {
    match kept {
        Some(change) => Ok(((before + change)?, change.clone())),
        None => {
            let after = blocks()?;
            let change = (&after - before)?;
            Ok((after, change))
        }
    }
}

/// `(b, c, h, w)` to `(b, c * side², h / side * w / side)`: patches as columns, row by row.
pub(super) fn patches(x: &Tensor, side: usize) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    if !h.is_multiple_of(side) || !w.is_multiple_of(side) {
        candle_core::bail!("latents of {h} by {w} are not made of patches of {side} by {side}");
    }
    let split = x.reshape(&[b, c, h / side, side, w / side, side][..])?;
    split.permute(&[0, 1, 3, 5, 2, 4][..])?.reshape((b, c * side * side, (h / side) * (w / side)))
}

/// Root mean square normalisation over channels.
#[derive(Debug)]
pub(super) struct RmsNorm {
    /// `(d)`
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    pub(super) fn new(weights: &Weights, width: usize, eps: f64) -> std::result::Result<Self, LoadError> {
        Ok(Self { weight: weights.get(&[width], "weight")?, eps })
    }

    /// `(n, d, t)`
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if kernels::take(x) {
            return x.apply_op2_no_bwd(&self.weight, &kernels::RmsNorm { eps: self.eps as f32 });
        }
        let wide = x.to_dtype(DType::F32)?;
        let deviation = (wide.sqr()?.mean_keepdim(1)? + self.eps)?.sqrt()?;
        wide.broadcast_div(&deviation)?.to_dtype(x.dtype())?.broadcast_mul(&self.weight.unsqueeze(1)?)
    }
}

/// Layer normalisation of `x (b, d, t)` without weights, then `* (1 + scale) + shift`, each `(b, d)`.
fn modulated_norm(x: &Tensor, shift: &Tensor, scale: &Tensor) -> Result<Tensor> {
    let scale = (scale + 1.0)?;
    if kernels::take(x) {
        let affine = Tensor::stack(&[&scale, shift], 1)?;
        return x.apply_op2_no_bwd(&affine, &kernels::LayerNorm { eps: EPS as f32 });
    }
    let wide = x.to_dtype(DType::F32)?;
    let centred = wide.broadcast_sub(&wide.mean_keepdim(1)?)?;
    let deviation = (centred.sqr()?.mean_keepdim(1)? + EPS)?.sqrt()?;
    let normed = centred.broadcast_div(&deviation)?.to_dtype(x.dtype())?;
    normed.broadcast_mul(&scale.unsqueeze(2)?)?.broadcast_add(&shift.unsqueeze(2)?)
}

/// What an embedding makes of a normalised stream before a part of a block, and how much of that part's output counts.
///
/// Each is `(b, d)`.
#[derive(Debug)]
pub(super) struct Adaptation {
    shift: Tensor,
    scale: Tensor,
    gate: Tensor,
}

impl Adaptation {
    /// The part's input: `x (b, d, t)` normalised, scaled and shifted.
    pub(super) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        modulated_norm(x, &self.shift, &self.scale)
    }

    /// `x` plus the gated output `y` of the part. `y` must not be used otherwise: it may change.
    pub(super) fn add(&self, x: &Tensor, y: Tensor) -> Result<Tensor> {
        if kernels::take(&y) {
            y.inplace_op3(&self.gate, x, &kernels::GatedAccumulate)?;
            return Ok(y);
        }
        x + y.broadcast_mul(&self.gate.unsqueeze(2)?)?
    }
}

/// A projection of the embedding to `N` equal parts, each `(b, d)`.
fn projected<const N: usize>(linear: &Linear, embedding: &Tensor) -> Result<[Tensor; N]> {
    let y = linear.forward(embedding)?;
    let width = y.dim(1)? / N;
    let parts: Result<Vec<Tensor>> = (0..N).map(|part| y.narrow(1, part * width, width)?.flatten_from(1)).collect();
    parts?.try_into().map_err(|_| candle_core::Error::Msg("parts of a projection".into()))
}

/// The adaptations of a stream in one block.
#[derive(Debug)]
pub(super) struct Modulation {
    linear: Linear,
}

impl Modulation {
    /// For `parts` parts of a block.
    pub(super) fn new(weights: &Weights, width: usize, parts: usize) -> std::result::Result<Self, LoadError> {
        Ok(Self { linear: Linear::new(&weights.at("linear"), width, 3 * parts * width)? })
    }

    /// From `embedding (b, d, 1)`, what there is for the only part, as `AdaLayerNormZeroSingle`.
    pub(super) fn one(&self, embedding: &Tensor) -> Result<Adaptation> {
        let [shift, scale, gate] = projected(&self.linear, embedding)?;
        Ok(Adaptation { shift, scale, gate })
    }

    /// For attention and the feed-forward part, as `AdaLayerNormZero`.
    fn two(&self, embedding: &Tensor) -> Result<[Adaptation; 2]> {
        let [shift, scale, gate, shift_2, scale_2, gate_2] = projected(&self.linear, embedding)?;
        Ok([Adaptation { shift, scale, gate }, Adaptation { shift: shift_2, scale: scale_2, gate: gate_2 }])
    }

    /// For attention, the feed-forward part and the second attention, as `SD35AdaLayerNormZeroX`.
    fn three(&self, embedding: &Tensor) -> Result<[Adaptation; 3]> {
        let [shift, scale, gate, shift_2, scale_2, gate_2, shift_3, scale_3, gate_3] =
            projected(&self.linear, embedding)?;
        Ok([
            Adaptation { shift, scale, gate },
            Adaptation { shift: shift_2, scale: scale_2, gate: gate_2 },
            Adaptation { shift: shift_3, scale: scale_3, gate: gate_3 },
        ])
    }
}

/// A normalisation that the embedding scales and shifts, in this order, as `AdaLayerNormContinuous`.
#[derive(Debug)]
pub(super) struct ContinuousNorm {
    linear: Linear,
}

impl ContinuousNorm {
    pub(super) fn new(weights: &Weights, width: usize) -> std::result::Result<Self, LoadError> {
        Ok(Self { linear: Linear::new(&weights.at("linear"), width, 2 * width)? })
    }

    /// `x (b, d, t)`, `embedding (b, d, 1)`
    pub(super) fn forward(&self, x: &Tensor, embedding: &Tensor) -> Result<Tensor> {
        let [scale, shift] = projected(&self.linear, embedding)?;
        modulated_norm(x, &shift, &scale)
    }
}

/// Two products with SiLU between them.
#[derive(Debug)]
struct Embedder {
    first: Linear,
    second: Linear,
}

impl Embedder {
    fn new(weights: &Weights, inputs: usize, width: usize) -> std::result::Result<Self, LoadError> {
        Ok(Self {
            first: Linear::new(&weights.at("linear_1"), inputs, width)?,
            second: Linear::new(&weights.at("linear_2"), width, width)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.second.forward(&silu(&self.first.forward(x)?)?)
    }
}

/// Cosines and sines of each value: `(n, 256)`.
///
/// Always computed in f32: in f16 a timestep times a frequency would lose almost all of its fraction.
pub(super) fn sinusoids(values: &[f32], device: &Device, dtype: DType) -> Result<Tensor> {
    sinusoid(values, TIME_WIDTH, true, 0.0, device)?.to_dtype(dtype)
}

/// What modulates all blocks: the timestep, the pooled prompt and, in models that were distilled from guidance, its
/// scale.
#[derive(Debug)]
pub(super) struct Conditioning {
    time: Embedder,
    text: Embedder,
    guidance: Option<Embedder>,
}

impl Conditioning {
    pub(super) fn new(
        weights: &Weights,
        pooled_width: usize,
        width: usize,
        guided: bool,
    ) -> std::result::Result<Self, LoadError> {
        Ok(Self {
            time: Embedder::new(&weights.at("timestep_embedder"), TIME_WIDTH, width)?,
            text: Embedder::new(&weights.at("text_embedder"), pooled_width, width)?,
            guidance: guided.then(|| Embedder::new(&weights.at("guidance_embedder"), TIME_WIDTH, width)).transpose()?,
        })
    }

    /// What does not depend on the timestep: `pooled (b, p)` to `(b, d)`. Models that take no guidance scale ignore it.
    pub(super) fn vector(&self, pooled: &Tensor, guidance: Option<f32>) -> Result<Tensor> {
        let text = self.text.forward(&pooled.unsqueeze(2)?)?;
        let vector = match (&self.guidance, guidance) {
            (None, _) => text,
            (Some(embedder), Some(scale)) => {
                let scales = vec![scale * 1000.0; pooled.dim(0)?];
                let scales = sinusoids(&scales, pooled.device(), pooled.dtype())?.unsqueeze(2)?;
                accumulate(embedder.forward(&scales)?, &text)?
            }
            (Some(_), None) => candle_core::bail!("the model needs a guidance scale"),
        };
        vector.squeeze(2)
    }

    /// The embedding that every modulation takes, `(b, d, 1)`, for the [`sinusoids`] of each row's timestep, `(b, 256)`.
    pub(super) fn forward(&self, time: &Tensor, vector: &Tensor) -> Result<Tensor> {
        let time = self.time.forward(&time.unsqueeze(2)?)?;
        // Every modulation wants it after a SiLU.
        silu(&accumulate(time, &vector.unsqueeze(2)?)?)
    }
}

/// Turns pairs of neighbouring channels of `x (n, d, t)` by the angles whose cosines and sines are `turns (2, d / 2,
/// t)`, f32. `x` must not be used otherwise: it may change.
fn rotate(x: Tensor, turns: &Tensor) -> Result<Tensor> {
    if kernels::take(&x) {
        x.inplace_op2(turns, &kernels::Rotate)?;
        return Ok(x);
    }
    let (n, d, t) = x.dims3()?;
    let pairs = x.to_dtype(DType::F32)?.reshape((n, d / 2, 2, t))?;
    let (first, second) = (pairs.narrow(2, 0, 1)?.squeeze(2)?, pairs.narrow(2, 1, 1)?.squeeze(2)?);
    let (cosines, sines) = (turns.get(0)?, turns.get(1)?);
    let turned = [
        (first.broadcast_mul(&cosines)? - second.broadcast_mul(&sines)?)?,
        (second.broadcast_mul(&cosines)? + first.broadcast_mul(&sines)?)?,
    ];
    Tensor::stack(&turned, 2)?.reshape((n, d, t))?.to_dtype(x.dtype())
}

/// Query, key and value of some tokens: `(b * heads, d / heads, t)` each.
#[derive(Debug)]
pub(super) struct Heads {
    query: Tensor,
    key: Tensor,
    value: Tensor,
}

impl Heads {
    /// These tokens, then those of `other`.
    fn join(self, other: &Self) -> Result<Self> {
        Ok(Self {
            query: Tensor::cat(&[&self.query, &other.query], 2)?,
            key: Tensor::cat(&[&self.key, &other.key], 2)?,
            value: Tensor::cat(&[&self.value, &other.value], 2)?,
        })
    }

    /// Every token attends to every other: `(b, d, t)`. With `turns`, as [`rotate`] takes them, queries and keys know
    /// where they are.
    pub(super) fn attend(self, batch: usize, turns: Option<&Tensor>) -> Result<Tensor> {
        let (query, key) = match turns {
            Some(turns) => (rotate(self.query, turns)?, rotate(self.key, turns)?),
            None => (self.query, self.key),
        };
        let (_, width, tokens) = query.dims3()?;
        attention(&query, &key, &self.value, None, 1.0 / (width as f64).sqrt())?.reshape((batch, (), tokens))
    }
}

/// What the blocks of one model have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockShape {
    pub(super) heads: usize,
    pub(super) head_width: usize,
    /// Whether queries and keys go through a root mean square normalisation.
    pub(super) qk_norm: bool,
}

impl BlockShape {
    pub(super) fn width(self) -> usize {
        self.heads * self.head_width
    }
}

/// The products that make query, key and value.
#[derive(Debug)]
pub(super) struct Projections {
    query: Linear,
    key: Linear,
    value: Linear,
    /// Of queries and keys.
    norms: Option<(RmsNorm, RmsNorm)>,
    heads: usize,
}

impl Projections {
    /// Those of the image's tokens, or of all tokens.
    pub(super) fn new(weights: &Weights, shape: BlockShape) -> std::result::Result<Self, LoadError> {
        Self::named(weights, shape, ["to_q", "to_k", "to_v"], ["norm_q", "norm_k"])
    }

    /// Those of the prompt's tokens.
    fn added(weights: &Weights, shape: BlockShape) -> std::result::Result<Self, LoadError> {
        Self::named(weights, shape, ["add_q_proj", "add_k_proj", "add_v_proj"], ["norm_added_q", "norm_added_k"])
    }

    fn named(
        weights: &Weights,
        shape: BlockShape,
        [query, key, value]: [&str; 3],
        norms: [&str; 2],
    ) -> std::result::Result<Self, LoadError> {
        let linear = |name: &str| Linear::new(&weights.at(name), shape.width(), shape.width());
        let norm = |name: &str| RmsNorm::new(&weights.at(name), shape.head_width, EPS);
        Ok(Self {
            query: linear(query)?,
            key: linear(key)?,
            value: linear(value)?,
            norms: if shape.qk_norm { Some((norm(norms[0])?, norm(norms[1])?)) } else { None },
            heads: shape.heads,
        })
    }

    /// `(b, d, t)`
    pub(super) fn forward(&self, x: &Tensor) -> Result<Heads> {
        let (b, _, t) = x.dims3()?;
        let split = |linear: &Linear| linear.forward(x)?.reshape((b * self.heads, (), t));
        let (mut query, mut key, value) = (split(&self.query)?, split(&self.key)?, split(&self.value)?);
        if let Some((query_norm, key_norm)) = &self.norms {
            (query, key) = (query_norm.forward(&query)?, key_norm.forward(&key)?);
        }
        Ok(Heads { query, key, value })
    }
}

/// The feed-forward part of a block, four times as wide as its tokens.
#[derive(Debug)]
struct FeedForward {
    widen: Linear,
    narrow: Linear,
}

impl FeedForward {
    fn new(weights: &Weights, width: usize) -> std::result::Result<Self, LoadError> {
        Ok(Self {
            widen: Linear::new(&weights.at("net.0.proj"), width, 4 * width)?,
            narrow: Linear::new(&weights.at("net.2"), 4 * width, width)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.narrow.forward(&gelu(self.widen.forward(x)?, Gelu::Tanh)?)
    }
}

/// A stream's own weights in a block.
#[derive(Debug)]
struct Stream {
    modulation: Modulation,
    projections: Projections,
    output: Linear,
    feed_forward: FeedForward,
}

/// What a block does to the prompt's tokens.
#[derive(Debug)]
enum Context {
    /// The same as to the image's.
    Updated(Stream),
    /// They are attended to, for the last time.
    Read { norm: ContinuousNorm, projections: Projections },
}

/// What a block has besides what all blocks have.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct BlockKind {
    /// The image's tokens attend a second time, among themselves.
    pub(super) dual_attention: bool,
    /// The prompt's tokens are not needed afterwards.
    pub(super) last: bool,
}

/// A block with weights of their own for the image's tokens and the prompt's, which attend to each other: diffusers'
/// `JointTransformerBlock` and `FluxTransformerBlock`.
#[derive(Debug)]
pub(super) struct JointBlock {
    image: Stream,
    second_attention: Option<(Projections, Linear)>,
    context: Context,
}

impl JointBlock {
    pub(super) fn new(weights: &Weights, shape: BlockShape, kind: BlockKind) -> std::result::Result<Self, LoadError> {
        let width = shape.width();
        let (first, second) = (weights.at("attn"), weights.at("attn2"));
        let context = if kind.last {
            Context::Read {
                norm: ContinuousNorm::new(&weights.at("norm1_context"), width)?,
                projections: Projections::added(&first, shape)?,
            }
        } else {
            Context::Updated(Stream {
                modulation: Modulation::new(&weights.at("norm1_context"), width, 2)?,
                projections: Projections::added(&first, shape)?,
                output: Linear::new(&first.at("to_add_out"), width, width)?,
                feed_forward: FeedForward::new(&weights.at("ff_context"), width)?,
            })
        };
        let second_attention = if kind.dual_attention {
            Some((Projections::new(&second, shape)?, Linear::new(&second.at("to_out.0"), width, width)?))
        } else {
            None
        };
        Ok(Self {
            image: Stream {
                modulation: Modulation::new(&weights.at("norm1"), width, if kind.dual_attention { 3 } else { 2 })?,
                projections: Projections::new(&first, shape)?,
                output: Linear::new(&first.at("to_out.0"), width, width)?,
                feed_forward: FeedForward::new(&weights.at("ff"), width)?,
            },
            second_attention,
            context,
        })
    }

    /// `image (b, d, t)` and `context (b, d, s)` under `embedding (b, d, 1)`; `turns` are of the prompt's tokens and
    /// the image's, if there are any.
    pub(super) fn forward(
        &self,
        image: &Tensor,
        context: Tensor,
        embedding: &Tensor,
        turns: Option<&Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        let ((b, _, t), s) = (image.dims3()?, context.dim(2)?);
        let (first, feed_forward, second) = match &self.second_attention {
            None => {
                let [first, feed_forward] = self.image.modulation.two(embedding)?;
                (first, feed_forward, None)
            }
            Some((projections, output)) => {
                let [first, feed_forward, second] = self.image.modulation.three(embedding)?;
                let heads = projections.forward(&second.apply(image)?)?;
                let y = output.forward(&heads.attend(b, None)?)?;
                (first, feed_forward, Some((second, y)))
            }
        };
        let own = self.image.projections.forward(&first.apply(image)?)?;
        let attend = |heads: Heads| heads.join(&own)?.attend(b, turns);
        let (y, context) = match &self.context {
            Context::Read { norm, projections } => {
                (attend(projections.forward(&norm.forward(&context, embedding)?)?)?, context)
            }
            Context::Updated(stream) => {
                let [first, feed_forward] = stream.modulation.two(embedding)?;
                let y = attend(stream.projections.forward(&first.apply(&context)?)?)?;
                let context = first.add(&context, stream.output.forward(&columns(&y, 0, s)?)?)?;
                let z = stream.feed_forward.forward(&feed_forward.apply(&context)?)?;
                (y, feed_forward.add(&context, z)?)
            }
        };
        let mut image = first.add(image, self.image.output.forward(&columns(&y, s, t)?)?)?;
        if let Some((second, y)) = second {
            image = second.add(&image, y)?;
        }
        let y = self.image.feed_forward.forward(&feed_forward.apply(&image)?)?;
        Ok((feed_forward.add(&image, y)?, context))
    }
}

/// `length` tokens from `start` on, as a product takes them: on the CPU without a copy.
pub(super) fn columns(x: &Tensor, start: usize, length: usize) -> Result<Tensor> {
    let part = x.narrow(2, start, length)?;
    if on_cpu(&part) { Ok(part) } else { part.contiguous() }
}

#[cfg(test)]
#[path = "../../tests/golden/dit.rs"]
pub(super) mod golden;
