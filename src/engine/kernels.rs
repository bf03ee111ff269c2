//! The inner loops, as candle operations: what candle does in many passes over memory, in one.
//!
//! All of them take contiguous tensors: on the CPU of f32, on an NVIDIA GPU, for which `cuda/kernels.cu` has their twins, of f32
//! or 16 bits. What is computed elsewhere, or in another number format, never comes here: each layer has a plain version for it.
//! Nothing here depends on the number of threads, on what else is in a batch, or on the processor's vectors, so neither
//! do pixels. The loops themselves know slices only, and choose the vectors when they run.

mod attention;
mod convolution;
#[cfg(feature = "cuda")]
mod cuda;
mod direct;
#[cfg(test)]
mod emulated;
mod function;
mod group_norm;
#[cfg(any(test, feature = "cuda"))]
mod launch;
mod matrix;
mod numbers;
mod pairs;
mod scratch;
mod tile;
#[cfg(any(test, feature = "cuda"))]
mod twins;
mod winograd;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, InplaceOp1, InplaceOp2, InplaceOp3, Layout, Result, Shape,
    Storage, Tensor, WithDType, bail,
};
use rayon::prelude::*;

pub(super) use numbers::Numbers;
#[cfg(feature = "cudnn")]
pub(super) use twins::compare;

/// Whether the operations take `x`, which is contiguous.
pub(super) fn take(x: &Tensor) -> bool {
    if x.device().is_cpu() {
        return x.dtype() == DType::F32;
    }
    on_gpu(x)
}

/// Whether `query (n, d, t)` can attend to keys and to a `value` by the operation.
pub(super) fn attend(query: &Tensor, value: &Tensor, mask: Option<&Tensor>) -> bool {
    if query.device().is_cpu() {
        return query.dtype() == DType::F32;
    }
    attend_on_gpu(query, value, mask)
}

#[cfg(feature = "cuda")]
fn on_gpu(x: &Tensor) -> bool {
    matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16) && x.device().as_cuda_device().is_ok_and(cuda::are_right)
}

#[cfg(feature = "cuda")]
fn attend_on_gpu(query: &Tensor, value: &Tensor, mask: Option<&Tensor>) -> bool {
    let is_narrow = matches!(query.dtype(), DType::F16 | DType::BF16) && query.dtype() == value.dtype();
    let fits = query.dims3().is_ok_and(|(heads, width, _)| launch::attends(heads, width));
    let is_right = || query.device().as_cuda_device().is_ok_and(cuda::attention_is_right);
    mask.is_none() && is_narrow && fits && is_right()
}

#[cfg(not(feature = "cuda"))]
fn on_gpu(_: &Tensor) -> bool {
    false
}

#[cfg(not(feature = "cuda"))]
fn attend_on_gpu(_: &Tensor, _: &Tensor, _: Option<&Tensor>) -> bool {
    false
}

use tile::dispatch;

/// Tokens whose statistics are made together, and values that one task adds.
const TOKENS: usize = 256;
const VALUES: usize = 1 << 15;
/// The slope with which a logistic function comes closest to the normal distribution's.
pub(super) const QUICK_SLOPE: f32 = 1.702;

/// The values of a contiguous tensor.
pub(super) fn values_of<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice()?[start..end]),
        None => bail!("the operation needs a contiguous tensor"),
    }
}

fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    values_of(storage, layout)
}

fn values_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (layout.contiguous_offsets(), storage) {
        (Some((start, end)), CpuStorage::F32(values)) => Ok(&mut values[start..end]),
        _ => bail!("the operation needs a contiguous f32 tensor"),
    }
}

/// `e^x` within 2 units in the last place, without branches. (The system's is scalar, and differs by system.)
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Adding it rounds to an integer, which then stands in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let power = rounded - ROUND;
    // ln 2 in two parts, so that the remainder is exact.
    let rest = x - power * 0.693_359_4 + power * 2.121_944_4e-4;
    let series = 1.987_569_2e-4;
    let series = series * rest + 1.398_199_9e-3;
    let series = series * rest + 8.333_452e-3;
    let series = series * rest + 4.166_579_6e-2;
    let series = series * rest + 1.666_666_5e-1;
    let series = series * rest + 5e-1;
    let value = series * rest * rest + rest + 1.0;
    f32::from_bits(value.to_bits().wrapping_add(rounded.to_bits() << 23))
}

