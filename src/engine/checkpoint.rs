//! What a row has become, as bytes that another process with the same model goes on from.
//!
//! A safetensors file. Its tensors are the row's state: `latents`, `estimate` and `memory.0`, `memory.1`, … in f32, all
//! `(1, c, h, w)`, and `random`, the generator in u8. Where the next step takes features from the last whole one, they are
//! worked out again from the latents that that one had: `whole`, of the same shape. Its metadata say what they belong to,
//! each as text: `format`, `model`, `loras`, `placement`, `sampler`, `steps`, `step`, `image`, and `sha256` over all the
//! rest. The same row gives the same bytes.
//!
//! What follows from specification, pictures and model is not in it; nor is it decided here when a row is saved, or where
//! that is kept. The bytes may come from anywhere: nothing is made of them that is larger than they are.

use std::borrow::Cow;
use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::digest::hexadecimal;
use super::random::Generator;
use super::sampler::{MEMORY_SLOTS_MAX, SamplerState};
use crate::job::{Fault, FeatureCache, ImageSpec, Sizes, Start, Weighting};

/// To be raised with every change of the layout, and of what a step computes: a picture is made by one rule from its
/// beginning to its end.
const FORMAT: &str = "8";
/// More than the metadata and the generator of any row.
const REST_BYTES_MAX: usize = 64 << 10;

const METADATA: &str = "__metadata__";
const SHA256: &str = "sha256";
const LATENTS: &str = "latents";
const ESTIMATE: &str = "estimate";
const WHOLE: &str = "whole";
const RANDOM: &str = "random";

/// Why a row cannot go on from saved bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResumeError {
    /// They are not what was saved.
    #[error("the checkpoint is damaged: {why}")]
    Damaged {
        /// What is wrong with them.
        why: String,
    },
    /// They were saved by a program that computes otherwise.
    #[error("the checkpoint has format {found:?}, not {FORMAT:?}")]
    OtherFormat {
        /// What they have.
        found: String,
    },
    /// They were saved with other weights.
    #[error("the checkpoint is of model {found}, not {expected}")]
    OtherModel {
        /// The digests of its files and of its LoRAs.
        found: String,
        /// Those of the loaded model.
        expected: String,
    },
    /// They were saved where numbers are rounded otherwise.
    #[error("the checkpoint was computed with {found}, not {expected}")]
    OtherPlacement {
        /// Class of the device and number formats.
        found: String,
        /// Those here.
        expected: String,
    },
    /// They were saved on another way from noise to picture.
    #[error("the checkpoint is on the way of {found}, not {expected}")]
    OtherTrajectory {
        /// Sampler and number of steps.
        found: String,
        /// Those of the specification.
        expected: String,
    },
    /// They were saved of another specification, or with other starting pictures.
    #[error("the checkpoint is of image {found}, not {expected}")]
    OtherImage {
        /// The digest of specification and pictures.
        found: String,
        /// That of those given.
        expected: String,
    },
    /// The image cannot be begun at all, whatever was saved.
    #[error(transparent)]
    Engine(#[from] Fault),
}

fn damaged(why: impl ToString) -> ResumeError {
    ResumeError::Damaged { why: why.to_string() }
}

/// What a state belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The digest of the model's files.
    pub(crate) model: String,
    /// Those of the LoRAs that are merged into it, with commas.
    pub(crate) loras: String,
    /// Class of the device and number formats.
    pub(crate) placement: String,
    /// The sampler's name.
    pub(crate) sampler: String,
    /// Steps in all.
    pub(crate) steps: usize,
    /// See [`image_digest`].
    pub(crate) image: String,
}

impl Facts {
    /// Whether a state that belongs to these may go on as what has `expected`.
    ///
    /// # Errors
    /// What differs.
    pub(crate) fn check(self, expected: Self) -> Result<(), ResumeError> {
        if (&self.model, &self.loras) != (&expected.model, &expected.loras) {
            let [found, expected] =
                [self, expected].map(
                    |Self { model, loras, .. }| {
                        if loras.is_empty() { model } else { format!("{model} with {loras}") }
                    },
                );
            return Err(ResumeError::OtherModel { found, expected });
        }
        if self.placement != expected.placement {
            return Err(ResumeError::OtherPlacement { found: self.placement, expected: expected.placement });
        }
        if (&self.sampler, self.steps) != (&expected.sampler, expected.steps) {
            let [found, expected] =
                [self, expected].map(|Self { sampler, steps, .. }| format!("{sampler} in {steps} steps"));
            return Err(ResumeError::OtherTrajectory { found, expected });
        }
        if self.image != expected.image {
            return Err(ResumeError::OtherImage { found: self.image, expected: expected.image });
        }
        Ok(())
    }
}

