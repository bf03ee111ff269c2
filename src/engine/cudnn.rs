//! Which algorithm cuDNN recommends for a convolution, asked once for each shape: asking takes longer than most of them.
//!
//! It computes nothing. Of what cuDNN has no recommendation for, candle asks again, and says what is wrong.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use candle_core::conv::CudnnFwdAlgo;
use candle_core::cuda_backend::DeviceId;
use candle_core::cuda_backend::cudarc::cudnn::sys::{
    cudnnConvolutionFwdAlgo_t as Algorithm, cudnnConvolutionMode_t as Mode, cudnnTensorFormat_t as Format,
};
use candle_core::cuda_backend::cudarc::cudnn::{ConvForward, Cudnn, CudnnDataType, CudnnError};
use candle_core::{DType, Tensor};
use half::{bf16, f16};

/// What a recommendation depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Question {
    device: DeviceId,
    dtype: DType,
    /// `(b, c, h, w)`
    input: [usize; 4],
    /// `(out, c, h, w)`
    weight: [usize; 4],
    padding: usize,
    stride: usize,
}

static ANSWERS: LazyLock<Mutex<HashMap<Question, Option<CudnnFwdAlgo>>>> = LazyLock::new(Mutex::default);

thread_local! {
    /// Handles do not go from thread to thread.
    static HANDLES: RefCell<HashMap<DeviceId, Arc<Cudnn>>> = RefCell::default();
}

/// The algorithm for a convolution of `x (b, c, h, w)` with `weight (out, c, h, w)`.
pub(super) fn recommended(x: &Tensor, weight: &Tensor, padding: usize, stride: usize) -> Option<CudnnFwdAlgo> {
    let device = x.device().as_cuda_device().ok()?;
    // candle describes others to cuDNN by their strides.
    if !x.is_contiguous() {
        return None;
    }
    let (input, weight) = (x.dims4().ok()?.into(), weight.dims4().ok()?.into());
    let question = Question { device: device.id(), dtype: x.dtype(), input, weight, padding, stride };
    let mut answers = ANSWERS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(answer) = answers.get(&question) {
        return *answer;
    }
    let cudnn = HANDLES.with_borrow_mut(|handles| match handles.get(&question.device) {
        Some(cudnn) => Some(Arc::clone(cudnn)),
        None => {
            let cudnn = Cudnn::new(device.cuda_stream()).ok()?;
            handles.insert(question.device, Arc::clone(&cudnn));
            Some(cudnn)
        }
    })?;
    // As candle computes them.
    let answer = if question.dtype == DType::F32 {
        ask::<f32, f32>(&cudnn, question)
    } else if question.dtype == DType::F16 {
        ask::<f16, f16>(&cudnn, question)
    } else if question.dtype == DType::BF16 {
        ask::<bf16, f32>(&cudnn, question)
    } else {
        return None;
    };
    let answer = answer.ok().and_then(named);
    answers.insert(question, answer);
    answer
}

/// Asks cuDNN, for values of the type `T` and sums of the type `Y`.
fn ask<T: CudnnDataType, Y: CudnnDataType>(cudnn: &Arc<Cudnn>, question: Question) -> Result<Algorithm, CudnnError> {
    let Question { padding, stride, .. } = question;
    // No size of a picture comes near what is cut off.
    let [padding, stride] = [padding, stride].map(|value| value as i32);
    let [input, weight] = [question.input, question.weight].map(|sizes| sizes.map(|size| size as i32));
    let convolution = cudnn.create_conv2d::<Y>([padding; 2], [stride; 2], [1; 2], Mode::CUDNN_CROSS_CORRELATION)?;
    let side = |size: i32, taps: i32| (size + 2 * padding - taps) / stride + 1;
    let output = [input[0], weight[0], side(input[2], weight[2]), side(input[3], weight[3])];
    ConvForward {
        conv: &convolution,
        x: &cudnn.create_4d_tensor::<T>(Format::CUDNN_TENSOR_NCHW, input)?,
        w: &cudnn.create_4d_filter::<T>(Format::CUDNN_TENSOR_NCHW, weight)?,
        y: &cudnn.create_4d_tensor::<T>(Format::CUDNN_TENSOR_NCHW, output)?,
    }
    .pick_algorithm()
}

/// As candle calls it.
fn named(algorithm: Algorithm) -> Option<CudnnFwdAlgo> {
    match algorithm {
        Algorithm::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_GEMM => Some(CudnnFwdAlgo::ImplicitGemm),
        Algorithm::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM => Some(CudnnFwdAlgo::ImplicitPrecompGemm),
        Algorithm::CUDNN_CONVOLUTION_FWD_ALGO_GEMM => Some(CudnnFwdAlgo::Gemm),
        Algorithm::CUDNN_CONVOLUTION_FWD_ALGO_DIRECT => Some(CudnnFwdAlgo::Direct),
        Algorithm::CUDNN_CONVOLUTION_FWD_ALGO_FFT => Some(CudnnFwdAlgo::Fft),
        Algorithm::CUDNN_CONVOLUTION_FWD_ALGO_FFT_TILING => Some(CudnnFwdAlgo::FftTiling),
        Algorithm::CUDNN_CONVOLUTION_FWD_ALGO_WINOGRAD => Some(CudnnFwdAlgo::Winograd),
        Algorithm::CUDNN_CONVOLUTION_FWD_ALGO_WINOGRAD_NONFUSED => Some(CudnnFwdAlgo::WinogradNonFused),
        Algorithm::CUDNN_CONVOLUTION_FWD_ALGO_COUNT => None,
    }
}
