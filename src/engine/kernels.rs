//! The inner loops of the CPU path, as candle operations: what candle does in many passes over memory, in one.
//!
//! All of them take contiguous f32 tensors. Other devices never come here: each layer has a plain version for them.
//! Nothing here depends on the number of threads, so neither do pixels.

use std::ops::Range;

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, InplaceOp1, InplaceOp2, InplaceOp3, Layout, Result, Shape, bail,
};
use gemm::Parallelism;
use rayon::prelude::*;

/// Matrices of patches up to this size are made whole; larger ones in strips, which bounds memory and spares caches.
const PATCH_BYTES_MAX: usize = 8 << 20;
/// Values that a loop sums side by side, so that the compiler can use vector instructions: it must not reorder sums.
const LANES: usize = 16;

pub(super) fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("the operation needs a contiguous tensor"),
    }
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

#[inline(always)]
fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
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

fn sum(values: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest: f32 = chunks.remainder().iter().map(|value| term(*value)).sum();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += term(*value);
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// `output (m, n)`, whose rows begin `stride` apart, plus `left (m, k) @ right (k, n)`.
#[expect(unsafe_code, reason = "gemm takes pointers; the lengths are checked before")]
fn multiply_add(output: &mut [f32], stride: usize, left: &[f32], right: &[f32], [m, k, n]: [usize; 3]) -> Result<()> {
    if m == 0 || k == 0 || n == 0 {
        return Ok(());
    }
    if left.len() != m * k || right.len() != k * n || stride < n || output.len() < (m - 1) * stride + n {
        bail!("a product of {} and {} values is not ({m}, {k}) by ({k}, {n})", left.len(), right.len());
    }
    let threads = rayon::current_num_threads();
    let parallelism = if threads > 1 { Parallelism::Rayon(threads) } else { Parallelism::None };
    let [k_step, n_step, stride] = [k, n, stride].map(|step| step as isize);
    // SAFETY: all three matrices lie within their slices, as checked, and only the output is written.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            output.as_mut_ptr(),
            1,
            stride,
            true,
            left.as_ptr(),
            1,
            k_step,
            right.as_ptr(),
            1,
            n_step,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
    Ok(())
}

/// `(b, channels, plane)`, filled with the bias of each channel, if there is one.
fn biased(batch: usize, channels: usize, plane: usize, bias: Option<&[f32]>) -> Result<Vec<f32>> {
    let mut output = vec![0.0; batch * channels * plane];
    if let Some(bias) = bias {
        if bias.len() != channels {
            bail!("{} biases for {channels} channels", bias.len());
        }
        for (index, line) in output.chunks_exact_mut(plane.max(1)).enumerate() {
            line.fill(bias[index % channels]);
        }
    }
    Ok(output)
}

/// `weight (out, in) @ x (b, in, t)`, plus a bias `(out)` if there is one: `(b, out, t)`.
pub(super) struct Product<'a> {
    pub(super) weight: &'a [f32],
    pub(super) outputs: usize,
}

impl Product<'_> {
    fn run(&self, x: &CpuStorage, x_l: &Layout, bias: Option<&[f32]>) -> Result<(CpuStorage, Shape)> {
        let (batch, inputs, tokens) = x_l.shape().dims3()?;
        let mut output = biased(batch, self.outputs, tokens, bias)?;
        let (size, plane) = (inputs * tokens, self.outputs * tokens);
        for (x, output) in values(x, x_l)?.chunks_exact(size).zip(output.chunks_exact_mut(plane)) {
            multiply_add(output, tokens, self.weight, x, [self.outputs, inputs, tokens])?;
        }
        Ok((CpuStorage::F32(output), Shape::from((batch, self.outputs, tokens))))
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

/// A 3×3 convolution of `(b, c, h, w)` with `weight (out, c, 3, 3)` and a bias `(out)`, as products with matrices of
/// patches.
pub(super) struct Convolution<'a> {
    pub(super) weight: &'a [f32],
    pub(super) outputs: usize,
    /// Pixels from one output pixel to the next.
    pub(super) stride: usize,
    /// How often each input pixel is repeated in both directions before the convolution.
    pub(super) repeat: usize,
    /// Zeros before the first row and column: 1, or 0 where they all stand after the last.
    pub(super) padding: usize,
}