/// A row between two steps.
#[derive(Clone, Debug)]
pub(crate) struct Checkpoint {
    pub(crate) facts: Facts,
    /// Steps taken, up to `facts.steps`.
    pub(crate) step: usize,
    pub(crate) state: SamplerState,
    /// The latents before the last whole step, where the next one takes features from it.
    pub(crate) whole: Option<Tensor>,
    pub(crate) random: Generator,
}

/// One tensor of the file.
struct Part<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Cow<'a, [u8]>,
}

impl<'a> Part<'a> {
    fn of_tensor(tensor: &Tensor) -> candle_core::Result<Part<'static>> {
        let values = tensor.flatten_all()?.to_vec1::<f32>()?;
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        Ok(Part { dtype: Dtype::F32, shape: tensor.dims().to_vec(), data: data.into() })
    }

    fn of_view(view: &TensorView<'a>) -> Self {
        Self { dtype: view.dtype(), shape: view.shape().to_vec(), data: view.data().into() }
    }

    /// The numbers, in the CPU's memory.
    fn tensor(&self) -> Result<Tensor, ResumeError> {
        if self.dtype != Dtype::F32 {
            return Err(damaged(format!("numbers are {:?}, not F32", self.dtype)));
        }
        let values: Vec<f32> = self.data.as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)).collect();
        if !values.iter().all(|value| value.is_finite()) {
            return Err(damaged("it holds values that are not numbers"));
        }
        Tensor::from_vec(values, self.shape.as_slice(), &Device::Cpu).map_err(damaged)
    }
}

fn slot_name(slot: usize) -> String {
    format!("memory.{slot}")
}

/// SHA-256 over all metadata but itself and all tensors, in the order of their names, each with its length.
fn checksum<'a>(
    metadata: impl Iterator<Item = (&'a str, &'a str)>,
    tensors: &BTreeMap<Cow<'_, str>, Part<'_>>,
) -> String {
    let mut hash = Fields::default();
    metadata.filter(|(name, _)| *name != SHA256).for_each(|(name, value)| hash.add(name, value.as_bytes()));
    for (name, Part { dtype, shape, data }) in tensors {
        hash.add(name, format!("{dtype:?} {shape:?}").as_bytes());
        hash.add("data", data);
    }
    hash.digest()
}

impl Checkpoint {
    /// The file.
    ///
    /// # Errors
    /// When a tensor cannot be read back from its device.
    pub(crate) fn to_bytes(&self) -> candle_core::Result<Vec<u8>> {
        let SamplerState { latents, estimate, memory } = &self.state;
        let mut tensors: BTreeMap<Cow<'_, str>, Part<'_>> = BTreeMap::new();
        tensors.insert(LATENTS.into(), Part::of_tensor(latents)?);
        tensors.insert(ESTIMATE.into(), Part::of_tensor(estimate)?);
        for (slot, tensor) in memory.iter().enumerate() {
            tensors.insert(slot_name(slot).into(), Part::of_tensor(tensor)?);
        }
        if let Some(whole) = &self.whole {
            tensors.insert(WHOLE.into(), Part::of_tensor(whole)?);
        }
        let random = self.random.to_bytes();
        tensors.insert(RANDOM.into(), Part { dtype: Dtype::U8, shape: vec![random.len()], data: random.into() });

        let Facts { model, loras, placement, sampler, steps, image } = &self.facts;
        let (step, steps) = (self.step.to_string(), steps.to_string());
        let mut metadata: BTreeMap<&str, &str> = BTreeMap::from([
            ("format", FORMAT),
            ("image", image),
            ("loras", loras),
            ("model", model),
            ("placement", placement),
            ("sampler", sampler),
            ("step", &step),
            ("steps", &steps),
        ]);
        let sum = checksum(metadata.iter().map(|(name, value)| (*name, *value)), &tensors);
        metadata.insert(SHA256, &sum);
        Ok(file(&metadata, &tensors))
    }

