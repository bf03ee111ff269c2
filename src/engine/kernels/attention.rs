//! Attention without the matrix of scores: some queries at a time meet some keys at a time.
//!
//! Dao et al., "FlashAttention" (2022), and Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018).
//! Queries are columns of a panel, so the scores of a block of keys come out as the panel that the values are multiplied
//! with next, and all sums over keys run down the columns. Blocks of keys are the same whatever else is computed, and so
//! are the bytes of a result.

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::function::exp2;
use super::numbers::Numbers;
use super::scratch::Scratch;
use super::tile::{self, Begin, Left, Panels, Target, dispatch, load, store};

/// Keys of a block: their scores for a panel of queries stay in the first cache.
const KEYS: usize = 256;
/// Queries of a task: keys and values of a block are used for all of them before the next.
const QUERIES: usize = 128;

/// `query (n, d, t)` attends to `key (n, d, s)` and `value (n, d, s)`: `(n, d, t)`. Scores, to which `mask (s, t)` or
/// `(n, s, t)` is added if there is one, are multiplied by `scale`.
#[derive(Debug)]
pub(crate) struct Attention<'a> {
    pub(crate) query: &'a [f32],
    pub(crate) key: &'a [f32],
    pub(crate) value: &'a [f32],
    pub(crate) mask: Option<&'a [f32]>,
    pub(crate) heads: usize,
    pub(crate) width: usize,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) scale: f32,
}

impl Attention<'_> {
    /// Computes it, into memory of its own.
    ///
    /// # Panics
    /// If there are not as many values as there should be.
    #[expect(unsafe_code, reason = "every value is written once, by tasks")]
    pub(crate) fn run(&self) -> Vec<f32> {
        let Self { heads, width, queries, keys, .. } = *self;
        assert_eq!(self.query.len(), heads * width * queries, "queries");
        assert_eq!(self.key.len(), heads * width * keys, "keys");
        assert_eq!(self.value.len(), heads * width * keys, "values");
        let masked = |mask: &[f32]| mask.len() == keys * queries || mask.len() == heads * keys * queries;
        assert!(self.mask.is_none_or(masked), "a mask");
        let length = heads * width * queries;
        if length == 0 || keys == 0 {
            return vec![0.0; length];
        }
        // Every key as a row.
        let mut rows = Scratch::new(heads * keys * width);
        rows.par_chunks_mut(keys * width).zip(self.key.par_chunks(keys * width)).for_each(|(rows, columns)| {
            for (index, row) in rows.chunks_exact_mut(width).enumerate() {
                for (value, column) in row.iter_mut().zip(columns.chunks_exact(keys)) {
                    *value = column[index];
                }
            }
        });
        let groups = queries.div_ceil(QUERIES);
        let compute = |target| {
            (0..heads * groups).into_par_iter().for_each(|index| {
                let (head, group) = (index / groups, index % groups);
                let queries = group * QUERIES..queries.min((group + 1) * QUERIES);
                let keys = &rows[head * keys * width..][..keys * width];
                dispatch(Task { job: self, head, queries, keys, target });
            });
        };
        // SAFETY: the tasks are all queries of all heads.
        unsafe { tile::written(length, compute) }
    }
}

