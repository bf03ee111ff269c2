//! The engine: a model in memory that turns [`ImageSpec`]s into pictures, one denoising step at a time.
//!
//! [`Engine`] has no tensor in its signature, so nothing outside this module knows candle. The engine does not know
//! NATS, jobs, tenants or time: a row is one image, named by a number that the caller picked.

mod config;
mod device;
mod digest;
mod error;
mod image;
mod kernels;
mod layers;
mod manifest;
mod model;
mod noise;
#[allow(dead_code, reason = "nothing asks for starting pictures yet")]
mod picture;
mod preview;
#[allow(dead_code, reason = "replaces `noise`")]
mod random;
mod sampler;
mod text;
mod unet;
mod vae;
mod weights;

use crate::job::{Fault, ImageSpec, ModelManifest};

pub use device::{DeviceChoice, UnknownDevice};
pub use error::LoadError;
pub use image::encode;
pub use manifest::{OVERRIDES_FILE, read_manifest};
pub use model::{RenderError, Rendered, StableDiffusion, load};
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

/// A model that can denoise several images at once, each at its own step with its own sampler.
///
/// The picture of a row is a function of its [`ImageSpec`], the weights and the device, never of the other rows.
///
/// The calls of a row, in this order: `admit`, `step` as often as `admit` said, `decode`, `release`. `preview` may come
/// between any two; `release` may come at any time and is harmless for a row that does not exist.
pub trait Engine: Send {
    /// What the model is called and can do.
    fn manifest(&self) -> &ModelManifest;

    /// SHA-256 over the model's files, as lower-case hexadecimal digits.
    fn digest(&self) -> &str;

    /// Encodes the prompts, draws the initial noise and returns the number of steps that the row needs. (Some samplers
    /// need more or fewer than asked for.)
    ///
    /// # Errors
    /// `Reject` when the model can never do this, `Retry` when it cannot now.
    fn admit(&mut self, row: RowId, spec: &ImageSpec) -> Result<u32, Fault>;

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

    /// The finished picture of a row whose steps are all done.
    ///
    /// # Errors
    /// `Reject` with code `not_finite` when the latents are not numbers.
    fn decode(&mut self, row: RowId) -> Result<RgbImage, Fault>;

    /// Forgets a row.
    fn release(&mut self, row: RowId);
}
