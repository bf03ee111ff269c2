//! What a 3×3 convolution is, and which way it is computed. It computes nothing itself.

use super::numbers::Numbers;
use super::{direct, winograd};

/// Weights of each pair of channels.
pub(crate) const TAPS: usize = 9;

/// A 3×3 convolution of `(b, channels, height, width)` with `weight (outputs, channels, 3, 3)` and a bias `(outputs)`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Convolution<'a> {
    pub(crate) input: &'a [f32],
    pub(crate) weight: Numbers<'a>,
    pub(crate) bias: &'a [f32],
    pub(crate) batch: usize,
    pub(crate) channels: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    /// Pixels from one output pixel to the next.
    pub(crate) stride: usize,
    /// How often each input pixel is repeated in both directions before the convolution.
    pub(crate) repeat: usize,
    /// Zeros before the first row and column: 1, or 0 where they all stand after the last.
    pub(crate) padding: usize,
}

impl Convolution<'_> {
    /// Height and width of the output.
    pub(crate) fn output_size(&self) -> [usize; 2] {
        [self.height, self.width].map(|side| (side * self.repeat).div_ceil(self.stride))
    }

    /// Computes it, into memory of its own: `(b, outputs, h', w')`.
    ///
    /// # Panics
    /// If there are not as many values as there should be.
    pub(crate) fn run(&self) -> Vec<f32> {
        if winograd::pays(self) { winograd::convolve(self) } else { direct::convolve(self) }
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::engine::tiny;

    fn values(name: &str, shape: &[usize]) -> Vec<f32> {
        tiny::tensor(name, shape).flatten_all().unwrap().to_vec1().unwrap()
    }

    /// One output in double precision.
    fn exact(job: &Convolution<'_>, row: usize, output: usize, y: usize, x: usize) -> f64 {
        let mut sum = f64::from(job.bias[output]);
        let (full_height, full_width) = (job.height * job.repeat, job.width * job.repeat);
        for term in 0..9 * job.channels {
            let (channel, down, right) = (term / 9, term % 9 / 3, term % 3);
            let (y, x) = (y * job.stride + down, x * job.stride + right);
            let (Some(y), Some(x)) = (y.checked_sub(job.padding), x.checked_sub(job.padding)) else { continue };
            if y < full_height && x < full_width {
                let plane = (row * job.channels + channel) * job.height;
                let pixel = job.input[(plane + y / job.repeat) * job.width + x / job.repeat];
                let Numbers::F32(weight) = job.weight else { unreachable!("the test's weights") };
                sum += f64::from(pixel) * f64::from(weight[output * 9 * job.channels + term]);
            }
        }
        sum
    }

    #[test]
    fn convolutions_of_all_kinds_agree_with_double_precision() {
        // Channels, outputs, height, width, stride, repeat, padding.
        let cases = [
            [3, 5, 7, 9, 1, 1, 1],
            [4, 33, 16, 300, 1, 1, 1],
            [5, 4, 9, 8, 2, 1, 1],
            [6, 7, 8, 10, 2, 1, 0],
            [3, 8, 5, 6, 1, 2, 1],
            [32, 32, 16, 16, 1, 1, 1],
            [40, 23, 18, 21, 1, 1, 1],
            [34, 50, 9, 10, 1, 2, 1],
            [3, 2, 1, 1, 1, 1, 1],
            [35, 4, 11, 7, 2, 2, 1],
            [130, 97, 33, 64, 1, 1, 1],
            [17, 18, 130, 17, 1, 1, 1],
        ];
        for case in cases {
            let [channels, outputs, height, width, stride, repeat, padding] = case;
            let batch = 2;
            // Of few bits, and not too small, so that every format has them.
            let narrow = |values: Vec<f32>| values.into_iter().map(bf16::from_f32).collect::<Vec<_>>();
            let wide = |values: &[bf16]| values.iter().map(|value| value.to_f32()).collect::<Vec<_>>();
            let input = wide(&narrow(values("input", &[batch, channels, height, width])));
            let weight = wide(&narrow(values("weight", &[outputs, channels, 3, 3])));
            let halves: Vec<f16> = weight.into_iter().map(f16::from_f32).collect();
            let uppers = narrow(halves.iter().map(|weight| weight.to_f32()).collect());
            let (weight, bias) = (wide(&uppers), values("bias", &[outputs]));
            let (input, weight, bias) = (&input[..], Numbers::F32(&weight), &bias[..]);
            let job = Convolution { input, weight, bias, batch, channels, height, width, stride, repeat, padding };
            let [rows, columns] = job.output_size();
            let found = job.run();
            assert!(Convolution { weight: Numbers::F16(&halves), ..job }.run() == found, "{case:?}");
            let direct = direct::convolve(&job);
            assert!(direct::convolve(&Convolution { weight: Numbers::F16(&halves), ..job }) == direct, "{case:?}");
            let in_pairs = Convolution { weight: Numbers::Bf16(&uppers), ..job }.run();
            for found in [found, direct, in_pairs] {
                assert_eq!(found.len(), batch * outputs * rows * columns, "{case:?}");
                let (mut worst, mut largest) = (0.0_f64, 0.0_f64);
                for (index, found) in found.iter().enumerate().step_by(1 + found.len() / 4000) {
                    let (plane, pixel) = (index / (rows * columns), index % (rows * columns));
                    let exact = exact(&job, plane / outputs, plane % outputs, pixel / columns, pixel % columns);
                    worst = worst.max((f64::from(*found) - exact).abs());
                    largest = largest.max(exact.abs());
                }
                assert!(worst <= 1e-5 * largest, "{case:?}: {worst} of {largest}");
            }
        }
    }
}
