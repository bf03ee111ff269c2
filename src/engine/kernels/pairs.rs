//! Products of numbers of 16 bits, bf16, whose sums are of 32: two terms at a time, as AVX-512's `vdpbf16ps` adds them.
//!
//! Two terms of a column stand in one word, the first in its lower half. The second is multiplied and added first, then the
//! first, each product fused with its addition: so the instruction is defined, and so does every other processor here, with
//! the same bytes. (The instruction takes what is below 1.2e-38 for zero.)

use half::bf16;
use pulp::Simd;

use super::tile::Terms;
#[cfg(target_arch = "x86_64")]
use super::tile::{Begin, Right};

/// The upper half of a word.
const UPPER: u32 = 0xffff_0000;

/// The bits of the closest bf16, of two equally close ones the even, in the upper half of a word.
#[inline(always)]
fn rounded(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & UPPER;
    // What is not a number stays so.
    if value.is_nan() { bits & UPPER | 0x40_0000 } else { rounded }
}

/// Two terms as a word.
#[inline(always)]
pub(crate) fn pair(first: f32, second: f32) -> f32 {
    f32::from_bits(rounded(first) >> 16 | rounded(second))
}

/// Two terms of many columns as words; zeros where there is no second one.
#[inline(always)]
pub(crate) fn pack(first: &[f32], second: Option<&[f32]>, words: &mut [f32]) {
    match second {
        Some(second) => {
            for ((word, first), second) in words.iter_mut().zip(first).zip(second) {
                *word = pair(*first, *second);
            }
        }
        None => words.iter_mut().zip(first).for_each(|(word, first)| *word = pair(*first, 0.0)),
    }
}

/// The terms of rows of bf16, on any processor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pairs;

/// Two terms of a row, or its last and a zero.
///
/// # Safety
/// They are there.
#[inline(always)]
#[expect(unsafe_code, reason = "the caller's promise")]
unsafe fn word(left: *const bf16, terms: usize) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { if terms == 1 { u32::from((*left).to_bits()) } else { left.cast::<u32>().read_unaligned() } }
}

#[expect(unsafe_code, reason = "the caller's promise")]
impl Terms for Pairs {
    type Value = bf16;

    const PER_LINE: usize = 2;

    #[inline(always)]
    unsafe fn add<S: Simd, const COUNT: usize, const PARTS: usize>(
        simd: S,
        (left, stride): (*const bf16, usize),
        terms: usize,
        line: *const f32,
        sums: &mut [[S::f32s; PARTS]; COUNT],
    ) {
        let upper = simd.splat_u32s(UPPER);
        let sixteen = simd.splat_u32s(16);
        // SAFETY: the caller's promise.
        let words = unsafe { line.cast::<[S::u32s; PARTS]>().read_unaligned() };
        let first = words.map(|words| simd.transmute_f32s_u32s(simd.wrapping_dyn_shl_u32s(words, sixteen)));
        let second = words.map(|words| simd.transmute_f32s_u32s(simd.and_u32s(words, upper)));
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            let word = unsafe { word(left.add(row * stride), terms) };
            let factors = [word << 16, word & UPPER].map(|bits| simd.splat_f32s(f32::from_bits(bits)));
            for (part, sum) in sums.iter_mut().enumerate() {
                *sum = simd.mul_add_f32s(factors[1], second[part], *sum);
                *sum = simd.mul_add_f32s(factors[0], first[part], *sum);
            }
        }
    }
}

/// Whether the processor has the instruction, and vectors of `lanes` values are those that it takes.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn are_native(lanes: usize) -> bool {
    lanes == 16 && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16")
}

/// What `tile` sums with [`Pairs`], for `PARTS` vectors of a panel of 32 columns, by the instruction.
///
/// # Safety
/// [`are_native`], for 16. `place` has these vectors in every row, `stride` apart; `left` has `depth` terms in every row;
/// `right` has as many words as there are pairs of them in this panel.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
#[expect(unsafe_code, reason = "the caller's promise")]
pub(crate) unsafe fn sum<R: Right, const COUNT: usize, const PARTS: usize>(
    (left, left_stride): (*const bf16, usize),
    depth: usize,
    (right, panel): (R, usize),
    begin: Begin<'_>,
    (place, stride): (*mut f32, usize),
) {
    use std::arch::x86_64::{
        __m512, __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
    };
    const WIDTH: usize = 32;

    // SAFETY: all that is read and written is what the caller promises, and any bits are a vector of numbers.
    unsafe {
        let at = |row: usize| place.add(row * stride).cast::<[__m512; PARTS]>();
        let mut sums = [[_mm512_setzero_ps(); PARTS]; COUNT];
        match begin {
            Begin::Zero => {}
            Begin::Rows(values) => {
                for (row, sums) in sums.iter_mut().enumerate() {
                    *sums = [_mm512_set1_ps(*values.get_unchecked(row)); PARTS];
                }
            }
            Begin::Output => {
                for (row, sums) in sums.iter_mut().enumerate() {
                    *sums = at(row).read_unaligned();
                }
            }
        }
        let mut add = |index: usize, terms: usize| {
            let right = right.line(panel, index, WIDTH).cast::<[__m512bh; PARTS]>().read_unaligned();
            for (row, sums) in sums.iter_mut().enumerate() {
                let word = word(left.add(row * left_stride + 2 * index), terms);
                let factor = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(word.cast_signed()));
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum = _mm512_dpbf16_ps(*sum, factor, right);
                }
            }
        };
        for index in 0..depth / 2 {
            add(index, 2);
        }
        if depth % 2 == 1 {
            add(depth / 2, 1);
        }
        for (row, sums) in sums.into_iter().enumerate() {
            at(row).write_unaligned(sums);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_to_the_closest() {
        // All of the upper half, with what decides at and beside the middle.
        for upper in 0..=u16::MAX {
            for lower in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(u32::from(upper) << 16 | lower);
                let expected = bf16::from_f32(value);
                let (first, second) = (pair(value, 1.0).to_bits(), pair(1.0, value).to_bits());
                assert_eq!([first >> 16, second & 0xffff], [u32::from(bf16::ONE.to_bits()); 2], "{value}");
                for bits in [first as u16, (second >> 16) as u16] {
                    let found = bf16::from_bits(bits);
                    assert!(found == expected || found.is_nan() && expected.is_nan(), "{value}: {found}, {expected}");
                }
            }
        }
    }
}