    /// What [`Self::to_bytes`] wrote, in the CPU's memory. The latents are to have `shape`.
    ///
    /// # Errors
    /// `Damaged` and `OtherFormat`.
    pub(crate) fn from_bytes(bytes: &[u8], shape: &[usize]) -> Result<Self, ResumeError> {
        let tensor = shape.iter().fold(size_of::<f32>(), |bytes, side| bytes.saturating_mul(*side));
        let bytes_max = tensor.saturating_mul(3 + MEMORY_SLOTS_MAX).saturating_add(REST_BYTES_MAX);
        if bytes.len() > bytes_max {
            return Err(damaged(format!("it has {} bytes, more than {bytes_max}", bytes.len())));
        }
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(damaged)?;
        let read = SafeTensors::deserialize(bytes).map_err(damaged)?;
        let metadata: BTreeMap<&str, &str> =
            header.metadata().iter().flatten().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let fact = |name: &str| metadata.get(name).copied().ok_or_else(|| damaged(format!("it says no {name}")));
        let format = fact("format")?;
        if format != FORMAT {
            return Err(ResumeError::OtherFormat { found: shortened(format) });
        }
        let mut tensors: BTreeMap<Cow<'_, str>, Part<'_>> =
            read.iter().map(|(name, view)| (name.into(), Part::of_view(&view))).collect();
        if checksum(metadata.iter().map(|(name, value)| (*name, *value)), &tensors) != fact(SHA256)? {
            return Err(damaged("it is not what its checksum says"));
        }

        let number = |name: &str| fact(name)?.parse::<usize>().map_err(|_| damaged(format!("its {name} is no number")));
        let text = |name: &str| fact(name).map(shortened);
        let facts = Facts {
            model: text("model")?,
            loras: fact("loras")?.to_owned(),
            placement: text("placement")?,
            sampler: text("sampler")?,
            steps: number("steps")?,
            image: text("image")?,
        };
        let step = number("step")?;
        if step > facts.steps {
            return Err(damaged(format!("it is at step {step} of {}", facts.steps)));
        }
        let mut take = |name: &str| tensors.remove(name);
        let random = take(RANDOM).ok_or_else(|| damaged("it has no random numbers"))?;
        let random = Generator::from_bytes(&random.data).map_err(damaged)?;
        let mut latents = |name: &str| match take(name) {
            Some(part) if part.shape == shape => part.tensor().map(Some),
            Some(part) => Err(damaged(format!("{name} has shape {:?}, not {shape:?}", part.shape))),
            None => Ok(None),
        };
        let missing = || damaged("it has no latents");
        let (first, estimate) = (latents(LATENTS)?.ok_or_else(missing)?, latents(ESTIMATE)?.ok_or_else(missing)?);
        let whole = latents(WHOLE)?;
        let mut memory = Vec::new();
        while let Some(slot) = latents(&slot_name(memory.len()))? {
            memory.push(slot);
        }
        if let Some(name) = tensors.keys().next() {
            return Err(damaged(format!("it has a tensor {:?}", shortened(name))));
        }
        Ok(Self { facts, step, state: SamplerState { latents: first, estimate, memory }, whole, random })
    }
}

/// So much of foreign text as an error can show.
fn shortened(text: &str) -> String {
    text.chars().take(100).collect()
}

/// A safetensors file. The crate of that name would write the metadata in another order each time.
fn file(metadata: &BTreeMap<&str, &str>, tensors: &BTreeMap<Cow<'_, str>, Part<'_>>) -> Vec<u8> {
    // Larger numbers first, as the format has it for their alignment.
    let mut parts: Vec<(&Cow<'_, str>, &Part<'_>)> = tensors.iter().collect();
    parts.sort_by_key(|(_, part)| std::cmp::Reverse(part.dtype));
    let mut header = Map::from_iter([(METADATA.to_owned(), json!(metadata))]);
    let mut end = 0;
    for (name, Part { dtype, shape, data }) in &parts {
        let begin = end;
        end += data.len();
        let entry = json!({ "dtype": dtype.to_string(), "shape": shape, "data_offsets": [begin, end] });
        header.insert(name.to_string(), entry);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(size_of::<u64>()), b' ');
    let mut bytes = Vec::with_capacity(size_of::<u64>() + header.len() + end);
    bytes.extend((header.len() as u64).to_le_bytes());
    bytes.extend(header);
    parts.iter().for_each(|(_, part)| bytes.extend_from_slice(&part.data));
    bytes
}

