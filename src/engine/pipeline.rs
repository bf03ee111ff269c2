//! A loaded pipeline: the rows in memory and the stages that an image goes through.
//!
//! On the CPU each image runs its forward passes alone, in tensors whose shape depends on nothing but its own request:
//! products of another shape may round otherwise, and an image's bytes must not depend on its batch mates. On CUDA, where
//! one row leaves most of the device idle, rows of the same weights share one forward pass. Which rows step together is
//! not decided here.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::cache::Cache;
use super::checkpoint::{Checkpoint, Facts, ResumeError, image_digest};
use super::condition::TextEncoders;
use super::config::Family;
use super::denoiser::{Architecture, Inputs, Told};
use super::digest::ModelDigest;
use super::error::{LoadError, is_out_of_memory};
use super::loading::{Source, Weighted};
use super::lora::{self, LoraError, MergeKey};
#[cfg(test)]
use super::picture;
use super::preview::ColourMap;
use super::random::Generator;
use super::sampler::{FlowSigmas, PlanOptions, SamplerState, Shortened, StepPlan, Trajectory, as_written};
use super::start::{Inpainting, Pictures, Started, Starter};
#[cfg(test)]
use super::tokenizer::ClipTokenizer;
use super::unet::Unet;
use super::vae::{Decoder, Encoder, LatentScale};
use super::{Admitted, DeviceMemory, Engine, PromptEncoder, RgbImage, RowId, StartingPictures, image};
use crate::job::{Fault, FaultCode, ImageSpec, LoraChoice, ModelManifest, SamplerKind, Sizes, Start};

/// Previews are small and short-lived.
const PREVIEW_JPEG_QUALITY: u8 = 80;
/// Models with LoRAs that are kept for further jobs, as far as nobody uses them, and which part at most of the memory that the
/// device has left: what steps do not take.
const MERGED_BYTES_MAX: u64 = 12 << 30;
const MERGED_SHARE: u64 = 5;
/// Of what is known of places; a megapixel takes up to 25 MiB.
const PLACES_BYTES_MAX: u64 = 64 << 20;
/// The first compiles kernels and chooses algorithms, the third is recorded.
const GPU_WARM_UP_STEPS: u32 = 3;
/// What [`Pipeline::render`] calls its row.
const RENDERED_ROW: RowId = RowId(u64::MAX);

/// A loaded model.
#[derive(Debug)]
pub struct Pipeline {
    manifest: ModelManifest,
    digest: ModelDigest,
    source: Source,
    /// The model without LoRAs.
    base: Arc<Weighted>,
    /// The model with LoRAs.
    merged: Cache<MergeKey, Weighted>,
    scale: LatentScale,
    decoder: Decoder,
    /// Loaded when the first starting picture comes.
    encoder: Option<Encoder>,
    /// What the denoiser makes of places, for latents of some height and width, and prompts of some length.
    places: Cache<[usize; 3], Tensor>,
    rows: BTreeMap<RowId, Row>,
    /// Fitted when the first preview is wanted.
    colours: Option<ColourMap>,
}

/// One image on its way.
#[derive(Clone, Debug)]
struct Row {
    model: Arc<Weighted>,
    trajectory: Trajectory,
    /// Steps taken.
    step: usize,
    state: SamplerState,
    random: Generator,
    /// `(g, d, t)`: the negative prompt, if there is guidance, and the prompt.
    context: Tensor,
    /// `(g, v)`
    vector: Option<Tensor>,
    /// What the denoiser makes of the timestep of each step, `(steps, e)`.
    times: Tensor,
    /// What it makes of places in the picture.
    places: Option<Arc<Tensor>>,
    guidance_scale: f64,
    guidance_rescale: f64,
    inpainting: Option<Inpainting>,
    /// Where some steps do without most of the model.
    features: Option<Features>,
    sampler: SamplerKind,
    /// The digest of its specification and starting pictures.
    image: String,
}

/// What a row keeps from one whole step to the next.
#[derive(Clone, Debug)]
struct Features {
    /// Every n-th step is a whole one.
    interval: usize,
    /// None before the first.
    kept: Option<Kept>,
}

#[derive(Clone, Debug)]
struct Kept {
    /// The latents before the last whole step.
    latents: Tensor,
    /// What the denoiser's deep layers made of them: `(g, c', h, w)`.
    deep: Tensor,
}