/// `x` times the normal distribution's cumulative function, with the error function of Abramowitz and Stegun 7.1.26
/// (absolute error below 2e-7).
#[inline(always)]
fn gelu(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let series = ((((1.061_405_4 * t - 1.453_152) * t + 1.421_413_7) * t - 0.284_496_74) * t + 0.254_829_6) * t;
    let erf = 1.0 - series * exp(-z * z);
    0.5 * x * (1.0 + erf.copysign(x))
}

/// The approximation of `gelu` with a hyperbolic tangent: `tanh y = 1 - 2 / (e^2y + 1)`.
#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    // The square root of 8 / π.
    const SLOPE: f32 = 1.595_769;
    x / (1.0 + exp(-SLOPE * (x + 0.044_715 * x * x * x)))
}

/// The approximation of `gelu` with a logistic function.
#[inline(always)]
fn quick_gelu(x: f32) -> f32 {
    x / (1.0 + exp(-QUICK_SLOPE * x))
}

/// `weight (out, in) @ x (b, in, t)`, plus a bias `(out)` if there is one: `(b, out, t)`.
pub(super) struct Product<'a> {
    pub(super) weight: Numbers<'a>,
    pub(super) outputs: usize,
}

impl Product<'_> {
    fn run(&self, x: &CpuStorage, x_l: &Layout, bias: Option<&[f32]>) -> Result<(CpuStorage, Shape)> {
        let (batch, terms, columns) = x_l.shape().dims3()?;
        let Self { weight, outputs } = *self;
        if weight.len() != outputs * terms || bias.is_some_and(|bias| bias.len() != outputs) {
            bail!("{} weights and {:?} biases for {terms} to {outputs}", weight.len(), bias.map(<[f32]>::len));
        }
        let right = values(x, x_l)?;
        let output = matrix::Product { weight, outputs, terms, bias, batch, columns, right }.run();
        Ok((CpuStorage::F32(output), Shape::from((batch, outputs, columns))))
    }
}

impl CustomOp1 for Product<'_> {
    fn name(&self) -> &'static str {
        "product"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_l: &Layout) -> Result<(CpuStorage, Shape)> {
        self.run(x, x_l, None)
    }
}

impl CustomOp2 for Product<'_> {
    fn name(&self) -> &'static str {
        "product-biased"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_l: &Layout, bias: &CpuStorage, bias_l: &Layout) -> Result<(CpuStorage, Shape)> {
        self.run(x, x_l, Some(values(bias, bias_l)?))
    }
}

/// A 3×3 convolution of `(b, c, h, w)` with `weight (out, c, 3, 3)` and a bias `(out)`.
pub(super) struct Convolution<'a> {
    pub(super) weight: Numbers<'a>,
    /// Pixels from one output pixel to the next.
    pub(super) stride: usize,
    /// How often each input pixel is repeated in both directions before the convolution.
    pub(super) repeat: usize,
    /// Zeros before the first row and column: 1, or 0 where they all stand after the last.
    pub(super) padding: usize,
}

impl CustomOp2 for Convolution<'_> {
    fn name(&self) -> &'static str {
        "convolution"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_l: &Layout, bias: &CpuStorage, bias_l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, channels, height, width) = x_l.shape().dims4()?;
        let (input, bias) = (values(x, x_l)?, values(bias, bias_l)?);
        let Self { weight, stride, repeat, padding } = *self;
        if weight.len() != bias.len() * channels * 9 {
            bail!("{} weights for {channels} to {} channels", weight.len(), bias.len());
        }
        let convolution =
            convolution::Convolution { input, weight, bias, batch, channels, height, width, stride, repeat, padding };
        let [rows, columns] = convolution.output_size();
        Ok((CpuStorage::F32(convolution.run()), Shape::from((batch, bias.len(), rows, columns))))
    }
}

/// `query (n, d, t)` attends to `key (n, d, s)` and `value (n, d, s)`: `(n, d, t)`. Scores, to which `mask (s, t)` or
/// `(n, s, t)` is added if there is one, are multiplied by `scale`.
pub(super) struct Attention<'a> {
    pub(super) mask: Option<&'a Tensor>,
    pub(super) scale: f32,
}

