//! 3×3 convolutions with a quarter of the multiplications: Winograd's F(4×4, 3×3).
//!
//! Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015): tiles of 6×6 pixels and the weights are
//! transformed, multiplied point by point, which over all channels is 36 matrix products, and transformed back to 4×4
//! pixels. The points are 0, ±1/√2, ±√2 and ∞, with which rounding errors are smaller than with whole numbers.
//!
//! Weights are transformed when they are used, some outputs at a time: all of them would take four times the memory, and
//! that is little work beside the products. Only convolutions that keep the size, or that double it first, come here.

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::convolution::{Convolution, TAPS};
use super::numbers::Numbers;
use super::scratch::Scratch;
use super::tile::{self, Begin, LANES_MAX, Left, Panels, ROWS_MAX, Target, WIDTH_MAX, load, processor, store};

/// Pixels of a tile's side that are computed at once.
const SIDE: usize = 4;
/// Points in both directions.
const POINTS: usize = 36;
/// Transformed pixels that are there at once; they are used again for each block of outputs.
const PIXELS_BYTES_MAX: usize = 24 << 20;
/// Tiles that are there at once, and of which one channel is transformed at once, in the first cache.
const TILES_MAX: usize = 512;
const TILES_TOGETHER: usize = 64;
/// Outputs of a block, about, and channels: their transformed weights stay in a cache.
const BLOCK: usize = 48;
const CHANNELS: usize = 128;

/// Values between what belongs to one point and to the next: without them all points would meet in the same few sets of
/// the cache wherever sizes are powers of two.
const GAP: usize = 16;

const ROOT: f32 = std::f32::consts::SQRT_2;
const HALF_ROOT: f32 = std::f32::consts::FRAC_1_SQRT_2;

/// Tiles side by side in a row of the batch.
#[derive(Clone, Copy, Debug)]
struct Line {
    row: usize,
    /// Its first line of pixels in the output.
    y: usize,
}

/// Whether it is worth it and can be: with few channels, transforming pixels costs more than is saved, and with few tiles
/// transforming weights. Weights of bf16 are made wider for it: rounding what was transformed would leave the sums six times
/// as far from the exact ones. So they need more tiles, beside a way that has twice the rate.
pub(crate) fn pays(job: &Convolution<'_>) -> bool {
    let keeps_or_doubles = job.stride == 1 && job.padding == 1 && job.repeat <= 2;
    let tiles: usize = job.output_size().into_iter().map(|side| side.div_ceil(SIDE)).product();
    let tiles_min = match job.weight {
        Numbers::F32(_) | Numbers::F16(_) => 16,
        Numbers::Bf16(_) => 64,
    };
    keeps_or_doubles && job.channels >= 32 && job.bias.len() >= 32 && tiles >= tiles_min
}

fn tiles_across(job: &Convolution<'_>) -> usize {
    job.output_size()[1].div_ceil(SIDE)
}

/// Computes a convolution for which it [`pays`], into memory of its own: `(b, outputs, h', w')`.
///
/// # Panics
/// If there are not as many values as there should be.
#[expect(unsafe_code, reason = "every value is written once, by tasks")]
pub(crate) fn convolve(job: &Convolution<'_>) -> Vec<f32> {
    let outputs = job.bias.len();
    assert_eq!(job.input.len(), job.batch * job.channels * job.height * job.width, "pixels");
    assert_eq!(job.weight.len(), outputs * job.channels * TAPS, "weights");
    let [full_height, full_width] = job.output_size();
    let lines: Vec<Line> =
        (0..job.batch).flat_map(|row| (0..full_height).step_by(SIDE).map(move |y| Line { row, y })).collect();
    let across = tiles_across(job);
    let room = (PIXELS_BYTES_MAX / (POINTS * job.channels * size_of::<f32>())).min(TILES_MAX);
    // As many lines as there is room for, in groups of about one size.
    let groups = lines.len().div_ceil((room / across).max(1));
    let group = lines.len().div_ceil(groups);

    let (processor, threads) = (processor(), rayon::current_num_threads());
    let blocks = outputs.div_ceil(BLOCK).next_multiple_of(threads);
    let block = outputs.div_ceil(blocks).next_multiple_of(ROWS_MAX);
    let chunks = job.channels.div_ceil(4 * threads);
    // Panels of every vector width have room in it.
    let tiles_max = (group * across).next_multiple_of(WIDTH_MAX);
    let mut pixels = Scratch::new(POINTS * (job.channels * tiles_max + GAP));
    let compute = |target| {
        for lines in lines.chunks(group) {
            let tiles = lines.len() * across;
            let size = job.channels * tiles.next_multiple_of(WIDTH_MAX) + GAP;
            let transformed = Target::new(&mut pixels);
            (0..job.channels.div_ceil(chunks)).into_par_iter().for_each(|chunk| {
                let channels = chunk * chunks..job.channels.min((chunk + 1) * chunks);
                processor.dispatch(Pixels { job, lines, channels, size, transformed });
            });
            let pixels = &pixels[..];
            (0..outputs.div_ceil(block)).into_par_iter().for_each_init(
                || {
                    (
                        Scratch::new(POINTS * (block * CHANNELS + GAP)),
                        Scratch::new(POINTS * (block * (tiles_max + WIDTH_MAX) + GAP)),
                    )
                },
                |(weights, products), index| {
                    let outputs = index * block..outputs.min((index + 1) * block);
                    processor.dispatch(Outputs { job, lines, outputs, size, pixels, weights, products, target });
                },
            );
        }
    };
    // SAFETY: the groups are all lines, and each has all outputs.
    unsafe { tile::written(job.batch * outputs * full_height * full_width, compute) }
}