/// A row after a step.
struct Moved {
    state: SamplerState,
    random: Generator,
    /// Of a whole step.
    kept: Option<Kept>,
}

/// A picture made by [`Pipeline::render`].
#[derive(Clone, Debug)]
pub struct Rendered {
    /// The picture.
    pub image: RgbImage,
    /// Steps taken.
    pub steps: u32,
    /// What the requester should know.
    pub warnings: Vec<String>,
    latents: Tensor,
}

/// What keeps a picture from being rendered.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// The engine cannot make it.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The file with the initial noise, or for the latents, is of no use.
    #[error("`{}` cannot be used for latents", path.display())]
    Latents {
        /// The file.
        path: PathBuf,
        /// What candle says.
        source: candle_core::Error,
    },
}

impl Rendered {
    /// Writes the final latents, f32 `(1, c, h, w)` of unit variance, as tensor `latents` of a safetensors file.
    ///
    /// # Errors
    /// `Latents` when the file cannot be written.
    pub fn save_latents(&self, path: &Path) -> Result<(), RenderError> {
        candle_core::safetensors::save(&HashMap::from([("latents", self.latents.clone())]), path)
            .map_err(|source| RenderError::Latents { path: path.into(), source })
    }
}

/// A failure of candle as a fault.
fn failed(error: candle_core::Error) -> Fault {
    let code = if is_out_of_memory(&error) { FaultCode::OutOfMemory } else { FaultCode::EngineFailed };
    Fault::retry(code, format!("the model failed: {error}"))
}

/// Why there is no model with the LoRAs of an image, as a fault.
fn unmergeable(error: LoadError) -> Fault {
    if let LoadError::Device(error) | LoadError::Lora(LoraError::Device(error)) = error {
        return failed(error);
    }
    if let LoadError::Lora(error @ LoraError::Io { .. }) = error {
        return Fault::retry(FaultCode::FetchFailed, format!("loras: {error}"));
    }
    if let LoadError::Lora(error) = error {
        return invalid(format!("loras: {error}"));
    }
    Fault::retry(FaultCode::EngineFailed, format!("the model with LoRAs cannot be loaded: {error}"))
}

fn unknown(id: RowId) -> Fault {
    Fault::retry(FaultCode::EngineFailed, format!("row {} is not in the engine", id.0))
}

fn invalid(message: impl Into<String>) -> Fault {
    Fault::reject(FaultCode::InvalidRequest, message.into())
}

impl Pipeline {
    pub(crate) fn new(
        manifest: ModelManifest,
        digest: ModelDigest,
        source: Source,
        base: Weighted,
        scale: LatentScale,
        decoder: Decoder,
    ) -> Self {
        let left = DeviceMemory::new(&source.placements.denoiser.device, base.mapped_bytes).left();
        let merged_bytes_max = left.map_or(MERGED_BYTES_MAX, |left| MERGED_BYTES_MAX.min(left / MERGED_SHARE));
        Self {
            manifest,
            digest,
            source,
            base: Arc::new(base),
            merged: Cache::new(merged_bytes_max, 0),
            scale,
            decoder,
            encoder: None,
            places: Cache::new(PLACES_BYTES_MAX, 1),
            rows: BTreeMap::new(),
            colours: None,
        }
    }

    /// Makes one picture from `spec`, through the same stages as a worker: admit, steps, decode.
    ///
    /// `initial_noise` is a safetensors file whose tensor `noise` or `latents`, f32 `(1, c, h, w)` of unit variance,
    /// replaces the noise of the seed. `on_step` is called after each step with steps taken and steps in all.
    ///
    /// # Errors
    /// [`RenderError`]
    pub fn render(
        &mut self,
        spec: &ImageSpec,
        pictures: &StartingPictures,
        initial_noise: Option<&Path>,
        on_step: &mut dyn FnMut(u32, u32),
    ) -> Result<Rendered, RenderError> {
        let noise = match initial_noise {
            None => None,
            Some(path) => {
                Some(self.read_noise(spec, path).map_err(|source| RenderError::Latents { path: path.into(), source })?)
            }
        };
        let result = self.render_row(spec, pictures, noise, on_step);
        self.release(RENDERED_ROW);
        Ok(result?)
    }

