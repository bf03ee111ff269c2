//! One LoRA file: its matrices, matched with the layers of the base model that they change.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::names::{Base, Target, target};
use super::{LoraError, Part};
use crate::engine::digest::hexadecimal;

/// Parts of keys that only other kinds of files have.
const OTHER_KINDS: [(&str, &str); 11] = [
    ("dora_scale", "DoRA"),
    ("lora_magnitude_vector", "DoRA"),
    ("hada_", "LoHa"),
    ("lokr_", "LoKr"),
    ("lora_mid", "LoCon with a Tucker decomposition"),
    ("oft_", "OFT"),
    (".diff", "a full difference of weights"),
    (".on_input", "IA3"),
    ("lora_embedding_", "a LoRA of embeddings"),
    (".bias", "a LoRA with biases"),
    ("lora_controlnet", "Control-LoRA"),
];

/// What a tensor of the file is for its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Down,
    Up,
    Alpha,
}

/// The endings of keys. Behind `_lora` a layer has the name that the first versions of diffusers gave it.
const ENDINGS: [(&str, Role); 9] = [
    (".lora_A.weight", Role::Down),
    (".lora_B.weight", Role::Up),
    (".lora_down.weight", Role::Down),
    (".lora_up.weight", Role::Up),
    (".lora_linear_layer.down.weight", Role::Down),
    (".lora_linear_layer.up.weight", Role::Up),
    (".lora.down.weight", Role::Down),
    (".lora.up.weight", Role::Up),
    (".alpha", Role::Alpha),
];
/// The same of the oldest files.
const OLD_ENDINGS: [(&str, Role); 2] = [(".down.weight", Role::Down), (".up.weight", Role::Up)];

/// The field of a safetensors file's metadata in which diffusers keeps peft's configuration, as JSON.
const ADAPTER_METADATA: &str = "lora_adapter_metadata";

/// What a LoRA adds to one weight.
#[derive(Debug)]
pub(super) struct Layer {
    /// `(rank, in * kernel)` in the file's number format.
    down: Tensor,
    /// `(out, rank)`
    up: Tensor,
    /// alpha / rank
    scale: f64,
    /// Of the base model's weight.
    shape: Vec<usize>,
}

impl Layer {
    pub(super) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// `(out, in * kernel)`, f32 on `device`.
    pub(super) fn delta(&self, weight: f32, device: &Device) -> candle_core::Result<Tensor> {
        let up = (self.up.to_device(device)?.to_dtype(DType::F32)? * (self.scale * f64::from(weight)))?;
        up.matmul(&self.down.to_device(device)?.to_dtype(DType::F32)?)
    }
}

/// One LoRA file, read and matched with a base model.
#[derive(Debug)]
pub(crate) struct Lora {
    name: String,
    path: PathBuf,
    digest: String,
    layers: BTreeMap<Target, Layer>,
}

impl Lora {
    /// Reads `path` into memory: LoRA files come and go while a model is loaded, so they are not mapped.
    ///
    /// # Errors
    /// Every [`LoraError`] but `Missing`: a key that is not used, or does not fit the model, is an error.
    pub(crate) fn read(path: &Path, base: &Base) -> Result<Self, LoraError> {
        let bytes = std::fs::read(path).map_err(|source| LoraError::Io { path: path.into(), source })?;
        let incomplete = |source| LoraError::Incomplete { path: path.into(), source };
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).map_err(incomplete)?;
        let tensors: BTreeMap<String, Tensor> = tensors.into_iter().collect();
        let file = File { path, adapter: adapter_metadata(&bytes), base };
        let mut layers = BTreeMap::new();
        for (name, factors) in file.group(&tensors)? {
            for (target, layer) in file.layers(&name, &factors)? {
                if layers.insert(target, layer).is_some() {
                    return Err(file.invalid(factors.key(&name), "names a layer that another key names as well"));
                }
            }
        }
        if layers.is_empty() {
            return Err(file.invalid("(no key)", "is no key of a LoRA: the file is empty"));
        }
        let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Self { name, path: path.into(), digest: hexadecimal(&Sha256::digest(&bytes)), layers })
    }

    /// The file's name without its ending.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// SHA-256 over the file.
    pub(super) fn digest(&self) -> &str {
        &self.digest
    }

    /// Where it was read from.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Shapes of the weights that it changes.
    pub(super) fn shapes(&self) -> impl Iterator<Item = &[usize]> {
        self.layers.values().map(Layer::shape)
    }

    pub(super) fn layer(&self, part: Part, tensor: &str) -> Option<&Layer> {
        self.layers.get(&target(part, tensor.strip_suffix(".weight")?))
    }
}

