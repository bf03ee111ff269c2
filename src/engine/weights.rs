//! The weights of one part of a model: memory-mapped safetensors, asked for by name and shape.
//!
//! What the CPU can multiply as it is, in 16 bits or in 32, stays in the file: a model is ready before it was read, and
//! processes share it. Pickle files are never opened. Which tensors there should be is not known here: the layers ask.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Storage, Tensor};
use safetensors::tensor::{Dtype, TensorView};
use serde::Deserialize;

use super::config::read_json;
use super::device::Placement;
use super::error::LoadError;
use super::kernels::{Numbers, values_of};
use super::lora::{LoraSet, Part};

/// How diffusers and transformers call the weights of a part.
const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];
/// What the same weights are called as pickle files.
const PICKLES: [&str; 4] = ["bin", "ckpt", "pt", "pth"];

/// The safetensors files of the part in `directory`, in order.
///
/// Full precision goes before `.fp16`, one file before shards.
///
/// # Errors
/// `Pickle` when there is nothing but a pickle file, `Missing` when there is nothing at all.
pub(crate) fn files(directory: &Path) -> Result<Vec<PathBuf>, LoadError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    if !directory.is_dir() {
        return Err(LoadError::Missing { path: directory.into() });
    }
    for variant in ["", ".fp16"] {
        for stem in STEMS {
            let single = directory.join(format!("{stem}{variant}.safetensors"));
            if single.is_file() {
                return Ok(vec![single]);
            }
            let index = directory.join(format!("{stem}.safetensors.index{variant}.json"));
            if index.is_file() {
                let mut names: Vec<String> = read_json::<Index>(&index)?.weight_map.into_values().collect();
                names.sort();
                names.dedup();
                let shards: Vec<PathBuf> = names.iter().map(|name| directory.join(name)).collect();
                return match shards.iter().find(|shard| !shard.is_file()) {
                    Some(missing) => Err(LoadError::Missing { path: missing.clone() }),
                    None => Ok(shards),
                };
            }
        }
    }
    let entries = std::fs::read_dir(directory).map_err(|source| LoadError::Io { path: directory.into(), source })?;
    let mut pickles: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| PICKLES.iter().any(|pickle| extension == *pickle)))
        .collect();
    pickles.sort();
    match pickles.into_iter().next() {
        Some(path) => Err(LoadError::Pickle { path }),
        None => Err(LoadError::Missing { path: directory.join(format!("{}.safetensors", STEMS[0])) }),
    }
}

/// Bytes of weights that were asked for, by where they are.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    copied: AtomicU64,
    mapped: AtomicU64,
}

impl Tally {
    /// On the device, in memory of their own.
    pub(crate) fn copied(&self) -> u64 {
        self.copied.load(Ordering::Relaxed)
    }

    /// In their mapped file, which other models share.
    pub(crate) fn mapped(&self) -> u64 {
        self.mapped.load(Ordering::Relaxed)
    }
}

/// A place in the weights of one part, from which names are relative.
#[derive(Clone)]
pub(crate) struct Weights {
    tensors: Arc<MmapedSafetensors>,
    path: Arc<PathBuf>,
    placement: Placement,
    prefix: String,
    /// What is added to the tensors.
    overlay: Option<(Arc<LoraSet>, Part)>,
    tally: Arc<Tally>,
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Weights").field("path", &self.path).field("prefix", &self.prefix).finish()
    }
}

impl Weights {
    /// Maps `files`, which must stay as they are while the model is loaded.
    pub(crate) fn open(files: &[PathBuf], placement: &Placement) -> Result<Self, LoadError> {
        for path in files {
            // One by one first, so that an error names its file.
            map(&[path]).map_err(|source| LoadError::Weights { path: path.clone(), source })?;
        }
        let path = files.first().cloned().unwrap_or_default();
        let paths: Vec<&PathBuf> = files.iter().collect();
        let tensors = map(&paths).map_err(|source| LoadError::Weights { path: path.clone(), source })?;
        Ok(Self {
            tensors: Arc::new(tensors),
            path: Arc::new(path),
            placement: placement.clone(),
            prefix: String::new(),
            overlay: None,
            tally: Arc::default(),
        })
    }

    /// The weights below `name`.
    pub(crate) fn at(&self, name: &str) -> Self {
        Self { prefix: format!("{}{name}.", self.prefix), ..self.clone() }
    }

    /// The same weights, of `part`, with `loras` merged into them.
    pub(crate) fn overlaid(self, loras: Arc<LoraSet>, part: Part) -> Self {
        Self { overlay: Some((loras, part)), ..self }
    }