impl CustomOp3 for Attention<'_> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        query: &CpuStorage,
        query_l: &Layout,
        key: &CpuStorage,
        key_l: &Layout,
        value: &CpuStorage,
        value_l: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (heads, width, queries) = query_l.shape().dims3()?;
        let keys = key_l.dims()[2];
        if key_l.dims() != [heads, width, keys] || value_l.dims() != key_l.dims() {
            bail!("queries {:?}, keys {:?}, values {:?}", query_l.dims(), key_l.dims(), value_l.dims());
        }
        let (query, key, value) = (values(query, query_l)?, values(key, key_l)?, values(value, value_l)?);
        let mask = self.mask.map(Tensor::storage_and_layout);
        let mask = match mask.as_ref().map(|(storage, layout)| (&**storage, *layout)) {
            None => None,
            Some((_, layout)) if layout.dims() != [keys, queries] && layout.dims() != [heads, keys, queries] => {
                bail!("a mask {:?} for {heads} heads, {keys} keys and {queries} queries", layout.dims())
            }
            Some((Storage::Cpu(storage), layout)) => Some(values(storage, layout)?),
            Some((Storage::Cuda(_) | Storage::Metal(_), _)) => bail!("the mask is not on the CPU"),
        };
        let scale = self.scale;
        let output = attention::Attention { query, key, value, mask, heads, width, queries, keys, scale }.run();
        Ok((CpuStorage::F32(output), query_l.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        query: &CudaStorage,
        query_l: &Layout,
        key: &CudaStorage,
        key_l: &Layout,
        value: &CudaStorage,
        value_l: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (heads, width, queries) = query_l.shape().dims3()?;
        let keys = key_l.dims()[2];
        if key_l.dims() != [heads, width, keys] || value_l.dims() != key_l.dims() || self.mask.is_some() {
            bail!("queries {:?}, keys {:?}, values {:?}", query_l.dims(), key_l.dims(), value_l.dims());
        }
        let plan = launch::attention([heads, width, queries], keys, self.scale)?;
        cuda::run(&plan, &[(query, query_l), (key, key_l), (value, value_l)], query_l.shape())
    }
}

/// Group normalisation of `(b, c, h, w)`, optionally of the input plus a value per channel, optionally with SiLU after.
pub(super) struct GroupNorm {
    pub(super) groups: usize,
    pub(super) eps: f32,
    pub(super) silu: bool,
}

impl GroupNorm {
    fn run(&self, input: &[f32], shape: &Shape, affine: &[f32], shift: Option<&[f32]>) -> Result<(CpuStorage, Shape)> {
        let Self { groups, eps, silu } = *self;
        let channels = shape.dims()[1];
        let plane = shape.dims()[2..].iter().product();
        let output = group_norm::GroupNorm { input, affine, shift, channels, plane, groups, eps, silu }.run();
        Ok((CpuStorage::F32(output), shape.clone()))
    }

    #[cfg(feature = "cuda")]
    fn plan(&self, shape: &Shape, is_shifted: bool) -> Result<launch::Plan> {
        let (batch, channels) = (shape.dims()[0], shape.dims()[1]);
        let plane = shape.dims()[2..].iter().product();
        launch::group_norm([batch, channels, plane], self.groups, self.eps, self.silu, is_shifted)
    }
}

impl CustomOp2 for GroupNorm {
    fn name(&self) -> &'static str {
        "group-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_l: &Layout,
        affine: &CpuStorage,
        affine_l: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.run(values(x, x_l)?, x_l.shape(), values(affine, affine_l)?, None)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_l: &Layout,
        affine: &CudaStorage,
        affine_l: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        cuda::run(&self.plan(x_l.shape(), false)?, &[(x, x_l), (affine, affine_l)], x_l.shape())
    }
}

impl CustomOp3 for GroupNorm {
    fn name(&self) -> &'static str {
        "group-norm-shifted"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_l: &Layout,
        affine: &CpuStorage,
        affine_l: &Layout,
        shift: &CpuStorage,
        shift_l: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.run(values(x, x_l)?, x_l.shape(), values(affine, affine_l)?, Some(values(shift, shift_l)?))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_l: &Layout,
        affine: &CudaStorage,
        affine_l: &Layout,
        shift: &CudaStorage,
        shift_l: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        cuda::run(&self.plan(x_l.shape(), true)?, &[(x, x_l), (affine, affine_l), (shift, shift_l)], x_l.shape())
    }
}

