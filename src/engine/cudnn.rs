//! Convolutions by cuDNN, on tensor cores, with an algorithm that is chosen once for each shape: choosing takes longer than most of
//! them.
//!
//! candle's own way asks for an algorithm at every call, clears the memory that it wants, and never lets it use tensor cores.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::cudnn::sys::{
    cudnnConvolutionFwdAlgo_t as Algorithm, cudnnConvolutionMode_t as Mode, cudnnMathType_t as Math,
    cudnnTensorFormat_t as Format,
};
use candle_core::cuda_backend::cudarc::cudnn::{ConvForward, Cudnn, CudnnDataType, CudnnError};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DeviceRepr};
use candle_core::cuda_backend::{CudaDType, DeviceId};
use candle_core::{CudaDevice, CudaStorage, CustomOp2, DType, Error, Layout, Result, Shape, Tensor, WithDType, bail};
use half::{bf16, f16};

/// What the choice depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Convolution {
    device: DeviceId,
    dtype: DType,
    /// `(b, c, h, w)`
    input: [usize; 4],
    /// `(out, c, h, w)`
    weight: [usize; 4],
    padding: usize,
    stride: usize,
}

/// An algorithm, and the bytes of memory that it wants.
type Choice = (Algorithm, usize);

/// None of what cuDNN has no algorithm for.
static CHOICES: LazyLock<Mutex<HashMap<Convolution, Option<Choice>>>> = LazyLock::new(Mutex::default);

thread_local! {
    /// Handles do not go from thread to thread.
    static HANDLES: RefCell<HashMap<DeviceId, Arc<Cudnn>>> = RefCell::default();
}

/// `x (b, c, h, w)` with `weight (out, c, h, w)`: `(b, out, h', w')`, or nothing for what cuDNN does not take as it is.
pub(super) fn convolve(x: &Tensor, weight: &Tensor, padding: usize, stride: usize) -> Result<Option<Tensor>> {
    let Ok(device) = x.device().as_cuda_device() else { return Ok(None) };
    let is_known = matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16);
    if !is_known || weight.dtype() != x.dtype() || !x.is_contiguous() || !weight.is_contiguous() {
        return Ok(None);
    }
    let (input, weight_sizes) = (x.dims4()?.into(), weight.dims4()?.into());
    let convolution =
        Convolution { device: device.id(), dtype: x.dtype(), input, weight: weight_sizes, padding, stride };
    if convolution.choice(device)?.is_none() {
        return Ok(None);
    }
    x.apply_op2_no_bwd(weight, &convolution).map(Some)
}

impl Convolution {
    /// `(b, out, h', w')`
    fn output(&self) -> [usize; 4] {
        let side = |index: usize| (self.input[index] + 2 * self.padding - self.weight[index]) / self.stride + 1;
        [self.input[0], self.weight[0], side(2), side(3)]
    }

    fn choice(&self, device: &CudaDevice) -> Result<Option<Choice>> {
        if let Some(choice) = CHOICES.lock().unwrap_or_else(PoisonError::into_inner).get(self) {
            return Ok(*choice);
        }
        let cudnn = handle(device)?;
        let choice = if self.dtype == DType::F32 {
            self.described::<f32, _>(&cudnn, choose)
        } else if self.dtype == DType::F16 {
            self.described::<f16, _>(&cudnn, choose)
        } else {
            self.described::<bf16, _>(&cudnn, choose)
        };
        if let Err(error) = &choice {
            tracing::debug!(?error, convolution = ?self, "cuDNN has no algorithm: candle is asked");
        }
        let choice = choice.ok();
        CHOICES.lock().unwrap_or_else(PoisonError::into_inner).insert(*self, choice);
        Ok(choice)
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
        if self.dtype != DType::F32 {
            // Without it, cuDNN multiplies 16 bits without tensor cores. With it, it changes the layout by itself.
            convolution.set_math_type(Math::CUDNN_TENSOR_OP_MATH)?;
        }
        let format = Format::CUDNN_TENSOR_NCHW;
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
        let device = x.0.device();
        let Some((algorithm, workspace_bytes)) = self.choice(device)? else { bail!("cuDNN has no algorithm") };
        let output_values = self.output().iter().product();
        #[expect(unsafe_code, reason = "memory that is not cleared first: cuDNN writes every value of an output")]
        // SAFETY: nobody reads it before the convolution has run, for it runs on the same stream.
        let (mut output, mut workspace) =
            unsafe { (device.alloc::<T>(output_values)?, device.alloc::<u8>(workspace_bytes.max(1))?) };
        let [x, weight] = [x, weight].map(|(storage, layout)| (storage.as_cuda_slice::<T>(), layout.start_offset()));
        let (x, weight) = (x.0?.slice(x.1..), weight.0?.slice(weight.1..));
        self.described::<T, _>(&handle(device)?, |forward| {
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
        Ok((output, Shape::from(&self.output())))
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
    Ok((algorithm, forward.get_workspace_size(algorithm)?))
}