    /// The same weights, which `tally` counts.
    pub(crate) fn counted(self, tally: &Arc<Tally>) -> Self {
        Self { tally: Arc::clone(tally), ..self }
    }

    /// Names and shapes of all tensors, whatever this place.
    pub(crate) fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        self.tensors.tensors().into_iter().map(|(name, view)| (name, view.shape().to_vec())).collect()
    }

    /// Whether there is a tensor `name`.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.get(&format!("{}{name}", self.prefix)).is_ok()
    }

    /// The number format of the first tensor, which is that of all in practice.
    pub(crate) fn stored_dtype(&self) -> DType {
        let first = self.tensors.tensors().into_iter().next();
        first.and_then(|(_, view)| DType::try_from(view.dtype()).ok()).unwrap_or(DType::F32)
    }

    /// The tensor `name` of `shape`, on the device, to compute with.
    pub(crate) fn get(&self, shape: &[usize], name: &str) -> Result<Tensor, LoadError> {
        let tensor = self.load(shape, name)?.to_dtype(self.placement.computes_in())?;
        self.count(&tensor);
        Ok(tensor)
    }

    fn count(&self, tensor: &Tensor) {
        let bytes = tensor.elem_count() * tensor.dtype().size_in_bytes();
        self.tally.copied.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// The tensor `name` of `shape`, on the device, in the number format of weights.
    fn load(&self, shape: &[usize], name: &str) -> Result<Tensor, LoadError> {
        let tensor = self.check(shape, name)?;
        let loaded = self.tensors.load(&tensor, &self.placement.device)?;
        if let Ok(view) = self.tensors.get(&tensor) {
            forget(view.data());
        }
        let delta = match &self.overlay {
            Some((loras, part)) => loras.delta(*part, &tensor, shape, &self.placement.device)?,
            None => None,
        };
        let merged = match delta {
            Some(delta) => (loaded.to_dtype(DType::F32)? + delta)?,
            None => loaded,
        };
        Ok(merged.to_dtype(self.placement.dtype)?)
    }

    /// The tensor `name` of `shape` to multiply with: in the file, if the CPU can take it as it lies there.
    pub(crate) fn matrix(&self, shape: &[usize], name: &str) -> Result<Matrix, LoadError> {
        let tensor = self.check(shape, name)?;
        let Placement { device, dtype } = &self.placement;
        let overlaid = self.overlay.as_ref().is_some_and(|(loras, part)| loras.changes(*part, &tensor));
        let view = self.tensors.get(&tensor)?;
        if device.is_cpu() && !overlaid && view.dtype().try_into().ok() == Some(*dtype) && numbers(&view).is_some() {
            self.tally.mapped.fetch_add(view.data().len() as u64, Ordering::Relaxed);
            return Ok(Matrix::Mapped { tensors: Arc::clone(&self.tensors), tensor });
        }
        let loaded = self.load(shape, name)?;
        self.count(&loaded);
        Ok(Matrix::Loaded(loaded))
    }

    /// The tensor `name` of `shape` as rows of its last dimension, which stay in the file.
    pub(crate) fn table(&self, shape: &[usize], name: &str) -> Result<Table, LoadError> {
        let tensor = self.check(shape, name)?;
        Ok(Table { weights: self.clone(), tensor, width: shape.last().copied().unwrap_or(1) })
    }

    /// The whole name of the tensor `name`, if it exists in `shape`.
    fn check(&self, shape: &[usize], name: &str) -> Result<String, LoadError> {
        let tensor = format!("{}{name}", self.prefix);
        let Ok(view) = self.tensors.get(&tensor) else {
            return Err(LoadError::MissingTensor { path: self.path.as_ref().clone(), tensor });
        };
        if view.shape() != shape {
            let (expected, found) = (shape.to_vec(), view.shape().to_vec());
            return Err(LoadError::WrongShape { path: self.path.as_ref().clone(), tensor, expected, found });
        }
        Ok(tensor)
    }
}

/// The values of a tensor, if the CPU's kernels know the number format, and they lie where such numbers may.
fn numbers<'a>(view: &TensorView<'a>) -> Option<Numbers<'a>> {
    let (bytes, dtype) = (view.data(), view.dtype());
    if dtype == Dtype::F32 {
        bytemuck::try_cast_slice(bytes).ok().map(Numbers::F32)
    } else if dtype == Dtype::F16 {
        bytemuck::try_cast_slice(bytes).ok().map(Numbers::F16)
    } else if dtype == Dtype::BF16 {
        bytemuck::try_cast_slice(bytes).ok().map(Numbers::Bf16)
    } else {
        None
    }
}

