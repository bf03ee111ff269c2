//! Stable Diffusion 1.x/2.x: the rows in memory and the stages that an image goes through.
//!
//! On the CPU each image runs its forward passes alone, in tensors whose shape depends on nothing but its own request:
//! products of another shape may round otherwise, and an image's bytes must not depend on its batch mates. On CUDA, where
//! one row leaves most of the device idle, the rows of a batch share one forward pass. Which rows step together is not
//! decided here.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::config::{PARTS, PipelineConfig, SchedulerConfig};
use super::device::{DeviceChoice, Placement};
use super::error::LoadError;
use super::manifest::describe;
use super::preview::ColourMap;
use super::sampler::{Advanced, StepPlan, Trajectory};
use super::text::TextEncoder;
use super::unet::Unet;
use super::vae::Decoder;
use super::weights::{self, Weights};
use super::{Engine, RgbImage, RowId, digest, image, noise};
use crate::job::{Fault, FaultCode, ImageSpec, ModelManifest};

/// Previews are small and short-lived.
const PREVIEW_JPEG_QUALITY: u8 = 80;
/// What [`StableDiffusion::render`] calls its row.
const RENDERED_ROW: RowId = RowId(u64::MAX);

/// A loaded model.
#[derive(Debug)]
pub struct StableDiffusion {
    manifest: ModelManifest,
    digest: String,
    placement: Placement,
    text: TextEncoder,
    unet: Unet,
    decoder: Decoder,
    scheduler: SchedulerConfig,
    latent_channels: usize,
    pixels_per_latent: usize,
    rows: BTreeMap<RowId, Row>,
    /// Fitted when the first preview is wanted.
    colours: Option<ColourMap>,
}

/// One image on its way.
#[derive(Debug)]
struct Row {
    trajectory: Trajectory,
    /// Steps taken.
    step: usize,
    /// `(1, c, h, w)` f32
    latents: Tensor,
    /// The last estimate of the finished picture, like `latents`.
    x0: Option<Tensor>,
    /// `(g, d, t)`: the negative prompt, if there is guidance, and the prompt.
    context: Tensor,
    guidance_scale: f64,
    seed: u64,
}

