//! The fused operations of the CPU by themselves, for whoever wants to measure them beside what candle makes of single
//! ones. Models use them through their layers.
//!
//! All tensors are f32 on the CPU; weights of convolutions and products may be f16 or bf16.

use candle_core::{Result, Tensor};

use super::kernels;
use super::layers::{attention as attend, on_cpu};
use super::weights::Matrix;

fn check(x: &Tensor) -> Result<Tensor> {
    if !on_cpu(x) {
        candle_core::bail!("the operation is for f32 on the CPU");
    }
    x.contiguous()
}

/// A 3×3 convolution of `x (b, c, h, w)` that keeps the size, with `weight (out, c, 3, 3)` and `bias (out)`.
///
/// # Errors
/// When shapes do not fit.
pub fn convolution(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (x, bias) = (check(x)?, check(bias)?);
    Matrix::Loaded(weight.contiguous()?).with_values(|weight| {
        x.apply_op2_no_bwd(&bias, &kernels::Convolution { weight, stride: 1, repeat: 1, padding: 1 })
    })
}

/// `weight (out, d) @ x (b, d, t)`: `(b, out, t)`.
///
/// # Errors
/// When shapes do not fit.
pub fn product(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (x, outputs) = (check(x)?, weight.dim(0)?);
    Matrix::Loaded(weight.contiguous()?).with_values(|weight| x.apply_op1_no_bwd(&kernels::Product { weight, outputs }))
}

/// `query (n, d, t)` attends to `key (n, d, s)` and `value (n, d, s)`: `(n, d, t)`.
///
/// # Errors
/// When shapes do not fit.
pub fn attention(query: &Tensor, key: &Tensor, value: &Tensor, scale: f64) -> Result<Tensor> {
    attend(&check(query)?, &check(key)?, &check(value)?, None, scale)
}

/// Group normalisation of `x (b, c, h, w)` with `affine (2, c)`, weight and bias, then SiLU.
///
/// # Errors
/// When shapes do not fit.
pub fn group_norm_silu(x: &Tensor, affine: &Tensor, groups: usize, eps: f32) -> Result<Tensor> {
    check(x)?.apply_op2_no_bwd(&check(affine)?, &kernels::GroupNorm { groups, eps, silu: true })
}

/// Layer normalisation of `x (b, d, t)` over `d` with `affine (2, d)`, weight and bias.
///
/// # Errors
/// When shapes do not fit.
pub fn layer_norm(x: &Tensor, affine: &Tensor, eps: f32) -> Result<Tensor> {
    check(x)?.apply_op2_no_bwd(&check(affine)?, &kernels::LayerNorm { eps })
}

/// The first half of `x (b, 2 d, t)` times the GELU of the second: `(b, d, t)`.
///
/// # Errors
/// When `x` has not three dimensions.
pub fn gated_gelu(x: &Tensor) -> Result<Tensor> {
    check(x)?.apply_op1_no_bwd(&kernels::GatedGelu)
}