struct Task<'a> {
    job: &'a Attention<'a>,
    head: usize,
    queries: Range<usize>,
    /// `(s, d)`
    keys: &'a [f32],
    target: Target,
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    #[expect(unsafe_code, reason = "tasks write to places of their own")]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { job, head, queries, keys, target } = self;
        let (lanes, panel, width) = (S::F32_LANES, tile::width::<S>(), job.width);
        let count = queries.len();
        let panels = count.div_ceil(panel);
        let scale = job.scale * std::f32::consts::LOG2_E;
        // Panels of queries, already scaled, and of the values' weighted sums; the scores of one panel with one block; for
        // each query, the largest score so far, and the sum of the weights relative to it.
        let mut scratch = Scratch::new(2 * QUERIES * width + KEYS * panel + 2 * QUERIES);
        let (packed, rest) = scratch.split_at_mut(QUERIES * width);
        let (all_sums, rest) = rest.split_at_mut(QUERIES * width);
        let (all_scores, rest) = rest.split_at_mut(KEYS * panel);
        let (all_largest, all_weights) = rest.split_at_mut(QUERIES);
        packed.fill(0.0);
        for dimension in 0..width {
            let line = &job.query[(head * width + dimension) * job.queries..][queries.clone()];
            for (index, values) in line.chunks(panel).enumerate() {
                let place = &mut packed[(index * width + dimension) * panel..][..values.len()];
                place.iter_mut().zip(values).for_each(|(place, value)| *place = value * scale);
            }
        }
        all_sums.fill(0.0);
        // Less than any score, and no infinity, from which a score of minus infinity could not be told.
        all_largest.fill(f32::MIN);
        all_weights.fill(0.0);
        let values = &job.value[head * width * job.keys..][..width * job.keys];
        for first in (0..job.keys).step_by(KEYS) {
            let block = KEYS.min(job.keys - first);
            for index in 0..panels {
                let scores = &mut all_scores[..block * panel];
                let begin = match job.mask {
                    None => Begin::Zero,
                    Some(mask) => {
                        let lines = &mask[head * job.keys * job.queries % mask.len()..][first * job.queries..];
                        let columns =
                            queries.start + index * panel..queries.end.min(queries.start + (index + 1) * panel);
                        for (scores, line) in scores.chunks_exact_mut(panel).zip(lines.chunks_exact(job.queries)) {
                            let line = &line[columns.clone()];
                            scores.iter_mut().zip(line).for_each(|(score, mask)| *score = mask * scale);
                            // Columns of no query.
                            scores[line.len()..].fill(0.0);
                        }
                        Begin::Output
                    }
                };
                let queries = Panels { values: &packed[index * width * panel..], lines: width };
                let left =
                    Left { values: Numbers::F32(&keys[first * width..]), stride: width, rows: block, depth: width };
                // SAFETY: the scores are this task's own.
                unsafe { tile::multiply(simd, left, queries, panel, begin, (Target::new(scores), 0, panel)) };
                let sums = &mut all_sums[index * width * panel..][..width * panel];
                for part in 0..2 {
                    let at = index * panel + part * lanes;
                    let before = load::<S>(&all_largest[at..]);
                    let mut largest = before;
                    for line in scores.chunks_exact(panel) {
                        largest = simd.max_f32s(largest, load::<S>(&line[part * lanes..]));
                    }
                    let mut total = simd.splat_f32s(0.0);
                    for line in scores.chunks_exact_mut(panel) {
                        let score = load::<S>(&line[part * lanes..]);
                        let weight = exp2(simd, simd.sub_f32s(score, largest));
                        total = simd.add_f32s(total, weight);
                        store::<S>(&mut line[part * lanes..], weight);
                    }
                    // What was summed so far was relative to the largest before.
                    let shrink = exp2(simd, simd.sub_f32s(before, largest));
                    let weights = load::<S>(&all_weights[at..]);
                    store::<S>(&mut all_weights[at..], simd.mul_add_f32s(weights, shrink, total));
                    store::<S>(&mut all_largest[at..], largest);
                    for line in sums.chunks_exact_mut(panel) {
                        let sum = load::<S>(&line[part * lanes..]);
                        store::<S>(&mut line[part * lanes..], simd.mul_f32s(sum, shrink));
                    }
                }
                let left = Left { values: Numbers::F32(&values[first..]), stride: job.keys, rows: width, depth: block };
                let scores = Panels { values: scores, lines: block };
                // SAFETY: the sums are this task's own.
                unsafe { tile::multiply(simd, left, scores, panel, Begin::Output, (Target::new(sums), 0, panel)) };
            }
        }
        for dimension in 0..width {
            let start = (head * width + dimension) * job.queries + queries.start;
            for index in 0..panels {
                let sums = &mut all_sums[(index * width + dimension) * panel..][..panel];
                for (sum, weight) in sums.iter_mut().zip(&all_weights[index * panel..]) {
                    *sum /= weight;
                }
                let (first, rest) = (start + index * panel, panel.min(count - index * panel));
                // SAFETY: only this task has these queries of this head, and the output outlives all tasks.
                unsafe { target.write(first, &sums[..rest]) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::tiny;

    #[test]
    fn attention_agrees_with_double_precision() {
        // Heads, width, queries, keys: whole and broken panels and blocks; scores so small and so large that one key wins.
        // Masks for all heads, and for each.
        for (heads, width, queries, keys, scale, masks) in [
            (1, 1, 1, 1, 1.0, 0),
            (3, 7, 45, 300, 2.0, 0),
            (2, 40, 256, 512, 0.1, 0),
            (2, 8, 130, 77, 40.0, 0),
            (1, 64, 20, 1000, 9.0, 0),
            (2, 8, 77, 77, 0.5, 1),
            (3, 5, 300, 600, 2.0, 1),
            (3, 5, 145, 290, 2.0, 3),
        ] {
            let values = |name: &str, length: usize| -> Vec<f32> {
                let spread = (tiny::tensor(name, &[heads * width, 1, length]) * (length as f64).sqrt()).unwrap();
                spread.flatten_all().unwrap().to_vec1().unwrap()
            };
            let (query, key, value) = (values("query", queries), values("key", keys), values("value", keys));
            let at = |values: &[f32], length: usize, head: usize, dimension: usize, index: usize| {
                f64::from(values[(head * width + dimension) * length + index])
            };
            // The first query sees the last key only, of whichever block.
            let masks: Vec<f32> = (0..masks * keys * queries)
                .map(|index| match (index / queries % keys, index % queries) {
                    (key, 0) if key + 1 < keys => f32::NEG_INFINITY,
                    (key, query) => (index / (keys * queries)) as f32 + 0.01 * key as f32 - 0.02 * query as f32,
                })
                .collect();
            let masked = |head: usize, index: usize, other: usize| match masks.len() {
                0 => 0.0,
                length => f64::from(masks[(head * keys + other) * queries % length + index]),
            };
            let mask = (!masks.is_empty()).then_some(&masks[..]);
            let (query, key, value) = (&query[..], &key[..], &value[..]);
            let job = Attention { query, key, value, mask, heads, width, queries, keys, scale: scale as f32 };
            let found = job.run();
            for head in 0..heads {
                for index in 0..queries {
                    let scores: Vec<f64> = (0..keys)
                        .map(|other| {
                            let terms =
                                (0..width).map(|d| at(query, queries, head, d, index) * at(key, keys, head, d, other));
                            (terms.sum::<f64>() + masked(head, index, other)) * scale
                        })
                        .collect();
                    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    for dimension in 0..width {
                        let terms = (0..keys).map(|other| weights[other] * at(value, keys, head, dimension, other));
                        let exact = terms.sum::<f64>() / total;
                        let found = at(&found, queries, head, dimension, index);
                        // Of large scores the last bits are whole units.
                        let close = 3e-6 * (1.0 + largest.abs());
                        assert!((found - exact).abs() <= close, "{heads} {width} {queries} {keys}: {found}, {exact}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_not_a_number_is_seen_in_the_result() {
        let (mut query, key) = (vec![0.5; 4 * 20], vec![0.25; 4 * 30]);
        query[20 + 3] = f32::NAN;
        let (query, key) = (&query[..], &key[..]);
        let (heads, width, queries, keys, scale) = (1, 4, 20, 30, 1.0);
        let found = Attention { query, key, value: key, mask: None, heads, width, queries, keys, scale }.run();
        let wrong: Vec<usize> = (0..80).filter(|index| found[*index].is_nan()).collect();
        assert_eq!(wrong, [3, 23, 43, 63], "the query that was wrong, in each of its values");
    }
}