/// A picture made by [`StableDiffusion::render`].
#[derive(Clone, Debug)]
pub struct Rendered {
    /// The picture.
    pub image: RgbImage,
    /// Steps taken.
    pub steps: u32,
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

/// Loads the model in `directory`, a diffusers directory, on the device that `choice` names.
///
/// # Errors
/// A [`LoadError`] that names the file, and the field or tensor in it.
pub fn load(directory: &Path, choice: DeviceChoice) -> Result<StableDiffusion, LoadError> {
    let config = PipelineConfig::read(directory)?;
    let manifest = describe(directory, &config)?;

    let part = |name: &str| weights::files(&directory.join(name));
    let (unet_files, vae_files, text_files) = (part("unet")?, part("vae")?, part("text_encoder")?);
    let on_cpu = Placement::open(DeviceChoice::Cpu, DType::F32)?;
    let unet_weights = Weights::open(&unet_files, on_cpu)?;
    let placement = Placement::open(choice, unet_weights.stored_dtype())?;
    let unet_weights = unet_weights.placed(placement.clone());
    let text_weights = Weights::open(&text_files, placement.clone())?;
    let decoder_dtype = if config.vae.force_upcast { DType::F32 } else { placement.dtype };
    let vae_weights = Weights::open(&vae_files, Placement { dtype: decoder_dtype, ..placement.clone() })?;

    let text = TextEncoder::new(directory, &text_weights, &config.text_encoder, &placement.device)?;
    let unet = Unet::new(&unet_weights, &config.unet, &placement.device, placement.dtype)?;
    let decoder = Decoder::new(&vae_weights, &config.vae, decoder_dtype)?;

    let mut files = configuration_files(directory)?;
    files.extend([unet_files, vae_files, text_files].into_iter().flatten());
    Ok(StableDiffusion {
        manifest,
        digest: digest::of_files(directory, &files)?,
        placement,
        text,
        unet,
        decoder,
        scheduler: config.scheduler,
        latent_channels: config.vae.latent_channels,
        pixels_per_latent: config.vae.pixels_per_latent(),
        rows: BTreeMap::new(),
        colours: None,
    })
}

/// Everything that decides pixels besides weights: JSON and text files of the pipeline and its parts.
fn configuration_files(directory: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let mut files = vec![directory.join("model_index.json")];
    for (part, ..) in PARTS {
        let path = directory.join(part);
        let entries = std::fs::read_dir(&path).map_err(|source| LoadError::Io { path: path.clone(), source })?;
        for entry in entries {
            let file = entry.map_err(|source| LoadError::Io { path: path.clone(), source })?.path();
            if file.extension().is_some_and(|extension| extension == "json" || extension == "txt") {
                files.push(file);
            }
        }
    }
    Ok(files)
}

/// A failure of candle as a fault.
fn failed(error: candle_core::Error) -> Fault {
    let message = error.to_string();
    // cudarc has no type for it that candle would pass on.
    let memory = ["out of memory", "OUT_OF_MEMORY", "ALLOC_FAILED"].iter().any(|sign| message.contains(sign));
    let code = if memory { FaultCode::OutOfMemory } else { FaultCode::EngineFailed };
    Fault::retry(code, format!("the model failed: {message}"))
}

impl StableDiffusion {
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
        initial_noise: Option<&Path>,
        on_step: &mut dyn FnMut(u32, u32),
    ) -> Result<Rendered, RenderError> {
        let result = self.render_row(spec, initial_noise, on_step);
        self.release(RENDERED_ROW);
        result
    }

    fn render_row(
        &mut self,
        spec: &ImageSpec,
        initial_noise: Option<&Path>,
        on_step: &mut dyn FnMut(u32, u32),
    ) -> Result<Rendered, RenderError> {
        let steps = self.admit(RENDERED_ROW, spec)?;
        if let Some(path) = initial_noise {
            let wrong = |source| RenderError::Latents { path: path.into(), source };
            let tensors = candle_core::safetensors::load(path, &self.placement.device).map_err(wrong)?;
            let row = self.row_mut(RENDERED_ROW)?;
            let replace = || {
                let Some(noise) = tensors.get("noise").or_else(|| tensors.get("latents")) else {
                    candle_core::bail!("it has no tensor `noise` or `latents`");
                };
                if noise.shape() != row.latents.shape() {
                    candle_core::bail!("its shape is {:?}, not {:?}", noise.dims(), row.latents.dims());
                }
                noise.to_dtype(DType::F32)? * row.trajectory.initial_scale
            };
            row.latents = replace().map_err(wrong)?;
        }
        for step in 1..=steps {
            self.step(&[RENDERED_ROW])?;
            on_step(step, steps);
        }
        let image = self.decode(RENDERED_ROW)?;
        Ok(Rendered { image, steps, latents: self.row(RENDERED_ROW)?.latents.clone() })
    }

    /// Where it computes and in which number format, for people.
    pub fn device(&self) -> String {
        format!("{:?}, {:?}", self.placement.device.location(), self.placement.dtype)
    }

    /// The noise prediction model, for benchmarks.
    pub fn unet(&self) -> &Unet {
        &self.unet
    }

    fn row(&self, id: RowId) -> Result<&Row, Fault> {
        self.rows.get(&id).ok_or_else(|| unknown(id))
    }

    fn row_mut(&mut self, id: RowId) -> Result<&mut Row, Fault> {
        self.rows.get_mut(&id).ok_or_else(|| unknown(id))
    }

