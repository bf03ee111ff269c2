//! The model that is run at each step, whatever its architecture.
//!
//! What it is told besides latents and prompt is worked out once for each image: a vector, what it makes of the timesteps and
//! of places in the picture.

#[cfg(feature = "cuda")]
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Result, Tensor};
use rayon::prelude::*;

use super::config::TIME_IDS;
use super::flux::FluxTransformer;
#[cfg(feature = "cuda")]
use super::graph::Graphs;
use super::mmdit::Sd3Transformer;
use super::unet::Unet;

/// One of the architectures.
#[derive(Debug)]
pub(crate) enum Architecture {
    Unet(Box<Unet>),
    Sd3(Sd3Transformer),
    Flux(FluxTransformer),
}

/// A model of one of them.
#[derive(Debug)]
pub(crate) struct Denoiser {
    pub(crate) architecture: Architecture,
    /// What a GPU was asked to do for passes of some sizes.
    #[cfg(feature = "cuda")]
    graphs: Mutex<Graphs>,
}

/// What an image is conditioned on beside its prompt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    /// SDXL's sizes in pixels: height and width of the original, crop from the top and the left, height and width of the
    /// target.
    pub(crate) time_ids: [f32; TIME_IDS],
    /// For models with guidance built in.
    pub(crate) guidance_scale: f32,
}

/// What one pass takes, in the model's number format.
#[derive(Clone, Debug)]
pub(crate) struct Inputs {
    /// Latents, `(b, c, h, w)`.
    pub(crate) x: Tensor,
    /// What [`Denoiser::embed`] made of each row's timestep, `(b, e)`.
    pub(crate) time: Tensor,
    /// The prompts' embeddings, `(b, d, t)`.
    pub(crate) context: Tensor,
    /// What [`Denoiser::vector`] made of the rest, `(b, v)`.
    pub(crate) vector: Option<Tensor>,
    /// Deep features from another step, of which the first dimension is `b`: they are not worked out again.
    pub(crate) kept: Option<Tensor>,
    /// What [`Denoiser::places`] returned.
    pub(crate) places: Option<Tensor>,
}

impl Inputs {
    /// The same with what `change` makes of every tensor that has rows.
    pub(crate) fn map(&self, change: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Self {
            x: change(&self.x)?,
            time: change(&self.time)?,
            context: change(&self.context)?,
            vector: self.vector.as_ref().map(&change).transpose()?,
            kept: self.kept.as_ref().map(&change).transpose()?,
            places: self.places.clone(),
        })
    }
}

impl Denoiser {
    pub(crate) fn new(architecture: Architecture) -> Self {
        Self {
            architecture,
            #[cfg(feature = "cuda")]
            graphs: Mutex::default(),
        }
    }

    /// The vector for prompts with the pooled embeddings `pooled (b, p)`: `(b, v)`, or `None` for models without one.
    pub(crate) fn vector(&self, pooled: &Tensor, told: Told) -> Result<Option<Tensor>> {
        match &self.architecture {
            Architecture::Unet(unet) => unet.vector(pooled, told.time_ids, told.guidance_scale),
            Architecture::Sd3(transformer) => transformer.vector(pooled, None).map(Some),
            Architecture::Flux(transformer) => transformer.vector(pooled, Some(told.guidance_scale)).map(Some),
        }
    }

    /// Timesteps as the model takes them: `(n, e)`.
    pub(crate) fn embed(&self, timesteps: &[f32], device: &Device, dtype: DType) -> Result<Tensor> {
        match &self.architecture {
            Architecture::Unet(unet) => unet.embed_timesteps(timesteps),
            Architecture::Sd3(_) => Sd3Transformer::embed(timesteps, device, dtype),
            Architecture::Flux(_) => FluxTransformer::embed(timesteps, device, dtype),
        }
    }

    /// What depends on the size of latents and the length of prompts alone; `None` for models without such.
    pub(crate) fn places(&self, size: [usize; 2], tokens: usize, device: &Device) -> Result<Option<Tensor>> {
        match &self.architecture {
            Architecture::Unet(_) => Ok(None),
            Architecture::Sd3(transformer) => transformer.places(size).map(Some),
            Architecture::Flux(transformer) => transformer.places(size, tokens, device).map(Some),
        }
    }

    /// The output, `(b, c, h, w)`, and the deep features.
    ///
    /// On the CPU each row is worked out alone, beside the others: its operations are divided among the threads that have
    /// no row, and where all have one, none waits for another at the end of every operation.
    pub(crate) fn forward(&self, inputs: &Inputs) -> Result<(Tensor, Tensor)> {
        #[cfg(feature = "cuda")]
        if inputs.x.device().is_cuda() {
            let mut graphs = self.graphs.lock().unwrap_or_else(PoisonError::into_inner);
            return graphs.run(inputs, |inputs| self.forward_together(inputs));
        }
        let rows = inputs.x.dim(0)?;
        if !inputs.x.device().is_cpu() || rows == 1 {
            return self.forward_together(inputs);
        }
        let row = |index: usize| self.forward_together(&inputs.map(|tensor| tensor.narrow(0, index, 1))?);
        let rows = (0..rows).into_par_iter().map(row).collect::<Result<Vec<_>>>()?;
        let (outputs, deep): (Vec<Tensor>, Vec<Tensor>) = rows.into_iter().unzip();
        Ok((Tensor::cat(&outputs, 0)?, Tensor::cat(&deep, 0)?))
    }

    fn forward_together(&self, inputs: &Inputs) -> Result<(Tensor, Tensor)> {
        let Inputs { x, time, context, vector, kept, places } = inputs;
        let (vector, kept) = (vector.as_ref(), kept.as_ref());
        match (&self.architecture, vector, places) {
            (Architecture::Unet(unet), vector, _) => unet.forward_keeping(x, time, context, vector, kept),
            (Architecture::Sd3(transformer), Some(vector), Some(places)) => {
                transformer.forward(x, time, context, vector, places, kept)
            }
            (Architecture::Flux(transformer), Some(vector), Some(places)) => {
                transformer.forward(x, time, context, vector, places, kept)
            }
            (Architecture::Sd3(_) | Architecture::Flux(_), ..) => {
                candle_core::bail!("the transformer needs the pooled prompt and the places of its tokens")
            }
        }
    }
}
