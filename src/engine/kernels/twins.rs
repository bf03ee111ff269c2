//! Fused operations on small tensors, to compare what a GPU computes with what the CPU does.

use candle_core::{DType, Device, Result, Tensor};

use super::launch::{self, Argument, Plan};
use super::{
    Accumulate, Attention, GatedAccumulate, GatedGelu, Gelu, GroupNorm, LayerNorm, RmsNorm, Rotate, Transpose,
};

/// Operations that a device has or has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// In 16 bits, on tensor cores.
    Attention,
    Others,
}

/// One operation on tensors of these shapes.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) shapes: &'static [&'static [usize]],
    pub(super) run: fn(&[Tensor]) -> Result<Tensor>,
    pub(super) plan: fn() -> Result<Plan>,
}

impl Case {
    /// The values of tensor `number`, from -1 to 3.
    fn values(&self, number: usize) -> Vec<f32> {
        let count = self.shapes[number].iter().product();
        // Lehmer's generator, for numbers that are the same everywhere.
        let mut state = number as u64 + 1;
        let next = |_| {
            state = state * 48_271 % 2_147_483_647;
            state as f32 / 2_147_483_647.0 * 4.0 - 1.0
        };
        (0..count).map(next).collect()
    }

    /// Tensor `number`, rounded to `dtype` where it is not f32 whatever the number format.
    pub(super) fn tensor(&self, number: usize, dtype: DType) -> Result<Tensor> {
        let tensor = Tensor::from_vec(self.values(number), self.shapes[number], &Device::Cpu)?;
        let mut arguments = (self.plan)()?.calls.into_iter().flat_map(|call| call.arguments);
        let is_wide = arguments.any(|argument| argument == Argument::Wide { number });
        if is_wide { Ok(tensor) } else { tensor.to_dtype(dtype) }
    }

    /// The number formats that there are kernels for, each with its bits behind the first.
    pub(super) fn formats(&self) -> &'static [(DType, i32)] {
        const ALL: &[(DType, i32)] = &[(DType::F16, 10), (DType::BF16, 7), (DType::F32, 23)];
        match self.subject() {
            Subject::Attention => &ALL[..2],
            Subject::Others => ALL,
        }
    }

    fn subject(&self) -> Subject {
        if self.name.starts_with("attention") { Subject::Attention } else { Subject::Others }
    }
}

/// How far a value may be from `expected`, in a number format of `digits` bits behind the first.
pub(super) fn is_close(found: f32, expected: f32, digits: i32) -> bool {
    // An operation rounds its result, and attention its weights too.
    (found - expected).abs() <= 6.0 * f32::powi(2.0, -1 - digits.min(14)) * (1.0 + expected.abs())
}

fn changed(x: &Tensor, change: impl FnOnce(&Tensor) -> Result<()>) -> Result<Tensor> {
    let x = x.copy()?;
    change(&x)?;
    Ok(x)
}

macro_rules! attention {
    ($name:literal, $heads:literal, $width:literal, $queries:literal, $keys:literal) => {
        Case {
            name: $name,
            shapes: &[&[$heads, $width, $queries], &[$heads, $width, $keys], &[$heads, $width, $keys]],
            run: |tensors| {
                let attention = Attention { mask: None, scale: 0.3 };
                tensors[0].apply_op3_no_bwd(&tensors[1], &tensors[2], &attention)
            },
            plan: || launch::attention([$heads, $width, $queries], $keys, 0.3),
        }
    };
}

const AFFINE: GroupNorm = GroupNorm { groups: 3, eps: 1e-5, silu: false };
const SHIFTED: GroupNorm = GroupNorm { groups: 2, eps: 1e-5, silu: true };