    fn render_row(
        &mut self,
        spec: &ImageSpec,
        pictures: &StartingPictures,
        noise: Option<Tensor>,
        on_step: &mut dyn FnMut(u32, u32),
    ) -> Result<Rendered, Fault> {
        let Admitted { steps, warnings, .. } = self.admit_with(RENDERED_ROW, spec, pictures, noise)?;
        for step in 1..=steps {
            self.step(&[RENDERED_ROW])?;
            on_step(step, steps);
        }
        let image = self.decode(RENDERED_ROW)?;
        let latents = self.row(RENDERED_ROW)?.state.latents.clone();
        Ok(Rendered { image, steps, warnings, latents })
    }

    fn read_noise(&self, spec: &ImageSpec, path: &Path) -> candle_core::Result<Tensor> {
        let tensors = candle_core::safetensors::load(path, self.device())?;
        let Some(noise) = tensors.get("noise").or_else(|| tensors.get("latents")) else {
            candle_core::bail!("it has no tensor `noise` or `latents`");
        };
        let (b, c, h, w) = self.latent_shape(spec);
        if noise.dims() != [b, c, h, w] {
            candle_core::bail!("its shape is {:?}, not {:?}", noise.dims(), [b, c, h, w]);
        }
        noise.to_dtype(DType::F32)
    }

    /// The UNet, if the model has one, for benchmarks.
    pub fn unet(&self) -> Option<&Unet> {
        match &self.base.denoiser.architecture {
            Architecture::Unet(unet) => Some(unet),
            Architecture::Sd3(_) | Architecture::Flux(_) => None,
        }
    }

    /// What `work` makes, which changes nothing if it fails. Where there was no room, it is tried once more with all the room there is.
    fn with_room<T>(&self, work: impl Fn() -> candle_core::Result<T>) -> Result<T, Fault> {
        let result = match work() {
            Err(error) if is_out_of_memory(&error) => {
                self.memory().give_back();
                work()
            }
            result => result,
        };
        result.map_err(failed)
    }

    fn device(&self) -> &Device {
        &self.source.placements.denoiser.device
    }

    fn latent_shape(&self, spec: &ImageSpec) -> (usize, usize, usize, usize) {
        let vae = &self.source.config.vae;
        let side = |pixels: u32| pixels as usize / vae.pixels_per_latent();
        (1, vae.latent_channels, side(spec.height), side(spec.width))
    }

    fn row(&self, id: RowId) -> Result<&Row, Fault> {
        self.rows.get(&id).ok_or_else(|| unknown(id))
    }

    fn row_mut(&mut self, id: RowId) -> Result<&mut Row, Fault> {
        self.rows.get_mut(&id).ok_or_else(|| unknown(id))
    }

    fn admit_with(
        &mut self,
        id: RowId,
        spec: &ImageSpec,
        pictures: &StartingPictures,
        noise: Option<Tensor>,
    ) -> Result<Admitted, Fault> {
        let (row, warnings) = self.first(spec, pictures, noise)?;
        let steps = row.trajectory.steps.len() as u32;
        self.rows.insert(id, row);
        Ok(Admitted { steps, step: 0, warnings })
    }

    /// The row of `spec` before its first step, and what the requester should know.
    fn first(
        &mut self,
        spec: &ImageSpec,
        pictures: &StartingPictures,
        noise: Option<Tensor>,
    ) -> Result<(Row, Vec<String>), Fault> {
        let limits = &self.manifest.limits;
        for (field, side) in [("width", spec.width), ("height", spec.height)] {
            if side == 0 || side > limits.side_max || !side.is_multiple_of(limits.side_multiple) {
                let (multiple, most) = (limits.side_multiple, limits.side_max);
                return Err(invalid(format!("{field} {side} is not a multiple of {multiple} up to {most}")));
            }
        }
        let takes_mask = self.source.config.denoiser.takes_mask();
        if takes_mask && !matches!(spec.start, Start::Inpaint { .. }) {
            return Err(invalid("this model needs init_image and mask_image"));
        }
        let trajectory = self.plan(spec)?;
        let pictures = self.pictures(spec, pictures)?;
        let model = self.model(&spec.loras)?;
        self.begin(spec, model, trajectory, pictures.as_ref(), takes_mask, noise).map_err(|error| {
            if is_out_of_memory(&error) {
                self.memory().give_back();
            }
            failed(error)
        })
    }

