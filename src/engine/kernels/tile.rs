//! The product that all others are made of: a few rows times a panel of columns, summed in registers.
//!
//! The left matrix is read where it lies, so weights are never copied or packed; those of f16 are made wider, a few rows at a
//! time, and those of bf16 are multiplied by pairs of such numbers (`pairs`). The right one comes as panels of [`width`]
//! columns, one depth after the other, which whoever has the activations makes as he reads them, or as lines that stand
//! anywhere. Every sum is made in one order, each of its terms fused with its addition. So an output has the same bytes
//! whichever rows and columns it is computed with, on however many threads, and on every processor with any vector width.
//!
//! The shape of the loops is that of Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008).

use std::mem::MaybeUninit;
use std::ops::Range;

use half::bf16;
use pulp::{Arch, Simd, WithSimd};

use super::numbers::Numbers;
#[cfg(target_arch = "x86_64")]
use super::pairs;
use super::pairs::Pairs;

/// Rows that are summed at once, by any processor.
pub(crate) const ROWS_MAX: usize = 8;
/// Lines of a panel: so many of its columns and of the rows that are summed at once stay in the first cache.
pub(crate) const DEPTH: usize = 256;
/// Terms of any left matrix that is made wider.
const NARROW_DEPTH_MAX: usize = 288;
/// Columns of all panels that are used together: they stay in the second cache.
pub(crate) const COLUMNS: usize = 256;

/// Values of the widest vectors that any processor has, and columns of their panels.
pub(crate) const LANES_MAX: usize = 16;
pub(crate) const WIDTH_MAX: usize = 2 * LANES_MAX;

/// Rows that are summed at once: with two vectors of columns each they fill 16 registers, those of AVX2. AVX-512 and Arm have
/// 32, and channels are multiples of 8.
#[inline(always)]
const fn rows_together<S: Simd>() -> usize {
    if S::REGISTER_COUNT < 32 { 6 } else { ROWS_MAX }
}

/// Columns of a panel: two vectors.
#[inline(always)]
pub(crate) const fn width<S: Simd>() -> usize {
    2 * S::F32_LANES
}

/// The best vectors of this processor. Tasks that pass panels to each other must have asked together.
pub(crate) fn processor() -> Arch {
    #[cfg(test)]
    if PLAIN.load(std::sync::atomic::Ordering::Relaxed) {
        return Arch::Scalar;
    }
    Arch::new()
}

/// Runs `operation` compiled for the best vectors of this processor.
#[inline]
pub(crate) fn dispatch<Operation: WithSimd>(operation: Operation) -> Operation::Output {
    processor().dispatch(operation)
}

/// Whether to do without vectors. Whoever else asks meanwhile gets the same bytes.
#[cfg(test)]
pub(crate) static PLAIN: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// The vector that begins `values`.
#[inline(always)]
#[expect(unsafe_code, reason = "vectors are read where they lie")]
pub(crate) fn load<S: Simd>(values: &[f32]) -> S::f32s {
    let values = &values[..S::F32_LANES];
    // SAFETY: so many values are there, and any bits are a vector of them.
    unsafe { values.as_ptr().cast::<S::f32s>().read_unaligned() }
}

/// Writes a vector to where `values` begin.
#[inline(always)]
#[expect(unsafe_code, reason = "as above")]
pub(crate) fn store<S: Simd>(values: &mut [f32], vector: S::f32s) {
    let values = &mut values[..S::F32_LANES];
    // SAFETY: there is room for so many values.
    unsafe { values.as_mut_ptr().cast::<S::f32s>().write_unaligned(vector) }
}

/// What outputs are before the first term is added.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Begin<'a> {
    /// 0.
    Zero,
    /// One value for each row.
    Rows(&'a [f32]),
    /// What stands there.
    Output,
}

/// Rows of a matrix, each of them `depth` values, the first of which stand `stride` apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left<'a> {
    pub(crate) values: Numbers<'a>,
    pub(crate) stride: usize,
    pub(crate) rows: usize,
    pub(crate) depth: usize,
}