    /// A row at its first step.
    fn admitted(&mut self, spec: &ImageSpec, trajectory: Trajectory) -> candle_core::Result<Row> {
        let mut context = Vec::with_capacity(2);
        if spec.guidance_scale > 1.0 {
            context.push(self.text.encode(&spec.negative_prompt)?);
        }
        context.push(self.text.encode(&spec.prompt)?);
        let (height, width) =
            (spec.height as usize / self.pixels_per_latent, spec.width as usize / self.pixels_per_latent);
        let values = noise::initial(spec.seed, self.latent_channels * height * width);
        let noise = Tensor::from_vec(values, (1, self.latent_channels, height, width), &self.placement.device)?;
        Ok(Row {
            latents: (noise * trajectory.initial_scale)?,
            trajectory,
            step: 0,
            x0: None,
            context: Tensor::cat(&context, 0)?,
            guidance_scale: f64::from(spec.guidance_scale),
            seed: spec.seed,
        })
    }

    /// The next state of `rows`, from one forward pass over all of them.
    fn advance(&self, rows: &[(&Row, StepPlan)]) -> candle_core::Result<Vec<Advanced>> {
        let mut inputs = Vec::new();
        let mut timesteps = Vec::new();
        let mut contexts = Vec::new();
        for (row, plan) in rows {
            let input = (&row.latents * plan.input_scale)?.to_dtype(self.placement.dtype)?;
            for _ in 0..row.context.dim(0)? {
                inputs.push(input.clone());
                timesteps.push(plan.timestep);
            }
            contexts.push(&row.context);
        }
        // (rows of all images, c, h, w), (rows of all images, d, t)
        let (inputs, contexts) = (Tensor::cat(&inputs, 0)?, Tensor::cat(&contexts, 0)?);
        let outputs = self.unet.forward(&inputs, &timesteps, &contexts)?.to_dtype(DType::F32)?;

        let mut advanced = Vec::with_capacity(rows.len());
        let mut first = 0;
        for (row, plan) in rows {
            let width = row.context.dim(0)?;
            let last = outputs.narrow(0, first + width - 1, 1)?;
            let output = if width == 1 {
                last
            } else {
                let unconditional = outputs.narrow(0, first, 1)?;
                (&unconditional + ((last - &unconditional)? * row.guidance_scale)?)?
            };
            first += width;
            let noise = || {
                let values = noise::at_step(row.seed, row.step, row.latents.elem_count());
                Tensor::from_vec(values, row.latents.shape(), &self.placement.device)
            };
            advanced.push(plan.advance(&row.latents, &output, row.x0.as_ref(), noise)?);
        }
        Ok(advanced)
    }
}

fn unknown(id: RowId) -> Fault {
    Fault::retry(FaultCode::EngineFailed, format!("row {} is not in the engine", id.0))
}

impl Engine for StableDiffusion {
    fn manifest(&self) -> &ModelManifest {
        &self.manifest
    }

    fn digest(&self) -> &str {
        &self.digest
    }

    fn admit(&mut self, row: RowId, spec: &ImageSpec) -> Result<u32, Fault> {
        let limits = &self.manifest.limits;
        for (field, side) in [("width", spec.width), ("height", spec.height)] {
            if side == 0 || side > limits.side_max || !side.is_multiple_of(limits.side_multiple) {
                let message =
                    format!("{field} {side} is not a multiple of {} up to {}", limits.side_multiple, limits.side_max);
                return Err(Fault::reject(FaultCode::InvalidRequest, message));
            }
        }
        let trajectory = Trajectory::plan(spec.scheduler, spec.num_inference_steps as usize, &self.scheduler)
            .map_err(|error| Fault::reject(FaultCode::InvalidRequest, error.to_string()))?;
        let steps = trajectory.steps.len() as u32;
        let admitted = self.admitted(spec, trajectory).map_err(failed)?;
        self.rows.insert(row, admitted);
        Ok(steps)
    }

