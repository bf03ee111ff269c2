//! Convolutions by cuDNN, on tensor cores, with an algorithm that is chosen once for each shape: choosing takes longer than most of
//! them.
//!
//! candle's own way asks for an algorithm at every call, clears the memory that it wants, and never lets it use tensor cores.
//!
//! Tensor cores want channels last, and cuDNN brings all it is given into that order, the weights too, at every call. So weights of
//! 16 bits are kept in it, and what goes in and out is turned by a kernel of ours, together with the bias. Nothing else here has
//! that order.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::cudnn::sys::{
    cudnnConvolutionFwdAlgo_t as Algorithm, cudnnConvolutionMode_t as Mode, cudnnMathType_t as Math,
    cudnnTensorFormat_t as Format,
};
use candle_core::cuda_backend::cudarc::cudnn::{ConvForward, Cudnn, CudnnDataType, CudnnError};
use candle_core::cuda_backend::cudarc::driver::sys::CUstreamCaptureStatus;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DeviceRepr};
use candle_core::cuda_backend::{CudaDType, DeviceId};
use candle_core::{
    CudaDevice, CudaStorage, CustomOp2, DType, Device, Error, Layout, Result, Shape, Tensor, WithDType, bail,
};
use half::{bf16, f16};

use super::error::is_out_of_memory;
use super::kernels;

/// What the choice depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Convolution {
    device: DeviceId,
    dtype: DType,
    order: Order,
    /// `(b, c, h, w)`, whatever the order.
    input: [usize; 4],
    /// `(out, c, h, w)`
    weight: [usize; 4],
    padding: usize,
    stride: usize,
}

/// How tensors lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Order {
    /// `(b, c, h, w)`
    ChannelsFirst,
    /// `(b, h, w, c)`
    ChannelsLast,
}

/// An algorithm, and the bytes of memory that it wants.
#[derive(Clone, Copy, Debug)]
struct Choice {
    algorithm: Algorithm,
    workspace_bytes: usize,
}

/// For what the recommended algorithm cannot do after all, or has no memory for: every shape, without memory.
const PLAIN: Choice = Choice { algorithm: Algorithm::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_GEMM, workspace_bytes: 0 };

/// None where cuDNN cannot do it: only with channels last.
static CHOICES: LazyLock<Mutex<HashMap<Convolution, Option<Choice>>>> = LazyLock::new(Mutex::default);

thread_local! {
    /// Handles do not go from thread to thread.
    static HANDLES: RefCell<HashMap<DeviceId, Arc<Cudnn>>> = RefCell::default();
}

/// `x (b, c, h, w)` with `weight (out, c, h, w)`: `(b, out, h', w')`, or nothing for what cuDNN does not take as it is.
pub(super) fn convolve(x: &Tensor, weight: &Tensor, padding: usize, stride: usize) -> Result<Option<Tensor>> {
    let Ok(device) = x.device().as_cuda_device().map(CudaDevice::id) else { return Ok(None) };
    let is_known = matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16);
    if !is_known || weight.dtype() != x.dtype() || !x.is_contiguous() || !weight.is_contiguous() {
        return Ok(None);
    }
    let (input, weight_sizes) = (x.dims4()?.into(), weight.dims4()?.into());
    let order = Order::ChannelsFirst;
    let convolution = Convolution { device, dtype: x.dtype(), order, input, weight: weight_sizes, padding, stride };
    x.apply_op2_no_bwd(weight, &convolution).map(Some)
}

/// Whether weights of `inputs` to `outputs` channels are better kept with channels last: where there are tensor cores for them, and
/// cuDNN's result is right.
pub(super) fn wants_channels_last(device: &Device, dtype: DType, inputs: usize, outputs: usize) -> bool {
    /// Channels that tensor cores take at once.
    const ALIGNED: usize = 8;
    static F16_IS_RIGHT: OnceLock<bool> = OnceLock::new();
    static BF16_IS_RIGHT: OnceLock<bool> = OnceLock::new();
    let (is_right, digits) = if dtype == DType::F16 {
        (&F16_IS_RIGHT, 10)
    } else if dtype == DType::BF16 {
        (&BF16_IS_RIGHT, 7)
    } else {
        return false;
    };
    if !device.is_cuda() || !inputs.is_multiple_of(ALIGNED) || !outputs.is_multiple_of(ALIGNED) {
        return false;
    }
    *is_right.get_or_init(|| {
        let checked = check_channels_last(device, dtype, digits);
        if let Err(error) = &checked {
            tracing::warn!(%error, ?dtype, "convolutions have channels first on this GPU: that is slower");
        }
        checked.is_ok()
    })
}

/// Whether what the device is asked for is recorded, not done. What fails then says nothing of what it can do.
fn is_recorded(device: &CudaDevice) -> bool {
    !matches!(device.cuda_stream().capture_status(), Ok(CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE))
}