    /// What the state of `row` belongs to. Waits for the model's digest.
    fn facts(&self, row: &Row) -> Result<Facts, Fault> {
        let digest = self.digest.wait();
        let model = digest.map_err(|error| Fault::retry(FaultCode::EngineFailed, error.to_string()))?.to_owned();
        Ok(Facts {
            model,
            loras: row.model.loras.clone(),
            placement: self.source.placements.class(),
            sampler: row.sampler.as_str().to_owned(),
            steps: row.trajectory.steps.len(),
            image: row.image.clone(),
        })
    }

    /// The model with `loras` merged into its weights.
    fn model(&mut self, loras: &[LoraChoice]) -> Result<Arc<Weighted>, Fault> {
        let key = MergeKey::new(loras.iter().map(|lora| (lora.name.clone(), lora.weight)));
        if key.is_empty() {
            return Ok(Arc::clone(&self.base));
        }
        if let Some(model) = self.merged.get(&key) {
            return Ok(model);
        }
        let Some(folder) = &self.source.loras else {
            return Err(invalid("loras: this worker has no folder of LoRAs"));
        };
        let files: Result<Vec<_>, LoraError> =
            loras.iter().map(|lora| Ok((lora::find(folder, &lora.name)?, lora.weight))).collect();
        let loras =
            files.map_err(LoadError::from).and_then(|files| self.source.lora_set(&files)).map_err(unmergeable)?;
        // Only what stayed in its file and is changed will be copied besides what the base model has in memory.
        let base = &self.base;
        self.merged.make_room(base.copied_bytes + loras.changed_bytes().min(base.mapped_bytes));
        let loras = Arc::new(loras);
        let merged = match self.source.merged(&loras) {
            Err(LoadError::Device(error) | LoadError::Lora(LoraError::Device(error))) if is_out_of_memory(&error) => {
                self.merged.make_room(u64::MAX);
                self.memory().give_back();
                self.source.merged(&loras)
            }
            merged => merged,
        };
        let model = Arc::new(merged.map_err(unmergeable)?);
        self.merged.insert(key, Arc::clone(&model), model.copied_bytes);
        Ok(model)
    }

    fn plan(&self, spec: &ImageSpec) -> Result<Trajectory, Fault> {
        let (_, _, height, width) = self.latent_shape(spec);
        let options = PlanOptions {
            strength: match spec.start {
                Start::Noise => None,
                Start::Picture { strength } | Start::Inpaint { strength } => Some(as_written(strength)),
            },
            shortened: if self.source.config.index.class.starts_with("LatentConsistencyModel") {
                Shortened::Schedule
            } else {
                Shortened::Steps
            },
            // Transformers see packed squares of four latent pixels.
            image_tokens: (height / 2) * (width / 2),
            flow_sigmas: match self.source.config.index.family {
                Family::Flux => FlowSigmas::Pipeline,
                Family::StableDiffusion | Family::StableDiffusionXl | Family::StableDiffusion3 => FlowSigmas::Scheduler,
            },
        };
        Trajectory::plan(spec.scheduler, spec.num_inference_steps as usize, &self.source.config.scheduler, &options)
            .map_err(|error| invalid(error.to_string()))
    }

    /// The starting pictures on the device, with the encoder ready for them.
    fn pictures(&mut self, spec: &ImageSpec, given: &StartingPictures) -> Result<Option<Pictures>, Fault> {
        if spec.start == Start::Noise {
            return Ok(None);
        }
        let Some(pictures) = &given.0 else { return Err(invalid("init_image is missing")) };
        if self.encoder.is_none() {
            let encoder =
                self.source.encoder().map_err(|error| Fault::retry(FaultCode::EngineFailed, error.to_string()))?;
            self.encoder = Some(encoder);
        }
        pictures.to_device(self.device()).map(Some).map_err(failed)
    }

