//! 3×3 convolutions as they are written: pixels are multiplied where they stand, in lines with a zero before each.
//!
//! A line's end and the next one's beginning stand side by side, and the zero between them serves both. So vectors run on
//! from line to line, and only the sum at each zero is nobody's. Where pixels are skipped, those of one remainder stand
//! together. What each weight is multiplied by are then consecutive values that begin at an offset of its own, which is all
//! that a product needs to know: XNNPACK calls it indirect convolution (Dukhan, "The Indirect Convolution Algorithm", 2019).
//! With weights of bf16 the pixels of two channels stand in one word, and weights are put in that order.

use std::ops::Range;

use half::bf16;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::convolution::{Convolution, TAPS};
use super::numbers::Numbers;
use super::pairs::pair;
use super::scratch::Scratch;
use super::tile::{self, Begin, Division, Left, Lines, Target, WIDTH_MAX, processor, terms_of_line};

/// Channels, or pairs of them, whose pixels are there at once, and values of these: they stay in the second cache.
const CHANNELS: usize = 32;
const VALUES_MAX: usize = 48 << 10;

/// How the pixels of a channel stand for some lines of the output.
#[derive(Clone, Copy, Debug)]
struct Layout {
    /// Pixels from one output pixel to the next: so many remainders there are in each direction.
    stride: usize,
    /// From one line of the output to the next.
    pitch: usize,
    /// Lines of the output at most.
    lines: usize,
}

impl Layout {
    /// Lines of one remainder for `lines` of the output: the last of these need some more.
    fn lines_for(self, lines: usize) -> usize {
        lines + 2 / self.stride
    }

    /// Values of one pair of remainders. The last line has its zero behind it.
    fn plane(self) -> usize {
        self.lines_for(self.lines) * self.pitch + 1
    }

    /// Values of a channel.
    fn channel(self) -> usize {
        self.stride * self.stride * self.plane()
    }

    /// Where the pixel stands that a tap of the first output needs.
    fn offset(self, tap: usize) -> usize {
        let (down, right) = (tap / 3, tap % 3);
        (down % self.stride * self.stride + right % self.stride) * self.plane()
            + down / self.stride * self.pitch
            + right / self.stride
    }
}

/// Computes a convolution of any kind, into memory of its own: `(b, outputs, h', w')`.
///
/// # Panics
/// If there are not as many values as there should be.
#[expect(unsafe_code, reason = "every value is written once, by tasks")]
pub(crate) fn convolve(job: &Convolution<'_>) -> Vec<f32> {
    let outputs = job.bias.len();
    assert_eq!(job.input.len(), job.batch * job.channels * job.height * job.width, "pixels");
    assert_eq!(job.weight.len(), outputs * job.channels * TAPS, "weights");
    assert!(job.stride > 1 || job.padding == 1, "a zero before each line");
    let [down, across] = job.output_size();
    let length = job.batch * outputs * down * across;
    if length == 0 {
        return Vec::new();
    }
    let pitch = across + 1;
    let together = job.channels.div_ceil(terms_of_line(job.weight)).clamp(1, CHANNELS);
    let line = together * job.stride * job.stride * pitch;
    let strips = down.div_ceil((VALUES_MAX / line).saturating_sub(2).max(1));
    let layout = Layout { stride: job.stride, pitch, lines: down.div_ceil(strips) };
    let division = Division::new(job.batch, down.div_ceil(layout.lines), outputs);
    let processor = processor();
    let compute = |target| {
        (0..division.tasks()).into_par_iter().for_each_init(
            || {
                let pixels = Scratch::new(together * layout.channel() + WIDTH_MAX);
                let weights = match job.weight {
                    Numbers::F32(_) | Numbers::F16(_) => 0,
                    Numbers::Bf16(_) => division.outputs_max() * together * TAPS,
                };
                let sums = Scratch::new(division.outputs_max() * layout.lines * pitch);
                (pixels, Scratch::new(pitch), Scratch::new(weights), sums)
            },
            |(pixels, line, weights, sums), index| {
                let (row, strip, outputs) = division.task(index);
                let lines = strip * layout.lines..down.min((strip + 1) * layout.lines);
                processor.dispatch(Task { job, layout, row, lines, outputs, pixels, line, weights, sums, target });
            },
        );
    };
    // SAFETY: the tasks are all lines of all outputs.
    unsafe { tile::written(length, compute) }
}

/// Some outputs of some lines.
struct Task<'a> {
    job: &'a Convolution<'a>,
    layout: Layout,
    row: usize,
    lines: Range<usize>,
    outputs: Range<usize>,
    pixels: &'a mut [f32],
    /// A line of the second channel of a pair.
    line: &'a mut [f32],
    /// Weights of bf16 for some channels, in the order of the pixels.
    weights: &'a mut [f32],
    /// For each output its lines, with one value between them.
    sums: &'a mut [f32],
    target: Target,
}

