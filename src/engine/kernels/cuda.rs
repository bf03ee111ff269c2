//! Runs the plans of fused operations on an NVIDIA GPU, if its kernels compute there what the CPU's do.
//!
//! It decides nothing about shapes or grids.

use std::sync::OnceLock;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, LaunchConfig, PushKernelArg, SyncOnDrop,
};
use candle_core::cuda_backend::{CudaDType, CudaStorageSlice, WrapErr};
use candle_core::{CudaDevice, CudaStorage, DType, Device, Layout, Result, Shape, WithDType, bail};
use half::{bf16, f16};

use super::launch::{Argument, Plan};
use super::twins::{self, Subject};

/// The kernels, as the driver takes them.
const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));
/// What candle keeps them under.
const MODULE: &str = "darkroom";

/// Whether the kernels may be used: they are compared with the CPU's, once in a process, and not used if they differ.
pub(super) fn are_right(device: &CudaDevice) -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| is_right(device, Subject::Others))
}

/// The same of those that attend, which architectures before 8.0 have not.
pub(super) fn attention_is_right(device: &CudaDevice) -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| is_right(device, Subject::Attention))
}

fn is_right(device: &CudaDevice, subject: Subject) -> bool {
    let checked = twins::check(&Device::Cuda(device.clone()), subject);
    if let Err(error) = &checked {
        tracing::warn!(%error, ?subject, "fused kernels are not used on this GPU: single operations are slower");
    }
    checked.is_ok()
}

/// A new tensor of `shape` out of `inputs`, of which the first says number format and device.
pub(super) fn run(plan: &Plan, inputs: &[(&CudaStorage, &Layout)], shape: &Shape) -> Result<(CudaStorage, Shape)> {
    let Some((first, _)) = inputs.first() else { bail!("an operation has a tensor") };
    if plan.output_values != shape.elem_count() {
        bail!("the kernels make {} values, not {shape:?}", plan.output_values);
    }
    let output = if first.dtype() == DType::F32 {
        make::<f32>(plan, inputs)?
    } else if first.dtype() == DType::F16 {
        make::<f16>(plan, inputs)?
    } else if first.dtype() == DType::BF16 {
        make::<bf16>(plan, inputs)?
    } else {
        bail!("no kernel computes in {:?}", first.dtype())
    };
    Ok((output, shape.clone()))
}

fn make<T: CudaDType + DeviceRepr>(plan: &Plan, inputs: &[(&CudaStorage, &Layout)]) -> Result<CudaStorage> {
    let device = inputs[0].0.device();
    let stream = device.cuda_stream();
    #[expect(unsafe_code, reason = "memory that is not cleared first: the kernels write every value of an output")]
    // SAFETY: nobody reads it before the kernels have run, for they run on the same stream.
    let mut output = unsafe { device.alloc::<T>(plan.output_values)? };
    let mut tensors = Vec::with_capacity(inputs.len());
    for (storage, layout) in inputs {
        tensors.push(pointer(storage, layout, &stream)?);
    }
    launch(plan, device, inputs[0].0.dtype(), &tensors, Some(output.device_ptr_mut(&stream)))?;
    drop(tensors);
    Ok(CudaStorage::wrap_cuda_slice(output, device.clone()))
}

/// Changes `target`, which has a number format of kernels.
pub(super) fn run_in_place(
    plan: &Plan,
    target: &mut CudaStorage,
    target_l: &Layout,
    others: &[(&CudaStorage, &Layout)],
) -> Result<()> {
    let (device, dtype) = (target.device().clone(), target.dtype());
    let stream = device.cuda_stream();
    let mut tensors = vec![pointer_mut(target, target_l, &stream)?];
    for (storage, layout) in others {
        tensors.push(pointer(storage, layout, &stream)?);
    }
    launch(plan, &device, dtype, &tensors, None)
}

/// The first value of a tensor, and what holds it there until its kernels are under way.
struct Pointer<'a> {
    address: u64,
    dtype: DType,
    _held: SyncOnDrop<'a>,
}

/// Where a contiguous tensor begins.
fn first_value(layout: &Layout) -> Result<usize> {
    match layout.contiguous_offsets() {
        Some((first, _)) => Ok(first),
        None => bail!("the operation needs a contiguous tensor"),
    }
}