impl Left<'_> {
    /// Lines of the right matrix: of two terms each, where these are bf16.
    #[inline(always)]
    fn lines(self) -> usize {
        self.depth.div_ceil(terms_of_line(self.values))
    }
}

/// Terms that stand in a word of the right matrix, by what it is multiplied with.
#[inline(always)]
pub(crate) fn terms_of_line(left: Numbers<'_>) -> usize {
    match left {
        Numbers::F32(_) | Numbers::F16(_) => 1,
        Numbers::Bf16(_) => 2,
    }
}

/// The right matrix of a product, as [`multiply`] reads it: lines of words, each an f32, or two bf16 that are terms of the
/// same column where the left one is bf16.
///
/// # Safety
/// Where [`Self::check`] does not panic, [`Self::line`] gives places that may be read, each the first of `width` words.
#[expect(unsafe_code, reason = "what is read is checked before the loop, not in it")]
pub(crate) unsafe trait Right: Copy {
    /// Checks that there are `lines` of so many columns, or as many more as make up the last panel.
    ///
    /// # Panics
    /// If there are not.
    fn check(self, columns: usize, lines: usize, width: usize);

    /// Where the columns of a panel stand in a line.
    ///
    /// # Safety
    /// The panel and the line are among those that were checked.
    unsafe fn line(self, panel: usize, line: usize, width: usize) -> *const f32;
}

/// A matrix as panels of [`width`] columns, each with its lines one after the other. Lines may be left out before and after
/// those that are used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panels<'a> {
    /// From the first line that is used on.
    pub(crate) values: &'a [f32],
    /// Lines from one panel to the next.
    pub(crate) lines: usize,
}

// SAFETY: the last line of the last panel is within the values, and so are all before it.
#[expect(unsafe_code, reason = "as there")]
unsafe impl Right for Panels<'_> {
    #[inline(always)]
    fn check(self, columns: usize, lines: usize, width: usize) {
        let last = (columns.div_ceil(width) - 1) * self.lines + lines;
        assert!(last * width <= self.values.len(), "panels of {}", self.values.len());
    }

    #[inline(always)]
    unsafe fn line(self, panel: usize, line: usize, width: usize) -> *const f32 {
        // SAFETY: the caller's promise.
        unsafe { self.values.as_ptr().add((panel * self.lines + line) * width) }
    }
}

/// A matrix whose lines stand anywhere, and may overlap.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lines<'a> {
    pub(crate) values: &'a [f32],
    /// Where each line begins.
    pub(crate) offsets: &'a [usize],
}

// SAFETY: the line that begins last ends within the values, and so do all others.
#[expect(unsafe_code, reason = "as there")]
unsafe impl Right for Lines<'_> {
    #[inline(always)]
    fn check(self, columns: usize, lines: usize, width: usize) {
        let last = self.offsets[..lines].iter().max().map_or(0, |last| last + columns.next_multiple_of(width));
        assert!(last <= self.values.len(), "lines of {}", self.values.len());
    }

    #[inline(always)]
    unsafe fn line(self, panel: usize, line: usize, width: usize) -> *const f32 {
        // SAFETY: the caller's promise.
        unsafe { self.values.as_ptr().add(*self.offsets.get_unchecked(line) + panel * width) }
    }
}

/// How an operation is divided into tasks: each has some outputs of a strip of a row of the batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Division {
    batch: usize,
    strips: usize,
    outputs: usize,
    /// Outputs of a task, and tasks of a strip.
    part: usize,
    parts: usize,
}

impl Division {
    /// Tasks make what they need of a strip for themselves, so its outputs are only divided where there are few strips.
    pub(crate) fn new(batch: usize, strips: usize, outputs: usize) -> Self {
        let wanted = 2 * rayon::current_num_threads();
        let parts = wanted.div_ceil(strips * batch).clamp(1, outputs.div_ceil(ROWS_MAX));
        let part = outputs.div_ceil(parts).next_multiple_of(ROWS_MAX);
        Self { batch, strips, outputs, part, parts: outputs.div_ceil(part) }
    }

    /// How many tasks there are.
    pub(crate) fn tasks(self) -> usize {
        self.batch * self.strips * self.parts
    }