/// The pixels of some channels, transformed: for each of the points, panels of tiles by channels.
struct Pixels<'a> {
    job: &'a Convolution<'a>,
    lines: &'a [Line],
    channels: Range<usize>,
    /// Values of a point.
    size: usize,
    transformed: Target,
}

/// What `value` gives for each place. The standard library's would not be compiled for the vectors of its closure.
#[inline(always)]
fn each<S: Simd, const N: usize>(simd: S, mut value: impl FnMut(usize) -> S::f32s) -> [S::f32s; N] {
    let mut values = [simd.splat_f32s(0.0); N];
    for (index, place) in values.iter_mut().enumerate() {
        *place = value(index);
    }
    values
}

/// The six points of a line of six values, each of them many.
#[inline(always)]
fn transform_pixels<S: Simd>(simd: S, [a, b, c, d, e, f]: [S::f32s; 6]) -> [S::f32s; 6] {
    let splat = |value: f32| simd.splat_f32s(value);
    let even_1 = simd.mul_add_f32s(splat(-2.0), c, e);
    let odd_1 = simd.mul_add_f32s(splat(-ROOT), b, simd.mul_f32s(splat(HALF_ROOT), d));
    let even_2 = simd.mul_add_f32s(splat(-0.5), c, e);
    let odd_2 = simd.mul_add_f32s(splat(-HALF_ROOT), b, simd.mul_f32s(splat(ROOT), d));
    [
        simd.mul_add_f32s(splat(-2.5), c, simd.add_f32s(a, e)),
        simd.add_f32s(even_1, odd_1),
        simd.sub_f32s(even_1, odd_1),
        simd.add_f32s(even_2, odd_2),
        simd.sub_f32s(even_2, odd_2),
        simd.mul_add_f32s(splat(-2.5), d, simd.add_f32s(b, f)),
    ]
}

/// The four values of six points.
#[inline(always)]
fn transform_back<S: Simd>(simd: S, [a, b, c, d, e, f]: [S::f32s; 6]) -> [S::f32s; 4] {
    let splat = |value: f32| simd.splat_f32s(value);
    let (sum_1, difference_1) = (simd.add_f32s(b, c), simd.sub_f32s(b, c));
    let (sum_2, difference_2) = (simd.add_f32s(d, e), simd.sub_f32s(d, e));
    let odd =
        |near: f32, far: f32| simd.mul_add_f32s(splat(near), difference_1, simd.mul_f32s(splat(far), difference_2));
    [
        simd.add_f32s(simd.add_f32s(a, sum_1), sum_2),
        odd(HALF_ROOT, ROOT),
        simd.mul_add_f32s(splat(0.5), sum_1, simd.mul_f32s(splat(2.0), sum_2)),
        simd.add_f32s(odd(0.5 * HALF_ROOT, 2.0 * ROOT), f),
    ]
}