impl Convolution<'_> {
    /// The patches of the output's `rows`, as columns: `input (c, h, w)` becomes `patches (9 c, rows * output width)`.
    fn gather(&self, input: &[f32], [height, width]: [usize; 2], rows: Range<usize>, patches: &mut [f32]) {
        let (full_height, full_width) = (height * self.repeat, width * self.repeat);
        let output_width = full_width.div_ceil(self.stride);
        patches.par_chunks_mut(rows.len() * output_width).enumerate().for_each(|(tap, row)| {
            let (channel, down, right) = (tap / 9, tap % 9 / 3, tap % 3);
            let plane = &input[channel * height * width..][..height * width];
            for (y, line) in rows.clone().zip(row.chunks_exact_mut(output_width)) {
                let source_y = (y * self.stride + down).wrapping_sub(self.padding);
                if source_y >= full_height {
                    line.fill(0.0);
                    continue;
                }
                let source = &plane[source_y / self.repeat * width..][..width];
                if self.stride == 1 && self.repeat == 1 && self.padding == 1 {
                    match right {
                        0 => {
                            line[0] = 0.0;
                            line[1..].copy_from_slice(&source[..width - 1]);
                        }
                        1 => line.copy_from_slice(source),
                        _ => {
                            line[..width - 1].copy_from_slice(&source[1..]);
                            line[width - 1] = 0.0;
                        }
                    }
                } else {
                    for (x, value) in line.iter_mut().enumerate() {
                        let source_x = (x * self.stride + right).wrapping_sub(self.padding);
                        *value = if source_x < full_width { source[source_x / self.repeat] } else { 0.0 };
                    }
                }
            }
        });
    }
}

impl CustomOp2 for Convolution<'_> {
    fn name(&self) -> &'static str {
        "convolution"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_l: &Layout, bias: &CpuStorage, bias_l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, channels, height, width) = x_l.shape().dims4()?;
        let patch = 9 * channels;
        let rows = (height * self.repeat).div_ceil(self.stride);
        let columns = (width * self.repeat).div_ceil(self.stride);
        let plane = rows * columns;
        let mut output = biased(batch, self.outputs, plane, Some(values(bias, bias_l)?))?;
        let strip = (PATCH_BYTES_MAX / (patch * columns * size_of::<f32>())).clamp(1, rows);
        let mut patches = vec![0.0; patch * strip * columns];
        let inputs = values(x, x_l)?.chunks_exact(channels * height * width);
        for (input, output) in inputs.zip(output.chunks_exact_mut(self.outputs * plane)) {
            for start in (0..rows).step_by(strip) {
                let rows = start..rows.min(start + strip);
                let pixels = rows.len() * columns;
                let patches = &mut patches[..patch * pixels];
                self.gather(input, [height, width], rows, patches);
                let output = &mut output[start * columns..];
                multiply_add(output, plane, self.weight, patches, [self.outputs, patch, pixels])?;
            }
        }
        Ok((CpuStorage::F32(output), Shape::from((batch, self.outputs, rows, columns))))
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
        let channels = shape.dims()[1];
        let plane = shape.elem_count() / shape.dims()[0] / channels;
        let width = channels / self.groups;
        let (weight, bias) = affine.split_at(channels);
        let mut output = vec![0.0; input.len()];
        let run = |(index, (output, input)): (usize, (&mut [f32], &[f32]))| {
            let first = index % self.groups * width;
            let offset =
                |channel: usize| shift.map_or(0.0, |shift| shift[index / self.groups * channels + first + channel]);
            let count = (width * plane) as f32;
            let planes = || input.chunks_exact(plane).enumerate();
            let mean = planes().map(|(c, x)| sum(x, |x| x) + offset(c) * plane as f32).sum::<f32>() / count;
            let squares: f32 = planes()
                .map(|(channel, plane)| {
                    let centre = mean - offset(channel);
                    sum(plane, |x| (x - centre) * (x - centre))
                })
                .sum();
            let inverse = 1.0 / (squares / count + self.eps).sqrt();
            for ((channel, input), output) in planes().zip(output.chunks_exact_mut(plane)) {
                let scale = weight[first + channel] * inverse;
                let constant = bias[first + channel] + (offset(channel) - mean) * scale;
                if self.silu {
                    for (output, x) in output.iter_mut().zip(input) {
                        *output = silu(x * scale + constant);
                    }
                } else {
                    for (output, x) in output.iter_mut().zip(input) {
                        *output = x * scale + constant;
                    }
                }
            }
        };
        let size = width * plane;
        output.par_chunks_mut(size).zip(input.par_chunks(size)).enumerate().for_each(run);
        Ok((CpuStorage::F32(output), shape.clone()))
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
        let mut output = vec![0.0; input.len()];
        let size = width * tokens;
        output.par_chunks_mut(size).zip(input.par_chunks(size)).enumerate().for_each(|(row, (output, input))| {
            let (weight, bias) = affine[row * 2 * width % affine.len()..][..2 * width].split_at(width);
            let mut mean = vec![0.0; tokens];
            for line in input.chunks_exact(tokens) {
                mean.iter_mut().zip(line).for_each(|(mean, x)| *mean += x);
            }
            mean.iter_mut().for_each(|mean| *mean /= width as f32);
            let mut inverse = vec![0.0; tokens];
            for line in input.chunks_exact(tokens) {
                for ((square, x), mean) in inverse.iter_mut().zip(line).zip(&mean) {
                    *square += (x - mean) * (x - mean);
                }
            }
            inverse.iter_mut().for_each(|square| *square = 1.0 / (*square / width as f32 + self.eps).sqrt());
            let lines = output.chunks_exact_mut(tokens).zip(input.chunks_exact(tokens));
            for ((output, line), (weight, bias)) in lines.zip(weight.iter().zip(bias)) {
                for (((output, x), mean), inverse) in output.iter_mut().zip(line).zip(&mean).zip(&inverse) {
                    *output = (x - mean) * inverse * weight + bias;
                }
            }
        });
        Ok((CpuStorage::F32(output), x_l.shape().clone()))
    }
}

