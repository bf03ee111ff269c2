//! Group normalisation in two passes over memory: one for mean and variance, one that writes.
//!
//! Mean and variance of a few thousand values, which are in the first cache, are merged with those before them: Chan, Golub and
//! LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances" (1979). The pieces are the same
//! whatever else is computed, and so are the bytes of a result.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::function::{map, silu, sum};
use super::tile::{self, Target, dispatch};

/// Values of a piece at most.
const PIECE: usize = 4096;

/// Group normalisation of `(b, channels, plane)`, of the input plus a `shift (b, channels)` if there is one.
#[derive(Debug)]
pub(crate) struct GroupNorm<'a> {
    pub(crate) input: &'a [f32],
    /// `(2, channels)`: what values are multiplied by, and what is added then.
    pub(crate) affine: &'a [f32],
    pub(crate) shift: Option<&'a [f32]>,
    pub(crate) channels: usize,
    pub(crate) plane: usize,
    pub(crate) groups: usize,
    pub(crate) eps: f32,
    /// Whether SiLU follows.
    pub(crate) silu: bool,
}

impl GroupNorm<'_> {
    /// Computes it, into memory of its own.
    ///
    /// # Panics
    /// If there are not as many values as there should be.
    #[expect(unsafe_code, reason = "every value is written once, by tasks")]
    pub(crate) fn run(&self) -> Vec<f32> {
        let Self { input, affine, shift, channels, plane, groups, .. } = *self;
        assert!(channels.is_multiple_of(groups), "{groups} groups of {channels} channels");
        assert!(input.len().is_multiple_of(channels * plane), "whole rows");
        assert_eq!(affine.len(), 2 * channels, "weights and biases");
        assert!(shift.is_none_or(|shift| shift.len() * plane == input.len()), "a shift for each channel of each row");
        let size = channels / groups * plane;
        let compute = |target| {
            let each = input.par_chunks(size).enumerate();
            each.for_each(|(index, input)| dispatch(Task { job: self, index, input, target }));
        };
        // SAFETY: the tasks are all groups of all rows.
        unsafe { tile::written(input.len(), compute) }
    }
}

/// A group of a row.
struct Task<'a> {
    job: &'a GroupNorm<'a>,
    index: usize,
    input: &'a [f32],
    target: Target,
}

/// How many values there were, their mean, and the sum of the squares of what they are away from it.
#[derive(Clone, Copy, Debug, Default)]
struct Moments {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Moments {
    fn merged(self, other: Self) -> Self {
        let count = self.count + other.count;
        let apart = other.mean - self.mean;
        let share = other.count / count;
        Self {
            count,
            mean: self.mean + apart * share,
            squares: self.squares + other.squares + apart * apart * self.count * share,
        }
    }
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    #[expect(unsafe_code, reason = "tasks write to places of their own")]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { job, index, input, target } = self;
        let (weight, bias) = job.affine.split_at(job.channels);
        let width = job.channels / job.groups;
        let first = index % job.groups * width;
        let row = index / job.groups;
        let shift = |channel: usize| job.shift.map_or(0.0, |shift| shift[row * job.channels + first + channel]);
        let mut moments = Moments::default();
        // Without shifts channels need not be told apart.
        let run = if job.shift.is_some() { job.plane } else { input.len() };
        for (channel, values) in input.chunks_exact(run).enumerate() {
            for piece in values.chunks(PIECE) {
                let count = piece.len() as f64;
                let total = sum(
                    piece,
                    #[inline(always)]
                    |x| x,
                );
                let mean = f64::from(total) / count;
                let centre = mean as f32;
                let squares = sum(
                    piece,
                    #[inline(always)]
                    |x| (x - centre) * (x - centre),
                );
                let squares = f64::from(squares);
                moments = moments.merged(Moments { count, mean: mean + f64::from(shift(channel)), squares });
            }
        }
        let mean = moments.mean as f32;
        let inverse = 1.0 / ((moments.squares / moments.count) as f32 + job.eps).sqrt();
        for (channel, input) in input.chunks_exact(job.plane).enumerate() {
            let scale = weight[first + channel] * inverse;
            let constant = bias[first + channel] + (shift(channel) - mean) * scale;
            let (scale, constant) = (simd.splat_f32s(scale), simd.splat_f32s(constant));
            let place = (target, (index * width + channel) * job.plane);
            // SAFETY: only this task has this group, and the output outlives all tasks.
            unsafe {
                if job.silu {
                    map::<S>(
                        input,
                        place,
                        #[inline(always)]
                        |x| silu(simd, simd.mul_add_f32s(x, scale, constant)),
                    );
                } else {
                    map::<S>(
                        input,
                        place,
                        #[inline(always)]
                        |x| simd.mul_add_f32s(x, scale, constant),
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::tiny;

    #[test]
    fn groups_agree_with_double_precision() {
        // Rows, channels, groups, values of a channel, and what all values are away from zero.
        for (batch, channels, groups, plane, away) in
            [(1, 1, 1, 1, 0.0), (2, 6, 3, 35, 0.0), (1, 4, 2, 9000, 0.0), (2, 8, 2, 64, 50.0), (1, 2, 1, 4097, -300.0)]
        {
            let values = |name: &str, length: usize| -> Vec<f32> {
                tiny::tensor(name, &[length]).flatten_all().unwrap().to_vec1().unwrap()
            };
            let input: Vec<f32> = values("x", batch * channels * plane).into_iter().map(|x| 30.0 * x + away).collect();
            let (affine, shifts) = (values("affine", 2 * channels), values("shift", batch * channels));
            for (shift, silu) in [(None, false), (None, true), (Some(&shifts[..]), false), (Some(&shifts[..]), true)] {
                let (input, affine) = (&input[..], &affine[..]);
                let found = GroupNorm { input, affine, shift, channels, plane, groups, eps: 1e-5, silu }.run();
                let width = channels / groups;
                let shifted =
                    |index: usize| f64::from(input[index]) + shift.map_or(0.0, |s| f64::from(s[index / plane]));
                for group in 0..batch * groups {
                    let places = group * width * plane..(group + 1) * width * plane;
                    let count = places.len() as f64;
                    let mean = places.clone().map(shifted).sum::<f64>() / count;
                    let variance = places.clone().map(|index| (shifted(index) - mean).powi(2)).sum::<f64>() / count;
                    for index in places {
                        let channel = index / plane % channels;
                        let [weight, bias] = [affine[channel], affine[channels + channel]].map(f64::from);
                        let normal = (shifted(index) - mean) / (variance + 1e-5).sqrt() * weight + bias;
                        let exact = if silu { normal / (1.0 + (-normal).exp()) } else { normal };
                        // The last bits of what is far from zero are lost with its distance.
                        let close = 4e-6 * (1.0 + f64::from(away).abs() / variance.sqrt().max(1.0));
                        let found = f64::from(found[index]);
                        assert!((found - exact).abs() <= close, "{channels} of {plane}, {away}: {found}, {exact}");
                    }
                }
            }
        }
    }
}