/// The six points of three weights.
#[inline(always)]
fn transform_weights<S: Simd>(simd: S, [a, b, c]: [S::f32s; 3]) -> [S::f32s; 6] {
    let splat = |value: f32| simd.splat_f32s(value);
    let even_1 = simd.mul_add_f32s(splat(-2.0 / 3.0), a, simd.mul_f32s(splat(-1.0 / 3.0), c));
    let odd_1 = simd.mul_f32s(splat(-ROOT / 3.0), b);
    let even_2 = simd.mul_add_f32s(splat(1.0 / 6.0), a, simd.mul_f32s(splat(1.0 / 3.0), c));
    let odd_2 = simd.mul_f32s(splat(ROOT / 6.0), b);
    [
        a,
        simd.add_f32s(even_1, odd_1),
        simd.sub_f32s(even_1, odd_1),
        simd.add_f32s(even_2, odd_2),
        simd.sub_f32s(even_2, odd_2),
        c,
    ]
}

impl Pixels<'_> {
    /// A line of pixels with a zero before it, as `[x % 4][x / 4]`: `room` values for each remainder.
    #[inline(always)]
    fn gather(&self, phases: &mut [f32], room: usize, from: &[f32]) {
        // What the line does not reach is zero since it was made.
        let [first, second, third, fourth] = {
            let (first, rest) = phases.split_at_mut(room);
            let (second, rest) = rest.split_at_mut(room);
            let (third, fourth) = rest.split_at_mut(room);
            // The first pixel stands at 1, after the zero.
            [second, third, fourth, &mut first[1..]]
        };
        let mut places = first.iter_mut().zip(second).zip(third).zip(fourth);
        // As many pixels as a tile has begin it; what is left begins the last tile.
        if self.job.repeat == 2 {
            let (pairs, rest) = from.as_chunks::<2>();
            for (pixels, (((a, b), c), d)) in pairs.iter().zip(places.by_ref()) {
                [*a, *b, *c, *d] = [pixels[0], pixels[0], pixels[1], pixels[1]];
            }
            if let ([pixel], Some((((a, b), _), _))) = (rest, places.next()) {
                [*a, *b] = [*pixel; 2];
            }
        } else {
            let (fours, rest) = from.as_chunks::<SIDE>();
            for (pixels, (((a, b), c), d)) in fours.iter().zip(places.by_ref()) {
                [*a, *b, *c, *d] = *pixels;
            }
            if let Some((((a, b), c), _)) = places.next() {
                for (place, pixel) in [a, b, c].into_iter().zip(rest) {
                    *place = *pixel;
                }
            }
        }
    }

    /// Transforms the lines of pixels that some lines of tiles of a row need, as `[y % 4][point][y / 4][tile]`: `room`
    /// values for each point.
    #[inline(always)]
    fn transform_lines<S: Simd>(&self, simd: S, lines: &[Line], channel: usize, room: usize, buffers: &mut Buffers) {
        let (job, across) = (self.job, tiles_across(self.job));
        let plane = (lines[0].row * job.channels + channel) * job.height * job.width;
        let phase = buffers.phases.len() / SIDE;
        for index in 0..SIDE * lines.len() + 2 {
            let points = &mut buffers.points[index % SIDE * 6 * room..][..6 * room];
            let at = index / SIDE * across;
            match (lines[0].y + index).checked_sub(1).filter(|y| *y < job.height * job.repeat) {
                None => points.chunks_exact_mut(room).for_each(|values| values[at..at + across].fill(0.0)),
                Some(y) => {
                    let from = &job.input[plane + y / job.repeat * job.width..][..job.width];
                    self.gather(&mut buffers.phases, phase, from);
                    for first in (0..across).step_by(S::F32_LANES) {
                        let pixels = each(
                            simd,
                            #[inline(always)]
                            |x| load::<S>(&buffers.phases[x % SIDE * phase + first + x / SIDE..]),
                        );
                        for (point, values) in transform_pixels(simd, pixels).into_iter().enumerate() {
                            // What is past the line's end makes room for the next one.
                            store::<S>(&mut points[point * room + at + first..], values);
                        }
                    }
                }
            }
        }
    }
}

/// Memory of a task: one line of pixels, and lines of which the points across are known.
struct Buffers {
    phases: Vec<f32>,
    points: Vec<f32>,
}

