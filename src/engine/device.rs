//! Where the model runs and in which number format: the only place that knows of the feature `cuda`.
//!
//! It does not choose by itself between devices of a kind, and never falls back silently when one was asked for.

use candle_core::{DType, Device};

/// Which device the caller wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first CUDA device when this build has CUDA and the machine has one, else the CPU.
    #[default]
    Auto,
    /// The CPU, in f32.
    Cpu,
    /// A CUDA device by number, in f16 (bf16 where the weights are bf16).
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

/// An opened device and its number format.
#[derive(Clone, Debug)]
pub(crate) struct Placement {
    pub(crate) device: Device,
    pub(crate) dtype: DType,
}

impl Placement {
    /// Opens the device.
    ///
    /// `weights` is the number format of the model's files: bf16 weights do not fit into f16's range.
    pub(crate) fn open(choice: DeviceChoice, weights: DType) -> Result<Self, candle_core::Error> {
        let device = match choice {
            DeviceChoice::Cpu => Device::Cpu,
            DeviceChoice::Cuda { ordinal } => Device::new_cuda(ordinal)?,
            DeviceChoice::Auto if cfg!(feature = "cuda") => Device::cuda_if_available(0)?,
            DeviceChoice::Auto => Device::Cpu,
        };
        let dtype = match (device.is_cuda(), weights) {
            (false, _) => DType::F32,
            (true, DType::BF16) => DType::BF16,
            (true, _) => DType::F16,
        };
        Ok(Self { device, dtype })
    }
}