/// The tensors of one layer, with their keys.
#[derive(Debug, Default)]
struct Factors<'a> {
    down: Option<(&'a str, &'a Tensor)>,
    up: Option<(&'a str, &'a Tensor)>,
    alpha: Option<(&'a str, &'a Tensor)>,
}

impl<'a> Factors<'a> {
    /// A key of the layer, for errors.
    fn key<'b>(&self, name: &'b str) -> &'b str
    where
        'a: 'b,
    {
        [self.down, self.up, self.alpha].into_iter().flatten().map(|(key, _)| key).next().unwrap_or(name)
    }
}

/// A file that is being read.
struct File<'a> {
    path: &'a Path,
    adapter: Option<Map<String, Value>>,
    base: &'a Base,
}

impl File<'_> {
    fn invalid(&self, key: &str, reason: impl Into<String>) -> LoraError {
        LoraError::Invalid { path: self.path.into(), key: key.into(), reason: reason.into() }
    }

    /// The tensors by the name that the file has for their layer.
    fn group<'a>(&self, tensors: &'a BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Factors<'a>>, LoraError> {
        for key in tensors.keys() {
            if let Some((_, kind)) = OTHER_KINDS.iter().find(|(sign, _)| key.contains(sign)) {
                return Err(LoraError::Unsupported { path: self.path.into(), key: key.clone(), kind });
            }
        }
        let mut groups: BTreeMap<String, Factors<'a>> = BTreeMap::new();
        for (key, tensor) in tensors {
            let (name, role) = split(key).ok_or_else(|| self.invalid(key, "is no key of a LoRA"))?;
            let factors = groups.entry(name.to_owned()).or_default();
            let place = match role {
                Role::Down => &mut factors.down,
                Role::Up => &mut factors.up,
                Role::Alpha => &mut factors.alpha,
            };
            if place.replace((key, tensor)).is_some() {
                return Err(self.invalid(key, "is there twice, in two spellings"));
            }
        }
        Ok(groups)
    }

    /// The layers that the factors `name` change, of which there are several where the file has them fused.
    fn layers(&self, name: &str, factors: &Factors<'_>) -> Result<Vec<(Target, Layer)>, LoraError> {
        let unknown = || LoraError::UnknownLayer { path: self.path.into(), key: factors.key(name).into() };
        let targets = self.base.resolve(name).ok_or_else(unknown)?;
        let (Some((down_key, down)), Some((up_key, up))) = (factors.down, factors.up) else {
            return Err(self.invalid(factors.key(name), "has no counterpart: a layer needs a down and an up matrix"));
        };
        let shapes: Vec<&[usize]> = targets.iter().filter_map(|target| self.base.shape(target)).collect();
        let Some(first) = shapes.first() else { return Err(unknown()) };
        let rank = down.dims().first().copied().unwrap_or(0);
        if rank == 0 {
            return Err(self.invalid(down_key, "has rank 0"));
        }

        let kernel = kernel(first);
        let down = self.matrix(down_key, down, [rank, first[1]], kernel)?;
        let outputs = shapes.iter().map(|shape| shape[0]).sum();
        let up = self.matrix(up_key, up, [outputs, rank], [1, 1])?;
        let mut layers = Vec::with_capacity(targets.len());
        let mut row = 0;
        for (target, shape) in targets.iter().zip(&shapes) {
            let scale = self.scale(target, factors, rank)?;
            let up = up.narrow(0, row, shape[0])?;
            layers.push((target.clone(), Layer { down: down.clone(), up, scale, shape: shape.to_vec() }));
            row += shape[0];
        }
        Ok(layers)
    }

    /// `tensor`, which is `size` with a `kernel` where it is a convolution's, as a matrix.
    fn matrix(&self, key: &str, tensor: &Tensor, size: [usize; 2], kernel: [usize; 2]) -> Result<Tensor, LoraError> {
        let found = tensor.dims();
        if !matches!(found.len(), 2 | 4) || found[..2] != size || self::kernel(found) != kernel {
            let mut expected = size.to_vec();
            if kernel != [1, 1] || found.len() == 4 {
                expected.extend(kernel);
            }
            return Err(LoraError::WrongShape {
                path: self.path.into(),
                key: key.into(),
                expected,
                found: found.to_vec(),
            });
        }
        Ok(tensor.reshape((size[0], ()))?)
    }

    /// What the product of the matrices is multiplied with: alpha / rank, and 1 in files that say nothing of it.
    fn scale(&self, target: &Target, factors: &Factors<'_>, rank: usize) -> Result<f64, LoraError> {
        if let Some((key, alpha)) = factors.alpha {
            let values = alpha.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
            return match values.as_slice() {
                [alpha] if alpha.is_finite() => Ok(alpha / rank as f64),
                _ => Err(self.invalid(key, "is not one finite number")),
            };
        }
        let part = target.part.as_str();
        let field = |name: &str| self.adapter.as_ref()?.get(&format!("{part}.{name}"));
        let Some(alpha) = field("lora_alpha") else { return Ok(1.0) };
        let patterns = field("alpha_pattern").and_then(Value::as_object);
        let mut own = None;
        for (pattern, alpha) in patterns.into_iter().flatten() {
            if self.matches(pattern, &target.layer)? && own.is_none() {
                own = Some(alpha);
            }
        }
        let Some(alpha) = own.unwrap_or(alpha).as_f64() else {
            return Err(self.invalid(ADAPTER_METADATA, format!("has an alpha for {} that is no number", target.layer)));
        };
        let rank_stable = field("use_rslora") == Some(&Value::Bool(true));
        Ok(alpha / if rank_stable { (rank as f64).sqrt() } else { rank as f64 })
    }

    /// Whether peft's `pattern` means `layer`: it is a path or the end of one.
    ///
    /// peft takes it for a regular expression; diffusers writes none but paths, from the beginning where there is a `^`.
    fn matches(&self, pattern: &str, layer: &str) -> Result<bool, LoraError> {
        let (path, whole) = pattern.strip_prefix('^').map_or((pattern, false), |path| (path, true));
        if !path.chars().all(|character| character.is_ascii_alphanumeric() || character == '.' || character == '_') {
            return Err(self.invalid(ADAPTER_METADATA, format!("has the pattern `{pattern}`, which is no path")));
        }
        let path = path.strip_prefix("text_model.").unwrap_or(path);
        let end = || layer.strip_suffix(path).is_some_and(|before| before.ends_with('.'));
        Ok(layer == path || (!whole && end()))
    }
}

/// A key as the name of its layer and what its tensor is.
fn split(key: &str) -> Option<(&str, Role)> {
    let strip = |(ending, role): &(&str, Role)| Some((key.strip_suffix(ending)?, *role));
    let old = OLD_ENDINGS.iter().filter_map(strip).find(|(name, _)| name.ends_with("_lora"));
    old.or_else(|| ENDINGS.iter().find_map(strip))
}

/// The kernel of a convolution's weight; linear layers are as convolutions of one pixel.
fn kernel(shape: &[usize]) -> [usize; 2] {
    match shape {
        [_, _, height, width] => [*height, *width],
        _ => [1, 1],
    }
}

/// peft's configuration in the metadata of a safetensors file, if there is one.
fn adapter_metadata(file: &[u8]) -> Option<Map<String, Value>> {
    let length = usize::try_from(u64::from_le_bytes(*file.first_chunk()?)).ok()?;
    let header: Value = serde_json::from_slice(file.get(8..)?.get(..length)?).ok()?;
    serde_json::from_str(header.get("__metadata__")?.get(ADAPTER_METADATA)?.as_str()?).ok()
}
