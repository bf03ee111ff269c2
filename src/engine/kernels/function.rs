//! Functions of many values, each with the same bytes in vectors of any width.

use pulp::Simd;

use super::tile::{LANES_MAX, Target, load, store};

/// Values that a loop sums side by side, so that the compiler can use vector instructions: it must not reorder sums.
const LANES: usize = 2 * LANES_MAX;

/// Writes what `function` makes of `input`, to the places of `target` from `start` on.
///
/// # Safety
/// Nobody else uses these places meanwhile, and what they are part of is still there.
#[inline(always)]
#[expect(unsafe_code, reason = "the caller's promise")]
pub(crate) unsafe fn map<S: Simd>(
    input: &[f32],
    (target, start): (Target, usize),
    function: impl Fn(S::f32s) -> S::f32s,
) {
    let chunks = input.chunks_exact(S::F32_LANES);
    let rest = chunks.remainder();
    for (at, input) in (start..).step_by(S::F32_LANES).zip(chunks) {
        // SAFETY: the caller's promise.
        unsafe { target.store::<S>(at, function(load::<S>(input))) };
    }
    if !rest.is_empty() {
        let mut values = [0.0; LANES_MAX];
        values[..rest.len()].copy_from_slice(rest);
        let result = function(load::<S>(&values));
        store::<S>(&mut values, result);
        // SAFETY: as above.
        unsafe { target.write(start + input.len() - rest.len(), &values[..rest.len()]) };
    }
}

/// What `term` makes of all values, summed in an order that no vector's width changes.
#[inline(always)]
pub(crate) fn sum(values: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += term(*value);
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane += term(*value);
    }
    let mut half = LANES / 2;
    while half > 0 {
        let (near, far) = lanes.split_at_mut(half);
        for (near, far) in near.iter_mut().zip(far) {
            *near += *far;
        }
        half /= 2;
    }
    lanes[0]
}

/// `2^x` for `x` up to 127, within 2 units in the last place; 0 or next to it far below.
#[inline(always)]
pub(crate) fn exp2<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let splat = |value: f32| simd.splat_f32s(value);
    // Adding it rounds to an integer, which then stands in the lowest bits.
    let round = splat(12_582_912.0);
    // In this order what is not a number stays so.
    let x = simd.max_f32s(splat(-126.0), x);
    let rounded = simd.add_f32s(x, round);
    let rest = simd.sub_f32s(x, simd.sub_f32s(rounded, round));
    let mut series = splat(1.540_353e-4);
    for coefficient in [1.333_355_8e-3, 9.618_129e-3, 5.550_411e-2, 2.402_265e-1, std::f32::consts::LN_2, 1.0] {
        series = simd.mul_add_f32s(series, rest, splat(coefficient));
    }
    let power = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(rounded), simd.splat_u32s(23));
    simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(series), power))
}

/// `x / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn silu<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // As above of the order.
    let power = simd.min_f32s(simd.splat_f32s(126.0), simd.mul_f32s(x, simd.splat_f32s(-std::f32::consts::LOG2_E)));
    simd.div_f32s(x, simd.add_f32s(simd.splat_f32s(1.0), exp2(simd, power)))
}

#[cfg(test)]
mod tests {
    use pulp::WithSimd;

    use super::super::tile::{self, dispatch};
    use super::*;

    /// `2^x` and SiLU of each value.
    struct Both<'a>(&'a [f32]);

    impl WithSimd for Both<'_> {
        type Output = [Vec<f32>; 2];

        #[inline(always)]
        #[expect(unsafe_code, reason = "as many values as there are")]
        fn with_simd<S: Simd>(self, simd: S) -> [Vec<f32>; 2] {
            let length = self.0.len();
            // SAFETY: every value is written.
            unsafe {
                [
                    tile::written(length, |target| map::<S>(self.0, (target, 0), |x| exp2(simd, x))),
                    tile::written(length, |target| map::<S>(self.0, (target, 0), |x| silu(simd, x))),
                ]
            }
        }
    }

    #[test]
    fn functions_agree_with_double_precision() {
        // As many as no vector has a multiple of.
        let values: Vec<f32> = (-2001..2000).map(|step| step as f32 * 0.01).collect();
        let [powers, units] = dispatch(Both(&values));
        for ((x, power), unit) in values.iter().zip(powers).zip(units) {
            let wide = f64::from(*x);
            let close = |ours: f32, exact: f64| (f64::from(ours) - exact).abs() <= 1e-6 * exact.abs().max(0.3);
            assert!(close(power, wide.exp2()), "exp2({x}) = {power}");
            assert!(close(unit, wide / (1.0 + (-wide).exp())), "silu({x}) = {unit}");
        }
        let [powers, units] = dispatch(Both(&[f32::NAN, -1000.0, 127.0, 1000.0]));
        assert!(powers[0].is_nan() && powers[1] < 1e-37 && powers[2] == 127_f32.exp2());
        assert!(units[0].is_nan() && units[1].abs() < 1e-30 && units[3] == 1000.0);
    }
}