fn pointer<'a>(storage: &'a CudaStorage, layout: &Layout, stream: &'a CudaStream) -> Result<Pointer<'a>> {
    fn of<'a, T: WithDType>(slice: &'a CudaSlice<T>, first: usize, stream: &'a CudaStream) -> Pointer<'a> {
        let (address, held) = slice.device_ptr(stream);
        Pointer { address: address + (first * size_of::<T>()) as u64, dtype: T::DTYPE, _held: held }
    }
    let first = first_value(layout)?;
    if let CudaStorageSlice::F32(slice) = &storage.slice {
        Ok(of(slice, first, stream))
    } else if let CudaStorageSlice::F16(slice) = &storage.slice {
        Ok(of(slice, first, stream))
    } else if let CudaStorageSlice::BF16(slice) = &storage.slice {
        Ok(of(slice, first, stream))
    } else {
        bail!("no kernel reads {:?}", storage.dtype())
    }
}

fn pointer_mut<'a>(storage: &'a mut CudaStorage, layout: &Layout, stream: &'a CudaStream) -> Result<Pointer<'a>> {
    fn of<'a, T: WithDType>(slice: &'a mut CudaSlice<T>, first: usize, stream: &'a CudaStream) -> Pointer<'a> {
        let (address, held) = slice.device_ptr_mut(stream);
        Pointer { address: address + (first * size_of::<T>()) as u64, dtype: T::DTYPE, _held: held }
    }
    let (first, dtype) = (first_value(layout)?, storage.dtype());
    if dtype == DType::F32 {
        Ok(of(storage.as_cuda_slice_mut::<f32>()?, first, stream))
    } else if dtype == DType::F16 {
        Ok(of(storage.as_cuda_slice_mut::<f16>()?, first, stream))
    } else if dtype == DType::BF16 {
        Ok(of(storage.as_cuda_slice_mut::<bf16>()?, first, stream))
    } else {
        bail!("no kernel writes {dtype:?}")
    }
}

fn launch(
    plan: &Plan,
    device: &CudaDevice,
    dtype: DType,
    tensors: &[Pointer<'_>],
    output: Option<(u64, SyncOnDrop<'_>)>,
) -> Result<()> {
    let stream = device.cuda_stream();
    #[expect(unsafe_code, reason = "memory that is not cleared first: the first kernel writes what the second reads")]
    // SAFETY: as for outputs.
    let mut scratch = match plan.scratch_values {
        0 => None,
        values => Some(unsafe { device.alloc::<f32>(values)? }),
    };
    let scratch = scratch.as_mut().map(|scratch| scratch.device_ptr_mut(&stream));
    for call in &plan.calls {
        let name = format!("{}_{}", call.kernel, dtype.as_str());
        let function = device.get_or_load_custom_func(&name, MODULE, PTX)?;
        let mut addresses = Vec::with_capacity(call.arguments.len());
        for argument in &call.arguments {
            addresses.push(match argument {
                Argument::Tensor { number, first } => match tensors.get(*number) {
                    Some(tensor) if tensor.dtype == dtype => tensor.address + (first * dtype.size_in_bytes()) as u64,
                    _ => bail!("{name} wants a tensor {number} of {dtype:?}"),
                },
                Argument::Wide { number } => match tensors.get(*number) {
                    Some(tensor) if tensor.dtype == DType::F32 => tensor.address,
                    _ => bail!("{name} wants a tensor {number} of f32"),
                },
                Argument::Output => output.as_ref().map_or(0, |(address, _)| *address),
                Argument::Scratch => scratch.as_ref().map_or(0, |(address, _)| *address),
                Argument::Absent | Argument::Int(_) | Argument::Long(_) | Argument::Float(_) => 0,
            });
        }
        let mut builder = function.builder();
        for (argument, address) in call.arguments.iter().zip(&addresses) {
            match argument {
                Argument::Tensor { .. }
                | Argument::Wide { .. }
                | Argument::Output
                | Argument::Scratch
                | Argument::Absent => builder.arg(address),
                Argument::Int(value) => builder.arg(value),
                Argument::Long(value) => builder.arg(value),
                Argument::Float(value) => builder.arg(value),
            };
        }
        let [grid_dim, block_dim] = [call.grid, call.block].map(|[x, y, z]| (x, y, z));
        #[expect(unsafe_code, reason = "kernels are told addresses")]
        // SAFETY: plans are made from the shapes of these tensors, and the tests run every kernel with bounds checked.
        unsafe { builder.launch(LaunchConfig { grid_dim, block_dim, shared_mem_bytes: 0 }) }.w()?;
    }
    Ok(())
}