/// `weight (out, c, h, w)` with channels last: `(out, h, w, c)`.
pub(super) fn channels_last(weight: &Tensor) -> Result<Tensor> {
    weight.permute((0, 2, 3, 1))?.contiguous()
}

/// `x (b, c, h, w)` with `weight (out, h, w, c)` and `bias (out)`: `(b, out, h', w')`, or nothing for what cuDNN cannot do
/// so, or has no memory for.
pub(super) fn convolve_channels_last(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    padding: usize,
    stride: usize,
) -> Result<Option<Tensor>> {
    let (b, c, h, w) = x.dims4()?;
    let (out, rows, columns, _) = weight.dims4()?;
    let convolution = Convolution {
        device: x.device().as_cuda_device()?.id(),
        dtype: x.dtype(),
        order: Order::ChannelsLast,
        input: [b, c, h, w],
        weight: [out, c, rows, columns],
        padding,
        stride,
    };
    let x = x.contiguous()?.reshape((b, c, h * w))?.apply_op1_no_bwd(&kernels::Transpose)?;
    let Ok(y) = x.apply_op2_no_bwd(weight, &convolution) else { return Ok(None) };
    let [_, _, h, w] = convolution.output();
    let y = y.reshape((b, h * w, out))?.apply_op2_no_bwd(bias, &kernels::Transpose)?;
    y.reshape((b, out, h, w)).map(Some)
}

/// Compares a small convolution with channels last, in a number format of `digits` bits behind the first, with the CPU's.
fn check_channels_last(device: &Device, dtype: DType, digits: i32) -> Result<()> {
    let (b, c, out, h, w) = (2, 24, 16, 9, 7);
    let numbers = |shape: &[usize], step: f64| -> Result<Tensor> {
        let count: usize = shape.iter().product();
        // Small whole numbers are the same in every format.
        let values = (0..count).map(|index| ((index as f64 * step).sin() * 2.0).round() as f32);
        Tensor::from_vec(values.collect(), shape, &Device::Cpu)
    };
    let (x, weight, bias) = (numbers(&[b, c, h, w], 0.7)?, numbers(&[out, c, 3, 3], 1.3)?, numbers(&[out], 2.1)?);
    if !kernels::take(&x.to_device(device)?) {
        bail!("fused kernels are not used");
    }
    let there = |tensor: &Tensor| tensor.to_device(device)?.to_dtype(dtype);
    for (padding, stride) in [(1, 1), (1, 2), (0, 2)] {
        let expected = x.conv2d(&weight, padding, stride, 1, 1)?.broadcast_add(&bias.reshape((1, out, 1, 1))?)?;
        let (x, weight, bias) = (there(&x)?, channels_last(&there(&weight)?)?, there(&bias)?);
        let Some(found) = convolve_channels_last(&x, &weight, &bias, padding, stride)? else {
            bail!("cuDNN cannot do it in {dtype:?}");
        };
        kernels::compare("a convolution", &found, &expected, digits)?;
    }
    Ok(())
}

impl Convolution {
    /// `(b, out, h', w')`
    fn output(&self) -> [usize; 4] {
        let side = |index: usize| (self.input[index] + 2 * self.padding - self.weight[index]) / self.stride + 1;
        [self.input[0], self.weight[0], side(2), side(3)]
    }

    fn remember(&self, choice: Option<Choice>) {
        CHOICES.lock().unwrap_or_else(PoisonError::into_inner).insert(*self, choice);
    }