    /// A row at its first step, and what the requester should know.
    fn begin(
        &mut self,
        spec: &ImageSpec,
        model: Arc<Weighted>,
        trajectory: Trajectory,
        pictures: Option<&Pictures>,
        takes_mask: bool,
        noise: Option<Tensor>,
    ) -> candle_core::Result<(Row, Vec<String>)> {
        let conditioning = model.text.condition_image(spec)?;
        let Sizes { original, crops_coords_top_left: crop, target } = spec.sizes;
        let time_ids = [original[0], original[1], crop[0], crop[1], target[0], target[1]].map(|size| size as f32);
        let told = Told { time_ids, guidance_scale: spec.guidance_scale };
        let dtype = self.source.placements.denoiser.computes_in();
        let pooled = conditioning.pooled.to_device(self.device())?.to_dtype(dtype)?;
        let timesteps: Vec<f32> = trajectory.steps.iter().map(|step| step.timestep).collect();
        let times = model.denoiser.embed(&timesteps, self.device(), dtype)?;
        let context = conditioning.context.to_device(self.device())?.to_dtype(dtype)?;
        let places = self.places(&model, spec, context.dim(2)?)?;
        let starter = Starter {
            encoder: self.encoder.as_ref(),
            scale: &self.scale,
            device: self.device(),
            shape: self.latent_shape(spec),
            takes_mask,
            noise,
        };
        let mut random = Generator::new(spec.rng, spec.seed);
        let Started { state, inpainting } = starter.start(&spec.start, pictures, &trajectory, &mut random)?;
        let row = Row {
            state,
            trajectory,
            step: 0,
            random,
            context,
            vector: model.denoiser.vector(&pooled, told)?,
            times,
            places,
            model,
            guidance_scale: f64::from(spec.guidance_scale),
            guidance_rescale: f64::from(spec.guidance_rescale),
            inpainting,
            features: spec.cache.map(|cache| Features { interval: cache.interval as usize, kept: None }),
            sampler: spec.scheduler,
            image: image_digest(spec, pictures.map(|pictures| pictures.digest.as_str())),
        };
        Ok((row, conditioning.warnings))
    }

    /// What a denoiser makes of places in the picture of `spec`, for prompts of `tokens`.
    fn places(
        &mut self,
        model: &Weighted,
        spec: &ImageSpec,
        tokens: usize,
    ) -> candle_core::Result<Option<Arc<Tensor>>> {
        let (_, _, height, width) = self.latent_shape(spec);
        let key = [height, width, tokens];
        if let Some(known) = self.places.get(&key) {
            return Ok(Some(known));
        }
        let Some(places) = model.denoiser.places([height, width], tokens, self.device())? else { return Ok(None) };
        let bytes = (places.elem_count() * places.dtype().size_in_bytes()) as u64;
        let places = Arc::new(places);
        self.places.insert(key, Arc::clone(&places), bytes);
        Ok(Some(places))
    }

    /// What the denoiser says of the next step of `rows`: `(g of all rows, c, h, w)` f32, and its deep features. They share
    /// their weights, the length of their prompts, and whether the step is a whole one.
    fn denoise(&self, rows: &[&Row]) -> candle_core::Result<(Tensor, Tensor)> {
        let dtype = self.source.placements.denoiser.computes_in();
        let (mut inputs, mut times) = (Vec::new(), Vec::new());
        let (mut contexts, mut vectors, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        for row in rows {
            let plan = row.plan()?;
            let mut input = (&row.state.latents * plan.input_scale)?;
            if let Some(Inpainting::Channels { channels }) = &row.inpainting {
                input = Tensor::cat(&[&input, channels], 1)?;
            }
            let input = input.to_dtype(dtype)?;
            for _ in 0..row.context.dim(0)? {
                inputs.push(input.clone());
                times.push(row.times.narrow(0, row.step, 1)?);
            }
            contexts.push(&row.context);
            vectors.extend(&row.vector);
            kept.extend(row.kept_for_next().map(|kept| &kept.deep));
        }
        let Some(first) = rows.first() else { candle_core::bail!("a step of no rows") };
        let (output, deep) = first.model.denoiser.forward(&Inputs {
            x: Tensor::cat(&inputs, 0)?,
            time: Tensor::cat(&times, 0)?,
            context: Tensor::cat(&contexts, 0)?,
            vector: if vectors.is_empty() { None } else { Some(Tensor::cat(&vectors, 0)?) },
            kept: if kept.is_empty() { None } else { Some(Tensor::cat(&kept, 0)?) },
            places: first.places.as_deref().cloned(),
        })?;
        Ok((output.to_dtype(DType::F32)?, deep))
    }

    /// `rows` after their next step.
    fn advance(&self, rows: &[&Row]) -> candle_core::Result<Vec<Moved>> {
        let (outputs, deep) = self.denoise(rows)?;
        let mut moved = Vec::with_capacity(rows.len());
        let mut start = 0;
        for row in rows {
            let width = row.context.dim(0)?;
            let kept = if row.features.is_some() && row.kept_for_next().is_none() {
                // In memory of its own: what the others of the batch need is not held with it.
                let deep = deep.narrow(0, start, width)?.force_contiguous()?;
                Some(Kept { latents: row.state.latents.clone(), deep })
            } else {
                None
            };
            moved.push(row.moved(&outputs.narrow(0, start, width)?, kept)?);
            start += width;
        }
        Ok(moved)
    }

    /// What a row kept since its `step`, worked out again from the latents that it had.
    fn keep_again(&self, row: &Row, step: usize, latents: Tensor) -> candle_core::Result<Kept> {
        let state = SamplerState { latents: latents.clone(), ..row.state.clone() };
        let (_, deep) = self.denoise(&[&Row { step, state, ..row.clone() }])?;
        Ok(Kept { latents, deep })
    }
}

impl Row {
    fn plan(&self) -> candle_core::Result<&StepPlan> {
        match self.trajectory.steps.get(self.step) {
            Some(plan) => Ok(plan),
            None => candle_core::bail!("the row has no steps left"),
        }
    }