impl WithSimd for Pixels<'_> {
    type Output = ();

    #[inline(always)]
    #[expect(unsafe_code, reason = "tasks write to places of their own")]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { job, size, transformed, .. } = self;
        let (lanes, panel) = (S::F32_LANES, tile::width::<S>());
        let (across, channels) = (tiles_across(job), job.channels);
        let together = (TILES_TOGETHER / across).max(1);
        let room = (together + 1) * across + lanes;
        let mut buffers = Buffers {
            // A tile has pixels of the next one, too.
            phases: vec![0.0; SIDE * (across.next_multiple_of(lanes) + lanes)],
            points: vec![0.0; SIDE * 6 * room],
        };
        for channel in self.channels.clone() {
            let mut tile = 0;
            for lines in self.lines.chunk_by(|line, next| line.row == next.row).flat_map(|lines| lines.chunks(together))
            {
                self.transform_lines(simd, lines, channel, room, &mut buffers);
                for first in (0..lines.len() * across).step_by(lanes) {
                    let tile = tile + first;
                    let place = |tile: usize| (tile / panel * channels + channel) * panel + tile % panel;
                    for (point_x, start) in (0..6).map(|point| (point, point * room + first)) {
                        let column = each(
                            simd,
                            #[inline(always)]
                            |y| load::<S>(&buffers.points[y % SIDE * 6 * room + start + y / SIDE * across..]),
                        );
                        for (point_y, values) in transform_pixels(simd, column).into_iter().enumerate() {
                            let point = (point_y * 6 + point_x) * size;
                            // Tiles past the last are the next ones', which come later, or nobody's.
                            if tile % panel + lanes <= panel {
                                let at = point + place(tile);
                                // SAFETY: only this task has these channels, and all wait for it.
                                unsafe { transformed.store::<S>(at, values) };
                                continue;
                            }
                            let mut all = [0.0; LANES_MAX];
                            store::<S>(&mut all, values);
                            for (tile, value) in (tile..).zip(&all[..lanes.min(lines.len() * across - first)]) {
                                let at = point + place(tile);
                                // SAFETY: as above.
                                unsafe { transformed.write(at, &[*value]) };
                            }
                        }
                    }
                }
                tile += lines.len() * across;
            }
        }
    }
}

/// Some outputs of some lines.
struct Outputs<'a> {
    job: &'a Convolution<'a>,
    lines: &'a [Line],
    outputs: Range<usize>,
    /// Transformed pixels of a point.
    size: usize,
    pixels: &'a [f32],
    /// For each of the points, outputs by [`CHANNELS`].
    weights: &'a mut [f32],
    /// For each of the points, outputs by tiles.
    products: &'a mut [f32],
    target: Target,
}

