//! The engine: a model in memory that turns [`ImageSpec`]s into pictures, one denoising step at a time.
//!
//! [`Engine`] has no tensor in its signature, so nothing outside this module knows candle. The engine does not know
//! NATS, jobs, tenants or time: a row is one image, named by a number that the caller picked.

mod cache;
mod checkpoint;
mod clip;
mod condition;
mod config;
#[cfg(feature = "cudnn")]
mod cudnn;
mod denoiser;
mod device;
mod digest;
mod dit;
mod error;
mod flux;
#[cfg(test)]
mod golden;
#[cfg(feature = "cuda")]
mod graph;
mod image;
mod kernels;
mod layers;
mod loading;
mod lora;
mod manifest;
mod memory;
mod mmdit;
pub mod operations;
mod picture;
mod pipeline;
mod preview;
mod prompt;
mod random;
mod sampler;
mod start;
mod t5;
#[cfg(test)]
#[path = "../../tests/golden/tiny.rs"]
mod tiny;
mod tokenizer;
mod unet;
mod vae;
mod weights;

use std::sync::Arc;

use bytes::Bytes;

use crate::job::{Fault, ImageSpec, ModelManifest};

pub use checkpoint::ResumeError;
pub use device::{DeviceChoice, Precision, Precisions, UnknownDevice, UnknownPrecision};
pub use digest::{KnownPieces, ModelDigest};
pub use error::LoadError;
pub use image::encode;
pub use loading::{LoadOptions, OpenedModel, load, open};
pub use lora::{LoraError, Part};
pub use manifest::{OVERRIDES_FILE, read_manifest};
pub use memory::{DeviceMemory, Watch};
pub use pipeline::{Pipeline, RenderError, Rendered};
pub use start::StartingPictures;
pub use unet::Unet;

/// Names one image in the engine from [`Engine::admit`] to [`Engine::release`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowId(pub u64);

/// A picture: `height * width * 3` bytes, rows from the top, red green blue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RgbImage {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// `3 * width * height` bytes.
    pub pixels: Vec<u8>,
}

/// The files that an image starts from, as they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PictureFiles {
    /// PNG, JPEG or WebP.
    pub init_image: Option<Bytes>,
    /// PNG, JPEG or WebP: white where the picture is made anew.
    pub mask_image: Option<Bytes>,
}

/// An image that the engine has begun.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admitted {
    /// How many steps it needs in all. (Some samplers need more or fewer than asked for.)
    pub steps: u32,
    /// How many of them are made already: more than 0 only after [`Engine::resume`].
    pub step: u32,
    /// What the requester should know, such as a prompt that was cut off.
    pub warnings: Vec<String>,
}

/// Encodes prompts ahead of [`Engine::admit`], on whatever thread, so that it finds them done.
///
/// Pictures do not change by it, nor does anything fail that would not fail without.
pub trait PromptEncoder: Send + Sync + std::fmt::Debug {
    /// Encodes the prompts of `spec` unless they are known. Does nothing for an image with LoRAs, which may change encoders.
    ///
    /// # Errors
    /// As of [`Engine::admit`], which will meet them again.
    fn prepare(&self, spec: &ImageSpec) -> Result<(), Fault>;

    /// How many prompts were encoded since the model was loaded, by whomever; those that were known do not count.
    fn encoded(&self) -> u64;
}

/// A model that can denoise several images at once, each at its own step with its own sampler.
///
/// The picture of a row is a function of its [`ImageSpec`], its starting pictures, the weights and the device, never of
/// the other rows.
///
/// The calls of a row, in this order: `admit` or `resume`, `step` as often as they said, `decode`, `release`. `preview` and
/// `save` may come between any two; `release` may come at any time and is harmless for a row that does not exist.
pub trait Engine: Send {
    /// What the model is called and can do.
    fn manifest(&self) -> &ModelManifest;

    /// The identity of the model's files.
    fn digest(&self) -> &ModelDigest;

    /// Where it computes and in which number format, for people and for names of files.
    fn placement(&self) -> String;

    /// The memory of the device where it computes.
    fn memory(&self) -> DeviceMemory;

    /// Steps of a first image until all that is compiled, chosen and recorded at first use is there; none where nothing is.
    fn warm_up_steps(&self) -> u32;

    /// Waits for the device to have done what it was told.
    ///
    /// # Errors
    /// `Fatal` when it is lost: after some failures a GPU refuses everything of the process.
    fn wait(&self) -> Result<(), Fault>;

    /// What encodes prompts ahead of time, while this works on other images.
    fn prompt_encoder(&self) -> Arc<dyn PromptEncoder>;

    /// Encodes prompts and starting pictures, which were prepared for `spec`, and draws the initial noise.
    ///
    /// # Errors
    /// `Reject` when the model can never do this, `Retry` when it cannot now.
    fn admit(&mut self, row: RowId, spec: &ImageSpec, pictures: &StartingPictures) -> Result<Admitted, Fault>;

    /// What a row has become so far, in a form that another process with the same model can go on from. It waits for the
    /// model's digest.
    ///
    /// # Errors
    /// `Retry` when the state cannot be read from the device, or the model's files.
    fn save(&mut self, row: RowId) -> Result<Vec<u8>, Fault>;

    /// As [`Self::admit`], but goes on from what [`Self::save`] wrote for the same specification, pictures and model: the
    /// picture has the same bytes in the end. Whatever is not in the saved bytes is worked out again.
    ///
    /// # Errors
    /// What does not fit, and leaves no row: begin anew with `admit`. `Engine` is what `admit` would say as well.
    fn resume(
        &mut self,
        row: RowId,
        spec: &ImageSpec,
        pictures: &StartingPictures,
        saved: &[u8],
    ) -> Result<Admitted, ResumeError>;

    /// One denoising step of every row in `rows`; their sizes must agree, all else may differ.
    ///
    /// # Errors
    /// The fault of the whole batch; no row has moved.
    fn step(&mut self, rows: &[RowId]) -> Result<(), Fault>;

    /// A small picture of what the row will become, as JPEG bytes.
    ///
    /// # Errors
    /// Previews are best effort: a caller goes on without.
    fn preview(&mut self, row: RowId) -> Result<Vec<u8>, Fault>;

    /// The finished picture of a row whose steps are all done; while steps are left, what the last one expected it to become,
    /// if there was one.
    ///
    /// # Errors
    /// `Reject` with code `not_finite` when the latents are not numbers.
    fn decode(&mut self, row: RowId) -> Result<RgbImage, Fault>;

    /// Forgets a row.
    fn release(&mut self, row: RowId);
}