/// Softmax of `scale * x` over the last dimension, in place.
pub(super) struct Softmax {
    pub(super) scale: f32,
}

impl InplaceOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let width = layout.dims().last().copied().unwrap_or(1);
        values_mut(storage, layout)?.par_chunks_mut(width).with_min_len(16).for_each(|line| {
            let mut lanes = [f32::NEG_INFINITY; LANES];
            let chunks = line.chunks_exact(LANES);
            let rest = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
            for chunk in chunks {
                lanes.iter_mut().zip(chunk).for_each(|(lane, x)| *lane = lane.max(*x));
            }
            let largest = lanes.into_iter().fold(rest, f32::max);
            line.iter_mut().for_each(|x| *x = exp((*x - largest) * self.scale));
            let inverse = 1.0 / sum(line, |x| x);
            line.iter_mut().for_each(|x| *x *= inverse);
        });
        Ok(())
    }
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
            target.iter_mut().zip(other).for_each(|(target, other)| *target += other);
            return Ok(());
        }
        let plane = target_l.dims()[2..].iter().product::<usize>();
        for (index, line) in target.chunks_exact_mut(plane).enumerate() {
            let value = other[index % other.len()];
            line.iter_mut().for_each(|target| *target += value);
        }
        Ok(())
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
            for ((output, value), gate) in output.iter_mut().zip(value).zip(gate) {
                *output = value * gelu(*gate);
            }
        }
        Ok((CpuStorage::F32(output), Shape::from((batch, width / 2, tokens))))
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
        let mut output = vec![0.0; input.len()];
        let size = width * tokens;
        output.par_chunks_mut(size).zip(input.par_chunks(size)).for_each(|(output, input)| {
            let mut inverse = vec![0.0; tokens];
            for line in input.chunks_exact(tokens) {
                inverse.iter_mut().zip(line).for_each(|(square, x)| *square += x * x);
            }
            inverse.iter_mut().for_each(|square| *square = 1.0 / (*square / width as f32 + self.eps).sqrt());
            let lines = output.chunks_exact_mut(tokens).zip(input.chunks_exact(tokens));
            for ((output, line), weight) in lines.zip(weight) {
                for ((output, x), inverse) in output.iter_mut().zip(line).zip(&inverse) {
                    *output = x * inverse * weight;
                }
            }
        });
        Ok((CpuStorage::F32(output), x_l.shape().clone()))
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
        for ((target, other), gate) in target.chunks_exact_mut(tokens).zip(other.chunks_exact(tokens)).zip(gate) {
            target.iter_mut().zip(other).for_each(|(target, other)| *target = *target * gate + other);
        }
        Ok(())
    }
}

/// [`gelu_tanh`] of every value, in place.
pub(super) struct GeluTanh;

impl InplaceOp1 for GeluTanh {
    fn name(&self) -> &'static str {
        "gelu-tanh"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let width = layout.dims().last().copied().unwrap_or(1);
        values_mut(storage, layout)?.par_chunks_mut(width).with_min_len(16).for_each(|line| {
            line.iter_mut().for_each(|x| *x = gelu_tanh(*x));
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_agree_with_double_precision() {
        for step in -2000..2000 {
            let x = step as f32 * 0.01;
            let wide = f64::from(x);
            let close = |ours: f32, exact: f64| (f64::from(ours) - exact).abs() <= 1e-6 * exact.abs().max(0.3);
            assert!(close(exp(x), wide.exp()), "exp({x}) = {}", exp(x));
            assert!(close(silu(x), wide / (1.0 + (-wide).exp())), "silu({x}) = {}", silu(x));
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044715 * wide.powi(3));
            assert!(close(gelu_tanh(x), 0.5 * wide * (1.0 + inner.tanh())), "gelu_tanh({x}) = {}", gelu_tanh(x));
        }
        assert!((gelu(1.0) - 0.841_344_7).abs() < 1e-6 && (gelu(-2.0) + 0.045_500_26).abs() < 1e-6);
        assert!(exp(f32::NAN).is_nan() && silu(f32::NAN).is_nan() && gelu(f32::NAN).is_nan());
        assert!(gelu_tanh(f32::NAN).is_nan() && gelu_tanh(-1e9).abs() < 1e-20 && gelu_tanh(1e9) == 1e9);
        assert!(exp(-1000.0) < 1e-37 && exp(1000.0) > 1e38);
    }
}