/// Layer normalisation of `(b, d, t)` over `d`; weight and bias are `(2, d)`, or `(b, 2, d)` for each row its own.
pub(super) struct LayerNorm {
    pub(super) eps: f32,
}

impl CustomOp2 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_l: &Layout,
        affine: &CpuStorage,
        affine_l: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, width, tokens) = x_l.shape().dims3()?;
        let (input, affine) = (values(x, x_l)?, values(affine, affine_l)?);
        let statistics = statistics(input, [width, tokens], self.eps, Centre::Mean);
        let mut output = vec![0.0; input.len()];
        let lines = output.par_chunks_mut(tokens).zip(input.par_chunks(tokens));
        lines.enumerate().with_min_len(16).for_each(|(index, (output, line))| {
            let (row, channel) = (index / width, index % width);
            let affine = &affine[row * 2 * width % affine.len()..][..2 * width];
            let (weight, bias) = (affine[channel], affine[width + channel]);
            dispatch(
                #[inline(always)]
                || {
                    let chunks = output.chunks_mut(TOKENS).zip(line.chunks(TOKENS));
                    for ((output, line), [mean, inverse]) in chunks.zip(&statistics[row * tokens.div_ceil(TOKENS)..]) {
                        for (((output, x), mean), inverse) in output.iter_mut().zip(line).zip(mean).zip(inverse) {
                            *output = (x - mean) * inverse * weight + bias;
                        }
                    }
                },
            );
        });
        Ok((CpuStorage::F32(output), x_l.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_l: &Layout,
        affine: &CudaStorage,
        affine_l: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let plan = launch::layer_norm(x_l.shape().dims3()?.into(), affine_l.shape().elem_count(), self.eps)?;
        cuda::run(&plan, &[(x, x_l), (affine, affine_l)], x_l.shape())
    }
}

/// Mean over the channels of each token of `(b, width, tokens)`, or zero where it is not wanted, and the inverse of the
/// root of the mean square of what is left, plus `eps`: for each row, [`TOKENS`] after [`TOKENS`].
fn statistics(input: &[f32], [width, tokens]: [usize; 2], eps: f32, centre: Centre) -> Vec<[[f32; TOKENS]; 2]> {
    let chunks = tokens.div_ceil(TOKENS);
    let batch = input.len() / (width * tokens);
    (0..batch * chunks)
        .into_par_iter()
        .map(|index| {
            dispatch(
                #[inline(always)]
                || {
                    let (row, first) = (index / chunks, index % chunks * TOKENS);
                    let count = TOKENS.min(tokens - first);
                    let lines = || {
                        input[row * width * tokens..][..width * tokens]
                            .chunks_exact(tokens)
                            .map(|line| &line[first..][..count])
                    };
                    let (mut mean, mut inverse) = ([0.0; TOKENS], [0.0; TOKENS]);
                    if centre == Centre::Mean {
                        for line in lines() {
                            for (mean, x) in mean.iter_mut().zip(line) {
                                *mean += x;
                            }
                        }
                        mean.iter_mut().for_each(|mean| *mean /= width as f32);
                    }
                    for line in lines() {
                        for ((square, x), mean) in inverse.iter_mut().zip(line).zip(&mean) {
                            *square += (x - mean) * (x - mean);
                        }
                    }
                    inverse.iter_mut().for_each(|square| *square = 1.0 / (*square / width as f32 + eps).sqrt());
                    [mean, inverse]
                },
            )
        })
        .collect()
}

/// What [`statistics`] measure from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Centre {
    Mean,
    Zero,
}

/// Adds to `(b, c, …)`, in place, a tensor of the same shape or one value per channel.
pub(super) struct Accumulate;

impl InplaceOp2 for Accumulate {
    fn name(&self) -> &'static str {
        "accumulate"
    }

    fn cpu_fwd(&self, target: &mut CpuStorage, target_l: &Layout, other: &CpuStorage, other_l: &Layout) -> Result<()> {
        let other = values(other, other_l)?;
        let target = values_mut(target, target_l)?;
        if other.len() == target.len() {
            target.par_chunks_mut(VALUES).zip(other.par_chunks(VALUES)).for_each(|(target, other)| {
                target.iter_mut().zip(other).for_each(|(target, other)| *target += other);
            });
            return Ok(());
        }
        let plane = target_l.dims()[2..].iter().product::<usize>();
        target.par_chunks_exact_mut(plane).enumerate().with_min_len(16).for_each(|(index, line)| {
            let value = other[index % other.len()];
            line.iter_mut().for_each(|target| *target += value);
        });
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        target: &mut CudaStorage,
        target_l: &Layout,
        other: &CudaStorage,
        other_l: &Layout,
    ) -> Result<()> {
        let lines = target_l.dims()[..2].iter().product();
        let plane = target_l.dims()[2..].iter().product();
        let plan = launch::accumulate(lines, plane, other_l.shape().elem_count())?;
        cuda::run_in_place(&plan, target, target_l, &[(other, other_l)])
    }
}