/// Named values, hashed so that no two lists of them look the same: name and value each behind its length.
#[derive(Default)]
struct Fields(Sha256);

impl Fields {
    fn add(&mut self, name: &str, value: &[u8]) {
        for part in [name.as_bytes(), value] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
    }

    fn digest(self) -> String {
        hexadecimal(&self.0.finalize())
    }
}

/// The identity of an image: SHA-256 over every field of `spec` by its name, numbers in decimal, fractions as the
/// hexadecimal digits of their bits, choices by their names on the wire, and over the digest of the `pictures` that it
/// starts from. That of the model, and those of its LoRAs, stand beside it.
pub(crate) fn image_digest(spec: &ImageSpec, pictures: Option<&str>) -> String {
    // Every field by its name, so that a new one is not forgotten.
    let ImageSpec {
        prompt,
        negative_prompt,
        prompt_options,
        width,
        height,
        num_inference_steps,
        guidance_scale,
        guidance_rescale,
        seed,
        rng,
        scheduler,
        start,
        loras,
        sizes: Sizes { original, crops_coords_top_left, target },
        cache,
    } = spec;
    let bits = |fraction: &f32| format!("{:08x}", fraction.to_bits());
    let pair = |[one, other]: &[u32; 2]| format!("{one} {other}");
    let mut hash = Fields::default();
    let mut add = |name: &str, value: &str| hash.add(name, value.as_bytes());
    add("prompt", prompt);
    add("negative_prompt", negative_prompt);
    add("long_prompt", prompt_options.long.as_str());
    add(
        "prompt_weighting",
        match prompt_options.weighting {
            Weighting::Off => "false",
            Weighting::On => "true",
        },
    );
    add("width", &width.to_string());
    add("height", &height.to_string());
    add("num_inference_steps", &num_inference_steps.to_string());
    add("guidance_scale", &bits(guidance_scale));
    add("guidance_rescale", &bits(guidance_rescale));
    add("seed", &seed.to_string());
    add("rng", rng.as_str());
    add("scheduler", scheduler.as_str());
    add(
        "start",
        &match start {
            Start::Noise => "noise".to_owned(),
            Start::Picture { strength } => format!("picture {}", bits(strength)),
            Start::Inpaint { strength } => format!("inpaint {}", bits(strength)),
        },
    );
    add("pictures", pictures.unwrap_or(""));
    for lora in loras {
        add("lora", &format!("{} {}", bits(&lora.weight), lora.name));
    }
    add("original_size", &pair(original));
    add("crops_coords_top_left", &pair(crops_coords_top_left));
    add("target_size", &pair(target));
    if let Some(FeatureCache { interval }) = cache {
        add("cache_interval", &interval.to_string());
    }
    hash.digest()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Defaults, LongPrompt, LoraChoice, PromptOptions, Rng, SamplerKind};

    const SHAPE: [usize; 4] = [1, 1, 2, 3];

    fn tensor(first: f32) -> Tensor {
        Tensor::from_iter((0..6_u8).map(|value| first + f32::from(value)), &Device::Cpu)
            .unwrap()
            .reshape(&SHAPE)
            .unwrap()
    }

    fn checkpoint() -> Checkpoint {
        let facts = Facts {
            model: "a model".into(),
            loras: String::new(),
            placement: "cpu".into(),
            sampler: "heun".into(),
            steps: 7,
            image: "an image".into(),
        };
        let state =
            SamplerState { latents: tensor(1.0), estimate: tensor(-2.0), memory: vec![tensor(0.5), tensor(7.0)] };
        Checkpoint { facts, step: 3, state, whole: Some(tensor(60.0)), random: Generator::new(Rng::TorchCuda, 5) }
    }

    fn why(bytes: &[u8]) -> String {
        match Checkpoint::from_bytes(bytes, &SHAPE) {
            Err(ResumeError::Damaged { why }) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_was_written_is_read_and_written_the_same() {
        let bytes = checkpoint().to_bytes().unwrap();
        let read = Checkpoint::from_bytes(&bytes, &SHAPE).unwrap();
        assert_eq!((&read.facts, read.step), (&checkpoint().facts, 3));
        assert_eq!(read.random, checkpoint().random);
        assert_eq!(read.to_bytes().unwrap(), bytes);
        assert_eq!(checkpoint().to_bytes().unwrap(), bytes);
    }

    #[test]
    fn nothing_is_read_of_which_a_byte_is_missing_or_wrong() {
        let bytes = checkpoint().to_bytes().unwrap();
        for keep in 0..bytes.len() {
            why(&bytes[..keep]);
        }
        why(&[bytes.as_slice(), &[0]].concat());
        for index in 0..bytes.len() {
            for flip in [0x01, 0x20, 0x80, 0xff] {
                let mut wrong = bytes.clone();
                wrong[index] ^= flip;
                let refused = Checkpoint::from_bytes(&wrong, &SHAPE);
                let expected = matches!(refused, Err(ResumeError::Damaged { .. } | ResumeError::OtherFormat { .. }));
                assert!(expected, "byte {index} ^ {flip:02x}: {refused:?}");
            }
        }
    }

    /// A file with the right checksum of whatever it holds.
    fn forged(change: impl FnOnce(&mut BTreeMap<&str, String>, &mut BTreeMap<Cow<'_, str>, Part<'_>>)) -> Vec<u8> {
        let bytes = checkpoint().to_bytes().unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let read = SafeTensors::deserialize(&bytes).unwrap();
        let mut metadata: BTreeMap<&str, String> =
            header.metadata().iter().flatten().map(|(name, value)| (name.as_str(), value.clone())).collect();
        let mut tensors = read.iter().map(|(name, view)| (name.to_owned().into(), Part::of_view(&view))).collect();
        change(&mut metadata, &mut tensors);
        let sum = checksum(metadata.iter().map(|(name, value)| (*name, value.as_str())), &tensors);
        if metadata.contains_key(SHA256) {
            metadata.insert(SHA256, sum);
        }
        file(&metadata.iter().map(|(name, value)| (*name, value.as_str())).collect(), &tensors)
    }

    #[test]
    fn forged_files_are_refused_by_what_is_wrong_with_them() {
        assert_eq!(forged(|_, _| {}), checkpoint().to_bytes().unwrap());
        for fact in ["model", "loras", "placement", "sampler", "steps", "step", "image", SHA256] {
            assert_eq!(why(&forged(|metadata, _| drop(metadata.remove(fact)))), format!("it says no {fact}"));
        }
        for (fact, value, words) in [
            ("step", "8", "step 8 of 7"),
            ("step", "-1", "step is no number"),
            ("steps", "99999999999999999999", "steps is no number"),
        ] {
            let why = why(&forged(|metadata, _| drop(metadata.insert(fact, value.into()))));
            assert!(why.contains(words), "{why}");
        }
        let of = |values: [f32; 6]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let part = |dtype, shape: &[usize], data: Vec<u8>| Some(Part { dtype, shape: shape.into(), data: data.into() });
        let infinite = [0.0, 0.0, f32::INFINITY, 0.0, 0.0, 0.0];
        for (name, value, words) in [
            (LATENTS, None, "no latents"),
            (ESTIMATE, None, "no latents"),
            (RANDOM, None, "no random numbers"),
            ("memory.0", None, "a tensor \"memory.1\""),
            ("memory.3", part(Dtype::F32, &SHAPE, of([0.0; 6])), "a tensor \"memory.3\""),
            ("other", part(Dtype::U8, &[0], Vec::new()), "a tensor \"other\""),
            (LATENTS, part(Dtype::F32, &SHAPE, of([f32::NAN; 6])), "not numbers"),
            ("memory.1", part(Dtype::F32, &SHAPE, of(infinite)), "not numbers"),
            (LATENTS, part(Dtype::F32, &[1, 1, 3, 2], of([0.0; 6])), "has shape [1, 1, 3, 2]"),
            (ESTIMATE, part(Dtype::F32, &[1, 0, usize::MAX], Vec::new()), "has shape"),
            (LATENTS, part(Dtype::I32, &SHAPE, of([0.0; 6])), "I32, not F32"),
            (RANDOM, part(Dtype::U8, &[2], vec![1, 2]), "random numbers is damaged"),
        ] {
            let why = why(&forged(|_, tensors| {
                match value {
                    Some(part) => tensors.insert(name.into(), part),
                    None => tensors.remove(name),
                };
            }));
            assert!(why.contains(words), "{name}: {why}");
        }
    }

    #[test]
    fn a_file_that_says_that_it_is_huge_is_refused_for_what_it_is() {
        let with_header = |header: &str, length: u64| [&length.to_le_bytes(), header.as_bytes()].concat();
        for length in [u64::MAX, u64::MAX - 8, 1 << 40, 99_999_999] {
            why(&with_header("{}", length));
        }
        let header = r#"{"latents":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#;
        why(&with_header(header, header.len() as u64));
        let why = why(&vec![0; 7 * 6 * 4 + REST_BYTES_MAX + 1]);
        assert!(why.contains("more than"), "{why}");
    }

    #[test]
    fn another_format_is_told_from_damage() {
        let bytes = forged(|metadata, _| drop(metadata.insert("format", "1".into())));
        let refused = Checkpoint::from_bytes(&bytes, &SHAPE).unwrap_err();
        assert_eq!(refused, ResumeError::OtherFormat { found: "1".into() });
    }

    #[test]
    fn every_field_of_a_specification_makes_another_image() {
        let defaults = Defaults {
            width: 64,
            height: 64,
            num_inference_steps: 4,
            guidance_scale: 3.0,
            scheduler: SamplerKind::Ddim,
        };
        let base = ImageSpec::with_defaults("a star", &defaults);
        let lora = |name: &str, weight: f32| LoraChoice { name: name.parse().unwrap(), weight };
        let changes: [&dyn Fn(&mut ImageSpec); 25] = [
            &|spec| spec.prompt = "a star ".into(),
            &|spec| (spec.prompt, spec.negative_prompt) = (String::new(), "a star".into()),
            &|spec| spec.negative_prompt = "red".into(),
            &|spec| spec.prompt_options = PromptOptions { long: LongPrompt::Chunk, ..PromptOptions::default() },
            &|spec| spec.prompt_options = PromptOptions { weighting: Weighting::On, ..PromptOptions::default() },
            &|spec| spec.width = 72,
            &|spec| spec.height = 72,
            &|spec| spec.num_inference_steps = 5,
            &|spec| spec.guidance_scale = 3.000_000_2,
            &|spec| spec.guidance_rescale = 0.5,
            &|spec| spec.seed = 1,
            &|spec| spec.rng = Rng::TorchCuda,
            &|spec| spec.scheduler = SamplerKind::Lcm,
            &|spec| spec.start = Start::Picture { strength: 0.5 },
            &|spec| spec.start = Start::Inpaint { strength: 0.5 },
            &|spec| spec.start = Start::Inpaint { strength: 0.6 },
            &|spec| spec.loras = vec![lora("a", 1.0)],
            &|spec| spec.loras = vec![lora("a", 0.5)],
            &|spec| spec.loras = vec![lora("b", 1.0)],
            &|spec| spec.loras = vec![lora("a", 1.0), lora("b", 1.0)],
            &|spec| spec.sizes.original = [64, 65],
            &|spec| spec.sizes.crops_coords_top_left = [0, 1],
            &|spec| spec.sizes.target = [65, 64],
            &|spec| spec.cache = Some(FeatureCache { interval: 2 }),
            &|spec| spec.cache = Some(FeatureCache { interval: 3 }),
        ];
        let mut seen = std::collections::BTreeSet::from([
            image_digest(&base, None),
            image_digest(&base, Some("one")),
            image_digest(&base, Some("other")),
        ]);
        assert_eq!(seen.len(), 3);
        for (index, change) in changes.iter().enumerate() {
            let mut spec = base.clone();
            change(&mut spec);
            assert!(seen.insert(image_digest(&spec, None)), "change {index}");
        }
        // Checkpoints outlive the program that wrote them.
        assert_eq!(image_digest(&base, None), "7002994a7057bb41e43b69d7548f706579b5073b0933aa5ea159408b4c3b928b");
    }
}