    /// Describes it to cuDNN, for values of the type `T`. Sums are f32 whatever the type, as PyTorch has them.
    fn described<T: CudnnDataType, R>(
        &self,
        cudnn: &Arc<Cudnn>,
        call: impl FnOnce(ConvForward<'_, T, f32, T>) -> std::result::Result<R, CudnnError>,
    ) -> std::result::Result<R, CudnnError> {
        // No size of a picture comes near what is cut off.
        let [padding, stride] = [self.padding, self.stride].map(|value| value as i32);
        let [input, weight, output] =
            [self.input, self.weight, self.output()].map(|sizes| sizes.map(|size| size as i32));
        let mode = Mode::CUDNN_CROSS_CORRELATION;
        let mut convolution = cudnn.create_conv2d::<f32>([padding; 2], [stride; 2], [1; 2], mode)?;
        convolution.set_math_type(if self.dtype == DType::F32 {
            // Otherwise 13 of the 23 bits would be left out.
            Math::CUDNN_FMA_MATH
        } else {
            // Otherwise cuDNN multiplies without tensor cores. With them, it brings all into their order by itself.
            Math::CUDNN_TENSOR_OP_MATH
        })?;
        let format = match self.order {
            Order::ChannelsFirst => Format::CUDNN_TENSOR_NCHW,
            Order::ChannelsLast => Format::CUDNN_TENSOR_NHWC,
        };
        call(ConvForward {
            conv: &convolution,
            x: &cudnn.create_4d_tensor::<T>(format, input)?,
            w: &cudnn.create_4d_filter::<T>(format, weight)?,
            y: &cudnn.create_4d_tensor::<T>(format, output)?,
        })
    }

    fn run<T: CudaDType + CudnnDataType + DeviceRepr + WithDType>(
        &self,
        x: (&CudaStorage, &Layout),
        weight: (&CudaStorage, &Layout),
    ) -> Result<CudaStorage> {
        let cudnn = handle(x.0.device())?;
        let known = CHOICES.lock().unwrap_or_else(PoisonError::into_inner).get(self).copied();
        let choice = match known {
            Some(Some(choice)) => choice,
            Some(None) => bail!("cuDNN could not do it before"),
            None => {
                let choice = self.described::<T, _>(&cudnn, choose).unwrap_or(PLAIN);
                self.remember(Some(choice));
                choice
            }
        };
        let error = match self.run_by::<T>(choice, &cudnn, x, weight) {
            Err(error) if is_recorded(x.0.device()) => return Err(error),
            Err(error) if self.order == Order::ChannelsLast || choice.algorithm != PLAIN.algorithm => error,
            result => return result,
        };
        // Room there may be the next time.
        let is_lasting = !is_out_of_memory(&error);
        if is_lasting {
            tracing::warn!(%error, convolution = ?self, ?choice, "cuDNN could not do what it recommends");
        }
        if self.order == Order::ChannelsLast {
            if is_lasting {
                self.remember(None);
            }
            return Err(error);
        }
        let output = self.run_by::<T>(PLAIN, &cudnn, x, weight)?;
        if is_lasting {
            self.remember(Some(PLAIN));
        }
        Ok(output)
    }

    fn run_by<T: CudaDType + CudnnDataType + DeviceRepr + WithDType>(
        &self,
        Choice { algorithm, workspace_bytes }: Choice,
        cudnn: &Arc<Cudnn>,
        x: (&CudaStorage, &Layout),
        weight: (&CudaStorage, &Layout),
    ) -> Result<CudaStorage> {
        let device = x.0.device();
        let output_values = self.output().iter().product();
        #[expect(unsafe_code, reason = "memory that is not cleared first: cuDNN writes every value of an output")]
        // SAFETY: nobody reads it before the convolution has run, for it runs on the same stream.
        let (mut output, mut workspace) =
            unsafe { (device.alloc::<T>(output_values)?, device.alloc::<u8>(workspace_bytes.max(1))?) };
        let [x, weight] = [x, weight].map(|(storage, layout)| (storage.as_cuda_slice::<T>(), layout.start_offset()));
        let (x, weight) = (x.0?.slice(x.1..), weight.0?.slice(weight.1..));
        self.described::<T, _>(cudnn, |forward| {
            let workspace: Option<&mut CudaSlice<u8>> = Some(&mut workspace);
            #[expect(unsafe_code, reason = "cuDNN is told addresses")]
            // SAFETY: what is described has the sizes and the type of these tensors.
            unsafe {
                forward.launch(algorithm, workspace, (T::from_f64(1.0), T::from_f64(0.0)), &x, &weight, &mut output)
            }
        })
        .map_err(Error::wrap)?;
        Ok(CudaStorage::wrap_cuda_slice(output, device.clone()))
    }
}

impl CustomOp2 for Convolution {
    fn name(&self) -> &'static str {
        "cudnn-convolution"
    }

    fn cpu_fwd(
        &self,
        _: &candle_core::CpuStorage,
        _: &Layout,
        _: &candle_core::CpuStorage,
        _: &Layout,
    ) -> Result<(candle_core::CpuStorage, Shape)> {
        bail!("cuDNN computes on a GPU")
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_l: &Layout,
        weight: &CudaStorage,
        weight_l: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let output = if self.dtype == DType::F32 {
            self.run::<f32>((x, x_l), (weight, weight_l))?
        } else if self.dtype == DType::F16 {
            self.run::<f16>((x, x_l), (weight, weight_l))?
        } else {
            self.run::<bf16>((x, x_l), (weight, weight_l))?
        };
        let [b, out, h, w] = self.output();
        let shape = match self.order {
            Order::ChannelsFirst => [b, out, h, w],
            Order::ChannelsLast => [b, h, w, out],
        };
        Ok((output, Shape::from(&shape)))
    }
}

/// The thread's handle of the device.
fn handle(device: &CudaDevice) -> Result<Arc<Cudnn>> {
    HANDLES.with_borrow_mut(|handles| {
        if let Some(cudnn) = handles.get(&device.id()) {
            return Ok(Arc::clone(cudnn));
        }
        let cudnn = Cudnn::new(device.cuda_stream()).map_err(Error::wrap)?;
        handles.insert(device.id(), Arc::clone(&cudnn));
        Ok(cudnn)
    })
}

fn choose<T: CudnnDataType>(forward: ConvForward<'_, T, f32, T>) -> std::result::Result<Choice, CudnnError> {
    let algorithm = forward.pick_algorithm()?;
    Ok(Choice { algorithm, workspace_bytes: forward.get_workspace_size(algorithm)? })
}