    /// Outputs of a task at most.
    pub(crate) fn outputs_max(self) -> usize {
        self.part.min(self.outputs)
    }

    /// The row, the strip and the outputs of a task.
    pub(crate) fn task(self, index: usize) -> (usize, usize, Range<usize>) {
        let (index, part) = (index / self.parts, index % self.parts);
        let outputs = part * self.part..self.outputs.min((part + 1) * self.part);
        (index / self.strips, index % self.strips, outputs)
    }
}

/// `length` values that `write` writes, which gets where: memory that is fresh or was cleared would be touched twice.
///
/// # Safety
/// `write` writes every value.
#[expect(unsafe_code, reason = "the caller's promise")]
pub(crate) unsafe fn written(length: usize, write: impl FnOnce(Target)) -> Vec<f32> {
    let mut values = Vec::with_capacity(length);
    write(Target { pointer: values.as_mut_ptr(), length });
    // SAFETY: there is room for so many, and the rest is the caller's promise.
    unsafe { values.set_len(length) };
    values
}

/// Where the tasks of one operation write, each to places of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pointer: *mut f32,
    length: usize,
}

// SAFETY: it is only written through, by functions that demand that no place is written by two.
#[expect(unsafe_code, reason = "tasks write to columns of the same rows, which no slice can say")]
unsafe impl Send for Target {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "as above")]
unsafe impl Sync for Target {}

impl Target {
    pub(crate) fn new(values: &mut [f32]) -> Self {
        Self { pointer: values.as_mut_ptr(), length: values.len() }
    }

    /// Writes `values` to the places from `start` on.
    ///
    /// # Safety
    /// Nobody else uses them meanwhile, and what they are part of is still there.
    #[inline(always)]
    #[expect(unsafe_code, reason = "the caller's promise")]
    pub(crate) unsafe fn write(self, start: usize, values: &[f32]) {
        assert!(start <= self.length && values.len() <= self.length - start, "{start} of {}", self.length);
        // SAFETY: within what it was made of, as just checked; the rest is the caller's promise.
        unsafe { self.pointer.add(start).copy_from_nonoverlapping(values.as_ptr(), values.len()) };
    }

    /// Writes a vector to the places from `start` on.
    ///
    /// # Safety
    /// As above.
    #[inline(always)]
    #[expect(unsafe_code, reason = "the caller's promise")]
    pub(crate) unsafe fn store<S: Simd>(self, start: usize, vector: S::f32s) {
        assert!(start <= self.length && S::F32_LANES <= self.length - start, "{start} of {}", self.length);
        // SAFETY: as above.
        unsafe { self.pointer.add(start).cast::<S::f32s>().write_unaligned(vector) };
    }
}