impl Task<'_> {
    /// The weights of each pair of channels tap by tap, those of both channels side by side: `(outputs, pairs, 9, 2)`. A
    /// last channel that is alone has zeros beside it.
    #[inline(always)]
    fn put_in_order(&mut self, weight: &[bf16], channels: Range<usize>) {
        let words = channels.len().div_ceil(2) * TAPS;
        for (ordered, output) in self.weights.chunks_exact_mut(words).zip(self.outputs.clone()) {
            let weight = &weight[(output * self.job.channels + channels.start) * TAPS..][..channels.len() * TAPS];
            let ordered: &mut [[bf16; 2 * TAPS]] = bytemuck::cast_slice_mut(ordered);
            let (pairs, alone) = weight.as_chunks::<{ 2 * TAPS }>();
            // So written that the compiler makes shuffles of it.
            for (ordered, w) in ordered.iter_mut().zip(pairs) {
                *ordered = [
                    w[0], w[9], w[1], w[10], w[2], w[11], w[3], w[12], w[4], w[13], w[5], w[14], w[6], w[15], w[7],
                    w[16], w[8], w[17],
                ];
            }
            if let Some(last) = ordered.get_mut(pairs.len()) {
                *last = [bf16::ZERO; 2 * TAPS];
                last.iter_mut().step_by(2).zip(alone).for_each(|(place, weight)| *place = *weight);
            }
        }
    }

    /// Lays out the pixels of some channels.
    #[inline(always)]
    fn lay_out(&mut self, channels: Range<usize>) {
        let (job, layout) = (self.job, self.layout);
        let Layout { stride, pitch, .. } = layout;
        let size = job.height * job.width;
        let per_line = terms_of_line(job.weight);
        let planes = |channel: usize| &job.input[(self.row * job.channels + channel) * size..][..size];
        for (channel, pixels) in channels.clone().step_by(per_line).zip(self.pixels.chunks_exact_mut(layout.channel()))
        {
            let input = planes(channel);
            let second = (channels.contains(&(channel + 1)) && per_line == 2).then(|| planes(channel + 1));
            for (remainder_y, planes) in pixels.chunks_exact_mut(stride * layout.plane()).enumerate() {
                for (remainder_x, plane) in planes.chunks_exact_mut(layout.plane()).enumerate() {
                    let count = layout.lines_for(self.lines.len());
                    for (index, line) in plane.chunks_exact_mut(pitch).take(count).enumerate() {
                        let y = ((self.lines.start + index) * stride + remainder_y).wrapping_sub(job.padding);
                        if y < job.height * job.repeat {
                            let from = y / job.repeat * job.width..(y / job.repeat + 1) * job.width;
                            fill(line, &input[from.clone()], job, remainder_x);
                            if let Some(second) = second {
                                fill(self.line, &second[from], job, remainder_x);
                                line.iter_mut()
                                    .zip(&*self.line)
                                    .for_each(|(word, second)| *word = pair(*word, *second));
                            } else if per_line == 2 {
                                line.iter_mut().for_each(|word| *word = pair(*word, 0.0));
                            }
                        } else {
                            line.fill(0.0);
                        }
                    }
                    plane[count * pitch] = 0.0;
                }
            }
        }
    }
}

/// The pixels of a line that have a remainder, with zeros where there are none.
#[inline(always)]
fn fill(line: &mut [f32], from: &[f32], job: &Convolution<'_>, remainder: usize) {
    match (job.stride, job.repeat, job.padding) {
        (1, 1, 1) => {
            line[0] = 0.0;
            line[1..].copy_from_slice(from);
        }
        (1, 2, 1) => {
            line[0] = 0.0;
            for (pair, pixel) in line[1..].as_chunks_mut::<2>().0.iter_mut().zip(from) {
                *pair = [*pixel; 2];
            }
        }
        (stride, repeat, padding) => {
            for (x, value) in line.iter_mut().enumerate() {
                let x = (x * stride + remainder).wrapping_sub(padding);
                *value = if x < from.len() * repeat { from[x / repeat] } else { 0.0 };
            }
        }
    }
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    #[expect(unsafe_code, reason = "tasks write to places of their own")]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let (job, layout) = (self.job, self.layout);
        let [down, across] = job.output_size();
        let terms = job.channels * TAPS;
        let columns = self.lines.len() * layout.pitch;
        let mut offsets = [0; CHANNELS * TAPS];
        for (term, offset) in offsets.iter_mut().enumerate() {
            *offset = term / TAPS * layout.channel() + layout.offset(term % TAPS);
        }
        let together = CHANNELS * terms_of_line(job.weight);
        for first in (0..job.channels).step_by(together) {
            let channels = first..job.channels.min(first + together);
            self.lay_out(channels.clone());
            let rows = self.outputs.len();
            let left = match job.weight {
                Numbers::F32(_) | Numbers::F16(_) => Left {
                    values: job.weight.slice(self.outputs.start * terms + first * TAPS..job.weight.len()),
                    stride: terms,
                    rows,
                    depth: channels.len() * TAPS,
                },
                Numbers::Bf16(weight) => {
                    self.put_in_order(weight, channels.clone());
                    let depth = channels.len().next_multiple_of(2) * TAPS;
                    Left { values: Numbers::Bf16(bytemuck::cast_slice(self.weights)), stride: depth, rows, depth }
                }
            };
            let lines = Lines { values: self.pixels, offsets: &offsets };
            let begin = if first > 0 { Begin::Output } else { Begin::Rows(&job.bias[self.outputs.clone()]) };
            let sums = Target::new(self.sums);
            // SAFETY: the sums are this task's own.
            unsafe { tile::multiply(simd, left, lines, columns, begin, (sums, 0, columns)) };
        }
        for (output, sums) in self.outputs.clone().zip(self.sums.chunks_exact(columns)) {
            let plane = (self.row * job.bias.len() + output) * down * across;
            for (y, line) in self.lines.clone().zip(sums.chunks_exact(layout.pitch)) {
                let start = plane + y * across;
                // SAFETY: only this task has these lines of these outputs, and the output outlives all tasks.
                unsafe { self.target.write(start, &line[..across]) };
            }
        }
    }
}
