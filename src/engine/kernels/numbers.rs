//! Weights as they lie in memory, in a number format of 16 or 32 bits. All sums are of 32 bits.
//!
//! It does not round: whoever wants fewer bits has them already.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Values of a matrix of weights.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Numbers<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

impl<'a> Numbers<'a> {
    pub(crate) fn len(self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F16(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    /// These of them.
    pub(crate) fn slice(self, range: Range<usize>) -> Self {
        match self {
            Self::F32(values) => Self::F32(&values[range]),
            Self::F16(values) => Self::F16(&values[range]),
            Self::Bf16(values) => Self::Bf16(&values[range]),
        }
    }

    /// All of them as f32: where they lie, if they are, else in `room`.
    ///
    /// # Panics
    /// If there is less room.
    #[inline(always)]
    pub(crate) fn wide<'b>(self, room: &'b mut [f32]) -> &'b [f32]
    where
        'a: 'b,
    {
        match self {
            Self::F32(values) => values,
            Self::F16(values) => {
                let room = &mut room[..values.len()];
                values.convert_to_f32_slice(room);
                room
            }
            Self::Bf16(values) => {
                let room = &mut room[..values.len()];
                for (place, value) in room.iter_mut().zip(values) {
                    // It is the upper half of an f32.
                    *place = f32::from_bits(u32::from(value.to_bits()) << 16);
                }
                room
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_values_of_16_bits_are_as_wide_ones_what_they_are() {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        let (halves, uppers): (Vec<f16>, Vec<bf16>) =
            all.into_iter().map(|bits| (f16::from_bits(bits), bf16::from_bits(bits))).unzip();
        let mut room = vec![0.0; halves.len()];
        let same = |found: f32, exact: f64| f64::from(found) == exact || (found.is_nan() && exact.is_nan());
        let found = Numbers::F16(&halves).wide(&mut room);
        assert!(found.iter().zip(&halves).all(|(found, half)| same(*found, half.to_f64())));
        let found = Numbers::Bf16(&uppers).wide(&mut room);
        assert!(found.iter().zip(&uppers).all(|(found, upper)| same(*found, upper.to_f64())));
        let slice = Numbers::F16(&halves).slice(3..5);
        assert_eq!((slice.len(), slice.wide(&mut [0.0; 2])), (2, &[halves[3].to_f32(), halves[4].to_f32()][..]));
    }
}
