//! What an image starts from: noise, a picture under noise, or a picture and a mask.
//!
//! Numbers are drawn in the order in which diffusers' pipelines draw them, so that a seed gives the same picture. Decoding
//! and sizing pictures needs no model, so that it need not hold one up.

use candle_core::{Device, Result, Tensor};
use sha2::{Digest, Sha256};

use super::PictureFiles;
use super::digest::hexadecimal;
use super::picture;
use super::random::Generator;
use super::sampler::{Noising, SamplerState, Trajectory};
use super::vae::{Encoder, LatentScale};
use crate::job::{Fault, FaultCode, ImageSpec, Start};

/// The pictures that images of one request start from, decoded and sized; nothing for those that start from noise.
#[derive(Clone, Debug, Default)]
pub struct StartingPictures(pub(crate) Option<Pictures>);

impl StartingPictures {
    /// Decodes `files` and brings them to the size of the images of `spec`.
    ///
    /// # Errors
    /// `Reject` with code `invalid_request`, naming the field, for files that are missing or no pictures.
    pub fn prepare(files: &PictureFiles, spec: &ImageSpec) -> std::result::Result<Self, Fault> {
        if spec.start == Start::Noise {
            return Ok(Self::default());
        }
        let missing = |field: &str| Fault::reject(FaultCode::InvalidRequest, format!("{field} is missing"));
        let (width, height) = (spec.width, spec.height);
        let file = files.init_image.as_ref().ok_or_else(|| missing("init_image"))?;
        let decoded = picture::decode(file).map_err(|error| error.fault("init_image"))?;
        let mask = match spec.start {
            Start::Inpaint { .. } => {
                let file = files.mask_image.as_ref().ok_or_else(|| missing("mask_image"))?;
                let mask = picture::decode(file).and_then(|mask| picture::prepare_mask(&mask, &decoded, width, height));
                Some(mask.map_err(|error| error.fault("mask_image"))?)
            }
            Start::Noise | Start::Picture { .. } => None,
        };
        let picture = picture::prepare(&decoded, width, height).map_err(|error| error.fault("init_image"))?;
        Ok(Self(Some(Pictures { picture, mask, digest: digest(files) })))
    }
}

/// SHA-256 over each file behind its length.
fn digest(PictureFiles { init_image, mask_image }: &PictureFiles) -> String {
    let mut hasher = Sha256::new();
    for file in [init_image, mask_image] {
        let bytes = file.as_deref().unwrap_or_default();
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    }
    hexadecimal(&hasher.finalize())
}

/// A decoded starting picture, and the mask where it is to be made anew.
#[derive(Clone, Debug)]
pub(crate) struct Pictures {
    /// `(1, 3, h, w)` f32 in -1 to 1.
    pub(crate) picture: Tensor,
    /// `(1, 1, h, w)` f32, 0 or 1.
    pub(crate) mask: Option<Tensor>,
    /// Of the files that they were.
    pub(crate) digest: String,
}

impl Pictures {
    pub(crate) fn to_device(&self, device: &Device) -> Result<Self> {
        let mask = self.mask.as_ref().map(|mask| mask.to_device(device)).transpose()?;
        Ok(Self { picture: self.picture.to_device(device)?, mask, digest: self.digest.clone() })
    }
}

/// How a row keeps to its starting picture outside the mask.
#[derive(Clone, Debug)]
pub(crate) enum Inpainting {
    /// Models of plain latents: after each step what is outside the mask is the picture again, with fitting noise.
    Blend {
        /// `(1, 1, h, w)`, 1 where the picture is made anew.
        mask: Tensor,
        /// `(1, c, h, w)`
        picture: Tensor,
        /// `(1, c, h, w)`
        noise: Tensor,
    },
    /// Models that were trained for it see mask and masked picture as further channels.
    Channels {
        /// `(1, 1 + c, h, w)`
        channels: Tensor,
    },
}