/// The gated linear unit of transformer layers: `(b, 2 d, t)` becomes `first half * gelu(second half)`.
pub(super) struct GatedGelu;

impl CustomOp1 for GatedGelu {
    fn name(&self) -> &'static str {
        "gated-gelu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, width, tokens) = layout.shape().dims3()?;
        let input = values(storage, layout)?;
        let half = width / 2 * tokens;
        let mut output = vec![0.0; batch * half];
        for (output, input) in output.chunks_exact_mut(half).zip(input.chunks_exact(2 * half)) {
            let (value, gate) = input.split_at(half);
            let parts = output.par_chunks_mut(VALUES).zip(value.par_chunks(VALUES)).zip(gate.par_chunks(VALUES));
            parts.for_each(|((output, value), gate)| {
                dispatch(
                    #[inline(always)]
                    || {
                        for ((output, value), gate) in output.iter_mut().zip(value).zip(gate) {
                            *output = value * gelu(*gate);
                        }
                    },
                );
            });
        }
        Ok((CpuStorage::F32(output), Shape::from((batch, width / 2, tokens))))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (batch, width, tokens) = layout.shape().dims3()?;
        let plan = launch::gated_gelu([batch, width, tokens])?;
        cuda::run(&plan, &[(storage, layout)], &Shape::from((batch, width / 2, tokens)))
    }
}

/// Root mean square normalisation of `(n, d, t)` over `d`, with weight `(d)`.
pub(super) struct RmsNorm {
    pub(super) eps: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_l: &Layout,
        weight: &CpuStorage,
        weight_l: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, width, tokens) = x_l.shape().dims3()?;
        let (input, weight) = (values(x, x_l)?, values(weight, weight_l)?);
        let statistics = statistics(input, [width, tokens], self.eps, Centre::Zero);
        let mut output = vec![0.0; input.len()];
        let lines = output.par_chunks_mut(tokens).zip(input.par_chunks(tokens));
        lines.enumerate().with_min_len(16).for_each(|(index, (output, line))| {
            let (row, weight) = (index / width, weight[index % width]);
            let chunks = output.chunks_mut(TOKENS).zip(line.chunks(TOKENS));
            for ((output, line), [_, inverse]) in chunks.zip(&statistics[row * tokens.div_ceil(TOKENS)..]) {
                for ((output, x), inverse) in output.iter_mut().zip(line).zip(inverse) {
                    *output = x * inverse * weight;
                }
            }
        });
        Ok((CpuStorage::F32(output), x_l.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_l: &Layout,
        weight: &CudaStorage,
        weight_l: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        cuda::run(
            &launch::rms_norm(x_l.shape().dims3()?.into(), self.eps)?,
            &[(x, x_l), (weight, weight_l)],
            x_l.shape(),
        )
    }
}

/// Turns, in place, each pair of neighbouring channels of `(n, d, t)` by an angle of its own, whose cosines and sines
/// are `(2, d / 2, t)`.
pub(super) struct Rotate;