    fn step(&mut self, rows: &[RowId]) -> Result<(), Fault> {
        let mut batch = Vec::with_capacity(rows.len());
        for id in rows {
            let row = self.row(*id)?;
            let Some(plan) = row.trajectory.steps.get(row.step) else {
                return Err(Fault::retry(FaultCode::EngineFailed, format!("row {} has no steps left", id.0)));
            };
            batch.push((row, *plan));
        }
        if batch.is_empty() {
            return Ok(());
        }
        let advanced = if self.placement.device.is_cpu() {
            let alone = |one: &(&Row, StepPlan)| self.advance(std::slice::from_ref(one));
            let advanced: Result<Vec<_>, _> = batch.par_iter().map(alone).collect();
            advanced.map(|advanced| advanced.into_iter().flatten().collect())
        } else {
            self.advance(&batch)
        };
        for (id, advanced) in rows.iter().zip(advanced.map_err(failed)?) {
            let row = self.row_mut(*id)?;
            row.latents = advanced.latents;
            row.x0 = Some(advanced.x0);
            row.step += 1;
        }
        Ok(())
    }

    fn preview(&mut self, row: RowId) -> Result<Vec<u8>, Fault> {
        if self.colours.is_none() {
            let fitted = ColourMap::fit(&self.decoder, self.latent_channels, &self.placement.device);
            self.colours = Some(fitted.map_err(failed)?);
        }
        let row = self.row(row)?;
        let Some(colours) = &self.colours else { return Err(Fault::retry(FaultCode::EngineFailed, "no colour map")) };
        // Before the first step there is only noise to show.
        let latents = match &row.x0 {
            Some(x0) => Ok(x0.clone()),
            None => &row.latents / row.trajectory.initial_scale,
        };
        let picture = latents.and_then(|latents| colours.apply(&latents)).map_err(failed)?;
        image::jpeg(&picture, PREVIEW_JPEG_QUALITY)
    }

    fn decode(&mut self, row: RowId) -> Result<RgbImage, Fault> {
        let id = row;
        let row = self.row(id)?;
        if row.step < row.trajectory.steps.len() {
            return Err(Fault::retry(FaultCode::EngineFailed, format!("row {} has steps left", id.0)));
        }
        let values = row.latents.flatten_all().and_then(|latents| latents.to_vec1::<f32>()).map_err(failed)?;
        if !values.iter().all(|value| value.is_finite()) {
            return Err(Fault::reject(FaultCode::NotFinite, "the latents hold values that are not numbers"));
        }
        self.decoder.decode(&row.latents).map_err(failed)
    }

    fn release(&mut self, row: RowId) {
        self.rows.remove(&row);
    }
}