impl Inpainting {
    /// `latents (1, c, h, w)` with the picture outside the mask, under as much noise as `noising` says.
    pub(crate) fn blend(&self, latents: &Tensor, noising: Option<Noising>) -> Result<Tensor> {
        match self {
            Self::Channels { .. } => Ok(latents.clone()),
            Self::Blend { mask, picture, noise } => {
                let outside = match noising {
                    Some(noising) => noising.apply(picture, noise)?,
                    None => picture.clone(),
                };
                let kept = outside.broadcast_mul(&mask.affine(-1.0, 1.0)?)?;
                kept + latents.broadcast_mul(mask)?
            }
        }
    }
}

/// What a row begins with.
#[derive(Debug)]
pub(crate) struct Started {
    /// Of latents `(1, c, h, w)` f32.
    pub(crate) state: SamplerState,
    pub(crate) inpainting: Option<Inpainting>,
}

/// What starting needs of the pipeline.
pub(crate) struct Starter<'a> {
    pub(crate) encoder: Option<&'a Encoder>,
    pub(crate) scale: &'a LatentScale,
    pub(crate) device: &'a Device,
    /// `(1, c, h, w)` of the latents.
    pub(crate) shape: (usize, usize, usize, usize),
    /// Whether the denoiser takes mask and masked picture as channels.
    pub(crate) takes_mask: bool,
    /// Instead of the first noise that is drawn.
    pub(crate) noise: Option<Tensor>,
}

impl Starter<'_> {
    /// The first latents of an image.
    pub(crate) fn start(
        &self,
        start: &Start,
        pictures: Option<&Pictures>,
        trajectory: &Trajectory,
        random: &mut Generator,
    ) -> Result<Started> {
        let Some(pictures) = pictures else {
            return Ok(Started { state: trajectory.start(&self.noise(random)?)?, inpainting: None });
        };
        match (start, &pictures.mask) {
            (Start::Inpaint { strength }, Some(mask)) => {
                let anew = *strength >= 1.0;
                let picture =
                    if anew && self.takes_mask { None } else { Some(self.encode(&pictures.picture, random)?) };
                let noise = self.noise(random)?;
                let state = match &picture {
                    Some(picture) if !anew => trajectory.start_from(picture, &noise)?,
                    _ => trajectory.start(&noise)?,
                };
                let outside = mask.affine(-1.0, 1.0)?;
                // Encoded for every model: it moves the generator on.
                let masked = self.encode(&pictures.picture.broadcast_mul(&outside)?, random)?;
                let (_, _, height, width) = self.shape;
                let mask = picture::latent_mask(mask, height, width)?;
                let inpainting = match picture {
                    Some(picture) if !self.takes_mask => Inpainting::Blend { mask, picture, noise },
                    _ => Inpainting::Channels { channels: Tensor::cat(&[mask, masked], 1)? },
                };
                Ok(Started { state, inpainting: Some(inpainting) })
            }
            _ => {
                let picture = self.encode(&pictures.picture, random)?;
                let state = trajectory.start_from(&picture, &self.noise(random)?)?;
                Ok(Started { state, inpainting: None })
            }
        }
    }

    fn noise(&self, random: &mut Generator) -> Result<Tensor> {
        match &self.noise {
            Some(noise) => Ok(noise.clone()),
            None => self.draw(random),
        }
    }

    fn draw(&self, random: &mut Generator) -> Result<Tensor> {
        let (b, c, h, w) = self.shape;
        Tensor::from_vec(random.normal(b * c * h * w), self.shape, self.device)
    }

    /// Latents of unit variance, drawn from what the encoder says of `pixels`.
    fn encode(&self, pixels: &Tensor, random: &mut Generator) -> Result<Tensor> {
        let Some(encoder) = self.encoder else { candle_core::bail!("the VAE's encoder is not loaded") };
        let (mean, deviation) = encoder.forward(pixels)?;
        self.scale.normalise(&(mean + (deviation * self.draw(random)?)?)?)
    }
}