    /// The row after the step for which the denoiser said `outputs (g, c, h, w)`, with what it has to keep of it.
    fn moved(&self, outputs: &Tensor, kept: Option<Kept>) -> candle_core::Result<Moved> {
        let plan = self.plan()?;
        let output = guide(outputs, self.guidance_scale, self.guidance_rescale)?;
        let mut random = self.random.clone();
        let noise = || {
            let values = random.normal(self.state.latents.elem_count());
            Tensor::from_vec(values, self.state.latents.shape(), outputs.device())
        };
        let mut state = plan.advance(&self.state, &output, noise)?;
        if let Some(inpainting) = &self.inpainting {
            let next = self.trajectory.steps.get(self.step + 1).map(|next| next.noising);
            state.latents = inpainting.blend(&state.latents, next)?;
        }
        Ok(Moved { state, random, kept })
    }

    /// Since which whole step features are kept for the next one; `None` when that is a whole one itself, or there is none.
    fn whole_step(&self) -> Option<usize> {
        let since = self.step - self.step % self.features.as_ref()?.interval;
        (since < self.step && self.step < self.trajectory.steps.len()).then_some(since)
    }

    fn kept_for_next(&self) -> Option<&Kept> {
        self.whole_step()?;
        self.features.as_ref()?.kept.as_ref()
    }

    /// Whether the row could have got into this state.
    fn fits(&self, state: &SamplerState, random: &Generator) -> Result<(), ResumeError> {
        let (found, expected) = (state.memory.len(), self.state.memory.len());
        if found != expected {
            return Err(ResumeError::Damaged { why: format!("it has {found} tensors of memory, not {expected}") });
        }
        if std::mem::discriminant(random) != std::mem::discriminant(&self.random) {
            return Err(ResumeError::Damaged { why: "its random numbers are of another kind".into() });
        }
        Ok(())
    }

    /// What must agree for two rows to share a forward pass.
    fn company(&self) -> (*const Weighted, usize, bool) {
        (Arc::as_ptr(&self.model), self.context.dims()[2], self.kept_for_next().is_some())
    }
}

impl PromptEncoder for TextEncoders {
    fn prepare(&self, spec: &ImageSpec) -> Result<(), Fault> {
        if spec.loras.is_empty() {
            self.condition_image(spec).map_err(failed)?;
        }
        Ok(())
    }

    fn encoded(&self) -> u64 {
        Self::encoded(self)
    }
}

/// Runs `work` on one of rayon's threads: one that does not belong to them falls asleep at every operation that they divide
/// among themselves, and is woken at its end.
fn among_threads<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| work())
}

/// Classifier-free guidance over `outputs (g, c, h, w)`, of which the last row is the prompt's and the one before, if
/// there is one, the negative prompt's: `(1, c, h, w)`. `rescale` is phi in section 3.4 of arXiv 2305.08891.
fn guide(outputs: &Tensor, scale: f64, rescale: f64) -> candle_core::Result<Tensor> {
    let rows = outputs.dim(0)?;
    let prompted = outputs.narrow(0, rows - 1, 1)?;
    if rows == 1 {
        return Ok(prompted);
    }
    let unconditional = outputs.narrow(0, 0, 1)?;
    let guided = (&unconditional + ((&prompted - &unconditional)? * scale)?)?;
    if rescale == 0.0 {
        return Ok(guided);
    }
    // On the device: nothing waits for it within a step.
    let deviation = |x: &Tensor| x.flatten_all()?.var_keepdim(0)?.sqrt();
    let factor = (deviation(&prompted)? / deviation(&guided)?)?.affine(rescale, 1.0 - rescale)?;
    guided.broadcast_mul(&factor.reshape((1, 1, 1, 1))?)
}