impl InplaceOp2 for Rotate {
    fn name(&self) -> &'static str {
        "rotate"
    }

    fn cpu_fwd(&self, target: &mut CpuStorage, target_l: &Layout, turns: &CpuStorage, turns_l: &Layout) -> Result<()> {
        let (_, width, tokens) = target_l.shape().dims3()?;
        let turns = values(turns, turns_l)?;
        if turns.len() != width * tokens {
            bail!("{} cosines and sines for {width} channels of {tokens} tokens", turns.len());
        }
        let (cosines, sines) = turns.split_at(turns.len() / 2);
        values_mut(target, target_l)?.par_chunks_mut(width * tokens).for_each(|head| {
            let turns = cosines.chunks_exact(tokens).zip(sines.chunks_exact(tokens));
            for (pair, (cosines, sines)) in head.chunks_exact_mut(2 * tokens).zip(turns) {
                let (first, second) = pair.split_at_mut(tokens);
                for (((x, y), cosine), sine) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
                    (*x, *y) = (*x * cosine - *y * sine, *y * cosine + *x * sine);
                }
            }
        });
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        target: &mut CudaStorage,
        target_l: &Layout,
        turns: &CudaStorage,
        turns_l: &Layout,
    ) -> Result<()> {
        let sizes: [usize; 3] = target_l.shape().dims3()?.into();
        if turns_l.shape().elem_count() != sizes[1] * sizes[2] {
            bail!("cosines and sines {:?} for {sizes:?}", turns_l.dims());
        }
        cuda::run_in_place(&launch::rotate(sizes)?, target, target_l, &[(turns, turns_l)])
    }
}

/// Multiplies `(b, d, t)`, in place, by one value for each channel, `b * d` of them, and adds a tensor of the same
/// shape.
pub(super) struct GatedAccumulate;

impl InplaceOp3 for GatedAccumulate {
    fn name(&self) -> &'static str {
        "gated-accumulate"
    }

    fn cpu_fwd(
        &self,
        target: &mut CpuStorage,
        target_l: &Layout,
        gate: &CpuStorage,
        gate_l: &Layout,
        other: &CpuStorage,
        other_l: &Layout,
    ) -> Result<()> {
        let (batch, width, tokens) = target_l.shape().dims3()?;
        let (gate, other) = (values(gate, gate_l)?, values(other, other_l)?);
        let target = values_mut(target, target_l)?;
        if gate.len() != batch * width || other.len() != target.len() {
            bail!("{} gates and {} values for {batch}, {width}, {tokens}", gate.len(), other.len());
        }
        let lines = target.par_chunks_exact_mut(tokens).zip(other.par_chunks_exact(tokens)).zip(gate);
        lines.with_min_len(16).for_each(|((target, other), gate)| {
            target.iter_mut().zip(other).for_each(|(target, other)| *target = *target * gate + other);
        });
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        target: &mut CudaStorage,
        target_l: &Layout,
        gate: &CudaStorage,
        gate_l: &Layout,
        other: &CudaStorage,
        other_l: &Layout,
    ) -> Result<()> {
        let (batch, width, tokens) = target_l.shape().dims3()?;
        let (gates, values) = (gate_l.shape().elem_count(), other_l.shape().elem_count());
        if gates != batch * width || values != gates * tokens {
            bail!("{gates} gates and {values} values for {batch}, {width}, {tokens}");
        }
        let plan = launch::gated_accumulate(batch * width, tokens)?;
        cuda::run_in_place(&plan, target, target_l, &[(gate, gate_l), (other, other_l)])
    }
}

/// `x (b, r, c)` to `(b, c, r)`, plus a bias `(c)` if there is one: between the order of channels that everything else has and that
/// of convolutions on tensor cores. On the CPU, whose convolutions have no order of their own, it is there to be compared with.
#[cfg(any(test, feature = "cuda"))]
pub(super) struct Transpose;

#[cfg(any(test, feature = "cuda"))]
impl Transpose {
    fn run(x: &CpuStorage, x_l: &Layout, bias: Option<&[f32]>) -> Result<(CpuStorage, Shape)> {
        let (batch, rows, columns) = x_l.shape().dims3()?;
        if bias.is_some_and(|bias| bias.len() != columns) {
            bail!("{:?} biases for {columns} columns", bias.map(<[f32]>::len));
        }
        let mut output = Vec::with_capacity(batch * rows * columns);
        for matrix in values(x, x_l)?.chunks(rows * columns) {
            for column in 0..columns {
                let bias = bias.map_or(0.0, |bias| bias[column]);
                output.extend(matrix.iter().skip(column).step_by(columns).map(|value| value + bias));
            }
        }
        Ok((CpuStorage::F32(output), Shape::from((batch, columns, rows))))
    }