/// Adds to `columns` columns of `target`, whose rows begin at `start` and stand `stride` apart, `left` times `right`.
///
/// As many lines of the right matrix are used as `left` has terms, or half as many if it is of bf16; columns past `columns`
/// are not.
///
/// # Safety
/// Nobody else uses these places of the target meanwhile, and what it was made of is still there.
#[inline(always)]
#[expect(unsafe_code, reason = "the caller's promise")]
pub(crate) unsafe fn multiply<S: Simd, R: Right>(
    simd: S,
    left: Left<'_>,
    right: R,
    columns: usize,
    begin: Begin<'_>,
    (target, start, stride): (Target, usize, usize),
) {
    let (width, depth) = (width::<S>(), left.depth);
    if left.rows == 0 || columns == 0 {
        return;
    }
    assert!((left.rows - 1) * left.stride + depth <= left.values.len(), "a left matrix of {}", left.values.len());
    assert!(depth <= NARROW_DEPTH_MAX || !matches!(left.values, Numbers::F16(_)), "{depth} terms to make wider");
    right.check(columns, left.lines(), width);
    assert!(start + (left.rows - 1) * stride + columns <= target.length, "a target of {}", target.length);
    if let Begin::Rows(values) = begin {
        assert!(values.len() >= left.rows, "{} first values", values.len());
    }
    let mut wide;
    let room = match left.values {
        Numbers::F32(_) | Numbers::Bf16(_) => &mut [][..],
        Numbers::F16(_) => {
            wide = [0.0; ROWS_MAX * NARROW_DEPTH_MAX];
            &mut wide[..]
        }
    };
    for row in (0..left.rows).step_by(rows_together::<S>()) {
        let count = rows_together::<S>().min(left.rows - row);
        let rows = match left.values {
            Numbers::F32(values) => Rows::Wide(values[row * left.stride..].as_ptr(), left.stride),
            Numbers::F16(_) => {
                for (index, room) in room.chunks_exact_mut(depth).take(count).enumerate() {
                    left.values.slice((row + index) * left.stride..(row + index) * left.stride + depth).wide(room);
                }
                Rows::Wide(room.as_ptr(), depth)
            }
            Numbers::Bf16(values) => Rows::Narrow(values[row * left.stride..].as_ptr(), left.stride),
        };
        for (panel, first) in (0..columns).step_by(width).enumerate() {
            // SAFETY: all that is read and written lies within what was checked above.
            unsafe {
                let turn = Turn {
                    depth,
                    rows,
                    right,
                    panel,
                    begin: match begin {
                        Begin::Rows(values) => Begin::Rows(values.get_unchecked(row..)),
                        Begin::Zero | Begin::Output => begin,
                    },
                    output: target.pointer.add(start + row * stride + first),
                    output_stride: stride,
                    columns: width.min(columns - first),
                };
                if turn.columns > S::F32_LANES { turn.of::<S, 2>(simd, count) } else { turn.of::<S, 1>(simd, count) }
            }
        }
    }
}

/// How the terms of a line are added to sums.
pub(crate) trait Terms {
    /// What the left matrix has.
    type Value;

    /// How many terms a line has.
    const PER_LINE: usize;

    /// Adds the `terms` of a line, as many as there are or one less, to sums of one or two vectors of columns, for rows of the
    /// left matrix that stand `stride` apart.
    ///
    /// # Safety
    /// Each row has these terms, and the line these vectors.
    #[expect(unsafe_code, reason = "what is read is checked before the loop, not in it")]
    unsafe fn add<S: Simd, const COUNT: usize, const PARTS: usize>(
        simd: S,
        left: (*const Self::Value, usize),
        terms: usize,
        line: *const f32,
        sums: &mut [[S::f32s; PARTS]; COUNT],
    );
}

/// One f32 in each line.
struct Singles;

#[expect(unsafe_code, reason = "the caller's promise")]
impl Terms for Singles {
    type Value = f32;

    const PER_LINE: usize = 1;

    #[inline(always)]
    unsafe fn add<S: Simd, const COUNT: usize, const PARTS: usize>(
        simd: S,
        (left, stride): (*const f32, usize),
        _: usize,
        line: *const f32,
        sums: &mut [[S::f32s; PARTS]; COUNT],
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let right = line.cast::<[S::f32s; PARTS]>().read_unaligned();
            for (row, sums) in sums.iter_mut().enumerate() {
                let factor = simd.splat_f32s(*left.add(row * stride));
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum = simd.mul_add_f32s(factor, right, *sum);
                }
            }
        }
    }
}

/// Rows of the left matrix, and from the first value of one to that of the next.
#[derive(Clone, Copy, Debug)]
enum Rows {
    Wide(*const f32, usize),
    Narrow(*const bf16, usize),
}

/// A panel times up to [`ROWS_MAX`] rows.
struct Turn<'a, R> {
    depth: usize,
    rows: Rows,
    right: R,
    panel: usize,
    begin: Begin<'a>,
    output: *mut f32,
    output_stride: usize,
    columns: usize,
}