impl Engine for Pipeline {
    fn manifest(&self) -> &ModelManifest {
        &self.manifest
    }

    fn digest(&self) -> &ModelDigest {
        &self.digest
    }

    fn placement(&self) -> String {
        format!("{:?}, {:?}", self.device().location(), self.source.placements.denoiser.dtype)
    }

    fn memory(&self) -> DeviceMemory {
        DeviceMemory::new(self.device(), self.base.mapped_bytes)
    }

    fn warm_up_steps(&self) -> u32 {
        if self.device().is_cpu() { 0 } else { GPU_WARM_UP_STEPS }
    }

    fn wait(&self) -> Result<(), Fault> {
        let lost = |error| Fault::fatal(FaultCode::EngineLost, format!("the device is lost: {error}"));
        if self.device().is_cpu() { Ok(()) } else { self.device().synchronize().map_err(lost) }
    }

    fn prompt_encoder(&self) -> Arc<dyn PromptEncoder> {
        Arc::<TextEncoders>::clone(&self.base.text)
    }

    fn admit(&mut self, row: RowId, spec: &ImageSpec, pictures: &StartingPictures) -> Result<Admitted, Fault> {
        self.admit_with(row, spec, pictures, None)
    }

    fn save(&mut self, row: RowId) -> Result<Vec<u8>, Fault> {
        let row = self.row(row)?;
        let (state, random) = (row.state.clone(), row.random.clone());
        let whole = row.kept_for_next().map(|kept| kept.latents.clone());
        Checkpoint { facts: self.facts(row)?, step: row.step, state, whole, random }.to_bytes().map_err(failed)
    }

    fn resume(
        &mut self,
        row: RowId,
        spec: &ImageSpec,
        pictures: &StartingPictures,
        saved: &[u8],
    ) -> Result<Admitted, ResumeError> {
        let (b, c, h, w) = self.latent_shape(spec);
        let Checkpoint { facts, step, state, whole, random } = Checkpoint::from_bytes(saved, &[b, c, h, w])?;
        let (first, warnings) = self.first(spec, pictures, None)?;
        facts.check(self.facts(&first)?)?;
        first.fits(&state, &random)?;
        let state = state.to_device(self.device()).map_err(failed)?;
        let steps = first.trajectory.steps.len() as u32;
        let mut resumed = Row { step, state, random, ..first };
        match (resumed.whole_step(), whole) {
            (Some(since), Some(latents)) => {
                let latents = latents.to_device(self.device()).map_err(failed)?;
                let kept = self.with_room(|| self.keep_again(&resumed, since, latents.clone()))?;
                resumed.features = resumed.features.map(|features| Features { kept: Some(kept), ..features });
            }
            (None, None) => {}
            (Some(_), None) => {
                return Err(ResumeError::Damaged { why: "it lacks the latents of the last whole step".into() });
            }
            (None, Some(_)) => {
                return Err(ResumeError::Damaged {
                    why: "it has latents of a whole step that nothing is kept of".into(),
                });
            }
        }
        self.rows.insert(row, resumed);
        Ok(Admitted { steps, step: step as u32, warnings })
    }

    fn step(&mut self, rows: &[RowId]) -> Result<(), Fault> {
        let mut batch = Vec::with_capacity(rows.len());
        for id in rows {
            batch.push((*id, self.row(*id)?));
        }
        // On the CPU each alone; elsewhere all that can share a pass.
        let alone = self.device().is_cpu();
        let mut groups: BTreeMap<_, Vec<(RowId, &Row)>> = BTreeMap::new();
        for (index, (id, row)) in batch.into_iter().enumerate() {
            groups.entry((row.company(), if alone { index } else { 0 })).or_default().push((id, row));
        }
        let groups: Vec<_> = groups.into_values().collect();
        let run = |group: &Vec<(RowId, &Row)>| {
            let rows: Vec<&Row> = group.iter().map(|(_, row)| *row).collect();
            let moved = self.advance(&rows)?;
            Ok(group.iter().map(|(id, _)| *id).zip(moved).collect())
        };
        let moved: Vec<Vec<(RowId, Moved)>> = self.with_room(|| {
            if alone {
                among_threads(|| groups.par_iter().map(run).collect())
            } else {
                groups.iter().map(run).collect()
            }
        })?;
        // A step that is said to be made is made: what comes after is measured by itself, and fails for itself.
        self.wait()?;
        for (id, moved) in moved.into_iter().flatten() {
            let row = self.row_mut(id)?;
            row.state = moved.state;
            row.random = moved.random;
            row.step += 1;
            let is_needed = row.whole_step().is_some();
            if let Some(features) = &mut row.features {
                features.kept = moved.kept.or_else(|| features.kept.take()).filter(|_| is_needed);
            }
        }
        Ok(())
    }