/// Every kernel, with blocks and tiles that are not whole.
pub(super) const CASES: &[Case] = &[
    Case {
        name: "group norm",
        shapes: &[&[2, 6, 30, 41], &[2, 6]],
        run: |tensors| tensors[0].apply_op2_no_bwd(&tensors[1], &AFFINE),
        plan: || launch::group_norm([2, 6, 30 * 41], AFFINE.groups, AFFINE.eps, AFFINE.silu, false),
    },
    Case {
        name: "group norm in parts, shifted",
        shapes: &[&[2, 4, 96, 100], &[2, 4], &[2, 4]],
        run: |tensors| tensors[0].apply_op3_no_bwd(&tensors[1], &tensors[2], &SHIFTED),
        plan: || launch::group_norm([2, 4, 96 * 100], SHIFTED.groups, SHIFTED.eps, SHIFTED.silu, true),
    },
    Case {
        name: "layer norm",
        shapes: &[&[2, 37, 45], &[2, 37]],
        run: |tensors| tensors[0].apply_op2_no_bwd(&tensors[1], &LayerNorm { eps: 1e-5 }),
        plan: || launch::layer_norm([2, 37, 45], 2 * 37, 1e-5),
    },
    Case {
        name: "layer norm of rows",
        shapes: &[&[2, 37, 45], &[2, 2, 37]],
        run: |tensors| tensors[0].apply_op2_no_bwd(&tensors[1], &LayerNorm { eps: 1e-5 }),
        plan: || launch::layer_norm([2, 37, 45], 2 * 2 * 37, 1e-5),
    },
    Case {
        name: "root mean square",
        shapes: &[&[3, 20, 33], &[20]],
        run: |tensors| tensors[0].apply_op2_no_bwd(&tensors[1], &RmsNorm { eps: 1e-6 }),
        plan: || launch::rms_norm([3, 20, 33], 1e-6),
    },
    Case {
        name: "gelu",
        shapes: &[&[5, 77]],
        run: |tensors| changed(&tensors[0], |x| x.inplace_op1(&Gelu::Erf)),
        plan: || launch::gelu(5 * 77, Gelu::Erf),
    },
    Case {
        name: "gelu by tanh",
        shapes: &[&[5, 77]],
        run: |tensors| changed(&tensors[0], |x| x.inplace_op1(&Gelu::Tanh)),
        plan: || launch::gelu(5 * 77, Gelu::Tanh),
    },
    Case {
        name: "quick gelu",
        shapes: &[&[5, 77]],
        run: |tensors| changed(&tensors[0], |x| x.inplace_op1(&Gelu::Quick)),
        plan: || launch::gelu(5 * 77, Gelu::Quick),
    },
    Case {
        name: "gated gelu",
        shapes: &[&[2, 12, 75]],
        run: |tensors| tensors[0].apply_op1_no_bwd(&GatedGelu),
        plan: || launch::gated_gelu([2, 12, 75]),
    },
    Case {
        name: "accumulate",
        shapes: &[&[2, 7, 41], &[2, 7, 41]],
        run: |tensors| changed(&tensors[0], |x| x.inplace_op2(&tensors[1], &Accumulate)),
        plan: || launch::accumulate(2 * 7, 41, 2 * 7 * 41),
    },
    Case {
        name: "accumulate channels",
        shapes: &[&[2, 7, 601], &[7]],
        run: |tensors| changed(&tensors[0], |x| x.inplace_op2(&tensors[1], &Accumulate)),
        plan: || launch::accumulate(2 * 7, 601, 7),
    },
    Case {
        name: "gated accumulate",
        shapes: &[&[2, 7, 41], &[2, 7], &[2, 7, 41]],
        run: |tensors| changed(&tensors[0], |x| x.inplace_op3(&tensors[1], &tensors[2], &GatedAccumulate)),
        plan: || launch::gated_accumulate(2 * 7, 41),
    },
    Case {
        name: "rotate",
        shapes: &[&[3, 8, 21], &[2, 4, 21]],
        run: |tensors| changed(&tensors[0], |x| x.inplace_op2(&tensors[1], &Rotate)),
        plan: || launch::rotate([3, 8, 21]),
    },
    Case {
        name: "transpose",
        shapes: &[&[3, 40, 70]],
        run: |tensors| tensors[0].apply_op1_no_bwd(&Transpose),
        plan: || launch::transpose([3, 40, 70], false),
    },
    Case {
        name: "transpose, biased",
        shapes: &[&[2, 35, 33], &[33]],
        run: |tensors| tensors[0].apply_op2_no_bwd(&tensors[1], &Transpose),
        plan: || launch::transpose([2, 35, 33], true),
    },
    attention!("attention of 16", 3, 16, 64, 64),
    attention!("attention of 24", 2, 24, 70, 9),
    attention!("attention of 40", 2, 40, 130, 77),
    attention!("attention of 64", 1, 64, 33, 128),
    attention!("attention of 80", 1, 80, 65, 129),
    attention!("attention of 96", 1, 96, 20, 20),
    attention!("attention of 120", 1, 120, 20, 66),
    attention!("attention of 160", 1, 160, 17, 70),
];

/// Compares every operation of `subject` on `device` with the CPU's.
///
/// # Errors
/// Names the first operation that differs, or cannot be run.
#[cfg(feature = "cuda")]
pub(super) fn check(device: &Device, subject: Subject) -> Result<()> {
    for case in CASES.iter().filter(|case| case.subject() == subject) {
        for (dtype, digits) in case.formats().iter().copied() {
            let (mut here, mut there) = (Vec::new(), Vec::new());
            for number in 0..case.shapes.len() {
                let rounded = case.tensor(number, dtype)?;
                here.push(rounded.to_dtype(DType::F32)?);
                there.push(rounded.to_device(device)?);
            }
            compare(case.name, &(case.run)(&there)?, &(case.run)(&here)?, digits)?;
        }
    }
    Ok(())
}

/// Compares what `name` made on a GPU, in a number format of `digits` bits behind the first, with what it should be.
///
/// # Errors
/// Names it, its number format and the first value that is not close.
#[cfg(feature = "cuda")]
pub(in crate::engine) fn compare(name: &str, found: &Tensor, expected: &Tensor, digits: i32) -> Result<()> {
    let values = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
    for (value, expected) in values(found)?.into_iter().zip(values(expected)?) {
        if !is_close(value, expected, digits) {
            candle_core::bail!("{name} of {:?} makes {value} of what should be {expected}", found.dtype());
        }
    }
    Ok(())
}
