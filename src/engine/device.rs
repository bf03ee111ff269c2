//! Where the model runs and in which number formats: the only place that knows of the feature `cuda`.
//!
//! It does not choose by itself between devices of a kind, and never falls back silently when one was asked for.

use candle_core::{DType, Device, DeviceLocation};

/// Which device the caller wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first CUDA device when this build has CUDA and the machine has one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA device by number.
    Cuda {
        /// As CUDA numbers them.
        ordinal: usize,
    },
}

/// A device that has no such name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be auto, cpu, cuda or cuda:<number>")]
pub struct UnknownDevice;

impl std::str::FromStr for DeviceChoice {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<Self, UnknownDevice> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda { ordinal: 0 }),
            _ => match text.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(ordinal)) => Ok(Self::Cuda { ordinal }),
                Some(Err(_)) | None => Err(UnknownDevice),
            },
        }
    }
}

impl DeviceChoice {
    /// Does what opening the device takes time for, so that it is quick when a model is loaded. What fails then fails again.
    pub fn prepare(self) {
        drop(self.open());
    }

    /// Opens the device.
    pub(crate) fn open(self) -> Result<Device, candle_core::Error> {
        let device = match self {
            Self::Cpu => Device::Cpu,
            Self::Cuda { ordinal } => open_cuda(ordinal)?,
            Self::Auto if has_gpu() => open_cuda(0)?,
            Self::Auto => Device::Cpu,
        };
        if device.is_cpu() {
            keep_freed_pages();
        }
        Ok(device)
    }
}

/// Lets the process keep pages that tensors have left for those that come: the system would have to clear them again.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "the C library has no other way to be told")]
fn keep_freed_pages() {
    use std::sync::Once;

    /// The largest that glibc takes: larger tensors go back at once.
    const MAPPED_FROM_BYTES: i32 = 32 << 20;
    /// At the end of the main heap; those of threads have 64 MiB at most.
    const KEPT_BYTES_MAX: i32 = 512 << 20;
    static TOLD: Once = Once::new();
    // SAFETY: nobody else calls it, and who allocates meanwhile finds the old number or the new one.
    TOLD.call_once(|| unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES_MAX);
    });
}

#[cfg(not(target_env = "gnu"))]
fn keep_freed_pages() {}

#[cfg(feature = "cuda")]
fn has_gpu() -> bool {
    candle_core::cuda_backend::cudarc::driver::CudaContext::device_count().is_ok_and(|count| count > 0)
}

#[cfg(not(feature = "cuda"))]
fn has_gpu() -> bool {
    false
}

/// A CUDA device with a queue of work of its own.
///
/// Without one, candle gives each thread a queue: what one thread loads, another could read before it is there.
fn open_cuda(ordinal: usize) -> Result<Device, candle_core::Error> {
    let device = Device::new_cuda_with_stream(ordinal)?;
    #[cfg(feature = "cuda")]
    {
        let device = device.as_cuda_device()?;
        #[expect(unsafe_code, reason = "a promise about queues")]
        // SAFETY: what is computed on one queue is never used on another: see `beside`. Two events a tensor and some waiting at
        // every kernel are saved.
        unsafe {
            device.disable_event_tracking();
        }
        super::memory::cuda::keep_freed(device);
    }
    Ok(device)
}

/// The same device with a queue of work and handles of its own, for what another thread computes at the same time. Tensors
/// go from one to the other only through the CPU's memory: nothing else would make one queue wait for the other.
pub(crate) fn beside(device: &Device) -> Result<Device, candle_core::Error> {
    match device.location() {
        DeviceLocation::Cuda { gpu_id } => open_cuda(gpu_id),
        DeviceLocation::Cpu | DeviceLocation::Metal { .. } => Ok(device.clone()),
    }
}

/// A number format of weights and, on a GPU, of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits.
    F32,
    /// 16 bits, 5 of them exponent.
    F16,
    /// 16 bits, 8 of them exponent.
    Bf16,
}

/// A number format that has no such name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be f32, f16 or bf16")]
pub struct UnknownPrecision;

impl std::str::FromStr for Precision {
    type Err = UnknownPrecision;

    fn from_str(text: &str) -> Result<Self, UnknownPrecision> {
        match text {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::Bf16),
            _ => Err(UnknownPrecision),
        }
    }
}

/// The number format of each part of a pipeline, as far as somebody asked for one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Precisions {
    /// UNet or transformer.
    pub denoiser: Option<Precision>,
    /// All text encoders.
    pub text_encoder: Option<Precision>,
    /// Encoder and decoder of pixels.
    pub vae: Option<Precision>,
}

impl Precisions {
    /// The same for every part.
    pub fn all(precision: Option<Precision>) -> Self {
        Self { denoiser: precision, text_encoder: precision, vae: precision }
    }
}

/// An opened device and the number format of the weights of a part that lives there.
#[derive(Clone, Debug)]
pub(crate) struct Placement {
    pub(crate) device: Device,
    pub(crate) dtype: DType,
}

impl Placement {
    /// The number format of activations: that of the weights, but on the CPU, whose sums are of 32 bits, f32.
    pub(crate) fn computes_in(&self) -> DType {
        let is_narrow = matches!(self.dtype, DType::F16 | DType::BF16);
        if is_narrow && self.device.is_cpu() { DType::F32 } else { self.dtype }
    }
}

/// Where each part of a pipeline lives.
#[derive(Clone, Debug)]
pub(crate) struct Placements {
    pub(crate) denoiser: Placement,
    pub(crate) text_encoder: Placement,
    pub(crate) vae: Placement,
}

impl Placements {
    /// All of it that decides how numbers are rounded: the class of the device and every part's number format.
    pub(crate) fn class(&self) -> String {
        let Self { denoiser, text_encoder, vae } = self;
        let class = match denoiser.device.location() {
            DeviceLocation::Cpu => "cpu",
            DeviceLocation::Cuda { .. } => "cuda",
            DeviceLocation::Metal { .. } => "metal",
        };
        let [denoiser, text_encoder, vae] = [denoiser, text_encoder, vae].map(|part| part.dtype.as_str());
        format!("{class}, denoiser {denoiser}, text encoder {text_encoder}, vae {vae}")
    }

    /// The placements on `device`, text encoders `beside` it: what `asked` says, else f32 on the CPU; elsewhere bf16 for weights
    /// that are stored so (they do not fit into f16's range), else f16; but there f32 for a VAE in f16 that upcasts, whoever asked.
    pub(crate) fn choose(
        device: &Device,
        beside: &Device,
        asked: Precisions,
        stored: DType,
        vae_upcasts: bool,
    ) -> Self {
        let unasked = match (device.is_cpu(), stored) {
            (true, _) => DType::F32,
            (false, DType::BF16) => DType::BF16,
            (false, _) => DType::F16,
        };
        let place = |device: &Device, asked: Option<Precision>, unasked: DType| {
            let dtype = match asked {
                Some(Precision::F32) => DType::F32,
                Some(Precision::F16) => DType::F16,
                Some(Precision::Bf16) => DType::BF16,
                None => unasked,
            };
            Placement { device: device.clone(), dtype }
        };
        let vae = place(device, asked.vae, unasked);
        // On the CPU f16 is how weights lie in memory, and all sums are f32.
        let overflows = vae_upcasts && vae.dtype == DType::F16 && !device.is_cpu();
        let vae = if overflows { Placement { dtype: DType::F32, ..vae } } else { vae };
        Self {
            denoiser: place(device, asked.denoiser, unasked),
            text_encoder: place(beside, asked.text_encoder, unasked),
            vae,
        }
    }
}