#[cfg(test)]
#[path = "../../tests/golden/tiny.rs"]
pub(super) mod tiny;

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn spec() -> ImageSpec {
        ImageSpec {
            prompt: "a red star".into(),
            negative_prompt: "and".into(),
            width: 16,
            height: 16,
            num_inference_steps: 4,
            guidance_scale: 3.0,
            seed: 1,
            scheduler: crate::job::SamplerKind::Ddim,
        }
    }

    fn flat(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn check(what: &str, ours: &[f32], theirs: &[f32], tolerance: f32) {
        assert_eq!(ours.len(), theirs.len(), "{what}");
        let worst = ours.iter().zip(theirs).map(|(ours, theirs)| (ours - theirs).abs()).fold(0.0, f32::max);
        assert!(worst <= tolerance, "{what} differs by {worst} from diffusers");
    }

    #[test]
    fn every_stage_computes_what_diffusers_computes() {
        for variant in ["sd1", "sd2"] {
            let golden = tiny::golden(variant);
            let directory = tiny::model(variant);
            let mut model = load(directory.path(), DeviceChoice::Cpu).unwrap();

            for (prompt, expected) in golden["tokens"].as_object().unwrap() {
                let expected: Vec<u32> = tiny::numbers(expected).into_iter().map(|id| id as u32).collect();
                assert_eq!(model.text.tokens(prompt).unwrap(), expected, "{variant}: tokens of {prompt:?}");
            }
            let embedding = model.text.encode("a red star").unwrap();
            let tokens_first = embedding.transpose(1, 2).unwrap();
            check(variant, &flat(&tokens_first), &tiny::numbers(&golden["embedding"]), 1e-4);

            let latents = (tiny::tensor("latents", &[2, 4, 8, 8]) * 20.0).unwrap();
            let context = Tensor::cat(&[embedding, model.text.encode("").unwrap()], 0).unwrap();
            let output = model.unet.forward(&latents, &[981.0, 37.5], &context).unwrap();
            check(variant, &flat(&output), &tiny::numbers(&golden["unet"]), 1e-4);

            let first = latents.narrow(0, 0, 1).unwrap();
            let decoded = model.decoder.forward(&first).unwrap();
            check(variant, &flat(&decoded), &tiny::numbers(&golden["decoded"]), 1e-4);

            let noise = directory.path().join("noise.safetensors");
            candle_core::safetensors::save(&HashMap::from([("noise", first)]), &noise).unwrap();
            let rendered = model.render(&spec(), Some(&noise), &mut |_, _| {}).unwrap();
            check(variant, &flat(&rendered.latents), &tiny::numbers(&golden["final_latents"]), 1e-3);
            let pixels: Vec<f32> = rendered.image.pixels.iter().map(|value| f32::from(*value)).collect();
            check(variant, &pixels, &tiny::numbers(&golden["picture"]), 1.0);
        }
    }

    #[test]
    fn rows_of_one_forward_pass_keep_their_own_timesteps() {
        let directory = tiny::model("sd2");
        let model = load(directory.path(), DeviceChoice::Cpu).unwrap();
        let latents = (tiny::tensor("latents", &[3, 4, 8, 16]) * 20.0).unwrap();
        let context = tiny::tensor("context", &[3, 16, 77]);
        let timesteps = [999.0, 0.0, 250.5];
        let together = model.unet.forward(&latents, &timesteps, &context).unwrap();
        for (row, timestep) in timesteps.into_iter().enumerate() {
            let one = |tensor: &Tensor| tensor.narrow(0, row, 1).unwrap().contiguous().unwrap();
            let alone = model.unet.forward(&one(&latents), &[timestep], &one(&context)).unwrap();
            check("a row alone", &flat(&alone), &flat(&one(&together)), 1e-5);
        }
    }

    #[test]
    fn without_guidance_an_image_is_one_row() {
        let directory = tiny::model("sd1");
        let mut model = load(directory.path(), DeviceChoice::Cpu).unwrap();
        for (guidance_scale, rows) in [(1.0, 1), (1.5, 2)] {
            model.admit(RowId(1), &ImageSpec { guidance_scale, ..spec() }).unwrap();
            assert_eq!(model.row(RowId(1)).unwrap().context.dim(0).unwrap(), rows);
        }
    }

    #[test]
    fn latents_that_are_not_numbers_are_no_picture() {
        let directory = tiny::model("sd1");
        let mut model = load(directory.path(), DeviceChoice::Cpu).unwrap();
        let steps = model.admit(RowId(1), &spec()).unwrap();
        let row = model.row_mut(RowId(1)).unwrap();
        row.latents = Tensor::full(f32::NAN, row.latents.shape(), &Device::Cpu).unwrap();
        for _ in 0..steps {
            model.step(&[RowId(1)]).unwrap();
        }
        assert_eq!(model.decode(RowId(1)).unwrap_err().code, FaultCode::NotFinite);
    }

    #[test]
    fn candles_out_of_memory_is_told_from_its_other_failures() {
        let code = |message: &str| failed(candle_core::Error::Msg(message.into())).code;
        assert_eq!(code("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")"), FaultCode::OutOfMemory);
        assert_eq!(code("shape mismatch"), FaultCode::EngineFailed);
    }
}