    #[cfg(feature = "cuda")]
    fn run_on_gpu(
        x: &CudaStorage,
        x_l: &Layout,
        bias: Option<(&CudaStorage, &Layout)>,
    ) -> Result<(CudaStorage, Shape)> {
        let (batch, rows, columns) = x_l.shape().dims3()?;
        if bias.is_some_and(|(_, layout)| layout.dims() != [columns]) {
            bail!("biases {:?} for {columns} columns", bias.map(|(_, layout)| layout.dims().to_vec()));
        }
        let plan = launch::transpose([batch, rows, columns], bias.is_some())?;
        let inputs: Vec<_> = std::iter::once((x, x_l)).chain(bias).collect();
        cuda::run(&plan, &inputs, &Shape::from((batch, columns, rows)))
    }
}

#[cfg(any(test, feature = "cuda"))]
impl CustomOp1 for Transpose {
    fn name(&self) -> &'static str {
        "transpose"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_l: &Layout) -> Result<(CpuStorage, Shape)> {
        Self::run(x, x_l, None)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, x_l: &Layout) -> Result<(CudaStorage, Shape)> {
        Self::run_on_gpu(x, x_l, None)
    }
}

#[cfg(any(test, feature = "cuda"))]
impl CustomOp2 for Transpose {
    fn name(&self) -> &'static str {
        "transpose-biased"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_l: &Layout, bias: &CpuStorage, bias_l: &Layout) -> Result<(CpuStorage, Shape)> {
        Self::run(x, x_l, Some(values(bias, bias_l)?))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_l: &Layout,
        bias: &CudaStorage,
        bias_l: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        Self::run_on_gpu(x, x_l, Some((bias, bias_l)))
    }
}

/// A Gaussian error linear unit of every value, in place.
#[derive(Clone, Copy, Debug)]
pub(super) enum Gelu {
    /// As it is defined, by the error function.
    Erf,
    /// Approximated with a hyperbolic tangent.
    Tanh,
    /// Approximated as `x / (1 + e^(-1.702 x))`.
    Quick,
}