/// Weights that only products read.
#[derive(Clone)]
pub(crate) enum Matrix {
    /// In the mapped file, for the CPU.
    Mapped {
        /// The file.
        tensors: Arc<MmapedSafetensors>,
        /// Its whole name.
        tensor: String,
    },
    /// On the device, in the number format of weights.
    Loaded(Tensor),
}

impl std::fmt::Debug for Matrix {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Mapped { tensor, .. } => formatter.debug_tuple("Mapped").field(tensor).finish(),
            Self::Loaded(tensor) => formatter.debug_tuple("Loaded").field(tensor).finish(),
        }
    }
}

impl Matrix {
    /// The tensor on the device.
    ///
    /// # Errors
    /// When it stayed in its file, for which the CPU has kernels.
    pub(crate) fn tensor(&self) -> candle_core::Result<&Tensor> {
        match self {
            Self::Loaded(tensor) => Ok(tensor),
            Self::Mapped { tensor, .. } => candle_core::bail!("`{tensor}` stayed in its file"),
        }
    }

    /// Calls `run` with the values.
    ///
    /// # Errors
    /// When they are not in the memory of the CPU, contiguous and in a number format of its kernels.
    pub(crate) fn with_values<R>(
        &self,
        run: impl FnOnce(Numbers<'_>) -> candle_core::Result<R>,
    ) -> candle_core::Result<R> {
        match self {
            Self::Mapped { tensors, tensor } => match numbers(&tensors.get(tensor)?) {
                Some(values) => run(values),
                None => candle_core::bail!("`{tensor}` is in a number format that the CPU has no kernels for"),
            },
            Self::Loaded(tensor) => {
                let (storage, layout) = tensor.storage_and_layout();
                let Storage::Cpu(storage) = &*storage else { candle_core::bail!("the weights are not on the CPU") };
                if tensor.dtype() == DType::F16 {
                    run(Numbers::F16(values_of(storage, layout)?))
                } else if tensor.dtype() == DType::BF16 {
                    run(Numbers::Bf16(values_of(storage, layout)?))
                } else {
                    run(Numbers::F32(values_of(storage, layout)?))
                }
            }
        }
    }
}

/// A large tensor of which few rows are ever wanted at once: they are copied out of the file when they are.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    weights: Weights,
    tensor: String,
    width: usize,
}

impl Table {
    /// The rows `indices` in that order, `(n, width)`, on the device.
    pub(crate) fn rows(&self, indices: impl Iterator<Item = usize>) -> candle_core::Result<Tensor> {
        let view = self.weights.tensors.get(&self.tensor)?;
        let dtype = DType::try_from(view.dtype())?;
        let bytes = self.width * dtype.size_in_bytes();
        let mut rows = Vec::new();
        for index in indices {
            match view.data().get(index * bytes..(index + 1) * bytes) {
                Some(row) => rows.extend_from_slice(row),
                None => candle_core::bail!("`{}` has no row {index}", self.tensor),
            }
        }
        let shape = [rows.len() / bytes, self.width];
        let placement = &self.weights.placement;
        let rounded = Tensor::from_raw_buffer(&rows, dtype, &shape, &placement.device)?.to_dtype(placement.dtype)?;
        rounded.to_dtype(placement.computes_in())
    }
}

/// Gives back the memory in which `bytes` of a mapped file lie: they were copied, and would count twice. They stay in the
/// system's cache of the file and come back when they are read again.
#[expect(unsafe_code, reason = "advice on memory takes an address")]
fn forget(bytes: &[u8]) {
    let page = rustix::param::page_size();
    let first = bytes.as_ptr().addr();
    let begin = first.next_multiple_of(page) - first;
    // Less than a page has no end within itself.
    let end = ((first + bytes.len()) / page * page).saturating_sub(first);
    let Some(whole) = bytes.get(begin..end) else { return };
    // SAFETY: whole pages of a read-only map of a file, which the system fills again from that file when they are read.
    let advised = unsafe {
        rustix::mm::madvise(whole.as_ptr().cast_mut().cast(), whole.len(), rustix::mm::Advice::LinuxDontNeed)
    };
    // Without it all is as right, only larger.
    let _ = advised;
}

#[expect(
    unsafe_code,
    reason = "a memory map is undefined behaviour if the file changes under it; models are read-only"
)]
fn map(paths: &[&PathBuf]) -> Result<MmapedSafetensors, candle_core::Error> {
    // SAFETY: the files of a model are not written while a process has it loaded; installing a model makes new files.
    unsafe { MmapedSafetensors::multi(paths) }
}
