//! What a GPU does for each fused operation: which kernels of `cuda/kernels.cu` run, on how many threads, with what.
//!
//! Plans are values: whoever has a GPU runs them, and so do the tests, which have none. Tensors are numbered in the order in which
//! the operation takes them.

use candle_core::{Result, bail};

use super::Gelu;

/// As the kernels have them.
const NORM_THREADS: u32 = 256;
const PART: usize = 8192;
const NORM_TOKENS: usize = 32;
const NORM_LINES: u32 = 16;
const TURNED: usize = 32;
const TURNED_LINES: u32 = 8;
const QUERIES: usize = 64;
const ATTENTION_THREADS: u32 = 128;
/// Channels of a head, in sixteens, for which there are kernels.
const ATTENTION_STEPS: [(usize, &str); 8] = [
    (1, "attention_1"),
    (2, "attention_2"),
    (3, "attention_3"),
    (4, "attention_4"),
    (5, "attention_5"),
    (6, "attention_6"),
    (8, "attention_8"),
    (10, "attention_10"),
];
/// Threads of a block, and blocks at the most, where every value is by itself.
const THREADS: usize = 256;
const BLOCKS_MAX: usize = 1 << 16;
/// Of a grid's second side.
const ROWS_MAX: usize = 65_535;

/// One argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Argument {
    /// A tensor, from one of its values on.
    Tensor {
        number: usize,
        first: usize,
    },
    /// A tensor that is f32 whatever the number format.
    Wide {
        number: usize,
    },
    /// The operation's output.
    Output,
    /// Memory between kernels.
    Scratch,
    /// No tensor.
    Absent,
    Int(i32),
    Long(i64),
    Float(f32),
}

/// One kernel, without its number format.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Call {
    pub(super) kernel: &'static str,
    pub(super) grid: [u32; 3],
    pub(super) block: [u32; 3],
    pub(super) arguments: Vec<Argument>,
}

/// The kernels of one operation, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Plan {
    pub(super) calls: Vec<Call>,
    /// Of the output; none where the first tensor changes in place.
    pub(super) output_values: usize,
    /// Of f32.
    pub(super) scratch_values: usize,
}

fn tensor(number: usize) -> Argument {
    Argument::Tensor { number, first: 0 }
}

fn int(value: usize) -> Result<Argument> {
    match i32::try_from(value) {
        Ok(value) => Ok(Argument::Int(value)),
        Err(_) => bail!("{value} is more than a kernel can count"),
    }
}

fn long(value: usize) -> Argument {
    // No size of a tensor in memory is larger.
    Argument::Long(value as i64)
}

fn side(value: usize) -> Result<u32> {
    match u32::try_from(value) {
        Ok(value) if value <= i32::MAX as u32 => Ok(value),
        _ => bail!("{value} blocks are more than a grid has"),
    }
}

fn second_side(value: usize) -> Result<u32> {
    if value > ROWS_MAX {
        bail!("{value} rows are more than a grid has");
    }
    side(value)
}

/// Blocks for each of `count` values by itself.
fn over(count: usize) -> Result<([u32; 3], [u32; 3])> {
    Ok(([side(count.div_ceil(THREADS).min(BLOCKS_MAX))?, 1, 1], [THREADS as u32, 1, 1]))
}

/// Blocks for each of `lines` of `plane` values.
fn over_lines(lines: usize, plane: usize) -> Result<([u32; 3], [u32; 3])> {
    // A kernel has warps of 32 threads, and eight rounds pay for finding the line.
    let threads = plane.next_multiple_of(32).min(THREADS);
    let chunks = plane.div_ceil(8 * threads).min(64);
    Ok(([side(lines)?, side(chunks)?, 1], [side(threads)?, 1, 1]))
}

fn in_place(calls: Call) -> Plan {
    Plan { calls: vec![calls], ..Plan::default() }
}

/// Of `x (b, c, plane)`, `affine (2, c)` and, if `shifted`, `shift (b, c)`.
pub(super) fn group_norm(
    [batch, channels, plane]: [usize; 3],
    groups: usize,
    eps: f32,
    silu: bool,
    shifted: bool,
) -> Result<Plan> {
    let parts = (channels / groups * plane).div_ceil(PART);
    let grid = [side(batch * groups)?, second_side(parts)?, 1];
    let block = [NORM_THREADS, 1, 1];
    let shift = if shifted { tensor(2) } else { Argument::Absent };
    let sizes = [int(channels)?, long(plane), int(groups)?];
    let statistics = [&[tensor(0), shift, Argument::Scratch], &sizes[..]].concat();
    let apply = [
        &[tensor(0), shift, tensor(1), Argument::Scratch, Argument::Output],
        &sizes[..],
        &[Argument::Float(eps), Argument::Int(silu.into())],
    ]
    .concat();
    Ok(Plan {
        calls: vec![
            Call { kernel: "group_statistics", grid, block, arguments: statistics },
            Call { kernel: "group_apply", grid, block, arguments: apply },
        ],
        output_values: batch * channels * plane,
        scratch_values: batch * groups * parts * 2,
    })
}

/// Of `x (b, d, t)` and weights and biases of `affine_values`, `(2, d)` or `(b, 2, d)`.
pub(super) fn layer_norm(sizes: [usize; 3], affine_values: usize, eps: f32) -> Result<Plan> {
    let width = sizes[1];
    let stride = if affine_values == 2 * width { 0 } else { 2 * width };
    let bias = Argument::Tensor { number: 1, first: width };
    token_norm(sizes, bias, stride, eps, true)
}

/// Of `x (n, d, t)` and `weight (d)`.
pub(super) fn rms_norm(sizes: [usize; 3], eps: f32) -> Result<Plan> {
    token_norm(sizes, Argument::Absent, 0, eps, false)
}