impl InplaceOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        values_mut(storage, layout)?.par_chunks_mut(VALUES).for_each(|values| {
            dispatch(
                #[inline(always)]
                || match self {
                    Self::Erf => values.iter_mut().for_each(|x| *x = gelu(*x)),
                    Self::Tanh => values.iter_mut().for_each(|x| *x = gelu_tanh(*x)),
                    Self::Quick => values.iter_mut().for_each(|x| *x = quick_gelu(*x)),
                },
            );
        });
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        cuda::run_in_place(&launch::gelu(layout.shape().elem_count(), *self)?, storage, layout, &[])
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::super::tiny;
    use super::*;

    type Operation<'a> = dyn Fn(&Tensor) -> Result<Tensor> + Sync + 'a;

    fn bits(tensor: &Tensor) -> Vec<u32> {
        let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        values.into_iter().map(f32::to_bits).collect()
    }

    #[test]
    fn results_have_the_same_bytes_in_any_batch_with_any_vectors_and_on_any_number_of_threads() {
        let values = |name: &str, shape: &[usize]| -> Vec<f32> {
            tiny::tensor(name, shape).flatten_all().unwrap().to_vec1().unwrap()
        };
        let (weight, tall) = (values("weight", &[22, 17, 3, 3]), values("tall", &[22, 17]));
        let wide = values("wide", &[34, 34, 3, 3]);
        let (bias, wide_bias) = (tiny::tensor("bias", &[22]), tiny::tensor("bias", &[34]));
        let affine = tiny::tensor("affine", &[2, 17]);
        // Images of 17 channels, with tiles and panels that are not whole.
        let convolve = |x: &Tensor, stride: usize, repeat: usize| {
            let weight = Numbers::F32(&weight);
            x.apply_op2_no_bwd(&bias, &Convolution { weight, stride, repeat, padding: 1 })
        };
        // So many channels that it pays.
        let winograd = |x: &Tensor, repeat: usize| {
            let (x, weight) = (Tensor::cat(&[x, x], 1)?, Numbers::F32(&wide));
            x.apply_op2_no_bwd(&wide_bias, &Convolution { weight, stride: 1, repeat, padding: 1 })
        };
        let flat = |x: &Tensor| x.flatten_from(2);
        let gelu = |x: &Tensor, kind: Gelu| {
            let x = x.copy()?;
            x.inplace_op1(&kind)?;
            Ok(x)
        };
        let halves: Vec<half::f16> = tall.iter().map(|weight| half::f16::from_f32(*weight)).collect();
        let uppers = |values: &[f32]| values.iter().map(|weight| half::bf16::from_f32(*weight)).collect::<Vec<_>>();
        let (tall_uppers, uppers) = (uppers(&tall), uppers(&weight));
        let in_pairs = |x: &Tensor, repeat: usize, stride: usize| {
            let weight = Numbers::Bf16(&uppers);
            x.apply_op2_no_bwd(&bias, &Convolution { weight, stride, repeat, padding: 1 })
        };
        let product =
            |x: &Tensor, weight: Numbers<'_>| x.flatten_from(2)?.apply_op1_no_bwd(&Product { weight, outputs: 22 });
        let operations: [(&str, &Operation<'_>); 17] = [
            ("winograd", &|x| winograd(x, 1)),
            ("winograd, doubled", &|x| winograd(x, 2)),
            ("direct", &|x| convolve(x, 1, 1)),
            ("direct, some pixels", &|x| convolve(x, 2, 1)),
            ("gelu", &|x| gelu(x, Gelu::Erf)),
            ("gelu by tanh", &|x| gelu(x, Gelu::Tanh)),
            ("quick gelu", &|x| gelu(x, Gelu::Quick)),
            ("product", &|x| product(x, Numbers::F32(&tall))),
            ("product of f16", &|x| product(x, Numbers::F16(&halves))),
            ("product of bf16", &|x| product(x, Numbers::Bf16(&tall_uppers))),
            ("direct, bf16", &|x| in_pairs(x, 1, 1)),
            ("direct, bf16, some pixels", &|x| in_pairs(x, 1, 2)),
            ("direct, bf16, doubled", &|x| in_pairs(x, 2, 1)),
            ("attention", &|x| flat(x)?.apply_op3_no_bwd(&flat(x)?, &flat(x)?, &Attention { mask: None, scale: 0.3 })),
            ("group norm", &|x| x.apply_op2_no_bwd(&affine, &GroupNorm { groups: 17, eps: 1e-5, silu: true })),
            ("layer norm", &|x| flat(x)?.apply_op2_no_bwd(&affine, &LayerNorm { eps: 1e-5 })),
            ("root mean square", &|x| flat(x)?.apply_op2_no_bwd(&affine.get(0)?, &RmsNorm { eps: 1e-5 })),
        ];
        let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let four_threads = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
        let batch = tiny::tensor("x", &[5, 17, 19, 30]);
        for (name, operation) in operations {
            let whole = operation(&batch).unwrap();
            let alone = operation(&batch.narrow(0, 3, 1).unwrap().copy().unwrap()).unwrap();
            assert_eq!(bits(&whole.narrow(0, 3, 1).unwrap()), bits(&alone), "{name}: alone");
            for (threads, pool) in [(1, &one_thread), (4, &four_threads)] {
                let found = pool.install(|| operation(&batch)).unwrap();
                assert_eq!(bits(&whole), bits(&found), "{name}: {threads} threads");
            }
            tile::PLAIN.store(true, Ordering::Relaxed);
            let plain = operation(&batch).unwrap();
            tile::PLAIN.store(false, Ordering::Relaxed);
            assert_eq!(bits(&whole), bits(&plain), "{name}: without vectors");
        }
    }

    #[test]
    fn functions_agree_with_double_precision() {
        for step in -2000..2000 {
            let x = step as f32 * 0.01;
            let wide = f64::from(x);
            let close = |ours: f32, exact: f64| (f64::from(ours) - exact).abs() <= 1e-6 * exact.abs().max(0.3);
            assert!(close(exp(x), wide.exp()), "exp({x}) = {}", exp(x));
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044715 * wide.powi(3));
            assert!(close(quick_gelu(x), wide / (1.0 + (-1.702 * wide).exp())), "quick_gelu({x}) = {}", quick_gelu(x));
            assert!(close(gelu_tanh(x), 0.5 * wide * (1.0 + inner.tanh())), "gelu_tanh({x}) = {}", gelu_tanh(x));
        }
        assert!((gelu(1.0) - 0.841_344_7).abs() < 1e-6 && (gelu(-2.0) + 0.045_500_26).abs() < 1e-6);
        assert!(exp(f32::NAN).is_nan() && gelu(f32::NAN).is_nan());
        assert!(gelu_tanh(f32::NAN).is_nan() && gelu_tanh(-1e9).abs() < 1e-20 && gelu_tanh(1e9) == 1e9);
        assert!(exp(-1000.0) < 1e-37 && exp(1000.0) > 1e38);
    }
}
