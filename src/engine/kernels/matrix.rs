//! A matrix of weights times the columns of each row of a batch.

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::numbers::Numbers;
use super::pairs::pack;
use super::scratch::Scratch;
use super::tile::{self, Begin, COLUMNS, DEPTH, Division, Left, Panels, Target, WIDTH_MAX, dispatch, terms_of_line};

/// `weight (outputs, terms) @ right (b, terms, columns)`, plus a bias `(outputs)` if there is one: `(b, outputs, columns)`.
/// Where the weights are bf16, the right matrix is rounded to it.
#[derive(Debug)]
pub(crate) struct Product<'a> {
    pub(crate) weight: Numbers<'a>,
    pub(crate) outputs: usize,
    pub(crate) terms: usize,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) batch: usize,
    pub(crate) columns: usize,
    pub(crate) right: &'a [f32],
}

impl Product<'_> {
    /// Computes it, into memory of its own.
    ///
    /// # Panics
    /// If a matrix has not the values that it should have.
    #[expect(unsafe_code, reason = "every value is written once, by tasks")]
    pub(crate) fn run(&self) -> Vec<f32> {
        assert_eq!(self.weight.len(), self.outputs * self.terms, "weights");
        assert_eq!(self.right.len(), self.batch * self.terms * self.columns, "a right matrix");
        assert!(self.bias.is_none_or(|bias| bias.len() == self.outputs), "a bias for each output");
        let length = self.batch * self.outputs * self.columns;
        if self.terms == 0 || length == 0 {
            return vec![0.0; length];
        }
        let division = Division::new(self.batch, self.columns.div_ceil(COLUMNS), self.outputs);
        let lines = self.terms.div_ceil(terms_of_line(self.weight));
        let packed = DEPTH.min(lines) * COLUMNS.min(self.columns.next_multiple_of(WIDTH_MAX));
        let compute = |target| {
            (0..division.tasks()).into_par_iter().for_each_init(
                || Scratch::new(packed),
                |panels, index| {
                    let (row, strip, rows) = division.task(index);
                    let columns = strip * COLUMNS..self.columns.min((strip + 1) * COLUMNS);
                    dispatch(Task { product: self, row, columns, rows, panels, target });
                },
            );
        };
        // SAFETY: the tasks are all rows of all columns.
        unsafe { tile::written(length, compute) }
    }
}

/// Some outputs of a strip of columns.
struct Task<'a> {
    product: &'a Product<'a>,
    row: usize,
    columns: Range<usize>,
    rows: Range<usize>,
    panels: &'a mut [f32],
    target: Target,
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    #[expect(unsafe_code, reason = "tasks write to places of their own")]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { product, row, columns, rows, panels, target } = self;
        let width = tile::width::<S>();
        let count = columns.len();
        let start = (row * product.outputs + rows.start) * product.columns + columns.start;
        let right = &product.right[row * product.terms * product.columns..];
        let per_line = terms_of_line(product.weight);
        for first in (0..product.terms).step_by(DEPTH * per_line) {
            let depth = (DEPTH * per_line).min(product.terms - first);
            let lines = depth.div_ceil(per_line);
            let term = |term: usize| &right[(first + term) * product.columns..][columns.clone()];
            for line in 0..lines {
                // What stands behind a last panel that is not whole is multiplied, and nobody's.
                let mut places = panels.chunks_exact_mut(width).skip(line).step_by(lines);
                if per_line == 1 {
                    let (whole, rest) = term(line).split_at(count - count % width);
                    for (chunk, place) in whole.chunks_exact(width).zip(places.by_ref()) {
                        place.copy_from_slice(chunk);
                    }
                    if let Some(place) = places.next() {
                        place[..rest.len()].copy_from_slice(rest);
                    }
                } else {
                    let second = (2 * line + 1 < depth).then(|| term(2 * line + 1));
                    for ((panel, place), first) in places.enumerate().zip(term(2 * line).chunks(width)) {
                        let columns = panel * width..panel * width + first.len();
                        pack(first, second.map(|second| &second[columns]), place);
                    }
                }
            }
            let left = Left {
                values: product.weight.slice(rows.start * product.terms + first..product.weight.len()),
                stride: product.terms,
                rows: rows.len(),
                depth,
            };
            let begin = match product.bias {
                _ if first > 0 => Begin::Output,
                Some(bias) => Begin::Rows(&bias[rows.clone()]),
                None => Begin::Zero,
            };
            let panels = Panels { values: panels, lines };
            // SAFETY: no other task has these rows of these columns, and the output outlives all tasks.
            unsafe { tile::multiply(simd, left, panels, count, begin, (target, start, product.columns)) };
        }
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::engine::tiny;

    #[test]
    fn products_agree_with_double_precision() {
        // Outputs, terms, columns: whole and broken tiles, panels and depths.
        for (outputs, terms, columns) in [(1, 1, 1), (13, 7, 31), (8, 256, 64), (21, 513, 290), (30, 1030, 33)] {
            // Of few bits, and not too small, so that every format has them.
            let values = |name: &str, shape: &[usize]| -> Vec<f32> {
                let values: Vec<f32> = tiny::tensor(name, shape).flatten_all().unwrap().to_vec1().unwrap();
                values.into_iter().map(|value| bf16::from_f32(value).to_f32()).collect()
            };
            let halves: Vec<f16> = values("weight", &[outputs, terms]).into_iter().map(f16::from_f32).collect();
            let weight: Vec<f32> = halves.iter().map(|weight| weight.to_f32()).collect();
            let uppers: Vec<bf16> = weight.iter().map(|weight| bf16::from_f32(*weight)).collect();
            let (bias, right) = (values("bias", &[outputs]), values("right", &[2, terms, columns]));
            let finer: Vec<f32> = right.iter().map(|value| value * (1.0 + 1e-4)).collect();
            let run = |weight: Numbers<'_>, right: &[f32]| {
                Product { weight, outputs, terms, bias: Some(&bias), batch: 2, columns, right }.run()
            };
            let found = run(Numbers::F32(&weight), &right);
            assert!(run(Numbers::F16(&halves), &right) == found, "{outputs}, {terms}, {columns}");
            let in_pairs = run(Numbers::Bf16(&uppers), &right);
            assert!(run(Numbers::Bf16(&uppers), &finer) == in_pairs, "the right matrix is rounded");
            for (index, (found, in_pairs)) in found.into_iter().zip(in_pairs).enumerate() {
                let (row, output, column) = (index / (outputs * columns), index / columns % outputs, index % columns);
                let products = (0..terms).map(|term| {
                    let value = right[(row * terms + term) * columns + column];
                    f64::from(weight[output * terms + term]) * f64::from(value)
                });
                let exact = f64::from(bias[output]) + products.sum::<f64>();
                for found in [found, in_pairs] {
                    assert!(
                        (f64::from(found) - exact).abs() <= 1e-5,
                        "{outputs}, {terms}, {columns}: {found}, {exact}"
                    );
                }
            }
        }
    }
}