fn token_norm(
    [batch, width, tokens]: [usize; 3],
    bias: Argument,
    affine_stride: usize,
    eps: f32,
    centre: bool,
) -> Result<Plan> {
    let arguments = vec![
        tensor(0),
        tensor(1),
        bias,
        long(affine_stride),
        Argument::Output,
        int(width)?,
        int(tokens)?,
        Argument::Float(eps),
        Argument::Int(centre.into()),
    ];
    let grid = [side(tokens.div_ceil(NORM_TOKENS))?, second_side(batch)?, 1];
    let block = [NORM_TOKENS as u32, NORM_LINES, 1];
    Ok(Plan {
        calls: vec![Call { kernel: "token_norm", grid, block, arguments }],
        output_values: batch * width * tokens,
        scratch_values: 0,
    })
}

/// Of every value of the only tensor, in place.
pub(super) fn gelu(count: usize, kind: Gelu) -> Result<Plan> {
    let kind = match kind {
        Gelu::Erf => 0,
        Gelu::Tanh => 1,
        Gelu::Quick => 2,
    };
    let (grid, block) = over(count)?;
    let arguments = vec![tensor(0), long(count), Argument::Int(kind)];
    Ok(in_place(Call { kernel: "gelu", grid, block, arguments }))
}

/// Of `x (b, 2 d, t)`.
pub(super) fn gated_gelu([batch, width, tokens]: [usize; 3]) -> Result<Plan> {
    let half = width / 2 * tokens;
    let (grid, block) = over(batch * half)?;
    let arguments = vec![tensor(0), Argument::Output, long(batch * half), long(half)];
    let calls = vec![Call { kernel: "gated_gelu", grid, block, arguments }];
    Ok(Plan { calls, output_values: batch * half, scratch_values: 0 })
}

/// Of `target (lines, plane)`, in place, and as many values or one for each channel.
pub(super) fn accumulate(lines: usize, plane: usize, other_values: usize) -> Result<Plan> {
    if other_values == lines * plane {
        let (grid, block) = over(other_values)?;
        let arguments = vec![tensor(0), tensor(1), long(other_values)];
        return Ok(in_place(Call { kernel: "add", grid, block, arguments }));
    }
    if other_values == 0 || !lines.is_multiple_of(other_values) {
        bail!("{other_values} values for {lines} lines");
    }
    let (grid, block) = over_lines(lines, plane)?;
    let arguments = vec![tensor(0), tensor(1), int(other_values)?, int(plane)?];
    Ok(in_place(Call { kernel: "add_channel", grid, block, arguments }))
}

/// Of `target (lines, plane)`, in place, `gate (lines)` and a tensor of the target's shape.
pub(super) fn gated_accumulate(lines: usize, plane: usize) -> Result<Plan> {
    let (grid, block) = over_lines(lines, plane)?;
    let arguments = vec![tensor(0), tensor(1), tensor(2), int(plane)?];
    Ok(in_place(Call { kernel: "gated_add", grid, block, arguments }))
}

/// Of `target (n, d, t)`, in place, and `turns (2, d / 2, t)`, which are f32.
pub(super) fn rotate([heads, width, tokens]: [usize; 3]) -> Result<Plan> {
    let pairs_of_head = width / 2 * tokens;
    let (grid, block) = over(heads * pairs_of_head)?;
    let turns = Argument::Wide { number: 1 };
    let arguments = vec![tensor(0), turns, long(heads * pairs_of_head), long(pairs_of_head), int(tokens)?];
    Ok(in_place(Call { kernel: "rotate", grid, block, arguments }))
}

/// Of `x (b, rows, columns)` and, if there is one, a bias `(columns)`.
pub(super) fn transpose([batch, rows, columns]: [usize; 3], biased: bool) -> Result<Plan> {
    let squares = rows.div_ceil(TURNED) * columns.div_ceil(TURNED);
    let bias = if biased { tensor(1) } else { Argument::Absent };
    let arguments = vec![tensor(0), bias, Argument::Output, int(rows)?, int(columns)?];
    let (grid, block) = ([side(squares)?, second_side(batch)?, 1], [TURNED as u32, TURNED_LINES, 1]);
    let calls = vec![Call { kernel: "transpose", grid, block, arguments }];
    Ok(Plan { calls, output_values: batch * rows * columns, scratch_values: 0 })
}

/// Whether there is a kernel for `heads` of `width` channels.
pub(super) fn attends(heads: usize, width: usize) -> bool {
    heads <= ROWS_MAX && width <= 16 * ATTENTION_STEPS[ATTENTION_STEPS.len() - 1].0
}

/// Of `query (n, d, t)`, `key (n, d, s)` and `value (n, d, s)`, in 16 bits.
pub(super) fn attention([heads, width, queries]: [usize; 3], keys: usize, scale: f32) -> Result<Plan> {
    let Some((_, kernel)) = ATTENTION_STEPS.iter().find(|(steps, _)| width <= 16 * steps) else {
        bail!("no kernel attends with {width} channels a head");
    };
    // Powers of two are what the processor has an instruction for.
    let scale = Argument::Float(scale * std::f32::consts::LOG2_E);
    let tensors = [tensor(0), tensor(1), tensor(2), Argument::Output];
    let arguments = [&tensors[..], &[int(width)?, int(queries)?, int(keys)?, scale]].concat();
    let grid = [side(queries.div_ceil(QUERIES))?, second_side(heads)?, 1];
    let calls = vec![Call { kernel, grid, block: [ATTENTION_THREADS, 1, 1], arguments }];
    Ok(Plan { calls, output_values: heads * width * queries, scratch_values: 0 })
}