    fn preview(&mut self, row: RowId) -> Result<Vec<u8>, Fault> {
        if self.colours.is_none() {
            let channels = self.source.config.vae.latent_channels;
            let fitted = ColourMap::fit(&self.decoder, channels, self.device());
            self.colours = Some(fitted.map_err(failed)?);
        }
        let row = self.row(row)?;
        let Some(colours) = &self.colours else { return Err(Fault::retry(FaultCode::EngineFailed, "no colour map")) };
        let picture = colours.apply(&row.state.estimate).map_err(failed)?;
        image::jpeg(&picture, PREVIEW_JPEG_QUALITY)
    }

    fn decode(&mut self, row: RowId) -> Result<RgbImage, Fault> {
        let id = row;
        let row = self.row(id)?;
        let is_finished = row.step >= row.trajectory.steps.len();
        if row.step == 0 && !is_finished {
            return Err(Fault::retry(FaultCode::EngineFailed, format!("row {} has made no step", id.0)));
        }
        let latents = if is_finished { &row.state.latents } else { &row.state.estimate };
        let values = latents.flatten_all().and_then(|latents| latents.to_vec1::<f32>()).map_err(failed)?;
        if !values.iter().all(|value| value.is_finite()) {
            return Err(Fault::reject(FaultCode::NotFinite, "the latents hold values that are not numbers"));
        }
        let decode = || self.decoder.decode(latents);
        let picture = self.with_room(|| if self.device().is_cpu() { among_threads(decode) } else { decode() })?;
        picture.ok_or_else(|| Fault::reject(FaultCode::NotFinite, "the image holds values that are not numbers"))
    }

    fn release(&mut self, row: RowId) {
        self.rows.remove(&row);
    }
}

#[cfg(test)]
impl Pipeline {
    /// What the denoiser says of a row's next step.
    pub(crate) fn outputs(&self, row: RowId) -> candle_core::Result<Tensor> {
        self.denoise(&[self.row(row).map_err(candle_core::Error::wrap)?]).map(|(output, _)| output)
    }

    /// A row's latents as its VAE gets them.
    pub(crate) fn vae_latents(&self, row: RowId) -> candle_core::Result<Tensor> {
        self.scale.restore(&self.row(row).map_err(candle_core::Error::wrap)?.state.latents)
    }

    /// The ids of a prompt's tokens, by the tokenizer `index`.
    pub(crate) fn tokens(&self, index: usize, prompt: &str) -> Vec<u32> {
        let ClipTokenizer { inner, special, length } = &self.base.text.clips[index].tokenizer;
        let options = crate::job::PromptOptions::default();
        super::prompt::tokenize(inner, prompt, options, *special, *length).unwrap().ids.remove(0)
    }

    /// What an image with these prompts is conditioned on.
    pub(crate) fn condition(
        &self,
        prompt: &str,
        negative: Option<&str>,
    ) -> candle_core::Result<super::condition::Conditioning> {
        self.base.text.condition(prompt, negative, crate::job::PromptOptions::default())
    }

    /// Latents of unit variance as pixels.
    pub(crate) fn decoded(&self, latents: &Tensor) -> candle_core::Result<Tensor> {
        self.decoder.forward(&latents.to_device(self.device())?)
    }

    /// Mean and deviation of the VAE's latents of a file.
    pub(crate) fn encoded(&self, file: &[u8], width: u32, height: u32) -> candle_core::Result<(Tensor, Tensor)> {
        let decoded = picture::decode(file).map_err(candle_core::Error::wrap)?;
        let encoder = self.source.encoder().map_err(candle_core::Error::wrap)?;
        let pixels = picture::prepare(&decoded, width, height).map_err(candle_core::Error::wrap)?;
        encoder.forward(&pixels.to_device(self.device())?)
    }
}