impl Outputs<'_> {
    /// Transforms the weights of the outputs for some channels: for each of the points, outputs by [`CHANNELS`].
    #[inline(always)]
    fn transform_weights<S: Simd>(&mut self, simd: S, channels: Range<usize>) {
        let lanes = S::F32_LANES;
        let point_size = self.outputs.len() * CHANNELS + GAP;
        let mut room = [0.0; CHANNELS * TAPS];
        // Each of the nine weights of many channels.
        let mut nine = [[0.0; LANES_MAX]; TAPS];
        for (index, output) in self.outputs.clone().enumerate() {
            let start = output * self.job.channels * TAPS;
            let range = start + channels.start * TAPS..start + channels.end * TAPS;
            let weight = self.job.weight.slice(range).wide(&mut room);
            for first in (0..channels.len()).step_by(lanes) {
                for (channel, weights) in weight[first * TAPS..].chunks_exact(TAPS).take(lanes).enumerate() {
                    for (values, weight) in nine.iter_mut().zip(weights) {
                        values[channel] = *weight;
                    }
                }
                let mut rows = [[simd.splat_f32s(0.0); 3]; 6];
                for x in 0..3 {
                    let three = [load::<S>(&nine[x]), load::<S>(&nine[3 + x]), load::<S>(&nine[6 + x])];
                    for (row, point) in rows.iter_mut().zip(transform_weights(simd, three)) {
                        row[x] = point;
                    }
                }
                for (y, row) in rows.into_iter().enumerate() {
                    let points = transform_weights(simd, row);
                    for (x, values) in points.into_iter().enumerate() {
                        let at = (y * 6 + x) * point_size + index * CHANNELS + first;
                        store::<S>(&mut self.weights[at..], values);
                    }
                }
            }
        }
    }

    /// Transforms the products of one output back, and writes its pixels.
    #[inline(always)]
    #[expect(unsafe_code, reason = "tasks write to places of their own")]
    fn finish<S: Simd>(&self, simd: S, index: usize, stride: usize) {
        let job = self.job;
        let (lanes, across) = (S::F32_LANES, tiles_across(job));
        let [full_height, full_width] = job.output_size();
        let output = self.outputs.start + index;
        let bias = simd.splat_f32s(job.bias[output]);
        let point_size = self.outputs.len() * stride + GAP;
        let mut phases = [[0.0; LANES_MAX]; SIDE];
        let mut mixed = [0.0; LANES_MAX * SIDE];
        // Lines of few tiles share vectors.
        let tiles = self.lines.len() * across;
        for first in (0..tiles).step_by(lanes) {
            let at = index * stride + first;
            let mut rows = [[simd.splat_f32s(0.0); 6]; SIDE];
            for x in 0..6 {
                let points = each(
                    simd,
                    #[inline(always)]
                    |y| load::<S>(&self.products[(y * 6 + x) * point_size + at..]),
                );
                for (row, values) in rows.iter_mut().zip(transform_back(simd, points)) {
                    row[x] = values;
                }
            }
            let end = tiles.min(first + lanes);
            for (y, row) in rows.into_iter().enumerate() {
                for (phases, values) in phases.iter_mut().zip(transform_back(simd, row)) {
                    store::<S>(phases, simd.add_f32s(values, bias));
                }
                interleave(&phases, &mut mixed, lanes);
                let mut tile = first;
                while tile < end {
                    let (line, x) = (self.lines[tile / across], tile % across);
                    let next = end.min(tile - x + across);
                    let pixels = (SIDE * (next - tile)).min(full_width - SIDE * x);
                    if line.y + y < full_height {
                        let plane = (line.row * job.bias.len() + output) * full_height;
                        let start = (plane + line.y + y) * full_width + SIDE * x;
                        // SAFETY: only this task has these outputs, and the memory outlives all tasks.
                        unsafe { self.target.write(start, &mixed[SIDE * (tile - first)..][..pixels]) };
                    }
                    tile = next;
                }
            }
        }
    }
}

/// Pixels of tiles, which stand by their places in these, one after the other. Four tiles at a time are so written that the
/// compiler makes shuffles of it.
#[inline(always)]
fn interleave(phases: &[[f32; LANES_MAX]; SIDE], mixed: &mut [f32; LANES_MAX * SIDE], tiles: usize) {
    let [a, b, c, d] = phases;
    let (a, b, c, d) = (a.as_chunks::<4>().0, b.as_chunks::<4>().0, c.as_chunks::<4>().0, d.as_chunks::<4>().0);
    let places = mixed.as_chunks_mut::<16>().0;
    for ((((place, a), b), c), d) in places.iter_mut().zip(a).zip(b).zip(c).zip(d).take(tiles.div_ceil(4)) {
        *place = [a[0], b[0], c[0], d[0], a[1], b[1], c[1], d[1], a[2], b[2], c[2], d[2], a[3], b[3], c[3], d[3]];
    }
}

impl WithSimd for Outputs<'_> {
    type Output = ();

    #[inline(always)]
    #[expect(unsafe_code, reason = "products go to memory of the task's own")]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let job = self.job;
        let width = tile::width::<S>();
        let rows = self.outputs.len();
        let tiles = self.lines.len() * tiles_across(job);
        let stride = tiles.next_multiple_of(WIDTH_MAX) + WIDTH_MAX;
        for first in (0..job.channels).step_by(CHANNELS) {
            let channels = first..job.channels.min(first + CHANNELS);
            self.transform_weights(simd, channels.clone());
            let products = Target::new(self.products);
            let begin = if first == 0 { Begin::Zero } else { Begin::Output };
            for point in 0..POINTS {
                let left = Left {
                    values: Numbers::F32(&self.weights[point * (rows * CHANNELS + GAP)..]),
                    stride: CHANNELS,
                    rows,
                    depth: channels.len(),
                };
                let panels = Panels { values: &self.pixels[point * self.size + first * width..], lines: job.channels };
                let start = point * (rows * stride + GAP);
                // SAFETY: the products are this task's own.
                unsafe { tile::multiply(simd, left, panels, tiles, begin, (products, start, stride)) };
            }
        }
        for index in 0..rows {
            self.finish(simd, index, stride);
        }
    }
}