impl<R: Right> Turn<'_, R> {
    /// For so many rows, and as many vectors of the panel as have columns.
    #[inline(always)]
    #[expect(unsafe_code, reason = "the caller's promise")]
    unsafe fn of<S: Simd, const PARTS: usize>(self, simd: S, rows: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            match rows {
                8 => self.run::<S, 8, PARTS>(simd),
                7 => self.run::<S, 7, PARTS>(simd),
                6 => self.run::<S, 6, PARTS>(simd),
                5 => self.run::<S, 5, PARTS>(simd),
                4 => self.run::<S, 4, PARTS>(simd),
                3 => self.run::<S, 3, PARTS>(simd),
                2 => self.run::<S, 2, PARTS>(simd),
                _ => self.run::<S, 1, PARTS>(simd),
            }
        }
    }

    #[inline(always)]
    #[expect(unsafe_code, reason = "the caller's promise")]
    unsafe fn run<S: Simd, const COUNT: usize, const PARTS: usize>(self, simd: S) {
        // Clearing it for whole panels, too, would take a fortieth of the time of their sums.
        let mut edge = [MaybeUninit::<f32>::uninit(); WIDTH_MAX * ROWS_MAX];
        let is_whole = self.columns == PARTS * S::F32_LANES;
        let place = if is_whole {
            (self.output, self.output_stride)
        } else {
            edge.fill(MaybeUninit::new(0.0));
            if matches!(self.begin, Begin::Output) {
                for row in 0..COUNT {
                    for column in 0..self.columns {
                        // SAFETY: within the columns of the target.
                        let value = unsafe { *self.output.add(row * self.output_stride + column) };
                        edge[row * WIDTH_MAX + column] = MaybeUninit::new(value);
                    }
                }
            }
            (edge.as_mut_ptr().cast(), WIDTH_MAX)
        };
        // SAFETY: `place` has whole vectors in every row, and the rest was checked by `multiply`.
        unsafe {
            match self.rows {
                Rows::Wide(left, stride) => self.sum::<S, Singles, COUNT, PARTS>(simd, (left, stride), place),
                #[cfg(target_arch = "x86_64")]
                Rows::Narrow(left, stride) if pairs::are_native(S::F32_LANES) => {
                    let right = (self.right, self.panel);
                    pairs::sum::<R, COUNT, PARTS>((left, stride), self.depth, right, self.begin, place);
                }
                Rows::Narrow(left, stride) => self.sum::<S, Pairs, COUNT, PARTS>(simd, (left, stride), place),
            }
        }
        if !is_whole {
            for row in 0..COUNT {
                for column in 0..self.columns {
                    // SAFETY: within the columns of the target, and of what was cleared.
                    unsafe {
                        let value = edge[row * WIDTH_MAX + column].assume_init();
                        *self.output.add(row * self.output_stride + column) = value;
                    }
                }
            }
        }
    }

    #[inline(always)]
    #[expect(unsafe_code, reason = "the caller's promise")]
    unsafe fn sum<S: Simd, T: Terms, const COUNT: usize, const PARTS: usize>(
        &self,
        simd: S,
        (left, left_stride): (*const T::Value, usize),
        (place, stride): (*mut f32, usize),
    ) {
        let lanes = S::F32_LANES;
        // SAFETY: the caller's promise.
        unsafe {
            let at = |row: usize| place.add(row * stride).cast::<[S::f32s; PARTS]>();
            let mut sums = [[simd.splat_f32s(0.0); PARTS]; COUNT];
            match self.begin {
                Begin::Zero => {}
                Begin::Rows(values) => {
                    for (row, sums) in sums.iter_mut().enumerate() {
                        *sums = [simd.splat_f32s(*values.get_unchecked(row)); PARTS];
                    }
                }
                Begin::Output => {
                    for (row, sums) in sums.iter_mut().enumerate() {
                        *sums = at(row).read_unaligned();
                    }
                }
            }
            let (whole, rest) = (self.depth / T::PER_LINE, self.depth % T::PER_LINE);
            for index in 0..whole {
                let line = self.right.line(self.panel, index, 2 * lanes);
                let left = (left.add(index * T::PER_LINE), left_stride);
                T::add::<S, COUNT, PARTS>(simd, left, T::PER_LINE, line, &mut sums);
            }
            if rest > 0 {
                let line = self.right.line(self.panel, whole, 2 * lanes);
                T::add::<S, COUNT, PARTS>(simd, (left.add(whole * T::PER_LINE), left_stride), rest, line, &mut sums);
            }
            for (row, sums) in sums.into_iter().enumerate() {
                at(row).write_unaligned(sums);
            }
        }
    }
}
