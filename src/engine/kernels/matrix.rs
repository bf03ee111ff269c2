//! A matrix of weights times the columns of each row of a batch.

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::numbers::Numbers;
use super::scratch::Scratch;
use super::tile::{self, Begin, COLUMNS, DEPTH, Division, Left, Panels, Target, WIDTH_MAX, dispatch};

/// `weight (outputs, terms) @ right (b, terms, columns)`, plus a bias `(outputs)` if there is one: `(b, outputs, columns)`.
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
        let packed = DEPTH.min(self.terms) * COLUMNS.min(self.columns.next_multiple_of(WIDTH_MAX));
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
        for first in (0..product.terms).step_by(DEPTH) {
            let depth = DEPTH.min(product.terms - first);
            for term in 0..depth {
                let line = &right[(first + term) * product.columns..][columns.clone()];
                let (whole, rest) = line.split_at(count - count % width);
                for (panel, chunk) in whole.chunks_exact(width).enumerate() {
                    panels[(panel * depth + term) * width..][..width].copy_from_slice(chunk);
                }
                if !rest.is_empty() {
                    // What stands behind it is multiplied, and nobody's.
                    panels[(count / width * depth + term) * width..][..rest.len()].copy_from_slice(rest);
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
            let panels = Panels { values: panels, lines: depth };
            // SAFETY: no other task has these rows of these columns, and the output outlives all tasks.
            unsafe { tile::multiply(simd, left, panels, count, begin, (target, start, product.columns)) };
        }
    }
}
